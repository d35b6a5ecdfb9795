"""Integer graphs as integer arithmetic on ExecuTorch's portable kernels.

Between the quantized input and output every value is an integer: int8 codes, int32 sums, int64 products.

(1)  acc = sum x * w                                     int32; x holds raw codes, padding holds the zero point z_in
(2)  out = clamp((acc * m + k) >> s)                     int64; k = (bias - z_in * sum w) * m + 2**(s-1) + z_out * 2**s

A convolution gathers its taps by slices and runs as a matrix product, since the portable convolution is an order
of magnitude slower than the portable matrix product; grouped, depthwise and transposed ones use the convolution.
Unary ops are look-up tables, built by the simulator's own integer meaning. Memory layout is the IR's (NHWC);
kernels that think in NCHW see the same bytes with dimension order (0, 2, 3, 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from qwtv2_edge import fixedpoint as fp
from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.numerics import Numerics
from qwtv2_edge.ops import OPS, integers, weighted
from qwtv2_edge.ops.kernels import nearest_index, valid_taps
from qwtv2_edge_executorch.program import ProgramBuilder

CHANNELS_LAST = (0, 2, 3, 1)
INT64_LIMIT = 2**63

Shape = tuple[int, ...]


@dataclass
class Portable:
    """Emits nodes as kernel calls. ``values`` maps tensor names to program values and is shared with the caller."""

    graph: Graph
    numerics: Numerics
    program: ProgramBuilder
    values: dict[str, int]

    def emit(self, node: Node) -> None:
        self.values[node.outputs[0]] = EMITTERS[node.op](self, node)

    # ---- operands

    def value(self, tensor: str) -> int:
        if tensor not in self.values:
            self.values[tensor] = self.program.constant(self.graph.constants[tensor])
        return self.values[tensor]

    def type(self, tensor: str) -> TensorType:
        return self.graph.tensors[tensor]

    def shape(self, value: int) -> Shape:
        return self.program.shape(value)

    # ---- kernels (each returns the new value)

    def call(self, operator: str, *args: int, shape: Sequence[int], dtype: Any, dim_order: Any = None) -> int:
        out = self.program.tensor(shape, dtype, dim_order)
        return self.program.call(operator, *args, out=out)

    def cast(self, x: int, dtype: Any) -> int:
        if self.program.dtype(x) == np.dtype(dtype):
            return x
        p = self.program
        return self.call("aten::_to_copy.out", x, p.boolean(False), p.none(), shape=self.shape(x), dtype=dtype)

    def scalar(self, operator: str, x: int, *scalars: int) -> int:
        """A kernel that takes a tensor and integers: same shape, same dtype."""
        return self.call(operator, x, *map(self.program.integer, scalars), shape=self.shape(x), dtype=self.program.dtype(x))

    def add_scalar(self, x: int, number: int) -> int:
        return x if number == 0 else self.scalar("aten::add.Scalar_out", x, number, 1)

    def mul_scalar(self, x: int, number: int) -> int:
        return x if number == 1 else self.scalar("aten::mul.Scalar_out", x, number)

    def shift_right(self, x: int, bits: int) -> int:
        return self.scalar("aten::bitwise_right_shift.Tensor_Scalar_out", x, bits)

    def clamp(self, x: int, low: int, high: int) -> int:
        return self.scalar("aten::clamp.out", x, low, high)

    def pair(self, operator: str, x: int, y: int, *scalars: int) -> int:
        """A broadcasting kernel on two tensors of one dtype."""
        shape = np.broadcast_shapes(self.shape(x), self.shape(y))
        return self.call(operator, x, y, *map(self.program.integer, scalars), shape=shape, dtype=self.program.dtype(x))

    def add(self, x: int, y: int, alpha: int = 1) -> int:
        """x + alpha * y"""
        if alpha != 1 and self.shape(x) != self.shape(y):
            # the optimised kernel of ExecuTorch 1.4.1 scales the wrong operand when x is the one that broadcasts
            y, alpha = self.mul_scalar(y, alpha), 1
        return self.pair("aten::add.out", x, y, alpha)

    def mul(self, x: int, y: int) -> int:
        return self.pair("aten::mul.out", x, y)

    def per_channel(self, operator: str, scalar_operator: str, x: int, numbers: np.ndarray, *more: int) -> int:
        """A kernel with one int64 per channel, or with one for all.

        Which it is, and the bytes it takes, depends on the number of channels alone: compensation changes values, not ops or size.
        """
        if numbers.size == 1:
            return self.scalar(scalar_operator, x, int(numbers.flat[0]), *more)
        return self.pair(operator, x, self.program.constant(np.asarray(numbers, np.int64), own=True), *more)

    def floor_divide(self, x: int, y: int) -> int:
        return self.pair("aten::floor_divide.out", x, y)

    def index(self, table: np.ndarray, indices: int) -> int:
        """table[indices]; negative indices count from the end."""
        p = self.program
        lookup = p.tensors([indices], optional=True)
        return self.call("aten::index.Tensor_out", p.constant(table), lookup, shape=self.shape(indices), dtype=table.dtype)

    def select(self, x: int, axis: int, indices: np.ndarray) -> int:
        """np.take along ``axis``."""
        shape = list(self.shape(x))
        shape[axis] = len(indices)
        p = self.program
        rows = p.constant(np.asarray(indices, np.int64))
        return self.call("aten::index_select.out", x, p.integer(axis), rows, shape=shape, dtype=p.dtype(x))

    def slice(self, x: int, axis: int, begin: int, end: int, stride: int = 1) -> int:
        shape = list(self.shape(x))
        if (begin, end, stride) == (0, shape[axis], 1):
            return x
        shape[axis] = -(-(end - begin) // stride)
        p = self.program
        numbers = (p.integer(axis), p.integer(begin), p.integer(end), p.integer(stride))
        return self.call("aten::slice_copy.Tensor_out", x, *numbers, shape=shape, dtype=p.dtype(x))

    def pad(self, x: int, paddings: Sequence[tuple[int, int]], code: int) -> int:
        if not any(map(any, paddings)):
            return x
        p = self.program
        shape = [d + b + a for d, (b, a) in zip(self.shape(x), paddings, strict=True)]
        innermost_first = [n for pair in reversed(paddings) for n in pair]
        return self.call("aten::constant_pad_nd.out", x, p.integers(innermost_first), p.integer(code), shape=shape, dtype=p.dtype(x))

    def pad_spatial(self, x: int, padding: Any, code: int) -> int:
        return self.pad(x, ((0, 0), *padding, (0, 0)), code)

    def concat(self, parts: Sequence[int], axis: int) -> int:
        if len(parts) == 1:
            return parts[0]
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(v)[axis] for v in parts)
        p = self.program
        return self.call("aten::cat.out", p.tensors(parts), p.integer(axis), shape=shape, dtype=p.dtype(parts[0]))

    def permute(self, x: int, perm: Sequence[int]) -> int:
        shape = [self.shape(x)[i] for i in perm]
        return self.call("aten::permute_copy.out", x, self.program.integers(perm), shape=shape, dtype=self.program.dtype(x))

    def sum(self, x: int, axes: Sequence[int], keep_dims: bool, dtype: Any) -> int:
        p = self.program
        shape = _reduced(self.shape(x), axes, keep_dims)
        return self.call("aten::sum.IntList_out", x, p.integers(axes), p.boolean(keep_dims), p.none(), shape=shape, dtype=dtype)

    # ---- endings

    def finish(self, x: int, low: int = -128, high: int = 127) -> int:
        """Clamp and store as int8."""
        return self.cast(self.clamp(x, low, high), np.int8)

    def requantize(
        self, acc: int, scale: np.ndarray | np.float64, offset: np.ndarray, limit: int, out: TensorType, bounds: tuple[int, int]
    ) -> int:
        """Equation (2) with single rounding.

        Args:
            acc: integers, channels last where ``scale`` or ``offset`` has more than one entry.
            scale: effective scale, float64, one or one per channel.
            offset: int64 to be added to every accumulator, one or one per channel.
            limit: no |acc| exceeds it.
        """
        m, e = (np.atleast_1d(v).astype(object) for v in fp.quantize_multiplier(scale))
        offset = np.atleast_1d(offset).astype(object)
        shift = 31 - e
        half = np.asarray([1 << (int(s) - 1) for s in shift], object)
        zero = np.asarray([out.zero_point << int(s) for s in shift], object)
        acc = self.cast(acc, np.int64)
        rest = out.zero_point
        constant = offset * m + half + zero
        if (np.abs(constant) + limit * m < INT64_LIMIT).all():
            rest = 0
        else:  # too large to fold everything into one constant
            acc = self.per_channel("aten::add.out", "aten::add.Scalar_out", acc, offset, 1)
            constant = half
        acc = self.per_channel("aten::mul.out", "aten::mul.Scalar_out", acc, m)
        acc = self.per_channel("aten::add.out", "aten::add.Scalar_out", acc, constant, 1)
        acc = self.per_channel("aten::bitwise_right_shift.Tensor_out", "aten::bitwise_right_shift.Tensor_Scalar_out", acc, shift)
        return self.finish(self.add_scalar(acc, rest), *bounds)

    def divide_half_away(self, total: int, count: int | np.ndarray) -> int:
        """total / count, ties away from zero: floor((2 total + count - [total < 0]) / (2 count)). int32."""
        sign = self.shift_right(total, 31)
        twice = self.add(sign, total, 2)
        if isinstance(count, np.ndarray):
            count = count.astype(np.int32)
            twice = self.add(twice, self.program.constant(count))
            return self.floor_divide(twice, self.program.constant(2 * count))
        twice = self.add_scalar(twice, count)
        return self.floor_divide(twice, self.program.constant(np.asarray([2 * count], np.int32)))


def _reduced(shape: Shape, axes: Sequence[int], keep_dims: bool) -> Shape:
    if keep_dims:
        return tuple(1 if i in axes else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in axes)


# ---------------------------------------------------------------- weighted ops


def _taps(p: Portable, x: int, kernel: Shape, stride: Shape, dilation: Shape) -> list[int]:
    """One strided slice of a padded NHWC value per kernel tap, rows of taps first."""
    _, h, w, _ = p.shape(x)
    oh, ow = ((s - (k - 1) * d - 1) // st + 1 for s, k, d, st in zip((h, w), kernel, dilation, stride, strict=True))
    columns = [p.slice(x, 2, kx * dilation[1], kx * dilation[1] + (ow - 1) * stride[1] + 1, stride[1]) for kx in range(kernel[1])]
    return [
        p.slice(column, 1, ky * dilation[0], ky * dilation[0] + (oh - 1) * stride[0] + 1, stride[0])
        for ky in range(kernel[0])
        for column in columns
    ]


def _widened(p: Portable, codes: np.ndarray) -> int:
    """A constant stored as int8 and widened at run time: the file stays small, the cost is one pass over the weights."""
    return p.cast(p.program.constant(codes), np.int32)


def _matrix_product(p: Portable, x: int, weights: np.ndarray) -> int:
    """int8 rows (..., K) times weights (O, K): int32 (..., O)."""
    shape = p.shape(x)
    rows = p.program.alias(p.cast(x, np.int32), (prod(shape[:-1]), shape[-1]))
    w = _widened(p, weights)
    acc = p.call("aten::linear.out", rows, w, p.program.none(), shape=(prod(shape[:-1]), len(weights)), dtype=np.int32)
    return p.program.alias(acc, (*shape[:-1], len(weights)))


def _convolution(p: Portable, x: int, weights: np.ndarray, out: Shape, a: Any, *, transposed: bool, groups: int) -> int:
    """The portable convolution on int32 NHWC values. weights: int8, memory order (first, kh, kw, second)."""
    n, h, w, c = p.shape(x)
    b = p.program
    first, kh, kw, second = weights.shape
    source = b.alias(x, (n, c, h, w), CHANNELS_LAST)
    filter = b.alias(_widened(p, weights), (first, second, kh, kw), CHANNELS_LAST)
    dilation = getattr(a, "dilation", (1, 1))
    numbers = (b.integers(a.stride), b.integers([0, 0]), b.integers(dilation), b.boolean(transposed), b.integers([0, 0]), b.integer(groups))
    shape = (out[0], out[3], out[1], out[2])
    target = p.call("aten::convolution.out", source, filter, b.none(), *numbers, shape=shape, dtype=np.int32, dim_order=CHANNELS_LAST)
    return b.alias(target, out)


def _conv2d(p: Portable, node: Node) -> int:
    a = node.attrs
    w = p.graph.constants[node.inputs[1]]
    x = p.pad_spatial(p.value(node.inputs[0]), a.padding, p.type(node.inputs[0]).zero_point)
    if a.groups == 1:
        columns = p.concat(_taps(p, x, w.shape[1:3], a.stride, a.dilation), 3)
        acc = _matrix_product(p, columns, w.reshape(len(w), -1))
    else:
        out = p.type(node.outputs[0]).shape
        acc = _convolution(p, p.cast(x, np.int32), w, out, a, transposed=False, groups=a.groups)
    return _weighted_end(p, node, acc, centred=False)


def _depthwise(p: Portable, node: Node) -> int:
    a = node.attrs
    w = p.graph.constants[node.inputs[1]]
    x = p.pad_spatial(p.value(node.inputs[0]), a.padding, p.type(node.inputs[0]).zero_point)
    filter = np.ascontiguousarray(w.transpose(3, 1, 2, 0))
    out = p.type(node.outputs[0]).shape
    acc = _convolution(p, p.cast(x, np.int32), filter, out, a, transposed=False, groups=p.type(node.inputs[0]).shape[3])
    return _weighted_end(p, node, acc, centred=False)


def _transpose_conv(p: Portable, node: Node) -> int:
    """The whole scatter output, then cropped; positions beyond it hold the bias alone."""
    a = node.attrs
    w = p.graph.constants[node.inputs[1]]
    x_type = p.type(node.inputs[0])
    n, h, wd, _ = x_type.shape
    x = p.add_scalar(p.cast(p.value(node.inputs[0]), np.int32), -x_type.zero_point)
    full = (n, (h - 1) * a.stride[0] + w.shape[1], (wd - 1) * a.stride[1] + w.shape[2], len(w))
    acc = _convolution(p, x, np.ascontiguousarray(w.transpose(3, 1, 2, 0)), full, a, transposed=True, groups=1)
    for axis, (before, after) in enumerate(a.crop, 1):
        acc = p.slice(acc, axis, max(before, 0), full[axis] - max(after, 0))
    acc = p.pad_spatial(acc, tuple((max(-before, 0), max(-after, 0)) for before, after in a.crop), 0)
    return _weighted_end(p, node, acc, centred=True)


def _fully_connected(p: Portable, node: Node) -> int:
    acc = _matrix_product(p, p.value(node.inputs[0]), p.graph.constants[node.inputs[1]])
    return _weighted_end(p, node, acc, centred=False)


def _weighted_end(p: Portable, node: Node, acc: int, *, centred: bool) -> int:
    types, out = p.graph.in_types(node), p.type(node.outputs[0])
    w, b = (p.graph.constants[t].astype(np.int64) for t in node.inputs[1:3])
    over = (0, 1, 2) if node.op == "depthwise_conv2d" else tuple(range(1, w.ndim))
    offset = b if centred else b - types[0].zero_point * w.sum(over)
    limit = 256 * int(np.abs(w).sum(over).max())
    scale = weighted.effective_scale(node.op, p.numerics.rule(node.op), types, out)
    return p.requantize(acc, scale, offset, limit, out, weighted.output_bounds(node.attrs.activation, out, p.numerics))


# ---------------------------------------------------------------- element by element


def meaning(p: Portable, node: Node, *arrays: np.ndarray) -> np.ndarray:
    """What the simulator computes for ``node`` on int8 ``arrays``; tables are made of it."""
    result = OPS[node.op].integer(arrays, node.attrs, p.graph.in_types(node), p.graph.out_types(node), p.numerics)
    return np.ascontiguousarray(result[0])


def _table(p: Portable, node: Node) -> int:
    """Any unary op: codes index a table that starts at code 0, negative codes count from its end."""
    table = meaning(p, node, integers.CODES)
    return p.index(table, p.cast(p.value(node.inputs[0]), np.int32))


def _prelu(p: Portable, node: Node) -> int:
    """One table per channel, end to end, each from code -128."""
    slopes = p.graph.constants[node.inputs[1]]
    codes = np.arange(-128, 128, dtype=np.int8)[:, None]
    tables = meaning(p, node, np.repeat(codes, len(slopes), 1), slopes).T
    start = p.program.constant((np.arange(len(slopes)) * 256 + 128).astype(np.int32))
    x = p.add(p.cast(p.value(node.inputs[0]), np.int32), start)
    return p.index(np.ascontiguousarray(tables).reshape(-1), x)


def _clamp(p: Portable, node: Node) -> int:
    kept = meaning(p, node, integers.CODES)
    return p.clamp(p.value(node.inputs[0]), int(kept.min()), int(kept.max()))


def _pair_table(p: Portable, node: Node) -> int:
    """Any pair op whose arithmetic has no short form: a table of all 65536 pairs, or of 256 where both are one tensor."""
    if node.inputs[0] == node.inputs[1]:
        return p.index(meaning(p, node, integers.CODES, integers.CODES), p.cast(p.value(node.inputs[0]), np.int32))
    codes = np.arange(-128, 128, dtype=np.int8)
    table = meaning(p, node, codes[:, None], codes[None, :]).reshape(-1)
    x, y = (p.cast(p.value(t), np.int32) for t in node.inputs)
    return p.index(table, p.add_scalar(p.add(y, x, 256), 128 * 257))


def _add(sign: int) -> Callable[[Portable, Node], int]:
    """(A * q1 + B * q2 + k) >> s in int32, XNNPACK's own formula; outside its window a table."""

    def emit(p: Portable, node: Node) -> int:
        first, second = p.graph.in_types(node)
        out = p.type(node.outputs[0])
        params = fp.q20_add_params(first.scale, second.scale, out.scale)
        if params is None:
            return _pair_table(p, node)
        a, b, shift = params.first, sign * params.second, params.shift
        constant = (1 << (shift - 1)) - a * first.zero_point - b * second.zero_point
        rest = out.zero_point
        if abs(constant + (rest << shift)) + 128 * (a + abs(b)) < 2**31:
            constant, rest = constant + (rest << shift), 0
        x, y = (p.cast(p.value(t), np.int32) for t in node.inputs)
        acc = p.shift_right(p.add_scalar(p.add(p.mul_scalar(x, a), y, b), constant), shift)
        low, high = weighted.output_bounds(node.attrs.activation, out, p.numerics)
        return p.finish(p.add_scalar(acc, rest), low, high)

    return emit


