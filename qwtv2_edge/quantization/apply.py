"""Float graph + statistics -> integer graph.

Scales come from a constraint solver: tensors that an op forces to share one scale and zero point (``QuantRule``
"same") form a class; a class takes the union of its members' ranges, or the values that a "fixed" rule or an
absorbed clamp prescribes. Where those disagree, or a node reads another width than its operand has, a requantize
node goes between.

(1) s = (high - low) / 255, z = round(-128 - low / s): per-tensor affine activations
(2) s = max(-low, high) / 127 or / 32767, z = 0: second operands of products, 16-bit activations
(3) w_q = round(w / s_w), s_w per output channel, zero point 0
(4) b_q = round(b / (s_in * s_w))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from qwtv2_edge.compensation.fold import MAX_BIAS, MAX_EFFECTIVE_SCALE, MIN_EFFECTIVE_SCALE, declare_norm, norm_codes
from qwtv2_edge.errors import CalibrationError, QuantizeError, locate
from qwtv2_edge.fixedpoint import round_half_even
from qwtv2_edge.ir.check import MASK
from qwtv2_edge.ir.graph import Graph, GraphBuilder, Node
from qwtv2_edge.ir.types import CODE_BOUNDS, DTYPES, WEIGHT_AXIS, Quantization, TensorType
from qwtv2_edge.numerics import FLOAT_OPS
from qwtv2_edge.ops import OPS
from qwtv2_edge.ops.norm import LayerNormAttrs
from qwtv2_edge.ops.sequence import variance_passes, variance_shift
from qwtv2_edge.ops.spec import NoAttrs
from qwtv2_edge.quantization.calibrate import Stats
from qwtv2_edge.quantization.observers import Observer, activation_range, weight_scale
from qwtv2_edge.quantization.recipe import Recipe
from qwtv2_edge.quantization.widths import ALWAYS_WIDE, Widths, widths

#: smallest activation scale: TFLite turns the 6 of a relu6 into a code, which must fit int32
MIN_SCALE = 1e-8

#: (float constant, how it was quantized) -> integer constant, so that equal codes are stored once
Codes = dict[tuple[str, object], str]


@dataclass(frozen=True)
class Params:
    """Quantization of one class of activation tensors."""

    scale: float
    zero_point: int
    bits: int = 8

    @property
    def dtype(self) -> str:
        return f"int{self.bits}"

    def quantization(self) -> Quantization:
        return Quantization.per_tensor(self.scale, self.zero_point)

    def codes(self, value: np.ndarray) -> np.ndarray:
        """Codes of real constants, saturated."""
        low, high = CODE_BOUNDS[self.dtype]
        codes = np.clip(round_half_even(value.astype(np.float64) / self.scale) + self.zero_point, low, high)
        return codes.astype(DTYPES[self.dtype])


def params_for(low: float, high: float) -> Params:
    """Equation (1) for a range that holds 0; scale is float32-exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max((high - low) / 255, MIN_SCALE)))
    return Params(scale, int(np.clip(round_half_even(np.asarray(-128 - low / scale)), -128, 127)))


def symmetric_params(low: float, high: float, bits: int) -> Params:
    """Equation (2); scale is float32-exact."""
    top = max(-low, high, 0.0)
    return Params(float(np.float32(max(top / CODE_BOUNDS[f"int{bits}"][1], MIN_SCALE))), 0, bits)


def absorb_clamps(graph: Graph) -> tuple[Graph, dict[str, tuple[float, float]]]:
    """Drop clamps around 0 that the saturation of their producer's output can do.

    Returns: the graph without them, and tensor -> (low, high) that its range must stay within.
    """
    producers, consumers = graph.producers(), graph.consumers()
    pins: dict[str, tuple[float, float]] = {}
    absorbed: dict[str, Node] = {}
    dropped: set[str] = set()
    for node in graph.nodes:
        if node.op != "clamp" or not node.attrs.min <= 0 <= node.attrs.max:
            continue
        x = node.inputs[0]
        before = producers.get(x)
        if before is None or x in graph.outputs or len(consumers[x]) != 1:
            continue
        if OPS[before.op].quant.kind not in ("weighted", "free") or getattr(before.attrs, "activation", "none") != "none":
            continue
        if before.op == "layer_norm":
            continue
        absorbed[before.name] = replace(before, outputs=node.outputs)
        dropped.add(node.name)
        pins[node.outputs[0]] = (node.attrs.min, node.attrs.max)
    b = GraphBuilder.copy_of(graph, nodes=False)
    for node in graph.nodes:
        if node.name not in dropped:
            b.append(absorbed.get(node.name, node))
    return b.freeze(), pins


