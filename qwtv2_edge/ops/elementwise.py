"""Binary element-wise ops with NumPy broadcasting. Either input may be a constant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwtv2_edge.errors import GraphError
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops import integers
from qwtv2_edge.ops.spec import OpSpec, QuantRule, Types, activate


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


def _reference(f: np.ufunc):
    return lambda arrays, a: (activate(f(arrays[0], arrays[1]), a.activation),)


SPECS = tuple(
    OpSpec(
        name,
        BinaryAttrs,
        _infer,
        _reference(f),
        integer,
        QuantRule("free"),
    )
    for name, f, integer in (
        ("add", np.add, integers.add_integer),
        ("sub", np.subtract, integers.sub_integer),
        ("mul", np.multiply, integers.mul_integer),
    )
)
