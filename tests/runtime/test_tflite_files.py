"""Published int8 files: read, simulated and run in every TFLite runtime, then emitted again."""

from __future__ import annotations

import numpy as np
import pytest
from cases import feeds

from qwtv2_edge.backends import emit
from qwtv2_edge.runners.host import Session, available
from qwtv2_edge.simulator.run import run
from qwtv2_edge_tflite import BACKEND

pytestmark = pytest.mark.runtime

FILES = ["anomaly_detection", "image_classification", "keyword_spotting", "visual_wake_words"]
HERE = {n.name: n for n in BACKEND.numerics.values() if n.runner and "@" not in n.name and n.promise == "exact"}


@pytest.mark.parametrize("numerics", HERE)
@pytest.mark.parametrize("name", FILES)
def test_published_files_are_exact(name, numerics, data_dir, rng, require):
    table = HERE[numerics]
    require(table.runner, *available(table.runner))
    data = (data_dir / name / "ref_int8.tflite").read_bytes()
    graph = BACKEND.read(data)
    x = feeds(graph, rng, 24)
    expected = run(graph, x, table)
    with Session(table.runner, data) as session:
        for a, b in zip(expected, session.run(x), strict=True):
            assert np.array_equal(a, b)
        session.load(emit(graph, "tflite").data)
        for a, b in zip(expected, session.run(x), strict=True):
            assert np.array_equal(a, b)
