"""Times two artifacts against each other in one go, so that whatever disturbs the device disturbs both.

Each round starts both runtimes anew, for where a process's memory comes to lie alone can move its times by a percent. Which of the two
starts first is random, and so is the order in which blocks of A and of B follow each other. Each side's warm-up is found in its series of
the round. The rounds' pairs of medians carry the comparison: the median of their differences with a bootstrap interval, and Wilcoxon's
signed-rank test.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from qwtv2_edge.backends import Artifact
from qwtv2_edge.errors import MissingToolError, UsageError
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.profiling.measure import LONGEST_S, prepare
from qwtv2_edge.profiling.report import Comparison
from qwtv2_edge.profiling.series import interval_of_median, summarise
from qwtv2_edge.runners.base import Device, Emulation, Run
from qwtv2_edge.runners.device import open_device

ROUNDS = 10
#: blocks of each side in one round; the seconds that one should take, and how many invocations it may have
BLOCKS, BLOCK_S, LEAST, MOST = 4, 0.05, 5, 500
#: seconds of running before the first block, to see how long one takes; no warm-up, which is found in the blocks
TRIAL_S = 0.3
#: of the test, and of the interval
ALPHA = 0.05


def compare_latency(
    a: Artifact | str | Path,
    b: Artifact | str | Path,
    device: str | Device | Emulation = "host",
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
    Raises: as :func:`qwtv2_edge.profile`; UsageError: an emulated device, which has no times to compare.
    """
    check_rounds(rounds)
    _statistics()  # before the work rather than after it
    opened = open_device(device) if isinstance(device, str) else device
    if isinstance(opened, Emulation):
        raise UsageError(
            f"{opened.name} is emulated: it has no times to compare", fix="compare on real devices; profile counts instructions"
        )
    sides = [prepare(x, inputs, opened, threads, g, None, 1, cores) for x, g in zip((a, b), graphs, strict=True)]
    series: tuple[list[list[int]], list[list[int]]] = ([], [])
    rng = np.random.default_rng(0)
    pinned: tuple[int, ...] = ()
    for _ in range(rounds):
        with ExitStack() as stack:
            runs = {k: stack.enter_context(opened.open(sides[k].job)) for k in rng.permutation(2).tolist()}
            lengths = {k: _block_length(run) for k, run in runs.items()}
            for found in series:
                found.append([])
            for _ in range(BLOCKS):
                for k in rng.permutation(2).tolist():
                    series[k][-1] += runs[k].block(lengths[k], LONGEST_S, lambda ns: None)
            pinned = runs[0].cores
        if sides[0].emulated(runs[0].abi):
            return Comparison(None, None, None, None, None, None, rounds, emulated=True)
    return compared(series, sides[0].device_doubts(sides[0].state_after(), pinned))


def check_rounds(rounds: int) -> None:
    """Raise UsageError where so few rounds can't show a difference, however large."""
    if rounds < 6:
        raise UsageError(f"{rounds} rounds can't show a difference", fix="at least 6")


def _block_length(run: Run) -> int:
    """Run for a while, and say how many invocations make a block."""
    ns = float(np.median(run.block(MOST, TRIAL_S, lambda ns: None)))
    return int(np.clip(BLOCK_S * 1e9 / ns, LEAST, MOST))


def compared(series: tuple[list[list[int]], list[list[int]]], reasons: tuple[str, ...]) -> Comparison:
    """Compare rounds of nanoseconds of A and of B. reasons: why the device's times should not be trusted."""
    (a, of_a), (b, of_b) = map(summarise, series)
    difference = np.subtract(b.rounds_p50_ms, a.rounds_p50_ms)
    low, high = interval_of_median([difference[i : i + 1] for i in range(len(difference))])
    p_value = float(_statistics().wilcoxon(difference).pvalue) if np.any(difference) else 1.0
    return Comparison(
        latency=(a, b),
        difference_ms=float(np.median(difference)),
        ci95_ms=(low, high),
        ratio=b.p50_ms / a.p50_ms,
        p_value=p_value,
        significant=p_value < ALPHA and not low <= 0 <= high,
        rounds=len(difference),
        reasons=(*(f"A: {r}" for r in of_a), *(f"B: {r}" for r in of_b), *reasons),
    )


def _statistics() -> Any:
    """SciPy's statistics. Raises MissingToolError."""
    try:
        from scipy import stats
    except ModuleNotFoundError as exc:
        raise MissingToolError("the test for significance needs SciPy", fix="pip install 'qwtv2-edge[profile]'") from exc
    return stats
