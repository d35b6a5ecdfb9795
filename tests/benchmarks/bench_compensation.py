"""What each half of the compensation buys: {none, offset, cwac} at 8 and 4 bits, on data the fit did not see.

    python tests/benchmarks/bench_compensation.py [--net NAME]...

ResNet8 and DS-CNN: top-1 and output SQNR on the whole of eval_dev. MobileNetV1: agreement with the float network's
top-1 and SQNR on 200 unlabelled images. Figures are the simulator's for litert-xnnpack; bench_exactness.py
shows that the real runtimes give the same bytes.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import numpy as np
from common import note, show, sqnr_db
from models import tiny_mlperf

import qwtv2_edge as qe

NETS = ("resnet8", "ds_cnn", "mobilenet_v1")
KINDS = ("none", "offset", "cwac")


def recipes() -> list[dict[str, Any]]:
    """The grid of the table, without the compensation kind."""
    return [
        {"weight_bits": bits, "weight_granularity": granularity, "weight_observer": observer}
        for bits, granularity, observer in itertools.product((8, 4), ("per_channel", "per_tensor"), ("minmax", "mse"))
    ]


def measure(name: str) -> list[dict[str, Any]]:
    calibration, _ = tiny_mlperf.load_data(name, "calib")
    calibration = calibration[np.random.default_rng(0).permutation(len(calibration))]
    images, labels = tiny_mlperf.load_data(name, "eval")
    graph = qe.capture(tiny_mlperf.BUILDERS[name](), (calibration[:1],))
    from qwtv2_edge.simulator.run import run_float

    (wanted,) = run_float(graph, [images])
    truth = wanted.argmax(1) if labels is None else labels
    first, last = (n.location.module_path for n in (graph.nodes[i] for i in weighted_ends(graph)))
    grid = recipes()
    if name == "resnet8":
        ends = {first: {"weight_bits": 8}, last: {"weight_bits": 8}}
        grid += [{**r, "overrides": ends} for r in grid if r["weight_bits"] == 4 and r["weight_granularity"] == "per_channel"]
    rows: list[dict[str, Any]] = [
        {"net": name, "float_top1": round(100 * float((wanted.argmax(1) == truth).mean()), 2), "samples": len(images)}
    ]
    for recipe in grid:
        sizes, ops = set(), set()
        for kind in KINDS:
            result = qe.quantize(graph, calibration, {**recipe, "compensation": kind})
            (y,) = qe.simulate(result.graph, images, "litert-xnnpack")
            artifact = qe.emit(result.graph, "tflite")
            sizes.add(len(artifact.data))
            ops.add(artifact.ops)
            row = {
                "net": name,
                **{k: v for k, v in recipe.items() if k != "overrides"},
                "ends_at_8_bits": "overrides" in recipe,
                "compensation": kind,
                "chosen": result.report.network.chosen,
                "top1": round(100 * float((y.argmax(1) == truth).mean()), 2),
                "sqnr_db": round(sqnr_db(wanted, y), 2),
                "tflite_bytes": len(artifact.data),
            }
            rows.append(row)
            note(str(row))
        rows[-1]["same_size_and_ops"] = len(sizes) == 1 and len(ops) == 1
    return rows


def weighted_ends(graph: qe.Graph) -> tuple[int, int]:
    """Indices of the first and the last node with weights."""
    found = [i for i, n in enumerate(graph.nodes) if n.op in ("conv2d", "depthwise_conv2d", "fully_connected")]
    return found[0], found[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=list(NETS), action="append")
    args = parser.parse_args()
    show("compensation", [row for net in (args.net or NETS) for row in measure(net)])


if __name__ == "__main__":
    main()
