"""The command ``qwtv2-edge``.

Exit codes: 0 done and every check held, 1 a check failed, 2 wrong usage or bad input, 3 a runtime or tool is
missing, 70 a bug of ours, 130 interrupted. Heavy modules are imported inside the commands that need them.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qwtv2_edge.console import SCHEMA_VERSION, Interrupted, Ui, private_stdout
from qwtv2_edge.errors import MissingToolError, QwtEdgeError, UsageError

if TYPE_CHECKING:
    from qwtv2_edge.export import Export, Request
    from qwtv2_edge.fit import Fit
    from qwtv2_edge.opening import Opened
    from qwtv2_edge.profiling.report import Comparison, ProfileReport
    from qwtv2_edge.verification.report import VerifyReport

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_MISSING, EXIT_BUG, EXIT_INTERRUPTED = 0, 1, 2, 3, 70, 130
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

app = typer.Typer(
    name="qwtv2-edge",
    help="Trained PyTorch networks to phones and microcontrollers as integers, with the bytes known before they ship.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ModelPath = Annotated[Path, typer.Argument(help="An export folder, or a .qir, .tflite or .pte file.", show_default=False)]
NumericsOption = Annotated[list[str] | None, typer.Option("--numerics", help="Only this numerics; repeat for more.", show_default=False)]
AndroidOption = Annotated[
    Path | None, typer.Option("--android-assets", help="Also fill this assets folder of the Android demo app.", show_default=False)
]

#: the options of every command
COMMON: tuple[tuple[str, Any], ...] = (
    ("json", Annotated[bool, typer.Option("--json", help="One JSON document on standard output, nothing else there.")]),
    ("quiet", Annotated[bool, typer.Option("--quiet", help="Nothing but errors.")]),
    ("verbose", Annotated[bool, typer.Option("--verbose", help="Keep warnings and logs, and show tracebacks.")]),
)


class UnexpectedError(Exception):
    """Any exception that is not ours, in words."""


#: what the running command was asked for
_ui = Ui()


def command(name: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Register ``f(ui, ...) -> exit code`` as a command that also takes the common options."""

    def register(f: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(f)
        def wrapper(*, json: bool, quiet: bool, verbose: bool, **kwargs: Any) -> int:
            _ui.json, _ui.quiet, _ui.verbose = json, quiet, verbose
            with _libraries_silenced(verbose):
                return f(_ui, **kwargs)

        own = list(inspect.signature(f, eval_str=True).parameters.values())[1:]
        common = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=a) for n, a in COMMON]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + common
        del wrapper.__wrapped__
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name)(wrapper)
        return f

    return register


# ---------------------------------------------------------------- export and demo


@command("export")
def export_command(
    ui: Ui,
    model: Annotated[str, typer.Argument(help="package.module:factory, path/to/file.py:factory, or a .pt2 file.", show_default=False)],
    calibration: Annotated[Path, typer.Option("--calibration", help=".npz with one array per input.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.", show_default=False)],
    evaluation: Annotated[Path | None, typer.Option("--evaluation", help=".npz with labels y.", show_default=False)] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="TOML file.", show_default=False)] = None,
    target: Annotated[list[str] | None, typer.Option("--target", help="Repeat for more (see `targets`).", show_default=False)] = None,
    metric: Annotated[str, typer.Option("--metric", help="top1, top5, auc, mse or cosine; chosen by the labels if not given.")] = "",
    android_assets: AndroidOption = None,
    labels: Annotated[Path | None, typer.Option("--labels", help="Class names for the app, one per line.", show_default=False)] = None,
) -> int:
    """Quantize, compensate, emit, verify in the real runtimes, and measure a network."""
    from qwtv2_edge.export import DEFAULT_TARGETS, Request, export
    from qwtv2_edge.metrics import new_metric
    from qwtv2_edge.quantization import Recipe

    for path in (calibration, evaluation):
        if path is not None and not path.is_file():
            raise UsageError(f"{path} is not a file", fix="give an .npz file")
    if metric:
        new_metric(metric)
    if labels and not android_assets:
        raise UsageError("--labels is for the demo app", fix="give --android-assets too")
    request = Request(
        model=model,
        calibration=calibration,
        evaluation=evaluation,
        recipe=Recipe.from_toml(recipe) if recipe else Recipe(),
        targets=tuple(dict.fromkeys(target or DEFAULT_TARGETS)),
        metric=metric,
    )
    check_assets(android_assets, request, labels)
    with ui.progress() as progress:
        result = export(request, out, progress)
    write_android_assets(ui, out, android_assets, labels)
    ui.result({**result.report, "out": str(out)}, lambda console: show_export(console, result, out))
    return export_exit_code(ui, result)


def check_assets(folder: Path | None, request: Request, labels: Path | None = None) -> None:
    """``android.check_request``, where the app's assets were asked for."""
    if folder is not None:
        from qwtv2_edge.android import check_request

        check_request(folder, labels, request.targets)


def write_android_assets(ui: Ui, out: Path, folder: Path | None, labels: Path | None = None) -> None:
    """Fill the demo app's assets from the export folder ``out``, where they were asked for."""
    if folder is not None:
        from qwtv2_edge.android import write_assets

        ui.log(f"{folder}: {', '.join(write_assets(open_path(out), folder, labels))}")


