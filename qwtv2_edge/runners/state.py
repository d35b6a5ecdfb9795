"""What a machine tells about itself: which one it is, how fast its cores may run, how hot it is.

:data:`SCRIPT` is one POSIX shell script for every device; :func:`parse` reads what it prints, :func:`doubts` compares what it
printed before and after a timing. Nothing here trusts the machine: whatever the text holds, parsing never fails.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qwtv2_edge.runners.base import family_of

#: degrees Celsius at which a processor counts as too hot for its times to be trusted
HOT_C = 85.0
#: Android's words for its thermal status; from "moderate" on it slows the processor
THERMAL_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
MODERATE = 2
#: a frequency below this fraction of the one before is a slower core and not jitter
SLOWED = 0.9
#: governors that keep a core at one frequency
FIXED_FREQUENCY = ("performance", "userspace")

#: Prints KEY<tab>VALUE lines and always succeeds. Runs in dash, BusyBox and mksh, which is Android's sh, where printf is a
#: program of its own and /proc and /sys are readable in parts.
SCRIPT = r"""
export LC_ALL=C
unset OMP_NUM_THREADS OMP_THREAD_LIMIT  # nproc would answer with them
out=
say() { [ -z "$2" ] || out="$out$1	$2
"; }
load() { value=; { IFS= read -r value < "$1"; } 2>/dev/null; }
get() { load "$2"; say "$1" "$value"; }
say machine "$(uname -m 2>/dev/null)"
say system "$(uname -s 2>/dev/null)"
say release "$(uname -r 2>/dev/null)"
say cores "$(nproc 2>/dev/null)"
for f in /proc/device-tree/model /sys/firmware/devicetree/base/model; do
    [ -r "$f" ] && say model "$(tr -d '\000' < "$f" 2>/dev/null)"
done
get uptime /proc/uptime
get load /proc/loadavg
[ -n "$value" ] || say load_words "$(uptime 2>/dev/null)"
for d in /sys/devices/system/cpu/cpu[0-9]*; do
    n=${d##*/cpu}
    get "core.$n.governor" "$d/cpufreq/scaling_governor"
    get "core.$n.current_khz" "$d/cpufreq/scaling_cur_freq"
    get "core.$n.max_khz" "$d/cpufreq/cpuinfo_max_freq"
    get "core.$n.limit_khz" "$d/cpufreq/scaling_max_freq"
done
for d in /sys/class/thermal/thermal_zone*; do
    get "zone.${d##*thermal_zone}.type" "$d/type"
    get "zone.${d##*thermal_zone}.temp" "$d/temp"
done
for d in /sys/class/hwmon/hwmon*; do
    load "$d/name"
    case $value in coretemp|k10temp|zenpower)
        say "zone.${d##*/}.type" "$value"
        get "zone.${d##*/}.temp" "$d/temp1_input";;
    esac
done
for d in /sys/class/power_supply/*; do
    load "$d/type"
    [ "$value" = Battery ] || continue
    get battery.level "$d/capacity"
    get battery.tenths_c "$d/temp"
    get battery.status "$d/status"
done
if command -v getprop >/dev/null 2>&1; then
    for p in ro.product.manufacturer ro.product.model ro.product.cpu.abi ro.build.version.release ro.kernel.qemu ro.boot.qemu; do
        say "$p" "$(getprop "$p" 2>/dev/null </dev/null)"
    done
fi
printf '%s' "$out"
[ -r /proc/cpuinfo ] && sed -n \
    -e 's/^processor[[:space:]]*:[[:space:]]*/processor	/p' \
    -e 's/^model name[[:space:]]*:[[:space:]]*/cpu	/p' \
    -e 's/^vendor_id[[:space:]]*:[[:space:]]*/vendor	/p' \
    -e 's/^CPU implementer[[:space:]]*:[[:space:]]*/implementer	/p' \
    -e 's/^CPU part[[:space:]]*:[[:space:]]*/part	/p' /proc/cpuinfo 2>/dev/null
[ -r /proc/meminfo ] && sed -n 's/^MemAvailable:[[:space:]]*\([0-9]*\).*/memory_available_kb	\1/p' /proc/meminfo 2>/dev/null
[ -r /etc/os-release ] && sed -n 's/^PRETTY_NAME=/os	/p' /etc/os-release 2>/dev/null
if command -v dumpsys >/dev/null 2>&1; then
    dumpsys thermalservice 2>/dev/null </dev/null | sed -n \
        -e 's/^[[:space:]]*Thermal Status:[[:space:]]*/thermal_status	/p' \
        -e '/^Current temperatures from HAL/,/^Current cooling/s/.*{mValue=\([^,]*\), mType=0, mName=\([^,}]*\).*/hal	\1 \2/p'
    dumpsys battery 2>/dev/null </dev/null | sed -n \
        -e 's/^[[:space:]]*level:[[:space:]]*/battery.level	/p' \
        -e 's/^[[:space:]]*temperature:[[:space:]]*/battery.tenths_c	/p' \
        -e 's/^[[:space:]]*[A-Z][A-Za-z]* powered:[[:space:]]*/powered	/p'
fi
exit 0
"""

#: types of thermal zones that lie in or next to the processor cores
CPU_ZONE = re.compile(
    r"cpu|soc|tsens|x86_pkg|coretemp|k10temp|zenpower|package|cluster|(big|little)-?core|^(big|mid|little)$", re.IGNORECASE
)

#: (implementer, part) of ARM cores, as their Main ID registers give them
ARM_CORES = {
    ("0x41", part): name
    for part, name in {
        "0xc07": "Cortex-A7",
        "0xc09": "Cortex-A9",
        "0xc0f": "Cortex-A15",
        "0xd01": "Cortex-A32",
        "0xd03": "Cortex-A53",
        "0xd04": "Cortex-A35",
        "0xd05": "Cortex-A55",
        "0xd07": "Cortex-A57",
        "0xd08": "Cortex-A72",
        "0xd09": "Cortex-A73",
        "0xd0a": "Cortex-A75",
        "0xd0b": "Cortex-A76",
        "0xd0c": "Neoverse-N1",
        "0xd0d": "Cortex-A77",
        "0xd0e": "Cortex-A76AE",
        "0xd40": "Neoverse-V1",
        "0xd41": "Cortex-A78",
        "0xd42": "Cortex-A78AE",
        "0xd44": "Cortex-X1",
        "0xd46": "Cortex-A510",
        "0xd47": "Cortex-A710",
        "0xd48": "Cortex-X2",
        "0xd49": "Neoverse-N2",
        "0xd4b": "Cortex-A78C",
        "0xd4c": "Cortex-X1C",
        "0xd4d": "Cortex-A715",
        "0xd4e": "Cortex-X3",
        "0xd4f": "Neoverse-V2",
        "0xd80": "Cortex-A520",
        "0xd81": "Cortex-A720",
        "0xd82": "Cortex-X4",
        "0xd85": "Cortex-X925",
        "0xd87": "Cortex-A725",
    }.items()
}

#: ABI families that a kernel runs without emulation, beside its own
COMPATIBLE = {"aarch64": ("arm",), "x86_64": ("x86",)}
#: what the processor calls itself -> families that it can be
VENDORS = {"GenuineIntel": ("x86_64", "x86"), "AuthenticAMD": ("x86_64", "x86")}


@dataclass(frozen=True, slots=True)
class Described:
    """Which machine it is.

    Attributes:
        name: maker and model, the board, or the processor.
        machine: as its kernel calls it (``uname -m``); abi: what its programs are built for.
        cores: that a process may use, at least 1.
        processor: the kinds of its cores, "4 × Cortex-A55, 2 × Cortex-A76", or "".
        os: name and kernel, or "".
        why_emulated: why the processor is not a real one, or "".
    """

    name: str
    machine: str
    abi: str
    cores: int
    processor: str
    os: str
    why_emulated: str

    @property
    def emulated(self) -> bool:
        return bool(self.why_emulated)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "emulated": self.emulated}


@dataclass(frozen=True, slots=True)
class Core:
    """One core; "" and None where the machine does not tell.

    Attributes:
        current_mhz: frequency now; max_mhz: the hardware's highest; limit_mhz: the highest allowed at present.
    """

    number: int
    governor: str
    current_mhz: int | None
    max_mhz: int | None
    limit_mhz: int | None


@dataclass(frozen=True, slots=True)
class Zone:
    """One temperature sensor. cpu: whether it measures the processor."""

    name: str
    celsius: float
    cpu: bool


@dataclass(frozen=True, slots=True)
class State:
    """How a machine is at one moment; None where it does not tell.

    Attributes:
        cores: those whose frequency is known, by number.
        temperature_c: of the processor's hottest sensor, or of the hottest of all where none is known to be the processor's.
        thermal_status: Android's, an index of THERMAL_STATUS.
        load1: average number of running processes over the last minute.
        battery_level: percent; battery_c: degrees Celsius.
    """

    cores: tuple[Core, ...]
    zones: tuple[Zone, ...]
    temperature_c: float | None
    thermal_status: int | None
    load1: float | None
    uptime_s: float | None
    memory_available_bytes: int | None
    battery_level: float | None
    battery_c: float | None
    charging: bool | None

    @property
    def governor(self) -> str:
        """The cores' governors, each once, or ""."""
        return ", ".join(sorted({c.governor for c in self.cores} - {""}))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "governor": self.governor}


