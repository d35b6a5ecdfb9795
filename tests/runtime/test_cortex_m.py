"""Cortex-M programs: every byte against the operators' Python forms and TFLite Micro, and against the real kernels where a
library of them is named; what the programs hold; what is refused."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from cases import CASES, feeds
from cases.build import RANDOM, Case, act, draw_act, op_case, weighted_case
from property import graphs
from requirements import missing
from small_graphs import integer_graph

import qwtv2_edge as qe
from qwtv2_edge.backends import EmitOptions, emit, get_numerics
from qwtv2_edge.errors import QuantizeError, RunError, UnsupportedOpError, UsageError
from qwtv2_edge.ir import Graph, GraphBuilder, Quantization, TensorType
from qwtv2_edge.ir.text import to_text
from qwtv2_edge.ops.conv import Conv2DAttrs, DepthwiseAttrs, TransposeConvAttrs
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.layout import ConcatAttrs, ResizeAttrs, SliceAttrs
from qwtv2_edge.ops.linear import FullyConnectedAttrs
from qwtv2_edge.ops.pool import PoolAttrs, ReduceAttrs, SoftmaxAttrs
from qwtv2_edge.ops.spec import NoAttrs
from qwtv2_edge.runners.host import Session, available
from qwtv2_edge.simulator.run import run
from qwtv2_edge_executorch import BACKEND
from qwtv2_edge_executorch.cortex_m import _Scatter
from qwtv2_edge_executorch.cortex_m_proxy import KERNELS
from qwtv2_edge_executorch.program import ProgramBuilder, _View

pytestmark = pytest.mark.runtime

TARGET = "executorch-cortex-m"
CORES = ("cortex-m3", "cortex-m4", "cortex-m55")


def _session(monkeypatch: pytest.MonkeyPatch, kernels: str):
    for tool in ("executorch", "tflite-micro"):
        found, how = available(tool)
        if not found:
            missing(tool, how)
    if kernels:
        monkeypatch.setenv(KERNELS, kernels)
    else:
        monkeypatch.delenv(KERNELS, raising=False)
    return Session(TARGET)


#: a library of the real kernels, compiled for this machine, or ""
LIBRARY = os.environ.get(KERNELS, "")


@pytest.fixture(scope="module", params=["", LIBRARY] if LIBRARY else [""], ids=["proxy", "kernels"] if LIBRARY else ["proxy"])
def session(request):
    """The proxy, and the real kernels where a library of them is named."""
    with pytest.MonkeyPatch.context() as patch, _session(patch, request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def proxy():
    """The proxy alone."""
    with pytest.MonkeyPatch.context() as patch, _session(patch, "") as opened:
        opened.load(emit(integer_graph(), TARGET).data)  # now, as long as no library is named
        yield opened


def difference(graph: Graph, session: Session, rng, samples: int = 24, core: str = "") -> str:
    """ "" when every byte agrees, else what differs."""
    x = feeds(graph, rng, samples)
    session.load(emit(graph, TARGET, EmitOptions(core=core)).data)
    actual, expected = session.run(x), run(graph, x, get_numerics(TARGET))
    for name, e, a in zip(graph.outputs, expected, actual, strict=True):
        if e.shape != a.shape or e.dtype != a.dtype:
            return f"{graph.name}: '{name}' is {a.dtype}{a.shape}, expected {e.dtype}{e.shape}"
        if (e != a).any():
            return f"{graph.name}: '{name}' differs in {np.count_nonzero(e != a)} of {e.size}"
    return ""


def taken(cases: list[Case]) -> list[Case]:
    return [c for c in cases if not BACKEND.check(c.graph, TARGET)]


@pytest.mark.parametrize("family", [f for f, cases in CASES.items() if f not in ("norm", "index")])
def test_every_case_is_exact(family, session, rng):
    cases = taken(CASES[family])
    assert len(cases) > 20
    assert [w for c in cases if (w := difference(c.graph, session, rng))] == []


def test_every_rule_has_a_case_that_is_taken():
    found = {n.op for cases in CASES.values() for c in taken(cases) for n in c.graph.nodes}
    assert set(get_numerics(TARGET).rules) <= found | {"activation"}


def test_every_case_is_taken_or_refused_with_a_reason():
    for cases in CASES.values():
        for case in cases:
            for problem in BACKEND.check(case.graph, TARGET):
                assert problem.message
                assert problem.fix


@pytest.mark.parametrize("core", CORES)
def test_programs_for_one_core_are_exact(core, session, rng):
    """On cores with MVE a linear layer's bias is part of its kernel sums, where kernels for this machine don't look for it."""
    cases = [c.graph for f in ("linear", "conv", "pool") for c in taken(CASES[f])[::6]]
    if core == "cortex-m55" and os.environ.get(KERNELS):
        cases = [g for g in cases if "cortex_m::quantized_linear.out" not in emit(g, TARGET).ops]
    assert [w for g in cases if (w := difference(g, session, rng, core=core))] == []


# ---------------------------------------------------------------- shapes of programs


def codes(shape, scale=0.05, zero_point=3) -> TensorType:
    return TensorType(tuple(shape), "int8", Quantization.per_tensor(scale, zero_point))


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_parts_of_tensors(axis, session, rng):
    """Slices that begin in the middle, of an input, of a result and of both outputs of one; joined again in another order."""
    b = GraphBuilder("parts")
    shape = (1, 4, 6, 8)
    x = b.input("x", codes(shape))
    (y,) = b.add("logistic", (x,), NoAttrs(), name="logistic", out_types=(codes(shape),))
    pieces = []
    for i, (source, begin, end) in enumerate([(x, 1, 3), (y, 2, 4), (y, 0, 1)]):
        low, high = [0] * 4, list(shape)
        low[axis], high[axis] = begin, end
        out = [h - lo for lo, h in zip(low, high, strict=True)]
        (piece,) = b.add("slice", (source,), SliceAttrs(tuple(low), tuple(high), (1,) * 4), name=f"piece{i}", out_types=(codes(out),))
        pieces.append(piece)
    joined = [*shape]
    joined[axis] = 9
    order = (pieces[1], pieces[0], pieces[1], pieces[2], pieces[0])
    (z,) = b.add("concat", order, ConcatAttrs(axis), name="joined", out_types=(codes(joined),))
    b.outputs = [z, pieces[0], y]
    assert difference(b.freeze(), session, rng) == ""


@pytest.mark.parametrize("axes", [(0, 2), (1, 3), (0, 1, 3), (3,), (0, 1, 2, 3)])
@pytest.mark.parametrize("op", ["mean", "sum", "reduce_max"])
def test_reductions(op, axes, session, rng):
    """Axes that don't lie side by side come together first."""
    x = draw_act(rng, (2, 3, 4, 5), RANDOM)
    out = x.quantization if op == "reduce_max" else Quantization.per_tensor(x.scale * (0.3 if op == "mean" else 9), 7)
    assert difference(op_case(op, op, ReduceAttrs(axes), [x], out).graph, session, rng) == ""


