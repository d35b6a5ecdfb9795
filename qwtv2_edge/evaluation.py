"""Runs one network over a data set in every way at once: float, simulated, and in the real runtimes.

Batches stream: each goes through the float graph, the simulator under every numerics, and every runtime that
is here, so that metrics, agreement with the float network, byte equality and parity between runtimes all come from the
same pass and nothing is held in memory whole.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np

from qwtv2_edge.backends import numerics_among, tables_on
from qwtv2_edge.data import Dataset
from qwtv2_edge.errors import MissingToolError, RunError
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.metrics import Agreement, Metric, new_metric
from qwtv2_edge.numerics import Numerics
from qwtv2_edge.ops import OPS
from qwtv2_edge.runners.host import HOST, Session
from qwtv2_edge.simulator.run import run
from qwtv2_edge.verification.compare import compare_all

#: stage, done, total (0 while unknown)
Progress = Callable[[str, int, int], None]
BATCH = 64


def silent(stage: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


def tables_here(targets: Sequence[str]) -> dict[str, Numerics]:
    """name -> numerics that this machine can run, for the one of ``targets`` it is run on; a bare name stands for its variant here."""
    return tables_on_family(targets, HOST.family)


def tables_on_family(targets: Sequence[str], family: str) -> dict[str, Numerics]:
    """The same for processors of another family."""
    return {n.name: numerics_among(n.name, targets) for t in targets for n in tables_on(t, family)}


@dataclass
class Tally:
    """Counts over pairs of outputs: samples, values compared, values that differ in any byte, the largest difference in LSB."""

    samples: int = 0
    values: int = 0
    different: int = 0
    max_lsb: int = 0

    def update(self, graph: Graph, expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> None:
        """Compare one batch byte for byte."""
        found = compare_all(graph, graph.outputs, expected, actual)
        self.samples += len(expected[0])
        self.values += sum(int(e.size) for e in expected)
        self.different += sum(d.count for d in found)
        self.max_lsb = max([self.max_lsb, *(d.max_lsb for d in found)])


def real_values(graph: Graph, names: Sequence[str], arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Arrays of graph inputs or outputs as float32; codes are multiplied out."""
    out = []
    for name, array in zip(names, arrays, strict=True):
        type = graph.tensors[name]
        if type.quantization is not None:
            array = (array.astype(np.float32) - np.float32(type.zero_point)) * np.float32(type.scale)
        out.append(array.reshape(-1, *type.shape[1:]))
    return out


