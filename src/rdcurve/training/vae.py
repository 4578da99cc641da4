"""Train a variational autoencoder by the evidence lower bound (Kingma and Welling 2014).

    ELBO = E_q(z|x) log N(x; f(z), v I) - KL(q(z|x) | N(0, I)),    q(z|x) = N(m(x), diag(s^2(x)))

with the closed-form KL and one reparametrised sample a step; the checkpoint with the best validation ELBO is kept.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Trained", "VAESettings", "train"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class VAESettings:
    """How a VAE is trained."""

    epochs: int
    batch_size: int
    learning_rate: float
    variance: float  # v, of the observation model
    seed: int


@dataclass(frozen=True)
class Trained:
    """The decoder of the best epoch, and the history."""

    decoder: nn.Module
    best_epoch: int
    history: list[dict[str, float]]  # epoch, train_loss, validation_loss: minus the ELBO, nats per image


def train(
    decoder: nn.Module,
    encoder: nn.Module,
    training: Tensor,
    validation: Tensor,
    settings: VAESettings,
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

    Raises:
        FloatingPointError: the loss is not finite; names the epoch.
    """
    optimiser = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], lr=settings.learning_rate)
    generator = torch.Generator(training.device).manual_seed(settings.seed)
    best, best_epoch, best_loss, history = copy.deepcopy(decoder), 0, math.inf, []
    for epoch in range(1, settings.epochs + 1):
        order = torch.randperm(len(training), generator=generator, device=training.device)
        total = torch.zeros((), dtype=torch.float64, device=training.device)
        for index in order.split(settings.batch_size):
            loss = _loss(decoder, encoder, training[index], settings.variance, generator)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += loss.detach().double() * len(index)
        with torch.no_grad():
            validation_loss = float(_loss(decoder, encoder, validation, settings.variance, generator))
        train_loss = float(total) / len(training)
        if not math.isfinite(train_loss + validation_loss):
            raise FloatingPointError(f"training diverged: the loss is {train_loss} in epoch {epoch}")
        history.append({"epoch": epoch, "train_loss": train_loss, "validation_loss": validation_loss})
        if validation_loss < best_loss:
            best, best_epoch, best_loss = copy.deepcopy(decoder), epoch, validation_loss
        progress(epoch, settings.epochs)
    return Trained(best, best_epoch, history)


def _loss(decoder: nn.Module, encoder: nn.Module, x: Tensor, variance: float, generator: torch.Generator) -> Tensor:
    """Minus the ELBO, nats per image."""
    mean, log_variance = encoder(x).chunk(2, dim=-1)
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    z = mean + (0.5 * log_variance).exp() * noise
    squared_error = (x - decoder(z)).square().sum(-1)
    nll = squared_error / (2 * variance) + x.shape[1] / 2 * math.log(2 * math.pi * variance)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
    return (nll + kl).mean()
