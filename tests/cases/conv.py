"""Convolutions."""

from __future__ import annotations

import numpy as np

from cases.build import GRIDS, RANDOM, Case, weighted_case
from qwtv2_edge.ops.conv import Conv2DAttrs, DepthwiseAttrs, TransposeConvAttrs

NO_PAD = ((0, 0), (0, 0))

#: name -> (x shape, kernel, output channels, attributes)
CONV = {
    "1x1": ((1, 5, 5, 7), (1, 1), 9, Conv2DAttrs()),
    "1x1-one-pixel": ((1, 1, 1, 16), (1, 1), 8, Conv2DAttrs()),
    "3x3-valid": ((1, 7, 6, 3), (3, 3), 5, Conv2DAttrs()),
    "3x3-same": ((1, 8, 8, 4), (3, 3), 8, Conv2DAttrs(padding=((1, 1), (1, 1)))),
    "3x3-same-stride2": ((1, 8, 8, 3), (3, 3), 17, Conv2DAttrs((2, 2), ((0, 1), (0, 1)))),
    "3x3-pad1-stride2": ((1, 8, 8, 3), (3, 3), 6, Conv2DAttrs((2, 2), ((1, 1), (1, 1)))),
    "asymmetric-padding": ((1, 6, 7, 2), (3, 2), 4, Conv2DAttrs(padding=((2, 0), (0, 2)))),
    "stride-2x3": ((1, 9, 10, 3), (2, 3), 4, Conv2DAttrs((2, 3))),
    "dilation": ((1, 10, 9, 2), (3, 3), 4, Conv2DAttrs(dilation=(2, 3), padding=((2, 2), (3, 3)))),
    "padding-unread": ((1, 7, 7, 3), (2, 2), 4, Conv2DAttrs((2, 2), ((0, 0), (0, 0)))),
    "1d": ((1, 1, 20, 3), (1, 5), 6, Conv2DAttrs(padding=((0, 0), (2, 2)))),
    "one-channel": ((1, 4, 4, 1), (2, 2), 1, Conv2DAttrs()),
    "wide": ((1, 3, 3, 40), (3, 3), 33, Conv2DAttrs(padding=((1, 1), (1, 1)))),
}

#: name -> (x shape, kernel, multiplier, attributes)
DEPTHWISE = {
    "3x3": ((1, 6, 6, 9), (3, 3), 1, DepthwiseAttrs(padding=((1, 1), (1, 1)))),
    "3x3-stride2": ((1, 8, 8, 16), (3, 3), 1, DepthwiseAttrs((2, 2), ((0, 1), (0, 1)))),
    "3x3-pad1-stride2": ((1, 8, 8, 5), (3, 3), 1, DepthwiseAttrs((2, 2), ((1, 1), (1, 1)))),
    "5x5": ((1, 7, 7, 3), (5, 5), 1, DepthwiseAttrs(padding=((2, 2), (2, 2)))),
    "multiplier2": ((1, 5, 5, 3), (3, 3), 2, DepthwiseAttrs()),
    "multiplier8-from-1": ((1, 6, 5, 1), (3, 3), 8, DepthwiseAttrs((2, 2))),
    "dilation": ((1, 8, 8, 4), (3, 3), 1, DepthwiseAttrs(dilation=(2, 2), padding=((2, 2), (2, 2)))),
    "1d": ((1, 1, 16, 8), (1, 3), 1, DepthwiseAttrs(padding=((0, 0), (1, 1)))),
    "one-channel": ((1, 4, 4, 1), (3, 3), 1, DepthwiseAttrs()),
}

GROUPED = {
    "2-groups": ((1, 6, 6, 8), (3, 3), 6, Conv2DAttrs(padding=((1, 1), (1, 1)), groups=2)),
    "4-groups-1x1": ((1, 4, 4, 8), (1, 1), 8, Conv2DAttrs(groups=4)),
    "one-channel-groups": ((1, 4, 4, 3), (3, 3), 6, Conv2DAttrs(groups=3)),
}

#: name -> (x shape, kernel, output channels, attributes)
TRANSPOSED = {
    "2x2-stride2": ((1, 3, 4, 5), (2, 2), 3, TransposeConvAttrs((2, 2))),
    "3x3-stride2-torch": ((1, 4, 4, 3), (3, 3), 4, TransposeConvAttrs((2, 2), ((1, 0), (1, 0)))),
    "3x3-stride2-same": ((1, 4, 4, 3), (3, 3), 4, TransposeConvAttrs((2, 2), ((0, 1), (0, 1)))),
    "4x4-stride2-pad1": ((1, 3, 3, 4), (4, 4), 2, TransposeConvAttrs((2, 2), ((1, 1), (1, 1)))),
    "3x3-stride1": ((1, 4, 4, 3), (3, 3), 9, TransposeConvAttrs((1, 1), ((1, 1), (1, 1)))),
    "output-padding": ((1, 3, 3, 2), (2, 2), 3, TransposeConvAttrs((3, 3), ((0, -1), (0, -1)))),
    "one-channel": ((1, 3, 3, 1), (3, 3), 1, TransposeConvAttrs((2, 2))),
}


