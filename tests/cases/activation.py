"""Unary activations. Every case feeds all 256 codes."""

from __future__ import annotations

import numpy as np

from cases.build import GRIDS, Case, act, draw_act, draw_wide, op_case
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.ops.activation import AlphaAttrs, ClampAttrs, GeluAttrs
from qwtv2_edge.ops.spec import NoAttrs

SHAPE = (1, 4, 8, 8)
LOGISTIC, TANH = Quantization.per_tensor(1 / 256, -128), Quantization.per_tensor(1 / 128, 0)


def cases() -> list[Case]:
    out = []
    for grid_name, grid in GRIDS.items():
        rng = np.random.default_rng(23)
        for scale in (0.004, 0.02, 0.05, 0.11, 0.4):
            x = draw_act(rng, SHAPE, grid, scale)
            label = f"{scale}-{grid_name}"
            out.append(op_case(f"logistic-{label}", "logistic", NoAttrs(), [x], LOGISTIC))
            out.append(op_case(f"tanh-{label}", "tanh", NoAttrs(), [x], TANH))
            free = Quantization.per_tensor(grid.scale(x.scale * rng.uniform(0.5, 1.6)), int(rng.integers(-128, 128)))
            out.append(op_case(f"hard-swish-{label}", "hard_swish", NoAttrs(), [x], free))
            out.append(op_case(f"elu-{label}", "elu", AlphaAttrs(1.0), [x], free))
            for approximate in (False, True):
                label_gelu = f"gelu-{'tanh' if approximate else 'erf'}-{label}"
                out.append(op_case(label_gelu, "gelu", GeluAttrs(approximate), [x], free))
            for alpha in (0.01, 0.3, 2.0):
                out.append(op_case(f"leaky-relu-{alpha}-{label}", "leaky_relu", AlphaAttrs(alpha), [x], free))
            slope_type = TensorType((8,), "int8", Quantization.per_tensor(grid.scale(0.01), int(rng.integers(-20, 20))))
            slopes = rng.integers(-128, 128, 8).astype(np.int8)
            out.append(op_case(f"prelu-{label}", "prelu", NoAttrs(), [x, slope_type], free, constants={1: slopes}))
            out.append(op_case(f"relu-{label}", "relu", NoAttrs(), [x], x.quantization))
            out.append(op_case(f"relu6-{label}", "relu6", NoAttrs(), [act(SHAPE, x.scale, -100)], Quantization.per_tensor(x.scale, -100)))
            for low, high in ((-1.0, 1.0), (0.0, 1.0), (-np.inf, 0.5), (-0.3, np.inf)):
                t = act(SHAPE, x.scale, int(rng.integers(-60, 60)))
                out.append(op_case(f"clamp-{low:g}-{high:g}-{label}", "clamp", ClampAttrs(low, high), [t], t.quantization))
        x = draw_act(rng, SHAPE, grid, 0.05)
        for ratio in (2.0**-9, 2.0**-7, 0.4, 1.0, 3.3, 100.0, 127.5, 140.0):
            free = Quantization.per_tensor(x.scale / ratio, int(rng.integers(-128, 128)))
            out.append(op_case(f"requantize-{ratio:g}-{grid_name}", "requantize", NoAttrs(), [x], free))
            out.append(op_case(f"leaky-relu-ratio-{ratio:g}-{grid_name}", "leaky_relu", AlphaAttrs(0.1), [x], free))
            narrow, w = draw_act(rng, SHAPE, grid), draw_wide(rng, SHAPE, grid)
            label, wide_out = f"{ratio:g}-{grid_name}", Quantization.per_tensor(w.scale / ratio, 0)
            widened = Quantization.per_tensor(narrow.scale / (ratio * 256), 0)
            narrowed = Quantization.per_tensor(w.scale * 256 / ratio, int(rng.integers(-128, 128)))
            out.append(op_case(f"requantize-8to16-{label}", "requantize", NoAttrs(), [narrow], widened, dtype="int16"))
            out.append(op_case(f"requantize-16to8-{label}", "requantize", NoAttrs(), [w], narrowed))
            out.append(op_case(f"requantize-16to16-{label}", "requantize", NoAttrs(), [w], wide_out, dtype="int16"))
    return out
