"""Exact integer convolutions and matrix products.

(1)  acc = b + sum (x - z) * w = [b - z * sum(w)] + sum x * w      with padding filled by z
(2)  |any partial sum of x * w| <= 128 * sum|w|

Where (2) stays below 2**24 the products run in float32 BLAS, exactly: every partial sum is an integer that
float32 holds. Longer sums are cut along K into pieces that meet the bound and added in float64.
The bracket of (1) is kept apart and added by the requantizer.

What depends on the weights alone is prepared once per node and cached for as long as the weights live.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from qwtv2_edge import fixedpoint as fp
from qwtv2_edge.errors import GraphError, QuantizeError
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.numerics import Numerics, packed_key, wide_key
from qwtv2_edge.ops import kernels
from qwtv2_edge.ops.spec import ACTIVATIONS, Arrays, Types

F = np.float32
I = np.int64  # noqa: E741

#: integers up to here are exact in float32
FLOAT32_EXACT = 2**24

#: float32 elements of one block of unfolded input, and of one block of accumulators
BLOCK_COLUMNS = 1 << 18
BLOCK_ACCUMULATORS = 1 << 17
#: accumulators of one block of depthwise output lines: these pass through the core once per tap
BLOCK_LINES = 1 << 15

# ---------------------------------------------------------------- scratch memory and prepared weights

_local = threading.local()


def scratch(role: str, size: int, dtype) -> np.ndarray:
    """A 1-D work array of at least ``size`` elements, reused by later calls of this thread with the same role."""
    key = (role, np.dtype(dtype).char)
    pool = _local.__dict__.setdefault("pool", {})
    array = pool.get(key)
    if array is None or array.size < size:
        array = pool[key] = np.empty(size, dtype)
    return array[:size]


#: entries kept; many scales tried on the same weights would otherwise pile up
PREPARED_LIMIT = 2048

_prepared: dict[tuple, tuple[tuple[weakref.ref, ...], tuple, Any]] = {}


def prepared(kind: str, arrays: Sequence[np.ndarray], types: Sequence[TensorType], extra: tuple, make: Callable[[], Any]) -> Any:
    """``make()``, remembered for as long as all of ``arrays`` live. Arrays that may change are never remembered."""
    if any(a.flags.writeable for a in arrays):
        return make()
    key = (kind, tuple(id(a) for a in arrays), tuple(id(t) for t in types), extra)
    entry = _prepared.get(key)
    if entry is not None and all(r() is a for r, a in zip(entry[0], arrays, strict=True)):
        return entry[2]
    value = make()
    if len(_prepared) >= PREPARED_LIMIT:
        _prepared.clear()
    forget = partial(_forget, _prepared.pop, key)
    references = tuple(weakref.ref(a, forget) for a in arrays)
    _prepared[key] = (references, tuple(types), value)  # the types are held, so that their ids stay theirs
    return value


def _forget(pop: Callable[..., Any], key: tuple, reference: weakref.ref) -> None:
    """Called when an array dies. ``pop`` is bound early, since at exit the module's names go first."""
    pop(key, None)


# ---------------------------------------------------------------- matrix product plans


@dataclass(frozen=True, slots=True)
class Matrix:
    """Weights of one group as float32 (K, O), cut along K so that each piece is exact.

    Attributes:
        pieces: (start, stop, contiguous float32 (stop - start, O)).
        bound: 128 * max over outputs of sum|w|.
    """

    pieces: tuple[tuple[int, int, np.ndarray], ...]
    bound: int

    @staticmethod
    def of(weights: np.ndarray) -> Matrix:
        """weights: int8 (O, K)."""
        size = np.abs(weights.astype(np.int32))
        bound = 128 * int(size.sum(1, dtype=I).max(initial=0))
        columns = np.ascontiguousarray(weights.T, F)
        if bound < FLOAT32_EXACT:
            return Matrix(((0, len(columns), columns),), bound)
        cuts = exact_cuts(size)
        pieces = tuple((a, b, columns[a:b]) for a, b in pairwise(cuts))
        return Matrix(pieces, bound)

    def product(self, x: np.ndarray, out: np.ndarray, tmp: np.ndarray) -> None:
        """out = x @ weights. x: float32 (rows, K) of codes; tmp: float32 of out's shape, used by cut sums."""
        if len(self.pieces) == 1 and out.dtype == F:
            np.matmul(x, self.pieces[0][2], out=out)
            return
        for i, (a, b, w) in enumerate(self.pieces):
            np.matmul(x[:, a:b], w, out=tmp)
            if i == 0:
                out[...] = tmp
            else:
                np.add(out, tmp, out=out)


