"""Verification against real runtimes: agreement, deliberately wrong predictions, crashes, missing runtimes."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from small_graphs import integer_graph

from qwtv2_edge import backends, ops
from qwtv2_edge.backends import emit
from qwtv2_edge.data import open_data
from qwtv2_edge.errors import MismatchError, RunError
from qwtv2_edge.ir import GraphBuilder, Quantization, TensorType
from qwtv2_edge.ops.pool import SoftmaxAttrs
from qwtv2_edge.runners.host import available
from qwtv2_edge.verification import verify
from qwtv2_edge.verification.patterns import PATTERNS

pytestmark = pytest.mark.runtime


@pytest.fixture(autouse=True)
def _needs_litert(require):
    require("ai_edge_litert")


def data(rng, count=20):
    return (rng.standard_normal((count, 6, 6, 2)) * 3).astype(np.float32)


def test_agreement(rng):
    graph = integer_graph()
    seen = []
    report = verify(
        graph,
        backends.emit(graph, "tflite"),
        data(rng, 100),
        ["litert-reference", "litert-xnnpack", "litert-builtin"],
        progress=lambda *step: seen.append(step),
    )
    assert report.raise_for_mismatch() is report
    for name, status in (("litert-reference", "exact"), ("litert-xnnpack", "exact"), ("litert-builtin", "bound")):
        result = report.results[name]
        assert result.status == status
        assert result.samples == 100 + len(PATTERNS)
        assert result.outputs_compared == 3 * result.samples
        assert re.fullmatch(r"2\..*", result.versions["ai-edge-litert"])
    assert ("litert-reference", 109, 109) in seen


def test_samples_limits_the_data(rng):
    graph = integer_graph()
    artifact = backends.emit(graph, "tflite")
    for source in (data(rng), iter(data(rng))):
        report = verify(graph, artifact, source, ["litert-reference"], samples=5)
        assert report.results["litert-reference"].samples == 5 + len(PATTERNS)
        assert report.ok


def test_without_data_the_edge_patterns_run():
    graph = integer_graph()
    report = verify(graph, backends.emit(graph, "tflite"), numerics=["litert-reference"])
    assert report.results["litert-reference"].samples == len(PATTERNS)
    assert report.ok


WRONG = ["quantize", "conv2d", "depthwise_conv2d", "add", "max_pool2d", "mean", "fully_connected", "softmax", "dequantize"]


def off_by_one(integer):
    """An integer meaning that adds one code (or one real step) to one element in three."""

    def wrong(arrays, attrs, in_types, out_types, numerics):
        (out,) = integer(arrays, attrs, in_types, out_types, numerics)
        flat = out.reshape(-1).copy()
        step = 1 if flat.dtype == np.int8 else np.float32(in_types[0].scale)
        flat[1::3] = np.where(flat[1::3] == 127, flat[1::3] - step, flat[1::3] + step) if flat.dtype == np.int8 else flat[1::3] + step
        return (flat.reshape(out.shape),)

    return wrong


@pytest.mark.parametrize("op", WRONG)
def test_a_wrong_prediction_is_traced_to_its_node(op, monkeypatch):
    """Each op's prediction is spoilt in turn; the runtime is right, so the report must name that very node."""
    graph = integer_graph()
    artifact = backends.emit(graph, "tflite")
    monkeypatch.setitem(ops.OPS, op, dataclasses.replace(ops.OPS[op], integer=off_by_one(ops.OPS[op].integer)))
    report = verify(graph, artifact, numerics=["litert-reference"])
    result = report.results["litert-reference"]
    assert result.status == "mismatch"
    assert result.mismatches > 0
    culprit = result.first.culprit
    assert (culprit.op, culprit.note) == (op, "")
    assert culprit.node == next(n.name for n in graph.nodes if n.op == op)
    assert culprit.source.startswith("net.py:")
    assert culprit.difference.max_lsb == 1
    assert culprit.difference.tensor == culprit.node
    assert result.first.origin in PATTERNS
    with pytest.raises(MismatchError, match=f"first differing node: {op}"):
        report.raise_for_mismatch()


def test_a_wrong_rule_is_traced_to_its_node(monkeypatch, rng):
    """A row of the numerics table is wrong: the delegate's mean is not the reference kernel's."""
    graph = integer_graph()
    artifact = backends.emit(graph, "tflite")
    table = backends.get_numerics("litert-xnnpack")
    wrong = dataclasses.replace(table, rules={**table.rules, "mean": "REF"})
    monkeypatch.setattr(backends, "all_numerics", lambda: {table.name: wrong})
    report = verify(graph, artifact, data(rng, 60), ["litert-xnnpack"])
    assert report.results["litert-xnnpack"].first.culprit.node == "mean"


