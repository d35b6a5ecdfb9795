"""Integer graphs as XNNPACK delegate blobs.

One function per op writes the op's XNNPACK nodes; :func:`refusal` says why a node has to run outside. XNNPACK is
channels-last as the IR is, so no layout changes here. Facts about XNNPACK are those of commit 1adaa7c709, which
ExecuTorch 1.4.1 pins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from qwtv2_edge.ir.graph import Graph, Node, origin
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops import integers, weighted
from qwtv2_edge.ops.kernels import nearest_index
from qwtv2_edge.ops.spec import ACTIVATIONS
from qwtv2_edge_executorch.format import encode_xnnpack

FLOAT32, QINT8, QCINT8, QCINT32 = 1, 3, 6, 7
EXTERNAL_INPUT, EXTERNAL_OUTPUT = 1, 2
INTERNAL = 0xFFFFFFFF
FLAG_LEGACY_COORDINATES, FLAG_ALIGN_CORNERS, FLAG_KEEP_DIMS = 0x4, 0x8, 0x40
MAX_RANK = 6
#: XNNPACK kernels may read this far past the end of a constant
CONSTANT_TAIL = 128

#: external value 0 is left undefined: where XNNPACK merges ops into a table, it takes value 0 for part of the chain
#: (src/subgraph.c :: copy_node_to_static_subgraph copies as many outputs as there are inputs), and an op of two
#: tensors, one of them value 0, would become a function of one; the table then is freed twice
FIRST_EXTERNAL = 1

Shape = tuple[int, ...]


@dataclass
class Blob:
    """One XNNPACK graph in the making. ``args`` of the delegate call are ``inputs`` then ``outputs``, by tensor name."""

    graph: Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ids: dict[str, int] = field(default_factory=dict)
    values: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    constants: list[bytes] = field(default_factory=list)
    known: dict[bytes, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ends = [(t, EXTERNAL_INPUT) for t in self.inputs] + [(t, EXTERNAL_OUTPUT) for t in self.outputs]
        for i, (name, flag) in enumerate(ends, FIRST_EXTERNAL):
            self.ids[name] = self._activation(self.graph.tensors[name], external=i, flags=flag)

    # ---- values

    def value(self, tensor: str) -> int:
        """The id of a graph tensor, defined on first use."""
        if tensor not in self.ids:
            type = self.graph.tensors[tensor]
            data = self.graph.constants.get(tensor)
            self.ids[tensor] = self._activation(type, buffer=0 if data is None else self.buffer(data.tobytes()))
        return self.ids[tensor]

    def temporary(self, like: TensorType, shape: Shape) -> int:
        """An internal value with the dtype and quantization of ``like``."""
        return self._activation(TensorType(shape, like.dtype, like.quantization))

    def _activation(self, type: TensorType, *, external: int = INTERNAL, flags: int = 0, buffer: int = 0) -> int:
        if type.dtype == "float32":
            return self._value(type.shape, FLOAT32, None, external, flags, buffer)
        params = ("PerTensorQuant", {"scale": type.scale, "zero_point": type.zero_point})
        return self._value(type.shape, QINT8, params, external, flags, buffer)

    def channelwise(self, data: np.ndarray, datatype: int, scale: np.ndarray, axis: int) -> int:
        """A constant with one float32 scale per slice of ``axis``."""
        params = {
            "scale": [],
            "channel_dim": axis,
            "scale_buffer_idx": self.buffer(np.asarray(scale, np.float32).tobytes()),
            "num_scales": len(scale),
        }
        return self._value(data.shape, datatype, ("PerChannelQuant", params), INTERNAL, 0, self.buffer(data.tobytes()))

    def buffer(self, data: bytes) -> int:
        if data not in self.known:
            self.constants.append(data)
            self.known[data] = len(self.constants)
        return self.known[data]

    def _value(self, shape: Sequence[int], datatype: int, params: Any, external: int, flags: int, buffer: int) -> int:
        id = len(self.values)
        tensor = {
            "datatype": datatype,
            "num_dims": len(shape),
            "dims": list(shape),
            "constant_buffer_idx": buffer,
            "external_id": external,
            "flags": flags,
            "id_out": id,
        }
        union: Any = ("XNNTensorValue", tensor)
        if params is not None:
            union = ("XNNQuantizedTensorValue", {"tensor_value": tensor, "quant_params": params})
        self.values.append({"xvalue_union": union})
        return id

    # ---- nodes

    def node(self, kind: str, *, bounds: tuple[float, float] | None = None, **fields: Any) -> None:
        """Append a node; ``bounds``: real clamp of its output."""
        item: dict[str, Any] = {"xnode_union": (kind, {"flags": 0, **fields}), "debug_handle": len(self.nodes)}
        if bounds is not None and bounds != ACTIVATIONS["none"]:
            item["output_min_max"] = {"output_min": bounds[0], "output_max": bounds[1]}
        self.nodes.append(item)

    def reshape(self, source: int, target: int, shape: Shape) -> None:
        self.node("XNNStaticReshape", num_dims=len(shape), new_shape=list(shape), input_id=source, output_id=target)

    def encode(self) -> bytes:
        graph = {
            "version": "0",
            "xnodes": self.nodes,
            "xvalues": self.values,
            "num_externs": FIRST_EXTERNAL + len(self.inputs) + len(self.outputs),
            "input_ids": [self.ids[t] for t in self.inputs],
            "output_ids": [self.ids[t] for t in self.outputs],
        }
        return encode_xnnpack(graph, [*self.constants, bytes(CONSTANT_TAIL)])


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
        blob.node(
            kind,
            bounds=ACTIVATIONS[node.attrs.activation],
            input1_id=blob.value(node.inputs[0]),
            input2_id=blob.value(node.inputs[1]),
            output_id=blob.value(node.outputs[0]),
        )

    return write


def _unary(kind: str, **attributes: Callable[[Any], Any]) -> Callable[[Blob, Node], None]:
    def write(blob: Blob, node: Node) -> None:
        extra = {name: f(node.attrs) for name, f in attributes.items()}
        blob.node(kind, input_id=blob.value(node.inputs[0]), output_id=blob.value(node.outputs[0]), **extra)

    return write


def _clamp(blob: Blob, node: Node) -> None:
    bounds = ACTIVATIONS[node.op] if node.op != "clamp" else (node.attrs.min, node.attrs.max)
    blob.node("XNNClamp", bounds=bounds, input_id=blob.value(node.inputs[0]), output_id=blob.value(node.outputs[0]))


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
    # the real value of the wanted code: XNNPACK rounds it back to that code
    value = float(np.float32(integers.pad_code(node.attrs.value, type) - type.zero_point) * np.float32(type.scale))
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
    "add": _binary("XNNAdd"),
    "sub": _binary("XNNSubtract"),
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
    "quantize": _unary("XNNConvert"),
    "dequantize": _unary("XNNConvert"),
    "requantize": _unary("XNNConvert"),
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


def _refuses_product(types: Sequence[TensorType], y: TensorType) -> str:
    ratio = float(np.float32(types[0].scale) * np.float32(types[1].scale) / np.float32(y.scale))
    return "" if 2.0**-16 <= ratio < 2.0**8 else f"product scale {ratio} leaves [2**-16, 2**8)"


def _q8_window(ratio: float, slope: float = 1.0) -> bool:
    negative = float(np.float32(ratio) * np.float32(slope))
    return 2.0**-8 <= ratio <= 2.0**7 and abs(negative) >= 2.0**-8 and -127.99609375 <= negative <= 2.0**7


def refusal(graph: Graph, node: Node) -> str:
    """Why XNNPACK can't run ``node``, or "" when it can."""
    if node.op not in EMITTERS:
        return "XNNPACK has no integer form of this op"
    types, y = graph.in_types(node), graph.out_types(node)[0]
    x, a = types[0], node.attrs
    if max(len(t.shape) for t in (*types, y)) > MAX_RANK:
        return f"rank above {MAX_RANK}"
    if node.inputs[0] in graph.constants and node.op not in ("add", "sub", "mul"):
        return "its input is a constant"
    match node.op:
        case "sub" | "mul" if origin(graph, node.inputs[0]) == origin(graph, node.inputs[1]):
            # src/subgraph.c :: optimize_common_subgraphs_mul_to_sqr, _binary_to_const: a square by look-up table, a constant
            return "XNNPACK rewrites an op on one tensor twice into another that rounds differently"
        case "add" | "sub":
            return _refuses_pair(types, y)
        case "mul":
            return _refuses_product(types, y)
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
