"""The ``.qir`` file: a graph as JSON and raw arrays, without pickle, safe to read from strangers.

Layout, all integers little-endian:

=========  =====  ==============================================================
offset     bytes  content
=========  =====  ==============================================================
0          8      magic, ``b"QWTV2IR\\n"``
8          4      format version (1)
12         4      length H of the JSON header
16         8      length of the whole file
24         H      header: ASCII JSON, keys sorted
...               zero bytes up to a multiple of 64; then the constants in the order of
                  their names, each at a multiple of 64, C order
end - 32   32     SHA-256 of everything before
=========  =====  ==============================================================

The digest finds accidents (any flipped or missing byte); hostile files with a correct digest are found by
validation: every length is checked before anything is allocated, attributes are rebuilt field by field
from the op table, and the graph must pass :func:`qwtv2_edge.ir.check.check`. Equal graphs give equal bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import operator
import struct
import types
import typing
from pathlib import Path
from typing import Any

import numpy as np

from qwtv2_edge.errors import GraphError, QwtEdgeError, UsageError
from qwtv2_edge.files import write_atomic
from qwtv2_edge.ir.check import check
from qwtv2_edge.ir.graph import Graph, Location, Node
from qwtv2_edge.ir.types import DTYPES, Quantization, TensorType

MAGIC = b"QWTV2IR\n"
VERSION = 1
ALIGNMENT = 64
#: files above this are refused before they are read
MAX_FILE_BYTES = 8 << 30

_PREFIX = struct.Struct("<8sIIQ")
_DIGEST_BYTES = 32
_FIX = "the file was changed or cut short; export the network again or copy the file anew"


# ---------------------------------------------------------------- public


def save(graph: Graph, path: str | Path) -> Path:
    """Write ``graph`` to ``path``, whole or not at all. Returns the path.

    Raises: GraphError when the graph breaks a rule of the IR; UsageError when the file can't be written.
    """
    path = Path(path)
    write_atomic(path, to_bytes(graph))
    return path


def load(path: str | Path) -> Graph:
    """Read a ``.qir`` file. Nothing in it is executed.

    Raises: UsageError when there is no such file; GraphError when it is corrupt or not a ``.qir``.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise UsageError(f"{path} is not a file", fix="give the path of a .qir file written by export or qwtv2_edge.save")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise GraphError(f"{path} has {size} bytes, more than the {MAX_FILE_BYTES} a .qir may have")
        data = path.read_bytes()
    except OSError as exc:
        raise UsageError(f"can't read {path}: {exc.strerror or exc}", fix="check the path and its permissions") from exc
    try:
        return from_bytes(data)
    except QwtEdgeError as error:
        error.message = f"{path}: {error.message}"
        raise


def to_bytes(graph: Graph) -> bytes:
    """``graph`` as the bytes of a ``.qir`` file. Raises GraphError when the graph breaks a rule of the IR."""
    check(graph)
    return _encode(graph)


def graph_hash(graph: Graph) -> str:
    """SHA-256 (hex) of everything in ``graph`` that is computed with: not its metadata, not source locations."""
    nodes = tuple(dataclasses.replace(n, location=Location()) for n in graph.nodes)
    bare = dataclasses.replace(graph, nodes=nodes, metadata={})
    return hashlib.sha256(_encode(bare)).hexdigest()


def from_bytes(data: bytes) -> Graph:
    """The graph in the bytes of a ``.qir`` file. Raises GraphError for anything but an intact one."""
    header, payload_start = _open(data)
    try:
        graph = _graph(header, data, payload_start)
    except _Malformed as exc:
        raise GraphError(f"malformed .qir header: {exc}", fix=_FIX) from exc
    return check(graph)


# ---------------------------------------------------------------- writing


