"""Renders the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwtv2_edge.errors import MissingToolError

TEMPLATES = Path(__file__).parent


def need_jinja() -> None:
    """Raise MissingToolError where jinja2 is not installed."""
    try:
        import jinja2  # noqa: F401
    except ImportError as exc:
        raise MissingToolError("report.html needs jinja2", fix="pip install 'qwtv2-edge[report]'") from exc


def render(report: Mapping[str, Any]) -> str:
    """The whole page as text.

    Args:
        report: the content of report.json; measured times and memory are left out, so equal results give equal pages.
    Raises: MissingToolError without jinja2.
    """
    need_jinja()
    import jinja2

    from qwtv2_edge.report import charts

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(bytes=in_bytes, grouped=grouped, percent=percent, g=short_number)
    compensation = report["compensation"]
    return environment.get_template("page.html.j2").render(
        r=report,
        verdict=verdict(report),
        accuracy=charts.accuracy_chart(report["metrics"], report["float_metric"], report["metric"] or ""),
        errors=charts.error_chart(compensation),
        parity={
            "names": list(dict.fromkeys(n for p in report["parity"] for n in (p["a"], p["b"]))),
            "cells": {(p["a"], p["b"]): p for p in report["parity"]},
        },
        kinds={kind: sum(c["kind"] == kind for c in compensation) for kind in ("cwac", "offset", "none")},
        gated=[c for c in compensation if c["kind"] != report["recipe"]["compensation"]],
    )


def verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    """The few numbers at the top of the page."""
    exact = [v for v in report["verify"].values() if v["promise"] == "exact"]
    metrics = [v for n, v in report["metrics"].items() if n not in report["skipped"]]
    lower_is_better = report["metric"] == "mse"
    return {
        "exact": bool(exact) and not any(v["mismatches"] for v in exact),
        "bytes": sum(v["outputs_compared"] for v in exact),
        "mismatches": sum(v["mismatches"] for v in exact),
        "numerics": len(exact),
        "worst": (max if lower_is_better else min)(metrics) if metrics else None,
        "metric_text": (lambda v: f"{v * 100:.2f} %") if report["metric"] in ("top1", "top5") else short_number,
    }


def in_bytes(count: int) -> str:
    """1234567 -> "1.18 MiB"."""
    if count < 1024:
        return f"{count} B"
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count / size < 100 else f"{count / size:.0f} {unit}"
    raise AssertionError(count)


def grouped(count: int) -> str:
    """1234567 -> "1 234 567", with thin spaces."""
    return f"{count:,}".replace(",", "\u202f")


def percent(share: float | None, digits: int = 2) -> str:
    """0.1234 -> "12.34 %"; nothing for None."""
    return "" if share is None else f"{share * 100:.{digits}f} %"


def short_number(value: Any) -> str:
    """Four significant digits; nothing for None."""
    return "" if value is None else f"{value:.4g}"
