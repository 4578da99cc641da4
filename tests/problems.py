"""Problems with known answers that the tests share, and the arithmetic of their error rates.

A statistical test states the chance that it fails without a fault (`FALSE_FAIL`, for its whole family of comparisons,
by the Bonferroni bound) and the error that it would still detect.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from rdcurve.linear import exact_curve
from rdcurve.sampler.distortion import GaussianNLL
from rdcurve.sampler.prior import standard_normal
from rdcurve.sampler.target import Target

FALSE_FAIL = 1e-6
DTYPE = torch.float64


def threshold(n_comparisons: int, false_fail: float = FALSE_FAIL) -> float:
    """Two-sided z threshold for a family of comparisons."""
    return float(norm.isf(false_fail / n_comparisons / 2))


@dataclass(frozen=True)
class LinearProblem:
    """A linear decoder with the Gaussian negative log-likelihood, known in closed form."""

    weight: Tensor
    bias: Tensor
    x: Tensor
    variance: float

    def decoder(self, z: Tensor) -> Tensor:
        return z @ self.weight.T + self.bias

    @property
    def distortion(self) -> GaussianNLL:
        return GaussianNLL(self.variance)

    @property
    def target(self) -> Target:
        prior = standard_normal(self.weight.shape[1], self.weight.dtype)
        return Target(prior, self.decoder, self.distortion, self.x)

    def exact(self, betas: Tensor, x: Tensor | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """rate, distortion, log_z, each [K, N]."""
        x = self.x if x is None else x
        return exact_curve(
            self.weight.double().numpy(),
            self.bias.double().numpy(),
            x.double().numpy(),
            torch.as_tensor(betas).double().numpy(),
            self.variance,
        )


def linear_problem(
    seed: int,
    latent_dim: int = 3,
    n_pixels: int = 8,
    n_images: int = 4,
    variance: float = 0.5,
    dtype: torch.dtype = DTYPE,
) -> LinearProblem:
    """Random weights, data from the model itself with extra spread, so that no posterior is centred at zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.6 * torch.randn(n_pixels, latent_dim, generator=generator, dtype=DTYPE)
    bias = 0.3 * torch.randn(n_pixels, generator=generator, dtype=DTYPE)
    z = 1.2 * torch.randn(n_images, latent_dim, generator=generator, dtype=DTYPE)
    x = z @ weight.T + bias + 0.3 * torch.randn(n_images, n_pixels, generator=generator, dtype=DTYPE)
    return LinearProblem(weight.to(dtype), bias.to(dtype), x.to(dtype), variance)


def curved_decoder(z: Tensor) -> Tensor:
    """A nonlinear decoder of 2-D codes: neither symmetric nor unimodal under its posterior."""
    a, b = z[..., 0], z[..., 1]
    return torch.stack([torch.tanh(a + 0.5 * b**2), torch.sin(1.5 * b) + 0.3 * a, 0.5 * a * b], dim=-1)


def quadrature(decoder, x: Tensor, betas, n: int = 1201, width: float = 8.0):
    """Rate, distortion, log Z [K, N] of a 2-D decoder under the squared error, by the trapezoid rule on a grid.

    The integrand is smooth and vanishes at the ends, so the error falls faster than any power of the spacing.
    """
    axis = torch.linspace(-width, width, n, dtype=DTYPE)
    z = torch.cartesian_prod(axis, axis)
    log_cell = standard_normal(2, DTYPE).log_prob(z) + 2 * np.log(2 * width / (n - 1))  # [n n]
    distortion = (decoder(z)[:, None] - x).square().sum(-1)  # [n n, N]
    rates, distortions, log_zs = [], [], []
    for beta in betas:
        log_mass = log_cell[:, None] - float(beta) * distortion
        log_z = log_mass.logsumexp(0)
        d = ((log_mass - log_z).exp() * distortion).sum(0)
        rates.append(-log_z - float(beta) * d)
        distortions.append(d)
        log_zs.append(log_z)
    return (torch.stack(v).numpy() for v in (rates, distortions, log_zs))
