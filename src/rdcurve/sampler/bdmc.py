"""Bidirectional Monte Carlo: bounds on log Z from both sides, on data simulated from the model.

For a recorded beta_k draw z ~ p(z), x ~ exp(-beta_k d(x, f(z))); z is then an exact sample of q_{beta_k}(z|x). Forward
AIS 0 -> beta_k bounds log Z(beta_k) from below, reverse AIS beta_k -> 0 from that z bounds it from above, on average
(Grosse, Ghahramani, Adams 2015; the paper's section 2.2). Their difference, the BDMC gap in nats, bounds the error of
either.

The upper bound of a group of K chains: one chain walks from z back to beta = 0 by the time reversal of the forward
moves, and the path that it leaves behind becomes one of K chains of a forward run, the others being drawn from the
prior. Then E[1 / Z_hat] = 1 / Z for the mean weight Z_hat of the group, with resampling (conditional SMC; Andrieu,
Doucet, Holenstein 2010) as without (Brekelmans et al. 2022). A group of one chain is the reverse chain alone, as
published: its weight needs the distortions along the path, and no forward run.

All betas are served by one sweep in each direction: an image simulated at beta_k leaves the forward sweep there, and
enters the reverse one there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from rdcurve.sampler.ais import (
    Annealing,
    Chains,
    Groups,
    Tuning,
    advance,
    check_groups,
    group_log_mean_exp,
    log_mean_exp,
    pin,
    start_at,
    start_from_prior,
    under_prior,
)
from rdcurve.sampler.hmc import Kernel, State, refresh, trajectory
from rdcurve.sampler.noise import seed_of, step_noise
from rdcurve.sampler.prior import sample_prior
from rdcurve.sampler.step_size import Frozen
from rdcurve.sampler.target import Target, one_thread_per_tile
from rdcurve.state import Checkpoint
from rdcurve.types import SamplableDistortion

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
    upper: Tensor  # [K, n], minus log-mean of 1 / Z_hat over the groups of the conditional run
    acceptance: Tensor  # [K], of the forward sweep, mean over chains, images and moves

    @property
    def gap(self) -> Tensor:
        """Mean of upper - lower over the images, [K] nats."""
        return (self.upper - self.lower).mean(1)

    @property
    def gap_se(self) -> Tensor:
        """Standard error of `gap` over the simulated images, [K] nats."""
        return (self.upper - self.lower).std(1) / self.lower.shape[1] ** 0.5

    def table(self) -> dict[str, list[float]]:
        """Columns of K numbers, by increasing beta: means over the images, in nats, and how many images."""
        columns = {
            "beta": self.beta,
            "lower": self.lower.mean(1),
            "upper": self.upper.mean(1),
            "gap": self.gap,
            "gap_se": self.gap_se,
            "acceptance": self.acceptance,
            "n_images": torch.full((len(self.beta),), self.lower.shape[1]),
        }
        return {name: values.tolist() for name, values in columns.items()}


def simulate(target: Target, betas: Tensor, steps: list[int], n_images: int, seed: int) -> Simulated:
    """Draw `n_images` codes and images from the model of a target at each schedule index in `steps`.

    Raises:
        TypeError: x cannot be simulated under the distortion, so that BDMC has nothing to say.
    """
    distortion, device = target.distortion, target.x.device
    if not isinstance(distortion, SamplableDistortion):
        raise TypeError(
            f"BDMC needs a distortion with a `sample` method; {type(distortion).__name__} has none, because "
            "exp(-beta d(x, f)) is not a density of x that can be sampled"
        )
    descending = tuple(sorted(steps, reverse=True))
    images = torch.arange(len(descending) * n_images, device=device)
    z = sample_prior(target.prior, seed_of(seed, "bdmc"), images, 1)[0]  # [K n, latent]
    with torch.random.fork_rng(devices=[z.device] if z.device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed_of(seed, "bdmc", "x"))
        x = torch.cat(
            [
                distortion.sample(target.decoder(part[None])[0], float(betas[step]))
                for step, part in zip(descending, z.split(n_images), strict=True)
            ]
        )
    return Simulated(replace(target, x=x), z, descending, n_images)


def bdmc(
    simulated: Simulated,
    tuning: Tuning,
    kernel: Kernel,
    *,
    n_chains: int,
    seed: int,
    groups: Groups = Groups(),
    checkpoint: Checkpoint | None = None,
    phase: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BDMCGap:
    """Bounds from both sides on simulated data.

    Args:
        simulated: data with exact codes.
        tuning: the schedule of the formal run; step sizes and metric for the simulated images, learned without looking
            at the exact codes.
        kernel: settings of the moves.
        n_chains: C, of each direction.
        seed: another one than that of the simulation and of the prerun.
        groups: chains that resample among themselves; their size divides C.
        checkpoint: keeps the state.
        phase: prefix of the names of the phases, where a run has several of these.
        progress: called with (steps done, steps in all).

    Raises:
        ValueError: n_chains is not a multiple of the group size, or chains that move differently are to resample.
    """
    if n_chains < 1 or n_chains % groups.size:
        raise ValueError(f"n_chains must be a multiple of the group size {groups.size}, not {n_chains}")
    checkpoint = Checkpoint(None) if checkpoint is None else checkpoint
    n_steps, n_sweeps = simulated.steps[0], 2 if groups.size == 1 else 3

    def show(sweep: int) -> Callable[[int], None]:
        return lambda step: progress(sweep * n_steps + step, n_sweeps * n_steps)

    check_groups(tuning, groups)
    seeds = [seed_of(seed, name) for name in ("forward", "reverse", "conditional")]
    forward = _forward(simulated, tuning, kernel, n_chains, groups, seeds[0], checkpoint, f"{phase}forward", show(0))
    path = _reverse(
        simulated, tuning, kernel, n_chains // groups.size, groups, seeds[1], checkpoint, f"{phase}reverse", show(1)
    )
    if groups.size == 1:
        upper = -log_mean_exp(path.work)
    else:
        conditional = _forward(
            simulated, tuning, kernel, n_chains, groups, seeds[2], checkpoint, f"{phase}conditional", show(2), path
        )
        upper = -log_mean_exp(-group_log_mean_exp(conditional.log_weight, groups.size))
    n, order = simulated.n_images, torch.tensor(simulated.steps).flip(0)

    def by_beta(values: Tensor) -> Tensor:
        return values.unflatten(0, (-1, n)).flip(0).cpu()  # images come in order of decreasing beta

    return BDMCGap(
        tuning.betas.cpu()[order],
        by_beta(log_mean_exp(forward.log_weight)),
        by_beta(upper),
        by_beta(forward.acceptance).mean(1),
    )


class _Forward(NamedTuple):
    """Where a forward sweep stands. Images that have arrived stay in `log_weight`, and leave the chains."""

    chains: Chains  # of the images under way, the first ones
    log_weight: Tensor  # [C, K n] at arrival
    acceptance: Tensor  # [K n] mean rate at arrival


class _Path(NamedTuple):
    """Where the reverse sweep stands, and the path behind it, by schedule index from 0."""

    done: int  # steps
    state: State  # [G, K n], moved back as far as the sweep has come
    work: Tensor  # [G, K n] sum of (b_j - b_{j-1}) d(z_{j-1}) - log p/q (z_k): minus the log weight of the path
    z: Tensor  # [S + 1, G, K n, latent]; empty for groups of one, whose path is not walked again
    momentum: Tensor


def _forward(
    simulated: Simulated,
    tuning: Tuning,
    kernel: Kernel,
    n_chains: int,
    groups: Groups,
    seed: int,
    checkpoint: Checkpoint,
    phase: str,
    progress: Callable[[int], None],
    path: _Path | None = None,
) -> _Forward:
    """Up from the prior; the first chain of every group on the given path, if there is one."""
    n, n_images = simulated.n_images, len(simulated.z)
    images = torch.arange(n_images, device=simulated.z.device)
    chains = start_from_prior(simulated.target, seed, images, n_chains)

    def pinned(step: int) -> State:
        assert path is not None
        n_here = len(target.x)
        return State(target.at(path.z[step][:, :n_here]), path.momentum[step][:, :n_here])

    target = simulated.target
    if path is not None:
        chains = chains._replace(state=pin(chains.state, pinned(0), groups.size))
    start = _Forward(chains, torch.zeros_like(chains.log_weight), torch.zeros_like(chains.acceptance))
    chains, log_weight, acceptance = checkpoint.resume(phase, start)

    def after_step(now: Chains) -> None:
        progress(now.step)
        if now.step != step:
            checkpoint.offer(phase, _Forward(now, log_weight, acceptance))

    for k, step in enumerate(reversed(simulated.steps)):  # increasing; those that arrive are the last n images
        n_left = n_images - n * (k + 1)
        if chains.step >= step:
            continue
        target = simulated.target.select(slice(0, n_left + n))
        chains = advance(
            Annealing(target, kernel, seed, images[: n_left + n], groups, None if path is None else pinned),
            tuning.betas,
            chains,
            Frozen(tuning.step_sizes),
            tuning.metric,
            until=step,
            after_step=after_step,
        )
        log_weight[:, n_left : n_left + n] = under_prior(target, chains).log_weight[:, n_left:]
        acceptance[n_left : n_left + n] = chains.acceptance[n_left:] / chains.n_moves
        chains = chains.select(slice(0, n_left))
        checkpoint.offer(phase, _Forward(chains, log_weight, acceptance))
    return _Forward(chains, log_weight, acceptance)


def _reverse(
    simulated: Simulated,
    tuning: Tuning,
    kernel: Kernel,
    n_groups: int,
    groups: Groups,
    seed: int,
    checkpoint: Checkpoint,
    phase: str,
    progress: Callable[[int], None],
) -> _Path:
    """Down from the exact codes, by the time reversal of the forward moves.

    The forward move at b_j is M R, refreshment and then a trajectory. With F the flip of the momentum, R is its own
    reversal and that of M is F M F, so that the reversal is R F M F. In terms of the flipped momentum v = -u, which is
    what runs below, it is R M: a trajectory, then a refreshment.
    """
    n, target, n_images, latent_dim = simulated.n_images, simulated.target, *simulated.z.shape
    images, last = torch.arange(n_images, device=simulated.z.device), simulated.steps[0]
    chains = start_at(target, simulated.z.expand(n_groups, -1, -1).contiguous(), seed, images)
    length = last + 1 if groups.size > 1 else 0
    z = torch.zeros(length, n_groups, n_images, latent_dim, dtype=simulated.z.dtype, device=simulated.z.device)
    start = _Path(0, chains.state, -target.log_ratio(chains.state.point.z), z, torch.zeros_like(z))
    done, state, work, z, momentum = checkpoint.resume(phase, start)
    ladder, metric = tuning.betas.tolist(), tuning.metric

    def note(index: int, here: slice) -> None:
        if length:
            z[index][:, here], momentum[index][:, here] = state.point.z[:, here], -state.momentum[:, here]

    if done == 0:
        for k, step in enumerate(simulated.steps):
            note(step, slice(k * n, (k + 1) * n))
    with one_thread_per_tile():
        for index in range(last - done, 0, -1):
            # images come in order of decreasing beta: the first ones are those that have entered
            here = slice(0, n * sum(step >= index for step in simulated.steps))
            noise = step_noise(seed, images[here], n_groups, index, latent_dim, z.dtype)
            part = state.map(lambda value, here=here: value[:, here])  # type: ignore[misc]
            sizes = tuning.step_sizes[index].double()[..., here]
            sizes = sizes[:n_groups] if sizes.ndim == 2 else sizes  # a path of its own for every chain
            factor = metric.factor(ladder[index], len(images[here]))
            part, _ = trajectory(target.select(here), ladder[index], part, noise, sizes, factor, kernel)
            part = part._replace(momentum=refresh(part.momentum, noise, kernel))
            work = work.clone()
            work[:, here] += (ladder[index] - ladder[index - 1]) * part.point.distortion
            state = _put(state, part, here)
            note(index - 1, here)
            done = last - index + 1
            progress(done)
            checkpoint.offer(phase, _Path(done, state, work, z, momentum))
    return _Path(done, state, work, z, momentum)


def _put(state: State, part: State, here: slice) -> State:
    """`state` with the chains of some images replaced."""
    replaced = [torch.cat([new, old[:, here.stop :]], 1) for new, old in zip(part.point, state.point, strict=True)]
    momentum = torch.cat([part.momentum, state.momentum[:, here.stop :]], 1)
    return State(type(state.point)(*replaced), momentum)