def _mul(p: Portable, node: Node) -> int:
    if p.numerics.rule("mul") != "ONE_F32":
        return _pair_table(p, node)
    types, out = p.graph.in_types(node), p.type(node.outputs[0])
    x, y = (p.add_scalar(p.cast(p.value(t), np.int32), -type.zero_point) for t, type in zip(node.inputs, types, strict=True))
    scale = np.float32(types[0].scale) * np.float32(types[1].scale) / np.float32(out.scale)
    bounds = weighted.output_bounds(node.attrs.activation, out, p.numerics)
    return p.requantize(p.mul(x, y), np.float64(scale), np.zeros(1, np.int64), 2**16, out, bounds)


# ---------------------------------------------------------------- pooling, reductions, softmax


def _fold_windows(p: Portable, x: int, kernel: Shape, stride: Shape, combine: Callable[[int, int], int]) -> int:
    """Combine the taps of every window, one axis after the other."""
    for axis, (k, s) in enumerate(zip(kernel, stride, strict=True), 1):
        count = (p.shape(x)[axis] - k) // s + 1
        parts = [p.slice(x, axis, i, i + (count - 1) * s + 1, s) for i in range(k)]
        x = parts[0]
        for part in parts[1:]:
            x = combine(x, part)
    return x


def _max_pool(p: Portable, node: Node) -> int:
    a = node.attrs
    x = p.pad_spatial(p.value(node.inputs[0]), a.padding, -128)
    return _fold_windows(p, x, a.kernel, a.stride, lambda x, y: p.pair("aten::maximum.out", x, y))


