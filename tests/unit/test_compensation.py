"""Moments, fit and fold against direct computation in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwtv2_edge.compensation.fold import Affine, fold, folded_constants
from qwtv2_edge.compensation.moments import Moments
from qwtv2_edge.compensation.spool import Spool
from qwtv2_edge.errors import CompensationError
from qwtv2_edge.ir import Graph, GraphBuilder, Location, Quantization, TensorType
from qwtv2_edge.ops.conv import Conv2DAttrs, DepthwiseAttrs
from qwtv2_edge.ops.linear import FullyConnectedAttrs


def pair(seed: int, samples: int = 40, positions: int = 9, channels: int = 5):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(samples, positions, channels)) * rng.uniform(0.1, 10, channels) + rng.normal(size=channels)
    y = z * rng.uniform(0.6, 1.6, channels) + rng.normal(size=channels) + 0.1 * rng.normal(size=z.shape)
    return z.astype(np.float32), y.astype(np.float32)


@given(st.integers(0, 1000), st.lists(st.integers(1, 10), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_moments_do_not_depend_on_how_the_samples_are_cut(seed, sizes):
    z, y = pair(seed, samples=sum(sizes))
    whole = Moments.of(z, y)
    cuts = np.cumsum(sizes)[:-1]
    merged = None
    for a, b in zip(np.split(z, cuts), np.split(y, cuts), strict=True):
        part = Moments.of(a, b)
        merged = part if merged is None else merged.merge(part)
    for name in ("z", "e", "zz", "ze", "ee", "ss"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-4, atol=1e-5, err_msg=name)


def test_error_is_the_mean_square():
    z, y = pair(3)
    m = Moments.of(z, y)
    gain, offset = np.linspace(0.7, 1.4, 5), np.linspace(-1, 1, 5)
    direct = np.square(y - gain * z - offset).mean((0, 1))
    np.testing.assert_allclose(m.error(gain, offset), direct, rtol=1e-4)


def test_fit_approaches_least_squares_and_each_half_buys_what_the_derivation_says():
    z, y = pair(4, samples=20000, positions=1)
    m = Moments.of(z, y)
    gain, offset, alone = m.fit((1 / 8, 8.0))
    for c in range(z.shape[-1]):
        slope, intercept = np.polyfit(z[..., c].ravel().astype(np.float64), y[..., c].ravel().astype(np.float64), 1)
        assert gain[c] == pytest.approx(slope, rel=1e-2)
        assert offset[c] == pytest.approx(intercept, abs=0.02)
    before = m.error(np.ones(5), np.zeros(5))
    np.testing.assert_allclose(before - m.error(np.ones(5), alone), m.e**2, rtol=1e-2)
    assert (m.error(gain, offset) <= m.error(np.ones(5), alone)).all()


def test_few_samples_shrink_toward_the_identity():
    z, y = pair(5, samples=4, positions=1)
    few = Moments.of(z, y)
    gain, _offset, alone = few.fit((1 / 8, 8.0))
    slope = few.ze / few.zz
    assert (np.abs(gain - 1) < 0.2 * np.abs(slope) + 1e-9).all()
    assert (np.abs(alone) < 0.2 * np.abs(few.e) + 1e-9).all()


def test_correlated_positions_count_once():
    rng = np.random.default_rng(6)
    z = rng.normal(size=(50, 64, 2)).astype(np.float32)
    same = z + np.repeat(rng.normal(size=(50, 1, 2)), 64, axis=1).astype(np.float32)
    free = z + rng.normal(size=z.shape).astype(np.float32)
    assert (Moments.of(z, same).effective_samples() < 60).all()
    assert (Moments.of(z, free).effective_samples() > 1000).all()


def test_dead_channel_gets_an_offset_and_no_gain():
    z, y = pair(7)
    z[..., 2] = 1.5
    gain, offset, alone = Moments.of(z, y).fit((0.5, 2.0))
    assert gain[2] == 1
    assert offset[2] == alone[2]
    assert np.isfinite(offset).all()


# ---------------------------------------------------------------- fold


def weighted(op: str = "conv2d", in_scale: float = 0.05, out_scale: float = 0.1, zero_point: int = 3, seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    b = GraphBuilder("g")
    shape, w_shape, axis, attrs = {
        "conv2d": ((1, 5, 5, 3), (4, 3, 3, 3), 0, Conv2DAttrs()),
        "depthwise_conv2d": ((1, 5, 5, 4), (1, 3, 3, 4), 3, DepthwiseAttrs()),
        "fully_connected": ((1, 6), (4, 6), 0, FullyConnectedAttrs()),
    }[op]
    x = b.input("x", TensorType(shape, "int8", Quantization.per_tensor(in_scale, zero_point)))
    scale = rng.uniform(0.005, 0.02, 4)
    w = b.constant(
        "w", rng.integers(-127, 128, w_shape).astype(np.int8), TensorType(w_shape, "int8", Quantization.per_channel(scale, axis))
    )
    bias = b.constant(
        "b", rng.integers(-4000, 4000, 4).astype(np.int32), TensorType((4,), "int32", Quantization.per_channel(scale * in_scale, 0))
    )
    out = {"conv2d": (1, 3, 3, 4), "depthwise_conv2d": (1, 3, 3, 4), "fully_connected": (1, 4)}[op]
    type = TensorType(out, "int8", Quantization.per_tensor(out_scale, -5))
    b.outputs = list(b.add(op, (x, w, bias), attrs, name="n", location=Location("n"), out_types=(type,)))
    return b.freeze()


def real_output(graph: Graph, codes: np.ndarray) -> np.ndarray:
    """The node's real pre-activation in float64, from its integer constants."""
    node = graph.nodes[0]
    x, w = graph.tensors[node.inputs[0]], graph.tensors[node.inputs[1]]
    wq, bq = graph.constants[node.inputs[1]].astype(np.float64), graph.constants[node.inputs[2]].astype(np.float64)
    v = codes.astype(np.float64) - x.zero_point
    if node.op == "fully_connected":
        acc = v @ wq.T + bq
    else:
        patches = np.lib.stride_tricks.sliding_window_view(v, (3, 3), (1, 2))  # n, y, x, c, ky, kx
        acc = np.einsum("nyxckl,oklc->nyxo", patches, wq) if node.op == "conv2d" else np.einsum("nyxckl,klc->nyxc", patches, wq[0])
        acc = acc + bq
    return acc * x.scale * w.quantization.scale_array.astype(np.float64)


