"""Puts a program together: which nodes run in XNNPACK blobs, which as portable kernels, and in what order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from qwtv2_edge.errors import GraphError, Problem, QuantizeError, QwtEdgeError, UnsupportedOpError
from qwtv2_edge.ir.graph import Graph, Node, truncate
from qwtv2_edge.ir.types import DTYPES
from qwtv2_edge.numerics import Numerics
from qwtv2_edge_executorch import portable, xnnpack
from qwtv2_edge_executorch.blob import FIRST_EXTERNAL, Blob
from qwtv2_edge_executorch.kernels import Portable
from qwtv2_edge_executorch.program import ProgramBuilder

#: ops that mean the same in XNNPACK and as portable kernels
SHARED = frozenset({"quantize", "dequantize", "reshape", "transpose", "concat", "slice", "pad", "resize_nearest"})
#: dtype of tensors without a scale -> the ops that take or give them
UNQUANTIZED = {"float32": SHARED - {"pad"}, "int32": frozenset({"embedding", "argmax", "reshape", "transpose", "concat", "slice"})}
#: a blob of shared ops alone, on this many elements at most, costs more as a delegate call than as portable kernels
SMALL = 4096


@dataclass
class Build:
    """The outcome: a program, or every reason why there is none.

    outside: nodes outside the delegate, and why; notes: what else the user should know.
    """

    program: ProgramBuilder = field(default_factory=ProgramBuilder)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    outside: list[tuple[Node, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def finish(self, named: Mapping[str, bytes] | None = None) -> bytes:
        return self.program.finish(self.inputs, self.outputs, named)


#: the exception a node's emission raised -> reason code
_CODES: tuple[tuple[type[QwtEdgeError], str], ...] = (
    (UnsupportedOpError, "op-unsupported"),
    (QuantizeError, "scale-out-of-range"),
    (GraphError, "not-expressible"),
)


def build(graph: Graph, numerics: Numerics, *, delegate: bool, separate: bool = False) -> Build:
    """Emit ``graph`` node by node, without those that no output needs; a node that can't be emitted becomes a Problem and the
    rest is still looked at.

    separate: one blob per node, of the nodes that share a blob otherwise.
    """
    result, graph = Build(), truncate(graph, graph.outputs)
    b, numerics = result.program, numerics.for_graph(graph)
    values = {t: b.tensor(graph.tensors[t].shape, DTYPES[graph.tensors[t].dtype]) for t in graph.inputs}
    result.inputs = [values[t] for t in graph.inputs]
    kernels = Portable(graph, numerics, b, values)
    refused = {n.name: (xnnpack.refusal(graph, n, numerics) if delegate else "portable") for n in graph.nodes}
    sound = [n for n in graph.nodes if not _reject(result, graph, n, numerics, refused[n.name])]
    if result.problems:
        # the nodes that pass are still tried one by one, each on inputs of its own
        for node in sound:
            _try_alone(result, graph, node, numerics, delegate)
        return result

    if delegate:
        result.outside = [(n, refused[n.name]) for n in graph.nodes if refused[n.name]]
    for stage, delegated in stages(graph, {name for name, why in refused.items() if not why}):
        if delegated:
            for part in [[node] for node in stage] if separate else [stage]:
                _delegate(result, graph, part, kernels)
        else:
            for node in stage:
                b.node = node.name
                guard(result, node, partial(portable.emit, kernels, node))
                if node.outputs[0] not in values:
                    type = graph.tensors[node.outputs[0]]
                    values[node.outputs[0]] = b.tensor(type.shape, DTYPES[type.dtype])
    made_by = {t: n.name for n in graph.nodes for t in n.outputs}
    for t in graph.outputs:
        b.node = made_by.get(t, "")
        result.outputs.append(kernels.value(t))
    return result


def stages(graph: Graph, delegated: set[str]) -> list[tuple[list[Node], bool]]:
    """Cut the nodes into stages that alternate between delegate and kernels, each as large as it can be."""
    return min((_stages_from(graph, delegated, inside) for inside in (True, False)), key=len)


def _stages_from(graph: Graph, delegated: set[str], inside: bool) -> list[tuple[list[Node], bool]]:
    done = {*graph.inputs, *graph.constants}
    left = list(graph.nodes)
    out: list[tuple[list[Node], bool]] = []
    while left:
        stage, rest = [], []
        for node in left:
            if (node.name in delegated) == inside and all(t in done for t in node.inputs):
                stage.append(node)
                done.update(node.outputs)
            else:
                rest.append(node)
        if stage:
            small = all(n.op in SHARED and graph.tensors[n.outputs[0]].size <= SMALL for n in stage)
            out.append((stage, inside and not (small and len(stage) < len(graph.nodes))))
        left, inside = rest, not inside
    return out


def _delegate(result: Build, graph: Graph, stage: Sequence[Node], kernels: Portable) -> None:
    made = {t for n in stage for t in n.outputs}
    read = dict.fromkeys(t for n in stage for t in n.inputs if t not in made and t not in graph.constants)
    names = {n.name for n in stage}
    needed = {*graph.outputs, *(t for n in graph.nodes if n.name not in names for t in n.inputs)}
    given = [t for n in stage for t in n.outputs if t in needed]
    blob = Blob(graph, tuple(read), tuple(given))
    sources = []
    for t in read:
        result.program.node = next(n.name for n in stage if t in n.inputs)
        sources.append(kernels.codes(t) if graph.tensors[t].dtype == "int16" else kernels.value(t))
    nodes: list[str] = []
    for node in stage:
        guard(result, node, partial(xnnpack.EMITTERS[node.op], blob, node))
        nodes += [node.name] * (len(blob.nodes) - len(nodes))
    targets = [kernels.delegate_output(t) for t in given]
    if not result.problems:
        kinds = [node["xnode_union"][0] for node in blob.nodes]
        # arguments are found by external id; nothing reads the one that stands at the unused id
        arguments = [targets[0]] * FIRST_EXTERNAL + [*sources, *targets]
        result.program.delegate("XnnpackBackend", blob.encode(), arguments, zip(kinds, nodes, strict=True))


def _try_alone(result: Build, graph: Graph, node: Node, numerics: Numerics, delegate: bool) -> None:
    if delegate and not xnnpack.refusal(graph, node, numerics):
        inputs = tuple(t for t in node.inputs if t not in graph.constants)
        blob = Blob(graph, inputs, node.outputs)
        guard(result, node, partial(xnnpack.EMITTERS[node.op], blob, node))
        return
    b = ProgramBuilder()
    types = {t: graph.tensors[t] for t in node.inputs if t not in graph.constants}
    values = {t: b.tensor(type.shape, DTYPES[type.dtype]) for t, type in types.items()}
    guard(result, node, partial(portable.emit, Portable(graph, numerics, b, values), node))


def _reject(result: Build, graph: Graph, node: Node, numerics: Numerics, refused: str) -> bool:
    """Reasons that hold before any emission. ``refused``: why the delegate can't run the node, "" where it does."""
    found = []
    if node.op not in portable.EMITTERS:
        found.append(("op-unsupported", f"{node.op} has no integer form", "quantize the graph with qwtv2_edge.quantize"))
    elif refused and not portable.has_form(graph, node, numerics):
        message = f"XNNPACK can't run it ({refused}), and portable kernels round {node.op} in another way"
        found.append(("not-expressible", message, "change that, or emit executorch-portable"))
    activations = [t for t in (*node.inputs, *node.outputs) if t not in graph.constants]
    for tensor in activations:
        type = graph.tensors[tensor]
        if type.dtype in ("int8", "int16") and type.quantization is not None and len(type.quantization.scale) == 1:
            continue
        if node.op not in UNQUANTIZED.get(type.dtype, frozenset()):
            found.append(("dtype-unsupported", f"tensor '{tensor}' is {type.dtype}", "use 8- or 16-bit activations quantized per tensor"))
    if node.op == "concat":
        params = {graph.tensors[t].quantization for t in (*node.inputs, *node.outputs)}
        if len(params) > 1:
            found.append(("quantization-differs", "its tensors differ in scale or zero point", "give them one quantization"))
    for code, message, fix in found:
        result.problems.append(Problem(code, node.name, str(node.location), message, fix))
    return bool(found)


def guard(result: Build, node: Node, emit: Callable[[], None]) -> None:
    """Emit a node; what it raises becomes a Problem."""
    try:
        emit()
    except QwtEdgeError as error:
        code = next((code for type, code in _CODES if isinstance(error, type)), "not-expressible")
        result.problems.append(Problem(code, node.name, str(node.location), error.message, error.fix))
