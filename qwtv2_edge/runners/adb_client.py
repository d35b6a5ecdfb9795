"""Phones through the adb client: finding one, running commands on it, moving files. Every call has a time limit.

The client is the ordinary ``adb`` program. ``ADB`` names another one, ``ANDROID_SERIAL`` a phone where none is given, and
``ANDROID_ADB_SERVER_PORT`` its server, as for adb itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwtv2_edge.errors import MissingToolError, RunError, UsageError

#: the only folder on a phone that is written to, beside the demo app's own; apps may read it
SCRATCH = "/data/local/tmp/qwtv2-edge"
#: unless another job is in it
REMOVE_SCRATCH = f"{{ rmdir {SCRATCH} 2>/dev/null || true; }}"

#: seconds for a command that does next to nothing
SHORT_S = 20.0
#: bytes a second that a slow cable still moves
SLOWEST = 500_000

#: what a shell command prints last: adb gives exit code 0 where the phone is lost in the middle of one
DONE = "qwtv2-edge: done"

#: states that ``adb devices`` prints -> (what that means, fix)
STATES = {
    "unauthorized": ("has not allowed this computer to debug it", "unlock it, answer 'Allow USB debugging?' with yes, then try again"),
    "offline": ("is offline", "unplug it and plug it in again, or: adb reconnect"),
    "authorizing": ("has not allowed this computer to debug it yet", "unlock it, answer 'Allow USB debugging?' with yes, then try again"),
    "connecting": ("is still connecting", "try again in a few seconds"),
    "no": ("can't be opened by this user", "add a udev rule for it, or the user to group plugdev, then: adb kill-server"),
}
OTHER_STATE = ("does not run Android at present", "boot it into Android")

#: what tools print on a phone -> (what that means, fix)
SIGNS = {
    "No space left on device": ("its storage is full", "free some space on it"),
    "Permission denied": ("permission denied", f"look at the owner of that path; adb's shell must be allowed to write to {SCRATCH}"),
    "Read-only file system": ("that path can't be written to", "restart the phone"),
}


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        """Everything it printed."""
        return (self.out + self.err).decode(errors="replace")

    def tail(self, lines: int = 6) -> str:
        """The last lines it printed, ready to append to a message."""
        kept = [line for line in self.text.splitlines() if line.strip()][-lines:]
        return "".join(f"\n  | {line.strip()}" for line in kept)


@dataclass(frozen=True, slots=True)
class Phone:
    """One line of ``adb devices -l``."""

    serial: str
    state: str
    model: str


class Client:
    """The adb client, bound to one phone.

    Args:
        serial: of the phone; the only one that is connected if None.
    Raises: MissingToolError: no adb; UsageError: several phones, or none of that serial; RunError: no phone that can be used.
    """

    def __init__(self, serial: str | None = None) -> None:
        self._program = find_adb()
        self.serial = _choose(serial or os.environ.get("ANDROID_SERIAL"), self._phones())
        self._features = self.checked("asking for its features", "features").decode(errors="replace").split()
        if "shell_v2" not in self._features:
            raise RunError(f"{self.serial} is too old: its adb tells no exit codes", fix="use a phone with Android 7 or newer")

    def run(self, *arguments: str, stdin: bytes | None = None, timeout_s: float = SHORT_S) -> Said:
        """``adb -s SERIAL arguments``. Raises subprocess.TimeoutExpired, after the client was killed."""
        return _run([self._program, "-s", self.serial, *arguments], stdin, timeout_s)

    def checked(self, doing: str, *arguments: str, stdin: bytes | None = None, timeout_s: float = SHORT_S) -> bytes:
        """What ``adb arguments`` printed.

        Args:
            doing: what this is for, as it stands in error messages ("copying the job").
        Raises: RunError: it failed, took too long, or the phone is gone.
        """
        try:
            said = self.run(*arguments, stdin=stdin, timeout_s=timeout_s)
        except subprocess.TimeoutExpired:
            raise self.late(doing, timeout_s) from None
        if said.code:
            raise self.failure(doing, said)
        return said.out

    def shell(self, doing: str, command: str, *, stdin: bytes | None = None, timeout_s: float = SHORT_S) -> Said:
        """Run ``command`` in the phone's shell, whatever its exit code. Raises RunError: it took too long, or the phone is gone."""
        try:
            said = self.run("shell", f"( {command}\n); c=$?; echo {DONE} >&2; exit $c", stdin=stdin, timeout_s=timeout_s)
        except subprocess.TimeoutExpired:
            raise self.late(doing, timeout_s) from None
        err, done, _ = said.err.rpartition(DONE.encode())
        if not done:
            raise self.broken(doing, said)
        return Said(said.code, said.out, err)

    def checked_shell(self, doing: str, command: str, timeout_s: float = SHORT_S) -> bytes:
        """What ``command`` prints in the phone's shell. Raises RunError: as :meth:`shell`, or it failed."""
        said = self.shell(doing, command, timeout_s=timeout_s)
        if said.code:
            raise self.failure(doing, said)
        return said.out

    def script(self, doing: str, text: str) -> str:
        """What a shell script of any length prints there."""
        return self.shell(doing, "sh", stdin=text.encode()).out.decode(errors="replace")

    def make_folder(self, folder: str) -> None:
        """Make a folder, and those above it, that apps may read."""
        self.checked_shell(f"making {folder}", f"mkdir -p {folder} && chmod 755 {SCRATCH} {folder}")

    def push(self, paths: Sequence[Path], folder: str) -> None:
        """Copy files into a folder that exists, readable for apps."""
        size = sum(p.stat().st_size for p in paths)
        doing = f"copying {size:,} bytes to {folder}"
        self.checked(doing, "push", *map(str, paths), folder + "/", timeout_s=SHORT_S + size / SLOWEST)
        self.checked_shell(doing, "chmod a+r " + " ".join(f"{folder}/{p.name}" for p in paths))

    def pull(self, remote: str, size: int) -> bytes:
        """The bytes of a file of ``size`` bytes. Raises RunError: it isn't there, or has another size."""
        doing = f"reading {remote}"
        data = self.checked(doing, "exec-out", f"cat {remote}", timeout_s=SHORT_S + size / SLOWEST)
        if len(data) != size:
            raise self.broken(doing, Said(0, data[-200:], b""), f"gave {len(data):,} bytes, not {size:,}")
        return data

    def alive(self) -> bool:
        """Whether the phone still answers."""
        try:
            said = self.run("get-state", timeout_s=SHORT_S)
        except subprocess.TimeoutExpired:
            return False
        return said.code == 0 and said.out.strip() == b"device"

    def failure(self, doing: str, said: Said) -> RunError:
        """The error behind a command that failed."""
        if not self.alive():
            return self.lost(doing)
        for sign, (meaning, fix) in SIGNS.items():
            if sign in said.text:
                return RunError(f"{doing} failed on {self.serial}: {meaning}{said.tail()}", fix=fix)
        return RunError(f"{doing} failed on {self.serial} (exit code {said.code}){said.tail()}")

    def lost(self, doing: str) -> RunError:
        return RunError(
            f"the phone {self.serial} was lost while {doing}",
            fix=f"connect it again; what was left on it goes with: adb -s {self.serial} shell rm -rf {SCRATCH}",
        )

    def broken(self, doing: str, said: Said, how: str = "broke off") -> RunError:
        if not self.alive():
            return self.lost(doing)
        return RunError(f"{doing} {how} on {self.serial}{said.tail()}", fix="check the cable, then try again")

    def late(self, doing: str, limit_s: float) -> RunError:
        if not self.alive():
            return self.lost(doing)
        return RunError(
            f"{doing} took more than {limit_s:g} s on {self.serial}", fix="unlock the phone, check the cable, then: adb kill-server"
        )

    def _phones(self) -> list[Phone]:
        try:
            said = _run([self._program, "devices", "-l"], None, SHORT_S)
        except subprocess.TimeoutExpired:
            raise RunError(f"'adb devices' took more than {SHORT_S:g} s", fix="adb kill-server, then try again") from None
        if said.code:
            raise RunError(f"'adb devices' failed (exit code {said.code}){said.tail()}", fix="adb kill-server, then try again")
        return parse_phones(said.out.decode(errors="replace"))


