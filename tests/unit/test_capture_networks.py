"""Whole networks: the captured graph against the module, published outputs, layouts, names and places."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from models import tiny_mlperf, zoo
from torch import nn

from qwtv2_edge.frontend.torch_export import capture
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.simulator.run import run_float

#: float32 sums in another order over tens of layers, relative to the largest output
NETWORK_TOLERANCE = 2e-5
#: the published outputs were computed by another framework
PUBLISHED_TOLERANCE = 1e-5

FAST = {"squeezenet", "shufflenet_v2", "mobilenet_v3_small", "unet"}


def agree(graph: Graph, module: nn.Module, x: np.ndarray) -> None:
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    (actual,) = run_float(graph, [x])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=NETWORK_TOLERANCE * float(np.abs(expected).max()))


def ops(graph: Graph) -> Counter[str]:
    return Counter(n.op for n in graph.nodes)


@pytest.mark.parametrize("name", ["resnet8", "ds_cnn", "mobilenet_v1", "autoencoder"])
def test_trained_networks(name: str, data_dir: Path) -> None:
    module = tiny_mlperf.BUILDERS[name](data_dir)
    x = tiny_mlperf.smooth_frames(16) if name == "autoencoder" else tiny_mlperf.load_data(name, "calib", data_dir)[0][:16]
    graph = capture(module, x[:1])
    assert graph.inputs == ("x",)
    assert graph.tensors["x"].shape == tiny_mlperf.INPUT_SHAPES[name]
    agree(graph, module, x)
    count = ops(graph)
    assert count["pad"] == 0
    assert count["transpose"] == (1 if name in ("resnet8", "mobilenet_v1") else 0)
    if count["transpose"]:
        assert graph.nodes[0].op == "transpose"
    # a depthwise convolution too many would be a BatchNorm that was not folded
    assert count["depthwise_conv2d"] == {"ds_cnn": 4, "mobilenet_v1": 13}.get(name, 0)


@pytest.mark.parametrize("name", ["resnet8", "ds_cnn"])
def test_published_outputs(name: str, data_dir: Path) -> None:
    published = np.load(data_dir / tiny_mlperf.FOLDERS[name] / "parity.npz")
    x, _ = tiny_mlperf.load_data(name, "parity", data_dir, layout="nhwc")
    for softmax, key in ((False, "logits"), (True, "probs_float_tflite")):
        graph = capture(tiny_mlperf.BUILDERS[name](data_dir, layout="nhwc", softmax=softmax), x[:1])
        assert ops(graph)["transpose"] == 0
        (y,) = run_float(graph, [x])
        np.testing.assert_allclose(y, published[key], rtol=0, atol=PUBLISHED_TOLERANCE * max(1.0, float(np.abs(published[key]).max())))


def test_mobilenet_v1_in_stored_layout_has_no_transpose(data_dir: Path) -> None:
    x, _ = tiny_mlperf.load_data("mobilenet_v1", "calib", data_dir, layout="nhwc")
    module = tiny_mlperf.build_mobilenet_v1(data_dir, layout="nhwc")
    graph = capture(module, x[:1])
    assert ops(graph)["transpose"] == 0
    agree(graph, module, x[:4])


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in zoo.BUILDERS])
def test_networks_at_224(name: str) -> None:
    module = zoo.build(name)
    x = zoo.smooth_images(2, seed=7)
    graph = capture(module, x[:1])
    agree(graph, module, x)
    count = ops(graph)
    # one at the input; the U-Net's output is an image; a channel shuffle is a true transpose
    assert count["transpose"] == {"unet": 2, "shufflenet_v2": 17}.get(name, 1)
    assert count["pad"] == 0
    convs = sum(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in module.modules())
    assert count["conv2d"] + count["depthwise_conv2d"] + count["transpose_conv2d"] == convs


@pytest.mark.parametrize("name", list(zoo.BUILDERS))
def test_zoo_networks_keep_their_activations_in_range(name: str) -> None:
    with torch.no_grad():
        y = zoo.build(name)(torch.from_numpy(zoo.smooth_images(2, seed=9)))
    assert 0.05 < float(y.std()) < 50
    assert float((y[0] - y[1]).abs().max()) > 0.01  # the input still matters at the output


def test_same_seed_same_network() -> None:
    a, b, c = (zoo.build("squeezenet", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x)) + x)


class Reusing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Block(), Block())
        self.again = self.layers[0]
        self.head = nn.Linear(4, 2)

    def forward(self, image: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.again(self.layers(image))
        return self.head(y.mean((2, 3))), y * other


@pytest.fixture(scope="module")
def reusing() -> Graph:
    image = np.zeros((1, 4, 8, 8), np.float32)
    return capture(Reusing().eval(), (image, image))


def test_names_come_from_module_paths(reusing: Graph) -> None:
    names = [n.name for n in reusing.nodes if n.op == "conv2d"]
    assert names == ["layers.0.conv", "layers.1.conv", "again.conv"]
    assert [n.name for n in reusing.nodes if n.op == "add"] == ["layers.0.add", "layers.1.add", "again.add"]
    assert reusing.node("head").op == "fully_connected"
    assert "layers.0.conv.weight" in reusing.constants
    assert reusing.inputs == ("image", "other")


def test_shared_weights_are_stored_once(reusing: Graph) -> None:
    first, again = (reusing.node(n) for n in ("layers.0.conv", "again.conv"))
    assert first.inputs[1:] == again.inputs[1:]
    assert sorted(reusing.constants) == sorted(f"{m}.{p}" for m in ("layers.0.conv", "layers.1.conv", "head") for p in ("weight", "bias"))


def test_nodes_know_the_users_line(reusing: Graph) -> None:
    location = reusing.node("layers.1.conv").location
    assert location.module_path == "layers.1.conv"
    assert Path(location.file) == Path(__file__)
    assert location.code == "return torch.relu(self.bn(self.conv(x)) + x)"
    lines = Path(__file__).read_text().splitlines()
    assert lines[location.line - 1].strip() == location.code
    assert all(n.location.file == __file__ for n in reusing.nodes if n.op != "transpose")


def test_capture_is_deterministic(reusing: Graph) -> None:
    image = np.zeros((1, 4, 8, 8), np.float32)
    torch.manual_seed(5)
    module = Reusing().eval()
    a, b = (capture(module, (image, image)) for _ in range(2))
    assert a.nodes == b.nodes
    assert list(a.constants) == list(b.constants)
    assert all(np.array_equal(a.constants[k], b.constants[k]) for k in a.constants)


def test_capture_leaves_the_module_alone() -> None:
    module = Reusing().eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    image = np.ones((1, 4, 8, 8), np.float32)
    capture(module, (image, torch.ones(1, 4, 8, 8)))
    assert not module.training
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert all(p.requires_grad for p in module.parameters())
    assert float(image.min()) == 1.0


def test_exported_program_and_saved_file(tmp_path: Path) -> None:
    module, x = Block().eval(), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(module, (x,))
    torch.export.save(program, tmp_path / "m.pt2")
    for p in (program, torch.export.load(tmp_path / "m.pt2")):
        graph = capture(p, None)
        assert graph.name == "Block"
        agree(graph, module, x.numpy())
        assert graph.node("conv").location.code == "return torch.relu(self.bn(self.conv(x)) + x)"
