"""Proof that the real runtimes compute what the simulator predicts."""

from qwtv2_edge.verification.patterns import edge_patterns
from qwtv2_edge.verification.report import Culprit, Mismatch, NumericsResult, VerifyReport
from qwtv2_edge.verification.runtimes import golden_vectors, verify

__all__ = ["Culprit", "Mismatch", "NumericsResult", "VerifyReport", "edge_patterns", "golden_vectors", "verify"]
