"""Executes one artifact in one runtime, as a script of its own. Nothing here imports qwtv2_edge.

Needs Python 3.10 or newer, NumPy 1 or 2, and the one runtime it is asked for. Messages travel over the process's
first standard input and output; both are moved away before any runtime is imported, so what runtimes print
goes to standard error and can't corrupt a message.

A message is: uint32 length of a JSON header (little-endian), the header, then the blobs the header announces
in ``blobs`` (a list of byte counts). Arrays are blobs described by ``arrays`` ([dtype, shape] each).

    request   {"command": "load", "kind", "threads", "cores"} + artifact bytes      cores: those to stay on, [] for any
              {"command": "run"} + arrays             first axis = samples, any multiple of the artifact's own batch
              {"command": "time", "runs", "seconds"} + arrays of one sample
              {"command": "ops", "runs", "seconds"} + arrays of one sample
              {"command": "arena", "least"}           TFLite Micro: the smallest arena of at least so many bytes
              {"command": "versions", "kind"} | {"command": "close"}
    reply     {"ok": true, ...} + arrays, or {"ok": false, "error", "missing": package or ""} with "wrong": true for what can't be had
"""

import contextlib
import ctypes
import gc
import importlib.metadata
import itertools
import json
import os
import platform
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

import numpy as np

#: kind -> distribution that provides the runtime
DISTRIBUTIONS = {
    "litert-reference": "ai-edge-litert",
    "litert-xnnpack": "ai-edge-litert",
    "litert-builtin": "ai-edge-litert",
    "tflite-2.14-reference": "tflite-runtime",
    "tensorflow-reference": "tensorflow",
    "tensorflow-xnnpack": "tensorflow",
    "tflite-micro": "tflite-micro",
    "executorch": "executorch",
    "executorch-cortex-m": "executorch",
}

#: interpreter kinds -> op resolver
RESOLVERS = {
    "litert-reference": "BUILTIN_REF",
    "litert-xnnpack": "AUTO",
    "litert-builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "tflite-2.14-reference": "BUILTIN_REF",
    "tensorflow-reference": "BUILTIN_REF",
    "tensorflow-xnnpack": "AUTO",
}

#: PyTorch scalar type codes, as ExecuTorch's metadata gives them
SCALAR_TYPES = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 6: "float32", 7: "float64", 11: "bool"}


class NoOpTimes(Exception):
    """Why a runtime tells no times per op."""


class WrongRequest(Exception):
    """What the caller asks for can't be had on this machine."""


class Interpreter:
    """LiteRT, tflite-runtime and TensorFlow Lite: one API under three package names."""

    spends_inputs = False

    def __init__(self, kind, data, threads):
        self.kind, self.data, self.threads = kind, data, threads
        if kind.startswith("litert"):
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        elif kind.startswith("tensorflow"):
            os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
            import tensorflow as tf

            Interpreter, OpResolverType = tf.lite.Interpreter, tf.lite.experimental.OpResolverType
        else:
            from tflite_runtime.interpreter import Interpreter, OpResolverType
        self.start = time.perf_counter_ns()
        self.interpreter = Interpreter(
            model_content=data, num_threads=threads, experimental_op_resolver_type=OpResolverType[RESOLVERS[kind]]
        )
        self.interpreter.allocate_tensors()
        self.load_ns = time.perf_counter_ns() - self.start
        self.inputs = [self._describe(d) for d in self.interpreter.get_input_details()]
        self.outputs = [self._describe(d) for d in self.interpreter.get_output_details()]
        self._in = [d["index"] for d in self.interpreter.get_input_details()]
        self._out = [d["index"] for d in self.interpreter.get_output_details()]

    @staticmethod
    def _describe(d):
        scale, zero_point = d["quantization"]
        return {
            "name": d["name"],
            "shape": [int(v) for v in d["shape"]],
            "dtype": np.dtype(d["dtype"]).name,
            "scale": float(scale),
            "zero_point": int(zero_point),
        }

    def watch(self):
        if not self.kind.startswith("litert"):
            raise NoOpTimes(f"{DISTRIBUTIONS[self.kind]} has no profiler that Python can reach")
        if self.kind not in LiteRtWatch.KERNELS:
            raise NoOpTimes("LiteRT's profiler is part of its CompiledModel, which has no reference kernels")
        return LiteRtWatch(self)

    def set(self, arrays):
        for index, array in zip(self._in, arrays, strict=True):
            self.interpreter.set_tensor(index, array)

    def invoke(self):
        self.interpreter.invoke()

    def get(self):
        return [self.interpreter.get_tensor(i) for i in self._out]


