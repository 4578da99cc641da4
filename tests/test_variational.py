"""Gaussian channels: exact where the posterior is one, never below the exact curve, ordered, killed and resumed."""

import math
from argparse import Namespace
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
from problems import DTYPE, LinearProblem, curved_decoder, linear_problem, quadrature, threshold
from steps import Bench

from rdcurve.commands import variational
from rdcurve.curve import RDCurve
from rdcurve.models import mlp
from rdcurve.models.linear import Encoder
from rdcurve.sampler.distortion import SquaredError
from rdcurve.sampler.prior import scale_mixture, standard_normal
from rdcurve.sampler.target import Target
from rdcurve.state import Checkpoint, Interrupted
from rdcurve.variational import amortised, per_image
from rdcurve.variational.channel import Channel, Fitted, channel_curve, shifted, spaced_betas

AMORTISED = amortised.Settings(n_steps=400, batch_size=64, learning_rate=0.005, averaging=0.98, seed=1)
PER_IMAGE = per_image.Settings(n_steps=150, n_codes=8, learning_rate=0.2, n_starts=0, seed=1)


def diagonal_problem(n_images=4):
    """A linear decoder with orthogonal columns: the posterior is a Gaussian with a diagonal covariance."""
    problem = linear_problem(seed=5, n_images=n_images)
    u = torch.linalg.qr(problem.weight)[0]
    weight = u * torch.tensor([0.4, 1.0, 2.0], dtype=DTYPE)
    return LinearProblem(weight, problem.bias, problem.x, problem.variance)


def bound(target, fitted, betas, n_samples=200):
    return channel_curve(target, fitted, betas, n_samples=n_samples, seed=9, facts={})


def linear_encoder(problem, dtype=DTYPE):
    torch.manual_seed(0)
    return Encoder(problem.weight.shape[1], problem.x.shape[1]).to(dtype)


def data_like(problem, n, seed):
    """More images of the kind that `linear_problem` makes."""
    generator = torch.Generator().manual_seed(seed)
    z = 1.2 * torch.randn(n, problem.weight.shape[1], generator=generator, dtype=DTYPE)
    noise = 0.3 * torch.randn(n, problem.x.shape[1], generator=generator, dtype=DTYPE)
    return problem.decoder(z.to(problem.weight)) + noise.to(problem.weight)


def test_closed_form_rate_is_the_mean_of_the_log_ratio():
    """KL against E_q log q/p by 200,000 codes, 4 images; false fail 1e-6, and 0.05 nats would be found."""
    generator = torch.Generator().manual_seed(0)
    channel = Channel(*(0.7 * torch.randn(2, 4, 3, generator=generator, dtype=DTYPE)))
    prior = standard_normal(3, DTYPE)
    z = channel.at(torch.randn(200_000, 4, 3, generator=generator, dtype=DTYPE))
    q = torch.distributions.Normal(channel.mean, (0.5 * channel.log_variance).exp())
    ratio = q.log_prob(z).sum(-1) - prior.log_prob(z)
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert error.max() < 0.05 / 8
    assert ((channel.rate(prior) - ratio.mean(0)).abs() < threshold(4) * error).all()


def test_per_image_channel_is_exact_where_the_posterior_is_diagonal():
    """log Z at most 0.03 nats below the closed form, and not above it by more than its noise; R within 0.3 nats.

    A channel near the best misses log Z by the square of its error, R by the error itself.

    4 images at 6 betas from nearly the prior to 1e4; false fail 1e-6 of the upper side.
    """
    problem = diagonal_problem()
    betas = spaced_betas(6, 0.1, 1e4)
    fitted = per_image.fit(problem.target, betas, replace(PER_IMAGE, n_steps=250))
    rate, distortion, log_z = problem.exact(betas)
    curve = bound(problem.target, fitted, betas, n_samples=20_000)
    assert np.allclose(curve.rate, rate, atol=0.3)
    assert ((curve.log_z - log_z) < threshold(log_z.size) * curve.log_z_se).all()
    assert (log_z - curve.log_z < 0.03 + threshold(log_z.size) * curve.log_z_se).all()
    assert curve.log_z_se.max() < 0.04
    assert np.allclose(curve.distortion, distortion, atol=0.03 + 0.3 / betas.numpy()[:, None])