@dataclass(frozen=True)
class Plan:
    """What the solver decided: parameters per activation tensor, and where requantize nodes go."""

    params: Mapping[str, Params]
    #: (node name, input index) -> parameters that input must be brought to first
    requantize: Mapping[tuple[str, int], Params]
    #: nodes that stay at 8 bits although the recipe asks for 16
    narrow: tuple[Node, ...]
    #: 16-bit outputs of the network that leave it in 8 bits
    outputs: Mapping[str, Params]

    def reads(self, node: Node, index: int) -> Params:
        """The parameters of an input as ``node`` reads it."""
        return self.requantize.get((node.name, index)) or self.params[node.inputs[index]]


#: ops whose second operand has zero point 0
BALANCED = frozenset({"batch_matmul", "channel_add"})
#: a mask as codes -128 and 127
MASK_PARAMS = Params(MASK.scale[0], MASK.zero_point[0])
#: how far below the smallest score masked ones are put, so that a softmax gives them next to nothing: in units of
#: the exponent, beside scores, and beside a constant, whose precision does not matter
MASK_REACH, MASK_REACH_CONSTANT = 10.0, 20.0


def solve(graph: Graph, stats: Stats, pins: Mapping[str, tuple[float, float]], recipe: Recipe) -> Plan:
    """Assign parameters to every activation tensor of the float ``graph``."""
    chosen = widths(graph, recipe)
    width = chosen.tensors
    ranges = _ranges(graph, stats, recipe, width)
    seen = {t: (stats.observers[t].low, stats.observers[t].high) for t in width}
    prescribed: dict[str, Params] = {}
    symmetric: set[str] = set()
    for node in graph.nodes:
        rule = OPS[node.op].quant
        if rule.kind == "fixed":
            prescribed.update({t: Params(float(np.float32(rule.scale)), rule.zero_point) for t in node.outputs})
        elif rule.kind == "mask" and node.inputs[1] not in graph.constants:
            prescribed[node.inputs[1]] = MASK_PARAMS
        elif node.op in BALANCED and node.inputs[1] in ranges:
            symmetric.add(node.inputs[1])
    for t, (low, high) in pins.items():
        own = ranges[t]
        prescribed[t] = params_for(max(own[0], low), min(own[1], high))

    parent = {t: t for t in ranges}

    def find(t: str) -> str:
        while parent[t] != t:
            parent[t] = parent[parent[t]]
            t = parent[t]
        return t

    for node in graph.nodes:
        kind = OPS[node.op].quant.kind
        if kind in ("same", "mask"):
            out = node.outputs[0]
            for t in node.inputs if kind == "same" else node.inputs[:1]:
                if t in ranges and width[t] == width[out]:
                    parent[find(t)] = find(out)

    classes: dict[str, list[str]] = {}
    for t in ranges:
        classes.setdefault(find(t), []).append(t)

    params: dict[str, Params] = {}
    for members in classes.values():
        held = seen if width[members[0]] == 16 else ranges  # 16 bits hold everything that was seen
        low = min(held[t][0] for t in members)
        high = max(held[t][1] for t in members)
        fixed = {t: prescribed[t] for t in members if t in prescribed}
        if fixed and len(set(fixed.values())) == 1:
            p = next(iter(fixed.values()))
            codes_low, codes_high = (-128 - p.zero_point) * p.scale, (127 - p.zero_point) * p.scale
            if p == MASK_PARAMS or (codes_low - p.scale <= low and high <= codes_high + p.scale):
                params.update(dict.fromkeys(members, p))
                continue
        if low == high == 0:
            _constant_zero(graph, members[0])
        if width[members[0]] == 16 or not symmetric.isdisjoint(members):
            p = symmetric_params(low, high, width[members[0]])
        else:
            p = params_for(low, high)
        params.update({t: fixed.get(t, p) for t in members})

    requantize: dict[tuple[str, int], Params] = {}
    for node in graph.nodes:
        for i, t in enumerate(node.inputs):
            wanted = _wanted(node, i, chosen, params, ranges) if t in params else None
            if wanted is not None and wanted != params[t]:
                requantize[node.name, i] = wanted
    outputs = {t: params_for(*ranges[t]) for t in graph.outputs if recipe.io_dtype == "int8" and width.get(t) == 16}
    return Plan(params, requantize, chosen.narrow, outputs)


