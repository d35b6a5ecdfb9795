"""CWAC into ordinary constants: weight scale, bias and, for a negative gain, the sign of the weights.

With real = s_in s_w[c] (sum (x - z_in) w + b_q) and the wanted a real + b:

(1) s_w'[c] = |a| s_w[c];  w' = sign(a) w;  b_q' = sign(a) b_q + round(b / (s_in s_w'[c]))

Input and output quantization, op list, shapes and weight bytes stay (but for the sign of a negative gain).

A layer_norm takes an affine of its output into gamma and beta:

(2) gamma' = a gamma;  beta' = a beta + b
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qwtv2_edge.errors import CompensationError, locate
from qwtv2_edge.fixedpoint import quantize_multiplier, round_half_even
from qwtv2_edge.ir.graph import Graph, GraphBuilder, Node
from qwtv2_edge.ir.types import WEIGHT_AXIS, Quantization, TensorType
from qwtv2_edge.ops.sequence import normal_scale

#: gains smaller than this in size are treated as 0: the channel becomes a constant
ZERO_GAIN = 2.0**-20
#: limits that every runtime takes: XNNPACK 2**-32 <= effective scale < 2**8, bias below 2**30
MIN_EFFECTIVE_SCALE, MAX_EFFECTIVE_SCALE = 2.0**-31, 2.0**8
MAX_BIAS = 2**30
MAX_ACCUMULATOR = 2**31 - 1
#: smallest scale of a layer_norm's gamma
MIN_NORM_SCALE = 1e-12


@dataclass(frozen=True)
class Affine:
    """y = gain * z + offset, per output channel: float64, (channels,); offset in real units."""

    gain: np.ndarray
    offset: np.ndarray


@dataclass(frozen=True)
class NormCodes:
    """Integer gamma (int16, with ``scale``) and beta (int32, at ``scale`` times ``normal_scale``) of a layer_norm."""

    gamma: np.ndarray
    beta: np.ndarray
    scale: float


def norm_codes(gamma: np.ndarray, beta: np.ndarray) -> NormCodes:
    """Codes of real gamma and beta (channels,); the scale also keeps beta below 2**30."""
    unit = normal_scale(len(gamma))
    top = max(float(np.abs(gamma).max()) / 32767, float(np.abs(beta).max()) / (unit * 2**29), MIN_NORM_SCALE)
    scale = float(np.float32(top * (1 + 1e-6)))
    return NormCodes(
        round_half_even(gamma / np.float64(scale)).astype(np.int16),
        round_half_even(beta / (np.float64(scale) * unit)).astype(np.int32),
        scale,
    )


def declare_norm(b: GraphBuilder, hints: Sequence[str], codes: NormCodes) -> list[str]:
    """Add the constants of a layer_norm to ``b``; their names."""
    unit = codes.scale * normal_scale(len(codes.gamma))
    gamma = TensorType(codes.gamma.shape, "int16", Quantization.per_tensor(codes.scale, 0))
    beta = TensorType(codes.beta.shape, "int32", Quantization.per_tensor(unit, 0))
    return [b.constant(hints[0], codes.gamma, gamma), b.constant(hints[1], codes.beta, beta)]


def folded_norm(graph: Graph, node: Node, affine: Affine) -> NormCodes:
    """Equation (2). Raises: CompensationError: the correction is not finite."""
    _, g, t = node.inputs
    scale = np.float64(graph.tensors[g].scale)
    gamma = graph.constants[g] * scale
    beta = graph.constants[t] * (scale * normal_scale(len(gamma)))
    gain, offset = np.asarray(affine.gain, np.float64), np.asarray(affine.offset, np.float64)
    if not (np.isfinite(gain).all() and np.isfinite(offset).all()):
        raise CompensationError("the correction is not finite")
    return norm_codes(gain * gamma, gain * beta + offset)


def folded_constants(graph: Graph, node: Node, affine: Affine) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Equation (1): (codes int8, scale float32 (channels,), bias int32 (channels,)).

    Raises: CompensationError: the bias, the accumulator or the effective scale leaves its legal range.
    """
    x, w, _ = (graph.tensors[t] for t in node.inputs)
    codes, bias = graph.constants[node.inputs[1]], graph.constants[node.inputs[2]].astype(np.int64)
    axis = WEIGHT_AXIS[node.op]
    assert w.quantization is not None
    scale = np.broadcast_to(w.quantization.scale_array, bias.shape).astype(np.float64)
    gain, offset = np.asarray(affine.gain, np.float64), np.asarray(affine.offset, np.float64)
    if not (np.isfinite(gain).all() and np.isfinite(offset).all()):
        raise CompensationError("the correction is not finite")
    zero = np.abs(gain) < ZERO_GAIN
    sign = np.where(zero, 0, np.sign(gain)).astype(np.int64)
    new_scale = np.where(zero, scale, np.abs(gain) * scale).astype(np.float32)
    step = x.scale * new_scale.astype(np.float64)
    added = offset / step
    if np.abs(added).max(initial=0) >= MAX_BIAS:
        c = int(np.abs(added).argmax())
        raise CompensationError(f"offset {offset[c]:.6g} of channel {c} needs a bias of {added[c]:.6g}, the limit is 2**30")
    new_bias = sign * bias + round_half_even(added).astype(np.int64)
    shape = [1] * codes.ndim
    shape[axis] = -1
    new_codes = codes
    if (sign != 1).any():
        new_codes = (codes.astype(np.int64) * sign.reshape(shape)).astype(np.int64)
        if new_codes.max(initial=0) > 127:
            raise CompensationError("a weight of -128 can't change its sign", fix="keep weights within [-127, 127]")
        new_codes = new_codes.astype(np.int8)
    check_ranges(graph, node, new_codes, new_scale, new_bias)
    return new_codes, new_scale, new_bias.astype(np.int32)


