"""Runs artifacts in their real runtimes, each in a process of its own: on this machine, or wherever a place starts it.

A runtime that crashes, aborts or hangs takes its process with it, and the caller gets a RunError.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qwtv2_edge.errors import MissingToolError, QwtEdgeError, RunError, UsageError
from qwtv2_edge.runners.base import WORKER, Command, Loader, Place, family_of

#: kind -> (runtime in words, how to get it)
KINDS: dict[str, tuple[str, str]] = {
    "litert-reference": ("LiteRT, reference kernels", "pip install 'ai-edge-litert>=2.3,<3'"),
    "litert-xnnpack": ("LiteRT, XNNPACK delegate", "pip install 'ai-edge-litert>=2.3,<3'"),
    "litert-builtin": ("LiteRT, optimised built-ins", "pip install 'ai-edge-litert>=2.3,<3'"),
    "tflite-2.14-reference": (
        "tflite-runtime 2.14.0, reference kernels",
        "it needs numpy<2, so an environment of its own: python3.11 -m venv .venv-tflite-2.14 && "
        ".venv-tflite-2.14/bin/pip install tflite-runtime==2.14.0 'numpy<2' (or point QWTV2_TFLITE_2_14_PYTHON at one)",
    ),
    "tensorflow-reference": ("TensorFlow Lite, reference kernels", "pip install 'tensorflow>=2.21,<2.22'"),
    "tensorflow-xnnpack": ("TensorFlow Lite, XNNPACK delegate", "pip install 'tensorflow>=2.21,<2.22'"),
    "tflite-micro": ("TFLite Micro", "pip install tflite-micro"),
    "executorch": ("ExecuTorch", "pip install 'executorch>=1.4,<1.5'"),
    "executorch-cortex-m": ("ExecuTorch's Cortex-M operators, by proxy", "pip install 'executorch>=1.4,<1.5' tflite-micro"),
    "c": ("generated C", "install a C compiler (apt-get install gcc), or name one in the environment variable CC"),
}

#: those whose kernels know one thread only
SINGLE_THREADED = ("tflite-micro", "c")

#: bytes written at once: what a ready pipe takes without blocking
PIECE = select.PIPE_BUF

#: seconds a single message may take before the runtime counts as hung
TIMEOUT_S = 600.0


def tflite_2_14_python() -> Path:
    """The interpreter that holds tflite-runtime 2.14.0; it may not exist."""
    named = os.environ.get("QWTV2_TFLITE_2_14_PYTHON")
    if named:
        return Path(named)
    beside = Path(sys.prefix).parent / ".venv-tflite-2.14" / "bin" / "python"
    if beside.exists():
        return beside
    return Path.home() / ".cache" / "qwtv2_edge" / "tflite-2.14" / "bin" / "python"


def python_of(kind: str) -> Path:
    """The Python on this machine that runs the worker for ``kind``. Raises MissingToolError."""
    if kind != "tflite-2.14-reference":
        return Path(sys.executable)
    python = tflite_2_14_python()
    if not python.exists():
        raise MissingToolError(f"no Python with tflite-runtime 2.14.0 at {python}", fix=KINDS[kind][1])
    return python


@dataclass(frozen=True, slots=True)
class Host:
    """This machine."""

    name: str = "host"

    @property
    def family(self) -> str:
        return family_of(platform.machine())

    def command(self, runner: str, threads: int) -> Command:
        # another environment must see nothing of this one; in ours only the worker's own folder is kept off the path
        isolation = "-I" if runner == "tflite-2.14-reference" else "-P"
        return Command([str(python_of(runner)), isolation, str(WORKER)], {"OMP_NUM_THREADS": str(threads)})

    def shell(self, script: str) -> str:
        return subprocess.run(["/bin/sh"], input=script, capture_output=True, text=True, errors="replace", check=False).stdout

    def how_to_get(self, runner: str) -> str:
        return KINDS[runner][1]

    def lacks(self, runner: str) -> str:
        return ""

    def ended(self, code: int, said: str) -> None:
        return None


HOST = Host()


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a loaded artifact, as the runtime describes it (name, scale where it tells them)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Nanoseconds of each invocation, measured inside the runtime's process. ``outputs``: what the timed sample gave."""

    ns: tuple[int, ...]
    peak_rss_bytes: int
    outputs: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True)
class OpEvent:
    """One op as the runtime reported it.

    Attributes:
        op: the runtime's own name of it, "" where it has none.
        unit: what ``number`` counts: "operator" of the file, "instruction" of the program, or ops of one "delegate" call from 0.
        ns: nanoseconds, a mean over typical invocations.
    """

    op: str
    unit: str
    number: int
    ns: float


