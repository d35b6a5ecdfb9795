"""Lazy layout: where the elements of a framework tensor lie in an IR tensor.

A framework value has *logical* axes (say N, C, H, W). In memory it is one dense IR tensor. Every logical axis
is a product of *atoms*; atoms are numbered in memory order and extents of 1 need none:

(1)  index on logical axis a = mixed-radix number over the atoms ``axes[a]``, most significant first
(2)  memory offset           = mixed-radix number over atoms 0, 1, 2, ...

So permute, view, flatten, squeeze and unsqueeze only rename atoms. Data moves when an op asks for a *form*:
a tuple that names, for each axis of the IR tensor, the logical axis it holds (-1: an axis of extent 1).
NHWC is the form (0, 2, 3, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from qwtv2_edge.ir.graph import GraphBuilder, Location
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.ops.layout import ReshapeAttrs, TransposeAttrs

Form = tuple[int, ...]

NHWC: Form = (0, 2, 3, 1)
#: a (N, C, L) sequence as an image of height 1
NHWC_OF_1D: Form = (0, -1, 2, 1)


@dataclass(frozen=True, slots=True)
class Value:
    """A framework tensor held in an IR tensor.

    Attributes:
        tensor: IR tensor name.
        sizes: extents (> 1) of the atoms, in memory order.
        axes: for each logical axis, its atoms, most significant first; () for an axis of extent 1.
        stretched: the logical shape, where ``expand`` promised more than the axes hold; only broadcasting ops take it.
    """

    tensor: str
    sizes: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]
    stretched: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape held in memory."""
        return tuple(prod(self.sizes[i] for i in axis) for axis in self.axes)

    @property
    def rank(self) -> int:
        return len(self.axes)


def from_form(tensor: str, shape: Sequence[int], form: Form) -> Value:
    """The value whose logical ``shape`` lies in ``tensor`` in ``form``."""
    sizes: list[int] = []
    axes: list[tuple[int, ...]] = [()] * len(shape)
    for axis in form:
        if axis >= 0 and shape[axis] > 1:
            axes[axis] = (len(sizes),)
            sizes.append(int(shape[axis]))
    return Value(tensor, tuple(sizes), tuple(axes))


def permute(v: Value, dims: Sequence[int]) -> Value:
    stretched = None if v.stretched is None else tuple(v.stretched[d] for d in dims)
    return replace(v, axes=tuple(v.axes[d] for d in dims), stretched=stretched)


def lift(v: Value, rank: int) -> Value:
    """Add leading axes of extent 1, as broadcasting does."""
    extra = rank - v.rank
    stretched = None if v.stretched is None else (1,) * extra + v.stretched
    return replace(v, axes=((),) * extra + v.axes, stretched=stretched)