def exact_cuts(size: np.ndarray) -> list[int]:
    """Positions along K between which 128 * sum|w| stays below 2**24 for every output. size: |w|, (O, K)."""
    total = np.cumsum(size, axis=1, dtype=I)
    cuts, start, base = [0], 0, np.zeros((len(size), 1), I)
    k = size.shape[1]
    while start < k:
        # a piece of 1023 columns is always exact (1023 * 128 * 128 < 2**24), so each step advances
        over = (128 * (total[:, start:] - base)).max(0) >= FLOAT32_EXACT
        stop = start + int(np.argmax(over)) if over.any() else k
        cuts.append(stop)
        start, base = stop, total[:, stop - 1 : stop]
    return cuts


@dataclass(frozen=True, slots=True)
class Weights:
    """What one weighted node's constants come to.

    Attributes:
        matrices: one per group (matrix form), else empty.
        taps: float32 (kh, kw, C) (depthwise), else None.
        offset: int64 (O,): bias - zero_point * sum(w); the bias alone where the zero point is subtracted first.
        bound: no |raw|, |offset| or |accumulator| exceeds it.
        dtype: what holds raw accumulators exactly: float32 or float64.
    """

    matrices: tuple[Matrix, ...]
    taps: np.ndarray | None
    offset: np.ndarray
    bound: int
    dtype: type

    @property
    def fits_int32(self) -> bool:
        return self.bound <= fp.INT32_MAX


def _weights(op: str, w: np.ndarray, b: np.ndarray, attrs, zero_point: int) -> Weights:
    bias = b.astype(I)
    size = np.abs(w.astype(np.int32))
    axes = (0, 1, 2) if op == "depthwise_conv2d" else tuple(range(1, w.ndim))
    total = size.sum(axes, dtype=I)
    sums = w.sum(axes, dtype=I)
    reach = max(zero_point + 128, 127 - zero_point)
    matrices: tuple[Matrix, ...] = ()
    taps = None
    if op == "transpose_conv2d":
        # border outputs miss taps, so the zero point is subtracted from the input instead
        offset, raw = bias, reach * total
    else:
        offset, raw = bias - zero_point * sums, 128 * total
    if op == "depthwise_conv2d":
        taps = _freeze(w[0].astype(F))
    elif op != "transpose_conv2d":
        groups = getattr(attrs, "groups", 1)
        rows = w.reshape(len(w), -1)
        step = len(w) // groups
        matrices = tuple(Matrix.of(rows[g * step : (g + 1) * step]) for g in range(groups))
    raw_bound = int(raw.max(initial=0))
    bound = max(raw_bound, int(np.abs(offset).max(initial=0)), int((reach * total + np.abs(bias)).max(initial=0)))
    return Weights(matrices, taps, offset, bound, F if raw_bound < FLOAT32_EXACT else np.float64)


def weights_of(op: str, arrays: Arrays, attrs, in_types: Types) -> Weights:
    """Prepared (and cached) weights of a node. Raises QuantizeError on a weight zero point."""
    _, w, b = arrays
    quantization = in_types[1].quantization
    if quantization is None or any(quantization.zero_point):
        raise QuantizeError("weights must be symmetric (zero point 0)", fix="quantize the weights symmetrically")
    z = in_types[0].zero_point
    groups = getattr(attrs, "groups", 1)
    return prepared("weights", (w, b), (), (op, z, groups), lambda: _weights(op, w, b, attrs, z))


# ---------------------------------------------------------------- raw accumulators, block by block

#: (first row, raw accumulators (rows, O) held exactly in a float array that the taker may clobber)
Blocks = Iterator[tuple[int, np.ndarray]]


