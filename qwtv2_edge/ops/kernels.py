"""Array kernels behind the op table: float meanings and exact integer meanings."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from qwtv2_edge.errors import GraphError

# ---------------------------------------------------------------- windows


def pad_spatial(x: np.ndarray, padding, value) -> np.ndarray:
    """Pad axes 1 and 2 of NHWC with ``value``; returns ``x`` itself when there is nothing to pad."""
    if padding == ((0, 0), (0, 0)):
        return x
    (top, bottom), (left, right) = padding
    n, h, w, c = x.shape
    out = np.full((n, h + top + bottom, w + left + right, c), value, x.dtype)
    out[:, top : top + h, left : left + w] = x
    return out


def windows(x: np.ndarray, kernel, stride, dilation=(1, 1)) -> np.ndarray:
    """Strided view (n, oh, ow, kh, kw, c) of the windows of a padded NHWC array. No copy."""
    n, h, w, c = x.shape
    kh, kw = kernel
    oh = (h - (kh - 1) * dilation[0] - 1) // stride[0] + 1
    ow = (w - (kw - 1) * dilation[1] - 1) // stride[1] + 1
    sn, sh, sw, sc = x.strides
    return np.lib.stride_tricks.as_strided(
        x,
        (n, oh, ow, kh, kw, c),
        (sn, sh * stride[0], sw * stride[1], sh * dilation[0], sw * dilation[1], sc),
        writeable=False,
    )


def taps(x: np.ndarray, kernel, stride, dilation=(1, 1)):
    """Yield (ky, kx, view (n, oh, ow, c)) for each kernel tap of a padded NHWC array."""
    h, w = x.shape[1:3]
    oh = (h - (kernel[0] - 1) * dilation[0] - 1) // stride[0] + 1
    ow = (w - (kernel[1] - 1) * dilation[1] - 1) // stride[1] + 1
    for ky in range(kernel[0]):
        for kx in range(kernel[1]):
            y0, x0 = ky * dilation[0], kx * dilation[1]
            yield ky, kx, x[:, y0 : y0 + (oh - 1) * stride[0] + 1 : stride[0], x0 : x0 + (ow - 1) * stride[1] + 1 : stride[1]]


# ---------------------------------------------------------------- float meanings


def conv2d_float(x, w, b, stride, padding, dilation, groups):
    """x NHWC, w OHWI (I = C / groups), b (O,): float32 NHWC."""
    x = pad_spatial(x, padding, x.dtype.type(0))
    o, kh, kw, i = w.shape
    if (kh, kw) == (1, 1):
        cols = x[:, :: stride[0], :: stride[1]][:, :, :, None, None]
    else:
        cols = windows(x, (kh, kw), stride, dilation)
    n, oh, ow = cols.shape[:3]
    outs = []
    for g in range(groups):
        part = cols[..., g * i : (g + 1) * i].reshape(n * oh * ow, kh * kw * i)
        wg = w[g * (o // groups) : (g + 1) * (o // groups)].reshape(o // groups, -1)
        outs.append(part @ wg.T)
    y = outs[0] if groups == 1 else np.concatenate(outs, 1)
    return (y + b).reshape(n, oh, ow, o)


def depthwise_float(x, w, b, stride, padding, dilation):
    """x NHWC, w 1HWC', b (C',): float32 NHWC'. Output channel c reads input channel c // multiplier."""
    x = pad_spatial(x, padding, x.dtype.type(0))
    multiplier = w.shape[3] // x.shape[3]
    y = None
    for ky, kx, view in taps(x, w.shape[1:3], stride, dilation):
        if multiplier > 1:
            view = np.repeat(view, multiplier, axis=3)
        term = view * w[0, ky, kx]
        y = term if y is None else np.add(y, term, out=y)
    return y + b


def scatter_transpose_conv(x, w, stride, crop, matmul):
    """The scatter form of a transposed convolution, without bias.

    x: (n, h, w, i). w: OHWI. matmul(x2d, w_tap (i, o)) -> (n*h*w, o) decides the arithmetic.
    """
    n, h, wd, i = x.shape
    o, kh, kw, _ = w.shape
    (top, bottom), (left, right) = crop
    full_h, full_w = (h - 1) * stride[0] + kh, (wd - 1) * stride[1] + kw
    flat = x.reshape(-1, i)
    out = None
    for ky in range(kh):
        for kx in range(kw):
            part = matmul(flat, w[:, ky, kx, :].T).reshape(n, h, wd, o)
            if out is None:
                out = np.zeros((n, full_h + max(0, -bottom), full_w + max(0, -right), o), part.dtype)
            out[:, ky : ky + (h - 1) * stride[0] + 1 : stride[0], kx : kx + (wd - 1) * stride[1] + 1 : stride[1]] += part
    return out[:, top : full_h - bottom, left : full_w - right]


def transpose_conv_float(x, w, b, stride, crop):
    """x NHWC, w OHWI, b (O,): float32 NHWC."""
    return scatter_transpose_conv(x, w, stride, crop, np.matmul) + b


def max_pool(x, kernel, stride, padding):
    """Max over the valid taps; any dtype."""
    low = -np.inf if x.dtype == np.float32 else np.iinfo(x.dtype).min
    x = pad_spatial(x, padding, low)
    y = None
    for _, _, view in taps(x, kernel, stride):
        y = view.copy() if y is None else np.maximum(y, view, out=y)
    return y


