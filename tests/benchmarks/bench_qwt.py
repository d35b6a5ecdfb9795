"""CWAC against full-matrix QwT on trained transformers, in QwT's own simulation, on data the fits did not see.

    python tests/benchmarks/bench_qwt.py [--net NAME]... [--samples N]

Inputs and weights of every linear layer and of the patch embedding are fake-quantized (weights per channel, symmetric,
by their largest value; inputs per tensor, asymmetric, from the float network's range), their outputs are not: attention
products, softmax, LayerNorm, GELU and residual additions run in float. Variants:

none    plain quantization
offset  CWAC with offsets alone
cwac    a gain and an offset per output channel of every layer, fitted in order on the quantized layer's output, shrunk, gated per
        layer on held-out samples, and kept only where the whole network gains on them (a quarter of the samples is held out)
qwt     QwT: a full matrix with intercept beside every block, by least squares of the block's error on the block's input over all
        samples; kept where its coefficient of determination is above 0; product in float16

Source of qwt: Fu, Yu, Shao, Zhou, Zhu, Wu, "Quantization without Tears", arXiv 2411.13918, and its released code. Where
the inputs of a block are collinear (outputs of a LayerNorm are) the least-squares solution of smallest norm is taken.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import note, show, sqnr_db
from models import transformers
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qwtv2_edge.compensation.moments import Moments
from qwtv2_edge.quantization.recipe import Recipe

SETTINGS = ((8, 8), (6, 6), (4, 8), (4, 4))
OBSERVERS = ("minmax", "percentile")
KINDS = ("none", "offset", "cwac")
#: share of an input's values that the percentile observer leaves inside its range
INSIDE = 0.999
BATCH = 256
#: directions of the inputs whose variance is below this share of the largest carry nothing but rounding
SMALLEST_VARIANCE = 1e-10
#: layer that ends a residual branch -> module whose input its output is added to
SKIPS = {
    transformers.PreNormBlock: {"attn.proj": "norm1", "fc2": "norm2"},
    transformers.WideBlock: {"attn_out": "norm1", "mlp2": "norm2"},
    transformers.PostNormBlock: {"attn_out": "query", "mlp2": "mlp1"},
}

Affine = tuple[np.ndarray, np.ndarray]


def layers(net: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Everything with weights, by name, in order."""
    return ((name, m) for name, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))


def skips(net: nn.Module) -> dict[str, str]:
    """SKIPS of all blocks of ``net``, by full name."""
    return {f"{name}.{end}": f"{name}.{start}" for name, m in net.named_modules() for end, start in SKIPS.get(type(m), {}).items()}


def rows(x: Tensor) -> np.ndarray:
    """(samples, positions, channels) of a layer's output: (N, C), (N, T, C) or (N, C, H, W)."""
    return (x.flatten(2).transpose(1, 2) if x.dim() == 4 else x.reshape(len(x), -1, x.shape[-1])).numpy()


# ---------------------------------------------------------------------- quantizers


def input_range(x: Tensor, observer: str) -> tuple[float, float]:
    """Smallest and largest value, or the quantiles that leave INSIDE of the values between them."""
    if observer == "minmax":
        return float(x.min()), float(x.max())
    low, high = np.quantile(x.numpy(), [(1 - INSIDE) / 2, (1 + INSIDE) / 2])
    return float(low), float(high)


def fake_input(x: Tensor, low: float, high: float, bits: int) -> Tensor:
    """``x`` on the 2^bits points of a grid over [low, high] that holds 0."""
    top = 2**bits - 1
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / top
    return torch.fake_quantize_per_tensor_affine(x, scale, round(-low / scale), 0, top)


def fake_weights(w: Tensor, bits: int) -> Tensor:
    """``w`` on a symmetric grid per output channel (first axis)."""
    top = 2 ** (bits - 1) - 1
    scale = w.flatten(1).abs().amax(1) / top
    return torch.fake_quantize_per_channel_affine(w, scale, torch.zeros(len(w), dtype=torch.int32), 0, -top, top)


# ---------------------------------------------------------------------- the float network, and quantized copies of it


