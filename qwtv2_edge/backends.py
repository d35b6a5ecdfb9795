"""What a backend is, and how core reaches one: by entry point, never by import.

A backend turns an integer :class:`Graph` into an :class:`Artifact` for its targets and publishes the
:class:`Numerics` tables of the runtimes that execute them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from qwtv2_edge.errors import MissingToolError, Problem, UsageError
from qwtv2_edge.files import read_bytes
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.numerics import Numerics

#: target -> entry point name of the backend that emits it (known without loading any backend)
TARGETS: dict[str, str] = {
    "tflite": "tflite",
    "tflite-micro": "tflite",
    "executorch-xnnpack": "executorch",
    "executorch-portable": "executorch",
    "executorch-cortex-m": "executorch",
    "c": "c",
}
#: what the file of each target is
TARGET_FILES: dict[str, str] = {
    "tflite": "TFLite file for LiteRT and TensorFlow Lite, and for TFLite Micro where it has every operator",
    "tflite-micro": "TFLite file in forms that TFLite Micro has too: a table in place of GELU",
    "executorch-xnnpack": "ExecuTorch program for the XNNPACK delegate",
    "executorch-portable": "ExecuTorch program for the portable kernels",
    "c": "C99 file with its own kernels, bytes as TFLite Micro's",
    "executorch-cortex-m": "ExecuTorch program of Cortex-M operators, which call CMSIS-NN",
}


#: suffix -> (offset, bytes there, what that is) of files that are not read here; a .tflite is, which tells more
MARKS: dict[str, tuple[int, bytes, str]] = {".pte": (4, b"ET", "ExecuTorch program"), ".c": (0, b"/* qwtv2_edge ", "C file of export")}

#: target that is a folder -> its main file
FOLDERS: dict[str, str] = {"tflite-micro": "model.tflite", "c": "model.c"}


def artifact_file(path: Path) -> Path:
    """The main file of a target's own folder; any other path as it is."""
    inside = path / FOLDERS.get(path.absolute().name, "")
    return inside if inside != path and inside.is_file() else path


def target_of(path: Path) -> str:
    """The target of a file, by its name: ``<target>/model.*``, ``.<target>.tflite`` or ``.<target>.pte``, else the usual one.

    Raises: UsageError: no file that export writes.
    """
    above = path.absolute().parent.name
    if FOLDERS.get(above) == path.name:
        return above
    usual = {".tflite": "tflite", ".pte": "executorch-xnnpack", ".c": "c"}.get(path.suffix)
    if usual is None:
        raise UsageError(f"{path} is neither a .tflite nor a .pte nor a .c file", fix="give a file written by export")
    named = path.stem.rpartition(".")[2]
    return named if TARGETS.get(named) == TARGETS[usual] else usual


@dataclass(frozen=True)
class Artifact:
    """The bytes for one target.

    Attributes:
        target: key of TARGETS.
        data: the file's bytes; the same graph gives the same bytes.
        ops: op names in execution order, as the target calls them.
        nodes: for each of ``ops`` the graph node it came from.
        notes: where this artifact's numerics differ between runtimes, in words, for the report.
        graph_hash: ``ir.serde.graph_hash`` of the graph it was emitted from.
        files: further files of a target that is a folder, by name; the artifact's own is ``FOLDERS[target]`` there.
    """

    target: str
    data: bytes
    ops: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    graph_hash: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def suffix(self) -> str:
        if self.target == "tflite":
            return ".tflite"
        return f".{self.target}.{'tflite' if TARGETS.get(self.target) == 'tflite' else 'pte'}"

    @property
    def file(self) -> str:
        """The artifact's path inside an export folder."""
        return f"{self.target}/{FOLDERS[self.target]}" if self.target in FOLDERS else f"model{self.suffix}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write the file, or the folder where there are further files, each whole or not at all; returns its path.

        Raises: UsageError: the disk refuses.
        """
        from qwtv2_edge.files import make_folder, write_atomic

        path = Path(path)
        if self.files:
            make_folder(path)
        for name, data in {FOLDERS[self.target]: self.data, **self.files}.items() if self.files else {"": self.data}.items():
            write_atomic(path / name, data)
        return path


def read_artifact(path: Path) -> Artifact:
    """A file that export wrote.

    Raises: UsageError: it can't be read, or is not what its name says.
    """
    target, data = target_of(path), read_bytes(path)
    offset, mark, kind = MARKS.get(path.suffix, (0, b"", ""))
    if not data.startswith(mark, offset):
        raise UsageError(f"{path} is no {kind}: {mark!r} is not at byte {offset}", fix="give a file written by export")
    return Artifact(target, data)


@dataclass(frozen=True)
class EmitOptions:
    """How to emit.

    Attributes:
        manifest: small strings stored in the artifact's metadata where the format has a place for them.
        separate: give every node a delegate call of its own, so that each can be timed; formats without delegate calls
            ignore it. The outputs are the same bytes.
        core: processor core that ``executorch-cortex-m`` sizes scratch memory for ("cortex-m4"); "" for every core: the largest
            scratch of all. Other targets ignore it. The outputs are the same bytes.
    """

    manifest: Mapping[str, str] = field(default_factory=dict)
    separate: bool = False
    core: str = ""


class Backend(Protocol):
    """The interface each backend package exposes as ``BACKEND``."""

    name: str
    targets: tuple[str, ...]
    numerics: Mapping[str, Numerics]

    def check(self, graph: Graph, target: str) -> tuple[Problem, ...]:
        """Every node of ``graph`` that ``target`` can't take; empty when it can be emitted."""
        ...

    def emit(self, graph: Graph, target: str, options: EmitOptions) -> Artifact:
        """Emit ``graph``. Raises UnsupportedOpError (all offending nodes at once), MissingToolError."""
        ...

    def read(self, source: str | Path | bytes) -> Graph:
        """The integer graph of an existing file. Raises GraphError on a corrupt one, UsageError where the format has no reader."""
        ...


