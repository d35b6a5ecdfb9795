"""The adb client with a server of its own, and phones to connect it to."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from jobs import job_for
from phone import Phone
from requirements import missing

from qwtv2_edge.runners import adb
from qwtv2_edge.runners.base import Job


@pytest.fixture(scope="session")
def adb_server(tmp_path_factory) -> Iterator[Callable[..., str]]:
    """``adb_server("devices")`` runs the client against a server on a port of its own, which ends with the tests."""
    program = shutil.which("adb")
    if program is None:
        missing("adb", "there is no adb client (apt install adb)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    before = os.environ.get("ANDROID_ADB_SERVER_PORT")
    os.environ["ANDROID_ADB_SERVER_PORT"] = port
    os.environ.pop("ANDROID_SERIAL", None)
    # keys go to a home of its own; emulators that listen here are none of these tests' business
    home = {**os.environ, "HOME": str(tmp_path_factory.mktemp("adb")), "ADB_LOCAL_TRANSPORT_MAX_PORT": "5554"}

    def run(*arguments: str, check: bool = True) -> str:
        return subprocess.run([program, *arguments], env=home, capture_output=True, text=True, timeout=60, check=check).stdout

    run("start-server")
    try:
        yield run
    finally:
        run("kill-server")
        if before is None:
            del os.environ["ANDROID_ADB_SERVER_PORT"]
        else:
            os.environ["ANDROID_ADB_SERVER_PORT"] = before


@pytest.fixture
def new_phone(adb_server, tmp_path) -> Iterator[Callable[..., Phone]]:
    """``new_phone()`` makes a phone and connects it."""
    with ExitStack() as stack:
        made = []

        def make(place: str = "host") -> Phone:
            phone = Phone(tmp_path / f"phone{len(made)}", place)
            made.append(phone)
            stack.callback(phone.close)
            adb_server("connect", phone.serial)
            stack.callback(adb_server, "disconnect", phone.serial, check=False)  # it may be lost
            return phone

        yield make


@pytest.fixture
def phone(new_phone) -> Phone:
    """The only phone that is connected."""
    return new_phone()


@pytest.fixture
def job(require) -> Job:
    """One sample for LiteRT."""
    require("ai_edge_litert")
    return job_for("litert-xnnpack", 1)


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(adb, "POLL_S", 0.05)
