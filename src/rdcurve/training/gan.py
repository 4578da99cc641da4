"""Train a generative adversarial network with a gradient penalty (Goodfellow et al. 2014; Mescheder et al. 2018).

    discriminator:  min E softplus(-D(x)) + E softplus(D(f(z))) + gamma / 2 E |grad_x D(x)|^2,    x from the data
    decoder:        min E softplus(-D(f(z))),    z ~ N(0, I)

the non-saturating loss with the penalty on real images ("R1"), one step of each in turn. The decoder that is kept is
the running average of its weights over the steps, which a single step's noise does not move (Yazici et al. 2019).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from rdcurve.state import Checkpoint
from rdcurve.training.trained import Progress, Trained, TrainingSettings, discriminator_loss, train_epochs, update

__all__ = ["Settings", "networks", "train"]


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """How a GAN is trained."""

    latent_dim: int
    discriminator: Sequence[int]  # widths of its hidden layers, from the image on
    adam_betas: Sequence[float]  # decay rates of its two moments
    gradient_penalty: float  # gamma
    averaging: float  # share of the old average that a step keeps


def networks(module: ModuleType, arguments: Mapping[str, Any], settings: Settings) -> tuple[nn.Module, nn.Module]:
    """Decoder of an architecture, and a discriminator [..., n_pixels] -> [..., 1], in logits."""
    decoder = module.Decoder(**arguments)
    return decoder, module.Discriminator(arguments["n_pixels"], settings.discriminator)


def train(
    decoder: nn.Module,
    discriminator: nn.Module,
    training: Tensor,
    validation: Tensor,
    settings: Settings,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress = lambda done, total: None,
) -> Trained:
    """Train decoder and discriminator against each other, each with its Adam.

    Args:
        decoder: [batch, latent] -> [batch, n].
        discriminator: [batch, n] -> [batch, 1], in logits.
        training: [N, n], on the device of the networks.
        validation: [M, n]; the discriminator never learns from them.
        settings: how.
        checkpoint: keeps the state.
        progress: called with (steps done, steps in all).

    Returns:
        The averaged decoder after the last epoch. History: epoch; discriminator_loss (without the penalty),
        generator_loss and penalty (E |grad D|^2), means over the epoch; training_logit, validation_logit and
        sample_logit, means of D at its end. Training far above validation: the discriminator knows its images by heart.

    Raises:
        FloatingPointError: training diverged; names the step and the losses.
        Interrupted: it was asked to stop; its state is saved.
    """
    players = (discriminator, decoder)
    optimisers = [
        torch.optim.Adam(player.parameters(), lr=settings.learning_rate, betas=tuple(settings.adam_betas), fused=True)
        for player in players
    ]
    generator = torch.Generator(training.device).manual_seed(settings.seed)
    average = copy.deepcopy(decoder)

    def samples(n: int, source: nn.Module) -> Tensor:
        shape = (n, settings.latent_dim)
        return source(torch.randn(shape, generator=generator, dtype=training.dtype, device=training.device))

    def step(index: Tensor) -> list[Tensor]:
        fake = samples(len(index), decoder)
        loss, penalty = discriminator_loss(discriminator, training[index], fake.detach())
        update(optimisers[0], loss + settings.gradient_penalty / 2 * penalty)
        discriminator.requires_grad_(False)
        generator_loss = softplus(-discriminator(fake)).mean()
        update(optimisers[1], generator_loss)
        discriminator.requires_grad_(True)
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(decoder.parameters()), 1 - settings.averaging)
        return [loss, generator_loss, penalty]

    @torch.no_grad()
    def measure() -> list[float]:
        sources = (training[: len(validation)], validation, samples(len(validation), average))
        return [float(discriminator(images).mean()) for images in sources]

    history = train_epochs(
        step,
        measure,
        settings,
        losses=["discriminator_loss", "generator_loss", "penalty"],
        measures=["training_logit", "validation_logit", "sample_logit"],
        parts=[decoder, discriminator, average],
        optimisers=optimisers,
        generator=generator,
        n_images=len(training),
        checkpoint=checkpoint,
        progress=progress,
    )
    return Trained(average, history, {"last": history[-1]})
