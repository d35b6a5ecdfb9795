"""Times per op, traced back to the nodes of the graph.

1. What runtimes tell. LiteRT's profiler reports built-in kernels by the number of their operator in the file, and what the
   XNNPACK delegate runs by name and order. ExecuTorch is run instruction by instruction. Others tell nothing (see the worker).
2. ExecuTorch's XNNPACK delegate is one instruction. The same graph is emitted anew with one delegate call per node, and that
   program is measured, if its outputs are the same bytes.
3. Operators and ops lead to nodes through ``Artifact.nodes``, of the artifact that the graph emits now; it is believed only if
   its bytes are those that run.
4. LiteRT cuts the operators into stages, delegated or not, each as large as it can be. Kernels of a delegated stage are laid
   along its operators in every way that explains all of them in order. Where all the ways agree on the node behind a kernel,
   that is its node; otherwise it has none. Events that can't be explained at all leave every op without a node.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from qwtv2_edge.backends import Artifact, EmitOptions, emit
from qwtv2_edge.errors import QwtEdgeError, RunError
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.runners.base import Job, Place
from qwtv2_edge.runners.host import OpEvent, OpEvents, Session, first_sample

#: TFLite operator -> XNNPACK kernels that do its work. Source: XNNPACK, src/operators (names), src/subgraph (which are made)
KERNELS = {
    "ADD": ("Add",),
    "AVERAGE_POOL_2D": ("Average Pooling", "Mean"),
    "BATCH_MATMUL": ("Batch Matrix Multiply",),
    "CONCATENATION": ("Copy",),
    "CONV_2D": ("Convolution", "Fully Connected"),
    "DEPTHWISE_CONV_2D": ("Convolution",),
    "DEPTH_TO_SPACE": ("Depth To Space",),
    "DEQUANTIZE": ("Convert",),
    "DIV": ("Divide",),
    "ELU": ("ELU",),
    "EXPAND_DIMS": ("Static Reshape", "Static Expand Dims", "Copy"),
    "FULLY_CONNECTED": ("Fully Connected", "Dynamic Fully Connected"),
    "GELU": ("GELU", "ApproxGELU"),
    "HARD_SWISH": ("HardSwish",),
    "LEAKY_RELU": ("LeakyReLU",),
    "LOGISTIC": ("Sigmoid",),
    "MAXIMUM": ("Maximum",),
    "MAX_POOL_2D": ("Max Pooling",),
    "MEAN": ("Mean",),
    "MINIMUM": ("Minimum",),
    "MUL": ("Multiply",),
    "PAD": ("Constant Pad",),
    "PADV2": ("Constant Pad",),
    "PRELU": ("PReLU",),
    "QUANTIZE": ("Convert",),
    "REDUCE_MAX": ("Reduce Max",),
    "RELU": ("Clamp",),
    "RELU6": ("Clamp",),
    "RELU_0_TO_1": ("Clamp",),
    "RELU_N1_TO_1": ("Clamp",),
    "RESHAPE": ("Static Reshape", "Copy"),
    "RESIZE_BILINEAR": ("Resize Bilinear",),
    "SLICE": ("Slice",),
    "SOFTMAX": ("Softmax",),
    "SPACE_TO_DEPTH": ("Space To Depth",),
    "SPLIT": ("Slice",),
    "SQUEEZE": ("Static Reshape", "Copy"),
    "STRIDED_SLICE": ("Slice",),
    "SUB": ("Subtract",),
    "SUM": ("Sum",),
    "TANH": ("TanH",),
    "TRANSPOSE": ("Transpose", "Static Reshape", "Copy"),
    "TRANSPOSE_CONV": ("Deconvolution",),
}
#: kernels that come before and after the main one of any operator: its rank changed, its activation
BEFORE, AFTER = ("Static Reshape",), ("Clamp", "Static Reshape")
#: operators that XNNPACK may leave out: they become part of a neighbour, or there is nothing to do
OPTIONAL = frozenset(("PAD", "PADV2", "RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE"))
#: operators that XNNPACK makes one table of where several follow each other, and its name for the table, which stands at the last
ELEMENTWISE = frozenset(
    (
        *("ADD", "DEQUANTIZE", "DIV", "ELU", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "MAXIMUM", "MINIMUM", "MUL"),
        *("QUANTIZE", "RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1", "SUB", "TANH"),
    )
)
TABLE = "Invalid Unary Op"
#: operators that run their kernel several times
REPEATED = frozenset(("CONCATENATION", "SPLIT"))

#: a manifest in the bytes of an artifact: a JSON object of strings
MANIFEST = re.compile(rb'\{(?:"\w+": ?"\w*"(?:, ?)?)+\}')

SECONDS = 2.0
#: rows that ``text_lines`` shows
TOP = 10


@dataclass(frozen=True)
class OpTimes:
    """Times per op.

    Attributes:
        rows: {index, op, kernel, node, source, ms, percent} in the order of execution: the operator (of the file, or as the
            program calls it), the runtime's own name for it, the graph's node and the user's source line ("" where it is not
            certain), milliseconds of a typical invocation, share of the sum.
        note: how they were measured and what they leave out, or why there are none.
        whole_ms: median invocation of the artifact; plain_ms, watched_ms: of what was measured, without a clock on every op and
            with it. Another program than the artifact may have been measured, see point 2 above.
    """

    rows: tuple[Mapping[str, Any], ...] = ()
    note: str = ""
    whole_ms: float = 0.0
    plain_ms: float = 0.0
    watched_ms: float = 0.0


def time_ops(place: Place, job: Job, graph: Graph | None, seconds: float = SECONDS) -> OpTimes:
    """Time the ops of one sample's invocation, in a runtime process of its own.

    Args:
        job: as it was timed; the first sample runs.
        graph: the integer graph behind the artifact, for the nodes.
        seconds: spent on invocations, about.
    """
    whole = _emitted(job, graph)
    apart = whole
    if whole is not None and graph is not None and job.target == "executorch-xnnpack":
        apart = emit(graph, job.target, EmitOptions(separate=True))
    try:
        with Session(job.runner, job.data, threads=job.threads, cores=job.cores, place=place) as session:
            sample = first_sample(job.inputs, session.inputs)
            plain = session.time(sample, runs=1000, seconds=seconds / 4)
            if apart is not whole and apart is not None:
                session.load(apart.data)
            told, outputs = session.ops(sample, seconds=seconds)
    except RunError as error:
        return OpTimes(note=f"measuring single ops failed: {error.message}")
    if told.reason:
        return OpTimes(note=told.reason)
    if any(a.tobytes() != b.tobytes() for a, b in zip(plain.outputs, outputs, strict=True)):
        return OpTimes(note="the outputs of the run with a clock on every op are not those of the plain run")
    rows, doubt = trace(told, apart, graph)
    found = OpTimes(rows, "", float(np.median(plain.ns)) / 1e6, told.plain_ns / 1e6, told.watched_ns / 1e6)
    place_of_clock = ", in LiteRT's CompiledModel," if told.operators else ""
    notes = [
        "each node is a delegate call of its own, so XNNPACK merges nothing across nodes" if apart is not whole else "",
        f"ops sum to {sum(r['ms'] for r in rows):.4f} ms, an invocation takes {found.whole_ms:.4f} ms",
        f"{found.watched_ms:.4f} ms with a clock on every op{place_of_clock} against {found.plain_ms:.4f} ms without",
        "XNNPACK rounds each op down to whole microseconds" if any(e.unit == "delegate" for e in told.events) else "",
        doubt,
    ]
    return replace(found, note="; ".join(n for n in notes if n))


def trace(told: OpEvents, artifact: Artifact | None, graph: Graph | None) -> tuple[tuple[dict[str, Any], ...], str]:
    """Rows as in :class:`OpTimes`, and why some have no node.

    Args:
        artifact: what ran, with ``ops`` and ``nodes``; None where no graph gives it. graph: behind it.
    """
    doubt = "" if artifact else "no graph was given that emits this very file, so ops have no nodes"
    try:
        pairs = _operators_behind(told, artifact) if told.operators else _instructions(told.events, artifact)
    except RunError as error:
        pairs, doubt = [("", "") for _ in told.events], f"ops have no nodes: {error.message}"
    sources = {n.name: str(n.location) for n in graph.nodes} if graph is not None else {}
    total = sum(e.ns for e in told.events) or 1.0
    rows = tuple(
        {
            "index": i,
            "op": op or event.op or f"{event.unit} {event.number}",
            "kernel": event.op,
            "node": node,
            "source": sources.get(node, ""),
            "ms": event.ns / 1e6,
            "percent": 100 * event.ns / total,
        }
        for i, (event, (op, node)) in enumerate(zip(told.events, pairs, strict=True))
    )
    return rows, doubt


def instructions_of_ops(counts: Mapping[str, int], graph: Graph | None) -> tuple[dict[str, Any], ...]:
    """Rows as in :class:`OpTimes` of an emulated processor, which has no ``ms``: ``instructions`` of each node instead."""
    known = {n.name: n for n in graph.nodes} if graph is not None else {}
    total = sum(counts.values()) or 1
    return tuple(
        {
            "index": i,
            "op": known[node].op if node in known else "",
            "kernel": "",
            "node": node,
            "source": str(known[node].location) if node in known else "",
            "ms": None,
            "instructions": count,
            "percent": 100 * count / total,
        }
        for i, (node, count) in enumerate(counts.items())
    )


def by_node(rows: Sequence[Mapping[str, Any]], measure: str = "ms") -> list[dict[str, Any]]:
    """{node, source, ops, ``measure``, percent} of each node, the largest first; ops of no node are one by one, under their own name."""
    groups: dict[str, dict[str, Any]] = {}
    for row in rows:
        key = row["node"] or f"({row['op']})"
        group = groups.setdefault(key, {"node": key, "source": row["source"], "ops": 0, measure: 0, "percent": 0.0})
        group["ops"] += 1
        group[measure] += row[measure]
        group["percent"] += row["percent"]
    return sorted(groups.values(), key=lambda g: -g["percent"])


def text_lines(rows: Sequence[Mapping[str, Any]], top: int = TOP) -> list[str]:
    """The ``top`` costliest nodes and the rest, a line each, for people."""
    counted = bool(rows) and rows[0]["ms"] is None
    measure, cost = ("instructions", "{:13,}") if counted else ("ms", "{:9.4f} ms")
    groups = by_node(rows, measure)
    width = max((len(g["node"]) for g in groups[:top]), default=0)
    lines = [f"{cost.format(g[measure])} {g['percent']:5.1f} %  {g['node']:<{width}}  {g['source']}".rstrip() for g in groups[:top]]
    rest = groups[top:]
    if rest:
        lines.append(f"{cost.format(sum(g[measure] for g in rest))} {sum(g['percent'] for g in rest):5.1f} %  {len(rest)} more")
    return lines


def _emitted(job: Job, graph: Graph | None) -> Artifact | None:
    """The artifact that ``graph`` emits, if it is the job's to the byte."""
    if graph is None:
        return None
    for manifest in _manifests(job.data):
        try:
            artifact = emit(graph, job.target, EmitOptions(manifest))
        except QwtEdgeError:
            return None  # a graph that was read from a file need not have a form here
        if artifact.data == job.data:
            return artifact
    return None


