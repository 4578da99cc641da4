"""AIS and BDMC against exact answers: the closed form of linear decoders."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import DTYPE, linear_problem, threshold
from sampler_checks import detectable, in_standard_errors, of_images, posterior_samples, student

from rdcurve.sampler.ais import Annealing, Groups, advance, log_mean_exp, start_from_prior
from rdcurve.sampler.bdmc import bdmc, simulate
from rdcurve.sampler.estimate import estimate
from rdcurve.sampler.formal import formal_run
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.metric import identity
from rdcurve.sampler.prerun import PrerunSettings, learn, tune
from rdcurve.sampler.schedule import recorded_steps, sigmoid
from rdcurve.sampler.step_size import Frozen

KERNEL = Kernel(3, 0.2, 0.3)
PRERUN = PrerunSettings(n_chains=4, seed=1, n_blocks=5, target_acceptance=0.8, round_temperatures=1000)
LEARNING = PrerunSettings(n_rounds=2, round_temperatures=50, n_blocks=5, n_starts=0)
N_RECORDED = 20
IMAGES_PER_CODE = {0.1: 290, 0.5: 200, 2.0: 140}  # by variance
FAMILY = [(latent_dim, variance) for latent_dim in (1, 2, 3, 4, 6) for variance in (0.1, 0.5, 2.0)]


def measured(problem, seed, beta_max=8.0, n_temperatures=80, n_chains=64):
    """Groups of eight; the tuning is learned on four images, for a linear decoder has the same for all."""
    kernel, groups = Kernel(2, 0.2, 0.5), Groups(8)
    few = replace(problem, x=problem.x[:4])
    tuning = learn(few.target, beta_max, kernel, LEARNING, groups).at_length(n_temperatures)
    recorded = recorded_steps(n_temperatures, N_RECORDED)
    tuning = tuning.select(torch.zeros(len(problem.x), dtype=torch.int64))
    return formal_run(problem.target, tuning, recorded, kernel, n_chains=n_chains, seed=seed, groups=groups)


@pytest.mark.parametrize(
    ("latent_dim", "variance", "full"),
    [(1, 0.1, False), (2, 0.5, False), (3, 2.0, False), (4, 0.5, False), (6, 0.1, False)]
    + [pytest.param(*member, True, marks=pytest.mark.slow) for member in FAMILY],
)
def test_closed_form(latent_dim, variance, full):
    """Linear decoders with fewer, as many, and more codes than pixels: 5 sizes x 3 distortion scales x 20 betas (R1).

    False-fail rate 1e-6 for the whole family of 900 comparisons of rate, distortion and log Z. In full an error of 0.05
    nats in log Z, in the rate, or in beta times the distortion has a chance of 1e-6 to be missed; of the few images by
    default, one of 1 nat.
    """
    n_images, n_chains = (IMAGES_PER_CODE[variance] * latent_dim, 256) if full else (32, 64)
    problem = linear_problem(latent_dim, latent_dim, n_pixels=4, n_images=n_images, variance=variance)
    curve = measured(problem, seed=100 + latent_dim, n_chains=n_chains)
    # at least 7 degrees of freedom from each of the images, of which no one is much noisier than the others
    bound = student(3 * N_RECORDED * len(FAMILY), 7 * n_images)
    for quantity, error in in_standard_errors(curve, problem.exact(curve.beta)).items():
        assert np.abs(error).max() < bound, quantity
        nats = curve.standard_error(quantity, "chains") * (curve.beta if quantity == "distortion" else 1)
        assert detectable(nats, bound) < (0.05 if full else 1), quantity


def test_closed_form_on_twenty_seeds():
    """Not only on one lucky seed: 20 runs of one small problem, 20 betas each, at once, since images key the noise.

    In every run every beta lies within Student's t for a false-fail rate of 1e-6 over all 1,200 comparisons. Over all
    runs the root mean square of standardised errors lies between 0.8 and 1.25, which an error bar off by 30 % or a bias
    of one standard error breaks; and the mean over the seeds is within 0.02 nats and 5.1 of its standard errors above
    the exact rate, never that far below.
    """
    problem = linear_problem(3, n_images=5)
    together = measured(replace(problem, x=problem.x.repeat(20, 1)), seed=10, n_temperatures=120)
    exact = problem.exact(together.beta)
    rates, standardised = [], []
    for run in range(20):
        curve = of_images(together, slice(5 * run, 5 * run + 5))
        errors = in_standard_errors(curve, exact)
        assert max(np.abs(error).max() for error in errors.values()) < student(3 * N_RECORDED * 20, 35)
        rates.append(curve.mean("rate"))
        standardised.append(errors["rate"])
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
        z = posterior_samples(problem, beta, n, seed=9)
        chains = chains._replace(state=chains.state._replace(point=target.at(z)))
    sizes = Frozen(torch.full((n_temperatures, 1), 0.9, dtype=DTYPE))
    chains = advance(
        Annealing(target, KERNEL, 4, images), betas, chains, sizes, metric, until=n_temperatures - 1, reverse=reverse
    )
    log_z = problem.exact(betas[-1:])[2].item()
    ratio = (chains.log_weight[:, 0] + (log_z if reverse else -log_z)).exp()
    error = float(ratio.std()) / n**0.5
    assert error < 0.01
    assert abs(float(ratio.mean()) - 1) < threshold(6) * error


def test_float32_decoder_gives_the_same_curve():
    """float32 networks with float64 energies: the same answer within the error bars, up to beta = 2,000.

    False-fail rate 1e-6 over 60 comparisons, by Student's t.
    """
    problem = linear_problem(3, n_images=8, dtype=torch.float32)
    curve = measured(problem, seed=5, beta_max=2000.0, n_temperatures=200)
    assert curve.log_z.dtype == np.float64
    errors = in_standard_errors(curve, problem.exact(curve.beta))
    assert max(np.abs(error).max() for error in errors.values()) < student(3 * N_RECORDED, 56)


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
    annealing = Annealing(target, KERNEL, 0, torch.arange(1))
    after = advance(annealing, betas, heavy, sizes, identity(3, torch.float32), until=1)
    change = after.log_weight - heavy.log_weight
    assert torch.allclose(change, -1e-9 * chains.state.point.distortion, rtol=0.1)


def test_bdmc_encloses_exact_log_z():
    """Lower <= exact <= upper within errors, at 6 betas; the gap closes. False-fail rate 1e-6 over 12 comparisons."""
    problem = linear_problem(6, latent_dim=4)
    betas = sigmoid(200, 8.0, 6.0)
    steps = recorded_steps(200, 12)[1::2]
    target = problem.target
    simulated = simulate(target, betas, steps, 40, seed=3)
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


def test_bdmc_refuses_a_distortion_that_cannot_be_sampled():
    problem = linear_problem(6)
    target = problem.target
    with pytest.raises(TypeError, match="can be sampled"):
        simulate(replace(target, distortion=lambda x, f: (x - f).abs().sum(-1)), sigmoid(5, 1.0), [4], 3, 0)


def test_estimate_on_three_chains_by_hand():
    log_weight = torch.tensor([[1.0], [3.0], [4.0]], dtype=DTYPE).log()
    distortion = torch.tensor([[4.0], [8.0], [6.0]], dtype=DTYPE)
    result = estimate(log_weight, distortion, distortion / 4, beta=2.0)
    assert float(result.log_z) == pytest.approx(np.log(8 / 3))
    assert float(result.distortion) == pytest.approx(6.5)
    assert float(result.rate) == pytest.approx(-np.log(8 / 3) - 13.0)
    assert float(result.ess) == pytest.approx(64 / 26)
    assert float(result.distortion_variance) == pytest.approx(1.75)
    assert float(result.distortion_cv) == pytest.approx(0.0)  # d = 4 h, and h has mean 0
    assert float(result.rate_cv) == pytest.approx(-np.log(8 / 3))
    assert float(result.spread) == pytest.approx(np.log([1.0, 3.0, 4.0]).std(ddof=1))
    assert float(log_mean_exp(log_weight)) == pytest.approx(np.log(8 / 3))
