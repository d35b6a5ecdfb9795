"""Unary activations, element by element."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops import integers, kernels
from qwtv2_edge.ops.spec import NoAttrs, OpSpec, QuantRule, Types, need


@dataclass(frozen=True, slots=True)
class AlphaAttrs:
    """alpha: slope (leaky_relu) or scale (elu) below zero."""

    alpha: float = 1.0


@dataclass(frozen=True, slots=True)
class ClampAttrs:
    """Inclusive real bounds; either may be infinite."""

    min: float
    max: float


@dataclass(frozen=True, slots=True)
class GeluAttrs:
    """approximate: the tanh form; else the exact one, with the error function."""

    approximate: bool = False


def _same_shape(types: Types, a) -> tuple[TensorType, ...]:
    return (TensorType(types[0].shape, types[0].dtype),)


def _prelu_infer(types: Types, a) -> tuple[TensorType, ...]:
    x, alpha = types
    need(alpha.shape == x.shape[-1:], f"prelu slopes {alpha.shape} do not match the last axis of {x.shape}")
    return (TensorType(x.shape, x.dtype),)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """float32 logistic function, computed in float64."""
    return (1.0 / (1.0 + np.exp(-x.astype(np.float64)))).astype(np.float32)


def _unary(f):
    return lambda arrays, a: (np.asarray(f(arrays[0], a), np.float32),)


def _spec(name, f, integer, attrs=NoAttrs, quant=QuantRule("free")) -> OpSpec:
    return OpSpec(name, attrs, _same_shape, _unary(f), integer, quant)


SPECS = (
    _spec("relu", lambda x, a: np.maximum(x, 0), integers.relu_integer, quant=QuantRule("same")),
    _spec("relu6", lambda x, a: np.clip(x, 0, 6), integers.relu6_integer, quant=QuantRule("same")),
    _spec("clamp", lambda x, a: np.clip(x, a.min, a.max), integers.clamp_integer, ClampAttrs, QuantRule("same")),
    _spec("logistic", lambda x, a: sigmoid(x), integers.logistic_integer, quant=QuantRule("fixed", 1.0 / 256, -128)),
    _spec("tanh", lambda x, a: np.tanh(x), integers.tanh_integer, quant=QuantRule("fixed", 1.0 / 128, 0)),
    _spec("hard_swish", lambda x, a: x * np.clip(x + 3, 0, 6) / 6, integers.hard_swish_integer),
    # hard_sigmoid and silu exist in float graphs; quantization.legalize rewrites what a target lacks
    _spec("hard_sigmoid", lambda x, a: np.clip(x / 6 + np.float32(0.5), 0, 1), kernels.no_integer_form),
    _spec("silu", lambda x, a: x * sigmoid(x), kernels.no_integer_form),
    _spec("gelu", lambda x, a: kernels.gelu(x, a.approximate), integers.gelu_integer, GeluAttrs),
    _spec("elu", lambda x, a: np.where(x > 0, x, a.alpha * np.expm1(np.minimum(x, 0))), integers.elu_integer, AlphaAttrs),
    _spec("leaky_relu", lambda x, a: np.where(x > 0, x, x * np.float32(a.alpha)), integers.leaky_relu_integer, AlphaAttrs),
    OpSpec(
        "prelu",
        NoAttrs,
        _prelu_infer,
        lambda arrays, a: (np.where(arrays[0] > 0, arrays[0], arrays[0] * arrays[1]).astype(np.float32),),
        integers.prelu_integer,
        QuantRule("free"),
        data_inputs=1,
        batch=lambda a, types: len(types[0].shape) > 1,
    ),
)