@cache
def load(name: str) -> Backend:
    """The backend registered under entry point ``name``."""
    for ep in entry_points(group="qwtv2_edge.backends"):
        if ep.name == name:
            backend: Backend = ep.load()
            return backend
    raise MissingToolError(f"backend '{name}' is not installed", fix="pip install qwtv2-edge (or `make setup` in a checkout)")


def backend_for(target: str) -> Backend:
    """The backend that emits ``target``. Raises UsageError for an unknown one."""
    if target not in TARGETS:
        raise UsageError(f"unknown target '{target}'", fix=f"one of: {', '.join(TARGETS)}")
    return load(TARGETS[target])


@cache
def all_numerics() -> Mapping[str, Numerics]:
    """Every numerics of every installed backend, by name."""
    out: dict[str, Numerics] = {}
    for ep in sorted(set(TARGETS.values())):
        out.update(load(ep).numerics)
    return out


def get_numerics(name: str) -> Numerics:
    """The numerics called ``name``. Raises UsageError that lists the known ones."""
    table = all_numerics()
    if name not in table:
        raise UsageError(f"unknown numerics '{name}'", fix=f"one of: {', '.join(table)}")
    return table[name]


def numerics_of(target: str) -> tuple[Numerics, ...]:
    """The numerics that execute artifacts of ``target``, as they do it there."""
    return tuple(n.on(target) for n in all_numerics().values() if n.runs(target))


def tables_on(target: str, family: str) -> tuple[Numerics, ...]:
    """The numerics of ``target`` that processors of ``family`` run, each once: on this machine's by their bare names, which stand
    for its own variants, on others by the variants' names."""
    tables = [n for n in numerics_of(target) if n.runs_on(family)]
    bare = {n.name for n in tables if "@" not in n.name}
    return tuple(n for n in tables if n.name.partition("@")[0] not in bare or n.name in bare)


def choose_numerics(
    target: str, names: Iterable[str] | None, where: str, family: str, lacks: Callable[[str], str] = lambda runner: ""
) -> list[Numerics]:
    """The numerics called ``names`` as they execute ``target``; without names all that can run on a device.

    Args:
        where: the device's name; family: of its processor.
        lacks: of a runner, why it can never run there, "" where it can; see ``runners.base.Place``.
    Raises: UsageError: an unknown name, numerics of another target, or none that run there.
    """
    possible = [t for t in tables_on(target, family) if not lacks(t.runner)]
    if names is None and not possible:
        why = "; ".join(sorted({lacks(t.runner) for t in numerics_of(target)} - {""}))
        raise UsageError(f"no numerics of target '{target}' runs on {where} ({family})" + (f": {why}" if why else ""))
    if names is None:
        return possible
    fix = f"one of: {', '.join(t.name for t in possible)}" if possible else ""
    tables = [get_numerics(name) for name in names]
    for t in tables:
        if not t.runs(target):
            raise UsageError(
                f"numerics '{t.name}' runs {t.target} artifacts, not {target}",
                fix=f"one of: {', '.join(n.name for n in numerics_of(target))}",
            )
        if not t.runs_on(family):
            raise UsageError(f"numerics '{t.name}' can't run on {where} ({family})", fix=fix)
        if why := lacks(t.runner):
            raise UsageError(f"numerics '{t.name}' can't run on {where}: {why}", fix=fix)
    return [t.on(target) for t in tables]


def never_on(targets: Iterable[str], run: Iterable[str], lacks: Callable[[str], str]) -> dict[str, str]:
    """The numerics of ``targets`` that are not among those ``run`` in any variant -> why; ``lacks`` as in :func:`choose_numerics`."""
    there = {name.partition("@")[0] for name in run}
    bare = {n.name: n.runner for t in targets for n in numerics_of(t) if "@" not in n.name}
    return {name: lacks(runner) or "not known on its processor" for name, runner in bare.items() if name not in there}


def numerics_among(name: str, targets: Iterable[str]) -> Numerics:
    """The numerics called ``name`` as it executes one of ``targets``: its own where that is among them; unchanged where none is."""
    table = get_numerics(name)
    found = [t for t in targets if table.runs(t)]
    return table if table.target in found or not found else table.on(found[0])


def emit(graph: Graph, target: str, options: EmitOptions | None = None) -> Artifact:
    """Emit an integer graph for ``target`` (see the contract's list of targets)."""
    return backend_for(target).emit(graph, target, options or EmitOptions())
