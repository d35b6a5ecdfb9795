"""How much memory TFLite Micro takes for one file: as its own recording allocator tells, and as it accepts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from qwtv2_edge.errors import RunError
from qwtv2_edge.runners.host import Session

AREAS = re.compile(r"Arena allocation (head|tail) (\d+) bytes")
PARTS = re.compile(r"'([^']+)' used (\d+) bytes")
#: parts of the tail that are arrays of structures of pointers and 4-byte fields in equal number, half as large on a 32-bit target
#: Source: tensorflow/lite/core/c/common.h :: TfLiteEvalTensor, TfLiteNode; tensorflow/lite/micro/micro_allocator.h :: NodeAndRegistration
POINTERS = ("TfLiteEvalTensor data", "NodeAndRegistration struct")


@dataclass(frozen=True, slots=True)
class Arena:
    """Bytes of a TFLite Micro arena, with its reference kernels on a 64-bit machine.

    Attributes:
        head: the planned part: activations and kernels' scratch buffers.
        tail: what persists: the interpreter's records and kernels' own data.
        pointers: the part of ``tail`` that a 32-bit target halves.
        bytes: the smallest arena that it accepts. More than head and tail where the head is small: planning needs memory for a
            moment, which activations take over later.
    """

    head: int
    tail: int
    pointers: int
    bytes: int

    @property
    def bytes_32(self) -> int:
        """An upper estimate for 32-bit targets: POINTERS halve, all else, mostly int32 arrays per channel, is taken as it is here."""
        return self.bytes - self.pointers // 2


def arena_of(data: bytes) -> Arena:
    """Load a ``.tflite`` in TFLite Micro, read what it allocated, and find the smallest arena that it accepts.

    Raises: MissingToolError without TFLite Micro's interpreter; RunError where it refuses the file, with its own words.
    """
    with Session("tflite-micro", data) as session:
        areas = {name: int(size) for name, size in AREAS.findall(session.allocations)}
        if set(areas) != {"head", "tail"}:
            said = session.allocations.strip()[:200]
            raise RunError(f"TFLite Micro told nothing of its arena: {said!r}", fix="install the version that doctor names")
        pointers = sum(int(size) for name, size in PARTS.findall(session.allocations) if name in POINTERS)
        return Arena(areas["head"], areas["tail"], pointers, session.smallest_arena(areas["head"] + areas["tail"]))
