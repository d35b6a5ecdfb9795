"""The page and its charts."""

from __future__ import annotations

import pytest

from qwtv2_edge.report import charts
from qwtv2_edge.report.page import grouped, in_bytes, percent

pytest.importorskip("jinja2")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (97.3, 99.9), (-3.0, 41.0), (1e-7, 2e-7), (5.0, 5.0)])
def test_ticks_cover_the_range_with_round_numbers(low, high):
    ticks = charts.ticks(low, high)
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12
    assert 2 <= len(ticks) <= 8


def test_labels_are_escaped_and_shortened():
    rows = [charts.Row("<b>" + "x" * 60, [charts.Mark("none", 1.0, "<i>")])]
    drawing = str(charts.dots(rows, "<title>", "%"))
    assert "<b>" not in drawing
    assert "<i>" not in drawing
    assert "&lt;b&gt;" in drawing
    assert charts.shorten("features.12.conv.3", 10) == "…12.conv.3"


def test_error_chart_places_each_kind():
    record = {"node": "a", "kind": "offset", "snr_before_db": 20.0, "mse_before": 1.0, "mse_offset": 0.1, "mse_cwac": None}
    assert charts.snr_of(record, "offset") == pytest.approx(30.0)
    assert charts.snr_of(record, "cwac") is None
    drawing = str(charts.error_chart([record]))
    assert drawing.count("<circle") == 2
    assert "30.00 dB" in drawing
    assert str(charts.error_chart([{**record, "snr_before_db": None}])) == ""


def test_numbers_for_people():
    assert [in_bytes(n) for n in (12, 2048, 93360, 3 << 20)] == ["12 B", "2 KiB", "91.2 KiB", "3 MiB"]
    assert grouped(1234567) == "1\u202f234\u202f567"
    assert percent(0.98765) == "98.77 %"
    assert percent(None) == ""


def test_accuracy_axis_ends_at_100_percent():
    drawing = str(charts.accuracy_chart({"a": 1.0, "b": 0.995}, 0.999, "top1"))
    assert ">100%<" in drawing
    assert ">100.5%<" not in drawing
    assert drawing.count("<circle") == 2
