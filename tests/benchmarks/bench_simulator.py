"""The simulator against LiteRT's reference kernels: milliseconds per sample, side by side in one run, one thread each.

    python tests/benchmarks/bench_simulator.py [--runs N]

Each row times both on the same samples of the same integer network, in turn, and checks that they give the same bytes.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))  # before numpy

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import note, percentiles, show
from models import tiny_mlperf, zoo

import qwtv2_edge as qe
from qwtv2_edge.runners.host import Session

#: one after the other, so that what slows the machine down meets both
NUMERICS = "litert-reference"


def mobilenet_v2() -> tuple[Any, np.ndarray]:
    return zoo.build("mobilenet_v2"), zoo.smooth_images(32, 224)


def resnet8() -> tuple[Any, np.ndarray]:
    images, _ = tiny_mlperf.load_data("resnet8", "calib")
    return tiny_mlperf.build_resnet8(), images[:32]


NETS: dict[str, Callable[[], tuple[Any, np.ndarray]]] = {"resnet8": resnet8, "mobilenet_v2": mobilenet_v2}


def measure(name: str, runs: int) -> list[dict[str, Any]]:
    module, images = NETS[name]()
    result = qe.quantize(qe.capture(module, (images[:1],)), images[:8], {"compensation": "none"})
    artifact = qe.emit(result.graph, "tflite")
    rows = []
    with Session(NUMERICS, artifact.data) as session:
        for batch in (1, 32):
            x = images[:batch]
            ours, theirs = [], []
            for run in range(runs + 1):
                start = time.perf_counter()
                (expected,) = qe.simulate(result.graph, x, NUMERICS)
                middle = time.perf_counter()
                (actual,) = session.run([x])
                end = time.perf_counter()
                if not np.array_equal(expected, actual):
                    raise SystemExit(f"{name}: the runtime gives other bytes than the simulator")
                if run:  # the first prepares weights and touches memory
                    ours.append(1e3 * (middle - start) / batch)
                    theirs.append(1e3 * (end - middle) / batch)
            row = {
                "net": name,
                "batch": batch,
                "simulator": percentiles(ours),
                "litert_reference": percentiles(theirs),
                "ratio": round(float(np.median(ours) / np.median(theirs)), 3),
            }
            rows.append(row)
            note(str(row))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--net", choices=list(NETS), action="append")
    args = parser.parse_args()
    show("simulator", [row for net in (args.net or NETS) for row in measure(net, args.runs)])


if __name__ == "__main__":
    main()
