"""Times an artifact in its real runtime, on any device.

1. Rounds: the runtime is started anew three times. Each time the artifact is loaded, run once (the first invocation), and then
   run on one sample again and again, each invocation timed inside the runtime's process.
2. Warm-up: each round's series is cut into blocks of 10; warm-up ends at the first block whose median is within 5 % of the
   median of the second half of the series. If no block of the first half is, the series never settled and all of its
   first half counts as warm-up.
3. Percentiles over what follows, all rounds together; the 95 % interval of the median by bootstrap over the medians of blocks of
   10 neighbouring runs, so that slow drifts widen it.
4. An emulated processor has no times worth telling: its instructions are counted instead, and its bytes compared all the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from qwtv2_edge.backends import FOLDERS, TARGETS, Artifact, get_numerics, load, tables_on
from qwtv2_edge.data import open_data
from qwtv2_edge.errors import MissingToolError, QwtEdgeError, UsageError
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.ir.types import CODE_BOUNDS, TensorType
from qwtv2_edge.numerics import Numerics
from qwtv2_edge.profiling.ops import OpTimes, time_ops
from qwtv2_edge.profiling.report import DeviceInfo, Latency, ProfileReport
from qwtv2_edge.runners.base import Device, Job, Run, family_of
from qwtv2_edge.runners.device import PlaceDevice, open_device
from qwtv2_edge.runners.host import KINDS, Port, Session
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
}

BLOCK = 10
SETTLED = 0.05
RESAMPLES = 1000
#: blocks that the bootstrap draws from: of longer series evenly spaced ones, which can only widen the interval
MOST_BLOCKS = 2000
ROUNDS = 3
#: how many invocations a round has when the caller does not say: this many seconds' worth, within these limits
SECONDS, LEAST_RUNS, MOST_RUNS = 1.0, 20, 2000
#: a round may take this long when the caller says how many
LONGEST_S = 600.0
#: p90 / p10 above which times are called noisy
NOISY = 1.3
#: how far medians of rounds may lie apart, and how wide the interval of the median may be
REPEATABLE = 0.05


def profile(
    artifact: Artifact | str | Path,
    inputs: Any = None,
    device: str | Device = "host",
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
    """Time ``artifact`` on ``device``.

    Args:
        artifact: an Artifact, or the path of a ``.tflite`` or ``.pte`` file.
        inputs: see ``qwtv2_edge.data``; random codes if None. The first sample is timed.
        device: "host", "adb[:SERIAL]", "ssh:[USER@]HOST", "qemu:CPU", or a device that is open already.
        threads: for the runtime's kernels.
        runs: timed invocations over all rounds; about three seconds' worth if None.
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
        if opened.kind == "qemu":
            _count(opened, it.job, measured)
        else:
            for i in range(ROUNDS if runs is None else min(ROUNDS, runs)):
                _round(opened, it.job, None if runs is None else (runs + i) // ROUNDS or 1, measured)
    except BaseException:
        if partial is not None and measured.load_ns:
            partial(_report(it, measured, complete=False))
        raise
    report = _report(it, measured, complete=True)
    if not ops or report.emulated:
        return report
    found = OpTimes(note=f"{opened.kind} devices tell no times per op")
    if isinstance(opened, PlaceDevice):
        found = time_ops(opened.place, it.job, it.graph)
    return replace(report, ops=found.rows, ops_note=found.note)


@dataclass(frozen=True)
class Prepared:
    """An artifact, ready to be timed on a device.

    Attributes:
        device, described, before: the device, what it is, and its state before the first run; ``said``: in its own words.
        name: of the artifact; graph: behind it, None where there is none to be had.
        table: the numerics to time.
    """

    device: Device
    said: str
    described: Described
    before: State
    name: str
    graph: Graph | None
    table: Numerics
    job: Job

    def emulated(self, abi: str) -> bool:
        """Whether a runtime that says it runs on ``abi`` was emulated."""
        return self.device.kind == "qemu" or parse(self.said, abi)[0].emulated

    def state_after(self) -> State:
        """The device's state now; the one before if the device is lost."""
        try:
            return parse(self.device.state_text())[1]
        except QwtEdgeError:
            return self.before


def prepare(
    artifact: Artifact | str | Path,
    inputs: Any,
    device: Device,
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
    said = device.state_text()
    described, before = parse(said)
    table = _table(target, numerics, _family(device, described))
    graph = graph or _graph_in(target, data)
    feed, count = _samples(inputs, graph, samples, data, table)
    outputs = [(t.dtype, t.shape) for t in map(graph.tensors.__getitem__, graph.outputs)] if graph else ()
    job = Job(target, table.runner, data, feed, threads, tuple(cores), count, outputs)
    return Prepared(device, said, described, before, name, graph, table, job)


def _report(it: Prepared, measured: Measured, complete: bool) -> ProfileReport:
    after = it.state_after()
    emulated = it.emulated(measured.abi)
    latency, settled = summarise(measured.rounds) if any(measured.rounds) else (None, True)
    match, match_note = _matches(it, measured)
    times = None if emulated else latency
    return ProfileReport(
        artifact=it.name,
        sha256=hashlib.sha256(it.job.data).hexdigest(),
        bytes=len(it.job.data),
        numerics=it.table.name,
        runtime=KINDS[it.table.runner][0],
        versions=measured.versions,
        device=DeviceInfo(it.device.kind, it.described.name, measured.abi, it.described.cores, it.before.governor, it.before.temperature_c),
        threads=it.job.threads,
        load_ms=float(np.median(measured.load_ns)) / 1e6 if times else None,
        first_ms=float(np.median(measured.first_ns)) / 1e6 if times else None,
        latency=times,
        peak_rss_bytes=measured.peak_rss_bytes,
        outputs_match=match,
        match_note=match_note,
        emulated=emulated,
        complete=complete,
        reasons=(*doubts_of(it, times, settled), *doubts(it.before, after, measured.cores)) if times else (),
        pinned_cores=measured.cores,
        instructions=measured.instructions,
        state={"before": it.before.to_json(), "after": after.to_json()},
    )


@dataclass
class Measured:
    """What the rounds gave, as far as they came."""

    load_ns: list[int] = field(default_factory=list)
    first_ns: list[int] = field(default_factory=list)
    rounds: list[list[int]] = field(default_factory=list)
    outputs: tuple[np.ndarray, ...] = ()
    peak_rss_bytes: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    abi: str = ""
    cores: tuple[int, ...] = ()
    instructions: dict[str, Any] | None = None

    def take(self, run: Run) -> None:
        """What a run tells besides times."""
        self.outputs, self.versions, self.abi, self.cores = run.outputs, dict(run.versions), run.abi, run.cores
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


def _count(device: Device, job: Job, measured: Measured) -> None:
    """Run the samples on an emulated processor, and count its instructions."""
    from qwtv2_edge.runners.counting import count

    assert isinstance(device, PlaceDevice)
    with device.open(job) as run:
        run.block(1, LONGEST_S, lambda ns: None)
        measured.take(run)
    measured.instructions = count(job, device.place).to_json()


def summarise(rounds: Sequence[Sequence[int]]) -> tuple[Latency, bool]:
    """Percentiles of series of nanoseconds (rules 2 and 3 above), one series a round, and whether all settled."""
    cuts = [(np.asarray(ns, np.float64) / 1e6, *warmup_runs(np.asarray(ns, np.float64))) for ns in rounds if len(ns)]
    steady = [series[warmup:] for series, warmup, _ in cuts]
    everything = np.concatenate(steady)
    p10, p50, p90, p99 = (float(v) for v in np.percentile(everything, (10, 50, 90, 99)))
    blocks = [s[i : i + BLOCK] for s in steady for i in range(0, max(1, len(s) - BLOCK + 1), BLOCK)]
    latency = Latency(
        p10_ms=p10,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        ci95_ms=interval_of_median(blocks),
        runs=len(everything),
        warmup_runs=sum(warmup for _, warmup, _ in cuts),
        rounds_p50_ms=tuple(float(np.median(s)) for s in steady),
        throughput_per_s=1e3 / float(np.mean(everything)),
    )
    return latency, all(settled for _, _, settled in cuts)


def warmup_runs(series: np.ndarray) -> tuple[int, bool]:
    """(runs to leave out, whether the series settled); see rule 2."""
    half = len(series) // 2
    if half < BLOCK:
        return 0, True  # too short to tell; the number of runs is a doubt of its own
    steady = np.median(series[half:])
    for start in range(0, half - BLOCK + 1, BLOCK):
        if abs(np.median(series[start : start + BLOCK]) - steady) <= SETTLED * steady:
            return start, True
    return half, False


def interval_of_median(blocks: Sequence[np.ndarray]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median of all ``blocks`` together; blocks are drawn whole.

    Raises: MissingToolError: without SciPy.
    """
    if len(blocks) < 2:
        middle = float(np.median(blocks[0]))
        return middle, middle  # nothing to draw from
    blocks = blocks[:: -(-len(blocks) // MOST_BLOCKS)]

    def median(drawn: np.ndarray) -> float:
        return float(np.median(np.concatenate([blocks[i] for i in drawn])))

    found = statistics().bootstrap(
        (np.arange(len(blocks)),), median, n_resamples=RESAMPLES, method="percentile", vectorized=False, rng=np.random.default_rng(0)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def statistics() -> Any:
    """SciPy's statistics."""
    try:
        from scipy import stats
    except ModuleNotFoundError as exc:
        raise MissingToolError("confidence intervals need SciPy", fix="pip install 'qwtv2-edge[profile]'") from exc
    return stats


def _family(device: Device, described: Described) -> str:
    """The processor family of the runtimes on ``device``."""
    return device.place.family if isinstance(device, PlaceDevice) else family_of(described.abi)


def _table(target: str, name: str | None, family: str) -> Numerics:
    """The numerics to time: the one called ``name``, or the target's usual one on ``family``."""
    usual = DEFAULT_NUMERICS.get(target)
    if usual is None:
        raise UsageError(f"{target} runs on microcontrollers: nothing here can time it", fix=f"one of: {', '.join(DEFAULT_NUMERICS)}")
    table = get_numerics(name) if name else next(n for n in tables_on(target, family) if n.name.partition("@")[0] == usual)
    if not table.runs(target):
        raise UsageError(f"numerics '{table.name}' runs {table.target} artifacts, not {target}")
    if not table.runs_on(family):
        raise UsageError(
            f"numerics '{table.name}' can't run on {family}", fix=f"one of: {', '.join(n.name for n in tables_on(target, family))}"
        )
    return table.on(target)


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
    path = Path(artifact)
    target = target_of(path)
    try:
        return target, path.read_bytes(), str(path)
    except OSError as exc:
        raise UsageError(f"can't read {path}: {exc.strerror or exc}", fix="check the path and its permissions") from exc


def target_of(path: Path) -> str:
    """The target of a file, by its name: ``<target>/model.*``, ``.<target>.tflite`` or ``.<target>.pte``, else "tflite" or XNNPACK."""
    above = path.absolute().parent.name
    if FOLDERS.get(above) == path.name:
        return above
    usual = {".tflite": "tflite", ".pte": "executorch-xnnpack"}.get(path.suffix)
    if usual is not None:
        named = path.stem.rpartition(".")[2]
        return named if TARGETS.get(named) == TARGETS[usual] else usual
    raise UsageError(f"{path} is neither a .tflite nor a .pte file", fix="give a file written by export")


def _samples(inputs: Any, graph: Graph | None, count: int, data: bytes, table: Numerics) -> tuple[list[np.ndarray], int]:
    """At most ``count`` samples for every input of the artifact, and how many."""
    if inputs is None and graph is not None:
        at = PATTERNS.index("random codes")
        _, arrays = edge_patterns(graph)
        return [a[at * (len(a) // len(PATTERNS)) : (at + 1) * (len(a) // len(PATTERNS))] for a in arrays], 1
    if graph is None:
        with Session(table.runner, data) as session:
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
    return not compare_all(it.graph, it.graph.outputs, run(it.graph, it.job.inputs, it.table), measured.outputs), ""


def doubts_of(it: Prepared, latency: Latency, settled: bool) -> tuple[str, ...]:
    """Why the times should not be trusted, as far as they tell it themselves; empty when they can be."""
    cores, busy, threads = it.described.cores, it.before.load1, it.job.threads
    width = (latency.ci95_ms[1] - latency.ci95_ms[0]) / latency.p50_ms
    checks = (
        (latency.runs < 30, f"only {latency.runs} timed runs"),
        (not settled, f"times had not settled after {latency.warmup_runs} runs"),
        (latency.p90_ms > NOISY * latency.p10_ms, f"noisy: p90 is {latency.p90_ms / latency.p10_ms:.2f} times p10"),
        (latency.spread > REPEATABLE, f"not repeatable: medians of {len(latency.rounds_p50_ms)} starts differ by {latency.spread:.1%}"),
        (width > REPEATABLE, f"the interval of the median is {width:.1%} wide"),
        (threads > cores, f"{threads} threads on {cores} cores"),
        (busy is not None and busy > cores - threads + 0.5, f"the device is busy: load average {busy} on {cores} cores"),
    )
    return tuple(reason for doubtful, reason in checks if doubtful)
