"""What a timing run found, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Where it ran. ``governor`` is "" and ``temperature_c`` None where the device does not tell."""

    kind: str
    name: str
    abi: str
    cores: int
    governor: str = ""
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds per invocation after warm-up.

    Attributes:
        p10_ms, p50_ms, p90_ms, p99_ms: percentiles of all rounds together.
        ci95_ms: 95 % interval of the median.
        runs, warmup_runs: invocations counted, and left out.
        rounds_p50_ms: the median of each round, each a runtime started anew.
        throughput_per_s: invocations a second, one after the other.
    """

    p10_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    ci95_ms: tuple[float, float]
    runs: int
    warmup_runs: int
    rounds_p50_ms: tuple[float, ...] = ()
    throughput_per_s: float = 0.0

    @property
    def spread(self) -> float:
        """How far the rounds' medians lie apart, as a fraction of the smallest."""
        return max(self.rounds_p50_ms) / min(self.rounds_p50_ms) - 1 if self.rounds_p50_ms else 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ci95_ms": list(self.ci95_ms), "rounds_p50_ms": list(self.rounds_p50_ms), "spread": self.spread}


@dataclass(frozen=True)
class ProfileReport:
    """One artifact, one runtime, one device.

    Attributes:
        artifact: file name, or the target's name for bytes that were never saved.
        sha256, bytes: of the artifact.
        numerics: name of the numerics whose runtime ran.
        runtime: runtime and kernels, in words; ``versions``: its packages.
        device: where.
        threads: of the runtime's kernels; ``pinned_cores``: cores the runtime was bound to, empty for none.
        load_ms, first_ms, latency: loading, the first invocation and the steady state; None where a processor was emulated,
            whose times mean nothing.
        peak_rss_bytes: of the runtime's process, 0 where it is not told.
        outputs_match: whether this very run's outputs, of every start, equal the simulator's, byte for byte; None for the reason in
            ``match_note``, which also tells of outputs that differ from one start to the next.
        emulated: True where another processor was emulated.
        complete: False when the run was cut short (a lost device, an interrupt); what had been measured is in the report.
        reasons: everything that casts doubt on the times.
        ops: {index, op, node, ms} and more each, empty where the runtime can't tell, for the reason in ``ops_note``; ``ms`` is None
            and there are ``instructions`` where those were counted.
        instructions: executed by an emulated processor, {load, first, per_inference, runs, spread, repeats} of
            ``counting.Counts``; None where they were not counted.
        state: what the device said of itself ("before", "after"); empty where it is emulated.
    """

    artifact: str
    sha256: str
    bytes: int
    numerics: str
    runtime: str
    versions: Mapping[str, str]
    device: DeviceInfo
    threads: int
    load_ms: float | None
    first_ms: float | None
    latency: Latency | None
    peak_rss_bytes: int
    outputs_match: bool | None
    match_note: str = ""
    emulated: bool = False
    complete: bool = True
    reasons: tuple[str, ...] = ()
    pinned_cores: tuple[int, ...] = ()
    ops: tuple[Mapping[str, Any], ...] = ()
    ops_note: str = ""
    instructions: Mapping[str, Any] | None = None
    state: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reliable(self) -> bool:
        return not self.reasons and not self.emulated and self.complete

    def to_json(self) -> dict[str, Any]:
        """As ``profile --json`` prints it."""
        return {
            "artifact": self.artifact,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "numerics": self.numerics,
            "runtime": self.runtime,
            "versions": dict(self.versions),
            "device": asdict(self.device),
            "emulated": self.emulated,
            "reliable": self.reliable,
            "complete": self.complete,
            "reasons": list(self.reasons),
            "threads": self.threads,
            "pinned_cores": list(self.pinned_cores),
            "load_ms": self.load_ms,
            "first_ms": self.first_ms,
            "latency": None if self.latency is None else self.latency.to_json(),
            "instructions": None if self.instructions is None else dict(self.instructions),
            "ops": [dict(o) for o in self.ops],
            "ops_note": self.ops_note,
            "peak_rss_bytes": self.peak_rss_bytes,
            "outputs_match": self.outputs_match,
            "match_note": self.match_note,
            "state": dict(self.state),
        }

    def text(self) -> str:
        """A few lines for people."""
        differ = f"bytes differ from the simulator{f': {self.match_note}' if self.match_note else ''}"
        match = {True: "every byte as simulated", False: differ, None: f"not compared: {self.match_note}"}
        where = self.device.name if self.device.abi in self.device.name else f"{self.device.name} ({self.device.abi})"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        lines = [f"{self.artifact} on {where}, {self.runtime}, {threads}", *self._times()]
        if self.peak_rss_bytes and not self.emulated:
            lines.append(f"  peak memory {self.peak_rss_bytes / 2**20:.0f} MiB")
        lines.append(f"  outputs: {match[self.outputs_match]}")
        return "\n".join([*lines, *(f"  doubtful: {r}" for r in self.reasons)])

    def _times(self) -> list[str]:
        out = []
        if not self.complete:
            out.append("  incomplete: the run was cut short")
        if self.emulated:
            out.append("  emulated: no latency of a real device")
        if self.instructions is not None:
            i = self.instructions
            load = "" if i["load"] is None else f", {i['load']:,} to load"
            out.append(f"  instructions: {i['per_inference']:,} per inference, {i['first']:,} the first{load}")
        t = self.latency
        if t is not None:
            out.append(
                f"  median {t.p50_ms:.3f} ms [{t.ci95_ms[0]:.3f}, {t.ci95_ms[1]:.3f}]  p10 {t.p10_ms:.3f}  p90 {t.p90_ms:.3f}"
                f"  p99 {t.p99_ms:.3f}  over {t.runs} runs after {t.warmup_runs} of warm-up, {t.throughput_per_s:,.1f} a second"
            )
        if len(t.rounds_p50_ms if t else ()) > 1:
            assert t is not None
            out.append(f"  medians of {len(t.rounds_p50_ms)} starts: {', '.join(f'{v:.3f}' for v in t.rounds_p50_ms)} ms")
        if self.load_ms is not None and self.first_ms is not None:
            out.append(f"  load {self.load_ms:.2f} ms  first {self.first_ms:.3f} ms")
        return out


