"""Small graphs for the tests of files, checks and proofs, and an export folder around one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from qwtv2_edge.backends import Artifact
from qwtv2_edge.export import npz_bytes
from qwtv2_edge.ir import Graph, GraphBuilder, Location, Quantization, TensorType
from qwtv2_edge.opening import Opened
from qwtv2_edge.ops.activation import ClampAttrs
from qwtv2_edge.ops.conv import Conv2DAttrs, DepthwiseAttrs
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.layout import ReshapeAttrs, TransposeAttrs
from qwtv2_edge.ops.linear import FullyConnectedAttrs
from qwtv2_edge.ops.pool import PoolAttrs, ReduceAttrs, SoftmaxAttrs
from qwtv2_edge.ops.spec import NoAttrs

SIZE = 6


def _codes(shape: tuple[int, ...], scale: float, zero_point: int = 0) -> TensorType:
    return TensorType(shape, "int8", Quantization.per_tensor(scale, zero_point))


def float_graph(seed: int = 0) -> Graph:
    """conv, relu6, clamp with an infinite bound, mean, fully connected; one odd name."""
    rng = np.random.default_rng(seed)
    b = GraphBuilder("float", {"note": "a \u00d7 b"})
    x = b.input("x", TensorType((1, SIZE, SIZE, 2)))
    w = b.constant("stem/weight", rng.standard_normal((4, 3, 3, 2)).astype(np.float32))
    bias = b.constant("stem/bias", rng.standard_normal(4).astype(np.float32))
    where = Location("stem", "net.py", 7, "x = self.stem(x)")
    attrs = Conv2DAttrs(stride=(2, 1), padding=((0, 1), (1, 1)), activation="relu6")
    (y,) = b.add("conv2d", (x, w, bias), attrs, name="stem", location=where)
    (y,) = b.add("clamp", (y,), ClampAttrs(0.1, np.inf), name="clamp")
    (y,) = b.add("mean", (y,), ReduceAttrs((1, 2)), name="mean")
    k = b.constant("head/weight", rng.standard_normal((3, 4)).astype(np.float32))
    c = b.constant("head/bias", np.zeros(3, np.float32))
    (y,) = b.add("fully_connected", (y, k, c), FullyConnectedAttrs(), name="head")
    b.outputs = [y]
    return b.freeze()


def integer_graph(seed: int = 0) -> Graph:
    """quantize, conv, depthwise, a residual add, max pool, mean, fully connected, softmax, dequantize."""
    rng = np.random.default_rng(seed)
    b = GraphBuilder("integer", {"recipe": "default"})

    def weights(name: str, shape: tuple[int, ...], axis: int, input_scale: float) -> tuple[str, str]:
        scale = rng.uniform(0.002, 0.02, shape[axis]).astype(np.float32)
        q = Quantization.per_channel(scale, axis)
        w = b.constant(f"{name}/weight", rng.integers(-127, 128, shape).astype(np.int8), TensorType(shape, "int8", q))
        bias_type = TensorType((shape[axis],), "int32", Quantization.per_channel(scale * np.float32(input_scale), 0))
        return w, b.constant(f"{name}/bias", rng.integers(-500, 500, shape[axis]).astype(np.int32), bias_type)

    def node(op: str, inputs: tuple[str, ...], attrs: object, name: str, out: TensorType, line: int) -> str:
        return b.add(op, inputs, attrs, name=name, location=Location(name, "net.py", line, f"x = self.{name}(x)"), out_types=(out,))[0]

    image = (1, SIZE, SIZE, 4)
    x = b.input("x", TensorType((1, SIZE, SIZE, 2)))
    x = node("quantize", (x,), NoAttrs(), "quantize", _codes((1, SIZE, SIZE, 2), 0.031, -3), 1)
    padding = ((1, 1), (1, 1))
    y = node("conv2d", (x, *weights("stem", (4, 3, 3, 2), 0, 0.031)), Conv2DAttrs(padding=padding), "stem", _codes(image, 0.05, 5), 2)
    z = node(
        "depthwise_conv2d",
        (y, *weights("dw", (1, 3, 3, 4), 3, 0.05)),
        DepthwiseAttrs(padding=padding, activation="relu"),
        "dw",
        _codes(image, 0.04, -128),
        3,
    )
    y = node("add", (y, z), BinaryAttrs(), "add", _codes(image, 0.07, -20), 4)
    y = node("max_pool2d", (y,), PoolAttrs((2, 2), (2, 2)), "pool", _codes((1, 3, 3, 4), 0.07, -20), 5)
    y = node("mean", (y,), ReduceAttrs((1, 2)), "mean", _codes((1, 4), 0.06, -10), 6)
    y = node("fully_connected", (y, *weights("head", (3, 4), 0, 0.06)), FullyConnectedAttrs(), "head", _codes((1, 3), 0.03, 1), 7)
    y = node("softmax", (y,), SoftmaxAttrs(), "softmax", _codes((1, 3), 1 / 256, -128), 8)
    y = node("dequantize", (y,), NoAttrs(), "dequantize", TensorType((1, 3)), 9)
    b.outputs = [y]
    return b.freeze()


def two_inputs() -> Graph:
    """Float graph with inputs a (1, 4) and b (1, 2, 2), added after a reshape."""
    b = GraphBuilder("two")
    x = b.input("a", TensorType((1, 4)))
    y = b.input("b", TensorType((1, 2, 2)))
    (y,) = b.add("reshape", (y,), ReshapeAttrs((1, 4)), name="flat")
    b.outputs = list(b.add("add", (x, y), BinaryAttrs(), name="sum"))
    return b.freeze()


def image_graph(
    shape: tuple[int, ...],
    dtype: str = "float32",
    scale: float = 0.5,
    zero_point: int = -128,
    perm: tuple[int, ...] = (),
) -> Graph:
    """An input of that shape, quantized (behind a transpose if there is ``perm``), then given back."""
    b = GraphBuilder("image")
    quantization = Quantization.per_tensor(scale, zero_point)
    y = b.input("x", TensorType(shape, dtype, quantization if dtype == "int8" else None))
    if perm:
        shape = tuple(shape[p] for p in perm)
        (y,) = b.add("transpose", (y,), TransposeAttrs(perm), name="transpose", out_types=(TensorType(shape, dtype),))
    if dtype == "float32":
        (y,) = b.add("quantize", (y,), NoAttrs(), name="quantize", out_types=(TensorType(shape, "int8", quantization),))
    (y,) = b.add("dequantize", (y,), NoAttrs(), name="dequantize", out_types=(TensorType(shape),))
    b.outputs = [y]
    return b.freeze()


def export_folder(folder: Path, graph: Graph, targets: Iterable[str], samples: int = 3) -> Opened:
    """What ``open_model`` finds in an export of ``graph``; the artifacts hold their target's name and nothing else."""
    rng = np.random.default_rng(0)
    arrays = {t: rng.normal(size=(samples, *graph.tensors[t].shape[1:])).astype(np.float32) for t in graph.inputs}
    folder.mkdir()
    (folder / "golden.npz").write_bytes(npz_bytes(arrays))
    return Opened(folder, graph, {t: Artifact(t, t.encode()) for t in targets}, folder, {"model": {"name": "Net"}})
