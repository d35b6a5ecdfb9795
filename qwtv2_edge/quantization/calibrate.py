"""One streaming pass of the float network over the calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qwtv2_edge.errors import CalibrationError
from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.quantization.observers import Observer
from qwtv2_edge.quantization.recipe import Recipe
from qwtv2_edge.simulator.run import run

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Stats:
    """What calibration saw.

    Attributes:
        observers: one per real activation tensor.
        variances: input tensor of a layer_norm -> the smallest and the largest variance (mean square for RMSNorm) of any of
            its rows.
        samples: number of samples.
    """

    observers: Mapping[str, Observer]
    variances: Mapping[str, tuple[float, float]]
    samples: int


def calibrate(
    graph: Graph, batches: Iterable[Sequence[np.ndarray]], recipe: Recipe, total: int = 0, progress: Progress | None = None
) -> Stats:
    """Run the float ``graph`` over ``batches`` and gather range statistics.

    Args:
        graph: legalized float graph.
        batches: per batch one float32 array per graph input, first axis = samples.
        recipe: which statistics are needed.
        total: number of samples, for progress only.
        progress: called with ("calibrate", done, total).
    Raises: CalibrationError: no samples; a value that is not finite.
    """
    producer_of: dict[str, Recipe] = {}
    for node in graph.nodes:
        for t in node.outputs:
            producer_of[t] = recipe.for_node(node.location.module_path, node.name)
    # graph inputs keep their full range: clipping what the user feeds is never wanted
    observers = {t: Observer(histogram=False) for t in graph.inputs if graph.tensors[t].dtype == "float32"}
    for t, r in producer_of.items():
        if graph.tensors[t].dtype == "float32":
            observers[t] = Observer(histogram=r.observer != "minmax")
    normalised = {n.inputs[0]: n.attrs.centre for n in graph.nodes if n.op == "layer_norm"}
    variances = dict.fromkeys(normalised, (float("inf"), 0.0))

    def look(t: str, value: np.ndarray) -> None:
        if t in observers:
            observers[t].update(value)
        if t in normalised:
            rows = value - value.mean(-1, keepdims=True) if normalised[t] else value
            found = np.square(rows).mean(-1)
            variances[t] = min(variances[t][0], float(found.min())), max(variances[t][1], float(found.max()))

    def observe(node: Node, outputs: tuple[np.ndarray, ...]) -> None:
        for t, value in zip(node.outputs, outputs, strict=True):
            look(t, value)
            if t not in observers:
                continue
            o = observers[t]
            if not np.isfinite(o.low) or not np.isfinite(o.high):
                raise CalibrationError(
                    "the float network computes values that are not finite on the calibration data",
                    fix="check the calibration data's range and the network's weights",
                    node=f"{node.op} '{node.name}'",
                    source=str(node.location),
                )

    samples = 0
    for batch in batches:
        for t, array in zip(graph.inputs, batch, strict=True):
            look(t, np.asarray(array, np.float32))
        with np.errstate(over="ignore", invalid="ignore"):
            run(graph, batch, None, observe)
        samples += len(batch[0])
        if progress is not None:
            progress("calibrate", samples, total)
    if samples == 0:
        raise CalibrationError("the calibration set is empty", fix="give at least one sample; a few hundred are better")
    return Stats(observers, variances, samples)
