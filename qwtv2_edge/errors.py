"""Every exception this package raises.

::

    QwtEdgeError
    ├── UsageError              wrong arguments, wrong files, unknown recipe keys            exit 2
    │   └── RecipeError
    ├── ImportGraphError        a network that can't be captured (lists every offending op)  exit 2
    ├── GraphError              a graph that breaks an IR rule; a corrupt .qir or .tflite    exit 2
    ├── CalibrationError        unusable calibration data                                    exit 2
    ├── QuantizeError           numbers that have no integer form                            exit 2
    │   └── RuntimeLimitError   values on which a runtime itself fails                       exit 2
    ├── CompensationError       a correction that can't be folded                            exit 2
    ├── EmitError               a graph a target can't take                                  exit 2
    │   └── UnsupportedOpError
    ├── RunError                a runtime failed or crashed                                  exit 1
    ├── MissingToolError        a runtime or tool is not installed                           exit 3
    └── MismatchError           a runtime's bytes differ from the simulator's                exit 1

A leaf raises the numbers and a ``fix``; :func:`locate` adds the node and the user's source line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwtv2_edge.ir.graph import Node


class QwtEdgeError(Exception):
    """Base class. ``str(error)`` is the whole message, ready to print.

    Args:
        message: what is wrong, with the numbers in it.
        fix: what the user can do about it, or "".
        node: name of the node (module path), or "".
        source: the user's own source line, ``file:line  code``, or "".
    """

    exit_code = 2

    def __init__(self, message: str, *, fix: str = "", node: str = "", source: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.node = node
        self.source = source

    def __str__(self) -> str:
        head = f"{self.node}: {self.message}" if self.node else self.message
        lines = [head]
        if self.source:
            lines.append(f"  from  {self.source}")
        if self.fix:
            lines.append(f"  fix   {self.fix}")
        return "\n".join(lines)


class UsageError(QwtEdgeError):
    """Wrong arguments or unusable files."""


class RecipeError(UsageError):
    """An unknown key or an illegal value in a recipe."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why a network can't be taken: a stable code, the place, and the words."""

    code: str
    node: str
    source: str
    message: str
    fix: str = ""


class _ListedError(QwtEdgeError):
    """An error that holds every problem found in one pass."""

    def __init__(self, message: str, problems: tuple[Problem, ...] = (), *, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.problems = problems

    def __str__(self) -> str:
        lines = [super().__str__()]
        for p in self.problems:
            lines.append(f"  [{p.code}] {p.node}: {p.message}")
            if p.source:
                lines.append(f"      from  {p.source}")
            if p.fix:
                lines.append(f"      fix   {p.fix}")
        return "\n".join(lines)


class ImportGraphError(_ListedError):
    """The network can't be captured. ``problems`` holds every reason found in one pass."""


class GraphError(QwtEdgeError):
    """A graph breaks a rule of the IR, or a file that holds one is corrupt."""


class CalibrationError(QwtEdgeError):
    """The calibration data can't be used."""


class QuantizeError(QwtEdgeError):
    """Numbers that have no integer form."""


class RuntimeLimitError(QuantizeError):
    """Values on which the runtime itself fails, so that there are no bytes to predict."""


class CompensationError(QwtEdgeError):
    """A correction that can't be folded exactly."""


class EmitError(QwtEdgeError):
    """A target can't take the graph."""


class UnsupportedOpError(_ListedError, EmitError):
    """A target has no form for some ops. ``problems`` holds every one found in one pass."""


class RunError(QwtEdgeError):
    """A runtime refused an artifact, failed or crashed."""

    exit_code = 1


class MissingToolError(QwtEdgeError):
    """A runtime or tool that the call needs is not installed."""

    exit_code = 3


class MismatchError(QwtEdgeError):
    """A runtime computed other bytes than the simulator."""

    exit_code = 1


@contextmanager
def locate(node: Node) -> Iterator[None]:
    """Add the node's name and source line to any error raised inside that has none yet."""
    try:
        yield
    except QwtEdgeError as error:
        if not error.node:
            error.node = f"{node.op} '{node.name}'"
            error.source = error.source or str(node.location)
        raise
