"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from qwtv2_edge.errors import UsageError


def make_folder(path: Path) -> None:
    """Create a folder and those above it. Raises UsageError when that can't be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise UsageError(f"can't create {path}: {exc.strerror or exc}", fix="check the folder above it and its permissions") from exc


def read_bytes(path: Path) -> bytes:
    """All of a file. Raises UsageError."""
    try:
        return path.read_bytes()
    except OSError as exc:
        raise UsageError(f"can't read {path}: {exc.strerror or exc}", fix="check the path and its permissions") from exc


def check_writable(path: Path) -> None:
    """Before long work: raise UsageError where ``path`` could not be written after it. Nothing stays behind."""
    if path.is_dir():
        raise UsageError(f"can't write {path}: it is a folder", fix="name a file")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as exc:
        raise _unwritable(path, exc) from exc


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write ``data`` to a temporary file beside ``path``, then rename it into place.

    Raises: UsageError when the folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
            temporary = Path(handle.name)
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as exc:
        raise _unwritable(path, exc) from exc
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _unwritable(path: Path, exc: OSError) -> UsageError:
    return UsageError(f"can't write {path}: {exc.strerror or exc}", fix="check the folder, its permissions and the free space")
