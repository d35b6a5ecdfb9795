"""The op table: every op of the IR, declared once."""

from __future__ import annotations

from qwtv2_edge.ops import activation, conv, elementwise, index, layout, linear, matmul, norm, pool
from qwtv2_edge.ops.spec import OpSpec

FAMILIES = (conv, linear, matmul, elementwise, pool, norm, activation, layout, index)
OPS: dict[str, OpSpec] = {spec.name: spec for family in FAMILIES for spec in family.SPECS}

__all__ = ["OPS", "OpSpec"]
