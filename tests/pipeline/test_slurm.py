"""Scenario 11: the figure on a real SLURM, with a job cancelled and a job requeued in the middle."""

import re
import subprocess
import time

import pytest
from slurm import cluster, missing

pytestmark = [
    pytest.mark.pipeline,
    pytest.mark.skipif(missing() is not None, reason=f"no SLURM: {missing()}"),
]


@pytest.fixture
def slurm(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("slurm")):
        yield


def jobs(state):
    """Id -> comment of the jobs in a state; the plugin puts the rule's name into the comment."""
    lines = subprocess.run(
        ["squeue", "--noheader", f"--states={state}", "--format=%A %k"], capture_output=True, text=True
    ).stdout.splitlines()
    return {line.split()[0]: line for line in lines if line.strip()}


def catch(rule, head, seconds=300):
    """The id of the running job of a rule."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and head.poll() is None:
        for job, comment in jobs("RUNNING").items():
            if rule in comment:
                return job
        time.sleep(0.2)
    raise AssertionError(f"no job of {rule} was seen running: {jobs('all')}")


def test_11_figure3_on_slurm(slurm, built, blank, tmp_path):
    project = blank.copy(tmp_path / "project")
    # quick status checks; the profile's are for real clusters
    options = [
        "--profile", "workflow/profiles/slurm",
        "--slurm-init-seconds-before-status-checks", "4", "--seconds-between-status-checks", "2",
    ]  # fmt: skip
    head = subprocess.Popen(
        ["snakemake", "figure3", *options],
        cwd=project.folder, env=project.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        cancelled = catch("prerun", head)
        shown = subprocess.run(["scontrol", "show", "job", cancelled], capture_output=True, text=True).stdout
        assert "gres:gpu:1" in shown or "gres/gpu=1" in shown or "gpu:1" in shown, shown
        assert re.search(r"TimeLimit=06:00:00", shown), shown
        assert re.search(r"(MinMemoryNode|mem)=(4000M|4G)", shown), shown
        assert re.search(r"Requeue=1", shown), shown
        subprocess.run(["scancel", cancelled], check=True)
        requeued = catch("ais", head)
        subprocess.run(["scontrol", "requeue", requeued], check=True)
        output = head.communicate(timeout=600)[0]
        assert head.returncode == 0, output[-5000:]
    finally:
        head.kill()
    # equal to the figure that was made without SLURM
    for name in ("curves/linear_vae100.safetensors", "bdmc/linear_vae100.csv", "figures/figure3.svg"):
        assert project.bytes(f"results/{name}") == built.bytes(f"results/{name}"), name
    assert "up to date" in project.run("dvc", "status", "figure3").stdout
    assert project.n_jobs("figure3") == 0
    for rule in ("train", "prerun", "ais", "bdmc"):
        assert list(project.path(f"results/logs/{rule}").glob("*.log")), rule


def test_12_a_gpu_job_without_a_gpu_fails_at_once(slurm, built, tmp_path):
    """SLURM hands out its (fake) GPU; torch sees none; the job says so and does not compute on the CPU."""
    project = built.copy(tmp_path / "project")
    project.set("ais.seed", 9)
    project.snakemake(
        "figure3", "--profile", "workflow/profiles/slurm", "--retries", "0",
        "--slurm-init-seconds-before-status-checks", "4", "--seconds-between-status-checks", "2",
        ok=False, RDCURVE_DEVICE="cuda",
    )  # fmt: skip
    assert project.last.returncode != 0
    assert "device 'cuda' was asked for" in project.last.stdout
