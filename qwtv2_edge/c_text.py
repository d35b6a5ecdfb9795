"""Numbers as C source, for whatever writes C."""

from __future__ import annotations

from collections.abc import Iterable

#: characters of a line of numbers
WIDTH = 120


def number_lines(texts: Iterable[str]) -> str:
    """Numbers, already as text, each with a comma behind it, in indented lines of at most WIDTH characters."""
    lines, line = [], "   "
    for text in texts:
        if len(line) + len(text) + 2 > WIDTH:
            lines.append(line)
            line = "   "
        line += f" {text},"
    return "\n".join([*lines, line])