def _o(kernel, channels, x_shape, groups=1):
    return (channels, *kernel, x_shape[3] // groups)


def cases() -> list[Case]:
    out = []
    for grid_name, grid in GRIDS.items():
        rng = np.random.default_rng(7)
        for name, (x, k, o, a) in CONV.items():
            out.append(weighted_case(f"conv2d-{name}-{grid_name}", "conv2d", a, x, _o(k, o, x), 0, 0, rng, grid))
        for name, (x, k, m, a) in DEPTHWISE.items():
            w = (1, *k, x[3] * m)
            out.append(weighted_case(f"depthwise-{name}-{grid_name}", "depthwise_conv2d", a, x, w, 3, 3, rng, grid))
        for name, (x, k, o, a) in GROUPED.items():
            out.append(weighted_case(f"grouped-{name}-{grid_name}", "conv2d", a, x, _o(k, o, x, a.groups), 0, 0, rng, grid))
        for name, (x, k, o, a) in TRANSPOSED.items():
            taps = max(1, k[0] * k[1] * x[3] // (a.stride[0] * a.stride[1]))
            out.append(weighted_case(f"transposed-{name}-{grid_name}", "transpose_conv2d", a, x, _o(k, o, x), 0, 0, rng, grid, taps=taps))
        for name in ("1x1", "3x3-same", "3x3-pad1-stride2", "dilation", "1d", "one-channel"):
            x, k, o, a = CONV[name]
            out.append(weighted_case(f"conv2d-wide-{name}-{grid_name}", "conv2d", a, x, _o(k, o, x), 0, 0, rng, grid, widened=True))
        for name in ("3x3", "3x3-pad1-stride2", "5x5", "multiplier2", "1d", "one-channel"):
            x, k, m, a = DEPTHWISE[name]
            label, w = f"depthwise-wide-{name}-{grid_name}", (1, *k, x[3] * m)
            out.append(weighted_case(label, "depthwise_conv2d", a, x, w, 3, 3, rng, grid, widened=True))
    out += _variants()
    return out


def _variants() -> list[Case]:
    """Fused activations, one scale for all channels, large gains, small shifts."""
    rng, out = np.random.default_rng(11), []
    x = (1, 5, 5, 6)
    for activation in ("relu", "relu6", "relu_n1_to_1"):
        for grid_name, grid in GRIDS.items():
            a = Conv2DAttrs(activation=activation)
            out.append(weighted_case(f"conv2d-{activation}-{grid_name}", "conv2d", a, x, (5, 3, 3, 6), 0, 0, rng, grid, out_zero_point=-20))
            a = DepthwiseAttrs(activation=activation)
            out.append(
                weighted_case(
                    f"depthwise-{activation}-{grid_name}", "depthwise_conv2d", a, x, (1, 3, 3, 6), 3, 3, rng, grid, out_zero_point=-100
                )
            )
        a = Conv2DAttrs(activation=activation)
        out.append(weighted_case(f"conv2d-wide-{activation}", "conv2d", a, x, (5, 3, 3, 6), 0, 0, rng, RANDOM, widened=True))
    for activation in ("relu", "relu6"):
        a = TransposeConvAttrs((2, 2), ((1, 0), (1, 0)), activation=activation)
        out.append(weighted_case(f"transposed-{activation}", "transpose_conv2d", a, x, (4, 3, 3, 6), 0, 0, rng, RANDOM, taps=14))
    for gain in (0.05, 3.0, 1000.0):
        out.append(weighted_case(f"conv2d-gain-{gain:g}", "conv2d", Conv2DAttrs(), x, (5, 2, 2, 6), 0, 0, rng, RANDOM, gain=gain))
        out.append(
            weighted_case(f"depthwise-gain-{gain:g}", "depthwise_conv2d", DepthwiseAttrs(), x, (1, 3, 3, 6), 3, 3, rng, RANDOM, gain=gain)
        )
    for op, a, w, axis in (
        ("conv2d", Conv2DAttrs(), (4, 3, 3, 6), 0),
        ("depthwise_conv2d", DepthwiseAttrs(), (1, 3, 3, 6), 3),
        ("transpose_conv2d", TransposeConvAttrs(), (4, 3, 3, 6), 0),
    ):
        out.append(weighted_case(f"{op}-per-tensor", op, a, x, w, axis, axis, rng, RANDOM, per_tensor=True))
    out.append(weighted_case("conv2d-int4", "conv2d", Conv2DAttrs(), x, (5, 3, 3, 6), 0, 0, rng, RANDOM, bits=4))
    out.append(weighted_case("depthwise-int4", "depthwise_conv2d", DepthwiseAttrs(), x, (1, 3, 3, 6), 3, 3, rng, RANDOM, bits=4))
    one_pixel, few_rows = (1, 3, 3, 6), (1, 1, 1, 16)
    out.append(weighted_case("conv2d-int4-one-pixel", "conv2d", Conv2DAttrs(), one_pixel, (33, 3, 3, 6), 0, 0, rng, RANDOM, bits=4))
    out.append(weighted_case("conv2d-int4-three-rows", "conv2d", Conv2DAttrs(), few_rows, (3, 1, 1, 16), 0, 0, rng, RANDOM, bits=4))
    g, k, o, a = GROUPED["4-groups-1x1"]
    out.append(weighted_case("grouped-wide", "conv2d", a, g, _o(k, o, g, a.groups), 0, 0, rng, RANDOM, widened=True))
    return out
