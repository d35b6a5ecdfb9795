"""Any int8 ``.tflite`` of the supported ops into an integer graph.

Operators become the IR's nodes one by one; what the IR says in another way (a fused activation of a pool, a split,
a depth-to-space) becomes several. What can't be said is listed whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from qwtv2_edge.errors import GraphError, Problem, QwtEdgeError, UnsupportedOpError, UsageError
from qwtv2_edge.ir.check import MASK, check
from qwtv2_edge.ir.graph import Graph, GraphBuilder, Location
from qwtv2_edge.ir.text import type_text
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.ops import OPS
from qwtv2_edge.ops.activation import AlphaAttrs, ClampAttrs, GeluAttrs
from qwtv2_edge.ops.conv import Conv2DAttrs, DepthwiseAttrs, TransposeConvAttrs
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.index import ArgmaxAttrs, MaskFillAttrs
from qwtv2_edge.ops.layout import ConcatAttrs, PadAttrs, ReshapeAttrs, ResizeAttrs, SliceAttrs, TransposeAttrs
from qwtv2_edge.ops.linear import FullyConnectedAttrs
from qwtv2_edge.ops.matmul import BatchMatmulAttrs
from qwtv2_edge.ops.norm import L2NormalizeAttrs
from qwtv2_edge.ops.pool import PoolAttrs, ReduceAttrs, SoftmaxAttrs
from qwtv2_edge.ops.spec import ACTIVATIONS, NoAttrs
from qwtv2_edge_tflite.ops import ACTIVATION_ENUM, same_padding
from qwtv2_edge_tflite.parse import Model, Operator, Tensor, guarded, parse
from qwtv2_edge_tflite.schema import enum_names

#: a window, with its dilation, may be this many times as large as what it slides over
WINDOW_LIMIT = 16

#: ops of the IR that read or give positions, which are int32 and have no scale
POSITIONAL = ("embedding", "argmax", "reshape")

ACTIVATION_OF = {v: k for k, v in ACTIVATION_ENUM.items()}


class Unreadable(Exception):
    """One operator that has no form in the IR: (code, message, fix)."""


def read_tflite(source: str | Path | bytes) -> Graph:
    """Read an int8 flatbuffer.

    Args:
        source: path or bytes. Not trusted: no content crashes the process or allocates beyond the file's size.
    Returns: an integer graph that passes ``ir.check``; names are the file's tensor names.
    Raises: UsageError: no such file; GraphError: not a well-formed model; UnsupportedOpError: well-formed, but with operators
        or forms that the IR has not, all of them listed.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    else:
        try:
            data = Path(source).read_bytes()
        except OSError as exc:
            raise UsageError(f"can't read {source}: {exc.strerror or exc}", fix="check the path") from exc
    return _Reader(parse(data)).graph()


