"""Trained PyTorch networks to phones and microcontrollers as integers, with the bytes known before they ship.

Importing this package needs NumPy alone; torch and the runtimes are loaded by the calls that use them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwtv2_edge import errors
from qwtv2_edge.backends import Artifact, emit
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.ir.serde import load, save
from qwtv2_edge.profiling import profile
from qwtv2_edge.quantization import QuantizedModel, Recipe, quantize
from qwtv2_edge.simulator import simulate, trace
from qwtv2_edge.verification import verify

if TYPE_CHECKING:
    import torch

__version__ = "0.1.0"


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
