"""A ``.tflite`` file as plain rows, with every access checked: hostile bytes give GraphError, nothing else.

Offsets in a flatbuffer may point anywhere. The bindings raise when one leaves the file; on top of that, everything
read is charged against the file's size, so that overlapping or looping structures can't cost more than the file
could honestly hold.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any, TypeVar

import numpy as np

from qwtv2_edge.errors import GraphError
from qwtv2_edge.ir.types import DTYPES
from qwtv2_edge_tflite.schema import IDENTIFIER, TENSOR_TYPES, bindings, enum_names, unpack_int4

#: what the bindings raise on offsets and counts that leave the file
CORRUPT = (struct.error, IndexError, ValueError, OverflowError, TypeError, AttributeError, MemoryError, SystemError)

MAX_RANK = 8
MAX_ELEMENTS = 2**31 - 1

T = TypeVar("T")


@dataclass(frozen=True)
class Tensor:
    """One tensor. ``scale`` and ``zero_point`` may be empty; ``data`` is None for activations."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int
    data: np.ndarray | None


@dataclass(frozen=True)
class Operator:
    """One operator; inputs of -1 are absent ones. ``options``: the bindings' table, or None."""

    code: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any


@dataclass(frozen=True)
class Model:
    """The one subgraph of a file. ``metadata``: the entries that are text."""

    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    metadata: tuple[tuple[str, str], ...]


def corrupt(what: str) -> GraphError:
    return GraphError(f"corrupt .tflite file: {what}", fix="copy or export the file again")


def guarded(read: Callable[[], T]) -> T:
    """``read()``, with whatever the bindings raise on bad offsets turned into GraphError."""
    try:
        return read()
    except CORRUPT as exc:
        raise corrupt(f"an offset or a length leaves the file ({exc})") from exc


def parse(data: bytes) -> Model:
    """Raises: GraphError on anything that is not a well-formed model of one subgraph."""
    if len(data) < 16 or data[4:8] != IDENTIFIER:
        raise GraphError("this is not a .tflite file (no TFL3 identifier)", fix="give a TensorFlow Lite flatbuffer")
    return guarded(lambda: _File(data).model())


