"""Generated C against the simulator and TFLite Micro itself, on every byte; no undefined behaviour, no warnings."""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from cases import CASES, Case, feeds
from cases.merge import cases_of, merge, outcome
from compiled import SANITIZERS, WARNINGS, compiled, execute
from models import build_net, calibration_of, tiny_mlperf
from property.graphs import STEPS, Maker, make_graph
from requirements import ROOT, missing

import qwtv2_edge as qe
from qwtv2_edge.backends import Artifact, emit, get_numerics
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.runners.arm_none_eabi import CORES, compile_object, compiler_version, run_tool
from qwtv2_edge.runners.board import BOARDS, run_on_board
from qwtv2_edge.runners.host import Session, available
from qwtv2_edge.simulator.run import run
from qwtv2_edge_c.emit import build

pytestmark = pytest.mark.runtime

NETS = (*tiny_mlperf.BUILDERS, "mobilenet_v2_035", "kwt1")


@pytest.fixture(autouse=True)
def _needs_a_compiler(require):
    require("c", *available("c"))


@pytest.fixture
def quick_plans(monkeypatch):
    """Without the search for a better place in memory, which takes long over hundreds of independent nodes."""
    monkeypatch.setattr("qwtv2_edge.planner.SEARCH_PLACEMENTS", 0)


@cache
def one_per_kernel() -> tuple[Case, ...]:
    """The first case of each set of kernels."""
    found: dict[tuple[str, ...], Case] = {}
    for family in CASES:
        for case in cases_of(family):
            found.setdefault(tuple(dict.fromkeys(build(case.graph)[0].ops)), case)
    return tuple(found.values())


@cache
def network(name: str) -> qe.Graph:
    samples = calibration_of(name, 24)
    return qe.quantize(qe.capture(build_net(name), (samples[:1],)), samples).graph


def on_board(core: str):
    """What runs an artifact on the emulated board with ``core``."""
    return lambda artifact, inputs: run_on_board(BOARDS[core], artifact.data, inputs).outputs


def in_the_runner(artifact: Artifact, inputs):
    with Session("c", artifact.data) as session:
        return session.run(inputs)


@pytest.mark.parametrize("family", CASES)
@pytest.mark.usefixtures("quick_plans")
def test_every_case_is_exact(family, rng):
    assert outcome(cases_of(family), 24, rng, in_the_runner) == []


@pytest.mark.parametrize("flags", [(), ("-DQWTV2_APART",)], ids=["shared", "apart"])
@pytest.mark.usefixtures("quick_plans")
def test_every_kernel_is_clean_under_sanitizers(flags, rng, tmp_path):
    def execute_sanitized(artifact, inputs):
        return execute(compiled(artifact, tmp_path, *WARNINGS, *SANITIZERS, "-O1", "-g", *flags), artifact, inputs)

    assert outcome(one_per_kernel(), 8, rng, execute_sanitized) == []


@pytest.mark.slow
@pytest.mark.parametrize("family", CASES)
@pytest.mark.usefixtures("quick_plans")
def test_every_case_is_clean_under_sanitizers(family, rng, tmp_path):
    def execute_sanitized(artifact, inputs):
        return execute(compiled(artifact, tmp_path, *WARNINGS, *SANITIZERS, "-O1", "-g"), artifact, inputs)

    assert outcome(cases_of(family), 24, rng, execute_sanitized) == []


@pytest.mark.parametrize("optimisation", ["-Os", "-O3"])
@pytest.mark.parametrize("core", CORES)
@pytest.mark.usefixtures("quick_plans")
def test_every_kernel_compiles_for_cortex_m_without_a_warning(core, optimisation, tmp_path, require):
    require("arm-none-eabi-gcc", bool(compiler_version()), "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi")
    emit(merge("cases", one_per_kernel()), "c").save(tmp_path)
    compile_object(tmp_path, core, *WARNINGS, optimize=optimisation)


@pytest.mark.parametrize("flags", ["-march=armv5te", "-mcpu=cortex-r5 -mbig-endian"])
@pytest.mark.usefixtures("quick_plans")
def test_every_kernel_compiles_for_other_cores_without_a_warning(flags, tmp_path, require):
    """Where products are taken two at once on some cores of a kind and not on others."""
    require("arm-none-eabi-gcc", bool(compiler_version()), "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi")
    emit(merge("cases", one_per_kernel()), "c").save(tmp_path)
    run_tool("gcc", *flags.split(), *WARNINGS, "-Os", "-c", "model.c", folder=tmp_path)


