"""Train a variational autoencoder by the evidence lower bound (Kingma and Welling 2014).

    ELBO = E_q(z|x) log N(x; f(z), v I) - KL(q(z|x) | N(0, I)),    q(z|x) = N(m(x), diag(s^2(x)))

with the closed-form KL and one reparametrised sample a step; the checkpoint with the best validation ELBO is kept.
The variance v of the observation model is fixed, or learned as one scalar, log v.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rdcurve.training.trained import Trained, learning_rate

__all__ = ["Settings", "networks", "train"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """How a VAE is trained."""

    epochs: int
    batch_size: int
    learning_rate: float
    variance: float  # v, of the observation model; where it is learned, its start
    seed: int
    variance_learning_rate: float | None = None  # of log v; None: v is fixed
    schedule: str = "constant"  # of the learning rate: constant, cosine


def networks(module: ModuleType, arguments: Mapping[str, Any], settings: Settings) -> tuple[nn.Module, nn.Module]:
    """Decoder and encoder of an architecture."""
    return module.Decoder(**arguments), module.Encoder(**arguments)


def train(
    decoder: nn.Module,
    encoder: nn.Module,
    training: Tensor,
    validation: Tensor,
    settings: Settings,
    *,
    progress: Progress = lambda done, total: None,
) -> Trained:
    """Train decoder and encoder together with Adam.

    Args:
        decoder: [batch, latent] -> [batch, n].
        encoder: [batch, n] -> [batch, 2 latent], means and log variances.
        training: [N, n], on the device of the networks.
        validation: [M, n].
        settings: how.
        progress: called with (epochs done, epochs in all).

    Returns:
        The decoder of the best epoch. History: epoch, train_loss and validation_loss (minus the ELBO, nats per image),
        squared_error (summed over pixels) and kl (nats), both of the validation images, and variance.

    Raises:
        FloatingPointError: the loss is not finite; names the epoch.
    """
    log_variance = torch.tensor(math.log(settings.variance), dtype=training.dtype, device=training.device)
    optimiser = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], lr=settings.learning_rate)
    if settings.variance_learning_rate is not None:
        # Adam moves a number by its rate a step, and log v has further to go than any weight
        group = {"params": [log_variance.requires_grad_()], "lr": settings.variance_learning_rate}
        optimiser.add_param_group(group)
    n_steps = settings.epochs * math.ceil(len(training) / settings.batch_size)
    scheduler = learning_rate(optimiser, settings.schedule, n_steps)
    generator = torch.Generator(training.device).manual_seed(settings.seed)
    best, best_epoch, best_loss, history = copy.deepcopy(decoder), 0, math.inf, []
    for epoch in range(1, settings.epochs + 1):
        order = torch.randperm(len(training), generator=generator, device=training.device)
        total = torch.zeros((), dtype=torch.float64, device=training.device)
        for index in order.split(settings.batch_size):
            loss = _losses(decoder, encoder, training[index], log_variance, generator).loss
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            scheduler.step()
            total += loss.detach().double() * len(index)
        with torch.no_grad():
            losses = _losses(decoder, encoder, validation, log_variance, generator)
        train_loss, validation_loss = float(total) / len(training), float(losses.loss)
        if not math.isfinite(train_loss + validation_loss):
            raise FloatingPointError(f"training diverged: the loss is {train_loss} in epoch {epoch}")
        history.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                "validation_loss": validation_loss,
                "squared_error": float(losses.squared_error),
                "kl": float(losses.kl),
                "variance": math.exp(log_variance.detach()),
            }
        )
        if validation_loss < best_loss:
            best, best_epoch, best_loss = copy.deepcopy(decoder), epoch, validation_loss
        progress(epoch, settings.epochs)
    return Trained(best, history, _facts(history[best_epoch - 1], settings))


class _Losses(NamedTuple):
    """Means over a batch."""

    loss: Tensor  # minus the ELBO, nats per image
    squared_error: Tensor
    kl: Tensor


def _losses(
    decoder: nn.Module, encoder: nn.Module, x: Tensor, log_variance: Tensor, generator: torch.Generator
) -> _Losses:
    mean, log_s2 = encoder(x).chunk(2, dim=-1)
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    z = mean + (0.5 * log_s2).exp() * noise
    squared_error = (x - decoder(z)).square().sum(-1)
    nll = squared_error / (2 * log_variance.exp()) + x.shape[1] / 2 * (math.log(2 * math.pi) + log_variance)
    kl = 0.5 * (mean.square() + log_s2.exp() - 1 - log_s2).sum(-1)
    return _Losses((nll + kl).mean(), squared_error.mean(), kl.mean())


def _facts(best: Mapping[str, float], settings: Settings) -> dict[str, Any]:
    """For the checkpoint; a variance that is not learned is among the settings already."""
    facts: dict[str, Any] = {"best": {key: best[key] for key in ("epoch", "train_loss", "validation_loss")}}
    return facts | ({"variance": best["variance"]} if settings.variance_learning_rate is not None else {})
