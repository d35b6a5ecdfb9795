"""Every named rule that a numerics table may give an op."""

from __future__ import annotations

from qwtv2_edge.ir.types import WEIGHT_AXIS
from qwtv2_edge.numerics import wide_key
from qwtv2_edge.ops import integers, sequence, weighted

#: key of a numerics table -> its named rules (ops with one meaning everywhere are absent)
KNOWN_RULES: dict[str, frozenset[str]] = {
    **{op: frozenset(rules) for table in (integers.UNARY_RULES, integers.PAIR_RULES, integers.REDUCE_RULES) for op, rules in table.items()},
    **{wide_key(op): frozenset(rules) for op, rules in integers.WIDE_RULES.items()},
    **{op: frozenset({*weighted.RULES, *weighted.MIXED}) for op in WEIGHT_AXIS},
    **{wide_key(op): frozenset(weighted.WIDE_RULES) for op in weighted.WIDE_OPS},
    "prelu": frozenset(integers.PRELU_RULES),
    "avg_pool2d": frozenset(integers.AVG_POOL_RULES),
    "resize_bilinear": frozenset(integers.RESIZE_RULES),
    "quantize": frozenset(integers.QUANTIZE_RULES),
    "dequantize": frozenset(integers.DEQUANTIZE_RULES),
    "activation": frozenset({"TFLITE", "XNN"}),
    wide_key("requantize"): frozenset(integers.WIDE_REQUANTIZE),
    wide_key("quantize"): frozenset(integers.QUANTIZE_RULES),
    wide_key("mean"): frozenset({"REF", "ONE"}),
    "batch_matmul": frozenset(sequence.MATMUL_RULES),
    wide_key("batch_matmul"): frozenset(sequence.MATMUL_RULES),
    "layer_norm": frozenset(sequence.LAYER_NORM_RULES),
    "channel_add": frozenset(sequence.CHANNEL_ADD_RULES),
    "channel_scale": frozenset(sequence.CHANNEL_SCALE_RULES),
    "softmax": frozenset(sequence.SOFTMAX_RULES),
    "l2_normalize": frozenset(sequence.L2_RULES),
}
