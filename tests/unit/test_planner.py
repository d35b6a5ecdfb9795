"""Plans of graphs small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from qwtv2_edge.ir.graph import Graph, GraphBuilder
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops import OPS
from qwtv2_edge.ops.conv import Conv2DAttrs
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.layout import ReshapeAttrs, SliceAttrs, TransposeAttrs
from qwtv2_edge.ops.pool import PoolAttrs
from qwtv2_edge.ops.spec import NoAttrs
from qwtv2_edge.planner import is_view, plan_graph


def one(op: str, shape: tuple[int, ...], attrs, *weights: tuple[int, ...]) -> Graph:
    b = GraphBuilder(op)
    x = b.input("x", TensorType(shape, "int8"))
    constants = [b.constant("w", np.zeros(w, np.int8), TensorType(w, "int8")) for w in weights]
    b.outputs = list(b.add(op, [x, *constants], attrs, name="y"))
    return b.freeze()


def conv(channels: int, kernel: int, stride: int, pad: int) -> Graph:
    attrs = Conv2DAttrs((stride, stride), ((pad, pad), (pad, pad)))
    return one("conv2d", (1, 8, 8, 4), attrs, (channels, kernel, kernel, 4), (channels,))


@pytest.mark.parametrize(
    ("graph", "bytes"),
    [
        (one("relu", (1, 64), NoAttrs()), 64),  # in place
        (conv(4, 3, 1, 1), 256 + 2 * 32),  # the output begins two rows below: row k is written while row k - 1 is read
        (conv(4, 1, 1, 0), 256 + 32),  # one row below
        (conv(8, 1, 1, 0), 512 + 32),  # the output's rows are twice as long: the input ends one row of its own behind the output
        (one("max_pool2d", (1, 8, 8, 4), PoolAttrs((2, 2), (2, 2))), 256 + 16),
        (one("fully_connected", (10, 4), OPS["fully_connected"].attrs(), (8, 4), (8,)), 80 + 4),
        (one("fully_connected", (1, 4), OPS["fully_connected"].attrs(), (8, 4), (8,)), 12),
        (one("transpose", (1, 4, 4), TransposeAttrs((0, 2, 1))), 32),  # reads everywhere
        (one("transpose", (1, 4, 4), TransposeAttrs((1, 0, 2))), 16),
        (one("slice", (1, 5, 4), SliceAttrs((0, 0, 0), (1, 3, 4), (1, 1, 1))), 20),
        (one("slice", (1, 5, 4), SliceAttrs((0, 2, 0), (1, 5, 4), (1, 1, 1))), 32),
        (one("slice", (2, 5, 4), SliceAttrs((0, 0, 0), (2, 3, 4), (1, 1, 1))), 40 + 24),
    ],
)
def test_outputs_run_over_inputs_that_were_read(graph, bytes):
    plan = plan_graph(graph, alignment=4)
    assert plan.bytes == plan.bound == bytes
    apart = graph.tensors["x"].size_bytes + graph.tensors["y"].size_bytes
    assert plan_graph(graph, alignment=4, share=False).bytes == apart


@pytest.mark.parametrize(
    ("op", "shape", "attrs", "view"),
    [
        ("reshape", (2, 3), ReshapeAttrs((6,)), True),
        ("slice", (1, 1, 5), SliceAttrs((0, 0, 0), (1, 1, 2), (1, 1, 1)), True),
        ("slice", (1, 1, 5), SliceAttrs((0, 0, 0), (1, 1, 5), (1, 1, 2)), False),
        ("slice", (2, 5), SliceAttrs((0, 0), (2, 4), (1, 1)), False),
    ],
)
def test_views_are_leading_bytes(op, shape, attrs, view):
    graph = one(op, shape, attrs)
    assert is_view(graph, graph.nodes[0]) == view


def residual() -> Graph:
    """quantize, relu, tanh, add of both, dequantize."""
    b = GraphBuilder("residual")
    codes = TensorType((1, 32), "int8")
    x = b.input("x", TensorType((1, 32)))
    (q,) = b.add("quantize", [x], NoAttrs(), name="q", out_types=(codes,))
    (r,) = b.add("relu", [q], NoAttrs(), name="r")
    (t,) = b.add("tanh", [r], NoAttrs(), name="t")
    (a,) = b.add("add", [r, t], BinaryAttrs(), name="a")
    b.outputs = list(b.add("dequantize", [a], NoAttrs(), name="d", out_types=(TensorType((1, 32)),)))
    return b.freeze()


def test_a_branch_keeps_what_it_comes_back_to():
    plan = plan_graph(residual(), skip=("q", "d"))
    assert set(plan.offsets) == {"q", "r", "t", "a"}
    assert plan.offsets["q"] == plan.offsets["r"] != plan.offsets["t"]
    assert plan.offsets["a"] in (plan.offsets["r"], plan.offsets["t"])
    assert plan.live == (0, 32, 64, 64, 0)
    assert (plan.bytes, plan.peak) == (64, 2)


def test_what_skipped_nodes_read_lives_to_the_end():
    b = GraphBuilder("two results")
    x = b.input("x", TensorType((1, 32), "int8"))
    (r,) = b.add("relu", [x], NoAttrs(), name="r")
    (t,) = b.add("tanh", [r], NoAttrs(), name="t")
    outs = [b.add("dequantize", [n], NoAttrs(), name=f"{n}_real", out_types=(TensorType((1, 32)),))[0] for n in (r, t)]
    b.outputs = outs
    plan = plan_graph(b.freeze(), skip=("r_real", "t_real"))
    assert plan.offsets["r"] != plan.offsets["t"]
    assert plan.bytes == 64


def test_scratch_lies_beside_what_its_node_touches():
    plan = plan_graph(residual(), skip=("q", "d"), scratch={"t": 20})
    assert plan.bytes == plan.bound == 96
    assert plan.scratch["t"] not in (plan.offsets["r"], plan.offsets["t"])
    assert plan.peak == 2
