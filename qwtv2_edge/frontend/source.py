"""Finds the user's own line in exceptions and export traces."""

from __future__ import annotations

import linecache
import os
import re
import sys
from collections.abc import Iterable

from qwtv2_edge.ir.graph import Location

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d{1,9}), in [^\n]*(?:\n\s+(?P<code>[^\n]*))?')


def _torch_folder() -> str:
    torch = sys.modules.get("torch")
    return os.path.dirname(os.path.abspath(str(torch.__file__))) + os.sep if torch is not None else _PACKAGE


def _rank(file: str) -> int:
    """2: the user's own file; 1: a package that they installed; 0: torch, the standard library, or this package."""
    if file.startswith("<") or not file:
        return 0
    path = os.path.abspath(file)
    if path.startswith((_PACKAGE, _torch_folder())):
        return 0
    if any(part in path for part in _INSTALLED):
        return 1
    return 0 if path.startswith(_STDLIB) else 2


def _best(frames: Iterable[tuple[str, int, str]]) -> Location:
    """The deepest frame of the highest rank."""
    found, best = Location(), 1
    for file, line, code in frames:
        rank = _rank(file)
        if rank >= best:
            found, best = Location("", file, line, code), rank
    return found


def line_of_exception(exc: BaseException) -> Location:
    """The user's deepest own line in a traceback; for a SyntaxError the line that does not parse."""
    if isinstance(exc, SyntaxError) and exc.filename:
        return Location("", exc.filename, exc.lineno or 0, (exc.text or "").strip())
    frames = []
    tb = exc.__traceback__
    while tb is not None:
        file = tb.tb_frame.f_code.co_filename
        frames.append((file, tb.tb_lineno, linecache.getline(file, tb.tb_lineno).strip()))
        tb = tb.tb_next
    return _best(frames)


def line_of_trace(trace: str) -> Location:
    """The user's deepest own line in a formatted stack, as ``torch.export`` keeps one per node."""
    return _best((m["file"], int(m["line"]), (m["code"] or "").strip()) for m in _FRAME.finditer(trace))
