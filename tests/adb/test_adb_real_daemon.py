"""What phones do in ordinary use, once more with Android's own daemon in place of ours."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator

import build_adbd
import pytest
from jobs import Kept
from phone import RealPhone
from requirements import missing
from test_adb import (  # noqa: F401 - collected here with the other phone
    test_a_crash_shows_the_last_lines_of_the_log,
    test_a_long_series_comes_in_parts_and_ends_in_time,
    test_an_app_that_hangs,
    test_an_interrupt_cleans_up,
    test_the_app_runs_both_formats_as_simulated,
    test_the_state_is_the_phones_and_says_that_it_is_emulated,
)

from qwtv2_edge.errors import RunError
from qwtv2_edge.runners.adb import AdbDevice

pytestmark = [pytest.mark.runtime, pytest.mark.slow]


@pytest.fixture(scope="module")
def adbd():
    """Android's daemon, built for this machine."""
    try:
        return build_adbd.program()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        missing("adbd", f"adbd can't be built: {error}")


@pytest.fixture
def phone(adbd, adb_server, tmp_path) -> Iterator[RealPhone]:
    allowed = shutil.which("unshare") and subprocess.run(["unshare", "--mount", "--map-root-user", "true"], check=False).returncode == 0
    if not allowed:
        missing("unshare", "mount namespaces are not allowed here")
    real = RealPhone(tmp_path / "phone", adbd)
    try:
        real.wait()
        adb_server("connect", real.serial)
        yield real
    finally:
        adb_server("disconnect", real.serial, check=False)
        real.close()


def test_a_daemon_that_is_killed_is_a_lost_phone(phone, job):
    kept = Kept()

    def kill_at_the_third_part() -> None:
        while len(parts) < 3:
            time.sleep(0.02)
        phone.close()

    parts: list[int] = []
    threading.Thread(target=kill_at_the_third_part, daemon=True).start()
    start = time.monotonic()
    with pytest.raises(RunError, match=f"the phone {phone.serial} was lost while reading"), AdbDevice().open(job) as timed:
        timed.block(10_000_000, 60.0, lambda series: (kept(series), parts.append(len(series))))
    assert kept
    assert time.monotonic() - start < 30
