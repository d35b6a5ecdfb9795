"""Comparison, edge patterns, beginnings of graphs, and the texts of reports."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_graphs import float_graph, integer_graph, two_inputs

from qwtv2_edge.backends import numerics_among
from qwtv2_edge.errors import MismatchError, MissingToolError, RunError, UsageError
from qwtv2_edge.ir import GraphBuilder, Quantization, TensorType
from qwtv2_edge.ir.check import check
from qwtv2_edge.ops.layout import ReshapeAttrs
from qwtv2_edge.ops.spec import NoAttrs
from qwtv2_edge.simulator.run import run
from qwtv2_edge.verification import edge_patterns, golden_vectors
from qwtv2_edge.verification.bisect import beginning
from qwtv2_edge.verification.compare import UNBOUNDED_LSB, Difference, compare, compare_all, steps
from qwtv2_edge.verification.patterns import PATTERNS, input_codes
from qwtv2_edge.verification.report import Culprit, Mismatch, NumericsResult, VerifyReport

F = np.float32


def test_equal_arrays():
    a = np.array([[1, -2]], np.int8)
    assert compare("t", a, a.copy(), 1.0) is None
    assert compare("t", a, a.reshape(2), 1.0) is None
    nan = np.array([np.nan, 1], F)
    assert compare("t", nan, nan.copy(), 0.5) is None


def test_codes():
    want = np.array([[1, -128, 5]], np.int8)
    got = np.array([[1, 127, 4]], np.int8)
    assert compare("t", want, got, 1.0) == Difference("t", 2, 255, (0, 1), -128, 127)


def test_reals_count_in_steps_of_their_scale():
    want = np.array([0.5, 1.0, 2.0], F)
    got = np.array([0.5, 0.75, 2.5], F)
    assert compare("t", want, got, 0.25) == Difference("t", 2, 2, (1,), 1.0, 0.75)


def test_signed_zeros_and_nan_payloads_are_different_bytes():
    assert compare("t", np.array([0.0], F), np.array([-0.0], F), 0.25).max_lsb == 0
    quiet, other = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(F)[:, None]
    assert compare("t", quiet, other, 0.25).max_lsb == UNBOUNDED_LSB
    assert compare("t", np.array([1.0], F), np.array([np.inf], F), 0.25).max_lsb == UNBOUNDED_LSB


def test_reals_without_a_scale_count_neighbours():
    one = np.array([1.0, -1.0, 1e-45], F)
    next_to = np.array([np.nextafter(F(1), F(2)), np.nextafter(F(-1), F(-2)), -1e-45], F)
    assert compare("t", one, next_to, 0.0).max_lsb == 2


def test_missing_and_misshapen_outputs():
    graph = integer_graph()
    want = [np.zeros((2, 3), F)]
    assert compare_all(graph, graph.outputs, want, [])[0].count == 6
    assert compare_all(graph, graph.outputs, want, [np.zeros((2, 4), F)])[0].max_lsb == UNBOUNDED_LSB
    assert compare_all(graph, graph.outputs, want, [np.zeros((2, 3), np.int8)])[0].count == 6


def test_steps():
    graph = integer_graph()
    assert steps(graph, "dequantize") == 1 / 256
    assert steps(graph, "head") == 1.0
    assert steps(float_graph(), "head") == 0.0


def test_edge_patterns_span_the_codes():
    graph = integer_graph()
    names, (array,) = edge_patterns(graph)
    assert names == PATTERNS
    assert array.shape == (len(PATTERNS), 6, 6, 2)
    assert array.dtype == F
    codes = beginning(graph, 1)
    assert codes.outputs == ("quantize",)
    type = input_codes(graph, "x")
    (q,) = run(codes, [array], _numerics())
    by_name = dict(zip(names, q, strict=True))
    assert set(np.unique(by_name["all lowest codes"])) == {-128}
    assert set(np.unique(by_name["all highest codes"])) == {127}
    assert set(np.unique(by_name["zero point"])) == {type.zero_point}
    assert by_name["ramp up"].ravel().tolist() == list(range(-128, -128 + 72))
    assert by_name["ramp down"].ravel().tolist() == list(range(127, 127 - 72, -1))
    assert by_name["checkerboard"][0, 0].tolist() == [-128, 127]
    assert by_name["checkerboard"][0, 1].tolist() == [127, -128]
    ties = array[names.index("ties between codes")] / F(type.scale)
    assert np.abs(ties - np.floor(ties) - 0.5).max() < 1e-3
    beyond = array[names.index("beyond the range")] / F(type.scale)
    assert np.abs(beyond).max() > 200
    np.testing.assert_array_equal(edge_patterns(graph)[1][0], array)


def test_edge_patterns_of_code_inputs():
    b = GraphBuilder("codes")
    x = b.input("x", TensorType((2, 3), "int8", Quantization.per_tensor(0.1, 7)))
    b.outputs = [b.add("dequantize", (x,), NoAttrs(), name="d")[0]]
    names, (array,) = edge_patterns(b.freeze())
    assert array.dtype == np.int8
    assert array.shape == (2 * len(names), 3)
    assert (array[4:6] == 7).all()


def test_edge_patterns_of_indices_stay_inside_every_table():
    b = GraphBuilder("tables")
    x = b.input("x", TensorType((1, 30), "int32"))
    (flat,) = b.add("reshape", (x,), ReshapeAttrs((1, 5, 6)), name="flat", out_types=(TensorType((1, 5, 6), "int32"),))
    for i, (indices, entries) in enumerate(((x, 20), (flat, 7))):
        like = TensorType((entries, 4), "int8", Quantization.per_tensor(0.1, 0))
        table = b.constant(f"table{i}", np.zeros(like.shape, np.int8), like)
        out = TensorType((*b.tensors[indices].shape, 4), "int8", like.quantization)
        b.outputs += b.add("embedding", (indices, table), NoAttrs(), name=f"rows{i}", out_types=(out,))
    _, (array,) = edge_patterns(b.freeze())
    assert array.dtype == np.int32
    assert (array.min(), array.max()) == (0, 6)


def test_a_numerics_runs_on_its_own_target_where_it_can():
    chosen = {t: numerics_among("tflite-micro", t).target for t in (("tflite", "tflite-micro"), ("tflite",), ("executorch-xnnpack",))}
    assert list(chosen.values()) == ["tflite-micro", "tflite", "tflite-micro"]
    assert numerics_among("litert-xnnpack", ("tflite-micro",)).target == "tflite-micro"


def test_edge_patterns_of_inputs_that_stay_float():
    _, arrays = edge_patterns(two_inputs())
    assert [a.shape for a in arrays] == [(9, 4), (9, 2, 2)]


@pytest.mark.parametrize("count", range(1, 10))
def test_beginnings_compute_the_same(count):
    graph = integer_graph()
    _, feed = edge_patterns(graph)
    seen = {}
    run(graph, feed, _numerics(), lambda node, outs: seen.update(zip(node.outputs, outs, strict=True)))
    part = beginning(graph, count)
    check(part)
    assert len(part.nodes) <= count
    for name, got in zip(part.outputs, run(part, feed, _numerics()), strict=True):
        np.testing.assert_array_equal(got, seen[name])


def test_beginnings_drop_inputs_nobody_reads():
    part = beginning(two_inputs(), 1)
    assert part.inputs == ("b",)
    check(part)


def _numerics():
    from qwtv2_edge.backends import load

    return load("tflite").numerics["litert-reference"]


def _result(status, **more):
    return NumericsResult("litert-reference", "LiteRT, reference kernels", "exact", status, samples=4, outputs_compared=40, **more)


MISMATCH = Mismatch(
    3,
    "data 1",
    Difference("probabilities", 2, 3, (0, 4), 0.5, 0.25),
    Culprit("stage.conv", "conv2d", "net.py:4  x = self.conv(x)", Difference("stage.conv", 7, 1, (0, 2, 2, 9), -3, -4)),
)


def test_report_texts(golden):
    results = [
        _result("exact"),
        _result("mismatch", mismatches=2, max_lsb=3, first=MISMATCH),
        _result(
            "mismatch", mismatches=2, max_lsb=3, first=Mismatch(0, "zero point", MISMATCH.difference, Culprit(note="could not be cut"))
        ),
        _result("bound", mismatches=2, max_lsb=3, declared_lsb=1),
        _result("missing", error="LiteRT is not installed", fix="pip install ai-edge-litert"),
        _result("crashed", error="LiteRT crashed (signal SIGSEGV)"),
    ]
    golden("verify_report.txt", "\n".join(r.text() for r in results) + "\n")


def test_report_json():
    report = VerifyReport("tflite", {"litert-reference": _result("mismatch", mismatches=2, max_lsb=3, first=MISMATCH)})
    entry = json.loads(json.dumps(report.to_json(), allow_nan=False))["litert-reference"]
    assert {k: entry[k] for k in ("samples", "outputs_compared", "mismatches", "max_lsb")} == {
        "samples": 4,
        "outputs_compared": 40,
        "mismatches": 2,
        "max_lsb": 3,
    }
    assert entry["first_mismatch"]["node"] == "stage.conv"
    assert entry["first_mismatch"]["index"] == [0, 4]
    assert entry["first_mismatch"]["at_node"]["actual"] == -4


def test_report_verdicts():
    good, gone = _result("exact"), _result("missing", error="none", fix="pip install it")
    assert VerifyReport("t", {"a": good, "b": gone}).raise_for_mismatch().missing == ("b",)
    assert not VerifyReport("t", {"b": gone}).ok
    with pytest.raises(MissingToolError, match="no runtime for t"):
        VerifyReport("t", {"b": gone}).raise_for_mismatch()
    with pytest.raises(MismatchError, match=r"stage\.conv"):
        VerifyReport("t", {"a": good, "c": _result("mismatch", first=MISMATCH)}).raise_for_mismatch()
    with pytest.raises(RunError, match="SIGSEGV"):
        VerifyReport("t", {"a": _result("crashed", error="SIGSEGV")}).raise_for_mismatch()


def test_infinite_values_survive_json():
    d = Difference("t", 1, UNBOUNDED_LSB, (0,), float("inf"), float("nan"))
    json.loads(json.dumps(Mismatch(0, "data 0", d).to_json(), allow_nan=False))


def test_golden_vectors():
    graph = integer_graph()
    _, feed = edge_patterns(graph)
    vectors = golden_vectors(graph, feed, ["litert-reference", "litert-xnnpack"])
    assert set(vectors) == {"x", "litert-reference/dequantize", "litert-xnnpack/dequantize"}
    np.testing.assert_array_equal(vectors["litert-reference/dequantize"], run(graph, feed, _numerics())[0])


def test_unknown_numerics():
    from qwtv2_edge.backends import Artifact
    from qwtv2_edge.verification import verify

    with pytest.raises(UsageError, match="unknown numerics 'abacus'"):
        verify(integer_graph(), Artifact("tflite", b""), numerics=["abacus"])
    with pytest.raises(UsageError, match="runs tflite artifacts, not executorch-xnnpack"):
        verify(integer_graph(), Artifact("executorch-xnnpack", b""), numerics=["litert-reference"])
