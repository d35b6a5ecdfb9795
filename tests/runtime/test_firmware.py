"""Folders for firmware: complete, compiling without a warning, and with a self-test that finds every wrong byte.

The C++ of ``tflite-micro`` is compiled with stand-ins for TFLite Micro's headers (``tests/stubs``).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import CASES
from cases.build import act
from requirements import ROOT
from small_graphs import integer_graph

from qwtv2_edge.backends import Artifact, emit
from qwtv2_edge.errors import UnsupportedOpError, UsageError
from qwtv2_edge.firmware import GOLDEN_VECTORS, RESOLVER_METHODS, complete
from qwtv2_edge.ir.graph import Graph, GraphBuilder
from qwtv2_edge.ops.spec import NoAttrs
from qwtv2_edge.runners.arena import Arena, arena_of
from qwtv2_edge.simulator import simulate

pytestmark = pytest.mark.runtime

WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror")


def inputs(graph: Graph, samples: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 1, (samples, *graph.tensors[t].shape[1:])).astype(np.float32) for t in graph.inputs]


def completed(target: str, name: str = "tiny") -> Artifact:
    graph = replace(integer_graph(), name=name)
    return complete(emit(graph, target), graph, inputs(graph))


def stubs(name: str, operators: int, flipped: int = 0) -> tuple[str, ...]:
    """Flags that put the stand-ins in the place of TFLite Micro for the network called ``name``."""
    macros = {"NETWORK": f"{name}_model", "NETWORK_ARENA_BYTES": f"{name.upper()}_MODEL_ARENA_BYTES"}
    macros |= {"FLIPPED": str(flipped), "OPERATORS": str(operators)}
    return (f"-I{ROOT / 'tests' / 'stubs'}", "-I.", *(f"-D{k}={v}" for k, v in macros.items()))


@pytest.fixture
def micro(require) -> Artifact:
    require("tflite-micro")
    return completed("tflite-micro")


def compiled(compiler: str, folder: Path, sources: list[str], *flags: str) -> Path:
    program = folder / "selftest"
    command = [compiler, "-O1", *WARNINGS, *flags, "-DQWTV2_SELFTEST_MAIN", *sources, "-o", program.name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def test_every_operator_has_its_method():
    missing = set()
    for cases in CASES.values():
        for case in cases:
            try:
                missing |= set(emit(case.graph, "tflite-micro").ops) - set(RESOLVER_METHODS)
            except UnsupportedOpError:
                continue
    assert not missing


@pytest.mark.parametrize("standard", ["c++11", "c++17"])
def test_the_folder_for_tflite_micro_compiles_and_finds_wrong_bytes(micro, standard, require, tmp_path):
    require("g++", shutil.which("g++") is not None)
    folder = micro.save(tmp_path / "net")
    sources = sorted(p.name for p in folder.glob("*.cc"))
    assert len(sources) == 4
    operators = len(set(micro.ops))
    for flipped in (0, 2):
        # the program's exit status is whether anything differs; the count itself is the function's result
        flags = (f"-std={standard}", *stubs("tiny", operators, flipped))
        (folder / "count.cc").write_text(
            '#include "model_data.h"\n#include "model_selftest.h"\nalignas(16) static uint8_t arena[TINY_MODEL_ARENA_BYTES];\n'
            "int main() {\n"
            "  return tiny_model_selftest(arena, sizeof arena) == FLIPPED * 3 && tiny_model_selftest(arena, 64) == -3 ? 0 : 1;\n}\n"
        )
        assert subprocess.run([compiled("g++", folder, sources, *flags)]).returncode == (flipped > 0)
        count = [s for s in sources if s != "count.cc"] + ["count.cc"]
        command = ["g++", *flags, *count, "-o", "count"]
        assert subprocess.run(command, cwd=folder).returncode == 0
        assert subprocess.run([folder / "count"]).returncode == 0


def test_networks_of_all_targets_link_into_one_program(require, tmp_path):
    """Two networks, each for TFLite Micro and as C, in one C++ program that includes every header."""
    require("tflite-micro")
    require("g++", shutil.which("g++") is not None)
    objects, includes, run = [], [], []
    for name in ("first", "second"):
        for target in ("tflite-micro", "c"):
            artifact = completed(target, name)
            folder = artifact.save(tmp_path / f"{name}-{target}")
            includes += [f'#include "{p.relative_to(tmp_path)}"' for p in sorted(folder.glob("*.h"))]
            for source in sorted((*folder.glob("*.cc"), *folder.glob("*.c"))):
                flags = ["gcc", "-std=c99"] if source.suffix == ".c" else ["g++", "-std=c++11", *stubs(name, len(set(artifact.ops)))]
                subprocess.run([*flags, "-c", source.name, "-o", f"{source.stem}.o"], cwd=folder, check=True)
                objects.append(folder / f"{source.stem}.o")
        run.append(
            f"{name}_selftest() == 0 && {name}_model_data[4] == 'T' && {name.upper()}_ARENA_BYTES < {name.upper()}_MODEL_ARENA_BYTES"
        )
    main = tmp_path / "main.cc"
    main.write_text("\n".join([*includes, f"int main() {{ return {' && '.join(run)} ? 0 : 1; }}\n"]))
    flags = ["-std=c++11", *WARNINGS, *stubs("first", 0)]
    subprocess.run(["g++", *flags, main, *objects, "-o", "program"], cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "program"], check=True)


def test_files_for_tflite_micro_hold_what_they_say(micro):
    text = {name: data.decode() for name, data in micro.files.items()}
    held = bytes(int(b, 16) for b in re.findall(r"0x([0-9a-f]{2})\b", text["model_data.cc"]))
    assert held == micro.data
    arena = arena_of(micro.data)
    assert f"TINY_MODEL_ARENA_BYTES {arena.bytes}u" in text["model_data.h"]
    assert f"TINY_MODEL_ARENA_BYTES {arena.bytes_32}u" in text["model_data.h"]
    assert f"MicroMutableOpResolver<{len(set(micro.ops))}>" in text["model_resolver.h"]
    assert sorted(re.findall(r"resolver\.(\w+)\(", text["model_resolver.cc"])) == sorted(RESOLVER_METHODS[o] for o in set(micro.ops))
    graph = integer_graph()
    few = [a[:GOLDEN_VECTORS] for a in inputs(graph)]
    numbers = np.array(re.findall(r"(-?\d[\d.e+-]*)f,", text["model_golden.cc"]), np.float32)
    wanted = [*few, *simulate(graph, few, "tflite-micro")]
    assert np.array_equal(numbers, np.concatenate([a.ravel() for a in wanted]))
    assert text["README.md"].isascii()
    assert completed("tflite-micro").files == micro.files


def test_the_folder_for_c_compiles_and_finds_wrong_bytes(require, tmp_path):
    require("gcc", shutil.which("gcc") is not None)
    folder = completed("c").save(tmp_path / "net")
    sources = ["model.c", "golden.c", "selftest.c"]
    assert subprocess.run([compiled("gcc", folder, sources, "-std=c99", "-Wpedantic")]).returncode == 0
    golden = (folder / "golden.c").read_text()
    at = golden.rindex("};") - 1
    last = list(re.finditer(r"-?\d+(?=,)", golden[:at]))[-1]
    (folder / "golden.c").write_text(f"{golden[: last.start()]}{int(last.group()) ^ 1}{golden[last.end() :]}")
    assert subprocess.run([compiled("gcc", folder, sources, "-std=c99")]).returncode == 1


def test_the_estimate_for_32_bits_halves_records_of_pointers():
    assert Arena(head=1000, tail=800, pointers=500, bytes=1900).bytes_32 == 1650


def test_an_arena_holds_what_planning_needs_for_a_moment(require, tmp_path):
    """Many small tensors: more records to plan with than activations."""
    require("tflite-micro")
    b = GraphBuilder("chain")
    x = b.input("x", act((1, 8), 0.1, 0))
    for i in range(30):
        (x,) = b.add("relu", [x], NoAttrs(), name=f"r{i}", out_types=(act((1, 8), 0.1, 0),))
    b.outputs = [x]
    (tmp_path / "chain.tflite").write_bytes(data := emit(b.freeze(), "tflite-micro").data)
    arena = arena_of(data)
    assert arena.bytes > arena.head + arena.tail
    load = "import sys; from tflite_micro import runtime; runtime.Interpreter.from_file('chain.tflite', arena_size=int(sys.argv[1]))"
    for size, taken in ((arena.bytes, True), (arena.bytes - 16, False)):
        done = subprocess.run([sys.executable, "-c", load, str(size)], cwd=tmp_path, capture_output=True)
        assert (done.returncode == 0) == taken


def test_what_no_kernel_takes_is_refused_with_the_reason():
    case = next(c for c in CASES["linear"] if c.name == "fc-int4-per-channel")
    with pytest.raises(UnsupportedOpError, match="packed 4-bit fully connected"):
        complete(emit(case.graph, "tflite-micro"), case.graph, [])


def test_other_targets_come_back_as_they_are():
    graph = integer_graph()
    artifact = emit(graph, "tflite")
    assert complete(artifact, graph, inputs(graph)) is artifact


def test_samples_must_fit(micro):
    graph = integer_graph()
    with pytest.raises(UsageError, match="shape"):
        complete(emit(graph, "tflite-micro"), graph, [np.zeros((3, 4), np.float32)])
