"""How much memory TFLite Micro takes for one file, as its own recording allocator tells."""

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
    """

    head: int
    tail: int
    pointers: int

    @property
    def bytes(self) -> int:
        """The smallest arena on this 64-bit machine."""
        return self.head + self.tail

    @property
    def bytes_32(self) -> int:
        """An upper estimate for 32-bit targets: POINTERS halve, all else, mostly int32 arrays per channel, is taken as it is here."""
        return self.head + self.tail - self.pointers // 2


def arena_of(data: bytes) -> Arena:
    """Load a ``.tflite`` in TFLite Micro and read what it allocated.

    Raises: MissingToolError without TFLite Micro's interpreter; RunError where it refuses the file, with its own words.
    """
    with Session("tflite-micro", data) as session:
        text = session.allocations
    areas = {name: int(size) for name, size in AREAS.findall(text)}
    if set(areas) != {"head", "tail"}:
        raise RunError(f"TFLite Micro told nothing of its arena: {text.strip()[:200]!r}", fix="install the version that doctor names")
    return Arena(areas["head"], areas["tail"], sum(int(size) for name, size in PARTS.findall(text) if name in POINTERS))
