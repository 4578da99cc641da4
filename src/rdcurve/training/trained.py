"""What every training shares: its result, and its loop, which may be killed at any moment and gives the same bytes.

A training is a loop of epochs, each a random order of the images in batches. Its state is a step in it: the networks,
the moments of their optimisers, the generator of random numbers, the order and the losses so far. The learning rate is
a function of the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.optim import Optimizer

from rdcurve.state import Checkpoint

__all__ = [
    "Progress",
    "Trained",
    "TrainingSettings",
    "discriminator_loss",
    "learning_rate_factor",
    "train_epochs",
    "update",
]

Progress = Callable[[int, int], None]  # (steps done, steps in all)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What every trainer is told."""

    epochs: int
    batch_size: int
    learning_rate: float  # of Adam
    seed: int
    schedule: str = "constant"  # of the learning rate: constant, cosine


@dataclass(frozen=True)
class Trained:
    """A trained network and how it came about."""

    network: nn.Module
    history: list[dict[str, float]]  # a row an epoch
    facts: dict[str, Any]  # for the checkpoint: JSON


class _Position(NamedTuple):
    """Where a training stands."""

    epoch: int  # epochs done
    batch: int  # batches done of the next
    order: Tensor  # [N] int64, its images
    totals: Tensor  # [L] float64, its losses so far, summed over images
    history: Tensor  # [epochs, columns] float64
    generator: Tensor
    values: list[Tensor]  # of networks and optimisers


def train_epochs(
    step: Callable[[Tensor], Sequence[Tensor]],
    measure: Callable[[], Sequence[float]],
    settings: TrainingSettings,
    *,
    losses: Sequence[str],
    measures: Sequence[str],
    parts: Sequence[nn.Module | Tensor],
    optimisers: Sequence[Optimizer],
    generator: torch.Generator,
    n_images: int,
    checkpoint: Checkpoint | None = None,
    progress: Progress = lambda done, total: None,
) -> list[dict[str, float]]:
    """Call `step` with every batch of every epoch, and `measure` after each epoch.

    Args:
        step: moves the networks by a batch, given as indices [B] of its images; its losses, means over the batch.
        measure: numbers that describe the networks as they are. It draws no random numbers but from `generator`.
        settings: how long, how many at a time, how fast.
        losses: names of what `step` returns.
        measures: names of what `measure` returns.
        parts: everything that `step` and `measure` change: networks and single tensors.
        optimisers: Adams that `step` uses; their learning rates follow the schedule.
        generator: of all random numbers.
        n_images: N.
        checkpoint: keeps the state.
        progress: called with (steps done, steps in all).

    Returns:
        A row an epoch: epoch, the means of `losses` over its images, and `measures` at its end.

    Raises:
        FloatingPointError: a loss, a measure or a weight is not finite; names the step and the losses. The state on
            disk is an earlier one.
        Interrupted: a signal or the time limit asks the training to stop; its state is saved.
        ValueError: an unknown schedule.
    """
    checkpoint = Checkpoint(None) if checkpoint is None else checkpoint
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    rates = [group["lr"] for group in groups]
    weights = [tensor for group in groups for tensor in group["params"]]
    values = [tensor for part in parts for tensor in _tensors(part)]
    values += [moment for optimiser in optimisers for moment in _moments(optimiser)]
    columns, n_batches = [*losses, *measures], math.ceil(n_images / settings.batch_size)
    start = _Position(
        0,
        0,
        torch.arange(n_images, device=generator.device),
        torch.zeros(len(losses), dtype=torch.float64, device=generator.device),
        torch.full((settings.epochs, len(columns)), torch.nan, dtype=torch.float64),
        generator.get_state(),
        values,
    )
    position = checkpoint.resume("train", start)
    generator.set_state(position.generator)
    with torch.no_grad():
        for value, saved in zip(values, position.values, strict=True):
            value.copy_(saved)
    _, batch, order, totals, history, _, _ = position

    def offer(epoch: int, batch: int) -> None:
        checkpoint.offer("train", _Position(epoch, batch, order, totals, history, generator.get_state(), values))

    for epoch in range(position.epoch, settings.epochs):
        if batch == 0:
            order = torch.randperm(n_images, generator=generator, device=generator.device)
            totals = torch.zeros_like(totals)
        for index in order.split(settings.batch_size)[batch:]:
            n_done = epoch * n_batches + batch
            factor = learning_rate_factor(settings.schedule, n_done, settings.epochs * n_batches)
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate * factor
            loss = torch.stack(list(step(index))).detach()
            batch += 1
            norm = float(torch.nn.utils.get_total_norm(weights))
            if not all(map(math.isfinite, [norm, *loss.tolist()])):
                where = f"in step {batch} of {n_batches} of epoch {epoch + 1}"
                said = _named([*losses, "the norm of the weights"], [*loss.tolist(), norm])
                raise FloatingPointError(f"training diverged {where}: {said}")
            totals += loss.double() * len(index)
            offer(epoch, batch)
            progress(n_done + 1, settings.epochs * n_batches)
        row = [*(total / n_images for total in totals.tolist()), *measure()]
        if not all(map(math.isfinite, row)):
            raise FloatingPointError(f"training diverged in epoch {epoch + 1}: {_named(columns, row)}")
        history[epoch] = torch.tensor(row, dtype=torch.float64)
        batch = 0
        offer(epoch + 1, batch)
    rows = enumerate(history.tolist(), 1)
    return [{"epoch": epoch, **dict(zip(columns, row, strict=True))} for epoch, row in rows]


def learning_rate_factor(schedule: str, step: int, n_steps: int) -> float:
    """By what the learning rate is multiplied in a step, counted from 0.

    `constant`: 1. `cosine`: (1 + cos(pi t / n_steps)) / 2, from 1 to 0 over the run (Loshchilov and Hutter 2017).

    Raises:
        ValueError: an unknown schedule.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return (1 + math.cos(math.pi * step / n_steps)) / 2
    raise ValueError(f"unknown schedule {schedule!r}; known: constant, cosine")


def update(optimiser: Optimizer, loss: Tensor) -> None:
    """One step of an optimiser down the gradient of a loss."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


def discriminator_loss(discriminator: nn.Module, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Of a discriminator D in logits, [batch, n] -> [batch, 1]: its cross entropy in nats, and E |grad D|^2 at `real`.

    The penalty on real data alone ("R1") brings an adversarial training to rest (Mescheder et al. 2018).
    """
    real = real.clone().requires_grad_()
    logits = discriminator(real)
    (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return softplus(-logits).mean() + softplus(discriminator(fake)).mean(), slope.square().sum(-1).mean()


def _named(names: Sequence[str], values: Sequence[float]) -> str:
    return ", ".join(f"{name} is {value:g}" for name, value in zip(names, values, strict=True))


def _tensors(part: nn.Module | Tensor) -> list[Tensor]:
    return [part] if isinstance(part, Tensor) else list(chain(part.parameters(), part.buffers()))


def _moments(optimiser: Optimizer) -> list[Tensor]:
    """Of an Adam, for every weight: steps, mean of the gradient, mean of its square; made, where it has not moved."""
    moments: list[Tensor] = []
    for group in optimiser.param_groups:
        for weight in group["params"]:
            state = optimiser.state[weight]
            if not state:
                # Adam would make the same at its first step, but a state to go on from must be there before
                state["step"] = torch.zeros((), device=weight.device if group["fused"] else "cpu")
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
            moments += [state["step"], state["exp_avg"], state["exp_avg_sq"]]
    return moments
