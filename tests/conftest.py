"""Fixtures for every suite: data, required tools, seeds, golden files."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from requirements import ROOT, missing, seed_of


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write golden files anew instead of comparing with them")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of trained models and evaluation data; the test is skipped where it is absent."""
    path = Path(os.environ.get("QWTV2_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        missing("data", f"no data at {path}; set QWTV2_DATA")
    return path


@pytest.fixture
def require():
    """``require("executorch")`` skips (or fails, see ``missing``) unless that module is installed.

    ``require("name", present, reason)`` is for tools that are not modules.
    """

    def check(tool: str, present: bool | None = None, reason: str = "") -> None:
        if present is None:
            present = importlib.util.find_spec(tool.replace("-", "_")) is not None
        if not present:
            missing(tool, reason or f"{tool} is not installed")

    return check


@pytest.fixture
def rng(request) -> np.random.Generator:
    """A generator seeded from the test id: the same in every run and order."""
    return np.random.default_rng(seed_of(request.node.nodeid))


@pytest.fixture
def golden(request):
    """``golden("name.txt", text)`` compares with ``tests/golden/name.txt``; ``--update-golden`` writes it."""

    def compare(name: str, text: str) -> None:
        path = ROOT / "tests" / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            return
        assert path.is_file(), f"{path} is missing; run pytest --update-golden and review it"
        assert text == path.read_text(), f"{name} changed; if that is meant, run pytest --update-golden and review the difference"

    return compare


@pytest.fixture(scope="session", autouse=True)
def _quiet_threads():
    """One thread per process: the suites run side by side."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
