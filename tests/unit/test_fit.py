"""Sizes, budgets, who is to blame, and advice whose numbers come true. Tools that measure are stood in for."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from small_graphs import integer_graph

import qwtv2_edge.fit as module
from qwtv2_edge.backends import emit
from qwtv2_edge.errors import MissingToolError, UnsupportedOpError, UsageError
from qwtv2_edge.firmware import RESOLVER_METHODS
from qwtv2_edge.fit import MICRO_KERNELS, fit, parse_device, parse_size
from qwtv2_edge.inspection import macs, weight_bytes
from qwtv2_edge.ir.graph import Graph, GraphBuilder, Node
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.ops.spec import NoAttrs
from qwtv2_edge.planner import integer_boundary, plan_graph
from qwtv2_edge.runners.arena import Arena
from qwtv2_edge.runners.vela import NpuEstimate


@pytest.fixture(autouse=True)
def no_tools(monkeypatch):
    """TFLite Micro takes 1,000 bytes of activations and 600 of records; there is no compiler."""
    monkeypatch.setattr(module, "arena_of", lambda data: Arena(head=1000, tail=600, pointers=200, bytes=1600))
    monkeypatch.setattr(module, "compiler_version", lambda: "")


@pytest.mark.parametrize(("text", "bytes"), [("131072", 131072), ("512K", 524288), ("1M", 1 << 20), ("64 kB", 65536), ("2MiB", 2 << 20)])
def test_sizes(text, bytes):
    assert parse_size(text) == bytes


@pytest.mark.parametrize("text", ["", "K", "12G", "-5K", "1.5M", "0", "0x10", "12 K B", "²K"])
def test_other_texts_are_no_sizes(text):
    with pytest.raises(UsageError, match="no size of memory"):
        parse_size(text)


def test_devices():
    assert parse_device("m7") == parse_device("Cortex-M7") == "cortex-m7"
    assert parse_device("m0+") == parse_device("Cortex-M0+") == "cortex-m0plus"
    assert parse_device("ethos-u55-128") == "ethos-u55-128"
    with pytest.raises(UsageError, match="unknown device 'm9'"):
        parse_device("m9")


def test_generated_c_is_planned_and_its_code_estimated():
    graph = integer_graph()
    found = fit(graph, "cortex-m4", "c")
    plan = plan_graph(graph, alignment=4, skip=integer_boundary(graph).skip)
    assert found.ram.bytes >= plan.bytes
    assert found.flash.parts["weights"] == weight_bytes(graph)
    assert sum(found.flash.parts.values()) == found.flash.bytes
    assert [entry.live_bytes for entry in found.layers] == list(plan.live)
    assert [entry.macs for entry in found.layers] == [macs(graph, n) for n in graph.nodes]
    assert found.layers[found.peak].live_bytes == plan.bound
    assert found.fits is None
    assert not found.advice


def test_tflite_micro_is_measured_and_its_code_estimated():
    graph = integer_graph()
    artifact = emit(graph, "tflite-micro")
    found = fit(graph, "cortex-m4", artifacts={"tflite-micro": artifact})
    assert (found.ram.bytes, dict(found.ram.parts)) == (1500, {"activations": 1000, "records_estimate": 500})
    assert found.flash.parts["file"] == len(artifact.data)
    fewer = replace(artifact, ops=tuple(o for o in artifact.ops if o != "SOFTMAX"))
    assert found.flash.bytes - fit(graph, "cortex-m4", artifacts={"tflite-micro": fewer}).flash.bytes == MICRO_KERNELS["SOFTMAX"]


def test_every_operator_has_a_size():
    assert set(MICRO_KERNELS) == set(RESOLVER_METHODS)


def test_budgets_decide():
    graph = integer_graph()
    needs = fit(graph, "cortex-m4", "c")
    assert fit(graph, "cortex-m4", "c", flash=needs.flash.bytes, ram=needs.ram.bytes).fits is True
    for budget in ({"flash": needs.flash.bytes - 1}, {"ram": needs.ram.bytes - 1}):
        found = fit(graph, "cortex-m4", "c", **budget)
        assert found.fits is False
        assert "1 bytes over" in found.advice[0]


def test_advice_names_the_layer_and_computes_what_would_help():
    graph = integer_graph()
    found = fit(graph, "cortex-m4", "c", flash=1, ram=100)
    peak, largest = graph.nodes[found.peak], max(found.layers, key=lambda entry: entry.weight_bytes)
    text = "\n".join(found.advice)
    assert f"{peak.op} {peak.name} needs" in text
    assert f"{largest.node} has {largest.weight_bytes:,} bytes of weights" in text
    small = plan_graph(halved(), alignment=4, skip=integer_boundary(graph).skip)
    assert f"half the input's height and width: about {small.bytes:,} bytes of RAM, which fits" in text
    micro = "\n".join(fit(graph, "cortex-m4", flash=1, ram=100).advice)
    assert "generated C (--runtime c)" in micro
    saved = sum(graph.constants[f"{name}/weight"].size // 2 for name in ("stem", "dw"))
    assert f"in 2 convolutions: {saved:,} bytes less" in micro


def packed() -> Graph:
    """integer_graph with 4-bit codes in the weights of its first convolution."""
    graph = integer_graph()
    weights = replace(graph.tensors["stem/weight"], dtype="int4")
    return replace(graph, tensors={**graph.tensors, "stem/weight": weights})


def test_memory_that_kernels_unpack_weights_in_counts():
    """In TFLite Micro; in generated C they are unpacked when it is emitted."""
    size = integer_graph().tensors["stem/weight"].size
    at = [n.name for n in integer_graph().nodes].index("stem")
    as_it_is, unpacking = (fit(graph, "cortex-m4").layers[at] for graph in (integer_graph(), packed()))
    assert unpacking.live_bytes == as_it_is.live_bytes + -(-size // 16) * 16
    assert unpacking.holds == (*as_it_is.holds, ("scratch memory", size))
    assert "scratch memory" not in dict(fit(packed(), "cortex-m4", "c").layers[at].holds)


def test_packing_says_what_it_takes_of_ram(monkeypatch):
    monkeypatch.setattr(module.Job, "scratch", lambda self, runtime, graph: {n.name: 4000 for n in graph.nodes if is_packed(graph, n)})
    assert "bytes more of RAM to unpack them in" in "".join(fit(integer_graph(), "cortex-m4", flash=1).advice)


def is_packed(graph: Graph, node: Node) -> bool:
    return any(graph.tensors[t].dtype == "int4" for t in node.inputs)


def test_codes_at_the_ends_are_advised_where_they_help():
    """A layer so small that the quantize node before it holds the most."""
    b = GraphBuilder("small")
    x = b.input("x", TensorType((1, 64)))
    codes = TensorType((1, 64), "int8", Quantization.per_tensor(0.1, 0))
    (y,) = b.add("quantize", [x], NoAttrs(), name="q", out_types=(codes,))
    (y,) = b.add("relu", [y], NoAttrs(), name="relu", out_types=(codes,))
    b.outputs = list(b.add("dequantize", [y], NoAttrs(), name="d", out_types=(TensorType((1, 64)),)))
    graph = b.freeze()
    advice = fit(graph, "cortex-m4", ram=1).advice
    held, less = 64 + 4 * 64, 2 * 64
    need = 500 + 1000 * less // held
    assert advice[1:3] == (
        "tflite-micro runs some ops as several operators each, and holds 1,000 bytes of activations where those are largest",
        f'codes at both ends (io_dtype = "int8"): about {need:,} bytes of RAM, still {need - 1:,} over',
    )
    assert "codes at both ends" not in "".join(fit(graph, "cortex-m4", "c", ram=1).advice)


def test_what_does_not_help_is_not_advised():
    graph = integer_graph()
    for runtime in ("tflite-micro", "c"):
        found = fit(graph, "cortex-m4", runtime, flash=1, ram=1)
        for memory, kind in ((found.ram, "RAM"), (found.flash, "flash")):
            needs = [int(n.replace(",", "")) for n in re.findall(rf"([\d,]+) bytes of {kind}", "\n".join(found.advice))]
            assert needs
            assert max(needs) < memory.bytes


def test_an_accelerator_gets_no_figures_that_only_vela_knows(monkeypatch):
    npu = NpuEstimate("ethos-u55-128", "", "", "", 5e8, 1, 1, 1.0, sram_bytes=900, flash_bytes=100, npu_operators=1, cpu_operators={})
    monkeypatch.setattr(module, "estimate", lambda data, accelerator: npu)
    advice = fit(integer_graph(), "ethos-u55-128", flash=1, ram=1).advice
    assert [line.partition(":")[0].partition(" ")[0] for line in advice] == ["RAM", "flash", "fewer"]


def halved():
    """integer_graph on 3 x 3 pixels: the same nodes with the shapes they would have."""
    sizes = {6: 3, 3: 2}
    tensors = {
        t: replace(type, shape=(1, sizes[type.shape[1]], sizes[type.shape[2]], type.shape[3])) if len(type.shape) == 4 else type
        for t, type in integer_graph().tensors.items()
        if not t.endswith("/weight")
    }
    return replace(integer_graph(), tensors={**integer_graph().tensors, **tensors})


def test_a_network_that_the_runtime_cannot_execute_is_refused_whole():
    b = GraphBuilder("float")
    x = b.input("x", TensorType((1, 4)))
    for i in range(2):
        (x,) = b.add("relu", [x], None, name=f"relu{i}", out_types=(TensorType((1, 4)),))
    b.outputs = [x]
    with pytest.raises(UnsupportedOpError) as error:
        fit(b.freeze(), "cortex-m4", "c")
    assert [p.node for p in error.value.problems] == ["relu0", "relu1"]


def test_runtimes_that_have_no_part_are_refused():
    with pytest.raises(UsageError, match="unknown runtime 'onnx'"):
        fit(integer_graph(), "cortex-m4", "onnx")
    with pytest.raises(UsageError, match="through TFLite Micro"):
        fit(integer_graph(), "ethos-u55-128", "c")


def test_without_vela_there_is_no_estimate(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingToolError, match="Vela"):
        fit(integer_graph(), "ethos-u55-128")


def test_the_document_is_plain_data():
    document = fit(integer_graph(), "cortex-m33", "c", ram=1).to_json()
    assert json.loads(json.dumps(document)) == document
    assert document["fits"] is False
    assert document["ram"]["budget_bytes"] == 1
    assert document["flash"]["fits"] is None
    assert document["macs"] == sum(entry["macs"] for entry in document["layers"])
    assert document["tflite_micro_arena"]["bytes_32_estimate"] == 1500
    assert document["npu_estimate"] is None
    assert document["support"]["c"] == {"supported": True, "reasons": []}
