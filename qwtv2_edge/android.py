"""Fills the assets of the Android demo app (``demo_android/``) from an export folder.

The app reads ``app.json`` first: what the network takes and gives, the SHA-256 of every other file, and which arrays of
``golden.npz`` hold the bytes that each runtime must give on which processor. The app's README describes the fields.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from qwtv2_edge.backends import get_numerics
from qwtv2_edge.errors import UsageError
from qwtv2_edge.export import npz_bytes, plain, staged_folder, to_json
from qwtv2_edge.inspection import describe
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.numerics import Numerics
from qwtv2_edge.opening import Opened, golden_inputs
from qwtv2_edge.runners.base import family_of
from qwtv2_edge.verification.runtimes import golden_vectors

SCHEMA_VERSION = 1
#: target -> (runtime as app.json and the app call it, numerics of that runtime without the processor family)
FORMATS = {"tflite": ("litert", "litert-xnnpack"), "executorch-xnnpack": ("executorch", "executorch-xnnpack")}
#: Android's names of the processors that both runtimes are published for
ABIS = ("arm64-v8a", "x86_64")
GOLDEN, LABELS, DESCRIPTION = "golden.npz", "labels.txt", "app.json"
#: every file that may lie in the folder
OWN_FILES = frozenset({"model.tflite", "model.executorch-xnnpack.pte", GOLDEN, LABELS, DESCRIPTION})
EXPORT_THEM = f"export it for {' or '.join(FORMATS)}, or both"
#: ops between a network's input and its first quantization that leave every value as it is
MOVES = ("reshape", "transpose", "pad")


def write_assets(opened: Opened, folder: str | Path, labels: str | Path | None = None) -> tuple[str, ...]:
    """Write everything the demo app shows of one network.

    Args:
        opened: an export folder with a ``.tflite``, an XNNPACK ``.pte``, or both.
        folder: to create or to fill anew; it may hold nothing but files of these names.
        labels: text file with one class name per line, as many as the first output has values.
    Returns: the names of the files written. On an error none is.
    Raises: UsageError: no such artifact, a folder that holds other things, labels that do not fit.
    """
    check_folder(folder)
    graph = opened.graph
    present = {t: a for t, a in opened.artifacts.items() if t in FORMATS}
    data = golden_inputs(opened)
    if not present or opened.folder is None or data is None:
        has = ", ".join(opened.artifacts) or "no artifact"
        raise UsageError(f"the app runs {' and '.join(FORMATS)} from an export folder; {opened.path} has {has}", fix=EXPORT_THEM)
    tables = {t: _tables(graph, t) for t in present}
    names = [table.name for by_abi in tables.values() for table in by_abi.values()]
    files = {a.file: a.data for a in present.values()}
    files[GOLDEN] = npz_bytes(golden_vectors(graph, data.arrays(), names))
    if labels is not None:
        files[LABELS] = _labels(labels, prod(graph.tensors[graph.outputs[0]].shape[-1:]))
    description = {
        "schema_version": SCHEMA_VERSION,
        "title": opened.report.get("model", {}).get("name") or opened.path.name,
        **_interface(graph),
        "samples": data.count,
        "formats": [_format(graph, FORMATS[t][0], present[t].file, tables[t]) for t in present],
        "files": {n: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in files.items()},
    }
    files[DESCRIPTION] = to_json(plain(description))
    with staged_folder(folder) as staged:
        for name, content in files.items():
            (staged / name).write_bytes(content)
    for name in OWN_FILES - set(files):  # of the network that was here before
        (Path(folder) / name).unlink(missing_ok=True)
    return tuple(files)


def check_request(folder: str | Path, labels: str | Path | None, targets: Sequence[str]) -> None:
    """Raise UsageError for what :func:`write_assets` would refuse whatever the network is, so that nobody waits for the export first."""
    check_folder(folder)
    if not FORMATS.keys() & set(targets):
        raise UsageError(f"the app runs {' and '.join(FORMATS)}, not {', '.join(targets)}", fix=EXPORT_THEM)
    if labels is not None:
        read_labels(labels)


def check_folder(folder: str | Path) -> None:
    """Raise UsageError where ``folder`` is a file or holds anything that :func:`write_assets` would not write."""
    folder = Path(folder)
    if folder.is_dir():
        others = sorted(p.name for p in folder.iterdir() if p.name not in OWN_FILES)
        if others:
            raise UsageError(f"{folder} holds other files: {', '.join(others[:5])}", fix="give a folder that is empty or of its own")
    elif folder.exists():
        raise UsageError(f"{folder} is a file", fix="give a folder for the app's assets")


def _tables(graph: Graph, target: str) -> dict[str, Numerics]:
    """ABI -> what the app's runtime of ``target`` computes there; without those that can't execute the graph."""
    tables = {abi: get_numerics(f"{FORMATS[target][1]}@{family_of(abi)}") for abi in ABIS}
    return {abi: table for abi, table in tables.items() if not table.refusals(graph)}


def _format(graph: Graph, runtime: str, file: str, tables: dict[str, Numerics]) -> dict[str, Any]:
    return {
        "runtime": runtime,
        "file": file,
        "expected": {abi: {"numerics": t.name, "declared_lsb": t.declared_lsb(graph) or 0} for abi, t in tables.items()},
    }


def _interface(graph: Graph) -> dict[str, Any]:
    """The fields of app.json that tell what goes in and comes out."""
    described = describe(graph)
    image = _image(graph)
    shape = graph.tensors[graph.outputs[0]].shape
    # one score per class; what has the input's own shape is a reconstruction
    classes = prod(shape) == prod(shape[-1:]) > 1 and shape != graph.tensors[graph.inputs[0]].shape
    return {
        "kind": "features" if image is None else "image",
        "task": "classes" if classes else "values",
        "inputs": described["inputs"],
        "outputs": described["outputs"],
        "image": image,
    }


def _image(graph: Graph) -> dict[str, Any] | None:
    """How the app turns 8-bit pixels into the input, or None where the network does not take one image.

    An image is a single input of rank 4 for one sample with three channels, or with one channel and as wide as high.
    The 256 levels go to the 256 codes of the input's own quantization, so that black and white are the ends of the
    calibrated range: value = (pixel - mean) * scale for each channel.
    """
    input_type = graph.tensors[graph.inputs[0]]
    shape = input_type.shape
    if len(graph.inputs) > 1 or len(shape) != 4 or shape[0] != 1:
        return None
    channels_first = shape[1] in (1, 3) and graph.inputs[0] not in graph.metadata.get("nhwc_io", "").split(",")
    layout, (height, width, channels) = ("NCHW", (*shape[2:], shape[1])) if channels_first else ("NHWC", shape[1:])
    codes = _codes(graph)
    if codes is None or codes.dtype != "int8" or not (channels == 3 or (channels == 1 and height == width)):
        return None
    low, _ = codes.code_bounds
    return {
        "layout": layout,
        "height": height,
        "width": width,
        "channels": channels,
        "mean": [codes.zero_point - low] * channels,
        "scale": [codes.scale] * channels,
    }


def _codes(graph: Graph) -> TensorType | None:
    """The type of the first input once quantized, None where that is not the first thing that happens to its values."""
    name = graph.inputs[0]
    while graph.tensors[name].quantization is None:
        readers = graph.consumers().get(name, [])
        if len(readers) != 1 or readers[0].op not in (*MOVES, "quantize"):
            return None
        name = readers[0].outputs[0]
    return graph.tensors[name]


def read_labels(path: str | Path) -> list[str]:
    """The lines of a labels file without space around them and without empty ones at the end.

    Raises: UsageError: a file that can't be read, holds no UTF-8 text, or has an empty line among the others.
    """
    try:
        names = [line.strip() for line in Path(path).read_text("utf-8").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"can't read labels {path}: {exc}", fix="give a UTF-8 text file with one name per line") from exc
    if not all(names):
        raise UsageError(f"labels {path}: line {names.index('') + 1} is empty", fix="give one name per output")
    return names


def _labels(path: str | Path, count: int) -> bytes:
    """The labels file with plain line ends."""
    names = read_labels(path)
    if len(names) != count:
        raise UsageError(f"{path} has {len(names)} labels, the network has {count} outputs", fix="give one name per output")
    return ("\n".join(names) + "\n").encode()
