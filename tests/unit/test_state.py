"""What machines tell about themselves, in the form they tell it: texts as recorded, and the script itself in real shells."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from dataclasses import replace

import pytest

from qwtv2_edge.runners.state import SCRIPT, Core, doubts, parse


def text_of(*pairs):
    return "".join(f"{key}\t{value}\n" for key, value in pairs)


def cores_of(first, count, governor, current, top, limit):
    for n in range(first, first + count):
        yield from (
            (f"core.{n}.governor", governor),
            (f"core.{n}.current_khz", current),
            (f"core.{n}.max_khz", top),
            (f"core.{n}.limit_khz", limit),
        )


def processors(*parts):
    for n, part in enumerate(parts):
        yield from (("processor", n), ("implementer", "0x41"), ("part", part))


PIXEL_6 = text_of(
    ("machine", "aarch64"),
    ("system", "Linux"),
    ("release", "5.10.149-android13-4-00003-g05231a35ff43"),
    ("cores", 8),
    ("uptime", "93641.52 512360.11"),
    ("load_words", "10:21:33 up 1 day,  2:00,  0 users,  load average: 1.32, 0.94, 0.71"),
    *cores_of(0, 4, "sched_pixel", 738000, 1803000, 1803000),
    *cores_of(4, 2, "sched_pixel", 400000, 2253000, 2253000),
    *cores_of(6, 2, "sched_pixel", 500000, 2802000, 2802000),
    ("zone.0.type", "BIG"),
    ("zone.0.temp", 41000),
    ("zone.1.type", "MID"),
    ("zone.1.temp", 39000),
    ("zone.3.type", "G3D"),
    ("zone.3.temp", 44000),
    ("zone.9.type", "soc"),
    ("zone.9.temp", 87),
    ("zone.12.type", "battery"),
    ("zone.12.temp", 28900),
    ("ro.product.manufacturer", "Google"),
    ("ro.product.model", "Pixel 6"),
    ("ro.product.cpu.abi", "arm64-v8a"),
    ("ro.build.version.release", 13),
    *processors("0xd05", "0xd05", "0xd05", "0xd05", "0xd41", "0xd41", "0xd44", "0xd44"),
    ("memory_available_kb", 3411292),
    ("thermal_status", 0),
    ("hal", "41.3 BIG"),
    ("powered", "false"),
    ("powered", "true"),
    ("battery.level", 85),
    ("battery.tenths_c", 289),
)

RASPBERRY_PI_4 = text_of(
    ("machine", "aarch64"),
    ("system", "Linux"),
    ("release", "6.1.0-rpi7-rpi-v8"),
    ("cores", 4),
    ("model", "Raspberry Pi 4 Model B Rev 1.4"),
    ("uptime", "812.03 3101.77"),
    ("load", "0.08 0.11 0.05 1/141 1204"),
    *cores_of(0, 4, "performance", 1800000, 1800000, 1800000),
    ("zone.0.type", "cpu-thermal"),
    ("zone.0.temp", 48199),
    *processors("0xd08", "0xd08", "0xd08", "0xd08"),
    ("memory_available_kb", 3506236),
    ("os", '"Debian GNU/Linux 12 (bookworm)"'),
)

CONTAINER = text_of(
    ("machine", "x86_64"),
    ("system", "Linux"),
    ("release", "6.1.0"),
    ("cores", 2),
    ("load", "2.12 1.36 1.35 2/98 11244"),
    ("processor", 0),
    ("vendor", "GenuineIntel"),
    ("cpu", "Intel(R) Xeon(R) Processor"),
)

HOT_PHONE = PIXEL_6 + text_of(
    ("zone.0.temp", 93000),
    ("thermal_status", 3),
    *cores_of(6, 2, "sched_pixel", 500000, 2802000, 1426000),
)


def test_a_phone():
    described, state = parse(PIXEL_6)
    assert (described.name, described.abi, described.machine, described.cores) == ("Google Pixel 6", "arm64-v8a", "aarch64", 8)
    assert described.processor == "4 × Cortex-A55, 2 × Cortex-A78, 2 × Cortex-X1"
    assert described.os.startswith("Android 13, Linux 5.10")
    assert not described.emulated
    assert state.cores[6] == Core(6, "sched_pixel", 500, 2802, 2802)
    # neither the hotter GPU nor the battery's 87 percent that Qualcomm calls "soc"
    assert state.temperature_c == 41.3
    assert (state.thermal_status, state.load1, state.battery_level, state.battery_c, state.charging) == (0, 1.32, 85, 28.9, True)
    assert doubts(state, state) == ("the frequency governor of cores 0-7 is 'sched_pixel', not 'performance'",)


def test_a_board():
    described, state = parse(RASPBERRY_PI_4)
    assert described.name == "Raspberry Pi 4 Model B Rev 1.4"
    assert (described.abi, described.processor) == ("aarch64", "4 × Cortex-A72")
    assert described.os == "Debian GNU/Linux 12 (bookworm), Linux 6.1.0-rpi7-rpi-v8"
    assert (state.temperature_c, state.load1, state.uptime_s, state.governor) == (48.199, 0.08, 812.03, "performance")
    assert state.memory_available_bytes == 3506236 * 1024
    assert doubts(state, state) == ()


def test_a_container_that_tells_almost_nothing():
    described, state = parse(CONTAINER)
    assert (described.name, described.cores, described.emulated) == ("Intel(R) Xeon(R) Processor", 2, False)
    assert (state.cores, state.temperature_c, state.thermal_status, state.charging, state.governor) == ((), None, None, None, "")
    assert doubts(state, state) == ()


def test_a_hot_throttled_phone():
    said = doubts(parse(PIXEL_6)[1], parse(HOT_PHONE)[1])
    assert said == (
        "the processor is at 93 °C",
        "the thermal status is 3 (severe)",
        "throttled: cores 6-7 fell from 2802 to 1426 MHz",
        "the frequency governor of cores 0-7 is 'sched_pixel', not 'performance'",
    )


def test_only_the_cores_that_were_used_raise_doubts():
    said = doubts(parse(PIXEL_6)[1], parse(HOT_PHONE)[1], cores=(0, 1, 3))
    assert said[2:] == ("the frequency governor of cores 0-1, 3 is 'sched_pixel', not 'performance'",)


def test_a_frequency_that_fell_counts_where_the_governor_holds_it():
    before = parse(RASPBERRY_PI_4)[1]
    after = replace(before, cores=tuple(replace(c, current_mhz=600) for c in before.cores))
    assert doubts(before, after) == ("throttled: cores 0-3 fell from 1800 to 600 MHz",)
    idle = [replace(s, cores=tuple(replace(c, governor="ondemand") for c in s.cores)) for s in (before, after)]
    assert doubts(*idle) == ("the frequency governor of cores 0-3 is 'ondemand', not 'performance'",)


def test_a_limit_below_what_the_core_can_do():
    state = parse(RASPBERRY_PI_4 + text_of(("core.3.limit_khz", 1500000)))[1]
    assert doubts(state, state) == ("core 3 held to 1500 of 1800 MHz",)


def test_a_status_that_rose_below_moderate():
    before = parse(PIXEL_6)[1]
    assert "the thermal status rose from 0 (none) to 1 (light)" in doubts(before, replace(before, thermal_status=1))


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([("machine", "x86_64"), ("ro.product.cpu.abi", "x86_64"), ("ro.boot.qemu", 1)], "it says so (ro.boot.qemu = 1)"),
        ([("machine", "x86_64"), ("ro.product.cpu.abi", "arm64-v8a")], "its programs are for arm64-v8a, its kernel is x86_64"),
        ([("machine", "aarch64"), ("vendor", "GenuineIntel")], "it claims to be aarch64, its processor is GenuineIntel"),
        ([("machine", "x86_64"), ("cpu", "QEMU TCG CPU version 2.5+")], "its processor is 'QEMU TCG CPU version 2.5+'"),
        ([("machine", "aarch64"), ("ro.product.cpu.abi", "armeabi-v7a")], ""),
        ([("machine", "x86_64"), ("ro.kernel.qemu", 0)], ""),
        ([], ""),
    ],
)
def test_emulation_is_told_from_what_the_machine_claims(lines, why):
    described, _ = parse(text_of(*lines))
    assert (described.why_emulated, described.emulated) == (why, bool(why))


def test_the_runtimes_own_abi_counts():
    assert parse(CONTAINER, abi="aarch64")[0].emulated
    assert not parse(CONTAINER, abi="x86_64")[0].emulated


@pytest.mark.parametrize(
    ("zone", "raw", "celsius"),
    [
        ("cpu-thermal", "48199", 48.199),
        ("tsens_tz_sensor4", "309", 30.9),
        ("cpu0", "61", 61.0),
        ("soc-thermal", "55000", 55.0),
        ("soc", "55", None),
        ("cpu0", "200000", None),
        ("cpu0", "-274000", None),
        ("acpitz", "27800", 27.8),
        ("cpu0", "warm", None),
    ],
)
def test_units_of_temperatures(zone, raw, celsius):
    assert parse(text_of(("zone.0.type", zone), ("zone.0.temp", raw)))[1].temperature_c == celsius


GARBAGE = [
    "",
    "\n\t\n\t\t\n",
    "no tab at all\r\n" * 3,
    "cores\tmany\nload\tnan\nuptime\tinf\nthermal_status\t-1\nmemory_available_kb\t1e400\n",
    "cores\t0\nthermal_status\t99999\nzone.0.temp\t" + "9" * 5000 + "\n",
    "core.99999999999999999999.governor\tx\ncore.-1.governor\tx\ncore..governor\tx\ncore.1.\tx\nzone..temp\t1\n",
    "core.٣.governor\tx\ncores\t٣\nmachine\t\x1b[2J\x00evil\x7f\nmodel\t" + "m" * 100_000 + "\n",
    "hal\t\nhal\tNaN cpu\nhal\t50.5\nimplementer\t0x41\nmachine\t\udc80\n",
]


@pytest.mark.parametrize("text", GARBAGE)
def test_odd_text_never_fails(text):
    described, state = parse(text)
    assert described.cores >= 1
    assert len(described.name) <= 200
    assert described.name.isprintable()
    json.dumps([described.to_json(), state.to_json(), doubts(state, parse(HOT_PHONE)[1])], allow_nan=False).encode()


SHELLS = {"dash": ["dash"], "busybox": ["busybox", "sh"], "mksh": ["mksh"]}


def run_script(shell, script=SCRIPT, **env):
    """Run as a device would: the text on standard input, nothing else in the environment."""
    argv = [shutil.which(shell[0]), *shell[1:]]
    done = subprocess.run(argv, input=script, capture_output=True, text=True, env={"PATH": os.defpath, **env}, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", SHELLS)
def test_the_script_on_this_machine(name, require):
    require(name, shutil.which(name) is not None, f"no {name} here")
    described, state = parse(run_script(SHELLS[name], OMP_NUM_THREADS="1"))
    assert described.machine == os.uname().machine
    assert described.cores == len(os.sched_getaffinity(0))
    assert described.os.endswith(f"{os.uname().sysname} {os.uname().release}")
    assert state.load1 is not None
    assert state.memory_available_bytes > 1 << 20


CPUINFO = """\
processor\t: 0
CPU implementer\t: 0x41
CPU part\t: 0xd05

