"""Sessions on another computer, against a real OpenSSH server that the tests start on the loopback interface."""

from __future__ import annotations

import getpass
import os
import platform
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cases import CASES, feeds
from requirements import missing

from qwtv2_edge.backends import emit, get_numerics
from qwtv2_edge.errors import MissingToolError, RunError
from qwtv2_edge.runners import ssh
from qwtv2_edge.runners.base import family_of
from qwtv2_edge.runners.device import open_place
from qwtv2_edge.runners.host import Session
from qwtv2_edge.runners.ssh import SshPlace
from qwtv2_edge.runners.state import SCRIPT, parse
from qwtv2_edge.simulator.run import run

pytestmark = pytest.mark.runtime

GRAPH = next(c.graph for c in CASES["conv"] if c.name == "conv2d-3x3-same-random")
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")

SERVER = """
ListenAddress 127.0.0.1:{port}
HostKey {root}/host_key
AuthorizedKeysFile {root}/user_key.pub
PidFile none
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv HOME={root}/home TMPDIR={root}/tmp
ForceCommand cd {root}/home && . {root}/start_up && exec sh -c "$SSH_ORIGINAL_COMMAND"
"""
#: the name "board" is the server; the other names are what can go wrong
CLIENT = """
Host unknown
    HostName unknown.invalid
Host refused
    Port {closed}
Host silent
    Port {silent}
Host changed-key
    UserKnownHostsFile {root}/changed
Host unknown-key
    UserKnownHostsFile /dev/null
Host other-user
    User nobody-of-that-name
Host *
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {root}/user_key
    IdentitiesOnly yes
    UserKnownHostsFile {root}/known
    StrictHostKeyChecking yes
    LocalForward {port} 127.0.0.1:1
    RemoteCommand echo unwanted
"""


@dataclass
class Board:
    """The server: its folder, its process, the port that nobody answers on."""

    root: Path
    process: subprocess.Popen

    def connections(self) -> list[int]:
        return children(self.process.pid)

    def workers(self) -> list[int]:
        """Processes that the server's connections started."""
        return [worker for connection in self.connections() for worker in children(connection)]

    def python(self, name: str, text: str) -> SshPlace:
        """The board with a Python of its own, given as a shell text; ``$PYTHON`` in it is the one of these tests."""
        path = self.root / name
        path.write_text(f"#!/bin/sh\nPYTHON={sys.executable}\n{text}\n")
        path.chmod(0o755)
        return SshPlace("board", python=str(path))


def children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, of = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it ended in the meantime
        if int(of) == parent and state != "Z":
            found.append(int(path.parent.name))
    return found


