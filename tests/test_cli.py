"""The command line as a user types it: in a process of its own, with its files and its exit code."""

import json
import math
import re
import shutil
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
import torch
from problems import DTYPE, curved_decoder, quadrature, threshold
from steps import ROOT, Bench

from rdcurve import settings
from rdcurve.cli import main, sections
from rdcurve.commands import bdmc
from rdcurve.commands.gaps import read_gaps
from rdcurve.commands.provenance import check
from rdcurve.curve import RDCurve
from rdcurve.device import resolve
from rdcurve.files import FileError, save_arrays
from rdcurve.models.checkpoint import save_decoder
from rdcurve.models.linear import Decoder
from rdcurve.sampler.bdmc import BDMCGap


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path)


def refused(capsys, *arguments):
    """Exit code and the one line that a user sees."""
    with pytest.raises(SystemExit) as error:
        main(list(arguments))
    line = capsys.readouterr().err.strip().splitlines()[-1]
    return error.value.code, line


def test_steps_in_order(bench, capsys):
    for verb in ("prerun", "ais", "bdmc", "exact"):
        main(bench.command(verb))
    assert "Rate-distortion curve (upper bound): 4 images, 10 beta" in capsys.readouterr().out
    curve, exact = RDCurve.load("curve"), RDCurve.load("exact")
    assert np.array_equal(curve.beta, exact.beta)
    assert curve.facts["settings"] == bench.params["curves"]["linear_vae100"]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"name": "vae10"}, "decoder: is vae10, but prerun linear_vae100 is of the model linear_vae100"),
        ({"seed": 3}, "decoder: trained with seed = 3, but models.linear_vae100.seed is 6 in params.yaml"),
        ({"hidden": [8]}, "trained with hidden = [8], but models.linear_vae100.hidden is not given in params.yaml"),
        ({}, ""),
    ],
)
def test_a_checkpoint_of_another_model_or_settings_is_refused(bench, capsys, facts, message):
    settings = bench.params["models"]["linear_vae100"] | {k: v for k, v in facts.items() if k != "name"}
    arguments = {"latent_dim": 3, "n_pixels": 784}
    facts = {"name": "linear_vae100", "dataset": "mnist", "settings": settings} | facts
    save_decoder("decoder", Decoder(**arguments).double(), architecture="linear", arguments=arguments, facts=facts)
    if message:
        code, line = refused(capsys, *bench.command("prerun"))
        assert code == 1
        assert message in line
        assert not (bench.folder / "tuning").exists()
    else:
        main(bench.command("prerun"))


def test_a_tuning_or_a_curve_of_another_curve_is_refused(bench, capsys):
    """Of the same model, schedule and size: nothing but the name tells them apart."""
    for verb in ("prerun", "ais"):
        main(bench.command(verb))
    bench.params["curves"]["other"] = bench.params["closed_form"]["other"] = bench.params["curves"]["linear_vae100"]
    bench.save()
    for verb, path in (("ais", "tuning"), ("bdmc", "tuning"), ("exact", "curve")):
        command = bench.command(verb)
        command[1] = "other"
        line = refused(capsys, *command)[1]
        assert f"{path}: is of curve linear_vae100, but {verb} other asks there for curve other" in line


def provenance(params, verb, name, **folders):
    check(Namespace(verb=verb, name=name, **folders), params)


@pytest.fixture
def shelf(tmp_path):
    """Curves of figure 10, variational ones of figure 8a and checkpoints, that say what the pipeline's do."""
    params = settings.read(ROOT / "params.yaml")
    for kind in ("curves", "variational", "decoders"):
        (tmp_path / kind).mkdir()
    for name, entry in params["repeats"].items():
        save_arrays(tmp_path / f"curves/{name}.safetensors", "c", {}, {"curve": entry["curve"], "seed": entry["seed"]})
    for name in params["curves"]:
        seed = settings.section(params, "ais", name)["seed"]
        save_arrays(tmp_path / f"curves/{name}.safetensors", "c", {}, {"curve": name, "seed": seed})
    for name, entry in params["variational"].items():
        facts = {"curve": entry["curve"], "variational": entry}
        save_arrays(tmp_path / f"variational/{name}.safetensors", "c", {}, facts)
    for name, entry in params["models"].items():
        save_arrays(tmp_path / f"decoders/{name}.safetensors", "d", {}, {"name": name, "settings": entry})
    return tmp_path, params


