"""The user's choices, frozen and typed."""

from __future__ import annotations

import difflib
import fnmatch
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from qwtv2_edge.errors import RecipeError

#: gains outside this range are never folded, whatever the recipe says
HARD_GAIN_LIMITS = (1 / 8, 8.0)


@dataclass(frozen=True)
class Recipe:
    """How to quantize and compensate.

    Attributes:
        weight_bits: 8, or 4 (codes in [-7, 7]).
        weight_storage: "int8" keeps 4-bit codes one per byte, on the fast kernels everywhere; "packed" stores two
            per byte where the runtime has int4 kernels (.tflite only).
        activation_bits: 8, or 16 (8-bit weights) for the ops that have such a form; see ``quantization.widths``.
        residual_bits: of the sums that a LayerNorm reads (a transformer's residual stream); 16 costs next to nothing there.
        weight_granularity: one weight scale per output channel, or one per tensor.
        observer: how activation ranges are chosen from the calibration data.
        weight_observer: "minmax" takes the largest weight, "mse" the clip with the least squared error.
        percentile: share of values inside the range for observer "percentile", in percent.
        compensation: "none", "offset" (bias only) or "cwac" (gain and offset per channel).
        reference: fit against the float network's own activations ("global") or the float op on quantized inputs ("local").
        holdout: share of the calibration samples kept out of the fit, for the gates.
        gain_limits: smallest and largest gain that a fit may choose; within [1/8, 8] in size.
        float_ops: "forbid" allows no float op between the quantized input and output; "allow" computes normalisations and
            16-bit sums in float32 on every target; "auto" forbids on ``tflite`` and ``executorch-portable`` and allows on
            ``executorch-xnnpack``. All three are bit-exact.
        smoothing: "search" scales the channels of a LayerNorm's output down and the weights after it up where that lowers
            the error of those layers (see ``quantization.smooth``); "none" leaves them.
        io_dtype: dtype of the artifact's inputs and outputs.
        io_layout: "nchw" keeps the module's own shapes; "nhwc" drops the transposes at channels-first image inputs and outputs.
        seed: for every random choice (sample split).
        overrides: glob on module path -> any of the per-node fields (weight_bits, weight_granularity, weight_observer,
            weight_storage, activation_bits, residual_bits, observer, percentile, compensation, reference, gain_limits).
            Later entries win.
    """

    weight_bits: Literal[8, 4] = 8
    weight_storage: Literal["int8", "packed"] = "int8"
    activation_bits: Literal[8, 16] = 8
    residual_bits: Literal[8, 16] = 16
    weight_granularity: Literal["per_channel", "per_tensor"] = "per_channel"
    observer: Literal["minmax", "percentile", "mse", "entropy"] = "mse"
    weight_observer: Literal["minmax", "mse"] = "mse"
    percentile: float = 99.99
    compensation: Literal["none", "offset", "cwac"] = "cwac"
    reference: Literal["global", "local"] = "global"
    holdout: float = 0.25
    gain_limits: tuple[float, float] = (0.5, 2.0)
    float_ops: Literal["auto", "forbid", "allow"] = "auto"
    smoothing: Literal["search", "none"] = "search"
    io_dtype: Literal["float32", "int8"] = "float32"
    io_layout: Literal["nchw", "nhwc"] = "nchw"
    seed: int = 0
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hints = _hints()
        for f in fields(self):
            if f.name != "overrides":
                object.__setattr__(self, f.name, _checked(f.name, getattr(self, f.name), hints[f.name]))
        if not 0 < self.holdout < 1:
            raise RecipeError(f"holdout is {self.holdout}, must lie between 0 and 1", fix="for example holdout = 0.25")
        if not 50 < self.percentile <= 100:
            raise RecipeError(f"percentile is {self.percentile}, must be above 50 and at most 100", fix="for example percentile = 99.99")
        _check_gain_limits(self.gain_limits)
        if (
            self.weight_storage == "packed"
            and self.weight_bits != 4
            and not any(o.get("weight_bits") == 4 for o in dict(self.overrides).values() if isinstance(o, Mapping))
        ):
            raise RecipeError("weight_storage = 'packed' needs 4-bit weights", fix="set weight_bits = 4, or weight_storage = 'int8'")
        frozen: dict[str, Mapping[str, Any]] = {}
        if not isinstance(self.overrides, Mapping):
            raise RecipeError(f"overrides is {self.overrides!r}, must map a glob on module paths to recipe fields")
        for glob, items in self.overrides.items():
            if not isinstance(items, Mapping):
                raise RecipeError(f"overrides['{glob}'] is {items!r}, must be a table of recipe fields")
            checked = {}
            for key, value in items.items():
                if key not in NODE_FIELDS:
                    raise RecipeError(
                        f"overrides['{glob}']: '{key}' can't be set per node{_nearest(key, NODE_FIELDS)}",
                        fix=f"per-node fields: {', '.join(NODE_FIELDS)}",
                    )
                checked[key] = _checked(f"overrides['{glob}'].{key}", value, hints[key])
                if key == "gain_limits":
                    _check_gain_limits(checked[key])
            frozen[str(glob)] = MappingProxyType(checked)
        object.__setattr__(self, "overrides", MappingProxyType(frozen))

    @staticmethod
    def from_mapping(items: Mapping[str, Any]) -> Recipe:
        """A recipe from plain data. Raises RecipeError naming the nearest known key."""
        names = [f.name for f in fields(Recipe)]
        for key in items:
            if key not in names:
                raise RecipeError(f"unknown recipe key '{key}'{_nearest(key, names)}", fix=f"known keys: {', '.join(names)}")
        return Recipe(**items)

    @staticmethod
    def from_toml(path: str | Path) -> Recipe:
        """A recipe from a TOML file. Raises RecipeError on a missing, malformed or wrong file."""
        try:
            with open(path, "rb") as handle:
                items = tomllib.load(handle)
        except OSError as exc:
            raise RecipeError(f"can't read recipe {path}: {exc.strerror}", fix="give the path of a TOML file") from exc
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise RecipeError(f"{path} is not valid TOML: {exc}", fix="check the file's syntax") from exc
        return Recipe.from_mapping(items)

    def for_node(self, *paths: str) -> Recipe:
        """The recipe with every override whose glob matches one of ``paths`` applied, in order."""
        changes: dict[str, Any] = {}
        for glob, items in self.overrides.items():
            if any(fnmatch.fnmatchcase(p, glob) for p in paths if p):
                changes.update(items)
        if changes.get("weight_bits", self.weight_bits) == 8:
            changes["weight_storage"] = "int8"
        return replace(self, overrides={}, **changes)

    def to_mapping(self) -> dict[str, Any]:
        """Plain data, in field order; ``Recipe.from_mapping`` gives the same recipe back."""
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "overrides":
                value = {g: {k: list(v) if isinstance(v, tuple) else v for k, v in items.items()} for g, items in value.items()}
            out[f.name] = list(value) if isinstance(value, tuple) else value
        return out