@pytest.mark.parametrize("op", ["conv2d", "depthwise_conv2d", "fully_connected"])
@given(
    gain=st.lists(st.floats(-8, 8).filter(lambda g: abs(g) >= 1 / 8), min_size=4, max_size=4),
    offset=st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_fold_means_gain_times_z_plus_offset(op, gain, offset, seed):
    graph = weighted(op, seed=seed)
    codes = np.random.default_rng(seed).integers(-128, 128, graph.tensors["x"].shape).astype(np.int8)
    folded = fold(graph, {"n": Affine(np.array(gain), np.array(offset))})
    wanted = real_output(graph, codes) * gain + offset
    w = folded.tensors[folded.nodes[0].inputs[1]]
    half_step = graph.tensors["x"].scale * w.quantization.scale_array.astype(np.float64) / 2
    assert (np.abs(real_output(folded, codes) - wanted) <= half_step * 1.01 + np.abs(wanted) * 1e-6).all()


def test_fold_changes_nothing_else():
    graph = weighted()
    folded = fold(graph, {"n": Affine(np.array([0.5, 1, 1.5, 2]), np.full(4, 0.2))})
    assert [n.op for n in folded.nodes] == [n.op for n in graph.nodes]
    assert folded.nodes[0].inputs == graph.nodes[0].inputs, "constants keep their names"
    np.testing.assert_array_equal(folded.constants["w"], graph.constants["w"])
    assert folded.tensors["x"] == graph.tensors["x"]
    assert folded.tensors["n"] == graph.tensors["n"]
    assert folded.constants["b"].dtype == np.int32


def test_a_shared_weight_keeps_the_other_readers_value():
    graph = weighted("fully_connected")
    b = GraphBuilder.copy_of(graph)
    node = graph.nodes[0]
    other = b.add("fully_connected", node.inputs, node.attrs, name="m", out_types=graph.out_types(node))
    b.outputs += other
    folded = fold(b.freeze(), {"n": Affine(np.full(4, 1.5), np.zeros(4))})
    n, m = folded.nodes
    assert m.inputs == node.inputs
    assert n.inputs[1] != m.inputs[1]
    assert folded.tensors[m.inputs[1]] == graph.tensors["w"]


@pytest.mark.parametrize(
    ("affine", "needle"),
    [
        (Affine(np.ones(4), np.array([0, 0, 1e9, 0])), "the limit is 2\\*\\*30"),
        (Affine(np.array([1, 1, np.nan, 1]), np.zeros(4)), "not finite"),
        (Affine(np.array([1, 1e7, 1, 1]), np.zeros(4)), "2\\*\\*8"),
    ],
)
def test_what_can_not_be_folded_is_refused_by_name(affine, needle):
    with pytest.raises(CompensationError, match=needle) as caught:
        fold(weighted(), {"n": affine})
    assert "conv2d 'n'" in str(caught.value)
    with pytest.raises(CompensationError, match="no node is called ghost"):
        fold(weighted(), {"ghost": affine})


def test_zero_gain_keeps_the_offset_and_the_scale():
    graph = weighted()
    codes, scale, bias = folded_constants(graph, graph.nodes[0], Affine(np.array([1, 0, 1, 1.0]), np.array([0, 0.7, 0, 0])))
    assert not codes[1].any()
    assert codes[0].any()
    assert scale[1] == np.float32(graph.tensors["w"].quantization.scale[1])
    assert bias[1] * graph.tensors["x"].scale * scale[1] == pytest.approx(0.7, rel=1e-3)


def test_spool_spills_to_disk_and_cleans_up():
    a = np.arange(1000, dtype=np.float32)
    with Spool(budget_bytes=4000) as spool:
        spool.put("a", 0, a)
        spool.put("a", 1, a + 1)
        folder = spool._folder.name
        np.testing.assert_array_equal(spool.get("a", 0), a)
        np.testing.assert_array_equal(spool.get("a", 1), a + 1)
        spool.drop("a", 2)
        spool.put("b", 0, a)
        np.testing.assert_array_equal(spool.get("b", 0), a)
    import os

    assert not os.path.exists(folder)
