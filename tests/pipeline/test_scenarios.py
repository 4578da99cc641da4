"""What people do with the pipeline, done with the real programs in temporary copies of the project."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import pytest
import yaml
from project import BOTH, FIGURE3

pytestmark = pytest.mark.pipeline

AFTER_TRAIN = [stage for stage in FIGURE3 if not stage.startswith("fetch")]


def test_1_from_nothing_and_again(built):
    assert built.first_run == sorted(FIGURE3)
    for suffix in ("svg", "pdf", "png"):
        assert len(built.bytes(f"results/figures/figure3.{suffix}")) > 5000
    assert built.n_jobs("figure3") == 0
    start = time.monotonic()
    assert built.snakemake("figure3") == []
    print(f"figure3 with nothing to do: {time.monotonic() - start:.1f} s")
    assert "Nothing to be done" in built.last.stdout
    assert built.repro("figure3") == []


def test_2_and_3_change_one_model_by_snakemake_then_take_it_back(project):
    before = project.bytes("results/figures/figure3.svg")
    lock = project.bytes("dvc.lock")
    project.snakemake("figure_both")
    project.set("models.linear_vae100.learning_rate", 0.002)
    assert project.snakemake("figure3", "figure_both") == sorted([*AFTER_TRAIN, "figure_both"])
    assert project.bytes("results/figures/figure3.svg") != before
    project.set("models.linear_vae100.learning_rate", 0.001)
    assert project.snakemake("figure3", "figure_both") == []
    assert project.bytes("results/figures/figure3.svg") == before
    assert project.n_jobs("figure3", "figure_both") == 0
    project.run("git", "checkout", "--quiet", "params.yaml")
    for stage in FIGURE3:  # dvc.lock says what it said
        assert stage in lock.decode()
    assert project.repro("figure3") == []


def test_2_and_3_change_one_model_by_dvc_then_take_it_back(project):
    before = project.bytes("results/figures/figure3.svg")
    project.set("models.linear_vae100.learning_rate", 0.002)
    assert project.repro("figure3") == sorted(AFTER_TRAIN)
    assert project.n_jobs("figure3") == 0
    project.set("models.linear_vae100.learning_rate", 0.001)
    assert project.repro("figure3") == []
    assert project.bytes("results/figures/figure3.svg") == before
    assert project.snakemake("figure3") == []


def test_4_fresh_clone_pull_and_redraw(built, tmp_path):
    clone = built.clone(tmp_path / "clone")
    clone.run("dvc", "pull", "--quiet", "figure3")
    assert clone.path("results/figures/figure3.svg").exists()
    assert not clone.path("results/curves").exists()
    assert clone.snakemake("figure3") == []
    assert "Nothing to be done" in clone.last.stdout
    clone.set("plot.dpi", 60)
    assert clone.snakemake("figure3") == ["figure3"]
    assert clone.path("results/curves/linear_vae100.safetensors").exists()  # brought from the remote
    assert not clone.path("results/data/mnist").exists()


def test_4_changed_sampler_in_a_fresh_clone_fetches_what_it_needs(built, tmp_path):
    clone = built.clone(tmp_path / "clone")
    clone.run("dvc", "pull", "--quiet", "figure3")
    clone.set("ais.seed", 9)
    ran = clone.snakemake("figure3")
    # the step sizes and the decoder came from the remote, the images from where they were published
    assert ran == sorted(["ais@linear_vae100", "exact@linear_vae100", "figure3"])
    assert clone.path("results/data/mnist").exists()
    assert clone.last.stdout.count("rule train:") == 0  # not even as a job with nothing to do


def test_4_time_stamps_do_not_matter(project):
    rng = random.Random(1)
    shutil.rmtree(project.path("results/logs"), ignore_errors=True)  # gone if the same worker ran scenario 1
    files = [path for path in project.path("results").rglob("*") if path.is_file()]
    files += [path for path in project.path("src").rglob("*.py")]
    for _ in range(3):
        for path in files:
            stamp = 1_500_000_000 + rng.randrange(200_000_000)
            os.utime(path, (stamp, stamp))
        shutil.rmtree(project.path(".snakemake"))
        assert project.snakemake("figure3") == []
        assert project.n_jobs("figure3") == 0


def test_4_dates_to_come_hide_no_change(built, tmp_path):
    """Outputs that were copied from a machine whose clock is ahead: a change is seen, and its job is not refused."""
    clone = built.clone(tmp_path / "clone")
    clone.run("dvc", "pull", "--quiet", "figure3", "--with-deps", "--allow-missing")
    later = time.time() + 2 * 86400
    for path in clone.path("results").rglob("*"):
        if path.is_file():
            os.utime(path, (later, later))
    assert clone.n_jobs("figure3") == 0
    clone.set("plot.dpi", 60)
    assert clone.n_jobs("figure3") > 0
    for path in clone.path("results/curves").iterdir():
        os.utime(path, (later, later))
    assert clone.snakemake("figure3") == ["figure3"]
    assert clone.n_jobs("figure3") == 0


def test_5_two_figures_that_share_a_model_in_parallel(blank, tmp_path):
    project = blank.copy(tmp_path / "project")
    start = project.run("snakemake", "--cores", "2", "figure3", "figure_both").stdout
    assert start.count("rule train:") == 2
    text = "".join(path.read_text() for path in project.path("results/logs").rglob("*.log"))
    assert sorted(re.findall(r"Running stage '([^']+)'", text)) == sorted({*FIGURE3, *BOTH})  # each once
    assert project.n_jobs("figure3", "figure_both") == 0
    assert "figure3" not in project.run("dvc", "status", "figure3", "figure_both").stdout


def test_6_a_step_that_fails(project):
    project.set("models.linear_vae100.learning_rate", 1.0e300)
    project.snakemake("figure3", ok=False)
    assert project.last.returncode != 0
    assert "training diverged" in project.last.stdout  # the log of the failed step is shown
    assert not project.path("results/figures/figure3.svg").exists() or project.n_jobs("figure3") > 0
    project.set("models.linear_vae100.learning_rate", 0.001)
    assert project.snakemake("figure3") == []


def test_6_a_step_killed_half_way(project, tmp_path):
    project.set("curves.linear_vae100.n_temperatures", 4000)
    project.set("closed_form.linear_vae100.n_temperatures", 4000)
    running = subprocess.Popen(
        ["snakemake", "--cores", "2", "results/curves/linear_vae100.safetensors"],
        cwd=project.folder, env=project.env, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
    )  # fmt: skip
    pid = wait_for_process(f"rdcurve ais linear_vae100.*{re.escape('results/state')}", project, running)
    time.sleep(2)
    subprocess.run(["kill", "-KILL", str(pid)], check=True)
    assert running.wait(timeout=60) != 0
    for folder in ("results/curves",):
        left = list(project.path(folder).glob("*")) if project.path(folder).exists() else []
        assert not [path for path in left if path.suffix in (".safetensors", ".json", ".csv")]
    ran = project.snakemake("results/curves/linear_vae100.safetensors")
    assert ran == ["ais@linear_vae100"]
    assert project.n_jobs("results/curves/linear_vae100.safetensors") == 0


def wait_for_process(pattern, project, running):
    """The pid of the rdcurve process itself, in this project."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and running.poll() is None:
        found = subprocess.run(["pgrep", "-f", f"python.*{pattern}"], capture_output=True, text=True).stdout.split()
        for pid in map(int, found):
            try:
                if os.readlink(f"/proc/{pid}/cwd") == str(project.folder):
                    return pid
            except OSError:
                pass
        time.sleep(0.1)
    raise AssertionError("the step never started")


