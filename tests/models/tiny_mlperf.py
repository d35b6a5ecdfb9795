"""The four MLPerf Tiny networks in plain PyTorch, filled from published weights (see the data folder's READMEs).

Every builder returns a module in eval mode that takes float32 input in the network's own preprocessed domain:
``layout="nchw"`` (N, C, H, W), or ``layout="nhwc"`` as the data is stored. ``softmax=False`` gives logits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERAS_EPS = 1e-3

#: folder of each network inside the data directory
FOLDERS = {
    "resnet8": "image_classification",
    "ds_cnn": "keyword_spotting",
    "mobilenet_v1": "visual_wake_words",
    "autoencoder": "anomaly_detection",
}
#: one sample of each network, NCHW
INPUT_SHAPES = {"resnet8": (1, 3, 32, 32), "ds_cnn": (1, 1, 49, 10), "mobilenet_v1": (1, 3, 96, 96), "autoencoder": (1, 640)}


def data_dir() -> Path:
    """Where the trained weights and evaluation sets lie: $QWTV2_DATA, else ../shared/data beside the project."""
    given = os.environ.get("QWTV2_DATA")
    return Path(given) if given else Path(__file__).resolve().parents[2].parent / "shared" / "data"


def same_pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding of one axis: (before, after)."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class ConvBlock(nn.Module):
    """Convolution with TensorFlow's SAME padding, optional BatchNorm and ReLU."""

    def __init__(self, i: int, o: int, kernel: tuple[int, int], stride: int = 1, *, groups: int = 1, bn: bool = True, relu: bool = True):
        super().__init__()
        self.kernel, self.stride, self.relu = kernel, stride, relu
        self.conv = nn.Conv2d(i, o, kernel, stride, groups=groups)
        self.bn = nn.BatchNorm2d(o, eps=KERAS_EPS) if bn else None

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = same_pads(x.shape[2], self.kernel[0], self.stride)
        left, right = same_pads(x.shape[3], self.kernel[1], self.stride)
        if top + bottom + left + right:
            x = F.pad(x, (left, right, top, bottom))
        x = self.conv(x)
        if self.bn is not None:
            x = self.bn(x)
        return F.relu(x) if self.relu else x


class TinyNet(nn.Module):
    """Input layout and output form shared by the classifiers."""

    def __init__(self, layout: str, softmax: bool) -> None:
        super().__init__()
        assert layout in ("nchw", "nhwc"), layout
        self.nhwc, self.softmax = layout == "nhwc", softmax

    def forward(self, x: Tensor) -> Tensor:
        logits = self.logits(x.permute(0, 3, 1, 2) if self.nhwc else x)
        return F.softmax(logits, dim=-1) if self.softmax else logits


