"""Exact integer meanings of every op that carries no weights; weighted ones are in ``weighted.py``.

Each function has the signature (arrays, attrs, in_types, out_types, numerics) -> tuple of arrays, and looks up
the named rule of its op in ``numerics``. Unary int8 ops are computed once for the 256 codes and looked up;
binary ones on large arrays likewise for the 65536 pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from qwtv2_edge import fixedpoint as fp
from qwtv2_edge.errors import GraphError
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.numerics import Numerics, wide_key
from qwtv2_edge.ops import kernels
from qwtv2_edge.ops.spec import ACTIVATIONS, Arrays, Types

F = np.float32
I = np.int64  # noqa: E741

#: from this many output elements on, a binary op looks its 65536 pairs up
PAIR_TABLE_SIZE = 8192

Result = tuple[np.ndarray, ...]


def typed_key(op: str, *types: TensorType) -> str:
    """The key of ``op`` in a table of rules: marked where 16-bit activations take part."""
    return wide_key(op) if any(t.dtype == "int16" for t in types) else op


def rule_of(op: str, table: dict[str, Any], numerics: Numerics) -> Any:
    """The entry of ``table`` that ``numerics`` names for ``op``. Raises GraphError for a rule that is not there."""
    rule = numerics.rule(op)
    if rule not in table:
        said = f"says {rule!r}" if rule else "names none"
        raise GraphError(f"numerics '{numerics.name}' {said} for {op}", fix=f"one of: {', '.join(table)}; or a runtime that executes {op}")
    return table[rule]


# ---------------------------------------------------------------- look-up tables

#: every int8 code, in the order of its byte: 0..127, -128..-1
CODES = np.arange(256, dtype=np.uint8).view(np.int8)


def look_up(table: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """table[byte of each code]; table has 256 entries in the order of CODES."""
    return np.take(table, codes.view(np.uint8))


def centred_codes(type: TensorType) -> np.ndarray:
    """int64 (256,): CODES less the zero point."""
    return CODES.astype(I) - type.zero_point


def real_codes(type: TensorType) -> np.ndarray:
    """float32 (256,): the real value of each of CODES."""
    return centred_codes(type).astype(F) * F(type.scale)


Unary = Callable[[Any, TensorType, TensorType], np.ndarray]


#: rules for whole blocks of 8 elements of the output -> the rule for the rest
TAILS = {"NEON_8": "TFLITE"}


def unary(op: str, rules: dict[str, Unary]):
    """An int8 -> int8 op from its rules, each (attrs, in type, out type) -> 256 output codes in the order of CODES."""

    def run(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
        rule, x = rule_of(op, rules, numerics), np.ascontiguousarray(arrays[0])
        table = _unary_table(rule, attrs, in_types[0], out_types[0])
        if numerics.rule(op) not in TAILS:
            return (look_up(table, x),)
        rest = _unary_table(rules[TAILS[numerics.rule(op)]], attrs, in_types[0], out_types[0])
        return (_by_blocks_of_8(x, out_types[0].size, lambda v: look_up(table, v), lambda v: look_up(rest, v)),)

    return run


@lru_cache(maxsize=256)
def _unary_table(rule: Unary, attrs: Any, in_type: TensorType, out_type: TensorType) -> np.ndarray:
    return rule(attrs, in_type, out_type)


# ---------------------------------------------------------------- transcendental functions

# Runtimes call the platform's float32 functions; these round the float64 result to float32 instead, which is the
# correctly rounded value almost always. A table entry could differ where y / scale lies within 1e-6 of a half.


def _f32(f: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: f(x.astype(np.float64)).astype(F)


def _logistic_tflite(x: np.ndarray, attrs: Any) -> np.ndarray:
    with np.errstate(over="ignore"):
        return F(1) / (F(1) + _f32(np.exp)(-x))


def _logistic_xnn(x: np.ndarray, attrs: Any) -> np.ndarray:
    def f(v):
        e = np.exp(-np.abs(v))
        return np.where(v > 0, 1.0 / (1.0 + e), e / (1.0 + e))

    return _f32(f)(x)


def _tanh(x: np.ndarray, attrs: Any) -> np.ndarray:
    return _f32(np.tanh)(x)


def _elu(x: np.ndarray, attrs: Any) -> np.ndarray:
    return np.where(x < 0, F(attrs.alpha) * _f32(np.expm1)(np.minimum(x, 0)), x)


def _gelu_erf(x: np.ndarray, attrs: Any) -> np.ndarray:
    return F(0.5) * x * _f32(kernels.erfc)(x * F(-0.7071067811865475))


def _gelu_xnn(x: np.ndarray, attrs: Any) -> np.ndarray:
    """In double precision. Source: XNNPACK src/reference/unary-elementwise.cc :: GELUOp"""
    x = x.astype(np.float64)
    return (x / 2 * (2 - kernels.erfc(x * np.sqrt(2) / 2))).astype(F)


def _gelu_tflite(x: np.ndarray, attrs: Any) -> np.ndarray:
    """Source: LiteRT tflite/kernels/internal/reference/gelu.h :: GeluTransform"""
    if not attrs.approximate:
        return _gelu_erf(x, attrs)
    inner = F(0.7978845608028654) * (x + F(0.044715) * x * x * x)
    return F(0.5) * x * (F(1) + _f32(np.tanh)(inner))


def _hard_swish_float(x: np.ndarray, attrs: Any) -> np.ndarray:
    return x / F(6) * np.clip(x + F(3), F(0), F(6))


def lut_tflite(f) -> Unary:
    """clamp(HAZ(f32(f(x) * f32(1/s_out))) + z). Source: LiteRT tflite/kernels/internal/common.h :: LUTPopulateInt8"""

    def rule(attrs: Any, in_type: TensorType, out_type: TensorType) -> np.ndarray:
        y = f(real_codes(in_type), attrs) * (F(1) / F(out_type.scale))
        return fp.to_codes(fp.round_half_away(y), out_type.zero_point)

    return rule


def lut_xnn(f) -> Unary:
    """clamp(RNE(f32(f32(f(x) * f32(1/s_out)) + z))). Source: XNNPACK src/reference/unary-elementwise.cc"""

    def rule(attrs: Any, in_type: TensorType, out_type: TensorType) -> np.ndarray:
        y = f(real_codes(in_type), attrs) * (F(1) / F(out_type.scale)) + F(out_type.zero_point)
        return fp.to_codes(fp.round_half_even(y), 0)

    return rule


def lut_convert(f) -> Unary:
    """clamp(RNE(f32(f(x) * f32(1/s_out))) + z): a float op between XNNPACK's converts."""

    def rule(attrs: Any, in_type: TensorType, out_type: TensorType) -> np.ndarray:
        y = f(real_codes(in_type), attrs) * (F(1) / F(out_type.scale))
        return fp.to_codes(fp.round_half_even(y), out_type.zero_point)

    return rule


