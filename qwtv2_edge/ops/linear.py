"""Fully connected: y[..., o] = b[o] + sum_k x[..., k] * w[o, k]."""

from __future__ import annotations

from dataclasses import dataclass

from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops import weighted
from qwtv2_edge.ops.conv import WEIGHTED
from qwtv2_edge.ops.spec import OpSpec, Types, activate, need


@dataclass(frozen=True, slots=True)
class FullyConnectedAttrs:
    """activation: fused, applied after requantization."""

    activation: str = "none"


def _infer(types: Types, a: FullyConnectedAttrs) -> tuple[TensorType, ...]:
    x, w, b = types
    need(len(w.shape) == 2 and len(x.shape) >= 2, f"fully_connected takes x of rank >= 2 and w of rank 2, got {x.shape}, {w.shape}")
    need(x.shape[-1] == w.shape[1], f"input {x.shape} does not match weights {w.shape}")
    need(b.shape == (w.shape[0],), f"bias of shape {b.shape}, expected ({w.shape[0]},)")
    return (TensorType((*x.shape[:-1], w.shape[0]), x.dtype),)


def _reference(arrays, a: FullyConnectedAttrs):
    x, w, b = arrays
    return (activate(x @ w.T + b, a.activation),)


SPECS = (
    OpSpec(
        "fully_connected",
        FullyConnectedAttrs,
        _infer,
        _reference,
        weighted.fully_connected_integer,
        WEIGHTED,
        data_inputs=1,
    ),
)