def _encode(graph: Graph) -> bytes:
    header = json.dumps(_header(graph), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")
    parts: list[bytes] = [b"", header]
    at = _PREFIX.size + len(header)
    for name in sorted(graph.constants):
        gap = -at % ALIGNMENT
        raw = _raw(graph.constants[name])
        parts += [b"\0" * gap, raw]
        at += gap + len(raw)
    parts[0] = _PREFIX.pack(MAGIC, VERSION, len(header), at + _DIGEST_BYTES)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return b"".join([*parts, digest.digest()])


def _raw(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def _header(graph: Graph) -> dict[str, Any]:
    return {
        "name": graph.name,
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "nodes": [_node_header(n) for n in graph.nodes],
        "tensors": {name: _type_header(t) for name, t in graph.tensors.items()},
        "constants": sorted(graph.constants),
        "metadata": dict(graph.metadata),
    }


def _node_header(node: Node) -> dict[str, Any]:
    hints = _hints(node.attrs.__class__)
    where = node.location
    return {
        "name": node.name,
        "op": node.op,
        "inputs": list(node.inputs),
        "outputs": list(node.outputs),
        "attrs": {f.name: _encode_value(getattr(node.attrs, f.name), hints[f.name]) for f in dataclasses.fields(node.attrs)},
        "location": [where.module_path, where.file, where.line, where.code],
    }


def _type_header(type: TensorType) -> dict[str, Any]:
    out: dict[str, Any] = {"shape": [operator.index(d) for d in type.shape], "dtype": type.dtype}
    q = type.quantization
    if q is not None:
        out["scale"] = [float(s) for s in q.scale]
        out["zero_point"] = [operator.index(z) for z in q.zero_point]
        out["axis"] = None if q.axis is None else operator.index(q.axis)
    return out


@functools.cache
def _hints(attrs: type[Any]) -> dict[str, Any]:
    """Field name -> resolved annotation of an attribute dataclass."""
    return typing.get_type_hints(attrs)


def _encode_value(value: Any, hint: Any) -> Any:
    """An attribute as JSON; infinities become strings, tuples lists."""
    if isinstance(value, tuple):
        return [_encode_value(v, h) for v, h in zip(value, _element_hints(hint, len(value)), strict=True)]
    if hint is float:
        value = float(value)
        return value if math.isfinite(value) else repr(value)
    if hint is int:
        return operator.index(value)
    return value


def _element_hints(hint: Any, count: int) -> tuple[Any, ...]:
    args = typing.get_args(hint)
    if len(args) == 2 and args[1] is Ellipsis:
        return (args[0],) * count
    return args


# ---------------------------------------------------------------- reading


class _Malformed(Exception):
    """A header that is not what :func:`_header` writes; turned into GraphError by the caller."""


def _open(data: bytes) -> tuple[Any, int]:
    """Check the frame; return the parsed header and where the constants may start."""
    if len(data) < _PREFIX.size or data[: len(MAGIC)] != MAGIC:
        what = "the file is empty" if not data else "it does not start as a .qir file does"
        raise GraphError(f"not a .qir file: {what}", fix="give a file written by export or qwtv2_edge.save")
    _, version, header_length, length = _PREFIX.unpack_from(data)
    if length != len(data):
        raise GraphError(f"corrupt .qir: {len(data)} bytes, its header says {length}", fix=_FIX)
    if header_length > length - _PREFIX.size - _DIGEST_BYTES:
        raise GraphError(f"corrupt .qir: a header of {header_length} bytes does not fit the file", fix=_FIX)
    view = memoryview(data)
    if hashlib.sha256(view[:-_DIGEST_BYTES]).digest() != view[-_DIGEST_BYTES:]:
        raise GraphError("corrupt .qir: the SHA-256 of its content does not match", fix=_FIX)
    if version != VERSION:
        message = f".qir format version {version}, this package reads {VERSION}"
        raise GraphError(message, fix="use the version of qwtv2-edge that wrote the file")
    end = _PREFIX.size + header_length
    try:
        text = data[_PREFIX.size : end].decode("ascii")
        header = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except (ValueError, RecursionError, _Malformed) as exc:
        raise GraphError(f"malformed .qir header: {exc}", fix=_FIX) from exc
    return header, end


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise _Malformed("a key occurs twice")
    return out


def _no_constant(text: str) -> Any:
    raise _Malformed(f"{text} is not a number")


def _fields(value: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Malformed(f"{where} is not an object")
    for key in required:
        if key not in value:
            raise _Malformed(f"{where} lacks '{key}'")
    for key in value:
        if key not in required and key not in optional:
            raise _Malformed(f"{where} has unknown key '{key}'")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _Malformed(f"{where} is not a string")
    return value


def _int(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > 2**63:
        raise _Malformed(f"{where} is not a whole number in range")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _Malformed(f"{where} is not a list")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    return tuple(_text(v, where) for v in _list(value, where))


def _graph(header: Any, data: bytes, payload_start: int) -> Graph:
    h = _fields(header, "the file", ("name", "inputs", "outputs", "nodes", "tensors", "constants", "metadata"))
    if not isinstance(h["tensors"], dict) or not isinstance(h["metadata"], dict):
        raise _Malformed("tensors or metadata is not an object")
    tensors = {name: _tensor_type(t, f"tensor '{name}'") for name, t in h["tensors"].items()}
    metadata = {key: _text(value, f"metadata '{key}'") for key, value in h["metadata"].items()}
    return Graph(
        _text(h["name"], "name"),
        _texts(h["inputs"], "inputs"),
        _texts(h["outputs"], "outputs"),
        tuple(_node(n, i) for i, n in enumerate(_list(h["nodes"], "nodes"))),
        tensors,
        _constants(_texts(h["constants"], "constants"), tensors, data, payload_start),
        metadata,
    )


def _tensor_type(value: Any, where: str) -> TensorType:
    h = _fields(value, where, ("shape", "dtype"), ("scale", "zero_point", "axis"))
    shape = tuple(_int(d, f"{where} shape") for d in _list(h["shape"], f"{where} shape"))
    dtype = _text(h["dtype"], f"{where} dtype")
    if "scale" not in h:
        return TensorType(shape, dtype)
    _fields(h, where, ("shape", "dtype", "scale", "zero_point", "axis"))
    scale = tuple(_number(s, f"{where} scale") for s in _list(h["scale"], f"{where} scale"))
    zero_point = tuple(_int(z, f"{where} zero point") for z in _list(h["zero_point"], f"{where} zero point"))
    axis = None if h["axis"] is None else _int(h["axis"], f"{where} axis")
    return TensorType(shape, dtype, Quantization(scale, zero_point, axis))


def _number(value: Any, where: str) -> float:
    """A JSON number, or the string of an infinity."""
    if value in ("inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Malformed(f"{where} is not a number")
    try:
        value = float(value)
    except OverflowError as exc:
        raise _Malformed(f"{where} is out of range") from exc
    if not math.isfinite(value):
        raise _Malformed(f"{where} is out of range")
    return value


def _node(value: Any, index: int) -> Node:
    from qwtv2_edge.ops import OPS  # late: ops import the IR

    where = f"node {index}"
    h = _fields(value, where, ("name", "op", "inputs", "outputs", "attrs", "location"))
    name, op = _text(h["name"], where), _text(h["op"], where)
    where = f"node '{name}'"
    if op not in OPS:
        raise _Malformed(f"{where} has the unknown op '{op}'")
    location = _list(h["location"], f"{where} location")
    if len(location) != 4:
        raise _Malformed(f"{where} location has {len(location)} parts, expected 4")
    module_path, file, line, code = location
    return Node(
        name,
        op,
        _texts(h["inputs"], f"{where} inputs"),
        _texts(h["outputs"], f"{where} outputs"),
        _attrs(h["attrs"], OPS[op].attrs, where),
        Location(_text(module_path, where), _text(file, where), _int(line, where), _text(code, where)),
    )


def _attrs(value: Any, attrs: type, where: str) -> Any:
    """Rebuild an attribute dataclass, every field checked against its annotation."""
    names = tuple(f.name for f in dataclasses.fields(attrs))
    h = _fields(value, f"{where} attributes", names)
    hints = _hints(attrs)
    return attrs(**{name: _decode_value(h[name], hints[name], f"{where} attribute {name}") for name in names})


def _decode_value(value: Any, hint: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is tuple:
        items = _list(value, where)
        hints = _element_hints(hint, len(items))
        if len(hints) != len(items):
            raise _Malformed(f"{where} has {len(items)} parts, expected {len(hints)}")
        return tuple(_decode_value(v, h, where) for v, h in zip(items, hints, strict=True))
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(hint):
            return None
        (inner,) = (a for a in typing.get_args(hint) if a is not type(None))
        return _decode_value(value, inner, where)
    if hint is bool:
        if not isinstance(value, bool):
            raise _Malformed(f"{where} is not true or false")
        return value
    if hint is int:
        return _int(value, where)
    if hint is float:
        return _number(value, where)
    if hint is str:
        return _text(value, where)
    raise TypeError(f"attributes of type {hint} have no .qir form")  # an op declared a field this format does not know


def _constants(names: tuple[str, ...], tensors: dict[str, TensorType], data: bytes, at: int) -> dict[str, np.ndarray]:
    """Cut the constants out of the payload; the layout follows from their types, and must fill it exactly."""
    if list(names) != sorted(set(names)):
        raise _Malformed("constants are not sorted or occur twice")
    end = len(data) - _DIGEST_BYTES
    out = {}
    for name in names:
        if name not in tensors:
            raise _Malformed(f"constant '{name}' has no declared type")
        type = tensors[name]
        if type.dtype not in DTYPES or any(d < 1 for d in type.shape):
            raise _Malformed(f"constant '{name}' has type {type.dtype}{list(type.shape)}")
        dtype = DTYPES[type.dtype]
        start = at + -at % ALIGNMENT
        at = start + type.size * dtype.itemsize
        if at > end:
            raise _Malformed(f"constant '{name}' of type {type.dtype}{list(type.shape)} runs past the end of the file")
        if dtype == np.bool_ and max(data[start:at], default=0) > 1:
            raise _Malformed(f"constant '{name}' has bytes that are neither true nor false")
        array = np.frombuffer(data, dtype.newbyteorder("<"), type.size, start).astype(dtype).reshape(type.shape)
        array.flags.writeable = False
        out[name] = array
    if at != end:
        raise _Malformed(f"{end - at} bytes of the file belong to no constant")
    return out
