"""The one place that touches the published flatbuffer bindings (PyPI ``tflite`` and ``flatbuffers``).

A model is written bottom up from plain values; equal values give equal bytes.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from qwtv2_edge.errors import MissingToolError
from qwtv2_edge.ir.types import Quantization

IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
#: alignment of constant data, from the schema's force_align
DATA_ALIGNMENT = 16
#: builtin codes below this also fit the old one-byte field
PLACEHOLDER_CODE = 127

#: IR dtype -> TensorType in the schema
TENSOR_TYPES = {"float32": "FLOAT32", "int8": "INT8", "int4": "INT4", "int16": "INT16", "int32": "INT32", "int64": "INT64", "bool": "BOOL"}


@dataclass(frozen=True)
class TensorRow:
    """One tensor of the flat model. ``data``: its constant bytes, or None."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    quantization: Quantization | None
    data: bytes | None = None


@dataclass(frozen=True)
class OperatorRow:
    """One operator. ``options``: name of the options table ("" for none) and its scalar fields, as the bindings call them."""

    code: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: str = ""
    fields: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class FlatModel:
    """Everything a ``.tflite`` file holds, as lists."""

    name: str
    description: str
    tensors: tuple[TensorRow, ...]
    operators: tuple[OperatorRow, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    metadata: tuple[tuple[str, bytes], ...]


@cache
def bindings(table: str) -> Any:
    """The bindings module of one schema table or enum."""
    try:
        return importlib.import_module(f"tflite.{table}")
    except ModuleNotFoundError as exc:
        raise MissingToolError(
            f"the TFLite schema bindings are not installed ({exc})", fix="pip install 'tflite>=2.18' flatbuffers"
        ) from exc


def enum(table: str, name: str) -> int:
    """One value of a schema enum."""
    return int(getattr(getattr(bindings(table), table), name))


@cache
def enum_names(table: str) -> Mapping[int, str]:
    """value -> name of a schema enum."""
    return {v: k for k, v in vars(getattr(bindings(table), table)).items() if isinstance(v, int)}


def pack_int4(codes: np.ndarray) -> bytes:
    """Two codes per byte, the first in the low nibble; int8 array of values in [-8, 7].

    Source: LiteRT tflite/kernels/internal/portable_tensor_utils.h :: UnpackDenseInt4IntoInt8
    """
    flat = np.ascontiguousarray(codes, np.int8).reshape(-1).view(np.uint8) & 0x0F
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8).tobytes()


def unpack_int4(data: bytes, size: int) -> np.ndarray:
    """The inverse of :func:`pack_int4`: int8, 1-D."""
    raw = np.frombuffer(data, np.uint8)
    both = np.stack([raw & 0x0F, raw >> 4], 1).reshape(-1)[:size].astype(np.int8)
    return np.where(both > 7, both - 16, both).astype(np.int8)


def serialize(model: FlatModel) -> bytes:
    """The file's bytes."""
    try:
        import flatbuffers
    except ModuleNotFoundError as exc:
        raise MissingToolError("flatbuffers is not installed", fix="pip install flatbuffers") from exc

    blobs, blob_of = _share_buffers(model)
    builder = flatbuffers.Builder(sum(len(b) + 64 for b in blobs) + 512 * (len(model.tensors) + len(model.operators)) + 4096)
    codes = list(dict.fromkeys((op.code, op.version) for op in model.operators))

    # constant data first, so that it lies together at the end of the file
    buffers = [_buffer(builder, blob) for blob in blobs]
    tensors = [_tensor(builder, row, blob_of.get(i, 0)) for i, row in enumerate(model.tensors)]
    operators = [_operator(builder, row, codes) for row in model.operators]
    subgraph = _table(
        builder,
        "SubGraph",
        Tensors=_offsets(builder, tensors),
        Inputs=_ints(builder, model.inputs),
        Outputs=_ints(builder, model.outputs),
        Operators=_offsets(builder, operators),
        Name=builder.CreateString(model.name),
    )
    signature = _table(
        builder,
        "SignatureDef",
        Inputs=_tensor_maps(builder, model, model.inputs),
        Outputs=_tensor_maps(builder, model, model.outputs),
        SignatureKey=builder.CreateString("serving_default"),
        SubgraphIndex=0,
    )
    metadata = [_table(builder, "Metadata", Name=builder.CreateString(name), Buffer=blob_of[name]) for name, _ in model.metadata]
    root = _table(
        builder,
        "Model",
        Version=SCHEMA_VERSION,
        OperatorCodes=_offsets(builder, [_operator_code(builder, *code) for code in codes]),
        Subgraphs=_offsets(builder, [subgraph]),
        Description=builder.CreateString(model.description),
        Buffers=_offsets(builder, buffers),
        Metadata=_offsets(builder, metadata),
        SignatureDefs=_offsets(builder, [signature]),
    )
    builder.Finish(root, IDENTIFIER)
    return bytes(builder.Output())


