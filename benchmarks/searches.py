"""How often does a search for modes end in the best one, with hops and without, after as many descents?

Two independent searches at beta_max on the first test images, as a prerun makes them, in one round: many starts that go
downhill once, or few that hop on from minimum to minimum. Per image: the lowest U = beta d - log p of either, and how
many starts ended there. The best known mode is the best of all that is in the file.

Every case is saved; a rerun goes on from there.

    python benchmarks/searches.py --decoders results/decoders --data results/data --models gan2 gan10 aae10
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from common import ROOT, Cells, parser, recipe, show, timed, trained_target

from rdcurve.data.load import images as read_images
from rdcurve.progress import Progress
from rdcurve.sampler.modes import find_modes
from rdcurve.sampler.noise import seed_of

SAME = 1.0  # nats between two values of U that are one mode's


def run(args: argparse.Namespace, model: str, n_starts: int, n_hops: int) -> dict[str, Any]:
    """Both searches: U of the best mode of each, and the hits of each in the best of both, [search][image]."""
    curve = yaml.safe_load((ROOT / "params.yaml").read_text())["curves"][model]
    x = read_images(args.data / curve["dataset"], "test", args.images)
    target, _ = trained_target(args.decoders / f"{model}.safetensors", x)
    prerun, beta = recipe(ROOT / "params.yaml").prerun, float(curve["beta_max"])
    progress, done, potentials = Progress(f"{model}: {n_starts} starts, {n_hops} hops"), 0, []

    def after_step() -> None:
        nonlocal done
        done += 1
        progress(done, 2 * (1 + n_hops) * 60)

    with timed() as clock:
        found = find_modes(
            target,
            beta,
            torch.arange(args.images),
            seeds=[seed_of(prerun.seed, "search", number) for number in range(2)],
            n_starts=n_starts,
            n_hops=n_hops,
            n_modes=prerun.n_modes,
            keep="envelope",
            after_step=after_step,
        )
    for modes in found:
        point = target.at(modes.z[:1])
        potentials.append((beta * point.distortion - point.log_prior)[0])
    return {
        "model": model,
        "beta": beta,
        "starts": n_starts,
        "hops": n_hops,
        "potential": torch.stack(potentials).tolist(),
        "distance": torch.stack([modes.z[0].norm(dim=-1) for modes in found]).tolist(),
        "hits": torch.stack([modes.hits for modes in found]).tolist(),
        "seconds": clock.wall,
        "cpu_seconds": clock.cpu,
    }


def row(case: dict[str, Any], best: np.ndarray) -> dict[str, Any]:
    """One line of the table; `best` [N] is the lowest U that any case has found."""
    potential, hits = np.array(case["potential"]), np.array(case["hits"])
    there = potential <= best + SAME
    excess = (potential.min(0) - best) / case["beta"]
    return {
        "model": case["model"],
        "starts": case["starts"],
        "hops": case["hops"],
        "images found by both": int(there.all(0).sum()),
        "by one": int((there.sum(0) == 1).sum()),
        "sure of them": int(((hits > 0).all(0) & (hits.sum(0) >= 10) & there.all(0)).sum()),
        "of": len(best),
        "share of starts": float((hits.sum(0) * there.any(0)).mean() / (2 * case["starts"])),
        "too much distortion, mean": float(excess.mean()),
        "at most": float(excess.max()),
        "CPU seconds": case["cpu_seconds"],
    }


def main() -> None:
    options = parser(__file__, __doc__)
    options.add_argument("--decoders", type=Path, required=True)
    options.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    options.add_argument("--models", nargs="+", default=["gan2", "gan10", "aae10"])
    options.add_argument("--cases", nargs="+", default=["156x0", "12x12"], help="starts x hops")
    options.add_argument("--images", type=int, default=20)
    args = options.parse_args()
    cells = Cells(args, {"images": args.images})
    for model in args.models:
        for case in args.cases:
            if (name := f"{model} {case}") not in cells.values:
                cells.put(name, run(args, model, *map(int, case.split("x"))))
    models: dict[str, list[dict[str, Any]]] = {}
    for cell in cells.values.values():
        models.setdefault(cell["model"], []).append(cell)
    rows = []
    for cases in models.values():
        best = np.array([case["potential"] for case in cases]).min((0, 1))
        rows += [row(case, best) for case in cases]
    show(rows)
    cells.write(table=rows)


if __name__ == "__main__":
    main()
