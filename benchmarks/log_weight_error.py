"""What float32 does to log w at the paper's sizes.

log w = -sum_j (beta_j - beta_{j-1}) d(x, f(z_j)) along one frozen path of positions z_j, computed in float64 throughout
(weights of the decoder too) and compared, in nats, with

    ours      decoder in float32, pixels summed in float64, increments and sum in float64: what rdcurve does
    plain     all of it in float32: increments (beta_j - beta_{j-1}) d and their running sum
    paper     all of it in float32, each increment the difference of two numbers of the size of beta d, as in the
              published code

The path: of a real run with few temperatures, the chains that end at the least d, smoothed and interpolated (in
log beta) to the long schedule; plus, at every step, a draw from N(0, A A^T) of the metric, the local Gaussian of the
target. So d moves from step to step as in a run whose chains mix, and rounding errors do not cancel as they would along
a smooth path. All three see the same float32 positions.

    python benchmarks/log_weight_error.py --decoders results/decoders --models vae10 --data results/data/mnist
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from common import ROOT, parser, recipe, save, show, timed, trained_target
from torch import Tensor

from rdcurve.data.load import images as read_images
from rdcurve.sampler.ais import Annealing, Chains, advance, start_from_prior
from rdcurve.sampler.metric import Metric
from rdcurve.sampler.prerun import learn
from rdcurve.sampler.schedule import sigmoid
from rdcurve.sampler.step_size import Frozen
from rdcurve.sampler.target import Target

BLOCK = 1024  # steps at once
SMOOTHING = 9  # temperatures of the short run


class Track(NamedTuple):
    """Where the chains of a short run were."""

    betas: Tensor  # [T + 1]
    z: Tensor  # [T + 1, paths, N, latent]
    metric: Metric

    def at(self, betas: Tensor, generator: torch.Generator) -> Tensor:
        """Positions at other betas, [B, paths, N, latent]."""
        first = self.betas[1]  # below it linear in beta
        new, old = (_place(b, float(first)) for b in (betas, self.betas))
        right = torch.searchsorted(old, new).clamp(1, len(old) - 1)
        share = ((new - old[right - 1]) / (old[right] - old[right - 1])).clamp(0, 1).to(self.z)[:, None, None, None]
        centre = self.z[right - 1] + share * (self.z[right] - self.z[right - 1])
        factor = torch.stack([self.metric.factor(beta, self.z.shape[2]) for beta in betas.tolist()])  # [B, N, d, d]
        noise = torch.randn(centre.shape, generator=generator)
        return centre + torch.einsum("bnij,bpnj->bpni", factor, noise)


def _place(betas: Tensor, first: float) -> Tensor:
    return betas.clamp(max=first) / first + (betas.clamp(min=first) / first).log()


def recorded_path(target: Target, beta_max: float, n_temperatures: int, n_paths: int, n_chains: int) -> Track:
    """Of a run of the fast recipe without resampling, the chains with the least d at the end."""
    chosen = recipe(ROOT / "params.yaml")
    prerun = replace(chosen.prerun, round_temperatures=n_temperatures, n_rounds=2)
    tuning = learn(target, beta_max, chosen.kernel, prerun, chosen.groups).at_length(n_temperatures)
    images = torch.arange(len(target.x))
    chains = start_from_prior(target, 1, images, n_chains)
    z = [chains.state.point.z]

    def note(now: Chains) -> None:
        z.append(now.state.point.z)

    chains = advance(
        Annealing(target, chosen.kernel, 1, images),
        tuning.betas,
        chains,
        Frozen(tuning.step_sizes),
        tuning.metric,
        until=n_temperatures - 1,
        after_step=note,
    )
    best = chains.state.point.distortion.argsort(0)[:n_paths]  # [paths, N]
    path = torch.stack(z)
    path = path.gather(1, best[None, :, :, None].expand(len(path), -1, -1, path.shape[-1]))
    total = torch.cat([torch.zeros_like(path[:1]), path.cumsum(0)])
    index = torch.arange(len(path))
    low, high = (index - SMOOTHING // 2).clamp(min=0), (index + SMOOTHING // 2 + 1).clamp(max=len(path))
    return Track(tuning.betas, (total[high] - total[low]) / (high - low)[:, None, None, None], tuning.metric)


def errors(target: Target, path: Track, betas: Tensor) -> dict[str, Tensor]:
    """Errors of log w, by arithmetic, and the true log w, each [paths, N]; and of d alone at the last beta."""
    exact_decoder = _double(target)
    shape, generator = path.z.shape[1:3], torch.Generator().manual_seed(0)
    exact, ours = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
    plain, paper = (torch.zeros(shape, dtype=torch.float32) for _ in range(2))
    short = betas.float()
    noise, last = [], torch.zeros(0)
    for start in range(1, len(betas), BLOCK):
        stop = min(start + BLOCK, len(betas))
        # w of step j uses the position that step j - 1 left
        here = path.at(betas[start - 1 : stop - 1], generator)  # [B, paths, N, latent]
        flat = here.flatten(0, 1)
        point = target.at(flat)
        d = point.distortion.unflatten(0, here.shape[:2])
        true = exact_decoder(flat).unflatten(0, here.shape[:2])
        d32, log_prior = _single(target, flat).unflatten(0, here.shape[:2]), point.log_prior.float().view(d.shape)
        step = betas[start:stop] - betas[start - 1 : stop - 1]
        exact -= (step[:, None, None] * true).sum(0)
        for j in range(stop - start):  # the order of a run
            ours = ours - float(step[j]) * d[j]
            before, after = short[start + j - 1], short[start + j]
            plain = plain - (after - before) * d32[j]
            paper = paper + ((log_prior[j] - after * d32[j]) - (log_prior[j] - before * d32[j]))
        last = true
        noise.append((d - true).abs().amax(0))
    return {
        "log w": exact,
        "ours": ours - exact,
        "plain": plain.double() - exact,
        "paper": paper.double() - exact,
        "largest error of d": torch.stack(noise).amax(0),
        "d at the end": last[-1],
        "sd of beta d": float(betas[-1]) * last[-len(last) // 4 :].std(0),
    }


def _double(target: Target):  # noqa: ANN202 - a closure
    import copy

    decoder, x = copy.deepcopy(target.decoder).double(), target.x.double()

    def distortion(z: Tensor) -> Tensor:
        with torch.no_grad():
            return (decoder(z.double()) - x).square().sum(-1)

    return distortion


def _single(target: Target, z: Tensor) -> Tensor:
    with torch.no_grad():
        return (target.decoder(z) - target.x).square().sum(-1)


def main() -> None:
    options = parser(__file__, __doc__)
    options.add_argument("--decoders", type=Path, required=True, help="folder of checkpoints")
    options.add_argument("--models", nargs="+", default=["vae10"])
    options.add_argument("--data", type=Path, required=True, help="folder of the fetched data set")
    options.add_argument("--images", type=int, default=4)
    options.add_argument("--paths", type=int, default=1, help="per image")
    options.add_argument("--chains", type=int, default=8, help="of the run, per image, that the paths are chosen from")
    options.add_argument("--steps", type=int, nargs="+", default=[60000], help="temperatures")
    options.add_argument("--beta-max", type=float, default=36000.0)
    options.add_argument("--recorded", type=int, default=200, help="temperatures of the run that the path comes from")
    args = options.parse_args()
    rows, results = [], []
    for model in args.models:
        x = read_images(args.data, "test", args.images)
        target, _ = trained_target(args.decoders / f"{model}.safetensors", x)
        path = recorded_path(target, args.beta_max, args.recorded, args.paths, args.chains)
        for n in args.steps:
            with timed() as clock:
                found = errors(target, path, sigmoid(n, args.beta_max))
            row: dict[str, object] = {"model": model, "temperatures": n}
            row |= {f"mean {name}": float(found[name].mean()) for name in ("d at the end", "sd of beta d", "log w")}
            for name in ("ours", "plain", "paper"):
                row[f"{name}: mean"] = float(found[name].mean())
                row[f"{name}: sd"] = float(found[name].std()) if found[name].numel() > 1 else 0.0
                row[f"{name}: largest"] = float(found[name].abs().max())
            rows.append(row)
            per_path = {name: value.flatten().tolist() for name, value in found.items()}
            results.append({"model": model, "temperatures": n, "seconds": clock.wall, **per_path})
            save(args.output, args, results=results, repeats=args.images * args.paths)
    show(rows)


if __name__ == "__main__":
    main()
