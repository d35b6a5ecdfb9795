"""Networks that tests and benchmarks use, all by one name table: trained ones (``tiny_mlperf``) and seeded ones (``zoo``)."""

from __future__ import annotations

import numpy as np
from torch import nn

from models import tiny_mlperf, zoo


def build_net(name: str) -> nn.Module:
    """The eval-mode network called ``name``, channels-first float input in its own preprocessed domain."""
    return tiny_mlperf.BUILDERS[name]() if name in tiny_mlperf.BUILDERS else zoo.build(name)


def calibration_of(name: str, samples: int) -> np.ndarray:
    """float32 calibration inputs: trained networks' own data in seeded order, smooth images for the others."""
    if name in zoo.BUILDERS:
        return np.asarray(zoo.smooth_images(samples), np.float32)
    if name == "autoencoder":
        return tiny_mlperf.smooth_frames(samples)
    data, _ = tiny_mlperf.load_data(name, "calib")
    return data[np.random.default_rng(0).permutation(len(data))[:samples]]
