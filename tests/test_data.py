"""Fetching: whatever a source holds, only the published bytes get their name."""

import gzip
import hashlib
import http.client
import io
import lzma
import pickle
import struct

import numpy as np
import pytest
import torch

from rdcurve.data import fetch as module
from rdcurve.data.fetch import DATASETS, Dataset, fetch
from rdcurve.data.load import images, labels, training_split
from rdcurve.files import FileError
from rdcurve.vision import torchvision

FILES = {"a.bin": b"first file" * 100, "b.bin": b"second file" * 100}


@pytest.fixture
def small(monkeypatch):
    """A data set of two files whose canonical address and package answer what `answers` says."""
    answers = {"canonical": OSError("no network"), "packaged": FileError("no package")}

    def source(name):
        def read():
            if isinstance(answers[name], Exception):
                raise answers[name]
            yield from answers[name].items()

        return read

    sums = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    monkeypatch.setitem(DATASETS, "mnist", Dataset(sums, source("canonical"), source("packaged")))
    return answers


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def found(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*")} if folder.exists() else {}


@pytest.mark.parametrize(
    "files",
    [
        FILES,
        {f"{name}.gz": gzip.compress(data) for name, data in FILES.items()},
        {f"{name}.xz": lzma.compress(data) for name, data in FILES.items()},
    ],
    ids=["plain", "gz", "xz"],
)
def test_mirror_comes_first(small, tmp_path, files):
    write(tmp_path / "mirror/mnist", files)
    assert "mirror" in fetch("mnist", tmp_path / "out", tmp_path / "mirror")
    assert found(tmp_path / "out") == FILES


def test_sources_are_tried_in_order(small, tmp_path):
    small["packaged"] = FILES
    assert "package" in fetch("mnist", tmp_path / "out", tmp_path / "empty")
    small["canonical"] = FILES
    assert "canonical" in fetch("mnist", tmp_path / "again")


def test_files_of_two_sources_complete_each_other(small, tmp_path):
    write(tmp_path / "mirror/mnist", {"a.bin": FILES["a.bin"]})
    small["packaged"] = FILES
    fetch("mnist", tmp_path / "out", tmp_path / "mirror")
    assert found(tmp_path / "out") == FILES


def test_second_run_fetches_nothing(small, tmp_path):
    small["canonical"] = FILES
    fetch("mnist", tmp_path / "out")
    small["canonical"] = OSError("must not be asked")
    assert "nothing to fetch" in fetch("mnist", tmp_path / "out")


@pytest.mark.parametrize(
    "bad",
    [FILES["b.bin"][:-1], FILES["b.bin"] + b"x", b"", b"<html>not found</html>", b"X" + FILES["b.bin"][1:]],
    ids=["cut", "longer", "empty", "html", "flipped"],
)
@pytest.mark.parametrize("source", ["mirror", "canonical", "packaged"])
def test_wrong_bytes_are_named_refused_and_not_left(small, tmp_path, bad, source):
    files = {**FILES, "b.bin": bad}
    if source == "mirror":
        write(tmp_path / "mirror/mnist", files)
    else:
        small[source] = files
    with pytest.raises(FileError, match=r"b\.bin: SHA-256 is .*refused"):
        fetch("mnist", tmp_path / "out", tmp_path / "mirror" if source == "mirror" else None)
    assert found(tmp_path / "out") == {"a.bin": FILES["a.bin"]}  # the good one is kept, no temporary file is left


@pytest.mark.parametrize(
    "answer",
    [
        gzip.compress(b"image" * 1000)[:-20],
        b"\x1f\x8b" + b"\0" * 40,
        b"<html>moved</html>",
        http.client.IncompleteRead(b"part"),
        OSError("no route"),
    ],
    ids=["cut", "corrupt", "html", "incomplete", "unreachable"],
)
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_download_that_goes_wrong_leads_to_the_next_source(monkeypatch, tmp_path, name, answer):
    def download(address):
        if isinstance(answer, Exception):
            raise answer
        return answer

    asked = []
    monkeypatch.setattr(module, "_download", download)
    real = DATASETS[name]
    monkeypatch.setitem(DATASETS, name, real._replace(packaged=lambda: asked.append(name) or iter(())))
    with pytest.raises(FileError, match="canonical address"):
        fetch(name, tmp_path)
    assert asked == [name]
    assert not list(tmp_path.iterdir())


def test_cut_archive_is_named(small, tmp_path):
    write(tmp_path / "mirror/mnist", {"a.bin.gz": gzip.compress(FILES["a.bin"])[:-5]})
    with pytest.raises(FileError, match=r"a\.bin\.gz: cannot be decompressed"):
        fetch("mnist", tmp_path / "out", tmp_path / "mirror")


def test_a_file_that_went_bad_is_fetched_again(small, tmp_path):
    small["canonical"] = FILES
    fetch("mnist", tmp_path / "out")
    (tmp_path / "out/a.bin").write_bytes(b"bad")
    fetch("mnist", tmp_path / "out")
    assert found(tmp_path / "out") == FILES


def test_no_source_says_what_each_said(small, tmp_path):
    with pytest.raises(FileError) as error:
        fetch("mnist", tmp_path / "out")
    for part in ("a.bin, b.bin", "no network", "no package"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "answer",
    [
        ConnectionResetError("cut"),
        http.client.IncompleteRead(b""),
        b"<html>not found</html>",
        gzip.compress(b"other"),
        gzip.compress(b"right")[:-9],
    ],
    ids=["refused", "broken off", "html", "wrong", "cut"],
)
def test_what_one_address_of_mnist_lacks_the_next_gives(monkeypatch, tmp_path, answer):
    def download(address):
        if address.startswith("first/"):
            if isinstance(answer, Exception):
                raise answer
            return answer
        return gzip.compress(b"right")

    sums = dict.fromkeys(DATASETS["mnist"].sha256, hashlib.sha256(b"right").hexdigest())
    monkeypatch.setattr(module, "_download", download)
    monkeypatch.setattr(module, "_MNIST", sums)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["first/", "second/"])
    monkeypatch.setitem(DATASETS, "mnist", DATASETS["mnist"]._replace(sha256=sums))
    assert fetch("mnist", tmp_path) == "mnist: fetched from canonical address"
    assert set(found(tmp_path).values()) == {b"right"}