@dataclass(frozen=True)
class Comparison:
    """Two artifacts timed in turns, in random order.

    Attributes:
        latency: of A and of B.
        difference_ms: median of the rounds' differences B - A; ``ci95_ms`` its 95 % interval; ``ratio``: p50 of B over that of A.
        p_value: of Wilcoxon's signed-rank test on the rounds' medians, that there is no difference.
        significant: the interval leaves out 0 and the p-value is below 0.05.
        rounds: starts of both runtimes.
        emulated, reasons: as in :class:`ProfileReport`; when emulated, no times are given.
    """

    latency: tuple[Latency, Latency] | None
    difference_ms: float | None
    ci95_ms: tuple[float, float] | None
    ratio: float | None
    p_value: float | None
    significant: bool | None
    rounds: int
    emulated: bool = False
    reasons: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "latency": None if self.latency is None else [t.to_json() for t in self.latency],
            "difference_ms": self.difference_ms,
            "ci95_ms": None if self.ci95_ms is None else list(self.ci95_ms),
            "ratio": self.ratio,
            "p_value": self.p_value,
            "significant": self.significant,
            "rounds": self.rounds,
            "emulated": self.emulated,
            "reasons": list(self.reasons),
        }

    def text(self) -> str:
        """One line for people."""
        if self.latency is None or self.ci95_ms is None or self.difference_ms is None:
            return "emulated: no latency of a real device"
        a, b = self.latency
        verdict = "significant" if self.significant else "within noise"
        return (
            f"{a.p50_ms:.4f} ms against {b.p50_ms:.4f} ms: difference {self.difference_ms:+.4f} ms "
            f"[{self.ci95_ms[0]:+.4f}, {self.ci95_ms[1]:+.4f}], p = {self.p_value:.3f}: {verdict}"
        )
