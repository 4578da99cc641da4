"""Priors p(z): torch distributions over code vectors, and sampling keyed by seed and image.

A prior is any `torch.distributions.Distribution` with `event_shape == (latent,)`, a `sample` and a `log_prob`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal

from rdcurve.sampler.noise import seed_of

__all__ = ["PRIORS", "sample_prior", "scale_mixture", "standard_normal"]


def standard_normal(
    latent_dim: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Distribution:
    """N(0, I) over codes of size `latent_dim`.

    Examples:
        >>> standard_normal(2).log_prob(torch.zeros(2))  # -log(2 pi)
        tensor(-1.8379)
    """
    zero = torch.zeros(latent_dim, dtype=dtype, device=device)
    return Independent(Normal(zero, torch.ones_like(zero), validate_args=False), 1, validate_args=False)


def scale_mixture(
    latent_dim: int,
    weight: float,
    scale: float,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Distribution:
    """(1 - weight) N(0, I) + weight N(0, scale^2 I), one coin for the whole vector (paper, section 6.3).

    Sampler and density are those of the same joint mixture: log p(z) >= log(1 - weight) + log N(z; 0, I).
    """
    weights = torch.tensor([1 - weight, weight], dtype=dtype, device=device)
    scales = torch.tensor([1.0, scale], dtype=dtype, device=device)[:, None].expand(2, latent_dim)
    return MixtureSameFamily(
        Categorical(weights, validate_args=False),
        Independent(Normal(torch.zeros_like(scales), scales, validate_args=False), 1, validate_args=False),
        validate_args=False,
    )


PRIORS = {"standard_normal": standard_normal, "scale_mixture": scale_mixture}


def sample_prior(prior: Distribution, seed: int, images: Tensor, n_chains: int) -> Tensor:
    """Independent draws from the prior, [C, N, latent]; those of an image depend on (seed, image, C) alone."""
    devices = [images.device] if images.device.type == "cuda" else []
    draws = []
    # a distribution draws from the default generator; seeding it alone is 30 times faster than torch.manual_seed
    index = images.device.index or 0
    generator = torch.cuda.default_generators[index] if devices else torch.default_generator
    with torch.random.fork_rng(devices=devices):
        for image in images.tolist():
            generator.manual_seed(seed_of(seed, "prior", image))
            draws.append(prior.sample((n_chains,)))
    return torch.stack(draws, dim=1)
