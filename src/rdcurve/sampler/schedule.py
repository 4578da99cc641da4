"""Annealing schedules: the inverse temperatures beta_0 = 0 < beta_1 < ... < beta_T = beta_max."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["check_schedule", "geometric", "interpolated", "recorded_steps", "respaced", "retimed", "sigmoid", "spread"]


def sigmoid(n_temperatures: int, beta_max: float, sharpness: float = 10.0) -> Tensor:
    """beta_j = beta_max (s_j - s_0) / (s_T - s_0), s = logistic(t), t uniform on [-sharpness, sharpness].

    Args:
        n_temperatures: number of schedule points, beta = 0 included (the paper's count), so T = n_temperatures - 1.
        beta_max: the last beta.
        sharpness: the paper uses 10, Wu et al. (2017) 4.

    Returns:
        [n_temperatures] float64, strictly increasing from exactly 0 to exactly beta_max.

    Examples:
        >>> sigmoid(3, beta_max=2.0).round(decimals=6).tolist()
        [0.0, 1.0, 2.0]
    """
    if n_temperatures < 2:
        raise ValueError(f"n_temperatures must be 2 or more, not {n_temperatures}")
    if not 0 < beta_max < float("inf"):
        raise ValueError(f"beta_max must be positive and finite, not {beta_max}")
    s = torch.linspace(-sharpness, sharpness, n_temperatures, dtype=torch.float64).sigmoid()
    betas = beta_max * (s - s[0]) / (s[-1] - s[0])
    betas[0], betas[-1] = 0.0, beta_max
    return betas


def geometric(n_temperatures: int, beta_max: float, beta_min: float) -> Tensor:
    """0, then equal ratios from beta_min to beta_max: the first guess of a schedule that is learned.

    Examples:
        >>> geometric(4, beta_max=4.0, beta_min=1.0).tolist()
        [0.0, 1.0, 2.0, 4.0]
    """
    if not 0 < beta_max < float("inf"):
        raise ValueError(f"beta_max must be positive and finite, not {beta_max}")
    if not 0 < beta_min < beta_max:
        raise ValueError(f"beta_min must lie between 0 and beta_max = {beta_max}, not {beta_min}")
    if n_temperatures < 3:
        raise ValueError(f"n_temperatures must be 3 or more, not {n_temperatures}")
    t = torch.linspace(0, 1, n_temperatures - 1, dtype=torch.float64)
    betas = torch.cat([torch.zeros(1, dtype=torch.float64), beta_min * (beta_max / beta_min) ** t])
    betas[-1] = beta_max
    return betas


def respaced(betas: Tensor, cost: Tensor, n_temperatures: int) -> Tensor:
    """A schedule of another length with constant speed in a measured cost.

    Args:
        betas: [T + 1], the schedule that the cost was measured on.
        cost: [T], positive: cost of each of its steps; each new step carries an equal share of the sum.
        n_temperatures: of the new schedule.

    Examples:
        >>> respaced(torch.tensor([0.0, 1.0, 2.0, 4.0]), torch.tensor([2.0, 1.0, 1.0]), 5).tolist()
        [0.0, 0.5, 1.0, 2.0, 4.0]
    """
    spent = torch.cat([torch.zeros(1, dtype=torch.float64), cost.double().cumsum(0)])
    wanted = torch.linspace(0, float(spent[-1]), n_temperatures, dtype=torch.float64)
    new = torch.from_numpy(np.interp(wanted.numpy(), spent.numpy(), betas.double().numpy()))
    new[0], new[-1] = 0.0, betas[-1]
    return check_schedule(new)


def interpolated(table: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """A table [T + 1, ...] by index of the schedule `before`, at the betas of `after`: linear in log beta.

    Row 0 belongs to beta = 0; the result has the next row there.
    """
    old, new = before[1:].log(), after[1:].log()
    right = torch.searchsorted(old, new).clamp(1, len(old) - 1) if len(old) > 1 else torch.zeros(len(new)).long()
    left = (right - 1).clamp(min=0)
    share = ((new - old[left]) / (old[right] - old[left]).clamp(min=1e-12)).clamp(0, 1)
    share = share.view(-1, *[1] * (table.ndim - 1)).to(table)
    table = table[1:]
    rows = (1 - share) * table[left.to(table.device)] + share * table[right.to(table.device)]
    return torch.cat([rows[:1], rows])


def retimed(table: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The same for a positive table, with its logarithm linear in log beta."""
    return interpolated(table.log(), before, after).exp()


def recorded_steps(n_temperatures: int, n_recorded: int) -> list[int]:
    """The paper's recorded points: `n_recorded` indices at equal spacing in the schedule, the last one included.

    Examples:
        >>> recorded_steps(5000, 50)[:3], recorded_steps(5000, 50)[-1]
        ([100, 200, 300], 4999)
    """
    if not 1 <= n_recorded <= n_temperatures // 2:
        raise ValueError(
            f"n_recorded must lie in 1 .. {n_temperatures // 2}, half of the {n_temperatures} temperatures, "
            f"not {n_recorded}"
        )
    stop = n_temperatures - n_temperatures // n_recorded
    starts = [stop * i // max(n_recorded - 1, 1) for i in range(n_recorded)]
    return [*starts[1:], n_temperatures - 1]


def spread(recorded: list[int], betas: Tensor, n: int) -> list[int]:
    """`n` of the recorded steps, spread evenly over log beta and so over the rate axis, the last one included.

    Examples:
        >>> spread([1, 2, 3, 4, 5], torch.tensor([0, 1, 2, 4, 7, 8]), 3)
        [1, 3, 5]
    """
    if n > len(recorded):
        raise ValueError(f"BDMC at {n} betas is asked for, but only {len(recorded)} are recorded")
    places = betas[recorded].double().log()
    chosen: list[int] = []
    for wanted in torch.linspace(float(places[-1]), float(places[0]), n).tolist():
        free = [k for k in range(len(recorded)) if k not in chosen]
        chosen.append(min(free, key=lambda k: abs(float(places[k]) - wanted)))
    return [recorded[k] for k in sorted(chosen)]


def check_schedule(betas: Tensor) -> Tensor:
    """`betas` as float64, or an error that says which entry breaks 0 = beta_0 < beta_1 < ..."""
    legal = "betas must be a vector of two or more finite numbers that starts at 0"
    try:
        betas = torch.as_tensor(betas, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{legal}, not {betas!r}") from error
    if betas.ndim != 1 or len(betas) < 2:
        raise ValueError(f"{legal}, not of shape {tuple(betas.shape)}")
    bad = (~betas.isfinite()).nonzero()
    if len(bad):
        raise ValueError(f"{legal}: betas[{int(bad[0])}] = {float(betas[bad[0]])}")
    if betas[0] != 0:
        raise ValueError(f"{legal}, not at {float(betas[0])}")
    bad = (betas.diff() <= 0).nonzero()
    if len(bad):
        j = int(bad[0]) + 1
        raise ValueError(f"betas must increase: betas[{j}] = {float(betas[j])} after {float(betas[j - 1])}")
    return betas
