"""The command line as users meet it: exit codes, JSON, errors, no partial files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from command import environment

from qwtv2_edge.export import MEASURED

FILES = {
    "model.qir",
    "model.tflite",
    "model.executorch-xnnpack.pte",
    "manifest.json",
    "golden.npz",
    "report.json",
    "report.html",
}


def listing(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.name != "__pycache__"}


def refused(done, code: int, *words: str) -> None:
    """One clear error, no traceback, the right exit code."""
    assert done.code == code, (done.code, done.err)
    assert "Traceback" not in done.err
    assert done.err.count("error ") == 1, done.err
    assert done.out == ""
    for word in words:
        assert word in done.err, done.err


# ---------------------------------------------------------------- ordinary use


def test_help_goes_to_standard_output(cli):
    done = cli("--help")
    assert done.code == 0
    assert "Usage: qwtv2-edge" in done.out
    names = ("export", "verify", "simulate", "evaluate", "profile", "inspect", "compare", "numerics", "targets", "doctor")
    for name in (*names, "prepare", "demo"):
        assert f"  {name} " in done.out
        assert {"--json", "--quiet", "--verbose"} <= set(cli(name, "--help").out.split())


def test_importing_the_library_imports_neither_typer_nor_a_runtime():
    code = "import sys, qwtv2_edge; print([m for m in ('typer', 'rich', 'torch', 'executorch', 'ai_edge_litert') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_export_writes_every_file_and_its_proof(exported):
    assert listing(exported) == FILES
    report = json.loads((exported / "report.json").read_text())
    assert report["ok"]
    assert {"float_metric", "metrics", "verify", "compensation", "artifacts", "seconds", "peak_rss_bytes"} <= set(report)
    assert {"litert-reference", "litert-xnnpack", "executorch-xnnpack"} <= set(report["verify"])
    for entry in report["verify"].values():
        assert {"samples", "outputs_compared", "mismatches", "max_lsb", "first_mismatch"} <= set(entry)
        assert entry["samples"] > 30
        if entry["promise"] == "exact":
            assert entry["mismatches"] == 0
    for record in report["compensation"]:
        assert {"node", "kind", "reason", "mse_before", "mse_offset", "mse_cwac"} <= set(record)
        assert record["kind"] in ("none", "offset", "cwac")
    for artifact in report["artifacts"].values():
        assert (exported / artifact["file"]).stat().st_size == artifact["bytes"]
    assert report["metrics"].keys() >= report["verify"].keys()
    manifest = json.loads((exported / "manifest.json").read_text())
    assert set(manifest["artifacts"]) == set(report["artifacts"])


def test_report_page_is_self_contained(exported):
    page = (exported / "report.html").read_text()
    for outside in ("http://", "https://", "<script", "<link", "url("):
        assert outside not in page
    assert "prefers-color-scheme: dark" in page
    assert "<svg" in page


def test_golden_file_holds_what_the_simulator_predicts(cli, exported, tmp_path):
    with np.load(exported / "golden.npz") as golden:
        names = golden.files
        np.savez(tmp_path / "in.npz", x=golden["x"])
        expected = {n: golden[n] for n in names if n.startswith("litert-reference/")}
    assert expected
    args = ("--inputs", tmp_path / "in.npz", "--numerics", "litert-reference", "--out", tmp_path / "out.npz")
    for source in ("model.qir", "model.tflite"):
        done = cli("simulate", exported / source, *args, "--json")
        assert done.code == 0, done.err
        with np.load(tmp_path / "out.npz") as outputs:
            assert [outputs[n].tobytes() for n in outputs.files] == [a.tobytes() for a in expected.values()]


@pytest.mark.parametrize("what", ["", "model.tflite", "model.executorch-xnnpack.pte"])
def test_verify_again(cli, exported, what):
    done = cli("verify", exported / what, "--json")
    assert done.code == 0, done.err
    assert done.document["ok"]
    assert done.document["verify"]


def test_evaluate_inspect_profile_compare(cli, exported, workdir):
    done = cli("evaluate", exported, "--data", workdir / "eval.npz", "--json")
    assert done.code == 0, done.err
    report = json.loads((exported / "report.json").read_text())
    assert done.document["metrics"] == report["metrics"]
    done = cli("inspect", exported, "--json")
    assert done.code == 0, done.err
    assert done.document["macs"] == 4 * 4 * 4 * 9 + 12
    done = cli("profile", exported / "model.tflite", "--runs", "30", "--json")
    assert done.code == 0, done.err
    assert done.document["outputs_match"] is True
    done = cli("compare", exported, exported, "--runs", "0", "--json")
    assert done.code == 0, done.err
    assert done.document["same_op_list"]
    assert all(a == b for a, b in done.document["metrics"].values())


@pytest.mark.parametrize("command", ["numerics", "targets", "doctor"])
def test_tables(cli, command):
    done = cli(command, "--json")
    assert done.code == 0, done.err
    assert done.document["schema_version"] == 1
    done = cli(command, "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert cli(command).out


def test_export_into_a_folder_with_other_files_keeps_them(cli, workdir, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    done = cli("export", "net.py:bare", "--calibration", "calib.npz", "--target", "tflite", "--out", tmp_path, "--quiet", cwd=workdir)
    assert done.code == 0, done.err
    assert (done.out, done.err) == ("", "")
    assert listing(tmp_path) == (FILES - {"model.executorch-xnnpack.pte"}) | {"mine.txt"}


def test_export_fills_the_android_app(cli, workdir, tmp_path):
    (tmp_path / "labels").write_text("cat\ndog\ngoose\n")
    assets = tmp_path / "app" / "assets"
    given = ("--android-assets", assets, "--labels", tmp_path / "labels")
    done = cli("export", "net.py:build", "--calibration", "calib.npz", "--out", tmp_path / "out", *given, cwd=workdir)
    assert done.code == 0, done.err
    assert listing(assets) == {"app.json", "golden.npz", "labels.txt", "model.executorch-xnnpack.pte", "model.tflite"}
    for name in ("model.tflite", "model.executorch-xnnpack.pte"):
        assert (assets / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    with np.load(assets / "golden.npz") as arrays:
        assert {"litert-xnnpack@aarch64/head", "executorch-xnnpack@aarch64/head"} < set(arrays.files)


def test_two_runs_give_the_same_bytes(fresh, exported, workdir, tmp_path):
    done = fresh(
        "export",
        "net.py:build",
        "--calibration",
        "calib.npz",
        "--evaluation",
        "eval.npz",
        "--out",
        tmp_path / "again",
        "--json",
        cwd=workdir,
    )
    assert done.code == 0, done.err
    assert done.document["ok"]
    for name in FILES - {"report.json"}:
        assert (exported / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    first, second = (json.loads((f / "report.json").read_text()) for f in (exported, tmp_path / "again"))
    for report in (first, second):
        assert all(report.pop(field) for field in MEASURED)
    assert first == second


# ---------------------------------------------------------------- bad input


def export_args(model: str, calibration: str = "calib.npz", *more: object) -> tuple[object, ...]:
    return ("export", model, "--calibration", calibration, "--out", "bad-out", *more)


@pytest.fixture
def place(workdir, tmp_path) -> Path:
    """A copy of the small network and its data, where anything left behind is seen."""
    for name in ("net.py", "calib.npz", "eval.npz"):
        (tmp_path / name).write_bytes((workdir / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("factory", "code", "words"),
    [
        ("nan_weight", 2, ("non-finite-weight", "conv.weight", "1 NaN or infinite")),
        ("inf_weight", 2, ("non-finite-weight", "head.weight")),
        ("branching", 2, ("data-dependent-control-flow", "net.py:")),
        ("unsupported", 2, ("unsupported-op", "erfinv", "fft", "net.py:")),
        ("broken", 2, ("the checkpoint is gone", "net.py")),
        ("absent", 2, ("absent",)),
    ],
)
def test_bad_networks(cli, place, factory, code, words):
    before = listing(place)
    refused(cli(*export_args(f"net.py:{factory}"), cwd=place), code, *words)
    assert listing(place) == before


def bad_arrays() -> dict[str, tuple[dict[str, np.ndarray], tuple[str, ...]]]:
    good = np.random.default_rng(0).normal(size=(20, 1, 8, 8)).astype(np.float32)
    nan, inf = good.copy(), good.copy()
    nan[3, 0, 1, 1], inf[5, 0, 0, 0] = np.nan, np.inf
    return {
        "wrong shape": ({"x": good[:, :, :7]}, ("shape", "(20, 1, 7, 8)", "(samples, 1, 8, 8)")),
        "nan": ({"x": nan}, ("sample 3", "NaN")),
        "inf": ({"x": inf}, ("sample 5", "infinite")),
        "empty": ({"x": good[:0]}, ("no samples",)),
        "wrong name": ({"image": good}, ("image",)),
        "text": ({"x": np.full((20, 1, 8, 8), "a")}, ("dtype",)),
    }


@pytest.mark.parametrize("kind", sorted(bad_arrays()))
def test_bad_calibration(cli, place, kind):
    arrays, words = bad_arrays()[kind]
    np.savez(place / "bad.npz", **arrays)
    before = listing(place)
    refused(cli(*export_args("net.py:build", "bad.npz"), cwd=place), 2, *words)
    assert listing(place) == before


def test_calibration_file_that_is_missing_or_damaged(cli, place):
    refused(cli(*export_args("net.py:build", "none.npz"), cwd=place), 2, "none.npz")
    (place / "cut.npz").write_bytes((place / "calib.npz").read_bytes()[:-200])
    refused(cli(*export_args("net.py:build", "cut.npz"), cwd=place), 2, "cut.npz")
    assert not (place / "bad-out").exists()


def test_activation_that_is_always_zero(cli, place):
    before = listing(place)
    refused(cli(*export_args("net.py:dead"), cwd=place), 2, "conv2d 'conv'", "is 0 on the whole calibration set", "net.py:")
    assert listing(place) == before


def test_unknown_recipe_key_names_the_nearest(cli, place):
    (place / "r.toml").write_text("weight_bit = 8\n")
    refused(cli(*export_args("net.py:build", "calib.npz", "--recipe", "r.toml"), cwd=place), 2, "'weight_bit'", "'weight_bits'")
    (place / "r.toml").write_text("weight_bits = [\n")
    refused(cli(*export_args("net.py:build", "calib.npz", "--recipe", "r.toml"), cwd=place), 2, "TOML")
    assert not (place / "bad-out").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("export", "net.py:build"), ("--calibration",)),
        (("bogus",), ("bogus",)),
        (("inspect", "absent.qir"), ("absent.qir", "does not exist")),
        (("inspect", "net.py"), ("net.py",)),
        (("verify", "absent", "--numerics", "nonsense"), ("absent",)),
        (
            ("simulate", "absent.qir", "--inputs", "calib.npz", "--numerics", "litert", "--out", "o.npz"),
            ("unknown numerics", "litert-reference"),
        ),
        (export_args("net.py:build", "calib.npz", "--target", "tflight"), ("unknown target", "tflite")),
        (export_args("net.py:build", "calib.npz", "--metric", "top9"), ("unknown metric", "top5")),
        (export_args("net.py:build", "calib.npz", "--labels", "net.py"), ("--labels", "--android-assets")),
        (export_args("net.py:build", "calib.npz", "--android-assets", "."), ("holds other files", "calib.npz")),
        (export_args("net.py:build", "calib.npz", "--android-assets", "app", "--labels", "absent.txt"), ("labels absent.txt",)),
        (export_args("net.py:build", "calib.npz", "--android-assets", "app", "--target", "c"), ("not c", "or both")),
        (("verify", "absent.tflite", "--device", "fax:1"), ("unknown device 'fax:1'", "host")),
        (("verify", "absent.tflite", "--device", "adb"), ("only profiles", "profile --device adb")),
        (("profile", "absent.tflite"), ("absent.tflite does not exist",)),
    ],
)
def test_wrong_usage(cli, place, args, words):
    before = listing(place)
    refused(cli(*args, cwd=place), 2, *words)
    assert listing(place) == before


def test_errors_are_one_document_with_json(cli, fresh, place):
    done = fresh(*export_args("net.py:unsupported", "calib.npz", "--json"), cwd=place)
    assert done.code == 2
    assert "Traceback" not in done.err
    document = done.document
    assert document["schema_version"] == 1
    assert document["exit_code"] == 2
    assert {"type", "message", "node", "source", "fix"} <= set(document["error"])
    assert len(document["error"]["problems"]) >= 2
    done = cli("bogus", "--json")
    assert done.code == 2
    assert "bogus" in done.document["error"]["message"]


@pytest.mark.parametrize("name", ["model.qir", "model.tflite"])
def test_truncated_and_flipped_files(cli, exported, tmp_path, name):
    data = (exported / name).read_bytes()
    rng = np.random.default_rng(1)
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    refused(cli("inspect", tmp_path / name), 2, name)
    for _ in range(40):
        broken = bytearray(data)
        broken[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        (tmp_path / name).write_bytes(broken)
        done = cli("inspect", tmp_path / name)
        # a .qir carries a digest; a lone .tflite has none, and a flipped weight is still a weight
        if name == "model.qir" or done.code:
            refused(done, 2, name)


def test_flipped_artifact_of_an_export_folder(cli, exported, tmp_path):
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name in ("model.tflite", "model.executorch-xnnpack.pte"):
        data = bytearray((exported / name).read_bytes())
        data[len(data) // 2] ^= 4
        (tmp_path / name).write_bytes(data)
        refused(cli("verify", tmp_path), 2, name, "SHA-256")
        (tmp_path / name).write_bytes((exported / name).read_bytes())


HOSTILE = [
    ("manifest.json", "[" * 100_000, "not valid JSON"),
    ("manifest.json", '{"artifacts": 1}', "lists no artifacts"),
    ("manifest.json", '{"artifacts": {"tflite": {"file": "../x", "sha256": ""}}}', "'../x'"),
    ("manifest.json", '{"artifacts": {"tflite": {"file": "\\u0000", "sha256": ""}}}', "no export writes"),
    ("manifest.json", '{"artifacts": {"later": {"file": "model.tflite", "sha256": ""}}}', "'later'"),
    ("report.json", '{"artifacts": {"tflite": "x"}}', "not the report of an export"),
    ("report.json", '{"metrics": {"litert-reference": "high"}}', "not the report of an export"),
]


@pytest.mark.parametrize(("name", "text", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_documents_of_an_export_folder(cli, exported, tmp_path, name, text, message):
    folder = tmp_path / "out"
    shutil.copytree(exported, folder)
    (folder / name).write_text(text)
    refused(cli("inspect", folder), 2, name, message)
    refused(cli("compare", folder, exported, "--runs", "0"), 2, name, message)
    if name == "manifest.json":
        done = cli("inspect", folder / "model.tflite")
        assert "Traceback" not in done.err
        assert done.code == 2


def test_out_that_is_a_file_or_not_writable(cli, place):
    (place / "bad-out").write_text("mine")
    refused(cli(*export_args("net.py:build"), cwd=place), 2, "bad-out is a file")
    assert (place / "bad-out").read_text() == "mine"
    refused(cli("export", "net.py:build", "--calibration", "calib.npz", "--out", "/proc/none/out", cwd=place), 2, "/proc/none/out")


def test_full_disk_leaves_nothing(fresh, place):
    """A limit on file sizes stands for a full disk: both fail in write()."""
    before = listing(place)
    prefix = ("bash", "-c", 'trap "" XFSZ; ulimit -f 4; exec "$@"', "limited")
    done = fresh(*export_args("net.py:build", "calib.npz", "--target", "tflite"), cwd=place, prefix=prefix)
    refused(done, 2, "can't write")
    assert listing(place) == before


def test_disk_full_error_in_process(monkeypatch, tmp_path):
    from qwtv2_edge import files
    from qwtv2_edge.errors import UsageError
    from qwtv2_edge.export import staged_folder

    def no_space(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", no_space)
    with pytest.raises(UsageError, match="No space left"), staged_folder(tmp_path / "a" / "b") as folder:
        files.write_atomic(folder / "model.qir", b"x")
    assert listing(tmp_path) == set()


@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGINT, 1.0), (signal.SIGINT, 7.0), (signal.SIGTERM, 5.0)])
def test_interrupt(place, number, seconds):
    """Early (imports, capture) and late (a long verification) interrupts: 130, nothing left, no child alive."""
    rng = np.random.default_rng(0)
    np.savez(place / "long.npz", x=rng.normal(size=(400_000, 1, 8, 8)).astype(np.float32), y=np.zeros(400_000, np.int64))
    before = listing(place)
    command = [sys.executable, "-m", "qwtv2_edge", *map(str, export_args("net.py:build", "calib.npz", "--evaluation", "long.npz"))]
    process = subprocess.Popen(
        command, cwd=place, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )
    time.sleep(seconds)
    assert process.poll() is None, process.stderr.read()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (process.returncode, err)
    assert "Traceback" not in err
    assert err.count("error ") == 1
    assert "interrupted" in err
    assert out == ""
    assert listing(place) == before
    with pytest.raises(ProcessLookupError):  # nobody is left in the process group
        os.killpg(process.pid, 0)


def test_reader_that_leaves_is_no_traceback():
    command = f"{sys.executable} -m qwtv2_edge numerics --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], env=environment(), capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr


def test_golden_npz_is_a_plain_archive(exported):
    with zipfile.ZipFile(exported / "golden.npz") as archive:
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
