"""The aarch64 runtimes on emulated cores: every byte is the simulator's, and so is the kernel path the core's own."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
from cases import CASES, difference
from models import build_net, calibration_of, zoo

import qwtv2_edge as qe
from qwtv2_edge.backends import all_numerics, emit, get_numerics, tables_on
from qwtv2_edge.errors import MissingToolError, UnsupportedOpError
from qwtv2_edge.numerics import FLOAT_OPS, FLOAT_RULES, Numerics, rule_key
from qwtv2_edge.runners.arm import CORES, FAMILY, RUNTIMES, open_qemu, prepared
from qwtv2_edge.runners.host import Session

pytestmark = [pytest.mark.runtime, pytest.mark.qemu]

TARGETS = ("tflite", "executorch-xnnpack", "executorch-portable")
#: runtime -> the numerics it is held to; the optimised built-ins promise a bound only
EXACT: dict[str, list[Numerics]] = {
    name: [t for target in TARGETS for t in tables_on(target, FAMILY) if t.runner in r.runners and t.promise == "exact"]
    for name, r in RUNTIMES.items()
}
ON_CORES = [(t, core) for name, tables in EXACT.items() for t in tables for core in RUNTIMES[name].cores]
IDS = [f"{t.name}-{core}" for t, core in ON_CORES]
#: whole networks and the samples they are run on besides the edge patterns
NETWORKS = {"resnet8": 16, "ds_cnn": 16, "kwt1": 16, "mobilenet_v2": 1}


@pytest.fixture
def need(require):
    """``need("litert")`` skips (or fails, see ``missing``) unless those aarch64 wheels are there."""

    def check(runtime: str) -> None:
        try:
            found = prepared()
        except MissingToolError as error:
            require(f"arm-{runtime}", False, f"{error.message}; {error.fix}")
        require(f"arm-{runtime}", runtime in found, f"no aarch64 {runtime}: qwtv2-edge prepare arm --runtimes {runtime}")

    return check


def runtime_of(table: Numerics) -> str:
    return next(name for name, tables in EXACT.items() if table in tables)


@cache
def quantized(name: str) -> qe.Graph:
    graph = qe.capture(build_net(name), (calibration_of(name, 1),))
    return qe.quantize(graph, calibration_of(name, 24 if name in zoo.BUILDERS else 256)).graph


def assert_exact(name: str, table: Numerics, core: str) -> None:
    graph, samples = quantized(name), NETWORKS[name]
    inputs = calibration_of(name, samples)
    report = qe.verify(graph, emit(graph, table.target), inputs, [table.name], samples, place=open_qemu(core))
    assert report.ok, report.text()
    result = report.results[table.name]
    assert (result.status, result.mismatches) == ("exact", 0)
    assert result.samples > samples


@pytest.mark.parametrize("numerics", ["litert-reference", "litert-xnnpack@aarch64", "executorch-xnnpack@aarch64"])
def test_a_network_gives_the_same_bytes_on_arm(numerics, data_dir, need):
    table = get_numerics(numerics)
    need(runtime_of(table))
    assert_exact("resnet8", table, "cortex-a76")


@pytest.mark.parametrize("numerics", ["litert-xnnpack", "tflite-2.14-reference", "executorch-xnnpack"])
def test_rules_of_arm_alone_are_exact(numerics, rng, need):
    """The cases with a node whose rule is not x86-64's."""
    table, other = get_numerics(f"{numerics}@{FAMILY}"), get_numerics(f"{numerics}@x86_64")
    keys = {key for key in (*table.rules, *other.rules) if table.rule(key) != other.rule(key)}
    graphs = [c.graph for cases in CASES.values() for c in cases if keys & {rule_key(c.graph, n) for n in c.graph.nodes}]
    assert keys
    need(runtime_of(table))
    with Session(table.runner, place=open_qemu("cortex-a76")) as session:
        wrong = [difference(graph, table, session, rng, 6) for graph in graphs]
    assert len(wrong) >= 3 * len(keys)
    assert [w for w in wrong if w] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("table", "core"), ON_CORES, ids=IDS)
def test_networks_give_the_same_bytes_on_every_core(name, table, core, data_dir, need):
    need(runtime_of(table))
    assert_exact(name, table, core)


@pytest.mark.slow
@pytest.mark.parametrize(("table", "core"), ON_CORES, ids=IDS)
def test_every_case_is_exact(table, core, rng, need):
    need(runtime_of(table))
    cases = [c.graph for family in CASES.values() for c in family]
    floats = [g for g in cases if any({n.op, rule_key(g, n)} & set(FLOAT_RULES) for n in g.nodes)]
    graphs = [*cases, *(g.with_metadata(**{FLOAT_OPS: mode}) for mode in table.modes for g in floats)]
    with Session(table.runner, place=open_qemu(core)) as session:
        wrong, ran = [], 0
        for graph in graphs:
            if not table.refusals(graph) and has_a_form(graph, table.target):
                ran += 1
                wrong.append(difference(graph, table, session, rng, 12))
    assert ran > 1000
    assert [w for w in wrong if w] == []


def has_a_form(graph: qe.Graph, target: str) -> bool:
    try:
        emit(graph, target)
    except UnsupportedOpError:
        return False
    return True


#: instructions as (mask, code): multiply-add of two halves, of four bytes (dot product), of 2x8 by 8x2 bytes
INSTRUCTIONS = {"smlal": (0xBF00F400, 0x0F002000), "sdot": (0xBF80F400, 0x0F80E000), "smmla": (0xFFE0FC00, 0x4E80A400)}


@pytest.mark.slow
@pytest.mark.parametrize(("core", "instruction"), zip(CORES, INSTRUCTIONS, strict=True))
def test_each_core_runs_kernels_of_its_own(core, instruction, tmp_path, monkeypatch, need):
    """Equal bytes would say little if every core ran the same code."""
    need("litert")
    log, place, graph = tmp_path / "log", open_qemu(core), CASES["conv"][0].graph
    monkeypatch.setenv("QEMU_LOG", "in_asm")
    monkeypatch.setenv("QEMU_LOG_FILENAME", str(log))
    with Session("litert-xnnpack", emit(graph, "tflite").data, place=place) as session:
        session.run([np.zeros(p.shape, p.dtype) for p in session.inputs])
    words = [int(w, 16) for w in re.findall(r"^0x[0-9a-f]+:\s+([0-9a-f]{8}) ", log.read_text(), re.M)]
    assert len(words) > 10_000
    found = {name for name, (mask, code) in INSTRUCTIONS.items() if any(w & mask == code for w in words)}
    assert found == {instruction}


def test_every_exact_aarch64_row_is_held_to_a_runtime():
    held = {t.name for tables in EXACT.values() for t in tables}
    assert held >= {name for name, t in all_numerics().items() if name.endswith(f"@{FAMILY}") and t.promise == "exact"}
