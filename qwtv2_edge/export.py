"""The whole job: a network and calibration data in, a folder of artifacts with their proof out.

load -> capture -> quantize (calibrate, compensate, fold) -> emit every target -> verify every runtime -> evaluate
-> write. The folder is made beside its final place and moved there whole; on any error nothing appears. Equal
inputs give equal bytes in every file, but for the measured fields of report.json (``MEASURED``).
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import platform
import resource
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from qwtv2_edge.backends import Artifact, EmitOptions, backend_for, numerics_among
from qwtv2_edge.data import Dataset, open_data
from qwtv2_edge.errors import UsageError
from qwtv2_edge.evaluation import Evaluation, Progress, evaluate, silent, tables_here
from qwtv2_edge.files import make_folder, write_atomic
from qwtv2_edge.firmware import GOLDEN_VECTORS, complete
from qwtv2_edge.inspection import describe
from qwtv2_edge.ir import serde
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.metrics import default_metric
from qwtv2_edge.quantization import QuantizedModel, Recipe, quantize
from qwtv2_edge.report.page import need_jinja, render
from qwtv2_edge.verification.runtimes import golden_vectors, verify

SCHEMA_VERSION = 1
DEFAULT_TARGETS = ("tflite", "executorch-xnnpack")
#: fields of report.json that are measured anew by each run; everything else depends on the inputs alone
MEASURED = ("seconds", "peak_rss_bytes")
#: samples in golden.npz
GOLDEN_SAMPLES = 8
#: real samples that verify runs beside its edge patterns; evaluation compares every byte of its own samples too
VERIFY_SAMPLES = 32


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes:
        model: spec for ``frontend.load.load_module``: module:factory, file.py:factory or a .pt2 file.
        calibration: anything ``data.open_data`` takes.
        evaluation: the same, with labels, or None.
        recipe: the user's choices.
        targets: keys of ``backends.TARGETS``.
        metric: key of ``metrics.METRICS``; "" chooses by the labels.
        name: of the network in reports; "" takes the spec.
    """

    model: str
    calibration: Any
    evaluation: Any = None
    recipe: Recipe = field(default_factory=Recipe)
    targets: tuple[str, ...] = DEFAULT_TARGETS
    metric: str = ""
    name: str = ""


@dataclass(frozen=True)
class Export:
    """What came out: the content of report.json, the quantized model, and the artifacts by target."""

    report: dict[str, Any]
    quantized: QuantizedModel
    artifacts: Mapping[str, Artifact]

    @property
    def ok(self) -> bool:
        """Whether every check that was run held."""
        return bool(self.report["ok"])

    @property
    def unproved(self) -> tuple[str, ...]:
        """Targets none of whose runtimes is here."""
        return tuple(t for t in self.artifacts if not any(numerics_among(n, self.artifacts).target == t for n in self.report["verify"]))


def export(request: Request, out: str | Path, progress: Progress = silent) -> Export:
    """Do the whole job and write the folder ``out``.

    Args:
        request: what to do.
        out: folder to create; one that exists keeps its other files.
        progress: called as (stage, done, total).
    Returns: the result, also when a check failed (see ``Export.ok``).
    Raises: any QwtEdgeError; then nothing is written.
    """
    need_jinja()
    for target in request.targets:
        backend_for(target)
    with staged_folder(out) as folder:
        result, files = _work(request, progress)
        for name, data in files.items():
            make_folder((folder / name).parent)
            write_atomic(folder / name, data)
    return result


