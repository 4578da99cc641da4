"""How far a long step is: a bar with the time left on a terminal, one line a minute in a log file."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

__all__ = ["Progress"]

logger = logging.getLogger("rdcurve")


class Progress:
    """Call it with (done, total), of one phase after the other."""

    def __init__(self, what: str, every: float = 60.0) -> None:
        self.what, self.every = what, every
        self.start = self.last = time.monotonic()
        self.first: int | None = None
        self.done = 0
        self.bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        if self.first is None or done < self.done:  # the first phase, or another one
            self.first, self.start = done, time.monotonic()  # a resumed run starts in the middle
            if self.bar is not None:
                self.bar.close()
                self.bar = None
        self.done = done
        if sys.stderr.isatty():
            self.bar = self.bar or tqdm(total=total, initial=done, desc=self.what, unit="step")
            self.bar.update(done - self.bar.n)
            if done == total:
                self.bar.close()
            return
        now = time.monotonic()
        if now - self.last >= self.every:
            self.last = now
            left = (now - self.start) * (total - done) / max(done - self.first, 1)
            logger.info("%s: %d of %d steps, about %.0f min left", self.what, done, total, left / 60)