class _Reader:
    """One model on its way into a GraphBuilder."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.b = GraphBuilder(model.name or "tflite", {f"tflite.{k}": v for k, v in model.metadata})
        self.names: dict[int, str] = {}
        self.problems: list[Problem] = []

    def graph(self) -> Graph:
        model = self.model
        for i in model.inputs:
            if i in self.names or model.tensors[i].data is not None:
                raise GraphError(f"input '{model.tensors[i].name}' is given twice or is a constant", fix="export the file again")
            name = model.tensors[i].name or "input"
            try:
                type = self.type(i)
            except Unreadable as error:
                self.problems.append(Problem(error.args[0], name, "", error.args[1], error.args[2]))
                type = TensorType(model.tensors[i].shape)
            self.names[i] = self.b.input(name, type)
        for op in model.operators:
            self.operator(op)
        if self.problems:
            raise UnsupportedOpError(f"{len(self.problems)} inputs or operators can't be read", tuple(self.problems))
        missing = [model.tensors[i].name for i in model.outputs if i not in self.names]
        if missing:
            raise GraphError(f"output '{missing[0]}' is not produced by any operator", fix="export the file again")
        self.b.outputs = [self.names[i] for i in model.outputs]
        return check(self.b.freeze())

    def operator(self, op: Operator) -> None:
        label = self.model.tensors[op.outputs[0]].name if op.outputs else op.code
        try:
            rule = RULES.get(op.code)
            if rule is None:
                raise Unreadable("op", f"{op.code} has no integer form here", "replace the operator")
            if not op.outputs or not op.inputs:
                raise Unreadable("form", f"{op.code} with {len(op.inputs)} inputs and {len(op.outputs)} outputs", "export the file again")
            guarded(lambda: rule(self, op))
        except Unreadable as error:
            self.problems.append(Problem(error.args[0], label, "", error.args[1], error.args[2]))
        except QwtEdgeError as error:
            error.node = error.node or f"{op.code} '{label}'"
            raise
        for i in op.outputs:  # so that later operators are looked at too
            if i not in self.names and self.problems:
                self.names[i] = self.b.tensor(self.model.tensors[i].name or op.code, TensorType(self.model.tensors[i].shape))

    # ---- tensors

    def row(self, index: int) -> Tensor:
        if index < 0:
            raise Unreadable("form", "an input is absent", "export the file again")
        return self.model.tensors[index]

    def type(self, index: int) -> TensorType:
        """The IR type of an activation: float32, int32 positions, or int8 with one scale."""
        row = self.row(index)
        if row.dtype == "float32" or (row.dtype == "int32" and not row.scale):
            return TensorType(row.shape, row.dtype)
        if row.dtype != "int8":
            raise Unreadable("dtype", f"'{row.name}' is {row.dtype}; int8 activations are read", "quantize to int8")
        if len(row.scale) != 1:
            raise Unreadable("quantization", f"'{row.name}' has {len(row.scale)} scales; activations have one", "quantize to int8")
        return TensorType(row.shape, "int8", Quantization.per_tensor(row.scale[0], row.zero_point[0]))

    def read(self, index: int) -> str:
        """The IR name of an operator's input, made on first use when it is a constant."""
        row = self.row(index)
        if index not in self.names:
            if row.data is None:
                raise GraphError(f"'{row.name}' is read before it is produced", fix="export the file again")
            self.names[index] = self.b.constant(row.name or "constant", row.data, self.type(index))
        return self.names[index]

    def shape(self, index: int) -> tuple[int, ...]:
        return self.row(index).shape

    def constant(self, op: Operator, position: int, dtypes: Sequence[str] = ("int32", "int64")) -> np.ndarray:
        """An operator's input that must be a constant, e.g. paddings."""
        row = self.row(op.inputs[position]) if position < len(op.inputs) else None
        if row is None or row.data is None or row.dtype not in dtypes:
            raise Unreadable(
                "form", f"input {position} of {op.code} is not a constant of {' or '.join(dtypes)}", "export with static shapes"
            )
        return row.data

    def integers(self, op: Operator, position: int) -> list[int]:
        values = self.constant(op, position).reshape(-1)
        if values.size > 64:
            raise Unreadable("form", f"input {position} of {op.code} has {values.size} values", "export the file again")
        return [int(v) for v in values]

    # ---- nodes

    def add(self, op: str, inputs: Sequence[str], attrs: Any, output: int) -> None:
        """A node whose output is tensor ``output`` of the file."""
        row = self.row(output)
        if output in self.names or row.data is not None:
            raise GraphError(f"'{row.name}' is produced twice", fix="export the file again")
        if op not in POSITIONAL and "int32" in (row.dtype, *(self.b.tensors[t].dtype for t in inputs[: OPS[op].data_inputs])):
            raise Unreadable("dtype", f"{op} on int32", "quantize to int8")
        name = self.b.unique_tensor(row.name or op)
        self.b.add(
            op, inputs, attrs, name=row.name or op, location=Location(module_path=row.name), out_types=(self.type(output),), outputs=(name,)
        )
        self.names[output] = name

    def step(self, op: str, inputs: Sequence[str], attrs: Any, shape: Sequence[int], like: TensorType, hint: str) -> str:
        """A node in between."""
        type = TensorType(tuple(shape), like.dtype, like.quantization)
        return self.b.add(op, inputs, attrs, name=hint, out_types=(type,))[0]

    def reshaped(self, name: str, shape: Sequence[int], hint: str) -> str:
        have = self.b.tensors[name]
        return name if have.shape == tuple(shape) else self.step("reshape", (name,), ReshapeAttrs(tuple(shape)), shape, have, hint)


Rule = Callable[[_Reader, Operator], None]


def _options(op: Operator, table: str) -> Any:
    if op.options is None or type(op.options).__name__ != table:
        raise Unreadable("form", f"{op.code} without {table}", "export the file again")
    return op.options


