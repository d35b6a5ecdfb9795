"""The runtimes' own command-line tools on phones: LiteRT's ``benchmark_model`` and ExecuTorch's ``executor_runner``.

``benchmark_model`` prints one line for a whole series, with its average, first, last, least and largest time. Percentiles can't be had
from that, so each invocation that counts gets a process of its own: WARMUP invocations that don't, then the one whose "average" is
itself. Such a series holds no slow drift of one long-lived process.
``executor_runner`` prints a line for each invocation, to logcat on Android. The first of every process is left out.

Source: tensorflow, lite/tools/benchmark/benchmark_model.cc and benchmark_tflite_model.cc; executorch,
examples/portable/executor_runner/executor_runner.cpp and runtime/platform/default/android.cpp
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shlex
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np

from qwtv2_edge.errors import RunError, UsageError
from qwtv2_edge.runners.adb import cleaned_up, inputs_of, suffix_of, write_job
from qwtv2_edge.runners.adb_client import REMOVE_SCRATCH, SCRATCH, Client, Said
from qwtv2_edge.runners.base import Job, Keep, Run

#: e_machine of an ELF header -> Android's name of the ABI
ABIS = {3: "x86", 40: "armeabi-v7a", 62: "x86_64", 183: "arm64-v8a", 243: "riscv64"}

#: key of host.KINDS -> arguments that choose its kernels
BENCHMARK_KERNELS = {"litert-xnnpack": "--use_xnnpack=true", "litert-builtin": "--use_xnnpack=false"}

#: invocations before the one that counts, in each process of benchmark_model
WARMUP = 5

#: seconds of one series of executor_runner, its least and largest length (a log of Android keeps some thousand lines)
CHUNK_S, LEAST_CHUNK, MOST_CHUNK = 1.0, 10, 500

NUMBER = r"([0-9.]+(?:e[+-]?[0-9]+)?)"


@contextmanager
def open_tool(phone: Client, tool: Path, job: Job, timeout_s: float) -> Iterator[Run]:
    """The job in a command-line tool; see ``base.Device.open``."""
    kind = ExecutorRunner if job.runner == "executorch" else BenchmarkModel
    if kind is BenchmarkModel and job.runner not in BENCHMARK_KERNELS:
        raise UsageError(f"benchmark_model can't run '{job.runner}'", fix=f"one of: {', '.join(BENCHMARK_KERNELS)}")
    name = secrets.token_hex(6)
    folder = f"{SCRATCH}/{name}"
    # the number may have gone to another process since: only one with the job's name in its arguments is ours
    kill = f"p=$(cat {folder}/pid 2>/dev/null) && grep -q {name} /proc/$p/cmdline 2>/dev/null && kill -9 $p"
    with cleaned_up(phone, f"{kill}; rm -rf {folder} && {REMOVE_SCRATCH}"):
        yield kind(phone, tool, job, folder, timeout_s)


def abi_of(tool: Path) -> str:
    """The ABI an executable was built for. Raises UsageError: no such file, or no executable of Linux."""
    try:
        with tool.open("rb") as file:
            head = file.read(20)
    except OSError as exc:
        raise UsageError(f"can't read {tool}: {exc.strerror or exc}", fix="give the path of benchmark_model or executor_runner") from exc
    if len(head) < 20 or head[:4] != b"\x7fELF":
        raise UsageError(f"{tool} is no Linux executable", fix="give benchmark_model or executor_runner, built for the phone")
    machine = struct.unpack_from("<H" if head[5] == 1 else ">H", head, 18)[0]
    return ABIS.get(machine, f"machine {machine}")


def check_abi(tool: Path, phone: Client) -> None:
    """Raises UsageError: the phone can't run programs for the tool's ABI."""
    abi = abi_of(tool)
    known = phone.shell("asking for its ABIs", "getprop ro.product.cpu.abilist").out.decode().strip()
    if abi not in known.split(","):
        raise UsageError(
            f"wrong ABI: {tool.name} is built for {abi}, the phone {phone.serial} runs {known or 'none'}", fix=f"build it for {known}"
        )


class ToolRun(ABC):
    """A job of a command-line tool; each block is one or more processes. ``versions`` names the tool by its SHA-256."""

    def __init__(self, phone: Client, tool: Path, job: Job, folder: str, timeout_s: float) -> None:
        self.load_ns = 0
        self.first_ns = 0
        self.outputs: tuple[np.ndarray, ...] = ()
        self.peak_rss_bytes = 0
        self.abi = abi_of(tool)
        program = tool.read_bytes()
        self.versions: Mapping[str, str] = {"tool": f"{tool.name} {hashlib.sha256(program).hexdigest()[:16]}"}
        self._phone = phone
        self._job = job
        self._folder = folder
        self._timeout_s = timeout_s
        self._model = f"{folder}/model{suffix_of(job)}"
        self._inputs = [f"{folder}/{name}" for name in inputs_of(job.inputs)]
        self._samples = [[a[i * len(a) // job.samples : (i + 1) * len(a) // job.samples] for a in job.inputs] for i in range(job.samples)]
        write_job(phone, folder, {"program": program, "model" + suffix_of(job): job.data})
        phone.checked_shell("making the tool executable", f"chmod 755 {folder}/program")
        self._prefix, self.cores = self._pinning()

    def block(self, runs: int, seconds: float, keep: Keep) -> list[int]:
        if not self.outputs and self._job.outputs:
            self.outputs = tuple(np.concatenate(o) for o in zip(*map(self._outputs_of, self._samples), strict=True))
        write_job(self._phone, self._folder, inputs_of(self._samples[0]))
        return self._series(runs, time.monotonic() + seconds, keep)

    @abstractmethod
    def _series(self, runs: int, end: float, keep: Keep) -> list[int]:
        """Nanoseconds of up to ``runs`` invocations, until the clock says ``end``."""

    @abstractmethod
    def _outputs_of(self, sample: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What comes out of one sample."""

    def _pinning(self) -> tuple[str, tuple[int, ...]]:
        """(prefix of the command, cores it keeps to): none where the phone has no taskset."""
        cores = self._job.cores
        if not cores or self._phone.shell("looking for taskset", "command -v taskset").code:
            return "", ()
        return f"taskset {sum(1 << c for c in set(cores)):x} ", cores

    def _execute(self, arguments: Sequence[str]) -> Said:
        """Run the tool, its process known to the cleaning up."""
        command = f"echo $$ > {self._folder}/pid && exec {self._prefix}{self._folder}/program {' '.join(arguments)}"
        said = self._phone.shell("running the tool", f"cd {self._folder} && sh -c {shlex.quote(command)}", timeout_s=self._timeout_s)
        if said.code:
            raise self._phone.failure("running the tool", said)
        return said

    def _unknown(self, said: Said, fix: str) -> RunError:
        return RunError(f"{self.versions['tool']} does not print what is read here{said.tail()}", fix=fix)

    def _cut(self, data: bytes) -> list[np.ndarray]:
        """The outputs of one sample in what the tool wrote, one after the other."""
        out, at = [], 0
        for dtype, shape in self._job.outputs:
            out.append(np.frombuffer(data, dtype, prod(shape), at).reshape(shape))
            at += out[-1].nbytes
        return out

    def _sizes(self) -> list[int]:
        """Bytes of each output of one sample."""
        return [prod(shape) * np.dtype(dtype).itemsize for dtype, shape in self._job.outputs]


