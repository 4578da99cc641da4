"""AIS and BDMC against exact answers: closed form of linear decoders, quadrature of a nonlinear one."""

import numpy as np
import pytest
import torch
from problems import DTYPE, curved_decoder, linear_problem, quadrature, threshold

import rdcurve
from rdcurve.sampler.ais import Groups, advance, log_mean_exp, start_from_prior
from rdcurve.sampler.bdmc import bdmc, simulate
from rdcurve.sampler.estimate import estimate
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.measure import formal_run
from rdcurve.sampler.metric import identity
from rdcurve.sampler.prerun import PrerunSettings, tune
from rdcurve.sampler.schedule import recorded_steps, sigmoid
from rdcurve.sampler.step_size import Frozen

KERNEL = Kernel(3, 0.2, 0.3)
PRERUN = PrerunSettings(n_chains=4, seed=1, n_blocks=5, target_acceptance=0.8, round_temperatures=1000)


def measured(problem, seed, beta_max=8.0, n_temperatures=400, n_chains=64):
    betas = sigmoid(n_temperatures, beta_max, 8.0)
    tuning = tune(problem.target, betas, KERNEL, PRERUN, Groups())
    recorded = recorded_steps(n_temperatures, 20)
    return formal_run(problem.target, tuning, recorded, KERNEL, n_chains=n_chains, seed=seed)


def in_standard_errors(curve, exact):
    """Largest |measured - exact| over beta, for rate, distortion and log Z, in standard errors over the chains."""
    return {
        quantity: float(np.abs((curve.mean(quantity) - truth.mean(1)) / curve.standard_error(quantity, "chains")).max())
        for quantity, truth in zip(("rate", "distortion", "log_z"), exact, strict=True)
    }


@pytest.mark.parametrize(("latent_dim", "variance"), [(1, 0.1), (2, 0.5), (3, 2.0), (5, 0.5), (8, 0.5)])
def test_closed_form(latent_dim, variance):
    """20 betas x 3 quantities. False-fail rate 1e-6 (Bonferroni); standard errors below 0.1 nats detect 0.8 nats at
    the worst beta, 0.05 at small ones."""
    problem = linear_problem(latent_dim, latent_dim, n_pixels=8, n_images=10, variance=variance)
    curve = measured(problem, seed=100 + latent_dim)
    worst = in_standard_errors(curve, problem.exact(curve.beta))
    # Student's t of a jackknife over 64 chains and 10 images; 1.3 covers its error and the bias of log-mean-exp
    assert max(worst.values()) < 1.3 * threshold(60)
    assert curve.standard_error("log_z", "chains").max() < 0.1


def test_closed_form_on_twenty_seeds():
    """Not only on one lucky seed: 20 formal runs of one small problem, 20 betas each.

    In every run every beta lies within z standard errors, z for a false-fail rate of 1e-6 over all 1,200 comparisons
    (times 1.3 for the jackknife's own error). Over all runs the root mean square of standardised errors lies between
    0.8 and 1.25, which an error bar off by 30 % or a bias of one standard error breaks; and the mean over the seeds is
    within 0.02 nats and 5.1 of its standard errors above the exact rate, never that far below.
    """
    problem = linear_problem(3, n_images=5)
    betas = sigmoid(300, 8.0, 8.0)
    tuning = tune(problem.target, betas, KERNEL, PRERUN, Groups())
    recorded = recorded_steps(300, 20)
    exact = problem.exact(betas[recorded])
    rates, standardised = [], []
    for seed in range(20):
        curve = formal_run(problem.target, tuning, recorded, KERNEL, n_chains=32, seed=seed + 10)
        assert max(in_standard_errors(curve, exact).values()) < 1.3 * threshold(1200)
        rates.append(curve.mean("rate"))
        standardised.append((rates[-1] - exact[0].mean(1)) / curve.standard_error("rate", "chains"))
    assert 0.8 < np.sqrt(np.square(standardised).mean()) < 1.25
    spread = np.std(rates, axis=0, ddof=1) / np.sqrt(20)
    bias = np.mean(rates, axis=0) - exact[0].mean(1)
    assert (bias < 0.02 + threshold(20) * spread).all()
    assert (bias > -threshold(20) * spread).all()  # a bound: from above only


