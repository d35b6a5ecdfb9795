"""Integer graph to ``.tflite`` bytes, written directly; no converter takes part."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

from qwtv2_edge.backends import Artifact, EmitOptions
from qwtv2_edge.errors import Problem, UnsupportedOpError, locate
from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.ir.serde import graph_hash
from qwtv2_edge.numerics import FLOAT_OPS, packed_key, rule_key
from qwtv2_edge_tflite import micro
from qwtv2_edge_tflite.inplace import copy_what_is_overwritten
from qwtv2_edge_tflite.numerics import NUMERICS
from qwtv2_edge_tflite.ops import Emission, Limit, Rule
from qwtv2_edge_tflite.schema import FlatModel, OperatorRow, serialize
from qwtv2_edge_tflite.sequence import FLOAT_FORMS, FORMS, MICRO_FORMS

MANIFEST_KEY = "qwtv2_edge.manifest"
RUNTIME_VERSION_KEY = "min_runtime_version"

#: (operator, version) -> first runtime that has it, where that is later than OLDEST_RUNTIME
#: Source: LiteRT tflite/tools/versioning/runtime_version.cc
OLDEST_RUNTIME = "1.14.0"
RUNTIME_VERSIONS = {
    ("BATCH_MATMUL", 2): "2.3.0",
    ("BATCH_MATMUL", 3): "2.4.0",
    ("CAST", 3): "2.8.0",
    ("CONCATENATION", 3): "2.3.0",
    ("CONV_2D", 4): "2.3.0",
    ("CONV_2D", 6): "2.9.0",
    ("CONV_2D", 7): "2.11.0",
    ("DEPTHWISE_CONV_2D", 5): "2.3.0",
    ("DEPTHWISE_CONV_2D", 7): "2.11.0",
    ("DEQUANTIZE", 3): "1.15.0",
    ("FULLY_CONNECTED", 5): "2.0.0",
    ("FULLY_CONNECTED", 7): "2.3.0",
    ("FULLY_CONNECTED", 10): "2.11.0",
    ("GELU", 2): "2.9.0",
    ("HARD_SWISH", 1): "1.15.0",
    ("MAXIMUM", 3): "2.3.0",
    ("MAXIMUM", 4): "2.3.0",
    ("MEAN", 3): "2.4.0",
    ("MINIMUM", 3): "2.3.0",
    ("MINIMUM", 4): "2.3.0",
    ("MUL", 3): "1.15.0",
    ("MUL", 4): "2.3.0",
    ("PAD", 3): "2.4.0",
    ("PADV2", 3): "2.4.0",
    ("QUANTIZE", 2): "1.15.0",
    ("REDUCE_MAX", 3): "2.5.0",
    ("RELU", 2): "2.1.0",
    ("RESIZE_BILINEAR", 3): "2.2.0",
    ("RESIZE_NEAREST_NEIGHBOR", 3): "2.3.0",
    ("SLICE", 4): "2.4.0",
    ("SLICE", 5): "2.5.0",
    ("STRIDED_SLICE", 4): "2.2.0",
    ("SUB", 3): "2.3.0",
    ("SUM", 2): "1.15.0",
    ("TRANSPOSE", 5): "2.4.0",
    ("TRANSPOSE_CONV", 3): "2.3.0",
}

#: what differs, in words, per IR op; ops whose rules agree on every numerics are not mentioned
DIFFERENCES = {
    "conv2d": "one rounding or two, float32 or integer: about 0.1 % of outputs differ by 1",
    "depthwise_conv2d": "one rounding or two, float32 or integer: about 0.1 % of outputs differ by 1",
    "transpose_conv2d": "one rounding or two, float32 or integer: about 0.1 % of outputs differ by 1",
    "batch_matmul": "one rounding or two, float32 or integer: about 0.1 % of outputs differ by 1",
    "fully_connected": "one rounding or two, float32, float64 or integer: about 0.1 % of outputs differ by 1",
    "add": "negative ties round apart: next to none at ordinary scales, up to 11 % at power-of-two scales",
    "sub": "negative ties round apart: next to none at ordinary scales, up to 11 % at power-of-two scales",
    "mul": "ties round apart: up to 1 % of outputs differ by 1",
    "mean": "other rounding of the average: 2 to 6 % of outputs differ by 1",
    "softmax": "fixed point or a float table: a few outputs in 100,000 differ by 1",
    "quantize": "inputs that lie half way between two codes round apart",
    "requantize": "an 8-bit multiplier on XNNPACK: about 6 % of outputs differ by 1",
    "leaky_relu": "an 8-bit multiplier on XNNPACK: about 10 % of outputs differ by 1",
    "resize_bilinear": "coordinates in 10 or 11 bits: about 15 % of outputs differ by 1",
    "logistic": "another way to the same table: no entry known to differ",
    "tanh": "another way to the same table: no entry known to differ",
    "elu": "another rounding of the same table: ties only",
    "prelu": "multipliers from float32 or float64 products: ties only",
    "dequantize": "one rounding or two in float32: last bit of the real value",
}


def check(graph: Graph, target: str = "tflite") -> tuple[Problem, ...]:
    """Every node the target can't take, each with a code and a fix."""
    problems: list[Problem] = []
    for node in graph.nodes:
        problems.extend(Problem(code, node.name, str(node.location), message, fix) for code, message, fix in _limits(graph, node, target))
    produced = {t for n in graph.nodes for t in n.outputs}
    for name in graph.outputs:
        if name not in produced:
            problems.append(Problem("output", name, "", "an output that no operator produces", "drop it, the caller has it already"))
    return tuple(problems)