def _avg_pool(p: Portable, node: Node) -> int:
    a = node.attrs
    x = p.cast(p.pad_spatial(p.value(node.inputs[0]), a.padding, 0), np.int32)
    total = _fold_windows(p, x, a.kernel, a.stride, p.add)
    count: Any = prod(a.kernel)
    if a.padding != ((0, 0), (0, 0)):
        count = valid_taps(p.type(node.inputs[0]).shape, a.kernel, a.stride, a.padding)[:, :, None]
    return p.finish(p.divide_half_away(total, count))


def _reduce_sum(p: Portable, node: Node) -> int:
    x, out = p.type(node.inputs[0]), p.type(node.outputs[0])
    axes = node.attrs.axes
    count = prod(x.shape[i] for i in axes)
    total = p.sum(p.value(node.inputs[0]), axes, node.attrs.keep_dims, np.int64)
    scale = fp.reduction_scale(x.scale, out.scale, count if node.op == "mean" else 1)
    return p.requantize(total, scale, np.asarray([-x.zero_point * count]), 128 * count, out, (-128, 127))


def _reduce_max(p: Portable, node: Node) -> int:
    b, a = p.program, node.attrs
    x = p.value(node.inputs[0])
    shape = _reduced(p.shape(x), a.axes, a.keep_dims)
    return p.call("aten::amax.out", x, b.integers(a.axes), b.boolean(a.keep_dims), shape=shape, dtype=np.int8)


