"""What each ATen op means in the IR. No torch in here: constants arrive as NumPy arrays.

A rule is a function (context, **arguments under the names of the op's schema) -> Value | Const | Symbol | tuple of them.
A rule that can't take an op as it stands raises :class:`Unsupported`; the importer collects these. ``sequence`` and
``masks`` hold the rules of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import numpy as np

from qwtv2_edge.frontend.layout import NHWC, NHWC_OF_1D, Form, Layouter, Value, from_form, lift, permute, view_stretched
from qwtv2_edge.ir.graph import GraphBuilder
from qwtv2_edge.ops.activation import AlphaAttrs, ClampAttrs
from qwtv2_edge.ops.conv import Conv2DAttrs, DepthwiseAttrs, TransposeConvAttrs
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.layout import ConcatAttrs, PadAttrs, ResizeAttrs, SliceAttrs
from qwtv2_edge.ops.linear import FullyConnectedAttrs
from qwtv2_edge.ops.pool import PoolAttrs, ReduceAttrs, SoftmaxAttrs
from qwtv2_edge.ops.spec import NoAttrs

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Const:
    """A parameter, a buffer, or what was computed from them alone. name: hint for the IR constant."""

    array: np.ndarray
    name: str


class Symbol:
    """A value without a tensor of its own: it lives between ops that have a form only together (a comparison and its choice)."""

    #: what it is, and what to do where an op that has no rule for it reads it
    words: ClassVar[str]
    fix: ClassVar[str]


class Unsupported(Exception):
    """Why one op can't be taken: a reason code, the words, the fix."""

    def __init__(self, message: str, fix: str = "", code: str = "unsupported-form") -> None:
        super().__init__(message)
        self.code, self.message, self.fix = code, message, fix


@dataclass(frozen=True, slots=True)
class Affine:
    """Per-channel scale and offset (float64, one per output channel) folded into a weighted op."""

    scale: np.ndarray
    offset: np.ndarray


class Context(Layouter):
    """The layouter, plus what a rule may ask about the op at hand.

    Attributes:
        out_shapes: logical shapes of the op's outputs, as the exporter inferred them.
        affine: BatchNorm (or the like) to fold into this op, or None.
        op: the op's name.
        is_score: tells whether the op's result is read, through ops that keep the order of its entries, by a softmax or maximum.
        reported: parameters with NaN or infinite values that are listed as problems already.
        complements: tensor of zeros and ones -> the tensor that is 1 where it is 0.
    """

    op: str = ""
    is_score: Callable[[], bool] = staticmethod(lambda: False)

    def __init__(self, builder: GraphBuilder) -> None:
        super().__init__(builder)
        self.reported: set[str] = set()
        self.complements: dict[str, str] = {}

    out_shapes: tuple[tuple[int, ...], ...] = ()
    affine: Affine | None = None

    def constant(self, source: str, array: np.ndarray, name: str = "") -> str:
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        if bad and not self.reported:
            raise Unsupported(
                f"a constant holds {bad} NaN or infinite values of {array.size}",
                "mask the entries that go into a softmax with -1e4; nothing else takes infinity",
                "non-finite-weight",
            )
        return super().constant(source, array, name)

    @contextmanager
    def result_of(self, shape: tuple[int, ...]) -> Iterator[None]:
        """While rules make an intermediate result of ``shape`` on the way to the op's own."""
        own, self.out_shapes = self.out_shapes, (shape,)
        yield
        self.out_shapes = own

    def is_integer(self, v: Value) -> bool:
        return self.b.tensors[v.tensor].dtype != "float32"

    @property
    def spatial_dims(self) -> int:
        """1 for ops named ...1d, else 2."""
        return 1 if self.op.endswith("1d") else 2

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.out_shapes[0]

    def folded(self, rows: np.ndarray, bias: Const | None) -> tuple[np.ndarray, np.ndarray]:
        """(weights, bias) with ``affine`` taken in. ``rows``: weights with the output channels on axis 0."""
        b = np.zeros(rows.shape[0], np.float64) if bias is None else bias.array.astype(np.float64)
        if self.affine is not None:
            rows = rows.astype(np.float64) * self.affine.scale.reshape(-1, *(1,) * (rows.ndim - 1))
            b = b * self.affine.scale + self.affine.offset
        return rows, b


def weight_constants(
    c: Context, weight: Const, bias: Const | None, rows: np.ndarray, offsets: np.ndarray, part: str = ""
) -> tuple[str, str]:
    """The two IR constants of a weighted op, named after its module, or after the parameters where it has none of its own."""
    offset_source = bias.name if bias is not None else weight.name.removesuffix("weight") + "bias"
    names = (c.name + ".weight", c.name + ".bias") if c.is_module else (weight.name, offset_source)
    return (
        c.constant(weight.name + part, rows, names[0] + part),
        c.constant(offset_source + part, offsets, names[1] + part),
    )


Rule = Callable[..., Any]
#: op name without namespace and overload -> rule
RULES: dict[str, Rule] = {}
#: kind of symbol -> the rules of ops that read one
SYMBOL_RULES: dict[type[Symbol], dict[str, Rule]] = {}
#: ops that take the result of expand as it is; all others get it repeated in memory
TAKES_STRETCHED = {
    "add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "expand", "expand_copy", "expand_as",
    "broadcast_to", "view", "reshape", "_unsafe_view", "_reshape_alias", "view_copy", "flatten", "unflatten", "squeeze", "unsqueeze",
    "squeeze_copy", "unsqueeze_copy", "permute", "permute_copy", "transpose", "transpose_copy", "swapaxes", "clone", "contiguous",
}  # fmt: skip
#: ops that take integers: indices, and what only renames their axes
TAKES_INTEGERS = {
    "embedding", "view", "reshape", "_unsafe_view", "_reshape_alias", "view_copy", "flatten", "unflatten", "squeeze", "unsqueeze",
    "squeeze_copy", "unsqueeze_copy", "permute", "permute_copy", "transpose", "transpose_copy", "clone", "contiguous", "alias", "detach",
    "to", "_to_copy", "expand",
}  # fmt: skip
#: ops of which only some outputs have a form here: op -> indices that may be read
READABLE_OUTPUTS: dict[str, tuple[int, ...]] = {
    "max_pool2d_with_indices": (0,),
    "adaptive_max_pool1d": (0,),
    "adaptive_max_pool2d": (0,),
    "max.dim": (0,),
    "_native_batch_norm_legit_no_training": (0,),
    "native_batch_norm": (0,),
    "native_dropout": (0,),
    "native_layer_norm": (0,),
    "_fused_rms_norm": (0,),
    "_scaled_dot_product_flash_attention_for_cpu": (0,),
}


