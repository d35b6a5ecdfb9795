"""Small rewrites of a freshly captured float graph: padding taken into the op that follows, idioms named, dead code dropped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from qwtv2_edge.errors import GraphError
from qwtv2_edge.ir.graph import Graph, GraphBuilder, Node, live_nodes
from qwtv2_edge.ops import OPS
from qwtv2_edge.ops.activation import ClampAttrs
from qwtv2_edge.ops.spec import NoAttrs

#: ops whose results are never negative, so that a zero pad can't win a maximum
NON_NEGATIVE = {"relu", "relu6", "logistic", "hard_sigmoid", "softmax"}


def tidy(graph: Graph) -> Graph:
    """Every pass of this module, in order."""
    for f in (drop_dead, fold_padding, merge_clamps, drop_dead, name_idioms, drop_dead):
        graph = f(graph)
    return graph


def drop_dead(graph: Graph) -> Graph:
    """Without the nodes that no output needs."""
    return _with_nodes(graph, live_nodes(graph, graph.outputs))


def fold_padding(graph: Graph) -> Graph:
    """Take spatial pads into the padding of the convolution or max pool that follows, where the meaning stays the same."""
    producers = graph.producers()

    def fold(node: Node) -> Node:
        pad = producers.get(node.inputs[0]) if node.inputs else None
        if pad is None or pad.op != "pad" or not _foldable(pad, node, producers):
            return node
        (n, h, w, c) = pad.attrs.paddings
        if any(n) or any(c):
            return node
        old = node.attrs.padding
        new = tuple((o[0] + p[0], o[1] + p[1]) for o, p in zip(old, (h, w), strict=True))
        folded = replace(node, inputs=(pad.inputs[0], *node.inputs[1:]), attrs=replace(node.attrs, padding=new))
        try:  # pools refuse padding as wide as their window
            out = OPS[node.op].infer([graph.tensors[t] for t in folded.inputs], folded.attrs)
        except GraphError:
            return node
        return fold(folded) if out[0].shape == graph.tensors[node.outputs[0]].shape else node

    return _with_nodes(graph, tuple(fold(n) for n in graph.nodes))


def _foldable(pad: Node, node: Node, producers: dict[str, Node]) -> bool:
    if len(pad.attrs.paddings) != 4:
        return False
    if node.op in ("conv2d", "depthwise_conv2d"):
        return bool(pad.attrs.value == 0)
    if node.op == "max_pool2d":
        if pad.attrs.value == -np.inf:
            return True
        source = producers.get(pad.inputs[0])
        own = node.attrs.padding == ((0, 0), (0, 0))
        return own and pad.attrs.value == 0 and source is not None and _non_negative(source)
    return False


def _non_negative(node: Node) -> bool:
    if node.op == "clamp":
        return bool(node.attrs.min >= 0)
    return node.op in NON_NEGATIVE


def name_idioms(graph: Graph) -> Graph:
    """relu6(x + 3) / 6 is hard_sigmoid, x times that is hard_swish, however the division is placed."""
    producers = graph.producers()
    users: dict[str, int] = {}
    for n in graph.nodes:
        for t in n.inputs:
            users[t] = users.get(t, 0) + 1
    for t in graph.outputs:
        users[t] = users.get(t, 0) + 1

    def alone(tensor: str, test: Callable[[Node], bool]) -> Node | None:
        node = producers.get(tensor)
        return node if node is not None and users[tensor] == 1 and test(node) else None

    def times(node: Node, value: float) -> str | None:
        """The other operand where ``node`` multiplies by (or adds) the number ``value``."""
        for a, k in (node.inputs, node.inputs[::-1]):
            array = graph.constants.get(k)
            if array is not None and array.size == 1 and abs(float(array.reshape(())) - value) <= 1e-6:
                return a
        return None

    def shifted(tensor: str) -> str | None:
        """x where ``tensor`` is relu6(x + 3)."""
        r = alone(tensor, lambda n: n.op == "relu6")
        plus = alone(r.inputs[0], lambda n: n.op == "add") if r is not None else None
        return times(plus, 3.0) if plus is not None else None

    def rewrite(node: Node) -> Node:
        if node.op != "mul":
            return node
        scaled = times(node, 1 / 6)
        if scaled is not None:
            x = shifted(scaled)
            if x is not None:  # relu6(x + 3) / 6
                return replace(node, op="hard_sigmoid", inputs=(x,), attrs=NoAttrs())
            product = alone(scaled, lambda n: n.op == "mul")
            if product is not None:  # x * relu6(x + 3) / 6
                for a, b in (product.inputs, product.inputs[::-1]):
                    if shifted(b) == a:
                        return replace(node, op="hard_swish", inputs=(a,), attrs=NoAttrs())
            return node
        for a, b in (node.inputs, node.inputs[::-1]):
            inner = alone(b, lambda n: n.op in ("mul", "hard_sigmoid"))
            if inner is None:
                continue
            x = inner.inputs[0] if inner.op == "hard_sigmoid" else None
            if inner.op == "mul":
                sixth = times(inner, 1 / 6)
                x = shifted(sixth) if sixth is not None else None
            if x == a:  # x * (relu6(x + 3) / 6)
                return replace(node, op="hard_swish", inputs=(a,), attrs=NoAttrs())
        return node

    return _with_nodes(graph, tuple(rewrite(n) for n in graph.nodes))


def merge_clamps(graph: Graph) -> Graph:
    """clamp(clamp(x)) with one reader between is one clamp (decomposed hardswish comes so)."""
    readers = {t: len(ns) for t, ns in graph.consumers().items()}
    done: dict[str, Node] = {}
    nodes = []
    for node in graph.nodes:
        inner = done.get(node.inputs[0]) if node.inputs else None
        bounds, inner_bounds = _bounds(node), _bounds(inner)
        if inner is not None and bounds and inner_bounds and readers[node.inputs[0]] == 1 and node.inputs[0] not in graph.outputs:
            lo, hi = max(bounds[0], inner_bounds[0]), min(bounds[1], inner_bounds[1])
            if lo <= hi:
                op, attrs = ("relu6", NoAttrs()) if (lo, hi) == (0, 6) else ("clamp", ClampAttrs(lo, hi))
                node = replace(node, op=op, attrs=attrs, inputs=inner.inputs)
        nodes.append(node)
        done[node.outputs[0]] = node
    return _with_nodes(graph, tuple(nodes))


def _bounds(node: Node | None) -> tuple[float, float] | None:
    if node is None:
        return None
    if node.op == "clamp":
        return (node.attrs.min, node.attrs.max)
    return {"relu": (0.0, np.inf), "relu6": (0.0, 6.0)}.get(node.op)


def _with_nodes(graph: Graph, nodes: tuple[Node, ...]) -> Graph:
    b = GraphBuilder.copy_of(graph, nodes=False)
    for n in nodes:
        b.append(n)
    return b.freeze()
