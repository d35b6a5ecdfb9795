"""Per-batch arrays of many tensors, in memory up to a budget and in a temporary folder beyond it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np

BUDGET_BYTES = 1 << 30


class Spool:
    """A table (tensor, batch index) -> array. Use as a context manager; the folder goes with it."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self._budget = budget_bytes
        self._held: dict[tuple[str, int], np.ndarray] = {}
        self._bytes = 0
        self._files: dict[tuple[str, int], Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._next = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def put(self, tensor: str, batch: int, array: np.ndarray) -> None:
        if self._bytes + array.nbytes <= self._budget:
            self._held[tensor, batch] = array
            self._bytes += array.nbytes
            return
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="qwtv2-edge-")
        path = Path(self._folder.name) / f"{self._next}.npy"
        self._next += 1
        np.save(path, array)
        self._files[tensor, batch] = path

    def get(self, tensor: str, batch: int) -> np.ndarray:
        key = (tensor, batch)
        return self._held[key] if key in self._held else np.load(self._files[key])

    def drop(self, tensor: str, batches: int) -> None:
        """Forget every batch of ``tensor``."""
        for i in range(batches):
            array = self._held.pop((tensor, i), None)
            if array is not None:
                self._bytes -= array.nbytes
            path = self._files.pop((tensor, i), None)
            if path is not None:
                path.unlink()
