"""The two published flatbuffer schemas that an ExecuTorch program consists of, and one writer for both.

Tables are data: (field name, kind) in schema order, so that a field's position is its vtable slot. A kind is a
scalar ("int32"), a table name, "string", "union <name>" (which takes two slots), or any of these in brackets
for a vector. A table value is a plain dict; a union value is a pair (table name, dict).

Source: executorch v1.4.1, schema/program.fbs (file identifier ET12) and
backends/xnnpack/serialization/schema.fbs (file identifier XN01). Both promise that fields keep their slots.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qwtv2_edge.errors import MissingToolError

Fields = tuple[tuple[str, str], ...]

#: union name -> its members in schema order (type 0 is "none")
UNIONS: dict[str, tuple[str, ...]] = {
    "KernelTypes": (
        *("Null", "Int", "Bool", "Double", "Tensor", "String"),
        *("IntList", "DoubleList", "BoolList", "TensorList", "OptionalTensorList"),
    ),
    "InstructionArguments": ("KernelCall", "DelegateCall", "MoveCall", "JumpFalseCall", "FreeCall"),
    "XNNQuantParams": ("PerChannelQuant", "PerTensorQuant", "PerTokenDynamicQuant", "PerChannelGroupQuant"),
    "XValueUnion": ("XNNTensorValue", "XNNQuantizedTensorValue"),
    "XNodeUnion": (
        *("XNNAdd", "XNNFullyConnected", "XNNSoftmax", "XNNSigmoid", "XNNStaticTranspose", "XNNClamp", "XNNConv2d", "XNNDiv"),
        *("XNNStaticResizeBilinear2D", "XNNStaticConstantPad", "XNNAvgPooling2d", "XNNMinimum", "XNNDepthwiseConv2d"),
        *("XNNMaxPooling2d", "XNNMultiply", "XNNSubtract", "XNNFloor", "XNNConvert", "XNNGlobalAvgPooling2d", "XNNStaticReshape"),
        *("XNNArgMaxPooling2d", "XNNSquareRoot", "XNNCeiling", "XNNHardswish", "XNNLeakyReLU", "XNNMaximum", "XNNNegate"),
        *("XNNSquare", "XNNELU", "XNNAbs", "XNNPReLU", "XNNConcatenate2", "XNNConcatenate3", "XNNConcatenate4", "XNNStaticSlice"),
        *("XNNScaledDotProductAttention", "XNNBatchMatrixMultiply", "XNNConcatenate5", "XNNConvTranspose2d"),
        *("XNNReciprocalSquareRoot", "XNNLog", "XNNGelu", "XNNTanh", "XNNExp", "XNNSin", "XNNCopy", "XNNCos"),
    ),
}

_ONE_TO_ONE: Fields = (("input_id", "uint32"), ("output_id", "uint32"), ("flags", "uint32"))
_TWO_TO_ONE: Fields = (("input1_id", "uint32"), ("input2_id", "uint32"), ("output_id", "uint32"), ("flags", "uint32"))
_CONCATENATE: Fields = (
    ("axis", "uint32"),
    *((f"input{i}_id", "uint32") for i in (1, 2, 3, 4)),
    *(("output_id", "uint32"), ("flags", "uint32"), ("input5_id", "uint32")),
)
_CONVOLUTION: Fields = tuple(
    (name, "uint32")
    for name in (
        *("padding_top", "padding_right", "padding_bottom", "padding_left", "kernel_height", "kernel_width"),
        *("subsampling_height", "subsampling_width", "dilation_height", "dilation_width"),
        *("group_input_channels", "group_output_channels", "groups", "adjustment_height", "adjustment_width"),
        *("input1_id", "filter_id", "bias_id", "output_id", "flags"),
    )
)
_POOLING: Fields = tuple(
    (name, "uint32")
    for name in (
        *("padding_top", "padding_right", "padding_bottom", "padding_left", "pooling_height", "pooling_width"),
        *("stride_height", "stride_width", "dilation_height", "dilation_width", "input_id", "output_id", "flags"),
    )
)

TABLES: dict[str, Fields] = {
    # ---- program.fbs
    "ContainerMetadata": (("encoded_inp_str", "string"), ("encoded_out_str", "string")),
    "Null": (),
    "AllocationDetails": (("memory_id", "uint32"), ("memory_offset_low", "uint32"), ("memory_offset_high", "uint32")),
    "Tensor": (
        ("scalar_type", "int8"),
        ("storage_offset", "int32"),
        ("sizes", "[int32]"),
        ("dim_order", "[uint8]"),
        ("requires_grad", "bool"),
        ("data_buffer_idx", "uint32"),
        ("allocation_info", "AllocationDetails"),
        ("layout", "int8"),
        ("shape_dynamism", "int8"),
    ),
    "Int": (("int_val", "int64"),),
    "Bool": (("bool_val", "bool"),),
    "Double": (("double_val", "float64"),),
    "String": (("string_val", "string"),),
    "IntList": (("items", "[int64]"),),
    "DoubleList": (("items", "[float64]"),),
    "BoolList": (("items", "[bool]"),),
    "TensorList": (("items", "[int32]"),),
    "OptionalTensorList": (("items", "[int32]"),),
    "EValue": (("val", "union KernelTypes"),),
    "Operator": (("name", "string"), ("overload", "string")),
    "KernelCall": (("op_index", "int32"), ("args", "[int32]")),
    "DelegateCall": (("delegate_index", "int32"), ("args", "[int32]")),
    "Instruction": (("instr_args", "union InstructionArguments"),),
    "BackendDelegateDataReference": (("location", "int8"), ("index", "uint32")),
    "CompileSpec": (("key", "string"), ("value", "[uint8]")),
    "BackendDelegate": (("id", "string"), ("processed", "BackendDelegateDataReference"), ("compile_specs", "[CompileSpec]")),
    "Chain": (("inputs", "[int32]"), ("outputs", "[int32]"), ("instructions", "[Instruction]")),
    "ExecutionPlan": (
        ("name", "string"),
        ("container_meta_type", "ContainerMetadata"),
        ("values", "[EValue]"),
        ("inputs", "[int32]"),
        ("outputs", "[int32]"),
        ("chains", "[Chain]"),
        ("operators", "[Operator]"),
        ("delegates", "[BackendDelegate]"),
        ("non_const_buffer_sizes", "[int64]"),
    ),
    "Buffer": (("storage", "[uint8]"),),
    "BackendDelegateInlineData": (("data", "[uint8]"),),
    "DataSegment": (("offset", "uint64"), ("size", "uint64")),
    "SubsegmentOffsets": (("segment_index", "uint32"), ("offsets", "[uint64]")),
    "NamedData": (("key", "string"), ("segment_index", "uint32")),
    "Program": (
        ("version", "uint32"),
        ("execution_plan", "[ExecutionPlan]"),
        ("constant_buffer", "[Buffer]"),
        ("backend_delegate_data", "[BackendDelegateInlineData]"),
        ("segments", "[DataSegment]"),
        ("constant_segment", "SubsegmentOffsets"),
        ("mutable_data_segments", "[SubsegmentOffsets]"),
        ("named_data", "[NamedData]"),
    ),
    # ---- the XNNPACK delegate's schema.fbs
    "PerChannelQuant": (("scale", "[float32]"), ("channel_dim", "int32"), ("scale_buffer_idx", "uint32"), ("num_scales", "uint32")),
    "PerTensorQuant": (("scale", "float32"), ("zero_point", "int32")),
    "XNNTensorValue": (
        ("datatype", "int16"),
        ("num_dims", "uint32"),
        ("dims", "[uint32]"),
        ("constant_buffer_idx", "uint32"),
        ("external_id", "uint32"),
        ("flags", "uint32"),
        ("id_out", "uint32"),
    ),
    "XNNQuantizedTensorValue": (("tensor_value", "XNNTensorValue"), ("quant_params", "union XNNQuantParams")),
    "OutputMinMax": (("output_min", "float32"), ("output_max", "float32")),
    "XNode": (("xnode_union", "union XNodeUnion"), ("debug_handle", "uint32"), ("output_min_max", "OutputMinMax")),
    "XValue": (("xvalue_union", "union XValueUnion"),),
    "XNNStaticTranspose": (("num_dims", "uint32"), ("perm", "[uint32]"), *_ONE_TO_ONE),
    "XNNStaticResizeBilinear2D": (("new_height", "uint32"), ("new_width", "uint32"), *_ONE_TO_ONE),
    "XNNStaticConstantPad": (("pre_paddings", "[uint32]"), ("post_paddings", "[uint32]"), ("padding_value", "float32"), *_ONE_TO_ONE),
    "XNNELU": (("alpha", "float32"), *_ONE_TO_ONE),
    "XNNLeakyReLU": (("negative_slope", "float32"), *_ONE_TO_ONE),
    "XNNFullyConnected": tuple((n, "uint32") for n in ("input1_id", "filter_id", "bias_id", "output_id", "flags")),
    "XNNStaticReshape": (("num_dims", "uint32"), ("new_shape", "[uint32]"), *_ONE_TO_ONE),
    "XNNStaticSlice": (("num_dims", "uint32"), ("offsets", "[uint32]"), ("sizes", "[uint32]"), *_ONE_TO_ONE),
    **dict.fromkeys(
        ("XNNAdd", "XNNSubtract", "XNNMultiply", "XNNDiv", "XNNMaximum", "XNNMinimum", "XNNBatchMatrixMultiply"),
        _TWO_TO_ONE,
    ),
    **dict.fromkeys(
        ("XNNSigmoid", "XNNTanh", "XNNHardswish", "XNNGelu", "XNNExp", "XNNClamp", "XNNConvert", "XNNCopy", "XNNGlobalAvgPooling2d"),
        _ONE_TO_ONE,
    ),
    **dict.fromkeys(("XNNConcatenate2", "XNNConcatenate3", "XNNConcatenate4", "XNNConcatenate5"), _CONCATENATE),
    **dict.fromkeys(("XNNConv2d", "XNNDepthwiseConv2d", "XNNConvTranspose2d"), _CONVOLUTION),
    "XNNMaxPooling2d": _POOLING,
    "ConstantDataOffset": (("offset", "uint64"), ("size", "uint64"), ("named_key", "string")),
    "XNNGraph": (
        ("version", "string"),
        ("xnodes", "[XNode]"),
        ("xvalues", "[XValue]"),
        ("num_externs", "uint32"),
        ("input_ids", "[uint32]"),
        ("output_ids", "[uint32]"),
        ("constant_buffer", "deprecated"),
        ("mem_buffer_sizes", "deprecated"),
        ("constant_data", "[ConstantDataOffset]"),
    ),
}

SCALARS: dict[str, np.dtype] = {
    name: np.dtype(name) for name in ("int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", "float32", "float64", "bool")
}


def encode(root: str, value: Mapping[str, Any], identifier: bytes) -> bytes:
    """The finished flatbuffer of one ``root`` table. Raises MissingToolError without the flatbuffers package."""
    try:
        from flatbuffers import Builder
    except ImportError as exc:
        raise MissingToolError("the flatbuffers package is not installed", fix="pip install 'qwtv2-edge[executorch]'") from exc
    builder = Builder(1 << 16)
    builder.Finish(_table(builder, root, value), file_identifier=identifier)
    return bytes(builder.Output())


def _table(builder: Any, name: str, value: Mapping[str, Any]) -> int:
    slots: list[tuple[int, str, Any]] = []
    slot = 0
    for field, kind in TABLES[name]:
        item = value.get(field)
        if kind.startswith("union "):
            if item is not None:
                member, fields = item
                slots.append((slot, "uint8", UNIONS[kind[6:]].index(member) + 1))
                slots.append((slot + 1, "", _table(builder, member, fields)))
            slot += 2
            continue
        if item is not None:
            if kind in SCALARS:
                slots.append((slot, kind, item))
            else:
                slots.append((slot, "", _reference(builder, kind, item)))
        slot += 1
    builder.StartObject(slot)
    for index, kind, item in slots:
        if kind:
            getattr(builder, f"Prepend{kind.capitalize()}Slot")(index, item, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(index, item, 0)
    return int(builder.EndObject())


def _reference(builder: Any, kind: str, item: Any) -> int:
    if kind == "string":
        return int(builder.CreateString(item))
    if not kind.startswith("["):
        return _table(builder, kind, item)
    element = kind[1:-1]
    if element in SCALARS:
        return int(builder.CreateNumpyVector(np.asarray(item, SCALARS[element])))
    offsets = [_reference(builder, element, v) for v in item]
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def aligned(size: int, alignment: int) -> int:
    """``size`` rounded up to a multiple of ``alignment``."""
    return -(-size // alignment) * alignment


def pack(pieces: Sequence[bytes], alignment: int) -> tuple[bytes, list[int]]:
    """Join ``pieces``, each starting at a multiple of ``alignment``; also their offsets."""
    out = bytearray()
    offsets = []
    for piece in pieces:
        out += bytes(aligned(len(out), alignment) - len(out))
        offsets.append(len(out))
        out += piece
    return bytes(out), offsets


#: bytes of header between a program's magic and its flatbuffer: "eh00", its length, three 64-bit sizes, padding
_EXTENDED_HEADER = struct.Struct("<4sIQQQ")
_SEGMENT_ALIGNMENT = 128
_HEADER_ALIGNMENT = 32


def encode_program(program: Mapping[str, Any], segments: Sequence[bytes]) -> bytes:
    """A whole .pte file: extended header, program flatbuffer, then the segments.

    Args:
        program: a "Program" table without its "segments" field.
        segments: raw bytes that the program refers to by index.
    Source: executorch v1.4.1, exir/_serialize/_program.py :: serialize_pte_binary
    """
    data, offsets = pack(segments, _SEGMENT_ALIGNMENT)
    table = {**program, "segments": [{"offset": o, "size": len(s)} for o, s in zip(offsets, segments, strict=True)]}
    flat = encode("Program", table, b"ET12")
    header_size = aligned(_EXTENDED_HEADER.size, _HEADER_ALIGNMENT)
    program_size = header_size + len(flat)
    base = aligned(program_size, _SEGMENT_ALIGNMENT)
    header = _EXTENDED_HEADER.pack(b"eh00", _EXTENDED_HEADER.size, program_size, base, len(data))
    root = int.from_bytes(flat[:4], "little") + header_size
    parts = [root.to_bytes(4, "little"), flat[4:8], header.ljust(header_size, b"\0"), flat[8:]]
    return b"".join([*parts, bytes(base - program_size), data])


_XNN_HEADER = struct.Struct("<4x4sHIIIQ")
_XNN_ALIGNMENT = 16


def encode_xnnpack(graph: Mapping[str, Any], constants: Sequence[bytes]) -> bytes:
    """A whole delegate blob: header, graph flatbuffer, then the constant data.

    Args:
        graph: an "XNNGraph" table without its "constant_data" field.
        constants: raw bytes; ``constants[i]`` gets buffer index i + 1 (0 means "not a constant").
    Source: executorch v1.4.1, backends/xnnpack/serialization/xnnpack_graph_serialize.py :: serialize_xnnpack_binary
    """
    data, offsets = pack(constants, _XNN_ALIGNMENT)
    entries = [{"offset": 0, "size": 0}] + [{"offset": o, "size": len(c)} for o, c in zip(offsets, constants, strict=True)]
    flat = encode("XNNGraph", {**graph, "constant_data": entries}, b"XN01")
    header_size = aligned(_XNN_HEADER.size, _XNN_ALIGNMENT)
    flat_size = aligned(len(flat), _XNN_ALIGNMENT)
    header = _XNN_HEADER.pack(b"XH00", _XNN_HEADER.size, header_size, len(flat), header_size + flat_size, len(data))
    return b"".join([header.ljust(header_size, b"\0"), flat.ljust(flat_size, b"\0"), data])
