"""The demonstration: whole, quick, and better with compensation than without."""

from __future__ import annotations

import time

from command import need_everything


def test_demo(fresh, tmp_path):
    need_everything()
    start = time.monotonic()
    done = fresh("demo", "--out", tmp_path / "out", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert time.monotonic() - start < 120
    report = done.document
    assert report["float_metric"] > 0.985
    assert min(report["metrics"].values()) > report["float_metric"] - 0.01
    none, offset, cwac = report["four_bit"]
    assert none["sqnr_db"] < offset["sqnr_db"] <= cwac["sqnr_db"]
    assert (tmp_path / "out" / "report.html").is_file()
