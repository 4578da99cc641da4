"""One small project, built once; tests change copies of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from project import BIN, ROOT, Project, only

SMALL = Path(__file__).with_name("small.yaml")


@pytest.fixture(scope="session")
def mirror(tmp_path_factory) -> Path:
    """The data sets: from the mirror that is set, else fetched once."""
    if os.environ.get("RDCURVE_MIRROR"):
        return Path(os.environ["RDCURVE_MIRROR"]).resolve()
    folder = tmp_path_factory.mktemp("mirror")
    for name in ("mnist", "cifar10"):
        subprocess.run([BIN / "rdcurve", "fetch", name, "--output", folder / name], check=True)
    return folder


@pytest.fixture(scope="session")
def blank(tmp_path_factory, mirror) -> Project:
    """The project with small settings, nothing run yet."""
    return laid_over(SMALL, tmp_path_factory.mktemp("project") / "blank", mirror)


def laid_over(settings: Path, folder: Path, mirror: Path) -> Project:
    """A copy of the project with other settings, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        source = ROOT / name
        if name.startswith("results/") or name == "dvc.lock" or not (source.exists() or source.is_symlink()):
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, folder / name, follow_symlinks=False)
    project = Project(folder, mirror)
    params = only(yaml.safe_load((ROOT / "params.yaml").read_text()), yaml.safe_load(settings.read_text()))
    for name in params["closed_form"]:
        params["closed_form"][name] = params["curves"][name]
    project.path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    project.run("python", "workflow/lib/stages.py", PYTHONPATH=f"{folder / 'src'}:{folder / 'workflow/lib'}")
    project.run("git", "init", "--quiet")
    project.commit()
    return project


@pytest.fixture(scope="session")
def built(tmp_path_factory, blank) -> Project:
    """Scenario 1's outcome: figure3 made by snakemake, pushed to the published remote, committed."""
    project = blank.copy(tmp_path_factory.mktemp("built") / "built")
    project.first_run = project.snakemake("figure3")
    project.run("dvc", "push", "--quiet", "figure3", "--with-deps")
    project.commit()
    return project


@pytest.fixture
def project(built, tmp_path) -> Project:
    """A copy of the built project, to be changed by a test."""
    return built.copy(tmp_path / "project")