processor\t: 1
CPU implementer\t: 0x41
CPU part\t: 0xd44
"""
PHONE_FILES = {
    "proc/cpuinfo": CPUINFO,
    "proc/meminfo": "MemTotal:  7630000 kB\nMemAvailable:    3411292 kB\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "sched_pixel\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "738000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1803000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1500000\n",
    "sys/devices/system/cpu/cpu1/online": "1\n",
    "sys/class/thermal/thermal_zone0/type": "BIG\n",
    "sys/class/thermal/thermal_zone0/temp": "41000\n",
    "sys/class/power_supply/battery/type": "Battery\n",
    "sys/class/power_supply/battery/temp": "291\n",
    "sys/class/hwmon/hwmon2/name": "k10temp\n",
    "sys/class/hwmon/hwmon2/temp1_input": "40500\n",
}
#: programs that only a phone has, as shell texts
PHONE_TOOLS = {
    "getprop": """
case $1 in
    ro.product.manufacturer) echo Google;;
    ro.product.model) echo Pixel 6;;
    ro.product.cpu.abi) echo arm64-v8a;;
    ro.build.version.release) echo 13;;
esac
""",
    "dumpsys": """
case $1 in
battery) echo "Current Battery Service state:
  AC powered: false
  USB powered: true
  level: 85
  temperature: 289";;
