"""Ops that read or give positions: table look-up, largest entry, masking."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwtv2_edge.errors import UsageError
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops import sequence
from qwtv2_edge.ops.spec import NoAttrs, OpSpec, QuantRule, Types, need


@dataclass(frozen=True, slots=True)
class ArgmaxAttrs:
    """axis: non-negative. The first of equal entries wins. keep_dims: the axis stays, with size 1."""

    axis: int
    keep_dims: bool = False


@dataclass(frozen=True, slots=True)
class MaskFillAttrs:
    """fill: the real value where the mask is 0; low enough that a softmax gives it nothing."""

    fill: float = -1e4


def _embedding_infer(types: Types, a: NoAttrs) -> tuple[TensorType, ...]:
    indices, table = types
    need(indices.dtype == "int32", f"indices are {indices.dtype}, expected int32")
    need(len(table.shape) == 2, f"the table has shape {table.shape}, expected (entries, width)")
    return (TensorType((*indices.shape, table.shape[1]), table.dtype),)


def embedding(arrays, a: NoAttrs):
    """table[indices], float or codes. Raises UsageError on an index outside the table."""
    indices, table = arrays
    if indices.size and not (indices.min() >= 0 and indices.max() < len(table)):
        raise UsageError(
            f"index {int(indices.min() if indices.min() < 0 else indices.max())} is outside a table of {len(table)} entries",
            fix="give indices from 0 to the size of the vocabulary less one",
        )
    return (table[indices],)


def _argmax_infer(types: Types, a: ArgmaxAttrs) -> tuple[TensorType, ...]:
    (x,) = types
    need(0 <= a.axis < len(x.shape), f"axis {a.axis} does not fit shape {x.shape}")
    rest = tuple(1 if i == a.axis else d for i, d in enumerate(x.shape) if a.keep_dims or i != a.axis)
    return (TensorType(rest, "int32"),)


def argmax(arrays, a: ArgmaxAttrs):
    """int32 position of the first largest entry, of reals or codes."""
    found = np.argmax(arrays[0], axis=a.axis).astype(np.int32)
    return (np.expand_dims(found, a.axis) if a.keep_dims else found,)


def _mask_infer(types: Types, a: MaskFillAttrs) -> tuple[TensorType, ...]:
    x, mask = types
    need(np.broadcast_shapes(x.shape, mask.shape) == x.shape, f"a mask of shape {mask.shape} does not fit {x.shape}")
    return (TensorType(x.shape, x.dtype),)


SPECS = (
    OpSpec(
        "embedding",
        NoAttrs,
        _embedding_infer,
        embedding,
        lambda arrays, a, in_types, out_types, numerics: embedding(arrays, a),
        QuantRule("lookup"),
        data_inputs=1,
    ),
    OpSpec(
        "argmax",
        ArgmaxAttrs,
        _argmax_infer,
        argmax,
        lambda arrays, a, in_types, out_types, numerics: argmax(arrays, a),
        QuantRule("index"),
        batch=lambda a, types: a.axis != 0,
    ),
    OpSpec(
        "mask_fill",
        MaskFillAttrs,
        _mask_infer,
        lambda arrays, a: (np.where(arrays[1] > 0.5, arrays[0], np.float32(a.fill)),),
        sequence.mask_fill_integer,
        QuantRule("mask"),
    ),
)