def _softmax(p: Portable, node: Node) -> int:
    """floor((512 t + S) / 2S) - 128 with t from a table of exponentials and S their sum."""
    b = p.program
    x = p.value(node.inputs[0])
    shape = p.shape(x)
    largest = p.call("aten::amax.out", x, b.integers([len(shape) - 1]), b.boolean(True), shape=(*shape[:-1], 1), dtype=np.int8)
    distance = p.add(p.cast(largest, np.int32), p.cast(x, np.int32), -1)
    table = fp.softmax_table(p.type(node.inputs[0]).scale, node.attrs.beta).astype(np.int64)
    t = p.index(table, distance)
    total = p.sum(t, [len(shape) - 1], True, np.int64)
    share = p.floor_divide(p.add(total, t, 512), p.mul_scalar(total, 2))
    return p.finish(p.add_scalar(share, -128))


# ---------------------------------------------------------------- data movement


def _reshape(p: Portable, node: Node) -> int:
    return p.program.alias(p.value(node.inputs[0]), p.type(node.outputs[0]).shape)


def _transpose(p: Portable, node: Node) -> int:
    return p.permute(p.value(node.inputs[0]), node.attrs.perm)


def _concat(p: Portable, node: Node) -> int:
    return p.concat([p.value(t) for t in node.inputs], node.attrs.axis)


