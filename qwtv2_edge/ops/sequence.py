"""Exact integer meanings of the ops that transformers add: products of two activations, normalisations, masks.

Signature and rule look-up as in ``integers``. Two arithmetics stand side by side:

INT  integers throughout, as runtimes without float kernels between quantized ones compute it
F32  float32 inside an XNNPACK program. Every element-wise step rounds once (IEEE 754, no fused multiply-add) and every
     sum is over integers below 2**24, so that its order does not matter: the same bytes on every processor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from qwtv2_edge import fixedpoint as fp
from qwtv2_edge.errors import GraphError
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.numerics import Numerics
from qwtv2_edge.ops.integers import Result, look_up, lut_xnn, product_scale32, product_scale64, real32, real_codes, rule_of, typed_key
from qwtv2_edge.ops.spec import Arrays, Types

F = np.float32
I = np.int64  # noqa: E741

#: sums of integers up to here are exact in float32, in any order
EXACT = 2**24
#: channels whose 16-bit codes sum to less than that
EXACT_CHANNELS = 512

# ---------------------------------------------------------------- products of two activations

Scale = Callable[[TensorType, TensorType, TensorType], Any]


def matmul_scale(first: TensorType, second: TensorType, out: TensorType) -> np.float64:
    """Effective scale of a product of two activations: float32 product, float64 quotient, unlike that of MUL.

    Source: LiteRT tflite/kernels/kernel_util.cc :: GetQuantizedConvolutionMultipler
    """
    return fp.float32_product_scale(first.scale, second.scale, out.scale)[0]


#: rule -> (precision of the product of scales, rounding scheme)
MATMUL_RULES: dict[str, tuple[Scale, str]] = {
    "REF_F32": (matmul_scale, "REF"),
    "REF_F64": (product_scale64, "REF"),
    "F32E": (product_scale32, "F32E"),
    "ONE_F32": (matmul_scale, "ONE"),
    "R64_F32": (matmul_scale, "R64"),
    "R64_F64": (product_scale64, "R64"),
}


def batch_matmul_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    """Centred codes multiplied in BLAS, which holds every sum exactly. Source: LiteRT tflite/kernels/batch_matmul.cc"""
    scale, scheme = rule_of(typed_key("batch_matmul", *in_types), MATMUL_RULES, numerics)
    # |a| < 2**8 and |b| < 2**8 for 8-bit codes, so that 256 of their products are exact in float32
    dtype = F if arrays[0].shape[-1] <= 256 and in_types[0].dtype == "int8" else np.float64
    a, b = (x.astype(dtype) - t.zero_point for x, t in zip(arrays, in_types, strict=True))
    acc = np.matmul(a, b.swapaxes(-1, -2) if attrs.transpose_b else b).astype(I)
    out = out_types[0]
    value = fp.requantize(acc, np.float64(scale(in_types[0], in_types[1], out)), scheme)
    return (fp.to_codes(value, out.zero_point, *out.code_bounds),)


# ---------------------------------------------------------------- layer_norm, integers

#: entries of the table of inverse square roots; the variance's index saturates at the last
INDEX_LIMIT = 8191
#: variances below this index have the largest inverse
LEAST_INDEX = 16
#: largest code of an inverse square root: 127 * 256 + 127, so that both its bytes are int8
INVERSE_LIMIT = 32639


@dataclass(frozen=True)
class LayerNormTable:
    """What the integer layer_norm of 16-bit codes x computes with. Every intermediate has 16 bits and saturates.

    (1) m = mean(x),  d = x - m
    (2) q = d * d / 2**15
    (3) v = mean(q) * 2**shift                     an index, at most INDEX_LIMIT
    (4) r = inverse[v]                             1 / sqrt(variance + eps)
    (5) t = d * r * scale                          |t| <= 32767 stands for sqrt(channels)
    (6) y = (t * gamma + beta) * output            gamma int16, beta int32

    Rows that use little of x's range lose their variance to the rounding of (2). With two passes (2) to (5) run once more,
    on t in place of d, which then has a variance near 1.

    passes: (2) to (5), once or twice. output: effective scale.
    """

    passes: tuple[Normalising, ...]
    output: float

    @staticmethod
    def of(x: TensorType, gamma: TensorType, out: TensorType, attrs: Any) -> LayerNormTable:
        n = x.shape[-1]
        passes = [Normalising.of(x.scale, n, attrs.eps, attrs.shift)]
        if attrs.passes == 2:
            # a variance of 1 then has an index from 2**11 to 2**12
            passes.append(Normalising.of(normal_scale(n), n, 0.0, 12 - fp.ceil_log2(2.0**15 / n)))
        output = np.float64(layer_norm_sum_scale(x, gamma)) / np.float64(F(out.scale))
        return LayerNormTable(tuple(passes), float(output))


@dataclass(frozen=True)
class Normalising:
    """Steps (2) to (5) of :class:`LayerNormTable`. scale: effective, float32-exact. inverse: int16 (INDEX_LIMIT + 1,)."""

    shift: int
    scale: float
    inverse: np.ndarray

    @staticmethod
    def of(x_scale: float, channels: int, eps: float, shift: int) -> Normalising:
        step = float(F(x_scale)) ** 2 * 2.0 ** (15 - shift)  # the variance that an index of 1 stands for
        offset = eps / step
        if offset < 1 / 64:  # not seen beside LEAST_INDEX; networks then share one table
            offset = 0.0
        largest = 1 / np.sqrt((LEAST_INDEX + offset) * step)
        return Normalising(shift, float(F(x_scale * largest / INVERSE_LIMIT / normal_scale(channels))), inverse_table(offset))


def normal_scale(channels: int) -> float:
    """Scale of the normalised values of :class:`LayerNormTable`: none exceeds the root of the number of channels."""
    return float(F(np.sqrt(channels) / 32767))


def layer_norm_sum_scale(x: TensorType, gamma: TensorType) -> float:
    """float32-exact scale of t * gamma + beta in :class:`LayerNormTable`."""
    return float(F(normal_scale(x.shape[-1])) * F(gamma.scale))


@lru_cache(maxsize=64)
def inverse_table(offset: float) -> np.ndarray:
    index = np.maximum(np.arange(INDEX_LIMIT + 1, dtype=np.float64), LEAST_INDEX) + offset
    table = fp.round_half_even(INVERSE_LIMIT * np.sqrt((LEAST_INDEX + offset) / index)).astype(np.int16)
    table.flags.writeable = False
    return table


#: a finer shift would read more into squares that round to 0 than they say, and take small variances for none
FINEST_SHIFT = 6


def variance_shift(scale: float, variance: float) -> int:
    """The finest shift, from -2 to FINEST_SHIFT, at which twice the real ``variance`` of codes of ``scale`` stays within the table."""
    index = 2 * variance / (float(F(scale)) ** 2 * 2.0**15)
    return FINEST_SHIFT if index <= 0 else int(np.clip(-fp.ceil_log2(index / INDEX_LIMIT), -2, FINEST_SHIFT))


#: squared 16-bit steps over 2**15: rows of a smaller variance need a second pass
LEAST_SQUARE = 8.0


def variance_passes(scale: float, variance: float, eps: float) -> int:
    """How often to normalise rows whose smallest real variance is ``variance``, of codes of ``scale``. A second pass would
    undo an eps that counts beside it."""
    return 2 if 64 * eps < variance < LEAST_SQUARE * float(F(scale)) ** 2 * 2.0**15 else 1


Mean = Callable[[np.ndarray, int, float], np.ndarray]


def _mean_ref(total: np.ndarray, count: int, out_scale: float) -> np.ndarray:
    return fp.mean_ref(total, count, 1.0, 0, out_scale)


def _mean_one(total: np.ndarray, count: int, out_scale: float) -> np.ndarray:
    return fp.requantize(total, fp.reduction_scale(1.0, out_scale, count), "ONE")


def _layer_norm_int(mean: Mean, scheme: str, precision: type) -> Callable[..., np.ndarray]:
    """The steps of :class:`LayerNormTable` with one family's roundings. ``precision``: of the last effective scale."""

    def rescale(x: np.ndarray, scale: float) -> np.ndarray:
        return fp.saturate16(fp.requantize(x, np.float64(F(scale)), scheme))

    def run(arrays: Arrays, attrs: Any, x_type: TensorType, gamma_type: TensorType, out: TensorType) -> np.ndarray:
        k = LayerNormTable.of(x_type, gamma_type, out, attrs)
        d, gamma, beta = (a.astype(I) for a in arrays)
        n = d.shape[-1]
        if attrs.centre:
            d = fp.saturate16(d - fp.saturate16(mean(d.sum(-1, keepdims=True), n, 1.0)))
        for p in k.passes:
            q = rescale(d * d, 2.0**-15)
            v = fp.saturate16(mean(q.sum(-1, keepdims=True), n, 2.0**-p.shift))
            d = rescale(d * p.inverse[np.minimum(v, INDEX_LIMIT)], p.scale)
        y = fp.requantize(d * gamma + beta, np.float64(precision(k.output)), scheme)
        return fp.to_codes(y, out.zero_point, *out.code_bounds)

    return run


