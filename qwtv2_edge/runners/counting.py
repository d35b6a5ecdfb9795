"""Counts instructions where time means nothing: on a processor that QEMU emulates.

A plugin (``count_insns.c``, built with this machine's C compiler when it is first needed) counts what the emulated process
executes, and the worker reads it in place of the clock (``worker.Instructions``). Counts repeat from run to run and tell how
the work of two artifacts, runtimes or versions compares. They are no time: an emulator has no caches, no pipeline and no memory
to wait for.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qwtv2_edge.errors import MissingToolError, RunError, UsageError
from qwtv2_edge.runners.base import Job, Place
from qwtv2_edge.runners.host import Session, first_sample
from qwtv2_edge.runners.programs import call

SOURCE = Path(__file__).with_name("count_insns.c")
COMPILERS = ("cc", "gcc", "clang")
#: the plugin brings nothing of its own: it finds ``write`` in the process that loads it, whatever C library that has
FLAGS = ("-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-nostdlib")

#: inferences counted, and how far their counts may lie apart to say that they repeat
RUNS = 10
REPEATS = 0.001
#: Python runs the worker's loop with some 2000 instructions less once it has seen it ten times; where an inference takes more
#: than this many, that is too little to wait for
WARMUP = 10
LARGE = 20_000_000
#: of a series, in "seconds" of 1e9 instructions
NO_LIMIT = 1e9


@dataclass(frozen=True)
class Counts:
    """Instructions that an emulated processor executed in one thread, and what it computed. They are no time.

    Attributes:
        load: for loading the artifact, None where nothing is loaded; first: for the first inference.
        runs: for each inference after the first ones; some hundred of each are the worker's own.
        nodes: node -> its part of the last of ``runs``, in the order they run; empty where they are not told apart.
        outputs, versions, abi, peak_rss_bytes: as of ``base.Run``.
    """

    load: int | None
    first: int
    runs: tuple[int, ...]
    nodes: Mapping[str, int] = field(default_factory=dict)
    outputs: tuple[np.ndarray, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    abi: str = ""
    peak_rss_bytes: int = 0

    @property
    def per_inference(self) -> int:
        """The median of ``runs``, one of them."""
        return sorted(self.runs)[len(self.runs) // 2]

    @property
    def spread(self) -> float:
        """How far ``runs`` lie apart, as a fraction of their median."""
        return (max(self.runs) - min(self.runs)) / self.per_inference

    def to_json(self) -> dict[str, Any]:
        """The instructions alone."""
        numbers: Mapping[str, Any] = {"load": self.load, "first": self.first, "per_inference": self.per_inference}
        return {**numbers, "runs": list(self.runs), "spread": self.spread, "repeats": self.spread <= REPEATS}


def count(job: Job, place: Place, runs: int = RUNS) -> Counts:
    """Count the instructions of loading and running an artifact, with one thread whatever the job says.

    Args:
        job: its first sample is counted; all are run.
        place: a processor that QEMU emulates.
        runs: inferences to count, at least 1.
    Raises: MissingToolError: no C compiler here, no emulator or runtime there, an emulator without plugins; RunError.
    """
    env = {"QEMU_PLUGIN": f"file={str(plugin()).replace(',', ',,')}", "QWTV2_CLOCK": "instructions", "PYTHONHASHSEED": "0"}
    try:
        with Session(job.runner, job.data, place=place, env=env) as session:
            sample = first_sample(job.inputs, session.inputs)
            (first,) = session.time(sample, 1).ns
            if first < LARGE:
                session.time(sample, WARMUP, seconds=NO_LIMIT)
            series = session.time(sample, runs, seconds=NO_LIMIT)
            outputs = series.outputs if job.samples == 1 else tuple(session.run(job.inputs))
    except RunError as error:
        if not re.search("no plugin counts|load plugin", error.message):
            raise
        raise MissingToolError(
            f"no instructions are counted on {place.name}: {error.message.splitlines()[-1].strip(' |')}",
            fix="a QEMU that takes plugins of interface version 1 is needed, such as that of: qwtv2-edge prepare arm",
        ) from error
    return Counts(
        session.load_ns,
        first,
        series.ns,
        outputs=outputs,
        versions=session.versions,
        abi=session.machine,
        peak_rss_bytes=series.peak_rss_bytes,
    )


def plugin() -> Path:
    """The built plugin, in the user's cache. Raises MissingToolError, RunError, UsageError."""
    source = SOURCE.read_bytes()
    key = hashlib.sha256(repr((source, FLAGS, platform.machine())).encode()).hexdigest()[:12]
    cache = Path.home() / ".cache" / "qwtv2_edge"
    built = cache / f"count_insns-{key}.so"
    if built.exists():
        return built
    named = os.environ.get("CC")
    compiler = next((found for name in ((named,) if named else COMPILERS) if (found := shutil.which(name))), None)
    if compiler is None:
        raise MissingToolError(f"no C compiler ({named or ', '.join(COMPILERS)}) to build QEMU's plugin with", fix="apt install gcc")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            made = Path(work) / built.name
            done = call([compiler, *FLAGS, "-o", str(made), str(SOURCE)], folder=Path(work))
            if done.returncode:
                raise RunError(
                    f"{compiler} does not build {SOURCE.name}:\n{done.stderr.strip()[-1000:]}", fix="name another compiler by $CC"
                )
            made.replace(built)
    except OSError as error:
        raise UsageError(f"can't write to {cache}: {error.strerror}", fix="make it writable") from error
    return built
