"""Whether a network fits a microcontroller, before there is a board: flash, RAM, who needs it, and what to change.

Every number says how it was found: measured (by a compiler or by TFLite Micro itself), planned, or estimated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from qwtv2_edge.backends import TARGETS, Artifact, backend_for, emit, numerics_of
from qwtv2_edge.errors import MissingToolError, Problem, UnsupportedOpError, UsageError
from qwtv2_edge.inspection import macs, weight_bytes
from qwtv2_edge.ir.graph import Graph
from qwtv2_edge.ir.types import WEIGHT_AXIS, TensorType
from qwtv2_edge.planner import Plan, integer_boundary, plan_graph
from qwtv2_edge.runners.arena import Arena, arena_of
from qwtv2_edge.runners.arm_none_eabi import CORES, compiler_version, object_sizes
from qwtv2_edge.runners.board import open_board, run_on_board
from qwtv2_edge.runners.vela import ACCELERATORS, NpuEstimate, estimate

#: runtimes of microcontrollers, by target; those without a backend here are left out
RUNTIMES = ("tflite-micro", "c", "executorch-cortex-m")
DEVICES = (*CORES, *ACCELERATORS)
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20}
SIZE = re.compile(r"(\d+)\s*([km]?)(?:i?b)?", re.IGNORECASE)

#: code of TFLite Micro without any kernel, and what one operator's reference kernels add to that; code that two share counts twice.
#: Linked for Cortex-M4 by GCC 12.2 with -Os, error strings left out, tflite-micro at 90b983c2b
MICRO_CORE = 10608
MICRO_KERNELS: Mapping[str, int] = {
    "ADD": 10064, "ARG_MAX": 1856, "AVERAGE_POOL_2D": 5648, "BATCH_MATMUL": 9448, "CAST": 2304, "CONCATENATION": 3072,
    "CONV_2D": 10392, "DEPTHWISE_CONV_2D": 9768, "DEQUANTIZE": 3008, "DIV": 9216, "ELU": 2848, "FULLY_CONNECTED": 8464,
    "GATHER": 2304, "HARD_SWISH": 5192, "L2_NORMALIZATION": 2248, "LEAKY_RELU": 5384, "LOGISTIC": 7728, "MAXIMUM": 5888,
    "MAX_POOL_2D": 5712, "MEAN": 8072, "MINIMUM": 5888, "MUL": 9680, "PAD": 3904, "PADV2": 3904, "PRELU": 7040, "QUANTIZE": 6272,
    "REDUCE_MAX": 5376, "RELU": 5320, "RELU6": 2568, "RESHAPE": 1408, "RESIZE_BILINEAR": 3520, "RESIZE_NEAREST_NEIGHBOR": 3072,
    "SLICE": 3520, "SOFTMAX": 9632, "STRIDED_SLICE": 5824, "SUB": 10128, "SUM": 7368, "TANH": 7888, "TRANSPOSE": 1920,
    "TRANSPOSE_CONV": 9928,
}  # fmt: skip
#: what kernels need beside activations, among what a layer holds
SCRATCH = "scratch memory"
#: generated C where no compiler can say: per output channel, and per kernel
C_CHANNEL, C_KERNEL = 8, 2048


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one kind of memory. ``parts``: what they are made of; ``method``: how they were found; ``budget``: 0 for none."""

    bytes: int
    parts: Mapping[str, int]
    method: str
    budget: int = 0

    @property
    def fits(self) -> bool | None:
        """None without a budget."""
        return self.bytes <= self.budget if self.budget else None


@dataclass(frozen=True, slots=True)
class Layer:
    """One node. ``live_bytes``: what must be there while it runs, at the least; ``holds``: activations, whole, and SCRATCH.
    ``instructions``: of an emulated run, None where there was none."""

    node: str
    op: str
    source: str
    macs: int
    weight_bytes: int
    live_bytes: int
    holds: tuple[tuple[str, int], ...]
    instructions: int | None = None


