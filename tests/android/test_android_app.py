"""The Android demo app, as far as a computer without the Android SDK goes (see demo_android/README.md)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from requirements import ROOT, missing
from small_graphs import export_folder, image_graph

from qwtv2_edge.android import FORMATS, write_assets
from qwtv2_edge.backends import get_numerics
from qwtv2_edge.runners import adb
from qwtv2_edge.runners.base import Job
from qwtv2_edge.simulator.run import run as simulate

OFFLINE = ROOT / "demo_android" / "offline"
#: exit code of the scripts where a tool is missing, and its name in QWTV2_REQUIRE
MISSING_TOOL, TOOL = 3, "android"


def run(script: str, out: Path, *args: object) -> str:
    """What one of the scripts prints."""
    environment = {**os.environ, "QWTV2_ANDROID_OUT": str(out)}
    command = [str(OFFLINE / script), *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode == MISSING_TOOL:
        missing(TOOL, done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def fitted(argb: np.ndarray, wide: int, high: int) -> np.ndarray:
    """The middle of a picture on white, averaged by area to (high, wide, red-green-blue)."""
    height, width = argb.shape
    alpha, *colours = ((argb >> shift & 255).astype(np.float64) for shift in (24, 16, 8, 0))
    white = 255 - (255 - np.stack(colours, -1)) * alpha[..., None] / 255
    side = min(width / wide, height / high)

    def shares(length: int, count: int) -> np.ndarray:
        """How much of each of ``length`` source pixels falls into each of ``count`` squares."""
        edges = (length - count * side) / 2 + side * np.arange(count + 1)
        inside = np.clip(edges[:, None], np.arange(length), np.arange(length) + 1)
        return np.diff(inside, axis=0) / side

    mean = np.einsum("iy,jx,yxc->ijc", shares(height, high), shares(width, wide), white)
    return np.floor(mean + 0.5).astype(np.int64)


def test_unit_tests_of_the_app(tmp_path):
    told = run("test.sh", tmp_path)
    (count,) = re.findall(r"^OK \((\d+) tests\)$", told, re.MULTILINE)
    assert int(count) > 30


def test_the_app_reads_what_python_writes(tmp_path, rng):
    a = rng.normal(size=(7, 11)).astype(np.float32)
    b = a.copy()
    b.view(np.uint8).reshape(-1)[rng.choice(a.nbytes, 23, replace=False)] ^= 1 << 6
    arrays = {
        "ns": rng.integers(1, 10**12, 997),
        "a": a,
        "b": b,
        "fortran": np.asfortranarray(rng.integers(-128, 128, (3, 4, 5)).astype(np.int8)),
        "scalar": np.float64(rng.normal()),
        "empty": np.zeros((0, 3), np.int16),
        "numerics@aarch64/head:0": rng.integers(0, 256, 5).astype(np.uint8),
        "bool": rng.random(9) < 0.5,
        "picture": rng.integers(-(2**31), 2**31, (37, 53)).astype(np.int32),  # alpha, red, green, blue
    }
    np.savez(tmp_path / "random.npz", **arrays)
    graph = image_graph((1, 1, 16, 16), scale=0.037, zero_point=-77, perm=(0, 2, 3, 1))
    write_assets(export_folder(tmp_path / "out", graph, FORMATS), tmp_path / "assets")

    told = json.loads(run("test.sh", tmp_path / "build", "read", tmp_path / "random.npz", tmp_path / "assets"))
    for name, array in arrays.items():
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        assert told["arrays"][name] == {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": sha256(array)}, name
    assert told["percentiles"] == np.percentile(arrays["ns"], (0, 10, 50, 90, 99, 100)).tolist()
    assert told["differing"] == 23
    assert told["largest"] == np.argsort(-a.reshape(-1), kind="stable")[:5].tolist()

    with np.load(tmp_path / "assets" / "golden.npz") as file:
        golden = dict(file)
    assert told["assets"]["inputs"] == [sha256(x) for x in golden["x"]]
    for family in ("x86_64", "aarch64"):
        for name in ("litert-xnnpack", "executorch-xnnpack"):
            numerics = get_numerics(f"{name}@{family}")
            (outputs,) = simulate(graph, [golden["x"]], numerics)
            assert told["assets"][numerics.name] == [sha256(y) for y in outputs]
    grey = fitted(arrays["picture"], 16, 16) @ (299, 587, 114)
    grey = (grey + 500) // 1000
    upright = [grey, grey[:, ::-1], grey[::-1, ::-1], grey[::-1], grey.T, np.rot90(grey, -1), grey[::-1, ::-1].T, np.rot90(grey)]
    scale, zero_point = float(np.float32(0.037)), -77
    levels = [level for picture in upright for level in (picture, 255 - picture)]
    assert told["assets"]["pictures"] == [sha256((scale * (level - 128 - zero_point)).astype(np.float32)) for level in levels]


def test_jobs_and_results_are_those_of_the_sdk(tmp_path, rng):
    codes = rng.integers(-128, 127, (6, 5)).astype(np.int8)
    job = Job("executorch-xnnpack", "executorch", b"a program", [codes], threads=2, samples=3)
    files = {"model" + adb.suffix_of(job): job.data, **adb.inputs_of(job.inputs)}
    files["job.json"] = json.dumps({**adb.description(job, "1a2b"), "runs": 7, "seconds": 1.5}).encode()
    for folder in ("job", "work", "out"):
        (tmp_path / folder).mkdir()
    for name, content in files.items():
        (tmp_path / "job" / name).write_bytes(content)
    run("test.sh", tmp_path / "build", "job", "1a2b", tmp_path / "job", tmp_path / "work", tmp_path / "out")
    result = adb.checked_result((tmp_path / "out" / "result.json").read_text(), "1a2b")
    assert result["error"] is None
    assert result["complete"]
    assert result["ns"] == [1000] * 7
    (output,) = result["outputs"]
    assert np.array_equal(np.fromfile(tmp_path / "out" / output["file"], output["dtype"]).reshape(output["shape"]), codes + 1)


@pytest.mark.slow
def test_the_app_compiles_links_and_is_packaged(tmp_path):
    told = run("build.sh", tmp_path)
    apk = Path(told.splitlines()[-1])
    with zipfile.ZipFile(apk) as archive:
        names = set(archive.namelist())
        dex = archive.read("classes.dex")
    assert {"AndroidManifest.xml", "resources.arsc", "classes.dex"} <= names
    for name in ("MainActivity", "BenchmarkActivity", "LiteRtEngine", "ExecuTorchEngine", "core/Benchmark"):
        assert f"Lorg/qwtv2/edge/demo/{name};".encode() in dex
    assert "Verified using v2 scheme (APK Signature Scheme v2): true" in told
    assert "no permission is asked for" in told
    manifest = subprocess.run(["aapt", "dump", "xmltree", apk, "AndroidManifest.xml"], capture_output=True, text=True, check=True).stdout
    (benchmark,) = [part for part in manifest.split("E: activity") if ".BenchmarkActivity" in part]
    assert '="android.permission.DUMP"' in benchmark
