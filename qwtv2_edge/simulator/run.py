"""Runs graphs in NumPy: float graphs by their reference meaning, integer graphs exactly.

A graph captured with batch 1 runs any number of samples at once where every op keeps samples apart along
axis 0; otherwise it runs sample by sample. Results are the same either way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from qwtv2_edge.errors import GraphError, UsageError, locate
from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.ir.types import DTYPES, TensorType, fits_int32
from qwtv2_edge.numerics import Numerics
from qwtv2_edge.ops import OPS

#: bytes of live activations that one pass may hold before the batch is cut
WORKING_SET_BYTES = 256 << 20

Observe = Callable[[Node, tuple[np.ndarray, ...]], None]


def batchable(graph: Graph) -> bool:
    """True where samples stay independent along axis 0 of every activation."""
    live = set(graph.inputs)
    for t in graph.inputs:
        if not graph.tensors[t].shape or graph.tensors[t].shape[0] != 1:
            return False
    for node in graph.nodes:
        types = graph.in_types(node)
        data = [type for t, type in zip(node.inputs, types, strict=True) if t in live]
        fixed = [type for t, type in zip(node.inputs, types, strict=True) if t not in live]
        if not data or not OPS[node.op].batch(node.attrs, types):
            return False
        if OPS[node.op].data_inputs is None and len(types) > 1 and not _operands_stretch(data, fixed):
            return False
        live.update(node.outputs)
    return True


def _operands_stretch(data: Sequence[TensorType], fixed: Sequence[TensorType]) -> bool:
    """Several operands that broadcast or join: samples line up where every activation (``data``) has the full rank
    and one extent along axis 0, and no constant (``fixed``) has an extent of its own there."""
    rank = max(len(type.shape) for type in (*data, *fixed))
    if any(len(type.shape) != rank or type.shape[0] != data[0].shape[0] for type in data):
        return False
    return all(len(type.shape) < rank or type.shape[0] == 1 for type in fixed)


def last_uses(graph: Graph) -> dict[int, list[str]]:
    """node index -> tensors that no later node reads."""
    last: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        for t in (*node.inputs, *node.outputs):
            last[t] = i
    keep = set(graph.outputs) | set(graph.constants)
    out: dict[int, list[str]] = {}
    for t, i in last.items():
        if t not in keep:
            out.setdefault(i, []).append(t)
    return out


def step(graph: Graph, node: Node, arrays: Sequence[np.ndarray], numerics: Numerics | None) -> tuple[np.ndarray, ...]:
    """Run one node: float meaning when ``numerics`` is None, else its exact integer meaning."""
    spec = OPS[node.op]
    in_types, attrs = graph.in_types(node), node.attrs
    if spec.stretch is not None and arrays[0].shape[0] > in_types[0].shape[0]:
        attrs = spec.stretch(attrs, arrays[0].shape[0] // in_types[0].shape[0])
    with locate(node):
        if numerics is None:
            return spec.reference(arrays, attrs)
        return spec.integer(arrays, attrs, in_types, graph.out_types(node), numerics)


def run_once(
    graph: Graph, inputs: Mapping[str, np.ndarray], numerics: Numerics | None, observe: Observe | None = None
) -> dict[str, np.ndarray]:
    """Run all of ``inputs`` in one pass; returns the graph outputs by name. ``observe`` sees every node's outputs."""
    values: dict[str, np.ndarray] = {**graph.constants, **inputs}
    dead = last_uses(graph)
    for i, node in enumerate(graph.nodes):
        results = step(graph, node, [values[t] for t in node.inputs], numerics)
        values.update(zip(node.outputs, results, strict=True))
        if observe is not None:
            observe(node, results)
        for t in dead.get(i, ()):
            del values[t]
    return {t: values[t] for t in graph.outputs}