def _slice(p: Portable, node: Node) -> int:
    a = node.attrs
    x = p.value(node.inputs[0])
    for axis, (begin, end, stride) in enumerate(zip(a.begin, a.end, a.stride, strict=True)):
        x = p.slice(x, axis, begin, end, stride)
    return x


def _pad(p: Portable, node: Node) -> int:
    return p.pad(p.value(node.inputs[0]), node.attrs.paddings, integers.pad_code(node.attrs.value, p.type(node.outputs[0])))


def _resize_nearest(p: Portable, node: Node) -> int:
    a = node.attrs
    x = p.value(node.inputs[0])
    for axis, size in enumerate(a.size, 1):
        index = nearest_index(p.shape(x)[axis], size, a.align_corners, a.half_pixel_centers)
        if not np.array_equal(index, np.arange(p.shape(x)[axis])):
            x = p.select(x, axis, index)
    return x


def _resize_bilinear(p: Portable, node: Node) -> int:
    """Q10 weights along the width, then along the height; ties of the Q20 sum away from zero."""
    a = node.attrs
    x = p.cast(p.value(node.inputs[0]), np.int32)
    for axis, size in ((2, a.size[1]), (1, a.size[0])):
        low, high, weight = fp.bilinear_q10(p.shape(x)[axis], size, a.align_corners, a.half_pixel_centers)
        shape = (-1, *(1,) * (3 - axis))
        lower, upper = (b.astype(np.int32).reshape(shape) for b in (1024 - weight, weight))
        x = p.add(p.mul(p.select(x, axis, low), p.program.constant(lower)), p.mul(p.select(x, axis, high), p.program.constant(upper)))
    twice = p.add_scalar(p.add(p.shift_right(x, 31), x, 2), 1 << 20)
    return p.finish(p.shift_right(twice, 21))