def rule(*names: str, on: type[Symbol] | None = None) -> Callable[[Rule], Rule]:
    """Register a rule for ops; ``on``: for those that read a symbol of that kind."""
    table = RULES if on is None else SYMBOL_RULES.setdefault(on, {})

    def register(f: Rule) -> Rule:
        for name in names:
            table[name] = f
        return f

    return register


def has_rule(op: str) -> bool:
    return op in RULES or any(op in table for table in SYMBOL_RULES.values())


def apply(c: Context, op: str, **arguments: Any) -> Any:
    """The result of ``op`` by the rule that fits the kinds of its arguments."""
    c.op = op
    parts = [x for a in arguments.values() for x in (a if isinstance(a, list) else [a])]
    symbol = next((x for x in parts if isinstance(x, Symbol)), None)
    if symbol is not None:
        if op not in SYMBOL_RULES[type(symbol)]:
            raise Unsupported(f"{op} of {symbol.words}", symbol.fix)
        return SYMBOL_RULES[type(symbol)][op](c, **arguments)
    if op not in TAKES_INTEGERS and any(isinstance(x, Value) and c.is_integer(x) for x in parts):
        fix = "integer inputs index embeddings; make what is computed from them an input of its own"
        raise Unsupported(f"{op} of integers", fix, "unsupported-dtype")
    if op not in RULES:
        raise Unsupported(f"{op} of the network's data", "it has a form here for masks only", "unsupported-op")
    if op not in TAKES_STRETCHED:
        arguments = {k: [whole(c, x) for x in a] if isinstance(a, list) else whole(c, a) for k, a in arguments.items()}
    return RULES[op](c, **arguments)


# ---------------------------------------------------------------------- arguments


def pair(x: Any) -> Pair:
    """2-D arguments may come as one number or as a list of one or two."""
    if isinstance(x, int):
        return (x, x)
    x = tuple(int(i) for i in x)
    return (x[0], x[0]) if len(x) == 1 else (x[0], x[1])


def spatial(x: Any, rank: int, neutral: int) -> Pair:
    """(y, x) of a spatial argument of a 1-D or 2-D op; 1-D ops get ``neutral`` for y."""
    if rank == 1:
        return (neutral, int(x if isinstance(x, int) else x[0]))
    return pair(x)


def both(f: Callable[[int], Pair]) -> tuple[Pair, Pair]:
    """((top, bottom), (left, right)) from a function of the spatial axis."""
    return (f(0), f(1))


