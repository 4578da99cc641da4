"""Files that are either whole or absent, and tensor files that describe themselves."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as _to_bytes

__all__ = [
    "FileError",
    "check_writable",
    "finite",
    "load_arrays",
    "load_facts",
    "save_arrays",
    "write_bytes",
    "write_json",
    "writing",
]


class FileError(ValueError):
    """A file that cannot be used, named, with the reason."""


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write to a temporary file beside `path`; fsync and rename at the end, or leave nothing.

    Examples:
        >>> with writing("/tmp/rdcurve-example.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> Path("/tmp/rdcurve-example.txt").read_text()
        'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the suffix stays last: savefig and pandas choose the format by it
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=f".part{path.suffix}")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's 0600 would lock a group out of the result
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Refuse a place where nothing can be written, before the work whose result is to go there.

    Raises:
        OSError: names the folder.
        FileError: it is one.
    """
    if path.is_dir():
        raise FileError(f"{path}: is a folder; name a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` whole or not at all."""
    with writing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all; NaN is refused, because it is not JSON."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def finite(value: float) -> float | None:
    """As JSON may hold it: None for a number that is not finite.

    Examples:
        >>> finite(1), finite(float("inf"))
        (1.0, None)
    """
    return float(value) if math.isfinite(value) else None


def save_arrays(
    path: str | os.PathLike[str], kind: str, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]
) -> None:
    """Write named arrays and JSON facts as one safetensors file of a stated kind.

    The bytes depend on the content alone. All facts go under one metadata key: safetensors does not order its keys.
    """
    metadata = {"rdcurve": json.dumps({"kind": kind, **facts}, sort_keys=True)}
    contiguous = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    write_bytes(path, _to_bytes(contiguous, metadata=metadata))


def load_arrays(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a file that `save_arrays` wrote. Nothing in it is executed.

    Raises:
        FileError: the file is missing, cut, not a safetensors file, or of another kind.
    """
    with _opened(path, kind) as (file, facts):
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    if facts.get("kind") != kind:
        raise FileError(f"{path}: holds {facts.get('kind') or 'something unknown'}, not {kind}")
    return arrays, facts


def load_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What such a file, of whatever kind, says of itself.

    Raises:
        FileError: the file is missing, cut, or not a safetensors file.
    """
    with _opened(path, "safetensors") as (_, facts):
        return facts


@contextmanager
def _opened(path: str | os.PathLike[str], what: str) -> Iterator[tuple[safe_open, dict[str, Any]]]:
    if not Path(path).is_file():
        raise FileError(f"{path}: no such file ({what} expected)")
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get("rdcurve", "{}"))
            if not isinstance(facts, dict):
                raise ValueError(f"what it says of itself is a {type(facts).__name__}")
            yield file, facts
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path}: not a readable {what} file ({error})") from error


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
