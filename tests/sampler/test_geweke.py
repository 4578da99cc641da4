"""Geweke's joint test of every kernel: z moved and x redrawn by turns stay a draw of the joint distribution (R6).

The decoder with p(z) is a model of data, p(z, x) proportional to p(z) exp(-beta d(x, f(z))), that can be sampled in two
ways (Geweke, "Getting it right", JASA 2004): z from the prior and x from z (marginal-conditional); or, from such a
start, x given z and then one move of (z, u) given x, over and over (successive-conditional). Both must agree in every
statistic; that move and likelihood are right is all that makes them. Here the chains are many and short, so that they
are independent and their standard errors are exact.
"""

import pytest
import torch
from problems import DTYPE, curved_decoder, threshold

from rdcurve.sampler.ais import Groups
from rdcurve.sampler.distortion import GaussianNLL
from rdcurve.sampler.hmc import Kernel, State, move
from rdcurve.sampler.metric import Metric, decompose, gauss_newton, identity
from rdcurve.sampler.noise import StepNoise, step_noise
from rdcurve.sampler.prerun import PrerunSettings, tune
from rdcurve.sampler.prior import standard_normal
from rdcurve.sampler.schedule import sigmoid
from rdcurve.sampler.target import Target

BETA, N_PIXELS = 2.0, 3
PRIOR, DISTORTION = standard_normal(2, DTYPE), GaussianNLL(0.3)


def redrawn(z):
    """x given z [N, latent]: the target of N data points."""
    return Target(PRIOR, curved_decoder, DISTORTION, DISTORTION.sample(curved_decoder(z)[None], BETA)[0])


def some_targets():
    """Of 8 data points, to learn a metric and step sizes from, apart from the runs that use them."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return redrawn(PRIOR.sample((8,)))


def step_size(value):
    return lambda n: torch.full((n,), value, dtype=DTYPE)


def running_mean(n):
    """The last row of the paper's table, one step size per chain, learned on other data, then frozen."""
    settings = PrerunSettings(
        n_chains=4, step_size_rule="running_mean", target_acceptance=0.65, metric="identity", schedule="sigmoid"
    )
    table = tune(some_targets(), sigmoid(200, BETA), Kernel(3, 0.0, 0.0), settings, Groups()).step_sizes[-1]
    learned = table.double().flatten()
    return learned[torch.arange(n) % len(learned)].view(1, n)


def gauss_newton_metric():
    target = some_targets()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        values, vectors = decompose(gauss_newton(target, PRIOR.sample((16, 8)), pooled=True))
    return Metric((0.0,), values[None], vectors[None])


KERNELS = {  # kernel, step sizes, metric; all step sizes so long that every tenth move or more is refused
    "plain": (Kernel(5, 0.0, 0.0), step_size(0.35), identity(2, DTYPE)),
    "one leapfrog step": (Kernel(1, 0.0, 0.0), step_size(0.45), identity(2, DTYPE)),
    "jitter": (Kernel(4, 0.4, 0.0), step_size(0.4), identity(2, DTYPE)),
    "persistent momentum": (Kernel(2, 0.2, 0.9), step_size(0.5), identity(2, DTYPE)),
    "with metric": (Kernel(2, 0.2, 0.5), step_size(1.1), gauss_newton_metric()),
    "running-mean table": (Kernel(3, 0.0, 0.0), running_mean, identity(2, DTYPE)),
}


def after_moves(name, n, n_moves, accept=lambda noise: noise.accept):
    """The last target and state of n chains, and their acceptance rate."""
    kernel, sizes, metric = KERNELS[name]
    sizes, factor, images = sizes(n), metric.factor(BETA, n), torch.arange(n)
    rates = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z, momentum = PRIOR.sample((1, n)), torch.randn(1, n, 2, dtype=DTYPE)
        for step in range(n_moves):
            target = redrawn(z[0])
            noise = step_noise(3, images, 1, step, 2, DTYPE)
            noise = StepNoise(noise.normal, accept(noise), noise.jitter, noise.ancestor)
            state, transition = move(target, BETA, State(target.at(z), momentum), noise, sizes, factor, kernel)
            z, momentum = state.point.z, state.momentum
            rates.append(float(transition.acceptance_rate.mean()))
    return target, state, sum(rates) / n_moves


def standardised(target, state):
    """Mean of every statistic of the chains minus what it is under p(z, x) p(u), in standard errors."""
    z, momentum = state.point.z[0], state.momentum[0]
    noise = target.x - curved_decoder(z)  # N(0, variance / beta), independent of z
    force = BETA * state.point.grad_distortion[0] - state.point.grad_log_prior[0]
    energy = BETA * (
        state.point.distortion[0] - N_PIXELS / 2 * torch.log(torch.tensor(2 * torch.pi * 0.3, dtype=DTYPE))
    )
    statistics = {  # with their means
        "codes": (z.sum(1), 0.0),
        "square of the codes": (z.square().sum(1), 2.0),
        "energy": (energy, N_PIXELS / 2),
        "energy and codes": (energy * z[:, 0].square(), N_PIXELS / 2),
        "noise and codes": ((noise * curved_decoder(z)).sum(1), 0.0),
        "kinetic energy": (momentum.square().sum(1), 2.0),
        "momentum and force": ((momentum * force).sum(1), 0.0),
    }
    return {name: float((v.mean() - mean) / (v.std() / len(v) ** 0.5)) for name, (v, mean) in statistics.items()}


FULL = pytest.param(100_000, 20, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("n", "n_moves"), [(10_000, 5), FULL], ids=["few", "many"])
def test_joint_distribution_is_kept(name, n, n_moves):
    """6 kernels x 7 statistics; the family fails with a chance of 1e-6.

    100,000 chains of 20 moves detect a mean off by 0.03 standard deviations, with a chance to miss it of 1e-6; the
    10,000 of 5 moves one of 0.1.
    """
    target, state, rate = after_moves(name, n, n_moves)
    assert 0.3 < rate < 0.95  # the accept test has something to do
    worst = standardised(target, state)
    assert max(map(abs, worst.values())) < threshold(len(KERNELS) * len(worst)), worst
    fresh = target.at(state.point.z)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(fresh, state.point, strict=True))


def test_a_move_that_is_never_refused_is_seen():
    """The same statistics of a kernel with a fault: they must differ, or the test above could not fail."""
    target, state, _ = after_moves("plain", 10_000, 5, accept=lambda noise: torch.zeros_like(noise.accept))
    worst = standardised(target, state)
    assert max(map(abs, worst.values())) > 2 * threshold(len(KERNELS) * len(worst)), worst
