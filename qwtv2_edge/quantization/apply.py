"""Float graph + statistics -> integer graph.

Scales come from a constraint solver: tensors that an op forces to share one scale and zero point (``QuantRule``
"same") form a class; a class takes the union of its members' ranges, or the values that a "fixed" rule or an
absorbed clamp prescribes. Where those disagree a requantize node separates them.

(1) s = (high - low) / 255, z = round(-128 - low / s): per-tensor affine activations
(2) w_q = round(w / s_w), s_w per output channel, zero point 0
(3) b_q = round(b / (s_in * s_w))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from qwtv2_edge.compensation.fold import MAX_BIAS, MAX_EFFECTIVE_SCALE, MIN_EFFECTIVE_SCALE
from qwtv2_edge.errors import CalibrationError, QuantizeError, locate
from qwtv2_edge.fixedpoint import round_half_even
from qwtv2_edge.ir.graph import Graph, GraphBuilder, Node
from qwtv2_edge.ir.types import WEIGHT_AXIS, Quantization, TensorType
from qwtv2_edge.ops import OPS
from qwtv2_edge.ops.spec import NoAttrs
from qwtv2_edge.quantization.calibrate import Stats
from qwtv2_edge.quantization.observers import activation_range, weight_scale
from qwtv2_edge.quantization.recipe import Recipe

#: smallest activation scale: TFLite turns the 6 of a relu6 into a code, which must fit int32
MIN_SCALE = 1e-8

#: (float constant, how it was quantized) -> integer constant, so that equal codes are stored once
Codes = dict[tuple[str, object], str]


@dataclass(frozen=True)
class Params:
    """Quantization of one class of activation tensors."""

    scale: float
    zero_point: int

    def quantization(self) -> Quantization:
        return Quantization.per_tensor(self.scale, self.zero_point)


def params_for(low: float, high: float) -> Params:
    """Equation (1) for a range that holds 0; scale is float32-exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max((high - low) / 255, MIN_SCALE)))
    return Params(scale, int(np.clip(round_half_even(np.asarray(-128 - low / scale)), -128, 127)))


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


def solve(graph: Graph, stats: Stats, pins: Mapping[str, tuple[float, float]], recipe: Recipe) -> Plan:
    """Assign parameters to every activation tensor of the float ``graph``."""
    ranges = _ranges(graph, stats, recipe)
    prescribed: dict[str, Params] = {}
    for node in graph.nodes:
        rule = OPS[node.op].quant
        if rule.kind == "fixed":
            prescribed.update({t: Params(float(np.float32(rule.scale)), rule.zero_point) for t in node.outputs})
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
        if OPS[node.op].quant.kind == "same":
            members = [t for t in (*node.inputs, *node.outputs) if t in ranges]
            for t in members[1:]:
                parent[find(t)] = find(members[0])

    classes: dict[str, list[str]] = {}
    for t in ranges:
        classes.setdefault(find(t), []).append(t)

    params: dict[str, Params] = {}
    separated: set[str] = set()
    for members in classes.values():
        fixed = {t: prescribed[t] for t in members if t in prescribed}
        low = min(ranges[t][0] for t in members)
        high = max(ranges[t][1] for t in members)
        if fixed and len(set(fixed.values())) == 1:
            p = next(iter(fixed.values()))
            codes_low, codes_high = (-128 - p.zero_point) * p.scale, (127 - p.zero_point) * p.scale
            if codes_low - p.scale <= low and high <= codes_high + p.scale:
                params.update(dict.fromkeys(members, p))
                continue
        if low == high == 0:
            _constant_zero(graph, members[0])
        p = params_for(low, high)
        for t in members:
            params[t] = p
        separated.update(fixed)

    # a separated tensor is never made by a "same" op, so its readers alone need another scale
    requantize = {
        (node.name, i): params[t]
        for node in graph.nodes
        if OPS[node.op].quant.kind == "same"
        for i, t in enumerate(node.inputs)
        if t in separated
    }
    params.update({t: prescribed[t] for t in separated})
    return Plan(params, requantize)


