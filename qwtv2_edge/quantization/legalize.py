"""Float-to-float rewrites that bring a captured graph to the forms every target has as integers.

1. hard_sigmoid -> x/6 + 1/2 clamped to [0, 1]; the affine part goes into a convolution or linear just before it.
2. silu -> x * logistic(x).
3. sum -> a product with ones.
4. relu and relu6 are fused into the node before them where that node has a fused activation and no other reader.
5. An average over one window that gives a single position becomes a mean (after a slice where the window does not
   cover the input): a mean has an output scale of its own, an average pool must keep its input's, which costs
   ResNet8 4.5 dB.
6. Reshapes in a row become one, and none follows a mean that can drop the axes itself.
7. "nhwc" layout: transposes at channels-first image inputs and outputs are dropped.
Each pass is a function from a graph to a graph; the meaning (real arithmetic) stays the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

import numpy as np

from qwtv2_edge.ir.graph import Graph, GraphBuilder, Node, live_nodes
from qwtv2_edge.ir.types import WEIGHT_AXIS, TensorType
from qwtv2_edge.ops.activation import ClampAttrs
from qwtv2_edge.ops.conv import DepthwiseAttrs
from qwtv2_edge.ops.elementwise import BinaryAttrs
from qwtv2_edge.ops.layout import ReshapeAttrs, SliceAttrs, TransposeAttrs
from qwtv2_edge.ops.linear import FullyConnectedAttrs
from qwtv2_edge.ops.pool import ReduceAttrs
from qwtv2_edge.ops.spec import NoAttrs

FUSABLE = frozenset({"conv2d", "depthwise_conv2d", "transpose_conv2d", "fully_connected", "add", "sub", "mul"})
#: TFLite's transposed convolution takes no fused activation
NO_FUSED_ACTIVATION = frozenset({"transpose_conv2d"})


TO_NHWC = (0, 2, 3, 1)
TO_NCHW = (0, 3, 1, 2)


def legalize(graph: Graph, io_layout: str = "nchw") -> Graph:
    """All passes in order. ``io_layout``: "nchw" (the module's own shapes) or "nhwc"."""
    graph = rewrite(graph, _hard_sigmoid)
    graph = rewrite(graph, _silu)
    graph = rewrite(graph, _named_clamps)
    graph = merge_reshapes(rewrite(graph, _single_average))
    graph = rewrite(graph, _sum)
    graph = fuse_activations(graph)
    if io_layout == "nhwc":
        graph = drop_boundary_transposes(graph)
    return graph


def rewrite(graph: Graph, rule: Callable[[GraphBuilder, Node, Graph], bool]) -> Graph:
    """Rebuild the graph; ``rule`` appends a node's replacement and returns True, or returns False to keep it."""
    b = GraphBuilder.copy_of(graph, nodes=False)
    for node in graph.nodes:
        if not rule(b, node, graph):
            b.append(node)
    return b.freeze()


def single_reader(graph: Graph, tensor: str) -> Node | None:
    """The one node that reads ``tensor``; None when several do or it is a graph output."""
    readers = graph.consumers().get(tensor, [])
    return readers[0] if len(readers) == 1 and tensor not in graph.outputs else None


def _hard_sigmoid(b: GraphBuilder, node: Node, graph: Graph) -> bool:
    if node.op != "hard_sigmoid":
        return False
    x, out = node.inputs[0], node.outputs[0]
    type = graph.tensors[out]
    before = next((n for n in b.nodes if x in n.outputs), None)
    if before is not None and before.op in WEIGHT_AXIS and before.attrs.activation == "none" and single_reader(graph, x) is not None:
        w, bias = (b.constants[t] for t in before.inputs[1:])
        scaled = b.constant(f"{node.name}.weight", (w / np.float32(6)).astype(np.float32))
        shifted = b.constant(f"{node.name}.bias", (bias / np.float32(6) + np.float32(0.5)).astype(np.float32))
        index = b.nodes.index(before)
        b.nodes[index] = replace(before, inputs=(before.inputs[0], scaled, shifted))
        affine = x
    else:
        sixth = b.constant(f"{node.name}.sixth", np.full((1,) * len(type.shape), 1 / 6, np.float32))
        half = b.constant(f"{node.name}.half", np.full((1,) * len(type.shape), 0.5, np.float32))
        (scaled_x,) = b.add("mul", (x, sixth), BinaryAttrs(), name=f"{node.name}.scale", location=node.location)
        (affine,) = b.add("add", (scaled_x, half), BinaryAttrs(), name=f"{node.name}.shift", location=node.location)
    b.add("clamp", (affine,), ClampAttrs(0.0, 1.0), name=node.name, location=node.location, outputs=(out,), out_types=(type,))
    return True


def _silu(b: GraphBuilder, node: Node, graph: Graph) -> bool:
    if node.op != "silu":
        return False
    x, out = node.inputs[0], node.outputs[0]
    (gate,) = b.add("logistic", (x,), NoAttrs(), name=f"{node.name}.gate", location=node.location)
    b.add("mul", (x, gate), BinaryAttrs(), name=node.name, location=node.location, outputs=(out,), out_types=(graph.tensors[out],))
    return True


def _named_clamps(b: GraphBuilder, node: Node, graph: Graph) -> bool:
    names = {(0.0, float("inf")): "relu", (0.0, 6.0): "relu6"}
    if node.op != "clamp" or (node.attrs.min, node.attrs.max) not in names:
        return False
    b.append(replace(node, op=names[node.attrs.min, node.attrs.max], attrs=NoAttrs()))
    return True


def _sum(b: GraphBuilder, node: Node, graph: Graph) -> bool:
    """A sum is a product with ones: TFLite's reference kernel for int8 SUM is wrong, products are right everywhere."""
    if node.op != "sum":
        return False
    x, out = node.inputs[0], node.outputs[0]
    shape, axes = graph.tensors[x].shape, node.attrs.axes
    if len(shape) == 4 and axes == (1, 2):
        ones = b.constant(f"{node.name}.ones", np.ones((1, *shape[1:]), np.float32))
        zeros = b.constant(f"{node.name}.zeros", np.zeros(shape[3], np.float32))
        (total,) = b.add("depthwise_conv2d", (x, ones, zeros), DepthwiseAttrs(), name=f"{node.name}.total", location=node.location)
    else:
        kept = tuple(i for i in range(len(shape)) if i not in axes)
        if (*kept, *axes) != tuple(range(len(shape))):
            (x,) = b.add("transpose", (x,), TransposeAttrs((*kept, *axes)), name=f"{node.name}.moved", location=node.location)
        count = prod(shape[i] for i in axes)
        rows = ReshapeAttrs((prod(shape[i] for i in kept), count))
        (x,) = b.add("reshape", (x,), rows, name=f"{node.name}.rows", location=node.location)
        ones = b.constant(f"{node.name}.ones", np.ones((1, count), np.float32))
        zeros = b.constant(f"{node.name}.zeros", np.zeros(1, np.float32))
        (total,) = b.add("fully_connected", (x, ones, zeros), FullyConnectedAttrs(), name=f"{node.name}.total", location=node.location)
    type = graph.tensors[out]
    b.add("reshape", (total,), ReshapeAttrs(type.shape), name=node.name, location=node.location, outputs=(out,), out_types=(type,))
    return True


def _single_average(b: GraphBuilder, node: Node, graph: Graph) -> bool:
    if node.op != "avg_pool2d" or node.attrs.padding != ((0, 0), (0, 0)):
        return False
    x, out = node.inputs[0], node.outputs[0]
    n, h, w, c = graph.tensors[x].shape
    if graph.tensors[out].shape[1:3] != (1, 1):
        return False
    if node.attrs.kernel != (h, w):
        window = SliceAttrs((0, 0, 0, 0), (n, *node.attrs.kernel, c), (1, 1, 1, 1))
        (x,) = b.add("slice", (x,), window, name=f"{node.name}.window", location=node.location)
    b.add(
        "mean",
        (x,),
        ReduceAttrs((1, 2), keep_dims=True),
        name=node.name,
        location=node.location,
        outputs=(out,),
        out_types=(graph.tensors[out],),
    )
    return True


def merge_reshapes(graph: Graph) -> Graph:
    """One reshape instead of several in a row; none after a mean that can drop the axes itself."""
    producers = graph.producers()
    rebuilt: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op != "reshape":
            continue
        source = node.inputs[0]
        while source in producers and producers[source].op == "reshape":
            source = producers[source].inputs[0]
        before = producers.get(source)
        shape = graph.tensors[node.outputs[0]].shape
        if before is not None and before.op == "mean" and before.attrs.keep_dims and single_reader(graph, source) is not None:
            kept = tuple(d for i, d in enumerate(graph.tensors[source].shape) if i not in before.attrs.axes)
            if kept == shape:
                rebuilt[node.name] = replace(before, attrs=replace(before.attrs, keep_dims=False), outputs=node.outputs)
                continue
        rebuilt[node.name] = replace(node, inputs=(source,))
    b = GraphBuilder.copy_of(graph, nodes=False)
    for node in graph.nodes:
        b.append(rebuilt.get(node.name, node))
    merged = b.freeze()
    b = GraphBuilder.copy_of(merged, nodes=False)
    for node in live_nodes(merged, merged.outputs):
        b.append(node)
    return b.freeze()


def fuse_activations(graph: Graph) -> Graph:
    """Move relu and relu6 into the node before them where nothing else reads the value in between."""
    producers, consumers = graph.producers(), graph.consumers()
    fused: dict[str, Node] = {}
    dropped: set[str] = set()
    for node in graph.nodes:
        if node.op not in ("relu", "relu6"):
            continue
        x = node.inputs[0]
        before = producers.get(x)
        if (
            before is not None
            and before.op in FUSABLE - NO_FUSED_ACTIVATION
            and before.attrs.activation == "none"
            and x not in graph.outputs
            and len(consumers[x]) == 1
        ):
            fused[before.name] = replace(before, attrs=replace(before.attrs, activation=node.op), outputs=node.outputs)
            dropped.add(node.name)
    b = GraphBuilder.copy_of(graph, nodes=False)
    for node in graph.nodes:
        if node.name not in dropped:
            b.append(fused.get(node.name, node))
    return b.freeze()


def drop_boundary_transposes(graph: Graph) -> Graph:
    """Make rank-4 inputs and outputs channels-last where that removes a transpose.

    ``metadata["nhwc_io"]`` lists the tensors so changed, so that data in the module's own layout can be adapted.
    """
    consumers, producers = graph.consumers(), graph.producers()
    b = GraphBuilder.copy_of(graph, nodes=False)
    renamed: dict[str, str] = {}
    dropped: set[str] = set()
    changed: list[str] = []
    for t in graph.inputs:
        readers = consumers.get(t, [])
        if readers and t not in graph.outputs and all(n.op == "transpose" and n.attrs.perm == TO_NHWC for n in readers):
            shape = graph.tensors[t].shape
            b.tensors[t] = TensorType(tuple(shape[i] for i in TO_NHWC))
            for n in readers:
                dropped.add(n.name)
                renamed[n.outputs[0]] = t
            changed.append(t)
    for t in graph.outputs:
        last = producers.get(t)
        if last is not None and last.op == "transpose" and last.attrs.perm == TO_NCHW and t not in consumers and last.name not in dropped:
            source = last.inputs[0]
            if source in graph.inputs or source in graph.outputs or source in renamed:
                continue
            # keep the output's own name: the producer of the transposed value now makes it
            dropped.add(last.name)
            renamed[source] = t
            b.tensors[t] = graph.tensors[source]
            changed.append(t)
    for n in graph.nodes:
        if n.name in dropped:
            continue
        b.append(
            replace(
                n,
                inputs=tuple(renamed.get(t, t) for t in n.inputs),
                outputs=tuple(renamed.get(t, t) for t in n.outputs),
            )
        )
    return b.freeze().with_metadata(io_layout="nhwc", nhwc_io=",".join(changed))
