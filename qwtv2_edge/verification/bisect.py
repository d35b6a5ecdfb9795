"""Finds the first node that a runtime computes differently, by running the graph's beginnings.

The beginning of length k is the first k nodes with every tensor that later nodes (or the user) read as an output.
It is emitted anew for the same target and run in the same runtime. If all of its outputs agree and some of the
beginning of length k + 1 differ, node k is at fault: everything it reads is right, and what it writes is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from qwtv2_edge import backends
from qwtv2_edge.errors import EmitError, RunError
from qwtv2_edge.ir.graph import Graph, truncate
from qwtv2_edge.numerics import Numerics, rule_key
from qwtv2_edge.runners.board import BoardSession
from qwtv2_edge.runners.host import Session
from qwtv2_edge.simulator.run import run_once, step
from qwtv2_edge.verification.compare import Difference, compare_all
from qwtv2_edge.verification.report import Culprit


def beginning(graph: Graph, count: int) -> Graph:
    """The first ``count`` nodes of ``graph``, with every tensor that is read later as an output; unread inputs are left out."""
    made = [t for n in graph.nodes[:count] for t in n.outputs]
    later = {t for n in graph.nodes[count:] for t in n.inputs} | set(graph.outputs)
    part = truncate(graph, [t for t in made if t in later])
    read = {t for n in part.nodes for t in n.inputs}
    return dataclasses.replace(part, inputs=tuple(t for t in part.inputs if t in read))


def find_culprit(
    graph: Graph,
    numerics: Numerics,
    feed: Sequence[np.ndarray],
    session: Session | BoardSession,
    progress: Callable[[str, int, int], None] | None = None,
) -> Culprit:
    """The first node that ``numerics``' runtime computes differently on ``feed``.

    Args:
        graph: integer graph whose outputs are known to differ.
        feed: one array per graph input, one sample of the graph's own batch.
        session: a session of the numerics' runtime; whatever it holds is replaced.
        progress: called with ("bisect", steps done, steps expected).
    """
    values: dict[str, np.ndarray] = dict(zip(graph.inputs, feed, strict=True))
    run_once(graph, values.copy(), numerics, lambda node, outs: values.update(zip(node.outputs, outs, strict=True)))
    refused: list[str] = []

    def differences(count: int) -> list[Difference] | None:
        """Of the beginning of length ``count``; None when the target refuses it."""
        part = beginning(graph, count)
        try:
            session.load(backends.emit(part, numerics.target).data)
            actual = session.run([values[t] for t in part.inputs])
        except (EmitError, RunError) as error:
            refused.append(error.message)
            return None
        return compare_all(part, part.outputs, [values[t] for t in part.outputs], actual)

    total = len(graph.nodes)
    found = differences(total)
    if found is None:
        return Culprit(note=f"the graph could not be emitted and run again: {refused[-1]}")
    if not found:
        return Culprit(note="the same graph, emitted anew, agrees; the artifact holds something else than the graph")
    low, high = 0, total  # beginnings of length low agree, of length high differ
    candidates = list(range(1, total))
    steps = 0
    while candidates:
        middle = candidates[len(candidates) // 2]
        result = differences(middle)
        steps += 1
        if progress is not None:
            progress("bisect", steps, steps + len(candidates).bit_length() - 1)
        if result is None:
            candidates.remove(middle)
        elif result:
            high, found = middle, result
            candidates = [c for c in candidates if c < middle]
        else:
            low = middle
            candidates = [c for c in candidates if c > middle]
    node = graph.nodes[high - 1]
    difference = next((d for d in found if d.tensor in node.outputs), found[0])
    note = ""
    if high - low > 1:
        first = graph.nodes[low].name
        note = f"one of the nodes from '{first}' to '{node.name}'; the target refuses the graph cut between them: {refused[-1]}"
    return Culprit(node.name, node.op, str(node.location), difference, note)


def explained_by_bounds(graph: Graph, numerics: Numerics, feed: Sequence[np.ndarray], session: Session | BoardSession) -> bool:
    """Whether the nodes with a declared bound, and no others, make the runtime differ on ``feed``.

    The runtime's own values of those nodes are laid bare and taken over into the simulation, each after it was seen to
    lie within its bound; all that follows must then agree in every byte.

    Args:
        feed: one array per graph input, one sample of the graph's own batch.
        session: a session of the numerics' runtime; whatever it holds is replaced.
    """
    limits = {n.name: numerics.bounds[rule_key(graph, n)] for n in graph.nodes if rule_key(graph, n) in numerics.bounds}
    bounded = [t for n in graph.nodes if n.name in limits for t in n.outputs]
    part = truncate(graph, dict.fromkeys((*graph.outputs, *bounded)))
    try:
        session.load(backends.emit(part, numerics.target).data)
        measured = dict(zip(part.outputs, session.run(list(feed)), strict=True))
    except (EmitError, RunError):
        return False
    values: dict[str, np.ndarray] = {**graph.constants, **dict(zip(graph.inputs, feed, strict=True))}
    for node in graph.nodes:
        results = step(graph, node, [values[t] for t in node.inputs], numerics)
        values.update(zip(node.outputs, results, strict=True))
        if node.name in limits:
            actual = [measured[t] for t in node.outputs]
            if any(d.max_lsb > limits[node.name] for d in compare_all(graph, node.outputs, results, actual)):
                return False
            values.update(zip(node.outputs, actual, strict=True))
    return not compare_all(graph, graph.outputs, [values[t] for t in graph.outputs], [measured[t] for t in graph.outputs])
