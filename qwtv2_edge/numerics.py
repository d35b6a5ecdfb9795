"""What one runtime computes: a table from op to named integer rule.

A numerics names one runtime, one kernel set and the versions it was proved on. Its ``rules`` say, per IR
op, which named rule of that op's integer meaning applies ("REF", "F32E", "Q20", ...). Rules that depend on
shape or scale (a delegate that refuses a node) are one rule of their own with the condition inside it.
Backends hold the tables (``backends/*/.../numerics.py``), one source per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qwtv2_edge.errors import Problem, UnsupportedOpError

if TYPE_CHECKING:
    from qwtv2_edge.ir.graph import Graph, Node


#: family of processors that have no operating system
MICROCONTROLLERS = "cortex-m"

#: graph metadata: the recipe's float_ops where it is not "auto"
FLOAT_OPS = "float_ops"

#: the float32 arithmetic of ``ops.sequence``, for the ops that have it
FLOAT_RULES: Mapping[str, str] = {
    **dict.fromkeys(("layer_norm", "channel_scale", "softmax", "l2_normalize"), "F32"),
    **dict.fromkeys(("add:int16", "sub:int16", "channel_add", "requantize:int16"), "F32"),
}


@dataclass(frozen=True)
class Numerics:
    """One row of the contract's numerics table.

    Attributes:
        name: e.g. "litert-xnnpack"; a variant for one processor family is "litert-xnnpack@aarch64".
        target: the artifact it executes, e.g. "tflite".
        also: further targets whose artifacts it executes -> what it refuses there besides, like ``refuses``; see :meth:`on`.
        runtime: runtime and kernels, in words.
        versions: the versions it was proved on, e.g. {"ai-edge-litert": "2.3.0"}.
        rules: IR op -> named rule.
        bounds: IR op -> largest known difference in output LSB, for the ops where exactness can't hold.
        refuses: IR op -> why this runtime can't execute it (no kernel, or one that computes something else).
        modes: value of the graph's "float_ops" metadata -> rules that hold instead on such a graph.
        promise: "exact", or "bound" when even exact ops are only measured.
        runner: key of the runner that executes it, see ``runners/host.py``.
        family: the processor family it holds on ("x86_64", "aarch64"), "" for every one.
        bare: whether it needs no operating system, so that microcontrollers (family MICROCONTROLLERS) run it too.
    """

    name: str
    target: str
    runtime: str
    versions: Mapping[str, str]
    rules: Mapping[str, str]
    bounds: Mapping[str, int] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)
    modes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    also: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    promise: str = "exact"
    runner: str = ""
    family: str = ""
    bare: bool = False

    def rule(self, op: str) -> str:
        """The named rule for ``op``; "" for ops that have a single meaning everywhere (data movement)."""
        return self.rules.get(op, "")

    def runs(self, target: str) -> bool:
        """Whether it executes artifacts of ``target``."""
        return target == self.target or target in self.also

    def runs_on(self, family: str) -> bool:
        """Whether processors of ``family`` can execute it."""
        return bool(self.runner) and self.family in ("", family) and (self.bare or family != MICROCONTROLLERS)

    def on(self, target: str) -> Numerics:
        """This table for artifacts of ``target``, one that it runs."""
        return self if target == self.target else replace(self, target=target, refuses={**self.refuses, **self.also[target]}, also={})

    def for_graph(self, graph: Graph) -> Numerics:
        """This table with the rules that hold on ``graph``, by what its recipe said of float ops."""
        changes = self.modes.get(graph.metadata.get(FLOAT_OPS, ""))
        return replace(self, rules={**self.rules, **changes}, modes={}) if changes else self

    def declared_lsb(self, graph: Graph) -> int | None:
        """The largest bound among the ops of ``graph``, None where every one is promised exact."""
        return max((self.bounds[k] for k in {rule_key(graph, n) for n in graph.nodes} if k in self.bounds), default=None)

    def refusals(self, graph: Graph) -> tuple[tuple[Node, str], ...]:
        """The nodes of ``graph`` that this runtime can't execute, each with the reason."""
        found = ((n, self.refuses.get(rule_key(graph, n)) or self.refuses.get(n.op)) for n in graph.nodes)
        return tuple((n, reason) for n, reason in found if reason)

    def problems(self, graph: Graph) -> tuple[Problem, ...]:
        """:meth:`refusals`, as errors list them."""
        return tuple(Problem("runtime", n.name, str(n.location), reason) for n, reason in self.refusals(graph))

    def require(self, graph: Graph) -> None:
        """Raise UnsupportedOpError if there are nodes of ``graph`` that this runtime can't execute."""
        problems = self.problems(graph)
        if problems:
            raise UnsupportedOpError(f"{self.runtime} can't run {len(problems)} nodes of '{graph.name}'", problems)


def rule_key(graph: Graph, node: Node) -> str:
    """The key of a node in ``rules`` and ``refuses``: its op, marked where its weights are packed 4-bit codes or
    where 16-bit activations take part."""
    if len(node.inputs) > 1 and graph.tensors[node.inputs[1]].dtype == "int4":
        return packed_key(node.op)
    activations = [t for t in (*node.inputs, *node.outputs) if t not in graph.constants]
    return wide_key(node.op) if any(graph.tensors[t].dtype == "int16" for t in activations) else node.op


def packed_key(op: str) -> str:
    """Key of ``op`` with packed 4-bit weights; runtimes often have another kernel for them."""
    return f"{op}:int4"


def wide_key(op: str) -> str:
    """Key of ``op`` on 16-bit activations, which have kernels of their own."""
    return f"{op}:int16"
