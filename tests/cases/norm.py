"""layer_norm with its tables and shifts, l2_normalize, and the gains per channel that smoothing leaves."""

from __future__ import annotations

import numpy as np

from cases.build import GRIDS, RANDOM, WIDER, Case, Grid, act, draw_wide, op_case
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.ops.norm import L2NormalizeAttrs, LayerNormAttrs
from qwtv2_edge.ops.sequence import normal_scale, variance_shift
from qwtv2_edge.ops.spec import NoAttrs

#: standard deviation of the codes a shift is made for: small, ordinary, the whole range
SPREADS = (200.0, 4000.0, 18900.0)
UNIT_LENGTH = Quantization.per_tensor(1 / 128, 0)


def _layer_norm(
    name: str, rng: np.random.Generator, grid: Grid, shape, dtype: str, *, spread=4000.0, eps=1e-5, centre=True, passes=1
) -> Case:
    """gamma around 1, beta around 0. The shift is chosen for codes of standard deviation ``spread``."""
    n, x = shape[-1], draw_wide(rng, shape, grid, 1e-3)
    gamma_scale = grid.scale(1.6 / 32767)
    gamma = np.clip(rng.normal(1, 0.2, n) / gamma_scale, -32768, 32767).astype(np.int16)
    beta_scale = float(np.float32(gamma_scale) * np.float32(normal_scale(n)))
    beta = (rng.normal(0, 0.3, n) / beta_scale).astype(np.int32)
    out = Quantization.per_tensor(grid.scale(0.035), int(rng.integers(-60, 60)))
    if dtype == "int16":
        out = Quantization.per_tensor(grid.scale(4.5 / 32768), 0)
    types = [
        x,
        TensorType((n,), "int16", Quantization.per_tensor(gamma_scale, 0)),
        TensorType((n,), "int32", Quantization((beta_scale,), (0,))),
    ]
    attrs = LayerNormAttrs(eps, centre, variance_shift(x.scale, (spread * x.scale) ** 2), passes)
    return op_case(name, "layer_norm", attrs, types, out, constants={1: gamma, 2: beta}, dtype=dtype)


def _channel_scale(name: str, rng: np.random.Generator, grid: Grid, shape) -> Case:
    x = draw_wide(rng, shape, grid)
    gain = TensorType(shape[-1:], "int16", Quantization.per_tensor(grid.scale(3e-5), 0))
    codes = rng.integers(-32768, 32768, gain.shape, dtype=np.int16)
    out = Quantization.per_tensor(grid.scale(x.scale * WIDER * 0.6), int(rng.integers(-60, 60)))
    return op_case(name, "channel_scale", NoAttrs(), [x, gain], out, constants={1: codes})


def _channel_add(name: str, rng: np.random.Generator, grid: Grid, shape, dtype: str) -> Case:
    """A wide skip (or a narrow one with a zero point) and a branch whose gains span three decades."""
    x = draw_wide(rng, shape, grid) if dtype == "int16" else act(shape, grid.scale(0.05), int(rng.integers(-60, 60)))
    y = act(shape, grid.scale(0.02), 0)
    gain = TensorType(shape[-1:], "int16", Quantization.per_tensor(grid.scale(1 / 32767), 0))
    codes = (32767 * 10 ** rng.uniform(-2.3, 0, gain.shape)).astype(np.int16)
    out = Quantization.per_tensor(grid.scale((x.scale * x.code_bounds[1] + 128 * y.scale) / 30000), 0)
    return op_case(name, "channel_add", NoAttrs(), [x, y, gain], out, constants={2: codes}, dtype="int16")


def cases() -> list[Case]:
    out = []
    for grid_name, grid in GRIDS.items():
        rng = np.random.default_rng(37)
        for dtype in ("int8", "int16"):
            for shape in ((1, 8), (1, 5, 64), (1, 2, 3, 192), (1, 3, 384), (1, 2, 768)):
                label = f"{'x'.join(map(str, shape))}-{dtype}-{grid_name}"
                out.append(_layer_norm(f"layer-norm-{label}", rng, grid, shape, dtype))
                out.append(_layer_norm(f"rms-norm-{label}", rng, grid, shape, dtype, centre=False))
            for spread in SPREADS:
                out.append(_layer_norm(f"layer-norm-spread-{spread:g}-{dtype}-{grid_name}", rng, grid, (1, 3, 32), dtype, spread=spread))
            for n in (8, 48, 384):
                out.append(_layer_norm(f"layer-norm-twice-{n}-{dtype}-{grid_name}", rng, grid, (1, 3, n), dtype, passes=2))
            for eps in (1e-12, 0.1, 30.0):
                out.append(_layer_norm(f"layer-norm-eps-{eps:g}-{dtype}-{grid_name}", rng, grid, (1, 3, 32), dtype, eps=eps))
        for shape in ((1, 9), (1, 5, 64), (1, 2, 3, 33)):
            out.append(_channel_scale(f"channel-scale-{'x'.join(map(str, shape))}-{grid_name}", rng, grid, shape))
            for dtype in ("int8", "int16"):
                out.append(_channel_add(f"channel-add-{'x'.join(map(str, shape))}-{dtype}-{grid_name}", rng, grid, shape, dtype))
        for shape in ((1, 3), (1, 4, 64), (1, 384), (1, 2, 3, 16)):
            for zero_point in (0, -128, int(rng.integers(-100, 100))):
                x = act(shape, RANDOM.scale(0.02), zero_point)  # its scale takes no part
                label = f"l2-normalize-{'x'.join(map(str, shape))}-z{zero_point}-{grid_name}"
                out.append(op_case(label, "l2_normalize", L2NormalizeAttrs(), [x], UNIT_LENGTH))
    return out
