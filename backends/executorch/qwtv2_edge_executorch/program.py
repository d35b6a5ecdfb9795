"""Builds an ExecuTorch program value by value: tensors, scalars, kernel calls, delegate calls, one memory arena.

The one place that knows how a program is put together; ``format`` knows its bytes. Nothing here imports
ExecuTorch, so emitting needs neither it nor torch; :func:`check_installed_version` guards the pairing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import prod
from typing import Any

import numpy as np

from qwtv2_edge.errors import EmitError
from qwtv2_edge_executorch.format import aligned, encode_program, pack

#: the release series whose runtime these programs are proved on
EXECUTORCH_SERIES = "1.4"

#: NumPy dtype -> c10 ScalarType code. Source: executorch v1.4.1, schema/scalar_type.fbs
SCALAR_TYPES: dict[np.dtype, int] = {
    np.dtype(np.uint8): 0,
    np.dtype(np.int8): 1,
    np.dtype(np.int16): 2,
    np.dtype(np.int32): 3,
    np.dtype(np.int64): 4,
    np.dtype(np.float32): 6,
    np.dtype(np.float64): 7,
    np.dtype(np.bool_): 11,
}

#: alignment of buffers and constants on processors with caches
ALIGNMENT = 64
#: XNNPACK kernels may read this far past the end of a buffer
ARENA_TAIL = 128


def check_installed_version() -> None:
    """Raise EmitError when an ExecuTorch is installed that these programs were not proved on."""
    try:
        found = version("executorch")
    except PackageNotFoundError:
        return
    if not found.startswith(EXECUTORCH_SERIES + "."):
        raise EmitError(
            f"executorch {found} is installed, programs are written for {EXECUTORCH_SERIES}.x",
            fix=f"pip install 'executorch=={EXECUTORCH_SERIES}.*'",
        )


@dataclass
class _Storage:
    """One piece of the arena (or one constant): ``first`` and ``last`` are the instructions that use it."""

    size: int
    constant: int = 0
    first: int | None = None
    last: int | None = None
    offset: int = 0


@dataclass(frozen=True)
class _View:
    storage: int
    dtype: np.dtype
    shape: tuple[int, ...]
    dim_order: tuple[int, ...]
    offset: int = 0


@dataclass
class ProgramBuilder:
    """Collects values and instructions; ``finish`` plans memory and gives the file's bytes.

    Methods that add a value return its index. Equal scalars and equal constants are stored once.

    Attributes:
        alignment: every planned buffer and constant starts at a multiple of this many bytes.
        tail: bytes that kernels may read past the end of a buffer.
    """

    alignment: int = ALIGNMENT
    tail: int = ARENA_TAIL

    _values: list[tuple[str, dict[str, Any]] | _View] = field(default_factory=list)
    _known: dict[Any, int] = field(default_factory=dict)
    _storages: list[_Storage] = field(default_factory=list)
    _constants: list[bytes] = field(default_factory=list)
    _operators: dict[tuple[str, str], int] = field(default_factory=dict)
    _delegates: list[tuple[str, bytes]] = field(default_factory=list)
    _instructions: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    #: (operator, graph node) in call order, for Artifact.ops and Artifact.nodes
    called: list[tuple[str, str]] = field(default_factory=list)
    #: the graph node that kernels are being called for
    node: str = ""

    # ---- tensors

    def tensor(self, shape: Sequence[int], dtype: Any, dim_order: Sequence[int] | None = None) -> int:
        """A tensor in the arena. dim_order: dimensions from outermost to innermost in memory; None: as in ``shape``."""
        dtype = np.dtype(dtype)
        self._storages.append(_Storage(prod(shape) * dtype.itemsize))
        return self._view(len(self._storages) - 1, dtype, shape, dim_order)

    def constant(
        self, array: np.ndarray, shape: Sequence[int] | None = None, dim_order: Sequence[int] | None = None, *, own: bool = False
    ) -> int:
        """A constant, its bytes in memory as ``array`` has them in C order; ``shape`` and ``dim_order`` reinterpret them.

        Equal bytes are stored once, unless the constant is to have its ``own``: then the file's size does not depend on values.
        """
        data = np.ascontiguousarray(array).tobytes()
        key = ("constant", data, len(self._storages) if own else None)
        if key not in self._known:
            self._constants.append(data)
            self._storages.append(_Storage(len(data), constant=len(self._constants)))
            self._known[key] = len(self._storages) - 1
        return self._view(self._known[key], array.dtype, array.shape if shape is None else shape, dim_order)

    def alias(self, value: int, shape: Sequence[int], dim_order: Sequence[int] | None = None, dtype: Any = None) -> int:
        """The same bytes as ``value`` under another shape or dimension order: a free reshape."""
        view = self._tensor_view(value)
        dtype = view.dtype if dtype is None else np.dtype(dtype)
        assert prod(shape) * dtype.itemsize == prod(view.shape) * view.dtype.itemsize, (shape, view)
        return self._view(view.storage, dtype, shape, dim_order, view.offset)

    def part(self, value: int, offset: int, shape: Sequence[int]) -> int:
        """The bytes of ``value`` from ``offset`` on, as an array of ``shape``; constants have no parts."""
        view = self._tensor_view(value)
        assert not self._storages[view.storage].constant
        return self._view(view.storage, view.dtype, shape, None, view.offset + offset)

    def is_constant(self, value: int) -> bool:
        return bool(self._storages[self._tensor_view(value).storage].constant)

    def shape(self, value: int) -> tuple[int, ...]:
        return self._tensor_view(value).shape

    def dtype(self, value: int) -> np.dtype:
        return self._tensor_view(value).dtype

    @property
    def dtypes(self) -> set[np.dtype]:
        """The dtypes of all tensors."""
        return {v.dtype for v in self._values if isinstance(v, _View)}

    def _tensor_view(self, value: int) -> _View:
        view = self._values[value]
        assert isinstance(view, _View)
        return view

    def _view(self, storage: int, dtype: np.dtype, shape: Sequence[int], dim_order: Sequence[int] | None, offset: int = 0) -> int:
        shape = tuple(int(d) for d in shape)
        order = tuple(range(len(shape))) if dim_order is None else tuple(dim_order)
        view = _View(storage, np.dtype(dtype), shape, order, offset)
        return self._known_value(view, view)

    # ---- other values

    def _known_value(self, key: Any, value: Any) -> int:
        if key not in self._known:
            self._values.append(value)
            self._known[key] = len(self._values) - 1
        return self._known[key]

    def none(self) -> int:
        return self._known_value("none", ("Null", {}))

    def integer(self, value: int) -> int:
        return self._known_value(("int", value), ("Int", {"int_val": int(value)}))

    def boolean(self, value: bool) -> int:
        return self._known_value(("bool", value), ("Bool", {"bool_val": bool(value)}))

    def real(self, value: float) -> int:
        return self._known_value(("double", float(value).hex()), ("Double", {"double_val": float(value)}))

    def integers(self, values: Iterable[int]) -> int:
        items = [self.integer(v) for v in values]
        return self._known_value(("ints", *items), ("IntList", {"items": items}))

    def tensors(self, values: Iterable[int], *, optional: bool = False) -> int:
        """A list of tensors; ``optional`` for operators that take "no tensor" among them (give ``none()``)."""
        kind = "OptionalTensorList" if optional else "TensorList"
        items = list(values)
        return self._known_value((kind, *items), (kind, {"items": items}))

    # ---- instructions

    def call(self, operator: str, *args: int, out: int) -> int:
        """Call ``operator`` ("aten::add.out") with value indices in schema order, ``out`` last; returns ``out``."""
        name, _, overload = operator.partition(".")
        index = self._operators.setdefault((name, overload), len(self._operators))
        self.called.append((operator, self.node))
        self._instruction("KernelCall", {"op_index": index, "args": [*args, out, out]})
        return out

    def delegate(self, backend: str, blob: bytes, args: Sequence[int], ops: Iterable[tuple[str, str]]) -> None:
        """Run a delegate blob on ``args`` (inputs, then outputs; the blob says which is which). ops: (op, node) of what is in it."""
        self._delegates.append((backend, blob))
        self.called.extend((f"{backend}[{len(self._delegates) - 1}]::{op}", node) for op, node in ops)
        self._instruction("DelegateCall", {"delegate_index": len(self._delegates) - 1, "args": list(args)})

    def _instruction(self, kind: str, fields: dict[str, Any]) -> None:
        now = len(self._instructions)
        self._instructions.append((kind, fields))
        for value in fields["args"]:
            self._touch(value, now)

    def _touch(self, value: int, now: int) -> None:
        item = self._values[value]
        if isinstance(item, _View):
            storage = self._storages[item.storage]
            storage.first = now if storage.first is None else min(storage.first, now)
            storage.last = now if storage.last is None else max(storage.last, now)
        elif item[0] in ("TensorList", "OptionalTensorList"):
            for member in item[1]["items"]:
                self._touch(member, now)

    # ---- the end

    def plan(self) -> int:
        """Give every planned storage its offset in the arena (largest first, lowest gap that fits); returns the arena's size."""
        placed: list[_Storage] = []
        end = 0
        planned = [s for s in self._storages if not s.constant]
        for storage in sorted(planned, key=lambda s: (-s.size, s.first if s.first is not None else -1)):
            if storage.first is None:
                storage.first = storage.last = 0
            offset = 0
            for other in placed:  # kept in order of offset
                if other.last < storage.first or storage.last < other.first:  # type: ignore[operator]
                    continue
                if offset + storage.size <= other.offset:
                    break
                offset = max(offset, aligned(other.offset + other.size, self.alignment))
            storage.offset = offset
            at = next((i for i, p in enumerate(placed) if p.offset > offset), len(placed))
            placed.insert(at, storage)
            end = max(end, offset + storage.size)
        return aligned(end + self.tail, self.alignment)

    def finish(self, inputs: Sequence[int], outputs: Sequence[int], named: Mapping[str, bytes] | None = None) -> bytes:
        """The program's file. Inputs live from before the first instruction, outputs to after the last.

        Args:
            named: data that travels in the file under a key, unused by the program itself.
        """
        for value in inputs:
            self._touch(value, -1)
        for value in outputs:
            self._touch(value, len(self._instructions))
        arena = self.plan()
        constants, offsets = pack(self._constants, self.alignment)
        segments = [constants, *(blob for _, blob in self._delegates)]
        entries = [{"key": key, "segment_index": len(segments) + i} for i, key in enumerate(named or {})]
        segments.extend((named or {}).values())
        values = [self._tensor_table(v) if isinstance(v, _View) else v for v in self._values]
        plan = {
            "name": "forward",
            "container_meta_type": {"encoded_inp_str": "", "encoded_out_str": ""},
            "values": [{"val": v} for v in values],
            "inputs": inputs,
            "outputs": outputs,
            "chains": [{"inputs": [], "outputs": [], "instructions": [{"instr_args": i} for i in self._instructions]}],
            "operators": [{"name": n, "overload": o} for n, o in self._operators],
            "delegates": [
                {"id": backend, "processed": {"location": 1, "index": i + 1}, "compile_specs": []}
                for i, (backend, _) in enumerate(self._delegates)
            ],
            "non_const_buffer_sizes": [0, arena],
        }
        program = {
            "version": 0,
            "execution_plan": [plan],
            "constant_buffer": [],
            "backend_delegate_data": [],
            "constant_segment": {"segment_index": 0, "offsets": [0, *offsets]},
            "named_data": entries or None,
        }
        return encode_program(program, segments)

    def _tensor_table(self, view: _View) -> tuple[str, dict[str, Any]]:
        storage = self._storages[view.storage]
        table: dict[str, Any] = {
            "scalar_type": SCALAR_TYPES[view.dtype],
            "sizes": view.shape,
            "dim_order": view.dim_order,
            "data_buffer_idx": storage.constant,
        }
        if not storage.constant:
            offset = storage.offset + view.offset
            table["allocation_info"] = {"memory_id": 1, "memory_offset_low": offset & 0xFFFFFFFF, "memory_offset_high": offset >> 32}
        return ("Tensor", table)