def _ranges(graph: Graph, stats: Stats, recipe: Recipe) -> dict[str, tuple[float, float]]:
    """The range of every activation tensor: the observer's choice by the recipe of the node that makes it."""
    out = {t: (stats.observers[t].low, stats.observers[t].high) for t in graph.inputs}
    for node in graph.nodes:
        r = recipe.for_node(node.location.module_path, node.name)
        for t in node.outputs:
            out[t] = activation_range(stats.observers[t], r.observer, r.percentile)
    return out


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
    """Equations (2) and (3), with scales raised where a tiny one would overflow the bias or underflow the multiplier.

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


def constant_params(value: np.ndarray) -> tuple[np.ndarray, Params]:
    """Codes and parameters of a constant operand: symmetric, so that single values are exact to float32."""
    top = float(np.abs(value).max()) if value.size else 0.0
    p = Params(float(np.float32(top / 127)) if top > 0 else 1.0, 0)
    codes = np.clip(round_half_even(value.astype(np.float64) / p.scale), -127, 127).astype(np.int8)
    return codes, p


def apply(graph: Graph, stats: Stats, recipe: Recipe) -> Graph:
    """The integer graph of a legalized float ``graph``; node names are kept.

    Raises: CalibrationError (an activation that is constant zero), QuantizeError (no integer form).
    """
    graph, pins = absorb_clamps(graph)
    plan = solve(graph, stats, pins, recipe)
    b = GraphBuilder(graph.name, graph.metadata)
    names: dict[str, str] = {}  # float tensor -> integer tensor

    def int8(t: str, p: Params) -> TensorType:
        return TensorType(graph.tensors[t].shape, "int8", p.quantization())

    for t in graph.inputs:
        if recipe.io_dtype == "int8":
            names[t] = b.input(t, int8(t, plan.params[t]))
        else:
            b.input(t, TensorType(graph.tensors[t].shape))
            (names[t],) = b.add("quantize", (t,), NoAttrs(), name=f"{t}:quantize", out_types=(int8(t, plan.params[t]),))

    float_out = recipe.io_dtype == "float32"
    taken = set(graph.outputs) if float_out else set()
    codes_of: Codes = {}

    for node in graph.nodes:
        with locate(node):
            inputs = []
            for i, t in enumerate(node.inputs):
                if t in graph.constants:
                    inputs.append(t)
                elif (node.name, i) in plan.requantize:
                    p = plan.requantize[node.name, i]
                    (moved,) = b.add(
                        "requantize", (names[t],), NoAttrs(), name=f"{node.name}:input{i}", location=node.location, out_types=(int8(t, p),)
                    )
                    inputs.append(moved)
                else:
                    inputs.append(names[t])
            outputs = [f"{t}:int8" if t in taken else t for t in node.outputs]
            if node.op in WEIGHT_AXIS:
                inputs[1:] = _weighted_constants(b, node, graph, plan, recipe, codes_of)
            else:
                for i, t in enumerate(inputs):
                    if t in graph.constants:
                        inputs[i] = _operand(b, t, graph, node, plan, codes_of)
            out_types = tuple(int8(t, plan.params[t]) for t in node.outputs)
            b.add(node.op, inputs, node.attrs, name=node.name, location=node.location, out_types=out_types, outputs=outputs)
            names.update(zip(node.outputs, outputs, strict=True))

    for t in graph.outputs:
        if float_out:
            if t in graph.inputs:
                raise QuantizeError(f"output '{t}' is an input of the network", fix="drop it from the outputs")
            b.add(
                "dequantize", (names[t],), NoAttrs(), name=f"{t}:dequantize", outputs=(t,), out_types=(TensorType(graph.tensors[t].shape),)
            )
            b.outputs.append(t)
        else:
            b.outputs.append(names[t])
    return b.freeze()


def _weighted_constants(b: GraphBuilder, node: Node, graph: Graph, plan: Plan, recipe: Recipe, codes_of: Codes) -> list[str]:
    """Add a weighted node's integer weights and bias; equal codes are stored once."""
    axis = WEIGHT_AXIS[node.op]
    x, wt, bt = node.inputs
    r = recipe.for_node(node.location.module_path, node.name)
    in_scale = plan.requantize[node.name, 0].scale if (node.name, 0) in plan.requantize else plan.params[x].scale
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


def _operand(b: GraphBuilder, t: str, graph: Graph, node: Node, plan: Plan, codes_of: Codes) -> str:
    """Add a constant operand of an element-wise or concatenating node."""
    value = graph.constants[t]
    if OPS[node.op].quant.kind == "same":
        p = plan.params[node.outputs[0]]
        codes = np.clip(round_half_even(value.astype(np.float64) / p.scale) + p.zero_point, -128, 127).astype(np.int8)
    else:
        codes, p = constant_params(value)
    key = (t, p)
    if key not in codes_of:
        codes_of[key] = b.constant(t, codes, TensorType(codes.shape, "int8", p.quantization()))
    return codes_of[key]
