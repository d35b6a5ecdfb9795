"""The aarch64 runtimes on emulated cores: bytes that differ from the simulator's, and from the same runtime's on this machine.

    python tests/benchmarks/bench_arm.py [--net NAME]... [--core CORE]... [--samples N] [--markdown FILE]

Needs `qwtv2-edge prepare arm`; runtimes that are not there are left out. Every network runs on the nine edge patterns and on some
samples of its own data. Two processor families may differ where a runtime has other kernels for them; the simulator has a rule for
each. The optimised built-ins promise a bound only and stand for information.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_profile import table
from common import note, show
from models import build_net, calibration_of, zoo

import qwtv2_edge as qe
from qwtv2_edge.backends import tables_on
from qwtv2_edge.numerics import Numerics
from qwtv2_edge.runners.arm import CORES, FAMILY, RUNTIMES, open_qemu, prepared
from qwtv2_edge.runners.base import Place
from qwtv2_edge.runners.host import HOST, Session
from qwtv2_edge.verification.patterns import edge_patterns

TARGETS = ("tflite", "executorch-xnnpack", "executorch-portable")
#: network -> samples of its own data
NETS = {"resnet8": 24, "ds_cnn": 24, "kwt1": 24, "mobilenet_v2": 4}

Arrays = Sequence[np.ndarray]


def different(expected: Arrays, actual: Arrays) -> int:
    """Bytes that differ."""
    return sum(int((e.view(np.uint8) != a.view(np.uint8)).sum()) for e, a in zip(expected, actual, strict=True))


def run(numerics: Numerics, artifact: bytes, inputs: Arrays, place: Place) -> tuple[list[np.ndarray], dict[str, str]]:
    with Session(numerics.runner, artifact, place=place) as session:
        return session.run(inputs), session.versions


def measure(name: str, cores: Sequence[str], samples: int) -> list[dict[str, Any]]:
    graph = qe.capture(build_net(name), (calibration_of(name, 1),))
    graph = qe.quantize(graph, calibration_of(name, 24 if name in zoo.BUILDERS else 256)).graph
    patterns = edge_patterns(graph)[1]
    inputs = [np.concatenate([p, calibration_of(name, samples)]) for p in patterns]
    rows = []
    for target in TARGETS:
        data = qe.emit(graph, target).data
        for numerics in tables_on(target, FAMILY):
            runtime = next((n for n in prepared() if numerics.runner in RUNTIMES[n].runners), None)
            if runtime is None:
                continue
            expected = qe.simulate(graph, inputs, numerics.name)
            on_this, here = run(numerics, data, inputs, HOST)
            for core in cores:
                if core not in RUNTIMES[runtime].cores:
                    continue
                actual, there = run(numerics, data, inputs, open_qemu(core))
                row = {
                    **{"net": name, "core": core, "numerics": numerics.name, "promise": numerics.promise, "samples": len(inputs[0])},
                    **{"bytes": sum(a.nbytes for a in actual), "different": different(expected, actual)},
                    **{"different_here": different(on_this, actual)},
                    **{"versions": there, "versions_here": here},
                }
                note(" ".join(str(v) for v in row.values()))
                rows.append(row)
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """One row per network and numerics, one column per core: bytes that differ from the simulator's / from this machine's."""
    cores = [c for c in CORES if any(r["core"] == c for r in rows)]
    lines = []
    for net, numerics in dict.fromkeys((r["net"], r["numerics"]) for r in rows):
        found = {r["core"]: r for r in rows if (r["net"], r["numerics"]) == (net, numerics)}
        first = next(iter(found.values()))
        label = numerics if first["promise"] == "exact" else f"{numerics} ({first['promise']})"
        counts = [f"{found[c]['different']} / {found[c]['different_here']}" if c in found else "" for c in cores]
        lines.append([net, label, str(first["samples"]), f"{first['bytes']:,}", *counts])
    return table("|".join(("network", "numerics", "samples", "bytes", *cores)), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETS, action="append")
    parser.add_argument("--core", choices=CORES, action="append")
    parser.add_argument("--samples", type=int, help="of every network's own data")
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    rows = [r for net in args.net or NETS for r in measure(net, args.core or list(CORES), args.samples or NETS[net])]
    if args.markdown:
        args.markdown.write_text(markdown(rows))
    show("arm", rows)


if __name__ == "__main__":
    main()
