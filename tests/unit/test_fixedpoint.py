"""Vectors worked by hand from the definitions; values checked against runtimes stand in tests/runtime."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from qwtv2_edge import fixedpoint as fp
from qwtv2_edge.errors import QuantizeError


def test_rounding_helpers():
    x = np.asarray([0.5, -0.5, 1.5, -1.5, 2.5, 0.49999999999999994, -0.49999999999999994, 4503599627370495.5])
    assert fp.round_half_away(x).tolist() == [1, -1, 2, -2, 3, 0, 0, 4503599627370496]
    assert fp.round_half_even(x).tolist() == [0, 0, 2, -2, 2, 0, 0, 4503599627370496]
    assert fp.round_half_away(np.asarray([0.49999997], np.float32)).tolist() == [0]
    assert fp.divide_half_away([5, -5, 6, -6, 7, 0], [2, 2, 4, 4, 3, 3]).tolist() == [3, -3, 2, -2, 2, 0]
    assert fp.floor_divide_half_up([5, -5, 7, -7], [2, 2, 3, 3]).tolist() == [3, -2, 2, -2]


@pytest.mark.parametrize(
    ("scale", "multiplier", "shift"),
    [
        (0.0, 0, 0),
        (1.0, 2**30, 1),
        (0.5, 2**30, 0),
        (0.75, 3 * 2**29, 0),
        (2.0**-32, 2**30, -31),
        (2.0**-33, 0, 0),  # below: the multiplier is gone
        (1.0 - 2.0**-40, 2**30, 1),  # rounds up to a full multiplier
        (2.0**-32 * (1 - 2.0**-40), 2**30, -31),  # rounded up first, then measured
        (3.0 * 2**29, 3 * 2**29, 31),
    ],
)
def test_quantize_multiplier(scale, multiplier, shift):
    m, e = fp.quantize_multiplier(scale)
    assert (int(m), int(e)) == (multiplier, shift)


@pytest.mark.parametrize("scale", [-0.5, np.inf, np.nan])
def test_quantize_multiplier_refuses(scale):
    with pytest.raises(QuantizeError, match=re.escape(f"effective scale {scale} has no multiplier")):
        fp.quantize_multiplier(np.asarray([0.5, scale]))


def test_quantize_multiplier_refuses_shifts_beyond_31():
    with pytest.raises(QuantizeError, match=r"not below 2\*\*31"):
        fp.quantize_multiplier(2.0**31)


def test_srdhm():
    assert fp.srdhm([-(2**31)], [-(2**31)]).tolist() == [2**31 - 1]
    assert fp.srdhm([1, -1, 3, -3], [2**30] * 4).tolist() == [1, 0, 2, -1]  # halves go up


def test_shifts_round_as_named():
    x = np.asarray([-7, -6, -5, -2, -1, 0, 1, 2, 5, 6, 7])
    assert fp.rdbpot(x, 2).tolist() == [-2, -2, -1, -1, 0, 0, 0, 1, 1, 2, 2]
    assert fp.rshr(x, 2).tolist() == [-2, -1, -1, 0, 0, 0, 0, 1, 1, 2, 2]
    assert fp.rdbpot(x, 0).tolist() == x.tolist()
    assert fp.rshr(x, 0).tolist() == x.tolist()
    assert fp.truncate_shift(x, 1).tolist() == [-3, -3, -2, -1, 0, 0, 0, 1, 2, 3, 3]


def test_schemes_differ_on_the_ties_they_differ_on():
    # scale 1/4: the first rounding of REF and UP2 halves, the second sees what is left
    acc = np.asarray([-10, -6, -2, 2, 6, 10])  # halves, exactly
    got = {s: fp.requantize(acc, fp.effective_scale(s, 1.0, np.asarray([0.25]), 1.0), s).tolist() for s in fp.SCHEMES}
    assert got == {
        "REF": [-3, -2, -1, 1, 2, 3],
        "UP2": [-2, -1, 0, 1, 2, 3],
        "UP2_8": [-3, -2, -1, 1, 2, 3],  # fewer than 8 channels
        "ONE": [-2, -1, 0, 1, 2, 3],
        "F64": [-3, -2, -1, 1, 2, 3],
        "F32E": [-2, -2, 0, 0, 2, 2],
        "R64": [-2, -1, 0, 1, 2, 3],
    }


def test_whole_groups_of_8_channels_round_up():
    assert fp.requantize(np.full((2, 19), -10), np.asarray([0.25]), "UP2_8").tolist() == [[-2] * 16 + [-3] * 3] * 2


def test_double_rounding_shows():
    # 2.49 -> first rounding to quarters gives 2.5 -> 3
    scale = np.asarray([0.249])
    assert fp.requantize(np.asarray([10]), scale, "ONE").tolist() == [2]
    assert fp.requantize(np.asarray([10]), scale, "REF").tolist() == [3]


def test_float32_accumulators_round_to_24_bits():
    scale = np.asarray([1.0], np.float32)
    assert fp.requantize(np.asarray([2**24 + 1, 2**24 + 3]), scale, "F32E").tolist() == [2**24, 2**24 + 4]


def test_activation_bounds():
    # 6 / s = 50.5: TFLite rounds before it adds the zero point, XNNPACK after, to even
    scale = float(np.float32(6 / 50.5))
    ratio = np.float32(6) / np.float32(scale)
    assert ratio == 50.5
    assert fp.activation_bounds(0, 6, scale, 1, "TFLITE") == (1, 52)
    assert fp.activation_bounds(0, 6, scale, 1, "XNN") == (1, 52)
    assert fp.activation_bounds(0, 6, scale, 2, "TFLITE") == (2, 53)
    assert fp.activation_bounds(0, 6, scale, 2, "XNN") == (2, 52)
    assert fp.activation_bounds(-np.inf, np.inf, scale, 2, "TFLITE") == (-128, 127)
    assert fp.activation_bounds(-1, 1, 1e-30, 0, "TFLITE") == (-128, 127)
    with pytest.raises(QuantizeError, match="leaves no code"):
        fp.activation_bounds(3.0, 6.0, 0.001, 0, "TFLITE")


def test_exponential_and_logistic_stay_within_2_to_the_minus_23():
    a = -np.concatenate([np.arange(0, 1 << 16, 7), np.geomspace(1 << 16, 2**31, 4000).astype(np.int64)])
    real = np.exp(a / 2.0**26)
    assert np.abs(fp.exp_on_negative_values(a, 5) / 2.0**31 - real).max() < 2.0**-22
    x = np.linspace(-(2**31) + 1, 2**31 - 1, 9999).astype(np.int64)
    assert np.abs(fp.logistic_fixed(x) / 2.0**31 - 1 / (1 + np.exp(-x / 2.0**27))).max() < 2.0**-22
    assert np.abs(fp.tanh_fixed(x) / 2.0**31 - np.tanh(x / 2.0**27)).max() < 2.0**-20
    assert fp.logistic_fixed(np.asarray([0])).tolist() == [2**30]
    assert fp.tanh_fixed(np.asarray([0])).tolist() == [0]


def test_reciprocal():
    x = np.asarray([1 << 19, (1 << 19) * 3, 12345678, 2**31 - 1])
    fraction, bits = fp.reciprocal(x, 12)
    got = fraction / 2.0**31 / 2.0**bits
    assert np.abs(got * (x / 2.0**19) - 1).max() < 2.0**-27


def test_softmax_forms_agree_within_one_step():
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (200, 10), dtype=np.int8)
    s, beta = 0.07, 1.3
    real = np.exp(codes * np.float64(np.float32(s)) * beta)
    ideal = real / real.sum(-1, keepdims=True) * 256 - 128
    for got in (
        fp.softmax_fixed(codes, s, beta),
        fp.softmax_float_lut(codes, s, beta, 1 / 256, -128),
        fp.softmax_lut16(codes, s, beta, 1 / 256, -128),
        fp.softmax_integer_table(codes, s, beta),
    ):
        assert np.abs(got - np.minimum(ideal, 127)).max() < 0.51
    with pytest.raises(QuantizeError, match="2049 entries exceeds 2048"):
        fp.softmax_integer_table(np.zeros((1, 2049), np.int8), s, beta)


def test_left_shift_add_refuses_what_aborts():
    with pytest.raises(QuantizeError, match=r"2\*\*19 or more"):
        fp.left_shift_add_params(2.0**19, 1.0, 1.0)
    fp.left_shift_add_params(2.0**19 * 0.999, 1.0, 1.0)


def test_q20_window():
    assert fp.q20_add_params(2.0**8, 1.0, 1.0) is None
    assert fp.q20_add_params(1.0, 2.0**-11, 1.0) is None
    assert fp.q20_add_params(1.0, 0.5, 1.0) == fp.Q20Add(2**20, 2**19, 20)


# ---------------------------------------------------------------- one home of shifts (rounding: test_architecture.py)


def test_only_fixedpoint_shifts():
    root = Path(fp.__file__).parent
    found = []
    for path in sorted(p for folder in ("ops", "simulator", "ir") for p in (root / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.LShift | ast.RShift) and not isinstance(node.left, ast.Constant):
                found.append(f"{path.relative_to(root)}:{node.lineno}")
    assert not found, f"shifting belongs in fixedpoint.py: {', '.join(found)}"