def _float_rules(tflite, xnn) -> dict[str, Unary]:
    return {"LUT_TFLITE": lut_tflite(tflite), "LUT_XNN": lut_xnn(xnn), "LUT_XNN_CONVERT": lut_convert(xnn)}


def _fixed_tflm(f: Callable[[np.ndarray], np.ndarray], fraction_bits: int) -> Unary:
    """Gemmlowp's fixed-point function on Q4.27 values, saturated beyond the Q4 range.

    Source: tflite-micro tensorflow/lite/kernels/internal/reference/integer_ops/logistic.h, tanh.h
    """

    def rule(attrs: Any, in_type: TensorType, out_type: TensorType) -> np.ndarray:
        multiplier, shift = fp.quantize_multiplier(np.float64(F(in_type.scale)) * 2.0**27)
        radius = fp.integer_bits_radius(4, int(shift))
        x = centred_codes(in_type)
        inside = np.clip(x, -radius, radius)
        y = fp.rdbpot(f(fp.multiply_quantized(inside, multiplier, shift)), fraction_bits)
        codes = fp.to_codes(y, out_type.zero_point)
        return np.where(x <= -radius, np.int8(-128), np.where(x >= radius, np.int8(127), codes))

    return rule


def _hard_swish_tflite(half_up: bool) -> Unary:
    def rule(attrs: Any, in_type: TensorType, out_type: TensorType) -> np.ndarray:
        value = fp.hard_swish_ref(CODES, in_type.scale, in_type.zero_point, out_type.scale, half_up=half_up)
        return fp.to_codes(value, out_type.zero_point)

    return rule


# ---------------------------------------------------------------- leaky_relu, clamps, requantize


