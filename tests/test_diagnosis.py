"""Sick curves are warned of, each by its own symptom; healthy ones are quiet."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from problems import linear_problem

import rdcurve
from rdcurve.diagnosis import verdict
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.prerun import PrerunSettings

SETTINGS = PrerunSettings(n_rounds=2, round_temperatures=60, n_blocks=6, n_starts=4, target_acceptance=0.85)


def measured(seed, **changes):
    problem = linear_problem(seed, latent_dim=3, n_images=8)
    arguments = {
        "n_temperatures": 100,
        "n_recorded": 12,
        "n_chains": 64,
        "prerun_settings": SETTINGS,
        "seed": seed + 50,
    }
    arguments |= changes
    return rdcurve.measure(
        problem.decoder, problem.x, latent_dim=3, beta_max=20.0, distortion=problem.distortion,
        kernel=Kernel(2, 0.2, 0.5), **arguments,
    )  # fmt: skip


@pytest.fixture(scope="module")
def healthy():
    return measured(0)


def test_healthy_runs_are_quiet(healthy):
    """Six problems, six curves: no warning (R24 allows one in fifty)."""
    for curve in [healthy, *(measured(seed) for seed in range(1, 6))]:
        said = verdict(curve)
        assert said.reliable, str(said)
        assert str(said) == "verdict: reliable"


def bad(curve, **changes):
    return replace(curve, **{name: change(getattr(curve, name).copy()) for name, change in changes.items()})


def scaled(factor):
    return lambda array: array * factor


def put(value, rows=slice(5, None)):
    def change(array):
        array[rows] = value
        return array

    return change


@pytest.mark.parametrize(
    ("changes", "symptom"),
    [
        ({"acceptance": put(0.1)}, "acceptance below 0.4"),
        ({"ess": put(1.1)}, "effective sample size below 2"),
        ({"k_hat": put(0.9), "ess": put(9.0)}, "k-hat above 0.7"),
        ({"rate_se": scaled(100)}, "rate known to no better than 2%"),
        ({"distortion": put(30.0, slice(8, 9))}, "not monotone"),
        ({"rate": put(0.1, slice(8, 9))}, "not monotone"),
        ({"doubt": put(5.0)}, "not certified"),
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


def test_gap_is_compared_with_what_was_asked(healthy):
    points = pd.DataFrame({"beta": [1.0, 20.0], "gap": [0.1, 0.9], "gap_se": [0.05, 0.1]})
    assert "BDMC gap of 0.90 ± 0.10 nats at beta = 20, above 0.50" in str(verdict(healthy, points))
    assert verdict(healthy, points, gap=1.0).reliable
    noisy = points.assign(gap_se=0.5)
    assert verdict(healthy, noisy).reliable  # within its own error of what is allowed


def test_runs_that_are_really_sick_are_warned_of():
    """Not made-up arrays: too short a run, steps that are far too long, one route only whose halves disagree."""
    alone = replace(SETTINGS, n_starts=0)
    short = measured(3, n_temperatures=4, n_recorded=2, n_chains=16, prerun_settings=alone)
    assert not verdict(short).reliable
    from rdcurve.sampler.ais import Groups
    from rdcurve.sampler.measure import formal_run
    from rdcurve.sampler.prerun import learn

    problem = linear_problem(0, latent_dim=3, n_images=8)
    tuning = learn(problem.target, 20.0, Kernel(2, 0.2, 0.5), SETTINGS, Groups(8)).at_length(100)
    long = tuning._replace(step_sizes=tuning.step_sizes * 0 + 3.0)
    curve = formal_run(problem.target, long, [20, 60, 99], Kernel(2), n_chains=32, seed=1, groups=Groups(8))
    assert "acceptance below" in str(verdict(curve))
