"""Files of graphs: round trips, and refusal of everything else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct

import numpy as np
import pytest
from small_graphs import float_graph, integer_graph, two_inputs

from qwtv2_edge.errors import GraphError, UsageError
from qwtv2_edge.ir import Location
from qwtv2_edge.ir.serde import from_bytes, graph_hash, load, save, to_bytes
from qwtv2_edge.ops import OPS

GRAPHS = {"float": float_graph, "integer": integer_graph, "two": two_inputs}


def rebuilt(data: bytes, edit) -> bytes:
    """``data`` with its JSON header edited and a digest that matches: what a hostile writer can do."""
    _, version, length, _ = struct.unpack_from("<8sIIQ", data)
    header = json.loads(data[24 : 24 + length])
    payload = data[24 + length + -(24 + length) % 64 : -32]
    result = edit(header)
    header = header if result is None else result
    text = header if isinstance(header, bytes) else json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    body = text + b"\0" * (-(24 + len(text)) % 64) + payload
    whole = struct.pack("<8sIIQ", data[:8], version, len(text), 24 + len(body) + 32) + body
    return whole + hashlib.sha256(whole).digest()


@pytest.mark.parametrize("make", GRAPHS.values(), ids=GRAPHS)
def test_round_trip(make, tmp_path):
    graph = make()
    path = save(graph, tmp_path / "g.qir")
    again = load(path)
    assert again.nodes == graph.nodes
    assert dict(again.tensors) == dict(graph.tensors)
    assert dict(again.metadata) == dict(graph.metadata)
    assert (again.name, again.inputs, again.outputs) == (graph.name, graph.inputs, graph.outputs)
    for name, array in graph.constants.items():
        np.testing.assert_array_equal(again.constants[name], array)
        assert again.constants[name].dtype == array.dtype
        assert not again.constants[name].flags.writeable
    assert to_bytes(again) == path.read_bytes()


def test_bytes_do_not_depend_on_the_order_of_tables():
    graph = integer_graph()
    turned = dataclasses.replace(graph, tensors=dict(reversed(graph.tensors.items())), constants=dict(reversed(graph.constants.items())))
    assert to_bytes(turned) == to_bytes(graph)


def test_constants_are_aligned():
    data = to_bytes(integer_graph())
    graph = from_bytes(data)
    for array in graph.constants.values():
        raw = array.tobytes()
        assert any(data[at : at + len(raw)] == raw for at in range(0, len(data), 64))


def test_hash_ignores_what_is_not_computed_with():
    graph = integer_graph()
    moved = dataclasses.replace(
        graph, metadata={"other": "text"}, nodes=tuple(dataclasses.replace(n, location=Location("m", "f", 1, "c")) for n in graph.nodes)
    )
    assert graph_hash(moved) == graph_hash(graph)
    assert graph_hash(integer_graph(1)) != graph_hash(graph)


def test_every_bit_counts():
    data = to_bytes(two_inputs())
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1 << (at % 8)
        with pytest.raises(GraphError) as caught:
            from_bytes(bytes(broken))
        assert caught.value.fix


def test_every_truncation_is_refused():
    data = to_bytes(two_inputs())
    for length in range(len(data)):
        with pytest.raises(GraphError):
            from_bytes(data[:length])
    with pytest.raises(GraphError, match="its header says"):
        from_bytes(data + b"\0")


def _set(path, value):
    def edit(header):
        at = header
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return edit


HOSTILE = {
    "not an object": lambda h: [],
    "deep nesting": lambda h: b"[" * 200_000,
    "not json": lambda h: b"{",
    "two equal keys": lambda h: b'{"a":1,"a":2}',
    "NaN": lambda h: b'{"a":NaN}',
    "unknown key": _set(("more",), 1),
    "name is a number": _set(("name",), 1),
    "inputs is a string": _set(("inputs",), "x"),
    "undeclared input": _set(("inputs",), ["nothing"]),
    "no output": _set(("outputs",), []),
    "output of no node": _set(("outputs",), ["ghost"]),
    "unknown op": _set(("nodes", 1, "op"), "launch_missiles"),
    "op is a list": _set(("nodes", 1, "op"), ["conv2d"]),
    "attribute missing": _set(("nodes", 1, "attrs"), {}),
    "attribute unknown": _set(("nodes", 1, "attrs", "code"), "import os"),
    "stride is text": _set(("nodes", 1, "attrs", "stride"), ["1", "1"]),
    "stride is a float": _set(("nodes", 1, "attrs", "stride"), [1.0, 1]),
    "stride is true": _set(("nodes", 1, "attrs", "stride"), [True, 1]),
    "stride is zero": _set(("nodes", 1, "attrs", "stride"), [0, 1]),
    "stride has three parts": _set(("nodes", 1, "attrs", "stride"), [1, 1, 1]),
    "negative padding": _set(("nodes", 1, "attrs", "padding"), [[-5, 0], [0, 0]]),
    "huge padding": _set(("nodes", 1, "attrs", "padding"), [[2**40, 0], [0, 0]]),
    "dilation zero": _set(("nodes", 1, "attrs", "dilation"), [0, 0]),
    "groups zero": _set(("nodes", 1, "attrs", "groups"), 0),
    "unknown activation": _set(("nodes", 1, "attrs", "activation"), "gelu"),
    "infinite beta": _set(("nodes", 7, "attrs", "beta"), "inf"),
    "number out of range": lambda h: json.dumps(h).replace('"beta": 1.0', '"beta": 1e999').encode(),
    "location too short": _set(("nodes", 1, "location"), ["a"]),
    "node reads itself": _set(("nodes", 1, "inputs"), ["stem", "stem/weight", "stem/bias"]),
    "node reads a later tensor": _set(("nodes", 1, "inputs"), ["add", "stem/weight", "stem/bias"]),
    "produced twice": _set(("nodes", 2, "outputs"), ["stem"]),
    "two nodes of one name": _set(("nodes", 2, "name"), "stem"),
    "too few inputs": _set(("nodes", 1, "inputs"), ["quantize"]),
    "shape is wrong": _set(("tensors", "add", "shape"), [1, 6, 6, 5]),
    "negative size": _set(("tensors", "add", "shape"), [-1, 6, 6, 4]),
    "huge size": _set(("tensors", "stem/weight", "shape"), [2**31, 2**31, 3, 2]),
    "weight larger than the file": _set(("tensors", "stem/weight", "shape"), [4000, 3, 3, 2]),
    "unknown dtype": _set(("tensors", "add", "dtype"), "float99"),
    "object dtype": _set(("tensors", "stem/weight", "dtype"), "object"),
    "scale zero": _set(("tensors", "add", "scale"), [0.0]),
    "scale negative": _set(("tensors", "add", "scale"), [-0.5]),
    "scale infinite": _set(("tensors", "add", "scale"), ["inf"]),
    "scale subnormal": _set(("tensors", "add", "scale"), [float(np.float32(1e-40))]),
    "scale not a float32": _set(("tensors", "add", "scale"), [0.1]),
    "zero point out of range": _set(("tensors", "add", "zero_point"), [300]),
    "axis out of range": _set(("tensors", "stem/weight", "axis"), 7),
    "scales without axis": _set(("tensors", "stem/weight", "axis"), None),
    "pool changes the scale": _set(("tensors", "pool", "scale"), [0.5]),
    "softmax scale": _set(("tensors", "softmax", "scale"), [0.5]),
    "activation without a scale": _set(("tensors", "add"), {"shape": [1, 6, 6, 4], "dtype": "int8"}),
    "bias as int8": _set(("tensors", "stem/bias", "dtype"), "int8"),
    "constant dropped": _set(("constants",), ["dw/bias"]),
    "constant invented": lambda h: h["constants"].append("zzz"),
    "constants unsorted": lambda h: h["constants"].reverse(),
    "constant is an input": _set(("inputs",), ["x", "stem/weight"]),
    "metadata is a list": _set(("metadata",), []),
    "metadata holds a number": _set(("metadata", "recipe"), 3),
}


@pytest.mark.parametrize("edit", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_with_a_correct_digest_are_refused(edit):
    data = to_bytes(integer_graph())
    assert rebuilt(data, lambda h: None) == data
    with pytest.raises(GraphError):
        from_bytes(rebuilt(data, edit))


def test_other_version():
    data = bytearray(to_bytes(two_inputs()))
    data[8] = 9
    data[-32:] = hashlib.sha256(data[:-32]).digest()
    with pytest.raises(GraphError, match="version 9"):
        from_bytes(bytes(data))


def test_every_op_has_attributes_the_format_knows():
    """A new attribute type must be taught to the format first."""
    from qwtv2_edge.ir.serde import _decode_value, _encode_value, _hints

    samples = {int: 3, float: 0.5, str: "none", bool: True}

    def example(hint):
        import typing

        args = typing.get_args(hint)
        if not args:
            return samples[hint]
        return tuple(example(a) for a in args if a is not Ellipsis)

    for spec in OPS.values():
        for name, hint in _hints(spec.attrs).items():
            value = example(hint)
            encoded = json.loads(json.dumps(_encode_value(value, hint)))
            assert _decode_value(encoded, hint, f"{spec.name}.{name}") == value


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "broken.qir"
    path.write_bytes(b"hello")
    with pytest.raises(GraphError, match=r"broken\.qir: not a \.qir"):
        load(path)
    with pytest.raises(UsageError, match="is not a file"):
        load(tmp_path / "absent.qir")
    with pytest.raises(UsageError, match="is not a file"):
        load(tmp_path)
    with pytest.raises(UsageError, match="can't write"):
        save(two_inputs(), tmp_path / "no" / "folder.qir")


def test_a_broken_graph_is_not_written(tmp_path):
    graph = float_graph()
    weights = graph.constants["stem/weight"].copy()
    weights[0, 0, 0, 0] = np.nan
    broken = dataclasses.replace(graph, constants={**graph.constants, "stem/weight": weights})
    with pytest.raises(GraphError, match="1 NaN or infinite values of 72"):
        save(broken, tmp_path / "g.qir")
    assert list(tmp_path.iterdir()) == []
