"""How an op is declared: attributes, shape rule, float meaning, exact integer meaning, quantization rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwtv2_edge.errors import GraphError
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.numerics import Numerics

Arrays = Sequence[np.ndarray]
Types = Sequence[TensorType]

Infer = Callable[[Types, Any], tuple[TensorType, ...]]
#: (input arrays float32, attrs) -> output arrays float32
Reference = Callable[[Arrays, Any], tuple[np.ndarray, ...]]
#: (input code arrays, attrs, input types, output types, numerics) -> output code arrays
Integer = Callable[[Arrays, Any, Types, Types, Numerics], tuple[np.ndarray, ...]]

ACTIVATIONS: dict[str, tuple[float, float]] = {
    "none": (-np.inf, np.inf),
    "relu": (0.0, np.inf),
    "relu6": (0.0, 6.0),
    "relu_n1_to_1": (-1.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class QuantRule:
    """How an op's tensors get scales; data for the constraint solver in ``quantization.apply``.

    kind:
        "weighted"  per-channel weights and an int32 bias; output observed
        "free"      output observed
        "same"      every data input and every output share one scale and zero point
        "fixed"     output scale and zero point prescribed below
        "lookup"    rows of a constant table; the table and the output share one scale and zero point
        "index"     any input, int32 positions come out
        "mask"      first input and output share one scale and zero point; the second holds 0 or 1
        "boundary"  changes between float and integer (quantize, dequantize)
    """

    kind: str
    scale: float = 0.0
    zero_point: int = 0


@dataclass(frozen=True, slots=True)
class OpSpec:
    """One op. ``data_inputs``: how many leading inputs are activations (the rest are constants); None: all.

    batch: how axis 0 behaves when a graph captured with batch 1 runs with more samples at once:
    a function (attrs, in_types) -> bool, True where samples stay independent along axis 0.
    stretch: (attrs, factor) -> the attributes for ``factor`` times as many samples, for ops whose attributes name
    the extent of axis 0; None for all others.
    """

    name: str
    attrs: type
    infer: Infer
    reference: Reference
    integer: Integer
    quant: QuantRule
    data_inputs: int | None = None
    batch: Callable[[Any, Types], bool] = lambda attrs, types: True
    stretch: Callable[[Any, int], Any] | None = None


@dataclass(frozen=True, slots=True)
class NoAttrs:
    """An op without attributes."""


def need(condition: bool, message: str, fix: str = "") -> None:
    """Raise GraphError unless ``condition`` holds."""
    if not condition:
        raise GraphError(message, fix=fix)


def activate(x: np.ndarray, activation: str) -> np.ndarray:
    """Apply a fused activation to real values (float meaning)."""
    lo, hi = ACTIVATIONS[activation]
    if lo == -np.inf and hi == np.inf:
        return x
    return np.clip(x, np.float32(lo), np.float32(hi))