def _leaky(f: type) -> Unary:
    """Scales divided and multiplied in ``f``. Source: LiteRT tflite/kernels/activations.cc :: LeakyReluPrepare (float32);
    tflite-micro tensorflow/lite/micro/kernels/leaky_relu_common.cc (float64)"""

    def rule(attrs: Any, in_type: TensorType, out_type: TensorType) -> np.ndarray:
        x = centred_codes(in_type)
        s_in, alpha, s_out = (f(F(v)) for v in (in_type.scale, attrs.alpha, out_type.scale))
        above = fp.quantize_multiplier(np.float64(s_in / s_out))
        below = fp.quantize_multiplier(np.float64(s_in * alpha / s_out))
        y = np.where(x >= 0, fp.multiply_quantized(x, *above), fp.multiply_quantized(x, *below))
        return fp.to_codes(y, out_type.zero_point)

    return rule


_leaky_ref = _leaky(F)


def _leaky_xnn8(attrs: Any, in_type: TensorType, out_type: TensorType) -> np.ndarray:
    x = centred_codes(in_type)
    ratio = F(in_type.scale) / F(out_type.scale)
    multiplier = np.where(x >= 0, fp.q8_multiplier(ratio), fp.q8_multiplier(ratio * F(attrs.alpha)))
    return fp.to_codes(fp.q8_multiply(x, multiplier), out_type.zero_point)


def _leaky_xnn8_or_ref(attrs: Any, in_type: TensorType, out_type: TensorType) -> np.ndarray:
    """The delegate takes positive ratios in [2**-8, 2**7] and negative ones of the same size.

    Source: LiteRT tflite/delegates/xnnpack/xnnpack_delegate.cc :: VisitLeakyReluNode
    """
    ratio = F(in_type.scale) / F(out_type.scale)
    below = float(ratio * F(attrs.alpha))
    taken = 2.0**-8 <= float(ratio) <= 2.0**7 and -127.99609375 <= below <= 128.0 and abs(below) >= 2.0**-8
    return (_leaky_xnn8 if taken else _leaky_ref)(attrs, in_type, out_type)


def clamp_rule(bounds: tuple[float, float] | None, rule: str) -> Unary:
    """Clamp of codes between real bounds; the attributes hold them where ``bounds`` is None."""

    def run(attrs: Any, in_type: TensorType, out_type: TensorType) -> np.ndarray:
        if (in_type.scale, in_type.zero_point) != (out_type.scale, out_type.zero_point):
            raise GraphError("a clamp must keep scale and zero point", fix="give input and output one quantization")
        least, most = bounds or (attrs.min, attrs.max)
        q_low, q_high = fp.activation_bounds(least, most, out_type.scale, out_type.zero_point, rule)
        return np.clip(CODES, q_low, q_high)

    return run


def _clamp_rules(bounds: tuple[float, float] | None = None) -> dict[str, Unary]:
    return {rule: clamp_rule(bounds, rule) for rule in ("TFLITE", "XNN")}


def _requantize_ref(attrs: Any, in_type: TensorType, out_type: TensorType) -> np.ndarray:
    scale = np.float64(F(in_type.scale)) / np.float64(F(out_type.scale))
    return fp.to_codes(fp.requantize(centred_codes(in_type), scale, "REF"), out_type.zero_point)


def _requantize_q8(attrs: Any, in_type: TensorType, out_type: TensorType) -> np.ndarray:
    multiplier = fp.q8_multiplier(F(in_type.scale) / F(out_type.scale))
    return fp.to_codes(fp.q8_multiply(centred_codes(in_type), multiplier), out_type.zero_point)


def _requantize_q8_or_ref(attrs: Any, in_type: TensorType, out_type: TensorType) -> np.ndarray:
    """The delegate takes ratios in [2**-8, 2**7]. Source: LiteRT xnnpack_delegate.cc :: VisitQuantizeNode"""
    ratio = float(F(in_type.scale) / F(out_type.scale))
    return (_requantize_q8 if 2.0**-8 <= ratio <= 2.0**7 else _requantize_ref)(attrs, in_type, out_type)


