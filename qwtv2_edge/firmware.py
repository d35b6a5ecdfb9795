"""What a firmware engineer needs beside a network: its bytes as C arrays, the operators to link, memory to set aside, constants of
its inputs and outputs, golden vectors, and a self-test that compares every byte with them on the board.

:func:`complete` adds these files to the artifact of a target that is a folder. Everything generated compiles as C99 or C++11 and
depends on the graph, the samples and the versions of tools alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qwtv2_edge.backends import Artifact, get_numerics
from qwtv2_edge.c_text import comment, number_lines, symbol
from qwtv2_edge.ir.graph import Graph, Node
from qwtv2_edge.ir.types import DTYPES, TensorType
from qwtv2_edge.numerics import Numerics, rule_key
from qwtv2_edge.planner import integer_boundary, plan_graph
from qwtv2_edge.runners.arena import Arena, arena_of
from qwtv2_edge.runners.worker import CFile
from qwtv2_edge.simulator.run import check_inputs, join, run

#: samples that the self-test runs
GOLDEN_VECTORS = 3

CTYPES = {"int8": "int8_t", "int16": "int16_t", "int32": "int32_t", "int64": "int64_t", "float32": "float"}

#: operator of a .tflite -> method of MicroMutableOpResolver that registers it
#: Source: tflite-micro 90b983c2b, tensorflow/lite/micro/micro_mutable_op_resolver.h
RESOLVER_METHODS: Mapping[str, str] = {
    "ADD": "AddAdd",
    "ARG_MAX": "AddArgMax",
    "AVERAGE_POOL_2D": "AddAveragePool2D",
    "BATCH_MATMUL": "AddBatchMatMul",
    "CAST": "AddCast",
    "CONCATENATION": "AddConcatenation",
    "CONV_2D": "AddConv2D",
    "DEPTHWISE_CONV_2D": "AddDepthwiseConv2D",
    "DEQUANTIZE": "AddDequantize",
    "DIV": "AddDiv",
    "ELU": "AddElu",
    "FULLY_CONNECTED": "AddFullyConnected",
    "GATHER": "AddGather",
    "HARD_SWISH": "AddHardSwish",
    "L2_NORMALIZATION": "AddL2Normalization",
    "LEAKY_RELU": "AddLeakyRelu",
    "LOGISTIC": "AddLogistic",
    "MAXIMUM": "AddMaximum",
    "MAX_POOL_2D": "AddMaxPool2D",
    "MEAN": "AddMean",
    "MINIMUM": "AddMinimum",
    "MUL": "AddMul",
    "PAD": "AddPad",
    "PADV2": "AddPadV2",
    "PRELU": "AddPrelu",
    "QUANTIZE": "AddQuantize",
    "REDUCE_MAX": "AddReduceMax",
    "RELU": "AddRelu",
    "RELU6": "AddRelu6",
    "RESHAPE": "AddReshape",
    "RESIZE_BILINEAR": "AddResizeBilinear",
    "RESIZE_NEAREST_NEIGHBOR": "AddResizeNearestNeighbor",
    "SLICE": "AddSlice",
    "SOFTMAX": "AddSoftmax",
    "STRIDED_SLICE": "AddStridedSlice",
    "SUB": "AddSub",
    "SUM": "AddSum",
    "TANH": "AddTanh",
    "TRANSPOSE": "AddTranspose",
    "TRANSPOSE_CONV": "AddTransposeConv",
}


@dataclass(frozen=True)
class Port:
    """One input or output of the network as firmware sees it, with its golden values.

    Attributes:
        name: the network's own.
        type: shape, dtype and quantization of what lies in memory.
        golden: values of ``type.dtype``, first axis = vectors.
    """

    name: str
    type: TensorType
    golden: np.ndarray


Ports = Mapping[str, Sequence[Port]]


def complete(artifact: Artifact, graph: Graph, samples: Sequence[np.ndarray]) -> Artifact:
    """The artifact with every file of its folder; an artifact of a target that is one file comes back as it is.

    Args:
        artifact: as its backend emitted it from ``graph``.
        graph: integer.
        samples: one array per graph input, first axis = samples; the first three become the golden vectors.
    Raises: UnsupportedOpError: nodes that the runtime can't execute. MissingToolError: no TFLite Micro to measure the arena with.
        RunError: TFLite Micro refuses the file. UsageError: samples that do not fit.
    """
    if artifact.target not in FOLDER_FILES:
        return artifact
    table = get_numerics(artifact.target)
    table.require(graph)
    checked = check_inputs(graph, samples)
    few = [a[: GOLDEN_VECTORS * graph.tensors[t].shape[0]] for a, t in zip(checked, graph.inputs, strict=True)]
    files = FOLDER_FILES[artifact.target](artifact, graph, few, table)
    return replace(artifact, files={**artifact.files, **{name: text.encode() for name, text in files.items()}})


def _ports(graph: Graph, names: Iterable[str], values: Iterable[np.ndarray]) -> list[Port]:
    out = []
    for name, array in zip(names, values, strict=True):
        type = graph.tensors[name]
        out.append(Port(name, type, np.asarray(array, DTYPES[type.dtype]).reshape(-1, type.size)))
    return out


# ---------------------------------------------------------------- pieces of C


def _literal(value: Any, dtype: str) -> str:
    """A number that a C compiler reads back as the same bits."""
    if dtype != "float32":
        return "INT32_MIN" if value == -(2**31) else str(int(value))
    text = f"{float(value):.9g}"  # nine digits tell every float32 from its neighbours
    return f"{text if set(text) & set('.e') else text + '.0'}f"


def _header(name: str, body: str, includes: Sequence[str] = ()) -> str:
    """A header file: guard, includes, body."""
    guard = f"{name.upper().replace('.', '_')}_"
    lines = "".join(f"#include {i}\n" for i in includes)
    return f"#ifndef {guard}\n#define {guard}\n\n{lines}{chr(10) if lines else ''}{body}\n#endif  /* {guard} */\n"


def _quantization_header(prefix: str, ports: Ports) -> str:
    """What firmware needs to fill inputs and to read outputs, as macros."""
    lines = ["/* real value = scale * (code - zero point) */\n"]
    for kind, found in ports.items():
        lines.append(f"#define {prefix.upper()}_{kind.upper()}S {len(found)}")
        for i, port in enumerate(found):
            name, type = f"{prefix.upper()}_{kind.upper()}_{i}", port.type
            lines.append(f"\n/* {comment(f'{kind} {i}: {port.name}')}, {type.dtype} ({', '.join(map(str, type.shape))}) */")
            lines.append(f"#define {name}_TYPE {CTYPES[type.dtype]}")
            lines.append(f"#define {name}_SIZE {type.size}")
            if type.quantization is not None:
                lines.append(f"#define {name}_SCALE {_literal(type.scale, 'float32')}")
                lines.append(f"#define {name}_ZERO_POINT ({type.zero_point})")
        lines.append("")
    return _header(f"{prefix}_quantization.h", "\n".join(lines), ["<stdint.h>"])


def _golden_header(prefix: str, ports: Ports) -> str:
    """Declarations of the golden vectors, an array of one row per vector for every input and output."""
    count = len(ports["input"][0].golden)
    body = f"""/* inputs, and what the network must give for them */
