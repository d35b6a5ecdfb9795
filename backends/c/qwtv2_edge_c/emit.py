"""Integer graph to one C99 file and its header.

The file holds the kernels that the network uses, its constants, one arena, and a run function with one call per node.
Values cross the boundary as codes: quantize and dequantize nodes at the ends are left out, their scales and zero points
are macros of the header. One comment line of JSON at the top tells a host how to call it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from qwtv2_edge.backends import Artifact, EmitOptions
from qwtv2_edge.c_text import comment, symbol
from qwtv2_edge.errors import Problem, QwtEdgeError, UnsupportedOpError, locate
from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.ir.serde import graph_hash
from qwtv2_edge.numerics import packed_key, rule_key
from qwtv2_edge.planner import Plan, integer_boundary, plan_graph
from qwtv2_edge_c.ops import CTYPES, RULES, Limit, Unit
from qwtv2_edge_c.source import merged

SCHEMA_VERSION = 1
#: begins the line that tells how the file is called
MARK = "/* qwtv2_edge "
#: of activations in the arena; kernels need no more than their elements do
ALIGNMENT = 4


@dataclass(frozen=True)
class Port:
    """One value that crosses the boundary.

    Attributes:
        port: number of the graph's input or output.
        tensor: the one that holds its codes.
        name: of the function that gives its address.
    """

    port: int
    tensor: str
    name: str


def check(graph: Graph) -> tuple[Problem, ...]:
    """Every node that can't become C, each with a code and a fix."""
    return build(graph)[1]


def emit(graph: Graph, options: EmitOptions) -> Artifact:
    """Emit an integer graph. Raises: UnsupportedOpError, with every offending node."""
    u, problems = build(graph)
    if problems:
        raise UnsupportedOpError(f"{len(problems)} nodes of '{graph.name}' have no form in c", problems)
    boundary = integer_boundary(graph)
    inputs, outputs = _ports(graph, "input", boundary.inputs), _ports(graph, "output", boundary.outputs)
    for port in (*inputs, *outputs):
        u.place(port.tensor)
    plans = [plan_graph(graph, alignment=ALIGNMENT, share=share, scratch=u.scratch, skip=boundary.skip) for share in (True, False)]
    digest = graph_hash(graph)
    facts = {
        "schema_version": SCHEMA_VERSION,
        "symbol": symbol(graph.name),
        "graph_hash": digest,
        "manifest": dict(options.manifest),
        "arena_bytes": plans[0].bytes,
        "nodes": u.traced,
        "graph_inputs": [_outside(graph, t) for t in graph.inputs],
        "graph_outputs": [_outside(graph, t) for t in graph.outputs],
        "inputs": [_facts(graph, p) for p in inputs],
        "outputs": [_facts(graph, p) for p in outputs],
    }
    text = _body(u, plans, facts, [*inputs, *outputs])
    header = _header(graph, plans, inputs, outputs)
    return Artifact("c", text.encode(), tuple(u.ops), tuple(u.nodes), (), digest, {"model.h": header.encode()})


def build(graph: Graph) -> tuple[Unit, tuple[Problem, ...]]:
    u, problems, boundary = Unit(graph), [], integer_boundary(graph)
    run = [n for n in graph.nodes if n.name not in boundary.skip]
    for node in run:
        found = list(_limits(graph, node))
        if not found:
            u.calls += ["", f"/* {comment(f'{node.op} {node.name}')}{_source(node)} */", f"QWTV2_TRACE({len(u.traced)});"]
            u.traced.append(node.name)
            try:
                with locate(node):
                    RULES[_key(graph, node)].emit(u, node)
            except QwtEdgeError as error:
                found.append(("range", error.message, error.fix))
        problems += [Problem(code, node.name, str(node.location), message, fix) for code, message, fix in found]
    made = {t for n in run for t in n.outputs}
    for name, (_, tensor) in zip(graph.outputs, boundary.outputs, strict=True):
        if tensor not in made:
            problems.append(Problem("output", name, "", "an output that no operator produces", "drop it, the caller has it already"))
    return u, tuple(problems)


