"""What a timing run found, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Device:
    """Where it ran. ``governor`` is "" and ``temperature_c`` None where the machine does not tell."""

    kind: str
    name: str
    abi: str
    cores: int
    governor: str = ""
    temperature_c: float | None = None


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds per invocation after warm-up. ``ci95_ms``: 95 % interval of the median."""

    p10_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    ci95_ms: tuple[float, float]
    runs: int
    warmup_runs: int


@dataclass(frozen=True)
class ProfileReport:
    """One artifact, one runtime, one device.

    Attributes:
        artifact: file name, or the target's name for bytes that were never saved.
        sha256, bytes: of the artifact.
        numerics: name of the numerics whose runtime ran.
        runtime: runtime and kernels, in words; ``versions``: its packages.
        emulated: True where another processor was emulated; such times mean nothing.
        reliable: False when anything in ``reasons`` casts doubt on the times.
        threads: of the runtime's kernels.
        load_ms, first_ms: loading, and the first invocation.
        ops: {index, op, node, ms} each, empty where the runtime can't tell, for the reason in ``ops_note``.
        peak_rss_bytes: of the runtime's process.
        outputs_match: whether this very run's outputs equal the simulator's, byte for byte; None for the reason in ``match_note``.
    """

    artifact: str
    sha256: str
    bytes: int
    numerics: str
    runtime: str
    versions: Mapping[str, str]
    device: Device
    threads: int
    load_ms: float
    first_ms: float
    latency: Latency
    peak_rss_bytes: int
    outputs_match: bool | None
    match_note: str = ""
    emulated: bool = False
    reasons: tuple[str, ...] = ()
    ops: tuple[Mapping[str, Any], ...] = ()
    ops_note: str = ""

    @property
    def reliable(self) -> bool:
        return not self.reasons and not self.emulated

    def to_json(self) -> dict[str, Any]:
        """As ``profile --json`` prints it."""
        latency = asdict(self.latency)
        latency["ci95_ms"] = list(self.latency.ci95_ms)
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
            "reasons": list(self.reasons),
            "threads": self.threads,
            "load_ms": self.load_ms,
            "first_ms": self.first_ms,
            "latency": latency,
            "ops": [dict(o) for o in self.ops],
            "ops_note": self.ops_note,
            "peak_rss_bytes": self.peak_rss_bytes,
            "outputs_match": self.outputs_match,
            "match_note": self.match_note,
        }

    def text(self) -> str:
        """A few lines for people."""
        t = self.latency
        match = {True: "every byte as simulated", False: "bytes differ from the simulator", None: f"not compared: {self.match_note}"}
        lines = [
            f"{self.artifact} on {self.device.name} ({self.device.abi}), {self.runtime}, {self.threads} thread(s)",
            f"  median {t.p50_ms:.3f} ms [{t.ci95_ms[0]:.3f}, {t.ci95_ms[1]:.3f}]"
            f"  p10 {t.p10_ms:.3f}  p90 {t.p90_ms:.3f}  p99 {t.p99_ms:.3f}  over {t.runs} runs after {t.warmup_runs} of warm-up",
            f"  load {self.load_ms:.2f} ms  first {self.first_ms:.3f} ms  peak memory {self.peak_rss_bytes / 2**20:.0f} MiB",
            f"  outputs: {match[self.outputs_match]}",
        ]
        return "\n".join([*lines, *(f"  doubtful: {r}" for r in self.reasons)])
