"""Phones over adb, by the runtimes' own command-line tools, which are played."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jobs import GRAPH, Kept, interrupt_when, job_for, refused
from phone import TEMPORARY, arm_program

from qwtv2_edge.backends import get_numerics
from qwtv2_edge.errors import UsageError
from qwtv2_edge.runners.adb import AdbDevice
from qwtv2_edge.runners.adb_tools import abi_of
from qwtv2_edge.runners.base import Job
from qwtv2_edge.simulator.run import run

pytestmark = pytest.mark.runtime

TOOLS = {"litert-xnnpack": "benchmark_model", "executorch": "executor_runner"}


@pytest.fixture
def tool(tmp_path):
    """``tool("benchmark_model")`` is the path of a tool for the phone."""

    def make(name: str, machine: int = 183) -> Path:
        path = tmp_path / f"android_aarch64_{name}"
        path.write_bytes(arm_program(name, machine))
        return path

    return make


def told(job: Job) -> Job:
    """The job with what comes out of one sample."""
    types = [GRAPH.tensors[name] for name in GRAPH.outputs]
    return replace(job, outputs=[(t.dtype, t.shape) for t in types])


@pytest.mark.parametrize("runner", TOOLS)
def test_the_tools_run_as_simulated(runner, phone, tool, require):
    require("executorch" if runner == "executorch" else "ai_edge_litert")
    job = told(job_for(runner, 2))
    path = tool(TOOLS[runner])
    with AdbDevice(tool=path).open(job) as timed:
        kept = Kept()
        series = timed.block(3, 60.0, kept)
        assert kept == series
        assert len(series) == 3
        assert min(series) > 0
        assert timed.load_ns > 0
        assert timed.first_ns > 0
        assert timed.abi == "arm64-v8a"
        assert timed.versions["tool"].startswith(path.name)
        assert timed.peak_rss_bytes == (int(13.1797 * 2**20) if runner == "litert-xnnpack" else 0)
        numerics = get_numerics("litert-xnnpack" if runner == "litert-xnnpack" else "executorch-xnnpack")
        for got, simulated in zip(timed.outputs, run(GRAPH, job.inputs, numerics), strict=True):
            assert got.dtype == simulated.dtype
            assert np.array_equal(got, simulated)
    assert phone.left_behind() == []


def test_outputs_whose_form_is_unknown_are_not_fetched(phone, tool, job):
    with AdbDevice(tool=tool("benchmark_model")).open(job) as timed:
        timed.block(1, 60.0, Kept())
        assert timed.outputs == ()


def test_cores_are_kept_to_where_the_phone_can(phone, tool, job):
    with AdbDevice(tool=tool("benchmark_model")).open(replace(job, cores=(0, 1))) as timed:
        timed.block(1, 60.0, Kept())
        assert timed.cores == (0, 1)
    assert any("exec taskset 3 /data/local/tmp/qwtv2-edge/" in c for c in phone.daemon.commands)
    phone.faults.programs["command"] = "there is no taskset"
    with AdbDevice(tool=tool("benchmark_model")).open(replace(job, cores=(0, 1))) as timed:
        assert timed.cores == ()


# ---------------------------------------------------------------- what goes wrong


def test_another_abi(phone, tool):
    path = tool("benchmark_model", machine=62)
    with pytest.raises(UsageError) as caught:
        AdbDevice(tool=path)
    assert caught.value.message == (
        f"wrong ABI: android_aarch64_benchmark_model is built for x86_64, the phone {phone.serial} runs arm64-v8a,armeabi-v7a,armeabi"
    )
    assert not any("mkdir" in c for c in phone.daemon.commands)


def test_what_is_no_tool(tmp_path):
    (tmp_path / "script").write_text("#!/bin/sh\necho far too short to be anything\n")
    with pytest.raises(UsageError, match="is no Linux executable"):
        abi_of(tmp_path / "script")
    with pytest.raises(UsageError, match=r"can't read .*/absent: No such file"):
        abi_of(tmp_path / "absent")


def test_kernels_the_tool_lacks(phone, tool, job):
    other = replace(job, runner="litert-reference")
    refused(phone, other, "benchmark_model can't run 'litert-reference'", kind=UsageError, tool=tool("benchmark_model"))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("status", ("running the tool failed on", "(exit code 1)", "| ERROR: Failed to load model")),
        ("silent", ("does not print what is read here", "TensorFlow Lite 2.4")),
        ("hang", ("running the tool took more than 2 s",)),
    ],
)
def test_a_tool_that_fails(how, words, phone, tool, job):
    phone.daemon.environment["TOOL"] = how
    refused(phone, job, *words, tool=tool("benchmark_model"), timeout_s=2.0)


def test_a_runner_that_tells_only_the_sum(phone, tool, require):
    require("executorch")
    phone.daemon.environment["TOOL"] = "old"
    refused(phone, job_for("executorch", 1), "does not print", "EXECUTORCH_ENABLE_LOGGING", tool=tool("executor_runner"))


def test_a_lost_phone_keeps_what_was_measured(phone, tool, job):
    phone.faults.lost_at = ("--warmup_runs=5", 2)
    kept = refused(phone, job, "was lost while running the tool", clean=False, tool=tool("benchmark_model"))
    assert len(kept) == 2


def test_an_interrupt_ends_the_tool(phone, tool, job):
    phone.daemon.environment["TOOL"] = "hang"
    seen = []

    def runs() -> bool:
        """The tool's process, which the job's folder names."""
        seen.extend(pid for p in (phone.root / TEMPORARY).glob("*/*/pid") if (pid := p.read_text().strip()))
        return bool(seen)

    interrupt_when(runs)
    with pytest.raises(KeyboardInterrupt), AdbDevice(tool=tool("benchmark_model")).open(job) as timed:
        timed.block(1, 60.0, Kept())
    assert not Path(f"/proc/{seen[0]}").exists()
    assert phone.left_behind() == []
