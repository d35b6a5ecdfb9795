"""The only home of rounding, shifting and integer scaling.

Notation: ``q`` code, ``acc`` int32 accumulator, ``M`` effective scale, ``(m, e)`` its Q31 multiplier and
shift (positive = left).

(1)  M = m * 2**(e - 31),  2**30 <= m < 2**31                          quantize_multiplier
(2)  srdhm(a, b)  = floor((a*b + 2**30) / 2**31)                       ties towards +inf
(3)  rdbpot(x, n) = x / 2**n, ties away from zero;  rshr(x, n): ties towards +inf

Requantization schemes, always named; ``requantize(acc, scale, scheme)`` returns the value before the zero point:

==========  ==========================================================  ======================================
REF         rdbpot(srdhm(acc << max(e,0), m), max(-e,0))                TFLite reference, TFLite Micro, CMSIS-NN
UP2         rshr(srdhm(acc << max(e,0), m), max(-e,0))                  ruy on x86
UP2_8       UP2 for whole groups of 8 channels, REF for the rest        TFLite's optimised depthwise kernels
ONE         floor((acc*m + 2**(30-e)) / 2**(31-e))                      ruy on ARM64, single-rounding builds
F64         float64(acc) * M, ties away from zero                       LiteRT fully connected reference
F32E        float32(float32(acc) * M32), ties to even                   XNNPACK
RNDNU       24-bit mantissa, truncating doubling multiply, ties up      XNNPACK multiply on ARM
==========  ==========================================================  ======================================

Integer arithmetic is done in int64 and raises where a runtime's int32 would overflow. Floating point is used
as a faster integer unit only where every intermediate value is proved exact; the proofs stand at each use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import frexp

import numpy as np
from numpy.typing import ArrayLike

from qwtv2_edge.errors import QuantizeError, RuntimeLimitError

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1

F = np.float32
I = np.int64  # noqa: E741

_SMALLEST_NORMAL = 2.0**-126

SCHEMES = ("REF", "UP2", "UP2_8", "ONE", "F64", "F32E", "R64")

# ---------------------------------------------------------------- rounding


def round_half_away(x: ArrayLike) -> np.ndarray:
    """Nearest integer, ties away from zero, exact for every finite input. float array of any shape; dtype kept."""
    x = np.asarray(x)
    whole = np.trunc(x)
    rest = x - whole  # exact: both share the exponent range of x
    return whole + (rest >= 0.5).astype(x.dtype) - (rest <= -0.5).astype(x.dtype)


def round_half_even(x: np.ndarray) -> np.ndarray:
    """Nearest integer, ties to even. float array of any shape; dtype kept."""
    return np.rint(x)


def divide_half_away(numerator: ArrayLike, denominator: ArrayLike) -> np.ndarray:
    """C's ``(n > 0 ? n + d/2 : n - d/2) / d`` with truncation; int64, denominator > 0.

    Source: LiteRT tflite/kernels/internal/reference/integer_ops/pooling.h :: AveragePool
    """
    n, d = np.asarray(numerator, I), np.asarray(denominator, I)
    size = (np.abs(n) + d // 2) // d
    return np.where(n > 0, size, -size)


def floor_divide_half_up(numerator: ArrayLike, denominator: ArrayLike) -> np.ndarray:
    """floor(n / d + 1/2) in integers; int64, denominator > 0."""
    n, d = np.asarray(numerator, I), np.asarray(denominator, I)
    return (2 * n + d) // (2 * d)


def to_codes(values: np.ndarray, zero_point: int, low: int = -128, high: int = 127) -> np.ndarray:
    """Codes: integers (of any dtype) plus the zero point, clamped to [low, high]; int8 where that holds the bounds, else int16."""
    return np.clip(values + zero_point, low, high).astype(code_dtype(low, high))


def code_dtype(low: int, high: int) -> type[np.int8] | type[np.int16]:
    """The narrower of int8 and int16 that holds [low, high]."""
    return np.int8 if low >= -128 and high <= 127 else np.int16


def ceil_log2(x: float) -> int:
    """The least whole n with x <= 2**n, x > 0."""
    fraction, exponent = frexp(x)
    return exponent - 1 if fraction == 0.5 else exponent


# ---------------------------------------------------------------- fixed-point primitives


def quantize_multiplier(effective_scale: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split effective scales into Q31 multiplier and shift.

    Args:
        effective_scale: float64, any shape; finite, not negative.
    Returns: (multiplier, shift), int64, same shape; (0, 0) for scales below 2**-32.
    Raises: QuantizeError: a scale is negative, infinite or NaN, or needs a left shift beyond 31.
    Source: LiteRT tflite/kernels/internal/quantization_util.cc :: QuantizeMultiplier
    """
    scale = np.asarray(effective_scale, np.float64)
    if not (np.isfinite(scale).all() and (scale >= 0).all()):
        raise QuantizeError(f"effective scale {_worst(scale)} has no multiplier", fix="use positive, finite scales")
    fraction, shift = np.frexp(scale)
    multiplier = round_half_away(fraction * 2.0**31).astype(I)
    shift = shift.astype(I)
    full = multiplier == 1 << 31
    multiplier = np.where(full, 1 << 30, multiplier)
    shift = shift + full
    gone = (shift < -31) | (multiplier == 0)
    multiplier, shift = np.where(gone, 0, multiplier), np.where(gone, 0, shift)
    if (shift > 31).any():
        raise QuantizeError(f"effective scale {float(scale.max())} is not below 2**31", fix="widen the output range")
    return multiplier, shift


def _worst(scale: np.ndarray) -> float:
    flat = scale.ravel()
    bad = flat[~(np.isfinite(flat) & (flat >= 0))]
    return float(bad[0])


