"""Train a variational autoencoder by the evidence lower bound (Kingma and Welling 2014).

    ELBO = E_q(z|x) log N(x; f(z), v I) - KL(q(z|x) | N(0, I)),    q(z|x) = N(m(x), diag(s^2(x)))

with the closed-form KL and one reparametrised sample a step; the checkpoint with the best validation ELBO is kept.
The variance v of the observation model is fixed, or learned as one scalar, log v.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rdcurve.state import Checkpoint
from rdcurve.training.trained import Progress, Trained, TrainingSettings, train_epochs, update

__all__ = ["Settings", "networks", "train"]


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """How a VAE is trained."""

    variance: float  # v, of the observation model; where it is learned, its start
    variance_learning_rate: float | None = None  # of log v; None: v is fixed


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
    checkpoint: Checkpoint | None = None,
    progress: Progress = lambda done, total: None,
) -> Trained:
    """Train decoder and encoder together with Adam.

    Args:
        decoder: [batch, latent] -> [batch, n].
        encoder: [batch, n] -> [batch, 2 latent], means and log variances.
        training: [N, n], on the device of the networks.
        validation: [M, n].
        settings: how.
        checkpoint: keeps the state.
        progress: called with (steps done, steps in all).

    Returns:
        The decoder of the best epoch. History: epoch, train_loss and validation_loss (minus the ELBO, nats per image),
        squared_error (summed over pixels) and kl (nats), both of the validation images, and variance.

    Raises:
        FloatingPointError: training diverged; names the step and the loss.
        Interrupted: it was asked to stop; its state is saved.
    """
    log_variance = torch.tensor(math.log(settings.variance), dtype=training.dtype, device=training.device)
    optimiser = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], lr=settings.learning_rate)
    if settings.variance_learning_rate is not None:
        # Adam moves a number by its rate a step, and log v has further to go than any weight
        group = {"params": [log_variance.requires_grad_()], "lr": settings.variance_learning_rate}
        optimiser.add_param_group(group)
    generator = torch.Generator(training.device).manual_seed(settings.seed)
    best, best_loss = copy.deepcopy(decoder), torch.tensor(math.inf, dtype=torch.float64)

    def step(index: Tensor) -> list[Tensor]:
        loss = _losses(decoder, encoder, training[index], log_variance, generator).loss
        update(optimiser, loss)
        return [loss]

    @torch.no_grad()
    def measure() -> list[float]:
        loss, squared_error, kl = map(float, _losses(decoder, encoder, validation, log_variance, generator))
        if loss < best_loss:
            best.load_state_dict(decoder.state_dict())
            best_loss.fill_(loss)
        return [loss, squared_error, kl, math.exp(log_variance.detach())]

    history = train_epochs(
        step,
        measure,
        settings,
        losses=["train_loss"],
        measures=["validation_loss", "squared_error", "kl", "variance"],
        parts=[decoder, encoder, log_variance, best, best_loss],
        optimisers=[optimiser],
        generator=generator,
        n_images=len(training),
        checkpoint=checkpoint,
        progress=progress,
    )
    return Trained(best, history, _facts(min(history, key=lambda row: row["validation_loss"]), settings))


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
