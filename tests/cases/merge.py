"""Many single-op graphs as one, for targets that take long to build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cases.build import Case
from qwtv2_edge.ir.graph import Graph


def merge(name: str, cases: Sequence[Case]) -> Graph:
    """The nodes of all cases side by side; names get the number of their case in front, inputs and outputs keep their order."""
    parts = [(f"c{i}.", case.graph) for i, case in enumerate(cases)]
    return Graph(
        name,
        tuple(p + t for p, g in parts for t in g.inputs),
        tuple(p + t for p, g in parts for t in g.outputs),
        tuple(
            replace(n, name=p + n.name, inputs=tuple(p + t for t in n.inputs), outputs=tuple(p + t for t in n.outputs))
            for p, g in parts
            for n in g.nodes
        ),
        {p + t: type for p, g in parts for t, type in g.tensors.items()},
        {p + t: array for p, g in parts for t, array in g.constants.items()},
    )
