"""Networks of tests and benchmarks by one name table: trained ones (``tiny_mlperf``), seeded ones (``zoo``), ``transformers``."""

from __future__ import annotations

import numpy as np
from torch import nn

from models import tiny_mlperf, transformers, zoo


def build_net(name: str) -> nn.Module:
    """The eval-mode network called ``name``; float input is channels-first and in the network's own preprocessed domain."""
    for family in (tiny_mlperf, transformers):
        if name in family.BUILDERS:
            return family.BUILDERS[name]()
    return zoo.build(name)


def calibration_of(name: str, samples: int) -> np.ndarray | tuple[np.ndarray, ...]:
    """Calibration inputs, a tuple where there are several: trained networks' own data in seeded order, drawn inputs for the others."""
    if name in transformers.BUILDERS:
        return transformers.calibration_of(name, samples)
    if name in zoo.SMALL:
        return np.asarray(zoo.smooth_images(samples, zoo.SMALL[name][1]), np.float32)
    if name in zoo.BUILDERS:
        return np.asarray(zoo.smooth_images(samples), np.float32)
    if name == "autoencoder":
        return tiny_mlperf.smooth_frames(samples)
    data, _ = tiny_mlperf.load_data(name, "calib")
    return data[np.random.default_rng(0).permutation(len(data))[:samples]]
