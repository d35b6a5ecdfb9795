"""The ops of transformers on integers: each rule against real arithmetic, and the same bytes in any order of summation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from qwtv2_edge import fixedpoint as fp
from qwtv2_edge.errors import GraphError, UsageError
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.numerics import Numerics
from qwtv2_edge.ops import OPS, kernels, sequence
from qwtv2_edge.ops.activation import GeluAttrs
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.index import ArgmaxAttrs, MaskFillAttrs
from qwtv2_edge.ops.integers import UNARY_RULES, WIDE_REQUANTIZE, WIDE_RULES
from qwtv2_edge.ops.matmul import BatchMatmulAttrs
from qwtv2_edge.ops.norm import L2NormalizeAttrs, LayerNormAttrs
from qwtv2_edge.ops.pool import SoftmaxAttrs
from qwtv2_edge.ops.spec import NoAttrs

ROWS = 64


def type_of(shape: tuple[int, ...], dtype: str, scale: float, zero_point: int = 0) -> TensorType:
    return TensorType(shape, dtype, Quantization.per_tensor(float(np.float32(scale)), zero_point))


def codes(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    low, high = {"int8": (-128, 128), "int16": (-32768, 32768)}[dtype]
    return rng.integers(low, high, shape, dtype=dtype)


def real(array: np.ndarray, type: TensorType) -> np.ndarray:
    """float64."""
    return (array.astype(np.float64) - type.zero_point) * type.scale


def run(
    op: str, rule: str, arrays: tuple[np.ndarray, ...], types: tuple[TensorType, ...], out: TensorType, attrs: Any = None
) -> np.ndarray:
    """``rule`` holds for both widths of ``op``."""
    numerics = Numerics("test", "", "", {}, {op: rule, f"{op}:int16": rule})
    (got,) = OPS[op].integer(arrays, NoAttrs() if attrs is None else attrs, types, (out,), numerics)
    return got


def off(got: np.ndarray, wanted: np.ndarray, out: TensorType) -> np.ndarray:
    """How far codes are from real values, in steps of the output; what lies outside its range counts as its end."""
    ideal = np.clip(wanted / out.scale + out.zero_point, *out.code_bounds)
    assert got.dtype == out.dtype
    assert got.shape == wanted.shape
    return np.abs(got - ideal)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).mean()))


# ---------------------------------------------------------------- layer_norm


class Norm:
    """A layer_norm of 16-bit codes of standard deviation ``spread``, each row about a mean of its own."""

    def __init__(
        self, channels: int, spread: float, *, centre: bool = True, eps: float = 1e-5, dtype: str = "int8", passes: int = 1
    ) -> None:
        rng = np.random.default_rng(channels)
        means = rng.normal(0, 1500, (ROWS, 1)) if centre else 0
        self.x = np.clip(rng.normal(means, spread, (ROWS, channels)), -32768, 32767).astype(np.int16)
        gamma_type = type_of((channels,), "int16", 1.6 / 32767)
        beta_type = type_of((channels,), "int32", gamma_type.scale * sequence.normal_scale(channels))
        self.types = (type_of(self.x.shape, "int16", 1e-3), gamma_type, beta_type)
        self.gamma = np.clip(rng.normal(1, 0.2, channels) / gamma_type.scale, -32768, 32767).astype(np.int16)
        self.beta = (rng.normal(0, 0.3, channels) / beta_type.scale).astype(np.int32)
        self.out = type_of(self.x.shape, dtype, 0.035 if dtype == "int8" else 6 / 32768, 5 if dtype == "int8" else 0)
        d = real(self.x, self.types[0])
        d = d - d.mean(-1, keepdims=True) if centre else d
        variance = np.square(d).mean(-1, keepdims=True)
        self.attrs = LayerNormAttrs(eps, centre, sequence.variance_shift(self.types[0].scale, float(variance.max())), passes)
        self.wanted = d / np.sqrt(variance + eps) * real(self.gamma, gamma_type) + real(self.beta, beta_type)

    def codes(self, rule: str, x: np.ndarray | None = None) -> np.ndarray:
        return run("layer_norm", rule, (self.x if x is None else x, self.gamma, self.beta), self.types, self.out, self.attrs)

    def off(self, rule: str) -> np.ndarray:
        return off(self.codes(rule), self.wanted, self.out)


NORM_RULES = tuple(sequence.LAYER_NORM_RULES)
CHANNELS = (8, 64, 192, 512, 513, 1024, 3000)


@pytest.mark.parametrize("rule", NORM_RULES)
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("channels", CHANNELS)
def test_layer_norm_rounds_as_well_as_any_8_bit_output_can(rule, channels, centre):
    """Rounding alone is off by 1/2 at most and 0.2887 on average."""
    steps = Norm(channels, 4000, centre=centre).off(rule)
    assert steps.max() <= 0.8
    assert rms(steps) <= 0.295


@pytest.mark.parametrize("rule", ["INT_REF", "INT_ONE"])
@pytest.mark.parametrize("channels", [16, 64, 384, 1024])
@pytest.mark.parametrize("spread", [80, 300])
def test_a_second_pass_serves_rows_of_little_variance(rule, channels, spread):
    once, twice = (rms(Norm(channels, spread, eps=1e-12, passes=p).off(rule)) for p in (1, 2))
    assert twice <= 0.45
    assert spread > 100 or once > 4 * twice
    step = 1e-3 * 2**7.5
    assert sequence.variance_passes(1e-3, (0.9 * step) ** 2, 1e-12) == 2
    assert sequence.variance_passes(1e-3, (0.9 * step) ** 2, step**2) == 1, "an eps that counts would be undone"
    assert sequence.variance_passes(1e-3, (4 * step) ** 2, 1e-12) == 1


@pytest.mark.parametrize("rule", NORM_RULES)
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("channels", CHANNELS)
def test_layer_norm_to_16_bits_is_right_to_11_bits(rule, channels, centre):
    steps = Norm(channels, 4000, centre=centre, dtype="int16").off(rule)
    assert steps.max() <= 64
    assert rms(steps) <= 8


@pytest.mark.parametrize("rule", NORM_RULES)
@pytest.mark.parametrize("channels", [64, 192, 513])
def test_layer_norm_of_rows_within_a_hundredth_of_the_range(rule, channels):
    """What outlying channels of a residual stream leave to the others."""
    assert rms(Norm(channels, 300).off(rule)) <= 0.5


@pytest.mark.parametrize("rule", NORM_RULES)
@pytest.mark.parametrize("eps", [1e-12, 0.1, 4.0])
def test_layer_norm_holds_its_epsilon(rule, eps):
    norm = Norm(64, 2000, eps=eps)
    assert norm.off(rule).max() <= 1.0
    other = Norm(64, 2000, eps=eps * 2 + 1)
    assert rms(off(norm.codes(rule), other.wanted, norm.out)) > 2 * rms(norm.off(rule)), "another epsilon shows"


@pytest.mark.parametrize("rule", NORM_RULES)
@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_rows_without_variance_give_beta(rule, dtype):
    norm = Norm(32, 2000, dtype=dtype)
    got = norm.codes(rule, np.repeat(np.asarray([[-32768], [32767], [0], [1234]], np.int16), 32, 1))
    tolerance = 0.51 if dtype == "int8" else 1.01
    wanted = np.broadcast_to(real(norm.beta, norm.types[2]), got.shape)
    assert off(got, wanted, norm.out).max() <= tolerance


def extremes(rng: np.random.Generator, channels: int) -> np.ndarray:
    """Rows whose sums are as large as they get: both ends of the range in all proportions, one channel apart, all alike."""
    share = rng.random((ROWS, 1))
    rows = np.where(rng.random((ROWS, channels)) < share, 32767, -32768)
    rows[:4] = [[-32768], [32767], [-1], [32766]]
    rows[4:8] = rng.integers(-200, 200, (4, channels))
    rows[4:8, 0] = 32767
    return rows.astype(np.int16)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("channels", [2, 64, 256, 512, 513, 1024, 4096])
def test_float32_layer_norm_does_not_depend_on_the_order_of_summation(channels, centre):
    """Channels change places within the parts that are summed on their own; their results go with them."""
    norm = Norm(channels, 4000, centre=centre)
    rng = np.random.default_rng(channels)
    x = np.concatenate([norm.x, extremes(rng, channels)])
    plain = norm.codes("F32", x)
    ends = sequence.part_ends(channels)
    for _ in range(4):
        order = np.concatenate([a + rng.permutation(b - a) for a, b in itertools.pairwise(ends)])
        arrays = (x[:, order], norm.gamma[order], norm.beta[order])
        np.testing.assert_array_equal(run("layer_norm", "F32", arrays, norm.types, norm.out, norm.attrs), plain[:, order])


@pytest.mark.parametrize("channels", [1, 2, 63, 64, 65, 512, 513, 768, 4096, 5000])
def test_sums_of_squares_and_of_codes_stay_below_the_limit_of_float32(channels):
    step = sequence.square_step(channels, 32768)
    assert channels * (32768 // step) ** 2 <= sequence.EXACT
    assert step == 1 or channels * (32768 // (step // 2)) ** 2 > sequence.EXACT, "no coarser than needed"
    parts, unit = sequence.sum_parts(channels)
    ends = sequence.part_ends(channels)
    assert (ends[0], ends[-1], len(ends)) == (0, channels, parts + 1)
    assert np.diff(ends).min() >= 1
    assert np.diff(ends).max() * 32768 <= sequence.EXACT
    assert channels * 32768 / unit <= sequence.EXACT


def test_parts_cover_any_width():
    for channels in range(1, 6000):
        sizes = np.diff(sequence.part_ends(channels))
        assert sizes.min() >= 1, channels
        assert sizes.max() <= sequence.EXACT_CHANNELS


@pytest.mark.parametrize("root", [sequence.VARIANCE_ROOT, sequence.LENGTH_ROOT])
def test_heron_steps_reach_the_root(root):
    low, high = {sequence.VARIANCE_ROOT: (2, 16), sequence.LENGTH_ROOT: (10, 24)}[root]
    v = np.exp2(np.linspace(low, high, 20_001)).astype(np.float32)
    assert np.abs(root(v) / np.sqrt(v.astype(np.float64)) - 1).max() <= 3e-7
    for far in (v / np.float32(4), v * np.float32(4)):
        assert np.abs(root(far) / np.sqrt(far.astype(np.float64)) - 1).max() <= 7e-4
    for factor in (8.0, 0.125, 22.6):
        scaled = root.scaled(factor)(v * np.float32(factor**2))
        np.testing.assert_allclose(scaled, factor * np.sqrt(v.astype(np.float64)), rtol=3e-6)


def test_heron_steps_round_once_each():
    """The steps as an XNNPACK program does them, in float64 rounded to float32 after every operation."""
    v = np.random.default_rng(0).uniform(1, 2**18, 5000).astype(np.float32)
    f = np.float32
    s = (f(8.0) + (v.astype(np.float64) / 64).astype(f)).astype(f)
    for _ in range(5):
        quotient = (v.astype(np.float64) / s.astype(np.float64)).astype(f)
        s = ((s.astype(np.float64) + quotient.astype(np.float64)).astype(f).astype(np.float64) / 2).astype(f)
    np.testing.assert_array_equal(sequence.VARIANCE_ROOT(v), s)


@pytest.mark.parametrize(("scale", "variance"), [(1e-3, 16.0), (1e-3, 1.0), (1e-5, 1e-4), (0.01, 30.0), (1e-3, 0.0)])
def test_the_shift_is_the_finest_that_holds_twice_the_variance(scale, variance):
    shift = sequence.variance_shift(scale, variance)
    step = np.float64(np.float32(scale)) ** 2 * 2.0**15
    assert -2 <= shift <= sequence.FINEST_SHIFT
    if -2 < shift < sequence.FINEST_SHIFT:
        assert 2 * variance / step * 2.0**shift <= sequence.INDEX_LIMIT < 2 * variance / step * 2.0 ** (shift + 1)
    assert variance > 0 or shift == sequence.FINEST_SHIFT


def test_tables_of_inverse_roots_are_shared_and_right():
    passes = [sequence.Normalising.of(s, 64, eps, 3) for s in (1e-3, 2e-3) for eps in (1e-12, 1e-6)]
    assert len({id(p.inverse) for p in passes}) == 1, "an epsilon that does not show needs no table of its own"
    assert len({p.scale for p in passes}) == 1, "the scale of the input cancels"
    assert sequence.Normalising.of(1e-3, 64, 1.0, 3).inverse is not passes[0].inverse
    for offset in (0.0, 7.5):
        table = sequence.inverse_table(offset)
        index = np.arange(16, sequence.INDEX_LIMIT + 1) + offset
        np.testing.assert_allclose(table[16:], sequence.INVERSE_LIMIT * np.sqrt((16 + offset) / index), atol=0.5)
        assert (table[:16] == sequence.INVERSE_LIMIT).all()
        assert not table.flags.writeable


def replace_scale(type: TensorType, scale: float) -> TensorType:
    return type_of(type.shape, type.dtype, scale)


# ---------------------------------------------------------------- softmax


@pytest.mark.parametrize("entries", [1, 2, 17, 128, 197, 1000])
@pytest.mark.parametrize(("scale", "beta"), [(0.05, 1.0), (0.15, 1.0), (0.02, 0.5), (0.3, 2.0)])
@pytest.mark.parametrize("rule", [r for r in sequence.SOFTMAX_RULES if r != "FIXED"])
def test_softmax(rule, entries, scale, beta):
    """FIXED, which gives up on flat rows, has tests of its own."""
    x = np.clip(np.random.default_rng(entries).normal(0, 60, (ROWS, entries)), -128, 127).astype(np.int8)
    type, out = type_of(x.shape, "int8", scale, 3), type_of(x.shape, "int8", 1 / 256, -128)
    e = np.exp(beta * (real(x, type) - real(x, type).max(-1, keepdims=True)))
    steps = off(run("softmax", rule, (x,), (type,), out, SoftmaxAttrs(beta)), e / e.sum(-1, keepdims=True), out)
    assert steps.max() <= (1.75 if rule == "F32" else 0.52)
    assert rms(steps) <= 0.4


@pytest.mark.parametrize("entries", [2, 64, 1000, 4096])
def test_float32_softmax_does_not_depend_on_the_order_of_summation(entries):
    rng = np.random.default_rng(entries)
    x = np.concatenate([codes(rng, "int8", ROWS, entries), np.full((1, entries), 127, np.int8)])
    type, out = type_of(x.shape, "int8", 0.05, 3), type_of(x.shape, "int8", 1 / 256, -128)
    plain = run("softmax", "F32", (x,), (type,), out, SoftmaxAttrs())
    for _ in range(4):
        order = rng.permutation(entries)
        np.testing.assert_array_equal(run("softmax", "F32", (x[:, order],), (type,), out, SoftmaxAttrs()), plain[:, order])


@pytest.mark.parametrize("entries", [1, 100, 1024, 1025, 65536])
def test_exponentials_add_up_exactly(entries):
    """Multiples of the fine step whose sum, in its units, float32 holds."""
    fine = sequence.softmax_scales(entries)[1]
    table = sequence.softmax_exponentials(0.05, entries)
    assert (table / fine % 1 == 0).all()
    assert entries * float(table.max()) / fine <= sequence.EXACT
    distance = np.arange(-128, 128) - 127  # in the order of look-up: 0..127, -128..-1
    wanted = np.exp(np.float32(0.05) * np.roll(distance, -128).astype(np.float64))
    assert np.abs(table - wanted).max() <= 1 / 256 + fine


def test_softmax_beyond_exact_sums_is_refused():
    with pytest.raises(GraphError, match="65537 entries exceeds 65536"):
        sequence.softmax_scales(65537)


# ---------------------------------------------------------------- l2_normalize


@pytest.mark.parametrize("channels", [3, 64, 384, 1024])
@pytest.mark.parametrize("zero_point", [0, -128, 60])
@pytest.mark.parametrize("rule", sequence.L2_RULES)
def test_l2_normalize(rule, channels, zero_point):
    rng = np.random.default_rng(channels)
    x = codes(rng, "int8", ROWS, channels)
    type, out = type_of(x.shape, "int8", 0.037, zero_point), type_of(x.shape, "int8", 1 / 128)
    r = real(x, type)
    steps = off(run("l2_normalize", rule, (x,), (type,), out, L2NormalizeAttrs()), r / np.sqrt(np.square(r).sum(-1, keepdims=True)), out)
    assert steps.max() <= 1.1
    assert rms(steps) <= 0.4


@pytest.mark.parametrize("rule", sequence.L2_RULES)
def test_length_zero_stays_zero(rule):
    x = np.full((1, 16), 9, np.int8)
    assert not run(
        "l2_normalize", rule, (x,), (type_of(x.shape, "int8", 0.1, 9),), type_of(x.shape, "int8", 1 / 128), L2NormalizeAttrs()
    ).any()


@pytest.mark.parametrize("channels", [64, 256, 300, 4096])
def test_float32_l2_normalize_does_not_depend_on_the_order_of_summation(channels):
    rng = np.random.default_rng(channels)
    x = np.concatenate([codes(rng, "int8", ROWS, channels), np.full((1, channels), -128, np.int8)])
    for zero_point in (0, 127):
        type, out = type_of(x.shape, "int8", 0.03, zero_point), type_of(x.shape, "int8", 1 / 128)
        plain = run("l2_normalize", "F32", (x,), (type,), out, L2NormalizeAttrs())
        for _ in range(4):
            order = rng.permutation(channels)
            shuffled = run("l2_normalize", "F32", (x[:, order],), (type,), out, L2NormalizeAttrs())
            np.testing.assert_array_equal(shuffled, plain[:, order])


# ---------------------------------------------------------------- products, sums, scalings


@pytest.mark.parametrize("rule", sequence.MATMUL_RULES)
@pytest.mark.parametrize("dtype", ["int8", "int16"])
@pytest.mark.parametrize("inner", [1, 64, 256, 257, 700])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_products(rule, dtype, inner, transpose_b):
    rng = np.random.default_rng(inner)
    a = codes(rng, dtype, 2, 5, inner)
    b = codes(rng, dtype, 2, 7, inner) if transpose_b else codes(rng, dtype, 2, inner, 7)
    if dtype == "int16":  # other rules than R64 hold int32 sums alone
        a, b = a // 64, b // 64
    types = type_of(a.shape, dtype, 0.02, -9 if dtype == "int8" else 0), type_of(b.shape, dtype, 0.03)
    x, y = real(a, types[0]), real(b, types[1])
    wanted = x @ (y.swapaxes(1, 2) if transpose_b else y)
    out = type_of(wanted.shape, dtype, float(np.abs(wanted).max()) / {"int8": 120, "int16": 32000}[dtype], 4 if dtype == "int8" else 0)
    steps = off(run("batch_matmul", rule, (a, b), types, out, BatchMatmulAttrs(transpose_b)), wanted, out)
    # REF rounds twice; R64 has a multiplier of 15 bits
    assert steps.max() <= (0.76 if rule.startswith("REF") else 2.1 if rule.startswith("R64") and dtype == "int16" else 0.52)


def test_long_products_are_summed_exactly():
    """A sum beyond what float32 holds, on a tie of the output and next to it."""
    total = 201 * 2**17
    a = np.asarray([[[255] * 813 + [255, 147]]]) - 128
    b = np.asarray([[[127] * 813 + [64, 1]]], np.int8)
    assert int(((a + 128) * b).sum()) == total > sequence.EXACT
    types = type_of(a.shape, "int8", 1.0, -128), type_of(b.shape, "int8", 1.0)
    out = type_of((1, 1, 1), "int8", 2.0**18)
    for less, wanted in ((0, 101), (1, 100)):
        a[..., -1] -= less
        assert run("batch_matmul", "ONE_F32", (a.astype(np.int8), b), types, out, BatchMatmulAttrs(True)).item() == wanted


@pytest.mark.parametrize(
    ("op", "dtypes"),
    [("mul", ("int16", "int16")), *((op, pair) for op in ("add", "sub") for pair in itertools.product(("int8", "int16"), repeat=2))],
)
def test_16_bit_sums_and_products(op, dtypes):
    rng = np.random.default_rng(5)
    a, b = (codes(rng, d, ROWS, 33) for d in dtypes)
    types = tuple(
        type_of(a.shape, d, s if d == "int16" else s * 200, 11 if d == "int8" else 0) for d, s in zip(dtypes, (1e-3, 7e-4), strict=True)
    )
    wanted = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[op](real(a, types[0]), real(b, types[1]))
    out = type_of(a.shape, "int16", float(np.abs(wanted).max()) / 32000)
    for rule in WIDE_RULES[op]:
        steps = off(run(op, rule, (a, b), types, out, BinaryAttrs()), wanted, out)
        # integer sums hold each operand's scale to one part in 10000 or better
        assert steps.max() <= (3.0 if rule.startswith("SUM") else 0.76), rule
        clamped = run(op, rule, (a, b), types, out, BinaryAttrs("relu6"))
        assert clamped.min() == 0
        assert clamped.max() * out.scale <= 6 + out.scale


@pytest.mark.parametrize("rule", WIDE_REQUANTIZE)
@pytest.mark.parametrize(("source", "target"), [("int8", "int16"), ("int16", "int8"), ("int16", "int16")])
def test_requantize_between_widths(rule, source, target):
    x = codes(np.random.default_rng(6), source, ROWS, 40)
    type = type_of(x.shape, source, 0.04 if source == "int8" else 2e-4, 17 if source == "int8" else 0)
    out = type_of(x.shape, target, 0.03 if target == "int8" else 1.7e-4, -20 if target == "int8" else 0)
    assert off(run("requantize", rule, (x,), (type,), out), real(x, type), out).max() <= 0.51


@pytest.mark.parametrize("rule", WIDE_REQUANTIZE)
def test_every_8_bit_code_has_a_16_bit_one(rule):
    x = np.arange(-128, 128, dtype=np.int8).reshape(1, -1)
    for zero_point in (-128, 0, 127):
        type = type_of(x.shape, "int8", 0.037, zero_point)
        wide = run("requantize", rule, (x,), (type,), replace_scale(type_of(x.shape, "int16", 1), type.scale / 128))
        np.testing.assert_array_equal(wide, np.clip((x.astype(int) - zero_point) * 128, -32768, 32767))


@pytest.mark.parametrize("rule", sequence.CHANNEL_SCALE_RULES)
def test_channel_scale(rule):
    rng = np.random.default_rng(7)
    x, gain = codes(rng, "int16", ROWS, 24), codes(rng, "int16", 24)
    types = type_of(x.shape, "int16", 1e-3), type_of(gain.shape, "int16", 3e-5)
    wanted = real(x, types[0]) * real(gain, types[1])
    out = type_of(x.shape, "int8", 0.2, -7)
    assert off(run("channel_scale", rule, (x, gain), types, out), wanted, out).max() <= 0.51


@pytest.mark.parametrize("rule", sorted(sequence.CHANNEL_ADD_RULES))
@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_channel_add(rule, dtype):
    rng = np.random.default_rng(8)
    x, y = codes(rng, dtype, ROWS, 24), codes(rng, "int8", ROWS, 24)
    gain = np.geomspace(100, 32767, 24).astype(np.int16)
    x_type = type_of(x.shape, dtype, 1e-3 if dtype == "int16" else 0.1, 0 if dtype == "int16" else 9)
    types = x_type, type_of(y.shape, "int8", 0.3), type_of(gain.shape, "int16", 1 / 32767)
    wanted = real(x, types[0]) + real(y, types[1]) * real(gain, types[2])
    out = type_of(x.shape, "int16", 3e-3)
    # factors of 13 bits leave a 16-bit operand a fraction of a step
    assert off(run("channel_add", rule, (x, y, gain), types, out), wanted, out).max() <= 1.5


# ---------------------------------------------------------------- gelu, masks, positions


def test_float_gelu_is_right_to_a_millionth():
    x = np.concatenate([np.linspace(-12, 12, 100_001), [-1e4, 1e4, 0]]).astype(np.float32)
    exact = x * (1 - kernels.erfc(x / np.sqrt(2)) / 2)
    np.testing.assert_allclose(kernels.gelu(x, False), exact, rtol=2e-6, atol=1.5e-6)
    near = x[:-3]
    tanh = 0.5 * near * (1 + np.tanh(np.sqrt(2 / np.pi) * (near + 0.044715 * near.astype(np.float64) ** 3)))
    np.testing.assert_allclose(kernels.gelu(near, True), tanh, atol=3e-6)
    assert np.abs(tanh - exact[:-3]).max() > 1e-4, "the two forms differ"


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("rule", UNARY_RULES["gelu"])
def test_gelu(rule, approximate):
    x = np.arange(-128, 128, dtype=np.int8).reshape(1, -1)
    type, out = type_of(x.shape, "int8", 0.045, 12), type_of(x.shape, "int8", 0.022, -110)
    steps = off(
        run("gelu", rule, (x,), (type,), out, GeluAttrs(approximate)), kernels.gelu(real(x, type).astype(np.float32), approximate), out
    )
    assert steps.max() <= 0.51


def test_mask_fill_keeps_or_gives_the_lowest_code():
    x = codes(np.random.default_rng(8), "int8", 2, 3, 5)
    mask = np.asarray([127, -128, 127, 127, -128], np.int8)
    type = type_of(x.shape, "int8", 0.1, 4)
    got = run("mask_fill", "", (x, mask), (type, type_of((5,), "int8", 1 / 255, -128)), type, MaskFillAttrs())
    np.testing.assert_array_equal(got[..., [0, 2, 3]], x[..., [0, 2, 3]])
    assert (got[..., [1, 4]] == -128).all()


def test_argmax_takes_the_first_of_equal_entries():
    x = np.asarray([[3, 7, 7, -1], [-128, -128, -128, -128]], np.int8)
    type, out = type_of(x.shape, "int8", 0.1), TensorType((2,), "int32")
    assert run("argmax", "", (x,), (type,), out, ArgmaxAttrs(1)).tolist() == [1, 0]
    assert run("argmax", "", (x,), (type,), TensorType((1, 4), "int32"), ArgmaxAttrs(0, True)).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("bad", [-1, 5])
def test_an_index_outside_the_table_is_refused(bad):
    table = np.arange(10, dtype=np.int8).reshape(5, 2)
    types = TensorType((1, 2), "int32"), type_of(table.shape, "int8", 0.1)
    out = type_of((1, 2, 2), "int8", 0.1)
    assert run("embedding", "", (np.asarray([[4, 0]], np.int32), table), types, out).tolist() == [[[8, 9], [0, 1]]]
    with pytest.raises(UsageError, match=f"index {bad} is outside a table of 5 entries"):
        run("embedding", "", (np.asarray([[0, bad]], np.int32), table), types, out)


def test_a_rule_that_is_not_there_is_named():
    with pytest.raises(GraphError, match="'NONE' for layer_norm"):
        Norm(8, 1000).codes("NONE")


def test_softmax_with_another_output_scale_is_refused():
    type = type_of((1, 2), "int8", 0.1)
    with pytest.raises(GraphError, match="softmax gives scale 1/256"):
        run("softmax", "F32", (np.zeros((1, 2), np.int8),), (type,), type, SoftmaxAttrs())


def test_rounding_of_small_integers_is_to_even():
    np.testing.assert_array_equal(sequence.round32(np.float32([0.5, 1.5, -0.5, -2.5])), np.float32([0, 2, 0, -2]))
    assert sequence.clamp_round32(np.float32([1e9, -1e9, 2.5])).tolist() == [32767, -32768, 2]
    assert fp.saturate16(np.asarray([40_000, -40_000])).tolist() == [32767, -32768]