# ---------------------------------------------------------------- layer_norm, float32


@dataclass(frozen=True)
class Heron:
    """A float32 square root of element-wise steps: start at ``start + slope * v``, then ``steps`` times s = (s + v / s) / 2.

    It converges for every v > 0, to 3e-7 where v is of the size expected and to 7e-4 a factor of 4 beyond; XNNPACK's own
    square root differs between processors.
    """

    start: float
    slope: float
    steps: int

    def __call__(self, v: np.ndarray) -> np.ndarray:
        s = F(self.start) + v * F(self.slope)
        for _ in range(self.steps):
            s = (s + v / s) * F(0.5)
        return s

    def scaled(self, factor: float) -> Heron:
        """The same for values ``factor`` squared times as large."""
        return Heron(float(F(self.start * factor)), float(F(self.slope / factor)), self.steps)


#: for variances of 2**2 to 2**16, and for sums of squares of 2**10 to 2**24
VARIANCE_ROOT, LENGTH_ROOT = Heron(8.0, 1 / 64, 5), Heron(256.0, 1 / 4096, 6)


def square_step(channels: int, limit: int) -> int:
    """The least power of two such that ``channels`` squares of integers up to limit / step sum to EXACT at most."""
    return 1 << max(0, fp.ceil_log2(limit * np.sqrt(channels / EXACT)))