UNARY_RULES: dict[str, dict[str, Unary]] = {
    "relu": _clamp_rules(ACTIVATIONS["relu"]),
    "relu6": _clamp_rules(ACTIVATIONS["relu6"]),
    "clamp": _clamp_rules(),
    "logistic": {**_float_rules(_logistic_tflite, _logistic_xnn), "FIXED_TFLM": _fixed_tflm(fp.logistic_fixed, 23)},
    "tanh": {**_float_rules(_tanh, _tanh), "FIXED_TFLM": _fixed_tflm(fp.tanh_fixed, 24)},
    "elu": _float_rules(_elu, _elu),
    # XNNPACK, as ExecuTorch offers it, has the exact form alone; at 8 bits the tanh form differs in one code of a hundred
    "gelu": {**_float_rules(_gelu_tflite, _gelu_tflite), "LUT_XNN_ERF": lut_xnn(_gelu_xnn)},
    "hard_swish": {
        "TFLITE": _hard_swish_tflite(False),
        "NEON_8": _hard_swish_tflite(True),
        **_float_rules(_hard_swish_float, _hard_swish_float),
    },
    "leaky_relu": {"REF": _leaky_ref, "REF_F64": _leaky(np.float64), "XNN8": _leaky_xnn8, "XNN8_OR_REF": _leaky_xnn8_or_ref},
    "requantize": {
        "REF": _requantize_ref,
        "Q8": _requantize_q8,
        "Q8_OR_REF": _requantize_q8_or_ref,
        "F32": lut_convert(lambda x, attrs: x),
    },
}

relu_integer, relu6_integer, clamp_integer = (unary(op, UNARY_RULES[op]) for op in ("relu", "relu6", "clamp"))
logistic_integer, tanh_integer, elu_integer = (unary(op, UNARY_RULES[op]) for op in ("logistic", "tanh", "elu"))
hard_swish_integer, leaky_relu_integer, gelu_integer = (unary(op, UNARY_RULES[op]) for op in ("hard_swish", "leaky_relu", "gelu"))

#: between 8 and 16 bits, and from 16 to 16
WIDE_REQUANTIZE: dict[str, Callable[[np.ndarray, TensorType, TensorType], np.ndarray]] = {
    "REF": lambda x, i, o: fp.requantize(x.astype(I) - i.zero_point, np.float64(F(i.scale)) / np.float64(F(o.scale)), "REF"),
    "ONE": lambda x, i, o: fp.requantize(x.astype(I) - i.zero_point, np.float64(F(i.scale)) / np.float64(F(o.scale)), "ONE"),
    "F32": lambda x, i, o: _requantize32(x, i, o),
}


def _requantize32(x: np.ndarray, i: TensorType, o: TensorType) -> np.ndarray:
    if o.dtype == "int16":
        return fp.round_half_even(_within16(real32(x, i, o)))
    # to 8 bits through reals, as XNNPACK's own converts
    return fp.quantize_codes(x.astype(F) * F(i.scale), o.scale, 0, "RNE", (-1024, 1023))


def requantize_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    """Codes to another scale, zero point or width."""
    out = out_types[0]
    if "int16" in (in_types[0].dtype, out.dtype):
        rule = rule_of(wide_key("requantize"), WIDE_REQUANTIZE, numerics)
        return (fp.to_codes(rule(arrays[0], in_types[0], out), out.zero_point, *out.code_bounds),)
    return _requantize8(arrays, attrs, in_types, out_types, numerics)


_requantize8 = unary("requantize", UNARY_RULES["requantize"])

# ---------------------------------------------------------------- binary element-wise

Wide = Callable[[np.ndarray, np.ndarray, TensorType, TensorType, TensorType], np.ndarray]

#: (x, y less their zero points, in types, out type) -> (int64 before the zero point, rule of the activation bounds)
Pair = Callable[[np.ndarray, np.ndarray, TensorType, TensorType, TensorType], tuple[np.ndarray, str]]


def _left_shift(sign: int) -> Pair:
    def rule(x, y, first, second, out):
        params = fp.left_shift_add_params(first.scale, second.scale, out.scale)
        return fp.left_shift_add(x, y, params, sign), "TFLITE"

    return rule


def _left_shift_negated(x, y, first, second, out):
    """A sum with ``-y``, whose ties round as those of ``-y`` do; ``_left_shift(-1)`` takes the rounded ``y`` away."""
    return fp.left_shift_add(x, -y, fp.left_shift_add_params(first.scale, second.scale, out.scale), 1), "TFLITE"