#define {prefix.upper()}_GOLDEN_VECTORS {count}

#ifdef __cplusplus
extern "C" {{
#endif
{"".join(f"extern {_golden_array(prefix, kind, i, p)};{chr(10)}" for kind, found in ports.items() for i, p in enumerate(found))}\
#ifdef __cplusplus
}}
#endif
"""
    return _header(f"{prefix}_golden.h", body, ["<stdint.h>"])


def _golden_array(prefix: str, kind: str, number: int, port: Port) -> str:
    size = f"[{prefix.upper()}_GOLDEN_VECTORS][{port.type.size}]"
    return f"const {CTYPES[port.type.dtype]} {prefix}_golden_{kind}_{number}{size}"


def _golden_source(header: str, prefix: str, ports: Ports) -> str:
    parts = [f'#include "{header}"\n']
    for kind, found in ports.items():
        for i, port in enumerate(found):
            rows = (f"{{\n{number_lines(_literal(x, port.type.dtype) for x in row)}\n}}" for row in port.golden)
            parts.append(f"{_golden_array(prefix, kind, i, port)} = {{\n{f',{chr(10)}'.join(rows)}\n}};\n")
    return "\n".join(parts)


# ---------------------------------------------------------------- tflite-micro


def _micro_files(artifact: Artifact, graph: Graph, inputs: Sequence[np.ndarray], table: Numerics) -> dict[str, str]:
    ports = {"input": _ports(graph, graph.inputs, inputs), "output": _ports(graph, graph.outputs, run(graph, inputs, table))}
    arena, prefix = arena_of(artifact.data), f"{symbol(graph.name)}_model"
    operators = sorted(set(artifact.ops))
    resolver = RESOLVER.format(count=len(operators), prefix=prefix)
    return {
        "model_data.h": _data_header(prefix, len(artifact.data), arena),
        "model_data.cc": _data_source(prefix, artifact.data),
        "model_resolver.h": _header(f"{prefix}_resolver.h", resolver, [RESOLVER_INCLUDE]),
        "model_resolver.cc": _resolver_source(prefix, operators),
        "model_quantization.h": _quantization_header(prefix, ports),
        "model_golden.h": _golden_header(prefix, ports),
        "model_golden.cc": _golden_source("model_golden.h", prefix, ports),
        "model_selftest.h": _header(f"{prefix}_selftest.h", _micro_selftest_declaration(prefix), ["<stddef.h>", "<stdint.h>"]),
        "model_selftest.cc": _micro_selftest(prefix, ports),
        "README.md": _micro_readme(artifact, graph, ports, arena, operators, prefix),
    }


def _data_header(prefix: str, size: int, arena: Arena) -> str:
    name = prefix.upper()
    body = f"""#define {name}_DATA_BYTES {size}u

