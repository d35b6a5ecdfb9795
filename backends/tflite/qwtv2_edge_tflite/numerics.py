"""Which kernel of which TFLite runtime computes what: one table per runtime, one source per row.

Path prefixes: K = LiteRT tflite/kernels, D = LiteRT tflite/delegates/xnnpack/xnnpack_delegate.cc,
X = XNNPACK src, M = tflite-micro tensorflow/lite/micro/kernels, I = M's tensorflow/lite/kernels/internal.
Every row was run: tests/runtime/test_tflite_exact.py executes each on the versions named below.
"""

from __future__ import annotations

import platform
from typing import Any

from qwtv2_edge.numerics import FLOAT_RULES, Numerics

LITERT = {"ai-edge-litert": "2.3.0"}

REFERENCE = {
    "conv2d": "REF",  # K/internal/reference/integer_ops/conv.h :: ConvPerChannel
    "depthwise_conv2d": "REF",  # K/internal/reference/integer_ops/depthwise_conv.h
    "transpose_conv2d": "REF",  # K/internal/reference/integer_ops/transpose_conv.h
    "fully_connected": "F64",  # K/internal/reference/integer_ops/fully_connected.h, overload with float scales (from 1.4)
    "conv2d:int4": "REF",  # K/conv.cc :: EvalQuantizedPerChannel, unpacked first
    "fully_connected:int4": "F64",  # K/fully_connected.cc, unpacked first
    "activation": "TFLITE",  # K/kernel_util.cc :: CalculateActivationRangeQuantizedImpl
    "add": "LSHIFT20",  # K/internal/reference/integer_ops/add.h
    "sub": "LSHIFT20",  # K/internal/reference/sub.h
    "mul": "REF_F32",  # K/mul.cc :: Prepare, K/internal/reference/integer_ops/mul.h
    "mean": "REF",  # K/internal/reference/reduce.h :: QuantizedMeanOrSum
    "avg_pool2d": "TFLITE",  # K/internal/reference/integer_ops/pooling.h :: AveragePool
    "softmax": "FIXED",  # K/internal/reference/softmax.h
    "logistic": "LUT_TFLITE",  # K/activations.cc, K/internal/common.h :: LUTPopulateInt8
    "tanh": "LUT_TFLITE",  # K/activations.cc, K/internal/common.h :: LUTPopulateInt8
    "hard_swish": "TFLITE",  # K/internal/reference/hard_swish.h
    "leaky_relu": "REF",  # K/internal/reference/leaky_relu.h :: QuantizeLeakyRelu
    "prelu": "REF_F32",  # K/activations.cc :: PreluPrepare, K/internal/reference/prelu.h
    "relu": "TFLITE",  # K/activations.cc :: ReluEval
    "relu6": "TFLITE",  # K/activations.cc :: Relu6Eval
    "clamp": "TFLITE",  # MAXIMUM and MINIMUM with constants made by the emitter
    "resize_bilinear": "TFLITE",  # K/internal/reference/resize_bilinear.h :: ResizeBilinearInteger
    "quantize": "HAZ",  # K/internal/reference/quantize.h :: AffineQuantize
    "dequantize": "EXACT",  # K/internal/reference/dequantize.h
    "requantize": "REF",  # K/internal/reference/requantize.h
    "gelu": "LUT_TFLITE",  # K/activations.cc, K/internal/common.h :: LUTPopulateInt8
    "batch_matmul": "REF_F32",  # K/batch_matmul.cc, K/internal/reference/batch_matmul.h
    "l2_normalize": "TFLITE",  # K/internal/reference/integer_ops/l2normalization.h
    "channel_scale": "INT_REF",  # int32 arithmetic and QUANTIZE, put together by the emitter
    "layer_norm": "INT_REF",  # int32 arithmetic, QUANTIZE and MEAN, put together by the emitter
    **dict.fromkeys(("add:int16", "sub:int16", "channel_add"), "SUM_REF"),  # int32 arithmetic and QUANTIZE, put together by the emitter
    "mul:int16": "REF_F32",  # K/mul.cc
    "mean:int16": "REF",  # K/internal/reference/reduce.h :: QuantizedMeanOrSum
    "requantize:int16": "REF",  # K/internal/reference/requantize.h
    "quantize:int16": "HAZ",  # K/internal/reference/quantize.h :: AffineQuantize
    "batch_matmul:int16": "R64_F32",  # K/internal/reference/batch_matmul.h
    "conv2d:int16": "REF",  # K/internal/reference/integer_ops/conv.h, int32 bias
    "depthwise_conv2d:int16": "R64",  # K/internal/reference/integer_ops/depthwise_conv.h, int64 bias
    "fully_connected:int16": "F64",  # K/internal/reference/integer_ops/fully_connected.h, int32 bias
}

