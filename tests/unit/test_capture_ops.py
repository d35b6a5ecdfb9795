"""Every op that capture takes: the graph computes what the module computes, with no data movement that is not needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
import torch.nn.functional as F
from torch import nn

from qwtv2_edge.frontend.torch_export import capture
from qwtv2_edge.ir.check import check
from qwtv2_edge.simulator.run import run_float

#: float32 sums in another order: a few ulp per term, relative to the largest output
FLOAT_TOLERANCE = 2e-5


@dataclass(frozen=True)
class Case:
    """moves: transposes expected in the graph; ops: other ops that must (count > 0) or must not (0) be there."""

    name: str
    build: Callable[[], object]
    shapes: tuple[tuple[int, ...], ...]
    moves: int | None = None
    ops: tuple[tuple[str, int], ...] = ()


class Fn(nn.Module):
    def __init__(self, f: Callable[..., object], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.f = f

    def forward(self, *xs: torch.Tensor) -> object:
        return self.f(*self.layers, *xs)


def fn(f: Callable[..., object], *layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Fn(f, *(make() for make in layers))


class Param(nn.Module):
    """A module that only holds a seeded parameter ``p``."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.randn(shape))


IMAGE = ((1, 6, 10, 8),)
ODD = ((1, 6, 11, 9),)
SEQ = ((1, 6, 12),)
ROW = ((1, 12),)


def _conv(*args: object, **kw: object) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*args, **kw)  # type: ignore[arg-type]


