"""Times an artifact in its real runtime, on any device.

The runtime is started anew five times. Each time the artifact is loaded, run once (the first invocation), and then run on one sample
again and again, each invocation timed inside the runtime's process. What the series say is told by :mod:`.series`.
An emulated processor has no times worth telling: its instructions are counted instead, and its bytes compared all the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from qwtv2_edge.backends import TARGETS, Artifact, artifact_file, choose_numerics, load, read_artifact, tables_on
from qwtv2_edge.data import open_data
from qwtv2_edge.errors import QwtEdgeError, UsageError
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.ir.types import CODE_BOUNDS, TensorType
from qwtv2_edge.numerics import Numerics
from qwtv2_edge.profiling.ops import OpTimes, instructions_of_ops, time_ops
from qwtv2_edge.profiling.report import DeviceInfo, ProfileReport
from qwtv2_edge.profiling.series import summarise
from qwtv2_edge.runners.base import Device, Emulation, Job, Place, Run, family_of
from qwtv2_edge.runners.board import Board
from qwtv2_edge.runners.counting import Counts
from qwtv2_edge.runners.device import BoardDevice, PlaceDevice, open_device, open_session
from qwtv2_edge.runners.host import HOST, KINDS, SINGLE_THREADED, Port
from qwtv2_edge.runners.state import Described, State, doubts, parse
from qwtv2_edge.simulator.run import run
from qwtv2_edge.verification.compare import compare_all
from qwtv2_edge.verification.patterns import PATTERNS, edge_patterns

#: target -> numerics that is timed unless another is asked for
DEFAULT_NUMERICS = {
    "tflite": "litert-xnnpack",
    "tflite-micro": "tflite-micro",
    "executorch-xnnpack": "executorch-xnnpack",
    "executorch-portable": "executorch-portable",
    "c": "c",
}

ROUNDS = 5
#: how many invocations a round has when the caller does not say: this many seconds' worth, within these limits
SECONDS, LEAST_RUNS, MOST_RUNS = 0.6, 20, 1200
#: a round may take this long when the caller says how many
LONGEST_S = 600.0


def profile(
    artifact: Artifact | str | Path,
    inputs: Any = None,
    device: str | Device | Emulation = "host",
    threads: int = 1,
    runs: int | None = None,
    graph: Graph | None = None,
    numerics: str | None = None,
    *,
    samples: int = 1,
    cores: Sequence[int] = (),
    tool: str | Path | None = None,
    ops: bool = True,
    partial: Callable[[ProfileReport], None] | None = None,
) -> ProfileReport:
    """Time ``artifact`` on ``device``; on an emulated one count its instructions.

    Args:
        artifact: an Artifact, or the path of a ``.tflite``, ``.pte`` or generated ``.c`` file, or of the folder of such a target.
        inputs: see ``qwtv2_edge.data``; random codes if None. The first sample is timed.
        device: "host", "adb[:SERIAL]", "ssh:[USER@]HOST", "qemu:CPU", "board:CORE", or a device that is open already.
        threads: for the runtime's kernels.
        runs: timed invocations over all starts; about three seconds' worth if None.
        graph: the integer graph behind the artifact, to compare this run's outputs with the simulator; a ``.tflite`` is
            read for it where none is given.
        numerics: whose runtime to time; the target's fastest if None.
        samples: this many of ``inputs`` are run and compared.
        cores: processor cores to stay on, empty for any.
        tool: on phones, a command-line tool of the runtime in place of the demo app.
        ops: time each op too, in a run of its own, where the runtime can tell.
        partial: called with a report of what had been measured when the run is cut short, before the error goes on.
    Raises: UsageError: unknown device, numerics, file or inputs; MissingToolError; RunError.
    """
    if runs is not None and runs < 1:
        raise UsageError(f"runs ({runs}) must be at least 1")
    opened = open_device(device, Path(tool) if tool else None) if isinstance(device, str) else device
    it = prepare(artifact, inputs, opened, threads, graph, numerics, samples, cores)
    measured = Measured()
    try:
        if isinstance(opened, Emulation):
            measured.count(opened.count(it.job, runs))
        else:
            for i in range(ROUNDS if runs is None else min(ROUNDS, runs)):
                _round(opened, it.job, None if runs is None else (runs + i) // ROUNDS or 1, measured)
        report = _report(it, measured, complete=True)
        found = _ops(it, measured) if ops else OpTimes()
    except BaseException:
        if partial is not None and measured.load_ns:
            partial(_report(it, measured, complete=False))
        raise
    return replace(report, ops=found.rows, ops_note=found.note)


def _ops(it: Prepared, measured: Measured) -> OpTimes:
    """What each op takes, where that can be told."""
    if measured.nodes:
        return OpTimes(instructions_of_ops(measured.nodes, it.graph))
    if it.emulated(measured.abi):
        return OpTimes()
    if isinstance(it.device, PlaceDevice):
        return time_ops(it.device.place, it.job, it.graph)
    return OpTimes(note=f"{it.device.kind} devices tell no times per op")


@dataclass(frozen=True)
class Prepared:
    """An artifact, ready to be timed on a device.

    Attributes:
        device, described, before: the device, what it is, and its state before the first run; ``said``: in its own words, "" of an
            emulated one.
        name: of the artifact; graph: behind it, None where there is none to be had.
        table: the numerics to time.
    """

    device: Device | Emulation
    said: str
    described: Described
    before: State
    name: str
    graph: Graph | None
    table: Numerics
    job: Job

    def emulated(self, abi: str) -> bool:
        """Whether a runtime that says it runs on ``abi`` was emulated."""
        return isinstance(self.device, Emulation) or parse(self.said, abi)[0].emulated

    def state_after(self) -> State | None:
        """The device's state now; None if it does not tell any more."""
        try:
            return None if isinstance(self.device, Emulation) else parse(self.device.state_text())[1]
        except QwtEdgeError:
            return None

    def device_doubts(self, after: State | None, pinned: Sequence[int]) -> tuple[str, ...]:
        """Why times should not be trusted, as far as the device tells. pinned: the cores that runs were bound to."""
        cores, busy, threads = self.described.cores, self.before.load1, self.job.threads
        wanted = ", ".join(map(str, self.job.cores))
        checks = (
            (threads > cores, f"{threads} threads on {cores} cores"),
            (bool(self.job.cores) and not pinned, f"not kept to cores {wanted}: the device does not bind programs to cores"),
            (busy is not None and busy > cores - threads + 0.5, f"the device is busy: load average {busy} on {cores} cores"),
            (after is None, "the device did not tell its state after the runs"),
        )
        said = tuple(reason for doubtful, reason in checks if doubtful)
        return said if after is None else (*said, *doubts(self.before, after, pinned))


