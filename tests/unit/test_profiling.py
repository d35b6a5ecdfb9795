"""Warm-up, percentiles, doubts: the arithmetic of timing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qwtv2_edge.backends import Artifact
from qwtv2_edge.errors import UsageError
from qwtv2_edge.profiling import Device, Latency, ProfileReport, profile
from qwtv2_edge.profiling.measure import _doubts, describe_host, summarise, target_of, warmup_runs

QUIET = Device("host", "CPU", "x86_64", 4, "performance", 40.0)


def latency(**changes):
    values = {"p10_ms": 1.0, "p50_ms": 1.0, "p90_ms": 1.1, "p99_ms": 1.2, "ci95_ms": (1.0, 1.0), "runs": 100, "warmup_runs": 0}
    return Latency(**{**values, **changes})


def test_no_warm_up():
    assert warmup_runs(np.full(200, 2.0)) == (0, True)


def test_slow_start_is_left_out():
    series = np.r_[np.linspace(4, 2, 35), np.full(165, 2.0)]
    assert warmup_runs(series) == (30, True)


def test_a_series_that_never_settles():
    runs, settled = warmup_runs(np.linspace(1, 3, 200))
    assert (runs, settled) == (100, False)


def test_single_spikes_are_no_warm_up():
    series = np.full(200, 2.0)
    series[3] = 50
    assert warmup_runs(series) == (0, True)


def test_short_series():
    assert warmup_runs(np.array([5.0, 1.0, 1.0])) == (0, True)
    found, _ = summarise([1_000_000])
    assert (found.p10_ms, found.p99_ms, found.ci95_ms, found.runs) == (1.0, 1.0, (1.0, 1.0), 1)


def test_percentiles_are_of_steady_runs():
    ns = [9_000_000] * 40 + [int(1e6 + 100 * i) for i in range(400)]
    found, settled = summarise(ns)
    assert settled
    assert found.warmup_runs == 40
    assert found.runs == 400
    assert 1.0 < found.p10_ms < found.p50_ms < found.p90_ms < found.p99_ms < 1.05
    assert found.ci95_ms[0] <= found.p50_ms <= found.ci95_ms[1]


def test_the_interval_covers_the_median(rng):
    hits = 0
    for _ in range(60):
        found, _ = summarise((rng.lognormal(0, 0.01, 200) * 1e6).astype(int).tolist())
        hits += found.ci95_ms[0] <= 1.0 <= found.ci95_ms[1]
    assert hits >= 50  # about 57 expected; 50 has a chance of less than 1 in 1000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"latency": latency(runs=10)}, "only 10 timed runs"),
        ({"settled": False}, "not settled"),
        ({"latency": latency(p90_ms=2.0)}, "noisy: p90 is 2.00 times p10"),
        ({"threads": 8}, "8 threads on 4 cores"),
        ({"busy": 3.9}, "load average 3.9 on 4 cores"),
        ({"place": Device("host", "CPU", "x86_64", 4, "powersave")}, "governor is 'powersave'"),
        ({"place": Device("host", "CPU", "x86_64", 4, "", 90.0)}, "at 90.0 °C"),
        ({"place": Device("host", "CPU", "x86_64", 4, "", None)}, None),
    ],
)
def test_doubts(change, words):
    found = _doubts(**{"place": QUIET, "latency": latency(), "settled": True, "threads": 1, "busy": 0.1, **change})
    assert (words is None) == (found == ())
    assert words is None or any(words in reason for reason in found)


def test_report():
    report = ProfileReport(
        "m.tflite",
        "ab",
        10,
        "litert-xnnpack",
        "LiteRT",
        {"ai-edge-litert": "2.3.0"},
        QUIET,
        1,
        2.0,
        0.5,
        latency(),
        2**20,
        True,
        reasons=("noisy",),
    )
    document = json.loads(json.dumps(report.to_json()))
    promised = {"artifact", "runtime", "device", "emulated", "reliable", "reasons", "threads", "load_ms", "first_ms", "latency", "ops"}
    assert promised | {"peak_rss_bytes", "outputs_match"} <= set(document)
    assert set(document["device"]) == {"kind", "name", "abi", "cores", "governor", "temperature_c"}
    assert set(document["latency"]) == {"p10_ms", "p50_ms", "p90_ms", "p99_ms", "ci95_ms", "runs", "warmup_runs"}
    assert document["reliable"] is False
    assert "doubtful: noisy" in report.text()


def test_host():
    place = describe_host()
    assert place.kind == "host"
    assert place.cores >= 1
    assert place.name


def test_targets_by_name(tmp_path):
    assert target_of(tmp_path / "a.tflite") == "tflite"
    assert target_of(tmp_path / "model.executorch-portable.pte") == "executorch-portable"
    assert target_of(tmp_path / "model.pte") == "executorch-xnnpack"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "adb"}, "device 'adb' is not known\n  fix   this version has: host"),
        ({"threads": 0}, "must be at least 1"),
        ({"runs": 0}, "must be at least 1"),
        ({"numerics": "executorch-xnnpack"}, "runs executorch-xnnpack artifacts, not tflite"),
    ],
)
def test_wrong_use(options, words):
    with pytest.raises(UsageError, match=words):
        profile(Artifact("tflite", b"x"), **options)


def test_wrong_files(tmp_path):
    with pytest.raises(UsageError, match="can't read"):
        profile(tmp_path / "absent.tflite")
    with pytest.raises(UsageError, match=r"neither a \.tflite nor a \.pte"):
        profile(tmp_path / "model.onnx")
