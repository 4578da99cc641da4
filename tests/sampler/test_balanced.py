"""Mixtures with uneven shares: chains are annealed under evener ones, and weigh what the prior says."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import DTYPE, curved_decoder, threshold
from sampler_checks import by_quadrature
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

import rdcurve
from rdcurve.sampler.ais import Groups, Tuning, start_from_prior, under_prior
from rdcurve.sampler.bdmc import bdmc, simulate
from rdcurve.sampler.distortion import SquaredError
from rdcurve.sampler.formal import formal_run
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.metric import identity
from rdcurve.sampler.prerun import PrerunSettings, tune
from rdcurve.sampler.prior import balanced, scale_mixture, standard_normal, uniform
from rdcurve.sampler.schedule import sigmoid
from rdcurve.sampler.target import Target

X = torch.tensor([[0.5, -0.4, 0.2], [-0.8, 0.9, 0.1], [0.9, 1.2, 0.9]], dtype=DTYPE)
BAD = scale_mixture(2, 0.96, 6.0, DTYPE)  # of 16 draws, none is likely to begin in the narrow part
TARGET = Target(BAD, curved_decoder, SquaredError(), X)
WEIGHT = torch.tensor([[1.0, 0.3], [-0.4, 0.8], [0.2, -0.5]], dtype=DTYPE)
LINEAR = replace(TARGET, decoder=lambda z: z @ WEIGHT.T)
KERNEL = Kernel(2, 0.2, 0.5)


def exact(beta, x, prior=BAD):
    """log Z [N] of the linear decoder: x has a Gaussian density under each part of the prior."""
    part = prior.component_distribution.base_dist.scale[:, 0]
    covariance = part.square()[:, None, None] * (WEIGHT @ WEIGHT.T) + torch.eye(3, dtype=DTYPE) / (2 * beta)
    densities = MultivariateNormal(torch.zeros(2, 3, dtype=DTYPE), covariance).log_prob(x[:, None])
    log_z = (prior.mixture_distribution.logits + densities).logsumexp(1) + 1.5 * np.log(np.pi / beta)
    return log_z.numpy()


def gaussians(*shares):
    """A mixture with these shares, of Gaussians in the plane."""
    means = torch.arange(2.0 * len(shares), dtype=DTYPE).view(-1, 2)
    parts = Independent(Normal(means, torch.ones_like(means)), 1)
    return MixtureSameFamily(Categorical(torch.tensor(shares, dtype=DTYPE)), parts)


@pytest.mark.parametrize("shares", [(0.99, 0.01), (0.1, 0.9), (0.7, 0.2, 0.1), (0.97, 0.01, 0.01, 0.01), (1.0, 0.0)])
def test_small_parts_get_more_chains_and_no_density_is_much_higher(shares):
    prior, z = gaussians(*shares), 10 * torch.rand(1000, 2, dtype=DTYPE) - 1
    other = balanced(prior)
    assert (prior.log_prob(z) - other.log_prob(z)).max() < np.log((1 + len(shares) ** 0.5) / 2) + 1e-9
    even = other.mixture_distribution.probs
    assert torch.isclose(even.sum(), torch.ones((), dtype=DTYPE))
    assert even.min() >= min(shares) ** 0.5 / len(shares) ** 0.5


@pytest.mark.parametrize(
    "prior",
    [
        gaussians(0.5, 0.5),
        gaussians(0.25, 0.25, 0.25, 0.25),
        gaussians(1.0),
        standard_normal(2, DTYPE),
        uniform(2, dtype=DTYPE),
        Independent(
            MixtureSameFamily(
                Categorical(torch.tensor([[0.1, 0.9]] * 2, dtype=DTYPE)),
                Normal(torch.zeros(2, 2, dtype=DTYPE), torch.ones(2, 2, dtype=DTYPE)),
            ),
            1,
        ),
    ],
    ids=["even", "four", "one", "normal", "uniform", "by dimension"],
)
def test_other_priors_are_what_chains_are_annealed_under(prior):
    target = replace(TARGET, prior=prior)
    assert target.annealed is prior
    assert torch.equal(target.log_ratio(torch.zeros(4, 3, 2, dtype=DTYPE)), torch.zeros(4, 3, dtype=DTYPE))
    chains = start_from_prior(target, 1, torch.arange(3), 4)
    assert under_prior(target, chains) is chains


def test_a_learned_mixture_may_carry_gradients():
    logits = torch.nn.Parameter(torch.tensor([3.0, 0.0], dtype=DTYPE))
    scales = torch.nn.Parameter(torch.tensor([[1.0, 1.0], [4.0, 4.0]], dtype=DTYPE))
    prior = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(torch.zeros(2, 2).double(), scales), 1))
    options = {"latent_dim": 2, "beta_max": 2.0, "prior": prior, "n_temperatures": 20, "n_chains": 16}
    settings = PrerunSettings(n_rounds=1, round_temperatures=20, n_starts=9, most_starts=0, n_modes=1, keep="envelope")
    curve = rdcurve.measure(curved_decoder, X, prerun_settings=settings, **options)
    assert np.isfinite(curve.log_z).all()


@pytest.mark.parametrize("size", [1, 4])
def test_weights_are_unbiased_in_both_directions(size):
    """Mean of Z_hat / Z and of Z / Z_hat over 4,000 runs of 40 temperatures and 8 chains, without and with resampling.

    False-fail rate 1e-6 over all 9 comparisons, if the means are normal; detects 0.1 in Z, where chains that count as
    they are annealed would be off by 0.15 in the wide part, of which most images are simulated, and by a factor of 3.7
    in the narrow one. A prior so wide that 1 / Z_hat had no variance is not taken.
    """
    n, betas, prior = 4000, sigmoid(40, 1.0, 4.0), scale_mixture(2, 0.95, 2.5, DTYPE)
    many = replace(LINEAR, prior=prior, x=LINEAR.x[:1].expand(n, -1))

    def frozen(n_images):
        return Tuning(betas, torch.full((40, n_images), 0.8, dtype=DTYPE), identity(2, DTYPE))

    curve = formal_run(many, frozen(n), [10, 20, 39], KERNEL, n_chains=8, seed=1, groups=Groups(size))
    ratios = [np.exp(log_z - exact(b, LINEAR.x[:1], prior)) for log_z, b in zip(curve.log_z, curve.beta, strict=True)]
    simulated = simulate(many, betas, [10, 20, 39], n, seed=3)
    found = bdmc(simulated, frozen(3 * n), KERNEL, n_chains=8, seed=4, groups=Groups(size))
    x = simulated.target.x.view(3, n, -1).flip(0)  # images come in order of decreasing beta
    ratios += [np.exp(exact(float(b), x[k], prior) - found.upper[k].numpy()) for k, b in enumerate(found.beta)]
    ratios += [np.exp(found.lower[k].numpy() - exact(float(b), x[k], prior)) for k, b in enumerate(found.beta)]
    for ratio in ratios:
        error = ratio.std() / n**0.5
        assert abs(ratio.mean() - 1) < threshold(9) * error
        assert threshold(9) * error < 0.1


@pytest.mark.parametrize("size", [1, 4])
def test_every_bound_is_one_under_the_prior(monkeypatch, size):
    """Were p(z) / q(z) larger by a factor e, so would be Z, in the curve of both routes and in the bounds."""
    settings = PrerunSettings(n_rounds=1, round_temperatures=20, n_starts=4, most_starts=0, n_modes=2)
    options = {"latent_dim": 2, "beta_max": 2.0, "prior": BAD, "n_temperatures": 20, "n_chains": 16, "n_recorded": 4}
    ratio, found = Target.log_ratio, []
    for shift in (0, 1):
        monkeypatch.setattr(Target, "log_ratio", lambda target, z, shift=shift: ratio(target, z) + shift)
        curve = rdcurve.measure(
            curved_decoder, X, prerun_settings=settings, groups=Groups(size), n_simulated=2, **options
        )  # fmt: skip
        found.append([curve.log_z, curve.gaps["lower"].to_numpy(), curve.gaps["upper"].to_numpy()])
    assert (curve.facts["n_searches"] == 2) == (size > 1)
    for plain, shifted in zip(*found, strict=True):
        assert np.allclose(shifted - plain, 1)


def test_curve_under_a_prior_that_is_mostly_bad():
    """Both routes, 16 chains: log Z, D and R with the control variate at 5 betas, by quadrature; certified.

    False-fail rate 1e-6 over 45 comparisons, as far as the errors are normal; they are asserted to stay below 0.25
    nats of log Z, so that 2 nats are seen. Annealed under the prior itself, the certificate fails.
    """
    options = {"latent_dim": 2, "beta_max": 30.0, "prior": BAD, "n_temperatures": 400, "n_recorded": 5, "n_chains": 16}
    options["n_simulated"] = 0  # bounds are compared below
    settings = PrerunSettings(n_rounds=2, round_temperatures=100, n_starts=6, most_starts=0)
    images = torch.cat([X, X.flip(1)])
    curve = rdcurve.measure(curved_decoder, images, prerun_settings=settings, **options)
    rate, distortion, log_z = by_quadrature(BAD, curved_decoder, images, curve.beta, -40, 40, 1000)
    for quantity, truth in (("log_z", log_z), ("distortion", distortion), ("rate_cv", rate)):
        error = np.abs(curve.mean(quantity) - truth.mean(1)) / curve.standard_error(quantity, "chains")
        assert error.max() < 1.3 * threshold(45), quantity
    assert curve.standard_error("log_z", "chains").max() < 0.25
    assert curve.certified.all()
    assert curve.facts["n_searches"] == 2


def test_bounds_enclose_log_z_under_a_prior_that_is_mostly_bad():
    """Ten simulated images at two betas: the bounds lie within half a nat of log Z, which takes both to be right."""
    betas = sigmoid(300, 20.0, 6.0)
    simulated = simulate(LINEAR, betas, [150, 299], 10, seed=5)
    tuning = tune(simulated.target, betas, KERNEL, PrerunSettings(n_blocks=5), Groups(8))
    found = bdmc(simulated, tuning, KERNEL, n_chains=32, seed=6, groups=Groups(8))
    x = simulated.target.x.view(2, 10, -1).flip(0)
    for k, beta in enumerate(found.beta):
        for bound in (found.lower, found.upper):
            assert abs((bound[k].numpy() - exact(float(beta), x[k])).mean()) < 0.5


def test_an_image_gives_the_same_bits_in_any_company():
    """In float32, where a sum that rounds otherwise is seen at once."""
    prior, x = scale_mixture(5, 0.96, 6.0, torch.float32), torch.rand(7, 40, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(2))
    target = Target(prior, lambda z: torch.sigmoid(z @ weight), SquaredError(), x)
    tuning = Tuning(sigmoid(20, 40.0, 4.0), torch.full((20, 7), 0.3, dtype=DTYPE), identity(5, torch.float32))
    options = {"kernel": KERNEL, "n_chains": 8, "seed": 1, "groups": Groups(4)}
    whole = formal_run(target, tuning, [3, 10, 19], **options)
    for images in (torch.tensor([4]), torch.tensor([1, 5]), torch.tensor([0, 2, 3, 6])):
        part = formal_run(target.select(images), tuning.select(images), [3, 10, 19], images=images, **options)
        for name in ("log_z", "distortion", "rate", "code", "lineages", "acceptance"):
            assert np.array_equal(getattr(part, name), getattr(whole, name)[:, images.numpy()]), name
