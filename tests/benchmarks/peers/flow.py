"""What the three flows share: arguments, the network and its calibration data, a clock per stage, one JSON line at the end."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models import build_net


class Flow:
    """One timed flow. Arguments of the process: NET CALIBRATION.npy OUT. The clock starts when it is made."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        name, calibration, self.out = sys.argv[1:4]
        self.module = build_net(name)
        self.calibration = np.load(calibration)
        self.stages: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """End a stage."""
        now = time.perf_counter()
        self.stages[stage] = round(now - self._last, 3)
        self._last = now

    def report(self, **more: Any) -> None:
        """Print the JSON line; the total ends with the last stage."""
        print(json.dumps({"stages": self.stages, "seconds": round(self._last - self._start, 3), **more}))