@pytest.mark.usefixtures("quick_plans")
def test_helpers_that_a_network_leaves_out_are_no_warning(tmp_path):
    """Clang warns of inline functions that are not called; GCC does too where they are not inline."""
    case = next(c for c in cases_of("pool"))
    artifact = emit(case.graph, "c")
    assert compiled(artifact, tmp_path, *WARNINGS, "-Dinline=")
    text = artifact.data.decode().replace("#pragma", "//")
    with pytest.raises(AssertionError, match="unused-function"):
        compiled(replace(artifact, data=text.encode()), tmp_path, *WARNINGS, "-Dinline=", "-Wno-comment", "-std=gnu99")


@pytest.mark.qemu
@pytest.mark.parametrize("core", BOARDS)
@pytest.mark.usefixtures("quick_plans")
def test_every_kernel_is_exact_on_boards(core, rng, require):
    """Where kernels take other paths: a core's DSP or vector instructions."""
    require("arm-none-eabi-gcc", bool(compiler_version()), "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi")
    require("qemu-system-arm", shutil.which("qemu-system-arm") is not None, "apt-get install qemu-system-arm")

    assert outcome(one_per_kernel(), 8, rng, on_board(core)) == []


@pytest.mark.slow
@pytest.mark.qemu
@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("core", BOARDS)
@pytest.mark.usefixtures("quick_plans")
def test_every_case_is_exact_on_boards(core, family, rng):
    assert outcome(cases_of(family), 8, rng, on_board(core)) == []


# ---------------------------------------------------------------- random graphs: activations that share memory


@cache
def random_cases(first: int, count: int) -> tuple[Case, ...]:
    """Random graphs that C takes, from the seed ``first`` on."""
    found: list[Case] = []
    for seed in itertools.count(first):
        graph = make_graph(seed, range(3 + seed % 8), powers=seed % 3 == 0, real=seed % 2 == 0)
        if not build(graph)[1] and not any(n.op == "dequantize" and n.outputs[0] not in graph.outputs for n in graph.nodes):
            found.append(Case(f"seed {seed}", graph))
        if len(found) == count:
            return tuple(found)


@pytest.mark.usefixtures("quick_plans")
def test_random_graphs_are_exact_and_clean(rng, tmp_path):
    def execute_sanitized(artifact, inputs):
        return execute(compiled(artifact, tmp_path, *WARNINGS, *SANITIZERS, "-O1", "-g"), artifact, inputs)

    assert outcome(random_cases(0, 40), 8, rng, execute_sanitized) == []


@pytest.mark.qemu
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])
@pytest.mark.usefixtures("quick_plans")
def test_random_graphs_are_exact_on_boards(core, rng, require):
    require("arm-none-eabi-gcc", bool(compiler_version()), "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi")
    require("qemu-system-arm", shutil.which("qemu-system-arm") is not None, "apt-get install qemu-system-arm")
    assert outcome(random_cases(0, 40), 4, rng, on_board(core)) == []


def window_chain(seed: int) -> Case:
    """Windows one after the other, whose rows are written where rows that were read had been."""
    m = Maker(seed, powers=False)
    shape = (m.int(1, 2), m.int(4, 20), m.int(1, 3), m.int(1, 8))
    m.live.append(m.input("x", TensorType(shape, "int8", Quantization.per_tensor(0.05, m.int(-128, 127)))))
    while len(m.live) < 5:
        STEPS[m.pick(["conv2d", "conv2d", "depthwise_conv2d", "max_pool2d", "avg_pool2d"])][0](m, m.live[-1])
    m.b.outputs = [m.live[-1]]
    return Case(f"windows {seed}", m.b.freeze())


def test_windows_that_run_over_their_inputs_are_exact(rng, tmp_path):
    """Each network with a plan of its own, which is tighter than one for many."""
    for case in map(window_chain, range(25)):
        assert outcome([case], 4, rng, lambda artifact, inputs: execute(compiled(artifact, tmp_path, "-O1"), artifact, inputs)) == []


@pytest.mark.slow
@pytest.mark.parametrize("core", ["", *BOARDS])
def test_many_random_graphs_are_exact(core, rng, tmp_path):
    """Each graph with the plan that it would have alone."""

    def execute_sanitized(artifact, inputs):
        return execute(compiled(artifact, tmp_path, *WARNINGS, *SANITIZERS, "-O1", "-g"), artifact, inputs)

    first, count = int(os.environ.get("QWTV2_FUZZ_SEED", "20261121")), int(os.environ.get("QWTV2_FUZZ_GRAPHS", "200"))
    for case in random_cases(first, count):
        assert outcome([case], 8, rng, on_board(core) if core else execute_sanitized) == []


# ---------------------------------------------------------------- CMSIS-NN

#: declarations to compile against
PROTOTYPES = ROOT / "tests" / "cmsis_nn"


