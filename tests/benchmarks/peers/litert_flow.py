"""LiteRT's own flow: litert-torch converts the module to a float .tflite, ai-edge-quantizer makes it int8.

    python litert_flow.py NET CALIBRATION.npy OUT.tflite

Keeps the float file beside it, OUT.float.tflite. Needs an environment of its own: torch 2.13.0, litert-torch 0.10.0,
ai-edge-quantizer 0.10.0.
"""

from __future__ import annotations

from pathlib import Path

import litert_torch
import torch
from ai_edge_quantizer import quantizer, recipe
from ai_edge_quantizer.utils import tfl_interpreter_utils
from flow import Flow


def main() -> None:
    flow = Flow()
    float_path = str(Path(flow.out).with_suffix(".float.tflite"))
    litert_torch.convert(flow.module, (torch.from_numpy(flow.calibration[:1]),)).export(float_path)
    flow.mark("convert")
    q = quantizer.Quantizer(float_path, quantization_recipe=recipe.static_wi8_ai8())
    runner = tfl_interpreter_utils.create_tfl_interpreter(float_path).get_signature_runner()
    key = next(iter(runner.get_input_details()))
    statistics = q.calibrate({"serving_default": [{key: sample[None]} for sample in flow.calibration]})
    q.quantize(statistics).export_model(flow.out, overwrite=True)
    flow.mark("quantize")
    flow.report(bytes=Path(flow.out).stat().st_size)


if __name__ == "__main__":
    main()
