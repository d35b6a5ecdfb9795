"""Runs an artifact in its real runtimes and compares every byte with the simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from qwtv2_edge.backends import Artifact, choose_numerics, get_numerics
from qwtv2_edge.data import Dataset, open_data, rereadable
from qwtv2_edge.errors import MissingToolError, RunError, RuntimeLimitError
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.numerics import Numerics, rule_key
from qwtv2_edge.runners.base import Place
from qwtv2_edge.runners.board import Board
from qwtv2_edge.runners.device import open_session
from qwtv2_edge.runners.host import HOST
from qwtv2_edge.simulator.run import batch_size, run
from qwtv2_edge.verification.bisect import explained_by_bounds, find_culprit
from qwtv2_edge.verification.compare import Difference, compare_all
from qwtv2_edge.verification.patterns import PATTERNS, edge_patterns
from qwtv2_edge.verification.report import Culprit, Mismatch, NumericsResult, VerifyReport

#: stage, done, total (0 while unknown)
Progress = Callable[[str, int, int], None]

_MAX_BATCH = 64


def verify(
    graph: Graph,
    artifact: Artifact,
    inputs: Any = None,
    numerics: Iterable[str] | None = None,
    samples: int | None = None,
    progress: Progress | None = None,
    place: Place | Board = HOST,
) -> VerifyReport:
    """Run ``artifact`` in its real runtimes and compare every byte of every output with the simulator.

    Args:
        graph: the integer graph the artifact was emitted from, or that was read from it.
        artifact: the file.
        inputs: anything :func:`qwtv2_edge.data.open_data` takes; edge patterns are always run before them.
        numerics: names; all numerics of the artifact's target that ``place`` can ever run if None.
        samples: at most this many of ``inputs``, drawn over the whole set when its size is known, else the first.
        progress: called with (numerics name, samples done, samples in all or 0).
        place: where the runtimes run; see ``runners.device.open_place``.
    Returns: one result per numerics. A missing runtime or a crash is a result, not an error.
    Raises: UsageError: unknown numerics, one of another target or processor, unusable inputs.
    """
    tables = choose_numerics(artifact.target, numerics, place.name, place.family, place.lacks)
    if inputs is None:
        return VerifyReport(artifact.target, {t.name: _verify_one(graph, artifact, None, None, t, progress, place) for t in tables})
    data = open_data(inputs, graph, purpose="verification inputs")
    if samples is not None and data.count is not None:
        data = data.sample(samples, seed=0)
    with rereadable(data) as again:
        results = {t.name: _verify_one(graph, artifact, again, samples, t, progress, place) for t in tables}
    return VerifyReport(artifact.target, results)


def golden_vectors(graph: Graph, inputs: Sequence[np.ndarray], numerics: Iterable[str]) -> dict[str, np.ndarray]:
    """Inputs and the bytes each numerics gives for them.

    Args:
        inputs: one array per graph input, first axis = samples.
    Returns: input name -> array, and "numerics/output name" -> array, ready for an ``.npz``.
    """
    out = dict(zip(graph.inputs, (np.asarray(a) for a in inputs), strict=True))
    for name in numerics:
        for output, array in zip(graph.outputs, run(graph, inputs, get_numerics(name)), strict=True):
            out[f"{name}/{output}"] = array
    return out


def _verify_one(
    graph: Graph,
    artifact: Artifact,
    data: Dataset | None,
    samples: int | None,
    table: Numerics,
    progress: Progress | None,
    place: Place | Board,
) -> NumericsResult:
    common: dict[str, Any] = {
        "numerics": table.name,
        "runtime": table.runtime,
        "promise": table.promise,
        "declared_lsb": table.declared_lsb(graph),
    }
    refused = table.refusals(graph)
    if refused:
        node, reason = refused[0]
        return NumericsResult(**common, status="refused", error=f"{node.op} '{node.name}': {reason}")
    tally = _Tally(graph)
    try:
        with open_session(table.runner, artifact.data, place) as session:
            common["versions"] = session.versions
            for origins, arrays in _batches(graph, data, samples):
                tally.add(origins, arrays, run(graph, arrays, table), session.run(arrays))
                if progress is not None:
                    progress(table.name, tally.samples, _total(data, samples))
            if tally.mismatches == 0:
                return NumericsResult(**common, **tally.counts(), status="exact" if table.promise == "exact" else "bound")
            culprit = find_culprit(graph, table, tally.failing, session, progress)
            allowed = table.promise != "exact" or (
                _is_declared(graph, culprit, table) and explained_by_bounds(graph, table, tally.failing, session)
            )
    except MissingToolError as error:
        return NumericsResult(**common, status="missing", error=error.message, fix=error.fix)
    except RuntimeLimitError as error:
        return NumericsResult(**common, status="refused", error=f"fails on some of the values tried: {error.message}", fix=error.fix)
    except RunError as error:
        return NumericsResult(**common, **tally.counts(), status="crashed", error=error.message, fix=error.fix)
    return NumericsResult(**common, **tally.counts(), status="bound" if allowed else "mismatch", first=tally.first(culprit))


def _is_declared(graph: Graph, culprit: Culprit, table: Numerics) -> bool:
    """Whether the first differing node is of an op that is declared to differ."""
    return bool(culprit.node) and rule_key(graph, graph.node(culprit.node)) in table.bounds


class _Tally:
    """Counts over all batches of one numerics, and the first sample that failed."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.samples = self.compared = self.mismatches = self.max_lsb = 0
        self.failing: list[np.ndarray] = []
        self.origin = ""
        self.failing_sample = 0
        self.difference: Difference | None = None

    def add(
        self, origins: Sequence[str], arrays: Sequence[np.ndarray], expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]
    ) -> None:
        """Count one batch; ``origins`` names its samples."""
        found = compare_all(self.graph, self.graph.outputs, expected, actual)
        self.compared += sum(int(e.size) for e in expected)
        self.mismatches += sum(d.count for d in found)
        self.max_lsb = max([self.max_lsb, *(d.max_lsb for d in found)])
        if found and self.difference is None:
            at = _failing_sample(expected, actual, len(origins))
            self.failing = _sample(arrays, at, len(origins))
            self.origin, self.failing_sample = origins[at], self.samples + at
            one = _sample(expected, at, len(origins)), _sample(actual, at, len(origins))
            self.difference = (compare_all(self.graph, self.graph.outputs, *one) or found)[0]
        self.samples += len(origins)

    def counts(self) -> dict[str, Any]:
        return {"samples": self.samples, "outputs_compared": self.compared, "mismatches": self.mismatches, "max_lsb": self.max_lsb}

    def first(self, culprit: Culprit) -> Mismatch:
        assert self.difference is not None
        return Mismatch(self.failing_sample, self.origin, self.difference, culprit)


