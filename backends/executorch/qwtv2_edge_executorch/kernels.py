"""The portable kernels as functions on program values, and what the forms of ops share: tables, sums, requantization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from qwtv2_edge import fixedpoint as fp
from qwtv2_edge.errors import GraphError
from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.ir.types import DTYPES, TensorType
from qwtv2_edge.numerics import Numerics
from qwtv2_edge.ops import OPS
from qwtv2_edge_executorch.program import ProgramBuilder

INT64_LIMIT = 2**63
#: integers below this are exact in float32
FLOAT32_EXACT = 2**24

Shape = tuple[int, ...]


@dataclass
class Portable:
    """Kernel calls. ``values`` maps tensor names to program values and is shared with the caller.

    ``floating`` maps int16 tensors to float32 values that hold their codes, as delegates take and give them.
    """

    graph: Graph
    numerics: Numerics
    program: ProgramBuilder
    values: dict[str, int]
    floating: dict[str, int] = field(default_factory=dict)

    # ---- operands

    def value(self, tensor: str) -> int:
        if tensor not in self.values:
            if tensor in self.floating:
                self.values[tensor] = self.cast(self.floating[tensor], np.int16)
            else:
                self.values[tensor] = self.program.constant(self.graph.constants[tensor])
        return self.values[tensor]

    def codes(self, tensor: str) -> int:
        """The codes of an int16 tensor as float32."""
        if tensor not in self.floating:
            self.floating[tensor] = self.cast(self.value(tensor), np.float32)
        return self.floating[tensor]

    def delegate_output(self, tensor: str) -> int:
        """The value that a delegate is to write ``tensor`` to."""
        type = self.type(tensor)
        wide = type.dtype == "int16"
        value = self.program.tensor(type.shape, np.float32 if wide else DTYPES[type.dtype])
        (self.floating if wide else self.values)[tensor] = value
        return value

    def type(self, tensor: str) -> TensorType:
        return self.graph.tensors[tensor]

    def shape(self, value: int) -> Shape:
        return self.program.shape(value)

    # ---- kernels (each returns the new value)

    def call(self, operator: str, *args: int, shape: Sequence[int], dtype: Any, dim_order: Any = None) -> int:
        out = self.program.tensor(shape, dtype, dim_order)
        return self.program.call(operator, *args, out=out)

    def cast(self, x: int, dtype: Any) -> int:
        if self.program.dtype(x) == np.dtype(dtype):
            return x
        p = self.program
        return self.call("aten::_to_copy.out", x, p.boolean(False), p.none(), shape=self.shape(x), dtype=dtype)

    def scalar(self, operator: str, x: int, *scalars: int) -> int:
        """A kernel that takes a tensor and integers: same shape, same dtype."""
        return self.call(operator, x, *map(self.program.integer, scalars), shape=self.shape(x), dtype=self.program.dtype(x))

    def add_scalar(self, x: int, number: int) -> int:
        return x if number == 0 else self.scalar("aten::add.Scalar_out", x, number, 1)

    def mul_scalar(self, x: int, number: int) -> int:
        return x if number == 1 else self.scalar("aten::mul.Scalar_out", x, number)

    def shift_right(self, x: int, bits: int) -> int:
        return self.scalar("aten::bitwise_right_shift.Tensor_Scalar_out", x, bits)

    def clamp(self, x: int, low: int, high: int) -> int:
        return self.scalar("aten::clamp.out", x, low, high)

    def pair(self, operator: str, x: int, y: int, *scalars: int) -> int:
        """A broadcasting kernel on two tensors of one dtype."""
        shape = np.broadcast_shapes(self.shape(x), self.shape(y))
        return self.call(operator, x, y, *map(self.program.integer, scalars), shape=shape, dtype=self.program.dtype(x))

    def add(self, x: int, y: int, alpha: int = 1) -> int:
        """x + alpha * y"""
        if alpha != 1 and self.shape(x) != self.shape(y):
            # the optimised kernel of ExecuTorch 1.4.1 scales the wrong operand when x is the one that broadcasts
            y, alpha = self.mul_scalar(y, alpha), 1
        return self.pair("aten::add.out", x, y, alpha)

    def mul(self, x: int, y: int) -> int:
        return self.pair("aten::mul.out", x, y)

    def per_channel(self, operator: str, scalar_operator: str, x: int, numbers: np.ndarray, *more: int) -> int:
        """A kernel with one int64 per channel, or with one for all.

        Which it is, and the bytes it takes, depends on the number of channels alone: compensation changes values, not ops or size.
        """
        if numbers.size == 1:
            return self.scalar(scalar_operator, x, int(numbers.flat[0]), *more)
        return self.pair(operator, x, self.program.constant(np.asarray(numbers, np.int64), own=True), *more)

    def floor_divide(self, x: int, y: int) -> int:
        return self.pair("aten::floor_divide.out", x, y)

    def index(self, table: np.ndarray, indices: int) -> int:
        """table[indices]; negative indices count from the end."""
        p = self.program
        lookup = p.tensors([indices], optional=True)
        return self.call("aten::index.Tensor_out", p.constant(table), lookup, shape=self.shape(indices), dtype=table.dtype)

    def select(self, x: int, axis: int, indices: np.ndarray) -> int:
        """np.take along ``axis``."""
        shape = list(self.shape(x))
        shape[axis] = len(indices)
        p = self.program
        rows = p.constant(np.asarray(indices, np.int64))
        return self.call("aten::index_select.out", x, p.integer(axis), rows, shape=shape, dtype=p.dtype(x))

    def slice(self, x: int, axis: int, begin: int, end: int, stride: int = 1) -> int:
        shape = list(self.shape(x))
        if (begin, end, stride) == (0, shape[axis], 1):
            return x
        shape[axis] = -(-(end - begin) // stride)
        p = self.program
        numbers = (p.integer(axis), p.integer(begin), p.integer(end), p.integer(stride))
        return self.call("aten::slice_copy.Tensor_out", x, *numbers, shape=shape, dtype=p.dtype(x))

    def pad(self, x: int, paddings: Sequence[tuple[int, int]], code: int) -> int:
        if not any(map(any, paddings)):
            return x
        p = self.program
        shape = [d + b + a for d, (b, a) in zip(self.shape(x), paddings, strict=True)]
        innermost_first = [n for pair in reversed(paddings) for n in pair]
        return self.call("aten::constant_pad_nd.out", x, p.integers(innermost_first), p.integer(code), shape=shape, dtype=p.dtype(x))

    def pad_spatial(self, x: int, padding: Any, code: int) -> int:
        return self.pad(x, ((0, 0), *padding, (0, 0)), code)

    def concat(self, parts: Sequence[int], axis: int) -> int:
        if len(parts) == 1:
            return parts[0]
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(v)[axis] for v in parts)
        p = self.program
        return self.call("aten::cat.out", p.tensors(parts), p.integer(axis), shape=shape, dtype=p.dtype(parts[0]))

    def permute(self, x: int, perm: Sequence[int]) -> int:
        shape = [self.shape(x)[i] for i in perm]
        return self.call("aten::permute_copy.out", x, self.program.integers(perm), shape=shape, dtype=self.program.dtype(x))

    def sum(self, x: int, axes: Sequence[int], keep_dims: bool, dtype: Any) -> int:
        """Sums that stay below 2**24 in size: the kernel adds in float32."""
        p = self.program
        shape = reduced(self.shape(x), axes, keep_dims)
        return self.call("aten::sum.IntList_out", x, p.integers(axes), p.boolean(keep_dims), p.none(), shape=shape, dtype=dtype)

    def sum_wide(self, x: int, axes: Sequence[int], keep_dims: bool, largest: int) -> int:
        """int64 sums of integers up to ``largest`` in size, in two halves where float32 would not hold them."""
        count = prod(self.shape(x)[i] for i in axes)
        if count * largest < FLOAT32_EXACT:
            return self.sum(x, axes, keep_dims, np.int64)
        bits = 24 - fp.ceil_log2(count + 1)
        if bits < 1 or count * (largest >> bits) >= FLOAT32_EXACT:
            raise GraphError(f"sums of {count} integers up to {largest} are beyond what portable kernels add exactly")
        x = self.cast(x, np.int64)
        high = self.shift_right(x, bits)
        low = self.add(x, self.mul_scalar(high, 1 << bits), -1)
        high, low = (self.sum(part, axes, keep_dims, np.int64) for part in (high, low))
        return self.add(self.mul_scalar(high, 1 << bits), low)

    # ---- endings

    def finish(self, x: int, low: int = -128, high: int = 127, dtype: str = "int8") -> int:
        """Clamp and store as codes."""
        return self.cast(self.clamp(x, low, high), DTYPES[dtype])

    def requantize(
        self,
        acc: int,
        scale: np.ndarray | np.float64,
        offset: np.ndarray,
        limit: int,
        out: TensorType,
        bounds: tuple[int, int],
        bits: int = 31,
    ) -> int:
        """Equation (2) with single rounding.

        Args:
            acc: integers, channels last where ``scale`` or ``offset`` has more than one entry.
            scale: effective scale, float64, one or one per channel.
            offset: int64 to be added to every accumulator, one or one per channel.
            limit: no |acc| exceeds it.
            bits: of the multiplier; 15 leaves room for accumulators of 48 bits.
        """
        m, e = fp.quantize_multiplier(scale)
        m, e = (np.atleast_1d(v).astype(object) for v in (m if bits == 31 else fp.multiplier16(m), e))
        offset = np.atleast_1d(offset).astype(object)
        shift = bits - e
        half = np.asarray([1 << (int(s) - 1) for s in shift], object)
        zero = np.asarray([out.zero_point << int(s) for s in shift], object)
        acc = self.cast(acc, np.int64)
        rest = out.zero_point
        constant = offset * m + half + zero
        if (np.abs(constant) + limit * m < INT64_LIMIT).all():
            rest = 0
        else:  # too large to fold everything into one constant
            acc = self.per_channel("aten::add.out", "aten::add.Scalar_out", acc, offset, 1)
            constant = half
        acc = self.per_channel("aten::mul.out", "aten::mul.Scalar_out", acc, m)
        acc = self.per_channel("aten::add.out", "aten::add.Scalar_out", acc, constant, 1)
        acc = self.per_channel("aten::bitwise_right_shift.Tensor_out", "aten::bitwise_right_shift.Tensor_Scalar_out", acc, shift)
        return self.finish(self.add_scalar(acc, rest), *bounds, out.dtype)

    def quantize(self, x: int, out: TensorType) -> int:
        """RNE(f32(x * f32(1 / s))) clamped around 0, plus z: every step after the product is exact."""
        b = self.program
        shape = self.shape(x)
        inverse = b.constant(np.asarray([np.float32(1) / np.float32(out.scale)], np.float32))
        v = self.call("aten::mul.out", x, inverse, shape=shape, dtype=np.float32)
        v = self.call("aten::round.out", v, shape=shape, dtype=np.float32)
        v = self.clamp_reals(v, *(bound - out.zero_point for bound in out.code_bounds))
        if out.zero_point:
            v = self.call("aten::add.Scalar_out", v, b.real(out.zero_point), b.integer(1), shape=shape, dtype=np.float32)
        return self.cast(v, DTYPES[out.dtype])

    def clamp_reals(self, x: int, low: float, high: float) -> int:
        b = self.program
        return self.call("aten::clamp.out", x, b.real(low), b.real(high), shape=self.shape(x), dtype=np.float32)

    def reals(self, tensor: str) -> int:
        """The real values of a quantized tensor, float32."""
        type, b = self.type(tensor), self.program
        v = self.cast(self.value(tensor), np.float32)
        shape = self.shape(v)
        if type.zero_point:
            v = self.call("aten::add.Scalar_out", v, b.real(-type.zero_point), b.integer(1), shape=shape, dtype=np.float32)
        scale = b.constant(np.asarray([type.scale], np.float32))
        return self.call("aten::mul.out", v, scale, shape=shape, dtype=np.float32)

    def divide_half_away(self, total: int, count: int | np.ndarray) -> int:
        """total / count, ties away from zero: floor((2 total + count - [total < 0]) / (2 count)). int32."""
        sign = self.shift_right(total, 31)
        twice = self.add(sign, total, 2)
        if isinstance(count, np.ndarray):
            count = count.astype(np.int32)
            twice = self.add(twice, self.program.constant(count))
            return self.floor_divide(twice, self.program.constant(2 * count))
        twice = self.add_scalar(twice, count)
        return self.floor_divide(twice, self.program.constant(np.asarray([2 * count], np.int32)))


def reduced(shape: Shape, axes: Sequence[int], keep_dims: bool) -> Shape:
    if keep_dims:
        return tuple(1 if i in axes else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in axes)


def meaning(p: Portable, node: Node, *arrays: np.ndarray) -> np.ndarray:
    """What the simulator computes for ``node`` on int8 ``arrays``; tables are made of it."""
    result = OPS[node.op].integer(arrays, node.attrs, p.graph.in_types(node), p.graph.out_types(node), p.numerics)
    return np.ascontiguousarray(result[0])
