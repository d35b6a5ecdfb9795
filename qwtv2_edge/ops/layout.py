"""Data movement, resizing, and the boundary between float and integer."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops import integers, kernels
from qwtv2_edge.ops.conv import Pair
from qwtv2_edge.ops.spec import NoAttrs, OpSpec, QuantRule, Types, need


@dataclass(frozen=True, slots=True)
class ReshapeAttrs:
    """shape: the static target shape."""

    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TransposeAttrs:
    """perm: output axis i is input axis perm[i]."""

    perm: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ConcatAttrs:
    """axis: non-negative."""

    axis: int


@dataclass(frozen=True, slots=True)
class SliceAttrs:
    """begin (inclusive), end (exclusive), stride: one per axis, non-negative, stride > 0."""

    begin: tuple[int, ...]
    end: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PadAttrs:
    """paddings: (before, after) per axis, non-negative. value: real constant."""

    paddings: tuple[Pair, ...]
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class ResizeAttrs:
    """size: (height, width) of the output. Coordinate rules as TFLite's."""

    size: Pair
    align_corners: bool = False
    half_pixel_centers: bool = False


def _reshape_infer(types: Types, a: ReshapeAttrs) -> tuple[TensorType, ...]:
    need(prod(a.shape) == types[0].size, f"{types[0].shape} does not reshape to {a.shape}")
    return (TensorType(a.shape, types[0].dtype),)


def _transpose_infer(types: Types, a: TransposeAttrs) -> tuple[TensorType, ...]:
    x = types[0]
    need(sorted(a.perm) == list(range(len(x.shape))), f"perm {a.perm} does not fit shape {x.shape}")
    return (TensorType(tuple(x.shape[p] for p in a.perm), x.dtype),)


def _concat_infer(types: Types, a: ConcatAttrs) -> tuple[TensorType, ...]:
    first = types[0].shape
    need(0 <= a.axis < len(first), f"axis {a.axis} does not fit shape {first}")
    for t in types[1:]:
        need(
            len(t.shape) == len(first) and all(i == a.axis or d == e for i, (d, e) in enumerate(zip(first, t.shape, strict=True))),
            f"shapes {first} and {t.shape} do not concatenate along axis {a.axis}",
        )
    shape = list(first)
    shape[a.axis] = sum(t.shape[a.axis] for t in types)
    return (TensorType(tuple(shape), types[0].dtype),)


