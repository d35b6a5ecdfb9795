"""Warm-up, percentiles, doubts: the arithmetic of timing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qwtv2_edge.backends import Artifact, artifact_file, target_of
from qwtv2_edge.errors import UsageError
from qwtv2_edge.profiling import DeviceInfo, Latency, ProfileReport, compare_latency, profile
from qwtv2_edge.profiling import series as series_module
from qwtv2_edge.profiling.compare import compared
from qwtv2_edge.profiling.measure import Prepared
from qwtv2_edge.profiling.series import interval_of_median, steady, summarise
from qwtv2_edge.runners.base import Job
from qwtv2_edge.runners.state import parse


def latency(**changes):
    values = {"p10_ms": 1.0, "p50_ms": 1.0, "p90_ms": 1.1, "p99_ms": 1.2, "ci95_ms": (1.0, 1.0), "runs": 100, "warmup_runs": 0}
    return Latency(**{**values, "rounds_p50_ms": (1.0, 1.02), **changes})


@pytest.fixture
def quick(monkeypatch):
    """Fewer resamples, for tests that need many intervals."""
    monkeypatch.setattr(series_module, "RESAMPLES", 200)


def cut(ms):
    """(runs left out as warm-up, whether the series settled)"""
    found = steady(np.asarray(ms, np.float64))
    return found.warmup, found.settled


def nanoseconds(*series):
    return [(np.asarray(ms, np.float64) * 1e6).astype(int).tolist() for ms in series]


def doubts(*series):
    return "; ".join(summarise(nanoseconds(*series))[1])


def test_no_warm_up():
    assert cut(np.full(200, 2.0)) == (0, True)


def test_slow_start_is_left_out():
    assert cut(np.r_[np.linspace(4, 2, 35), np.full(165, 2.0)]) == (30, True)


def test_a_series_that_never_settles():
    assert cut(np.linspace(1, 3, 200)) == (100, False)
    assert "not settled after 100 runs" in doubts(np.linspace(1, 3, 200))


def test_single_spikes_are_no_warm_up():
    series = np.full(200, 2.0)
    series[3] = 50
    assert cut(series) == (0, True)


def test_short_series():
    assert cut([5.0, 1.0, 1.0]) == (0, True)
    found, reasons = summarise([[1_000_000]])
    assert (found.p10_ms, found.p99_ms, found.ci95_ms, found.runs) == (1.0, 1.0, (1.0, 1.0), 1)
    assert reasons == ("too few timed runs (1)", "too few runs a start (1) to tell warm-up from steady times")


def test_enough_runs_in_all_may_be_too_few_in_each_start():
    """Of 95 runs none would be taken for warm-up in starts of 19."""
    assert doubts(*[np.full(19, 1.0)] * 5) == "too few runs a start (19) to tell warm-up from steady times"
    assert not doubts(*[np.full(20, 1.0)] * 5)


def test_percentiles_are_of_steady_runs():
    found, reasons = summarise([[9_000_000] * 40 + [int(1e6 + 100 * i) for i in range(400)]])
    assert not reasons
    assert found.warmup_runs == 40
    assert found.runs == 400
    assert 1.0 < found.p10_ms < found.p50_ms < found.p90_ms < found.p99_ms < 1.05
    assert found.ci95_ms[0] <= found.p50_ms <= found.ci95_ms[1]


def test_the_interval_covers_the_median(rng, quick):
    hits = 0
    for _ in range(60):
        low, high = interval_of_median([rng.lognormal(0, 0.01, 100) for _ in range(5)])
        hits += low <= 1.0 <= high
    assert hits >= 50  # about 57 expected


def test_the_interval_knows_that_starts_differ(rng, quick):
    """Five starts whose levels lie 2 % apart, each known to a thousandth: the next start would be elsewhere."""
    hits = 0
    for _ in range(60):
        low, high = interval_of_median([rng.lognormal(rng.normal(0, 0.02), 0.01, 200) for _ in range(5)])
        hits += low <= 1.0 <= high
    assert hits >= 44  # 52 expected; an interval of pooled blocks covers it 24 times
    low, high = interval_of_median([np.full(100, v) for v in (1.00, 1.01, 1.02, 1.03, 1.04)])
    assert (low, high) == (1.0, 1.04)


def test_a_clock_that_is_too_coarse():
    found, _ = summarise([[0] * 30] * 2)
    assert found.p50_ms == 1e-6


def test_rounds_are_pooled_and_told_apart():
    found, _ = summarise([[1_000_000] * 30, [1_000_000] * 30, [1_100_000] * 30])
    assert found.runs == 90
    assert found.rounds_p50_ms == (1.0, 1.0, 1.1)
    assert found.spread == pytest.approx(0.1)
    assert found.throughput_per_s == pytest.approx(1e3 / (3.1 / 3))


BIMODAL = np.tile([1.0, 2.0], 100)
STALL = np.r_[np.full(150, 1.0), 1000.0, np.full(49, 1.0)]


@pytest.mark.parametrize(
    ("series", "words"),
    [
        ([np.full(100, 1.0)] * 5, None),
        ([np.full(10, 1.0)], "too few timed runs (10)"),
        ([np.linspace(1.0, 1.1, 200)] * 5, "times drift: by +5."),  # hidden from rule 1, which sees the end alone
        ([np.linspace(1.1, 1.0, 200)] * 5, "times drift: by -5."),
        ([np.r_[np.full(100, 1.0), np.full(100, 1.2)]], "not settled after 100 runs"),
        ([np.r_[np.full(60, 1.0), np.full(40, 1.25), np.full(100, 1.0)]] * 5, None),  # as p90 tells
        ([BIMODAL] * 5, "noisy: p90 is 2.00 times p10"),
        ([STALL] * 5, "outliers: the mean is 6.00 times the median"),
        ([np.r_[np.linspace(3, 1, 200), np.full(20, 1.0)]] * 5, "not settled"),
        ([np.full(40, v) for v in (1.0, 1.06, 1.0)], "medians of 3 starts differ by 6.0%"),
        ([np.full(40, v) for v in (1.0, 1.06, 1.0)], "the interval of the median is 6.0% wide"),
    ],
)
def test_what_series_tell_against_themselves(series, words):
    found = doubts(*series)
    assert (words or "") in found
    assert bool(words) == bool(found)


def prepared(busy="0.1", **job):
    described, before = parse(f"machine\tx86_64\ncores\t4\nload\t{busy} 0 0\n")
    return Prepared(None, "", described, before, "m", None, None, Job("tflite", "litert-xnnpack", b"", (), **job))


@pytest.mark.parametrize(
    ("it", "words"),
    [
        (prepared(), None),
        (prepared(threads=8), "8 threads on 4 cores"),
        (prepared(busy="3.9"), "load average 3.9 on 4 cores"),
        (prepared(cores=(1, 2)), "not kept to cores 1, 2"),
    ],
)
def test_what_devices_tell_against_times(it, words):
    found = it.device_doubts(it.before, ())
    assert (words is None) == (found == ())
    assert words is None or any(words in reason for reason in found)


def test_a_device_that_does_not_tell_its_state_afterwards():
    assert prepared().device_doubts(None, ()) == ("the device did not tell its state after the runs",)


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
    return [[int(m * 1e6 * f) for f in rng.normal(1, 0.003, 20)] for m in medians]


def test_a_comparison_leaves_out_each_rounds_warm_up(rng):
    """B starts slower, for half of each round, and is as fast then."""
    slow = [
        [int(v * m) for v, m in zip(r, [1.2] * 40 + [1.0] * 60, strict=True)]
        for r in ([v * 1e6 for v in rng.normal(1, 0.003, 100)] for _ in range(10))
    ]
    even = [[int(v * 1e6) for v in rng.normal(1, 0.003, 100)] for _ in range(10)]
    found = compared((even, slow), ("hot",))
    assert found.latency[1].warmup_runs == 400
    assert abs(found.difference_ms) < 0.003
    assert found.reasons == ("hot",)


def test_a_difference_larger_than_the_noise_is_significant(rng):
    drift = np.linspace(1, 1.3, 30)  # both slow down; the pairs still tell
    found = compared((rounds(drift, rng), rounds(drift * 1.01, rng)), ())
    assert found.significant
    assert 0 < found.ci95_ms[0] < found.difference_ms < found.ci95_ms[1]


def test_noise_is_not_significant_more_often_than_promised(rng, quick):
    found = [compared((rounds(np.ones(30), rng), rounds(np.ones(30), rng)), ()).significant for _ in range(60)]
    assert sum(found) <= 8  # 3 expected at most


def test_targets_by_name(tmp_path):
    assert target_of(tmp_path / "a.tflite") == "tflite"
    assert target_of(tmp_path / "model.executorch-portable.pte") == "executorch-portable"
    assert target_of(tmp_path / "model.pte") == "executorch-xnnpack"
    assert target_of(tmp_path / "c" / "model.c") == target_of(tmp_path / "net.c") == "c"
    assert target_of(tmp_path / "tflite-micro" / "model.tflite") == "tflite-micro"


def test_the_folder_of_a_target_stands_for_its_file(tmp_path):
    (tmp_path / "c").mkdir()
    assert artifact_file(tmp_path / "c") == tmp_path / "c"
    (tmp_path / "c" / "model.c").touch()
    assert artifact_file(tmp_path / "c") == tmp_path / "c" / "model.c"
    assert artifact_file(tmp_path) == tmp_path
    assert artifact_file(tmp_path / "model.tflite") == tmp_path / "model.tflite"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "serial:x"}, "unknown device 'serial:x'\n  fix   one of: host"),
        ({"threads": 0}, "must be at least 1"),
        ({"runs": 0}, "must be at least 1"),
        ({"numerics": "tflite-micro", "threads": 2}, "TFLite Micro runs in one thread, not 2"),
        ({"device": "board:cortex-m4"}, "no numerics of target 'tflite' runs on board:cortex-m4"),
        ({"numerics": "executorch-xnnpack"}, "runs executorch-xnnpack artifacts, not tflite"),
    ],
)
def test_wrong_use(options, words):
    with pytest.raises(UsageError, match=words):
        profile(Artifact("tflite", b"x"), **options)


def test_wrong_files(tmp_path):
    with pytest.raises(UsageError, match="can't read"):
        profile(tmp_path / "absent.tflite")
    with pytest.raises(UsageError, match=r"neither a \.tflite nor a \.pte nor a \.c"):
        profile(tmp_path / "model.onnx")


def test_too_few_rounds_to_compare():
    with pytest.raises(UsageError, match="3 rounds can't show a difference"):
        compare_latency("a.tflite", "b.tflite", rounds=3)
