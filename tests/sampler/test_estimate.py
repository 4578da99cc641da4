"""Estimates at one beta: routes, jackknife, virial, k-hat; error bars cover the truth."""

import numpy as np
import pytest
import torch
from problems import DTYPE, linear_problem, threshold
from sampler_checks import posterior_samples, repeated
from scipy.stats import genpareto

from rdcurve.sampler.ais import start_from_prior
from rdcurve.sampler.estimate import estimate, pareto_k, virial
from rdcurve.sampler.hmc import State


def random_chains(n_chains, n_images, seed=0):
    generator = torch.Generator().manual_seed(seed)
    log_weight = torch.randn(n_chains, n_images, generator=generator, dtype=DTYPE)
    distortion = torch.rand(n_chains, n_images, generator=generator, dtype=DTYPE)
    return log_weight, distortion, torch.zeros_like(distortion)


@pytest.mark.parametrize("size", [1, 4])
def test_jackknife_leaves_out_one_group_at_a_time(size):
    log_weight, distortion, none = random_chains(12, 5)
    result = estimate(log_weight, distortion, none, 3.0, size)
    n = 12 // size
    left = []
    for g in range(n):
        keep = [c for c in range(12) if c // size != g]
        part = estimate(log_weight[keep], distortion[keep], none[keep], 3.0, size)
        left.append([part.log_z, part.distortion, part.rate])
    left = torch.stack([torch.stack(row) for row in left])
    expected = ((n - 1) * (left - left.mean(0)).square().mean(0)).sqrt()
    for k, name in enumerate(("log_z_se", "distortion_se", "rate_se")):
        assert torch.allclose(getattr(result, name), expected[k], rtol=1e-9), name


def test_routes_are_averaged_with_their_weights():
    log_weight, distortion, none = random_chains(12, 4)
    share = torch.tensor([0.05, 0.5, 0.9, 0.95], dtype=DTYPE)
    result = estimate(log_weight, distortion, none, 2.0, 2, [(4, share), (2, 1 - share)])
    w = log_weight.exp()
    z = share * w[:8].mean(0) + (1 - share) * w[8:].mean(0)
    top = share * (w * distortion)[:8].mean(0) + (1 - share) * (w * distortion)[8:].mean(0)
    assert torch.allclose(result.log_z, z.log())
    assert torch.allclose(result.distortion, top / z)
    assert torch.allclose(result.rate, -z.log() - 2 * top / z)
    assert (result.rate_se > 0).all()


def test_weights_of_any_size_are_handled():
    log_weight, distortion, none = random_chains(40, 3)
    shifted = estimate(log_weight - 500_000, distortion, none, 2.0, 8)
    plain = estimate(log_weight, distortion, none, 2.0, 8)
    assert torch.allclose(shifted.log_z + 500_000, plain.log_z, atol=1e-9)
    assert torch.allclose(shifted.rate_se, plain.rate_se, atol=1e-8)
    apart = log_weight.clone()
    apart[:8] += 1e6  # one group holds all the weight, and leaving it out must not underflow
    result = estimate(apart, distortion, none, 2.0, 8)
    assert all(value.isfinite().all() for name, value in result._asdict().items() if name != "k_hat")
    assert (result.log_z_se > 1e5).all()


def test_virial_has_mean_zero_and_takes_out_the_noise():
    """Exact posterior draws of 400 equal images, beta = 200: mean of h within 5 standard errors, and the distortion's
    error falls at least fourfold. False-fail rate 1e-6."""
    problem, beta, n = linear_problem(2, latent_dim=3, n_images=1), 200.0, 400
    z = posterior_samples(problem, beta, 32 * n, seed=1).view(32, n, 3)
    many = repeated(problem, n)
    point = many.target.at(z)
    flat = torch.zeros(32, n, dtype=DTYPE)
    h = virial(State(point, torch.zeros_like(z)), flat, beta, 8)
    per_image = h.mean(0)
    assert abs(float(per_image.mean())) < threshold(1) * float(per_image.std()) / n**0.5
    result = estimate(flat, point.distortion, h, beta, 8)
    exact = problem.exact(torch.tensor([beta]))[1].item()
    plain, better = (float((d - exact).square().mean().sqrt()) for d in (result.distortion, result.distortion_cv))
    assert better < plain / 4
    bias = result.distortion_cv - exact
    assert abs(float(bias.mean())) < threshold(1) * float(bias.std()) / n**0.5
    assert 0.7 < float(result.distortion_cv_se.square().mean().sqrt()) / better < 1.3
    assert torch.allclose(result.distortion_variance.mean(), point.distortion.var(0).mean(), rtol=0.1)


def exact_draws(n_groups, n, seed=2):
    """Groups of eight exact draws for each of n images that are alike: distortion and virial, and exact D."""
    problem, beta = linear_problem(2, latent_dim=3, n_images=1), 200.0
    z = posterior_samples(problem, beta, 8 * n_groups * n, seed).view(8 * n_groups, n, 3)
    point = repeated(problem, n).target.at(z)
    h = virial(State(point, torch.zeros_like(z)), torch.zeros(8 * n_groups, n, dtype=DTYPE), beta, 8)
    return point.distortion, h, problem.exact(torch.tensor([beta]))[1].item()


@pytest.mark.parametrize("routes", [(2,), (3,), (4,), (16,), (2, 2), (4, 2)])
def test_error_of_the_control_variate_is_right_for_any_number_of_groups(routes):
    """Root mean square standard error against the scatter over 1,000 images, known to 2.2 %, within 15 %: six such
    errors. A route of two groups has no control variate; with one its error would be missed altogether."""
    n = 1000
    parts = [exact_draws(m, n, seed) for seed, m in enumerate(routes)]
    distortion, h = (torch.cat([part[k] for part in parts]) for k in (0, 1))
    weight = [(m, torch.full((n,), m / sum(routes), dtype=DTYPE)) for m in routes]
    result = estimate(torch.zeros_like(distortion), distortion, h, 200.0, 8, weight)
    error = (result.distortion_cv - parts[0][2]).square().mean().sqrt()
    assert float(result.distortion_cv_se.square().mean().sqrt() / error) == pytest.approx(1, abs=0.15)
    plain = (result.distortion - parts[0][2]).square().mean().sqrt()
    if max(routes) < 3:
        assert torch.equal(result.distortion_cv, result.distortion)
        assert torch.equal(result.rate_cv_se, result.rate_se)
    else:
        assert error < 0.8 * plain


def test_no_control_variate_for_an_image_whose_groups_sit_in_different_modes():
    """The centre that one group lends another is then far away; other images keep theirs."""
    distortion, h, _ = exact_draws(4, 6)
    h[8:16, 2] += 1e4 * torch.linspace(-1, 1, 8, dtype=DTYPE)
    result = estimate(torch.zeros_like(h), distortion, h, 200.0, 8)
    same = result.distortion_cv == result.distortion
    assert same.tolist() == [False, False, True, False, False, False]
    assert result.rate_cv_se[2] == result.rate_se[2]


def test_spread_is_that_of_the_groups_whatever_their_routes_count():
    log_weight, distortion, none = random_chains(24, 3)
    share = torch.tensor([0.05, 0.5, 0.95], dtype=DTYPE)
    both = estimate(log_weight, distortion, none, 2.0, 4, [(4, share), (2, 1 - share)])
    assert torch.allclose(both.spread, estimate(log_weight, distortion, none, 2.0, 4).spread)
    level = estimate(torch.zeros_like(log_weight), distortion, none, 2.0, 4, [(4, share), (2, 1 - share)])
    assert torch.allclose(level.spread, torch.zeros(3, dtype=DTYPE), atol=1e-12)


@pytest.mark.parametrize("shape", [-0.3, 0.2, 0.5, 1.0])
def test_k_hat_is_the_shape_of_a_pareto_tail(shape):
    """1,000 replicates of 2,000 weights whose tail has a known shape: the mean estimate within 0.1 of it (the prior
    pulls towards 0.5, and the threshold is an estimate), no replicate off by more than 0.6."""
    weights = genpareto.rvs(shape, size=(2000, 1000), random_state=3) + 1.0
    k = pareto_k(torch.from_numpy(np.log(weights)))
    assert abs(float(k.mean()) - shape) < 0.1
    assert float((k - shape).abs().max()) < 0.6


def test_k_hat_of_too_few_or_equal_weights():
    assert pareto_k(torch.zeros(24, 2, dtype=DTYPE)).isnan().all()
    assert (pareto_k(torch.zeros(40, 2, dtype=DTYPE)) == -torch.inf).all()
    lone = torch.zeros(40, 1, dtype=DTYPE)
    lone[7] = 1000.0
    assert float(pareto_k(lone)[0]) > 1


def test_virial_of_a_single_group_still_has_mean_zero():
    problem = linear_problem(2, latent_dim=3, n_images=2)
    chains = start_from_prior(problem.target, 0, torch.arange(2), 8)
    h = virial(chains.state, chains.log_weight, 0.0, 8)
    z = chains.state.point.z
    assert torch.allclose(h, 0.5 * (z.square().sum(-1) - 3))  # prior draws, centre 0
