"""Graphs that random search once found to go wrong, in their smallest form. Every one is run on every runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from qwtv2_edge.ir.graph import Graph, GraphBuilder
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.numerics import FLOAT_OPS
from qwtv2_edge.ops import OPS
from qwtv2_edge.ops.activation import AlphaAttrs, ClampAttrs
from qwtv2_edge.ops.conv import Conv2DAttrs, TransposeConvAttrs
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.layout import PadAttrs, ReshapeAttrs
from qwtv2_edge.ops.linear import FullyConnectedAttrs
from qwtv2_edge.ops.matmul import BatchMatmulAttrs
from qwtv2_edge.ops.pool import ReduceAttrs, SoftmaxAttrs
from qwtv2_edge.ops.spec import NoAttrs


def _graph(name: str, x: TensorType, make: Callable[[GraphBuilder, str], str]) -> Graph:
    b = GraphBuilder(name)
    b.outputs = [make(b, b.input("x", x))]
    return b.freeze()


def _int8(shape: tuple[int, ...], scale: float, zero_point: int) -> TensorType:
    return TensorType(shape, "int8", Quantization.per_tensor(scale, zero_point))


def flat_softmax() -> Graph:
    """602 nearly equal entries: the exponentials sum to 512 and more, where TFLite's reference kernel fails."""
    out = _int8((1, 602), 1 / 256, -128)
    return _graph(
        "flat-softmax",
        _int8((1, 602), 0.00204312173, 1),
        lambda b, x: b.add("softmax", (x,), SoftmaxAttrs(0.5), name="softmax", out_types=(out,))[0],
    )


def steep_softmax() -> Graph:
    """A multiplier with a left shift of 31: only the largest entry of a row is ever shifted."""
    out = _int8((1, 2), 1 / 256, -128)
    return _graph(
        "steep-softmax",
        _int8((1, 2), 2048.0, 0),
        lambda b, x: b.add("softmax", (x,), SoftmaxAttrs(2.0), name="softmax", out_types=(out,))[0],
    )


def clamp_without_zero(low: float, high: float) -> Graph:
    """A clamp that leaves out 0 after a convolution: merged by XNNPACK, it failed at the first run."""

    def make(b: GraphBuilder, x: str) -> str:
        w = np.random.default_rng(0).integers(-127, 128, (3, 1, 3, 2), dtype=np.int8)
        weights = b.constant("w", w, TensorType(w.shape, "int8", Quantization.per_channel(np.full(3, 0.01), 0)))
        bias = b.constant("b", np.zeros(3, np.int32), TensorType((3,), "int32", Quantization.per_channel(np.full(3, 0.0002), 0)))
        attrs = Conv2DAttrs()
        shape = OPS["conv2d"].infer(tuple(b.tensors[t] for t in (x, weights, bias)), attrs)[0].shape
        out = _int8(shape, 0.5, 0)
        (y,) = b.add("conv2d", (x, weights, bias), attrs, name="conv", out_types=(out,))
        return b.add("clamp", (y,), ClampAttrs(low, high), name="clamp", out_types=(out,))[0]

    return _graph(f"clamp-{low:g}-{high:g}", _int8((1, 4, 9, 2), 0.02, -20), make)


def leaky_ratio() -> Graph:
    """TFLite Micro derives the slope's multiplier in another precision than TFLite."""
    out = _int8((1, 256), 0.00022856899886392057, -80)
    return _graph(
        "leaky-ratio",
        _int8((1, 256), 0.02914254739880562, -30),
        lambda b, x: b.add("leaky_relu", (x,), AlphaAttrs(0.1), name="leaky", out_types=(out,))[0],
    )


