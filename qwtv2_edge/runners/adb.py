"""Android phones over adb, as devices. Artifacts run in the demo app, or in a runtime's own command-line tool.

The app is started with a job folder that holds ``job.json``, the artifact and its inputs. About every second it writes what it has
measured to ``result.json`` in its own folder, which is read from here; demo_android/README.md tells both formats.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from qwtv2_edge.errors import QwtEdgeError, RunError, UsageError
from qwtv2_edge.runners.adb_client import REMOVE_SCRATCH, SCRATCH, Client, Said
from qwtv2_edge.runners.base import Job, Keep, Run
from qwtv2_edge.runners.state import SCRIPT

PACKAGE = "org.qwtv2.edge.demo"
ACTIVITY = f"{PACKAGE}/.BenchmarkActivity"
HOW_TO_INSTALL = "build and install it as demo_android/README.md tells"
#: version of job.json and result.json
SCHEMA = 1

#: key of host.KINDS -> the runtime's name in job.json
RUNTIMES = {"litert-xnnpack": "litert", "executorch": "executorch"}

#: seconds between two looks at result.json
POLL_S = 0.5
#: seconds in which the app or tool must get on: load, run every sample once, or measure the next part of a series
TIMEOUT_S = 120.0

#: error codes of the app -> fix
FIXES = {
    "bad_job": f"change what it names; if nothing is wrong with that, app and SDK are of different versions: {HOW_TO_INSTALL}",
    "missing_file": "try again; the phone must let apps read /data/local/tmp",
    "hash_mismatch": "the artifact arrived damaged: try another cable",
    "unsupported_runtime": f"this build of the app lacks the runtime; {HOW_TO_INSTALL}",
    "wrong_shape": "give inputs of the artifact's own shapes",
    "load_failed": "the runtime in the app may be older than the artifact",
    "run_failed": "verify the artifact on this machine first",
    "out_of_memory": "close other apps, or give it fewer samples",
    "interrupted": "leave the app in front and the phone unlocked",
}


class AdbDevice:
    """A phone.

    Args:
        serial: as ``adb devices`` lists it; the only phone that is connected if None.
        tool: ``benchmark_model`` (.tflite) or ``executor_runner`` (.pte) built for the phone, to be run in place of the app.
        timeout_s: seconds without progress after which app or tool count as hung.
    Raises: MissingToolError: no adb; UsageError: several phones, none of that serial, a tool for another ABI; RunError: no phone
        that can be used.
    """

    kind = "adb"

    def __init__(self, serial: str | None = None, tool: Path | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self.phone = Client(serial)
        self.timeout_s = timeout_s
        self._tool = tool
        if tool is not None:
            from qwtv2_edge.runners.adb_tools import check_abi

            check_abi(tool, self.phone)

    @property
    def name(self) -> str:
        return f"adb:{self.phone.serial}"

    def state_text(self) -> str:
        return self.phone.script("asking for its state", SCRIPT)

    def open(self, job: Job) -> AbstractContextManager[Run]:
        if self._tool is not None:
            from qwtv2_edge.runners.adb_tools import open_tool

            return open_tool(self.phone, self._tool, job, self.timeout_s)
        return open_app(self.phone, job, self.timeout_s)


@contextmanager
def open_app(phone: Client, job: Job, timeout_s: float) -> Iterator[Run]:
    """The job in the demo app; see ``base.Device.open``."""
    if job.runner not in RUNTIMES:
        raise UsageError(f"phones don't run '{job.runner}'", fix=f"one of: {', '.join(RUNTIMES)}")
    path = phone.shell("looking for the demo app", f"pm path {PACKAGE}")
    if not path.out.startswith(b"package:"):
        raise RunError(f"the demo app ({PACKAGE}) is not installed on {phone.serial}", fix=HOW_TO_INSTALL)
    storage = phone.shell("asking for its storage", "echo $EXTERNAL_STORAGE").out.decode().strip() or "/sdcard"
    name = secrets.token_hex(6)
    folder, results = f"{SCRATCH}/{name}", f"{shlex.quote(storage)}/Android/data/{PACKAGE}/files/jobs/{name}"
    with cleaned_up(phone, f"am force-stop {PACKAGE}; rm -rf {folder} {results} && {REMOVE_SCRATCH}"):
        yield AppRun(phone, job, name, folder, results, timeout_s)


@contextmanager
def cleaned_up(phone: Client, command: str) -> Iterator[None]:
    """Run a command on the phone at the end, however that comes; an error on the way out counts more than one in cleaning up."""
    try:
        yield
    except BaseException:
        with suppress(QwtEdgeError):  # most likely the phone is gone, which is being told
            phone.shell("cleaning up", command)
        raise
    said = phone.shell("cleaning up", command)
    if said.code:
        raise phone.failure("cleaning up", said)


class AppRun:
    """A job of the demo app; each block is one start of it. See ``base.Run``."""

    def __init__(self, phone: Client, job: Job, name: str, folder: str, results: str, timeout_s: float) -> None:
        self.load_ns = 0
        self.first_ns = 0
        self.outputs: tuple[np.ndarray, ...] = ()
        self.peak_rss_bytes = 0
        self.versions: Mapping[str, str] = {}
        self.abi = ""
        self.cores: tuple[int, ...] = ()  # Android chooses the cores of apps
        self._phone = phone
        self._name = name
        self._folder = folder
        self._results = results
        self._timeout_s = timeout_s
        self._job = description(job, name)
        write_job(phone, folder, {"model" + suffix_of(job): job.data, **inputs_of(job.inputs)})

    def block(self, runs: int, seconds: float, keep: Keep) -> list[int]:
        write_job(self._phone, self._folder, {"job.json": json.dumps({**self._job, "runs": runs, "seconds": seconds}).encode()})
        self._start()
        result = self._watch(keep)
        self._take(result)
        return list(result["ns"])

    def _start(self) -> None:
        self._phone.checked_shell("stopping the demo app", f"am force-stop {PACKAGE} && rm -rf {self._results}")
        start = f"am start -W -n {ACTIVITY} --es job {self._name} --es dir {self._folder}"
        said = self._phone.shell("starting the demo app", start, timeout_s=self._timeout_s)
        if "does not exist" in said.text:
            raise RunError(f"the demo app on {self._phone.serial} is too old to be started from here", fix=HOW_TO_INSTALL)
        if said.code or "Error" in said.text or "Exception" in said.text:
            raise self._phone.failure("starting the demo app", said)

    def _watch(self, keep: Keep) -> dict[str, Any]:
        """result.json once it is complete; each new part of the series goes to ``keep``."""
        seen: dict[str, Any] = {}
        progress = time.monotonic()
        pid = ""
        while True:
            alive, result = self._look()
            if result and result != seen:
                seen, progress = result, time.monotonic()
                self._take_times(seen)
                if seen["ns"]:
                    keep(seen["ns"])
            if seen and seen["error"] is not None:
                raise self._error(**seen["error"])
            if seen and seen["complete"]:
                return seen
            if not alive:
                raise self._crashed(pid)
            pid = alive
            if time.monotonic() - progress > self._timeout_s:
                raise RunError(
                    f"the demo app on {self._phone.serial} has not got on for {self._timeout_s:g} s, after {len(seen.get('ns', ()))} runs",
                    fix="leave the app in front and the phone unlocked",
                )
            time.sleep(POLL_S)

    def _look(self) -> tuple[str, dict[str, Any]]:
        """(process of the app or "", what result.json holds or {}), the process first: one that ended has written all it had to."""
        path = f"{self._results}/result.json"
        said = self._phone.shell(f"reading {path}", f'echo "$(pidof {PACKAGE})"; cat {path}')
        pid, _, text = said.out.decode(errors="replace").partition("\n")
        if said.code and "No such file" not in said.text:
            raise self._phone.failure(f"reading {path}", said)
        return pid.strip(), checked_result(text, self._name) if text.strip() else {}

    def _take_times(self, result: Mapping[str, Any]) -> None:
        self.load_ns, self.first_ns = result["load_ns"], result["first_ns"]
        self.peak_rss_bytes = result["peak_rss_bytes"]
        self.abi = result["abi"]
        self.versions = {**result["versions"], "demo app": result["app_version"]}

    def _take(self, result: Mapping[str, Any]) -> None:
        self.outputs = tuple(self._pull(o["file"], o["dtype"], tuple(o["shape"])) for o in result["outputs"])

    def _pull(self, file: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        size = prod(shape) * np.dtype(dtype).itemsize
        return np.frombuffer(self._phone.pull(f"{self._results}/{file}", size), dtype).reshape(shape)

    def _error(self, code: str, message: str) -> RunError:
        return RunError(f"the demo app on {self._phone.serial} failed ({code}): {message}", fix=FIXES.get(code, HOW_TO_INSTALL))

    def _crashed(self, pid: str) -> RunError:
        """The error behind an app that ended before its job; with the last lines of its log."""
        log = "logcat -d -t 20 " + (f"--pid={pid}" if pid else "-b crash")
        said = self._phone.shell("reading its log", log)
        return RunError(
            f"the demo app on {self._phone.serial} ended before its job (process {pid or 'unknown'}){Said(0, said.out, b'').tail(8)}",
            fix="the artifact hits a bug or a limit of this runtime, or Android ended the app",
        )


def description(job: Job, name: str) -> dict[str, Any]:
    """job.json without the length of the series."""
    return {
        "schema_version": SCHEMA,
        "job": name,
        "runtime": RUNTIMES[job.runner],
        "artifact": {"file": "model" + suffix_of(job), "bytes": len(job.data), "sha256": hashlib.sha256(job.data).hexdigest()},
        "inputs": [{"file": f"input_{i}.bin", "dtype": a.dtype.name, "shape": list(a.shape)} for i, a in enumerate(job.inputs)],
        "samples": job.samples,
        "threads": job.threads,
    }


def suffix_of(job: Job) -> str:
    return ".pte" if job.runner == "executorch" else ".tflite"


def inputs_of(arrays: Sequence[np.ndarray]) -> dict[str, bytes]:
    """Input files as runtimes on phones read them: bare little-endian values."""
    return {f"input_{i}.bin": a.astype(a.dtype.newbyteorder("<"), copy=False).tobytes() for i, a in enumerate(arrays)}


def write_job(phone: Client, folder: str, files: Mapping[str, bytes]) -> None:
    """Put files into a folder on the phone, which is made if it isn't there."""
    phone.make_folder(folder)
    with tempfile.TemporaryDirectory() as here:
        paths = [Path(here) / name for name in files]
        for path, data in zip(paths, files.values(), strict=True):
            path.write_bytes(data)
        phone.push(paths, folder)


