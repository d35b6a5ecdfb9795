"""The fast integer kernels against plain int64 loops written the obvious way."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from qwtv2_edge import fixedpoint as fp
from qwtv2_edge.errors import GraphError, QuantizeError
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.numerics import Numerics
from qwtv2_edge.ops import OPS, weighted
from qwtv2_edge.ops.activation import AlphaAttrs
from qwtv2_edge.ops.conv import Conv2DAttrs, DepthwiseAttrs, TransposeConvAttrs
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.linear import FullyConnectedAttrs
from qwtv2_edge.ops.pool import PoolAttrs, SoftmaxAttrs
from qwtv2_edge.ops.rules import KNOWN_RULES
from qwtv2_edge.ops.spec import NoAttrs

WEIGHTED = ("conv2d", "depthwise_conv2d", "transpose_conv2d", "fully_connected")
#: with other types, or other bounds
IN_TEST_SEQUENCE = ("layer_norm", "channel_add", "channel_scale", "batch_matmul", "l2_normalize", "gelu")


def numerics(**rules: str) -> Numerics:
    return Numerics("test", "", "", {}, rules)


def codes(rng, *shape):
    return rng.integers(-128, 128, shape, dtype=np.int8)


def act(shape, scale=0.05, zero_point=3) -> TensorType:
    return TensorType(tuple(shape), "int8", Quantization.per_tensor(scale, zero_point))


def weight_types(x, w, axis, scale=None, zero_point=3):
    scales = np.full(w.shape[axis], 0.01, np.float32) if scale is None else scale
    return (
        act(x.shape, zero_point=zero_point),
        TensorType(w.shape, "int8", Quantization.per_channel(scales, axis)),
        TensorType((w.shape[axis],), "int32"),
    )


# ---------------------------------------------------------------- naive accumulators


def naive_conv(x, w, b, attrs, z):
    (top, _), (left, _) = attrs.padding
    o, kh, kw, i = w.shape
    groups = getattr(attrs, "groups", 1)
    n, oh, ow = weighted.output_shape("conv2d", (x, w, b), attrs, ())[:3]
    out = np.zeros((n, oh, ow, o), np.int64) + b
    for s, y, xx, ch, ky, kx in product(range(n), range(oh), range(ow), range(o), range(kh), range(kw)):
        iy, ix = y * attrs.stride[0] + ky * attrs.dilation[0] - top, xx * attrs.stride[1] + kx * attrs.dilation[1] - left
        if 0 <= iy < x.shape[1] and 0 <= ix < x.shape[2]:
            g = ch // (o // groups)
            out[s, y, xx, ch] += int((x[s, iy, ix, g * i : (g + 1) * i].astype(np.int64) - z) @ w[ch, ky, kx].astype(np.int64))
    return out


def naive_depthwise(x, w, b, attrs, z):
    c = w.shape[3]
    m = c // x.shape[3]
    spread = np.zeros((c, *w.shape[1:3], x.shape[3]), np.int8)
    for ch in range(c):
        spread[ch, :, :, ch // m] = w[0, :, :, ch]
    return naive_conv(x, spread, b, attrs, z)


def naive_transpose(x, w, b, attrs, z):
    n, h, wd, _ = x.shape
    o, kh, kw, _ = w.shape
    (top, bottom), (left, right) = attrs.crop
    full_h, full_w = (h - 1) * attrs.stride[0] + kh, (wd - 1) * attrs.stride[1] + kw
    out = np.zeros((n, full_h + max(0, -bottom), full_w + max(0, -right), o), np.int64)
    for s, y, xx, ky, kx in product(range(n), range(h), range(wd), range(kh), range(kw)):
        out[s, y * attrs.stride[0] + ky, xx * attrs.stride[1] + kx] += w[:, ky, kx].astype(np.int64) @ (x[s, y, xx].astype(np.int64) - z)
    return out[:, top : full_h - bottom, left : full_w - right] + b


CONV_CASES = [
    ((2, 5, 6, 3), (4, 3, 3, 3), Conv2DAttrs(padding=((1, 1), (1, 1)))),
    ((1, 7, 5, 4), (6, 3, 2, 4), Conv2DAttrs(stride=(2, 3), padding=((0, 1), (2, 0)))),
    ((1, 8, 8, 2), (3, 3, 3, 2), Conv2DAttrs(dilation=(2, 3), padding=((2, 2), (3, 3)))),
    ((2, 4, 4, 6), (4, 1, 1, 6), Conv2DAttrs()),
    ((2, 5, 4, 6), (4, 1, 1, 6), Conv2DAttrs(stride=(2, 2))),
    ((2, 4, 4, 6), (4, 1, 1, 6), Conv2DAttrs(padding=((1, 0), (0, 1)))),
    ((2, 5, 5, 6), (4, 3, 3, 3), Conv2DAttrs(groups=2, padding=((1, 1), (1, 1)))),
    ((1, 1, 9, 3), (2, 1, 4, 3), Conv2DAttrs(padding=((0, 0), (1, 2)))),
]


@pytest.mark.parametrize("zero_point", [-128, 3, 127])
@pytest.mark.parametrize(("xs", "ws", "attrs"), CONV_CASES)
def test_conv_accumulators(xs, ws, attrs, zero_point):
    rng = np.random.default_rng(1)
    x, w, b = codes(rng, *xs), codes(rng, *ws), rng.integers(-(2**20), 2**20, ws[0]).astype(np.int32)
    types = weight_types(x, w, 0, zero_point=zero_point)
    np.testing.assert_array_equal(weighted.accumulate("conv2d", (x, w, b), attrs, types), naive_conv(x, w, b, attrs, zero_point))


@pytest.mark.parametrize("zero_point", [-128, 3, 127])
@pytest.mark.parametrize(
    ("xs", "ws", "attrs"),
    [
        ((2, 6, 7, 5), (1, 3, 3, 5), DepthwiseAttrs(padding=((1, 1), (1, 1)))),
        ((1, 6, 7, 5), (1, 3, 3, 5), DepthwiseAttrs(stride=(2, 2), padding=((0, 1), (0, 1)))),
        ((1, 9, 9, 2), (1, 3, 3, 4), DepthwiseAttrs(stride=(1, 2), dilation=(2, 1))),
        ((1, 9, 9, 2), (1, 2, 3, 2), DepthwiseAttrs(stride=(3, 2), dilation=(1, 2), padding=((1, 0), (2, 2)))),
        ((1, 5, 5, 3), (1, 1, 1, 3), DepthwiseAttrs(stride=(2, 3))),
    ],
)
def test_depthwise_accumulators(xs, ws, attrs, zero_point):
    rng = np.random.default_rng(2)
    x, w, b = codes(rng, *xs), codes(rng, *ws), rng.integers(-(2**20), 2**20, ws[3]).astype(np.int32)
    types = weight_types(x, w, 3, zero_point=zero_point)
    got = weighted.accumulate("depthwise_conv2d", (x, w, b), attrs, types)
    np.testing.assert_array_equal(got, naive_depthwise(x, w, b, attrs, zero_point))


@pytest.mark.parametrize(
    "attrs",
    [
        TransposeConvAttrs(),
        TransposeConvAttrs(stride=(2, 2), crop=((1, 1), (1, 0))),
        TransposeConvAttrs(stride=(2, 3), crop=((1, -1), (0, -1))),
    ],
)
def test_transpose_conv_accumulators(attrs):
    rng = np.random.default_rng(3)
    x, w, b = codes(rng, 2, 4, 3, 5), codes(rng, 4, 3, 3, 5), rng.integers(-1000, 1000, 4).astype(np.int32)
    got = weighted.accumulate("transpose_conv2d", (x, w, b), attrs, weight_types(x, w, 0, zero_point=-7))
    np.testing.assert_array_equal(got, naive_transpose(x, w, b, attrs, -7))


@pytest.mark.parametrize("shape", [(1, 7), (5, 40), (2, 3, 2500)])
def test_fully_connected_accumulators(shape):
    rng = np.random.default_rng(4)
    x, w, b = codes(rng, *shape), codes(rng, 6, shape[-1]), rng.integers(-(2**24), 2**24, 6).astype(np.int32)
    got = weighted.accumulate("fully_connected", (x, w, b), FullyConnectedAttrs(), weight_types(x, w, 0))
    np.testing.assert_array_equal(got, (x.astype(np.int64) - 3) @ w.T.astype(np.int64) + b)


# ---------------------------------------------------------------- exactness at the float32 edge


@pytest.mark.parametrize(("count", "pieces"), [(1023, 1), (1024, 2), (2046, 2), (2047, 3), (5000, 5)])
def test_sums_are_cut_where_float32_ends(count, pieces):
    # |w| = 128 against x = -128: 1024 products of 2**14 reach exactly 2**24
    w = np.full((2, count), -128, np.int8)
    w[1] = 1
    x = np.full((3, count), -128, np.int8)
    x[1] = 127
    assert len(weighted.Matrix.of(w).pieces) == pieces
    got = weighted.accumulate("fully_connected", (x, w, np.zeros(2, np.int32)), FullyConnectedAttrs(), weight_types(x, w, 0))
    np.testing.assert_array_equal(got, (x.astype(np.int64) - 3) @ w.T.astype(np.int64))


def test_depthwise_beyond_float32():
    x, w = np.full((1, 40, 40, 2), -128, np.int8), np.full((1, 33, 33, 2), -128, np.int8)
    x[0, 0, 0, 0] = -127
    b = np.zeros(2, np.int32)
    attrs = DepthwiseAttrs()
    got = weighted.accumulate("depthwise_conv2d", (x, w, b), attrs, weight_types(x, w, 3, zero_point=127))
    assert got[0, 0, 0].tolist() == [33 * 33 * 255 * 128 - 128, 33 * 33 * 255 * 128]


# ---------------------------------------------------------------- requantization and overflow


def weighted_case(rng, bias_limit, scale_log, k=20, n=64):
    x, w = codes(rng, n, k), codes(rng, 8, k)
    b = rng.integers(-bias_limit, bias_limit, 8).astype(np.int32)
    scales = np.exp2(rng.uniform(*scale_log, 8)).astype(np.float32)
    types = weight_types(x, w, 0, scales)
    return (x, w, b), types, (act((n, 8), 0.07, -5),)


@pytest.mark.parametrize("scheme", fp.SCHEMES)
@pytest.mark.parametrize(("bias_limit", "scale_log"), [(1000, (-9, -5)), (2**22, (-16, -12)), (2**30, (-24, -20)), (2**25, (-40, -10))])
@pytest.mark.parametrize("activation", ["none", "relu6"])
def test_fused_requantization_equals_the_two_steps(scheme, bias_limit, scale_log, activation):
    arrays, types, out = weighted_case(np.random.default_rng(5), bias_limit, scale_log)
    attrs = FullyConnectedAttrs(activation)
    rules = numerics(fully_connected=scheme)
    acc = weighted.accumulate("fully_connected", arrays, attrs, types)
    low, high = weighted.output_bounds(activation, out[0], rules)
    scale = fp.effective_scale(scheme, types[0].scale, types[1].quantization.scale_array, out[0].scale)
    expected = fp.to_codes(fp.requantize(acc, scale, scheme), -5, low, high)
    (got,) = OPS["fully_connected"].integer(arrays, attrs, types, out, rules)
    np.testing.assert_array_equal(got, expected)
    two = weighted.requantize_output("fully_connected", acc, attrs, types, out, rules)
    np.testing.assert_array_equal(two, expected)
    assert len(np.unique(expected)) >= 2


def test_one_scale_uses_the_float32_product_in_fully_connected_reference():
    x_scale, w_scale, out_scale = 0.1, 0.3, 0.7
    product = np.float64(np.float32(x_scale) * np.float32(w_scale)) / np.float64(np.float32(out_scale))
    assert fp.float32_product_scale(x_scale, w_scale, out_scale) == product
    assert fp.effective_scale("REF", x_scale, np.asarray([w_scale]), out_scale) != product


@pytest.mark.parametrize("op", ["fully_connected", "conv2d"])
def test_accumulator_beyond_int32_is_refused(op):
    x = np.full((1, 1, 1, 2), 127, np.int8)
    w = np.full((1, 1, 1, 2), 127, np.int8)
    b = np.asarray([2**31 - 1], np.int32)
    attrs = Conv2DAttrs()
    if op == "fully_connected":
        x, w, attrs = x.reshape(1, 2), w.reshape(1, 2), FullyConnectedAttrs()
    types = weight_types(x, w, 0)
    with pytest.raises(QuantizeError, match=r"accumulator 2147515143 does not fit 32 bits"):
        weighted.accumulate(op, (x, w, b), attrs, types)
    for scheme in set(fp.SCHEMES) - {"R64"}:  # which has 64-bit accumulators
        with pytest.raises(QuantizeError, match="does not fit 32 bits"):
            OPS[op].integer((x, w, b), attrs, types, (act((1, 1), 1e3),), numerics(**{op: scheme}))


def test_left_shift_beyond_int32_is_refused():
    x, w, b = np.full((1, 2), 127, np.int8), np.full((1, 2), 127, np.int8), np.asarray([2**20], np.int32)
    types = weight_types(x, w, 0, np.asarray([1e4], np.float32))
    with pytest.raises(QuantizeError, match="shifted accumulator"):
        OPS["fully_connected"].integer((x, w, b), FullyConnectedAttrs(), types, (act((1, 1), 1e-2),), numerics(fully_connected="REF"))


def test_weight_zero_point_is_refused():
    x, w, b = np.zeros((1, 2), np.int8), np.zeros((1, 2), np.int8), np.zeros(1, np.int32)
    types = (act((1, 2)), TensorType((1, 2), "int8", Quantization((0.1,), (1,), 0)), TensorType((1,), "int32"))
    with pytest.raises(QuantizeError, match="symmetric"):
        weighted.accumulate("fully_connected", (x, w, b), FullyConnectedAttrs(), types)


def test_unknown_rule_is_refused():
    x = np.zeros((1, 4), np.int8)
    with pytest.raises(GraphError, match=r"numerics 'test' names none for add"):
        OPS["add"].integer((x, x), BinaryAttrs(), (act((1, 4)),) * 2, (act((1, 4)),), numerics())
    with pytest.raises(GraphError, match=r"'test' has no rule for fully_connected \(it says 'WHAT'\)"):
        OPS["fully_connected"].integer(
            (x, x, np.zeros(1, np.int32)), FullyConnectedAttrs(), weight_types(x, x, 0), (act((1, 1)),), numerics(fully_connected="WHAT")
        )


# ---------------------------------------------------------------- batches, blocks, caches


@pytest.mark.parametrize("op", ["conv2d", "depthwise_conv2d"])
def test_many_samples_and_small_blocks_change_nothing(op, monkeypatch):
    rng = np.random.default_rng(6)
    x = codes(rng, 7, 9, 10, 4)
    w = codes(rng, 5, 3, 3, 4) if op == "conv2d" else codes(rng, 1, 3, 3, 4)
    attrs = Conv2DAttrs(padding=((1, 1), (0, 2))) if op == "conv2d" else DepthwiseAttrs(padding=((1, 1), (0, 2)), stride=(2, 2))
    axis = 0 if op == "conv2d" else 3
    b = rng.integers(-500, 500, w.shape[axis]).astype(np.int32)
    types = weight_types(x[:1], w, axis)
    expected = np.concatenate([weighted.accumulate(op, (x[i : i + 1], w, b), attrs, types) for i in range(7)])
    for columns, accumulators in ((1 << 18, 1 << 17), (700, 200), (100, 30), (1, 1)):
        monkeypatch.setattr(weighted, "BLOCK_COLUMNS", columns)
        monkeypatch.setattr(weighted, "BLOCK_ACCUMULATORS", accumulators)
        np.testing.assert_array_equal(weighted.accumulate(op, (x, w, b), attrs, types), expected)


def test_prepared_weights_follow_the_arrays():
    rng = np.random.default_rng(7)
    x = codes(rng, 2, 6)
    results = []
    for seed in range(20):  # arrays die and their memory is reused
        w = codes(np.random.default_rng(seed), 3, 6)
        b = np.zeros(3, np.int32)
        w.flags.writeable = b.flags.writeable = False
        got = weighted.accumulate("fully_connected", (x, w, b), FullyConnectedAttrs(), weight_types(x, w, 0))
        results.append(np.array_equal(got, (x.astype(np.int64) - 3) @ w.T.astype(np.int64)))
    assert all(results)
    before = len(weighted._prepared)
    del w, b
    assert len(weighted._prepared) == before - 1


# ---------------------------------------------------------------- ops without weights


@pytest.mark.parametrize("op", ["add", "sub", "mul"])
def test_pair_tables_equal_the_direct_form(op, monkeypatch):
    from qwtv2_edge.ops import integers

    rng = np.random.default_rng(8)
    a, b = codes(rng, 3, 8, 40), codes(rng, 1, 40)
    types = (act(a.shape, 0.03, 5), act(b.shape, 0.11, -128))
    out = (act(a.shape, 0.09, 17),)
    for rule in sorted(KNOWN_RULES[op]):
        results = []
        for size in (1, 10**9):
            monkeypatch.setattr(integers, "PAIR_TABLE_SIZE", size)
            results.append(OPS[op].integer((a, b), BinaryAttrs("relu"), types, out, numerics(**{op: rule}))[0])
        np.testing.assert_array_equal(*results)
        assert results[0].min() >= 17
        assert len(np.unique(results[0])) > 10


def test_every_rule_runs_and_stays_near_the_float_meaning():
    """Each named rule of each op: within 1.6 output steps of the real result (the widest rule multiplies by 8 bits)."""
    rng = np.random.default_rng(9)
    x, slopes = codes(rng, 2, 6, 6, 24), codes(rng, 24)
    x_type, slope_type = act(x.shape, 0.05, 4), act((24,), 0.005, 0)
    attrs = {
        "clamp": OPS["clamp"].attrs(-1.0, 2.5),
        "elu": AlphaAttrs(1.0),
        "leaky_relu": AlphaAttrs(0.1),
        "mean": OPS["mean"].attrs((1, 2), True),
        "sum": OPS["sum"].attrs((1, 2), True),
        "avg_pool2d": PoolAttrs((2, 2), (2, 2)),
        "softmax": SoftmaxAttrs(1.0),
        "resize_bilinear": OPS["resize_bilinear"].attrs((9, 4)),
        **{op: BinaryAttrs() for op in ("add", "sub", "mul")},
    }
    out_scale = {"logistic": 1 / 256, "tanh": 1 / 128, "mul": 0.3, "add": 0.09, "sub": 0.09, "sum": 0.8, "mean": 0.02}
    slack = {"requantize": 1.6, "leaky_relu": 1.6, "resize_bilinear": 1.01, "hard_swish": 1.01, "softmax": 1.01}
    checked = 0
    for op, rules in KNOWN_RULES.items():
        if op not in OPS or op in (*WEIGHTED, *IN_TEST_SEQUENCE, "quantize", "dequantize"):
            continue
        spec = OPS[op]
        a = attrs.get(op, NoAttrs())
        arrays, types = (x,), (x_type,)
        if op in ("add", "sub", "mul"):
            y = codes(rng, *x.shape)
            arrays, types = (x, y), (x_type, act(y.shape, 0.02, -30))
        if op == "prelu":
            arrays, types = (x, slopes), (x_type, slope_type)
        real = [np.float32(t.scale) * (v.astype(np.float32) - t.zero_point) for v, t in zip(arrays, types, strict=True)]
        (expected,) = spec.reference(real, a)
        same = spec.quant.kind == "same"
        scale, zero = out_scale.get(op, 0.05), (x_type.zero_point if same else -3)
        if op in ("softmax", "logistic"):
            scale, zero = 1 / 256, -128
        if op == "tanh":
            zero = 0
        out = act(expected.shape, 0.05 if same else scale, zero)
        for rule in sorted(rules):
            (got,) = spec.integer(arrays, a, types, (out,), numerics(**{op: rule}))
            ideal = np.clip(expected.astype(np.float64) / np.float32(out.scale) + zero, -128, 127)
            worst = np.abs(got - ideal).max()
            assert worst <= slack.get(op, 0.75), f"{op} {rule}: {worst}"
            assert got.dtype == np.int8
            assert got.shape == expected.shape
            checked += 1
    assert checked >= 40


def test_average_pool_divides_by_valid_taps_away_from_zero():
    x = np.asarray([-3, -2, 5, 6], np.int8).reshape(1, 2, 2, 1)
    attrs = PoolAttrs((2, 2), (1, 1), ((1, 0), (1, 0)))
    (got,) = OPS["avg_pool2d"].integer((x,), attrs, (act(x.shape),), (act((1, 2, 2, 1)),), numerics(avg_pool2d="TFLITE"))
    # corners see 1 tap, edges 2, the middle 4: -3; -5/2; 2/2; 6/4
    assert got.ravel().tolist() == [-3, -3, 1, 2]


def test_quantize_refuses_what_has_no_code():
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(QuantizeError, match="NaN or infinity"):
            fp.quantize_codes(np.asarray([0.0, bad], np.float32), 0.1, 0, "RNE")
    with pytest.raises(QuantizeError, match="beyond 32 bits"):
        fp.quantize_codes(np.asarray([1e30], np.float32), 0.1, 0, "HAZ")
    assert fp.quantize_codes(np.asarray([1e30, -1e38], np.float32), 0.1, 0, "RNE").tolist() == [127, -128]


def test_quantize_ties():
    x = np.asarray([0.5, 1.5, -0.5, -1.5, 2.5], np.float32)
    assert fp.quantize_codes(x, 1.0, 1, "HAZ").tolist() == [2, 3, 0, -1, 4]
    assert fp.quantize_codes(x, 1.0, 1, "RNE").tolist() == [1, 3, 1, -1, 3]


def test_p2_boundary_rules_split_each_sample_into_blocks_of_8():
    x = np.full((2, 11), 0.5, np.float32)
    (got,) = OPS["quantize"].integer((x,), NoAttrs(), (), (act((1, 11), 1.0, 0),), numerics(quantize="P2"))
    assert got.tolist() == [[0] * 8 + [1] * 3] * 2


def test_packed_codes_leave_28_bits():
    x, w = np.zeros((1, 2), np.int8), np.zeros((1, 2), np.int8)
    types = (act((1, 2), zero_point=0), TensorType((1, 2), "int4", Quantization((1e-8,), (0,), None)), TensorType((1,), "int32"))
    rules = numerics(fully_connected="REF", **{"fully_connected:int4": "F32E_PACKED"})
    for bias in (2**27 - 1, -(2**27)):
        arrays = (x, w, np.asarray([bias], np.int32))
        (y,) = OPS["fully_connected"].integer(arrays, FullyConnectedAttrs(), types, (act((1, 1), 0.01, 0),), rules)
        assert y.tolist() == [[round(bias * 5e-8)]]
    for bias in (2**27, -(2**27) - 1):
        arrays = (x, w, np.asarray([bias], np.int32))
        with pytest.raises(QuantizeError, match=f"accumulator {bias} does not fit 28 bits"):
            OPS["fully_connected"].integer(arrays, FullyConnectedAttrs(), types, (act((1, 1), 0.01, 0),), rules)
