"""Who may import whom, who may import what, and who may round."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: from the ground up; a part imports only from rows below its own
LAYERS = (
    ("errors",),
    ("fixedpoint", "files", "c_text", "metrics", "numerics"),
    ("ir",),
    ("planner",),
    ("ops", "data", "inspection", "backends"),
    ("simulator", "frontend"),
    ("compensation",),
    ("quantization",),
    ("runners",),
    ("verification",),
    ("profiling", "evaluation", "report", "firmware", "fit"),
    ("export", "opening", "doctor"),
    ("console", "demo", "android"),
    ("cli",),
    ("__main__",),
)
LEVEL = {part: level for level, row in enumerate(LAYERS) for part in row}

#: imports inside functions or for type checkers that look upwards, each for a reason
UPWARD = {
    ("errors", "ir"),  # a type annotation
    ("numerics", "ir"),  # a type annotation
    ("ir", "ops"),  # a graph is checked against the op table, which is made of IR types
}

#: third-party modules that may be imported when a part is imported; all others only inside functions
FOREIGN = {"cli": {"typer", "rich"}, "console": {"rich"}, "report": {"markupsafe"}, "demo": {"torch"}}

#: names that round or take floats apart; their only home is fixedpoint
ROUNDING = {"rint", "round", "around", "round_", "trunc", "fix", "frexp", "ldexp"}


def modules():
    for path in sorted((ROOT / "qwtv2_edge").rglob("*.py")):
        part = path.relative_to(ROOT / "qwtv2_edge").parts[0].removesuffix(".py")
        if part != "__init__" and path.name != "worker.py":  # the worker is a script that imports nothing of ours
            yield path, part


def imports(path: Path):
    """(module, at import time?) for every import statement of a file."""
    tree = ast.parse(path.read_text())

    def walk(node, late):
        for child in ast.iter_child_nodes(node):
            later = late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) or _type_checking(child)
            if isinstance(child, ast.ImportFrom) and child.module and child.level == 0:
                if child.module == "qwtv2_edge":
                    yield from ((f"qwtv2_edge.{a.name}", not late) for a in child.names)
                else:
                    yield child.module, not late
            elif isinstance(child, ast.Import):
                yield from ((a.name, not late) for a in child.names)
            else:
                yield from walk(child, later)

    return walk(tree, False)


def _type_checking(node) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


MODULES = list(modules())
IDS = [str(p.relative_to(ROOT)) for p, _ in MODULES]


@pytest.mark.parametrize(("path", "part"), MODULES, ids=IDS)
def test_imports_look_down(path, part):
    assert part in LEVEL, f"give '{part}' a row in LAYERS"
    for name, early in imports(path):
        pieces = name.split(".")
        if pieces[0].startswith("qwtv2_edge_"):
            pytest.fail(f"{name}: core reaches backends through backends.load only")
        if pieces[0] != "qwtv2_edge" or len(pieces) == 1:
            continue
        other = pieces[1]
        if other == part or other not in LEVEL:  # a name of the front door, e.g. read_tflite
            assert other in LEVEL or not early, f"{name} is imported from the front door"
        elif LEVEL[other] >= LEVEL[part]:
            excused = (part, other) in UPWARD and not early
            assert excused, f"{part} imports {name}, which is not below it"


@pytest.mark.parametrize(("path", "part"), MODULES, ids=IDS)
def test_third_parties_wait_until_they_are_called(path, part):
    import sys

    allowed = FOREIGN.get(part, set()) | {"numpy", "qwtv2_edge"} | set(sys.stdlib_module_names)
    for name, early in imports(path):
        assert not early or name.split(".")[0] in allowed, f"{part} imports {name} when it is imported"


def rounding_calls(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in ROUNDING and isinstance(node.value, ast.Name):
            if node.value.id in ("np", "numpy", "math"):
                yield f"{node.value.id}.{node.attr}, line {node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module == "math":
            yield from (f"math.{a.name}, line {node.lineno}" for a in node.names if a.name in ROUNDING)


EMITTERS = sorted((ROOT / "backends").rglob("qwtv2_edge_*/*.py"))


@pytest.mark.parametrize("path", [p for p, part in MODULES if part != "fixedpoint"] + EMITTERS, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_fixedpoint_rounds(path):
    assert not list(rounding_calls(path)), "rounding and taking floats apart belong in qwtv2_edge/fixedpoint.py"


def test_the_ban_sees_what_it_bans():
    assert list(rounding_calls(ROOT / "qwtv2_edge" / "fixedpoint.py"))
