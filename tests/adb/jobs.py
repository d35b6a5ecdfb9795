"""Jobs for phones, and what becomes of them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from phone import Phone
from small_graphs import integer_graph

from qwtv2_edge.backends import emit
from qwtv2_edge.errors import RunError
from qwtv2_edge.runners.adb import AdbDevice
from qwtv2_edge.runners.base import Job
from qwtv2_edge.verification.patterns import edge_patterns

GRAPH = integer_graph()
SAMPLES = 3

#: runner -> (target, numerics)
FORMATS = {"litert-xnnpack": ("tflite", "litert-xnnpack"), "executorch": ("executorch-xnnpack", "executorch-xnnpack")}


def job_for(runner: str, samples: int = SAMPLES) -> Job:
    target, _ = FORMATS[runner]
    inputs = [a[:samples] for a in edge_patterns(GRAPH)[1]]
    return Job(target, runner, emit(GRAPH, target).data, inputs, samples=samples)


class Kept(list):
    """A ``keep`` that remembers the longest series."""

    def __call__(self, series) -> None:
        assert len(series) >= len(self)
        self[:] = series


def refused(
    phone: Phone, job: Job, *words: str, kind=RunError, clean: bool = True, tool: Path | None = None, timeout_s: float = 60.0
) -> Kept:
    """One error with these words, nothing left on the phone; what was measured before."""
    kept = Kept()
    with pytest.raises(kind) as caught, AdbDevice(phone.serial, tool, timeout_s).open(job) as timed:
        timed.block(1_000_000, 30.0, kept)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    if clean:
        assert phone.left_behind() == []
        assert not phone.app_runs()
    return kept


def interrupt_when(reached: Callable[[], bool]) -> None:
    """Ctrl-C, as soon as ``reached()``, also where this process was started in the background, with interrupts ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch() -> None:
        while not reached():
            time.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()
