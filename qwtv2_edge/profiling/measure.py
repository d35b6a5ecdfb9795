"""Times an artifact in its real runtime.

1. Series: one first invocation, then n invocations of the same sample, each timed inside the runtime's process.
2. Warm-up: the series is cut into blocks of 10; warm-up ends at the first block whose median is within 5 % of the
   median of the second half of the series. If no block of the first half is, the series never settled and all of its
   first half counts as warm-up.
3. Percentiles over what follows; the 95 % interval of the median from 1000 bootstrap samples of whole blocks of
   10 neighbouring runs, so that slow drifts widen it.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwtv2_edge.backends import TARGETS, Artifact, get_numerics, load
from qwtv2_edge.data import open_data
from qwtv2_edge.errors import QwtEdgeError, UsageError
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.ir.types import CODE_BOUNDS, TensorType
from qwtv2_edge.profiling.report import Device, Latency, ProfileReport
from qwtv2_edge.runners.host import KINDS, Port, Session, Timing
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
DEVICES = ("host",)

BLOCK = 10
SETTLED = 0.05
RESAMPLES = 1000
#: how many invocations are timed when the caller does not say: about this many seconds, within these limits
SECONDS, LEAST_RUNS, MOST_RUNS = 2.0, 60, 2000
#: p90 / p10 above which times are called noisy
NOISY = 1.3
HOT_C = 85.0


def profile(
    artifact: Artifact | str | Path,
    inputs: Any = None,
    device: str = "host",
    threads: int = 1,
    runs: int | None = None,
    graph: Graph | None = None,
    numerics: str | None = None,
) -> ProfileReport:
    """Time ``artifact`` on ``device``.

    Args:
        artifact: an Artifact, or the path of a ``.tflite`` or ``.pte`` file.
        inputs: the first sample of it is run (see ``qwtv2_edge.data``); random codes if None.
        device: "host".
        threads: for the runtime's kernels.
        runs: timed invocations; about two seconds' worth if None.
        graph: the integer graph behind the artifact, to compare this run's outputs with the simulator; a ``.tflite`` is
            read for it where none is given.
        numerics: whose runtime to time; the target's fastest if None.
    Raises: UsageError: unknown device, numerics, file or inputs; MissingToolError; RunError.
    """
    if device not in DEVICES:
        raise UsageError(f"device '{device}' is not known", fix=f"this version has: {', '.join(DEVICES)}")
    if threads < 1 or (runs is not None and runs < 1):
        raise UsageError(f"threads ({threads}) and runs ({runs}) must be at least 1")
    target, data, name = _opened(artifact)
    table = get_numerics(numerics or DEFAULT_NUMERICS[target])
    if not table.runs(target):
        raise UsageError(f"numerics '{table.name}' runs {table.target} artifacts, not {target}")
    busy = os.getloadavg()[0]
    with Session(table.runner, data, threads=threads) as session:
        feed = _sample(inputs, graph, session.inputs)
        if runs is None:
            pilot = session.time(feed, BLOCK, warmup=2)
            runs = int(np.clip(SECONDS * 1e9 / max(np.median(pilot.ns), 1), LEAST_RUNS, MOST_RUNS))
            session.load(data)  # so that the first invocation is a first one
        timing = session.time(feed, runs, warmup=0)
        versions = session.versions
    place = describe_host()
    latency, settled = summarise(timing.ns)
    match, match_note = _matches(graph, target, data, table.name, feed, timing)
    return ProfileReport(
        artifact=name,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        numerics=table.name,
        runtime=KINDS[table.runner][0],
        versions=versions,
        device=place,
        threads=threads,
        load_ms=timing.load_ns / 1e6,
        first_ms=timing.first_ns / 1e6,
        latency=latency,
        peak_rss_bytes=timing.peak_rss_bytes,
        outputs_match=match,
        match_note=match_note,
        reasons=_doubts(place, latency, settled, threads, busy),
        ops_note=f"{KINDS[table.runner][0]} tells no times per op through its Python bindings",
    )


def summarise(ns: Sequence[int]) -> tuple[Latency, bool]:
    """Percentiles of a series of nanoseconds (rules 2 and 3 above), and whether it settled."""
    series = np.asarray(ns, np.float64) / 1e6
    warmup, settled = warmup_runs(series)
    steady = series[warmup:]
    p10, p50, p90, p99 = (float(v) for v in np.percentile(steady, (10, 50, 90, 99)))
    return Latency(p10, p50, p90, p99, _interval(steady), len(steady), warmup), settled


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


def _interval(series: np.ndarray) -> tuple[float, float]:
    length = min(BLOCK, len(series))
    blocks = np.lib.stride_tricks.sliding_window_view(series, length)
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(blocks), (RESAMPLES, -(-len(series) // length)))
    medians = [float(np.median(blocks[p])) for p in picks]
    low, high = np.percentile(medians, (2.5, 97.5))
    return float(low), float(high)


def describe_host() -> Device:
    """This machine, from what Linux tells."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    governor = _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))
    zones = [_read(p) for p in sorted(Path("/sys/class/thermal").glob("thermal_zone*/temp"))]
    degrees = [int(z) / 1000 for z in zones if z.lstrip("-").isdigit()]
    return Device("host", _processor(), platform.machine(), cores, governor, max(degrees, default=None))


