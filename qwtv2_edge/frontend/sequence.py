"""Rules for what transformers add besides products: attention, normalisations, look-ups. Rules as in ``aten``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Any, ClassVar

import numpy as np

from qwtv2_edge.frontend import masks
from qwtv2_edge.frontend.aten import (
    Const,
    Context,
    Symbol,
    Unsupported,
    activation,
    apply,
    axis_of,
    binary,
    constant,
    reduce_axes,
    rule,
    scalar_of,
    softmax_over,
    unary,
)
from qwtv2_edge.frontend.layout import Value, from_form, permute
from qwtv2_edge.frontend.masks import Mask
from qwtv2_edge.frontend.products import matmul, product, shape_of
from qwtv2_edge.ir.graph import Node
from qwtv2_edge.ops.activation import GeluAttrs
from qwtv2_edge.ops.index import ArgmaxAttrs
from qwtv2_edge.ops.norm import L2NormalizeAttrs, LayerNormAttrs
from qwtv2_edge.ops.spec import NoAttrs

# ---------------------------------------------------------------------- attention


@rule("baddbmm", on=Mask)
@rule("baddbmm")
def baddbmm(c: Context, self: Any, batch1: Any, batch2: Any, beta: Any = 1, alpha: Any = 1) -> Any:
    if beta != 1:
        raise Unsupported(f"baddbmm with beta {beta}", "use beta=1")
    scores = matmul(c, batch1, batch2)
    if alpha != 1:
        scores = apply(c, "mul", self=scores, other=alpha)
    return scores if isinstance(self, Const) and not self.array.any() else apply(c, "add", self=scores, other=self)


@rule("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu", on=Mask)
@rule("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu")
def attention(
    c: Context,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: Any = 0.0,
    is_causal: Any = False,
    scale: Any = None,
    enable_gqa: Any = False,
    return_debug_mask: Any = False,
) -> Any:
    """softmax(scale * q @ k^T, masked) @ v. The scale is the softmax's; ``passes`` moves it into q's weights where it can."""
    if dropout_p:
        raise Unsupported(f"attention with dropout {dropout_p}", "pass dropout_p=0.0 when not self.training", "training-mode")
    if enable_gqa and shape_of(query)[-3] != shape_of(key)[-3]:
        raise Unsupported("attention with enable_gqa=True", "repeat the heads of key and value with repeat_interleave or expand")
    beta = 1 / sqrt(shape_of(query)[-1]) if scale is None else float(scale)
    swapped = [*range(len(shape_of(key)) - 2), len(shape_of(key)) - 1, len(shape_of(key)) - 2]
    turned = replace(key, array=key.array.transpose(swapped)) if isinstance(key, Const) else permute(key, swapped)
    scores = product(c, query, turned, ".scores")
    if is_causal:
        keep = np.tril(np.ones(scores.shape[-2:], bool))
        scores = masks.fill(c, scores, masks.of_constant(Const(keep, "causal_mask")), masks.FILL)
    if attn_mask is not None:
        boolean = attn_mask.boolean if isinstance(attn_mask, Mask) else isinstance(attn_mask, Const) and attn_mask.array.dtype == bool
        if boolean:
            kept = attn_mask if isinstance(attn_mask, Mask) else masks.of_constant(attn_mask)
            scores = masks.fill(c, scores, kept, masks.FILL)
        else:  # added after scaling
            with c.result_of(scores.shape):
                scores = masks.add_to_scores(c, scores, attn_mask, beta)
    weights = softmax_over(c, scores, scores.rank - 1, beta, ".softmax")
    return (product(c, weights, value, ".values"),)


# ---------------------------------------------------------------------- normalisations


def _vector(c: Context, x: Any, role: str, size: int, neutral: float) -> str:
    """gamma or beta as an IR constant of ``size`` entries."""
    if x is None:
        return c.constant(f"{c.name}.{role}", np.full(size, neutral, np.float32))
    k = constant(x, role)
    return c.constant(k.name, k.array.reshape(-1), f"{c.name}.{role}" if c.is_module else k.name)


@rule("layer_norm", "native_layer_norm")
def layer_norm(
    c: Context, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5, cudnn_enable: Any = False
) -> Any:
    return (_normalized(c, activation(input), len(normalized_shape), weight, bias, LayerNormAttrs(float(eps))),)


@rule("rms_norm", "_fused_rms_norm")
def rms_norm(c: Context, input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Any:
    eps = float(np.finfo(np.float32).eps) if eps is None else float(eps)
    return (_normalized(c, activation(input), len(normalized_shape), weight, None, LayerNormAttrs(eps, centre=False)),)


def _normalized(c: Context, x: Value, axes: int, gamma: Any, beta: Any, attrs: LayerNormAttrs) -> Value:
    """Over the last ``axes`` axes, which become one."""
    shape = x.shape
    if axes > 1:
        x = c.view(x, (*shape[:-axes], prod(shape[-axes:])))
    v, form = c.rows(x)
    size = v.shape[-1]
    inputs = (v.tensor, _vector(c, gamma, "weight", size, 1.0), _vector(c, beta, "bias", size, 0.0))
    out = from_form(c.emit("layer_norm", inputs, attrs), v.shape, form)
    return c.view(out, shape) if axes > 1 else out


@dataclass(frozen=True, slots=True)
class Length(Symbol):
    """The length of ``tensor`` along its axis ``axis``, or the reciprocal of that: what normalisations divide by.

    mean: sqrt(mean(x^2) + eps), else max(sqrt(sum(x^2)), eps).
    """

    words: ClassVar[str] = "the length of a vector"
    fix: ClassVar[str] = "a length has a form as the divisor of what it is the length of: x / x.norm(dim=-1, keepdim=True)"

    tensor: str
    axis: int
    eps: float
    mean: bool
    inverse: bool = False


@rule("linalg_vector_norm")
def vector_norm(c: Context, self: Any, ord: Any = 2, dim: Any = None, keepdim: Any = False, dtype: Any = None) -> Any:
    x = activation(self)
    if ord != 2 or dim is None or len(dim) != 1 or not keepdim:
        raise Unsupported(f"a norm of order {ord} over dim {dim}, keepdim {keepdim}", "use order 2, one axis and keepdim=True")
    v, form = c.simple(x)
    return Length(v.tensor, form.index(axis_of(dim[0], x.rank)), L2NormalizeAttrs().eps, mean=False)


@rule("clamp", "clamp_min", on=Length)
def length_at_least(c: Context, self: Any, min: Any = None, max: Any = None) -> Any:
    if max is not None or self.mean:
        raise Unsupported(f"clamp of {Length.words}", Length.fix)
    return replace(self, eps=scalar_of(min, 0.0))


@rule("expand", "expand_as", "to", "_to_copy", on=Length)
def same_length(c: Context, self: Any, *args: Any, **ignored: Any) -> Any:
    return self


@rule("reciprocal", on=Length)
def reciprocal(c: Context, self: Any) -> Any:
    return replace(self, inverse=not self.inverse)


@rule("rsqrt", "sqrt")
def root(c: Context, self: Any) -> Any:
    """Of mean(x * x) + eps: the length that RMSNorm divides by."""
    average, eps = _producer(c, activation(self).tensor), 0.0
    if average is not None and average.op == "add":
        numbers = [float(c.b.constants[t][0]) for t in average.inputs if t in c.b.constants and c.b.constants[t].shape == (1,)]
        rest = [t for t in average.inputs if t not in c.b.constants]
        average, eps = (_producer(c, rest[0]), numbers[0]) if numbers and rest else (None, 0.0)
    square = _producer(c, average.inputs[0]) if average is not None and average.op == "mean" else None
    if average is None or square is None or len(average.attrs.axes) != 1 or square.op != "mul" or not same_value(c, *square.inputs):
        raise Unsupported(c.op, "it has a form inside a normalisation: x * rsqrt(mean(x * x, -1, keepdim=True) + eps)", "unsupported-op")
    return Length(square.inputs[0], average.attrs.axes[0], eps, mean=True, inverse=c.op == "rsqrt")


@rule("mul", "multiply", "div", "divide", "true_divide", on=Length)
def by_length(c: Context, self: Any, other: Any, rounding_mode: Any = None) -> Any:
    """x times the reciprocal of its length, or x over its length."""
    divides = c.op.endswith(("div", "divide"))
    x, length = (other, self) if isinstance(self, Length) and not divides else (self, other)
    if not isinstance(x, Value) or not isinstance(length, Length) or length.inverse == divides:
        raise Unsupported(f"{c.op} with {Length.words}", Length.fix)
    v, form = c.simple(x)
    if not same_value(c, v.tensor, length.tensor):
        raise Unsupported("division by the length of another tensor", Length.fix)
    v, form = c.last(v, form[length.axis])
    if not length.mean:
        return from_form(c.emit("l2_normalize", (v.tensor,), L2NormalizeAttrs(length.eps)), v.shape, form)
    size = v.shape[form[-1]]
    inputs = (v.tensor, _vector(c, None, "weight", size, 1.0), _vector(c, None, "bias", size, 0.0))
    return from_form(c.emit("layer_norm", inputs, LayerNormAttrs(length.eps, centre=False)), v.shape, form)


@rule("var")
def variance(c: Context, self: Any, dim: Any = None, unbiased: Any = None, correction: Any = None, keepdim: Any = False) -> Any:
    """mean((x - mean(x))^2), spelled out; ``passes`` makes a layer_norm of it where it is part of one."""
    x = activation(self)
    if (correction if unbiased is None else int(unbiased)) != 0:
        raise Unsupported("a variance with Bessel's correction", "pass unbiased=False (correction=0)")
    dims = tuple(dim or range(x.rank))
    with c.result_of(x.shape):
        centred = binary(c, "sub", x, reduce_axes(c, "mean", x, dims, keepdim=True))
        square = binary(c, "mul", centred, centred)
    return reduce_axes(c, "mean", square, dims, keepdim)


def _producer(c: Context, tensor: str) -> Node | None:
    return next((n for n in reversed(c.b.nodes) if tensor in n.outputs), None)


def same_value(c: Context, a: str, b: str) -> bool:
    """True where both tensors hold the same numbers by construction: one tensor, or the same ops on the same tensors."""
    if a == b:
        return True
    first, second = _producer(c, a), _producer(c, b)
    if first is None or second is None or (first.op, first.attrs) != (second.op, second.attrs):
        return False
    return all(same_value(c, x, y) for x, y in zip(first.inputs, second.inputs, strict=True))


# ---------------------------------------------------------------------- element by element, look-ups


@rule("gelu")
def gelu(c: Context, self: Any, approximate: Any = "none") -> Any:
    return unary(c, self, "gelu", GeluAttrs(approximate == "tanh"))


@rule("embedding")
def embedding(c: Context, weight: Any, indices: Any, padding_idx: Any = -1, scale_grad_by_freq: Any = False, sparse: Any = False) -> Any:
    """Rows of a constant table; the row at padding_idx is a row as any other."""
    table = constant(weight, "the table of an embedding")
    x = activation(indices, "the index")
    if not c.is_integer(x):
        raise Unsupported("an embedding indexed by what the network computes", "index with an integer input, or with constants")
    name = c.name + ".weight" if c.is_module else table.name
    out = c.emit("embedding", (x.tensor, c.constant(table.name, table.array, name)), NoAttrs())
    width = table.array.shape[1]
    if width == 1:
        return Value(out, x.sizes, (*x.axes, ()))
    return Value(out, (*x.sizes, width), (*x.axes, (len(x.sizes),)))


@rule("argmax")
def argmax(c: Context, self: Any, dim: Any = None, keepdim: Any = False) -> Any:
    x = activation(self)
    if dim is None:
        raise Unsupported("argmax over all axes", "give dim=")
    axis = axis_of(dim, x.rank)
    plain = tuple(range(x.rank))
    out = c.emit("argmax", (c.to_logical(x),), ArgmaxAttrs(axis, bool(keepdim)))
    shape = tuple(1 if i == axis else d for i, d in enumerate(x.shape))
    v = from_form(out, shape, tuple(i for i in plain if keepdim or i != axis))
    return v if keepdim else replace(v, axes=(*v.axes[:axis], *v.axes[axis + 1 :]))
