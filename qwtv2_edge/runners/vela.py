"""What Arm's Vela compiler expects of a ``.tflite`` on an Ethos-U processor: its estimate, never a measurement."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwtv2_edge.errors import MissingToolError, RunError

#: family of accelerators -> system configuration of Vela's own file that the estimate is for
SYSTEMS: Mapping[str, str] = {
    "ethos-u55": "Ethos_U55_High_End_Embedded",
    "ethos-u65": "Ethos_U65_Embedded",
    "ethos-u85": "Ethos_U85_SYS_Flash_High",
}
#: the Cortex-M and the Ethos-U share SRAM for activations; weights stay in flash
MEMORY_MODE = "Shared_Sram"
CONFIG = "Arm/vela.ini"
#: accelerator as Vela calls it
ACCELERATORS = (
    *(f"ethos-u55-{n}" for n in (32, 64, 128, 256)),
    *(f"ethos-u65-{n}" for n in (256, 512)),
    *(f"ethos-u85-{n}" for n in (128, 256, 512, 1024, 2048)),
)
TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class NpuEstimate:
    """Vela's estimate.

    Attributes:
        accelerator, system, memory_mode: what it is for.
        version: of Vela.
        clock_hz: the configuration's clock.
        cycles, npu_cycles: of one inference in all, and of the accelerator's computing alone; they overlap.
        milliseconds: of one inference at that clock, as Vela computes it.
        sram_bytes, flash_bytes: activations; weights as Vela packs them, with the command stream.
        npu_operators: operators (after Vela split and merged them) on the accelerator.
        cpu_operators: those left to the Cortex-M, by kind.
    """

    accelerator: str
    system: str
    memory_mode: str
    version: str
    clock_hz: float
    cycles: int
    npu_cycles: int
    milliseconds: float
    sram_bytes: int
    flash_bytes: int
    npu_operators: int
    cpu_operators: Mapping[str, int]


def estimate(data: bytes, accelerator: str) -> NpuEstimate:
    """Compile a ``.tflite`` for ``accelerator`` (one of ACCELERATORS) with Vela and read its estimate.

    Raises: MissingToolError without Vela; RunError where it refuses the file or runs for more than TIMEOUT_S.
    """
    if importlib.util.find_spec("ethosu") is None:
        raise MissingToolError("Arm's Vela compiler is not installed", fix="pip install 'qwtv2-edge[vela]' (ethos-u-vela)")
    from importlib.metadata import version

    system = SYSTEMS[accelerator.rpartition("-")[0]]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.tflite").write_bytes(data)
        command = [sys.executable, "-m", "ethosu.vela", "model.tflite", "--accelerator-config", accelerator, "--config", CONFIG]
        command += ["--system-config", system, "--memory-mode", MEMORY_MODE, "--verbose-performance", "--output-dir", "out"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as exc:
            raise RunError(f"Vela did not finish within {TIMEOUT_S} s", fix="estimate a smaller network") from exc
        if done.returncode:
            tail = "\n".join(f"  | {line}" for line in (done.stderr or done.stdout).strip().splitlines()[-5:])
            raise RunError(f"Vela refused the file for {accelerator}\n{tail}")
        out = Path(folder) / "out"
        (summary,) = _rows(next(out.glob("*_summary_*.csv")))
        layers = _rows(next(out.glob("*_per-layer.csv")))
    on = Counter(row["Target"] for row in layers)
    return NpuEstimate(
        accelerator,
        system,
        MEMORY_MODE,
        version("ethos-u-vela"),
        float(summary["core_clock"]),
        int(float(summary["cycles_total"])),
        int(float(summary["cycles_npu"])),
        1000 * float(summary["inference_time"]),
        int(1024 * float(summary["sram_memory_used"])),
        int(1024 * (float(summary["off_chip_flash_memory_used"]) + float(summary["on_chip_flash_memory_used"]))),
        on["NPU"],
        dict(sorted(Counter(row["Original Operator"] for row in layers if row["Target"] != "NPU").items())),
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k.strip(): v for k, v in row.items()} for row in csv.DictReader(file)]