def sum_parts(channels: int) -> tuple[int, int]:
    """(parts, step): sums of 16-bit codes over each part are exact; rounded to multiples of step, so is the sum of the parts."""
    parts = -(-channels // EXACT_CHANNELS)
    return parts, 1 if parts == 1 else max(4, 1 << fp.ceil_log2(parts))


def part_ends(channels: int) -> np.ndarray:
    """Where the parts of :func:`sum_parts` begin and end: equal ones but for the last."""
    parts, _ = sum_parts(channels)
    return np.minimum(np.arange(parts + 1) * -(-channels // parts), channels)


@dataclass(frozen=True)
class LayerNorm32:
    """Constants of the float32 layer_norm on 16-bit codes c.

    (1) d = c - S * share,  S = sum(c), in parts beyond 512 channels, see :func:`sum_parts`
    (2) e = d rounded to a multiple of step,  v = max(sum(e * e) + offset, least)
    (3) y = (d * (1 / root(v))) * gamma + beta, then quantized

    offset: eps, less what the rounding adds to squares on average, step**2 / 12 each (Sheppard's correction); least: of
    rows whose standard deviation is below a quarter of step, and hardly seen by e.
    gamma and beta: float32 (channels,), for real values where y has 8 bits, in units of y's codes where it has 16.
    """

    share: np.float32
    step: int
    offset: np.float32
    least: np.float32
    root: Heron
    gamma: np.ndarray
    beta: np.ndarray

    @staticmethod
    def of(x: TensorType, gamma_type: TensorType, out: TensorType, gamma: np.ndarray, beta: np.ndarray, eps: float) -> LayerNorm32:
        n = x.shape[-1]
        length, squares = np.sqrt(n), square_step(n, 32768)
        offset = eps / np.float64(F(x.scale)) ** 2
        step, unit = np.float64(F(gamma_type.scale)), np.float64(1)
        if out.dtype == "int16":
            unit = 1 / np.float64(F(out.scale))
        return LayerNorm32(
            F(1) / F(n),
            squares,
            F(n * (offset - squares**2 / 12)),
            F(n * (offset + squares**2 / 16)),
            VARIANCE_ROOT.scaled(length * squares),
            (gamma.astype(np.float64) * (step * length * unit)).astype(F),
            (beta.astype(np.float64) * (step * normal_scale(n) * unit)).astype(F),
        )


def round32(x: np.ndarray) -> np.ndarray:
    """Integers nearest to float32 values below 2**22 in size, ties to even."""
    return fp.round_half_even(x).astype(F)


def clamp_round32(x: np.ndarray) -> np.ndarray:
    """int16 codes of float32 values in units of codes."""
    return fp.to_codes(round32(np.clip(x, F(-32768), F(32767))), 0, -32768, 32767)


def _round_to(x: np.ndarray, step: int) -> np.ndarray:
    """float32 values to the nearest multiple of ``step``, a power of two."""
    return round32(x * F(1 / step)) * F(step)


def _code_sum(c: np.ndarray) -> np.ndarray:
    parts, step = sum_parts(c.shape[-1])
    if parts == 1:
        return c.sum(-1, keepdims=True)
    return _round_to(np.add.reduceat(c, part_ends(c.shape[-1])[:-1], axis=-1), step).sum(-1, keepdims=True)


def _layer_norm_f32(arrays: Arrays, attrs: Any, x_type: TensorType, gamma_type: TensorType, out: TensorType) -> np.ndarray:
    k = LayerNorm32.of(x_type, gamma_type, out, arrays[1], arrays[2], attrs.eps)
    d: np.ndarray = arrays[0].astype(F)
    if attrs.centre:
        d = d - _code_sum(d) * k.share
    e = _round_to(d, k.step)
    v = np.maximum((e * e).sum(-1, keepdims=True) + k.offset, k.least)
    y = d * (F(1) / k.root(v)) * k.gamma + k.beta
    if out.dtype == "int16":
        return clamp_round32(y)
    return fp.quantize_codes(y, out.scale, out.zero_point, "RNE")


LAYER_NORM_RULES: dict[str, Callable[..., np.ndarray]] = {
    "INT_REF": _layer_norm_int(_mean_ref, "REF", np.float64),
    "INT_ONE": _layer_norm_int(_mean_one, "ONE", F),
    "F32": _layer_norm_f32,
}


def layer_norm_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    """x int16, gamma int16, beta int32 at the scale of gamma times :func:`normal_scale`; int8 or int16 out."""
    rule = rule_of("layer_norm", LAYER_NORM_RULES, numerics)
    return (rule(arrays, attrs, in_types[0], in_types[1], out_types[0]),)


# ---------------------------------------------------------------- channel_scale


def _channel_scale_int(scheme: str) -> Callable[..., np.ndarray]:
    def run(x: np.ndarray, gain: np.ndarray, x_type: TensorType, gain_type: TensorType, out: TensorType) -> np.ndarray:
        scale = np.float64(F(x_type.scale) * F(gain_type.scale)) / np.float64(F(out.scale))
        y = fp.requantize(x.astype(I) * gain, scale, scheme)
        return fp.to_codes(y, out.zero_point, *out.code_bounds)

    return run


def channel_gains32(gain: np.ndarray, x_type: TensorType, gain_type: TensorType) -> np.ndarray:
    """float32 factors from codes of x to reals."""
    return (gain.astype(np.float64) * (np.float64(F(x_type.scale)) * np.float64(F(gain_type.scale)))).astype(F)


def _channel_scale_f32(x: np.ndarray, gain: np.ndarray, x_type: TensorType, gain_type: TensorType, out: TensorType) -> np.ndarray:
    return fp.quantize_codes(x.astype(F) * channel_gains32(gain, x_type, gain_type), out.scale, out.zero_point, "RNE")


CHANNEL_SCALE_RULES = {"INT_REF": _channel_scale_int("REF"), "INT_ONE": _channel_scale_int("ONE"), "F32": _channel_scale_f32}


def channel_scale_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    """x int16, gain int16 per channel; int8 out."""
    rule = rule_of("channel_scale", CHANNEL_SCALE_RULES, numerics)
    return (rule(*arrays, *in_types, out_types[0]),)


# ---------------------------------------------------------------- channel_add


@dataclass(frozen=True)
class ChannelAdd:
    """first * x + second * y, in steps of ``unit``: integer factors, of y per channel (int32); ``unit`` is float32-exact."""

    first: int
    second: np.ndarray
    unit: float

    @staticmethod
    def of(x: TensorType, y: TensorType, gain_type: TensorType, gain: np.ndarray) -> ChannelAdd:
        steps = np.float64(F(y.scale)) * np.float64(F(gain_type.scale)) * gain.astype(np.float64)
        unit = F(max(x.scale * x.reach, 128 * float(np.abs(steps).max()))) / F(fp.WIDE_REACH)
        first = int(fp.round_half_even(np.asarray(np.float64(F(x.scale)) / np.float64(unit))))
        return ChannelAdd(first, fp.round_half_even(steps / np.float64(unit)).astype(np.int32), float(unit))


def _channel_add_int(scheme: str) -> Callable[..., np.ndarray]:
    def run(arrays: Arrays, types: Types, out: TensorType) -> np.ndarray:
        x, y, gain = arrays
        k = ChannelAdd.of(types[0], types[1], types[2], gain)
        total = k.first * (x.astype(I) - types[0].zero_point) + k.second.astype(I) * y
        return fp.to_codes(fp.requantize(total, np.float64(F(k.unit)) / np.float64(F(out.scale)), scheme), 0, *out.code_bounds)

    return run


def channel_add_gains32(gain: np.ndarray, gain_type: TensorType, out: TensorType) -> np.ndarray:
    """float32 factors from reals of y to units of the output's codes."""
    return (gain.astype(np.float64) * (np.float64(F(gain_type.scale)) / np.float64(F(out.scale)))).astype(F)


def _channel_add_f32(arrays: Arrays, types: Types, out: TensorType) -> np.ndarray:
    x, y, gain = arrays
    scaled = y.astype(F) * F(types[1].scale) * channel_add_gains32(gain, types[2], out)
    return fp.to_codes(clamp_round32(real32(x, types[0], out) + scaled), 0, *out.code_bounds)


CHANNEL_ADD_RULES = {"SUM_REF": _channel_add_int("REF"), "SUM_ONE": _channel_add_int("ONE"), "F32": _channel_add_f32}


def channel_add_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    """x int8 or int16, y int8 with zero point 0, gain int16 per channel; int16 out."""
    return (rule_of("channel_add", CHANNEL_ADD_RULES, numerics)(arrays, in_types, out_types[0]),)


# ---------------------------------------------------------------- softmax


def softmax_scales(entries: int) -> tuple[float, float]:
    """Scales of the coarse and of the fine exponentials, powers of two such that sums over ``entries`` are exact.

    Raises: GraphError: more entries than float32 sums hold.
    """
    bits = 24 - 8 - fp.ceil_log2(entries)
    if bits < 0:
        raise GraphError(f"softmax over {entries} entries exceeds 65536, the limit of exact float32 sums")
    return 2.0**-8, 2.0 ** -(8 + min(bits, 6))


@lru_cache(maxsize=256)
def softmax_exponentials(scale: float, entries: int) -> np.ndarray:
    """float32 (256,): what stands for exp(scale * (code - 127)), in the order of CODES.

    Two 8-bit tables, the fine one saturating early: fine + max(coarse - saturation, 0).
    """
    distance = TensorType((), "int8", Quantization.per_tensor(scale, 127))

    def table(step: float) -> np.ndarray:
        out = TensorType((), "int8", Quantization.per_tensor(step, -128))
        return real_codes(out)[lut_xnn(lambda x, attrs: np.exp(x.astype(np.float64)).astype(F))(None, distance, out).view(np.uint8)]

    coarse, fine = softmax_scales(entries)
    return table(fine) + np.maximum(table(coarse) - F(256 * fine), F(0))


def softmax_f32(codes: np.ndarray, scale: float, beta: float) -> np.ndarray:
    """int8 softmax over the last axis, output scale 1/256 and zero point -128.

    (1) D = max(q - max(q), -255) + 127     8-bit codes
    (2) e = exponentials[D]                 multiples of 2**-14
    (3) p = round(256 * (e / sum(e))) - 128
    """
    q = codes.astype(np.int16)
    distance = np.maximum(q - q.max(-1, keepdims=True) + 127, -128).astype(np.int8)
    e = look_up(softmax_exponentials(float(F(scale) * F(beta)), codes.shape[-1]), distance)
    return fp.to_codes(round32(e / e.sum(-1, keepdims=True) * F(256)), -128)


SOFTMAX_RULES: dict[str, Callable[..., np.ndarray]] = {
    "FIXED": lambda x, scale, beta, out: fp.softmax_fixed(x, scale, beta),
    "FLOAT_LUT": lambda x, scale, beta, out: fp.softmax_float_lut(x, scale, beta, out.scale, out.zero_point),
    "LUT16": lambda x, scale, beta, out: fp.softmax_lut16(x, scale, beta, out.scale, out.zero_point),
    "TABLE": lambda x, scale, beta, out: fp.softmax_integer_table(x, scale, beta),
    "F32": lambda x, scale, beta, out: softmax_f32(x, scale, beta),
}


def softmax_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    rule, out = rule_of("softmax", SOFTMAX_RULES, numerics), out_types[0]
    if (out.scale, out.zero_point) != (1.0 / 256, -128):
        raise GraphError(f"softmax gives scale 1/256 and zero point -128, not {out.scale} and {out.zero_point}")
    return (rule(arrays[0], in_types[0].scale, attrs.beta, out),)


# ---------------------------------------------------------------- l2_normalize


def _l2_tflite(x: np.ndarray, in_type: TensorType) -> np.ndarray:
    """Source: LiteRT tflite/kernels/internal/reference/integer_ops/l2normalization.h"""
    c = x.astype(I) - in_type.zero_point
    multiplier, shift = fp.inverse_square_root(np.square(c).sum(-1, keepdims=True))
    return fp.multiply_quantized(c, multiplier, 7 - shift)


@dataclass(frozen=True)
class L2Normalize32:
    """Constants of the float32 l2_normalize of real values r of 8-bit codes.

    e = round(r * unit),  v = max(sum(e * e), 1),  y = r * (unit / LENGTH_ROOT(v))
    """

    unit: np.float32

    @staticmethod
    def of(x: TensorType) -> L2Normalize32:
        return L2Normalize32(F(1 / (np.float64(F(x.scale)) * square_step(x.shape[-1], 256))))


def _l2_f32(x: np.ndarray, in_type: TensorType) -> np.ndarray:
    unit = L2Normalize32.of(in_type).unit
    r = (x.astype(F) - F(in_type.zero_point)) * F(in_type.scale)
    e = round32(r * unit)
    v = np.maximum((e * e).sum(-1, keepdims=True), F(1))
    return round32(r * (unit / LENGTH_ROOT(v)) * F(128))


def _l2_one(x: np.ndarray, in_type: TensorType) -> np.ndarray:
    """c * r * scale, r from the table of ``layer_norm`` by the sum of squares over :func:`l2_step`, one rounding each."""
    c = x.astype(I) - in_type.zero_point
    step = l2_step(x.shape[-1], in_type)
    index = fp.requantize(np.square(c).sum(-1, keepdims=True), np.float64(1 / step), "ONE")
    r = inverse_table(0.0)[np.minimum(index, INDEX_LIMIT)].astype(I)
    return fp.requantize(c * r, l2_scale(step), "ONE")


def l2_step(channels: int, x: TensorType) -> int:
    """Sum of squared codes that one index of the table stands for: INDEX_LIMIT covers all that there are."""
    return max(1, -(-channels * x.reach**2 // INDEX_LIMIT))


def l2_scale(step: int) -> np.float64:
    """Effective scale from code times inverse to the output, whose scale is 1/128."""
    return np.float64(128 / (np.sqrt(LEAST_INDEX * step) * INVERSE_LIMIT))


L2_RULES = {"TFLITE": _l2_tflite, "INT_ONE": _l2_one, "F32": _l2_f32}


def l2_normalize_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    return (fp.to_codes(rule_of("l2_normalize", L2_RULES, numerics)(arrays[0], in_types[0]), 0),)


# ---------------------------------------------------------------- masks


def mask_fill_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    """The smaller of value and mask, whose codes are 127 (keep) and -128 (fill)."""
    return (np.minimum(arrays[0], arrays[1]),)
