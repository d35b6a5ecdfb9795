"""Inputs that reach the edges of the code range: extremes, the zero point, ramps, ties, saturation, random."""

from __future__ import annotations

import numpy as np

from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.ir.types import CODE_BOUNDS, DTYPES, TensorType

#: pattern names, in the order of the samples that :func:`edge_patterns` gives
PATTERNS = (
    "all lowest codes",
    "all highest codes",
    "zero point",
    "ramp up",
    "ramp down",
    "checkerboard",
    "random codes",
    "ties between codes",
    "beyond the range",
)


def edge_patterns(graph: Graph, seed: int = 0) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Edge inputs for an integer graph.

    Args:
        graph: integer graph; float inputs are spanned in the code space of the quantize node that reads them.
        seed: of the random patterns.
    Returns: the patterns' names, and one array per graph input, first axis = patterns (times the graph's own batch).
        Inputs that take codes have no values between or beyond codes, so their last two patterns are random codes. Inputs
        that take indices are spanned from the first row of their table to the last.
    """
    rng = np.random.default_rng(seed)
    return PATTERNS, [_patterns(graph.tensors[t], input_codes(graph, t), index_bounds(graph, t), rng) for t in graph.inputs]


def index_bounds(graph: Graph, tensor: str) -> tuple[int, int] | None:
    """The least and the largest index that every table takes which graph input ``tensor`` looks up; None where it looks none up."""
    reached, entries = {tensor}, []
    for node in graph.nodes:
        if node.op == "embedding" and node.inputs[0] in reached:
            entries.append(graph.tensors[node.inputs[1]].shape[0])
        elif node.op == "reshape" and node.inputs[0] in reached:
            reached.update(node.outputs)
    return (0, min(entries) - 1) if entries else None


def input_codes(graph: Graph, tensor: str) -> TensorType:
    """The quantized type that the values of graph input ``tensor`` turn into: its own, or that of the first quantize node it reaches."""
    if graph.tensors[tensor].quantization is not None:
        return graph.tensors[tensor]
    reached = {tensor}
    for node in graph.nodes:
        if reached.intersection(node.inputs):
            if node.op == "quantize":
                return graph.tensors[node.outputs[0]]
            reached.update(node.outputs)
    return graph.tensors[tensor]


def _patterns(type: TensorType, codes: TensorType, indices: tuple[int, int] | None, rng: np.random.Generator) -> np.ndarray:
    if codes.quantization is None and indices is None:  # never becomes codes: a part of the network that stays float
        return rng.standard_normal((len(PATTERNS) * type.shape[0], *type.shape[1:])).astype(DTYPES[type.dtype])
    low, high = indices or CODE_BOUNDS[codes.dtype]
    span = high - low + 1
    flat = np.arange(type.size).reshape(type.shape)
    parity = np.indices(type.shape).sum(0) % 2
    random = [rng.integers(low, high + 1, type.shape) for _ in range(3)]
    rows = [
        np.full(type.shape, low),
        np.full(type.shape, high),
        np.full(type.shape, low if indices else codes.zero_point),
        flat % span + low,
        high - flat % span,
        np.where(parity, high, low),
        random[0],
    ]
    if type.dtype != "float32":
        return np.concatenate([*rows, *random[1:]]).astype(DTYPES[type.dtype])
    centred = np.concatenate([*rows, random[1] + 0.5, random[2] * 3]).astype(np.float32) - np.float32(codes.zero_point)
    return centred * np.float32(codes.scale)
