"""Transformer ops and 16-bit element-wise ops on portable kernels: integer programs, or the float32 rules where the
numerics say "F32". The integer rules: ``qwtv2_edge.ops.sequence`` and ``integers``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np

from qwtv2_edge import fixedpoint as fp
from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.numerics import rule_key, wide_key
from qwtv2_edge.ops import integers, sequence
from qwtv2_edge.ops.spec import ACTIVATIONS
from qwtv2_edge_executorch.float32 import FLOAT_FORMS
from qwtv2_edge_executorch.kernels import Portable

Form = Callable[[Portable, Node], int]


@dataclass(frozen=True)
class FloatKernels:
    """``float32.Steps`` on portable kernels."""

    p: Portable

    @property
    def graph(self) -> Graph:
        return self.p.graph

    def array(self, data: np.ndarray) -> int:
        return self.p.program.constant(np.asarray(data, np.float32))

    def pair(self, kind: str, x: int, y: int) -> int:
        operator = {"max": "aten::maximum.out"}.get(kind, f"aten::{kind}.out")
        return self.p.pair(operator, x, y, *((1,) if kind in ("add", "sub") else ()))

    def round(self, x: int, step: float = 1.0) -> int:
        if step != 1:
            x = self.pair("mul", x, self.array(np.asarray([1 / step])))
        x = self.p.call("aten::round.out", x, shape=self.p.shape(x), dtype=np.float32)
        return x if step == 1 else self.pair("mul", x, self.array(np.asarray([step])))

    def row_sum(self, x: int, ends: np.ndarray | None = None) -> int:
        p, last = self.p, len(self.p.shape(x)) - 1
        parts = [x] if ends is None else [p.slice(x, last, int(a), int(b)) for a, b in pairwise(ends)]
        return p.concat([p.sum(part, [last], True, np.float32) for part in parts], last)

    def codes(self, tensor: str) -> int:
        return self.p.codes(tensor)

    def reals(self, tensor: str) -> int:
        return self.p.reals(tensor)

    def store_codes(self, tensor: str, x: int, bounds: tuple[int, int]) -> int:
        return self.p.cast(self.round(self.p.clamp_reals(x, *bounds)), np.int16)

    def store_reals(self, tensor: str, x: int) -> int:
        return self.p.quantize(x, self.p.type(tensor))


def _by_rule(key: str, integer: Form) -> Form:
    """The float32 rule where the numerics name it, else the integer one."""
    return lambda p, node: FLOAT_FORMS[key](FloatKernels(p), node) if p.numerics.rule(key) == "F32" else integer(p, node)


def by_width(op: str, narrow: Form) -> Form:
    """The 16-bit form where 16-bit activations take part, else ``narrow``."""
    return lambda p, node: (_WIDE[op] if rule_key(p.graph, node) == wide_key(op) else narrow)(p, node)


# ---------------------------------------------------------------- 16-bit sums and rescalings


def _centred(p: Portable, tensor: str) -> int:
    """Codes less their zero point, int32."""
    return p.add_scalar(p.cast(p.value(tensor), np.int32), -p.type(tensor).zero_point)


def _wide_sum(sign: int) -> Form:
    def emit(p: Portable, node: Node) -> int:
        first, second = p.graph.in_types(node)
        out = p.type(node.outputs[0])
        k = integers.wide_add_params(first, second, out)
        x, y = (p.cast(p.value(t), np.int32) for t in node.inputs)
        total = p.add(p.mul_scalar(x, k.first), p.mul_scalar(y, sign * k.second))
        offset = np.asarray([-k.first * first.zero_point - sign * k.second * second.zero_point])
        bounds = fp.activation_bounds(*ACTIVATIONS[node.attrs.activation], out.scale, 0, "TFLITE", out.code_bounds)
        return p.requantize(total, k.scale, offset, 2**30, out, bounds)

    return emit


def _requantize(p: Portable, node: Node) -> int:
    x, out = p.type(node.inputs[0]), p.type(node.outputs[0])
    scale = np.float64(np.float32(x.scale)) / np.float64(np.float32(out.scale))
    codes = p.cast(p.value(node.inputs[0]), np.int32)
    return p.requantize(codes, scale, np.asarray([-x.zero_point]), 2**15, out, out.code_bounds)


def _channel_scale(p: Portable, node: Node) -> int:
    x, gain = p.graph.in_types(node)
    out = p.type(node.outputs[0])
    scale = np.float64(np.float32(x.scale) * np.float32(gain.scale)) / np.float64(np.float32(out.scale))
    gains = p.program.constant(p.graph.constants[node.inputs[1]].astype(np.int32))
    return p.requantize(p.mul(_centred(p, node.inputs[0]), gains), scale, np.zeros(1, np.int64), 2**30, out, out.code_bounds)


def _channel_add(p: Portable, node: Node) -> int:
    x, y, gain = p.graph.in_types(node)
    out = p.type(node.outputs[0])
    k = sequence.ChannelAdd.of(x, y, gain, p.graph.constants[node.inputs[2]])
    first, second = (p.cast(p.value(t), np.int32) for t in node.inputs[:2])
    total = p.add(p.mul_scalar(first, k.first), p.mul(second, p.program.constant(k.second)))
    scale = np.float64(np.float32(k.unit)) / np.float64(np.float32(out.scale))
    return p.requantize(total, scale, np.asarray([-k.first * x.zero_point]), 2**30, out, out.code_bounds)


_WIDE: dict[str, Form] = {
    op: _by_rule(wide_key(op), form) for op, form in (("add", _wide_sum(1)), ("sub", _wide_sum(-1)), ("requantize", _requantize))
}

# ---------------------------------------------------------------- norms


def _scaled(p: Portable, x: int, scale: float, limit: int, least: int, most: int) -> int:
    r"""x * scale with one rounding, clamped; int32. No \|x\| exceeds ``limit``."""
    m, e = (int(v) for v in fp.quantize_multiplier(np.float64(scale)))
    shift = 31 - e
    while m % 2 == 0 and shift > 1:
        m, shift = m // 2, shift - 1
    half = 1 << (shift - 1)
    if limit * m + half >= 2**31:
        x = p.cast(x, np.int64)
    x = p.shift_right(p.add_scalar(p.mul_scalar(x, m), half), shift)
    return p.cast(p.clamp(x, least, most), np.int32)


def _layer_norm(p: Portable, node: Node) -> int:
    """The steps of :class:`sequence.LayerNormTable`."""
    (x, gamma_type, _), out = p.graph.in_types(node), p.type(node.outputs[0])
    gamma, beta = (p.graph.constants[t] for t in node.inputs[1:])
    k = sequence.LayerNormTable.of(x, gamma_type, out, node.attrs)
    count, last = x.shape[-1], len(x.shape) - 1
    d = p.cast(p.value(node.inputs[0]), np.int32)

    def mean(v: int, out_scale: float, least: int, most: int) -> int:
        total = p.sum_wide(v, [last], True, 2**15)
        return _scaled(p, total, float(fp.reduction_scale(1.0, out_scale, count)), count * 2**15, least, most)

    if node.attrs.centre:
        d = p.clamp(p.add(d, mean(d, 1.0, -32768, 32767), -1), -32768, 32767)
    for k_pass in k.passes:
        q = _scaled(p, p.mul(d, d), 2.0**-15, 2**30, 0, 32767)
        inverse = p.index(k_pass.inverse.astype(np.int32), mean(q, 2.0**-k_pass.shift, 0, sequence.INDEX_LIMIT))
        d = _scaled(p, p.mul(d, inverse), k_pass.scale, 2**30, -32768, 32767)
    y = p.mul(d, p.program.constant(gamma.astype(np.int32)))
    return p.requantize(y, np.float64(np.float32(k.output)), beta.astype(np.int64), 2**30, out, out.code_bounds)


def _l2_normalize(p: Portable, node: Node) -> int:
    out = p.type(node.outputs[0])
    c = _centred(p, node.inputs[0])
    shape = p.shape(c)
    step = sequence.l2_step(shape[-1], p.type(node.inputs[0]))
    squares = p.sum_wide(p.mul(c, c), [len(shape) - 1], True, 255**2)
    index = _scaled(p, squares, 1 / step, shape[-1] * 2**16, 0, sequence.INDEX_LIMIT)
    product = p.mul(c, p.index(sequence.inverse_table(0.0).astype(np.int32), index))
    return p.requantize(product, sequence.l2_scale(step), np.zeros(1, np.int64), 2**23, out, out.code_bounds)


# ---------------------------------------------------------------- softmax


def _distance(p: Portable, x: int) -> int:
    """How far each code lies below the largest of its row, int32."""
    b, shape = p.program, p.shape(x)
    largest = p.call("aten::amax.out", x, b.integers([len(shape) - 1]), b.boolean(True), shape=(*shape[:-1], 1), dtype=np.int8)
    return p.add(p.cast(largest, np.int32), p.cast(x, np.int32), -1)


def _softmax(p: Portable, node: Node) -> int:
    """floor((512 t + S) / 2S) - 128 with t from a table of exponentials and S their sum; or in float32, RNE(256 * (t / S)) - 128."""
    x, scale, beta = p.value(node.inputs[0]), p.type(node.inputs[0]).scale, node.attrs.beta
    last = len(p.shape(x)) - 1
    if p.numerics.rule("softmax") == "F32":
        e = FloatKernels(p)
        table = sequence.softmax_exponentials(float(np.float32(scale) * np.float32(beta)), p.shape(x)[-1])
        # the table's codes are 127 - distance, in the order 0..127, -128..-1
        t = p.index(table[integers.CODES[127 - np.arange(256)].view(np.uint8)], _distance(p, x))
        return e.store_reals(node.outputs[0], e.pair("div", t, e.row_sum(t)))
    t = p.index(fp.softmax_table(scale, beta).astype(np.int64), _distance(p, x))
    total = p.sum_wide(t, [last], True, 1 << fp.SOFTMAX_TABLE_BITS)
    share = p.floor_divide(p.add(total, t, 512), p.mul_scalar(total, 2))
    return p.finish(p.add_scalar(share, -128))


# ---------------------------------------------------------------- products of two activations


def _batch_matmul(p: Portable, node: Node) -> int:
    types, out = p.graph.in_types(node), p.type(node.outputs[0])
    *lead, m, k = types[0].shape
    count, n, wide = prod(lead), out.shape[-1], out.dtype == "int16"
    largest = k * (2**30 if wide else 255 * 128)
    dtype = np.int32 if largest < 2**31 else np.int64
    a, b = (p.cast(_centred(p, t), dtype) for t in node.inputs)
    a, b = (p.program.alias(v, (count, *p.shape(v)[-2:])) for v in (a, b))
    if node.attrs.transpose_b:
        b = p.permute(b, (0, 2, 1))
    acc = p.call("aten::bmm.out", a, b, shape=(count, m, n), dtype=dtype)
    acc = p.program.alias(acc, out.shape)
    scale = sequence.matmul_scale(types[0], types[1], out)
    return p.requantize(acc, scale, np.zeros(1, np.int64), largest, out, out.code_bounds, 15 if wide else 31)


# ---------------------------------------------------------------- indices and masks


def _embedding(p: Portable, node: Node) -> int:
    indices, table = node.inputs
    b, out = p.program, p.type(node.outputs[0])
    flags = (b.integer(-1), b.boolean(False), b.boolean(False))
    dtype = p.graph.constants[table].dtype
    return p.call("aten::embedding.out", p.value(table), p.value(indices), *flags, shape=out.shape, dtype=dtype)


def _argmax(p: Portable, node: Node) -> int:
    a, b = node.attrs, p.program
    shape = p.type(node.outputs[0]).shape
    found = p.call("aten::argmax.out", p.value(node.inputs[0]), b.integer(a.axis), b.boolean(a.keep_dims), shape=shape, dtype=np.int64)
    return p.cast(found, np.int32)


def _mask_fill(p: Portable, node: Node) -> int:
    return p.pair("aten::minimum.out", *(p.value(t) for t in node.inputs))


FORMS: dict[str, Form] = {
    "batch_matmul": _batch_matmul,
    "layer_norm": _by_rule("layer_norm", _layer_norm),
    "channel_add": _by_rule("channel_add", _channel_add),
    "channel_scale": _by_rule("channel_scale", _channel_scale),
    "l2_normalize": _by_rule("l2_normalize", _l2_normalize),
    "softmax": _softmax,
    "embedding": _embedding,
    "argmax": _argmax,
    "mask_fill": _mask_fill,
}
