"""Samples from files, arrays and iterables."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from small_graphs import two_inputs

from qwtv2_edge.data import codes_of, open_data, rereadable
from qwtv2_edge.errors import CalibrationError, UsageError
from qwtv2_edge.ir import GraphBuilder, Quantization, TensorType


def graph_of(shape=(1, 4, 4, 3), name="image", dtype="float32", quantization=None, **metadata):
    b = GraphBuilder("g", metadata)
    b.outputs = [b.input(name, TensorType(shape, dtype, quantization))]
    return b.freeze()


def whole(source, graph=None, size=3):
    return [np.concatenate(a) for a in zip(*open_data(source, graph or graph_of()).batches(size), strict=True)]


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (7, 4, 4, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", ["image", "x"])
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz(tmp_path, images, name, write):
    path = tmp_path / "d.npz"
    write(path, **{name: images, "y": np.arange(7)[:, None], "other": np.zeros(3)})
    data = open_data(path, graph_of())
    assert data.count == 7
    np.testing.assert_array_equal(data.labels, np.arange(7))
    for _ in range(2):
        batches = list(data.batches(3))
        assert [len(b[0]) for b in batches] == [3, 3, 1]
        assert batches[0][0].dtype == np.float32
        np.testing.assert_array_equal(np.concatenate([b[0] for b in batches]), images)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float16, np.float64, ">f4", np.int64, np.bool_])
def test_npz_dtypes_are_cast_as_they_are(tmp_path, dtype):
    array = np.arange(2 * 48).reshape(2, 4, 4, 3).astype(dtype)
    np.savez(tmp_path / "d.npz", x=array)
    (got,) = whole(tmp_path / "d.npz")
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, array.astype(np.float32))


def test_npz_columns_first(tmp_path, images):
    np.savez(tmp_path / "d.npz", x=np.asfortranarray(images))
    np.testing.assert_array_equal(whole(tmp_path / "d.npz")[0], images)


def test_npz_is_streamed(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((4000, 32, 32, 3), np.float32))
    data = open_data(tmp_path / "d.npz", graph_of((1, 32, 32, 3)))
    tracemalloc.start()
    rows = sum(len(b[0]) for b in data.batches(16))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows == 4000
    assert peak < 4 << 20  # the array is 49 MB


def test_single_samples_batches_and_stacks(images):
    graph = graph_of()
    for source in (
        images,
        (images,),
        list(images),
        [images[:4], images[4:]],
        [images[0], images[1:]],
        images[:, None],
        {"image": images},
        {"x": images},
        iter(list(images)),
    ):
        np.testing.assert_array_equal(whole(source, graph)[0], images)
    np.testing.assert_array_equal(whole(images[0], graph)[0], images[:1])


def test_several_inputs(rng):
    graph = two_inputs()
    a, b = rng.standard_normal((5, 4)).astype(np.float32), rng.standard_normal((5, 2, 2)).astype(np.float32)
    for source in ((a, b), [a, b], {"b": b, "a": a}, list(zip(a, b, strict=True)), [(a[:2], b[:2]), (a[2:], b[2:])]):
        got = whole(source, graph)
        np.testing.assert_array_equal(got[0], a)
        np.testing.assert_array_equal(got[1], b)


def test_own_batch_of_the_network(rng):
    graph = graph_of((2, 3))
    array = rng.standard_normal((6, 3)).astype(np.float32)
    assert [len(b[0]) for b in open_data(array, graph).batches(3)] == [2, 2, 2]
    np.testing.assert_array_equal(whole(array.reshape(3, 2, 3), graph)[0], array)
    with pytest.raises(UsageError, match="5 samples, not a multiple"):
        whole(array[:5], graph)


def test_generators_are_read_once(images):
    data = open_data((i for i in images), graph_of())
    assert data.count is None
    assert sum(len(b[0]) for b in data.batches(2)) == 7
    with pytest.raises(UsageError, match="read already"):
        list(data.batches(2))


def test_rereadable_spools_generators(images):
    data = open_data((i for i in images), graph_of())
    with rereadable(data) as again:
        assert again.count == 7
        for _ in range(2):
            np.testing.assert_array_equal(np.concatenate([b[0] for b in again.batches(4)]), images)
    with rereadable(open_data(images, graph_of())) as same:
        assert same.again


def test_select_sample_split(images):
    np_labels = {"image": images, "y": np.arange(7)}
    data = open_data(np_labels, graph_of())
    part = data.select([5, 1])
    assert part.count == 2
    np.testing.assert_array_equal(part.labels, [1, 5])
    np.testing.assert_array_equal(part.arrays()[0], images[[1, 5]])
    assert data.sample(100, 0) is data
    assert data.sample(3, 0).labels.tolist() == data.sample(3, 0).labels.tolist()
    rest, held = data.split(0.3, 0)
    assert sorted([*rest.labels, *held.labels]) == list(range(7))
    assert held.count == 2
    assert data.select([0]).split(0.3, 0)[1].count == 0


def test_layouts(images):
    moved = images.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(whole(moved, graph_of(io_layout="nhwc"))[0], images)


def test_int8_inputs_take_codes_or_real_values(images):
    graph = graph_of(dtype="int8", quantization=Quantization.per_tensor(1.0, -128))
    np.testing.assert_array_equal(whole(images, graph)[0], (images.astype(int) - 128).astype(np.int8))
    codes = images.view(np.int8)
    got = whole(codes, graph)[0]
    assert got.dtype == np.int8
    np.testing.assert_array_equal(got, codes)
    type = TensorType((1, 4), "int8", Quantization.per_tensor(2.0, 1))
    np.testing.assert_array_equal(codes_of(np.array([1, -1, 3, 1e6], np.float32), type), [2, 0, 3, 127])


BAD = {
    "nchw": lambda x: x.transpose(0, 3, 1, 2),
    "wrong size": lambda x: x[:, :, :2],
    "flat": lambda x: x.reshape(7, -1),
    "scalar": lambda x: np.float32(3),
    "empty array": lambda x: x[:0],
    "empty list": lambda x: [],
    "empty generator": lambda x: iter(()),
    "NaN": lambda x: np.where(np.arange(7)[:, None, None, None] == 5, np.nan, x),
    "infinity in a list": lambda x: [x[0], x[1] * np.inf],
    "float64 beyond float32": lambda x: x * 1e300,
    "objects": lambda x: np.full(x.shape, None),
    "text": lambda x: np.full(x.shape, "a"),
    "complex": lambda x: x * 1j,
    "ragged": lambda x: [[1, [2]]],
    "number": lambda x: 3,
    "pairs": lambda x: [(x[0], 1)],
    "wrong names": lambda x: {"pixels": x, "y": np.zeros(7)},
    "labels too short": lambda x: {"x": x, "y": np.zeros(6)},
    "one label": lambda x: {"x": x, "y": 3},
    "text labels": lambda x: {"x": x, "y": np.full(7, "cat")},
    "wrong third": lambda x: [x[0], x[1], x[2, 0]],
}


def test_bad_samples(golden, images):
    """Whole messages; every one is of the class that the caller chose."""
    text = []
    for name, make in BAD.items():
        with pytest.raises(CalibrationError) as caught, np.errstate(invalid="ignore"):
            list(open_data(make(images), graph_of(), purpose="calibration", error=CalibrationError).batches(3))
        text.append(f"{name}\n{caught.value}\n")
    golden("data_errors.txt", "\n".join(text))


def test_files_that_are_no_npz(tmp_path, images):
    graph = graph_of()
    path = tmp_path / "d.npz"

    def refused(match):
        with pytest.raises(UsageError, match=match):
            whole(path, graph)

    refused("No such file")
    path.mkdir()
    refused("Is a directory")
    path.rmdir()
    path.write_bytes(b"")
    refused("not an .npz")
    np.save(tmp_path / "d.npy", images)
    path.write_bytes((tmp_path / "d.npy").read_bytes())
    refused("not an .npz")
    np.savez(path, x=np.array([object()]), allow_pickle=True)
    refused("Python objects")
    np.savez(path, x=images)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    refused("not an .npz")
    for at in range(60, len(good) - 150, 37):  # anywhere in the member
        broken = bytearray(good)
        broken[at] ^= 0xFF
        path.write_bytes(bytes(broken))
        try:
            (got,) = whole(path, graph)
        except UsageError:
            continue
        np.testing.assert_array_equal(got, images)  # bytes that no reader looks at


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 4, 4, 3)}", "192 bytes, needs 192000000000"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4, 4, 3)}", "192 bytes, needs -192"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4, 4, 3)", "damaged .npz"),
        ("{" * 9000, "damaged .npz"),
    ],
)
def test_headers_that_lie(tmp_path, header, match):
    text = header.encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"\0" * 192)
    with pytest.raises(UsageError, match=match):
        whole(tmp_path / "d.npz")


def test_inputs_of_different_length(tmp_path):
    np.savez(tmp_path / "d.npz", a=np.zeros((3, 4)), b=np.zeros((2, 2, 2)))
    with pytest.raises(UsageError, match="differ in their number of samples: 'a' 3, 'b' 2"):
        open_data(tmp_path / "d.npz", two_inputs())
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 4)))
    with pytest.raises(UsageError, match="no array 'a', 'b'; there is x"):
        open_data(tmp_path / "d.npz", two_inputs())


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_indices_of_any_integer_type(dtype):
    graph = graph_of((1, 5), "ids", "int32")
    (ids,) = whole(np.arange(10, dtype=dtype).reshape(2, 5), graph)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids.reshape(-1), np.arange(10))


@pytest.mark.parametrize("bad", [np.full((2, 5), 2**31), np.zeros((2, 5), np.float32)])
def test_what_int32_does_not_hold_is_no_index(bad):
    with pytest.raises(UsageError, match="give indices"):
        whole(bad, graph_of((1, 5), "ids", "int32"))
