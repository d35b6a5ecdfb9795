"""The rules of the IR, and what their errors say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from small_graphs import float_graph, integer_graph, two_inputs

from qwtv2_edge.errors import GraphError
from qwtv2_edge.ir import Quantization, TensorType
from qwtv2_edge.ir.check import check, is_integer


def with_type(graph, tensor, **changes):
    return dataclasses.replace(graph, tensors={**graph.tensors, tensor: dataclasses.replace(graph.tensors[tensor], **changes)})


def with_node(graph, name, **changes):
    nodes = tuple(dataclasses.replace(n, **changes) if n.name == name else n for n in graph.nodes)
    return dataclasses.replace(graph, nodes=nodes)


def test_good_graphs_pass():
    for graph in (float_graph(), integer_graph(), two_inputs()):
        assert check(graph) is graph
    assert is_integer(integer_graph())
    assert not is_integer(float_graph())


def test_nan_scale():
    graph = with_type(integer_graph(), "add", quantization=Quantization((float("nan"),), (0,)))
    with pytest.raises(GraphError, match="scale nan"):
        check(graph)


def test_float_tensor_between_integer_nodes():
    graph = with_type(integer_graph(), "mean", dtype="float32", quantization=None)
    with pytest.raises(GraphError, match="mean"):
        check(graph)


def test_weights_of_one_scale_are_allowed():
    graph = integer_graph()
    check(with_type(graph, "stem/weight", quantization=Quantization.per_tensor(0.01, 0)))
    with pytest.raises(GraphError, match="zero point other than 0"):
        check(with_type(graph, "stem/weight", quantization=Quantization.per_tensor(0.01, 3)))


def test_weights_along_the_wrong_axis():
    graph = integer_graph()
    scale = Quantization.per_channel(np.full(2, 0.01), 3)
    with pytest.raises(GraphError, match="along axis 3, expected 0"):
        check(with_type(graph, "stem/weight", quantization=scale))


def test_int4_codes_are_bounded():
    graph = integer_graph()
    with pytest.raises(GraphError, match=r"outside \[-8, 7\]"):
        check(with_type(graph, "stem/weight", dtype="int4"))
    small = np.clip(graph.constants["stem/weight"], -7, 7)
    check(with_type(dataclasses.replace(graph, constants={**graph.constants, "stem/weight": small}), "stem/weight", dtype="int4"))


def test_wrong_attributes_of_an_op():
    graph = integer_graph()
    with pytest.raises(GraphError, match="attributes are Conv2DAttrs, expected NoAttrs"):
        check(with_node(graph, "quantize", attrs=graph.node("stem").attrs))


def test_weights_must_be_constant():
    graph = integer_graph()
    graph = dataclasses.replace(
        graph, inputs=(*graph.inputs, "head/weight"), constants={k: v for k, v in graph.constants.items() if k != "head/weight"}
    )
    with pytest.raises(GraphError, match="'head/weight' must be a constant"):
        check(graph)


def test_messages(golden):
    """Whole messages, as people see them."""
    graph = integer_graph()
    cases = [
        with_type(graph, "pool", quantization=Quantization.per_tensor(0.5, 3)),
        with_type(graph, "softmax", quantization=Quantization.per_tensor(0.5, 3)),
        with_type(graph, "add", shape=(1, 6, 6, 5)),
        with_type(graph, "add", quantization=None),
        with_node(graph, "stem", inputs=("add", "stem/weight", "stem/bias")),
        with_node(graph, "stem", op="warp"),
        with_node(graph, "add", inputs=("stem", "x")),
        dataclasses.replace(graph, outputs=("nothing",)),
        dataclasses.replace(graph, tensors={**graph.tensors, "x": TensorType((0, 6, 6, 2))}),
    ]
    messages = []
    for case in cases:
        with pytest.raises(GraphError) as caught:
            check(case)
        messages.append(str(caught.value))
    golden("check_errors.txt", "\n\n".join(messages) + "\n")