def _q20(sign: int, fallback: Pair | None) -> Pair:
    def rule(x, y, first, second, out):
        params = fp.q20_add_params(first.scale, second.scale, out.scale)
        if params is not None:
            return fp.q20_add(x, y, params, sign), "XNN"
        if fallback is None:
            raise GraphError(
                f"input scales {first.scale} and {second.scale} are outside [2**-10, 2**8) times the output scale {out.scale}",
                fix="bring the scales closer together",
            )
        return fallback(x, y, first, second, out)

    return rule


def product_scale32(first: TensorType, second: TensorType, out: TensorType) -> np.float32:
    """Effective scale of a product, in float32 throughout."""
    return F(first.scale) * F(second.scale) / F(out.scale)


def _mul_integer(scheme: str, scale) -> Pair:
    return lambda x, y, first, second, out: (fp.requantize(x * y, np.float64(scale(first, second, out)), scheme), "TFLITE")


def product_scale64(first: TensorType, second: TensorType, out: TensorType) -> np.float64:
    """Effective scale of a product, in float64."""
    return np.float64(F(first.scale)) * np.float64(F(second.scale)) / np.float64(F(out.scale))


def product_in_window(first: TensorType, second: TensorType, out: TensorType) -> bool:
    """Whether XNNPACK takes a product. Source: XNNPACK src/operators/binary-elementwise-nd.c"""
    return 2.0**-16 <= float(product_scale32(first, second, out)) < 2.0**8


def _mul_windowed(inside, fallback: Pair | None) -> Pair:
    def rule(x, y, first, second, out):
        scale = product_scale32(first, second, out)
        if product_in_window(first, second, out):
            return inside(x * y, scale), "XNN"
        if fallback is None:
            raise GraphError(f"product scale ratio {float(scale)} is outside [2**-16, 2**8)", fix="widen the output range")
        return fallback(x, y, first, second, out)

    return rule


def _f32e(product, scale):
    return fp.requantize(product, scale, "F32E")


_MUL_REF = _mul_integer("REF", product_scale32)

PAIR_RULES: dict[str, dict[str, Pair]] = {
    "add": {"LSHIFT20": _left_shift(1), "Q20": _q20(1, None), "Q20_OR_LSHIFT20": _q20(1, _left_shift(1))},
    "sub": {
        "LSHIFT20": _left_shift(-1),
        "LSHIFT20_NEGATED": _left_shift_negated,
        "Q20": _q20(-1, None),
        "Q20_OR_LSHIFT20": _q20(-1, _left_shift(-1)),
    },
    "mul": {
        "REF_F32": _MUL_REF,
        "REF_F64": _mul_integer("REF", product_scale64),
        "ONE_F32": _mul_integer("ONE", product_scale32),
        "F32E": _mul_windowed(_f32e, None),
        "F32E_OR_REF_F32": _mul_windowed(_f32e, _MUL_REF),
        "RNDNU": _mul_windowed(fp.rndnu, None),
        "RNDNU_OR_REF_F32": _mul_windowed(fp.rndnu, _MUL_REF),
    },
}


def wide_add_params(first: TensorType, second: TensorType, out: TensorType) -> fp.WideAdd:
    """Parameters of a sum with a 16-bit result."""
    return fp.wide_add_params(first.scale, first.reach, second.scale, second.reach, out.scale)


def _wide_sum(sign: int, scheme: str) -> Wide:
    def rule(a, b, first, second, out):
        params = wide_add_params(first, second, out)
        total = fp.wide_add(a.astype(I) - first.zero_point, b.astype(I) - second.zero_point, params, sign)
        return fp.requantize(total, params.scale, scheme)

    return rule


def _wide_product(scheme: str, scale) -> Wide:
    return lambda a, b, first, second, out: fp.requantize(a.astype(I) * b, np.float64(scale(first, second, out)), scheme)


def real32(codes: np.ndarray, type: TensorType, out: TensorType) -> np.ndarray:
    """float32 values in units of ``out``'s codes, as XNNPACK programs of this package hold 16-bit activations:
    8-bit codes are converted to reals first, 16-bit codes are multiplied once."""
    inverse = F(1) / F(out.scale)
    if type.dtype == "int16":
        return codes.astype(F) * F(F(type.scale) * inverse)
    return (codes.astype(F) - F(type.zero_point)) * F(type.scale) * inverse


