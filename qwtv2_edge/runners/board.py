"""Runs generated C on boards with a Cortex-M processor that QEMU emulates, from reset to the last output byte.

The file is compiled for the core and linked with the start code of ``boards/`` into what would be flashed: vectors, code and
constants in one memory; stack, data and arena in the other. Inputs and outputs are files, reached by semihosting. What is
told of memory is what the compiler and the stack's paint say; what is told of speed are instructions, never time.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwtv2_edge.errors import MissingToolError, RunError, UsageError
from qwtv2_edge.numerics import MICROCONTROLLERS
from qwtv2_edge.runners import worker
from qwtv2_edge.runners.arm_none_eabi import CORES, OPTIMIZE, PACKAGES, PREFIX, Sizes, compile_object, run_tool
from qwtv2_edge.runners.base import Job, Loader
from qwtv2_edge.runners.counting import Counts, plugin
from qwtv2_edge.runners.host import Port, port_of

SUPPORT = Path(__file__).with_name("boards")
SOURCES = ("start.c", "semihosting.c", "harness.c")
FLAGS = ("-std=gnu11", "-Os", "-Wall", "-Wextra", "-Werror", "-I.", f"-I{SUPPORT}")
QEMU = "qemu-system-arm"
#: no screen, no console, no network; files of the working folder for the program
QEMU_FLAGS = ("-display", "none", "-monitor", "none", "-serial", "none", "-nic", "none", "-semihosting-config", "enable=on,target=native")
STACK_BYTES = 16 * 1024
VECTOR_BYTES = 1024
#: seconds that all samples of one call may take
TIMEOUT_S = 600.0
#: inferences counted besides the first: counts repeat exactly here, which two show
RUNS = 2


@dataclass(frozen=True)
class Memory:
    """One memory chip: its first address and its bytes."""

    origin: int
    size: int


@dataclass(frozen=True)
class Board:
    """A board that QEMU emulates.

    Attributes:
        core: key of ``arm_none_eabi.CORES``; machine: QEMU's name of the board.
        vectors: address at which the core starts, the beginning of a memory.
        flash: for code and constants; ram: for stack, data and arena. These FPGA boards have more of both than
            microcontrollers: whether a network fits one of those is a matter of its sizes, not of running here.
    """

    core: str
    machine: str
    vectors: int
    flash: Memory
    ram: Memory

    @property
    def name(self) -> str:
        return f"board:{self.core}"

    @property
    def family(self) -> str:
        return MICROCONTROLLERS

    def lacks(self, runner: str) -> str:
        """See ``base.Place``."""
        return "" if runner == "c" else "boards run generated C alone"

    @property
    def code(self) -> Memory:
        """``flash`` behind the vectors."""
        skip = VECTOR_BYTES if self.vectors == self.flash.origin else 0
        return Memory(self.flash.origin + skip, self.flash.size - skip)


MB = 1 << 20
#: M3, M4, M7, M33: the board's static RAMs 1 and 2+3; M55: QSPI flash and internal SRAM, vectors in tightly coupled memory.
#: Cores with the security extension start and stay in the secure state, so these are secure addresses.
#: Source: Arm's application notes of these numbers; qemu 7.2, hw/arm/mps2.c and mps2-tz.c
BOARDS: Mapping[str, Board] = {
    board.core: board
    for board in (
        Board("cortex-m3", "mps2-an385", 0, Memory(0, 4 * MB), Memory(0x2000_0000, 4 * MB)),
        Board("cortex-m4", "mps2-an386", 0, Memory(0, 4 * MB), Memory(0x2000_0000, 4 * MB)),
        Board("cortex-m7", "mps2-an500", 0, Memory(0, 4 * MB), Memory(0x2000_0000, 4 * MB)),
        Board("cortex-m33", "mps2-an505", 0x1000_0000, Memory(0x1000_0000, 4 * MB), Memory(0x3800_0000, 4 * MB)),
        Board("cortex-m55", "mps3-an547", 0, Memory(0x2800_0000, 8 * MB), Memory(0x2100_0000, 4 * MB)),
    )
}


@dataclass(frozen=True)
class Instructions:
    """Instructions that an emulated core executed. They are no time: there are no wait states, no caches and no pipeline.

    Attributes:
        nodes: of the graph, in the order they run.
        table: (samples, nodes) int64; some five of each number are the counting's own.
    """

    nodes: tuple[str, ...]
    table: np.ndarray

    @property
    def _typical(self) -> np.ndarray:
        """The row of the sample with the median of all totals."""
        totals = self.table.sum(1)
        row: np.ndarray = self.table[np.argsort(totals, kind="stable")[len(totals) // 2]]
        return row

    @property
    def per_inference(self) -> int:
        """The median over the samples, one of them."""
        return int(self._typical.sum())

    @property
    def per_node(self) -> dict[str, int]:
        """Of that very sample, so that they add up to ``per_inference``."""
        return dict(zip(self.nodes, self._typical.tolist(), strict=True))


@dataclass(frozen=True)
class BoardRun:
    """What a board gave.

    Attributes:
        outputs: one array per output, samples joined along axis 0.
        sizes: of the network's own object file, what it adds to a firmware; calls that count are in it where they were asked for.
        stack: bytes of the stack that were used, the harness's own few included.
        instructions: None where they were not counted.
    """

    outputs: tuple[np.ndarray, ...]
    sizes: Sizes
    stack: int
    instructions: Instructions | None = None


def tool_versions() -> dict[str, str]:
    """Compiler and emulator. Raises MissingToolError where one is missing."""
    qemu = subprocess.run([_emulator(), "--version"], capture_output=True, text=True, check=True).stdout
    return {f"{PREFIX}gcc": run_tool("gcc", "-dumpfullversion").strip(), QEMU: qemu.partition("version ")[2].split()[0]}


def open_board(core: str) -> Board:
    """The board with ``core``. Raises UsageError that lists them."""
    if core not in BOARDS:
        raise UsageError(f"there is no board with the core '{core}'", fix=f"one of: {', '.join(BOARDS)}")
    return BOARDS[core]


def run_on_board(
    board: Board,
    data: bytes,
    inputs: Sequence[np.ndarray],
    *,
    count: bool = False,
    optimize: str = OPTIMIZE,
    timeout_s: float = TIMEOUT_S,
) -> BoardRun:
    """Compile a file of target "c" and run every sample; arguments and errors as in :class:`BoardSession`."""
    with BoardSession(board, data, count=count, optimize=optimize, timeout_s=timeout_s) as session:
        return session.run_all(inputs)


def count_on_board(board: Board, job: Job, runs: int | None = None) -> Counts:
    """Count the instructions of generated C; see ``base.Emulation``. Errors as in :class:`BoardSession`."""
    runs = runs or RUNS
    first = [a[: len(a) // job.samples] for a in job.inputs]
    done = run_on_board(
        board, job.data, [np.concatenate([*[f] * (1 + runs), a]) for f, a in zip(first, job.inputs, strict=True)], count=True
    )
    assert done.instructions is not None
    table = done.instructions.table
    totals = table.sum(1).tolist()
    return Counts(
        None,
        totals[0],
        tuple(totals[1 : 1 + runs]),
        dict(zip(done.instructions.nodes, table[runs].tolist(), strict=True)),
        tuple(o[-(len(o) // len(table) * job.samples) :] for o in done.outputs),
        tool_versions(),
        board.core,
    )


class BoardSession(Loader):
    """One board; takes one file of target "c" after another. Used as ``host.Session`` is.

    Args:
        data: file to load at once, or None.
        count: count instructions, with a plugin of the emulator.
        optimize: the compiler's "-O3", "-O2", "-Os".
        timeout_s: for all samples of one run.
    Raises: MissingToolError: no compiler, no emulator, with ``count`` no plugin; RunError: a file that the compiler refuses
        or that is too large for the board.
    """

    def __init__(
        self, board: Board, data: bytes | None = None, *, count: bool = False, optimize: str = OPTIMIZE, timeout_s: float = TIMEOUT_S
    ) -> None:
        self.board = board
        self.count = count
        self.optimize = optimize
        self.timeout_s = timeout_s
        self.sizes = Sizes(0, 0, 0)
        self.inputs: tuple[Port, ...] = ()
        self._qemu = _emulator()
        self.versions = tool_versions()
        self._file: worker.CFile | None = None
        self._work = tempfile.TemporaryDirectory(prefix="qwtv2-board-")
        self._folder = Path(self._work.name)
        if data is not None:
            self._load_or_close(data)

    def close(self) -> None:
        self._work.cleanup()

    def load(self, data: bytes) -> None:
        """Compile and link a file in place of the one before."""
        try:
            self._file = worker.CFile(data)
        except ValueError as error:
            raise RunError(f"{self.board.name} runs generated C: {error}", fix="export with --target c") from None
        self.inputs = tuple(map(port_of, self._file.inputs))
        (self._folder / "model.c").write_bytes(data)
        (self._folder / "network.h").write_text(_network_header(self._file))
        hook = ("-include", str(SUPPORT / "trace.h")) if self.count else ()
        self.sizes = compile_object(self._folder, self.board.core, *hook, optimize=self.optimize)
        self._link()

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run every sample; see ``host.Session.run``."""
        return list(self.run_all(inputs).outputs)

    def run_all(self, inputs: Sequence[np.ndarray]) -> BoardRun:
        """Run every sample, and tell what it took.

        Args:
            inputs: one array per input of the graph, first axis = samples.
        Raises: UsageError: inputs that are not the network's; RunError: a fault, a time-out or a crash of the emulator.
        """
        assert self._file is not None, "load a file first"
        folder, file = self._folder, self._file
        try:
            samples = worker.samples_of(file, inputs)
        except ValueError as error:
            raise UsageError(f"inputs for {self.board.name}: {error}") from None
        if not samples:
            raise UsageError(f"inputs for {self.board.name}: no samples")
        with (folder / "inputs").open("wb") as sink:
            for i in range(samples):
                for codes in file.codes(worker.feed(file, inputs, i)):
                    sink.write(codes.tobytes())
        self._emulate(samples)
        rows = np.frombuffer((folder / "outputs").read_bytes(), np.uint8).reshape(samples, -1)
        outputs = worker.joined([file.results(_arrays(row, file.given)) for row in rows])
        (stack,) = struct.unpack("<I", (folder / "stack").read_bytes())
        return BoardRun(tuple(outputs), self.sizes, stack, self._instructions(samples) if self.count else None)

    def _link(self) -> None:
        places = {"vectors": Memory(self.board.vectors, VECTOR_BYTES), "flash": self.board.code, "ram": self.board.ram}
        symbols = {"stack_size": STACK_BYTES}
        symbols |= {f"{name}_{key}": getattr(m, key) for name, m in places.items() for key in ("origin", "size")}
        layout = ["-T", str(SUPPORT / "board.ld"), *(f"-Wl,--defsym={k}={v}" for k, v in symbols.items())]
        sources = [str(SUPPORT / name) for name in SOURCES]
        command = [*CORES[self.board.core], *FLAGS, "-nostdlib", "-Wl,--gc-sections", *layout, *sources, "model.o", "-lc", "-lgcc"]
        try:
            run_tool("gcc", *command, "-o", "program.elf", folder=self._folder)
        except RunError as error:
            over = re.findall(r"region `(\w+)' overflowed by (\d+) bytes", error.message)
            if "cannot find -lc" in error.message or "string.h: No such file" in error.message:
                raise MissingToolError(f"the compiler has no C library for {self.board.core}", fix=PACKAGES) from None
            if not over:
                raise
            wants = (f"{places[r.lower()].size + int(by):,} bytes of {r}, {places[r.lower()].size:,} are there" for r, by in over)
            raise RunError(
                f"the program is too large for {self.board.name} ({self.board.machine}): it takes {', '.join(wants)}",
                fix="a smaller network, or fewer bits per weight",
            ) from None

    def _emulate(self, samples: int) -> None:
        """Run the program: from the file "inputs" to "outputs" and "stack", or to "fault"."""
        for name in ("outputs", "stack", "fault"):
            (self._folder / name).unlink(missing_ok=True)
        command = [self._qemu, "-machine", self.board.machine, *QEMU_FLAGS, "-kernel", "program.elf"]
        with (self._folder / "marks").open("wb") as marks:
            if self.count:
                built = str(plugin()).replace(",", ",,")
                command += ["-plugin", f"file={built},mark={self._functions()['trace_mark']},fd={marks.fileno()}"]
            try:
                done = subprocess.run(
                    command,
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    pass_fds=[marks.fileno()],
                    timeout=self.timeout_s,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                took = f"{samples} samples within {self.timeout_s:g} s"
                raise RunError(f"{self.board.name} did not finish {took}", fix="give it fewer samples") from None
        fault = self._folder / "fault"
        if fault.exists() and fault.stat().st_size:
            raise RunError(self._words(Fault(*struct.unpack("<5I", fault.read_bytes()))))
        if done.returncode:
            lines = done.stderr.decode(errors="replace").splitlines()[:6]
            raise RunError(f"{QEMU} ended with {done.returncode} as {self.board.name}" + "".join(f"\n  | {line}" for line in lines))

    def _functions(self) -> dict[str, int]:
        """Addresses of the program's functions."""
        rows = (line.split() for line in run_tool("nm", "program.elf", folder=self._folder).splitlines())
        return {name: int(address, 16) for address, kind, name in rows if kind in "tT"}

    def _words(self, fault: Fault) -> str:
        causes = [text for bit, text in CAUSES.items() if fault.status >> bit & 1] or ["no cause told"]
        if any(fault.status >> bit & 1 for bit in STACKING):
            causes = [f"the stack of {STACK_BYTES:,} bytes overflowed"]
        before = [(address, name) for name, address in self._functions().items() if address <= fault.pc]
        where = f" in {max(before)[1]} (0x{fault.pc:08x})" if before else ""
        address = next((f", address 0x{a:08x}" for bit, a in ((7, fault.data), (15, fault.bus)) if fault.status >> bit & 1), "")
        return (
            f"{EXCEPTIONS.get(fault.exception, f'exception {fault.exception}')} on {self.board.name}{where}: {', '.join(causes)}{address}"
        )

    def _instructions(self, samples: int) -> Instructions:
        assert self._file is not None
        nodes = tuple(self._file.facts["nodes"])
        totals = np.fromfile(self._folder / "marks", np.int64).reshape(samples, len(nodes) + 1)
        return Instructions(nodes, np.diff(totals, axis=1))


@dataclass(frozen=True, slots=True)
class Fault:
    """What ``start.c`` saves after a fault: number of the exception, CFSR, MMFAR, BFAR, and the address of the instruction or 0."""

    exception: int
    status: int
    data: int
    bus: int
    pc: int


#: Source of both tables: Armv7-M and Armv8-M Architecture Reference Manuals, exception numbers and CFSR
EXCEPTIONS = {2: "non-maskable interrupt", 3: "hard fault", 4: "memory fault", 5: "bus fault", 6: "usage fault", 7: "secure fault"}
CAUSES = {
    0: "code where none may be",
    1: "data where none may be",
    8: "code at an address without memory",
    9: "data at an address without memory",
    10: "data at an address without memory, some instructions earlier",
    16: "an undefined instruction",
    17: "not in Thumb state",
    18: "a wrong return from an exception",
    19: "an instruction of a coprocessor that is off",
    24: "an unaligned access",
    25: "a division by zero",
}
#: registers that could not be saved on entry of the exception
STACKING = (4, 12, 20)


def _emulator() -> str:
    found = shutil.which(QEMU)
    if found is None:
        raise MissingToolError(f"no {QEMU} to emulate boards with", fix=f"apt-get install --no-install-recommends {QEMU}")
    return found


def _network_header(file: worker.CFile) -> str:
    """What ``harness.c`` includes."""

    def ports(found: Sequence[Mapping[str, Any]]) -> str:
        return " ".join(f"X({d['function']}, {d['dtype']}_t, {_size(d)})" for d in found)

    lines = ["#include <stdint.h>", f"#define NETWORK_RUN {file.facts['symbol']}_run"]
    lines += [f"#define NETWORK_INPUTS(X) {ports(file.taken)}", f"#define NETWORK_OUTPUTS(X) {ports(file.given)}"]
    return "\n".join(lines) + "\n"


def _size(port: Mapping[str, Any]) -> int:
    return int(np.prod(port["shape"], dtype=np.int64))


def _arrays(row: np.ndarray, ports: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """One sample's bytes as arrays of codes, one per port."""
    ends = np.cumsum([_size(p) * np.dtype(p["dtype"]).itemsize for p in ports])
    parts = np.split(row, ends[:-1])
    return [np.frombuffer(part.tobytes(), p["dtype"]).reshape(p["shape"]) for part, p in zip(parts, ports, strict=True)]
