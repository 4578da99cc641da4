"""Chains that resample: unbiased in both directions, and the path that a conditional run is pinned to is a fair one."""

import numpy as np
import pytest
import torch
from problems import DTYPE, curved_decoder, linear_problem, quadrature, threshold
from sampler_checks import posterior, posterior_samples

from rdcurve.sampler.ais import Chains, Groups, Tuning, group_log_mean_exp, resample, start_from_prior
from rdcurve.sampler.bdmc import Simulated, _forward, _reverse, bdmc
from rdcurve.sampler.distortion import SquaredError
from rdcurve.sampler.hmc import Kernel, State, move
from rdcurve.sampler.metric import identity
from rdcurve.sampler.noise import step_noise
from rdcurve.sampler.prior import standard_normal
from rdcurve.sampler.schedule import sigmoid
from rdcurve.sampler.target import Target
from rdcurve.state import Checkpoint

KERNEL = Kernel(2, 0.2, 0.5)


def untuned(betas, n_images, latent_dim, step_size=0.8):
    sizes = torch.full((len(betas), n_images), step_size, dtype=DTYPE)
    return Tuning(betas, sizes, identity(latent_dim, DTYPE))


@pytest.mark.parametrize("n_temperatures", [2, 5, 20])
@pytest.mark.parametrize(("size", "threshold_of_ess"), [(1, 0.5), (4, 0.5), (4, 1.0)])  # one never resamples
def test_group_means_are_unbiased_in_both_directions(n_temperatures, size, threshold_of_ess):
    """E[Z_hat / Z] = 1 forward and E[Z / Z_hat] = 1 for the conditional run, with a bad schedule and bad step sizes.

    8,000 groups each, as images that are all the same; the false-fail rate is 1e-6 over all 18 comparisons. The
    standard errors, below 0.016, detect a factor of 1.1 in Z: an ancestor drawn with wrong weights, a retained path
    that is replaced, a momentum that is not flipped, weights not reset after resampling.
    """
    problem, n = linear_problem(2, latent_dim=2, n_pixels=3, n_images=1), 8_000
    betas = sigmoid(n_temperatures, 0.15, 2.0)
    log_z = problem.exact(betas[-1:])[2].item()
    target = Target(standard_normal(2, DTYPE), problem.decoder, problem.distortion, problem.x.expand(n, -1))
    z = posterior_samples(problem, float(betas[-1]), n, seed=9)[:, 0]
    simulated = Simulated(target, z, (n_temperatures - 1,), n)
    groups, tuning, keep = Groups(size, threshold_of_ess), untuned(betas, n, 2), Checkpoint(None)

    def nothing(step):
        pass

    forward = _forward(simulated, tuning, KERNEL, size, groups, 1, keep, "f", nothing)
    ratio = (group_log_mean_exp(forward.log_weight, size)[0] - log_z).exp()
    path = _reverse(simulated, tuning, KERNEL, 1, groups, 2, keep, "r", nothing)
    if size == 1:
        inverse = (path.work[0] + log_z).exp()
    else:
        conditional = _forward(simulated, tuning, KERNEL, size, groups, 3, keep, "c", nothing, path)
        inverse = (log_z - group_log_mean_exp(conditional.log_weight, size)[0]).exp()
        # a run that started from exact samples and follows their history overestimates Z
        assert float(group_log_mean_exp(conditional.log_weight, size).mean()) > log_z - 0.02
    for value in (ratio, inverse):
        error = float(value.std()) / n**0.5
        assert error < 0.016
        assert abs(float(value.mean()) - 1) < threshold(18) * error


def test_the_reverse_path_is_stationary():
    """Walked back without a change of beta, an exact sample of (z, u) stays one at every index, whatever the momentum's
    persistence. 20,000 paths, false-fail rate 1e-6 over 24 comparisons, detects 4 % in any second moment."""
    problem, n = linear_problem(1, latent_dim=2, n_images=1), 20_000
    beta = 1.5
    betas = torch.tensor([0.0, beta - 2e-12, beta - 1e-12, beta], dtype=DTYPE)
    target = Target(standard_normal(2, DTYPE), problem.decoder, problem.distortion, problem.x.expand(n, -1))
    z = posterior_samples(problem, beta, n, seed=4)[:, 0]
    simulated = Simulated(target, z, (3,), n)
    tuning = untuned(betas, n, 2, step_size=0.6)
    path = _reverse(simulated, tuning, KERNEL, 1, Groups(2), 5, Checkpoint(None), "r", lambda step: None)
    mean, precision = posterior(problem, beta)
    root = torch.linalg.cholesky(precision)
    bound = threshold(24)
    for index in (1, 2, 3):
        white = (path.z[index, 0] - mean) @ root
        for sample in (white, path.momentum[index, 0]):
            assert (sample.mean(0).abs() < bound / n**0.5).all()
            assert ((sample.var(0) - 1).abs() < bound * (2 / n) ** 0.5).all()
        assert ((white * path.momentum[index, 0]).mean(0).abs() < bound / n**0.5).all()  # independent of each other