def _activation(value: int) -> str:
    name = enum_names("ActivationFunctionType").get(value, str(value))
    if name not in ACTIVATION_OF:
        raise Unreadable("activation", f"fused activation {name}", "use none, relu, relu6 or relu_n1_to_1")
    return ACTIVATION_OF[name]


# ---------------------------------------------------------------- weighted ops


def _weights(r: _Reader, op: Operator, position: int, axis: int, out: Callable[[tuple[int, ...]], int]) -> tuple[str, int]:
    """(IR name, output channels) of a weight tensor."""
    row = r.row(op.inputs[position])
    if row.data is None or row.dtype not in ("int8", "int4"):
        raise Unreadable("weights", f"weights '{row.name}' are not int8 or int4 constants", "quantize to int8")
    if any(row.zero_point):
        raise Unreadable("weights", f"weights '{row.name}' have zero points other than 0", "quantize weights symmetrically")
    count = len(row.scale)
    if count < 1 or (count > 1 and (row.axis != axis or count != row.shape[axis])):
        raise Unreadable("weights", f"weights '{row.name}' have {count} scales along axis {row.axis}", "quantize per output channel")
    index = op.inputs[position]
    if index not in r.names:
        q = Quantization(row.scale, row.zero_point, axis if count > 1 else None)
        r.names[index] = r.b.constant(row.name or "weights", row.data, TensorType(row.shape, row.dtype, q))
    elif r.b.tensors[r.names[index]].dtype not in ("int8", "int4") or r.names[index] not in r.b.constants:
        raise Unreadable("weights", f"weights '{row.name}' are not constants", "export the file again")
    return r.names[index], out(row.shape)


def _bias(r: _Reader, op: Operator, position: int, channels: int, x: TensorType, weights: str) -> str:
    """A bias constant; zeros where the file has none."""
    q = r.b.tensors[weights].quantization
    assert q is not None
    scale = np.float32(x.scale) * q.scale_array
    if not np.all(np.isfinite(scale)) or not np.all(scale > 0):
        raise Unreadable("weights", "input scale times weight scale leaves float32", "quantize to other scales")
    quantization = Quantization(tuple(float(v) for v in scale), (0,) * len(scale), 0 if len(scale) > 1 else None)
    type = TensorType((channels,), "int32", quantization)
    index = op.inputs[position] if position < len(op.inputs) else -1
    if index < 0:
        return r.b.constant(f"{weights}/no_bias", np.zeros(channels, np.int32), type)
    row = r.row(index)
    if row.data is None or row.dtype != "int32" or row.data.size != channels:
        raise Unreadable("bias", f"bias '{row.name}' is not an int32 constant of {channels} values", "quantize to int8")
    return r.b.constant(row.name or "bias", row.data.reshape(channels), type)


def _input_type(
    r: _Reader, op: Operator, position: int = 0, rank: int | None = None, dtypes: Sequence[str] = ("int8",)
) -> tuple[str, TensorType]:
    name = r.read(op.inputs[position])
    type = r.b.tensors[name]
    if type.dtype not in dtypes:
        raise Unreadable("dtype", f"{op.code} on {type.dtype}", "quantize to int8")
    if rank is not None and len(type.shape) != rank:
        raise Unreadable("rank", f"{op.code} on rank {len(type.shape)}", f"reshape to rank {rank}")
    return name, type


