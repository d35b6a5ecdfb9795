"""LiteRT's own flow: litert-torch converts the module to a float .tflite, ai-edge-quantizer makes it int8.

    python litert_flow.py NET CALIBRATION.npy OUT.tflite

Prints one JSON line: seconds per stage and in all. Needs an environment of its own: torch 2.13.0, litert-torch 0.10.0,
ai-edge-quantizer 0.10.0.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    name, calibration_path, out = sys.argv[1:4]
    import torch

    torch.set_num_threads(1)
    import litert_torch
    from ai_edge_quantizer import quantizer, recipe
    from models import build_net

    module = build_net(name)
    calibration = np.load(calibration_path)
    stages: dict[str, float] = {}
    start = last = time.perf_counter()

    def mark(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        stages[stage] = round(now - last, 3)
        last = now

    float_path = str(Path(out).with_suffix(".float.tflite"))
    litert_torch.convert(module, (torch.from_numpy(calibration[:1]),)).export(float_path)
    mark("convert")
    q = quantizer.Quantizer(float_path, quantization_recipe=recipe.static_wi8_ai8())
    from ai_edge_quantizer.utils import tfl_interpreter_utils

    runner = tfl_interpreter_utils.create_tfl_interpreter(float_path).get_signature_runner()
    key = next(iter(runner.get_input_details()))
    statistics = q.calibrate({"serving_default": [{key: sample[None]} for sample in calibration]})
    q.quantize(statistics).export_model(out, overwrite=True)
    mark("quantize")
    print(json.dumps({"stages": stages, "seconds": round(time.perf_counter() - start, 3), "bytes": Path(out).stat().st_size}))


if __name__ == "__main__":
    main()
