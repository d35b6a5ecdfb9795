"""Times of artifacts in their real runtimes, with what casts doubt on them."""

from qwtv2_edge.profiling.compare import compare_latency
from qwtv2_edge.profiling.measure import profile
from qwtv2_edge.profiling.report import Comparison, DeviceInfo, Latency, ProfileReport

__all__ = ["Comparison", "DeviceInfo", "Latency", "ProfileReport", "compare_latency", "profile"]