def test_7_edits_rerun_what_they_can_change_and_no_more(project):
    project.path("README.md").write_text("edited\n")
    project.path("tests/problems.py").write_text("# edited\n")
    assert project.n_jobs("figure3") == 0
    assert project.repro("figure3") == []
    project.edit("src/rdcurve/plot.py", "_BAND = 2", "_BAND = 1")
    assert project.snakemake("figure3") == ["figure3"]
    project.edit("src/rdcurve/sampler/hmc.py", '"""Hamiltonian', '"""A Hamiltonian')
    # an edited docstring of the sampler reruns the sampler; its result is the same, so nothing after it runs
    assert project.snakemake("figure3") == sorted(["prerun@linear_vae100", "ais@linear_vae100", "bdmc@linear_vae100"])


def test_8_dvc_commands(project):
    assert "up to date" in project.run("dvc", "status", "figure3").stdout
    assert "train@linear_vae100" in project.run("dvc", "dag", "figure3").stdout
    project.snakemake("figure_both")
    text = json.dumps(json.loads(project.run("dvc", "metrics", "show", "--json").stdout))
    for name in ("gap_max", "rate_se_chains_max", "rate_difference_max_in_standard_errors"):
        assert name in text
    project.set("ais.seed", 9)
    changed = json.loads(project.run("dvc", "params", "diff", "--json").stdout)
    assert changed["params.yaml"]["ais.seed"] == {"old": 7, "new": 9, "diff": 2}
    shown = project.run("dvc", "plots", "show", "--out", "plots").stdout
    assert "index.html" in shown
    assert "distortion" in project.path("plots/index.html").read_text()


