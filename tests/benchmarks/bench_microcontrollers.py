"""Flash and RAM of the networks on a microcontroller: generated C and TFLite Micro, beside published figures.

    python tests/benchmarks/bench_microcontrollers.py [--core cortex-m4] [--net NAME]...

Inputs and outputs are int8 and channels-last, as in the published files. RAM of TFLite Micro is its own arena, split into the
planned part and its records; ours is the arena of the generated C. Needs tflite-micro and arm-none-eabi-gcc.
"""

from __future__ import annotations

import argparse
from typing import Any

from common import note, show
from models import build_net, calibration_of, tiny_mlperf

import qwtv2_edge as qe
from qwtv2_edge.fit import fit
from qwtv2_edge.planner import plan_graph
from qwtv2_edge.runners.arm_none_eabi import CORES

NETS = ("resnet8", "ds_cnn", "mobilenet_v1", "autoencoder", "mobilenet_v2_035", "kwt1")
KIB = 1024
#: ResNet8 of MLPerf Tiny on STM32, as ST's model zoo lists it (STM32Cube.AI, int8)
PUBLISHED = {"resnet8": {"ST, RAM": int(69.7 * KIB), "ST, flash": 133 * KIB}}


def reference_file(name: str) -> int | None:
    """Bytes of the published int8 .tflite."""
    path = tiny_mlperf.data_dir() / tiny_mlperf.FOLDERS.get(name, "") / "ref_int8.tflite"
    return path.stat().st_size if path.is_file() else None


def integer_network(name: str) -> qe.Graph:
    """Quantized; int8 and channels-last at both ends."""
    calibration = calibration_of(name, 256)
    recipe = {"io_dtype": "int8"} if name in ("autoencoder", "kwt1") else {"io_dtype": "int8", "io_layout": "nhwc"}
    first = tuple(a[:1] for a in calibration) if isinstance(calibration, tuple) else (calibration[:1],)
    return qe.quantize(qe.capture(build_net(name), first), calibration, recipe).graph


def measure(name: str, core: str) -> dict[str, Any]:
    graph = integer_network(name)
    c, micro = fit(graph, core, "c"), fit(graph, core, "tflite-micro")
    shared, apart = plan_graph(graph), plan_graph(graph, share=False)
    assert micro.arena is not None
    peak = c.layers[c.peak]
    return {
        "macs": sum(layer.macs for layer in c.layers),
        "weights": c.flash.parts["weights"],
        "c": {"flash": c.flash.bytes, "ram": c.ram.bytes, "peak": f"{peak.op} {peak.node}", "peak_live": peak.live_bytes},
        "tflite_micro": {
            "file": micro.flash.parts["file"],
            "flash_estimate": micro.flash.bytes,
            "arena_head": micro.arena.head,
            "arena_64": micro.arena.bytes,
            "arena_32_estimate": micro.arena.bytes_32,
        },
        "planner": {"sharing": shared.bytes, "lower_bound": shared.bound, "without_sharing": apart.bytes},
        "published": {"reference int8 file": reference_file(name), **PUBLISHED.get(name, {})},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--core", default="cortex-m4", choices=list(CORES))
    parser.add_argument("--net", action="append", choices=NETS)
    args = parser.parse_args()
    results = {}
    for name in args.net or NETS:
        results[name] = measure(name, args.core)
        c, micro = results[name]["c"], results[name]["tflite_micro"]
        note(
            f"{name}: flash {c['flash']:,} (TFLite Micro {micro['flash_estimate']:,}), RAM {c['ram']:,} (TFLite Micro "
            f"{micro['arena_32_estimate']:,}, planned part {micro['arena_head']:,})"
        )
    show("microcontrollers", {"core": args.core, "networks": results})


if __name__ == "__main__":
    main()
