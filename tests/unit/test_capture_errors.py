"""Networks that can't be captured: every reason at once, with a code, the place and the fix."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
import torch.nn.functional as F
from torch import nn

from qwtv2_edge.errors import ImportGraphError, UsageError
from qwtv2_edge.frontend.torch_export import capture

IMAGE = np.zeros((1, 3, 8, 8), np.float32)


def codes(error: ImportGraphError) -> list[str]:
    return [p.code for p in error.problems]


def refused(module: nn.Module, *inputs: object) -> ImportGraphError:
    with pytest.raises(ImportGraphError) as caught:
        capture(module.eval(), inputs or (IMAGE,))
    return caught.value


class ManyProblems(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.pool = nn.AdaptiveAvgPool2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x))
        x = F.max_pool2d(x, 2, dilation=2, padding=1) + torch.erf(x[:, :, :3, :3])
        x = self.pool(F.pad(x, (1, 1, 1, 1), mode="reflect"))
        return F.log_softmax(x.flatten(1), -1)


def test_every_problem_is_listed_in_one_pass() -> None:
    error = refused(ManyProblems())
    assert codes(error) == [
        "unsupported-op",
        "unsupported-form",
        "unsupported-op",
        "unsupported-form",
        "unsupported-form",
        "unsupported-op",
    ]
    text = str(error)
    for word in ("group_norm", "dilation", "erf", "padding mode 'reflect'", "adaptive pooling from (5, 5) to (4, 4)", "log_softmax"):
        assert word in text


def test_problems_name_the_users_own_lines() -> None:
    lines, start = inspect.getsourcelines(ManyProblems)
    error = refused(ManyProblems())
    for problem, word in zip(
        error.problems, ("self.norm(", "F.max_pool2d", "torch.erf", "mode=", "self.pool(", "log_softmax"), strict=True
    ):
        at = next(i for i, line in enumerate(lines) if word in line) + start if word != "self.norm(" else start + 8
        assert problem.source.startswith(f"{__file__}:{at}  "), (problem, at)
    assert error.problems[0].node == "norm"
    assert error.problems[4].node == "pool"


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * 2
        return x


class Looping(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(int(x.max().item())):
            x = x + 1
        return x


@pytest.mark.parametrize(("module", "line"), [(Branching(), "if x.sum() > 0:"), (Looping(), "for _ in range(")])
def test_dynamic_control_flow(module: nn.Module, line: str) -> None:
    error = refused(module)
    assert codes(error) == ["data-dependent-control-flow"]
    assert line in error.problems[0].source
    assert __file__ in error.problems[0].source
    assert error.problems[0].fix


def test_torch_cond() -> None:
    class Cond(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y + 1, (x,))

    assert "data-dependent-control-flow" in codes(refused(Cond()))


def test_non_finite_weights_name_the_parameter_and_the_count() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with torch.no_grad():
        net[0].weight[1, 2] = float("nan")
        net[1].running_var[3] = float("inf")
    error = refused(net)
    assert codes(error) == ["non-finite-weight", "non-finite-weight"]
    assert {p.node for p in error.problems} == {"0.weight", "1.running_var"}
    assert "9 NaN or infinite values of 108" in str(error)


def test_training_mode_is_refused_with_its_fix() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    with pytest.raises(ImportGraphError, match=r"module\.eval\(\)") as caught:
        capture(net, IMAGE)
    assert [(p.code, p.node) for p in caught.value.problems] == [("training-mode", "1"), ("training-mode", "2")]
    net.eval()
    assert capture(net, IMAGE).nodes


def test_training_mode_without_layers_that_care_is_taken() -> None:
    assert capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), IMAGE).nodes


def test_functional_dropout_in_training_mode() -> None:
    class Always(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(x, 0.5, training=True)

    assert codes(refused(Always())) == ["training-mode"]


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda x: x / (x + 1), "division by an activation"),
        (lambda x: x.max(2)[1], "indices"),
        (lambda x: F.avg_pool2d(x, 2, divisor_override=3), "divisor_override"),
        (lambda x: F.interpolate(x, scale_factor=1.3), "not a whole size"),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), "upsample_bicubic2d"),
        (lambda x: x[:, :, x[0, 0, 0].argsort()], "argsort"),
        (lambda x: x.half().float(), "cast to torch.float16"),
        (lambda x: x + torch.rand(8), "rand"),
        (lambda x: torch.ones(3), "does not depend on the inputs"),
        (lambda x: x > 0, "output 'gt' is a mask, not numbers"),
        (lambda x: F.selu(x), "selu"),
    ],
)
def test_forms_without_a_meaning_here(f, message: str) -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return f(x)

    assert message in str(refused(Net()))


@pytest.mark.parametrize("module", [nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(2)])
def test_images_need_a_batch_axis(module: nn.Module) -> None:
    error = refused(module, np.zeros((3, 8, 8), np.float32))
    assert "give it rank 4" in error.problems[0].fix


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_other_float_types_are_refused(dtype: torch.dtype) -> None:
    error = refused(nn.Conv2d(3, 4, 3).to(dtype), torch.zeros(1, 3, 8, 8, dtype=dtype))
    assert set(codes(error)) == {"unsupported-dtype"}
    assert {p.node for p in error.problems} == {"weight", "bias", "input"}


def test_integers_that_index_nothing_are_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table(ids) * ids.ne(0).unsqueeze(-1)

    error = refused(Net(), np.zeros((1, 3), np.int64))
    assert "ne of integers" in str(error)


def test_dynamic_shapes() -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(nn.Conv2d(3, 4, 3), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    with pytest.raises(ImportGraphError) as caught:
        capture(program, None)
    assert codes(caught.value) == ["dynamic-shape"]


def test_wrong_example_shape_shows_the_users_line() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    error = refused(Net(), np.zeros((1, 8, 8, 3), np.float32))
    assert codes(error) == ["export-failed"]
    assert "return self.conv(x)" in error.problems[0].source
    assert "(1, 8, 8, 3)" in error.problems[0].fix


def test_buffer_mutation_is_refused() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen += 1
            return x + self.seen

    assert "changes the buffer 'seen'" in str(refused(Counter()))


@pytest.mark.parametrize("module", ["resnet", nn.Conv2d, 3, lambda x: x])
def test_not_a_network(module: object) -> None:
    with pytest.raises(UsageError, match="takes an nn"):
        capture(module, IMAGE)  # type: ignore[arg-type]


def test_example_inputs_are_needed_and_numeric() -> None:
    with pytest.raises(UsageError, match="example inputs"):
        capture(nn.ReLU())
    with pytest.raises(UsageError, match="dtype"):
        capture(nn.ReLU(), np.array(["a"]))


def test_no_foreign_exception_escapes() -> None:
    class Raises(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("what")

    error = refused(Raises())
    assert codes(error) == ["export-failed"]
    assert "raise KeyError" in error.problems[0].source
