"""The emulated ARM system: what is made, what is said when something is missing, and what a broken-off prepare leaves behind."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from requirements import missing

from qwtv2_edge.backends import choose_numerics, never_on
from qwtv2_edge.errors import MissingToolError, RunError, UsageError
from qwtv2_edge.runners import arm
from qwtv2_edge.runners.host import KINDS


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("QWTV2_ARM_PREFIX", str(tmp_path / "arm"))
    return tmp_path / "arm"


def quiet(stage, done, total):
    pass


def pretend_system(system: Path, version: str = "3.11") -> Path:
    """A system, empty but for what is looked at."""
    (system / "emulator" / "lib").mkdir(parents=True)
    (system / "emulator" / "lib" / "ld-linux-x86-64.so.2").touch()
    (system / "root" / "usr" / "bin").mkdir(parents=True)
    (system / "root" / "usr" / "bin" / "python3").symlink_to(f"python{version}")
    return system


def pretend(version: str = "3.11", runtimes=tuple(arm.RUNTIMES)) -> None:
    """What prepare leaves."""
    pretend_system(arm._system_folder(), version)
    for name in runtimes:
        arm._site_folder(name, version).mkdir()


def test_without_prepare_the_fix_is_named(home):
    for call in (arm.find, arm.prepared, lambda: arm.open_qemu("max")):
        with pytest.raises(MissingToolError, match="no emulated ARM system") as error:
            call()
        assert error.value.fix == "qwtv2-edge prepare arm"


def test_another_core_is_a_usage_error(home):
    with pytest.raises(UsageError, match="cortex-m4") as error:
        arm.open_qemu("cortex-m4")
    assert error.value.fix == "one of: qemu:cortex-a53, qemu:cortex-a76, qemu:max"


def test_the_command_names_core_prefix_and_wheels(home, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/of/this/machine")
    pretend()
    place = arm.open_qemu("max")
    command = place.command("litert-xnnpack", 3)
    assert (place.name, place.family) == ("qemu:max", "aarch64")
    assert "max,sme=off" in command.argv
    assert str(home) in command.argv[command.argv.index("-L") + 1]
    assert command.argv[-3].endswith("/cores/max/usr/bin/python3")
    assert command.env["PYTHONPATH"] == str(arm.prepared()["litert"])
    assert command.env["OMP_NUM_THREADS"] == "3"


def test_what_is_not_prepared_or_can_not_be_is_said(home):
    pretend(runtimes=("litert",))
    assert list(arm.prepared()) == ["litert"]
    place = arm.open_qemu("cortex-a53")
    with pytest.raises(MissingToolError, match=r"the aarch64 wheels of tflite-2\.14 are not there") as error:
        place.command("tflite-2.14-reference", 1)
    assert error.value.fix == "qwtv2-edge prepare arm --runtimes tflite-2.14"
    with pytest.raises(UsageError, match="the aarch64 wheels use instructions that cortex-a53 lacks") as error:
        place.command("executorch", 1)
    assert error.value.fix == "use qemu:cortex-a76 or qemu:max"
    with pytest.raises(UsageError, match="tflite-micro can't run on qemu:cortex-a53: prepare arm brings no aarch64 runtime"):
        place.command("tflite-micro", 1)


def test_what_can_never_run_is_left_out_and_refused_by_name(home):
    pretend()
    place = arm.open_qemu("cortex-a53")
    run = [t.name for t in choose_numerics("tflite", None, place.name, place.family, place.lacks)]
    assert run == ["litert-reference", "litert-xnnpack@aarch64", "litert-builtin@aarch64", "tflite-2.14-reference@aarch64"]
    assert list(never_on(["tflite", "c"], run, place.lacks)) == ["tflite-micro", "c"]
    assert never_on(["tflite"], ["tflite-micro"], lambda runner: "")["litert-xnnpack"] == "not known on its processor"
    with pytest.raises(UsageError, match="numerics 'tflite-micro' can't run on qemu:cortex-a53: prepare arm brings no") as error:
        choose_numerics("tflite", ["tflite-micro"], place.name, place.family, place.lacks)
    assert error.value.fix == f"one of: {', '.join(run)}"
    with pytest.raises(UsageError, match=r"no numerics of target 'c' runs on qemu:cortex-a53 \(aarch64\): prepare arm brings no"):
        choose_numerics("c", None, place.name, place.family, place.lacks)


def test_wheels_belong_to_one_python(home):
    pretend("3.13")
    (arm._system_folder() / "root" / "usr" / "bin" / "python3").unlink()
    (arm._system_folder() / "root" / "usr" / "bin" / "python3").symlink_to("python3.14")
    assert arm.prepared() == {}


def test_every_runtime_is_a_known_runner_on_known_cores():
    for runtime in arm.RUNTIMES.values():
        assert set(runtime.runners) <= set(KINDS)
        assert set(runtime.cores) <= set(arm.CORES)
        assert all("==" in wheel for wheel in runtime.wheels)


def test_cpuinfo_claims_what_the_emulated_core_has():
    text = {name: dict(line.split("\t: ") for line in arm.cpuinfo(core).splitlines() if line) for name, core in arm.CORES.items()}
    assert {name: t["CPU part"] for name, t in text.items()} == {"cortex-a53": "0xd03", "cortex-a76": "0xd0b", "max": "0xd40"}
    have = {name: {"asimddp", "i8mm"} & set(t["Features"].split()) for name, t in text.items()}
    assert have == {"cortex-a53": set(), "cortex-a76": {"asimddp"}, "max": {"asimddp", "i8mm"}}


# ---------------------------------------------------------------- prepare


def test_prepare_knows_its_runtimes(home):
    with pytest.raises(UsageError, match="unknown runtime 'tensorflow'") as error:
        arm.prepare(quiet, ["litert", "tensorflow"])
    assert error.value.fix == "one of: litert, tflite-2.14, executorch"
    assert not home.exists()


@pytest.fixture
def untried(monkeypatch):
    """prepare without the artifacts it tries runtimes with: nothing is emitted and nothing run."""
    monkeypatch.setattr(arm, "_trial", lambda runtime: b"")
    monkeypatch.setattr(arm, "_try", lambda *a: None)


def test_prepare_needs_apt(home, untried, monkeypatch):
    monkeypatch.setattr(arm.shutil, "which", lambda name: None)
    with pytest.raises(MissingToolError, match="apt-get is missing") as error:
        arm.prepare(quiet, ["litert"])
    assert "Debian 12" in error.value.fix


def test_prepare_needs_space(home, untried, monkeypatch):
    monkeypatch.setattr(arm.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 9 << 20}))
    with pytest.raises(UsageError, match=r"has 9 MiB free, 450 MiB are needed"):
        arm.prepare(quiet, ["litert"])


def test_an_old_release_is_refused(home, untried):
    pretend("3.9")
    with pytest.raises(MissingToolError, match=r"Python 3\.9, the wheels need 3\.11"):
        arm.prepare(quiet, ["litert"])


@pytest.mark.parametrize("reason", [KeyboardInterrupt, RunError("no network")])
def test_a_prepare_cut_short_leaves_nothing_half_made(home, untried, monkeypatch, reason):
    def broken(name, version, work, progress):
        (work / name).mkdir()
        (work / name / "half").touch()
        raise reason

    pretend(runtimes=("tflite-2.14",))
    monkeypatch.setattr(arm, "_make_site", broken)
    before = sorted(p.name for p in home.iterdir())
    with pytest.raises(reason if isinstance(reason, type) else type(reason)):
        arm.prepare(quiet, ["tflite-2.14", "litert"])
    assert sorted(p.name for p in home.iterdir()) == sorted([*before, "lock"])


def test_what_a_killed_prepare_left_is_removed(home, untried):
    pretend()
    (home / "making-abc" / "system").mkdir(parents=True)
    assert arm.prepare(quiet) == home
    assert not (home / "making-abc").exists()


def test_two_prepares_do_not_meet(home, untried):
    pretend()
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another process prepares"):
            arm.prepare(quiet)


def test_force_replaces_what_is_there(home, untried, monkeypatch):
    def make_site(name, version, work, progress):
        (work / name).mkdir()
        (work / name / "new").touch()
        return work / name

    pretend()
    old = arm.prepared()["litert"]
    (old / "old").touch()
    monkeypatch.setattr(arm, "_make_site", make_site)
    monkeypatch.setattr(arm, "_make_system", lambda work, progress: pretend_system(work / "system"))
    (arm._system_folder() / "old").touch()
    arm.prepare(quiet, ["litert"], force=True)
    assert os.listdir(old) == ["new"]
    assert sorted(os.listdir(arm.find())) == ["emulator", "root"]
    assert not list(home.glob("making-*"))


@pytest.mark.parametrize(
    ("said", "reason", "fix"),
    [
        ("tar: write error: No space left on device", "the disk is full", "QWTV2_ARM_PREFIX"),
        ("E: Could not resolve 'deb.example'\nE: Unable to locate package qemu-user", "no network", "configuration of apt and pip"),
        ("E: Unable to locate package python3", "have no arm64 packages", "Debian 12"),
        ("ERROR: No matching distribution found for torch==9", "finds no such wheel", "--runtimes"),
        ("/usr/bin/python3: No module named pip", "pip is missing", "ensurepip"),
        ("something else", "exit code 7", ""),
    ],
)
def test_failures_of_tools_are_named(said, reason, fix):
    with pytest.raises(RunError, match=reason) as error:
        arm._call(["sh", "-c", f"cat <<'X'\n{said}\nX\nexit 7"], "the download")
    assert error.value.message.startswith("the download failed")
    assert said.splitlines()[-1] in error.value.message
    assert fix in error.value.fix


def test_the_trial_compares_with_the_simulator(home, monkeypatch):
    """A runtime that works but computes something else is refused."""

    class Wrong:
        def __init__(self, *args, **kwargs): ...
        def __enter__(self):
            return self

        def __exit__(self, *args): ...
        def run(self, inputs):
            return [inputs[0] + np.int8(1)]

    pretend()
    monkeypatch.setattr(arm, "Session", Wrong)
    with pytest.raises(RunError, match=r"litert-xnnpack on qemu:max: \d+ of 256 sums differ"):
        arm._try(b"", arm.RUNTIMES["litert"], arm.open_qemu("max"))


@pytest.mark.qemu
def test_the_emulated_python_sees_its_own_processor():
    try:
        place = arm.open_qemu("cortex-a53")
    except MissingToolError as error:
        missing("arm-litert", f"{error.message}; {error.fix}")
    script = "import platform; print(platform.machine()); print(open('/proc/cpuinfo').read())"
    said = subprocess.run([*place.python(), "-Ic", script], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[0] == "aarch64"
    assert "CPU part\t: 0xd03" in said