def _manifests(data: bytes) -> Iterator[dict[str, str]]:
    """What may have been stored in an artifact when it was emitted."""
    yield {}
    for found in MANIFEST.finditer(data):
        yield json.loads(found[0])


# ---- instructions


def _instructions(events: Sequence[OpEvent], artifact: Artifact | None) -> list[tuple[str, str]]:
    """(ops, node) of each instruction of a program. Raises RunError where the program has other instructions."""
    if artifact is None:
        return [("", "") for _ in events]
    calls = groupby(enumerate(zip(artifact.ops, artifact.nodes, strict=True)), key=_call)
    pairs = [[pair for _, pair in call] for _, call in calls]
    if [e.number for e in events] != list(range(len(pairs))):
        raise RunError(f"{len(events)} instructions were timed out of order or from another program, which has {len(pairs)}")
    return [("+".join(op.rpartition("]::")[2] for op, _ in call), _agreed(node for _, node in call)) for call in pairs]


def _call(item: tuple[int, tuple[str, str]]) -> Any:
    """What ops of one instruction share: their delegate call, "XnnpackBackend[3]"; a kernel call shares nothing."""
    position, (op, _) = item
    backend, inside, _ = op.rpartition("::XNN")
    return backend if inside else position


def _agreed(names: Any) -> str:
    """The one name among ``names``, or ""."""
    found = set(names)
    return found.pop() if len(found) == 1 else ""


