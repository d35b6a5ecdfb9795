"""Devices by the names users give them, and the device behind every place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from qwtv2_edge.errors import UsageError
from qwtv2_edge.runners.base import Device, Emulation, Job, Keep, Place
from qwtv2_edge.runners.board import Board, BoardSession, count_on_board, open_board
from qwtv2_edge.runners.counting import RUNS, Counts, count
from qwtv2_edge.runners.host import HOST, Session, Timing, first_sample
from qwtv2_edge.runners.state import SCRIPT

#: form -> what it is
FORMS = {
    "host": "this machine",
    "adb[:SERIAL]": "an Android phone, by the demo app or a runtime's own command-line tool",
    "ssh:[USER@]HOST": "an ARM Linux board, by the Python and the wheels there",
    "qemu:CPU": "an emulated ARM core: cortex-a53, cortex-a76 or max",
    "board:CORE": "an emulated board, for generated C: cortex-m3, cortex-m4, cortex-m7, cortex-m33 or cortex-m55",
}

#: seconds of one chunk of a series; what is measured is kept after each
CHUNK_S = 0.5


def open_place(spec: str) -> Place | Board:
    """The place called ``spec``: "host", "qemu:CPU", "board:CORE" or "ssh:[USER@]HOST".

    Raises: UsageError: another form, or a phone, which can't run Python; MissingToolError: no emulator, no ssh.
    """
    kind, _, rest = spec.partition(":")
    if spec == "host":
        return HOST
    if kind == "qemu" and rest:
        from qwtv2_edge.runners.arm import open_qemu

        return open_qemu(rest)
    if kind == "ssh" and rest:
        from qwtv2_edge.runners.ssh import SshPlace

        return SshPlace(rest)
    if kind == "board" and rest:
        return open_board(rest)
    if kind == "adb":
        raise UsageError("a phone is reached through the demo app, which only profiles", fix="qwtv2-edge profile --device adb")
    raise UsageError(f"unknown device '{spec}'", fix=f"one of: {', '.join(FORMS)}")


def open_session(runner: str, data: bytes, place: Place | Board) -> Session | BoardSession:
    """An artifact, loaded where it is to run. Raises: as the two sessions."""
    return BoardSession(place, data) if isinstance(place, Board) else Session(runner, data, place=place)


def open_device(spec: str, tool: Path | None = None) -> Device | Emulation:
    """The device called ``spec``; see FORMS.

    Args:
        tool: on phones, ``benchmark_model`` or ``executor_runner`` built for the phone, used in place of the demo app.
    Raises: as :func:`open_place`; on phones also as ``adb.AdbDevice``.
    """
    kind, _, rest = spec.partition(":")
    if kind == "adb":
        from qwtv2_edge.runners.adb import AdbDevice

        return AdbDevice(rest or None, tool=tool)
    if tool is not None:
        raise UsageError(f"a command-line tool runs on phones, not on '{spec}'", fix="leave the tool out, or give --device adb")
    place = open_place(spec)
    if isinstance(place, Board):
        return BoardDevice(place)
    return QemuDevice(place) if kind == "qemu" else PlaceDevice(place)


class PlaceDevice:
    """A place as a device: artifacts run in the worker."""

    def __init__(self, place: Place) -> None:
        self.place = place

    @property
    def name(self) -> str:
        return self.place.name

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    def state_text(self) -> str:
        return self.place.shell(SCRIPT)

    @contextmanager
    def open(self, job: Job) -> Iterator[WorkerRun]:
        with Session(job.runner, job.data, threads=job.threads, cores=job.cores, place=self.place) as session:
            yield WorkerRun(session, job)


class QemuDevice(PlaceDevice):
    """An emulated core with an operating system; see ``base.Emulation``."""

    def count(self, job: Job, runs: int | None) -> Counts:
        return count(job, self.place, runs or RUNS)


class BoardDevice:
    """An emulated board, see ``base.Emulation``."""

    kind = "board"

    def __init__(self, board: Board) -> None:
        self.place = board

    @property
    def name(self) -> str:
        return self.place.name

    def count(self, job: Job, runs: int | None) -> Counts:
        return count_on_board(self.place, job, runs)


class WorkerRun:
    """A loaded artifact in the worker; see ``base.Run``."""

    def __init__(self, session: Session, job: Job) -> None:
        self.session = session
        self.load_ns = session.load_ns
        self.first_ns = 0
        self.outputs: tuple[np.ndarray, ...] = ()
        self.peak_rss_bytes = 0
        self.versions: Mapping[str, str] = session.versions
        self.abi = session.machine
        self.cores = job.cores
        self._inputs = job.inputs
        self._single = all(a.shape[:1] == p.shape[:1] for a, p in zip(job.inputs, session.inputs, strict=False))
        self._first = first_sample(job.inputs, session.inputs)

    def block(self, runs: int, seconds: float, keep: Keep) -> list[int]:
        if not self.outputs:
            self._start()
        series: list[int] = []
        spent = 0.0
        while len(series) < runs and spent < seconds:
            timing = self.session.time(self._first, runs - len(series), min(CHUNK_S, seconds - spent))
            series += timing.ns
            spent += sum(timing.ns) / 1e9
            self._take(timing)
            keep(series)
        return series

    def _start(self) -> None:
        """The first invocation, and the outputs of every sample."""
        timing = self.session.time(self._first, 1)
        self.first_ns = timing.ns[0]
        self._take(timing)
        if not self._single:
            self.outputs = tuple(self.session.run(self._inputs))

    def _take(self, timing: Timing) -> None:
        """The memory so far and, where one sample is all there is, what the last timed invocation gave."""
        self.peak_rss_bytes = timing.peak_rss_bytes
        if self._single:
            self.outputs = timing.outputs