def _shuffle(x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


_NORM = (lambda: Param(1, 3, 1, 1), lambda: Param(3, 1, 1))

CASES = [
    # convolutions
    Case("conv2d", _conv(6, 5, 3), IMAGE, 2),
    Case("conv2d_stride_pad", _conv(6, 5, (3, 2), stride=(2, 1), padding=(1, 0)), IMAGE, 2),
    Case("conv2d_dilation", _conv(6, 5, 3, dilation=(2, 3), padding=2), IMAGE, 2),
    Case("conv2d_same", _conv(6, 5, (4, 3), padding="same"), IMAGE, 2, (("pad", 0),)),
    Case("conv2d_same_dilated", _conv(6, 5, 4, padding="same", dilation=2), IMAGE, 2),
    Case("conv2d_valid", _conv(6, 5, 3, padding="valid"), IMAGE, 2),
    Case("conv2d_groups", _conv(6, 9, 3, groups=3, padding=1), IMAGE, 2),
    Case("conv2d_no_bias", _conv(6, 5, 3, bias=False), IMAGE, 2),
    Case("conv2d_reflect_free", _conv(6, 6, 1), IMAGE, 2),
    Case("depthwise", _conv(6, 6, 3, groups=6, padding=1, stride=2), IMAGE, 2, (("depthwise_conv2d", 1), ("conv2d", 0))),
    Case("depthwise_multiplier", _conv(6, 18, 3, groups=6, padding=1), IMAGE, 2, (("depthwise_conv2d", 1),)),
    Case("one_channel", _conv(1, 4, 3), ((1, 1, 8, 8),), 1, (("conv2d", 1),)),
    Case("pad_conv", fn(lambda c, x: c(F.pad(x, (0, 1, 2, 3))), _conv(6, 5, 3)), IMAGE, 2, (("pad", 0),)),
    Case("pad_module_conv", lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(6, 5, 3, 2)), IMAGE, 2, (("pad", 0),)),
    Case("pad_value_conv", fn(lambda c, x: c(F.pad(x, (1, 1, 1, 1), value=0.5)), _conv(6, 5, 3)), IMAGE, 2, (("pad", 1),)),
    Case("pad_twice", fn(lambda c, x: c(F.pad(F.pad(x, (1, 0)), (0, 0, 1, 0))), _conv(6, 5, 3)), IMAGE, 2, (("pad", 0),)),
    Case("crop_conv", fn(lambda c, x: c(F.pad(x, (-1, 1, 1, -2))), _conv(6, 5, 3)), IMAGE, 2),
    Case("conv1d", lambda: nn.Conv1d(6, 5, 3, stride=2, padding=1), SEQ, 2),
    Case("conv1d_depthwise", lambda: nn.Conv1d(6, 12, 3, groups=6), SEQ, 2, (("depthwise_conv2d", 1),)),
    Case("conv1d_same", lambda: nn.Conv1d(6, 5, 4, padding="same"), SEQ, 2),
    Case(
        "conv1d_chain",
        lambda: nn.Sequential(nn.Conv1d(6, 5, 3), nn.BatchNorm1d(5), nn.ReLU(), nn.Conv1d(5, 4, 3), nn.MaxPool1d(2), nn.AvgPool1d(2)),
        SEQ,
        2,
        (("depthwise_conv2d", 0),),
    ),
    Case("tconv", lambda: nn.ConvTranspose2d(6, 5, 3, 2), IMAGE, 2),
    Case("tconv_padding", lambda: nn.ConvTranspose2d(6, 5, (3, 4), (2, 3), padding=(1, 2)), IMAGE, 2),
    Case("tconv_output_padding", lambda: nn.ConvTranspose2d(6, 5, 3, 2, padding=1, output_padding=1), IMAGE, 2),
    Case("tconv_gap", lambda: nn.ConvTranspose2d(6, 5, 2, 3, output_padding=1), IMAGE, 2),
    Case("tconv_groups", lambda: nn.ConvTranspose2d(6, 4, 3, 2, padding=1, groups=2), IMAGE, 2, (("transpose_conv2d", 2),)),
    Case("tconv1d", lambda: nn.ConvTranspose1d(6, 5, 4, 2, padding=1, output_padding=1), SEQ, 2),
    Case("tconv1d_groups", lambda: nn.ConvTranspose1d(6, 6, 4, 2, padding=1, groups=3), SEQ, 2),
    # BatchNorm
    Case("conv_bn", lambda: nn.Sequential(nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5)), IMAGE, 2, (("depthwise_conv2d", 0),)),
    Case("depthwise_bn", lambda: nn.Sequential(nn.Conv2d(6, 12, 3, groups=6), nn.BatchNorm2d(12)), IMAGE, 2, (("depthwise_conv2d", 1),)),
    Case("grouped_bn", lambda: nn.Sequential(nn.Conv2d(6, 9, 3, groups=3), nn.BatchNorm2d(9)), IMAGE, 2, (("depthwise_conv2d", 0),)),
    Case("tconv_bn", lambda: nn.Sequential(nn.ConvTranspose2d(6, 5, 3, 2), nn.BatchNorm2d(5)), IMAGE, 2, (("depthwise_conv2d", 0),)),
    Case(
        "tconv_groups_bn",
        lambda: nn.Sequential(nn.ConvTranspose2d(6, 4, 3, groups=2), nn.BatchNorm2d(4)),
        IMAGE,
        2,
        (("depthwise_conv2d", 0),),
    ),
    Case("linear_bn", lambda: nn.Sequential(nn.Linear(12, 5), nn.BatchNorm1d(5)), ROW, 0, (("depthwise_conv2d", 0), ("reshape", 0))),
    Case("bn_no_affine", lambda: nn.Sequential(nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5, affine=False)), IMAGE, 2),
    Case("bn_alone", lambda: nn.BatchNorm2d(6), IMAGE, 2, (("depthwise_conv2d", 1),)),
    Case("bn_alone_row", lambda: nn.BatchNorm1d(12), ROW, 0, (("depthwise_conv2d", 1),)),
    Case("bn_alone_seq", lambda: nn.BatchNorm1d(6), SEQ, 2, (("depthwise_conv2d", 1),)),
    Case("bn_after_relu", lambda: nn.Sequential(nn.Conv2d(6, 5, 3), nn.ReLU(), nn.BatchNorm2d(5)), IMAGE, 2, (("depthwise_conv2d", 1),)),
    Case(
        "bn_shared_conv",
        fn(lambda c, b, x: c(x) + b(c(x)), _conv(6, 6, 1), lambda: nn.BatchNorm2d(6)),
        IMAGE,
        2,
        (("depthwise_conv2d", 0), ("conv2d", 2)),
    ),
    Case(
        "bn_on_read_twice",
        fn(lambda c, b, x: (lambda y: y + b(y))(c(x)), _conv(6, 6, 1), lambda: nn.BatchNorm2d(6)),
        IMAGE,
        2,
        (("depthwise_conv2d", 1), ("conv2d", 1)),
    ),
    Case(
        "affine_folded",
        fn(lambda c, p, x: (c(x) * p.p - 1.5) / 2, _conv(6, 5, 3), lambda: Param(1, 5, 1, 1)),
        IMAGE,
        2,
        (("mul", 0), ("add", 0)),
    ),
    Case("dropout", lambda: nn.Sequential(nn.Conv2d(6, 5, 3), nn.Dropout(), nn.BatchNorm2d(5), nn.Dropout2d(), nn.Identity()), IMAGE, 2),
    # linear
    Case("linear", lambda: nn.Linear(12, 5), ROW, 0, (("reshape", 0),)),
    Case("linear_no_bias", lambda: nn.Linear(12, 5, bias=False), ROW, 0),
    Case("linear_rank3", lambda: nn.Linear(12, 5), SEQ, 0),
    Case("linear_rank4", lambda: nn.Linear(8, 5), IMAGE, 0),
    Case("linear_rank1", lambda: nn.Linear(12, 5), ((12,),), 0),
    Case("matmul", fn(lambda p, x: x @ p.p, lambda: Param(12, 5)), ROW, 0),
    Case("addmm", fn(lambda p, b, x: torch.addmm(b.p, x, p.p), lambda: Param(12, 5), lambda: Param(5)), ROW, 0),
    Case("mm", fn(lambda p, x: torch.mm(x, p.p), lambda: Param(12, 5)), ROW, 0),
    Case("flatten_linear", lambda: nn.Sequential(nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(5 * 8 * 6, 7)), IMAGE, 1, (("reshape", 1),)),
    Case(
        "flatten_relu_linear",
        lambda: nn.Sequential(nn.Conv2d(6, 5, 3), nn.Flatten(), nn.ReLU(), nn.Dropout(), nn.Linear(5 * 8 * 6, 7)),
        IMAGE,
        1,
    ),
    Case(
        "flatten_two_linears",
        fn(
            lambda c, a, b, x: (lambda y: a(y) * b(y))(c(x).flatten(1)),
            _conv(6, 5, 3),
            lambda: nn.Linear(240, 4),
            lambda: nn.Linear(240, 4),
        ),
        IMAGE,
        1,
    ),
    Case("flatten_out", lambda: nn.Sequential(nn.Conv2d(6, 5, 3), nn.Flatten()), IMAGE, 2),
    Case(
        "pool_flatten_linear", lambda: nn.Sequential(nn.Conv2d(6, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)), IMAGE, 1
    ),
    Case("conv1d_flatten_linear", lambda: nn.Sequential(nn.Conv1d(6, 5, 3), nn.Flatten(), nn.Linear(50, 3)), SEQ, 1),
    Case("view_linear", fn(lambda c, fc, x: fc(c(x).view(1, -1)), _conv(6, 5, 3), lambda: nn.Linear(240, 4)), IMAGE, 1),
    # element by element
    *[
        Case(f"act_{type(m).__name__}_{i}", (lambda m=m: nn.Sequential(nn.Conv2d(6, 6, 1), m)), IMAGE, 2)
        for i, m in enumerate(
            (
                nn.ReLU(),
                nn.ReLU(inplace=True),
                nn.ReLU6(),
                nn.Hardtanh(),
                nn.Hardtanh(-0.5, 2),
                nn.Hardswish(),
                nn.Hardsigmoid(),
                nn.SiLU(),
                nn.Sigmoid(),
                nn.Tanh(),
                nn.LeakyReLU(0.2),
                nn.PReLU(),
                nn.PReLU(6),
                nn.ELU(),
                nn.ELU(0.5),
                nn.Softmax(1),
            )
        )
    ],
    Case("clamp", fn(lambda x: x.clamp(-0.3, 0.7)), IMAGE, 0, (("clamp", 1),)),
    Case("clamp_min", fn(lambda x: x.clamp(min=-0.2)), IMAGE, 0),
    Case("clamp_max", fn(lambda x: torch.clamp_max(x, 0.2)), IMAGE, 0),
    Case("clamp_min_zero", fn(lambda x: torch.clamp_min(x, 0)), IMAGE, 0, (("relu", 1),)),
    Case("prelu_row", lambda: nn.PReLU(12), ROW, 0),
    Case("prelu_seq", lambda: nn.PReLU(6), SEQ, 2),
    Case("add", fn(lambda a, b: a + b), (IMAGE[0], IMAGE[0]), 0),
    Case("add_alpha", fn(lambda a, b: torch.add(a, b, alpha=2)), (IMAGE[0], IMAGE[0]), 0),
    Case("sub", fn(lambda a, b: a - b), (IMAGE[0], IMAGE[0]), 0),
    Case("sub_alpha", fn(lambda a, b: torch.sub(a, b, alpha=0.5)), (IMAGE[0], IMAGE[0]), 0),
    Case("mul", fn(lambda a, b: a * b), (IMAGE[0], IMAGE[0]), 0),
    Case("square", fn(lambda a: a.square() + a**2), IMAGE, 0),
    Case("scalars", fn(lambda x: (2 * x + 1) / 4 - 0.5), IMAGE, 0),
    Case("rsub", fn(lambda x: 1 - x), IMAGE, 0, (("sub", 1),)),
    Case("neg", fn(lambda x: -x), IMAGE, 0),
    Case("constant_first", fn(lambda p, x: p.p - x, lambda: Param(6, 1, 1)), IMAGE, 0),
    Case("channel_constants", fn(lambda c, p, x: torch.relu(c(x)) * p.p, _conv(6, 6, 1), lambda: Param(6, 1, 1)), IMAGE, 2),
    Case("spatial_constants", fn(lambda c, p, x: torch.relu(c(x)) + p.p, _conv(6, 6, 1), lambda: Param(1, 6, 10, 8)), IMAGE, 2),
    Case("folded_constants", fn(lambda p, x: x * (p.p.exp() + 1).sum(0) / 3, lambda: Param(4, 8)), IMAGE, 0, (("mul", 2),)),
    Case("row_constants", fn(lambda p, x: x + p.p, lambda: Param(12)), ROW, 0),
    Case("broadcast_up", fn(lambda p, x: x * p.p, lambda: Param(1, 6, 1, 1)), ((1, 1, 4, 4),), None),
    Case("broadcast_rows", fn(lambda a, b: a + b), ((1, 6, 10, 8), (1, 1, 10, 1)), 0),
    Case("broadcast_ranks", fn(lambda a, b: a * b), ((1, 6, 10, 8), (10, 8)), 0),
    Case("broadcast_ranks_swapped", fn(lambda a, b: b - a), ((1, 6, 10, 8), (8,)), 0),
    Case("mixed_layouts", fn(lambda c, a, b: c(a) + b, _conv(6, 6, 1)), (IMAGE[0], IMAGE[0])),
    Case("expand", fn(lambda c, x: torch.relu(c(x)) * c(x).mean((2, 3), keepdim=True).expand(1, 6, 10, 8), _conv(6, 6, 1)), IMAGE, 2),
    Case("repeat", fn(lambda x: x.repeat(1, 2, 1, 1)), IMAGE, 0),
    Case(
        "squeeze_excite",
        fn(lambda c, s, x: (lambda y: y * torch.sigmoid(s(F.adaptive_avg_pool2d(y, 1))))(c(x)), _conv(6, 6, 1), _conv(6, 6, 1)),
        IMAGE,
        2,
    ),
    Case(
        "squeeze_excite_linear",
        fn(
            lambda c, s, x: (lambda y: y * torch.sigmoid(s(y.mean((2, 3))))[:, :, None, None])(c(x)),
            _conv(6, 6, 1),
            lambda: nn.Linear(6, 6),
        ),
        IMAGE,
        2,
    ),
    Case("hardswish_spelled", fn(lambda x: x * F.relu6(x + 3) / 6), IMAGE, 0, (("hard_swish", 1), ("mul", 0), ("add", 0))),
    Case("hardswish_spelled_2", fn(lambda x: x * (F.relu6(x + 3) / 6)), IMAGE, 0, (("hard_swish", 1), ("mul", 0))),
    Case("hardswish_spelled_3", fn(lambda x: x * F.hardsigmoid(x)), IMAGE, 0, (("hard_swish", 1), ("mul", 0))),
    Case("hardswish_spelled_4", fn(lambda x: (x + 3).clamp(0, 6) * x * (1 / 6)), IMAGE, 0, (("hard_swish", 1),)),
    Case("hardsigmoid_spelled", fn(lambda x: F.relu6(x + 3.0) / 6.0), IMAGE, 0, (("hard_sigmoid", 1), ("add", 0))),
    Case("not_hardswish", fn(lambda x: x.abs() if False else (x * 2) * F.relu6(x + 3) / 6), IMAGE, 0, (("hard_swish", 0),)),
    # pooling
    Case("max_pool", lambda: nn.MaxPool2d(2), IMAGE, 2),
    Case("max_pool_pad", lambda: nn.MaxPool2d(3, 2, 1), ODD, 2),
    Case("max_pool_ceil", lambda: nn.MaxPool2d(3, 2, ceil_mode=True), IMAGE, 2),
    Case("max_pool_ceil_pad", lambda: nn.MaxPool2d(3, 3, 1, ceil_mode=True), IMAGE, 2),
    Case("max_pool_floor_leftover", lambda: nn.MaxPool2d((2, 3), (3, 2)), ODD, 2),
    Case("max_pool1d", lambda: nn.MaxPool1d(3, 2, 1, ceil_mode=True), SEQ, 2),
    Case("relu_pad_max_pool", fn(lambda x: F.max_pool2d(F.pad(F.relu(x), (0, 1, 1, 1)), 3, 2)), IMAGE, 2, (("pad", 0),)),
    Case("pad_max_pool", fn(lambda x: F.max_pool2d(F.pad(x, (0, 1, 1, 1)), 3, 2)), IMAGE, 2, (("pad", 1),)),
    Case("pad_inf_max_pool", fn(lambda x: F.max_pool2d(F.pad(x, (0, 1, 1, 1), value=float("-inf")), 3, 2)), IMAGE, 2, (("pad", 0),)),
    Case("avg_pool", lambda: nn.AvgPool2d(2), IMAGE, 2),
    Case("avg_pool_pad", lambda: nn.AvgPool2d(3, 2, 1), ODD, 2, (("pad", 1),)),
    Case("avg_pool_exclude_pad", lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), ODD, 2, (("pad", 0),)),
    Case("avg_pool_ceil", lambda: nn.AvgPool2d(3, 2, ceil_mode=True), IMAGE, 2),
    Case("avg_pool_ceil_pad", lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), IMAGE, 2),
    Case("avg_pool_ceil_exclude", lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), IMAGE, 2),
    Case("avg_pool1d", lambda: nn.AvgPool1d(3, 2, 1), SEQ, 2),
    Case("adaptive_avg_1", lambda: nn.AdaptiveAvgPool2d(1), IMAGE, None, (("mean", 1),)),
    Case("adaptive_avg_divisor", lambda: nn.AdaptiveAvgPool2d((5, 4)), IMAGE, 2, (("avg_pool2d", 1),)),
    Case("adaptive_avg_same", lambda: nn.AdaptiveAvgPool2d((10, 8)), IMAGE, None, (("avg_pool2d", 0),)),
    Case("adaptive_avg_keep_one", lambda: nn.AdaptiveAvgPool2d((5, None)), IMAGE, 2),
    Case("adaptive_avg1d", lambda: nn.AdaptiveAvgPool1d(4), SEQ, 2),
    Case("adaptive_avg1d_1", lambda: nn.AdaptiveAvgPool1d(1), SEQ, None, (("mean", 1),)),
    Case("adaptive_max_1", lambda: nn.AdaptiveMaxPool2d(1), IMAGE, None, (("reduce_max", 1),)),
    Case("adaptive_max_divisor", lambda: nn.AdaptiveMaxPool2d((5, 2)), IMAGE, 2, (("max_pool2d", 1),)),
    Case("adaptive_max1d", lambda: nn.AdaptiveMaxPool1d(3), SEQ, 2),
    # reductions
    Case("mean_hw", fn(lambda c, x: c(x).mean((2, 3)), _conv(6, 5, 1)), IMAGE, 1, (("reshape", 0),)),
    Case("mean_keepdim", fn(lambda c, x: c(x).mean((2, 3), keepdim=True), _conv(6, 5, 1)), IMAGE, 1),
    Case("mean_two_steps", fn(lambda c, x: c(x).mean(3).mean(2), _conv(6, 5, 1)), IMAGE, 1),
    Case("mean_channels", fn(lambda c, x: c(x).mean(1, keepdim=True), _conv(6, 5, 1)), IMAGE, 1),
    Case("mean_last", fn(lambda x: x.mean(-1)), IMAGE, 0),
    Case("sum", fn(lambda c, x: c(x).sum((-1, -2)), _conv(6, 5, 1)), IMAGE, 1),
    Case("amax", fn(lambda c, x: c(x).amax((2, 3)), _conv(6, 5, 1)), IMAGE, 1),
    Case("max_dim_values", fn(lambda x: x.max(dim=2).values), IMAGE, 0),
    Case("max_dim_keepdim", fn(lambda x: torch.max(x, 1, keepdim=True)[0]), IMAGE, 0),
    Case("conv1d_mean", fn(lambda c, x: c(x).mean(2), lambda: nn.Conv1d(6, 5, 3)), SEQ, 1),
    # softmax
    Case("softmax_row", lambda: nn.Softmax(-1), ROW, 0),
    Case("softmax_channels", fn(lambda c, x: c(x).softmax(1), _conv(6, 5, 1)), IMAGE, 2),
    Case("softmax_width", fn(lambda x: x.softmax(-1)), IMAGE, 0),
    Case("softmax_height", fn(lambda x: x.softmax(2)), IMAGE, 2),
    Case("softmax_units", fn(lambda c, x: c(x).mean((2, 3), keepdim=True).softmax(1).flatten(1), _conv(6, 5, 1)), IMAGE, 1),
    # shapes
    Case("reshape_free", fn(lambda x: x.view(1, 6, 80).unsqueeze(1).squeeze(0).reshape(1, 480) * 2), IMAGE, 0),
    Case("reshape_split", fn(lambda x: torch.relu(x.view(1, 2, 3, 10, 8))), IMAGE, 0),
    Case("reshape_odd_factors", fn(lambda c, x: torch.relu(c(x)).reshape(1, 10, 48), _conv(6, 6, 1)), IMAGE, 2),
    Case("permute_roundtrip", fn(lambda x: torch.relu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), IMAGE, 0),
    Case("permute_out", fn(lambda c, x: c(x).permute(0, 2, 3, 1), _conv(6, 5, 3)), IMAGE, 1),
    Case("nhwc_in", fn(lambda c, x: c(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), _conv(6, 5, 3)), ((1, 10, 8, 6),), 0),
    Case("nhwc_in_normalised", fn(lambda c, x: c((x / 127.5 - 1).permute(0, 3, 1, 2)).mean((2, 3)), _conv(6, 5, 3)), ((1, 10, 8, 6),), 0),
    Case("nlc_in", fn(lambda c, x: c(x.transpose(1, 2)).mean(2), lambda: nn.Conv1d(6, 5, 3)), ((1, 12, 6),), 0),
    Case("transpose_hw", fn(lambda c, x: c(x.transpose(2, 3)), _conv(6, 5, 3)), IMAGE),
    Case("t", fn(lambda x: x.t()), ((3, 5),), 1),
    Case(
        "flatten_spatial_linear",
        fn(lambda c, fc, x: fc(c(x).flatten(2).transpose(1, 2)), _conv(6, 5, 3), lambda: nn.Linear(5, 7)),
        IMAGE,
        1,
    ),
    Case("unflatten", fn(lambda x: torch.relu(x).unflatten(1, (3, 4))), ROW, 0),
    Case("tile", fn(lambda c, x: c(x).tile(2, 1), _conv(6, 5, 3)), IMAGE, 2),
    Case("glu", fn(lambda c, x: F.glu(c(x), 1), _conv(6, 8, 3)), IMAGE, 2),
    Case("image_normalisation", fn(lambda c, m, s, x: c((x - m.p) / (s.p.abs() + 1)), _conv(3, 5, 3), *_NORM), ((1, 3, 8, 8),), 2),
    Case("weight_norm", lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 5, 3)), IMAGE, 2, (("mul", 0),)),
    Case("cat_channels", fn(lambda c, d, x: torch.cat([c(x), d(x)], 1), _conv(6, 5, 3), _conv(6, 3, 3)), IMAGE, 2),
    Case("cat_height", fn(lambda c, x: torch.cat([c(x), c(x)], dim=-2), _conv(6, 5, 3)), IMAGE, 2),
    Case("cat_rows", fn(lambda a, b: torch.cat([a, b], 1)), ((1, 12), (1, 5)), 0),
    Case(
        "cat_pooled",
        fn(lambda c, x: torch.cat([F.adaptive_avg_pool2d(c(x), 1), F.adaptive_max_pool2d(c(x), 1)], 1), _conv(6, 5, 3)),
        IMAGE,
        1,
    ),
    Case("stack", fn(lambda a, b: torch.stack([a, b], 1)), (ROW[0], ROW[0]), 0),
    Case("stack_last", fn(lambda c, x: torch.stack([c(x), torch.relu(c(x))], -1).sum(-1), _conv(6, 5, 3)), IMAGE, 2),
    Case("split", fn(lambda c, x: torch.cat(list(torch.split(c(x), [1, 4], 1))[::-1], 1), _conv(6, 5, 3)), IMAGE, 2),
    Case("chunk", fn(lambda c, x: (lambda a, b: a * torch.sigmoid(b))(*c(x).chunk(2, 1)), _conv(6, 8, 3)), IMAGE, 2),
    Case("chunk_uneven", fn(lambda x: (lambda a, b, c: a.sum() + b.sum() + c)(*x.chunk(3, 2))), ((1, 2, 8, 2),)),
    Case("unbind", fn(lambda x: x.unbind(1)[0] + x.unbind(1)[2]), IMAGE, 0),
    Case("slices", fn(lambda c, x: c(x)[:, 1:4, ::2, 1:-1], _conv(6, 5, 3)), IMAGE, 2),
    Case("select", fn(lambda c, x: c(x)[:, 2] + c(x)[:, -1], _conv(6, 5, 3)), IMAGE),
    Case("narrow", fn(lambda x: x.narrow(1, 2, 3)), IMAGE, 0),
    Case("pad", fn(lambda c, x: torch.relu(F.pad(c(x), (1, 2, 3, 4), value=0.25)), _conv(6, 5, 3)), IMAGE, 2, (("pad", 1),)),
    Case("pad_channels", fn(lambda c, x: F.pad(c(x), (0, 0, 0, 0, 1, 2)), _conv(6, 5, 3)), IMAGE, 2),
    Case("pad_row", fn(lambda x: F.pad(x, (1, 2))), ROW, 0),
    Case("nearest", lambda: nn.Upsample(scale_factor=2), IMAGE, 2, (("resize_nearest", 1),)),
    Case("nearest_size", fn(lambda x: F.interpolate(x, size=(7, 13))), IMAGE, 2),
    Case("nearest1d", lambda: nn.Upsample(scale_factor=3), SEQ, 2),
    Case("bilinear", lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE, 2, (("resize_bilinear", 1),)),
    Case("bilinear_corners", lambda: nn.Upsample(scale_factor=3, mode="bilinear", align_corners=True), IMAGE, 2),
    Case("bilinear_size", fn(lambda x: F.interpolate(x, size=(15, 7), mode="bilinear")), IMAGE, 2),
    Case("bilinear_size_corners", fn(lambda x: F.interpolate(x, size=(15, 7), mode="bilinear", align_corners=True)), IMAGE, 2),
    Case("pixel_shuffle", lambda: nn.Sequential(nn.Conv2d(6, 12, 1), nn.PixelShuffle(2), nn.Conv2d(3, 4, 3)), IMAGE, 3),
    Case("pixel_unshuffle", lambda: nn.Sequential(nn.Conv2d(6, 3, 1), nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 1)), IMAGE, 3),
    Case("channel_shuffle", fn(lambda c, d, x: d(_shuffle(c(x))), _conv(6, 6, 1), _conv(6, 4, 1)), IMAGE, 3),
    Case("channel_shuffle_op", lambda: nn.Sequential(nn.Conv2d(6, 6, 1), nn.ChannelShuffle(3), nn.Conv2d(6, 4, 1)), IMAGE, 3),
    # boundaries
    Case("casts", fn(lambda x: x.to(torch.float32).contiguous().clone().detach().float() * 2), IMAGE, 0),
    Case("several_outputs", fn(lambda c, x: (c(x), torch.relu(c(x)), c(x).mean((2, 3))), _conv(6, 5, 1)), IMAGE),
    Case("same_output_twice", fn(lambda x: (lambda y: (y, y))(torch.relu(x))), ROW, 0),
    Case("input_returned", fn(lambda x: (x, torch.relu(x))), ROW, 0),
    Case("inplace_on_input", fn(lambda x: x.clone().relu_().add_(1)), ROW, 0),
    Case("dict_output", fn(lambda x: {"a": torch.relu(x), "b": x * 2}), ROW, 0),
    Case("batch_of_three", lambda: nn.Sequential(nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(240, 4)), ((3, 6, 10, 8),), 1),
    Case("batch_of_three_shuffle", fn(lambda c, x: _shuffle(c(x)), _conv(6, 6, 1)), ((3, 6, 10, 8),)),
]


