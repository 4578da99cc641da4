"""Bidirectional Monte Carlo: bounds on log Z from both sides, on data simulated from the model.

For a recorded beta_k draw z ~ p(z), x ~ exp(-beta_k d(x, f(z))); z is then an exact sample of q_{beta_k}(z|x). Forward
AIS 0 -> beta_k bounds log Z(beta_k) from below, reverse AIS beta_k -> 0 from that z bounds it from above, on average
(Grosse, Ghahramani, Adams 2015; the paper's section 2.2). Their difference, the BDMC gap in nats, bounds the error of
either.

All betas are served by one sweep in each direction: an image simulated at beta_k leaves the forward sweep there, and
enters the reverse one there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from rdcurve.sampler.ais import Chains, advance, log_mean_exp, start_at, start_from_prior
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.noise import seed_of
from rdcurve.sampler.prerun import Tuning
from rdcurve.sampler.prior import sample_prior
from rdcurve.sampler.step_size import Frozen
from rdcurve.sampler.target import Target
from rdcurve.types import Decoder, SamplableDistortion

__all__ = ["BDMCGap", "Simulated", "bdmc", "simulate"]


@dataclass(frozen=True)
class Simulated:
    """Data simulated at K recorded betas, n images each, in order of decreasing beta."""

    target: Target  # x [K n, *data]
    z: Tensor  # [K n, latent], the codes that made x
    steps: tuple[int, ...]  # [K] schedule indices, decreasing
    n_images: int  # n, images per beta


@dataclass(frozen=True)
class BDMCGap:
    """Bounds on log Z per simulated image, in nats; rows go with increasing beta."""

    beta: Tensor  # [K]
    lower: Tensor  # [K, n], forward log-mean-exp
    upper: Tensor  # [K, n], minus the reverse log-mean-exp
    acceptance: Tensor  # [K], of the forward sweep, mean over chains, images and moves

    @property
    def gap(self) -> Tensor:
        """Mean of upper - lower over the images, [K] nats."""
        return (self.upper - self.lower).mean(1)

    @property
    def gap_se(self) -> Tensor:
        """Standard error of `gap` over the simulated images, [K] nats."""
        return (self.upper - self.lower).std(1) / self.lower.shape[1] ** 0.5


def simulate(
    prior: Distribution,
    decoder: Decoder,
    distortion: SamplableDistortion,
    betas: Tensor,
    steps: list[int],
    n_images: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Simulated:
    """Draw `n_images` codes and images from the model at each schedule index in `steps`.

    Raises:
        TypeError: x cannot be simulated under the distortion, so that BDMC has nothing to say.
    """
    if not isinstance(distortion, SamplableDistortion):
        raise TypeError(
            f"BDMC needs a distortion with a `sample` method; {type(distortion).__name__} has none, because "
            "exp(-beta d(x, f)) is not a density of x that can be sampled"
        )
    descending = tuple(sorted(steps, reverse=True))
    images = torch.arange(len(descending) * n_images, device=device)
    z = sample_prior(prior, seed_of(seed, "bdmc"), images, 1)[0]  # [K n, latent]
    with torch.random.fork_rng(devices=[z.device] if z.device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed_of(seed, "bdmc", "x"))
        x = torch.cat(
            [
                distortion.sample(decoder(part[None])[0], float(betas[step]))
                for step, part in zip(descending, z.split(n_images), strict=True)
            ]
        )
    return Simulated(Target(prior, decoder, distortion, x), z, descending, n_images)


def bdmc(
    simulated: Simulated,
    betas: Tensor,
    tuning: Tuning,
    kernel: Kernel,
    *,
    n_chains: int,
    seed: int,
    progress: Callable[[int], None] = lambda steps: None,
) -> BDMCGap:
    """Forward and reverse AIS on simulated data.

    Args:
        simulated: data with exact codes.
        betas: [T + 1], the schedule of the formal run.
        tuning: step sizes and metric for the simulated images, learned without looking at the exact codes.
        kernel: settings of the moves.
        n_chains: C, of each direction.
        seed: another one than that of the simulation and of the prerun.
        progress: called with the number of annealing steps done.
    """
    forward = _forward(simulated, betas, tuning, kernel, n_chains, seed_of(seed, "forward"), progress)
    reverse = _reverse(simulated, betas, tuning, kernel, n_chains, seed_of(seed, "reverse"), progress)
    lower, upper = (torch.stack([log_mean_exp(chains.log_weight) for chains in runs]) for runs in (forward, reverse))
    acceptance = torch.stack([chains.acceptance.mean() / max(chains.n_moves, 1) for chains in forward])
    order = torch.tensor(simulated.steps).flip(0)
    return BDMCGap(betas.cpu()[order], lower.flip(0).cpu(), -upper.flip(0).cpu(), acceptance.flip(0).cpu())


def _forward(
    simulated: Simulated,
    betas: Tensor,
    tuning: Tuning,
    kernel: Kernel,
    n_chains: int,
    seed: int,
    progress: Callable[[int], None],
) -> list[Chains]:
    """The chains of each beta when they arrive there, in the order of `simulated.steps`."""
    n = simulated.n_images
    images = torch.arange(len(simulated.z), device=simulated.z.device)
    target = simulated.target
    chains = start_from_prior(target, seed, images, n_chains)
    arrived = []
    for step in reversed(simulated.steps):  # increasing; those that arrive are the last n images
        before = chains.step
        chains = advance(
            target,
            betas,
            chains,
            Frozen(tuning.step_sizes),
            tuning.metric,
            kernel,
            seed=seed,
            images=images,
            until=step,
        )
        progress(step - before)
        arrived.append(chains.select(slice(len(images) - n, None)))
        images, chains = images[:-n], chains.select(slice(0, len(images) - n))
        target = target.select(slice(0, len(images)))
    return arrived[::-1]


def _reverse(
    simulated: Simulated,
    betas: Tensor,
    tuning: Tuning,
    kernel: Kernel,
    n_chains: int,
    seed: int,
    progress: Callable[[int], None],
) -> list[Chains]:
    """The chains of each beta when they arrive at beta = 0, in the order of `simulated.steps`."""
    n, last = simulated.n_images, len(betas) - 1
    chains = None
    for k, step in enumerate(simulated.steps):  # decreasing: step `last - step` of the reversed schedule
        entering = torch.arange(k * n, (k + 1) * n, device=simulated.z.device)
        present = slice(0, (k + 1) * n)
        z = simulated.z[entering].expand(n_chains, -1, -1).contiguous()
        new = start_at(simulated.target.select(entering), z, seed, entering, step=last - step)
        # chains share one count of moves; that of the reverse sweep starts anew here and is not reported
        chains = new if chains is None else _recount(chains).join(new)
        until = last - (simulated.steps[k + 1] if k + 1 < len(simulated.steps) else 0)
        chains = advance(
            simulated.target.select(present),
            betas,
            chains,
            Frozen(tuning.step_sizes),
            tuning.metric,
            kernel,
            seed=seed,
            images=torch.arange((k + 1) * n, device=simulated.z.device),
            until=until,
            reverse=True,
        )
        progress(until - (last - step))
    assert chains is not None
    return [chains.select(slice(k * n, (k + 1) * n)) for k in range(len(simulated.steps))]


def _recount(chains: Chains) -> Chains:
    return chains._replace(acceptance=torch.zeros_like(chains.acceptance), n_moves=0)
