"""The move obeys its physics: reversible, volume-preserving, second order, and its target is left invariant."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import DTYPE, curved_decoder, linear_problem, threshold
from sampler_checks import posterior, posterior_samples, random_network

from rdcurve.models.mlp import Decoder
from rdcurve.sampler.ais import start_at
from rdcurve.sampler.distortion import GaussianNLL, SquaredError
from rdcurve.sampler.hmc import Kernel, State, leapfrog, move, refresh
from rdcurve.sampler.metric import Metric, decompose, gauss_newton, identity
from rdcurve.sampler.noise import StepNoise, step_noise
from rdcurve.sampler.prior import standard_normal, uniform
from rdcurve.sampler.target import Point, Target

BETA = 3.0


def curved_target(n_images=2):
    x = torch.tensor([[0.5, -0.4, 0.2], [-0.8, 0.9, 0.1]], dtype=DTYPE)[:n_images]
    return Target(standard_normal(2, DTYPE), curved_decoder, SquaredError(), x)


def metric_from(matrix):
    eigenvalues, eigenvectors = decompose(matrix)
    return Metric((0.0,), eigenvalues[None], eigenvectors[None])


def factor_of(target, seed):
    z = torch.randn(4, len(target.x), 2, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)
    return metric_from(gauss_newton(target, z, pooled=False)).factor(BETA, len(target.x))


COUNTS = [20, pytest.param(1000, marks=pytest.mark.slow)]
SEEDS = st.integers(0, 10**6)


def for_all(n, check, **strategies):
    """Hypothesis with n examples, the same in every run."""
    settings(max_examples=n, deadline=None, derandomize=True)(given(**strategies)(check))()


def network_start(seed, n_chains):
    """A random network's target of two images, n_chains starts (z, u), and the factor of its own metric."""
    decoder, x = random_network(seed, 2, n_images=2)
    target = Target(standard_normal(2, DTYPE), decoder, SquaredError(), x)
    z, u = torch.randn(2, n_chains, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)
    return target, z, u, factor_of(target, seed)


@pytest.mark.parametrize("n", COUNTS)
def test_leapfrog_is_reversible(n):
    """There and back again: 8 starts each within 1e-10 of where they were, of any network, step and length."""

    def check(seed, step, n_leapfrog):
        target, z, u, factor = network_start(seed, 4)
        sizes = torch.full((2,), step, dtype=DTYPE)
        point, momentum = leapfrog(target, BETA, target.at(z), u, sizes, factor, n_leapfrog)
        back, momentum = leapfrog(target, BETA, point, -momentum, sizes, factor, n_leapfrog)
        assert float((back.z - z).abs().max()) < 1e-10
        assert float((-momentum - u).abs().max()) < 1e-10

    for_all(n, check, seed=SEEDS, step=st.floats(0.01, 0.5), n_leapfrog=st.integers(1, 8))


class Coarse:
    """A target whose force between the ends of a trajectory is another function of z than at them."""

    def __init__(self, target):
        self.at = target.at
        self.target = target

    def gradients(self, z):
        return tuple(0.8 * grad + 0.1 * z.sin() for grad in self.target.gradients(z))


def test_leapfrog_with_another_force_between_its_ends_is_reversible():
    """Within 1e-10, and it is another trajectory."""
    target, z, u, factor = network_start(0, 4)
    sizes = torch.full((2,), 0.2, dtype=DTYPE)
    coarse = Coarse(target)
    point, momentum = leapfrog(coarse, BETA, target.at(z), u, sizes, factor, 5)
    back, returned = leapfrog(coarse, BETA, point, -momentum, sizes, factor, 5)
    assert float((back.z - z).abs().max()) < 1e-10
    assert float((-returned - u).abs().max()) < 1e-10
    assert float((leapfrog(target, BETA, target.at(z), u, sizes, factor, 5)[0].z - point.z).abs().max()) > 1e-3


class Differentiable:
    """A target whose points keep their derivatives, so that autograd sees through a whole trajectory."""

    def __init__(self, target):
        self.target = target

    def at(self, z):
        log_prior = self.target.prior.log_prob(z)
        distortion = (self.target.decoder(z) - self.target.x).square().sum(-1)
        grads = (torch.autograd.grad(value.sum(), z, create_graph=True)[0] for value in (log_prior, distortion))
        return Point(z, log_prior, distortion, *grads)

    def gradients(self, z):
        point = self.at(z)
        return point.grad_log_prior, point.grad_distortion


