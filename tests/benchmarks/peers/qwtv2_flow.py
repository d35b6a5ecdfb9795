"""Our flow, the same work: both formats from one module and the same calibration samples, compensation included.

    python qwtv2_flow.py NET CALIBRATION.npy OUT_STEM

Prints one JSON line: seconds per stage and in all, and the peak memory.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    name, calibration_path, out = sys.argv[1:4]
    import torch

    torch.set_num_threads(1)
    from models import build_net

    import qwtv2_edge as qe

    module = build_net(name)
    calibration = np.load(calibration_path)
    stages: dict[str, float] = {}
    start = last = time.perf_counter()

    def mark(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        stages[stage] = round(now - last, 3)
        last = now

    graph = qe.capture(module, (calibration[:1],))
    mark("capture")
    result = qe.quantize(graph, calibration)
    mark("quantize")
    sizes = {}
    for target in ("tflite", "executorch-xnnpack"):
        artifact = qe.emit(result.graph, target)
        artifact.save(out + artifact.suffix)
        sizes[target] = len(artifact.data)
    mark("emit")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    total = round(time.perf_counter() - start, 3)
    # not timed: the same network with int8 inputs and outputs, as the LiteRT flow makes it
    codes = qe.quantize(graph, calibration, {"io_dtype": "int8"})
    qe.emit(codes.graph, "tflite").save(out + ".int8.tflite")
    print(json.dumps({"stages": stages, "seconds": total, "bytes": sizes, "peak_rss_bytes": peak}))


if __name__ == "__main__":
    main()
