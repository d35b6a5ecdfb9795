"""What an emitted .tflite file holds, field by field; and that equal graphs give equal bytes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from itertools import permutations, product

import numpy as np
import pytest
from cases import CASES
from cases.build import RANDOM, act, weights, wide

from qwtv2_edge.backends import EmitOptions, emit
from qwtv2_edge.errors import UnsupportedOpError
from qwtv2_edge.ir.graph import Graph, GraphBuilder
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.ops import OPS
from qwtv2_edge.ops.conv import Conv2DAttrs
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.norm import LayerNormAttrs
from qwtv2_edge.ops.spec import NoAttrs
from qwtv2_edge.runners.host import HOST
from qwtv2_edge_tflite import BACKEND
from qwtv2_edge_tflite.ops import merged_transpose, padding_schemes, same_padding, transpose_steps
from qwtv2_edge_tflite.parse import parse
from qwtv2_edge_tflite.schema import bindings, pack_int4, unpack_int4
from qwtv2_edge_tflite.sequence import FORMS


def case(name: str) -> Graph:
    return next(c.graph for cases in CASES.values() for c in cases if c.name == name)


def network(shared: bool = True) -> Graph:
    """float -> two convolutions that share their weights -> add -> float."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("net")
    x = b.input("image", TensorType((1, 6, 6, 4)))
    (q,) = b.add("quantize", (x,), NoAttrs(), name="image/q", out_types=(act((1, 6, 6, 4), 0.02, -5),))
    codes, type = weights(rng, (4, 3, 3, 4), 0, RANDOM)
    outs = []
    for name in ("body.0", "body.1"):
        w = b.constant(f"{name}.weight", codes if shared else codes + np.int8(name == "body.1"), type)
        beta = b.constant(f"{name}.bias", np.arange(4, dtype=np.int32), TensorType((4,), "int32"))
        attrs = Conv2DAttrs(padding=((1, 1), (1, 1)), activation="relu")
        outs += b.add("conv2d", (q, w, beta), attrs, name=name, out_types=(act((1, 6, 6, 4), 0.5, -128),))
    (s,) = b.add("add", outs, BinaryAttrs(), name="sum", out_types=(act((1, 6, 6, 4), 0.9, -128),))
    b.outputs = list(b.add("dequantize", (s,), NoAttrs(), name="result", out_types=(TensorType((1, 6, 6, 4)),)))
    return b.freeze()


def root(data: bytes):
    return bindings("Model").Model.GetRootAs(data, 0)


def test_fields():
    data = emit(network(), "tflite", EmitOptions({"manifest_sha256": "ab" * 32})).data
    m = root(data)
    assert data[4:8] == b"TFL3"
    assert m.Version() == 3
    codes = {
        (m.OperatorCodes(i).BuiltinCode(), m.OperatorCodes(i).DeprecatedBuiltinCode(), m.OperatorCodes(i).Version())
        for i in range(m.OperatorCodesLength())
    }
    assert codes == {(114, 114, 1), (3, 3, 3), (0, 0, 2), (6, 6, 2)}
    g = m.Subgraphs(0)
    names = [g.Tensors(i).Name().decode() for i in range(g.TensorsLength())]
    assert names[g.Inputs(0)] == "image"
    assert names[g.Outputs(0)] == "result"
    assert {"image", "image/q", "body.0", "body.1", "body.0.weight", "sum"} <= set(names)
    assert len(names) == len(set(names))
    s = m.SignatureDefs(0)
    assert s.SignatureKey() == b"serving_default"
    assert (s.Inputs(0).Name(), s.Inputs(0).TensorIndex()) == (b"image", g.Inputs(0))
    assert (s.Outputs(0).Name(), s.Outputs(0).TensorIndex()) == (b"result", g.Outputs(0))
    metadata = dict(parse(data).metadata)
    assert metadata["min_runtime_version"] == "1.14.0"
    assert json.loads(metadata["qwtv2_edge.manifest"])["manifest_sha256"] == "ab" * 32
    weight = g.Tensors(names.index("body.0.weight")).Quantization()
    assert (weight.ScaleLength(), weight.ZeroPointLength(), weight.QuantizedDimension()) == (4, 4, 0)


def test_bias_scale_is_input_times_weight_scale():
    m = parse(emit(network(), "tflite").data)
    bias = next(t for t in m.tensors if t.name == "body.0.bias")
    weight = next(t for t in m.tensors if t.name == "body.0.weight")
    assert np.array_equal(np.float32(bias.scale), np.float32(0.02) * np.float32(weight.scale))


def test_constants_are_aligned_and_stored_once():
    sizes = {}
    for shared in (True, False):
        data = emit(network(shared), "tflite").data
        m = root(data)
        for i in range(m.BuffersLength()):
            b = m.Buffers(i)
            if b.DataLength():
                start = b._tab.Vector(b._tab.Offset(4))
                assert start % 16 == 0
        sizes[shared] = m.BuffersLength()
        assert m.Buffers(0).DataLength() == 0
    assert sizes[False] == sizes[True] + 1