@pytest.mark.parametrize("n_temperatures", [2, 5, 20])
@pytest.mark.parametrize("reverse", [False, True])
def test_weights_are_unbiased_however_bad_the_schedule(n_temperatures, reverse):
    """E[Z_hat / Z] = 1 forward, E[Z / Z_hat] = 1 reversed, at 2, 5 and 20 temperatures, with bad step sizes.

    20,000 chains; false-fail rate 1e-6. The standard error of the mean weight, under 0.01, detects a factor 1.06 in Z:
    a wrong sign, an off-by-one schedule, an omitted prior or moves at the wrong beta.
    """
    problem, n = linear_problem(2, latent_dim=2, n_pixels=3, n_images=1), 20_000
    # reversed, the weight has a second moment only while beta |W|^2 / v < 1
    betas, target = sigmoid(n_temperatures, 0.1 if reverse else 0.4, 2.0), problem.target
    images, metric = torch.arange(1), identity(2, DTYPE)
    beta = float(betas[-1])
    chains = start_from_prior(target, 3, images, n)
    if reverse:
        precision = torch.eye(2, dtype=DTYPE) + beta / problem.variance * problem.weight.T @ problem.weight
        shift = beta / problem.variance * problem.weight.T @ (problem.x[0] - problem.bias)
        root = torch.linalg.cholesky(torch.linalg.inv(precision))
        white = torch.randn(n, 1, 2, generator=torch.Generator().manual_seed(9), dtype=DTYPE)
        z = torch.linalg.solve(precision, shift) + white @ root.T
        chains = chains._replace(state=chains.state._replace(point=target.at(z)))
    sizes = Frozen(torch.full((n_temperatures, 1), 0.9, dtype=DTYPE))
    chains = advance(
        target, betas, chains, sizes, metric, KERNEL, seed=4, images=images, until=n_temperatures - 1, reverse=reverse
    )
    log_z = problem.exact(betas[-1:])[2].item()
    ratio = (chains.log_weight[:, 0] + (log_z if reverse else -log_z)).exp()
    error = float(ratio.std()) / n**0.5
    assert error < 0.01
    assert abs(float(ratio.mean()) - 1) < threshold(6) * error


def test_bound_direction():
    """log-mean-exp never lies above log Z on average: 50 images, a coarse schedule, so the bias is seen."""
    problem = linear_problem(4, n_images=50)
    betas = sigmoid(15, 20.0, 5.0)
    tuning = tune(problem.target, betas, KERNEL, PRERUN, Groups())
    curve = formal_run(problem.target, tuning, [14], KERNEL, n_chains=4, seed=11)
    difference = (curve.log_z - problem.exact(curve.beta)[2])[0]
    assert difference.mean() < -5 * difference.std() / np.sqrt(50)


def test_quadrature_of_a_nonlinear_decoder():
    """The public API on a 2-D decoder that is neither linear nor symmetric. False-fail rate 1e-6; detects 0.4 nats."""
    x = torch.tensor([[0.5, -0.4, 0.2], [-0.8, 0.9, 0.1], [0.9, 1.2, 0.9]], dtype=DTYPE)
    curve = rdcurve.measure(
        curved_decoder,
        x,
        latent_dim=2,
        beta_max=10.0,
        n_temperatures=200,
        n_recorded=20,
        n_chains=200,
        prerun_settings=PrerunSettings(n_rounds=2, round_temperatures=100, n_blocks=6, n_starts=0),
    )
    exact = tuple(quadrature(curved_decoder, x, curve.beta))
    assert max(in_standard_errors(curve, exact).values()) < 1.2 * threshold(60)
    assert curve.standard_error("rate", "chains").max() < 0.08


def test_float32_decoder_gives_the_same_curve():
    """float32 networks with float64 energies: the same answer within the error bars."""
    problem = linear_problem(3, n_images=8, dtype=torch.float32)
    curve = measured(problem, seed=5, beta_max=2000.0)
    assert curve.log_z.dtype == np.float64
    worst = in_standard_errors(curve, problem.exact(curve.beta))
    assert max(worst.values()) < 1.3 * threshold(60)


def test_log_weights_are_accumulated_in_float64():
    """100,000 increments of 0.005 on a sum of 500,000: float32 would drop every one of them."""
    problem = linear_problem(3, n_images=1, dtype=torch.float32)
    target = problem.target
    chains = start_from_prior(target, 0, torch.arange(1), 2)
    assert chains.log_weight.dtype == torch.float64
    assert chains.state.point.distortion.dtype == torch.float64
    heavy = chains._replace(log_weight=chains.log_weight - 500_000)
    betas = torch.tensor([0.0, 1e-9], dtype=torch.float64)
    sizes = Frozen(torch.full((2, 1), 0.1, dtype=DTYPE))
    after = advance(
        target, betas, heavy, sizes, identity(3, torch.float32), KERNEL, seed=0, images=torch.arange(1), until=1
    )
    change = after.log_weight - heavy.log_weight
    assert torch.allclose(change, -1e-9 * chains.state.point.distortion, rtol=0.1)


