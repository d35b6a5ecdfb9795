"""C backend: a network as one C99 file of integer arithmetic, with the kernels it uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwtv2_edge.backends import Artifact, EmitOptions
from qwtv2_edge.errors import Problem, UsageError
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.numerics import Numerics
from qwtv2_edge_c.numerics import NUMERICS


@dataclass(frozen=True)
class CBackend:
    """See qwtv2_edge.backends.Backend."""

    name: str = "c"
    targets: tuple[str, ...] = ("c",)

    @property
    def numerics(self) -> Mapping[str, Numerics]:
        return NUMERICS

    def check(self, graph: Graph, target: str) -> tuple[Problem, ...]:
        from qwtv2_edge_c.emit import check

        return check(graph)

    def read(self, source: str | Path | bytes) -> Graph:
        raise UsageError("generated C holds no graph that could be read back", fix="keep the model.qir of its export folder")

    def emit(self, graph: Graph, target: str, options: EmitOptions) -> Artifact:
        from qwtv2_edge_c.emit import emit

        return emit(graph, options)


BACKEND = CBackend()