@dataclass(frozen=True)
class Fit:
    """What a network takes on one device with one runtime.

    Attributes:
        flash, ram: with what there is to say of each.
        layers: in order; ``peak`` is the index of the one that needs the most RAM.
        largest_tensor: (name, bytes) of the largest activation.
        support: runtime -> why it can't execute the network; empty where it can.
        arena: what TFLite Micro itself takes, None where it refuses the network or is not installed.
        npu: Vela's estimate, for Ethos-U devices.
        advice: what to change, where a budget is exceeded.
    """

    device: str
    runtime: str
    flash: Memory
    ram: Memory
    layers: tuple[Layer, ...]
    peak: int
    largest_tensor: tuple[str, int]
    support: Mapping[str, tuple[str, ...]]
    arena: Arena | None
    npu: NpuEstimate | None
    advice: tuple[str, ...]

    @property
    def fits(self) -> bool | None:
        """Whether every budget given is kept; None without any."""
        said = [m.fits for m in (self.flash, self.ram) if m.fits is not None]
        return all(said) if said else None

    @property
    def instructions(self) -> int | None:
        """Of one inference in an emulated run; no time, and None where there was none."""
        counts = [layer.instructions for layer in self.layers if layer.instructions is not None]
        return sum(counts) if counts else None

    def to_json(self) -> dict[str, Any]:
        """The document of ``fit --json``."""

        def memory(m: Memory) -> dict[str, Any]:
            return {"bytes": m.bytes, "parts": dict(m.parts), "method": m.method, "budget_bytes": m.budget or None, "fits": m.fits}

        def layer(entry: Layer) -> dict[str, Any]:
            return {**asdict(entry), "holds": [{"tensor": t, "bytes": b} for t, b in entry.holds]}

        peak, arena = self.layers[self.peak], self.arena
        return {
            "device": self.device,
            "runtime": self.runtime,
            "fits": self.fits,
            "flash": memory(self.flash),
            "ram": memory(self.ram),
            "peak": {"node": peak.node, "op": peak.op, "live_bytes": peak.live_bytes, "source": peak.source},
            "largest_tensor": {"tensor": self.largest_tensor[0], "bytes": self.largest_tensor[1]},
            "macs": sum(entry.macs for entry in self.layers),
            "instructions": self.instructions,
            "layers": [layer(entry) for entry in self.layers],
            "support": {r: {"supported": not reasons, "reasons": list(reasons)} for r, reasons in self.support.items()},
            "tflite_micro_arena": arena
            and {"head_bytes": arena.head, "tail_bytes": arena.tail, "bytes_64": arena.bytes, "bytes_32_estimate": arena.bytes_32},
            "npu_estimate": self.npu and {**asdict(self.npu), "cpu_operators": dict(self.npu.cpu_operators)},
            "advice": list(self.advice),
        }


def parse_size(text: str) -> int:
    """Bytes of a size such as "131072", "512K" or "1M" (powers of 1024). Raises UsageError for anything else, and for zero."""
    found = SIZE.fullmatch(text.strip())
    size = int(found[1]) * UNITS[found[2].lower()] if found else 0
    if not size:
        raise UsageError(f"'{text}' is no size of memory", fix="give bytes, or K or M after the number: 131072, 512K, 1M")
    return size


def parse_device(text: str) -> str:
    """One of DEVICES; "m7" stands for "cortex-m7", "m0+" for "cortex-m0plus". Raises UsageError that lists them."""
    name = text.lower().replace("m0+", "m0plus")
    name = name if name in DEVICES else f"cortex-{name}"
    if name not in DEVICES:
        raise UsageError(f"unknown device '{text}'", fix=f"one of: {', '.join(DEVICES)}")
    return name


