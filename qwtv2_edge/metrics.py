"""Metrics over a stream of batches, in bounded memory.

Each metric is an accumulator: ``update(outputs, inputs, labels)`` per batch, then ``value()``.

1. top1, top5   share of samples whose label is among the k largest outputs (ties: the lower index wins).
2. auc          P(score of a positive > score of a negative), ties count half. The score is the output itself where
                there is one per sample, the last of two, or the reconstruction error where output and input agree in shape.
3. mse, cosine  against a float ``y`` of the output's shape, else against the input where the shapes agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import log10
from typing import Protocol

import numpy as np

from qwtv2_edge.errors import UsageError


class Metric(Protocol):
    """One number over many batches."""

    def update(self, outputs: Sequence[np.ndarray], inputs: Sequence[np.ndarray], labels: np.ndarray | None) -> None:
        """Take one batch; first axis = samples everywhere."""
        ...

    def value(self) -> float:
        """The metric over everything seen."""
        ...


@dataclass
class TopK:
    """Share of samples whose label is among the ``k`` largest outputs."""

    k: int
    hits: int = 0
    count: int = 0

    def update(self, outputs: Sequence[np.ndarray], inputs: Sequence[np.ndarray], labels: np.ndarray | None) -> None:
        labels = _need_labels(labels, f"top{self.k}")
        scores = outputs[0].reshape(len(labels), -1).astype(np.float64)
        chosen = np.argsort(-scores, axis=1, kind="stable")[:, : self.k]
        self.hits += int((chosen == labels.reshape(-1, 1)).any(axis=1).sum())
        self.count += len(labels)

    def value(self) -> float:
        return self.hits / self.count if self.count else 0.0


@dataclass
class Auc:
    """Area under the ROC curve; keeps one score per sample."""

    scores: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)

    def update(self, outputs: Sequence[np.ndarray], inputs: Sequence[np.ndarray], labels: np.ndarray | None) -> None:
        labels = _need_labels(labels, "auc").reshape(-1)
        out = outputs[0].reshape(len(labels), -1).astype(np.float64)
        if out.shape[1] <= 2:
            score = out[:, -1]
        elif outputs[0].shape == inputs[0].shape:
            score = ((out - inputs[0].reshape(out.shape)) ** 2).mean(axis=1)
        else:
            raise UsageError(
                f"auc needs one or two outputs per sample, or an output of the input's shape; got {out.shape[1]} outputs",
                fix="choose another --metric",
            )
        self.scores.append(score)
        self.labels.append(labels)

    def value(self) -> float:
        if not self.scores:
            return 0.0
        scores, labels = np.concatenate(self.scores), np.concatenate(self.labels) > 0
        positives, negatives = int(labels.sum()), int((~labels).sum())
        if not positives or not negatives:
            raise UsageError("auc needs samples of both classes in y", fix="give y with values 0 and 1")
        _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
        # mean rank of each distinct score
        ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]
        return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


@dataclass
class MeanSquaredError:
    """Mean squared error against ``y`` or the input."""

    total: float = 0.0
    count: int = 0

    def update(self, outputs: Sequence[np.ndarray], inputs: Sequence[np.ndarray], labels: np.ndarray | None) -> None:
        expected = _reference(outputs, inputs, labels, "mse")
        self.total += float(((outputs[0].astype(np.float64) - expected) ** 2).sum())
        self.count += expected.size

    def value(self) -> float:
        return self.total / self.count if self.count else 0.0


@dataclass
class Cosine:
    """Mean cosine similarity per sample against ``y`` or the input."""

    total: float = 0.0
    count: int = 0

    def update(self, outputs: Sequence[np.ndarray], inputs: Sequence[np.ndarray], labels: np.ndarray | None) -> None:
        expected = _reference(outputs, inputs, labels, "cosine")
        a = outputs[0].astype(np.float64).reshape(len(expected), -1)
        b = expected.astype(np.float64).reshape(len(expected), -1)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        self.total += float(((a * b).sum(axis=1) / np.where(norms == 0, 1.0, norms)).sum())
        self.count += len(a)

    def value(self) -> float:
        return self.total / self.count if self.count else 0.0


#: metric name -> a fresh accumulator
METRICS: dict[str, Callable[[], Metric]] = {
    "top1": lambda: TopK(1),
    "top5": lambda: TopK(5),
    "auc": Auc,
    "mse": MeanSquaredError,
    "cosine": Cosine,
}


def new_metric(name: str) -> Metric:
    """A fresh accumulator. Raises UsageError for an unknown name."""
    if name not in METRICS:
        raise UsageError(f"unknown metric '{name}'", fix=f"one of: {', '.join(METRICS)}")
    return METRICS[name]()


def default_metric(input_shape: Sequence[int], output_shape: Sequence[int], labels: np.ndarray | None) -> str:
    """The metric that fits the data.

    Whole-number labels: top1, or auc for one output or a reconstruction. Real labels, or none with an output of
    the input's shape: mse. Otherwise "" (nothing to measure against).
    """
    same = tuple(input_shape) == tuple(output_shape)
    if labels is None:
        return "mse" if same else ""
    if labels.dtype.kind in "iub" and labels.size == len(labels):
        return "auc" if same or int(np.prod(output_shape[1:])) == 1 else "top1"
    return "mse"


@dataclass
class Agreement:
    """How close a network's outputs are to the float network's: largest-output agreement and SQNR over all outputs."""

    same: int = 0
    count: int = 0
    signal: float = 0.0
    noise: float = 0.0

    def update(self, outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
        """Take one batch of real-valued outputs and what the float network gave."""
        for out, ref in zip(outputs, expected, strict=True):
            self.signal += float((ref.astype(np.float64) ** 2).sum())
            self.noise += float(((out.astype(np.float64) - ref) ** 2).sum())
        a, b = (x[0].reshape(len(x[0]), -1) for x in (outputs, expected))
        self.same += int((a.argmax(1) == b.argmax(1)).sum())
        self.count += len(a)

    @property
    def top1(self) -> float:
        return self.same / self.count if self.count else 0.0

    @property
    def sqnr_db(self) -> float | None:
        """None where there is no error at all, or no signal."""
        if self.noise <= 0.0 or self.signal <= 0.0:
            return None
        return 10.0 * log10(self.signal / self.noise)


def _need_labels(labels: np.ndarray | None, metric: str) -> np.ndarray:
    if labels is None:
        raise UsageError(f"metric '{metric}' needs labels", fix="add an array named y to the .npz, one label per sample")
    return labels


def _reference(outputs: Sequence[np.ndarray], inputs: Sequence[np.ndarray], labels: np.ndarray | None, metric: str) -> np.ndarray:
    for candidate in (labels, *inputs):
        if candidate is not None and candidate.shape == outputs[0].shape:
            return candidate
    raise UsageError(
        f"metric '{metric}' needs y, or an input, of the output's shape {outputs[0].shape[1:]}", fix="add a float array y to the .npz"
    )
