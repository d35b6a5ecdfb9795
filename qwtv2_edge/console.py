"""What a command shows and where: results on standard output, everything else on standard error.

With ``--json`` standard output carries one document and nothing else, whatever libraries print: file
descriptor 1 points to standard error while a command runs, and results go to a private copy of it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qwtv2_edge.errors import QwtEdgeError, RunError

SCHEMA_VERSION = 1
#: a stage shorter than this leaves no line where there is no terminal
SHORT_S = 1.0


class Interrupted(BaseException):
    """A signal asked the command to stop."""


@dataclass
class Ui:
    """One command's output.

    Attributes:
        json, quiet, verbose: the three options every command has.
        shown: a result was given; with ``--json`` an error that follows (of a run cut short) must not be a second document.
        stop: checked at each progress step, so that a swallowed interrupt still ends the command.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    stop: Callable[[], bool] = lambda: False
    stream: TextIO = field(default_factory=lambda: sys.stdout)
    shown: bool = False

    def result(self, document: Mapping[str, Any], show: Callable[[Console], None]) -> None:
        """The command's result, once: ``document`` with ``--json``, else ``show`` on a console (nothing with ``--quiet``)."""
        self.shown = True
        if self.json:
            self.stream.write(
                json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            )
        elif not self.quiet:
            show(Console(file=self.stream, width=None if self.stream.isatty() else 160, highlight=False))
        self.stream.flush()

    def log(self, text: str) -> None:
        """One line on standard error."""
        if not self.quiet:
            Console(stderr=True, highlight=False, soft_wrap=True).print(escape(text))

    def error(self, error: BaseException, exit_code: int) -> None:
        """One error: a document with ``--json``, and words on standard error without."""
        if self.json and not self.shown:
            self.stream.write(
                json.dumps({"schema_version": SCHEMA_VERSION, "error": error_entry(error), "exit_code": exit_code}, indent=1) + "\n"
            )
            self.stream.flush()
        else:
            Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error[/] {escape(str(error))}")

    @contextmanager
    def progress(self) -> Iterator[Callable[[str, int, int], None]]:
        """A callback (stage, done, total) that draws a bar with a time estimate, or logs lines without a terminal."""
        if self.quiet:
            yield self._checked(lambda stage, done, total: None)
        elif sys.stderr.isatty():
            with Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=not self.verbose,
            ) as bars:
                tasks: dict[str, TaskID] = {}

                def draw(stage: str, done: int, total: int) -> None:
                    if stage not in tasks:
                        for task in tasks.values():
                            bars.stop_task(task)
                        tasks[stage] = bars.add_task(stage, total=total or None)
                    bars.update(tasks[stage], completed=done, total=total or None)

                yield self._checked(draw)
        else:
            lines = _Lines(self.log)
            yield self._checked(lines.update)
            lines.finish()

    def _checked(self, show: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
        def update(stage: str, done: int, total: int = 0) -> None:
            if self.stop():
                raise Interrupted
            show(stage, done, total)

        return update


@dataclass
class _Lines:
    """Progress without a terminal: a line when a stage ends, and every ten seconds inside one, with the time left."""

    log: Callable[[str], None]
    stage: str = ""
    start: float = 0.0
    last: float = 0.0

    def update(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.finish()
            self.stage, self.start, self.last = stage, now, now
        elif now - self.last >= 10.0 and total and done:
            self.last = now
            left = (now - self.start) / done * (total - done)
            self.log(f"{stage}: {done} of {total}, about {left:.0f} s left")

    def finish(self) -> None:
        elapsed = time.monotonic() - self.start
        if self.stage and elapsed >= SHORT_S:
            self.log(f"{self.stage}: {elapsed:.1f} s")
        self.stage = ""


def error_entry(error: BaseException) -> dict[str, Any]:
    """The "error" part of a JSON document."""
    entry = {"type": type(error).__name__, "message": str(error), "node": "", "source": "", "fix": ""}
    if isinstance(error, QwtEdgeError):
        entry.update(message=error.message, node=error.node, source=error.source, fix=error.fix)
        problems = getattr(error, "problems", ())
        if problems:
            entry["problems"] = [{k: getattr(p, k) for k in ("code", "node", "source", "message", "fix")} for p in problems]  # type: ignore[assignment]
    return entry


@contextmanager
def private_stdout() -> Iterator[TextIO]:
    """A text stream on the real standard output; meanwhile everything else that writes there lands on standard error."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError as exc:
        raise RunError("standard output is closed", fix="run the command with standard output open") from exc
    os.dup2(2, 1)
    stream = os.fdopen(os.dup(kept), "w", encoding="utf-8")
    try:
        yield stream
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        with suppress(BrokenPipeError):  # the reader has left
            stream.close()
