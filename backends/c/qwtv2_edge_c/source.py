"""Pieces of C text: arrays, initialisers, kernels with what they include."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from qwtv2_edge.c_text import WIDTH, number_lines

KERNELS = Path(__file__).with_name("kernels")
ONCE = "#pragma once\n"
INCLUDE = re.compile(r'#include "(\w+)\.h"\n')
#: headers of C itself go to the top of the file
SYSTEM_INCLUDE = re.compile(r"#include (<(?:stdint|string)\.h>)\n")
WORD = re.compile(r"[A-Za-z_]\w*")


def kernel_text(name: str) -> str:
    """One file of the kernel library."""
    return (KERNELS / f"{name}.h").read_text().removeprefix(ONCE)


def with_included(names: Iterable[str]) -> list[str]:
    """``names`` and the files that they include, each once and after what it includes."""
    order: list[str] = []

    def add(name: str) -> None:
        if name not in order:
            for other in INCLUDE.findall(kernel_text(name)):
                add(other)
            order.append(name)

    for name in names:
        add(name)
    return order


def merged(names: Iterable[str]) -> tuple[list[str], str]:
    """(system headers, text) of kernels and all that they include."""
    texts = [kernel_text(n) for n in with_included(names)]
    headers = sorted({h for text in texts for h in SYSTEM_INCLUDE.findall(text)})
    bodies = [INCLUDE.sub("", SYSTEM_INCLUDE.sub("", text)).strip("\n") for text in texts]
    return headers, "\n\n".join(b for b in bodies if b)


@cache
def kernel_words() -> frozenset[str]:
    """Every word of the kernel library: names that the network's own must not take."""
    return frozenset(w for path in KERNELS.glob("*.h") for w in WORD.findall(path.read_text()))


def array(ctype: str, name: str, values: np.ndarray) -> str:
    """Definition of a constant array: of numbers, or of structs where each takes a row of ``values``."""
    structs = ctype.startswith("struct ")
    texts = map(initialiser, values.tolist() if structs else values.ravel().tolist())
    return f"static const {ctype} {name}[{len(values) if structs else values.size}] = {{\n{number_lines(texts)}\n}};"


@dataclass(frozen=True)
class OnlyCmsis:
    """A field of a struct that is there for CMSIS-NN alone."""

    value: Any


def only_cmsis(text: str) -> str:
    return f"#ifdef QWTV2_CMSIS_NN\n{text}\n#endif"


def initialiser(value: Any, indent: str = "") -> str:
    """A number, the name of something, or braces: a mapping for a struct, a sequence for an array. Structs of structs take lines."""
    if isinstance(value, Mapping):
        flat = not any(isinstance(v, Mapping | OnlyCmsis) for v in value.values())
        line = "{" + ", ".join(f".{k} = {initialiser(v)}" for k, v in value.items()) + "}" if flat else ""
        if flat and len(line) < WIDTH - 40:
            return line
        inner, lines = indent + "    ", []
        for k, v in value.items():
            line = f"{inner}.{k} = {initialiser(v.value if isinstance(v, OnlyCmsis) else v, inner)},"
            lines.append(only_cmsis(line) if isinstance(v, OnlyCmsis) else line)
        return "\n".join(["{", *lines, indent + "}"])
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "{" + ", ".join(initialiser(v, indent) for v in value) + "}"
    return value if isinstance(value, str) else str(int(value))


def struct(tag: str, name: str, fields: Mapping[str, Any]) -> str:
    """Definition of a constant struct."""
    return f"static const struct {tag} {name} = {initialiser(fields)};"
