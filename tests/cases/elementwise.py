"""add, sub, mul: broadcast, constants, scales inside and outside XNNPACK's window."""

from __future__ import annotations

import numpy as np

from cases.build import GRIDS, RANDOM, WIDER, Case, Grid, act, draw_act, draw_wide, op_case
from qwtv2_edge.ir import GraphBuilder, Quantization, TensorType
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.layout import ReshapeAttrs

SHAPES = {
    "same": ((1, 4, 5, 7), (1, 4, 5, 7)),
    "channel": ((1, 4, 5, 7), (1, 1, 1, 7)),
    "spatial": ((1, 4, 5, 7), (1, 4, 5, 1)),
    "rank2": ((1, 33), (1, 33)),
    "swapped": ((1, 1, 1, 6), (1, 3, 4, 6)),
}


def _out(rng, grid, x, y, op) -> Quantization:
    spread = np.hypot(x.scale, y.scale) * 74 if op != "mul" else x.scale * y.scale * 74 * 74
    return Quantization.per_tensor(grid.scale(spread / 50), int(rng.integers(-128, 128)))


def _twice(op: str, grid_name: str, through_reshape: bool) -> Case:
    """One tensor as both operands: XNNPACK rewrites such nodes, and sees through reshapes."""
    rng = np.random.default_rng(23)
    b = GraphBuilder("twice")
    grid = GRIDS[grid_name]
    type = draw_act(rng, (1, 256), grid)
    x = b.input("x", type)
    y = b.add("reshape", (x,), ReshapeAttrs((1, 256)), name="again", out_types=(type,))[0] if through_reshape else x
    out = TensorType(type.shape, "int8", Quantization.per_tensor(grid.scale(type.scale**2 * 60 if op == "mul" else type.scale * 1.5), 3))
    b.outputs = list(b.add(op, (x, y), BinaryAttrs(), name="node", out_types=(out,)))
    return Case(f"{op}-{'reshaped-twin' if through_reshape else 'twice'}-{grid_name}", b.freeze())


def _wide(grid_name: str, grid: Grid) -> list[Case]:
    """Results of 16 bits: sums of operands of either width, products of 16-bit ones."""
    rng, out = np.random.default_rng(47), []

    def case(name: str, op: str, x: TensorType, y: TensorType, *, gain: float = 1.0, constant: int | None = None, attrs=None) -> None:
        codes = {}
        if constant is not None:
            low, high = (x, y)[constant].code_bounds
            codes[constant] = rng.integers(low, high + 1, (x, y)[constant].shape, dtype=(x, y)[constant].dtype)
        reach = [t.scale * (WIDER if t.dtype == "int16" else 1) for t in (x, y)]
        spread = np.hypot(*reach) if op != "mul" else reach[0] * reach[1] * 74
        q = Quantization.per_tensor(grid.scale(spread * 1.5 / (WIDER * gain)), 0)
        out.append(op_case(f"{op}-wide-{name}-{grid_name}", op, attrs or BinaryAttrs(), [x, y], q, constants=codes, dtype="int16"))

    shape = (1, 4, 7)
    for op in ("add", "sub", "mul"):
        for name, (sx, sy) in {"same": (shape, shape), "channel": (shape, (1, 1, 7)), "rank4": SHAPES["swapped"]}.items():
            case(name, op, draw_wide(rng, sx, grid), draw_wide(rng, sy, grid))
        case("constant", op, draw_wide(rng, shape, grid), draw_wide(rng, (7,), grid), constant=1)
        case("saturating", op, draw_wide(rng, shape, grid), draw_wide(rng, shape, grid), gain=8.0)
        case("twice", op, *[draw_wide(rng, shape, grid)] * 2)
    for op in ("add", "sub"):
        case("16+8", op, draw_wide(rng, shape, grid), draw_act(rng, shape, grid))
        case("8+16", op, draw_act(rng, shape, grid), draw_wide(rng, shape, grid))
        case("8+8", op, draw_act(rng, shape, grid), draw_act(rng, shape, grid))
        case("8+16-constant-first", op, draw_act(rng, (1, 4, 1), grid), draw_wide(rng, shape, grid), constant=0)
        case("8+8-constant", op, draw_act(rng, shape, grid), draw_act(rng, (1, 4, 7), grid), constant=1)
        case("apart", op, draw_wide(rng, shape, grid, 1e-5), draw_wide(rng, shape, grid, 1e-2))
        for activation in ("relu", "relu6"):
            case(activation, op, draw_wide(rng, shape, grid, 1e-3), draw_act(rng, shape, grid), attrs=BinaryAttrs(activation))
    return out


def cases() -> list[Case]:
    out = []
    for op in ("add", "sub", "mul"):
        for grid_name, grid in GRIDS.items():
            rng = np.random.default_rng(13)
            for name, (sx, sy) in SHAPES.items():
                x, y = draw_act(rng, sx, grid), draw_act(rng, sy, grid)
                out.append(op_case(f"{op}-{name}-{grid_name}", op, BinaryAttrs(), [x, y], _out(rng, grid, x, y, op)))
            for activation in ("relu", "relu6", "relu_n1_to_1"):
                x, y = draw_act(rng, (1, 3, 3, 5), grid), draw_act(rng, (1, 3, 3, 5), grid)
                out.append(op_case(f"{op}-{activation}-{grid_name}", op, BinaryAttrs(activation), [x, y], _out(rng, grid, x, y, op)))
            x, c = draw_act(rng, (1, 3, 3, 5), grid), draw_act(rng, (1, 1, 1, 5), grid)
            codes = rng.integers(-128, 128, c.shape).astype(np.int8)
            out.append(op_case(f"{op}-constant-{grid_name}", op, BinaryAttrs(), [x, c], _out(rng, grid, x, c, op), constants={1: codes}))
            scalar = act((1, 1, 1, 1), grid.scale(0.02), 3)
            out.append(
                op_case(
                    f"{op}-scalar-{grid_name}",
                    op,
                    BinaryAttrs(),
                    [x, scalar],
                    _out(rng, grid, x, scalar, op),
                    constants={1: np.full((1, 1, 1, 1), 77, np.int8)},
                )
            )
            for name, shape in (("vector", (5,)), ("scalar-rank0", ()), ("rank3", (3, 3, 1))):
                c = act(shape, grid.scale(0.03), -4)
                codes = rng.integers(-128, 128, shape, dtype=np.int8)
                out.append(op_case(f"{op}-{name}-{grid_name}", op, BinaryAttrs(), [x, c], _out(rng, grid, x, c, op), constants={1: codes}))
        out += [_twice(op, grid_name, reshaped) for grid_name in GRIDS for reshaped in (False, True)]
        rng = np.random.default_rng(17)
        # ratios at and beyond the edges of the delegate's windows: [2**-10, 2**8) for sums, [2**-16, 2**8) for products
        for ratio in (2.0**-11, 2.0**-10, 2.0**-9.5, 1.5, 60.0, 100.0, 255.0):
            x = draw_act(rng, (1, 3, 3, 5), RANDOM)
            y = act(x.shape, x.scale * 0.9 if op != "mul" else 0.01, 5)
            scale = x.scale / ratio if op != "mul" else x.scale * y.scale / (ratio * 2.0 ** (-6 if ratio < 1 else 0))
            out.append(op_case(f"{op}-ratio-{ratio:g}", op, BinaryAttrs(), [x, y], Quantization.per_tensor(scale, -7)))
    for grid_name, grid in GRIDS.items():
        out += _wide(grid_name, grid)
    return out
