"""A run may be cut anywhere, damaged, run out of disk, split up: the numbers are the same, to the bit.

Here in one process, where a cut can be put at an exact place; `tests/test_interrupted_steps.py` kills real ones.
"""

import dataclasses
import errno
import itertools
import logging
import math
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import DTYPE, linear_problem
from safetensors.torch import load

import rdcurve
from rdcurve.files import FileError
from rdcurve.models.mlp import Decoder
from rdcurve.sampler import descent as descent_module
from rdcurve.sampler import formal
from rdcurve.sampler.ais import Groups
from rdcurve.sampler.bdmc import bdmc, simulate
from rdcurve.sampler.descent import learn_descent
from rdcurve.sampler.distortion import SquaredError
from rdcurve.sampler.formal import formal_run
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.prerun import PrerunSettings, learn, tune
from rdcurve.sampler.prior import scale_mixture, standard_normal
from rdcurve.sampler.schedule import sigmoid
from rdcurve.sampler.sizing import size_for_gap
from rdcurve.sampler.target import Target
from rdcurve.state import Checkpoint, Interrupted

KERNEL = Kernel(2, 0.2, 0.5)
GROUPS = Groups(4, 0.9)
SETTINGS = PrerunSettings(
    n_chains=4,
    n_rounds=2,
    round_temperatures=16,
    n_blocks=3,
    n_starts=2,
    most_starts=0,
    n_modes=2,
    max_temperatures=30,
    smoothing=5,
)
RECORDED = [4, 9, 14, 19]  # of 20 temperatures


class Killed(BaseException):
    """The process ends here: nobody catches this."""


@pytest.fixture(scope="module")
def problem():
    return linear_problem(1, n_images=3)


@pytest.fixture(scope="module")
def learned(problem):
    return learn(problem.target, 5.0, KERNEL, SETTINGS, GROUPS)


@pytest.fixture(scope="module")
def tuning(learned):
    return learned.at_length(20)


@pytest.fixture(scope="module")
def descent(problem, tuning, learned):
    return learn_descent(problem.target, tuning, learned, KERNEL, SETTINGS)


def run(problem, tuning, **changes):
    arguments = {"n_chains": 8, "seed": 3, "groups": GROUPS, "facts": {"curve": "test"}} | changes
    target, recorded = arguments.pop("target", problem.target), arguments.pop("recorded", RECORDED)
    return formal_run(target, tuning, recorded, arguments.pop("kernel", KERNEL), **arguments)


@pytest.fixture(scope="module")
def whole(problem, tuning):
    return run(problem, tuning)


def same(a, b):
    """All of two results, bit by bit."""
    return leaves(a) == leaves(b)


def leaves(tree):
    if isinstance(tree, torch.Tensor):
        tree = tree.numpy()
    if isinstance(tree, np.ndarray):
        return [(tree.dtype.str, tree.shape, tree.tobytes())]
    if dataclasses.is_dataclass(tree):
        return [leaf for field in dataclasses.fields(tree) for leaf in leaves(getattr(tree, field.name))]
    if isinstance(tree, (tuple, list)):
        return [leaf for branch in tree for leaf in leaves(branch)]
    return [tree]


def stop_after(n_steps):
    def progress(done, total):
        if done >= n_steps:
            signal.raise_signal(signal.SIGTERM)

    return progress


def die_after(n_calls):
    """A progress callback that ends the process at its nth call."""
    calls = itertools.count(1)

    def progress(done, total):
        if next(calls) == n_calls:
            raise Killed

    return progress


