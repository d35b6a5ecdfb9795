"""Generated C on emulated Cortex-M boards: bytes, instructions, memory, and every way in which a program can fail."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
from cases import CASES, feeds
from cases.merge import cases_of, outcome
from models import build_net, calibration_of
from small_graphs import integer_graph

from qwtv2_edge import cli
from qwtv2_edge.backends import emit, get_numerics
from qwtv2_edge.errors import MissingToolError, RunError, UsageError
from qwtv2_edge.ir import serde
from qwtv2_edge.profiling import profile
from qwtv2_edge.runners.board import BOARDS, STACK_BYTES, BoardSession, Memory, run_on_board
from qwtv2_edge.simulator.run import run
from qwtv2_edge.verification.runtimes import verify

pytestmark = [pytest.mark.runtime, pytest.mark.qemu]

M4 = BOARDS["cortex-m4"]


@pytest.fixture(autouse=True)
def tools(require):
    for tool in ("arm-none-eabi-gcc", "qemu-system-arm"):
        require(tool, shutil.which(tool) is not None, f"no {tool} here")


def program(body: str, before: str = "") -> bytes:
    """A file of target "c" with one input and one output of four int8 values each; its run function is ``body``."""
    port = {"dtype": "int8", "shape": [1, 4], "port": 0}
    facts = {
        "symbol": "net",
        "nodes": ["first", "second"],
        **{f"graph_{end}": [{"name": end, "dtype": "int8", "shape": [1, 4]}] for end in ("inputs", "outputs")},
        "inputs": [{**port, "function": "net_input_0"}],
        "outputs": [{**port, "function": "net_output_0"}],
    }
    return f"""/* qwtv2_edge {json.dumps(facts)} */
#include <stdint.h>
#ifndef QWTV2_TRACE
#define QWTV2_TRACE(node)
#endif
static int8_t x[4], y[4];
static volatile int32_t sink;
{before}
int8_t *net_input_0(void) {{ return x; }}
int8_t *net_output_0(void) {{ return y; }}
void net_run(void) {{ {body} }}
""".encode()


X = np.array([[1, -2, 3, -128], [5, 6, 7, 127]], np.int8)
NEGATE = "for (int i = 0; i < 4; i++) y[i] = (int8_t)-x[i];"
LOOP = "QWTV2_TRACE(0); for (int i = 0; i < 1000; i++) sink += i; QWTV2_TRACE(1); for (int i = 0; i < 500; i++) sink += i; "


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize("core", BOARDS)
def test_every_board_runs_every_sample(core):
    done = run_on_board(BOARDS[core], program(NEGATE), [X])
    assert done.outputs[0].tolist() == (-X).tolist()
    assert 0 < done.stack < 512


def test_a_network_is_verified_on_a_board(rng):
    graph = integer_graph()
    report = verify(graph, emit(graph, "c"), feeds(graph, rng, 3), place=M4)
    result = report.results["c"]
    assert (result.status, result.mismatches) == ("exact", 0)
    assert set(result.versions) == {"arm-none-eabi-gcc", "qemu-system-arm"}


def test_a_differing_byte_is_found_on_a_board(rng):
    graph = integer_graph()
    artifact = emit(graph, "c")
    changed = artifact.data.replace(b".zero_point = ", b".zero_point = 3 + ")
    assert changed != artifact.data
    result = verify(graph, dataclasses.replace(artifact, data=changed), place=M4).results["c"]
    assert result.status == "mismatch"
    assert "emitted anew, agrees" in result.first.culprit.note


@pytest.mark.slow
@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("core", BOARDS)
def test_every_case_is_exact(core, family, rng):
    """See ``test_c_exact``; here with the boards' own compiler, at its highest optimisation."""

    def on_the_board(artifact, inputs):
        return run_on_board(BOARDS[core], artifact.data, inputs).outputs

    assert outcome(cases_of(family), 4, rng, on_the_board) == []


@pytest.mark.slow
@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m7", "cortex-m55"])
@pytest.mark.parametrize("name", ["resnet8", "ds_cnn", "mobilenet_v1", "autoencoder", "mobilenet_v2_035", "kwt1"])
def test_networks_are_exact(core, name, data_dir):
    import qwtv2_edge as qe

    samples = calibration_of(name, 20)
    graph = qe.quantize(qe.capture(build_net(name), (samples[:1],)), samples, {"compensation": "none"}).graph
    done = run_on_board(BOARDS[core], emit(graph, "c").data, [samples], count=True)
    assert done.outputs[0].tobytes() == run(graph, [samples], get_numerics("tflite-micro"))[0].tobytes()
    assert done.instructions.nodes[-1] in {n.name for n in graph.nodes}


# ---------------------------------------------------------------- instructions


def test_instructions_repeat_and_follow_the_work():
    counts = [run_on_board(M4, program(LOOP + NEGATE), [X], count=True).instructions for _ in range(2)]
    assert counts[0].table.tolist() == counts[1].table.tolist()
    assert counts[0].table.shape == (2, 2)
    per_node = counts[0].per_node
    assert list(per_node) == ["first", "second"]
    assert 4000 < per_node["first"] < 10_000
    assert 1.9 < per_node["first"] / per_node["second"] < 2.1
    assert counts[0].per_inference == sum(per_node.values())


def test_counting_changes_no_byte_and_needs_no_trace_without():
    plain = run_on_board(M4, program(LOOP + NEGATE), [X])
    assert plain.instructions is None
    counted = run_on_board(M4, program(LOOP + NEGATE), [X], count=True)
    assert counted.outputs[0].tolist() == plain.outputs[0].tolist()
    assert counted.sizes.flash > plain.sizes.flash


