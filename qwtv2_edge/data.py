"""Samples for calibration, verification and evaluation: one frozen view over files, arrays and iterables.

Nothing is held in memory whole: ``.npz`` members are read row by row out of the archive, arrays are cast
batch by batch, iterables are consumed as they come. What a source may be, for a network with k inputs:

* a path to an ``.npz``: one array per input, named as the input, first axis = samples; with one input ``x``
  is accepted too; ``y`` holds labels;
* a mapping from input name to array, under the same rules;
* one array (k = 1) or a tuple or list of k arrays, first axis = samples;
* an iterable of samples or batches (k = 1), or of tuples of k samples or batches. An element of the input's
  own rank is a batch, of one rank less a sample.

Values: for a float input every number is cast as it is (uint8 pixels become 0.0 .. 255.0). For an int8 input
int8 arrays are codes; all other dtypes are real values and are quantized with the input's scale and zero point.
For an int32 input (indices) arrays of every integer dtype are taken.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np

from qwtv2_edge.errors import QwtEdgeError, UsageError
from qwtv2_edge.fixedpoint import quantize_codes
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.ir.types import DTYPES, TensorType, fits_int32

Arrays = tuple[np.ndarray, ...]

#: dtypes that stand for numbers; everything else (objects, text, complex) is refused
_NUMBER_KINDS = "fiub"
#: name under which a single-input network also takes its samples
SINGLE_INPUT_NAME = "x"
LABELS_NAME = "y"
_BATCH_OF_ONE_PASS = 64


@dataclass(frozen=True)
class Dataset:
    """Samples for the inputs of one network.

    Attributes:
        names, types: the network's inputs.
        count: number of samples (rows of the first axis), None for an iterable not read yet.
        labels: array ``y``, first axis = samples (class numbers 1-D, or float targets), or None.
        again: whether :meth:`batches` can be called more than once.
        source: where the samples come from, for messages.
        error: exception class for unusable samples.
        read: rows wanted at once -> raw arrays, one per input, first axis = rows; for this module's use.
    """

    names: tuple[str, ...]
    types: tuple[TensorType, ...]
    count: int | None
    labels: np.ndarray | None
    again: bool
    source: str
    error: type[QwtEdgeError]
    read: Callable[[int], Iterator[Arrays]]

    def batches(self, size: int) -> Iterator[Arrays]:
        """Yield tuples of one array per input, of the input's dtype, ``size`` samples each; the last may be shorter.

        Raises: ``self.error`` on a wrong shape, NaN or infinite values, or when there is no sample at all.
        """
        unit = self.types[0].shape[0] if self.types[0].shape else 1
        size = max(unit, size - size % unit)
        held: list[Arrays] = []
        rows = seen = 0
        for raw in self.read(size):
            for start in range(0, len(raw[0]), size):
                part = tuple(self._cast(i, a[start : start + size], seen + rows) for i, a in enumerate(raw))
                held.append(part)
                rows += len(part[0])
                while rows >= size:
                    whole = _join(held)
                    yield tuple(a[:size] for a in whole)
                    seen += size
                    rows -= size
                    held = [tuple(a[size:] for a in whole)] if rows else []
        if rows:
            if rows % unit:
                raise self.error(f"{self.source}: {seen + rows} samples, not a multiple of the network's own batch of {unit}")
            yield _join(held)
        if seen + rows == 0:
            raise self.error(f"{self.source}: no samples", fix="give at least one sample")

    def arrays(self) -> list[np.ndarray]:
        """All samples, one array per input. For sets known to be small."""
        return list(_join(list(self.batches(_BATCH_OF_ONE_PASS))))

    def select(self, indices: Iterable[int]) -> Dataset:
        """The samples at ``indices``, in their order in the source. Reads the whole source at each pass."""
        wanted = np.unique(np.fromiter(indices, np.int64))
        if self.count is not None and len(wanted) and wanted[-1] >= self.count:
            raise self.error(f"{self.source}: no sample {wanted[-1]}, there are {self.count}")
        labels = None if self.labels is None else self.labels[wanted]
        return replace(self, count=len(wanted), labels=labels, read=lambda size: _filtered(self.read(size), wanted))

    def sample(self, count: int, seed: int) -> Dataset:
        """At most ``count`` samples drawn without replacement; the same ones for the same seed."""
        total = self._known_count()
        if count >= total:
            return self
        return self.select(np.random.default_rng(seed).permutation(total)[:count])

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """(rest, part): ``part`` holds about ``fraction`` of the samples, drawn with ``seed``; at least one each if there are two."""
        total = self._known_count()
        held = min(max(int(total * fraction + 0.5), 1), max(total - 1, 0))
        order = np.random.default_rng(seed).permutation(total)
        return self.select(order[held:]), self.select(order[:held])

    def _known_count(self) -> int:
        if self.count is None:
            raise self.error(f"{self.source}: a generator can be read only once", fix="open it with qwtv2_edge.data.rereadable")
        return self.count

    def _cast(self, index: int, array: np.ndarray, first: int) -> np.ndarray:
        name, type = self.names[index], self.types[index]
        if array.dtype.kind not in _NUMBER_KINDS:
            raise self.error(f"{self.source}: input '{name}' has dtype {array.dtype}", fix="give numbers: float32, float16, uint8 or int8")
        if type.dtype != "float32" and array.dtype == DTYPES[type.dtype]:
            return np.ascontiguousarray(array)
        if type.dtype == "int32":
            if not fits_int32(array):
                raise self.error(f"{self.source}: input '{name}' has dtype {array.dtype}", fix="give indices: integers that int32 holds")
            return np.ascontiguousarray(array, np.int32)
        with np.errstate(over="ignore"):
            real = np.ascontiguousarray(array, np.float32)
        finite = np.isfinite(real)
        if not finite.all():
            row = int(np.argmin(finite.reshape(len(real), -1).all(1)))
            bad = int(real[row].size - np.count_nonzero(finite[row]))
            raise self.error(
                f"{self.source}: sample {first + row} has {bad} NaN or infinite values in input '{name}'",
                fix="remove or repair that sample",
            )
        return real if type.dtype == "float32" else codes_of(real, type)


def open_data(source: Any, graph: Graph, *, purpose: str = "inputs", error: type[QwtEdgeError] = UsageError) -> Dataset:
    """A :class:`Dataset` over ``source`` (see the module's text) for the inputs of ``graph``.

    Args:
        source: path, mapping, array, tuple of arrays, iterable, or a Dataset (returned as it is).
        graph: float or integer. When its metadata has "io_layout", images in the other layout are transposed.
        purpose: what the samples are for, in words.
        error: raised for unusable samples.
    Raises: UsageError for a file that can't be read; ``error`` for wrong shapes, missing inputs, no samples.
    """
    if isinstance(source, Dataset):
        return source
    types = tuple(graph.tensors[t] for t in graph.inputs)
    blank = Dataset(graph.inputs, types, None, None, True, purpose, error, lambda size: iter(()))
    flexible = "io_layout" in graph.metadata
    if isinstance(source, (str, Path)):
        return _from_npz(Path(source), blank, flexible)
    if isinstance(source, Mapping):
        return _from_mapping(source, blank, flexible)
    if isinstance(source, np.ndarray):
        source = (source,)
    if _is_arrays(source, len(types)):
        return _from_arrays(source, blank, flexible)
    if isinstance(source, Iterable):
        return _from_iterable(source, blank, flexible)
    raise error(
        f"{purpose}: can't read samples from a value of type {type(source).__name__}",
        fix="give a path to an .npz, arrays, or an iterable of samples or batches",
    )


@contextmanager
def rereadable(data: Dataset) -> Iterator[Dataset]:
    """``data`` itself if it can be read more than once, else a copy of it in a temporary file that lives as long as the block."""
    if data.again:
        yield data
        return
    with TemporaryDirectory(prefix="qwtv2-edge-") as folder:
        yield _spool(data, Path(folder))


def codes_of(real: np.ndarray, type: TensorType) -> np.ndarray:
    """Finite float32 values as int8 codes of ``type`` (one scale), rounded half away from zero, saturated."""
    return quantize_codes(real, type.scale, type.zero_point, "HAZ")


# ---------------------------------------------------------------- shapes


def _join(parts: Sequence[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def _filtered(chunks: Iterator[Arrays], wanted: np.ndarray) -> Iterator[Arrays]:
    start = 0
    for chunk in chunks:
        rows = len(chunk[0])
        low, high = np.searchsorted(wanted, (start, start + rows))
        if high > low:
            yield tuple(a[wanted[low:high] - start] for a in chunk)
        start += rows
        if high == len(wanted):
            return


def _moved_axes(have: tuple[int, ...], want: tuple[int, ...]) -> tuple[int, ...] | None:
    """() if ``have`` fits ``want`` (first axis aside), the permutation that makes it fit, or None."""
    if len(have) != len(want):
        return None
    if have[1:] == want[1:]:
        return ()
    if len(have) == 4:
        for axes in ((0, 2, 3, 1), (0, 3, 1, 2)):
            if tuple(have[a] for a in axes[1:]) == want[1:]:
                return axes
    return None


def _as_batch(array: np.ndarray, name: str, type: TensorType, data: Dataset, flexible: bool, index: int | None = None) -> np.ndarray:
    """``array`` with the sample axis first and in the input's layout; no copy. ``index``: its place in an iterable."""
    shape, want = array.shape, type.shape
    if len(shape) == len(want) - 1:
        batch = array[None]
    elif len(shape) == len(want) + 1 and shape[1:] == want:
        batch = array.reshape(shape[0] * want[0], *want[1:])
    else:
        batch = array
    moved = _moved_axes(batch.shape, want)
    if moved == ():
        return batch
    if moved is not None and flexible:
        return batch.transpose(moved)
    where = "" if index is None else f" in element {index}"
    expected = ", ".join(map(str, ("samples", *want[1:])))
    raise data.error(f"{data.source}: input '{name}' has shape {tuple(shape)}{where}, expected ({expected})", fix=_shape_hint(moved))


def _shape_hint(moved: tuple[int, ...] | None) -> str:
    if moved == (0, 2, 3, 1):
        return "the images look like NCHW where NHWC is expected: array.transpose(0, 2, 3, 1)"
    if moved == (0, 3, 1, 2):
        return "the images look like NHWC where NCHW is expected: array.transpose(0, 3, 1, 2)"
    return "first axis = samples, the other axes as the network's input"


def _pick(names: Iterable[str], data: Dataset) -> dict[str, str]:
    """Input name -> the name under which ``names`` has it."""
    have = list(names)
    single = len(data.names) == 1
    out = {n: n if n in have else SINGLE_INPUT_NAME if single and SINGLE_INPUT_NAME in have else "" for n in data.names}
    lacking = [n for n, key in out.items() if not key]
    if lacking:
        wanted = ", ".join(f"'{n}'" for n in lacking) + (
            f" or '{SINGLE_INPUT_NAME}'" if single and SINGLE_INPUT_NAME not in data.names else ""
        )
        raise data.error(
            f"{data.source}: no array {wanted}; there is {', '.join(have) or 'nothing'}", fix="name each array as the network's input"
        )
    return out


def _same_count(counts: Sequence[int], labels: np.ndarray | None, data: Dataset) -> int:
    if len(set(counts)) > 1:
        listed = ", ".join(f"'{n}' {c}" for n, c in zip(data.names, counts, strict=True))
        raise data.error(f"{data.source}: the inputs differ in their number of samples: {listed}")
    if counts[0] == 0:
        raise data.error(f"{data.source}: no samples", fix="give at least one sample")
    if labels is not None and len(labels) != counts[0]:
        raise data.error(f"{data.source}: {counts[0]} samples but {len(labels)} labels '{LABELS_NAME}'")
    return counts[0]


def _labels(array: np.ndarray, data: Dataset) -> np.ndarray:
    if array.dtype.kind not in _NUMBER_KINDS:
        raise data.error(f"{data.source}: labels '{LABELS_NAME}' have dtype {array.dtype}", fix="store class numbers or float targets")
    if not array.ndim:
        raise data.error(f"{data.source}: labels '{LABELS_NAME}' are one number", fix="store one per sample")
    if array.dtype.kind in "iub" and array.ndim > 1 and array.size == len(array):
        array = array.reshape(-1)  # class numbers kept as a column
    return array


# ---------------------------------------------------------------- arrays and iterables


def _is_arrays(source: Any, count: int) -> bool:
    """Whether ``source`` is one array per input, rather than an iterable of samples."""
    if not isinstance(source, (tuple, list)) or len(source) != count or not source:
        return False
    if count > 1:
        return all(not isinstance(a, (tuple, list)) for a in source)
    return isinstance(source, tuple) and isinstance(source[0], np.ndarray)


def _from_arrays(source: Sequence[Any], data: Dataset, flexible: bool, labels: np.ndarray | None = None) -> Dataset:
    arrays = tuple(_as_batch(_array(a, data), n, t, data, flexible) for a, n, t in zip(source, data.names, data.types, strict=True))
    count = _same_count([len(a) for a in arrays], labels, data)

    def read(size: int) -> Iterator[Arrays]:
        for start in range(0, count, size):
            yield tuple(a[start : start + size] for a in arrays)

    return replace(data, count=count, labels=labels, read=read)


def _from_mapping(source: Mapping[str, Any], data: Dataset, flexible: bool) -> Dataset:
    keys = _pick(source, data)
    takes_labels = LABELS_NAME in source and LABELS_NAME not in keys.values()
    labels = _labels(np.asarray(source[LABELS_NAME]), data) if takes_labels else None
    return _from_arrays([source[keys[n]] for n in data.names], data, flexible, labels)


def _from_iterable(source: Iterable[Any], data: Dataset, flexible: bool) -> Dataset:
    once = iter(source) is source
    started = False

    def read(size: int) -> Iterator[Arrays]:
        nonlocal started
        if once and started:
            raise data.error(f"{data.source}: a generator that was read already", fix="give a list, arrays or an .npz file")
        started = True
        for index, element in enumerate(source):
            yield _element(element, index, data, flexible)

    return replace(data, again=not once, read=read)


def _element(element: Any, index: int, data: Dataset, flexible: bool) -> Arrays:
    """One element of an iterable as a batch."""
    parts = element if isinstance(element, (tuple, list)) and not _is_flat_sample(element, data) else (element,)
    if len(parts) != len(data.names):
        raise data.error(
            f"{data.source}: element {index} has {len(parts)} arrays, the network has {len(data.names)} inputs ({', '.join(data.names)})",
            fix="yield one array per input, as a tuple",
        )
    arrays = tuple(_as_batch(_array(a, data), n, t, data, flexible, index) for a, n, t in zip(parts, data.names, data.types, strict=True))
    if len({len(a) for a in arrays}) > 1:
        raise data.error(f"{data.source}: the inputs in element {index} differ in their number of samples: {[len(a) for a in arrays]}")
    return arrays


def _array(value: Any, data: Dataset) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as exc:
        raise data.error(f"{data.source}: a value of type {type(value).__name__} is no array", fix="give numpy arrays") from exc


def _is_flat_sample(element: Any, data: Dataset) -> bool:
    """A list of plain numbers is one sample, not a tuple of inputs."""
    return len(data.names) == 1 and bool(element) and not isinstance(element[0], np.ndarray)


def _spool(data: Dataset, folder: Path) -> Dataset:
    """Write every sample to one raw file per input; the returned view maps them."""
    paths = [folder / f"{i}.raw" for i in range(len(data.names))]
    count = 0
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(open(p, "wb")) for p in paths]
            for batch in data.batches(_BATCH_OF_ONE_PASS):
                count += len(batch[0])
                for file, array in zip(files, batch, strict=True):
                    array.tofile(file)
    except OSError as exc:
        raise UsageError(f"can't spool {data.source} to {folder}: {exc.strerror or exc}", fix="free space there, or set TMPDIR") from exc
    maps = [
        np.memmap(p, DTYPES[t.dtype], mode="r", shape=(count, *t.shape[1:])) if prod(t.shape) else np.empty((count, *t.shape[1:]))
        for p, t in zip(paths, data.types, strict=True)
    ]
    return _from_arrays(maps, replace(data, again=True), False)