@pytest.mark.parametrize(
    ("verb", "name", "taken", "other", "message"),
    [
        (
            "plot",
            "figure5",
            "curves/vae2",
            "curves/gan2",
            "is of curve gan2, but plot figure5 asks there for curve vae2",
        ),
        ("claims", "figure5", "curves/vae2", "curves/gan2", "is of curve gan2, but claims figure5 asks there"),
        ("likelihood", "", "curves/vae2", "curves/gan2", "is of curve gan2, but likelihood asks there for curve vae2"),
        (
            "plot",
            "figure10",
            "curves/vae10_seed11",
            "curves/vae10",
            "is of seed 7, but plot figure10 asks there for seed 11",
        ),
        (
            "claims",
            "figure8",
            "variational/gan2_amortised",
            "variational/gan2_per_image",
            "trained with method = per_image, but variational.gan2_amortised.method is amortised in params.yaml",
        ),
        (
            "plot",
            "figure8a",
            "variational/gan2_amortised",
            "variational/gan10_amortised",
            "trained with curve = gan10, but variational.gan2_amortised.curve is gan2 in params.yaml",
        ),
        ("plot", "figure11", "decoders/vae2", "decoders/vae10", "is vae10, but plot figure11 is of the model vae2"),
        ("likelihood", "", "decoders/vae2", "decoders/vae10", "is vae10, but likelihood is of the model vae2"),
    ],
)
def test_files_in_each_others_place_are_refused(shelf, verb, name, taken, other, message):
    folder, params = shelf
    folders = {kind: folder / kind for kind in ("curves", "variational")}
    if name in ("figure11", ""):
        folders["decoders"] = folder / "decoders"
    provenance(params, verb, name, **folders)
    shutil.copy(folder / f"{other}.safetensors", folder / f"{taken}.safetensors")
    with pytest.raises(FileError, match=re.escape(f"{folder / taken}.safetensors: {message}")):
        provenance(params, verb, name, **folders)


