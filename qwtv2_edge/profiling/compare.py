"""Times two artifacts against each other in one go, so that whatever disturbs the device disturbs both.

Each round starts both runtimes anew, for where a process's memory comes to lie alone can move its times by a percent; blocks of A and
of B follow each other in random order. The rounds' pairs of medians carry the comparison: the median of their differences with a
bootstrap interval, and Wilcoxon's signed-rank test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qwtv2_edge.backends import Artifact
from qwtv2_edge.errors import UsageError
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.profiling.measure import LONGEST_S, interval_of_median, prepare, statistics, summarise
from qwtv2_edge.profiling.report import Comparison
from qwtv2_edge.runners.base import Device, Run
from qwtv2_edge.runners.device import open_device
from qwtv2_edge.runners.state import doubts

ROUNDS = 10
#: blocks of each side in one round; the seconds that one should take, and how many invocations it may have
BLOCKS, BLOCK_S, LEAST, MOST = 4, 0.05, 5, 500
#: seconds of running before the first block
WARM_UP_S = 0.3
#: of the test, and of the interval
ALPHA = 0.05


def compare_latency(
    a: Artifact | str | Path,
    b: Artifact | str | Path,
    device: str | Device = "host",
    threads: int = 1,
    rounds: int = ROUNDS,
    *,
    graphs: tuple[Graph | None, Graph | None] = (None, None),
    inputs: Any = None,
    cores: tuple[int, ...] = (),
) -> Comparison:
    """Time ``a`` against ``b``.

    Args:
        a, b: as ``artifact`` of :func:`qwtv2_edge.profile`; ``graphs``: the integer graphs behind them.
        device, threads, inputs, cores: as there.
        rounds: starts of both runtimes; at least 6, below which no difference can be significant.
    Raises: as :func:`qwtv2_edge.profile`.
    """
    if rounds < 6:
        raise UsageError(f"{rounds} rounds can't show a difference", fix="at least 6")
    opened = open_device(device) if isinstance(device, str) else device
    sides = [prepare(x, inputs, opened, threads, g, None, 1, cores) for x, g in zip((a, b), graphs, strict=True)]
    series: tuple[list[list[int]], list[list[int]]] = ([], [])
    rng = np.random.default_rng(0)
    abi = ""
    for _ in range(rounds):
        with opened.open(sides[0].job) as first, opened.open(sides[1].job) as second:
            runs = (first, second)
            counts = [_warm_up(run) for run in runs]
            for found in series:
                found.append([])
            for _ in range(BLOCKS):
                for k in rng.permutation(2):
                    series[k][-1] += runs[k].block(counts[k], LONGEST_S, lambda ns: None)
            abi = first.abi
    if sides[0].emulated(abi):
        return Comparison(None, None, None, None, None, None, rounds, emulated=True)
    after = sides[0].state_after()
    return compared(series, doubts(sides[0].before, after, cores))


def _warm_up(run: Run) -> int:
    """Run for a while, and say how many invocations make a block."""
    ns = float(np.median(run.block(MOST, WARM_UP_S, lambda ns: None)))
    return int(np.clip(BLOCK_S * 1e9 / ns, LEAST, MOST))


def compared(series: tuple[list[list[int]], list[list[int]]], reasons: tuple[str, ...]) -> Comparison:
    """Compare rounds of nanoseconds of A and of B."""
    medians = [np.array([np.median(block) for block in s]) / 1e6 for s in series]
    difference = medians[1] - medians[0]
    low, high = interval_of_median([difference[i : i + 1] for i in range(len(difference))])
    p_value = float(statistics().wilcoxon(difference).pvalue) if np.any(difference) else 1.0
    a, b = (summarise([[ns for block in s for ns in block]])[0] for s in series)
    return Comparison(
        latency=(a, b),
        difference_ms=float(np.median(difference)),
        ci95_ms=(low, high),
        ratio=b.p50_ms / a.p50_ms,
        p_value=p_value,
        significant=p_value < ALPHA and not low <= 0 <= high,
        rounds=len(difference),
        reasons=reasons,
    )
