"""Data movement, resizing, and the boundary between float and integer."""

from __future__ import annotations

import numpy as np

from cases.build import GRIDS, RANDOM, Case, draw_act, draw_wide, op_case
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops.layout import ConcatAttrs, PadAttrs, ReshapeAttrs, ResizeAttrs, SliceAttrs, TransposeAttrs
from qwtv2_edge.ops.spec import NoAttrs


def _same(name, op, attrs, shapes, rng, draw=draw_act) -> Case:
    x = draw(rng, shapes[0], RANDOM)
    return op_case(name, op, attrs, [TensorType(s, x.dtype, x.quantization) for s in shapes], x.quantization, dtype=x.dtype)


def cases() -> list[Case]:
    rng, out = np.random.default_rng(29), []
    out.append(_same("reshape-flat", "reshape", ReshapeAttrs((1, 60)), [(1, 3, 4, 5)], rng))
    out.append(_same("reshape-rank6", "reshape", ReshapeAttrs((1, 2, 2, 3, 1, 5)), [(1, 4, 3, 5)], rng))
    for shape, perm in (
        ((1, 4, 5, 3), (0, 3, 1, 2)),
        ((1, 3, 4, 5), (0, 2, 3, 1)),
        ((1, 4, 5, 3), (0, 2, 1, 3)),
        ((1, 1, 5, 3), (0, 3, 1, 2)),
        ((1, 6, 4), (0, 2, 1)),
        ((1, 4, 4, 2, 3), (0, 1, 2, 4, 3)),
        ((1, 2, 3, 2, 2, 5), (0, 1, 3, 2, 4, 5)),
        ((1, 2, 3, 4, 2, 2), (0, 1, 4, 2, 5, 3)),
        ((1, 2, 3, 4, 2, 5), (0, 5, 4, 3, 2, 1)),
    ):
        out.append(
            _same(f"transpose-{'x'.join(map(str, shape))}-{''.join(map(str, perm))}", "transpose", TransposeAttrs(perm), [shape], rng)
        )
    out.append(_same("concat-2", "concat", ConcatAttrs(3), [(1, 3, 4, 5), (1, 3, 4, 2)], rng))
    out.append(_same("concat-6", "concat", ConcatAttrs(3), [(1, 2, 2, i + 1) for i in range(6)], rng))
    out.append(_same("concat-height", "concat", ConcatAttrs(1), [(1, 3, 4, 5), (1, 2, 4, 5)], rng))
    out.append(_same("concat-rank2", "concat", ConcatAttrs(1), [(1, 9), (1, 4)], rng))
    out.append(_same("slice", "slice", SliceAttrs((0, 1, 0, 2), (1, 4, 5, 5), (1, 1, 1, 1)), [(1, 5, 5, 6)], rng))
    out.append(_same("slice-strided", "slice", SliceAttrs((0, 0, 1, 0), (1, 5, 5, 6), (1, 2, 3, 1)), [(1, 5, 5, 6)], rng))
    out.append(_same("slice-rank3", "slice", SliceAttrs((0, 2, 0), (1, 6, 3), (1, 1, 2)), [(1, 7, 4)], rng))
    out.append(_same("pad", "pad", PadAttrs(((0, 0), (1, 2), (0, 3), (0, 1))), [(1, 3, 4, 5)], rng))
    out.append(_same("pad-value", "pad", PadAttrs(((0, 0), (1, 1), (2, 0), (0, 0)), 0.7), [(1, 3, 4, 5)], rng))
    out.append(_same("pad-rank2", "pad", PadAttrs(((0, 0), (3, 1))), [(1, 6)], rng))
    for shape, size in (
        ((1, 3, 4, 5), (6, 8)),
        ((1, 5, 7, 3), (8, 5)),
        ((1, 2, 2, 16), (7, 7)),
        ((1, 4, 4, 2), (1, 1)),
        ((1, 1, 6, 2), (1, 12)),
    ):
        for align, half in ((False, False), (True, False), (False, True)):
            label = f"{'x'.join(map(str, (*shape[1:3], *size)))}-{'align' if align else 'half' if half else 'legacy'}"
            out.append(_same(f"nearest-{label}", "resize_nearest", ResizeAttrs(size, align, half), [shape], rng))
            out.append(_same(f"bilinear-{label}", "resize_bilinear", ResizeAttrs(size, align, half), [shape], rng))
    for name, op, attrs, shapes in (
        ("reshape", "reshape", ReshapeAttrs((1, 12, 5)), [(1, 3, 4, 5)]),
        ("transpose-rank3", "transpose", TransposeAttrs((0, 2, 1)), [(1, 6, 4)]),
        ("transpose-heads", "transpose", TransposeAttrs((0, 2, 1, 3)), [(1, 4, 5, 3)]),
        ("transpose-rank6", "transpose", TransposeAttrs((0, 1, 3, 2, 4, 5)), [(1, 2, 3, 2, 2, 5)]),
        ("concat", "concat", ConcatAttrs(1), [(1, 3, 5), (1, 1, 5), (1, 2, 5)]),
        ("slice", "slice", SliceAttrs((0, 1, 0, 2), (1, 4, 5, 5), (1, 1, 1, 1)), [(1, 5, 5, 6)]),
        ("slice-strided", "slice", SliceAttrs((0, 1, 0), (1, 5, 6), (1, 2, 3)), [(1, 5, 6)]),
        ("pad", "pad", PadAttrs(((0, 0), (1, 2), (0, 3), (0, 1))), [(1, 3, 4, 5)]),
    ):
        out.append(_same(f"{name}-wide", op, attrs, shapes, rng, draw_wide))
    for grid_name, grid in GRIDS.items():
        for shape in ((1, 4, 5, 3), (1, 50), (1, 8, 8)):
            x = draw_act(rng, shape, grid)
            label = f"{'x'.join(map(str, shape))}-{grid_name}"
            out.append(op_case(f"quantize-{label}", "quantize", NoAttrs(), [TensorType(shape)], x.quantization))
            out.append(op_case(f"dequantize-{label}", "dequantize", NoAttrs(), [x], None, dtype="float32"))
            w = draw_wide(rng, shape, grid)
            out.append(op_case(f"quantize-wide-{label}", "quantize", NoAttrs(), [TensorType(shape)], w.quantization, dtype="int16"))
            out.append(op_case(f"dequantize-wide-{label}", "dequantize", NoAttrs(), [w], None, dtype="float32"))
    return out