def test_forward_moves_retrace_the_reverse_path():
    """With a momentum that is not refreshed and steps too short to be rejected, the forward move at index j leads from
    the path's state at j - 1 to that at j: positions, and momenta with their sign."""
    problem = linear_problem(1, latent_dim=3, n_images=5)
    kernel, betas = Kernel(3, 0.0, 1 - 1e-13), sigmoid(12, 5.0)
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    simulated = Simulated(problem.target, z, (11,), 5)
    tuning = untuned(betas, 5, 3, step_size=0.002)
    path = _reverse(simulated, tuning, kernel, 2, Groups(2), 5, Checkpoint(None), "r", lambda step: None)
    images = torch.arange(5)
    for index in range(1, 12):
        before = State(problem.target.at(path.z[index - 1]), path.momentum[index - 1])
        noise = step_noise(9, images, 2, index, 3, DTYPE)
        factor = tuning.metric.factor(float(betas[index]), 5)
        after, moved = move(
            problem.target, float(betas[index]), before, noise, tuning.step_sizes[index], factor, kernel
        )
        assert moved.acceptance_rate.min() > 0.99
        accepted = moved.accepted[..., None]
        assert torch.allclose(after.point.z * accepted, path.z[index] * accepted, atol=1e-5)
        assert torch.allclose(after.momentum * accepted, path.momentum[index] * accepted, atol=1e-5)
        assert accepted.double().mean() > 0.5
    work = sum((betas[j] - betas[j - 1]) * problem.target.at(path.z[j - 1]).distortion for j in range(1, 12))
    assert torch.allclose(path.work, work)


def test_resampling_keeps_the_mean_weight_of_every_group_and_copies_by_weight():
    """Shares of 40,000 groups of three against the weights: false-fail rate 1e-6, detects 1 %."""
    n = 40_000
    problem = linear_problem(3, latent_dim=2, n_images=1)
    target = Target(standard_normal(2, DTYPE), problem.decoder, problem.distortion, problem.x.expand(n, -1))
    chains = start_from_prior(target, 0, torch.arange(n), 6)
    weights = torch.tensor([1.0, 2.0, 7.0, 1.0, 1.0, 1.01], dtype=DTYPE)
    log_weight = weights.log()[:, None].expand(-1, n).contiguous()
    noise = step_noise(1, torch.arange(n), 6, 1, 2, DTYPE)
    state, after, lineage = resample(chains.state, log_weight, chains.lineage, noise.ancestor, Groups(3, 0.7))
    assert torch.allclose(group_log_mean_exp(after, 3), group_log_mean_exp(log_weight, 3), atol=1e-12)
    assert torch.equal(state.point.z[3:], chains.state.point.z[3:])  # nearly equal weights: left alone
    assert torch.allclose(after[:3], torch.full((), np.log(10 / 3), dtype=DTYPE))
    for slot in range(3):
        for source, share in enumerate((0.1, 0.2, 0.7)):
            copied = (state.point.z[slot] == chains.state.point.z[source]).all(-1)
            error = (share * (1 - share) / n) ** 0.5
            assert abs(float(copied.double().mean()) - share) < threshold(9) * error
    # what belongs together is copied together
    assert torch.equal(state.point.z, chains.state.point.z.gather(0, lineage[..., None].expand_as(state.point.z)))
    fresh = target.at(state.point.z)
    assert torch.allclose(fresh.distortion, state.point.distortion)
    kept, _, _ = resample(chains.state, log_weight, chains.lineage, noise.ancestor, Groups(3, 0.7), keep_first=True)
    assert torch.equal(kept.point.z[0], chains.state.point.z[0])
    assert not torch.equal(kept.momentum[1], chains.state.momentum[1])


def test_bdmc_with_groups_encloses_log_z_of_a_nonlinear_decoder():
    """Quadrature of 2-D posteriors that are neither Gaussian nor unimodal: lower <= exact <= upper on average.

    60 simulated images, false-fail rate 1e-6 over 4 comparisons; standard errors of 0.05 nats detect 0.25.
    """
    target = Target(standard_normal(2, DTYPE), curved_decoder, SquaredError(), torch.zeros(1, 3, dtype=DTYPE))
    betas = sigmoid(80, 12.0, 5.0)
    from rdcurve.sampler.bdmc import simulate
    from rdcurve.sampler.prerun import PrerunSettings, tune

    simulated = simulate(target, betas, [40, 79], 60, 1)
    groups = Groups(8)
    tuning = tune(simulated.target, betas, KERNEL, PrerunSettings(n_blocks=5), groups)
    result = bdmc(simulated, tuning, KERNEL, n_chains=16, seed=2, groups=groups)
    x = simulated.target.x.unflatten(0, (2, 60)).flip(0)
    exact = np.stack(
        [list(quadrature(curved_decoder, part, [beta], n=301))[2][0] for beta, part in zip(result.beta, x, strict=True)]
    )
    for difference in (exact - result.lower.numpy(), result.upper.numpy() - exact):
        error = difference.std(1, ddof=1) / np.sqrt(60)
        assert (difference.mean(1) > -threshold(4) * error).all()
        assert (difference.mean(1) < 0.1 + threshold(4) * error).all()
        assert (error < 0.06).all()


def test_state_map_changes_every_tensor():
    problem = linear_problem(3, latent_dim=2)
    state = start_from_prior(problem.target, 0, torch.arange(4), 3).state
    halves = state.map(lambda value: value[:, :2])
    assert isinstance(halves, State)
    assert all(value.shape[1] == 2 for value in (*halves.point, halves.momentum))
    assert isinstance(start_from_prior(problem.target, 0, torch.arange(4), 3), Chains)