# ---- operators of a .tflite


def _operators_behind(told: OpEvents, artifact: Artifact | None) -> list[tuple[str, str]]:
    """(operator, node) of each event of LiteRT. Raises RunError where they don't fit the file's operators."""
    codes = [name for name, _, _ in told.operators]
    nodes = [""] * len(codes)
    if artifact is not None:
        if codes != list(artifact.ops):
            raise RunError("the runtime read other operators from the file than were written")
        nodes = list(artifact.nodes)
    out = []
    for operators in behind(told):
        out.append((_agreed(codes[i] for i in operators), _agreed(nodes[i] for i in operators)))
    return out


def behind(told: OpEvents) -> list[set[int]]:
    """For each event the operators of the file that may be behind it. Raises RunError where events and operators don't fit."""
    ran = [list(events) for _, events in groupby(told.events, key=lambda e: e.unit)]
    planned = stages(told)
    if [events[0].unit == "delegate" for events in ran] != [delegated for delegated, _ in planned]:
        raise RunError(f"{len(ran)} stages ran, the file's operators make {len(planned)}")
    out: list[set[int]] = []
    for events, (delegated, operators) in zip(ran, planned, strict=True):
        if [e.number for e in events] != (list(range(len(events))) if delegated else operators):
            raise RunError("ops were reported in another order than they run in")
        if delegated:
            codes = [told.operators[i][0] for i in operators]
            out += [{operators[j] for j in found} for found in align([e.op.partition(" (")[0] for e in events], codes)]
        else:
            out += [{i} for i in operators]
    return out