def find_adb() -> str:
    """The adb program. Raises MissingToolError."""
    named = os.environ.get("ADB")
    found = shutil.which(named or "adb")
    if found is None:
        raise MissingToolError(
            f"there is no adb program{f' at {named}, which ADB names' if named else ''}",
            fix="apt install adb, or install the Android SDK platform tools; ADB=/path/to/adb names one elsewhere",
        )
    return found


def parse_phones(text: str) -> list[Phone]:
    """The phones in what ``adb devices -l`` printed."""
    found = []
    for line in text.splitlines():
        if match := re.match(r"(\S+)\s+([a-z]+)\b(.*)", line):
            model = re.search(r"\bmodel:(\S+)", match[3])
            found.append(Phone(match[1], match[2], model[1].replace("_", " ") if model else ""))
    return [p for p in found if p.serial not in ("List", "*")]


def _choose(serial: str | None, phones: Sequence[Phone]) -> str:
    listed = ", ".join(f"{p.serial} ({p.model or p.state})" for p in phones)
    if serial is None:
        if not phones:
            raise RunError(
                "no phone is connected",
                fix="turn on USB debugging in its developer options and plug it in, or: adb connect HOST:PORT",
            )
        if len(phones) > 1:
            raise UsageError(f"{len(phones)} phones are connected: {listed}", fix=f"name one: adb:{phones[0].serial}")
        serial = phones[0].serial
    phone = next((p for p in phones if p.serial == serial), None)
    if phone is None:
        raise UsageError(f"no phone {serial} is connected", fix=f"connected: {listed or 'none'}")
    if phone.state != "device":
        meaning, fix = STATES.get(phone.state, OTHER_STATE)
        raise RunError(f"the phone {serial} {meaning} (adb says '{phone.state}')", fix=fix)
    return serial


def _run(argv: Sequence[str], stdin: bytes | None, timeout_s: float) -> Said:
    """In a session of its own, so that a Ctrl-C meant for this process ends neither client nor server in the middle of a write."""
    done = subprocess.run(
        argv,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=timeout_s,
        start_new_session=True,
        check=False,
    )
    return Said(done.returncode, done.stdout, done.stderr)