def printed(call):
    """What ``call`` writes to standard error, from C as well."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            call()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return file.read().decode(errors="replace")


class Micro:
    """TFLite Micro's Python interpreter. The arena doubles until the network fits."""

    #: the memory of an input that has been read serves later tensors
    spends_inputs = True

    ARENAS = [1 << k for k in range(18, 31)]

    def watch(self):
        raise NoOpTimes("TFLite Micro's Python interpreter takes no profiler")

    def __init__(self, kind, data, threads):
        from tflite_micro import runtime

        for arena in [a for a in self.ARENAS if a >= min(len(data), self.ARENAS[-1])]:
            self.start = time.perf_counter_ns()
            try:
                self.interpreter = runtime.Interpreter.from_bytes(data, arena_size=arena)
                break
            except RuntimeError as error:
                # allocation failures carry no code of their own; only the log on standard error tells them apart
                if arena == self.ARENAS[-1] or arena >= 64 * max(len(data), 1 << 20):
                    raise RuntimeError(f"{error} (with an arena of {arena} bytes)") from error
        self.load_ns = time.perf_counter_ns() - self.start
        self.data, self.fits = data, arena
        self.allocations = printed(self.interpreter.print_allocations)
        self.inputs = self._list(self.interpreter.get_input_details)
        self.outputs = self._list(self.interpreter.get_output_details)

    def smallest_arena(self, least):
        """The smallest multiple of 16 bytes from ``least`` on that the file is accepted with."""
        if self._accepts(least):
            return least
        refused, accepted = least // 16, self.fits // 16
        while accepted - refused > 1:
            middle = (accepted + refused) // 2
            accepted, refused = (middle, refused) if self._accepts(16 * middle) else (accepted, middle)
        return 16 * accepted

    def _accepts(self, arena):
        """Whether an arena is large enough; in a process of its own, which one that is too small may end."""
        from tflite_micro import runtime

        child = os.fork()
        if not child:
            try:
                runtime.Interpreter.from_bytes(self.data, arena_size=arena)
                os._exit(0)
            finally:
                os._exit(1)
        return os.waitpid(child, 0)[1] == 0

    @staticmethod
    def _list(details):
        out = []
        while True:
            try:
                d = details(len(out))
            except (IndexError, ValueError):
                return out
            q = d.get("quantization_parameters", {})
            scales, zeros = q.get("scales", []), q.get("zero_points", [])
            out.append(
                {
                    "name": "",
                    "shape": [int(v) for v in d["shape"]],
                    "dtype": np.dtype(d["dtype"]).name,
                    "scale": float(scales[0]) if len(scales) else 0.0,
                    "zero_point": int(zeros[0]) if len(zeros) else 0,
                }
            )

    def set(self, arrays):
        for index, array in enumerate(arrays):
            self.interpreter.set_input(array, index)

    def invoke(self):
        self.interpreter.invoke()

    def get(self):
        return [self.interpreter.get_output(i) for i in range(len(self.outputs))]


class ExecuTorch:
    """ExecuTorch's own Python bindings, method ``forward``."""

    spends_inputs = False

    def __init__(self, kind, data, threads):
        import torch
        from executorch.extension.pybindings import _portable_lib as lib

        torch.set_num_threads(threads)
        if lib._threadpool_get_thread_count() != threads:
            lib._unsafe_reset_threadpool(threads)
        self.torch = torch
        self.data = data
        try:
            self._load(lib)
        except RuntimeError as error:
            # the quantized operators register themselves on import; only programs that use them need them
            if "0x:14" not in str(error):
                raise
            import executorch.kernels.quantized  # noqa: F401

            self._load(lib)
        meta = self.method.method_meta()
        self.inputs = [self._describe(meta.input_tensor_meta(i)) for i in range(meta.num_inputs())]
        self.outputs = [self._describe(meta.output_tensor_meta(i)) for i in range(meta.num_outputs())]

    def _load(self, lib):
        self.start = time.perf_counter_ns()
        self.program = lib._load_program_from_buffer(self.data)
        self.method = self.program.load_method("forward")
        self.load_ns = time.perf_counter_ns() - self.start

    @staticmethod
    def _describe(meta):
        return {
            "name": "",
            "shape": [int(v) for v in meta.sizes()],
            "dtype": SCALAR_TYPES.get(int(meta.dtype()), "unknown"),
            "scale": 0.0,
            "zero_point": 0,
        }

    def watch(self):
        return ExecuTorchWatch(self)

    def set(self, arrays):
        self.feed = [self.torch.from_numpy(np.array(a)) for a in arrays]

    def invoke(self):
        self.results = self.method(self.feed)

    def get(self):
        return [r.contiguous().numpy().copy() for r in self.results]

    kept: list = []

    def close(self):
        """Let go of the tensors only: ending programs in a process that goes on to load others corrupts its heap."""
        self.results = self.feed = None
        ExecuTorch.kept.append(self)


