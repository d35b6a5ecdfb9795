"""What is in a graph: ops, scales, multiply-accumulates, weight bytes and a planned activation arena."""

from __future__ import annotations

from math import prod
from typing import Any

from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.planner import plan_graph


def macs(graph: Graph, node: Node) -> int:
    """Multiply-accumulates of one node, for the graph's own batch."""
    if node.op == "batch_matmul":
        return graph.tensors[node.outputs[0]].size * graph.tensors[node.inputs[0]].shape[-1]
    if node.op not in ("conv2d", "depthwise_conv2d", "transpose_conv2d", "fully_connected"):
        return 0
    weight, out = graph.tensors[node.inputs[1]], graph.tensors[node.outputs[0]]
    if node.op == "transpose_conv2d":  # every input position meets every weight
        return graph.tensors[node.inputs[0]].size // weight.shape[-1] * weight.size
    if node.op == "depthwise_conv2d":
        return out.size * weight.shape[1] * weight.shape[2]
    return out.size * prod(weight.shape[1:])


def weight_bytes(graph: Graph) -> int:
    """Bytes of all constants."""
    return sum(graph.tensors[name].size_bytes for name in graph.constants)


def arena_bytes(graph: Graph) -> int:
    """Bytes of one arena that holds every activation while it lives, inputs throughout.

    Nothing shares memory with what lives beside it; kernels' scratch buffers and an interpreter's own records come on top.
    """
    return plan_graph(graph, share=False, keep_inputs=True).bytes


def describe(graph: Graph) -> dict[str, Any]:
    """Everything ``inspect`` shows, as plain data."""
    return {
        "name": graph.name,
        "inputs": [_tensor(graph, t) for t in graph.inputs],
        "outputs": [_tensor(graph, t) for t in graph.outputs],
        "ops": [_op(graph, i, n) for i, n in enumerate(graph.nodes)],
        "op_counts": op_counts(graph),
        "macs": sum(macs(graph, n) for n in graph.nodes),
        "weight_bytes": weight_bytes(graph),
        "arena_bytes": arena_bytes(graph),
        "metadata": dict(graph.metadata),
    }


def op_counts(graph: Graph) -> dict[str, int]:
    """op -> how often, sorted by name."""
    counts: dict[str, int] = {}
    for n in graph.nodes:
        counts[n.op] = counts.get(n.op, 0) + 1
    return dict(sorted(counts.items()))


def _tensor(graph: Graph, name: str) -> dict[str, Any]:
    type = graph.tensors[name]
    out: dict[str, Any] = {"name": name, "shape": list(type.shape), "dtype": type.dtype}
    q = type.quantization
    if q is not None:
        out["scale"] = q.scale[0] if len(q.scale) == 1 else {"channels": len(q.scale), "min": min(q.scale), "max": max(q.scale)}
        out["zero_point"] = q.zero_point[0] if len(set(q.zero_point)) == 1 else list(q.zero_point)
    return out


def _op(graph: Graph, index: int, node: Node) -> dict[str, Any]:
    constants = [t for t in node.inputs if t in graph.constants]
    return {
        "index": index,
        "node": node.name,
        "op": node.op,
        "inputs": [t for t in node.inputs if t not in graph.constants],
        "outputs": [_tensor(graph, t) for t in node.outputs],
        "constants": [_tensor(graph, t) for t in constants],
        "macs": macs(graph, node),
        "weight_bytes": sum(graph.tensors[t].size_bytes for t in constants),
        "source": str(node.location),
    }