class _File:
    """One pass over the bytes; ``budget`` counts down what may still be read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.budget = 2 * len(data) + 4096

    def spend(self, size: int) -> None:
        self.budget -= size
        if size < 0 or self.budget < 0:
            raise corrupt("its parts overlap or are longer than the file")

    def each(self, table: Any, field: str) -> Iterator[Any]:
        """The tables of a vector."""
        count = getattr(table, f"{field}Length")()
        self.spend(8 * count)
        for i in range(count):
            entry = getattr(table, field)(i)
            if entry is None:
                raise corrupt(f"empty entry in {field}")
            yield entry

    def numbers(self, table: Any, field: str) -> np.ndarray:
        """The numbers of a vector; empty when absent."""
        if getattr(table, f"{field}IsNone")():
            return np.empty(0, np.int32)
        self.spend(getattr(table, f"{field}Length")())
        values = getattr(table, f"{field}AsNumpy")()
        self.spend(values.nbytes - len(values))
        return values

    def text(self, value: bytes | None) -> str:
        self.spend(len(value or b""))
        return (value or b"").decode("utf-8", "replace")

    def model(self) -> Model:
        root = bindings("Model").Model.GetRootAs(self.data, 0)
        subgraphs = list(self.each(root, "Subgraphs"))
        if len(subgraphs) != 1:
            raise GraphError(f"{len(subgraphs)} subgraphs; only files with one are read", fix="export a network without control flow")
        buffers = [self.buffer(b) for b in self.each(root, "Buffers")]
        codes = [self.code(c) for c in self.each(root, "OperatorCodes")]
        graph = subgraphs[0]
        tensors = tuple(self.tensor(t, buffers) for t in self.each(graph, "Tensors"))
        return Model(
            name=self.text(graph.Name()),
            tensors=tensors,
            operators=tuple(self.operator(o, codes, len(tensors)) for o in self.each(graph, "Operators")),
            inputs=self.indices(graph, "Inputs", len(tensors)),
            outputs=self.indices(graph, "Outputs", len(tensors)),
            metadata=tuple(self.metadata(root, buffers)),
        )

    def buffer(self, table: Any) -> bytes | memoryview:
        if table.Offset() > 1 or table.Size() > 1:
            raise GraphError("its constants lie outside the flatbuffer", fix="give a file below 2 GB with its constants inside")
        return self.numbers(table, "Data").data if table.DataLength() else b""

    def code(self, table: Any) -> str:
        value = max(table.BuiltinCode(), table.DeprecatedBuiltinCode())
        name = enum_names("BuiltinOperator").get(value, f"operator {value}")
        return f"CUSTOM ({self.text(table.CustomCode())})" if name == "CUSTOM" else name

    def indices(self, table: Any, field: str, limit: int, lowest: int = 0) -> tuple[int, ...]:
        values = tuple(int(v) for v in self.numbers(table, field))
        if any(not lowest <= v < limit for v in values):
            raise corrupt(f"a tensor index of {field} is outside 0..{limit - 1}")
        return values

    def operator(self, table: Any, codes: list[str], tensors: int) -> Operator:
        index = table.OpcodeIndex()
        if not index < len(codes):
            raise corrupt(f"operator code {index} of {len(codes)}")
        name = enum_names("BuiltinOptions").get(table.BuiltinOptionsType(), "NONE")
        options, raw = None, table.BuiltinOptions()
        if name != "NONE" and raw is not None:
            options = getattr(bindings(name), name)()
            options.Init(raw.Bytes, raw.Pos)
        return Operator(codes[index], self.indices(table, "Inputs", tensors, -1), self.indices(table, "Outputs", tensors), options)

    def tensor(self, table: Any, buffers: list[Any]) -> Tensor:
        shape = tuple(int(v) for v in self.numbers(table, "Shape"))
        name = self.text(table.Name())
        if len(shape) > MAX_RANK or any(d < 1 for d in shape) or prod(shape) > MAX_ELEMENTS:
            raise GraphError(f"tensor '{name}' has shape {shape}; only static, non-empty shapes are read", fix="export with fixed shapes")
        schema_type = enum_names("TensorType").get(table.Type(), f"type {table.Type()}")
        dtype = {v: k for k, v in TENSOR_TYPES.items()}.get(schema_type, schema_type)
        if not table.Buffer() < len(buffers):
            raise corrupt(f"tensor '{name}' uses buffer {table.Buffer()} of {len(buffers)}")
        raw = buffers[table.Buffer()]
        data = self.array(name, raw, shape, dtype) if len(raw) else None
        scale: tuple[float, ...] = ()
        zero_point: tuple[int, ...] = ()
        axis = 0
        q = table.Quantization()
        if q is not None:
            scale = tuple(float(v) for v in self.numbers(q, "Scale").astype(np.float32))
            zero_point = tuple(int(v) for v in self.numbers(q, "ZeroPoint"))
            axis = int(q.QuantizedDimension())
            if any(not (isfinite(s) and s > 0) for s in scale) or (zero_point and len(zero_point) != len(scale)):
                raise GraphError(f"tensor '{name}' has scales {scale[:4]} and {len(zero_point)} zero points", fix="export the file again")
            zero_point = zero_point or (0,) * len(scale)
        if table.Sparsity() is not None:
            raise GraphError(f"tensor '{name}' is sparse", fix="export dense weights")
        return Tensor(name, shape, dtype, scale, zero_point, axis, data)

    def array(self, name: str, raw: Any, shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
        """A read-only view of the file where the dtype is one of ours, else None."""
        if dtype not in TENSOR_TYPES:
            return None
        size = prod(shape)
        kind = DTYPES[dtype]
        needed = (size + 1) // 2 if dtype == "int4" else size * kind.itemsize
        if len(raw) != needed:
            raise corrupt(f"constant '{name}' of {dtype}{list(shape)} has {len(raw)} bytes, needs {needed}")
        if dtype == "int4":
            self.spend(size)
            return unpack_int4(bytes(raw), size).reshape(shape)
        return np.frombuffer(raw, kind).reshape(shape)

    def metadata(self, root: Any, buffers: list[Any]) -> Iterator[tuple[str, str]]:
        for entry in self.each(root, "Metadata"):
            if not entry.Buffer() < len(buffers):
                raise corrupt(f"metadata in buffer {entry.Buffer()} of {len(buffers)}")
            raw = bytes(buffers[entry.Buffer()])
            if len(raw) <= 65536:
                self.spend(len(raw))
                try:
                    yield self.text(entry.Name()), raw.rstrip(b"\0").decode("utf-8")
                except UnicodeDecodeError:
                    continue  # binary metadata of another tool says nothing to us
