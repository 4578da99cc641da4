"""Checks on a CUDA device; run with `pytest -m gpu`."""

import copy
import itertools
import signal

import numpy as np
import pytest
import torch
from problems import linear_problem, threshold

import rdcurve
from rdcurve.models import dcgan
from rdcurve.models.mlp import Decoder
from rdcurve.sampler import ais
from rdcurve.sampler.ais import Groups
from rdcurve.sampler.bdmc import bdmc, simulate
from rdcurve.sampler.descent import learn_descent
from rdcurve.sampler.distortion import SquaredError
from rdcurve.sampler.formal import formal_run
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.lanes import products
from rdcurve.sampler.metric import identity
from rdcurve.sampler.prerun import PrerunSettings, learn, tune
from rdcurve.sampler.schedule import sigmoid
from rdcurve.sampler.step_size import Frozen
from rdcurve.sampler.target import Target
from rdcurve.state import Interrupted

pytestmark = pytest.mark.gpu
QUICK = PrerunSettings(n_chains=4, n_rounds=2, round_temperatures=40, n_blocks=3, n_starts=2, most_starts=0)


@pytest.mark.parametrize(("dtype", "tf32"), [(torch.float32, False), (torch.float32, True), (torch.float64, False)])
def test_curve_on_cuda_is_the_closed_form(dtype, tf32):
    """Prerun and formal run on the device. False-fail rate 1e-6 over 30 comparisons; detects 0.8 nats."""
    problem = linear_problem(3, n_images=8, dtype=dtype)
    weight, bias = problem.weight.cuda(), problem.bias.cuda()
    curve = rdcurve.measure(
        lambda z: z @ weight.T + bias, problem.x.cuda(), latent_dim=3, beta_max=8.0,
        distortion=problem.distortion, n_temperatures=300, n_recorded=10, n_chains=64, tf32_gradients=tf32,
    )  # fmt: skip
    for quantity, truth in zip(("rate", "distortion", "log_z"), problem.exact(curve.beta), strict=True):
        error = np.abs(curve.mean(quantity) - truth.mean(1)) / curve.standard_error(quantity, "chains")
        assert error.max() < 1.3 * threshold(30)
    assert not (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)