def _sample(arrays: Sequence[np.ndarray], at: int, count: int) -> list[np.ndarray]:
    """The rows of sample ``at`` of ``count``."""
    return [a[at * (len(a) // count) : (at + 1) * (len(a) // count)] if a.ndim else a for a in arrays]


def _failing_sample(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray], count: int) -> int:
    """The first of ``count`` samples with a differing byte; 0 when the outputs do not even have the same sizes."""
    for at in range(count):
        for want, got in zip(_sample(expected, at, count), _sample(actual, at, count), strict=False):
            if want.tobytes() != got.tobytes():
                return at
    return 0


def _batches(graph: Graph, data: Dataset | None, samples: int | None) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """(names of the samples, one array per input): edge patterns, then the data."""
    names, arrays = edge_patterns(graph)
    yield list(names), arrays
    if data is None:
        return
    unit = graph.tensors[graph.inputs[0]].shape[0]
    size = min(_MAX_BATCH, batch_size(graph)) * unit
    limit = None if samples is None else -(-samples * unit // size)
    done = 0
    for batch in islice(data.batches(size), limit):
        keep = len(batch[0]) // unit if samples is None else min(len(batch[0]) // unit, samples - done)
        yield [f"data {done + i}" for i in range(keep)], [a[: keep * unit] for a in batch]
        done += keep


def _total(data: Dataset | None, samples: int | None) -> int:
    if data is None:
        return len(PATTERNS)
    known = [n for n in (data.count, samples) if n is not None]
    return len(PATTERNS) + min(known) if known else 0
