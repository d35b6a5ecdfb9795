"""Exact integer meanings of the ops that transformers add: products of two activations, normalisations, masks.

Signature and rule look-up as in ``integers``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qwtv2_edge import fixedpoint as fp
from qwtv2_edge.errors import GraphError
from qwtv2_edge.numerics import Numerics
from qwtv2_edge.ops.integers import Result, rule_of
from qwtv2_edge.ops.spec import Arrays, Types

F = np.float32
I = np.int64  # noqa: E741


def layer_norm_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    raise NotImplementedError


def l2_normalize_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    raise NotImplementedError


def batch_matmul_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    raise NotImplementedError


def mask_fill_integer(arrays: Arrays, attrs: Any, in_types: Types, out_types: Types, numerics: Numerics) -> Result:
    raise NotImplementedError