def test_same_graph_same_bytes_in_a_fresh_process():
    script = (
        "import sys, hashlib; sys.path.insert(0, 'tests'); sys.path.insert(0, 'tests/unit');"
        "from test_tflite_emit import network; from qwtv2_edge.backends import emit;"
        "print(hashlib.sha256(emit(network(), 'tflite').data).hexdigest())"
    )
    here = hashlib.sha256(emit(network(), "tflite").data).hexdigest()
    for seed in ("1", "2"):
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONHASHSEED": seed}, check=False)
        assert run.stdout.strip() == here, run.stderr


@pytest.mark.parametrize(
    ("name", "ops"),
    [
        ("conv2d-3x3-same-random", ["CONV_2D"]),
        ("conv2d-3x3-same-stride2-random", ["CONV_2D"]),
        ("conv2d-3x3-pad1-stride2-random", ["PAD", "CONV_2D"]),
        ("conv2d-asymmetric-padding-random", ["PAD", "CONV_2D"]),
        ("max-pool-3x3-stride2-pad1-random", ["PADV2", "MAX_POOL_2D"]),
        ("max-pool-3x3-stride2-pad1-z128-random", ["PAD", "MAX_POOL_2D"]),
        ("avg-pool-3x3-stride2-pad1-random", ["AVERAGE_POOL_2D", "STRIDED_SLICE"]),
        ("mean-spatial-random", ["MEAN"]),
        ("mean-spatial-keep-random", ["MEAN", "RESHAPE"]),
        ("fc-small-per-channel-random", ["FULLY_CONNECTED"]),
        ("fc-rank3-per-channel-random", ["RESHAPE", "FULLY_CONNECTED", "RESHAPE"]),
        ("grouped-2-groups-random", ["CONV_2D"]),
        ("transposed-3x3-stride2-same-random", ["TRANSPOSE_CONV"]),
        ("transposed-3x3-stride2-torch-random", ["TRANSPOSE_CONV", "SLICE"]),
        ("transposed-output-padding-random", ["TRANSPOSE_CONV"]),
        ("transpose-1x2x3x2x2x5-013245", ["RESHAPE", "TRANSPOSE", "RESHAPE"]),
    ],
)
def test_forms(name, ops):
    artifact = emit(case(name), "tflite")
    assert list(artifact.ops) == ops
    assert [o.code for o in parse(artifact.data).operators] == ops


@pytest.mark.parametrize(("name", "version"), [("grouped-2-groups-random", 6), ("conv2d-int4", 7), ("conv2d-1x1-random", 3)])
def test_operator_versions(name, version):
    m = root(emit(case(name), "tflite").data)
    assert m.OperatorCodes(0).Version() == version


