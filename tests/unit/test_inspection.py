"""Counts of operations and bytes, and the arena plan."""

from __future__ import annotations

from small_graphs import integer_graph

from qwtv2_edge.inspection import arena_bytes, describe, macs, weight_bytes
from qwtv2_edge.ir.graph import GraphBuilder
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops import OPS


def chain(*sizes: int):
    """relu after relu on vectors of the given sizes (types are declared, not inferred)."""
    b = GraphBuilder("chain")
    at = b.input("x", TensorType((1, sizes[0]), "int8"))
    for i, size in enumerate(sizes[1:]):
        (at,) = b.add("relu", [at], OPS["relu"].attrs(), name=f"n{i}", out_types=(TensorType((1, size), "int8"),))
    b.outputs.append(at)
    return b.freeze()


def test_arena_holds_what_lives_at_once():
    assert arena_bytes(chain(16, 16)) == 32
    # the input lives throughout; the output takes the place that n0 has left
    assert arena_bytes(chain(16, 32, 64, 16)) == 16 + 32 + 64
    # n2 takes the place of n0, and the output that of n1
    assert arena_bytes(chain(16, 64, 32, 64, 16)) == 16 + 64 + 32


def test_arena_is_aligned():
    assert arena_bytes(chain(1, 1)) == 32


def test_int4_counts_half():
    assert TensorType((3, 3), "int4").size_bytes == 5
    assert TensorType((3, 3), "int32").size_bytes == 36


def test_describe_adds_up():
    graph = integer_graph()
    found = describe(graph)
    assert [o["node"] for o in found["ops"]] == [n.name for n in graph.nodes]
    assert found["macs"] == sum(o["macs"] for o in found["ops"]) == sum(macs(graph, n) for n in graph.nodes)
    assert found["weight_bytes"] == weight_bytes(graph) == sum(o["weight_bytes"] for o in found["ops"])
    assert sum(found["op_counts"].values()) == len(graph.nodes)


def test_products_of_two_activations_count():
    b = GraphBuilder("scores")
    q, k = (b.input(name, TensorType((1, 2, 5, 8), "int8")) for name in "qk")
    scores = TensorType((1, 2, 5, 5), "int8")
    b.outputs += b.add("batch_matmul", [q, k], OPS["batch_matmul"].attrs(transpose_b=True), name="scores", out_types=(scores,))
    graph = b.freeze()
    assert macs(graph, graph.nodes[0]) == 2 * 5 * 5 * 8
