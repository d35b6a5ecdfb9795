"""Products of two activations, of 8 and of 16 bits."""

from __future__ import annotations

import numpy as np

from cases.build import CODE_STD, GRIDS, RANDOM, WIDER, Case, Grid, draw_act, draw_wide, op_case
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.ops.matmul import BatchMatmulAttrs

#: leading axes, m, k, n
SIZES = {
    "rank2": ((), 5, 7, 3),
    "rank3": ((1,), 6, 64, 9),
    "rank3-heads": ((3,), 4, 16, 5),
    "rank4": ((1, 2), 5, 24, 8),
    "one-inner": ((1,), 4, 1, 6),
    "long": ((1, 1), 3, 300, 4),
    "one-row": ((1, 2), 1, 33, 17),
    "many": ((1,), 64, 64, 64),
}


def _product(
    name: str, rng: np.random.Generator, grid: Grid, size, transpose_b: bool, *, widened: bool = False, constant: int | None = None,
    gain: float = 1.0,
) -> Case:  # fmt: skip
    """``constant``: which operand is one."""
    lead, m, k, n = size
    shapes = (*lead, m, k), (*lead, n, k) if transpose_b else (*lead, k, n)
    types: list[TensorType]
    if widened:
        types = [draw_wide(rng, s, grid) for s in shapes]
    else:
        types = [draw_act(rng, shapes[0], grid), draw_act(rng, shapes[1], grid, zero_point=0)]
    ratio = WIDER if widened else 1
    spread = types[0].scale * types[1].scale * (CODE_STD * ratio) ** 2 * np.sqrt(k)
    out = Quantization.per_tensor(grid.scale(spread / (50 * ratio * gain)), 0 if widened else int(rng.integers(-128, 128)))
    dtype = types[0].dtype
    constants = {}
    if constant is not None:
        low, high = types[constant].code_bounds
        constants[constant] = rng.integers(low, high + 1, shapes[constant], dtype=dtype)
    return op_case(name, "batch_matmul", BatchMatmulAttrs(transpose_b), types, out, constants=constants, dtype=dtype)


def cases() -> list[Case]:
    out = []
    for grid_name, grid in GRIDS.items():
        rng = np.random.default_rng(41)
        for name, size in ((n, s) for n, s in SIZES.items() if n != "many"):
            for transpose_b in (False, True):
                label = f"{name}{'-transposed' if transpose_b else ''}-{grid_name}"
                out.append(_product(f"batch-matmul-{label}", rng, grid, size, transpose_b))
                out.append(_product(f"batch-matmul-wide-{label}", rng, grid, size, transpose_b, widened=True))
        for name in ("rank2", "rank3", "rank4"):
            for constant in (0, 1):
                for transpose_b in (False, True):
                    label = f"{name}-constant{constant}{'-transposed' if transpose_b else ''}-{grid_name}"
                    out.append(_product(f"batch-matmul-{label}", rng, grid, SIZES[name], transpose_b, constant=constant))
        for gain in (0.02, 300.0):
            out.append(_product(f"batch-matmul-gain-{gain:g}-{grid_name}", rng, grid, SIZES["rank3"], True, gain=gain))
    rng = np.random.default_rng(43)
    # the last bits of a multiplier show in one output of some hundred thousand
    out.extend(_product(f"batch-matmul-scales-{i}", rng, RANDOM, SIZES["many"], True) for i in range(20))
    return out
