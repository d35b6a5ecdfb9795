"""`profile` and `compare` at the command line: what is refused before anything is timed, and what is kept of a run cut short."""

from __future__ import annotations

import json

import pytest
from command import need_everything
from small_graphs import integer_graph

import qwtv2_edge as qe
from qwtv2_edge.errors import RunError, UsageError
from qwtv2_edge.profiling import compare, measure
from qwtv2_edge.profiling.compare import compared
from qwtv2_edge.runners.host import available


@pytest.fixture
def folder(tmp_path, require):
    """An export folder's graph and generated C."""
    require("c", *available("c"))
    qe.save(integer_graph(), tmp_path / "model.qir")
    qe.emit(integer_graph(), "c").save(tmp_path / "c")
    return tmp_path


@pytest.mark.runtime
def test_the_folder_of_generated_c_is_profiled(cli, folder):
    done = cli("profile", folder / "c", "--runs", 12, "--json", "--out", folder / "report.json")
    assert done.code == 0, done.err
    told = done.document
    assert (told["numerics"], told["outputs_match"], told["emulated"]) == ("c", True, False)
    assert told["reliable"] is False
    assert "too few timed runs (12)" in told["reasons"]
    assert json.loads((folder / "report.json").read_text()) == told


def test_nothing_is_timed_where_the_result_can_not_be_written(cli, folder, monkeypatch):
    monkeypatch.setattr(measure, "prepare", lambda *a: pytest.fail("measured"))
    for out, words in ((folder / "absent" / "report.json", "No such file"), (folder, "it is a folder")):
        done = cli("profile", folder / "c", "--out", out)
        assert (done.code, words in done.err) == (2, True)
    assert sorted(p.name for p in folder.iterdir()) == ["c", "model.qir"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--threads", 2), "generated C runs in one thread, not 2"),
        (("--cores", "0,4095"), "there is no core 4095 to stay on"),
        (("--device", "board:cortex-m9"), "there is no board with the core"),
        (("--numerics", "litert-xnnpack"), "runs tflite artifacts, not c"),
    ],
)
def test_what_generated_c_is_refused(cli, folder, options, words):
    done = cli("profile", folder / "c", *options)
    assert (done.code, words in done.err) == (2, True), done.err


def test_a_folder_names_its_artifacts(cli, exported):
    done = cli("profile", exported)
    assert done.code == 2
    assert f"give one of them: {exported / 'model.tflite'}, {exported / 'model.executorch-xnnpack.pte'}" in done.err


def test_other_files_are_refused(cli, tmp_path):
    (tmp_path / "model.h").touch()
    done = cli("profile", tmp_path / "model.h")
    assert (done.code, "neither a .tflite nor a .pte nor a .c file" in done.err) == (2, True)


@pytest.mark.parametrize(("name", "content"), [("net.pte", b"{}"), ("net.c", b"int main;"), ("net.tflite", b"text")])
@pytest.mark.parametrize("command", ["profile", "inspect"])
def test_files_that_are_not_what_they_are_called(cli, tmp_path, command, name, content):
    (tmp_path / name).write_bytes(content)
    done = cli(command, tmp_path / name)
    assert (done.code, name in done.err) == (2, True), done.err


# ---------------------------------------------------------------- compare


@pytest.fixture
def timing(monkeypatch):
    """``timing[target] = error`` in place of real timing; other targets are found equal."""
    need_everything()
    errors: dict[str, Exception] = {}

    def fake(a, b, *args, **kwargs):
        if a.target in errors:
            raise errors[a.target]
        return compared(([[10**6] * 20] * 6, [[10**6] * 20] * 6), ())

    monkeypatch.setattr(compare, "compare_latency", fake)
    return errors


def test_a_target_that_the_device_can_not_time_is_told(cli, exported, timing):
    timing["executorch-xnnpack"] = UsageError("this device has no such runtime")
    done = cli("compare", exported, exported, "--json")
    assert done.code == 0
    assert done.document["complete"] is True
    assert done.document["not_timed"] == {"executorch-xnnpack": "this device has no such runtime"}
    assert list(done.document["latency"]) == ["tflite"]
    assert "not timed: executorch-xnnpack: this device has no such runtime" in cli("compare", exported, exported).out


def test_a_comparison_cut_short_is_kept_and_marked(cli, exported, timing):
    timing["executorch-xnnpack"] = RunError("the board was lost")
    done = cli("compare", exported, exported, "--json")
    assert done.code == 1
    assert done.document["complete"] is False
    assert list(done.document["latency"]) == ["tflite"]
    assert "the board was lost" in done.err
    assert "incomplete" in cli("compare", exported, exported).out


def test_what_compare_refuses(cli, exported):
    assert "3 rounds can't show a difference" in cli("compare", exported, exported, "--runs", 3).err
    done = cli("compare", exported, exported, "--device", "board:cortex-m4")
    assert (done.code, "has no times to compare" in done.err) == (2, True)
