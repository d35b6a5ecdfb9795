"""Fixed-point primitives and requantizers against exact rationals; ties and the int32 edges are forced in."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qwtv2_edge import fixedpoint as fp
from qwtv2_edge.errors import QuantizeError

HALF = Fraction(1, 2)
EDGES = [0, 1, -1, 2**31 - 1, -(2**31), 2**30, -(2**30), 2**24, 2**24 + 1, -(2**24) - 1, 2**21, 2**21 - 1, -(2**21)]

int32 = st.one_of(st.sampled_from(EDGES), st.integers(-(2**31), 2**31 - 1), st.integers(-1000, 1000))
#: scales with few mantissa bits make exact ties common
simple_scale = st.builds(lambda m, e: m * 2.0**e, st.integers(1, 15), st.integers(-30, -4))
scale32 = st.one_of(simple_scale, st.floats(2.0**-31, 200.0, width=32))


def half_up(x: Fraction) -> int:
    return floor(x + HALF)


def half_away(x: Fraction) -> int:
    return floor(x + HALF) if x >= 0 else -floor(-x + HALF)


def half_even(x: Fraction) -> int:
    return round(x)


def to_float32(x: Fraction) -> Fraction:
    """Nearest float32, ties to even; normal range only."""
    if x == 0:
        return x
    size = abs(x)
    e = 0
    while size >= 2:
        size, e = size / 2, e + 1
    while size < 1:
        size, e = size * 2, e - 1
    unit = Fraction(2) ** (e - 23)
    return half_even(x / unit) * unit


def multiplier_of(scale: Fraction) -> tuple[int, int]:
    """The definition: scale = m * 2**(e-31), m in [2**30, 2**31)."""
    if scale == 0:
        return 0, 0
    e, fraction = 0, scale
    while fraction >= 1:
        fraction, e = fraction / 2, e + 1
    while fraction < HALF:
        fraction, e = fraction * 2, e - 1
    m = half_away(fraction * 2**31)
    if m == 2**31:
        m, e = m // 2, e + 1
    return (0, 0) if e < -31 else (m, e)


def oracle(acc: int, scale: float, scheme: str, channel: int, channels: int) -> int:
    if scheme == "UP2_8":
        scheme = "UP2" if channel < channels // 8 * 8 else "REF"
    if scheme == "F32E":
        return half_even(to_float32(to_float32(Fraction(acc)) * Fraction(scale)))
    if scheme == "F64":
        return half_away(Fraction(float(acc) * scale))  # the runtime's own float64 product
    m, e = multiplier_of(Fraction(scale))
    if scheme == "R64":
        return half_up(Fraction(acc * min((m + 2**15) // 2**16, 32767), 2 ** (15 - e)))
    if scheme == "ONE":
        return half_up(Fraction(acc) * m * Fraction(2) ** (e - 31))
    first = half_up(Fraction(acc * 2 ** max(e, 0) * m, 2**31))
    second = Fraction(first, 2 ** max(-e, 0))
    return half_away(second) if scheme == "REF" else half_up(second)


@given(int32, int32)
def test_srdhm(a, b):
    exact = half_up(Fraction(a * b, 2**31))
    assert int(fp.srdhm(a, b)) == min(exact, 2**31 - 1)


@given(int32, st.integers(0, 31))
def test_shifts(x, n):
    assert int(fp.rdbpot(x, n)) == half_away(Fraction(x, 2**n))
    assert int(fp.rshr(x, n)) == half_up(Fraction(x, 2**n))


@given(st.integers(-(2**40), 2**40), st.integers(0, 20))
def test_ties_of_shifts(k, n):
    x = (2 * k + 1) * 2**n
    assert int(fp.rdbpot(x, n + 1)) == half_away(Fraction(x, 2 ** (n + 1)))
    assert int(fp.rshr(x, n + 1)) == half_up(Fraction(x, 2 ** (n + 1)))


@given(st.floats(0, 2.0**29, allow_subnormal=False))
def test_quantize_multiplier(scale):
    m, e = fp.quantize_multiplier(scale)
    assert (int(m), int(e)) == multiplier_of(Fraction(scale))


@given(st.floats(-(2.0**40), 2.0**40), st.booleans())
def test_round_half_away(x, tie):
    x = float(int(x)) + 0.5 if tie else x
    assert int(fp.round_half_away(np.asarray(x))) == half_away(Fraction(x))
    narrow = np.float32(x)
    assert int(fp.round_half_away(narrow)) == half_away(Fraction(float(narrow)))


@given(st.lists(int32, min_size=1, max_size=10), scale32, st.sampled_from(fp.SCHEMES))
def test_requantize_equals_its_definition(acc, scale, scheme):
    value = np.float32(scale) if scheme == "F32E" else np.float64(scale)
    try:
        got = fp.requantize(np.asarray(acc), np.asarray([value]), scheme)
    except QuantizeError:
        _, e = multiplier_of(Fraction(scale))
        assert scheme in ("REF", "UP2", "UP2_8")
        assert any(not -(2**31) <= a << max(e, 0) < 2**31 for a in acc)
        return
    assert got.tolist() == [oracle(a, float(value), scheme, i, len(acc)) for i, a in enumerate(acc)]


@st.composite
def layers(draw):
    """Per-channel scales, offsets and raw accumulators, with bounds on every side of the exact forms' limits."""
    channels = draw(st.sampled_from([1, 2, 3, 4, 5, 9]))
    scales = draw(st.lists(scale32, min_size=channels, max_size=channels))
    if draw(st.booleans()):
        scales = scales[:1]
    reach = draw(st.sampled_from([100, 5000, 2**20, 2**21 - 1, 2**21, 2**23, 2**24 - 2, 2**26, 2**30]))
    near = st.one_of(st.integers(-reach, reach), st.sampled_from([-reach, reach, 0]))
    raw = draw(st.lists(st.lists(near, min_size=channels, max_size=channels), min_size=1, max_size=6))
    offset = draw(st.lists(near, min_size=channels, max_size=channels))
    if draw(st.booleans()):
        # aim at exact ties of the output: acc * scale = k + 1/2
        for c in range(channels):
            s = Fraction(scales[c % len(scales)])
            k = draw(st.integers(-130, 130))
            aimed = int((Fraction(k) + HALF) / s)
            if abs(aimed) < reach:
                raw[0][c] = aimed - offset[c]
    return scales, offset, raw