def short_transposed_kernel() -> Graph:
    """A transposed convolution whose kernel is shorter than its stride: written as SAME, LiteRT's delegate leaves it."""

    def make(b: GraphBuilder, x: str) -> str:
        rng = np.random.default_rng(5)
        w = rng.integers(-127, 128, (8, 2, 1, 2), dtype=np.int8)
        scales = np.exp2(rng.uniform(-8, -7, 8)).astype(np.float32)
        weights = b.constant("w", w, TensorType(w.shape, "int8", Quantization.per_channel(scales, 0)))
        bias_scale = Quantization.per_channel(np.float32(b.tensors[x].scale) * scales, 0)
        bias = b.constant("b", rng.integers(-900, 900, 8).astype(np.int32), TensorType((8,), "int32", bias_scale))
        out = _int8((1, 16, 13, 8), 0.6, -3)
        attrs = TransposeConvAttrs((2, 2))
        return b.add("transpose_conv2d", (x, weights, bias), attrs, name="transposed", out_types=(out,))[0]

    return _graph("short-transposed-kernel", _int8((1, 8, 7, 2), 0.0878344998, -128), make)


def merged_into_a_table() -> Graph:
    """Two tables in a row, then a product with the delegate's first input: XNNPACK took the product for a function of
    one tensor and freed the table twice."""
    x = _int8((1, 6, 1), 0.05, 3)

    def make(b: GraphBuilder, t: str) -> str:
        y = t
        for shape in ((1, 1, 6), (1, 6, 1)):
            y = b.add("reshape", (y,), ReshapeAttrs(shape), name="reshape", out_types=(replace(x, shape=shape),))[0]
        for _ in range(2):
            y = b.add("leaky_relu", (y,), AlphaAttrs(0.1), name="leaky", out_types=(x,))[0]
        return b.add("mul", (y, t), BinaryAttrs(), name="mul", out_types=(x,))[0]

    return _graph("merged-into-a-table", x, make)


def _int16(shape: tuple[int, ...], scale: float) -> TensorType:
    return TensorType(shape, "int16", Quantization.per_tensor(scale, 0))


def grouped_on_16_bits() -> Graph:
    """LiteRT's optimised built-ins leave grouped convolutions to the reference kernel, which rounds ties away from zero."""

    def make(b: GraphBuilder, x: str) -> str:
        rng = np.random.default_rng(11)
        w = rng.integers(-127, 128, (10, 3, 3, 4), dtype=np.int8)
        scales = np.exp2(rng.uniform(-9, -7, 10)).astype(np.float32)
        weights = b.constant("w", w, TensorType(w.shape, "int8", Quantization.per_channel(scales, 0)))
        bias_scale = Quantization.per_channel(np.float32(b.tensors[x].scale) * scales, 0)
        bias = b.constant("b", rng.integers(-9_000_000, 9_000_000, 10).astype(np.int32), TensorType((10,), "int32", bias_scale))
        return b.add("conv2d", (x, weights, bias), Conv2DAttrs(groups=2), name="conv", out_types=(_int16((1, 10, 10, 10), 1e-3),))[0]

    return _graph("grouped-on-16-bits", _int16((1, 12, 12, 8), 2e-4), make)


def padded_in_float() -> Graph:
    """16-bit codes held as float32: the value of the padding has to be float32 too."""
    x = _int16((1, 2, 3), 1e-3)
    padded = replace(x, shape=(1, 3, 5))
    attrs = PadAttrs(((0, 0), (1, 0), (1, 1)), 0.007)
    graph = _graph("padded-in-float", x, lambda b, t: b.add("pad", (t,), attrs, name="pad", out_types=(padded,))[0])
    return graph.with_metadata(**{FLOAT_OPS: "allow"})


def square() -> Graph:
    """A product of one tensor with itself: a look-up table in its place rounds ties in another way than ARM's kernels."""
    out = _int8((1, 4, 64), 0.125, -128)
    return _graph(
        "square",
        _int8((1, 4, 64), 0.0625, 5),
        lambda b, x: b.add("mul", (x, x), BinaryAttrs(), name="square", out_types=(out,))[0],
    )


def left_over() -> Graph:
    """Nodes that no output needs: one that XNNPACK leaves, then one for a delegate call of its own, which gives nothing out."""
    x = _int8((1, 4, 6), 0.03, 3)
    b = GraphBuilder("left-over")
    (y,) = b.add("leaky_relu", (b.input("x", x),), AlphaAttrs(0.1), name="leaky", out_types=(x,))
    (z,) = b.add("clamp", (y,), ClampAttrs(-0.6, -0.1), name="clamp", out_types=(x,))
    b.add("leaky_relu", (z,), AlphaAttrs(0.1), name="idle", out_types=(x,))
    b.outputs = [y]
    return b.freeze()