@pytest.mark.parametrize("op", ["add", "sub", "mul"])
@pytest.mark.parametrize("small", [(2, 1, 1, 5), (1, 3, 1, 5), (4, 5), (3, 1, 1), (1, 1, 1, 1), (2, 3, 1, 1)])
def test_broadcasts(op, small, session, rng):
    x, y = draw_act(rng, (2, 3, 4, 5), RANDOM), draw_act(rng, small, RANDOM)
    out = Quantization.per_tensor(x.scale * y.scale * 99 if op == "mul" else max(x.scale, y.scale), 7)
    codes = rng.integers(-128, 128, small, np.int8)
    row = draw_act(rng, (1, 1, 1, 5), RANDOM), draw_act(rng, (2, 3, 4, 1), RANDOM)
    crossed = (list(row), {1: rng.integers(-128, 128, row[1].shape, np.int8)})
    for operands, constants in (([x, y], {}), ([y, x], {}), ([x, y], {1: codes}), ([y, x], {0: codes}), crossed):
        assert difference(op_case(op, op, BinaryAttrs(), operands, out, constants=constants).graph, session, rng) == ""


#: steps of random graphs that this target never takes
REFUSED = {"layer_norm", "channel_scale", "channel_add", "l2_normalize", "argmax", "mask_fill", "attention", "resize_bilinear"}


