"""Wheel and sdist: built, installed and imported in a clean environment with the light dependencies only."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIGHT = {"numpy", "typer", "rich", "flatbuffers", "tflite"}


def run(*args: object, cwd: Path = ROOT) -> str:
    done = subprocess.run([str(a) for a in args], cwd=cwd, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """(sdist, wheel built from that sdist)."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=source)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def modules() -> list[str]:
    """Every module of the four packages, by dotted name."""
    roots = (ROOT, ROOT / "backends" / "tflite", ROOT / "backends" / "executorch", ROOT / "backends" / "c")
    packages = ("qwtv2_edge", "qwtv2_edge_tflite", "qwtv2_edge_executorch", "qwtv2_edge_c")
    found = []
    for root, package in zip(roots, packages, strict=True):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


@pytest.mark.slow
def test_archives_hold_everything(built):
    sdist, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for module in modules():
        path = module.replace(".", "/")
        assert f"{path}.py" in names or f"{path}/__init__.py" in names, module
    for data in ("demo/digits.npz", "demo/weights.npz", "report/page.html.j2"):
        assert f"qwtv2_edge/{data}" in names
    for kernel in (ROOT / "backends" / "c" / "qwtv2_edge_c" / "kernels").glob("*.h"):
        assert f"qwtv2_edge_c/kernels/{kernel.name}" in names
    assert not [n for n in names if n.startswith(("tests/", "docs/"))]
    with tarfile.open(sdist) as archive:
        inside = {n.partition("/")[2] for n in archive.getnames()}
    assert {"pyproject.toml", "README.md", "Makefile", "constraints.txt", "tests/conftest.py"} <= inside


@pytest.mark.slow
def test_install_in_a_clean_environment(built, tmp_path):
    _, wheel = built
    run(sys.executable, "-m", "venv", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    installed = {p["name"].lower() for p in json.loads(run(python, "-m", "pip", "list", "--format", "json"))}
    assert installed >= LIGHT
    assert not installed & {"torch", "executorch", "ai-edge-litert", "tensorflow", "jinja2"}
    code = (
        "import importlib, sys, json\n"
        "missing = []\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ModuleNotFoundError as exc:\n"
        "        missing.append(exc.name)\n"
        "print(sorted(set(missing)))\n"
    )
    # what a module may need at import is an extra; all others must import with the light dependencies
    lacking = set(eval(run(python, "-c", code, json.dumps([m for m in modules() if not m.endswith("__main__")]), cwd=tmp_path)))
    assert lacking <= {"torch", "sklearn", "markupsafe"}
    command = tmp_path / "env" / "bin" / "qwtv2-edge"
    assert "Usage: qwtv2-edge" in run(command, "--help", cwd=tmp_path)
    findings = json.loads(run(command, "doctor", "--json", cwd=tmp_path))
    assert {"torch", "executorch", "ai-edge-litert", "jinja2"} <= set(findings["missing"])
    done = subprocess.run([command, "demo", "--out", tmp_path / "out"], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 3, done.stderr
    assert "pip install 'qwtv2-edge[report]'" in done.stderr
    assert not (tmp_path / "out").exists()