def test_own_decoder_against_quadrature(tmp_path):
    """`rdcurve measure` on a nonlinear 2-D decoder in a file of the user's. False-fail rate 1e-6; detects 0.5 nats."""
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def decoder(z):\n"
        "    a, b = z[..., 0], z[..., 1]\n"
        "    return torch.stack([torch.tanh(a + 0.5 * b**2), torch.sin(1.5 * b) + 0.3 * a, 0.5 * a * b], dim=-1)\n"
    )
    x = torch.tensor([[0.5, -0.4, 0.2], [-0.8, 0.9, 0.1]], dtype=DTYPE)
    np.save(tmp_path / "x.npy", x.numpy())
    done = subprocess.run(
        [
            sys.executable, "-m", "rdcurve", "measure", "mine:decoder", "--data", "x.npy", "--latent-dim", "2",
            "--beta-max", "10", "--temperatures", "300", "--chains", "100", "--recorded", "15",
            "--output", "curve.safetensors", "--figure", "curve.png",
        ],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 images, 15 beta" in done.stdout
    curve = RDCurve.load(tmp_path / "curve.safetensors")
    exact = quadrature(curved_decoder, x, curve.beta)
    for quantity, truth in zip(("rate", "distortion", "log_z"), exact, strict=True):
        error = np.abs(curve.mean(quantity) - truth.mean(1)) / curve.standard_error(quantity, "chains")
        assert error.max() < 1.2 * threshold(45)
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_own_decoder_may_be_stopped_and_goes_on(tmp_path):
    """SIGTERM: exit code 75, the state beside the output; the same command again ends with the bytes of a whole run."""
    (tmp_path / "mine.py").write_text("def decoder(z):\n    return (2 * z).tanh()\n")
    np.save(tmp_path / "x.npy", np.full((3, 2), 0.3))

    def command(output):
        return [
            sys.executable, "-m", "rdcurve", "measure", "mine:decoder", "--data", "x.npy", "--latent-dim", "2",
            "--beta-max", "10", "--temperatures", "400", "--simulated", "0", "--output", output,
        ]  # fmt: skip

    first = subprocess.Popen(command("cut"), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    state = tmp_path / "cut.state"
    deadline = time.monotonic() + 60
    while len(list(state.glob("*"))) < 2 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)  # the second folder is that of the formal run
    first.terminate()
    assert first.wait(10) == 75, first.stderr.read()
    assert not (tmp_path / "cut").exists() and list(state.glob("*/state"))
    again = subprocess.run(command("cut"), cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0 and "going on from" in again.stderr, again.stderr
    assert not state.exists()
    subprocess.run(command("whole"), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "taken/c.safetensors"], "taken"),
        (["--figure", "taken/c.png"], "taken"),
        (["--data", "x.npz"], "x.npz: an archive of arrays; give one array, .npy"),
    ],
)
def test_own_decoder_with_no_place_for_its_curve_is_refused_before_the_work(tmp_path, options, message):
    """A file stands where the folder should be; a million temperatures would never end."""
    (tmp_path / "mine.py").write_text("def decoder(z):\n    return 2 * z\n")
    (tmp_path / "taken").write_text("")
    np.save(tmp_path / "x.npy", np.ones((2, 2)))
    np.savez(tmp_path / "x.npz", x=np.ones((2, 2)))
    done = subprocess.run(
        [
            sys.executable, "-m", "rdcurve", "measure", "mine:decoder", "--data", "x.npy", "--latent-dim", "2",
            "--beta-max", "10", "--temperatures", "1000000", "--output", "c.safetensors", *options,
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("c.*"))


def test_changed_code_is_noticed(bench, monkeypatch):
    """DVC takes hashes after a step: a module edited meanwhile would be recorded for the old result."""
    from rdcurve.commands import guard

    watch = guard.Guard(lambda: {"a": 1})
    watch.check()
    monkeypatch.setattr(guard, "_digest", lambda path: b"other")
    with pytest.raises(guard.Changed, match="changed while this step ran"):
        watch.check()


def test_code_of_another_clone_is_refused(bench, capsys):
    (bench.folder / "src/rdcurve").mkdir(parents=True)
    code, line = refused(capsys, *bench.command("prerun"))
    assert code == 1
    assert "but this pipeline tracks" in line


@pytest.mark.parametrize(
    ("break_it", "verb", "message"),
    [
        (lambda b: b.params.update(smapler={}) or b.save(), "prerun", "unknown key 'smapler'; legal keys: datasets"),
        (lambda b: (b.folder / "decoder").unlink(), "prerun", "decoder: no such file"),
        (lambda b: (b.folder / "decoder").write_bytes(b"x" * 99), "prerun", "decoder: not a readable rdcurve decoder"),
        (lambda b: (b.folder / "params.yaml").unlink(), "prerun", "params.yaml: no such file"),
        (lambda b: (b.folder / "tuning").write_bytes(b"x"), "ais", "tuning: not a readable rdcurve tuning"),
        (lambda b: (b.folder / "curve").write_bytes(b""), "exact", "curve: not a readable rdcurve curve"),
        (lambda b: (b.folder / "mnist/t10k-images-idx3-ubyte").unlink(), "ais", "holds neither MNIST nor CIFAR-10"),
    ],
    ids=["params", "no decoder", "bad decoder", "no params", "bad tuning", "bad curve", "no data"],
)
def test_bad_files_are_one_clear_line(bench, capsys, break_it, verb, message):
    break_it(bench)
    before = {path: path.read_bytes() for path in bench.folder.iterdir() if path.is_file()}
    code, line = refused(capsys, *bench.command(verb))
    assert code == 1
    assert message in line
    assert before == {path: path.read_bytes() for path in bench.folder.iterdir() if path.is_file()}


def test_unknown_names_list_the_known(bench, capsys):
    for section, name in (("curves", "linear_vae100"), ("figures", "figure3")):
        bench.params[section]["another"] = bench.params[section][name]
    bench.save()
    command = bench.command("prerun")
    command[1] = "vae11"
    message = refused(capsys, *command)[1]
    assert message.endswith("curves has no 'vae11'; it has another, linear_vae100")
    plot = ["plot", "figure33", "--params", "params.yaml", *(f"--{o}=x" for o in ("curves", "exact", "bdmc", "output"))]
    message = refused(capsys, *plot)[1]
    assert message.endswith("figures has no 'figure33'; it has another, figure3")


@pytest.mark.parametrize(
    ("dataset", "message"), [("mnist", "it must return (3, 2, 784)"), ("cifar10", "trained on cifar10")]
)
def test_decoder_that_does_not_fit_the_data(bench, capsys, dataset, message):
    arguments = {"latent_dim": 3, "n_pixels": 100}
    decoder = Decoder(**arguments).double()
    save_decoder("decoder", decoder, architecture="linear", arguments=arguments, facts={"dataset": dataset})
    assert message in refused(capsys, *bench.command("prerun"))[1]


def test_step_sizes_of_another_schedule_are_refused(bench, capsys):
    main(bench.command("prerun"))
    bench.params["curves"]["linear_vae100"]["n_temperatures"] = 80
    bench.save()
    for verb in ("ais", "bdmc"):
        assert "of 60 temperatures, where params.yaml asks for 80" in refused(capsys, *bench.command(verb))[1]


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_cuda_convolves_in_the_same_way_each_time(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    assert resolve(name).type == "cuda"
    assert torch.backends.cudnn.deterministic


@pytest.mark.parametrize("odd", [math.inf, math.nan])
def test_a_gap_that_is_no_number_is_written_whole(tmp_path, odd):
    """The table has it, where claims find it; JSON knows no such number, and metrics of DVC are JSON."""
    beta, lower = torch.tensor([1.0, 9.0]), torch.zeros(2, 3)
    upper = torch.tensor([[0.2, 0.3, 0.4], [odd, 0.3, 0.4]])
    args = Namespace(name="a", output=tmp_path / "a.csv", gap=tmp_path / "a.json", guard=NoGuard())
    bdmc._save(args, BDMCGap(beta, lower, upper, torch.ones(2)), None)
    assert json.loads((tmp_path / "a.json").read_text())["gap_max"] is None
    assert json.loads((tmp_path / "a.json").read_text())["gap_max_beta"] == 9
    assert not np.isfinite(read_gaps(tmp_path / "a.csv")["gap"][1])


class NoGuard:
    def check(self):
        pass


def test_cuda_where_there_is_none(bench, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees 0 CUDA devices" in refused(capsys, *bench.command("prerun", "--device", "cuda"))[1]
    monkeypatch.setenv("RDCURVE_DEVICE", "cuda")
    assert "device 'cuda' was asked for" in refused(capsys, *bench.command("prerun"))[1]
    monkeypatch.setenv("RDCURVE_DEVICE", "tpu")
    assert "legal: auto, cpu, cuda" in refused(capsys, *bench.command("prerun"))[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nomodule:f", "No module named 'nomodule'"),
        ("math:nothing", "math has no 'nothing'"),
        ("math:pi", "not callable"),
        ("math", "not of the form module:name"),
    ],
)
def test_own_decoder_that_cannot_be_found(bench, capsys, name, message):
    np.save("x.npy", np.zeros((2, 3)))
    code, line = refused(
        capsys, "measure", name, "--data", "x.npy", "--latent-dim", "2", "--beta-max", "1", "--output", "c"
    )
    assert (code, message in line) == (1, True), line


def test_help_does_not_load_torch():
    code = "import sys; from rdcurve.cli import _parser; _parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_verb_has_its_sections():
    assert sections("train", "m") == ["training", "models.m"]
    with pytest.raises(KeyError):
        sections("nothing", "m")


def test_a_time_limit_may_come_from_the_environment(bench, monkeypatch):
    """For machines that are lent for minutes: every step that can go on ends in time, and others have no limit."""
    from rdcurve.cli import _parser, _time_limit

    def limit(*more):
        return _time_limit(_parser().parse_args([*bench.command("prerun"), *more]))

    state = ("--state", "state")
    assert limit(*state) is None
    monkeypatch.setenv("RDCURVE_TIME_LIMIT", "500")
    assert limit(*state) == 500.0
    assert limit(*state, "--time-limit", "20") == 20.0
    assert limit() is None  # which keeps no state to go on from
    monkeypatch.setenv("RDCURVE_TIME_LIMIT", "")
    assert limit(*state) is None
    monkeypatch.setenv("RDCURVE_TIME_LIMIT", "soon")
    with pytest.raises(ValueError, match="RDCURVE_TIME_LIMIT must be a positive number of seconds, not 'soon'"):
        limit(*state)
