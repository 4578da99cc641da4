"""What the tests of the sampler share: problems repeated as images, exact posteriors, quadrature, Student's t.

Images that are all alike are independent replicates, because the noise is keyed by the image: thousands of runs of one
problem are one run of thousands of images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import torch
from problems import DTYPE, FALSE_FAIL, LinearProblem
from scipy.stats import norm, t
from torch import Tensor
from torch.distributions import Distribution

from rdcurve.curve import RDCurve

QUANTITIES = ("rate", "distortion", "log_z")


def student(n_comparisons: int, degrees: float, false_fail: float = FALSE_FAIL) -> float:
    """Two-sided threshold for a family of comparisons with standard errors of that many degrees of freedom."""
    return float(t.isf(false_fail / n_comparisons / 2, degrees))


def detectable(error: float | np.ndarray, bound: float, false_pass: float = 1e-6) -> float:
    """The least error that passes a bound of so many standard errors with a chance of `false_pass`."""
    return float(np.max(error)) * (bound + float(norm.isf(false_pass)))


def repeated(problem: LinearProblem, n: int) -> LinearProblem:
    """The first image of a problem, n times."""
    return replace(problem, x=problem.x[:1].expand(n, -1))


def posterior(problem: LinearProblem, beta: float) -> tuple[Tensor, Tensor]:
    """Mean [N, latent] and precision [latent, latent] of q_beta of a linear decoder."""
    share = beta / problem.variance
    precision = torch.eye(problem.weight.shape[1], dtype=DTYPE) + share * problem.weight.T @ problem.weight
    return torch.linalg.solve(precision, share * (problem.x - problem.bias) @ problem.weight, left=False), precision


def posterior_samples(problem: LinearProblem, beta: float, n: int, seed: int) -> Tensor:
    """Exact draws [n, N, latent] of q_beta."""
    mean, precision = posterior(problem, beta)
    root = torch.linalg.cholesky(precision)
    white = torch.randn(n, *mean.shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)
    return mean + torch.linalg.solve_triangular(root, white, upper=False, left=False)


def random_network(seed: int, latent_dim: int, n_images: int = 3) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A decoder with one hidden layer of random weights, and data near its range: skewed, often bimodal targets."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=DTYPE)

    inner, shift, outer, bias = 1.2 * draw(latent_dim, 6), draw(6), 0.7 * draw(6, 3), 0.3 * draw(3)

    def decoder(z: Tensor) -> Tensor:
        return torch.tanh(z @ inner + shift) @ outer + bias

    return decoder, decoder(draw(n_images, latent_dim)) + 0.2 * draw(n_images, 3)


def by_quadrature(
    prior: Distribution,
    decoder: Callable[[Tensor], Tensor],
    x: Tensor,
    betas: np.ndarray,
    low: float,
    high: float,
    n: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rate, distortion, log Z [K, N] under the squared error by the midpoint rule on a grid of n cells per dimension.

    Its error is of second order where the prior ends at the edge of the grid, and far less where it vanishes there.
    """
    edges = torch.linspace(low, high, n + 1, dtype=DTYPE)
    axis = 0.5 * (edges[1:] + edges[:-1])
    z = torch.cartesian_prod(*[axis] * prior.event_shape[0]).view(-1, prior.event_shape[0])
    log_cell = prior.log_prob(z).detach() + z.shape[1] * np.log((high - low) / n)
    distortion = (decoder(z).detach() - x[:, None]).square().sum(-1)  # [N, cells]
    rows = []
    for beta in np.asarray(betas).tolist():
        log_mass = log_cell - beta * distortion
        log_z = log_mass.logsumexp(1)
        d = ((log_mass - log_z[:, None]).exp() * distortion).sum(1)
        rows.append(torch.stack([-log_z - beta * d, d, log_z]))
    rate, distortion, log_z = torch.stack(rows, 1).numpy()
    return rate, distortion, log_z


def in_standard_errors(curve: RDCurve, exact: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """(measured - exact) of the mean over the images, for rate, distortion and log Z, in standard errors, each [K]."""
    return {
        quantity: (curve.mean(quantity) - truth.mean(1)) / curve.standard_error(quantity, "chains")
        for quantity, truth in zip(QUANTITIES, exact, strict=True)
    }


def of_images(curve: RDCurve, images: slice) -> RDCurve:
    """The curve of some of its images."""
    return replace(curve, **{f.name: getattr(curve, f.name)[:, images] for f in fields(curve)[1:-1]})