def test_unknown_data_set_names_the_known(tmp_path):
    with pytest.raises(FileError, match="mnist, cifar10"):
        fetch("imagenet", tmp_path)


def test_a_pickle_that_runs_code_is_refused():
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    with pytest.raises(FileError, match=r"builtins\.print; refused"):
        module._ArraysOnly(io.BytesIO(pickle.dumps(Evil()))).load()
    array = np.arange(6.0).reshape(2, 3)
    old = pickle.dumps(array, protocol=2).replace(b"numpy._core", b"numpy.core")
    assert np.array_equal(module._ArraysOnly(io.BytesIO(old), encoding="latin1").load(), array)


def test_mnist_is_read_in_order_on_the_unit_interval(tmp_path):
    pixels = np.arange(3 * 784, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
    header = struct.pack(">4i", 0x803, 3, 28, 28)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    x = images(tmp_path, "test", 2, torch.float64)
    assert x.shape == (2, 784)
    assert torch.equal(x * 255, torch.from_numpy(pixels[:2].reshape(2, 784)).double())


def test_cifar_is_read_on_minus_one_to_one(tmp_path):
    record = np.zeros((10, 3073), np.uint8)
    record[:, 1:1025] = 255  # red
    (tmp_path / "test_batch.bin").write_bytes(record.tobytes())
    x = images(tmp_path, "test", 4)
    assert x.shape == (4, 3, 32, 32)
    assert (x[:, 0] == 1).all()
    assert (x[:, 1:] == -1).all()


def test_missing_folder_and_foreign_folder(tmp_path):
    with pytest.raises(FileError, match="fetch the data set first"):
        images(tmp_path / "none", "test")
    with pytest.raises(FileError, match="neither MNIST nor CIFAR-10"):
        images(tmp_path, "test")


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("t10k-images-idx3-ubyte", images),
        ("t10k-labels-idx1-ubyte", labels),
        ("test_batch.bin", images),
    ],
)
def test_a_file_that_is_cut_is_named(tmp_path, name, read):
    for content in (b"", bytes(8) if "ubyte" in name else bytes(7), bytes(16 + 783) if "images" in name else bytes(5)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError, match=rf"{name}: {len(content)} bytes .* the file is cut"):
            read(tmp_path, "test")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t10k-images-idx3-ubyte", struct.pack(">4i", 0x803, 2, 28, 28) + bytes(2 * 784)),
        ("test_batch.bin", bytes(2 * 3073)),
    ],
)
def test_fewer_images_than_are_asked_for_are_none(tmp_path, name, content):
    """A file of fewer images: a curve of them would look like any other."""
    (tmp_path / name).write_bytes(content)
    assert len(images(tmp_path, "test", 2)) == len(images(tmp_path, "test")) == 2
    with pytest.raises(FileError, match="holds 2 images of the split, and the first 3 are asked for"):
        images(tmp_path, "test", 3)


@pytest.mark.parametrize(
    ("name", "read", "header", "width"),
    [("train-images-idx3-ubyte", images, (0x803, 5, 28, 28), 784), ("train-labels-idx1-ubyte", labels, (0x801, 5), 1)],
)
def test_a_file_cut_between_two_records_is_named(tmp_path, name, read, header, width):
    whole = struct.pack(f">{len(header)}i", *header) + bytes(5 * width)
    (tmp_path / name).write_bytes(whole)
    assert len(read(tmp_path, "train")) == 5
    (tmp_path / name).write_bytes(whole[:-width])
    with pytest.raises(FileError, match=rf"{name}: says that it holds 5 records, and holds 4"):
        read(tmp_path, "train")


def test_training_split_is_a_fixed_partition():
    x = torch.arange(100.0)
    training, validation = training_split(x, 10, 6)
    assert len(training) == 90
    assert torch.equal(torch.cat([training, validation]).sort().values, x)
    assert torch.equal(training, training_split(x, 10, 6)[0])
    assert not torch.equal(training, training_split(x, 10, 7)[0])
