"""Lazy layout: any chain of views, permutes and forms gives what NumPy gives."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qwtv2_edge.frontend.layout import Layouter, Value, from_form, permute, view
from qwtv2_edge.frontend.passes import drop_dead
from qwtv2_edge.ir.graph import GraphBuilder
from qwtv2_edge.ir.types import TensorType
from qwtv2_edge.simulator.run import run_float

EXTENTS = st.integers(1, 4)


def factorisations(n: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes whose product is n."""

    @st.composite
    def draw_shape(draw: st.DrawFn) -> tuple[int, ...]:
        left, shape = n, []
        while left > 1 and len(shape) < 5:
            d = draw(st.sampled_from([d for d in range(1, left + 1) if left % d == 0]))
            shape.append(d)
            left //= d
        shape.append(left)
        return tuple(shape)

    return draw_shape()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_chains_of_views_and_permutes(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(EXTENTS, min_size=1, max_size=5)))
    form = tuple(data.draw(st.permutations(range(len(shape)))))
    b = GraphBuilder("g")
    x = b.input("x", TensorType(tuple(shape[a] for a in form)))
    layout = Layouter(b)
    layout.name = "m"
    memory = np.arange(prod(shape), dtype=np.float32).reshape([shape[a] for a in form])
    value: Value = from_form(x, shape, form)
    expected = memory.transpose(np.argsort(form))
    for _ in range(data.draw(st.integers(0, 5))):
        match data.draw(st.sampled_from(["permute", "view", "simple", "form"])):
            case "permute":
                dims = data.draw(st.permutations(range(value.rank)))
                value, expected = permute(value, dims), expected.transpose(dims)
            case "view":
                target = data.draw(factorisations(prod(shape)))
                value, expected = layout.view(value, target), expected.reshape(target)
            case "simple":
                value, _ = layout.simple(value)
            case "form":
                value = layout.to_form(value, tuple(data.draw(st.permutations(range(value.rank)))))
        assert value.shape == expected.shape
    b.outputs = [layout.to_logical(value)]
    if b.outputs == ["x"]:
        np.testing.assert_array_equal(memory, expected)
        return
    graph = drop_dead(b.freeze())
    (actual,) = run_float(graph, [memory])
    np.testing.assert_array_equal(actual, expected)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_view_that_needs_no_data_moved_emits_nothing(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5)))
    value = from_form("x", shape, tuple(range(len(shape))))
    target = data.draw(factorisations(prod(shape)))
    seen = view(value, target)
    if seen is not None:  # None: factors that cross, as 6 = 2 * 3 to 3 * 2
        back = view(seen, shape)
        assert back is not None
        assert (back.shape, seen.shape) == (shape, target)
        assert [i for axis in seen.axes for i in axis] == list(range(len(seen.sizes)))
