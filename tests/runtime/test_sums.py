"""Sums along any axes are right on every runtime, although TFLite's own reference kernel for them is not."""

from __future__ import annotations

import numpy as np
import pytest
from cases.build import op_case

import qwtv2_edge as qe
from qwtv2_edge.ir.graph import GraphBuilder
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.ops.pool import ReduceAttrs, SoftmaxAttrs
from qwtv2_edge.quantization.legalize import legalize
from qwtv2_edge.simulator.run import run_float

pytestmark = pytest.mark.runtime


@pytest.mark.parametrize(
    ("shape", "axes", "keep"),
    [
        ((1, 4, 5, 3), (1, 2), False),
        ((1, 4, 5, 3), (1, 2), True),
        ((1, 4, 5, 3), (3,), False),
        ((1, 4, 6), (1,), True),
        ((1, 7), (1,), True),
    ],
)
def test_sums_are_exact_everywhere(shape, axes, keep, rng, require):
    require("ai_edge_litert")
    b = GraphBuilder("sum")
    x = b.input("x", TensorType(shape))
    b.outputs = list(b.add("sum", (x,), ReduceAttrs(axes, keep), name="total"))
    graph = b.freeze()
    data = rng.normal(size=(32, *shape[1:])).astype(np.float32)
    legal = legalize(graph)
    assert all(n.op != "sum" for n in legal.nodes)
    assert np.allclose(run_float(legal, [data])[0], run_float(graph, [data])[0], atol=1e-5)
    result = qe.quantize(graph, [data])
    expected = data.sum(axes, keepdims=keep)
    simulated = qe.simulate(result.graph, [data], numerics="litert-reference")[0]
    assert np.abs(simulated - expected).max() < 0.04 * np.abs(expected).max()
    report = qe.verify(result.graph, qe.emit(result.graph, "tflite"), [data])
    assert report.ok, report.text()
    assert all(r.status in ("exact", "bound", "missing") for r in report.results.values()), report.text()


def test_portable_sums_beyond_float32_are_exact(rng, require):
    """ExecuTorch's own sum adds in float32; flat rows of a softmax, and 16-bit rows, sum to more than that holds."""
    require("executorch")
    flat = TensorType((1, 40, 300), "int8", Quantization.per_tensor(0.004, 3))
    graph = op_case("flat", "softmax", SoftmaxAttrs(), [flat], Quantization.per_tensor(1 / 256, -128)).graph
    data = [rng.integers(-128, 128, (8, 40, 300), dtype=np.int8)]
    report = qe.verify(graph, qe.emit(graph, "executorch-portable"), data)
    assert report.ok, report.text()
    wide = TensorType((1, 4, 900), "int16", Quantization.per_tensor(0.001, 0))
    graph = op_case("wide", "mean", ReduceAttrs((2,)), [wide], Quantization.per_tensor(0.0009, 0), dtype="int16").graph
    data = [rng.integers(20000, 32768, (8, 4, 900), dtype=np.int16)]
    report = qe.verify(graph, qe.emit(graph, "executorch-portable"), data)
    assert report.ok, report.text()
