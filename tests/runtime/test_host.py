"""The runtime process: crashes, hangs, wrong inputs and missing packages each become one clear error."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cases import CASES, feeds

from qwtv2_edge.backends import emit
from qwtv2_edge.errors import MissingToolError, RunError, UsageError
from qwtv2_edge.runners import host
from qwtv2_edge.runners.host import WORKER, Session, available, run_artifact
from qwtv2_edge.runners.programs import call

pytestmark = pytest.mark.runtime

GRAPH = next(c.graph for c in CASES["conv"] if c.name == "conv2d-3x3-same-random")


@pytest.fixture(scope="module")
def artifact() -> bytes:
    return emit(GRAPH, "tflite").data


@pytest.fixture(autouse=True)
def litert(require):
    require("ai_edge_litert")


def test_a_session_describes_and_runs(artifact, rng):
    x = feeds(GRAPH, rng)
    with Session("litert-reference", artifact) as session:
        (port,) = session.inputs
        assert (port.name, port.shape, port.dtype) == ("x", GRAPH.tensors["x"].shape, "int8")
        assert port.scale == GRAPH.tensors["x"].scale
        assert session.versions["ai-edge-litert"]
        (y,) = session.run(x)
        assert np.array_equal(y[:7], session.run([x[0][:7]])[0])
    assert np.array_equal(y, run_artifact(artifact, "litert-reference", x)[0])


def test_timing(artifact, rng):
    x = [a[:1] for a in feeds(GRAPH, rng)]
    with Session("litert-xnnpack", artifact) as session:
        timing = session.time(x, runs=20)
        assert len(timing.ns) == 20
        assert min(timing.ns) > 0
        assert session.load_ns > 0
        assert timing.peak_rss_bytes > 1 << 20
        assert np.array_equal(timing.outputs[0], session.run(x)[0])


def test_a_crash_names_runtime_and_signal(artifact, rng):
    x = feeds(GRAPH, rng)
    with Session("litert-reference", artifact) as session:
        assert session._process is not None
        os.kill(session._process.pid, signal.SIGSEGV)
        with pytest.raises(RunError, match=r"LiteRT, reference kernels crashed \(signal SIGSEGV\)"):
            session.run(x)
        session.load(artifact)  # a new process
        assert session.run(x)[0].size


def test_a_hang_is_ended(artifact, rng):
    x = feeds(GRAPH, rng)
    with Session("litert-reference", artifact) as session:
        session.timeout_s = 0.5  # loading, on a busy machine, takes longer
        assert session._process is not None
        os.kill(session._process.pid, signal.SIGSTOP)
        with pytest.raises(RunError, match=r"did not answer 'run' within 0\.5 s"):
            session.run(x)
        assert session._process is None


@pytest.mark.parametrize("data", [b"", b"x" * 200], ids=["empty", "text"])
@pytest.mark.parametrize("kind", ["litert-reference", "litert-xnnpack"])
def test_what_is_no_model_is_refused(kind, data):
    with pytest.raises(RunError, match="failed at 'load'"):
        Session(kind, data)


def test_wrong_inputs_are_named(artifact):
    with Session("litert-reference", artifact) as session:
        shape = session.inputs[0].shape
        for inputs, words in (
            ([], "1 inputs, got 0"),
            ([np.zeros(shape, np.float32)], "dtype float32"),
            ([np.zeros((1, 2, 2, 1), np.int8)], "shape"),
        ):
            with pytest.raises(RunError, match=words):
                session.run(inputs)
        assert session.run([np.zeros(shape, np.int8)])[0].size  # still alive


def test_what_runtimes_print_does_not_reach_the_protocol(tmp_path):
    """A module that prints on import and from native code, in place of a runtime."""
    (tmp_path / "chatty.py").write_text("import os; print('hello'); os.write(1, b'native')\n")
    script = (
        f"import sys; sys.path[:0] = [{str(WORKER.parent)!r}, {str(tmp_path)!r}]; import worker;"
        "worker.versions = lambda kind: (__import__('chatty'), {'chatty': '1'})[1]; worker.main()"
    )
    text = b'{"command": "versions", "kind": "litert-reference", "blobs": []}'
    out = subprocess.run([sys.executable, "-c", script], input=len(text).to_bytes(4, "little") + text, capture_output=True, check=False)
    assert out.stdout[4:] == b'{"ok": true, "versions": {"chatty": "1"}, "arrays": [], "blobs": []}'
    assert b"hello" in out.stderr
    assert b"native" in out.stderr


def test_missing_package_comes_with_the_way_to_get_it(tmp_path, monkeypatch):
    """A Python that has NumPy but no runtime."""
    python = tmp_path / "python"
    numpy_home = os.path.dirname(os.path.dirname(np.__file__))
    (tmp_path / "site").mkdir()
    for name in os.listdir(numpy_home):
        if name.startswith("numpy"):
            (tmp_path / "site" / name).symlink_to(os.path.join(numpy_home, name))
    python.write_text(f'#!/bin/sh\nshift\nexec env PYTHONPATH={tmp_path}/site {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(host, "python_of", lambda kind: python)
    host.available.cache_clear()
    try:
        with pytest.raises(MissingToolError, match="LiteRT, reference kernels is not installed") as error:
            Session("litert-reference", b"x" * 64)
        assert "pip install" in error.value.fix
        assert available("litert-reference") == (False, error.value.fix)
    finally:
        host.available.cache_clear()


def test_unknown_runner():
    with pytest.raises(UsageError, match="unknown runner"):
        Session("litert-gpu")


COMPILER = """#!/bin/sh
[ "$1" = --version ] && exec echo cc 1.0
sleep 100 &
echo $$ $! $PPID >{told}
: >"$TMPDIR/object.s"
echo "$TMPDIR" >>{told}
wait
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def slow_compiler(folder: Path) -> tuple[Path, Path]:
    """A compiler that never ends, and the file in which it tells its processes and its folder."""
    compiler, told = folder / "slow-cc", folder / "told"
    compiler.write_text(COMPILER.format(told=told))
    compiler.chmod(0o755)
    return compiler, told


def assert_nothing_left(told: Path) -> None:
    processes, folder = told.read_text().splitlines()
    own, child, _ = map(int, processes.split())
    end = time.monotonic() + 10
    while not (gone(own) and gone(child) and not Path(folder).exists()):
        assert time.monotonic() < end, (gone(own), gone(child), Path(folder).exists())
        time.sleep(0.02)


def test_a_compiler_ends_with_its_worker(tmp_path, monkeypatch):
    """Killed in the middle, the worker itself can clear nothing up."""
    compiler, told = slow_compiler(tmp_path)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(RunError, match="generated C did not answer 'load' within 3 s"):
        Session("c", emit(GRAPH, "c").data, timeout_s=3)
    assert_nothing_left(told)


def test_a_program_ends_with_those_it_started(tmp_path):
    compiler, told = slow_compiler(tmp_path)
    (tmp_path / "work").mkdir()

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(KeyboardInterrupt):
            call([str(compiler)], folder=tmp_path / "work")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert told.read_text().splitlines()[1] == str(tmp_path / "work")
    shutil.rmtree(tmp_path / "work")
    assert_nothing_left(told)