def _matrix_blocks(columns: Callable[[int], Iterator[np.ndarray]], weights: Weights, k: int) -> Blocks:
    """Products of blocks of unfolded input rows with the weights. columns(rows) yields float32 (<=rows, G, K)."""
    outputs = len(weights.offset)
    rows = max(1, min(BLOCK_COLUMNS // max(1, k * len(weights.matrices)), BLOCK_ACCUMULATORS // outputs))
    start = 0
    for block in columns(rows):
        n = len(block)
        raw = scratch("raw", n * outputs, weights.dtype).reshape(n, outputs)
        if len(weights.matrices) == 1:
            tmp = raw if raw.dtype == F else scratch("part", n * outputs, F).reshape(n, outputs)
            weights.matrices[0].product(block[:, 0], raw, tmp)
        else:
            step = outputs // len(weights.matrices)
            part = scratch("group", n * step, weights.dtype).reshape(n, step)
            tmp = scratch("part", n * step, F).reshape(n, step)
            for g, matrix in enumerate(weights.matrices):
                matrix.product(block[:, g], part, tmp)
                raw[:, g * step : (g + 1) * step] = part
        yield start, raw
        start += n


def _flat_columns(x: np.ndarray) -> Callable[[int], Iterator[np.ndarray]]:
    """Rows of a (rows, K) code array as float32."""

    def columns(rows: int) -> Iterator[np.ndarray]:
        for start in range(0, len(x), rows):
            part = x[start : start + rows]
            block = scratch("columns", part.size, F).reshape(len(part), 1, -1)
            np.copyto(block[:, 0], part)
            yield block

    return columns


def _window_columns(x: np.ndarray, kernel, attrs, zero_point: int) -> Callable[[int], Iterator[np.ndarray]]:
    """Unfolded windows of an NHWC code array, output rows in order, as float32 (rows, G, kh*kw*C/G)."""
    n, h, w = x.shape[:3]
    (top, bottom), (left, right) = attrs.padding
    ph, pw = h + top + bottom, w + left + right
    groups = attrs.groups
    oh = (ph - (kernel[0] - 1) * attrs.dilation[0] - 1) // attrs.stride[0] + 1
    ow = (pw - (kernel[1] - 1) * attrs.dilation[1] - 1) // attrs.stride[1] + 1

    def columns(rows: int) -> Iterator[np.ndarray]:
        images = max(1, min(n, rows // (oh * ow)))
        lines = oh if images > 1 or rows >= oh * ow else max(1, rows // ow)
        for start in range(0, n, images):
            padded = pad_float(x[start : start + images], attrs.padding, zero_point)
            view = kernels.windows(padded, kernel, attrs.stride, attrs.dilation)
            for y in range(0, oh, lines):
                part = view[:, y : y + lines]
                count = part.shape[0] * part.shape[1] * ow
                block = scratch("columns", part.size, F)
                if groups == 1:
                    np.copyto(block.reshape(part.shape), part)
                    yield block.reshape(count, 1, -1)
                else:
                    split = _split_groups(part, groups)
                    np.copyto(block.reshape(split.shape), split)
                    yield block.reshape(count, groups, -1)

    return columns


def _split_groups(view: np.ndarray, groups: int) -> np.ndarray:
    """(n, oh, ow, kh, kw, C) as (n, oh, ow, G, kh, kw, C/G), a view."""
    n, oh, ow, kh, kw, c = view.shape
    s = view.strides
    return np.lib.stride_tricks.as_strided(
        view, (n, oh, ow, groups, kh, kw, c // groups), (s[0], s[1], s[2], s[5] * (c // groups), s[3], s[4], s[5]), writeable=False
    )


def pad_float(x: np.ndarray, padding, zero_point: int) -> np.ndarray:
    """NHWC codes as float32, padded with the zero point, in scratch memory."""
    (top, bottom), (left, right) = padding
    n, h, w, c = x.shape
    shape = (n, h + top + bottom, w + left + right, c)
    out = scratch("padded", shape[0] * shape[1] * shape[2] * c, F).reshape(shape)
    if padding != ((0, 0), (0, 0)):
        out[:, :top] = zero_point
        out[:, top + h :] = zero_point
        out[:, top : top + h, :left] = zero_point
        out[:, top : top + h, left + w :] = zero_point
    np.copyto(out[:, top : top + h, left : left + w], x)
    return out


def _conv_blocks(x: np.ndarray, w: np.ndarray, attrs, weights: Weights, zero_point: int) -> Blocks:
    _, kh, kw, i = w.shape
    if (kh, kw) == (1, 1) and attrs.groups == 1 and attrs.padding == ((0, 0), (0, 0)):
        if attrs.stride != (1, 1):
            x = np.ascontiguousarray(x[:, :: attrs.stride[0], :: attrs.stride[1]])
        return _matrix_blocks(_flat_columns(x.reshape(-1, i)), weights, i)
    return _matrix_blocks(_window_columns(x, (kh, kw), attrs, zero_point), weights, kh * kw * i)


def _depthwise_blocks(x: np.ndarray, w: np.ndarray, attrs, weights: Weights, zero_point: int) -> Blocks:
    """Tap by tap over whole output lines. Columns are dealt out by their phase modulo the stride first, so that
    each tap reads contiguous memory."""
    n, c = x.shape[0], w.shape[3]
    if c != x.shape[3]:
        x = np.repeat(x, c // x.shape[3], axis=3)
    kh, kw = w.shape[1:3]
    sy, sx = attrs.stride
    dy, dx = attrs.dilation
    (top, bottom), (left, right) = attrs.padding
    ph, pw = x.shape[1] + top + bottom, x.shape[2] + left + right
    oh, ow = (ph - (kh - 1) * dy - 1) // sy + 1, (pw - (kw - 1) * dx - 1) // sx + 1
    taps = weights.taps
    assert taps is not None
    line = ow * c
    tiled = prepared("tiled taps", (taps,), (), (ow,), lambda: _freeze(np.tile(taps, (1, 1, ow))))
    images = max(1, min(n, BLOCK_COLUMNS // (ph * pw * c)))
    lines = oh if images > 1 else max(1, min(oh, BLOCK_LINES // line))
    row = 0
    for start in range(0, n, images):
        padded = pad_float(x[start : start + images], attrs.padding, zero_point)
        count = len(padded)
        if sx == 1:
            phases = [padded.reshape(count, ph, pw * c)]
        else:
            phases = [np.ascontiguousarray(padded[:, :, p::sx]).reshape(count, ph, -1) for p in range(min(sx, (kw - 1) * dx + 1))]
        for y in range(0, oh, lines):
            height = min(lines, oh - y)
            raw = scratch("raw", count * height * line, weights.dtype).reshape(count, height, line)
            term = scratch("term", count * height * line, F).reshape(count, height, line)
            first = True
            for ky in range(kh):
                y0 = y * sy + ky * dy
                for kx in range(kw):
                    source = phases[kx * dx % sx]
                    x0 = kx * dx // sx * c
                    part = source[:, y0 : y0 + (height - 1) * sy + 1 : sy, x0 : x0 + line]
                    if first:
                        np.multiply(part, tiled[ky, kx], out=raw)
                        first = False
                    else:
                        np.multiply(part, tiled[ky, kx], out=term)
                        np.add(raw, term, out=raw)
            yield row, raw.reshape(-1, c)
            row += count * height * ow


def _freeze(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _transpose_blocks(x: np.ndarray, w: np.ndarray, attrs, weights: Weights, zero_point: int) -> Blocks:
    o = w.shape[0]
    dtype = weights.dtype
    row = 0
    for sample in x:
        centred = sample[None].astype(dtype) - dtype(zero_point)
        raw = kernels.scatter_transpose_conv(centred, w.astype(dtype), attrs.stride, attrs.crop, np.matmul)
        raw = np.ascontiguousarray(raw).reshape(-1, o)
        yield row, raw
        row += len(raw)


def raw_blocks(op: str, arrays: Arrays, attrs, in_types: Types, weights: Weights) -> Blocks:
    """The raw accumulators of a node, block by block over the flattened leading axes."""
    x, w, _ = arrays
    z = in_types[0].zero_point
    x = np.ascontiguousarray(x)
    if op == "fully_connected":
        return _matrix_blocks(_flat_columns(x.reshape(-1, w.shape[1])), weights, w.shape[1])
    return _BLOCKS[op](x, w, attrs, weights, z)


_BLOCKS = {"conv2d": _conv_blocks, "depthwise_conv2d": _depthwise_blocks, "transpose_conv2d": _transpose_blocks}


def output_shape(op: str, arrays: Arrays, attrs, in_types: Types) -> tuple[int, ...]:
    """Shape of the node's output for the arrays at hand (which may hold more samples than the types say)."""
    x, w, _ = arrays
    if op == "fully_connected":
        return (*x.shape[:-1], w.shape[0])
    n, h, wd = x.shape[:3]
    if op == "transpose_conv2d":
        return (
            n,
            (h - 1) * attrs.stride[0] + w.shape[1] - sum(attrs.crop[0]),
            (wd - 1) * attrs.stride[1] + w.shape[2] - sum(attrs.crop[1]),
            w.shape[0],
        )
    oh, ow = (
        (size + sum(pad) - (k - 1) * d - 1) // s + 1
        for size, pad, k, d, s in zip((h, wd), attrs.padding, w.shape[1:3], attrs.dilation, attrs.stride, strict=True)
    )
    return (n, oh, ow, w.shape[0] if op == "conv2d" else w.shape[3])


# ---------------------------------------------------------------- the two public steps


def accumulate(op: str, arrays: Arrays, attrs: Any, in_types: Types) -> np.ndarray:
    """The accumulators of a weighted op, bias included.

    Args:
        op: conv2d, depthwise_conv2d, transpose_conv2d or fully_connected.
        arrays: (x int8, w int8 (int4 codes too), bias int32).
        attrs: the op's attributes (its activation plays no part here).
        in_types: types of the three inputs.
    Returns: int32, the output's shape (channels last).
    Raises: QuantizeError: an accumulator does not fit int32.
    """
    weights = weights_of(op, arrays, attrs, in_types)
    out = np.empty(output_shape(op, arrays, attrs, in_types), np.int32)
    flat = out.reshape(-1, out.shape[-1])
    for start, raw in raw_blocks(op, arrays, attrs, in_types, weights):
        acc = raw.astype(I) + weights.offset
        flat[start : start + len(raw)] = acc if weights.fits_int32 else fp.check_int32(acc)
    return out


def output_bounds(activation: str, out_type: TensorType, numerics: Numerics) -> tuple[int, int]:
    """Inclusive code bounds of a fused activation."""
    low, high = ACTIVATIONS[activation]
    return fp.activation_bounds(low, high, out_type.scale, out_type.zero_point, numerics.rule("activation") or "TFLITE")


#: rule -> rounding scheme. REF_F64: REF whose effective scale is a float64 product everywhere; plain REF takes a float32
#: product for a fully connected layer with one weight scale. F32E_PACKED: packed 4-bit codes read as 16 times their
#: value, so that accumulators have 4 bits less (XNNPACK src/qs8-qc4w-gemm)
RULES: dict[str, str] = {**{s: s for s in fp.SCHEMES}, "REF_F64": "REF", "F32E_PACKED": "F32E"}

#: rule -> largest accumulator its kernels hold, where that is not int32's
ROOM: dict[str, int] = {"F32E_PACKED": 2**27 - 1}


#: rules made of others: (the rule, that for a product with one column, that for grouped convolutions). ruy multiplies int8
#: matrices with one column by a kernel of its own where they have 4 rows and 8 columns or more (cpu_backend_gemm_custom_gemv.h);
#: grouped convolutions are left to the reference kernel
MIXED: dict[str, tuple[str, str, str]] = {
    "UP2_OR_REF": ("UP2", "UP2", "REF"),
    "ONE_OR_REF": ("ONE", "ONE", "REF"),
    "ONE_OR_UP2_OR_REF": ("ONE", "UP2", "REF"),
}


def _rule(op: str, attrs: Any, in_types: Types, out_type: TensorType, numerics: Numerics) -> str:
    packed = in_types[1].dtype == "int4"
    rule = (numerics.rule(packed_key(op)) if packed else "") or numerics.rule(op)
    if rule not in RULES and rule not in MIXED:
        raise GraphError(f"numerics '{numerics.name}' has no rule for {op}" + (f" (it says {rule!r})" if rule else ""))
    return _unmixed(rule, attrs, in_types[1], out_type)


def _unmixed(rule: str, attrs: Any, weights: TensorType, out_type: TensorType) -> str:
    if rule not in MIXED:
        return rule
    most, one_column, grouped = MIXED[rule]
    if getattr(attrs, "groups", 1) > 1:
        return grouped
    rows = weights.shape[0]
    return one_column if out_type.size == rows >= 4 and weights.size >= 8 * rows else most


def _room(rule: str) -> int:
    return ROOM.get(rule, fp.INT32_MAX)


def effective_scale(op: str, rule: str, in_types: Types, out_type: TensorType) -> np.ndarray:
    """input_scale * weight_scale / output_scale at the precision of ``rule`` (key of RULES), (1,) or (channels,)."""
    quantization = in_types[1].quantization
    assert quantization is not None
    if op == "fully_connected" and rule in ("REF", "UP2", "ONE") and len(quantization.scale) == 1:
        return fp.float32_product_scale(in_types[0].scale, quantization.scale[0], out_type.scale)
    return fp.effective_scale(RULES[rule], in_types[0].scale, quantization.scale_array, out_type.scale)


def requantize_output(
    op: str, acc: np.ndarray, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics, added: np.ndarray | None = None
) -> np.ndarray:
    """Accumulators of a weighted op to output codes: requantize, add the zero point, clamp to the fused activation.

    Args:
        acc: integers, channels last, from :func:`accumulate`.
        added: integers (channels,), added to the accumulators first: the difference to another bias.
    Returns: int8, shape of acc.
    Raises: QuantizeError: an accumulator does not fit int32.
    """
    out_type = out_types[0]
    rule = _rule(op, attrs, in_types, out_type, numerics)
    low, high = output_bounds(attrs.activation, out_type, numerics)
    scale = effective_scale(op, rule, in_types, out_type)
    offset = np.zeros(acc.shape[-1], I) if added is None else np.asarray(added, I)
    bound = max(int(acc.max(initial=0)), -int(acc.min(initial=0))) + int(np.abs(offset).max())
    requantizer = fp.Requantizer.prepare(RULES[rule], scale, offset, out_type.zero_point, low, high, bound, _room(rule))
    flat, out = acc.reshape(-1), np.empty(acc.shape, np.int8)
    codes = out.reshape(-1)
    for start in range(0, flat.size, requantizer.period):
        piece = slice(start, start + requantizer.period)
        requantizer(flat[piece].astype(np.float64), codes[piece])
    return out


#: weighted ops with a form for 16-bit activations (8-bit weights, int32 bias), and its rules
WIDE_OPS = ("conv2d", "depthwise_conv2d", "fully_connected")
WIDE_RULES = ("REF", "REF_F64", "UP2", "UP2_8", "F64", "ONE", "R64", "UP2_OR_REF", "ONE_OR_REF")


def accumulate_wide(op: str, arrays: Arrays, attrs: Any) -> np.ndarray:
    """Accumulators over 16-bit codes, bias included: int64, checked to fit int32. Sums stay exact in float64.

    Raises: QuantizeError: an accumulator does not fit int32.
    """
    x, w, b = (a.astype(np.float64) for a in arrays)
    if op == "fully_connected":
        acc = x @ w.T + b
    elif op == "conv2d":
        acc = kernels.conv2d_float(x, w, b, attrs.stride, attrs.padding, attrs.dilation, attrs.groups)
    else:
        acc = kernels.depthwise_float(x, w, b, attrs.stride, attrs.padding, attrs.dilation)
    return fp.check_int32(acc.astype(I))


def requantize_wide(op: str, acc: np.ndarray, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> np.ndarray:
    """Accumulators over 16-bit codes to 16-bit codes."""
    key, out = wide_key(op), out_types[0]
    rule = numerics.rule(key)
    if rule not in WIDE_RULES:
        raise GraphError(f"numerics '{numerics.name}' has no rule for {key}" + (f" (it says {rule!r})" if rule else ""))
    rule = _unmixed(rule, attrs, in_types[1], out)
    scale = np.broadcast_to(effective_scale(op, rule, in_types, out), acc.shape[-1:])
    bounds = fp.activation_bounds(*ACTIVATIONS[attrs.activation], out.scale, out.zero_point, "TFLITE", out.code_bounds)
    return fp.to_codes(fp.requantize(acc, scale, RULES[rule]), out.zero_point, *bounds)


def integer_rule(op: str):
    """The exact integer meaning of weighted op ``op``, both steps fused block by block."""

    def run(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> tuple[np.ndarray, ...]:
        if in_types[0].dtype == "int16":
            return (requantize_wide(op, accumulate_wide(op, arrays, attrs), attrs, in_types, out_types, numerics),)
        _, w, b = arrays
        out_type = out_types[0]
        rule = _rule(op, attrs, in_types, out_type, numerics)
        weights = weights_of(op, arrays, attrs, in_types)

        def make() -> fp.Requantizer:
            low, high = output_bounds(attrs.activation, out_type, numerics)
            scale = effective_scale(op, rule, in_types, out_type)
            zero_point, bound = out_type.zero_point, weights.bound
            return fp.Requantizer.prepare(RULES[rule], scale, weights.offset, zero_point, low, high, bound, _room(rule))

        extra = (op, rule, attrs, numerics.rule("activation"))
        requantizer = prepared("requantizer", (w, b), (in_types[0], in_types[1], out_type), extra, make)
        out = np.empty(output_shape(op, arrays, attrs, in_types), np.int8)
        flat = out.reshape(-1)
        channels = out.shape[-1]
        for start, raw in raw_blocks(op, arrays, attrs, in_types, weights):
            part = raw.reshape(-1)
            requantizer(part, flat[start * channels : start * channels + part.size])
        return (out,)

    return run


conv2d_integer = integer_rule("conv2d")
depthwise_integer = integer_rule("depthwise_conv2d")
transpose_conv_integer = integer_rule("transpose_conv2d")
fully_connected_integer = integer_rule("fully_connected")