def parse(text: str, abi: str = "") -> tuple[Described, State]:
    """Read what :data:`SCRIPT` printed.

    Args:
        text: its output, whole or in part. Unknown and unreadable lines are passed over.
        abi: that of the runtime's process, where that is known better.
    """
    found = _lines(text)
    return _describe(found, abi), _state(found)


def doubts(before: State, after: State, cores: Sequence[int] = ()) -> tuple[str, ...]:
    """Why times measured between two states should not be trusted; empty where nothing speaks against them.

    Args:
        cores: numbers of the cores that were used; empty for all.
    """
    used = [(b, a) for b in before.cores for a in after.cores if b.number == a.number and (not cores or b.number in cores)]
    hottest = max((s.temperature_c for s in (before, after) if s.temperature_c is not None), default=None)
    status = max((s.thermal_status for s in (before, after) if s.thermal_status is not None), default=0)
    said = []
    if hottest is not None and hottest >= HOT_C:
        said.append(f"the processor is at {hottest:g} °C")
    if status >= MODERATE:
        said.append(f"the thermal status is {_status(status)}")
    elif before.thermal_status is not None and after.thermal_status is not None and after.thermal_status > before.thermal_status:
        said.append(f"the thermal status rose from {_status(before.thermal_status)} to {_status(after.thermal_status)}")
    slowed, limited, governed = defaultdict(list), defaultdict(list), defaultdict(list)
    for b, a in used:
        if _slower(b.limit_mhz, a.limit_mhz):
            slowed[b.limit_mhz, a.limit_mhz].append(a.number)
        # under any other governor a core at rest is slow, which says nothing of the core at work
        elif a.governor in FIXED_FREQUENCY and _slower(b.current_mhz, a.current_mhz):
            slowed[b.current_mhz, a.current_mhz].append(a.number)
        elif a.limit_mhz is not None and a.max_mhz is not None and a.limit_mhz < a.max_mhz:
            limited[a.limit_mhz, a.max_mhz].append(a.number)
        if a.governor and a.governor not in FIXED_FREQUENCY:
            governed[a.governor].append(a.number)
    said += [f"throttled: {_cores(n)} fell from {old} to {new} MHz" for (old, new), n in slowed.items()]
    said += [f"{_cores(n)} held to {limit} of {top} MHz" for (limit, top), n in limited.items()]
    said += [f"the frequency governor of {_cores(n)} is '{governor}', not 'performance'" for governor, n in governed.items()]
    return tuple(said)


