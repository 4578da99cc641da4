"""How many temperatures for a gap in nats: predicted from what the prerun measured, tried by BDMC, enlarged.

It is tried twice: in short trials at three places of the schedule, which find a size, and by the bounds that come with
the curve, at ten betas, which may refuse it.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rdcurve.sampler.ais import Groups, Tuning
from rdcurve.sampler.bdmc import BDMCGap, bdmc, simulate
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.noise import seed_of
from rdcurve.sampler.prerun import Learned, PrerunSettings, tune
from rdcurve.sampler.target import Target
from rdcurve.state import Checkpoint

__all__ = ["GapFound", "Size", "Trial", "certified_size", "compare", "size_for_gap"]

logger = logging.getLogger(__name__)
_PLACES = (1.0, 0.6, 0.3)  # of the schedule, where the gap is tried
_IMAGES = 8  # simulated at each
_MARGIN = 0.9  # what a new size aims at, as a share of what is asked for
_SURE = 2.0  # standard errors


class GapFound(NamedTuple):
    """How the BDMC gaps of a curve compare with the gap asked for, and where that is seen."""

    kept: bool | None  # None: within the errors it may be so or not
    beta: float
    gap: float  # nats
    gap_se: float

    def __str__(self) -> str:
        return f"{self.gap:.2f} ± {self.gap_se:.2f} nats at beta = {self.beta:.3g}"


def compare(points: Mapping[str, Sequence[float]], gap: float) -> GapFound:
    """Whether BDMC gaps keep below `gap` nats: at every beta by two standard errors, or at none above it by two.

    Args:
        points: columns beta, gap and gap_se, nats.
        gap: asked for.

    Examples:
        >>> str(compare({"beta": [1.0, 9.0], "gap": [0.2, 1.6], "gap_se": [0.1, 0.2]}, 1.0))
        '1.60 ± 0.20 nats at beta = 9'
    """
    beta, gaps, errors = (np.asarray(points[name], dtype=float) for name in ("beta", "gap", "gap_se"))
    known = np.isfinite(gaps) & np.isfinite(errors)  # what is not known may be anything
    sure = np.where(known, gaps - _SURE * errors, np.where(np.isposinf(gaps), np.inf, -np.inf))
    possible = np.where(known, gaps + _SURE * errors, np.inf)
    missed = sure.max() > gap
    worst = int(np.argmax(sure if missed else possible))  # the largest gap may be the one that is known worst
    kept = None if possible.max() > gap else True
    return GapFound(False if missed else kept, float(beta[worst]), float(gaps[worst]), float(errors[worst]))


class Trial(NamedTuple):
    """One size tried."""

    n_temperatures: int
    gap: float  # largest over the places, nats
    gap_se: float  # over the simulated images
    mean: float  # over the places
    mean_se: float

    @property
    def most(self) -> float:
        """What the gap may well be: the mean plus a standard error, or the largest minus one where that is more.

        So luck does not end the search, nor does the largest of several noisy numbers prolong it.
        """
        return max(self.mean + self.mean_se, self.gap - self.gap_se)

    @classmethod
    def of(cls, n_temperatures: int, found: BDMCGap) -> Trial:
        """What BDMC found with that many temperatures."""
        worst, gap, gap_se = int(found.gap.argmax()), found.gap, found.gap_se
        return cls(n_temperatures, float(gap[worst]), float(gap_se[worst]), float(gap.mean()),
                   float(gap_se.norm()) / len(gap))  # fmt: skip

    def larger(self, gap: float, most: int) -> int:
        """Temperatures of the next trial, after one that has missed the gap asked for, nats; `most` at most."""
        ratio = self.most / (_MARGIN * gap) if math.isfinite(self.most) else math.inf
        return min(most, math.ceil(self.n_temperatures * min(max(ratio, 1.2), 4.0)))


class Size(NamedTuple):
    """The size chosen, and why."""

    n_temperatures: int
    reached: bool  # whether the last trial kept the gap, or the bounds after it
    trials: tuple[Trial, ...]  # and the bounds that missed it

    def facts(self, gap: float) -> dict[str, Any]:
        """What a curve remembers of it: gap asked for, nats, reached, trials."""
        return {"gap": gap, "reached": self.reached, "trials": [trial._asdict() for trial in self.trials]}


def size_for_gap(
    target: Target,
    learned: Learned,
    kernel: Kernel,
    settings: PrerunSettings,
    groups: Groups,
    *,
    gap: float,
    n_chains: int,
    n_recorded: int,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Size:
    """The least number of temperatures tried whose BDMC gap is at most `gap` nats (`Trial.most`).

    No more than settings.max_temperatures are tried.

    The variance of log w is predicted to be V = L^2 / T (`Learned.length`); log-mean-exp over C chains then lacks about
    V / (2 C), and the upper bound exceeds by as much. The first size tried keeps V / C at the gap asked for, and V at 4
    at most; a size that misses is enlarged by what it missed by.

    Args:
        target: what the curve is measured on; lends prior, decoder and distortion.
        learned: schedule for any length.
        kernel, settings, groups: of the formal run and its prerun.
        gap: nats, asked for.
        n_chains: C of each direction of a trial; no more than the formal run has.
        n_recorded: betas of the curve; the schedule has at least twice as many points.
        checkpoint: keeps the state.
        progress: called with (steps done, steps in all), of each part of a trial anew.
    """
    variance, most = min(4.0, gap * n_chains), settings.max_temperatures
    n = max(2 * n_recorded, math.ceil(learned.length**2 / variance) + 1, 20)
    n = min(n, most)
    trials: list[Trial] = []
    while True:
        phase, seed = f"trial {len(trials)}", seed_of(settings.seed, "trial", len(trials))
        betas = learned.at_length(n).betas
        simulated = simulate(target, betas, [round(place * (n - 1)) for place in _PLACES], _IMAGES, seed)
        tuning = tune(simulated.target, betas, kernel, settings, groups, checkpoint=checkpoint, phase=f"{phase} tune",
                      progress=progress)  # fmt: skip
        result = bdmc(
            simulated,
            tuning,
            kernel,
            n_chains=n_chains,
            seed=seed_of(seed, "bdmc"),
            groups=groups,
            checkpoint=checkpoint,
            phase=f"{phase} ",
            progress=progress,
        )
        trial = Trial.of(n, result)
        trials.append(trial)
        logger.info("%d temperatures: BDMC gap at most %.2f +- %.2f nats, mean %.2f +- %.2f", *trial)
        reached = trial.most <= gap
        if not reached and n >= most:
            logger.warning(
                "the gap of %s nats is not reached with max_temperatures = %d (%.2f +- %.2f nats there)",
                gap, most, trial.gap, trial.gap_se,
            )  # fmt: skip
        if reached or n >= most:
            return Size(n, reached, tuple(trials))
        n = trial.larger(gap, most)


def certified_size(
    size: Size, learned: Learned, bounds: Callable[[Tuning, int], BDMCGap], gap: float, most: int
) -> tuple[Size, BDMCGap]:
    """A size whose bounds do not show that the gap is missed, or the largest there may be; and these bounds.

    Args:
        size: that of the trials.
        learned: schedule for any length.
        bounds: those that come with a curve, given its tuning and the number of the attempt, from 0.
        gap: nats, asked for.
        most: temperatures there may be.
    """
    n, trials = size.n_temperatures, list(size.trials)
    for attempt in itertools.count():
        found = bounds(learned.at_length(n), attempt)
        trial, reached = Trial.of(n, found), compare(found.table(), gap).kept
        logger.info("%d temperatures: BDMC gap at most %.2f +- %.2f nats, mean %.2f +- %.2f", *trial)
        if reached is None:  # the bounds leave it open: as trials of this size have said, or at a larger one would say
            reached = trial.most <= gap if attempt else size.reached
        if not reached:
            trials.append(trial)
        if reached or n >= most:
            break
        n = trial.larger(gap, most)
    return Size(n, reached, tuple(trials)), found
