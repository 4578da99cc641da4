"""The closed form is the oracle of Figure 3 and of most tests: check it against a library that knows nothing of it."""

import numpy as np
import pytest
import torch
from problems import DTYPE, linear_problem
from torch.distributions import MultivariateNormal


@pytest.mark.parametrize("latent_dim", [1, 3, 8, 12])  # fewer, as many, and more codes than pixels
@pytest.mark.parametrize("variance", [0.1, 1.0, 3.0])
def test_closed_form_is_that_of_the_marginal_gaussian(latent_dim, variance):
    """Z(beta) = int p(z) exp(-beta d) dz makes x Gaussian with covariance W W^T + (variance / beta) I:

    log Z = log N(x; b, W W^T + v/beta I) + n/2 log(2 pi v/beta) - beta n/2 log(2 pi v),  D = -d log Z / d beta,
    R = -log Z - beta D. Exact to rounding, but for D, a central difference.
    """
    problem = linear_problem(latent_dim, latent_dim, n_pixels=8, variance=variance)
    betas = torch.logspace(-2, 3, 21, dtype=DTYPE)

    def log_z(beta):
        n, noise = problem.x.shape[1], variance / beta
        covariance = problem.weight @ problem.weight.T + noise * torch.eye(n, dtype=DTYPE)
        log_p = MultivariateNormal(problem.bias, covariance).log_prob(problem.x)
        return log_p + n / 2 * torch.log(2 * torch.pi * noise) - beta * n / 2 * np.log(2 * np.pi * variance)

    rate, distortion, exact_log_z = problem.exact(betas)
    for k, beta in enumerate(betas):
        step = 1e-5 * beta
        slope = (log_z(beta + step) - log_z(beta - step)) / (2 * step)
        expected = log_z(beta).numpy()
        assert np.allclose(exact_log_z[k], expected, rtol=1e-9, atol=1e-9)
        assert np.allclose(distortion[k], -slope.numpy(), rtol=1e-6, atol=1e-6)
        assert np.allclose(rate[k], -expected + float(beta) * slope.numpy(), rtol=1e-6, atol=1e-6 * (1 + float(beta)))
