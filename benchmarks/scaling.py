"""How the cost of an annealing step grows with images, chains, code size and number of temperatures.

Seconds per step of the fast recipe on the paper's MNIST decoder with random weights, one number changed at a time; and
time and peak memory of whole runs (curve, and BDMC) of a small decoder against the number of temperatures, each in a
process of its own.

    python benchmarks/scaling.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from common import parser, random_target, save, show, spread, timed

SMALL = (64,)  # hidden layers where only the number of temperatures matters


def seconds_per_step(n_images: int, n_chains: int, latent_dim: int, n_steps: int) -> dict[str, float]:
    """Wall and CPU seconds of a step of the fast recipe, from random codes; the first step does not count."""
    import torch

    from rdcurve.sampler.ais import Annealing, Groups, advance, start_from_prior
    from rdcurve.sampler.hmc import Kernel
    from rdcurve.sampler.metric import Metric, decompose
    from rdcurve.sampler.schedule import sigmoid
    from rdcurve.sampler.step_size import Frozen

    target, _ = random_target(latent_dim, n_images)
    images, betas = torch.arange(n_images), sigmoid(1000, 36000.0)
    chains = start_from_prior(target, 0, images, n_chains)
    curvature = torch.randn(n_images, latent_dim, latent_dim)
    eigenvalues, eigenvectors = decompose(curvature @ curvature.mT)
    metric = Metric((0.0,), eigenvalues[None], eigenvectors[None])
    table = Frozen(torch.full((len(betas), n_images), 0.01, dtype=torch.float64))

    annealing = Annealing(target, Kernel(2, 0.2, 0.5), 1, images, Groups(8))

    def until(step: int) -> None:
        nonlocal chains
        chains = advance(annealing, betas, chains, table, metric, until=step)

    until(1)
    with timed() as clock:
        until(1 + n_steps)
    return {"wall": clock.wall / n_steps, "cpu": clock.cpu / n_steps}


def whole_run(kind: str, n_temperatures: int, n_images: int, n_chains: int) -> dict[str, float]:
    """Time and peak memory of this process for a curve, or for BDMC; step sizes and metric are given."""
    import resource

    import torch

    from rdcurve.sampler.ais import Groups, Tuning
    from rdcurve.sampler.bdmc import bdmc, simulate
    from rdcurve.sampler.formal import formal_run
    from rdcurve.sampler.hmc import Kernel
    from rdcurve.sampler.metric import identity
    from rdcurve.sampler.schedule import recorded_steps, sigmoid

    target, _ = random_target(10, n_images, SMALL)
    betas, groups, kernel = sigmoid(n_temperatures, 100.0), Groups(8), Kernel(2, 0.2, 0.5)

    def run(betas: torch.Tensor, n_betas: int) -> None:
        steps = recorded_steps(len(betas), n_betas)
        sizes = torch.full((len(betas), n_images), 0.05, dtype=torch.float64)
        tuning = Tuning(betas, sizes, identity(10, torch.float32))
        if kind == "curve":
            formal_run(target, tuning, steps, kernel, n_chains=n_chains, seed=1, groups=groups)
        else:
            simulated = simulate(target, betas, steps[-1:], n_images, 1)
            bdmc(simulated, tuning, kernel, n_chains=n_chains, seed=1, groups=groups)

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB

    run(sigmoid(20, 100.0), 10)
    before = peak()
    with timed() as clock:
        run(betas, 10)
    return {"wall": clock.wall, "cpu": clock.cpu, "peak_mib": peak(), "before_mib": before}


def child(kind: str, **arguments: Any) -> dict[str, float]:
    """`whole_run` in a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps({"kind": kind, **arguments})]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    options = parser(__file__, __doc__, repeats=3)
    options.add_argument("--images", type=int, nargs="+", default=[10, 25, 50, 100])
    options.add_argument("--chains", type=int, nargs="+", default=[8, 16, 32, 64])
    options.add_argument("--latent", type=int, nargs="+", default=[2, 10, 50, 100])
    options.add_argument("--temperatures", type=int, nargs="+", default=[500, 2000, 8000])
    options.add_argument("--at", type=int, nargs=3, default=[25, 16, 10], help="images, chains, code size where fixed")
    options.add_argument("--steps", type=int, default=8, help="annealing steps per measurement")
    options.add_argument("--small-images", type=int, default=8, help="of the runs that vary the temperatures")
    options.add_argument("--child", help="used by the script itself")
    args = options.parse_args()
    if args.child:
        print(json.dumps(whole_run(**json.loads(args.child))))
        return

    n_images, n_chains, latent = args.at
    cases = {("images", n): (n, n_chains, latent) for n in args.images}
    cases |= {("chains", n): (n_images, n, latent) for n in args.chains}
    cases |= {("code size", n): (n_images, n_chains, n) for n in args.latent}
    found: dict[tuple[str, int], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(args.repeats):
        for case, sizes in cases.items():
            found[case].append(seconds_per_step(*sizes, args.steps))
    rows, results = [], []
    for (what, n), runs in found.items():
        wall, cpu = (spread([run[key] for run in runs]) for key in ("wall", "cpu"))
        chains = cases[what, n][0] * cases[what, n][1]
        rows.append(
            {
                "varied": what,
                "value": n,
                "chains in all": chains,
                "ms/step": 1e3 * wall["median"],
                "CPU-ms/step": 1e3 * cpu["median"],
                "from": 1e3 * cpu["least"],
                "to": 1e3 * cpu["most"],
                "CPU-us/gradient": 1e6 * cpu["median"] / (2 * chains),
            }
        )
        results.append({"varied": what, "value": n, "chains_in_all": chains, "wall": wall, "cpu": cpu})
    show(rows)

    rows, runs = [], []
    sizes = {"n_images": args.small_images, "n_chains": 16}
    measured: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(args.repeats):
        for kind in ("curve", "bdmc"):
            for n in args.temperatures:
                measured.setdefault((kind, n), []).append(child(kind, n_temperatures=n, **sizes))
    for (kind, n), times in measured.items():
        cpu, wall = (spread([run[key] / n for run in times]) for key in ("cpu", "wall"))
        peak = spread([run["peak_mib"] for run in times])
        more = spread([run["peak_mib"] - run["before_mib"] for run in times])
        rows.append(
            {
                "run": kind,
                "temperatures": n,
                "ms/temperature": 1e3 * wall["median"],
                "CPU-ms/temperature": 1e3 * cpu["median"],
                "from": 1e3 * cpu["least"],
                "to": 1e3 * cpu["most"],
                "peak MiB": peak["median"],
                "more than 20 temperatures, MiB": more["median"],
            }
        )
        runs.append({"run": kind, "temperatures": n, "cpu": cpu, "wall": wall, "peak_mib": peak, "more_mib": more})
    show(rows)
    save(args.output, args, steps=results, runs=runs)


if __name__ == "__main__":
    main()
