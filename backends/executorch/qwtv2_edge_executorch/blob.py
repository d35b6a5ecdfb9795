"""One XNNPACK delegate blob in the making: values, nodes, and what XNNPACK must not see.

Inside a blob an int16 tensor is a float32 value that holds its codes; at its ends it is a float32 tensor of codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.ir.types import Quantization, TensorType
from qwtv2_edge.ops.spec import ACTIVATIONS
from qwtv2_edge_executorch.format import encode_xnnpack

FLOAT32, QINT8, QCINT8, QCINT32 = 1, 3, 6, 7
EXTERNAL_INPUT, EXTERNAL_OUTPUT = 1, 2
INTERNAL = 0xFFFFFFFF
FLAG_TRANSPOSE_B, FLAG_LEGACY_COORDINATES, FLAG_ALIGN_CORNERS, FLAG_KEEP_DIMS = 0x1, 0x4, 0x8, 0x40
MAX_RANK = 6
#: XNNPACK kernels may read this far past the end of a constant
CONSTANT_TAIL = 128
#: adding and subtracting it rounds float32 values below 2**22 to integers, ties to even
ROUNDING = 12582912.0

#: XNNPACK makes one table of up to 10 element-wise nodes in a row that start at an 8-bit value, and frees it twice where
#: the row goes on (src/subgraph.c :: xnn_subgraph_fuse_unary_quantized_into_lut): rows are cut before they get that long
LONGEST_ROW = 9

#: external value 0 is left undefined: where XNNPACK merges ops into a table, it takes value 0 for part of the chain
#: (src/subgraph.c :: copy_node_to_static_subgraph copies as many outputs as there are inputs), and an op of two
#: tensors, one of them value 0, would become a function of one; the table then is freed twice
FIRST_EXTERNAL = 1

#: nodes that XNNPACK takes for functions of one element
ELEMENTWISE = frozenset(
    (
        *("XNNAdd", "XNNSubtract", "XNNMultiply", "XNNDiv", "XNNMaximum", "XNNMinimum", "XNNConvert", "XNNClamp", "XNNSigmoid"),
        *("XNNTanh", "XNNHardswish", "XNNELU", "XNNLeakyReLU", "XNNGelu", "XNNExp"),
    )
)
PAIRS = {"add": "XNNAdd", "sub": "XNNSubtract", "mul": "XNNMultiply", "div": "XNNDiv", "max": "XNNMaximum", "min": "XNNMinimum"}

Shape = tuple[int, ...]


@dataclass
class Blob:
    """One XNNPACK graph in the making. ``args`` of the delegate call are ``inputs`` then ``outputs``, by tensor name."""

    graph: Graph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ids: dict[str, int] = field(default_factory=dict)
    values: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[dict[str, Any]] = field(default_factory=list)
    constants: list[bytes] = field(default_factory=list)
    known: dict[bytes, int] = field(default_factory=dict)
    shared: dict[tuple[int, Shape], int] = field(default_factory=dict)
    #: value -> (8-bit value that its row of element-wise nodes starts at, nodes in the row)
    rows: dict[int, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ends = [(t, EXTERNAL_INPUT) for t in self.inputs] + [(t, EXTERNAL_OUTPUT) for t in self.outputs]
        for i, (name, flag) in enumerate(ends, FIRST_EXTERNAL):
            self.ids[name] = self._activation(self.graph.tensors[name], external=i, flags=flag)

    # ---- values

    def value(self, tensor: str) -> int:
        """The id of a graph tensor, defined on first use."""
        if tensor not in self.ids:
            type = self.graph.tensors[tensor]
            data = self.graph.constants.get(tensor)
            if data is not None and type.dtype == "int16":
                data = data.astype(np.float32)
            self.ids[tensor] = self._activation(type, buffer=0 if data is None else self.buffer(data.tobytes()))
        return self.ids[tensor]

    def int8_constant(self, array: np.ndarray, quantization: Quantization | None) -> int:
        """int8 codes under a quantization of the caller's choice."""
        return self._activation(TensorType(array.shape, "int8", quantization), buffer=self.buffer(array.tobytes()))

    def temporary(self, like: TensorType, shape: Shape) -> int:
        """An internal value with the dtype and quantization of ``like``."""
        return self._activation(TensorType(shape, like.dtype, like.quantization))

    def _activation(self, type: TensorType, *, external: int = INTERNAL, flags: int = 0, buffer: int = 0) -> int:
        if type.dtype in ("float32", "int16"):
            return self._value(type.shape, FLOAT32, None, external, flags, buffer)
        params = ("PerTensorQuant", {"scale": type.scale, "zero_point": type.zero_point})
        return self._value(type.shape, QINT8, params, external, flags, buffer)

    def channelwise(self, data: np.ndarray, datatype: int, scale: np.ndarray, axis: int) -> int:
        """A constant with one float32 scale per slice of ``axis``."""
        params = {
            "scale": [],
            "channel_dim": axis,
            "scale_buffer_idx": self.buffer(np.asarray(scale, np.float32).tobytes()),
            "num_scales": len(scale),
        }
        return self._value(data.shape, datatype, ("PerChannelQuant", params), INTERNAL, 0, self.buffer(data.tobytes()))

    def buffer(self, data: bytes) -> int:
        if data not in self.known:
            self.constants.append(data)
            self.known[data] = len(self.constants)
        return self.known[data]

    def _value(self, shape: Sequence[int], datatype: int, params: Any, external: int, flags: int, buffer: int) -> int:
        id = len(self.values)
        tensor = {
            "datatype": datatype,
            "num_dims": len(shape),
            "dims": list(shape),
            "constant_buffer_idx": buffer,
            "external_id": external,
            "flags": flags,
            "id_out": id,
        }
        union: Any = ("XNNTensorValue", tensor)
        if params is not None:
            union = ("XNNQuantizedTensorValue", {"tensor_value": tensor, "quant_params": params})
        self.values.append({"xvalue_union": union})
        return id

    # ---- nodes

    def node(self, kind: str, *, bounds: tuple[float, float] | None = None, **fields: Any) -> None:
        """Append a node; ``bounds``: real clamp of its output."""
        self._extend_row(kind, fields)
        item: dict[str, Any] = {"xnode_union": (kind, {"flags": 0, **fields}), "debug_handle": len(self.nodes)}
        if bounds is not None and bounds != ACTIVATIONS["none"]:
            item["output_min_max"] = {"output_min": bounds[0], "output_max": bounds[1]}
        self.nodes.append(item)

    def reshape(self, source: int, target: int, shape: Shape) -> None:
        self.node("XNNStaticReshape", num_dims=len(shape), new_shape=list(shape), input_id=source, output_id=target)

    def _extend_row(self, kind: str, fields: dict[str, Any]) -> None:
        """Note the row that a node continues; where it would get too long, put a node between that ends it."""
        if kind not in ELEMENTWISE:
            return
        ends = [end for end in ("input_id", "input1_id", "input2_id") if end in fields and not self._is_number(fields[end])]
        for end in ends:
            source = fields[end]
            if self.rows.get(source, (source, 0))[1] >= LONGEST_ROW:
                fields[end] = self.copy_by_transpose(source)
        starts = {self.rows.get(fields[end], (fields[end], 0)) for end in ends}
        first = {start for start, _ in starts}
        if len(first) == 1 and self._tensor(next(iter(first)))["datatype"] == QINT8:
            self.rows[fields["output_id"]] = (first.pop(), max(count for _, count in starts) + 1)

    def copy_by_transpose(self, source: int) -> int:
        """A transpose that moves nothing: XNNPACK keeps it, and looks no further."""
        union = self.values[source]["xvalue_union"][1]
        rank = self._tensor(source)["num_dims"]
        target = self._value(self.shape(source), self._tensor(source)["datatype"], union.get("quant_params"), INTERNAL, 0, 0)
        self.node("XNNStaticTranspose", num_dims=rank, perm=list(range(rank)), input_id=source, output_id=target)
        return target

    def _is_number(self, value: int) -> bool:
        return bool(self._tensor(value)["constant_buffer_idx"]) and prod(self.shape(value)) == 1

    def _tensor(self, value: int) -> dict[str, Any]:
        union = self.values[value]["xvalue_union"][1]
        return union.get("tensor_value", union)

    def shape(self, value: int) -> Shape:
        return tuple(self._tensor(value)["dims"])

    # ---- steps, see ``float32.Steps``; all but the conversions on float32 values

    def array(self, data: np.ndarray) -> int:
        """A float32 constant; equal ones are one value."""
        key = (self.buffer(np.ascontiguousarray(data, np.float32).tobytes()), data.shape)
        if key not in self.shared:
            self.shared[key] = self._value(data.shape, FLOAT32, None, INTERNAL, 0, key[0])
        return self.shared[key]

    def real(self, shape: Shape) -> int:
        """An internal float32 value."""
        return self._value(shape, FLOAT32, None, INTERNAL, 0, 0)

    def pair(self, kind: str, x: int, y: int, target: int | None = None) -> int:
        out = self.real(np.broadcast_shapes(self.shape(x), self.shape(y))) if target is None else target
        self.node(PAIRS[kind], input1_id=x, input2_id=y, output_id=out)
        return out

    def single(self, kind: str, x: int, target: int | None = None, *, bounds: tuple[float, float] | None = None) -> int:
        out = self.real(self.shape(x)) if target is None else target
        self.node(kind, bounds=bounds, input_id=x, output_id=out)
        return out

    def round(self, x: int, step: float = 1.0, target: int | None = None) -> int:
        shift = self.array(np.asarray([ROUNDING * step]))
        return self.pair("sub", self.pair("add", x, shift), shift, target)

    def row_sum(self, x: int, ends: np.ndarray | None = None) -> int:
        *lead, count = self.shape(x)
        ends = np.asarray([0, count]) if ends is None else ends
        position = np.arange(count)
        weights = (ends[:-1, None] <= position) & (position < ends[1:, None])
        out = self.real((*lead, len(weights)))
        self.node("XNNFullyConnected", input1_id=x, filter_id=self.array(weights), bias_id=INTERNAL, output_id=out)
        return out

    def codes(self, tensor: str) -> int:
        return self.value(tensor)

    def reals(self, tensor: str) -> int:
        return self.single("XNNConvert", self.value(tensor))

    def store_codes(self, tensor: str, x: int, bounds: tuple[int, int]) -> int:
        return self.round(self.single("XNNClamp", x, bounds=bounds), target=self.value(tensor))

    def store_reals(self, tensor: str, x: int) -> int:
        return self.single("XNNConvert", x, self.value(tensor))

    def encode(self) -> bytes:
        graph = {
            "version": "0",
            "xnodes": self.nodes,
            "xvalues": self.values,
            "num_externs": FIRST_EXTERNAL + len(self.inputs) + len(self.outputs),
            "input_ids": [self.ids[t] for t in self.inputs],
            "output_ids": [self.ids[t] for t in self.outputs],
        }
        return encode_xnnpack(graph, [*self.constants, bytes(CONSTANT_TAIL)])