def _form(graph: Graph, node: Node, target: str) -> tuple[Rule | None, bool]:
    """How ``node`` is emitted, and whether that is on float32 tensors of 16-bit codes; None where there is no form."""
    key = rule_key(graph, node)
    if key == packed_key(node.op):
        key = node.op
    if graph.metadata.get(FLOAT_OPS) == "allow" and key in FLOAT_FORMS:
        return FLOAT_FORMS[key], True
    return (MICRO_FORMS if target == "tflite-micro" and key in MICRO_FORMS else FORMS).get(key), False


def _limits(graph: Graph, node: Node, target: str) -> Iterator[Limit]:
    types = (*graph.in_types(node), *graph.out_types(node))
    if node.op not in ("quantize", "dequantize") and any(t.dtype == "float32" for t in types):
        yield "dtype", f"{node.op} on float32 data", "quantize the graph with qwtv2_edge.quantize"
        return
    rule, _ = _form(graph, node, target)
    if rule is None and node.op in FORMS:
        yield "dtype", f"{node.op} on int16 activations", "give it 8 bits"
        return
    if rule is None:
        yield "op", f"TFLite has no integer form of {node.op}", "replace it with supported ops"
        return
    with locate(node):
        yield from rule.limits(graph, node)


def emit(graph: Graph, target: str, options: EmitOptions) -> Artifact:
    """Emit an integer graph.

    Raises: UnsupportedOpError, with every offending node.
    """
    problems = check(graph, target)
    if problems:
        raise UnsupportedOpError(f"{len(problems)} nodes of '{graph.name}' have no form in {target}", problems)
    e = Emission(graph)
    inputs = tuple(e.use(t) for t in graph.inputs)
    nodes: list[str] = []
    for node in graph.nodes:
        rule, e.floats = _form(graph, node, target)
        assert rule is not None  # checked above
        with locate(node):
            rule.emit(e, node)
        nodes += [node.name] * (len(e.operators) - len(nodes))
    e.floats = False
    outputs, made_by = [], graph.producers()
    for t in graph.outputs:
        outputs.append(e.use(t))
        nodes += [made_by[t].name] * (len(e.operators) - len(nodes))  # the codes of a 16-bit output
    nodes = copy_what_is_overwritten(e, nodes)
    digest = graph_hash(graph)
    manifest = {"graph_hash": digest, **options.manifest}
    model = FlatModel(
        name=graph.name,
        description="qwtv2_edge",
        tensors=tuple(e.rows),
        operators=tuple(e.operators),
        inputs=inputs,
        outputs=tuple(outputs),
        metadata=(
            (RUNTIME_VERSION_KEY, runtime_version(e.operators).encode().ljust(16, b"\0")),
            (MANIFEST_KEY, json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()),
        ),
    )
    words = (*notes(graph), *(micro.notes(e.rows, e.operators) if target == "tflite-micro" else ()))
    return Artifact(target, serialize(model), tuple(op.code for op in e.operators), tuple(nodes), words, digest)


def runtime_version(operators: list[OperatorRow]) -> str:
    """The first TFLite runtime that has every operator, e.g. "2.3.0"."""
    found = [OLDEST_RUNTIME, *(RUNTIME_VERSIONS.get((op.code, op.version), OLDEST_RUNTIME) for op in operators)]
    return max(found, key=lambda v: [int(part) for part in v.split(".")])


def notes(graph: Graph) -> tuple[str, ...]:
    """Where this graph's outputs differ between runtimes, computed from their rules."""
    out = []
    tables = [n.for_graph(graph) for n in NUMERICS.values() if "@" not in n.name]
    for key, count in sorted(Counter(rule_key(graph, n) for n in graph.nodes).items()):
        op = key.partition(":")[0]
        by_rule: dict[str, list[str]] = {}
        for numerics in tables:
            by_rule.setdefault(numerics.rule(key) or numerics.rule(op), []).append(numerics.name)
        if len(by_rule) > 1 and op in DIFFERENCES:
            parts = "; ".join(f"{rule}: {', '.join(names)}" for rule, names in by_rule.items())
            out.append(f"{key} ({count}): {DIFFERENCES[op]} ({parts})")
    return tuple(out)
