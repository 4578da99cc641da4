"""How near the arithmetic runs to what this machine's float32 matrix products can do.

The paper's MNIST decoder 10-1024-1024-1024-784, random weights, through the real code: gradients by Target.at, and
whole annealing steps with noise, metric and accept test. The peak is measured between the two, on all cores at once,
each with a product of its own. A gradient is counted as 4 FLOP per weight: 2 forward, 2 back to z, none for weights.

Fractions are given by wall time and by CPU seconds; on a machine that others use, believe the latter.

    python benchmarks/step_cost.py
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch
from common import Clock, parser, random_target, save, show, spread, timed

from rdcurve.sampler.ais import Annealing, Groups, advance, start_from_prior
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.metric import Metric, decompose, identity
from rdcurve.sampler.schedule import sigmoid
from rdcurve.sampler.step_size import Frozen
from rdcurve.sampler.target import one_thread_per_tile

LATENT, HIDDEN, PIXELS = 10, (1024, 1024, 1024), 784
SHAPES = {"square 512": (512, 512), "square 1024": (1024, 1024), "square 2048": (2048, 2048)}


def flops_per_gradient() -> int:
    widths = (LATENT, *HIDDEN, PIXELS)
    return 2 * 2 * sum(a * b for a, b in pairwise(widths))


class Products:
    """Matrix products [rows, n] @ [n, n] on every core at once."""

    def __init__(self, rows: int, n: int) -> None:
        self.flops, self.n_workers = 2 * rows * n * n, torch.get_num_threads()
        self.operands = [(torch.randn(rows, n), torch.randn(n, n), torch.empty(rows, n)) for _ in range(self.n_workers)]
        self.pool = ThreadPoolExecutor(self.n_workers, initializer=torch.set_num_threads, initargs=(1,))

    def rate(self, flops: float) -> Clock:
        """FLOP per second, after about that many FLOP on each core."""
        times = max(1, round(flops / self.flops))

        def work(operands: tuple[torch.Tensor, ...]) -> None:
            for _ in range(times):
                torch.mm(operands[0], operands[1], out=operands[2])

        with one_thread_per_tile(), timed() as clock:
            list(self.pool.map(work, self.operands))
        done = times * self.flops * self.n_workers
        return Clock(done / clock.wall, done / clock.cpu)


def workloads(n_chains: int, n_images: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """By name: gradients per chain in one call, and the call."""
    target, _ = random_target(LATENT, n_images, HIDDEN)
    images, betas = torch.arange(n_images), sigmoid(1000, 36000.0)
    chains = start_from_prior(target, 0, images, n_chains // n_images)
    z = chains.state.point.z
    curvature = torch.randn(n_images, LATENT, LATENT)
    eigenvalues, eigenvectors = decompose(curvature @ curvature.mT)
    per_image = Metric((0.0,), eigenvalues[None], eigenvectors[None])
    table = Frozen(torch.full((len(betas), n_images), 0.01, dtype=torch.float64))

    def gradient() -> None:
        with one_thread_per_tile():
            target.at(z)

    def step(kernel: Kernel, metric: Metric, groups: Groups) -> Callable[[], object]:
        def call() -> object:
            return advance(Annealing(target, kernel, 1, images, groups), betas, chains, table, metric, until=1)

        return call

    groups = Groups(8) if n_chains // n_images % 8 == 0 else Groups()
    paper = step(Kernel(20, 0.0, 0.0), identity(LATENT, torch.float32), Groups())
    fast = step(Kernel(2, 0.2, 0.5), per_image, groups)
    return {"Target.at": (1, gradient), "paper step, 20 leapfrogs": (20, paper), "fast step, 2 leapfrogs": (2, fast)}


def main() -> None:
    options = parser(__file__, __doc__, repeats=5)
    options.add_argument("--chains", type=int, nargs="+", default=[400, 2000])
    options.add_argument("--images", type=int, default=50)
    options.add_argument("--gradients", type=int, default=20, help="of each chain, per measurement, at least")
    args = options.parse_args()
    flops = flops_per_gradient()
    tile_rows = random_target(LATENT, 1, HIDDEN)[0].tile
    products = {name: Products(*shape) for name, shape in SHAPES.items()} | {"tile": Products(tile_rows, 1024)}
    for each in products.values():
        each.rate(2e10)  # warms up
    tried = {name: [each.rate(5e10).cpu for _ in range(3)] for name, each in products.items()}
    best = max(SHAPES, key=lambda name: max(tried[name]))
    print(f"{flops:,} FLOP per gradient; peak: {best}, products on {torch.get_num_threads()} cores")
    work = {n: workloads(n, args.images) for n in args.chains}
    for calls in work.values():
        for _, call in calls.values():
            call()

    found: dict[tuple[int, str], dict[str, list[float]]] = {}
    peaks: dict[str, list[float]] = {"wall": [], "cpu": [], "tile_cpu": []}
    for _ in range(args.repeats):
        for n_chains, calls in work.items():
            for name, (n_gradients, call) in calls.items():
                times = max(1, args.gradients // n_gradients)
                before = products[best].rate(5e10)
                with timed() as clock:
                    for _ in range(times):
                        call()
                after = products[best].rate(5e10)
                tile = products["tile"].rate(2.5e10)
                gradients = times * n_gradients * n_chains
                wall, cpu = 0.5 * (before.wall + after.wall), 0.5 * (before.cpu + after.cpu)
                peaks["wall"].append(wall)
                peaks["cpu"].append(cpu)
                peaks["tile_cpu"].append(tile.cpu)
                values = {
                    "seconds": clock.wall / times,
                    "cpu_seconds": clock.cpu / times,
                    "gradients_per_second": gradients / clock.wall,
                    "gradients_per_cpu_second": gradients / clock.cpu,
                    "fraction_of_peak_wall": gradients * flops / clock.wall / wall,
                    "fraction_of_peak_cpu": gradients * flops / clock.cpu / cpu,
                    "cores_used": clock.cpu / clock.wall,
                }
                for key, value in values.items():
                    found.setdefault((n_chains, name), {}).setdefault(key, []).append(value)
    rows, result = [], []
    for (n_chains, name), values in found.items():
        summary = {key: spread(value) for key, value in values.items()}
        alone, n_gradients = found[n_chains, "Target.at"]["cpu_seconds"], work[n_chains][name][0]
        other = [1 - n_gradients * a / b for a, b in zip(alone, values["cpu_seconds"], strict=True)]
        padded = -(-n_chains // tile_rows) * tile_rows
        rows.append(
            {
                "chains": n_chains,
                "what": name,
                "seconds": summary["seconds"]["median"],
                "gradients/s": summary["gradients_per_second"]["median"],
                "gradients/CPU-s": summary["gradients_per_cpu_second"]["median"],
                "of peak (wall)": summary["fraction_of_peak_wall"]["median"],
                "of peak (CPU)": summary["fraction_of_peak_cpu"]["median"],
                "from": summary["fraction_of_peak_cpu"]["least"],
                "to": summary["fraction_of_peak_cpu"]["most"],
                "with padding": summary["fraction_of_peak_cpu"]["median"] * padded / n_chains,
                "not gradients": max(0.0, spread(other)["median"]),
            }
        )
        result.append({"chains": n_chains, "what": name, **summary, "share_not_gradients": spread(other)})
    show(rows)
    summary = {key: spread(value) for key, value in peaks.items()}
    print(
        f"peak {summary['cpu']['median'] / 1e9:.0f} GFLOP per CPU-second ({summary['cpu']['least'] / 1e9:.0f} to "
        f"{summary['cpu']['most'] / 1e9:.0f}), {summary['wall']['median'] / 1e9:.0f} per second on all cores; "
        f"products of {tile_rows} rows reach {summary['tile_cpu']['median'] / summary['cpu']['median']:.2f} of it"
    )
    save(
        args.output,
        args,
        flops_per_gradient=flops,
        peak_shape=best,
        peak_flop_per_second=summary,
        peak_by_shape={name: spread(values) for name, values in tried.items()},
        results=result,
    )


if __name__ == "__main__":
    main()