def export_exit_code(ui: Ui, result: Export) -> int:
    """1 after a failed check, 3 where a target could not be run at all, else 0."""
    if not result.ok:
        return EXIT_FAILED
    if result.unproved:
        why = "; ".join(sorted(set(result.report["skipped"].values())))
        ui.log(f"not proved: no runtime for {', '.join(result.unproved)} is installed ({why})")
        return EXIT_MISSING
    return EXIT_OK


@command("demo")
def demo_command(
    ui: Ui,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("demo-out"),
    android_assets: AndroidOption = None,
) -> int:
    """Do the main job on a small residual network and handwritten digits that come with the package."""
    from qwtv2_edge.demo.run import compare_compensation, demo_request
    from qwtv2_edge.export import export

    request = demo_request()
    check_assets(android_assets, request)
    with ui.progress() as progress:
        result = export(request, out, progress)
        comparison = compare_compensation(progress)
    write_android_assets(ui, out, android_assets)

    def show(console: Console) -> None:
        show_export(console, result, out)
        console.print("\n4-bit weights, 8-bit activations: what compensation gives back", style="bold")
        table = _table("compensation", "top-1 >", "output SQNR >")
        table.add_row("float", f"{result.report['float_metric'] * 100:.2f} %", "")
        for row in comparison:
            table.add_row(row.compensation, f"{row.top1 * 100:.2f} %", f"{row.sqnr_db:.1f} dB")
        console.print(table)

    ui.result({**result.report, "out": str(out), "four_bit": [row.to_json() for row in comparison]}, show)
    return export_exit_code(ui, result)


def show_export(console: Console, result: Export, out: Path) -> None:
    """The result of an export, for people."""
    report = result.report
    accuracy = _formatter(report["metric"])
    table = _table("numerics", "runtime and simulator", "samples >", "values >", f"{report['metric'] or 'metric'} >", "SQNR to float >")
    if report["float_metric"] is not None:
        table.add_row("float", "", "", "", accuracy(report["float_metric"]), "")
    for name, v in report["verify"].items():
        agreement = report["agreement"].get(name)
        value = report["metrics"].get(name)
        sqnr = f"{agreement['sqnr_db']:.1f} dB" if agreement and agreement["sqnr_db"] is not None else ""
        table.add_row(name, _verdict(v), f"{v['samples']:,}", f"{v['outputs_compared']:,}", "" if value is None else accuracy(value), sqnr)
    for name, why in report["skipped"].items():
        table.add_row(name, f"not run: {why.splitlines()[0]}", "", "", "", "")
    console.print(table)
    kinds = [c["kind"] for c in report["compensation"]]
    console.print(
        f"compensation: {kinds.count('cwac')} ops gain and offset, {kinds.count('offset')} offset, {kinds.count('none')} none; "
        f"whole network: {report['network']['chosen']}"
    )
    for target, a in report["artifacts"].items():
        console.print(f"{out / a['file']}  {a['bytes']:,} bytes, {len(a['ops'])} ops ({target})")
    console.print(f"{out / 'report.html'}")
    for name, v in report["verify"].items():
        if not v["ok"] and v["first_mismatch"]:
            console.print(f"{name}: {escape(v['first_mismatch']['text'])}", style="red")
        elif not v["ok"]:
            console.print(f"{name}: {escape(v.get('error', ''))}", style="red")


def _verdict(v: dict[str, Any]) -> str:
    if v["status"] == "crashed":
        return "[red]crashed[/]"
    if not v["mismatches"]:
        return "[green]every byte equal[/]"
    words = f"{v['mismatches']:,} values differ, by {v['max_lsb']} LSB at most"
    return f"{words} (declared)" if v["ok"] else f"[red]{words}[/]"


# ---------------------------------------------------------------- files


