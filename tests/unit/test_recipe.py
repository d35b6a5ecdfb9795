"""Recipes: typed, frozen, and clear about every mistake."""

from __future__ import annotations

import pytest

from qwtv2_edge.errors import RecipeError
from qwtv2_edge.quantization.recipe import Recipe


def test_round_trip_through_plain_data():
    recipe = Recipe(weight_bits=4, gain_limits=(0.5, 4.0), overrides={"features.*": {"weight_bits": 8, "gain_limits": [0.8, 1.5]}})
    assert Recipe.from_mapping(recipe.to_mapping()) == recipe


def test_toml(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('weight_bits = 4\nobserver = "mse"\n[overrides."head*"]\nweight_bits = 8\n')
    recipe = Recipe.from_toml(path)
    assert recipe.weight_bits == 4
    assert recipe.observer == "mse"
    assert recipe.for_node("head.0").weight_bits == 8
    assert recipe.for_node("body").weight_bits == 4


@pytest.mark.parametrize(
    ("items", "needle"),
    [
        ({"weight_bit": 4}, "nearest known key: 'weight_bits'"),
        ({"weight_bits": 5}, "weight_bits is 5"),
        ({"weight_bits": True}, "weight_bits is True"),
        ({"observer": "max"}, "'minmax', 'percentile', 'mse', 'entropy'"),
        ({"holdout": 1.5}, "between 0 and 1"),
        ({"holdout": "a"}, "must be a number"),
        ({"gain_limits": [0.5]}, "must be 2 numbers"),
        ({"gain_limits": [0.01, 2]}, "gain_limits"),
        ({"percentile": 3}, "percentile"),
        ({"seed": -1}, "seed"),
        ({"activation_bits": 12}, "one of: 8, 16"),
        ({"weight_storage": "packed"}, "needs 4-bit weights"),
        ({"overrides": {"a": {"io_dtype": "int8"}}}, "can't be set per node"),
        ({"overrides": {"a": {"weight_bitz": 8}}}, "nearest known key: 'weight_bits'"),
        ({"overrides": {"a": 3}}, "must be a table"),
    ],
)
def test_mistakes_are_named(items, needle):
    with pytest.raises(RecipeError) as caught:
        Recipe.from_mapping(items)
    assert needle in str(caught.value)


def test_later_overrides_win_and_packed_falls_back_for_8_bit_nodes():
    recipe = Recipe(
        weight_bits=4,
        weight_storage="packed",
        overrides={"*": {"compensation": "none"}, "a.*": {"weight_bits": 8, "compensation": "offset"}},
    )
    node = recipe.for_node("a.conv")
    assert (node.weight_bits, node.weight_storage, node.compensation) == (8, "int8", "offset")
    assert recipe.for_node("b").compensation == "none"


@pytest.mark.parametrize("content", [b"weight_bits = ", b"\xff\xfe"])
def test_bad_files(tmp_path, content):
    path = tmp_path / "r.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match="not valid TOML"):
        Recipe.from_toml(path)
    with pytest.raises(RecipeError, match="can't read"):
        Recipe.from_toml(tmp_path / "missing.toml")
