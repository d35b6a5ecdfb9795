"""Small rewrites of a freshly captured float graph: padding taken into the op that follows, idioms named, dead code dropped.

Transformers: a centred RMSNorm is a LayerNorm, which takes in the factors and offsets after it; a linear layer that is
cut along its channels becomes one layer per part; number factors go into the weights before them, or into a softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

import numpy as np

from qwtv2_edge.errors import GraphError
from qwtv2_edge.ir.graph import Graph, GraphBuilder, Node, live_nodes
from qwtv2_edge.ops import OPS
from qwtv2_edge.ops.activation import ClampAttrs
from qwtv2_edge.ops.index import MaskFillAttrs
from qwtv2_edge.ops.layout import ReshapeAttrs
from qwtv2_edge.ops.spec import NoAttrs

#: ops whose results are never negative, so that a zero pad can't win a maximum
NON_NEGATIVE = {"relu", "relu6", "logistic", "hard_sigmoid", "softmax"}


def tidy(graph: Graph) -> Graph:
    """Every pass of this module, in order."""
    for f in (
        drop_dead,
        fold_padding,
        merge_clamps,
        drop_dead,
        name_idioms,
        name_norms,
        merge_offsets,
        split_projections,
        fold_factors,
        drop_dead,
    ):
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


# ---------------------------------------------------------------------- transformers


def only_reader(graph: Graph, tensor: str) -> Node | None:
    """The one node that reads ``tensor``; None when several do or it is a graph output."""
    readers = graph.consumers().get(tensor, [])
    return readers[0] if len(readers) == 1 and tensor not in graph.outputs else None


def name_norms(graph: Graph) -> Graph:
    """x - mean(x) before an RMSNorm makes it a LayerNorm; a factor or offset per channel after one is its gamma or beta."""
    producers, consumers = graph.producers(), graph.consumers()
    b = GraphBuilder.copy_of(graph, nodes=False)
    moved: dict[str, Node] = {}  # output of an affine step -> the norm that makes it now
    for node in graph.nodes:
        if node.op == "layer_norm" and not node.attrs.centre:
            whole = _centred(graph, producers.get(node.inputs[0]), producers)
            if whole is not None:
                node = replace(node, inputs=(whole, *node.inputs[1:]), attrs=replace(node.attrs, centre=True))
        affine = _affine_step(graph, node, moved, consumers)
        if affine is None:
            b.append(node)
            if node.op == "layer_norm":
                moved[node.outputs[0]] = node
            continue
        norm, k = affine
        gamma, beta = (b.constants[t] for t in norm.inputs[1:])
        k = np.broadcast_to(k.reshape(-1), gamma.shape)
        gamma, beta = (gamma * k, beta * k) if node.op == "mul" else (gamma, beta + k)
        arrays = zip(norm.inputs[1:], (gamma, beta), strict=True)
        constants = [_constant_instead(b, graph, t, a.astype(np.float32)) for t, a in arrays]
        joined = replace(norm, inputs=(norm.inputs[0], *constants), outputs=node.outputs)
        b.nodes[b.nodes.index(norm)] = moved[node.outputs[0]] = joined
    return b.freeze()


def _centred(graph: Graph, node: Node | None, producers: dict[str, Node]) -> str | None:
    """x where ``node`` is x - mean(x) over the last axis."""
    if node is None or node.op != "sub":
        return None
    x, mean = node.inputs[0], producers.get(node.inputs[1])
    if mean is not None and mean.op == "reshape":
        mean = producers.get(mean.inputs[0])
    last = len(graph.tensors[x].shape) - 1
    return x if mean is not None and mean.op == "mean" and mean.inputs == (x,) and mean.attrs.axes == (last,) else None


def _affine_step(graph: Graph, node: Node, norms: dict[str, Node], consumers: dict[str, list[Node]]) -> tuple[Node, np.ndarray] | None:
    """(the norm, the constant) where ``node`` alone reads a norm and multiplies or adds a constant per channel."""
    if node.op not in ("mul", "add"):
        return None
    for t, k in (node.inputs, node.inputs[::-1]):
        if t in norms and k in graph.constants and len(consumers[t]) == 1 and t not in graph.outputs:
            array, size = graph.constants[k], graph.tensors[t].shape[-1]
            if array.size == 1 or array.shape[-1] == array.size == size:
                return norms[t], array
    return None


def merge_offsets(graph: Graph) -> Graph:
    """x + a + b with constants a and b (positions and token types) is x + (a + b)."""
    done: dict[str, Node] = {}
    b = GraphBuilder.copy_of(graph, nodes=False)
    for node in graph.nodes:
        inner, k = _offset(graph, node)
        before = done.get(inner)
        if before is not None and only_reader(graph, inner) is not None:
            x, first = _offset(b, before)
            total = np.asarray(b.constants[first] + graph.constants[k])
            if np.broadcast_shapes(graph.tensors[x].shape, total.shape) == graph.tensors[node.outputs[0]].shape:
                name = b.constant(first, total)
                b.nodes.remove(before)
                node = replace(node, inputs=(x, name))
        b.append(node)
        if _offset(b, node)[0]:
            done[node.outputs[0]] = node
    return b.freeze()


def _offset(graph: Graph | GraphBuilder, node: Node) -> tuple[str, str]:
    """(x, k) where ``node`` is x + k with a constant k of more than one number; ("", "") where it is not."""
    if node.op == "add" and node.attrs.activation == "none":
        for x, k in (node.inputs, node.inputs[::-1]):
            if k in graph.constants and x not in graph.constants and graph.constants[k].size > 1:
                return x, k
    return "", ""


def split_projections(graph: Graph) -> Graph:
    """One linear layer per part where all that reads a layer cuts disjoint parts out of its channels; unread channels go."""
    consumers = graph.consumers()
    parts: dict[str, list[tuple[np.ndarray, list[Node]]]] = {}  # linear layer -> (channels, the slices that take them)
    taken: set[str] = set()
    for node in graph.nodes:
        cuts = _cuts(graph, node, consumers) if node.op == "fully_connected" else None
        if cuts is None:
            continue
        own: list[tuple[np.ndarray, list[Node]]] = []
        for channels, cut in cuts:
            same = next((nodes for have, nodes in own if np.array_equal(have, channels)), None)
            if same is None:
                own.append((channels, [cut]))
            else:
                same.append(cut)
        everything = np.concatenate([channels for channels, _ in own])
        if len(np.unique(everything)) == len(everything):
            parts[node.name] = sorted(own, key=lambda part: int(part[0][0]))
            taken.update(cut.name for _, cuts_ in own for cut in cuts_)
    if not parts:
        return graph
    b = GraphBuilder.copy_of(graph, nodes=False)
    reshaped: dict[str, str] = {}  # output of a slice that only reshapes read -> the part that they reshape now
    for node in graph.nodes:
        if node.name in taken:
            continue
        if node.name not in parts:
            b.append(replace(node, inputs=tuple(reshaped.get(t, t) for t in node.inputs)))
            continue
        weight, bias = (graph.constants[t] for t in node.inputs[1:])
        for i, (channels, cuts_) in enumerate(parts[node.name]):
            constants = [b.constant(f"{t}.{i}", a[channels]) for t, a in zip(node.inputs[1:], (weight, bias), strict=True)]
            type = replace(graph.tensors[node.outputs[0]], shape=(*graph.tensors[node.outputs[0]].shape[:-1], len(channels)))
            plain = next((cut for cut in cuts_ if graph.tensors[cut.outputs[0]] == type), None)
            name = b.unique_node(f"{node.name}.{i}")
            out = plain.outputs[0] if plain is not None else b.tensor(name, type)
            b.append(replace(node, name=name, inputs=(node.inputs[0], *constants), outputs=(out,)))
            for cut in cuts_:
                (result,) = cut.outputs
                if cut is plain:
                    continue
                if result not in graph.outputs and all(n.op == "reshape" for n in consumers[result]):
                    reshaped[result] = out
                else:
                    b.append(replace(cut, op="reshape", inputs=(out,), attrs=ReshapeAttrs(graph.tensors[cut.outputs[0]].shape)))
    return drop_dead(b.freeze())


def _cuts(graph: Graph, node: Node, consumers: dict[str, list[Node]]) -> list[tuple[np.ndarray, Node]] | None:
    """(channels, slice) for every slice of the layer's output, reshapes between; None where anything else reads it."""
    out: list[tuple[np.ndarray, Node]] = []
    width = graph.tensors[node.outputs[0]].shape[-1]
    todo = [node.outputs[0]]
    while todo:
        tensor = todo.pop()
        if tensor in graph.outputs:
            return None
        shape = graph.tensors[tensor].shape
        for reader in consumers.get(tensor, []):
            if reader.op == "reshape":
                todo.append(reader.outputs[0])
                continue
            first = next((i for i in range(len(shape) + 1) if prod(shape[i:]) == width), None)
            if reader.op != "slice" or first is None:
                return None
            where = tuple(slice(*s) for s in zip(reader.attrs.begin, reader.attrs.end, reader.attrs.stride, strict=True))
            if any(len(range(d)[s]) != d for d, s in zip(shape[:first], where[:first], strict=True)):
                return None
            out.append((np.arange(width).reshape(shape[first:])[where[first:]].reshape(-1), reader))
    return out or None