def until(condition, seconds=10.0):
    """Wait until ``condition()`` is true; whether it came to be."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def listening(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Board]:
    if SSHD is None or shutil.which("ssh") is None:
        missing("sshd", "OpenSSH's server and client are not installed")
    root = tmp_path_factory.mktemp("ssh")
    for folder in ("home", "tmp"):
        (root / folder).mkdir()
    for key in ("host_key", "user_key", "third_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", root / key], check=True)
    (root / "start_up").touch()
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # the server insists on it; on a booted system it is there
    with socket.socket() as free, socket.socket() as closed, socket.socket() as silent:
        for s in (free, closed, silent):
            s.bind(("127.0.0.1", 0))
        silent.listen()
        port = free.getsockname()[1]
        free.close()
        ports = {"port": port, "closed": closed.getsockname()[1], "silent": silent.getsockname()[1]}
        (root / "server").write_text(SERVER.format(root=root, **ports))
        (root / "client").write_text(CLIENT.format(root=root, user=getpass.getuser(), **ports))
        (root / "known").write_text(f"[127.0.0.1]:{port} {(root / 'host_key.pub').read_text()}")
        (root / "changed").write_text(f"[127.0.0.1]:{port} {(root / 'third_key.pub').read_text()}")
        with subprocess.Popen([SSHD, "-D", "-e", "-f", root / "server"], stderr=subprocess.PIPE) as process:
            if not until(lambda: process.poll() is not None or listening(port)) or process.poll() is not None:
                process.kill()
                missing("sshd", f"the server does not start: {process.stderr.read().decode()}")
            yield Board(root, process)
            process.terminate()


@pytest.fixture
def board(server, monkeypatch):
    monkeypatch.setenv("QWTV2_SSH_CONFIG", str(server.root / "client"))
    monkeypatch.setenv("QWTV2_SSH_PYTHON", sys.executable)
    yield server
    # nothing stays behind, neither files nor processes
    assert until(lambda: not server.connections())
    assert [p for folder in ("home", "tmp") for p in (server.root / folder).iterdir()] == []


@pytest.fixture(scope="module")
def artifact() -> bytes:
    return emit(GRAPH, "tflite").data


def test_a_session_gives_the_simulated_bytes(board, artifact, rng, require):
    require("ai_edge_litert")
    place = SshPlace("board")
    x = feeds(GRAPH, rng)
    with Session("litert-reference", artifact, place=place) as session:
        assert (place.family, session.machine) == (family_of(platform.machine()), platform.machine())
        assert len(board.workers()) == 1
        (y,) = session.run(x)
        timing = session.time([a[:1] for a in x], runs=5)
    assert np.array_equal(y, run(GRAPH, x, get_numerics("litert-reference"))[0])
    assert len(timing.ns) == 5


def test_the_state_of_the_other_computer(board):
    described, state = parse(SshPlace("board").shell(SCRIPT))
    assert (described.machine, described.emulated) == (platform.machine(), False)
    assert state.load1 is not None


def test_a_python_for_another_processor_is_emulated(board):
    claims = "import platform; platform.machine = lambda: 'aarch64' if ABI == 'x86_64' else 'x86_64'; import sys; exec(sys.argv[2])"
    place = board.python("foreign", f'exec $PYTHON -c "ABI = \'{platform.machine()}\'; {claims}" "$@"')
    assert place.family != platform.machine()
    assert parse(place.shell(SCRIPT), abi=place.family)[0].emulated


@pytest.mark.qemu
def test_an_emulated_python_over_there(board, artifact, rng):
    """ARM's kernels behind ssh: their bytes count, their times must not."""
    try:
        command = open_place("qemu:cortex-a76").command("litert-xnnpack", 1)
    except MissingToolError as error:
        missing("arm", str(error))
    exports = shlex.join(f"{name}={value}" for name, value in command.env.items())
    python = shlex.join(command.argv[: list(command.argv).index("-P")])
    place = board.python("arm", f'export {exports}\nexec {python} "$@"')
    x = feeds(GRAPH, rng)
    with Session("litert-xnnpack", artifact, place=place) as session:
        (y,) = session.run(x)
    assert (place.family, session.machine) == ("aarch64", "aarch64")
    assert np.array_equal(y, run(GRAPH, x, get_numerics("litert-xnnpack@aarch64"))[0])
    if platform.machine() != "aarch64":
        assert parse(place.shell(SCRIPT), abi=session.machine)[0].why_emulated == "its programs are for aarch64, its kernel is x86_64"


@pytest.mark.parametrize("busy", [True, False])
def test_a_lost_connection_ends_the_worker(board, artifact, rng, require, busy):
    require("ai_edge_litert")
    x = [a[:1] for a in feeds(GRAPH, rng)]
    with Session("litert-reference", artifact, place=SshPlace("board")) as session:
        (worker,), (connection,) = board.workers(), board.connections()
        cut = threading.Timer(0.5 if busy else 0.0, os.kill, (connection, signal.SIGKILL))
        cut.start()
        if not busy:
            cut.join()
            assert until(lambda: not Path(f"/proc/{worker}").exists())
        with pytest.raises(RunError, match=r"ssh:board: the connection was lost \(Connection to .* closed by remote host"):
            session.time(x, runs=10**9, seconds=30)
        assert until(lambda: not Path(f"/proc/{worker}").exists())
        session.load(artifact)  # a new connection
        assert session.time(x, runs=1).ns