def axis_of(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def activation(x: Any, role: str = "input") -> Value:
    if isinstance(x, Value):
        return x
    raise Unsupported(f"{role} is a constant where the network's data is expected")


def constant(x: Any, role: str) -> Const:
    if isinstance(x, Const):
        return x
    raise Unsupported(f"{role} depends on the network's input", f"make {role} a parameter or a buffer")


def image(c: Context, x: Value, dims: int) -> Value:
    """x as NHWC: takes (N, C, H, W) where ``dims`` is 2, (N, C, L) where it is 1."""
    if x.rank != dims + 2:
        raise Unsupported(
            f"a {dims}-D spatial op on an input of rank {x.rank}", f"give it rank {dims + 2}: batch, channels, then {dims} spatial"
        )
    return c.to_form(x, NHWC if dims == 2 else NHWC_OF_1D)


def image_result(c: Context, tensor: str, dims: int) -> Value:
    """The Value of an NHWC result with the op's logical output shape."""
    return from_form(tensor, c.out_shape, NHWC if dims == 2 else NHWC_OF_1D)


# ---------------------------------------------------------------------- weighted ops


@rule("conv1d", "conv2d")
def conv(
    c: Context, input: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1
) -> Any:
    x, w = activation(input), constant(weight, "weight")
    b = None if bias is None else constant(bias, "bias")
    dims = w.array.ndim - 2
    v = image(c, x, dims)
    stride, dilation = spatial(stride, dims, 1), spatial(dilation, dims, 1)
    kernel = w.array.reshape(*w.array.shape[:2], *((1,) if dims == 1 else ()), *w.array.shape[2:])  # O, I/g, kh, kw
    if padding == "valid":
        pads = both(lambda i: (0, 0))
    elif padding == "same":  # torch puts the odd one after
        totals = [d * (k - 1) for d, k in zip(dilation, kernel.shape[2:], strict=True)]
        pads = both(lambda i: (totals[i] // 2, totals[i] - totals[i] // 2))
    else:
        amounts = spatial(padding, dims, 0)
        pads = both(lambda i: (amounts[i], amounts[i]))
    channels = x.shape[1]
    rows, offsets = c.folded(kernel.transpose(0, 2, 3, 1), b)  # OHWI
    if groups == channels and groups > 1:
        weights, biases = weight_constants(c, w, b, rows.transpose(3, 1, 2, 0), offsets)  # 1HWC
        out = c.emit("depthwise_conv2d", (v.tensor, weights, biases), DepthwiseAttrs(stride, pads, dilation))
    else:
        weights, biases = weight_constants(c, w, b, rows, offsets)
        out = c.emit("conv2d", (v.tensor, weights, biases), Conv2DAttrs(stride, pads, dilation, groups))
    return image_result(c, out, dims)


@rule("conv_transpose1d", "conv_transpose2d")
def conv_transpose(
    c: Context,
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: Any = 1,
    dilation: Any = 1,
) -> Any:
    x, w = activation(input), constant(weight, "weight")
    b = None if bias is None else constant(bias, "bias")
    dims = w.array.ndim - 2
    v = image(c, x, dims)
    if spatial(dilation, dims, 1) != (1, 1):
        raise Unsupported(f"transposed convolution with dilation {dilation}", "use dilation 1")
    stride = spatial(stride, dims, 1)
    pads, extra = spatial(padding, dims, 0), spatial(output_padding, dims, 0)
    attrs = TransposeConvAttrs(stride, both(lambda i: (pads[i], pads[i] - extra[i])))
    kernel = w.array.reshape(*w.array.shape[:2], *((1,) if dims == 1 else ()), *w.array.shape[2:])  # I, O/g, kh, kw
    per_in, per_out = kernel.shape[0] // groups, kernel.shape[1]
    rows = np.concatenate([kernel[g * per_in : (g + 1) * per_in].transpose(1, 2, 3, 0) for g in range(groups)])  # O, kh, kw, I/g
    rows, offsets = c.folded(rows, b)
    if groups == 1:
        inputs = (v.tensor, *weight_constants(c, w, b, rows, offsets))
        return image_result(c, c.emit("transpose_conv2d", inputs, attrs), dims)
    parts = []
    for g in range(groups):
        part = image(c, slice_axis(c, v, 1, g * per_in, (g + 1) * per_in, suffix=f".group{g}.slice"), dims)
        own = slice(g * per_out, (g + 1) * per_out)
        inputs = (part.tensor, *weight_constants(c, w, b, rows[own], offsets[own], f".group{g}"))
        parts.append(c.emit("transpose_conv2d", inputs, attrs, f".group{g}"))
    return image_result(c, c.emit("concat", parts, ConcatAttrs(3), ".concat"), dims)


@rule("convolution")
def convolution(
    c: Context,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: Any,
    output_padding: Any,
    groups: Any,
) -> Any:
    if transposed:
        return conv_transpose(c, input, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(c, input, weight, bias, stride, padding, dilation, groups)


@rule("linear")
def linear(c: Context, input: Any, weight: Any, bias: Any = None) -> Any:
    x, w = activation(input), constant(weight, "weight")
    b = None if bias is None else constant(bias, "bias")
    if not c.is_module and w.name.endswith(("_weight", ".weight")):  # of several in one module: named after its parameter
        c.name = w.name[: -len("_weight")]
    rows = w.array.reshape(-1, w.array.shape[-1])  # (O, K)
    # the columns follow the order in which the activation's last axis lies in memory
    atoms = x.axes[-1]
    in_memory = tuple(sorted(atoms))
    if atoms != in_memory:
        split = rows.reshape(rows.shape[0], *(x.sizes[i] for i in atoms))
        rows = split.transpose(0, *(1 + atoms.index(i) for i in in_memory)).reshape(rows.shape)
        x = replace(x, axes=(*x.axes[:-1], in_memory))
    rows, offsets = c.folded(rows, b)
    weights, biases = weight_constants(c, w, b, rows, offsets)
    v, form = c.rows(x)
    out = c.emit("fully_connected", (v.tensor, weights, biases), FullyConnectedAttrs())
    return from_form(out, (*x.shape[:-1], rows.shape[0]), form)


@rule("addmm")
def addmm(c: Context, self: Any, mat1: Any, mat2: Any, beta: Any = 1, alpha: Any = 1) -> Any:
    if beta != 1 or alpha != 1:
        raise Unsupported(f"addmm with beta {beta}, alpha {alpha}", "use torch.nn.functional.linear")
    bias = constant(self, "the added matrix")
    w = constant(mat2, "the second matrix")
    if bias.array.ndim != 1 or bias.array.size != w.array.shape[1]:
        bias = Const(np.broadcast_to(bias.array.reshape(-1), (w.array.shape[1],)), bias.name)
    return linear(c, mat1, Const(w.array.T, w.name), bias)


@rule("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")
def batch_norm(
    c: Context,
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: Any = False,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
    cudnn_enabled: Any = False,
) -> Any:
    """A BatchNorm that no weighted op took in: an affine map per channel, as a 1x1 depthwise convolution."""
    x = activation(input)
    a = batch_norm_affine(weight, bias, running_mean, running_var, training, eps)
    return (channel_affine(c, x, a),)


def batch_norm_affine(weight: Any, bias: Any, mean: Any, var: Any, training: bool, eps: float) -> Affine:
    """y = (x - mean) / sqrt(var + eps) * weight + bias as scale and offset, in float64."""
    if training or mean is None or var is None:
        raise Unsupported(
            "BatchNorm uses the statistics of the batch",
            "call module.eval() before capture, and keep track_running_stats=True",
            "training-mode",
        )
    m, v = constant(mean, "running_mean").array.astype(np.float64), constant(var, "running_var").array.astype(np.float64)
    scale = 1.0 / np.sqrt(v + eps)
    if weight is not None:
        scale = scale * constant(weight, "weight").array.astype(np.float64)
    offset = -m * scale
    if bias is not None:
        offset = offset + constant(bias, "bias").array.astype(np.float64)
    return Affine(scale, offset)


def channel_affine(c: Context, x: Value, a: Affine) -> Value:
    """scale * x + offset along logical axis 1."""
    channels = x.shape[1]
    w = c.constant(c.name + ".scale", a.scale.reshape(1, 1, 1, channels))
    b = c.constant(c.name + ".offset", a.offset)
    shape = x.shape
    forms = {2: (0, -1, -1, 1), 3: NHWC_OF_1D, 4: NHWC}
    if x.rank not in forms:
        raise Unsupported(f"BatchNorm on an input of rank {x.rank}", "ranks 2, 3 and 4 are supported")
    v = c.to_form(x, forms[x.rank])
    return from_form(c.emit("depthwise_conv2d", (v.tensor, w, b), DepthwiseAttrs()), shape, forms[x.rank])


# ---------------------------------------------------------------------- element by element


def unary(c: Context, x: Any, op: str, attrs: Any = NoAttrs()) -> Value:
    v = activation(x)
    return replace(v, tensor=c.emit(op, (v.tensor,), attrs))


@rule("relu")
def relu(c: Context, self: Any) -> Any:
    return unary(c, self, "relu")


@rule("relu6")
def relu6(c: Context, self: Any) -> Any:
    return unary(c, self, "relu6")


@rule("clamp", "clip", "clamp_min", "clamp_max", "hardtanh")
def clamp(c: Context, self: Any, min: Any = None, max: Any = None, min_val: Any = None, max_val: Any = None) -> Any:
    lo = min if min is not None else min_val
    hi = max if max is not None else max_val
    lo, hi = scalar_of(lo, -np.inf), scalar_of(hi, np.inf)
    if lo > hi:
        raise Unsupported(f"clamp with bounds {lo} > {hi}")
    if (lo, hi) == (0.0, np.inf):
        return unary(c, self, "relu")
    if (lo, hi) == (0.0, 6.0):
        return unary(c, self, "relu6")
    if (lo, hi) == (-np.inf, np.inf):
        return self
    return unary(c, self, "clamp", ClampAttrs(lo, hi))


def scalar_of(x: Any, default: float) -> float:
    if x is None:
        return default
    if isinstance(x, Const) and x.array.size == 1:
        return float(x.array.reshape(()))
    if isinstance(x, int | float):
        return float(x)
    raise Unsupported("clamp with a tensor of bounds", "use numbers for min and max")


@rule("sigmoid")
def sigmoid(c: Context, self: Any) -> Any:
    return unary(c, self, "logistic")


@rule("tanh")
def tanh(c: Context, self: Any) -> Any:
    return unary(c, self, "tanh")


@rule("silu")
def silu(c: Context, self: Any) -> Any:
    return unary(c, self, "silu")


@rule("hardswish")
def hardswish(c: Context, self: Any) -> Any:
    return unary(c, self, "hard_swish")


@rule("hardsigmoid")
def hardsigmoid(c: Context, self: Any) -> Any:
    return unary(c, self, "hard_sigmoid")


@rule("leaky_relu")
def leaky_relu(c: Context, self: Any, negative_slope: Any = 0.01) -> Any:
    return unary(c, self, "leaky_relu", AlphaAttrs(float(negative_slope)))


@rule("elu")
def elu(c: Context, self: Any, alpha: Any = 1.0, scale: Any = 1, input_scale: Any = 1) -> Any:
    if scale != 1 or input_scale != 1:
        raise Unsupported(f"elu with scale {scale} and input scale {input_scale} (selu)", "use torch.nn.ELU")
    return unary(c, self, "elu", AlphaAttrs(float(alpha)))


@rule("prelu", "_prelu_kernel")
def prelu(c: Context, self: Any, weight: Any) -> Any:
    x, w = activation(self), constant(weight, "weight")
    slopes = w.array.reshape(-1)
    if slopes.size == 1:
        return unary(c, x, "leaky_relu", AlphaAttrs(float(slopes[0])))
    forms = {2: (0, 1), 3: NHWC_OF_1D, 4: NHWC}
    if x.rank not in forms:
        raise Unsupported(f"prelu with {slopes.size} slopes on rank {x.rank}", "ranks 2, 3 and 4 are supported")
    v = c.to_form(x, forms[x.rank])
    return replace(v, tensor=c.emit("prelu", (v.tensor, c.constant(w.name, slopes)), NoAttrs()))


@dataclass(frozen=True, slots=True)
class Positive(Symbol):
    """Where ``of`` is above zero."""

    words: ClassVar[str] = "a comparison"
    fix: ClassVar[str] = "use relu, leaky_relu, prelu, or arithmetic"

    of: Value


@rule("gt", "ge")
def above(c: Context, self: Any, other: Any) -> Any:
    if not isinstance(self, Value) or scalar_of(other, np.nan) != 0:
        raise Unsupported("a comparison", "comparisons have no form here", "unsupported-op")
    return Positive(self)


@rule("where", on=Positive)
def where(c: Context, condition: Any, self: Any, other: Any) -> Any:
    """where(x > 0, x, slope * x): prelu as core ATen spells it."""
    if isinstance(condition, Positive) and isinstance(other, Value) and condition.of == self:
        product = next((n for n in reversed(c.b.nodes) if n.outputs == (other.tensor,)), None)
        if product is not None and product.op == "mul" and condition.of.tensor in product.inputs:
            k = next(t for t in product.inputs if t != condition.of.tensor)
            if k in c.b.constants:
                slopes = c.b.constants[k]
                form = c.form_of(other)
                wide = [form[i] for i, d in enumerate(slopes.shape) if d > 1] if form is not None and slopes.size > 1 else []
                if wide in ([], [1]):
                    return prelu(c, self, Const(slopes, k))
    raise Unsupported("a choice element by element", "use relu, leaky_relu, prelu, or arithmetic", "unsupported-op")


def binary(c: Context, op: str, a: Any, b: Any) -> Value:
    """add, sub or mul of activations and constants, broadcast."""
    if isinstance(a, Value) and isinstance(b, Value):
        return _binary_values(c, op, a, b)
    if isinstance(a, Value):
        return _binary_constant(c, op, a, _array(b), swapped=False)
    return _binary_constant(c, op, b, _array(a), swapped=True)


def _array(x: Any) -> Const:
    return x if isinstance(x, Const) else Const(np.asarray(x, np.float32), "")


def _binary_values(c: Context, op: str, a: Value, b: Value) -> Value:
    rank = len(c.out_shape)
    a, b = lift(replace(a, stretched=None), rank), lift(replace(b, stretched=None), rank)
    if prod(a.shape) != prod(c.out_shape) and prod(b.shape) != prod(c.out_shape):
        raise Unsupported(f"both operands broadcast: {a.shape} and {b.shape}", "make one operand as large as the result")
    if (a.sizes, a.axes) == (b.sizes, b.axes) and c.real_shape(a) == c.real_shape(b):
        return replace(a, tensor=c.emit(op, (a.tensor, b.tensor), BinaryAttrs()))
    large = [b, a] if prod(b.shape) > prod(a.shape) else [a, b] if prod(a.shape) == prod(b.shape) else [a]
    form = next((f for v in large if (f := c.full_form(v)) is not None), None) or c.natural_form(large[0])
    operands = [c.to_form(v, form) for v in (a, b)]  # moves already made are reused
    return from_form(c.emit(op, [v.tensor for v in operands], BinaryAttrs()), c.out_shape, form)


def _binary_constant(c: Context, op: str, v: Value, k: Const, swapped: bool) -> Value:
    v = replace(v, stretched=None)
    name = k.name or c.name + ".constant"
    if k.array.size == 1:
        v = lift(v, len(c.out_shape))
        number = c.constant(name, k.array.reshape(1))
        pair_ = (number, v.tensor) if swapped else (v.tensor, number)
        return replace(v, tensor=c.emit(op, pair_, BinaryAttrs()))
    rank = len(c.out_shape)
    v, form = c.simple(lift(v, rank))
    array = k.array.reshape((1,) * (rank - k.array.ndim) + k.array.shape)
    number = c.constant(name, c.laid(array, form))
    pair_ = (number, v.tensor) if swapped else (v.tensor, number)
    return from_form(c.emit(op, pair_, BinaryAttrs()), c.out_shape, form)


def _scaled(c: Context, x: Any, factor: float) -> Any:
    """factor * x for add's and sub's alpha."""
    if factor == 1:
        return x
    if isinstance(x, Value):
        return binary(c, "mul", x, factor)
    return Const(_array(x).array * factor, "")


def add(c: Context, self: Any, other: Any, alpha: Any = 1) -> Any:
    return binary(c, "add", self, _scaled(c, other, alpha))


@rule("sub", "subtract")
def sub(c: Context, self: Any, other: Any, alpha: Any = 1) -> Any:
    if not isinstance(other, Value):  # x - k is x + (-k): one op fewer for targets to have
        return binary(c, "add", self, Const(-alpha * _array(other).array, ""))
    return binary(c, "sub", self, _scaled(c, other, alpha))


@rule("rsub")
def rsub(c: Context, self: Any, other: Any, alpha: Any = 1) -> Any:
    return binary(c, "sub", other, _scaled(c, self, alpha))


@rule("mul", "multiply")
def mul(c: Context, self: Any, other: Any) -> Any:
    return binary(c, "mul", self, other)


@rule("div", "divide", "true_divide")
def div(c: Context, self: Any, other: Any, rounding_mode: Any = None) -> Any:
    if rounding_mode is not None:
        raise Unsupported(f"division with rounding_mode '{rounding_mode}'", "integer division has no form here")
    if isinstance(other, Value):
        raise Unsupported("division by an activation", "divide by constants only")
    k = _array(other).array.astype(np.float64)
    if not np.all(k):
        raise Unsupported("division by a constant that holds 0", "", "non-finite-weight")
    return binary(c, "mul", self, Const(1.0 / k, ""))


@rule("neg")
def neg(c: Context, self: Any) -> Any:
    return binary(c, "mul", self, -1.0)


@rule("square")
def square(c: Context, self: Any) -> Any:
    return binary(c, "mul", self, self)


@rule("pow")
def pow_(c: Context, self: Any, exponent: Any) -> Any:
    if exponent == 2:
        return binary(c, "mul", self, self)
    if exponent == 1:
        return self
    raise Unsupported(f"pow with exponent {exponent}", "exponents 1 and 2 are supported")


# ---------------------------------------------------------------------- pooling and reductions


def _pool_pads(sizes: Pair, kernel: Pair, stride: Pair, padding: Pair, outputs: Pair) -> tuple[Pair, Pair]:
    """Explicit padding that gives ``outputs`` (ceil_mode may ask for more after than before)."""

    def amounts(i: int) -> Pair:
        n, k, s, p = sizes[i], kernel[i], stride[i], padding[i]
        if (n + 2 * p - k) // s + 1 == outputs[i]:
            return (p, p)
        return (p, (outputs[i] - 1) * s + k - n - p)

    return both(amounts)


def _pool(c: Context, op: str, x: Value, kernel: Any, stride: Any, padding: Any, include_pad: bool = False) -> Value:
    dims = c.spatial_dims
    v = image(c, x, dims)
    kernel = spatial(kernel, dims, 1)
    stride = spatial(stride, dims, 1) if stride not in (None, [], ()) else kernel
    padding = spatial(padding, dims, 0)
    outputs = (1, c.out_shape[2]) if dims == 1 else (c.out_shape[2], c.out_shape[3])
    tensor = v.tensor
    sizes = pair(c.b.tensors[tensor].shape[1:3])
    if include_pad and any(padding):
        paddings = ((0, 0), *((p, p) for p in padding), (0, 0))
        tensor = c.emit("pad", (tensor,), PadAttrs(paddings), ".pad")
        sizes, padding = pair(c.b.tensors[tensor].shape[1:3]), (0, 0)
    pads = _pool_pads(sizes, kernel, stride, padding, outputs)
    return image_result(c, c.emit(op, (tensor,), PoolAttrs(kernel, stride, pads)), dims)


@rule("max_pool1d", "max_pool2d", "max_pool2d_with_indices")
def max_pool(c: Context, self: Any, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: Any = False) -> Any:
    if any(d != 1 for d in pair(dilation)):
        raise Unsupported(f"max pooling with dilation {dilation}", "use dilation 1")
    return (_pool(c, "max_pool2d", activation(self), kernel_size, stride, padding),)


@rule("avg_pool1d", "avg_pool2d")
def avg_pool(
    c: Context,
    self: Any,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: Any = False,
    count_include_pad: Any = True,
    divisor_override: Any = None,
) -> Any:
    if divisor_override not in (None, prod(pair(kernel_size))):
        raise Unsupported(f"average pooling with divisor_override {divisor_override}", "scale the result with a multiplication")
    return _pool(c, "avg_pool2d", activation(self), kernel_size, stride, padding, include_pad=count_include_pad)


def _adaptive(c: Context, x: Value, output_size: Any, reduce_op: str, pool_op: str) -> Value:
    dims = c.spatial_dims
    if x.rank != dims + 2:
        image(c, x, dims)
    sizes = x.shape[2:]
    wanted = c.out_shape[2:]
    if all(o == 1 for o in wanted):
        return reduce_axes(c, reduce_op, x, tuple(range(2, x.rank)), keepdim=True)
    if wanted == sizes:
        return x
    if any(n % o for n, o in zip(sizes, wanted, strict=True)):
        raise Unsupported(
            f"adaptive pooling from {sizes} to {wanted}: the windows differ in size",
            f"choose output sizes that divide {sizes}",
        )
    kernel = [n // o for n, o in zip(sizes, wanted, strict=True)]
    return _pool(c, pool_op, x, kernel if dims == 2 else kernel[0], None, 0)


@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def adaptive_avg_pool(c: Context, self: Any, output_size: Any) -> Any:
    return _adaptive(c, activation(self), output_size, "mean", "avg_pool2d")


@rule("adaptive_max_pool1d", "adaptive_max_pool2d")
def adaptive_max_pool(c: Context, self: Any, output_size: Any) -> Any:
    return (_adaptive(c, activation(self), output_size, "reduce_max", "max_pool2d"),)


def reduce_axes(c: Context, op: str, x: Value, dims: Sequence[int], keepdim: bool) -> Value:
    reduced = {axis_of(d, x.rank) for d in dims} or set(range(x.rank))
    shape = x.shape
    v, form = c.simple(x)
    real = c.real_shape(v)
    # the sample axis stays where it holds one sample: reducing it would do nothing but tie samples together
    axes = tuple(i for i, a in enumerate(form) if (a in reduced or a == -1) and not (i == 0 and real[0] == 1))
    rest = tuple(-1 if a in reduced else a for i, a in enumerate(form) if i not in axes)
    if not axes:
        return x if keepdim else replace(x, axes=tuple(axis for i, axis in enumerate(x.axes) if i not in reduced))
    out = c.emit(op, (v.tensor,), ReduceAttrs(axes, keep_dims=False))
    kept = from_form(out, tuple(1 if i in reduced else d for i, d in enumerate(shape)), rest)
    return kept if keepdim else replace(kept, axes=tuple(axis for i, axis in enumerate(kept.axes) if i not in reduced))


@rule("mean")
def mean(c: Context, self: Any, dim: Any = None, keepdim: Any = False, dtype: Any = None) -> Any:
    return reduce_axes(c, "mean", activation(self), _dims(dim), keepdim)


@rule("sum")
def sum_(c: Context, self: Any, dim: Any = None, keepdim: Any = False, dtype: Any = None) -> Any:
    return reduce_axes(c, "sum", activation(self), _dims(dim), keepdim)


@rule("amax", "max.default")
def amax(c: Context, self: Any, dim: Any = None, keepdim: Any = False) -> Any:
    return reduce_axes(c, "reduce_max", activation(self), _dims(dim), keepdim)


@rule("max.dim")
def max_dim(c: Context, self: Any, dim: Any, keepdim: Any = False) -> Any:
    return (reduce_axes(c, "reduce_max", activation(self), _dims(dim), keepdim),)


def _dims(dim: Any) -> tuple[int, ...]:
    if dim is None:
        return ()
    return (dim,) if isinstance(dim, int) else tuple(dim)


@rule("softmax", "_softmax", "_safe_softmax")
def softmax(c: Context, self: Any, dim: Any, dtype: Any = None, half_to_float: Any = False) -> Any:
    x = activation(self)
    return softmax_over(c, x, axis_of(dim, x.rank))


def softmax_over(c: Context, x: Value, dim: int, beta: float = 1.0, suffix: str = "") -> Value:
    """softmax(beta * x) over logical axis ``dim``, however the other axes lie."""
    atoms = x.axes[dim]
    if atoms and atoms == tuple(range(len(x.sizes)))[-len(atoms) :] and c.real_shape(x)[-1] == x.shape[dim]:
        return replace(x, tensor=c.emit("softmax", (x.tensor,), SoftmaxAttrs(beta), suffix))
    v, form = c.last(x, dim)
    return from_form(c.emit("softmax", (v.tensor,), SoftmaxAttrs(beta), suffix), v.shape, form)


# ---------------------------------------------------------------------- shapes


@rule("view", "reshape", "_unsafe_view", "_reshape_alias", "view_copy")
def reshape(c: Context, self: Any, size: Any = None, shape: Any = None, stride: Any = None) -> Any:
    return _view(c, activation(self))


@rule("flatten", "unflatten", "squeeze", "unsqueeze", "squeeze_copy", "unsqueeze_copy")
def reshape_like(c: Context, self: Any, *args: Any, **kwargs: Any) -> Any:
    return _view(c, activation(self))


def _view(c: Context, x: Value) -> Value:
    if x.stretched is not None:
        expanded = view_stretched(x, c.out_shape)
        if expanded is not None:
            return expanded
    return c.view(whole(c, x), c.out_shape)


@rule("permute", "permute_copy")
def permute_(c: Context, self: Any, dims: Any) -> Any:
    v = activation(self)
    return permute(v, [axis_of(d, v.rank) for d in dims])


@rule("transpose", "transpose_copy", "swapaxes")
def transpose(c: Context, self: Any, dim0: Any, dim1: Any) -> Any:
    v = activation(self)
    dims = list(range(v.rank))
    i, j = axis_of(dim0, v.rank), axis_of(dim1, v.rank)
    dims[i], dims[j] = dims[j], dims[i]
    return permute(v, dims)


@rule("t", "numpy_T")
def t(c: Context, self: Any) -> Any:
    v = activation(self)
    return permute(v, tuple(reversed(range(v.rank))))


@rule("expand", "expand_copy", "expand_as", "broadcast_to")
def expand(c: Context, self: Any, *args: Any, **kwargs: Any) -> Any:
    return stretch(activation(self), c.out_shape)


def stretch(x: Value, shape: tuple[int, ...]) -> Value:
    """x as ``expand`` gives it: of ``shape``, repeated in no memory."""
    v = lift(replace(x, stretched=None), len(shape))
    return v if v.shape == shape else replace(v, stretched=shape)


def whole(c: Context, x: Any) -> Any:
    """``x`` with what ``expand`` promised repeated in memory; anything but an expanded value as it is."""
    if not isinstance(x, Value) or x.stretched is None:
        return x
    shape, v = x.stretched, replace(x, stretched=None)
    for axis, (have, wanted) in enumerate(zip(v.shape, shape, strict=True)):
        if have != wanted and axis == 0 and c.real_shape(v)[:1] == (1,):  # beside the sample axis, not along it
            v = _concat(c, [lift(v, v.rank + 1)] * wanted, 1, ".expand0")
            v = replace(v, axes=v.axes[1:])
        elif have != wanted:
            v = _concat(c, [v] * wanted, axis, f".expand{axis}")
    return v


@rule("repeat", "tile")
def repeat(c: Context, self: Any, repeats: Any = None, dims: Any = None) -> Any:
    v = lift(activation(self), len(c.out_shape))
    repeats = dims if repeats is None else repeats
    repeats = [1] * (v.rank - len(repeats)) + list(repeats)
    for axis, times in enumerate(repeats):
        if times > 1:
            v = _concat(c, [v] * times, axis, f".repeat{axis}")
    return v


@rule("cat", "concat", "concatenate")
def cat(c: Context, tensors: Any, dim: Any = 0) -> Any:
    parts = [t for t in tensors if not (isinstance(t, Const) and t.array.size == 0)]
    return _concat(c, parts, axis_of(dim, len(c.out_shape)))


@rule("stack")
def stack(c: Context, tensors: Any, dim: Any = 0) -> Any:
    dim = axis_of(dim, len(c.out_shape))
    parts: list[Value | Const] = []
    for t in tensors:
        if isinstance(t, Const):
            parts.append(replace(t, array=np.expand_dims(t.array, dim)))
        else:
            parts.append(replace(t, axes=(*t.axes[:dim], (), *t.axes[dim:])))
    return _concat(c, parts, dim)


def _concat(c: Context, parts: Sequence[Value | Const], dim: int, suffix: str = "") -> Value:
    """The parts, one at least an activation, joined along logical axis ``dim``."""
    if len(parts) == 1:
        return activation(parts[0])
    votes: dict[Form, int] = {}
    for p in parts:  # the form in which most of the data lies already
        if isinstance(p, Const):
            continue
        have = c.form_of(p)
        form = have if have is not None and set(range(p.rank)) <= set(have) else c.natural_form(p)
        votes[form] = votes.get(form, 0) + prod(p.shape)
    form = max(votes, key=lambda f: votes[f])
    placed = [c.constant(p.name, c.laid(p.array, form)) if isinstance(p, Const) else c.to_form(p, form).tensor for p in parts]
    out = c.emit("concat", placed, ConcatAttrs(form.index(dim)), suffix)
    shapes = [p.array.shape if isinstance(p, Const) else p.shape for p in parts]
    shape = list(shapes[0])
    shape[dim] = sum(p[dim] for p in shapes)
    return from_form(out, shape, form)


def slice_axis(c: Context, x: Value, dim: int, begin: int, end: int, step: int = 1, suffix: str = "") -> Value:
    """x[..., begin:end:step, ...] along logical axis ``dim``."""
    extent = x.shape[dim]
    if (begin, end, step) == (0, extent, 1):
        return x
    v, form = c.simple(x)
    real = c.real_shape(v)
    axis = form.index(dim)
    at = [0] * len(real)
    to, by = list(real), [1] * len(real)
    at[axis], to[axis], by[axis] = begin, end, step
    out = c.emit("slice", (v.tensor,), SliceAttrs(tuple(at), tuple(to), tuple(by)), suffix)
    shape = list(v.shape)
    shape[dim] = (end - begin + step - 1) // step
    return from_form(out, shape, form)


@rule("slice", "slice_copy")
def slice_(c: Context, self: Any, dim: Any = 0, start: Any = None, end: Any = None, step: Any = 1) -> Any:
    x = activation(self)
    dim = axis_of(dim, x.rank)
    extent = x.shape[dim]
    begin, stop, _ = slice(start, end).indices(extent)
    if stop <= begin:
        raise Unsupported(f"an empty slice [{start}:{end}] of an axis of size {extent}")
    return slice_axis(c, x, dim, begin, stop, step)


@rule("narrow")
def narrow(c: Context, self: Any, dim: Any, start: Any, length: Any) -> Any:
    return slice_(c, self, dim, start, start + length)


@rule("select", "select_copy")
def select(c: Context, self: Any, dim: Any, index: Any) -> Any:
    x = activation(self)
    dim = axis_of(dim, x.rank)
    index = axis_of(index, x.shape[dim])
    v = slice_axis(c, x, dim, index, index + 1)
    return replace(v, axes=(*v.axes[:dim], *v.axes[dim + 1 :]))


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
def split(c: Context, self: Any, *args: Any, dim: Any = 0, **kwargs: Any) -> Any:
    x = activation(self)
    dim = axis_of(dim, x.rank)
    out, at = [], 0
    for i, shape in enumerate(c.out_shapes):
        out.append(slice_axis(c, x, dim, at, at + shape[dim], suffix=f".{i}"))
        at += shape[dim]
    return tuple(out)


@rule("glu")
def glu(c: Context, self: Any, dim: Any = -1) -> Any:
    """First half times the sigmoid of the second half."""
    x = activation(self)
    dim = axis_of(dim, x.rank)
    half = x.shape[dim] // 2
    value = slice_axis(c, x, dim, 0, half, suffix=".0")
    gate = slice_axis(c, x, dim, half, 2 * half, suffix=".1")
    return binary(c, "mul", value, unary(c, gate, "logistic"))


@rule("unbind")
def unbind(c: Context, self: Any, dim: Any = 0) -> Any:
    x = activation(self)
    return tuple(select(c, x, dim, i) for i in range(x.shape[dim]))


@rule("constant_pad_nd", "pad")
def pad(c: Context, self: Any, pad: Any, mode: Any = "constant", value: Any = 0) -> Any:
    if mode != "constant":
        raise Unsupported(f"padding mode '{mode}'", "use zero (constant) padding")
    x = activation(self)
    amounts = [(0, 0)] * x.rank
    for i in range(len(pad) // 2):
        amounts[x.rank - 1 - i] = (int(pad[2 * i]), int(pad[2 * i + 1]))
    v = x
    for dim, (before, after) in enumerate(amounts):  # negative padding crops
        if before < 0 or after < 0:
            v = slice_axis(c, v, dim, max(0, -before), v.shape[dim] - max(0, -after), suffix=f".crop{dim}")
    amounts = [(max(0, b), max(0, a)) for b, a in amounts]
    if not any(any(p) for p in amounts):
        return v
    v, form = c.simple(v)
    paddings = tuple(amounts[a] if a >= 0 else (0, 0) for a in form)
    shape = tuple(d + sum(p) for d, p in zip(v.shape, amounts, strict=True))
    return from_form(c.emit("pad", (v.tensor,), PadAttrs(paddings, float(value or 0))), shape, form)


@rule("upsample_nearest1d", "upsample_nearest2d")
def upsample_nearest(
    c: Context, input: Any = None, output_size: Any = None, scale_factors: Any = None, self: Any = None, **scales: Any
) -> Any:
    return _resize(c, "resize_nearest", activation(input if input is not None else self), scale_factors, ResizeAttrs)


@rule("upsample_bilinear2d")
def upsample_bilinear(
    c: Context,
    input: Any = None,
    output_size: Any = None,
    align_corners: Any = False,
    scale_factors: Any = None,
    self: Any = None,
    **scales: Any,
) -> Any:
    def attrs(size: Any) -> Any:
        return ResizeAttrs(size, align_corners=align_corners, half_pixel_centers=not align_corners)

    return _resize(c, "resize_bilinear", activation(input if input is not None else self), scale_factors, attrs)


def _resize(c: Context, op: str, x: Value, factors: Any, attrs: Callable[[Pair], ResizeAttrs]) -> Value:
    dims = c.spatial_dims
    v = image(c, x, dims)
    wanted = c.out_shape[2:]
    for n, out, f in zip(x.shape[2:], wanted, factors or (), strict=False):
        if f is not None and abs(n * f - out) > 1e-6:
            raise Unsupported(f"upsampling {n} by {f} gives {n * f:.3f}, not a whole size", "give size=, or a factor that divides evenly")
    size = (1, wanted[0]) if dims == 1 else (wanted[0], wanted[1])
    return image_result(c, c.emit(op, (v.tensor,), attrs(size)), dims)


@rule("pixel_shuffle")
def pixel_shuffle(c: Context, self: Any, upscale_factor: Any) -> Any:
    x, r = activation(self), int(upscale_factor)
    n, ch, h, w = x.shape
    v = c.view(x, (n, ch // (r * r), r, r, h, w))
    return c.simple(c.view(permute(v, (0, 1, 4, 2, 5, 3)), (n, ch // (r * r), h * r, w * r)))[0]


@rule("pixel_unshuffle")
def pixel_unshuffle(c: Context, self: Any, downscale_factor: Any) -> Any:
    x, r = activation(self), int(downscale_factor)
    n, ch, h, w = x.shape
    v = c.view(x, (n, ch, h // r, r, w // r, r))
    return c.simple(c.view(permute(v, (0, 1, 3, 5, 2, 4)), (n, ch * r * r, h // r, w // r)))[0]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(c: Context, self: Any, groups: Any) -> Any:
    x = activation(self)
    n, ch, *rest = x.shape
    v = c.view(x, (n, groups, ch // groups, *rest))
    order = (0, 2, 1, *range(3, 3 + len(rest)))
    return c.simple(c.view(permute(v, order), x.shape))[0]


# ---------------------------------------------------------------------- nothing to compute


@rule(
    "alias", "alias_copy", "clone", "contiguous", "detach", "detach_copy", "identity", "lift_fresh", "lift_fresh_copy",
    "feature_dropout", "alpha_dropout", "dropout", "dropout_", "positive", "view_as", "resolve_conj", "resolve_neg",
)  # fmt: skip
def same(c: Context, input: Any = None, p: Any = 0.0, train: Any = False, self: Any = None, **ignored: Any) -> Any:
    if train and p > 0:
        raise Unsupported("dropout in training mode", "call module.eval() before capture", "training-mode")
    return input if input is not None else self


@rule("native_dropout")
def native_dropout(c: Context, input: Any, p: Any, train: Any) -> Any:
    return (same(c, input, p, bool(train)),)


@rule("to", "_to_copy", "type_as", "float")
def to(c: Context, self: Any, *args: Any, dtype: Any = None, **ignored: Any) -> Any:
    if c.is_integer(self) and str(dtype).startswith("torch.int"):
        return self
    if c.is_integer(self) and dtype is not None:
        raise Unsupported(f"a cast of indices to {dtype}", "integer inputs index embeddings", "unsupported-dtype")
    if dtype is not None and str(dtype) != "torch.float32":
        raise Unsupported(f"a cast to {dtype}", "keep activations in float32; quantization chooses the integer type", "unsupported-dtype")
    return self


#: why well-known ops are refused, where a better word than "unsupported" is known
HINTS: dict[str, str] = {
    "log_softmax": "return the logits, or use softmax",
    "group_norm": "use BatchNorm, which folds into the weights, or LayerNorm over the channels",
    "instance_norm": "use BatchNorm, which folds into the weights",
    "conv3d": "1-D and 2-D convolutions are supported",
    "lstm": "recurrent layers have no form here",
    "gru": "recurrent layers have no form here",
    "topk": "return the logits and take topk outside the network",
    "sort": "return the values and sort outside the network",
    "cumsum": "compute position ids outside the network, or as a buffer",
    "erf": "use torch.nn.functional.gelu",
    "index": "take constant slices, or torch.nn.functional.embedding",
    "gather": "take constant slices, or torch.nn.functional.embedding",
    "embedding_bag": "use torch.nn.functional.embedding and a mean",
    "rsqrt": "it has a form inside RMSNorm and LayerNorm: x * rsqrt(mean(x**2) + eps)",
    "sqrt": "it has a form inside LayerNorm: (x - mean) / sqrt(var + eps)",
    "tril": "build masks from constants",
    "triu": "build masks from constants",
}
