"""The counting plugin's build and what its counts say; ``runtime/test_counting_qemu.py`` counts."""

from __future__ import annotations

import shutil

import pytest

from qwtv2_edge.errors import MissingToolError, RunError, UsageError
from qwtv2_edge.runners.counting import Counts, plugin


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path


def test_what_counts_say():
    counts = Counts(load=900, first=120_000, runs=(100_090, 100_000, 100_010))
    assert counts.per_inference == 100_010
    assert counts.to_json()["repeats"]
    assert not Counts(900, 120_000, (100_000, 100_200)).to_json()["repeats"]


def test_the_plugin_is_built_once(home, monkeypatch, require):
    require("gcc", any(map(shutil.which, ("cc", "gcc", "clang"))), "no C compiler here")
    built = plugin()
    assert built.read_bytes()[:4] == b"\x7fELF"
    assert [p.name for p in built.parent.iterdir()] == [built.name]
    monkeypatch.setenv("PATH", str(home))
    assert plugin() == built


def test_no_compiler(home, monkeypatch):
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(MissingToolError, match=r"no C compiler \(cc, gcc, clang\)"):
        plugin()
    monkeypatch.setenv("CC", "tcc")
    with pytest.raises(MissingToolError, match=r"no C compiler \(tcc\)"):
        plugin()


def test_a_compiler_that_fails(home, monkeypatch):
    (home / "broken-cc").write_text("#!/bin/sh\necho cannot find ld >&2\nexit 1\n")
    (home / "broken-cc").chmod(0o755)
    monkeypatch.setenv("CC", str(home / "broken-cc"))
    with pytest.raises(RunError, match=r"does not build count_insns\.c:\ncannot find ld"):
        plugin()
    assert not list(home.rglob("*.so"))


def test_a_cache_that_cannot_be_written(home):
    (home / ".cache").write_text("in the way")
    with pytest.raises(UsageError, match="can't write to"):
        plugin()