#: ops through which a factor passes from their result to their first input
MOVES = {"reshape", "transpose", "slice"}
#: ops that take a factor into their last two inputs
SCALABLE = {"fully_connected", "conv2d", "depthwise_conv2d", "layer_norm"}


def fold_factors(graph: Graph) -> Graph:
    """Number factors of one tensor, and the factors of softmaxes, go into the weights that make it; else into the softmax that reads it."""
    while True:
        smaller = next((g for node in graph.nodes if (g := _folded(graph, node)) is not None), None)
        if smaller is None:
            return graph
        graph = smaller


def _folded(graph: Graph, node: Node) -> Graph | None:
    """The graph with the factor of ``node`` elsewhere; None where it has none or there is no such place."""
    if node.op == "softmax" and node.attrs.beta != 1:
        source = _scaled_by(graph, node.inputs[0])
        if source is None:
            return None
        return _with_scaled(graph, source, node.attrs.beta, {node.name: replace(node, attrs=replace(node.attrs, beta=1.0))})
    factor = _number_factor(graph, node)
    if factor is None or node.outputs[0] in graph.outputs:
        return None
    x, k = factor
    out = node.outputs[0]
    direct = {n.name: replace(n, inputs=tuple(x if t == out else t for t in n.inputs)) for n in graph.consumers().get(out, [])}
    source = _scaled_by(graph, x)
    if source is not None:
        return _with_scaled(graph, source, k, direct, drop=node.name)
    path = _softmax_path(graph, out)
    if path is None or k <= 0:
        return None
    for n in (direct.get(n.name, n) for n in path):
        if n.op == "softmax":
            direct[n.name] = replace(n, attrs=replace(n.attrs, beta=n.attrs.beta * k))
        elif n.op == "mask_fill":  # what masks is scaled with the rest
            direct[n.name] = replace(n, attrs=replace(n.attrs, fill=n.attrs.fill / k))
    return _with_nodes(graph, tuple(direct.get(n.name, n) for n in graph.nodes if n is not node))