def make(case: Case) -> nn.Module:
    torch.manual_seed(3)
    module = case.build()
    assert isinstance(module, nn.Module)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.3, 2)
            if m.affine:
                nn.init.uniform_(m.weight, -1.5, 1.5)
                nn.init.normal_(m.bias)
        if isinstance(m, nn.PReLU):
            nn.init.uniform_(m.weight, -0.3, 0.6)
    return module.eval()


def outputs_of(module: nn.Module, inputs: list[np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        y = module(*(torch.from_numpy(x.copy()) for x in inputs))
    if isinstance(y, dict):
        y = list(y.values())
    return [t.numpy() for t in (y if isinstance(y, tuple | list) else [y])]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_graph_computes_what_the_module_computes(case: Case, rng: np.random.Generator) -> None:
    module = make(case)
    inputs = [rng.normal(0, 2, s).astype(np.float32) for s in case.shapes]
    graph = check(capture(module, tuple(inputs)))
    expected = outputs_of(module, inputs)
    actual = run_float(graph, inputs)
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, e, rtol=0, atol=FLOAT_TOLERANCE * max(1.0, float(np.abs(e).max())))
    counts = Counter(n.op for n in graph.nodes)
    if case.moves is not None:
        assert counts["transpose"] == case.moves, [(n.name, n.op, graph.tensors[n.outputs[0]].shape) for n in graph.nodes]
    for op, count in case.ops:
        assert counts[op] == count, counts


#: ops that core ATen breaks down into something without a form (index arithmetic)
NOT_IN_CORE_ATEN = {"nearest1d"}


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if c.name not in NOT_IN_CORE_ATEN], ids=lambda c: c.name)
def test_core_aten_form_gives_the_same(case: Case, rng: np.random.Generator) -> None:
    """A program that someone decomposed to core ATen before is captured to the same function."""
    module = make(case)
    inputs = [rng.normal(0, 2, s).astype(np.float32) for s in case.shapes]
    tensors = tuple(torch.from_numpy(x) for x in inputs)
    program = torch.export.export(module, tensors, strict=False).run_decompositions()
    graph = capture(program, None)
    for a, e in zip(run_float(graph, inputs), outputs_of(module, inputs), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=FLOAT_TOLERANCE * max(1.0, float(np.abs(e).max())))


def test_case_names_are_unique() -> None:
    names = [c.name for c in CASES]
    assert len(set(names)) == len(names)