def prepare(
    artifact: Artifact | str | Path,
    inputs: Any,
    device: Device | Emulation,
    threads: int,
    graph: Graph | None,
    numerics: str | None,
    samples: int,
    cores: Sequence[int],
) -> Prepared:
    """Read the artifact, look at the device, and put the samples together; arguments and errors as of :func:`profile`."""
    if threads < 1 or samples < 1:
        raise UsageError(f"threads ({threads}) and samples ({samples}) must be at least 1")
    target, data, name = _opened(artifact)
    said = "" if isinstance(device, Emulation) else device.state_text()
    described, before = parse(said)
    place = device.place if isinstance(device, (PlaceDevice, BoardDevice)) else None
    if place is not None:
        table = _table(target, numerics, place.name, place.family, place.lacks)
    else:
        table = _table(target, numerics, device.name, family_of(described.abi))
    if threads > 1 and (isinstance(device, Emulation) or table.runner in SINGLE_THREADED):
        what = f"instructions on {device.name} are counted" if isinstance(device, Emulation) else f"{KINDS[table.runner][0]} runs"
        raise UsageError(f"{what} in one thread, not {threads}", fix="leave the number of threads out")
    graph = graph or _graph_in(target, data)
    feed, count = _samples(inputs, graph, samples, data, table, place or HOST)
    outputs = [(t.dtype, t.shape) for t in map(graph.tensors.__getitem__, graph.outputs)] if graph else ()
    job = Job(target, table.runner, data, feed, threads, tuple(cores), count, outputs)
    return Prepared(device, said, described, before, name, graph, table, job)