def bytes_per_sample(graph: Graph) -> int:
    """A bound on what one sample's largest step holds (im2col and int64 temporaries included)."""
    largest = 1
    for node in graph.nodes:
        size = sum(t.size for n, t in zip(node.inputs, graph.in_types(node), strict=True) if n not in graph.constants)
        size += sum(t.size for t in graph.out_types(node))
        if node.op in ("conv2d", "transpose_conv2d"):
            out, w = graph.tensors[node.outputs[0]], graph.tensors[node.inputs[1]]
            size += out.size // out.shape[-1] * (w.size // w.shape[0])
        largest = max(largest, size)
    return largest * 16


def batch_size(graph: Graph) -> int:
    """How many samples to run at once."""
    if not batchable(graph):
        return 1
    return int(max(1, min(256, WORKING_SET_BYTES // bytes_per_sample(graph))))


def run(graph: Graph, inputs: Sequence[np.ndarray], numerics: Numerics | None, observe: Observe | None = None) -> list[np.ndarray]:
    """Run any number of samples, cut into passes of bounded memory.

    Args:
        graph: float (``numerics`` None) or integer.
        inputs: one array per graph input, first axis = samples (the graph's own batch size times any count).
        numerics: which runtime to match.
        observe: called with every node and its output arrays, once per pass.
    Returns: one array per graph output, first axis = samples.
    Raises: UsageError on wrong shapes or dtypes.
    """
    arrays = check_inputs(graph, inputs)
    numerics = numerics and numerics.for_graph(graph)
    units = [graph.tensors[t].shape[0] for t in graph.inputs]
    count = arrays[0].shape[0] // units[0]
    per_pass = batch_size(graph)
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, count, per_pass):
        stop = min(count, start + per_pass)
        feed = {t: a[start * u : stop * u] for t, a, u in zip(graph.inputs, arrays, units, strict=True)}
        parts.append(run_once(graph, feed, numerics, observe))
    return [join([p[t] for p in parts]) for t in graph.outputs]


def join(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The results of several passes along axis 0; scalars become a new axis."""
    if parts[0].ndim == 0:
        return np.stack(parts)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def check_inputs(graph: Graph, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Validate and cast ``inputs`` to the graph's input types; at least one sample, equally many in each input."""
    if len(inputs) != len(graph.inputs):
        raise UsageError(f"the network has {len(graph.inputs)} inputs ({', '.join(graph.inputs)}), got {len(inputs)} arrays")
    out, counts = [], []
    for name, array in zip(graph.inputs, inputs, strict=True):
        type = graph.tensors[name]
        array = np.asarray(array)
        if array.shape == type.shape[1:]:
            array = array[None]
        if array.ndim != len(type.shape) or array.shape[1:] != type.shape[1:] or array.shape[0] % type.shape[0]:
            raise UsageError(
                f"input '{name}' has shape {tuple(array.shape)}, expected (samples, {', '.join(map(str, type.shape[1:]))})",
                fix="give one array per input, first axis = samples",
            )
        dtype = DTYPES[type.dtype]
        fits = fits_int32(array) if dtype == np.int32 else dtype == np.float32 and array.dtype.kind in "fiub"
        if array.dtype != dtype and not fits:
            raise UsageError(f"input '{name}' has dtype {array.dtype}, expected {dtype}")
        with np.errstate(over="ignore"):  # infinity is refused where it gets a code
            out.append(np.ascontiguousarray(array, dtype))
        counts.append(array.shape[0] // type.shape[0])
    if 0 in counts:
        raise UsageError("no samples to run", fix="give at least one sample")
    if len(set(counts)) > 1:
        said = ", ".join(f"'{t}' {c}" for t, c in zip(graph.inputs, counts, strict=True))
        raise UsageError(f"the inputs hold different numbers of samples: {said}", fix="give every input the same number")
    return out


def run_float(graph: Graph, inputs: Sequence[np.ndarray], observe: Observe | None = None) -> list[np.ndarray]:
    """Run a float graph by its reference meaning."""
    if any(n.op == "quantize" for n in graph.nodes):
        raise GraphError("this is an integer graph", fix="use qwtv2_edge.simulate")
    return run(graph, inputs, None, observe)