# ---------------------------------------------------------------- .npz


@dataclass(frozen=True, slots=True)
class _Member:
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool


_CORRUPT = "write the file anew with numpy.savez"
#: what zipfile and NumPy raise on damaged archives
_BAD_ARCHIVE = (
    *(zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError, KeyError, SyntaxError, TypeError),
    tokenize.TokenError,
)


def _from_npz(path: Path, data: Dataset, flexible: bool) -> Dataset:
    data = replace(data, source=str(path))
    members = _members(path)
    keys = _pick(members, data)
    labels = None
    if LABELS_NAME in members and LABELS_NAME not in keys.values():
        labels = _labels(_whole(path, LABELS_NAME, members[LABELS_NAME]), data)
    used = {n: members[key] for n, key in keys.items()}
    for name, key in keys.items():
        _refuse_objects(path, key, used[name])
    # an empty array of the member's shape goes through the same rules as the data itself
    probes = [_as_batch(_probe(used[n]), n, t, data, flexible) for n, t in zip(data.names, data.types, strict=True)]
    count = _same_count([len(p) for p in probes], labels, data)

    def read(size: int) -> Iterator[Arrays]:
        streams = [_rows(path, keys[n], used[n], size) for n in data.names]
        for parts in zip(*streams, strict=True):
            yield tuple(_as_batch(a, n, t, data, flexible) for a, n, t in zip(parts, data.names, data.types, strict=True))

    return replace(data, count=count, labels=labels, read=read)


