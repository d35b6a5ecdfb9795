"""Integer graphs as calls of ExecuTorch's Cortex-M operators, which call CMSIS-NN.

(1)  out = clamp(z_out + RDBPOT(SRDHM(acc << max(e, 0), m), max(-e, 0)))        per channel; m, e are in the program
(2)  acc = b + sum (x - z_in) * w

Multipliers m and shifts e (positive: left) are computed here, in float64, and stored; nothing is derived on the device.
Activations are NHWC in memory. Operators that think in images see them as NCHW with dimension order (0, 2, 3, 1), others
as plain arrays; both are views of the same bytes.

One program serves every core unless one is named. Cores differ in two things: the scratch memory that CMSIS-NN's kernels
ask for, and what ``quantized_linear`` reads, ``kernel_sum`` with the vector extension (MVE) and ``bias`` without it.
A program for all cores has the largest scratch and both constants.

Source: executorch v1.4.1, backends/cortex_m/ops/*.cpp; CMSIS-NN dbf45dbf, which it pins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import numpy as np

from qwtv2_edge import fixedpoint as fp
from qwtv2_edge.errors import GraphError, MissingToolError, Problem, QuantizeError, UsageError
from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.ir.types import DTYPES, TensorType
from qwtv2_edge.numerics import Numerics
from qwtv2_edge.ops import integers, weighted
from qwtv2_edge.ops.conv import out_size
from qwtv2_edge.ops.kernels import nearest_index
from qwtv2_edge_executorch.emit import Build, guard
from qwtv2_edge_executorch.kernels import Portable, Shape, meaning
from qwtv2_edge_executorch.numerics import CORTEX_M_REFUSES
from qwtv2_edge_executorch.portable import CHANNELS_LAST
from qwtv2_edge_executorch.program import SCALAR_TYPES, ProgramBuilder

#: what the vector extension loads at once: bytes that buffers and constants are aligned to
ALIGNMENT = 16
#: largest left shift of CMSIS-NN's requantizer
MOST_SHIFT = 30
#: with more input channels, CMSIS-NN computes transposed convolutions of stride 1 and 2 as convolutions with reversed kernels.
#: Source: CMSIS-NN dbf45dbf, arm_transpose_conv_wrapper_s8.c
REVERSE_CHANNELS = 16
#: axes of a tensor that ``pad`` and ``transpose`` take
MOST_AXES = 4

#: instruction sets that CMSIS-NN has kernels for, as its helper names them
FAMILIES = ("MVE", "DSP", "SCALAR")

NOT_EXECUTED = (
    "no Cortex-M runtime is executed: ExecuTorch's package has none. verify checks the program by proxy, its instructions read back "
    "from the file and computed by the operators' Python forms, pools and softmax by TFLite Micro"
)
FLOAT_INPUT = (
    "quantize_per_tensor rounds differently on cores with MVE: the product with 1 / scale is fused into the rounding, so that reals "
    'within a float32 step of a tie may differ by 1, and reals beyond 32767 steps of the scale wrap; io_dtype = "int8" leaves it out'
)

#: op that ``CORTEX_M_REFUSES`` names -> what to do
FIXES: dict[str, str] = {
    "resize_bilinear": "use resize_nearest, or a transposed convolution",
    **dict.fromkeys(("layer_norm", "channel_scale", "channel_add", "l2_normalize"), "use batch norms, which fold into convolutions"),
    **dict.fromkeys(("embedding", "argmax", "mask_fill"), "leave it out of the network"),
}


def families_of(core: str) -> tuple[str, ...]:
    """The instruction sets that a program for ``core`` ("cortex-m4", "" for every core) has to serve.

    Raises: UsageError: no such core; MissingToolError: ExecuTorch is not installed.
    """
    if not core:
        return FAMILIES
    cmsis_nn = _helper()
    name = core.removeprefix("cortex-").upper().replace("+", "PLUS")
    known = {n for n in dir(cmsis_nn.CortexM) if n.startswith("M") and n[1].isdigit()}
    if not core.startswith("cortex-m") or name not in known:
        cores = sorted((f"cortex-{n.lower()}" for n in known), key=lambda n: (len(n), n))
        raise UsageError(f"unknown core '{core}'", fix=f"one of: {', '.join(cores)}; or none, for a program that every core runs")
    return (cmsis_nn.resolve_backend(getattr(cmsis_nn.CortexM, name)).name,)


def _helper() -> Any:
    """CMSIS-NN's own sizes of scratch buffers, as ExecuTorch packs them. Imports neither torch nor a runtime."""
    try:
        from executorch.backends.cortex_m.library import cmsis_nn
    except ImportError as exc:
        raise MissingToolError(
            "scratch sizes for Cortex-M come from the executorch package, which is not installed",
            fix="pip install 'qwtv2-edge[executorch]'",
        ) from exc
    return cmsis_nn


