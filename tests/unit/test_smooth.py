"""Smoothing of channels: the same network in real numbers, a smaller error in codes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from models import small_transformers as nets

import qwtv2_edge as qe
from qwtv2_edge.compensation.fit import FIT_NUMERICS
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.quantization.legalize import legalize
from qwtv2_edge.quantization.recipe import Recipe
from qwtv2_edge.quantization.smooth import smooth
from qwtv2_edge.simulator.run import run

BLOCKS = {"pre": nets.pre_norm_block, "post": nets.post_norm_block}


@pytest.fixture(scope="module", params=["pre", "post", "text"])
def case(request) -> tuple[Graph, list[np.ndarray], list[np.ndarray]]:
    """Legalized graph, calibration data, other data."""
    if request.param == "text":
        return legalize(qe.capture(nets.sentence(), nets.sentences(1, 0))), list(nets.sentences(64, 1)), list(nets.sentences(64, 2))
    graph = qe.capture(nets.encoder(BLOCKS[request.param]), nets.frames(1, 0))
    return legalize(graph), [nets.frames(64, 1)], [nets.frames(64, 2)]


def as_indices(inputs: list[np.ndarray]) -> list[np.ndarray]:
    return [x.astype(np.int32) if x.dtype == np.int64 and i == 0 else x.astype(np.float32) for i, x in enumerate(inputs)]


def test_the_network_stays_the_same(case):
    graph, data, fresh = case
    smoothed = smooth(graph, [as_indices(data)], Recipe())
    (y,), (z,) = (run(g, as_indices(fresh), None) for g in (graph, smoothed))
    np.testing.assert_allclose(z, y, atol=2e-5 * float(np.abs(y).max()))
    changed = [t for t in graph.constants if t not in smoothed.constants or t + ":smooth" in smoothed.constants]
    assert changed, "the channels of these networks differ enough"


def errors(graph: Graph, data: list[np.ndarray], fresh: list[np.ndarray]) -> dict[str, float]:
    """Mean squared error of the whole network on data not seen, by the choice of ``smoothing``."""
    (y,), found = run(graph, as_indices(fresh), None), {}
    for smoothing in ("none", "search"):
        result = qe.quantize(graph, data if len(data) > 1 else data[0], {"smoothing": smoothing, "compensation": "none"})
        found[smoothing] = float(np.square(run(result.graph, as_indices(fresh), FIT_NUMERICS)[0] - y).mean())
    return found


def test_the_error_of_the_network_does_not_rise(case):
    """Each layer's own error falls; what the network makes of that is up to chance where little was lost."""
    error = errors(*case)
    assert error["search"] < 1.1 * error["none"]


def test_the_error_falls_where_channels_are_far_apart():
    graph = legalize(qe.capture(nets.encoder(nets.pre_norm_block), nets.frames(1, 0)))
    error = errors(graph, [nets.frames(64, 1)], [nets.frames(64, 2)])
    assert error["search"] < 0.8 * error["none"]


def test_only_norms_that_a_residual_stream_reads_need_another_op():
    for name, extra in (("pre", False), ("post", True)):
        graph = legalize(qe.capture(nets.encoder(BLOCKS[name]), nets.frames(1, 0)))
        smoothed = smooth(graph, [[nets.frames(64, 1)]], Recipe())
        scalings = [n for n in smoothed.nodes if n.op == "channel_scale"]
        assert bool(scalings) == extra
        assert [n.name for n in smoothed.nodes if n not in scalings] == [n.name for n in graph.nodes]
        for node in scalings:
            norm = smoothed.producers()[node.inputs[0]]
            assert norm.inputs == graph.node(norm.name).inputs, "what the stream reads is not scaled"
            assert {n.op for n in smoothed.consumers()[node.outputs[0]]} == {"fully_connected"}


def test_every_channel_of_a_branch_uses_all_codes():
    graph = legalize(qe.capture(nets.encoder(nets.pre_norm_block), nets.frames(1, 0)))
    data = [nets.frames(64, 1)]
    smoothed = smooth(graph, [data], Recipe())
    sums = [n for n in smoothed.nodes if n.op == "channel_add"]
    assert len(sums) == 4
    peaks = {}
    run(smoothed, data, None, lambda node, out: peaks.update({node.outputs[0]: np.abs(out[0]).reshape(-1, out[0].shape[-1]).max(0)}))
    for node in sums:
        branch = peaks[node.inputs[1]]
        np.testing.assert_allclose(branch, branch.max(), rtol=0.02)
        gain = smoothed.constants[node.inputs[2]]
        assert 0 < gain.min() <= gain.max() <= 1


def test_what_smoothing_leaves_alone():
    graph = legalize(qe.capture(nets.encoder(nets.pre_norm_block), nets.frames(1, 0)))
    data = [[nets.frames(64, 1)]]
    assert smooth(graph, data, Recipe(smoothing="none")) is graph
    wide = smooth(graph, data, Recipe(activation_bits=16))
    assert set(wide.constants) == set(graph.constants), "16-bit layers have codes enough"
    narrow = smooth(graph, data, Recipe(residual_bits=8))
    assert "channel_add" not in {n.op for n in narrow.nodes}, "it gives 16 bits"
    one = smooth(graph, data, Recipe(overrides={"blocks.0.fc2": {"weight_granularity": "per_tensor"}}))
    assert [n.op for n in one.nodes].count("channel_add") == 3, "one scale can't take the gains in"


def test_smoothing_is_deterministic():
    graph = legalize(qe.capture(nets.encoder(nets.post_norm_block), nets.frames(1, 0)))
    first, second = (smooth(graph, [[nets.frames(64, 1)]], Recipe()) for _ in range(2))
    assert first.nodes == second.nodes
    for name, value in first.constants.items():
        np.testing.assert_array_equal(value, second.constants[name])