def _share_buffers(model: FlatModel) -> tuple[list[bytes], dict[Any, int]]:
    """(buffers, tensor index or metadata name -> buffer). Buffer 0 is empty by convention; equal data is stored once."""
    blobs, known, where = [b""], {b"": 0}, {}
    for key, data in (*enumerate(t.data for t in model.tensors), *model.metadata):
        if data is None:
            continue
        if data not in known:
            known[data] = len(blobs)
            blobs.append(data)
        where[key] = known[data]
    return blobs, where


def _buffer(builder: Any, data: bytes) -> int:
    if not data:
        return _table(builder, "Buffer")
    builder.StartVector(1, len(data), DATA_ALIGNMENT)
    builder.head -= len(data)
    builder.Bytes[builder.head : builder.head + len(data)] = data
    return _table(builder, "Buffer", Data=builder.EndVector())


def _table(builder: Any, name: str, **fields: Any) -> int:
    module = bindings(name)
    getattr(module, f"{name}Start")(builder)
    for field, value in fields.items():
        getattr(module, f"{name}Add{field}")(builder, value)
    return int(getattr(module, f"{name}End")(builder))


def _offsets(builder: Any, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _ints(builder: Any, values: Sequence[int]) -> int:
    return int(builder.CreateNumpyVector(np.asarray(values, np.int32)))


def _tensor(builder: Any, row: TensorRow, buffer: int) -> int:
    fields: dict[str, Any] = {
        "Shape": _ints(builder, row.shape),
        "Type": enum("TensorType", TENSOR_TYPES[row.dtype]),
        "Buffer": buffer,
        "Name": builder.CreateString(row.name),
        "HasRank": True,
    }
    q = row.quantization
    if q is not None:
        fields["Quantization"] = _table(
            builder,
            "QuantizationParameters",
            Scale=builder.CreateNumpyVector(np.asarray(q.scale, np.float32)),
            ZeroPoint=builder.CreateNumpyVector(np.asarray(q.zero_point, np.int64)),
            QuantizedDimension=q.axis or 0,
        )
    return _table(builder, "Tensor", **fields)


def _operator(builder: Any, row: OperatorRow, codes: list[tuple[str, int]]) -> int:
    fields: dict[str, Any] = {
        "OpcodeIndex": codes.index((row.code, row.version)),
        "Inputs": _ints(builder, row.inputs),
        "Outputs": _ints(builder, row.outputs),
    }
    if row.options:
        values = {k: _ints(builder, v) if isinstance(v, tuple) else v for k, v in row.fields}
        fields["BuiltinOptions"] = _table(builder, row.options, **values)
        fields["BuiltinOptionsType"] = enum("BuiltinOptions", row.options)
    return _table(builder, "Operator", **fields)


def _operator_code(builder: Any, code: str, version: int) -> int:
    value = enum("BuiltinOperator", code)
    return _table(builder, "OperatorCode", DeprecatedBuiltinCode=min(value, PLACEHOLDER_CODE), Version=version, BuiltinCode=value)


def _tensor_maps(builder: Any, model: FlatModel, indices: Sequence[int]) -> int:
    rows = [_table(builder, "TensorMap", Name=builder.CreateString(model.tensors[i].name), TensorIndex=i) for i in indices]
    return _offsets(builder, rows)
