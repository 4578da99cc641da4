"""Checks on a CUDA device; run with `pytest -m gpu`."""

import numpy as np
import pytest
import torch
from problems import linear_problem, threshold

import rdcurve
from rdcurve.models.mlp import Decoder
from rdcurve.sampler import ais
from rdcurve.sampler.ais import Groups
from rdcurve.sampler.bdmc import bdmc, simulate
from rdcurve.sampler.distortion import SquaredError
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.prerun import PrerunSettings, tune
from rdcurve.sampler.schedule import sigmoid
from rdcurve.sampler.target import Target

pytestmark = pytest.mark.gpu


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


def test_bdmc_on_cuda_encloses_log_z():
    problem = linear_problem(6, latent_dim=4)
    weight, bias = problem.weight.cuda(), problem.bias.cuda()
    prior = rdcurve.standard_normal(4, weight.dtype, "cuda")
    betas = sigmoid(100, 4.0)
    target = Target(prior, lambda z: z @ weight.T + bias, problem.distortion, problem.x.cuda())
    simulated = simulate(target, betas, [50, 99], 20, 3)
    tuning = tune(simulated.target, betas, Kernel(), PrerunSettings(n_chains=4, n_blocks=3), Groups())
    result = bdmc(simulated, tuning, Kernel(), n_chains=8, seed=21)
    assert (result.gap > -6 * result.gap_se).all()