NODE_FIELDS = (
    "weight_bits",
    "weight_storage",
    "activation_bits",
    "residual_bits",
    "weight_granularity",
    "weight_observer",
    "observer",
    "percentile",
    "compensation",
    "reference",
    "gain_limits",
)


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Recipe)


def _nearest(key: str, names: Any) -> str:
    close = difflib.get_close_matches(str(key), list(names), n=1, cutoff=0.0)
    return f" (nearest known key: '{close[0]}')" if close else ""


def _checked(name: str, value: Any, hint: Any) -> Any:
    """``value`` if it fits ``hint``; else RecipeError that lists what does."""
    if get_origin(hint) is Literal:
        allowed = get_args(hint)
        if value not in allowed or isinstance(value, bool):
            raise RecipeError(f"{name} is {value!r}", fix=f"one of: {', '.join(map(repr, allowed))}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, (tuple, list)) or len(value) != len(get_args(hint)):
            raise RecipeError(f"{name} is {value!r}, must be {len(get_args(hint))} numbers")
        return tuple(_checked(name, v, float) for v in value)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise RecipeError(f"{name} is {value!r}, must be a {'number' if hint is float else 'non-negative whole number'}")


def _check_gain_limits(limits: tuple[float, float]) -> None:
    low, high = limits
    if not (HARD_GAIN_LIMITS[0] <= low <= 1 <= high <= HARD_GAIN_LIMITS[1]):
        raise RecipeError(
            f"gain_limits is {limits}, must hold 1 and stay within {HARD_GAIN_LIMITS}", fix="for example gain_limits = [0.5, 2.0]"
        )
