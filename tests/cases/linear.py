"""Fully connected."""

from __future__ import annotations

import numpy as np

from cases.build import GRIDS, RANDOM, Case, weighted_case
from qwtv2_edge.ops.linear import FullyConnectedAttrs

SHAPES = {
    "small": ((1, 5), 3),
    "wide": ((1, 64), 33),
    "one-output": ((1, 20), 1),
    "batch4": ((4, 16), 8),
    "rank3": ((1, 6, 12), 7),
    "rank4": ((1, 2, 3, 8), 5),
    "long": ((1, 1500), 4),
}


def cases() -> list[Case]:
    out = []
    for grid_name, grid in GRIDS.items():
        rng = np.random.default_rng(3)
        for name, (x, o) in SHAPES.items():
            for per_tensor in (False, True):
                label = f"fc-{name}-{'per-tensor' if per_tensor else 'per-channel'}-{grid_name}"
                w = (o, x[-1])
                out.append(weighted_case(label, "fully_connected", FullyConnectedAttrs(), x, w, 0, 0, rng, grid, per_tensor=per_tensor))
        for activation in ("relu", "relu6", "relu_n1_to_1"):
            a = FullyConnectedAttrs(activation)
            out.append(
                weighted_case(f"fc-{activation}-{grid_name}", "fully_connected", a, (1, 16), (6, 16), 0, 0, rng, grid, out_zero_point=-30)
            )
    rng = np.random.default_rng(5)
    for gain in (0.05, 1000.0):
        out.append(
            weighted_case(f"fc-gain-{gain:g}", "fully_connected", FullyConnectedAttrs(), (1, 24), (9, 24), 0, 0, rng, RANDOM, gain=gain)
        )
    for per_tensor in (False, True):
        label = f"fc-int4-{'per-tensor' if per_tensor else 'per-channel'}"
        out.append(
            weighted_case(
                label, "fully_connected", FullyConnectedAttrs(), (1, 18), (6, 18), 0, 0, rng, RANDOM, bits=4, per_tensor=per_tensor
            )
        )
    return out
