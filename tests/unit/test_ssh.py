"""Destinations and failures of ssh, without a connection; ``runtime/test_ssh_server.py`` has a real server."""

from __future__ import annotations

import re

import pytest

from qwtv2_edge.errors import MissingToolError, RunError, UsageError
from qwtv2_edge.runners.ssh import SshPlace


@pytest.fixture
def client(tmp_path, monkeypatch):
    """An ssh that is never called."""
    (tmp_path / "ssh").write_text("#!/bin/sh\nexit 99\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize(
    ("destination", "tail"),
    [
        ("board", ["--", "board"]),
        ("pi@raspberrypi.local", ["--", "pi@raspberrypi.local"]),
        ("me@work.example@gateway:2222", ["-p", "2222", "--", "me@work.example@gateway"]),
        ("[fe80::1%eth0]:22", ["-p", "22", "--", "fe80::1%eth0"]),
    ],
)
def test_destinations(destination, tail, client):
    place = SshPlace(destination)
    assert place.name == f"ssh:{destination}"
    assert place._ssh[-len(tail) :] == tail


@pytest.mark.parametrize(
    "destination", ["", "@board", "-oProxyCommand=x", "pi@-x", "a b", "host;id", "$(id)", "host:", "host:0", "host:70000", "::1", "a\n"]
)
def test_what_is_no_destination(destination, client):
    with pytest.raises(UsageError, match=r"is not \[USER@\]HOST\[:PORT\]"):
        SshPlace(destination)


def test_no_client(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="no ssh on this machine"):
        SshPlace("board")


def test_configuration_and_python_come_from_the_environment(client, monkeypatch):
    monkeypatch.setenv("QWTV2_SSH_CONFIG", "/etc/boards")
    monkeypatch.setenv("QWTV2_SSH_PYTHON", "~/venv/bin/python")
    place = SshPlace("board")
    assert place._ssh[2:4] == ["-F", "/etc/boards"]
    assert "~/venv/bin/python" in place.how_to_get("tflite-micro")
    assert SshPlace("board", python="python3.12").python == "python3.12"


@pytest.mark.parametrize(
    ("code", "said", "error", "words"),
    [
        (255, "\n  | Timeout, server board not responding.", RunError, "connection was lost"),
        (255, "\n  | client_loop: send disconnect: Broken pipe", RunError, "connection was lost"),
        (255, "\n  | Connection reset by 10.0.0.7 port 22", RunError, "connection was lost"),
        (255, "\n  | ssh: connect to host 10.0.0.7 port 22: No route to host", RunError, "does not answer"),
        (255, "\n  | terminate called after throwing an instance of 'Closed'", RunError, "killed there .terminate called"),
        (1, "\n  | python4: Command not found.", MissingToolError, "there is no python3"),
    ],
)
def test_failures_seen_by_few_servers(code, said, error, words, client):
    """Texts that the server of the other tests does not bring about."""
    ended = SshPlace("board").ended(code, said)
    assert type(ended) is error
    assert re.search(words, ended.message)
    assert ended.fix


@pytest.mark.parametrize(("code", "said"), [(139, ""), (1, "\n  | RuntimeError: closed by the model"), (-15, "")])
def test_the_runtimes_own_failures_are_left_to_the_caller(code, said, client):
    assert SshPlace("board").ended(code, said) is None
