"""The state of a run on disk: kill it at any moment, run it again, get the same bytes.

A run owns the folder `root/<key>`, where the key is a hash of everything that its result depends on; a changed setting
is another key and never resumes. Two generations are kept, each a SHA-256 digest followed by a safetensors payload; a
file that does not match its digest is never used.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from safetensors.torch import load, save
from torch import Tensor

from rdcurve.files import write_bytes

__all__ = ["Checkpoint", "Interrupted", "code_digest", "content_key"]

logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """The run was asked to stop; its state is saved and it can go on."""


def content_key(**parts: Any) -> str:
    """A hash of settings (anything JSON) and tensors."""
    digest = hashlib.sha256()
    for name, part in sorted(parts.items()):
        if isinstance(part, Tensor):
            part = [str(part.dtype), list(part.shape), hashlib.sha256(part.cpu().numpy().tobytes()).hexdigest()]
        digest.update(json.dumps([name, part], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def code_digest() -> str:
    """A hash of the sampler's source: a run that was started by other code does not go on."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


class Checkpoint:
    """State folder of one run. Use as a context manager: entering waits until no other process works on the key.

    Args:
        root: folder of all state folders, or None to keep no state.
        key: from `content_key`.
        every: seconds between two saves.
    """

    def __init__(self, root: Path | str | None, key: str, every: float = 30.0) -> None:
        self.folder = None if root is None else Path(root) / key
        self.every = every
        self._saved_at = time.monotonic()
        self._stop: int | None = None

    def __enter__(self) -> Checkpoint:
        if self.folder is not None:
            self._lock = self._acquire(self.folder)
        # handlers only set a flag: real work inside a signal handler can hang
        self._handlers = {
            number: signal.signal(number, self._request_stop)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
            if self.folder is not None
        }
        return self

    @staticmethod
    def _acquire(folder: Path) -> IO[str]:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / "lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("another process works on %s; waiting for it", folder)
                fcntl.flock(lock, fcntl.LOCK_EX)
            try:  # the one before us may have finished and removed the folder while we waited
                if os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name)):
                    return lock
            except FileNotFoundError:
                pass
            lock.close()

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.folder is not None:
            self._lock.close()

    def _request_stop(self, number: int, frame: object) -> None:
        self._stop = number

    def load(self) -> dict[str, Tensor] | None:
        """The newest whole state, or None."""
        if self.folder is None:
            return None
        for path in (self.folder / "state", self.folder / "state.previous"):
            if not path.exists():
                continue
            data = path.read_bytes()
            if hashlib.sha256(data[32:]).digest() == data[:32]:
                logger.info("going on from %s", path)
                return load(data[32:])
            logger.warning("%s is damaged and is not used", path)
        return None

    def offer(self, state: Callable[[], Mapping[str, Tensor]]) -> None:
        """Save `state()` if it is time to.

        Raises:
            Interrupted: a signal asked the run to stop; the state is saved first.
        """
        stop = self._stop
        if self.folder is not None and (stop is not None or time.monotonic() - self._saved_at >= self.every):
            self._save(state())
        if stop is not None:
            raise Interrupted(f"stopped by {signal.Signals(stop).name}; the state is saved, run the command again")

    def _save(self, state: Mapping[str, Tensor]) -> None:
        assert self.folder is not None
        payload = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
        current = self.folder / "state"
        if current.exists():
            current.replace(self.folder / "state.previous")
        write_bytes(current, hashlib.sha256(payload).digest() + payload)
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """Forget the state of a finished run."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