def srdhm(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Saturating rounding doubling high multiply: int64 arrays holding int32 values, ties towards +inf.

    Source: gemmlowp fixedpoint/fixedpoint.h :: SaturatingRoundingDoublingHighMul
    """
    a, b = np.asarray(a, I), np.asarray(b, I)
    r = (a * b + (1 << 30)) >> 31
    return np.minimum(r, INT32_MAX)  # only INT32_MIN * INT32_MIN exceeds it


def rdbpot(x: ArrayLike, exponent: ArrayLike) -> np.ndarray:
    """x / 2**exponent, ties away from zero; int64, exponent in [0, 62).

    Source: gemmlowp fixedpoint/fixedpoint.h :: RoundingDivideByPOT
    """
    x, n = np.asarray(x, I), np.asarray(exponent, I)
    half = (I(1) << n) >> 1
    return (x + half + np.where(n > 0, x >> 63, 0)) >> n


def rshr(x: ArrayLike, exponent: ArrayLike) -> np.ndarray:
    """x / 2**exponent, ties towards +inf; int64, exponent in [0, 62)."""
    x, n = np.asarray(x, I), np.asarray(exponent, I)
    return (x + ((I(1) << n) >> 1)) >> n


def shift_left(x: ArrayLike, exponent: ArrayLike) -> np.ndarray:
    """x * 2**exponent, exponent >= 0. Raises QuantizeError beyond int32."""
    r = np.asarray(x, I) << np.asarray(exponent, I)
    return check_int32(r, "shifted accumulator")


def check_int32(x: np.ndarray, what: str = "accumulator") -> np.ndarray:
    """``x`` itself. Raises QuantizeError when a value does not fit int32."""
    return check_room(x, INT32_MAX, what)


def check_room(x: np.ndarray, room: int, what: str = "accumulator") -> np.ndarray:
    """``x`` itself. Raises QuantizeError when a value leaves [-room - 1, room], room = 2**(bits - 1) - 1."""
    if x.size:
        low, high = int(x.min()), int(x.max())
        if low < -room - 1 or high > room:
            worst = low if -low > high else high
            raise QuantizeError(
                f"{what} {worst} does not fit {room.bit_length() + 1} bits",
                fix="widen the output range, or lower the bias or the gain of this node",
            )
    return x


def srdhm16(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """The int16 doubling high multiply of hard_swish: nudged by half, then truncated towards zero.

    Source: gemmlowp fixedpoint/fixedpoint.h :: SaturatingRoundingDoublingHighMul(int16)
    """
    product = np.asarray(a, I) * np.asarray(b, I)
    nudged = product + np.where(product >= 0, 1 << 14, 1 - (1 << 14))
    return np.minimum(truncate_shift(nudged, 15), 32767)


def truncate_shift(x: ArrayLike, exponent: int) -> np.ndarray:
    """x / 2**exponent, truncated towards zero (C integer division)."""
    x = np.asarray(x, I)
    return np.where(x >= 0, x >> exponent, -((-x) >> exponent))


def saturate16(x: np.ndarray) -> np.ndarray:
    """Clamp to int16."""
    return np.clip(x, -32768, 32767)


def multiply_quantized(acc: ArrayLike, multiplier: ArrayLike, shift: ArrayLike) -> np.ndarray:
    """REF with a given (multiplier, shift): int64 array in, int64 array out.

    Raises: QuantizeError: ``acc`` or ``acc << shift`` leaves int32.
    Source: LiteRT tflite/kernels/internal/common.cc :: MultiplyByQuantizedMultiplier
    """
    return _double_rounding(acc, multiplier, shift, rdbpot)


def _in_eights(x: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """rshr for whole groups of 8 channels (last axis), rdbpot for the rest."""
    return np.where(_grouped_by_8(x.shape[-1]), rshr(x, exponent), rdbpot(x, exponent))


def _grouped_by_8(channels: int) -> np.ndarray:
    return np.arange(channels) < channels // 8 * 8


_SECOND_ROUNDING: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"REF": rdbpot, "UP2": rshr, "UP2_8": _in_eights}


def _double_rounding(acc: ArrayLike, multiplier: ArrayLike, shift: ArrayLike, second: Callable[..., np.ndarray]) -> np.ndarray:
    acc, shift = check_int32(np.asarray(acc, I)), np.asarray(shift, I)
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    if (shift > 0).any():
        acc = shift_left(acc, left)
    return second(srdhm(acc, multiplier), right)


# ---------------------------------------------------------------- effective scales


def effective_scale(scheme: str, input_scale: float, weight_scale: np.ndarray, output_scale: float) -> np.ndarray:
    """The effective scale per channel in the precision the scheme's runtimes derive it in.

    Returns: float64 (C,), or float32 (C,) for F32E.
    Raises: QuantizeError: F32E scales of 2**8 and more, or not normal, which XNNPACK refuses.
    Source: LiteRT tflite/kernels/kernel_util.cc :: PopulateConvolutionQuantizationParams;
        XNNPACK src/operators/convolution-nhwc.c :: init_requantization_scale
    """
    w = np.asarray(weight_scale, F)
    if scheme != "F32E":
        return np.float64(F(input_scale)) * w.astype(np.float64) / np.float64(F(output_scale))
    with np.errstate(over="ignore", under="ignore"):
        scale = (F(input_scale) * w) / F(output_scale)
    if not ((scale < 256) & (scale >= _SMALLEST_NORMAL)).all():
        worst = float(scale.min()) if (scale < 256).all() else float(scale.max())
        raise QuantizeError(
            f"effective scale {worst} is outside [2**-126, 2**8)", fix="widen the output range, or limit the gains of this node"
        )
    return scale


def float32_product_scale(input_scale: float, weight_scale: float, output_scale: float) -> np.ndarray:
    """The effective scale of a per-tensor fully connected layer: float32 product, float64 quotient; shape (1,).

    Source: LiteRT tflite/kernels/kernel_util.cc :: GetQuantizedConvolutionMultipler
    """
    return np.atleast_1d(np.float64(F(input_scale) * F(weight_scale)) / np.float64(F(output_scale)))


def requantize(acc: ArrayLike, scale: ArrayLike, scheme: str) -> np.ndarray:
    """Bring accumulators to the output grid, before the zero point. Exact; no size limit, no speed either.

    Args:
        acc: integers, any shape; last axis is the output channel when ``scale`` has more than one entry.
        scale: effective scale from :func:`effective_scale` (float32 for F32E).
        scheme: one of SCHEMES.
    Returns: int64, shape of acc, not clamped.
    Raises: QuantizeError: an accumulator, or a shifted one, leaves int32.
    """
    if scheme == "R64":
        return _requantize_64(np.asarray(acc, I), np.asarray(scale, np.float64))
    acc = check_int32(np.asarray(acc, I))
    if scheme == "F32E":
        return round_half_even(acc.astype(F) * np.asarray(scale, F)).astype(I)
    if scheme == "F64":
        return round_half_away(acc.astype(np.float64) * np.asarray(scale, np.float64)).astype(I)
    multiplier, shift = quantize_multiplier(np.asarray(scale, np.float64))
    if scheme in _SECOND_ROUNDING:
        return _double_rounding(acc, multiplier, shift, _SECOND_ROUNDING[scheme])
    if scheme == "ONE":
        # acc * m < 2**62; the right shift is at least 1
        total = 31 - shift
        return (acc * multiplier + (I(1) << (total - 1))) >> total
    raise AssertionError(f"unknown scheme {scheme!r}")


def _requantize_64(acc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """64-bit accumulators (48 bits used) times a multiplier of 15 bits, one rounding, ties towards +inf.

    Source: LiteRT tflite/kernels/internal/common.cc :: MultiplyByQuantizedMultiplier(int64_t)
    """
    multiplier, shift = quantize_multiplier(scale)
    return rshr(acc * multiplier16(multiplier), 15 - shift)


# ---------------------------------------------------------------- fused requantization of float-held accumulators

#: elements handled at a time: the float64 temporaries and constants of one piece stay in a core's second cache
PIECE = 8192

#: (raw accumulators, output codes) of one piece
Piece = Callable[[np.ndarray, np.ndarray], None]


@dataclass(frozen=True, slots=True)
class Requantizer:
    """Turns accumulators held in float arrays into int8 codes, per channel, a piece at a time.

    out = clamp(zero_point + RQ(raw + offset), low, high), where ``raw`` are exact integers.

    Attributes:
        scheme: one of SCHEMES.
        scale: effective scale, (1,) or (C,).
        offset: int64 (C,), added to the raw accumulators.
        zero_point, low, high: of the output.
        bound: no |raw|, |offset| or |raw + offset| exceeds it.
        room: largest |raw + offset| that the runtime holds; 2**21 or more.
        run: the prepared piece function.
    """

    scheme: str
    scale: np.ndarray
    offset: np.ndarray
    zero_point: int
    low: int
    high: int
    bound: int
    room: int
    period: int
    run: Piece | None

    @staticmethod
    def prepare(
        scheme: str, scale: np.ndarray, offset: np.ndarray, zero_point: int, low: int, high: int, bound: int, room: int = INT32_MAX
    ) -> Requantizer:
        """Choose the fastest exact form. Arguments as the attributes."""
        offset = np.asarray(offset, I)
        period = len(offset) * max(1, PIECE // len(offset))
        run = None
        if np.abs(offset).max() < _FLOAT64_LIMIT:
            run = _prepare_float64(scheme, scale, offset, zero_point, low, high, period)
        if scheme == "F32E" and bound < 2**24:
            run = _prepare_float32(scale, offset, zero_point, low, high, period)
        return Requantizer(scheme, scale, offset, zero_point, low, high, bound, room, period, run)

    def __call__(self, raw: np.ndarray, out: np.ndarray) -> None:
        """raw: float32 or float64, 1-D, channels last and contiguous; clobbered. out: int8, same length."""
        fast = self.run is not None
        if fast and self.bound >= _FLOAT64_LIMIT and not (self.scheme == "F32E" and self.bound < 2**24):
            # not proved from the weights: look at the values themselves (offset was checked when prepared)
            fast = raw.size == 0 or max(-float(raw.min()), float(raw.max())) < _FLOAT64_LIMIT
        for start in range(0, raw.size, self.period):
            piece = raw[start : start + self.period]
            if fast:
                self.run(piece, out[start : start + self.period])  # type: ignore[misc]
            else:
                acc = piece.astype(I).reshape(-1, len(self.offset)) + self.offset
                if self.room < INT32_MAX:
                    check_room(acc, self.room)
                codes = to_codes(requantize(acc, self.scale, self.scheme), self.zero_point, self.low, self.high)
                out[start : start + self.period] = codes.ravel()


#: |raw| and |offset| below this make every product with a 31-bit multiplier, and the sum of two, exact in float64
_FLOAT64_LIMIT = 2**21


def _tile(values: np.ndarray, period: int, dtype: type) -> np.ndarray:
    """Per-channel values repeated to a whole piece; one value stays a scalar array."""
    values = np.asarray(values, dtype)
    if values.size == 1 or (values == values[0]).all():
        return values[:1].reshape(())
    return np.tile(values, period // len(values))


def _cut(constant: np.ndarray, size: int) -> np.ndarray:
    return constant if constant.ndim == 0 else constant[:size]


def _store(v: np.ndarray, low: float | np.floating, high: float | np.floating, zero_point: float | np.floating, out: np.ndarray) -> None:
    """Clamp, round half to even, add the zero point, store as codes; ``v`` is clobbered."""
    np.maximum(v, low, out=v)
    np.minimum(v, high, out=v)
    np.rint(v, out=v)
    np.add(v, zero_point, out=v)
    np.copyto(out, v, casting="unsafe")


def _prepare_float32(scale: np.ndarray, offset: np.ndarray, zero_point: int, low: int, high: int, period: int) -> Piece:
    """F32E where |raw + offset| < 2**24: float32 holds it exactly, as the runtime's own conversion does."""
    add, times = _tile(offset, period, F), _tile(scale, period, F)
    # clamping before rounding is the same: the bounds are integers
    low32, high32, zero32 = F(low - zero_point), F(high - zero_point), F(zero_point)

    def run(raw: np.ndarray, out: np.ndarray) -> None:
        size = raw.size
        v = raw if raw.dtype == F else raw.astype(F)  # exact: below 2**24
        np.add(v, _cut(add, size), out=v)
        np.multiply(v, _cut(times, size), out=v)
        _store(v, low32, high32, zero32, out)

    return run


def _prepare_float64(scheme: str, scale: np.ndarray, offset: np.ndarray, zero_point: int, low: int, high: int, period: int) -> Piece | None:
    """The integer schemes in float64, exact for |raw|, |offset| < 2**21; None where no such form is proved.

    REF, UP2: (raw*m + offset*m + 2**30) * 2**-31 has at most 31 fraction bits and stays below 2**22, so products
    and sums are exact and floor gives t = srdhm exactly. Then t * 2**-n * (1 + 2**-40) moves an exact tie away
    from zero and nothing else (other values lie 2**-n or more from a tie, and |t| < 2**40): rint gives rdbpot.
    """
    low64, high64, zero64 = float(low - zero_point), float(high - zero_point), float(zero_point)
    if scheme == "F32E":
        add32, times32 = _tile(offset, period, np.float64), _tile(scale, period, F)

        def run_f32e(raw: np.ndarray, out: np.ndarray) -> None:
            v = np.add(raw, _cut(add32, raw.size), dtype=np.float64).astype(F)  # one rounding, as int32 -> float32
            np.multiply(v, _cut(times32, raw.size), out=v)
            np.rint(v, out=v)
            np.clip(v, F(low64), F(high64), out=v)
            np.copyto(out, v + F(zero64), casting="unsafe")

        return run_f32e
    if scheme == "F64":
        add, times = _tile(offset, period, np.float64), _tile(scale, period, np.float64)

        def run_f64(raw: np.ndarray, out: np.ndarray) -> None:
            v = np.add(raw, _cut(add, raw.size), dtype=np.float64)
            np.multiply(v, _cut(times, raw.size), out=v)
            v = round_half_away(v)
            np.clip(v, low64, high64, out=v)
            np.copyto(out, v + zero64, casting="unsafe")

        return run_f64
    if scheme not in _SECOND_ROUNDING:
        return None
    multiplier, shift = quantize_multiplier(np.broadcast_to(scale, offset.shape))
    if (shift > 0).any():
        return None
    m = multiplier.astype(np.float64) * 2.0**-31
    first = _tile(m, period, np.float64)
    constant = _tile(offset * m + 0.5, period, np.float64)
    up = {"REF": np.zeros(1, bool), "UP2": np.ones(1, bool), "UP2_8": _grouped_by_8(len(offset))}[scheme]
    exponent = shift.astype(np.int32)
    second = _tile(np.ldexp(np.where(up, 1.0, 1.0 + 2.0**-40), exponent), period, np.float64)
    # UP2: t * 2**-n + 2**-(n+1) moves ties up and crosses no other (they lie 2**-n or more away)
    steps = np.where(up & (shift < 0), np.ldexp(0.5, exponent), 0.0)
    nudge = _tile(steps, period, np.float64) if steps.any() else None

    def run(raw: np.ndarray, out: np.ndarray) -> None:
        size = raw.size
        v = np.multiply(raw, _cut(first, size), dtype=np.float64)
        np.add(v, _cut(constant, size), out=v)
        np.floor(v, out=v)
        np.multiply(v, _cut(second, size), out=v)
        if nudge is not None:
            np.add(v, _cut(nudge, size), out=v)
        _store(v, low64, high64, zero64, out)

    return run


# ---------------------------------------------------------------- activation bounds


def activation_code(value: float, scale: float, zero_point: int, rule: str) -> int:
    """The code of one real activation bound, not clamped for TFLITE.

    Args:
        rule: "TFLITE": z + HAZ(f32(value / s)); "XNN": RNE(f32(f32(value / s) + z)) clipped to int8.
    Source: LiteRT tflite/kernels/kernel_util.cc :: CalculateActivationRangeQuantizedImpl;
        XNNPACK src/xnnpack/requantization.h :: xnn_qs8_quantize
    """
    ratio = F(value) / F(scale)
    if rule == "XNN":
        return int(np.rint(np.clip(F(ratio + F(zero_point)), F(-128), F(127))))
    return zero_point + int(round_half_away(np.clip(ratio, F(-(2**30)), F(2**30))))


def activation_bounds(
    low: float, high: float, scale: float, zero_point: int, rule: str, codes: tuple[int, int] = (-128, 127)
) -> tuple[int, int]:
    """Inclusive code bounds of a clamp to [low, high]; infinite reals mean no bound.

    Args:
        codes: the bounds of the dtype; "XNN" knows int8 alone.
    Raises: QuantizeError: the bounds leave no code.
    """
    least, most = codes
    q_low = least if low == -np.inf else max(least, activation_code(low, scale, zero_point, rule))
    q_high = most if high == np.inf else min(most, activation_code(high, scale, zero_point, rule))
    if q_low > q_high:
        raise QuantizeError(
            f"clamp to [{low}, {high}] leaves no code at scale {scale}, zero point {zero_point}",
            fix="choose an output range that meets the clamp",
        )
    return q_low, q_high


# ---------------------------------------------------------------- float <-> code


def quantize_codes(x: np.ndarray, scale: float, zero_point: int, rule: str, codes: tuple[int, int] = (-128, 127)) -> np.ndarray:
    """float32 values to codes.

    Args:
        x: float32, any shape, finite.
        rule: "HAZ" clamp(HAZ(f32(x / s)) + z); "RNE" clamp(RNE(f32(x * f32(1 / s))) + z);
            "HAZ64" clamp(HAZ(f64(x) / f64(s)) + z); "HAZ_RECIPROCAL" clamp(HAZ(f32(x * f32(1 / s))) + z).
        codes: the bounds of the dtype, int8's or int16's.
    Raises: QuantizeError: x is not finite, or (all but RNE) x / s leaves int32.
    Source: LiteRT tflite/kernels/internal/reference/quantize.h, optimized/optimized_ops.h :: AffineQuantize;
        XNNPACK src/f32-qs8-vcvt
    """
    x = np.asarray(x, F)
    v: np.ndarray
    largest = float(max(-x.min(), x.max())) if x.size else 0.0
    if not np.isfinite(largest):
        raise QuantizeError("the input holds NaN or infinity, which has no code", fix="feed finite values")
    if rule == "RNE":
        with np.errstate(over="ignore"):
            v = x * (F(1) / F(scale))
        v = np.clip(v, F(8 * codes[0]), F(8 * codes[1]), out=v)  # far outside the codes, so the clamp below decides the same
        np.rint(v, out=v)
    elif rule in ("HAZ", "HAZ64", "HAZ_RECIPROCAL"):
        if largest / scale >= 2**31 - 256:
            raise QuantizeError(f"input value {largest} is beyond 32 bits at scale {scale}", fix="feed values within the calibrated range")
        if rule == "HAZ_RECIPROCAL":
            v = x * (F(1) / F(scale))
        else:
            v = x / F(scale) if rule == "HAZ" else x.astype(np.float64) / np.float64(F(scale))
        v = round_half_away(v)
    else:
        raise AssertionError(f"unknown rule {rule!r}")
    np.clip(v, codes[0] - zero_point, codes[1] - zero_point, out=v)
    return (v + v.dtype.type(zero_point)).astype(code_dtype(*codes))


# ---------------------------------------------------------------- gemmlowp functions, vectorised


def _rescale(x: ArrayLike, exponent: int) -> np.ndarray:
    """x * 2**exponent: saturating to the left, rounding (ties away) to the right."""
    if exponent > 0:
        return np.clip(np.asarray(x, I) << exponent, INT32_MIN, INT32_MAX)
    return rdbpot(x, -exponent) if exponent < 0 else np.asarray(x, I)


_EXP_STEPS = (  # (k, Q0.31 of exp(-2**k))
    (-2, 1672461947),
    (-1, 1302514674),
    (0, 790015084),
    (1, 290630308),
    (2, 39332535),
    (3, 720401),
    (4, 242),
)


def exp_on_negative_values(a: ArrayLike, integer_bits: int) -> np.ndarray:
    """exp(a) for a <= 0 in Q(integer_bits).(31-integer_bits), as Q0.31. int64 array of any shape.

    Source: gemmlowp fixedpoint/fixedpoint.h :: exp_on_negative_values
    """
    a = np.asarray(a, I)
    fraction_bits = 31 - integer_bits
    quarter = 1 << (fraction_bits - 2)
    a_mod = (a & (quarter - 1)) - quarter
    x = _rescale(a_mod, integer_bits) + (1 << 28)
    x2 = srdhm(x, x)
    x3, x4 = srdhm(x2, x), srdhm(x2, x2)
    t = _rescale(srdhm(_rescale(x4, -2) + x3, 715827883) + x2, -1)
    result = np.minimum(1895147668 + srdhm(1895147668, x + t), INT32_MAX)
    remainder = a_mod - a
    for k, constant in _EXP_STEPS:
        if integer_bits > k:
            bit = remainder & (1 << (fraction_bits + k))
            result = np.where(bit != 0, srdhm(result, constant), result)
    return np.where(a == 0, INT32_MAX, result)


def _newton(half_denominator: np.ndarray) -> np.ndarray:
    """Q2.29 of 1 / half_denominator (Q0.31 in [0.5, 1))."""
    x = 1515870810 + srdhm(half_denominator, -1010580540)
    for _ in range(3):
        x = x + _rescale(srdhm(x, (1 << 29) - srdhm(half_denominator, x)), 2)
    return x


def _half_sum_with_one(a: ArrayLike) -> np.ndarray:
    """(a + 1) / 2 in Q0.31, ties away from zero."""
    s = np.asarray(a, I) + INT32_MAX
    return np.where(s >= 0, (s + 1) // 2, -((1 - s) // 2))


def one_over_one_plus_x(a: ArrayLike) -> np.ndarray:
    """1 / (1 + a) for a in [0, 1), Q0.31. Source: gemmlowp :: one_over_one_plus_x_for_x_in_0_1"""
    return _rescale(_newton(_half_sum_with_one(a)), 1)


def one_minus_x_over_one_plus_x(a: np.ndarray) -> np.ndarray:
    """(1 - a) / (1 + a) for a in [0, 1), Q0.31. Source: gemmlowp :: one_minus_x_over_one_plus_x_for_x_in_0_1"""
    return _rescale(_newton(_half_sum_with_one(a)) - (1 << 29), 2)


def logistic_fixed(x: ArrayLike) -> np.ndarray:
    """Q0.31 logistic of Q4.27 values. Source: gemmlowp :: logistic"""
    x = np.asarray(x, I)
    positive = one_over_one_plus_x(exp_on_negative_values(-np.abs(x), 4))
    result = np.where(x > 0, positive, INT32_MAX - positive)
    return np.where(x == 0, 1 << 30, result)


def tanh_fixed(x: ArrayLike) -> np.ndarray:
    """Q0.31 tanh of Q4.27 values. Source: gemmlowp :: tanh"""
    x = np.asarray(x, I)
    # doubling a Q4.27 value exactly is reading the same bits as Q5.26
    size = one_minus_x_over_one_plus_x(exp_on_negative_values(-np.abs(x), 5))
    return np.where(x == 0, 0, np.where(x < 0, -size, size))


def bit_length(x: ArrayLike) -> np.ndarray:
    """Number of bits of non-negative integers below 2**53; int64."""
    return np.frexp(np.asarray(x, np.float64))[1].astype(I)


def reciprocal(x: ArrayLike, integer_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """1 / x of Q(integer_bits) values x > 0: (Q0.31 fraction, number of bits over the unit).

    Source: LiteRT tflite/kernels/internal/common.h :: GetReciprocal
    """
    headroom = 32 - bit_length(x)
    fraction = (np.asarray(x, I) << headroom) - (1 << 31)
    return one_over_one_plus_x(fraction), integer_bits - headroom


def integer_bits_radius(integer_bits: int, shift: int, total_bits: int = 31) -> int:
    """Largest code distance whose rescaled value still fits ``integer_bits``.

    Source: LiteRT tflite/kernels/internal/quantization_util.cc :: CalculateInputRadius
    """
    return int(np.floor(((1 << integer_bits) - 1) * 2.0 ** (total_bits - integer_bits) / 2.0**shift))


def softmax_multiplier(scale: float, beta: float) -> tuple[int, int]:
    """(multiplier, shift) from differences of codes to Q5.26.

    Source: LiteRT tflite/kernels/internal/quantization_util.cc :: PreprocessSoftmaxScaling
    """
    m, e = quantize_multiplier(min(float(np.float64(beta) * np.float64(F(scale))) * 2.0**26, 2.0**31 - 1))
    return int(m), int(e)


def softmax_exponentials(scale: float, beta: float) -> np.ndarray:
    """int64 (256,): entry d is exp(-beta * scale * d) as Q0.31, 0 where TFLite leaves a code d below its row's largest out.

    Source: LiteRT tflite/kernels/internal/reference/softmax.h :: Softmax
    """
    multiplier, shift = softmax_multiplier(scale, beta)
    below = np.arange(256, dtype=I)
    kept = below <= integer_bits_radius(5, shift)
    # excluded entries take 0 so that the shift can't overflow on their account
    return np.where(kept, exp_on_negative_values(multiply_quantized(np.where(kept, -below, 0), multiplier, shift), 5), 0)


def softmax_fixed(codes: np.ndarray, scale: float, beta: float) -> np.ndarray:
    """int8 softmax over the last axis, output scale 1/256 and zero point -128.

    Args:
        codes: int8, any shape.
    Raises: QuantizeError: a row's exponentials, relative to its largest, sum to 512 or more; LiteRT 2.3 and TFLite
        Micro abort there, tflite-runtime 2.14 shifts by the register's width.
    Source: LiteRT tflite/kernels/internal/reference/softmax.h :: Softmax
    """
    q = codes.astype(I)
    e = softmax_exponentials(scale, beta)[q.max(-1, keepdims=True) - q]
    inverse, bits = reciprocal(rdbpot(e, 12).sum(-1, keepdims=True), 12)
    if (bits + 23 > 31).any():
        raise RuntimeLimitError(
            f"softmax over {codes.shape[-1]} entries this flat: the exponentials of a row sum to 512 or more, where the runtime fails",
            fix="leave the softmax out of the network, or take a runtime with the XNNPACK delegate",
        )
    return to_codes(rdbpot(srdhm(inverse, e), bits + 23), -128)


def softmax_float_lut(codes: np.ndarray, scale: float, beta: float, output_scale: float, zero_point: int) -> np.ndarray:
    """int8 softmax of TFLite's optimised kernels: float32 table of exponentials, sequential float32 sum.

    Source: LiteRT tflite/kernels/internal/optimized/optimized_ops.h :: Softmax (float look-up form)
    """
    step = F(-F(scale) * F(beta))
    table = np.exp((step * np.arange(256, dtype=F)).astype(np.float64)).astype(F)
    q = codes.astype(I)
    e = table[q.max(-1, keepdims=True) - q]
    total = np.add.accumulate(e, axis=-1, dtype=F)[..., -1:]  # in order, one rounding per term
    inverse = F(1) / (total * F(output_scale))
    return to_codes(round_half_away(e * inverse).astype(I), zero_point)


def softmax_lut16(codes: np.ndarray, scale: float, beta: float, output_scale: float, zero_point: int) -> np.ndarray:
    """int8 softmax of TFLite's optimised kernels on 64-bit ARM: 16-bit table of exponentials, integer sum.

    Source: LiteRT tflite/kernels/internal/optimized/optimized_ops.h :: SoftmaxInt8LUT
    """
    step = F(scale) * F(beta)
    exponentials = np.exp((step * -np.arange(256, dtype=F)).astype(np.float64)).astype(F)
    table = np.minimum((exponentials * F(65535)).astype(np.float64) + 0.5, 65535).astype(I)
    q = codes.astype(I)
    e = table[q.max(-1, keepdims=True) - q]
    inverse = F(1) / (e.sum(-1, keepdims=True).astype(F) * F(output_scale))
    return to_codes(multiply_quantized(e, *quantize_multiplier(inverse.astype(np.float64))), zero_point)


#: fraction bits of the integer softmax table; 2**20 * 2**11 entries still fit int32
SOFTMAX_TABLE_BITS = 20


def softmax_table(scale: float, beta: float) -> np.ndarray:
    """The exponentials of the integer softmax: int32 (256,), entry d = RNE(2**20 * exp(-beta * scale * d)).

    d is the distance of a code below its row's largest code.
    """
    d = np.arange(256, dtype=np.float64)
    return np.rint(np.exp(-np.float64(beta) * np.float64(F(scale)) * d) * 2.0**SOFTMAX_TABLE_BITS).astype(np.int32)


def softmax_integer_table(codes: np.ndarray, scale: float, beta: float) -> np.ndarray:
    """int8 softmax over the last axis from :func:`softmax_table`: floor(256*t/sum + 1/2) - 128, clamped.

    Output scale 1/256, zero point -128. At most 2048 entries per row, so that sums fit int32.
    """
    if codes.shape[-1] > 2048:
        raise QuantizeError(f"softmax over {codes.shape[-1]} entries exceeds 2048", fix="use a target with its own softmax kernel")
    q = codes.astype(I)
    t = softmax_table(scale, beta).astype(I)[q.max(-1, keepdims=True) - q]
    return to_codes(floor_divide_half_up(256 * t, t.sum(-1, keepdims=True)), -128)


# ---------------------------------------------------------------- element-wise pairs


@dataclass(frozen=True, slots=True)
class LeftShiftAdd:
    """Parameters of the left-shift-20 addition: one (multiplier, shift) per operand and for the sum."""

    first: tuple[int, int]
    second: tuple[int, int]
    output: tuple[int, int]


def left_shift_add_params(scale1: float, scale2: float, output_scale: float) -> LeftShiftAdd:
    """Parameters of ADD and SUB in TFLite and TFLite Micro.

    Raises: QuantizeError: max(scale1, scale2) / output_scale reaches 2**19, where runtimes abort.
    Source: LiteRT tflite/kernels/add.cc :: PrepareGeneralSubOp..; tflite-micro kernels/sub_common.cc
    """
    s1, s2, so = (np.float64(F(v)) for v in (scale1, scale2, output_scale))
    twice = 2 * max(s1, s2)
    sum_scale = twice / (float(1 << 20) * so)
    if not sum_scale < 1:
        raise QuantizeError(
            f"input scale {float(max(s1, s2))} is 2**19 or more times the output scale {float(so)}", fix="widen the output range"
        )
    pairs = (quantize_multiplier(float(v)) for v in (s1 / twice, s2 / twice, sum_scale))
    a, b, c = ((int(m), int(e)) for m, e in pairs)
    return LeftShiftAdd(a, b, c)


def left_shift_add(x: ArrayLike, y: ArrayLike, params: LeftShiftAdd, sign: int) -> np.ndarray:
    """x, y: int64 codes less their zero points, broadcast together; sign +1 or -1. int64, before the zero point.

    Source: LiteRT tflite/kernels/internal/reference/integer_ops/add.h
    """
    a = multiply_quantized(np.asarray(x, I) << 20, *params.first)
    b = multiply_quantized(np.asarray(y, I) << 20, *params.second)
    return multiply_quantized(a + sign * b, *params.output)


@dataclass(frozen=True, slots=True)
class Q20Add:
    """Parameters of XNNPACK's addition: integer factors per operand and the common shift."""

    first: int
    second: int
    shift: int


def q20_add_params(scale1: float, scale2: float, output_scale: float) -> Q20Add | None:
    """Parameters of XNNPACK's add and subtract; None outside its window [2**-10, 2**8) of scale ratios.

    Source: XNNPACK src/microparams-init.c :: xnn_init_qs8_add_minmax_scalar_params
    """
    a, b = F(scale1) / F(output_scale), F(scale2) / F(output_scale)
    if not all(2.0**-10 <= v < 2.0**8 for v in (float(a), float(b))):
        return None
    shift = 20 - (frexp(float(max(a, b)))[1] - 1)
    first, second = (int(np.rint(np.ldexp(np.float64(v), shift))) for v in (a, b))
    return Q20Add(first, second, shift)


def q20_add(x: ArrayLike, y: ArrayLike, params: Q20Add, sign: int) -> np.ndarray:
    """x, y: int64 codes less their zero points. int64, before the zero point; ties towards +inf."""
    return rshr(params.first * np.asarray(x, I) + sign * params.second * np.asarray(y, I), params.shift)


def rndnu(product: ArrayLike, scale: float) -> np.ndarray:
    """XNNPACK's multiply requantization on ARM: truncating doubling multiply, ties towards +inf.

    Args:
        product: int64; scale: float32-exact, in [2**-16, 2**8).
    Source: XNNPACK src/microparams-init.c :: xnn_init_qs8_mul_minmax_rndnu_neon_params
    """
    bits = int(np.asarray(scale, F).view(np.int32))
    mantissa = (bits & 0x7FFFFF) | 0x800000
    shift = 127 + 31 - 32 - (bits >> 23)
    post = max(shift, 1)
    pre = shift - post
    v = (2 * (np.asarray(product, I) << -pre) * (mantissa << 7)) >> 32
    return rshr(v, post)


def q8_multiplier(scale: float | np.float32) -> int:
    """RNE(256 * scale), XNNPACK's 8-bit fraction multiplier."""
    return int(np.rint(F(256) * F(scale)))


def q8_multiply(x: ArrayLike, multiplier: np.ndarray | int) -> np.ndarray:
    """x * multiplier / 256, ties towards +inf; int64."""
    return rshr(np.asarray(x, I) * multiplier, 8)


@dataclass(frozen=True, slots=True)
class WideAdd:
    """Parameters of an addition with a 16-bit result: integer factors per operand, the float32-exact scale of their sum, and
    its effective scale to the output."""

    first: int
    second: int
    unit: float
    scale: np.float64


#: no operand, times its factor, exceeds this, so that two of them stay below 2**30
WIDE_REACH = 2**28


def wide_add_params(scale1: float, reach1: int, scale2: float, reach2: int, output_scale: float) -> WideAdd:
    """Factors in proportion to the operands' scales, as large as WIDE_REACH lets them be: an 8-bit operand's steps are far
    wider than a 16-bit one's, and a common limit would leave the latter a factor of a few bits.

    Args:
        reach1, reach2: the largest size of a code less its zero point.
    """
    unit = F(max(scale1 * reach1, scale2 * reach2)) / F(WIDE_REACH)
    first, second = (int(np.rint(np.float64(F(s)) / np.float64(unit))) for s in (scale1, scale2))
    return WideAdd(first, second, float(unit), np.float64(unit) / np.float64(F(output_scale)))


def wide_add(x: ArrayLike, y: ArrayLike, params: WideAdd, sign: int) -> np.ndarray:
    """The sum before requantization by ``params.scale``. x, y: codes less their zero points, at most 16 bits; int64."""
    return params.first * np.asarray(x, I) + sign * params.second * np.asarray(y, I)


# ---------------------------------------------------------------- reductions


def mean_ref(total: ArrayLike, count: int, input_scale: float, input_zero_point: int, output_scale: float) -> np.ndarray:
    """TFLite's integer mean of ``count`` codes summed in ``total``; int64, before the output zero point."""
    return multiply_quantized(np.asarray(total, I) - input_zero_point * count, *mean_multiplier(count, input_scale, output_scale))


def mean_multiplier(count: int, input_scale: float, output_scale: float) -> tuple[int, int]:
    """(multiplier, shift) from a sum of ``count`` codes to their mean; the division truncates the multiplier.

    Source: LiteRT tflite/kernels/internal/reference/reduce.h :: QuantizedMeanOrSum
    """
    m, e = (int(v) for v in quantize_multiplier(np.float64(F(input_scale)) / np.float64(F(output_scale))))
    shift = min(count.bit_length() - 1, 32, 31 + e)
    return (m << shift) // count, e - shift


def sum_ref(total: ArrayLike, count: int, input_scale: float, input_zero_point: int, output_scale: float) -> np.ndarray:
    """TFLite's integer sum; int64, before the output zero point. Source: as mean_ref"""
    m, e = quantize_multiplier(np.float64(F(input_scale)) / np.float64(F(output_scale)))
    return multiply_quantized(np.asarray(total, I) - input_zero_point * count, m, e)


def reduction_scale(input_scale: float, output_scale: float, count: int) -> np.float64:
    """The effective scale of a sum of codes (count 1) or of their mean over ``count``, for the single-rounding reductions."""
    return np.float64(F(input_scale)) / (np.float64(F(output_scale)) * count)


def mean_xnn(
    total: np.ndarray, count: int, input_scale: float, input_zero_point: int, output_scale: float, zero_point: int, *, fused: bool = False
) -> np.ndarray:
    """XNNPACK's mean, zero point included (it is added in float32); float32 integers, not clamped.

    Args:
        fused: products and sums are rounded once together, as a compiler for ARM may decide.
    Source: XNNPACK src/operators/reduce-nd.c
    """
    return _reduce_xnn(total, count, (F(input_scale) / F(output_scale)) * (F(1) / F(count)), input_zero_point, zero_point, fused)


def sum_xnn(
    total: np.ndarray, count: int, input_scale: float, input_zero_point: int, output_scale: float, zero_point: int, *, fused: bool = False
) -> np.ndarray:
    """XNNPACK's sum; as mean_xnn, without the division. Source: XNNPACK src/operators/reduce-nd.c"""
    return _reduce_xnn(total, count, F(input_scale) / F(output_scale), input_zero_point, zero_point, fused)


def _reduce_xnn(total: np.ndarray, count: int, scale: np.float32, input_zero_point: int, zero_point: int, fused: bool) -> np.ndarray:
    multiply_add = fused_multiply_add if fused else lambda a, b, c: a * b + c
    bias = multiply_add(F(-count * input_zero_point), scale, F(zero_point))
    return np.rint(multiply_add(total.astype(np.int32).astype(F), scale, bias))


def fused_multiply_add(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> np.ndarray:
    """a * b + c of float32 values, rounded once to float32, ties to even; exact for results in the normal range.

    The product is exact in float64. The sum is rounded to odd there (Boldo and Melquiond, 2008), so that rounding it again gives
    what one rounding gives.
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    addend = np.asarray(c, np.float64)
    total = np.atleast_1d(product + addend)
    part = total - product
    error = (product - (total - part)) + (addend - part)  # of the sum, exact (Knuth's TwoSum)
    even = (total.view(I) & 1) == 0
    odd = np.where((error != 0) & even, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
    return odd.astype(F).reshape(np.broadcast_shapes(product.shape, addend.shape))


def mean_optimised(
    total: np.ndarray, count: int, input_scale: float, input_zero_point: int, output_scale: float, zero_point: int
) -> np.ndarray:
    """TFLite's optimised 4-D mean over height and width; int64, zero point included, not clamped.

    Args:
        total: (..., C): whole groups of 16 channels round the second time half up, the rest as REF.
    Source: LiteRT tflite/kernels/internal/optimized/integer_ops/mean.h
    """
    scale = np.float64(F(input_scale) / (F(count) * F(output_scale)))
    shifted = F(F(input_zero_point) * F(input_scale)) / F(output_scale)
    bias = zero_point - int(round_half_away(shifted))
    main = total.shape[-1] // 16 * 16
    head = requantize(total[..., :main], scale, "UP2")
    tail = requantize(total[..., main:], scale, "REF")
    return np.concatenate([head, tail], -1) + bias


# ---------------------------------------------------------------- bilinear interpolation

Coordinates = tuple[np.ndarray, np.ndarray, np.ndarray]


def bilinear_q10(size_in: int, size_out: int, align_corners: bool, half_pixel: bool) -> Coordinates:
    """(lower index, upper index, Q10 weight of upper) per output position.

    Source: LiteRT tflite/kernels/internal/reference/resize_bilinear.h :: ResizeBilinearInteger
    """
    if align_corners and size_out > 1:
        scale = (1024 * (size_in - 1) + (size_out - 1) // 2) // (size_out - 1)
    else:
        scale = (1024 * size_in + size_out // 2) // size_out
    position = np.arange(size_out, dtype=I) * scale
    if half_pixel:
        position = position + scale // 2 - 512
    low = np.maximum(truncate_shift(position, 10), 0)
    high = np.minimum(truncate_shift(position + 1023, 10), size_in - 1)
    return low, high, position - 1024 * low


def bilinear_combine_q10(top: tuple, bottom: tuple, wy: np.ndarray, wx: np.ndarray) -> np.ndarray:
    """Weighted sum of four corner codes with Q10 weights, ties away from zero; int64."""
    top_row = top[0] * (1024 - wx) + top[1] * wx
    bottom_row = bottom[0] * (1024 - wx) + bottom[1] * wx
    total = top_row * (1024 - wy) + bottom_row * wy
    return truncate_shift(total + np.where(total > 0, 1 << 19, -(1 << 19)), 20)


def bilinear_q11(size_in: int, size_out: int, align_corners: bool, half_pixel: bool) -> Coordinates:
    """(lower index, upper index, Q11 weight of upper) per output position, float32 coordinates.

    Source: XNNPACK src/indirection.c :: xnn_indirection_init_resize_bilinear2d_hwc_q11
    """
    if align_corners and size_out > 1:
        scale = F(size_in - 1) / F(size_out - 1)
    else:
        scale = F(size_in) / F(size_out)
    position = np.arange(size_out, dtype=F) * scale
    last = F(size_in - 1)
    if half_pixel and not align_corners:
        position = np.minimum(np.maximum(position + (F(0.5) * scale - F(0.5)), F(0)), last)
    else:
        position = np.minimum(position, last)
    low = position.astype(I)
    high = np.minimum(low + 1, size_in - 1)
    return low, high, np.rint((position - low.astype(F)) * F(2048)).astype(I)


def bilinear_combine_q11(top: tuple, bottom: tuple, wy: np.ndarray, wx: np.ndarray) -> np.ndarray:
    """Corner codes with Q11 weights, ties towards +inf; int64."""
    t = (top[0] << 11) + (top[1] - top[0]) * wx
    b = (bottom[0] << 11) + (bottom[1] - bottom[0]) * wx
    return rshr((t << 11) + (b - t) * wy, 22)


# ---------------------------------------------------------------- inverse square root


def inverse_square_root(x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """(Q31 multiplier, right shift) of 1 / sqrt(x): int64 arrays, x an integer array in [0, 2**31).

    Source: LiteRT tflite/kernels/internal/quantization_util.h :: GetInvSqrtQuantizedMultiplierExp
    """
    v = np.asarray(x, I)
    small = v <= 1
    v = np.where(small, 4, v)
    shift = np.full(v.shape, 11, I)
    while (high := v >= 1 << 29).any():
        v, shift = np.where(high, v // 4, v), shift + high
    pairs = (31 - bit_length(v)) // 2 - 1  # left shifts by two bits that leave two bits of headroom
    shift, v = shift - pairs, v << (2 * pairs)
    half = _rescale(v >> 1, -1)
    r = np.full(v.shape, 1 << 28, I)
    for _ in range(5):
        cube = _rescale(srdhm(srdhm(r, r), r), 6)
        r = _rescale(srdhm((1 << 28) + (1 << 27), r) - srdhm(half, cube), 3)
    r = srdhm(r, 1518500250)  # sqrt(2) / 2
    left = np.maximum(-shift, 0)
    r, shift = r << left, np.maximum(shift, 0)
    return np.where(small, INT32_MAX, r), np.where(small, 0, shift)


# ---------------------------------------------------------------- hard_swish


def hard_swish_ref(
    codes: np.ndarray, input_scale: float, input_zero_point: int, output_scale: float, *, half_up: bool = False
) -> np.ndarray:
    """TFLite's int8 hard_swish; int64, before the output zero point.

    Args:
        half_up: divisions round halves towards +inf and the product is floored, as ARM's vector instructions do; else
            halves go away from zero and the product is truncated.
    Raises: QuantizeError: the output scale is below input scale / 128, which runtimes refuse.
    Source: LiteRT tflite/kernels/internal/reference/hard_swish.h, optimized/optimized_ops.h :: HardSwish;
        activations.cc :: HardSwishPrepare
    """
    divide = rshr if half_up else rdbpot
    high_res = F(input_scale) * F(1.0 / 128.0)
    m_out, e_out = (int(v) for v in quantize_multiplier(np.float64(high_res / F(output_scale))))
    if e_out > 0:
        raise QuantizeError(f"hard_swish: output scale {output_scale} is below input scale / 128", fix="widen the output range")
    m_relu, e_relu = (int(v) for v in quantize_multiplier(np.float64(high_res / F(3.0 / 32768.0))))
    m_out16, m_relu16 = (multiplier16(m) for m in (m_out, m_relu))
    v = (np.asarray(codes, I) - input_zero_point) << 7
    pre = srdhm16(v, m_out16)
    r = saturate16(v << (e_relu - 1)) if e_relu > 0 else v
    r = srdhm16(r, m_relu16)
    if e_relu > 0:
        r = saturate16(r << 1)
    elif e_relu < 0:
        r = divide(r, -e_relu)
    product = ((r + 32768) >> 1) * pre
    return divide(product >> 15 if half_up else truncate_shift(product, 15), -e_out)


def multiplier16(multiplier: ArrayLike) -> np.ndarray:
    """A Q31 multiplier rounded to Q15."""
    m = np.asarray(multiplier, I)
    return np.where(m >= INT32_MAX - (1 << 15), 32767, (m + (1 << 15)) >> 16)
