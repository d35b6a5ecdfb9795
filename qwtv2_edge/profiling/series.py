"""What series of times say: where warm-up ends, percentiles, the interval of the median, and what speaks against them.

1. Warm-up: each start's series is cut into blocks of 10; warm-up ends at the first block whose median is within 5 % of the median of
   the second half of the series. If no block of the first half is, the series never settled and all of its first half counts as warm-up.
2. Percentiles over what follows, all starts together.
3. The 95 % interval of the median by a bootstrap in two stages: starts are drawn, and in each of them blocks of 10 neighbouring runs.
   So the interval is as wide as starts differ from each other, and as slow drifts make it. Blocks of one pooled series would tell
   how well these very starts are known, which is no interval of the artifact's latency: where a process's memory comes to lie alone
   can move all of its times by a percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwtv2_edge.profiling.report import Latency

BLOCK = 10
SETTLED = 0.05
RESAMPLES = 1000
#: blocks that the bootstrap draws from one start: of longer series evenly spaced ones, which can only widen the interval
MOST_BLOCKS = 60
#: p90 / p10, and mean / median, above which times are called noisy
NOISY = 1.3
#: how far medians of starts may lie apart, how wide the interval of the median may be, and how far times may drift within a start
REPEATABLE = 0.05
#: fewer runs in all are too few
LEAST_TIMED = 30


@dataclass(frozen=True, slots=True)
class Steady:
    """One start's series, cut. runs: milliseconds after warm-up; warmup: how many were left out; settled: whether it ended."""

    runs: np.ndarray
    warmup: int
    settled: bool

    @property
    def drift(self) -> float:
        """How far the last runs lie above the first ones, as a fraction: medians of a quarter of them each, of 5 at the least."""
        part = min(max(len(self.runs) // 4, 5), len(self.runs) // 2)
        return float(np.median(self.runs[-part:]) / np.median(self.runs[:part]) - 1) if part else 0.0


def summarise(series: Sequence[Sequence[int]]) -> tuple[Latency, tuple[str, ...]]:
    """Latency of series of nanoseconds, one a start, and why it should not be trusted, as far as the series tell."""
    # clocks of some tools tell whole microseconds, 0 of very small networks
    cuts = [steady(np.maximum(np.asarray(ns, np.float64), 1) / 1e6) for ns in series if len(ns)]
    everything = np.concatenate([c.runs for c in cuts])
    p10, p50, p90, p99 = (float(v) for v in np.percentile(everything, (10, 50, 90, 99)))
    latency = Latency(
        p10_ms=p10,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        ci95_ms=interval_of_median([c.runs for c in cuts]),
        runs=len(everything),
        warmup_runs=sum(c.warmup for c in cuts),
        rounds_p50_ms=tuple(float(np.median(c.runs)) for c in cuts),
        throughput_per_s=1e3 / float(np.mean(everything)),
    )
    return latency, doubts_of(latency, cuts)


def doubts_of(latency: Latency, cuts: Sequence[Steady]) -> tuple[str, ...]:
    """Why a latency should not be trusted; empty where nothing speaks against it."""
    width = (latency.ci95_ms[1] - latency.ci95_ms[0]) / latency.p50_ms
    drift = max((c.drift for c in cuts), key=abs)
    shortest = min(len(c.runs) + c.warmup for c in cuts)
    mean = 1e3 / latency.throughput_per_s
    checks = (
        (latency.runs < LEAST_TIMED, f"too few timed runs ({latency.runs})"),
        (shortest < 2 * BLOCK, f"too few runs a start ({shortest}) to tell warm-up from steady times"),
        (not all(c.settled for c in cuts), f"times had not settled after {latency.warmup_runs} runs"),
        (abs(drift) > REPEATABLE, f"times drift: by {drift:+.1%} within a start"),
        (latency.p90_ms > NOISY * latency.p10_ms, f"noisy: p90 is {latency.p90_ms / latency.p10_ms:.2f} times p10"),
        (mean > NOISY * latency.p50_ms, f"outliers: the mean is {mean / latency.p50_ms:.2f} times the median"),
        (latency.spread > REPEATABLE, f"not repeatable: medians of {len(latency.rounds_p50_ms)} starts differ by {latency.spread:.1%}"),
        (width > REPEATABLE, f"the interval of the median is {width:.1%} wide"),
    )
    return tuple(reason for doubtful, reason in checks if doubtful)


def steady(ms: np.ndarray) -> Steady:
    """Cut off the warm-up, see rule 1. Nothing is cut off a series too short to tell, which is a doubt of its own."""
    half = len(ms) // 2
    if half < BLOCK:
        return Steady(ms, 0, True)
    level = np.median(ms[half:])
    for start in range(0, half - BLOCK + 1, BLOCK):
        if abs(np.median(ms[start : start + BLOCK]) - level) <= SETTLED * level:
            return Steady(ms[start:], start, True)
    return Steady(ms[half:], half, False)


def interval_of_median(series: Sequence[np.ndarray]) -> tuple[float, float]:
    """The 95 % interval of the median of several starts' series together, see rule 3."""
    width = min(BLOCK, *map(len, series))
    starts = [_blocks(s, width) for s in series]
    table, counts = np.concatenate(starts), np.array([len(b) for b in starts])
    begins = np.cumsum(counts) - counts
    rng = np.random.default_rng(0)
    medians = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = rng.integers(len(starts), size=len(starts))
        many = np.repeat(counts[drawn], counts[drawn])
        medians[i] = np.median(table[np.repeat(begins[drawn], counts[drawn]) + rng.integers(many)])
    low, high = np.percentile(medians, (2.5, 97.5))
    return float(low), float(high)


def _blocks(series: np.ndarray, width: int) -> np.ndarray:
    """Neighbouring runs as rows."""
    rows = series[: len(series) // width * width].reshape(-1, width)
    return rows[:: -(-len(rows) // MOST_BLOCKS)]