class CFile:
    """What the file of the target "c" tells of itself on its first line, and codes for the arrays of its caller.

    The file takes and gives codes; reals become codes here as TFLite Micro's QUANTIZE makes them, ties away from zero.

    Attributes:
        facts: the line. inputs, outputs: as the caller sees them. taken, given: as the file does, with the function of each.
    """

    MARK = b"/* qwtv2_edge "

    def __init__(self, data):
        line = data.partition(b"\n")[0]
        if not line.startswith(self.MARK):
            raise ValueError("this C file does not begin with the line that tells how it is called")
        self.facts = json.loads(line.removeprefix(self.MARK).rpartition(b" */")[0])
        self.taken, self.given = self.facts["inputs"], self.facts["outputs"]
        self.inputs, self.outputs = (
            [self._port(d, i, codes) for i, d in enumerate(self.facts[f"graph_{end}"])]
            for end, codes in (("inputs", self.taken), ("outputs", self.given))
        )

    @staticmethod
    def _port(d, i, codes):
        code = next((c for c in codes if c["port"] == i), {})
        return {**d, "scale": code.get("scale", 0.0), "zero_point": code.get("zero_point", 0)}

    def codes(self, arrays):
        """What the file takes, of what its caller gives."""
        return [arrays[d["port"]] if arrays[d["port"]].dtype == d["dtype"] else codes_of(arrays[d["port"]], d) for d in self.taken]

    def results(self, codes):
        """What its caller gets, of what the file gives; arrays of their own."""
        ports = [(self.outputs[d["port"]], d, a) for d, a in zip(self.given, codes, strict=True)]
        return [a.copy() if a.dtype == out["dtype"] else reals_of(a, d) for out, d, a in ports]


class GeneratedC(CFile):
    """The file of the target "c", compiled into a shared library."""

    #: the memory of an input that has been read serves later tensors
    spends_inputs = True

    FLAGS = ("-std=c99", "-O3", "-fPIC", "-shared")

    def __init__(self, kind, data, threads):
        super().__init__(data)
        with workshop() as (folder, call):
            source, library = os.path.join(folder, "model.c"), os.path.join(folder, "model.so")
            with open(source, "wb") as file:
                file.write(data)
            code, said = call([c_compiler(), *self.FLAGS, source, "-o", library])
            if code:
                raise RuntimeError(f"the C compiler refuses the file: {said[-2000:]}")
            start = time.perf_counter_ns()
            self.library = ctypes.CDLL(library)  # stays loaded when the folder goes
            self.load_ns = time.perf_counter_ns() - start
        self.invoke = self.library[f"{self.facts['symbol']}_run"]
        self.invoke.restype, self.invoke.argtypes = None, []
        self.memory, self.outcome = ([self._array(d) for d in ports] for ports in (self.taken, self.given))

    def _array(self, d):
        """The memory of one input or output, as an array."""
        address = self.library[d["function"]]
        address.restype, address.argtypes = ctypes.c_void_p, []
        dtype = np.dtype(d["dtype"])
        size = int(np.prod(d["shape"])) * dtype.itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(address()), dtype).reshape(d["shape"])

    def watch(self):
        raise NoOpTimes("generated C has no clock on its calls; on --device board:CORE its instructions are counted node by node")

    def set(self, arrays):
        for memory, codes in zip(self.memory, self.codes(arrays), strict=True):
            memory[...] = codes

    def get(self):
        return self.results(self.outcome)