class ResNet8(TinyNet):
    def __init__(self, layout: str = "nchw", softmax: bool = False) -> None:
        super().__init__(layout, softmax)
        k3 = (3, 3)
        self.stem = ConvBlock(3, 16, k3)
        self.a1, self.a2 = ConvBlock(16, 16, k3), ConvBlock(16, 16, k3, relu=False)
        self.b1, self.b2 = ConvBlock(16, 32, k3, 2), ConvBlock(32, 32, k3, relu=False)
        self.b_skip = ConvBlock(16, 32, (1, 1), 2, bn=False, relu=False)
        self.c1, self.c2 = ConvBlock(32, 64, k3, 2), ConvBlock(64, 64, k3, relu=False)
        self.c_skip = ConvBlock(32, 64, (1, 1), 2, bn=False, relu=False)
        self.dense = nn.Linear(64, 10)

    def logits(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        b = F.relu(a + self.a2(self.a1(a)))
        c = F.relu(self.b2(self.b1(b)) + self.b_skip(b))
        d = F.relu(self.c2(self.c1(c)) + self.c_skip(c))
        return self.dense(F.avg_pool2d(d, 8).flatten(1))


class DSCNN(TinyNet):
    def __init__(self, layout: str = "nchw", softmax: bool = False) -> None:
        super().__init__(layout, softmax)
        self.stem = ConvBlock(1, 64, (10, 4), 2)
        self.blocks = nn.Sequential()
        for _ in range(4):
            self.blocks.append(ConvBlock(64, 64, (3, 3), groups=64))
            self.blocks.append(ConvBlock(64, 64, (1, 1)))
        self.dropout = nn.Dropout(0.4)
        self.dense = nn.Linear(64, 12)

    def logits(self, x: Tensor) -> Tensor:
        x = self.blocks(self.dropout(self.stem(x)))
        x = F.avg_pool2d(x, (24, 5))  # the 25th row in time is left out
        return self.dense(self.dropout(x).flatten(1))


class MobileNetV1(TinyNet):
    STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    CHANNELS = (16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256)

    def __init__(self, layout: str = "nchw", softmax: bool = False) -> None:
        super().__init__(layout, softmax)
        self.stem = ConvBlock(3, 8, (3, 3), 2)
        self.blocks = nn.Sequential()
        channels = 8
        for stride, out in zip(self.STRIDES, self.CHANNELS, strict=True):
            self.blocks.append(ConvBlock(channels, channels, (3, 3), stride, groups=channels))
            self.blocks.append(ConvBlock(channels, out, (1, 1)))
            channels = out
        self.dense = nn.Linear(256, 2)

    def logits(self, x: Tensor) -> Tensor:
        return self.dense(F.avg_pool2d(self.blocks(self.stem(x)), 3).flatten(1))


class Autoencoder(nn.Module):
    SIZES = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640)

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.ModuleList(nn.Linear(i, o) for i, o in zip(self.SIZES[:-1], self.SIZES[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.dense[:-1]:
            x = F.relu(layer(x))
        return self.dense[-1](x)


# ---------------------------------------------------------------------- weights

Weights = Mapping[str, np.ndarray]


def _suffix(i: int) -> str:
    return f"_{i}" if i else ""


def _fill(block: ConvBlock, weights: Weights, conv: str, bn: str | None) -> None:
    """Keras weights into a block: HWIO or HWC1 kernels, BatchNorm unfolded."""
    if f"{conv}/kernel" in weights:
        kernel = weights[f"{conv}/kernel"].transpose(3, 2, 0, 1)
    else:
        kernel = weights[f"{conv}/depthwise_kernel"].transpose(2, 3, 0, 1)
    _set(block.conv.weight, kernel)
    _set(block.conv.bias, weights[f"{conv}/bias"])
    assert (bn is None) == (block.bn is None)
    if block.bn is not None:
        _set(block.bn.weight, weights[f"{bn}/gamma"])
        _set(block.bn.bias, weights[f"{bn}/beta"])
        _set(block.bn.running_mean, weights[f"{bn}/mean"])
        _set(block.bn.running_var, weights[f"{bn}/var"])


def _set(target: Tensor | None, array: np.ndarray) -> None:
    assert target is not None
    assert tuple(target.shape) == array.shape, array.shape
    with torch.no_grad():
        target.copy_(torch.from_numpy(np.ascontiguousarray(array)))


def _fill_dense(layer: nn.Linear, weights: Weights, name: str = "dense") -> None:
    _set(layer.weight, weights[f"{name}/kernel"].T)
    _set(layer.bias, weights[f"{name}/bias"])


def _weights(name: str, root: Path | None) -> Weights:
    return np.load((root or data_dir()) / FOLDERS[name] / "weights.npz")


def build_resnet8(root: Path | None = None, *, layout: str = "nchw", softmax: bool = False) -> nn.Module:
    net, w = ResNet8(layout, softmax), _weights("resnet8", root)
    blocks = {"stem": 0, "a1": 1, "a2": 2, "b1": 3, "b2": 4, "b_skip": 5, "c1": 6, "c2": 7, "c_skip": 8}
    bns = {"stem": 0, "a1": 1, "a2": 2, "b1": 3, "b2": 4, "c1": 5, "c2": 6}
    for name, i in blocks.items():
        bn = f"batch_normalization{_suffix(bns[name])}" if name in bns else None
        _fill(getattr(net, name), w, f"conv2d{_suffix(i)}", bn)
    _fill_dense(net.dense, w)
    return net.eval()


def _fill_separable(net: DSCNN | MobileNetV1, w: Weights) -> None:
    _fill(net.stem, w, "conv2d", "batch_normalization")
    for i, block in enumerate(net.blocks):
        conv = f"depthwise_conv2d{_suffix(i // 2)}" if i % 2 == 0 else f"conv2d_{i // 2 + 1}"
        _fill(block, w, conv, f"batch_normalization_{i + 1}")
    _fill_dense(net.dense, w)


def build_ds_cnn(root: Path | None = None, *, layout: str = "nchw", softmax: bool = False) -> nn.Module:
    net = DSCNN(layout, softmax)
    _fill_separable(net, _weights("ds_cnn", root))
    return net.eval()


def build_mobilenet_v1(root: Path | None = None, *, layout: str = "nchw", softmax: bool = False) -> nn.Module:
    net = MobileNetV1(layout, softmax)
    _fill_separable(net, _weights("mobilenet_v1", root))
    return net.eval()


def build_autoencoder(root: Path | None = None) -> nn.Module:
    net, w = Autoencoder(), _weights("autoencoder", root)
    for i, layer in enumerate(net.dense):
        _fill_dense(layer, w, f"dense_{i}")
    return net.eval()


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": build_resnet8,
    "ds_cnn": build_ds_cnn,
    "mobilenet_v1": build_mobilenet_v1,
    "autoencoder": build_autoencoder,
}


# ---------------------------------------------------------------------- data in the networks' own domain


def load_data(name: str, part: str = "calib", root: Path | None = None, *, layout: str = "nchw") -> tuple[np.ndarray, np.ndarray | None]:
    """(float32 inputs, labels or None) of one of the three networks that have data.

    part: "calib", "eval" (eval_dev, or eval_unlabelled) or "parity".
    """
    folder = (root or data_dir()) / FOLDERS[name]
    files = {"calib": ["calib.npz"], "eval": ["eval_dev.npz", "eval_unlabelled.npz"], "parity": ["parity.npz"]}[part]
    z = np.load(next(folder / f for f in files if (folder / f).exists()))
    if name == "ds_cnn":
        x = (z["x_int8"].astype(np.float32) - 83) * np.float32(0.5847029089927673)
    else:
        x = z["x"].astype(np.float32)
        if name == "mobilenet_v1":
            x = x / np.float32(255)
    if layout == "nchw":
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return x, (z["y"].astype(np.int64) if "y" in z else None)


def smooth_frames(count: int, seed: int = 0) -> np.ndarray:
    """Synthetic autoencoder inputs: (count, 640) smooth log-mel-like frames between about -80 and 20."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(-30.0, 20.0, (count, 2, 9))
    bands = np.stack([np.interp(np.linspace(0, 8, 128), np.arange(9), c) for c in coarse.reshape(-1, 9)]).reshape(count, 2, 128)
    mix = np.linspace(0, 1, 5)[None, :, None]
    frames = bands[:, :1] * (1 - mix) + bands[:, 1:] * mix + rng.normal(0, 1.5, (count, 5, 128))
    return np.clip(frames, -80, 20).reshape(count, 640).astype(np.float32)
