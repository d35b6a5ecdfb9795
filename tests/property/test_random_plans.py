"""Random plans: kernels that keep the planner's promises never read a byte that another buffer has overwritten."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from property.graphs import integer_graphs

from qwtv2_edge.ir.graph import Graph, GraphBuilder, Node
from qwtv2_edge.ir.types import DTYPES, TensorType
from qwtv2_edge.ops import OPS
from qwtv2_edge.ops.conv import Conv2DAttrs, DepthwiseAttrs
from qwtv2_edge.planner import ELEMENTWISE, WINDOWED, Plan, is_view, plan_graph

Range = tuple[int, int]


def steps(graph: Graph, node: Node) -> Iterator[tuple[list[Range], Range]]:
    """What a kernel touches in each of its steps: the bytes it reads of every activation, and those it writes."""
    types = [graph.tensors[t] for t in node.inputs]
    out = graph.tensors[node.outputs[0]]
    whole = [(0, t.size_bytes) for t in types]
    item = DTYPES[out.dtype].itemsize
    if node.op in WINDOWED:
        a, x = node.attrs, types[0]
        kernel = a.kernel[0] if "pool" in node.op else (types[1].shape[1] - 1) * a.dilation[0] + 1
        row, out_row = x.size_bytes // prod(x.shape[:2]), out.size_bytes // prod(out.shape[:2])
        for n in range(out.shape[0]):
            for k in range(out.shape[1]):
                first = k * a.stride[0] - a.padding[0][0]
                read = [(n * x.shape[1] + min(max(r, 0), x.shape[1])) * row for r in (first, first + kernel)]
                at = (n * out.shape[1] + k) * out_row
                # the row is read again for every pixel: once more when all but the last byte is written
                yield [(read[0], read[1]), *whole[1:]], (at, at + out_row - 1)
                yield [(read[0], read[1]), *whole[1:]], (at + out_row - 1, at + out_row)
    elif node.op == "fully_connected":
        width, out_width = types[0].shape[-1] * DTYPES[types[0].dtype].itemsize, out.shape[-1] * item
        for k in range(out.size // out.shape[-1]):
            reads = [(k * width, (k + 1) * width), *whole[1:]]
            yield reads, (k * out_width, (k + 1) * out_width - 1)
            yield reads, ((k + 1) * out_width - 1, (k + 1) * out_width)
    elif node.op in ELEMENTWISE:
        sizes = [DTYPES[t.dtype].itemsize for t in types]
        for k in range(out.size):
            yield (
                [(k * s, (k + 1) * s) if t.size == out.size else w for t, s, w in zip(types, sizes, whole, strict=True)],
                (k * item, (k + 1) * item),
            )
    else:
        yield whole, (0, out.size_bytes - 1)
        yield whole, (out.size_bytes - 1, out.size_bytes)


def execute(graph: Graph, plan: Plan, scratch: dict[str, int], *, aliased: bool) -> None:
    """Go through every step on an arena that remembers which byte of which buffer it holds; fails at a byte that was lost."""
    arena = np.full(plan.bytes, -1, np.int64)
    marks = {t: i << 32 for i, t in enumerate(graph.tensors)}

    def write(tensor: str, start: int, end: int) -> None:
        at = plan.offsets[tensor]
        arena[at + start : at + end] = marks[tensor] + np.arange(start, end)

    def read(tensor: str, start: int, end: int) -> None:
        at = plan.offsets[tensor]
        assert (arena[at + start : at + end] == marks[tensor] + np.arange(start, end)).all(), tensor

    for t in graph.inputs:
        write(t, 0, graph.tensors[t].size_bytes)
    for node in graph.nodes:
        if node.name in plan.scratch:
            start = plan.scratch[node.name]
            arena[start : start + scratch[node.name]] = -2
        if aliased and is_view(graph, node):
            assert plan.offsets[node.outputs[0]] == plan.offsets[node.inputs[0]]
            marks[node.outputs[0]] = marks[node.inputs[0]]
            continue
        for reads, (start, end) in steps(graph, node):
            for t, (low, high) in zip(node.inputs, reads, strict=True):
                if t not in graph.constants:
                    read(t, low, high)
            write(node.outputs[0], start, end)
        if node.name in plan.scratch:
            start = plan.scratch[node.name]
            assert (arena[start : start + scratch[node.name]] == -2).all(), "something ran over the scratch buffer"
    for t in graph.outputs:
        read(t, 0, graph.tensors[t].size_bytes)


def greedy(graph: Graph, alignment: int) -> int:
    """TFLite Micro's planner: largest first, each into the first gap that is wide enough; inputs die when read."""
    born: dict[str, int] = dict.fromkeys(graph.inputs, -1)
    dies: dict[str, int] = dict.fromkeys(graph.inputs, -1)
    for i, node in enumerate(graph.nodes):
        for t in node.outputs:
            born[t] = i
        for t in (*node.inputs, *node.outputs):
            dies[t] = i
    for t in graph.outputs:
        dies[t] = len(graph.nodes)
    size = {t: -(-graph.tensors[t].size_bytes // alignment) * alignment for t in born}
    placed: dict[str, int] = {}
    for t in sorted(born, key=lambda t: -size[t]):
        at = 0
        for other in sorted(placed, key=placed.__getitem__):
            if born[t] <= dies[other] and born[other] <= dies[t] and placed[other] < at + size[t]:
                at = max(at, placed[other] + size[other])
        placed[t] = at
    return max((placed[t] + size[t] for t in placed), default=0)


@st.composite
def chains(draw) -> Graph:
    """Convolutions of any window one after the other, some with a sum over both ends: the graphs in which outputs run over inputs."""
    b = GraphBuilder("chain")
    shape = (draw(st.sampled_from([1, 2])), draw(st.integers(3, 9)), draw(st.integers(1, 5)), draw(st.integers(1, 6)))
    x = b.input("x", TensorType(shape, "int8"))
    for _ in range(draw(st.integers(1, 6))):
        before, shape = x, b.tensors[x].shape
        kernel, stride, dilation = (draw(st.integers(1, n)) for n in (3, 3, 2))
        padding = ((draw(st.integers(0, 3)), draw(st.integers(4, 6))), (0, 0))
        pick = draw(st.sampled_from(["conv2d", "depthwise_conv2d"]))
        channels = shape[3] if pick == "depthwise_conv2d" else draw(st.integers(1, 9))
        weight = (1, kernel, 1, channels) if pick == "depthwise_conv2d" else (channels, kernel, 1, shape[3])
        w = b.constant("w", np.zeros(weight, np.int8), TensorType(weight, "int8"))
        bias = b.constant("b", np.zeros(channels, np.int32), TensorType((channels,), "int32"))
        kind = DepthwiseAttrs if pick == "depthwise_conv2d" else Conv2DAttrs
        (x,) = b.add(pick, (x, w, bias), kind((stride, 1), padding, (dilation, 1)), name="n")
        if b.tensors[x].shape == shape and draw(st.booleans()):
            (x,) = b.add("add", (before, x), OPS["add"].attrs(), name="n")
    b.outputs = [x]
    return b.freeze()


@settings(max_examples=150, deadline=None)
@given(graph=integer_graphs(max_ops=10) | chains(), alignment=st.sampled_from([1, 4, 16]), share=st.booleans(), seed=st.integers(0, 9))
def test_plans_are_legal_and_no_larger_than_they_need_to_be(graph, alignment, share, seed):
    draw = np.random.default_rng(seed)
    scratch = {n.name: int(draw.integers(1, 200)) for n in graph.nodes if draw.random() < 0.3} if seed else {}
    plan = plan_graph(graph, alignment=alignment, share=share, scratch=scratch)
    assert set(plan.offsets) == {t for t in graph.tensors if t not in graph.constants}
    assert all(o % alignment == 0 for o in (*plan.offsets.values(), *plan.scratch.values(), plan.bytes))
    assert plan.live[plan.peak] == plan.bound <= plan.bytes
    execute(graph, plan, scratch, aliased=share)
    if not scratch:
        assert plan.bytes <= greedy(graph, alignment)
    assert plan == plan_graph(graph, alignment=alignment, share=share, scratch=scratch)