/* Arena of tflite::MicroInterpreter with TFLite Micro's reference kernels: {arena.head} bytes of activations, the rest its own
   records. Kernels of other sets may want scratch buffers on top. */
#if UINTPTR_MAX > 0xFFFFFFFFu
#define {name}_ARENA_BYTES {arena.bytes}u /* measured */
#else
#define {name}_ARENA_BYTES {arena.bytes_32}u /* upper estimate from the measured one, see README.md */
#endif

extern const unsigned char {prefix}_data[{name}_DATA_BYTES];
"""
    return _header(f"{prefix}_data.h", body, ["<stdint.h>"])


def _data_source(prefix: str, data: bytes) -> str:
    numbers = number_lines(f"0x{b:02x}" for b in data)
    return f"""#include "model_data.h"

alignas(16) const unsigned char {prefix}_data[{prefix.upper()}_DATA_BYTES] = {{
{numbers}
}};
"""


RESOLVER_INCLUDE = '"tensorflow/lite/micro/micro_mutable_op_resolver.h"'
RESOLVER = """/* The operators that the network uses and no others. */
using {prefix}_resolver = tflite::MicroMutableOpResolver<{count}>;

TfLiteStatus {prefix}_register({prefix}_resolver& resolver);
"""


def _resolver_source(prefix: str, operators: Sequence[str]) -> str:
    calls = "".join(f"  if (resolver.{RESOLVER_METHODS[o]}() != kTfLiteOk) return kTfLiteError;\n" for o in operators)
    return f"""#include "model_resolver.h"

TfLiteStatus {prefix}_register({prefix}_resolver& resolver) {{
{calls}  return kTfLiteOk;
}}
"""


def _micro_selftest_declaration(prefix: str) -> str:
    return f"""/* Runs every golden vector in an interpreter of its own on `arena` (16-byte aligned, {prefix.upper()}_ARENA_BYTES or more).
   Returns the number of output bytes that differ, 0 where all is well; a negative number where the network did not run:
   -1 wrong schema version, -2 an operator could not be registered, -3 the arena is too small or an operator was refused,
   -4 inputs or outputs are not those of the golden vectors, -5 Invoke failed. */
