"""Where each activation of a graph lies in one arena, and which node needs the most memory.

Two buffers that live at the same time lie apart, with one exception: where a node reads the last of a buffer x and
writes y, y may run over the parts of x that are read no more. With offsets o, that is allowed where

(1)  o(y) >= o(x) + size(x)                      y lies behind x, or
(2)  o(x) - o(y) >= gap,  gap = max over steps k of W(k) - R(k)

W(k) counts the bytes of y written when step k ends, R(k) those of x read no more when step k writes. (2) is a promise
that kernels keep; they work in order of rising addresses:

* ELEMENTWISE ops: step k reads element k of each operand of the output's shape, then writes element k. An op over rows
  (softmax, a normalisation) may read a whole row first; within it the last reading goes along with the writing.
* WINDOWED ops: step k writes row k of the output (all of its pixels and channels) and reads no row of the input before
  row k * stride - top.
* A fully connected layer: step k writes the vector at position k and reads no vector before position k.

Buffers are whole multiples of the alignment. Offsets come from first fit in several orders of placing, with and without
sharing, and from a search that moves what sets the size to the front; first fit by falling size, which TFLite Micro's
planner does, is among them, so a plan is never larger than that. The same graph always gets the same plan.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.ir.types import DTYPES, TensorType

#: alignment of buffers, as TFLite Micro's
ALIGNMENT = 16
ELEMENTWISE = frozenset(
    {
        *("add", "sub", "mul", "channel_add", "channel_scale", "mask_fill", "quantize", "dequantize", "requantize"),
        *("relu", "relu6", "clamp", "prelu", "leaky_relu", "elu", "gelu", "hard_swish", "logistic", "tanh"),
        *("softmax", "layer_norm", "l2_normalize"),
    }
)
WINDOWED = frozenset({"conv2d", "depthwise_conv2d", "max_pool2d", "avg_pool2d"})
#: buffers placed by the search, over all of its rounds: what bounds its time to a part of a second
SEARCH_PLACEMENTS = 40_000


@dataclass(frozen=True)
class Plan:
    """Places in one arena.

    Attributes:
        offsets: tensor -> byte offset; tensors that share a buffer have the same one.
        scratch: node -> byte offset of its scratch buffer.
        bytes: size of the arena.
        live: for each node of the graph the bytes that no plan could do without while it runs; 0 for skipped nodes.
        peak: index of the node with the most live bytes.
    """

    offsets: Mapping[str, int]
    scratch: Mapping[str, int]
    bytes: int
    live: tuple[int, ...]
    peak: int

    @property
    def bound(self) -> int:
        """Bytes below which no plan under the same rules can be."""
        return max(self.live, default=0)


@dataclass(frozen=True, slots=True)
class _Buffer:
    """size: bytes, a multiple of the alignment. Alive from node ``born`` (-1: an input) to node ``dies``, both included."""

    size: int
    born: int
    dies: int


#: (index of x, index of y) -> gap, where y may run over x
_Gaps = Mapping[tuple[int, int], int]


def plan_graph(
    graph: Graph,
    *,
    alignment: int = ALIGNMENT,
    share: bool = True,
    keep_inputs: bool = False,
    scratch: Mapping[str, int] | None = None,
    skip: Collection[str] = (),
) -> Plan:
    """Place every activation of ``graph`` in one arena.

    Args:
        graph: any graph; constants take no part.
        alignment: of offsets and of the arena's size, bytes.
        share: let views (:func:`is_view`) take no memory, and outputs run over dying inputs as the module's text says. Without it
            every tensor has a place of its own while it lives.
        keep_inputs: inputs of the graph live to the end; else their memory is free once they were read for the last time.
        scratch: node name -> bytes it needs while it runs.
        skip: nodes at the boundary that are not run: what they make counts as an input, what they read lives to the end.
    """
    root = _aliases(graph, skip) if share else {}
    buffers, index = _buffers(graph, root, alignment, keep_inputs, skip)
    scratch_index = {}
    for i, node in enumerate(graph.nodes):
        if scratch and scratch.get(node.name):
            scratch_index[node.name] = len(buffers)
            buffers.append(_Buffer(_aligned(scratch[node.name], alignment), i, i))
    gaps = _gaps(graph, buffers, index, alignment, skip) if share else {}
    live = tuple(0 if n.name in skip else _least(buffers, gaps, i) for i, n in enumerate(graph.nodes))
    peak = max(range(len(live)), key=live.__getitem__, default=0)
    offsets = _place(buffers, gaps, max(live, default=0))
    return Plan(
        {t: offsets[b] for t, b in index.items()},
        {n: offsets[b] for n, b in scratch_index.items()},
        max((o + b.size for o, b in zip(offsets, buffers, strict=True)), default=0),
        live,
        peak,
    )


def is_view(graph: Graph, node: Node) -> bool:
    """Whether the output of ``node`` is the leading bytes of its input: a reshape, a transpose that moves axes of size 1 only,
    or a slice that keeps the start of what lies together."""
    if node.op == "transpose":
        shape = graph.tensors[node.inputs[0]].shape
        moved = [p for p in node.attrs.perm if shape[p] != 1]
        return moved == sorted(moved)
    if node.op == "slice":
        shape, a = graph.tensors[node.inputs[0]].shape, node.attrs
        cut = max((i for i, end in enumerate(a.end) if end != shape[i]), default=0)
        return not any(a.begin) and set(a.stride) == {1} and prod(shape[:cut]) == 1
    return node.op == "reshape"


@dataclass(frozen=True, slots=True)
class Boundary:
    """The codes that cross the ends of a graph whose boundary nodes are left out.

    Attributes:
        inputs: (number of the graph input, tensor of codes) of all that is read, in order; an input that two nodes quantize has two.
        outputs: the same for outputs.
        skip: the nodes left out.
    """

    inputs: tuple[tuple[int, str], ...]
    outputs: tuple[tuple[int, str], ...]
    skip: frozenset[str]


def integer_boundary(graph: Graph) -> Boundary:
    """The boundary of ``graph`` without the quantize nodes that read its inputs and the dequantize nodes that make its outputs."""
    first = [n for n in graph.nodes if n.op == "quantize" and n.inputs[0] in graph.inputs]
    last = {n.outputs[0]: n for n in graph.nodes if n.op == "dequantize" and n.outputs[0] in graph.outputs}
    skip = frozenset(n.name for n in (*first, *last.values()))
    read = {t for n in graph.nodes if n.name not in skip for t in n.inputs}
    codes = [*enumerate(graph.inputs), *((graph.inputs.index(n.inputs[0]), n.outputs[0]) for n in first)]
    outputs = ((i, last[t].inputs[0] if t in last else t) for i, t in enumerate(graph.outputs))
    return Boundary(tuple(sorted(c for c in codes if c[1] in read)), tuple(outputs), skip)


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


# ---------------------------------------------------------------- what lives when


def _aliases(graph: Graph, skip: Collection[str]) -> dict[str, str]:
    """Output of a view -> the tensor whose buffer it takes."""
    root: dict[str, str] = {}
    for n in graph.nodes:
        if n.name not in skip and is_view(graph, n) and n.inputs[0] not in graph.constants:
            root[n.outputs[0]] = root.get(n.inputs[0], n.inputs[0])
    return root


def _buffers(
    graph: Graph, root: Mapping[str, str], alignment: int, keep_inputs: bool, skip: Collection[str]
) -> tuple[list[_Buffer], dict[str, int]]:
    """The buffers, and which of them each tensor takes."""
    end = len(graph.nodes)
    born: dict[str, int] = {}
    dies: dict[str, int] = {}

    def touch(tensor: str, at: int, until: int) -> None:
        tensor = root.get(tensor, tensor)
        born.setdefault(tensor, at)
        dies[tensor] = max(dies.get(tensor, -1), until)

    run = [(i, n) for i, n in enumerate(graph.nodes) if n.name not in skip]
    made_here = {t for _, n in run for t in n.outputs}
    for i, n in run:
        for t in n.inputs:
            if t not in graph.constants:
                touch(t, i if t in made_here else -1, end if t in graph.inputs and keep_inputs else i)
        for t in n.outputs:
            touch(t, i, i)
    kept = {*graph.outputs, *(t for n in graph.nodes if n.name in skip for t in n.inputs)}
    for t in kept:
        if root.get(t, t) in born:
            touch(t, end, end)
    order = {t: i for i, t in enumerate(born)}
    buffers = [_Buffer(_aligned(graph.tensors[t].size_bytes, alignment), born[t], dies[t]) for t in born]
    index = {t: order[root.get(t, t)] for t in graph.tensors if root.get(t, t) in order}
    return buffers, index


def _gaps(
    graph: Graph, buffers: Sequence[_Buffer], index: Mapping[str, int], alignment: int, skip: Collection[str]
) -> dict[tuple[int, int], int]:
    """Which buffers an output may run over, and by what gap."""
    gaps: dict[tuple[int, int], int] = {}
    for i, n in enumerate(graph.nodes):
        if n.name in skip or len(n.outputs) != 1:
            continue
        y = index[n.outputs[0]]
        for x in {index[t] for t in n.inputs if t in index}:
            if buffers[x].dies != i or x == y:
                continue
            found = [_gap(graph, n, k) for k, t in enumerate(n.inputs) if index.get(t) == x]
            known = [g for g in found if g is not None]
            if len(known) == len(found):
                gaps[x, y] = min(_aligned(max(0, *known), alignment), buffers[y].size)
    return gaps


def _gap(graph: Graph, node: Node, position: int) -> int | None:
    """The gap of equation (2) in bytes for one input of a node; None where the output may not run over it."""
    x, y = graph.tensors[node.inputs[position]], graph.tensors[node.outputs[0]]
    x_item, y_item = (DTYPES[t.dtype].itemsize for t in (x, y))
    if node.op in ELEMENTWISE and x.size == y.size:
        return _steps_gap(y.size, y_item, lambda k: (k + 1) * x_item)
    if node.op == "fully_connected" and position == 0:
        return _steps_gap(prod(y.shape[:-1]), y.shape[-1] * y_item, lambda k: k * x.shape[-1] * x_item)
    if node.op in WINDOWED and position == 0:
        return _window_gap(node, x, y, x_item, y_item)
    return None


def _steps_gap(steps: int, written: int, passed: Callable[[int], int]) -> int:
    """Largest W(k) - R(k) where each step writes as many bytes and R is linear: at one of the ends."""
    return max(((k + 1) * written - passed(k) for k in (0, steps - 1)), default=0)


def _window_gap(node: Node, x: TensorType, y: TensorType, x_item: int, y_item: int) -> int:
    stride, top = node.attrs.stride[0], node.attrs.padding[0][0]
    x_row, y_row = prod(x.shape[2:]) * x_item, prod(y.shape[2:]) * y_item
    images, rows = y.shape[:2]
    return max(
        (n * rows + k + 1) * y_row - (n * x.shape[1] + max(0, min(k * stride - top, x.shape[1]))) * x_row
        for n in (0, images - 1)
        for k in range(rows)
    )


def _least(buffers: Sequence[_Buffer], gaps: _Gaps, at: int) -> int:
    """Bytes that what lives at node ``at`` takes at the least: no output runs over more of its inputs than a gap leaves."""
    live = [i for i, b in enumerate(buffers) if b.born <= at <= b.dies]
    dying: dict[int, list[int]] = {}
    for x, y in gaps:
        if buffers[y].born == at and buffers[x].dies == at:
            dying.setdefault(y, []).append(x)
    total = sum(buffers[i].size for i in live)
    for y, xs in dying.items():  # one at most, nodes with more outputs share nothing
        apart = sum(buffers[x].size for x in xs)
        total -= buffers[y].size + apart
        total += max(apart, buffers[y].size, *(buffers[x].size + gaps[x, y] for x in xs))
    return total


# ---------------------------------------------------------------- where each lies


def _place(buffers: Sequence[_Buffer], gaps: _Gaps, bound: int) -> list[int]:
    """Offsets of all buffers: the best of several orders of placing, then a search from there."""
    apart = _conflicts(buffers, {})
    shared = _conflicts(buffers, gaps) if gaps else apart
    numbers = range(len(buffers))
    by_size = sorted(numbers, key=lambda i: (-buffers[i].size, buffers[i].born))
    area = [b.size * (b.dies - b.born + 1) for b in buffers]
    crowd = [max((_least(buffers, gaps, at) for at in {max(b.born, 0), b.dies}), default=0) for b in buffers]
    orders = [
        by_size,
        sorted(numbers, key=lambda i: (-buffers[i].size, -buffers[i].born)),
        sorted(numbers, key=lambda i: (-crowd[i], -buffers[i].size, buffers[i].born)),
        sorted(numbers, key=lambda i: (-area[i], buffers[i].born)),
        sorted(numbers, key=lambda i: (buffers[i].born, -buffers[i].size)),
        sorted(numbers, key=lambda i: (-buffers[i].dies, -buffers[i].size)),
    ]
    best, best_order = _first_fit(buffers, apart, by_size), by_size
    best_size = _size(buffers, best)
    for order in orders:
        found = _first_fit(buffers, shared, order)
        if _size(buffers, found) < best_size:
            best, best_order, best_size = found, order, _size(buffers, found)
    draw = random.Random(0)
    order, offsets, size = best_order, best, best_size
    for _ in range(SEARCH_PLACEMENTS // len(buffers) if buffers else 0):
        if best_size <= bound:
            break
        tried = _moved(buffers, order, offsets, size, draw)
        found = _first_fit(buffers, shared, tried)
        if _size(buffers, found) <= size:
            order, offsets, size = tried, found, _size(buffers, found)
        if size < best_size:
            best, best_size = offsets, size
    return best


def _moved(buffers: Sequence[_Buffer], order: Sequence[int], offsets: Sequence[int], size: int, draw: random.Random) -> list[int]:
    """``order`` with a buffer that reaches the end of the arena, or any one, put to an earlier place."""
    ends = [p for p, i in enumerate(order) if offsets[i] + buffers[i].size == size]
    at = draw.choice(ends) if draw.random() < 0.5 else draw.randrange(len(order))
    out = list(order)
    moved = out.pop(at)
    out.insert(draw.randrange(at + 1), moved)
    return out


def _size(buffers: Sequence[_Buffer], offsets: Iterable[int]) -> int:
    return max((o + b.size for o, b in zip(offsets, buffers, strict=True)), default=0)


def _conflicts(buffers: Sequence[_Buffer], gaps: _Gaps) -> list[list[tuple[int, int, int]]]:
    """For each buffer (other, low, high) per buffer that lives beside it: its offset less the other's is not inside (low, high)."""
    out: list[list[tuple[int, int, int]]] = [[] for _ in buffers]
    for i, a in enumerate(buffers):
        for j in range(i):
            b = buffers[j]
            if a.born > b.dies or b.born > a.dies:
                continue
            low, high = -a.size, b.size
            if (j, i) in gaps:  # a runs over b
                low = -gaps[j, i]
            elif (i, j) in gaps:
                high = gaps[i, j]
            if low < high:
                out[i].append((j, low, high))
                out[j].append((i, -high, -low))
    return out


def _first_fit(buffers: Sequence[_Buffer], conflicts: Sequence[Sequence[tuple[int, int, int]]], order: Sequence[int]) -> list[int]:
    """Offsets when each buffer in turn takes the lowest one that those before it leave."""
    offsets = [-1] * len(buffers)
    for i in order:
        at = 0
        for low, high in sorted((offsets[j] + low, offsets[j] + high) for j, low, high in conflicts[i] if offsets[j] >= 0):
            if at <= low:
                break
            at = max(at, high)
        offsets[i] = at
    return offsets
