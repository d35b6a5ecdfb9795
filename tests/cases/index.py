"""Table look-up, position of the largest entry, masks."""

from __future__ import annotations

import numpy as np

from cases.build import RANDOM, Case, draw_act, op_case, wide
from qwtv2_edge.ir.check import MASK
from qwtv2_edge.ir.graph import GraphBuilder
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops.index import ArgmaxAttrs, MaskFillAttrs
from qwtv2_edge.ops.layout import ReshapeAttrs
from qwtv2_edge.ops.spec import NoAttrs


def _embedding(name: str, rng: np.random.Generator, shape, entries: int, width: int, dtype: str, flattened: bool) -> Case:
    """``flattened``: the indices come through a reshape."""
    b = GraphBuilder(name)
    like = draw_act(rng, (), RANDOM) if dtype == "int8" else wide((), 1e-4)
    low, high = like.code_bounds
    indices = b.input("x", TensorType(shape, "int32"))
    if flattened:
        shape = (1, int(np.prod(shape)))
        (indices,) = b.add("reshape", (indices,), ReshapeAttrs(shape), name="flat", out_types=(TensorType(shape, "int32"),))
    table = TensorType((entries, width), dtype, like.quantization)
    codes = b.constant("table", rng.integers(low, high + 1, table.shape, dtype=dtype), table)
    out = TensorType((*shape, width), dtype, like.quantization)
    b.outputs = list(b.add("embedding", (indices, codes), NoAttrs(), name="y", out_types=(out,)))
    return Case(name, b.freeze())


def _masked(name: str, rng: np.random.Generator, shape, mask_shape, *, given: bool = False, reshaped: bool = False) -> Case:
    """The mask is a graph input, or a constant (``given``); ``reshaped``: it comes with one axis less."""
    b = GraphBuilder(name)
    x = b.input("x", draw_act(rng, shape, RANDOM))
    mask_type = TensorType(mask_shape, "int8", MASK)
    if given:
        mask = b.constant("mask", np.where(rng.random(mask_shape) < 0.5, -128, 127).astype(np.int8), mask_type)
    else:
        shorter = mask_shape[:1] + mask_shape[2:] if reshaped else mask_shape
        real = b.input("keep", TensorType(shorter))
        (mask,) = b.add("quantize", (real,), NoAttrs(), name="mask", out_types=(TensorType(shorter, "int8", MASK),))
        if reshaped:
            (mask,) = b.add("reshape", (mask,), ReshapeAttrs(mask_shape), name="spread", out_types=(mask_type,))
    b.outputs = list(b.add("mask_fill", (x, mask), MaskFillAttrs(), name="y", out_types=(b.tensors[x],)))
    return Case(name, b.freeze())


def cases() -> list[Case]:
    rng, out = np.random.default_rng(43), []
    for dtype in ("int8", "int16"):
        for flattened in (False, True):
            out.append(_embedding(f"embedding-{dtype}{'-flat' if flattened else ''}", rng, (1, 3, 4), 11, 8, dtype, flattened))
    out.append(_embedding("embedding-vector", rng, (1, 9), 300, 17, "int8", False))
    out.append(_embedding("embedding-one-row", rng, (1, 6), 1, 5, "int8", False))
    for shape, axis in (((1, 10), 1), ((1, 5, 7), 2), ((1, 5, 7), 1), ((1, 4, 4, 6), 3), ((1, 4, 5, 2), 1)):
        for keep in (False, True):
            for x in (draw_act(rng, shape, RANDOM), wide(shape, 1e-4)):
                label = f"argmax-{'x'.join(map(str, shape))}-axis{axis}{'-keep' if keep else ''}-{x.dtype}"
                out.append(op_case(label, "argmax", ArgmaxAttrs(axis, keep), [x], None, dtype="int32"))
    for mask_shape in ((1, 1, 1, 6), (1, 1, 5, 6), (1, 2, 5, 6), (1, 1, 5, 1)):
        label = "x".join(map(str, mask_shape))
        out.append(_masked(f"mask-fill-{label}", rng, (1, 2, 5, 6), mask_shape))
        out.append(_masked(f"mask-fill-{label}-constant", rng, (1, 2, 5, 6), mask_shape, given=True))
    out.append(_masked("mask-fill-reshaped", rng, (1, 2, 5, 6), (1, 1, 5, 6), reshaped=True))
    out.append(_masked("mask-fill-rank3", rng, (1, 5, 6), (1, 1, 6)))
    out.append(_masked("mask-fill-vector", rng, (1, 5, 6), (6,), given=True))
    return out