def cut_again_and_again(go_on, n_steps, n_cuts, seed):
    """Calls `go_on(progress)`, which dies at random steps, `n_cuts` times, and then to its end. All that has ended."""
    rng, cuts, results = random.Random(seed), 0, []
    while cuts < n_cuts:
        try:
            results.append(go_on(die_after(rng.randint(1, n_steps // 2))))
        except Killed:
            cuts += 1
    return [*results, go_on(die_after(math.inf))]


# R10: cuts at random steps


@pytest.mark.parametrize("route", ["up", "both"])
@pytest.mark.parametrize("n_cuts", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_formal_run_cut_at_random_steps(problem, tuning, descent, tmp_path, route, n_cuts):
    """The file of the curve has the bytes of an uninterrupted run."""
    changes = {} if route == "up" else {"descent": descent}
    run(problem, tuning, **changes).save(tmp_path / "whole")

    def go_on(progress):
        return run(problem, tuning, state_folder=tmp_path / "state", save_every=0, progress=progress, **changes)

    for result in cut_again_and_again(go_on, 19 if route == "up" else 38, n_cuts, seed=1):
        result.save(tmp_path / "resumed")
        assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not list((tmp_path / "state").iterdir())


def test_formal_run_cut_at_the_first_step_down(problem, tuning, descent, tmp_path):
    """Its state is that of the last note, at beta_max, whose moves are counted already."""
    run(problem, tuning, descent=descent).save(tmp_path / "whole")
    options = {"state_folder": tmp_path / "state", "save_every": 0, "descent": descent}
    with pytest.raises(Killed):
        run(problem, tuning, progress=die_after(20), **options)
    run(problem, tuning, **options).save(tmp_path / "resumed")
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_formal_run_stopped_by_signals(problem, tuning, whole, tmp_path):
    """A signal saves, whatever the time between two saves; a finished run leaves no state."""
    for steps in (1, 5, 9, 14, 18):
        with pytest.raises(Interrupted, match="stopped by SIGTERM; the state is saved, run the command again"):
            run(problem, tuning, state_folder=tmp_path, progress=stop_after(steps))
    steps = []
    resumed = run(problem, tuning, state_folder=tmp_path, progress=lambda done, total: steps.append(done))
    assert same(whole, resumed)
    assert steps == [19]
    assert not list(tmp_path.iterdir())


class Cut(Checkpoint):
    """Dies at the nth offer of a state; saves at every other one or so."""

    def __init__(self, root, n, rng):
        super().__init__(root, "key")
        self.left, self.rng, self.n_offers = n, rng, 0

    def offer(self, phase, state):
        self.every = self.rng.choice([0, math.inf])
        super().offer(phase, state)
        self.n_offers += 1
        if self.n_offers == self.left:
            raise Killed


def _simulated(problem, tuning):
    target = problem.target
    return simulate(target, tuning.betas, [9, 14, 19], 2, 5)


def _bdmc(groups):
    def phase(problem, learned, tuning, checkpoint):
        simulated = _simulated(problem, tuning)
        own = tune(simulated.target, tuning.betas, KERNEL, SETTINGS, groups)
        return bdmc(simulated, own, KERNEL, n_chains=8, seed=21, groups=groups, checkpoint=checkpoint, phase="p ")

    return phase


def _learn(**changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return lambda problem, learned, tuning, checkpoint: learn(
        problem.target, 5.0, KERNEL, settings, GROUPS, checkpoint=checkpoint
    )


def _tune(**changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return lambda problem, learned, tuning, checkpoint: tune(
        problem.target, sigmoid(30, 5.0), KERNEL, settings, GROUPS, checkpoint=checkpoint
    )


PHASES = {
    "learn": _learn(),
    "learn, pooled metric": _learn(metric="pooled", n_rounds=3),
    "learn, no metric": _learn(metric="identity"),
    "tune": _tune(round_temperatures=100),
    "tune, thinned": _tune(),
    "tune as in the paper": _tune(step_size_rule="running_mean", metric="identity"),
    "size_for_gap": lambda problem, learned, tuning, checkpoint: size_for_gap(
        problem.target, learned, KERNEL, SETTINGS, GROUPS, gap=0.01, n_chains=8, n_recorded=10, checkpoint=checkpoint
    ),
    "learn_descent": lambda problem, learned, tuning, checkpoint: learn_descent(
        problem.target, tuning, learned, KERNEL, dataclasses.replace(SETTINGS, n_starts=1, most_starts=4),
        checkpoint=checkpoint,
    ),
    "learn_descent, with hops": lambda problem, learned, tuning, checkpoint: learn_descent(
        problem.target, tuning, learned, KERNEL, dataclasses.replace(SETTINGS, n_starts=1, most_starts=2, n_hops=3),
        checkpoint=checkpoint,
    ),
    "bdmc": _bdmc(Groups()),
    "bdmc in groups": _bdmc(GROUPS),
}  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("n_cuts", [6, pytest.param(40, marks=pytest.mark.slow)])
def test_phases_cut_at_random_steps(problem, learned, tuning, tmp_path, phase, n_cuts):
    """Learning, sizing, search for modes and BDMC: bit-equal results however often they were cut."""
    rng, work = random.Random(phase), PHASES[phase]
    with Cut(None, math.inf, rng) as checkpoint:
        expected = work(problem, learned, tuning, checkpoint)
    n_offers, cuts, found = checkpoint.n_offers, 0, []
    assert n_offers > 1
    while cuts < n_cuts or not found:
        checkpoint = Cut(tmp_path, rng.randint(1, max(n_offers // 2, 1)), rng)
        try:
            with checkpoint:
                found.append(work(problem, learned, tuning, checkpoint))
                checkpoint.remove()
        except Killed:
            cuts += 1
    assert all(same(expected, result) for result in found)


def test_a_descent_of_one_mode(problem, learned, tuning):
    """prerun.n_modes = 1."""
    learn_descent(problem.target, tuning, learned, KERNEL, dataclasses.replace(SETTINGS, n_modes=1))


def test_the_descent_of_a_prerun_can_be_stopped(problem, learned, tuning, tmp_path):
    """A signal or the time limit during the way down of the prerun is heeded there, not at its end."""
    with Checkpoint(tmp_path, "key") as checkpoint, pytest.raises(Interrupted):
        learn_descent(problem.target, tuning, learned, KERNEL, SETTINGS, checkpoint=checkpoint, progress=stop_after(3))


def test_the_way_down_of_a_prerun_is_not_walked_twice(problem, learned, tuning, descent, tmp_path):
    """A prerun that is stopped after it goes on from what the way down has taught."""
    with Checkpoint(tmp_path, "key", every=0) as checkpoint:
        learn_descent(problem.target, tuning, learned, KERNEL, SETTINGS, checkpoint=checkpoint)
    seen = []
    with Checkpoint(tmp_path, "key") as checkpoint:
        again = learn_descent(
            problem.target, tuning, learned, KERNEL, SETTINGS, checkpoint=checkpoint,
            progress=lambda done, total: seen.append(done),
        )  # fmt: skip
    assert seen == []
    assert same(again, descent)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 20])
def test_a_signal_is_heeded_within_a_hessian(problem, tuning, descent, tmp_path, monkeypatch, n):
    """On the way from the modes to beta_max, which has no state of its own: with codes of 100 it takes minutes."""
    heed, calls = Checkpoint.heed, itertools.count(1)

    def heed_and_count(self):
        if self.holds("up") and next(calls) == n:
            signal.raise_signal(signal.SIGTERM)
        heed(self)

    options = {"descent": descent, "state_folder": tmp_path / "state", "save_every": 0}
    with pytest.raises(Killed):
        run(problem, tuning, progress=die_after(19), **options)  # one step before the end of the route up
    monkeypatch.setattr(Checkpoint, "heed", heed_and_count)
    if n <= 3:  # not only on the bridge, which comes after the Hessians
        monkeypatch.setattr("rdcurve.sampler.descent.start_at", None)
    with pytest.raises(Interrupted):
        run(problem, tuning, **options)
    monkeypatch.undo()
    assert same(run(problem, tuning, **options), run(problem, tuning, descent=descent))


def test_a_signal_is_heeded_within_a_metric(problem, learned, tuning, monkeypatch):
    """Before a step of the block that it is for: with codes of 100 one takes a minute."""

    class Heeded(Exception):
        pass

    def heed(self):
        raise Heeded

    cross = descent_module._cross

    def crossed(*args):
        chains = cross(*args)
        monkeypatch.setattr(Checkpoint, "heed", heed)
        monkeypatch.setattr(descent_module, "advance", None)
        return chains

    monkeypatch.setattr(descent_module, "_cross", crossed)
    with pytest.raises(Heeded):
        learn_descent(problem.target, tuning, learned, KERNEL, SETTINGS)
    monkeypatch.setattr("rdcurve.sampler.prerun.advance", None)
    with pytest.raises(Heeded):
        learn(problem.target, 5.0, KERNEL, SETTINGS, GROUPS)


def test_chains_that_go_on_down_do_not_come_from_the_modes_again(problem, tuning, descent, tmp_path, monkeypatch):
    options = {"descent": descent, "state_folder": tmp_path / "state", "save_every": 0}
    with pytest.raises(Killed):
        run(problem, tuning, progress=die_after(25), **options)
    monkeypatch.setattr("rdcurve.sampler.descent.mixture_at", None)
    resumed = run(problem, tuning, **options)
    monkeypatch.undo()
    assert same(resumed, run(problem, tuning, descent=descent))


@pytest.mark.parametrize("size", [{"n_temperatures": 20}, {"gap": 0.5}], ids=["n_temperatures", "gap"])
@pytest.mark.parametrize("n_cuts", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_measure_cut_at_random_steps(problem, tmp_path, size, n_cuts):
    """Prerun and formal run in one call, killed again and again: the curve has the bytes of an uninterrupted one."""
    offers = itertools.count(1)

    def go_on(progress=lambda done, total: None, folder=None):
        return rdcurve.measure(
            problem.decoder, problem.x, latent_dim=problem.target.prior.event_shape[0], beta_max=5.0,
            distortion=problem.distortion, n_recorded=5, n_chains=8, kernel=KERNEL, groups=GROUPS,
            prerun_settings=SETTINGS, state_folder=folder, save_every=0, progress=progress, **size,
        )  # fmt: skip

    go_on(lambda done, total: next(offers)).save(tmp_path / "whole")
    go_on_here = lambda progress: go_on(progress, tmp_path / "state")  # noqa: E731
    for result in cut_again_and_again(go_on_here, next(offers), n_cuts, seed=2):
        result.save(tmp_path / "resumed")
        assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not list((tmp_path / "state").iterdir())


def test_measure_stops_within_its_time_limit_and_goes_on(problem, tmp_path):
    """And with another seed it is another run, which leaves the state of the first alone."""

    def go_on(**changes):
        return rdcurve.measure(
            problem.decoder, problem.x, latent_dim=problem.target.prior.event_shape[0], beta_max=5.0, n_temperatures=20,
            distortion=problem.distortion, n_recorded=5, n_chains=8, kernel=KERNEL, groups=GROUPS,
            prerun_settings=SETTINGS, **changes,
        )  # fmt: skip

    with pytest.raises(ValueError, match="time_limit must be positive and needs a state_folder"):
        go_on(time_limit=5.0)
    with pytest.raises(Interrupted, match="stopped by the time limit; the state is saved"):
        go_on(state_folder=tmp_path, time_limit=1e-3)
    other = go_on(state_folder=tmp_path, seed=8)
    assert len(list(tmp_path.iterdir())) == 1  # that of the run that was stopped is left alone
    assert same(go_on(state_folder=tmp_path), go_on())
    assert not same(other, go_on())
    assert not list(tmp_path.iterdir())


def test_every_argument_of_measure_is_part_of_its_run(problem, tmp_path):
    """One that is left out would let a run go on as if it had not changed."""
    latent_dim = problem.target.prior.event_shape[0]
    same = {
        "decoder": problem.decoder, "x": problem.x, "latent_dim": latent_dim, "beta_max": 5.0, "n_temperatures": 20,
        "distortion": problem.distortion, "n_recorded": 5, "n_chains": 8, "kernel": KERNEL, "groups": GROUPS,
        "prerun_settings": SETTINGS,
    }  # fmt: skip
    changes = [
        {}, {"decoder": lambda z: 1.01 * problem.decoder(z)}, {"x": problem.x + 0.01}, {"x": problem.x[:2]},
        {"beta_max": 6.0}, {"n_temperatures": 21}, {"n_temperatures": None, "gap": 0.5},
        {"n_temperatures": None, "gap": 0.6}, {"n_temperatures": None, "betas": sigmoid(20, 5.0)},
        {"n_temperatures": None, "betas": sigmoid(21, 5.0)}, {"distortion": SquaredError()}, {"n_recorded": 6},
        {"prior": scale_mixture(latent_dim, weight=0.5, scale=2, dtype=DTYPE)}, {"n_chains": 16},
        {"kernel": KERNEL._replace(n_leapfrog=3)}, {"kernel": KERNEL._replace(jitter=0.1)},
        {"kernel": KERNEL._replace(persistence=0.4)}, {"groups": Groups(2, 0.9)}, {"groups": Groups(4, 0.8)},
        {"seed": 8}, {"n_simulated": 0}, {"n_simulated": 4}, {"tf32_gradients": True},
    ]  # fmt: skip
    fields = {field.name: getattr(SETTINGS, field.name) for field in dataclasses.fields(SETTINGS)}
    other = {
        "schedule": "sigmoid",
        "step_size_rule": "running_mean",
        "metric": "pooled",
        "target_acceptance": 0.7,
        "keep": "envelope",
    }
    for name, value in fields.items():
        changed = dataclasses.replace(SETTINGS, **{name: other.get(name, value + 1 if name not in other else None)})
        alone = {"groups": Groups(), "n_chains": changed.n_chains} if name == "step_size_rule" else {}
        changes.append({"prerun_settings": changed, **alone})
    for number, change in enumerate(changes):
        with pytest.raises(Interrupted):
            rdcurve.measure(**same | change, state_folder=tmp_path, time_limit=1e-3)
        assert len(list(tmp_path.iterdir())) == number + 1, change
    with pytest.raises(Interrupted):  # and what changes no number is none
        rdcurve.measure(**same, state_folder=tmp_path, time_limit=1e-3, save_every=1.0)
    assert len(list(tmp_path.iterdir())) == len(changes)


def test_a_run_killed_while_it_saves_its_curve_is_not_lost(problem, tuning, whole, tmp_path):
    def fail(curve):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(problem, tuning, state_folder=tmp_path, save_every=0, save=fail)
    seen = []
    resumed = run(problem, tuning, state_folder=tmp_path, progress=lambda done, total: seen.append(done))
    assert seen == []  # nothing left to compute
    assert same(resumed, whole)


# R11: damaged states, and a crash at every point of a save


@pytest.fixture(scope="module")
def two_generations(problem, tuning, tmp_path_factory):
    """Bytes of the two states of a run that has been stopped at step 12, and the name of their folder."""
    root = tmp_path_factory.mktemp("state")
    with pytest.raises(Interrupted):
        run(problem, tuning, state_folder=root, save_every=0, progress=stop_after(12))
    (folder,) = root.iterdir()
    files = {name: (folder / name).read_bytes() for name in ("state", "state.previous")}
    assert [int(load(data[32:])["up/.0.0"]) for data in files.values()] == [12, 11]
    return folder.name, files


DAMAGE = {
    "flip": lambda data, rng: _flip(data, rng.randrange(8 * len(data))),
    "flip in the header": lambda data, rng: _flip(data, rng.randrange(8 * 64)),
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "appended": lambda data, rng: data + rng.randbytes(rng.randint(1, 100)),
    "emptied": lambda data, rng: b"",
    "zeros": lambda data, rng: bytes(len(data)),
    "hole": lambda data, rng: data[:1000] + bytes(512) + data[1512:],
    "noise": lambda data, rng: rng.randbytes(len(data)),
    "digest of the other": lambda data, rng: bytes(32) + data[32:],
    "shifted": lambda data, rng: data[1:] + data[:1],
}


def _flip(data, bit):
    data = bytearray(data)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


@pytest.mark.parametrize("n", [60, pytest.param(1200, marks=pytest.mark.slow)])
def test_damaged_state_is_never_used(problem, tuning, whole, two_generations, tmp_path, n):
    """Flipped bits, cuts, additions, emptied and overwritten files, of one generation or of both: the newest whole one
    is used, or none. The result is that of the undisturbed run (tried for each kind of damage)."""
    key, files = two_generations
    rng, kinds = random.Random(0), list(DAMAGE)
    folder = tmp_path / key
    for i in range(n):
        kind, damaged = kinds[i % len(kinds)], rng.choice([["state"], ["state"], ["state.previous"], list(files)])
        folder.mkdir(exist_ok=True)
        for name, data in files.items():
            changed = DAMAGE[kind](data, rng) if name in damaged else data
            assert (changed != data) == (name in damaged)
            (folder / name).write_bytes(changed)
        usable = [data for name, data in files.items() if name not in damaged]
        expected = load(usable[0][32:]) if usable else {}
        found = Checkpoint(tmp_path, key)._load()
        assert found.keys() == expected.keys(), (kind, damaged)
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
        if i < 2 * len(kinds):
            seen = []
            result = run(problem, tuning, state_folder=tmp_path, progress=lambda *step, seen=seen: seen.append(step[0]))
            assert seen[0] == (1 + int(expected["up/.0.0"]) if expected else 1), (kind, damaged)
            assert same(result, whole), (kind, damaged)


@pytest.mark.parametrize("arrangement", ["swapped", "both old", "only the previous", "only the new"])
def test_generations_in_the_wrong_place_do_no_harm(problem, tuning, whole, two_generations, tmp_path, arrangement):
    key, files = two_generations
    new, old = files["state"], files["state.previous"]
    (tmp_path / key).mkdir()
    first, second = {
        "swapped": (old, new), "both old": (old, old), "only the previous": (None, old), "only the new": (new, None)
    }[arrangement]  # fmt: skip
    for name, data in (("state", first), ("state.previous", second)):
        if data is not None:
            (tmp_path / key / name).write_bytes(data)
    seen = []
    result = run(problem, tuning, state_folder=tmp_path, progress=lambda done, total: seen.append(done))
    assert seen[0] == (13 if first == new else 12)
    assert same(result, whole)


def test_state_of_another_run_is_not_used(problem, tuning, two_generations, tmp_path):
    """A state that was copied from one run's folder into another's."""
    _, files = two_generations
    with pytest.raises(Interrupted):
        run(problem, tuning, seed=4, state_folder=tmp_path, save_every=0, progress=stop_after(2))
    (folder,) = tmp_path.iterdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    assert same(run(problem, tuning, seed=4, state_folder=tmp_path), run(problem, tuning, seed=4))


def test_a_damaged_state_does_not_replace_the_one_before(problem, tuning, two_generations, tmp_path, monkeypatch):
    """The last whole generation is kept until there is a newer one, also where `state` is damaged."""
    key, files = two_generations
    (tmp_path / key).mkdir()
    (tmp_path / key / "state").write_bytes(b"damaged")
    (tmp_path / key / "state.previous").write_bytes(files["state.previous"])
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        fail(patch, Path, "write_bytes", errno.ENOSPC, 0)
        run(problem, tuning, state_folder=tmp_path, save_every=0)
    assert Checkpoint(tmp_path, key)._load()


class Doom:
    """Lets `n` calls that change the disk through and dies at the next: before it or just after it, a write half way.

    From then on nothing works any more, not even clearing up, as after a real death.
    """

    CALLS = ((os, "replace"), (os, "fsync"), (os, "chmod"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"),
             (tempfile, "mkstemp"), (Path, "write_bytes"))  # fmt: skip

    def __init__(self, patch, n, when):
        self.left, self.when, self.struck = n, when, None
        for owner, name in self.CALLS:
            patch.setattr(owner, name, self._doomed(getattr(owner, name), name))

    def _doomed(self, original, name):
        def call(*args, **kwargs):
            if self.struck:
                raise Killed
            self.left -= 1
            if self.left >= 0:
                return original(*args, **kwargs)
            self.struck = name
            if name == "write_bytes":
                original(args[0], args[1][: len(args[1]) // 2])
            elif self.when == "after":
                original(*args, **kwargs)
            raise Killed

        return call


@pytest.mark.parametrize("when", ["before", "after"])
def test_crash_at_every_point_of_every_save(problem, tmp_path, monkeypatch, when):
    """Every call that changes the disk, from the first save to the removal of the state, is the last one once.

    The curve is whole or absent, a state once saved is never lost, and the next run ends with the right bytes.
    """
    short = tune(problem.target, sigmoid(4, 5.0), KERNEL, SETTINGS, GROUPS)
    path, state = tmp_path / "curve", tmp_path / "state"
    run(problem, short, recorded=[1, 3]).save(path)
    expected, struck = path.read_bytes(), []
    for n in itertools.count():
        path.unlink()
        steps = []
        arguments = {"recorded": [1, 3], "state_folder": state, "save": lambda curve: curve.save(path)}
        with monkeypatch.context() as patch:
            doom = Doom(patch, n, when)
            try:
                run(
                    problem, short, save_every=0, progress=lambda *step, steps=steps: steps.append(step[0]), **arguments
                )
            except Killed:
                struck.append(doom.struck)
        if doom.struck is None:
            break
        assert not path.exists() or path.read_bytes() == expected
        if len(steps) > 1 and not path.exists():
            (folder,) = state.iterdir()
            assert int(Checkpoint(state, folder.name)._load()["up/.0.0"]) >= steps[-1] - 2
        run(problem, short, **arguments)
        assert path.read_bytes() == expected
        assert not list(state.iterdir())
    assert len(struck) > 25
    assert set(struck) == {name for _, name in Doom.CALLS}


# R12: a disk that cannot be written


def fail(patch, owner, name, code, n):
    """The nth call of a function and all later ones fail."""
    original, calls = getattr(owner, name), itertools.count()

    def failing(*args, **kwargs):
        if next(calls) >= n:
            raise OSError(code, os.strerror(code))
        return original(*args, **kwargs)

    patch.setattr(owner, name, failing)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize(
    "where", [(Path, "write_bytes"), (os, "fsync"), (os, "replace"), (tempfile, "mkstemp")], ids=lambda where: where[1]
)
def test_save_that_fails(problem, tuning, whole, tmp_path, monkeypatch, where, code):
    """The error is raised as it is, a state of before survives, nothing half written lies about."""
    for n in (2, 3, 4, 5):
        with monkeypatch.context() as patch, pytest.raises(OSError, match=os.strerror(code)):
            fail(patch, *where, code, n)
            run(problem, tuning, state_folder=tmp_path, save_every=0)
        (folder,) = tmp_path.iterdir()
        assert {path.name for path in folder.iterdir()} <= {"lock", "state", "state.previous"}
        assert Checkpoint(tmp_path, folder.name)._load()
    assert same(run(problem, tuning, state_folder=tmp_path), whole)


def test_folder_of_the_state_is_removed_under_the_run(problem, tuning, whole, tmp_path):
    def progress(done, total):
        if done in (5, 6, 12):
            shutil.rmtree(tmp_path / "state")

    assert same(run(problem, tuning, state_folder=tmp_path / "state", save_every=0, progress=progress), whole)
    assert not list((tmp_path / "state").iterdir())


@pytest.mark.parametrize("when", ["before", "after"])
def test_folder_of_the_state_is_removed_at_every_point_of_a_save(problem, tmp_path, monkeypatch, when):
    """Before or after every call of a run that touches the disk, once each: the run goes on, the curve is the same."""
    short = tune(problem.target, sigmoid(4, 5.0), KERNEL, SETTINGS, GROUPS)
    arguments = {"recorded": [1, 3], "state_folder": tmp_path / "state", "save_every": 0}
    expected, struck = run(problem, short, recorded=[1, 3]), []

    def removing(patch, n):
        """Remove the folder around call n of all that are patched; says which one it was."""
        calls, found = itertools.count(), []

        def patched(original, name):
            def call(*args, **kwargs):
                now = not found and next(calls) == n  # not again: removing calls some of these
                if now:
                    found.append(name)
                if now and when == "before":
                    shutil.rmtree(tmp_path / "state", ignore_errors=True)
                result = original(*args, **kwargs)
                if now and when == "after":
                    shutil.rmtree(tmp_path / "state", ignore_errors=True)
                return result

            return call

        for owner, name in (*Doom.CALLS, (Path, "exists"), (Path, "read_bytes"), (os, "open")):
            patch.setattr(owner, name, patched(getattr(owner, name), name))
        return found

    for n in itertools.count():
        with monkeypatch.context() as patch:
            found = removing(patch, n)
            curve = run(problem, short, **arguments)
        if not found:
            break
        struck += found
        assert same(curve, expected), (n, found)
    assert len(struck) > 40
    calls = {"replace", "fsync", "chmod", "mkdir", "mkstemp", "write_bytes", "exists", "read_bytes", "open"}
    assert calls <= set(struck)


def test_folder_of_the_state_that_cannot_be_made(problem, tuning, tmp_path, monkeypatch):
    (tmp_path / "state").write_text("a file")
    with pytest.raises(FileError, match="state: states are kept in a folder, and here is a file"):
        run(problem, tuning, state_folder=tmp_path / "state")
    assert (tmp_path / "state").read_text() == "a file"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Read-only"):
        fail(patch, os, "mkdir", errno.EROFS, 0)
        run(problem, tuning, state_folder=tmp_path / "other")


def test_a_run_holds_three_files_whatever_the_number_of_saves(problem, tuning, tmp_path):
    """R26: lock and two generations."""
    most = []
    run(
        problem, tuning, state_folder=tmp_path, save_every=0,
        progress=lambda done, total: most.append(sum(path.is_file() for path in tmp_path.rglob("*"))),
    )  # fmt: skip
    assert max(most) == 3


# R14: several processes on one run


def test_a_second_process_on_one_run_waits_for_the_first(tmp_path):
    first = Checkpoint(tmp_path, "key")
    order = []

    def second():
        folder = Checkpoint(tmp_path, "key")._acquire(tmp_path / "key")
        order.append("second")
        folder.close()

    with first:
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
        first.remove()
    thread.join(10)
    assert order == ["first", "second"]
    assert (tmp_path / "key/lock").exists()  # on the folder that is there, not on the removed one


def test_a_thread_that_does_not_wait_to_the_end_leaves_the_lock_to_its_holder(tmp_path):
    left = []

    def second():
        try:
            with Checkpoint(tmp_path, "key", time_limit=0.2):
                pytest.fail("two work on one run")
        except Interrupted as error:
            left.append(str(error))

    with Checkpoint(tmp_path, "key"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(10)
    assert left == ["stopped by the time limit while another process worked on the same run"]
    with Checkpoint(tmp_path, "key", time_limit=1):
        pass


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(FileError, match=r"key/lock: this file system has no locks"), Checkpoint(tmp_path, "key"):
        pass


def test_a_process_that_starts_while_another_one_ends(tmp_path, monkeypatch):
    """The other one removes the folder of the state just before this one locks it."""
    original, calls = Path.open, itertools.count()

    def open_late(path, *args, **kwargs):
        if next(calls) == 0:
            shutil.rmtree(path.parent)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_late)
    with Checkpoint(tmp_path, "key"):
        pass


# R15: what is another run


def first_step(*args, **changes):
    """Where a run starts: 1, or after the state that it has found. The run is left there."""
    seen = []

    def progress(done, total):
        seen.append(done)
        raise Killed

    with pytest.raises(Killed):
        run(*args, progress=progress, **changes)
    return seen[0]


def _scaled(tensor, *index):
    tensor = tensor.clone()
    tensor[index] *= 1.01
    return tensor


def _metric(tuning, **changes):
    return tuning._replace(metric=dataclasses.replace(tuning.metric, **changes))


CHANGES = {
    "seed": lambda p, t, d: (p, t, {"seed": 4}),
    "chains": lambda p, t, d: (p, t, {"n_chains": 12}),
    "group size": lambda p, t, d: (p, t, {"groups": Groups(2, 0.9)}),
    "resampling": lambda p, t, d: (p, t, {"groups": Groups(4, 0.8)}),
    "leapfrog steps": lambda p, t, d: (p, t, {"kernel": Kernel(3, 0.2, 0.5)}),
    "jitter": lambda p, t, d: (p, t, {"kernel": Kernel(2, 0.1, 0.5)}),
    "persistence": lambda p, t, d: (p, t, {"kernel": Kernel(2, 0.2, 0.4)}),
    "facts": lambda p, t, d: (p, t, {"facts": {"curve": "other"}}),
    "recorded betas": lambda p, t, d: (p, t, {"recorded": [4, 9, 13, 19]}),
    "names of images": lambda p, t, d: (p, t, {"images": torch.tensor([0, 1, 3])}),
    "schedule": lambda p, t, d: (p, t._replace(betas=_scaled(t.betas, 7)), {}),
    "step sizes": lambda p, t, d: (p, t._replace(step_sizes=_scaled(t.step_sizes, 19, 0)), {}),
    "metric, values": lambda p, t, d: (p, _metric(t, eigenvalues=_scaled(t.metric.eigenvalues, 0, 0, 0)), {}),
    "metric, vectors": lambda p, t, d: (p, _metric(t, eigenvectors=-t.metric.eigenvectors), {}),
    "metric, blocks": lambda p, t, d: (p, _metric(t, starts=tuple(0.99 * s for s in t.metric.starts)), {}),
    "data": lambda p, t, d: (dataclasses.replace(p, x=_scaled(p.x, 1, 1)), t, {}),
    "order of the data": lambda p, t, d: (dataclasses.replace(p, x=p.x.flip(0)), t, {}),
    "decoder": lambda p, t, d: (dataclasses.replace(p, weight=_scaled(p.weight, 0, 0)), t, {}),
    "decoder, bias": lambda p, t, d: (dataclasses.replace(p, bias=_scaled(p.bias, 0)), t, {}),
    "distortion": lambda p, t, d: (dataclasses.replace(p, variance=0.51), t, {}),
    "prior": lambda p, t, d: (
        p, t, {"target": dataclasses.replace(p.target, prior=scale_mixture(3, 0.5, 2.0, dtype=DTYPE))}
    ),
    "second route": lambda p, t, d: (p, t, {"descent": d}),
}  # fmt: skip


def test_every_change_is_another_run(problem, tuning, descent, whole, tmp_path, monkeypatch):
    """22 kinds of change and that of the code, one at a time: none resumes; the unchanged run still does."""
    with pytest.raises(Interrupted):
        run(problem, tuning, state_folder=tmp_path, progress=stop_after(10))
    assert first_step(problem, tuning, state_folder=tmp_path) == 11
    for name, change in CHANGES.items():
        other_problem, other_tuning, changes = change(problem, tuning, descent)
        assert first_step(other_problem, other_tuning, state_folder=tmp_path, **changes) == 1, name
    assert len(list(tmp_path.iterdir())) == 1 + len(CHANGES)
    with monkeypatch.context() as patch:
        patch.setattr(formal, "code_digest", lambda: "other code")
        assert first_step(problem, tuning, state_folder=tmp_path) == 1
    steps = []
    result = run(problem, tuning, state_folder=tmp_path, progress=lambda done, total: steps.append(done))
    assert steps[0] == 11
    assert same(result, whole)


def test_another_run_is_said_to_be_one(tmp_path, caplog):
    """A first one finds nothing but itself; one with another setting says that there is a state it does not use."""
    problem = linear_problem(1, n_images=2)

    def measured(seed):
        with pytest.raises(Interrupted), caplog.at_level(logging.INFO):
            rdcurve.measure(
                problem.decoder, problem.x, latent_dim=3, beta_max=5.0, distortion=problem.distortion,
                n_temperatures=20, n_chains=8, n_simulated=0, prerun_settings=SETTINGS, seed=seed,
                state_folder=tmp_path, progress=stop_after(5),
            )  # fmt: skip
        said = [record.getMessage() for record in caplog.records if "state" in record.getMessage()]
        caplog.clear()
        return said

    assert measured(3) == []
    (line,) = measured(4)
    assert line == (
        f"no state of this step yet; {tmp_path} holds those of other runs (1), of other steps, settings, data or code"
    )
    (line,) = measured(3)
    assert line.startswith("going on from")


def test_all_that_a_module_holds_is_part_of_the_run():
    """A hidden unit that no prior draw reaches, and chains at high beta may: its weight is seen, and a buffer."""

    class Rare(torch.nn.Module):
        def __init__(self, weight=1.0, shift=3.0):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(weight, dtype=DTYPE), requires_grad=False)
            self.register_buffer("shift", torch.tensor(shift, dtype=DTYPE))

        def forward(self, z):
            return z + self.weight * (z - 2 * self.shift).relu()

    def key(decoder):
        return formal.run_key(
            Target(standard_normal(2, DTYPE), decoder, SquaredError(), torch.zeros(3, 2, dtype=DTYPE)), None
        )

    assert key(Rare()) == key(Rare())
    assert len({key(Rare()), key(Rare(weight=2.0)), key(Rare(shift=4.0))}) == 3
    assert key(lambda z: Rare()(z)) == key(lambda z: Rare(weight=2.0)(z))  # of a bare function nobody can tell


def test_code_digest_covers_every_module_of_the_sampler(tmp_path, monkeypatch):
    shutil.copytree(Path(formal.__file__).parent, tmp_path / "sampler")
    monkeypatch.setattr(formal, "__file__", str(tmp_path / "sampler/formal.py"))
    found = {formal.code_digest()}
    modules = sorted((tmp_path / "sampler").glob("*.py"))
    for module in modules:
        module.write_bytes(module.read_bytes() + b"\n")
        found.add(formal.code_digest())
    assert len(found) == 1 + len(modules)


def _searches(descent, **changes):
    return descent._replace(searches=(descent.searches[0]._replace(**changes), *descent.searches[1:]))


DESCENTS = {
    "none": lambda d: None,
    "share": lambda d: d._replace(share=_scaled(d.share, 0, 0)),
    "bridge": lambda d: d._replace(bridge_sizes=_scaled(d.bridge_sizes, 1, 0)),
    "modes": lambda d: _searches(d, z=_scaled(d.searches[0].z, 0, 0, 0)),
    "hits": lambda d: _searches(d, hits=d.searches[0].hits + 1),
    "found": lambda d: _searches(d, found=~d.searches[0].found),
    "searches": lambda d: d._replace(searches=d.searches[:1]),
    "step sizes": lambda d: d._replace(tuning=d.tuning._replace(step_sizes=_scaled(d.tuning.step_sizes, 3, 0))),
    "metric, values": lambda d: d._replace(
        tuning=_metric(d.tuning, eigenvalues=_scaled(d.tuning.metric.eigenvalues, 0, 0, 0))
    ),
    "metric, vectors": lambda d: d._replace(tuning=_metric(d.tuning, eigenvectors=-d.tuning.metric.eigenvectors)),
    "schedule": lambda d: d._replace(tuning=d.tuning._replace(betas=_scaled(d.tuning.betas, 7))),
}


@pytest.mark.parametrize(
    "change",
    DESCENTS,
)
def test_another_second_route_is_another_run(problem, tuning, descent, tmp_path, change):
    """Each part of a descent; vectors with their sign turned stand for any others."""
    arguments = {"state_folder": tmp_path, "descent": descent}
    with pytest.raises(Interrupted):
        run(problem, tuning, progress=stop_after(10), **arguments)
    arguments["descent"] = DESCENTS[change](descent)
    assert first_step(problem, tuning, **arguments) == 1


# R22: some of the images, in any order, on any number of threads


def _mlp_problem(n_images):
    torch.manual_seed(0)
    decoder = Decoder(3, 784, [96], "tanh").eval().requires_grad_(False)
    x = (decoder(torch.randn(n_images, 3)) + 0.05 * torch.randn(n_images, 784)).clamp(0, 1)
    return Target(standard_normal(3), decoder, SquaredError(), x)


SPLIT = {"seed": 5, "groups": GROUPS, "n_chains": 24}  # 24 chains of 12 images: two tiles, the last one padded
# all but the control variate, whose slope is a median over the images
COLUMNS = (
    "log_z",
    "doubt",
    "code",
    "log_z_se",
    "spread",
    "lineages",
    "acceptance",
    "rate",
    "rate_se",
    "distortion",
    "distortion_se",
    "distortion_variance",
    "ess",
    "k_hat",
)


@pytest.fixture(scope="module")
def splittable():
    """Of a linear decoder and of a network: target, tuning, descent of 12 images, and their curve."""
    settings = dataclasses.replace(SETTINGS, n_rounds=1)
    made = {}
    for name, target, beta_max in (
        ("linear float64", linear_problem(2, n_pixels=784, n_images=12, variance=20.0).target, 5.0),
        ("network float32", _mlp_problem(12), 30.0),
    ):
        learned = learn(target, beta_max, KERNEL, settings, GROUPS)
        tuning = learned.at_length(20)
        descent = learn_descent(target, tuning, learned, KERNEL, settings)
        made[name] = target, tuning, descent, formal_run(target, tuning, RECORDED, KERNEL, descent=descent, **SPLIT)
    return made


def some_images(made, rng, folder):
    """The curve of random images in random order, on one thread or two, with or without a state; and their names."""
    target, tuning, descent, _ = made
    chosen = torch.tensor(rng.sample(range(12), rng.randint(1, 12)))
    if rng.random() < 0.5:  # a formal run of more images than it was tuned for would not do
        folder = None
    torch.set_num_threads(rng.choice([1, 2]))
    curve = formal_run(
        target.select(chosen), tuning.select(chosen), RECORDED, KERNEL, descent=descent.select(chosen),
        images=chosen, state_folder=folder, save_every=0 if folder is None else 1e6, **SPLIT,
    )  # fmt: skip
    return curve, chosen.numpy()


@pytest.mark.parametrize("decoder", ["linear float64", "network float32"])
@pytest.mark.parametrize("n", [4, pytest.param(25, marks=pytest.mark.slow)])
def test_images_on_their_own(splittable, tmp_path, decoder, n):
    """8 splits, or 50: whatever is estimated from the chains of an image is the same to the bit."""
    made, rng = splittable[decoder], random.Random(decoder)
    for _ in range(n):
        curve, chosen = some_images(made, rng, tmp_path)
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(curve, name), getattr(made[3], name)[:, chosen], err_msg=name)


@pytest.mark.parametrize("decoder", ["linear float64", "network float32"])
def test_estimates_of_images_on_their_own_to_the_bit(splittable, decoder):
    """Orders and sizes that once changed last bits: backwards, one image alone, two."""
    target, tuning, descent, whole = splittable[decoder]
    for chosen in ([4, 3, 2, 1, 0], [11], [7, 2]):
        index = torch.tensor(chosen)
        curve = formal_run(
            target.select(index), tuning.select(index), RECORDED, KERNEL, descent=descent.select(index),
            images=index, **SPLIT,
        )  # fmt: skip
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(curve, name), getattr(whole, name)[:, chosen], err_msg=name)


def test_weights_of_many_images_on_their_own_to_the_bit():
    """Groups of 8 that resample, 40 images of which 7 are run alone."""
    target = linear_problem(2, n_images=40).target
    tuning = tune(target, sigmoid(20, 5.0), KERNEL, dataclasses.replace(SETTINGS, n_blocks=1), Groups())
    arguments = {"n_chains": 16, "seed": 5, "groups": Groups(8, 0.9)}
    whole = formal_run(target, tuning, RECORDED, KERNEL, **arguments)
    index = torch.arange(7)
    part = formal_run(target.select(index), tuning.select(index), RECORDED, KERNEL, images=index, **arguments)
    np.testing.assert_array_equal(part.log_z, whole.log_z[:, :7])


def test_parts_of_a_run_on_one_thread_and_on_two(splittable, tmp_path):
    """Number of threads and cuts change between the parts of one run: chains and weights are the same to the bit."""
    target, tuning, _, _ = splittable["network float32"]
    whole = formal_run(target, tuning, RECORDED, KERNEL, **SPLIT)
    arguments = SPLIT | {"state_folder": tmp_path, "save_every": 0}
    for threads, steps in ((1, 4), (2, 9), (1, 15)):
        torch.set_num_threads(threads)
        with pytest.raises(Interrupted):
            formal_run(target, tuning, RECORDED, KERNEL, progress=stop_after(steps), **arguments)
    torch.set_num_threads(2)
    resumed = formal_run(target, tuning, RECORDED, KERNEL, **arguments)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name), err_msg=name)


def test_curve_on_two_threads_to_the_bit(splittable):
    """The whole file, of the same images."""
    target, tuning, _, _ = splittable["network float32"]
    whole = formal_run(target, tuning, RECORDED, KERNEL, **SPLIT)
    torch.set_num_threads(2)
    assert same(formal_run(target, tuning, RECORDED, KERNEL, **SPLIT), whole)


def test_a_terminal_that_closes_saves_the_state_but_for_nohup(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with pytest.raises(Interrupted, match="SIGHUP"), Checkpoint(tmp_path, "key") as checkpoint:
            os.kill(os.getpid(), signal.SIGHUP)
            checkpoint.offer("loop", (torch.zeros(1),))
        assert (tmp_path / "key/state").exists()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Checkpoint(tmp_path, "key") as checkpoint:
            os.kill(os.getpid(), signal.SIGHUP)
            checkpoint.offer("loop", (torch.zeros(1),))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_just_before_a_run_within_a_run_stops_it(tmp_path):
    """`measure` keeps the state of its own parts around that of its formal run: neither loop may miss the signal."""
    with pytest.raises(Interrupted, match="SIGUSR1"), Checkpoint(tmp_path, "outer"):
        os.kill(os.getpid(), signal.SIGUSR1)
        with Checkpoint(tmp_path, "inner") as inner:
            inner.offer("loop", (torch.zeros(1),))
            pytest.fail("went on")
    assert (tmp_path / "inner/state").exists()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_a_signal_just_after_the_work_of_a_run_within_a_run_stops_the_outer_one(tmp_path):
    """A prerun saves the bounds that it has found: a signal that comes meanwhile finds no loop of theirs."""
    with Checkpoint(tmp_path, "outer") as outer:
        with Checkpoint(tmp_path, "inner") as inner:
            inner.offer("phase", torch.zeros(1))
            os.kill(os.getpid(), signal.SIGUSR1)
            inner.keep()
        with pytest.raises(Interrupted, match="SIGUSR1"):
            outer.offer("phase", torch.zeros(1))
