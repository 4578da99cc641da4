"""The state of a run on disk: kill it at any moment, run it again, get the same bytes.

A run owns the folder `root/<key>`, where the key is a hash of everything that its result depends on; a changed setting
is another key and never resumes. Two generations are kept, each a SHA-256 digest followed by a safetensors payload; a
file that does not match its digest is never used.

A run is a sequence of named phases, each a loop over a state (nested named tuples of tensors and numbers). A rerun
walks the same phases: those that ended return at once with their last state, the one that was cut goes on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor

from rdcurve.files import FileError, write_bytes

__all__ = ["Checkpoint", "Interrupted", "content_key"]

Tree = TypeVar("Tree")
logger = logging.getLogger(__name__)
# of a user, a scheduler before its time limit, a terminal that closes
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
_AWAITED = 60.0  # seconds since a waiting process said last that it waits; it says so ten times a second
_open: set[Path | None] = set()  # folders that this process works on, one within the other


class Interrupted(Exception):
    """The run was asked to stop; its state is saved and it can go on."""


def content_key(**parts: Any) -> str:
    """A hash of settings (anything JSON) and tensors."""
    digest = hashlib.sha256()
    for name, part in sorted(parts.items()):
        if isinstance(part, Tensor):
            part = [str(part.dtype), list(part.shape), hashlib.sha256(_bytes(part)).hexdigest()]
        digest.update(json.dumps([name, part], sort_keys=True).encode())
    return digest.hexdigest()[:32]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()  # numpy knows no bfloat16


class Checkpoint:
    """State folder of one run. Use as a context manager: entering waits until no other process works on the key.

    Args:
        root: folder of all state folders, or None to keep no state.
        key: from `content_key`.
        every: seconds between two saves.
        time_limit: seconds after which the run saves its state and stops, None for none.

    Raises:
        ValueError: a time between saves that is negative or no number.
    """

    def __init__(
        self, root: Path | str | None, key: str = "", every: float = 30.0, time_limit: float | None = None
    ) -> None:
        self.folder, self.key = None if root is None else Path(root) / key, key
        if not every >= 0:  # that time would never come
            raise ValueError(f"the seconds between two saves must be 0 or more, not {every}")
        self.every = every
        self._saved_at = time.monotonic()
        self._deadline = math.inf if time_limit is None else self._saved_at + time_limit
        self._stop: int | None = None
        self._lock: IO[str] | None = None
        self._current_is_whole = False
        self._found: dict[str, Tensor] = {}  # of a run before this one
        self._states: dict[str, Any] = {}

    def __enter__(self) -> Checkpoint:
        # handlers only set a flag: real work inside a signal handler can hang. Python has them in its main thread only
        heard = self.folder is not None and threading.current_thread() is threading.main_thread()
        self._handlers = {
            number: signal.signal(number, self._request_stop)
            for number in _STOPPING
            if heard and (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN)  # under nohup
        }
        for handler in self._handlers.values():  # a signal that came to a run around this one, too late for its loops
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, Checkpoint) and outer._stop is not None:
                self._stop = outer._stop
        try:
            if self.folder is not None:
                self._lock = self._acquire(self.folder)
                _open.add(self.folder)
            self._found = self._load()
        except BaseException:
            self.__exit__()
            raise
        return self

    @staticmethod
    def _locked(lock: IO[str]) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise FileError(f"{lock.name}: this file system has no locks, which states need ({error})") from error
        return True

    def _acquire(self, folder: Path) -> IO[str]:
        while True:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise FileError(f"{folder.parent}: states are kept in a folder, and here is a file") from error
            try:
                lock = (folder / "lock").open("w")
            except FileNotFoundError:  # removed by the one that has just finished
                continue
            waiting, told = folder / f"waiting.{os.getpid()}", False
            try:
                while not self._locked(lock):
                    if not told:
                        logger.info("another process works on %s; waiting for it", folder)
                        told = True
                    if self._stop is not None or time.monotonic() > self._deadline:
                        lock.close()
                        raise Interrupted(f"stopped by {self._why()} while another process worked on the same run")
                    with suppress(FileNotFoundError):  # it has just finished
                        waiting.touch()
                    time.sleep(0.1)
            finally:
                waiting.unlink(missing_ok=True)
            try:  # the one before us may have finished and removed the folder before it saw that we wait
                if os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name)):
                    return lock
            except FileNotFoundError:
                pass
            lock.close()

    def __exit__(self, *error: object) -> None:
        self._restore_handlers()
        if self._lock is not None:
            _open.discard(self.folder)
            self._lock.close()
            self._lock = None

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, Checkpoint) and self._stop is not None:  # came to this run too late for its loops
                outer._stop = self._stop

    def _request_stop(self, number: int, frame: object) -> None:
        self._stop = number

    def _why(self) -> str:
        return "the time limit" if self._stop is None else signal.Signals(self._stop).name

    def _load(self) -> dict[str, Tensor]:
        """The newest whole state; empty if there is none."""
        if self.folder is None:
            return {}
        for path in (self.folder / "state", self.folder / "state.previous"):
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            if self._digest(data[32:]) == data[:32]:
                logger.info("going on from %s", path)
                self._current_is_whole = path.name == "state"
                return load(data[32:])
            logger.warning("%s is damaged and is not used", path)
        with suppress(FileNotFoundError):  # removed under the run, which saves anew
            others = len({path for path in self.folder.parent.iterdir() if path.is_dir()} - _open)
            if others:
                logger.info(
                    "no state of this step yet; %s holds those of other runs (%d), of other steps, settings, data or "
                    "code", self.folder.parent, others,
                )  # fmt: skip
        return {}

    def _digest(self, payload: bytes) -> bytes:
        # with the key, so that a state copied from another run's folder is as good as a damaged one
        return hashlib.sha256(self.key.encode() + payload).digest()

    def resume(self, phase: str, start: Tree) -> Tree:
        """Where the phase stood in the run before this one, or `start`.

        Args:
            phase: its name, the same in every run.
            start: its first state, which also says how states of the phase are built.
        """
        prefix = f"{phase}/"
        found = {name[len(prefix) :]: value for name, value in self._found.items() if name.startswith(prefix)}
        state = _rebuild(start, found) if found else start
        self._states[phase] = state
        return state

    def holds(self, phase: str) -> bool:
        """Whether a run before this one has left a state of the phase."""
        return any(name.startswith(f"{phase}/") for name in self._found)

    def offer(self, phase: str, state: Any) -> None:
        """A new state of the phase; saved if it is time to.

        Raises:
            Interrupted: a signal or the time limit asks the run to stop; the state is saved first.
        """
        self._states[phase] = state
        self.heed()

    def heed(self) -> None:
        """Save if it is time to, and stop if asked to: called by what takes long without a state of its own.

        Raises:
            Interrupted: as from `offer`.
        """
        if self.folder is None:
            return
        now = time.monotonic()
        stop = self._stop is not None or now > self._deadline
        if stop or now - self._saved_at >= self.every:
            self._save()
        if stop:
            raise Interrupted(f"stopped by {self._why()}; the state is saved, run the command again")

    def _save(self) -> None:
        assert self.folder is not None
        flat = {f"{phase}/{name}": v for phase, state in self._states.items() for name, v in _flatten(state).items()}
        # states of two phases may share tensors, which safetensors refuses
        payload = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in flat.items()})
        data = self._digest(payload) + payload
        for patience in (True, True, False):
            try:
                self._write(self.folder / "state", data)
                break
            except FileNotFoundError:  # somebody removes the folder under the run, and may be at it still
                if not patience:
                    raise
        self._saved_at = time.monotonic()

    def _write(self, current: Path, data: bytes) -> None:
        # a damaged state never takes the place of the whole one before it
        if self._current_is_whole and current.exists():
            current.replace(current.with_name("state.previous"))
        write_bytes(current, data)
        self._current_is_whole = current.read_bytes() == data
        if not self._current_is_whole:
            logger.warning("%s is not what was written to it; the one before it is kept", current)

    @property
    def time_left(self) -> float | None:
        """Seconds to the time limit, for a run within this one."""
        return None if math.isinf(self._deadline) else max(self._deadline - time.monotonic(), 0.0)

    def keep(self) -> None:
        """Save now: before a run within this one, or at the end, for another run that begins with the same work."""
        if self.folder is not None:
            self._save()

    def remove(self) -> None:
        """Forget the state of a finished run. If others wait for it, they find its end and have nothing to repeat."""
        if self.folder is None:
            return
        if self._is_awaited():
            self._save()
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _is_awaited(self) -> bool:
        """Whether another process has said so a moment ago; one that was killed says it no more."""
        assert self.folder is not None
        with suppress(FileNotFoundError):  # one that gives up, or the folder
            (self.folder / "lock").touch()  # the clock of the file system
            now = (self.folder / "lock").stat().st_mtime
            return any(now - path.stat().st_mtime < _AWAITED for path in self.folder.glob("waiting.*"))
        return False


def _flatten(tree: Any, name: str = "") -> dict[str, Tensor]:
    if isinstance(tree, Tensor):
        return {name: tree}
    if isinstance(tree, (int, float)):
        return {name: torch.tensor(tree, dtype=torch.int64 if isinstance(tree, int) else torch.float64)}
    flat: dict[str, Tensor] = {}
    for i, branch in enumerate(tree):
        flat |= _flatten(branch, f"{name}.{i}")
    return flat


def _rebuild(like: Any, flat: Mapping[str, Tensor], name: str = "") -> Any:
    if isinstance(like, Tensor):
        return flat[name].to(like.device)
    if isinstance(like, (int, float)):
        return flat[name].item()
    branches = [_rebuild(branch, flat, f"{name}.{i}") for i, branch in enumerate(like)]
    return type(like)(*branches) if hasattr(like, "_fields") else type(like)(branches)
