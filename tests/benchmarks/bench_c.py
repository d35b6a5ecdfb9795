"""Generated C against TFLite Micro's reference kernels: milliseconds per invocation, side by side in one run, one thread each.

    python tests/benchmarks/bench_c.py [--rounds N] [--net NAME]...

Both run the same integer network on the same sample, in turns of a few invocations each, and must give the same bytes.
TFLite Micro is its own Python interpreter from PyPI, the C is compiled as its runner compiles it: cc -std=c99 -O3.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))  # before numpy

import argparse
from typing import Any

import numpy as np
from common import note, percentiles, show
from models import build_net, calibration_of

import qwtv2_edge as qe
from qwtv2_edge.runners.host import Session

#: invocations between turns
BLOCK = 20
NETS = ("resnet8", "ds_cnn", "mobilenet_v1", "autoencoder", "kwt1")
RUNTIMES = {"c": "c", "tflite-micro": "tflite-micro"}


def measure(name: str, rounds: int) -> dict[str, Any]:
    samples = calibration_of(name, 8)
    graph = qe.quantize(qe.capture(build_net(name), (samples[:1],)), samples, {"compensation": "none"}).graph
    x = samples[:1]
    sessions = {target: Session(kind, qe.emit(graph, target).data) for target, kind in RUNTIMES.items()}
    try:
        outputs = [session.run([x])[0] for session in sessions.values()]
        if not np.array_equal(*outputs):
            raise SystemExit(f"{name}: the two give different bytes")
        ns: dict[str, list[int]] = {target: [] for target in sessions}
        for turn in range(rounds + 1):
            for target, session in sessions.items():
                found = session.time([x], BLOCK).ns
                if turn:  # the first touches memory
                    ns[target] += found
    finally:
        for session in sessions.values():
            session.close()
    row = {"net": name, **{t: percentiles([v / 1e6 for v in values]) for t, values in ns.items()}}
    ratio = float(np.median(ns["tflite-micro"]) / np.median(ns["c"]))
    note(f"{name}: c {row['c']['p50_ms']} ms, tflite-micro {row['tflite-micro']['p50_ms']} ms, {ratio:.2f} times")
    return {**row, "times_faster": round(ratio, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--net", choices=NETS, action="append")
    args = parser.parse_args()
    show("c", [measure(net, args.rounds) for net in (args.net or NETS)])


if __name__ == "__main__":
    main()