@contextlib.contextmanager
def workshop():
    """A temporary folder, and a function that calls a program in it: arguments -> exit code, what it says.

    Whatever ends this process, even a signal that can't be caught, ends the program too and removes the folder: a process that waits
    for the end of a pipe sees to it.
    """
    folder = tempfile.mkdtemp(prefix="qwtv2-edge-")
    waits, ours = os.pipe()
    guard = os.fork()
    if not guard:
        clear_up_after(waits, folder)
    os.close(waits)

    def call(argv):
        program = subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "TMPDIR": folder},
            start_new_session=True,
        )
        os.write(ours, b"%d " % program.pid)
        said, _ = program.communicate()
        return program.returncode, said

    try:
        yield folder, call
    finally:
        os.kill(guard, signal.SIGKILL)
        os.waitpid(guard, 0)
        os.close(ours)
        shutil.rmtree(folder, ignore_errors=True)


def clear_up_after(pipe, folder):
    """What the waiting process of a workshop does; it never returns. From the pipe come the groups of the programs to end."""
    try:
        os.setsid()
        os.dup2(pipe, 0)
        for other in map(int, os.listdir("/dev/fd")):  # among them the other end of the pipe, and what messages go through
            if other:
                with contextlib.suppress(OSError):  # the listing's own
                    os.close(other)
        groups = b""
        while part := os.read(0, 1024):
            groups += part
        for group in groups.split():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(group), signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os._exit(0)


def codes_of(reals, d):
    """Reals as codes of one input, clamped; ties away from zero."""
    scaled = reals / np.float32(d["scale"])
    whole = np.trunc(scaled)
    rest = scaled - whole
    bounds = np.iinfo(d["dtype"])
    codes = whole + (rest >= 0.5) - (rest <= -0.5) + np.float32(d["zero_point"])
    return np.clip(codes, bounds.min, bounds.max).astype(d["dtype"])


def reals_of(codes, d):
    """What codes of one output stand for."""
    return (codes.astype(np.int32) - d["zero_point"]).astype(np.float32) * np.float32(d["scale"])


def c_compiler():
    """The C compiler of this machine: CC, else the first of the usual names."""
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise ModuleNotFoundError(f"no C compiler called {' or '.join(names)}", name=names[0])


def cortex_m(kind, data, threads):
    """A program of Cortex-M operators, executed by the backend's own proxy: the one kind that needs more than a runtime."""
    from qwtv2_edge_executorch import cortex_m_proxy

    kernels = cortex_m_proxy.load_kernels()
    runtime = ExecuTorch(kind, data, threads) if kernels else cortex_m_proxy.Proxy(kind, data, threads)
    runtime.versions = kernels
    return runtime


RUNTIMES = {"tflite-micro": Micro, "executorch": ExecuTorch, "executorch-cortex-m": cortex_m, "c": GeneratedC}


def check_release(name, release):
    """Memory layouts that no header of a package promises are known for one release only."""
    found = importlib.metadata.version(name)
    if found != release or struct.calcsize("P") != 8:
        raise NoOpTimes(f"times per op are read from the memory of {name} {release} on 64-bit processors; {found} is installed")