def test_a_profile_counts_and_compares(rng):
    graph = integer_graph()
    report = profile(emit(graph, "c"), feeds(graph, rng, 3), "board:cortex-m4", runs=3, graph=graph, samples=2)
    assert (report.outputs_match, report.emulated, report.reliable, report.latency, report.load_ms) == (True, True, False, None, None)
    assert (report.device.kind, report.device.name, report.device.cores) == ("board", "board:cortex-m4", 1)
    counts = report.instructions
    assert (counts["load"], len(counts["runs"]), counts["repeats"]) == (None, 3, True)
    assert [row["op"] for row in report.ops] == [n.op for n in graph.nodes if n.op not in ("quantize", "dequantize")]
    assert {row["ms"] for row in report.ops} == {None}
    assert sum(row["instructions"] for row in report.ops) == counts["per_inference"] == counts["runs"][-1]
    assert profile(emit(graph, "c"), device="board:cortex-m4", graph=integer_graph(1)).outputs_match is False
    assert profile(emit(graph, "c"), device="board:cortex-m4").outputs_match is None  # no graph


# ---------------------------------------------------------------- failures

DEEP = "static int deep(int i) { volatile int a[64]; a[0] = i; return i == sink - 1 ? 0 : deep(i + 1) + a[0]; }"
FAULTS = {
    "divides by zero": (program("sink = 100 / (int)(sink + y[0]);"), "usage fault on {board} in net_run .*: a division by zero"),
    "reads where nothing is": (
        program("sink = *(volatile int32_t *)(uintptr_t)0x1ffffff0u;"),
        "memory fault on {board} in net_run .*: data where none may be, address 0x1ffffff0",
    ),
    "writes into flash": (program("*(volatile int8_t *)(uintptr_t)net_run = 1;"), "memory fault on {board} in net_run .*: data where none"),
    "runs what is no code": (program('__asm__ volatile("udf #0");'), "usage fault on {board} in net_run .*: an undefined instruction"),
    "recurses without end": (program("sink = deep(1);", DEEP), f"memory fault on {{board}}: the stack of {STACK_BYTES:,} bytes overflowed"),
}


@pytest.mark.parametrize("core", ["cortex-m4", "cortex-m55"])  # of two architectures, which protect memory in two ways
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told(name, core):
    data, message = FAULTS[name]
    with pytest.raises(RunError, match=message.format(board=f"board:{core}")):
        run_on_board(BOARDS[core], data, [X])


def test_a_program_without_end():
    with pytest.raises(RunError, match="did not finish 2 samples within 1 s"):
        run_on_board(M4, program("for (;;) sink++;"), [X], timeout_s=1)


def test_a_program_that_is_too_large():
    large = program("sink = arena[sink];", "static volatile int8_t arena[5 << 20];")
    with pytest.raises(
        RunError, match=r"too large for board:cortex-m4 \(mps2-an386\): it takes 5,\d+,\d+ bytes of RAM, 4,194,304 are there"
    ):
        run_on_board(M4, large, [X])
    small = dataclasses.replace(M4, flash=Memory(0, 1536))
    with pytest.raises(RunError, match=r"it takes [\d,]+ bytes of FLASH, 512 are there"):
        run_on_board(small, program(NEGATE), [X])


def test_an_emulator_that_ends_early():
    with pytest.raises(RunError, match=r"(?s)qemu-system-arm ended with 1 as board:cortex-m4.*unsupported machine type"):
        run_on_board(dataclasses.replace(M4, machine="mps2-an000"), program(NEGATE), [X])


def test_a_file_that_the_compiler_refuses():
    with pytest.raises(RunError, match=r"(?s)arm-none-eabi-gcc failed: .*unknown"):
        BoardSession(M4, program("unknown();", "#error unknown"))


def test_a_file_of_another_target():
    with pytest.raises(RunError, match="board:cortex-m4 runs generated C: this C file does not begin"):
        BoardSession(M4, b"TFL3")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "has 1 inputs, got 0"),
        ([X[:, :3]], r"input 0 has shape \(2, 3\)"),
        ([X.astype(np.int16)], "dtype int16"),
        ([X[:0]], "no samples"),
    ],
)
def test_inputs_of_another_network(inputs, message):
    with BoardSession(M4, program(NEGATE)) as session, pytest.raises(UsageError, match=f"inputs for board:cortex-m4: .*{message}"):
        session.run(inputs)


def test_missing_tools(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="no qemu-system-arm") as caught:
        BoardSession(M4)
    assert caught.value.fix == "apt-get install --no-install-recommends qemu-system-arm"
    qemu = tmp_path / "qemu-system-arm"
    qemu.write_text("#!/bin/sh\necho QEMU emulator version 7.2.0\n")
    qemu.chmod(0o755)
    with pytest.raises(MissingToolError, match="arm-none-eabi-gcc is not installed") as caught:
        BoardSession(M4)
    assert "gcc-arm-none-eabi libnewlib-arm-none-eabi" in caught.value.fix


def test_the_command_verifies_on_a_board(tmp_path, capfd):
    serde.save(integer_graph(), tmp_path / "net.qir")
    command = ["verify", str(tmp_path / "net.qir"), "--device", "board:cortex-m4"]
    assert cli.run([*command, "--numerics", "c", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["device"], told["verify"]["c"]["mismatches"]) == ("board:cortex-m4", 0)
    assert cli.run(command) == 2
    assert "nothing of" in capfd.readouterr().err
