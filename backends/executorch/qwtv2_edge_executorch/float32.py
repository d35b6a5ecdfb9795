"""The float32 rules of 16-bit sums, norms and rescalings, written once for XNNPACK nodes and for portable kernels.

Every step rounds once, and every sum is over integers or multiples of a power of two that float32 holds exactly, so
that both give the same bytes on every processor. The rules themselves: ``qwtv2_edge.ops.sequence`` and ``integers``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from qwtv2_edge import fixedpoint as fp
from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops import integers, sequence
from qwtv2_edge.ops.spec import ACTIVATIONS

F = np.float32


class Steps(Protocol):
    """What the rules are made of. Values are ids of float32 values; binary steps broadcast."""

    @property
    def graph(self) -> Graph: ...

    def array(self, data: np.ndarray) -> int:
        """A float32 constant."""

    def pair(self, kind: str, x: int, y: int) -> int:
        """kind: "add", "sub", "mul", "div" or "max"."""

    def round(self, x: int, step: float = 1.0) -> int:
        """To the nearest multiple of ``step``, a power of two, ties to even; for x below 2**22 * step."""

    def row_sum(self, x: int, ends: np.ndarray | None = None) -> int:
        """Sums over the last axis, which stays: of all its elements, or of each part between ``ends``."""

    def codes(self, tensor: str) -> int:
        """The codes of an int16 tensor."""

    def reals(self, tensor: str) -> int:
        """The real values of an int8 tensor."""

    def store_codes(self, tensor: str, x: int, bounds: tuple[int, int]) -> int:
        """int16 ``tensor`` = x clamped to ``bounds`` and rounded, ties to even."""

    def store_reals(self, tensor: str, x: int) -> int:
        """int8 ``tensor`` = x quantized, ties to even."""


def number(e: Steps, value: float | np.floating) -> int:
    return e.array(np.asarray([value], F))


def _scaled(e: Steps, x: int, factor: np.floating) -> int:
    return x if factor == 1 else e.pair("mul", x, number(e, factor))


def _units(e: Steps, tensor: str, out: TensorType) -> int:
    """:func:`integers.real32`"""
    type = e.graph.tensors[tensor]
    if tensor in e.graph.constants:
        return e.array(integers.real32(e.graph.constants[tensor], type, out))
    inverse = F(1) / F(out.scale)
    if type.dtype == "int16":
        return _scaled(e, e.codes(tensor), F(F(type.scale) * inverse))
    return _scaled(e, e.reals(tensor), inverse)


def _sum(kind: str) -> Callable[[Steps, Node], int]:
    def write(e: Steps, node: Node) -> int:
        out = e.graph.out_types(node)[0]
        bounds = fp.activation_bounds(*ACTIVATIONS[node.attrs.activation], out.scale, 0, "TFLITE", out.code_bounds)
        x, y = (_units(e, t, out) for t in node.inputs)
        return e.store_codes(node.outputs[0], e.pair(kind, x, y), bounds)

    return write


def _channel_add(e: Steps, node: Node) -> int:
    out = e.graph.out_types(node)[0]
    x, y, gain = node.inputs
    gains = sequence.channel_add_gains32(e.graph.constants[gain], e.graph.tensors[gain], out)
    total = e.pair("add", _units(e, x, out), e.pair("mul", e.reals(y), e.array(gains)))
    return e.store_codes(node.outputs[0], total, out.code_bounds)


def _requantize(e: Steps, node: Node) -> int:
    x, out = e.graph.in_types(node)[0], e.graph.out_types(node)[0]
    if out.dtype == "int16":
        return e.store_codes(node.outputs[0], _units(e, node.inputs[0], out), out.code_bounds)
    return e.store_reals(node.outputs[0], _scaled(e, e.codes(node.inputs[0]), F(x.scale)))


def _inverse_root(e: Steps, v: int, root: sequence.Heron, numerator: np.floating) -> int:
    """numerator / root(v)"""
    s = e.pair("add", e.pair("mul", v, number(e, root.slope)), number(e, root.start))
    for _ in range(root.steps):
        s = e.pair("mul", e.pair("add", s, e.pair("div", v, s)), number(e, 0.5))
    return e.pair("div", number(e, numerator), s)


def _layer_norm(e: Steps, node: Node) -> int:
    (x, gamma, _), out = e.graph.in_types(node), e.graph.out_types(node)[0]
    factors, offsets = (e.graph.constants[t] for t in node.inputs[1:])
    k = sequence.LayerNorm32.of(x, gamma, out, factors, offsets, node.attrs.eps)
    d = e.codes(node.inputs[0])
    if node.attrs.centre:
        parts, step = sequence.sum_parts(x.shape[-1])
        total = e.row_sum(d) if parts == 1 else e.row_sum(e.round(e.row_sum(d, sequence.part_ends(x.shape[-1])), step))
        d = e.pair("sub", d, e.pair("mul", total, number(e, k.share)))
    rounded = e.round(d, k.step)
    squares = e.row_sum(e.pair("mul", rounded, rounded))
    v = e.pair("max", e.pair("add", squares, number(e, k.offset)), number(e, k.least))
    normal = e.pair("mul", d, _inverse_root(e, v, k.root, F(1)))
    y = e.pair("add", e.pair("mul", normal, e.array(k.gamma)), e.array(k.beta))
    if out.dtype == "int16":
        return e.store_codes(node.outputs[0], y, out.code_bounds)
    return e.store_reals(node.outputs[0], y)


def _channel_scale(e: Steps, node: Node) -> int:
    x, gain = e.graph.in_types(node)
    gains = sequence.channel_gains32(e.graph.constants[node.inputs[1]], x, gain)
    return e.store_reals(node.outputs[0], e.pair("mul", e.codes(node.inputs[0]), e.array(gains)))


def _l2_normalize(e: Steps, node: Node) -> int:
    unit = sequence.L2Normalize32.of(e.graph.in_types(node)[0]).unit
    r = e.reals(node.inputs[0])
    rounded = e.round(e.pair("mul", r, number(e, unit)))
    v = e.pair("max", e.row_sum(e.pair("mul", rounded, rounded)), number(e, 1))
    return e.store_reals(node.outputs[0], e.pair("mul", r, _inverse_root(e, v, sequence.LENGTH_ROOT, unit)))


#: key of the numerics table -> the op by its "F32" rule
FLOAT_FORMS: dict[str, Callable[[Steps, Node], int]] = {
    "add:int16": _sum("add"),
    "sub:int16": _sum("sub"),
    "requantize:int16": _requantize,
    "layer_norm": _layer_norm,
    "channel_add": _channel_add,
    "channel_scale": _channel_scale,
    "l2_normalize": _l2_normalize,
}