class LiteRtWatch:
    """The artifact in LiteRT's CompiledModel, which has a profiler; reached through the C interface of libLiteRt.so.

    Kernels report whole microseconds: built-in ones the difference of two readings, XNNPACK's rounded down.
    Source: LiteRT v2.3.0, litert/c/{litert_compiled_model,litert_profiler,litert_profiler_event}.h
    """

    RELEASE = "2.3.0"
    KERNELS = {"litert-xnnpack": "delegate", "litert-builtin": "builtin"}
    CPU = 1
    READ, WRITE = 0, 1
    #: one event in 64-bit words: tag, type, start and elapsed microseconds, 2 x 3 of memory, 2 of metadata, source
    EVENT_WORDS, TAG, TYPE, ELAPSED, NUMBER = 13, 0, 1, 3, 10
    #: type of an event -> what its number counts
    TYPES = {2: "operator", 8: "delegate"}

    class TensorType(ctypes.Structure):
        _fields_ = [("element", ctypes.c_int), ("rank", ctypes.c_uint32), ("dims", ctypes.c_int32 * 8), ("strides", ctypes.c_uint32 * 8)]

    def __init__(self, plain):
        check_release("ai-edge-litert", self.RELEASE)
        import ai_edge_litert

        self.library = ctypes.CDLL(os.path.join(os.path.dirname(ai_edge_litert.__file__), "libLiteRt.so"))
        self.plain = plain
        self.kept = [ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda payload: None)]  # what LiteRT keeps pointers to
        self.environment = self._make("LiteRtCreateEnvironment", 0, None)
        model = self._make("LiteRtCreateModelFromBuffer", self.environment, plain.data, ctypes.c_size_t(len(plain.data)))
        options = self._make("LiteRtCreateOptions")
        self._call("LiteRtSetOptionsHardwareAccelerators", options, self.CPU)
        self._add(options, b"runtime_options_string", b"enable_profiling = true")
        self._add(options, b"xnnpack", b'kernel_mode = "%s"\nnum_threads = %d' % (self.KERNELS[plain.kind].encode(), plain.threads))
        self.compiled = self._make("LiteRtCreateCompiledModel", self.environment, model, options)
        self.profiler = self._make("LiteRtCompiledModelGetProfiler", self.compiled)
        graph = self._make("LiteRtGetModelSubgraph", model, ctypes.c_size_t(0))
        self.buffers = {end: self._buffers(graph, end, len(ports)) for end, ports in (("Input", plain.inputs), ("Output", plain.outputs))}

    def operators(self):
        """[name, input tensors, output tensors] of every operator of the file, in its order."""
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        bare = Interpreter(model_content=self.plain.data, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
        return [[d["op_name"], d["inputs"].tolist(), d["outputs"].tolist()] for d in bare._get_ops_details()]

    def set(self, arrays):
        for buffer, array in zip(self.buffers["Input"], arrays, strict=True):
            data = array.tobytes()
            with self._locked(buffer, self.WRITE) as address:
                ctypes.memmove(address, data, len(data))

    def invoke(self):
        self._call("LiteRtResetProfiler", self.profiler)
        self._call("LiteRtStartProfiler", self.profiler)
        ends = [ctypes.c_size_t(0)]
        for buffers in self.buffers.values():
            ends += [ctypes.c_size_t(len(buffers)), (ctypes.c_void_p * len(buffers))(*buffers)]
        clock = time.perf_counter_ns
        t0 = clock()
        self._call("LiteRtRunCompiledModel", self.compiled, *ends)
        spent = clock() - t0
        self._call("LiteRtStopProfiler", self.profiler)
        return spent

    def events(self):
        """[(tag, what the number counts, number, nanoseconds)] of the last invocation."""
        count = ctypes.c_int()
        self._call("LiteRtGetNumProfilerEvents", self.profiler, ctypes.byref(count))
        words = np.zeros((count.value, self.EVENT_WORDS), np.uint64)
        self._call("LiteRtGetProfilerEvents", self.profiler, count, ctypes.c_void_p(words.ctypes.data))
        out = []
        for word in words.tolist():
            unit = self.TYPES.get(word[self.TYPE] & 0xFFFFFFFF)
            if unit:
                out.append((ctypes.string_at(word[self.TAG]).decode(), unit, word[self.NUMBER], 1000 * word[self.ELAPSED]))
        return out

    def get(self):
        out = []
        for buffer, d in zip(self.buffers["Output"], self.plain.outputs, strict=True):
            dtype = np.dtype(d["dtype"])
            with self._locked(buffer, self.READ) as address:
                data = ctypes.string_at(address, dtype.itemsize * int(np.prod(d["shape"])))
            out.append(np.frombuffer(data, dtype).reshape(d["shape"]))
        return out

    def _call(self, name, *args):
        status = getattr(self.library, name)(*args)
        if status:
            raise NoOpTimes(f"{name} of LiteRT {self.RELEASE} failed with status {status}")

    def _make(self, name, *args):
        """Call a function that gives a pointer in its last argument."""
        made = ctypes.c_void_p()
        self._call(name, *args, ctypes.byref(made))
        return made

    def _add(self, options, name, text):
        payload = ctypes.create_string_buffer(text)
        self.kept.append(payload)
        self._call("LiteRtAddOpaqueOptions", options, self._make("LiteRtCreateOpaqueOptions", name, payload, self.kept[0]))

    def _buffers(self, graph, end, count):
        out = []
        for i in map(ctypes.c_size_t, range(count)):
            type = self.TensorType()
            self._call("LiteRtGetRankedTensorType", self._make(f"LiteRtGetSubgraph{end}", graph, i), ctypes.byref(type))
            needs = self._make(f"LiteRtGetCompiledModel{end}BufferRequirements", self.compiled, ctypes.c_size_t(0), i)
            out.append(self._make("LiteRtCreateManagedTensorBufferFromRequirements", self.environment, ctypes.byref(type), needs))
        return out

    @contextlib.contextmanager
    def _locked(self, buffer, mode):
        address = ctypes.c_void_p()
        self._call("LiteRtLockTensorBuffer", buffer, ctypes.byref(address), mode)
        try:
            yield address
        finally:
            self._call("LiteRtUnlockTensorBuffer", buffer)


class ExecuTorchWatch:
    """The loaded method, run instruction by instruction: a call of a kernel or of a delegate each.

    ExecuTorch's wheels are built without its event tracer, so the clock is read here, around ``Method::step``. Its Python
    object is reached past the bindings, which don't have it. The cost of a call from Python is measured and taken off.
    Source: executorch v1.4.1, extension/pybindings/pybindings.cpp :: PyMethod, runtime/executor/method.h
    """

    RELEASE = "1.4.1"
    METHOD = "_ZN10executorch7runtime6Method"
    CONST_METHOD = "_ZNK10executorch7runtime6Method"
    END_OF_METHOD = 3
    WORD = 8

    def __init__(self, plain):
        check_release("executorch", self.RELEASE)
        from executorch.extension.pybindings import _portable_lib as lib

        self.plain = plain
        library = ctypes.CDLL(lib.__file__)
        # a Python object's header is 2 words, then comes pybind11's pointer to PyMethod: 2 shared pointers, then the method
        owner = ctypes.c_void_p.from_address(id(plain.method) + 2 * self.WORD).value
        self.method = ctypes.c_void_p(ctypes.c_void_p.from_address(owner + 4 * self.WORD).value)

        def function(name, result):
            found = getattr(library, name)
            found.restype, found.argtypes = result, [ctypes.c_void_p]
            return found

        self.step = function(self.METHOD + "4stepEv", ctypes.c_uint32)
        self.reset = function(self.METHOD + "15reset_executionEv", ctypes.c_uint32)
        idle = function(self.CONST_METHOD + "11in_progressEv", ctypes.c_bool)
        sizes = [function(self.CONST_METHOD + name, ctypes.c_size_t)(self.method) for name in ("11inputs_sizeEv", "12outputs_sizeEv")]
        if sizes != [len(plain.inputs), len(plain.outputs)]:
            raise NoOpTimes(f"ExecuTorch's method object tells {sizes} inputs and outputs: its layout is another")
        clock = time.perf_counter_ns
        costs = []
        for _ in range(1000):
            t0 = clock()
            idle(self.method)
            costs.append(clock() - t0)
        self.call_ns = int(np.median(costs))

    def operators(self):
        return []

    def set(self, arrays):
        self.plain.set(arrays)

    def invoke(self):
        clock, step, method = time.perf_counter_ns, self.step, self.method
        start = clock()
        self.plain.method.set_inputs(self.plain.feed)
        self.steps = []
        status = 0
        while not status:
            t0 = clock()
            status = step(method)
            self.steps.append(clock() - t0)
        self.steps.pop()  # the step that found the end
        self.plain.results = self.plain.method.get_outputs()
        spent = clock() - start
        if status != self.END_OF_METHOD or self.reset(method):
            raise NoOpTimes(f"ExecuTorch stopped at instruction {len(self.steps)} with status {status}")
        return spent

    def events(self):
        return [("", "instruction", i, max(0, ns - self.call_ns)) for i, ns in enumerate(self.steps)]

    def get(self):
        return self.plain.get()


def samples_of(runtime, arrays):
    """How many invocations ``arrays`` are, after checking them against the artifact's inputs."""
    if len(arrays) != len(runtime.inputs):
        raise ValueError(f"the artifact has {len(runtime.inputs)} inputs, got {len(arrays)} arrays")
    counts = set()
    for i, (array, d) in enumerate(zip(arrays, runtime.inputs, strict=True)):
        shape = tuple(d["shape"])
        if array.dtype.name != d["dtype"]:
            raise ValueError(f"input {i} has dtype {array.dtype.name}, the artifact takes {d['dtype']}")
        if array.ndim != len(shape) or array.shape[1:] != shape[1:] or (shape and array.shape[0] % max(1, shape[0])):
            raise ValueError(f"input {i} has shape {array.shape}, the artifact takes {shape}")
        counts.add(array.shape[0] // max(1, shape[0]) if shape else 1)
    if len(counts) > 1:
        raise ValueError(f"inputs hold different numbers of samples: {sorted(counts)}")
    return counts.pop() if counts else 1


def feed(runtime, arrays, i, count=1):
    """``count`` samples from sample ``i`` on, or what there are."""
    out = []
    for array, d in zip(arrays, runtime.inputs, strict=True):
        unit = d["shape"][0] if d["shape"] else 0
        out.append(np.ascontiguousarray(array[i * unit : (i + count) * unit]) if unit else array)
    return out


def run(runtime, arrays):
    count, at_once = samples_of(runtime, arrays), getattr(runtime, "at_once", 1)
    parts = []
    for i in range(0, count, at_once):
        runtime.set(feed(runtime, arrays, i, at_once))
        runtime.invoke()
        parts.append([np.array(o) for o in runtime.get()])
    if not parts:
        raise ValueError("no samples")
    return joined(parts)


def joined(parts):
    """The outputs of several invocations, samples along axis 0."""
    return [np.concatenate(o) if o[0].ndim else np.stack(o) for o in zip(*parts, strict=True)]


def measure(runtime, arrays, runs, seconds):
    """Nanoseconds of each invocation; stops early after ``seconds``."""
    if samples_of(runtime, arrays) != 1:
        raise ValueError("timing takes one sample")
    sample = feed(runtime, arrays, 0)
    runtime.set(sample)
    clock = time.perf_counter_ns
    deadline = clock() + int(seconds * 1e9)
    samples = []
    for _ in range(runs):
        if runtime.spends_inputs:
            runtime.set(sample)
        t0 = clock()
        runtime.invoke()
        t1 = clock()
        samples.append(t1 - t0)
        if t1 > deadline:
            break
    return samples, runtime.get()


#: invocations between changes from plain to watched ones: the two have weights of their own, which compete for the caches
OPS_BLOCK = 16


def measure_ops(runtime, arrays, runs, seconds):
    """Times of each op: (what serve sends, outputs). Blocks of watched invocations take turns with plain ones.

    An op's time is its mean over the middle half of the invocations, ranked by their sums: whole microseconds average out,
    interrupted invocations don't count, and the ops' times add up to a typical invocation.
    """
    if samples_of(runtime, arrays) != 1:
        raise ValueError("timing takes one sample")
    sample = feed(runtime, arrays, 0)
    watched = runtime.watch()
    watched.set(sample)
    runtime.set(sample)
    watched.invoke()
    first = watched.events()
    block = max(1, min(OPS_BLOCK, int(seconds * 1e8 / watched.invoke())))
    clock = time.perf_counter_ns
    deadline = clock() + int(seconds * 1e9)
    plain, spent, table = [], [], []
    while len(table) < runs and clock() < deadline:
        for _ in range(block):
            t0 = clock()
            runtime.invoke()
            plain.append(clock() - t0)
        for _ in range(block):
            spent.append(watched.invoke())
            events = watched.events()
            if [e[:3] for e in events] != [e[:3] for e in first]:
                raise NoOpTimes("the runtime reported other ops from one invocation to the next")
            table.append([e[3] for e in events])
    times = np.asarray(table, np.float64)
    ranked = times[np.argsort(times.sum(1))]
    quarter = len(ranked) // 4
    typical = ranked[quarter : len(ranked) - quarter].mean(0).tolist()
    ops = [{"op": tag, "unit": unit, "number": n, "ns": ns} for (tag, unit, n, _), ns in zip(first, typical, strict=True)]
    told = {"plain_ns": float(np.median(plain)), "watched_ns": float(np.median(spent)), "runs": len(table)}
    return {"ops": ops, "operators": watched.operators(), "reason": "", **told}, watched.get()


def pin(cores):
    """Keep this process to some cores, any if there are none given. The system would pass over those that it does not have."""
    if cores:
        there = os.sched_getaffinity(0)
        if absent := sorted(set(cores) - there):
            raise WrongRequest(f"there is no core {', '.join(map(str, absent))} to stay on, only {', '.join(map(str, sorted(there)))}")
        os.sched_setaffinity(0, cores)


def peak_rss_bytes():
    """The largest resident size of this process. ru_maxrss would start from that of the process that started this one."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def versions(kind):
    out = {"python": ".".join(str(v) for v in sys.version_info[:3]), "numpy": np.__version__}
    if kind == "c":
        said = subprocess.run([c_compiler(), "--version"], capture_output=True, text=True, check=False).stdout.partition("\n")[0]
        numbers = re.findall(r"\d+(?:\.\d+)+", said)
        return {**out, "cc": numbers[-1] if numbers else said}
    name = DISTRIBUTIONS[kind]
    try:
        out[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name) from error
    return out


class Instructions:
    """Takes the clock's place where $QWTV2_CLOCK is "instructions": those of the emulated processor, without those of asking.

    The emulator's plugin (count_insns.c) answers a system call that no kernel has, through the pipe that is its argument.
    """

    QUESTION = 0x5157

    def __init__(self):
        gc.disable()  # a collection would be counted in one run and not in the next
        self.call = ctypes.CDLL(None).syscall
        self.answers, self.pipe = os.pipe()
        os.set_blocking(self.answers, False)
        self.asked = self.cost = 0
        try:
            totals = [self() for _ in range(65)]
        except BlockingIOError:
            sys.exit("no plugin counts instructions here")
        self.cost = sorted(b - a for a, b in itertools.pairwise(totals))[32]

    def __call__(self):
        self.asked += 1
        self.call(self.QUESTION, self.pipe)
        return struct.unpack("Q", os.read(self.answers, 8))[0] - self.asked * self.cost


def read_exact(stream, count):
    data = bytearray()
    while len(data) < count:
        part = stream.read(count - len(data))
        if not part:
            return None
        data += part
    return bytes(data)


def receive(stream):
    """(header, blobs), or None at the end of the stream."""
    head = read_exact(stream, 4)
    if head is None:
        return None
    header = json.loads(read_exact(stream, struct.unpack("<I", head)[0]))
    return header, [read_exact(stream, n) for n in header.get("blobs", [])]


def send(stream, header, arrays=()):
    arrays = [np.ascontiguousarray(a) for a in arrays]
    header["arrays"] = [[a.dtype.name, list(a.shape)] for a in arrays]
    header["blobs"] = [a.nbytes for a in arrays]
    text = json.dumps(header).encode()
    stream.write(struct.pack("<I", len(text)) + text)
    for a in arrays:
        stream.write(a.tobytes())
    stream.flush()


def serve(source, sink):
    runtime = None
    while True:
        message = receive(source)
        if message is None or message[0]["command"] == "close":
            return
        header, blobs = message
        arrays = [np.frombuffer(b, d).reshape(s) for b, (d, s) in zip(blobs, header.get("arrays", []), strict=False)]
        try:
            if header["command"] == "versions":
                send(sink, {"ok": True, "versions": versions(header["kind"])})
            elif header["command"] == "load":
                kind = header["kind"]
                found = versions(kind)
                pin(header["cores"])
                if hasattr(runtime, "close"):
                    runtime.close()
                runtime = None
                runtime = RUNTIMES.get(kind, Interpreter)(kind, blobs[0], header["threads"])
                send(
                    sink,
                    {
                        "ok": True,
                        "versions": {**found, **getattr(runtime, "versions", {})},
                        "load_ns": runtime.load_ns,
                        "inputs": runtime.inputs,
                        "outputs": runtime.outputs,
                        "allocations": getattr(runtime, "allocations", ""),
                        "machine": platform.machine(),
                    },
                )
            elif header["command"] == "arena":
                send(sink, {"ok": True, "bytes": runtime.smallest_arena(header["least"])})
            elif header["command"] == "run":
                send(sink, {"ok": True}, run(runtime, arrays))
            elif header["command"] == "time":
                samples, outputs = measure(runtime, arrays, header["runs"], header["seconds"])
                send(sink, {"ok": True, "ns": samples, "peak_rss_bytes": peak_rss_bytes()}, outputs)
            elif header["command"] == "ops":
                try:
                    told, outputs = measure_ops(runtime, arrays, header["runs"], header["seconds"])
                except NoOpTimes as error:
                    told, outputs = {"ops": [], "reason": str(error)}, []
                send(sink, {"ok": True, **told}, outputs)
            else:
                send(sink, {"ok": False, "error": f"unknown command {header['command']!r}", "missing": ""})
        except ModuleNotFoundError as error:
            send(sink, {"ok": False, "error": str(error), "missing": str(error.name or "")})
        except WrongRequest as error:
            send(sink, {"ok": False, "error": str(error), "missing": "", "wrong": True})
        except Exception as error:  # whatever a runtime raises is reported, not hidden
            send(sink, {"ok": False, "error": f"{type(error).__name__}: {error}", "missing": ""})


def main():
    source = os.fdopen(os.dup(0), "rb")
    sink = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    if os.environ.get("QWTV2_CLOCK") == "instructions":
        time.perf_counter_ns = Instructions()
    serve(source, sink)
    sink.flush()
    os._exit(0)  # runtimes with threads of their own may hang or crash on an ordinary exit


if __name__ == "__main__":
    main()
