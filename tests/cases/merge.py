"""Many single-op graphs as one, for targets that take long to build: generated C."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cases import CASES
from cases.build import Case, feeds
from qwtv2_edge.backends import emit, get_numerics
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.simulator.run import run


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


def cases_of(family: str) -> list[Case]:
    """Those with an operator between the ends, whose quantize and dequantize nodes are left to the caller."""
    return [case for case in CASES[family] if case.graph.nodes[0].op not in ("quantize", "dequantize")]


def outcome(cases, samples: int, rng, execute_merged) -> list[str]:
    """What differs. ``execute_merged``: (artifact of one graph of independent nodes, inputs) -> outputs."""
    table = get_numerics("c")
    inputs = [feeds(case.graph, rng, samples) for case in cases]
    expected = [run(case.graph, x, table) for case, x in zip(cases, inputs, strict=True)]
    actual = iter(execute_merged(emit(merge("cases", cases), "c"), [a for arrays in inputs for a in arrays]))
    wrong = []
    for case, arrays in zip(cases, expected, strict=True):
        for e in arrays:
            a = next(actual)
            assert a.shape == e.shape
            assert a.dtype == e.dtype
            different = a.view(np.uint8) != e.view(np.uint8)
            if different.any():
                at = np.unravel_index(int(np.argmax(a != e)), e.shape)
                wrong.append(f"{case.name} at {tuple(map(int, at))}: expected {e[at]}, got {a[at]}; {(a != e).sum()} of {e.size} differ")
    return wrong