#: fields of result.json that are read -> type
FIELDS = {
    "job": str,
    "app_version": str,
    "complete": bool,
    "versions": dict,
    "abi": str,
    "load_ns": int,
    "first_ns": int,
    "ns": list,
    "outputs": list,
    "peak_rss_bytes": int,
}


def checked_result(text: str, name: str) -> dict[str, Any]:
    """The content of a result.json, with all FIELDS and every value of the type the interface gives it.

    Raises: RunError: the app is too old, or too new.
    """
    try:
        result = json.loads(text)
        version = result["schema_version"]
        if version == SCHEMA:
            if result["error"] is not None:  # an app that fails early has nothing to tell yet
                result = {**{k: kind() for k, kind in FIELDS.items()}, "job": name, **result}
            wrong = [k for k, kind in FIELDS.items() if not isinstance(result[k], kind)]
            wrong += [k for k, fits in _FIT.items() if k not in wrong and not fits(result[k])]
            if wrong or result["job"] != name:
                raise ValueError(f"wrong values of {', '.join(wrong) or 'job'}")
            return dict(result)
    except (ValueError, KeyError, TypeError) as exc:
        raise RunError(f"the demo app's result.json can't be read: {exc!r}", fix=HOW_TO_INSTALL) from exc
    age = "old" if not isinstance(version, int) or version < SCHEMA else "new"
    raise RunError(f"the demo app is too {age}: it writes version {version} of result.json, not {SCHEMA}", fix=HOW_TO_INSTALL)


def _is_output(value: Any) -> bool:
    """Whether an entry of ``outputs`` names a file, a dtype of NumPy's and a shape."""
    np.dtype(value["dtype"])
    return bool(re.fullmatch(r"[\w.-]+", value["file"])) and all(isinstance(n, int) and n >= 0 for n in value["shape"])


#: fields of result.json -> whether a value of the right type is a possible one
_FIT: Mapping[str, Callable[[Any], bool]] = {
    "ns": lambda ns: all(isinstance(v, int) and v >= 0 for v in ns),
    "outputs": lambda outputs: all(_is_output(o) for o in outputs),
    "error": lambda error: error is None or set(error) == {"code", "message"},
}
