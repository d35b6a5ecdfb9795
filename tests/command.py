"""The command in a process of its own, and a small network to give it."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from typing import Any

from requirements import missing

#: for output that can be compared
COLOURLESS = {"NO_COLOR": "1", "COLUMNS": "140"}

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return self.head(x.mean((2, 3)))

def build():
    torch.manual_seed(7)
    return Net().eval(), (torch.zeros(1, 1, 8, 8),)

def bare():
    return build()[0]

def nan_weight():
    net, x = build()
    with torch.no_grad():
        net.conv.weight[0, 0, 0, 0] = float("nan")
    return net, x

def inf_weight():
    net, x = build()
    with torch.no_grad():
        net.head.weight[0, 0] = float("inf")
    return net, x

class Branching(Net):
    def forward(self, x):
        y = super().forward(x)
        if y.sum() > 0:
            return y
        return -y

def branching():
    return Branching().eval(), (torch.zeros(1, 1, 8, 8),)

class Unsupported(Net):
    def forward(self, x):
        y = torch.erfinv(self.conv(x))
        return torch.fft.fft(y).real

def unsupported():
    return Unsupported().eval(), (torch.zeros(1, 1, 8, 8),)

class Dead(Net):
    def forward(self, x):
        x = torch.relu(self.conv(x) - 1e6)
        return self.head(x.mean((2, 3)))

def dead():
    torch.manual_seed(7)
    return Dead().eval(), (torch.zeros(1, 1, 8, 8),)

def broken():
    raise RuntimeError("the checkpoint is gone")
"""


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output as JSON; fails when anything else is there."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **COLOURLESS}


def need_everything() -> None:
    """Skip (or fail, see tests/conftest.py) unless an export can run."""
    for module in ("torch", "ai_edge_litert", "executorch"):
        if importlib.util.find_spec(module) is None:
            missing(module, f"{module} is not installed")
