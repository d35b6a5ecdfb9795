"""``fit`` with the tools themselves: Debian's compiler, TFLite Micro, Vela."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from command import COLOURLESS
from small_graphs import integer_graph

from qwtv2_edge.backends import emit
from qwtv2_edge.cli import run
from qwtv2_edge.errors import RunError, UsageError
from qwtv2_edge.fit import fit
from qwtv2_edge.inspection import weight_bytes
from qwtv2_edge.ir import serde
from qwtv2_edge.planner import plan_graph
from qwtv2_edge.runners.arena import arena_of
from qwtv2_edge.runners.arm_none_eabi import CORES, object_sizes
from qwtv2_edge.runners.vela import ACCELERATORS, estimate

pytestmark = pytest.mark.runtime


@pytest.fixture
def compiler(require):
    require("arm-none-eabi-gcc", shutil.which("arm-none-eabi-gcc") is not None)


@pytest.mark.parametrize("core", list(CORES))
def test_compiled_sections_are_the_sizes(core, compiler):
    source = b"const int table[100] = {1}; int count = 3; static int room[50]; int f(int i) { return table[i] + count + room[i]++; }"
    sizes = object_sizes(source, core)
    assert 400 < sizes.text < 600
    assert (sizes.data, sizes.bss) == (4, 200)
    assert (sizes.flash, sizes.ram) == (sizes.text + 4, 204)


def test_a_file_that_does_not_compile_is_an_error(compiler):
    with pytest.raises(RunError, match="arm-none-eabi-gcc failed"):
        object_sizes(b"int f(", "cortex-m4")


def test_generated_c_is_measured(compiler):
    graph = integer_graph()
    found = fit(graph, "cortex-m7", "c")
    assert found.flash.parts["weights"] == weight_bytes(graph)
    assert found.flash.bytes > weight_bytes(graph)
    assert "arm-none-eabi-gcc" in found.ram.method


def test_an_emulated_board_counts(compiler, require):
    require("qemu-system-arm", shutil.which("qemu-system-arm") is not None)
    graph = integer_graph()
    found, counted = fit(graph, "cortex-m4", "c"), fit(graph, "cortex-m4", "c", samples=[np.zeros((1, 6, 6, 2), np.float32)])
    assert counted.instructions > 0
    by_node = {entry.node: entry.instructions for entry in counted.layers}
    assert by_node["quantize"] is by_node["dequantize"] is None  # not on the board
    assert by_node["stem"] > by_node["head"] > 0
    assert counted.ram.bytes == found.ram.bytes + counted.ram.parts["stack"]
    with pytest.raises(UsageError, match="runs generated C"):
        fit(graph, "cortex-m4", samples=[np.zeros((1, 6, 6, 2), np.float32)])


def test_tflite_micro_tells_its_arena(require):
    require("tflite-micro")
    graph = integer_graph()
    arena = arena_of(emit(graph, "tflite-micro").data)
    assert arena.head >= plan_graph(graph, share=False).bytes
    assert 0 < arena.pointers < arena.tail
    found = fit(graph, "cortex-m4")
    assert (found.ram.bytes, found.arena) == (arena.bytes_32, arena)


def test_tflite_micro_says_why_it_refuses(require):
    require("tflite-micro")
    with pytest.raises(RunError, match="TFLite Micro"):
        arena_of(b"no flatbuffer" * 20)


@pytest.mark.parametrize("accelerator", ["ethos-u55-128", "ethos-u65-256", "ethos-u85-256"])
def test_vela_estimates(accelerator, require):
    require("ethosu")
    assert accelerator in ACCELERATORS
    graph = integer_graph()
    found = fit(graph, accelerator, ram=1)
    assert found.npu is not None
    assert found.npu.cycles >= found.npu.npu_cycles > 0
    assert found.npu.milliseconds == pytest.approx(1000 * found.npu.cycles / found.npu.clock_hz)
    assert found.ram.bytes == found.npu.sram_bytes
    assert found.flash.bytes == found.npu.flash_bytes
    assert set(found.npu.cpu_operators) <= {"Quantize", "Dequantize"}  # the float boundary
    assert found.fits is False
    assert "estimate of Vela" in found.ram.method


def test_vela_refuses_what_is_no_network(require):
    require("ethosu")
    with pytest.raises(RunError, match="Vela refused"):
        estimate(b"no flatbuffer" * 20, "ethos-u55-128")


@pytest.fixture
def graph_file(tmp_path):
    path = tmp_path / "net.qir"
    path.write_bytes(serde.to_bytes(integer_graph()))
    return path


def test_the_command_fails_where_a_budget_is_exceeded(graph_file, compiler, capfd, monkeypatch):
    for name, value in COLOURLESS.items():
        monkeypatch.setenv(name, value)
    command = ["fit", str(graph_file), "--target", "m4", "--runtime", "c"]
    for budget, code in (([], 0), (["--flash", "1M", "--ram", "64K"], 0), (["--ram", "64"], 1), (["--ram", "64Q"], 2)):
        assert run([*command, *budget, "--json"]) == code
        document = json.loads(capfd.readouterr().out)
        assert document["schema_version"] == 1
        if code < 2:
            assert document["fits"] is (None if not budget else code == 0)
            assert document["device"] == "cortex-m4"
            assert bool(document["advice"]) == (code == 1)
    assert run([*command, "--ram", "64"]) == 1
    shown = capfd.readouterr().out
    peak = max(fit(integer_graph(), "cortex-m4", "c").layers, key=lambda entry: entry.live_bytes)
    assert f"{peak.op} {peak.node} needs {peak.live_bytes:,} bytes of activations" in " ".join(shown.split())
