"""Train a generative adversarial network with a gradient penalty (Goodfellow et al. 2014; Mescheder et al. 2018).

    discriminator:  min E softplus(-D(x)) + E softplus(D(f(z))) + gamma / 2 E |grad_x D(x)|^2,    x from the data
    decoder:        min E softplus(-D(f(z))),    z ~ N(0, I)

the non-saturating loss with the penalty on real images ("R1"), one step of each in turn. The decoder that is kept is
the running average of its weights over the steps, which a single step's noise does not move (Yazici et al. 2019).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from rdcurve.training.trained import Trained, learning_rate

__all__ = ["Settings", "networks", "train"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """How a GAN is trained."""

    latent_dim: int
    discriminator: Sequence[int]  # widths of its hidden layers, from the image on
    epochs: int
    batch_size: int
    learning_rate: float
    adam_betas: Sequence[float]  # decay rates of its two moments
    gradient_penalty: float  # gamma
    averaging: float  # share of the old average that a step keeps
    seed: int
    schedule: str = "constant"  # of the learning rate: constant, cosine


def networks(module: ModuleType, arguments: Mapping[str, Any], settings: Settings) -> tuple[nn.Module, nn.Module]:
    """Decoder of an architecture, and a discriminator [..., n_pixels] -> [..., 1], in logits."""
    decoder = module.Decoder(**arguments)
    widths = [arguments["n_pixels"], *settings.discriminator, 1]
    stack = [part for n_in, n_out in pairwise(widths) for part in (nn.Linear(n_in, n_out), nn.LeakyReLU(0.2))]
    return decoder, nn.Sequential(*stack[:-1])


def train(
    decoder: nn.Module,
    discriminator: nn.Module,
    training: Tensor,
    validation: Tensor,
    settings: Settings,
    *,
    progress: Progress = lambda done, total: None,
) -> Trained:
    """Train decoder and discriminator against each other, each with its Adam.

    Args:
        decoder: [batch, latent] -> [batch, n].
        discriminator: [batch, n] -> [batch, 1], in logits.
        training: [N, n], on the device of the networks.
        validation: [M, n]; the discriminator never learns from them.
        settings: how.
        progress: called with (epochs done, epochs in all).

    Returns:
        The averaged decoder after the last epoch. History: epoch; discriminator_loss (without the penalty),
        generator_loss and penalty (E |grad D|^2), means over the epoch; training_logit, validation_logit and
        sample_logit, means of D at its end. Training far above validation: the discriminator knows its images by heart.

    Raises:
        FloatingPointError: a loss is not finite; names the epoch.
    """
    players = (discriminator, decoder)
    optimisers = [
        torch.optim.Adam(player.parameters(), lr=settings.learning_rate, betas=tuple(settings.adam_betas), fused=True)
        for player in players
    ]
    n_steps = settings.epochs * math.ceil(len(training) / settings.batch_size)
    schedulers = [learning_rate(optimiser, settings.schedule, n_steps) for optimiser in optimisers]
    generator = torch.Generator(training.device).manual_seed(settings.seed)
    average, history = copy.deepcopy(decoder), []

    def samples(n: int, source: nn.Module) -> Tensor:
        shape = (n, settings.latent_dim)
        return source(torch.randn(shape, generator=generator, dtype=training.dtype, device=training.device))

    for epoch in range(1, settings.epochs + 1):
        order = torch.randperm(len(training), generator=generator, device=training.device)
        totals = torch.zeros(3, dtype=torch.float64, device=training.device)
        for index in order.split(settings.batch_size):
            fake = samples(len(index), decoder)
            loss, penalty = _discriminator_loss(discriminator, training[index], fake.detach())
            _update(optimisers[0], loss + settings.gradient_penalty / 2 * penalty)
            discriminator.requires_grad_(False)
            generator_loss = softplus(-discriminator(fake)).mean()
            _update(optimisers[1], generator_loss)
            discriminator.requires_grad_(True)
            for scheduler in schedulers:
                scheduler.step()
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(decoder.parameters()), 1 - settings.averaging)
            totals += torch.stack([loss, generator_loss, penalty]).detach().double() * len(index)
        with torch.no_grad():
            logits = {
                "training_logit": float(discriminator(training[: len(validation)]).mean()),
                "validation_logit": float(discriminator(validation).mean()),
                "sample_logit": float(discriminator(samples(len(validation), average)).mean()),
            }
        names = ("discriminator_loss", "generator_loss", "penalty")
        means = dict(zip(names, (totals / len(training)).tolist(), strict=True))
        row = {"epoch": epoch, **means, **logits}
        if not all(map(math.isfinite, row.values())):
            raise FloatingPointError(f"training diverged: the losses are {means} in epoch {epoch}")
        history.append(row)
        progress(epoch, settings.epochs)
    return Trained(average, history, {"last": history[-1]})


def _discriminator_loss(discriminator: nn.Module, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy, and E |grad_x D(x)|^2 over the real images."""
    real = real.clone().requires_grad_()
    logits = discriminator(real)
    (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return softplus(-logits).mean() + softplus(discriminator(fake)).mean(), slope.square().sum(-1).mean()


def _update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
