"""A Gaussian channel q(z|x) = N(m, diag(s^2)) for every image and beta, and the curve that it gives.

    R = KL(q(z|x) | p(z)),    D = E_q d(x, f(z)),    log Z(beta) >= -(R + beta D)

for any q: the point (D, R) lies on or above the curve of the model (paper, Prop. 1; the evidence lower bound where d is
a negative log-likelihood and beta = 1). The optimal channel is q_beta(z|x), and is Gaussian only where f is linear.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from rdcurve.curve import RDCurve
from rdcurve.sampler.formal import run_key
from rdcurve.sampler.noise import seed_of
from rdcurve.sampler.target import Target

__all__ = ["Channel", "Fitted", "channel_curve", "channel_key", "check_prior", "shifted", "spaced_betas"]

Progress = Callable[[int, int], None]  # (steps done, steps in all)


class Channel(NamedTuple):
    """q(z|x) = N(mean, diag(exp(log_variance))) of N images."""

    mean: Tensor  # [N, latent]
    log_variance: Tensor  # [N, latent]

    def at(self, noise: Tensor) -> Tensor:
        """Codes [S, N, latent] from standard normal noise of that shape."""
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def rate(self, prior: Distribution) -> Tensor:
        """KL(q | prior), [N] float64 nats.

        Raises:
            ValueError: torch knows no closed form for that prior.
        """
        q = Normal(self.mean.double(), (0.5 * self.log_variance.double()).exp(), validate_args=False)
        try:
            return kl_divergence(Independent(q, 1, validate_args=False), prior)
        except NotImplementedError:
            name = type(getattr(prior, "base_dist", prior)).__name__
            raise ValueError(
                f"the KL divergence of a Gaussian channel from a {name} prior has no closed form; a variational curve "
                "needs the prior standard_normal"
            ) from None


class Fitted(NamedTuple):
    """The channels of a method, and how they came about."""

    mean: Tensor  # [K, N, latent]
    log_variance: Tensor  # [K, N, latent]
    history: list[dict[str, Any]]


def shifted(raw: Tensor, beta: float) -> Tensor:
    """Log variance `raw` - log(1 + beta).

    The variance of a posterior falls like 1 / beta where it does not resemble the prior. So `raw` stays where it is
    from one beta to the next, and what was learned at the one is a good start at the other.
    """
    return raw - math.log1p(beta)


def spaced_betas(n: int, beta_min: float, beta_max: float) -> Tensor:
    """`n` betas in equal ratios, both ends included, [n] float64.

    Examples:
        >>> spaced_betas(3, 1, 100).tolist()
        [1.0, 10.0, 100.0]
    """
    if n < 2 or not 0 < beta_min < beta_max < math.inf:
        raise ValueError(
            f"at least 2 betas with 0 < beta_min < beta_max are needed, not {n} from {beta_min} to {beta_max}"
        )
    return torch.from_numpy(np.geomspace(beta_min, beta_max, n))


def check_prior(target: Target) -> None:
    """Refuse a prior without closed-form KL before any long work.

    Raises:
        ValueError: names the prior.
    """
    zero = target.x.new_zeros(1, *target.prior.event_shape)
    Channel(zero, zero).rate(target.prior)


def channel_key(target: Target, **parts: Any) -> str:
    """The identity of a fit: a hash of the code, of what is measured, and of `parts`."""
    code = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return run_key(target, None, variational=code, **parts)


def channel_curve(
    target: Target, fitted: Fitted, betas: Tensor, *, n_samples: int, seed: int, facts: Mapping[str, Any]
) -> RDCurve:
    """The bound at every beta. R is exact; D is a mean over codes drawn from q, independent of all that were fitted to.

    Args:
        target: of N images.
        fitted: a channel for each beta and image.
        betas: [K] float64, increasing.
        n_samples: codes per image and beta.
        seed: of the codes.
        facts: stored in the curve.

    Returns:
        A curve with log Z = -(R + beta D); standard errors over the codes; `code` holds the means of q. Diagnostics
        of chains are NaN.
    """
    if n_samples < 2:
        raise ValueError(f"n_samples must be 2 or more for an error bar, not {n_samples}")
    rates, means, variances = [], [], []
    for k, channel in enumerate(map(Channel, fitted.mean, fitted.log_variance)):
        generator = torch.Generator(target.x.device).manual_seed(seed_of(seed, "bound", k))
        d = target.distortions(channel.at(normal((n_samples, *channel.mean.shape), channel.mean, generator)))
        rates.append(channel.rate(target.prior))
        means.append(d.mean(0))
        variances.append(d.var(0))
    rate, distortion, variance = (torch.stack(values).cpu().numpy() for values in (rates, means, variances))
    beta = betas.double().cpu().numpy()
    error = np.sqrt(variance / n_samples)
    known = {"beta": beta, "rate": rate, "rate_cv": rate, "distortion": distortion, "distortion_cv": distortion}
    known |= {"log_z": -rate - beta[:, None] * distortion, "distortion_variance": variance}
    known |= {"log_z_se": beta[:, None] * error, "distortion_se": error, "distortion_cv_se": error}
    known |= {"rate_se": np.zeros_like(rate), "rate_cv_se": np.zeros_like(rate)}
    known |= {"code": fitted.mean.double().cpu().numpy()}
    names = [field.name for field in fields(RDCurve) if field.name != "facts"]
    arrays = {name: known.get(name, np.full_like(rate, np.nan)) for name in names}
    return RDCurve(**arrays, facts={"bound": "variational", "n_samples": n_samples, **facts})


def normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise in the type and on the device of `like`."""
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
