"""What acceptance a GPU would lose with gradients in TF32, tried without a GPU.

The route up of measured curves, with their own tuning, twice: as it is, and with the backward products of linear layers
rounded as TF32 rounds their factors (10 bits of fraction, to the nearest). Energies stay as they are, so nothing but
the acceptance can change.

    python benchmarks/tf32_acceptance.py --curves vae10 gan10
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import ROOT, parser, save, show
from torch import Tensor, nn

from rdcurve.commands.inputs import build, tuned
from rdcurve.sampler.ais import Annealing, advance, start_from_prior
from rdcurve.sampler.step_size import Frozen
from rdcurve.settings import read, section


def rounded(values: Tensor) -> Tensor:
    """float32 values with 10 bits of fraction instead of 23, to the nearest, half to even."""
    bits = values.contiguous().view(torch.int32)
    return (bits + 0xFFF + ((bits >> 13) & 1) & ~0x1FFF).view(torch.float32)


class Linear(torch.autograd.Function):
    """x W^T + b, exact forward, its gradient in x from rounded factors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return rounded(grad) @ rounded(ctx.saved_tensors[0]), None, None


@contextmanager
def emulated(on: bool) -> Iterator[None]:
    """Inside, if on, linear layers have the gradient that TF32 gives them."""
    exact = nn.Linear.forward
    if on:
        nn.Linear.forward = lambda self, x: Linear.apply(x, self.weight, self.bias)  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Linear.forward = exact  # type: ignore[method-assign]


def main() -> None:
    options = parser(__file__, __doc__)
    options.add_argument("--results", type=Path, default=ROOT / "results", help="with decoders, step_sizes and data")
    options.add_argument("--curves", nargs="+", default=["vae10", "gan10", "vae100"])
    options.add_argument("--images", type=int, default=8)
    options.add_argument("--chains", type=int, default=16)
    options.add_argument("--parts", type=int, default=10, help="of the schedule, each with its acceptance")
    args = options.parse_args()
    params, rows = read(ROOT / "params.yaml"), []
    for name in args.curves:
        entry, folder = params["curves"][name], args.results
        decoder, data = folder / "decoders" / f"{entry['model']}.safetensors", folder / "data" / entry["dataset"]
        problem = build(decoder, data, entry, section(params, "sampler", name), torch.device("cpu"))
        tuning = tuned(folder / "step_sizes" / f"{name}.safetensors", entry, problem).tuning
        target, tuning = (part.select(slice(0, args.images)) for part in (problem.target, tuning))
        images, n_steps = torch.arange(len(target.x)), len(tuning.betas) - 1
        ends = [round(n_steps * (part + 1) / args.parts) for part in range(args.parts)]
        found: dict[bool, list[float]] = {False: [], True: []}
        for coarse, acceptance in found.items():
            with emulated(coarse):
                chains = start_from_prior(target, 7, images, args.chains)
                annealing = Annealing(target, problem.kernel, 7, images, problem.groups)
                for end in ends:
                    chains = advance(
                        annealing, tuning.betas, chains.recount(), Frozen(tuning.step_sizes), tuning.metric, until=end
                    )
                    acceptance.append(float(chains.acceptance.mean()) / chains.n_moves)
        rows += [
            {"curve": name, "beta to": float(tuning.betas[end]), "float32": exact, "TF32": coarse}
            for end, exact, coarse in zip(ends, found[False], found[True], strict=True)
        ]
    show(rows)
    save(args.output, args, results=rows)


if __name__ == "__main__":
    main()
