"""What tests share that is no fixture: the project's root, required tools, seeds."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def missing(tool: str, reason: str) -> None:
    """Skip the running test because ``tool`` is absent; fail it if QWTV2_REQUIRE names the tool (or is "all")."""
    required = {t.strip() for t in os.environ.get("QWTV2_REQUIRE", "").split(",")}
    if required & {tool, "all"}:
        pytest.fail(f"{tool} is required by QWTV2_REQUIRE: {reason}", pytrace=False)
    pytest.skip(reason)


def seed_of(test_id: str) -> int:
    """A seed that depends on the test's id alone."""
    return int.from_bytes(hashlib.sha256(test_id.encode()).digest()[:4], "little")