@dataclass
class CortexM(Portable):
    """Operator calls of one program.

    Attributes:
        families: the instruction sets it has to serve.
        scratch_bytes: node -> scratch memory of its call.
    """

    families: tuple[str, ...] = FAMILIES
    scratch_bytes: dict[str, int] = field(default_factory=dict)

    def image(self, value: int) -> int:
        """A view of a rank-4 value, NHWC in memory, in the shape that image operators take."""
        n, h, w, c = self.shape(value)
        return self.program.alias(value, (n, c, h, w), CHANNELS_LAST)

    def operator(self, name: str, *args: int, out: Sequence[int]) -> int:
        """Call an operator whose result is a plain int8 array."""
        return self.call(f"cortex_m::{name}.out", *args, shape=out, dtype=np.int8)

    def image_operator(self, name: str, *args: int, out: Sequence[int]) -> int:
        """Call an operator whose result is an image. out: NHWC."""
        n, h, w, c = out
        result = self.call(f"cortex_m::{name}.out", *args, shape=(n, c, h, w), dtype=np.int8, dim_order=CHANNELS_LAST)
        return self.program.alias(result, out)

    def integers(self, *values: int) -> list[int]:
        return [self.program.integer(v) for v in values]

    def scratch(self, function: str, **arguments: Any) -> int:
        """A buffer as large as CMSIS-NN's ``function`` says, the largest of all families."""
        cmsis_nn = _helper()
        ask = getattr(cmsis_nn, function)
        backends = [getattr(cmsis_nn.Backend, name) for name in self.families]
        size = max(0, *(int(ask(b, cmsis_nn.DataType.A8W8, **arguments)) for b in backends))
        node = self.program.node
        self.scratch_bytes[node] = self.scratch_bytes.get(node, 0) + size
        return self.program.tensor((size,), np.uint8)

    def look_up(self, x: int, table: np.ndarray) -> int:
        """table[x + 128]. table: 256 int8 codes."""
        return self.operator("quantized_activation", x, self.program.constant(np.ascontiguousarray(table, np.int8)), out=self.shape(x))

    def pad_codes(self, x: int, paddings: Sequence[tuple[int, int]], code: int) -> int:
        """A rank-4 value with ``paddings`` codes around each axis."""
        if not any(map(any, paddings)):
            return x
        b = self.program
        before, after = (b.integers(side) for side in zip(*paddings, strict=True))
        shape = [d + sum(p) for d, p in zip(self.shape(x), paddings, strict=True)]
        return self.image_operator("pad", self.image(x), before, after, b.integer(code), out=shape)


def build(graph: Graph, numerics: Numerics, core: str = "") -> Build:
    """Emit ``graph`` node by node; a node that can't be emitted becomes a Problem and the rest is still looked at.

    core: see ``EmitOptions``. Raises: UsageError: no such core; MissingToolError: ExecuTorch is not installed.
    """
    families = families_of(core)
    result = Build(ProgramBuilder(alignment=ALIGNMENT, tail=0))
    b = result.program
    values = {t: b.tensor(graph.tensors[t].shape, DTYPES[graph.tensors[t].dtype]) for t in graph.inputs}
    result.inputs = [values[t] for t in graph.inputs]
    p = CortexM(graph, numerics.for_graph(graph), b, values, families=families)
    for node in graph.nodes:
        b.node = node.name
        found = _refusal(graph, node)
        if found is None:
            guard(result, node, partial(_emit, p, node))
        else:
            result.problems.append(Problem(found[0], node.name, str(node.location), *found[1:]))
        for t in node.outputs:
            if t not in values:
                values[t] = b.tensor(graph.tensors[t].shape, DTYPES[graph.tensors[t].dtype])
    result.outputs = [p.value(t) for t in graph.outputs]
    result.notes = _notes(p, core)
    return result


def _notes(p: CortexM, core: str) -> list[str]:
    largest = max(p.scratch_bytes.values(), default=0)
    node = next((n for n, size in p.scratch_bytes.items() if size == largest), "")
    where = core or "every core (EmitOptions.core names one, for less)"
    notes = [NOT_EXECUTED, f"scratch memory for {where}: {largest} bytes at most" + (f", in '{node}'" if largest else "")]
    if any(n.op == "quantize" for n in p.graph.nodes) and "MVE" in p.families:
        notes.append(FLOAT_INPUT)
    return notes


def _emit(p: CortexM, node: Node) -> None:
    p.values[node.outputs[0]] = EMITTERS[node.op](p, node)


def _refusal(graph: Graph, node: Node) -> tuple[str, str, str] | None:
    """(code, message, fix) of a reason that holds before any emission."""
    if node.op in FIXES:
        return "op-unsupported", f"Cortex-M has no {node.op}: {CORTEX_M_REFUSES[node.op]}", FIXES[node.op]
    if node.op not in EMITTERS:
        return "op-unsupported", f"{node.op} has no integer form", "quantize the graph with qwtv2_edge.quantize"
    for tensor in (*node.inputs, *node.outputs):
        type = graph.tensors[tensor]
        if tensor in graph.constants or (type.dtype == "int8" and type.quantization is not None and len(type.quantization.scale) == 1):
            continue
        if type.dtype != "float32" or node.op not in ("quantize", "dequantize", "reshape"):
            message = f"tensor '{tensor}' is {type.dtype}; Cortex-M operators take 8-bit codes quantized per tensor"
            return "dtype-unsupported", message, "use activation_bits = 8 and residual_bits = 8"
    return None


# ---------------------------------------------------------------- multipliers, shifts, windows


