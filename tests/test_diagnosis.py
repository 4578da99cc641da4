"""Sick curves are warned of, each by its own symptom; healthy ones are quiet (R24)."""

from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from problems import DTYPE, linear_problem
from sampler_checks import random_network

import rdcurve
from rdcurve.commands.bdmc import kept
from rdcurve.diagnosis import verdict
from rdcurve.sampler.ais import Groups, Tuning
from rdcurve.sampler.bdmc import bdmc, simulate
from rdcurve.sampler.distortion import SquaredError
from rdcurve.sampler.formal import formal_run
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.metric import identity
from rdcurve.sampler.prerun import PrerunSettings, learn, tune
from rdcurve.sampler.schedule import sigmoid
from rdcurve.sampler.sizing import compare

KERNEL = Kernel(2, 0.2, 0.5)
SETTINGS = PrerunSettings(
    n_rounds=2, round_temperatures=60, n_blocks=6, n_starts=4, most_starts=0, target_acceptance=0.85
)


def measured(problem, **changes):
    """A curve by `measure`; `problem` has a decoder, data x, and a distortion."""
    decoder, x, latent_dim, distortion = problem
    arguments = {"beta_max": 20.0, "n_temperatures": 100, "n_recorded": 12, "n_chains": 64, "seed": 50} | changes
    return rdcurve.measure(
        decoder, x, latent_dim=latent_dim, distortion=distortion, kernel=KERNEL,
        **{"prerun_settings": SETTINGS} | arguments,
    )  # fmt: skip


def linear(seed, latent_dim=3, n_images=8):
    problem = linear_problem(seed, latent_dim=latent_dim, n_images=n_images)
    return problem.decoder, problem.x, latent_dim, problem.distortion


def network(seed, latent_dim=2, n_images=8):
    return *random_network(seed, latent_dim, n_images), latent_dim, SquaredError()


@pytest.fixture(scope="module")
def healthy():
    return measured(linear(0))


HEALTHY = [(make, seed, 1 + seed % 5) for seed in range(1, 26) for make in (linear, network)]


ALL = pytest.param(HEALTHY, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])  # three minutes of a free core


@pytest.mark.parametrize("problems", [HEALTHY[:2], ALL], ids=["few", "all"])
def test_healthy_runs_are_quiet(healthy, problems):
    """50 curves of linear decoders and of random networks with 1 to 5 codes: at most one (2 %) is warned of; of the
    first few none."""
    assert str(verdict(healthy)) == "verdict: reliable"
    warned = {}
    for make, seed, latent_dim in problems:
        said = verdict(measured(make(seed, latent_dim), seed=seed))
        if not said.reliable:
            warned[make.__name__, seed] = str(said)
    assert len(warned) <= len(problems) // 50, warned


def bad(curve, **changes):
    return replace(curve, **{name: change(getattr(curve, name).copy()) for name, change in changes.items()})


def scaled(factor):
    return lambda array: array * factor


def put(value, rows=slice(5, None)):
    def change(array):
        array[rows] = value
        return array

    return change


def thrice(curve):
    """With each image three times."""
    names = [field.name for field in fields(curve) if field.name not in ("beta", "facts")]
    return replace(curve, **{name: np.concatenate([getattr(curve, name)] * 3, 1) for name in names})


def more(nats):
    return lambda array: array + np.where(np.arange(len(array)) < 6, 0, nats)[:, None]


@pytest.mark.parametrize(
    ("changes", "symptom"),
    [
        ({"acceptance": put(0.1)}, "acceptance below 0.4"),
        ({"ess": put(1.1)}, "effective sample size below 2"),
        ({"k_hat": put(0.9), "ess": put(9.0)}, "k-hat above 0.7"),
        ({"rate_se": scaled(100)}, "rate known to no better than 2%"),
        ({"distortion": put(30.0, slice(8, 9))}, "not monotone"),
        ({"rate": put(0.1, slice(8, 9))}, "not monotone"),
        ({"rate": more(5.0)}, "convex, with slope -beta"),
        ({"rate": more(-5.0)}, "convex, with slope -beta"),
        ({"doubt": put(5.0)}, "not certified"),
        ({"rate": more(-30.0)}, "rate below 0"),
        ({"log_z": put(np.nan, slice(3, 4))}, "not finite"),
        ({"rate": put(np.inf, slice(3, 4))}, "not finite"),
    ],
)
def test_every_symptom_is_named_with_its_betas(healthy, changes, symptom):
    said = verdict(bad(healthy, **changes))
    assert not said.reliable
    assert symptom in str(said)
    if "finite" not in symptom:
        assert "beta = " in str(said)


