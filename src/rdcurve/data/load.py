"""Read fetched data sets as tensors, in file order and on the scale that the paper uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rdcurve.files import FileError

__all__ = ["images", "labels", "training_split"]


def images(folder: Path, split: str, n: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images of a fetched data set, in the order of its files.

    Args:
        folder: what `fetch` filled: MNIST (IDX files) or CIFAR-10 (binary batches).
        split: "train" or "test".
        n: only the first n, for example the paper's first 50 test images.
        dtype: of the result.

    Returns:
        MNIST: [n, 784], pixel / 255, in [0, 1]. CIFAR-10: [n, 3, 32, 32], in [-1, 1].

    Raises:
        FileError: no data set is there, a file of it is cut, or there are fewer than n.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    if not folder.is_dir():
        raise FileError(f"{folder}: no such folder; fetch the data set first")
    idx = folder / ("train-images-idx3-ubyte" if split == "train" else "t10k-images-idx3-ubyte")
    if idx.is_file():
        pixels = _first(_rows(idx, 16, 784), n, folder)
        return torch.from_numpy(pixels / 255.0).to(dtype)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    if all((folder / name).is_file() for name in names):
        batches = [_rows(folder / name, 0, 3073)[:, 1:] for name in names]
        pixels = _first(np.concatenate(batches), n, folder).reshape(-1, 3, 32, 32)
        return torch.from_numpy(pixels / 127.5 - 1.0).to(dtype)
    raise FileError(f"{folder}: holds neither MNIST nor CIFAR-10 ({idx.name} or {names[0]} expected)")


def labels(folder: Path, split: str) -> Tensor:
    """Digits of the MNIST images, [n] int64, in the order of `images`."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    path = folder / ("train-labels-idx1-ubyte" if split == "train" else "t10k-labels-idx1-ubyte")
    if not path.is_file():
        raise FileError(f"{path}: no such file; labels are read from MNIST as it is fetched")
    return torch.from_numpy(_rows(path, 8, 1)[:, 0].astype(np.int64))


def _first(rows: np.ndarray, n: int | None, folder: Path) -> np.ndarray:
    if n is not None and n > len(rows):
        raise FileError(f"{folder}: holds {len(rows)} images of the split, and the first {n} are asked for")
    return rows[:n]


def _rows(path: Path, header: int, width: int) -> np.ndarray:
    """The bytes after the header, [n, width]."""
    content = np.fromfile(path, np.uint8)
    if len(content) <= header or (len(content) - header) % width:
        raise FileError(
            f"{path}: {len(content)} bytes are not a header of {header} and records of {width}; the file is cut: "
            "remove it and fetch the data set again"
        )
    stated, found = int.from_bytes(content[4:8].tobytes(), "big"), (len(content) - header) // width
    if header and stated != found:  # IDX: a magic number, then how many
        raise FileError(
            f"{path}: says that it holds {stated} records, and holds {found}; remove it and fetch the data set again"
        )
    return content[header:].reshape(-1, width)


def training_split(pixels: Tensor, n_validation: int, seed: int) -> tuple[Tensor, Tensor]:
    """Training and validation images, or their labels: a fixed permutation, the first `n_validation` for validation."""
    if not 0 < n_validation < len(pixels):
        raise ValueError(f"n_validation must lie in 1 .. {len(pixels) - 1}, not {n_validation}")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(pixels)))
    return pixels[order[n_validation:]], pixels[order[:n_validation]]
