"""Debian's compiler for Cortex-M: what an object file takes in flash and in RAM."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwtv2_edge.errors import MissingToolError, RunError
from qwtv2_edge.runners.programs import call

PREFIX = "arm-none-eabi-"
#: core -> flags that choose it
CORES: Mapping[str, tuple[str, ...]] = {
    "cortex-m0plus": ("-mcpu=cortex-m0plus", "-mthumb"),
    "cortex-m3": ("-mcpu=cortex-m3", "-mthumb"),
    "cortex-m4": ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
    "cortex-m7": ("-mcpu=cortex-m7", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16"),
    "cortex-m33": ("-mcpu=cortex-m33", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv5-sp-d16"),
    "cortex-m55": ("-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=hard"),
}
FLAGS = ("-std=c99", "-ffunction-sections", "-fdata-sections")
OPTIMIZE = "-O3"
PACKAGES = "apt-get install --no-install-recommends gcc-arm-none-eabi libnewlib-arm-none-eabi"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of an object file: code and constants; initialised data (in flash and in RAM); zeroed data (RAM alone)."""

    text: int
    data: int
    bss: int

    @property
    def flash(self) -> int:
        return self.text + self.data

    @property
    def ram(self) -> int:
        return self.data + self.bss


def compiler_version() -> str:
    """The compiler's own first line, or "" where there is none."""
    try:
        return run_tool("gcc", "--version").partition("\n")[0]
    except MissingToolError:
        return ""


def run_tool(name: str, *arguments: str, folder: Path | None = None) -> str:
    """What one of the compiler's programs ("gcc", "size", "nm") prints, run in ``folder``.

    Raises: MissingToolError without it; RunError where it refuses, with what it wrote.
    """
    path = shutil.which(PREFIX + name)
    if path is None:
        raise MissingToolError(f"{PREFIX}{name} is not installed", fix=PACKAGES)
    done = call([path, *arguments], folder=folder)
    if done.returncode:
        raise RunError(f"{PREFIX}{name} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def compile_object(folder: Path, core: str, *flags: str, optimize: str = OPTIMIZE) -> Sizes:
    """Compile the one self-contained ``model.c`` in ``folder`` to ``model.o`` for ``core`` (a key of CORES).

    Raises: MissingToolError without the compiler; RunError where it refuses the file.
    """
    run_tool("gcc", *CORES[core], *FLAGS, optimize, *flags, "-c", "model.c", "-o", "model.o", folder=folder)
    text, data, bss = run_tool("size", "model.o", folder=folder).splitlines()[1].split()[:3]
    return Sizes(int(text), int(data), int(bss))


def object_sizes(source: bytes, core: str) -> Sizes:
    """What one self-contained C file takes on ``core``. Raises: see :func:`compile_object`."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.c").write_bytes(source)
        return compile_object(Path(folder), core)
