"""Simulator equals runtime, on every byte, for both ExecuTorch targets; and what the programs are made of."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from cases import CASES, difference, feeds
from requirements import ROOT, missing
from small_graphs import integer_graph

from qwtv2_edge.backends import EmitOptions, emit, get_numerics
from qwtv2_edge.errors import UnsupportedOpError
from qwtv2_edge.ir import Graph, GraphBuilder, Quantization, TensorType
from qwtv2_edge.ir.check import MASK
from qwtv2_edge.numerics import FLOAT_OPS, FLOAT_RULES, rule_key
from qwtv2_edge.ops.activation import AlphaAttrs, ClampAttrs, GeluAttrs
from qwtv2_edge.ops.conv import Conv2DAttrs
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.index import ArgmaxAttrs, MaskFillAttrs
from qwtv2_edge.ops.layout import ConcatAttrs, ReshapeAttrs, TransposeAttrs
from qwtv2_edge.ops.linear import FullyConnectedAttrs
from qwtv2_edge.ops.matmul import BatchMatmulAttrs
from qwtv2_edge.ops.norm import LayerNormAttrs
from qwtv2_edge.ops.pool import PoolAttrs, ReduceAttrs, SoftmaxAttrs
from qwtv2_edge.ops.sequence import normal_scale
from qwtv2_edge.ops.spec import NoAttrs
from qwtv2_edge.runners.host import Session, available
from qwtv2_edge.simulator.run import run
from qwtv2_edge_executorch import BACKEND
from qwtv2_edge_executorch.emit import build

pytestmark = pytest.mark.runtime

TARGETS = ("executorch-xnnpack", "executorch-portable")


@pytest.fixture(scope="module")
def session():
    found, how = available("executorch")
    if not found:
        missing("executorch", how)
    with Session("executorch") as opened:
        yield opened


def with_float_ops(graph: Graph, value: str) -> Graph:
    return replace(graph, metadata={**graph.metadata, FLOAT_OPS: value})


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("target", TARGETS)
def test_every_case_is_exact(target, family, session, rng):
    wrong = [difference(case.graph, get_numerics(target), session, rng) for case in CASES[family]]
    assert len(wrong) > 10
    assert [w for w in wrong if w] == []


@pytest.mark.parametrize(("target", "mode"), [("executorch-xnnpack", "forbid"), ("executorch-portable", "allow")])
def test_every_case_with_a_float_rule_is_exact_by_the_other_rules(target, mode, session, rng):
    cases = [c for family in CASES.values() for c in family if any({n.op, rule_key(c.graph, n)} & set(FLOAT_RULES) for n in c.graph.nodes)]
    wrong = [difference(with_float_ops(case.graph, mode), get_numerics(target), session, rng) for case in cases]
    assert len(wrong) > 100
    assert [w for w in wrong if w] == []


def test_every_rule_has_a_case():
    """A rule that nothing executes proves nothing."""
    found = {key for cases in CASES.values() for c in cases for n in c.graph.nodes for key in (n.op, rule_key(c.graph, n))}
    for table in BACKEND.numerics.values():
        assert set(table.rules) <= found | {"activation"}


# ---------------------------------------------------------------- whole networks


def codes(shape, scale=0.05, zero_point=3) -> TensorType:
    return TensorType(tuple(shape), "int8", Quantization.per_tensor(scale, zero_point))


def network(seed: int = 0, *, softmax: bool = False, blocks: int = 2, width: int = 8) -> Graph:
    """NCHW float input, residual blocks, global mean, classifier; optionally a softmax in the middle of nothing else."""
    rng = np.random.default_rng(seed)
    b = GraphBuilder("network")

    def conv(x: str, channels: int, name: str, kernel: int = 3, activation: str = "relu") -> str:
        c = b.tensors[x].shape[3]
        scale = Quantization.per_channel(rng.uniform(0.001, 0.01, channels).astype(np.float32), 0)
        shape = (channels, kernel, kernel, c)
        w = b.constant(f"{name}.w", rng.integers(-127, 128, shape).astype(np.int8), TensorType(shape, "int8", scale))
        beta = b.constant(f"{name}.b", rng.integers(-500, 500, channels).astype(np.int32))
        p = kernel // 2
        out = codes((*b.tensors[x].shape[:3], channels), 0.08, int(rng.integers(-20, 20)))
        return b.add("conv2d", (x, w, beta), Conv2DAttrs(padding=((p, p), (p, p)), activation=activation), name=name, out_types=(out,))[0]

    x = b.input("x", TensorType((1, 3, 12, 12)))
    (x,) = b.add("quantize", (x,), NoAttrs(), name="q", out_types=(codes((1, 3, 12, 12)),))
    (x,) = b.add("transpose", (x,), TransposeAttrs((0, 2, 3, 1)), name="nhwc", out_types=(codes((1, 12, 12, 3)),))
    x = conv(x, width, "stem")
    for i in range(blocks):
        y = conv(conv(x, width, f"{i}.a"), width, f"{i}.b", activation="none")
        (x,) = b.add("add", (x, y), BinaryAttrs("relu"), name=f"{i}.add", out_types=(codes(b.tensors[x].shape, 0.11, -5),))
    (x,) = b.add("mean", (x,), ReduceAttrs((1, 2)), name="mean", out_types=(codes((1, width), 0.06, -9),))
    scale = Quantization.per_channel(rng.uniform(0.001, 0.01, 10).astype(np.float32), 0)
    w = b.constant("fc.w", rng.integers(-127, 128, (10, width)).astype(np.int8), TensorType((10, width), "int8", scale))
    beta = b.constant("fc.b", rng.integers(-500, 500, 10).astype(np.int32))
    (x,) = b.add("fully_connected", (x, w, beta), FullyConnectedAttrs(), name="fc", out_types=(codes((1, 10), 0.1, 7),))
    if softmax:
        (x,) = b.add("softmax", (x,), SoftmaxAttrs(), name="softmax", out_types=(codes((1, 10), 1 / 256, -128),))
    b.outputs = list(b.add("dequantize", (x,), NoAttrs(), name="dq", out_types=(TensorType((1, 10)),)))
    return b.freeze()


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("target", TARGETS)
def test_networks_are_exact(target, softmax, session, rng):
    assert difference(network(softmax=softmax), get_numerics(target), session, rng) == ""
    assert difference(integer_graph(), get_numerics(target), session, rng) == ""


@pytest.mark.parametrize("softmax", [False, True])
def test_a_whole_network_is_one_delegate_call(softmax):
    artifact = emit(network(softmax=softmax), "executorch-xnnpack")
    assert {op.split("::")[0] for op in artifact.ops} == {"XnnpackBackend[0]"}
    assert artifact.notes == ()


def test_what_xnnpack_leaves_is_told_and_runs_beside_it():
    artifact = emit(with_float_ops(network(softmax=True), "forbid"), "executorch-xnnpack")
    assert {op.split("::")[0] for op in artifact.ops} == {"XnnpackBackend[0]", "aten"}
    (note,) = artifact.notes
    assert "softmax" in note
    assert "float_ops" in note


#: kernels that compute in float, or may
FLOAT_KERNELS = {"aten::round.out", "aten::exp.out", "aten::div.out", "aten::_softmax.out", "aten::mean.out", "aten::sigmoid.out"}


INTEGER_CASES = [c for cases in CASES.values() for c in cases[::7] if all(t.dtype != "float32" for t in c.graph.tensors.values())]


@pytest.mark.parametrize("case", INTEGER_CASES, ids=lambda c: c.name)
def test_portable_programs_touch_no_float_between_quantize_and_dequantize(case):
    result = build(case.graph, get_numerics("executorch-portable"), delegate=False)
    assert not FLOAT_KERNELS & {op for op, _ in result.program.called}
    assert result.program.dtypes <= {np.dtype(d) for d in ("int8", "int16", "int32", "int64")}


def test_a_portable_network_has_one_float_stretch_at_each_end():
    ops = emit(network(softmax=True), "executorch-portable").ops
    inner = ops[ops.index("aten::permute_copy.out") : len(ops) - 3]  # the last three dequantize: cast, add, mul
    assert not FLOAT_KERNELS & set(inner)
    assert ops[:5] == ("aten::mul.out", "aten::round.out", "aten::clamp.out", "aten::add.Scalar_out", "aten::_to_copy.out")


# ---------------------------------------------------------------- shapes of programs


def test_branches_inputs_and_outputs(session, rng):
    """Two inputs, a value read in and outside a blob, a tensor given out twice, an input given out as it is."""
    b = GraphBuilder("branches")
    x, y = b.input("x", codes((1, 4, 4, 2))), b.input("y", codes((1, 4, 4, 2)))
    out = codes((1, 4, 4, 2), 0.07, -11)
    (s,) = b.add("add", (x, y), BinaryAttrs(), name="sum", out_types=(out,))
    slopes = b.constant("slopes", np.asarray([40, -70], np.int8), TensorType((2,), "int8", Quantization.per_tensor(0.01, 0)))
    (p,) = b.add("prelu", (s, slopes), NoAttrs(), name="prelu", out_types=(out,))
    (e,) = b.add("elu", (s,), AlphaAttrs(1.0), name="elu", out_types=(out,))
    (c,) = b.add("concat", (p, e, p), ConcatAttrs(3), name="cat", out_types=(codes((1, 4, 4, 6), 0.07, -11),))
    b.outputs = [c, s, s, y]
    graph = b.freeze()
    for target in TARGETS:
        assert difference(graph, get_numerics(target), session, rng) == ""


def test_equal_graphs_give_equal_bytes_in_fresh_processes():
    script = (
        "import sys; sys.path[:0] = ['tests', 'tests/runtime']; import hashlib; from test_executorch_exact import *\n"
        "print([hashlib.sha256(emit(network(softmax=True), t).data).hexdigest() for t in TARGETS], 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout for _ in range(2))
    assert first == second
    assert first.strip().endswith("False"), "emitting must not import torch"


@pytest.mark.parametrize("target", TARGETS)
def test_the_manifest_travels_in_the_file(target, session, rng):
    graph = network()
    plain, marked = emit(graph, target), emit(graph, target, EmitOptions({"hash": "abc"}))
    assert b'{"hash": "abc"}' in marked.data
    assert b"manifest" not in plain.data
    x = feeds(graph, rng, 4)
    results = []
    for artifact in (plain, marked):
        session.load(artifact.data)
        results.append(session.run(x)[0])
    assert np.array_equal(*results)


def test_emitting_is_quick():
    graph = network(blocks=30, width=64)
    assert len(graph.nodes) > 90
    for target in TARGETS:
        start = time.perf_counter()
        emit(graph, target)
        assert time.perf_counter() - start < 2


# ---------------------------------------------------------------- what can't be emitted


def test_every_reason_in_one_pass():
    b = GraphBuilder("refused")
    x = b.input("x", codes((1, 4, 4, 2)))
    for i, scale in enumerate((3e4, 0.01, 9e5)):
        q = Quantization.per_channel(np.full(2, scale, np.float32), 0)
        w = b.constant(f"w{i}", np.ones((2, 1, 1, 2), np.int8), TensorType((2, 1, 1, 2), "int8", q))
        beta = b.constant(f"b{i}", np.zeros(2, np.int32))
        (x,) = b.add("conv2d", (x, w, beta), Conv2DAttrs(), name=f"conv{i}", out_types=(codes((1, 4, 4, 2)),))
    b.outputs = [x]
    graph = b.freeze()
    problems = BACKEND.check(graph, "executorch-xnnpack")
    assert [(p.code, p.node) for p in problems] == [("scale-out-of-range", "conv0"), ("scale-out-of-range", "conv2")]
    assert all(p.fix and "effective scale" in p.message for p in problems)
    with pytest.raises(UnsupportedOpError) as error:
        emit(graph, "executorch-xnnpack")
    assert error.value.problems == problems


def test_float_graphs_are_refused_whole():
    from small_graphs import float_graph

    graph = float_graph()
    for target in TARGETS:
        problems = BACKEND.check(graph, target)
        assert {p.node for p in problems} == {n.name for n in graph.nodes}
        assert {p.code for p in problems} == {"dtype-unsupported"}


def test_four_bit_weights_are_told_to_take_a_byte_each():
    (case, *_) = (c for c in CASES["conv"] if any(t.dtype == "int4" for t in c.graph.tensors.values()))
    (note,) = emit(case.graph, "executorch-portable").notes
    assert "one byte per weight" in note


@pytest.mark.parametrize("bounds", [(-1.0, 0.0), (0.0, 2.0), (-0.0, 2.0), (0.5, 2.0), (-2.0, -0.5), (-np.inf, np.inf)])
@pytest.mark.parametrize("given", [False, True])
def test_a_clamp_behind_a_padded_window_is_exact(bounds, given, session, rng):
    """XNNPACK merges such clamps into the op before them, unless its result is given out as well."""
    b = GraphBuilder("merged")
    x, out = b.input("x", codes((1, 6, 6, 4))), codes((1, 6, 6, 4))
    (y,) = b.add("max_pool2d", (x,), PoolAttrs((3, 3), (1, 1), ((1, 1), (1, 1))), name="pool", out_types=(out,))
    (z,) = b.add("clamp", (y,), ClampAttrs(*bounds), name="clamp", out_types=(out,))
    b.outputs = [y, z] if given else [z]
    assert difference(b.freeze(), get_numerics("executorch-xnnpack"), session, rng) == ""


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("op", ["add", "sub", "mul"])
@pytest.mark.parametrize("target", TARGETS)
def test_one_tensor_twice(target, op, power_of_two, session, rng):
    """XNNPACK turns x * x into a square and x - x into a constant, which round differently."""
    b = GraphBuilder("twice")
    x = b.input("x", codes((1, 4, 64), 0.03125 if power_of_two else 0.037))
    (y,) = b.add(op, (x, x), BinaryAttrs(), name="twice", out_types=(codes((1, 4, 64), 0.0625 if power_of_two else 0.071, -9),))
    (z,) = b.add("add", (x, y), BinaryAttrs(), name="after", out_types=(codes((1, 4, 64), 0.1, 5),))
    b.outputs = [y, z]
    assert difference(b.freeze(), get_numerics(target), session, rng) == ""


# ---------------------------------------------------------------- transformers


def wide(shape, scale=2.0**-12) -> TensorType:
    return TensorType(tuple(shape), "int16", Quantization.per_tensor(scale, 0))


def encoder(blocks: int = 2, tokens: int = 5, width: int = 16, heads: int = 2, seed: int = 0) -> Graph:
    """Embedded tokens and a mask, post-norm blocks with a 16-bit residual stream, the largest entry per token."""
    rng = np.random.default_rng(seed)
    b = GraphBuilder("encoder")

    def add(op: str, inputs, attrs, out: TensorType) -> str:
        return b.add(op, inputs, attrs, name=b.unique_node(op), out_types=(out,))[0]

    def linear(x: str, out: TensorType) -> str:
        shape = (out.shape[-1], b.tensors[x].shape[-1])
        scale = Quantization.per_channel(rng.uniform(0.003, 0.01, shape[0]).astype(np.float32), 0)
        w = b.constant("w", rng.integers(-127, 128, shape).astype(np.int8), TensorType(shape, "int8", scale))
        beta = b.constant("b", rng.integers(-500, 500, shape[0]).astype(np.int32))
        return add("fully_connected", (x, w, beta), FullyConnectedAttrs(), out)

    def norm(x: str) -> str:
        step = float(np.float32(1.6 / 32767))
        gamma = b.constant(
            "gamma", rng.integers(15000, 25000, width).astype(np.int16), TensorType((width,), "int16", Quantization((step,), (0,)))
        )
        scale = Quantization((float(np.float32(step) * np.float32(normal_scale(width))),), (0,))
        beta = b.constant("beta", rng.integers(-(2**20), 2**20, width).astype(np.int32), TensorType((width,), "int32", scale))
        return add("layer_norm", (x, gamma, beta), LayerNormAttrs(1e-5, True, 3), wide(rows))

    rows, split = (1, tokens, width), (1, tokens, heads, width // heads)
    turned, square = (1, heads, tokens, width // heads), (1, heads, tokens, tokens)
    indices = b.input("indices", TensorType((1, tokens), "int32"))
    keep = add("quantize", (b.input("keep", TensorType((1, tokens))),), NoAttrs(), TensorType((1, tokens), "int8", MASK))
    mask = add("reshape", (keep,), ReshapeAttrs((1, 1, 1, tokens)), TensorType((1, 1, 1, tokens), "int8", MASK))
    table = b.constant("table", rng.integers(-20000, 20000, (11, width)).astype(np.int16), wide((11, width)))
    x = add("embedding", (indices, table), NoAttrs(), wide(rows))
    for _ in range(blocks):
        narrow = add("requantize", (x,), NoAttrs(), codes(rows, 0.04, -3))
        q, k, v = (
            add("transpose", (add("reshape", (linear(narrow, codes(rows, 0.02, 0)),), ReshapeAttrs(split), codes(split, 0.02, 0)),),
                TransposeAttrs((0, 2, 1, 3)), codes(turned, 0.02, 0))
            for _ in range(3)
        )  # fmt: skip
        scores = add("batch_matmul", (q, k), BatchMatmulAttrs(True), codes(square, 0.1, 5))
        scores = add("mask_fill", (scores, mask), MaskFillAttrs(), b.tensors[scores])
        weights = add("softmax", (scores,), SoftmaxAttrs(0.35), codes(square, 1 / 256, -128))
        mixed = add("batch_matmul", (weights, v), BatchMatmulAttrs(), codes(turned, 0.02, 1))
        mixed = add("transpose", (mixed,), TransposeAttrs((0, 2, 1, 3)), codes(split, 0.02, 1))
        mixed = add("reshape", (mixed,), ReshapeAttrs(rows), codes(rows, 0.02, 1))
        x = norm(add("add", (x, linear(mixed, codes(rows, 0.03, -7))), BinaryAttrs(), wide(rows, 2.0**-11)))
        narrow = add("requantize", (x,), NoAttrs(), codes(rows, 0.04, -3))
        hidden = linear(narrow, codes((1, tokens, 4 * width), 0.05, 0))
        hidden = add("gelu", (hidden,), GeluAttrs(), codes((1, tokens, 4 * width), 0.03, -100))
        x = norm(add("add", (x, linear(hidden, codes(rows, 0.05, 9))), BinaryAttrs(), wide(rows, 2.0**-11)))
    largest = add("argmax", (x,), ArgmaxAttrs(2), TensorType((1, tokens), "int32"))
    b.outputs = [largest, x, add("dequantize", (x,), NoAttrs(), TensorType(rows))]
    return b.freeze()


@pytest.mark.parametrize("mode", ["auto", "forbid", "allow"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_transformer_is_exact(target, mode, session, rng):
    assert difference(with_float_ops(encoder(), mode), get_numerics(target), session, rng) == ""


def test_an_encoder_is_one_delegate_call():
    artifact = emit(encoder(), "executorch-xnnpack")
    assert {op.split("::")[0] for op in artifact.ops if op.startswith("Xnnpack")} == {"XnnpackBackend[0]"}
    assert {note.split()[0] for note in artifact.notes} == {"embedding", "argmax"}


def test_a_transformer_without_float_ops_keeps_its_products_in_the_delegate():
    ops = emit(with_float_ops(encoder(), "forbid"), "executorch-xnnpack").ops
    assert sum(op.endswith("::XNNBatchMatrixMultiply") for op in ops) == 4
    assert not any(op.endswith(("::XNNDiv", "::XNNExp")) for op in ops)
    assert not FLOAT_KERNELS & set(ops[: ops.index("aten::argmax.out")])


def test_sixteen_bits_between_delegate_and_kernels(session, rng):
    """A 16-bit input, a value read on both sides, kernels in the middle, a constant first operand."""
    b = GraphBuilder("border")
    x, shape = b.input("x", wide((1, 4, 6))), (1, 4, 6)
    c = b.constant("c", rng.integers(-9999, 9999, (1, 2, 6)).astype(np.int16), wide((1, 2, 6)))
    (y,) = b.add("add", (x, x), BinaryAttrs("relu"), name="double", out_types=(wide(shape),))
    (z,) = b.add("mul", (x, y), BinaryAttrs(), name="product", out_types=(wide(shape, 2.0**-10),))
    (s,) = b.add("sub", (y, z), BinaryAttrs(), name="difference", out_types=(wide(shape),))
    (j,) = b.add("concat", (c, s), ConcatAttrs(1), name="joined", out_types=(wide((1, 6, 6)),))
    b.outputs = [y, z, j, x]
    for target in TARGETS:
        assert difference(b.freeze(), get_numerics(target), session, rng) == ""


@pytest.mark.parametrize("kind", ["requantize", "through reals", "through 16 bits"])
def test_long_rows_of_element_wise_nodes_end_well(kind, tmp_path):
    """XNNPACK frees a table twice when such a program ends, unless its rows are cut: the process would abort."""
    b = GraphBuilder("row")
    x = b.input("x", codes((1, 6, 9)))
    middle = {"through reals": TensorType((1, 6, 9)), "through 16 bits": wide((1, 6, 9))}.get(kind)
    for i in range(16):
        if middle is not None:
            op = "requantize" if middle.quantization else "dequantize"
            (x,) = b.add(op, (x,), NoAttrs(), name=f"widen{i}", out_types=(middle,))
        op = "quantize" if middle is not None and middle.quantization is None else "requantize"
        (x,) = b.add(op, (x,), NoAttrs(), name=f"narrow{i}", out_types=(codes((1, 6, 9), 0.05 + 0.001 * i, i),))
    b.outputs = [x]
    graph = b.freeze()
    found, how = available("executorch")
    if not found:
        missing("executorch", how)
    program, x = tmp_path / "row.pte", np.arange(54, dtype=np.int8).reshape(1, 6, 9)
    program.write_bytes(emit(graph, "executorch-xnnpack").data)
    script = (
        "import numpy as np; from qwtv2_edge.runners.worker import ExecuTorch\n"
        f"program = ExecuTorch('executorch', open({str(program)!r}, 'rb').read(), 1)\n"
        "program.set([np.arange(54, dtype=np.int8).reshape(1, 6, 9)]); program.invoke(); print(program.get()[0].ravel().tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (expected,) = run(graph, [x], get_numerics("executorch-xnnpack"))
    assert done.stdout.strip().splitlines()[-1] == str(expected.ravel().tolist())
