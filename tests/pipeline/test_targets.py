"""Every kind of target at the smallest size, from an empty cache, by the real programs."""

from pathlib import Path

import pytest
import yaml
from conftest import laid_over

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(2400)]

TARGETS = Path(__file__).with_name("targets.yaml")


@pytest.fixture(scope="module")
def targets(tmp_path_factory, mirror):
    project = laid_over(TARGETS, tmp_path_factory.mktemp("targets") / "project", mirror)
    project.first_run = project.snakemake("--keep-going")
    return project


def test_every_target_is_made_and_is_fresh(targets):
    params = yaml.safe_load(targets.path("params.yaml").read_text())
    assert {name.partition("@")[0] for name in targets.first_run} >= {
        "fetch", "train", "compose", "prerun", "ais", "repeat", "bdmc", "variational", "illustrate",
        "scorecard", "likelihood", *params["figures"],
    }  # fmt: skip
    for figure in params["figures"]:
        for suffix in ("svg", "pdf", "png"):
            assert len(targets.bytes(f"results/figures/{figure}.{suffix}")) > 5000, figure
    assert "Seeds overlap" in targets.path("results/claims/scorecard.md").read_text()
    assert "More images say the same" in targets.path("results/claims/scorecard.md").read_text()
    assert "| gan2 | this project | 0.05 |" in targets.path("results/likelihood/likelihood.md").read_text()
    assert targets.n_jobs() == 0
    assert targets.repro() == []


def test_no_gap_where_nothing_can_be_simulated(targets):
    assert targets.path("results/bdmc/vae2_ssim.csv").read_text().splitlines()[0].startswith("beta,lower,upper,gap")
    assert len(targets.path("results/bdmc/vae2_ssim.csv").read_text().splitlines()) == 1


def test_report_is_one_page_with_figures_and_captions(targets):
    targets.run("snakemake", "--report", "report.html")
    page = targets.path("report.html").read_text()
    assert "figure5" in page
    assert "scorecard" in page
    assert "Depth does not help." in page  # the statements beside their verdicts
    assert "Their data are other data" in page  # what log-likelihoods must not be compared without