def fit(
    graph: Graph,
    device: str,
    runtime: str = "tflite-micro",
    *,
    artifacts: Mapping[str, Artifact] | None = None,
    flash: int = 0,
    ram: int = 0,
    samples: Sequence[np.ndarray] | None = None,
) -> Fit:
    """What ``graph`` takes on ``device``.

    Args:
        graph: integer.
        device: one of DEVICES.
        runtime: one of RUNTIMES.
        artifacts: those at hand, by target; what is missing, or does not tell its ops, is emitted.
        flash, ram: budgets in bytes, 0 for none.
        samples: one array per graph input, first axis = samples: run them on an emulated board with generated C, and count.
    Raises: UsageError: an unknown runtime, or one that has no part in the device or in an emulated run. UnsupportedOpError: the
        runtime can't execute the network. MissingToolError: no Vela for an Ethos-U, no TFLite Micro to measure its own arena,
        no emulator.
    """
    known = [r for r in RUNTIMES if r in TARGETS]
    if runtime not in known:
        raise UsageError(f"unknown runtime '{runtime}'", fix=f"one of: {', '.join(known)}")
    if device in ACCELERATORS and runtime != "tflite-micro":
        raise UsageError(f"an Ethos-U is driven through TFLite Micro, not {runtime}", fix="--runtime tflite-micro")
    if samples is not None and runtime != "c":
        raise UsageError(f"an emulated board runs generated C, not {runtime}", fix="--runtime c")
    support = {r: tuple(_reasons(graph, r)) for r in known}
    if support[runtime]:
        problems = _problems(graph, runtime)
        raise UnsupportedOpError(f"{len(problems)} nodes of '{graph.name}' can't run on {runtime}", problems)
    held = {r: a for r, a in (artifacts or {}).items() if a.ops}
    artifact = held.get(runtime) or emit(graph, runtime)
    job = Job(graph, artifact, device)
    plan = job.plan(runtime)
    arena = _arena(job, support, held) if runtime != "tflite-micro" else arena_of(artifact.data)
    npu = estimate(artifact.data, device) if device in ACCELERATORS else None
    needs = _npu_memory(npu) if npu else MEMORY[runtime](job, arena)
    flash_need, ram_need = (replace(m, budget=b) for m, b in zip(needs, (flash, ram), strict=True))
    layers = tuple(_layers(graph, plan, job.scratch(runtime, graph)))
    if samples is not None:
        ran = run_on_board(open_board(device), artifact.data, samples, count=True)
        assert ran.instructions is not None
        counts = ran.instructions.per_node
        layers = tuple(replace(layer, instructions=counts.get(layer.node)) for layer in layers)
        ram_need = replace(
            ram_need,
            bytes=ram_need.bytes + ran.stack,
            parts={**ram_need.parts, "stack": ran.stack},
            method=f"{ram_need.method}; the stack as an emulated board used it",
        )
    largest = max(plan.offsets, key=lambda t: graph.tensors[t].size_bytes)
    found = Fit(
        device, runtime, flash_need, ram_need, layers, plan.peak, (largest, graph.tensors[largest].size_bytes), support, arena, npu, ()
    )
    return replace(found, advice=tuple(_advice(found, job)))


@dataclass(frozen=True)
class Job:
    """What the functions below need to know."""

    graph: Graph
    artifact: Artifact
    device: str

    def plan(self, runtime: str, graph: Graph | None = None) -> Plan:
        """Where activations lie with ``runtime``: generated C shares what it can, interpreters share nothing."""
        graph = graph or self.graph
        if runtime == "c":
            return plan_graph(graph, alignment=4, skip=integer_boundary(graph).skip)
        return plan_graph(graph, share=False, scratch=self.scratch(runtime, graph))

    def scratch(self, runtime: str, graph: Graph) -> dict[str, int]:
        """Node -> bytes that its kernel takes beside activations; what generated C takes so is in its arena.

        Source: tflite-micro 90b983c2b, tensorflow/lite/micro/kernels: conv_common.cc, depthwise_conv_common.cc,
        fully_connected.cc, transpose_conv.cc
        """
        if runtime != "tflite-micro":
            return {}
        sums = {n.name: 4 * graph.tensors[n.outputs[0]].size for n in graph.nodes if n.op == "transpose_conv2d"}
        weighted = ((n.name, graph.tensors[n.inputs[1]]) for n in graph.nodes if n.op in WEIGHT_AXIS)
        return {**sums, **{name: w.size for name, w in weighted if w.dtype == "int4"}}


# ---------------------------------------------------------------- what runs it


def _problems(graph: Graph, runtime: str) -> tuple[Problem, ...]:
    """Every node that ``runtime`` can't execute, as its emitter or its own kernels say."""
    found = backend_for(runtime).check(graph, runtime)
    said = {p.node for p in found}
    refused = (p for table in numerics_of(runtime) if table.name == runtime for p in table.problems(graph))
    return (*found, *(p for p in refused if p.node not in said))


def _reasons(graph: Graph, runtime: str) -> Iterator[str]:
    for p in _problems(graph, runtime):
        yield f"{p.node}: {p.message}"


def _arena(job: Job, support: Mapping[str, Sequence[str]], held: Mapping[str, Artifact]) -> Arena | None:
    """TFLite Micro's own arena, for comparison; None where it can't run the network or is not installed."""
    if support.get("tflite-micro", ("no backend",)):
        return None
    try:
        return arena_of((held.get("tflite-micro") or emit(job.graph, "tflite-micro")).data)
    except MissingToolError:
        return None


