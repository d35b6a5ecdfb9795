"""Transformers: latency beside the peers' files, accuracy per recipe, bytes on whole evaluation sets, a sentence encoder.

    python tests/benchmarks/bench_transformers.py {latency,forms,accuracy,exactness,sentences} [--net NAME]... [--samples N]
        [--numerics NAME]... [--rows FILE] [--folder FOLDER --peer-python PATH --rounds N]

latency    our files with each choice of float_ops and the peers' 8-bit and float files, on LiteRT and ExecuTorch, one thread,
           all loaded at once and timed in turn; delegate partitions and ops outside of them. --peer-python: as for
           bench_export.py. Peers' files that lie in --folder already are not made again.
forms      microseconds that one more LayerNorm, softmax or GELU of KWT-1's sizes takes in each target's forms: the difference
           between a row of nine and one alone, over eight. (XNNPACK makes one table of several GELU in a row.)
accuracy   recipes against the float network on the whole evaluation set, simulated with one numerics per format.
exactness  the default recipes at 8 and 4 bits: every exact numerics on the target it is named for, against the simulator, on
           the whole evaluation set and the edge patterns.
sentences  all-MiniLM-L6-v2: mean cosine to the float embeddings on sentences that calibration did not see; then time and peak
           memory of one whole export by the command.

--rows appends every row to FILE as one JSON line as soon as it is there. --samples: calibration samples. --numerics: of accuracy and
sentences; one per format without it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bench_export import ONE_THREAD, flow, latency
from common import ROOT, note, show, sqnr_db
from everywhere import targets_of
from models import build_net, calibration_of, transformers
from torch import nn

import qwtv2_edge as qe
from qwtv2_edge.backends import all_numerics
from qwtv2_edge.evaluation import tables_here
from qwtv2_edge.metrics import Cosine
from qwtv2_edge.numerics import FLOAT_OPS
from qwtv2_edge.simulator.run import run_float

LATENCY_NETS = ("kwt1", "vit_mnist", "deit_tiny")
#: one numerics per format
NUMERICS = ("litert-reference", "executorch-xnnpack")
CLIPPED = {"observer": "percentile", "percentile": 99.9}
#: the input of KWT-1 has too wide a range for 8 bits
WIDE_INPUT = {"overrides": {"patch_embed": {"activation_bits": 16}}}

Rows = Iterator[dict[str, Any]]


# ---------------------------------------------------------------------- latency


def tflite_partitions(data: bytes) -> dict[str, int]:
    """Delegate partitions and built-in ops that LiteRT's default interpreter executes.

    The interpreter lists replaced ops too; what executes is what the outputs need, with a delegate before an op it replaced.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    ops = interpreter._get_ops_details()
    producer = {t: op for op in sorted(ops, key=lambda op: op["op_name"] == "DELEGATE") for t in op["outputs"]}
    found: dict[int, str] = {}
    wanted = [d["index"] for d in interpreter.get_output_details()]
    while wanted:
        op = producer.get(wanted.pop())
        if op is not None and op["index"] not in found:
            found[op["index"]] = op["op_name"]
            wanted += list(op["inputs"])
    return _counts([name == "DELEGATE" for name in found.values()])


def pte_partitions(data: bytes) -> dict[str, int]:
    """Delegate calls and kernel calls of an ExecuTorch program."""
    from executorch.exir._serialize._program import deserialize_pte_binary
    from executorch.exir.schema import DelegateCall, KernelCall

    plan = deserialize_pte_binary(data).program.execution_plan[0]
    calls = [i.instr_args for chain in plan.chains for i in chain.instructions]
    return _counts([isinstance(c, DelegateCall) for c in calls if isinstance(c, DelegateCall | KernelCall)])


def _counts(delegated: list[bool]) -> dict[str, int]:
    return {"delegates": sum(delegated), "ops_outside": len(delegated) - sum(delegated)}


#: suffix -> (runner, what reads its partitions)
FORMATS: dict[str, tuple[str, Callable[[bytes], dict[str, int]]]] = {
    ".tflite": ("litert-xnnpack", tflite_partitions),
    ".pte": ("executorch", pte_partitions),
}


