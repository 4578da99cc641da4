"""How many gradients buy which BDMC gap: the paper's recipe, a well-tuned long HMC, and the fast recipe.

Data are simulated at several betas of one schedule to the top; every method sees the same data. A budget is the number
of gradients per chain in the formal run to the largest beta (temperatures x leapfrogs); what the prerun costs is given
beside it. The gap of a budget is the largest over the betas of its mean over the images.

    paper  sigmoid schedule, 20 leapfrogs, a running-mean step size per chain, no resampling (recipes.paper)
    tuned  the same schedule and leapfrogs, jitter 0.2, Robbins-Monro step sizes per image
    fast   learned schedule, Gauss-Newton metric, 2 leapfrogs, persistent momentum, groups (the defaults)

Every finished cell is saved; a rerun, also with more budgets, goes on from there.

    python benchmarks/gap_against_gradients.py --decoders results/decoders --models vae10
"""

from __future__ import annotations

import argparse
import hashlib
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from common import ROOT, Cells, Recipe, parser, recipe, show, timed, trained_target, with_betas

from rdcurve.data.load import images as read_images
from rdcurve.progress import Progress
from rdcurve.sampler.bdmc import bdmc, simulate
from rdcurve.sampler.formal import code_digest
from rdcurve.sampler.noise import seed_of
from rdcurve.sampler.prerun import Learned, learn, tune
from rdcurve.sampler.schedule import sigmoid
from rdcurve.sampler.target import Target
from rdcurve.state import Checkpoint, content_key

PUBLISHED = {10: 1.2e6, 100: 32e6}  # gradients per chain, one direction: 60,000 x 20 and 1,600,000 x 20
GAPS = (3.7, 0.5, 0.1)  # nats; the largest published gap is 3.7, that of z = 10 is 0.5
METHODS = ("paper", "tuned", "fast")


def recipe_of(method: str, args: argparse.Namespace) -> Recipe:
    params = ROOT / "params.yaml"
    if method == "fast":
        return recipe(params)
    if method == "paper":  # a step size per chain: as many chains in the prerun
        return recipe(params, "paper", n_chains=args.chains)
    return recipe(
        params,
        "paper",
        n_chains=args.prerun_chains,
        jitter=0.2,
        step_size_rule="robbins_monro",
        target_acceptance=args.tuned_acceptance,
    )