@pytest.mark.parametrize(
    "changes",
    [
        {"rate": more(5.0)},  # not what dR = -beta dD adds up to
        {"distortion": put(30.0, slice(8, 9))},  # not monotone
        {"doubt": put(1.1)},
        {"doubt": lambda array: np.where(np.arange(8) == 2, 3.1, array)},  # one image of eight
    ],
)
def test_what_no_curve_does_is_not_certified(healthy, changes):
    assert healthy.certified.all()
    spoiled = bad(healthy, **changes)
    assert not spoiled.certified.all()
    assert spoiled.certified[:5].all() or not spoiled.certified.any()


def test_gap_is_compared_with_what_was_asked(healthy):
    points = pd.DataFrame({"beta": [1.0, 20.0], "gap": [0.1, 0.9], "gap_se": [0.05, 0.1]})
    assert "BDMC gap of 0.90 ± 0.10 nats at beta = 20, above 0.50" in str(verdict(healthy, points))
    assert verdict(healthy, points, gap=1.0).reliable
    noisy = points.assign(gap_se=0.5)
    assert verdict(healthy, noisy).reliable  # within its own error of what is allowed
    hidden = pd.DataFrame({"beta": [1.0, 20.0], "gap": [0.9, 1.2], "gap_se": [0.1, 0.5]})
    assert "BDMC gap of 0.90 ± 0.10 nats at beta = 1, above 0.50" in str(verdict(healthy, hidden))
    assert verdict(healthy, points.head(0)).reliable  # nothing can be simulated
    asked = replace(healthy, facts=healthy.facts | {"prerun": {"gap": 1.0}})
    assert verdict(asked, points).reliable
    table = points.assign(lower=0.0, upper=0.0, acceptance=0.9, n_images=5)
    own = replace(healthy, facts=healthy.facts | {"bdmc": table.to_dict("list")})
    assert "BDMC gap of 0.90" in str(verdict(own))
    assert "BDMC gap: 0.90 ± 0.10 nats at most, at beta = 20 (2 betas)" in str(own)


@pytest.mark.parametrize(
    ("gap", "gap_se", "kept", "worst"),
    [
        ([0.1, 0.2], [0.1, 0.1], True, 2.0),
        ([0.1, 0.2], [0.1, 0.2], None, 2.0),
        ([0.9, 0.2], [0.1, 0.2], False, 1.0),
        ([50.0, 0.2], [np.nan, 0.1], None, 1.0),
        ([np.nan, 0.2], [np.nan, 0.1], None, 1.0),
        ([np.inf, 0.2], [np.nan, 0.1], False, 1.0),
    ],
)
def test_gaps_whose_errors_are_not_known_are_not_kept(healthy, gap, gap_se, kept, worst):
    points = {"beta": [1.0, 2.0], "gap": gap, "gap_se": gap_se}
    found = compare(points, 0.5)
    assert (found.kept, found.beta) == (kept, worst)
    said = verdict(healthy, pd.DataFrame(points), gap=0.5)
    assert said.reliable == (kept is not False)
    assert bool(said.notes) == (kept is None)


def test_negative_gaps_are_no_gaps(healthy):
    """The upper bound lies above the lower one on average; if not, data were not simulated from the model."""
    points = pd.DataFrame({"beta": np.arange(1.0, 6), "gap": [-2.3, -0.1, -2.7, 0.4, -3.6], "gap_se": 0.9})
    assert "BDMC gaps are negative, -1.66 ± 0.40 nats" in str(verdict(healthy, points))
    assert verdict(healthy, points.assign(gap_se=1.2), gap=9).reliable


def test_some_of_the_betas_keep_their_own_gaps(healthy):
    some = healthy.at(slice(0, 4))
    assert set(some.gaps["beta"]) == set(healthy.gaps["beta"]) & set(some.beta)
    assert len(healthy.gaps) == 10  # untouched
    none = healthy.at(~np.isin(healthy.beta, healthy.gaps["beta"]))
    assert len(none.gaps) == 0
    assert "BDMC" not in str(none)
    assert list(healthy.gaps) == list(some.gaps)


@pytest.mark.parametrize(
    ("changed", "note"),
    [
        (lambda curve: replace(curve, facts=curve.facts | {"n_searches": 0}), "not certified, which takes two routes"),
        (lambda curve: bad(curve, k_hat=put(np.nan, slice(None))), "k-hat of the weights was not looked at"),
        (lambda curve: curve.first(3), "not certified, which takes 4 images or more, not 3"),
        (
            lambda curve: bad(thrice(curve), doubt=lambda array: np.where(np.arange(24) == 9, 4.0, array)),
            "alone, log Z of these is in doubt by more than 3 nats at some beta: 9",
        ),
    ],
)
def test_what_could_not_be_looked_at_is_said(healthy, changed, note):
    assert verdict(healthy).notes == ()
    said = verdict(changed(healthy))
    assert said.reliable
    assert str(said).startswith("verdict: reliable, as far as can be told\n  - ")
    assert note in str(said)
    assert verdict(healthy.first(4)).notes == ()


ALONE = replace(SETTINGS, n_starts=0)  # one route


