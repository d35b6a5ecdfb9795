"""TFLite backend: LiteRT, TensorFlow Lite and TFLite Micro from one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwtv2_edge.backends import Artifact, EmitOptions
from qwtv2_edge.errors import Problem
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.numerics import Numerics
from qwtv2_edge_tflite.numerics import NUMERICS


@dataclass(frozen=True)
class TFLiteBackend:
    """See qwtv2_edge.backends.Backend."""

    name: str = "tflite"
    targets: tuple[str, ...] = ("tflite", "tflite-micro")

    @property
    def numerics(self) -> Mapping[str, Numerics]:
        return NUMERICS

    def check(self, graph: Graph, target: str) -> tuple[Problem, ...]:
        from qwtv2_edge_tflite.emit import check

        return check(graph, target)

    def read(self, source: str | Path | bytes) -> Graph:
        from qwtv2_edge_tflite.read import read_tflite

        return read_tflite(source)

    def emit(self, graph: Graph, target: str, options: EmitOptions) -> Artifact:
        from qwtv2_edge_tflite.emit import emit

        return emit(graph, target, options)


BACKEND = TFLiteBackend()
