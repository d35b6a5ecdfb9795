"""The handwritten digits and their fixed split. Needs numpy only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

DIGITS = Path(__file__).with_name("digits.npz")
SPLIT_SEED = 20
#: samples per part; together the 1797 of the data set
PARTS = {"train": 1097, "calibration": 100, "evaluation": 600}


def load_part(part: str) -> tuple[np.ndarray, np.ndarray]:
    """One part of the data.

    Args:
        part: key of PARTS.
    Returns: images uint8 (N, 1, 8, 8) in 0..16, labels uint8 (N,).
    """
    with np.load(DIGITS) as file:
        images, labels = file["images"], file["labels"]
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    names = list(PARTS)
    start = sum(PARTS[n] for n in names[: names.index(part)])
    chosen = order[start : start + PARTS[part]]
    return images[chosen][:, None], labels[chosen]