@settings(max_examples=400)
@given(layers(), st.sampled_from(fp.SCHEMES), st.integers(-128, 127), st.booleans())
def test_fused_requantizer_equals_the_plain_form(layer, scheme, zero_point, narrow):
    scales, offset, raw = layer
    scale = np.asarray(scales, np.float32 if scheme == "F32E" else np.float64)
    off, values = np.asarray(offset, np.int64), np.asarray(raw, np.int64)
    acc = values + off
    bound = int(max(np.abs(values).max(), np.abs(off).max(), np.abs(acc).max()))
    assume(np.abs(acc).max() < 2**31)
    low, high = (-100, 90) if narrow else (-128, 127)
    try:
        expected = fp.to_codes(fp.requantize(acc, scale, scheme), zero_point, low, high)
    except QuantizeError:
        assume(False)
    dtype = np.float32 if np.abs(values).max() < 2**24 and draw_narrow(values) else np.float64
    run = fp.Requantizer.prepare(scheme, scale, off, zero_point, low, high, bound)
    out = np.empty(acc.size, np.int8)
    run(values.astype(dtype).ravel(), out)
    assert out.reshape(acc.shape).tolist() == expected.tolist()
    plain = [
        [min(high, max(low, zero_point + oracle(int(a), float(scale[c % len(scale)]), scheme, c, len(row)))) for c, a in enumerate(row)]
        for row in acc
    ]
    assert expected.tolist() == plain


