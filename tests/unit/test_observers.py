"""Range statistics against direct computation."""

from __future__ import annotations

import numpy as np
import pytest

from qwtv2_edge.quantization.observers import Observer, activation_range, weight_scale


def observed(*arrays: np.ndarray) -> Observer:
    o = Observer(histogram=True)
    for a in arrays:
        o.update(np.asarray(a, np.float32))
    return o


def quantization_error(x: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    q = np.clip(np.rint((np.clip(x, low, high) - low) / step), 0, 255) * step + low
    return float(np.square(q - x).mean())


def test_range_always_holds_zero():
    assert activation_range(observed(np.linspace(2, 5, 100)), "minmax", 99) == (0.0, 5.0)
    assert activation_range(observed(np.linspace(-5, -2, 100)), "mse", 99)[1] == 0.0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_growing_the_histogram_loses_nothing(order):
    rng = np.random.default_rng(1)
    parts = [rng.normal(size=500) * s for s in (0.1, 1.0, 30.0)]
    o = observed(*(parts[i] for i in order))
    assert o.counts.sum() == 1500
    whole = np.concatenate(parts)
    assert o.low == np.float32(whole.min())
    assert o.high == np.float32(whole.max())
    spread = np.sqrt((o.counts * o.centres() ** 2).sum() / 1500)
    assert spread == pytest.approx(np.sqrt(np.square(whole).mean()), rel=1e-2)


def test_percentile_cuts_the_tails_it_is_told_to():
    x = np.linspace(0, 1, 100_001)
    low, high = activation_range(observed(x), "percentile", 99.0)
    assert low == 0
    assert high == pytest.approx(0.99, abs=1e-3)


def test_outliers_are_clipped_where_that_pays():
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(size=200_000), [60.0]]).astype(np.float32)
    minmax = quantization_error(x, float(x.min()), 60.0)
    low, high = activation_range(observed(x), "mse", 99.99)
    assert high < 50
    assert quantization_error(x, low, high) < minmax
    low, high = activation_range(observed(x), "entropy", 99.99)
    assert high < 30
    assert quantization_error(x[:-1], low, high) < quantization_error(x[:-1], float(x.min()), 60.0)


def test_mse_is_close_to_an_exhaustive_search():
    x = np.random.default_rng(3).laplace(size=100_000).astype(np.float32)
    o = observed(np.abs(x))
    _, high = activation_range(o, "mse", 99.99)
    best = min(quantization_error(np.abs(x), 0, o.high * c) for c in np.linspace(0.1, 1, 200))
    assert quantization_error(np.abs(x), 0, high) <= best * 1.05


def test_mse_weight_scales_never_lose_to_minmax():
    w = np.random.default_rng(4).standard_t(3, size=(16, 3, 3, 8)).astype(np.float32)

    def error(scale):
        s = scale[:, None, None, None]
        return np.square(np.clip(np.rint(w / s), -7, 7) * s - w).sum((1, 2, 3))

    mse, minmax = (weight_scale(w, 0, 7, m, True) for m in ("mse", "minmax"))
    assert (error(mse) <= error(minmax) * (1 + 1e-9)).all()
    assert error(mse).sum() < 0.9 * error(minmax).sum()


def test_per_tensor_scale_is_one_value_and_dead_channels_have_none():
    w = np.ones((4, 5), np.float32)
    w[2] = 0
    assert len(set(weight_scale(w, 0, 127, "minmax", False))) == 1
    assert weight_scale(w, 0, 127, "mse", True)[2] == 0
