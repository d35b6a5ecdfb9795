"""ExecuTorch backend: programs for the XNNPACK delegate and for the portable kernels, from one integer graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from qwtv2_edge.backends import Artifact, EmitOptions
from qwtv2_edge.errors import Problem, UnsupportedOpError
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.numerics import Numerics
from qwtv2_edge_executorch.numerics import NUMERICS

#: key under which the manifest travels in the program's named data
MANIFEST = "qwtv2_edge.manifest"

TARGETS = ("executorch-xnnpack", "executorch-portable")


@dataclass(frozen=True)
class ExecuTorchBackend:
    """The backend of ``executorch-xnnpack`` and ``executorch-portable``."""

    name: str = "executorch"
    targets: tuple[str, ...] = TARGETS
    numerics: Mapping[str, Numerics] = field(default_factory=lambda: NUMERICS)

    def check(self, graph: Graph, target: str) -> tuple[Problem, ...]:
        """Every node that ``target`` can't take, each with a code, a reason and a fix."""
        from qwtv2_edge_executorch.emit import build

        return tuple(build(graph, NUMERICS[target], delegate=target == "executorch-xnnpack").problems)

    def emit(self, graph: Graph, target: str, options: EmitOptions) -> Artifact:
        """The program file for ``target``.

        Raises: UnsupportedOpError: with every offending node; EmitError: an ExecuTorch of another series is
            installed; MissingToolError: the flatbuffers package is not.
        """
        from qwtv2_edge.ir.serde import graph_hash
        from qwtv2_edge_executorch.emit import build
        from qwtv2_edge_executorch.program import check_installed_version

        check_installed_version()
        result = build(graph, NUMERICS[target], delegate=target == "executorch-xnnpack", separate=options.separate)
        if result.problems:
            raise UnsupportedOpError(f"{target} can't take {len(result.problems)} nodes of '{graph.name}'", tuple(result.problems))
        notes = [f"{n.op} '{n.name}' runs outside the delegate, as portable integer kernels: {why}" for n, why in result.outside]
        packed = sum(graph.tensors[t].dtype == "int4" for t in graph.constants)
        if packed:
            notes.append(f"{packed} tensors of 4-bit weights take one byte per weight: ExecuTorch has no kernel for packed ones")
        named = {MANIFEST: json.dumps(dict(options.manifest), sort_keys=True).encode()} if options.manifest else {}
        ops, nodes = zip(*result.program.called, strict=True) if result.program.called else ((), ())
        return Artifact(target, result.finish(named), ops, nodes, tuple(notes), graph_hash(graph))


BACKEND = ExecuTorchBackend()