def draw_narrow(values: np.ndarray) -> bool:
    """float32 for half of the layers, by their content."""
    return bool(values.sum() % 2)


@given(st.integers(-255, 255), st.integers(-255, 255), scale32, scale32, scale32, st.sampled_from([1, -1]))
def test_left_shift_add_equals_its_definition(x, y, s1, s2, so, sign):
    assume(max(s1, s2) / so < 2.0**19)
    f = np.float64
    twice = 2 * f(max(s1, s2))
    m = [multiplier_of(Fraction(float(v))) for v in (f(s1) / twice, f(s2) / twice, twice / (2.0**20 * f(so)))]

    def ref(value, pair):
        first = half_up(Fraction(value * 2 ** max(pair[1], 0) * pair[0], 2**31))
        return half_away(Fraction(first, 2 ** max(-pair[1], 0)))

    expected = ref(ref(x << 20, m[0]) + sign * ref(y << 20, m[1]), m[2])
    got = fp.left_shift_add(np.asarray([x]), np.asarray([y]), fp.left_shift_add_params(s1, s2, so), sign)
    assert got.tolist() == [expected]


@given(st.integers(-255, 255), st.integers(-255, 255), scale32, scale32, scale32, st.sampled_from([1, -1]))
def test_q20_add_equals_its_definition(x, y, s1, s2, so, sign):
    a, b = to_float32(Fraction(s1) / Fraction(so)), to_float32(Fraction(s2) / Fraction(so))
    params = fp.q20_add_params(s1, s2, so)
    inside = all(Fraction(1, 1024) <= v < 256 for v in (a, b))
    assert (params is not None) == inside
    if params is not None:
        e = 0
        while Fraction(2) ** (e + 1) <= max(a, b):
            e += 1
        while Fraction(2) ** e > max(a, b):
            e -= 1
        shift = 20 - e
        factors = [half_even(v * 2**shift) for v in (a, b)]
        assert (params.first, params.second, params.shift) == (*factors, shift)
        exact = half_up(Fraction(factors[0] * x + sign * factors[1] * y, 2**shift))
        assert fp.q20_add(np.asarray([x]), np.asarray([y]), params, sign).tolist() == [exact]


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=8), st.one_of(simple_scale, st.floats(2.0**-9, 8.0, width=32)))
def test_quantize_codes(values, scale):
    x = np.asarray(values, np.float32)
    assume(max(abs(v) for v in values) / scale < 2**30)
    zero = 3
    away = [min(127, max(-128, half_away(to_float_div(v, scale)) + zero)) for v in x]
    assert fp.quantize_codes(x, scale, zero, "HAZ").tolist() == away
    inverse = np.float32(1) / np.float32(scale)
    even = [min(127, max(-128, half_even(Fraction(float(v * inverse))) + zero)) for v in x]
    assert fp.quantize_codes(x, scale, zero, "RNE").tolist() == even


def to_float_div(v: np.float32, scale: float) -> Fraction:
    return Fraction(float(v / np.float32(scale)))


#: float32 values of up to 24 bits
real32 = st.builds(lambda m, e: np.float32(m * 2.0**e), st.integers(-(2**24), 2**24), st.integers(-40, 10))


@given(real32, real32, real32)
def test_fused_multiply_add(a, b, c):
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    assert Fraction(float(fp.fused_multiply_add(a, b, c))) == to_float32(exact)


def test_fused_multiply_add_rounds_once():
    """The sum lies 2**-70 below a tie of float32: in float64 it would round to the tie first."""
    a, b, c = (np.float32(v) for v in (1 + 2.0**-23, (1 - 2.0**-23) * 2.0**-24, 1 + 2.0**-23))
    assert np.float32(np.float64(a) * np.float64(b) + np.float64(c)) == 1 + 2.0**-22
    assert fp.fused_multiply_add(a, b, c) == c


