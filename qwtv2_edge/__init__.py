"""Trained PyTorch networks to phones and microcontrollers as integers, with the bytes known before they ship.

Importing this package needs NumPy alone; torch and the runtimes are loaded by the calls that use them.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from qwtv2_edge import errors
    from qwtv2_edge.backends import Artifact, emit
    from qwtv2_edge.ir.graph import Graph
    from qwtv2_edge.ir.serde import load, save
    from qwtv2_edge.profiling import profile
    from qwtv2_edge.quantization.quantize import QuantizedModel, quantize
    from qwtv2_edge.quantization.recipe import Recipe
    from qwtv2_edge.simulator import simulate, trace
    from qwtv2_edge.verification import verify

__version__ = "0.1.0"

#: module -> names that come from it when they are first used: NumPy takes a while, and the command should hear a Ctrl-C before
_MODULES = {
    "backends": ("Artifact", "emit"),
    "ir.graph": ("Graph",),
    "ir.serde": ("load", "save"),
    "profiling": ("profile",),
    "quantization": ("QuantizedModel", "Recipe", "quantize"),
    "simulator": ("simulate", "trace"),
    "verification": ("verify",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        found = getattr(import_module(f"qwtv2_edge.{_HOME[name]}"), name)
    elif find_spec(f"qwtv2_edge.{name}") is not None:
        found = import_module(f"qwtv2_edge.{name}")
    else:
        raise AttributeError(f"module 'qwtv2_edge' has no attribute '{name}'")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def capture(module: torch.nn.Module | torch.export.ExportedProgram, example_inputs: Any = None) -> Graph:
    """Capture a float network with ``torch.export``.

    Args:
        module: a module in eval mode, or an exported program.
        example_inputs: one array or tensor, or a tuple of them, at the shapes the artifact will have (batch 1).
    Returns: the float graph, channels-last inside, with the module's own input and output shapes.
    Raises: ImportGraphError listing every offending op at once; MissingToolError without torch.
    """
    from qwtv2_edge.frontend.torch_export import capture as capture_torch

    return capture_torch(module, example_inputs)


def read_tflite(source: str | Path | bytes) -> Graph:
    """Read an int8 ``.tflite`` into an integer graph.

    Args:
        source: path or the file's bytes.
    Raises: GraphError: corrupt or hostile file; UnsupportedOpError listing every op that has no integer form here.
    """
    from qwtv2_edge.backends import load as load_backend

    return load_backend("tflite").read(source)


__all__ = [
    "Artifact",
    "Graph",
    "QuantizedModel",
    "Recipe",
    "capture",
    "emit",
    "errors",
    "load",
    "profile",
    "quantize",
    "read_tflite",
    "save",
    "simulate",
    "trace",
    "verify",
]