# ---------------------------------------------------------------- flash and RAM per runtime


def _micro_memory(job: Job, arena: Arena | None) -> tuple[Memory, Memory]:
    assert arena is not None
    code = MICRO_CORE + sum(MICRO_KERNELS[o] for o in set(job.artifact.ops))
    file = len(job.artifact.data)
    flash = Memory(
        file + code,
        {"file": file, "code_estimate": code},
        "the file, and an estimate of TFLite Micro's code with the reference kernels it needs: their sizes for Cortex-M4, GCC 12.2 -Os",
    )
    records = arena.bytes_32 - arena.head
    ram = Memory(
        arena.bytes_32,
        {"activations": arena.head, "records_estimate": records},
        "activations and records measured by TFLite Micro on a 64-bit machine; records that are arrays of pointers halved for 32 bits",
    )
    return flash, ram


def _c_memory(job: Job, arena: Arena | None) -> tuple[Memory, Memory]:
    weights = weight_bytes(job.graph)
    if compiler_version():
        sizes = object_sizes(job.artifact.data, job.device)
        how = f"the compiled file's sections, {compiler_version()}"
        flash = Memory(sizes.flash, {"weights": weights, "code_and_tables": sizes.flash - weights}, how)
        return flash, Memory(sizes.ram, {"arena": sizes.ram}, how)
    channels = sum(job.graph.tensors[n.inputs[1]].shape[WEIGHT_AXIS[n.op]] for n in job.graph.nodes if n.op in WEIGHT_AXIS)
    kernels = len(set(job.artifact.ops))
    tables, code = C_CHANNEL * channels, C_KERNEL * kernels
    flash = Memory(
        weights + tables + code,
        {"weights": weights, "tables": tables, "code_estimate": code},
        f"weights, {C_CHANNEL} bytes per output channel, and an estimate of {C_KERNEL} bytes of code per kernel; "
        "with arm-none-eabi-gcc installed it is measured",
    )
    declared = ARENA_SIZE.search(job.artifact.data)
    assert declared is not None
    return flash, Memory(int(declared[1]), {"arena": int(declared[1])}, "the arena that the file declares")


#: in generated C, first with shared memory and then without
ARENA_SIZE = re.compile(rb"arena_size = (\d+)")


def _executorch_memory(job: Job, arena: Arena | None) -> tuple[Memory, Memory]:
    size, planned = len(job.artifact.data), job.plan("executorch-cortex-m").bytes
    flash = Memory(size, {"file": size}, "the program alone, without ExecuTorch's runtime and kernels")
    return flash, Memory(planned, {"activations": planned}, "activations placed by lifetime, without ExecuTorch's own pools")


def _npu_memory(npu: NpuEstimate) -> tuple[Memory, Memory]:
    how = f"estimate of Vela {npu.version} for {npu.system}, {npu.memory_mode}; TFLite Micro's code and records come on top"
    return Memory(npu.flash_bytes, {"weights_and_commands": npu.flash_bytes}, how), Memory(npu.sram_bytes, {"sram": npu.sram_bytes}, how)


MEMORY: Mapping[str, Callable[[Job, Arena | None], tuple[Memory, Memory]]] = {
    "tflite-micro": _micro_memory,
    "c": _c_memory,
    "executorch-cortex-m": _executorch_memory,
}


# ---------------------------------------------------------------- layers


def _layers(graph: Graph, plan: Plan, scratch: Mapping[str, int]) -> Iterator[Layer]:
    last: dict[str, int] = {}
    for i, n in enumerate(graph.nodes):
        last.update((t, i) for t in (*n.inputs, *n.outputs))
    last.update((t, len(graph.nodes)) for t in graph.outputs)
    alive = [t for t in graph.inputs if t in plan.offsets]
    for i, n in enumerate(graph.nodes):
        alive += [t for t in n.outputs if t in plan.offsets and t not in alive]
        yield Layer(
            n.name,
            n.op,
            str(n.location),
            macs(graph, n),
            sum(graph.tensors[t].size_bytes for t in n.inputs if t in graph.constants),
            plan.live[i],
            (*((t, graph.tensors[t].size_bytes) for t in alive), *((SCRATCH, b) for b in [scratch.get(n.name)] if b)),
        )
        alive = [t for t in alive if last[t] > i]


