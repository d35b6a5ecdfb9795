"""One graph in one runtime, byte by byte."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cases.build import feeds
from qwtv2_edge.backends import emit
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.numerics import Numerics, rule_key
from qwtv2_edge.runners.host import Session
from qwtv2_edge.simulator.run import run


def difference(graph: Graph, table: Numerics, session: Session, rng: np.random.Generator, samples: int = 24) -> str:
    """Emit ``graph`` for the table's target and run it: "" when every byte is what the simulator computes by the table (or lies
    within its bounds), else what differs."""
    x = feeds(graph, rng, samples)
    session.load(emit(graph, table.target).data)
    bound = max(table.bounds.get(rule_key(graph, n), 0) for n in graph.nodes)
    return differing(graph, run(graph, x, table), session.run(x), bound)


def differing(graph: Graph, expected: Sequence[np.ndarray], actual: Sequence[np.ndarray], bound: int = 0) -> str:
    """ "" when all outputs of ``graph`` are equal in every byte, or differ by ``bound`` at most; else what differs first."""
    for name, e, a in zip(graph.outputs, expected, actual, strict=True):
        if e.shape != a.shape or e.dtype != a.dtype:
            return f"{graph.name}: '{name}' is {a.dtype}{a.shape}, expected {e.dtype}{e.shape}"
        if e.tobytes() != a.tobytes():
            lsb = np.abs(e.astype(np.float64) - a).max()
            if not 0 < lsb <= bound:
                at = np.unravel_index(int(np.argmax(e != a)), e.shape)
                many = f"{(e != a).sum()} of {e.size} differ, by {lsb} at most"
                return f"{graph.name}: '{name}' at {tuple(map(int, at))}: expected {e[at]}, got {a[at]}; {many}"
    return ""
