"""Whole random integer graphs, for differential tests.

Hypothesis draws the structure (ops, shapes, paddings, modes), so that it can shrink it; numbers (weights, exact scales)
come from one drawn seed. Every graph passes ``ir.check``; which targets take it is for the test to ask.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from hypothesis import strategies as st

from qwtv2_edge.ir.check import check
from qwtv2_edge.ir.graph import Graph, GraphBuilder
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.ops import OPS
from qwtv2_edge.ops.activation import AlphaAttrs, ClampAttrs
from qwtv2_edge.ops.conv import Conv2DAttrs, DepthwiseAttrs, TransposeConvAttrs
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.layout import ConcatAttrs, PadAttrs, ReshapeAttrs, ResizeAttrs, SliceAttrs, TransposeAttrs
from qwtv2_edge.ops.linear import FullyConnectedAttrs
from qwtv2_edge.ops.pool import PoolAttrs, ReduceAttrs, SoftmaxAttrs
from qwtv2_edge.ops.spec import NoAttrs

#: tensors stay small, so that hundreds of graphs run in a minute
MAX_SIZE = 6000

ACTIVATIONS = st.sampled_from(["none", "none", "relu", "relu6", "relu_n1_to_1"])
ZERO_POINTS = st.one_of(st.sampled_from([0, -128, 127, 1]), st.integers(-128, 127))
FIXED = {"softmax": (1 / 256, -128), "logistic": (1 / 256, -128), "tanh": (1 / 128, 0)}


class Maker:
    """One graph in the making: the builder, the drawing function and the random numbers."""

    def __init__(self, draw: Callable, seed: int, powers: bool) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(seed)
        self.powers = powers
        self.b = GraphBuilder(f"fuzz-{seed}")
        self.live: list[str] = []

    # ------------------------------------------------------------ numbers

    def scale(self, near: float, spread: float = 1.0) -> float:
        """A float32 scale within a factor 2**spread of ``near``; a power of two in graphs that force ties."""
        value = near * 2.0 ** self.rng.uniform(-spread, spread)
        return float(np.float32(2.0 ** np.rint(np.log2(value)) if self.powers else value))

    def quantization(self, near: float, spread: float = 1.0) -> Quantization:
        return Quantization.per_tensor(self.scale(near, spread), self.draw(ZERO_POINTS))

    def type(self, name: str) -> TensorType:
        return self.b.tensors[name]

    # ------------------------------------------------------------ nodes

    def add(self, op: str, inputs, attrs, quantization: Quantization) -> str:
        shape = OPS[op].infer(tuple(self.type(t) for t in inputs), attrs)[0].shape
        (y,) = self.b.add(op, inputs, attrs, name=op, out_types=(TensorType(shape, "int8", quantization),))
        self.live.append(y)
        return y

    def same(self, op: str, x: str, attrs) -> str:
        quantization = self.type(x).quantization
        assert quantization is not None
        return self.add(op, (x,), attrs, quantization)

    def rescaled(self, x: str, like: Quantization) -> str:
        """``x`` on the grid ``like``, requantized where it isn't."""
        return x if self.type(x).quantization == like else self.add("requantize", (x,), NoAttrs(), like)

    def weighted(self, op: str, x: str, shape: tuple[int, ...], axis: int, taps: int, attrs) -> str:
        """A weighted op: per-channel or per-tensor scales, folded gains, biases from nothing to their limit."""
        rng, channels = self.rng, shape[axis]
        style = self.draw(st.sampled_from(["random", "random", "extreme", "sparse"]))
        codes = rng.integers(-127, 128, shape)
        if style == "extreme":
            codes = rng.choice([-127, 127], shape)
        if style == "sparse":
            codes = codes * (rng.random(shape) < 0.2)
        per_tensor = self.draw(st.booleans()) and self.draw(st.booleans())
        count = 1 if per_tensor else channels
        std = 74.0 * 74.0 * np.sqrt(taps)
        size = self.draw(st.sampled_from(["zero", "usual", "usual", "large", "limit"]))
        reach = {"zero": std, "usual": std, "large": 2.0**24, "limit": 2.0**30}[size]
        x_scale = self.type(x).scale
        scales = np.asarray([self.scale(2.5 / (x_scale * reach)) for _ in range(count)], np.float32)
        if not per_tensor and self.draw(st.booleans()):
            # a folded gain per channel: sizes from 2**-6 to 2**3, negative ones flip the codes, zero clears them
            gains = np.exp2(rng.uniform(-6, 3, channels)) * rng.choice([-1, 1, 1, 0], channels)
            scales = np.where(gains == 0, scales, np.float32(np.abs(gains)) * scales).astype(np.float32)
            index = tuple(np.newaxis if i != axis else slice(None) for i in range(len(shape)))
            codes = codes * np.sign(gains)[index].astype(int)
        quantization = Quantization(tuple(float(s) for s in scales), (0,) * count, None if per_tensor else axis)
        w = self.b.constant("w", codes.astype(np.int8), TensorType(shape, "int8", quantization))
        room = 2**31 - 1 - taps * 127 * 255
        bias = {
            "zero": lambda: np.zeros(channels),
            "usual": lambda: rng.normal(0, std / 4, channels),
            "large": lambda: rng.normal(0, 2.0**24, channels),
            "limit": lambda: rng.choice([-room, room, room // 2, 1], channels),
        }[size]()
        b = self.b.constant(
            "b",
            np.clip(bias, -room, room).astype(np.int32),
            TensorType((channels,), "int32", Quantization.per_channel(np.float32(x_scale) * np.resize(scales, channels), 0)),
        )
        gain = self.draw(st.sampled_from([1.0, 1.0, 0.1, 8.0, 60.0]))
        near = x_scale * float(scales.max()) * reach / (50 * gain)
        out = self.quantization(near)
        # XNNPACK takes effective scales below 2**8; double rounding shifts left above 1 and must stay inside int32
        least = x_scale * float(scales.max()) * (std * 6 + float(np.abs(bias).max())) / 2.0**30
        out = Quantization.per_tensor(max(out.scale[0], least, x_scale * float(scales.max()) / 128), out.zero_point[0])
        return self.add(op, (x, w, b), attrs, out)


# ---------------------------------------------------------------- one step per op: (maker, tensor) -> output or None


def padding(m: Maker, kernel: tuple[int, int], *, below_kernel: bool = False) -> tuple[tuple[int, int], tuple[int, int]]:
    if m.draw(st.booleans()):
        return ((0, 0), (0, 0))
    sides = [st.integers(0, max(0, min(2, k - 1) if below_kernel else 2)) for k in kernel]
    return tuple((m.draw(s), m.draw(s)) for s in sides)  # type: ignore[return-value]


def pair(m: Maker, low: int, high: int) -> tuple[int, int]:
    return m.draw(st.integers(low, high)), m.draw(st.integers(low, high))


def fits(shape, kernel, stride, pads, dilation=(1, 1)) -> bool:
    return all(
        shape[1 + i] + sum(pads[i]) >= (kernel[i] - 1) * dilation[i] + 1 and stride[i] <= shape[1 + i] + sum(pads[i]) for i in (0, 1)
    )


def conv2d(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    kernel, stride = pair(m, 1, 3), m.draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2)]))
    dilation = m.draw(st.sampled_from([(1, 1), (1, 1), (1, 1), (2, 2)]))
    pads = padding(m, kernel)
    if not fits(shape, kernel, stride, pads, dilation):
        return None
    groups = m.draw(st.sampled_from([g for g in (1, 1, 2, 3) if shape[3] % g == 0]))
    out = groups * m.draw(st.sampled_from([1, 3, 4, 8, 9]))
    attrs = Conv2DAttrs(stride, pads, dilation, groups, m.draw(ACTIVATIONS))
    taps = prod(kernel) * shape[3] // groups
    return m.weighted("conv2d", x, (out, *kernel, shape[3] // groups), 0, taps, attrs)


def depthwise_conv2d(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    kernel, stride = pair(m, 1, 4), m.draw(st.sampled_from([(1, 1), (1, 1), (2, 2)]))
    pads = padding(m, kernel)
    if not fits(shape, kernel, stride, pads) or shape[3] > 40:
        return None
    multiplier = m.draw(st.sampled_from([1, 1, 1, 2]))
    attrs = DepthwiseAttrs(stride, pads, (1, 1), m.draw(ACTIVATIONS))
    return m.weighted("depthwise_conv2d", x, (1, *kernel, shape[3] * multiplier), 3, prod(kernel), attrs)


def transpose_conv2d(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    kernel, stride = pair(m, 1, 4), m.draw(st.sampled_from([(1, 1), (2, 2), (2, 1)]))
    crop = tuple((m.draw(st.integers(0, 1)), m.draw(st.integers(-min(1, stride[i] - 1), 1))) for i in (0, 1))
    if any((shape[1 + i] - 1) * stride[i] + kernel[i] - sum(crop[i]) < 1 for i in (0, 1)):
        return None
    out = m.draw(st.sampled_from([1, 3, 8, 10]))
    attrs = TransposeConvAttrs(stride, crop, m.draw(st.sampled_from(["none", "relu"])))  # type: ignore[arg-type]
    return m.weighted("transpose_conv2d", x, (out, *kernel, shape[3]), 0, prod(kernel) * shape[3], attrs)


def fully_connected(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    if not 2 <= len(shape) <= 3 or shape[-1] > 600:
        return None
    out = m.draw(st.sampled_from([1, 2, 5, 8, 17]))
    return m.weighted("fully_connected", x, (out, shape[-1]), 0, shape[-1], FullyConnectedAttrs(m.draw(ACTIVATIONS)))


def operand(m: Maker, x: str) -> str:
    """A second operand: x itself, a tensor of its shape, a broadcast one, or a constant."""
    shape = m.type(x).shape
    others = [t for t in m.live if m.type(t).shape == shape]
    if len(shape) == 4:
        others += [t for t in m.live if len(m.type(t).shape) == 4 and m.type(t).shape[3] == shape[3] and m.type(t).shape[1:3] == (1, 1)]
    if m.draw(st.booleans()):
        return m.draw(st.sampled_from(others))
    const = m.draw(st.sampled_from([shape[-1:], (1,), (1, *shape[1:])]))
    type = TensorType(const, "int8", m.quantization(m.type(x).scale, 3))
    return m.b.constant("c", m.rng.integers(-128, 128, const, dtype=np.int8), type)


def binary(op: str):
    def step(m: Maker, x: str) -> str | None:
        y = operand(m, x)
        if op == "sub" and m.draw(st.booleans()) and m.type(y).shape == m.type(x).shape:
            x, y = y, x
        sx, sy = m.type(x).scale, m.type(y).scale
        near = sx * sy * 60 if op == "mul" else max(sx, sy) * 1.2
        gain = m.draw(st.sampled_from([1.0, 1.0, 0.25, 6.0]))
        return m.add(op, (x, y), BinaryAttrs(m.draw(ACTIVATIONS)), m.quantization(near / gain))

    return step


def pool(op: str):
    def step(m: Maker, x: str) -> str | None:
        shape = m.type(x).shape
        kernel = pair(m, 1, 4)
        stride = (m.draw(st.integers(1, kernel[0])), m.draw(st.integers(1, kernel[1])))
        pads = padding(m, kernel, below_kernel=True)
        if not fits(shape, kernel, stride, pads):
            return None
        return m.same(op, x, PoolAttrs(kernel, stride, pads))

    return step


def reduce(op: str):
    def step(m: Maker, x: str) -> str | None:
        shape = m.type(x).shape
        rank = len(shape)
        choices = [(1, 2)] * 3 + [(1,), (3,), (1, 2, 3)] if rank == 4 else [(rank - 1,)]
        attrs = ReduceAttrs(m.draw(st.sampled_from(choices)), m.draw(st.booleans()))
        count = prod(shape[i] for i in attrs.axes)
        if len(shape) - len(attrs.axes) < 2 and not attrs.keep_dims:
            return None
        if op == "reduce_max":
            return m.same(op, x, attrs)
        near = m.type(x).scale * (np.sqrt(count) if op == "sum" else 1 / np.sqrt(count))
        return m.add(op, (x,), attrs, m.quantization(float(near)))

    return step


def unary(op: str):
    def step(m: Maker, x: str) -> str | None:
        scale = m.type(x).scale
        if op in FIXED:
            fixed = Quantization.per_tensor(*FIXED[op])
            attrs = SoftmaxAttrs(m.draw(st.sampled_from([1.0, 1.0, 0.5, 2.0]))) if op == "softmax" else NoAttrs()
            return m.add(op, (x,), attrs, fixed)
        attrs = NoAttrs()
        near = scale
        if op == "elu":
            attrs = AlphaAttrs(1.0)
        if op == "leaky_relu":
            attrs = AlphaAttrs(m.draw(st.sampled_from([0.1, 0.01, 0.25, 0.3])))
        if op == "hard_swish":
            near = max(scale, 0.02)
        return m.add(op, (x,), attrs, m.quantization(near))

    return step


def prelu(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    slopes = m.rng.integers(-128, 128, shape[-1:], dtype=np.int8)
    quantization = Quantization.per_tensor(m.scale(0.004), m.draw(st.sampled_from([0, -128, 5])))
    a = m.b.constant("a", slopes, TensorType(shape[-1:], "int8", quantization))
    return m.add("prelu", (x, a), NoAttrs(), m.quantization(m.type(x).scale))


def clamp(op: str):
    def step(m: Maker, x: str) -> str | None:
        type = m.type(x)
        low, high = (-128 - type.zero_point) * type.scale, (127 - type.zero_point) * type.scale
        if op != "clamp":
            return m.same(op, x, NoAttrs()) if high > 0 else None
        a, b = sorted(m.draw(st.sampled_from([0.1, 0.3, 0.5, 0.8])) for _ in range(2))
        return m.same(op, x, ClampAttrs(float(low + a * (high - low)), float(low + b * (high - low))))

    return step


def reshape(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    target = m.draw(st.sampled_from([(1, prod(shape[1:])), (1, *shape[1:-1][::-1], shape[-1]), (1, 1, prod(shape[1:-1]), shape[-1])]))
    return m.same("reshape", x, ReshapeAttrs(target))


def transpose(m: Maker, x: str) -> str | None:
    rank = len(m.type(x).shape)
    return m.same("transpose", x, TransposeAttrs((0, *(int(i) for i in m.draw(st.permutations(range(1, rank)))))))


def concat(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    axis = m.draw(st.integers(1, len(shape) - 1))

    def joins(t: str) -> bool:
        s = m.type(t).shape
        return len(s) == len(shape) and all(i == axis or a == b for i, (a, b) in enumerate(zip(shape, s, strict=True)))

    others = m.draw(st.lists(st.sampled_from([t for t in m.live if joins(t)]), min_size=1, max_size=3))
    like = m.type(x).quantization
    assert like is not None
    inputs = (x, *(m.rescaled(t, like) for t in others))
    return m.add("concat", inputs, ConcatAttrs(axis), like)


def slice_(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    begin, end, stride = [0], [shape[0]], [1]
    for d in shape[1:]:
        b = m.draw(st.integers(0, min(2, d - 1)))
        begin.append(b)
        end.append(m.draw(st.integers(max(b + 1, d - 2), d)))
        stride.append(m.draw(st.sampled_from([1, 1, 1, 2])))
    return m.same("slice", x, SliceAttrs(tuple(begin), tuple(end), tuple(stride)))


def pad(m: Maker, x: str) -> str | None:
    rank = len(m.type(x).shape)
    amounts = ((0, 0), *((m.draw(st.integers(0, 2)), m.draw(st.integers(0, 2))) for _ in range(rank - 1)))
    value = m.draw(st.sampled_from([0.0, 0.0, 1.0])) * 7 * m.type(x).scale
    return m.same("pad", x, PadAttrs(amounts, float(value)))


def resize(op: str):
    def step(m: Maker, x: str) -> str | None:
        corners, half = m.draw(st.sampled_from([(False, False), (False, True), (True, False)]))
        return m.same(op, x, ResizeAttrs(pair(m, 1, 9), corners, half))

    return step


def requantize(m: Maker, x: str) -> str | None:
    return m.add("requantize", (x,), NoAttrs(), m.quantization(m.type(x).scale, 3))


#: op -> (step, ranks it takes)
STEPS: dict[str, tuple[Callable[[Maker, str], str | None], tuple[int, ...]]] = {
    "conv2d": (conv2d, (4,)),
    "depthwise_conv2d": (depthwise_conv2d, (4,)),
    "transpose_conv2d": (transpose_conv2d, (4,)),
    "fully_connected": (fully_connected, (2, 3)),
    **{op: (binary(op), (2, 3, 4)) for op in ("add", "sub", "mul")},
    **{op: (pool(op), (4,)) for op in ("max_pool2d", "avg_pool2d")},
    **{op: (reduce(op), (2, 3, 4)) for op in ("mean", "sum", "reduce_max")},
    **{op: (unary(op), (2, 3, 4)) for op in ("softmax", "logistic", "tanh", "hard_swish", "elu", "leaky_relu")},
    "prelu": (prelu, (4,)),
    **{op: (clamp(op), (2, 3, 4)) for op in ("relu", "relu6", "clamp")},
    "reshape": (reshape, (2, 3, 4)),
    "transpose": (transpose, (3, 4)),
    "concat": (concat, (2, 3, 4)),
    "slice": (slice_, (2, 3, 4)),
    "pad": (pad, (2, 3, 4)),
    **{op: (resize(op), (4,)) for op in ("resize_nearest", "resize_bilinear")},
    "requantize": (requantize, (2, 3, 4)),
}

#: how often an op is offered; 1 where absent
WEIGHT = {"conv2d": 6, "depthwise_conv2d": 5, "transpose_conv2d": 3, "fully_connected": 6, "add": 3, "mean": 2, "max_pool2d": 2}

OFFERED = {rank: [op for op, (_, ranks) in STEPS.items() if rank in ranks for _ in range(WEIGHT.get(op, 1))] for rank in (2, 3, 4)}

INPUT_SHAPES = st.one_of(
    *[st.tuples(st.just(1), st.integers(1, 8), st.integers(1, 8), st.sampled_from([1, 2, 3, 6, 8, 12, 16, 17]))] * 4,
    st.tuples(st.just(1), st.sampled_from([1, 3, 8, 33, 300])),
    st.tuples(st.just(1), st.integers(1, 6), st.sampled_from([1, 4, 16, 20])),
)


@st.composite
def integer_graphs(draw, max_ops: int = 8) -> Graph:
    """An integer graph of up to ``max_ops`` ops with one or two inputs and outputs, int8 or float32 at its boundary."""
    m = Maker(draw, draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([False, False, True])))
    real = draw(st.booleans())
    shape = draw(INPUT_SHAPES)
    for i in range(draw(st.sampled_from([1, 1, 2]))):
        coded = TensorType(shape, "int8", m.quantization(0.05))
        x = m.b.input(f"x{i}", TensorType(shape) if real else coded)
        if real:
            (x,) = m.b.add("quantize", (x,), NoAttrs(), name="quantize", out_types=(coded,))
        m.live.append(x)
    for _ in range(draw(st.one_of(st.integers(1, max_ops), st.integers(4, max_ops)))):
        # mostly the newest tensor, sometimes an older one: chains, residuals and branches
        x = m.live[-1] if draw(st.integers(0, 3)) else draw(st.sampled_from(m.live))
        op = draw(st.sampled_from(OFFERED[len(m.type(x).shape)]))
        before = len(m.b.nodes), len(m.live)
        STEPS[op][0](m, x)
        if len(m.live) > before[1] and m.type(m.live[-1]).size > MAX_SIZE:
            del m.b.nodes[before[0] :], m.live[before[1] :]
    # what nobody reads becomes an output, so that nothing is computed in vain
    read = {t for n in m.b.nodes for t in n.inputs}
    ends = [t for n in m.b.nodes for t in n.outputs if t not in read and n.op != "quantize"]
    if not ends:
        ends = [m.same("relu", m.live[-1], NoAttrs())]
    outputs = list(dict.fromkeys(ends))
    if real:
        outputs = [
            m.b.add("dequantize", (t,), NoAttrs(), name="dequantize", out_types=(TensorType(m.type(t).shape),))[0] for t in outputs
        ]
    m.b.outputs = outputs
    return check(without_idle_inputs(m.b).freeze())


def without_idle_inputs(b: GraphBuilder) -> GraphBuilder:
    """Leave out inputs that no op but their own ``quantize`` reads."""
    read = {t for n in b.nodes for t in n.inputs if n.op != "quantize"}
    idle = {n.outputs[0]: n.inputs[0] for n in b.nodes if n.op == "quantize" and n.outputs[0] not in read}
    read.update(n.inputs[0] for n in b.nodes if n.op == "quantize" and n.outputs[0] not in idle)
    b.nodes = [n for n in b.nodes if n.outputs[0] not in idle]
    b.inputs = [t for t in b.inputs if t in read]
    return b