def _processor() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""  # not every machine has it


def _opened(artifact: Artifact | str | Path) -> tuple[str, bytes, str]:
    """(target, bytes, name) of an artifact or a file."""
    if isinstance(artifact, Artifact):
        return artifact.target, artifact.data, f"model{artifact.suffix}"
    path = Path(artifact)
    target = target_of(path)
    try:
        return target, path.read_bytes(), str(path)
    except OSError as exc:
        raise UsageError(f"can't read {path}: {exc.strerror or exc}", fix="check the path and its permissions") from exc


def target_of(path: Path) -> str:
    """The target of a file, by its name: ``.<target>.tflite`` or ``.<target>.pte``, else "tflite" or XNNPACK."""
    usual = {".tflite": "tflite", ".pte": "executorch-xnnpack"}.get(path.suffix)
    if usual is not None:
        named = path.stem.rpartition(".")[2]
        return named if TARGETS.get(named) == TARGETS[usual] else usual
    raise UsageError(f"{path} is neither a .tflite nor a .pte file", fix="give a file written by export")


def _sample(inputs: Any, graph: Graph | None, ports: Sequence[Port]) -> list[np.ndarray]:
    """One sample for every input of the artifact."""
    if inputs is not None:
        graph = graph or _boundary(ports)
        unit = graph.tensors[graph.inputs[0]].shape[0]
        return [a[:unit] for a in next(iter(open_data(inputs, graph, purpose="profile inputs").batches(unit)))]
    if graph is not None:
        at = PATTERNS.index("random codes")
        _, arrays = edge_patterns(graph)
        return [a[at * (len(a) // len(PATTERNS)) : (at + 1) * (len(a) // len(PATTERNS))] for a in arrays]
    rng = np.random.default_rng(0)
    return [_random(p, rng) for p in ports]


def _boundary(ports: Sequence[Port]) -> Graph:
    """A graph without nodes that has the artifact's inputs, so that data is read by the usual rules."""
    types = {p.name or f"input_{i}": TensorType(p.shape, p.dtype) for i, p in enumerate(ports)}
    return Graph("artifact", tuple(types), (), (), types, {})


def _random(port: Port, rng: np.random.Generator) -> np.ndarray:
    if port.dtype in CODE_BOUNDS:
        low, high = CODE_BOUNDS[port.dtype]
        return rng.integers(low, high + 1, port.shape).astype(port.dtype)
    return rng.standard_normal(port.shape).astype(port.dtype)


def _matches(
    graph: Graph | None, target: str, data: bytes, numerics: str, feed: Sequence[np.ndarray], timing: Timing
) -> tuple[bool | None, str]:
    """Whether the timed outputs are the simulated ones, or None and why it is not known."""
    if graph is None:
        if TARGETS[target] != "tflite":
            return None, "no graph was given to simulate"
        try:
            graph = load("tflite").read(data)
        except QwtEdgeError as error:
            return None, f"the file has no integer graph to simulate: {error.message}"
    expected = run(graph, feed, get_numerics(numerics))
    return not compare_all(graph, graph.outputs, expected, timing.outputs), ""


def _doubts(place: Device, latency: Latency, settled: bool, threads: int, busy: float) -> tuple[str, ...]:
    """Why the times should not be trusted; empty when they can be."""
    checks = (
        (latency.runs < 30, f"only {latency.runs} timed runs"),
        (not settled, f"times had not settled after {latency.warmup_runs} runs"),
        (latency.p90_ms > NOISY * latency.p10_ms, f"noisy: p90 is {latency.p90_ms / latency.p10_ms:.2f} times p10"),
        (threads > place.cores, f"{threads} threads on {place.cores} cores"),
        (busy > place.cores - threads + 0.5, f"the machine is busy: load average {busy:.1f} on {place.cores} cores"),
        (place.governor not in ("", "performance"), f"the frequency governor is '{place.governor}', not 'performance'"),
        (place.temperature_c is not None and place.temperature_c >= HOT_C, f"the processor is at {place.temperature_c} °C"),
    )
    return tuple(reason for doubtful, reason in checks if doubtful)
