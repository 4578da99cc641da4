"""Likelihoods read off a curve against those of the marginal Gaussian of a linear decoder."""

import argparse
import math
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import torch
from problems import DTYPE, LinearProblem, linear_problem, threshold
from torch.distributions import MultivariateNormal

import rdcurve
from rdcurve.commands import likelihood as command
from rdcurve.curve import RDCurve
from rdcurve.files import FileError
from rdcurve.likelihood import log_likelihood
from rdcurve.models.checkpoint import save_decoder
from rdcurve.models.linear import Decoder
from rdcurve.sampler.prerun import PrerunSettings
from rdcurve.sampler.schedule import geometric, recorded_steps, respaced, sigmoid

BETA_MAX = 36_000.0


def make_curve(**known):
    """A curve of which the test says what it needs: no errors, and NaN for the rest."""
    shape = known["log_z"].shape
    arrays = {"code": np.zeros((*shape, 0))}
    for name in (field.name for field in fields(RDCurve) if field.name != "facts"):
        arrays.setdefault(name, np.zeros(shape) if name.endswith("_se") else np.full(shape, np.nan))
    return RDCurve(**arrays | known)


def exact(problem, beta):
    """Distortion and log Z under the squared error, each [K, N]: those of variance 1/2 but for its constant."""
    half = LinearProblem(problem.weight, problem.bias, problem.x, 0.5)
    _, distortion, log_z = half.exact(beta)
    constant = problem.x.shape[1] / 2 * math.log(math.pi)
    return distortion - constant, log_z + np.asarray(beta)[:, None] * constant


def exact_log_p(problem, variance):
    n = len(problem.bias)
    covariance = problem.weight @ problem.weight.T + variance * torch.eye(n, dtype=DTYPE)
    return MultivariateNormal(problem.bias, covariance).log_prob(problem.x).numpy()


