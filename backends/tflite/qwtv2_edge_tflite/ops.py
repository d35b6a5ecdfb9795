"""One emit function and one list of limits per op of the IR.

Forms follow one aim: runtimes should agree on as many outputs as they can. Padding that is neither SAME nor
VALID becomes a PAD that shares its input's quantization; means drop their axes and a RESHAPE puts them back;
a bias is always there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from qwtv2_edge.fixedpoint import activation_bounds
from qwtv2_edge.ir.graph import Graph, Node, origin
from qwtv2_edge.ir.types import DTYPES, Quantization, TensorType
from qwtv2_edge.ops.integers import pad_code
from qwtv2_edge.ops.spec import ACTIVATIONS
from qwtv2_edge_tflite.schema import OperatorRow, TensorRow, enum, pack_int4

#: dtype of an operator's first input -> operator -> its version, where that is not 1 and depends on nothing else
#: Source: LiteRT tflite/tools/versioning/op_version.cc
VERSIONS: dict[str, dict[str, int]] = {
    "int8": {
        "ADD": 2, "ARG_MAX": 2, "AVERAGE_POOL_2D": 2, "BATCH_MATMUL": 2, "CAST": 3, "CONCATENATION": 2, "CONV_2D": 3,
        "DEPTHWISE_CONV_2D": 3, "DEQUANTIZE": 2, "FULLY_CONNECTED": 4, "GATHER": 2, "GELU": 2, "L2_NORMALIZATION": 2, "LOGISTIC": 2,
        "MAXIMUM": 2, "MAX_POOL_2D": 2, "MEAN": 2, "MINIMUM": 2, "MUL": 2, "PAD": 2, "PADV2": 2, "REDUCE_MAX": 2, "RELU": 2,
        "RELU6": 2, "RESIZE_BILINEAR": 2, "RESIZE_NEAREST_NEIGHBOR": 2, "SLICE": 2, "SOFTMAX": 2, "STRIDED_SLICE": 2, "SUB": 2,
        "SUM": 2, "TANH": 2, "TRANSPOSE": 2,
    },
    "int16": {
        "BATCH_MATMUL": 3, "CONCATENATION": 3, "CONV_2D": 4, "DEPTHWISE_CONV_2D": 5, "DEQUANTIZE": 3, "FULLY_CONNECTED": 7,
        "MAXIMUM": 4, "MEAN": 3, "MINIMUM": 4, "MUL": 4, "PAD": 3, "PADV2": 3, "REDUCE_MAX": 3, "SLICE": 4, "TRANSPOSE": 5,
    },
}  # fmt: skip

ACTIVATION_ENUM = {"none": "NONE", "relu": "RELU", "relu6": "RELU6", "relu_n1_to_1": "RELU_N1_TO_1"}

Pair = tuple[int, int]

INT16_MAX = 32767
#: real values that are the codes
UNIT = Quantization.per_tensor(1.0, 0)

#: clamps without attributes
FIXED_CLAMPS = {"relu": (0.0, np.inf), "relu6": (0.0, 6.0)}


@dataclass
class Emission:
    """The flat model while it grows. Tensors are named; indices are given out in order of first use.

    floats: operators are being added that hold 16-bit activations as float32 tensors of the same codes. Such an
    activation may have both forms; the other one is made where it is first asked for.
    """

    graph: Graph
    rows: list[TensorRow] = field(default_factory=list)
    operators: list[OperatorRow] = field(default_factory=list)
    index: dict[str, int] = field(default_factory=dict)
    floats: bool = False
    #: int16 tensor of the IR -> index of the float32 tensor that holds its codes
    as_float: dict[str, int] = field(default_factory=dict)

    def use(self, name: str, quantization: Quantization | None = None) -> int:
        """Index of an IR tensor. ``quantization`` stands in where the IR's own says nothing (a bias)."""
        if self.floats and self.graph.tensors[name].dtype == "int16":
            return self._use_float(name)
        if name in self.as_float and name not in self.index:
            return self._codes_of_float(name)
        if name not in self.index:
            type = self.graph.tensors[name]
            array = self.graph.constants.get(name)
            data = None if array is None else _bytes(array, type.dtype)
            self._append(name, TensorRow(name, type.shape, type.dtype, quantization or type.quantization, data))
        return self.index[name]

    def _use_float(self, name: str) -> int:
        if name not in self.as_float:
            type, array, free = self.graph.tensors[name], self.graph.constants.get(name), self.free(f"{name}/float")
            data = None if array is None else _bytes(array.astype(np.float32), "float32")
            self.as_float[name] = self._append(free, TensorRow(free, type.shape, "float32", None, data))
            if name in self.index:
                codes = self.tensor(f"{name}/codes", type.shape, "int16", UNIT)
                reshape_to(self, f"{name}/codes", self.index[name], codes, type.shape)
                self.op("DEQUANTIZE", (codes,), self.as_float[name], "DequantizeOptions")
        return self.as_float[name]

    def _codes_of_float(self, name: str) -> int:
        type = self.graph.tensors[name]
        codes = self.tensor(f"{name}/codes", type.shape, "int16", UNIT)
        self.op("QUANTIZE", (self.as_float[name],), codes, "QuantizeOptions")
        target = self._append(name, TensorRow(name, type.shape, type.dtype, type.quantization))
        reshape_to(self, f"{name}/codes", codes, target, type.shape)
        return target

    def bias(self, name: str, x: TensorType, w: TensorType, dtype: str = "int32") -> int:
        """A bias with the scale its weights and input give it; another tensor on the same bytes per such scale."""
        assert w.quantization is not None
        scale = np.float32(x.scale) * w.quantization.scale_array
        quantization = Quantization.per_channel(scale, 0)
        if dtype != "int32":
            return self.constant(f"{name}/{dtype}", self.graph.constants[name], dtype, quantization)
        if name in self.index and self.rows[self.index[name]].quantization != quantization:
            row = self.rows[self.use(name)]
            return self._append(self.free(name), TensorRow(self.free(name), row.shape, row.dtype, quantization, row.data))
        return self.use(name, quantization)

    def temporary(self, hint: str, shape: Sequence[int], like: TensorType) -> int:
        """A new activation that shares ``like``'s quantization."""
        if self.floats and like.dtype == "int16":
            return self.tensor(hint, shape, "float32")
        return self.tensor(hint, shape, like.dtype, like.quantization)

    def tensor(self, hint: str, shape: Sequence[int], dtype: str, quantization: Quantization | None = None) -> int:
        """A new activation."""
        name = self.free(hint)
        return self._append(name, TensorRow(name, tuple(shape), dtype, quantization))

    def constant(self, hint: str, values: Any, dtype: str, quantization: Quantization | None = None) -> int:
        """A new constant."""
        name = self.free(hint)
        array = np.asarray(values, DTYPES[dtype])
        return self._append(name, TensorRow(name, tuple(array.shape), dtype, quantization, _bytes(array, dtype)))

    def grown(self, name: str, pads: Sequence[Pair]) -> int:
        """A constant of the graph with zeros around it."""
        type, array = self.graph.tensors[name], np.pad(self.graph.constants[name], pads)
        grown = self.free(f"{name}/grown")
        return self._append(grown, TensorRow(grown, array.shape, type.dtype, type.quantization, _bytes(array, type.dtype)))

    def free(self, hint: str) -> str:
        name, i = hint, 1
        while name in self.index or name in self.graph.tensors:
            name, i = f"{hint}_{i}", i + 1
        return name

    def op(self, code: str, inputs: Sequence[int], output: int, options: str = "", *, version: int = 0, **fields: Any) -> None:
        version = version or self._version(code, self.rows[inputs[0]].dtype, self.rows[output].dtype)
        self.operators.append(OperatorRow(code, version, tuple(inputs), (output,), options, tuple(fields.items())))

    def _version(self, code: str, source: str, target: str) -> int:
        if code == "QUANTIZE":
            return 2 if target == "int16" else 1
        return VERSIONS.get("int8" if code == "CAST" and target == "int8" else source, {}).get(code, 1)

    def _append(self, name: str, row: TensorRow) -> int:
        self.index[name] = len(self.rows)
        self.rows.append(row)
        return self.index[name]


