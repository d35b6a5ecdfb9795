"""Timing of real artifacts."""

from __future__ import annotations

import os
from contextlib import contextmanager

import numpy as np
import pytest
from small_graphs import integer_graph

from qwtv2_edge import backends
from qwtv2_edge.errors import RunError, UsageError
from qwtv2_edge.profiling import compare_latency, measure, profile
from qwtv2_edge.profiling.measure import ROUNDS
from qwtv2_edge.runners import device
from qwtv2_edge.runners.device import PlaceDevice
from qwtv2_edge.runners.host import HOST, available

pytestmark = pytest.mark.runtime


@pytest.fixture
def artifact(require):
    require("ai_edge_litert")
    return backends.emit(integer_graph(), "tflite")


def test_artifact(artifact):
    report = profile(artifact, runs=80, graph=integer_graph())
    assert report.outputs_match is True
    assert report.latency.runs + report.latency.warmup_runs == 80
    assert 0 < report.latency.p10_ms <= report.latency.p50_ms <= report.latency.p90_ms <= report.latency.p99_ms
    assert report.load_ms > 0
    assert report.first_ms > 0
    assert report.peak_rss_bytes > 10 << 20
    assert (report.bytes, report.sha256) == (len(artifact.data), artifact.sha256)
    assert len(report.latency.rounds_p50_ms) == ROUNDS
    assert not report.emulated
    assert report.complete


def test_file_and_inputs(artifact, tmp_path, rng):
    path = artifact.save(tmp_path / "m.tflite")
    inputs = rng.standard_normal((3, 6, 6, 2)).astype(np.float32)
    report = profile(path, inputs, runs=30, graph=integer_graph(), numerics="litert-reference")
    assert report.artifact == str(path)
    assert report.runtime == "LiteRT, reference kernels"
    assert report.outputs_match is True
    without = profile(path, inputs, runs=30)
    assert without.outputs_match is not False


def test_inputs_that_an_invocation_spends_are_given_anew(require):
    """TFLite Micro reuses the memory of its inputs: timed again on what is left there, it would compute something else."""
    require("tflite-micro", *available("tflite-micro"))
    graph = integer_graph()
    report = profile(backends.emit(graph, "tflite-micro"), runs=30, graph=graph)
    assert report.outputs_match is True


def test_generated_c(require, tmp_path):
    require("c", *available("c"))
    graph = integer_graph()
    backends.emit(graph, "c").save(tmp_path / "c")
    report = profile(tmp_path / "c", runs=30, graph=graph)
    assert (report.artifact, report.runtime) == (str(tmp_path / "c" / "model.c"), "generated C")
    assert report.outputs_match is True
    assert report.latency.p50_ms > 0
    assert 0 < report.load_ms < 100  # the compiler's work is no loading
    assert "counted node by node" in report.ops_note


def test_another_graph_does_not_match(artifact):
    assert profile(artifact, runs=20, graph=integer_graph(1)).outputs_match is False


def test_runs_are_chosen(artifact):
    report = profile(artifact, graph=integer_graph())
    assert report.latency.runs + report.latency.warmup_runs >= 60


def test_every_sample_is_compared_and_the_first_is_timed(artifact, rng):
    inputs = rng.standard_normal((5, 6, 6, 2)).astype(np.float32)
    seen = []
    host = PlaceDevice(HOST)
    opening = host.open

    @contextmanager
    def watched(job):
        with opening(job) as timed:
            yield timed
            seen.append((len(job.inputs[0]), len(timed.outputs[0])))

    host.open = watched
    report = profile(artifact, inputs, host, runs=30, graph=integer_graph(), samples=4)
    assert seen == [(4, 4)] * ROUNDS
    assert report.outputs_match is True


def test_pinned_cores(artifact):
    core = max(os.sched_getaffinity(0))
    assert profile(artifact, runs=30, graph=integer_graph(), cores=(core,)).pinned_cores == (core,)
    with pytest.raises(UsageError, match="there is no core 4095 to stay on, only"):
        profile(artifact, runs=30, graph=integer_graph(), cores=(core, 4095))


class Disturbed(PlaceDevice):
    """The host, whose second start times by ``second(run)`` in place of ``run.block``."""

    def __init__(self, second):
        super().__init__(HOST)
        self.second = second
        self.starts = 0

    @contextmanager
    def open(self, job):
        self.starts += 1
        with super().open(job) as timed:
            if self.starts == 2:
                timed.block = self.second(timed)
            yield timed


def lost(run):
    """The runtime is killed once a first chunk has come back."""
    block = run.block
    return lambda runs, seconds, keep: block(runs, seconds, lambda ns: (keep(ns), run.session.abort()))


def unsteady(run):
    """Another byte comes out."""
    block = run.block

    def wrong(*args):
        series = block(*args)
        run.outputs = (run.outputs[0] + 1, *run.outputs[1:])
        return series

    return wrong


def test_what_was_measured_before_the_device_was_lost_is_told(artifact, monkeypatch):
    monkeypatch.setattr(device, "CHUNK_S", 0.001)
    partial = []
    with pytest.raises(RunError, match="crashed"):
        profile(artifact, device=Disturbed(lost), graph=integer_graph(), partial=partial.append)
    (report,) = partial
    assert not report.complete
    assert not report.reliable
    assert len(report.latency.rounds_p50_ms) == 2
    assert report.outputs_match is True


def test_times_are_kept_when_those_of_ops_are_cut_short(artifact, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "time_ops", interrupted)
    partial = []
    with pytest.raises(KeyboardInterrupt):
        profile(artifact, runs=30, graph=integer_graph(), partial=partial.append)
    (report,) = partial
    assert (report.complete, report.latency.runs) == (False, 30)


def test_the_outputs_of_every_start_are_compared(artifact):
    report = profile(artifact, device=Disturbed(unsteady), runs=30, graph=integer_graph())
    assert report.outputs_match is False
    assert "differ from one start to the next" in report.text()


def test_a_against_itself(artifact):
    found = compare_latency(artifact, artifact, rounds=8)
    assert found.rounds == 8
    assert [len(side.rounds_p50_ms) for side in found.latency] == [8, 8]
    assert found.ratio == pytest.approx(1, abs=0.5)
    assert found.ci95_ms[0] <= found.difference_ms <= found.ci95_ms[1]


def test_broken_file(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"TFL3" * 20)
    with pytest.raises(RunError):
        profile(path)
