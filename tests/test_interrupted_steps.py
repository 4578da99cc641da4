"""Steps that are killed, signalled, run out of time or disk, or are started eight times: the bytes are the same.

Kills and signals are real, of real processes, and of all three steps that keep a state: a prerun that learns a schedule
for a gap and the second route, a formal run of both routes, a BDMC with groups of chains.
"""

import errno
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from steps import Bench

from rdcurve.cli import main
from rdcurve.commands import prerun
from rdcurve.curve import RDCurve
from rdcurve.models.checkpoint import load_decoder, save_decoder
from rdcurve.sampler import ais
from rdcurve.sampler import bdmc as bounds
from rdcurve.sampler.sizing import Size, Trial, compare
from rdcurve.sampler.tuning_file import load_tuning, save_tuning

OUTPUTS = {"prerun": ["tuning"], "ais": ["curve"], "ais up": ["curve.up"], "bdmc": ["gap.csv", "gap.json"]}
STEPS = ["prerun", "ais up", "bdmc"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder in which all steps have run, uninterrupted."""
    bench = Bench(tmp_path_factory.mktemp("measured"))
    del bench.entry["n_temperatures"]
    bench.entry.update(gap=1.0, beta_max=2.0, n_recorded=5, sampler={}, prerun={})
    bench.entry.update(ais={"n_chains": 8}, bdmc={"n_chains": 8, "n_betas": 2, "n_images": 2})
    bench.params["sampler"].update(n_images=3, group_size=4, resample_below=0.9)
    bench.params["prerun"].update(n_chains=4, n_rounds=2, round_temperatures=30, max_temperatures=100, n_blocks=4)
    bench.params["prerun"].update(n_starts=2, most_starts=2, n_modes=2)
    bench.save()
    for verb in OUTPUTS:
        if verb == "ais up":
            save_tuning(bench.folder / "tuning.up", *load_tuning(bench.folder / "tuning", torch.float64)[::2])
        assert bench.finish(*command(bench, verb)) == 0, bench.log()
    return bench


def test_a_formal_run_grows_and_may_be_stopped(tmp_path):
    """Till certified or at its budget: here a schedule so short that 8 chains do not do, whatever the processor."""
    (tmp_path / "whole").mkdir()
    bench = Bench(tmp_path / "whole", n_temperatures=10)
    bench.entry.update(beta_max=5000, n_recorded=5, sampler={}, prerun={}, ais={"n_chains": 8, "most_chains": 16})
    bench.entry.update(bdmc={"n_chains": 8, "n_betas": 2, "n_images": 2})
    bench.params["sampler"].update(n_images=4, group_size=4)
    bench.params["prerun"].update(n_chains=4, n_rounds=1, round_temperatures=20, n_blocks=2, n_starts=2, most_starts=2)
    bench.save()
    assert bench.finish(*bench.command("prerun")) == 0, bench.log()
    other = bench.copy(tmp_path / "stopped")
    assert bench.finish(*bench.command("ais")) == 0, bench.log()
    assert RDCurve.load(bench.folder / "curve").facts["n_chains"] == 16
    assert "of 5 betas are certified with 8 chains; now 16" in bench.log()
    goes_on = other.command("ais", "--state", "state", "--save-every", "0")
    assert other.finish(*goes_on, "--time-limit", "0.001") == 75, other.log()
    assert not (other.folder / "curve").exists()
    assert other.finish(*goes_on, "--time-limit", "0.02") in (0, 75), other.log()
    assert other.finish(*goes_on) == 0, other.log()
    assert (other.folder / "curve").read_bytes() == (bench.folder / "curve").read_bytes()
    assert not list((other.folder / "state").iterdir())


def command(bench, verb, *more):
    """`ais up` is the formal run without the second route, `ais` that with both."""
    if verb == "ais up":
        return bench.command("ais", "--step-sizes", "tuning.up", "--output", "curve.up", *more)
    return bench.command(verb, *more)


@pytest.fixture
def bench(measured, tmp_path):
    """The same folder, to run steps in again."""
    return measured.copy(tmp_path)


def results(bench, verb):
    """The bytes of what a step has written; what is not there is left out."""
    return {name: (bench.folder / name).read_bytes() for name in OUTPUTS[verb] if (bench.folder / name).exists()}


def forget(bench, verb):
    """What the uninterrupted step had written, removed from the folder."""
    expected = results(bench, verb)
    assert set(expected) == set(OUTPUTS[verb])
    for name in expected:
        (bench.folder / name).unlink()
    return expected


def assert_nothing_left(bench, verb):
    """No state of a finished step, but for the bounds that a prerun has found already for the step `bdmc`."""
    assert len(list((bench.folder / "state").iterdir())) == (verb == "prerun")


def wait_for_state(bench, process, newer_than=0):
    """Until the process has saved a state, or has ended."""
    while process.is_alive() and bench.newest_state() <= newer_than:
        time.sleep(0.002)


def kill_again_and_again(bench, verb, n_kills, seed):
    expected, rng, resumed = forget(bench, verb), random.Random(seed), 0
    line, n = command(bench, verb, "--state", "state", "--save-every", "0.01"), 0
    while n < n_kills:
        saved = bench.newest_state()
        resumed += saved > 0
        process = bench.fork(*line)
        if n % 2:  # every other one is not killed before it has got further, however slow the machine is
            wait_for_state(bench, process, saved)
            process.join(rng.uniform(0, 0.15))
        else:
            process.join(rng.uniform(0, 0.6))
        if process.is_alive():
            process.kill()
            process.join()
        assert process.exitcode in (0, -signal.SIGKILL), bench.log()
        n += process.exitcode != 0
        found = results(bench, verb)
        assert found.items() <= expected.items()  # whole or absent
        if process.exitcode == 0:  # done: once more, from the start
            assert found == expected
            forget(bench, verb)
    assert bench.finish(*line) == 0, bench.log()
    assert results(bench, verb) == expected
    assert_nothing_left(bench, verb)
    assert resumed >= n_kills // 4


@pytest.mark.parametrize("verb", [*STEPS, "ais"])
def test_kill_9_at_random_moments(bench, verb):
    """7 kills of each step, 28 in all: what it writes in the end is byte-equal to what an undisturbed run writes."""
    kill_again_and_again(bench, verb, 7, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("verb", [*STEPS, "ais"])
def test_kill_9_at_many_random_moments(bench, verb):
    """70 kills of each step, 280 in all."""
    kill_again_and_again(bench, verb, 70, seed=2)


def test_the_program_itself_is_killed_and_stopped_and_goes_on(bench):
    """As a user has it, `python -m rdcurve`: SIGKILL, SIGTERM with its own exit code, and the rest of the way."""
    expected = forget(bench, "ais up")
    line = command(bench, "ais up", "--state", "state", "--save-every", "0.005")
    for stop, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 75)):
        before, process = bench.newest_state(), bench.start(*line)
        while process.poll() is None and bench.newest_state() <= before:
            time.sleep(0.002)
        asked = time.monotonic()
        process.send_signal(stop)
        output = process.communicate(timeout=30)[0]
        assert (process.returncode, time.monotonic() - asked < 10) == (code, True), output
    assert "stopped by SIGTERM; the state is saved, run the command again" in output
    assert bench.finish(*line) == 0, bench.log()
    assert results(bench, "ais up") == expected
    assert not list((bench.folder / "state").iterdir())


def signal_and_go_on(bench, verb, number, delay):
    """Exit code 75 within 10 s of the signal, and the next run ends with the right bytes."""
    expected = forget(bench, verb)
    line = command(bench, verb, "--state", "state", "--save-every", "0.005")
    process = bench.fork(*line)
    wait_for_state(bench, process)
    process.join(delay)
    asked = time.monotonic()
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(60)
    assert time.monotonic() - asked < 10
    stopped = process.exitcode == 75
    if stopped:
        assert f"stopped by {signal.Signals(number).name}; the state is saved, run the command again" in bench.log()
        assert bench.newest_state()
    else:  # the signal came when the run was over
        assert process.exitcode == 0, bench.log()
    assert bench.finish(*line) == 0, bench.log()
    if stopped or verb != "prerun":  # which finds its bounds again
        assert ("going on from" in bench.log()) == stopped
    assert results(bench, verb) == expected
    assert_nothing_left(bench, verb)
    shutil.rmtree(bench.folder / "state")
    (bench.folder / "log").unlink()
    return stopped


@pytest.mark.parametrize(
    ("verb", "number"),
    [("prerun", signal.SIGTERM), ("ais up", signal.SIGINT), ("bdmc", signal.SIGUSR1), ("ais up", signal.SIGUSR2)],
)
def test_a_signal_saves_the_state(bench, verb, number):
    """Each signal, each step: exit code 75 at once, the state saved, and the next run goes on to the same bytes."""
    (bench.folder / "log").unlink()
    assert signal_and_go_on(bench, verb, number, delay=0)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_at_many_random_moments(bench, number):
    """36 of each signal, 108 in all, at random moments of every step."""
    rng = random.Random(int(number))
    (bench.folder / "log").unlink()
    verbs = [*STEPS, "ais"] * 9
    stopped = sum(signal_and_go_on(bench, verb, number, delay=rng.uniform(0, 0.1)) for verb in verbs)
    assert stopped >= 18


def test_time_limit(bench):
    """Exit code 75, at most 10 s after the limit, each time a step further; in the end the same bytes."""
    expected = forget(bench, "ais up")
    (bench.folder / "log").unlink()
    line, saved = command(bench, "ais up", "--state", "state", "--time-limit"), [0]
    for _ in range(4):
        start = time.monotonic()
        assert bench.finish(*line, "1e-9") == 75, bench.log()
        assert time.monotonic() - start < 10
        saved.append(bench.newest_state())
        assert saved[-1] > saved[-2]
    assert bench.log().count("stopped by the time limit; the state is saved, run the command again") == 4
    assert bench.finish(*line, "1000") == 0, bench.log()
    assert bench.log().count("going on from") == 4
    assert results(bench, "ais up") == expected
    assert not list((bench.folder / "state").iterdir())


@pytest.mark.parametrize("verb", STEPS)
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--time-limit", "5"], "--time-limit needs --state, to go on from"),
        (
            ["--time-limit", "0", "--state", "state"],
            "--time-limit must be a positive number of seconds, not '0'",
        ),
    ],
)
def test_time_limit_needs_a_place_for_the_state(bench, monkeypatch, capsys, verb, more, message):
    monkeypatch.chdir(bench.folder)
    expected = forget(bench, verb)
    assert refusal(capsys, *command(bench, verb, *more)) == message
    assert expected
    assert not results(bench, verb)
    assert not (bench.folder / "state").exists()


@pytest.mark.parametrize("by", ["the time limit", "SIGTERM"])
def test_a_process_that_waits_for_another_is_stopped(bench, by):
    """A second process on one key leaves at its time limit, or when it is asked to, too."""
    line = command(bench, "ais up", "--state", "state", "--save-every", "0.005")
    forget(bench, "ais up")
    first = bench.fork(*line)
    wait_for_state(bench, first)
    os.kill(first.pid, signal.SIGSTOP)
    second = bench.fork(*line, *(["--time-limit", "0.2"] if by == "the time limit" else []))
    try:
        if by == "SIGTERM":
            deadline = time.monotonic() + 60
            while "another process works on" not in bench.log() and time.monotonic() < deadline:
                time.sleep(0.01)
            os.kill(second.pid, signal.SIGTERM)
        second.join(3)  # the first stands still: else the second would wait on
        assert second.exitcode == 75, bench.log()
        assert f"stopped by {by} while another process worked on the same run" in bench.log()
    finally:
        for process in (second, first):
            process.kill()
            process.join()


def test_eight_processes_on_one_key(bench):
    """All end well; one result, with the right bytes; no state is left and nothing half written."""
    expected = forget(bench, "ais up")
    before = set(os.listdir(bench.folder))
    processes = [bench.fork(*command(bench, "ais up", "--state", "state", "--save-every", "0.01")) for _ in range(8)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 8, bench.log()
    assert results(bench, "ais up") == expected
    assert not list((bench.folder / "state").iterdir())
    assert set(os.listdir(bench.folder)) - before == {"curve.up", "state"}
    assert "another process works on" in bench.log()


def test_processes_that_wait_for_a_run_do_not_repeat_it(bench):
    """Of eight, seven wait for the first: each goes on from its end. Nothing is left."""
    expected = forget(bench, "ais up")
    line = command(bench, "ais up", "--state", "state", "--save-every", "0.005")
    (bench.folder / "log").unlink()
    processes = [bench.fork(*line)]
    wait_for_state(bench, processes[0])
    os.kill(processes[0].pid, signal.SIGSTOP)
    processes += [bench.fork(*line) for _ in range(7)]
    deadline = time.monotonic() + 60
    while bench.log().count("another process works on") < 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # all have said that they wait
    os.kill(processes[0].pid, signal.SIGCONT)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 8, bench.log()
    assert bench.log().count("going on from") == 7
    assert results(bench, "ais up") == expected
    assert not list((bench.folder / "state").iterdir())


def test_a_step_writes_a_handful_of_files(bench):
    """At most a lock, two generations of the state and a temporary file while it runs, whatever the number of saves;
    then its outputs alone."""
    expected = forget(bench, "bdmc")
    before = set(os.listdir(bench.folder))
    process, most = bench.fork(*command(bench, "bdmc", "--state", "state", "--save-every", "0")), 0
    while process.is_alive():
        most = max(most, sum(len(names) for _, _, names in os.walk(bench.folder / "state")))
        time.sleep(0.001)
    assert process.exitcode == 0, bench.log()
    assert most <= 4
    assert results(bench, "bdmc") == expected
    assert set(os.listdir(bench.folder)) - before == {"state", *OUTPUTS["bdmc"]}
    assert not list((bench.folder / "state").iterdir())


def test_the_bounds_that_a_prerun_has_found_are_not_computed_again(bench, monkeypatch):
    """Where a gap is asked for, `bdmc` begins with work of the prerun, and ends without a step of its own."""
    forget(bench, "prerun")
    expected = forget(bench, "bdmc")
    monkeypatch.chdir(bench.folder)
    main(command(bench, "prerun", "--state", "state"))
    assert_nothing_left(bench, "prerun")
    monkeypatch.setattr(ais.Annealing, "__call__", None)
    monkeypatch.setattr(bounds, "trajectory", None)
    main(command(bench, "bdmc", "--state", "state"))
    assert results(bench, "bdmc") == expected
    assert_nothing_left(bench, "bdmc")


def test_bounds_that_miss_the_gap_make_the_run_larger(bench, monkeypatch):
    """The trials are told that 10 temperatures do; the bounds refuse them. Stopped often, it is the same run."""
    tried = Size(10, True, (Trial(10, 0.1, 0.0, 0.1, 0.0),))
    monkeypatch.setattr(prerun, "size_for_gap", lambda *args, **kwargs: tried)
    monkeypatch.chdir(bench.folder)
    bench.entry.update(gap=1.5, beta_max=100.0)
    bench.params["prerun"].update(max_temperatures=1000)
    bench.save()
    main(command(bench, "prerun"))
    expected = results(bench, "prerun")
    tuning, _, facts = load_tuning("tuning", torch.float64)
    sizes = [trial["n_temperatures"] for trial in facts["trials"]]
    assert facts["reached"]
    assert sizes[:2] == [10, 10]
    assert sizes[1:] == sorted(set(sizes[1:]))
    assert sizes[-1] < len(tuning.betas) < 1000
    Path("tuning").unlink()
    for n_stopped in range(100):
        try:
            main(command(bench, "prerun", "--state", "state", "--time-limit", str(0.05 * 1.7**n_stopped)))
            break
        except SystemExit as stop:
            assert stop.code == 75
    assert n_stopped > 3
    assert results(bench, "prerun") == expected
    assert_nothing_left(bench, "prerun")  # nor of the bounds that were missed
    main(command(bench, "bdmc", "--state", "state"))
    assert compare(pd.read_csv("gap.csv"), 1.5).kept is not False


def refusal(capsys, *arguments):
    """The one line that a user sees of a step that fails."""
    with pytest.raises(SystemExit) as error:
        main(list(arguments))
    assert error.value.code == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    start = f"rdcurve {arguments[0]}: error: "
    assert line.startswith(start)
    return line[len(start) :]


def fail_later(monkeypatch, owner, name, code, n):
    """The nth call of a function and all later ones fail; returns how to mend it."""
    original, left = getattr(owner, name), [n]

    def failing(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)
    return lambda: monkeypatch.setattr(owner, name, original)


@pytest.mark.parametrize(
    ("owner", "name", "code"),
    [
        (Path, "write_bytes", errno.ENOSPC),
        (os, "fsync", errno.ENOSPC),
        (os, "fsync", errno.EIO),
        (os, "fsync", errno.EDQUOT),
        (tempfile, "mkstemp", errno.EROFS),
        (tempfile, "mkstemp", errno.EACCES),
        (os, "replace", errno.EROFS),
        (os, "replace", errno.EACCES),
    ],
    ids=lambda value: errno.errorcode.get(value) if isinstance(value, int) else getattr(value, "__name__", value),
)
def test_disk_that_cannot_be_written(bench, monkeypatch, capsys, owner, name, code):
    """The step ends with one line that says why; no half file; the next run goes on from the state of before."""
    monkeypatch.chdir(bench.folder)
    expected, before = forget(bench, "ais up"), set(os.listdir(bench.folder))
    line = command(bench, "ais up", "--state", "state", "--save-every", "0")
    mend = fail_later(monkeypatch, owner, name, code, 15)
    assert os.strerror(code) in refusal(capsys, *line)
    mend()
    (folder,) = (bench.folder / "state").iterdir()
    assert {path.name for path in folder.iterdir()} <= {"lock", "state", "state.previous"}
    assert set(os.listdir(bench.folder)) - before == {"state"}
    (bench.folder / "log").unlink()
    assert bench.finish(*line) == 0, bench.log()
    assert "going on from" in bench.log()
    assert results(bench, "ais up") == expected
    assert not list((bench.folder / "state").iterdir())


@pytest.mark.parametrize("verb", ["ais up", "bdmc"])
def test_disk_that_is_full_when_the_result_is_written(bench, monkeypatch, capsys, verb):
    """Nothing of the result is there, all of the state is: the next run writes the right bytes."""
    monkeypatch.chdir(bench.folder)
    expected = forget(bench, verb)
    before = set(os.listdir(bench.folder))
    line = command(bench, verb, "--state", "state", "--save-every", "1e6")
    mend = fail_later(monkeypatch, os, "fsync", errno.ENOSPC, 0)
    assert "No space left on device" in refusal(capsys, *line)
    mend()
    assert set(os.listdir(bench.folder)) - before == {"state"}
    main(line)
    assert results(bench, verb) == expected
    assert not list((bench.folder / "state").iterdir())


def test_files_that_may_not_grow(bench):
    """A write that the kernel itself cuts short (RLIMIT_FSIZE): one line, nothing half written, and again."""
    expected = forget(bench, "ais up")
    line = command(bench, "ais up", "--state", "state", "--save-every", "0")
    assert bench.finish(*line, largest_file=4096) == 1
    assert "rdcurve ais: error: [Errno 27] File too large" in bench.log()
    assert [path.name for path in (bench.folder / "state").rglob("*") if path.is_file()] == ["lock"]
    assert not results(bench, "ais up")
    assert bench.finish(*line) == 0, bench.log()
    assert results(bench, "ais up") == expected


def test_folder_of_the_state_is_removed_under_the_run(bench):
    """The run goes on and makes it anew; the result is the same."""
    expected = forget(bench, "bdmc")
    process = bench.fork(*command(bench, "bdmc", "--state", "state", "--save-every", "0.1"))
    wait_for_state(bench, process)
    shutil.rmtree(bench.folder / "state", ignore_errors=True)
    process.join(120)
    assert process.exitcode == 0, bench.log()
    assert results(bench, "bdmc") == expected


def change(path, value):
    """A change of one number in params.yaml; `entry` stands for the curve."""

    def apply(bench):
        *above, last = path.split(".")
        place = bench.entry if above[:1] == ["entry"] else bench.params
        for key in above[above[:1] == ["entry"] :]:
            place = place[key]
        place[last] = value
        bench.save()

    return apply


def other_weights(bench):
    loaded = load_decoder(bench.folder / "decoder")
    with torch.no_grad():
        loaded.decoder.output.weight[0, 0] += 1e-6
    facts = {"dataset": "mnist"}
    arguments = {"latent_dim": 3, "n_pixels": 784}
    save_decoder(bench.folder / "decoder", loaded.decoder, architecture="linear", arguments=arguments, facts=facts)


def other_pixel(bench):
    path = bench.folder / "mnist/t10k-images-idx3-ubyte"
    data = bytearray(path.read_bytes())
    data[16] ^= 1
    path.write_bytes(data)


def other_prior(bench):
    bench.params["closed_form"] = {}  # the curve has none under it
    change("entry.prior", {"name": "scale_mixture", "weight": 0.5, "scale": 2.0})(bench)


SAMPLER = {
    "images": change("sampler.n_images", 4),
    "leapfrog": change("sampler.n_leapfrog", 1),
    "jitter": change("sampler.jitter", 0.3),
    "persistence": change("sampler.persistence", 0.4),
    "resampling": change("sampler.resample_below", 0.8),
    "prior": other_prior,
    "distortion": change("entry.distortion.variance", 1.01),
    "recorded": change("entry.n_recorded", 4),
    "weights": other_weights,
    "pixel": other_pixel,
}
PRERUN = {
    name: change(f"prerun.{name}", value)
    for name, value in {
        "n_chains": 8, "seed": 26, "n_rounds": 1, "round_temperatures": 31, "max_temperatures": 101, "gain": 0.2,
        "target_acceptance": 0.7, "smoothing": 5, "metric": "pooled", "n_blocks": 5, "n_starts": 3, "most_starts": 3,
        "n_modes": 3,
        "keep": "envelope",
        "n_hops": 1,
    }.items()
}  # fmt: skip
CHANGES = {
    "prerun": SAMPLER
    | PRERUN
    | {"gap": change("entry.gap", 1.1), "beta_max": change("entry.beta_max", 2.1)}
    | {"chains of BDMC": change("entry.bdmc.n_chains", 4), "images of BDMC": change("entry.bdmc.n_images", 3)},
    "ais up": {name: each for name, each in SAMPLER.items() if name != "images"}  # their tuning is another, too
    | {"chains": change("entry.ais.n_chains", 12), "seed": change("ais.seed", 17)},
    "bdmc": {name: each for name, each in SAMPLER.items() if name not in ("images", "pixel")}
    | PRERUN
    | {
        "chains": change("entry.bdmc.n_chains", 4),
        "betas": change("entry.bdmc.n_betas", 3),
        "simulated": change("entry.bdmc.n_images", 3),
        "seed of bdmc": change("bdmc.seed", 18),
    },
}


@pytest.mark.parametrize("verb", STEPS)
def test_every_change_of_settings_or_files_is_another_run(measured, tmp_path, monkeypatch, capsys, verb):
    """12 to 26 kinds of change, one at a time: none finds the state of the unchanged run, which itself does.

    A time limit that is over at once makes a run save its state after its first step.
    """

    def keys(name, apply):
        bench = measured.copy(tmp_path / name)
        apply(bench)
        monkeypatch.chdir(bench.folder)
        with pytest.raises(SystemExit) as error:
            main(command(bench, verb, "--state", str(tmp_path / "state"), "--time-limit", "1e-9"))
        assert error.value.code == 75, (name, capsys.readouterr().err)
        return {path.name for path in (tmp_path / "state").iterdir()}

    found = keys("unchanged", lambda bench: None)
    for name, apply in CHANGES[verb].items():
        more = keys(name, apply)
        assert len(more) == len(found) + 1, name
        found = more
    assert keys("unchanged again", lambda bench: None) == found
