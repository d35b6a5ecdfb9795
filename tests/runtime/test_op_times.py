"""Times per op from the real runtimes, on the networks that the benchmark profiles."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from small_graphs import integer_graph

from qwtv2_edge.backends import emit
from qwtv2_edge.profiling import ops
from qwtv2_edge.profiling.ops import time_ops, trace
from qwtv2_edge.runners.base import Job
from qwtv2_edge.runners.host import HOST, OpEvents, Session

pytestmark = pytest.mark.runtime

MODULES = {"litert-xnnpack": "ai_edge_litert", "litert-builtin": "ai_edge_litert", "executorch": "executorch"}
#: ops with weights
HEAVY = {"conv2d", "depthwise_conv2d", "fully_connected"}


@cache
def quantized(name: str):
    """(integer graph, one float sample) of a network."""
    from models import build_net, calibration_of

    import qwtv2_edge as qe

    calibration = calibration_of(name, 4)
    return qe.quantize(qe.capture(build_net(name), (calibration[:1],)), calibration).graph, calibration[:1]


def small(target: str, runner: str, seed: int = 0) -> Job:
    data = emit(integer_graph(seed), target).data
    return Job(target, runner, data, [np.random.default_rng(0).standard_normal((1, 6, 6, 2)).astype(np.float32)])


@pytest.mark.parametrize(
    ("target", "runner"), [("tflite", "litert-xnnpack"), ("tflite", "litert-builtin"), ("executorch-xnnpack", "executorch")]
)
@pytest.mark.parametrize("name", ["resnet8", "ds_cnn", pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
def test_every_layer_has_its_time(name, target, runner, require, request):
    require(MODULES[runner])
    if name != "mobilenet_v2":
        request.getfixturevalue("data_dir")
    graph, sample = quantized(name)
    found = time_ops(HOST, Job(target, runner, emit(graph, target).data, [sample]), graph, seconds=0.5)
    times: dict[str, float] = {}
    for row in found.rows:
        times[row["node"]] = times.get(row["node"], 0.0) + row["ms"]
    heavy = [n for n in graph.nodes if n.op in HEAVY]
    assert {n.name for n in heavy} <= set(times)
    # what has no node is next to nothing: changes of rank
    assert times.get("", 0.0) <= 0.02 * sum(times.values())
    # layers by their weights do most of the work on all of these networks
    assert sum(times[n.name] for n in heavy) > 0.5 * sum(times.values())
    assert sum(r["percent"] for r in found.rows) == pytest.approx(100)
    sources = {n.name: str(n.location) for n in graph.nodes}
    assert all(r["source"] == sources.get(r["node"], "") for r in found.rows)
    assert "an invocation takes" in found.note


def test_portable_programs_are_timed_by_kernel(require):
    require("executorch")
    graph = integer_graph()
    found = time_ops(HOST, small("executorch-portable", "executorch"), graph, seconds=0.3)
    assert [r["op"] for r in found.rows] == list(emit(graph, "executorch-portable").ops)
    assert {r["node"] for r in found.rows} == {n.name for n in graph.nodes}
    assert "delegate call of its own" not in found.note


def test_a_program_of_an_unknown_graph_is_one_call(require):
    require("executorch")
    for graph in (None, integer_graph(1)):
        found = time_ops(HOST, small("executorch-xnnpack", "executorch"), graph, seconds=0.3)
        assert [(r["op"], r["node"]) for r in found.rows] == [("instruction 0", "")]
        assert "no graph" in found.note


def test_a_file_of_an_unknown_graph_has_its_operators(require):
    require("ai_edge_litert")
    found = time_ops(HOST, small("tflite", "litert-xnnpack"), None, seconds=0.3)
    codes = set(emit(integer_graph(), "tflite").ops)
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"} <= {r["op"] for r in found.rows} & codes
    assert {r["node"] for r in found.rows} == {""}


def test_shuffled_events_of_a_real_run_are_refused(require):
    require("ai_edge_litert")
    graph = integer_graph()
    job = small("tflite", "litert-xnnpack")
    with Session(job.runner, job.data) as session:
        told, _ = session.ops(job.inputs, seconds=0.3)
    artifact = emit(graph, "tflite")
    assert any(r["node"] for r in trace(told, artifact, graph)[0])
    order = np.random.default_rng(0).permutation(len(told.events))
    shuffled = OpEvents(tuple(told.events[i] for i in order), told.operators)
    rows, doubt = trace(shuffled, artifact, graph)
    assert not any(r["node"] for r in rows)
    assert "another order" in doubt


@pytest.mark.parametrize(
    ("runner", "module", "reason"),
    [
        ("litert-reference", "ai_edge_litert", "no reference kernels"),
        ("tensorflow-xnnpack", "tensorflow", "no profiler that Python can reach"),
        ("tflite-micro", "tflite_micro", "takes no profiler"),
    ],
)
def test_runtimes_that_tell_nothing(runner, module, reason, require):
    require(module)
    target = "tflite-micro" if runner == "tflite-micro" else "tflite"
    found = time_ops(HOST, small(target, runner), integer_graph(), seconds=0.3)
    assert found.rows == ()
    assert reason in found.note


def test_outputs_that_change_when_watched_are_refused(require, monkeypatch):
    require("executorch")
    other = emit(integer_graph(1), "executorch-xnnpack")
    graph, job, plain = integer_graph(), small("executorch-xnnpack", "executorch"), ops.emit
    monkeypatch.setattr(ops, "emit", lambda g, t, options: other if options.separate else plain(g, t, options))
    found = time_ops(HOST, job, graph, seconds=0.3)
    assert found.rows == ()
    assert "not those of the plain run" in found.note


def test_watching_does_not_disturb_plain_timing(require):
    require("executorch")
    job = small("executorch-xnnpack", "executorch")
    with Session(job.runner, job.data) as session:
        (before,) = session.run(job.inputs)
        told, (watched,) = session.ops(job.inputs, seconds=0.2)
        (after,) = session.run(job.inputs)
        assert len(session.time(job.inputs, 5).ns) == 5
    assert told.runs > 0
    assert told.plain_ns > 0
    assert before.tobytes() == watched.tobytes() == after.tobytes()
