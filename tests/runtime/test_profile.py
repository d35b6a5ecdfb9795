"""Timing of real artifacts."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import integer_graph

from qwtv2_edge import backends
from qwtv2_edge.errors import RunError
from qwtv2_edge.profiling import profile

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
    assert report.ops == ()
    assert report.ops_note


def test_file_and_inputs(artifact, tmp_path, rng):
    path = artifact.save(tmp_path / "m.tflite")
    inputs = rng.standard_normal((3, 6, 6, 2)).astype(np.float32)
    report = profile(path, inputs, runs=30, graph=integer_graph(), numerics="litert-reference")
    assert report.artifact == str(path)
    assert report.runtime == "LiteRT, reference kernels"
    assert report.outputs_match is True
    without = profile(path, inputs, runs=30)
    assert without.outputs_match is not False


def test_another_graph_does_not_match(artifact):
    assert profile(artifact, runs=20, graph=integer_graph(1)).outputs_match is False


def test_runs_are_chosen(artifact):
    report = profile(artifact, graph=integer_graph())
    assert report.latency.runs + report.latency.warmup_runs >= 60


def test_broken_file(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"TFL3" * 20)
    with pytest.raises(RunError):
        profile(path)
