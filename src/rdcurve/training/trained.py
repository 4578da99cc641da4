"""What every training loop shares: its result, and the schedules of the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["Trained", "learning_rate"]


@dataclass(frozen=True)
class Trained:
    """A trained decoder and how it came about."""

    decoder: nn.Module
    history: list[dict[str, float]]  # a row an epoch
    facts: dict[str, Any]  # for the checkpoint: JSON


def learning_rate(optimiser: Optimizer, schedule: str, n_steps: int) -> LambdaLR:
    """The optimiser's own learning rate times a factor of the step t; call its `step` after each of the optimiser's.

    `constant`: 1. `cosine`: (1 + cos(pi t / n_steps)) / 2, from 1 to 0 over the run (Loshchilov and Hutter 2017).

    Raises:
        ValueError: an unknown schedule.
    """
    if schedule == "constant":
        return LambdaLR(optimiser, lambda step: 1.0)
    if schedule == "cosine":
        return LambdaLR(optimiser, lambda step: (1 + math.cos(math.pi * step / n_steps)) / 2)
    raise ValueError(f"unknown schedule {schedule!r}; known: constant, cosine")