def _wanted(
    node: Node,
    index: int,
    chosen: Widths,
    params: Mapping[str, Params],
    ranges: Mapping[str, tuple[float, float]],
) -> Params | None:
    """What ``node`` reads input ``index`` as; None where it takes what there is."""
    t, out = node.inputs[index], node.outputs[0]
    kind = OPS[node.op].quant.kind
    if kind == "same" or (kind == "mask" and index == 0):
        return params[out]
    have = params[t]
    bits = chosen.wanted(node, t, params[out].bits if out in params else 8)
    balanced = bits == 16 or (node.op in BALANCED and index == 1)
    if have.bits == bits and not (balanced and have.zero_point):
        return None
    if have.bits == 8 and bits == 16:  # every 8-bit code has a 16-bit one
        return Params(float(np.float32(have.scale / 128)), 0, 16)
    return symmetric_params(*ranges[t], bits) if balanced else params_for(*ranges[t])


def _ranges(graph: Graph, stats: Stats, recipe: Recipe, width: Mapping[str, int]) -> dict[str, tuple[float, float]]:
    """The range of every activation tensor: the observer's choice by the recipe of the node that makes it."""
    out = {t: (stats.observers[t].low, stats.observers[t].high) for t in graph.inputs if t in width}
    for node in graph.nodes:
        r = recipe.for_node(node.location.module_path, node.name)
        for t in node.outputs:
            if t not in width:
                continue
            observer = stats.observers[t]
            if node.op == "embedding":  # any entry may be looked up later
                observer = Observer(histogram=r.observer != "minmax")
                observer.update(graph.constants[node.inputs[1]])
            if node.op == "mask_fill":
                out[t] = _masked_range(graph, node, out)
            else:
                out[t] = activation_range(observer, r.observer, r.percentile)
    return out