#: optimised built-ins without the delegate, where they differ from the reference kernels
BUILTIN_X86 = {
    **REFERENCE,
    "conv2d": "UP2",  # ruy/kernel_avx512.cc
    "depthwise_conv2d": "UP2_8",  # K/internal/optimized/optimized_ops.h :: Quantize
    "transpose_conv2d": "UP2_8",  # the same
    "fully_connected": "UP2",  # ruy/kernel_avx512.cc
    "conv2d:int4": "UP2",  # K/conv.cc :: EvalQuantizedPerChannel, unpacked first
    "depthwise_conv2d:int4": "UP2_8",  # K/depthwise_conv.cc, unpacked first
    "fully_connected:int4": "UP2",  # K/fully_connected.cc, unpacked first
    "sum": "REF",  # K/internal/optimized/reduce.h :: QuantizedMeanOrSum
    "elu": "LUT_TFLITE",  # K/activations.cc :: EluPrepare
    "softmax": "FLOAT_LUT",  # K/internal/optimized/optimized_ops.h :: Softmax
    "quantize": "P2",  # K/internal/optimized/optimized_ops.h :: AffineQuantize
    "quantize:int16": "P2",  # K/internal/optimized/optimized_ops.h :: AffineQuantize
    "conv2d:int16": "UP2_OR_REF",  # ruy/kernel_avx512.cc; K/conv.cc :: EvalQuantizedPerChannel16x8
    "fully_connected:int16": "UP2",  # ruy/kernel_avx512.cc
    "dequantize": "P2",  # K/internal/optimized/optimized_ops.h :: Dequantize
}

#: measured; elements left over from groups of 16 go through other code than the rest, grouped convolutions too
BUILTIN_BOUNDS = {
    **dict.fromkeys(("conv2d", "add", "requantize", "mean", "sum", "softmax"), 1),
    # float operators on 8-bit data: DEQUANTIZE rounds twice
    **dict.fromkeys(("add:int16", "sub:int16", "channel_add:int16", "requantize:int16"), 1),
    "mul": 255,  # results beyond 16 bits wrap: only where input scales / output scale >= 1/2
}

#: what LiteRT's aarch64 wheels compute in another way, whatever takes the rest
LITERT_ARM = {
    "conv2d:int4": "ONE_OR_UP2_OR_REF",  # ruy/kernel_arm64.cc, K/cpu_backend_gemm_custom_gemv.h
    "conv2d:int16": "ONE_OR_REF",  # ruy/apply_multiplier.cc; K/conv.cc :: EvalQuantizedPerChannel16x8
    "fully_connected:int16": "ONE",  # ruy/apply_multiplier.cc
    "softmax": "LUT16",  # K/internal/optimized/optimized_ops.h :: SoftmaxInt8LUT
    "hard_swish": "NEON_8",  # K/internal/optimized/optimized_ops.h :: HardSwish
}

BUILTIN_ARM = {
    **BUILTIN_X86,
    **LITERT_ARM,
    # ruy/kernel_arm64.cc, K/cpu_backend_gemm_custom_gemv.h
    **dict.fromkeys(("conv2d", "fully_connected", "fully_connected:int4"), "ONE_OR_UP2_OR_REF"),
    "dequantize": "P2_FUSED",  # K/internal/optimized/optimized_ops.h :: Dequantize, as the wheel's compiler contracts it
}