def view(v: Value, shape: Sequence[int]) -> Value | None:
    """The same elements, in the same logical order, under another shape; None where that needs data to move."""
    order = [a for axis in v.axes for a in axis]  # atoms in logical order
    pieces: list[list[int]] = [[v.sizes[a]] for a in order]  # extents that each atom splits into
    at, part = 0, 0
    axes: list[list[tuple[int, int]]] = []  # per new axis: (position in order, piece)
    for extent in shape:
        axis: list[tuple[int, int]] = []
        need = int(extent)
        while need > 1:
            if at == len(order):
                return None
            have = pieces[at][part]
            if need % have == 0:
                axis.append((at, part))
                need //= have
                at, part = at + 1, 0
            elif have % need == 0:
                pieces[at][part : part + 1] = [need, have // need]
                axis.append((at, part))
                need, part = 1, part + 1
            else:
                return None
        axes.append(axis)
    if at != len(order):
        return None
    # renumber in memory order
    number: dict[tuple[int, int], int] = {}
    sizes: list[int] = []
    for position in sorted(range(len(order)), key=order.__getitem__):
        for k, size in enumerate(pieces[position]):
            number[position, k] = len(sizes)
            sizes.append(size)
    return Value(v.tensor, tuple(sizes), tuple(tuple(number[p] for p in axis) for axis in axes))


def view_stretched(v: Value, shape: Sequence[int]) -> Value | None:
    """``view`` of an expanded value, still expanded; None where an axis would hold both repeated and stored elements."""
    assert v.stretched is not None
    real = len(v.sizes)
    sizes, axes = list(v.sizes), list(v.axes)
    for i, (have, promised) in enumerate(zip(v.shape, v.stretched, strict=True)):
        if have != promised:  # an atom after all stored ones stands for the repetition
            axes[i] = (len(sizes),)
            sizes.append(promised)
    out = view(Value(v.tensor, tuple(sizes), tuple(axes)), shape)
    if out is None:
        return None
    stored, left = len(out.sizes), prod(sizes[real:])
    while left > 1:
        stored -= 1
        left //= out.sizes[stored]
    if any(min(axis) < stored <= max(axis) for axis in out.axes if axis):
        return None
    kept = tuple(axis if axis and max(axis) < stored else () for axis in out.axes)
    return Value(v.tensor, out.sizes[:stored], kept, tuple(int(d) for d in shape))


class Layouter:
    """Emits nodes into a builder and moves data only where a form demands it."""

    def __init__(self, builder: GraphBuilder) -> None:
        self.b = builder
        self.name = ""
        self.is_module = False
        self.location = Location()
        self._moves: dict[tuple[str, str, tuple[int, ...]], str] = {}
        self._reshaped_from: dict[str, str] = {}
        self._constants: dict[tuple[Any, ...], str] = {}

    # ------------------------------------------------------------------ nodes

    def emit(self, op: str, inputs: Sequence[str], attrs: Any, suffix: str = "") -> str:
        """Append a one-output node named after the framework node being lowered; returns its tensor."""
        return self.b.add(op, inputs, attrs, name=self.name + suffix, location=self.location)[0]

    def constant(self, source: str, array: np.ndarray, name: str = "") -> str:
        """A float32 constant, stored once however often it is used.

        source: the parameter it was made from; the same numbers from the same source are the same constant.
        name: what to call it, where not ``source``.
        """
        array = np.ascontiguousarray(array, np.float32)
        key = (source, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.b.constant(name or source, array)
        return self._constants[key]

    def real_shape(self, v: Value) -> tuple[int, ...]:
        return self.b.tensors[v.tensor].shape

    def reshape(self, tensor: str, shape: Sequence[int]) -> str:
        shape = tuple(int(d) for d in shape)
        source = self._reshaped_from.get(tensor, tensor)  # a reshape of a reshape is one reshape
        if self.b.tensors[source].shape == shape:
            return source
        key = ("reshape", source, shape)
        if key not in self._moves:
            out = self.emit("reshape", (source,), ReshapeAttrs(shape), ".reshape")
            self._moves[key] = out
            self._reshaped_from[out] = source
        return self._moves[key]

    def copy(self, tensor: str) -> str:
        """The same values under a tensor name of their own."""
        return self.emit("reshape", (tensor,), ReshapeAttrs(self.b.tensors[tensor].shape), ".copy")

    def transpose(self, tensor: str, perm: Sequence[int]) -> str:
        perm = tuple(perm)
        key = ("transpose", tensor, perm)
        if key not in self._moves:
            self._moves[key] = self.emit("transpose", (tensor,), TransposeAttrs(perm), ".transpose")
        return self._moves[key]

    # ------------------------------------------------------------------ forms

    def form_of(self, v: Value) -> Form | None:
        """The form in which ``v`` lies already, or None. Logical axes of extent 1 may be absent from it."""
        real = self.real_shape(v)
        wide = [i for i, d in enumerate(real) if d > 1]
        holders = sorted((axis, a) for a, axis in enumerate(v.axes) if axis)
        if [i for axis, _ in holders for i in axis] != list(range(len(v.sizes))):
            return None
        if [prod(v.sizes[i] for i in axis) for axis, _ in holders] != [real[i] for i in wide]:
            return None
        form = [-1] * len(real)
        for i, (_, a) in zip(wide, holders, strict=True):
            form[i] = a
        ones = [a for a, axis in enumerate(v.axes) if not axis]
        for i, d in enumerate(real):
            if d == 1 and ones:
                form[i] = ones.pop(0)
        return tuple(form)

    def full_form(self, v: Value) -> Form | None:
        """The form in which ``v`` lies already, where that names every logical axis; else None."""
        form = self.form_of(v)
        return form if form is not None and set(range(v.rank)) <= set(form) else None

    def to_form(self, v: Value, form: Form) -> Value:
        """``v`` with its IR tensor laid out as ``form``; nothing is emitted where it lies so already."""
        real = self.real_shape(v)
        shape = v.shape
        target = tuple(shape[a] if a >= 0 else 1 for a in form)
        order = [i for a in form if a >= 0 for i in v.axes[a]]
        if order == list(range(len(v.sizes))):
            return from_form(self.reshape(v.tensor, target), shape, form)
        direct = self._direct_perm(self.form_of(v), form)
        if direct is not None:
            return from_form(self.transpose(v.tensor, direct), shape, form)
        # the shortest transpose: runs of atoms that stay neighbours move as one axis
        runs: list[list[int]] = []
        for i in order:
            if runs and runs[-1][-1] + 1 == i:
                runs[-1].append(i)
            else:
                runs.append([i])
        by_memory = sorted(range(len(runs)), key=lambda r: runs[r][0])
        source = [prod(v.sizes[i] for i in runs[r]) for r in by_memory]
        perm = [by_memory.index(r) for r in range(len(runs))]
        if perm[0] != 0 and real and real[0] == 1:  # the sample axis stays in front
            source, perm = [1, *source], [0, *(p + 1 for p in perm)]
        moved = self.transpose(self.reshape(v.tensor, source), perm)
        return from_form(self.reshape(moved, target), shape, form)

    @staticmethod
    def _direct_perm(have: Form | None, want: Form) -> tuple[int, ...] | None:
        if have is None or len(have) != len(want):
            return None
        have = tuple(a if a in want else -1 for a in have)
        want = tuple(a if a in have else -1 for a in want)
        left = list(enumerate(have))
        perm = []
        for a in want:
            found = next((item for item in left if item[1] == a), None)
            if found is None:
                return None
            left.remove(found)
            perm.append(found[0])
        return tuple(perm)

    def simple(self, v: Value) -> tuple[Value, Form]:
        """``v`` in a form that names every logical axis, moving as little as possible."""
        form = self.full_form(v)
        if form is not None:
            return v, form
        form = self.natural_form(v)
        return self.to_form(v, form), form

    def rows(self, v: Value) -> tuple[Value, Form]:
        """``v`` in a form that names every logical axis and holds the last one last; nothing moves where it lies so already."""
        last = v.rank - 1
        form = self.full_form(v)
        if form is not None and len(form) > 1 and form[-1] == last:
            return v, form
        form = (*(a for a in self.natural_form(v) if a != last), last)
        order = [i for a in form if a >= 0 for i in v.axes[a]]
        if order != sorted(order):
            form = self.sample_first(v, tuple(range(v.rank)))
        if len(form) == 1:
            form = (-1, *form)
        return self.to_form(v, form), form

    def last(self, v: Value, dim: int) -> tuple[Value, Form]:
        """``v`` in a form that names every logical axis and holds axis ``dim`` last."""
        v, form = self.simple(v)
        if form[-1] != dim:
            form = (*(a for a in form if a != dim), dim)
            v = self.to_form(v, form)
        return v, form

    def sample_first(self, v: Value, form: Form) -> Form:
        """``form`` with an axis of extent 1 in front where ``v`` lies so: the sample axis of a graph that runs any number of samples."""
        real = self.real_shape(v)
        if not real or real[0] != 1 or not form or form[0] == -1 or not v.axes[form[0]]:
            return form
        unit = next((a for a in form if not v.axes[a]), -1)
        return (unit, *(a for a in form if a != unit))

    def natural_form(self, v: Value) -> Form:
        """The full form nearest to how ``v`` lies: the sample axis, then axes in the order of their largest atoms."""
        wide = sorted((a for a in range(v.rank) if v.axes[a]), key=lambda a: max(v.axes[a], key=lambda i: (v.sizes[i], -i)))
        for candidate in ([NHWC] if v.rank == 4 else []) + [tuple(range(v.rank))]:
            if [a for a in candidate if v.axes[a]] == wide:
                return self.sample_first(v, candidate)
        form = list(wide)
        for a in range(v.rank):
            if not v.axes[a]:
                form.insert(form.index(a - 1) + 1 if a else 0, a)
        return self.sample_first(v, tuple(form))

    def to_logical(self, v: Value) -> str:
        """The IR tensor that holds ``v`` axis by axis in logical order."""
        return self.to_form(v, tuple(range(v.rank))).tensor

    @staticmethod
    def laid(array: np.ndarray, form: Form) -> np.ndarray:
        """A constant of one logical axis per array axis, as ``form`` lays values. Axes that ``form`` leaves out have extent 1."""
        named = [a for a in form if a >= 0]
        left_out = [a for a in range(array.ndim) if a not in named]
        shape = [array.shape[a] if a >= 0 else 1 for a in form]
        return array.transpose(*left_out, *named).reshape(shape)

    def view(self, v: Value, shape: Sequence[int]) -> Value:
        """A view, with the data moved into logical order first where that can't be avoided."""
        out = view(v, shape)
        if out is None:
            out = view(from_form(self.to_logical(v), v.shape, tuple(range(v.rank))), shape)
        if out is None:  # axes that factor differently: 6 = 2*3 to 3*2
            out = from_form(self.reshape(self.to_logical(v), shape), shape, tuple(range(len(shape))))
        return out

    def placeholder(self, shape: Sequence[int]) -> Value:
        """A value that nothing computes; stands in for an op that failed so that the rest is still checked."""
        shape = tuple(shape)
        tensor = self.b.tensor(self.name + ".unknown", TensorType(shape))
        return from_form(tensor, shape, tuple(range(len(shape))))
