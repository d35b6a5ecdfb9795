"""Where runtimes run, and what timing one there gives.

A :class:`Place` can start the worker script (``worker.py``): this machine, a processor emulated on it, another computer.
A :class:`Device` can be timed: every place is one, and so is a phone, which has no Python. An :class:`Emulation` can't; it counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import numpy as np

from qwtv2_edge.errors import QwtEdgeError

if TYPE_CHECKING:
    from qwtv2_edge.runners.counting import Counts

L = TypeVar("L", bound="Loader")
WORKER = Path(__file__).with_name("worker.py")

#: runners that only this machine has -> why
HOST_ONLY = {"executorch-cortex-m": "its proxy runs on the host alone"}

#: names that Linux gives to one processor family
FAMILIES = {
    **dict.fromkeys(("arm64", "arm64-v8a"), "aarch64"),
    **dict.fromkeys(("armeabi", "armeabi-v7a", "armv6l", "armv7l", "armv8l"), "arm"),
    **dict.fromkeys(("amd64",), "x86_64"),
    **dict.fromkeys(("i386", "i586", "i686"), "x86"),
}


def family_of(machine: str) -> str:
    """The processor family behind a name of an ABI or machine: "aarch64", "x86_64", or the name itself."""
    return FAMILIES.get(machine.lower(), machine.lower())


@dataclass(frozen=True)
class Command:
    """How to start the worker: its arguments, and environment variables beside those of this process."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)


class Place(Protocol):
    """Somewhere the worker can be started.

    Attributes:
        name: "host", "qemu:cortex-a76", "ssh:pi@board".
        family: processor family of the runtimes there ("x86_64", "aarch64").
    """

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str: ...

    def command(self, runner: str, threads: int) -> Command:
        """Start the worker for runner ``runner`` (see ``host.KINDS``). Raises MissingToolError, UsageError."""
        ...

    def shell(self, script: str) -> str:
        """What a POSIX-sh text prints there. Raises RunError, MissingToolError."""
        ...

    def how_to_get(self, runner: str) -> str:
        """How the user gets that runtime there."""
        ...

    def lacks(self, runner: str) -> str:
        """Why that runtime can never run there, whatever is installed; "" where it can."""
        ...

    def ended(self, code: int, said: str) -> QwtEdgeError | None:
        """The error behind a worker that ended with exit ``code`` after writing ``said`` to standard error, where it is the
        place that failed (a lost connection) and not the runtime; else None."""
        ...


@dataclass(frozen=True)
class Job:
    """What is to be timed.

    Attributes:
        target: of the artifact; runner: key of ``host.KINDS``; data: the artifact.
        inputs: one array per input of the artifact, one or more samples; the first is timed.
        threads: of the runtime's kernels; cores: numbers of the processor cores to stay on, empty for any.
        samples: how many ``inputs`` hold.
        outputs: dtype and shape of each output of one sample, for tools that write bare bytes; empty where it is not known.
    """

    target: str
    runner: str
    data: bytes
    inputs: Sequence[np.ndarray]
    threads: int = 1
    cores: tuple[int, ...] = ()
    samples: int = 1
    outputs: Sequence[tuple[str, tuple[int, ...]]] = ()


class Loader(ABC):
    """Something that an artifact is loaded into, and that is closed at the end of a ``with`` block or when the first loading fails."""

    @abstractmethod
    def load(self, data: bytes) -> None:
        """Load an artifact in place of the one before."""

    @abstractmethod
    def close(self) -> None:
        """End what runs, and remove its files."""

    def __enter__(self: L) -> L:
        return self

    def _load_or_close(self, data: bytes) -> None:
        try:
            self.load(data)
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


#: called with the nanoseconds of every invocation so far, so that nothing is lost with the device
Keep = Callable[[Sequence[int]], None]


class Run(Protocol):
    """A loaded artifact that can be timed. What is known only after the first block is 0 or empty before it.

    Attributes:
        load_ns, first_ns: nanoseconds of loading and of the first invocation.
        outputs: one array per output, of every sample of the job.
        peak_rss_bytes: of the runtime's process.
        versions: of the runtime's packages; abi: as the runtime's process sees it.
        cores: the cores it was really bound to, empty for none.
    """

    load_ns: int
    first_ns: int
    outputs: tuple[np.ndarray, ...]
    peak_rss_bytes: int
    versions: Mapping[str, str]
    abi: str
    cores: tuple[int, ...]

    def block(self, runs: int, seconds: float, keep: Keep) -> list[int]:
        """Nanoseconds of up to ``runs`` more invocations of the first sample, fewer once ``seconds`` have passed.

        Raises: RunError: the runtime or the device failed; what was measured until then has been given to ``keep``.
        """
        ...


class Device(Protocol):
    """Something that runs artifacts and tells about itself.

    Attributes:
        name: as the user gave it, with what was left out ("adb:R58M…").
        kind: "host", "ssh" or "adb".
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    def state_text(self) -> str:
        """What ``state.SCRIPT`` prints there. Raises RunError, MissingToolError."""
        ...

    def open(self, job: Job) -> AbstractContextManager[Run]:
        """Load the job's artifact; leaving the context ends the runtime and removes every file put on the device."""
        ...


@runtime_checkable
class Emulation(Protocol):
    """A processor that another one emulates: it has no times, so its instructions are counted.

    Attributes:
        name: as the user gave it ("qemu:max"); kind: "qemu" or "board".
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    def count(self, job: Job, runs: int | None) -> Counts:
        """Run every sample, and the first one ``runs`` more times (as often as it takes to see that counts repeat if None).

        Raises: MissingToolError: a tool that counting needs; RunError.
        """
        ...