def measure_latency(name: str, args: argparse.Namespace) -> Rows:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.folder or scratch)
        samples = args.samples or 16
        data = calibration_of(name, samples)
        graph = qe.quantize(qe.capture(build_net(name), (data[:1],)), data).graph
        for choice, target in itertools.product(("forbid", "allow"), ("tflite", "executorch-xnnpack")):
            artifact = qe.emit(graph.with_metadata(**{FLOAT_OPS: choice}), target)
            artifact.save(folder / f"{name}.ours {choice}.{artifact.suffix.rpartition('.')[2]}")
        np.save(folder / f"{name}.npy", data)
        for python, script, suffix in ((args.peer_python, "litert_flow.py", "tflite"), (sys.executable, "executorch_pt2e.py", "pte")):
            out = folder / f"{name}.peer.{suffix}"
            if python and not out.exists():
                note(f"{name} {script} {flow(python, script, name, str(folder / f'{name}.npy'), str(out))}")
        files = {p.name.removeprefix(f"{name}."): p for p in sorted(folder.glob(f"{name}.*")) if p.suffix in FORMATS}
        before = os.getloadavg()[0]
        times = latency({k: (FORMATS[p.suffix][0], p) for k, p in files.items()}, args.rounds, 20 if data[0].size > 50_000 else 100)
        for key, path in files.items():
            partitions = FORMATS[path.suffix][1](path.read_bytes())
            yield {"net": name, "file": key, "bytes": path.stat().st_size, **partitions, **times[key], "load_average": round(before, 2)}


#: op -> (module, shape)
FORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer_norm": (lambda: nn.LayerNorm(64), (1, 99, 64)),
    "softmax": (lambda: nn.Softmax(-1), (1, 99, 99)),
    "gelu": (nn.GELU, (1, 99, 256)),
}
ROW = 8
FORM_RUNNERS = {
    "tflite": ("litert-xnnpack", "litert-reference"),
    "executorch-xnnpack": ("executorch",),
    "executorch-portable": ("executorch",),
}


