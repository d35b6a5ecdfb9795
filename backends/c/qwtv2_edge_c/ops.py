"""One emit function and one list of limits per op of the IR.

A node becomes a call of one kernel and the constants that it takes: arrays, and a struct of what is known of the node.
Numbers come from ``qwtv2_edge.fixedpoint`` and from the simulator itself; nothing is computed twice in two ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from qwtv2_edge import fixedpoint as fp
from qwtv2_edge.c_text import identifier
from qwtv2_edge.errors import GraphError
from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.ir.types import DTYPES, TensorType
from qwtv2_edge.numerics import wide_key
from qwtv2_edge.ops import OPS
from qwtv2_edge.ops.integers import (
    PRELU_RULES,
    UNARY_RULES,
    pad_code,
    prelu_multipliers,
    product_scale64,
    wide_add_params,
)
from qwtv2_edge.ops.kernels import nearest_index
from qwtv2_edge.ops.sequence import INDEX_LIMIT, ChannelAdd, LayerNormTable
from qwtv2_edge.ops.spec import ACTIVATIONS
from qwtv2_edge.ops.weighted import effective_scale, weights_of
from qwtv2_edge.planner import is_view
from qwtv2_edge_c.numerics import NUMERICS
from qwtv2_edge_c.source import OnlyCmsis, array, kernel_words, only_cmsis, struct

F = np.float32
I = np.int64  # noqa: E741

TABLE = NUMERICS["c"]
#: arrays of C types by dtype; packed codes are unpacked
CTYPES = {"int8": "int8_t", "int4": "int8_t", "int16": "int16_t", "int32": "int32_t"}
#: axes that a movement may have once those that stay together are merged
COPY_AXES, BROADCAST_AXES, REDUCE_AXES = 5, 4, 2

#: channels that CMSIS-NN's depthwise kernel for vector instructions takes at once
CMSIS_CHANNELS = 124

#: most vectors that a matrix kernel takes at once, see kernels/dots.h
COLUMNS = 2

#: (code, what is wrong, fix)
Limit = tuple[str, str, str]


@dataclass
class Unit:
    """The C file while it grows.

    Attributes:
        names: tensor or node -> identifier.
        kernels: of the library, in order of first use.
        definitions: constants, in order.
        calls: lines of the run function.
        ops, nodes: kernels called, and the graph node of each.
        traced: nodes in the order of the run function; each has its number there.
        scratch: node -> bytes.
        cmsis_room: bytes that CMSIS-NN's kernels need at most, on any core.
    """

    graph: Graph
    names: dict[str, str] = field(default_factory=dict)
    kernels: list[str] = field(default_factory=list)
    definitions: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    ops: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    traced: list[str] = field(default_factory=list)
    scratch: dict[str, int] = field(default_factory=dict)
    cmsis_room: int = 16
    _taken: set[str] = field(default_factory=lambda: set(kernel_words()))
    _arrays: dict[tuple[str, bytes], str] = field(default_factory=dict)

    def free(self, hint: str) -> str:
        """``hint`` as an identifier that nothing else has."""
        hint = identifier(hint)
        name, i = hint, 2
        while name in self._taken:
            name, i = f"{hint}_{i}", i + 1
        self._taken.add(name)
        return name

    def place(self, tensor: str) -> str:
        """Name of the offset of an activation."""
        if tensor not in self.names:
            self.names[tensor] = self.free(f"at_{identifier(tensor)}")
        return self.names[tensor]

    def use(self, tensor: str) -> str:
        """A pointer to a tensor."""
        type = self.graph.tensors[tensor]
        if tensor in self.graph.constants:
            return self.array(tensor, self.graph.constants[tensor], CTYPES[type.dtype])
        return self._pointer(self.place(tensor), type.dtype)

    def bytes(self, tensor: str, start: int = 0) -> str:
        """A pointer to byte ``start`` of a tensor."""
        base = f"(const int8_t *){self.use(tensor)}" if tensor in self.graph.constants else f"arena.bytes + {self.place(tensor)}"
        return f"{base} + {start}" if start else base

    def rooms(self, node: Node, *parts: tuple[int, str]) -> list[str]:
        """Pointers to memory that only ``node`` uses, one behind the other: (elements, dtype) each, wider ones first."""
        key, at, pointers = f"{node.name}/scratch", 0, []
        self.names[key] = self.free(f"at_{identifier(node.name)}_scratch")
        for size, dtype in parts:
            pointers.append(self._pointer(f"{self.names[key]} + {at}" if at else self.names[key], dtype))
            at += size * DTYPES[dtype].itemsize
        self.scratch[node.name] = at
        return pointers

    @staticmethod
    def _pointer(offset: str, dtype: str) -> str:
        pointer = f"arena.bytes + {offset}"
        return pointer if dtype == "int8" else f"(void *)({pointer})"

    def array(self, hint: str, values: np.ndarray, ctype: str) -> str:
        """A constant array; equal ones are there once."""
        key = (ctype, values.tobytes())
        if key not in self._arrays:
            self._arrays[key] = self.free(hint)
            self.definitions.append(array(ctype, self._arrays[key], values))
        return self._arrays[key]

    def array_for_cmsis(self, hint: str, values: np.ndarray, ctype: str) -> str:
        """A constant array that is there for CMSIS-NN alone, unless it is there anyway."""
        known = self._arrays.get((ctype, values.tobytes()))
        if known is not None:
            return known
        name = self.free(hint)
        self.definitions.append(only_cmsis(array(ctype, name, values)))
        return name

    def struct(self, tag: str, node: Node, fields: Mapping[str, Any]) -> str:
        name = self.free(f"{identifier(node.name)}_{tag}")
        self.definitions.append(struct(tag, name, fields))
        return f"&{name}"

    def call(self, node: Node, kernel: str, *arguments: str | int) -> None:
        if kernel not in self.kernels:
            self.kernels.append(kernel)
        self.calls.append(f"{kernel}({', '.join(map(str, arguments))});")
        self.ops.append(kernel)
        self.nodes.append(node.name)


@dataclass(frozen=True)
class Rule:
    """How one IR op becomes C, and what stands against it."""

    emit: Callable[[Unit, Node], None]
    limits: Callable[[Graph, Node], Iterator[Limit]] = lambda graph, node: iter(())


# ---------------------------------------------------------------- numbers


def scale_of(effective: np.float64 | float) -> dict[str, int]:
    m, e = fp.quantize_multiplier(effective)
    return {"multiplier": int(m), "shift": int(e)}


def scale_pair(pair: tuple[int, int]) -> dict[str, int]:
    return {"multiplier": pair[0], "shift": pair[1]}


def codes_of(out: TensorType, activation: str = "none") -> dict[str, int]:
    """The struct codes of an output."""
    z = out.zero_point
    low, high = fp.activation_bounds(*ACTIVATIONS[activation], out.scale, z, "TFLITE", out.code_bounds)
    return {"zero_point": z, "low": low - z, "high": high - z}


def bits(type: TensorType) -> int:
    return 8 * DTYPES[type.dtype].itemsize


# ---------------------------------------------------------------- weighted ops


def _matmul(u: Unit, node: Node, weights: np.ndarray, depth: int, outputs: int, *, padded: bool) -> dict[str, Any]:
    """The struct matmul of a weighted node. weights: of all groups; outputs: of one; padded: windows may reach over the border."""
    types, out, bias = u.graph.in_types(node), u.graph.out_types(node)[0], _offset(u, node)
    key = wide_key(node.op) if types[0].dtype == "int16" else node.op
    return {
        "depth": depth,
        "outputs": outputs,
        **_channels(u, node, weights, bias, effective_scale(node.op, TABLE.rule(key), types, out)),
        "out": codes_of(out, node.attrs.activation),
        **_for_cmsis(u, node, u.graph.constants[node.inputs[2]] if padded else bias),
    }


def _for_cmsis(u: Unit, node: Node, bias: np.ndarray) -> dict[str, Any]:
    """The struct cmsis_nn of an 8-bit convolution: the bias that goes with its input offset, and shifts in 32 bits."""
    types, out = u.graph.in_types(node), u.graph.out_types(node)[0]
    if out.dtype != "int8":
        return {}
    name = identifier(node.name)
    _, shift = fp.quantize_multiplier(effective_scale(node.op, TABLE.rule(node.op), types, out))
    arrays = {
        "bias": u.array_for_cmsis(f"{name}_cmsis_bias", bias.astype(np.int32), "int32_t"),
        "shift": u.array_for_cmsis(f"{name}_cmsis_shift", shift.astype(np.int32), "int32_t"),
    }
    return {"cmsis_nn": OnlyCmsis(arrays)}


def _channels(u: Unit, node: Node, weights: np.ndarray, bias: np.ndarray, scale: np.ndarray) -> dict[str, Any]:
    """Weights, and what there is per output channel; one multiplier stands for all where they are equal."""
    name = identifier(node.name)
    multiplier, shift = fp.quantize_multiplier(scale)
    step = int(np.unique(np.stack([multiplier, shift]), axis=1).shape[1] > 1)
    kept = slice(None) if step else slice(1)
    return {
        "step": step,
        "weights": u.array(f"{name}_weights", np.ascontiguousarray(weights), "int8_t"),
        "bias": u.array(f"{name}_bias", bias.astype(np.int32), "int32_t"),
        "multiplier": u.array(f"{name}_multiplier", multiplier[kept].astype(np.int32), "int32_t"),
        "shift": u.array(f"{name}_shift", shift[kept].astype(np.int8), "int8_t"),
    }


def _offset(u: Unit, node: Node) -> np.ndarray:
    """bias - zero_point * sum(weights), int64 (outputs,)."""
    arrays = [np.empty(0), *(u.graph.constants[t] for t in node.inputs[1:])]
    return weights_of(node.op, arrays, node.attrs, u.graph.in_types(node)).offset


def _fully_connected(u: Unit, node: Node) -> None:
    x, w, _ = u.graph.in_types(node)
    _rows(u, node, prod(x.shape[:-1]), w.shape[1], w.shape[0])


def _rows(u: Unit, node: Node, vectors: int, depth: int, outputs: int) -> None:
    """Vector by vector times one matrix."""
    x = u.graph.in_types(node)[0]
    matmul = u.struct("matmul", node, _matmul(u, node, u.graph.constants[node.inputs[1]], depth, outputs, padded=False))
    u.cmsis_room = max(u.cmsis_room, 4 * depth)  # Arm Compiler's kernel for cores with DSP instructions
    kernel = "fully_connected" if x.dtype == "int8" else "fully_connected_int16"
    (columns,) = u.rooms(node, (min(vectors, COLUMNS) * depth, "int16"))
    u.call(node, kernel, u.use(node.inputs[0]), u.use(node.outputs[0]), columns, vectors, matmul)


def _window(x: TensorType, out: TensorType, kernel: Sequence[int], attrs: Any, pad: Sequence[int]) -> dict[str, Any]:
    """The struct window."""
    return {
        "images": x.shape[0],
        "input": x.shape[1:3],
        "channels": x.shape[3],
        "output": out.shape[1:3],
        "kernel": kernel,
        "stride": attrs.stride,
        "dilation": getattr(attrs, "dilation", (1, 1)),
        "pad": pad,
    }


def _before(attrs: Any) -> list[int]:
    """(top, left) of a padding."""
    return [p[0] for p in attrs.padding]


def _conv2d(u: Unit, node: Node) -> None:
    a, (x, w, _), out = node.attrs, u.graph.in_types(node), u.graph.out_types(node)[0]
    kernel = w.shape[1:3]
    if kernel == (1, 1) and a.groups == 1 and a.stride == (1, 1) and a.padding == ((0, 0), (0, 0)):
        _rows(u, node, prod(x.shape[:3]), x.shape[3], w.shape[0])
        return
    _conv(u, node, u.graph.constants[node.inputs[1]], _window(x, out, kernel, a, _before(a)), a.groups)


def _conv(u: Unit, node: Node, weights: np.ndarray, window: dict[str, Any], groups: int) -> None:
    x = u.graph.in_types(node)[0]
    depth = prod(window["kernel"]) * window["channels"] // groups
    matmul = _matmul(u, node, weights, depth, weights.shape[0] // groups, padded=True)
    u.cmsis_room = max(u.cmsis_room, 4 * (-(-depth * groups // 16) * 16))  # four windows in whole vectors
    params = {"window": window, "groups": groups, "input_zero_point": x.zero_point, "matmul": matmul}
    source, target = u.use(node.inputs[0]), u.use(node.outputs[0])
    if x.dtype == "int8":
        memory = u.rooms(node, (COLUMNS * depth, "int16"), (depth, "int8"))
        u.call(node, "conv2d", source, target, *memory, u.struct("conv2d", node, params))
    else:
        u.call(node, "conv2d_int16", source, target, *u.rooms(node, (depth, "int16")), u.struct("conv2d", node, params))


def _depthwise(u: Unit, node: Node) -> None:
    a, (x, w, _), out = node.attrs, u.graph.in_types(node), u.graph.out_types(node)[0]
    window, weights = _window(x, out, w.shape[1:3], a, _before(a)), u.graph.constants[node.inputs[1]]
    if x.shape[3] == 1 and x.dtype == "int8":
        _conv(u, node, np.ascontiguousarray(weights.transpose(3, 1, 2, 0)), window, 1)
        return
    key = wide_key(node.op) if x.dtype == "int16" else node.op
    params = {
        "window": window,
        "multiplicity": w.shape[3] // x.shape[3],
        "input_zero_point": x.zero_point,
        **_channels(u, node, weights, _offset(u, node), effective_scale(node.op, TABLE.rule(key), u.graph.in_types(node), out)),
        "out": codes_of(out, a.activation),
        **_for_cmsis(u, node, u.graph.constants[node.inputs[2]]),
    }
    u.cmsis_room = max(u.cmsis_room, prod(w.shape[1:3]) * max(4 * CMSIS_CHANNELS, 2 * x.shape[3]))
    narrow = "depthwise_conv2d" if w.shape[3] == x.shape[3] else "depthwise_conv2d_multiple"
    kernel = narrow if x.dtype == "int8" else "depthwise_conv2d_int16"
    u.call(node, kernel, u.use(node.inputs[0]), u.use(node.outputs[0]), u.struct("depthwise_conv2d", node, params))


def _transpose_conv(u: Unit, node: Node) -> None:
    a, (x, w, _), out = node.attrs, u.graph.in_types(node), u.graph.out_types(node)[0]
    weights = u.graph.constants[node.inputs[1]]
    params = {
        "window": _window(x, out, w.shape[1:3], a, [c[0] for c in a.crop]),
        "input_zero_point": x.zero_point,
        "matmul": _matmul(u, node, weights, prod(w.shape[1:]), w.shape[0], padded=True),
    }
    u.call(node, "transpose_conv2d", u.use(node.inputs[0]), u.use(node.outputs[0]), u.struct("transpose_conv2d", node, params))


def _weighted_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    x, w, b = graph.in_types(node)[0], *(graph.constants[t] for t in node.inputs[1:])
    if x.dtype == "int8":
        reach = weights_of(node.op, [np.empty(0), w, b], node.attrs, graph.in_types(node)).bound
    else:
        axes = (0, 1, 2) if node.op == "depthwise_conv2d" else tuple(range(1, w.ndim))
        reach = int((2**15 * np.abs(w.astype(I)).sum(axes) + np.abs(b.astype(I))).max())
    if reach > fp.INT32_MAX:
        yield "range", f"sums reach {reach}, beyond 32 bits", "lower the bias or the gain of this node, or split the layer"


# ---------------------------------------------------------------- element by element


def _look_up(u: Unit, node: Node) -> None:
    """All 256 codes through the simulator."""
    x, out = u.graph.in_types(node)[0], u.graph.out_types(node)[0]
    codes = np.arange(-128, 128, dtype=np.int8)
    (table,) = OPS[node.op].integer((codes,), node.attrs, (x,), (out,), TABLE)
    entries = u.array(f"{identifier(node.name)}_table", table, "int8_t")
    u.call(node, "look_up", u.use(node.inputs[0]), u.use(node.outputs[0]), x.size, entries)


def merged_axes(shape: Sequence[int], *steps: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """(sizes, steps) of a walk with axes of one element left out and those that every walker crosses evenly merged."""
    sizes: list[int] = []
    walks: list[list[int]] = [[] for _ in steps]
    for i, size in enumerate(shape):
        if size == 1:
            continue
        if sizes and all(w[-1] == s[i] * size for w, s in zip(walks, steps, strict=True)):
            sizes[-1] *= size
            for w, s in zip(walks, steps, strict=True):
                w[-1] = s[i]
        else:
            sizes.append(size)
            for w, s in zip(walks, steps, strict=True):
                w.append(s[i])
    return sizes, walks


def strides(shape: Sequence[int]) -> list[int]:
    """Elements from one position to the next along each axis."""
    return [prod(shape[i + 1 :]) for i in range(len(shape))]


def _broadcast_walk(types: Sequence[TensorType], out: TensorType) -> tuple[list[int], list[list[int]]]:
    """How two operands run along the output, axis by axis."""

    def steps(shape: tuple[int, ...]) -> list[int]:
        spread = (1,) * (len(out.shape) - len(shape)) + shape
        return [0 if d == 1 else s for d, s in zip(spread, strides(spread), strict=True)]

    return merged_axes(out.shape, *(steps(t.shape) for t in types))


def _broadcast(u: Unit, node: Node) -> dict[str, Any]:
    """The struct broadcast of a node of two operands."""
    sizes, walks = _broadcast_walk(u.graph.in_types(node)[:2], u.graph.out_types(node)[0])
    missing = BROADCAST_AXES - len(sizes)
    sizes = [1] * missing + sizes
    x, y = ([0] * missing + w for w in walks)
    return {"count": sizes[-1], "size": sizes[:-1], "x_step": x, "y_step": y}


def _broadcast_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    sizes, _ = _broadcast_walk(graph.in_types(node)[:2], graph.out_types(node)[0])
    if len(sizes) > BROADCAST_AXES:
        yield "rank", f"shapes that broadcast over {len(sizes)} axes, the kernel takes {BROADCAST_AXES}", "reshape to fewer axes before it"


def _pair(u: Unit, node: Node, kernel: str, params: str) -> None:
    u.call(node, kernel, *(u.use(t) for t in (*node.inputs[:2], *node.outputs)), params)


def _add(sign: int) -> Callable[[Unit, Node], None]:
    def emit(u: Unit, node: Node) -> None:
        (x, y), out = u.graph.in_types(node), u.graph.out_types(node)[0]
        k = fp.left_shift_add_params(x.scale, y.scale, out.scale)
        params = {
            "shape": _broadcast(u, node),
            "x_zero_point": x.zero_point,
            "y_zero_point": y.zero_point,
            "sign": sign,
            **{name: scale_pair(pair) for name, pair in (("x", k.first), ("y", k.second), ("sum", k.output))},
            "out": codes_of(out, node.attrs.activation),
        }
        _pair(u, node, "add", u.struct("add", node, params))

    return emit


def _add_wide(sign: int) -> Callable[[Unit, Node], None]:
    def emit(u: Unit, node: Node) -> None:
        (x, y), out = u.graph.in_types(node), u.graph.out_types(node)[0]
        k = wide_add_params(x, y, out)
        params = {
            "shape": _broadcast(u, node),
            "x_zero_point": x.zero_point,
            "y_zero_point": y.zero_point,
            "x_factor": k.first,
            "y_factor": sign * k.second,
            "sum": scale_of(k.scale),
            "out": codes_of(out, node.attrs.activation),
        }
        _pair(u, node, f"add_int16_{bits(x)}_{bits(y)}", u.struct("add_int16", node, params))

    return emit


def _multiply(u: Unit, node: Node) -> None:
    (x, y), out = u.graph.in_types(node), u.graph.out_types(node)[0]
    params = {
        "shape": _broadcast(u, node),
        "x_zero_point": x.zero_point,
        "y_zero_point": y.zero_point,
        "scale": scale_of(product_scale64(x, y, out)),
        "out": codes_of(out, node.attrs.activation),
    }
    _pair(u, node, f"multiply_int{bits(out)}", u.struct("multiply", node, params))


def _mask_fill(u: Unit, node: Node) -> None:
    _pair(u, node, "minimum", u.struct("broadcast", node, _broadcast(u, node)))


def _requantize(u: Unit, node: Node) -> None:
    x, out = u.graph.in_types(node)[0], u.graph.out_types(node)[0]
    scale = scale_of(np.float64(F(x.scale)) / np.float64(F(out.scale)))
    params = {"count": x.size, "zero_point": x.zero_point, "scale": scale, "out": codes_of(out)}
    kernel = f"requantize_{bits(x)}_{bits(out)}"
    u.call(node, kernel, u.use(node.inputs[0]), u.use(node.outputs[0]), u.struct("requantize", node, params))


def _prelu(u: Unit, node: Node) -> None:
    (x, slope), out = u.graph.in_types(node), u.graph.out_types(node)[0]
    above, below = prelu_multipliers(x, slope, out, PRELU_RULES[TABLE.rule("prelu")])
    params = {
        "rows": prod(x.shape[:-1]),
        "channels": x.shape[-1],
        "zero_point": x.zero_point,
        "slope_zero_point": slope.zero_point,
        "slopes": u.use(node.inputs[1]),
        "above": scale_pair(above),
        "below": scale_pair(below),
        "out": codes_of(out),
    }
    u.call(node, "prelu", u.use(node.inputs[0]), u.use(node.outputs[0]), u.struct("prelu", node, params))


# ---------------------------------------------------------------- pools and reductions


def _pool(kernel: str) -> Callable[[Unit, Node], None]:
    def emit(u: Unit, node: Node) -> None:
        a, x, out = node.attrs, u.graph.in_types(node)[0], u.graph.out_types(node)[0]
        window = u.struct("window", node, _window(x, out, a.kernel, a, _before(a)))
        u.cmsis_room = max(u.cmsis_room, 4 * x.shape[3])
        u.call(node, kernel, u.use(node.inputs[0]), u.use(node.outputs[0]), window)

    return emit


def _reduce_walk(graph: Graph, node: Node) -> tuple[list[int], list[int], list[int], list[int]]:
    """(kept sizes, their steps, reduced sizes, their steps), merged."""
    shape = graph.in_types(node)[0].shape
    step = strides(shape)
    kept = [i for i in range(len(shape)) if i not in node.attrs.axes]
    sizes, (steps,) = merged_axes([shape[i] for i in kept], [step[i] for i in kept])
    gone, (gone_steps,) = merged_axes([shape[i] for i in node.attrs.axes], [step[i] for i in node.attrs.axes])
    return sizes, steps, gone, gone_steps


def _reduce(u: Unit, node: Node) -> dict[str, Any]:
    """The struct reduce."""
    kept, kept_step, reduced, reduced_step = _reduce_walk(u.graph, node)
    pads = {"kept": (kept, 1), "kept_step": (kept_step, 0), "reduced": (reduced, 1), "reduced_step": (reduced_step, 0)}
    return {name: [fill] * (REDUCE_AXES - len(values)) + values for name, (values, fill) in pads.items()}


def _reduce_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    kept, _, reduced, _ = _reduce_walk(graph, node)
    if max(len(kept), len(reduced)) > REDUCE_AXES:
        yield "rank", f"axes {node.attrs.axes} of {graph.in_types(node)[0].shape} do not lie together", "reduce one axis after another"
    elif prod(reduced) * graph.in_types(node)[0].reach > fp.INT32_MAX:
        yield "range", f"sums over {prod(reduced)} elements reach beyond 32 bits", "reduce one axis after another"


def _sum(u: Unit, node: Node) -> None:
    x, out = u.graph.in_types(node)[0], u.graph.out_types(node)[0]
    count = x.size // out.size
    mean = scale_pair(fp.mean_multiplier(count, x.scale, out.scale))
    scale = mean if node.op == "mean" else scale_of(np.float64(F(x.scale)) / np.float64(F(out.scale)))
    params = {"axes": _reduce(u, node), "offset": count * x.zero_point, "scale": scale, "out": codes_of(out)}
    u.call(node, f"sum_int{bits(x)}", u.use(node.inputs[0]), u.use(node.outputs[0]), u.struct("sum", node, params))


def _reduce_max(u: Unit, node: Node) -> None:
    kernel = f"reduce_max_int{bits(u.graph.in_types(node)[0])}"
    u.call(node, kernel, u.use(node.inputs[0]), u.use(node.outputs[0]), u.struct("reduce", node, _reduce(u, node)))


#: sums of so many exponentials of 19 bits stay below 2**31
SOFTMAX_COLUMNS = 4095


def _softmax(u: Unit, node: Node) -> None:
    x, out = u.graph.in_types(node)[0], u.graph.out_types(node)[0]
    if (out.scale, out.zero_point) != (1.0 / 256, -128):
        said = f"softmax gives scale 1/256 and zero point -128, not {out.scale} and {out.zero_point}"
        raise GraphError(said, fix="give its output that scale and zero point")
    m, e = fp.softmax_multiplier(x.scale, node.attrs.beta)
    table = np.trim_zeros(fp.softmax_exponentials(x.scale, node.attrs.beta), "b").astype(np.int32)
    params = {
        "rows": x.size // x.shape[-1],
        "columns": x.shape[-1],
        "entries": len(table),
        "exponentials": u.array(f"{identifier(node.name)}_exponentials", table, "int32_t"),
        **{name: OnlyCmsis(v) for name, v in zip(("multiplier", "shift", "least"), (m, e, -fp.integer_bits_radius(5, e)), strict=True)},
    }
    u.call(node, "softmax", u.use(node.inputs[0]), u.use(node.outputs[0]), u.struct("softmax", node, params))


def _softmax_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    columns = graph.in_types(node)[0].shape[-1]
    if columns > SOFTMAX_COLUMNS:
        yield "range", f"softmax over {columns} entries, sums of more than {SOFTMAX_COLUMNS} leave 32 bits", "leave it out of the network"


# ---------------------------------------------------------------- sequences


def _batch_matmul(u: Unit, node: Node) -> None:
    (x, y), out = u.graph.in_types(node), u.graph.out_types(node)[0]
    rows, depth, columns, transposed = x.shape[-2], x.shape[-1], out.shape[-1], node.attrs.transpose_b
    params = {
        "batches": prod(x.shape[:-2]),
        "rows": rows,
        "depth": depth,
        "columns": columns,
        "y_step": (1, depth) if transposed else (columns, 1),
        "x_zero_point": x.zero_point,
        "y_zero_point": y.zero_point,
        "scale": scale_of(product_scale64(x, y, out)),
        "out": codes_of(out),
    }
    struct = u.struct("batch_matmul", node, params)
    if x.dtype == "int16":
        _pair(u, node, "batch_matmul_int16", struct)
        return
    rows = min(rows, COLUMNS)
    offsets, vectors, turned = u.rooms(node, (columns, "int32"), (rows * depth, "int16"), (0 if transposed else depth * columns, "int8"))
    u.call(node, "batch_matmul", *(u.use(t) for t in (*node.inputs, *node.outputs)), offsets, vectors, turned, struct)


def _batch_matmul_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    x, y = graph.in_types(node)
    reach = x.shape[-1] * x.reach * y.reach
    if x.dtype == "int8" and reach > fp.INT32_MAX:
        yield "range", f"sums over {x.shape[-1]} products reach {reach}, beyond 32 bits", "split the product"


def _layer_norm(u: Unit, node: Node) -> None:
    (x, gamma, _), out = u.graph.in_types(node), u.graph.out_types(node)[0]
    table, name, columns = LayerNormTable.of(x, gamma, out, node.attrs), identifier(node.name), x.shape[-1]
    passes = [
        {
            "mean_square": scale_pair(fp.mean_multiplier(columns, 1.0, 2.0**-p.shift)),
            "normal": scale_of(np.float64(F(p.scale))),
            "inverse": u.array(f"{name}_inverse", p.inverse, "int16_t"),
        }
        for p in table.passes
    ]
    params = {
        "rows": x.size // columns,
        "columns": columns,
        "centre": int(node.attrs.centre),
        "passes": len(passes),
        "inverse_limit": INDEX_LIMIT,
        "mean": scale_pair(fp.mean_multiplier(columns, 1.0, 1.0)),
        "square": scale_of(np.float64(2.0**-15)),
        "pass": passes,
        "gamma": u.use(node.inputs[1]),
        "beta": u.use(node.inputs[2]),
        "output": scale_of(np.float64(table.output)),
        "out": codes_of(out),
    }
    arguments = u.use(node.inputs[0]), u.use(node.outputs[0]), *u.rooms(node, (columns, "int16")), u.struct("layer_norm", node, params)
    u.call(node, f"layer_norm_int{bits(out)}", *arguments)


def _layer_norm_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    columns = graph.in_types(node)[0].shape[-1]
    gamma, beta = (np.abs(graph.constants[t].astype(I)).max() for t in node.inputs[1:])
    if gamma * 2**15 + beta > fp.INT32_MAX:
        yield "range", f"sums of normal * gamma + beta reach {gamma * 2**15 + beta}, beyond 32 bits", "give gamma a larger scale"
    if columns * 2**15 > fp.INT32_MAX:
        yield "range", f"sums over {columns} channels reach beyond 32 bits", "normalise over fewer channels"


def _channel_scale(u: Unit, node: Node) -> None:
    (x, gain), out = u.graph.in_types(node), u.graph.out_types(node)[0]
    params = {
        "rows": x.size // x.shape[-1],
        "channels": x.shape[-1],
        "gains": u.use(node.inputs[1]),
        "scale": scale_of(np.float64(F(x.scale) * F(gain.scale)) / np.float64(F(out.scale))),
        "out": codes_of(out),
    }
    u.call(node, f"channel_scale_int{bits(out)}", u.use(node.inputs[0]), u.use(node.outputs[0]), u.struct("channel_scale", node, params))


def _channel_add(u: Unit, node: Node) -> None:
    (x, y, gain), out = u.graph.in_types(node), u.graph.out_types(node)[0]
    k = ChannelAdd.of(x, y, gain, u.graph.constants[node.inputs[2]])
    params = {
        "rows": x.size // x.shape[-1],
        "channels": x.shape[-1],
        "x_zero_point": x.zero_point,
        "x_factor": k.first,
        "y_factors": u.array(f"{identifier(node.name)}_factors", k.second, "int32_t"),
        "sum": scale_of(np.float64(F(k.unit)) / np.float64(F(out.scale))),
        "out": codes_of(out),
    }
    _pair(u, node, f"channel_add_int{bits(x)}", u.struct("channel_add", node, params))


def _l2_normalize(u: Unit, node: Node) -> None:
    x = u.graph.in_types(node)[0]
    params = {"rows": x.size // x.shape[-1], "columns": x.shape[-1], "zero_point": x.zero_point}
    u.call(node, "l2_normalize", u.use(node.inputs[0]), u.use(node.outputs[0]), u.struct("l2_normalize", node, params))


def _l2_limits(graph: Graph, node: Node) -> Iterator[Limit]:
    x = graph.in_types(node)[0]
    if x.shape[-1] * x.reach**2 > fp.INT32_MAX:
        yield "range", f"squares of {x.shape[-1]} codes sum beyond 32 bits", "normalise over fewer channels"


def _embedding(u: Unit, node: Node) -> None:
    indices, table = u.graph.in_types(node)
    row = table.shape[1] * DTYPES[table.dtype].itemsize
    source, target, entries = u.use(node.inputs[0]), u.use(node.outputs[0]), u.use(node.inputs[1])
    u.call(node, "embedding", source, target, indices.size, entries, table.shape[0], row)


def _argmax(u: Unit, node: Node) -> None:
    x, axis = u.graph.in_types(node)[0], node.attrs.axis
    sizes = prod(x.shape[:axis]), x.shape[axis], prod(x.shape[axis + 1 :])
    u.call(node, f"argmax_int{bits(x)}", u.use(node.inputs[0]), u.use(node.outputs[0]), *sizes)


# ---------------------------------------------------------------- data movement


def _movement(shape: Sequence[int], source: Sequence[int], target: Sequence[int], item: int) -> dict[str, Any] | None:
    """The struct copy of a box of elements, by the steps of both sides in elements; None where it has too many axes."""
    sizes, (a, b) = merged_axes(shape, source, target)
    run = sizes.pop() if sizes and a[-1] == b[-1] == 1 else 1
    missing = COPY_AXES - len(sizes)
    if missing < 0:
        return None

    def steps(walk: list[int]) -> list[int]:
        return [0] * missing + [s * item for s in walk[: len(sizes)]]

    return {"run": run * item, "size": [1] * missing + sizes, "from_step": steps(a), "to_step": steps(b)}


@dataclass(frozen=True)
class Move:
    """A box of elements from one tensor to another: input number, shape, first elements and steps of both sides."""

    source: int
    shape: Sequence[int]
    source_start: int
    source_step: Sequence[int]
    target_start: int
    target_step: Sequence[int]

    def params(self, item: int) -> dict[str, Any] | None:
        return _movement(self.shape, self.source_step, self.target_step, item)


def _transpose_moves(graph: Graph, node: Node) -> list[Move]:
    x, out = graph.in_types(node)[0], graph.out_types(node)[0]
    steps = strides(x.shape)
    return [Move(0, out.shape, 0, [steps[p] for p in node.attrs.perm], 0, strides(out.shape))]


def _slice_moves(graph: Graph, node: Node) -> list[Move]:
    a, x, out = node.attrs, graph.in_types(node)[0], graph.out_types(node)[0]
    steps = strides(x.shape)
    start = sum(b * s for b, s in zip(a.begin, steps, strict=True))
    return [Move(0, out.shape, start, [s * k for s, k in zip(steps, a.stride, strict=True)], 0, strides(out.shape))]


def _concat_moves(graph: Graph, node: Node) -> list[Move]:
    axis, steps, moves, at = node.attrs.axis, strides(graph.out_types(node)[0].shape), [], 0
    for i, part in enumerate(graph.in_types(node)):
        moves.append(Move(i, part.shape, 0, strides(part.shape), at * steps[axis], steps))
        at += part.shape[axis]
    return moves


def _pad_moves(graph: Graph, node: Node) -> list[Move]:
    x, steps = graph.in_types(node)[0], strides(graph.out_types(node)[0].shape)
    start = sum(p[0] * s for p, s in zip(node.attrs.paddings, steps, strict=True))
    return [Move(0, x.shape, 0, strides(x.shape), start, steps)]


def _moving(moves: Callable[[Graph, Node], list[Move]]) -> Rule:
    def emit(u: Unit, node: Node) -> None:
        if is_view(u.graph, node):
            _view(u, node)
            return
        out = u.graph.out_types(node)[0]
        item = DTYPES[out.dtype].itemsize
        if node.op == "pad":
            fill = pad_code(node.attrs.value, out)
            u.call(node, f"fill_int{bits(out)}", u.use(node.outputs[0]), fill, out.size)
        for m in moves(u.graph, node):
            params = u.struct("copy", node, m.params(item) or {})
            source, target = u.bytes(node.inputs[m.source], m.source_start * item), u.bytes(node.outputs[0], m.target_start * item)
            u.call(node, "copy", source, target, params)

    def limits(graph: Graph, node: Node) -> Iterator[Limit]:
        if any(m.params(1) is None for m in moves(graph, node)):
            yield "rank", f"{node.op} over more than {COPY_AXES} axes that move apart", "reshape to fewer axes before it"

    return Rule(emit, limits)


def _view(u: Unit, node: Node) -> None:
    """Nothing where both names lie in one place."""
    copying = f"memcpy({u.bytes(node.outputs[0])}, {u.bytes(node.inputs[0])}, {u.graph.out_types(node)[0].size_bytes});"
    shared = node.inputs[0] not in u.graph.constants
    u.calls += ["#ifdef QWTV2_APART", copying, "#endif"] if shared else [copying]


def _resize_nearest(u: Unit, node: Node) -> None:
    a, x = node.attrs, u.graph.in_types(node)[0]
    rows, columns = (nearest_index(x.shape[1 + i], a.size[i], a.align_corners, a.half_pixel_centers) for i in (0, 1))
    name = identifier(node.name)
    params = {
        "images": x.shape[0],
        "input": x.shape[1:3],
        "output": a.size,
        "bytes": x.shape[3] * DTYPES[x.dtype].itemsize,
        "rows": u.array(f"{name}_rows", rows.astype(np.int16), "int16_t"),
        "columns": u.array(f"{name}_columns", columns.astype(np.int16), "int16_t"),
    }
    u.call(node, "resize_nearest", u.use(node.inputs[0]), u.use(node.outputs[0]), u.struct("resize_nearest", node, params))


def _resize_bilinear(u: Unit, node: Node) -> None:
    a, x = node.attrs, u.graph.in_types(node)[0]

    def between(i: int, label: str) -> str:
        low, high, weight = fp.bilinear_q10(x.shape[1 + i], a.size[i], a.align_corners, a.half_pixel_centers)
        rows = np.stack([low, high, weight], 1).astype(np.int16)
        return u.array(f"{identifier(node.name)}_{label}", rows, "struct between")

    params = {
        "images": x.shape[0],
        "input": x.shape[1:3],
        "output": a.size,
        "channels": x.shape[3],
        "rows": between(0, "rows"),
        "columns": between(1, "columns"),
    }
    u.call(node, "resize_bilinear", u.use(node.inputs[0]), u.use(node.outputs[0]), u.struct("resize_bilinear", node, params))


_NARROW: dict[str, Rule] = {
    "conv2d": Rule(_conv2d, _weighted_limits),
    "depthwise_conv2d": Rule(_depthwise, _weighted_limits),
    "transpose_conv2d": Rule(_transpose_conv, _weighted_limits),
    "fully_connected": Rule(_fully_connected, _weighted_limits),
    "add": Rule(_add(1), _broadcast_limits),
    "sub": Rule(_add(-1), _broadcast_limits),
    "mul": Rule(_multiply, _broadcast_limits),
    "mask_fill": Rule(_mask_fill, _broadcast_limits),
    **dict.fromkeys(UNARY_RULES, Rule(_look_up)),
    "prelu": Rule(_prelu),
    "max_pool2d": Rule(_pool("max_pool2d")),
    "avg_pool2d": Rule(_pool("avg_pool2d")),
    "mean": Rule(_sum, _reduce_limits),
    "sum": Rule(_sum, _reduce_limits),
    "reduce_max": Rule(_reduce_max, _reduce_limits),
    "softmax": Rule(_softmax, _softmax_limits),
    "batch_matmul": Rule(_batch_matmul, _batch_matmul_limits),
    "l2_normalize": Rule(_l2_normalize, _l2_limits),
    "embedding": Rule(_embedding),
    "argmax": Rule(_argmax),
    "reshape": Rule(_view),
    "transpose": _moving(_transpose_moves),
    "concat": _moving(_concat_moves),
    "slice": _moving(_slice_moves),
    "pad": _moving(_pad_moves),
    "resize_nearest": Rule(_resize_nearest),
    "resize_bilinear": Rule(_resize_bilinear),
}

#: ops whose form on 16 bits is that on 8
SAME_FORM = (
    "conv2d", "depthwise_conv2d", "fully_connected", "batch_matmul", "mul", "mean", "reduce_max", "argmax", "embedding",
    "reshape", "transpose", "concat", "slice", "pad", "resize_nearest",
)  # fmt: skip

#: key of a numerics table -> rule
RULES: Mapping[str, Rule] = {
    **_NARROW,
    **{wide_key(op): _NARROW[op] for op in SAME_FORM},
    "add:int16": Rule(_add_wide(1), _broadcast_limits),
    "sub:int16": Rule(_add_wide(-1), _broadcast_limits),
    "requantize:int16": Rule(_requantize),
    "layer_norm:int16": Rule(_layer_norm, _layer_norm_limits),
    "channel_add:int16": Rule(_channel_add),
    "channel_scale:int16": Rule(_channel_scale),
}
