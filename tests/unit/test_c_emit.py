"""Generated C: what is refused and why, and that no name of a graph can break it."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from cases import CASES
from cases.build import RANDOM, act, bias, weights, wide
from compiled import WARNINGS, compiled, execute
from small_graphs import float_graph, integer_graph

from qwtv2_edge.backends import EmitOptions, emit, get_numerics
from qwtv2_edge.c_text import comment, identifier
from qwtv2_edge.errors import UnsupportedOpError, UsageError
from qwtv2_edge.ir.graph import Graph, GraphBuilder, Location
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.numerics import rule_key
from qwtv2_edge.ops import OPS
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.layout import TransposeAttrs
from qwtv2_edge.ops.linear import FullyConnectedAttrs
from qwtv2_edge.ops.pool import PoolAttrs, SoftmaxAttrs
from qwtv2_edge.ops.spec import NoAttrs
from qwtv2_edge.simulator.run import run
from qwtv2_edge_c import BACKEND
from qwtv2_edge_c.ops import RULES
from qwtv2_edge_c.source import kernel_text, merged
from qwtv2_edge_tflite import BACKEND as TFLITE

HOSTILE = [
    "*/ int main(void) {",
    'a"b\\',
    "line\nbreak",
    "??/",
    "/* nested",
    "while",
    "9lives",
    "requantize",
    "arena",
    "at_x",
    "\u00e9t\u00e9 \U0001f600",
    "",
    "x" * 300,
    "x" * 300 + "y",
]


def renamed(graph: Graph, name: str, names: dict[str, str]) -> Graph:
    """The same graph under other names of network, tensors, nodes and source lines."""

    def of(names_: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(names[n] for n in names_)

    return Graph(
        name,
        of(graph.inputs),
        of(graph.outputs),
        tuple(
            replace(n, name=names[n.name], inputs=of(n.inputs), outputs=of(n.outputs), location=Location(name, f"{name}.py", 3, name))
            for n in graph.nodes
        ),
        {names[t]: type for t, type in graph.tensors.items()},
        {names[t]: array for t, array in graph.constants.items()},
        {"note": name},
    )


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.runtime
def test_names_can_not_break_the_file(hostile, rng, tmp_path):
    graph = integer_graph()
    every = dict.fromkeys((*graph.tensors, *(n.name for n in graph.nodes)))
    odd = renamed(graph, hostile, {t: f"{hostile}{'' if i == 0 else i}" for i, t in enumerate(every)})
    artifact = emit(odd, "c", EmitOptions({"made_by": hostile}))
    x = rng.normal(size=(3, *graph.tensors[graph.inputs[0]].shape[1:])).astype(np.float32)
    (actual,) = execute(compiled(artifact, tmp_path, *WARNINGS), artifact, [x])
    np.testing.assert_array_equal(actual, run(graph, [x], get_numerics("c"))[0])
    assert artifact.data.isascii()
    assert artifact.files["model.h"].isascii()


def test_the_first_line_tells_how_the_file_is_called():
    graph = integer_graph()
    artifact = emit(graph, "c", EmitOptions({"manifest_sha256": "ab/cd"}))
    line = artifact.data.decode().partition("\n")[0]
    facts = json.loads(line.removeprefix("/* qwtv2_edge ").removesuffix(" */"))
    codes = graph.tensors[graph.nodes[0].outputs[0]]
    (taken,) = facts["inputs"]
    assert (taken["function"], taken["scale"], taken["zero_point"]) == ("integer_input_0", codes.scale, codes.zero_point)
    assert facts["manifest"] == {"manifest_sha256": "ab/cd"}
    assert facts["graph_hash"] == artifact.graph_hash
    assert f"#define INTEGER_ARENA_BYTES {facts['arena_bytes']}\n" in artifact.files["model.h"].decode()


def test_equal_graphs_give_equal_bytes():
    first, second = (emit(integer_graph(), "c") for _ in range(2))
    assert (first.data, first.files) == (second.data, second.files)


def test_every_call_names_its_node_and_source_line():
    artifact = emit(integer_graph(), "c")
    text = artifact.data.decode()
    assert len(artifact.ops) == len(artifact.nodes) > 5
    for node in integer_graph().nodes[1:-1]:
        assert f"/* {node.op} {node.name}    net.py:{node.location.line} {node.location.code} */" in text


def test_only_what_is_used_is_there():
    text = re.sub(r"/\*.*?\*/", "", emit(integer_graph(), "c").data.decode(), flags=re.DOTALL)
    assert "max_pool2d" in text
    assert "avg_pool2d" not in text
    assert "int64_t" in text
    for word in ("float", "double", "malloc", "printf", "stdlib"):
        assert word not in text


def test_every_op_that_tflite_micro_takes_has_a_rule():
    """But for quantize and dequantize, which stay outside."""
    table = TFLITE.numerics["tflite-micro"]
    taken = {rule_key(c.graph, n) for cases in CASES.values() for c in cases for n in c.graph.nodes if not table.refusals(c.graph)}
    outside = {key for key in taken if key.split(":")[0] in ("quantize", "dequantize")}
    assert {key.removesuffix(":int4") for key in taken - outside} <= set(RULES)
    assert {key.split(":")[0] for key in RULES} <= set(OPS)


# ---------------------------------------------------------------- refusals


def one(op: str, attrs, types, out: TensorType, constants=()) -> Graph:
    b = GraphBuilder("refused")
    names = [b.constant(f"c{i}", constants[i], t) if i in constants else b.input(f"x{i}", t) for i, t in enumerate(types)]
    b.outputs = list(b.add(op, names, attrs, name="layer.1", out_types=(out,), location=Location("layer.1", "net.py", 7, "y = f(x)")))
    return b.freeze()


def heavy_layer() -> Graph:
    rng = np.random.default_rng(0)
    codes, w_type = weights(rng, (2, 140_000), 0, RANDOM)
    types = [act((1, 140_000), 0.1, 0), w_type, TensorType((2,), "int32")]
    constants = {1: np.full_like(codes, 127), 2: bias(rng, 2, 10)}
    return one("fully_connected", FullyConnectedAttrs(), types, act((1, 2), 9.0, 0), constants)


def scattered_transpose() -> Graph:
    x = act((2, 3, 2, 3, 2, 3, 2), 0.1, 0)
    perm = (6, 5, 4, 3, 2, 1, 0)
    return one("transpose", TransposeAttrs(perm), [x], act(tuple(x.shape[p] for p in perm), 0.1, 0))


def wide_pool() -> Graph:
    return one("max_pool2d", PoolAttrs((2, 2)), [wide((1, 4, 4, 2), 1e-3)], wide((1, 3, 3, 2), 1e-3))


def softmax(columns: int, scale: float) -> Graph:
    return one("softmax", SoftmaxAttrs(), [act((1, columns), 0.1, 0)], act((1, columns), scale, -128))


def unary(op: str) -> Graph:
    return one(op, NoAttrs(), [act((1, 4), 0.1, 0)], act((1, 4), 0.1, 0))


def steep_difference() -> Graph:
    return one("sub", BinaryAttrs(), [act((1, 4), 1e6, 0)] * 2, act((1, 4), 1e-6, 0))


def boundary_alone() -> Graph:
    return one("quantize", NoAttrs(), [TensorType((1, 4))], act((1, 4), 0.1, 0))


#: graph, code and a part of the text
REFUSED = {
    "float data": (float_graph, "dtype", "float32"),
    "16 bits without a kernel": (wide_pool, "dtype", "int16"),
    "no integer form": (lambda: unary("silu"), "op", "silu"),
    "sums beyond 32 bits": (heavy_layer, "range", "beyond 32 bits"),
    "too many axes": (scattered_transpose, "rank", "axes"),
    "long softmax": (lambda: softmax(5000, 1 / 256), "range", "softmax over 5000"),
    "softmax of another scale": (lambda: softmax(8, 0.1), "range", "1/256"),
    "scale without a multiplier": (steep_difference, "range", "2**19"),
    "nothing between the ends": (boundary_alone, "output", "no operator"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_tell_node_line_and_reason(name):
    make, code, reason = REFUSED[name]
    graph = make()
    with pytest.raises(UnsupportedOpError) as error:
        emit(graph, "c")
    assert {p.code for p in error.value.problems} == {code}
    assert reason in str(error.value)
    assert all(p.fix for p in error.value.problems)
    assert BACKEND.check(graph, "c") == tuple(error.value.problems)
    if graph.name == "refused" and code != "output":
        assert "layer.1" in str(error.value)
        assert "net.py:7" in str(error.value)


def test_every_offending_node_is_told_at_once():
    graph = float_graph()
    assert len(BACKEND.check(graph, "c")) >= len(graph.nodes)


def test_generated_c_can_not_be_read_back():
    with pytest.raises(UsageError, match="no graph"):
        BACKEND.read(emit(integer_graph(), "c").data)


# ---------------------------------------------------------------- pieces


def test_identifiers_and_comments():
    assert identifier("features.3.conv") == "features_3_conv"
    assert identifier("3") == "node_3"
    assert identifier("int") == "node_int"
    assert identifier("") == "node"
    assert comment("a */ b\n??/ \u00e9\\") == "a * / b ? ?/ /xe9/"


def test_kernels_include_what_they_use_once():
    headers, text = merged(["conv2d", "fully_connected"])
    assert headers == ["<stdint.h>", "<string.h>"]
    assert text.count("int32_t multiply_high(") == text.count("KERNEL void conv2d(") == 1
    assert text.index("requantize(") < text.index("conv2d(")
    assert set(re.findall("#include <(.*)>", text)) == {"arm_nnfunctions.h", "arm_mve.h", "arm_acle.h"}
    assert "#pragma" not in kernel_text("conv2d")
