"""Phones over adb, by the demo app: the real client, a daemon and an app of ours."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from jobs import FORMATS, GRAPH, Kept, interrupt_when, job_for, refused
from phone import RESULTS, Phone

from qwtv2_edge.backends import get_numerics
from qwtv2_edge.errors import MissingToolError, RunError, UsageError
from qwtv2_edge.runners import adb, adb_client
from qwtv2_edge.runners.adb import AdbDevice
from qwtv2_edge.runners.adb_client import parse_phones
from qwtv2_edge.runners.base import Job
from qwtv2_edge.runners.state import parse
from qwtv2_edge.simulator.run import run

pytestmark = pytest.mark.runtime

# ---------------------------------------------------------------- ordinary use


@pytest.mark.parametrize("runner", FORMATS)
def test_the_app_runs_both_formats_as_simulated(runner, phone, require):
    require("executorch" if runner == "executorch" else "ai_edge_litert")
    job = job_for(runner)
    device = AdbDevice()
    assert (device.name, device.kind) == (f"adb:{phone.serial}", "adb")
    with device.open(job) as timed:
        kept = Kept()
        series = timed.block(30, 20.0, kept)
        assert len(series) == 30
        assert kept == series
        assert min(series) > 0
        assert timed.load_ns > 0
        assert timed.first_ns > 0
        assert timed.peak_rss_bytes > 1 << 20
        assert timed.versions["demo app"] == "0.1.0"
        assert {"ai-edge-litert", "executorch"} & set(timed.versions)
        assert timed.abi == "arm64-v8a"
        assert timed.cores == ()
        expected = run(GRAPH, job.inputs, get_numerics(FORMATS[runner][1]))
        assert len(timed.outputs) == len(expected)
        for got, simulated in zip(timed.outputs, expected, strict=True):
            assert got.dtype == simulated.dtype
            assert np.array_equal(got, simulated)
    assert phone.left_behind() == []
    assert not phone.app_runs()


@pytest.mark.qemu
def test_the_app_on_an_emulated_core(new_phone, job):
    """The phone's ABI for real: the worker's ARM kernels give the simulated bytes."""
    from qwtv2_edge.runners.device import open_place

    try:
        open_place("qemu:cortex-a76").command("litert-xnnpack", 1)
    except MissingToolError as error:
        from requirements import missing

        missing("arm", error.message)
    phone = new_phone("qemu:cortex-a76")
    with AdbDevice(phone.serial).open(job) as timed:
        assert len(timed.block(3, 60.0, Kept())) == 3
        assert np.array_equal(timed.outputs[0], run(GRAPH, job.inputs, get_numerics("litert-xnnpack@aarch64"))[0])


def test_a_job_as_the_app_reads_it():
    job = Job("tflite", "litert-xnnpack", b"artifact", [np.zeros((6, 4), np.int8), np.zeros((3, 2), np.float32)], threads=2, samples=3)
    assert adb.description(job, "j1") == {
        "schema_version": 1,
        "job": "j1",
        "runtime": "litert",
        "artifact": {
            "file": "model.tflite",
            "bytes": 8,
            "sha256": "c7c5c1d70c5dec4416ab6158afd0b223ef40c29b1dc1f97ed9428b94d4cadb1c",
        },
        "inputs": [
            {"file": "input_0.bin", "dtype": "int8", "shape": [6, 4]},
            {"file": "input_1.bin", "dtype": "float32", "shape": [3, 2]},
        ],
        "samples": 3,
        "threads": 2,
    }
    # little-endian whatever the array's own order
    assert adb.inputs_of([np.array([1, 258], ">i2")]) == {"input_0.bin": b"\x01\x00\x02\x01"}


def test_a_second_block_starts_the_app_again(phone, job):
    with AdbDevice().open(job) as timed:
        assert len(timed.block(5, 20.0, Kept())) == 5
        assert len(timed.block(7, 20.0, Kept())) == 7
    assert sum("am start" in c for c in phone.daemon.commands) == 2


def test_a_long_series_comes_in_parts_and_ends_in_time(phone, job):
    lengths = []
    start = time.monotonic()
    with AdbDevice().open(job) as timed:
        series = timed.block(10_000_000, 1.0, lambda ns: lengths.append(len(ns)))
    assert time.monotonic() - start < 20
    assert len(lengths) > 2
    assert lengths == sorted(lengths)
    assert lengths[-1] == len(series)


def test_the_state_is_the_phones_and_says_that_it_is_emulated(phone):
    described, state = parse(AdbDevice().state_text())
    assert described.name == "Google Pixel 6"
    assert described.abi == "arm64-v8a"
    assert described.cores == 8
    assert described.processor == "4 × Cortex-A55, 2 × Cortex-A76, 2 × Cortex-X1"
    assert described.emulated
    assert "arm64-v8a" in described.why_emulated
    assert [c.max_mhz for c in state.cores] == [1803] * 4 + [2253] * 2 + [2802] * 2
    assert state.governor == "sched_pixel"
    assert (state.thermal_status, state.temperature_c, state.battery_level) == (0, 41.0, 87.0)


# ---------------------------------------------------------------- finding a phone


def test_no_client(monkeypatch):
    monkeypatch.setenv("ADB", "/nowhere/adb")
    with pytest.raises(MissingToolError, match="no adb program at /nowhere/adb") as caught:
        AdbDevice()
    assert "apt install adb" in caught.value.fix


def test_no_phone(adb_server):
    with pytest.raises(RunError, match="no phone is connected") as caught:
        AdbDevice()
    assert "USB debugging" in caught.value.fix


def test_several_phones_and_a_wrong_serial(new_phone):
    one, two = sorted((new_phone(), new_phone()), key=lambda phone: phone.serial)  # as the client lists them
    with pytest.raises(UsageError) as caught:
        AdbDevice()
    assert caught.value.message == f"2 phones are connected: {one.serial} (Pixel 6), {two.serial} (Pixel 6)"
    assert AdbDevice(two.serial).name == f"adb:{two.serial}"
    with pytest.raises(UsageError, match="no phone R58M is connected") as caught:
        AdbDevice("R58M")
    assert one.serial in caught.value.fix


def test_a_named_phone_is_found_by_the_environment(new_phone, monkeypatch):
    _, two = new_phone(), new_phone()
    monkeypatch.setenv("ANDROID_SERIAL", two.serial)
    assert AdbDevice().name == f"adb:{two.serial}"


def test_an_unauthorized_phone(adb_server, tmp_path):
    phone = Phone(tmp_path / "phone")
    phone.faults.unauthorized = True
    try:
        adb_server("connect", phone.serial)
        with pytest.raises(RunError, match="has not allowed this computer") as caught:
            AdbDevice(phone.serial)
        assert "Allow USB debugging?" in caught.value.fix
    finally:
        adb_server("disconnect", phone.serial)
        phone.close()


def test_an_offline_phone(phone):
    phone.daemon.close()
    time.sleep(0.2)  # the client's server notices
    with pytest.raises(RunError, match=r"is offline \(adb says 'offline'\)"):
        AdbDevice(phone.serial)


def test_every_state_of_a_phone_is_read():
    listed = parse_phones(
        "* daemon started successfully\nList of devices attached\n"
        "18281FDF6003AB         device usb:1-4 product:oriole model:Pixel_6 device:oriole transport_id:5\n"
        "R58N12ABCDE            unauthorized usb:1-2 transport_id:6\n"
        "0123456789ABCDEF       no permissions (user in plugdev group; are your udev rules wrong?); see [http://x]\n\n"
    )
    assert [(p.serial, p.state, p.model) for p in listed] == [
        ("18281FDF6003AB", "device", "Pixel 6"),
        ("R58N12ABCDE", "unauthorized", ""),
        ("0123456789ABCDEF", "no", ""),
    ]
    with pytest.raises(RunError, match="can't be opened by this user"):
        adb_client._choose("0123456789ABCDEF", listed)


# ---------------------------------------------------------------- what goes wrong


def test_a_runtime_that_phones_lack(phone, job):
    other = Job(job.target, "litert-reference", job.data, job.inputs)
    refused(phone, other, "phones don't run 'litert-reference'", kind=UsageError)


def test_the_app_is_not_installed(phone, job):
    (phone.root / "no-app").touch()
    refused(phone, job, "the demo app (org.qwtv2.edge.demo) is not installed", "demo_android/README.md")


def test_the_app_knows_no_jobs(phone, job):
    (phone.root / "old-app").touch()
    refused(phone, job, "too old to be started from here", "demo_android/README.md")


@pytest.mark.parametrize(("version", "age"), [(0, "old"), (2, "new")])
def test_the_app_is_of_another_version(version, age, phone, job):
    phone.app_fails(schema_version=version)
    refused(phone, job, f"the demo app is too {age}: it writes version {version} of result.json, not 1", "demo_android/README.md")


COMPLETE = {
    "schema_version": 1,
    "job": "j1",
    "app_version": "0.1.0",
    "complete": True,
    "error": None,
    "versions": {},
    "abi": "arm64-v8a",
    "load_ns": 1,
    "first_ns": 2,
    "ns": [3],
    "outputs": [{"file": "output_0.bin", "dtype": "int8", "shape": [1, 4]}],
    "peak_rss_bytes": 4,
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("job", "j2"),
        ("ns", [3, "4"]),
        ("ns", [-1]),
        ("load_ns", None),
        ("versions", []),
        ("complete", 1),
        ("error", "words"),
        ("error", {"code": "bad_job"}),
        ("outputs", [{"file": "../x; reboot", "dtype": "int8", "shape": [1]}]),
        ("outputs", [{"file": "output_0.bin", "dtype": "no dtype", "shape": [1]}]),
        ("outputs", [{"file": "output_0.bin", "dtype": "int8"}]),
    ],
)
def test_a_result_that_the_interface_does_not_allow(field, value):
    assert adb.checked_result(json.dumps(COMPLETE), "j1") == COMPLETE
    with pytest.raises(RunError, match=r"result.json can't be read"):
        adb.checked_result(json.dumps({**COMPLETE, field: value}), "j1")
    without = {k: v for k, v in COMPLETE.items() if k != field}
    with pytest.raises(RunError, match=r"result.json can't be read"):
        adb.checked_result(json.dumps(without), "j1")


def test_an_early_failure_needs_no_numbers():
    error = {"code": "bad_job", "message": "no job"}
    result = adb.checked_result(json.dumps({"schema_version": 1, "complete": True, "error": error}), "j1")
    assert (result["error"], result["ns"], result["load_ns"]) == (error, [], 0)


def test_storage_is_full(phone, job):
    phone.faults.push = "write failed: No space left on device"
    refused(phone, job, "copying", "bytes to /data/local/tmp/qwtv2-edge/", "its storage is full", "free some space")


def test_permission_denied(phone, job):
    phone.faults.programs["mkdir"] = "mkdir: '/data/local/tmp/qwtv2-edge': Permission denied"
    refused(phone, job, "making /data/local/tmp/qwtv2-edge/", "permission denied", "| mkdir: '/data/local/tmp/qwtv2-edge'")


def test_results_that_may_not_be_read(phone, job):
    phone.faults.programs["cat"] = "cat: /sdcard/Android/data: Permission denied"
    refused(phone, job, f"reading /{RESULTS}/", "permission denied")


@pytest.mark.parametrize("code", sorted(adb.FIXES))
def test_every_error_of_the_app_has_a_fix(code, phone, job):
    phone.app_fails(error={"code": code, "message": "what it says"})
    refused(phone, job, f"failed ({code}): what it says", adb.FIXES[code])


def test_an_artifact_the_runtime_refuses(phone, job):
    refused(phone, Job(job.target, job.runner, job.data[:64] + bytes(64), job.inputs), "failed (load_failed)")


def test_an_interrupted_app_keeps_what_it_measured(phone, job):
    phone.app_fails(error={"code": "interrupted", "message": "another app came in front"}, error_after=2)
    assert refused(phone, job, "failed (interrupted): another app came in front", "leave the app in front")


def test_a_crash_shows_the_last_lines_of_the_log(phone, job):
    phone.app_fails(crash_after=2)
    kept = refused(phone, job, "ended before its job (process ", "| ", "Fatal signal 11 (SIGSEGV)", "libtensorflowlite_jni.so")
    assert kept


def test_an_app_that_hangs(phone, job):
    phone.app_fails(hang_after=1)
    kept = refused(phone, job, "has not got on for 3 s, after ", timeout_s=3.0)
    assert kept


def test_a_client_that_hangs(phone, job, monkeypatch):
    phone.faults.slow["pm path"] = 5.0
    monkeypatch.setitem(adb_client.Client.shell.__kwdefaults__, "timeout_s", 0.5)
    refused(phone, job, "looking for the demo app took more than 0.5 s", "check the cable")


def test_a_lost_phone_keeps_what_was_measured(phone, job):
    phone.app_fails(hang_after=2)  # so that the polls that follow find nothing new
    phone.faults.lost_at = ("result.json", 40)
    start = time.monotonic()
    kept = refused(phone, job, f"the phone {phone.serial} was lost while reading", "shell rm -rf /data/local/tmp/qwtv2-edge", clean=False)
    assert kept
    assert time.monotonic() - start < 30


def test_a_phone_lost_before_anything_was_measured(phone, job):
    phone.faults.lost_at = ("am start", 0)
    assert refused(phone, job, "was lost while starting the demo app", clean=False) == []


def test_an_interrupt_cleans_up(phone, job):
    kept = Kept()
    interrupt_when(lambda: bool(kept))
    with pytest.raises(KeyboardInterrupt), AdbDevice().open(job) as timed:
        timed.block(10_000_000, 60.0, kept)
    assert kept
    assert phone.left_behind() == []
    assert not phone.app_runs()


def test_an_interrupt_without_the_phone_does_not_hang(phone, job):
    kept = Kept()

    def lose() -> bool:
        if kept:
            phone.daemon.close()
        return bool(kept)

    interrupt_when(lose)
    start = time.monotonic()
    # whichever comes first: the interrupt, or the news that the phone is gone
    with pytest.raises((KeyboardInterrupt, RunError)), AdbDevice().open(job) as timed:
        timed.block(10_000_000, 60.0, kept)
    assert time.monotonic() - start < 30


def test_left_overs_that_stay_are_told(phone, job):
    with pytest.raises(RunError, match="cleaning up failed on"), AdbDevice().open(job):
        phone.faults.programs["rm"] = "rm: /data/local/tmp/qwtv2-edge: Permission denied"
    # the error of a failed run counts more than what its cleaning up says
    with pytest.raises(ValueError, match="first"), AdbDevice().open(job):
        raise ValueError("first")