@pytest.mark.parametrize("what", ["params", "code"])
def test_9_settings_or_code_changed_while_a_step_runs(project, what):
    for section in ("curves", "closed_form"):
        project.set(f"{section}.linear_vae100.n_temperatures", 8000)
    running = subprocess.Popen(
        ["dvc", "repro", "prerun@linear_vae100"],
        cwd=project.folder, env=project.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for_process("rdcurve prerun linear_vae100", project, running)
    time.sleep(4)  # past the imports
    assert running.poll() is None
    if what == "params":
        project.set("prerun.gain", 0.31)
    else:
        project.edit("src/rdcurve/sampler/hmc.py", "0.5 * step_size * force", "0.49 * step_size * force")
    output = running.communicate(timeout=120)[0]
    assert running.returncode != 0
    assert "changed while this step ran" in output
    assert not project.path("results/step_sizes/linear_vae100.safetensors").exists()
    assert project.repro("prerun@linear_vae100") == ["prerun@linear_vae100"]


def test_10_results_computed_elsewhere(built, blank, project, tmp_path):
    """Step commands on a machine without Snakemake and DVC, outputs copied in, one documented command."""
    project.set("bdmc.seed", 80)
    elsewhere = blank.copy(tmp_path / "elsewhere")
    shutil.copy(project.path("params.yaml"), elsewhere.path("params.yaml"))
    for folder in ("data", "decoders", "step_sizes"):
        shutil.copytree(project.path(f"results/{folder}"), elsewhere.path(f"results/{folder}"))
    elsewhere.run(
        "rdcurve", "bdmc", "linear_vae100", "--params", "params.yaml",
        "--decoder", "results/decoders/linear_vae100.safetensors", "--data", "results/data/mnist",
        "--step-sizes", "results/step_sizes/linear_vae100.safetensors",
        "--output", "results/bdmc/linear_vae100.csv", "--gap", "results/bdmc/linear_vae100.json",
    )  # fmt: skip
    for name in ("csv", "json"):
        shutil.copy(elsewhere.path(f"results/bdmc/linear_vae100.{name}"), project.path("results/bdmc/"))
    project.run("dvc", "commit", "--force", "bdmc@linear_vae100")
    # a prerun may have to bound a gap, so settings of BDMC are its own; it gives the same, and nothing else runs
    assert project.snakemake("figure3") == ["figure3", "prerun@linear_vae100"]
    assert project.n_jobs("figure3") == 0


def test_11_without_dvc_cache_the_step_runs(project):
    """A figure whose record is fresh but whose files are in no cache and no remote is made again."""
    shutil.rmtree(project.path(".dvc/cache"))
    shutil.rmtree(project.path("results/published"))
    for folder in ("figures", "curves", "exact", "bdmc", "step_sizes", "decoders", "data"):
        shutil.rmtree(project.path(f"results/{folder}"))
    project.snakemake("figure3")
    assert project.path("results/figures/figure3.svg").exists()
    assert project.n_jobs("figure3") == 0


def test_12_cuda_where_there_is_none(project):
    project.set("models.linear_vae100.learning_rate", 0.002)
    start = time.monotonic()
    project.snakemake("figure3", ok=False, RDCURVE_DEVICE="cuda", CUDA_VISIBLE_DEVICES="")
    assert project.last.returncode != 0
    assert "device 'cuda' was asked for" in project.last.stdout
    assert time.monotonic() - start < 60


def test_unknown_targets_and_settings_are_named(project):
    wrong = project.run("snakemake", "--cores", "1", "figure33", ok=False)
    assert wrong.returncode != 0
    assert "unknown target 'figure33'; legal: all, claims, likelihood, " in wrong.stdout
    project.set("ais.n_chain", 9)
    for command in (["snakemake", "--cores", "1", "figure3"], ["dvc", "repro", "figure3"]):
        refused = project.run(*command, ok=False)
        assert refused.returncode != 0
        assert "unknown key 'n_chain'; legal keys: n_chains, most_chains, seed" in refused.stdout, refused.stdout


def test_settings_from_elsewhere_are_refused(project):
    """Commands and DVC read params.yaml: what was measured with it would pass for what was asked for."""
    project.path("other.yaml").write_text("ais: {n_chains: 9}\n")
    for more in (["--config", "ais={n_chains: 9}"], ["--configfile", "other.yaml"]):
        refused = project.run("snakemake", "-n", "figure3", *more, ok=False)
        assert refused.returncode != 0
        assert "settings are those of params.yaml alone" in refused.stdout, refused.stdout
    assert project.run("snakemake", "-n", "figure3", "--configfile", "params.yaml").returncode == 0


def test_a_figure_that_dvc_does_not_know_of_is_refused(project):
    """Else a curve added to a figure would change nothing that DVC sees, and the old picture pass for fresh."""
    figure = yaml.safe_load(project.path("params.yaml").read_text())["figures"]["figure3"]
    project.set("figures.figure4", figure)
    project.snakemake("figure3", ok=False)
    assert "dvc.yaml does not have the figures and claims of params.yaml: make stages" in project.last.stdout
    project.run("python", "workflow/lib/stages.py", PYTHONPATH=f"{project.path('src')}:{project.path('workflow/lib')}")
    assert project.snakemake("figure3") == []


def test_interrupted_head_goes_on(project):
    """Ctrl-C of snakemake: what ended is recorded, the next run does the rest."""
    project.set("models.linear_vae100.learning_rate", 0.002)
    running = subprocess.Popen(
        ["snakemake", "--cores", "2", "figure3"],
        cwd=project.folder, env=project.env, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
    )  # fmt: skip
    wait_for_process("rdcurve prerun", project, running)
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=120) != 0
    ran = project.snakemake("figure3")
    assert "train@linear_vae100" not in ran
    assert "figure3" in ran