@dataclass(frozen=True)
class _Requantize:
    """Multipliers and shifts, int32 (1,) or (channels,), within what CMSIS-NN documents."""

    multiplier: np.ndarray
    shift: np.ndarray

    @staticmethod
    def of(scale: np.ndarray | np.float64, bound: int) -> _Requantize:
        """Of effective scales. bound: no |accumulator| exceeds it. Raises: QuantizeError: they leave CMSIS-NN's range."""
        m, e = fp.quantize_multiplier(np.atleast_1d(scale))
        return _Requantize(m.astype(np.int32), e.astype(np.int32)).checked(bound)

    def checked(self, bound: int) -> _Requantize:
        if (self.multiplier <= 0).any():
            raise QuantizeError("an effective scale is below 2**-32: the bias would be lost", fix="narrow the output range")
        most = int(self.shift.max())
        if most > MOST_SHIFT or bound << max(most, 0) >= 2**31:
            raise QuantizeError(
                f"accumulators up to {bound} leave 32 bits when shifted left by {most}, for an effective scale of 2**{most - 1} or more",
                fix="widen the output range",
            )
        return self

    @property
    def one(self) -> tuple[int, int]:
        (m,), (e,) = self.multiplier.tolist(), self.shift.tolist()
        return m, e

    def per_channel(self, b: ProgramBuilder, channels: int) -> list[int]:
        """Two constants of ``channels`` entries."""
        return [b.constant(np.array(np.broadcast_to(v, channels)), own=True) for v in (self.multiplier, self.shift)]


def _bounds(p: CortexM, activation: str, out: TensorType) -> tuple[int, int]:
    return weighted.output_bounds(activation, out, p.numerics)


def _even_padding(x: Shape, kernel: Shape, stride: Shape, dilation: Shape, padding: Any) -> tuple[int, int] | None:
    """The padding that is the same on both sides of each axis and gives the same windows; None where there is none."""
    for size, k, s, d, pad in zip(x[1:3], kernel, stride, dilation, padding, strict=True):
        if out_size(size, k, s, (pad[0], pad[0]), d) != out_size(size, k, s, pad, d):
            return None
    return padding[0][0], padding[1][0]


def _windows(p: CortexM, x: int, kernel: Shape, stride: Shape, dilation: Shape, padding: Any, code: int) -> tuple[int, tuple[int, int]]:
    """(value, padding) for an operator that pads both sides alike: what it can't express is padded before, with ``code``."""
    even = _even_padding(p.shape(x), kernel, stride, dilation, padding)
    if even is not None and all(2 * pad <= k for pad, k in zip(even, kernel, strict=True)):
        return x, even
    return p.pad_codes(x, ((0, 0), *padding, (0, 0)), code), (0, 0)


# ---------------------------------------------------------------- weighted ops


@dataclass(frozen=True)
class _Weights:
    """What one convolution call computes with. codes: int8 (O, kh, kw, I), or (1, kh, kw, C) for depthwise ones."""

    codes: np.ndarray
    bias: np.ndarray
    requantize: _Requantize


def _weights(p: CortexM, node: Node) -> _Weights:
    w, b = (p.graph.constants[t] for t in node.inputs[1:3])
    types, out = p.graph.in_types(node), p.type(node.outputs[0])
    scale = weighted.effective_scale(node.op, p.numerics.rule(node.op), types, out)
    # the weights' part alone depends on no input: an empty one stands in for it
    bound = weighted.weights_of(node.op, (np.empty(0, np.int8), w, b), node.attrs, types).bound
    return _Weights(w, b.astype(np.int32), _Requantize.of(scale, bound))


def _convolution(
    p: CortexM, x: int, types: tuple[TensorType, TensorType], weights: _Weights, a: Any, padding: tuple[int, int],
    activation: str, out: Shape, depth_multiplier: int | None = None,
) -> int:  # fmt: skip
    """A (depthwise) convolution call. types: of input and output; out: NHWC."""
    b = p.program
    (x_type, out_type), dilation = types, getattr(a, "dilation", (1, 1))
    low, high = _bounds(p, activation, out_type)
    depthwise = depth_multiplier is not None
    filter_shape = (weights.codes.shape[3], *weights.codes.shape[1:3], 1) if depthwise else weights.codes.shape
    depth: dict[str, Any] = {"ch_mult": depth_multiplier} if depthwise else {}
    scratch = p.scratch(
        "depthwise_conv_wrapper_buffer_size" if depthwise else "convolve_wrapper_buffer_size",
        input_nhwc=p.shape(x), filter_nhwc=filter_shape, output_nhwc=out, padding_hw=padding, stride_hw=a.stride, dilation_hw=dilation,
        input_offset=-x_type.zero_point, output_offset=out_type.zero_point, activation_min=low, activation_max=high,
        **depth,
    )  # fmt: skip
    return p.image_operator(
        "quantized_depthwise_conv2d" if depthwise else "quantized_conv2d",
        p.image(x), b.constant(weights.codes), b.constant(weights.bias),
        b.integers(a.stride), b.integers(padding), b.integers(dilation),
        *([] if depth_multiplier is None else p.integers(depth_multiplier)),
        *p.integers(-x_type.zero_point, out_type.zero_point),
        *weights.requantize.per_channel(b, out[3]), *p.integers(low, high), scratch, out=out,
    )  # fmt: skip


def _conv2d(p: CortexM, node: Node) -> int:
    a, weights = node.attrs, _weights(p, node)
    x_type, out = p.type(node.inputs[0]), p.type(node.outputs[0])
    kernel = weights.codes.shape[1:3]
    x, padding = _windows(p, p.value(node.inputs[0]), kernel, a.stride, a.dilation, a.padding, x_type.zero_point)
    return _convolution(p, x, (x_type, out), weights, a, padding, a.activation, out.shape)


