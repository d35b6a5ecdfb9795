"""Metrics against definitions written out."""

from __future__ import annotations

import numpy as np
import pytest

from qwtv2_edge.errors import UsageError
from qwtv2_edge.metrics import Agreement, default_metric, new_metric


def over_batches(name, outputs, inputs, labels, size=7):
    metric = new_metric(name)
    for i in range(0, len(outputs), size):
        metric.update([outputs[i : i + size]], [inputs[i : i + size]], None if labels is None else labels[i : i + size])
    return metric.value()


def test_top_k(rng):
    outputs, labels = rng.normal(size=(50, 8)).astype(np.float32), rng.integers(0, 8, 50)
    ranks = [(row > row[label]).sum() for row, label in zip(outputs, labels, strict=True)]
    assert over_batches("top1", outputs, outputs, labels) == np.mean([r < 1 for r in ranks])
    assert over_batches("top5", outputs, outputs, labels) == np.mean([r < 5 for r in ranks])


def test_top1_gives_ties_to_the_lower_index():
    outputs = np.array([[1, 1, 0], [1, 1, 0]], np.float32)
    assert over_batches("top1", outputs, outputs, np.array([0, 1])) == 0.5


def test_auc_is_the_share_of_ordered_pairs(rng):
    scores, labels = rng.integers(0, 6, (60, 1)).astype(np.float32), rng.integers(0, 2, 60)
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1, 0] for n in scores[labels == 0, 0]]
    assert over_batches("auc", scores, np.zeros((60, 3)), labels) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_auc_of_a_reconstruction_scores_its_error(rng):
    inputs = rng.normal(size=(20, 5)).astype(np.float32)
    labels = np.arange(20) % 2
    outputs = inputs + labels[:, None].astype(np.float32)
    assert over_batches("auc", outputs, inputs, labels) == 1.0


def test_mse_and_cosine(rng):
    inputs, outputs = rng.normal(size=(2, 30, 4)).astype(np.float32)
    assert over_batches("mse", outputs, inputs, None) == pytest.approx(np.mean((outputs.astype(float) - inputs) ** 2), rel=1e-12)
    dot = (
        (outputs.astype(float) * inputs).sum(1)
        / np.linalg.norm(outputs.astype(float), axis=1)
        / np.linalg.norm(inputs.astype(float), axis=1)
    )
    assert over_batches("cosine", outputs, inputs, None) == pytest.approx(dot.mean(), rel=1e-12)
    target = rng.normal(size=(30, 4)).astype(np.float32)
    assert over_batches("mse", outputs, inputs, target) == pytest.approx(np.mean((outputs.astype(float) - target) ** 2), rel=1e-12)


def test_what_does_not_fit_is_refused(rng):
    outputs = rng.normal(size=(4, 3)).astype(np.float32)
    with pytest.raises(UsageError, match="needs labels"):
        over_batches("top1", outputs, outputs, None)
    with pytest.raises(UsageError, match="both classes"):
        over_batches("auc", outputs[:, :1], np.zeros((4, 2)), np.ones(4))
    with pytest.raises(UsageError, match="of the output's shape"):
        over_batches("mse", outputs, np.zeros((4, 9)), None)
    with pytest.raises(UsageError, match="one of: top1"):
        new_metric("top3")


@pytest.mark.parametrize(
    ("input_shape", "output_shape", "labels", "metric"),
    [
        ((1, 8), (1, 10), np.zeros(3, np.int64), "top1"),
        ((1, 8), (1, 1), np.zeros(3, np.uint8), "auc"),
        ((1, 8), (1, 8), np.zeros(3, np.uint8), "auc"),
        ((1, 8), (1, 8), None, "mse"),
        ((1, 8), (1, 10), None, ""),
        ((1, 8), (1, 10), np.zeros((3, 10), np.float32), "mse"),
    ],
)
def test_default_metric(input_shape, output_shape, labels, metric):
    assert default_metric(input_shape, output_shape, labels) == metric


def test_agreement_in_decibels():
    agreement = Agreement()
    agreement.update([np.array([[10.0, 0.0]])], [np.array([[11.0, 0.0]])])
    assert agreement.top1 == 1.0
    assert agreement.sqnr_db == pytest.approx(10 * np.log10(121))
    exact = Agreement()
    exact.update([np.ones((1, 2))], [np.ones((1, 2))])
    assert exact.sqnr_db is None
