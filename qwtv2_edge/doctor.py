"""What is installed, what is missing, and how to get it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from qwtv2_edge.backends import all_numerics
from qwtv2_edge.errors import MissingToolError
from qwtv2_edge.evaluation import Progress, silent
from qwtv2_edge.runners.adb_client import find_adb
from qwtv2_edge.runners.arm import RUNTIMES, prepared
from qwtv2_edge.runners.board import tool_versions
from qwtv2_edge.runners.host import HOST, available
from qwtv2_edge.runners.ssh import find_ssh

#: distribution -> (extra that brings it, what it is for)
PACKAGES: dict[str, tuple[str, str]] = {
    "numpy": ("", "arithmetic"),
    "typer": ("", "command line"),
    "rich": ("", "command line"),
    "torch": ("torch", "capture networks"),
    "executorch": ("executorch", "emit and run .pte"),
    "ai-edge-litert": ("litert", "emit and run .tflite"),
    "tensorflow": ("tensorflow", "run .tflite in TensorFlow's interpreter"),
    "tflite-micro": ("tflite-micro", "run .tflite on TFLite Micro's kernels"),
    "jinja2": ("report", "report.html"),
    "scipy": ("profile", "significance of compared latencies"),
    "ethos-u-vela": ("vela", "fit on Ethos-U"),
}
#: device -> (what it is for, the client that reaches it; raises MissingToolError)
CLIENTS: dict[str, tuple[str, Callable[[], str]]] = {
    "ssh": ("runtimes on other computers", find_ssh),
    "adb": ("profiles on phones", find_adb),
}
#: the Python this version is proved on
PYTHON = "3.11"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        name: package, numerics or device.
        kind: "python", "package", "numerics" or "device".
        state: "ok", "other version" (works, but was not proved on it), "simulated" (needs another machine) or "missing".
        found, proved: versions, "" where there is none.
        use: what it is for.
        fix: how to get it, "" when nothing is to be done.
    """

    name: str
    kind: str
    state: str
    found: str
    proved: str
    use: str
    fix: str = ""


def examine(progress: Progress = silent) -> list[Finding]:
    """Look at Python, the packages, and every numerics' runtime (each is started once)."""
    out = [_python()]
    table = all_numerics()
    proved = {dist: v for n in table.values() for dist, v in n.versions.items()}
    for dist, (extra, use) in PACKAGES.items():
        out.append(_package(dist, extra, use, proved.get(dist, "")))
    for i, (name, numerics) in enumerate(table.items()):
        progress("start each runtime", i, len(table))
        if not numerics.runs_on(HOST.family):
            out.append(Finding(name, "numerics", "simulated", "", "", f"{numerics.runtime} (another processor family)"))
            continue
        here, found = available(numerics.runner)
        wanted = next(iter(numerics.versions.values()), "")
        if here:
            same = _same(found, wanted)
            out.append(Finding(name, "numerics", "ok" if same else "other version", found, wanted, numerics.runtime))
        else:
            out.append(Finding(name, "numerics", "missing", "", wanted, numerics.runtime, found))
    progress("start each runtime", len(table), len(table))
    return [*out, _emulated(), _boards(), *(_client(device, use, find) for device, (use, find) in CLIENTS.items())]


def _python() -> Finding:
    found = platform.python_version()
    state = "ok" if found.startswith(PYTHON + ".") else "other version"
    return Finding("python", "python", state, found, PYTHON, sys.executable)


def _package(dist: str, extra: str, use: str, proved: str) -> Finding:
    try:
        found = version(dist)
    except PackageNotFoundError:
        fix = f"pip install 'qwtv2-edge[{extra}]'  (or `make setup` in a checkout)" if extra else "pip install qwtv2-edge"
        return Finding(dist, "package", "missing", "", proved, use, fix)
    return Finding(dist, "package", "ok" if _same(found, proved) else "other version", found, proved, use)


def _emulated() -> Finding:
    use = "the aarch64 numerics, on emulated cores"
    try:
        found = prepared()
    except MissingToolError as error:
        return Finding("qemu", "device", "missing", "", "", use, error.fix)
    left = [name for name in RUNTIMES if name not in found]
    fix = f"qwtv2-edge prepare arm, for {', '.join(left)} too" if left else ""
    return Finding("qemu", "device", "ok" if found else "missing", ", ".join(found), "", use, fix)


def _boards() -> Finding:
    use = "generated C, on emulated Cortex-M boards"
    try:
        found = tool_versions()
    except MissingToolError as error:
        return Finding("board", "device", "missing", "", "", use, error.fix)
    return Finding("board", "device", "ok", ", ".join(f"{tool} {v}" for tool, v in found.items()), "", use)


def _client(device: str, use: str, find: Callable[[], str]) -> Finding:
    try:
        return Finding(device, "device", "ok", find(), "", use)
    except MissingToolError as error:
        return Finding(device, "device", "missing", "", "", use, error.fix)


def _same(found: str, proved: str) -> bool:
    """Equal up to a local tag ("+cpu"); anything goes where nothing was proved."""
    return not proved or found.split("+")[0] == proved.split("+")[0]