# ---------------------------------------------------------------- the float boundary


def _quantize(p: Portable, node: Node) -> int:
    """RNE(f32(x * f32(1 / s))) clamped around 0, plus z: every step after the product is exact."""
    out, b = p.type(node.outputs[0]), p.program
    x = p.value(node.inputs[0])
    shape = p.shape(x)
    inverse = b.constant(np.asarray([np.float32(1) / np.float32(out.scale)], np.float32))
    v = p.call("aten::mul.out", x, inverse, shape=shape, dtype=np.float32)
    v = p.call("aten::round.out", v, shape=shape, dtype=np.float32)
    low, high = (b.real(bound - out.zero_point) for bound in (-128, 127))
    v = p.call("aten::clamp.out", v, low, high, shape=shape, dtype=np.float32)
    if out.zero_point:
        v = p.call("aten::add.Scalar_out", v, b.real(out.zero_point), b.integer(1), shape=shape, dtype=np.float32)
    return p.cast(v, np.int8)


def _dequantize(p: Portable, node: Node) -> int:
    x, b = p.type(node.inputs[0]), p.program
    v = p.cast(p.value(node.inputs[0]), np.float32)
    shape = p.shape(v)
    if x.zero_point:
        v = p.call("aten::add.Scalar_out", v, b.real(-x.zero_point), b.integer(1), shape=shape, dtype=np.float32)
    scale = b.constant(np.asarray([x.scale], np.float32))
    return p.call("aten::mul.out", v, scale, shape=shape, dtype=np.float32)


EMITTERS: dict[str, Callable[[Portable, Node], int]] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise,
    "transpose_conv2d": _transpose_conv,
    "fully_connected": _fully_connected,
    "add": _add(1),
    "sub": _add(-1),
    "mul": _mul,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "mean": _reduce_sum,
    "sum": _reduce_sum,
    "reduce_max": _reduce_max,
    "softmax": _softmax,
    "prelu": _prelu,
    **dict.fromkeys(("relu", "relu6", "clamp"), _clamp),
    **dict.fromkeys(("logistic", "tanh", "elu", "hard_swish", "leaky_relu", "requantize"), _table),
    "reshape": _reshape,
    "transpose": _transpose,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "resize_nearest": _resize_nearest,
    "resize_bilinear": _resize_bilinear,
}