int {prefix}_selftest(uint8_t* arena, size_t arena_bytes);
"""


def _micro_selftest(prefix: str, ports: Ports) -> str:
    def lines(kind: str, what: str) -> str:
        names = [f"{prefix}_golden_{kind}_{i}[v]" for i in range(len(ports[kind]))]
        return "".join(f"    {what.format(tensor=f'interpreter.{kind}({i})', golden=name)}\n" for i, name in enumerate(names))

    return f"""#include "model_selftest.h"

#include <string.h>

#include "model_data.h"
#include "model_golden.h"
#include "model_resolver.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {{

bool Fits(const TfLiteTensor* tensor, size_t bytes) {{ return tensor != nullptr && tensor->bytes == bytes; }}

bool Set(TfLiteTensor* tensor, const void* golden, size_t bytes) {{
  if (!Fits(tensor, bytes)) return false;
  memcpy(tensor->data.raw, golden, bytes);
  return true;
}}

bool Compare(const TfLiteTensor* tensor, const void* golden, size_t bytes, int& differences) {{
  if (!Fits(tensor, bytes)) return false;
  const unsigned char* expected = static_cast<const unsigned char*>(golden);
  const unsigned char* actual = reinterpret_cast<const unsigned char*>(tensor->data.raw);
  for (size_t i = 0; i < bytes; ++i) differences += expected[i] != actual[i];
  return true;
}}

}}  // namespace

int {prefix}_selftest(uint8_t* arena, size_t arena_bytes) {{
  const tflite::Model* model = tflite::GetModel({prefix}_data);
  if (model->version() != TFLITE_SCHEMA_VERSION) return -1;
  {prefix}_resolver resolver;
  if ({prefix}_register(resolver) != kTfLiteOk) return -2;
  tflite::MicroInterpreter interpreter(model, resolver, arena, arena_bytes);
  if (interpreter.AllocateTensors() != kTfLiteOk) return -3;
  int differences = 0;
  for (int v = 0; v < {prefix.upper()}_GOLDEN_VECTORS; ++v) {{
{lines("input", "if (!Set({tensor}, {golden}, sizeof {golden})) return -4;")}\
    if (interpreter.Invoke() != kTfLiteOk) return -5;
{lines("output", "if (!Compare({tensor}, {golden}, sizeof {golden}, differences)) return -4;")}\
  }}
  return differences;
}}

#ifdef QWTV2_SELFTEST_MAIN
alignas(16) static uint8_t g_arena[{prefix.upper()}_ARENA_BYTES];

int main() {{ return {prefix}_selftest(g_arena, sizeof g_arena) != 0; }}
#endif
"""


def _micro_readme(artifact: Artifact, graph: Graph, ports: Ports, arena: Arena, operators: Sequence[str], prefix: str) -> str:
    counts = Counter(artifact.ops)
    table = "".join(f"| {o} | {counts[o]} | `{RESOLVER_METHODS[o]}` |\n" for o in operators)
    # those that begin with an op compare runtimes
    ops = {n.op for n in graph.nodes}
    notes = "".join(f"* {n}\n" for n in artifact.notes if n.partition(" ")[0].partition(":")[0] not in ops)
    passing = arena.bytes - arena.head - arena.tail
    return f"""# {graph.name} for TFLite Micro

Drop this folder into a firmware project that builds TFLite Micro. Names begin with `{prefix}`: several networks can be linked together.

| file | what it is |
| --- | --- |
| `model.tflite` | the network, {len(artifact.data):,} bytes |
| `model_data.h`, `model_data.cc` | the same bytes as an array, aligned to 16; `{prefix.upper()}_ARENA_BYTES` |
| `model_resolver.h`, `model_resolver.cc` | registers the {len(operators)} operators that the network uses |
| `model_quantization.h` | sizes, scales and zero points of inputs and outputs |
| `model_golden.h`, `model_golden.cc` | {len(ports["input"][0].golden)} inputs and the outputs expected for them |
| `model_selftest.h`, `model_selftest.cc` | runs them and compares every byte |

```cpp
alignas(16) static uint8_t arena[{prefix.upper()}_ARENA_BYTES];
{prefix}_resolver resolver;
{prefix}_register(resolver);
tflite::MicroInterpreter interpreter(tflite::GetModel({prefix}_data), resolver, arena, sizeof arena);
interpreter.AllocateTensors();
```

