"""Files of random graphs come back equal; random damage is always refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import integer_graph

from qwtv2_edge.errors import GraphError
from qwtv2_edge.ir import GraphBuilder, Location, TensorType
from qwtv2_edge.ir.serde import from_bytes, graph_hash, to_bytes
from qwtv2_edge.ops.activation import AlphaAttrs, ClampAttrs
from qwtv2_edge.ops.layout import PadAttrs, SliceAttrs, TransposeAttrs
from qwtv2_edge.ops.pool import ReduceAttrs
from qwtv2_edge.ops.spec import NoAttrs

TEXT = st.text(max_size=8)
BOUND = st.floats(-1e6, 1e6) | st.sampled_from([float("inf"), float("-inf")])
FLOAT = st.floats(allow_nan=False, allow_infinity=False, width=32)


@st.composite
def graphs(draw):
    """Chains of shape-changing and element-wise float ops with arbitrary names, texts and numbers."""
    rank = draw(st.integers(2, 4))
    shape = (1, *draw(st.lists(st.integers(1, 5), min_size=rank - 1, max_size=rank - 1)))
    b = GraphBuilder(draw(TEXT), draw(st.dictionaries(TEXT, TEXT, max_size=3)))
    x = b.input(draw(TEXT), TensorType(shape))
    for _ in range(draw(st.integers(1, 5))):
        shape = b.tensors[x].shape
        kind = draw(st.sampled_from(["clamp", "elu", "transpose", "slice", "pad", "relu", "mean", "constant"]))
        where = Location(draw(TEXT), draw(TEXT), draw(st.integers(0, 10**6)), draw(TEXT))
        name = draw(TEXT)
        inputs = (x,)
        if kind == "clamp":
            low, high = sorted((draw(BOUND), draw(BOUND)))
            op, attrs = "clamp", ClampAttrs(low, high)
        elif kind == "elu":
            op, attrs = "elu", AlphaAttrs(draw(st.floats(-8, 8)))
        elif kind == "transpose":
            op, attrs = "transpose", TransposeAttrs(tuple(draw(st.permutations(range(len(shape))))))
        elif kind == "slice":
            ends = tuple(draw(st.integers(1, d)) for d in shape)
            op, attrs = "slice", SliceAttrs((0,) * len(shape), ends, tuple(draw(st.integers(1, 3)) for _ in shape))
        elif kind == "pad":
            pairs = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in shape)
            op, attrs = "pad", PadAttrs(pairs, draw(st.floats(-10, 10)))
        elif kind == "mean":
            axes = tuple(sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
            op, attrs = "mean", ReduceAttrs(axes, True)
        elif kind == "constant":
            values = draw(st.lists(FLOAT, min_size=shape[-1], max_size=shape[-1]))
            inputs = (x, b.constant(draw(TEXT), np.array(values, np.float32)))
            op, attrs = "prelu", NoAttrs()
        else:
            op, attrs = "relu", NoAttrs()
        (x,) = b.add(op, inputs, attrs, name=name, location=where)
    b.outputs = [x]
    return b.freeze()


@given(graphs())
def test_round_trip(graph):
    data = to_bytes(graph)
    again = from_bytes(data)
    assert again.nodes == graph.nodes
    assert dict(again.tensors) == dict(graph.tensors)
    assert dict(again.metadata) == dict(graph.metadata)
    assert all(again.constants[k].tobytes() == v.tobytes() for k, v in graph.constants.items())
    assert to_bytes(again) == data
    assert graph_hash(again) == graph_hash(graph)


DATA = to_bytes(integer_graph())


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(1, 255)), min_size=1, max_size=8))
def test_any_damage_is_refused(changes):
    broken = bytearray(DATA)
    for at, mask in changes:
        broken[at] ^= mask
    if bytes(broken) == DATA:
        return
    with pytest.raises(GraphError):
        from_bytes(bytes(broken))


@given(st.integers(0, len(DATA) - 1), st.binary(max_size=64))
def test_any_cut_is_refused(length, tail):
    cut = DATA[:length] + tail
    if cut == DATA:
        return
    with pytest.raises(GraphError):
        from_bytes(cut)


@given(st.binary(max_size=200))
def test_noise_is_refused(noise):
    with pytest.raises(GraphError):
        from_bytes(noise)


def test_frozen():
    graph = from_bytes(DATA)
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.name = "other"
    with pytest.raises(TypeError):
        graph.tensors["x"] = TensorType((1,))
