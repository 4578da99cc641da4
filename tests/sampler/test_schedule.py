"""Schedules: learned ones have constant speed and cost less; sizes are chosen for a gap; the paper's recipe runs."""

import types

import numpy as np
import pytest
import torch
from problems import DTYPE, linear_problem
from sampler_checks import detectable, in_standard_errors, student

from rdcurve.sampler.ais import Groups
from rdcurve.sampler.formal import formal_run
from rdcurve.sampler.hmc import Kernel, Transition
from rdcurve.sampler.prerun import PrerunSettings, learn, sweep, tune
from rdcurve.sampler.schedule import geometric, interpolated, recorded_steps, respaced, retimed, sigmoid
from rdcurve.sampler.sizing import size_for_gap
from rdcurve.sampler.step_size import Adaptive, RunningMean

KERNEL = Kernel(2, 0.2, 0.5)
QUICK = PrerunSettings(n_rounds=3, round_temperatures=80, n_blocks=8, n_starts=0)


def test_respaced_shares_the_cost_equally():
    betas = geometric(200, 50.0, 0.01)
    cost = torch.rand(199, generator=torch.Generator().manual_seed(0), dtype=DTYPE) + 0.01
    new = respaced(betas, cost, 57)
    spent = torch.cat([torch.zeros(1, dtype=DTYPE), cost.cumsum(0)])
    at_new = np.interp(new.numpy(), betas.numpy(), spent.numpy())
    assert np.allclose(np.diff(at_new), float(spent[-1]) / 56, rtol=1e-6)
    assert new[0] == 0
    assert new[-1] == 50


def test_tables_follow_their_betas_to_another_schedule():
    before, after = geometric(50, 20.0, 0.1), sigmoid(77, 20.0)
    table = (3 * before.clamp(min=0.05) ** 0.4)[:, None].expand(-1, 3)
    moved = retimed(table, before, after)
    inside = after >= 0.1
    assert torch.allclose(moved[inside][:, 1], 3 * after[inside] ** 0.4)
    assert torch.allclose(retimed(table, before, before)[1:], table[1:])
    flat = interpolated(before.clamp(min=0.05).log()[:, None], before, after)
    assert torch.allclose(flat[inside][:, 0], after[inside].log())


def test_learned_schedule_has_less_work_variance_than_its_start():
    problem = linear_problem(5, latent_dim=4, n_images=8)
    first = sweep(problem.target, geometric(80, 400.0, 1e-4), KERNEL, QUICK, Groups(), seed=1)
    learned = learn(problem.target, 400.0, KERNEL, QUICK, Groups())
    again = sweep(problem.target, learned.at_length(80).betas, KERNEL, QUICK, Groups(), seed=2)
    assert float(again.work.mean(1).sum()) < 0.75 * float(first.work.mean(1).sum())
    # and Var log w = L^2 / T is what the next run has
    assert 0.5 < learned.length**2 / 79 / float(again.work.mean(1).sum()) < 2


def test_chains_in_different_modes_do_not_take_over_the_schedule():
    """One image of five has chains whose work differs by 10^4 nats for good: the schedule stays where it was."""
    problem = linear_problem(5, latent_dim=4, n_images=5)
    swept = sweep(problem.target, geometric(80, 400.0, 1e-3), KERNEL, QUICK, Groups(), seed=1)
    from rdcurve.sampler.prerun import _cost

    spoiled = swept._replace(work=swept.work.clone())
    spoiled.work[-3:, 0] = 1e8
    share = [float(_cost(s, problem.target)[-30:].sum() / _cost(s, problem.target).sum()) for s in (swept, spoiled)]
    assert abs(share[0] - share[1]) < 0.2