@command("verify")
def verify_command(
    ui: Ui,
    path: ModelPath,
    numerics: NumericsOption = None,
    inputs: Annotated[Path | None, typer.Option("--inputs", help=".npz; edge patterns always run too.", show_default=False)] = None,
    samples: Annotated[int | None, typer.Option("--samples", help="At most this many of the inputs.", min=1, show_default=False)] = None,
    device: Annotated[
        str, typer.Option("--device", help="host, qemu:cortex-a53|cortex-a76|max, ssh:[USER@]HOST, or board:cortex-m3|m4|m7|m33|m55.")
    ] = "host",
) -> int:
    """Run artifacts in their real runtimes and compare every byte with the simulator."""
    from qwtv2_edge.backends import emit, never_on, numerics_among
    from qwtv2_edge.evaluation import tables_on_family
    from qwtv2_edge.export import DEFAULT_TARGETS
    from qwtv2_edge.numerics import MICROCONTROLLERS
    from qwtv2_edge.opening import golden_inputs
    from qwtv2_edge.runners.device import open_place
    from qwtv2_edge.verification.runtimes import verify

    place = open_place(device)
    opened = open_path(path)
    artifacts = dict(opened.artifacts)
    wanted: dict[str, list[str]] = {}
    for name in numerics or ():
        wanted.setdefault(numerics_among(name, artifacts).target, []).append(name)
    if not artifacts:  # a lone .qir
        artifacts = {t: emit(opened.graph, t) for t in wanted or DEFAULT_TARGETS}
    absent = [t for t in wanted if t not in artifacts]
    if absent:
        raise UsageError(f"{path} has no {', '.join(absent)} artifact", fix=f"it has: {', '.join(artifacts)}")
    source: Any = inputs if inputs is not None else golden_inputs(opened)
    able = {n: t for n, t in tables_on_family(list(artifacts), place.family).items() if not place.lacks(t.runner)}
    left_out = {} if wanted else never_on(artifacts, able, place.lacks)
    reports: dict[str, VerifyReport] = {}
    with ui.progress() as progress:
        for target, artifact in artifacts.items():
            names = wanted.get(target, []) if wanted else [n for n, t in able.items() if t.target == target]
            if names:
                reports[target] = verify(opened.graph, artifact, source, names, samples, progress, place)
    results = {n: r for report in reports.values() for n, r in report.results.items()}
    if not results:
        of_a_board = "export with --target c; of a .qir verify --numerics c"
        raise UsageError(
            f"nothing of {path} runs on {place.name}: {in_groups(left_out)}", fix=of_a_board if place.family == MICROCONTROLLERS else ""
        )

    def show(console: Console) -> None:
        for r in results.values():
            console.print(escape(r.text()), style="" if r.ok else "red", soft_wrap=True)
        if left_out:
            console.print(f"left out, {place.name} can't run them: {escape(in_groups(left_out))}", soft_wrap=True)

    verified = {n: r.to_json() for n, r in results.items()}
    ui.result({"ok": all(r.ok for r in results.values()), "device": place.name, "verify": verified, "left_out": left_out}, show)
    if not all(r.ok for r in results.values()):
        return EXIT_FAILED
    missing = [r for r in results.values() if r.status == "missing"]
    if missing and (numerics or len(missing) == len(results)):
        ui.log("\n".join(f"{r.numerics}: {r.error}; {r.fix}" for r in missing))
        return EXIT_MISSING
    return EXIT_OK


def in_groups(reasons: Mapping[str, str]) -> str:
    """ "a, b (why); c (why)" of name -> why."""
    groups: dict[str, list[str]] = {}
    for name, why in reasons.items():
        groups.setdefault(why, []).append(name)
    return "; ".join(f"{', '.join(names)} ({why})" for why, names in groups.items())


@command("simulate")
def simulate_command(
    ui: Ui,
    path: Annotated[Path, typer.Argument(help="A .qir or an int8 .tflite file.", show_default=False)],
    inputs: Annotated[Path, typer.Option("--inputs", help=".npz with one array per input.", show_default=False)],
    numerics: Annotated[str, typer.Option("--numerics", help="Whose bytes to predict (see `numerics`).", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help=".npz to write: one array per output.", show_default=False)],
) -> int:
    """Predict the bytes a runtime gives, without running it."""
    import numpy as np

    from qwtv2_edge.backends import get_numerics
    from qwtv2_edge.data import open_data
    from qwtv2_edge.export import npz_bytes
    from qwtv2_edge.files import write_atomic
    from qwtv2_edge.simulator.run import batch_size, run

    table = get_numerics(numerics)
    graph = open_path(path).graph
    table.require(graph)
    data = open_data(inputs, graph, purpose="inputs")
    parts: list[list[np.ndarray]] = []
    done = 0
    with ui.progress() as progress:
        for arrays in data.batches(batch_size(graph)):
            parts.append(run(graph, arrays, table))
            done += len(arrays[0])
            progress("simulate", done, data.count or 0)
    outputs = {name: np.concatenate([p[i] for p in parts]) for i, name in enumerate(graph.outputs)}
    write_atomic(out, npz_bytes(outputs))
    described = {n: {"shape": list(a.shape), "dtype": a.dtype.name} for n, a in outputs.items()}
    ui.result(
        {"numerics": numerics, "samples": done, "out": str(out), "outputs": described},
        lambda console: console.print(
            f"{out}: {done} samples, " + ", ".join(f"{n} {d['dtype']} {d['shape']}" for n, d in described.items())
        ),
    )
    return EXIT_OK


