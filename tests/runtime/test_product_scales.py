"""The effective scale of a product of two activations, to its last bit, on every TFLite runtime.

Its precision (float32 product and float64 quotient, float32 throughout, float64 throughout) shows in one output of some
hundred thousand; the sums that tell the three apart are looked for here, and written as operands.
"""

from __future__ import annotations

import numpy as np
import pytest
from cases.build import act, op_case

from qwtv2_edge import fixedpoint as fp
from qwtv2_edge.backends import emit
from qwtv2_edge.ops import integers, sequence
from qwtv2_edge.ops.matmul import BatchMatmulAttrs
from qwtv2_edge.runners.host import Session, available
from qwtv2_edge.simulator.run import run
from qwtv2_edge_tflite import BACKEND

pytestmark = pytest.mark.runtime

RUNTIMES = ("litert-reference", "tflite-2.14-reference", "tflite-micro")
INNER = 130
SCALES = (sequence.matmul_scale, integers.product_scale32, integers.product_scale64)


def operands(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 (1, sums, INNER) and (1, INNER, 1) whose products are ``sums``, below 127 * 127 * 128."""
    a = np.zeros((1, len(sums), INNER), np.int8)
    b = np.full((1, INNER, 1), 127, np.int8)
    b[0, -1] = 1
    whole, rest = np.divmod(sums, 127)
    for k in range(INNER - 1):
        a[0, :, k] = np.clip(whole - 127 * k, 0, 127)
    a[0, :, -1] = rest
    assert np.array_equal((a.astype(np.int64) @ b)[0, :, 0], sums)
    return a, b


def codes_of(sums: np.ndarray, x, y, out) -> list[np.ndarray]:
    return [fp.requantize(sums, np.float64(scale(x, y, out)), "REF") for scale in SCALES]


def telling_sums(x, y, out) -> np.ndarray:
    """Sums on which SCALES give different codes, of those next to where a code ends."""
    ends = np.floor((np.arange(120) + 0.5) / float(SCALES[0](x, y, out))).astype(np.int64)
    sums = np.concatenate([ends, ends + 1])
    codes = codes_of(sums, x, y, out)
    return sums[(codes[0] != codes[1]) | (codes[0] != codes[2])]


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_last_bit_of_the_scale(name, require):
    table = BACKEND.numerics[name]
    require(table.runner, *available(table.runner))
    rng = np.random.default_rng(5)
    told = np.zeros(2, int)
    with Session(table.runner) as session:
        for _ in range(3000):
            first, second = (act((), float(np.float32(s)), 0) for s in rng.uniform(0.01, 0.1, 2))
            out = act((), float(np.float32(first.scale * second.scale * rng.uniform(4000, 16000))), 0)
            sums = telling_sums(first, second, out)
            if not len(sums):
                continue
            a, b = operands(sums)
            types = [act(v.shape, t.scale, 0) for v, t in ((a, first), (b, second))]
            graph = op_case("product", "batch_matmul", BatchMatmulAttrs(), types, out.quantization).graph
            session.load(emit(graph, table.target).data)
            (actual,), (expected,) = session.run([a, b]), run(graph, [a, b], table)
            np.testing.assert_array_equal(actual, expected)
            codes = codes_of(sums, first, second, out)
            told += [(codes[0] != other).any() for other in codes[1:]]
            if (told >= 3).all():
                break
    assert (told > 0).all(), "the sums must tell the three precisions apart"
