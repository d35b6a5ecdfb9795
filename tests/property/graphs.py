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

from qwtv2_edge.compensation.fold import declare_norm, norm_codes
from qwtv2_edge.errors import GraphError
from qwtv2_edge.ir.check import MASK, check
from qwtv2_edge.ir.graph import Graph, GraphBuilder
from qwtv2_edge.ir.types import CODE_BOUNDS, DTYPES, Quantization, TensorType
from qwtv2_edge.numerics import FLOAT_OPS
from qwtv2_edge.ops import OPS
from qwtv2_edge.ops.activation import AlphaAttrs, ClampAttrs, GeluAttrs
from qwtv2_edge.ops.conv import Conv2DAttrs, DepthwiseAttrs, TransposeConvAttrs
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.index import ArgmaxAttrs, MaskFillAttrs
from qwtv2_edge.ops.layout import ConcatAttrs, PadAttrs, ReshapeAttrs, ResizeAttrs, SliceAttrs, TransposeAttrs
from qwtv2_edge.ops.linear import FullyConnectedAttrs
from qwtv2_edge.ops.matmul import BatchMatmulAttrs
from qwtv2_edge.ops.norm import L2NormalizeAttrs, LayerNormAttrs
from qwtv2_edge.ops.pool import PoolAttrs, ReduceAttrs, SoftmaxAttrs
from qwtv2_edge.ops.sequence import variance_shift
from qwtv2_edge.ops.spec import NoAttrs

T = TypeVar("T")

#: tensors stay small, so that hundreds of graphs run in a minute
MAX_SIZE = 6000

#: samples whose values choose the output scales
SAMPLES = 5

ACTIVATIONS = ("none", "none", "none", "relu", "relu6", "relu_n1_to_1")
FIXED = {"softmax": (1 / 256, -128), "logistic": (1 / 256, -128), "tanh": (1 / 128, 0), "l2_normalize": (1 / 128, 0)}


