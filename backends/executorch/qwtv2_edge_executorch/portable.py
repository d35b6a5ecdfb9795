"""Integer graphs as integer arithmetic on ExecuTorch's portable kernels.

Between the quantized input and output every value is an integer: int8 and int16 codes, int32 sums, int64 products; but
for norms and 16-bit sums where the network's float_ops allow float32 (``portable_sequence``).

(1)  acc = sum x * w                                     int32; x holds raw codes, padding holds the zero point z_in
(2)  out = clamp((acc * m + k) >> s)                     int64; k = (bias - z_in * sum w) * m + 2**(s-1) + z_out * 2**s

A convolution gathers its taps by slices and runs as a matrix product, since the portable convolution is an order
of magnitude slower than the portable matrix product; grouped, depthwise and transposed ones use the convolution.
Unary ops are look-up tables, built by the simulator's own integer meaning. Memory layout is the IR's (NHWC);
kernels that think in NCHW see the same bytes with dimension order (0, 2, 3, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from qwtv2_edge import fixedpoint as fp
from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.numerics import Numerics, rule_key, wide_key
from qwtv2_edge.ops import integers, weighted
from qwtv2_edge.ops.kernels import nearest_index, valid_taps
from qwtv2_edge.ops.spec import ACTIVATIONS
from qwtv2_edge_executorch.kernels import Portable, Shape, meaning, reduced
from qwtv2_edge_executorch.numerics import PORTABLE_RULES
from qwtv2_edge_executorch.portable_sequence import FORMS as SEQUENCE_FORMS
from qwtv2_edge_executorch.portable_sequence import by_width

CHANNELS_LAST = (0, 2, 3, 1)

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


def _widened(p: Portable, codes: np.ndarray, dtype: Any) -> int:
    """A constant stored as int8 and widened at run time: the file stays small, the cost is one pass over the weights."""
    return p.cast(p.program.constant(codes), dtype)


def _accumulator(p: Portable, node: Node) -> Any:
    """int32, or int64 where sums of 16-bit codes could leave it."""
    return np.int32 if _largest_sum(p, node) < 2**31 else np.int64


def _largest_sum(p: Portable, node: Node) -> int:
    w = p.graph.constants[node.inputs[1]].astype(np.int64)
    codes = 2**15 if p.type(node.inputs[0]).dtype == "int16" else 2**8
    return codes * int(np.abs(w).sum(_summed_axes(node, w)).max())


def _summed_axes(node: Node, weights: np.ndarray) -> tuple[int, ...]:
    return (0, 1, 2) if node.op == "depthwise_conv2d" else tuple(range(1, weights.ndim))


def _matrix_product(p: Portable, x: int, weights: np.ndarray, dtype: Any) -> int:
    """Rows (..., K) of codes times weights (O, K): (..., O) of ``dtype``."""
    shape = p.shape(x)
    rows = p.program.alias(p.cast(x, dtype), (prod(shape[:-1]), shape[-1]))
    w = _widened(p, weights, dtype)
    acc = p.call("aten::linear.out", rows, w, p.program.none(), shape=(prod(shape[:-1]), len(weights)), dtype=dtype)
    return p.program.alias(acc, (*shape[:-1], len(weights)))


def _convolution(p: Portable, x: int, weights: np.ndarray, out: Shape, a: Any, *, transposed: bool, groups: int) -> int:
    """The portable convolution on int32 or int64 NHWC values. weights: int8, memory order (first, kh, kw, second)."""
    n, h, w, c = p.shape(x)
    b = p.program
    first, kh, kw, second = weights.shape
    dtype = b.dtype(x)
    source = b.alias(x, (n, c, h, w), CHANNELS_LAST)
    filter = b.alias(_widened(p, weights, dtype), (first, second, kh, kw), CHANNELS_LAST)
    dilation = getattr(a, "dilation", (1, 1))
    numbers = (b.integers(a.stride), b.integers([0, 0]), b.integers(dilation), b.boolean(transposed), b.integers([0, 0]), b.integer(groups))
    shape = (out[0], out[3], out[1], out[2])
    target = p.call("aten::convolution.out", source, filter, b.none(), *numbers, shape=shape, dtype=dtype, dim_order=CHANNELS_LAST)
    return b.alias(target, out)


def _conv2d(p: Portable, node: Node) -> int:
    a = node.attrs
    w = p.graph.constants[node.inputs[1]]
    x = p.pad_spatial(p.value(node.inputs[0]), a.padding, p.type(node.inputs[0]).zero_point)
    if a.groups == 1:
        columns = p.concat(_taps(p, x, w.shape[1:3], a.stride, a.dilation), 3)
        acc = _matrix_product(p, columns, w.reshape(len(w), -1), _accumulator(p, node))
    else:
        out = p.type(node.outputs[0]).shape
        acc = _convolution(p, p.cast(x, _accumulator(p, node)), w, out, a, transposed=False, groups=a.groups)
    return _weighted_end(p, node, acc, centred=False)


def _depthwise(p: Portable, node: Node) -> int:
    a = node.attrs
    w = p.graph.constants[node.inputs[1]]
    x = p.pad_spatial(p.value(node.inputs[0]), a.padding, p.type(node.inputs[0]).zero_point)
    filter = np.ascontiguousarray(w.transpose(3, 1, 2, 0))
    out = p.type(node.outputs[0]).shape
    groups = p.type(node.inputs[0]).shape[3]
    acc = _convolution(p, p.cast(x, _accumulator(p, node)), filter, out, a, transposed=False, groups=groups)
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
    acc = _matrix_product(p, p.value(node.inputs[0]), p.graph.constants[node.inputs[1]], _accumulator(p, node))
    return _weighted_end(p, node, acc, centred=False)


def _weighted_end(p: Portable, node: Node, acc: int, *, centred: bool) -> int:
    types, out = p.graph.in_types(node), p.type(node.outputs[0])
    w, b = (p.graph.constants[t].astype(np.int64) for t in node.inputs[1:3])
    offset = b if centred else b - types[0].zero_point * w.sum(_summed_axes(node, w))
    if types[0].dtype == "int16":
        rule = p.numerics.rule(wide_key(node.op))
        bounds = fp.activation_bounds(*ACTIVATIONS[node.attrs.activation], out.scale, 0, "TFLITE", out.code_bounds)
    else:
        rule = p.numerics.rule(node.op)
        bounds = weighted.output_bounds(node.attrs.activation, out, p.numerics)
    scale = weighted.effective_scale(node.op, rule, types, out)
    return p.requantize(acc, scale, offset, _largest_sum(p, node), out, bounds)


# ---------------------------------------------------------------- element by element


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
    types, out = p.graph.in_types(node), p.type(node.outputs[0])
    wide = out.dtype == "int16"
    if not wide and p.numerics.rule("mul") != "ONE_F32":
        return _pair_table(p, node)
    x, y = (p.add_scalar(p.cast(p.value(t), np.int32), -type.zero_point) for t, type in zip(node.inputs, types, strict=True))
    scale = np.float64(integers.product_scale32(types[0], types[1], out))
    bounds = fp.activation_bounds(*ACTIVATIONS[node.attrs.activation], out.scale, out.zero_point, "TFLITE", out.code_bounds)
    return p.requantize(p.mul(x, y), scale, np.zeros(1, np.int64), 2**30 if wide else 2**16, out, bounds)


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
    total = p.sum_wide(p.value(node.inputs[0]), axes, node.attrs.keep_dims, -x.code_bounds[0])
    scale = fp.reduction_scale(x.scale, out.scale, count if node.op == "mean" else 1)
    largest = -x.code_bounds[0] * count
    return p.requantize(total, scale, np.asarray([-x.zero_point * count]), largest, out, out.code_bounds)


def _reduce_max(p: Portable, node: Node) -> int:
    b, a = p.program, node.attrs
    x = p.value(node.inputs[0])
    shape = reduced(p.shape(x), a.axes, a.keep_dims)
    return p.call("aten::amax.out", x, b.integers(a.axes), b.boolean(a.keep_dims), shape=shape, dtype=np.int8)


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
    return p.quantize(p.value(node.inputs[0]), p.type(node.outputs[0]))


def _dequantize(p: Portable, node: Node) -> int:
    return p.reals(node.inputs[0])


#: ops with a rounding of their own here, that of PORTABLE_RULES; the others move codes, sum as XNNPACK does, or look results up
ROUNDED = ("conv2d", "depthwise_conv2d", "transpose_conv2d", "fully_connected", "batch_matmul", "mean", "avg_pool2d", "resize_bilinear")


def has_form(graph: Graph, node: Node, numerics: Numerics) -> bool:
    """Whether these kernels give the bytes that ``numerics`` promises for a node."""
    if rule_key(graph, node) == wide_key(node.op) or numerics.rule(node.op) == PORTABLE_RULES.get(node.op, ""):
        return True
    if node.op == "mul":  # within XNNPACK's window its rounding depends on the processor, and a file holds one table
        first, second = graph.in_types(node)
        return not integers.product_in_window(first, second, graph.out_types(node)[0])
    if node.op == "avg_pool2d":
        return node.attrs.padding != ((0, 0), (0, 0))
    return node.op not in ROUNDED


def emit(p: Portable, node: Node) -> None:
    p.values[node.outputs[0]] = EMITTERS[node.op](p, node)


EMITTERS: dict[str, Callable[[Portable, Node], int]] = {
    **SEQUENCE_FORMS,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise,
    "transpose_conv2d": _transpose_conv,
    "fully_connected": _fully_connected,
    "add": by_width("add", _add(1)),
    "sub": by_width("sub", _add(-1)),
    "mul": _mul,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "mean": _reduce_sum,
    "sum": _reduce_sum,
    "reduce_max": _reduce_max,
    "prelu": _prelu,
    **dict.fromkeys(("relu", "relu6", "clamp"), _clamp),
    **dict.fromkeys(("logistic", "tanh", "elu", "hard_swish", "leaky_relu", "gelu"), _table),
    "requantize": by_width("requantize", _table),
    "reshape": _reshape,
    "transpose": _transpose,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "resize_nearest": _resize_nearest,
    "resize_bilinear": _resize_bilinear,
}
