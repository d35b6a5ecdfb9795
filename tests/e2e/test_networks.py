"""Whole networks: capture, quantize, compensate, emit every target, run every runtime, compare every byte."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from everywhere import assert_exact, targets_of
from models import build_net, calibration_of, tiny_mlperf, zoo

import qwtv2_edge as qe
from qwtv2_edge.simulator.run import run_float

pytestmark = pytest.mark.runtime

TRAINED = ("resnet8", "ds_cnn", "mobilenet_v1")


@cache
def float_graph(name: str) -> qe.Graph:
    return qe.capture(build_net(name), (calibration_of(name, 1),))


@cache
def quantized(name: str, *recipe: tuple[str, Any]) -> qe.QuantizedModel:
    samples = 24 if name in zoo.BUILDERS else 10_000
    return qe.quantize(
        float_graph(name), calibration_of(name, samples) if name != "autoencoder" else calibration_of(name, 128), dict(recipe)
    )


@pytest.mark.parametrize("recipe", [(), (("weight_bits", 4), ("io_dtype", "int8"), ("io_layout", "nhwc"))], ids=["w8", "w4-int8-nhwc"])
@pytest.mark.parametrize("name", list(tiny_mlperf.BUILDERS))
def test_trained_networks_are_exact_everywhere(name, recipe, data_dir):
    result = quantized(name, *recipe)
    assert_exact(result.graph, calibration_of(name, 8), 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(zoo.BUILDERS))
def test_networks_at_224_are_exact_everywhere(name):
    result = quantized(name)
    assert_exact(result.graph, zoo.smooth_images(1, seed=5), 1)
    artifact = qe.emit(result.graph, "executorch-xnnpack")
    blobs = {op.split("::")[0] for op in artifact.ops if op.startswith("XnnpackBackend")}
    assert len(blobs) == 1, "one delegate blob for the whole network"
    assert all(op.startswith("XnnpackBackend") for op in artifact.ops)


# ---------------------------------------------------------------- accuracy on data that calibration did not see


@cache
def evaluation(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(inputs, float outputs, truth): labels where there are any, else the float network's answer."""
    inputs, labels = tiny_mlperf.load_data(name, "eval")
    (wanted,) = run_float(float_graph(name), [inputs])
    return inputs, wanted, wanted.argmax(1) if labels is None else labels


def measured(name: str, numerics: str, *recipe: tuple[str, Any]) -> tuple[float, float]:
    """(top-1 in percent, output SQNR in dB) of the integer network."""
    inputs, wanted, truth = evaluation(name)
    (y,) = qe.simulate(quantized(name, *recipe).graph, inputs, numerics)
    noise = np.square((y - wanted).astype(np.float64)).sum()
    return 100 * float((y.argmax(1) == truth).mean()), float(10 * np.log10(np.square(wanted.astype(np.float64)).sum() / noise))


@pytest.mark.parametrize("numerics", ["litert-reference", "litert-xnnpack", "tflite-micro", "executorch-portable"])
@pytest.mark.parametrize(
    ("name", "least_top1", "least_sqnr"), [("resnet8", 75.65, 28.0), ("ds_cnn", 91.2, 30.9), ("mobilenet_v1", 99.0, 24.6)]
)
def test_8_bit_accuracy(name, least_top1, least_sqnr, numerics, data_dir):
    top1, sqnr = measured(name, numerics)
    assert top1 >= least_top1
    assert sqnr > least_sqnr


def test_4_bit_accuracy_is_repaired(data_dir):
    """ResNet8, float 75.95 %: plain 4-bit weights lose more than 15 points, compensated ones at most 6; 2.5 with both ends at 8."""
    plain, _ = measured("resnet8", "litert-xnnpack", ("weight_bits", 4), ("compensation", "none"))
    repaired, _ = measured("resnet8", "litert-xnnpack", ("weight_bits", 4))
    assert plain < 75.95 - 15
    assert repaired >= 75.95 - 6
    nodes = [n for n in float_graph("resnet8").nodes if n.op in ("conv2d", "fully_connected")]
    ends = {n.location.module_path: {"weight_bits": 8} for n in (nodes[0], nodes[-1])}
    inputs, _, truth = evaluation("resnet8")
    result = qe.quantize(float_graph("resnet8"), calibration_of("resnet8", 10_000), {"weight_bits": 4, "overrides": ends})
    (y,) = qe.simulate(result.graph, inputs, "litert-xnnpack")
    assert 100 * (y.argmax(1) == truth).mean() >= 75.95 - 2.5


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", TRAINED)
def test_compensation_never_costs_anything(name, bits, data_dir):
    """On unseen data cwac >= offset >= none by output SQNR; same ops, same file size, same weight bytes in every format."""
    kinds = {k: (("weight_bits", bits), ("compensation", k)) for k in ("none", "offset", "cwac")}
    sqnr = {k: measured(name, "litert-xnnpack", *recipe)[1] for k, recipe in kinds.items()}
    assert sqnr["cwac"] >= sqnr["offset"] >= sqnr["none"]
    graphs = {k: quantized(name, *recipe).graph for k, recipe in kinds.items()}
    for target in targets_of(graphs["none"]):
        artifacts = {k: qe.emit(g, target) for k, g in graphs.items()}
        assert len({a.ops for a in artifacts.values()}) == 1
        if target != "c":  # whose numbers are text
            assert len({len(a.data) for a in artifacts.values()}) == 1
    for tensor, array in graphs["none"].constants.items():
        if array.dtype == np.int8:
            np.testing.assert_array_equal(graphs["cwac"].constants[tensor], array)


@pytest.mark.parametrize("name", list(tiny_mlperf.BUILDERS))
def test_published_int8_files_simulate_exactly(name, data_dir):
    from qwtv2_edge.backends import Artifact

    data = (data_dir / tiny_mlperf.FOLDERS[name] / "ref_int8.tflite").read_bytes()
    report = qe.verify(qe.read_tflite(data), Artifact("tflite", data), samples=8)
    assert report.ok, report.text()
    assert {n for n, r in report.results.items() if r.status == "exact"} >= {"litert-reference", "litert-xnnpack", "tflite-micro"}
