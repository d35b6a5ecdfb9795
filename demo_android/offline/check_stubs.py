"""Compares the stand-ins under stubs/ with declarations of the real Android and AndroidX: ``check_stubs.py MINSDK CLASSES D.TS...``

The declarations are TypeScript (npm package @nativescript/types-android), made from the real android.jar: members, types of
parameters and results, and since which API level there is each. Exits with 1 where a stand-in has a member that is
declared otherwise, or that phones of MINSDK lack and the app does not ask for under a condition.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

#: newer than the declarations' AndroidX
NOT_DECLARED = (
    "androidx.activity.EdgeToEdge",
    "androidx.activity.result.PickVisualMediaRequest",
    "androidx.activity.result.contract.ActivityResultContracts.PickVisualMedia",
)
#: used only where Build.VERSION.SDK_INT allows it
GUARDED = ("android.os.PowerManager.getCurrentThermalStatus",)

NUMBERS = {"byte", "short", "int", "long", "float", "double"}
TEXTS = {"java.lang.String", "java.lang.CharSequence"}
OPEN = re.compile(r"^(?:declare )?(?:export )?(?:abstract )?(module|class|interface) ([\w.]+)(.*)\{$")
CALL = re.compile(r"^(?:public|protected) (static )?(\w+)(?:<[^(]*>)?\((.*)\)(?:: (.*))?;$")
FIELD = re.compile(r"^(?:public|protected) (static )?(\w+): ")
SINCE = re.compile(r"@since (\d+)")


#: static, parameters or None for a field, result, API level
Declaration = tuple[bool, tuple[str, ...] | None, str, int]


class Declared:
    """One class of the declarations: its supers, and name -> [(static, parameters, result, since)]."""

    def __init__(self, supers: list[str], since: int) -> None:
        self.supers = supers
        self.since = since
        self.members: dict[str, list[Declaration]] = defaultdict(list)


def split(text: str) -> list[str]:
    """The parts between commas that stand in no brackets."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "<({[") - (c in ">)}]")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [p.strip() for p in parts if p.strip()]


def from_typescript(text: str) -> str:
    text = text.replace(" | null", "").replace("globalAndroid.", "android.").strip()
    if text.startswith("androidNative.Array<"):
        return "array"
    text = re.sub(r"<.*>", "", text)
    return "any" if re.fullmatch("[A-Z]", text) else text


def from_java(text: str) -> str:
    text = re.sub(r"<.*>", "", text).replace("$", ".").strip()
    if text.endswith(("[]", "...")):
        return "array"
    if re.fullmatch("[A-Z]", text):
        return "any"
    return "number" if text in NUMBERS else "string" if text in TEXTS else text


def read_declarations(path: Path, found: dict[str, Declared]) -> None:
    stack: list[str] = []
    since = 0
    lines = iter(path.read_text().splitlines())
    for line in lines:
        line = line.strip()
        if line.startswith(("/**", "*")):
            since = int(m[1]) if (m := SINCE.search(line)) else since
            continue
        if opened := OPEN.match(line):
            kind, name, rest = opened.groups()
            stack.append(name)
            if kind != "module":
                heirs = re.sub(r"^(<[^{]*?>)?\s*", "", rest)
                supers = [from_typescript(s) for s in split(re.sub(r"\b(extends|implements)\b", ",", heirs))]
                found[".".join(stack)] = Declared(supers, since)
        elif line == "}":
            stack.pop()
        elif line.endswith("{"):  # the constructor of an interface, which Java does not have
            while next(lines).strip() != "});":
                pass
        elif (owner := found.get(".".join(stack))) is not None:
            if call := CALL.match(line):
                static, name, parameters, result = call.groups()
                types = tuple(from_typescript(p.partition(":")[2]) for p in split(parameters))
                owner.members[name].append((bool(static), types, from_typescript(result or "void"), since))
            elif field := FIELD.match(line):
                owner.members[field[2]].append((bool(field[1]), None, "", since))
        since = 0


def lookup(found: dict[str, Declared], name: str, member: str) -> list[Declaration]:
    """A member's declarations in a class and everything it inherits from."""
    owner = found.get(name)
    if owner is None:
        return []
    return owner.members[member] + [d for s in owner.supers for d in lookup(found, s, member)]


#: name, static, parameters or None for a field, result
Member = tuple[str, bool, tuple[str, ...] | None, str]


def stub_members(folder: Path, names: list[str]) -> dict[str, list[Member]]:
    """The members of each stand-in, by class."""
    told = subprocess.run(["javap", "-protected", "-cp", str(folder), *names], capture_output=True, text=True, check=True).stdout
    texts = told.split("Compiled from ")[1:]
    return {name: [member(line) for line in text.splitlines()[2:-1]] for name, text in zip(names, texts, strict=True)}


def member(line: str) -> Member:
    """One line of javap."""
    line = re.sub(r"\b(public|protected|final|abstract) | throws .*", "", line.strip().rstrip(";"))
    line = re.sub(r"^(static )?<.*?> (?=\S)", r"\1", line)
    static = line.startswith("static ")
    head, bracket, rest = line.removeprefix("static ").partition("(")
    result, _, name = head.rpartition(" ")
    parameters = tuple(from_java(p) for p in split(rest.rstrip(")"))) if bracket else None
    return (name, static, parameters, from_java(result)) if result else ("constructor", False, parameters, "void")


def fits(a: str, b: str) -> bool:
    return a == b or "any" in (a, b)


def matches(declared: tuple[str, ...] | None, parameters: tuple[str, ...] | None) -> bool:
    """Whether both are fields, or methods with the same parameters."""
    if declared is None or parameters is None:
        return declared is parameters
    return len(declared) == len(parameters) and all(map(fits, declared, parameters))


def main(level: int, folder: Path, declarations: list[Path]) -> int:
    found: dict[str, Declared] = {}
    for path in declarations:
        read_declarations(path, found)
    wrong, checked = [], 0
    files = sorted(p for top in ("android", "androidx") for p in (folder / top).rglob("*.class"))
    names = [".".join(p.relative_to(folder).with_suffix("").parts) for p in files]
    names = [n for n in names if not n.replace("$", ".").startswith(NOT_DECLARED)]
    for binary, members in stub_members(folder, names).items():
        name = binary.replace("$", ".")
        if name not in found:
            wrong.append(f"{name} is not declared")
            continue
        if found[name].since > level:
            wrong.append(f"{name} is there since API level {found[name].since}")
        for called, static, parameters, result in members:
            if called in ("values", "valueOf") or (called, parameters) == ("constructor", ()):
                continue  # javac adds them
            checked += 1
            declared = lookup(found, name, called)
            same = [since for s, p, r, since in declared if s == static and matches(p, parameters) and (p is None or fits(r, result))]
            if not same:
                seen = "; ".join(f"({', '.join(p or ())}): {r}" for _, p, r, _ in declared) or "nothing"
                wrong.append(f"{name}.{called}({', '.join(parameters or ())}): {result} is declared as {seen}")
            elif min(same) > level and f"{name}.{called}" not in GUARDED:
                wrong.append(f"{name}.{called} is there since API level {min(same)}")
    print("\n".join(wrong) or f"{checked} members of {len(names)} stand-ins are as Android and AndroidX declare them")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), [Path(p) for p in sys.argv[3:]]))