def _report(it: Prepared, measured: Measured, complete: bool) -> ProfileReport:
    after = it.state_after()
    emulated = it.emulated(measured.abi)
    times, reasons = summarise(measured.rounds) if any(measured.rounds) and not emulated else (None, ())
    match, match_note = _matches(it, measured)
    device, d = it.device, it.described
    info = DeviceInfo(device.kind, d.name, measured.abi, d.cores, it.before.governor, it.before.temperature_c)
    if isinstance(device, Emulation):
        info = DeviceInfo(device.kind, device.name, measured.abi, cores=1)
    return ProfileReport(
        artifact=it.name,
        sha256=hashlib.sha256(it.job.data).hexdigest(),
        bytes=len(it.job.data),
        numerics=it.table.name,
        runtime=KINDS[it.table.runner][0],
        versions=measured.versions,
        device=info,
        threads=it.job.threads,
        load_ms=float(np.median(measured.load_ns)) / 1e6 if times else None,
        first_ms=float(np.median(measured.first_ns)) / 1e6 if times else None,
        latency=times,
        peak_rss_bytes=measured.peak_rss_bytes,
        outputs_match=match,
        match_note=match_note,
        emulated=emulated,
        complete=complete,
        reasons=(*reasons, *it.device_doubts(after, measured.cores)) if times else (),
        pinned_cores=measured.cores,
        instructions=measured.instructions,
        state={} if isinstance(device, Emulation) else {"before": it.before.to_json(), "after": after and after.to_json()},
    )


@dataclass
class Measured:
    """What the rounds gave, as far as they came. ``outputs``: of all rounds, those of equal bytes once."""

    load_ns: list[int] = field(default_factory=list)
    first_ns: list[int] = field(default_factory=list)
    rounds: list[list[int]] = field(default_factory=list)
    outputs: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    peak_rss_bytes: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    abi: str = ""
    cores: tuple[int, ...] = ()
    instructions: dict[str, Any] | None = None
    nodes: Mapping[str, int] = field(default_factory=dict)

    def count(self, counts: Counts) -> None:
        """What an emulated processor tells."""
        self.take(counts)
        self.instructions, self.nodes = counts.to_json(), counts.nodes

    def take(self, run: Run | Counts) -> None:
        """What a run tells besides times."""
        if run.outputs and not any(_equal(run.outputs, known) for known in self.outputs):
            self.outputs.append(run.outputs)
        self.versions, self.abi = dict(run.versions), run.abi
        self.cores = () if isinstance(run, Counts) else run.cores
        self.peak_rss_bytes = max(self.peak_rss_bytes, run.peak_rss_bytes)


def _round(device: Device, job: Job, runs: int | None, measured: Measured) -> None:
    """Start the runtime, time a series, end it."""
    with device.open(job) as timed:
        series: list[int] = []
        measured.rounds.append(series)

        def collect(count: int, seconds: float) -> None:
            before = list(series)
            try:
                before += timed.block(count, seconds, lambda ns: series.__setitem__(slice(None), [*before, *ns]))
                series[:] = before
            finally:
                if series:
                    measured.take(timed)

        try:
            if runs is not None:
                collect(runs, LONGEST_S)
            else:
                collect(MOST_RUNS, SECONDS)
                if len(series) < LEAST_RUNS:
                    collect(LEAST_RUNS - len(series), LONGEST_S)
        finally:
            if series:
                measured.load_ns.append(timed.load_ns)
                measured.first_ns.append(timed.first_ns)