def _masked_range(graph: Graph, node: Node, ranges: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """The range of the values that a mask lets through, and as much below it as makes a softmax drop the rest."""
    x = node.inputs[0]
    readers = graph.consumers().get(node.outputs[0], [])
    beta = max((n.attrs.beta for n in readers if n.op == "softmax"), default=1.0)
    if x in graph.constants:
        value = graph.constants[x]
        return float(value.min()) - MASK_REACH_CONSTANT / beta, float(value.max())
    low, high = ranges[x]
    return low - MASK_REACH / beta, high


def _constant_zero(graph: Graph, tensor: str) -> None:
    node = graph.producers().get(tensor)
    raise CalibrationError(
        f"activation '{tensor}' is 0 on the whole calibration set, so it has no scale",
        fix="give calibration data that exercises this part of the network, or remove the part if it is dead",
        node=f"{node.op} '{node.name}'" if node else "",
        source=str(node.location) if node else "",
    )


@dataclass(frozen=True)
class WeightCodes:
    """Integer weights of one node: codes (int8), scale (float32 per channel, broadcast for per-tensor), bias (int32)."""

    codes: np.ndarray
    scale: np.ndarray
    bias: np.ndarray


def quantize_weights(w: np.ndarray, b: np.ndarray, axis: int, in_scale: float, out_scale: float, recipe: Recipe) -> WeightCodes:
    """Equations (3) and (4), with scales raised where a tiny one would overflow the bias or underflow the multiplier.

    Args:
        w: float32 weights; b: float32 bias, (channels,).
        axis: output-channel axis of ``w``.
    Raises: QuantizeError: an effective scale of 256 or more.
    """
    code_max = 127 if recipe.weight_bits == 8 else 7
    scale = weight_scale(w, axis, code_max, recipe.weight_observer, recipe.weight_granularity == "per_channel")
    # a dead channel has no scale of its own: borrow a typical one so that its bias keeps its precision
    typical = float(np.median(scale[scale > 0])) if (scale > 0).any() else max(out_scale / in_scale, 1e-6)
    scale = np.where(scale > 0, scale, typical)
    floor = np.maximum(np.abs(b.astype(np.float64)) / (in_scale * (MAX_BIAS - 1)), MIN_EFFECTIVE_SCALE * out_scale / in_scale)
    floor = np.maximum(floor, np.finfo(np.float32).tiny)
    if recipe.weight_granularity == "per_tensor":
        floor = np.full_like(floor, floor.max())
    scale = np.maximum(scale, floor * (1 + 1e-6)).astype(np.float32)
    effective = in_scale * scale.astype(np.float64) / out_scale
    if effective.max() >= MAX_EFFECTIVE_SCALE:
        raise QuantizeError(
            f"effective scale {effective.max():.6g} is not below 2**8 (input scale {in_scale:.6g}, output scale {out_scale:.6g})",
            fix="widen the output's range: check that the calibration data exercises this node",
        )
    shape = [1] * w.ndim
    shape[axis] = -1
    wide = scale.astype(np.float64)
    codes = np.clip(round_half_even(w.astype(np.float64) / wide.reshape(shape)), -code_max, code_max).astype(np.int8)
    bias = round_half_even(b.astype(np.float64) / (in_scale * wide)).astype(np.int32)
    return WeightCodes(codes, scale, bias)


def constant_params(value: np.ndarray, bits: int = 8) -> Params:
    """Parameters of a constant operand: symmetric, so that single values are exact to float32."""
    top = float(np.abs(value).max()) if value.size else 0.0
    limit = CODE_BOUNDS[f"int{bits}"][1]
    return Params(float(np.float32(top / limit)) if top > 0 else 1.0, 0, bits)


@dataclass(frozen=True)
class Quantized:
    """graph: integer. narrow: nodes that stay at 8 bits although the recipe asks for 16."""

    graph: Graph
    narrow: tuple[Node, ...]


def apply(graph: Graph, stats: Stats, recipe: Recipe) -> Quantized:
    """The integer graph of a legalized float ``graph``; node names are kept.

    Raises: CalibrationError (an activation that is constant zero), QuantizeError (no integer form).
    """
    graph, pins = absorb_clamps(graph)
    plan = solve(graph, stats, pins, recipe)
    b = GraphBuilder(graph.name, graph.metadata)
    if recipe.float_ops != "auto":
        b.metadata[FLOAT_OPS] = recipe.float_ops
    names: dict[str, str] = {}  # float tensor -> integer tensor

    def quantized(t: str, p: Params) -> TensorType:
        return TensorType(graph.tensors[t].shape, p.dtype, p.quantization())

    for t in graph.inputs:
        if t not in plan.params:
            names[t] = b.input(t, graph.tensors[t])
        elif recipe.io_dtype == "int8":
            names[t] = b.input(t, quantized(t, plan.params[t]))
        else:
            b.input(t, TensorType(graph.tensors[t].shape))
            (names[t],) = b.add("quantize", (t,), NoAttrs(), name=f"{t}:quantize", out_types=(quantized(t, plan.params[t]),))

    float_out = recipe.io_dtype == "float32"
    taken = {t for t in graph.outputs if t in (plan.params if float_out else plan.outputs)}
    codes_of: Codes = {}
    moved: dict[tuple[str, Params], str] = {}

    def brought_to(t: str, p: Params, node: Node) -> str:
        if (t, p) not in moved:
            name = f"{t}:{p.dtype}"
            (moved[t, p],) = b.add("requantize", (names[t],), NoAttrs(), name=name, location=node.location, out_types=(quantized(t, p),))
        return moved[t, p]

    for node in graph.nodes:
        with locate(node):
            inputs = []
            for i, t in enumerate(node.inputs):
                p = plan.requantize.get((node.name, i))
                inputs.append(t if t in graph.constants else names[t] if p is None else brought_to(t, p, node))
            outputs = [f"{t}:{plan.params[t].dtype}" if t in taken else t for t in node.outputs]
            attrs = node.attrs
            if node.op in WEIGHT_AXIS:
                inputs[1:] = _weighted_constants(b, node, graph, plan, recipe, codes_of)
            elif node.op == "layer_norm":
                inputs[1:], attrs = _norm_constants(b, node, graph, plan, stats)
            else:
                for i, t in enumerate(inputs):
                    if t in graph.constants:
                        inputs[i] = _operand(b, i, graph, node, plan, codes_of)
            out_types = tuple(quantized(t, plan.params[t]) if t in plan.params else graph.tensors[t] for t in node.outputs)
            b.add(node.op, inputs, attrs, name=node.name, location=node.location, out_types=out_types, outputs=outputs)
            names.update(zip(node.outputs, outputs, strict=True))

    for t in graph.outputs:
        if t in graph.inputs:
            raise QuantizeError(f"output '{t}' is an input of the network", fix="drop it from the outputs")
        if t in taken:
            op = "dequantize" if float_out else "requantize"
            type = TensorType(graph.tensors[t].shape) if float_out else quantized(t, plan.outputs[t])
            b.add(op, (names[t],), NoAttrs(), name=f"{t}:{op}", outputs=(t,), out_types=(type,))
            b.outputs.append(t)
        else:
            b.outputs.append(names[t])
    return Quantized(b.freeze(), plan.narrow)


def _weighted_constants(b: GraphBuilder, node: Node, graph: Graph, plan: Plan, recipe: Recipe, codes_of: Codes) -> list[str]:
    """Add a weighted node's integer weights and bias; equal codes are stored once."""
    axis = WEIGHT_AXIS[node.op]
    _, wt, bt = node.inputs
    r = recipe.for_node(node.location.module_path, node.name)
    in_scale = plan.reads(node, 0).scale
    out_scale = plan.params[node.outputs[0]].scale
    q = quantize_weights(graph.constants[wt], graph.constants[bt], axis, in_scale, out_scale, r)
    dtype = "int4" if r.weight_bits == 4 and r.weight_storage == "packed" else "int8"
    w_type = TensorType(q.codes.shape, dtype, Quantization.per_channel(q.scale, axis))
    key = (wt, w_type)
    if key not in codes_of:
        codes_of[key] = b.constant(wt, q.codes, w_type)
    b_scale = (np.float32(in_scale) * q.scale).astype(np.float32)
    b_type = TensorType(q.bias.shape, "int32", Quantization.per_channel(b_scale, 0))
    return [codes_of[key], b.constant(bt if bt not in b.tensors else f"{node.name}.bias", q.bias, b_type)]


def _norm_constants(b: GraphBuilder, node: Node, graph: Graph, plan: Plan, stats: Stats) -> tuple[list[str], LayerNormAttrs]:
    """Add a layer_norm's integer gamma and beta; its attributes with what its variances need."""
    x, g, t = node.inputs
    gamma, beta = graph.constants[g], graph.constants[t]
    codes = norm_codes(gamma, beta)
    scale, (least, most) = plan.reads(node, 0).scale, stats.variances[x]
    attrs = replace(node.attrs, shift=variance_shift(scale, most), passes=variance_passes(scale, least, node.attrs.eps))
    return declare_norm(b, (g, t), codes), attrs


def _operand(b: GraphBuilder, index: int, graph: Graph, node: Node, plan: Plan, codes_of: Codes) -> str:
    """Add a constant operand of a node without weights."""
    t = node.inputs[index]
    value = graph.constants[t]
    kind = OPS[node.op].quant.kind
    out = plan.params[node.outputs[0]]
    if kind == "mask" and index == 1:
        p = MASK_PARAMS
    elif kind in ("same", "lookup", "mask"):
        p = out
    else:
        p = constant_params(value, 16 if node.op in ALWAYS_WIDE else out.bits)  # gains and wide operands
    key = (t, p)
    if key not in codes_of:
        codes = p.codes(value)
        codes_of[key] = b.constant(t, codes, TensorType(codes.shape, p.dtype, p.quantization()))
    return codes_of[key]
