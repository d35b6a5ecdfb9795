"""Our flow, the same work: both formats from one module and the same calibration samples, compensation included.

python qwtv2_flow.py NET CALIBRATION.npy OUT_STEM
"""

from __future__ import annotations

import resource

from flow import Flow

import qwtv2_edge as qe


def main() -> None:
    flow = Flow()
    graph = qe.capture(flow.module, (flow.calibration[:1],))
    flow.mark("capture")
    result = qe.quantize(graph, flow.calibration)
    flow.mark("quantize")
    sizes = {}
    for target in ("tflite", "executorch-xnnpack"):
        artifact = qe.emit(result.graph, target)
        artifact.save(flow.out + artifact.suffix)
        sizes[target] = len(artifact.data)
    flow.mark("emit")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # not timed: the same network with int8 inputs and outputs, as the LiteRT flow makes it
    codes = qe.quantize(graph, flow.calibration, {"io_dtype": "int8"})
    qe.emit(codes.graph, "tflite").save(flow.out + ".int8.tflite")
    flow.report(bytes=sizes, peak_rss_bytes=peak)


if __name__ == "__main__":
    main()
