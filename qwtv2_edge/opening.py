"""Opens what a user names on the command line: an export folder, a .qir, a .tflite, a .pte, or generated C."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwtv2_edge.backends import FOLDERS, TARGETS, Artifact, artifact_file, read_artifact
from qwtv2_edge.data import Dataset, open_data
from qwtv2_edge.errors import GraphError, QwtEdgeError, UsageError
from qwtv2_edge.files import read_bytes
from qwtv2_edge.ir import serde
from qwtv2_edge.ir.graph import Graph

GRAPH_FILE = "model.qir"


@dataclass(frozen=True)
class Opened:
    """An integer graph and the artifacts that stand for it.

    Attributes:
        path: as given.
        graph: integer.
        artifacts: target -> artifact; empty for a lone .qir.
        folder: the export folder, or None.
        report: content of its report.json, or empty.
    """

    path: Path
    graph: Graph
    artifacts: Mapping[str, Artifact]
    folder: Path | None = None
    report: Mapping[str, Any] = field(default_factory=dict)


def open_model(path: str | Path) -> Opened:
    """Open an export folder, one file or one target's folder of ours, or any int8 .tflite.

    The graph behind a file of an export folder is the folder's, which knows module paths; any other .tflite is read.

    Raises: UsageError for a missing or unknown file; GraphError for a corrupt one, or an artifact that the manifest
        knows by another hash.
    """
    path = artifact_file(Path(path))
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UsageError(f"{path} does not exist", fix="give an export folder, a .qir, a .tflite, a .pte or a .c")
    if path.suffix == ".qir":
        return Opened(path, serde.load(path), {})
    artifact = read_artifact(path)
    target = artifact.target
    listed = _check_listed(path, artifact)
    beside = graph_beside(path)
    if path.suffix == ".tflite" and not (listed and beside.is_file()):
        from qwtv2_edge import read_tflite

        try:
            return Opened(path, read_tflite(artifact.data), {target: artifact})
        except QwtEdgeError as error:
            error.message = f"{path}: {error.message}"
            raise
    if not beside.is_file():
        raise UsageError(f"{path} holds no readable graph, and there is no {beside}", fix="keep the file in its export folder")
    return Opened(path, serde.load(beside), {target: artifact})


def golden_inputs(opened: Opened) -> Dataset | None:
    """The inputs kept in an export folder, or beside a file of one; None where there are none.

    Raises: UsageError for an export folder whose inputs can't be read.
    """
    path = (opened.folder or _export_folder(opened.path)) / "golden.npz"
    if not path.is_file():
        return None
    try:
        return open_data(path, opened.graph, purpose="golden inputs")
    except UsageError:
        if opened.folder is not None:
            raise
        return None  # a lone file beside some other network's golden.npz


def graph_beside(path: Path) -> Path:
    """Where the graph behind a file of an export folder is; it may not be there."""
    return _export_folder(path) / GRAPH_FILE


def _export_folder(path: Path) -> Path:
    """The export folder that a file would lie in: the one above a target's own folder."""
    above = path.absolute().parent
    return above.parent if FOLDERS.get(above.name) == path.name else above


def _check_listed(path: Path, artifact: Artifact) -> bool:
    """Whether the manifest of an export folder lists the file; its hash is checked then."""
    listing = _export_folder(path) / "manifest.json"
    manifest = _json(listing) if listing.is_file() else {}
    listed = _listed(listing, manifest).get(artifact.target) if "artifacts" in manifest else None
    if listed is None or listed["file"] != artifact.file:
        return False
    _check_hash(path, artifact, listed["sha256"])
    return True


def _folder(path: Path) -> Opened:
    manifest, report = _json(path / "manifest.json"), _report(path / "report.json")
    artifacts = {}
    for target, listed in _listed(path / "manifest.json", manifest).items():
        file = path / Artifact(target, b"").file
        ops = report.get("artifacts", {}).get(target, {}).get("ops", ())
        artifacts[target] = Artifact(target, read_bytes(file), ops=tuple(ops), graph_hash=str(manifest.get("graph_hash", "")))
        _check_hash(file, artifacts[target], listed["sha256"])
    return Opened(path, serde.load(path / GRAPH_FILE), artifacts, folder=path, report=report)


def _listed(path: Path, manifest: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Target -> "file" and "sha256" of each artifact in a manifest. Raises GraphError."""
    try:
        listed = {t: {key: str(a[key]) for key in ("file", "sha256")} for t, a in manifest["artifacts"].items()}
    except (KeyError, TypeError, AttributeError) as exc:
        raise GraphError(f"{path} lists no artifacts", fix="export again") from exc
    for target, entry in listed.items():
        if target not in TARGETS or entry["file"] != Artifact(target, b"").file:
            raise GraphError(f"{path} lists {entry['file']!r} for the target {target!r}, which no export writes", fix="export again")
    return listed


def _report(path: Path) -> dict[str, Any]:
    """What an export told of itself, as far as it is used here. Raises GraphError where that is of another kind."""
    report = _json(path)
    tables = [report.get(key, {}) for key in ("artifacts", "metrics", "data")]
    if not (
        all(isinstance(t, dict) for t in tables)
        and all(isinstance(a, dict) and isinstance(a.get("ops", []), list) for a in tables[0].values())
        and all(v is None or isinstance(v, (int, float)) for v in (report.get("float_metric"), *tables[1].values()))
        and isinstance(report.get("metric") or "", str)
    ):
        raise GraphError(f"{path} is not the report of an export", fix="export again")
    return report


def _check_hash(path: Path, artifact: Artifact, known: str) -> None:
    """Raise GraphError where the manifest knows the artifact by another hash: it was damaged or swapped."""
    if known != artifact.sha256:
        raise GraphError(
            f"{path} has SHA-256 {artifact.sha256[:16]}…, its manifest says {known[:16]}…", fix="copy the file anew, or export again"
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as exc:
        raise GraphError(f"{path} is not valid JSON: {exc}", fix="export again") from exc
    if not isinstance(value, dict):
        raise GraphError(f"{path} is not a JSON object", fix="export again")
    return value
