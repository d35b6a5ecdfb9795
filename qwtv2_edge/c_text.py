"""Numbers, names and comments as C source, for whatever writes C."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: characters of a line of numbers
WIDTH = 120

RESERVED = frozenset(
    {
        *("asm", "auto", "bool", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern"),
        *("false", "float", "for", "goto", "if", "inline", "int", "long", "main", "register", "restrict", "return", "short", "signed"),
        *("sizeof", "static", "struct", "switch", "true", "typedef", "union", "unsigned", "void", "volatile", "while"),
    }
)


def number_lines(texts: Iterable[str]) -> str:
    """Numbers, already as text, each with a comma behind it, in indented lines of at most WIDTH characters."""
    lines, line = [], "   "
    for text in texts:
        if len(line) + len(text) + 2 > WIDTH:
            lines.append(line)
            line = "   "
        line += f" {text},"
    return "\n".join([*lines, line])


def identifier(name: str, fallback: str = "node") -> str:
    """``name`` with everything that C identifiers can't hold turned into underscores, at most 48 characters."""
    text = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:48].rstrip("_") or fallback
    return f"{fallback}_{text}" if text[0].isdigit() or text in RESERVED else text


def symbol(network: str) -> str:
    """What all public names of the network called ``network`` begin with, so that several can be linked together."""
    return identifier(network, "model").lower()


def comment(text: str) -> str:
    """``text`` in printable ASCII on one line, without the character pairs that mean something inside a comment."""
    text = " ".join(text.split()).encode("ascii", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else "." for c in text)
    return text.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?").replace("\\", "/")