@dataclass(frozen=True)
class Reference:
    """What the float network does with the calibration samples.

    outputs: of every layer; skips: what the layers that end a branch are added to; both as ``rows``.
    ranges: of every layer's input, per observer. logits: (samples, classes).
    """

    net: nn.Module
    outputs: dict[str, np.ndarray]
    skips: dict[str, np.ndarray]
    ranges: dict[str, dict[str, tuple[float, float]]]
    logits: np.ndarray

    @staticmethod
    def of(net: nn.Module, x: Tensor) -> Reference:
        outputs, added, ranges = {}, {}, {}
        modules = dict(net.named_modules())

        def keep(name: str):
            def hook(layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
                outputs[name] = rows(y)
                ranges[name] = {o: input_range(args[0], o) for o in OBSERVERS}

            return hook

        handles = [m.register_forward_hook(keep(name)) for name, m in layers(net)]
        for end, start in skips(net).items():
            handles.append(modules[start].register_forward_pre_hook(lambda m, args, end=end: added.update({end: rows(args[0])})))
        logits = net(x).numpy()
        for h in handles:
            h.remove()
        return Reference(net, outputs, added, ranges, logits)


def quantized(reference: Reference, weight_bits: int, input_bits: int, observer: str) -> nn.Module:
    """A copy of the network whose layers have quantized weights and quantize their inputs."""
    net = copy.deepcopy(reference.net)
    for name, layer in layers(net):
        layer.weight.copy_(fake_weights(layer.weight, weight_bits))
        low, high = reference.ranges[name][observer]
        layer.register_forward_pre_hook(lambda m, args, low=low, high=high: (fake_input(args[0], low, high, input_bits),))
    return net


# ---------------------------------------------------------------------- compensation


def choose(z: np.ndarray, targets: list[np.ndarray], held: np.ndarray, kind: str) -> Affine:
    """The best of none, offset and (if ``kind`` is cwac) gain with offset, over all targets, by held-out error of the last target."""
    judge = Moments.of(z[held], targets[-1][held])
    ones, zeros = np.ones_like(judge.z), np.zeros_like(judge.z)
    candidates = [(ones, zeros)]
    for y in targets:
        gain, offset, alone = Moments.of(z[~held], y[~held]).fit(Recipe().gain_limits)
        candidates.append((ones, alone))
        if kind == "cwac":
            candidates.append((gain, offset))
    return min(candidates, key=lambda affine: float(judge.error(*affine).mean()))


def add_affines(net: nn.Module, reference: Reference, held: np.ndarray, kind: str) -> None:
    """Correct every layer's output per channel; the first forward pass, over the calibration samples, fits in order."""
    modules, affines, added = dict(net.named_modules()), {}, {}
    ends = skips(net)

    def correct(name: str):
        def hook(layer: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> Tensor:
            if name not in affines:
                y = reference.outputs[name]
                targets = [y, y + reference.skips[name] - added[name]] if name in ends else [y]
                gain, offset = choose(rows(z), targets, held, kind)
                shape = (-1, 1, 1) if z.dim() == 4 else (-1,)
                affines[name] = tuple(torch.from_numpy(a.astype(np.float32)).reshape(shape) for a in (gain, offset))
            gain, offset = affines[name]
            return z * gain + offset

        return hook

    for name, layer in layers(net):
        layer.register_forward_hook(correct(name))
    for end, start in ends.items():  # ahead of the quantizer of that module's input
        modules[start].register_forward_pre_hook(lambda m, args, end=end: added.update({end: rows(args[0])}), prepend=True)


class QwtBlock(nn.Module):
    """A quantized block and the matrix beside it, which the first forward pass, over the calibration samples, fits."""

    def __init__(self, block: nn.Module, float_block: nn.Module) -> None:
        super().__init__()
        self.block, self.float_block = block, float_block
        self.matrix: Tensor | None = None
        self.intercept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        if self.matrix is None:
            self.matrix, self.intercept = least_squares(x.flatten(0, 1), (self.float_block(x) - y).flatten(0, 1))
        return y + (x.half().float() @ self.matrix).half().float() + self.intercept


def least_squares(x: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """float16 matrix (as float32) and float32 intercept of ``error`` on ``x``; zeros where they explain nothing."""
    x1 = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    solution = torch.linalg.pinv(x1.T @ x1, rtol=SMALLEST_VARIANCE, hermitian=True) @ (x1.T @ error.double())
    left = (error - x1 @ solution).square().sum()
    if left >= (error - error.mean(0)).square().sum():
        solution.zero_()
    return solution[:-1].half().float(), solution[-1].float()


def add_matrices(net: nn.Module, reference: Reference) -> None:
    """Put a QwtBlock around every block."""
    for i, float_block in enumerate(reference.net.blocks):
        net.blocks[i] = QwtBlock(net.blocks[i], float_block)


# ---------------------------------------------------------------------- measuring


def outputs(net: nn.Module, x: Tensor) -> np.ndarray:
    return np.concatenate([net(part).numpy() for part in x.split(BATCH)])


def gate(logits: dict[str, np.ndarray], reference: Reference, held: np.ndarray) -> str:
    """Of none, offset and cwac, as far as they are in ``logits``, the last one that lowers the held-out squared error of the
    logits against the best before it by more than the standard error of the difference."""
    error = {k: np.square(v[held] - reference.logits[held]).sum(1) for k, v in logits.items()}
    best = "none"
    for kind in list(logits)[1:]:
        gain = error[best] - error[kind]
        if gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)):
            best = kind
    return best


def measure(name: str, samples: int | None) -> list[dict[str, Any]]:
    """All settings, observers and variants of one network."""
    net = transformers.BUILDERS[name]()
    calibration = torch.from_numpy(transformers.calibration_of(name, samples or 10_000))
    inputs, labels = transformers.load_data(name, "eval")
    x = torch.from_numpy(inputs)
    held = np.arange(len(calibration)) < round(Recipe().holdout * len(calibration))  # the samples are in seeded order
    reference, wanted = Reference.of(net, calibration), outputs(net, x)
    found = [{"net": name, "variant": "float", "top1": top1(wanted, labels), "calibration": len(calibration), "evaluated": len(x)}]
    for (weight_bits, input_bits), observer in itertools.product(SETTINGS, OBSERVERS):
        logits, scores = {}, {}
        for kind in (*KINDS, "qwt"):
            corrected = quantized(reference, weight_bits, input_bits, observer)
            if kind == "qwt":
                add_matrices(corrected, reference)
            elif kind != "none":
                add_affines(corrected, reference, held, kind)
            fitted = corrected(calibration).numpy()
            chosen = kind
            if kind in KINDS:
                logits[kind] = fitted
                chosen = gate(logits, reference, held)
            y = outputs(corrected, x)
            scores[kind] = {"top1": top1(y, labels), "sqnr_db": round(sqnr_db(wanted, y), 2)}
            row = {"net": name, "weight_bits": weight_bits, "input_bits": input_bits, "observer": observer, "variant": kind}
            row |= {"chosen": chosen, **scores[chosen], "ungated": scores[kind]}
            found.append(row)
            note(str(found[-1]))
    return found


def top1(logits: np.ndarray, labels: np.ndarray) -> float:
    return round(100 * float((logits.argmax(1) == labels).mean()), 2)


def costs(name: str) -> dict[str, Any]:
    """Parameters and multiply-accumulates of one inference, and what each variant adds to them."""
    net = transformers.BUILDERS[name]()
    tokens, width = net.pos_embed.shape[1:]
    # the counter misses the processor's fused attention; as matrix products it counts
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        net(torch.from_numpy(transformers.load_data(name)[0][:1]))
    blocks = len(net.blocks)
    return {
        "net": name,
        "parameters": sum(p.numel() for p in net.parameters()),
        "macs": counter.get_total_flops() // 2,
        # folded into weight scales and biases; a layer without bias gains one
        "cwac_biases": sum(layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
                           for _, layer in layers(net) if layer.bias is None),
        "cwac_macs": 0,
        "qwt_parameters": blocks * (width * width + width),
        "qwt_macs": blocks * tokens * width * width,
        "qwt_additions": 2 * blocks * tokens * width,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=list(transformers.FOLDERS), action="append")
    parser.add_argument("--samples", type=int, help="calibration samples (default: all of the network's own)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    nets = args.net or list(transformers.FOLDERS)
    with torch.no_grad():
        results = [row for net in nets for row in measure(net, args.samples)]
    show("qwt", {"costs": [costs(net) for net in nets], "rows": results})


if __name__ == "__main__":
    main()