#: the delegate, and built-ins for what it leaves
XNNPACK_X86 = {
    **REFERENCE,
    "conv2d": "F32E",  # X/microparams-init.c :: xnn_init_qs8_qc8w_conv_minmax_fp32
    "depthwise_conv2d": "F32E",  # the same
    "transpose_conv2d": "F32E",  # X/operators/deconvolution-nhwc.c
    "fully_connected": "F32E",  # X/operators/fully-connected-nc.c
    "conv2d:int4": "UP2",  # left to the built-ins, as in BUILTIN_X86
    "depthwise_conv2d:int4": "UP2_8",  # left to the built-ins, as in BUILTIN_X86
    "fully_connected:int4": "F32E_PACKED",  # X/operators/fully-connected-nc.c, qs8_qc4w
    "activation": "XNN",  # X/xnnpack/requantization.h :: xnn_qs8_quantize
    "add": "Q20_OR_LSHIFT20",  # X/microparams-init.c :: xnn_init_qs8_add_minmax; D :: VisitAddNode
    "sub": "Q20_OR_LSHIFT20",  # X/microparams-init.c :: xnn_init_qs8_add_minmax; D :: VisitSubNode
    "mul": "F32E_OR_REF_F32",  # X/microparams-init.c :: xnn_init_qs8_mul_minmax; D :: VisitMulNode
    "mean": "XNN",  # X/operators/reduce-nd.c
    "sum": "XNN",  # X/operators/reduce-nd.c
    "softmax": "FLOAT_LUT",  # left to K/internal/optimized/optimized_ops.h :: Softmax
    "logistic": "LUT_XNN",  # X/reference/unary-elementwise.cc
    "tanh": "LUT_XNN",  # X/reference/unary-elementwise.cc
    "elu": "LUT_XNN",  # X/reference/unary-elementwise.cc
    "leaky_relu": "XNN8_OR_REF",  # X/microparams-init.c :: xnn_init_qs8_lrelu; D :: VisitLeakyReluNode
    "resize_bilinear": "XNN",  # X/operators/resize-bilinear-nhwc.c, X/s8-ibilinear
    "quantize": "RNE",  # X/f32-qs8-vcvt
    "requantize": "Q8_OR_REF",  # X/microparams-init.c :: xnn_init_qs8_cvt; D :: VisitQuantizeNode
    "batch_matmul": "F32E",  # X/operators/batch-matrix-multiply-nc.c
    # left to the built-ins, as in BUILTIN_X86
    "quantize:int16": "P2",
    "conv2d:int16": "UP2_OR_REF",
    "fully_connected:int16": "UP2",
}

XNNPACK_ARM = {
    **XNNPACK_X86,
    **LITERT_ARM,
    "mul": "RNDNU_OR_REF_F32",  # X/qs8-vmul (rndnu)
    "mean": "XNN_FUSED",  # X/operators/reduce-nd.c, as the wheel's compiler contracts it
    "sum": "XNN_FUSED",  # the same
}

REFERENCE_2_14 = {**REFERENCE, **dict.fromkeys(("fully_connected", "fully_connected:int16"), "REF")}  # its overload without float scales

#: as its aarch64 wheel was compiled
REFERENCE_2_14_ARM = {**REFERENCE_2_14, **dict.fromkeys(("quantize", "quantize:int16"), "HAZ_RECIPROCAL")}

MICRO = {
    **REFERENCE,
    "fully_connected": "REF_F64",  # M/fully_connected.cc; the wheel keeps the product of the scales in float64
    "mul": "REF_F64",  # M/mul_common.cc :: CalculateOpDataMul
    "batch_matmul": "REF_F64",  # M/batch_matmul.cc
    "logistic": "FIXED_TFLM",  # M/logistic_common.cc, I/reference/integer_ops/logistic.h
    "tanh": "FIXED_TFLM",  # M/tanh.cc, I/reference/integer_ops/tanh.h
    "sum": "REF",  # M/reduce_common.cc :: EvalSumHelper
    "elu": "LUT_TFLITE",  # M/elu.cc
    "leaky_relu": "REF_F64",  # M/leaky_relu_common.cc :: CalculateOpDataLeakyRelu
    "depthwise_conv2d:int4": "REF",  # M/depthwise_conv.cc, unpacked first
    "prelu": "REF_F64",  # M/prelu_common.cc :: CalculatePreluParams
    "mul:int16": "REF_F64",  # M/mul_common.cc :: CalculateOpDataMul
    "fully_connected:int16": "REF_F64",  # M/fully_connected.cc
    "batch_matmul:int16": "R64_F64",  # M/batch_matmul.cc
}

