"""Rules of products: two activations, an activation and a constant of any rank, einsum.

A product takes its operands as they lie: where the second one lies with its last two axes swapped
(q @ k.transpose(-2, -1)), ``transpose_b`` says so and nothing moves.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from qwtv2_edge.frontend.aten import Const, Context, Unsupported, activation, apply, linear, rule, stretch, whole
from qwtv2_edge.frontend.layout import Form, Value, from_form, permute
from qwtv2_edge.ops.matmul import BatchMatmulAttrs

Operand = Value | Const


def shape_of(x: Operand) -> tuple[int, ...]:
    """The logical shape, expansion included."""
    return x.array.shape if isinstance(x, Const) else (x.stretched or x.shape)


def product(c: Context, a: Operand, b: Operand, suffix: str = "") -> Value:
    """a @ b over the last two axes of operands of rank 2 or more; leading axes broadcast. One operand at least is an activation."""
    lead = np.broadcast_shapes(shape_of(a)[:-2], shape_of(b)[:-2])
    a, b = (_merged(_widened(c, x, lead)) for x in (a, b))
    # the sample axis stays in front where both operands have it there
    front: Form = (-1,) if all(c.real_shape(x)[:1] == (1,) for x in (a, b) if isinstance(x, Value)) else ()
    front += (0,) if prod(lead) > 1 else ()
    swapped = isinstance(b, Value) and bool(b.axes[1]) and bool(b.axes[2]) and max(b.axes[2]) < max(b.axes[1])
    operands = [_placed(c, a, (*front, 1, 2)), _placed(c, b, (*front, 2, 1) if swapped else (*front, 1, 2))]
    out = c.emit("batch_matmul", operands, BatchMatmulAttrs(swapped), suffix)
    rows, columns = shape_of(a)[1], shape_of(b)[2]
    return c.view(from_form(out, (prod(lead), rows, columns), (*front, 1, 2)), (*lead, rows, columns))


def _merged(x: Operand) -> Operand:
    """``x`` with its leading axes as one."""
    if isinstance(x, Const):
        return replace(x, array=x.array.reshape(-1, *x.array.shape[-2:]))
    return replace(x, axes=(tuple(i for axis in x.axes[:-2] for i in axis), *x.axes[-2:]))


def _widened(c: Context, x: Operand, lead: tuple[int, ...]) -> Operand:
    """``x`` with the leading axes ``lead``, repeated in memory where it has one entry for many."""
    if isinstance(x, Const):
        return replace(x, array=np.broadcast_to(x.array, (*lead, *x.array.shape[-2:])))
    return activation(whole(c, stretch(whole(c, x), (*lead, *shape_of(x)[-2:]))))


def _placed(c: Context, x: Operand, form: Form) -> str:
    if isinstance(x, Const):
        return c.constant(x.name or c.name + ".constant", c.laid(x.array, form))
    return c.to_form(x, form).tensor


@rule("mm", "matmul", "bmm")
def matmul(c: Context, self: Any, other: Any = None, mat2: Any = None) -> Any:
    a, b = self, mat2 if other is None else other
    if min(len(shape_of(a)), len(shape_of(b))) < 2:
        raise Unsupported(f"a product of shapes {shape_of(a)} and {shape_of(b)}", "give both operands rank 2 or more: use unsqueeze")
    if isinstance(b, Const):
        same = b.array.reshape(-1, *b.array.shape[-2:])
        if len(shape_of(a)) >= b.array.ndim and np.all(same == same[:1]):  # every sample meets the same weights
            return linear(c, whole(c, a), Const(same[0].T, b.name))
    return product(c, a, b)


@rule("addmm")
def addmm(c: Context, self: Any, mat1: Any, mat2: Any, beta: Any = 1, alpha: Any = 1) -> Any:
    if beta != 1 or alpha != 1:
        raise Unsupported(f"addmm with beta {beta}, alpha {alpha}", "use torch.nn.functional.linear")
    if not isinstance(mat2, Const) or not isinstance(self, Const):
        return apply(c, "add", self=self, other=matmul(c, mat1, mat2))
    if self.array.ndim != 1 or self.array.size != mat2.array.shape[1]:
        self = Const(np.broadcast_to(self.array.reshape(-1), (mat2.array.shape[1],)), self.name)
    return linear(c, mat1, Const(mat2.array.T, mat2.name), self)


@rule("einsum")
def einsum(c: Context, equation: Any, tensors: Any, path: Any = None) -> Any:
    """Two operands, no index twice in one of them: axes ordered as (both kept, own, summed), one product, axes put in place."""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    names = terms.split(",")
    letters = "".join(names)
    if len(names) != 2 or not arrow or "." in equation or any(len(set(t)) < len(t) for t in (*names, result)):
        raise Unsupported(f"einsum '{equation}'", "give two operands, every index once in each and an explicit result")
    (a, b), (first, second) = tensors, names
    both = [i for i in first if i in second]
    batch, summed = [i for i in both if i in result], [i for i in both if i not in result]
    rows, columns = ([i for i in t if i not in both] for t in (first, second))
    if not summed or set(result) != {*batch, *rows, *columns}:
        raise Unsupported(f"einsum '{equation}'", f"each of '{letters}' must be summed over in both operands or be in the result")
    size = dict(zip(letters, (*shape_of(a), *shape_of(b)), strict=True))

    def placed(x: Operand, name: str, *groups: list[str]) -> Operand:
        order = [name.index(i) for i in (*batch, *groups[0], *groups[1])]
        shape = (*(size[i] for i in batch), *(prod(size[i] for i in g) for g in groups))
        if isinstance(x, Const):
            return replace(x, array=x.array.transpose(order).reshape(shape))
        return c.view(permute(whole(c, x), order), shape)

    out = matmul(c, placed(a, first, rows, summed), placed(b, second, summed, columns))
    order = [*batch, *rows, *columns]
    return permute(c.view(out, [size[i] for i in order]), [order.index(i) for i in result])