def large_problem():
    """784 pixels, 10 dimensions of code, a squared error of 8 that no code can mend: like VAE10 on MNIST."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.35 * torch.randn(784, 10, generator=generator, dtype=DTYPE) * torch.linspace(0.3, 1.5, 10, dtype=DTYPE)
    bias = torch.rand(784, generator=generator, dtype=DTYPE)
    x = 1.2 * torch.randn(4, 10, generator=generator, dtype=DTYPE) @ weight.T + bias
    return LinearProblem(weight, bias, x + 0.1 * torch.randn(4, 784, generator=generator, dtype=DTYPE), 0.5)


def learned(problem):
    """A schedule of constant speed in sd(d), as the prerun learns it."""
    fine = geometric(5000, BETA_MAX, 1e-3)
    distortion, _ = exact(problem, fine.clamp(min=1e-9))
    cost = (-np.diff(distortion.mean(1)) * fine.diff().numpy()).clip(0) ** 0.5
    return respaced(fine, torch.as_tensor(cost), 1000)


@pytest.mark.parametrize(
    "schedule",
    [lambda _: sigmoid(60_000, BETA_MAX), lambda _: geometric(1000, BETA_MAX, 0.05), learned],
    ids=["sigmoid", "geometric", "learned"],
)
def test_interpolation_between_fifty_betas(schedule):
    problem = large_problem()
    betas = schedule(problem)
    beta = betas[recorded_steps(len(betas), 50)].numpy()
    distortion, log_z = exact(problem, beta)
    curve = make_curve(beta=beta, log_z=log_z, rate=log_z, distortion_cv=distortion)
    worst = 0.0
    for at in np.geomspace(beta[0], beta[-1], 300):
        _, truth = exact(problem, np.array([at]))
        result = log_likelihood(curve, 1 / (2 * at), 784)
        worst = max(worst, float(np.abs(result.log_p - truth[0] + 392 * math.log(math.pi / at)).max()))
    assert worst < 0.05


def test_it_is_the_density_of_the_marginal_gaussian():
    problem = linear_problem(1, n_images=5)
    beta = sigmoid(2000, 50.0)[recorded_steps(2000, 50)].numpy()
    distortion, log_z = exact(problem, beta)
    curve = make_curve(beta=beta, log_z=log_z, rate=log_z, distortion_cv=distortion)
    for variance in (0.011, 0.03, 0.1, 0.5, 2.0, 20.0):
        expected = exact_log_p(problem, variance)
        result = log_likelihood(curve, variance, 8)
        assert np.allclose(result.log_p, expected, rtol=0, atol=0.01)
        assert result.beta == 1 / (2 * variance)
        assert abs(result.mean - expected.mean()) < 0.01
        assert result.standard_error("chains") == 0
        assert abs(result.standard_error("images") - expected.std(ddof=1) / 5**0.5) < 0.01
    for k in (0, 20, 49):  # at a recorded beta nothing is interpolated
        result = log_likelihood(curve, 1 / (2 * beta[k]), 8)
        assert np.allclose(result.log_p, exact_log_p(problem, 1 / (2 * beta[k])), rtol=0, atol=1e-9)


def test_standard_errors_cover_any_correlation():
    """Each error is the largest change of log p when every entry errs by one standard error to either side."""
    problem = linear_problem(1, n_images=3)
    beta = np.array([0.5, 2.0, 5.0])
    distortion, log_z = exact(problem, beta)
    generator = np.random.default_rng(0)
    log_z_se, distortion_se = (0.1 + generator.random((2, 3, 3))) * 0.1
    arrays = {"beta": beta, "rate": log_z, "log_z_se": log_z_se, "distortion_cv_se": distortion_se}
    for variance in (0.12, 0.2, 0.5, 0.9):
        result = log_likelihood(make_curve(log_z=log_z, distortion_cv=distortion, **arrays), variance, 8)
        changes = []
        for signs in np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1).T:
            k = int(np.searchsorted(beta, 1 / (2 * variance)))
            shifted_z, shifted_d = log_z.copy(), distortion.copy()
            shifted_z[k - 1 : k + 1] += signs[:2, None] * log_z_se[k - 1 : k + 1]
            shifted_d[k - 1 : k + 1] += signs[2:, None] * distortion_se[k - 1 : k + 1]
            shifted = log_likelihood(make_curve(log_z=shifted_z, distortion_cv=shifted_d, **arrays), variance, 8)
            changes.append(shifted.log_p - result.log_p)
        assert np.allclose(np.max(changes, 0), result.log_p_se)
        assert result.standard_error("chains") == pytest.approx(np.sqrt((result.log_p_se**2).sum()) / 3)
        assert result.standard_error("images") == pytest.approx(result.log_p.std(ddof=1) / 3**0.5)
    with pytest.raises(ValueError, match="over must be 'chains' or 'images', not 'both'"):
        result.standard_error("both")


def test_of_a_measured_curve():
    """Three variances, between recorded betas. False-fail rate 1e-6; detects 0.4 nats."""
    problem = linear_problem(2, latent_dim=2, n_images=6)
    curve = rdcurve.measure(
        problem.decoder,
        problem.x,
        latent_dim=2,
        beta_max=20.0,
        n_temperatures=120,
        n_recorded=20,
        n_simulated=0,
        n_chains=64,
        prerun_settings=PrerunSettings(n_rounds=1, round_temperatures=50, n_blocks=4, n_starts=0),
    )
    for variance in (0.03, 0.1, 0.4):
        result = log_likelihood(curve, variance, 8)
        error = result.standard_error("chains")
        # 1.5: Student's t of a jackknife over 8 groups and 6 images
        assert abs(result.mean - exact_log_p(problem, variance).mean()) < 1.5 * threshold(3) * error
        assert error < 0.05


class Guard:
    def check(self):
        pass


def table_of(folder, variance, facts, uncertified_below=0.0):
    """`rdcurve likelihood` on the exact curve of a linear decoder, with a published number beside it."""
    problem = linear_problem(1, n_images=5)
    beta = sigmoid(2000, 50.0)[recorded_steps(2000, 50)].numpy()
    distortion, log_z = exact(problem, beta)
    doubt = np.where(beta[:, None] < uncertified_below, 5.0, np.zeros(log_z.shape))
    rate = -log_z - beta[:, None] * distortion
    curve = make_curve(
        beta=beta, log_z=log_z, rate=rate, distortion=distortion, distortion_cv=distortion, doubt=doubt
    )  # fmt: skip
    curve.facts.update(n_searches=2, tolerance=1.0)
    curve.facts["settings"] = {"model": "m", "distortion": {"name": "squared_error"}}
    curve.save(folder / "curves/c.safetensors")
    decoder = Decoder(problem.weight.shape[1], 8).to(DTYPE)
    with torch.no_grad():
        for own, value in zip(decoder.parameters(), (problem.weight, problem.bias), strict=True):
            own.copy_(value)
    arguments = {"latent_dim": problem.weight.shape[1], "n_pixels": 8}
    save_decoder(folder / "m.safetensors", decoder, architecture="linear", arguments=arguments, facts=facts)
    points = {"beta": [1.0, 5.0, 50.0], "gap": [0.1, -0.2, 0.3], "gap_se": [0.01, 0.02, 0.03], "n_images": 3}
    pd.DataFrame(points).to_csv(folder / "c.csv", index=False)
    args = argparse.Namespace(curves=folder / "curves", decoders=folder, bdmc=folder, guard=Guard())
    args.output, args.table = folder / "l.md", folder / "l.csv"
    theirs = {"variance": 0.03, "log_p": 705.4, "se_images": 7.4, "bdmc_gap": 0.8, "n_images": 1000}
    entry = {"curves": {"c": variance}, "published": {"P": theirs}, "note": "Other data."}
    command.run(args, {"likelihood": entry})
    return problem, pd.read_csv(args.table), args.output.read_text()


@pytest.mark.parametrize(("variance", "used"), [("own", 0.2), (0.5, 0.5)])
def test_command_reads_the_likelihood_at_the_noise_of_the_model_or_at_a_given_one(tmp_path, variance, used):
    problem, table, text = table_of(tmp_path, variance, {"variance": 0.2})
    ours, theirs = table.to_dict("records")
    assert ours["log_p"] == pytest.approx(exact_log_p(problem, used).mean(), abs=0.01)
    assert (ours["variance"], ours["n_images"], ours["certified"]) == (used, 5, True)
    gap, error = {0.2: (-0.2, 0.02), 0.5: (0.1, 0.01)}[used]  # beta is 2.5 and 1
    assert (ours["bdmc_gap"], ours["bdmc_gap_se"]) == (gap, error)
    assert f"| {gap:.2f} ± {error:.2f} | 5 |" in text
    assert (theirs["model"], theirs["source"], theirs["log_p"]) == ("P", "published", 705.4)
    assert "| P | published | 0.03 | 705.4 ± 7.4 |  | 0.80 | 1000 |" in text
    assert "Other data." in text


def test_command_says_certified_only_between_two_certified_betas(tmp_path):
    """beta is 2.5; the lower neighbour of it is not certified."""
    _, table, text = table_of(tmp_path, 0.2, {}, uncertified_below=2.5)
    assert not table["certified"][0]
    assert "(not certified)" in text


def test_command_refuses_the_own_noise_of_a_model_that_has_none(tmp_path):
    with pytest.raises(FileError, match=r"no noise of its own; give likelihood\.curves\.c a variance"):
        table_of(tmp_path, "own", {})


def test_what_the_curve_does_not_say_is_refused():
    beta = np.array([0.5, 2.0])
    curve = make_curve(beta=beta, log_z=-np.ones((2, 1)), rate=np.ones((2, 1)), distortion_cv=np.ones((2, 1)))
    for variance in (0.2, 1.1, 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"variance must lie in 0\.25 \.\. 1, the range of the curve, not"):
            log_likelihood(curve, variance, 8)
    assert math.isnan(log_likelihood(curve, 0.3, 8).standard_error("images"))
    with pytest.raises(ValueError, match="two betas or more, not 1"):
        log_likelihood(curve.at(slice(1)), 1.0, 8)
    curve.facts["settings"] = {"distortion": {"name": "gaussian_nll"}}
    with pytest.raises(ValueError, match="under squared_error, not gaussian_nll"):
        log_likelihood(curve, 0.3, 8)
