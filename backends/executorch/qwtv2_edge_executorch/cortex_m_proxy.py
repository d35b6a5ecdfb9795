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
from typing import Any, NamedTuple

import numpy as np

from qwtv2_edge.fixedpoint import softmax_multiplier

#: environment variable: a shared library that registers the operators' kernels in ExecuTorch's runtime
KERNELS = "QWTV2_CORTEX_M_KERNELS"

#: ExecuTorch's scalar types that programs for Cortex-M hold, as PyTorch calls them
SCALAR_TYPES = {0: "uint8", 1: "int8", 3: "int32", 6: "float32"}

#: bytes of the arenas of all samples that are computed at once
MEMORY = 2**23


def load_kernels() -> dict[str, str]:
    """Register the kernels of the library that $QWTV2_CORTEX_M_KERNELS names in this process's ExecuTorch, if it names one.

    Returns: what to report of it, as versions are; empty where none is named.
    Raises: OSError: it is no library, or one that this runtime can't load.
    """
    path = os.environ.get(KERNELS)
    if not path:
        return {}
    from executorch.extension.pybindings import _portable_lib as lib

    ctypes.CDLL(lib.__file__, mode=ctypes.RTLD_GLOBAL)  # the runtime whose registry the library's constructors fill
    try:
        ctypes.CDLL(os.path.abspath(path))
    except OSError as error:
        raise OSError(f"${KERNELS} names no library of kernels: {error}; without it, programs are checked by proxy") from error
    with open(path, "rb") as file:
        return {"cortex_m kernels, compiled for this machine": f"sha256 {hashlib.sha256(file.read()).hexdigest()[:16]}"}


def load_python_forms() -> None:
    """Define ``torch.ops.cortex_m``.

    The operators' module needs little of the packages around it, whose ``__init__`` would import all of ExecuTorch's
    compiler and the Arm backend with TOSA's serializer. Bare packages stand in for those, and PyTorch's operators for the
    compiler's, which are the same ones behind a table of dtypes that takes seconds to read.
    """
    import torch

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
    dialects = types.ModuleType("executorch.exir.dialects._ops")
    dialects.ops = types.SimpleNamespace(edge=torch.ops)  # type: ignore[attr-defined]
    sys.modules.setdefault(dialects.__name__, dialects)
    import executorch.backends.cortex_m.ops.operators  # noqa: F401
    import torch.ao.quantization.fx._decomposed  # quantize and dequantize, which the operators call


class Planned(NamedTuple):
    """A tensor in the arena, for every sample.

    rows: (samples, *sizes in the order of memory), a view of the arenas; axes: where in that order each axis of the tensor is.
    """

    rows: Any
    axes: tuple[int, ...]

    @property
    def place(self) -> range:
        """Its bytes in the first arena, as addresses."""
        begin = self.rows.data_ptr()
        return range(begin, begin + self.rows[0].nbytes)

    @property
    def samples(self) -> Any:
        """(samples, *shape), a view of the arenas."""
        return self.rows.permute(0, *(1 + i for i in self.axes))

    @property
    def stacked(self) -> Any:
        """The samples one behind another along the first axis, which is the outermost in memory. Not to be written to."""
        return self.rows.contiguous().flatten(0, 1).permute(self.axes)


