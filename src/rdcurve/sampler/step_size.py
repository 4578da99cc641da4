"""Step sizes of HMC along a schedule: learned in a prerun, frozen in a formal run.

The loop cannot tell the two apart: both answer `step_sizes[index]` and are told of every transition.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rdcurve.sampler.hmc import Transition

__all__ = ["Adaptive", "Frozen", "RunningMean", "StepSizes", "smooth"]

_SMALLEST, _LARGEST = 1e-5, 2.0  # a step of 2 is where leapfrog on N(0, I) becomes unstable


class StepSizes(Protocol):
    """What the annealing loop asks of step sizes."""

    def __getitem__(self, index: int) -> Tensor:
        """Step sizes at schedule index 1 .. T, [N] or [C, N] float64."""
        ...

    def observe(self, index: int, transition: Transition) -> None:
        """Told after each move, with what happened."""
        ...


class Adaptive:
    """Robbins-Monro on the log step size of each image, pooled over its chains:

        log eps <- log eps + gain (mean acceptance - target_acceptance)

    The gain is constant, because the best step size keeps moving along the schedule. A run with these step sizes gives
    no bound: its moves depend on its own past. Only the table that it leaves behind is used, frozen.
    """

    def __init__(
        self,
        n_steps: int,
        n_images: int,
        *,
        initial: float = 0.5,
        target_acceptance: float = 0.8,
        gain: float = 0.3,
        reverse: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 < target_acceptance < 1:
            raise ValueError(f"target_acceptance must lie between 0 and 1, not {target_acceptance}")
        self.table = torch.full((n_steps + 1, n_images), initial, dtype=torch.float64, device=device)
        self.target_acceptance = target_acceptance
        self.gain = gain
        self._towards = -1 if reverse else 1

    def __getitem__(self, index: int) -> Tensor:
        return self.table[index]

    def observe(self, index: int, transition: Transition) -> None:
        surplus = transition.acceptance_rate.mean(0) - self.target_acceptance
        following = index + self._towards  # row `index` stays what was used there
        if 0 <= following < len(self.table):
            n = len(surplus)  # images that have left the run keep their last step size
            self.table[following] = self.table[index]
            self.table[following, :n] *= (self.gain * surplus).exp()
            self.table[following].clamp_(_SMALLEST, _LARGEST)


class RunningMean:
    """The paper's rule: a step size per chain, 2 % longer or shorter after every move.

        eps <- 1.02 eps if (moves accepted so far) / (moves so far) > target_acceptance else 0.98 eps,

    kept in [1e-4, 0.5] from 0.01 on. The mean over all moves so far lags behind ever more; kept as published.
    """

    def __init__(
        self,
        n_steps: int,
        n_chains: int,
        n_images: int,
        *,
        target_acceptance: float = 0.65,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (n_steps + 1, n_chains, n_images)
        self.table = torch.full(shape, 0.01, dtype=torch.float32, device=device)
        self.accepted = torch.zeros(n_chains, n_images, dtype=torch.int64, device=device)
        self.target_acceptance = target_acceptance

    def __getitem__(self, index: int) -> Tensor:
        return self.table[index].double()

    def observe(self, index: int, transition: Transition) -> None:
        self.accepted += transition.accepted
        if index + 1 < len(self.table):
            factor = torch.where(self.accepted > self.target_acceptance * index, 1.02, 0.98)
            self.table[index + 1] = (self.table[index] * factor).clamp(1e-4, 0.5)


class Frozen:
    """Replays a table [T + 1, N] or [T + 1, C, N]; row j is used at schedule index j."""

    def __init__(self, table: Tensor) -> None:
        if table.ndim not in (2, 3) or not (table > 0).all():
            raise ValueError("a table of step sizes must be [T + 1, N] or [T + 1, C, N], and positive")
        self.table = table

    def __getitem__(self, index: int) -> Tensor:
        return self.table[index].double()

    def observe(self, index: int, transition: Transition) -> None:
        pass


def smooth(table: Tensor, window: int) -> Tensor:
    """Geometric moving average of a table along the schedule, to take out the noise of adaptation.

    The window is centred and shrinks at both ends.

    Examples:
        >>> smooth(torch.tensor([[1.0], [4.0], [1.0]], dtype=torch.float64), window=3).squeeze(1)
        tensor([2.0000, 1.5874, 2.0000], dtype=torch.float64)
    """
    half = window // 2
    total = torch.cat([torch.zeros_like(table[:1]), table.log().cumsum(0)])
    index = torch.arange(len(table), device=table.device)
    low, high = (index - half).clamp(min=0), (index + half + 1).clamp(max=len(table))
    return ((total[high] - total[low]) / (high - low)[:, None]).exp()
