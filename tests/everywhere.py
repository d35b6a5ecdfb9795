"""What every network of the end-to-end tests must do."""

from __future__ import annotations

from typing import Any

import qwtv2_edge as qe
from qwtv2_edge.backends import TARGETS, backend_for
from qwtv2_edge.ir.check import check


def targets_of(graph: qe.Graph) -> tuple[str, ...]:
    """The targets that take ``graph``: all of them, but for Cortex-M's operators, which have few kinds of layers."""
    taken = tuple(t for t in TARGETS if not backend_for(t).check(graph, t))
    assert set(TARGETS) - set(taken) <= {"executorch-cortex-m"}
    return taken


def assert_exact(graph: qe.Graph, inputs: Any, samples: int | None = None) -> None:
    """Every target emits, and every exact numerics that runs here gives the simulator's bytes."""
    check(graph)
    for target in targets_of(graph):
        report = qe.verify(graph, qe.emit(graph, target), inputs, samples=samples)
        assert report.ok, report.text()
        ran = [r for r in report.results.values() if r.status == "exact"]
        assert ran, report.text()
        assert all(r.outputs_compared > 0 and r.mismatches == 0 for r in ran)
