"""Which activations have 8 bits, and which 16.

1. The ops of ``WIDE`` run in 16 bits where the recipe says ``activation_bits = 16``; all others have 8-bit forms only.
2. A sum that a layer_norm reads, or another such sum, is part of a residual stream, to whose rounding every block adds:
   it has the recipe's ``residual_bits``. Its operands may have 8 bits.
3. layer_norm reads 16 bits; it gives 8, unless a 16-bit op reads it.
4. Ops that move values keep the width they are given.
5. Inputs and outputs have 8 bits where the recipe's ``io_dtype`` is "int8".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.quantization.recipe import Recipe

#: ops with a form for 16-bit activations throughout
WIDE = frozenset({"conv2d", "depthwise_conv2d", "fully_connected", "add", "sub", "mul", "mean", "batch_matmul"})
#: ops whose 16-bit form takes 8-bit operands too
MIXED = frozenset({"add", "sub"})
#: ops that read 16 bits whatever the recipe says
ALWAYS_WIDE = frozenset({"layer_norm", "channel_scale"})
#: ops that give 16 bits whatever the recipe says
GIVES_WIDE = frozenset({"channel_add"})
MOVEMENT = frozenset({"reshape", "transpose", "concat", "slice", "pad"})


@dataclass(frozen=True)
class Widths:
    """tensors: real activation tensor -> 8 or 16. narrow: nodes that stay at 8 bits although 16 were asked for."""

    tensors: Mapping[str, int]
    narrow: tuple[Node, ...]

    def wanted(self, node: Node, tensor: str, output: int) -> int:
        """The width in which ``node``, whose output has width ``output``, reads ``tensor``."""
        if node.op in ALWAYS_WIDE:
            return 16
        if node.op in (*GIVES_WIDE, "argmax") or (node.op in MIXED and output == 16):
            return self.tensors[tensor]
        return output


def reader_of(graph: Graph) -> Callable[[str], list[Node]]:
    """tensor -> the nodes that read it, looking through movements."""
    consumers = graph.consumers()

    def readers(tensor: str) -> list[Node]:
        found = []
        for node in consumers.get(tensor, ()):
            found.extend(readers(node.outputs[0]) if node.op in MOVEMENT else [node])
        return found

    return readers


def residual_sums(graph: Graph) -> set[str]:
    """Names of the sums of residual streams: those that a layer_norm reads, or another of them."""
    readers = reader_of(graph)
    found: set[str] = set()
    for node in reversed(graph.nodes):
        if node.op in MIXED and any(n.op == "layer_norm" or n.name in found for n in readers(node.outputs[0])):
            found.add(node.name)
    return found


def widths(graph: Graph, recipe: Recipe) -> Widths:
    """Assign a width to every real activation tensor of the legalized float ``graph``."""
    readers = reader_of(graph)
    recipes = {n.name: recipe.for_node(n.location.module_path, n.name) for n in graph.nodes}

    streams = residual_sums(graph)
    wide = {n.name for n in graph.nodes if n.op in GIVES_WIDE}
    narrow = []
    for node in graph.nodes:
        r = recipes[node.name]
        if (node.op in WIDE and r.activation_bits == 16) or (node.name in streams and r.residual_bits == 16):
            wide.add(node.name)
        elif r.activation_bits == 16 and node.op not in (*MOVEMENT, *ALWAYS_WIDE, *GIVES_WIDE):
            narrow.append(node)

    tensors: dict[str, int] = {}

    def read_wide(tensor: str, every: bool) -> bool:
        found = [n.name in wide or n.op in ALWAYS_WIDE for n in readers(tensor)]
        return bool(found) and (all(found) if every else any(found))

    for t in graph.inputs:
        if graph.tensors[t].dtype == "float32":
            tensors[t] = 16 if recipe.io_dtype == "float32" and read_wide(t, every=True) else 8
    for node in graph.nodes:
        if node.op in MOVEMENT:
            width = max(tensors[t] for t in node.inputs if t in tensors)
        elif node.op == "layer_norm":
            width = 16 if read_wide(node.outputs[0], every=False) else 8
        else:
            width = 16 if node.name in wide else 8
        tensors.update({t: width for t in node.outputs if graph.tensors[t].dtype == "float32"})
    return Widths(tensors, tuple(narrow))
