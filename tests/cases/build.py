"""What case lists are made of: tensors, scales that fill the output range, and inputs that provoke ties."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from qwtv2_edge.ir.check import MASK
from qwtv2_edge.ir.graph import Graph, GraphBuilder
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.verification.patterns import index_bounds

#: standard deviation of uniform int8 codes
CODE_STD = 74.0
#: 16-bit codes per 8-bit one, over one range
WIDER = 256


@dataclass(frozen=True)
class Case:
    """One small integer graph. ``name`` says op and variant."""

    name: str
    graph: Graph

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Grid:
    """How scales are drawn. ``power_of_two``: every scale is one, which makes exact ties common."""

    power_of_two: bool = False

    def scale(self, value: float) -> float:
        value = 2.0 ** round(np.log2(value)) if self.power_of_two else value
        return float(np.float32(value))


RANDOM, POWER = Grid(), Grid(True)
GRIDS = {"random": RANDOM, "pow2": POWER}


def act(shape, scale: float, zero_point: int) -> TensorType:
    """An int8 activation."""
    return TensorType(tuple(shape), "int8", Quantization.per_tensor(scale, zero_point))


def draw_act(rng: np.random.Generator, shape, grid: Grid, near: float = 0.05, zero_point: int | None = None) -> TensorType:
    """An int8 activation with a random scale within a factor 2 of ``near`` and a random zero point."""
    z = int(rng.integers(-128, 128)) if zero_point is None else zero_point
    return act(shape, grid.scale(near * 2 ** rng.uniform(-1, 1)), z)


def wide(shape, scale: float) -> TensorType:
    """An int16 activation."""
    return TensorType(tuple(shape), "int16", Quantization.per_tensor(scale, 0))


def draw_wide(rng: np.random.Generator, shape, grid: Grid, near: float = 0.05 / WIDER) -> TensorType:
    """An int16 activation with a random scale within a factor 2 of ``near``."""
    return wide(shape, grid.scale(near * 2 ** rng.uniform(-1, 1)))


def feeds(graph: Graph, rng: np.random.Generator, samples: int = 24) -> list[np.ndarray]:
    """Inputs for ``graph``: edge patterns first, then random samples. First axis = samples."""
    out = []
    for name in graph.inputs:
        type = graph.tensors[name]
        shape = (samples * type.shape[0], *type.shape[1:])
        make = {"float32": _feed_reals, "int8": _feed_codes, "int16": _feed_wide, "int32": _feed_indices}[type.dtype]
        x, patterns = make(graph, name, shape, rng)
        flat = x.reshape(samples, -1)
        for row, pattern in zip(flat, patterns, strict=False):
            row[:] = np.broadcast_to(pattern, type.shape).ravel()
        out.append(x)
    return out


def _feed_reals(graph: Graph, name: str, shape, rng: np.random.Generator):
    """(random reals, patterns): ties of the quantize node behind them, and values far outside. Masks hold 0 and 1."""
    type = next(graph.tensors[n.outputs[0]] for n in graph.consumers()[name])
    if type.quantization == MASK:
        return rng.integers(0, 2, shape).astype(np.float32), (1, 0)
    ramp = np.arange(type.size, dtype=np.float32).reshape(type.shape)
    ties = (ramp % 300 - 150 + np.float32(0.5)) * np.float32(type.scale)
    return (rng.normal(0, 60 if type.dtype == "int8" else 15000, shape) * type.scale).astype(np.float32), (ties, -ties, 0, 2e7 * type.scale)


def _feed_codes(graph: Graph, name: str, shape, rng: np.random.Generator):
    type = graph.tensors[name]
    ramp = np.arange(type.size).reshape(type.shape) % 256 - 128
    near = rng.integers(max(-128, type.zero_point - 3), min(128, type.zero_point + 4), type.shape)
    return rng.integers(-128, 128, shape, dtype=np.int8), (-128, 127, type.zero_point, ramp, near)


def _feed_wide(graph: Graph, name: str, shape, rng: np.random.Generator):
    """Whole range, then: constant rows, one channel far from the rest, small and middling values."""
    type = graph.tensors[name]
    outlier = rng.integers(-300, 300, type.shape)
    outlier[..., rng.integers(type.shape[-1])] = 32767
    rows = rng.integers(-32768, 32768, (*type.shape[:-1], 1))
    ends = rng.choice([-32768, 32767], type.shape)
    middling = np.clip(rng.normal(0, 4000, (6, *type.shape)), -32768, 32767).astype(np.int16)
    small = rng.integers(-3, 4, (2, *type.shape))
    return rng.integers(-32768, 32768, shape, dtype=np.int16), (-32768, 32767, 0, rows, outlier, *small, ends, *middling)


def _feed_indices(graph: Graph, name: str, shape, rng: np.random.Generator):
    low, high = index_bounds(graph, name)
    return rng.integers(low, high + 1, shape, dtype=np.int32), (low, high)


def weights(rng: np.random.Generator, shape, axis: int | None, grid: Grid, near: float = 0.01, bits: int = 8):
    """(codes, type) of symmetric weights; ``axis`` None for one scale."""
    limit = 127 if bits == 8 else 7
    codes = rng.integers(-limit, limit + 1, shape).astype(np.int8)
    count = 1 if axis is None else shape[axis]
    scale = [grid.scale(near * 2 ** rng.uniform(-2, 2)) for _ in range(count)]
    return codes, TensorType(tuple(shape), "int8" if bits == 8 else "int4", Quantization(tuple(scale), (0,) * count, axis))


def bias(rng: np.random.Generator, count: int, size: float):
    """int32 bias of about ``size``."""
    return np.round(rng.normal(0, size, count)).astype(np.int32)


def output_scale(x: TensorType, w: TensorType, taps: int, grid: Grid, gain: float) -> float:
    """An output scale at which codes spread by about 50 * gain."""
    assert w.quantization is not None
    code_std = CODE_STD if w.dtype == "int8" else 4.5
    spread = x.scale * float(np.median(w.quantization.scale_array)) * CODE_STD * code_std * np.sqrt(taps)
    return grid.scale(spread / (50 * gain))


def weighted_case(
    name: str, op: str, attrs, x_shape, w_shape, axis: int, out_axis: int, rng: np.random.Generator, grid: Grid,
    *, per_tensor: bool = False, bits: int = 8, widened: bool = False, gain: float = 1.0,
    out_zero_point: int | None = None, taps: int | None = None,
) -> Case:  # fmt: skip
    """A graph of one weighted op. ``out_axis``: which axis of the weights counts output channels. ``widened``: 16-bit activations."""
    b = GraphBuilder(name)
    x = b.input("x", draw_wide(rng, x_shape, grid) if widened else draw_act(rng, x_shape, grid))
    codes, w_type = weights(rng, w_shape, None if per_tensor else axis, grid, bits=bits)
    w = b.constant("w", codes, w_type)
    channels = w_shape[out_axis]
    taps = taps or prod(w_shape) // channels
    std = CODE_STD * (CODE_STD if bits == 8 else 4.5) * np.sqrt(taps) * (WIDER if widened else 1)
    scale = Quantization.per_channel(np.float32(b.tensors[x].scale) * w_type.quantization.scale_array, 0)
    bias_type = TensorType((channels,), "int32", scale)
    beta = b.constant("b", bias(rng, channels, std / 4), bias_type)
    z = int(rng.integers(-128, 128)) if out_zero_point is None else out_zero_point
    out_scale = output_scale(b.tensors[x], w_type, taps, grid, gain)  # wider by as much as the codes are
    quantization = Quantization.per_tensor(out_scale, 0 if widened else z)
    from qwtv2_edge.ops import OPS

    shape = OPS[op].infer((b.tensors[x], w_type, bias_type), attrs)[0].shape
    (y,) = b.add(op, (x, w, beta), attrs, name="y", out_types=(TensorType(shape, b.tensors[x].dtype, quantization),))
    b.outputs = [y]
    return Case(name, b.freeze())


def op_case(
    name: str, op: str, attrs, inputs: list[TensorType], out: Quantization | None, *,
    constants: dict[int, np.ndarray] | None = None, dtype: str = "int8",
) -> Case:  # fmt: skip
    """A graph of one op. ``constants``: input position -> codes, for inputs that are constants. ``dtype``: the output's."""
    from qwtv2_edge.ops import OPS

    b = GraphBuilder(name)
    names = []
    for i, type in enumerate(inputs):
        if constants and i in constants:
            names.append(b.constant(f"c{i}", constants[i], type))
        else:
            names.append(b.input(f"x{i}", type))
    shape = OPS[op].infer(tuple(inputs), attrs)[0].shape
    out_type = TensorType(shape, dtype, out)
    (y,) = b.add(op, names, attrs, name="y", out_types=(out_type,))
    b.outputs = [y]
    return Case(name, b.freeze())
