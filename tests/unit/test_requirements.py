"""Missing tools skip a test, unless they are required."""

from __future__ import annotations

import pytest
from requirements import missing, seed_of


@pytest.mark.parametrize(
    ("required", "fails"), [("", False), ("tensorflow", False), ("qemu", True), ("tensorflow, qemu", True), ("all", True)]
)
def test_missing(monkeypatch, required, fails):
    monkeypatch.setenv("QWTV2_REQUIRE", required)
    with pytest.raises(pytest.fail.Exception if fails else pytest.skip.Exception):
        missing("qemu", "qemu is not installed")


def test_require_finds_modules(monkeypatch, require):
    monkeypatch.delenv("QWTV2_REQUIRE", raising=False)
    require("numpy")
    with pytest.raises(pytest.skip.Exception):
        require("a_module_that_does_not_exist")
    require("a tool", True)


def test_seeds_depend_on_the_test_alone():
    assert seed_of("tests/a.py::b") == 1287700441
    assert seed_of("tests/a.py::c") != seed_of("tests/a.py::b")