@dataclass(frozen=True, slots=True)
class OpEvents:
    """The ops of an invocation in the order they ran.

    Attributes:
        operators: (name, tensors read, tensors made) of each operator of a ``.tflite``, in the file's order.
        plain_ns, watched_ns: median invocation without a clock on every op, and with it.
        runs: invocations behind the times.
        reason: why there are none.
    """

    events: tuple[OpEvent, ...] = ()
    operators: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    plain_ns: float = 0.0
    watched_ns: float = 0.0
    runs: int = 0
    reason: str = ""


class Session(Loader):
    """One runtime process; loads one artifact after another.

    Args:
        kind: key of KINDS.
        data: artifact to load at once, or None.
        threads: for the runtime's kernels.
        cores: processor cores the process is bound to; empty for any.
        timeout_s: for each message.
        place: where the process runs; env: environment variables beside those that the place sets.
    Raises: MissingToolError, RunError.

    Use as a context manager. After a crash the next :meth:`load` starts a new process.
    """

    def __init__(
        self,
        kind: str,
        data: bytes | None = None,
        *,
        threads: int = 1,
        cores: Sequence[int] = (),
        timeout_s: float = TIMEOUT_S,
        place: Place = HOST,
        env: Mapping[str, str] | None = None,
    ) -> None:
        if kind not in KINDS:
            raise UsageError(f"unknown runner '{kind}'", fix=f"one of: {', '.join(KINDS)}")
        self.kind = kind
        self.threads = threads
        self.cores = tuple(cores)
        self.timeout_s = timeout_s
        self.place = place
        self.inputs: tuple[Port, ...] = ()
        self.outputs: tuple[Port, ...] = ()
        self.versions: dict[str, str] = {}
        self.load_ns = 0
        self.allocations = ""  # what TFLite Micro tells of its arena
        self.machine = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Any = None
        command = place.command(kind, threads)
        self._command = Command(command.argv, {**command.env, **(env or {})})
        if data is not None:
            self._load_or_close(data)

    def load(self, data: bytes) -> None:
        """Load an artifact in place of the one before."""
        header = {"command": "load", "kind": self.kind, "threads": self.threads, "cores": list(self.cores)}
        reply, _ = self._call(header, blobs=[data])
        self.inputs = tuple(port_of(d) for d in reply["inputs"])
        self.outputs = tuple(port_of(d) for d in reply["outputs"])
        self.versions = reply["versions"]
        self.load_ns = reply["load_ns"]
        self.allocations = reply["allocations"]
        self.machine = reply["machine"]

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run every sample.

        Args:
            inputs: one array per artifact input, first axis = samples (any multiple of the artifact's own batch).
        Returns: one array per output, samples joined along axis 0.
        """
        _, arrays = self._call({"command": "run"}, inputs)
        return arrays

    def time(self, inputs: Sequence[np.ndarray], runs: int, seconds: float = 60.0) -> Timing:
        """Time ``runs`` invocations of one sample (fewer when they take longer than ``seconds``); none is left out as warm-up."""
        reply, arrays = self._call({"command": "time", "runs": runs, "seconds": seconds}, inputs)
        return Timing(tuple(reply["ns"]), reply["peak_rss_bytes"], tuple(arrays))

    def ops(self, inputs: Sequence[np.ndarray], runs: int = 1000, seconds: float = 2.0) -> tuple[OpEvents, list[np.ndarray]]:
        """Times of the ops of one sample's invocations, and the outputs of the last one.

        ``runs`` invocations with a clock on every op (fewer when they take longer than ``seconds``, together with as many plain ones).
        """
        reply, arrays = self._call({"command": "ops", "runs": runs, "seconds": seconds}, inputs)
        if reply["reason"]:
            return OpEvents(reason=reply["reason"]), arrays
        events = tuple(OpEvent(e["op"], e["unit"], e["number"], e["ns"]) for e in reply["ops"])
        operators = tuple((name, tuple(read), tuple(made)) for name, read, made in reply["operators"])
        return OpEvents(events, operators, reply["plain_ns"], reply["watched_ns"], reply["runs"]), arrays

    def smallest_arena(self, least: int) -> int:
        """The smallest arena, from ``least`` bytes on, in which TFLite Micro takes the loaded file."""
        reply, _ = self._call({"command": "arena", "least": least})
        return int(reply["bytes"])

    def find_versions(self) -> dict[str, str]:
        """Versions of the runtime's packages, without loading an artifact."""
        reply, _ = self._call({"command": "versions", "kind": self.kind})
        return dict(reply["versions"])

    def abort(self) -> None:
        """Kill the process; a call under way in another thread then raises RunError. Call :meth:`close` afterwards."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it may be gone already
                process.stdin.close()  # the worker leaves at the end of its input
            process.stdout.close()
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _start(self) -> subprocess.Popen[bytes]:
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1", **self._command.env}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the session
        self._process = subprocess.Popen(
            list(self._command.argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=env, bufsize=0
        )
        return self._process

    def _call(
        self, header: dict[str, Any], arrays: Sequence[np.ndarray] = (), blobs: Sequence[bytes] = ()
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        process = self._process or self._start()
        arrays = [np.ascontiguousarray(a) for a in arrays]
        header = {
            **header,
            "arrays": [[a.dtype.name, list(a.shape)] for a in arrays],
            "blobs": [len(b) for b in blobs] + [a.nbytes for a in arrays],
        }
        text = json.dumps(header).encode()
        deadline = time.monotonic() + self.timeout_s
        try:
            self._write(process, struct.pack("<I", len(text)) + text, deadline)
            for blob in (*blobs, *(a.reshape(-1).view(np.uint8).data for a in arrays if a.nbytes)):
                self._write(process, blob, deadline)
            reply = json.loads(self._read(process, struct.unpack("<I", self._read(process, 4, deadline))[0], deadline))
            raw = [self._read(process, n, deadline) for n in reply["blobs"]]
        except (BrokenPipeError, EOFError):
            raise self._crashed() from None
        except TimeoutError:
            process.kill()
            tail = self._tail()
            self.close()
            raise RunError(
                f"{self._what()} did not answer '{header['command']}' within {self.timeout_s:g} s{tail}", fix="give it fewer samples"
            ) from None
        except BaseException:
            # interrupted in the middle of a message: the stream can't be used again
            process.kill()
            self.close()
            raise
        if not reply["ok"]:
            if reply["missing"]:
                raise MissingToolError(f"{self._what()} is not installed ({reply['error']})", fix=self.place.how_to_get(self.kind))
            if reply.get("wrong"):
                raise UsageError(f"{self.place.name}: {reply['error']}", fix="choose among those")
            raise RunError(f"{self._what()} failed at '{header['command']}': {reply['error']}{self._tail()}")
        return reply, [np.frombuffer(b, d).reshape(s) for b, (d, s) in zip(raw, reply["arrays"], strict=True)]

    @staticmethod
    def _write(process: subprocess.Popen[bytes], data: Any, deadline: float) -> None:
        assert process.stdin is not None
        view, fd = memoryview(data), process.stdin.fileno()
        while len(view):
            _, ready, _ = select.select([], [fd], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            view = view[os.write(fd, view[:PIECE]) :]

    @staticmethod
    def _read(process: subprocess.Popen[bytes], count: int, deadline: float) -> bytes:
        assert process.stdout is not None
        fd, data = process.stdout.fileno(), bytearray()
        while len(data) < count:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            part = os.read(fd, min(count - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def _what(self) -> str:
        """The runtime, and where it runs if that is not here."""
        return KINDS[self.kind][0] + ("" if self.place.name == "host" else f" on {self.place.name}")

    def _crashed(self) -> QwtEdgeError:
        assert self._process is not None
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        tail = self._tail()
        self.close()
        lost = self.place.ended(code, tail)
        if lost is not None:
            return lost
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return RunError(f"{self._what()} crashed ({how}){tail}", fix="the artifact hits a bug or a limit of this runtime")

    def _tail(self) -> str:
        """The last lines the runtime wrote, ready to append to a message."""
        if self._log is None:
            return ""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 4096))
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return "".join(f"\n  | {line}" for line in lines[-6:])


def first_sample(inputs: Sequence[np.ndarray], ports: Sequence[Port]) -> list[np.ndarray]:
    """The first of the samples that ``inputs`` hold along their first axis."""
    return [a[: p.shape[0]] if p.shape else a for a, p in zip(inputs, ports, strict=False)]


def port_of(d: Mapping[str, Any]) -> Port:
    """A port as the worker describes it."""
    return Port(d["name"], tuple(d["shape"]), d["dtype"], d["scale"], d["zero_point"])


def run_artifact(
    data: bytes, kind: str, inputs: Sequence[np.ndarray], *, threads: int = 1, timeout_s: float = TIMEOUT_S, place: Place = HOST
) -> list[np.ndarray]:
    """Run ``inputs`` (first axis = samples) through an artifact in a fresh process; see :class:`Session`."""
    with Session(kind, data, threads=threads, timeout_s=timeout_s, place=place) as session:
        return session.run(inputs)


@cache
def available(kind: str) -> tuple[bool, str]:
    """(True, version), or (False, how to get the runtime)."""
    try:
        with Session(kind, timeout_s=60) as session:
            versions = session.find_versions()
    except MissingToolError as error:
        return False, error.fix
    except RunError as error:
        return False, f"{error.message}; {KINDS[kind][1]}"
    return True, next(v for k, v in versions.items() if k not in ("python", "numpy"))
