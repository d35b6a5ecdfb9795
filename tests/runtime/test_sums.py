"""Sums along any axes are right on every runtime, although TFLite's own reference kernel for them is not."""

from __future__ import annotations

import numpy as np
import pytest

import qwtv2_edge as qe
from qwtv2_edge.ir.graph import GraphBuilder
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops.pool import ReduceAttrs
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
