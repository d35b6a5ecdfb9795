"""Copies where LiteRT's memory planner would let one operator overwrite what another still reads.

The planner lays the output of RESHAPE on its input, and that of an operator of IN_PLACE on an input that is read no more. Before the
latter it asks who else reads that input, and who reads the tensor whose memory it has; tensors between the two it forgets. So in
ADD -> a, RESHAPE a -> r, ADD r -> s the last one overwrites ``a``. LiteRT 2.3 and tflite-runtime 2.14 both do where
no delegate takes these operators. TFLite Micro shares no memory, but its files run in LiteRT too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

from qwtv2_edge_tflite.ops import Emission, reshape_to
from qwtv2_edge_tflite.schema import OperatorRow

#: Source: LiteRT tflite/kernels, ``inplace_operator`` of their registrations
IN_PLACE = frozenset({"ADD", "SUB", "MUL", "DIV", "SOFTMAX"})


def copy_what_is_overwritten(e: Emission, nodes: Sequence[str]) -> list[str]:
    """Put a copy before every RESHAPE behind which something would be overwritten.

    Args:
        e: with all operators.
        nodes: the graph node of each.
    Returns: the graph node of each operator that there is now.
    """
    before, marked = e.operators, set(_dangerous(e.operators))
    out: list[str] = []
    e.operators = []
    for i, op in enumerate(before):
        if i in marked:
            source, name = e.rows[op.inputs[0]], nodes[i]
            shape = (1, prod(source.shape))
            flat, copy = (e.tensor(f"{name}/{hint}", shape, source.dtype, source.quantization) for hint in ("flat", "copy"))
            reshape_to(e, f"{name}/flat", op.inputs[0], flat, shape)
            e.op("TRANSPOSE", (flat, e.constant(f"{name}/in_order", (0, 1), "int32")), copy, "TransposeOptions")
            op = replace(op, inputs=(copy, *op.inputs[1:]))
        e.operators.append(op)
        out += [nodes[i]] * (len(e.operators) - len(out))
    return out


def _dangerous(operators: Sequence[OperatorRow]) -> Iterator[int]:
    """Numbers of RESHAPEs whose input has no memory of its own and is read after an operator of IN_PLACE has worked on their output."""
    maker = {op.outputs[0]: op for op in operators}
    readers: dict[int, list[int]] = {}
    for k, op in enumerate(operators):
        for t in set(op.inputs):
            readers.setdefault(t, []).append(k)

    def reshapes(tensor: int) -> set[int]:
        """``tensor`` and what RESHAPEs make of it."""
        found = {tensor}
        for k in readers.get(tensor, ()):
            if operators[k].code == "RESHAPE":
                found |= reshapes(operators[k].outputs[0])
        return found

    for i, op in enumerate(operators):
        root = op.inputs[0]
        if op.code != "RESHAPE" or root not in maker or maker[root].code not in IN_PLACE | {"RESHAPE"}:
            continue
        while root in maker and maker[root].code == "RESHAPE":
            root = maker[root].inputs[0]
        behind = reshapes(op.outputs[0])
        written = [k for t in behind for k in readers.get(t, ()) if operators[k].code in IN_PLACE]
        if written and any(k > min(written) for t in reshapes(root) - behind for k in readers.get(t, ())):
            yield i
