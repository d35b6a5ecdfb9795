"""Times of artifacts in their real runtimes, with what casts doubt on them."""

from qwtv2_edge.profiling.measure import profile
from qwtv2_edge.profiling.report import Device, Latency, ProfileReport

__all__ = ["Device", "Latency", "ProfileReport", "profile"]