Call `{prefix}_selftest(arena, sizeof arena)` once on the board, or compile `model_selftest.cc` with `-DQWTV2_SELFTEST_MAIN`: 0 means that
every output byte is the expected one. After shipping, the `.cc` files of golden vectors and self-test may be left out.

## Inputs and outputs
{_port_table(ports)}
## Memory
* Flash: {len(artifact.data):,} bytes for the network, plus TFLite Micro and the kernels of the operators below.
* RAM: an arena of {arena.bytes:,} bytes, the smallest that TFLite Micro accepts on a 64-bit machine with its reference kernels:
  {arena.head:,} bytes of activations (the same on every target), {arena.tail:,} bytes of records, and {passing:,} more that
  `AllocateTensors` needs for a moment: `interpreter.arena_used_bytes()` does not count those.
* For 32-bit targets {arena.bytes_32:,} bytes, an upper estimate: the records that are arrays of structures of pointers
  ({arena.pointers:,} bytes) count half, everything else as measured.
* CMSIS-NN's kernels want scratch buffers on top; enlarge the arena until `AllocateTensors` succeeds, then trim it.

## Operators
| operator | count | method of `MicroMutableOpResolver` |
| --- | --- | --- |
{table}
## Good to know
{notes}* The expected bytes are those of TFLite Micro's reference kernels. CMSIS-NN promises the same for 8-bit data; the self-test tells.
"""


def _port_table(ports: Ports) -> str:
    rows = ["| | name | type | shape | real value |", "| --- | --- | --- | --- | --- |"]
    for kind, found in ports.items():
        for i, port in enumerate(found):
            q, type = port.type.quantization, port.type
            real = "as it is" if q is None else f"{type.scale:.9g} * (code - ({type.zero_point}))"
            rows.append(f"| {kind} {i} | {port.name} | {CTYPES[type.dtype]} | {' x '.join(map(str, type.shape))} | {real} |")
    return "\n".join(rows) + "\n"


# ---------------------------------------------------------------- c


def _c_files(artifact: Artifact, graph: Graph, inputs: Sequence[np.ndarray], table: Numerics) -> dict[str, str]:
    facts = CFile(artifact.data).facts
    ports = _code_ports(graph, inputs, table)
    prefix = facts["symbol"]
    functions = {kind: [p["function"] for p in facts[f"{kind}s"]] for kind in ports}
    return {
        "golden.h": _golden_header(prefix, ports),
        "golden.c": _golden_source("golden.h", prefix, ports),
        "selftest.h": _header(f"{prefix}_selftest.h", C_SELFTEST_DECLARATION.format(prefix=prefix)),
        "selftest.c": _c_selftest(prefix, functions),
        "README.md": _c_readme(artifact, graph, ports, prefix, facts["arena_bytes"], table),
    }


def _code_ports(graph: Graph, inputs: Sequence[np.ndarray], table: Numerics) -> dict[str, list[Port]]:
    """Inputs and outputs as codes: what quantize nodes at the boundary make, and what dequantize nodes read."""
    boundary = integer_boundary(graph)
    names = {"input": [t for _, t in boundary.inputs], "output": [t for _, t in boundary.outputs]}
    seen: dict[str, list[np.ndarray]] = {t: [a] for t, a in zip(graph.inputs, inputs, strict=True)}

    def observe(node: Node, results: tuple[np.ndarray, ...]) -> None:
        for t, array in zip(node.outputs, results, strict=True):
            if t in names["input"] or t in names["output"]:
                seen.setdefault(t, []).append(array)

    run(graph, inputs, table, observe)
    ports = {kind: _ports(graph, found, (join(seen[t]) for t in found)) for kind, found in names.items()}
    outside = {"input": [graph.inputs[i] for i, _ in boundary.inputs], "output": [graph.outputs[i] for i, _ in boundary.outputs]}
    return {kind: [replace(p, name=name) for p, name in zip(ports[kind], outside[kind], strict=True)] for kind in ports}


C_SELFTEST_DECLARATION = """#ifdef __cplusplus
extern "C" {{
#endif
/* Runs every golden vector; returns the number of output bytes that differ, 0 where all is well. */
int {prefix}_selftest(void);
#ifdef __cplusplus
}}
#endif
"""


def _c_selftest(prefix: str, functions: Mapping[str, Sequence[str]]) -> str:
    def golden(kind: str, number: int) -> str:
        return f"{prefix}_golden_{kind}_{number}[v]"

    sets = "".join(f"        memcpy({f}(), {golden('input', i)}, sizeof {golden('input', i)});\n" for i, f in enumerate(functions["input"]))
    compares = "".join(
        f"        count += differences({golden('output', i)}, {f}(), sizeof {golden('output', i)});\n"
        for i, f in enumerate(functions["output"])
    )
    return f"""#include "selftest.h"