def stages(told: OpEvents) -> list[tuple[bool, list[int]]]:
    """(delegated, operators) of each stage, in the order LiteRT runs them: as many ready operators of one kind as there are.

    Operators that were not reported by number were delegated.
    Source: LiteRT, tflite/graph_info.cc :: PartitionGraphIntoIndependentNodeSubsets
    """
    kept = {e.number for e in told.events if e.unit == "operator"}
    waiting = {t for _, _, made in told.operators for t in made}
    left = list(range(len(told.operators)))
    out: list[tuple[bool, list[int]]] = []
    while left:
        stage: list[int] = []
        delegated = False
        for i in left:
            _, read, made = told.operators[i]
            if waiting.isdisjoint(read) and (not stage or (i not in kept) == delegated):
                delegated = i not in kept
                stage.append(i)
                waiting.difference_update(made)
        if not stage:
            raise RunError("the file's operators wait for each other")
        out.append((delegated, stage))
        left = [i for i in left if i not in set(stage)]
    return out


def align(kernels: Sequence[str], codes: Sequence[str]) -> list[set[int]]:
    """For each kernel the places of operators that may be behind it, over all ways to explain every kernel in order.

    Args:
        kernels: XNNPACK's names of what ran, in order.
        codes: the operators, in order; those not in KERNELS may do anything.
    Raises: RunError: there is no way.
    """
    end = 3 * len(codes)
    # finishes[i]: states from which kernels i and later can be explained
    finishes = [[False] * (end + 3) for _ in range(len(kernels) + 1)]
    finishes[-1][end] = True
    for i in reversed(range(len(kernels) + 1)):
        for state in reversed(range(end)):
            ways = [finishes[i][to] for to in _silent(state, codes)]
            if i < len(kernels):
                ways += [finishes[i + 1][to] for to in _after(state, kernels[i], codes)]
            finishes[i][state] |= any(ways)
    if not finishes[0][0]:
        raise RunError(f"the {len(kernels)} kernels that ran can't be those of the {len(codes)} operators they stand for")
    out: list[set[int]] = []
    reached = {0}
    for i, kernel in enumerate(kernels):
        for state in range(end):
            if state in reached:
                reached.update(_silent(state, codes))
        moves = [(state, to) for state in reached for to in _after(state, kernel, codes) if finishes[i + 1][to]]
        out.append({state // 3 for state, _ in moves})
        reached = {to for _, to in moves}
    return out


#: state 3 j + phase: operator j comes next; its main kernel has run; it comes next, and the operators before it wait for its table
NEXT, RAN, JOINED = range(3)


def _after(state: int, kernel: str, codes: Sequence[str]) -> Iterator[int]:
    """States that a kernel of operator state // 3 leads to."""
    j, phase = divmod(state, 3)
    if j == len(codes):
        return
    main = KERNELS.get(codes[j], ())
    if phase == NEXT and not main:
        yield state
    elif phase == NEXT:
        if kernel in main:
            yield 3 * j + RAN
        if kernel in BEFORE:
            yield state
    elif phase == RAN and (kernel in AFTER or (codes[j] in REPEATED and kernel in main)):
        yield state
    elif phase == JOINED and kernel == TABLE and codes[j] in ELEMENTWISE:
        yield 3 * j + RAN


def _silent(state: int, codes: Sequence[str]) -> Iterator[int]:
    """Later states that are reached without a kernel."""
    j, phase = divmod(state, 3)
    if j == len(codes):
        return
    if phase == RAN or (phase == NEXT and (codes[j] in OPTIONAL or codes[j] not in KERNELS)):
        yield 3 * (j + 1) + NEXT
    if phase != RAN and codes[j] in ELEMENTWISE:
        yield 3 * (j + 1) + JOINED
