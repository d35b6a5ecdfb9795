"""What the generated C computes: the bytes of TFLite Micro's reference kernels."""

from __future__ import annotations

from qwtv2_edge.numerics import Numerics, packed_key
from qwtv2_edge_tflite.numerics import MICRO

#: packed 4-bit weights are unpacked when C is emitted, and then like any others
RULES = {**MICRO, packed_key("fully_connected"): MICRO["fully_connected"]}

NUMERICS: dict[str, Numerics] = {
    "c": Numerics("c", "c", "generated C, compiled for the machine it runs on", {"gcc": "12.2.0"}, RULES, runner="c", bare=True)
}