def images(m: graphs.Maker) -> tuple[int, ...]:
    """Several samples at times, and more than 16 channels, from which CMSIS-NN computes otherwise."""
    return (m.pick([1, 1, 1, 2, 3]), m.int(1, 9), m.int(1, 9), m.pick([1, 2, 3, 4, 8, 17, 33]))


def search(seeds: range, session: Session) -> None:
    """Programs of random graphs for random cores: every byte, and the same file each time."""
    compared = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        graph = graphs.make_graph(seed, range(int(rng.integers(2, 8))), powers=bool(seed % 3 == 0), real=bool(seed % 4 == 0))
        core = "" if LIBRARY else str(rng.choice(["", *CORES]))
        if BACKEND.check(graph, TARGET):
            continue
        try:
            assert difference(graph, session, rng, 6, core) == "", f"seed {seed}\n{to_text(graph)}"
        except QuantizeError:
            continue  # inputs on which the runtime overflows
        assert emit(graph, TARGET).data == emit(graph, TARGET).data
        compared += 1
    assert compared >= 0.4 * len(seeds)


@pytest.fixture
def own_steps(monkeypatch):
    """Random graphs of the ops and shapes that matter here."""
    monkeypatch.setattr(graphs, "OFFERED", {key: [op for op in ops if op not in REFUSED] for key, ops in graphs.OFFERED.items()})
    monkeypatch.setattr(graphs, "input_shape", images)


def test_random_graphs(own_steps, session):
    search(range(60), session)


@pytest.mark.slow
def test_many_random_graphs(own_steps, session):
    first = int(os.environ.get("QWTV2_FUZZ_SEED", "20261121"))
    search(range(first, first + int(os.environ.get("QWTV2_FUZZ_GRAPHS", "2000"))), session)


def test_several_samples_at_once(session, rng):
    """Convolutions, pools, means and products with a batch of 3."""
    grid, attrs = RANDOM, Conv2DAttrs(padding=((1, 1), (1, 1)))
    x = draw_act(rng, (3, 5, 5, 4), grid)
    mean = Quantization.per_tensor(x.scale / 4, 7)
    graphs = [
        weighted_case("conv", "conv2d", attrs, (3, 5, 5, 4), (6, 3, 3, 4), 0, 0, rng, grid),
        weighted_case("depthwise", "depthwise_conv2d", DepthwiseAttrs(padding=attrs.padding), (3, 5, 5, 4), (1, 3, 3, 8), 3, 3, rng, grid),
        weighted_case("linear", "fully_connected", FullyConnectedAttrs(), (3, 7, 11), (5, 11), 0, 0, rng, grid),
        op_case("avg", "avg_pool2d", PoolAttrs((3, 3), (2, 2), ((1, 1), (1, 1))), [x], x.quantization),
        op_case("max", "max_pool2d", PoolAttrs((3, 3), (2, 2), ((1, 1), (1, 1))), [x], x.quantization),
        op_case("mean", "mean", ReduceAttrs((1, 2)), [x], mean),
    ]
    assert [w for c in graphs if (w := difference(c.graph, session, rng, 4))] == []


