"""What ``qwtv2-edge demo`` does beside an ordinary export."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qwtv2_edge.backends import get_numerics
from qwtv2_edge.data import open_data
from qwtv2_edge.demo.data import load_part
from qwtv2_edge.evaluation import Progress, evaluate, silent
from qwtv2_edge.export import Request
from qwtv2_edge.quantization import Recipe, quantize

MODEL = "qwtv2_edge.demo.model:build"
#: numerics the 4-bit comparison is simulated under
NUMERICS = "litert-xnnpack"


@dataclass(frozen=True)
class Row:
    """One line of the 4-bit comparison: simulated on the evaluation part."""

    compensation: str
    top1: float
    sqnr_db: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def demo_request() -> Request:
    """The export of DigitsNet with 8-bit weights."""
    images, labels = load_part("evaluation")
    return Request(
        model=MODEL,
        calibration={"x": load_part("calibration")[0]},
        evaluation={"x": images, "y": labels},
        recipe=Recipe(),
        name="DigitsNet",
    )


def compare_compensation(progress: Progress = silent) -> list[Row]:
    """4-bit weights, where compensation has most to repair: none, offset, cwac."""
    from qwtv2_edge.demo.model import build
    from qwtv2_edge.frontend.torch_export import capture

    module, example = build()
    graph = capture(module, example)
    images, labels = load_part("evaluation")
    rows = []
    for kind in ("none", "offset", "cwac"):
        recipe = Recipe(weight_bits=4, compensation=kind)
        model = quantize(graph, load_part("calibration")[0], recipe, progress)
        data = open_data({"x": images, "y": labels}, model.graph)
        result = evaluate(
            model.graph,
            data,
            [get_numerics(NUMERICS).name],
            artifacts={},
            metric="top1",
            float_graph=model.float_graph,
            progress=progress,
        )
        (top1,), (agreement,) = result.simulated.values(), result.agreement.values()
        rows.append(Row(kind, top1, agreement.sqnr_db or float("inf")))
    return rows
