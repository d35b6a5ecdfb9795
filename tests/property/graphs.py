"""Whole random integer graphs, for differential tests.

Each step of a graph takes its choices from random numbers of its own, seeded by (graph seed, step): Hypothesis draws
the seed, the length and which steps are left out, so a failing graph shrinks to the steps that matter. Output
scales follow the values that really occur, so that outputs spread over the codes and a wrong rounding shows.
Every graph passes ``ir.check``; which targets take it is for the test to ask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
from hypothesis import strategies as st

from qwtv2_edge.errors import GraphError
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

T = TypeVar("T")

#: tensors stay small, so that hundreds of graphs run in a minute
MAX_SIZE = 6000

#: samples whose values choose the output scales
SAMPLES = 5

ACTIVATIONS = ("none", "none", "none", "relu", "relu6", "relu_n1_to_1")
FIXED = {"softmax": (1 / 256, -128), "logistic": (1 / 256, -128), "tanh": (1 / 128, 0)}


class Maker:
    """One graph in the making: the builder, random choices, and the real values of every tensor on a few samples."""

    def __init__(self, seed: int, powers: bool) -> None:
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.powers = powers
        self.b = GraphBuilder(f"fuzz-{seed}")
        self.live: list[str] = []
        self.values: dict[str, list[np.ndarray]] = {}

    # ------------------------------------------------------------ choices

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def int(self, low: int, high: int) -> int:
        """Inclusive."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    # ------------------------------------------------------------ scales

    def scale(self, near: float, spread: float = 1.0) -> float:
        """A float32 scale within a factor 2**spread of ``near``; a power of two in graphs that force ties."""
        value = near * 2.0 ** self.rng.uniform(-spread, spread)
        return float(np.float32(2.0 ** np.rint(np.log2(value)) if self.powers else value))

    def zero_point(self) -> int:
        return self.pick([0, -128, 127, 1, self.int(-128, 127), self.int(-128, 127)])

    def fitted(self, reals: Sequence[np.ndarray]) -> Quantization:
        """A quantization that covers the values, too wide or too narrow at times; now and then an arbitrary zero point."""
        low, high = min(0.0, *(float(v.min()) for v in reals)), max(0.0, *(float(v.max()) for v in reals))
        width = high - low if high - low > 1e-3 else 1.0  # all zero, or next to it
        scale = self.scale(width / 255 * self.pick([1.0, 1.0, 0.5, 3.0]), 0.5)
        if self.chance(0.25):
            return Quantization.per_tensor(scale, self.zero_point())
        return Quantization.per_tensor(scale, int(np.clip(np.rint(-128 - low / scale + self.int(-9, 9)), -128, 127)))

    # ------------------------------------------------------------ nodes

    def type(self, name: str) -> TensorType:
        return self.b.tensors[name]

    def real(self, name: str, sample: int) -> np.ndarray:
        """The real value of an int8 tensor or of a constant."""
        if name not in self.b.constants:
            return self.values[name][sample]
        q, codes = self.type(name).quantization, self.b.constants[name]
        if q is None:
            return codes.astype(np.float32)
        scale, zero = (np.asarray(v, np.float64) for v in (q.scale, q.zero_point))
        if q.axis is not None:
            index = tuple(slice(None) if i == q.axis else None for i in range(codes.ndim))
            scale, zero = scale[index], zero[index]
        return ((codes - zero) * scale).astype(np.float32)

    def add(self, op: str, inputs: Sequence[str], attrs: Any, quantization: Quantization | None = None, least: float = 0.0) -> str:
        """Append a node; its output quantization follows the values unless given, its scale being ``least`` or more."""
        spec = OPS[op]
        shape = spec.infer(tuple(self.type(t) for t in inputs), attrs)[0].shape
        if prod(shape) > MAX_SIZE:
            raise GraphError("too large")
        reals = [spec.reference([self.real(t, i) for t in inputs], attrs)[0] for i in range(SAMPLES)]
        if quantization is None:
            quantization = self.fitted(reals)
            quantization = Quantization.per_tensor(max(quantization.scale[0], least), quantization.zero_point[0])
        (y,) = self.b.add(op, inputs, attrs, name=op, out_types=(TensorType(shape, "int8", quantization),))
        scale, zero = quantization.scale[0], quantization.zero_point[0]
        self.values[y] = [((np.clip(np.rint(v / scale + zero), -128, 127) - zero) * scale).astype(np.float32) for v in reals]
        self.live.append(y)
        return y

    def same(self, op: str, x: str, attrs: Any) -> str:
        return self.add(op, (x,), attrs, self.type(x).quantization)

    def rescaled(self, x: str, like: Quantization) -> str:
        """``x`` on the grid ``like``, requantized where it isn't."""
        return x if self.type(x).quantization == like else self.add("requantize", (x,), NoAttrs(), like)

    def weighted(self, op: str, x: str, shape: tuple[int, ...], axis: int, taps: int, attrs: Any) -> str:
        """A weighted op: per-channel or per-tensor scales, folded gains, biases from nothing to their limit."""
        rng, channels = self.rng, shape[axis]
        style = self.pick(["random", "random", "random", "extreme", "sparse"])
        # packed 4-bit codes now and then, which few runtimes take
        dtype, limit = ("int4", 7) if op != "transpose_conv2d" and self.chance(0.05) else ("int8", 127)
        codes = rng.integers(-limit, limit + 1, shape)
        if style == "extreme":
            codes = rng.choice([-limit, limit], shape)
        if style == "sparse":
            codes = codes * (rng.random(shape) < 0.2)
        per_tensor = self.chance(0.2)
        count = 1 if per_tensor else channels
        std = 74.0 * 74.0 * np.sqrt(taps)
        room = 2**31 - 1 - taps * 127 * 255
        size = self.pick(["zero", "usual", "usual", "usual", "usual", "usual", "large", "limit"])
        reach = {"zero": std, "usual": std, "large": 2.0 ** rng.uniform(16, 26), "limit": 2.0**30}[size]
        x_scale = self.type(x).scale
        scales = np.asarray([self.scale(2.5 / (x_scale * reach)) for _ in range(count)], np.float32)
        if not per_tensor and self.chance(0.4):
            # a folded gain per channel; negative ones flip the codes, zero clears them
            gains = np.exp2(rng.uniform(-4, 2, channels)) * rng.choice([-1, 1, 1, 1, 0], channels)
            scales = np.where(gains == 0, scales, np.float32(np.abs(gains)) * scales).astype(np.float32)
            index = tuple(None if i != axis else slice(None) for i in range(len(shape)))
            codes = codes * np.sign(gains)[index].astype(int)
        quantization = Quantization(tuple(float(s) for s in scales), (0,) * count, None if per_tensor else axis)
        w = self.b.constant("w", codes.astype(np.int8), TensorType(shape, dtype, quantization))
        bias = {
            "zero": lambda: np.zeros(channels),
            "usual": lambda: rng.normal(0, std / 4, channels),
            "large": lambda: rng.normal(0, reach, channels),
            "limit": lambda: rng.choice([-room, room, room // 2, 1], channels),
        }[size]()
        bias = np.clip(bias, -room, room).astype(np.int32)
        bias_scale = Quantization.per_channel(np.float32(x_scale) * np.resize(scales, channels), 0)
        b = self.b.constant("b", bias, TensorType((channels,), "int32", bias_scale))
        # XNNPACK takes effective scales below 2**8; double rounding shifts left above 1 and must stay inside int32
        widest = x_scale * float(scales.max())
        least = max(widest / 128, widest * (taps * 127 * 255 + float(np.abs(bias).max())) / 2.0**30)
        return self.add(op, (x, w, b), attrs, least=float(np.float32(least)))


# ---------------------------------------------------------------- one step per op: (maker, tensor) -> output or None


def padding(m: Maker, kernel: tuple[int, int], *, below_kernel: bool = False) -> tuple[tuple[int, int], tuple[int, int]]:
    if m.chance(0.5):
        return ((0, 0), (0, 0))
    limits = [max(0, min(2, k - 1)) if below_kernel else 2 for k in kernel]
    return ((m.int(0, limits[0]), m.int(0, limits[0])), (m.int(0, limits[1]), m.int(0, limits[1])))


def pair(m: Maker, low: int, high: int) -> tuple[int, int]:
    return m.int(low, high), m.int(low, high)


def fits(shape, kernel, stride, pads, dilation=(1, 1)) -> bool:
    return all(
        shape[1 + i] + sum(pads[i]) >= (kernel[i] - 1) * dilation[i] + 1 and stride[i] <= shape[1 + i] + sum(pads[i]) for i in (0, 1)
    )


def conv2d(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    kernel, stride = pair(m, 1, 3), m.pick([(1, 1), (1, 1), (2, 2), (1, 2)])
    dilation = m.pick([(1, 1), (1, 1), (1, 1), (2, 2)])
    pads = padding(m, kernel)
    if not fits(shape, kernel, stride, pads, dilation):
        return None
    groups = m.pick([g for g in (1, 1, 2, 3) if shape[3] % g == 0])
    out = groups * m.pick([1, 3, 4, 8, 9])
    attrs = Conv2DAttrs(stride, pads, dilation, groups, m.pick(ACTIVATIONS))
    taps = prod(kernel) * shape[3] // groups
    return m.weighted("conv2d", x, (out, *kernel, shape[3] // groups), 0, taps, attrs)


def depthwise_conv2d(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    kernel, stride = pair(m, 1, 4), m.pick([(1, 1), (1, 1), (2, 2)])
    pads = padding(m, kernel)
    if not fits(shape, kernel, stride, pads) or shape[3] > 40:
        return None
    multiplier = m.pick([1, 1, 1, 2])
    attrs = DepthwiseAttrs(stride, pads, (1, 1), m.pick(ACTIVATIONS))
    return m.weighted("depthwise_conv2d", x, (1, *kernel, shape[3] * multiplier), 3, prod(kernel), attrs)


def transpose_conv2d(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    kernel, stride = pair(m, 1, 4), m.pick([(1, 1), (2, 2), (2, 1)])
    crop = tuple((m.int(0, 1), m.int(-min(1, stride[i] - 1), 1)) for i in (0, 1))
    if any((shape[1 + i] - 1) * stride[i] + kernel[i] - sum(crop[i]) < 1 for i in (0, 1)):
        return None
    out = m.pick([1, 3, 8, 10])
    attrs = TransposeConvAttrs(stride, crop, m.pick(["none", "relu"]))  # type: ignore[arg-type]
    return m.weighted("transpose_conv2d", x, (out, *kernel, shape[3]), 0, prod(kernel) * shape[3], attrs)


def fully_connected(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    if not 2 <= len(shape) <= 3 or shape[-1] > 600:
        return None
    out = m.pick([1, 2, 5, 8, 17])
    return m.weighted("fully_connected", x, (out, shape[-1]), 0, shape[-1], FullyConnectedAttrs(m.pick(ACTIVATIONS)))


def operand(m: Maker, x: str) -> str:
    """A second operand: x itself, a tensor of its shape, a broadcast one, or a constant."""
    shape = m.type(x).shape
    others = [t for t in m.live if m.type(t).shape == shape]
    if len(shape) == 4:
        others += [t for t in m.live if len(m.type(t).shape) == 4 and m.type(t).shape[3] == shape[3] and m.type(t).shape[1:3] == (1, 1)]
    if m.chance(0.5):
        return m.pick(others)
    const = m.pick([shape[-1:], (1,), (1, *shape[1:])])
    type = TensorType(const, "int8", Quantization.per_tensor(m.scale(m.type(x).scale, 3), m.zero_point()))
    return m.b.constant("c", m.rng.integers(-128, 128, const, dtype=np.int8), type)


def binary(op: str):
    def step(m: Maker, x: str) -> str | None:
        y = operand(m, x)
        if m.chance(0.3):
            x, y = y, x
        # beyond these ratios TFLite's optimised kernels, which the delegate falls back to, leave int16
        sx, sy = m.type(x).scale, m.type(y).scale
        least = sx * sy / 200 if op == "mul" else max(sx, sy) / 200
        return m.add(op, (x, y), BinaryAttrs(m.pick(ACTIVATIONS)), least=float(np.float32(least)))

    return step


def pool(op: str):
    def step(m: Maker, x: str) -> str | None:
        shape = m.type(x).shape
        kernel = pair(m, 1, 4)
        stride = (m.int(1, kernel[0]), m.int(1, kernel[1]))
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
        attrs = ReduceAttrs(m.pick(choices), m.chance(0.5))
        if len(shape) - len(attrs.axes) < 2 and not attrs.keep_dims:
            return None
        if op == "reduce_max":
            return m.same(op, x, attrs)
        return m.add(op, (x,), attrs)

    return step


def unary(op: str):
    def step(m: Maker, x: str) -> str | None:
        if op in FIXED:
            fixed = Quantization.per_tensor(*FIXED[op])
            attrs = SoftmaxAttrs(m.pick([1.0, 1.0, 0.5, 2.0])) if op == "softmax" else NoAttrs()
            return m.add(op, (x,), attrs, fixed)
        attrs = NoAttrs()
        if op == "elu":
            attrs = AlphaAttrs(1.0)
        if op == "leaky_relu":
            attrs = AlphaAttrs(m.pick([0.1, 0.01, 0.25, 0.3]))
        return m.add(op, (x,), attrs, least=m.type(x).scale / 100 if op == "hard_swish" else 0.0)

    return step


def prelu(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    slopes = m.rng.integers(-128, 128, shape[-1:], dtype=np.int8)
    quantization = Quantization.per_tensor(m.scale(0.004), m.pick([0, -128, 5]))
    a = m.b.constant("a", slopes, TensorType(shape[-1:], "int8", quantization))
    return m.add("prelu", (x, a), NoAttrs())


def clamp(op: str):
    def step(m: Maker, x: str) -> str | None:
        type = m.type(x)
        low, high = (-128 - type.zero_point) * type.scale, (127 - type.zero_point) * type.scale
        if op != "clamp":
            return m.same(op, x, NoAttrs()) if high > 0 else None
        a, b = sorted(m.pick([0.1, 0.3, 0.5, 0.8]) for _ in range(2))
        return m.same(op, x, ClampAttrs(float(low + a * (high - low)), float(low + b * (high - low))))

    return step


def reshape(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    target = m.pick([(1, prod(shape[1:])), (1, *shape[1:-1][::-1], shape[-1]), (1, 1, prod(shape[1:-1]), shape[-1])])
    return m.same("reshape", x, ReshapeAttrs(target))


def transpose(m: Maker, x: str) -> str | None:
    rank = len(m.type(x).shape)
    return m.same("transpose", x, TransposeAttrs((0, *(int(i) for i in m.rng.permutation(np.arange(1, rank))))))


def concat(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    axis = m.int(1, len(shape) - 1)

    def joins(t: str) -> bool:
        s = m.type(t).shape
        return len(s) == len(shape) and all(i == axis or a == b for i, (a, b) in enumerate(zip(shape, s, strict=True)))

    fitting = [t for t in m.live if joins(t)]
    others = [m.pick(fitting) for _ in range(m.int(1, 3))]
    like = m.type(x).quantization
    assert like is not None
    inputs = (x, *(m.rescaled(t, like) for t in others))
    return m.add("concat", inputs, ConcatAttrs(axis), like)


def slice_(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    begin, end, stride = [0], [shape[0]], [1]
    for d in shape[1:]:
        b = m.int(0, min(2, d - 1))
        begin.append(b)
        end.append(m.int(max(b + 1, d - 2), d))
        stride.append(m.pick([1, 1, 1, 2]))
    return m.same("slice", x, SliceAttrs(tuple(begin), tuple(end), tuple(stride)))


def pad(m: Maker, x: str) -> str | None:
    rank = len(m.type(x).shape)
    amounts = ((0, 0), *((m.int(0, 2), m.int(0, 2)) for _ in range(rank - 1)))
    value = m.pick([0.0, 0.0, 1.0]) * 7 * m.type(x).scale
    return m.same("pad", x, PadAttrs(amounts, float(value)))


def resize(op: str):
    def step(m: Maker, x: str) -> str | None:
        corners, half = m.pick([(False, False), (False, True), (True, False)])
        return m.same(op, x, ResizeAttrs(pair(m, 1, 9), corners, half))

    return step


def requantize(m: Maker, x: str) -> str | None:
    return m.add("requantize", (x,), NoAttrs())


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

#: how often an op is offered; 2 where absent
WEIGHT = {"conv2d": 12, "depthwise_conv2d": 10, "transpose_conv2d": 6, "fully_connected": 10, "add": 6, "mean": 4, "sum": 1, "elu": 1}

OFFERED = {rank: [op for op, (_, ranks) in STEPS.items() if rank in ranks for _ in range(WEIGHT.get(op, 2))] for rank in (2, 3, 4)}


def input_shape(m: Maker) -> tuple[int, ...]:
    if m.chance(0.7):
        return (1, m.int(1, 8), m.int(1, 8), m.pick([1, 2, 3, 6, 8, 12, 16, 17]))
    if m.chance(0.5):
        return (1, m.pick([1, 3, 8, 33, 300]))
    return (1, m.int(1, 6), m.pick([1, 4, 16, 20]))


def take_step(m: Maker) -> None:
    """Add one op that fits (and a requantize where it needs one); none after a few misses."""
    for _ in range(8):
        # mostly the newest tensor, sometimes an older one: chains, residuals and branches
        x = m.live[-1] if m.chance(0.75) else m.pick(m.live)
        op = m.pick(OFFERED[len(m.type(x).shape)])
        before = len(m.b.nodes), len(m.live)
        try:
            if STEPS[op][0](m, x) is not None:
                return
        except GraphError:  # too large, or a shape that the op's own rule refuses
            del m.b.nodes[before[0] :], m.live[before[1] :]


def make_graph(seed: int, steps: Sequence[int], *, powers: bool, real: bool) -> Graph:
    """The graph of ``seed`` with the numbered ``steps``. ``real``: float32 at the boundary, else int8."""
    m = Maker(seed, powers)
    shape = input_shape(m)
    for i in range(m.pick([1, 1, 2])):
        coded = TensorType(shape, "int8", Quantization.per_tensor(m.scale(0.05), m.zero_point()))
        x = m.b.input(f"x{i}", TensorType(shape) if real else coded)
        if real:
            (x,) = m.b.add("quantize", (x,), NoAttrs(), name="quantize", out_types=(coded,))
        m.values[x] = [((m.rng.integers(-128, 128, shape) - coded.zero_point) * coded.scale).astype(np.float32) for _ in range(SAMPLES)]
        m.live.append(x)
    for step in steps:
        m.rng = np.random.default_rng((seed, step))
        take_step(m)
    # what nobody reads becomes an output, so that nothing is computed in vain
    read = {t for n in m.b.nodes for t in n.inputs}
    outputs = [t for n in m.b.nodes for t in n.outputs if t not in read and n.op != "quantize"]
    if not outputs:
        outputs = [m.same("max_pool2d", m.live[0], PoolAttrs()) if len(shape) == 4 else m.same("reshape", m.live[0], ReshapeAttrs(shape))]
    if real:
        outputs = [m.b.add("dequantize", (t,), NoAttrs(), name="dequantize", out_types=(TensorType(m.type(t).shape),))[0] for t in outputs]
    m.b.outputs = outputs
    return check(without_idle_inputs(m.b).freeze())


@st.composite
def integer_graphs(draw, max_ops: int = 8) -> Graph:
    """An integer graph of up to ``max_ops`` ops with one or two inputs, int8 or float32 at its boundary."""
    seed = draw(st.integers(0, 2**64 - 1))
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, max_ops + 1))
    # a 0 leaves the step out; shrinking tries that first
    kept = [i for i in range(count) if draw(st.integers(0, 31))]
    powers, real = bool(rng.random() < 0.33), bool(rng.random() < 0.5)
    return make_graph(seed, kept, powers=powers, real=real)


def without_idle_inputs(b: GraphBuilder) -> GraphBuilder:
    """Leave out inputs that no op but their own ``quantize`` reads."""
    read = {t for n in b.nodes for t in n.inputs if n.op != "quantize"}
    idle = {n.outputs[0]: n.inputs[0] for n in b.nodes if n.op == "quantize" and n.outputs[0] not in read}
    read.update(n.inputs[0] for n in b.nodes if n.op == "quantize" and n.outputs[0] not in idle)
    b.nodes = [n for n in b.nodes if n.outputs[0] not in idle]
    b.inputs = [t for t in b.inputs if t in read]
    return b
