"""However samples are cut, batches hold the same rows in the same order."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from small_graphs import two_inputs

from qwtv2_edge.data import open_data, rereadable


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    batch=st.integers(1, 20),
    single=st.booleans(),
    again=st.integers(1, 20),
)
def test_cutting(sizes, batch, single, again):
    count = sum(sizes)
    a = np.arange(count * 4, dtype=np.float32).reshape(count, 4)
    b = -np.arange(count * 4, dtype=np.float32).reshape(count, 2, 2)
    cuts = np.cumsum([0, *sizes])

    def elements():
        if single:
            yield from zip(a, b, strict=True)
        else:
            for start, stop in pairwise(cuts):
                yield a[start:stop], b[start:stop]

    with rereadable(open_data(elements(), two_inputs())) as data:
        for size in (batch, again):
            parts = list(data.batches(size))
            assert [len(p[0]) for p in parts[:-1]] == [size] * (len(parts) - 1)
            assert 1 <= len(parts[-1][0]) <= size
            np.testing.assert_array_equal(np.concatenate([p[0] for p in parts]), a)
            np.testing.assert_array_equal(np.concatenate([p[1] for p in parts]), b)


@given(
    picks=st.sets(st.integers(0, 29), min_size=1),
    batch=st.integers(1, 40),
    chunk=st.integers(1, 40),
)
def test_selecting(picks, batch, chunk):
    a = np.arange(120, dtype=np.float32).reshape(30, 4)
    b = a.reshape(30, 2, 2)
    source = [(a[i : i + chunk], b[i : i + chunk]) for i in range(0, 30, chunk)]
    with rereadable(open_data(source, two_inputs())) as data:
        chosen = data.select(picks)
        got = np.concatenate([p[0] for p in chosen.batches(batch)])
    np.testing.assert_array_equal(got, a[sorted(picks)])
    assert chosen.count == len(picks)
