"""Convolutions, channels-last. Weights OHWI; depthwise 1HWC with C = input channels * multiplier.

(1)  acc[n,y,x,o] = b[o] + sum_{ky,kx,i} (x[n, y*sy + ky*dy - top, x*sx + kx*dx - left, i] - z_in) * w[o,ky,kx,i]
(2)  out = clamp(z_out + requantize(acc, s_in * s_w[o] / s_out))
Padding stands for real 0, so it adds nothing to (1).
"""

from __future__ import annotations

from dataclasses import dataclass

from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops import kernels, weighted
from qwtv2_edge.ops.spec import OpSpec, QuantRule, Types, activate, need

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Conv2DAttrs:
    """stride, dilation: (y, x). padding: ((top, bottom), (left, right)) explicit. groups divides both channel counts."""

    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1
    activation: str = "none"


@dataclass(frozen=True, slots=True)
class DepthwiseAttrs:
    """As Conv2DAttrs; output channel c reads input channel c // multiplier."""

    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    activation: str = "none"


@dataclass(frozen=True, slots=True)
class TransposeConvAttrs:
    """crop: ((top, bottom), (left, right)) taken off the full scatter output; bottom and right may be negative
    (PyTorch's output_padding), which extends the output by positions that hold the bias alone or late taps."""

    stride: Pair = (1, 1)
    crop: tuple[Pair, Pair] = ((0, 0), (0, 0))
    activation: str = "none"


def out_size(size: int, kernel: int, stride: int, pad: Pair, dilation: int) -> int:
    return (size + pad[0] + pad[1] - (kernel - 1) * dilation - 1) // stride + 1


def _conv_infer(types: Types, a: Conv2DAttrs) -> tuple[TensorType, ...]:
    x, w, b = types
    need(len(x.shape) == 4 and len(w.shape) == 4, f"conv2d takes rank 4, got {x.shape} and {w.shape}")
    c = x.shape[3]
    o, _, _, i = w.shape
    need(a.groups >= 1 and i * a.groups == c, f"{c} input channels do not match weights {w.shape} in {a.groups} groups")
    need(o % a.groups == 0, f"{o} output channels do not divide into {a.groups} groups")
    need(b.shape == (o,), f"bias of shape {b.shape}, expected ({o},)")
    return (_spatial(x, w.shape[1:3], o, a.stride, a.padding, a.dilation),)


def _spatial(x: TensorType, k: tuple[int, ...], channels: int, stride: Pair, padding, dilation: Pair) -> TensorType:
    h = out_size(x.shape[1], k[0], stride[0], padding[0], dilation[0])
    w = out_size(x.shape[2], k[1], stride[1], padding[1], dilation[1])
    need(h > 0 and w > 0, f"kernel {tuple(k)} does not fit input {x.shape} with padding {padding}")
    return TensorType((x.shape[0], h, w, channels), x.dtype)


def _depthwise_infer(types: Types, a: DepthwiseAttrs) -> tuple[TensorType, ...]:
    x, w, b = types
    need(len(x.shape) == 4 and len(w.shape) == 4, f"depthwise_conv2d takes rank 4, got {x.shape} and {w.shape}")
    need(w.shape[0] == 1 and w.shape[3] % x.shape[3] == 0, f"weights {w.shape} do not match input {x.shape}")
    need(b.shape == (w.shape[3],), f"bias of shape {b.shape}, expected ({w.shape[3]},)")
    return (_spatial(x, w.shape[1:3], w.shape[3], a.stride, a.padding, a.dilation),)


def _transpose_conv_infer(types: Types, a: TransposeConvAttrs) -> tuple[TensorType, ...]:
    x, w, b = types
    need(len(x.shape) == 4 and len(w.shape) == 4, f"transpose_conv2d takes rank 4, got {x.shape} and {w.shape}")
    need(w.shape[3] == x.shape[3], f"{x.shape[3]} input channels do not match weights {w.shape}")
    need(b.shape == (w.shape[0],), f"bias of shape {b.shape}, expected ({w.shape[0]},)")
    h = (x.shape[1] - 1) * a.stride[0] + w.shape[1] - sum(a.crop[0])
    wd = (x.shape[2] - 1) * a.stride[1] + w.shape[2] - sum(a.crop[1])
    need(h > 0 and wd > 0, f"crop {a.crop} leaves nothing of the output")
    return (TensorType((x.shape[0], h, wd, w.shape[0]), x.dtype),)


def _conv_reference(arrays, a: Conv2DAttrs):
    x, w, b = arrays
    return (activate(kernels.conv2d_float(x, w, b, a.stride, a.padding, a.dilation, a.groups), a.activation),)


def _depthwise_reference(arrays, a: DepthwiseAttrs):
    x, w, b = arrays
    return (activate(kernels.depthwise_float(x, w, b, a.stride, a.padding, a.dilation), a.activation),)


def _transpose_conv_reference(arrays, a: TransposeConvAttrs):
    x, w, b = arrays
    return (activate(kernels.transpose_conv_float(x, w, b, a.stride, a.crop), a.activation),)


WEIGHTED = QuantRule("weighted")

SPECS = (
    OpSpec("conv2d", Conv2DAttrs, _conv_infer, _conv_reference, weighted.conv2d_integer, WEIGHTED, data_inputs=1),
    OpSpec(
        "depthwise_conv2d",
        DepthwiseAttrs,
        _depthwise_infer,
        _depthwise_reference,
        weighted.depthwise_integer,
        WEIGHTED,
        data_inputs=1,
    ),
    OpSpec(
        "transpose_conv2d",
        TransposeConvAttrs,
        _transpose_conv_infer,
        _transpose_conv_reference,
        weighted.transpose_conv_integer,
        WEIGHTED,
        data_inputs=1,
    ),
)
