"""Fit CWAC, node by node in order, on integers.

The float network and the integer network run side by side over the calibration samples. At each weighted node the
accumulator z of the integer network (whose inputs are already compensated) is compared with the target y, the float
network's pre-activation ("global") or the float op on the quantized inputs ("local"). A branch that ends in a residual
add may instead aim at the float sum minus the quantized skip, so that it also repairs what the skip has lost. Part of
the samples is held out: it chooses {none, offset, gain and offset} and the target per node, and at the end the whole
network's variant. Nothing here looks at labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qwtv2_edge.compensation.fold import Affine, fold, folded_constants, folded_norm
from qwtv2_edge.compensation.moments import Moments
from qwtv2_edge.compensation.spool import Spool
from qwtv2_edge.errors import CompensationError
from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.ir.types import DTYPES, WEIGHT_AXIS, Quantization, TensorType
from qwtv2_edge.numerics import Numerics
from qwtv2_edge.ops import OPS, weighted
from qwtv2_edge.ops.spec import activate
from qwtv2_edge.simulator.run import last_uses, step

#: the arithmetic that carries the integer network while fitting; any exact one would do, they differ by single LSBs
FIT_NUMERICS = Numerics(
    name="fit",
    target="",
    runtime="single rounding throughout",
    versions={},
    rules={
        **dict.fromkeys(WEIGHT_AXIS, "F32E"),
        "add": "Q20_OR_LSHIFT20",
        "sub": "Q20_OR_LSHIFT20",
        "mul": "REF_F32",
        "mean": "REF",
        "avg_pool2d": "TFLITE",
        "softmax": "TABLE",
        "logistic": "LUT_TFLITE",
        "tanh": "LUT_TFLITE",
        "elu": "LUT_TFLITE",
        "hard_swish": "TFLITE",
        "leaky_relu": "REF",
        "prelu": "REF_F32",
        "relu": "TFLITE",
        "relu6": "TFLITE",
        "clamp": "TFLITE",
        "resize_bilinear": "TFLITE",
        "quantize": "HAZ",
        "dequantize": "EXACT",
        "requantize": "REF",
        "activation": "TFLITE",
        "gelu": "LUT_TFLITE",
        "batch_matmul": "F32E",
        "l2_normalize": "TFLITE",
        **dict.fromkeys(("layer_norm", "channel_scale"), "INT_ONE"),
        **dict.fromkeys(("add:int16", "sub:int16", "channel_add"), "SUM_ONE"),
        **dict.fromkeys(("conv2d:int16", "depthwise_conv2d:int16", "fully_connected:int16", "mean:int16", "requantize:int16"), "ONE"),
        **dict.fromkeys(("mul:int16", "batch_matmul:int16"), "ONE_F32"),
        "quantize:int16": "RNE",
    },
)

KINDS = ("none", "offset", "cwac")
#: a correction that leaves a legal range is halved this many times before it is given up
SHRINK_STEPS = 6
MIN_SAMPLES = 4

Progress = Callable[[str, int, int], None]
Feed = Callable[[], Iterable[Sequence[np.ndarray]]]


@dataclass(frozen=True)
class NodeChoice:
    """The per-op report. Errors are held-out mean squares in real units, averaged over channels.

    kind: what was folded; target: "activation" or "residual"; reason: why this kind.
    token_before, token_after: the error at the class token alone, where the node has one; else None.
    """

    node: str
    op: str
    kind: str
    target: str
    reason: str
    mse_before: float
    mse_offset: float
    mse_cwac: float
    power: float
    saturation_before: float
    saturation_after: float
    token_before: float | None = None
    token_after: float | None = None

    @property
    def snr_before_db(self) -> float:
        return _db(self.power, self.mse_before)

    @property
    def snr_after_db(self) -> float:
        return _db(self.power, {"none": self.mse_before, "offset": self.mse_offset, "cwac": self.mse_cwac}[self.kind])


@dataclass(frozen=True)
class NetworkChoice:
    """The whole-network gate: held-out output error of each variant (relative to the float output's power)."""

    chosen: str
    reason: str
    error: Mapping[str, float]

    @property
    def sqnr_db(self) -> dict[str, float]:
        return {k: _db(1.0, v) for k, v in self.error.items()}


@dataclass(frozen=True)
class FitResult:
    """graph: the integer graph with the chosen variant folded in; variants: the same for every variant that was compared."""

    graph: Graph
    variants: Mapping[str, Graph]
    nodes: tuple[NodeChoice, ...]
    network: NetworkChoice


@dataclass(frozen=True)
class NodeOptions:
    """Per-node recipe fields that the fit reads."""

    compensation: str
    reference: str
    gain_limits: tuple[float, float]


def _db(signal: float, noise: float) -> float:
    return float(10 * np.log10(signal / noise)) if noise > 0 and signal > 0 else float("inf")


@dataclass(frozen=True)
class _Projection:
    """What makes the second operand of attention times V.

    node: the fully connected node; path: the movements from it to the product, in order; channels: int (heads * width,),
    the output channel of ``node`` behind each channel of the product.
    """

    node: Node
    path: tuple[Node, ...]
    channels: np.ndarray


@dataclass(frozen=True)
class _Residual:
    """The add that a branch ends in: the skip operand's tensor names in the float and the integer graph, and the gains that
    the branch's channels have there."""

    float_skip: str
    integer_skip: str
    gain: np.ndarray | float = 1.0


class _Variant:
    """One compensation kind carried through the network: its activations, choices and folded affines."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.affines: dict[str, Affine] = {}
        self.choices: list[NodeChoice] = []

    def key(self, tensor: str) -> str:
        return f"{self.kind}/{tensor}"


def fit(
    float_graph: Graph,
    graph: Graph,
    batches: Sequence[int],
    feed: Feed,
    holdout: np.ndarray,
    kind: str,
    options: Callable[[Node], NodeOptions],
    progress: Progress | None = None,
) -> FitResult:
    """Fit, gate and fold.

    Args:
        float_graph: the legalized float graph; weighted nodes have the same names in both graphs.
        graph: the integer graph without compensation.
        batches: number of samples in each batch that ``feed()`` yields.
        feed: returns a fresh iterator over batches (one float32 array per graph input each).
        holdout: bool per sample, True where held out of the fit.
        kind: the most that may be folded: "none", "offset" or "cwac".
        options: per-node recipe fields.
        progress: called with ("compensate", nodes done, nodes).
    """
    kinds = KINDS[: KINDS.index(kind) + 1]
    starts = np.concatenate([[0], np.cumsum(batches)]).astype(int)
    masks = [holdout[a:b] for a, b in itertools.pairwise(starts)]
    if len(holdout) < MIN_SAMPLES:
        kinds = ("none",)
    with Spool() as spool:
        run = _Lockstep(float_graph, graph, spool, masks, [_Variant(k) for k in kinds], options, progress)
        return run.execute(feed, kind)


class _Lockstep:
    """Runs the float network and every variant of the integer network node by node over all batches."""

    def __init__(
        self,
        float_graph: Graph,
        graph: Graph,
        spool: Spool,
        masks: list[np.ndarray],
        variants: list[_Variant],
        options: Callable[[Node], NodeOptions],
        progress: Progress | None,
    ) -> None:
        self.float_graph, self.graph, self.spool, self.masks = float_graph, graph, spool, masks
        self.variants = variants
        self.options, self.progress = options, progress
        self.float_index = {n.name: i for i, n in enumerate(float_graph.nodes)}
        self.float_dead, self.dead = last_uses(float_graph), last_uses(graph)
        self.float_done = 0
        self.residuals = _residual_branches(float_graph, graph)
        self.projections = _value_projections(graph)
        self.kept_accumulators = {p.node.name for p in self.projections.values()}
        self.token_rows = _token_rows(float_graph)
        self.mask_input = _mask_input(float_graph)
        self.padding: list[np.ndarray | None] = [None] * len(masks)

    # ------------------------------------------------------------ execution

    def execute(self, feed: Feed, kind: str) -> FitResult:
        for i, batch in enumerate(feed()):
            for t, array in zip(self.float_graph.inputs, batch, strict=True):
                type = self.graph.tensors[t]
                array = np.ascontiguousarray(array, DTYPES[self.float_graph.tensors[t].dtype])
                self.spool.put(f"float/{t}", i, array)
                codes = _quantize_input(array, type) if type.quantization is not None else array
                for v in self.variants:
                    self.spool.put(v.key(t), i, codes)
                if t == self.mask_input:
                    self.padding[i] = array.reshape(len(self.masks[i]), -1) > 0.5
        total = len(self.graph.nodes)
        for index, node in enumerate(self.graph.nodes):
            self.advance_float(node)
            if node.op in WEIGHT_AXIS:
                self.weighted(node)
            elif node.op == "layer_norm":
                self.normalised(node)
            else:
                for v in self.variants:
                    self.run_plain(node, v)
                if node.name in self.projections:
                    self.attended(node, self.projections[node.name])
            for t in self.dead.get(index, ()):
                for v in self.variants:
                    self.spool.drop(v.key(t), len(self.masks))
            if self.progress is not None:
                self.progress("compensate", index + 1, total)
        self.advance_float(None)
        return self.finish(kind)

    def run_plain(self, node: Node, v: _Variant) -> None:
        for i in range(len(self.masks)):
            arrays = [self.value(v, t, i) for t in node.inputs]
            for t, a in zip(node.outputs, step(self.graph, node, arrays, FIT_NUMERICS), strict=True):
                self.spool.put(v.key(t), i, a)

    def value(self, v: _Variant, tensor: str, batch: int) -> np.ndarray:
        constant = self.graph.constants.get(tensor)
        return constant if constant is not None else self.spool.get(v.key(tensor), batch)

    def float_value(self, tensor: str, batch: int) -> np.ndarray:
        constant = self.float_graph.constants.get(tensor)
        return constant if constant is not None else self.spool.get(f"float/{tensor}", batch)

    def advance_float(self, node: Node | None) -> None:
        """Run the float network through all nodes before ``node`` (its own float output comes from ``weighted``)."""
        stop = len(self.float_graph.nodes) if node is None else self.float_index.get(node.name, self.float_done)
        while self.float_done < stop:
            current = self.float_graph.nodes[self.float_done]
            for i in range(len(self.masks)):
                out = step(self.float_graph, current, [self.float_value(t, i) for t in current.inputs], None)
                self.put_float(current, i, out)
            self.release_float()

    def put_float(self, node: Node, batch: int, arrays: Sequence[np.ndarray]) -> None:
        for t, a in zip(node.outputs, arrays, strict=True):
            self.spool.put(f"float/{t}", batch, np.asarray(a, DTYPES[self.float_graph.tensors[t].dtype]))

    def release_float(self) -> None:
        for t in self.float_dead.get(self.float_done, ()):
            self.spool.drop(f"float/{t}", len(self.masks))
        self.float_done += 1

    # ------------------------------------------------------------ one foldable node

    def tallies(self) -> dict[str, _Tally]:
        """A tally per variant that something is fitted to: beside others, "none" is only carried along."""
        return {v.kind: _Tally(self.token_rows) for v in self.variants if v.kind != "none" or len(self.variants) == 1}

    def weighted(self, node: Node) -> None:
        """Fit every variant at a node with weights, then run it with what was chosen."""
        float_node = self.float_graph.nodes[self.float_index[node.name]]
        plain = replace(float_node, attrs=replace(float_node.attrs, activation="none"))
        options = self.options(float_node)
        residual = self.residuals.get(node.name)
        in_types = self.graph.in_types(node)
        w_quantization = in_types[1].quantization
        assert w_quantization is not None
        scale = (np.float64(in_types[0].scale) * w_quantization.scale_array.astype(np.float64)).astype(np.float32)

        tallies = self.tallies()
        for i, mask in enumerate(self.masks):
            (y,) = step(self.float_graph, plain, [self.float_value(t, i) for t in plain.inputs], None)
            for v in self.variants:
                x = self.value(v, node.inputs[0], i)
                acc = _accumulate(node, [x, *(self.graph.constants[t] for t in node.inputs[1:])], in_types)
                self.spool.put(_accumulators(v, node), i, acc)
                if v.kind not in tallies:
                    continue
                z = acc.astype(np.float32) * scale
                target = y
                if options.reference == "local":
                    (target,) = step(
                        self.float_graph, plain, [_real(x, in_types[0]), *(self.float_value(t, i) for t in plain.inputs[1:])], None
                    )
                tally = tallies[v.kind]
                tally.add("activation", z, target, mask, self.padding[i])
                if residual:
                    skip = _real(self.value(v, residual.integer_skip, i), self.graph.tensors[residual.integer_skip])
                    tally.add("residual", z, y + (self.float_value(residual.float_skip, i) - skip) / residual.gain, mask, self.padding[i])
            self.put_float(float_node, i, (activate(y, float_node.attrs.activation),))
        assert self.float_done == self.float_index[node.name]
        self.release_float()
        self.settle(node, tallies, options, lambda a: folded_constants(self.graph, node, a), self.run_weighted)

    def normalised(self, node: Node) -> None:
        """The same at a layer_norm; its values before rounding are taken from a finer 16-bit output."""
        float_node = self.float_graph.nodes[self.float_index[node.name]]
        fine = _finer(self.graph.tensors[node.outputs[0]])
        tallies = self.tallies()
        for i, mask in enumerate(self.masks):
            out = step(self.float_graph, float_node, [self.float_value(t, i) for t in float_node.inputs], None)
            for v in self.variants:
                if v.kind in tallies:
                    arrays = [self.value(v, t, i) for t in node.inputs]
                    (codes,) = OPS[node.op].integer(arrays, node.attrs, self.graph.in_types(node), (fine,), FIT_NUMERICS)
                    tallies[v.kind].add("activation", _real(codes, fine), out[0], mask, self.padding[i])
            self.put_float(float_node, i, out)
        self.release_float()
        self.settle(node, tallies, self.options(float_node), lambda a: folded_norm(self.graph, node, a), self.run_normalised)

    def settle(
        self,
        node: Node,
        tallies: Mapping[str, _Tally],
        options: NodeOptions,
        check: Callable[[Affine], object],
        execute: Callable[[Node, _Variant, Affine | None], float],
    ) -> None:
        """Choose per variant, run the node with what was chosen, write it down."""
        saturation: dict[str, float] = {}
        for v in self.variants:
            if v.kind not in tallies:
                saturation[v.kind] = execute(node, v, None)
                continue
            affine, choice = self.choose(node, v, tallies[v.kind], options, check)
            saturation[v.kind] = execute(node, v, affine)
            if affine is not None:
                v.affines[node.name] = affine
            v.choices.append(replace(choice, saturation_before=saturation["none"], saturation_after=saturation[v.kind]))

    def choose(
        self, node: Node, v: _Variant, tally: _Tally, options: NodeOptions, check: Callable[[Affine], object]
    ) -> tuple[Affine | None, NodeChoice]:
        """The best candidate on held-out error of those for which ``check`` raises no CompensationError."""
        allowed = KINDS[: min(KINDS.index(v.kind), KINDS.index(options.compensation)) + 1]
        goal = "residual" if "residual" in tally.held else "activation"
        held = tally.held[goal]
        ones, zeros = np.ones_like(held.z), np.zeros_like(held.z)
        candidates: list[tuple[float, int, str, str, Affine]] = [
            (float(held.error(ones, zeros).mean()), 0, "none", "activation", Affine(ones, zeros))
        ]
        errors = {"none": candidates[0][0]}
        notes = []
        for target, moments in tally.train.items():
            gain, offset, alone = moments.fit(options.gain_limits)
            for rank, (kind, affine) in enumerate((("offset", Affine(ones, alone)), ("cwac", Affine(gain, offset))), 1):
                legal = _legal(affine, check)
                if legal is None:
                    notes.append(f"{kind} can't be folded")
                    continue
                error = float(held.error(legal.gain, legal.offset).mean())
                errors[kind] = min(error, errors.get(kind, np.inf))
                if kind in allowed:
                    candidates.append((error, rank, kind, target, legal))
        error, _, kind, target, affine = min(candidates, key=lambda c: c[:2])
        if len(allowed) == 1:
            reason = "switched off"
        elif kind == allowed[-1]:
            reason = "lowest held-out error"
        elif kind == "none":
            reason = "held-out error would rise"
        else:
            reason = "the gain would raise the held-out error"
        token = tally.token
        choice = NodeChoice(
            node=node.name,
            op=node.op,
            kind=kind,
            target=target,
            reason="; ".join([reason, *dict.fromkeys(notes)]),
            mse_before=errors["none"],
            mse_offset=errors.get("offset", errors["none"]),
            mse_cwac=errors.get("cwac", errors["none"]),
            power=float(held.target_power.mean()),
            saturation_before=0.0,
            saturation_after=0.0,
            token_before=None if token is None else float(token.error(ones, zeros).mean()),
            token_after=None if token is None else float(token.error(affine.gain, affine.offset).mean()),
        )
        return (None if kind == "none" else affine), choice

    def run_weighted(self, node: Node, v: _Variant, affine: Affine | None) -> float:
        """The node's output codes from the stored accumulators; returns the share of saturated codes."""
        in_types, out_types = self.graph.in_types(node), self.graph.out_types(node)
        added = None
        if affine is not None:
            _, scale, bias = folded_constants(self.graph, node, affine)
            added = bias.astype(np.int64) - self.graph.constants[node.inputs[2]]
            w = in_types[1]
            assert w.quantization is not None
            folded = replace(w.quantization, scale=tuple(float(s) for s in scale))
            in_types = (in_types[0], replace(w, quantization=folded), in_types[2])
        saturated = count = 0
        bottom = getattr(node.attrs, "activation", "none") == "none"
        for i in range(len(self.masks)):
            acc = self.spool.get(_accumulators(v, node), i)
            if in_types[0].dtype == "int16":
                acc = acc if added is None else acc + added
                codes = weighted.requantize_wide(node.op, acc, node.attrs, in_types, out_types, FIT_NUMERICS)
            else:
                codes = weighted.requantize_output(node.op, acc, node.attrs, in_types, out_types, FIT_NUMERICS, added)
            self.spool.put(v.key(node.outputs[0]), i, codes)
            saturated += _saturated(codes, out_types[0], bottom)
            count += codes.size
        if node.name not in self.kept_accumulators:
            self.spool.drop(_accumulators(v, node), len(self.masks))
        return saturated / count

    def run_normalised(self, node: Node, v: _Variant, affine: Affine | None) -> float:
        """As :meth:`run_weighted`, from the node's input."""
        in_types, out_types = self.graph.in_types(node), self.graph.out_types(node)
        constants = [self.graph.constants[t] for t in node.inputs[1:]]
        if affine is not None:
            codes = folded_norm(self.graph, node, affine)
            constants = [codes.gamma, codes.beta]
            gamma = replace(in_types[1], quantization=Quantization.per_tensor(codes.scale, 0))
            in_types = (in_types[0], gamma, in_types[2])
        saturated = count = 0
        for i in range(len(self.masks)):
            arrays = [self.value(v, node.inputs[0], i), *constants]
            (out,) = OPS[node.op].integer(arrays, node.attrs, in_types, out_types, FIT_NUMERICS)
            self.spool.put(v.key(node.outputs[0]), i, out)
            saturated += _saturated(out, out_types[0], True)
            count += out.size
        return saturated / count

    # ------------------------------------------------------------ attention times V

    def attended(self, node: Node, projection: _Projection) -> None:
        """Fit an affine behind attention times V, fold it into the projection to V, and run that and the product again."""
        self.advance_float(node)
        float_node = self.float_graph.nodes[self.float_index[node.name]]
        options = self.options(self.float_graph.nodes[self.float_index[projection.node.name]])
        fine = _finer(self.graph.tensors[node.outputs[0]])
        tallies = self.tallies()
        for i, mask in enumerate(self.masks):
            out = step(self.float_graph, float_node, [self.float_value(t, i) for t in float_node.inputs], None)
            for v in self.variants:
                if v.kind not in tallies:
                    continue
                arrays = [self.value(v, t, i) for t in node.inputs]
                (codes,) = OPS[node.op].integer(arrays, node.attrs, self.graph.in_types(node), (fine,), FIT_NUMERICS)
                z, y = (np.moveaxis(a, -2, 1).reshape(len(a), a.shape[-2], -1) for a in (_real(codes, fine), out[0]))
                tallies[v.kind].add("activation", z, y, mask, self.padding[i])
            self.put_float(float_node, i, out)
        self.release_float()
        for v in self.variants:
            if v.kind in tallies:
                self.fold_attended(node, projection, v, tallies[v.kind], options)
            self.spool.drop(_accumulators(v, projection.node), len(self.masks))

    def fold_attended(self, node: Node, projection: _Projection, v: _Variant, tally: _Tally, options: NodeOptions) -> None:
        values = projection.node
        channels = len(projection.channels)
        before = v.affines.get(values.name, Affine(np.ones(channels), np.zeros(channels)))

        def after(affine: Affine) -> Affine:
            gain, offset = np.empty(channels), np.empty(channels)
            gain[projection.channels], offset[projection.channels] = affine.gain, affine.offset
            return Affine(gain * before.gain, gain * before.offset + offset)

        affine, choice = self.choose(node, v, tally, options, lambda a: folded_constants(self.graph, values, after(a)))
        out = self.graph.tensors[node.outputs[0]]

        def saturation() -> float:
            codes = [self.spool.get(v.key(node.outputs[0]), i) for i in range(len(self.masks))]
            return sum(_saturated(c, out, True) for c in codes) / sum(c.size for c in codes)

        plain = saturation()
        if affine is not None:
            v.affines[values.name] = after(affine)
            self.run_weighted(values, v, v.affines[values.name])
            for moved in (*projection.path, node):
                self.run_plain(moved, v)
            for t in (values.outputs[0], *(t for n in projection.path[:-1] for t in n.outputs)):
                self.spool.drop(v.key(t), len(self.masks))
        v.choices.append(replace(choice, saturation_before=plain, saturation_after=saturation()))

    # ------------------------------------------------------------ the whole network

    def finish(self, kind: str) -> FitResult:
        """Compare the variants' held-out outputs with the float network's and fold the best.

        A variant that folds more must beat the one that folds less by more than the standard error of their paired
        difference over the held-out samples; with few samples that keeps luck from choosing.
        """
        errors = {v.kind: self.output_errors(v) for v in self.variants}
        best, reason = self.variants[0], ""
        for v in self.variants[1:]:
            gain = errors[best.kind] - errors[v.kind]
            margin = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else 0.0
            if gain.mean() > margin:
                best, reason = v, "lowest held-out output error"
            else:
                reason = f"'{v.kind}' does not lower the held-out output error of '{best.kind}' by more than one standard error"
        if len(self.variants) == 1:
            reason = "switched off" if kind == "none" else f"fewer than {MIN_SAMPLES} calibration samples: nothing to hold out"
        report = self.variants[-1].choices
        if best is not self.variants[-1]:
            kept = {c.node: c for c in best.choices}
            kinds = {c.node: kept[c.node].kind if c.node in kept else "none" for c in report}
            targets = {c.node: kept[c.node].target if c.node in kept else "activation" for c in report}
            report = [
                replace(c, kind=kinds[c.node], target=targets[c.node], reason="rolled back by the whole-network gate")
                if kinds[c.node] != c.kind
                else c
                for c in report
            ]
        network = NetworkChoice(best.kind, reason, {k: float(e.mean()) for k, e in errors.items()})
        variants = {v.kind: fold(self.graph, v.affines) for v in self.variants}
        return FitResult(variants[best.kind], variants, tuple(report), network)

    def output_errors(self, v: _Variant) -> np.ndarray:
        """Per held-out sample the squared error of the outputs, relative to each output's float power, averaged over outputs."""
        any_held = any(m.any() for m in self.masks)
        rows = [np.flatnonzero(m) if any_held else np.arange(len(m)) for m in self.masks]
        shares = []
        for t, u in zip(self.float_graph.outputs, self.graph.outputs, strict=True):
            noise, power = [], []
            type = self.graph.tensors[u]
            for i, keep in enumerate(rows):
                samples = len(self.masks[i])
                y = self.float_value(t, i).reshape(samples, -1)[keep].astype(np.float64)
                q = self.value(v, u, i)
                q = (q if type.quantization is None else _real(q, type)).reshape(samples, -1)[keep].astype(np.float64)
                noise.append(np.square(q - y).sum(1))
                power.append(np.square(y).sum(1))
            mean_power = float(np.concatenate(power).mean())
            shares.append(np.concatenate(noise) / (mean_power if mean_power > 0 else 1.0))
        return np.mean(shares, axis=0)


def _legal(affine: Affine, check: Callable[[Affine], object]) -> Affine | None:
    """``affine``, shrunk toward the identity until it folds; None if it never does."""
    for halvings in range(SHRINK_STEPS):
        share = 0.5**halvings
        shrunk = Affine(1 + (affine.gain - 1) * share, affine.offset * share)
        try:
            check(shrunk)
        except CompensationError:
            continue
        return shrunk
    return None


def _accumulators(v: _Variant, node: Node) -> str:
    return v.key(f"{node.name}/accumulators")


def _accumulate(node: Node, arrays: Sequence[np.ndarray], in_types: Sequence[TensorType]) -> np.ndarray:
    if in_types[0].dtype == "int16":
        return weighted.accumulate_wide(node.op, arrays, node.attrs)
    return weighted.accumulate(node.op, arrays, node.attrs, in_types)


def _finer(type: TensorType) -> TensorType:
    """A 16-bit type that shows the values of ``type`` before rounding and clamping."""
    step = type.scale / 64 if type.dtype == "int8" else type.scale * 2
    return TensorType(type.shape, "int16", Quantization.per_tensor(step, 0))


def _saturated(codes: np.ndarray, type: TensorType, bottom: bool) -> int:
    low, high = type.code_bounds
    return int((codes == high).sum()) + (int((codes == low).sum()) if bottom else 0)


class _Tally:
    """Moments per target, of the fitted and of the held-out samples.

    token_rows: rows of an activation that has the class token in its first row, 0 where there is none.
    token: held-out moments of the first target at the class token.
    """

    def __init__(self, token_rows: int) -> None:
        self.token_rows = token_rows
        self.train: dict[str, Moments] = {}
        self.held: dict[str, Moments] = {}
        self.token: Moments | None = None

    def add(self, target: str, z: np.ndarray, y: np.ndarray, mask: np.ndarray, padding: np.ndarray | None) -> None:
        """z, y: float, channels last; mask: bool per sample, True where held out; padding: bool (samples, positions), False
        at positions to leave out, or None."""
        channels = z.shape[-1]
        z, y = (a.reshape(len(mask), -1, channels) for a in (z, np.broadcast_to(y, z.shape)))
        if padding is not None and padding.shape[1] != z.shape[1]:
            padding = None
        for table, chosen in ((self.train, ~mask), (self.held, mask)):
            if chosen.any():
                m = Moments.of(z[chosen], y[chosen], None if padding is None else padding[chosen])
                table[target] = table[target].merge(m) if target in table else m
        if z.shape[1] == self.token_rows and mask.any() and target == "activation":
            m = Moments.of(z[mask, :1], y[mask, :1])
            self.token = m if self.token is None else self.token.merge(m)


def _real(codes: np.ndarray, type: TensorType) -> np.ndarray:
    (values,) = OPS["dequantize"].integer([codes], None, (type,), (TensorType(type.shape),), FIT_NUMERICS)
    return values


def _quantize_input(array: np.ndarray, type: TensorType) -> np.ndarray:
    source = TensorType(type.shape)
    (codes,) = OPS["quantize"].integer([array], None, (source,), (type,), FIT_NUMERICS)
    return codes


def _residual_branches(float_graph: Graph, graph: Graph) -> dict[str, _Residual]:
    """Weighted nodes that end a residual branch: their output, without activation, is read by one add alone whose
    other operand is computed before them and has the same shape."""
    out = {}
    consumers = graph.consumers()
    order = {t: i for i, n in enumerate(graph.nodes) for t in n.outputs}
    float_producers = {n.name: n for n in float_graph.nodes}
    for i, node in enumerate(graph.nodes):
        if node.op not in WEIGHT_AXIS or node.attrs.activation != "none":
            continue
        t = node.outputs[0]
        readers = consumers.get(t, [])
        if len(readers) != 1 or readers[0].op not in ("add", "channel_add") or t in graph.outputs:
            continue
        add = readers[0]
        others = [s for s in add.inputs[:2] if s != t]
        if len(others) != 1 or others[0] in graph.constants or order.get(others[0], i) >= i:
            continue
        float_add = float_producers.get(add.name)
        float_node = float_producers[node.name]
        if float_add is None or float_node.outputs[0] not in float_add.inputs:
            continue
        float_others = [s for s in float_add.inputs[:2] if s != float_node.outputs[0]]
        if len(float_others) != 1 or graph.tensors[others[0]].shape != graph.tensors[t].shape:
            continue
        gain = float_graph.constants[float_add.inputs[2]] if add.op == "channel_add" else 1.0
        out[node.name] = _Residual(float_others[0], others[0], gain)
    return out


def _value_projections(graph: Graph) -> dict[str, _Projection]:
    """attention times V -> the fully connected node that makes V, where nothing else reads V on the way."""
    producers, consumers = graph.producers(), graph.consumers()
    found = {}
    for node in graph.nodes:
        if node.op != "batch_matmul" or node.attrs.transpose_b or node.inputs[0] not in producers:
            continue
        if producers[node.inputs[0]].op != "softmax":
            continue
        path: list[Node] = []
        tensor = node.inputs[1]
        while tensor in producers and producers[tensor].op in ("reshape", "transpose") and len(consumers[tensor]) == 1:
            path.insert(0, producers[tensor])
            tensor = path[0].inputs[0]
        source = producers.get(tensor)
        if source is None or source.op != "fully_connected" or len(consumers[tensor]) != 1 or tensor in graph.outputs:
            continue
        if source.attrs.activation != "none":
            continue
        shape = graph.tensors[tensor].shape
        channels = np.broadcast_to(np.arange(shape[-1], dtype=np.float32), shape)
        for moved in path:
            (channels,) = OPS[moved.op].reference([channels], moved.attrs)
        rows = channels[0].reshape(-1, *channels.shape[-2:])  # (heads, positions, width)
        one = rows[:, 0].reshape(-1).astype(np.int64)
        if len(channels) == 1 and np.array_equal(np.sort(one), np.arange(shape[-1])) and (rows == rows[:, :1]).all():
            found[node.name] = _Projection(source, tuple(path), one)
    return found


def _token_rows(graph: Graph) -> int:
    """Rows of the activations whose first row is a class token: a constant row joined before the data; 0 without one."""
    for node in graph.nodes:
        first = node.inputs[0]
        if node.op == "concat" and node.attrs.axis == 1 and first in graph.constants and graph.tensors[first].shape[:2] == (1, 1):
            return graph.tensors[node.outputs[0]].shape[1]
    return 0


def _mask_input(graph: Graph) -> str:
    """The graph input that says which positions count: what every mask_fill reads, through movements; "" without one."""
    producers = graph.producers()
    found = set()
    for node in graph.nodes:
        if node.op == "mask_fill":
            tensor = node.inputs[1]
            while tensor in producers and producers[tensor].op in ("reshape", "transpose"):
                tensor = producers[tensor].inputs[0]
            found.add(tensor)
    inputs = found & set(graph.inputs)
    return inputs.pop() if len(inputs) == 1 else ""
