"""ExecuTorch's own flow: torch.export, PT2E quantization with the XNNPACK quantizer, the XNNPACK partitioner.

    python executorch_pt2e.py NET CALIBRATION.npy OUT.pte [--weights-observer]

Prints one JSON line: seconds per stage and in all. Runs in the project's environment.
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
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
    from executorch.exir import to_edge_transform_and_lower
    from models import build_net
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    module = build_net(name)
    calibration = torch.from_numpy(np.load(calibration_path))
    example = (calibration[:1],)
    stages: dict[str, float] = {}
    start = last = time.perf_counter()

    def mark(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        stages[stage] = round(now - last, 3)
        last = now

    exported = torch.export.export(module, example).module()
    mark("capture")
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(exported, quantizer)
    for sample in calibration:
        prepared(sample[None])
    quantized = convert_pt2e(prepared)
    mark("quantize")
    program = to_edge_transform_and_lower(torch.export.export(quantized, example), partitioner=[XnnpackPartitioner()]).to_executorch()
    Path(out).write_bytes(program.buffer)
    mark("lower")
    print(json.dumps({"stages": stages, "seconds": round(time.perf_counter() - start, 3), "bytes": Path(out).stat().st_size}))


if __name__ == "__main__":
    main()