def valid_taps(shape, kernel, stride, padding) -> np.ndarray:
    """How many taps of each window lie inside the input: int32 (oh, ow)."""
    counts = []
    for size, k, s, (before, after) in zip(shape[1:3], kernel, stride, padding, strict=True):
        start = np.arange((size + before + after - k) // s + 1) * s - before
        counts.append(np.minimum(start + k, size) - np.maximum(start, 0))
    return np.multiply.outer(counts[0], counts[1]).astype(np.int32)


def window_sum(x, kernel, stride, padding, dtype):
    """Sum over the taps of each window, padding counted as 0."""
    x = pad_spatial(x, padding, x.dtype.type(0))
    y = None
    for _, _, view in taps(x, kernel, stride):
        y = view.astype(dtype) if y is None else np.add(y, view, out=y)
    return y


def avg_pool_float(x, kernel, stride, padding):
    """Average over the valid taps: float32."""
    n = valid_taps(x.shape, kernel, stride, padding).astype(np.float32)
    return window_sum(x, kernel, stride, padding, np.float32) / n[:, :, None]


def nearest_index(size_in: int, size_out: int, align_corners: bool, half_pixel: bool) -> np.ndarray:
    """Source index per output position, float32 coordinates as TFLite computes them.

    Source: LiteRT tflite/kernels/internal/reference/resize_nearest_neighbor.h :: GetNearestNeighbor
    """
    f = np.float32
    if align_corners and size_out > 1:
        scale = f(f(size_in - 1) / f(size_out - 1))
    else:
        scale = f(f(size_in) / f(size_out))
    offset = f(0.5) if half_pixel else f(0)
    position = (np.arange(size_out, dtype=f) + offset) * scale
    if align_corners:
        index = np.floor(position + f(0.5))
    else:
        index = np.floor(position)
    return np.clip(index.astype(np.int64), 0, size_in - 1)


def resize_nearest(x, size, align_corners, half_pixel):
    """Any dtype, NHWC."""
    y = nearest_index(x.shape[1], size[0], align_corners, half_pixel)
    z = nearest_index(x.shape[2], size[1], align_corners, half_pixel)
    return np.ascontiguousarray(x[:, y][:, :, z])


def bilinear_coordinates(size_in: int, size_out: int, align_corners: bool, half_pixel: bool):
    """(lower index, upper index, fraction) in float64, the ideal coordinates."""
    if align_corners and size_out > 1:
        position = np.arange(size_out) * ((size_in - 1) / (size_out - 1))
    elif half_pixel:
        position = (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
    else:
        position = np.arange(size_out) * (size_in / size_out)
    position = np.clip(position, 0, size_in - 1)
    low = np.floor(position).astype(np.int64)
    return low, np.minimum(low + 1, size_in - 1), position - low


def resize_bilinear_float(x, size, align_corners, half_pixel):
    """float32 NHWC."""
    y0, y1, fy = bilinear_coordinates(x.shape[1], size[0], align_corners, half_pixel)
    x0, x1, fx = bilinear_coordinates(x.shape[2], size[1], align_corners, half_pixel)
    fy = fy.astype(np.float32)[:, None, None]
    fx = fx.astype(np.float32)[:, None]
    rows = x[:, y0] * (1 - fy) + x[:, y1] * fy
    return rows[:, :, x0] * (1 - fx) + rows[:, :, x1] * fx


# ---------------------------------------------------------------- the error function

#: half width and steps per unit of the grid on which float GELU looks the normal distribution up; linear between
#: grid points it is right to 2e-8
_PHI_REACH, _PHI_STEPS = 8, 1024


def erfc(x: np.ndarray) -> np.ndarray:
    """float64, one entry at a time: for tables."""
    return np.asarray([math.erfc(v) for v in np.asarray(x, np.float64).ravel()]).reshape(np.shape(x))


@cache
def _phi_grid() -> tuple[np.ndarray, np.ndarray]:
    points = np.arange(-_PHI_REACH * _PHI_STEPS, _PHI_REACH * _PHI_STEPS + 2) / _PHI_STEPS
    values = erfc(-points / math.sqrt(2)) / 2
    return values.astype(np.float32), np.diff(values, append=values[-1]).astype(np.float32)


def gelu(x: np.ndarray, approximate: bool) -> np.ndarray:
    """float32 GELU, exact (error function) or in the tanh form."""
    if approximate:
        inner = np.float32(0.7978845608028654) * (x + np.float32(0.044715) * (x * x * x))
        return np.float32(0.5) * x * (1 + np.tanh(inner))
    values, steps = _phi_grid()
    position = (np.clip(x, -_PHI_REACH, _PHI_REACH) + np.float32(_PHI_REACH)) * np.float32(_PHI_STEPS)
    index = position.astype(np.int32)
    return x * (values[index] + (position - index) * steps[index])


# ---------------------------------------------------------------- exact integer meanings


def no_integer_form(arrays, attrs, in_types, out_types, numerics):
    """For ops that quantization rewrites before a graph becomes integer."""
    raise GraphError("this op has no integer form", fix="quantize the graph with qwtv2_edge.quantize")