@dataclass
class Evaluation:
    """What one pass over a data set gave.

    Attributes:
        metric: name, or "" when the data has nothing to measure against.
        float_metric: of the float graph, None without one.
        simulated, measured: numerics -> metric, by the simulator and in the real runtime.
        skipped: numerics -> why its runtime was not run (and how to get it).
        failed: numerics -> how its runtime failed.
        agreement: numerics -> closeness of the simulated outputs to the float graph's.
        compared: numerics -> simulator against runtime.
        parity: (numerics, numerics) -> simulated outputs against each other.
        samples: how many.
    """

    metric: str
    float_metric: float | None = None
    simulated: dict[str, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    agreement: dict[str, Agreement] = field(default_factory=dict)
    compared: dict[str, Tally] = field(default_factory=dict)
    parity: dict[tuple[str, str], Tally] = field(default_factory=dict)
    samples: int = 0


def evaluate(
    graph: Graph,
    data: Dataset,
    numerics: Sequence[str],
    *,
    artifacts: Mapping[str, bytes],
    metric: str = "",
    float_graph: Graph | None = None,
    float_data: Dataset | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Measure a network on ``data``.

    Args:
        graph: the integer graph.
        data: samples, with labels where the metric needs them.
        numerics: names; each is simulated, and run for real where ``artifacts`` has its target and its runtime is here.
        artifacts: target -> the file's bytes.
        metric: key of ``metrics.METRICS``, or "" for none.
        float_graph: to measure against; ``float_data``: the same samples for its inputs (``data`` unless given).
        progress: called as (stage, samples done, total).
    Raises: UsageError: the metric does not fit the data. UnsupportedOpError: a runtime that can't execute the graph.
    """
    result = Evaluation(metric)
    tables = {name: numerics_among(name, artifacts) for name in numerics}
    for table in tables.values():
        table.require(graph)

    def fresh(names: Sequence[str]) -> dict[str, Metric]:
        return {n: new_metric(metric) for n in names} if metric else {}

    simulated, measured, reference = fresh(numerics), fresh(numerics), fresh(["float"])
    keys = {name: meaning(graph, table) for name, table in tables.items()}
    with ExitStack() as stack:
        # runtimes are processes of their own; they work while this one simulates
        pool = stack.enter_context(ThreadPoolExecutor(max(1, len(tables))))
        sessions: dict[str, Session] = {}
        for name, table in tables.items():
            if table.target not in artifacts:
                result.skipped[name] = f"no {table.target} artifact"
                continue
            try:
                sessions[name] = stack.enter_context(Session(table.runner, artifacts[table.target]))
                result.compared[name] = Tally()
            except MissingToolError as error:
                result.skipped[name] = f"{error.message}; {error.fix}" if error.fix else error.message
            except RunError as error:
                result.failed[name] = error.message
        floats_of = (float_data or data).batches(BATCH) if float_graph is not None else repeat(None)
        for arrays, float_arrays in zip(data.batches(BATCH), floats_of, strict=float_graph is not None):
            labels = None if data.labels is None else data.labels[result.samples : result.samples + len(arrays[0])]
            expected: dict[str, list[np.ndarray]] = {}
            floats = run(float_graph, float_arrays, None) if float_graph is not None and float_arrays is not None else None
            reals = float_arrays or tuple(real_values(graph, graph.inputs, arrays))
            if floats is not None and metric:
                reference["float"].update(floats, reals, labels)
            with _in_background(pool, sessions, arrays) as pending:
                same: dict[Hashable, list[np.ndarray]] = {}
                for name, table in tables.items():
                    if keys[name] not in same:
                        same[keys[name]] = run(graph, arrays, table)
                    expected[name] = same[keys[name]]
                    outputs = real_values(graph, graph.outputs, expected[name])
                    if metric:
                        simulated[name].update(outputs, reals, labels)
                    if floats is not None:
                        result.agreement.setdefault(name, Agreement()).update(outputs, floats)
                for a, b in _pairs(list(numerics)):
                    result.parity.setdefault((a, b), Tally()).update(graph, expected[a], expected[b])
            for name, future in pending.items():
                try:
                    actual = future.result()
                except RunError as error:
                    result.failed[name] = error.message
                    del sessions[name]
                    continue
                result.compared[name].update(graph, expected[name], actual)
                if metric:
                    measured[name].update(real_values(graph, graph.outputs, actual), reals, labels)
            result.samples += len(arrays[0])
            progress("evaluate", result.samples, data.count or 0)
        if metric:
            result.simulated = {n: m.value() for n, m in simulated.items()}
            result.measured = {n: measured[n].value() for n in sessions}
            result.float_metric = reference["float"].value() if float_graph is not None else None
    return result


@contextmanager
def _in_background(
    pool: ThreadPoolExecutor, sessions: Mapping[str, Session], arrays: Sequence[np.ndarray]
) -> Iterator[dict[str, Future[list[np.ndarray]]]]:
    """Start ``arrays`` in every session. When the block is left by an error, the runtimes are killed, not waited for."""
    pending = {name: pool.submit(session.run, arrays) for name, session in sessions.items()}
    try:
        yield pending
        wait(pending.values())
    except BaseException:
        for session in sessions.values():
            session.abort()
        wait(pending.values())
        raise


def meaning(graph: Graph, numerics: Numerics) -> Hashable:
    """Equal for numerics that compute the same on ``graph``: the rules of its ops, and those that are not tied to one op."""
    ops = {n.op for n in graph.nodes}
    return tuple(sorted((key, rule) for key, rule in numerics.rules.items() if key not in OPS or key in ops))


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Every pair, in order."""
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
