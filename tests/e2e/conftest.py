"""Fixtures for the command line: the command in a process of its own, a small network, its data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import COLOURLESS, NETWORK, Result, environment, need_everything

from qwtv2_edge import cli as cli_module


@pytest.fixture(scope="session")
def fresh():
    """``fresh("export", ..., cwd=...)`` runs the command in a process of its own."""

    def run(*args: object, cwd: Path | None = None, prefix: tuple[str, ...] = (), timeout: float = 240) -> Result:
        command = [*prefix, sys.executable, "-m", "qwtv2_edge", *map(str, args)]
        done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout)
        return Result(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def cli(capfd, monkeypatch):
    """The same in this process, which has torch imported already; what it prints is caught at the file descriptors."""
    for name, value in COLOURLESS.items():
        monkeypatch.setenv(name, value)

    def run(*args: object, cwd: Path | None = None) -> Result:
        if cwd is not None:
            monkeypatch.chdir(cwd)
        capfd.readouterr()
        code = cli_module.run([str(a) for a in args])
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def workdir(tmp_path_factory) -> Path:
    """net.py, calib.npz, eval.npz; read only by convention."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "net.py").write_text(NETWORK)
    rng = np.random.default_rng(5)
    np.savez(folder / "calib.npz", x=rng.normal(size=(40, 1, 8, 8)).astype(np.float32))
    np.savez(folder / "eval.npz", x=rng.normal(size=(30, 1, 8, 8)).astype(np.float32), y=rng.integers(0, 3, 30))
    return folder


@pytest.fixture(scope="session")
def exported(fresh, workdir) -> Path:
    """The folder of one ordinary export of the small network."""
    need_everything()
    done = fresh("export", "net.py:build", "--calibration", "calib.npz", "--evaluation", "eval.npz", "--out", "out", cwd=workdir)
    assert done.code == 0, done.err
    return workdir / "out"
