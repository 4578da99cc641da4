"""Priors other than the standard normal, against quadrature: a bounded one, and a factorised one of any shape."""

import numpy as np
import pytest
import torch
from problems import DTYPE, curved_decoder, threshold
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, Uniform

import rdcurve
from rdcurve.sampler.prerun import PrerunSettings
from rdcurve.sampler.prior import covers_everything, log_density, scale_mixture, slope, standard_normal, uniform

X = torch.tensor([[0.3, 0.2, 0.1], [0.8, -0.9, -0.2], [1.2, 1.0, 0.6]], dtype=DTYPE)


def factorised():
    """Each of two code dimensions has a mixture of its own, as a learned prior may."""
    means = torch.tensor([[-1.0, 1.2], [0.0, 2.0]], dtype=DTYPE)
    scales = torch.tensor([[0.4, 0.7], [1.0, 0.3]], dtype=DTYPE)
    weights = torch.tensor([[0.3, 0.7], [0.8, 0.2]], dtype=DTYPE)
    return Independent(MixtureSameFamily(Categorical(weights), Normal(means, scales)), 1)


@pytest.mark.parametrize(
    ("prior", "low", "high"), [(uniform(2, -1.0, 1.5, dtype=DTYPE), -1.0, 1.5), (factorised(), -7.0, 7.0)]
)
def test_curve_under_another_prior(prior, low, high):
    """log Z and D of 3 images at 5 betas against midpoint sums over 1000 x 1000 cells.

    False-fail rate 1e-6 for the family of 60, as far as the errors are normal; detects 7 standard errors, which are
    asserted to be below 0.1 nats of log Z, so 0.7 nats. An unnormalised uniform density would be off by 1.8. The bounds
    on simulated images, whose gaps have a standard deviation of 0.08 nats, lie within half a nat of each other.
    """
    curve = rdcurve.measure(
        curved_decoder, X, latent_dim=2, beta_max=30.0, prior=prior, n_temperatures=400, n_recorded=5, n_chains=128,
        n_simulated=2, prerun_settings=PrerunSettings(n_rounds=2, round_temperatures=100, n_starts=6, most_starts=0),
    )  # fmt: skip
    edges = torch.linspace(low, high, 1001, dtype=DTYPE)
    axis = (edges[1:] + edges[:-1]) / 2
    z = torch.cartesian_prod(axis, axis)
    log_cell = prior.log_prob(z)[:, None] + 2 * np.log((high - low) / 1000)
    d = (curved_decoder(z)[:, None] - X).square().sum(-1)
    for k, beta in enumerate(curve.beta):
        log_mass = log_cell - beta * d
        log_z = log_mass.logsumexp(0)
        distortion = ((log_mass - log_z).exp() * d).sum(0)
        assert (np.abs(curve.log_z[k] - log_z.numpy()) < threshold(60) * 1.3 * curve.log_z_se[k]).all(), beta
        assert (np.abs(curve.distortion[k] - distortion.numpy()) < threshold(60) * 1.3 * curve.distortion_se[k]).all()
    assert curve.log_z_se.max() < 0.1
    assert len(curve.gaps) == 5
    assert curve.gaps["gap"].abs().max() < 0.5
    assert (curve.facts["n_searches"] == 0) == (low == -1.0)  # no mixture of Gaussians around modes in a box


def test_support_of_a_prior_is_known():
    priors = [standard_normal(2), scale_mixture(2, 0.5, 10.0), factorised(), uniform(2)]
    assert [covers_everything(prior) for prior in priors] == [True, True, True, False]


def test_a_uniform_prior_needs_room():
    with pytest.raises(ValueError, match="low < high, not 1 and -1"):
        uniform(2, 1, -1)


def test_a_prior_that_refuses_codes_outside_is_refused_with_the_cure():
    prior = Independent(Uniform(torch.zeros(2, dtype=DTYPE), torch.ones(2, dtype=DTYPE), validate_args=True), 1)
    with pytest.raises(ValueError, match="build it with validate_args=False"):
        rdcurve.measure(curved_decoder, X, latent_dim=2, beta_max=1.0, prior=prior, n_temperatures=20)


def wide():
    return Independent(Normal(torch.tensor([1.0, -2.0], dtype=DTYPE), torch.tensor([0.5, 3.0], dtype=DTYPE)), 1)


@pytest.mark.parametrize(
    "prior",
    [standard_normal(2, DTYPE), wide(), scale_mixture(2, 0.3, 10.0, DTYPE), factorised(), uniform(2, dtype=DTYPE)],
    ids=["standard", "wide", "mixture", "factorised", "uniform"],
)
def test_slope_of_log_density(prior):
    """Against differences of log p, and to the bit what autograd gives under the standard normal."""
    z = 0.9 * torch.rand(5, 3, 2, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    step = 1e-5 * torch.eye(2, dtype=DTYPE)
    difference = torch.stack([(prior.log_prob(z + h) - prior.log_prob(z - h)) / 2e-5 for h in step], -1)
    assert torch.allclose(slope(prior, z), difference, atol=1e-8)
    value, gradient = log_density(prior, z)
    assert torch.equal(value, prior.log_prob(z))
    assert torch.allclose(gradient, difference, atol=1e-8)
    if (prior.variance == 1).all():
        assert torch.equal(slope(prior, z), gradient)