def _work(request: Request, progress: Progress) -> tuple[Export, dict[str, bytes]]:
    """Everything but the disk."""
    from qwtv2_edge.frontend.load import load_module
    from qwtv2_edge.frontend.torch_export import capture

    clock = Clock()
    with clock("capture"):
        progress("capture", 0, 0)
        module, example = load_module(request.model)
        if example is None and hasattr(module, "forward"):
            example = example_inputs(module, request.calibration)
        if hasattr(module, "eval") and hasattr(module, "forward"):
            module.eval()  # an artifact is for inference, whatever mode the factory left
        graph = capture(module, example)
    name = request.name or short_spec(request.model)
    with clock("quantize"):
        quantized = quantize(graph, request.calibration, request.recipe, progress)
    integer, legal = quantized.graph, quantized.float_graph
    calibration = open_data(request.calibration, integer, purpose="calibration")
    evaluation = None if request.evaluation is None else open_data(request.evaluation, integer, purpose="evaluation")

    made_from = _made_from(request, graph, name, calibration, evaluation)
    manifest_hash = hashlib.sha256(to_json(made_from)).hexdigest()
    with clock("emit"):
        artifacts: dict[str, Artifact] = {}
        for i, target in enumerate(request.targets):
            progress("emit", i, len(request.targets))
            artifact = backend_for(target).emit(integer, target, EmitOptions({"manifest_sha256": manifest_hash}))
            artifacts[target] = complete(artifact, integer, next((evaluation or calibration).batches(GOLDEN_VECTORS)))
        progress("emit", len(request.targets), len(request.targets))
    tables = tables_here(request.targets)
    numerics = [n for n, table in tables.items() if not table.refusals(integer)]
    verified: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    with clock("verify"):
        few = (evaluation or calibration).sample(VERIFY_SAMPLES, request.recipe.seed)
        for artifact in artifacts.values():
            names = [n for n, table in tables.items() if table.target == artifact.target]
            for n, result in verify(integer, artifact, few, names, progress=_named(progress, "verify")).results.items():
                if result.status in ("missing", "refused"):
                    skipped[n] = f"{result.error}; {result.fix}" if result.fix else result.error
                    if result.status == "refused" and n in numerics:
                        numerics.remove(n)
                else:
                    verified[n] = result.to_json()
    measured = Evaluation(metric="")
    if evaluation is not None:
        metric = request.metric or default_metric(
            integer.tensors[integer.inputs[0]].shape, integer.tensors[integer.outputs[0]].shape, evaluation.labels
        )
        with clock("evaluate"):
            measured = evaluate(
                integer,
                evaluation,
                numerics,
                artifacts={t: a.data for t, a in artifacts.items()},
                metric=metric,
                float_graph=legal,
                float_data=open_data(request.evaluation, legal, purpose="evaluation"),
                progress=progress,
            )
            for n in verified:
                verified[n] = with_evaluation(n, verified[n], measured, integer, artifacts, evaluation, progress)
    with clock("golden"):
        golden = golden_vectors(integer, next((evaluation or calibration).batches(GOLDEN_SAMPLES)), numerics)

    description = describe(integer)
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "ok": all(v["ok"] for v in verified.values()),
        "tool": made_from["tool"],
        "model": {
            **made_from["model"],
            "graph_hash": serde.graph_hash(integer),
            **{k: description[k] for k in ("inputs", "outputs", "macs", "weight_bytes", "arena_bytes", "op_counts")},
        },
        "recipe": request.recipe.to_mapping(),
        "data": {"calibration": made_from["calibration"], "evaluation": made_from["evaluation"]},
        "metric": measured.metric,
        "float_metric": measured.float_metric,
        "metrics": {**measured.simulated, **measured.measured},
        "metrics_simulated": measured.simulated,
        "agreement": {n: {"top1": a.top1, "sqnr_db": a.sqnr_db} for n, a in measured.agreement.items()},
        "verify": verified,
        "skipped": {**skipped, **measured.skipped},
        "parity": [
            {"a": a, "b": b, "values": d.values, "different": d.different, "max_lsb": d.max_lsb} for (a, b), d in measured.parity.items()
        ],
        "compensation": [compensation_entry(c) for c in quantized.report.compensation],
        "network": {
            "chosen": quantized.report.network.chosen,
            "reason": quantized.report.network.reason,
            "error": dict(quantized.report.network.error),
            "sqnr_db": dict(quantized.report.network.sqnr_db),
        },
        "notes": list(quantized.report.notes),
        "artifacts": {t: artifact_entry(a) for t, a in artifacts.items()},
        "ops": description["ops"],
        "versions": made_from["versions"],
        "environment": {"system": platform.system(), "machine": platform.machine()},
    }
    report = plain(report)
    page = render(report)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "made_from": made_from,
        "made_from_sha256": manifest_hash,
        "graph_hash": serde.graph_hash(integer),
        "artifacts": {t: {"file": a.file, "bytes": len(a.data), "sha256": a.sha256} for t, a in artifacts.items()},
        "numerics": numerics,
    }
    report["seconds"] = clock.seconds
    report["peak_rss_bytes"] = peak_rss_bytes()
    files = {
        "model.qir": serde.to_bytes(integer),
        **{a.file: a.data for a in artifacts.values()},
        **{f"{t}/{name}": data for t, a in artifacts.items() for name, data in a.files.items()},
        "golden.npz": npz_bytes(golden),
        "report.json": to_json(report),
        "report.html": page.encode(),
        # last: a folder with a manifest is complete
        "manifest.json": to_json(plain(manifest)),
    }
    return Export(report, quantized, artifacts), files