def test_size_for_a_gap_is_found_and_the_budget_is_kept():
    problem = linear_problem(5, latent_dim=4, n_images=6)
    learned = learn(problem.target, 200.0, KERNEL, QUICK, Groups(8))
    size = size_for_gap(problem.target, learned, KERNEL, QUICK, Groups(8), gap=0.5, n_chains=16, n_recorded=10)
    assert size.reached
    assert [trial.most <= 0.5 for trial in size.trials] == [False] * (len(size.trials) - 1) + [True]
    assert size.n_temperatures == size.trials[-1].n_temperatures
    small = PrerunSettings(**{**vars(QUICK), "max_temperatures": 25})
    short = size_for_gap(problem.target, learned, KERNEL, small, Groups(8), gap=1e-4, n_chains=16, n_recorded=10)
    assert not short.reached
    assert short.n_temperatures == 25


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (((0.4, 0.4), (0.2, 0.2)), "0.4 with an error of 0.14 may be more than 0.5"),
        (((0.9, -0.2), (0.2, 0.1)), "0.9 with an error of 0.2 is more than 0.5, whatever the mean"),
    ],
)
def test_luck_does_not_end_the_search_for_a_size(monkeypatch, first, why):
    """Half a nat is asked for, and a second size is tried; its largest gap of 0.6 +- 0.3 is no reason for a third."""
    problem = linear_problem(5, latent_dim=4, n_images=2)
    learned = learn(problem.target, 200.0, KERNEL, QUICK, Groups(8))
    seen = iter([first, ((0.6, 0.1), (0.3, 0.1))])

    def scripted(*args, **kwargs):
        gap, error = map(torch.tensor, next(seen))
        return types.SimpleNamespace(gap=gap, gap_se=error)

    monkeypatch.setattr("rdcurve.sampler.sizing.bdmc", scripted)
    size = size_for_gap(problem.target, learned, KERNEL, QUICK, Groups(8), gap=0.52, n_chains=16, n_recorded=10)
    assert size.reached
    assert len(size.trials) == 2, why
    assert size.trials[0].n_temperatures < size.n_temperatures


def test_running_mean_rule_is_the_papers():
    """2 % up while more than 65 % of all moves so far were accepted, else 2 % down, per chain, from 0.01."""
    rule = RunningMean(4, 3, 1)
    history = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    size = [0.01, 0.01, 0.01]
    for step in range(1, 5):
        assert np.allclose(rule[step][:, 0], size, rtol=1e-6)
        accepted = history[:, step - 1 : step]
        rule.observe(step, Transition(accepted.double(), accepted, torch.zeros(3, 1)))
        for chain in range(3):
            rate = history[chain, :step].double().mean()
            size[chain] *= 1.02 if rate > 0.65 else 0.98
    assert rule.table.shape == (5, 3, 1)
    with pytest.raises(ValueError, match="target_acceptance"):
        Adaptive(5, 1, target_acceptance=1.5)


def test_paper_recipe_is_right_too():
    """Sigmoid schedule, 20 leapfrog steps, one step size per chain, no metric, no groups: closed form at 10 betas.

    False-fail rate 1e-6 over 30 comparisons, by Student's t; 20 images and 40 chains detect 0.4 nats in log Z.
    """
    problem = linear_problem(7, latent_dim=2, n_images=20)
    kernel, betas = Kernel(20, 0.0, 0.0), sigmoid(200, 4.0)
    settings = PrerunSettings(
        n_chains=40, schedule="sigmoid", step_size_rule="running_mean", target_acceptance=0.65, metric="identity"
    )
    tuning = tune(problem.target, betas, kernel, settings, Groups())
    assert tuning.step_sizes.shape == (200, 40, 20)
    curve = formal_run(problem.target, tuning, recorded_steps(200, 10), kernel, n_chains=40, seed=9)
    bound = student(30, 20 * 39)
    for quantity, error in in_standard_errors(curve, problem.exact(curve.beta)).items():
        assert np.abs(error).max() < bound, quantity
    assert detectable(curve.standard_error("log_z", "chains"), bound) < 0.4
    with pytest.raises(ValueError, match="step sizes have shape"):
        formal_run(problem.target, tuning, [199], kernel, n_chains=10, seed=9)


def test_groups_that_do_not_fit_are_refused():
    problem = linear_problem(7, latent_dim=2, n_images=2)
    tuning = tune(problem.target, sigmoid(20, 1.0), KERNEL, QUICK, Groups())
    for n_chains in (8, 12, 1):
        with pytest.raises(ValueError, match="multiple of the group size 8, at least 16"):
            formal_run(problem.target, tuning, [19], KERNEL, n_chains=n_chains, seed=1, groups=Groups(8))
