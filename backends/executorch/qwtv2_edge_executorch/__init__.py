"""ExecuTorch backend: programs for the XNNPACK delegate, the portable kernels and Cortex-M, from one integer graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qwtv2_edge.backends import Artifact, EmitOptions
from qwtv2_edge.errors import Problem, UnsupportedOpError
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.numerics import Numerics
from qwtv2_edge_executorch.numerics import NUMERICS

if TYPE_CHECKING:
    from qwtv2_edge_executorch.emit import Build

#: key under which the manifest travels in the program's named data
MANIFEST = "qwtv2_edge.manifest"

TARGETS = ("executorch-xnnpack", "executorch-portable", "executorch-cortex-m")


@dataclass(frozen=True)
class ExecuTorchBackend:
    """The backend of the three ExecuTorch targets."""

    name: str = "executorch"
    targets: tuple[str, ...] = TARGETS
    numerics: Mapping[str, Numerics] = field(default_factory=lambda: NUMERICS)

    def check(self, graph: Graph, target: str) -> tuple[Problem, ...]:
        """Every node that ``target`` can't take, each with a code, a reason and a fix."""
        return tuple(_build(graph, target, EmitOptions()).problems)

    def emit(self, graph: Graph, target: str, options: EmitOptions) -> Artifact:
        """The program file for ``target``.

        Raises: UnsupportedOpError: with every offending node; EmitError: an ExecuTorch of another series is
            installed; MissingToolError: the flatbuffers package is not, or for Cortex-M ExecuTorch itself; UsageError:
            ``options`` names an unknown core.
        """
        from qwtv2_edge.ir.serde import graph_hash
        from qwtv2_edge_executorch.program import check_installed_version

        check_installed_version()
        result = _build(graph, target, options)
        if result.problems:
            raise UnsupportedOpError(f"{target} can't take {len(result.problems)} nodes of '{graph.name}'", tuple(result.problems))
        notes = [f"{n.op} '{n.name}' runs outside the delegate, as portable integer kernels: {why}" for n, why in result.outside]
        notes += result.notes
        packed = sum(graph.tensors[t].dtype == "int4" for t in graph.constants)
        if packed:
            notes.append(f"{packed} tensors of 4-bit weights take one byte per weight: ExecuTorch has no kernel for packed ones")
        named = {MANIFEST: json.dumps(dict(options.manifest), sort_keys=True).encode()} if options.manifest else {}
        ops, nodes = zip(*result.program.called, strict=True) if result.program.called else ((), ())
        return Artifact(target, result.finish(named), ops, nodes, tuple(notes), graph_hash(graph))


def _build(graph: Graph, target: str, options: EmitOptions) -> Build:
    if target == "executorch-cortex-m":
        from qwtv2_edge_executorch import cortex_m

        return cortex_m.build(graph, NUMERICS[target], options.core)
    from qwtv2_edge_executorch.emit import build

    return build(graph, NUMERICS[target], delegate=target == "executorch-xnnpack", separate=options.separate)


BACKEND = ExecuTorchBackend()