def check_ranges(graph: Graph, node: Node, codes: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> None:
    """Bias below 2**30, |sum| + |bias| below 2**31 with the real weights, effective scale in [2**-31, 2**8),
    and no overflow of the left shift that an effective scale of 1 or more needs.

    Raises: CompensationError with the numbers.
    """
    x, out = graph.tensors[node.inputs[0]], graph.tensors[node.outputs[0]]
    rows = np.abs(np.moveaxis(codes, WEIGHT_AXIS[node.op], 0).reshape(len(bias), -1).astype(np.int64)).sum(1)
    total = rows * x.reach + np.abs(bias)
    if np.abs(bias).max(initial=0) >= MAX_BIAS or total.max(initial=0) > MAX_ACCUMULATOR:
        raise CompensationError(f"bias {int(np.abs(bias).max())} or accumulator {int(total.max())} leaves int32")
    effective = x.scale * scale.astype(np.float64) / out.scale
    if effective.min() < MIN_EFFECTIVE_SCALE or effective.max() >= MAX_EFFECTIVE_SCALE:
        raise CompensationError(f"effective scale range [{effective.min():.6g}, {effective.max():.6g}] leaves [2**-31, 2**8)")
    left = np.maximum(quantize_multiplier(effective)[1], 0)
    if (total.astype(np.float64) * np.exp2(left)).max(initial=0) > MAX_ACCUMULATOR:
        raise CompensationError(f"accumulator {int(total.max())} overflows int32 when shifted left by {int(left.max())}")


def fold_node(b: GraphBuilder, graph: Graph, node: Node, affine: Affine) -> Node:
    """Declare the folded constants in ``b`` and return the node that uses them."""
    if node.op == "layer_norm":
        with locate(node):
            return replace(node, inputs=(node.inputs[0], *declare_norm(b, node.inputs[1:], folded_norm(graph, node, affine))))
    with locate(node):
        codes, scale, bias = folded_constants(graph, node, affine)
    w, bt = node.inputs[1:]
    w_type, b_type = graph.tensors[w], graph.tensors[bt]
    x = graph.tensors[node.inputs[0]]
    b_scale = (np.float32(x.scale) * scale).astype(np.float32)
    new_w_type = replace(w_type, quantization=Quantization.per_channel(scale, WEIGHT_AXIS[node.op]))
    new_b_type = replace(b_type, quantization=Quantization.per_channel(b_scale, 0))
    new_w = b.constant(f"{w}:{node.name}" if w in b.tensors else w, codes, new_w_type)
    new_b = b.constant(f"{bt}:{node.name}" if bt in b.tensors else bt, bias, new_b_type)
    return replace(node, inputs=(node.inputs[0], new_w, new_b))


def fold(graph: Graph, compensation: dict[str, Affine]) -> Graph:
    """The integer ``graph`` with every affine of ``compensation`` (by node name) folded in.

    Raises: CompensationError naming the node, where an affine can't be folded exactly.
    """
    unknown = set(compensation) - {n.name for n in graph.nodes}
    if unknown:
        raise CompensationError(f"no node is called {', '.join(sorted(unknown))}")
    b = GraphBuilder.copy_of(graph, nodes=False)
    for t in {t for n in graph.nodes if n.name in compensation for t in n.inputs[1:]}:
        # freed names are taken again by the folded constants, unless another node still reads the old ones
        if all(n.name in compensation for n in graph.consumers()[t]):
            del b.tensors[t], b.constants[t]
    for node in graph.nodes:
        b.append(fold_node(b, graph, node, compensation[node.name]) if node.name in compensation else node)
    return b.freeze()