@command("evaluate")
def evaluate_command(
    ui: Ui,
    path: ModelPath,
    data: Annotated[Path, typer.Option("--data", help=".npz with labels y.", show_default=False)],
    metric: Annotated[str, typer.Option("--metric", help="top1, top5, auc, mse or cosine; chosen by the labels if not given.")] = "",
    numerics: NumericsOption = None,
) -> int:
    """Measure accuracy, simulated and in the real runtimes, and compare their bytes on the way."""
    from qwtv2_edge.backends import TARGETS, all_numerics, get_numerics
    from qwtv2_edge.data import open_data
    from qwtv2_edge.evaluation import evaluate, tables_here
    from qwtv2_edge.metrics import default_metric, new_metric

    opened = open_path(path)
    graph = opened.graph
    if numerics:
        names = [get_numerics(n).name for n in numerics]
    else:
        names = [n for n, table in tables_here(list(opened.artifacts or TARGETS)).items() if not table.refusals(graph)]
    samples = open_data(data, graph, purpose="evaluation")
    metric = metric or default_metric(graph.tensors[graph.inputs[0]].shape, graph.tensors[graph.outputs[0]].shape, samples.labels)
    if not metric:
        raise UsageError(f"{data} has no labels y, nothing to measure against", fix="add y, or give --metric")
    new_metric(metric)
    with ui.progress() as progress:
        result = evaluate(
            graph, samples, names, artifacts={t: a.data for t, a in opened.artifacts.items()}, metric=metric, progress=progress
        )
    declared = {n: t.promise != "exact" or t.declared_lsb(graph) is not None for n, t in all_numerics().items()}
    ok = not result.failed and not any(t.different and not declared[n] for n, t in result.compared.items())
    document = {
        "ok": ok,
        "metric": metric,
        "samples": result.samples,
        "metrics": {**result.simulated, **result.measured},
        "metrics_simulated": result.simulated,
        "verify": {
            n: {"samples": t.samples, "outputs_compared": t.values, "mismatches": t.different, "max_lsb": t.max_lsb}
            for n, t in result.compared.items()
        },
        "skipped": result.skipped,
        "failed": result.failed,
    }
    text = _formatter(metric)

    def show(console: Console) -> None:
        console.print(f"{metric}, {result.samples} samples")
        table = _table("numerics", "simulated >", "in its runtime >", "values that differ >")
        for n, value in result.simulated.items():
            tally = result.compared.get(n)
            measured = text(result.measured[n]) if n in result.measured else "failed" if n in result.failed else "not run"
            table.add_row(n, text(value), measured, f"{tally.different:,} of {tally.values:,}" if n in result.measured and tally else "")
        console.print(table)
        for n, message in result.failed.items():
            console.print(f"{n}: {escape(message)}", style="red")

    ui.result(document, show)
    if not ok:
        return EXIT_FAILED
    if numerics and opened.artifacts and result.skipped:
        ui.log("\n".join(f"{n}: {why}" for n, why in result.skipped.items()))
        return EXIT_MISSING
    return EXIT_OK


@command("profile")
def profile_command(
    ui: Ui,
    path: Annotated[Path, typer.Argument(help="A .tflite, .pte or generated .c file, or the folder of such a target.", show_default=False)],
    device: Annotated[str, typer.Option("--device", help="host, adb[:SERIAL], ssh:[USER@]HOST, qemu:CPU or board:CORE.")] = "host",
    threads: Annotated[list[int] | None, typer.Option("--threads", help="Of the runtime's kernels; repeat to sweep.", min=1)] = None,
    runs: Annotated[
        int | None, typer.Option("--runs", help="Timed runs; about three seconds' worth if not given.", min=1, show_default=False)
    ] = None,
    numerics: Annotated[str | None, typer.Option("--numerics", help="Whose runtime to time.", show_default=False)] = None,
    cores: Annotated[str, typer.Option("--cores", help="Processor cores to stay on, for example 4,5.", show_default=False)] = "",
    samples: Annotated[int, typer.Option("--samples", help="Samples to run and compare; the first is timed.", min=1)] = 1,
    inputs: Annotated[
        Path | None, typer.Option("--inputs", help=".npz; golden.npz of the folder if not given.", show_default=False)
    ] = None,
    tool: Annotated[
        Path | None,
        typer.Option("--tool", help="On phones: benchmark_model or executor_runner, in place of the demo app.", show_default=False),
    ] = None,
    ops: Annotated[bool, typer.Option("--ops/--no-ops", help="Times per op too, where the runtime can tell.")] = True,
    out: Annotated[Path | None, typer.Option("--out", help="Write the JSON document here too.", show_default=False)] = None,
) -> int:
    """Time an artifact in its runtime, on any device, and check that very run's bytes."""
    from qwtv2_edge.backends import artifact_file, read_artifact
    from qwtv2_edge.export import to_json
    from qwtv2_edge.files import check_writable, write_atomic
    from qwtv2_edge.opening import golden_inputs, graph_beside
    from qwtv2_edge.profiling.measure import profile
    from qwtv2_edge.runners.device import open_device

    path = artifact_file(path)
    if path.is_dir():
        held = ", ".join(str(path / a.file) for a in open_path(path).artifacts.values())
        raise UsageError(f"{path} is a folder with several artifacts", fix=f"give one of them: {held}")
    if not path.is_file():
        raise UsageError(f"{path} does not exist", fix="give a .tflite, .pte or .c file")
    read_artifact(path)
    if out is not None:
        check_writable(out)
    graph = None
    source: Any = inputs
    if path.suffix == ".tflite" or graph_beside(path).is_file():
        opened = open_path(path)
        graph = opened.graph
        source = golden_inputs(opened) if inputs is None else inputs
    reports: list[ProfileReport] = []

    def show(console: Console) -> None:
        for r in reports:
            console.print(escape(r.text()))
            show_ops(console, r)

    def publish() -> None:
        document = reports[0].to_json() if len(reports) == 1 else {"sweep": [r.to_json() for r in reports]}
        ui.result(document, show)
        if out is not None:
            write_atomic(out, to_json({"schema_version": SCHEMA_VERSION, **document}))

    sweep = list(dict.fromkeys(threads or [1]))
    with ui.progress() as progress:
        opened_device = open_device(device, tool)
        for i, count in enumerate(sweep):
            progress("profile", i, len(sweep))
            try:
                profiled = profile(
                    path,
                    source,
                    opened_device,
                    count,
                    runs,
                    graph,
                    numerics,
                    samples=samples,
                    cores=core_numbers(cores),
                    ops=ops,
                    partial=reports.append,
                )
            except BaseException:
                if reports:
                    publish()
                raise
            reports.append(profiled)
    publish()
    return EXIT_FAILED if any(r.outputs_match is False for r in reports) else EXIT_OK