def test_bdmc_encloses_exact_log_z():
    """Lower <= exact <= upper within errors, at 6 betas; the gap closes. False-fail rate 1e-6 over 12 comparisons."""
    problem = linear_problem(6, latent_dim=4)
    betas = sigmoid(200, 8.0, 6.0)
    steps = recorded_steps(200, 12)[1::2]
    target = problem.target
    simulated = simulate(target.prior, target.decoder, target.distortion, betas, steps, 40, seed=3)
    tuning = tune(simulated.target, betas, KERNEL, PRERUN, Groups())
    table = tuning.step_sizes.clone()
    result = bdmc(simulated, tuning, KERNEL, n_chains=8, seed=21)
    assert torch.equal(tuning.step_sizes, table)  # frozen
    x = simulated.target.x.unflatten(0, (6, 40)).flip(0)
    exact = np.stack([problem.exact(beta[None], part)[2][0] for beta, part in zip(result.beta, x, strict=True)])
    below = exact - result.lower.numpy()
    above = result.upper.numpy() - exact
    for difference in (below, above):
        error = difference.std(1, ddof=1) / np.sqrt(40)
        assert (difference.mean(1) > -threshold(12) * error).all()
        assert (difference.mean(1) < 0.15 + threshold(12) * error).all()
    assert (result.gap < 0.5).all()
    assert torch.allclose(result.gap, (result.upper - result.lower).mean(1))


def test_bdmc_gap_shows_a_run_that_is_too_short():
    problem = linear_problem(6, latent_dim=4)
    betas = sigmoid(8, 50.0, 4.0)
    target = problem.target
    simulated = simulate(target.prior, target.decoder, target.distortion, betas, [7], 40, seed=3)
    tuning = tune(simulated.target, betas, KERNEL, PRERUN, Groups())
    result = bdmc(simulated, tuning, KERNEL, n_chains=4, seed=21)
    assert float(result.gap[0]) > 2
    assert float(result.gap[0]) > 5 * float(result.gap_se[0])


def test_bdmc_refuses_a_distortion_that_cannot_be_sampled():
    problem = linear_problem(6)
    target = problem.target
    with pytest.raises(TypeError, match="can be sampled"):
        simulate(target.prior, target.decoder, lambda x, f: (x - f).abs().sum(-1), sigmoid(5, 1.0), [4], 3, 0)


def test_error_bars_cover_the_truth():
    """95 % intervals of log Z, D and R cover between 90 and 98.5 % in the mean over 250 replicates and 20 betas.

    The coverage at one beta has a binomial standard error of 1.4 %; the mean over correlated betas at most that, so
    both ends are 3.6 or 2.5 of them from 95 % at worst. An interval that is 20 % too narrow covers 88.3 % and fails.
    """
    problem = linear_problem(8, n_images=1)
    x = problem.x.expand(250, -1)
    problem = type(problem)(problem.weight, problem.bias, x, problem.variance)
    curve = measured(problem, seed=77, n_temperatures=150, beta_max=4.0, n_chains=40)
    for quantity, truth in zip(("rate", "distortion", "log_z"), problem.exact(curve.beta), strict=True):
        hits = np.abs(getattr(curve, quantity) - truth) < 1.96 * getattr(curve, f"{quantity}_se")
        assert 0.90 < hits.mean() < 0.985, quantity


def test_estimate_on_two_chains_by_hand():
    log_weight = torch.tensor([[0.0], [np.log(3.0)]], dtype=DTYPE)
    distortion, h = torch.tensor([[[4.0], [8.0]], [[1.0], [2.0]]], dtype=DTYPE)
    result = estimate(log_weight, distortion, h, beta=2.0)
    assert float(result.log_z) == pytest.approx(np.log(2.0))
    assert float(result.distortion) == pytest.approx(7.0)
    assert float(result.rate) == pytest.approx(-np.log(2.0) - 14.0)
    assert float(result.ess) == pytest.approx(1 / (1 / 16 + 9 / 16))
    assert float(result.distortion_variance) == pytest.approx(3.0)
    assert float(result.distortion_cv) == pytest.approx(0.0)  # d = 4 h, and h has mean 0
    assert float(result.rate_cv) == pytest.approx(-np.log(2.0))
    assert float(log_mean_exp(log_weight)) == pytest.approx(np.log(2.0))