# ---------------------------------------------------------------- parts of the report


def artifact_entry(artifact: Artifact) -> dict[str, Any]:
    """One entry of report.json's "artifacts"."""
    return {
        "file": artifact.file,
        "bytes": len(artifact.data),
        "sha256": artifact.sha256,
        "ops": list(artifact.ops),
        "notes": list(artifact.notes),
    }


def compensation_entry(choice: Any) -> dict[str, Any]:
    """One entry of report.json's "compensation", from a ``compensation.fit.NodeChoice``."""
    return {**asdict(choice), "snr_before_db": choice.snr_before_db, "snr_after_db": choice.snr_after_db}


def with_evaluation(
    numerics: str,
    entry: dict[str, Any],
    measured: Evaluation,
    graph: Graph,
    artifacts: Mapping[str, Artifact],
    data: Dataset,
    progress: Progress,
) -> dict[str, Any]:
    """A "verify" entry with the evaluation samples counted in; where they differ, verify runs on them to find the node."""
    if numerics in measured.failed:
        return {**entry, "status": "crashed", "ok": False, "error": measured.failed[numerics]}
    tally = measured.compared[numerics]
    if tally.different:
        artifact = artifacts[numerics_among(numerics, artifacts).target]
        return verify(graph, artifact, data, [numerics], progress=_named(progress, "locate")).results[numerics].to_json()
    return {
        **entry,
        "samples": entry["samples"] + tally.samples,
        "outputs_compared": entry["outputs_compared"] + tally.values,
    }


def _named(progress: Progress, stage: str) -> Progress:
    """``progress`` with ``stage`` in front of what is reported."""
    return lambda what, done, total: progress(f"{stage} {what}", done, total)


def _made_from(request: Request, graph: Graph, name: str, calibration: Dataset, evaluation: Dataset | None) -> dict[str, Any]:
    """Everything the artifacts depend on, by hash and version."""
    return {
        "tool": {"name": "qwtv2-edge", "version": version("qwtv2-edge")},
        "model": {"name": name, "spec": short_spec(request.model), "sha256": serde.graph_hash(graph)},
        "recipe": request.recipe.to_mapping(),
        "seed": request.recipe.seed,
        "calibration": data_entry(request.calibration, calibration),
        "evaluation": None if evaluation is None else data_entry(request.evaluation, evaluation),
        "targets": list(request.targets),
        "versions": installed_versions(),
    }


