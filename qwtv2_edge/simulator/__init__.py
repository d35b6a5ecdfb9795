"""The normative meaning of an integer graph: every byte each named runtime gives."""

from qwtv2_edge.simulator.api import simulate, trace

__all__ = ["simulate", "trace"]
