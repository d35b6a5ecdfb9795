"""Simulator equals runtime, on every byte, for every single-op case and every TFLite numerics of this machine."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES, Case, difference, feeds
from cases.build import RANDOM, act, bias, weights, wide

from qwtv2_edge.backends import emit
from qwtv2_edge.errors import MissingToolError, UnsupportedOpError
from qwtv2_edge.ir.graph import Graph, GraphBuilder
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.numerics import FLOAT_OPS
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.linear import FullyConnectedAttrs
from qwtv2_edge.ops.norm import LayerNormAttrs
from qwtv2_edge.ops.spec import NoAttrs
from qwtv2_edge.runners.host import Session, available
from qwtv2_edge_tflite import BACKEND

pytestmark = pytest.mark.runtime

HERE = {n.name: n.on("tflite") for n in BACKEND.numerics.values() if n.runner and "@" not in n.name}
#: ops with another form where float operators are allowed
FLOATS = {"layer_norm", "channel_add", "channel_scale", "add", "sub", "requantize", "embedding"}
#: cases TFLite has no form for, with the code of the reason
REFUSED = {"add-ratio-100": "scale", "add-ratio-255": "scale", "sub-ratio-100": "scale", "sub-ratio-255": "scale"}


@pytest.fixture(scope="module")
def sessions():
    """kind -> a runtime process, started once per module."""
    opened: dict[str, Session] = {}

    def get(kind: str) -> Session:
        if kind not in opened:
            opened[kind] = Session(kind)
        return opened[kind]

    yield get
    for session in opened.values():
        session.close()


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("numerics", HERE)
def test_every_case_is_exact(numerics, family, sessions, rng, require):
    ran, wrong = outcomes(CASES[family], HERE[numerics], sessions, rng, require)
    assert ran > 10
    assert wrong == []


@pytest.mark.parametrize("numerics", HERE)
def test_float_forms_are_exact(numerics, sessions, rng, require):
    """16-bit nodes as float32 operators, and 16-bit nodes without such a form between them."""
    cases = [c for cases in CASES.values() for c in cases if any(t.dtype == "int16" for t in c.graph.tensors.values())]
    allowed = [Case(c.name, c.graph.with_metadata(**{FLOAT_OPS: "allow"})) for c in cases]
    ran, wrong = outcomes(allowed, HERE[numerics], sessions, rng, require)
    assert ran == len(cases)
    assert wrong == []
    ops = [op for c in allowed if c.graph.nodes[0].op in FLOATS for op in emit(c.graph, "tflite").ops]
    assert not {"CAST", "MEAN"} & set(ops)


@pytest.mark.parametrize("numerics", HERE)
def test_forms_for_tflite_micro_run_everywhere(numerics, sessions, rng, require):
    cases = [c for c in CASES["activation"] if c.graph.nodes[0].op == "gelu"]
    ran, wrong = outcomes(cases, BACKEND.numerics[numerics].on("tflite-micro"), sessions, rng, require)
    assert ran == len(cases) > 0
    assert wrong == []


def test_tflite_micro_refuses_gelu_on_the_common_target():
    case = next(c for c in CASES["activation"] if c.graph.nodes[0].op == "gelu")
    table = BACKEND.numerics["tflite-micro"]
    assert not table.refusals(case.graph)
    ((_, reason),) = table.on("tflite").refusals(case.graph)
    assert "emit the target tflite-micro" in reason


def post_norm_block() -> Graph:
    """int8 -> 16-bit residual + linear layer -> layer_norm -> int8, twice."""
    rng, b, shape = np.random.default_rng(5), GraphBuilder("block"), (1, 6, 16)
    x = b.input("x", act(shape, 0.04, -5))
    stream = wide(shape, 2e-4)
    (h,) = b.add("requantize", (x,), NoAttrs(), name="widen", out_types=(stream,))
    for i in range(2):
        codes, w_type = weights(rng, (16, 16), 0, RANDOM)
        w = b.constant(f"w{i}", codes, w_type)
        offsets = b.constant(f"b{i}", bias(rng, 16, 500), TensorType((16,), "int32"))
        (y,) = b.add("fully_connected", (x, w, offsets), FullyConnectedAttrs(), name=f"fc{i}", out_types=(act(shape, 0.2, 3),))
        (s,) = b.add("add", (h, y), BinaryAttrs(), name=f"sum{i}", out_types=(wide(shape, 1e-3),))
        gamma = b.constant(f"g{i}", rng.integers(15000, 25000, 16, dtype=np.int16), wide((16,), 2.0**-14))
        beta = b.constant(f"o{i}", bias(rng, 16, 1e6), TensorType((16,), "int32"))
        (h,) = b.add("layer_norm", (s, gamma, beta), LayerNormAttrs(), name=f"norm{i}", out_types=(stream,))
        (x,) = b.add("requantize", (h,), NoAttrs(), name=f"narrow{i}", out_types=(act(shape, 0.04, -5),))
    b.outputs = [x]
    return b.freeze()


@pytest.mark.parametrize("float_ops", ["forbid", "allow"])
@pytest.mark.parametrize("numerics", HERE)
def test_a_post_norm_block_is_exact(numerics, float_ops, sessions, rng, require):
    graph = post_norm_block().with_metadata(**{FLOAT_OPS: float_ops})
    assert outcomes([Case(f"block-{float_ops}", graph)], HERE[numerics], sessions, rng, require) == (1, [])


def test_float_forms_stay_in_one_delegate_partition(require):
    require("ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=emit(post_norm_block().with_metadata(**{FLOAT_OPS: "allow"}), "tflite").data)
    interpreter.allocate_tensors()
    assert [op["op_name"] for op in interpreter._get_ops_details()].count("DELEGATE") == 1


def outcomes(cases, table, sessions, rng, require) -> tuple[int, list[str]]:
    """(cases that ran, what differed)."""
    found, how = available(table.runner)
    require(table.runner, found, how)
    session = sessions(table.runner)
    taken = [c for c in cases if c.name not in REFUSED and not table.refusals(c.graph)]
    return len(taken), [w for w in (difference(c.graph, table, session, rng) for c in taken) if w]


@pytest.mark.parametrize("case", [c for cases in CASES.values() for c in cases if c.name in REFUSED], ids=lambda c: c.name)
def test_what_tflite_has_no_form_for_is_refused(case):
    with pytest.raises(UnsupportedOpError) as error:
        emit(case.graph, "tflite")
    assert [p.code for p in error.value.problems] == [REFUSED[case.name]]
    assert all(p.fix for p in error.value.problems)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tensorflow-reference", "tensorflow-xnnpack"])
def test_tensorflow_takes_every_file(kind, sessions, rng, require):
    """TensorFlow's interpreter loads and runs every file; its reference kernels give LiteRT's bytes."""
    require("tensorflow")
    session, table = sessions(kind), HERE["litert-reference"]
    wrong = []
    for case in (c for cases in CASES.values() for c in cases if c.name not in REFUSED):
        if kind == "tensorflow-xnnpack":
            session.load(emit(case.graph, "tflite").data)
            assert session.run(feeds(case.graph, rng, 5))[0].size
        elif not table.refusals(case.graph):
            wrong.append(difference(case.graph, table, session, rng))
    assert [w for w in wrong if w] == []


def test_every_rule_has_a_case():
    """A rule that nothing executes proves nothing."""
    ops = {n.op for cases in CASES.values() for c in cases for n in c.graph.nodes} | {"activation"}
    for table in BACKEND.numerics.values():
        assert {key.split(":")[0] for key in (*table.rules, *table.refuses)} <= ops


def test_missing_runtime_is_named(monkeypatch):
    monkeypatch.setenv("QWTV2_TFLITE_2_14_PYTHON", "/nonexistent/python")
    with pytest.raises(MissingToolError, match=r"tflite-runtime 2\.14\.0") as error:
        Session("tflite-2.14-reference")
    assert "pip install" in error.value.fix
