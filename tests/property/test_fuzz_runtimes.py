"""Differential fuzzing: random integer graphs, every target, every exact numerics that runs here or on an emulated core, every byte.

``QWTV2_FUZZ_GRAPHS`` and ``QWTV2_FUZZ_SEED`` choose how many graphs the slow searches draw, and which.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from cases.build import feeds
from cases.compare import differing
from hypothesis import HealthCheck, Phase, given, seed, settings
from property.graphs import integer_graphs
from property.regressions import REGRESSIONS

from qwtv2_edge.backends import TARGETS, backend_for, emit, numerics_of, tables_on
from qwtv2_edge.errors import MissingToolError, QuantizeError, RunError, UsageError
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.ir.text import to_text
from qwtv2_edge.numerics import Numerics, rule_key
from qwtv2_edge.runners.arm import CORES, open_qemu
from qwtv2_edge.runners.base import Place
from qwtv2_edge.runners.host import HOST, Session
from qwtv2_edge.simulator import simulate

pytestmark = pytest.mark.runtime

SAMPLES = 24

#: target that refuses many operators -> the share of graphs that it must take
FEW = {"executorch-cortex-m": 0.18}


class Runtimes:
    """One long-lived process per runtime of ``place``, and what was compared."""

    def __init__(self, place: Place = HOST) -> None:
        self.place = place
        self.sessions: dict[str, Session | None] = {}
        self.compared: Counter[tuple[str, str]] = Counter()
        self.graphs = 0

    def session(self, runner: str) -> Session | None:
        """The process of ``runner``, None where there is none."""
        if runner not in self.sessions:
            try:
                self.sessions[runner] = session = Session(runner, place=self.place)
                session.find_versions()
            except (MissingToolError, UsageError):  # not installed here, not made for such processors
                self.sessions[runner] = None
        return self.sessions[runner]

    def exact_numerics(self, target: str) -> list[Numerics]:
        return [n for n in tables_on(target, self.place.family) if n.promise == "exact" and self.session(n.runner)]

    def run(self, runner: str, data: bytes, inputs: list[np.ndarray]) -> list[np.ndarray]:
        session = self.session(runner)
        session.load(data)
        return session.run(inputs)

    def close(self) -> None:
        for session in self.sessions.values():
            if session:
                session.close()

    def compare(self, graph: Graph) -> None:
        """Every target that takes ``graph``, every numerics; fails at the first byte that differs."""
        self.graphs += 1
        inputs = feeds(graph, np.random.default_rng(0), SAMPLES)
        for target in TARGETS:
            if backend_for(target).check(graph, target):
                continue
            artifact = emit(graph, target)
            for numerics in self.exact_numerics(target):
                if numerics.refusals(graph) or any(rule_key(graph, n) in numerics.bounds for n in graph.nodes):
                    continue
                try:
                    expected = simulate(graph, inputs, numerics)
                except QuantizeError:
                    continue  # inputs on which the runtime overflows or aborts; counted by what is missing below
                try:
                    got = self.run(numerics.runner, artifact.data, inputs)
                except RunError as error:
                    pytest.fail(f"{numerics.name}: {error}\n{to_text(graph)}")
                found = differing(graph, expected, got)
                if found:
                    pytest.fail(f"{numerics.name} on {self.place.name}: {found}\n{to_text(graph)}")
                self.compared[target, numerics.name] += 1

    def require_share(self, share: float) -> None:
        """Each numerics must really have run on that share of the graphs, less where a target has few operators."""
        for target in TARGETS:
            for numerics in self.exact_numerics(target):
                count = self.compared[target, numerics.name]
                assert count >= FEW.get(target, share) * self.graphs, f"{numerics.name} ran {count} of {self.graphs} {target} graphs only"


@pytest.fixture(scope="module")
def processes() -> Iterator[Runtimes]:
    r = Runtimes()
    try:
        yield r
    finally:
        r.close()


@pytest.fixture
def runtimes(processes) -> Runtimes:
    """The processes, with the counts at zero."""
    processes.compared.clear()
    processes.graphs = 0
    return processes


@pytest.mark.parametrize("graph", REGRESSIONS, ids=lambda g: g.name)
def test_regressions(graph, runtimes):
    runtimes.compare(graph)
    assert runtimes.compared


FREE = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
#: the same graphs on every machine. Shrinking is left to the slow search: the failing graph is printed whole
FIXED = {**FREE, "derandomize": True, "phases": [Phase.generate]}


def test_random_graphs(runtimes):
    @settings(max_examples=200, **FIXED)
    @given(integer_graphs())
    def compare(graph):
        runtimes.compare(graph)

    compare()
    runtimes.require_share(0.6)


#: key of a rule -> the rule of another runtime
WRONG = {
    "conv2d": "ONE",
    "depthwise_conv2d": "UP2",
    "transpose_conv2d": "F32E",
    "add": "Q20_OR_LSHIFT20",
    "mul": "F32E_OR_REF_F32",
    "mean": "XNN",
    "hard_swish": "LUT_XNN",
    "leaky_relu": "XNN8_OR_REF",
    "requantize": "Q8_OR_REF",
    "resize_bilinear": "XNN",
    "quantize": "RNE",
    "gelu": "LUT_XNN_ERF",
    "batch_matmul": "F32E",
    "softmax": "F32",
    "l2_normalize": "INT_ONE",
    "layer_norm": "INT_ONE",
    "channel_add": "F32",
    "conv2d:int16": "UP2",
    "depthwise_conv2d:int16": "REF",
    "fully_connected:int16": "REF",
    "add:int16": "F32",
    "sub:int16": "F32",
    "mean:int16": "ONE",
    "requantize:int16": "ONE",
    "quantize:int16": "RNE",
    "batch_matmul:int16": "REF_F32",
}


def test_the_search_would_see_a_wrong_rule():
    """The graphs must be of a kind on which rules differ: each swapped rule shows in some of 4000 graphs."""
    right = next(n for n in numerics_of("tflite") if n.name == "litert-reference")
    seen: Counter[str] = Counter()

    @settings(max_examples=4000, **FIXED)
    @given(integer_graphs())
    def compare(graph):
        left = {key for n in graph.nodes for key in (n.op, rule_key(graph, n))} & (set(WRONG) - set(seen))
        if not left or right.refusals(graph):
            return
        inputs = feeds(graph, np.random.default_rng(0), SAMPLES)
        try:
            expected = simulate(graph, inputs, right)
        except QuantizeError:
            return
        for op in left:
            with suppress(QuantizeError):
                wrong = simulate(graph, inputs, replace(right, rules={**right.rules, op: WRONG[op]}))
                seen[op] += any(not np.array_equal(a, b) for a, b in zip(expected, wrong, strict=True))
        for op in [op for op in seen if not seen[op]]:
            del seen[op]

    compare()
    assert set(seen) == set(WRONG), f"not seen: {sorted(set(WRONG) - set(seen))}"


@pytest.mark.slow
def test_many_random_graphs(runtimes):
    search(runtimes, int(os.environ.get("QWTV2_FUZZ_GRAPHS", "2000")))


@pytest.mark.slow
@pytest.mark.qemu
@pytest.mark.parametrize("core", CORES)
def test_many_random_graphs_on_arm(core, require):
    """The aarch64 runtimes that are prepared, on an emulated core: about a second per graph."""
    try:
        runtimes = Runtimes(open_qemu(core))
    except MissingToolError as error:
        require("arm", False, f"{error.message}; {error.fix}")
    try:
        for graph in REGRESSIONS:
            runtimes.compare(graph)
        search(runtimes, int(os.environ.get("QWTV2_FUZZ_GRAPHS", "300")))
    finally:
        runtimes.close()


def search(runtimes: Runtimes, count: int) -> None:
    @seed(int(os.environ.get("QWTV2_FUZZ_SEED", "20261121")))
    @settings(max_examples=count, **FREE)
    @given(integer_graphs())
    def compare(graph):
        runtimes.compare(graph)

    compare()
    assert runtimes.compared
    runtimes.require_share(0.6)
