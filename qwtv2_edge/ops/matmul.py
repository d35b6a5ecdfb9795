"""Products of two activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops import sequence
from qwtv2_edge.ops.spec import OpSpec, QuantRule, Types, need


@dataclass(frozen=True, slots=True)
class BatchMatmulAttrs:
    """y[..., m, n] = sum_k a[..., m, k] * b[..., k, n]. transpose_b: the second operand comes as (..., n, k)."""

    transpose_b: bool = False


def _infer(types: Types, a: BatchMatmulAttrs) -> tuple[TensorType, ...]:
    x, y = types
    need(len(x.shape) == len(y.shape) >= 2, f"batch_matmul takes operands of one rank, 2 or more, got {x.shape} and {y.shape}")
    need(x.shape[:-2] == y.shape[:-2], f"leading axes of {x.shape} and {y.shape} differ")
    k, n = y.shape[::-1][:2] if a.transpose_b else y.shape[-2:]
    need(x.shape[-1] == k, f"inner sizes of {x.shape} and {y.shape} differ")
    return (TensorType((*x.shape[:-1], n), x.dtype),)


def _reference(arrays, a: BatchMatmulAttrs):
    x, y = arrays
    return (np.matmul(x, y.swapaxes(-1, -2) if a.transpose_b else y),)


SPECS = (
    OpSpec(
        "batch_matmul",
        BatchMatmulAttrs,
        _infer,
        _reference,
        sequence.batch_matmul_integer,
        QuantRule("free"),
        batch=lambda a, types: len(types[0].shape) > 2,
    ),
)
