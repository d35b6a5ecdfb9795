"""Generated C equals the simulator, on every byte, for every single-op case."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES, feeds
from cases.merge import merge

from qwtv2_edge.backends import emit, get_numerics
from qwtv2_edge.runners.host import Session, available
from qwtv2_edge.simulator.run import run

pytestmark = pytest.mark.runtime

SAMPLES = 24


@pytest.mark.parametrize("family", CASES)
def test_every_case_is_exact(family, rng, require, monkeypatch):
    """A family is one graph of independent nodes, so that it is compiled once."""
    require("c", *available("c"))
    monkeypatch.setattr("qwtv2_edge.planner.SEARCH_PLACEMENTS", 0)  # for a good place in memory, slow over hundreds of nodes
    table = get_numerics("c")
    cases = [case for case in CASES[family] if case.graph.nodes[0].op not in ("quantize", "dequantize")]  # left to the caller
    inputs = [feeds(case.graph, rng, SAMPLES) for case in cases]
    expected = [run(case.graph, x, table) for case, x in zip(cases, inputs, strict=True)]
    graph = merge(family, cases)
    with Session("c", emit(graph, "c").data) as session:
        actual = iter(session.run([a for arrays in inputs for a in arrays]))
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
    assert wrong == []
