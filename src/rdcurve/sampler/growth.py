"""As many chains as a certificate takes: the formal run again with twice as many, until its curve is certified.

A gap sets the number of temperatures (`rdcurve.sampler.sizing`), since BDMC measures it on simulated data, where chains
buy what temperatures buy. How many chains meet every mode of the test images often enough is known only from a curve of
theirs. So it is measured, with few at first; all runs but the last cost together less than the last.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from rdcurve.curve import LEAST_IMAGES, RDCurve
from rdcurve.sampler.ais import Tuning
from rdcurve.sampler.formal import formal_run
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.target import Target

__all__ = ["grown_run"]

logger = logging.getLogger(__name__)


def grown_run(
    target: Target,
    tuning: Tuning,
    recorded: Sequence[int],
    kernel: Kernel,
    *,
    n_chains: int,
    most_chains: int | None = None,
    time_limit: float | None = None,
    save: Callable[[RDCurve], None] = lambda curve: None,
    **how: Any,
) -> RDCurve:
    """`formal_run` with C chains, and with 2 C, 4 C, ... while its curve is not certified at every beta.

    The curve is, to the bit, that of a formal run with the chains that it ends with; the number of temperatures stays.
    The state of a smaller run is kept until the last one has ended, so that a run that is stopped goes on in the one
    that it was in. A curve that cannot be certified with any number of chains, measured by one route or on fewer than
    four images, is not measured again.

    Args:
        target, tuning, recorded, kernel: as in `formal_run`.
        n_chains: per image, to begin with.
        most_chains: budget; None keeps n_chains.
        time_limit: seconds for all runs together.
        save: called with the last curve alone.
        how: the other arguments of `formal_run`.

    Raises:
        Interrupted: as in `formal_run`.
    """
    end = math.inf if time_limit is None else time.monotonic() + time_limit
    last: list[RDCurve] = []

    def attempt(n: int) -> None:
        def judge(curve: RDCurve) -> None:
            n_certified, hopeless = int(curve.certified.sum()), not curve.facts["n_searches"]
            hopeless |= curve.rate.shape[1] < LEAST_IMAGES
            if n_certified == len(curve.beta) or hopeless or 2 * n > (most_chains or 0):
                save(curve)
                last.append(curve)
                return
            logger.info("%d of %d betas are certified with %d chains; now %d", n_certified, len(curve.beta), n, 2 * n)
            attempt(2 * n)

        left = None if time_limit is None else max(end - time.monotonic(), 0.0)
        formal_run(target, tuning, recorded, kernel, n_chains=n, time_limit=left, save=judge, **how)

    attempt(n_chains)
    return last[-1]
