"""Every exact numerics against the simulator, byte for byte, on whole evaluation sets; accuracy per runtime.

    python tests/benchmarks/bench_exactness.py [--net NAME]...

Our networks at 8 bits, at 4 bits, and (ResNet8) at 4 bits with the first and last layer at 8; then the published int8
files, read with read_tflite. ResNet8: 2000 images, DS-CNN: 1000 clips, MobileNetV1: 200 images, autoencoder: 200
synthetic windows.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from bench_compensation import weighted_ends
from common import note, show, sqnr_db
from everywhere import targets_of
from models import tiny_mlperf

import qwtv2_edge as qe
from qwtv2_edge.backends import get_numerics
from qwtv2_edge.evaluation import tables_here
from qwtv2_edge.runners.host import Session
from qwtv2_edge.simulator.run import run_float

NETS = ("resnet8", "ds_cnn", "mobilenet_v1", "autoencoder")


def data_of(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(calibration, evaluation, labels or None)."""
    if name == "autoencoder":
        return tiny_mlperf.smooth_frames(256, seed=1), tiny_mlperf.smooth_frames(200, seed=2), None
    calibration, _ = tiny_mlperf.load_data(name, "calib")
    images, labels = tiny_mlperf.load_data(name, "eval")
    return calibration[np.random.default_rng(0).permutation(len(calibration))], images, labels


def against_runtimes(
    graph: qe.Graph, artifacts: dict[str, bytes], inputs: np.ndarray, truth: np.ndarray | None
) -> dict[str, dict[str, Any]]:
    """Per exact numerics: values compared, values that differ in any byte, top-1, seconds of the simulator and the runtime."""
    out: dict[str, dict[str, Any]] = {}
    for target, data in artifacts.items():
        for name in tables_here([target]):
            numerics = get_numerics(name)
            if numerics.promise != "exact":
                continue
            start = time.perf_counter()
            (expected,) = qe.simulate(graph, inputs, name)
            simulated = time.perf_counter()
            with Session(numerics.runner, data) as session:
                (actual,) = session.run([inputs])
            different = int((actual.view(f"V{actual.itemsize}") != expected.view(f"V{expected.itemsize}")).sum())
            row: dict[str, Any] = {"samples": len(inputs), "values": int(actual.size), "different": different}
            if truth is not None:
                row["top1"] = round(100 * float((actual.reshape(len(actual), -1).argmax(1) == truth).mean()), 2)
            row["simulator_s"], row["runtime_s"] = round(simulated - start, 2), round(time.perf_counter() - simulated, 2)
            out[name] = row
    return out


def ours(name: str) -> list[dict[str, Any]]:
    calibration, inputs, labels = data_of(name)
    graph = qe.capture(tiny_mlperf.BUILDERS[name](), (calibration[:1],))
    (wanted,) = run_float(graph, [inputs])
    truth = None if name == "autoencoder" else wanted.argmax(1) if labels is None else labels
    recipes: dict[str, dict[str, Any]] = {"8 bit": {}, "4 bit": {"weight_bits": 4}}
    if name == "resnet8":
        ends = {graph.nodes[i].location.module_path: {"weight_bits": 8} for i in weighted_ends(graph)}
        recipes["4 bit, first and last 8 bit"] = {"weight_bits": 4, "overrides": ends}
    rows = []
    for label, recipe in recipes.items():
        result = qe.quantize(graph, calibration, recipe)
        artifacts = {target: qe.emit(result.graph, target).data for target in targets_of(result.graph)}
        row = {"net": name, "weights": label, "chosen": result.report.network.chosen}
        if truth is not None:
            row["float_top1"] = round(100 * float((wanted.argmax(1) == truth).mean()), 2)
        row["sqnr_db"] = round(sqnr_db(wanted, qe.simulate(result.graph, inputs, "litert-xnnpack")[0]), 2)
        row["numerics"] = against_runtimes(result.graph, artifacts, inputs, truth)
        rows.append(row)
        note(str(row))
    return rows


def published(name: str) -> dict[str, Any]:
    """The int8 file that was published with the network."""
    path = tiny_mlperf.data_dir() / tiny_mlperf.FOLDERS[name] / "ref_int8.tflite"
    graph = qe.read_tflite(path)
    _, inputs, labels = data_of(name)
    if inputs.ndim == 4:
        inputs = inputs.transpose(0, 2, 3, 1)
    type = graph.tensors[graph.inputs[0]]
    codes = np.clip(np.floor(inputs / np.float32(type.scale) + 0.5) + type.zero_point, -128, 127).astype(np.int8)
    row = {"net": name, "weights": "published int8 file", "numerics": against_runtimes(graph, {"tflite": path.read_bytes()}, codes, labels)}
    note(str(row))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETS, action="append")
    nets = parser.parse_args().net or NETS
    show("exactness", [row for net in nets for row in (*ours(net), published(net))])


if __name__ == "__main__":
    main()