#: what runtimes have no kernel for, or one that computes something else
REFUSES_REFERENCE = {
    "sum": "TFLite's reference kernel for int8 SUM gives wrong results",
    "elu": "TFLite's reference resolver has no ELU",
    "depthwise_conv2d:int4": "TFLite's reference resolver has no depthwise kernel for packed 4-bit weights",
}
REFUSES_MICRO = {
    "fully_connected:int4": "TFLite Micro takes packed 4-bit fully connected weights with one scale only",
}
#: besides, on the target "tflite"
REFUSES_MICRO_TFLITE = {"gelu": "TFLite Micro has no GELU; emit the target tflite-micro, which holds a table in its place"}
REFUSES_2_14 = {
    **REFUSES_REFERENCE,
    "conv2d:int4": "tflite-runtime 2.14's reference resolver has no kernel for packed 4-bit weights",
    "fully_connected:int4": "tflite-runtime 2.14's reference resolver has no kernel for packed 4-bit weights",
}

#: float32 operators, where a graph allows them, stand in for operators on 16 bits; softmax and l2_normalize stay built-in ones
WIDE_FLOAT = {key: rule for key, rule in FLOAT_RULES.items() if key not in ("softmax", "l2_normalize")}

#: processor family of this machine, as variants are named
FAMILY = "aarch64" if platform.machine() in ("aarch64", "arm64") else "x86_64"


def _row(name: str, runtime: str, versions: dict[str, str], rules: dict[str, str], runner: str, **more: Any) -> Numerics:
    also: dict[str, dict[str, str]] = {"tflite-micro": {}} if name != "tflite-micro" else {"tflite": REFUSES_MICRO_TFLITE}
    target = "tflite" if name != "tflite-micro" else "tflite-micro"
    return Numerics(name, target, runtime, versions, rules, runner=runner, modes={"allow": WIDE_FLOAT}, also=also, **more)


def _by_family(
    name: str, runtime: str, versions: dict[str, str], rules: dict[str, dict[str, str]], runner: str, **more: Any
) -> list[Numerics]:
    """One row per processor family, and one under the bare name for this machine's. ``rules``: family -> rules."""
    names = {name: FAMILY, **{f"{name}@{family}": family for family in rules}}
    return [_row(n, runtime, versions, rules[family], runner, family=family, **more) for n, family in names.items()]


NUMERICS: dict[str, Numerics] = {
    n.name: n
    for n in (
        _row("litert-reference", "LiteRT, reference kernels", LITERT, REFERENCE, "litert-reference", refuses=REFUSES_REFERENCE),
        *_by_family(
            "litert-xnnpack", "LiteRT, XNNPACK delegate", LITERT, {"x86_64": XNNPACK_X86, "aarch64": XNNPACK_ARM}, "litert-xnnpack"
        ),
        *_by_family(
            "litert-builtin",
            "LiteRT, optimised built-ins, no delegate",
            LITERT,
            {"x86_64": BUILTIN_X86, "aarch64": BUILTIN_ARM},
            "litert-builtin",
            promise="bound",
            bounds=BUILTIN_BOUNDS,
        ),
        *_by_family(
            "tflite-2.14-reference",
            "tflite-runtime 2.14.0, reference kernels",
            {"tflite-runtime": "2.14.0"},
            {"x86_64": REFERENCE_2_14, "aarch64": REFERENCE_2_14_ARM},
            "tflite-2.14-reference",
            refuses=REFUSES_2_14,
        ),
        _row(
            "tflite-micro",
            "TFLite Micro, reference kernels",
            {"tflite-micro": "0.dev20261023182759"},
            MICRO,
            "tflite-micro",
            refuses=REFUSES_MICRO,
        ),
    )
}
