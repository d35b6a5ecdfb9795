"""A phone made of this machine: a folder as its storage, a Pixel 6's recorded texts, and stand-ins for Android's programs."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from daemon import Daemon, Faults

HERE = Path(__file__).parent
TEXTS = HERE / "pixel6"
TEMPORARY = "data/local/tmp"
RESULTS = "sdcard/Android/data/org.qwtv2.edge.demo/files/jobs"

#: cores of a Pixel 6: how many, Main ID register's part, highest frequency in kHz
CORES = ((4, "0xd05", 1803000), (2, "0xd0b", 2253000), (2, "0xd44", 2802000))
#: thermal zones in thousandths of a degree
ZONES = {"BIG": 41000, "MID": 39000, "LITTLE": 38000, "G3D": 37000, "soc_therm": 35120, "battery": 29300}


def furnish(root: Path) -> None:
    """Put the phone's folders, its ``/sys`` and its ``/proc`` into an empty folder."""
    for folder in (TEMPORARY, "sdcard", "proc"):
        (root / folder).mkdir(parents=True)
    parts = [(part, khz) for count, part, khz in CORES for _ in range(count)]
    cpuinfo = [f"processor\t: {i}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n" for i, (part, _) in enumerate(parts)]
    (root / "proc/cpuinfo").write_text("\n".join(cpuinfo) + "\nHardware\t: oriole\n")
    (root / "proc/loadavg").write_text("0.31 0.52 0.60 1/2831 14210\n")
    (root / "proc/uptime").write_text("86421.52 610203.11\n")
    (root / "proc/meminfo").write_text("MemTotal:        7759360 kB\nMemFree:          412044 kB\nMemAvailable:    3127816 kB\n")
    for i, (_, khz) in enumerate(parts):
        _write(root / f"sys/devices/system/cpu/cpu{i}/cpufreq", scaling_governor="sched_pixel", scaling_cur_freq=khz // 2)
        _write(root / f"sys/devices/system/cpu/cpu{i}/cpufreq", cpuinfo_max_freq=khz, scaling_max_freq=khz)
    for i, (name, value) in enumerate(ZONES.items()):
        _write(root / f"sys/class/thermal/thermal_zone{i}", type=name, temp=value)


def _write(folder: Path, **values: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n")


def arm_program(name: str, machine: int = 183) -> bytes:
    """The head of an ELF file for a processor (ARM, 64 bits), and the name of the stand-in that plays the rest."""
    return struct.pack("<4s5B7xHHI", b"\x7fELF", 2, 1, 1, 0, 0, 3, machine, 1) + bytes(40) + f"standin:{name}".encode()


def _playable(content: bytes) -> bytes:
    _, found, name = content.partition(b"standin:")
    return b'#!/bin/sh\nexec "$PYTHON" "$STANDINS/tools.py" ' + name + b' "$@"\n' if found and content.startswith(b"\x7fELF") else content


def environment(root: Path, place: str) -> dict[str, str]:
    """What the phone's daemon, and so every program on it, sees."""
    return {
        **os.environ,
        "PATH": f"{TEXTS / 'bin'}:{os.environ['PATH']}",
        "EXTERNAL_STORAGE": "/sdcard",
        "PHONE": str(root),
        "PLACE": place,
        "TEXTS": str(TEXTS),
        "STANDINS": str(HERE),
        "PYTHON": sys.executable,
    }


class Storage:
    """What lies and runs on a phone.

    Args:
        root: an empty folder, which is furnished.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        furnish(root)

    def app_fails(self, **how: Any) -> None:
        """See app.py."""
        (self.root / "app-fails.json").write_text(json.dumps(how))

    def left_behind(self) -> list[str]:
        """What is still on the phone, beside the app's own folders."""
        return [str(p.relative_to(self.root)) for folder in (TEMPORARY, RESULTS) for p in (self.root / folder).glob("*")]

    def app_runs(self) -> bool:
        """Whether the app's process is still there."""
        pid = self.root / "app.pid"
        return pid.exists() and Path(f"/proc/{pid.read_text().strip()}").exists()

    def close(self) -> None:
        """End the app, where the daemon was lost before it could."""
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self.root / "app.pid").read_text()), signal.SIGKILL)


class Phone(Storage):
    """A phone with the daemon of these tests.

    Args:
        root: an empty folder.
        place: where artifacts run, see ``runners.device.open_place``.
    """

    def __init__(self, root: Path, place: str = "host") -> None:
        super().__init__(root)
        self.daemon = Daemon(root, environment(root, place), _playable)

    @property
    def serial(self) -> str:
        return self.daemon.serial

    @property
    def faults(self) -> Faults:
        return self.daemon.faults

    def close(self) -> None:
        self.daemon.close()
        super().close()


class RealPhone(Storage):
    """A phone with Android's own daemon, in a mount namespace; see build_adbd.py."""

    def __init__(self, root: Path, adbd: Path) -> None:
        super().__init__(root)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.serial = f"127.0.0.1:{port}"
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--map-root-user", HERE / "phone_root.sh", root, adbd],
            env={**environment(root, "host"), "ADBD_PORT": str(port)},
            stdout=(root / "adbd.log").open("wb"),
            stderr=subprocess.STDOUT,
            process_group=0,
        )

    def wait(self) -> None:
        """Until the daemon takes connections. Raises RuntimeError: it ended."""
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(self.serial.rpartition(":")[2]))) == 0:
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError((self.root / "adbd.log").read_text())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        super().close()
