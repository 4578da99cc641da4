"""All checks and measurements that need a GPU, in one go; the numbers go to JSON with the name of the device.

    checks     pytest -m gpu
    peak       float32 matrix products, as they are and in TF32
    gradients  Target.at of the paper's MNIST decoder, by rows, against that peak (4 FLOP per weight)
    steps      whole annealing steps, of the published recipe and of the fast one: launched kernel by kernel, each as a
               CUDA graph, several as one, and these with gradients in TF32

Without a GPU it refuses; `--device cpu` tries the script itself.

    python benchmarks/gpu.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from common import PIXELS, ROOT, parser, save, show, spread

from rdcurve.device import resolve
from rdcurve.models.mlp import Decoder
from rdcurve.sampler import ais
from rdcurve.sampler.ais import AT_ONCE, Annealing, Groups, advance, start_from_prior
from rdcurve.sampler.distortion import SquaredError
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.metric import identity
from rdcurve.sampler.prior import standard_normal
from rdcurve.sampler.schedule import sigmoid
from rdcurve.sampler.step_size import Frozen
from rdcurve.sampler.target import Target

LATENT, HIDDEN = 10, [1024, 1024, 1024]
FLOPS = 2 * 2 * sum(a * b for a, b in pairwise([LATENT, *HIDDEN, PIXELS]))  # of a gradient


def seconds(call: Callable[[], object], device: torch.device, repeats: int, at_least: float = 0.5) -> dict[str, float]:
    """Wall time of a call, waited for."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    call()
    wait()
    times = []
    for _ in range(repeats):
        n, start = 0, time.perf_counter()
        while n == 0 or time.perf_counter() - start < at_least:
            call()
            wait()
            n += 1
        times.append((time.perf_counter() - start) / n)
    return spread(times)


def main() -> None:
    options = parser(__file__, __doc__, repeats=3)
    options.add_argument("--device", default="cuda")
    options.add_argument("--rows", type=int, nargs="+", default=[2000, 8000, 32000])
    options.add_argument("--images", type=int, default=50)
    options.add_argument("--steps", type=int, default=50, help="of a call")
    options.add_argument("--workers", type=int, default=4, help="processes that share the checks")
    args = options.parse_args()
    device = resolve(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    result = {"device": name}
    a, b = (torch.randn(4096, 4096, device=device) for _ in range(2))
    peak = {}
    for precision in ("float32", "tf32")[: 1 + (device.type == "cuda")]:
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        peak[precision] = 2 * 4096**3 / seconds(lambda: a @ b, device, args.repeats)["median"]
    torch.backends.cuda.matmul.allow_tf32 = False

    torch.manual_seed(0)
    decoder = Decoder(LATENT, PIXELS, HIDDEN, "tanh").eval().requires_grad_(False).to(device)
    x, images = torch.rand(args.images, PIXELS, device=device), torch.arange(args.images, device=device)
    target = Target(standard_normal(LATENT, device=device), decoder, SquaredError(), x)
    betas = sigmoid(1000, 36000.0)
    table = Frozen(torch.full((len(betas), args.images), 0.01, dtype=torch.float64, device=device))
    metric = identity(LATENT, torch.float32, device)
    rows = []
    for n_rows in args.rows:
        n_chains = n_rows // args.images // 8 * 8
        chains = start_from_prior(target, 0, images, n_chains)

        def steps(
            kernel: Kernel, groups: Groups, least: int, at_once: int, target: Target, chains: object = chains
        ) -> Callable[[], object]:
            annealing = Annealing(target, kernel, 1, images, groups)

            def run() -> object:
                ais._WORTH_A_GRAPH = least
                return advance(annealing, betas, chains, table, metric, until=args.steps, at_once=at_once)

            return run

        coarse = replace(target, tf32_gradients=True)
        work = {
            "Target.at": (1, lambda chains=chains: target.at(chains.state.point.z)),
            "Target.at, TF32 gradients": (1, lambda chains=chains, coarse=coarse: coarse.at(chains.state.point.z)),
        }
        never, always = sys.maxsize, 1  # steps before a graph is recorded, which the first call does
        for how, least, at_once, of in (
            ("kernel by kernel", never, 1, target),
            ("each a graph", always, 1, target),
            (f"{AT_ONCE} a graph", always, AT_ONCE, target),
            (f"{AT_ONCE} a graph, TF32 gradients", always, AT_ONCE, coarse),
        ):
            paper = steps(Kernel(20, 0.0, 0.0), Groups(), least, at_once, of)
            work[f"paper steps, 20 leapfrogs, {how}"] = 20 * args.steps, paper
            fast = steps(Kernel(2, 0.2, 0.5), Groups(8), least, at_once, of)
            work[f"fast steps, 2 leapfrogs, {how}"] = 2 * args.steps, fast
        for what, (n_gradients, call) in work.items():
            took = seconds(call, device, args.repeats)
            rate = n_gradients * n_chains * args.images / took["median"]
            rows.append(
                {
                    "chains": n_chains * args.images,
                    "what": what,
                    "seconds": took["median"],
                    "gradients/s": rate,
                    "of float32 peak": rate * FLOPS / peak["float32"],
                }
            )
    show(rows)
    result |= {"flop_per_second": peak, "results": rows}
    save(args.output, args, **result)  # to have them, should the checks fail
    start = time.perf_counter()
    checks = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", str(args.workers), "-m", "gpu", "tests/test_gpu.py"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    print(checks.stdout)
    save(args.output, args, **result, checks={"exit": checks.returncode, "seconds": time.perf_counter() - start})
    if checks.returncode not in (0, 5):
        raise SystemExit("the checks failed")


if __name__ == "__main__":
    main()
