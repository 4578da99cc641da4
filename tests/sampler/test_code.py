"""The codes that a curve keeps are draws from q_beta(z|x): what Figures 11 and 12 show."""

import numpy as np
import pytest
import torch
from problems import linear_problem, threshold

import rdcurve
from rdcurve.sampler.ais import Groups
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.prerun import PrerunSettings

N_IMAGES, BETA_MAX = 150, 6.0


def moments_of_d(problem, beta):
    """Mean and variance, each [N], of d under the exact posterior, a Gaussian: those of a quadratic form."""
    w, v = problem.weight.numpy(), problem.variance
    precision = np.eye(w.shape[1]) + beta / v * w.T @ w
    residual = (problem.x - problem.bias).numpy()
    mean = beta / v * residual @ w @ np.linalg.inv(precision)
    left = residual - mean @ w.T
    spread = w @ np.linalg.inv(precision) @ w.T  # covariance of the reconstruction
    n = w.shape[0]
    constant = n / 2 * np.log(2 * np.pi * v)
    expected = (np.square(left).sum(1) + np.trace(spread)) / (2 * v) + constant
    variance = (2 * np.trace(spread @ spread) + 4 * np.einsum("ni,ij,nj->n", left, spread, left)) / (4 * v**2)
    return expected, variance


@pytest.mark.parametrize("routes", ["up", "up and down"])
def test_codes_have_the_distortion_of_the_posterior(routes):
    """d(x, f(code)) over 150 images, at 6 betas: sum of its deviations from the exact mean, in standard deviations.

    False-fail rate 1e-6 for the family of 12; detects a bias of 0.45 standard deviations of d in every image. On the
    route up the chains do not resample, so that a code drawn without regard to the weights would be such a bias.
    """
    problem = linear_problem(11, n_images=N_IMAGES)
    one_route = routes == "up"
    curve = rdcurve.measure(
        problem.decoder,
        problem.x,
        latent_dim=3,
        beta_max=BETA_MAX,
        distortion=problem.distortion,
        n_temperatures=12 if one_route else 60,
        n_recorded=6,
        n_simulated=0,
        n_chains=96 if one_route else 16,
        kernel=Kernel(n_leapfrog=1, jitter=0.2, persistence=0.0) if one_route else Kernel(2, 0.2, 0.5),
        groups=Groups() if one_route else Groups(8),
        prerun_settings=PrerunSettings(
            n_chains=8, n_rounds=1, round_temperatures=40, n_starts=0 if one_route else 2, most_starts=0
        ),
    )
    assert curve.code.shape == (6, N_IMAGES, 3)
    for k, beta in enumerate(curve.beta):
        d = problem.distortion(problem.x, problem.decoder(torch.from_numpy(curve.code[k]))[None])[0].numpy()
        expected, variance = moments_of_d(problem, beta)
        z = (d - expected).sum() / np.sqrt(variance.sum())
        assert abs(z) < threshold(12), (beta, z)


def test_first_images_and_the_images_that_curves_share():
    problem = linear_problem(3, n_images=5)
    curve = rdcurve.measure(
        problem.decoder, problem.x, latent_dim=3, beta_max=2.0, distortion=problem.distortion, n_temperatures=20,
        n_recorded=4, n_chains=4, prerun_settings=PrerunSettings(n_chains=2, n_rounds=1, round_temperatures=20),
    )  # fmt: skip
    few = curve.first(2)
    assert few.rate.shape == (4, 2)
    np.testing.assert_array_equal(few.code, curve.code[:, :2])
    np.testing.assert_array_equal(few.beta, curve.beta)
    shared = rdcurve.curve.same_images({"few": few, "all": curve})
    np.testing.assert_array_equal(shared["all"].log_z, few.log_z)
    assert shared["few"].rate.shape == shared["all"].rate.shape