def core_numbers(text: str) -> tuple[int, ...]:
    """ "4,5" as numbers."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"'{text}' is no list of processor cores", fix="for example --cores 4,5") from None


def show_ops(console: Console, report: ProfileReport) -> None:
    """The times of the slowest nodes, for people."""
    from qwtv2_edge.profiling.ops import text_lines

    for line in text_lines(report.ops):
        console.print(f"  {escape(line)}", soft_wrap=True)
    if report.ops_note:
        console.print(f"  per op: {escape(report.ops_note)}", soft_wrap=True)


@command("inspect")
def inspect_command(ui: Ui, path: ModelPath) -> int:
    """Ops, tensors, scales, multiply-accumulates, weight and arena bytes."""
    from qwtv2_edge.export import plain
    from qwtv2_edge.inspection import describe
    from qwtv2_edge.report.page import in_bytes

    opened = open_path(path)
    found = plain(describe(opened.graph))
    found["artifacts"] = {t: {"bytes": len(a.data), "sha256": a.sha256} for t, a in opened.artifacts.items()}

    def show(console: Console) -> None:
        for kind in ("inputs", "outputs"):
            for t in found[kind]:
                console.print(f"{kind[:-1]} {escape(t['name'])}: {t['dtype']} {escape(str(t['shape']))}{_scale_text(t)}")
        table = _table("#", "node", "op", "output", "scale >", "zero >", "MACs >", "weights >")
        for o in found["ops"]:
            t = o["outputs"][0]
            scale = t.get("scale")
            table.add_row(
                str(o["index"]),
                escape(o["node"]),
                o["op"],
                f"{t['dtype']} {'x'.join(map(str, t['shape']))}",
                f"{scale:.6g}" if isinstance(scale, float) else "",
                str(t.get("zero_point", "")),
                f"{o['macs']:,}" if o["macs"] else "",
                f"{o['weight_bytes']:,}" if o["weight_bytes"] else "",
            )
        console.print(table)
        console.print(
            f"{len(found['ops'])} ops, {found['macs']:,} MACs, constants {in_bytes(found['weight_bytes'])}, "
            f"activation arena {in_bytes(found['arena_bytes'])} (planned, without kernel scratch)"
        )

    ui.result(found, show)
    return EXIT_OK


@command("fit")
def fit_command(
    ui: Ui,
    path: ModelPath,
    target: Annotated[str, typer.Option("--target", help="cortex-m0plus, -m3, -m4, -m7, -m33, -m55, or ethos-u55-128", show_default=False)],
    runtime: Annotated[str, typer.Option("--runtime", help="tflite-micro, c or executorch-cortex-m.")] = "tflite-micro",
    flash: Annotated[str | None, typer.Option("--flash", help="Budget, e.g. 512K or 1M.", show_default=False)] = None,
    ram: Annotated[str | None, typer.Option("--ram", help="Budget, e.g. 128K.", show_default=False)] = None,
    count: Annotated[bool, typer.Option("--instructions", help="Count instructions and stack on an emulated board (--runtime c).")] = False,
) -> int:
    """Flash and RAM on a microcontroller, before there is a board; fails where a budget is exceeded, and says what to change."""
    from qwtv2_edge.fit import fit, parse_device, parse_size

    budgets = {name: 0 if text is None else parse_size(text) for name, text in (("flash", flash), ("ram", ram))}
    device = parse_device(target)
    opened = open_path(path)
    samples = first_sample(opened) if count else None
    with ui.progress() as progress:
        progress("fit", 0, 0)
        found = fit(opened.graph, device, runtime, artifacts=opened.artifacts, samples=samples, **budgets)
    ui.result({"network": opened.graph.name, **found.to_json()}, lambda console: show_fit(console, found))
    return EXIT_FAILED if found.fits is False else EXIT_OK


def first_sample(opened: Opened) -> list[Any]:
    """One array per input: the first sample that the export folder keeps, else zeros."""
    import numpy as np

    from qwtv2_edge.ir.types import DTYPES
    from qwtv2_edge.opening import golden_inputs

    kept = golden_inputs(opened)
    types = [opened.graph.tensors[t] for t in opened.graph.inputs]
    if kept is None:
        return [np.zeros(type.shape, DTYPES[type.dtype]) for type in types]
    return [a[: type.shape[0]] for a, type in zip(kept.arrays(), types, strict=True)]


#: how many reasons against a runtime a person is shown
SHOWN_REASONS = 3


def show_fit(console: Console, found: Fit) -> None:
    """The same for people."""
    table = _table("#", "node", "op", "MACs >", "weights >", "instructions >", "live >", "")
    for i, layer in enumerate(found.layers):
        numbers = (f"{v:,}" if v else "" for v in (layer.macs, layer.weight_bytes, layer.instructions, layer.live_bytes))
        table.add_row(str(i), escape(layer.node), layer.op, *numbers, "peak" if i == found.peak else "")
    console.print(table)
    for kind, memory in (("flash", found.flash), ("RAM", found.ram)):
        verdict = "" if memory.fits is None else f" of {memory.budget:,}: {'fits' if memory.fits else 'too much'}"
        parts = ", ".join(f"{name.replace('_', ' ')} {size:,}" for name, size in memory.parts.items())
        console.print(f"{kind} {memory.bytes:,} bytes{verdict} ({parts})\n  {memory.method}", soft_wrap=True)
    if found.instructions is not None:
        console.print(f"{found.instructions:,} instructions per inference on an emulated board: no measure of time")
    console.print(f"largest tensor {escape(found.largest_tensor[0])}: {found.largest_tensor[1]:,} bytes")
    if found.arena is not None:
        console.print(
            f"TFLite Micro's own arena: {found.arena.bytes_32:,} bytes on 32 bits (estimate), {found.arena.bytes:,} measured on 64"
        )
    if found.npu is not None:
        npu = found.npu
        left = ", ".join(f"{count} {op}" for op, count in npu.cpu_operators.items()) or "none"
        console.print(
            f"Vela's estimate for {npu.accelerator}: {npu.cycles:,} cycles, {npu.milliseconds:.3f} ms at {npu.clock_hz / 1e6:.0f} MHz; "
            f"{npu.npu_operators} operators on the NPU, left to the CPU: {left}",
            soft_wrap=True,
        )
    for name, reasons in found.support.items():
        more = f"; and {len(reasons) - SHOWN_REASONS} more, see --json" if len(reasons) > SHOWN_REASONS else ""
        console.print(f"{name}: {escape('; '.join(reasons[:SHOWN_REASONS])) + more or 'runs it'}", soft_wrap=True)
    for line in found.advice:
        console.print(f"* {escape(line)}", soft_wrap=True)


@command("compare")
def compare_command(
    ui: Ui,
    dir_a: Annotated[Path, typer.Argument(help="An export folder.", show_default=False)],
    dir_b: Annotated[Path, typer.Argument(help="Another.", show_default=False)],
    runs: Annotated[int, typer.Option("--runs", help="Starts of both runtimes; 0 times nothing.", min=0)] = 10,
    device: Annotated[str, typer.Option("--device", help="host, adb[:SERIAL] or ssh:[USER@]HOST.")] = "host",
) -> int:
    """Accuracy, size, op list and latency of two export folders side by side."""
    from qwtv2_edge.profiling.compare import check_rounds, compare_latency
    from qwtv2_edge.runners.base import Emulation
    from qwtv2_edge.runners.device import open_device

    sides = [open_path(p) for p in (dir_a, dir_b)]
    for p, s in zip((dir_a, dir_b), sides, strict=True):
        if s.folder is None:
            raise UsageError(f"{p} is not an export folder", fix="give two folders that export wrote")
    shared = [t for t in sides[0].artifacts if t in sides[1].artifacts]
    latency: dict[str, Comparison] = {}
    untimed: dict[str, str] = {}

    def publish(complete: bool) -> None:
        document = comparison(sides, latency, untimed, complete)
        ui.result(document, lambda console: show_comparison(console, document, (dir_a, dir_b)))

    if runs:
        check_rounds(runs)
    with ui.progress() as progress:
        timed = open_device(device if runs else "host")
        if isinstance(timed, Emulation):
            raise UsageError(f"{device} is emulated: it has no times to compare", fix="--runs 0 compares all else")
        try:
            for i, target in enumerate(shared if runs else ()):
                progress("profile", i, len(shared))
                try:
                    a, b = (s.artifacts[target] for s in sides)
                    latency[target] = compare_latency(a, b, timed, rounds=runs, graphs=(sides[0].graph, sides[1].graph))
                except (MissingToolError, UsageError) as error:  # this device has no such runtime, another target's it may have
                    untimed[target] = error.message
        except BaseException:
            publish(complete=False)
            raise
    publish(complete=True)
    return EXIT_OK


def comparison(sides: Sequence[Opened], latency: dict[str, Comparison], untimed: dict[str, str], complete: bool) -> dict[str, Any]:
    """Two exports side by side, as plain data; every list has two entries. untimed: target -> why it was not timed."""
    from qwtv2_edge.inspection import arena_bytes, op_counts

    reports = [s.report for s in sides]
    names = list(dict.fromkeys(n for r in reports for n in r.get("metrics", {})))
    targets = list(dict.fromkeys(t for s in sides for t in s.artifacts))
    counts = [op_counts(s.graph) for s in sides]
    return {
        "folders": [str(s.path) for s in sides],
        "metric": [r.get("metric", "") for r in reports],
        "same_evaluation": len({str(r.get("data", {}).get("evaluation")) for r in reports}) == 1,
        "float_metric": [r.get("float_metric") for r in reports],
        "metrics": {n: [r.get("metrics", {}).get(n) for r in reports] for n in names},
        "bytes": {t: [len(s.artifacts[t].data) if t in s.artifacts else None for s in sides] for t in targets},
        "arena_bytes": [arena_bytes(s.graph) for s in sides],
        "ops": {op: [c.get(op, 0) for c in counts] for op in sorted({op for c in counts for op in c})},
        "same_op_list": [n.op for n in sides[0].graph.nodes] == [n.op for n in sides[1].graph.nodes],
        "p50_ms": {t: None if c.latency is None else [v.p50_ms for v in c.latency] for t, c in latency.items()},
        "latency": {t: c.to_json() for t, c in latency.items()},
        "latency_text": {t: c.text() for t, c in latency.items()},
        "doubts": [f"{t}: {r}" for t, c in latency.items() for r in c.reasons],
        "not_timed": untimed,
        "complete": complete,
    }


def show_comparison(console: Console, c: dict[str, Any], paths: tuple[Path, Path]) -> None:
    """The same, for people."""
    table = _table("", f"{paths[0]} >", f"{paths[1]} >")

    def row(name: str, values: Sequence[Any], text: Callable[[Any], str] = str) -> None:
        table.add_row(name, *("" if v is None else text(v) for v in values))

    text = _formatter(next((m for m in c["metric"] if m), ""))
    row("metric", c["metric"])
    row("float", c["float_metric"], text)
    for name, values in c["metrics"].items():
        row(name, values, text)
    for target, values in c["bytes"].items():
        row(f"{target}, bytes", values, lambda v: f"{v:,}")
    row("activation arena, bytes", c["arena_bytes"], lambda v: f"{v:,}")
    for target, values in c["p50_ms"].items():
        row(f"{target}, median ms", values or ("", ""), lambda v: f"{v:.3f}" if v else v)
    for op, values in c["ops"].items():
        row(op, values)
    console.print(table)
    for target, text_of in c["latency_text"].items():
        console.print(f"{target}: {text_of}", soft_wrap=True)
    console.print("same op list" if c["same_op_list"] else "the op lists differ")
    if not c["same_evaluation"]:
        console.print("the two were evaluated on different data")
    for target, latency in c["latency"].items():
        if latency["reasons"]:
            console.print(f"doubtful: {target}: {escape('; '.join(latency['reasons']))}", soft_wrap=True)
    for target, why in c["not_timed"].items():
        console.print(f"not timed: {target}: {escape(why)}", soft_wrap=True)
    if not c["complete"]:
        console.print("incomplete: the timing was cut short")


def open_path(path: Path) -> Opened:
    """``opening.open_model``, imported late."""
    from qwtv2_edge.opening import open_model

    return open_model(path)


# ---------------------------------------------------------------- tables


@command("numerics")
def numerics_command(ui: Ui) -> int:
    """List the numerics: which runtime, which kernels, which versions, what is promised."""
    from qwtv2_edge.backends import all_numerics
    from qwtv2_edge.runners.host import HOST

    rows: list[dict[str, Any]] = [
        {
            "name": n.name,
            "target": n.target,
            "runtime": n.runtime,
            "versions": dict(n.versions),
            "promise": n.promise,
            "bounds": dict(n.bounds),
            "runs_here": n.runs_on(HOST.family),
        }
        for n in all_numerics().values()
    ]

    def show(console: Console) -> None:
        table = _table("numerics", "target", "runtime and kernels", "proved on", "promise", "here")
        for r in rows:
            proved = ", ".join(f"{k} {v}" for k, v in r["versions"].items())
            table.add_row(
                r["name"],
                r["target"],
                r["runtime"],
                proved,
                promise_text(r["promise"], r["bounds"]),
                "runs" if r["runs_here"] else "simulated",
            )
        console.print(table)

    ui.result({"numerics": rows}, show)
    return EXIT_OK


def promise_text(promise: str, bounds: Mapping[str, int]) -> str:
    """ "exact", with the ops that are only bounded; for a bounded numerics the largest bound."""
    if promise != "exact":
        return f"measured bound, {max(bounds.values(), default=0)} LSB at most"
    return "exact" + "".join(f"; {op} within {b} LSB" for op, b in bounds.items())


@command("targets")
def targets_command(ui: Ui) -> int:
    """List the targets and the numerics that execute each."""
    from qwtv2_edge.backends import TARGET_FILES, TARGETS, Artifact, numerics_of
    from qwtv2_edge.export import DEFAULT_TARGETS

    rows: list[dict[str, Any]] = [
        {
            "name": t,
            "file": Artifact(t, b"").file,
            "description": TARGET_FILES[t],
            "default": t in DEFAULT_TARGETS,
            "numerics": [n.name for n in numerics_of(t)],
        }
        for t in TARGETS
    ]

    def show(console: Console) -> None:
        table = _table("target", "file", "what it is", "by default", "numerics")
        for r in rows:
            table.add_row(r["name"], r["file"], r["description"], "yes" if r["default"] else "", ", ".join(r["numerics"]))
        console.print(table)

    ui.result({"targets": rows}, show)
    return EXIT_OK


@command("doctor")
def doctor_command(ui: Ui) -> int:
    """Say what is installed, what is missing, and how to get it. Always exits 0."""
    from dataclasses import asdict

    from qwtv2_edge.doctor import examine

    with ui.progress() as progress:
        found = examine(progress)
    colours = {"ok": "green", "other version": "yellow", "simulated": "dim", "missing": "red"}

    def show(console: Console) -> None:
        table = _table("", "state", "found", "proved on", "for")
        for f in found:
            table.add_row(f.name, f"[{colours[f.state]}]{f.state}[/]", f.found, f.proved, escape(f.use))
        console.print(table)
        fixes = [f for f in found if f.fix]
        for f in fixes:
            console.print(f"{f.name}: {escape(f.fix)}")
        if not fixes:
            console.print("nothing is missing")

    ui.result({"findings": [asdict(f) for f in found], "missing": [f.name for f in found if f.state == "missing"]}, show)
    return EXIT_OK


@command("prepare")
def prepare_command(
    ui: Ui,
    what: Annotated[Literal["arm"], typer.Argument(help="arm: emulated ARM cores, for --device qemu:CPU.", show_default=False)],
    runtimes: Annotated[
        list[str] | None, typer.Option("--runtimes", help="Only this runtime; repeat for more.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Get everything once more.")] = False,
) -> int:
    """Download an aarch64 Python, an emulator and the runtimes' aarch64 wheels into a cache folder, and try them out."""
    from qwtv2_edge.runners import arm

    with ui.progress() as progress:
        folder = arm.prepare(progress, runtimes or arm.RUNTIMES, force)
    python = arm.python_version(arm.find())
    here = {n: {"wheels": arm.RUNTIMES[n].wheels, "devices": [f"qemu:{c}" for c in arm.RUNTIMES[n].cores]} for n in arm.prepared()}
    document = {"folder": str(folder), "python": python, "proved_python": arm.PROVED_PYTHON, "runtimes": here}

    def show(console: Console) -> None:
        table = _table("runtime", "wheels", "devices")
        for name, r in here.items():
            table.add_row(name, ", ".join(r["wheels"]), ", ".join(r["devices"]))
        console.print(table)
        console.print(f"in {folder}, with Python {python}", soft_wrap=True)
        if python != arm.PROVED_PYTHON:
            console.print(f"what is published was computed with Python {arm.PROVED_PYTHON}, that of Debian 12", soft_wrap=True)

    ui.result(document, show)
    return EXIT_OK


