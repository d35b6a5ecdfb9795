"""The intermediate representation: frozen graphs of typed tensors."""

from qwtv2_edge.ir.graph import Graph, GraphBuilder, Location, Node, live_nodes, origin, truncate
from qwtv2_edge.ir.types import CODE_BOUNDS, DTYPES, WEIGHT_AXIS, Quantization, TensorType

__all__ = [
    "CODE_BOUNDS",
    "DTYPES",
    "WEIGHT_AXIS",
    "Graph",
    "GraphBuilder",
    "Location",
    "Node",
    "Quantization",
    "TensorType",
    "live_nodes",
    "origin",
    "truncate",
]