def test_bounds_are_ordered():
    """E log Z: amortised <= per image <= exact, at every beta, means over 16 images of a correlated posterior.

    One-sided, false fail 1e-6; the inequalities hold for the best channels of either kind, and here by more than 0.05
    nats somewhere, so that a bound in the wrong place would be seen.
    """
    problem = linear_problem(seed=2, n_images=16)
    betas = spaced_betas(5, 0.2, 200)
    own = per_image.fit(problem.target, betas, PER_IMAGE)
    training, validation = data_like(problem, 2000, 1), data_like(problem, 500, 2)
    torch.manual_seed(0)
    encoder = mlp.Encoder(3, 8, [16], "tanh").double()
    shared = amortised.fit(encoder, problem.target, training, validation, betas, replace(AMORTISED, n_steps=200))
    own, shared = bound(problem.target, own, betas, 2000), bound(problem.target, shared, betas, 2000)
    exact = problem.exact(betas)[2].mean(1)
    errors = [curve.standard_error("log_z", "chains") for curve in (own, shared)]
    limit = threshold(2 * len(betas))
    above_own = exact - own.mean("log_z")
    above_shared = own.mean("log_z") - shared.mean("log_z")
    assert (above_own > -limit * errors[0]).all()
    assert (above_shared > -limit * np.hypot(*errors)).all()
    assert above_own.max() > 0.05 + limit * errors[0].max()  # a diagonal covariance cannot be exact here
    assert above_own.max() < 1.0
    assert above_shared.max() > 0.05
    assert above_shared.max() < 3.0


def test_a_linear_encoder_learns_the_linear_posterior():
    """Its means are linear in x, and its variances the same for all: an encoder of that form can be exact.

    Within 0.1 nats of the closed form, mean over 16 images, at every beta; the noise is below 0.01 nats.
    """
    problem = diagonal_problem(n_images=16)
    betas = spaced_betas(4, 0.2, 20)
    training, validation = data_like(problem, 2000, 1), data_like(problem, 500, 2)
    settings = replace(AMORTISED, n_steps=800, averaging=0.99)
    fitted = amortised.fit(linear_encoder(problem), problem.target, training, validation, betas, settings)
    curve = bound(problem.target, fitted, betas, 5000)
    short = problem.exact(betas)[2].mean(1) - curve.mean("log_z")
    assert curve.standard_error("log_z", "chains").max() < 0.01
    assert (short < 0.1).all()
    assert (short > -0.05).all()
    losses = pd.DataFrame(fitted.history)
    assert len(losses) == 4 * len(betas)
    parts = losses["validation_rate"] + losses["beta"] * losses["validation_distortion"]
    assert np.allclose(losses["validation_loss"], parts)


def test_the_best_validated_encoder_is_measured():
    """Trained on four images it learns them by heart, so that the second of four validations is the best.

    Measured on the validation images themselves, within 1.5 nats; the last validation is over 3 nats worse.
    """
    problem = diagonal_problem()
    images = data_like(problem, 500, 2)
    betas = spaced_betas(2, 0.1, 50)
    target = replace(problem.target, x=images)
    torch.manual_seed(0)
    encoder = mlp.Encoder(3, 8, [64], "tanh").double()
    settings = replace(AMORTISED, n_steps=100, learning_rate=0.01, averaging=0.5)
    fitted = amortised.fit(encoder, target, data_like(problem, 4, 1), images, betas, settings)
    losses = np.array([row["validation_loss"] for row in fitted.history]).reshape(2, 4)
    assert losses[1, -1] > losses[1].min() + 3
    assert -bound(target, fitted, betas).mean("log_z") == pytest.approx(losses.min(1), abs=1.5)


def test_the_search_finds_the_better_of_two_modes():
    """f(z) = (z - 1)^2 - 1, x = 3: z = 3 and z = -1 fit alike, but from the prior z = -1 alone is reached.

    A third code dimension pulls: along it the fit is better at the far mode only, so that the way up misses it.
    """

    def decoder(z):
        far = torch.sigmoid(20 * (z - 2))
        return torch.cat([(z - 1).square() - 1, 0.3 * far], -1)

    x = torch.tensor([[3.0, 0.3]], dtype=DTYPE)
    target = Target(standard_normal(1, DTYPE), decoder, SquaredError(), x)
    betas = spaced_betas(6, 0.1, 1e4)
    without = bound(target, per_image.fit(target, betas, PER_IMAGE), betas)
    searched = per_image.fit(target, betas, replace(PER_IMAGE, n_starts=8))
    assert without.distortion[-1, 0] > 0.08
    assert bound(target, searched, betas).distortion[-1, 0] < 0.01
    history = pd.DataFrame(searched.history)
    assert history["pass"].tolist() == ["up"] * 6 + ["down"] * 6
    assert (history["best_loss"] <= history["loss"] + 1e-9).all()