def _table(*columns: str) -> Table:
    """A plain table; a column whose name ends in " >" is right-aligned."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for c in columns:
        table.add_column(c.removesuffix(" >"), justify="right" if c.endswith(" >") else "left", overflow="fold")
    return table


def _formatter(metric: str) -> Callable[[float], str]:
    return (lambda v: f"{v * 100:.2f} %") if metric in ("top1", "top5") else (lambda v: f"{v:.6g}")


def _scale_text(tensor: dict[str, Any]) -> str:
    return f", scale {tensor['scale']:.6g}, zero point {tensor['zero_point']}" if isinstance(tensor.get("scale"), float) else ""


# ---------------------------------------------------------------- running


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit code; nothing escapes but what asks to stop the interpreter."""
    interrupted: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        # the clean-up that follows the first signal must not be cut short by a second
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        interrupted.append(number)
        raise Interrupted

    mine = children()
    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        with private_stdout() as stream:
            _ui.__dict__.update(
                Ui(json="--json" in argv, verbose="--verbose" in argv, stop=lambda: bool(interrupted), stream=stream).__dict__
            )
            try:
                # help goes where results go; with --json nothing but the document may
                with nullcontext() if _ui.json else redirect_stdout(stream):
                    return _invoke(argv or ["--help"])
            except BaseException as error:
                if interrupted or isinstance(error, (Interrupted, KeyboardInterrupt)):
                    return _report(InterruptedError("interrupted"), EXIT_INTERRUPTED)
                if isinstance(error, BrokenPipeError):
                    return EXIT_FAILED  # the reader of our output has left
                return _report_failure(error)
    finally:
        end_children(besides=mine)
        for number, handler in before.items():
            signal.signal(number, handler)


