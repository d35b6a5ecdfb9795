"""Whole transformers: capture, quantize, compensate, emit every target, run every runtime, compare every byte."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from command import need_everything
from everywhere import assert_exact, targets_of
from models import build_net, calibration_of, transformers

import qwtv2_edge as qe
from qwtv2_edge.simulator.run import run_float
from qwtv2_edge_tflite.parse import parse

pytestmark = pytest.mark.runtime

#: float tensors stand only at the file's own inputs and outputs
BOUNDARY = {"QUANTIZE", "DEQUANTIZE", "RESHAPE", "TRANSPOSE"}


def samples_of(name: str, count: int) -> tuple[np.ndarray, ...]:
    found = calibration_of(name, count)
    return found if isinstance(found, tuple) else (found,)


@cache
def quantized(name: str, samples: int, *recipe: tuple[str, Any]) -> qe.Graph:
    graph = qe.capture(build_net(name), samples_of(name, 1))
    return qe.quantize(graph, samples_of(name, samples), dict(recipe)).graph


def float_operators(data: bytes) -> list[str]:
    """The operators of a .tflite file that touch a float tensor, in order."""
    model = parse(data)
    return [op.code for op in model.operators if any(t >= 0 and model.tensors[t].dtype == "float32" for t in (*op.inputs, *op.outputs))]


def test_vision_transformer_is_exact_everywhere(data_dir):
    need_everything()
    assert_exact(quantized("vit_mnist", 32), samples_of("vit_mnist", 2))


def test_no_float_op_between_the_ends_unless_allowed(data_dir):
    graph = quantized("vit_mnist", 32)
    codes = float_operators(qe.emit(graph.with_metadata(float_ops="forbid"), "tflite").data)
    assert codes.count("QUANTIZE") == codes.count("DEQUANTIZE") == 1
    assert set(codes) <= BOUNDARY
    assert set(float_operators(qe.emit(graph.with_metadata(float_ops="allow"), "tflite").data)) >= {"MUL", "ADD"}


def test_the_command_exports_a_transformer_to_every_target(cli, data_dir, tmp_path):
    need_everything()
    (tmp_path / "net.py").write_text("from models import build_net\n\ndef build():\n    return build_net('vit_mnist')\n")
    np.savez(tmp_path / "calib.npz", x=calibration_of("vit_mnist", 16))
    taken = targets_of(quantized("vit_mnist", 32))
    targets = [argument for target in taken for argument in ("--target", target)]
    done = cli(
        "export", f"{tmp_path / 'net.py'}:build", "--calibration", tmp_path / "calib.npz", "--out", tmp_path / "out", *targets, "--json"
    )
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["ok"]
    assert set(report["artifacts"]) == set(taken)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [(), (("weight_bits", 4), ("float_ops", "allow"))], ids=["w8", "w4-float"])
@pytest.mark.parametrize("name", list(transformers.FOLDERS))
def test_trained_transformers_are_exact_everywhere(name, recipe, data_dir):
    need_everything()
    assert_exact(quantized(name, 64, *recipe), samples_of(name, 8))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit_tiny", "mobilevit_xxs", "bert"])
def test_well_known_transformers_are_exact_everywhere(name):
    need_everything()
    assert_exact(quantized(name, 4), samples_of(name, 2))


@pytest.mark.slow
def test_sentence_encoder_is_exact_everywhere_and_close_to_float(require):
    """Pooling leaves the padding out, so that short sentences keep their embedding."""
    need_everything()
    require("tokenizers")
    require(transformers.SENTENCE_PACKAGE)
    graph, inputs = quantized("minilm", 32), transformers.tokenize(transformers.load_sentences("eval")[:4])
    assert_exact(graph, inputs)
    (wanted,) = run_float(qe.capture(build_net("minilm"), samples_of("minilm", 1)), inputs)
    (y,) = qe.simulate(graph, inputs, "litert-reference")
    assert float((y * wanted).sum(1).min()) > 0.95