def _depthwise(p: CortexM, node: Node) -> int:
    a, weights = node.attrs, _weights(p, node)
    x_type, out = p.type(node.inputs[0]), p.type(node.outputs[0])
    kernel = weights.codes.shape[1:3]
    x, padding = _windows(p, p.value(node.inputs[0]), kernel, a.stride, a.dilation, a.padding, x_type.zero_point)
    if x_type.shape[0] == 1:
        return _convolution(p, x, (x_type, out), weights, a, padding, a.activation, out.shape, out.shape[3] // x_type.shape[3])
    # the depthwise operator takes one sample; more are a convolution in groups
    grouped = _Weights(np.ascontiguousarray(weights.codes.transpose(3, 1, 2, 0)), weights.bias, weights.requantize)
    return _convolution(p, x, (x_type, out), grouped, a, padding, a.activation, out.shape)


@dataclass(frozen=True)
class _Plain:
    """Attributes of a convolution that takes every position once."""

    stride: tuple[int, int] = (1, 1)


def _fully_connected(p: CortexM, node: Node) -> int:
    """One scale: ``quantized_linear``. A scale per channel, as compensation gives: ``quantized_linear`` would honour the
    first multiplier alone, so a 1 x 1 convolution over rows as images of one pixel."""
    weights = _weights(p, node)
    x_type, out = p.type(node.inputs[0]), p.type(node.outputs[0])
    codes, b = weights.codes, p.program
    outputs, inputs = codes.shape
    rows = prod(x_type.shape[:-1])
    if weights.requantize.multiplier.size > 1:
        pixels = _Weights(codes.reshape(outputs, 1, 1, inputs), weights.bias, weights.requantize)
        x = b.alias(p.value(node.inputs[0]), (rows, 1, 1, inputs))
        shape = (rows, 1, 1, outputs)
        return b.alias(_convolution(p, x, (x_type, out), pixels, _Plain(), (0, 0), node.attrs.activation, shape), out.shape)
    return _linear(p, p.value(node.inputs[0]), (x_type, out), weights, node.attrs.activation)


def _linear(p: CortexM, x: int, types: tuple[TensorType, TensorType], weights: _Weights, activation: str) -> int:
    """A ``quantized_linear`` call. x: (rows, K); codes of the weights: (O, K), one multiplier."""
    b, (x_type, out) = p.program, types
    m, e = weights.requantize.one
    low, high = _bounds(p, activation, out)
    # modulo 2**32, as the kernels add
    sums = (weights.bias - x_type.zero_point * weights.codes.sum(1, dtype=np.int64)).astype(np.int32)
    bias = b.constant(weights.bias) if set(p.families) - {"MVE"} else b.none()
    kernel_sum = b.constant(sums) if "MVE" in p.families else b.none()
    numbers = (*p.integers(-x_type.zero_point, 0, out.zero_point), b.integers([m]), b.integers([e]), *p.integers(high, low))
    shape = (*p.shape(x)[:-1], len(weights.codes))
    return b.alias(p.operator("quantized_linear", x, b.constant(weights.codes), bias, kernel_sum, *numbers, out=shape), out.shape)


@dataclass(frozen=True)
class _Scatter:
    """One axis of a transposed convolution: what the operator is given, and where the wanted output begins in its result."""

    kernel: int
    padding: int
    extra: int
    begin: int


def _scatter(size: int, kernel: int, stride: int, crop: Shape, kind: str) -> _Scatter:
    """What CMSIS-NN computes right; the rest of ``crop`` is cut off its result.

    Zeros after the kernel leave every sum as it is. They make it as long as the stride, which the size of the scratch memory
    takes for granted, and reach outputs beyond the last window. kind:

    * "reversed", either axis: padding up to kernel - 1.
    * "columns" of the direct kernel: any padding, output padding up to it.
    * "rows" of the direct kernel: it writes ``size * stride - padding`` rows or more, beginning with the first multiple of the
      stride, whatever was asked for.

    Source: CMSIS-NN dbf45dbf, arm_transpose_conv_s8.c, arm_transpose_conv_wrapper_s8.c, arm_transpose_conv_get_buffer_sizes_s8.c;
    measured with it compiled for x86-64
    """
    before, after = crop
    longer = max(kernel, stride, kernel - after)
    after += longer - kernel
    padding = min(before, after + stride - 1)
    if kind == "reversed":
        padding = min(padding, longer - 1)
    elif kind == "rows":
        padding = min(padding, after, longer - stride, size * stride) // stride * stride
    return _Scatter(longer, padding, max(padding - after, 0), before - padding)


def _transpose_conv(p: CortexM, node: Node) -> int:
    a, weights, b = node.attrs, _weights(p, node), p.program
    x_type, out = p.type(node.inputs[0]), p.type(node.outputs[0])
    is_reversed = max(a.stride) <= 2 and x_type.shape[3] > REVERSE_CHANNELS
    axes = [
        _scatter(x_type.shape[1 + i], weights.codes.shape[1 + i], a.stride[i], a.crop[i], "reversed" if is_reversed else kind)
        for i, kind in enumerate(("rows", "columns"))
    ]
    codes = np.pad(weights.codes, ((0, 0), *((0, s.kernel - k) for s, k in zip(axes, weights.codes.shape[1:3], strict=True)), (0, 0)))
    padding, extra = [s.padding for s in axes], [s.extra for s in axes]
    n, h, w, c = out.shape
    sizes = ((d - 1) * stride + s.kernel - 2 * s.padding + s.extra for d, stride, s in zip(x_type.shape[1:3], a.stride, axes, strict=True))
    whole = (n, *sizes, c)
    low, high = _bounds(p, a.activation, out)
    common: dict[str, Any] = {
        "input_nhwc": x_type.shape, "filter_nhwc": codes.shape, "padding_hw": padding, "stride_hw": a.stride,
        "dilation_hw": (1, 1), "padding_offsets_hw": extra, "input_offset": -x_type.zero_point, "output_offset": out.zero_point,
        "activation_min": low, "activation_max": high,
    }  # fmt: skip
    result = p.image_operator(
        "quantized_transpose_conv2d", p.image(p.value(node.inputs[0])), b.constant(codes), b.constant(weights.bias),
        b.integers(a.stride), b.integers(padding), b.integers(extra), b.integers([1, 1]),
        *p.integers(-x_type.zero_point, out.zero_point), *weights.requantize.per_channel(b, c), *p.integers(low, high),
        p.scratch("transpose_conv_buffer_size", output_nhwc=whole, **common),
        p.scratch("transpose_conv_reverse_conv_buffer_size", **common), out=whole,
    )  # fmt: skip
    rows, columns = axes
    return _part(p, _part(p, result, 1, rows.begin, rows.begin + h), 2, columns.begin, columns.begin + w)


def _batch_matmul(p: CortexM, node: Node) -> int:
    first, second, out = (p.type(t) for t in (*node.inputs, *node.outputs))
    b = p.program
    (rows, inner), columns, batch = first.shape[-2:], out.shape[-1], prod(out.shape[:-2])
    if node.attrs.transpose_b:
        turned = b.alias(p.value(node.inputs[1]), (batch, columns, inner))
    elif node.inputs[1] in p.graph.constants:
        turned = b.constant(p.graph.constants[node.inputs[1]].reshape(batch, inner, columns).swapaxes(1, 2))
    else:
        turned = _permuted(p, b.alias(p.value(node.inputs[1]), (batch, inner, columns)), (0, 2, 1))
    m, e = _Requantize.of(integers.product_scale64(first, second, out), inner * first.reach * second.reach).one
    result = p.operator(
        "quantized_batch_matmul", b.alias(p.value(node.inputs[0]), (batch, rows, inner)), *p.integers(-first.zero_point), turned,
        *p.integers(-second.zero_point, out.zero_point, m, e),
        p.scratch("fully_connected_buffer_size", filter_nhwc=[inner, -1, -1, columns]), out=(batch, rows, columns),
    )  # fmt: skip
    return b.alias(result, out.shape)


# ---------------------------------------------------------------- element by element


def _table(p: CortexM, node: Node) -> int:
    """Any unary op."""
    return p.look_up(p.value(node.inputs[0]), meaning(p, node, np.arange(-128, 128, dtype=np.int8)))


def _codes(p: CortexM, tensor: str) -> int | np.ndarray:
    """An operand: a constant's codes, or the value of anything else."""
    return p.graph.constants[tensor] if tensor in p.graph.constants else p.value(tensor)


def _spread(codes: np.ndarray, out: Shape, as_vector: bool) -> np.ndarray:
    """Constant codes that broadcast to ``out``: in full, or as a vector along its last axes where they are one."""
    shape = (1,) * (len(out) - codes.ndim) + codes.shape
    first = next((i for i, d in enumerate(shape) if d > 1), len(out) - 1)
    if as_vector and codes.size == 1:
        return np.full(out[-1:], codes.item(), np.int8)
    if as_vector and shape[first:] == out[first:]:
        return codes.reshape(out[first:])
    return np.array(np.broadcast_to(codes, out))


def _pairwise(p: CortexM, name: str, operands: Sequence[int | np.ndarray], numbers: Sequence[Sequence[int]], out: Shape, about: str) -> int:
    """Call an operator that takes two operands of one shape, or one of them as a vector of channels.

    The axes of an operand that is broadcast become that vector: they are brought to the end of the other one.

    Args:
        numbers: what follows the first operand, and the second.
        about: the op and its shapes, for the message.
    """
    b = p.program
    as_vector = any(not isinstance(v, np.ndarray) and prod(p.shape(v)) == prod(out) for v in operands)
    values = [b.constant(_spread(v, out, as_vector)) if isinstance(v, np.ndarray) else v for v in operands]
    shapes = [(1,) * (len(out) - len(p.shape(v))) + p.shape(v) for v in values]

    def call(x: int, y: int, shape: Shape, dim_order: Shape | None) -> int:
        return p.call(f"cortex_m::{name}.out", x, *numbers[0], y, *numbers[1], shape=shape, dtype=np.int8, dim_order=dim_order)

    whole = [prod(shape) == prod(out) for shape in shapes]
    if all(whole):
        x, y = (b.alias(v, out) for v in values)
        return call(x, y, out, None)
    if not any(whole):
        raise GraphError(f"{about}: on Cortex-M one operand has the result's shape", fix="expand one operand to the result's shape")
    kept = [i for i, d in enumerate(shapes[whole.index(False)]) if d > 1]
    perm = [*(i for i in range(len(out)) if i not in kept), *kept]
    channels = prod(out[i] for i in kept)
    rows = prod(out) // channels
    x, y = (
        b.alias(_permuted(p, b.alias(v, out), perm), (rows, channels, 1, 1), CHANNELS_LAST)
        if full
        else b.alias(v, (1, channels, 1, 1), CHANNELS_LAST)
        for v, full in zip(values, whole, strict=True)
    )
    result = call(x, y, (rows, channels, 1, 1), CHANNELS_LAST)
    return _permuted(p, b.alias(result, [out[i] for i in perm]), _inverse(perm))


def _about(p: CortexM, node: Node) -> str:
    first, second = (p.type(t).shape for t in node.inputs)
    return f"{node.op} of {first} and {second}"


#: table of negated values: ``(-1 - q) - (-1 - z)`` is ``-(q - z)``, and both are 8 bits
NEGATIVE = ~np.arange(-128, 128)


def _sum(p: CortexM, node: Node) -> int:
    """A difference is the sum with the negated second operand, a table's if it is no constant."""
    (first, second), out = p.graph.in_types(node), p.type(node.outputs[0])
    params = fp.left_shift_add_params(first.scale, second.scale, out.scale)
    x, y = (_codes(p, t) for t in node.inputs)
    zero_point = second.zero_point
    if node.op == "sub":
        y, zero_point = np.asarray(~y) if isinstance(y, np.ndarray) else p.look_up(y, NEGATIVE), ~zero_point
    last = p.integers(zero_point, *params.second, out.zero_point, *params.output, *_bounds(p, node.attrs.activation, out))
    return _pairwise(p, "quantized_add", (x, y), (p.integers(first.zero_point, *params.first), last), out.shape, _about(p, node))


def _product(p: CortexM, operands: Sequence[int | np.ndarray], types: Sequence[TensorType], about: str) -> int:
    """types: of both operands and the result."""
    first, second, out = types
    m, e = _Requantize.of(integers.product_scale64(first, second, out), first.reach * second.reach).one
    numbers = p.integers(first.zero_point), p.integers(second.zero_point, out.zero_point, m, e)
    return _pairwise(p, "quantized_mul", operands, numbers, out.shape, about)


def _mul(p: CortexM, node: Node) -> int:
    out = p.type(node.outputs[0])
    result = _product(p, [_codes(p, t) for t in node.inputs], (*p.graph.in_types(node), out), _about(p, node))
    low, high = _bounds(p, node.attrs.activation, out)
    # the operator has no activation
    return result if (low, high) == out.code_bounds else p.look_up(result, np.clip(np.arange(-128, 128), low, high))


def _prelu(p: CortexM, node: Node) -> int:
    """What lies above zero by a table, what lies below by a product with the slopes, and their sum: one of the two is 0."""
    x_type, slope, out = (p.type(t) for t in (*node.inputs, *node.outputs))
    above, _ = integers.prelu_multipliers(x_type, slope, out, np.float64)
    x, codes = p.value(node.inputs[0]), np.arange(-128, 128)
    positive = np.maximum(codes - x_type.zero_point, 0)
    high = p.look_up(x, fp.to_codes(fp.multiply_quantized(positive, *above), out.zero_point))
    low = p.look_up(x, np.minimum(codes, x_type.zero_point))
    low = _product(p, (low, _codes(p, node.inputs[1])), (x_type, slope, out), _about(p, node))
    same = fp.left_shift_add_params(out.scale, out.scale, out.scale)
    numbers = p.integers(out.zero_point, *same.first), p.integers(out.zero_point, *same.second, out.zero_point, *same.output, -128, 127)
    return _pairwise(p, "quantized_add", (high, low), numbers, out.shape, _about(p, node))


# ---------------------------------------------------------------- pooling, reductions, softmax


def _max_pool(p: CortexM, node: Node) -> int:
    a, z = node.attrs, p.type(node.outputs[0]).zero_point
    x, padding = _windows(p, p.value(node.inputs[0]), a.kernel, a.stride, (1, 1), a.padding, -128)
    return _max_pool_call(p, x, a.kernel, a.stride, padding, z, p.type(node.outputs[0]).shape)


def _max_pool_call(p: CortexM, x: int, kernel: Shape, stride: Shape, padding: Shape, zero_point: int, out: Shape) -> int:
    b = p.program
    windows = (b.integers(kernel), b.integers(stride), b.integers(padding), b.integers([1, 1]), b.boolean(False))
    return p.image_operator("quantized_max_pool2d", p.image(x), *windows, *p.integers(zero_point, zero_point, -128, 127), out=out)


def _avg_pool(p: CortexM, node: Node) -> int:
    a, b = node.attrs, p.program
    x_type, out = p.type(node.inputs[0]), p.type(node.outputs[0])
    padding = _even_padding(x_type.shape, a.kernel, a.stride, (1, 1), a.padding)
    if padding is None:
        raise GraphError(
            f"avg_pool2d pads {a.padding}: Cortex-M pads both sides of an axis alike", fix="use the same padding on both sides, or none"
        )
    m, e = (int(v) for v in fp.quantize_multiplier(np.float64(x_type.scale)))  # part of the schema; the kernel ignores them
    scratch = p.scratch("avgpool_buffer_size", dim_dst_width=out.shape[2], ch_src=x_type.shape[3])
    windows = (b.integers(a.kernel), b.integers(a.stride), b.integers(padding))
    x = p.image(p.value(node.inputs[0]))
    return p.image_operator("quantized_avg_pool2d", x, *windows, *p.integers(x_type.zero_point, m, e), scratch, out=out.shape)


def _reduce_sum(p: CortexM, node: Node) -> int:
    """A sum is a linear layer with weights of 1, along axes brought to the end. The multiplier of a mean is TFLite's."""
    x_type, out, axes = p.type(node.inputs[0]), p.type(node.outputs[0]), node.attrs.axes
    count = prod(x_type.shape[i] for i in axes)
    m, e = fp.mean_multiplier(count if node.op == "mean" else 1, x_type.scale, out.scale)
    requantize = _Requantize(np.array([m], np.int32), np.array([e], np.int32)).checked(count * x_type.reach)
    row = _Weights(np.ones((1, count), np.int8), np.zeros(1, np.int32), requantize)
    turned = _permuted(p, p.value(node.inputs[0]), [*(i for i in range(len(x_type.shape)) if i not in axes), *axes])
    return p.program.alias(_linear(p, p.program.alias(turned, (x_type.size // count, count)), (x_type, out), row, "none"), out.shape)


def _reduce_max(p: CortexM, node: Node) -> int:
    """A pool as high as the axes are long; axes that don't lie side by side come to the front."""
    x, axes, out = p.value(node.inputs[0]), node.attrs.axes, p.type(node.outputs[0])
    shape, first = p.shape(x), axes[0]
    if tuple(axes) != tuple(range(first, first + len(axes))):
        x, first = _permuted(p, x, [*axes, *(i for i in range(len(shape)) if i not in axes)]), 0
    outer, count = prod(p.shape(x)[:first]), prod(shape[i] for i in axes)
    x = p.program.alias(x, (outer, count, 1, prod(shape) // outer // count))
    return p.program.alias(_max_pool_call(p, x, (count, 1), (1, 1), (0, 0), out.zero_point, (outer, 1, 1, p.shape(x)[3])), out.shape)


def _softmax(p: CortexM, node: Node) -> int:
    x_type, out = p.type(node.inputs[0]), p.type(node.outputs[0])
    m, e = fp.softmax_multiplier(x_type.scale, node.attrs.beta)
    rank = len(x_type.shape)
    numbers = p.integers(rank - 1, x_type.zero_point, out.zero_point, m, e, -fp.integer_bits_radius(5, e))
    return p.operator("softmax", p.value(node.inputs[0]), *numbers, out=out.shape)


# ---------------------------------------------------------------- data movement


def _reshape(p: CortexM, node: Node) -> int:
    return p.program.alias(p.value(node.inputs[0]), p.type(node.outputs[0]).shape)


def _transpose(p: CortexM, node: Node) -> int:
    return _permuted(p, p.value(node.inputs[0]), node.attrs.perm)


def _permuted(p: CortexM, x: int, perm: Sequence[int], out: int | None = None) -> int:
    """``x`` with its axes in order ``perm``, written to ``out`` where that is given.

    Axes that stay side by side count as one. Where more are left than the operator takes, one is moved after the other.
    """
    shape = p.shape(x)
    runs: list[list[int]] = []
    for axis in (i for i in perm if shape[i] > 1):
        between = range(runs[-1][-1] + 1, axis) if runs else range(0)
        if runs and axis > runs[-1][-1] and all(shape[i] == 1 for i in between):
            runs[-1].append(axis)
        else:
            runs.append([axis])
    final = tuple(shape[i] for i in perm)
    if len(runs) < 2 and out is None:
        return p.program.alias(x, final)
    if len(runs) < 2:
        runs, shape, x = [[0]], (prod(shape),), p.program.alias(x, (prod(shape),))  # a copy
    if len(runs) > MOST_AXES:
        axes = list(range(len(perm)))
        for i, axis in enumerate(perm):
            at = axes.index(axis)
            x = _permuted(p, x, [*range(i), at, *range(i, at), *range(at + 1, len(perm))])
            axes.insert(i, axes.pop(at))
        return x if out is None else _permuted(p, x, range(len(perm)), out)
    order = sorted(range(len(runs)), key=lambda i: runs[i][0])
    merged = [prod(shape[a] for a in runs[i]) for i in order]
    places = [order.index(i) for i in range(len(runs))]
    source = p.program.alias(x, merged)
    target = [merged[i] for i in places]
    if out is None:
        return p.program.alias(p.operator("transpose", source, p.program.integers(places), out=target), final)
    return p.program.call("cortex_m::transpose.out", source, p.program.integers(places), out=p.program.alias(out, target))


def _inverse(perm: Sequence[int]) -> list[int]:
    return [perm.index(i) for i in range(len(perm))]


def _to_front(axis: int, rank: int) -> list[int]:
    """The order of axes with ``axis`` first."""
    return [axis, *(i for i in range(rank) if i != axis)]


def _part(p: CortexM, x: int, axis: int, begin: int, end: int, step: int = 1) -> int:
    """Indices ``begin`` to ``end`` of one axis: rows of the first axis lie side by side, so that they are a view of memory once it
    is in front. Steps are a pool of one position."""
    if (begin, end, step) == (0, p.shape(x)[axis], 1):
        return x
    perm = _to_front(axis, len(p.shape(x)))
    turned = _permuted(p, x, perm)
    rest = p.shape(turned)[1:]
    part = p.program.part(turned, begin * prod(rest), (end - begin, *rest))
    if step > 1:
        count = -(-(end - begin) // step)
        rows = p.program.alias(part, (1, end - begin, 1, prod(rest)))
        part = p.program.alias(_max_pool_call(p, rows, (1, 1), (step, 1), (0, 0), 0, (1, count, 1, prod(rest))), (count, *rest))
    return _permuted(p, part, _inverse(perm))


def _slice(p: CortexM, node: Node) -> int:
    a, x = node.attrs, p.value(node.inputs[0])
    if p.program.is_constant(x):
        raise GraphError("slice of a constant", fix="slice it in the network's __init__")
    for axis, (begin, end, step) in enumerate(zip(a.begin, a.end, a.stride, strict=True)):
        x = _part(p, x, axis, begin, end, step)
    return x


def _joined(p: CortexM, parts: Sequence[int], axis: int) -> int:
    """The parts are written one after another with their common axis in front, which then goes back to its place."""
    perm = _to_front(axis, len(p.shape(parts[0])))
    shapes = [[p.shape(v)[i] for i in perm] for v in parts]
    whole, begin = p.program.tensor([sum(s[0] for s in shapes), *shapes[0][1:]], np.int8), 0
    for value, shape in zip(parts, shapes, strict=True):
        _permuted(p, value, perm, p.program.part(whole, begin, shape))
        begin += prod(shape)
    return _permuted(p, whole, _inverse(perm))


def _concat(p: CortexM, node: Node) -> int:
    if len({p.type(t).quantization for t in (*node.inputs, *node.outputs)}) > 1:
        raise GraphError("concat's tensors differ in scale or zero point", fix="give them one quantization")
    return _joined(p, [p.value(t) for t in node.inputs], node.attrs.axis)


def _resize_nearest(p: CortexM, node: Node) -> int:
    """Larger by a whole factor: copies of each column, then of each row, joined. Smaller: steps."""
    a, x = node.attrs, p.value(node.inputs[0])
    for axis, size in ((2, a.size[1]), (1, a.size[0])):
        shape = p.shape(x)
        index = nearest_index(shape[axis], size, a.align_corners, a.half_pixel_centers)
        factor, steps = size // shape[axis], set(np.diff(index).tolist())
        if np.array_equal(index, np.arange(shape[axis]).repeat(factor)):
            rows = p.program.alias(x, (prod(shape[: axis + 1]), 1, prod(shape[axis + 1 :])))
            x = rows if factor == 1 else _joined(p, [rows] * factor, 1)
            x = p.program.alias(x, (*shape[:axis], size, *shape[axis + 1 :]))
        elif len(steps) < 2 and min(steps, default=1) > 0:
            x = _part(p, x, axis, int(index[0]), int(index[-1]) + 1, min(steps, default=1))
        else:
            raise GraphError(
                f"resize_nearest from {p.type(node.inputs[0]).shape[1:3]} to {a.size}: Cortex-M repeats rows and columns a whole number "
                "of times, or leaves out as many each time", fix="resize by whole factors",
            )  # fmt: skip
    return x


def _pad(p: CortexM, node: Node) -> int:
    """Leading axes without padding count as one."""
    paddings, out = node.attrs.paddings, p.type(node.outputs[0])
    shape = p.type(node.inputs[0]).shape
    first = max(0, len(shape) - MOST_AXES)
    if any(map(any, paddings[:first])):
        raise GraphError(f"pad of {shape} by {paddings}: Cortex-M pads the last {MOST_AXES} axes at most", fix="drop axes of size 1")
    if first and prod(shape[: first + 1]) != shape[first] and any(paddings[first]):
        raise GraphError(f"pad of {shape} by {paddings}: Cortex-M pads tensors of up to {MOST_AXES} axes", fix="drop axes of size 1")
    lead = (1,) * (MOST_AXES - len(shape))
    x = p.program.alias(p.value(node.inputs[0]), (*lead, prod(shape[: first + 1]), *shape[first + 1 :]))
    padded = p.pad_codes(x, ((0, 0),) * len(lead) + tuple(paddings[first:]), integers.pad_code(node.attrs.value, out))
    return p.program.alias(padded, out.shape)


# ---------------------------------------------------------------- the float boundary


def _boundary(name: str, codes: Callable[[Node], str], dtype: Any) -> Callable[[CortexM, Node], int]:
    def emit(p: CortexM, node: Node) -> int:
        b, type = p.program, p.type(codes(node))
        numbers = (b.real(type.scale), *p.integers(type.zero_point, *type.code_bounds, SCALAR_TYPES[np.dtype(np.int8)]))
        x = p.value(node.inputs[0])
        return p.call(f"cortex_m::{name}.out", x, *numbers, shape=p.shape(x), dtype=dtype)

    return emit


EMITTERS: dict[str, Callable[[CortexM, Node], int]] = {
    "quantize": _boundary("quantize_per_tensor", lambda n: n.outputs[0], np.int8),
    "dequantize": _boundary("dequantize_per_tensor", lambda n: n.inputs[0], np.float32),
    "conv2d": _conv2d,
    "depthwise_conv2d": _depthwise,
    "transpose_conv2d": _transpose_conv,
    "fully_connected": _fully_connected,
    "batch_matmul": _batch_matmul,
    "add": _sum,
    "sub": _sum,
    "mul": _mul,
    "prelu": _prelu,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "mean": _reduce_sum,
    "sum": _reduce_sum,
    "reduce_max": _reduce_max,
    "softmax": _softmax,
    **dict.fromkeys(("relu", "relu6", "clamp", "logistic", "tanh", "elu", "hard_swish", "leaky_relu", "gelu", "requantize"), _table),
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "concat": _concat,
    "pad": _pad,
    "resize_nearest": _resize_nearest,
}
