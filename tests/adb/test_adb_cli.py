"""``qwtv2-edge profile --device adb``: reports, exit codes, interrupts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import environment
from jobs import job_for
from phone import arm_program

pytestmark = pytest.mark.runtime


@pytest.fixture
def command(tmp_path, require):
    """``command("--runs", 3)`` is the argument list that profiles an artifact on the only phone."""
    require("ai_edge_litert")
    require("typer")
    path = tmp_path / "model.tflite"
    path.write_bytes(job_for("litert-xnnpack").data)

    def make(*options: object) -> list[str]:
        return [sys.executable, "-m", "qwtv2_edge", "profile", str(path), "--device", "adb", "--json", *map(str, options)]

    return make


def ended(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=120)


def test_a_report_of_an_emulated_phone_has_no_latency(phone, command):
    done = ended(command("--runs", 6, "--samples", 2))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["outputs_match"] is True
    assert report["complete"]
    assert report["emulated"]
    assert (report["latency"], report["load_ms"], report["first_ms"]) == (None, None, None)
    assert report["numerics"] == "litert-xnnpack@aarch64"
    assert report["device"] == {
        "kind": "adb",
        "name": "Google Pixel 6",
        "abi": "arm64-v8a",
        "cores": 8,
        "governor": "sched_pixel",
        "temperature_c": 41.0,
    }
    assert report["state"]["after"]["battery_level"] == 87.0
    assert phone.left_behind() == []


def test_a_tool_in_place_of_the_app(phone, command, tmp_path):
    tool = tmp_path / "benchmark_model"
    tool.write_bytes(arm_program("benchmark_model"))
    done = ended(command("--runs", 3, "--tool", tool))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["outputs_match"] is True
    assert report["versions"]["tool"].startswith("benchmark_model ")
    assert phone.left_behind() == []


def test_a_lost_phone_leaves_a_report_of_what_was_measured(phone, command):
    phone.app_fails(at_once=20)
    phone.faults.lost_at = ("result.json", 8)
    done = ended(command("--runs", 1_000_000))
    assert done.returncode == 1
    assert f"the phone {phone.serial} was lost while reading" in done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    assert report["complete"] is False
    assert report["emulated"]


@pytest.mark.parametrize(("options", "code", "words"), [(("--device", "adb:R58M"), 2, "no phone R58M"), ((), 1, "not installed")])
def test_errors_end_with_their_exit_codes(options, code, words, phone, command):
    (phone.root / "no-app").touch()
    done = ended(command(*options))
    assert done.returncode == code
    error = json.loads(done.stdout)["error"]
    assert words in error["message"]
    assert error["fix"]


def test_an_interrupt_leaves_a_clean_phone(phone, command):
    phone.app_fails(at_once=20)
    process = subprocess.Popen(
        command("--runs", 1_000_000), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    wait_for(phone.root / "sdcard", "result.json")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in err
    assert json.loads(out)["complete"] is False
    assert phone.left_behind() == []
    assert not phone.app_runs()


def wait_for(folder: Path, name: str) -> None:
    """Until the app has written, and whoever follows it had time to read that."""
    deadline = time.monotonic() + 60
    while not list(folder.rglob(name)):
        assert time.monotonic() < deadline, f"no {name}"
        time.sleep(0.05)
    time.sleep(1.5)
