"""The graph: frozen values, no editing in place.

Big arrays live in ``Graph.constants`` (read-only arrays keyed by tensor name); nodes hold names and
tuples only. Spatial tensors are channels-last (NHWC), convolution weights OHWI, depthwise weights 1HWC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from qwtv2_edge.ir.types import DTYPES, TensorType


@dataclass(frozen=True, slots=True)
class Location:
    """Where a node comes from: the module path and the user's own source line."""

    module_path: str = ""
    file: str = ""
    line: int = 0
    code: str = ""

    def __str__(self) -> str:
        if not self.file:
            return ""
        return f"{self.file}:{self.line}  {self.code}".rstrip()


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    Attributes:
        name: unique in the graph; derives from the module path, e.g. "features.3.conv".
        op: key into ``qwtv2_edge.ops.OPS``.
        inputs: tensor names (graph inputs, constants, or outputs of earlier nodes).
        outputs: tensor names, each produced exactly once.
        attrs: the op's frozen attribute dataclass.
        location: for messages and reports.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Any
    location: Location = Location()


@dataclass(frozen=True)
class Graph:
    """A network in topological order.

    Attributes:
        name: for messages.
        inputs, outputs: tensor names, in order.
        nodes: topological order.
        tensors: the type of every tensor, constants included.
        constants: read-only arrays for a subset of ``tensors``.
        metadata: small strings that travel with the graph.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    tensors: Mapping[str, TensorType]
    constants: Mapping[str, np.ndarray]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frozen = {}
        for name, array in self.constants.items():
            if array.flags.writeable:
                array = array.view()
                array.flags.writeable = False
            frozen[name] = array
        object.__setattr__(self, "constants", MappingProxyType(frozen))
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))

    # MappingProxyType can't be pickled; graphs travel to helper processes as .qir bytes instead.

    def type(self, tensor: str) -> TensorType:
        return self.tensors[tensor]

    def in_types(self, node: Node) -> tuple[TensorType, ...]:
        return tuple(self.tensors[t] for t in node.inputs)

    def out_types(self, node: Node) -> tuple[TensorType, ...]:
        return tuple(self.tensors[t] for t in node.outputs)

    def producers(self) -> dict[str, Node]:
        """tensor name -> the node that makes it."""
        return {t: n for n in self.nodes for t in n.outputs}

    def consumers(self) -> dict[str, list[Node]]:
        """tensor name -> the nodes that read it, in order (a node that reads it twice is listed once)."""
        out: dict[str, list[Node]] = {}
        for n in self.nodes:
            for t in dict.fromkeys(n.inputs):
                out.setdefault(t, []).append(n)
        return out

    def node(self, name: str) -> Node:
        for n in self.nodes:
            if n.name == name:
                return n
        raise KeyError(name)

    def with_metadata(self, **items: str) -> Graph:
        return replace(self, metadata={**self.metadata, **items})


class GraphBuilder:
    """Collects tensors and nodes, then freezes them. The one mutable thing in the IR; never escapes a pass."""

    def __init__(self, name: str, metadata: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.metadata = dict(metadata or {})
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.nodes: list[Node] = []
        self.tensors: dict[str, TensorType] = {}
        self.constants: dict[str, np.ndarray] = {}
        self._node_names: set[str] = set()

    @staticmethod
    def copy_of(graph: Graph, *, nodes: bool = True) -> GraphBuilder:
        """A builder that starts from ``graph``; without its nodes when ``nodes`` is False."""
        b = GraphBuilder(graph.name, graph.metadata)
        b.inputs, b.outputs = list(graph.inputs), list(graph.outputs)
        b.tensors, b.constants = dict(graph.tensors), dict(graph.constants)
        if nodes:
            b.nodes = list(graph.nodes)
            b._node_names = {n.name for n in graph.nodes}
        return b

    def unique_tensor(self, hint: str) -> str:
        return _unique(hint, self.tensors)

    def unique_node(self, hint: str) -> str:
        return _unique(hint, self._node_names)

    def input(self, name: str, type: TensorType) -> str:
        name = self.tensor(name, type)
        self.inputs.append(name)
        return name

    def tensor(self, hint: str, type: TensorType) -> str:
        """Declare a tensor under ``hint`` or the next free name; returns the name."""
        name = self.unique_tensor(hint)
        self.tensors[name] = type
        return name

    def constant(self, hint: str, array: np.ndarray, type: TensorType | None = None) -> str:
        """Add a constant; its type is read off the array unless given."""
        array = np.asarray(array, order="C")  # not ascontiguousarray, which gives rank 0 an axis
        if type is None:
            dtype = next(k for k, v in DTYPES.items() if v == array.dtype and k != "int4")
            type = TensorType(tuple(array.shape), dtype)
        name = self.tensor(hint, type)
        self.constants[name] = array
        return name

    def add(
        self,
        op: str,
        inputs: Iterable[str],
        attrs: Any,
        *,
        name: str,
        location: Location = Location(),
        out_types: tuple[TensorType, ...] | None = None,
        outputs: Iterable[str] | None = None,
    ) -> tuple[str, ...]:
        """Append a node; output types are inferred (float shapes and dtypes) unless given."""
        from qwtv2_edge.ops import OPS  # late: ops import the IR

        inputs = tuple(inputs)
        name = self.unique_node(name)
        self._node_names.add(name)
        if out_types is None:
            out_types = OPS[op].infer(tuple(self.tensors[t] for t in inputs), attrs)
        if outputs is None:
            suffix = [""] if len(out_types) == 1 else [f":{i}" for i in range(len(out_types))]
            outs = tuple(self.tensor(name + s, t) for s, t in zip(suffix, out_types, strict=True))
        else:
            outs = tuple(outputs)
            self.tensors.update(zip(outs, out_types, strict=True))
        self.nodes.append(Node(name, op, inputs, outs, attrs, location))
        return outs

    def append(self, node: Node) -> None:
        """Append a node whose tensors are declared already."""
        self._node_names.add(node.name)
        self.nodes.append(node)

    def freeze(self) -> Graph:
        """The graph, with constants and tensors that nothing uses left out."""
        used = set(self.inputs) | set(self.outputs)
        for n in self.nodes:
            used.update(n.inputs)
            used.update(n.outputs)
        return Graph(
            self.name,
            tuple(self.inputs),
            tuple(self.outputs),
            tuple(self.nodes),
            {k: v for k, v in self.tensors.items() if k in used},
            {k: v for k, v in self.constants.items() if k in used},
            self.metadata,
        )


def _unique(hint: str, taken: Any) -> str:
    hint = hint or "t"
    if hint not in taken:
        return hint
    i = 1
    while f"{hint}_{i}" in taken:
        i += 1
    return f"{hint}_{i}"


def live_nodes(graph: Graph, outputs: Iterable[str]) -> tuple[Node, ...]:
    """The nodes that ``outputs`` depend on, in order."""
    needed = set(outputs)
    kept = []
    for n in reversed(graph.nodes):
        if needed.intersection(n.outputs):
            kept.append(n)
            needed.update(n.inputs)
    return tuple(reversed(kept))


def origin(graph: Graph, tensor: str) -> str:
    """The tensor whose values ``tensor`` may hold unchanged: seen through movements that keep the number of elements.

    Runtimes leave such movements out, and then take two names for one tensor.
    """
    producers = graph.producers()
    while tensor in producers and producers[tensor].op in ("reshape", "transpose", "slice", "pad", "clamp"):
        source = producers[tensor].inputs[0]
        if graph.tensors[source].size != graph.tensors[tensor].size:
            break
        tensor = source
    return tensor


def truncate(graph: Graph, outputs: Iterable[str]) -> Graph:
    """The part of ``graph`` that computes ``outputs``, as a graph with those outputs (inputs unchanged)."""
    outputs = tuple(outputs)
    b = GraphBuilder.copy_of(graph, nodes=False)
    b.outputs = list(outputs)
    for n in live_nodes(graph, outputs):
        b.append(n)
    return b.freeze()
