"""Bounds are on their side of the truth, whatever the schedule, and close at the rate that theory gives (R4, R5)."""

import numpy as np
import pytest
import torch
from problems import DTYPE, curved_decoder, linear_problem, threshold
from sampler_checks import by_quadrature, detectable

from rdcurve.sampler.ais import Groups, Tuning
from rdcurve.sampler.bdmc import bdmc, simulate
from rdcurve.sampler.distortion import SquaredError
from rdcurve.sampler.formal import formal_run
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.metric import identity
from rdcurve.sampler.prerun import PrerunSettings, learn, tune
from rdcurve.sampler.prior import standard_normal
from rdcurve.sampler.schedule import geometric, sigmoid
from rdcurve.sampler.target import Target

KERNEL = Kernel(2, 0.2, 0.5)
BETAS = geometric(400, 100.0, 1e-3)[1:].numpy()  # where the exact curves are tabulated


def linear():
    """Target of one image, exact rate, distortion and log Z at any betas, each [K]."""
    problem = linear_problem(4, n_images=1)
    return problem.target, lambda betas: [v[:, 0] for v in problem.exact(torch.as_tensor(betas))]


def curved():
    x = torch.tensor([[-0.8, 0.9, 0.1]], dtype=DTYPE)
    prior = standard_normal(2, DTYPE)
    target = Target(prior, curved_decoder, SquaredError(), x)
    return target, lambda betas: [v[:, 0] for v in by_quadrature(prior, curved_decoder, x, betas, -7, 7, 250)]


RUNS = [(3, 2, 1), (8, 4, 1), (8, 8, 4), (40, 8, 4), (40, 16, 1)]  # temperatures, chains, chains per group


@pytest.mark.parametrize("problem", [linear, curved])
@pytest.mark.parametrize("n", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_estimates_lie_on_the_side_of_the_bound(problem, n):
    """5 settings of n runs each, 4 betas: the mean of log Z never lies above the exact one, and the point (mean
    distortion, mean rate) never below the exact curve (Prop. 4), by more than chance: 1e-6 over all 80 comparisons.

    With the last setting 5,000 runs detect a violation of 0.25 nats, 500 one of 0.8. With eight temperatures both
    bounds are seen to be off by more than chance, so that the other sign would fail.
    """
    target, exact = problem()
    many = Target(target.prior, target.decoder, target.distortion, target.x.expand(n, -1))
    rate_at, distortion_at, _ = exact(BETAS)
    latent_dim, bound = target.prior.event_shape[0], threshold(80)
    for n_temperatures, n_chains, size in RUNS:
        betas = sigmoid(n_temperatures, 10.0, 4.0)
        tuning = Tuning(betas, torch.full((n_temperatures, n), 0.4, dtype=DTYPE), identity(latent_dim, DTYPE))
        recorded = sorted({round((n_temperatures - 1) * share) for share in (0.25, 0.5, 0.75, 1)} - {0})
        curve = formal_run(many, tuning, recorded, KERNEL, n_chains=n_chains, seed=1, groups=Groups(size))
        log_z = exact(curve.beta)[2]
        excess = (curve.log_z - log_z[:, None]).mean(1) / (curve.log_z.std(1) / n**0.5)
        assert (excess < bound).all(), (n_temperatures, n_chains, size)
        above = []
        for d, r in zip(curve.distortion, curve.rate, strict=True):
            slope = np.interp(-d.mean(), -distortion_at, BETAS)
            truth = np.interp(-d.mean(), -distortion_at, rate_at)
            along = r + slope * d  # near D, R(D) falls with that slope
            above.append((r.mean() - truth) / (along.std() / n**0.5))
        assert (np.array(above) > -bound).all(), (n_temperatures, n_chains, size)
        if (n_temperatures, n_chains) == (8, 4):
            assert excess[-1] < -bound
            assert above[-1] > bound
    assert detectable(curve.log_z.std(1) / n**0.5, bound) < (0.25 if n == 5000 else 0.8)


def gaps(lengths, n, beta_max=20.0):
    """BDMC gap and its standard error of n single chains each way, by length of the schedule."""
    problem = linear_problem(6, latent_dim=4)
    target, groups = problem.target, Groups()
    settings = PrerunSettings(n_rounds=3, round_temperatures=80, n_blocks=8, n_starts=0)
    learned = learn(target, beta_max, KERNEL, settings, groups)
    found = []
    for n_temperatures in lengths:
        tuning = learned.at_length(n_temperatures + 1).select(torch.zeros(n, dtype=torch.int64))
        simulated = simulate(target, tuning.betas, [n_temperatures], n, seed=n_temperatures)
        result = bdmc(simulated, tuning, KERNEL, n_chains=1, seed=5, groups=groups)
        exact = problem.exact(result.beta, simulated.target.x)[2][0]
        found.append((exact - result.lower[0].numpy(), result.upper[0].numpy() - exact))
    return np.array(found)  # [lengths, side, n]


@pytest.mark.parametrize(
    ("lengths", "n"),
    [((20, 40, 80), 1000), pytest.param((25, 50, 100, 200, 400), 8000, marks=pytest.mark.slow)],
    ids=["2 doublings", "4 doublings"],
)
def test_gap_falls_as_one_over_the_number_of_temperatures(lengths, n):
    """Every bound is on its side, and the gap falls with slope -1 +- 0.2 in log-log.

    False-fail rate 1e-6 over 2 comparisons per length, and for the slope by its own error: four doublings with 8,000
    runs know it to 0.02.
    """
    found = gaps(lengths, n)
    mean, error = found.mean(2), found.std(2) / n**0.5
    assert (mean > -threshold(2 * len(lengths)) * error).all()
    gap, gap_se = mean.sum(1), found.sum(1).std(1) / n**0.5
    x, y, weight = np.log(lengths), np.log(gap), (gap / gap_se) ** 2
    x = x - np.average(x, weights=weight)
    slope, slope_se = (weight * x * y).sum() / (weight * x * x).sum(), (weight * x * x).sum() ** -0.5
    assert threshold(1) * slope_se < 0.2
    assert abs(slope + 1) < 0.2


def test_bdmc_gap_shows_a_run_that_is_too_short():
    problem = linear_problem(6, latent_dim=4)
    betas = sigmoid(8, 50.0, 4.0)
    target = problem.target
    simulated = simulate(target, betas, [7], 40, seed=3)
    tuning = tune(simulated.target, betas, KERNEL, PrerunSettings(n_chains=4, n_blocks=5), Groups())
    result = bdmc(simulated, tuning, KERNEL, n_chains=4, seed=21)
    assert float(result.gap[0]) > 2
    assert float(result.gap[0]) > 5 * float(result.gap_se[0])
