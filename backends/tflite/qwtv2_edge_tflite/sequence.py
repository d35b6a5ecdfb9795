"""Forms of what transformers add: products and norms of activations, tables, masks, and activations of 16 bits.

TFLite has no built-in layer normalisation, and its 16-bit sums differ between kernels. Both become chains of operators that
are the same everywhere: CAST, ADD, SUB and MUL on int32, QUANTIZE and MEAN. Scales of the tensors between them say what
QUANTIZE and MEAN do and stand for nothing else. Where a graph allows float operators, 16-bit activations are float32 tensors
of the same codes, and the chains are float32 operators, as the rules "F32" of ``qwtv2_edge.ops.sequence`` prescribe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np

from qwtv2_edge import fixedpoint as fp
from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.numerics import wide_key
from qwtv2_edge.ops.integers import CODES, UNARY_RULES, real32, wide_add_params
from qwtv2_edge.ops.sequence import (
    INDEX_LIMIT,
    ChannelAdd,
    LayerNorm32,
    LayerNormTable,
    channel_add_gains32,
    channel_gains32,
    layer_norm_sum_scale,
    part_ends,
    sum_parts,
)
from qwtv2_edge.ops.spec import ACTIVATIONS
from qwtv2_edge_tflite.ops import RULES, UNIT, Emission, Limit, Rule, broadcast_limits, clamp_to, max_rank, reshape_to, slice_to, unary_form
from qwtv2_edge_tflite.schema import enum

F = np.float32

OPTIONS = {
    "ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions", "DIV": "DivOptions", "MINIMUM": "MaximumMinimumOptions",
    "MAXIMUM": "MaximumMinimumOptions", "QUANTIZE": "QuantizeOptions", "DEQUANTIZE": "DequantizeOptions", "CAST": "CastOptions",
}  # fmt: skip

#: a float32 value below 2**22 plus this, less this, is the nearest integer, ties to even; times a power of two, the nearest multiple
ROUNDER = 1.5 * 2**23


class Chain:
    """Adds the operators of one node, one after another. Operands are tensor indices; a float stands for a constant."""

    def __init__(self, e: Emission, node: Node) -> None:
        self.e, self.name = e, node.name

    def constant(self, values: Any, dtype: str) -> int:
        return self.e.constant(f"{self.name}/constant", np.atleast_1d(values), dtype)

    def step(
        self, code: str, *operands: int | float, dtype: str = "", quantization: Quantization | None = None, target: int | None = None
    ) -> int:
        """An element-wise operator. Returns ``target``, or a new tensor of ``dtype`` (else of the operands')."""
        inputs = [self.constant(v, "float32") if isinstance(v, float) else v for v in operands]
        rows = [self.e.rows[i] for i in inputs]
        if target is None:
            shape = np.broadcast_shapes(*(row.shape for row in rows))
            target = self.e.tensor(f"{self.name}/{code.lower()}", shape, dtype or rows[0].dtype, quantization)
        self.e.op(code, inputs, target, OPTIONS[code])
        return target

    def wide(self, source: int) -> int:
        return self.step("CAST", source, dtype="int32")

    def narrow(self, code: str, *operands: int, scale: float) -> int:
        """``code`` on int32, its result times ``scale`` in 16 bits, saturated, as int32 again."""
        product = self.step(code, *operands, quantization=Quantization.per_tensor(scale, 0))
        return self.wide(self.step("QUANTIZE", product, dtype="int16", quantization=UNIT))

    def reduce(self, code: str, source: int, quantization: Quantization | None = None) -> int:
        """Over the last axis, which stays."""
        row = self.e.rows[source]
        target = self.e.tensor(f"{self.name}/{code.lower()}", (*row.shape[:-1], 1), row.dtype, quantization)
        self.e.op(code, (source, self.constant(len(row.shape) - 1, "int32")), target, "ReducerOptions", KeepDims=True)
        return target

    def look_up(self, table: np.ndarray, indices: int, target: int | None = None, quantization: Quantization | None = None) -> int:
        """Rows of an int8 or float32 table."""
        dtype = table.dtype.name
        params = self.e.constant(f"{self.name}/table", table, dtype, quantization)
        if target is None:
            target = self.e.tensor(f"{self.name}/entry", (*self.e.rows[indices].shape, *table.shape[1:]), dtype, quantization)
        self.e.op("GATHER", (params, indices), target, "GatherOptions", Axis=0)
        return target

    def look_up_wide(self, table: np.ndarray, indices: int) -> int:
        """Rows of an int16 table, as int32 that agree in their low 16 bits: not every runtime gathers int16."""
        low = table.astype(np.int8)
        high = ((table.astype(np.int32) - low) // 256).astype(np.int8)
        upper = self.step("MUL", self.wide(self.look_up(high, indices)), self.constant(256, "int32"))
        return self.step("ADD", upper, self.wide(self.look_up(low, indices)))

    def round(self, source: int, step: int = 1, target: int | None = None) -> int:
        """Float32 values to the nearest multiples of a power of two."""
        return self.step("SUB", self.step("ADD", source, ROUNDER * step), ROUNDER * step, target=target)

    def clamp_round(self, source: int, low: float, high: float, target: int) -> None:
        """Float32 values to the nearest integers from ``low`` to ``high``."""
        self.round(self.step("MINIMUM", self.step("MAXIMUM", source, float(low)), float(high)), target=target)

    def to_int8(self, source: int, out: TensorType, target: int) -> None:
        """Float32 reals to int8. Rounded before QUANTIZE, whose kernels send ties to different sides."""
        codes = self.round(self.step("MUL", source, float(F(1) / F(out.scale))))
        self.step("QUANTIZE", self.step("MUL", codes, out.scale), target=target)

    def units(self, tensor: str, out: TensorType) -> int:
        """An operand as float32, in units of the codes of ``out``."""
        graph = self.e.graph
        type = graph.tensors[tensor]
        if tensor in graph.constants:
            return self.constant(real32(graph.constants[tensor], type, out), "float32")
        inverse = F(1) / F(out.scale)
        if type.dtype == "int16":
            return self.step("MUL", self.e.use(tensor), float(F(type.scale) * inverse))
        return self.step("MUL", self.step("DEQUANTIZE", self.e.use(tensor), dtype="float32"), float(inverse))


# ---------------------------------------------------------------- layer_norm


def _layer_norm(e: Emission, node: Node) -> None:
    """The steps of :class:`LayerNormTable`."""
    graph, c = e.graph, Chain(e, node)
    (x, gamma, _), out = graph.in_types(node), graph.out_types(node)[0]
    table = LayerNormTable.of(x, gamma, out, node.attrs)
    source = e.use(node.inputs[0])
    d = c.wide(source)
    if node.attrs.centre:
        mean = c.wide(c.reduce("MEAN", source, x.quantization))
        # ADD, since TFLite Micro's SUB of int32 takes no scales
        d = c.narrow("ADD", d, c.step("MUL", mean, c.constant(-1, "int32")), scale=1.0)
    for p in table.passes:
        squares = c.step("MUL", d, d, quantization=Quantization.per_tensor(2.0**-15, 0))
        square = c.step("QUANTIZE", squares, dtype="int16", quantization=UNIT)
        variance = c.reduce("MEAN", square, Quantization.per_tensor(2.0**-p.shift, 0))
        index = c.wide(c.step("MINIMUM", variance, c.constant(INDEX_LIMIT, "int16")))
        d = c.narrow("MUL", d, c.look_up_wide(p.inverse, index), scale=p.scale)
    scaled = c.step("MUL", d, c.constant(graph.constants[node.inputs[1]], "int32"))
    beta = c.constant(graph.constants[node.inputs[2]], "int32")
    total = c.step("ADD", scaled, beta, quantization=Quantization.per_tensor(layer_norm_sum_scale(x, gamma), 0))
    c.step("QUANTIZE", total, target=e.use(node.outputs[0]))


def _code_sum(c: Chain, source: int) -> int:
    """Sum of 16-bit codes in float32, in parts that are exact."""
    shape = c.e.rows[source].shape
    parts, step = sum_parts(shape[-1])
    if parts == 1:
        return c.reduce("SUM", source)
    sums = []
    for start, end in pairwise(part_ends(shape[-1]).tolist()):
        part = c.e.tensor(f"{c.name}/part", (*shape[:-1], end - start), "float32")
        slice_to(c.e, c.name, source, part, (*[0] * (len(shape) - 1), start), c.e.rows[part].shape)
        sums.append(c.round(c.reduce("SUM", part), step))
    return reduce(lambda a, b: c.step("ADD", a, b), sums)


def _layer_norm_float(e: Emission, node: Node) -> None:
    """The steps of :class:`LayerNorm32`."""
    graph, c = e.graph, Chain(e, node)
    (x, gamma, _), out, target = graph.in_types(node), graph.out_types(node)[0], e.use(node.outputs[0])
    factors, offsets = (graph.constants[t] for t in node.inputs[1:])
    k = LayerNorm32.of(x, gamma, out, factors, offsets, node.attrs.eps)
    d = e.use(node.inputs[0])
    if node.attrs.centre:
        d = c.step("SUB", d, c.step("MUL", _code_sum(c, d), float(k.share)))
    rounded = c.round(d, k.step)
    squares = c.reduce("SUM", c.step("MUL", rounded, rounded))
    variance = c.step("MAXIMUM", c.step("ADD", squares, float(k.offset)), float(k.least))
    root = c.step("ADD", c.step("MUL", variance, k.root.slope), k.root.start)
    for _ in range(k.root.steps):
        root = c.step("MUL", c.step("ADD", root, c.step("DIV", variance, root)), 0.5)
    normal = c.step("MUL", d, c.step("DIV", 1.0, root))
    scaled = c.step("MUL", normal, c.constant(k.gamma, "float32"))
    y = c.step("ADD", scaled, c.constant(k.beta, "float32"))
    if out.dtype == "int16":
        c.clamp_round(y, *out.code_bounds, target)
    else:
        c.to_int8(y, out, target)


def _layer_norm_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    yield from max_rank(4)(graph, node)
    gamma, beta = (np.abs(graph.constants[t].astype(np.int64)).max() for t in node.inputs[1:])
    if gamma * 2**15 + beta >= 2**31:
        yield "range", f"sums of normal * gamma + beta reach {gamma * 2**15 + beta}, beyond 32 bits", "give gamma a larger scale"


# ---------------------------------------------------------------- channel_scale


def _channel_scale(e: Emission, node: Node) -> None:
    """x times gain in int32, requantized once."""
    c, (x, gain) = Chain(e, node), e.graph.in_types(node)
    gains = c.constant(e.graph.constants[node.inputs[1]], "int32")
    scale = Quantization.per_tensor(float(F(x.scale) * F(gain.scale)), 0)
    product = c.step("MUL", c.wide(e.use(node.inputs[0])), gains, quantization=scale)
    c.step("QUANTIZE", product, target=e.use(node.outputs[0]))


def _channel_scale_float(e: Emission, node: Node) -> None:
    c, (x, gain) = Chain(e, node), e.graph.in_types(node)
    gains = c.constant(channel_gains32(e.graph.constants[node.inputs[1]], x, gain), "float32")
    c.to_int8(c.step("MUL", e.use(node.inputs[0]), gains), e.graph.out_types(node)[0], e.use(node.outputs[0]))


# ---------------------------------------------------------------- sums and requantizations of 16 bits


def _sum(sign: int) -> Callable[[Emission, Node], None]:
    """Integer multiples of both operands in int32, requantized once; the zero points become that of the int32 sum."""

    def emit(e: Emission, node: Node) -> None:
        graph, c = e.graph, Chain(e, node)
        (x, y), out = graph.in_types(node), graph.out_types(node)[0]
        params = wide_add_params(x, y, out)
        operands = []
        for tensor, factor in zip(node.inputs, (params.first, sign * params.second), strict=True):
            if tensor in graph.constants:
                operands.append(c.constant(graph.constants[tensor].astype(np.int32) * factor, "int32"))
            else:
                operands.append(c.step("MUL", c.wide(e.use(tensor)), c.constant(factor, "int32")))
        zero_point = params.first * x.zero_point + sign * params.second * y.zero_point
        total = c.step("ADD", *operands, quantization=Quantization.per_tensor(params.unit, zero_point))
        target, active = e.use(node.outputs[0]), node.attrs.activation != "none"
        whole = e.temporary(f"{node.name}/sum", out.shape, out) if active else target
        c.step("QUANTIZE", total, target=whole)
        if active:
            clamp_to(e, node.name, whole, target, out, *ACTIVATIONS[node.attrs.activation])

    return emit


def _sum_float(code: str) -> Callable[[Emission, Node], None]:
    def emit(e: Emission, node: Node) -> None:
        c, out = Chain(e, node), e.graph.out_types(node)[0]
        bounds = fp.activation_bounds(*ACTIVATIONS[node.attrs.activation], out.scale, 0, "TFLITE", out.code_bounds)
        total = c.step(code, *(c.units(t, out) for t in node.inputs))
        c.clamp_round(total, *bounds, e.use(node.outputs[0]))

    return emit


def _channel_add(e: Emission, node: Node) -> None:
    c, (x, y, gain) = Chain(e, node), e.graph.in_types(node)
    k = ChannelAdd.of(x, y, gain, e.graph.constants[node.inputs[2]])
    first = c.step("MUL", c.wide(e.use(node.inputs[0])), c.constant(k.first, "int32"))
    second = c.step("MUL", c.wide(e.use(node.inputs[1])), c.constant(k.second, "int32"))
    total = c.step("ADD", first, second, quantization=Quantization.per_tensor(k.unit, k.first * x.zero_point))
    c.step("QUANTIZE", total, target=e.use(node.outputs[0]))


def _channel_add_float(e: Emission, node: Node) -> None:
    c, out = Chain(e, node), e.graph.out_types(node)[0]
    x, y, gain = node.inputs
    gains = channel_add_gains32(e.graph.constants[gain], e.graph.tensors[gain], out)
    branch = c.step("MUL", c.step("DEQUANTIZE", e.use(y), dtype="float32"), c.constant(gains, "float32"))
    c.clamp_round(c.step("ADD", c.units(x, out), branch), *out.code_bounds, e.use(node.outputs[0]))


def _requantize(e: Emission, node: Node) -> None:
    """Through int32 from 8 to 16 bits, which not every QUANTIZE does."""
    c, x, source = Chain(e, node), e.graph.in_types(node)[0], e.use(node.inputs[0])
    if x.dtype == "int8":
        source = c.step("CAST", source, dtype="int32", quantization=x.quantization)
    c.step("QUANTIZE", source, target=e.use(node.outputs[0]))


def _requantize_float(e: Emission, node: Node) -> None:
    c, x, out = Chain(e, node), e.graph.in_types(node)[0], e.graph.out_types(node)[0]
    if out.dtype == "int16":
        c.clamp_round(c.units(node.inputs[0], out), *out.code_bounds, e.use(node.outputs[0]))
    else:
        c.to_int8(c.step("MUL", e.use(node.inputs[0]), x.scale), out, e.use(node.outputs[0]))


# ---------------------------------------------------------------- products, tables, positions, masks


def _batch_matmul(e: Emission, node: Node) -> None:
    operands = [e.use(t) for t in node.inputs]
    e.op("BATCH_MATMUL", operands, e.use(node.outputs[0]), "BatchMatMulOptions", AdjX=False, AdjY=node.attrs.transpose_b)


def _embedding(e: Emission, node: Node) -> None:
    indices, table = (e.use(t) for t in node.inputs)
    e.op("GATHER", (table, indices), e.use(node.outputs[0]), "GatherOptions", Axis=0)


def _embedding_wide(e: Emission, node: Node) -> None:
    c = Chain(e, node)
    found = c.look_up_wide(e.graph.constants[node.inputs[1]], e.use(node.inputs[0]))
    c.step("CAST", found, target=e.use(node.outputs[0]))


def _argmax(e: Emission, node: Node) -> None:
    a, x, out = node.attrs, e.graph.in_types(node)[0], e.graph.out_types(node)[0]
    source, target = e.use(node.inputs[0]), e.use(node.outputs[0])
    if x.dtype == "int16":
        source = Chain(e, node).step("DEQUANTIZE", source, dtype="float32")  # ARG_MAX takes no int16; reals keep the order
    rest = [d for i, d in enumerate(x.shape) if i != a.axis]
    found = e.tensor(f"{node.name}/found", rest, "int32") if a.keep_dims else target
    e.op(
        "ARG_MAX",
        (source, e.constant(f"{node.name}/axis", [a.axis], "int32")),
        found,
        "ArgMaxOptions",
        OutputType=enum("TensorType", "INT32"),
    )
    if a.keep_dims:
        reshape_to(e, node.name, found, target, out.shape)


def _mask_fill(e: Emission, node: Node) -> None:
    """MINIMUM compares codes, whatever the scales."""
    Chain(e, node).step("MINIMUM", *(e.use(t) for t in node.inputs), target=e.use(node.outputs[0]))


def _gelu_table(e: Emission, node: Node) -> None:
    """A table of all 256 codes, for runtimes without GELU. Its entries are those of LiteRT's own."""
    c, x, out = Chain(e, node), e.graph.in_types(node)[0], e.graph.out_types(node)[0]
    table = UNARY_RULES["gelu"]["LUT_TFLITE"](node.attrs, x, out)[CODES.argsort()]
    index = c.step("ADD", c.wide(e.use(node.inputs[0])), c.constant(128, "int32"))
    c.look_up(table, index, e.use(node.outputs[0]), out.quantization)


def _batch_matmul_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    yield from max_rank(4)(graph, node)
    (x, y), out = graph.in_types(node), graph.out_types(node)[0]
    effective = F(x.scale) * F(y.scale) / F(out.scale)
    if not effective < 256:
        yield "scale", f"effective scale {effective:.6g} is not below 256, XNNPACK's limit", "widen the output range"


#: op -> form on 8 bits, besides those of ``ops``
NARROW: dict[str, Rule] = {
    "batch_matmul": Rule(_batch_matmul, _batch_matmul_limits),
    "gelu": Rule(unary_form("GELU", "GeluOptions", Approximate=lambda a: a.approximate)),
    "l2_normalize": Rule(unary_form("L2_NORMALIZATION", "L2NormOptions"), max_rank(4)),
    "embedding": Rule(_embedding, max_rank(4)),
    "argmax": Rule(_argmax, max_rank(4)),
    "mask_fill": Rule(_mask_fill, broadcast_limits),
}

#: ops whose form on 16 bits is that on 8
SAME_FORM = (
    "conv2d", "depthwise_conv2d", "fully_connected", "batch_matmul", "mul", "mean", "reduce_max", "argmax", "quantize", "dequantize",
    "reshape", "transpose", "concat", "slice", "pad",
)  # fmt: skip

FORMS: Mapping[str, Rule] = {
    **RULES,
    **NARROW,
    **{wide_key(op): {**RULES, **NARROW}[op] for op in SAME_FORM},
    "layer_norm:int16": Rule(_layer_norm, _layer_norm_limits),
    "channel_add:int16": Rule(_channel_add, max_rank(4)),
    "channel_scale:int16": Rule(_channel_scale, max_rank(4)),
    "add:int16": Rule(_sum(1), max_rank(4)),
    "sub:int16": Rule(_sum(-1), max_rank(4)),
    "requantize:int16": Rule(_requantize, max_rank(6)),
    "embedding:int16": Rule(_embedding_wide, max_rank(4)),
}

#: forms on float32 tensors of 16-bit codes
FLOAT_FORMS: Mapping[str, Rule] = {
    "layer_norm:int16": Rule(_layer_norm_float, max_rank(4)),
    "channel_add:int16": Rule(_channel_add_float, max_rank(4)),
    "channel_scale:int16": Rule(_channel_scale_float, max_rank(4)),
    "add:int16": Rule(_sum_float("ADD"), broadcast_limits),
    "sub:int16": Rule(_sum_float("SUB"), broadcast_limits),
    "requantize:int16": Rule(_requantize_float, max_rank(6)),
    "embedding:int16": NARROW["embedding"],
    **{wide_key(op): RULES[op] for op in ("reshape", "transpose", "concat", "slice", "pad")},
}

#: forms for what TFLite Micro has no operator for
MICRO_FORMS: Mapping[str, Rule] = {"gelu": Rule(_gelu_table, max_rank(4))}