thermalservice) echo "IsStatusOverride: false
Thermal Status: 1
Cached temperatures:
\tTemperature{mValue=99.0, mType=0, mName=CPU0, mStatus=0}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{mValue=42.5, mType=0, mName=CPU0, mStatus=0}
\tTemperature{mValue=60.0, mType=1, mName=GPU, mStatus=0}
Current cooling devices from HAL:";;
esac
""",
    "uname": "case $1 in -m) echo aarch64;; -s) echo Linux;; -r) echo 5.10.149;; esac",
}
#: toybox has this one; beside other shells it may be a package that is absent
UPTIME = {"uptime": "echo ' 16:40:01 up 3 days, 20:11,  0 users,  load average: 5.97, 6.03, 6.11'"}


@pytest.mark.parametrize("name", SHELLS)
def test_the_script_on_files_and_tools_like_a_phones(name, require, tmp_path):
    """Android's sh is mksh and its tools are toybox; this adds the files and programs that only a phone has."""
    require(name, shutil.which(name) is not None, f"no {name} here")
    tools = tmp_path / "bin"
    tools.mkdir()
    if name == "mksh":
        require("toybox", shutil.which("toybox") is not None, "no toybox here")
        for tool in ("sed", "tr", "uptime", "nproc", "printf"):
            (tools / tool).symlink_to(shutil.which("toybox"))
    for tool, body in {**PHONE_TOOLS, **({} if name == "mksh" else UPTIME)}.items():
        (tools / tool).write_text(f"#!/bin/sh\n{body}\n")
        (tools / tool).chmod(0o755)
    for path, content in PHONE_FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    root = shlex.quote(str(tmp_path))
    script = SCRIPT.replace(" /proc/", f" {root}/proc/").replace(" /sys/", f" {root}/sys/").replace(" /etc/", f" {root}/etc/")
    described, state = parse(run_script(SHELLS[name], script, PATH=str(tools) if name == "mksh" else f"{tools}:{os.defpath}"))
    assert (described.name, described.abi, described.machine, described.emulated) == ("Google Pixel 6", "arm64-v8a", "aarch64", False)
    assert (described.processor, described.os) == ("1 × Cortex-A55, 1 × Cortex-X1", "Android 13, Linux 5.10.149")
    assert state.cores == (Core(0, "sched_pixel", 738, 1803, 1500),)
    assert {z.name: z.celsius for z in state.zones} == {"BIG": 41.0, "k10temp": 40.5, "CPU0": 42.5}
    assert (state.thermal_status, state.battery_level, state.battery_c, state.charging) == (1, 85, 28.9, True)
    assert state.load1 is not None
    assert state.memory_available_bytes == 3411292 * 1024
