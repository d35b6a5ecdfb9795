"""Another computer, reached by the user's own OpenSSH client: an ARM Linux board, most often.

Nothing is installed or written there. The worker's source travels on the command line of that computer's Python, and messages
go through the connection; when that breaks, the worker ends.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import zlib
from functools import cached_property
from typing import Any

from qwtv2_edge.errors import MissingToolError, QwtEdgeError, RunError, UsageError
from qwtv2_edge.runners.base import HOST_ONLY, WORKER, Command, family_of
from qwtv2_edge.runners.host import KINDS

#: seconds until a host that does not answer is given up, and until a command that should be short counts as hung
CONNECT_S, SHORT_S = 10, 60

#: A connection of its own for every call: no terminal, no questions, none of the user's forwardings or remote commands.
#: A host that is silent for 45 s is lost.
OPTIONS = {
    "BatchMode": "yes",
    "ClearAllForwardings": "yes",
    "ControlPath": "none",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "LogLevel": "INFO",  # below it, a host that falls silent is not reported
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "ServerAliveCountMax": "3",
    "ServerAliveInterval": "15",
}

DESTINATION = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][\w.@+-]*)@)?(?P<host>\w[\w.-]*|\[[0-9A-Fa-f:]+(?:%\w+)?\])(?::(?P<port>\d{1,5}))?", re.ASCII
)

#: what ssh says when it fails -> what that means, what to do about it
FAILURES: tuple[tuple[str, str, str], ...] = (
    ("Could not resolve hostname", "the name is not known", "check the name, or give it a HostName in ~/.ssh/config"),
    ("Connection refused", "nothing there accepts the connection", "check the port, and that the SSH server runs there"),
    ("[Tt]imed out|No route to host|Network is unreachable", "it does not answer", "check that it is switched on and reachable"),
    (
        "has changed and you have requested|IDENTIFICATION HAS CHANGED",
        "its host key is not the one that is known",
        "make sure that it is the right computer, then: ssh-keygen -R HOST",
    ),
    ("Host key verification failed", "its host key is not known yet", "connect once by hand: ssh DESTINATION"),
    (
        r"Permission denied \(|Too many authentication failures",
        "it does not let this user in without a password",
        "ssh-copy-id DESTINATION, or name the key in ~/.ssh/config; a key with a passphrase needs ssh-agent",
    ),
    ("onfiguration option|config file|Bad owner or permissions", "ssh rejects its configuration", "correct what ssh names"),
    (
        r"closed by (remote host|\S+ port)|[Rr]eset by|Broken pipe|not responding",
        "the connection was lost",
        "check its power and network, and start again",
    ),
)

#: What the Python there runs. It must parse in every Python, to say which one is too old. Should the connection break while a
#: kernel is at work, the kernel of the operating system ends the process, as that of the SSH server ends.
BOOT = (
    "import sys;"
    'sys.version_info<(3,10) and sys.exit("Python %d.%d is too old"%sys.version_info[:2]);'
    "import base64,ctypes,os,zlib;"
    'getattr(ctypes.CDLL(None),"prctl",lambda*_:0)(1,ctypes.c_ulong(9));'
    "sys.path[:]=[p for p in sys.path if p];"
    "os.environ.update(ENVIRONMENT);"
    'exec(compile(zlib.decompress(base64.b64decode("SOURCE")),"worker.py","exec"))'
)
#: answers in one line: {"machine", "python", "numpy"}
PROBE = 'import json,platform,sys,numpy;print(json.dumps({"machine":platform.machine(),"python":sys.version_info[:2]}))'


class SshPlace:
    """A computer that the OpenSSH client reaches; see ``base.Place``.

    Args:
        destination: ``[USER@]HOST[:PORT]``, where HOST may be a name from the user's ssh configuration.
        python: the Python there, as its login shell takes it; $QWTV2_SSH_PYTHON or ``python3`` if empty.
    Environment: QWTV2_SSH_CONFIG, an ssh configuration file in place of the user's and the system's.
    Raises: UsageError: not a destination; MissingToolError: no ssh client here.
    """

    def __init__(self, destination: str, python: str = "") -> None:
        match = DESTINATION.fullmatch(destination)
        if match is None or int(match["port"] or 1) not in range(1, 65536):
            raise UsageError(f"'{destination}' is not [USER@]HOST[:PORT]", fix="for example ssh:pi@raspberrypi.local")
        client = find_ssh()
        self.name = f"ssh:{destination}"
        self.destination = destination
        self.python = python or os.environ.get("QWTV2_SSH_PYTHON") or "python3"
        config = os.environ.get("QWTV2_SSH_CONFIG")
        options = {**OPTIONS, "ConnectTimeout": str(CONNECT_S)}
        host = match["host"].strip("[]")
        self._ssh = [
            *(client, "-T"),
            *(("-F", config) if config else ()),
            *(f"-o{key}={value}" for key, value in options.items()),
            *(("-p", match["port"]) if match["port"] else ()),
            "--",
            f"{match['user']}@{host}" if match["user"] else host,
        ]

    @property
    def family(self) -> str:
        """Processor family of the Python there. The first use connects. Raises RunError, MissingToolError."""
        return family_of(str(self._probed["machine"]))

    def command(self, runner: str, threads: int) -> Command:
        """See ``base.Place``. The first use connects. Raises RunError, MissingToolError."""
        assert self._probed
        environment = json.dumps({"OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "2"})
        source = base64.b64encode(zlib.compress(WORKER.read_bytes(), 9)).decode()
        return Command([*self._ssh, self._run_python(BOOT.replace("ENVIRONMENT", environment).replace("SOURCE", source))])

    def shell(self, script: str) -> str:
        """See ``base.Place``."""
        return self._short("exec /bin/sh", script)

    def how_to_get(self, runner: str) -> str:
        return f"on {self.destination}: {KINDS[runner][1]}; QWTV2_SSH_PYTHON names the Python there, now {self.python}"

    def lacks(self, runner: str) -> str:
        """See ``base.Place``."""
        return HOST_ONLY.get(runner, "")

    def ended(self, code: int, said: str) -> QwtEdgeError | None:
        """See ``base.Place``. ``code`` is ssh's: 255 for a failure of its own, else that of the command there."""
        if code == 255:
            for words, meaning, fix in FAILURES:
                if re.search(words, said):
                    fix = fix.replace("DESTINATION", self.destination).replace("HOST", self.destination.rpartition("@")[2])
                    return RunError(f"{self.name}: {meaning}{_last(said)}", fix=fix)
            # ssh has a reason for every failure of its own; a command that a signal ends gives none
            return RunError(f"{self.name}: the runtime's process was killed there{_last(said)}", fix="see the system log there (dmesg)")
        choose = "QWTV2_SSH_PYTHON names the Python to use there"
        if code == 127 or re.search(r"[Cc]ommand not found|Unknown command", said):
            return MissingToolError(f"{self.name}: there is no {self.python}{_last(said)}", fix=f"install Python 3.10 or newer; {choose}")
        if old := re.search(r"Python \d+\.\d+ is too old", said):
            return MissingToolError(f"{self.name}: {old[0]}", fix=f"install Python 3.10 or newer there; {choose}")
        if re.search(r"No module named '?numpy", said):
            return MissingToolError(f"{self.name}: {self.python} has no NumPy", fix=f"on {self.destination}: pip install numpy; {choose}")
        return None

    @cached_property
    def _probed(self) -> dict[str, Any]:
        """What the Python there says about itself, which also tells whether everything is in place."""
        boot = BOOT.replace("ENVIRONMENT", "{}").replace("SOURCE", base64.b64encode(zlib.compress(PROBE.encode())).decode())
        answer = self._short(self._run_python(boot))
        if not re.fullmatch(r"\{.*\}\n", answer, re.ASCII):
            raise RunError(
                f"{self.name}: the login shell prints {answer.partition(chr(10))[0][:80]!r} before a command starts",
                fix="keep the shell's start-up files there (~/.bashrc) silent when no terminal is attached",
            )
        return dict(json.loads(answer))

    def _run_python(self, code: str) -> str:
        """The command line for the login shell there. The process takes the shell's place, so that its parent is the server."""
        return f"exec {self.python} -c {shlex.quote(code)}"

    def _short(self, command: str, given: str = "") -> str:
        """What ``command`` prints there when it reads ``given``."""
        try:
            done = subprocess.run([*self._ssh, command], input=given.encode(), capture_output=True, timeout=SHORT_S, check=False)
        except subprocess.TimeoutExpired:
            raise RunError(f"{self.name}: no answer within {SHORT_S} s", fix="check that it is reachable and not overloaded") from None
        said = done.stderr.decode(errors="replace")
        if done.returncode:
            raise self.ended(done.returncode, said) or RunError(f"{self.name}: a command failed (exit code {done.returncode}){_last(said)}")
        return done.stdout.decode(errors="replace")


def find_ssh() -> str:
    """The ssh program. Raises MissingToolError."""
    found = shutil.which("ssh")
    if found is None:
        raise MissingToolError("there is no ssh on this machine", fix="install OpenSSH's client (apt install openssh-client)")
    return found


def _last(said: str) -> str:
    """The last line of what was said, ready to append to a message."""
    lines = [line.strip(" |\r") for line in said.splitlines() if line.strip(" |\r")]
    return f" ({lines[-1]})" if lines else ""