def test_no_channel_beats_quadrature():
    """A curved decoder with several modes: log Z of quadrature bounds the channels; one-sided, false fail 1e-6."""
    x = curved_decoder(torch.tensor([[0.5, -0.3], [1.0, 1.2], [-0.7, 0.2]], dtype=DTYPE))
    target = Target(standard_normal(2, DTYPE), curved_decoder, SquaredError(), x)
    betas = spaced_betas(4, 0.5, 200)
    curve = bound(target, per_image.fit(target, betas, PER_IMAGE), betas, 5000)
    exact = next(v for i, v in enumerate(quadrature(curved_decoder, x, betas)) if i == 2)
    assert (curve.log_z - exact < threshold(exact.size) * curve.log_z_se).all()
    assert (exact - curve.log_z < 2).all()


def test_curve_holds_what_the_channels_say(tmp_path):
    problem = diagonal_problem()
    betas = spaced_betas(3, 1, 100)
    mean = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    fitted = Fitted(mean, torch.full_like(mean, -2), [])
    curve = channel_curve(problem.target, fitted, betas, n_samples=50, seed=3, facts={"curve": "small"})
    assert np.allclose(curve.log_z, -(curve.rate + betas.numpy()[:, None] * curve.distortion))
    assert np.allclose(curve.log_z_se, betas.numpy()[:, None] * curve.distortion_se)
    assert np.allclose(curve.distortion_se, np.sqrt(curve.distortion_variance / 50))
    assert np.array_equal(curve.code, mean.numpy())
    assert np.isnan(curve.ess).all()
    assert not curve.certified.any()
    assert curve.facts == {"bound": "variational", "n_samples": 50, "curve": "small"}
    curve.save(tmp_path / "curve")
    again = RDCurve.load(tmp_path / "curve")
    assert np.array_equal(again.distortion, curve.distortion)
    assert len(again.summary()) == 3
    other = channel_curve(problem.target, fitted, betas, n_samples=50, seed=4, facts={})
    assert not np.array_equal(other.distortion, curve.distortion)  # the codes are drawn by the seed


def test_standard_error_is_that_of_repeated_bounds():
    """200 seeds: their spread is the stated error within 30 % (6 standard errors of a standard deviation)."""
    problem = diagonal_problem(n_images=1)
    betas = spaced_betas(2, 1, 10)
    fitted = Fitted(torch.zeros(2, 1, 3, dtype=DTYPE), torch.full((2, 1, 3), -1.0, dtype=DTYPE), [])
    curves = [channel_curve(problem.target, fitted, betas, n_samples=100, seed=s, facts={}) for s in range(200)]
    spread = np.std([curve.log_z for curve in curves], axis=0)
    stated = np.mean([curve.log_z_se for curve in curves], axis=0)
    assert np.allclose(spread / stated, 1, atol=0.3)


def fit_small(method, checkpoint=None, progress=lambda done, total: None):
    problem = linear_problem(seed=2, dtype=torch.float32)
    betas = spaced_betas(4, 0.2, 200)
    if method == "per_image":
        settings = replace(PER_IMAGE, n_steps=5, n_starts=4)
        return per_image.fit(problem.target, betas, settings, checkpoint=checkpoint, progress=progress)
    data = data_like(problem, 40, 1)
    settings = replace(AMORTISED, n_steps=8, batch_size=10)
    encoder = linear_encoder(problem, torch.float32)
    arguments = encoder, problem.target, data[:30], data[30:], betas, settings
    return amortised.fit(*arguments, checkpoint=checkpoint, progress=progress)


@pytest.mark.parametrize("method", ["amortised", "per_image"])
def test_a_killed_fit_goes_on_to_the_same_bits(tmp_path, method):
    """Stopped at every seventh step, and saved at every step, also between two betas' states."""
    whole = fit_small(method)
    steps = []
    assert torch.equal(fit_small(method, progress=lambda done, total: steps.append((done, total))).mean, whole.mean)
    assert [done for done, _ in steps] == list(range(1, steps[0][1] + 1))
    for stop in range(1, steps[0][1], 7):

        def kill(done, total, stop=stop):
            if done == stop:
                raise KeyboardInterrupt

        root = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt), Checkpoint(root, "key", every=0) as checkpoint:
            fit_small(method, checkpoint, kill)
        seen = []
        with Checkpoint(root, "key", every=0) as checkpoint:
            again = fit_small(method, checkpoint, lambda done, total, seen=seen: seen.append(done))
        n_steps = len(steps) // (4 if method == "amortised" else 8)
        assert seen[0] == (stop - 1) // n_steps * n_steps + 1  # of the beta where it was killed, the first step
        assert torch.equal(again.mean, whole.mean)
        assert torch.equal(again.log_variance, whole.log_variance)
        assert again.history == whole.history


def test_a_time_limit_stops_a_fit(tmp_path):
    with pytest.raises(Interrupted), Checkpoint(tmp_path, "key", time_limit=0.0) as checkpoint:
        fit_small("amortised", checkpoint)


