"""Batches equal single samples, traces equal outputs, wrong inputs are refused."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from qwtv2_edge.errors import QuantizeError, UnsupportedOpError, UsageError
from qwtv2_edge.ir.graph import GraphBuilder
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.numerics import Numerics
from qwtv2_edge.ops.conv import Conv2DAttrs
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.layout import ConcatAttrs, ReshapeAttrs, SliceAttrs, TransposeAttrs
from qwtv2_edge.ops.pool import ReduceAttrs, SoftmaxAttrs
from qwtv2_edge.ops.spec import NoAttrs
from qwtv2_edge.simulator import run as runner
from qwtv2_edge.simulator import simulate, trace

RULES = Numerics(
    "test",
    "",
    "",
    {},
    {
        "conv2d": "REF",
        "quantize": "RNE",
        "dequantize": "EXACT",
        "add": "LSHIFT20",
        "mean": "REF",
        "softmax": "FIXED",
        "prelu": "REF_F32",
    },
)

Q = Quantization.per_tensor(0.1, -3)


def int8(*shape: int) -> TensorType:
    return TensorType(shape, "int8", Q)


def graph_of(make, shape=(1, 4, 5, 2)):
    """A graph with one int8 input; make(builder, input) -> output name."""
    b = GraphBuilder("g")
    b.outputs = [make(b, b.input("x", int8(*shape)))]
    return b.freeze()


def op(b, name, inputs, attrs, out):
    return b.add(name, inputs, attrs, name=name, out_types=(out,))[0]


def const(b, *shape):
    return b.constant("c", np.arange(np.prod(shape), dtype=np.int8).reshape(shape) - 3, int8(*shape))


def add_const(*shape):
    def make(b, x):
        c = const(b, *shape)
        out = np.broadcast_shapes(b.tensors[x].shape, shape)
        return op(b, "add", (x, c), BinaryAttrs(), int8(*out))

    return make


def fold(b, x):
    """Axis 0 folded into lines: (1, 4, 5, 2) -> (4, 10)."""
    return op(b, "reshape", (x,), ReshapeAttrs((4, 10)), int8(4, 10))


def folded_add(b, x):
    return op(b, "add", (fold(b, x), const(b, 10)), BinaryAttrs(), int8(4, 10))


def folded_back(b, x):
    y = op(b, "softmax", (fold(b, x),), SoftmaxAttrs(), TensorType((4, 10), "int8", Quantization.per_tensor(1 / 256, -128)))
    return op(b, "reshape", (y,), ReshapeAttrs((1, 40)), TensorType((1, 40), "int8", Quantization.per_tensor(1 / 256, -128)))


def folded_add_own_rows(b, x):
    return op(b, "add", (fold(b, x), const(b, 4, 1)), BinaryAttrs(), int8(4, 10))


def folded_add_other_activation(b, x):
    row = op(b, "slice", (x,), SliceAttrs((0, 0, 0, 0), (1, 1, 5, 2), (1, 1, 1, 1)), int8(1, 1, 5, 2))
    flat = op(b, "reshape", (row,), ReshapeAttrs((1, 10)), int8(1, 10))
    return op(b, "add", (fold(b, x), flat), BinaryAttrs(), int8(4, 10))


def lower_rank_activation(b, x):
    row = op(b, "reshape", (x,), ReshapeAttrs((1, 40)), int8(1, 40))
    return op(b, "add", (row, const(b, 1, 1, 40)), BinaryAttrs(), int8(1, 1, 40))


def slice_axis0(b, x):
    y = fold(b, x)
    return op(b, "slice", (y,), SliceAttrs((0, 0), (2, 10), (1, 1)), int8(2, 10))


def slice_axis1(b, x):
    return op(b, "slice", (x,), SliceAttrs((0, 1, 0, 0), (1, 4, 5, 2), (1, 2, 1, 1)), int8(1, 2, 5, 2))


def concat_const(b, x):
    return op(b, "concat", (x, const(b, 1, 4, 5, 3)), ConcatAttrs(3), int8(1, 4, 5, 5))


def concat_self(b, x):
    return op(b, "concat", (x, x), ConcatAttrs(1), int8(1, 8, 5, 2))


def concat_axis0(b, x):
    return op(b, "concat", (x, x), ConcatAttrs(0), int8(2, 4, 5, 2))


def transpose_samples(b, x):
    return op(b, "transpose", (x,), TransposeAttrs((3, 0, 1, 2)), int8(2, 1, 4, 5))


def transpose_inside(b, x):
    return op(b, "transpose", (x,), TransposeAttrs((0, 3, 1, 2)), int8(1, 2, 4, 5))


def mean_axis0(b, x):
    return op(b, "mean", (fold(b, x),), ReduceAttrs((0,)), int8(10))


def mean_all(b, x):
    return op(b, "mean", (x,), ReduceAttrs((0, 1, 2, 3)), int8())


def softmax_rank1(b, x):
    y = op(b, "reshape", (x,), ReshapeAttrs((40,)), int8(40))
    return op(b, "softmax", (y,), SoftmaxAttrs(), TensorType((40,), "int8", Quantization.per_tensor(1 / 256, -128)))


def prelu_rank1(b, x):
    y = op(b, "reshape", (x,), ReshapeAttrs((40,)), int8(40))
    return op(b, "prelu", (y, const(b, 40)), NoAttrs(), int8(40))


STRETCH = [
    concat_const,
    add_const(1, 4, 5, 2),
    add_const(2),
    add_const(),
    fold,
    folded_add,
    folded_back,
    slice_axis1,
    concat_self,
    transpose_inside,
]
ALONE = [
    add_const(3, 4, 5, 2),
    add_const(2, 1, 1, 1, 1),
    folded_add_own_rows,
    folded_add_other_activation,
    lower_rank_activation,
    slice_axis0,
    concat_axis0,
    transpose_samples,
    mean_axis0,
    mean_all,
    softmax_rank1,
    prelu_rank1,
]


@pytest.mark.parametrize(("make", "stretches"), [(m, True) for m in STRETCH] + [(m, False) for m in ALONE])
def test_many_samples_equal_one_by_one(make, stretches):
    graph = graph_of(make)
    x = np.random.default_rng(0).integers(-128, 128, (6, 4, 5, 2), dtype=np.int8)
    assert runner.batchable(graph) == stretches
    (together,) = simulate(graph, x, RULES)
    single = [simulate(graph, x[i : i + 1], RULES)[0] for i in range(6)]
    shape = graph.tensors[graph.outputs[0]].shape
    assert single[0].shape == (shape or (1,))
    np.testing.assert_array_equal(together, np.concatenate(single))


def conv_graph(samples=1):
    b = GraphBuilder("g")
    rng = np.random.default_rng(1)
    x = b.input("x", TensorType((samples, 6, 6, 3)))
    q = op(b, "quantize", (x,), NoAttrs(), int8(samples, 6, 6, 3))
    w = b.constant(
        "w",
        rng.integers(-127, 128, (4, 3, 3, 3), dtype=np.int8),
        TensorType((4, 3, 3, 3), "int8", Quantization.per_channel(np.full(4, 0.01), 0)),
    )
    bias = b.constant("b", rng.integers(-99, 99, 4).astype(np.int32))
    y = op(b, "conv2d", (q, w, bias), Conv2DAttrs(), int8(samples, 4, 4, 4))
    b.outputs = [op(b, "dequantize", (y,), NoAttrs(), TensorType((samples, 4, 4, 4)))]
    return b.freeze()


def test_a_network_captured_with_more_samples_runs_in_its_own_steps():
    x = np.random.default_rng(2).normal(size=(6, 6, 6, 3))
    np.testing.assert_array_equal(simulate(conv_graph(3), x, RULES)[0], simulate(conv_graph(), x, RULES)[0])
    with pytest.raises(UsageError, match=r"shape \(4, 6, 6, 3\)"):
        simulate(conv_graph(3), x[:4], RULES)


def test_float_inputs_take_real_dtypes_as_they_are():
    graph = conv_graph()
    x = np.random.default_rng(3).integers(0, 100, (2, 6, 6, 3))
    expected = simulate(graph, x.astype(np.float32), RULES)[0]
    for dtype in (np.uint8, np.float16, np.float64, np.int64):
        np.testing.assert_array_equal(simulate(graph, [x.astype(dtype)], RULES)[0], expected)
    np.testing.assert_array_equal(simulate(graph, x[0].astype(np.float32), RULES)[0], expected[:1])


def test_wrong_inputs_are_refused():
    graph = conv_graph()
    x = np.zeros((2, 6, 6, 3), np.float32)
    for bad, words in (
        ([x, x], "1 inputs"),
        (x[:0], "no samples"),
        (x[..., :2], "shape"),
        (x.astype(complex), "dtype complex128"),
        (np.full((1, 6, 6, 3), "a"), "dtype"),
    ):
        with pytest.raises(UsageError, match=words):
            simulate(graph, bad, RULES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in (np.nan, np.inf, 1e300):
            with pytest.raises(QuantizeError, match=r"quantize 'quantize': the input holds NaN or infinity"):
                simulate(graph, np.full((1, 6, 6, 3), value), RULES)
    with pytest.raises(UsageError, match="expected int8"):
        simulate(graph_of(fold), np.zeros((1, 4, 5, 2), np.float32), RULES)


def test_inputs_must_hold_equally_many_samples():
    b = GraphBuilder("g")
    x, y = b.input("x", int8(1, 3)), b.input("y", int8(1, 3))
    b.outputs = [op(b, "add", (x, y), BinaryAttrs(), int8(1, 3))]
    with pytest.raises(UsageError, match=r"different numbers of samples: 'x' 2, 'y' 3"):
        simulate(b.freeze(), [np.zeros((2, 3), np.int8), np.zeros((3, 3), np.int8)], RULES)


def test_a_float_graph_is_refused():
    b = GraphBuilder("g")
    x = b.input("x", TensorType((1, 3)))
    b.outputs = list(b.add("relu", (x,), NoAttrs(), name="r"))
    with pytest.raises(UsageError, match="float graph"):
        simulate(b.freeze(), np.zeros((1, 3)), RULES)


def test_there_are_no_bytes_of_what_the_runtime_cannot_run():
    graph = conv_graph()
    x = np.zeros((1, 6, 6, 3), np.float32)
    table = replace(RULES, refuses={"dequantize": "it has no kernel"})
    with pytest.raises(UnsupportedOpError, match=r"can't run 1 nodes of '.*'\n  \[runtime\] dequantize: it has no kernel"):
        simulate(graph, x, table)
    assert list(trace(graph, x, table, ["conv2d"])) == ["conv2d"]
    with pytest.raises(UnsupportedOpError, match="it has no kernel"):
        trace(graph, x, table, ["dequantize"])


def test_trace_gives_any_tensor(monkeypatch):
    graph = conv_graph()
    x = np.random.default_rng(4).normal(size=(5, 6, 6, 3))
    everything = trace(graph, x, RULES)
    assert list(everything) == ["x", "quantize", "conv2d", "dequantize"]
    np.testing.assert_array_equal(everything["dequantize"], simulate(graph, x, RULES)[0])
    assert everything["conv2d"].dtype == np.int8
    monkeypatch.setattr(runner, "WORKING_SET_BYTES", 1)
    some = trace(graph, x, RULES, ["conv2d", "x"])
    np.testing.assert_array_equal(some["conv2d"], everything["conv2d"])
    np.testing.assert_array_equal(some["x"], x.astype(np.float32))
    with pytest.raises(UsageError, match="no tensor 'w'"):
        trace(graph, x, RULES, ["w"])