def test_tf32_touches_gradients_alone():
    """On a network as wide as the paper's: distortions keep their bits, gradients move by about 2^-11."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    network = Decoder(10, 784, [1024, 1024, 1024], "tanh").eval().requires_grad_(False).cuda()
    prior, x = rdcurve.standard_normal(10, torch.float32, "cuda"), torch.rand(8, 784, device="cuda")
    z = torch.randn(16, 8, 10, device="cuda")
    exact, coarse = (Target(prior, network, SquaredError(), x, tf32).at(z) for tf32 in (False, True))
    assert torch.equal(exact.distortion, coarse.distortion)
    assert torch.equal(exact.log_prior, coarse.log_prior)
    moved = (exact.grad_distortion - coarse.grad_distortion).norm() / exact.grad_distortion.norm()
    assert 1e-5 < moved < 1e-2
    targets = (Target(prior, network, SquaredError(), x, tf32) for tf32 in (False, True))
    (slope, between), (same_slope, moved_between) = (target.gradients(z) for target in targets)
    assert torch.equal(slope, same_slope)
    assert torch.equal(between, exact.grad_distortion)
    assert 1e-5 < (between - moved_between).norm() / between.norm() < 1e-2
    assert not torch.equal(moved_between, coarse.grad_distortion)  # here the forward pass is in TF32, too
    assert not (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_graph_is_used_and_gives_the_same_bits(dtype, monkeypatch, recwarn):
    """A curve whose steps are replayed from CUDA graphs, and one whose kernels are launched one by one."""
    problem = linear_problem(3, n_images=8, dtype=dtype)
    weight, bias = problem.weight.cuda(), problem.bias.cuda()
    curves = []
    for least in (2, 10**9):
        monkeypatch.setattr(ais, "_WORTH_A_GRAPH", least)
        curve = rdcurve.measure(
            lambda z: z @ weight.T + bias, problem.x.cuda(), latent_dim=3, beta_max=8.0,
            distortion=problem.distortion, n_temperatures=60, n_recorded=5, n_chains=16,
        )  # fmt: skip
        curves.append(curve)
    assert not [warning for warning in recwarn if "CUDA graph" in str(warning.message)]
    for name in ("rate", "distortion", "log_z"):
        assert np.array_equal(getattr(curves[0], name), getattr(curves[1], name))


def network(dtype):
    torch.manual_seed(0)
    return Decoder(3, 20, [32, 32], "tanh").eval().requires_grad_(False).to("cuda", dtype)


def curve_of(decoder, x, **changes):
    arguments = {"latent_dim": 3, "beta_max": 20.0, "n_temperatures": 40, "n_recorded": 10, "n_chains": 16}
    return rdcurve.measure(decoder, x, prerun_settings=QUICK, n_simulated=2, **arguments | changes)


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("rate", "distortion", "log_z"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rerun_and_a_resumed_run_give_the_same_bits(dtype, tmp_path):
    """R22, on one card: again, and stopped after every 150 steps."""
    decoder, x = network(dtype), torch.rand(6, 20, generator=torch.Generator().manual_seed(1)).to("cuda", dtype)
    whole = curve_of(decoder, x)
    assert same(curve_of(decoder, x), whole)
    steps = itertools.count(1)

    def stop(done, total):
        if next(steps) % 150 == 0:
            signal.raise_signal(signal.SIGTERM)

    for _ in range(100):
        try:
            resumed = curve_of(decoder, x, state_folder=tmp_path, progress=stop)
            break
        except Interrupted:
            continue
    assert same(resumed, whole)


def test_images_in_batches_give_the_same_bits():
    """R22: a formal run of all images, and of some of them, with one tuning, on both routes."""
    decoder, x = network(torch.float32), torch.rand(6, 20, generator=torch.Generator().manual_seed(1)).cuda()
    target = Target(rdcurve.standard_normal(3, torch.float32, "cuda"), decoder, SquaredError(), x)
    kernel, groups = Kernel(2, 0.2, 0.5), Groups(8)
    learned = learn(target, 20.0, kernel, QUICK, groups)
    tuning = learned.at_length(40)
    descent = learn_descent(target, tuning, learned, kernel, QUICK)
    options = {"n_chains": 16, "seed": 5, "groups": groups}
    whole = formal_run(target, tuning, [10, 20, 39], kernel, descent=descent, **options)
    for some in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part = formal_run(
            target.select(some), tuning.select(some), [10, 20, 39], kernel, images=torch.arange(6)[some],
            descent=descent.select(some), **options,
        )  # fmt: skip
        for name in ("rate", "distortion", "log_z"):
            assert np.array_equal(getattr(part, name), getattr(whole, name)[:, some])


@pytest.mark.parametrize("size", [2, 10, 100])
def test_products_do_not_depend_on_the_other_images(size):
    generator = torch.Generator("cuda").manual_seed(0)
    vectors = torch.randn(70, 32, size, generator=generator, device="cuda")
    matrix = torch.randn(70, size, size, generator=generator, device="cuda")
    whole = products(vectors, matrix.mT)
    assert torch.allclose(whole, vectors @ matrix.mT, rtol=1e-4, atol=1e-3)
    for some in (slice(0, 1), slice(1, 4), slice(4, 24), slice(24, 70)):
        assert torch.equal(products(vectors[some], matrix[some].mT), whole[some])


def test_a_generator_of_images_is_measured_and_gives_the_same_bits_twice():
    """Transposed convolutions, which cuDNN may add up in an order of chance."""
    torch.manual_seed(0)
    decoder = dcgan.Decoder(3, 8).requires_grad_(False)
    decoder.settle([torch.randn(64, 3)])
    decoder.convolutions[-1].weight.mul_(5)
    decoder = decoder.cuda()
    x = 2 * torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).cuda() - 1
    one, other = (curve_of(decoder, x, beta_max=1.0) for _ in range(2))
    assert same(one, other)


def test_cuda_in_float64_is_the_cpu_before_an_accept_test_can_differ():
    """R22: one target on both, to 1e-8; draws of the prior are those of a device, so the codes are given."""
    decoder, x = network(torch.float64), torch.rand(6, 20, generator=torch.Generator().manual_seed(1)).double()
    z = torch.randn(8, 6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    points = []
    for device in ("cpu", "cuda"):
        prior = rdcurve.standard_normal(3, torch.float64, device)
        target = Target(prior, copy.deepcopy(decoder).to(device), SquaredError(), x.to(device))
        images, betas = torch.arange(6, device=device), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
        table = Frozen(torch.full((3, 6), 0.05, dtype=torch.float64, device=device))
        chains = ais.start_at(target, z.to(device), 3, images)
        annealing = ais.Annealing(target, Kernel(2, 0.2, 0.5), 3, images)
        chains = ais.advance(annealing, betas, chains, table, identity(3, torch.float64, device), until=2)
        points.append([chains.log_weight, chains.acceptance, *chains.state.point, chains.state.momentum])
    for here, there in zip(*points, strict=True):
        assert torch.allclose(here, there.cpu(), rtol=1e-8, atol=1e-8)


def test_bdmc_on_cuda_encloses_log_z():
    """Lower <= exact <= upper at two betas. False-fail rate 1e-6 over 4 comparisons; detects 1 nat."""
    problem = linear_problem(6, latent_dim=4)
    weight, bias = problem.weight.cuda(), problem.bias.cuda()
    prior = rdcurve.standard_normal(4, weight.dtype, "cuda")
    betas = sigmoid(100, 4.0)
    target = Target(prior, lambda z: z @ weight.T + bias, problem.distortion, problem.x.cuda())
    simulated = simulate(target, betas, [50, 99], 20, 3)
    tuning = tune(simulated.target, betas, Kernel(), PrerunSettings(n_chains=4, n_blocks=3), Groups())
    result = bdmc(simulated, tuning, Kernel(), n_chains=8, seed=21)
    x = simulated.target.x.cpu().unflatten(0, (2, 20)).flip(0)
    exact = np.stack([problem.exact(beta[None], part)[2][0] for beta, part in zip(result.beta, x, strict=True)])
    for short in (exact - result.lower.numpy(), result.upper.numpy() - exact):
        error = short.std(1, ddof=1) / 20**0.5
        assert (threshold(4) * error < 1).all()
        assert (short.mean(1) > -threshold(4) * error).all()
        assert (short.mean(1) < 1).all()
