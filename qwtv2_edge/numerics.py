"""What one runtime computes: a table from op to named integer rule.

A numerics names one runtime, one kernel set and the versions it was proved on. Its ``rules`` say, per IR
op, which named rule of that op's integer meaning applies ("REF", "F32E", "Q20", ...). Rules that depend on
shape or scale (a delegate that refuses a node) are one rule of their own with the condition inside it.
Backends hold the tables (``backends/*/.../numerics.py``), one source per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Numerics:
    """One row of the contract's numerics table.

    Attributes:
        name: e.g. "litert-xnnpack"; a variant for one processor family is "litert-xnnpack@aarch64".
        target: the artifact it executes, e.g. "tflite".
        runtime: runtime and kernels, in words.
        versions: the versions it was proved on, e.g. {"ai-edge-litert": "2.3.0"}.
        rules: IR op -> named rule.
        bounds: IR op -> largest known difference in output LSB, for the ops where exactness can't hold.
        promise: "exact", or "bound" when even exact ops are only measured.
        runner: key of the runner that executes it on this machine, see ``runners/host.py``.
    """

    name: str
    target: str
    runtime: str
    versions: Mapping[str, str]
    rules: Mapping[str, str]
    bounds: Mapping[str, int] = field(default_factory=dict)
    promise: str = "exact"
    runner: str = ""

    def rule(self, op: str) -> str:
        """The named rule for ``op``; "" for ops that have a single meaning everywhere (data movement)."""
        return self.rules.get(op, "")
