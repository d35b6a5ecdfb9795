"""Where activations have 8 bits and where 16, in quantized transformers."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from models import small_transformers as nets

import qwtv2_edge as qe
from qwtv2_edge.compensation.fit import FIT_NUMERICS
from qwtv2_edge.errors import RecipeError
from qwtv2_edge.ir.check import MASK, check
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.quantization.quantize import QuantizedModel
from qwtv2_edge.simulator.run import run


@pytest.fixture(scope="module")
def pre_norm() -> Graph:
    return qe.capture(nets.encoder(nets.pre_norm_block), nets.frames(1, 0))


@pytest.fixture(scope="module")
def post_norm() -> Graph:
    return qe.capture(nets.encoder(nets.post_norm_block), nets.frames(1, 0))


@pytest.fixture(scope="module")
def text() -> Graph:
    return qe.capture(nets.sentence(), nets.sentences(1, 0))


def quantized(graph: Graph, **recipe: object) -> QuantizedModel:
    data = nets.frames(24, 1) if len(graph.inputs) == 1 else list(nets.sentences(24, 1))
    result = qe.quantize(graph, data, {"compensation": "none", "smoothing": "none", **recipe})
    check(result.graph)
    return result


def wide(graph: Graph) -> set[str]:
    """Ops with 16-bit outputs."""
    return {n.op for n in graph.nodes if graph.tensors[n.outputs[0]].dtype == "int16"}


def widths_of(graph: Graph, op: str) -> set[str]:
    return {graph.tensors[n.outputs[0]].dtype for n in graph.nodes if n.op == op}


def changes(graph: Graph) -> list[tuple[str, str]]:
    """(dtype before, after) of every requantize."""
    return [(graph.tensors[n.inputs[0]].dtype, graph.tensors[n.outputs[0]].dtype) for n in graph.nodes if n.op == "requantize"]


def sqnr(model: QuantizedModel, inputs: list[np.ndarray]) -> float:
    (y,), (q,) = run(model.float_graph, inputs, None), run(model.graph, inputs, FIT_NUMERICS)
    return float(10 * np.log10(np.square(y).mean() / np.square(q - y).mean()))


def test_residual_streams_alone_have_16_bits(pre_norm):
    graph = quantized(pre_norm).graph
    assert wide(graph) == {"add"}
    assert widths_of(graph, "add") == {"int16"}
    assert changes(graph) == []


def test_a_norm_that_a_sum_reads_gives_16_bits_and_its_linear_layers_read_8(post_norm):
    graph = quantized(post_norm).graph
    producers = graph.producers()
    for node in graph.nodes:
        if node.op == "fully_connected":
            assert graph.tensors[node.inputs[0]].dtype == "int8"
    for node in graph.nodes:
        if node.op == "add":
            before = [producers[t].op for t in node.inputs if t in producers]
            assert {graph.tensors[t].dtype for t in node.inputs if t in producers and producers[t].op == "layer_norm"} <= {"int16"}, before
    assert set(changes(graph)) == {("int16", "int8")}
    assert len(changes(graph)) == len({n.inputs[0] for n in graph.nodes if n.op == "requantize"}), "one for all that read it"


def test_8_bit_residuals_are_widened_for_the_norms(pre_norm):
    graph = quantized(pre_norm, residual_bits=8).graph
    assert widths_of(graph, "add") == {"int8"}
    assert set(changes(graph)) == {("int8", "int16")}
    narrow, usual = (sqnr(quantized(pre_norm, residual_bits=bits), [nets.frames(32, 2)]) for bits in (8, 16))
    assert usual > narrow


def test_16_bits_in_one_node(pre_norm):
    graph = quantized(pre_norm, overrides={"blocks.0.fc1": {"activation_bits": 16}}).graph
    node = graph.node("blocks.0.fc1")
    assert {graph.tensors[t].dtype for t in (node.inputs[0], *node.outputs)} == {"int16"}
    assert graph.producers()[node.inputs[0]].op == "layer_norm", "which gives 16 bits itself"
    assert wide(graph) == {"add", "layer_norm", "fully_connected"}
    assert [n.name for n in graph.nodes if n.op == "fully_connected" and graph.tensors[n.outputs[0]].dtype == "int16"] == ["blocks.0.fc1"]
    assert changes(graph) == [("int16", "int8")], "for the gelu behind it"


def test_16_bits_throughout_names_what_stays_at_8(pre_norm):
    result = quantized(pre_norm, activation_bits=16)
    assert widths_of(result.graph, "fully_connected") == widths_of(result.graph, "batch_matmul") == {"int16"}
    assert widths_of(result.graph, "softmax") == widths_of(result.graph, "gelu") == {"int8"}
    assert result.report.notes == ("4 nodes stay at 8 bits, having no form for 16: gelu, softmax",)
    assert all(before != after for before, after in changes(result.graph))
    assert sqnr(result, [nets.frames(32, 2)]) > sqnr(quantized(pre_norm), [nets.frames(32, 2)]) + 3


@pytest.mark.parametrize("bits", [8, 16])
def test_int8_interfaces_have_8_bits(pre_norm, bits):
    graph = quantized(pre_norm, io_dtype="int8", activation_bits=bits).graph
    assert [graph.tensors[t].dtype for t in (*graph.inputs, *graph.outputs)] == ["int8", "int8"]
    assert graph.outputs == pre_norm.outputs
    x = graph.tensors[graph.inputs[0]]
    inputs = nets.frames(32, 2)
    codes = np.clip(np.rint(inputs / x.scale + x.zero_point), -128, 127).astype(np.int8)
    (y,), (q,) = run(pre_norm, [inputs], None), run(graph, [codes], FIT_NUMERICS)
    out = graph.tensors[graph.outputs[0]]
    real = (q.astype(np.float32) - out.zero_point) * out.scale
    assert np.square(real - y).mean() < 0.02 * np.square(y).mean()


def test_tables_and_masks_have_types_of_their_own(text):
    graph = quantized(text).graph
    words = graph.node("words")
    indices, table, out = (graph.tensors[t] for t in (*words.inputs, *words.outputs))
    assert indices.dtype == "int32"
    assert indices.quantization is None
    assert (table.dtype, table.quantization) == (out.dtype, out.quantization)
    assert table.dtype == "int8"
    top, bottom = ((c - table.zero_point) * table.scale for c in (127, -128))
    values = text.constants["words.weight"]
    assert bottom - table.scale <= values.min() or np.mean(values < bottom) < 0.01, "any row may be looked up"
    assert top + table.scale >= values.max() or np.mean(values > top) < 0.01
    for node in graph.nodes:
        if node.op == "mask_fill":
            assert graph.tensors[node.inputs[1]].quantization == MASK
            x, y = (graph.tensors[t] for t in (node.inputs[0], *node.outputs))
            assert x.quantization == y.quantization


def test_what_a_mask_hides_does_not_matter(text):
    """Masked sentences in 8 bits: close to the float ones, and blind to the words that don't count."""
    result = quantized(text)
    words, mask = nets.sentences(48, 3)
    assert sqnr(result, [words, mask]) > 20
    other = np.where(mask == 1, words, np.random.default_rng(0).integers(0, nets.WORDS, words.shape))
    assert (other != words).any()
    (y,), (z,) = (run(result.graph, [w, mask], FIT_NUMERICS) for w in (words, other))
    np.testing.assert_array_equal(y, z)


def test_float_ops_are_written_down(pre_norm):
    assert "float_ops" not in quantized(pre_norm).graph.metadata
    assert quantized(pre_norm, float_ops="forbid").graph.metadata["float_ops"] == "forbid"
    assert quantized(pre_norm, float_ops="allow").graph.metadata["float_ops"] == "allow"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"activation_bits": 12}, "activation_bits is 12"),
        ({"residual_bits": 4}, "residual_bits is 4"),
        ({"smoothing": "yes"}, "smoothing is 'yes'"),
        ({"float_ops": True}, "float_ops is True"),
        ({"overrides": {"head": {"float_ops": "allow"}}}, "'float_ops' can't be set per node"),
        ({"overrides": {"head": {"smoothing": "none"}}}, "'smoothing' can't be set per node"),
        ({"overrides": {"head": {"activation_bits": 32}}}, r"overrides\['head'\].activation_bits is 32"),
        ({"overrides": {"hed": {"activation_bits": 16}}}, r"overrides\['hed'\] matches no node"),
    ],
)
def test_wrong_recipes_are_refused(pre_norm, recipe, message):
    with pytest.raises(RecipeError, match=message):
        quantized(pre_norm, **recipe)