@pytest.mark.parametrize("n", COUNTS)
def test_leapfrog_preserves_volume(n):
    """|det d(z', u') / d(z, u)| = 1 within 1e-8, by exact derivatives, 4 starts each."""

    def check(seed, step, n_leapfrog):
        target, z, u, factor = network_start(seed, 2)
        sizes = torch.full((2,), step, dtype=DTYPE)
        start = torch.cat([z, u], -1).requires_grad_()
        smooth = Differentiable(target)
        point, momentum = leapfrog(smooth, BETA, smooth.at(start[..., :2]), start[..., 2:], sizes, factor, n_leapfrog)
        end = torch.cat([point.z, momentum], -1)
        rows = [torch.autograd.grad(end[..., i].sum(), start, retain_graph=True)[0] for i in range(4)]
        assert float((torch.stack(rows, -2).det().abs() - 1).abs().max()) < 1e-8
        point, momentum = leapfrog(target, BETA, target.at(z), u, sizes, factor, n_leapfrog)
        assert torch.allclose(torch.cat([point.z, momentum], -1), end, atol=1e-9)  # it is the same flow

    for_all(n, check, seed=SEEDS, step=st.floats(0.01, 0.4), n_leapfrog=st.integers(1, 4))


@pytest.mark.parametrize("n", COUNTS)
def test_energy_error_is_second_order(n):
    """Half the step, a quarter of the error, of any network: a lost half kick or a force in other coordinates is first
    order."""

    def check(seed):
        target, z, u, factor = network_start(seed, 32)
        start = target.at(z)

        def error(step, n_leapfrog):
            end, momentum = leapfrog(target, BETA, start, u, torch.full((2,), step, dtype=DTYPE), factor, n_leapfrog)
            h = [
                -p.log_prior + BETA * p.distortion + 0.5 * v.square().sum(-1) for p, v in ((start, u), (end, momentum))
            ]
            return float((h[1] - h[0]).abs().mean())

        assert 3.9 < error(0.02, 5) / error(0.01, 10) < 4.1

    for_all(n, check, seed=SEEDS)


def broken(kind, edge):
    """Prior and decoder of codes in 2-D that are no good where the first code exceeds `edge`."""

    def decoder(z):
        outside = z[..., :1] > edge
        if kind == "not a number":
            return torch.where(outside, torch.nan, z)
        if kind == "infinite":
            return torch.where(outside, torch.inf, z)
        if kind == "gradient":
            return z + torch.relu(edge - z[..., :1]).sqrt()  # beyond the edge 0, with the derivative 0 times infinity
        return z

    if kind == "prior":
        return uniform(2, -10.0, edge, dtype=DTYPE), decoder
    return standard_normal(2, DTYPE), decoder


@pytest.mark.parametrize("n", COUNTS)
def test_what_is_not_finite_never_survives_a_rejection(n):
    """Values, gradients and densities that are not finite, met with steps of any length: 40 chains stay finite, and a
    chain that is refused is where it was, with its momentum turned round, for three moves on end."""
    met = []

    def check(kind, edge, seed, step, kernel):
        prior, decoder = broken(kind, edge)
        target = Target(prior, decoder, SquaredError(), torch.zeros(1, 2, dtype=DTYPE))
        images, factor = torch.arange(1), identity(2, DTYPE).factor(BETA, 1)
        z = edge - 0.01 - torch.rand(40, 1, 2, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)
        state = start_at(target, z, seed, images).state
        for move_number in range(3):
            noise = step_noise(seed, images, 40, move_number, 2, DTYPE)
            refreshed = refresh(state.momentum, noise, kernel)
            after, transition = move(target, BETA, state, noise, torch.tensor([step], dtype=DTYPE), factor, kernel)
            bad = ~transition.energy_error.isfinite()
            met.append(bool(bad.any()))
            assert not transition.accepted[bad].any()
            assert (transition.acceptance_rate[bad] == 0).all()
            assert ((transition.acceptance_rate >= 0) & (transition.acceptance_rate <= 1)).all()
            refused = ~transition.accepted
            assert torch.equal(after.momentum[refused], -refreshed[refused])
            for value, before in zip(after.point, state.point, strict=True):
                assert value.isfinite().all()
                assert torch.equal(value[refused], before[refused])
            assert after.momentum.isfinite().all()
            state = after

    for_all(
        n,
        check,
        kind=st.sampled_from(["not a number", "infinite", "gradient", "prior"]),
        edge=st.floats(-1.0, 1.0),
        seed=SEEDS,
        step=st.floats(0.05, 5.0),
        kernel=st.builds(Kernel, st.integers(1, 4), st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.6])),
    )
    assert sum(met) > 0.3 * len(met)  # there was something to refuse


