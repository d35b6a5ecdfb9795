"""Post-training quantization: recipe, observers, legalization, scales, and the compensated integer graph."""

from qwtv2_edge.quantization.quantize import QuantizationReport, QuantizedModel, quantize
from qwtv2_edge.quantization.recipe import Recipe

__all__ = ["QuantizationReport", "QuantizedModel", "Recipe", "quantize"]
