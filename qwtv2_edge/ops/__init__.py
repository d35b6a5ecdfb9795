"""The op table: every op of the IR, declared once."""

from __future__ import annotations

from qwtv2_edge.ops import activation, conv, elementwise, layout, linear, pool
from qwtv2_edge.ops.spec import OpSpec

OPS: dict[str, OpSpec] = {spec.name: spec for family in (conv, linear, elementwise, pool, activation, layout) for spec in family.SPECS}

__all__ = ["OPS", "OpSpec"]
