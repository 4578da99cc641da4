"""Train an adversarial autoencoder (Makhzani et al. 2015).

    discriminator:        min E softplus(-D(z)) + E softplus(D(z')) + gamma / 2 E |grad D(z)|^2
    encoder and decoder:  min a E |x - f(z')|^2 + r E softplus(-D(z')),    z ~ N(0, I), z' ~ q(z|x), x from the data

one step of each in turn: the codes of all images together, the aggregated posterior, become the prior, and the decoder
learns to draw what is coded. The encoder is deterministic, z' = m(x), or q(z|x) = N(m(x), diag(s^2(x))).

The decoder that is kept is that of the last epoch: a lower error is to be had from codes that leave the prior, so that
no single number says which epoch is best, and a learning rate that goes to zero has no last step's noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from rdcurve.state import Checkpoint
from rdcurve.training.trained import Progress, Trained, TrainingSettings, discriminator_loss, train_epochs, update

__all__ = ["Settings", "moment_mismatch", "networks", "train"]


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """How an adversarial autoencoder is trained."""

    stochastic: bool  # the encoder
    discriminator: Sequence[int]  # widths of its hidden layers, from the code on
    discriminator_learning_rate: float
    adam_betas: Sequence[float]  # decay rates of the two moments, of both optimisers
    reconstruction_weight: float  # a
    adversarial_weight: float  # r
    gradient_penalty: float  # gamma


def networks(
    module: ModuleType, arguments: Mapping[str, Any], settings: Settings
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Decoder and encoder of an architecture, and a discriminator of codes, [..., latent] -> [..., 1], in logits."""
    decoder, encoder = module.Decoder(**arguments), module.Encoder(**arguments, stochastic=settings.stochastic)
    return decoder, encoder, module.Discriminator(arguments["latent_dim"], settings.discriminator)


def train(
    decoder: nn.Module,
    encoder: nn.Module,
    discriminator: nn.Module,
    training: Tensor,
    validation: Tensor,
    settings: Settings,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress = lambda done, total: None,
) -> Trained:
    """Train the autoencoder against the discriminator, each with its Adam.

    Args:
        decoder: [batch, latent] -> [batch, n].
        encoder: [batch, n] -> [batch, latent], codes; or [batch, 2 latent], means and log variances, if `stochastic`.
        discriminator: [batch, latent] -> [batch, 1], in logits.
        training: [N, n], on the device of the networks.
        validation: [M, n].
        settings: how.
        checkpoint: keeps the state.
        progress: called with (steps done, steps in all).

    Returns:
        The decoder of the last epoch. History: epoch; train_error (squared, summed over pixels), discriminator_loss and
        adversarial_loss (nats; 2 log 2 and log 2 where codes cannot be told from the prior) and penalty, means over the
        epoch;
        validation_error, and code_mismatch, `moment_mismatch` of the validation images' codes, at its end.

    Raises:
        FloatingPointError: training diverged; names the step and the losses.
        Interrupted: it was asked to stop; its state is saved.
    """
    betas = tuple(settings.adam_betas)
    weights = [*decoder.parameters(), *encoder.parameters()]
    autoencoder_adam = torch.optim.Adam(weights, lr=settings.learning_rate, betas=betas, fused=True)
    discriminator_adam = torch.optim.Adam(
        discriminator.parameters(), lr=settings.discriminator_learning_rate, betas=betas, fused=True
    )
    generator = torch.Generator(training.device).manual_seed(settings.seed)

    def encode(x: Tensor) -> Tensor:
        if not settings.stochastic:
            return encoder(x)
        mean, log_s2 = encoder(x).chunk(2, dim=-1)
        epsilon = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        return mean + (0.5 * log_s2).exp() * epsilon

    def step(index: Tensor) -> list[Tensor]:
        x = training[index]
        z = encode(x)
        prior = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        loss, penalty = discriminator_loss(discriminator, prior, z.detach())
        update(discriminator_adam, loss + settings.gradient_penalty / 2 * penalty)
        discriminator.requires_grad_(False)
        adversarial = softplus(-discriminator(z)).mean()
        error = (x - decoder(z)).square().sum(-1).mean()
        update(autoencoder_adam, settings.reconstruction_weight * error + settings.adversarial_weight * adversarial)
        discriminator.requires_grad_(True)
        return [error, loss, adversarial, penalty]

    @torch.no_grad()
    def measure() -> list[float]:
        z = encode(validation)
        return [float((validation - decoder(z)).square().sum(-1).mean()), moment_mismatch(z)]

    history = train_epochs(
        step,
        measure,
        settings,
        losses=["train_error", "discriminator_loss", "adversarial_loss", "penalty"],
        measures=["validation_error", "code_mismatch"],
        parts=[decoder, encoder, discriminator],
        optimisers=[autoencoder_adam, discriminator_adam],
        generator=generator,
        n_images=len(training),
        checkpoint=checkpoint,
        progress=progress,
    )
    return Trained(decoder, history, {"last": history[-1]})


def moment_mismatch(z: Tensor) -> float:
    """KL(N(m, C) | N(0, I)) in nats, m and C the mean and covariance of codes [M, latent].

    Zero where they have the prior's first two moments; further moments it does not see.
    """
    z = z.double()
    covariance = torch.cov(z.T, correction=0).reshape(z.shape[1], z.shape[1])
    mean = z.mean(0)
    return float((covariance.trace() + mean.square().sum() - z.shape[1] - torch.logdet(covariance)) / 2)