#include <stddef.h>
#include <string.h>

#include "golden.h"
#include "model.h"

static int differences(const void *expected, const void *actual, size_t bytes)
{{
    const unsigned char *e = expected;
    const unsigned char *a = actual;
    int count = 0;
    for (size_t i = 0; i < bytes; ++i) {{
        count += e[i] != a[i];
    }}
    return count;
}}

int {prefix}_selftest(void)
{{
    int count = 0;
    for (int v = 0; v < {prefix.upper()}_GOLDEN_VECTORS; ++v) {{
{sets}        {prefix}_run();
{compares}    }}
    return count;
}}

#ifdef QWTV2_SELFTEST_MAIN
int main(void)
{{
    return {prefix}_selftest() != 0;
}}
#endif
"""


def _c_readme(artifact: Artifact, graph: Graph, ports: Ports, prefix: str, arena_bytes: int, table: Numerics) -> str:
    plan = plan_graph(graph, alignment=4, skip=integer_boundary(graph).skip)
    constants = sum(graph.tensors[t].size_bytes for t in graph.constants)
    return f"""# {graph.name} in C

Portable C99: integer arithmetic, no allocation, no floating point. Names begin with `{prefix}`: several networks can be linked together.

| file | what it is |
| --- | --- |
| `model.c`, `model.h` | the network, the kernels it uses and its memory; scales and zero points as macros |
| `golden.h`, `golden.c` | {len(ports["input"][0].golden)} inputs and the outputs expected for them |
| `selftest.h`, `selftest.c` | runs them and compares every byte |

```c
memcpy({prefix}_input_0(), codes, {prefix.upper()}_INPUT_0_SIZE * sizeof(*{prefix}_input_0()));
{prefix}_run();
/* results from {prefix}_output_0() on */
```

`{prefix}_selftest()` returns the number of output bytes that are not the expected ones: 0 on every correct compiler and processor. With
`-DQWTV2_SELFTEST_MAIN` `selftest.c` has a `main` that returns 0 then. After shipping, `golden.c` and `selftest.c` may be left out.

## Inputs and outputs
{_port_table(ports)}
Codes of real values: `roundf(real / scale) + zero point`, held inside the type's range.

## Memory
* RAM: the arena in `model.c`, {arena_bytes:,} bytes (`{prefix.upper()}_ARENA_BYTES`); `{graph.nodes[plan.peak].name}` needs the most.
* Flash: {constants:,} bytes of weights and biases, and the code of {len(set(artifact.ops))} kernels.

## Good to know
* Inputs and outputs share memory: a run overwrites the inputs, and outputs stay until an input is written again.
* One context: the arena is static, so two tasks must not run the network at the same time.
* The expected bytes are those of TFLite Micro's reference kernels{_unlike_micro(graph, table)}.
"""


def _unlike_micro(graph: Graph, table: Numerics) -> str:
    """What is to be said of ops that ``table`` computes otherwise than TFLite Micro computes them in a .tflite of ``graph``."""
    micro = get_numerics("tflite-micro").for_graph(graph)
    ops = sorted({n.op for n in graph.nodes for key in [rule_key(graph, n)] if table.rule(key) != micro.rule(key)})
    return f", but for {', '.join(ops)}: it computes them in float32 or not at all" if ops else ""


FOLDER_FILES: Mapping[str, Callable[[Artifact, Graph, Sequence[np.ndarray], Numerics], dict[str, str]]] = {
    "tflite-micro": _micro_files,
    "c": _c_files,
}