def _slice_infer(types: Types, a: SliceAttrs) -> tuple[TensorType, ...]:
    x = types[0]
    need(len(a.begin) == len(a.end) == len(a.stride) == len(x.shape), f"slice {a} does not fit shape {x.shape}")
    shape = []
    for b, e, s, d in zip(a.begin, a.end, a.stride, x.shape, strict=True):
        need(0 <= b < e <= d and s > 0, f"slice [{b}:{e}:{s}] does not fit axis of size {d}")
        shape.append((e - b + s - 1) // s)
    return (TensorType(tuple(shape), x.dtype),)


def _pad_infer(types: Types, a: PadAttrs) -> tuple[TensorType, ...]:
    x = types[0]
    need(len(a.paddings) == len(x.shape), f"paddings {a.paddings} do not fit shape {x.shape}")
    need(all(p[0] >= 0 and p[1] >= 0 for p in a.paddings), f"negative padding {a.paddings}", "use a slice to crop")
    return (TensorType(tuple(d + sum(p) for d, p in zip(x.shape, a.paddings, strict=True)), x.dtype),)


def _resize_infer(types: Types, a: ResizeAttrs) -> tuple[TensorType, ...]:
    x = types[0]
    need(len(x.shape) == 4, f"resize takes rank 4, got {x.shape}")
    return (TensorType((x.shape[0], a.size[0], a.size[1], x.shape[3]), x.dtype),)


SAME = QuantRule("same")


def _moves(name, attrs, infer, f, batch=lambda a, types: True, stretch=None) -> OpSpec:
    """An op that only moves values: the float and the integer meaning are the same function."""
    return OpSpec(
        name,
        attrs,
        infer,
        lambda arrays, a: (f(arrays, a),),
        lambda arrays, a, in_types, out_types, numerics: (f(arrays, a),),
        SAME,
        batch=batch,
        stretch=stretch,
    )


def _stretch_reshape(a: ReshapeAttrs, factor: int) -> ReshapeAttrs:
    return ReshapeAttrs((a.shape[0] * factor, *a.shape[1:]))


def _concat_run(arrays, a: ConcatAttrs):
    if a.axis:  # constant parts hold one sample, and go with every sample of a larger pass
        samples = max(len(part) for part in arrays)
        arrays = [np.broadcast_to(part, (samples, *part.shape[1:])) for part in arrays]
    return np.concatenate(arrays, axis=a.axis)


def _slice_run(arrays, a: SliceAttrs):
    return np.ascontiguousarray(arrays[0][tuple(slice(b, e, s) for b, e, s in zip(a.begin, a.end, a.stride, strict=True))])


def _stretch_slice(a: SliceAttrs, factor: int) -> SliceAttrs:
    return SliceAttrs(a.begin, (a.end[0] * factor, *a.end[1:]), a.stride)


SPECS = (
    _moves(
        "reshape",
        ReshapeAttrs,
        _reshape_infer,
        lambda arrays, a: arrays[0].reshape(a.shape),
        batch=lambda a, types: bool(a.shape),
        stretch=_stretch_reshape,
    ),
    _moves(
        "transpose",
        TransposeAttrs,
        _transpose_infer,
        lambda arrays, a: np.ascontiguousarray(arrays[0].transpose(a.perm)),
        batch=lambda a, types: not a.perm or a.perm[0] == 0,
    ),
    _moves(
        "concat",
        ConcatAttrs,
        _concat_infer,
        _concat_run,
        batch=lambda a, types: a.axis != 0,
    ),
    _moves(
        "slice",
        SliceAttrs,
        _slice_infer,
        _slice_run,
        batch=lambda a, types: a.begin[0] == 0 and a.end[0] == types[0].shape[0] and a.stride[0] == 1,
        stretch=_stretch_slice,
    ),
    OpSpec(
        "pad",
        PadAttrs,
        _pad_infer,
        lambda arrays, a: (np.pad(arrays[0], a.paddings, constant_values=np.float32(a.value)),),
        integers.pad_integer,
        SAME,
        batch=lambda a, types: a.paddings[0] == (0, 0),
    ),
    OpSpec(
        "resize_nearest",
        ResizeAttrs,
        _resize_infer,
        lambda arrays, a: (kernels.resize_nearest(arrays[0], a.size, a.align_corners, a.half_pixel_centers),),
        lambda arrays, a, i, o, n: (kernels.resize_nearest(arrays[0], a.size, a.align_corners, a.half_pixel_centers),),
        SAME,
    ),
    OpSpec(
        "resize_bilinear",
        ResizeAttrs,
        _resize_infer,
        lambda arrays, a: (kernels.resize_bilinear_float(arrays[0], a.size, a.align_corners, a.half_pixel_centers),),
        integers.resize_bilinear_integer,
        SAME,
    ),
    OpSpec(
        "quantize",
        NoAttrs,
        lambda types, a: (TensorType(types[0].shape, "int8"),),
        lambda arrays, a: (arrays[0],),
        integers.quantize_integer,
        QuantRule("boundary"),
    ),
    OpSpec(
        "dequantize",
        NoAttrs,
        lambda types, a: (TensorType(types[0].shape, "float32"),),
        lambda arrays, a: (arrays[0],),
        integers.dequantize_integer,
        QuantRule("boundary"),
    ),
    OpSpec(
        "requantize",
        NoAttrs,
        lambda types, a: (TensorType(types[0].shape, types[0].dtype),),
        lambda arrays, a: (arrays[0],),
        integers.requantize_integer,
        QuantRule("free"),
    ),
)
