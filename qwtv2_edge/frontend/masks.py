"""Masks: values of two numbers, followed from the input or constant that they come from to the op that they mask.

(1)  a mask is ``yes`` where every one of its literals holds, ``no`` elsewhere; a literal is a {0, 1} tensor or its complement
(2)  casts, comparisons, 1 - m, m * -1e4 and the like change the two numbers alone
(3)  a & b joins the literals; so does a + b of two masks that add 0 where they keep
(4)  a mask that adds -1e3 or less to what a softmax or maximum reads, or fills it with such a number, becomes
     mask_fill(x, literal, -1e4): what it masks weighs nothing either way
(5)  sum(x * m) / sum(m) over an axis is softmax(mask_fill(0, m)) @ x: equal weights over what is kept
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isinf, isnan
from typing import Any, ClassVar

import numpy as np

from qwtv2_edge.frontend import aten
from qwtv2_edge.frontend.aten import Const, Context, Symbol, Unsupported, apply, axis_of, binary, rule, scalar_of, stretch
from qwtv2_edge.frontend.layout import Value, from_form, lift, permute
from qwtv2_edge.frontend.products import product, shape_of
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.index import MaskFillAttrs
from qwtv2_edge.ops.pool import SoftmaxAttrs

#: what masked entries get, and the most that a number may be to mean the same
FILL, MASKING = MaskFillAttrs().fill, -1e3


@dataclass(frozen=True, slots=True)
class Literal:
    """A tensor of zeros and ones (a constant one: of bool), or its complement."""

    of: Value | Const
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class Mask(Symbol):
    """``yes`` where every literal holds (everywhere, without any), else ``no``; boolean: as the framework sees it."""

    words: ClassVar[str] = "a mask"
    fix: ClassVar[str] = "masks have a form in masked_fill, where, attn_mask, added to what a softmax reads, and in a masked mean"

    literals: tuple[Literal, ...]
    shape: tuple[int, ...]
    yes: float = 1.0
    no: float = 0.0
    boolean: bool = True

    def mapped(self, f: Callable[[float], float | bool], boolean: bool = False) -> Mask:
        with np.errstate(over="ignore"):
            return replace(self, yes=float(f(self.yes)), no=float(f(self.no)), boolean=boolean)


@dataclass(frozen=True, slots=True)
class Masked(Symbol):
    """x * mask; summed over logical axis ``axis`` where that is given."""

    words: ClassVar[str] = "a product with a mask"
    fix: ClassVar[str] = "it has a form in a mean over what is kept: (x * m).sum(1) / m.sum(1).clamp(min=1e-9)"

    x: Value
    mask: Mask
    axis: int | None = None
    keepdim: bool = False


@dataclass(frozen=True, slots=True)
class Count(Symbol):
    """How many entries of logical axis ``axis`` a mask keeps."""

    words: ClassVar[str] = "the number of entries that a mask keeps"
    fix: ClassVar[str] = Masked.fix

    mask: Mask
    axis: int
    keepdim: bool


def of_input(v: Value, boolean: bool) -> Mask:
    """The mask that a graph input of zeros and ones is."""
    return Mask((Literal(v),), v.shape, boolean=boolean)


def of_constant(k: Const) -> Mask:
    """A constant of two values at most as a mask. Raises Unsupported where it holds more."""
    values = np.unique(k.array)
    if k.array.dtype == bool:
        return Mask((Literal(k),), k.array.shape)
    if len(values) > 2:
        raise Unsupported(f"a mask that meets a constant of {len(values)} values", "give the constant two values, 0 and -1e4")
    high = Const(k.array == values[-1], k.name)
    literals = (Literal(high),) if len(values) == 2 else ()
    return Mask(literals, k.array.shape, float(values[-1]), float(values[0]), boolean=False)


def as_mask(x: Any) -> Mask:
    if isinstance(x, Const):
        return of_constant(x)
    if isinstance(x, Mask):
        return x
    raise Unsupported("a mask that meets the network's data", Mask.fix)


def where_yes(m: Mask) -> tuple[Literal, ...]:
    """The literals that must hold for the number that counts as true."""
    yes, no = bool(m.yes), bool(m.no)
    if yes and not no:
        return m.literals
    if yes and no:
        return ()
    if len(m.literals) != 1 or yes == no:
        raise Unsupported("a mask that keeps where one of several masks does not hold", "join what is to be kept with &")
    return (Literal(m.literals[0].of, not m.literals[0].inverted),)


def negated(m: Mask) -> Mask:
    return m.mapped(lambda x: not x, boolean=True)


# ---------------------------------------------------------------------- algebra


@rule("to", "_to_copy", "type_as", "float", "bool", on=Mask)
def cast(c: Context, self: Any, *args: Any, dtype: Any = None, **ignored: Any) -> Any:
    if str(dtype) == "torch.bool":
        return self.mapped(bool, boolean=True)
    return self if dtype is None else replace(self, boolean=False)


@rule("clone", "contiguous", "detach", "alias", "lift_fresh_copy", on=Mask)
def same_mask(c: Context, self: Any, *args: Any, **ignored: Any) -> Any:
    return self


COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
}


@rule(*COMPARISONS, on=Mask)
def compared(c: Context, self: Any, other: Any) -> Any:
    if not isinstance(self, Mask):
        raise Unsupported("a comparison with a mask", Mask.fix)
    number = scalar_of(other, 0.0)
    return self.mapped(lambda x: COMPARISONS[c.op.split(".")[0]](x, number), boolean=True)


@rule("eq")
def never(c: Context, self: Any, other: Any) -> Any:
    """x == -inf, as attention asks for rows that are masked as a whole: nothing here is ever infinite."""
    if scalar_of(other, 0.0) != -np.inf:
        raise Unsupported("a comparison", "pass the mask as an input of its own", "unsupported-op")
    return Mask((), c.out_shape, 0.0, 0.0)


@rule("any", on=Mask)
def any_(c: Context, self: Any, dim: Any = None, keepdim: Any = False) -> Any:
    if self.literals:
        raise Unsupported("any() of a mask", Mask.fix)
    return replace(self, shape=c.out_shape)


@rule("logical_not", "bitwise_not", on=Mask)
def not_(c: Context, self: Any) -> Any:
    return negated(self)


@rule("logical_and", "bitwise_and", "__and__", on=Mask)
def and_(c: Context, self: Any, other: Any) -> Any:
    a, b = as_mask(self), as_mask(other)
    return Mask(where_yes(a) + where_yes(b), c.out_shape)


@rule("logical_or", "bitwise_or", "__or__", on=Mask)
def or_(c: Context, self: Any, other: Any) -> Any:
    return negated(and_(c, negated(as_mask(self)), negated(as_mask(other))))


@rule("add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "neg", on=Mask)
def arithmetic(c: Context, self: Any, other: Any = None, alpha: Any = 1, rounding_mode: Any = None) -> Any:
    op = {"subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div"}.get(c.op, c.op)
    values = [x for x in (self, other) if isinstance(x, Value)]
    if values and op == "add" and alpha == 1:
        return add_to_scores(c, values[0], other if values[0] is self else self)
    if values and op == "mul":
        numbers = [(x.yes, x.no) for x in (self, other) if isinstance(x, Mask)]
        if numbers != [(1.0, 0.0)]:
            raise Unsupported("a product with a mask of other numbers than 1 and 0", Mask.fix)
        return Masked(values[0], other if values[0] is self else self)
    if values or rounding_mode is not None:
        raise Unsupported(f"{op} of a mask and the network's data", Mask.fix)
    f: Callable[[float, float], float] = {
        "add": lambda a, b: a + alpha * b,
        "sub": lambda a, b: a - alpha * b,
        "rsub": lambda a, b: b - alpha * a,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
        "neg": lambda a, b: -a,
    }[op]
    if not isinstance(other, Mask) and _one_number(other):
        number = scalar_of(other, 0.0)
        return self.mapped(lambda x: f(x, number))
    if not isinstance(self, Mask) and _one_number(self):
        number = scalar_of(self, 0.0)
        return other.mapped(lambda x: f(number, x))
    a, b = as_mask(self), as_mask(other)
    if op == "mul" and (a.yes, a.no) == (b.yes, b.no) == (1.0, 0.0):
        return replace(and_(c, a, b), boolean=False)
    first, second = _additive(a), _additive(b)
    if op == "add" and first is not None and second is not None:
        return Mask(first.literals + second.literals, c.out_shape, 0.0, min(first.no, second.no), boolean=False)
    raise Unsupported(f"{op} of two masks", "multiply masks of 0 and 1, add masks of 0 and -1e4")


def _one_number(x: Any) -> bool:
    return x is None or isinstance(x, int | float) or (isinstance(x, Const) and x.array.size == 1)


def _additive(m: Mask) -> Mask | None:
    """``m`` as 0 where its literals hold and a masking number elsewhere; None where it is neither."""
    if m.yes == 0 and m.no <= MASKING:
        return m
    if m.no == 0 and m.yes <= MASKING and len(m.literals) == 1:
        only = m.literals[0]
        return replace(m, literals=(Literal(only.of, not only.inverted),), yes=0.0, no=m.yes)
    return None


SHAPES = (
    "view", "reshape", "_unsafe_view", "_reshape_alias", "view_copy", "flatten", "unflatten", "squeeze", "unsqueeze", "squeeze_copy",
    "unsqueeze_copy", "permute", "permute_copy", "transpose", "transpose_copy", "expand", "expand_copy", "expand_as", "slice", "slice_copy",
    "select", "select_copy", "narrow",
)  # fmt: skip


@rule(*SHAPES, on=Mask)
def reshaped(c: Context, self: Any, *args: Any, **arguments: Any) -> Any:
    """The same op on every literal."""

    def one(k: Literal) -> Literal:
        if isinstance(k.of, Value):
            return replace(k, of=apply(c, c.op, self=stretch(k.of, self.shape), **arguments))
        array = np.broadcast_to(k.of.array, self.shape)
        if c.op.startswith("expand"):
            return replace(k, of=replace(k.of, array=np.broadcast_to(array, c.out_shape)))
        if array.size == np.prod(c.out_shape) and not c.op.startswith(("permute", "transpose")):
            return replace(k, of=replace(k.of, array=array.reshape(c.out_shape)))
        raise Unsupported(f"{c.op} of a mask joined with a constant", "join masks last")

    return replace(self, literals=tuple(one(k) for k in self.literals), shape=c.out_shape)


# ---------------------------------------------------------------------- masking


@rule("masked_fill", "masked_fill_", on=Mask)
@rule("masked_fill", "masked_fill_")
def masked_fill(c: Context, self: Any, mask: Any, value: Any) -> Any:
    if not isinstance(mask, Mask | Const):
        raise Unsupported("a mask that the network computes", "pass the mask as an input of its own")
    return choice(c, as_mask(mask), value, self)


@rule("where", on=Mask)
@rule("where")
def where(c: Context, condition: Any, self: Any, other: Any) -> Any:
    if not isinstance(condition, Mask | Const):
        raise Unsupported("a choice element by element", "use relu, leaky_relu, prelu, masked_fill, or arithmetic", "unsupported-op")
    return choice(c, as_mask(condition), self, other)


def choice(c: Context, mask: Mask, a: Any, b: Any) -> Any:
    """``a`` where the mask is true, ``b`` elsewhere."""
    if not mask.literals:
        return a if mask.yes else b
    if isinstance(b, Value):
        return fill(c, b, negated(mask), _uniform(a))
    if isinstance(a, Value):
        return fill(c, a, mask, _uniform(b))
    if isinstance(a, Mask) or isinstance(b, Mask) or not (_is_uniform(a) and _is_uniform(b)):
        return _choice_of_masks(c, mask, a, b)
    return replace(mask.mapped(lambda x: _uniform(a) if x else _uniform(b)), shape=c.out_shape)


def _choice_of_masks(c: Context, mask: Mask, a: Any, b: Any) -> Mask:
    """A masking number put into what masks already: additive masks as they are built step by step."""
    if not isinstance(b, Mask) and not (isinstance(b, Const) and not _is_uniform(b)):
        mask, a, b = negated(mask), b, a
    inner, number = as_mask(b), _uniform(a)
    if [_source(k) for k in inner.literals] == [_source(k) for k in mask.literals]:
        yes, no = (number if mask.yes else inner.yes), (number if mask.no else inner.no)
        return replace(inner, yes=yes, no=no, shape=c.out_shape, boolean=False)
    added = _additive(inner)
    if added is None or number > MASKING:
        raise Unsupported(f"a choice of {number} inside a mask", "join masks with & before filling")
    return Mask(where_yes(negated(mask)) + added.literals, c.out_shape, 0.0, min(number, added.no), boolean=False)


def _is_uniform(x: Any) -> bool:
    return not isinstance(x, Mask) and (not isinstance(x, Const) or bool(np.all(x.array == x.array.reshape(-1)[0])))


def _uniform(x: Any) -> float:
    if isinstance(x, Const) and _is_uniform(x):
        return float(x.array.reshape(-1)[0])
    return scalar_of(x, 0.0)


def fill(c: Context, x: Value, keep: Mask, value: float) -> Value:
    """x where ``keep`` is true, else ``value``: one mask_fill per literal."""
    if isnan(value) or value > 1e30:
        raise Unsupported(f"a mask that fills with {value}", "fill with -1e4")
    if value <= MASKING:
        if (value < FILL or isinf(value)) and not c.is_score():
            raise Unsupported(f"a mask that fills with {value:g} what no softmax or maximum reads", "fill with a number that can occur")
        value = FILL if c.is_score() else value
    v, form = c.simple(x)
    out = v.tensor
    for i, literal in enumerate(where_yes(keep)):
        shape = shape_of(literal.of)
        if np.broadcast_shapes(shape, x.shape) != x.shape:
            raise Unsupported(f"a mask of shape {shape} on a tensor of shape {x.shape}", "give the tensor the shape of the result")
        out = c.emit("mask_fill", (out, _placed(c, literal, form, x.rank)), MaskFillAttrs(value), f".mask{i}" if i else "")
    return from_form(out, v.shape, form)


def _placed(c: Context, literal: Literal, form: tuple[int, ...], rank: int) -> str:
    """The literal as a float32 tensor of 1 (keep) and 0, broadcast against a tensor in ``form``."""
    if isinstance(literal.of, Const):
        array = literal.of.array != literal.inverted
        array = array.reshape((1,) * (rank - array.ndim) + array.shape)
        return c.constant(literal.of.name or "mask", c.laid(array, form))
    return c.to_form(lift(replace(_upright(c, literal), stretched=None), rank), form).tensor


def _upright(c: Context, literal: Literal) -> Value:
    """The tensor of a literal that is an activation, complemented where the literal is."""
    assert isinstance(literal.of, Value)
    if not literal.inverted:
        return literal.of
    made = c.complements.get(literal.of.tensor)
    if made is None:
        one = c.constant("one", np.ones(1, np.float32))
        made = c.complements[literal.of.tensor] = c.emit("sub", (one, literal.of.tensor), BinaryAttrs(), ".not")
    return replace(literal.of, tensor=made)


@rule("add")
def add(c: Context, self: Any, other: Any, alpha: Any = 1) -> Any:
    """An addition; of a constant with masking numbers to what a softmax or maximum reads: a mask."""
    for x, k in ((self, other), (other, self)):
        if isinstance(x, Value) and isinstance(k, Const) and alpha == 1 and (k.array <= MASKING).any() and c.is_score():
            return add_to_scores(c, x, k)
    return aten.add(c, self, other, alpha)


def add_to_scores(c: Context, x: Value, mask: Any, beta: float = 1.0) -> Value:
    """x + mask / beta, what softmax(beta * ...) reads: masking numbers become mask_fill, the rest stays an addition."""
    if isinstance(mask, Value):
        return binary(c, "add", x, mask if beta == 1 else binary(c, "mul", mask, 1 / beta))
    if isinstance(mask, Const):
        keep = mask.array > MASKING
        rest = np.where(keep, mask.array, 0).astype(np.float32)
        if rest.any():
            x = binary(c, "add", x, Const(rest / np.float32(beta), mask.name))
        return x if keep.all() else fill(c, x, Mask((Literal(Const(keep, mask.name)),), keep.shape), FILL)
    added = _additive(mask)
    if added is None:
        raise Unsupported(f"a mask that adds {mask.yes + 0:g} or {mask.no + 0:g}", f"add 0 where it keeps and {FILL:g} where it masks")
    return fill(c, x, Mask(added.literals, added.shape), FILL)


# ---------------------------------------------------------------------- means over what is kept


@rule("sum", on=Mask)
def count(c: Context, self: Any, dim: Any = None, keepdim: Any = False, dtype: Any = None) -> Any:
    if not dim or len(dim) != 1 or (self.yes, self.no) != (1.0, 0.0):
        raise Unsupported(f"the sum of {Mask.words} over dim {dim}", Masked.fix)
    return Count(self, axis_of(dim[0], len(self.shape)), keepdim)


@rule("sum", on=Masked)
def masked_sum(c: Context, self: Any, dim: Any = None, keepdim: Any = False, dtype: Any = None) -> Any:
    if not dim or len(dim) != 1 or self.axis is not None:
        raise Unsupported(f"the sum of {Masked.words} over dim {dim}", Masked.fix)
    return replace(self, axis=axis_of(dim[0], self.x.rank), keepdim=keepdim)


@rule("clamp", "clamp_min", "view", "unsqueeze", "expand", "expand_as", "to", "_to_copy", "add", on=Count)
def same_count(c: Context, self: Any, *args: Any, min: Any = None, max: Any = None, other: Any = 0, **ignored: Any) -> Any:
    """Guards against an empty mask change nothing else."""
    if max is not None or scalar_of(min, 0.0) > 1 or scalar_of(other, 0.0) > 1e-3:
        raise Unsupported(f"{c.op} of {Count.words}", Count.fix)
    return self


@rule("div", "divide", "true_divide", on=Masked)
def masked_mean(c: Context, self: Any, other: Any, rounding_mode: Any = None) -> Any:
    """sum(x * m) / sum(m) along the middle axis of (N, T, C)."""
    if not isinstance(self, Masked) or not isinstance(other, Count) or self.axis != 1 or self.x.rank != 3:
        raise Unsupported("division by what is not the number of kept entries", Masked.fix)
    x, literals = self.x, where_yes(self.mask)
    counted = where_yes(other.mask)
    if len(literals) != 1 or len(counted) != 1 or _source(literals[0]) != _source(counted[0]) or literals[0].inverted:
        raise Unsupported("a mean whose divisor counts another mask", Masked.fix)
    kept = lift(replace(_upright(c, literals[0]), stretched=None), 3)
    if kept.shape[2] != 1 or kept.shape[1] != x.shape[1]:
        raise Unsupported(f"a mean of {x.shape} over a mask of shape {kept.shape}", "give the mask shape (N, T, 1)")
    form = c.sample_first(kept, (0, 2, 1))
    mask = c.to_form(kept, form).tensor
    zeros = c.constant("zero", np.zeros(c.b.tensors[mask].shape, np.float32))
    scores = c.emit("mask_fill", (zeros, mask), MaskFillAttrs(FILL), ".mask")
    weights = from_form(c.emit("softmax", (scores,), SoftmaxAttrs(), ".softmax"), kept.shape, form)
    out = product(c, permute(weights, (0, 2, 1)), x)
    return out if self.keepdim else replace(out, axes=(out.axes[0], out.axes[2]))


def _source(literal: Literal) -> tuple[str, bool]:
    """What tells literals apart, whatever their shapes."""
    return (literal.of.tensor if isinstance(literal.of, Value) else literal.of.name, literal.inverted)
