"""Train a convolutional generative adversarial network with one of four regularisers of its discriminator D.

    discriminator:  min E softplus(-D(x)) + E softplus(D(f(z))) + penalty,    x from the data
    decoder:        min E softplus(-D(f(z))),    z ~ N(0, I)

the non-saturating loss, one step of each in turn (Goodfellow et al. 2014; Radford et al. 2015).

    regulariser         D normalised by    penalty
    none                batch              none
    gradient_penalty    nothing            weight `gradient_penalty`, between data and samples (Gulrajani et al. 2017)
    spectral_norm       largest singular   none (Miyato et al. 2018)
    bre                 batch              weight `binarized_representation_entropy`, of samples, and of what lies
                                           between them and data, added (Cao et al. 2018)

A gradient penalty is one per image, which batch normalisation would mix. The decoder that is kept is the running
average of its weights over the steps, with statistics of batch normalisation that are computed for these weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from rdcurve.state import Checkpoint
from rdcurve.training.trained import Progress, Trained, TrainingSettings, train_epochs, update

__all__ = ["REGULARISERS", "Settings", "binarized_representation_entropy", "gradient_penalty", "networks", "train"]

# name -> normalisation of the discriminator
REGULARISERS = {"none": "batch", "gradient_penalty": "none", "spectral_norm": "spectral", "bre": "batch"}
_SOFTNESS = 1e-3  # of the sign, in mean absolute activations
_TOLERATED = 3.0  # correlation of two sign patterns, in standard deviations of that of random ones
_N_SETTLING = 50  # batches behind the statistics of batch normalisation
_N_MEASURED = 1000  # images whose logits are reported


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """How a convolutional GAN is trained."""

    latent_dim: int
    discriminator_width: int  # channels of its first layer
    adam_betas: Sequence[float]  # decay rates of its two moments
    averaging: float  # share of the old average that a step keeps
    regulariser: Mapping[str, Any]  # name, one of `REGULARISERS`; weight, where it has a penalty


def networks(module: ModuleType, arguments: Mapping[str, Any], settings: Settings) -> tuple[nn.Module, nn.Module]:
    """Decoder of an architecture, and a discriminator [batch, 3, 32, 32] -> [batch, 1], in logits.

    Raises:
        ValueError: an unknown regulariser; lists the known.
    """
    name = settings.regulariser["name"]
    if name not in REGULARISERS:
        raise ValueError(f"unknown regulariser {name!r}; known: {', '.join(REGULARISERS)}")
    decoder = module.Decoder(**arguments)
    return decoder, module.Discriminator(settings.discriminator_width, REGULARISERS[name])


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
        decoder: [batch, latent] -> [batch, 3, side, side], with `settle`.
        discriminator: [batch, 3, side, side] -> [batch, 1], in logits, with `examine`.
        training: [N, 3, side, side], on the device of the networks.
        validation: [M, 3, side, side]; the discriminator never learns from them.
        settings: how.
        checkpoint: keeps the state.
        progress: called with (steps done, steps in all).

    Returns:
        The averaged decoder after the last epoch, in evaluation mode. History: epoch; discriminator_loss (without the
        penalty), generator_loss and, where there is one, penalty (without its weight), means over the epoch;
        training_logit, validation_logit and sample_logit, means of D at its end. Training far above validation: the
        discriminator knows its images by heart.

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
    regulariser, weight = settings.regulariser["name"], settings.regulariser.get("weight")

    def codes(n: int) -> Tensor:
        shape = (n, settings.latent_dim)
        return torch.randn(shape, generator=generator, dtype=training.dtype, device=training.device)

    def penalties(real: Tensor, fake: Tensor, hidden: list[Tensor]) -> list[Tensor]:
        """Of D, which is `hidden` inside for the generated images."""
        if weight is None:
            return []
        share = torch.rand(len(real), 1, 1, 1, generator=generator, dtype=real.dtype, device=real.device)
        between = torch.lerp(fake, real, share)
        if regulariser == "gradient_penalty":
            return [gradient_penalty(discriminator, between)]
        mixed = discriminator.examine(between)[1]
        # neither the first layer nor the last
        return [binarized_representation_entropy(hidden[1:-1]) + binarized_representation_entropy(mixed[1:-1])]

    def step(index: Tensor) -> list[Tensor]:
        fake, real = decoder(codes(len(index))), training[index]
        real_logits = discriminator(real)
        fake_logits, hidden = discriminator.examine(fake.detach())
        loss = softplus(-real_logits).mean() + softplus(fake_logits).mean()
        penalty = penalties(real, fake.detach(), hidden)
        update(optimisers[0], sum((weight * p for p in penalty), loss))
        discriminator.requires_grad_(False)
        generator_loss = softplus(-discriminator(fake)).mean()
        update(optimisers[1], generator_loss)
        discriminator.requires_grad_(True)
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(decoder.parameters()), 1 - settings.averaging)
        return [loss, generator_loss, *penalty]

    @torch.no_grad()
    def measure() -> list[float]:
        average.settle(codes(settings.batch_size) for _ in range(_N_SETTLING))
        n = min(_N_MEASURED, len(validation))
        sources = (training[:n], validation[:n], average(codes(n)))
        discriminator.eval()
        logits = [float(discriminator(images).mean()) for images in sources]
        discriminator.train()
        return logits

    history = train_epochs(
        step,
        measure,
        settings,
        losses=["discriminator_loss", "generator_loss", *(["penalty"] if weight is not None else [])],
        measures=["training_logit", "validation_logit", "sample_logit"],
        parts=[decoder, discriminator, average],
        optimisers=optimisers,
        generator=generator,
        n_images=len(training),
        checkpoint=checkpoint,
        progress=progress,
    )
    return Trained(average.eval(), history, {"last": history[-1]})


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """E (|grad_x D(x)| - 1)^2, how far the slope of the discriminator is from one (Gulrajani et al. 2017).

    Args:
        discriminator: D, [batch, ...] -> [batch, 1], of each image on its own.
        x: [batch, ...], between data and samples.
    """
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
    return (torch.linalg.vector_norm(slope.flatten(1), dim=-1) - 1).square().mean()


def binarized_representation_entropy(hidden: Sequence[Tensor]) -> Tensor:
    """How far a batch is from sign patterns of high entropy (Cao et al. 2018): small where every unit splits the batch
    and no two images have the same pattern.

        mean over layers of    1/d sum_k (1/B sum_i s_ik)^2 + mean over i != j of max(0, |s_i . s_j| / d - 3 / sqrt(d))

    with s = h / (|h| + epsilon), a soft sign, epsilon = 0.001 mean |h|, for d units and B images. Random patterns have
    s_i . s_j / d of standard deviation 1 / sqrt(d).

    Args:
        hidden: h of each layer, before the activation, [B, ...].
    """
    return torch.stack([_marginal_entropy(s) + _correlation(s) for s in map(_soft_sign, hidden)]).mean()


def _soft_sign(h: Tensor) -> Tensor:
    """[B, ...] -> [B, d]."""
    size = h.flatten(1).abs()
    return h.flatten(1) / (size + _SOFTNESS * size.detach().mean())


def _marginal_entropy(s: Tensor) -> Tensor:
    return s.mean(0).square().mean()


def _correlation(s: Tensor) -> Tensor:
    n, d = s.shape
    excess = ((s @ s.T).abs() / d - _TOLERATED / math.sqrt(d)).clamp(min=0)
    return (excess.sum() - excess.diagonal().sum()) / max(n * (n - 1), 1)  # one image has no pair
