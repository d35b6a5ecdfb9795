"""What users call: simulate a graph, or look at any tensor on the way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from qwtv2_edge.errors import UsageError
from qwtv2_edge.ir.graph import Graph, Node, truncate
from qwtv2_edge.numerics import Numerics
from qwtv2_edge.simulator import run as runner

Inputs = np.ndarray | Sequence[np.ndarray]


def simulate(graph: Graph, inputs: Inputs, numerics: str | Numerics) -> list[np.ndarray]:
    """Every output byte of an integer graph under the named numerics.

    Args:
        graph: integer graph.
        inputs: one array per graph input (a bare array where there is one input), first axis = samples.
            Float inputs take any real dtype (uint8 and float16 too) as it is; int8 inputs take int8 codes.
        numerics: a name (``qwtv2-edge numerics`` lists them) or a Numerics.
    Returns: one array per graph output, first axis = samples.
    Raises: UsageError: wrong inputs or an unknown name. GraphError: the numerics has no rule for an op.
        UnsupportedOpError: the runtime can't execute some nodes. QuantizeError: the numbers leave what its integers hold.
    """
    table = _named(graph, numerics)
    table.require(graph)
    return runner.run(graph, as_sequence(inputs), table)


def trace(graph: Graph, inputs: Inputs, numerics: str | Numerics, tensors: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The value of any tensors of an integer graph, first axis = samples.

    Args:
        graph, inputs, numerics: as :func:`simulate`.
        tensors: names of graph inputs or node outputs; None for all of them.
    Raises: as simulate, of the nodes that ``tensors`` need; UsageError: a tensor that nothing computes.
    """
    arrays = as_sequence(inputs)
    chosen = _named(graph, numerics)
    produced = set(graph.producers())
    wanted = list(dict.fromkeys((*graph.inputs, *(t for n in graph.nodes for t in n.outputs)) if tensors is None else tensors))
    for t in wanted:
        if t not in produced and t not in graph.inputs:
            raise UsageError(f"the graph computes no tensor '{t}'", fix="name a graph input or the output of a node")
    parts: dict[str, list[np.ndarray]] = {t: [] for t in wanted if t in produced}
    values = dict(zip(graph.inputs, runner.check_inputs(graph, arrays), strict=True))
    if parts:

        def observe(node: Node, results: tuple[np.ndarray, ...]) -> None:
            for t, value in zip(node.outputs, results, strict=True):
                if t in parts:
                    parts[t].append(value)

        needed = truncate(graph, parts)
        chosen.require(needed)
        runner.run(needed, arrays, chosen, observe)
    found = {t: p[0] if len(p) == 1 else np.concatenate(p) for t, p in parts.items()}
    return {t: found[t] if t in found else values[t] for t in wanted}


def as_sequence(inputs: Inputs) -> list[np.ndarray]:
    """The inputs as a list, a bare array being a list of one."""
    if isinstance(inputs, np.ndarray):
        return [inputs]
    return [np.asarray(a) for a in inputs]


def _named(graph: Graph, numerics: str | Numerics) -> Numerics:
    from qwtv2_edge.backends import get_numerics  # late: loads the backend packages

    if any(n.op == "quantize" for n in graph.nodes) or all(graph.tensors[t].dtype != "float32" for t in graph.inputs):
        return get_numerics(numerics) if isinstance(numerics, str) else numerics
    raise UsageError("this is a float graph", fix="quantize it first with qwtv2_edge.quantize")
