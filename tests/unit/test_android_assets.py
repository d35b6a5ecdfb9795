"""The files that the Android demo app reads."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
from small_graphs import export_folder, image_graph, integer_graph

from qwtv2_edge.android import ABIS, FORMATS, OWN_FILES, check_folder, check_request, write_assets
from qwtv2_edge.backends import get_numerics
from qwtv2_edge.errors import UsageError
from qwtv2_edge.ir import GraphBuilder, Quantization, TensorType
from qwtv2_edge.ops.spec import NoAttrs
from qwtv2_edge.simulator.run import run


def opened(tmp_path, graph, targets=FORMATS):
    return export_folder(tmp_path / "out", graph, targets)


def two_images():
    """Two inputs, each of which could be an image."""
    b = GraphBuilder("two", {})
    for name in ("left", "right"):
        x = b.input(name, TensorType((1, 8, 8, 3), "int8", Quantization.per_tensor(0.5, 0)))
        b.outputs += b.add("dequantize", (x,), NoAttrs(), name=f"{name}/real", out_types=(TensorType((1, 8, 8, 3)),))
    return b.freeze()


def written(folder):
    description = json.loads((folder / "app.json").read_bytes())
    with np.load(folder / "golden.npz") as file:
        return description, dict(file)


def test_expected_bytes_of_every_processor(tmp_path):
    graph = integer_graph()
    files = write_assets(opened(tmp_path, graph), tmp_path / "assets")
    description, golden = written(tmp_path / "assets")
    assert set(files) == {p.name for p in (tmp_path / "assets").iterdir()} == OWN_FILES - {"labels.txt"}
    assert description["samples"] == 3
    for entry in description["formats"]:
        assert set(entry["expected"]) == set(ABIS)
        for abi, expected in entry["expected"].items():
            numerics = get_numerics(expected["numerics"])
            assert numerics.family == {"arm64-v8a": "aarch64", "x86_64": "x86_64"}[abi]
            (want,) = run(graph, [golden["x"]], numerics)
            assert golden[f"{numerics.name}/{graph.outputs[0]}"].tobytes() == want.tobytes()
            assert expected["declared_lsb"] == (numerics.declared_lsb(graph) or 0)
    assert {e["runtime"] for e in description["formats"]} == {"litert", "executorch"}
    for name, entry in description["files"].items():
        content = (tmp_path / "assets" / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize(
    ("graph", "layout", "size"),
    [
        (image_graph((1, 1, 8, 8), perm=(0, 2, 3, 1)), "NCHW", (8, 8, 1)),
        (image_graph((1, 3, 6, 8)), "NCHW", (6, 8, 3)),
        (image_graph((1, 6, 8, 3)), "NHWC", (6, 8, 3)),
        (image_graph((1, 8, 8, 1), "int8"), "NHWC", (8, 8, 1)),
        (image_graph((1, 3, 6, 3)).with_metadata(nhwc_io="x"), "NHWC", (3, 6, 3)),
    ],
)
def test_images(tmp_path, graph, layout, size):
    write_assets(opened(tmp_path, graph), tmp_path / "assets")
    description, _ = written(tmp_path / "assets")
    image = description["image"]
    assert description["kind"] == "image"
    assert (image["layout"], (image["height"], image["width"], image["channels"])) == (layout, size)
    black, white = ((p - image["mean"][0]) * image["scale"][0] for p in (0, 255))
    assert (black, white) == (0.0, 127.5)  # codes -128 and 127 at scale 0.5 and zero point -128
    assert len(image["mean"]) == len(image["scale"]) == size[2]


@pytest.mark.parametrize("graph", [image_graph((1, 49, 10, 1)), image_graph((1, 640)), integer_graph(), two_images()])
def test_anything_else_is_features(tmp_path, graph):
    write_assets(opened(tmp_path, graph, ["tflite"]), tmp_path / "assets")
    description, _ = written(tmp_path / "assets")
    assert description["kind"] == "features"
    assert description["image"] is None


def test_a_reconstruction_has_no_classes(tmp_path):
    write_assets(opened(tmp_path, image_graph((1, 640)), ["tflite"]), tmp_path / "assets")
    assert written(tmp_path / "assets")[0]["task"] == "values"


def test_labels_take_the_place_of_older_ones(tmp_path):
    source = opened(tmp_path, integer_graph())
    (tmp_path / "labels").write_bytes("cat\r\ndog \r\nГусь\r\n\r\n".encode())
    write_assets(source, tmp_path / "assets", tmp_path / "labels")
    assert (tmp_path / "assets" / "labels.txt").read_text("utf-8") == "cat\ndog\nГусь\n"
    assert "labels.txt" in written(tmp_path / "assets")[0]["files"]
    write_assets(source, tmp_path / "assets")
    assert not (tmp_path / "assets" / "labels.txt").exists()


@pytest.mark.parametrize("text", [b"cat\ndog\n", b"cat\n\ndog\n", b"\xff\n1\n2\n"])
def test_labels_that_do_not_fit(tmp_path, text):
    (tmp_path / "labels").write_bytes(text)
    with pytest.raises(UsageError, match="labels"):
        write_assets(opened(tmp_path, integer_graph()), tmp_path / "assets", tmp_path / "labels")
    assert not (tmp_path / "assets").exists()


@pytest.mark.parametrize(
    ("targets", "text", "words"),
    [
        (["c", "tflite-micro"], b"cat\n", "not c, tflite-micro"),
        (["tflite"], None, "can't read labels"),
        (["tflite"], b"\xff\n", "can't read labels"),
        (["tflite"], b"cat\n \ndog\n\n", "line 2 is empty"),
    ],
)
def test_what_is_refused_before_the_export(tmp_path, targets, text, words):
    if text is not None:
        (tmp_path / "labels").write_bytes(text)
    with pytest.raises(UsageError, match=words):
        check_request(tmp_path / "assets", tmp_path / "labels", targets)


def test_a_folder_with_other_things_is_refused(tmp_path):
    folder = tmp_path / "assets"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=r"holiday\.jpg"):
        write_assets(opened(tmp_path, integer_graph()), folder)
    with pytest.raises(UsageError, match="is a file"):
        check_folder(folder / "holiday.jpg")
    assert [p.name for p in folder.iterdir()] == ["holiday.jpg"]


def test_artifacts_that_the_app_can_not_run(tmp_path):
    with pytest.raises(UsageError, match="executorch-portable"):
        write_assets(opened(tmp_path, integer_graph(), ["executorch-portable"]), tmp_path / "assets")


def test_the_same_export_gives_the_same_bytes(tmp_path):
    source = opened(tmp_path, integer_graph())
    for name in ("a", "b"):
        write_assets(source, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert b"/tmp" not in path.read_bytes()
    assert np.load(io.BytesIO((tmp_path / "a" / "golden.npz").read_bytes())).files[0] == "x"
