"""Fused activations whose bounds lie half way between two codes, where roundings part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cases.build import RANDOM, Case, act, op_case, weighted_case
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.ops.conv import Conv2DAttrs, DepthwiseAttrs
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.linear import FullyConnectedAttrs

#: op, attributes, x shape, weight shape, output axis of the weights
WEIGHTED = (
    ("conv2d", Conv2DAttrs, (1, 4, 4, 3), (4, 2, 2, 3), 0),
    ("depthwise_conv2d", DepthwiseAttrs, (1, 4, 4, 3), (1, 2, 2, 3), 3),
    ("fully_connected", FullyConnectedAttrs, (1, 8), (4, 8), 0),
)


def cases() -> list[Case]:
    rng, out = np.random.default_rng(31), []
    for activation in ("relu6", "relu_n1_to_1"):
        for zero_point in (-100, -3, 4, 126):
            for scale in (4.0, 2.0, 12 / 7):
                q = Quantization.per_tensor(scale, zero_point)
                label = f"{activation}-z{zero_point}-s{scale:.3g}"
                for op, attrs, x_shape, w_shape, axis in WEIGHTED:
                    case = weighted_case(f"{op}-{label}", op, attrs(activation=activation), x_shape, w_shape, axis, axis, rng, RANDOM)
                    shape = case.graph.tensors["y"].shape
                    tensors = {**case.graph.tensors, "x": act(x_shape, 1.0, 0), "y": TensorType(shape, "int8", q)}
                    out.append(Case(case.name, replace(case.graph, tensors=tensors)))
                for op in ("add", "sub", "mul"):
                    x = act((1, 4, 4, 3), 0.1, 3)
                    out.append(op_case(f"{op}-{label}", op, BinaryAttrs(activation), [x, x], q))
    return out
