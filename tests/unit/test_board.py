"""Boards by name, and what is said without the tools; ``runtime/test_board_qemu.py`` runs programs."""

from __future__ import annotations

import numpy as np
import pytest

from qwtv2_edge.backends import Artifact, tables_on
from qwtv2_edge.doctor import CLIENTS, _boards, _client
from qwtv2_edge.errors import UsageError
from qwtv2_edge.profiling import compare_latency, profile
from qwtv2_edge.runners.board import BOARDS, Instructions
from qwtv2_edge.runners.device import open_place


def test_boards_by_name():
    assert [open_place(f"board:{core}") for core in BOARDS] == list(BOARDS.values())
    assert open_place("board:cortex-m55").name == "board:cortex-m55"
    with pytest.raises(UsageError, match="no board with the core 'cortex-a53'") as caught:
        open_place("board:cortex-a53")
    assert caught.value.fix == "one of: cortex-m3, cortex-m4, cortex-m7, cortex-m33, cortex-m55"
    with pytest.raises(UsageError, match="unknown device 'board:'"):
        open_place("board:")


def test_what_a_board_can_not_do():
    with pytest.raises(UsageError, match="board:cortex-m4 is emulated: it has no times to compare"):
        compare_latency("a.c", "b.c", "board:cortex-m4")
    with pytest.raises(UsageError, match="instructions on board:cortex-m4 are counted in one thread, not 2"):
        profile(Artifact("c", b""), device="board:cortex-m4", threads=2)


def test_boards_run_generated_c_alone():
    family = BOARDS["cortex-m4"].family
    assert [t.name for t in tables_on("c", family)] == ["c"]
    assert not tables_on("tflite-micro", family)


def test_an_inference_that_was_run_stands_for_all():
    counts = Instructions(("a", "b"), np.array([[10, 200], [30, 100], [20, 300]]))
    assert counts.per_inference == 210
    assert counts.per_node == {"a": 10, "b": 200}


def test_the_doctor_tells_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = _boards()
    assert (finding.state, finding.fix) == ("missing", "apt-get install --no-install-recommends qemu-system-arm")
    clients = {device: _client(device, use, find) for device, (use, find) in CLIENTS.items()}
    assert {f.state for f in clients.values()} == {"missing"}
    assert "apt install openssh-client" in clients["ssh"].fix
    assert "apt install adb" in clients["adb"].fix
