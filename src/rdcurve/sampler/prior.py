"""Priors p(z): torch distributions over code vectors, and sampling keyed by seed and image.

A prior is any `torch.distributions.Distribution` with `event_shape == (latent,)`, a `sample` and a `log_prob`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal, Uniform, constraints

from rdcurve.sampler.noise import seed_of

__all__ = [
    "PRIORS",
    "balanced",
    "covers_everything",
    "log_density",
    "sample_prior",
    "scale_mixture",
    "slope",
    "standard_normal",
    "uniform",
]


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


def uniform(
    latent_dim: int,
    low: float = -1.0,
    high: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Distribution:
    """Uniform on the cube [low, high]^latent. A proposal outside has log p = -inf and is rejected.

    Examples:
        >>> uniform(2).log_prob(torch.tensor([[0.0, 0.5], [0.0, 1.5]]))  # -log 4, and outside
        tensor([-1.3863,    -inf])
    """
    if not low < high:
        raise ValueError(f"a uniform prior needs low < high, not {low} and {high}")
    low_, high_ = (torch.full((latent_dim,), bound, dtype=dtype, device=device) for bound in (low, high))
    return Independent(Uniform(low_, high_, validate_args=False), 1, validate_args=False)


PRIORS = {"standard_normal": standard_normal, "scale_mixture": scale_mixture, "uniform": uniform}


def balanced(prior: Distribution) -> Distribution:
    """q(z) that chains are annealed under instead of p(z): p itself, but for mixtures.

    Of the draws from a mixture with shares s_k few begin in a component with a small share, though all that the data
    ask for may lie there. In q the shares are in proportion to sqrt(s_k). Of two components the smaller one then has
    as many chains at the start as the larger one has where the former, as beta grows, comes to weigh as much: with
    shares more even the larger one would be lost before, with shares less even the smaller. p is at most
    (1 + sqrt(K)) / 2 times q, for K components.

    Examples:
        >>> balanced(scale_mixture(2, weight=0.9, scale=10)).mixture_distribution.probs
        tensor([0.2500, 0.7500])
    """
    if not isinstance(prior, MixtureSameFamily):
        return prior
    share = prior.mixture_distribution.probs.detach()
    if share.ndim != 1 or len(share) == 1:  # of each number of a code by itself
        return prior
    even = share.sqrt() / share.sqrt().sum()
    if torch.allclose(even, share):
        return prior
    shares = Categorical(logits=even.log(), validate_args=False)
    return MixtureSameFamily(shares, prior.component_distribution, validate_args=False)


def covers_everything(prior: Distribution) -> bool:
    """Whether log p is finite at every code: the second route's Gaussian mixtures reach everywhere."""
    try:
        support = prior.support
    except (AttributeError, NotImplementedError):  # a distribution that does not say is trusted
        return True
    while hasattr(support, "base_constraint"):  # of a vector, of a mixture
        support = support.base_constraint
    return support is constraints.real


def log_density(prior: Distribution, z: Tensor) -> tuple[Tensor, Tensor]:
    """log p(z) and its gradient, z [..., latent] -> [...] and [..., latent]."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        log_prior = prior.log_prob(z)
        # a uniform density does not depend on z
        grad = torch.autograd.grad(log_prior.sum(), z)[0] if log_prior.requires_grad else z.new_zeros(z.shape)
    return log_prior.detach(), grad


def slope(prior: Distribution, z: Tensor) -> Tensor:
    """The gradient of log p alone, [..., latent].

    Examples:
        >>> slope(standard_normal(2), torch.tensor([3.0, 4.0]))
        tensor([-3., -4.])
    """
    if isinstance(prior, Independent) and type(normal := prior.base_dist) is Normal:
        # by hand: autograd's own launches a sixth of all kernels of a leapfrog step
        return (normal.loc - z) / normal.scale**2
    return log_density(prior, z)[1]


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