class Maker:
    """One graph in the making: the builder, random choices, and the real values of every tensor on a few samples."""

    def __init__(self, seed: int, powers: bool) -> None:
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.powers = powers
        self.b = GraphBuilder(f"fuzz-{seed}")
        self.real_io = False
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

    def fitted(self, reals: Sequence[np.ndarray], dtype: str = "int8") -> Quantization:
        """A quantization that covers the values, too wide or too narrow at times; now and then an arbitrary zero point."""
        low, high = min(0.0, *(float(v.min()) for v in reals)), max(0.0, *(float(v.max()) for v in reals))
        width = high - low if high - low > 1e-3 else 1.0  # all zero, or next to it
        if dtype == "int16":
            return Quantization.per_tensor(self.scale(max(-low, high, width / 8) / 32767 * self.pick([1.0, 1.0, 0.5, 3.0]), 0.5), 0)
        scale = self.scale(width / 255 * self.pick([1.0, 1.0, 0.5, 3.0]), 0.5)
        if self.chance(0.25):
            return Quantization.per_tensor(scale, self.zero_point())
        return Quantization.per_tensor(scale, int(np.clip(np.rint(-128 - low / scale + self.int(-9, 9)), -128, 127)))

    # ------------------------------------------------------------ nodes

    def type(self, name: str) -> TensorType:
        return self.b.tensors[name]

    def real(self, name: str, sample: int) -> np.ndarray:
        """The real value of a tensor or of a constant; indices as they are."""
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

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        attrs: Any,
        quantization: Quantization | None = None,
        least: float = 0.0,
        dtype: str | None = None,
    ) -> str:
        """Append a node; its output quantization follows the values unless given, its scale being ``least`` or more.
        The output has the ``dtype`` of the first input that is no constant, unless given."""
        spec = OPS[op]
        shape = spec.infer(tuple(self.type(t) for t in inputs), attrs)[0].shape
        if prod(shape) > MAX_SIZE:
            raise GraphError("too large")
        reals = [spec.reference([self.real(t, i) for t in inputs], attrs)[0] for i in range(SAMPLES)]
        dtype = dtype or next(self.type(t).dtype for t in inputs if t not in self.b.constants)
        if quantization is None:
            quantization = self.fitted(reals, dtype)
            quantization = Quantization.per_tensor(max(quantization.scale[0], least), quantization.zero_point[0])
        (y,) = self.b.add(op, inputs, attrs, name=op, out_types=(TensorType(shape, dtype, quantization),))
        self.values[y] = [self.rounded(v, self.type(y)) for v in reals]
        self.live.append(y)
        return y

    def rounded(self, value: np.ndarray, type: TensorType) -> np.ndarray:
        """Real values as codes of ``type`` hold them, float32."""
        codes = np.clip(np.rint(value / type.scale + type.zero_point), *type.code_bounds)
        return ((codes - type.zero_point) * type.scale).astype(np.float32)

    def input(self, hint: str, coded: TensorType) -> str:
        """A graph input that holds ``coded`` codes: as they are, or quantized from reals."""
        x = self.b.input(hint, TensorType(coded.shape) if self.real_io else coded)
        if self.real_io:
            (x,) = self.b.add("quantize", (x,), NoAttrs(), name="quantize", out_types=(coded,))
        low, high = coded.code_bounds
        draw = [self.rng.integers(low, high + 1, coded.shape) for _ in range(SAMPLES)]
        if coded.quantization == MASK:
            draw = [np.where(d < 0, low, high) for d in draw]
        self.values[x] = [((d - coded.zero_point) * coded.scale).astype(np.float32) for d in draw]
        return x

    def constant(self, hint: str, like: TensorType) -> str:
        """Random codes of the type ``like``."""
        low, high = like.code_bounds
        return self.b.constant(hint, self.rng.integers(low, high + 1, like.shape, dtype=DTYPES[like.dtype]), like)

    def balanced(self, x: str) -> str:
        """``x`` with zero point 0, as the second operand of a product."""
        type = self.type(x)
        return x if type.zero_point == 0 else self.add("requantize", (x,), NoAttrs(), Quantization.per_tensor(self.scale(type.scale), 0))

    def widened(self, x: str) -> str:
        """``x`` in 16 bits."""
        if self.type(x).dtype == "int16":
            return x
        if self.chance(0.5):
            wide = Quantization.per_tensor(float(np.float32(self.type(x).scale / 128)), 0)
            return self.add("requantize", (x,), NoAttrs(), wide, dtype="int16")
        return self.add("requantize", (x,), NoAttrs(), dtype="int16")

    def same(self, op: str, x: str, attrs: Any) -> str:
        return self.add(op, (x,), attrs, self.type(x).quantization)

    def rescaled(self, x: str, like: Quantization) -> str:
        """``x`` on the grid ``like``, requantized where it isn't."""
        return x if self.type(x).quantization == like else self.add("requantize", (x,), NoAttrs(), like)

    def weighted(self, op: str, x: str, shape: tuple[int, ...], axis: int, taps: int, attrs: Any) -> str:
        """A weighted op: per-channel or per-tensor scales, folded gains, biases from nothing to their limit."""
        rng, channels = self.rng, shape[axis]
        top = 255 if self.type(x).dtype == "int8" else 32768
        style = self.pick(["random", "random", "random", "extreme", "sparse"])
        # packed 4-bit codes now and then, which few runtimes take
        packs = op != "transpose_conv2d" and self.type(x).dtype == "int8"
        dtype, limit = ("int4", 7) if packs and self.chance(0.05) else ("int8", 127)
        codes = rng.integers(-limit, limit + 1, shape)
        if style == "extreme":
            codes = rng.choice([-limit, limit], shape)
        if style == "sparse":
            codes = codes * (rng.random(shape) < 0.2)
        per_tensor = self.chance(0.2)
        count = 1 if per_tensor else channels
        std = 74.0 * 0.29 * top * np.sqrt(taps)
        room = 2**31 - 1 - taps * 127 * top
        if room < std:
            raise GraphError("sums beyond 32 bits")
        size = self.pick(["zero", "usual", "usual", "usual", "usual", "usual", "large", "limit"])
        reach = {"zero": std, "usual": std, "large": max(std, 2.0 ** rng.uniform(16, 26)), "limit": 2.0**30}[size]
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
        least = max(widest / 128, widest * (taps * 127 * top + float(np.abs(bias).max())) / 2.0**30)
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