@pytest.mark.parametrize(
    ("kernel", "stride", "crop", "channels"),
    [
        ((3, 3), (2, 2), ((1, 1), (1, 1)), 20),  # CMSIS-NN's reversed kernel
        ((4, 4), (2, 2), ((1, 1), (1, 1)), 32),
        ((6, 6), (2, 2), ((2, 2), (2, 2)), 4),
        ((5, 5), (3, 3), ((3, 3), (3, 3)), 4),
        ((3, 3), (2, 2), ((0, 0), (1, 1)), 4),
        ((4, 4), (2, 2), ((1, 1), (1, 1)), 4),  # rows that the direct kernel would write to wrong places are cut off afterwards
        ((3, 3), (2, 2), ((1, 0), (1, 0)), 4),
        ((5, 3), (3, 2), ((2, 2), (0, 0)), 4),
        ((5, 5), (3, 3), ((4, 2), (4, 2)), 4),
        ((3, 3), (2, 2), ((0, 2), (2, 3)), 4),  # more at the end, which padding doesn't take off
        ((3, 3), (2, 2), ((3, 0), (3, 0)), 20),  # a stride more at the beginning
        ((2, 2), (3, 3), ((1, -1), (0, -2)), 4),  # beyond the last window
    ],
)
def test_transposed_convolutions(kernel, stride, crop, channels, session, rng):
    attrs = TransposeConvAttrs(stride, crop)
    case = weighted_case("transposed", "transpose_conv2d", attrs, (1, 5, 5, channels), (3, *kernel, channels), 0, 0, rng, RANDOM)
    assert difference(case.graph, session, rng) == ""


def test_the_proxy_refuses_what_kernels_compute_wrong(proxy, monkeypatch, rng):
    """PyTorch computes them right, so that bytes alone would not tell."""

    def asked(size: int, kernel: int, stride: int, crop: tuple[int, int], kind: str) -> _Scatter:
        return _Scatter(kernel, crop[0], 0, 0)

    monkeypatch.setattr("qwtv2_edge_executorch.cortex_m._scatter", asked)
    for kernel, stride, padding, channels in ((3, 2, 1, 4), (3, 2, 2, 4), (1, 2, 0, 4), (2, 2, 2, 20)):
        attrs = TransposeConvAttrs((stride, stride), ((padding, padding), (0, 0)))
        shapes = (1, 5, 5, channels), (3, kernel, kernel, channels)
        case = weighted_case("transposed", "transpose_conv2d", attrs, *shapes, 0, 0, rng, RANDOM)
        with pytest.raises(RunError, match="or computes them wrong"):
            difference(case.graph, proxy, rng)


def test_a_linear_layer_with_a_scale_per_channel_is_a_convolution(session, rng):
    """As compensation leaves it; ``quantized_linear`` would honour the first multiplier only."""
    cases = {}
    for per_tensor in (False, True):
        case = weighted_case("fc", "fully_connected", FullyConnectedAttrs(), (1, 9), (5, 9), 0, 0, rng, RANDOM, per_tensor=per_tensor)
        cases[per_tensor] = emit(case.graph, TARGET).ops
        assert difference(case.graph, session, rng) == ""
    assert cases[False] == ("cortex_m::quantized_conv2d.out",)
    assert cases[True] == ("cortex_m::quantized_linear.out",)


