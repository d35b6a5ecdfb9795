"""Warm-up, percentiles, doubts: the arithmetic of timing."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from qwtv2_edge.backends import Artifact
from qwtv2_edge.errors import UsageError
from qwtv2_edge.profiling import DeviceInfo, Latency, ProfileReport, compare_latency, profile
from qwtv2_edge.profiling.compare import compared
from qwtv2_edge.profiling.measure import doubts_of, summarise, target_of, warmup_runs
from qwtv2_edge.runners.state import parse


def latency(**changes):
    values = {"p10_ms": 1.0, "p50_ms": 1.0, "p90_ms": 1.1, "p99_ms": 1.2, "ci95_ms": (1.0, 1.0), "runs": 100, "warmup_runs": 0}
    return Latency(**{**values, "rounds_p50_ms": (1.0, 1.02), **changes})


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
    found, _ = summarise([[1_000_000]])
    assert (found.p10_ms, found.p99_ms, found.ci95_ms, found.runs) == (1.0, 1.0, (1.0, 1.0), 1)


def test_percentiles_are_of_steady_runs():
    ns = [9_000_000] * 40 + [int(1e6 + 100 * i) for i in range(400)]
    found, settled = summarise([ns])
    assert settled
    assert found.warmup_runs == 40
    assert found.runs == 400
    assert 1.0 < found.p10_ms < found.p50_ms < found.p90_ms < found.p99_ms < 1.05
    assert found.ci95_ms[0] <= found.p50_ms <= found.ci95_ms[1]


def test_the_interval_covers_the_median(rng):
    hits = 0
    for _ in range(60):
        found, _ = summarise([(rng.lognormal(0, 0.01, 200) * 1e6).astype(int).tolist()])
        hits += found.ci95_ms[0] <= 1.0 <= found.ci95_ms[1]
    assert hits >= 50  # about 57 expected; 50 has a chance of less than 1 in 1000


def test_rounds_are_pooled_and_told_apart():
    found, _ = summarise([[1_000_000] * 30, [1_000_000] * 30, [1_100_000] * 30])
    assert found.runs == 90
    assert found.rounds_p50_ms == (1.0, 1.0, 1.1)
    assert found.spread == pytest.approx(0.1)
    assert found.throughput_per_s == pytest.approx(1e3 / (3.1 / 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"latency": latency(runs=10)}, "only 10 timed runs"),
        ({"settled": False}, "not settled"),
        ({"latency": latency(p90_ms=2.0)}, "noisy: p90 is 2.00 times p10"),
        ({"latency": latency(rounds_p50_ms=(1.0, 1.06, 1.0))}, "medians of 3 starts differ by 6.0%"),
        ({"latency": latency(ci95_ms=(0.96, 1.02))}, "the interval of the median is 6.0% wide"),
        ({"threads": 8}, "8 threads on 4 cores"),
        ({"busy": "3.9"}, "load average 3.9 on 4 cores"),
    ],
)
def test_doubts(change, words):
    busy, threads = change.pop("busy", "0.1"), change.pop("threads", 1)
    described, before = parse(f"machine\tx86_64\ncores\t4\nload\t{busy} 0 0\n")
    it = SimpleNamespace(described=described, before=before, job=SimpleNamespace(threads=threads))
    found = doubts_of(it, **{"latency": latency(), "settled": True, **change})
    assert (words is None) == (found == ())
    assert words is None or any(words in reason for reason in found)


def report(**changes):
    values = {
        "artifact": "m.tflite",
        "sha256": "ab",
        "bytes": 10,
        "numerics": "litert-xnnpack",
        "runtime": "LiteRT",
        "versions": {"ai-edge-litert": "2.3.0"},
        "device": DeviceInfo("host", "CPU", "x86_64", 4, "performance", 40.0),
        "threads": 1,
        "load_ms": 2.0,
        "first_ms": 0.5,
        "latency": latency(),
        "peak_rss_bytes": 2**20,
        "outputs_match": True,
    }
    return ProfileReport(**{**values, **changes})


def test_report():
    found = report(reasons=("noisy",))
    document = json.loads(json.dumps(found.to_json()))
    promised = {"artifact", "runtime", "device", "emulated", "reliable", "reasons", "threads", "load_ms", "first_ms", "latency", "ops"}
    assert promised | {"peak_rss_bytes", "outputs_match"} <= set(document)
    assert set(document["device"]) == {"kind", "name", "abi", "cores", "governor", "temperature_c"}
    assert {"p10_ms", "p50_ms", "p90_ms", "p99_ms", "ci95_ms", "runs", "warmup_runs"} <= set(document["latency"])
    assert document["reliable"] is False
    assert "doubtful: noisy" in found.text()


def test_no_milliseconds_of_emulated_processors():
    found = report(emulated=True, load_ms=None, first_ms=None, latency=None, instructions={"load": 5, "first": 3, "per_inference": 2})
    assert "ms" not in found.text()
    assert "instructions: 2 per inference, 3 the first, 5 to load" in found.text()
    assert found.to_json()["latency"] is None
    assert not found.reliable


def test_a_run_cut_short_is_marked():
    found = report(complete=False)
    assert "incomplete" in found.text()
    assert not found.reliable


def rounds(medians, rng):
    return [[int(m * 1e6 * f) for f in rng.normal(1, 0.003, 10)] for m in medians]


def test_a_difference_larger_than_the_noise_is_significant(rng):
    drift = np.linspace(1, 1.3, 30)  # both slow down; the pairs still tell
    found = compared((rounds(drift, rng), rounds(drift * 1.01, rng)), ())
    assert found.significant
    assert 0 < found.ci95_ms[0] < found.difference_ms < found.ci95_ms[1]


def test_noise_is_not_significant_more_often_than_promised(rng):
    found = [compared((rounds(np.ones(30), rng), rounds(np.ones(30), rng)), ()).significant for _ in range(60)]
    assert sum(found) <= 8  # 3 expected at most


def test_targets_by_name(tmp_path):
    assert target_of(tmp_path / "a.tflite") == "tflite"
    assert target_of(tmp_path / "model.executorch-portable.pte") == "executorch-portable"
    assert target_of(tmp_path / "model.pte") == "executorch-xnnpack"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "serial:x"}, "unknown device 'serial:x'\n  fix   one of: host"),
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


def test_too_few_rounds_to_compare():
    with pytest.raises(UsageError, match="3 rounds can't show a difference"):
        compare_latency("a.tflite", "b.tflite", rounds=3)