def measure_forms(name: str, args: argparse.Namespace) -> Rows:
    make, shape = FORMS[name]
    samples = np.random.default_rng(0).normal(size=(16, *shape[1:])).astype(np.float32)
    files: dict[str, tuple[str, Path]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for length in (1, 1 + ROW):
            module = nn.Sequential(*(make() for _ in range(length))).eval()
            graph = qe.quantize(qe.capture(module, (samples[:1],)), samples, {"compensation": "none"}).graph
            for choice, (target, runners) in itertools.product(("forbid", "allow"), FORM_RUNNERS.items()):
                artifact = qe.emit(graph.with_metadata(**{FLOAT_OPS: choice}), target)
                path = artifact.save(Path(folder) / f"{length} {choice}{artifact.suffix}")
                files |= {f"{length} {target} {choice} {runner}": (runner, path) for runner in runners}
        times = latency(files, args.rounds, 100)
    for key in (k.partition(" ")[2] for k in times if k.startswith("1 ")):
        one, row = times[f"1 {key}"], times[f"{1 + ROW} {key}"]
        yield {"op": name, "form": key, **{f"{p}_us": round(1000 * (row[f"{p}_ms"] - one[f"{p}_ms"]) / ROW, 2) for p in ("p10", "p50")}}


# ---------------------------------------------------------------------- accuracy


def recipes(name: str) -> list[dict[str, Any]]:
    """8 and 4 bits, and 8 with clipped ranges; then what else a recipe may say, one thing at a time."""
    more = [CLIPPED, {"residual_bits": 8}, {"smoothing": "none"}]
    if name == "kwt1":
        more += [WIDE_INPUT, {**WIDE_INPUT, "weight_bits": 4}]
    return [{"weight_bits": 8}, {"weight_bits": 4}, *({"weight_bits": 8, **m} for m in more)]


def measure_accuracy(name: str, args: argparse.Namespace) -> Rows:
    calibration = calibration_of(name, args.samples or 128)
    inputs, labels = transformers.load_data(name, "eval")
    graph = qe.capture(build_net(name), (calibration[:1],))
    (wanted,) = run_float(graph, [inputs])
    yield {"net": name, "float_top1": percent(wanted.argmax(1) == labels), "samples": len(inputs), "calibration": len(calibration)}
    for recipe in recipes(name):
        result = qe.quantize(graph, calibration, recipe)
        for (kind, variant), numerics in itertools.product(result.variants.items(), args.numerics or NUMERICS):
            (y,) = qe.simulate(variant, inputs, numerics)
            yield {
                "net": name,
                **recipe,
                "compensation": kind,
                "chosen": result.report.network.chosen == kind,
                "numerics": numerics,
                "top1": percent(y.argmax(1) == labels),
                "agreement": percent(y.argmax(1) == wanted.argmax(1)),
                "sqnr_db": round(sqnr_db(wanted, y), 2),
            }


def percent(hits: np.ndarray) -> float:
    return round(100 * float(hits.mean()), 2)


# ---------------------------------------------------------------------- exactness


def measure_exactness(name: str, args: argparse.Namespace) -> Rows:
    calibration = calibration_of(name, args.samples or 128)
    inputs, _ = transformers.load_data(name, "eval")
    graph = qe.capture(build_net(name), (calibration[:1],))
    for bits in (8, 4):
        quantized = qe.quantize(graph, calibration, {"weight_bits": bits}).graph
        for target in targets_of(quantized):
            own = [n for n in tables_here([target]) if all_numerics()[n].target == target and n != "litert-builtin"]
            report = qe.verify(quantized, qe.emit(quantized, target), inputs, numerics=own)
            for numerics, found in report.results.items():
                yield {
                    "net": name,
                    "weight_bits": bits,
                    "target": target,
                    "numerics": numerics,
                    "status": found.status,
                    "samples": found.samples,
                    "values": found.outputs_compared,
                    "different": found.mismatches,
                }


# ---------------------------------------------------------------------- sentences


def cosine(actual: np.ndarray, wanted: np.ndarray) -> float:
    metric = Cosine()
    metric.update([actual], [], wanted)
    return round(metric.value(), 5)


def measure_sentences(name: str, args: argparse.Namespace) -> Rows:
    calibration = calibration_of(name, args.samples or 64)
    inputs = transformers.tokenize(transformers.load_sentences("eval"))
    net = build_net(name)
    graph = qe.capture(net, tuple(a[:1] for a in calibration))
    (wanted,) = run_float(graph, inputs)
    for bits in (8, 4):
        result = qe.quantize(graph, calibration, {"weight_bits": bits})
        for (kind, variant), numerics in itertools.product(result.variants.items(), args.numerics or NUMERICS):
            (y,) = qe.simulate(variant, inputs, numerics)
            chosen = result.report.network.chosen == kind
            row = {"net": name, "weight_bits": bits, "compensation": kind, "chosen": chosen, "numerics": numerics}
            yield {**row, "cosine": cosine(y, wanted), "samples": len(y)}
    yield whole_export(name, calibration, 4 * sum(p.numel() for p in net.parameters()))


def whole_export(name: str, calibration: tuple[np.ndarray, ...], weight_bytes: int) -> dict[str, Any]:
    """One run of the command in a process of its own: seconds and the largest resident size, as its report tells them."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "calib.npz", Path(folder) / "out"
        np.savez(data, **dict(zip(("input_ids", "attention_mask"), calibration, strict=True)))
        model = f"{ROOT / 'tests' / 'models' / 'transformers.py'}:build_{name}"
        done = subprocess.run(
            [sys.executable, "-m", "qwtv2_edge", "export", model, "--calibration", str(data), "--out", str(out), "--quiet"],
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT / "tests")},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return {"net": name, "error": done.stderr.strip()}
        report = json.loads((out / "report.json").read_text())
    peak = report["peak_rss_bytes"]
    return {
        "net": name,
        "seconds": report["seconds"],
        "peak_rss_bytes": peak,
        "float_weight_bytes": weight_bytes,
        "within_4_weights_and_2_gib": peak <= 4 * weight_bytes + 2 * 2**30,
        "artifact_bytes": {target: entry["bytes"] for target, entry in report["artifacts"].items()},
        "verified": report["ok"],
    }


# ----------------------------------------------------------------------

#: part -> (networks, what measures one)
PARTS: dict[str, tuple[tuple[str, ...], Callable[[str, argparse.Namespace], Rows]]] = {
    "latency": (LATENCY_NETS, measure_latency),
    "forms": (tuple(FORMS), measure_forms),
    "accuracy": (tuple(transformers.FOLDERS), measure_accuracy),
    "exactness": (tuple(transformers.FOLDERS), measure_exactness),
    "sentences": (("minilm",), measure_sentences),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--net", action="append")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--numerics", action="append")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--peer-python")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    nets, measure = PARTS[args.part]
    rows = []
    for row in itertools.chain.from_iterable(measure(net, args) for net in args.net or nets):
        rows.append(row)
        note(str(row))
        if args.rows:
            with args.rows.open("a") as handle:
                handle.write(json.dumps(row) + "\n")
    show(f"transformers, {args.part}", rows)


if __name__ == "__main__":
    main()
