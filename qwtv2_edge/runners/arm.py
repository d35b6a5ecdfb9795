"""ARM's kernels without an ARM machine: an aarch64 Python and the runtimes' aarch64 wheels, run by QEMU.

:func:`prepare` downloads them with the machine's own apt and pip, as any user, and writes to one folder only. It holds parts,
each of which gets its name when it is whole and was seen to work:

    system-KEY     root/: Debian's Python; emulator/: QEMU with its libraries; cores/NAME/: root and that core's /proc/cpuinfo
    litert-KEY     the wheels of one runtime, unpacked; the same for the other RUNTIMES

Two things matter for the bytes. QEMU 7 shows programs the /proc/cpuinfo of this machine, where runtimes look for their kernels,
so each core has its own. And with SME on, XNNPACK's SME kernels give wrong results under QEMU 7.2, so "max" runs without.
Runtimes also crash on processors they have no name for: "max" has the part number of a Neoverse V1, the first with all it has.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwtv2_edge.backends import emit, tables_on
from qwtv2_edge.errors import MissingToolError, RunError, UsageError
from qwtv2_edge.ir.graph import Graph, GraphBuilder
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.runners.base import HOST_ONLY, WORKER, Command
from qwtv2_edge.runners.host import HOST, Session
from qwtv2_edge.runners.programs import call
from qwtv2_edge.simulator.run import run

#: stage, done, total (0 while unknown)
Progress = Callable[[str, int, int], None]

FAMILY = "aarch64"


@dataclass(frozen=True)
class Core:
    """One emulated processor core.

    Attributes:
        model: QEMU's -cpu.
        part: "implementer variant part revision" as /proc/cpuinfo gives them.
        features: the same; they must match ``model``, as kernels are chosen by them: a claim too many ends in SIGILL.
    """

    model: str
    part: str
    features: str


_NEON = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_DOTPROD = f"{_NEON} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
CORES: Mapping[str, Core] = {
    "cortex-a53": Core("cortex-a53", "0x41 0x0 0xd03 4", _NEON),
    "cortex-a76": Core("cortex-a76", "0x41 0x4 0xd0b 1", _DOTPROD),
    "max": Core("max,sme=off", "0x41 0x1 0xd40 1", f"{_DOTPROD} sve i8mm bf16"),
}


@dataclass(frozen=True)
class Runtime:
    """The aarch64 wheels of one runtime.

    Attributes:
        runners: keys of ``host.KINDS`` that it provides; the first is tried out on an artifact of ``target``.
        wheels: what pip is asked for, nothing besides.
        cores: those of CORES whose instructions suffice.
        space: bytes it takes.
    """

    runners: tuple[str, ...]
    target: str
    wheels: tuple[str, ...]
    cores: tuple[str, ...]
    space: int


RUNTIMES: Mapping[str, Runtime] = {
    "litert": Runtime(
        ("litert-xnnpack", "litert-reference", "litert-builtin"),
        "tflite",
        ("ai-edge-litert==2.3.0", "numpy==2.2.6"),
        tuple(CORES),
        100 << 20,
    ),
    "tflite-2.14": Runtime(
        ("tflite-2.14-reference",),
        "tflite",
        ("tflite-runtime==2.14.0", "numpy==1.26.4"),
        tuple(CORES),
        60 << 20,
    ),
    # torch 2.10.0 is the last with aarch64 wheels for machines without a graphics processor, and 1.3.1 the last ExecuTorch that
    # runs with it; both use atomic instructions that cortex-a53 lacks
    "executorch": Runtime(
        ("executorch",),
        "executorch-xnnpack",
        ("executorch==1.3.1", "torch==2.10.0", "numpy==2.2.6", "typing_extensions==4.16.0"),
        ("cortex-a76", "max"),
        800 << 20,
    ),
}

#: Debian packages; what they depend on comes with them
PYTHON_PACKAGES = ("python3", "libstdc++6", "libgomp1")
EMULATOR_PACKAGES = ("qemu-user",)
SYSTEM_SPACE = 450 << 20  # while it is made; a third of it stays
#: wheels of these platforms run on the Debian the results were obtained on
PLATFORMS = (*(f"manylinux_2_{minor}_aarch64" for minor in (34, 28, 27, 17)), "manylinux2014_aarch64")
#: Debian 12's; the wheels are proved on it, and exist for none before it
PROVED_PYTHON = "3.11"

#: what failing tools say -> what is wrong, what to do
FAILURES = (
    ("No space left on device|Disk quota exceeded", "the disk is full", "free some space, or set QWTV2_ARM_PREFIX to a folder elsewhere"),
    (
        "Temporary failure|Could not resolve|Could not connect|Connection (refused|timed out|failed|broken)|Network is unreachable"
        "|NewConnectionError|Max retries exceeded|Name or service not known",
        "no network",
        "check the connection and the configuration of apt and pip, then run it again",
    ),
    (
        "Unable to locate package|has no installation candidate|unmet dependencies",
        "the apt sources of this machine have no arm64 packages",
        "use Debian 12's own sources, or a container of it",
    ),
    (
        "No matching distribution|Could not find a version",
        "pip finds no such wheel for aarch64 and this Python",
        "check the network; use Debian 12 (Python 3.11), or leave that runtime out with --runtimes",
    ),
    ("No module named pip", "pip is missing", "python -m ensurepip"),
)


@dataclass(frozen=True)
class Emulated:
    """A core that QEMU emulates; see ``base.Place``.

    Attributes:
        core: key of CORES.
        system: folder of the part "system".
        sites: key of RUNTIMES -> folder of that part.
    """

    core: str
    system: Path
    sites: Mapping[str, Path]

    family = FAMILY

    @property
    def name(self) -> str:
        return f"qemu:{self.core}"

    def command(self, runner: str, threads: int) -> Command:
        runtime = _runtime_of(runner)
        why = self.lacks(runner)
        if runtime is None or why:
            cores = [f"qemu:{c}" for c in RUNTIMES[runtime].cores] if runtime else []
            raise UsageError(f"{runner} can't run on {self.name}: {why}", fix=f"use {' or '.join(cores)}" if cores else "leave it out")
        if runtime not in self.sites:
            raise MissingToolError(f"the aarch64 wheels of {runtime} are not there", fix=self.how_to_get(runner))
        # nothing of this machine's Python is for this one
        env = {"PYTHONPATH": str(self.sites[runtime]), "PYTHONHOME": "", "PYTHONNOUSERSITE": "1", "OMP_NUM_THREADS": str(threads)}
        return Command([*self.python(), "-P", str(WORKER)], env)

    def python(self) -> list[str]:
        """The command that starts the emulated Python."""
        emulator, root = self.system / "emulator", self.system / "cores" / self.core
        loader = next((emulator / "lib").glob("ld-linux*.so*"))
        start = [loader, "--library-path", emulator / "lib", emulator / "qemu-aarch64", "-cpu", CORES[self.core].model, "-L", root]
        return [str(a) for a in (*start, root / "usr" / "bin" / "python3")]

    def shell(self, script: str) -> str:
        """Of the machine that emulates: it is what decides over the time a run takes."""
        return HOST.shell(script)

    def how_to_get(self, runner: str) -> str:
        return f"qwtv2-edge prepare arm --runtimes {_runtime_of(runner)}"

    def lacks(self, runner: str) -> str:
        """See ``base.Place``."""
        runtime = _runtime_of(runner)
        if runtime is None:
            return HOST_ONLY.get(runner, "prepare arm brings no aarch64 runtime of that kind")
        return "" if self.core in RUNTIMES[runtime].cores else f"the aarch64 wheels use instructions that {self.core} lacks"

    def ended(self, code: int, said: str) -> None:
        return None


def open_qemu(core: str) -> Emulated:
    """The emulated core called ``core``, a key of CORES. Raises: UsageError: another one; MissingToolError: nothing is prepared."""
    if core not in CORES:
        raise UsageError(f"no emulated core '{core}'", fix=f"one of: {', '.join(f'qemu:{c}' for c in CORES)}")
    return Emulated(core, find(), prepared())


def find() -> Path:
    """The folder of the part "system". Raises MissingToolError."""
    folder = _system_folder()
    if not folder.is_dir():
        raise MissingToolError(f"no emulated ARM system at {folder}", fix="qwtv2-edge prepare arm")
    return folder


def prepared() -> dict[str, Path]:
    """Key of RUNTIMES -> its folder, of those that are there. Raises MissingToolError: no system."""
    version = python_version(find())
    folders = {name: _site_folder(name, version) for name in RUNTIMES}
    return {name: folder for name, folder in folders.items() if folder.is_dir()}


def python_version(system: Path) -> str:
    """ "3.11": of the emulated Python."""
    return os.readlink(system / "root" / "usr" / "bin" / "python3").removeprefix("python")


def prepare(progress: Progress, runtimes: Iterable[str] = tuple(RUNTIMES), force: bool = False) -> Path:
    """Get what is missing of the emulated ARM system and of ``runtimes``, and run each of them on every core it is for.

    Args:
        runtimes: keys of RUNTIMES.
        force: get what is there once more.
    Returns: the folder of all parts.
    Raises: UsageError: unknown runtime, another prepare at work, too little space; MissingToolError: no apt, no pip;
        RunError: a download failed, or what came does not work.
    """
    wanted = tuple(dict.fromkeys(runtimes))
    for name in wanted:
        if name not in RUNTIMES:
            raise UsageError(f"unknown runtime '{name}'", fix=f"one of: {', '.join(RUNTIMES)}")
    trials = {name: _trial(RUNTIMES[name]) for name in wanted}
    with _workshop() as work:
        if force or not _system_folder().is_dir():
            _need_space(work, SYSTEM_SPACE)
            _place(_make_system(work, progress), _system_folder(), work)
        system = find()
        version = python_version(system)
        if [int(v) for v in version.split(".")] < [int(v) for v in PROVED_PYTHON.split(".")]:
            raise MissingToolError(f"this release has Python {version}, the wheels need {PROVED_PYTHON}", fix="use Debian 12 or newer")
        for name in wanted:
            folder = _site_folder(name, version)
            if force or not folder.is_dir():
                _need_space(work, RUNTIMES[name].space)
                site = _make_site(name, version, work, progress)
                for i, core in enumerate(RUNTIMES[name].cores):
                    progress(f"try {name} on each core", i, len(RUNTIMES[name].cores))
                    _try(trials[name], RUNTIMES[name], Emulated(core, system, {name: site}))
                _place(site, folder, work)
    return _home()


# ---------------------------------------------------------------- folders


def _home() -> Path:
    named = os.environ.get("QWTV2_ARM_PREFIX")
    return Path(named) if named else Path.home() / ".cache" / "qwtv2_edge" / "arm"


def _key(*made_of: object) -> str:
    return hashlib.sha256(json.dumps(made_of, default=vars).encode()).hexdigest()[:12]


def _system_folder() -> Path:
    return _home() / f"system-{_key(PYTHON_PACKAGES, EMULATOR_PACKAGES, platform.machine(), dict(CORES))}"


def _site_folder(name: str, python: str) -> Path:
    return _home() / f"{name}-{_key(RUNTIMES[name].wheels, python)}"


@contextmanager
def _workshop() -> Iterator[Path]:
    """A temporary folder on the disk of the parts, for one process at a time; what a killed one left is removed."""
    import fcntl

    home = _home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "lock").open("w")
    except OSError as error:
        raise UsageError(f"can't write {home}: {error.strerror}", fix="set QWTV2_ARM_PREFIX to a folder of yours") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process prepares {home}", fix="wait until it is done") from None
        for left in home.glob("making-*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=home, prefix="making-", ignore_cleanup_errors=True) as work:
            yield Path(work)


def _place(made: Path, folder: Path, work: Path) -> None:
    """Give ``made`` its final name; what has it until now goes with the workshop."""
    if folder.exists():
        folder.rename(work / f"old-{folder.name}")
    made.rename(folder)


def _need_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UsageError(
            f"{folder.parent} has {free >> 20} MiB free, {needed >> 20} MiB are needed",
            fix="free some space, or set QWTV2_ARM_PREFIX to a folder elsewhere",
        )


# ---------------------------------------------------------------- making the parts


def _make_system(work: Path, progress: Progress) -> Path:
    for tool in ("apt-get", "dpkg", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise MissingToolError(
                f"{tool} is missing: the ARM system comes from Debian packages", fix="use Debian 12, or a container of it"
            )
    made, unpacked = work / "system", work / "emulator"
    emulator, root = made / "emulator", made / "root"
    (emulator / "lib").mkdir(parents=True)
    here = _call(["dpkg", "--print-architecture"], "dpkg --print-architecture").strip()
    _debian(here, EMULATOR_PACKAGES, unpacked, work, progress)
    shutil.move(unpacked / "usr" / "bin" / "qemu-aarch64", emulator)
    for library in (*unpacked.glob("lib/*-linux-gnu*/*.so*"), *unpacked.glob("usr/lib/*-linux-gnu*/*.so*")):
        shutil.move(library, emulator / "lib")
    _debian("arm64", PYTHON_PACKAGES, root, work, progress)
    shutil.rmtree(root / "usr" / "share")
    if not (root / "lib").exists():  # releases whose libraries are in usr/lib alone
        (root / "lib").symlink_to("usr/lib")
    for name, core in CORES.items():
        folder = made / "cores" / name
        (folder / "proc").mkdir(parents=True)
        (folder / "proc" / "cpuinfo").write_text(cpuinfo(core))
        for entry in root.iterdir():
            (folder / entry.name).symlink_to(Path("..", "..", "root", entry.name))
    for i, name in enumerate(CORES):
        progress("try Python on each core", i, len(CORES))
        said = _call([*Emulated(name, made, {}).python(), "-Ic", "import platform; print(platform.machine())"], f"Python on {name}")
        if said.strip() != FAMILY:
            raise RunError(f"the emulated Python on {name} answers '{said.strip()}', expected '{FAMILY}'")
    return made


def cpuinfo(core: Core) -> str:
    """/proc/cpuinfo of a machine with one such core."""
    implementer, variant, part, revision = core.part.split()
    lines = {
        "processor": "0",
        "BogoMIPS": "38.40",
        "Features": core.features,
        "CPU implementer": implementer,
        "CPU architecture": "8",
        "CPU variant": variant,
        "CPU part": part,
        "CPU revision": revision,
    }
    return "".join(f"{key}\t: {value}\n" for key, value in lines.items()) + "\n"


def _debian(architecture: str, packages: Sequence[str], into: Path, work: Path, progress: Progress) -> None:
    """Unpack ``packages`` and all they depend on; apt's sources and keys are the machine's, its state is our own."""
    own = work / f"apt-{architecture}"
    (own / "state" / "lists" / "partial").mkdir(parents=True)
    (own / "cache" / "archives" / "partial").mkdir(parents=True)
    (own / "status").touch()
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures::": architecture,
        "APT::Sandbox::User": "",  # the user apt changes to can't read our folder
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        "Dir::State": own / "state",
        "Dir::State::status": own / "status",
        "Dir::Cache": own / "cache",
        "Dir::Log": own,
    }
    apt = ["apt-get", "--quiet", "--yes", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    progress(f"list the {architecture} packages", 0, 0)
    # one source without the architecture makes this fail, whatever the others give
    listed = _call([*apt, "update"], "", check=False)
    progress(f"download the {architecture} packages", 0, 0)
    _call(
        [*apt, "--no-install-recommends", "--download-only", "install", *packages],
        f"download of {architecture} packages by apt",
        said=listed,
    )
    files = sorted((own / "cache" / "archives").glob("*.deb"))
    into.mkdir()
    for i, file in enumerate(files):
        progress(f"unpack the {architecture} packages", i, len(files))
        _call(["dpkg-deb", "--extract", str(file), str(into)], f"unpacking {file.name}")


def _make_site(name: str, version: str, work: Path, progress: Progress) -> Path:
    made = work / name
    progress(f"download {name} for aarch64", 0, 0)
    platforms = [word for p in PLATFORMS for word in ("--platform", p)]
    switches = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-compile", "--no-deps", "--only-binary=:all:"]
    target = ["--implementation", "cp", "--python-version", version, *platforms, "--target", str(made)]
    pip = [sys.executable, "-m", "pip", "install", *switches, *target, *RUNTIMES[name].wheels]
    _call(pip, f"download of {', '.join(RUNTIMES[name].wheels)} by pip", env={"PIP_USER": "0"})
    return made


def _call(argv: Sequence[str], what: str, *, check: bool = True, env: Mapping[str, str] | None = None, said: str = "") -> str:
    """What a tool prints. Raises RunError with the last lines of that and of ``said``, what an earlier one printed."""
    done = call(argv, env={"LC_ALL": "C", **(env or {})}, together=True)
    if check and done.returncode:
        text = said + done.stdout
        reason, fix = next(((r, f) for pattern, r, f in FAILURES if re.search(pattern, text)), (f"exit code {done.returncode}", ""))
        lines = [line for line in text.splitlines() if line.strip()]
        raise RunError(f"{what} failed: {reason}" + "".join(f"\n  | {line}" for line in lines[-6:]), fix=fix)
    return done.stdout


# ---------------------------------------------------------------- trying them out


def _sum() -> Graph:
    """x + x on int8."""
    b = GraphBuilder("sum")
    x = b.input("x", TensorType((1, 64), "int8", Quantization.per_tensor(0.05, 3)))
    b.outputs = list(
        b.add("add", (x, x), BinaryAttrs(), name="sum", out_types=(TensorType((1, 64), "int8", Quantization.per_tensor(0.08, -5)),))
    )
    return b.freeze()


def _trial(runtime: Runtime) -> bytes:
    return emit(_sum(), runtime.target).data


def _try(artifact: bytes, runtime: Runtime, place: Emulated) -> None:
    """Run the artifact and compare it with the simulator. Raises RunError."""
    runner = runtime.runners[0]
    table = next(t for t in tables_on(runtime.target, FAMILY) if t.runner == runner)
    x = np.arange(-128, 128, dtype=np.int8).reshape(4, 64)
    with Session(runner, artifact, place=place) as session:
        (actual,) = session.run([x])
    (expected,) = run(_sum(), [x], table)
    different = int((actual != expected).sum())
    if different:
        raise RunError(f"{runner} on {place.name}: {different} of {actual.size} sums differ from the simulator's")


def _runtime_of(runner: str) -> str | None:
    return next((name for name, r in RUNTIMES.items() if runner in r.runners), None)
