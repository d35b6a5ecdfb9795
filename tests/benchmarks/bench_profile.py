"""Latency on this machine, where it goes, what asking costs, and whether compensation costs any.

    python tests/benchmarks/bench_profile.py [--net NAME]... [--target NAME]... [--rounds N] [--markdown FILE]

Each network at 8 bits, one thread: percentiles over several starts of the runtime and the spread of their medians; times per op, traced
to nodes; the median with a clock on every op against without; a network compensated (cwac) against one that is not, in turns.
Run it on a machine that does nothing else. --markdown: the tables, beside the JSON on standard output.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import note, show
from models import build_net, calibration_of

import qwtv2_edge as qe
from qwtv2_edge.backends import get_numerics
from qwtv2_edge.profiling import compare_latency
from qwtv2_edge.profiling.measure import DEFAULT_NUMERICS
from qwtv2_edge.profiling.ops import by_node, time_ops
from qwtv2_edge.runners.base import Job
from qwtv2_edge.runners.host import HOST

NETS = ("resnet8", "ds_cnn", "mobilenet_v2")
TARGETS = ("tflite", "executorch-xnnpack")
CALIBRATION = 64
#: nodes in the tables
TOP = 8


def measure(name: str, target: str, graphs: dict[str, qe.Graph], sample: np.ndarray, rounds: int) -> dict[str, Any]:
    """One network in one format. graphs: by kind of compensation."""
    artifacts = {kind: qe.emit(graph, target) for kind, graph in graphs.items()}
    graph, artifact = graphs["cwac"], artifacts["cwac"]
    report = qe.profile(artifact, sample, graph=graph, ops=False).to_json()
    numerics = get_numerics(DEFAULT_NUMERICS[target])
    ops = time_ops(HOST, Job(target, numerics.runner, artifact.data, [sample]), graph)
    against = compare_latency(
        artifacts["none"], artifacts["cwac"], rounds=rounds, graphs=(graphs["none"], graphs["cwac"]), inputs=sample
    ).to_json()
    row = {
        "net": name,
        "target": target,
        **{k: report[k] for k in ("numerics", "bytes", "latency", "load_ms", "first_ms", "peak_rss_bytes", "outputs_match")},
        **{k: report[k] for k in ("reliable", "reasons")},
        "ops": {
            "rows": [dict(r) for r in ops.rows],
            "nodes": by_node(ops.rows),
            "sum_ms": sum(r["ms"] for r in ops.rows),
            **{k: getattr(ops, k) for k in ("whole_ms", "plain_ms", "watched_ms", "note")},
        },
        "cwac_against_none": {**against, "same_ops": artifacts["none"].ops == artifacts["cwac"].ops},
    }
    note(f"{name} {target}: p50 {report['latency']['p50_ms']:.4f} ms, cwac {against['difference_ms']:+.4f}, reliable: {report['reliable']}")
    return row


def measure_net(name: str, targets: tuple[str, ...], rounds: int) -> Iterator[dict[str, Any]]:
    calibration = calibration_of(name, CALIBRATION)
    assert isinstance(calibration, np.ndarray)
    captured = qe.capture(build_net(name), (calibration[:1],))
    graphs = {kind: qe.quantize(captured, calibration, {"compensation": kind}).graph for kind in ("none", "cwac")}
    for target in targets:
        yield measure(name, target, graphs, calibration[:1], rounds)


def table(head: str, lines: list[list[str]]) -> str:
    """Markdown. head: names of the columns, separated by |."""
    columns = head.split("|")
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *lines)) + "\n"


def markdown(rows: list[dict[str, Any]]) -> str:
    latency, asking, compared, parts = [], [], [], []
    for row in rows:
        name, t, ops, c = [row["net"], row["target"]], row["latency"], row["ops"], row["cwac_against_none"]
        latency.append(
            [
                *name,
                *(f"{t[k]:.4f}" for k in ("p10_ms", "p50_ms", "p90_ms", "p99_ms")),
                f"[{t['ci95_ms'][0]:.4f}, {t['ci95_ms'][1]:.4f}]",
                ", ".join(f"{v:.4f}" for v in t["rounds_p50_ms"]),
                f"{100 * t['spread']:.1f} %",
                "yes" if row["reliable"] else "no: " + "; ".join(row["reasons"]),
            ]
        )
        overhead = 100 * (ops["watched_ms"] / ops["plain_ms"] - 1)
        asking.append([*name, *(f"{ops[k]:.4f}" for k in ("sum_ms", "whole_ms", "plain_ms", "watched_ms")), f"{overhead:+.1f} %"])
        a, b = c["latency"]
        interval = f"{c['difference_ms']:+.4f} [{c['ci95_ms'][0]:+.4f}, {c['ci95_ms'][1]:+.4f}]"
        verdict = ["yes" if c["significant"] else "no", "yes" if c["same_ops"] else "no"]
        compared.append([*name, f"{a['p50_ms']:.4f}", f"{b['p50_ms']:.4f}", interval, f"{c['p_value']:.3f}", *verdict])
        nodes = ops["nodes"]
        lines = [[f"`{n['node']}`", str(n["ops"]), f"{n['ms']:.4f}", f"{n['percent']:.1f} %"] for n in nodes[:TOP]]
        rest = nodes[TOP:]
        lines.append([f"{len(rest)} more", *(f"{sum(n[k] for n in rest):{form}}" for k, form in (("ops", "d"), ("ms", ".4f"))), ""])
        parts.append(f"{row['net']}, {row['target']}: {ops['note']}\n\n{table('node|ops|ms|share', lines)}")
    return "\n".join(
        [
            table("network|target|p10 ms|p50 ms|p90 ms|p99 ms|95 % of p50|p50 of each start|spread|reliable", latency),
            table("network|target|ops' sum ms|artifact ms|measured program ms|with clocks ms|overhead", asking),
            table("network|target|none p50 ms|cwac p50 ms|difference ms [95 %]|p|significant|same ops", compared),
            *parts,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETS, action="append")
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--rounds", type=int, default=10, help="of the comparison")
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    targets = tuple(args.target or TARGETS)
    rows = [row for net in args.net or NETS for row in measure_net(net, targets, args.rounds)]
    if args.markdown:
        args.markdown.write_text(markdown(rows))
    show("profile", rows)


if __name__ == "__main__":
    main()