def _padding(scheme: int, x: TensorType, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> tuple:
    """Explicit padding of a window op, after refusing windows out of all proportion to the input."""
    if min(*stride, *dilation, *kernel) < 1:
        raise GraphError(
            f"window {tuple(kernel)}, stride {tuple(stride)} or dilation {tuple(dilation)} below 1", fix="export the file again"
        )
    pads = []
    for i in (0, 1):
        size = x.shape[1 + i]
        if (kernel[i] - 1) * dilation[i] + 1 > WINDOW_LIMIT * (size + 1):
            raise GraphError(f"window of {kernel[i]} with dilation {dilation[i]} over an axis of {size}", fix="export the file again")
        before, total = same_padding(size, kernel[i], stride[i], dilation[i]) if _scheme(scheme) == "SAME" else (0, 0)
        pads.append((before, total - before))
    return tuple(pads)


def _scheme(value: int) -> str:
    name = enum_names("Padding").get(value)
    if name not in ("SAME", "VALID"):
        raise GraphError(f"padding scheme {value}", fix="export the file again")
    return name


def _conv2d(r: _Reader, op: Operator) -> None:
    o = _options(op, "Conv2DOptions")
    name, x = _input_type(r, op, rank=4)
    w, channels = _weights(r, op, 1, 0, lambda s: s[0])
    shape = r.b.tensors[w].shape
    if len(shape) != 4 or x.shape[3] % shape[3]:
        raise GraphError(f"weights {shape} do not fit input {x.shape}", fix="export the file again")
    stride, dilation = (o.StrideH(), o.StrideW()), (o.DilationHFactor(), o.DilationWFactor())
    pads = _padding(o.Padding(), x, shape[1:3], stride, dilation)
    attrs = Conv2DAttrs(stride, pads, dilation, x.shape[3] // shape[3], _activation(o.FusedActivationFunction()))
    r.add("conv2d", (name, w, _bias(r, op, 2, channels, x, w)), attrs, op.outputs[0])


def _depthwise(r: _Reader, op: Operator) -> None:
    o = _options(op, "DepthwiseConv2DOptions")
    name, x = _input_type(r, op, rank=4)
    w, channels = _weights(r, op, 1, 3, lambda s: s[-1])
    shape = r.b.tensors[w].shape
    if len(shape) != 4:
        raise GraphError(f"weights {shape} do not fit input {x.shape}", fix="export the file again")
    stride, dilation = (o.StrideH(), o.StrideW()), (o.DilationHFactor(), o.DilationWFactor())
    attrs = DepthwiseAttrs(
        stride, _padding(o.Padding(), x, shape[1:3], stride, dilation), dilation, _activation(o.FusedActivationFunction())
    )
    r.add("depthwise_conv2d", (name, w, _bias(r, op, 2, channels, x, w)), attrs, op.outputs[0])


def _transpose_conv(r: _Reader, op: Operator) -> None:
    o = _options(op, "TransposeConvOptions")
    name, x = _input_type(r, op, 2, rank=4)
    w, channels = _weights(r, op, 1, 0, lambda s: s[0])
    shape, out = r.b.tensors[w].shape, r.shape(op.outputs[0])
    if tuple(r.integers(op, 0)) != out or len(out) != 4 or len(shape) != 4:
        raise GraphError(f"output {out} is not what the operator prescribes", fix="export the file again")
    stride = (o.StrideH(), o.StrideW())
    if min(stride) < 1 or max(stride) > max(out):
        raise GraphError(f"stride {stride}", fix="export the file again")
    same = _scheme(o.Padding()) == "SAME"

    def crop(i: int) -> tuple[int, int]:
        before = same_padding(out[i], shape[i], stride[i - 1], 1)[0] if same else 0
        return before, (x.shape[i] - 1) * stride[i - 1] + shape[i] - before - out[i]

    attrs = TransposeConvAttrs(stride, (crop(1), crop(2)), _activation(o.FusedActivationFunction()))
    r.add("transpose_conv2d", (name, w, _bias(r, op, 3, channels, x, w)), attrs, op.outputs[0])


def _fully_connected(r: _Reader, op: Operator) -> None:
    o = _options(op, "FullyConnectedOptions")
    if o.WeightsFormat() != 0:
        raise Unreadable("weights", "shuffled weights", "export with the default weight format")
    name, x = _input_type(r, op)
    w, channels = _weights(r, op, 1, 0, lambda s: s[0])
    shape, out = r.b.tensors[w].shape, r.shape(op.outputs[0])
    if len(shape) != 2 or prod(x.shape) % shape[1]:
        raise GraphError(f"weights {shape} do not fit input {x.shape}", fix="export the file again")
    attrs = FullyConnectedAttrs(_activation(o.FusedActivationFunction()))
    bias = _bias(r, op, 2, channels, x, w)
    label = r.row(op.outputs[0]).name
    if len(x.shape) >= 2 and x.shape[-1] == shape[1] and out == (*x.shape[:-1], channels):
        r.add("fully_connected", (name, w, bias), attrs, op.outputs[0])
        return
    rows = prod(x.shape) // shape[1]
    source = r.reshaped(name, (rows, shape[1]), f"{label}/rows")
    if out == (rows, channels):
        r.add("fully_connected", (source, w, bias), attrs, op.outputs[0])
        return
    flat = r.step("fully_connected", (source, w, bias), attrs, (rows, channels), r.type(op.outputs[0]), f"{label}/flat")
    r.add("reshape", (flat,), ReshapeAttrs(out), op.outputs[0])


# ---------------------------------------------------------------- element by element


def _binary(name: str, table: str) -> Rule:
    def rule(r: _Reader, op: Operator) -> None:
        if len(op.inputs) != 2:
            raise Unreadable("form", f"{op.code} of {len(op.inputs)} inputs", "export the file again")
        activation = _activation(_options(op, table).FusedActivationFunction())
        r.add(name, [r.read(i) for i in op.inputs], BinaryAttrs(activation), op.outputs[0])

    return rule


def _unary(name: str, attrs: Callable[[Operator], Any] = lambda op: NoAttrs()) -> Rule:
    return lambda r, op: r.add(name, (_input_type(r, op)[0],), attrs(op), op.outputs[0])


def _clamped(r: _Reader, op: Operator, attrs: ClampAttrs | None, name: str = "clamp") -> None:
    x, out = _input_type(r, op)[1], r.type(op.outputs[0])
    if x.quantization != out.quantization:
        message = f"{op.code} from {type_text(x)} to {type_text(out)}"
        raise Unreadable("quantization", message, "give its input and output one quantization, or fuse it")
    r.add(name, (r.read(op.inputs[0]),), attrs or NoAttrs(), op.outputs[0])


def _bound(r: _Reader, op: Operator) -> None:
    """MINIMUM or MAXIMUM with one code; MINIMUM with a mask."""
    if op.code == "MINIMUM" and len(op.inputs) == 2 and r.type(op.inputs[1]).quantization == MASK:
        name, x = _input_type(r, op)
        r.add("mask_fill", (name, r.read(op.inputs[1])), MaskFillAttrs((-128 - x.zero_point) * x.scale), op.outputs[0])
        return
    positions = [p for p in (0, 1) if p < len(op.inputs) and r.row(op.inputs[p]).data is not None]
    if len(op.inputs) != 2 or len(positions) != 1:
        raise Unreadable("form", f"{op.code} of two activations", "use it with a constant")
    row = r.row(op.inputs[positions[0]])
    type = r.type(op.inputs[positions[0]])
    assert row.data is not None
    if row.data.size != 1:
        raise Unreadable("form", f"{op.code} with {row.data.size} constants", "use it with one constant")
    if type.quantization is None or type.quantization != r.type(op.outputs[0]).quantization:
        raise Unreadable("quantization", f"{op.code} with a bound of another quantization", "give both one quantization")
    real = float((int(row.data.reshape(())) - type.zero_point) * type.scale)
    attrs = ClampAttrs(-np.inf, real) if op.code == "MINIMUM" else ClampAttrs(real, np.inf)
    other = Operator(op.code, (op.inputs[1 - positions[0]],), op.outputs, op.options)
    _clamped(r, other, attrs)


def _prelu(r: _Reader, op: Operator) -> None:
    name, x = _input_type(r, op)
    row = r.row(op.inputs[1]) if len(op.inputs) > 1 else None
    if row is None or row.data is None or row.data.size != x.shape[-1] or row.shape[-1:] != x.shape[-1:]:
        raise Unreadable("form", "PRELU without one constant slope per channel", "share slopes over height and width")
    type = r.type(op.inputs[1])
    slopes = r.b.constant(row.name or "slopes", row.data.reshape(-1), TensorType((row.data.size,), "int8", type.quantization))
    r.add("prelu", (name, slopes), NoAttrs(), op.outputs[0])


# ---------------------------------------------------------------- products, tables, positions


def _batch_matmul(r: _Reader, op: Operator) -> None:
    o = _options(op, "BatchMatMulOptions")
    (x, _), (y, second) = _input_type(r, op), _input_type(r, op, 1)
    if o.AdjX() or second.zero_point:
        message = f"BATCH_MATMUL with a transposed first operand or zero point {second.zero_point} of the second"
        raise Unreadable("form", message, "transpose before it, and quantize the second operand symmetrically")
    r.add("batch_matmul", (x, y), BatchMatmulAttrs(bool(o.AdjY())), op.outputs[0])


def _gather(r: _Reader, op: Operator) -> None:
    """Rows of a constant table."""
    o, (table, type) = _options(op, "GatherOptions"), _input_type(r, op)
    if table not in r.b.constants or len(type.shape) != 2 or o.Axis() or o.BatchDims():
        raise Unreadable("form", "GATHER of anything but rows of a constant table", "look up rows of a constant table of two axes")
    indices, _ = _input_type(r, op, 1, dtypes=("int32",))
    r.add("embedding", (indices, table), NoAttrs(), op.outputs[0])


def _argmax(r: _Reader, op: Operator) -> None:
    name, x = _input_type(r, op)
    axes, rank = r.integers(op, 1), len(x.shape)
    if len(axes) != 1 or not -rank <= axes[0] < rank:
        raise GraphError(f"axis {axes} of rank {rank}", fix="export the file again")
    r.add("argmax", (name,), ArgmaxAttrs(axes[0] % rank), op.outputs[0])


def _l2_normalize(r: _Reader, op: Operator) -> None:
    if _activation(_options(op, "L2NormOptions").FusedActivationFunction()) != "none":
        raise Unreadable("activation", "L2_NORMALIZATION with a fused activation", "export the file again")
    r.add("l2_normalize", (_input_type(r, op)[0],), L2NormalizeAttrs(), op.outputs[0])


# ---------------------------------------------------------------- pools and reductions


def _pool(name: str) -> Rule:
    def rule(r: _Reader, op: Operator) -> None:
        o = _options(op, "Pool2DOptions")
        source, x = _input_type(r, op, rank=4)
        kernel, stride = (o.FilterHeight(), o.FilterWidth()), (o.StrideH(), o.StrideW())
        pads = _padding(o.Padding(), x, kernel, stride, (1, 1))
        attrs, activation = PoolAttrs(kernel, stride, pads), _activation(o.FusedActivationFunction())
        out = r.type(op.outputs[0])
        if x.quantization != out.quantization:
            message = f"{op.code} from {type_text(x)} to {type_text(out)}"
            raise Unreadable("quantization", message, "give its input and output one quantization")
        if activation == "none":
            r.add(name, (source,), attrs, op.outputs[0])
            return
        pooled = r.step(name, (source,), attrs, out.shape, x, f"{r.row(op.outputs[0]).name}/pooled")
        r.add("clamp", (pooled,), ClampAttrs(*ACTIVATIONS[activation]), op.outputs[0])

    return rule


def _reduce(name: str) -> Rule:
    def rule(r: _Reader, op: Operator) -> None:
        source, x = _input_type(r, op)
        rank = len(x.shape)
        axes = r.integers(op, 1)
        if any(not -rank <= a < rank for a in axes):
            raise GraphError(f"axes {axes} of rank {rank}", fix="export the file again")
        keep = bool(_options(op, "ReducerOptions").KeepDims())
        r.add(name, (source,), ReduceAttrs(tuple(sorted({a % rank for a in axes})), keep), op.outputs[0])

    return rule


# ---------------------------------------------------------------- data movement


def _reshape(r: _Reader, op: Operator) -> None:
    r.add("reshape", (_input_type(r, op, dtypes=("int8", "int32"))[0],), ReshapeAttrs(r.shape(op.outputs[0])), op.outputs[0])


def _transpose(r: _Reader, op: Operator) -> None:
    r.add("transpose", (_input_type(r, op)[0],), TransposeAttrs(tuple(r.integers(op, 1))), op.outputs[0])


def _concat(r: _Reader, op: Operator) -> None:
    o = _options(op, "ConcatenationOptions")
    if _activation(o.FusedActivationFunction()) != "none":
        raise Unreadable("activation", "CONCATENATION with a fused activation", "export the file again")
    rank = len(r.shape(op.outputs[0]))
    if not -rank <= o.Axis() < rank:
        raise GraphError(f"axis {o.Axis()} of rank {rank}", fix="export the file again")
    r.add("concat", [r.read(i) for i in op.inputs], ConcatAttrs(o.Axis() % rank), op.outputs[0])


def _slice(r: _Reader, op: Operator) -> None:
    name, x = _input_type(r, op)
    begin, size = r.integers(op, 1), r.integers(op, 2)
    if len(begin) != len(x.shape) or len(size) != len(x.shape):
        raise GraphError(f"slice of {len(begin)} axes on rank {len(x.shape)}", fix="export the file again")
    end = [d if s == -1 else b + s for b, s, d in zip(begin, size, x.shape, strict=True)]
    r.add("slice", (name,), SliceAttrs(tuple(begin), tuple(end), (1,) * len(begin)), op.outputs[0])


def _strided_slice(r: _Reader, op: Operator) -> None:
    o = _options(op, "StridedSliceOptions")
    name, x = _input_type(r, op)
    begin, end, stride = (r.integers(op, i) for i in (1, 2, 3))
    rank = len(x.shape)
    if o.EllipsisMask() or o.NewAxisMask() or o.Offset() or not len(begin) == len(end) == len(stride) == rank or min(stride) < 1:
        raise Unreadable("form", "STRIDED_SLICE with an ellipsis, new axes, offsets or negative strides", "slice every axis forwards")
    starts, stops = [], []
    for i, d in enumerate(x.shape):
        start = 0 if o.BeginMask() >> i & 1 else min(max(begin[i] + d * (begin[i] < 0), 0), d)
        stop = d if o.EndMask() >> i & 1 else min(max(end[i] + d * (end[i] < 0), 0), d)
        if o.ShrinkAxisMask() >> i & 1:
            stop = start + 1
        starts.append(start)
        stops.append(stop)
    attrs, out = SliceAttrs(tuple(starts), tuple(stops), tuple(stride)), r.shape(op.outputs[0])
    if o.ShrinkAxisMask():
        sizes = [max(0, (e - s + t - 1) // t) for s, e, t in zip(starts, stops, stride, strict=True)]
        cut = r.step("slice", (name,), attrs, sizes, x, f"{r.row(op.outputs[0]).name}/cut")
        r.add("reshape", (cut,), ReshapeAttrs(out), op.outputs[0])
    else:
        r.add("slice", (name,), attrs, op.outputs[0])


def _cut(r: _Reader, op: Operator, name: str, axis: int, sizes: Sequence[int]) -> None:
    shape, at = r.b.tensors[name].shape, 0
    for output, size in zip(op.outputs, sizes, strict=True):
        begin, end = [0] * len(shape), list(shape)
        begin[axis], end[axis] = at, at + size
        r.add("slice", (name,), SliceAttrs(tuple(begin), tuple(end), (1,) * len(shape)), output)
        at += size


def _split(r: _Reader, op: Operator) -> None:
    variable = op.code == "SPLIT_V"
    name, x = _input_type(r, op, 0 if variable else 1)
    axis = r.integers(op, 2 if variable else 0)
    if len(axis) != 1 or not -len(x.shape) <= axis[0] < len(x.shape):
        raise GraphError(f"split along axis {axis} of rank {len(x.shape)}", fix="export the file again")
    at = axis[0] % len(x.shape)
    sizes = [r.shape(i)[at] if at < len(r.shape(i)) else 0 for i in op.outputs]
    _cut(r, op, name, at, sizes)


def _pad(r: _Reader, op: Operator) -> None:
    name, x = _input_type(r, op)
    pads = r.constant(op, 1)
    if pads.shape != (len(x.shape), 2) or pads.min(initial=0) < 0:
        raise GraphError(f"paddings of shape {pads.shape} on rank {len(x.shape)}", fix="export the file again")
    value = 0.0
    if op.code == "PADV2":
        code = r.constant(op, 2, ("int8",)).reshape(-1)
        if code.size != 1:
            raise GraphError(f"{code.size} padding values", fix="export the file again")
        value = float((int(code[0]) - x.zero_point) * x.scale)
    r.add("pad", (name,), PadAttrs(tuple((int(a), int(b)) for a, b in pads), value), op.outputs[0])


def _resize(name: str, table: str) -> Rule:
    def rule(r: _Reader, op: Operator) -> None:
        o = _options(op, table)
        source, _ = _input_type(r, op, rank=4)
        size = r.integers(op, 1)
        if len(size) != 2 or tuple(size) != r.shape(op.outputs[0])[1:3]:
            raise GraphError(f"size {size} is not the output's", fix="export the file again")
        r.add(name, (source,), ResizeAttrs((size[0], size[1]), bool(o.AlignCorners()), bool(o.HalfPixelCenters())), op.outputs[0])

    return rule


def _space_and_depth(r: _Reader, op: Operator) -> None:
    """DEPTH_TO_SPACE and SPACE_TO_DEPTH as reshape, transpose, reshape."""
    to_space = op.code == "DEPTH_TO_SPACE"
    block = _options(op, "DepthToSpaceOptions" if to_space else "SpaceToDepthOptions").BlockSize()
    name, x = _input_type(r, op, rank=4)
    n, h, w, c = x.shape
    if block < 1 or (c % (block * block) if to_space else h % block or w % block):
        raise GraphError(f"blocks of {block} on {x.shape}", fix="export the file again")
    label, out = r.row(op.outputs[0]).name, r.shape(op.outputs[0])
    if to_space:
        split, perm = (n, h, w, block, block, c // (block * block)), (0, 1, 3, 2, 4, 5)
    else:
        split, perm = (n, h // block, block, w // block, block, c), (0, 1, 3, 2, 4, 5)
    apart = r.reshaped(name, split, f"{label}/split")
    moved = r.step("transpose", (apart,), TransposeAttrs(perm), [split[p] for p in perm], x, f"{label}/moved")
    r.add("reshape", (moved,), ReshapeAttrs(out), op.outputs[0])


# ---------------------------------------------------------------- boundary


def _quantize(r: _Reader, op: Operator) -> None:
    name = r.read(op.inputs[0])
    r.add("quantize" if r.b.tensors[name].dtype == "float32" else "requantize", (name,), NoAttrs(), op.outputs[0])


RULES: dict[str, Rule] = {
    "CONV_2D": _conv2d,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transpose_conv,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": _binary("add", "AddOptions"),
    "SUB": _binary("sub", "SubOptions"),
    "MUL": _binary("mul", "MulOptions"),
    "AVERAGE_POOL_2D": _pool("avg_pool2d"),
    "MAX_POOL_2D": _pool("max_pool2d"),
    "MEAN": _reduce("mean"),
    "SUM": _reduce("sum"),
    "REDUCE_MAX": _reduce("reduce_max"),
    "SOFTMAX": _unary("softmax", lambda op: SoftmaxAttrs(float(_options(op, "SoftmaxOptions").Beta()))),
    "LOGISTIC": _unary("logistic"),
    "TANH": _unary("tanh"),
    "HARD_SWISH": _unary("hard_swish"),
    "ELU": _unary("elu", lambda op: AlphaAttrs(1.0)),
    "LEAKY_RELU": _unary("leaky_relu", lambda op: AlphaAttrs(float(_options(op, "LeakyReluOptions").Alpha()))),
    "RELU": lambda r, op: _clamped(r, op, None, "relu"),
    "RELU6": lambda r, op: _clamped(r, op, None, "relu6"),
    "RELU_N1_TO_1": lambda r, op: _clamped(r, op, ClampAttrs(-1.0, 1.0)),
    "RELU_0_TO_1": lambda r, op: _clamped(r, op, ClampAttrs(0.0, 1.0)),
    "GELU": _unary("gelu", lambda op: GeluAttrs(bool(_options(op, "GeluOptions").Approximate()))),
    "BATCH_MATMUL": _batch_matmul,
    "GATHER": _gather,
    "ARG_MAX": _argmax,
    "L2_NORMALIZATION": _l2_normalize,
    "MINIMUM": _bound,
    "MAXIMUM": _bound,
    "PRELU": _prelu,
    "RESHAPE": _reshape,
    "SQUEEZE": _reshape,
    "EXPAND_DIMS": _reshape,
    "TRANSPOSE": _transpose,
    "CONCATENATION": _concat,
    "SLICE": _slice,
    "STRIDED_SLICE": _strided_slice,
    "SPLIT": _split,
    "SPLIT_V": _split,
    "PAD": _pad,
    "PADV2": _pad,
    "RESIZE_NEAREST_NEIGHBOR": _resize("resize_nearest", "ResizeNearestNeighborOptions"),
    "RESIZE_BILINEAR": _resize("resize_bilinear", "ResizeBilinearOptions"),
    "DEPTH_TO_SPACE": _space_and_depth,
    "SPACE_TO_DEPTH": _space_and_depth,
    "QUANTIZE": _quantize,
    "DEQUANTIZE": _unary("dequantize"),
}
