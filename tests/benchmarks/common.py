"""What every benchmark shares: where and on what it ran, medians, and one JSON document on standard output."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

PACKAGES = (
    "qwtv2-edge",
    "torch",
    "executorch",
    "ai-edge-litert",
    "tensorflow",
    "tflite-micro",
    "litert-torch",
    "ai-edge-quantizer",
    "numpy",
)


def environment() -> dict[str, Any]:
    """Processor, core count, Python, package versions and commit."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    model = next((line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor())
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions, "commit": commit}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def percentiles(values_ms: list[float]) -> dict[str, float]:
    """p10, p50 and p90 of times in milliseconds, and how many there are."""
    p10, p50, p90 = np.percentile(values_ms, [10, 50, 90])
    return {"p10_ms": round(float(p10), 4), "p50_ms": round(float(p50), 4), "p90_ms": round(float(p90), 4), "runs": len(values_ms)}


def sqnr_db(reference: np.ndarray, actual: np.ndarray) -> float:
    """10 log10 (signal power / error power) in float64."""
    r, a = reference.astype(np.float64), actual.astype(np.float64)
    return float(10 * np.log10(np.square(r).sum() / np.square(r - a).sum()))


def show(name: str, results: Any) -> None:
    """Print the benchmark's one JSON document."""
    print(json.dumps({"benchmark": name, "environment": environment(), "results": results}, indent=1))


def note(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
