"""Single-op integer graphs, shared by every suite that compares a runtime with the simulator.

``CASES[family]`` is a list of :class:`Case`; a suite takes them all and leaves out what its target refuses.
"""

from __future__ import annotations

from cases import activation, clamp, conv, elementwise, index, layout, linear, matmul, norm, pool
from cases.build import Case, feeds
from cases.compare import difference

CASES: dict[str, list[Case]] = {
    family.__name__.rsplit(".", 1)[-1]: family.cases()
    for family in (conv, linear, matmul, elementwise, pool, norm, activation, clamp, layout, index)
}

__all__ = ["CASES", "Case", "difference", "feeds"]