def test_a_proposal_that_is_not_a_number_is_rejected_and_counted():
    def decoder(z):
        return torch.where(z > 0.5, torch.nan, 1.0) * z

    target = Target(standard_normal(2, DTYPE), decoder, SquaredError(), torch.zeros(1, 2, dtype=DTYPE))
    z = torch.full((400, 1, 2), 0.4, dtype=DTYPE)
    chains = start_at(target, z, 0, torch.arange(1))
    noise = step_noise(0, torch.arange(1), 400, 1, 2, DTYPE)
    factor = identity(2, DTYPE).factor(BETA, 1)
    state, transition = move(
        target, BETA, chains.state, noise, torch.tensor([0.3], dtype=DTYPE), factor, Kernel(2, 0.0, 0.0)
    )
    bad = transition.energy_error.isnan()
    assert 0 < bad.sum() < 400
    assert not transition.accepted[bad].any()
    assert (transition.acceptance_rate[bad] == 0).all()
    for value in (*state.point, state.momentum):
        assert value.isfinite().all()


@pytest.mark.parametrize(
    "kernel", [Kernel(1, 0.0, 0.0), Kernel(3, 0.2, 0.0), Kernel(2, 0.2, 0.7)], ids=["mala", "jitter", "persistence"]
)
@pytest.mark.parametrize("metric", ["identity", "gauss_newton"])
def test_moves_leave_the_target_invariant(kernel, metric):
    """Exact samples of a linear posterior stay exact samples: mean and variance in every direction, and the momentum.

    False-fail rate 1e-6 for the family of 10 comparisons. 40,000 chains detect a shift of 0.03 standard deviations and
    a variance off by 4 %. A wrong sign of the force, a missing half kick, a skipped accept test or a momentum that is
    not flipped on rejection fails.
    """
    problem = linear_problem(1, latent_dim=2, n_images=1)
    target, n = problem.target, 40_000
    mean, precision = posterior(problem, BETA)
    generator = torch.Generator().manual_seed(5)
    z = posterior_samples(problem, BETA, n, seed=6)
    images = torch.arange(1)
    state = State(target.at(z), torch.randn(n, 1, 2, generator=generator, dtype=DTYPE))
    chosen = identity(2, DTYPE) if metric == "identity" else metric_from(gauss_newton(target, z[:4], pooled=True))
    factor = chosen.factor(BETA, 1)
    # a step that is refused often: only then does the accept test matter
    size = torch.tensor([0.55 if metric == "identity" else 1.3], dtype=DTYPE)
    rates = []
    for step in range(1, 6):
        noise = step_noise(2, images, n, step, 2, DTYPE)
        state, transition = move(target, BETA, state, noise, size, factor, kernel)
        rates.append(float(transition.acceptance_rate.mean()))
    assert 0.3 < min(rates) < 0.97
    white = ((state.point.z[:, 0] - mean) @ torch.linalg.cholesky(precision)).T  # [2, n]
    bound = threshold(10)
    for sample in (white, state.momentum[:, 0].T):
        assert (sample.mean(1).abs() < bound / n**0.5).all()
        assert ((sample.var(1) - 1).abs() < bound * (2 / n) ** 0.5).all()
    assert abs((white[0] * white[1]).mean()) < bound / n**0.5


def test_cached_values_are_those_of_the_position():
    target = curved_target()
    state = start_at(target, torch.zeros(5, 2, 2, dtype=DTYPE), 0, torch.arange(2)).state
    factor = identity(2, DTYPE).factor(BETA, 2)
    for step in range(5):
        noise = step_noise(1, torch.arange(2), 5, step, 2, DTYPE)
        state, _ = move(target, BETA, state, noise, torch.full((2,), 0.6, dtype=DTYPE), factor, Kernel(2))
    fresh = target.at(state.point.z)
    for cached, value in zip(state.point, fresh, strict=True):
        assert torch.allclose(cached, value, atol=1e-12)


def test_gauss_newton_is_the_jacobian_product():
    target = curved_target()
    z = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(3), dtype=DTYPE)
    expected = torch.zeros(2, 2, 2, dtype=DTYPE)
    for n in range(2):
        for c in range(3):
            jacobian = torch.autograd.functional.jacobian(curved_decoder, z[c, n])
            expected[n] += 2 * jacobian.T @ jacobian / 3
    assert torch.allclose(gauss_newton(target, z, pooled=False), expected, atol=1e-12)
    assert torch.allclose(gauss_newton(target, z, pooled=True)[0], expected.mean(0), atol=1e-12)


