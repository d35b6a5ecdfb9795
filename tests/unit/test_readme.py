"""The README names what there is."""

from __future__ import annotations

from pathlib import Path

from qwtv2_edge.backends import TARGETS, all_numerics
from qwtv2_edge.cli import app

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_every_target_and_numerics_is_in_the_table():
    for target in TARGETS:
        assert f"`{target}`" in README
    for name, numerics in all_numerics().items():
        if "@" not in name:
            (line,) = [row for row in README.splitlines() if f"| `{name}` |" in row]
            assert ("measured bound" in line) == (numerics.promise != "exact")
            for version in numerics.versions.values():
                assert version in line or name == "tflite-micro"


def test_every_command_is_named():
    for command in app.registered_commands:
        assert f"`{command.name}`" in README or f"qwtv2-edge {command.name}" in README or f"make {command.name}" in README, command.name
