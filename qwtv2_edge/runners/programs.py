"""Calls programs that start others, such as compilers: an interrupt ends all of them, and their temporary files go too."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path


def call(
    argv: Sequence[str], *, folder: Path | None = None, env: Mapping[str, str] | None = None, together: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and catch what it prints.

    Args:
        folder: where it runs, and where it keeps its temporary files, so that they go with the folder.
        env: environment variables beside those of this process.
        together: what it writes to standard error comes with what it writes to standard output.
    """
    own = {} if folder is None else {"TMPDIR": str(folder.absolute())}
    with subprocess.Popen(
        argv,
        cwd=folder,
        env={**os.environ, **own, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if together else subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate()
        except BaseException:
            with suppress(ProcessLookupError):  # it has ended in the meantime
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err or "")
