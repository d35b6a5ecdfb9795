"""Fully connected."""

from __future__ import annotations

import numpy as np

from cases.build import GRIDS, RANDOM, Case, act, weighted_case
from qwtv2_edge.ir import GraphBuilder, Quantization, TensorType
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


def _product_precision() -> Case:
    """Scales and an accumulator of the published autoencoder's last layer, where a float32 product of input and weight scale
    (one weight scale) gives another code than a float64 product."""
    x = act((1, 8), 0.024790890514850616, -128)
    out = TensorType((1, 64), "int8", Quantization.per_tensor(0.36449846625328064, 96))
    w_scale = 0.0195566825568676
    b = GraphBuilder("fc")
    codes = np.zeros((64, 8), np.int8)
    w = b.constant("w", codes, TensorType(codes.shape, "int8", Quantization((w_scale,), (0,), 0)))
    bias = np.arange(-88337 - 32, -88337 + 32, dtype=np.int32)
    b_scale = float(np.float32(x.scale) * np.float32(w_scale))
    inputs = (b.input("x", x), w, b.constant("bias", bias, TensorType((64,), "int32", Quantization((b_scale,), (0,), 0))))
    b.outputs = list(b.add("fully_connected", inputs, FullyConnectedAttrs(), name="node", out_types=(out,)))
    return Case("fc-product-precision", b.freeze())


def cases() -> list[Case]:
    out = [_product_precision()]
    for grid_name, grid in GRIDS.items():
        rng = np.random.default_rng(3)
        for name, (x, o) in SHAPES.items():
            for per_tensor in (False, True):
                label = f"fc-{name}-{'per-tensor' if per_tensor else 'per-channel'}-{grid_name}"
                w = (o, x[-1])
                out.append(weighted_case(label, "fully_connected", FullyConnectedAttrs(), x, w, 0, 0, rng, grid, per_tensor=per_tensor))
        for name in ("small", "wide", "one-output", "batch4", "rank3", "rank4"):
            x, o = SHAPES[name]
            for per_tensor in (False, True):
                label = f"fc-wide-{name}-{'per-tensor' if per_tensor else 'per-channel'}-{grid_name}"
                attrs, w = FullyConnectedAttrs(), (o, x[-1])
                out.append(weighted_case(label, "fully_connected", attrs, x, w, 0, 0, rng, grid, per_tensor=per_tensor, widened=True))
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
