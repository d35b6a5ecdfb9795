"""The whole of post-training quantization: legalize, calibrate, apply, compensate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from qwtv2_edge.compensation.fit import FitResult, NetworkChoice, NodeChoice, NodeOptions, fit
from qwtv2_edge.data import open_data, rereadable
from qwtv2_edge.errors import CalibrationError, QuantizeError, RecipeError
from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.quantization.apply import apply
from qwtv2_edge.quantization.calibrate import calibrate
from qwtv2_edge.quantization.legalize import TO_NCHW, TO_NHWC, legalize
from qwtv2_edge.quantization.recipe import Recipe
from qwtv2_edge.quantization.smooth import smooth
from qwtv2_edge.simulator.run import batch_size

Progress = Callable[[str, int, int], None]
#: samples that enter one step of the fit at most; keeps its float temporaries small
FIT_BATCH = 64
#: below this the report warns about the held-out gates
FEW_SAMPLES = 64


@dataclass(frozen=True)
class QuantizationReport:
    """What quantization did.

    Attributes:
        samples: calibration samples used.
        compensation: one record per weighted op, in order.
        network: the whole-network gate.
        notes: anything a user should know, in words.
    """

    samples: int
    compensation: tuple[NodeChoice, ...]
    network: NetworkChoice
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantizedModel:
    """The outcome.

    Attributes:
        graph: integer, CWAC folded.
        float_graph: what it stands for, in the same layout.
        variants: "none", "offset", "cwac", as far as the recipe allows -> integer graph; ``graph`` is the one that the
            whole-network gate chose.
        report: how it came about.
    """

    graph: Graph
    float_graph: Graph
    variants: Mapping[str, Graph]
    report: QuantizationReport


def quantize(
    graph: Graph, calibration: Any, recipe: Recipe | Mapping[str, Any] | None = None, progress: Progress | None = None
) -> QuantizedModel:
    """Quantize a captured float graph after training and compensate it.

    Args:
        graph: float, from ``qwtv2_edge.capture``.
        calibration: samples without labels: a path, arrays, or an iterable of samples or batches (see ``qwtv2_edge.data``);
            read several times in bounded memory.
        recipe: the user's choices; a mapping is checked as ``Recipe.from_mapping`` does.
        progress: called with (stage, done, total).
    Returns: the integer graph with its report.
    Raises: CalibrationError, QuantizeError, RecipeError.
    """
    if recipe is None:
        recipe = Recipe()
    elif isinstance(recipe, Mapping):
        recipe = Recipe.from_mapping(recipe)
    if any(n.op == "quantize" for n in graph.nodes) or any(graph.tensors[t].dtype in ("int8", "int16") for t in graph.inputs):
        raise QuantizeError("the graph is quantized already", fix="give the float graph that qwtv2_edge.capture returned")
    check_overrides(graph, recipe)
    legal = legalize(graph, recipe.io_layout)
    with rereadable(open_data(calibration, legal, purpose="calibration", error=CalibrationError)) as data:
        unit = legal.tensors[legal.inputs[0]].shape[0]
        per_pass = min(batch_size(legal), max(1, FIT_BATCH // unit))
        size = per_pass * unit
        legal = smooth(legal, data.batches(size), recipe)
        stats = calibrate(legal, data.batches(size), recipe, data.count or 0, progress)
        quantized = apply(legal, stats, recipe)
        samples = stats.samples // unit
        batches = [min(per_pass, samples - i) for i in range(0, samples, per_pass)]
        result = fit(
            legal,
            quantized.graph,
            batches,
            lambda: data.batches(size),
            held_out(samples, recipe),
            recipe.compensation,
            lambda node: _options(node, recipe),
            progress,
        )
    return QuantizedModel(
        result.graph, legal, result.variants, _report(stats.samples, result, boundary_transposes(legal), quantized.narrow)
    )


def held_out(samples: int, recipe: Recipe) -> np.ndarray:
    """bool per sample: which ones the fit must not see, drawn with the recipe's seed; both parts hold at least one."""
    mask = np.zeros(samples, bool)
    if samples > 1:
        count = min(max(int(samples * recipe.holdout + 0.5), 1), samples - 1)
        mask[np.random.default_rng(recipe.seed).permutation(samples)[:count]] = True
    return mask


def _options(node: Node, recipe: Recipe) -> NodeOptions:
    r = recipe.for_node(node.location.module_path, node.name)
    return NodeOptions(r.compensation, r.reference, r.gain_limits)


def check_overrides(graph: Graph, recipe: Recipe) -> None:
    """Every override must match something: a typo that is ignored in silence is worse than an error.

    Raises: RecipeError naming the glob and the module paths there are.
    """
    for glob in recipe.overrides:
        if not any(fnmatchcase(n.location.module_path, glob) or fnmatchcase(n.name, glob) for n in graph.nodes):
            paths = sorted({n.location.module_path or n.name for n in graph.nodes})
            shown = ", ".join(paths[:12]) + (", ..." if len(paths) > 12 else "")
            raise RecipeError(f"overrides['{glob}'] matches no node", fix=f"module paths are: {shown}")


def boundary_transposes(graph: Graph) -> list[str]:
    """Inputs and outputs whose image layout costs a transpose in the artifact."""
    at_input = {t for n in graph.nodes if n.op == "transpose" and n.attrs.perm == TO_NHWC for t in n.inputs if t in graph.inputs}
    at_output = {t for n in graph.nodes if n.op == "transpose" and n.attrs.perm == TO_NCHW for t in n.outputs if t in graph.outputs}
    return sorted(at_input | at_output)


def _report(samples: int, result: FitResult, transposed: list[str], narrow: Sequence[Node]) -> QuantizationReport:
    notes = []
    if narrow:
        kinds = ", ".join(sorted({n.op for n in narrow}))
        notes.append(f"{len(narrow)} nodes stay at 8 bits, having no form for 16: {kinds}")
    if transposed:
        shown = ", ".join(f"'{t}'" for t in transposed)
        notes.append(f'channels-first {shown}: one extra transpose each in the artifact; io_layout = "nhwc" drops it')
    if samples < FEW_SAMPLES and result.network.chosen != "none":
        notes.append(f"only {samples} calibration samples: the gates are weak below {FEW_SAMPLES}")
    return QuantizationReport(samples, result.nodes, result.network, tuple(notes))