def _probe(member: _Member) -> np.ndarray:
    return np.broadcast_to(np.zeros((), member.dtype), member.shape)


def _refuse_objects(path: Path, key: str, member: _Member) -> None:
    if member.dtype.hasobject:
        raise UsageError(f"array '{key}' of {path} holds Python objects", fix="store plain numbers; pickled arrays are never loaded")


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open ``path``; whatever goes wrong with the archive becomes one UsageError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except OSError as exc:
        raise UsageError(f"can't read {path}: {exc.strerror or exc}", fix="check the path and its permissions") from exc
    except _BAD_ARCHIVE as exc:
        if zipfile.is_zipfile(path):
            raise UsageError(f"{path} is a damaged .npz: {exc}", fix=_CORRUPT) from exc
        raise UsageError(f"{path} is not an .npz file", fix=_CORRUPT) from exc


def _header(file: IO[bytes]) -> _Member:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"array format version {version}")
    return _Member(tuple(shape), dtype, fortran)


def _members(path: Path) -> dict[str, _Member]:
    """Name -> shape and dtype of each array of an ``.npz``; reads headers only."""
    out = {}
    with _archive(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(".npy"):
                name = entry.filename.removesuffix(".npy")
                with archive.open(entry) as file:
                    out[name] = member = _header(file)
                    size, needed = entry.file_size - file.tell(), prod(member.shape) * member.dtype.itemsize
                if size != needed and not member.dtype.hasobject:
                    raise ValueError(f"array '{name}' of {member.dtype}{list(member.shape)} has {size} bytes, needs {needed}")
    return out


def _rows(path: Path, key: str, member: _Member, size: int) -> Iterator[np.ndarray]:
    """Yield the rows of one array, ``size`` at a time, straight out of the archive."""
    if member.fortran and len(member.shape) > 1:
        whole = _whole(path, key, member)  # columns first: rows are not contiguous in the file
        for start in range(0, len(whole), size):
            yield whole[start : start + size]
        return
    row_bytes = prod(member.shape[1:]) * member.dtype.itemsize
    with _archive(path) as archive, archive.open(f"{key}.npy") as file:
        _header(file)
        for start in range(0, member.shape[0], size):
            rows = min(size, member.shape[0] - start)
            raw = file.read(rows * row_bytes)
            if len(raw) != rows * row_bytes:
                raise ValueError(f"array '{key}' ends after {start + len(raw) // max(row_bytes, 1)} of {member.shape[0]} rows")
            yield np.frombuffer(raw, member.dtype).reshape(rows, *member.shape[1:])


def _whole(path: Path, key: str, member: _Member) -> np.ndarray:
    _refuse_objects(path, key, member)
    with _archive(path) as archive, archive.open(f"{key}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)
