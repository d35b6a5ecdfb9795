"""Range statistics of activations and weights.

A range (low, high) always holds 0, so that real 0 has an exact code. For a histogram h over bin centres v and a
candidate range with step s = (high - low) / levels, the expected squared error that "mse" minimises is

(1)  E = sum_{v inside} h(v) * s^2 / 12  +  sum_{v > high} h(v) (v - high)^2  +  sum_{v < low} h(v) (low - v)^2

and "entropy" minimises the Kullback-Leibler divergence between h clipped to the range and h averaged over the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qwtv2_edge.fixedpoint import round_half_even

BINS = 4096
#: values per array that enter a histogram; larger arrays are strided over
HISTOGRAM_SAMPLES = 1 << 18
CLIPS = np.linspace(1.0, 0.2, 81)


@dataclass
class Observer:
    """Running statistics of one tensor: bounds, and a histogram over [-limit, limit] that doubles when outgrown.

    Doubling merges pairs of bins exactly, so the order of batches changes nothing but the initial limit.
    """

    histogram: bool
    low: float = 0.0
    high: float = 0.0
    limit: float = 0.0
    counts: np.ndarray | None = None

    def update(self, x: np.ndarray) -> None:
        """Add one array of float32 values, any shape."""
        low, high = float(x.min()), float(x.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            self.low, self.high = -np.inf, np.inf
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        if not self.histogram:
            return
        top = max(-low, high)
        if self.counts is None:
            self.counts = np.zeros(BINS, np.int64)
        if top > 0 and self.limit == 0:
            self.limit = float(2.0 ** np.ceil(np.log2(top)))
        if self.limit == 0:
            self.counts[BINS // 2] += x.size
            return
        while top > self.limit:
            grown = np.zeros(BINS, np.int64)
            grown[BINS // 4 : BINS // 4 * 3] = self.counts.reshape(-1, 2).sum(1)
            self.counts, self.limit = grown, self.limit * 2
        flat = x.reshape(-1)
        flat = flat[:: max(1, flat.size // HISTOGRAM_SAMPLES)]
        index = (flat * np.float32(BINS / 2 / self.limit) + np.float32(BINS / 2)).astype(np.int32)
        self.counts += np.bincount(np.clip(index, 0, BINS - 1), minlength=BINS)

    def centres(self) -> np.ndarray:
        return (np.arange(BINS) + 0.5) * (2 * self.limit / BINS) - self.limit


def activation_range(o: Observer, method: str, percentile: float, levels: int = 255) -> tuple[float, float]:
    """The range ``method`` chooses from the statistics; holds 0 and lies within the observed bounds."""
    if method == "minmax" or o.limit == 0 or o.counts is None:
        return o.low, o.high
    low, high = _METHODS[method](o, percentile, levels)
    return max(min(low, 0.0), o.low), min(max(high, 0.0), o.high)


def _percentile(o: Observer, percentile: float, levels: int) -> tuple[float, float]:
    assert o.counts is not None
    total = o.counts.sum()
    cumulative = np.cumsum(o.counts)
    tail = (1 - percentile / 100) * total
    edges = np.linspace(-o.limit, o.limit, BINS + 1)
    high = edges[1 + int(np.searchsorted(cumulative, total - tail))] if tail > 0 else o.high
    low = edges[int(np.searchsorted(cumulative, tail, side="right"))] if tail > 0 else o.low
    return float(low), float(high)


def _search(o: Observer, cost: Callable[[float, float], float]) -> tuple[float, float]:
    """Shrink high, then low, then high again along CLIPS, each time to the least cost."""
    low, high = o.low, o.high
    for _ in range(2):
        if o.high > 0:
            high = min((cost(low, o.high * c), -c, o.high * c) for c in CLIPS)[2]
        if o.low < 0:
            low = min((cost(o.low * c, high), -c, o.low * c) for c in CLIPS)[2]
        if o.low == 0 or o.high == 0:
            break
    return float(low), float(high)


def _mse(o: Observer, percentile: float, levels: int) -> tuple[float, float]:
    assert o.counts is not None
    used = np.flatnonzero(o.counts)
    v, h = o.centres()[used], o.counts[used].astype(np.float64)
    total = h.sum()

    def cost(low: float, high: float) -> float:
        over = h @ np.square(np.maximum(v - high, 0) + np.maximum(low - v, 0))
        return float(over + total * ((high - low) / levels) ** 2 / 12)

    return _search(o, cost)


def _entropy(o: Observer, percentile: float, levels: int) -> tuple[float, float]:
    assert o.counts is not None
    used = np.flatnonzero(o.counts)
    v, h = o.centres()[used], o.counts[used].astype(np.float64)
    p = h / h.sum()

    def cost(low: float, high: float) -> float:
        if high <= low:
            return np.inf
        step = np.clip(((np.clip(v, low, high) - low) * (levels / (high - low)) + 0.5).astype(np.int64), 0, levels)
        inside = (v >= low) & (v <= high)
        occupied = np.bincount(step, inside, levels + 1)
        q = np.where(inside, np.bincount(step, p * inside, levels + 1)[step] / np.maximum(occupied[step], 1), 0)
        # clipped mass sits on the end steps in the reference, and is missing from the quantized distribution
        reference = np.where(inside, p, 0)
        ends = np.zeros_like(p)
        if inside.any():
            first, last = np.flatnonzero(inside)[[0, -1]]
            ends[first] += p[v < low].sum()
            ends[last] += p[v > high].sum()
        reference = reference + ends
        q = q / max(q.sum(), 1e-30)
        mask = reference > 0
        return float(np.sum(reference[mask] * np.log(reference[mask] / np.maximum(q[mask], 1e-12))))

    return _search(o, cost)


_METHODS = {"percentile": _percentile, "mse": _mse, "entropy": _entropy}


def weight_scale(w: np.ndarray, axis: int, code_max: int, method: str, per_channel: bool) -> np.ndarray:
    """Symmetric weight scales.

    Args:
        w: float32 weights.
        axis: the output-channel axis.
        code_max: 127 or 7.
        method: "minmax" or "mse".
        per_channel: one scale per slice of ``axis``, or the same one for all.
    Returns: float64, (channels,); 0 for a channel whose weights are all 0.
    """
    rows = np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1).astype(np.float64)
    shape = rows.shape[0]
    if not per_channel:
        rows = rows.reshape(1, -1)
    top = np.abs(rows).max(1)
    best = top / code_max
    if method == "mse":
        best_error = np.full(len(rows), np.inf)
        base = best.copy()
        for c in np.linspace(1.0, 0.3, 71):
            scale = np.where(base > 0, base * c, 1.0)
            codes = np.clip(round_half_even(rows / scale[:, None]), -code_max, code_max)
            error = np.square(codes * scale[:, None] - rows).sum(1)
            better = error < best_error * (1 - 1e-12)
            best_error = np.where(better, error, best_error)
            best = np.where(better & (base > 0), base * c, best)
    return np.broadcast_to(best, (shape,)).copy()
