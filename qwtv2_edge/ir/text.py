"""Graphs as text, for people and for golden tests. Stable: depends on the graph's content alone."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.ir.types import TensorType

_SHORT = {"float32": "f32", "int64": "i64", "int32": "i32", "int16": "i16", "int8": "i8", "int4": "i4", "bool": "bool"}


def to_text(graph: Graph, *, locations: bool = False) -> str:
    """Print ``graph``, one line per node and constant.

    Args:
        graph: float or integer.
        locations: append each node's source line.
    Returns: text that ends in a newline. Scales are printed with nine digits, enough to name a float32.
    """
    return "".join(f"{line}\n" for line in _lines(graph, locations))


def type_text(type: TensorType) -> str:
    """``f32[1,8]``; ``i8[1,8] s=0.0235 z=-128``; ``i8[16,3,3,3] s[0]=0.001..0.02`` per channel of axis 0."""
    text = f"{_SHORT[type.dtype]}[{','.join(map(str, type.shape))}]"
    q = type.quantization
    if q is None:
        return text
    if q.axis is None:
        return f"{text} s={q.scale[0]:.9g} z={q.zero_point[0]}"
    low, high = min(q.scale), max(q.scale)
    zero_points = f" z={min(q.zero_point)}..{max(q.zero_point)}" if any(q.zero_point) else ""
    return f"{text} s[{q.axis}]={low:.9g}..{high:.9g}{zero_points}"


def attrs_text(attrs: Any) -> str:
    """The attributes that differ from their defaults, as ``name=value`` separated by spaces."""
    shown = []
    for f in dataclasses.fields(attrs):
        value = getattr(attrs, f.name)
        if f.default is dataclasses.MISSING or value != f.default:
            shown.append(f"{f.name}={_value_text(value)}")
    return " ".join(shown)


def _value_text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({','.join(_value_text(v) for v in value)})"
    if isinstance(value, float):
        return f"{value:.9g}"
    return str(value)


def _lines(graph: Graph, locations: bool) -> Iterator[str]:
    yield f"graph {graph.name}"
    for key in sorted(graph.metadata):
        yield f"  meta {key} = {graph.metadata[key]}"
    for name in graph.inputs:
        yield f"  in   {name}: {type_text(graph.tensors[name])}"
    for name in sorted(graph.constants):
        yield f"  const {name}: {type_text(graph.tensors[name])} {_digest(graph.constants[name])}"
    for node in graph.nodes:
        yield _node_line(graph, node, locations)
    yield f"  out  {', '.join(graph.outputs)}"


def _node_line(graph: Graph, node: Node, locations: bool) -> str:
    outs = ", ".join(f"{t}: {type_text(graph.tensors[t])}" for t in node.outputs)
    name = "" if node.outputs == (node.name,) else f" '{node.name}'"
    attrs = attrs_text(node.attrs)
    line = f"  {outs} = {node.op}({', '.join(node.inputs)}){name}{' ' + attrs if attrs else ''}"
    if locations and str(node.location):
        line += f"  # {node.location}"
    return line


def _digest(array: np.ndarray) -> str:
    raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return "#" + hashlib.sha256(raw).hexdigest()[:12]
