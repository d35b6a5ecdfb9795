"""Reading .tflite files: round trips, forms our emitter never writes, hostile bytes."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES, feeds

from qwtv2_edge.backends import emit
from qwtv2_edge.errors import GraphError, UnsupportedOpError, UsageError
from qwtv2_edge.ir.types import Quantization
from qwtv2_edge.simulator.run import run
from qwtv2_edge_tflite import BACKEND
from qwtv2_edge_tflite.ops import Emission
from qwtv2_edge_tflite.schema import FlatModel, OperatorRow, TensorRow, enum, serialize

REFERENCE, XNNPACK = BACKEND.numerics["litert-reference"], BACKEND.numerics["litert-xnnpack"]
Q = Quantization.per_tensor(0.05, -3)


@pytest.mark.parametrize("family", CASES)
def test_a_file_reads_back_as_the_graph_it_was_emitted_from(family, rng):
    for case in CASES[family]:
        if BACKEND.check(case.graph, "tflite"):
            continue
        data = emit(case.graph, "tflite").data
        if any(t.dtype == "int16" for t in case.graph.tensors.values()):
            with pytest.raises(UnsupportedOpError, match=r"int16|CAST|int32"):
                BACKEND.read(data)
            continue
        graph = BACKEND.read(data)
        x = feeds(case.graph, rng, 6)
        for numerics in (REFERENCE, XNNPACK):
            if not numerics.refusals(case.graph):
                for a, b in zip(run(case.graph, x, numerics), run(graph, x, numerics), strict=True):
                    assert np.array_equal(a, b), (case.name, numerics.name)


def model(operators, tensors, inputs=(0,), outputs=None) -> bytes:
    """A file from rows; the last tensor is the output unless said otherwise."""
    return serialize(FlatModel("m", "", tuple(tensors), tuple(operators), inputs, outputs or (len(tensors) - 1,), ()))


def act(name, shape, q=Q) -> TensorRow:
    return TensorRow(name, shape, "int8", q)


def ints(name, values) -> TensorRow:
    array = np.asarray(values, np.int32)
    return TensorRow(name, array.shape, "int32", None, array.tobytes())


def op(code, inputs, outputs, options="", **fields) -> OperatorRow:
    return OperatorRow(code, 1, inputs, outputs, options, tuple(fields.items()))


def simulate(data: bytes, *x: np.ndarray) -> list[np.ndarray]:
    return run(BACKEND.read(data), x, REFERENCE)


X = np.arange(-60, 60, dtype=np.int8).reshape(1, 4, 5, 6)


def test_split_and_strided_slice_with_a_dropped_axis():
    rows = [act("x", (1, 4, 5, 6)), ints("axis", 3), act("a", (1, 4, 5, 3)), act("b", (1, 4, 5, 3))]
    split = op("SPLIT", (1, 0), (2, 3), "SplitOptions", NumSplits=2)
    a, b = simulate(model([split], rows, outputs=(2, 3)), X)
    assert np.array_equal(a, X[..., :3])
    assert np.array_equal(b, X[..., 3:])

    rows = [
        act("x", (1, 4, 5, 6)),
        ints("begin", [0, -3, 0, 0]),
        ints("end", [0, 9, -1, 1]),
        ints("step", [1, 1, 2, 1]),
        act("y", (1, 3, 2)),
    ]
    cut = op("STRIDED_SLICE", (0, 1, 2, 3), (4,), "StridedSliceOptions", BeginMask=1, EndMask=1, ShrinkAxisMask=8)
    (y,) = simulate(model([cut], rows), X)
    assert np.array_equal(y, X[:, -3:, 0:-1:2, 0])


def test_depth_to_space_and_back():
    rows = [act("x", (1, 2, 3, 8)), act("d", (1, 4, 6, 2)), act("y", (1, 2, 3, 8))]
    ops = [
        op("DEPTH_TO_SPACE", (0,), (1,), "DepthToSpaceOptions", BlockSize=2),
        op("SPACE_TO_DEPTH", (1,), (2,), "SpaceToDepthOptions", BlockSize=2),
    ]
    x = np.arange(48, dtype=np.int8).reshape(1, 2, 3, 8)
    d, y = simulate(model(ops, rows, outputs=(1, 2)), x)
    assert np.array_equal(y, x)
    assert d[0, 1, 2].tolist() == x[0, 0, 1, 4:6].tolist()


def test_pool_with_fused_activation_and_missing_bias():
    rows = [act("x", (1, 4, 4, 2)), act("y", (1, 2, 2, 2))]
    pool = op(
        "MAX_POOL_2D", (0,), (1,), "Pool2DOptions", Padding=enum("Padding", "VALID"), StrideW=2, StrideH=2, FilterWidth=2, FilterHeight=2,
        FusedActivationFunction=enum("ActivationFunctionType", "RELU"),
    )  # fmt: skip
    x = np.arange(-16, 16, dtype=np.int8).reshape(1, 4, 4, 2)
    (y,) = simulate(model([pool], rows), x)
    assert np.array_equal(y, np.maximum(x.reshape(1, 2, 2, 2, 2, 2).max((2, 4)), -3))

    weights = TensorRow("w", (3, 6), "int8", Quantization((0.1, 0.2, 0.3), (0, 0, 0), 0), np.ones((3, 6), np.int8).tobytes())
    rows = [act("x", (1, 6)), weights, act("y", (1, 3), Quantization.per_tensor(0.5, 0))]
    dense = op("FULLY_CONNECTED", (0, 1, -1), (2,), "FullyConnectedOptions")
    (y,) = simulate(model([dense], rows), np.full((1, 6), 7, np.int8))
    assert y.tolist() == [[round(60 * 0.05 * s / 0.5) for s in (0.1, 0.2, 0.3)]]


def test_every_unsupported_operator_is_listed():
    rows = [act("x", (1, 4)), act("a", (1, 4)), act("b", (1, 4)), TensorRow("y", (1, 4), "int16", Q)]
    ops = [op("COS", (0,), (1,)), op("EXP", (1,), (2,)), op("LOGISTIC", (2,), (3,))]
    with pytest.raises(UnsupportedOpError) as error:
        BACKEND.read(model(ops, rows))
    assert [(p.code, p.node) for p in error.value.problems] == [("op", "a"), ("op", "b"), ("dtype", "y")]


@pytest.mark.parametrize(
    ("rows", "operator"),
    [
        ([act("x", (1, 4)), act("y", (1, 5))], op("LOGISTIC", (0,), (1,))),
        ([act("x", (1, 4)), ints("shape", [2, 3]), act("y", (2, 3))], op("RESHAPE", (0, 1), (2,), "ReshapeOptions")),
        ([act("x", (1, 0)), act("y", (1, 0))], op("LOGISTIC", (0,), (1,))),
        ([act("x", (2**20, 2**20)), act("y", (2**20, 2**20))], op("LOGISTIC", (0,), (1,))),
        ([act("x", (1, 4)), ints("axes", [7]), act("y", (1,))], op("MEAN", (0, 1), (2,), "ReducerOptions")),
        (
            [act("x", (1, 2, 2, 1)), act("y", (1, 1, 1, 1))],
            op("MAX_POOL_2D", (0,), (1,), "Pool2DOptions", Padding=0, StrideW=1, StrideH=1, FilterWidth=2**30, FilterHeight=1),
        ),
    ],
    ids=["shape", "reshape", "empty", "huge", "axis", "window"],
)
def test_what_does_not_add_up_is_refused(rows, operator):
    with pytest.raises(GraphError):
        BACKEND.read(model([operator], rows))


def test_constants_must_match_their_shapes():
    case = next(c for c in CASES["linear"] if c.name == "fc-small-per-channel-random")
    e = Emission(case.graph)
    rows = [TensorRow(r.name, r.shape, r.dtype, r.quantization, r.data[:-1]) if r.data else r for r in _rows(e, case)]
    with pytest.raises(GraphError, match="needs"):
        BACKEND.read(serialize(FlatModel("m", "", tuple(rows), tuple(e.operators), (0,), (e.index["y"],), ())))


def _rows(e: Emission, case) -> list[TensorRow]:
    from qwtv2_edge_tflite.ops import RULES

    for name in case.graph.inputs:
        e.use(name)
    for node in case.graph.nodes:
        RULES[node.op].emit(e, node)
    return e.rows


def test_other_files_are_refused(tmp_path):
    with pytest.raises(GraphError, match="TFL3"):
        BACKEND.read(b"PK\x03\x04" * 100)
    with pytest.raises(GraphError):
        BACKEND.read(b"")
    with pytest.raises(UsageError):
        BACKEND.read(tmp_path / "absent.tflite")


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One of: cut short, bits flipped, a 32-bit word replaced, a piece taken out."""
    d = bytearray(data)
    match int(rng.integers(4)):
        case 0:
            del d[int(rng.integers(len(d))) :]
        case 1:
            for _ in range(int(rng.integers(1, 6))):
                d[int(rng.integers(len(d)))] ^= 1 << int(rng.integers(8))
        case 2:
            for _ in range(int(rng.integers(1, 4))):
                at = int(rng.integers(len(d) // 4)) * 4
                d[at : at + 4] = int(rng.choice([0, 1, 2**32 - 1, 2**31 - 1, 2**31, rng.integers(4096)])).to_bytes(4, "little")
        case _:
            at = int(rng.integers(len(d)))
            del d[at : at + int(rng.integers(1, 64))]
    return bytes(d)


@pytest.mark.parametrize("family", CASES)
def test_damaged_files_give_an_error_or_a_graph_never_a_crash(family, rng):
    files = [emit(c.graph, "tflite").data for c in CASES[family][:40] if not BACKEND.check(c.graph, "tflite")]
    refused = 0
    for _ in range(300):
        data = damaged(files[int(rng.integers(len(files)))], rng)
        try:
            BACKEND.read(data)
        except (GraphError, UnsupportedOpError):
            refused += 1
    assert refused > 100


def test_every_truncation_is_refused():
    case = next(c for c in CASES["conv"] if c.name == "conv2d-3x3-same-random")
    data = emit(case.graph, "tflite").data
    for size in range(0, len(data) - 16, 7):
        with pytest.raises(GraphError):
            BACKEND.read(data[:size])
