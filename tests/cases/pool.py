"""Pools, reductions, softmax."""

from __future__ import annotations

import numpy as np

from cases.build import GRIDS, Case, act, draw_act, draw_wide, op_case
from qwtv2_edge.ir.types import Quantization
from qwtv2_edge.ops.pool import PoolAttrs, ReduceAttrs, SoftmaxAttrs

POOLS = {
    "2x2-stride2": ((1, 6, 6, 5), PoolAttrs((2, 2), (2, 2))),
    "3x3-same": ((1, 6, 5, 5), PoolAttrs((3, 3), (1, 1), ((1, 1), (1, 1)))),
    "3x3-stride2-same": ((1, 7, 7, 3), PoolAttrs((3, 3), (2, 2), ((1, 1), (1, 1)))),
    "3x3-stride2-pad1": ((1, 8, 8, 3), PoolAttrs((3, 3), (2, 2), ((1, 1), (1, 1)))),
    "global": ((1, 5, 7, 9), PoolAttrs((5, 7), (1, 1))),
    "1x3": ((1, 1, 9, 4), PoolAttrs((1, 3), (1, 2))),
    "odd-window": ((1, 5, 5, 17), PoolAttrs((3, 2), (2, 1))),
}

REDUCTIONS = {
    "spatial": ((1, 5, 6, 19), (1, 2)),
    "spatial-7x7": ((1, 7, 7, 8), (1, 2)),
    "height": ((1, 5, 6, 4), (1,)),
    "last": ((1, 3, 20), (2,)),
    "channels": ((1, 4, 4, 16), (3,)),
    "one": ((1, 1, 1, 12), (1, 2)),
}


def cases() -> list[Case]:
    out = []
    for grid_name, grid in GRIDS.items():
        rng = np.random.default_rng(19)
        for name, (shape, a) in POOLS.items():
            for z in (None, -128):
                x = draw_act(rng, shape, grid, zero_point=z)
                label = f"{name}{'' if z is None else '-z128'}-{grid_name}"
                out.append(op_case(f"max-pool-{label}", "max_pool2d", a, [x], x.quantization))
                out.append(op_case(f"avg-pool-{label}", "avg_pool2d", a, [x], x.quantization))
        for name, (shape, axes) in REDUCTIONS.items():
            for keep in (False, True):
                a, x = ReduceAttrs(axes, keep), draw_act(rng, shape, grid)
                count = np.prod([shape[i] for i in axes])
                label = f"{name}{'-keep' if keep else ''}-{grid_name}"
                mean = Quantization.per_tensor(grid.scale(x.scale / np.sqrt(count) * 1.3), int(rng.integers(-128, 128)))
                out.append(op_case(f"mean-{label}", "mean", a, [x], mean))
                total = Quantization.per_tensor(grid.scale(x.scale * np.sqrt(count) * 1.3), int(rng.integers(-128, 128)))
                out.append(op_case(f"sum-{label}", "sum", a, [x], total))
                w = draw_wide(rng, shape, grid)
                mean = Quantization.per_tensor(grid.scale(w.scale / np.sqrt(count) * 1.3), 0)
                out.append(op_case(f"mean-wide-{label}", "mean", a, [w], mean, dtype="int16"))
                out.append(op_case(f"max-{label}", "reduce_max", a, [x], x.quantization))
        x = draw_act(rng, (1, 4, 4, 8), grid)
        out.append(op_case(f"mean-same-scale-{grid_name}", "mean", ReduceAttrs((1, 2)), [x], x.quantization))
        for shape in ((1, 3), (1, 10), (1, 3, 17), (1, 99), (1, 100), (1, 2, 197), (1, 300), (1, 2, 3, 5), (1, 1, 2, 99)):
            for scale in (0.003, 0.06, 0.9):
                for beta in (1.0, 0.5, 0.125):
                    x = act(shape, grid.scale(scale), int(rng.integers(-128, 128)))
                    label = f"softmax-{'x'.join(map(str, shape))}-{scale}-beta{beta}-{grid_name}"
                    out.append(op_case(label, "softmax", SoftmaxAttrs(beta), [x], Quantization.per_tensor(1 / 256, -128)))
    return out