def _invoke(argv: Sequence[str]) -> int:
    code = app(list(argv), standalone_mode=False, prog_name="qwtv2-edge")
    return int(code or 0)


def _report_failure(error: BaseException) -> int:
    if _ui.verbose:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, QwtEdgeError):
        return _report(error, error.exit_code)
    if hasattr(error, "format_message"):  # typer's own: a wrong option or argument
        return _report(UsageError(error.format_message(), fix="qwtv2-edge --help, or qwtv2-edge COMMAND --help"), EXIT_USAGE)
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return _report(UsageError(f"can't write {error.filename or ''}: {error.strerror}", fix="free some space"), EXIT_USAGE)
    if isinstance(error, MemoryError):
        return _report(UsageError("out of memory", fix="give fewer or smaller samples"), EXIT_USAGE)
    if type(error).__name__ == "Exit" or isinstance(error, SystemExit):
        return int(getattr(error, "exit_code", getattr(error, "code", 0)) or 0)
    text = f"unexpected {type(error).__name__}: {error}"
    return _report(UnexpectedError(f"{text}\n  This is a bug in qwtv2-edge. Run again with --verbose and report what it prints."), EXIT_BUG)


def _report(error: BaseException, code: int) -> int:
    _ui.error(error, code)
    return code


@contextmanager
def _libraries_silenced(verbose: bool) -> Iterator[None]:
    """Keep warnings and log lines of libraries away from standard error, unless they are wanted."""
    if verbose:
        yield
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def children() -> set[int]:
    """Process ids this process has started and not yet buried (Linux; empty elsewhere, where runners end their own)."""
    return {int(pid) for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()}


def end_children(besides: set[int]) -> None:
    """Kill every child but those in ``besides``."""
    for pid in children() - besides:
        with suppress(ProcessLookupError):  # it ended by itself
            os.kill(pid, signal.SIGKILL)
