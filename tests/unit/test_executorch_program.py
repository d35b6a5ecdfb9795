"""The program builder: schemas as published, memory plans that never overlap, values stored once."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwtv2_edge.errors import EmitError
from qwtv2_edge_executorch import format as fmt
from qwtv2_edge_executorch.program import ALIGNMENT, ARENA_TAIL, ProgramBuilder, check_installed_version

#: scalar names of the schema language -> ours
SCALARS = {
    **{"byte": "int8", "ubyte": "uint8", "short": "int16", "ushort": "uint16", "int": "int32", "uint": "uint32"},
    **{"long": "int64", "ulong": "uint64", "float": "float32", "double": "float64"},
}


def parse(text: str):
    """(tables, unions, enum kinds) of a flatbuffer schema."""
    text = re.sub(r"//[^\n]*", "", text)
    enums = {name: SCALARS[kind] for name, kind in re.findall(r"enum (\w+)\s*:\s*(\w+)", text)}
    unions = {}
    for name, body in re.findall(r"union (\w+)\s*\{(.*?)\}", text, re.S):
        unions[name] = [m.strip().split(":") for m in body.split(",") if m.strip()]
    tables = {}
    for name, body in re.findall(r"table (\w+)\s*\{(.*?)\}", text, re.S):
        tables[name] = re.findall(r"(\w+)\s*:\s*(\[?)(\w+)\]?\s*([^;]*);", body)
    return tables, unions, enums


def kind_of(base: str, vector: str, note: str, unions, enums) -> str:
    if "deprecated" in note:
        return "deprecated"
    if base in unions:
        return f"union {base}"
    kind = enums.get(base) or SCALARS.get(base, base)
    return f"[{kind}]" if vector else kind


@pytest.mark.parametrize("path", ["exir/_serialize/program.fbs", "backends/xnnpack/serialization/schema.fbs"])
def test_tables_are_those_of_the_installed_schemas(path, require):
    require("executorch")
    from importlib.util import find_spec

    folder = Path(next(iter(find_spec("executorch").submodule_search_locations)))
    text = (folder / path).read_text()
    if path.startswith("exir"):
        text += (folder / "exir/_serialize/scalar_type.fbs").read_text()
    tables, unions, enums = parse(text)
    compared = 0
    aliases = {m[0].strip(): m[1].strip() for members in unions.values() for m in members if len(m) > 1}
    for union, members in unions.items():
        assert [m[0].strip() for m in members] == list(fmt.UNIONS[union])
    for name, fields in fmt.TABLES.items():
        published = tables.get(aliases.get(name, name))
        if published is None or (name == "Buffer" and "backends" in path):
            continue
        expected = [(field, kind_of(base, vector, note, unions, enums)) for field, vector, base, note in published]
        # leading fields are enough: later ones keep their default when left out
        assert list(fields) == expected[: len(fields)], name
        compared += 1
    assert compared > 20


@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=24),
)
def test_living_buffers_never_overlap(spans):
    b = ProgramBuilder()
    values = [b.tensor((size,), np.int8) for size, _, _ in spans]
    for step in range(10):
        alive = [v for v, (_, i, j) in zip(values, spans, strict=True) if min(i, j) <= step <= max(i, j)]
        b._instruction("KernelCall", {"op_index": 0, "args": alive})
    arena = b.plan()
    for i, one in enumerate(b._storages):
        assert one.offset % ALIGNMENT == 0
        assert one.offset + one.size + ARENA_TAIL <= arena
        for other in b._storages[:i]:
            apart = one.last < other.first or other.last < one.first
            assert apart or one.offset + one.size <= other.offset or other.offset + other.size <= one.offset


def test_memory_is_used_again():
    b = ProgramBuilder()
    x = first = b.tensor((1000,), np.int8)
    for _ in range(20):
        x = b.call("aten::relu.out", x, out=b.tensor((1000,), np.int8))
    b.finish([first], [x])
    # a chain needs two buffers, however long it is; input and output live apart from it
    assert b.plan() < 4 * 1100


def test_a_view_keeps_its_buffer_alive():
    b = ProgramBuilder()
    x = b.tensor((4, 4), np.int8)
    y = b.call("aten::relu.out", x, out=b.tensor((4, 4), np.int8))
    view = b.alias(y, (16,))
    b.call("aten::relu.out", x, out=b.tensor((4, 4), np.int8))
    b.call("aten::relu.out", view, out=b.tensor((16,), np.int8))
    assert b._storages[b._values[y].storage].last == 2


def test_equal_constants_and_scalars_are_stored_once():
    b = ProgramBuilder()
    a = np.arange(12, dtype=np.int8)
    assert b.constant(a) == b.constant(a.copy())
    assert b.constant(a) != b.constant(a, (3, 4))
    assert len(b._constants) == 1
    assert b.integer(3) == b.integer(3)
    assert b.integers([1, 2]) == b.integers((1, 2))
    assert b.real(0.0) != b.real(-0.0)


def test_another_release_series_is_refused(monkeypatch):
    monkeypatch.setattr("qwtv2_edge_executorch.program.version", lambda name: "1.5.0")
    with pytest.raises(EmitError, match=r"executorch 1\.5\.0 .* 1\.4\.x") as error:
        check_installed_version()
    assert "1.4" in error.value.fix