def test_energies_of_a_float32_decoder_are_right_at_the_highest_beta():
    """At beta = 36,000 and d near 20 a float32 number of the size of beta d is off by 0.06 nats: sums and differences
    are float64, and only the float32 forward pass itself is left."""
    generator = torch.Generator().manual_seed(0)
    beta, weight = 36000.0, 0.1 * torch.randn(784, 5, generator=generator)
    x = 0.16 * torch.randn(1, 784, generator=generator)
    z, u = torch.randn(2, 200, 1, 5, generator=generator)
    target = Target(standard_normal(5), lambda z: z @ weight.T, SquaredError(), x)
    start = target.at(z)
    assert 5 < start.distortion.mean() < 100
    reconstruction = z @ weight.T
    exact = (reconstruction - x).double().square().sum(-1)  # the squares are float32, their sum is not
    assert torch.allclose(SquaredError()(x, reconstruction), exact, rtol=1e-8, atol=0)
    noise = StepNoise(u, torch.zeros(200, 1, dtype=DTYPE), *torch.full((2, 200, 1), 0.5, dtype=DTYPE))
    size, factor = torch.tensor([1e-4], dtype=DTYPE), identity(5, torch.float32).factor(beta, 1)
    end, transition = move(target, beta, State(start, u), noise, size, factor, Kernel(1, 0.0, 0.0))
    moved = transition.accepted
    energy_error = (
        start.log_prior
        - end.point.log_prior
        + beta * (end.point.distortion - start.distortion)
        + 0.5 * (end.momentum.double().square() - u.double().square()).sum(-1)
    )
    assert moved.double().mean() > 0.5
    assert torch.allclose(transition.energy_error[moved], energy_error[moved], atol=1e-6)


def test_what_a_float32_decoder_as_wide_as_the_papers_leaves():
    """beta d at beta = 36,000 and d near 34, against a float64 copy: 0.022 nats rms seen, 0.07 at most, of 256 codes.
    A float32 sum, or products in TF32, would leave a tenth of a nat and ten nats."""
    torch.manual_seed(0)
    decoder = Decoder(10, 784, [1024] * 3, "tanh").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(256, 1, 10, generator=generator)
    x = decoder(torch.randn(1, 10, generator=generator)) + 0.165 * torch.randn(1, 784, generator=generator)
    point = Target(standard_normal(10), decoder, SquaredError(), x).at(z)
    exact = SquaredError()(x.double(), copy.deepcopy(decoder).double()(z.double()))
    error = 36000 * (point.distortion - exact)
    assert 20 < exact.mean() < 50
    assert error.square().mean().sqrt() < 0.05
    assert error.abs().max() < 0.2


@pytest.mark.parametrize("distortion", [SquaredError(), GaussianNLL(0.3)], ids=["squared_error", "gaussian_nll"])
def test_distortions_are_sampled_from_their_own_density(distortion):
    """x ~ exp(-beta d): beta d - its minimum is chi-square with n degrees over 2. False-fail rate 1e-6; detects 2 %."""
    f = torch.full((500, 1, 200), 0.3, dtype=DTYPE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = distortion.sample(f, 7.0)
    excess = 7.0 * (distortion(x[:, 0], f.transpose(0, 1).expand(1, 500, 200)) - distortion(f[:, 0], f.transpose(0, 1)))
    mean, n = float(excess.mean()), 500 * 200
    assert abs(mean / 100 - 1) < threshold(2) * (2 / n) ** 0.5


def test_noise_is_used_where_it_says():
    """The accept test uses `accept` alone: with 1 every imperfect move is refused and the momentum flipped."""
    target = curved_target()
    state = start_at(target, torch.zeros(5, 2, 2, dtype=DTYPE), 0, torch.arange(2)).state
    noise = step_noise(1, torch.arange(2), 5, 1, 2, DTYPE)
    never = StepNoise(noise.normal, torch.ones_like(noise.accept), noise.jitter, noise.ancestor)
    factor = identity(2, DTYPE).factor(BETA, 2)
    after, transition = move(target, BETA, state, never, torch.full((2,), 0.6, dtype=DTYPE), factor, Kernel(2))
    assert not transition.accepted.any()
    assert torch.equal(after.point.z, state.point.z)
    assert torch.equal(after.momentum, -noise.normal)
