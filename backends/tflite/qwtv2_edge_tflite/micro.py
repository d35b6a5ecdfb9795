"""Which TFLite Micro a file needs, and where its CMSIS-NN kernels can't stand in for the reference ones.

TFLite Micro has no releases, so a version is the date of a commit in tensorflow/tflite-micro.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwtv2_edge_tflite.schema import OperatorRow, TensorRow

Tensors = Sequence[TensorRow]


@dataclass(frozen=True, slots=True)
class Since:
    """Operators of ``code`` whose tensors satisfy ``when`` exist since ``date`` (``commit``). ``what``: the words for it."""

    code: str
    what: str
    date: str
    commit: str
    when: Callable[[Tensors], bool] = lambda tensors: True


def _first(dtype: str) -> Callable[[Tensors], bool]:
    return lambda tensors: tensors[0].dtype == dtype


def _packed(tensors: Tensors) -> bool:
    return tensors[1].dtype == "int4"


def _per_channel(tensors: Tensors) -> bool:
    q = tensors[1].quantization
    return q is not None and len(q.scale) > 1


def _grouped(tensors: Tensors) -> bool:
    return tensors[0].shape[3] != tensors[1].shape[3]


#: without an entry: there since the repository began in April 2021
HISTORY = (
    Since("GATHER", "GATHER", "2021-05-24", "dd3db3d81"),
    Since("TRANSPOSE", "TRANSPOSE", "2021-05-20", "560fd3d1d"),
    Since("RESIZE_BILINEAR", "RESIZE_BILINEAR", "2021-04-28", "27eff3c71"),
    Since("CONCATENATION", "16-bit CONCATENATION", "2021-06-22", "c062c1b27", _first("int16")),
    Since("MEAN", "16-bit MEAN", "2021-07-23", "5124fe335", _first("int16")),
    Since("SLICE", "SLICE", "2021-10-25", "284df73c5"),
    Since("PAD", "16-bit PAD", "2021-10-25", "284df73c5", _first("int16")),
    Since("MUL", "32-bit MUL", "2021-11-09", "8b47571d2", _first("int32")),
    Since("CONV_2D", "grouped CONV_2D", "2022-03-19", "ea94f7685", _grouped),
    Since("DIV", "DIV", "2022-07-20", "32b0fe993"),
    Since("SUM", "SUM", "2022-07-22", "7257cf16b"),
    Since("CONV_2D", "CONV_2D with packed 4-bit weights", "2022-10-14", "df704e135", _packed),
    Since("DEPTHWISE_CONV_2D", "DEPTHWISE_CONV_2D with packed 4-bit weights", "2022-11-22", "4f253e217", _packed),
    Since("MUL", "16-bit MUL", "2022-12-20", "3e7d66cc8", _first("int16")),
    Since("ADD", "32-bit ADD", "2023-03-30", "e87b788f2", _first("int32")),
    Since("DEPTHWISE_CONV_2D", "16-bit DEPTHWISE_CONV_2D", "2023-08-01", "a7846a175", _first("int16")),
    Since("BATCH_MATMUL", "BATCH_MATMUL", "2023-09-06", "5d542d7ed"),
    Since("MAXIMUM", "16-bit MAXIMUM", "2024-09-09", "19aaea85e", _first("int16")),
    Since("MINIMUM", "16-bit MINIMUM", "2024-09-09", "19aaea85e", _first("int16")),
    Since("FULLY_CONNECTED", "FULLY_CONNECTED with a scale per channel", "2024-09-27", "47b545074", _per_channel),
    Since("FULLY_CONNECTED", "16-bit FULLY_CONNECTED with a 32-bit bias", "2025-03-17", "39209b412", _first("int16")),
    Since("TRANSPOSE", "16-bit TRANSPOSE", "2025-03-17", "39209b412", _first("int16")),
)


def notes(rows: Sequence[TensorRow], operators: Sequence[OperatorRow]) -> tuple[str, ...]:
    """What a firmware build must know: the oldest TFLite Micro that has every operator in the form used, and kernels to leave out."""
    out = []
    needed: dict[Since, int] = {}
    for op in operators:
        tensors = [rows[i] for i in op.inputs]
        for entry in HISTORY:
            if entry.code == op.code and entry.when(tensors):
                needed[entry] = needed.get(entry, 0) + 1
    if needed:
        newest = max(needed, key=lambda entry: entry.date)
        out.append(f"needs TFLite Micro of {newest.date} (commit {newest.commit}) or newer: {newest.what} ({needed[newest]})")
    wide = sum(op.code == "FULLY_CONNECTED" and rows[op.inputs[0]].dtype == "int16" for op in operators)
    if wide:
        # tensorflow/lite/micro/kernels/cmsis_nn/fully_connected.cc at 90b983c2b: Prepare refuses, EvalQuantizedInt16 reads int64
        out.append(
            f"{wide} FULLY_CONNECTED on 16-bit activations: build TFLite Micro with its reference kernel for it; CMSIS-NN's reads the "
            "32-bit bias as 64-bit and refuses a scale per channel"
        )
    return tuple(out)
