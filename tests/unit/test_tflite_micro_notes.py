"""What an artifact for TFLite Micro says of the versions and kernels it needs."""

from __future__ import annotations

import pytest
from cases import CASES

from qwtv2_edge.backends import emit

GRAPHS = {c.name: c.graph for cases in CASES.values() for c in cases}


def notes(name: str, target: str = "tflite-micro") -> str:
    return "\n".join(emit(GRAPHS[name], target).notes)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("fc-small-per-channel-random", "of 2024-09-27 (commit 47b545074) or newer: FULLY_CONNECTED with a scale per channel (1)"),
        ("batch-matmul-rank2-random", "of 2023-09-06 (commit 5d542d7ed) or newer: BATCH_MATMUL (1)"),
        ("grouped-2-groups-random", "of 2022-03-19 (commit ea94f7685) or newer: grouped CONV_2D (1)"),
        ("conv2d-int4", "of 2022-10-14 (commit df704e135) or newer: CONV_2D with packed 4-bit weights (1)"),
        ("layer-norm-twice-8-int8-random", "of 2024-09-09 (commit 19aaea85e) or newer: 16-bit MINIMUM (2)"),
    ],
)
def test_the_oldest_tflite_micro_is_named(case, words):
    assert f"needs TFLite Micro {words}" in notes(case)
    assert "TFLite Micro of" not in notes(case, "tflite")


def test_forms_that_cmsis_nn_computes_otherwise_are_named():
    assert "CMSIS-NN's reads the 32-bit bias as 64-bit" in notes("fc-wide-small-per-channel-random")
    assert "CMSIS-NN" not in notes("fc-small-per-channel-random")
