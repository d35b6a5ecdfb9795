"""Times per op: which operators and nodes stand behind what a runtime reports, and what can't be told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from small_graphs import integer_graph

from qwtv2_edge.backends import TARGETS, Artifact, EmitOptions, emit
from qwtv2_edge.errors import RunError
from qwtv2_edge.profiling.ops import KERNELS, _emitted, align, behind, by_node, instructions_of_ops, stages, text_lines, trace
from qwtv2_edge.runners import worker
from qwtv2_edge.runners.base import Job
from qwtv2_edge.runners.host import OpEvent, OpEvents


def chain(*codes: str) -> tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]:
    """Operators of a file, each reading what the one before made."""
    return tuple((code, (i,), (i + 1,)) for i, code in enumerate(codes))


def delegated(*kernels: str, start: int = 0) -> tuple[OpEvent, ...]:
    return tuple(OpEvent(f"{k} (NC, X8)", "delegate", start + i, 1000.0 * (i + 1)) for i, k in enumerate(kernels))


def kept(*numbers: int) -> tuple[OpEvent, ...]:
    return tuple(OpEvent("OP", "operator", n, 500.0) for n in numbers)


CODES = ("QUANTIZE", "CONV_2D", "ADD", "MEAN", "RESHAPE", "FULLY_CONNECTED", "DEQUANTIZE")
RAN = ("Convert", "Convolution", "Add", "Clamp", "Mean", "Static Reshape", "Fully Connected", "Convert")
TOLD = OpEvents(delegated(*RAN), chain(*CODES), 10.0, 12.0, 5)
ARTIFACT = Artifact("tflite", b"", CODES, ("in", "conv", "sum", "pool", "pool", "head", "out"))


@pytest.mark.parametrize(
    ("kernels", "codes", "found"),
    [
        ("Convolution,Fully Connected", "CONV_2D,CONV_2D", [{0}, {1}]),
        ("Convolution,Convolution", "PAD,CONV_2D,DEPTHWISE_CONV_2D", [{1}, {2}]),
        ("Add,Clamp,Convolution", "ADD,CONV_2D", [{0}, {0}, {1}]),
        ("Copy,Copy,Copy,Add", "CONCATENATION,ADD", [{0}, {0}, {0}, {1}]),
        ("Mean,Static Reshape,Fully Connected", "MEAN,RESHAPE,RESHAPE,FULLY_CONNECTED", [{0}, {0, 1, 2, 3}, {3}]),
        ("Convolution,Invalid Unary Op,Convolution", "CONV_2D,LOGISTIC,MUL,CONV_2D", [{0}, {2}, {3}]),
        ("Sigmoid,Multiply", "LOGISTIC,MUL", [{0}, {1}]),
        ("Wonder,Add", "NEW_OP,ADD", [{0}, {1}]),
        ("", "RESHAPE", []),
    ],
)
def test_operators_behind_kernels(kernels, codes, found):
    assert align(kernels.split(",") if kernels else [], codes.split(",")) == found


@pytest.mark.parametrize(
    ("kernels", "codes"),
    [
        (["Convolution"], ["CONV_2D", "CONV_2D"]),
        (["Convolution", "Convolution"], ["CONV_2D"]),
        (["Add", "Convolution"], ["CONV_2D", "ADD"]),
        (["Invalid Unary Op"], ["LOGISTIC"]),
        (["Clamp"], ["CONV_2D"]),
        ([], ["ADD", "MUL"]),
    ],
)
def test_kernels_that_operators_do_not_explain(kernels, codes):
    with pytest.raises(RunError, match="can't be those of"):
        align(kernels, codes)


def test_stages_run_as_large_as_they_can_be():
    # two branches from tensor 0: 0-1-2 with a kept operator 1, and 3 alone; operator 4 joins them
    operators = (
        ("CONV_2D", (0,), (1,)),
        ("SOFTMAX", (1,), (2,)),
        ("CONV_2D", (2,), (3,)),
        ("CONV_2D", (0,), (4,)),
        ("ADD", (3, 4), (5,)),
    )
    events = (*delegated("Convolution", "Convolution"), *kept(1), *delegated("Convolution", "Add"))
    told = OpEvents(events, operators)
    assert stages(told) == [(True, [0, 3]), (False, [1]), (True, [2, 4])]
    assert behind(told) == [{0}, {3}, {1}, {2}, {4}]


def test_operators_in_a_ring():
    with pytest.raises(RunError, match="wait for each other"):
        stages(OpEvents(kept(0, 1), (("ADD", (1,), (0,)), ("ADD", (0,), (1,)))))


def test_nodes_of_operators():
    rows, doubt = trace(TOLD, ARTIFACT, None)
    assert doubt == ""
    # the reshape may belong to the mean, to the RESHAPE or to the fully connected layer
    assert [r["node"] for r in rows] == ["in", "conv", "sum", "sum", "pool", "", "head", "out"]
    assert [r["op"] for r in rows] == [
        "QUANTIZE",
        "CONV_2D",
        "ADD",
        "ADD",
        "MEAN",
        "Static Reshape (NC, X8)",
        "FULLY_CONNECTED",
        "DEQUANTIZE",
    ]
    assert rows[1]["kernel"] == "Convolution (NC, X8)"
    assert sum(r["percent"] for r in rows) == pytest.approx(100)
    assert sum(r["ms"] for r in rows) == pytest.approx(36e-3)


SHUFFLED = {
    "kernels of one stage": replace(TOLD, events=TOLD.events[::-1]),
    "two kernels of one kind": replace(TOLD, events=(TOLD.events[-1], *TOLD.events[1:-1], TOLD.events[0])),
    "kept operators": OpEvents(kept(0, 2, 1), chain("ADD", "ADD", "ADD")),
    "stages": OpEvents((*kept(1), *delegated("Add")), chain("ADD", "ADD")),
    "one kernel lost": replace(TOLD, events=TOLD.events[:-1]),
    "another file": replace(TOLD, operators=chain(*CODES[::-1])),
}


@pytest.mark.parametrize("told", SHUFFLED.values(), ids=SHUFFLED)
def test_events_that_do_not_fit_have_no_nodes(told):
    artifact = replace(ARTIFACT, ops=ARTIFACT.ops[: len(told.operators)], nodes=ARTIFACT.nodes[: len(told.operators)])
    rows, doubt = trace(told, artifact, None)
    assert doubt.startswith("ops have no nodes: ")
    assert [r["node"] for r in rows] == [""] * len(told.events)
    assert [r["op"] for r in rows] == [e.op for e in told.events]


def test_without_a_graph_operators_are_known_but_no_nodes():
    rows, doubt = trace(TOLD, None, None)
    assert "no graph" in doubt
    assert rows[1]["op"] == "CONV_2D"
    assert {r["node"] for r in rows} == {""}


PROGRAM = Artifact(
    "executorch-xnnpack",
    b"",
    (
        "aten::add.out",
        "XnnpackBackend[0]::XNNPad",
        "XnnpackBackend[0]::XNNConv2d",
        "XnnpackBackend[1]::XNNAdd",
        "XnnpackBackend[1]::XNNClamp",
    ),
    ("a", "b", "b", "c", "d"),
)


def steps(count: int) -> OpEvents:
    return OpEvents(tuple(OpEvent("", "instruction", i, 100.0) for i in range(count)))


def test_nodes_of_instructions():
    rows, doubt = trace(steps(3), PROGRAM, None)
    assert doubt == ""
    assert [(r["op"], r["node"]) for r in rows] == [("aten::add.out", "a"), ("XNNPad+XNNConv2d", "b"), ("XNNAdd+XNNClamp", "")]


def test_instructions_of_another_program():
    rows, doubt = trace(steps(4), PROGRAM, None)
    assert "which has 3" in doubt
    assert [r["op"] for r in rows] == ["instruction 0", "instruction 1", "instruction 2", "instruction 3"]
    reordered = replace(steps(3), events=steps(3).events[::-1])
    assert "out of order" in trace(reordered, PROGRAM, None)[1]


@pytest.mark.parametrize("target", TARGETS)
def test_every_op_of_an_artifact_has_its_node(target):
    graph = integer_graph()
    artifact = emit(graph, target)
    assert len(artifact.nodes) == len(artifact.ops)
    order = [n.name for n in graph.nodes]
    places = [order.index(name) for name in artifact.nodes]
    assert places == sorted(places)
    # generated C takes and gives codes
    boundary = {n.name for n in graph.nodes if n.op in ("quantize", "dequantize")} if target == "c" else set()
    assert set(artifact.nodes) == set(order) - boundary


def test_a_delegate_call_per_node():
    graph = integer_graph()
    whole, apart = emit(graph, "executorch-xnnpack"), emit(graph, "executorch-xnnpack", EmitOptions(separate=True))
    calls = {op.partition("::")[0]: node for op, node in zip(apart.ops, apart.nodes, strict=True)}
    assert list(calls.values()) == list(dict.fromkeys(apart.nodes))
    assert apart.nodes == whole.nodes
    assert len(calls) > len({op.partition("::")[0] for op in whole.ops})


@pytest.mark.parametrize("target", TARGETS)
def test_an_artifact_is_known_by_its_bytes(target):
    graph, other = integer_graph(), integer_graph(1)
    data = emit(graph, target, EmitOptions({"manifest_sha256": "ab" * 32})).data
    found = _emitted(Job(target, "", data, ()), graph)
    assert found is not None
    assert found.data == data
    assert _emitted(Job(target, "", data, ()), other) is None
    assert _emitted(Job(target, "", data[:-1], ()), graph) is None
    assert _emitted(Job(target, "", data, ()), None) is None


def test_nodes_are_grouped_and_the_rest_summed():
    graph = integer_graph()
    rows, _ = trace(TOLD, replace(ARTIFACT, nodes=("conv", "conv", "sum", "pool", "pool", "head", "out")), graph)
    groups = by_node(rows)
    assert [g["ms"] for g in groups] == sorted((g["ms"] for g in groups), reverse=True)
    assert next(g for g in groups if g["node"] == "conv")["ops"] == 2
    assert next(g for g in groups if g["node"] == "(Static Reshape (NC, X8))")["ops"] == 1
    lines = text_lines(rows, top=2)
    assert len(lines) == 3
    assert lines[-1].endswith(f"{len(groups) - 2} more")
    assert sum(float(line.split()[0]) for line in lines) == pytest.approx(36e-3)
    assert len(text_lines(rows, top=20)) == len(groups)
    json.dumps(rows)


def test_memory_of_another_release_is_left_alone():
    with pytest.raises(worker.NoOpTimes, match=r"numpy 0\.1 on 64-bit"):
        worker.check_release("numpy", "0.1")


def test_kernels_are_names_and_no_parts_of_them():
    assert all(isinstance(names, tuple) for names in KERNELS.values())
    with pytest.raises(RunError, match="can't be those"):
        align(["Sig"], ["LOGISTIC"])


def test_instructions_are_shown_where_there_are_no_times():
    graph = integer_graph()
    first, second = (n.name for n in graph.nodes[:2])
    rows = instructions_of_ops({first: 1000, second: 3000, "unknown": 0}, graph)
    assert [(r["index"], r["op"], r["ms"], r["instructions"], r["percent"]) for r in rows] == [
        (0, graph.nodes[0].op, None, 1000, 25.0),
        (1, graph.nodes[1].op, None, 3000, 75.0),
        (2, "", None, 0, 0.0),
    ]
    lines = text_lines(rows, top=1)
    assert lines[0].split()[:4] == ["3,000", "75.0", "%", second]
    assert lines[1].split() == ["1,000", "25.0", "%", "2", "more"]
