"""Printed graphs."""

from __future__ import annotations

import dataclasses

from small_graphs import float_graph, integer_graph

from qwtv2_edge.ir.text import to_text


def test_float(golden):
    golden("float_graph.txt", to_text(float_graph(), locations=True))


def test_integer(golden):
    golden("integer_graph.txt", to_text(integer_graph()))


def test_independent_of_the_order_of_tables():
    graph = integer_graph()
    turned = dataclasses.replace(graph, constants=dict(reversed(graph.constants.items())))
    assert to_text(turned) == to_text(graph)
