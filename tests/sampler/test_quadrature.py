"""Whole curves of nonlinear decoders, and under other priors, against quadrature (R2)."""

from functools import cache

import numpy as np
import pytest
import torch
from problems import DTYPE, curved_decoder
from sampler_checks import QUANTITIES, by_quadrature, detectable, in_standard_errors, random_network, student
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import rdcurve
from rdcurve.sampler.ais import Groups
from rdcurve.sampler.prerun import PrerunSettings
from rdcurve.sampler.prior import scale_mixture, standard_normal, uniform

SETTINGS = PrerunSettings(n_rounds=2, round_temperatures=40, n_blocks=6, n_starts=0)
N_RECORDED = 20
N_NETWORKS = 24


def measured(decoder, x, latent_dim, **changes):
    """128 groups of chains: their error bars have 127 degrees of freedom whichever image is the noisiest.

    The groups resample often, so that whatever is wrong in that is seen.
    """
    arguments = {"beta_max": 20.0, "n_temperatures": 60, "n_recorded": N_RECORDED, "n_chains": 1024} | changes
    return rdcurve.measure(
        decoder, x, latent_dim=latent_dim, prerun_settings=SETTINGS, groups=Groups(8, resample_below=0.9),
        n_simulated=0, **arguments,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seeds", "n_runs"),
    [(range(2), 1), pytest.param(range(N_NETWORKS), 8, marks=pytest.mark.slow)],
    ids=["few", "all"],
)
def test_random_networks(seeds, n_runs):
    """24 random networks, of one code and of two by turns, with 3 images and 20 betas each, 8 runs of each image.

    False-fail rate 1e-6 over all 1,440 comparisons of a network's rate, distortion and log Z, by Student's t, and 1e-6
    over the 60 of their mean over the networks. A miss of 1e-6 is left to an error of 0.2 nats in one network's log Z,
    and of 0.04 nats in all of them together; with one run each of two networks, of 0.5 nats in either.
    """
    errors, squares = [], []
    bound = student(3 * N_RECORDED * N_NETWORKS, 127)
    for seed in seeds:
        latent_dim = 1 + seed % 2
        decoder, x = random_network(seed, latent_dim)
        curve = measured(decoder, x.repeat(n_runs, 1), latent_dim, seed=seed)
        cells = (4000, 400)[latent_dim - 1]
        exact = by_quadrature(standard_normal(latent_dim, DTYPE), decoder, x, curve.beta, -7, 7, cells)
        for quantity, error in in_standard_errors(curve, exact).items():
            assert np.abs(error).max() < bound, (seed, quantity)
        assert detectable(curve.standard_error("log_z", "chains"), bound) < (0.5 if n_runs == 1 else 0.2)
        errors.append([curve.mean(q) - truth.mean(1) for q, truth in zip(QUANTITIES, exact, strict=True)])
        squares.append([curve.standard_error(q, "chains") ** 2 for q in QUANTITIES])
    together, bound = np.sqrt(np.sum(squares, 0)), student(3 * N_RECORDED, 127)
    assert (np.abs(np.sum(errors, 0)) < bound * together).all()
    if len(seeds) == N_NETWORKS:
        assert detectable(together[2] / N_NETWORKS, bound) < 0.04


def test_quadrature_is_that_of_a_finer_grid():
    """The grid is not what is compared with: half the spacing changes nothing."""
    decoder, x = random_network(1, 2)
    coarse, fine = (by_quadrature(standard_normal(2, DTYPE), decoder, x, [0.5, 20.0], -7, 7, n) for n in (400, 800))
    assert np.allclose(coarse, fine, rtol=0, atol=1e-7)


def learned_prior():
    """Of every dimension its own mixture of three Gaussians, with parameters as they leave a training."""
    generator = torch.Generator().manual_seed(3)
    logits, mean, log_scale = (
        torch.nn.Parameter(s * torch.randn(2, 3, generator=generator, dtype=DTYPE)) for s in (0.5, 1.2, 0.3)
    )
    return Independent(MixtureSameFamily(Categorical(logits=logits), Normal(mean, 0.6 * log_scale.exp())), 1)


X = torch.tensor([[0.5, -0.4, 0.2], [-0.8, 0.9, 0.1], [0.9, 1.2, 0.9]], dtype=DTYPE)
PRIORS = {  # prior, where its grid begins and ends, cells
    "standard_normal": (standard_normal(2, DTYPE), -7, 7, 400),
    "uniform": (uniform(2, -1.0, 0.7, dtype=DTYPE), -1.0, 0.7, 500),  # a cube whose walls cut the posteriors
    "scale_mixture": (scale_mixture(2, 0.3, 3.0, DTYPE), -15, 15, 600),
    "learned": (learned_prior(), -7, 7, 400),
}


@cache
def under(name):
    """Curve, and exact rate, distortion and log Z, of a decoder that folds its codes."""
    prior, low, high, cells = PRIORS[name]
    curve = measured(curved_decoder, X, 2, prior=prior, beta_max=10.0)
    return curve, by_quadrature(prior, curved_decoder, X, curve.beta, low, high, cells)


@pytest.mark.parametrize("name", PRIORS)
def test_curve_under_a_prior(name):
    """Rate, distortion and log Z at 20 betas. False-fail rate 1e-6 over 240 comparisons, by Student's t.

    Detects 0.4 nats in log Z: a density without its constant, a force without the prior, a proposal outside the cube
    that is kept.
    """
    curve, exact = under(name)
    bound = student(3 * N_RECORDED * len(PRIORS), 127)
    for quantity, error in in_standard_errors(curve, exact).items():
        assert np.abs(error).max() < bound, quantity
    assert detectable(curve.standard_error("log_z", "chains"), bound) < 0.4
    assert curve.acceptance.min() > 0.3


@pytest.mark.parametrize("name", ["standard_normal", "uniform", "scale_mixture", "learned"])
def test_control_variate_under_a_prior(name):
    """`distortion_cv` and `rate_cv` of the same curves. False-fail rate 1e-6 over 160 comparisons."""
    curve, (rate, distortion, _) = under(name)
    bound = student(2 * N_RECORDED * len(PRIORS), 127)
    for quantity, truth in (("rate_cv", rate), ("distortion_cv", distortion)):
        error = (curve.mean(quantity) - truth.mean(1)) / curve.standard_error(quantity, "chains")
        assert np.abs(error).max() < bound, quantity