def _lines(text: str) -> dict[str, list[str]]:
    """Values by key, in order, without what could disturb a terminal."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in text.split("\n"):
        key, tab, value = line.partition("\t")
        clean = "".join(c if c.isprintable() else " " for c in value).strip()[:200]
        if tab and clean:
            found[key].append(clean)
    return found


def _describe(found: Mapping[str, list[str]], abi: str) -> Described:
    machine, cpu = _last(found, "machine"), _last(found, "cpu")
    abi = abi or _last(found, "ro.product.cpu.abi") or machine
    phone = " ".join(v for v in (_last(found, "ro.product.manufacturer"), _last(found, "ro.product.model")) if v)
    android = _last(found, "ro.build.version.release")
    system = f"Android {android}" if android else _last(found, "os").strip("\"'")
    kernel = " ".join(v for v in (_last(found, "system"), _last(found, "release")) if v)
    cores = _whole(_last(found, "cores")) or len(found.get("processor", ())) or 1
    return Described(
        name=phone or _last(found, "model") or cpu or machine or "unknown machine",
        machine=machine,
        abi=abi,
        cores=max(1, cores),
        processor=_processor(found) or cpu,
        os=", ".join(v for v in (system, kernel) if v),
        why_emulated=_why_emulated(found, machine, abi, cpu),
    )


def _why_emulated(found: Mapping[str, list[str]], machine: str, abi: str, cpu: str) -> str:
    kernel, programs, vendor = family_of(machine), family_of(abi), _last(found, "vendor")
    flags = [p for p in ("ro.kernel.qemu", "ro.boot.qemu") if _last(found, p) == "1"]
    if flags:
        return f"it says so ({flags[0]} = 1)"
    if machine and programs != kernel and programs not in COMPATIBLE.get(kernel, ()):
        return f"its programs are for {abi}, its kernel is {machine}"
    if machine and kernel not in VENDORS.get(vendor, (kernel,)):
        return f"it claims to be {machine}, its processor is {vendor}"
    if "QEMU TCG" in cpu or "VirtualApple" in cpu:
        return f"its processor is '{cpu}'"
    return ""


def _processor(found: Mapping[str, list[str]]) -> str:
    """The kinds of ARM cores and how many of each, or "" for other processors."""
    kinds: dict[str, int] = defaultdict(int)
    for implementer, part in zip(found.get("implementer", ()), found.get("part", ()), strict=False):
        kinds[ARM_CORES.get((implementer, part), f"core {implementer}/{part}")] += 1
    return ", ".join(f"{count} × {kind}" for kind, count in kinds.items())


def _state(found: Mapping[str, list[str]]) -> State:
    zones = tuple(_zones(found))
    load = re.search(r"load averages?: *([0-9.]+)", _last(found, "load_words"))
    memory = _whole(_last(found, "memory_available_kb"))
    battery = _number(_last(found, "battery.tenths_c"))
    return State(
        cores=_core_states(found),
        zones=zones,
        temperature_c=max((z.celsius for z in zones if z.cpu), default=max((z.celsius for z in zones), default=None)),
        thermal_status=_whole(_last(found, "thermal_status")),
        load1=_number(load[1] if load else _last(found, "load").partition(" ")[0]),
        uptime_s=_number(_last(found, "uptime").partition(" ")[0]),
        memory_available_bytes=None if memory is None else memory * 1024,
        battery_level=_number(_last(found, "battery.level")),
        battery_c=None if battery is None else battery / 10,
        charging=_charging(found),
    )


def _charging(found: Mapping[str, list[str]]) -> bool | None:
    if "powered" in found:
        return "true" in found["powered"]
    status = _last(found, "battery.status")
    return status in ("Charging", "Full", "Not charging") if status else None


def _core_states(found: Mapping[str, list[str]]) -> tuple[Core, ...]:
    numbers = {int(m[1]) for key in found if (m := re.fullmatch(r"core\.(\d{1,4})\.\w+", key, re.ASCII))}

    def mhz(number: int, which: str) -> int | None:
        khz = _whole(_last(found, f"core.{number}.{which}_khz"))
        return khz // 1000 if khz else None

    return tuple(Core(n, _last(found, f"core.{n}.governor"), mhz(n, "current"), mhz(n, "max"), mhz(n, "limit")) for n in sorted(numbers))


def _zones(found: Mapping[str, list[str]]) -> Iterable[Zone]:
    for key in found:
        if match := re.fullmatch(r"zone\.(\w+)\.temp", key):
            name, raw = _last(found, f"zone.{match[1]}.type"), _number(_last(found, key))
            # Qualcomm calls the battery's state of charge, in percent, a thermal zone
            if raw is not None and not (name == "soc" and 0 <= raw <= 100):
                yield from _zone(name, _celsius(raw), bool(CPU_ZONE.search(name)))
    for line in found.get("hal", ()):
        value, _, name = line.partition(" ")
        degrees = _number(value)
        if degrees is not None:
            yield from _zone(name, degrees, True)


def _zone(name: str, celsius: float, cpu: bool) -> Iterable[Zone]:
    if -50 < celsius < 150:  # absent sensors read -273, -40000 or 200000
        yield Zone(name or "unnamed", celsius, cpu)


def _celsius(raw: float) -> float:
    """A kernel's reading, which should be thousandths of a degree; some drivers give tenths or whole degrees."""
    return raw / 1000 if abs(raw) >= 1000 else raw / 10 if abs(raw) >= 150 else raw


def _last(found: Mapping[str, list[str]], key: str) -> str:
    return found[key][-1] if key in found else ""


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?\d{1,15}(\.\d{0,15})?", text, re.ASCII) else None


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,15}", text, re.ASCII) else None


def _slower(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after < SLOWED * before


def _status(status: int) -> str:
    return f"{status} ({THERMAL_STATUS[status]})" if status < len(THERMAL_STATUS) else str(status)


def _cores(numbers: Sequence[int]) -> str:
    """ "core 3", "cores 0-3, 6"."""
    spans: list[list[int]] = []
    for n in numbers:
        if spans and spans[-1][1] == n - 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    words = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
    return f"core{'s' if len(numbers) > 1 else ''} {words}"