def operand(m: Maker, x: str, dtypes: Sequence[str]) -> str:
    """A second operand of one of ``dtypes``: x itself, a tensor of its shape, a broadcast one, or a constant."""
    shape = m.type(x).shape
    others = [t for t in m.live if m.type(t).shape == shape and m.type(t).dtype in dtypes]
    if len(shape) == 4:
        flat = [t for t in m.live if len(m.type(t).shape) == 4 and m.type(t).shape[3] == shape[3] and m.type(t).shape[1:3] == (1, 1)]
        others += [t for t in flat if m.type(t).dtype in dtypes]
    if m.chance(0.5) and others:
        return m.pick(others)
    const, dtype = m.pick([shape[-1:], (1,), (1, *shape[1:])]), m.pick(dtypes)
    near = m.type(x).scale * {"int8": 1, "int16": 256}[m.type(x).dtype] / {"int8": 1, "int16": 256}[dtype]
    zero_point = m.zero_point() if dtype == "int8" else 0
    return m.constant("c", TensorType(const, dtype, Quantization.per_tensor(m.scale(near, 3), zero_point)))


def binary(op: str):
    def step(m: Maker, x: str) -> str | None:
        wide = m.type(x).dtype == "int16" or (op != "mul" and m.chance(0.2))
        y = operand(m, x, (m.type(x).dtype,) if op == "mul" or not wide else ("int8", "int16"))
        if m.chance(0.3):
            x, y = y, x
        if wide:
            return m.add(op, (x, y), BinaryAttrs(m.pick(ACTIVATIONS[:-1])), dtype="int16")
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
            attrs = NoAttrs()
            if op == "softmax":
                attrs = SoftmaxAttrs(m.pick([1.0, 1.0, 0.5, 2.0]))
            if op == "l2_normalize":
                attrs = L2NormalizeAttrs()
            return m.add(op, (x,), attrs, fixed)
        attrs = NoAttrs()
        if op == "gelu":
            attrs = GeluAttrs(m.chance(0.5))
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
    target = m.pick([(prod(shape[1:]),), (*shape[1:-1][::-1], shape[-1]), (1, prod(shape[1:-1]), shape[-1])])
    return m.same("reshape", x, ReshapeAttrs((shape[0], *target)))


def transpose(m: Maker, x: str) -> str | None:
    rank = len(m.type(x).shape)
    return m.same("transpose", x, TransposeAttrs((0, *(int(i) for i in m.rng.permutation(np.arange(1, rank))))))