# ---------------------------------------------------------------- what to change


def _advice(found: Fit, job: Job) -> Iterator[str]:
    """What would help where a budget is exceeded, each with the bytes it would come to."""
    if found.ram.fits is False:
        yield from _ram_advice(found, job)
    if found.flash.fits is False:
        yield from _flash_advice(found, job)
    if found.fits is False and found.npu is not None:
        yield "fewer channels or a smaller input help; how far, Vela alone tells of the changed network"


def _ram_advice(found: Fit, job: Job) -> Iterator[str]:
    peak = found.layers[found.peak]
    holds = ", ".join(f"{name} ({size:,})" for name, size in peak.holds)
    if sum(size for _, size in peak.holds) > peak.live_bytes:
        holds += ", partly in the same place"
    over = found.ram.bytes - found.ram.budget
    yield (f"RAM is {over:,} bytes over: {peak.op} {peak.node} needs {peak.live_bytes:,} bytes of activations, the most of all: {holds}")
    if found.npu is not None:
        return
    plan = job.plan(found.runtime)
    held = found.ram.parts.get("activations", plan.bytes)
    if held > plan.bytes:
        yield f"{found.runtime} runs some ops as several operators each, and holds {held:,} bytes of activations where those are largest"
    for words, smaller in RAM_CHANGES:
        graph = smaller(job.graph)
        if graph is not None:
            need = found.ram.bytes - held + held * job.plan(found.runtime, graph).bytes // plan.bytes
            yield from _helps(words, need, found.ram, "RAM")
    yield from _other_runtimes(found, job, lambda memory: memory[1], found.ram, "RAM")


def _flash_advice(found: Fit, job: Job) -> Iterator[str]:
    over = found.flash.bytes - found.flash.budget
    largest = max(found.layers, key=lambda layer: layer.weight_bytes)
    share = 100 * largest.weight_bytes / max(1, sum(layer.weight_bytes for layer in found.layers))
    yield (
        f"flash is {over:,} bytes over: {largest.op} {largest.node} has {largest.weight_bytes:,} bytes of weights and biases, "
        f"{share:.0f} % of all"
    )
    if found.npu is not None:
        return
    yield from _packing(found, job)
    for words, smaller in FLASH_CHANGES:
        graph = smaller(job.graph)
        if graph is not None:
            yield from _helps(words, found.flash.bytes - weight_bytes(job.graph) + weight_bytes(graph), found.flash, "flash")
    yield from _other_runtimes(found, job, lambda memory: memory[0], found.flash, "flash")


def _helps(words: str, need: int, memory: Memory, kind: str) -> Iterator[str]:
    """The advice ``words`` where it makes ``memory`` smaller at all."""
    if need < memory.bytes:
        yield f"{words}: about {need:,} bytes of {kind}{_verdict(need, memory.budget)}"


def _verdict(need: int, budget: int) -> str:
    return ", which fits" if need <= budget else f", still {need - budget:,} over"


def _other_runtimes(found: Fit, job: Job, pick: Callable[[tuple[Memory, Memory]], Memory], own: Memory, kind: str) -> Iterator[str]:
    """Runtimes that need less of one kind of memory."""
    if found.runtime == "c" or found.support.get("c", ("absent",)):
        return
    other = pick(_c_memory(Job(job.graph, emit(job.graph, "c"), job.device), None))
    if other.bytes < own.bytes:
        yield f"generated C (--runtime c): {other.bytes:,} bytes of {kind}{_verdict(other.bytes, own.budget)}"


