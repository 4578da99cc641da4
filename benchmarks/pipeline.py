"""What the pipeline itself costs: `snakemake figure3` with nothing to do, and DVC around a job.

Run in the project's environment on a committed tree whose results are published: python benchmarks/pipeline.py
Writes benchmarks/pipeline.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from common import machine

ROOT = Path(__file__).parents[1]
REPEATS = 5


def seconds(command: list[str], folder: Path, env: dict[str, str]) -> float:
    """Median wall time of a command over the repeats, after one that is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.monotonic()
        subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
        times.append(time.monotonic() - start)
    return statistics.median(times[1:])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "clone"
        env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(clone / "src"),
        }
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        subprocess.run(["dvc", "pull", "--quiet", "figure3"], cwd=clone, env=env, check=True)
        nothing = ["snakemake", "figure3"]
        figures = {"nothing to do, 7 stages (s)": seconds(nothing, clone, env)}

        params = yaml.safe_load((clone / "params.yaml").read_text())
        for index in range(65):  # three stages each
            params["curves"][f"curve{index}"] = params["curves"]["linear_vae100"]
        (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        figures["nothing to do, 202 stages (s)"] = seconds(nothing, clone, env)
        subprocess.run(["git", "checkout", "--quiet", "params.yaml"], cwd=clone, check=True)

        subprocess.run(["dvc", "pull", "--quiet", "figure3", "--with-deps", "--allow-missing"], cwd=clone, env=env)
        folders = "--curves results/curves --exact results/exact --bdmc results/bdmc"
        bare = f"rdcurve plot figure3 --params params.yaml {folders}"
        alone = seconds([*bare.split(), "--output", "/tmp/figure3.svg"], clone, env)
        job = seconds(["dvc", "repro", "--single-item", "--force", "figure3"], clone, env)
        figures |= {"a job alone (s)": alone, "the same by DVC (s)": job, "DVC's share (s)": job - alone}

    print("\n".join(f"{what:32s} {value:6.2f}" for what, value in figures.items()))
    (ROOT / "benchmarks/pipeline.json").write_text(json.dumps(machine() | figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
