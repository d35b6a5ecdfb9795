"""Pooling, reductions, softmax. Spatial pooling is over axes 1 and 2 of NHWC; padding never enters the result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops import integers, kernels, sequence
from qwtv2_edge.ops.conv import Pair, _spatial
from qwtv2_edge.ops.spec import OpSpec, QuantRule, Types, need


@dataclass(frozen=True, slots=True)
class PoolAttrs:
    """kernel, stride: (y, x). padding: ((top, bottom), (left, right)). Averages divide by the valid taps."""

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))


@dataclass(frozen=True, slots=True)
class ReduceAttrs:
    """axes: non-negative, sorted."""

    axes: tuple[int, ...]
    keep_dims: bool = False


@dataclass(frozen=True, slots=True)
class SoftmaxAttrs:
    """softmax(beta * x) over the last axis."""

    beta: float = 1.0


def _pool_infer(types: Types, a: PoolAttrs) -> tuple[TensorType, ...]:
    (x,) = types
    need(len(x.shape) == 4, f"pooling takes rank 4, got {x.shape}")
    for k, p in zip(a.kernel, a.padding, strict=True):
        need(max(p) < k, f"padding {p} is not smaller than the window {k}")
    return (_spatial(x, a.kernel, x.shape[3], a.stride, a.padding, (1, 1)),)


def _reduce_infer(types: Types, a: ReduceAttrs) -> tuple[TensorType, ...]:
    (x,) = types
    need(all(0 <= i < len(x.shape) for i in a.axes), f"axes {a.axes} do not fit shape {x.shape}")
    if a.keep_dims:
        shape = tuple(1 if i in a.axes else d for i, d in enumerate(x.shape))
    else:
        shape = tuple(d for i, d in enumerate(x.shape) if i not in a.axes)
    return (TensorType(shape, x.dtype),)


def _softmax_reference(arrays, a: SoftmaxAttrs):
    x = arrays[0] * np.float32(a.beta)
    e = np.exp(x - x.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True),)


def _reduce_reference(f):
    return lambda arrays, a: (f(arrays[0], axis=a.axes, keepdims=a.keep_dims).astype(np.float32),)


def _keeps_batch(a: ReduceAttrs, types: Types) -> bool:
    return 0 not in a.axes


SPECS = (
    OpSpec(
        "max_pool2d",
        PoolAttrs,
        _pool_infer,
        lambda arrays, a: (kernels.max_pool(arrays[0], a.kernel, a.stride, a.padding),),
        integers.max_pool_integer,
        QuantRule("same"),
    ),
    OpSpec(
        "avg_pool2d",
        PoolAttrs,
        _pool_infer,
        lambda arrays, a: (kernels.avg_pool_float(arrays[0], a.kernel, a.stride, a.padding),),
        integers.avg_pool_integer,
        QuantRule("same"),
    ),
    OpSpec("mean", ReduceAttrs, _reduce_infer, _reduce_reference(np.mean), integers.mean_integer, QuantRule("free"), batch=_keeps_batch),
    OpSpec("sum", ReduceAttrs, _reduce_infer, _reduce_reference(np.sum), integers.sum_integer, QuantRule("free"), batch=_keeps_batch),
    OpSpec(
        "reduce_max",
        ReduceAttrs,
        _reduce_infer,
        _reduce_reference(np.max),
        integers.reduce_max_integer,
        QuantRule("same"),
        batch=_keeps_batch,
    ),
    OpSpec(
        "softmax",
        SoftmaxAttrs,
        lambda types, a: (TensorType(types[0].shape, types[0].dtype),),
        _softmax_reference,
        sequence.softmax_integer,
        QuantRule("fixed", 1.0 / 256, -128),
        batch=lambda a, types: len(types[0].shape) > 1,
    ),
)