class Bench:
    """One decoder and seed."""

    def __init__(self, args: argparse.Namespace, model: str, seed: int) -> None:
        self.args, self.model, self.seed = args, model, seed
        data = None if args.data is None else read_images(args.data, "test", args.images)
        self.target, self.latent_dim = trained_target(args.decoders / f"{model}.safetensors", data)
        self._learned: Learned | None = None

    def learned(self) -> Learned:
        """The schedule of the fast recipe, on real images as for a curve, else on data simulated at the same betas."""
        if self._learned is None:
            target = self.target
            if self.args.data is None:
                target = self._simulated(*with_betas(sigmoid(1000, max(self.args.betas)), self.args.betas), "schedule")
            fast = recipe_of("fast", self.args)
            show_progress = Progress(f"{self.model}: learning a schedule")
            self._learned = learn(
                target, max(self.args.betas), fast.kernel, fast.prerun, fast.groups, progress=show_progress
            )
        return self._learned

    def _simulated(self, betas: torch.Tensor, steps: list[int], name: str) -> Target:
        return self._simulate(betas, steps, seed_of(self.seed, name)).target

    def _simulate(self, betas: torch.Tensor, steps: list[int], seed: int):  # noqa: ANN202 - Simulated
        return simulate(self.target, betas, steps, self.args.images, seed)

    def cell(self, method: str, budget: int) -> dict[str, Any]:
        """The gap at every beta."""
        args, chosen = self.args, recipe_of(method, self.args)
        n_leapfrog = chosen.kernel.n_leapfrog
        n = max(budget // n_leapfrog, 2 * len(args.betas)) + 1
        top = max(args.betas)
        betas = self.learned().at_length(n).betas if method == "fast" else sigmoid(n, top, chosen.prerun.sharpness)
        betas, steps = with_betas(betas, args.betas)
        simulated = self._simulate(betas, steps, seed_of(self.seed, "data"))
        key = content_key(code=code_digest(), cell=[self.model, method, n, self.seed], x=simulated.target.x)
        with Checkpoint(args.state, key) as checkpoint, timed() as clock:
            show_progress = Progress(f"{self.model} {method} {budget}")
            tuning = tune(simulated.target, betas, chosen.kernel, chosen.prerun, chosen.groups, checkpoint=checkpoint)
            result = bdmc(
                simulated,
                tuning,
                chosen.kernel,
                n_chains=args.chains,
                seed=seed_of(self.seed, "bdmc"),
                groups=chosen.groups,
                checkpoint=checkpoint,
                progress=show_progress,
            )
            checkpoint.remove()
        difference = result.upper - result.lower
        worst = int(result.gap.argmax())
        return {
            "model": self.model,
            "method": method,
            "budget": budget,
            "seed": self.seed,
            "latent_dim": self.latent_dim,
            "gradients": (n - 1) * n_leapfrog,
            "temperatures": n,
            **self._prerun_cost(chosen, n, method),
            "beta": result.beta.tolist(),
            "gap": result.gap.tolist(),
            "gap_se": result.gap_se.tolist(),
            "differences": difference.tolist(),
            "acceptance": result.acceptance.tolist(),
            "largest_gap": float(result.gap[worst]),
            "largest_gap_se": float(result.gap_se[worst]),
            "seconds": clock.wall,
            "cpu_seconds": clock.cpu,
        }

    def _prerun_cost(self, chosen: Recipe, n: int, method: str) -> dict[str, int]:
        """Gradients per chain before the formal run; a column of a Jacobian counts as one."""
        prerun, n_leapfrog = chosen.prerun, chosen.kernel.n_leapfrog
        thinned = n if prerun.step_size_rule == "running_mean" else min(n, prerun.round_temperatures)
        gradients, measured = (thinned - 1) * n_leapfrog, 1
        if method == "fast":
            gradients += prerun.n_rounds * (prerun.round_temperatures - 1) * n_leapfrog
            measured += min(prerun.n_rounds, 2)  # the first round and the last
        columns = 0 if prerun.metric == "identity" else measured * prerun.n_blocks * self.latent_dim
        return {"prerun_gradients": gradients, "prerun_jacobian_columns": columns, "prerun_chains": prerun.n_chains}


def needed(points: list[tuple[float, float]], gap: float) -> tuple[float, str]:
    """Gradients for a gap, from (gradients, gap) in increasing order, and how that is known.

    Between two budgets: linear in the logarithms. Beyond the last: gap in proportion to 1 / gradients, as it is once
    the chains mix; a method that is not there yet needs more or, past a cliff, less.
    """
    above = [i for i, (_, g) in enumerate(points) if g > gap]
    if not above:
        return points[0][0], "at most"
    i = above[-1]
    (b, g) = points[i]
    if i + 1 == len(points):
        return b * g / gap, "extrapolated"
    c, h = points[i + 1]
    h = max(h, 0.1 * gap)  # noise may make a gap negative
    return b * (c / b) ** (math.log(g / gap) / math.log(g / h)), "interpolated"


def summary(cells: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row per budget, with the seeds pooled, and a row per gap."""
    pooled: dict[tuple[str, str], dict[int, list[dict[str, Any]]]] = {}
    for cell in cells.values():
        pooled.setdefault((cell["model"], cell["method"]), {}).setdefault(cell["gradients"], []).append(cell)
    budgets, gaps = [], []
    for (model, method), by_gradients in sorted(pooled.items()):
        points, pessimistic = [], []
        for gradients, runs in sorted(by_gradients.items()):
            n, row = len(runs), {"model": model, "method": method, "gradients": gradients, "seeds": len(runs)}
            means = [statistics.mean(values) for values in zip(*(run["gap"] for run in runs), strict=True)]
            errors = [
                math.sqrt(sum(e * e for e in values)) / n for values in zip(*(r["gap_se"] for r in runs), strict=True)
            ]
            worst = max(range(len(means)), key=lambda k: means[k])
            row |= {f"beta {beta:g}": gap for beta, gap in zip(runs[0]["beta"], means, strict=True)}
            row |= {"largest": means[worst], "se": errors[worst]}
            row |= {"prerun": runs[0]["prerun_gradients"], "+ columns": runs[0]["prerun_jacobian_columns"]}
            row |= {"accept (top)": runs[0]["acceptance"][-1], "s": statistics.mean(r["seconds"] for r in runs)}
            budgets.append(row)
            points.append((gradients, means[worst]))
            pessimistic.append((gradients, means[worst] + errors[worst]))
        last = budgets[-1]
        for gap in GAPS:
            (n, how), (most, _) = needed(points, gap), needed(pessimistic, gap)
            published = PUBLISHED.get(runs[0]["latent_dim"])
            row = {"model": model, "method": method, "gap": gap, "gradients": n, "with gap + se": most, "": how}
            total = n + last["prerun"] + last["+ columns"] if method == "fast" else 2 * n
            if method == "tuned":
                total = n + last["prerun"]
            row |= {"published / this": published / n if published else math.nan}
            # the paper's own prerun is as long as its run
            row |= {"both with preruns": 2 * published / total if published else math.nan}
            gaps.append(row)
    return budgets, gaps


def main() -> None:
    options = parser(__file__, __doc__)
    options.add_argument("--decoders", type=Path, required=True, help="folder of checkpoints")
    options.add_argument("--models", nargs="+", default=["vae10"])
    options.add_argument("--data", type=Path, help="folder of MNIST, to learn the schedule on; default: simulated data")
    options.add_argument("--betas", type=float, nargs="+", default=[0.4, 10.0, 1000.0, 36000.0])
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options.add_argument("--budgets", type=int, nargs="+", default=[500, 1000, 2000], help="gradients per chain")
    options.add_argument("--long-budgets", type=int, nargs="+", help="of paper and tuned; default: as the others")
    options.add_argument("--images", type=int, default=6, help="simulated, per beta")
    options.add_argument("--chains", type=int, default=16)
    options.add_argument("--prerun-chains", type=int, default=8, help="of the tuned method")
    options.add_argument("--tuned-acceptance", type=float, default=0.85)
    options.add_argument("--seeds", type=int, nargs="+", default=[0], help="of data and chains")
    options.add_argument("--state", type=Path, help="folder for the state of an unfinished cell")
    options.add_argument("--reproduced", action="store_true", help="go on with results of other code, too")
    args = options.parse_args()
    same = {name: getattr(args, name) for name in ("betas", "images", "chains", "prerun_chains", "tuned_acceptance")}
    same["schedule_learned_on"] = "simulated data" if args.data is None else "test images"
    cells = Cells(args, same, any_code=args.reproduced)
    for model in args.models:
        digest = hashlib.sha256((args.decoders / f"{model}.safetensors").read_bytes()).hexdigest()[:8]
        for seed in args.seeds:
            bench = Bench(args, model, seed)
            # by budget first, so that the methods are timed beside each other
            long = args.long_budgets or args.budgets
            plan = [(m, b) for m in args.methods for b in (args.budgets if m == "fast" else long)]
            for method, budget in sorted(plan, key=lambda each: each[1]):
                name = f"{model} {digest} {method} {budget} seed {seed}"
                if name not in cells.values:
                    cells.put(name, bench.cell(method, budget))
    budgets, gaps = summary(cells.values)
    show(budgets)
    print()
    show(gaps)
    cells.write(by_budget=budgets, by_gap=gaps)


if __name__ == "__main__":
    main()