class Proxy:
    """A loaded program; the worker's interface to a runtime.

    Attributes:
        at_once: how many samples one invocation may take. Each has an arena of its own.
    """

    def __init__(self, kind: str, data: bytes, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        load_python_forms()
        from executorch.exir._serialize._program import deserialize_pte_binary

        start = time.perf_counter_ns()
        program = deserialize_pte_binary(data).program
        (self.plan,) = program.execution_plan
        self.constants = [torch.from_numpy(np.frombuffer(bytearray(b.storage), np.uint8)) for b in program.constant_buffer]
        self.calls = [i.instr_args for chain in self.plan.chains for i in chain.instructions]
        self.at_once = max(1, MEMORY // max(1, self.plan.non_const_buffer_sizes[1]))
        self._lay_out(1)
        self.load_ns = time.perf_counter_ns() - start
        self.inputs, self.outputs = ([self._describe(i) for i in ports] for ports in (self.plan.inputs, self.plan.outputs))

    def _lay_out(self, count: int) -> None:
        """Arenas for ``count`` samples, and every value of the program in them."""
        import torch

        self.arenas = torch.zeros((count, self.plan.non_const_buffer_sizes[1]), dtype=torch.uint8)
        self.values = [self._value(v.val) for v in self.plan.values]

    def _value(self, value: Any) -> Any:
        """A tensor as a view of the arenas or of a constant; a number or a list of numbers as itself."""
        import torch

        kind = type(value).__name__
        if kind == "IntList":
            return [self.plan.values[i].val.int_val for i in value.items]
        if kind in ("Int", "Bool", "Double"):
            return getattr(value, f"{kind.lower()}_val")
        if kind == "Null":
            return None
        if kind != "Tensor":
            raise ValueError(f"programs for Cortex-M hold no {kind}")
        dtype = getattr(torch, SCALAR_TYPES[int(value.scalar_type)])
        place, order = value.allocation_info, list(value.dim_order)
        sizes, axes = [value.sizes[i] for i in order], tuple(order.index(i) for i in range(len(order)))
        size = dtype.itemsize * math.prod(sizes)
        if place is None:
            return self.constants[value.data_buffer_idx][:size].view(dtype).view(sizes).permute(axes)
        begin = place.memory_offset_low + (place.memory_offset_high << 32)
        data = self.arenas[:, begin : begin + size]
        return Planned(data.view(dtype).view(len(data), *sizes), axes)

    def _describe(self, index: int) -> dict[str, Any]:
        (sample,) = self.values[index].samples
        return {"name": "", "shape": list(sample.shape), "dtype": str(sample.dtype).removeprefix("torch."), "scale": 0.0, "zero_point": 0}

    def set(self, arrays: Sequence[np.ndarray]) -> None:
        """Take one sample, or several one behind another along the first axis of every array."""
        import torch

        count = arrays[0].size // math.prod(self.inputs[0]["shape"]) if arrays else 1
        if count != len(self.arenas):
            self._lay_out(count)
        for index, array in zip(self.plan.inputs, arrays, strict=True):
            samples = self.values[index].samples
            samples.copy_(torch.from_numpy(np.array(array)).view(samples.shape))

    def invoke(self) -> None:
        for call in self.calls:
            operator = self.plan.operators[call.op_index]
            namespace, _, name = operator.name.partition("::")
            if namespace != "cortex_m" or operator.overload != "out":
                raise ValueError(f"{operator.name}.{operator.overload} is no Cortex-M operator")
            *args, out, _ = (self.values[i] for i in call.args)
            if name in LIMITS and not LIMITS[name](_shape(args[0]), *args[1:]):
                raise ValueError(f"{operator.name} of {_shape(args[0])}: the kernel refuses such arguments, or computes them wrong")
            for arg in args:
                if isinstance(arg, Planned) and max(arg.place.start, out.place.start) < min(arg.place.stop, out.place.stop):
                    raise ValueError(f"{operator.name} writes over what it reads")
            _spoil_scratch(args)
            result = _compute(name, args, len(self.arenas))
            if result.shape != out.samples.shape or result.dtype != out.rows.dtype:
                raise ValueError(
                    f"{operator.name} gives {result.dtype}{tuple(result.shape)}, "
                    f"the program expects {out.rows.dtype}{tuple(out.samples.shape)}"
                )
            out.samples.copy_(result)
            _spoil_scratch(args)

    def get(self) -> list[np.ndarray]:
        outputs = (self.values[i].samples for i in self.plan.outputs)
        return [np.array(a.reshape(-1, *a.shape[2:])) for a in outputs]


def _shape(tensor: Any) -> tuple[int, ...]:
    """Of one sample."""
    return tuple(tensor.samples.shape[1:] if isinstance(tensor, Planned) else tensor.shape)


def _spoil_scratch(args: Sequence[Any]) -> None:
    """Scratch memory holds anything before a call and after it; it alone is uint8."""
    for arg in args:
        if isinstance(arg, Planned) and arg.rows.dtype.itemsize == 1 and not arg.rows.dtype.is_signed:
            arg.rows.fill_(0xA5)


def _compute(name: str, args: Sequence[Any], count: int) -> Any:
    """(count, *shape of the result), of the operator called on every sample; on all at once where they stay apart."""
    import torch

    form: Callable[..., Any] = functools.partial(_python_form, name)
    if name in FORMS:
        form = FORMS[name]
    elif name in DILATED and args[5] != [1, 1]:
        form = DILATED[name]
    if count > 1 and _stay_apart(name, args):
        return form(*(a.stacked if isinstance(a, Planned) else a for a in args)).unflatten(0, (count, -1))
    return torch.stack([form(*(a.samples[i] if isinstance(a, Planned) else a for a in args)) for i in range(count)])


def _python_form(name: str, *args: Any) -> Any:
    import torch

    given = list(args)
    if name in ("quantize_per_tensor", "dequantize_per_tensor"):
        given[-1] = torch.int8  # the program holds the type's number
    elif name == "quantized_max_pool2d":
        # PyTorch's kernel for channels-last 8-bit images takes 127 positions at most
        given[0] = given[0].clone(memory_format=torch.contiguous_format)
    return getattr(torch.ops.cortex_m, name)(*given)


# ---------------------------------------------------------------- where the Python forms are not exact, or fail


def _finish(acc: Any, multiplier: Any, shift: Any, zero_point: int, low: int = -128, high: int = 127) -> Any:
    """Accumulators, integers in any dtype, to codes by ExecuTorch's own requantization."""
    import torch
    from executorch.backends.cortex_m.passes.passes_utils import requantize_cmsis

    return torch.clamp(requantize_cmsis(acc, multiplier, shift) + zero_point, low, high).to(torch.int8)


def linear(x: Any, w: Any, bias: Any, kernel_sum: Any, *rest: Any) -> Any:
    """``quantized_linear`` as cores without the vector extension compute it, which read the bias, and those with it, which read
    ``kernel_sum``. The Python form leaves the bias alone where both are there.

    Raises: ValueError: they differ.
    """
    forms = [(b, k) for b, k in ((bias, None), (None, kernel_sum)) if b is not None or k is not None]
    first, *others = (_python_form("quantized_linear", x, w, *form, *rest) for form in forms)
    if any((other != first).any() for other in others):
        raise ValueError("cortex_m::quantized_linear gives one result with its bias and another with its kernel sums")
    return first


def batch_matmul(x: Any, x_offset: int, turned: Any, offset: int, zero_point: int, m: int, e: int, scratch: Any) -> Any:
    """``quantized_batch_matmul`` with sums of any size: the Python form adds in float32."""
    return _finish((x.double() + x_offset) @ (turned.double() + offset).mT, m, e, zero_point)


def _channels(acc: Any, m: Any, e: Any, zero_point: int, low: int, high: int) -> Any:
    """Accumulators (N, C, H, W), float64, to codes."""
    import torch

    channels = zip(acc.unbind(1), m.tolist(), e.tolist(), strict=True)
    return torch.stack([_finish(part, mi, ei, zero_point, low, high) for part, mi, ei in channels], 1)


def transpose_conv(
    x: Any, w: Any, bias: Any, stride: list[int], padding: list[int], extra: list[int], dilation: list[int],
    offset: int, zero_point: int, m: Any, e: Any, low: int, high: int, *scratch: Any,
) -> Any:  # fmt: skip
    """``quantized_transpose_conv2d`` with sums of any size: the Python form adds in float32."""
    from torch.nn.functional import conv_transpose2d

    filters = w.permute(3, 0, 1, 2).double()
    acc = conv_transpose2d(x.double() + offset, filters, bias.double(), stride, padding, extra, dilation=dilation)
    return _channels(acc, m, e, zero_point, low, high)


def dilated(depthwise: bool) -> Callable[..., Any]:
    """``quantized_conv2d`` or ``quantized_depthwise_conv2d`` with any dilation: PyTorch has none for integers."""

    def run(x: Any, w: Any, bias: Any, stride: list[int], padding: list[int], dilation: list[int], *rest: Any) -> Any:
        from torch.nn.functional import conv2d

        offset, zero_point, m, e, low, high, _ = rest[depthwise:]
        filters = w.permute((3, 0, 1, 2) if depthwise else (0, 3, 1, 2)).double()
        groups = x.shape[1] // filters.shape[1]
        acc = conv2d(x.double() + offset, filters, bias.double(), stride, padding, dilation, groups)
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


def _run_micro(x: Any, *what: Any) -> Any:
    import torch

    interpreter = _micro(*what)
    interpreter.set_input(x.contiguous().numpy(), 0)
    interpreter.invoke()
    return torch.from_numpy(np.array(interpreter.get_output(0)))


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


def avg_pool(x: Any, kernel: list[int], stride: list[int], padding: list[int], *rest: Any) -> Any:
    """``quantized_avg_pool2d`` from unpadded pools: TFLite has no padding of its own choice, so that windows which are cut off
    at the border are pools of their own, with smaller kernels."""
    x = x.permute(0, 2, 3, 1)
    rows, columns = (_runs(*axis) for axis in zip(x.shape[1:3], kernel, stride, padding, strict=True))
    out = x.new_empty((x.shape[0], *(runs[-1][0] + runs[-1][3] for runs in (rows, columns)), x.shape[3]))
    for (y, y0, kh, height), (c, c0, kw, width) in itertools.product(rows, columns):
        part = x[:, y0 : y0 + (height - 1) * stride[0] + kh, c0 : c0 + (width - 1) * stride[1] + kw]
        shape = (x.shape[0], height, width, x.shape[3])
        values = (("padding", 1), ("strideH", stride[0]), ("strideW", stride[1]), ("filterHeight", kh), ("filterWidth", kw))
        pooled = _run_micro(part, "AVERAGE_POOL_2D", tuple(part.shape), shape, (1.0, 1.0), ("Pool2DOptions", values))
        out[:, y : y + height, c : c + width] = pooled
    return out.permute(0, 3, 1, 2)


def softmax(x: Any, axis: int, x_zero: int, zero_point: int, multiplier: int, shift: int, least: int) -> Any:
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


#: operators that are not left to one call of their Python form
FORMS: dict[str, Callable[..., Any]] = {
    "quantized_linear": linear,
    "quantized_batch_matmul": batch_matmul,
    "quantized_transpose_conv2d": transpose_conv,
    "quantized_avg_pool2d": avg_pool,
    "softmax": softmax,
}
#: those that are not where their dilation (argument 5) is not 1
DILATED = {"quantized_conv2d": dilated(False), "quantized_depthwise_conv2d": dilated(True)}


#: operators of two operands -> where those are among the arguments; others have one, the first
OPERANDS = {"quantized_add": (0, 4), "quantized_mul": (0, 2), "quantized_batch_matmul": (0, 2)}


def _stay_apart(name: str, args: Sequence[Any]) -> bool:
    """Whether an operator computes samples that lie one behind another along its operands' first axis each for itself."""
    operands = [args[i] for i in OPERANDS.get(name, (0,))]
    sizes = {o.samples[0].numel() if o.axes[:1] == (0,) else 0 for o in operands if isinstance(o, Planned)}
    constants = [o for o in operands if not isinstance(o, Planned)]
    if len(sizes) != 1 or 0 in sizes:
        return False
    if constants:  # vectors of channels
        return name != "quantized_batch_matmul" and all(c.ndim == 4 and c.numel() == c.shape[1] for c in constants)
    if name == "transpose":
        return bool(args[1][0] == 0)
    if name == "pad":
        return bool(args[1][0] == args[2][0] == 0)
    return name != "softmax" or len(args[0].axes) > 1


# ---------------------------------------------------------------- what the kernels can't do, and Python forms don't mind


def _transposed_right(x: tuple[int, ...], w: Any, bias: Any, stride: list[int], padding: list[int], extra: list[int], *rest: Any) -> bool:
    """The direct kernel begins with the first multiple of the stride, writes ``stride`` rows for each row of the input, and reads no
    outputs beyond the last window. Source: CMSIS-NN dbf45dbf, arm_transpose_conv_s8.c, arm_transpose_conv_wrapper_s8.c"""
    rows, columns = zip(w.shape[1:3], stride, padding, extra, strict=True)
    if max(stride) <= 2 and x[1] > 16:  # computed as a convolution, padded by what is left of the kernel
        return all(kernel > pad for kernel, _, pad, _ in (rows, columns))
    kernel, step, pad, _ = rows
    whole = pad % step == 0 and pad + step <= kernel and pad <= step * x[2]
    return whole and all(kernel >= step and extra <= pad for kernel, step, pad, extra in (rows, columns))


#: operator -> (shape of the first operand, further arguments) -> whether its kernel computes that
LIMITS: dict[str, Callable[..., bool]] = {
    "quantized_depthwise_conv2d": lambda x, *_: x[0] == 1,
    "quantized_transpose_conv2d": _transposed_right,
    "transpose": lambda x, *_: 1 <= len(x) <= 4,
    "pad": lambda x, *_: 1 <= len(x) <= 4,
}
