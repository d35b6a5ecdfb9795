"""Binary element-wise ops with NumPy broadcasting (either input may be a constant), and a sum with a gain per channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwtv2_edge.errors import GraphError
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops import integers, sequence
from qwtv2_edge.ops.spec import NoAttrs, OpSpec, QuantRule, Types, activate, need


@dataclass(frozen=True, slots=True)
class BinaryAttrs:
    """activation: fused, applied after requantization."""

    activation: str = "none"


def _infer(types: Types, a: BinaryAttrs) -> tuple[TensorType, ...]:
    x, y = types
    try:
        shape = np.broadcast_shapes(x.shape, y.shape)
    except ValueError as exc:
        raise GraphError(f"shapes {x.shape} and {y.shape} do not broadcast") from exc
    return (TensorType(tuple(int(d) for d in shape), x.dtype),)


def _channel_add_infer(types: Types, a: NoAttrs) -> tuple[TensorType, ...]:
    x, y, gain = types
    need(x.shape == y.shape, f"shapes {x.shape} and {y.shape} differ")
    need(gain.shape == x.shape[-1:], f"gains {gain.shape} do not match the last axis of {x.shape}")
    return (TensorType(x.shape, x.dtype),)


def _reference(f: np.ufunc):
    return lambda arrays, a: (activate(f(arrays[0], arrays[1]), a.activation),)


SPECS = (
    *(
        OpSpec(name, BinaryAttrs, _infer, _reference(f), integer, QuantRule("free"))
        for name, f, integer in (
            ("add", np.add, integers.add_integer),
            ("sub", np.subtract, integers.sub_integer),
            ("mul", np.multiply, integers.mul_integer),
        )
    ),
    # the sum a residual branch ends in, where quantization.smooth has evened out the branch's channels
    OpSpec(
        "channel_add",
        NoAttrs,
        _channel_add_infer,
        lambda arrays, a: (arrays[0] + arrays[1] * arrays[2],),
        sequence.channel_add_integer,
        QuantRule("free"),
        data_inputs=2,
    ),
)