class BenchmarkModel(ToolRun):
    """LiteRT's tool."""

    def _series(self, runs: int, end: float, keep: Keep) -> list[int]:
        series: list[int] = []
        while len(series) < runs and (not series or time.monotonic() < end):
            said = self._execute(self._arguments(warmup=WARMUP))
            init, first, timed = self._timings(said)
            if not self.load_ns:
                self.load_ns, self.first_ns = init, first
            series.append(timed)
            keep(series)
        return series

    def _outputs_of(self, sample: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Also looks at the memory, whose observer would disturb times."""
        write_job(self._phone, self._folder, inputs_of(sample))
        path = f"{self._folder}/outputs.bin"
        said = self._execute([*self._arguments(warmup=0), f"--output_filepath={path}", "--report_peak_memory_footprint=true"])
        if peak := re.search(rf"Overall peak memory footprint \(MB\) via periodic monitoring: {NUMBER}", said.text):
            self.peak_rss_bytes = max(self.peak_rss_bytes, int(float(peak[1]) * 2**20))
        return self._cut(self._phone.pull(path, sum(self._sizes())))

    def _arguments(self, warmup: int) -> list[str]:
        names = [f"input_{i}" for i in range(len(self._inputs))]
        shapes = (",".join(map(str, a.shape)) for a in self._samples[0])
        return [
            f"--graph={self._model}",
            f"--num_threads={self._job.threads}",
            BENCHMARK_KERNELS[self._job.runner],
            f"--warmup_runs={warmup}",
            "--warmup_min_secs=0",
            "--num_runs=1",
            "--min_secs=0",
            f"--input_layer={','.join(names)}",
            f"--input_layer_shape={':'.join(shapes)}",
            "--input_layer_value_files=" + ",".join(f"{n}:{path}" for n, path in zip(names, self._inputs, strict=True)),
        ]

    def _timings(self, said: Said) -> tuple[int, int, int]:
        """Nanoseconds of loading, of the first invocation and of the one that counts."""
        match = re.search(
            rf"Inference timings in us: Init: {NUMBER}, First inference: {NUMBER}, Warmup \(avg\): {NUMBER}, Inference \(avg\): {NUMBER}",
            said.text,
        )
        if match is None:
            raise self._unknown(said, "give benchmark_model of TensorFlow Lite 2.4 or newer")
        init, first, _, timed = (int(float(v) * 1000) for v in match.groups())
        return init, first, timed


class ExecutorRunner(ToolRun):
    """ExecuTorch's tool."""

    def _series(self, runs: int, end: float, keep: Keep) -> list[int]:
        series: list[int] = []
        length = LEAST_CHUNK
        while len(series) < runs and (not series or time.monotonic() < end):
            load, times = self._timings(self._execute(self._arguments(min(length, runs - len(series)) + 1)))
            if not self.load_ns:
                self.load_ns, self.first_ns = load, times[0]
            series += times[1:]
            keep(series)
            mean = max(1, sum(times) // len(times))
            length = max(LEAST_CHUNK, min(MOST_CHUNK, int(min(CHUNK_S, end - time.monotonic()) * 1e9) // mean))
        return series

    def _outputs_of(self, sample: Sequence[np.ndarray]) -> list[np.ndarray]:
        write_job(self._phone, self._folder, inputs_of(sample))
        self._execute([*self._arguments(1), f"--output_file={self._folder}/output"])
        return self._cut(b"".join(self._phone.pull(f"{self._folder}/output-{i}.bin", size) for i, size in enumerate(self._sizes())))

    def _arguments(self, executions: int) -> list[str]:
        return [
            f"--model_path={self._model}",
            f"--inputs={','.join(self._inputs)}",
            f"--num_executions={executions}",
            f"--cpu_threads={self._job.threads}",
        ]

    def _timings(self, said: Said) -> tuple[int, list[int]]:
        """Nanoseconds of loading, 0 where it is not told, and of every invocation."""
        text = said.text
        if "Iteration 1 of" not in text:
            text += self._phone.shell("reading the tool's log", f"logcat -d -s ExecuTorch --pid=$(cat {self._folder}/pid)").text
        times = [int(float(ms) * 1e6) for ms in re.findall(rf"Iteration \d+ of \d+: {NUMBER} ms", text)]
        if len(times) < 2:
            raise self._unknown(
                said, "give an executor_runner that logs every iteration: a new one, built with EXECUTORCH_ENABLE_LOGGING=ON"
            )
        load = re.search(rf"Model loaded in {NUMBER} ms", text)
        return int(float(load[1]) * 1e6) if load else 0, times