def spoil(monkeypatch, *names):
    for name in names:
        monkeypatch.setitem(ops.OPS, name, dataclasses.replace(ops.OPS[name], integer=off_by_one(ops.OPS[name].integer)))


def with_bounds(monkeypatch, **bounds):
    table = dataclasses.replace(backends.get_numerics("litert-reference"), bounds=bounds)
    monkeypatch.setattr(backends, "all_numerics", lambda: {table.name: table})


def test_declared_bounds_let_a_known_difference_pass(monkeypatch):
    """The head is a little wrong and is allowed to be; softmax magnifies that at the output, and still it is explained."""
    graph = integer_graph()
    artifact = backends.emit(graph, "tflite")
    spoil(monkeypatch, "fully_connected")
    with_bounds(monkeypatch, fully_connected=1)
    result = verify(graph, artifact, numerics=["litert-reference"]).results["litert-reference"]
    assert (result.status, result.declared_lsb) == ("bound", 1)
    assert result.mismatches > 0
    assert result.first.culprit.op == "fully_connected"


@pytest.mark.parametrize(
    ("wrong", "bounds"),
    [
        (["softmax"], {"mean": 1}),
        (["softmax"], {"softmax": 0}),
        (["mean", "softmax"], {"mean": 1}),
        (["add", "softmax"], {"softmax": 1}),
    ],
)
def test_declared_bounds_excuse_nothing_else(monkeypatch, wrong, bounds):
    graph = integer_graph()
    artifact = backends.emit(graph, "tflite")
    spoil(monkeypatch, *wrong)
    with_bounds(monkeypatch, **bounds)
    assert verify(graph, artifact, numerics=["litert-reference"]).results["litert-reference"].status == "mismatch"


@pytest.mark.parametrize(("op", "target"), [("conv2d", "executorch-xnnpack"), ("add", "executorch-portable")])
def test_a_wrong_prediction_is_traced_in_executorch(op, target, monkeypatch, require):
    require("executorch")
    graph = integer_graph()
    artifact = backends.emit(graph, target)
    assert verify(graph, artifact).results[target].status == "exact"
    spoil(monkeypatch, op)
    culprit = verify(graph, artifact).results[target].first.culprit
    assert (culprit.op, culprit.note) == (op, "")


def test_an_artifact_of_another_graph():
    graph = integer_graph()
    report = verify(graph, backends.emit(integer_graph(1), "tflite"), numerics=["litert-reference"])
    result = report.results["litert-reference"]
    assert result.status == "mismatch"
    assert "the artifact holds something else" in result.first.culprit.note


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: d[: len(d) // 2], lambda d: b"\0" * len(d)], ids=["empty", "cut", "zeros"])
def test_a_runtime_that_fails_is_reported(damage):
    graph = integer_graph()
    artifact = backends.emit(graph, "tflite")
    broken = dataclasses.replace(artifact, data=damage(artifact.data))
    report = verify(graph, broken, numerics=["litert-reference"])
    result = report.results["litert-reference"]
    assert result.status == "crashed"
    assert result.error
    with pytest.raises(RunError):
        report.raise_for_mismatch()


def test_a_missing_runtime_is_reported(monkeypatch):
    monkeypatch.setenv("QWTV2_TFLITE_2_14_PYTHON", "/nonexistent/python")
    graph = integer_graph()
    report = verify(graph, backends.emit(graph, "tflite"), numerics=["tflite-2.14-reference"])
    assert report.missing == ("tflite-2.14-reference",)
    assert "tflite-runtime" in report.results["tflite-2.14-reference"].fix


def test_a_dataset_can_be_handed_over(rng):
    graph = integer_graph()
    samples = open_data(data(rng, 3), graph)
    assert verify(graph, backends.emit(graph, "tflite"), samples, ["litert-reference"]).results["litert-reference"].samples == 12


def test_values_on_which_a_runtime_fails_are_told_not_run(require):
    """A flat softmax over 1000 entries: TFLite's fixed-point kernel aborts there, XNNPACK's fallback does not."""
    require("ai_edge_litert", present=available("litert-xnnpack")[0])
    b = GraphBuilder("flat")
    type = TensorType((1, 1000), "int8", Quantization.per_tensor(0.001, 0))
    x = b.input("x", type)
    out = TensorType((1, 1000), "int8", Quantization.per_tensor(1 / 256, -128))
    b.outputs = list(b.add("softmax", (x,), SoftmaxAttrs(), name="softmax", out_types=(out,)))
    graph = b.freeze()
    report = verify(graph, emit(graph, "tflite"), numerics=["litert-reference", "litert-xnnpack"])
    assert report.results["litert-reference"].status == "refused"
    assert "sum to 512 or more" in report.results["litert-reference"].error
    assert report.results["litert-xnnpack"].status == "exact"
    assert report.ok