def many_axes(op: str, rank: int) -> Graph:
    """Above 4 axes kernels hand over to others, which round in another way or abort."""
    b = GraphBuilder(f"{op.replace(':', '-')}-of-{rank}-axes")
    wide = op.endswith(":int16")
    shape = (1, 3, *[2] * (rank - 2))
    x = _int16(shape, 2.0**-12) if wide else _int8(shape, 0.03125, 3)
    inputs, attrs = [b.input("x", x)], ATTRS[op]
    if op == "fully_connected":
        rng = np.random.default_rng(0)
        w = TensorType((4, 2), "int8", Quantization.per_channel(np.full(4, 0.01), 0))
        bias = TensorType((4,), "int32", Quantization.per_channel(np.float32(x.scale) * np.full(4, 0.01, np.float32), 0))
        inputs.append(b.constant("w", rng.integers(-127, 128, w.shape, dtype=np.int8), w))
        inputs.append(b.constant("b", rng.integers(-100, 100, 4).astype(np.int32), bias))
    elif op in ("add:int16", "mul", "batch_matmul"):
        inputs.append(b.input("y", x if wide else _int8(shape, 0.05, 0)))
    elif op == "square":
        inputs.append(inputs[0])
    op = {"square": "mul"}.get(op, op.removesuffix(":int16"))
    out = OPS[op].infer(tuple(b.tensors[t] for t in inputs), attrs)[0].shape
    b.outputs = list(b.add(op, inputs, attrs, name=op, out_types=(_int16(out, 2.0**-11) if wide else _int8(out, 0.0625, -9),)))
    return b.freeze()


ATTRS = {
    **dict.fromkeys(("add:int16", "mul", "square"), BinaryAttrs()),
    "batch_matmul": BatchMatmulAttrs(True),
    "elu": AlphaAttrs(1.0),
    "fully_connected": FullyConnectedAttrs(),
    "mean": ReduceAttrs((1,)),
}


def overwritten(way: str) -> Graph:
    """A tensor that LiteRT's planner lets the last sum overwrite, through a reshape in between, before the product reads it."""

    def make(b: GraphBuilder, x: str) -> str:
        def plus(t: str) -> str:
            type = _int8(b.tensors[t].shape, 0.06, 3)
            codes = np.random.default_rng(0).integers(-128, 128, type.shape, dtype=np.int8)
            return b.add("add", (t, b.constant("k", codes, type)), BinaryAttrs(), name="add", out_types=(type,))[0]

        def reshaped(t: str, shape: tuple[int, ...]) -> str:
            return b.add("reshape", (t,), ReshapeAttrs(shape), name="reshape", out_types=(_int8(shape, 0.06, 3),))[0]

        (start,) = b.add("requantize", (x,), NoAttrs(), name="start", out_types=(_int8((1, 2, 12), 0.06, 3),))
        read = reshaped(start, (1, 2, 2, 6)) if way == "chain" else plus(start)
        later = reshaped(read, (1, 1, 24)) if way == "siblings" else read
        last = plus(reshaped(read, (1, 24)))
        (other,) = b.add("mul", (later, later), BinaryAttrs(), name="mul", out_types=(_int8(b.tensors[later].shape, 0.3, 3),))
        (flat,) = b.add("reshape", (other,), ReshapeAttrs((1, 24)), name="flat", out_types=(_int8((1, 24), 0.3, 3),))
        return b.add("sub", (last, flat), BinaryAttrs(), name="sub", out_types=(_int8((1, 24), 0.4, 0),))[0]

    return _graph(f"overwritten-{way}", _int8((1, 2, 12), 0.05, 3), make)


REGRESSIONS: tuple[Graph, ...] = (
    flat_softmax(),
    steep_softmax(),
    clamp_without_zero(0.5, float("inf")),
    clamp_without_zero(-20.0, -1.0),
    leaky_ratio(),
    merged_into_a_table(),
    short_transposed_kernel(),
    grouped_on_16_bits(),
    padded_in_float(),
    *(overwritten(way) for way in ("sum", "chain", "siblings")),
    square(),
    left_over(),
    *(many_axes(op, rank) for op in ATTRS for rank in (5, 6, 7)),
)
