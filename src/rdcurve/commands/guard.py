"""Refuse to finish a step whose settings or code changed while it ran.

DVC takes the hashes of parameters and code after a step has ended. An edit made meanwhile would be recorded as what the
result was computed with. So a step compares its settings and its own source files at the end with those at the start.
"""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Changed", "ForeignCode", "Guard", "check_code_is_tracked"]

PACKAGE = Path(__file__).resolve().parents[1]


class Changed(RuntimeError):
    """Settings or code moved under a running step; its result is dropped."""


class ForeignCode(RuntimeError):
    """The installed package is not the one that this pipeline tracks."""


def check_code_is_tracked(params: Path) -> None:
    """In a clone of the project, the running code must be the clone's, for that is what DVC takes the hash of."""
    tracked = params.resolve().parent / "src" / "rdcurve"
    if tracked.is_dir() and tracked != PACKAGE:
        raise ForeignCode(
            f"rdcurve runs from {PACKAGE}, but this pipeline tracks {tracked}; "
            "install this clone (pip install --editable .) or activate its environment"
        )


class Guard:
    """Remembers settings and code at the start of a step.

    Args:
        settings: reads the settings of the step anew.
    """

    def __init__(self, settings: Callable[[], Any]) -> None:
        self._read = settings
        self.settings = settings()
        self._before = copy.deepcopy(self.settings)
        self._code = {path: _digest(path) for path in PACKAGE.rglob("*.py")}

    def check(self) -> None:
        """Called just before a result gets its final name.

        Raises:
            Changed: says what moved.
        """
        if self._read() != self._before:
            raise Changed("params.yaml changed while this step ran; the result is dropped, run it again")
        files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        loaded = {Path(file).resolve() for file in files if file}
        moved = [p for p, digest in self._code.items() if p in loaded and _digest(p) != digest]
        if moved:
            names = ", ".join(str(path.relative_to(PACKAGE)) for path in moved)
            raise Changed(f"{names} changed while this step ran; the result is dropped, run it again")


def _digest(path: Path) -> bytes | None:
    return hashlib.sha256(path.read_bytes()).digest() if path.exists() else None