@pytest.mark.parametrize("core", CORES)
@pytest.mark.usefixtures("quick_plans")
def test_calls_of_cmsis_nn_compile_without_a_warning(core, tmp_path, require):
    """Against declarations alone: whether CMSIS-NN then gives the same bytes is the next test's matter."""
    require("arm-none-eabi-gcc", bool(compiler_version()), "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi")
    emit(merge("cases", one_per_kernel()), "c").save(tmp_path)
    compile_object(tmp_path, core, *WARNINGS, "-DQWTV2_CMSIS_NN", f"-I{PROTOTYPES}", optimize="-Os")


@pytest.fixture
def cmsis_nn() -> tuple[str, ...]:
    """Flags that compile and link against a CMSIS-NN that was compiled for this machine."""
    library, headers = (os.environ.get(f"QWTV2_CMSIS_NN_{part}", "") for part in ("LIBRARY", "INCLUDE"))
    if not library or not headers:
        missing("cmsis-nn", "no CMSIS-NN for this machine; set QWTV2_CMSIS_NN_LIBRARY to one, and QWTV2_CMSIS_NN_INCLUDE to its headers")
    return (library, "-std=c11", "-O2", "-w", f"-I{headers}", "-DQWTV2_CMSIS_NN")


@pytest.mark.parametrize("family", ["conv", "linear", "elementwise", "pool", "clamp"])
@pytest.mark.usefixtures("quick_plans")
def test_cmsis_nn_gives_the_same_bytes(family, cmsis_nn, rng, tmp_path):
    def execute_cmsis(artifact, inputs):
        return execute(compiled(artifact, tmp_path, *cmsis_nn), artifact, inputs)

    assert outcome(cases_of(family), 8, rng, execute_cmsis) == []


@pytest.mark.parametrize("name", NETS)
def test_networks_on_cmsis_nn_give_the_same_bytes(name, cmsis_nn, data_dir, tmp_path):
    graph, inputs = network(name), calibration_of(name, 4)
    artifact = emit(graph, "c")
    (actual,) = execute(compiled(artifact, tmp_path, *cmsis_nn), artifact, [inputs])
    np.testing.assert_array_equal(actual, run(graph, [inputs], get_numerics("c"))[0])


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("name", NETS)
def test_networks_give_the_bytes_of_tflite_micro(name, data_dir, require, tmp_path):
    """Through the runner; and as a program, with activations that share memory and with none that do."""
    require("tflite-micro", *available("tflite-micro"))
    graph, inputs = network(name), calibration_of(name, 28)[24:]
    with Session("tflite-micro", emit(graph, "tflite-micro").data) as session:
        (expected,) = session.run([inputs])
    artifact = emit(graph, "c")
    (actual,) = in_the_runner(artifact, [inputs])
    np.testing.assert_array_equal(actual, expected)
    for label, flags in (("shared", ()), ("apart", ("-DQWTV2_APART",))):
        (actual,) = execute(compiled(artifact, tmp_path / label, *WARNINGS, "-O2", *flags), artifact, [inputs])
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", ["resnet8", "ds_cnn"])
def test_networks_are_clean_under_sanitizers(name, data_dir, tmp_path):
    graph, inputs = network(name), calibration_of(name, 2)
    artifact = emit(graph, "c")
    (actual,) = execute(compiled(artifact, tmp_path, *WARNINGS, *SANITIZERS, "-O1", "-g"), artifact, [inputs])
    np.testing.assert_array_equal(actual, run(graph, [inputs], get_numerics("c"))[0])


@pytest.mark.parametrize("name", list(tiny_mlperf.BUILDERS))
def test_published_files_give_the_bytes_of_tflite_micro(name, data_dir, rng, require):
    """Networks that others quantized, codes at both ends."""
    require("tflite-micro", *available("tflite-micro"))
    data = (data_dir / tiny_mlperf.FOLDERS[name] / "ref_int8.tflite").read_bytes()
    graph = qe.read_tflite(data)
    inputs = feeds(graph, rng, 8)
    with Session("tflite-micro", data) as session:
        expected = session.run(inputs)
    for e, a in zip(expected, in_the_runner(emit(graph, "c"), inputs), strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "ds_cnn", "mobilenet_v1", "kwt1"])
def test_whole_evaluation_sets_give_the_bytes_of_tflite_micro(name, data_dir, require):
    from models import transformers

    require("tflite-micro", *available("tflite-micro"))
    graph = network(name)
    load = transformers.load_data if name in transformers.BUILDERS else tiny_mlperf.load_data
    inputs, _ = load(name, "eval")
    with Session("tflite-micro", emit(graph, "tflite-micro").data) as session:
        (expected,) = session.run([inputs])
    (actual,) = in_the_runner(emit(graph, "c"), [inputs])
    np.testing.assert_array_equal(actual, expected)
