"""A run grows until it is certified, to the bit that of so many chains, and a stopped one goes on where it was."""

import logging
import time
from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
from problems import linear_problem

import rdcurve
from rdcurve.curve import RDCurve
from rdcurve.sampler.ais import Groups
from rdcurve.sampler.descent import learn_descent
from rdcurve.sampler.formal import formal_run
from rdcurve.sampler.growth import grown_run
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.prerun import PrerunSettings, learn
from rdcurve.sampler.schedule import recorded_steps
from rdcurve.state import Interrupted

KERNEL, GROUPS = Kernel(2, 0.2, 0.5), Groups(8)
QUICK = PrerunSettings(n_chains=4, n_rounds=1, round_temperatures=20, n_blocks=2, n_starts=4, most_starts=0)
RECORDED = recorded_steps(10, 5)  # so short a schedule that few chains are not certified


@pytest.fixture(scope="module")
def problem():
    """One image eight times: a certificate that a few chains give by luck is no matter of one image."""
    one = linear_problem(6, latent_dim=4)
    return replace(one, x=one.x[:1].expand(8, -1))


@pytest.fixture(scope="module")
def tuned(problem):
    learned = learn(problem.target, 200.0, KERNEL, QUICK, GROUPS)
    tuning = learned.at_length(10)
    return tuning, learn_descent(problem.target, tuning, learned, KERNEL, QUICK)


def run(problem, tuned, which=grown_run, **changes):
    tuning, descent = tuned
    arguments = {"n_chains": 16, "seed": 3, "groups": GROUPS, "descent": descent} | changes
    return which(problem.target, tuning, RECORDED, KERNEL, **arguments)


@pytest.fixture(scope="module")
def direct(problem, tuned):
    """The run with so many chains from the beginning."""
    return cache(lambda n: run(problem, tuned, formal_run, n_chains=n))


def same(a: RDCurve, b: RDCurve):
    names = [field.name for field in fields(RDCurve) if field.name != "facts"]
    return a.facts == b.facts and all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=True) for n in names)


@pytest.mark.parametrize("most_chains", [None, 64, 1000])
def test_it_is_the_first_certified_run_or_the_largest_of_the_budget(problem, tuned, direct, most_chains, caplog):
    caplog.set_level(logging.INFO)
    saved = []
    curve = run(problem, tuned, most_chains=most_chains, save=saved.append)
    assert saved == [curve]
    n = curve.facts["n_chains"]
    assert same(curve, direct(n))
    smaller = [16 * 2**k for k in range(10) if 16 * 2**k < n]
    assert not any(direct(c).certified.all() for c in smaller)
    told = [record.getMessage() for record in caplog.records if "betas are certified with" in record.getMessage()]
    assert [int(text.split("now ")[1]) for text in told] == [2 * c for c in smaller]
    if most_chains is None:
        assert n == 16
    elif most_chains == 64:
        assert n == 64 and not curve.certified.all()
    else:
        assert n > 64 and curve.certified.all()


def test_what_no_chains_can_certify_is_measured_once(problem, tuned):
    up = (tuned[0], None)
    assert run(problem, up, most_chains=1000).facts["n_chains"] == 16
    three = replace(problem, x=problem.x[:3])
    learned = learn(three.target, 200.0, KERNEL, QUICK, GROUPS)
    tuning = learned.at_length(10)
    few = (tuning, learn_descent(three.target, tuning, learned, KERNEL, QUICK))
    assert run(three, few, most_chains=1000).facts["n_chains"] == 16


def test_a_stopped_run_goes_on_in_the_size_that_it_was_in(problem, tuned, direct, tmp_path):
    """Stopped in the second size: the first, which had ended, is not measured again, nothing was saved, and the curve
    is the same to the bit; then no state is left."""
    saved = []
    how = {"most_chains": 64, "state_folder": tmp_path, "save_every": 0.0, "save": saved.append}

    class Stop(Exception):
        pass

    def stop_in_the_second(done, total):
        steps.append(done)
        if len(steps) > total + total // 2:
            raise Stop

    steps = []
    with pytest.raises(Stop):
        run(problem, tuned, progress=stop_in_the_second, **how)
    assert not saved
    again = []
    curve = run(problem, tuned, progress=lambda done, total: again.append((done, total)), **how)
    assert same(curve, direct(64)) and saved == [curve]
    total = again[0][1]
    assert len(again) < total - total // 2 + total + 3  # the rest of the second and all of the third
    assert again[0][0] > total // 4
    assert list(tmp_path.iterdir()) == []


def test_the_time_limit_is_of_all_sizes_together(problem, tuned, direct, tmp_path):
    saved, begun = [], time.monotonic()

    def slowly(done, total):
        time.sleep(0.02)

    with pytest.raises(Interrupted, match="the time limit"):  # of some 18 steps of 0.02 s in each of three sizes
        run(problem, tuned, most_chains=64, state_folder=tmp_path, time_limit=0.6, progress=slowly, save=saved.append)
    assert not saved and time.monotonic() - begun < 30
    curve = run(problem, tuned, most_chains=64, state_folder=tmp_path)
    assert same(curve, direct(64))


def test_measure_grows(problem):
    few = {"latent_dim": 4, "beta_max": 200.0, "n_temperatures": 10, "n_recorded": 5, "n_simulated": 0}
    grown = rdcurve.measure(
        problem.decoder, problem.x, prerun_settings=QUICK, n_chains=16, most_chains=32, seed=3, **few
    )
    assert grown.facts["n_chains"] == 32


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"n_chains": 32, "most_chains": 63}, ValueError, "most_chains must be at least twice n_chains = 32.*not 63"),
        ({"most_chains": 64.0}, TypeError, "most_chains"),
        ({"most_chains": True}, TypeError, "most_chains must be an integer, not True"),
        (
            {
                "n_chains": 4,
                "most_chains": 8,
                "prerun_settings": replace(QUICK, step_size_rule="running_mean", n_chains=4, n_starts=0),
            },
            ValueError,
            "most_chains needs a step size for all chains of an image",
        ),
    ],
)
def test_budgets_that_no_run_can_use_are_refused(problem, settings, error, message):
    with pytest.raises(error, match=message):
        rdcurve.measure(problem.decoder, problem.x, latent_dim=4, beta_max=200.0, **settings)