def _packing(found: Fit, job: Job) -> Iterator[str]:
    """What packing the weights of convolutions would do where the runtime has kernels for packed ones."""
    graph = job.graph
    packable = [
        n.inputs[1]
        for n in graph.nodes
        if n.op in ("conv2d", "depthwise_conv2d") and graph.tensors[n.inputs[1]].dtype == "int8" and getattr(n.attrs, "groups", 1) == 1
    ]
    if found.runtime != "tflite-micro" or not packable:
        return
    packed = {w: replace(graph.tensors[w], dtype="int4") for w in packable}
    saved = sum(type.size // 2 for type in packed.values())
    more = job.plan(found.runtime, replace(graph, tensors={**graph.tensors, **packed})).bytes - job.plan(found.runtime).bytes
    count, need = len(packable), found.flash.bytes - saved
    yield (
        f'packed 4-bit weights (weight_bits = 4, weight_storage = "packed") in {count} convolution{"s"[: count > 1]}: '
        f"{saved:,} bytes less, {need:,} bytes of flash{_verdict(need, found.flash.budget)}"
        + (f"; {more:,} bytes more of RAM to unpack them in" if more else "")
        + ("; an override leaves fully connected layers at 8 bits" if any(n.op == "fully_connected" for n in graph.nodes) else "")
    )


def _codes_at_the_ends(graph: Graph) -> Graph | None:
    """``graph`` without its quantize and dequantize nodes at the boundary; for its sizes only."""
    boundary = integer_boundary(graph)
    if not boundary.skip:
        return None
    nodes = tuple(n for n in graph.nodes if n.name not in boundary.skip)
    return replace(graph, inputs=tuple(t for _, t in boundary.inputs), outputs=tuple(t for _, t in boundary.outputs), nodes=nodes)


def _half_resolution(graph: Graph) -> Graph | None:
    """``graph`` with half the height and width in every image; for its sizes only, it can't run. None where no input is an image."""
    if not any(len(graph.tensors[t].shape) == 4 and sorted(graph.tensors[t].shape)[-2] > 1 for t in graph.inputs):
        return None
    before = _unweighted(graph, graph.inputs, forward=True)

    def shape(tensor: str, type: TensorType) -> tuple[int, ...]:
        if len(type.shape) != 4:
            return type.shape
        axes = [1, 2]
        if tensor in before:  # images may still lie channels-first
            axes = sorted(range(1, 4), key=lambda i: type.shape[i])[1:]
        return tuple((d + 1) // 2 if i in axes else d for i, d in enumerate(type.shape))

    return _resized(graph, shape)


def _half_channels(graph: Graph) -> Graph | None:
    """``graph`` with half the channels between its first and its last weighted op; for its sizes only. None with attention in it."""
    if any(n.op == "batch_matmul" for n in graph.nodes):
        return None
    ends = _unweighted(graph, graph.inputs, forward=True) | _unweighted(graph, graph.outputs, forward=False)

    def shape(tensor: str, type: TensorType) -> tuple[int, ...]:
        if tensor in ends or not type.shape:
            return type.shape
        return (*type.shape[:-1], (type.shape[-1] + 1) // 2)

    return _resized(graph, shape)


def _unweighted(graph: Graph, tensors: Iterable[str], *, forward: bool) -> set[str]:
    """``tensors`` and all that follow from them (or that they follow from) without a weighted op between."""
    found = set(tensors)
    for n in graph.nodes if forward else reversed(graph.nodes):
        start, end = (n.inputs, n.outputs) if forward else (n.outputs, n.inputs)
        if n.op not in WEIGHT_AXIS and found.intersection(start):
            found.update(t for t in end if t not in graph.constants)
    return found


def _resized(graph: Graph, shape: Callable[[str, TensorType], tuple[int, ...]]) -> Graph:
    """``graph`` with other shapes of activations, and weights whose channels follow them."""
    tensors = {t: type if t in graph.constants else replace(type, shape=shape(t, type)) for t, type in graph.tensors.items()}
    for n in graph.nodes:
        if n.op in WEIGHT_AXIS:
            (x, w, b), y = n.inputs, n.outputs[0]
            weight = list(graph.tensors[w].shape)
            weight[WEIGHT_AXIS[n.op]] = tensors[y].shape[-1]
            if n.op != "depthwise_conv2d":
                weight[-1] = weight[-1] * tensors[x].shape[-1] // graph.tensors[x].shape[-1]
            tensors[w] = replace(tensors[w], shape=tuple(weight))
            tensors[b] = replace(tensors[b], shape=(tensors[y].shape[-1],))
    return replace(graph, tensors=tensors)


#: (what to change, the graph that comes of it or None)
Change = tuple[str, Callable[[Graph], Graph | None]]
FLASH_CHANGES: tuple[Change, ...] = (
    ("half the input's height and width", _half_resolution),
    ("half the channels in every layer", _half_channels),
)
RAM_CHANGES: tuple[Change, ...] = (('codes at both ends (io_dtype = "int8")', _codes_at_the_ends), *FLASH_CHANGES)