def _table(target: str, name: str | None, where: str, family: str, lacks: Callable[[str], str] = lambda runner: "") -> Numerics:
    """The numerics to time: the one called ``name``, or the target's usual one on ``family``; the rest as of ``choose_numerics``."""
    usual = DEFAULT_NUMERICS.get(target)
    if usual is None:
        raise UsageError(f"{target} runs on microcontrollers: nothing here can time it", fix=f"one of: {', '.join(DEFAULT_NUMERICS)}")
    if name is None:
        choose_numerics(target, None, where, family, lacks)  # there is one at all
        name = next((t.name for t in tables_on(target, family) if t.name.partition("@")[0] == usual), usual)
    return choose_numerics(target, [name], where, family, lacks)[0]


def _graph_in(target: str, data: bytes) -> Graph | None:
    """The integer graph that a .tflite holds; None where there is none to read."""
    if TARGETS[target] == "tflite":
        with suppress(QwtEdgeError):
            return load("tflite").read(data)
    return None


def _opened(artifact: Artifact | str | Path) -> tuple[str, bytes, str]:
    """(target, bytes, name) of an artifact or a file."""
    if isinstance(artifact, Artifact):
        return artifact.target, artifact.data, artifact.file
    path = artifact_file(Path(artifact))
    read = read_artifact(path)
    return read.target, read.data, str(path)


def _samples(
    inputs: Any, graph: Graph | None, count: int, data: bytes, table: Numerics, place: Place | Board
) -> tuple[list[np.ndarray], int]:
    """At most ``count`` samples for every input of the artifact, and how many."""
    if inputs is None and graph is not None:
        at = PATTERNS.index("random codes")
        _, arrays = edge_patterns(graph)
        return [a[at * (len(a) // len(PATTERNS)) : (at + 1) * (len(a) // len(PATTERNS))] for a in arrays], 1
    if graph is None:
        with open_session(table.runner, data, place) as session:
            graph, ports = _boundary(session.inputs), session.inputs
        if inputs is None:
            rng = np.random.default_rng(0)
            return [_random(p, rng) for p in ports], 1
    unit = graph.tensors[graph.inputs[0]].shape[0]
    first = next(iter(open_data(inputs, graph, purpose="profile inputs").batches(unit * count)))
    found = len(first[0]) // unit
    return [a[: len(a) // unit * unit] for a in first], found


def _boundary(ports: Sequence[Port]) -> Graph:
    """A graph without nodes that has the artifact's inputs, so that data is read by the usual rules."""
    types = {p.name or f"input_{i}": TensorType(p.shape, p.dtype) for i, p in enumerate(ports)}
    return Graph("artifact", tuple(types), (), (), types, {})


def _random(port: Port, rng: np.random.Generator) -> np.ndarray:
    if port.dtype in CODE_BOUNDS:
        low, high = CODE_BOUNDS[port.dtype]
        return rng.integers(low, high + 1, port.shape).astype(port.dtype)
    return rng.standard_normal(port.shape).astype(port.dtype)


def _matches(it: Prepared, measured: Measured) -> tuple[bool | None, str]:
    """Whether the timed outputs are the simulated ones, or None and why it is not known."""
    if it.graph is None:
        return None, "there is no integer graph to simulate"
    if not measured.outputs:
        return None, "no outputs came back"
    expected = run(it.graph, it.job.inputs, it.table)
    agrees = not any(compare_all(it.graph, it.graph.outputs, expected, outputs) for outputs in measured.outputs)
    return agrees, "" if len(measured.outputs) == 1 else "outputs differ from one start to the next"


def _equal(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    return [x.tobytes() for x in a] == [y.tobytes() for y in b]