def _source(node: Node) -> str:
    """The user's own line, with the file's name but not its folder."""
    where = node.location
    return f"    {comment(f'{PurePath(where.file).name}:{where.line}  {where.code}')}" if where.file else ""


def _key(graph: Graph, node: Node) -> str:
    key = rule_key(graph, node)
    return node.op if key == packed_key(node.op) else key


def _limits(graph: Graph, node: Node) -> Iterator[Limit]:
    types = (*graph.in_types(node), *graph.out_types(node))
    rule = RULES.get(_key(graph, node))
    if any(t.dtype == "float32" for t in types):
        yield "dtype", f"{node.op} on float32 data", "quantize the graph with qwtv2_edge.quantize"
    elif rule is None and node.op in RULES:
        yield "dtype", f"{node.op} on int16 activations", "give it 8 bits"
    elif rule is None:
        yield "op", f"there is no C kernel for {node.op}", "replace it with supported ops"
    else:
        unknown = sorted({t.dtype for t in types} - set(CTYPES))
        if unknown:
            yield "dtype", f"{node.op} on {', '.join(unknown)} data", "use 8, 16 or 32 bits"
        else:
            try:
                yield from rule.limits(graph, node)
            except QwtEdgeError as error:
                yield "range", error.message, error.fix


# ---------------------------------------------------------------- the boundary


def _ports(graph: Graph, direction: str, found: Sequence[tuple[int, str]]) -> list[Port]:
    return [Port(i, t, f"{symbol(graph.name)}_{direction}_{k}") for k, (i, t) in enumerate(found)]


def _outside(graph: Graph, tensor: str) -> dict[str, Any]:
    type = graph.tensors[tensor]
    return {"name": tensor, "dtype": type.dtype, "shape": list(type.shape)}


def _facts(graph: Graph, port: Port) -> dict[str, Any]:
    type = graph.tensors[port.tensor]
    facts: dict[str, Any] = {"port": port.port, "function": port.name, "dtype": type.dtype, "shape": list(type.shape)}
    if type.quantization is not None:
        facts |= {"scale": type.scale, "zero_point": type.zero_point}
    return facts


# ---------------------------------------------------------------- text

TOP = """\
/* {title}
   Integer arithmetic in C99: no allocation, no floating point, of the C library memcpy and memset alone.
   Write the input's codes to {symbol}_input_0(), call {symbol}_run(), read the output's codes from {symbol}_output_0() before
   an input is written again: they share memory.
   QWTV2_APART places every activation apart from all others that live beside it, for debugging; QWTV2_ARENA may hold an
   attribute that puts the arena into a memory section. QWTV2_TRACE(n) may be defined as a statement to run before node n.
   QWTV2_CMSIS_NN lets kernels call CMSIS-NN, whose headers must be on the include path. */
"""

CMSIS_NN = """\
#ifdef QWTV2_CMSIS_NN
#ifndef QWTV2_APART
#define QWTV2_APART
#endif
#ifndef QWTV2_CMSIS_NN_ROOM
#define QWTV2_CMSIS_NN_ROOM {room}
#endif
#endif"""

TRACE = """\
#ifndef QWTV2_TRACE
#define QWTV2_TRACE(node) ((void)0)
#endif"""