def test_the_proxy_executes_the_file(proxy, rng):
    """One changed byte of a stored multiplier changes what comes out."""
    case = weighted_case("conv", "conv2d", Conv2DAttrs(), (1, 4, 4, 3), (5, 2, 2, 3), 0, 0, rng, RANDOM)
    data = emit(case.graph, TARGET).data
    from qwtv2_edge import fixedpoint as fp

    x, w = (case.graph.tensors[t] for t in ("x", "w"))
    scale = fp.effective_scale("REF", x.scale, w.quantization.scale_array, case.graph.tensors["y"].scale)
    m = fp.quantize_multiplier(scale)[0].astype(np.int32)
    assert data.count(m.tobytes()) == 1
    halved = data.replace(m.tobytes(), (m // 2).tobytes())
    feed = feeds(case.graph, rng, 8)
    proxy.load(data)
    (right,) = proxy.run(feed)
    proxy.load(halved)
    (wrong,) = proxy.run(feed)
    assert (right != wrong).mean() > 0.2


def test_bias_and_kernel_sums_must_agree(proxy, rng):
    """A program for every core has both; each core reads one of them."""
    case = weighted_case("fc", "fully_connected", FullyConnectedAttrs(), (1, 9), (5, 9), 0, 0, rng, RANDOM, per_tensor=True)
    data, bias = emit(case.graph, TARGET).data, case.graph.constants["b"]
    assert data.count(bias.tobytes()) == 1
    proxy.load(data.replace(bias.tobytes(), (bias + 10**6).tobytes()))
    with pytest.raises(RunError, match="one result with its bias and another"):
        proxy.run(feeds(case.graph, rng, 8))


@pytest.mark.parametrize("over", ["scratch", "output"])
def test_memory_in_use_is_seen(over, proxy, monkeypatch, rng):
    """Kernels write to their output and to their scratch memory at any time: laid over an input, they destroy that."""
    case = weighted_case("conv", "conv2d", Conv2DAttrs(padding=((1, 1), (1, 1))), (1, 16, 16, 8), (5, 3, 3, 8), 0, 0, rng, RANDOM)
    plan = ProgramBuilder.plan

    def overlapping(builder: ProgramBuilder) -> int:
        end = plan(builder)
        views = [v for v in builder._values if isinstance(v, _View)]
        (written,) = {v.storage for v in views if (v.dtype == np.uint8 if over == "scratch" else v.shape == (1, 16, 16, 5))}
        (x,) = {v.storage for v in views if v.shape == (1, 16, 16, 8)}
        builder._storages[written].offset = builder._storages[x].offset
        return end

    assert difference(case.graph, proxy, rng) == ""
    monkeypatch.setattr(ProgramBuilder, "plan", overlapping)
    if over == "scratch":
        assert "differs in" in difference(case.graph, proxy, rng, core="cortex-m3")
    else:
        with pytest.raises(RunError, match="quantized_conv2d writes over what it reads"):
            difference(case.graph, proxy, rng)


def test_a_library_of_kernels_that_is_none(monkeypatch, tmp_path):
    (tmp_path / "kernels.so").write_text("none")
    with (
        _session(monkeypatch, str(tmp_path / "kernels.so")) as session,
        pytest.raises(RunError, match=rf"\${KERNELS} names no library .*too short; without it"),
    ):
        session.load(emit(integer_graph(), TARGET).data)


def test_the_plain_runtime_misses_the_operators_only():
    """ExecuTorch's own loader takes the file and stops at the first operator that its package has no kernel for."""
    found, how = available("executorch")
    if not found:
        missing("executorch", how)
    artifact = emit(integer_graph(), TARGET)
    with Session("executorch") as session, pytest.raises(RunError, match=r"Missing operator: .* cortex_m::") as error:
        session.load(artifact.data)
    assert f"There are {len(artifact.ops)} instructions don't have corresponding operator" in str(error.value)


@pytest.mark.parametrize("name", ["resnet8", "ds_cnn", "mobilenet_v1", "autoencoder"])
@pytest.mark.slow
def test_networks_are_exact(name, data_dir, session):
    pytest.importorskip("torch")
    from models import tiny_mlperf as tiny

    sizes = {} if name == "autoencoder" else {"softmax": True}
    calibration = tiny.smooth_frames(64) if name == "autoencoder" else tiny.load_data(name)[0][:64]
    samples = tiny.smooth_frames(8, 1) if name == "autoencoder" else tiny.load_data(name, "eval")[0][:8]
    result = qe.quantize(qe.capture(tiny.BUILDERS[name](data_dir, **sizes), (samples[:1],)), calibration)
    artifact = emit(result.graph, TARGET)
    session.load(artifact.data)
    expected = run(result.graph, [samples], get_numerics(TARGET))
    assert np.array_equal(session.run([samples])[0], expected[0])
    assert {op.split("::")[0] for op in artifact.ops} == {"cortex_m"}


def test_verify_tells_how_it_was_checked(rng):
    with pytest.MonkeyPatch.context() as patch:
        _session(patch, "").close()
        graph = integer_graph()
        report = qe.verify(graph, qe.emit(graph, TARGET), rng.normal(size=(3, *graph.tensors["x"].shape[1:])).astype(np.float32))
    (result,) = report.results.values()
    assert (result.status, result.mismatches) == ("exact", 0)
    assert "by proxy: no Cortex-M runtime is executed" in result.runtime


# ---------------------------------------------------------------- what is said and refused


def test_notes_tell_what_was_not_executed():
    notes = emit(integer_graph(), TARGET).notes
    assert "no Cortex-M runtime is executed" in notes[0]
    assert "scratch memory for every core" in notes[1]
    assert "MVE" in notes[2]
    assert len(emit(integer_graph(), TARGET, EmitOptions(core="cortex-m4")).notes) == 2  # without MVE quantize has no other rounding


def test_scratch_depends_on_the_core():
    """CMSIS-NN's depthwise kernel: none for a 3 x 3 window without MVE, 4 x 124 bytes per tap with it."""
    told = {core: emit(integer_graph(), TARGET, EmitOptions(core=core)).notes[1] for core in ("cortex-m4", "cortex-m55", "")}
    assert "4464 bytes" not in told["cortex-m4"]
    assert "4464 bytes at most, in 'dw'" in told["cortex-m55"]
    assert "4464 bytes at most, in 'dw'" in told[""]


def test_an_unknown_core_is_refused():
    with pytest.raises(UsageError, match="cortex-m99") as error:
        emit(integer_graph(), TARGET, EmitOptions(core="cortex-m99"))
    assert "cortex-m55" in error.value.fix


def test_every_reason_in_one_pass():
    b = GraphBuilder("refused")
    x = b.input("x", codes((1, 4, 4, 2)))
    for i, scale in enumerate((3e-12, 0.01, 9e9)):
        q = Quantization.per_channel(np.full(2, scale, np.float32), 0)
        w = b.constant(f"w{i}", np.ones((2, 1, 1, 2), np.int8), TensorType((2, 1, 1, 2), "int8", q))
        beta = b.constant(f"b{i}", np.zeros(2, np.int32))
        (x,) = b.add("conv2d", (x, w, beta), Conv2DAttrs(), name=f"conv{i}", out_types=(codes((1, 4, 4, 2)),))
    (y,) = b.add("resize_bilinear", (x,), ResizeAttrs((4, 4)), name="resize", out_types=(codes((1, 4, 4, 2)),))
    attrs = PoolAttrs((3, 3), (2, 2), ((0, 1), (0, 1)))
    (y,) = b.add("avg_pool2d", (y,), attrs, name="pool", out_types=(codes((1, 2, 2, 2)),))
    wide = TensorType((1, 2, 2, 2), "int16", Quantization.per_tensor(0.001, 0))
    b.outputs = list(b.add("requantize", (y,), NoAttrs(), name="widen", out_types=(wide,)))
    with pytest.raises(UnsupportedOpError) as error:
        emit(b.freeze(), TARGET)
    assert [(p.code, p.node) for p in error.value.problems] == [
        ("scale-out-of-range", "conv0"),
        ("scale-out-of-range", "conv2"),
        ("op-unsupported", "resize"),
        ("not-expressible", "pool"),
        ("dtype-unsupported", "widen"),
    ]
    assert all(p.fix for p in error.value.problems)


def test_what_a_table_refuses_emission_refuses():
    table = get_numerics(TARGET)
    for cases in CASES.values():
        for case in cases:
            if table.refusals(case.graph):
                assert BACKEND.check(case.graph, TARGET), case.name


def test_softmax_multipliers_have_factors(session, rng):
    """The proxy has to find a scale and a beta that give TFLite Micro the program's multiplier."""
    for scale, beta in ((0.0431, 0.35355338), (0.11, 0.088388346), (3.0, 1.0), (40.0, 1.0)):
        x = act((1, 4, 9), float(np.float32(scale)), -7)
        case = op_case("softmax", "softmax", SoftmaxAttrs(float(np.float32(beta))), [x], Quantization.per_tensor(1 / 256, -128))
        assert difference(case.graph, session, rng) == ""


def test_float_ops_change_nothing():
    graph = integer_graph()
    emitted = {mode: emit(replace(graph, metadata={**graph.metadata, "float_ops": mode}), TARGET).data for mode in ("forbid", "allow")}
    assert emitted["forbid"] == emitted["allow"]
