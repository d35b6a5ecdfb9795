"""The rules every graph keeps. ``check`` runs between stages and on every file that is read.

Structure: tensors are produced once and before they are read, declared shapes and dtypes are the inferred
ones, constants are finite and have their declared type. Integers: int8 activations carry one scale and zero point,
int16 ones a scale alone, weights are symmetric with one scale per output channel or one in all, biases are int32,
ops of the "same" rule share quantization parameters, ops of the "fixed" rule have the prescribed ones.
A node without int8 or int16 activations is a float node and carries no quantization at all; indices are int32.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from qwtv2_edge.errors import GraphError, locate
from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.ir.types import CODE_BOUNDS, DTYPES, WEIGHT_AXIS, Quantization, TensorType

#: largest number of elements of one tensor; what a 32-bit runtime can index
MAX_ELEMENTS = 2**31 - 1
#: largest tensor rank; NumPy's own limit is 32 or 64, no runtime takes more than 8
MAX_RANK = 8

ACTIVATION_DTYPES = ("int8", "int16")
WEIGHT_DTYPES = ("int8", "int4")
#: quantization of masks: 0 and 1 are codes -128 and 127
MASK = Quantization.per_tensor(1 / 255, -128)
#: attribute name -> least legal value of every number in it
ATTR_MINIMUM = {"stride": 1, "dilation": 1, "kernel": 1, "groups": 1, "size": 1, "padding": 0, "axes": 0, "shape": 1}

_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


def check(graph: Graph) -> Graph:
    """Return ``graph`` unchanged if it keeps every rule of the IR.

    Raises: GraphError for the first broken rule, with the node and its source line where there is one.
    """
    for name, type in graph.tensors.items():
        _check_type(name, type)
    for name in (*graph.inputs, *graph.outputs):
        _need(name in graph.tensors, f"tensor '{name}' of the interface is not declared")
    _unique(graph.inputs, "graph input")
    _unique([n.name for n in graph.nodes], "node name")
    _need(bool(graph.inputs), "the graph has no input")
    _need(bool(graph.outputs), "the graph has no output")
    _check_constants(graph)

    ready = set(graph.inputs) | set(graph.constants)
    clash = set(graph.inputs) & set(graph.constants)
    _need(not clash, f"tensor '{next(iter(clash), '')}' is both an input and a constant")
    for node in graph.nodes:
        with locate(node):
            _check_node(graph, node, ready)
        ready.update(node.outputs)
    for name in graph.outputs:
        _need(name in ready, f"output '{name}' is not produced by any node")
    return graph


def is_integer(graph: Graph) -> bool:
    """True when any node computes on integers."""
    return any(_is_integer_node(graph, node) for node in graph.nodes)


def _need(condition: bool, message: str, fix: str = "") -> None:
    if not condition:
        raise GraphError(message, fix=fix)


def _unique(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        _need(name not in seen, f"{what} '{name}' occurs twice")
        seen.add(name)


# ---------------------------------------------------------------- tensors


def _check_type(name: str, type: TensorType) -> None:
    _need(type.dtype in DTYPES, f"tensor '{name}' has unknown dtype '{type.dtype}'", f"one of: {', '.join(DTYPES)}")
    _need(len(type.shape) <= MAX_RANK, f"tensor '{name}' has rank {len(type.shape)}, more than {MAX_RANK}")
    _need(all(_is_int(d) and d >= 1 for d in type.shape), f"tensor '{name}' has shape {type.shape}; every size must be at least 1")
    _need(type.size <= MAX_ELEMENTS, f"tensor '{name}' of shape {type.shape} has more than {MAX_ELEMENTS} elements")
    if type.quantization is not None:
        _check_quantization(name, type, type.quantization)


def _is_int(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _check_quantization(name: str, type: TensorType, q: Quantization) -> None:
    _need(type.dtype in CODE_BOUNDS, f"tensor '{name}' of dtype {type.dtype} has a scale", "only integer tensors are quantized")
    if q.axis is None:
        count = 1
    else:
        _need(_is_int(q.axis) and 0 <= q.axis < len(type.shape), f"tensor '{name}' has channel axis {q.axis} but shape {type.shape}")
        count = type.shape[q.axis]
    _need(
        len(q.scale) == len(q.zero_point) == count,
        f"tensor '{name}' has {len(q.scale)} scales and {len(q.zero_point)} zero points, expected {count}",
    )
    low, high = CODE_BOUNDS[type.dtype]
    for scale, zero_point in zip(q.scale, q.zero_point, strict=True):
        _need(
            math.isfinite(scale) and scale > 0 and float(np.float32(scale)) == scale,
            f"tensor '{name}' has scale {scale!r}, not a positive finite float32",
        )
        _need(_is_int(zero_point) and low <= zero_point <= high, f"tensor '{name}' has zero point {zero_point}, outside [{low}, {high}]")


def _check_constants(graph: Graph) -> None:
    for name, array in graph.constants.items():
        _need(name in graph.tensors, f"constant '{name}' has no declared type")
        type = graph.tensors[name]
        _need(
            tuple(array.shape) == type.shape and array.dtype == DTYPES[type.dtype],
            f"constant '{name}' is {array.dtype}{list(array.shape)}, declared {type.dtype}{list(type.shape)}",
        )
        if array.dtype == np.float32:
            bad = int(array.size - np.count_nonzero(np.isfinite(array)))
            message = f"constant '{name}' has {bad} NaN or infinite values of {array.size}"
            _need(bad == 0, message, "repair the weights before capturing the network")
        elif type.dtype == "int4":
            low, high = CODE_BOUNDS["int4"]
            _need(array.min() >= low and array.max() <= high, f"constant '{name}' has codes outside [{low}, {high}]")


# ---------------------------------------------------------------- nodes


def _check_node(graph: Graph, node: Node, ready: set[str]) -> None:
    from qwtv2_edge.ops import OPS  # late: ops import the IR

    _need(node.op in OPS, f"unknown op '{node.op}'", "read the file with the version of this package that wrote it")
    spec = OPS[node.op]
    _need(isinstance(node.attrs, spec.attrs), f"attributes are {type(node.attrs).__name__}, expected {spec.attrs.__name__}")
    _check_attrs(node.attrs)
    for name in node.inputs:
        _need(name in graph.tensors, f"input '{name}' is not declared")
        _need(name in ready, f"input '{name}' is read before it is produced")
    _need(bool(node.outputs), "the node has no output")
    _unique(node.outputs, "output")
    for name in node.outputs:
        _need(name in graph.tensors, f"output '{name}' is not declared")
        _need(name not in ready, f"output '{name}' is already an input, a constant or another node's output")
    in_types, out_types = graph.in_types(node), graph.out_types(node)
    try:
        inferred = spec.infer(in_types, node.attrs)
    except (ValueError, TypeError, IndexError, ArithmeticError) as exc:
        shapes = ", ".join(str(t.shape) for t in in_types)
        raise GraphError(f"inputs of shape {shapes} and attributes {node.attrs} do not fit: {exc}") from exc
    _need(len(inferred) == len(out_types), f"{len(out_types)} outputs, expected {len(inferred)}")
    for name, want, have in zip(node.outputs, inferred, out_types, strict=True):
        _need(want.shape == have.shape, f"output '{name}' is declared {have.shape}, the op gives {want.shape}")
        narrower = want.dtype in ACTIVATION_DTYPES and have.dtype in ACTIVATION_DTYPES  # which one: see _check_widths
        _need(want.dtype == have.dtype or narrower, f"output '{name}' is declared {have.dtype}, the op gives {want.dtype}")
    if _is_integer_node(graph, node):
        _check_integer_node(graph, node)
    else:
        indices = {"embedding": node.inputs[:1], "argmax": node.outputs}.get(node.op, ())
        if node.op == "reshape" and graph.tensors[node.inputs[0]].dtype == "int32":
            indices = (*node.inputs, *node.outputs)
        for name in (*node.inputs, *node.outputs):
            _need(
                graph.tensors[name].quantization is None and graph.tensors[name].dtype == ("int32" if name in indices else "float32"),
                f"float op reads or makes '{name}' of dtype {graph.tensors[name].dtype}",
                "put quantize and dequantize nodes between float and integer parts",
            )


def _check_attrs(attrs: Any) -> None:
    for f in dataclasses.fields(attrs):
        value = getattr(attrs, f.name)
        if f.name == "activation":
            from qwtv2_edge.ops.spec import ACTIVATIONS

            _need(value in ACTIVATIONS, f"unknown activation '{value}'", f"one of: {', '.join(ACTIVATIONS)}")
            continue
        for number in _flat(value):
            _need(not (isinstance(number, float) and math.isnan(number)), f"attribute {f.name} is NaN")
            least = ATTR_MINIMUM.get(f.name)
            _need(least is None or number >= least, f"attribute {f.name} = {value}, below {least}")
            _need(abs(number) <= MAX_ELEMENTS or math.isinf(number), f"attribute {f.name} = {value} is out of range")
        if f.name == "axes":
            _need(list(value) == sorted(set(value)), f"attribute axes = {value}, expected sorted and distinct")
        if f.name in ("alpha", "beta", "value", "eps", "fill"):
            _need(math.isfinite(value), f"attribute {f.name} = {value} is not finite")
    if hasattr(attrs, "min") and hasattr(attrs, "max"):
        _need(attrs.min <= attrs.max, f"lower bound {attrs.min} is above upper bound {attrs.max}")


def _flat(value: Any) -> Iterable[Any]:
    if isinstance(value, tuple):
        for v in value:
            yield from _flat(v)
    elif isinstance(value, (int, float, np.number)):
        yield value


def _data_inputs(node: Node) -> tuple[str, ...]:
    from qwtv2_edge.ops import OPS

    return node.inputs[: OPS[node.op].data_inputs]


def _is_integer_node(graph: Graph, node: Node) -> bool:
    return any(graph.tensors[t].dtype in ACTIVATION_DTYPES for t in (*_data_inputs(node), *node.outputs))


# ---------------------------------------------------------------- integer rules


def _check_integer_node(graph: Graph, node: Node) -> None:
    from qwtv2_edge.ops import OPS

    rule = OPS[node.op].quant
    if rule.kind == "boundary":
        sides = (node.inputs[0], node.outputs[0])
        real, code = sides if node.op == "quantize" else sides[::-1]
        _need(graph.tensors[real].dtype == "float32" and graph.tensors[real].quantization is None, f"'{real}' must be plain float32")
        _activation(graph, code)
        return
    data = _data_inputs(node)
    if rule.kind == "lookup":
        _check_lookup(graph, node)
        return
    if rule.kind == "index":
        _activation(graph, data[0])
        _need(graph.tensors[node.outputs[0]].quantization is None, f"'{node.outputs[0]}' holds positions, and has a scale")
        return
    for name in (*data, *node.outputs):
        _activation(graph, name)
    dtypes = {graph.tensors[t].dtype for t in (*data, *node.outputs)}
    _check_widths(graph, node, dtypes)
    if rule.kind == "weighted":
        _check_weights(graph, node)
    elif rule.kind in ("same", "mask"):
        first = graph.tensors[data[0]]
        alike = data[1:] if rule.kind == "same" else ()
        for name in (*alike, *node.outputs):
            have = graph.tensors[name]
            _need(
                have.quantization == first.quantization,
                f"'{name}' has scale {have.scale:.9g} and zero point {have.zero_point}, "
                f"'{data[0]}' has {first.scale:.9g} and {first.zero_point}; {node.op} needs them equal",
                "quantize both with the same parameters, or put a requantize node between",
            )
    elif rule.kind == "fixed" and dtypes == {"int8"}:
        for name in node.outputs:
            have = graph.tensors[name]
            _need(
                have.scale == float(np.float32(rule.scale)) and have.zero_point == rule.zero_point,
                f"'{name}' has scale {have.scale:.9g} and zero point {have.zero_point}; "
                f"{node.op} gives {rule.scale:.9g} and {rule.zero_point}",
            )
    for name in node.inputs[len(data) :]:
        _need(name in graph.constants, f"input '{name}' must be a constant")
    if node.op == "prelu":
        _activation(graph, node.inputs[1])
    elif node.op == "layer_norm":
        gamma, beta = (graph.tensors[t] for t in node.inputs[1:])
        _need(
            (gamma.dtype, beta.dtype) == ("int16", "int32"), f"gamma and beta are {gamma.dtype} and {beta.dtype}, expected int16 and int32"
        )
        _activation(graph, node.inputs[1])
    elif node.op in ("channel_scale", "channel_add"):
        gains = graph.tensors[node.inputs[-1]].dtype
        _need(gains == "int16", f"gains are {gains}, expected int16")
        _activation(graph, node.inputs[-1])
    elif node.op == "batch_matmul":
        second = graph.tensors[node.inputs[1]]
        _need(second.zero_point == 0, f"'{node.inputs[1]}' has zero point {second.zero_point}; the second operand of a product needs 0")
    elif node.op == "mask_fill":
        mask = graph.tensors[node.inputs[1]]
        _need(
            mask.quantization == MASK,
            f"mask '{node.inputs[1]}' has scale {mask.scale:.9g} and zero point {mask.zero_point}, not 1/255 and -128",
        )


def _check_lookup(graph: Graph, node: Node) -> None:
    (indices, table), out = node.inputs, node.outputs[0]
    _need(graph.tensors[indices].dtype == "int32", f"indices '{indices}' are {graph.tensors[indices].dtype}, expected int32")
    _need(table in graph.constants, f"input '{table}' must be a constant")
    _activation(graph, out)
    have, want = graph.tensors[table], graph.tensors[out]
    _need(
        (have.dtype, have.quantization) == (want.dtype, want.quantization), f"table '{table}' and output '{out}' are quantized differently"
    )


def _check_widths(graph: Graph, node: Node, dtypes: set[str]) -> None:
    """Most ops keep one width; sums widen, layer_norm narrows, requantize does either."""
    out = graph.tensors[node.outputs[0]].dtype
    if node.op in ("layer_norm", "channel_scale"):
        x = graph.tensors[node.inputs[0]].dtype
        _need(x == "int16", f"{node.op} on {x} activations", "put a requantize to int16 before it")
    elif node.op == "channel_add":
        y = graph.tensors[node.inputs[1]]
        _need((y.dtype, y.zero_point, out) == ("int8", 0, "int16"), "channel_add takes an int8 branch with zero point 0 and gives int16")
    elif node.op != "requantize" and not (node.op in ("add", "sub") and out == "int16"):
        _need(len(dtypes) == 1, f"activations of dtypes {', '.join(sorted(dtypes))} in one op", "put a requantize node between")


def _activation(graph: Graph, name: str) -> None:
    type = graph.tensors[name]
    _need(type.dtype in ACTIVATION_DTYPES, f"'{name}' is {type.dtype}, integer ops take {' or '.join(ACTIVATION_DTYPES)}")
    q = type.quantization
    _need(q is not None and q.axis is None, f"'{name}' needs one scale and zero point for the whole tensor")
    _need(type.scale >= _SMALLEST_NORMAL, f"'{name}' has scale {type.scale!r}, a subnormal float32")
    _need(type.dtype == "int8" or type.zero_point == 0, f"'{name}' is int16 with zero point {type.zero_point}, expected 0")


def _check_weights(graph: Graph, node: Node) -> None:
    _need(len(node.inputs) == 3, f"{len(node.inputs)} inputs, expected 3 (data, weights, bias)")
    weights, bias = graph.tensors[node.inputs[1]], graph.tensors[node.inputs[2]]
    axis = WEIGHT_AXIS[node.op]
    q = weights.quantization
    _need(weights.dtype in WEIGHT_DTYPES, f"weights are {weights.dtype}, expected {' or '.join(WEIGHT_DTYPES)}")
    _need(q is not None, "weights have no scale")
    assert q is not None
    _need(q.axis in (None, axis), f"weights have their scales along axis {q.axis}, expected {axis}")
    _need(not any(q.zero_point), "weights have a zero point other than 0", "weights are quantized symmetrically")
    _need(bias.dtype == "int32", f"bias is {bias.dtype}, expected int32")