@pytest.mark.parametrize(("n", "low", "high"), [(1, 1, 2), (3, 0, 2), (3, 2, 2), (3, 1, math.inf)])
def test_betas_that_are_none(n, low, high):
    with pytest.raises(ValueError, match="at least 2 betas with 0 < beta_min < beta_max"):
        spaced_betas(n, low, high)


def test_refusals():
    problem = linear_problem(seed=2)
    betas = spaced_betas(3, 1, 100)
    target = replace(problem.target, prior=scale_mixture(3, 0.5, 10.0, DTYPE))
    with pytest.raises(ValueError, match="prior has no closed form; a variational curve needs the prior standard_norm"):
        per_image.fit(target, betas, PER_IMAGE)
    with pytest.raises(ValueError, match="no closed form"):
        amortised.fit(linear_encoder(problem), target, problem.x, problem.x, betas, AMORTISED)
    with pytest.raises(ValueError, match=r"learn from data of shape \(7,\), and the curve is measured on \(8,\)"):
        amortised.fit(linear_encoder(problem), problem.target, problem.x[:, :7], problem.x, betas, AMORTISED)
    with pytest.raises(ValueError, match="n_codes must be even"):
        replace(PER_IMAGE, n_codes=3)
    with pytest.raises(ValueError, match="n_steps must be 4 or more, not 3"):
        replace(AMORTISED, n_steps=3)
    zeros = torch.zeros(3, 4, 3, dtype=DTYPE)
    with pytest.raises(ValueError, match="n_samples must be 2 or more"):
        channel_curve(problem.target, Fitted(zeros, zeros, []), betas, n_samples=1, seed=0, facts={})


def test_a_loss_that_diverges_is_named():
    problem = linear_problem(seed=2)
    betas = spaced_betas(3, 1, 100)
    wild = replace(AMORTISED, learning_rate=1e9)
    with pytest.raises(FloatingPointError, match=r"encoder diverged at beta = 1, step \d+: the loss is (inf|nan)"):
        amortised.fit(linear_encoder(problem), problem.target, problem.x, problem.x, betas, wild)
    spoilt = torch.where(torch.arange(len(problem.x))[:, None] == 2, torch.nan, problem.x)
    with pytest.raises(FloatingPointError, match=r"encoder diverged at beta = 1, step \d+: the validation loss is nan"):
        amortised.fit(linear_encoder(problem), problem.target, problem.x, spoilt, betas, AMORTISED)
    with pytest.raises(FloatingPointError, match=r"channels diverged at beta = 1, step \d+: the loss is (inf|nan)"):
        per_image.fit(problem.target, betas, replace(PER_IMAGE, learning_rate=1e9))


def test_shift_of_the_log_variance():
    assert float(shifted(torch.tensor(2.0, dtype=DTYPE), math.e - 1)) == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["amortised", "per_image"])
def test_command_writes_curve_and_history(tmp_path, capsys, method):
    bench = Bench(tmp_path)
    (tmp_path / "mnist/train-images-idx3-ubyte").write_bytes((tmp_path / "mnist/t10k-images-idx3-ubyte").read_bytes())
    params = bench.params
    params["training"]["n_validation"] = 4
    settings = asdict(replace(AMORTISED, n_steps=4, batch_size=5) if method == "amortised" else PER_IMAGE)
    settings |= {"n_steps": 4, "hidden": [6], "n_validation": 2}
    entry = {"curve": "linear_vae100", "method": method, "n_betas": 3, "beta_min": 0.1, "n_samples": 10}
    params["variational"] = {"small": settings | entry}

    class Guard:
        checked = 0

        def check(self):
            self.checked += 1

    files = {"decoder": tmp_path / "decoder", "data": tmp_path / "mnist", "output": tmp_path / "curve"}
    files |= {"history": tmp_path / "history.csv", "state": tmp_path / "state"}
    args = Namespace(name="small", device="cpu", save_every=30.0, time_limit=None, guard=Guard(), **files)
    variational.run(args, params)
    curve = RDCurve.load(files["output"])
    assert curve.beta.tolist() == pytest.approx([0.1, math.sqrt(0.5), 5])
    assert curve.rate.shape == (3, 4)
    assert curve.code.shape == (3, 4, 3)
    assert curve.facts["variational"] == params["variational"]["small"]
    assert curve.facts["curve"] == "linear_vae100"
    assert len(pd.read_csv(files["history"])) == (12 if method == "amortised" else 6)
    assert args.guard.checked == 1
    assert not list(tmp_path.glob("state/*"))
    assert "3 beta in [0.1, 5]" in capsys.readouterr().out
    params["variational"]["small"]["method"] = "flow"
    with pytest.raises(ValueError, match=r"variational\.small: method 'flow' is none of amortised, per_image"):
        variational.run(args, params)
