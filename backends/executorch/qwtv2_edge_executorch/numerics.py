"""What the ExecuTorch runtimes compute, op by op.

X: google/XNNPACK 1adaa7c709, which ExecuTorch 1.4.1 pins. Conditions inside a rule ("..._OR_...") name what
runs where XNNPACK refuses a node: portable integer kernels in the same program.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping

from qwtv2_edge.numerics import FLOAT_RULES, Numerics, wide_key
from qwtv2_edge.ops import OPS

VERSIONS = {"executorch": "1.4.1"}
#: programs are emitted by VERSIONS; for this one, torch has aarch64 wheels that need no graphics processor
ARM_VERSIONS = {"executorch": "1.3.1"}

#: 16-bit activations on portable kernels
WIDE_RULES: Mapping[str, str] = {
    **dict.fromkeys(("conv2d:int16", "depthwise_conv2d:int16", "fully_connected:int16"), "ONE"),
    "mul:int16": "ONE_F32",
    "mean:int16": "ONE",
    "batch_matmul:int16": "R64_F32",  # sums of products exceed 32 bits
    "quantize:int16": "RNE",
}

XNNPACK_RULES: Mapping[str, str] = {
    **dict.fromkeys(("conv2d", "depthwise_conv2d", "transpose_conv2d", "fully_connected"), "F32E"),  # X src/qs8-qc8w-*
    **dict.fromkeys(("add", "sub"), "Q20_OR_LSHIFT20"),  # X src/microparams-init.c :: xnn_init_qs8_add_minmax_scalar_params
    "mul": "F32E_OR_REF_F32",  # X src/microparams-init.c :: xnn_init_qs8_mul_minmax_scalar_params
    "mean": "XNN",  # X src/operators/reduce-nd.c
    "sum": "ONE",  # portable kernels
    "avg_pool2d": "DEPTHWISE_F32E_OR_TFLITE",  # X src/qs8-qc8w-dwconv; padded windows on portable kernels
    **dict.fromkeys(("relu", "relu6", "clamp", "activation"), "XNN"),  # X src/xnnpack/requantization.h :: xnn_qs8_quantize
    **dict.fromkeys(("logistic", "tanh", "elu", "hard_swish"), "LUT_XNN"),  # X src/reference/unary-elementwise.cc
    "leaky_relu": "XNN8_OR_REF",  # X src/microparams-init.c :: xnn_init_qs8_lrelu_scalar_params
    "prelu": "REF_F32",  # a table on portable kernels
    "resize_bilinear": "XNN",  # X src/indirection.c :: xnn_indirection_init_resize_bilinear2d_hwc_q11
    "quantize": "RNE",  # X src/f32-qs8-vcvt
    "dequantize": "EXACT",  # X src/qs8-f32-vcvt
    "requantize": "Q8_OR_REF",  # X src/qs8-vcvt
    "gelu": "LUT_XNN_ERF",  # X src/reference/unary-elementwise.cc
    "batch_matmul": "F32E",  # X src/operators/batch-matrix-multiply-nc.c
    **FLOAT_RULES,  # X src/f32-vbinary, src/f32-gemm: float32 steps put together by the emitter
    **WIDE_RULES,  # portable kernels
}

#: where ``FLOAT_RULES`` are not wanted: integer programs on portable kernels
INTEGER_RULES: Mapping[str, str] = {
    "softmax": "TABLE",
    **dict.fromkeys(("layer_norm", "channel_scale"), "INT_ONE"),
    "l2_normalize": "INT_ONE",
    **dict.fromkeys(("add:int16", "sub:int16", "channel_add"), "SUM_ONE"),
    "requantize:int16": "ONE",
}

#: the integer program of ``portable.py``: where a rule is a choice of ours, it is TFLite's, so that formats agree
PORTABLE_RULES: Mapping[str, str] = {
    **dict.fromkeys(("conv2d", "depthwise_conv2d", "transpose_conv2d", "fully_connected"), "ONE"),
    **dict.fromkeys(("add", "sub"), "Q20_OR_LSHIFT20"),
    "mul": "ONE_F32",
    "mean": "ONE",
    "sum": "ONE",
    "avg_pool2d": "TFLITE",
    "softmax": "TABLE",
    **dict.fromkeys(("relu", "relu6", "clamp", "activation"), "TFLITE"),
    **dict.fromkeys(("logistic", "tanh", "elu"), "LUT_TFLITE"),
    "hard_swish": "TFLITE",
    "leaky_relu": "REF",
    "prelu": "REF_F32",
    "resize_bilinear": "TFLITE",
    "quantize": "RNE",
    "dequantize": "EXACT",
    "requantize": "REF",
    "gelu": "LUT_TFLITE",
    "batch_matmul": "ONE_F32",
    **INTEGER_RULES,
    **WIDE_RULES,
}

#: ``executorch-cortex-m``: ``cortex_m`` operators of ExecuTorch and the CMSIS-NN that it pins. E: executorch v1.4.1,
#: backends/cortex_m/ops; C: ARM-software/CMSIS-NN dbf45dbf, Source. Multipliers are the program's own, from float64.
#: "Same" says that the operator's Python form, where ExecuTorch has one, computes the same; rows without it have another
#: witness (cortex_m_proxy.py).
CORTEX_M_RULES: Mapping[str, str] = {
    "conv2d": "REF",  # C ConvolutionFunctions/arm_convolve_wrapper_s8.c; same
    "depthwise_conv2d": "REF",  # C ConvolutionFunctions/arm_depthwise_conv_wrapper_s8.c; same
    "transpose_conv2d": "REF",  # C ConvolutionFunctions/arm_transpose_conv_wrapper_s8.c; same while sums stay below 2**24
    "fully_connected": "REF_F64",  # C FullyConnectedFunctions/arm_fully_connected_s8.c, or conv2d; same
    "batch_matmul": "REF_F64",  # C FullyConnectedFunctions/arm_batch_matmul_s8.c; same while sums stay below 2**24
    "add": "LSHIFT20",  # C BasicMathFunctions/arm_elementwise_add_s8.c; same
    "sub": "LSHIFT20_NEGATED",  # a table of negative codes and quantized_add; same
    "mul": "REF_F64",  # C BasicMathFunctions/arm_elementwise_mul_s8.c; same
    "prelu": "REF_F64",  # tables, quantized_mul and quantized_add; same
    **dict.fromkeys(("mean", "sum"), "REF"),  # a linear layer with weights of 1; same
    "avg_pool2d": "TFLITE",  # C PoolingFunctions/arm_avgpool_s8.c; the Python form averages reals and sends ties to even
    "softmax": "FIXED",  # C SoftmaxFunctions/arm_nn_softmax_common_s8.c; the Python form is a float softmax
    "activation": "TFLITE",  # bounds are the program's own
    # tables are the program's own, TFLite's functions: E op_quantized_activation.cpp; same
    **dict.fromkeys(("relu", "relu6", "clamp"), "TFLITE"),
    **dict.fromkeys(("logistic", "tanh", "elu", "gelu"), "LUT_TFLITE"),
    "hard_swish": "TFLITE",
    "leaky_relu": "REF",
    "requantize": "REF",
    "quantize": "RNE",  # E op_quantize_per_tensor.cpp, without MVE (see ``cortex_m.FLOAT_INPUT``); same
    "dequantize": "EXACT",  # E op_dequantize_per_tensor.cpp; same
}

_NARROW = "its operators compute on 8-bit codes alone"
_NONE = "its operators have none for it"
#: what Cortex-M can't execute, whatever the shapes
CORTEX_M_REFUSES: Mapping[str, str] = {
    "resize_bilinear": "its operators have no resizing",
    **dict.fromkeys(("layer_norm", "l2_normalize"), "its operators take no roots"),
    **dict.fromkeys(("channel_scale", "channel_add"), _NARROW),
    **dict.fromkeys(("embedding", "argmax", "mask_fill"), _NONE),
    **dict.fromkeys(map(wide_key, OPS), _NARROW),
}


#: processor family of this machine, as variants are named
FAMILY = "aarch64" if platform.machine() in ("aarch64", "arm64") else "x86_64"


def _xnnpack(name: str, family: str) -> Numerics:
    # X src/microparams-init.c :: xnn_init_qs8_mul_minmax_rndnu_neon_params
    rules = {**XNNPACK_RULES, "mul": "RNDNU_OR_REF_F32"} if family == "aarch64" else dict(XNNPACK_RULES)
    runtime = "ExecuTorch, XNNPACK delegate, portable integer kernels for what it leaves"
    versions = ARM_VERSIONS if family == "aarch64" else VERSIONS
    return Numerics(
        name, "executorch-xnnpack", runtime, versions, rules, modes={"forbid": INTEGER_RULES}, runner="executorch", family=family
    )


NUMERICS: Mapping[str, Numerics] = {
    n.name: n
    for n in (
        _xnnpack("executorch-xnnpack", FAMILY),
        _xnnpack("executorch-xnnpack@x86_64", "x86_64"),
        _xnnpack("executorch-xnnpack@aarch64", "aarch64"),
        Numerics(
            "executorch-portable",
            "executorch-portable",
            "ExecuTorch, portable kernels, integer program",
            VERSIONS,
            dict(PORTABLE_RULES),
            modes={"allow": FLOAT_RULES},
            runner="executorch",
        ),
        Numerics(
            "executorch-cortex-m",
            "executorch-cortex-m",
            "ExecuTorch's Cortex-M operators and CMSIS-NN, by proxy: no Cortex-M runtime is executed",
            VERSIONS,
            dict(CORTEX_M_RULES),
            refuses=CORTEX_M_REFUSES,
            runner="executorch-cortex-m",
        ),
    )
}
