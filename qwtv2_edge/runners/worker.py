"""Executes one artifact in one runtime, as a script of its own. Nothing here imports qwtv2_edge.

Needs Python 3.10 or newer, NumPy 1 or 2, and the one runtime it is asked for. Messages travel over the process's
first standard input and output; both are moved away before any runtime is imported, so what runtimes print
goes to standard error and can't corrupt a message.

A message is: uint32 length of a JSON header (little-endian), the header, then the blobs the header announces
in ``blobs`` (a list of byte counts). Arrays are blobs described by ``arrays`` ([dtype, shape] each).

    request   {"command": "load", "kind", "threads", "cores"} + artifact bytes      cores: those to stay on, [] for any
              {"command": "run"} + arrays             first axis = samples, any multiple of the artifact's own batch
              {"command": "time", "runs", "seconds"} + arrays of one sample
              {"command": "versions", "kind"} | {"command": "close"}
    reply     {"ok": true, ...} + arrays, or {"ok": false, "error", "missing": package or ""}
"""

import importlib.metadata
import json
import os
import platform
import resource
import struct
import sys
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


class Interpreter:
    """LiteRT, tflite-runtime and TensorFlow Lite: one API under three package names."""

    def __init__(self, kind, data, threads):
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

    def set(self, arrays):
        for index, array in zip(self._in, arrays, strict=True):
            self.interpreter.set_tensor(index, array)

    def invoke(self):
        self.interpreter.invoke()

    def get(self):
        return [self.interpreter.get_tensor(i) for i in self._out]


class Micro:
    """TFLite Micro's Python interpreter. The arena doubles until the network fits."""

    ARENAS = [1 << k for k in range(18, 31)]

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
        self.arena = arena
        self.inputs = self._list(self.interpreter.get_input_details)
        self.outputs = self._list(self.interpreter.get_output_details)

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
            if "0x14" not in str(error):
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


RUNTIMES = {"tflite-micro": Micro, "executorch": ExecuTorch}


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


def feed(runtime, arrays, i):
    out = []
    for array, d in zip(arrays, runtime.inputs, strict=True):
        unit = d["shape"][0] if d["shape"] else 0
        out.append(np.ascontiguousarray(array[i * unit : (i + 1) * unit]) if unit else array)
    return out


def run(runtime, arrays):
    count = samples_of(runtime, arrays)
    parts = []
    for i in range(count):
        runtime.set(feed(runtime, arrays, i))
        runtime.invoke()
        parts.append([np.array(o) for o in runtime.get()])
    if not parts:
        raise ValueError("no samples")
    return [np.concatenate(o) if o[0].ndim else np.stack(o) for o in zip(*parts, strict=True)]


def measure(runtime, arrays, runs, seconds):
    """Nanoseconds of each invocation; stops early after ``seconds``."""
    if samples_of(runtime, arrays) != 1:
        raise ValueError("timing takes one sample")
    runtime.set(feed(runtime, arrays, 0))
    clock = time.perf_counter_ns
    deadline = clock() + int(seconds * 1e9)
    samples = []
    for _ in range(runs):
        t0 = clock()
        runtime.invoke()
        t1 = clock()
        samples.append(t1 - t0)
        if t1 > deadline:
            break
    return samples, runtime.get()


def peak_rss_bytes():
    """The largest resident size of this process. ru_maxrss would start from that of the process that started this one."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def versions(kind):
    out = {"python": ".".join(str(v) for v in sys.version_info[:3]), "numpy": np.__version__}
    name = DISTRIBUTIONS[kind]
    try:
        out[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name) from error
    return out


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
                if header["cores"]:
                    os.sched_setaffinity(0, header["cores"])
                if hasattr(runtime, "close"):
                    runtime.close()
                runtime = None
                runtime = RUNTIMES.get(kind, Interpreter)(kind, blobs[0], header["threads"])
                send(
                    sink,
                    {
                        "ok": True,
                        "versions": found,
                        "load_ns": runtime.load_ns,
                        "inputs": runtime.inputs,
                        "outputs": runtime.outputs,
                        "arena_bytes": getattr(runtime, "arena", 0),
                        "machine": platform.machine(),
                    },
                )
            elif header["command"] == "run":
                send(sink, {"ok": True}, run(runtime, arrays))
            elif header["command"] == "time":
                samples, outputs = measure(runtime, arrays, header["runs"], header["seconds"])
                send(sink, {"ok": True, "ns": samples, "peak_rss_bytes": peak_rss_bytes()}, outputs)
            else:
                send(sink, {"ok": False, "error": f"unknown command {header['command']!r}", "missing": ""})
        except ModuleNotFoundError as error:
            send(sink, {"ok": False, "error": str(error), "missing": str(error.name or "")})
        except Exception as error:  # whatever a runtime raises is reported, not hidden
            send(sink, {"ok": False, "error": f"{type(error).__name__}: {error}", "missing": ""})


def main():
    source = os.fdopen(os.dup(0), "rb")
    sink = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    serve(source, sink)
    sink.flush()
    os._exit(0)  # runtimes with threads of their own may hang or crash on an ordinary exit


if __name__ == "__main__":
    main()
