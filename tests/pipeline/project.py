"""Temporary copies of the project with small settings, in which the real snakemake, dvc and rdcurve run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

__all__ = ["BOTH", "FIGURE3", "ROOT", "Project", "only"]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
FIGURE3 = [
    "fetch@mnist", "train@linear_vae100", "prerun@linear_vae100", "ais@linear_vae100", "bdmc@linear_vae100",
    "exact@linear_vae100", "figure3",
]  # fmt: skip
BOTH = [
    *FIGURE3[:-1], "train@linear_other", "prerun@linear_other", "ais@linear_other", "bdmc@linear_other",
    "exact@linear_other", "figure_both",
]  # fmt: skip


class Project:
    """A copy of the project in a folder of its own."""

    def __init__(self, folder: Path, mirror: Path) -> None:
        self.folder = folder
        self.env = os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(folder / "src"),  # the copy's code, not the installed one
            "RDCURVE_MIRROR": str(mirror),
            "OMP_NUM_THREADS": "1",
            "MPLCONFIGDIR": str(mirror.parent / "matplotlib"),
            "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t",
        }  # fmt: skip
        for variable in ("SNAKEMAKE_PROFILE", "RDCURVE_DEVICE", "SLURM_JOB_ID"):
            self.env.pop(variable, None)

    def run(self, *command: str, ok: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy; its output, stderr included, is in `.stdout`."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=1800,
        )
        if ok and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)} exited {done.returncode}\n{done.stdout[-6000:]}")
        return done

    def snakemake(self, *arguments: str, ok: bool = True, **env: str) -> list[str]:
        """Run snakemake; the stages that DVC really executed, restored ones left out."""
        shutil.rmtree(self.folder / "results/logs", ignore_errors=True)
        self.last = self.run("snakemake", "--cores", "2", *arguments, ok=ok, **env)
        text = "".join(path.read_text() for path in (self.folder / "results/logs").rglob("*.log"))
        return sorted(set(re.findall(r"Running stage '([^']+)'", text)))

    def n_jobs(self, *arguments: str) -> int:
        """Jobs that snakemake would run."""
        text = self.run("snakemake", "--cores", "2", "--dry-run", *arguments).stdout
        found = re.search(r"^total\s+(\d+)", text, re.M)
        if found is None:
            assert "Nothing to be done" in text, text
        return int(found[1]) if found else 0

    def repro(self, *arguments: str, ok: bool = True, **env: str) -> list[str]:
        """Run `dvc repro`; the stages that it really executed."""
        self.last = self.run("dvc", "repro", *arguments, ok=ok, **env)
        return sorted(set(re.findall(r"Running stage '([^']+)'", self.last.stdout)))

    def path(self, name: str) -> Path:
        return self.folder / name

    def bytes(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def edit(self, name: str, old: str, new: str) -> None:
        text = self.path(name).read_text()
        assert old in text, (name, old)
        self.path(name).write_text(text.replace(old, new))

    def set(self, dotted: str, value: object) -> None:
        """Change a setting in params.yaml."""
        params = yaml.safe_load(self.path("params.yaml").read_text())
        *parents, last = dotted.split(".")
        entry = params
        for key in parents:
            entry = entry[key]
        entry[last] = value
        self.path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def copy(self, folder: Path) -> Project:
        """The whole copy again, with cache, time stamps and Snakemake's own records."""
        shutil.copytree(self.folder, folder, symlinks=True)
        twin = Project(folder, Path(self.env["RDCURVE_MIRROR"]))
        return twin

    def clone(self, folder: Path) -> Project:
        """What a stranger gets: git clone of the committed state, published results included."""
        self.run("git", "clone", "--quiet", str(self.folder), str(folder))
        return Project(folder, Path(self.env["RDCURVE_MIRROR"]))

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "state")


def only(params: dict, over: dict) -> dict:
    """`over` laid over `params`; of models, curves, figures and the like only those that it names are kept."""
    merged = merge(params, over)
    for section in (
        "models", "compositions", "curves", "repeats", "closed_form", "variational", "illustrations", "figures",
        "claims",
    ):  # fmt: skip
        merged[section] = {name: merged[section][name] for name in over.get(section, {})}
    merged["likelihood"] = {**params["likelihood"], "curves": over.get("likelihood", {}).get("curves", {})}
    for figure, entry in over["figures"].items():  # what it draws is given anew
        merged["figures"][figure] |= {key: entry[key] for key in ("curves", "panels", "variational") if key in entry}
    return merged


def merge(base: dict, over: dict) -> dict:
    return base | {
        key: merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in over.items()
    }