def _body(u: Unit, plans: Sequence[Plan], facts: Mapping[str, Any], ports: Sequence[Port]) -> str:
    headers, kernels = merged(["kernel", *u.kernels])
    headers = sorted({*headers, "<stdint.h>", "<string.h>"} if any("memcpy" in c for c in u.calls) else {*headers, "<stdint.h>"})
    parts = [
        _json_line(facts),
        TOP.format(title=comment(f"Network '{u.graph.name}'"), symbol=facts["symbol"]).rstrip(),
        "\n".join(f"#include {h}" for h in headers),
        CMSIS_NN.format(room=u.cmsis_room),
        "/* ---- kernels ---- */",
        kernels,
        "/* ---- constants of the network ---- */",
        "\n\n".join(u.definitions),
        "/* ---- memory: where each activation lies, in bytes ---- */",
        _arena(u, plans),
        "/* ---- the network ---- */",
        TRACE,
        *(_address(u, p) for p in ports),
        f"void {facts['symbol']}_run(void);",
        f"void {facts['symbol']}_run(void)\n{{{_indented(u.calls)}\n}}",
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _json_line(facts: Mapping[str, Any]) -> str:
    """The facts where no name can end the comment, begin another or make a trigraph."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return MARK + text.replace("*", "\\u002a").replace("?", "\\u003f") + " */"


def _indented(lines: Sequence[str]) -> str:
    return "".join("\n" + (line if not line or line.startswith("#") else f"    {line}") for line in lines)


def _arena(u: Unit, plans: Sequence[Plan]) -> str:
    def places(plan: Plan) -> str:
        rows = [f"    {u.names[t]} = {at}," for t, at in plan.offsets.items() if t in u.names]
        rows += [f"    {u.names[f'{n}/scratch']} = {at}," for n, at in plan.scratch.items()]
        return "\n".join(["enum {", *rows, f"    arena_size = {plan.bytes}", "};"])

    shared, apart = map(places, plans)
    return "\n".join(
        [
            "#ifndef QWTV2_APART",
            shared,
            "#else",
            apart,
            "#endif",
            "",
            "#ifndef QWTV2_ARENA",
            "#define QWTV2_ARENA",
            "#endif",
            "static QWTV2_ARENA union {",
            "    int8_t bytes[arena_size];",
            "    int32_t aligned;",
            "} arena;",
        ]
    )


def _declaration(graph: Graph, port: Port) -> str:
    return f"{CTYPES[graph.tensors[port.tensor].dtype]} *{port.name}(void)"


def _address(u: Unit, port: Port) -> str:
    declaration = _declaration(u.graph, port)
    return f"{declaration};\n{declaration}\n{{\n    return {u.use(port.tensor)};\n}}"


def _header(graph: Graph, plans: Sequence[Plan], inputs: Sequence[Port], outputs: Sequence[Port]) -> str:
    name = symbol(graph.name)
    upper = name.upper()
    lines = [
        f"/* {comment(f'Network {graph.name!r}')} */",
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "",
        "#include <stdint.h>",
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        "/* Inputs and outputs are codes: real value = scale * (code - zero point). */",
        "",
        "/* Bytes of the arena that the network's file holds. */",
        "#if !defined(QWTV2_APART) && !defined(QWTV2_CMSIS_NN)",
        f"#define {upper}_ARENA_BYTES {plans[0].bytes}",
        "#else",
        f"#define {upper}_ARENA_BYTES {plans[1].bytes}",
        "#endif",
    ]
    for direction, names, ports in (("input", graph.inputs, inputs), ("output", graph.outputs, outputs)):
        for i, port in enumerate(ports):
            type = graph.tensors[port.tensor]
            shape = "x".join(map(str, type.shape)) or "scalar"
            lines += ["", f"/* {comment(f'{direction} {names[port.port]}')}: {type.dtype}, {shape} */"]
            lines.append(f"#define {upper}_{direction.upper()}_{i}_SIZE {type.size}")
            if type.quantization is not None:
                lines.append(f"#define {upper}_{direction.upper()}_{i}_SCALE {np.float32(type.scale)}f")
                lines.append(f"#define {upper}_{direction.upper()}_{i}_ZERO_POINT ({type.zero_point})")
            lines.append(f"{_declaration(graph, port)};")
    lines += [
        "",
        "/* From inputs to outputs, which share memory: a run overwrites inputs, and outputs stay until an input is written again. */",
        f"void {name}_run(void);",
        "",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "",
        "#endif",
    ]
    return "\n".join(lines) + "\n"
