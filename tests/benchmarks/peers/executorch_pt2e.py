"""ExecuTorch's own flow: torch.export, PT2E quantization with the XNNPACK quantizer, the XNNPACK partitioner.

    python executorch_pt2e.py NET CALIBRATION.npy OUT.pte

Writes the float network beside it, OUT.float.pte. Runs in the project's environment.
"""

from __future__ import annotations

from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.exir import to_edge_transform_and_lower
from flow import Flow
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


def write(program: torch.export.ExportedProgram, path: Path) -> None:
    path.write_bytes(to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer)


def main() -> None:
    flow = Flow()
    samples = torch.from_numpy(flow.calibration)
    example = (samples[:1],)
    exported = torch.export.export(flow.module, example)
    flow.mark("capture")
    prepared = prepare_pt2e(exported.module(), XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True)))
    for sample in samples:
        prepared(sample[None])
    quantized = convert_pt2e(prepared)
    flow.mark("quantize")
    write(torch.export.export(quantized, example), Path(flow.out))
    flow.mark("lower")
    write(exported, Path(flow.out).with_suffix(".float.pte"))  # not timed
    flow.report(bytes=Path(flow.out).stat().st_size)


if __name__ == "__main__":
    main()
