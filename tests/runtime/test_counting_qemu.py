"""Instructions of real runtimes on an emulated core: they repeat, and they follow the work."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from cases import CASES, feeds
from requirements import missing
from small_graphs import integer_graph

from qwtv2_edge.backends import emit
from qwtv2_edge.errors import MissingToolError
from qwtv2_edge.ir import GraphBuilder, Quantization, TensorType
from qwtv2_edge.ops.conv import Conv2DAttrs
from qwtv2_edge.profiling import profile
from qwtv2_edge.runners import counting
from qwtv2_edge.runners.base import Job
from qwtv2_edge.runners.counting import REPEATS, count
from qwtv2_edge.runners.device import open_place
from qwtv2_edge.runners.host import HOST

pytestmark = [pytest.mark.runtime, pytest.mark.qemu]

SIZE, DEPTH = 16, 16


@pytest.fixture(autouse=True)
def compiler(require):
    require("gcc", any(map(shutil.which, counting.COMPILERS)), "no C compiler here")


@pytest.fixture
def core():
    try:
        place = open_place("qemu:cortex-a76")
        place.command("litert-reference", 1)
    except MissingToolError as error:
        missing("arm", str(error))
    return place


def convolution(channels: int, runner: str) -> Job:
    """3 × 3 over SIZE × SIZE × DEPTH codes."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("convolution")
    x = b.input("x", TensorType((1, SIZE, SIZE, DEPTH), "int8", Quantization.per_tensor(0.05, 0)))
    shape = (channels, 3, 3, DEPTH)
    scales = np.full(channels, 0.01, np.float32)
    w = b.constant("weight", rng.integers(-127, 128, shape).astype(np.int8), TensorType(shape, "int8", Quantization.per_channel(scales, 0)))
    bias_type = TensorType((channels,), "int32", Quantization.per_channel(scales * np.float32(0.05), 0))
    bias = b.constant("bias", np.zeros(channels, np.int32), bias_type)
    out = TensorType((1, SIZE, SIZE, channels), "int8", Quantization.per_tensor(0.5, 0))
    b.outputs = list(b.add("conv2d", (x, w, bias), Conv2DAttrs(padding=((1, 1), (1, 1))), name="conv", out_types=(out,)))
    graph = b.freeze()
    codes = rng.integers(-128, 128, (2, SIZE, SIZE, DEPTH)).astype(np.int8)
    return Job("tflite", runner, emit(graph, "tflite").data, [codes], threads=4)


@pytest.mark.parametrize(("runner", "channels"), [("litert-reference", 16), ("litert-xnnpack", 64)])
def test_counts_repeat_and_follow_the_work(core, runner, channels):
    once, again = (count(convolution(channels, runner), core) for _ in range(2))
    for a, b in ((once.load, again.load), (once.first, again.first), (once.per_inference, again.per_inference)):
        assert abs(a - b) <= REPEATS * a
    assert once.spread <= REPEATS
    double = count(convolution(2 * channels, runner), core)
    assert 1.95 <= double.per_inference / once.per_inference <= 2


def test_a_machine_without_the_plugin(rng):
    graph = next(c.graph for c in CASES["conv"] if c.name == "conv2d-3x3-same-random")
    job = Job("tflite", "litert-reference", emit(graph, "tflite").data, feeds(graph, rng))
    with pytest.raises(MissingToolError, match="no instructions are counted on host: no plugin counts instructions here"):
        count(job, HOST)


def test_an_emulator_that_refuses_the_plugin(core, monkeypatch, tmp_path):
    """As one of another interface version does."""
    (tmp_path / "other.so").write_text("no library")
    monkeypatch.setattr(counting, "plugin", lambda: tmp_path / "other.so")
    with pytest.raises(MissingToolError, match="Could not load plugin"):
        count(convolution(1, "litert-reference"), core)


def test_a_runtimes_own_failure_stays_one(core):
    with pytest.raises(Exception, match="failed at 'load'") as caught:
        count(dataclasses.replace(convolution(1, "litert-reference"), data=b"no model"), core)
    assert not isinstance(caught.value, MissingToolError)


def test_a_profile_counts_every_sample_is_compared_and_nothing_is_timed(core, rng):
    graph = integer_graph()
    inputs = rng.standard_normal((2, 6, 6, 2)).astype(np.float32)
    report = profile(emit(graph, "tflite"), inputs, core.name, runs=3, graph=graph, samples=2)
    assert (report.outputs_match, report.emulated, report.reliable, report.latency, report.load_ms) == (True, True, False, None, None)
    assert (report.device.kind, report.device.name, report.device.abi) == ("qemu", core.name, "aarch64")
    assert (len(report.instructions["runs"]), report.ops, report.state) == (3, (), {})
    assert report.instructions["load"] > 0
    assert profile(emit(graph, "tflite"), device=core.name, graph=integer_graph(1)).outputs_match is False
