"""Channels that are much larger than the rest, scaled down before they share one 8-bit scale.

Inputs of linear layers, after a LayerNorm:

(1) X W^T = (X / s) (W s)^T                                 s > 0 per channel, exact
(2) s_j = max|X_j|^a / max|W_j|^(1 - a), over its geometric mean
(3) a from ALPHAS with the least squared error of all linear layers that read X, quantized as the recipe says

Where linear layers alone read X, gamma and beta take 1 / s in. Where a residual stream does too (post-norm), a
channel_scale goes between, if it lowers the error by LEAST_GAIN.

Outputs of linear layers that end a residual branch:

(4) x + X W^T + b = x + k * (X (W / k)^T + b / k)          k_c = max|y_c| over the largest of them, in 16 bits

The sum takes k as factors of its second operand (channel_add), at no cost; every channel of the branch then uses all
codes. Trained text encoders have a few channels a hundred times larger than the rest there.

Source: Xiao et al., "SmoothQuant", arXiv 2211.10438, for (1) and (2); the search for (3) is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from qwtv2_edge.fixedpoint import round_half_even
from qwtv2_edge.ir.graph import Graph, GraphBuilder, Node
from qwtv2_edge.ops.spec import NoAttrs
from qwtv2_edge.quantization.apply import Params, params_for, quantize_weights
from qwtv2_edge.quantization.observers import Observer, activation_range
from qwtv2_edge.quantization.recipe import Recipe
from qwtv2_edge.quantization.widths import residual_sums
from qwtv2_edge.simulator.run import run

#: exponents tried beside leaving everything as it is
ALPHAS = (0.25, 0.5, 0.65, 0.8, 0.9, 1.0)
#: rows of each LayerNorm's output that are looked at
ROWS = 4096
#: share of the error that has to go before another op is put in
LEAST_GAIN = 0.3
#: no channel is scaled by more
LARGEST = 64.0


def smooth(graph: Graph, batches: Iterable[Sequence[np.ndarray]], recipe: Recipe) -> Graph:
    """The float ``graph`` with smoothed inputs of the linear layers after LayerNorms; it computes the same.

    Args:
        graph: legalized.
        batches: calibration data; as many are read as ROWS need.
    """
    readers, ends = _linears(graph), _branch_ends(graph, recipe)
    if recipe.smoothing == "none" or not readers:
        return graph
    wanted = frozenset((*(n.outputs[0] for n in readers), *(n.outputs[0] for n in ends)))
    samples = _rows(graph, batches, wanted, recipe.seed)
    graph = _inputs(graph, readers, samples, recipe)
    return _outputs(graph, {n.name: add for n, add in ends.items()}, samples)


def _inputs(graph: Graph, readers: dict[Node, list[Node]], samples: dict[str, np.ndarray], recipe: Recipe) -> Graph:
    """Equations (1) to (3)."""
    b = GraphBuilder.copy_of(graph, nodes=False)
    renamed: dict[tuple[str, str], str] = {}
    weights: dict[str, np.ndarray] = {}
    scaled: dict[str, np.ndarray] = {}
    for norm, linears in readers.items():
        t = norm.outputs[0]
        shared = t in graph.outputs or len(graph.consumers()[t]) > len(linears)
        s = _search(graph, samples[t], norm, linears, recipe, LEAST_GAIN if shared else 0.0)
        if s is None:
            continue
        for n in linears:
            weights[n.name] = (graph.constants[n.inputs[1]] * s).astype(np.float32)
            if shared:
                renamed[n.name, t] = f"{t}:smooth"
        scaled[norm.name] = (1 / s).astype(np.float32)
    for node in graph.nodes:
        if node.name in weights:
            w = b.constant(f"{node.inputs[1]}:smooth", weights[node.name])
            node = replace(node, inputs=(renamed.get((node.name, node.inputs[0]), node.inputs[0]), w, node.inputs[2]))
        gain = scaled.get(node.name)
        shared = gain is not None and any(t == node.outputs[0] for _, t in renamed)
        if gain is not None and not shared:
            constants = [b.constant(f"{t}:smooth", graph.constants[t] * gain) for t in node.inputs[1:]]
            node = replace(node, inputs=(node.inputs[0], *constants))
        b.append(node)
        if gain is not None and shared:
            t = node.outputs[0]
            g = b.constant(f"{node.name}.smooth", gain)
            b.add("channel_scale", (t, g), NoAttrs(), name=f"{node.name}.smooth", location=node.location, outputs=(f"{t}:smooth",),
                  out_types=(graph.tensors[t],))  # fmt: skip
    return b.freeze()


def _branch_ends(graph: Graph, recipe: Recipe) -> dict[Node, Node]:
    """Linear layer -> the 16-bit residual sum that alone reads it."""
    consumers, sums = graph.consumers(), residual_sums(graph)
    found = {}
    for node in graph.nodes:
        t = node.outputs[0]
        readers = consumers.get(t, [])
        if node.op != "fully_connected" or node.attrs.activation != "none" or len(readers) != 1 or t in graph.outputs:
            continue
        add = readers[0]
        others = [s for s in add.inputs if s != t]
        if add.op != "add" or add.name not in sums or len(others) != 1 or others[0] in graph.constants:
            continue
        if add.attrs.activation != "none" or graph.tensors[others[0]].shape != graph.tensors[t].shape:
            continue
        own, ends = (recipe.for_node(n.location.module_path, n.name) for n in (node, add))
        if own.weight_granularity == "per_channel" and own.activation_bits == 8 and ends.residual_bits == 16:
            found[node] = add
    return found


def _outputs(graph: Graph, ends: dict[str, Node], samples: dict[str, np.ndarray]) -> Graph:
    """Equation (4) at every linear layer named in ``ends``."""
    b = GraphBuilder.copy_of(graph, nodes=False)
    gains: dict[str, tuple[str, str]] = {}  # sum -> (branch, gains)
    for node in graph.nodes:
        if node.name in ends:
            t = node.outputs[0]
            top = np.abs(samples[t]).max(0).astype(np.float64)
            largest = float(top.max())
            if largest > 0:
                # multiples of 2**-15, which their 16-bit codes hold
                k = np.maximum(round_half_even(32767 * top / largest), 128) / 32767
                w, bias = (b.constant(f"{s}:even", (graph.constants[s].T / k).T.astype(np.float32)) for s in node.inputs[1:])
                node = replace(node, inputs=(node.inputs[0], w, bias))
                gains[ends[node.name].name] = (t, b.constant(f"{node.name}.gains", k.astype(np.float32)))
        elif node.name in gains:
            branch, gain = gains[node.name]
            skip = next(s for s in node.inputs if s != branch)
            node = replace(node, op="channel_add", inputs=(skip, branch, gain), attrs=NoAttrs())
        b.append(node)
    return b.freeze()


def _linears(graph: Graph) -> dict[Node, list[Node]]:
    """layer_norm -> the fully connected nodes that read it."""
    consumers = graph.consumers()
    found = {n: [m for m in consumers.get(n.outputs[0], ()) if m.op == "fully_connected"] for n in graph.nodes if n.op == "layer_norm"}
    return {n: linears for n, linears in found.items() if linears}


def _rows(graph: Graph, batches: Iterable[Sequence[np.ndarray]], tensors: frozenset[str], seed: int) -> dict[str, np.ndarray]:
    """Up to ROWS rows of each of ``tensors``, drawn at random from the first samples that hold as many."""
    parts: dict[str, list[np.ndarray]] = {t: [] for t in tensors}

    def observe(node: Node, outputs: tuple[np.ndarray, ...]) -> None:
        for t, value in zip(node.outputs, outputs, strict=True):
            if t in parts:
                parts[t].append(value.reshape(-1, value.shape[-1]))

    for batch in batches:
        run(graph, batch, None, observe)
        if all(sum(len(p) for p in part) >= 2 * ROWS for part in parts.values()):
            break
    rng = np.random.default_rng(seed)
    rows = {t: np.concatenate(part) for t, part in sorted(parts.items())}
    return {t: x[rng.permutation(len(x))[:ROWS]] for t, x in rows.items()}


def _search(graph: Graph, x: np.ndarray, norm: Node, linears: Sequence[Node], recipe: Recipe, least_gain: float) -> np.ndarray | None:
    """Equation (3): s (channels,), or None where nothing is gained."""
    weights = [graph.constants[n.inputs[1]] for n in linears]
    recipes = [recipe.for_node(n.location.module_path, n.name) for n in linears]
    if any(r.activation_bits == 16 for r in recipes):
        return None
    observer = recipe.for_node(norm.location.module_path, norm.name)
    exact = [x @ w.T for w in weights]

    def error(s: np.ndarray) -> float:
        p = _observed(x / s, observer)
        real = ((p.codes(x / s).astype(np.float32) - p.zero_point) * np.float32(p.scale)).astype(np.float32)
        total = 0.0
        for w, y, r in zip(weights, exact, recipes, strict=True):
            q = quantize_weights(w * s, np.zeros(len(w), np.float32), 0, p.scale, p.scale, r)
            total += float(np.square(real @ (q.codes * q.scale[:, None]).T - y).sum() / max(float(np.square(y).sum()), 1e-30))
        return total

    ones = np.ones(x.shape[-1], np.float32)
    plain = error(ones)
    candidates = [_factors(x, weights, a) for a in ALPHAS]
    best = min(candidates, key=error)
    return best if error(best) < plain * (1 - least_gain) else None


def _factors(x: np.ndarray, weights: Sequence[np.ndarray], alpha: float) -> np.ndarray:
    """Equation (2), float32."""
    top = np.abs(x).max(0).astype(np.float64)
    reach = np.max([np.abs(w).max(0) for w in weights], 0).astype(np.float64)
    floor = 1e-5
    s = np.maximum(top, floor * top.max()) ** alpha / np.maximum(reach, floor * reach.max()) ** (1 - alpha)
    s = s / np.exp(np.log(s).mean())
    return np.clip(s, 1 / LARGEST, LARGEST).astype(np.float32)


def _observed(x: np.ndarray, recipe: Recipe) -> Params:
    observer = Observer(histogram=recipe.observer != "minmax")
    observer.update(x)
    return params_for(*activation_range(observer, recipe.observer, recipe.percentile))
