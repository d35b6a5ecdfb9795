"""Moments, fit and fold against direct computation in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwtv2_edge.compensation.fit import FIT_NUMERICS, NodeOptions, _mask_input, _value_projections, fit
from qwtv2_edge.compensation.fold import Affine, declare_norm, fold, folded_constants, norm_codes
from qwtv2_edge.compensation.moments import Moments
from qwtv2_edge.compensation.spool import Spool
from qwtv2_edge.errors import CompensationError
from qwtv2_edge.ir import Graph, GraphBuilder, Location, Quantization, TensorType
from qwtv2_edge.ops.conv import Conv2DAttrs, DepthwiseAttrs
from qwtv2_edge.ops.linear import FullyConnectedAttrs
from qwtv2_edge.ops.norm import LayerNormAttrs
from qwtv2_edge.quantization import Recipe, quantize
from qwtv2_edge.quantization.apply import apply
from qwtv2_edge.quantization.calibrate import calibrate
from qwtv2_edge.quantization.legalize import legalize
from qwtv2_edge.simulator.run import run


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


# ---------------------------------------------------------------- transformers


def test_positions_that_do_not_count_are_left_out_of_moments():
    z, y = pair(8, samples=30, positions=6)
    keep = np.random.default_rng(8).random((30, 6)) < 0.5
    keep[:, 0] = True
    spoiled = np.where(keep[:, :, None], y, 1e4).astype(np.float32)
    m = Moments.of(np.where(keep[:, :, None], z, -1e4).astype(np.float32), spoiled, keep)
    whole = Moments.of(z[keep][:, None], y[keep][:, None])
    for name in ("count", "z", "e", "zz", "ze", "ee"):
        np.testing.assert_allclose(getattr(m, name), getattr(whole, name), rtol=1e-4, atol=1e-4, err_msg=name)
    assert m.samples == 30
    np.testing.assert_allclose(Moments.of(z, y, np.ones((30, 6), bool)).ss, Moments.of(z, y).ss, rtol=1e-5)


def norm_graph(out: TensorType) -> Graph:
    """A layer_norm of 12 channels with real gamma and beta of all sizes."""
    rng = np.random.default_rng(3)
    b = GraphBuilder("norm")
    x = b.input("x", TensorType((1, 5, 12), "int16", Quantization.per_tensor(float(np.float32(1e-3)), 0)))
    constants = declare_norm(b, ("gamma", "beta"), norm_codes(rng.normal(1, 0.5, 12), rng.normal(0, 2, 12)))
    b.outputs = list(b.add("layer_norm", (x, *constants), LayerNormAttrs(shift=2), name="n", location=Location("n"), out_types=(out,)))
    return b.freeze()


@given(
    gain=st.lists(st.floats(-8, 8), min_size=12, max_size=12),
    offset=st.lists(st.floats(-3, 3), min_size=12, max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_layer_norm_takes_an_affine_of_its_output(gain, offset):
    fine = TensorType((1, 5, 12), "int16", Quantization.per_tensor(2.0**-8, 0))
    graph = norm_graph(fine)
    x = np.random.default_rng(4).normal(0, 4000, (8, 5, 12)).astype(np.int16)
    folded = fold(graph, {"n": Affine(np.array(gain), np.array(offset))})
    assert folded.nodes[0].attrs == graph.nodes[0].attrs
    assert [t.dtype for t in folded.in_types(folded.nodes[0])] == ["int16", "int16", "int32"]
    y, z = (run(g, [x], FIT_NUMERICS)[0] * fine.scale for g in (graph, folded))
    np.testing.assert_allclose(z, np.asarray(gain) * y + offset, atol=(1 + np.abs(gain).max()) * fine.scale)


def test_layer_norm_refuses_what_is_not_finite():
    graph = norm_graph(TensorType((1, 5, 12), "int8", Quantization.per_tensor(0.05, 0)))
    with pytest.raises(CompensationError, match="not finite") as caught:
        fold(graph, {"n": Affine(np.full(12, np.nan), np.zeros(12))})
    assert "layer_norm 'n'" in str(caught.value)


@pytest.fixture(scope="module")
def nets():
    pytest.importorskip("torch")
    from models import small_transformers

    return small_transformers


def captured(nets, kind: str) -> Graph:
    import qwtv2_edge as qe

    if kind == "text":
        return legalize(qe.capture(nets.sentence(), nets.sentences(1, 0)))
    block = {"pre": nets.pre_norm_block, "post": nets.post_norm_block}[kind]
    return legalize(qe.capture(nets.encoder(block), nets.frames(1, 0)))


def text_data(nets, count: int, seed: int) -> list[np.ndarray]:
    words, mask = nets.sentences(count, seed)
    return [words.astype(np.int32), mask.astype(np.float32)]


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_an_affine_behind_attention_goes_into_the_projection_to_v(nets, kind):
    """The weights of attention sum to 1, so gain and offset per channel pass through them."""
    graph = quantize(captured(nets, kind), nets.frames(32, 1), Recipe(compensation="none", smoothing="none")).graph
    found = _value_projections(graph)
    assert len(found) == 2
    rng, x = np.random.default_rng(0), nets.frames(16, 2)
    (product, projection), *_ = found.items()
    assert sorted(projection.channels) == list(range(nets.WIDTH))
    y_type = graph.tensors[graph.node(product).outputs[0]]
    step = y_type.scale  # the affine is small, so that V saturates no more than before
    gain, offset = rng.uniform(0.7, 1.0, nets.WIDTH), rng.uniform(-5 * step, 5 * step, nets.WIDTH)
    wanted_gain, wanted_offset = np.empty(nets.WIDTH), np.empty(nets.WIDTH)
    wanted_gain[projection.channels], wanted_offset[projection.channels] = gain, offset
    folded = fold(graph, {projection.node.name: Affine(wanted_gain, wanted_offset)})

    def values(g: Graph) -> np.ndarray:
        """(samples, positions, channels of the product)"""
        seen = {}
        run(g, [x], FIT_NUMERICS, lambda node, out: seen.update({node.name: out[0]}))
        real = (seen[product].astype(np.float64) - y_type.zero_point) * y_type.scale
        return np.moveaxis(real, 1, 2).reshape(len(x), -1, nets.WIDTH)

    error = values(folded) - (gain * values(graph) + offset)
    assert np.sqrt(np.square(error).mean()) <= step
    unmoved = values(folded) - values(graph)
    assert np.sqrt(np.square(unmoved).mean()) > 3 * step


def test_attention_and_norms_are_compensated_and_reported(nets):
    result = quantize(captured(nets, "post"), nets.frames(96, 1), Recipe(weight_bits=4, weight_observer="minmax"))
    choices = [c for c in result.report.compensation if c.op in ("layer_norm", "batch_matmul")]
    assert [c.op for c in choices].count("layer_norm") == 5
    assert [c.op for c in choices].count("batch_matmul") == 2
    assert any(c.kind != "none" for c in choices)
    for c in choices:
        assert {"none": c.mse_before, "offset": c.mse_offset, "cwac": c.mse_cwac}[c.kind] <= c.mse_before


def test_the_class_token_has_errors_of_its_own(nets):
    result = quantize(captured(nets, "pre"), nets.frames(48, 1), Recipe(weight_bits=4))
    rows = nets.FRAMES + 1
    told = {c.node for c in result.report.compensation if c.token_before is not None}
    assert told == {
        c.node for c in result.report.compensation if result.graph.tensors[result.graph.node(c.node).outputs[0]].shape[-2:-1] == (rows,)
    }
    assert told
    assert all(c.token_after >= 0 for c in result.report.compensation if c.node in told)
    text = quantize(captured(nets, "text"), list(nets.sentences(32, 1)), Recipe())
    assert all(c.token_before is None for c in text.report.compensation)


def test_padding_takes_no_part_in_the_fit(nets):
    """Other words where the mask is 0 change no constant."""
    graph, recipe = captured(nets, "text"), Recipe(weight_bits=4, weight_observer="minmax")
    words, mask = text_data(nets, 48, 1)
    assert _mask_input(graph) == "mask"
    integer = apply(graph, calibrate(graph, [[words, mask]], recipe), recipe).graph
    other = np.where(mask == 1, words, 7).astype(np.int32)
    assert (other != words).any()
    options = NodeOptions("cwac", "global", (0.5, 2.0))
    holdout = np.arange(48) % 4 == 0
    results = [fit(graph, integer, [48], lambda w=w: [[w, mask]], holdout, "cwac", lambda node: options) for w in (words, other)]
    assert all(c.mse_cwac < c.mse_before for c in results[0].nodes if c.op == "fully_connected")
    # saturation counts every code
    told = [[replace(c, saturation_before=0, saturation_after=0) for c in r.nodes] for r in results]
    assert told[0] == told[1]
    for name, value in results[0].graph.constants.items():
        np.testing.assert_array_equal(value, results[1].graph.constants[name])


@pytest.mark.parametrize("kind", ["pre", "post", "text"])
def test_transformers_with_4_bit_weights_gain_by_compensation(nets, kind):
    graph = captured(nets, kind)
    data, fresh = ([nets.frames(96, s)] for s in (1, 2)) if kind != "text" else (text_data(nets, 96, s) for s in (1, 2))
    wanted = run(graph, fresh, None)[0]
    errors = {}
    for kind_of in ("none", "cwac"):
        result = quantize(graph, data if len(data) > 1 else data[0], Recipe(weight_bits=4, weight_observer="minmax", compensation=kind_of))
        errors[kind_of] = float(np.square(run(result.graph, fresh, FIT_NUMERICS)[0] - wanted).mean())
    assert errors["cwac"] < 0.9 * errors["none"]
