"""Byte-for-byte comparison of what was predicted with what a runtime gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwtv2_edge.fixedpoint import round_half_even
from qwtv2_edge.ir.graph import Graph

#: reported where a difference has no size: NaN, infinity, or a missing value
UNBOUNDED_LSB = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Difference:
    """How one tensor differs.

    Attributes:
        tensor: its name.
        count: values that differ in any byte.
        max_lsb: the largest difference, in steps of the tensor's scale (codes).
        index: the first differing position, sample axis included.
        expected, actual: the values there.
    """

    tensor: str
    count: int
    max_lsb: int
    index: tuple[int, ...]
    expected: float
    actual: float


def steps(graph: Graph, tensor: str) -> float:
    """What one code step of ``tensor`` is worth in the tensor's own numbers: 1 for codes, the scale for dequantized reals.

    0.0 for a float tensor that comes from no dequantize node; differences there are counted in float32 neighbours.
    """
    if graph.tensors[tensor].dtype != "float32":
        return 1.0
    producer = graph.producers().get(tensor)
    if producer is None or producer.op != "dequantize":
        return 0.0
    return graph.tensors[producer.inputs[0]].scale


def compare(name: str, expected: np.ndarray, actual: np.ndarray, step: float) -> Difference | None:
    """The difference of two arrays, byte for byte, or None. NaNs are equal only when all their bits are.

    Args:
        name: of the tensor.
        expected, actual: same dtype; the shapes may differ only by axes of size 1.
        step: see :func:`steps`.
    """
    if actual.size != expected.size or actual.dtype != expected.dtype:
        return Difference(name, int(expected.size), UNBOUNDED_LSB, (), float(expected.size), float(actual.size))
    actual = actual.reshape(expected.shape)
    wrong = _bits(expected) != _bits(actual)
    count = int(np.count_nonzero(wrong))
    if not count:
        return None
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))
    worst = _lsb(expected[wrong], actual[wrong], step)
    return Difference(name, count, worst, index, expected[index].item(), actual[index].item())


def compare_all(graph: Graph, names: Sequence[str], expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> list[Difference]:
    """Every tensor of ``names`` that differs, in order."""
    found = []
    for i, (name, want) in enumerate(zip(names, expected, strict=True)):
        got = actual[i] if i < len(actual) else np.empty(0, want.dtype)
        difference = compare(name, want, got, steps(graph, name))
        if difference is not None:
            found.append(difference)
    return found


def _bits(array: np.ndarray) -> np.ndarray:
    """The array as unsigned integers, bit by bit."""
    return np.ascontiguousarray(array).view(np.dtype(f"u{array.dtype.itemsize}"))


def _lsb(expected: np.ndarray, actual: np.ndarray, step: float) -> int:
    if step == 0.0:
        gap = np.abs(_ordered(expected) - _ordered(actual)).astype(np.float64)
    else:
        with np.errstate(invalid="ignore", over="ignore"):
            gap = np.abs(expected.astype(np.float64) - actual.astype(np.float64)) / step
    if not np.isfinite(gap).all():
        return UNBOUNDED_LSB
    return int(min(UNBOUNDED_LSB, round_half_even(gap).max()))


def _ordered(array: np.ndarray) -> np.ndarray:
    """float32 as integers that count up with the value, so that neighbours differ by 1."""
    bits = array.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
