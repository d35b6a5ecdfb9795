"""Integer graphs as XNNPACK delegate blobs.

One function per op writes the op's XNNPACK nodes; :func:`refusal` says why a node has to run outside. XNNPACK is
channels-last as the IR is, so no layout changes here. Facts about XNNPACK are those of commit 1adaa7c709, which
ExecuTorch 1.4.1 pins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from qwtv2_edge.ir.graph import Graph, Node, origin
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.numerics import Numerics, rule_key, wide_key
from qwtv2_edge.ops import integers, sequence, weighted
from qwtv2_edge.ops.kernels import nearest_index
from qwtv2_edge.ops.spec import ACTIVATIONS
from qwtv2_edge_executorch.blob import (
    FLAG_ALIGN_CORNERS,
    FLAG_KEEP_DIMS,
    FLAG_LEGACY_COORDINATES,
    FLAG_TRANSPOSE_B,
    INTERNAL,
    MAX_RANK,
    QCINT8,
    QCINT32,
    Blob,
)
from qwtv2_edge_executorch.float32 import FLOAT_FORMS, number

Shape = tuple[int, ...]

# ---------------------------------------------------------------- weighted ops


def _weights(blob: Blob, node: Node, axis: int) -> tuple[int, int]:
    """Ids of the filter and the bias; a single weight scale is spread over all channels, which computes the same."""
    x, w, b = node.inputs
    type = blob.graph.tensors[w]
    channels = type.shape[axis]
    assert type.quantization is not None
    weighted.effective_scale(node.op, "F32E", blob.graph.in_types(node), blob.graph.out_types(node)[0])  # raises out of range
    scale = np.broadcast_to(type.quantization.scale_array, (channels,))
    # XNNPACK checks that the bias has scales, and never uses them
    bias_scale = np.maximum(np.float32(blob.graph.tensors[x].scale) * scale, np.finfo(np.float32).tiny)
    filter_id = blob.channelwise(blob.graph.constants[w], QCINT8, scale, axis)
    return filter_id, blob.channelwise(blob.graph.constants[b], QCINT32, bias_scale, 0)


def _window(a: Any, kernel: Shape, padding: Any) -> dict[str, int]:
    (top, bottom), (left, right) = padding
    dilation = getattr(a, "dilation", (1, 1))
    return {
        "padding_top": top,
        "padding_right": right,
        "padding_bottom": bottom,
        "padding_left": left,
        "kernel_height": kernel[0],
        "kernel_width": kernel[1],
        "subsampling_height": a.stride[0],
        "subsampling_width": a.stride[1],
        "dilation_height": dilation[0],
        "dilation_width": dilation[1],
    }


def _window_node(
    blob: Blob,
    node: Node,
    kind: str,
    kernel: Shape,
    groups: int,
    channels: Shape,
    constants: Shape,
    bounds: tuple[float, float] | None = None,
) -> None:
    """A convolution of any kind. channels: inputs and outputs per group; constants: ids of weights and bias."""
    blob.node(
        kind,
        bounds=bounds,
        **_window(node.attrs, kernel, node.attrs.padding),
        group_input_channels=channels[0],
        group_output_channels=channels[1],
        groups=groups,
        input1_id=blob.value(node.inputs[0]),
        filter_id=constants[0],
        bias_id=constants[1],
        output_id=blob.value(node.outputs[0]),
    )


def _conv2d(blob: Blob, node: Node) -> None:
    a = node.attrs
    o, kh, kw, i = blob.graph.tensors[node.inputs[1]].shape
    bounds = ACTIVATIONS[a.activation]
    _window_node(blob, node, "XNNConv2d", (kh, kw), a.groups, (i, o // a.groups), _weights(blob, node, 0), bounds)


def _depthwise(blob: Blob, node: Node) -> None:
    _, kh, kw, channels = blob.graph.tensors[node.inputs[1]].shape
    groups = blob.graph.tensors[node.inputs[0]].shape[3]
    bounds = ACTIVATIONS[node.attrs.activation]
    _window_node(blob, node, "XNNDepthwiseConv2d", (kh, kw), groups, (1, channels // groups), _weights(blob, node, 3), bounds)


def _avg_pool(blob: Blob, node: Node) -> None:
    """An average without padding is a depthwise convolution with codes 1 and weight scale 1/n."""
    a = node.attrs
    channels = blob.graph.tensors[node.inputs[0]].shape[3]
    scale = np.full(channels, np.float32(1) / np.float32(prod(a.kernel)), np.float32)
    ones = np.ones((1, *a.kernel, channels), np.int8)
    filter_id = blob.channelwise(ones, QCINT8, scale, 3)
    bias_scale = np.maximum(np.float32(blob.graph.tensors[node.inputs[0]].scale) * scale, np.finfo(np.float32).tiny)
    bias_id = blob.channelwise(np.zeros(channels, np.int32), QCINT32, bias_scale, 0)
    _window_node(blob, node, "XNNDepthwiseConv2d", a.kernel, channels, (1, 1), (filter_id, bias_id))


def _transpose_conv(blob: Blob, node: Node) -> None:
    a = node.attrs
    o, kh, kw, i = blob.graph.tensors[node.inputs[1]].shape
    filter_id, bias_id = _weights(blob, node, 0)
    padding = tuple((before, max(after, 0)) for before, after in a.crop)
    blob.node(
        "XNNConvTranspose2d",
        bounds=ACTIVATIONS[a.activation],
        **_window(a, (kh, kw), padding),
        adjustment_height=max(-a.crop[0][1], 0),
        adjustment_width=max(-a.crop[1][1], 0),
        group_input_channels=i,
        group_output_channels=o,
        groups=1,
        input1_id=blob.value(node.inputs[0]),
        filter_id=filter_id,
        bias_id=bias_id,
        output_id=blob.value(node.outputs[0]),
    )


def _fully_connected(blob: Blob, node: Node) -> None:
    filter_id, bias_id = _weights(blob, node, 0)
    blob.node(
        "XNNFullyConnected",
        bounds=ACTIVATIONS[node.attrs.activation],
        input1_id=blob.value(node.inputs[0]),
        filter_id=filter_id,
        bias_id=bias_id,
        output_id=blob.value(node.outputs[0]),
    )


# ---------------------------------------------------------------- element by element


def _binary(kind: str) -> Callable[[Blob, Node], None]:
    def write(blob: Blob, node: Node) -> None:
        first, second = (blob.value(t) for t in node.inputs)
        if kind == "XNNMultiply" and _on_one_tensor(blob.graph, node):
            # src/subgraph.c :: optimize_common_subgraphs_mul_to_sqr makes it a look-up table, which rounds differently
            second = blob.copy_by_transpose(second)
        bounds = ACTIVATIONS[node.attrs.activation]
        blob.node(kind, bounds=bounds, input1_id=first, input2_id=second, output_id=blob.value(node.outputs[0]))

    return write


def _on_one_tensor(graph: Graph, node: Node) -> bool:
    return origin(graph, node.inputs[0]) == origin(graph, node.inputs[1])


def _quantize(blob: Blob, node: Node) -> None:
    x, out = blob.value(node.inputs[0]), blob.graph.out_types(node)[0]
    if out.dtype == "int8":
        blob.single("XNNConvert", x, blob.value(node.outputs[0]))
    else:
        inverse = np.float32(1) / np.float32(out.scale)
        blob.store_codes(node.outputs[0], blob.pair("mul", x, number(blob, inverse)), out.code_bounds)


def _dequantize(blob: Blob, node: Node) -> None:
    x, type, target = blob.value(node.inputs[0]), blob.graph.in_types(node)[0], blob.value(node.outputs[0])
    if type.dtype == "int8":
        blob.single("XNNConvert", x, target)
    else:
        blob.pair("mul", x, number(blob, type.scale), target)


def _float_form(key: str) -> Callable[[Blob, Node], None]:
    def write(blob: Blob, node: Node) -> None:
        FLOAT_FORMS[key](blob, node)

    return write


def _by_width(op: str, narrow: Callable[[Blob, Node], None]) -> Callable[[Blob, Node], None]:
    def write(blob: Blob, node: Node) -> None:
        wide = rule_key(blob.graph, node) == wide_key(op)
        (_float_form(wide_key(op)) if wide else narrow)(blob, node)

    return write


def _unary(kind: str, **attributes: Callable[[Any], Any]) -> Callable[[Blob, Node], None]:
    def write(blob: Blob, node: Node) -> None:
        extra = {name: f(node.attrs) for name, f in attributes.items()}
        blob.node(kind, input_id=blob.value(node.inputs[0]), output_id=blob.value(node.outputs[0]), **extra)

    return write


def _clamp(blob: Blob, node: Node) -> None:
    bounds = ACTIVATIONS[node.op] if node.op != "clamp" else (node.attrs.min, node.attrs.max)
    blob.node("XNNClamp", bounds=bounds, input_id=blob.value(node.inputs[0]), output_id=blob.value(node.outputs[0]))


def _mask_fill(blob: Blob, node: Node) -> None:
    """The smaller of value and mask; the mask's codes first get the value's scale and zero point."""
    x, mask, y = node.inputs[0], node.inputs[1], node.outputs[0]
    type = blob.graph.tensors[x]
    if mask in blob.graph.constants:
        limit = blob.int8_constant(blob.graph.constants[mask], type.quantization)
    else:
        # codes over 255, to within 1e-7; in the value's scale they are rounded to the same codes again
        share = blob.reals(mask)
        lowest = number(blob, (-128 - type.zero_point) * type.scale)
        bound = blob.pair("add", blob.pair("mul", share, number(blob, 255 * type.scale)), lowest)
        limit = blob.single("XNNConvert", bound, blob.temporary(type, blob.graph.tensors[mask].shape))
    blob.pair("min", blob.value(x), limit, blob.value(y))


def _batch_matmul(blob: Blob, node: Node) -> None:
    """At least three axes."""
    shapes = [blob.graph.tensors[t].shape for t in (*node.inputs, *node.outputs)]
    ids = [blob.value(t) for t in (*node.inputs, *node.outputs)]
    flat = len(shapes[0]) == 2
    if flat:
        types = [blob.graph.tensors[t] for t in (*node.inputs, *node.outputs)]
        a, b, y = (blob.temporary(type, (1, *shape)) for type, shape in zip(types, shapes, strict=True))
        blob.reshape(ids[0], a, (1, *shapes[0]))
        blob.reshape(ids[1], b, (1, *shapes[1]))
    else:
        a, b, y = ids
    flags = FLAG_TRANSPOSE_B if node.attrs.transpose_b else 0
    blob.node("XNNBatchMatrixMultiply", flags=flags, input1_id=a, input2_id=b, output_id=y)
    if flat:
        blob.reshape(y, ids[2], shapes[2])


def _row_max(blob: Blob, tensor: str) -> int:
    """The largest code of each row of the last axis, which stays. Pooling over columns of the transposed rows is fastest."""
    type = blob.graph.tensors[tensor]
    *lead, count = type.shape
    rows, source = prod(lead), blob.value(tensor)
    if len(type.shape) != 2:
        source = blob.temporary(type, (rows, count))
        blob.reshape(blob.value(tensor), source, (rows, count))
    columns, image = blob.temporary(type, (count, rows)), blob.temporary(type, (1, count, 1, rows))
    blob.node("XNNStaticTranspose", num_dims=2, perm=[1, 0], input_id=source, output_id=columns)
    blob.reshape(columns, image, (1, count, 1, rows))
    pooled, largest = blob.temporary(type, (1, 1, 1, rows)), blob.temporary(type, (*lead, 1))
    _max_pool_node(blob, image, pooled, (count, 1), (count, 1), ((0, 0), (0, 0)))
    blob.reshape(pooled, largest, (*lead, 1))
    return largest


def _softmax(blob: Blob, node: Node) -> None:
    """The steps of :func:`sequence.softmax_f32`. XNNPACK makes one table of each of the two rows of nodes between 8-bit values."""
    x, (q,) = node.inputs[0], blob.graph.in_types(node)
    scale = np.float32(q.scale) * np.float32(node.attrs.beta)

    def value(scale: float, zero_point: int) -> int:
        return blob.temporary(TensorType(q.shape, "int8", Quantization.per_tensor(scale, zero_point)), q.shape)

    distance = blob.pair("sub", blob.value(x), _row_max(blob, x), value(q.scale, 127))

    def exponentials(step: float) -> int:
        scaled = distance
        if node.attrs.beta != 1:
            real = blob.pair("mul", blob.single("XNNConvert", distance), number(blob, node.attrs.beta))
            scaled = blob.single("XNNConvert", real, value(float(scale), 127))
        return blob.single("XNNExp", scaled, value(step, -128))

    coarse, fine = sequence.softmax_scales(q.shape[-1])
    above = blob.pair("sub", blob.single("XNNConvert", exponentials(coarse)), number(blob, 256 * fine))
    above = blob.single("XNNConvert", blob.single("XNNClamp", above, bounds=(0, 1)), value(coarse, -128))
    e = blob.pair("add", blob.single("XNNConvert", exponentials(fine)), blob.single("XNNConvert", above))
    blob.store_reals(node.outputs[0], blob.pair("div", e, blob.row_sum(e)))


# ---------------------------------------------------------------- pooling and reductions


def _max_pool_node(blob: Blob, source: int, target: int, kernel: Shape, stride: Shape, padding: Any) -> None:
    (top, bottom), (left, right) = padding
    blob.node(
        "XNNMaxPooling2d",
        padding_top=top,
        padding_right=right,
        padding_bottom=bottom,
        padding_left=left,
        pooling_height=kernel[0],
        pooling_width=kernel[1],
        stride_height=stride[0],
        stride_width=stride[1],
        dilation_height=1,
        dilation_width=1,
        input_id=source,
        output_id=target,
    )


def _max_pool(blob: Blob, node: Node) -> None:
    a = node.attrs
    _max_pool_node(blob, blob.value(node.inputs[0]), blob.value(node.outputs[0]), a.kernel, a.stride, a.padding)


def _reduction(blob: Blob, node: Node, reduce: Callable[[int, int, tuple[int, int]], None]) -> None:
    """Bring the reduced axes to the middle of (outer, height, width, inner), reduce those two, restore the shape."""
    x, y = (blob.graph.tensors[t] for t in (node.inputs[0], node.outputs[0]))
    axes = node.attrs.axes
    source, shape = blob.value(node.inputs[0]), x.shape
    if axes != tuple(range(axes[0], axes[-1] + 1)):
        perm = [i for i in range(len(shape)) if i not in axes] + list(axes)
        shape = tuple(shape[p] for p in perm)
        moved = blob.temporary(x, shape)
        blob.node("XNNStaticTranspose", num_dims=len(perm), perm=perm, input_id=source, output_id=moved)
        source, axes = moved, tuple(range(len(shape) - len(axes), len(shape)))
    if len(shape) == 4 and axes == (1, 2):
        window = shape
    else:
        window = (prod(shape[: axes[0]]), prod(shape[a] for a in axes), 1, prod(shape[axes[-1] + 1 :]))
        folded = blob.temporary(x, window)
        blob.reshape(source, folded, window)
        source = folded
    flat = (window[0], 1, 1, window[3])
    target = blob.value(node.outputs[0])
    if y.shape == flat:
        reduce(source, target, (window[1], window[2]))
    else:
        reduced = blob.temporary(y, flat)
        reduce(source, reduced, (window[1], window[2]))
        blob.reshape(reduced, target, y.shape)


def _mean(blob: Blob, node: Node) -> None:
    x = blob.graph.tensors[node.inputs[0]]
    if len(x.shape) == 4 and node.attrs.axes == (1, 2) and not node.attrs.keep_dims:
        blob.node("XNNGlobalAvgPooling2d", input_id=blob.value(node.inputs[0]), output_id=blob.value(node.outputs[0]))
        return

    def reduce(source: int, target: int, window: tuple[int, int]) -> None:
        blob.node("XNNGlobalAvgPooling2d", input_id=source, output_id=target, flags=FLAG_KEEP_DIMS)

    _reduction(blob, node, reduce)


def _reduce_max(blob: Blob, node: Node) -> None:
    def reduce(source: int, target: int, window: tuple[int, int]) -> None:
        _max_pool_node(blob, source, target, window, window, ((0, 0), (0, 0)))

    _reduction(blob, node, reduce)


# ---------------------------------------------------------------- data movement


def _reshape(blob: Blob, node: Node) -> None:
    blob.reshape(blob.value(node.inputs[0]), blob.value(node.outputs[0]), blob.graph.tensors[node.outputs[0]].shape)


def _transpose(blob: Blob, node: Node) -> None:
    perm = list(node.attrs.perm)
    ids: dict[str, Any] = {"input_id": blob.value(node.inputs[0]), "output_id": blob.value(node.outputs[0])}
    blob.node("XNNStaticTranspose", num_dims=len(perm), perm=perm, **ids)


def _concatenate(blob: Blob, sources: Sequence[int], shapes: Sequence[Shape], type: TensorType, axis: int, target: int) -> None:
    """XNNPACK joins two to five tensors at a time; more are chained."""
    ids, sizes = list(sources), [s[axis] for s in shapes]
    while len(ids) > 5:
        size = sum(sizes[:5])
        joined = blob.temporary(type, (*type.shape[:axis], size, *type.shape[axis + 1 :]))
        _concatenate_node(blob, ids[:5], axis, joined)
        ids, sizes = [joined, *ids[5:]], [size, *sizes[5:]]
    _concatenate_node(blob, ids, axis, target)


def _concatenate_node(blob: Blob, ids: Sequence[int], axis: int, target: int) -> None:
    if len(ids) == 1:
        blob.node("XNNCopy", input_id=ids[0], output_id=target)
        return
    fields: dict[str, Any] = {f"input{i + 1}_id": ids[i] if i < len(ids) else INTERNAL for i in range(5)}
    blob.node(f"XNNConcatenate{len(ids)}", axis=axis, output_id=target, **fields)


def _concat(blob: Blob, node: Node) -> None:
    y = blob.graph.tensors[node.outputs[0]]
    ids = [blob.value(t) for t in node.inputs]
    shapes = [blob.graph.tensors[t].shape for t in node.inputs]
    _concatenate(blob, ids, shapes, y, node.attrs.axis, blob.value(node.outputs[0]))


def _slice(blob: Blob, node: Node) -> None:
    a = node.attrs
    sizes = list(blob.graph.tensors[node.outputs[0]].shape)
    ids: dict[str, Any] = {"input_id": blob.value(node.inputs[0]), "output_id": blob.value(node.outputs[0])}
    blob.node("XNNStaticSlice", num_dims=len(sizes), offsets=list(a.begin), sizes=sizes, **ids)


def _pad(blob: Blob, node: Node) -> None:
    before, after = (list(side) for side in zip(*node.attrs.paddings, strict=True))
    type = blob.graph.tensors[node.outputs[0]]
    value = float(integers.pad_code(node.attrs.value, type))
    if type.dtype == "int8":  # the real value of the wanted code: XNNPACK rounds it back to that code
        value = float(np.float32(value - type.zero_point) * np.float32(type.scale))
    ids: dict[str, Any] = {"input_id": blob.value(node.inputs[0]), "output_id": blob.value(node.outputs[0])}
    blob.node("XNNStaticConstantPad", pre_paddings=before, post_paddings=after, padding_value=value, **ids)


def _resize_bilinear(blob: Blob, node: Node) -> None:
    a = node.attrs
    flags = FLAG_ALIGN_CORNERS if a.align_corners else 0 if a.half_pixel_centers else FLAG_LEGACY_COORDINATES
    ids: dict[str, Any] = {"input_id": blob.value(node.inputs[0]), "output_id": blob.value(node.outputs[0])}
    blob.node("XNNStaticResizeBilinear2D", new_height=a.size[0], new_width=a.size[1], flags=flags, **ids)


def nearest_factors(x: TensorType, a: Any) -> tuple[int, int] | None:
    """Whole factors by which a nearest resize repeats rows and columns (at most 5 each), or None."""
    factors = []
    for size_in, size_out in zip(x.shape[1:3], a.size, strict=True):
        factor = size_out // size_in
        if factor * size_in != size_out or not 1 <= factor <= 5:
            return None
        index = nearest_index(size_in, size_out, a.align_corners, a.half_pixel_centers)
        if not np.array_equal(index, np.repeat(np.arange(size_in), factor)):
            return None
        factors.append(factor)
    return factors[0], factors[1]


def _resize_nearest(blob: Blob, node: Node) -> None:
    """Repeating k times is joining a tensor with itself along an axis of size one."""
    x = blob.graph.tensors[node.inputs[0]]
    n, h, w, c = x.shape
    factors = nearest_factors(x, node.attrs)
    assert factors is not None
    ky, kx = factors
    source, target = blob.value(node.inputs[0]), blob.value(node.outputs[0])
    for rows, size, factor in ((n * h * w, c, kx), (n * h, w * kx * c, ky)):
        if factor > 1:
            one = blob.temporary(x, (rows, 1, size))
            blob.reshape(source, one, (rows, 1, size))
            source = blob.temporary(x, (rows, factor, size))
            _concatenate_node(blob, [one] * factor, 1, source)
    blob.reshape(source, target, blob.graph.tensors[node.outputs[0]].shape)


EMITTERS: dict[str, Callable[[Blob, Node], None]] = {
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise,
    "transpose_conv2d": _transpose_conv,
    "fully_connected": _fully_connected,
    "batch_matmul": _batch_matmul,
    "add": _by_width("add", _binary("XNNAdd")),
    "sub": _by_width("sub", _binary("XNNSubtract")),
    "mul": _binary("XNNMultiply"),
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "mean": _mean,
    "reduce_max": _reduce_max,
    "relu": _clamp,
    "relu6": _clamp,
    "clamp": _clamp,
    "logistic": _unary("XNNSigmoid"),
    "tanh": _unary("XNNTanh"),
    "hard_swish": _unary("XNNHardswish"),
    "elu": _unary("XNNELU", alpha=lambda a: a.alpha),
    "leaky_relu": _unary("XNNLeakyReLU", negative_slope=lambda a: a.alpha),
    "gelu": _unary("XNNGelu"),
    "softmax": _softmax,
    "mask_fill": _mask_fill,
    **{op: _float_form(op) for op in ("layer_norm", "channel_add", "channel_scale", "l2_normalize")},
    "quantize": _quantize,
    "dequantize": _dequantize,
    "requantize": _by_width("requantize", _unary("XNNConvert")),
    "reshape": _reshape,
    "transpose": _transpose,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "resize_bilinear": _resize_bilinear,
    "resize_nearest": _resize_nearest,
}

# ---------------------------------------------------------------- what XNNPACK takes


def _refuses_pair(types: Sequence[TensorType], y: TensorType) -> str:
    ratios = [float(np.float32(t.scale) / np.float32(y.scale)) for t in types]
    if not all(2.0**-10 <= r < 2.0**8 for r in ratios):
        return f"scale ratios {ratios} leave [2**-10, 2**8)"
    return ""


def _q8_window(ratio: float, slope: float = 1.0) -> bool:
    negative = float(np.float32(ratio) * np.float32(slope))
    return 2.0**-8 <= ratio <= 2.0**7 and abs(negative) >= 2.0**-8 and -127.99609375 <= negative <= 2.0**7


#: ops that move 16-bit codes, or bring reals to codes and back
WIDE_MOVES = frozenset({"reshape", "transpose", "concat", "slice", "pad", "quantize", "dequantize"})


def _form(graph: Graph, node: Node) -> str:
    """The key of a node in ``FLOAT_FORMS``, if it is there."""
    return node.op if node.op in FLOAT_FORMS else rule_key(graph, node)


def _refuses_widths(graph: Graph, node: Node, numerics: Numerics) -> str:
    """Inside a blob 16-bit codes are float32 values: only the ops with float32 rules take them."""
    dtypes = {graph.tensors[t].dtype for t in (*node.inputs, *node.outputs) if t not in graph.constants}
    form = _form(graph, node)
    if (form in FLOAT_FORMS or node.op == "softmax") and numerics.rule(form) != "F32":
        return "this network's float_ops ask for integers"
    if "int32" in dtypes:
        return "XNNPACK has no integer indices"
    if "int16" in dtypes and form not in FLOAT_FORMS and (node.op not in WIDE_MOVES or numerics.rule("layer_norm") != "F32"):
        return "XNNPACK has no 16-bit activations"
    return ""


def refusal(graph: Graph, node: Node, numerics: Numerics) -> str:
    """Why XNNPACK can't run ``node``, or "" when it can."""
    if node.op not in EMITTERS:
        return "XNNPACK has no integer form of this op"
    if widths := _refuses_widths(graph, node, numerics):
        return widths
    types, y = graph.in_types(node), graph.out_types(node)[0]
    x, a = types[0], node.attrs
    if max(len(t.shape) for t in (*types, y)) > MAX_RANK:
        return f"rank above {MAX_RANK}"
    if node.inputs[0] in graph.constants and node.op not in ("add", "sub", "mul", "batch_matmul", "concat", "mask_fill"):
        return "its input is a constant"
    if _form(graph, node) in FLOAT_FORMS:
        return ""
    match node.op:
        case "sub" if _on_one_tensor(graph, node):
            # src/subgraph.c :: optimize_common_subgraphs_binary_to_const
            return "XNNPACK takes a tensor less itself for a constant, which rounds differently"
        case "add" | "sub":
            return _refuses_pair(types, y)
        case "mul" if not integers.product_in_window(types[0], types[1], y):
            return f"product scale {float(integers.product_scale32(types[0], types[1], y))} leaves [2**-16, 2**8)"
        case "batch_matmul" if not float(integers.product_scale32(types[0], types[1], y)) < 2.0**8:
            return f"product scale {float(integers.product_scale32(types[0], types[1], y))} is not below 2**8"
        case "mask_fill" if 1 in (x.size, types[1].size):
            # src/subgraph.c :: optimize_common_subgraphs_min_max_to_clamp
            return "XNNPACK takes the minimum with one number for a clamp"
        case "avg_pool2d" if a.padding != ((0, 0), (0, 0)):
            return "averages over partly valid windows differ from its convolution form"
        case "transpose_conv2d":
            if any(before < 0 or -after >= s for (before, after), s in zip(a.crop, a.stride, strict=True)):
                return f"output extension {a.crop} reaches stride {a.stride}"
        case "slice" if any(s != 1 for s in a.stride):
            return f"slice strides {a.stride}"
        case "resize_nearest" if nearest_factors(x, a) is None:
            return "not a whole-number repetition"
        case "clamp" if not a.min <= 0 < a.max:
            # merging a clamp into the window op before it, XNNPACK also clamps that op's padding counts, held as float bits
            # (src/subgraph.c :: optimize_common_subgraphs_merge_clamps); only bounds around 0 leave them as they are
            return f"a clamp to [{a.min:g}, {a.max:g}] leaves out 0 or ends there, which damages the op before it"
        case "requantize" if not _q8_window(float(np.float32(x.scale) / np.float32(y.scale))):
            return "scale ratio leaves [2**-8, 2**7]"
        case "leaky_relu" if not _q8_window(float(np.float32(x.scale) / np.float32(y.scale)), a.alpha):
            return "scale ratios leave [2**-8, 2**7]"
    return ""