def _number_factor(graph: Graph, node: Node) -> tuple[str, float] | None:
    """(x, k) where ``node`` is x * k with a number k."""
    if node.op != "mul" or node.attrs.activation != "none":
        return None
    for x, k in (node.inputs, node.inputs[::-1]):
        if k in graph.constants and graph.constants[k].size == 1 and graph.tensors[x].shape == graph.tensors[node.outputs[0]].shape:
            return x, float(graph.constants[k].reshape(()))
    return None


def _scaled_by(graph: Graph, tensor: str) -> Node | None:
    """The node whose weights scale ``tensor``, all of it and nothing else; None where there is none."""
    node, reader = graph.producers().get(tensor), only_reader(graph, tensor)
    if node is None or reader is None or reader.inputs.count(tensor) > 1:
        return None
    if node.op in SCALABLE:
        return node if getattr(node.attrs, "activation", "none") == "none" else None
    if node.op in MOVES or (node.op == "mask_fill" and node.attrs.fill <= MaskFillAttrs().fill):
        return _scaled_by(graph, node.inputs[0])
    if node.op == "batch_matmul":
        return _scaled_by(graph, node.inputs[0]) or _scaled_by(graph, node.inputs[1])
    return None


def _softmax_path(graph: Graph, tensor: str) -> list[Node] | None:
    """The nodes from ``tensor`` to the softmax that alone reads it, through movements, masks and products."""
    path: list[Node] = []
    while True:
        reader = only_reader(graph, tensor)
        if reader is None or reader.inputs.count(tensor) > 1:
            return None
        path.append(reader)
        if reader.op == "softmax":
            return path
        if reader.op not in MOVES | {"batch_matmul"} and (reader.op != "mask_fill" or reader.inputs[0] != tensor):
            return None
        tensor = reader.outputs[0]


def _with_scaled(graph: Graph, source: Node, factor: float, changed: dict[str, Node], drop: str = "") -> Graph:
    """The graph with the weights of ``source`` times ``factor``, other nodes changed or dropped."""
    b = GraphBuilder.copy_of(graph, nodes=False)
    constants = [_constant_instead(b, graph, t, graph.constants[t] * np.float32(factor)) for t in source.inputs[1:]]
    for node in graph.nodes:
        node = changed.get(node.name, node)
        if node.name == source.name:
            node = replace(node, inputs=(node.inputs[0], *constants))
        if node.name != drop:
            b.append(node)
    return b.freeze()


def _constant_instead(b: GraphBuilder, graph: Graph, name: str, array: np.ndarray) -> str:
    """A constant for one reader of the constant ``name``, under that name where nothing else reads it."""
    if len(graph.consumers()[name]) > 1:
        return b.constant(name, array)
    b.constants[name] = array
    return name