def _wide_sum32(sign: int) -> Wide:
    def rule(a, b, first, second, out):
        return fp.round_half_even(_within16(real32(a, first, out) + F(sign) * real32(b, second, out)))

    return rule


def _within16(x: np.ndarray) -> np.ndarray:
    """Clamped before rounding, since the rounding is right for small values only."""
    return np.clip(x, F(-32768), F(32767))


#: op -> rule -> (codes, codes, types) -> integers before the clamp, for 16-bit results; sums take 8-bit operands too
WIDE_RULES: dict[str, dict[str, Wide]] = {
    "add": {"SUM_REF": _wide_sum(1, "REF"), "SUM_ONE": _wide_sum(1, "ONE"), "F32": _wide_sum32(1)},
    "sub": {"SUM_REF": _wide_sum(-1, "REF"), "SUM_ONE": _wide_sum(-1, "ONE"), "F32": _wide_sum32(-1)},
    "mul": {
        "REF_F32": _wide_product("REF", product_scale32),
        "REF_F64": _wide_product("REF", product_scale64),
        "ONE_F32": _wide_product("ONE", product_scale32),
    },
}


def binary(op: str):
    """The exact integer meaning of a binary element-wise op."""

    def run(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
        if out_types[0].dtype == "int16":
            out = out_types[0]
            wide = rule_of(wide_key(op), WIDE_RULES[op], numerics)
            bounds = fp.activation_bounds(*ACTIVATIONS[attrs.activation], out.scale, 0, "TFLITE", out.code_bounds)
            return (fp.to_codes(wide(*arrays, *in_types, out), 0, *bounds),)
        rule = rule_of(op, PAIR_RULES[op], numerics)
        a, b = arrays
        key: tuple[Any, ...] = (rule, attrs.activation, numerics.rule("activation"), *in_types, *out_types)
        if np.broadcast(a, b).size < PAIR_TABLE_SIZE:
            return (_pairs(a, b, *key),)
        index = np.add(a.view(np.uint8).astype(np.intp) * 256, b.view(np.uint8))
        return (np.take(_pair_table(*key), index),)

    return run


def _pairs(a: np.ndarray, b: np.ndarray, rule: Pair, activation: str, bounds_rule: str, *types: TensorType) -> np.ndarray:
    first, second, out = types
    value, own = rule(a.astype(I) - first.zero_point, b.astype(I) - second.zero_point, first, second, out)
    # a delegate that leaves the node also leaves its clamp
    bounds = "TFLITE" if own == "TFLITE" else bounds_rule or "TFLITE"
    low, high = fp.activation_bounds(*ACTIVATIONS[activation], out.scale, out.zero_point, bounds)
    return fp.to_codes(value, out.zero_point, low, high)


@lru_cache(maxsize=64)
def _pair_table(rule: Pair, activation: str, bounds_rule: str, *types: TensorType) -> np.ndarray:
    return _pairs(CODES[:, None], CODES[None, :], rule, activation, bounds_rule, *types).ravel()


add_integer, sub_integer, mul_integer = binary("add"), binary("sub"), binary("mul")

PRELU_RULES = {"REF_F32": F, "REF_F64": np.float64}


def prelu_multipliers(x: TensorType, slope: TensorType, out: TensorType, precision: type) -> tuple[tuple[int, int], tuple[int, int]]:
    """(multiplier, shift) of codes above the zero point, and of products with a slope below it."""
    s_in, s_slope, s_out = (precision(F(t.scale)) for t in (x, slope, out))
    (m, e), (n, f) = (fp.quantize_multiplier(np.float64(s)) for s in (s_in / s_out, s_in * s_slope / s_out))
    return (int(m), int(e)), (int(n), int(f))


def prelu_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    """Slopes are int8 constants with one scale. Source: LiteRT tflite/kernels/activations.cc :: PreluPrepare"""
    x_type, slope_type, out = in_types[0], in_types[1], out_types[0]
    x = arrays[0].astype(I) - x_type.zero_point
    slope = arrays[1].astype(I) - slope_type.zero_point
    above, below = prelu_multipliers(x_type, slope_type, out, rule_of("prelu", PRELU_RULES, numerics))
    y = np.where(x >= 0, fp.multiply_quantized(x, *above), fp.multiply_quantized(x * slope, *below))
    return (fp.to_codes(y, out.zero_point),)


# ---------------------------------------------------------------- pooling, reductions


def max_pool_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    return (kernels.max_pool(arrays[0], attrs.kernel, attrs.stride, attrs.padding),)


def _avg_pool_tflite(x: np.ndarray, attrs: Any, in_type: TensorType, out_type: TensorType) -> np.ndarray:
    total = kernels.window_sum(x, attrs.kernel, attrs.stride, attrs.padding, np.int32)
    count = kernels.valid_taps(x.shape, attrs.kernel, attrs.stride, attrs.padding)[:, :, None]
    return fp.to_codes(fp.divide_half_away(total, count), 0)


def _avg_pool_depthwise(x: np.ndarray, attrs: Any, in_type: TensorType, out_type: TensorType) -> np.ndarray:
    """A depthwise convolution with every weight code 1 and scale 1/n, as XNNPACK requantizes it."""
    if attrs.padding != ((0, 0), (0, 0)):
        raise GraphError("a padded average has no depthwise form: its divisor changes at the border", fix="pad before pooling")
    count = attrs.kernel[0] * attrs.kernel[1]
    total = kernels.window_sum(x, attrs.kernel, attrs.stride, attrs.padding, np.int32) - count * in_type.zero_point
    scale = fp.effective_scale("F32E", in_type.scale, np.asarray([F(1) / F(count)]), out_type.scale)
    return fp.to_codes(fp.requantize(total, scale, "F32E"), out_type.zero_point)


def _avg_pool_depthwise_or_tflite(x: np.ndarray, attrs: Any, in_type: TensorType, out_type: TensorType) -> np.ndarray:
    """A padded average has no depthwise form, because its divisor changes at the border."""
    padded = attrs.padding != ((0, 0), (0, 0))
    return (_avg_pool_tflite if padded else _avg_pool_depthwise)(x, attrs, in_type, out_type)


AVG_POOL_RULES = {
    "TFLITE": _avg_pool_tflite,
    "DEPTHWISE_F32E": _avg_pool_depthwise,
    "DEPTHWISE_F32E_OR_TFLITE": _avg_pool_depthwise_or_tflite,
}


def avg_pool_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    return (rule_of("avg_pool2d", AVG_POOL_RULES, numerics)(arrays[0], attrs, in_types[0], out_types[0]),)


def _mean_ref(total, count, in_type, out_type, special):
    value = fp.mean_ref(total, count, in_type.scale, in_type.zero_point, out_type.scale)
    return fp.to_codes(value, out_type.zero_point, *out_type.code_bounds)


def _mean_p2(total, count, in_type, out_type, special):
    if not special:
        return _mean_ref(total, count, in_type, out_type, special)
    return fp.to_codes(fp.mean_optimised(total, count, in_type.scale, in_type.zero_point, out_type.scale, out_type.zero_point), 0)


def _sum_ref(total, count, in_type, out_type, special):
    return fp.to_codes(fp.sum_ref(total, count, in_type.scale, in_type.zero_point, out_type.scale), out_type.zero_point)


def _reduce_xnn(reduce: Callable[..., np.ndarray], fused: bool):
    def rule(total, count, in_type, out_type, special):
        return fp.to_codes(reduce(total, count, in_type.scale, in_type.zero_point, out_type.scale, out_type.zero_point, fused=fused), 0)

    return rule


def _reduce_one(divides: bool):
    """One rounding, half up, of the sum of centred codes: what the portable integer program computes."""

    def rule(total, count, in_type, out_type, special):
        scale = fp.reduction_scale(in_type.scale, out_type.scale, count if divides else 1)
        value = fp.requantize(total - count * in_type.zero_point, scale, "ONE")
        return fp.to_codes(value, out_type.zero_point, *out_type.code_bounds)

    return rule


REDUCE_RULES = {
    "mean": {
        "REF": _mean_ref,
        "XNN": _reduce_xnn(fp.mean_xnn, False),
        "XNN_FUSED": _reduce_xnn(fp.mean_xnn, True),
        "P2": _mean_p2,
        "ONE": _reduce_one(True),
    },
    "sum": {
        "REF": _sum_ref,
        "XNN": _reduce_xnn(fp.sum_xnn, False),
        "XNN_FUSED": _reduce_xnn(fp.sum_xnn, True),
        "ONE": _reduce_one(False),
    },
}


def reduction(op: str):
    """The exact integer meaning of mean or sum."""

    def run(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
        x = arrays[0]
        rule = rule_of(typed_key(op, *in_types), REDUCE_RULES[op], numerics)
        count = int(np.prod([x.shape[i] for i in attrs.axes], dtype=I))
        total = x.sum(axis=tuple(attrs.axes), dtype=I, keepdims=attrs.keep_dims)
        special = x.ndim == 4 and attrs.keep_dims and tuple(attrs.axes) == (1, 2)
        return (rule(total, count, in_types[0], out_types[0], special),)

    return run


mean_integer, sum_integer = reduction("mean"), reduction("sum")


def reduce_max_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    return (arrays[0].max(axis=tuple(attrs.axes), keepdims=attrs.keep_dims),)


# ---------------------------------------------------------------- data movement that needs a code or a rule


def pad_code(value: float, type: TensorType) -> int:
    """The code that stands for the real constant ``value``."""
    low, high = type.code_bounds
    return max(low, min(high, fp.activation_code(value, type.scale, type.zero_point, "TFLITE")))


def pad_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    return (np.pad(arrays[0], attrs.paddings, constant_values=pad_code(attrs.value, out_types[0])),)


RESIZE_RULES = {
    "TFLITE": (fp.bilinear_q10, fp.bilinear_combine_q10),
    "XNN": (fp.bilinear_q11, fp.bilinear_combine_q11),
}


def resize_bilinear_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    coordinates, combine = rule_of("resize_bilinear", RESIZE_RULES, numerics)
    x = arrays[0].astype(I)
    y0, y1, wy = coordinates(x.shape[1], attrs.size[0], attrs.align_corners, attrs.half_pixel_centers)
    x0, x1, wx = coordinates(x.shape[2], attrs.size[1], attrs.align_corners, attrs.half_pixel_centers)
    top, bottom = x[:, y0], x[:, y1]
    value = combine((top[:, :, x0], top[:, :, x1]), (bottom[:, :, x0], bottom[:, :, x1]), wy[:, None, None], wx[:, None])
    return (fp.to_codes(value, 0),)


# ---------------------------------------------------------------- boundary


def _by_blocks_of_8(x: np.ndarray, size: int, main: Callable, tail: Callable) -> np.ndarray:
    """Apply ``main`` to whole blocks of 8 elements of each run of ``size``, ``tail`` to the rest."""
    rows = x.reshape(-1, size)
    cut = rows.shape[1] // 8 * 8
    return np.concatenate([main(rows[:, :cut]), tail(rows[:, cut:])], 1).reshape(x.shape)


def _quantize_p2(x, out):
    scale, zero_point, bounds = out.scale, out.zero_point, out.code_bounds
    return _by_blocks_of_8(
        x,
        out.size,
        lambda v: fp.quantize_codes(v, scale, zero_point, "RNE", bounds),
        lambda v: fp.quantize_codes(v, scale, zero_point, "HAZ64", bounds),
    )


def _quantize(rule: str):
    return lambda x, out: fp.quantize_codes(x, out.scale, out.zero_point, rule, out.code_bounds)


QUANTIZE_RULES = {**{rule: _quantize(rule) for rule in ("HAZ", "RNE", "HAZ64", "HAZ_RECIPROCAL")}, "P2": _quantize_p2}


def quantize_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    return (rule_of(typed_key("quantize", out_types[0]), QUANTIZE_RULES, numerics)(arrays[0], out_types[0]),)


def _dequantize_p2(fused: bool):
    def rule(x, type):
        scale, codes = F(type.scale), CODES.astype(F)
        shift = F(-type.zero_point) * scale
        shifted = fp.fused_multiply_add(codes, scale, shift) if fused else codes * scale + shift
        return _by_blocks_of_8(x, type.size, lambda v: look_up(shifted, v), lambda v: look_up(real_codes(type), v))

    return rule


DEQUANTIZE_RULES = {
    "EXACT": lambda x, type: look_up(real_codes(type), x),
    "P2": _dequantize_p2(False),
    "P2_FUSED": _dequantize_p2(True),
}


def dequantize_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    x = np.ascontiguousarray(arrays[0])
    if in_types[0].dtype == "int16":
        return (x.astype(F) * F(in_types[0].scale),)
    return (rule_of("dequantize", DEQUANTIZE_RULES, numerics)(x, in_types[0]),)