def concat(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    axis = m.int(1, len(shape) - 1)

    def joins(t: str) -> bool:
        s = m.type(t).shape
        return len(s) == len(shape) and all(i == axis or a == b for i, (a, b) in enumerate(zip(shape, s, strict=True)))

    dtype, like = m.type(x).dtype, m.type(x).quantization
    fitting = [t for t in m.live if joins(t) and m.type(t).dtype == dtype]
    others = [m.pick(fitting) for _ in range(m.int(1, 3))]
    assert like is not None
    inputs = [x, *(m.rescaled(t, like) for t in others)]
    if m.chance(0.25):  # as a class token is
        size = tuple(m.int(1, 2) if i == axis else d for i, d in enumerate(shape))
        inputs.insert(m.int(0, 1), m.constant("token", TensorType(size, dtype, like)))
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
    return m.add("requantize", (x,), NoAttrs(), dtype=m.pick(["int8", "int8", "int16"]))


# ---------------------------------------------------------------- steps of transformers


def silu(m: Maker, x: str) -> str | None:
    """As quantization writes it."""
    gate = m.add("logistic", (x,), NoAttrs(), Quantization.per_tensor(*FIXED["logistic"]))
    return m.add("mul", (x, gate), BinaryAttrs(), least=m.type(x).scale / 50000)


def layer_norm(m: Maker, x: str) -> str | None:
    shape = m.type(x).shape
    x, centre = m.widened(x), m.chance(0.7)
    rows = np.concatenate([m.real(x, i).reshape(-1, shape[-1]) for i in range(SAMPLES)]).astype(np.float64)
    variance = float((rows.var(-1) if centre else np.square(rows).mean(-1)).max())
    gamma = m.rng.normal(m.pick([0, 1]), m.pick([0.1, 1.0]), shape[-1])
    codes = norm_codes(gamma, m.rng.normal(0, m.pick([0.0, 0.3, 3.0]), shape[-1]))
    shift = min(15, max(-2, variance_shift(m.type(x).scale, variance) + m.pick([0, 0, 0, -2, 1])))
    attrs = LayerNormAttrs(min(1e6, float(variance * m.pick([0, 1e-6, 1e-2, 1]))) + 1e-12, centre, shift)
    return m.add("layer_norm", (x, *declare_norm(m.b, ("gamma", "beta"), codes)), attrs, dtype=m.pick(["int8", "int8", "int16"]))


def channel_scale(m: Maker, x: str) -> str | None:
    gain = TensorType(m.type(x).shape[-1:], "int16", Quantization.per_tensor(m.scale(1 / 32768, 3), 0))
    return m.add("channel_scale", (x, m.constant("gain", gain)), NoAttrs(), dtype="int8")


def channel_add(m: Maker, x: str) -> str | None:
    """``x`` and a branch of 8 bits, ``x`` itself where nothing else fits, with a gain per channel."""
    type = m.type(x)
    branches = [t for t in m.live if m.type(t).shape == type.shape and m.type(t).dtype == "int8"]
    branch = m.balanced(m.pick(branches)) if branches else m.add("requantize", (x,), NoAttrs(), balanced_like(m, type), dtype="int8")
    gain = TensorType(type.shape[-1:], "int16", Quantization.per_tensor(m.scale(1 / 32768, 3), 0))
    return m.add("channel_add", (x, branch, m.constant("gain", gain)), NoAttrs(), dtype="int16")


def balanced_like(m: Maker, type: TensorType) -> Quantization:
    """8 bits with zero point 0 over the range of a 16-bit ``type``."""
    return Quantization.per_tensor(m.scale(type.scale * 256), 0)


def product(m: Maker, x: str) -> str | None:
    """A batch_matmul with a tensor that fits, ``x`` itself, or a constant, on either side."""
    type, transpose_b = m.type(x), m.chance(0.5)
    *lead, rows, inner = type.shape
    near = Quantization.per_tensor(m.scale(type.scale, 2), 0)
    if m.chance(0.3):
        columns = m.pick([1, 5, 8])
        shape = (*lead, columns, inner) if transpose_b else (*lead, inner, columns)
        return m.add("batch_matmul", (x, m.constant("right", TensorType(shape, type.dtype, near))), BatchMatmulAttrs(transpose_b))
    if m.chance(0.3):
        left = m.constant("left", TensorType((*lead, m.pick([1, 4, 7]), inner if transpose_b else rows), type.dtype, near))
        return m.add("batch_matmul", (left, m.balanced(x)), BatchMatmulAttrs(transpose_b))
    at = -1 if transpose_b else -2
    fitting = [t for t in m.live if m.type(t).dtype == type.dtype and len(m.type(t).shape) == len(type.shape) >= 2]
    fitting = [t for t in fitting if m.type(t).shape[:-2] == tuple(lead) and m.type(t).shape[at] == inner]
    return m.add("batch_matmul", (x, m.balanced(m.pick(fitting))), BatchMatmulAttrs(transpose_b)) if fitting else None


def argmax(m: Maker, x: str) -> str | None:
    """Its positions become an output: no other op reads them."""
    rank = len(m.type(x).shape)
    attrs = ArgmaxAttrs(m.pick([rank - 1, m.int(1, rank - 1)]), m.chance(0.5))
    shape = OPS["argmax"].infer((m.type(x),), attrs)[0].shape
    (y,) = m.b.add("argmax", (x,), attrs, name="argmax", out_types=(TensorType(shape, "int32"),))
    return y


def mask_for(m: Maker, shape: tuple[int, ...]) -> str:
    """A mask that spreads to ``shape``: a constant, a causal one, or of the first and last axes as a graph input."""
    last = (*(1 for _ in shape[:-1]), shape[-1])
    if m.chance(0.6):
        ends = (shape[0], shape[-1])
        given = [t for t, v in m.values.items() if m.type(t).quantization == MASK and m.type(t).shape == ends]
        mask = m.pick(given) if given else m.input("keep", TensorType(ends, "int8", MASK))
        return m.add("reshape", (mask,), ReshapeAttrs((shape[0], *last[1:])), MASK) if len(shape) > 2 else mask
    if shape[-1] == shape[-2] and m.chance(0.5):
        keep = np.tri(shape[-1], dtype=bool).reshape(*(1 for _ in shape[:-2]), *shape[-2:])
    else:
        keep = m.rng.random(m.pick([last, (1, *shape[1:])])) < 0.7
    return m.b.constant("keep", np.where(keep, 127, -128).astype(np.int8), TensorType(keep.shape, "int8", MASK))


def mask_fill(m: Maker, x: str) -> str | None:
    return m.add("mask_fill", (x, mask_for(m, m.type(x).shape)), MaskFillAttrs(), m.type(x).quantization)


def attention(m: Maker, x: str) -> str | None:
    """Self-attention over (batch, tokens, width), and the residual sum behind it more often than not."""
    batch, tokens, width = m.type(x).shape
    heads, dtype = m.pick([1, 1, 2, 3, 4]), m.type(x).dtype
    depth = m.pick([1, 4, 8, 9])
    if tokens > 40 or width > 64:
        return None

    def projected() -> str:
        w_shape = (heads * depth, width)
        y = m.weighted("fully_connected", x, w_shape, 0, width, FullyConnectedAttrs())
        y = m.same("reshape", y, ReshapeAttrs((batch, tokens, heads, depth)))
        return m.same("transpose", y, TransposeAttrs((0, 2, 1, 3)))

    q, k, v = projected(), m.balanced(projected()), m.balanced(projected())
    if m.chance(0.7):
        scores = m.add("batch_matmul", (q, k), BatchMatmulAttrs(True))
    else:
        scores = m.add("batch_matmul", (q, m.same("transpose", k, TransposeAttrs((0, 1, 3, 2)))), BatchMatmulAttrs())
    if dtype == "int16":
        scores = m.add("requantize", (scores,), NoAttrs(), dtype="int8")
    if m.chance(0.4):
        scores = m.add("mask_fill", (scores, mask_for(m, m.type(scores).shape)), MaskFillAttrs(), m.type(scores).quantization)
    weights = m.add("softmax", (scores,), SoftmaxAttrs(m.pick([1.0, 0.5])), Quantization.per_tensor(*FIXED["softmax"]))
    if dtype == "int16":
        weights = m.widened(weights)
    y = m.add("batch_matmul", (weights, v), BatchMatmulAttrs())
    y = m.same("transpose", y, TransposeAttrs((0, 2, 1, 3)))
    y = m.same("reshape", y, ReshapeAttrs((batch, tokens, heads * depth)))
    if m.chance(0.3):
        return y
    y = m.weighted("fully_connected", y, (width, heads * depth), 0, heads * depth, FullyConnectedAttrs())
    y = m.add("add", (x, y), BinaryAttrs(), dtype="int16") if dtype == "int16" or m.chance(0.7) else channel_add(m, x)
    return layer_norm(m, y) if y and m.chance(0.7) else y


ALL, NARROW, WIDE = ("int8", "int16"), ("int8",), ("int16",)

#: op -> (step, ranks it takes, dtypes it takes)
STEPS: dict[str, tuple[Callable[[Maker, str], str | None], tuple[int, ...], tuple[str, ...]]] = {
    "conv2d": (conv2d, (4,), ALL),
    "depthwise_conv2d": (depthwise_conv2d, (4,), ALL),
    "transpose_conv2d": (transpose_conv2d, (4,), NARROW),
    "fully_connected": (fully_connected, (2, 3), ALL),
    **{op: (binary(op), (2, 3, 4), ALL) for op in ("add", "sub", "mul")},
    **{op: (pool(op), (4,), NARROW) for op in ("max_pool2d", "avg_pool2d")},
    "mean": (reduce("mean"), (2, 3, 4), ALL),
    **{op: (reduce(op), (2, 3, 4), NARROW) for op in ("sum", "reduce_max")},
    **{
        op: (unary(op), (2, 3, 4), NARROW)
        for op in ("softmax", "logistic", "tanh", "hard_swish", "elu", "leaky_relu", "gelu", "l2_normalize")
    },
    "silu": (silu, (2, 3, 4), NARROW),
    "prelu": (prelu, (4,), NARROW),
    **{op: (clamp(op), (2, 3, 4), NARROW) for op in ("relu", "relu6", "clamp")},
    "reshape": (reshape, (2, 3, 4), ALL),
    "transpose": (transpose, (3, 4), ALL),
    "concat": (concat, (2, 3, 4), ALL),
    "slice": (slice_, (2, 3, 4), ALL),
    "pad": (pad, (2, 3, 4), ALL),
    **{op: (resize(op), (4,), NARROW) for op in ("resize_nearest", "resize_bilinear")},
    "requantize": (requantize, (2, 3, 4), ALL),
    "layer_norm": (layer_norm, (2, 3, 4), ALL),
    "channel_scale": (channel_scale, (2, 3, 4), WIDE),
    "channel_add": (channel_add, (2, 3, 4), ALL),
    "batch_matmul": (product, (3, 4), ALL),
    "argmax": (argmax, (2, 3, 4), ALL),
    "mask_fill": (mask_fill, (2, 3, 4), NARROW),
    "attention": (attention, (3,), ALL),
}

#: how often an op is offered; 2 where absent
WEIGHT = {
    **{"conv2d": 12, "depthwise_conv2d": 10, "transpose_conv2d": 6, "fully_connected": 10, "add": 6, "mean": 4},
    **{"sum": 1, "elu": 1, "gelu": 1, "argmax": 1, "channel_add": 1, "batch_matmul": 3, "layer_norm": 4, "attention": 10},
}

OFFERED = {
    (rank, dtype): [op for op, (_, ranks, dtypes) in STEPS.items() if rank in ranks and dtype in dtypes for _ in range(WEIGHT.get(op, 2))]
    for rank in (2, 3, 4)
    for dtype in ALL
}


def input_shape(m: Maker) -> tuple[int, ...]:
    batch = m.pick([1, 1, 1, 1, 1, 1, 1, 3])
    if m.chance(0.7):
        return (batch, m.int(1, 8), m.int(1, 8), m.pick([1, 2, 3, 6, 8, 12, 16, 17]))
    if m.chance(0.5):
        return (batch, m.pick([1, 3, 8, 33, 300]))
    return (batch, m.int(1, 6), m.pick([1, 4, 16, 20]))


def take_step(m: Maker) -> None:
    """Add one op that fits (and a requantize where it needs one); none after a few misses."""
    for _ in range(8):
        # mostly the newest tensor, sometimes an older one: chains, residuals and branches
        x = m.live[-1] if m.chance(0.75) else m.pick(m.live)
        op = m.pick(OFFERED[len(m.type(x).shape), m.type(x).dtype])
        before = len(m.b.nodes), len(m.live)
        try:
            if STEPS[op][0](m, x) is not None:
                return
        except GraphError:  # too large, or a shape that the op's own rule refuses
            pass
        del m.b.nodes[before[0] :], m.live[before[1] :]


def looked_up(m: Maker, shape: tuple[int, ...]) -> None:
    """Indices of that shape as a graph input, through a reshape at times, and the rows of a table for them."""
    entries, width, dtype = m.pick([1, 7, 40]), m.pick([3, 8, 16]), m.pick(["int8", "int8", "int16"])
    indices = m.b.input("index", TensorType(shape, "int32"))
    m.values[indices] = [m.rng.integers(0, entries, shape, dtype=np.int32) for _ in range(SAMPLES)]
    if m.chance(0.3):
        flat = TensorType((1, prod(shape)), "int32")
        (again,) = m.b.add("reshape", (indices,), ReshapeAttrs(flat.shape), name="flat", out_types=(flat,))
        m.values[again] = [v.reshape(flat.shape) for v in m.values[indices]]
        indices = again
    like = Quantization.per_tensor(m.scale(0.05 if dtype == "int8" else 2e-4), m.zero_point() if dtype == "int8" else 0)
    table = m.constant("table", TensorType((entries, width), dtype, like))
    m.add("embedding", (indices, table), NoAttrs(), like, dtype=dtype)


def make_graph(seed: int, steps: Sequence[int], *, powers: bool, real: bool) -> Graph:
    """The graph of ``seed`` with the numbered ``steps``. ``real``: float32 at the boundary, else codes."""
    m = Maker(seed, powers)
    m.real_io = real
    if m.chance(0.5):
        m.b.metadata[FLOAT_OPS] = m.pick(["allow", "forbid"])
    shape = input_shape(m)
    if m.chance(0.12):
        shape = (1, m.int(1, 9))
        looked_up(m, shape)
    for i in range(0 if m.live else m.pick([1, 1, 2])):
        if m.chance(0.12):
            coded = TensorType(shape, "int16", Quantization.per_tensor(m.scale(2e-4), 0))
        else:
            coded = TensorType(shape, "int8", Quantization.per_tensor(m.scale(0.05), m.zero_point()))
        m.live.append(m.input(f"x{i}", coded))
    for step in steps:
        m.rng = np.random.default_rng((seed, step))
        take_step(m)
    # what nobody reads becomes an output, so that nothing is computed in vain; and at times what is read
    read = {t for n in m.b.nodes for t in n.inputs}
    made = [t for n in m.b.nodes for t in n.outputs if n.op != "quantize"]
    m.rng = np.random.default_rng((seed, len(steps), 1))
    also = m.pick(made) if made and m.chance(0.25) else ""
    outputs = [t for t in made if t not in read or t == also]
    if not outputs:
        first, shape = m.live[0], m.type(m.live[0]).shape
        pooled = len(shape) == 4 and m.type(first).dtype == "int8"
        outputs = [m.same("max_pool2d", first, PoolAttrs()) if pooled else m.same("reshape", first, ReshapeAttrs(shape))]
    if real:
        outputs = [dequantized(m, t) if m.type(t).dtype in CODE_BOUNDS and m.type(t).quantization else t for t in outputs]
    m.b.outputs = outputs
    return check(without_idle_inputs(m.b).freeze())


def dequantized(m: Maker, t: str) -> str:
    return m.b.add("dequantize", (t,), NoAttrs(), name="dequantize", out_types=(TensorType(m.type(t).shape),))[0]


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
