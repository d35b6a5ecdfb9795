"""Executes a Cortex-M program without a Cortex-M: the runner ``executorch-cortex-m``, in the worker's process.

The program is read back from its file by ExecuTorch's own reader. Its tensors lie in one arena at the offsets that the file
gives them, its instructions are computed one by one, and each result is stored in the arena: what the file holds is what is
executed, memory plan included. Nothing here imports the emitter.

Who computes an instruction:

* the operators' Python forms in ExecuTorch (``backends/cortex_m/ops/operators.py``), where those are integer-exact;
* their requantization behind sums of this module, where the Python form adds in float32 (batch_matmul, transpose_conv) or
  PyTorch has no integer form (dilated convolutions);
* TFLite Micro for ``quantized_avg_pool2d`` and ``softmax``, whose Python forms are float: it shares CMSIS-NN's algorithms.

With ``QWTV2_CORTEX_M_KERNELS`` set to a shared library of the operators' real kernels, compiled for this machine together with
CMSIS-NN (docs/cortex-m.md), the program runs in ExecuTorch's own runtime instead, and no proxy takes part.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import itertools
import math
import os
import sys
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qwtv2_edge.fixedpoint import softmax_multiplier

#: environment variable: a shared library that registers the operators' kernels in ExecuTorch's runtime
KERNELS = "QWTV2_CORTEX_M_KERNELS"

#: ExecuTorch's scalar types that programs for Cortex-M hold
SCALAR_TYPES = {0: np.uint8, 1: np.int8, 3: np.int32, 6: np.float32}


def load_kernels() -> dict[str, str]:
    """Register the kernels of the library that $QWTV2_CORTEX_M_KERNELS names in this process's ExecuTorch, if it names one.

    Returns: what to report of it, as versions are; empty where none is named.
    """
    path = os.environ.get(KERNELS)
    if not path:
        return {}
    from executorch.extension.pybindings import _portable_lib as lib

    ctypes.CDLL(lib.__file__, mode=ctypes.RTLD_GLOBAL)  # the runtime whose registry the library's constructors fill
    ctypes.CDLL(os.path.abspath(path))
    with open(path, "rb") as file:
        return {"cortex_m kernels, compiled for this machine": f"sha256 {hashlib.sha256(file.read()).hexdigest()[:16]}"}


def load_python_forms() -> None:
    """Define ``torch.ops.cortex_m``.

    The operators' module needs little of the packages around it, whose ``__init__`` would import all of ExecuTorch's
    compiler and the Arm backend with TOSA's serializer. Bare packages stand in for those.
    """
    if "executorch.backends.cortex_m.ops.operators" in sys.modules:
        return
    spec = importlib.util.find_spec("executorch")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'executorch'", name="executorch")
    root = next(iter(spec.submodule_search_locations))
    for name in ("exir", "backends.cortex_m.passes", "backends.cortex_m.quantizer", "backends.cortex_m.quantizer.quantization_configs"):
        package = types.ModuleType(f"executorch.{name}")
        package.__path__ = [os.path.join(root, *name.split("."))]
        sys.modules.setdefault(package.__name__, package)
    configs: Any = sys.modules["executorch.backends.cortex_m.quantizer.quantization_configs"]
    configs.CMSIS_SOFTMAX_SCALE, configs.CMSIS_SOFTMAX_ZERO_POINT = 1 / 256, -128
    import executorch.backends.cortex_m.ops.operators  # noqa: F401
    import torch.ao.quantization.fx._decomposed  # noqa: F401 - quantize and dequantize, which the operators call


class Proxy:
    """A loaded program; the worker's interface to a runtime."""

    def __init__(self, kind: str, data: bytes, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        load_python_forms()
        from executorch.exir._serialize._program import deserialize_pte_binary

        self.torch = torch
        start = time.perf_counter_ns()
        program = deserialize_pte_binary(data).program
        (self.plan,) = program.execution_plan
        self.arena = np.zeros(self.plan.non_const_buffer_sizes[1], np.uint8)
        self.constants = [np.frombuffer(b.storage, np.uint8) for b in program.constant_buffer]
        self.values = [self._value(v.val) for v in self.plan.values]
        self.calls = [i.instr_args for chain in self.plan.chains for i in chain.instructions]
        self.load_ns = time.perf_counter_ns() - start
        self.inputs, self.outputs = ([self._describe(i) for i in ports] for ports in (self.plan.inputs, self.plan.outputs))

    def _value(self, value: Any) -> Any:
        """A tensor as a view of the arena or of a constant; a number or a list of numbers as itself."""
        kind = type(value).__name__
        if kind == "IntList":
            return [self.plan.values[i].val.int_val for i in value.items]
        if kind in ("Int", "Bool", "Double"):
            return getattr(value, f"{kind.lower()}_val")
        if kind == "Null":
            return None
        if kind != "Tensor":
            raise ValueError(f"programs for Cortex-M hold no {kind}")
        dtype = np.dtype(SCALAR_TYPES[int(value.scalar_type)])
        place = value.allocation_info
        source = self.constants[value.data_buffer_idx] if place is None else self.arena
        offset = 0 if place is None else place.memory_offset_low + (place.memory_offset_high << 32)
        sizes, order = value.sizes, list(value.dim_order)
        data = source[offset : offset + dtype.itemsize * math.prod(sizes)].view(dtype)
        return data.reshape([sizes[i] for i in order]).transpose(np.argsort(order))

    def _describe(self, index: int) -> dict[str, Any]:
        value = self.values[index]
        return {"name": "", "shape": list(value.shape), "dtype": value.dtype.name, "scale": 0.0, "zero_point": 0}

    def set(self, arrays: Sequence[np.ndarray]) -> None:
        for index, array in zip(self.plan.inputs, arrays, strict=True):
            self.values[index][...] = array

    def invoke(self) -> None:
        for call in self.calls:
            operator = self.plan.operators[call.op_index]
            namespace, _, name = operator.name.partition("::")
            if namespace != "cortex_m" or operator.overload != "out":
                raise ValueError(f"{operator.name}.{operator.overload} is no Cortex-M operator")
            *args, out, _ = (self.values[i] for i in call.args)
            form = FORMS.get(name) or (DILATED[name] if name in DILATED and args[5] != [1, 1] else None)
            result = form(*args) if form else self._python_form(name, args)
            if result.shape != out.shape or result.dtype != out.dtype:
                raise ValueError(f"{operator.name} gives {result.dtype}{result.shape}, the program expects {out.dtype}{out.shape}")
            out[...] = result

    def get(self) -> list[np.ndarray]:
        return [np.ascontiguousarray(self.values[i]) for i in self.plan.outputs]

    def _python_form(self, name: str, args: Sequence[Any]) -> np.ndarray:
        torch = self.torch
        given = [torch.from_numpy(np.array(a, order="K")) if isinstance(a, np.ndarray) else a for a in args]
        if name in ("quantize_per_tensor", "dequantize_per_tensor"):
            given[-1] = torch.int8  # the program holds the type's number
        elif name == "quantized_max_pool2d":
            # PyTorch's kernel for channels-last 8-bit images takes 127 positions at most
            given[0] = given[0].clone(memory_format=torch.contiguous_format)
        return np.asarray(getattr(torch.ops.cortex_m, name)(*given).numpy())


# ---------------------------------------------------------------- where the Python forms are not exact, or fail


def _finish(acc: np.ndarray, multiplier: Any, shift: Any, zero_point: int, low: int = -128, high: int = 127) -> np.ndarray:
    """Accumulators to codes, by ExecuTorch's own requantization."""
    import torch
    from executorch.backends.cortex_m.passes.passes_utils import requantize_cmsis

    value = requantize_cmsis(torch.from_numpy(np.ascontiguousarray(acc, np.int64)), multiplier, shift).numpy()
    return np.clip(value + zero_point, low, high).astype(np.int8)


def batch_matmul(
    x: np.ndarray, x_offset: int, turned: np.ndarray, offset: int, zero_point: int, m: int, e: int, scratch: Any
) -> np.ndarray:
    """``quantized_batch_matmul`` with sums of any size: the Python form adds in float32."""
    acc = np.matmul(x.astype(np.int64) + x_offset, (turned.astype(np.int64) + offset).swapaxes(1, 2))
    return _finish(acc, m, e, zero_point)


def _channels(acc: Any, m: np.ndarray, e: np.ndarray, zero_point: int, low: int, high: int) -> np.ndarray:
    """Accumulators (N, C, H, W), float64, to codes."""
    values = acc.numpy()
    return np.stack([_finish(values[:, c], int(m[c]), int(e[c]), zero_point, low, high) for c in range(values.shape[1])], 1)


def _double(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.array(array, np.float64))


def transpose_conv(
    x: np.ndarray, w: np.ndarray, bias: np.ndarray, stride: list[int], padding: list[int], extra: list[int], dilation: list[int],
    offset: int, zero_point: int, m: np.ndarray, e: np.ndarray, low: int, high: int, *scratch: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """``quantized_transpose_conv2d`` with sums of any size: the Python form adds in float32."""
    from torch.nn.functional import conv_transpose2d

    filters = _double(w.transpose(3, 0, 1, 2))
    acc = conv_transpose2d(_double(x) + offset, filters, _double(bias), stride, padding, extra, dilation=dilation)
    return _channels(acc, m, e, zero_point, low, high)


def dilated(depthwise: bool) -> Callable[..., np.ndarray]:
    """``quantized_conv2d`` or ``quantized_depthwise_conv2d`` with any dilation: PyTorch has none for integers."""

    def run(
        x: np.ndarray, w: np.ndarray, bias: np.ndarray, stride: list[int], padding: list[int], dilation: list[int], *rest: Any
    ) -> np.ndarray:
        from torch.nn.functional import conv2d

        offset, zero_point, m, e, low, high, _ = rest[depthwise:]
        filters = w.transpose((3, 0, 1, 2) if depthwise else (0, 3, 1, 2))
        groups = x.shape[1] // filters.shape[1]
        acc = conv2d(_double(x) + offset, _double(filters), _double(bias), stride, padding, dilation, groups)
        return _channels(acc, m, e, zero_point, low, high)

    return run


# ---------------------------------------------------------------- TFLite Micro, one operator at a time


@functools.lru_cache(maxsize=256)
def _micro(op: str, in_shape: tuple[int, ...], out_shape: tuple[int, ...], scales: tuple[float, float], options: tuple[Any, ...]) -> Any:
    """An interpreter of a network of one operator on int8 codes."""
    import flatbuffers
    from tflite_micro import runtime
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

    def tensor(shape: tuple[int, ...], scale: float, zero_point: int) -> Any:
        made = schema.TensorT()
        made.shape, made.type, made.name = list(shape), schema.TensorType.INT8, b"codes"
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = [scale], [zero_point]
        return made

    code, operator, graph, model = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, op)
    code.version = 2  # the one for int8
    kind, values = options
    operator.inputs, operator.outputs = [0], [1]
    operator.builtinOptionsType, operator.builtinOptions = getattr(schema.BuiltinOptions, kind), getattr(schema, f"{kind}T")()
    for name, value in values:
        setattr(operator.builtinOptions, name, value)
    graph.tensors = [tensor(in_shape, scales[0], 0), tensor(out_shape, scales[1], -128 if op == "SOFTMAX" else 0)]
    graph.inputs, graph.outputs, graph.operators = [0], [1], [operator]
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    arena = 64 * 1024 + 4 * (math.prod(in_shape) + math.prod(out_shape))
    return runtime.Interpreter.from_bytes(bytes(builder.Output()), arena_size=arena)


def _run_micro(x: np.ndarray, *what: Any) -> np.ndarray:
    interpreter = _micro(*what)
    interpreter.set_input(np.ascontiguousarray(x), 0)
    interpreter.invoke()
    return np.array(interpreter.get_output(0))


def _runs(size: int, kernel: int, stride: int, padding: int) -> list[tuple[int, int, int, int]]:
    """Windows along one axis, cut off at its ends, as runs of equal length: (first output, first input, length, count)."""
    out: list[tuple[int, int, int, int]] = []
    for i in range((size + 2 * padding - kernel) // stride + 1):
        begin, end = max(i * stride - padding, 0), min(i * stride - padding + kernel, size)
        if out and out[-1][2] == end - begin and out[-1][1] + out[-1][3] * stride == begin:
            out[-1] = (*out[-1][:3], out[-1][3] + 1)
        else:
            out.append((i, begin, end - begin, 1))
    return out


def avg_pool(x: np.ndarray, kernel: list[int], stride: list[int], padding: list[int], *rest: Any) -> np.ndarray:
    """``quantized_avg_pool2d`` from unpadded pools: TFLite has no padding of its own choice, so that windows which are cut off
    at the border are pools of their own, with smaller kernels."""
    x = x.transpose(0, 2, 3, 1)
    rows, columns = (_runs(*axis) for axis in zip(x.shape[1:3], kernel, stride, padding, strict=True))
    out = np.empty((x.shape[0], *(runs[-1][0] + runs[-1][3] for runs in (rows, columns)), x.shape[3]), np.int8)
    for (y, y0, kh, height), (c, c0, kw, width) in itertools.product(rows, columns):
        part = x[:, y0 : y0 + (height - 1) * stride[0] + kh, c0 : c0 + (width - 1) * stride[1] + kw]
        shape = (x.shape[0], height, width, x.shape[3])
        values = (("padding", 1), ("strideH", stride[0]), ("strideW", stride[1]), ("filterHeight", kh), ("filterWidth", kw))
        pooled = _run_micro(part, "AVERAGE_POOL_2D", part.shape, shape, (1.0, 1.0), ("Pool2DOptions", values))
        out[:, y : y + height, c : c + width] = pooled
    return out.transpose(0, 3, 1, 2)


def softmax(x: np.ndarray, axis: int, x_zero: int, zero_point: int, multiplier: int, shift: int, least: int) -> np.ndarray:
    """``softmax`` over the last axis."""
    if axis != x.ndim - 1 or zero_point != -128 or least != -(31 * 2**26 >> shift):
        raise ValueError(f"softmax over axis {axis} with zero point {zero_point} and diff_min {least}: CMSIS-NN has no such form")
    scale, beta = _factors(multiplier, shift)
    shape = (math.prod(x.shape[:-1]), x.shape[-1])
    options = ("SoftmaxOptions", (("beta", beta),))
    return _run_micro(x.reshape(shape), "SOFTMAX", shape, shape, (scale, 1 / 256), options).reshape(x.shape)


@functools.lru_cache(maxsize=64)
def _factors(multiplier: int, shift: int) -> tuple[float, float]:
    """float32 scale and beta from which TFLite Micro derives the given multiplier and shift."""
    if multiplier == 2**31 - 1:
        return 64.0, 1.0  # where TFLite saturates
    wanted = multiplier * 2.0 ** (shift - 57)
    for i in range(1 << 16):  # a product of two float32 has the wanted 31 bits for one first factor of about a hundred
        scale = np.float32(1 + i / 1024)
        beta = np.float32(wanted / float(scale))
        if softmax_multiplier(float(scale), float(beta)) == (multiplier, shift):
            return float(scale), float(beta)
    raise ValueError(f"no scale and beta give TFLite Micro's softmax the multiplier {multiplier} and the shift {shift}")


#: operators that are not left to their Python form
FORMS: dict[str, Callable[..., np.ndarray]] = {
    "quantized_batch_matmul": batch_matmul,
    "quantized_transpose_conv2d": transpose_conv,
    "quantized_avg_pool2d": avg_pool,
    "softmax": softmax,
}
#: those that are not where their dilation (argument 5) is not 1
DILATED = {"quantized_conv2d": dilated(False), "quantized_depthwise_conv2d": dilated(True)}
