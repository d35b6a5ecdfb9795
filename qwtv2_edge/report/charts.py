"""Charts as inline SVG text. Colours come from the page's style sheet, so one drawing serves light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, isfinite, log10

from markupsafe import Markup, escape

ROW = 24
LABEL = 205
WIDTH = 760
PLOT_RIGHT = WIDTH - 64
AXIS = 26


@dataclass(frozen=True, slots=True)
class Mark:
    """One dot: its series (a CSS class), value, and the text shown on hover."""

    series: str
    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a dot chart: label, dots (joined by a line), and a note at the right end."""

    label: str
    marks: Sequence[Mark]
    note: str = ""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers from at most ``low`` to at least ``high``."""
    span = max(high - low, 1e-9)
    raw = span / count
    unit = 10.0 ** floor(log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first = floor(low / step + 1e-9)
    last = max(ceil(high / step - 1e-9), first + 1)
    return [i * step for i in range(first, last + 1)]


def dots(
    rows: Sequence[Row],
    title: str,
    unit: str,
    *,
    line: tuple[float, str] | None = None,
    least_span: float = 1.0,
    most: float = inf,
) -> Markup:
    """A dot chart with one row per item and a common axis that need not start at zero.

    Args:
        rows: from top to bottom.
        title: for screen readers.
        unit: of the axis, e.g. "%".
        line: value and name of a vertical reference line.
        least_span: smallest extent of the axis, so that noise is not blown up.
        most: no value can be above; the axis ends there.
    """
    values = [m.value for r in rows for m in r.marks if isfinite(m.value)] + ([line[0]] if line else [])
    if not values:
        return Markup("")
    low, high = min(values), max(values)
    middle, half = (low + high) / 2, max(high - low, least_span) / 2 * 1.08
    at = [t for t in ticks(middle - half, middle + half) if t <= most]
    left, right = at[0], at[-1]
    height = AXIS + ROW * len(rows) + 10

    def x(value: float) -> str:
        return f"{LABEL + (value - left) / (right - left) * (PLOT_RIGHT - LABEL):.1f}"

    out = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">']
    for t in at:
        out.append(f'<line class="grid" x1="{x(t)}" x2="{x(t)}" y1="{AXIS - 4}" y2="{height - 6}"/>')
        out.append(f'<text class="tick" x="{x(t)}" y="14" text-anchor="middle">{t:.4g}{escape(unit)}</text>')
    if line:
        out.append(f'<line class="reference" x1="{x(line[0])}" x2="{x(line[0])}" y1="{AXIS - 4}" y2="{height - 6}"/>')
    for i, row in enumerate(rows):
        y = AXIS + ROW * i + ROW // 2
        out.append(f'<text class="label" x="{LABEL - 12}" y="{y + 4}" text-anchor="end">{escape(shorten(row.label, 28))}')
        out.append(f"<title>{escape(row.label)}</title></text>")
        shown = [m for m in row.marks if isfinite(m.value)]
        if len(shown) > 1:
            span = [m.value for m in shown]
            out.append(f'<line class="span" x1="{x(min(span))}" x2="{x(max(span))}" y1="{y}" y2="{y}"/>')
        for m in shown:
            out.append(f'<circle class="{m.series}" cx="{x(m.value)}" cy="{y}" r="5.5"><title>{escape(m.text)}</title></circle>')
        if row.note:
            out.append(f'<text class="note" x="{PLOT_RIGHT + 12}" y="{y + 4}">{escape(row.note)}</text>')
    out.append("</svg>")
    return Markup("".join(out))


def accuracy_chart(metrics: Mapping[str, float], float_metric: float | None, metric: str) -> Markup:
    """The metric on every numerics, against the float network's."""
    percent = metric in ("top1", "top5")
    factor, unit = (100.0, "%") if percent else (1.0, "")

    def text(value: float) -> str:
        return f"{value * factor:.2f}{unit}" if percent else f"{value:.4g}"

    rows = [Row(name, [Mark("cwac", value * factor, f"{name}: {text(value)}")], text(value)) for name, value in metrics.items()]
    line = (float_metric * factor, "float") if float_metric is not None else None
    largest = max([abs(v) for v in metrics.values()], default=1.0) * factor
    least_span = 2.0 if percent else max(largest * 0.05, 1e-6)
    return dots(rows, f"{metric} per numerics", unit, line=line, least_span=least_span, most=100.0 if percent else inf)


def error_chart(records: Sequence[Mapping[str, object]]) -> Markup:
    """Signal to noise of every compensated op: plain, with offset, with what was chosen."""
    rows = []
    for r in records:
        before = number(r.get("snr_before_db"))
        if before is None:
            continue
        chosen = str(r["kind"])
        marks = [Mark("none", before, f"none: {before:.2f} dB")]
        for kind in ("offset", "cwac"):
            value = snr_of(r, kind)
            if value is not None:
                state = "" if kind == chosen else ", not chosen"
                marks.append(Mark(kind if not state else f"{kind} faint", value, f"{kind}: {value:.2f} dB{state}"))
        # what was chosen lies on top
        rows.append(Row(str(r["node"]), sorted(marks, key=lambda m: m.series == chosen), chosen))
    return dots(rows, "Signal to noise of each op before and after compensation", " dB")


def snr_of(record: Mapping[str, object], kind: str) -> float | None:
    """SNR in dB with ``kind`` applied, from the plain SNR and the two squared errors."""
    before, plain, other = (number(record.get(k)) for k in ("snr_before_db", "mse_before", f"mse_{kind}"))
    if before is None or not plain or not other:
        return None
    return before + 10.0 * log10(plain / other)


def number(value: object) -> float | None:
    """A finite float, or None."""
    return float(value) if isinstance(value, (int, float)) and isfinite(value) else None


def shorten(text: str, length: int) -> str:
    """``text`` with its start cut when longer than ``length`` (the end of a module path tells most)."""
    return text if len(text) <= length else "…" + text[1 - length :]