def data_entry(source: Any, data: Dataset) -> dict[str, Any]:
    """Count and SHA-256 of a data set: of the file where it is one, else of names, shapes and values."""
    if isinstance(source, (str, Path)):
        digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    else:
        hasher = hashlib.sha256()
        for arrays in data.batches(256):
            for name, a in zip(data.names, arrays, strict=True):
                hasher.update(f"{name} {a.dtype} {a.shape}\n".encode())
                hasher.update(np.ascontiguousarray(a).tobytes())
        digest = hasher.hexdigest()
    return {"samples": data.count, "sha256": digest}


def short_spec(spec: str) -> str:
    """A model spec without its folder, so that results do not depend on where the file lies."""
    return Path(spec).name


#: distributions whose versions results may depend on
DISTRIBUTIONS = ("numpy", "torch", "executorch", "ai-edge-litert", "tensorflow", "tflite-micro")


def installed_versions() -> dict[str, str]:
    """Python and every installed distribution of DISTRIBUTIONS."""
    out = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def example_inputs(module: Any, calibration: Any) -> tuple[np.ndarray, ...]:
    """The first calibration sample, for a factory that returned a bare module: float32, but for int32 and int64, which are indices.

    Raises: UsageError where the calibration file does not name the module's arguments.
    """
    names = [p.name for p in inspect.signature(module.forward).parameters.values() if p.default is p.empty]
    if not isinstance(calibration, (str, Path)):
        raise UsageError("the factory returned no example inputs", fix="return (module, example_inputs)")
    try:
        with np.load(calibration) as file:
            found = [n if n in file.files else "x" if len(names) == 1 and "x" in file.files else "" for n in names]
            if not all(found):
                raise UsageError(
                    f"{calibration} has {', '.join(file.files)}, the module's arguments are {', '.join(names)}",
                    fix="name each array as the module's argument, or return (module, example_inputs) from the factory",
                )
            firsts = [file[n][:1] for n in found]
            return tuple(a if a.dtype in (np.int32, np.int64) else np.ascontiguousarray(a, np.float32) for a in firsts)
    except (OSError, ValueError, zipfile.BadZipFile) as exc:
        raise UsageError(f"can't read {calibration}: {exc}", fix="give an .npz file") from exc


# ---------------------------------------------------------------- helpers


class Clock:
    """Wall seconds per stage: ``with clock("emit"): ...``."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = round(time.monotonic() - start, 3)


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def plain(value: Any) -> Any:
    """``value`` with JSON types only: numpy scalars unwrapped, tuples as lists, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not isfinite(value):
        return None
    return value


def to_json(value: Any) -> bytes:
    """UTF-8 JSON, indented, with a final newline. The keys keep their order."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An ``.npz`` in memory; the same arrays give the same bytes (NumPy writes a fixed date into the archive)."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(arrays))  # type: ignore[arg-type]
    return buffer.getvalue()


@contextmanager
def staged_folder(out: str | Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its place when the block ends well, and is gone when it does not.

    An existing folder keeps files of other names; of ours it gets each one whole, the manifest last.
    Raises: UsageError when ``out`` is a file, or can't be created.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", fix="give a folder as --out")
    made: list[Path] = []
    folder = None
    try:
        with _disk(out):
            for parent in [p for p in reversed(out.absolute().parents) if not p.exists()]:
                parent.mkdir()
                made.append(parent)
            folder = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}."))
        yield folder
        with _disk(out):
            folder.chmod(0o755)
            if not out.exists() or not any(out.iterdir()):
                os.replace(folder, out)
            else:
                for path in sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.name == "manifest.json"):
                    (out / path.relative_to(folder)).parent.mkdir(exist_ok=True)
                    os.replace(path, out / path.relative_to(folder))
        made.clear()
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in reversed(made):
            parent.rmdir()


@contextmanager
def _disk(out: Path) -> Iterator[None]:
    """Turn OSError into UsageError."""
    try:
        yield
    except OSError as exc:
        raise UsageError(f"can't write {out}: {exc.strerror or exc}", fix="check the folder, its permissions and the free space") from exc
