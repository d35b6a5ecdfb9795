"""Generated C on emulated Cortex-M boards: bytes that differ from TFLite Micro's numerics, instructions, flash, RAM.

    python tests/benchmarks/bench_boards.py [--net NAME]... [--core CORE]... [--optimize -O3]... [--samples N]

Networks take and give int8, channels-last. Flash and RAM are the compiled file's own (arm-none-eabi-size); the stack is what the
run touched, with the harness. Instructions are those of one inference, the median over the samples; they are no time.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from bench_microcontrollers import NETS, integer_network
from common import note, show
from models import calibration_of

import qwtv2_edge as qe
from qwtv2_edge.runners.arm_none_eabi import OPTIMIZE
from qwtv2_edge.runners.board import BOARDS, BoardSession

CORES = ("cortex-m4", "cortex-m7", "cortex-m55")
#: nodes told by name
MOST = 3


def codes(graph: qe.Graph, name: str, samples: int) -> np.ndarray:
    """The network's own samples as its input takes them."""
    x = calibration_of(name, samples)
    assert isinstance(x, np.ndarray)
    type = graph.tensors[graph.inputs[0]]
    x = x.transpose(0, 2, 3, 1) if x.shape[1:] != type.shape[1:] else x
    return np.clip(np.floor(x / np.float32(type.scale) + 0.5) + type.zero_point, -128, 127).astype(np.int8)


def measure(name: str, cores: list[str], levels: list[str], samples: int) -> list[dict[str, Any]]:
    graph = integer_network(name)
    inputs = codes(graph, name, samples)
    (expected,) = qe.simulate(graph, inputs, "tflite-micro")
    data = qe.emit(graph, "c").data
    rows = []
    for core in cores:
        for optimize in levels:
            with BoardSession(BOARDS[core], data, optimize=optimize) as plain:
                done = plain.run_all([inputs])
            with BoardSession(BOARDS[core], data, optimize=optimize, count=True) as counting:
                counted = counting.run_all([inputs]).instructions
            assert counted is not None
            different = int((done.outputs[0].view(np.uint8) != expected.view(np.uint8)).sum())
            dearest = sorted(counted.per_node.items(), key=lambda item: -item[1])[:MOST]
            row = {
                **{"net": name, "board": BOARDS[core].machine, "core": core, "optimize": optimize, "samples": len(inputs)},
                **{"bytes": expected.nbytes, "different": different, "instructions": counted.per_inference, "dearest": dict(dearest)},
                **{"flash": done.sizes.flash, "ram": done.sizes.ram, "stack": done.stack, "tools": plain.versions},
            }
            note(" ".join(f"{v:,}" if isinstance(v, int) else str(v) for k, v in row.items() if k not in ("board", "dearest", "tools")))
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETS, action="append")
    parser.add_argument("--core", choices=list(BOARDS), action="append")
    parser.add_argument("--optimize", choices=("-O3", "-O2", "-Os"), action="append")
    parser.add_argument("--samples", type=int, default=20)
    args = parser.parse_args()
    note("net core level samples bytes different instructions flash RAM stack")
    levels = args.optimize or [OPTIMIZE]
    show("boards", [row for net in args.net or NETS for row in measure(net, args.core or list(CORES), levels, args.samples)])


if __name__ == "__main__":
    main()