def test_padding_schemes_read_the_prescribed_taps():
    """Against a list of the taps each window reads."""
    for size, kernel, stride, dilation, before, after in product(range(1, 8), (1, 2, 3), (1, 2, 3), (1, 2), range(3), range(3)):
        span = (kernel - 1) * dilation
        out = (size + before + after - span - 1) // stride + 1
        if out < 1:
            continue

        def taps(top, count, size=size, kernel=kernel, stride=stride, dilation=dilation):
            windows = ([o * stride - top + k * dilation for k in range(kernel)] for o in range(count))
            return [[t for t in w if 0 <= t < size] for w in windows]

        top = same_padding(size, kernel, stride, dilation)[0]
        want = {"SAME": taps(top, -(-size // stride)), "VALID": taps(0, (size - span - 1) // stride + 1) if size > span else None}
        for scheme in padding_schemes(size, out, kernel, stride, dilation, before):
            assert taps(before, out) == want[scheme]


def test_transposes_keep_their_meaning_in_steps_of_four_axes():
    shape = (2, 3, 1, 2, 3, 2)
    x = np.arange(72).reshape(shape)
    for perm in permutations(range(6)):
        y = x
        for step_shape, step_perm in transpose_steps(shape, perm):
            assert len(step_shape) <= 4
            y = y.reshape(step_shape).transpose(step_perm)
        assert np.array_equal(y.reshape([shape[p] for p in perm]), x.transpose(perm))
        merged, order = merged_transpose(shape, perm)
        assert np.array_equal(x.reshape(merged).transpose(order).ravel(), x.transpose(perm).ravel())


def test_int4_codes_survive_packing():
    for size in (1, 2, 7, 30):
        codes = (np.arange(size) % 16 - 8).astype(np.int8)
        packed = pack_int4(codes)
        assert len(packed) == (size + 1) // 2
        assert np.array_equal(unpack_int4(packed, size), codes)
    assert pack_int4(np.array([1, -2], np.int8)) == b"\xe1"


def test_every_op_has_a_rule_or_no_integer_form():
    assert set(OPS) - {key.partition(":")[0] for key in FORMS} == {"hard_sigmoid", "silu"}


def norms(count: int, beta: int = 2**29) -> Graph:
    """layer_norm nodes in a row, each from and to 16 bits."""
    b = GraphBuilder("norms")
    type = wide((1, 3, 8), 2.0**-12)
    x = b.input("x", type)
    for i in range(count):
        factors = b.constant(f"gamma{i}", np.full(8, 20000 + i, np.int16), TensorType((8,), "int16", Quantization.per_tensor(2.0**-14, 0)))
        offsets = b.constant(f"beta{i}", np.full(8, beta - i, np.int32), TensorType((8,), "int32"))
        (x,) = b.add("layer_norm", (x, factors, offsets), LayerNormAttrs(), name=f"norm{i}", out_types=(type,))
    b.outputs = [x]
    return b.freeze()


def test_layer_norms_share_their_tables():
    tables = [{t.data.tobytes() for t in parse(emit(norms(n), "tflite").data).tensors if t.shape == (8192,)} for n in (1, 3)]
    assert tables[0] == tables[1]
    assert len(tables[0]) == 2
    data = emit(norms(3), "tflite").data
    assert data.count(next(iter(tables[0]))) == 1


def test_layer_norm_sums_stay_within_32_bits():
    assert not BACKEND.check(norms(1), "tflite")
    (problem,) = BACKEND.check(norms(1, beta=2**31 - 1), "tflite")
    assert (problem.code, problem.node) == ("range", "norm0")
    assert str(2**15 * 20000 + 2**31 - 1) in problem.message


def test_where_floats_are_allowed_only_the_interface_has_16_bits():
    graph = norms(2).with_metadata(float_ops="allow")
    artifact = emit(graph, "tflite")
    m = parse(artifact.data)
    assert {m.tensors[i].name for i in (*m.inputs, *m.outputs)} == {"x", graph.outputs[0]}
    assert sum(t.dtype == "int16" for t in m.tensors) == 4  # each end with its scale, and as codes
    assert artifact.ops.count("QUANTIZE") == artifact.ops.count("DEQUANTIZE") == 1


def test_gelu_for_tflite_micro_is_a_table():
    graph = case("gelu-erf-0.05-random")
    assert emit(graph, "tflite").ops == ("GELU",)
    artifact = emit(graph, "tflite-micro")
    assert artifact.ops == ("CAST", "ADD", "GATHER")
    assert (artifact.target, artifact.suffix) == ("tflite-micro", ".tflite-micro.tflite")


def test_16_bits_where_there_is_no_form_are_refused():
    b = GraphBuilder("pool")
    type = wide((1, 4, 4, 2), 1e-4)
    x = b.input("x", type)
    b.outputs = list(b.add("relu", (x,), NoAttrs(), name="r", out_types=(type,)))
    assert [(p.code, p.node) for p in BACKEND.check(b.freeze(), "tflite")] == [("dtype", "r")]


def test_every_problem_is_listed_at_once():
    b = GraphBuilder("bad")
    x = b.input("x", act((1, 4, 4, 2), 1000.0, 0))
    (a,) = b.add("add", (x, x), BinaryAttrs(), name="a", out_types=(act((1, 4, 4, 2), 0.001, 0),))
    (m,) = b.add("mul", (a, a), BinaryAttrs(), name="m", out_types=(act((1, 4, 4, 2), 1e-9, 0),))
    (s,) = b.add("silu", (m,), NoAttrs(), name="s", out_types=(act((1, 4, 4, 2), 0.1, 0),))
    tiny = act((1, 4, 4, 2), 1e-9, -128)
    z = b.input("z", tiny)
    (r,) = b.add("relu6", (z,), NoAttrs(), name="r", out_types=(tiny,))
    b.outputs = [s, r]
    with pytest.raises(UnsupportedOpError) as error:
        emit(b.freeze(), "tflite")
    assert [(p.code, p.node) for p in error.value.problems] == [("scale", "a"), ("scale", "m"), ("op", "s"), ("scale", "r")]


def test_notes_name_the_runtimes_that_differ():
    notes = emit(network(), "tflite").notes
    assert any(n.startswith("conv2d (2)") and "REF: litert-reference" in n and "F32E: litert-xnnpack" in n for n in notes)
    assert not any("avg_pool2d" in n for n in notes)


@pytest.mark.parametrize("name", ["litert-xnnpack", "litert-builtin"])
def test_variants_run_on_their_own_processors(name):
    bare, *variants = (BACKEND.numerics[f"{name}{m}"] for m in ("", "@x86_64", "@aarch64"))
    assert [[v.runs_on(f) for f in ("x86_64", "aarch64")] for v in variants] == [[True, False], [False, True]]
    here = next(v for v in variants if v.runs_on(HOST.family))
    assert bare.rules == here.rules
