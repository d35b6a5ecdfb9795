"""What a verification found, as frozen values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwtv2_edge.errors import MismatchError, MissingToolError, RunError
from qwtv2_edge.verification.compare import Difference

#: status -> whether it lets a check pass
STATUSES = {"exact": True, "bound": True, "missing": True, "refused": True, "mismatch": False, "crashed": False}


def _number(value: float) -> float | str:
    """JSON has no infinities and no NaN; they become text."""
    return value if math.isfinite(value) else str(value)


@dataclass(frozen=True, slots=True)
class Culprit:
    """The first node whose output differs although everything it reads agrees.

    Attributes:
        node, op, source: the node, its op and the user's source line; "" when it could not be found.
        difference: in the node's own output.
        note: how sure this is, or why there is none.
    """

    node: str = ""
    op: str = ""
    source: str = ""
    difference: Difference | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first difference of a network's outputs.

    Attributes:
        sample: its number among all samples that were run, edge patterns first.
        origin: what that sample is: an edge pattern's name, or "data 17".
        difference: in the output; its index counts the sample axis within that sample.
        culprit: where it comes from.
    """

    sample: int
    origin: str
    difference: Difference
    culprit: Culprit = Culprit()

    def text(self) -> str:
        """All of it, in a few lines."""
        d = self.difference
        at = f"output '{d.tensor}' at {list(d.index)}, sample {self.sample} ({self.origin}): expected {d.expected:.9g}, got {d.actual:.9g}"
        c = self.culprit
        lines = [at]
        if c.node:
            lines.append(f"first differing node: {c.op} '{c.node}'")
        if c.source:
            lines.append(f"  from  {c.source}")
        if c.difference is not None:
            n = c.difference
            lines.append(
                f"  '{n.tensor}' at {list(n.index)}: expected {n.expected:.9g}, got {n.actual:.9g}; "
                f"{n.count} values differ, by {n.max_lsb} LSB at most"
            )
        if c.note:
            lines.append(f"  note  {c.note}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        d, c = self.difference, self.culprit
        out: dict[str, Any] = {
            "sample": self.sample,
            "origin": self.origin,
            "output": d.tensor,
            "index": list(d.index),
            "expected": _number(d.expected),
            "actual": _number(d.actual),
            "count": d.count,
            "max_lsb": d.max_lsb,
            "node": c.node,
            "op": c.op,
            "source": c.source,
            "note": c.note,
            "text": self.text(),
        }
        if c.difference is not None:
            n = c.difference
            out["at_node"] = {
                "tensor": n.tensor,
                "index": list(n.index),
                "expected": _number(n.expected),
                "actual": _number(n.actual),
                "count": n.count,
                "max_lsb": n.max_lsb,
            }
        return out


@dataclass(frozen=True)
class NumericsResult:
    """One numerics against its real runtime.

    Attributes:
        numerics, runtime, promise: as in the table of numerics.
        status: key of STATUSES.
        versions: of the runtime's packages, as found.
        samples: samples run, edge patterns included.
        outputs_compared: output values compared.
        mismatches: values that differ in any byte.
        max_lsb: the largest difference, in code steps.
        declared_lsb: largest declared bound among the graph's ops, None where every op is promised exact.
        first: the first mismatch, or None.
        error: why it is missing, refused (the runtime lacks a kernel) or crashed, in words; fix: what to do.
    """

    numerics: str
    runtime: str
    promise: str
    status: str
    versions: Mapping[str, str] = field(default_factory=dict)
    samples: int = 0
    outputs_compared: int = 0
    mismatches: int = 0
    max_lsb: int = 0
    declared_lsb: int | None = None
    first: Mismatch | None = None
    error: str = ""
    fix: str = ""

    @property
    def ok(self) -> bool:
        return STATUSES[self.status]

    def to_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "ok": self.ok,
            "promise": self.promise,
            "runtime": self.runtime,
            "versions": dict(self.versions),
            "samples": self.samples,
            "outputs_compared": self.outputs_compared,
            "mismatches": self.mismatches,
            "max_lsb": self.max_lsb,
            "declared_lsb": self.declared_lsb,
            "first_mismatch": None if self.first is None else self.first.to_json(),
            "error": self.error,
            "fix": self.fix,
        }

    def text(self) -> str:
        """One line, more where something is wrong."""
        head = f"{self.numerics}: {self.status}"
        if self.status in ("missing", "refused", "crashed"):
            return f"{head}: {self.error}" + (f"\n  fix   {self.fix}" if self.fix else "")
        head += f", {self.mismatches} of {self.outputs_compared} output values differ over {self.samples} samples"
        if self.mismatches:
            head += f", by {self.max_lsb} LSB at most"
        return head if self.first is None else "\n  ".join([head, *self.first.text().splitlines()])


@dataclass(frozen=True)
class VerifyReport:
    """All numerics of one artifact."""

    target: str
    results: Mapping[str, NumericsResult]

    @property
    def ok(self) -> bool:
        """True when every runtime that is here agreed, and at least one is here."""
        return all(r.ok for r in self.results.values()) and any(r.status not in ("missing", "refused") for r in self.results.values())

    @property
    def missing(self) -> tuple[str, ...]:
        """Numerics whose runtime is not installed."""
        return tuple(name for name, r in self.results.items() if r.status == "missing")

    def to_json(self) -> dict[str, Any]:
        """numerics -> its result, as in ``report.json``."""
        return {name: r.to_json() for name, r in self.results.items()}

    def text(self) -> str:
        return "\n".join(r.text() for r in self.results.values())

    def raise_for_mismatch(self) -> VerifyReport:
        """Return the report if it is ok.

        Raises: MismatchError: bytes differ; RunError: a runtime crashed; MissingToolError: no runtime is here at all.
        """
        bad = [r for r in self.results.values() if not r.ok]
        if any(r.status == "mismatch" for r in bad):
            raise MismatchError("\n".join(r.text() for r in bad), fix="report this; the files must not be used where exact bytes matter")
        if bad:
            raise RunError("\n".join(r.text() for r in bad))
        if not self.ok:
            fixes = sorted({r.fix for r in self.results.values() if r.fix})
            raise MissingToolError(f"no runtime for {self.target} is installed ({', '.join(self.results)})", fix="; ".join(fixes))
        return self
