"""Tensor types: shape, dtype and affine quantization.

real = scale * (q - zero_point), per tensor or per slice of ``axis``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

#: dtypes of the IR. "int4" codes are held one per int8 element in memory, in [-8, 7].
DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "int8": np.dtype(np.int8),
    "int4": np.dtype(np.int8),
    "int16": np.dtype(np.int16),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "bool": np.dtype(np.bool_),
}

#: ops with weights, a bias and an accumulator -> output-channel axis of their weights as stored in the IR
WEIGHT_AXIS: dict[str, int] = {"conv2d": 0, "depthwise_conv2d": 3, "transpose_conv2d": 0, "fully_connected": 0}

#: inclusive code bounds of quantized dtypes
CODE_BOUNDS: dict[str, tuple[int, int]] = {
    "int4": (-8, 7),
    "int8": (-128, 127),
    "int16": (-32768, 32767),
    "int32": (-(2**31), 2**31 - 1),
}


def fits_int32(array: np.ndarray) -> bool:
    """True for arrays of any integer dtype whose values int32 holds."""
    low, high = CODE_BOUNDS["int32"]
    return array.dtype.kind in "iu" and (array.size == 0 or bool(low <= array.min() and array.max() <= high))


@dataclass(frozen=True, slots=True)
class Quantization:
    """Affine quantization of one tensor.

    Attributes:
        scale: float32-exact positive values (stored as Python floats); length 1, or shape[axis].
        zero_point: same length as ``scale``, in code units.
        axis: None for per-tensor, else the per-channel axis of the tensor as stored in the IR.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None

    @staticmethod
    def per_tensor(scale: float, zero_point: int) -> Quantization:
        return Quantization((float(np.float32(scale)),), (int(zero_point),), None)

    @staticmethod
    def per_channel(scale: np.ndarray, axis: int) -> Quantization:
        """Symmetric per-channel quantization (all zero points 0). scale: 1-D."""
        values = tuple(float(v) for v in np.asarray(scale, np.float32))
        return Quantization(values, (0,) * len(values), axis)

    @property
    def scale_array(self) -> np.ndarray:
        """float32, 1-D."""
        return np.asarray(self.scale, np.float32)


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape (static), dtype and, for integer tensors that stand for reals, quantization."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    quantization: Quantization | None = None

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes in a file or in memory; int4 counts two codes per byte."""
        return (self.size + 1) // 2 if self.dtype == "int4" else self.size * DTYPES[self.dtype].itemsize

    @property
    def code_bounds(self) -> tuple[int, int]:
        """Inclusive bounds of the codes."""
        return CODE_BOUNDS[self.dtype]

    @property
    def reach(self) -> int:
        """The largest size of a code less the zero point."""
        low, high = self.code_bounds
        return max(high - self.zero_point, self.zero_point - low)

    @property
    def scale(self) -> float:
        """The per-tensor scale (float32-exact)."""
        assert self.quantization is not None
        assert len(self.quantization.scale) == 1
        return self.quantization.scale[0]

    @property
    def zero_point(self) -> int:
        """The per-tensor zero point."""
        assert self.quantization is not None
        assert len(self.quantization.scale) == 1
        return self.quantization.zero_point[0]
