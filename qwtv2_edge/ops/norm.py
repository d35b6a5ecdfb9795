"""Normalisations over the last axis, and the scaling of channels that smoothing puts after one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops import sequence
from qwtv2_edge.ops.spec import NoAttrs, OpSpec, QuantRule, Types, need


@dataclass(frozen=True, slots=True)
class LayerNormAttrs:
    """y = (x - mean) / sqrt(var + eps) * gamma + beta. centre False (RMSNorm): neither mean nor centred variance.

    shift: how much finer than 2**15 squared input steps the integer meaning holds variances, in bits; passes: how often it
    normalises, 1 or 2; see ``sequence.LayerNormTable``.
    """

    eps: float = 1e-5
    centre: bool = True
    shift: int = 0
    passes: int = 1


@dataclass(frozen=True, slots=True)
class L2NormalizeAttrs:
    """y = x / max(|x|, eps) with |x| the Euclidean length."""

    eps: float = 1e-12


def _layer_norm_infer(types: Types, a: LayerNormAttrs) -> tuple[TensorType, ...]:
    x, gamma, beta = types
    need(len(x.shape) >= 2, f"layer_norm takes rank 2 or more, got {x.shape}")
    need(a.passes in (1, 2), f"layer_norm with {a.passes} passes", "use 1 or 2")
    need(gamma.shape == beta.shape == x.shape[-1:], f"gamma {gamma.shape} and beta {beta.shape} do not match the last axis of {x.shape}")
    return (TensorType(x.shape, x.dtype),)


def _layer_norm_reference(arrays, a: LayerNormAttrs):
    x, gamma, beta = arrays
    if a.centre:
        x = x - x.mean(-1, keepdims=True)
    scale = 1 / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(a.eps))
    return (x * scale * gamma + beta,)


def _channel_scale_infer(types: Types, a: NoAttrs) -> tuple[TensorType, ...]:
    x, gain = types
    need(gain.shape == x.shape[-1:], f"gains {gain.shape} do not match the last axis of {x.shape}")
    return (TensorType(x.shape, x.dtype),)


def _l2_reference(arrays, a: L2NormalizeAttrs):
    (x,) = arrays
    return (x / np.maximum(np.sqrt(np.square(x).sum(-1, keepdims=True)), np.float32(a.eps)),)


SPECS = (
    OpSpec(
        "layer_norm",
        LayerNormAttrs,
        _layer_norm_infer,
        _layer_norm_reference,
        sequence.layer_norm_integer,
        QuantRule("free"),
        data_inputs=1,
        batch=lambda a, types: len(types[0].shape) > 1,
    ),
    OpSpec(
        "channel_scale",
        NoAttrs,
        _channel_scale_infer,
        lambda arrays, a: (arrays[0] * arrays[1],),
        sequence.channel_scale_integer,
        QuantRule("free"),
        data_inputs=1,
        batch=lambda a, types: len(types[0].shape) > 1,
    ),
    OpSpec(
        "l2_normalize",
        L2NormalizeAttrs,
        lambda types, a: (TensorType(types[0].shape, types[0].dtype),),
        _l2_reference,
        sequence.l2_normalize_integer,
        QuantRule("fixed", 1.0 / 128, 0),
        batch=lambda a, types: len(types[0].shape) > 1,
    ),
)
