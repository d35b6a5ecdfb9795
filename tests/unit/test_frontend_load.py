"""Finding the user's network by name, by file, and in a saved program."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from qwtv2_edge import capture
from qwtv2_edge.errors import UsageError
from qwtv2_edge.export import example_inputs
from qwtv2_edge.frontend.load import load_module

MODEL = """
import torch
from torch import nn
from helper_of_model import CHANNELS

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 3)
    def forward(self, x):
        return self.conv(x)

def build():
    return Net().eval()

def with_example():
    return Net().eval(), torch.zeros(1, 3, 8, 8)

def nothing():
    pass

def a_class():
    return Net

def broken():
    return Net().eval().missing

def exits():
    raise SystemExit("no weights")

ready = Net().eval()
NUMBER = 3
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "helper_of_model.py").write_text("CHANNELS = 5\n")
    path = tmp_path / "some model.py"
    path.write_text(MODEL)
    yield path
    sys.modules.pop("helper_of_model", None)


def test_factory_in_a_file_anywhere(model: Path) -> None:
    before = list(sys.path)
    module, example = load_module(f"{model}:build")
    assert isinstance(module, nn.Module)
    assert module.conv.out_channels == 5
    assert example is None
    assert sys.path == before


def test_example_inputs_and_instances(model: Path) -> None:
    module, example = load_module(f"{model}:with_example")
    assert isinstance(module, nn.Module)
    assert example.shape == (1, 3, 8, 8)
    assert isinstance(load_module(f"{model}:ready")[0], nn.Module)


def test_relative_path(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    assert isinstance(load_module("some model.py:build")[0], nn.Module)


def test_module_in_the_current_folder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.rename(model.parent / "model_by_name.py")
    monkeypatch.chdir(model.parent)
    try:
        assert isinstance(load_module("model_by_name:build")[0], nn.Module)
    finally:
        sys.modules.pop("model_by_name", None)


def test_installed_module() -> None:
    assert isinstance(load_module("torch.nn:Identity")[0], nn.Module)


def test_saved_program(tmp_path: Path) -> None:
    program = torch.export.export(nn.ReLU(), (torch.zeros(2),))
    torch.export.save(program, tmp_path / "net.pt2")
    loaded, example = load_module(str(tmp_path / "net.pt2"))
    assert isinstance(loaded, torch.export.ExportedProgram)
    assert example is None


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("biuld", "did you mean 'build'"),
        ("zzz", "callables there: "),
        ("nothing", "returned a NoneType"),
        ("a_class", "returned the class Net"),
        ("NUMBER", "is a int, not a function"),
    ],
)
def test_wrong_attribute_or_result(model: Path, attribute: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_module(f"{model}:{attribute}")


def test_exception_in_the_factory_shows_the_users_line(model: Path) -> None:
    with pytest.raises(UsageError, match="no attribute 'missing'") as caught:
        load_module(f"{model}:broken")
    line = MODEL.splitlines().index("    return Net().eval().missing") + 1
    assert caught.value.source == f"{model}:{line}  return Net().eval().missing"
    with pytest.raises(UsageError, match="no weights"):
        load_module(f"{model}:exits")


def test_file_that_does_not_import(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text("import torch\nx = = 3\n")
    with pytest.raises(UsageError, match="SyntaxError") as caught:
        load_module(f"{path}:build")
    assert caught.value.source == f"{path}:2  x = = 3"
    path.write_text("import no_such_package_at_all\n")
    with pytest.raises(UsageError, match="no_such_package_at_all") as caught:
        load_module(f"{path}:build")
    assert caught.value.source == f"{path}:1  import no_such_package_at_all"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("model", "does not name a network"),
        (":build", "does not name a network"),
        ("a.py:", "does not name a network"),
        ("/nowhere/at/all.py:build", "no file"),
        ("no_such_package.module:build", "no module"),
        ("/nowhere/net.pt2", "no file"),
    ],
)
def test_specs_that_name_nothing(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_module(spec)
    assert "package.module:factory" in caught.value.fix


def test_damaged_program(tmp_path: Path) -> None:
    path = tmp_path / "bad.pt2"
    path.write_bytes(b"PK\x03\x04 not a program")
    with pytest.raises(UsageError, match="can load"):
        load_module(str(path))


@pytest.mark.parametrize("trace", [7, 'File "net.py", line ' + "9" * 5000 + ", in forward"])
def test_program_with_damaged_traces(trace: Any) -> None:
    """What torch keeps of the user's lines is not checked when a program is loaded."""
    program = torch.export.export(nn.ReLU(), (torch.zeros(2, 3),))
    for node in program.graph.nodes:
        node.meta["stack_trace"] = trace
    assert [n.op for n in capture(program).nodes] == ["relu"]


def test_example_inputs_of_a_bare_module_keep_indices(tmp_path: Path) -> None:
    class Text(nn.Module):
        def forward(self, words: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError

    np.savez(tmp_path / "calib.npz", image=np.zeros((3, 4), np.uint8), words=np.full((3, 5), 7, np.int64))
    words, image = example_inputs(Text(), tmp_path / "calib.npz")
    assert (words.shape, words.dtype, image.shape, image.dtype) == ((1, 5), np.int64, (1, 4), np.float32)