@given(st.integers(-(2**20), 2**20), st.integers(1, 5000))
def test_integer_divisions(n, d):
    quotient = Fraction(n, d)
    assert int(fp.floor_divide_half_up(n, d)) == half_up(quotient)
    size = (abs(n) + d // 2) // d
    assert int(fp.divide_half_away(n, d)) == (size if n > 0 else -size)


# ---------------------------------------------------------------- 16-bit activations


@given(st.integers(-(2**47), 2**47 - 1), scale32)
def test_64_bit_accumulators_keep_48_bits(acc, scale):
    assert fp.requantize(np.asarray([acc]), np.asarray([scale]), "R64").tolist() == [oracle(acc, scale, "R64", 0, 1)]


@given(st.floats(2.0**-100, 2.0**100))
def test_ceil_log2_is_the_least_power_that_reaches(x):
    n = fp.ceil_log2(x)
    assert Fraction(2) ** (n - 1) < Fraction(x) <= Fraction(2) ** n
    assert fp.ceil_log2(2.0**n) == n


@given(
    st.lists(st.floats(-40_000, 40_000, width=32), min_size=1, max_size=8),
    st.one_of(simple_scale, st.floats(2.0**-9, 8.0, width=32)),
    st.sampled_from(["HAZ", "RNE", "HAZ64", "HAZ_RECIPROCAL"]),
)
def test_quantize_codes_of_16_bits(values, scale, rule):
    x = np.asarray(values, np.float32)
    assume(max(abs(v) for v in values) / scale < 2**30)
    inverse = np.float32(1) / np.float32(scale)
    exact = {
        "HAZ": lambda v: half_away(to_float_div(v, scale)),
        "RNE": lambda v: half_even(Fraction(float(v * inverse))),
        "HAZ64": lambda v: half_away(Fraction(float(np.float64(v) / np.float64(np.float32(scale))))),
        "HAZ_RECIPROCAL": lambda v: half_away(Fraction(float(v * inverse))),
    }[rule]
    got = fp.quantize_codes(x, scale, 0, rule, (-32768, 32767))
    assert got.dtype == np.int16
    assert got.tolist() == [min(32767, max(-32768, exact(v))) for v in x]


@given(st.integers(-32768, 32767), st.integers(-255, 255), scale32, scale32, scale32, st.sampled_from([1, -1]))
def test_wide_add_holds_both_scales(x, y, s1, s2, so, sign):
    """Integer multiples whose ratio is that of the scales, as fine as 30 bits allow."""
    s1, s2 = s1 / 32768, s2 / 255
    params = fp.wide_add_params(s1, 32768, s2, 255, so)
    unit, (f1, f2) = Fraction(params.unit), (Fraction(float(np.float32(s))) for s in (s1, s2))
    assert [params.first, params.second] == [half_even(Fraction(float(np.float64(float(f)) / params.unit))) for f in (f1, f2)]
    assert params.scale == params.unit / float(np.float32(so))
    assert abs(params.first * unit - f1) <= unit * Fraction(501, 1000)
    assert max(params.first * 32768, params.second * 255) >= 2**27
    total = fp.wide_add(np.asarray([x]), np.asarray([y]), params, sign).tolist()
    assert total == [params.first * x + sign * params.second * y]
    assert abs(total[0]) < 2**30


@given(st.one_of(st.integers(0, 2**31 - 1), st.integers(0, 5000), st.sampled_from([2**28, 2**29 - 1, 2**29, 2**30, 2**31 - 1])))
def test_inverse_square_root(x):
    """Within 2**-19 of 1 / sqrt(x): (multiplier * 2**-31 * 2**-shift)**2 * x is 1."""
    multiplier, shift = (int(v) for v in fp.inverse_square_root(x))
    assert 0 <= multiplier < 2**31
    if x <= 1:
        assert (multiplier, shift) == (2**31 - 1, 0)
        return
    square = Fraction(multiplier, 2 ** (31 + shift)) ** 2 * x
    assert abs(square - 1) < Fraction(1, 2**18)
