"""Well-known networks at 224x224 in plain PyTorch, with seeded weights and plausible BatchNorm statistics.

Weights are drawn (He initialisation); BatchNorm means and variances are set by one forward pass over smooth random
images, layer by layer, so activations stay in range all the way down, as in a trained network.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 224


def smooth_images(count: int, size: int = SIZE, seed: int = 0, channels: int = 3) -> np.ndarray:
    """(count, channels, size, size) float32, smooth like photographs, about zero mean and unit variance."""
    rng = np.random.default_rng(seed)
    out = np.zeros((count, channels, size, size), np.float32)
    for cells, weight in ((4, 1.0), (14, 0.5), (56, 0.2)):
        coarse = torch.from_numpy(rng.standard_normal((count, channels, cells, cells)).astype(np.float32))
        out += weight * F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False).numpy()
    return out / np.float32(out.std())


class ConvBN(nn.Sequential):
    """Convolution, BatchNorm and an activation, the padding that keeps the size."""

    def __init__(self, i: int, o: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: Callable[[], nn.Module] | None = nn.ReLU):
        layers: list[nn.Module] = [nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]
        if act is not None:
            layers.append(act())
        super().__init__(*layers)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int, act: Callable[[], nn.Module], gate: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.act(self.fc1(self.pool(x)))))


class InvertedResidual(nn.Module):
    """Expand, depthwise, (squeeze-excite,) project; the input added back where shapes allow."""

    def __init__(
        self,
        i: int,
        o: int,
        hidden: int,
        kernel: int,
        stride: int,
        act: Callable[[], nn.Module],
        se: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if hidden != i:
            layers.append(ConvBN(i, hidden, 1, act=act))
        layers.append(ConvBN(hidden, hidden, kernel, stride, groups=hidden, act=act))
        if se is not None:
            layers.append(se(hidden))
        layers.append(ConvBN(hidden, o, 1, act=None))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


class Classifier(nn.Module):
    """Features, global average pool, head."""

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features, self.pool, self.head = features, nn.AdaptiveAvgPool2d(1), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.features(x)), 1))


def _round8(x: float) -> int:
    """Channel counts rounded to a multiple of 8, never below nine tenths."""
    n = max(8, int(x + 4) // 8 * 8)
    return n + 8 if n < 0.9 * x else n


def mobilenet_v2(classes: int = 1000, width: float = 1.0) -> nn.Module:
    channels = _round8(32 * width)
    layers: list[nn.Module] = [ConvBN(3, channels, 3, 2, act=nn.ReLU6)]
    for t, c, n, s in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)):
        for k in range(n):
            layers.append(InvertedResidual(channels, _round8(c * width), channels * t, 3, s if k == 0 else 1, nn.ReLU6))
            channels = _round8(c * width)
    layers.append(ConvBN(channels, 1280, 1, act=nn.ReLU6))
    return Classifier(nn.Sequential(*layers), nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes)))


def mobilenet_v3_small(classes: int = 1000) -> nn.Module:
    def se(hidden: int) -> nn.Module:
        return SqueezeExcite(hidden, _round8(hidden / 4), nn.ReLU, nn.Hardsigmoid)

    table = (
        (3, 16, 16, True, nn.ReLU, 2), (3, 72, 24, False, nn.ReLU, 2), (3, 88, 24, False, nn.ReLU, 1),
        (5, 96, 40, True, nn.Hardswish, 2), (5, 240, 40, True, nn.Hardswish, 1), (5, 240, 40, True, nn.Hardswish, 1),
        (5, 120, 48, True, nn.Hardswish, 1), (5, 144, 48, True, nn.Hardswish, 1), (5, 288, 96, True, nn.Hardswish, 2),
        (5, 576, 96, True, nn.Hardswish, 1), (5, 576, 96, True, nn.Hardswish, 1),
    )  # fmt: skip
    layers: list[nn.Module] = [ConvBN(3, 16, 3, 2, act=nn.Hardswish)]
    channels = 16
    for k, hidden, c, use_se, act, s in table:
        layers.append(InvertedResidual(channels, c, hidden, k, s, act, se if use_se else None))
        channels = c
    layers.append(ConvBN(channels, 576, 1, act=nn.Hardswish))
    head = nn.Sequential(nn.Linear(576, 1024), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1024, classes))
    return Classifier(nn.Sequential(*layers), head)


class BasicBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = ConvBN(i, o, 3, stride), ConvBN(o, o, 3, act=None)
        self.skip = ConvBN(i, o, 1, stride, act=None) if stride != 1 or i != o else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2(self.conv1(x)) + self.skip(x))


def resnet18(classes: int = 1000) -> nn.Module:
    layers: list[nn.Module] = [ConvBN(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for c, s in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BasicBlock(channels, c, s), BasicBlock(c, c, 1)]
        channels = c
    return Classifier(nn.Sequential(*layers), nn.Linear(512, classes))


def efficientnet_b0(classes: int = 1000) -> nn.Module:
    layers: list[nn.Module] = [ConvBN(3, 32, 3, 2, act=nn.SiLU)]
    channels = 32
    table = (
        (1, 3, 1, 16, 1),
        (6, 3, 2, 24, 2),
        (6, 5, 2, 40, 2),
        (6, 3, 2, 80, 3),
        (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4),
        (6, 3, 1, 320, 1),
    )
    for t, k, s, c, n in table:
        for i in range(n):
            squeezed = max(1, channels // 4)

            def se(hidden: int, squeezed: int = squeezed) -> nn.Module:
                return SqueezeExcite(hidden, squeezed, nn.SiLU, nn.Sigmoid)

            layers.append(InvertedResidual(channels, c, channels * t, k, s if i == 0 else 1, nn.SiLU, se))
            channels = c
    layers.append(ConvBN(channels, 1280, 1, act=nn.SiLU))
    return Classifier(nn.Sequential(*layers), nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes)))


class Fire(nn.Module):
    def __init__(self, i: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(i, squeezed, 1)
        self.expand1, self.expand3 = nn.Conv2d(squeezed, expanded, 1), nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1(x)), F.relu(self.expand3(x))], 1)


class SqueezeNet(nn.Module):
    """Version 1.1; no BatchNorm."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64), pool(), Fire(128, 32, 128), Fire(256, 32, 128),
            pool(), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(512, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class ShuffleUnit(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        half = o // 2
        self.stride = stride
        start = i if stride == 2 else half
        self.left = nn.Sequential(ConvBN(i, i, 3, 2, groups=i, act=None), ConvBN(i, half, 1)) if stride == 2 else None
        self.right = nn.Sequential(ConvBN(start, half, 1), ConvBN(half, half, 3, stride, groups=half, act=None), ConvBN(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.left is not None:
            x = torch.cat([self.left(x), self.right(x)], 1)
        else:
            kept, changed = x.chunk(2, dim=1)
            x = torch.cat([kept, self.right(changed)], 1)
        n, c, h, w = x.shape  # channel shuffle, two groups
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet_v2(classes: int = 1000) -> nn.Module:
    layers: list[nn.Module] = [ConvBN(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 24
    for c, n in ((116, 4), (232, 8), (464, 4)):
        for k in range(n):
            layers.append(ShuffleUnit(channels, c, 2 if k == 0 else 1))
            channels = c
    layers.append(ConvBN(channels, 1024, 1))
    return Classifier(nn.Sequential(*layers), nn.Linear(1024, classes))


class UNet(nn.Module):
    """Small: two levels up by transposed convolution, one by bilinear upsampling, skips by concatenation."""

    def __init__(self, classes: int = 4, width: int = 12) -> None:
        super().__init__()

        def double(i: int, o: int) -> nn.Module:
            return nn.Sequential(ConvBN(i, o, 3), ConvBN(o, o, 3))

        w = width
        self.down = nn.ModuleList([double(3, w), double(w, 2 * w), double(2 * w, 4 * w)])
        self.bottom = double(4 * w, 8 * w)
        self.up3 = nn.ConvTranspose2d(8 * w, 4 * w, 2, 2)
        self.merge3 = double(8 * w, 4 * w)
        self.up2 = nn.ConvTranspose2d(4 * w, 2 * w, 3, 2, padding=1, output_padding=1)
        self.merge2 = double(4 * w, 2 * w)
        self.up1 = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), nn.Conv2d(2 * w, w, 1))
        self.merge1 = double(2 * w, w)
        self.head = nn.Conv2d(w, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        x = self.merge3(torch.cat([self.up3(x), skips[2]], 1))
        x = self.merge2(torch.cat([self.up2(x), skips[1]], 1))
        x = self.merge1(torch.cat([self.up1(x), skips[0]], 1))
        return self.head(x)


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_small": mobilenet_v3_small,
    "resnet18": resnet18,
    "efficientnet_b0": efficientnet_b0,
    "squeezenet": SqueezeNet,
    "shufflenet_v2": shufflenet_v2,
    "unet": UNet,
}

INPUT_SHAPE = (1, 3, SIZE, SIZE)

#: for microcontrollers: builder and size of the image
SMALL: dict[str, tuple[Callable[[], nn.Module], int]] = {"mobilenet_v2_035": (lambda: mobilenet_v2(2, 0.35), 96)}


def build(name: str, seed: int = 0) -> nn.Module:
    """The network ``name`` (a key of BUILDERS or SMALL) in eval mode; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SMALL[name][0]() if name in SMALL else BUILDERS[name]()
        for m in net.modules():
            if isinstance(m, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
                if m.bias is not None:
                    nn.init.uniform_(m.bias, -0.1, 0.1)
            elif isinstance(m, nn.BatchNorm2d):
                nn.init.uniform_(m.weight, 0.6, 1.4)
                nn.init.normal_(m.bias, 0.0, 0.3)
        for m in net.modules():  # trained residual branches add little to what they are added to
            if isinstance(m, InvertedResidual) and m.residual:
                _calm(m.layers)
            elif isinstance(m, BasicBlock):
                _calm(m.conv2)
        set_statistics(net, torch.from_numpy(smooth_images(4, seed=seed + 1)))
    return net.eval()


def _calm(branch: nn.Module) -> None:
    """Scale the last BatchNorm of a residual branch down."""
    last = [m for m in branch.modules() if isinstance(m, nn.BatchNorm2d)][-1]
    with torch.no_grad():
        last.weight *= 0.3
        last.bias *= 0.3


def set_statistics(net: nn.Module, images: Tensor) -> None:
    """Set BatchNorm statistics to those of ``images``, in one pass in which dropout is off."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    net.eval()
    for m in norms:
        m.train()
        m.momentum = 1.0
    with torch.no_grad():
        net(images)
    for m in norms:
        m.momentum = 0.1
    net.eval()