def steps_times(factor):
    """A run whose step sizes are not those that were learned."""
    problem = linear_problem(0, latent_dim=3, n_images=8)
    tuning = learn(problem.target, 20.0, KERNEL, SETTINGS, Groups(8)).at_length(100)
    spoiled = tuning._replace(step_sizes=tuning.step_sizes * factor)
    return formal_run(problem.target, spoiled, [20, 60, 99], KERNEL, n_chains=32, seed=1, groups=Groups(8))


def hidden_mode(**changes):
    """A decoder with a narrow mode that fits better than the wide one, where no chain from the prior comes."""

    def decoder(z):
        wide = torch.stack([0.5 * (z[..., 0] - 1.2), 0.5 * z[..., 1]], -1)
        narrow = torch.exp(-((z[..., 0] + 1.5) ** 2 + z[..., 1] ** 2) / 0.04)[..., None]
        return torch.cat([wide * (1 - narrow), 1.0 - 0.9 * narrow], -1)

    problem = decoder, torch.zeros(6, 3, dtype=DTYPE), 2, SquaredError()
    return measured(problem, beta_max=300.0, n_chains=32, **changes)


def overflow():
    """Energies beyond the largest float64."""
    problem = linear_problem(0, latent_dim=3, n_images=8)
    target = replace(problem.target, decoder=lambda z: 1e150 * problem.decoder(z))
    betas = torch.cat([sigmoid(10, 1e3), torch.tensor([1e10], dtype=DTYPE)])
    tuning = Tuning(betas, torch.full((11, 8), 0.1, dtype=DTYPE), identity(3, DTYPE))
    return formal_run(target, tuning, [10], KERNEL, n_chains=16, seed=1)


def too_large_a_gap():
    """Judged by what BDMC measures of it."""
    problem = linear_problem(6, latent_dim=4)
    target, groups = problem.target, Groups(8)
    tuning = learn(target, 200.0, KERNEL, SETTINGS, groups).at_length(8)
    simulated = simulate(target, tuning.betas, [4, 7], 4, seed=3)
    again = tune(simulated.target, tuning.betas, KERNEL, SETTINGS, groups)
    found = bdmc(simulated, again, KERNEL, n_chains=16, seed=21, groups=groups)
    points = pd.DataFrame({"beta": found.beta, "gap": found.gap, "gap_se": found.gap_se})
    return formal_run(target, tuning, [4, 7], KERNEL, n_chains=16, seed=1, groups=groups), points


SICK = {  # a run, and what must be said of it
    "too few temperatures": (
        lambda: measured(linear(3), n_temperatures=4, n_recorded=2, n_chains=16, prerun_settings=ALONE),
        "rate known to no better",
    ),
    "steps far too long": (lambda: steps_times(8.0), "acceptance below"),
    "steps far too short": (lambda: steps_times(1e-3), "halves of the chains"),
    "adapted to be refused": (
        lambda: measured(linear(0), prerun_settings=replace(SETTINGS, target_acceptance=0.15)),
        "acceptance below",
    ),
    "a hidden mode, searched for in vain": (
        lambda: hidden_mode(prerun_settings=replace(SETTINGS, n_starts=2)),
        "not certified",
    ),
    "halves in different modes": (
        lambda: measured(
            network(9), beta_max=3000.0, n_temperatures=8, n_recorded=2, n_chains=16, prerun_settings=ALONE
        ),
        "halves of the chains",
    ),
    "weights with a heavy tail": (
        lambda: measured(
            linear(1, 6), beta_max=4.0, n_temperatures=4, n_recorded=2, n_chains=100, prerun_settings=ALONE
        ),
        "k-hat",
    ),
    "too few chains": (
        lambda: measured(linear(2, 40, 1), beta_max=1.0, n_chains=16, prerun_settings=ALONE),
        "rate known to no better",
    ),
    "too large a gap": (too_large_a_gap, "BDMC gap of"),
    "energies beyond float64": (overflow, "not finite"),
}


@pytest.mark.parametrize("name", SICK)
def test_runs_that_are_really_sick_are_warned_of(name):
    """Ten runs, not made-up arrays."""
    run, symptom = SICK[name]
    curve = run()
    said = str(verdict(*curve) if isinstance(curve, tuple) else verdict(curve))
    assert symptom in said


def test_bdmc_says_whether_the_gap_that_was_asked_for_is_kept():
    """By two standard errors: the largest possible gap where it is kept, the largest sure one where it is missed."""
    points = pd.DataFrame({"beta": [1.0, 20.0], "gap": [0.6, 0.4], "gap_se": [0.05, 0.4]})
    assert kept(points, 1.3) == "the gap of 1.3 nats that was asked for is kept at all 2 betas"
    assert "not contradicted (0.40 ± 0.40 nats at beta = 20)" in kept(points, 1.0)
    assert "MISSED: 0.60 ± 0.05 nats at beta = 1" in kept(points, 0.4)