def _bytes(array: np.ndarray, dtype: str) -> bytes:
    return pack_int4(array) if dtype == "int4" else np.ascontiguousarray(array).tobytes()


def _activation(name: str) -> int:
    return enum("ActivationFunctionType", ACTIVATION_ENUM[name])


# ---------------------------------------------------------------- windows


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """(top, total) that SAME adds to one axis.

    Source: LiteRT tflite/kernels/padding.h :: ComputePaddingWithOffset
    """
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total


def padding_schemes(size: int, out: int, kernel: int, stride: int, dilation: int, before: int) -> set[str]:
    """Which of SAME and VALID read exactly the taps that ``before`` and ``out`` prescribe along one axis."""
    schemes = set()
    if before == same_padding(size, kernel, stride, dilation)[0] and out == -(-size // stride):
        schemes.add("SAME")
    if before == 0 and out == (size - (kernel - 1) * dilation - 1) // stride + 1:
        schemes.add("VALID")
    return schemes


def window_scheme(x: TensorType, out: TensorType, kernel: Pair, stride: Pair, dilation: Pair, padding: Sequence[Pair]) -> str:
    """ "SAME" or "VALID" where one of them says it all, else ""."""
    schemes = {"SAME", "VALID"}
    for i in (0, 1):
        schemes &= padding_schemes(x.shape[1 + i], out.shape[1 + i], kernel[i], stride[i], dilation[i], padding[i][0])
    return "VALID" if "VALID" in schemes else "SAME" if schemes else ""


def _windowed(e: Emission, node: Node, kernel: Pair, dilation: Pair, fill: int | None = None) -> tuple[int, int]:
    """(input, padding) for a convolution or a pool: an explicit PAD where no scheme fits. ``fill``: code to pad with."""
    a, (x, out) = node.attrs, (e.graph.in_types(node)[0], e.graph.out_types(node)[0])
    scheme = window_scheme(x, out, kernel, a.stride, dilation, a.padding)
    source = e.use(node.inputs[0])
    if not scheme:
        pads: list[Pair] = [(0, 0)]
        for i in (0, 1):
            needed = (out.shape[1 + i] - 1) * a.stride[i] + (kernel[i] - 1) * dilation[i] + 1
            pads.append((a.padding[i][0], max(0, needed - x.shape[1 + i] - a.padding[i][0])))
        pads.append((0, 0))
        shape = [d + sum(p) for d, p in zip(x.shape, pads, strict=True)]
        source = _pad(e, node.name, source, x, e.temporary(f"{node.name}/pad", shape, x), pads, x.zero_point if fill is None else fill)
        scheme = "VALID"
    return source, enum("Padding", scheme)


def _pad(e: Emission, name: str, source: int, x: TensorType, target: int, pads: Sequence[Pair], fill: int) -> int:
    amounts = e.constant(f"{name}/paddings", pads, "int32")
    if fill == x.zero_point:
        e.op("PAD", (source, amounts), target, "PadOptions")
    else:
        held = e.rows[source]  # float32 where 16-bit codes are held so
        value = e.constant(f"{name}/pad_value", [fill], held.dtype, held.quantization)
        e.op("PADV2", (source, amounts, value), target, "PadV2Options")
    return target


# ---------------------------------------------------------------- weighted ops


def _weighted(e: Emission, node: Node) -> tuple[int, int]:
    x, w, _ = e.graph.in_types(node)
    # the only bias of depthwise kernels beside 16-bit data
    bias = "int64" if x.dtype == "int16" and node.op == "depthwise_conv2d" else "int32"
    return e.use(node.inputs[1]), e.bias(node.inputs[2], x, w, bias)


def _bias_type(x: TensorType) -> dict[str, int]:
    """Runtimes read the bias beside 16-bit data as int64 unless told; those older than the option look at the tensor."""
    return {"QuantizedBiasType": enum("TensorType", "INT32")} if x.dtype == "int16" else {}


def _conv2d(e: Emission, node: Node) -> None:
    a, (x, w, _) = node.attrs, e.graph.in_types(node)
    source, padding = _windowed(e, node, (w.shape[1], w.shape[2]), a.dilation)
    e.op(
        "CONV_2D", (source, *_weighted(e, node)), e.use(node.outputs[0]), "Conv2DOptions",
        version=6 if a.groups > 1 else 7 if w.dtype == "int4" else 0,
        Padding=padding, StrideW=a.stride[1], StrideH=a.stride[0], FusedActivationFunction=_activation(a.activation),
        DilationWFactor=a.dilation[1], DilationHFactor=a.dilation[0], **_bias_type(x),
    )  # fmt: skip


def _depthwise(e: Emission, node: Node) -> None:
    a, (x, w, _) = node.attrs, e.graph.in_types(node)
    source, padding = _windowed(e, node, (w.shape[1], w.shape[2]), a.dilation)
    e.op(
        "DEPTHWISE_CONV_2D", (source, *_weighted(e, node)), e.use(node.outputs[0]), "DepthwiseConv2DOptions",
        version=7 if w.dtype == "int4" else 0,
        Padding=padding, StrideW=a.stride[1], StrideH=a.stride[0], DepthMultiplier=w.shape[3] // x.shape[3],
        FusedActivationFunction=_activation(a.activation), DilationWFactor=a.dilation[1], DilationHFactor=a.dilation[0],
    )  # fmt: skip


def _transpose_conv(e: Emission, node: Node) -> None:
    """TRANSPOSE_CONV of the whole scatter output where the crop isn't SAME's, then a SLICE, then the activation.

    An output that goes on beyond the last tap gets there by zero taps: kernels that are left alone with their own
    padding arithmetic agree.
    """
    a, (x, w, _), out = node.attrs, e.graph.in_types(node), e.graph.out_types(node)[0]
    extra = [max(0, -after) for _, after in a.crop]
    kernel = [w.shape[1 + i] + extra[i] for i in (0, 1)]
    same = all(
        a.crop[i][0] == same_padding(out.shape[1 + i], kernel[i], a.stride[i], 1)[0]
        and x.shape[1 + i] * a.stride[i] == out.shape[1 + i]  # SAME of any other size is left by the delegate
        for i in (0, 1)
    )
    sizes = [(x.shape[1 + i] - 1) * a.stride[i] + kernel[i] for i in (0, 1)]
    whole = out.shape if same else (out.shape[0], *sizes, out.shape[3])
    cropped, active = whole != out.shape, a.activation != "none"
    weights = e.use(node.inputs[1]) if extra == [0, 0] else e.grown(node.inputs[1], ((0, 0), (0, extra[0]), (0, extra[1]), (0, 0)))
    last = e.use(node.outputs[0])
    target = e.temporary(f"{node.name}/full", whole, out) if cropped or active else last
    e.op(
        "TRANSPOSE_CONV",
        (e.constant(f"{node.name}/shape", whole, "int32"), weights, e.use(node.inputs[0]), e.bias(node.inputs[2], x, w)),
        target, "TransposeConvOptions", version=3,
        Padding=enum("Padding", "SAME" if same else "VALID"), StrideW=a.stride[1], StrideH=a.stride[0],
    )  # fmt: skip
    if cropped:
        source, target = target, e.temporary(f"{node.name}/cropped", out.shape, out) if active else last
        slice_to(e, node.name, source, target, (0, a.crop[0][0], a.crop[1][0], 0), out.shape)
    if active:
        clamp_to(e, node.name, target, last, out, *ACTIVATIONS[a.activation])


def slice_to(e: Emission, name: str, source: int, target: int, begin: Sequence[int], size: Sequence[int]) -> None:
    inputs = (source, e.constant(f"{name}/begin", begin, "int32"), e.constant(f"{name}/size", size, "int32"))
    e.op("SLICE", inputs, target, "SliceOptions", version=5 if len(size) > 4 else 0)


def _fully_connected(e: Emission, node: Node) -> None:
    """On two axes only: tflite-runtime 2.14's reference kernel is wrong on more."""
    x, w, _ = e.graph.in_types(node)
    out, source, target = e.graph.out_types(node)[0], e.use(node.inputs[0]), e.use(node.outputs[0])
    flat = len(x.shape) == 2
    if not flat:
        rows = prod(x.shape[:-1])
        rowed = e.temporary(f"{node.name}/rows", (rows, x.shape[-1]), x)
        reshape_to(e, f"{node.name}/rows", source, rowed, (rows, x.shape[-1]))
        source, target = rowed, e.temporary(f"{node.name}/flat", (rows, w.shape[0]), out)
    e.op(
        "FULLY_CONNECTED", (source, *_weighted(e, node)), target, "FullyConnectedOptions",
        version=10 if w.dtype == "int4" else 0, FusedActivationFunction=_activation(node.attrs.activation), **_bias_type(x),
    )  # fmt: skip
    if not flat:
        reshape_to(e, node.name, target, e.use(node.outputs[0]), out.shape)


# ---------------------------------------------------------------- element by element


def _is_square(graph: Graph, node: Node) -> bool:
    """Whether both operands of a product are one tensor of 8-bit codes."""
    return graph.in_types(node)[0].dtype == "int8" and origin(graph, node.inputs[0]) == origin(graph, node.inputs[1])


def _binary(code: str, options: str) -> Callable[[Emission, Node], None]:
    def emit(e: Emission, node: Node) -> None:
        x, y = e.graph.in_types(node)
        out = e.graph.out_types(node)[0]
        version = 0
        if x.dtype == "int8" and code == "MUL" and np.float32(x.scale) * np.float32(y.scale) / np.float32(out.scale) >= 1:
            version = 3
        if code == "SUB" and x.shape != y.shape and len(out.shape) > 4:
            version = 3
        inputs = [e.use(t) for t in node.inputs]
        if code == "MUL" and _is_square(e.graph, node):
            # XNNPACK turns a product of one tensor with itself into a square look-up table that rounds differently
            # (X src/subgraph.c); MINIMUM is not delegated, so it no longer sees that both are one
            inputs[1] = e.temporary(f"{node.name}/twin", y.shape, y)
            clamp_to(e, f"{node.name}/twin", e.use(node.inputs[1]), inputs[1], y, -np.inf, np.inf)
        e.op(code, inputs, e.use(node.outputs[0]), options, version=version, FusedActivationFunction=_activation(node.attrs.activation))

    return emit


def unary_form(code: str, options: str = "", **fields: Callable[[Any], Any]) -> Callable[[Emission, Node], None]:
    def emit(e: Emission, node: Node) -> None:
        values = {k: f(node.attrs) for k, f in fields.items()}
        e.op(code, (e.use(node.inputs[0]),), e.use(node.outputs[0]), options, **values)

    return emit


def clamp_to(e: Emission, name: str, source: int, target: int, type: TensorType, low: float, high: float) -> None:
    """Clamp codes: RELU or RELU6 where that is the clamp, else MAXIMUM and MINIMUM with constants."""
    if type.dtype == "int8" and low == 0 and high in (6, np.inf):
        e.op("RELU" if high == np.inf else "RELU6", (source,), target)
        return
    least, most = type.code_bounds
    q_low, q_high = activation_bounds(low, high, type.scale, type.zero_point, "TFLITE", type.code_bounds)
    steps = [(code, q) for code, q, free in (("MAXIMUM", q_low, least), ("MINIMUM", q_high, most)) if q != free]
    steps = steps or [("MINIMUM", most)]
    for i, (code, q) in enumerate(steps):
        out = target if i == len(steps) - 1 else e.temporary(f"{name}/{code.lower()}", type.shape, type)
        bound = e.constant(f"{name}/{code.lower()}_bound", [q], type.dtype, type.quantization)
        e.op(code, (source, bound), out, "MaximumMinimumOptions", version=3 if len(type.shape) > 4 and type.dtype == "int8" else 0)
        source = out


def _clamp(e: Emission, node: Node) -> None:
    low, high = FIXED_CLAMPS.get(node.op) or (node.attrs.min, node.attrs.max)
    clamp_to(e, node.name, e.use(node.inputs[0]), e.use(node.outputs[0]), e.graph.out_types(node)[0], low, high)


def _prelu(e: Emission, node: Node) -> None:
    e.op("PRELU", (e.use(node.inputs[0]), e.use(node.inputs[1])), e.use(node.outputs[0]))


# ---------------------------------------------------------------- pools and reductions


def _max_pool(e: Emission, node: Node) -> None:
    _pool(e, node, "MAX_POOL_2D", *_windowed(e, node, node.attrs.kernel, (1, 1), fill=-128), e.use(node.outputs[0]), node.attrs.stride)


def _pool(e: Emission, node: Node, code: str, source: int, padding: int, target: int, stride: Pair) -> None:
    k = node.attrs.kernel
    e.op(
        code, (source,), target, "Pool2DOptions",
        Padding=padding, StrideW=stride[1], StrideH=stride[0], FilterWidth=k[1], FilterHeight=k[0],
        FusedActivationFunction=_activation("none"),
    )  # fmt: skip


def _dense_start(size: int, out: int, kernel: int, stride: int, before: int) -> int:
    """Where, in a stride-1 SAME pool of one axis, this pool's first output stands; -1 when it isn't in it."""
    first = (kernel - 1) // 2 - before
    return first if first >= 0 and first + (out - 1) * stride < size else -1


def _dense_starts(node: Node, x: TensorType, out: TensorType) -> list[int]:
    a = node.attrs
    return [_dense_start(x.shape[1 + i], out.shape[1 + i], a.kernel[i], a.stride[i], a.padding[i][0]) for i in (0, 1)]


def _avg_pool(e: Emission, node: Node) -> None:
    """AVERAGE_POOL_2D divides by the valid taps, so padding can't be explicit: where it is neither SAME nor VALID,
    a stride-1 SAME pool and a strided slice of it give the same windows."""
    a, x, out = node.attrs, e.graph.in_types(node)[0], e.graph.out_types(node)[0]
    scheme = window_scheme(x, out, a.kernel, a.stride, (1, 1), a.padding)
    source, target = e.use(node.inputs[0]), e.use(node.outputs[0])
    if scheme:
        _pool(e, node, "AVERAGE_POOL_2D", source, enum("Padding", scheme), target, a.stride)
        return
    dense = e.temporary(f"{node.name}/dense", x.shape, out)
    _pool(e, node, "AVERAGE_POOL_2D", source, enum("Padding", "SAME"), dense, (1, 1))
    starts = _dense_starts(node, x, out)
    ends = [s + (out.shape[1 + i] - 1) * a.stride[i] + 1 for i, s in enumerate(starts)]
    strided_to(e, node.name, dense, target, (0, *starts, 0), (x.shape[0], *ends, x.shape[3]), (1, *a.stride, 1))


def strided_to(e: Emission, name: str, source: int, target: int, begin: Sequence[int], end: Sequence[int], stride: Sequence[int]) -> None:
    inputs = (source, *(e.constant(f"{name}/{n}", v, "int32") for n, v in (("begin", begin), ("end", end), ("strides", stride))))
    e.op("STRIDED_SLICE", inputs, target, "StridedSliceOptions", version=4 if len(begin) > 4 else 0)


def _reduce(code: str) -> Callable[[Emission, Node], None]:
    def emit(e: Emission, node: Node) -> None:
        a, x, out = node.attrs, e.graph.in_types(node)[0], e.graph.out_types(node)[0]
        drop = code == "MEAN" and a.keep_dims and len(a.axes) < len(x.shape)
        target = e.use(node.outputs[0])
        if drop:
            # with keep_dims some kernels take a shortcut that rounds the zero point apart
            target = e.temporary(f"{node.name}/flat", [d for i, d in enumerate(x.shape) if i not in a.axes], out)
        inputs = (e.use(node.inputs[0]), e.constant(f"{node.name}/axes", a.axes, "int32"))
        e.op(code, inputs, target, "ReducerOptions", KeepDims=a.keep_dims and not drop)
        if drop:
            reshape_to(e, node.name, target, e.use(node.outputs[0]), out.shape)

    return emit


# ---------------------------------------------------------------- data movement


def reshape_to(e: Emission, name: str, source: int, target: int, shape: Sequence[int]) -> None:
    inputs = (source, e.constant(f"{name}/shape", np.asarray(shape, np.int32).reshape(-1), "int32"))
    e.op("RESHAPE", inputs, target, "ReshapeOptions", NewShape=tuple(shape))


def _reshape(e: Emission, node: Node) -> None:
    reshape_to(e, node.name, e.use(node.inputs[0]), e.use(node.outputs[0]), e.graph.out_types(node)[0].shape)


def merged_transpose(shape: Sequence[int], perm: Sequence[int]) -> tuple[list[int], list[int]]:
    """(shape, perm) of the same movement with axes of size 1 dropped and axes that stay together merged."""
    kept = [p for p in perm if shape[p] != 1]
    groups: list[list[int]] = []
    alive = [i for i in range(len(shape)) if shape[i] != 1]
    for p in kept:
        if groups and alive.index(p) == alive.index(groups[-1][-1]) + 1:
            groups[-1].append(p)
        else:
            groups.append([p])
    order = sorted(range(len(groups)), key=lambda g: groups[g][0])
    sizes = [prod(shape[i] for i in groups[g]) for g in order]
    return sizes or [1], [order.index(g) for g in range(len(groups))] or [0]


def transpose_steps(shape: Sequence[int], perm: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The movement as (shape, perm) steps of at most 4 axes each, to run one after another on reshaped data.

    A step beyond 4 blocks of axes brings the block that comes next in the result to its place.
    """
    steps = []
    shape, perm = merged_transpose(shape, perm)
    while len(shape) > 4:
        at = next(i for i, p in enumerate(perm) if p != i)
        block = perm[at]
        order = [*range(at), block, *(i for i in range(at, len(shape)) if i != block)]
        steps.append(merged_transpose(shape, order))
        shape, perm = merged_transpose([shape[i] for i in order], [order.index(p) for p in perm])
    if perm != sorted(perm):
        steps.append((shape, perm))
    return steps


def _transpose(e: Emission, node: Node) -> None:
    x, out = e.graph.in_types(node)[0], e.graph.out_types(node)[0]
    source, target = e.use(node.inputs[0]), e.use(node.outputs[0])
    steps = transpose_steps(x.shape, node.attrs.perm)
    if not steps:
        reshape_to(e, node.name, source, target, out.shape)
        return
    if len(x.shape) <= 4:
        e.op("TRANSPOSE", (source, e.constant(f"{node.name}/perm", node.attrs.perm, "int32")), target, "TransposeOptions")
        return
    for shape, perm in steps:
        merged = e.temporary(f"{node.name}/merged", shape, x)
        reshape_to(e, f"{node.name}/merged", source, merged, shape)
        source = e.temporary(f"{node.name}/moved", [shape[p] for p in perm], x)
        e.op("TRANSPOSE", (merged, e.constant(f"{node.name}/perm", perm, "int32")), source, "TransposeOptions")
    reshape_to(e, node.name, source, target, out.shape)


def _concat(e: Emission, node: Node) -> None:
    inputs = [e.use(t) for t in node.inputs]
    e.op("CONCATENATION", inputs, e.use(node.outputs[0]), "ConcatenationOptions", Axis=node.attrs.axis)


def _slice(e: Emission, node: Node) -> None:
    a, source, target = node.attrs, e.use(node.inputs[0]), e.use(node.outputs[0])
    if all(s == 1 for s in a.stride):
        slice_to(e, node.name, source, target, a.begin, [y - x for x, y in zip(a.begin, a.end, strict=True)])
    else:
        strided_to(e, node.name, source, target, a.begin, a.end, a.stride)


def _pad_node(e: Emission, node: Node) -> None:
    x = e.graph.in_types(node)[0]
    fill = pad_code(node.attrs.value, x)
    _pad(e, node.name, e.use(node.inputs[0]), x, e.use(node.outputs[0]), node.attrs.paddings, fill)


def _resize(code: str, options: str) -> Callable[[Emission, Node], None]:
    def emit(e: Emission, node: Node) -> None:
        a = node.attrs
        newer = a.half_pixel_centers or (a.align_corners and code == "RESIZE_NEAREST_NEIGHBOR")
        inputs = (e.use(node.inputs[0]), e.constant(f"{node.name}/size", a.size, "int32"))
        e.op(
            code, inputs, e.use(node.outputs[0]), options,
            version=3 if newer else 0, AlignCorners=a.align_corners, HalfPixelCenters=a.half_pixel_centers,
        )  # fmt: skip

    return emit


# ---------------------------------------------------------------- limits

#: (code, what is wrong, fix)
Limit = tuple[str, str, str]
Limits = Callable[[Graph, Node], Iterator[Limit]]


def max_rank(rank: int) -> Limits:
    def limits(graph: Graph, node: Node) -> Iterator[Limit]:
        have = max(len(t.shape) for t in (*graph.in_types(node), *graph.out_types(node)))
        if have > rank:
            yield "rank", f"rank {have}, TFLite's {node.op} takes at most {rank}", "reshape to fewer axes before it"

    return limits


def _activation_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    """Bounds of a clamp must be 32-bit codes. Source: LiteRT tflite/kernels/kernel_util.cc :: CalculateActivationRangeQuantizedImpl"""
    low, high = FIXED_CLAMPS.get(node.op) or ACTIVATIONS[getattr(node.attrs, "activation", "none")]
    scale = graph.out_types(node)[0].scale
    largest = max(abs(v) for v in (low, high, 0.0) if np.isfinite(v)) / scale
    if not largest < 2**31 - 256:
        yield "scale", f"a bound of {largest:.6g} output steps is beyond 32 bits", "widen the output range; it is all but empty"


def _weighted_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    yield from _activation_limits(graph, node)
    (x, w, _), out = graph.in_types(node), graph.out_types(node)[0]
    assert w.quantization is not None
    effective = np.float32(x.scale) * w.quantization.scale_array / np.float32(out.scale)
    if not effective.max() < 256:
        yield "scale", f"effective scale {effective.max():.6g} is not below 256, XNNPACK's limit", "widen the output range"
    if w.dtype == "int4":
        yield from _int4_limits(graph, node)


def _transpose_conv_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    yield from _weighted_limits(graph, node)
    out, reals = graph.out_types(node)[0], ACTIVATIONS[node.attrs.activation]
    # the activation becomes an operator of its own, which no delegate takes
    if len({activation_bounds(*reals, out.scale, out.zero_point, rule) for rule in ("TFLITE", "XNN")}) > 1:
        yield "activation", f"{node.attrs.activation} ends half way between two codes", "choose a slightly different output scale"


def _int4_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    fix = 'use weight_storage = "int8": the same codes, one per byte, on the fast kernels everywhere'
    if node.op == "transpose_conv2d" or (node.op == "conv2d" and node.attrs.groups > 1):
        yield "int4", f"no runtime has {node.op} kernels for packed 4-bit weights in this form", fix
    columns = graph.in_types(node)[1].shape[-1]
    if node.op == "fully_connected" and columns % 2:
        yield "int4", f"{columns} input features; packed 4-bit rows need an even number", fix


def _add_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    yield from broadcast_limits(graph, node)
    yield from _activation_limits(graph, node)
    (x, y), out = graph.in_types(node), graph.out_types(node)[0]
    largest = 255 * (x.scale + y.scale) / out.scale
    if not largest < INT16_MAX - 128:
        message = f"sums reach {largest:.6g} output steps; optimised kernels hold them in 16 bits, and beyond 2**19 TFLite aborts"
        yield "scale", message, "widen the output range"


def _mul_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    yield from (max_rank(5) if _is_square(graph, node) else broadcast_limits)(graph, node)
    yield from _activation_limits(graph, node)
    (x, y), out = graph.in_types(node), graph.out_types(node)[0]
    ratio = np.float32(x.scale) * np.float32(y.scale) / np.float32(out.scale)
    if not ratio < 256:
        message = f"product scale / output scale = {ratio:.6g} is not below 256, XNNPACK's limit; optimised kernels hold results in 16 bits"
        yield "scale", message, "widen the output range"


def _clamp_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    yield from max_rank(6)(graph, node)
    yield from _activation_limits(graph, node)


def broadcast_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    shapes = {t.shape for t in graph.in_types(node)}
    yield from max_rank(4 if len(shapes) > 1 else 6)(graph, node)


def _hard_swish_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    yield from max_rank(6)(graph, node)
    x, out = graph.in_types(node)[0], graph.out_types(node)[0]
    ratio = np.float32(np.float32(x.scale) / np.float32(128)) / np.float32(out.scale)
    if not ratio < 1:
        yield "scale", f"input scale / (128 * output scale) = {ratio:.6g} is not below 1", "widen the output range"


def _elu_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    yield from max_rank(6)(graph, node)  # XNNPACK's limit; TFLite's own kernel rounds in another way
    if node.attrs.alpha != 1:
        yield "alpha", f"alpha {node.attrs.alpha:g}, TFLite's ELU has 1", "use alpha 1, or leaky_relu"


def _avg_pool_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    a, x, out = node.attrs, graph.in_types(node)[0], graph.out_types(node)[0]
    if not window_scheme(x, out, a.kernel, a.stride, (1, 1), a.padding) and min(_dense_starts(node, x, out)) < 0:
        yield "padding", f"average over valid taps with padding {a.padding} has no TFLite form", "pad before the pool and count the padding"


def _no_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    return iter(())


@dataclass(frozen=True)
class Rule:
    """How one IR op becomes TFLite operators, and what stands against it."""

    emit: Callable[[Emission, Node], None]
    limits: Limits = _no_limits


RULES: dict[str, Rule] = {
    "quantize": Rule(unary_form("QUANTIZE", "QuantizeOptions")),
    "dequantize": Rule(unary_form("DEQUANTIZE", "DequantizeOptions")),
    "requantize": Rule(unary_form("QUANTIZE", "QuantizeOptions")),
    "conv2d": Rule(_conv2d, _weighted_limits),
    "depthwise_conv2d": Rule(_depthwise, _weighted_limits),
    "transpose_conv2d": Rule(_transpose_conv, _transpose_conv_limits),
    "fully_connected": Rule(_fully_connected, _weighted_limits),
    "add": Rule(_binary("ADD", "AddOptions"), _add_limits),
    "sub": Rule(_binary("SUB", "SubOptions"), _add_limits),
    "mul": Rule(_binary("MUL", "MulOptions"), _mul_limits),
    "max_pool2d": Rule(_max_pool),
    "avg_pool2d": Rule(_avg_pool, _avg_pool_limits),
    "mean": Rule(_reduce("MEAN"), max_rank(4)),
    "sum": Rule(_reduce("SUM"), max_rank(4)),
    "reduce_max": Rule(_reduce("REDUCE_MAX"), max_rank(4)),
    "softmax": Rule(unary_form("SOFTMAX", "SoftmaxOptions", Beta=lambda a: a.beta), max_rank(4)),
    "relu": Rule(_clamp, _clamp_limits),
    "relu6": Rule(_clamp, _clamp_limits),
    "clamp": Rule(_clamp, max_rank(4)),
    "logistic": Rule(unary_form("LOGISTIC"), max_rank(6)),
    "tanh": Rule(unary_form("TANH"), max_rank(6)),
    "hard_swish": Rule(unary_form("HARD_SWISH", "HardSwishOptions"), _hard_swish_limits),
    "elu": Rule(unary_form("ELU"), _elu_limits),
    "leaky_relu": Rule(unary_form("LEAKY_RELU", "LeakyReluOptions", Alpha=lambda a: a.alpha), max_rank(6)),
    "prelu": Rule(_prelu, max_rank(4)),
    "reshape": Rule(_reshape),
    "transpose": Rule(_transpose),
    "concat": Rule(_concat, max_rank(6)),
    "slice": Rule(_slice, max_rank(4)),
    "pad": Rule(_pad_node, max_rank(4)),
    "resize_nearest": Rule(_resize("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions")),
    "resize_bilinear": Rule(_resize("RESIZE_BILINEAR", "ResizeBilinearOptions")),
}