def test_a_host_that_falls_silent(board, artifact, rng, require, monkeypatch):
    require("ai_edge_litert")
    monkeypatch.setitem(ssh.OPTIONS, "ServerAliveInterval", "1")
    with Session("litert-reference", artifact, place=SshPlace("board")) as session:
        (connection,) = board.connections()
        os.kill(connection, signal.SIGSTOP)
        try:
            with pytest.raises(RunError, match=r"the connection was lost \(Timeout, server .* not responding"):
                session.run(feeds(GRAPH, rng))
        finally:
            os.kill(connection, signal.SIGCONT)


def test_a_runtime_killed_there_is_no_lost_connection(board, artifact, rng, require):
    require("ai_edge_litert")
    with Session("litert-reference", artifact, place=SshPlace("board")) as session:
        (worker,) = board.workers()
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(RunError, match="ssh:board: the runtime's process was killed there"):
            session.run(feeds(GRAPH, rng))


@pytest.mark.parametrize(
    ("host", "message", "fix"),
    [
        ("unknown", r"the name is not known \(.*unknown\.invalid", "check the name"),
        ("refused", "nothing there accepts the connection", "SSH server runs"),
        ("silent", "it does not answer", "switched on"),
        ("changed-key", "its host key is not the one that is known", "ssh-keygen -R changed-key"),
        ("unknown-key", "its host key is not known yet", "connect once by hand: ssh unknown-key"),
        ("other-user", "it does not let this user in without a password", "ssh-copy-id other-user"),
    ],
)
def test_failures_to_connect(board, host, message, fix, monkeypatch):
    monkeypatch.setattr(ssh, "CONNECT_S", 1)
    for attempt in (lambda: Session("litert-reference", place=SshPlace(host)), lambda: SshPlace(host).shell(SCRIPT)):
        with pytest.raises(RunError, match=f"ssh:{host}: {message}") as caught:
            attempt()
        assert fix in caught.value.fix


def test_a_configuration_that_ssh_rejects(board, monkeypatch, tmp_path):
    monkeypatch.setenv("QWTV2_SSH_CONFIG", str(tmp_path / "absent"))
    with pytest.raises(RunError, match=r"ssh rejects its configuration \(Can't open user config file"):
        SshPlace("board").shell(SCRIPT)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("old", 'exec $PYTHON -c "import sys; sys.version_info = (3, 9, 2); exec(sys.argv[2])" "$@"', r"Python 3\.9 is too old"),
        ("bare", 'exec $PYTHON -S "$@"', "has no NumPy"),
    ],
)
def test_an_unsuitable_python(board, name, text, message):
    with pytest.raises(MissingToolError, match=message) as caught:
        Session("litert-reference", place=board.python(name, text))
    assert "QWTV2_SSH_PYTHON" in caught.value.fix


def test_no_python(board):
    with pytest.raises(MissingToolError, match=r"ssh:board: there is no /no/python3 \("):
        Session("litert-reference", place=SshPlace("board", python="/no/python3"))


def test_a_runtime_that_is_not_installed_there(board):
    packages = board.root / "packages"
    packages.mkdir()
    for part in Path(np.__file__).parents[1].glob("numpy*"):
        (packages / part.name).symlink_to(part)
    place = board.python("numpy-only", f'export PYTHONPATH={packages}\nexec $PYTHON -S "$@"')
    with (
        Session("litert-reference", place=place) as session,
        pytest.raises(MissingToolError, match="LiteRT, reference kernels on ssh:board is not installed") as caught,
    ):
        session.find_versions()
    assert "on board: pip install" in caught.value.fix


def test_a_login_shell_that_talks(board):
    (board.root / "start_up").write_text("echo Welcome to the board\n")
    try:
        with pytest.raises(RunError, match="the login shell prints 'Welcome to the board'"):
            Session("litert-reference", place=SshPlace("board"))
    finally:
        (board.root / "start_up").write_text("")
