"""The prerun: learn schedule, step sizes and metric on the way from the prior to beta_max; frozen, they are the tuning.

Its own weights are thrown away, because its moves depend on their past. The formal run uses other noise.

The schedule is learned in rounds. Cut into blocks b of n_b steps, a run has the work variance

    V_b = Var(sum over the block of (beta_j - beta_{j-1}) d) = c_b / n_b,

where c_b holds what the target does (variance of d) and what the chains do (how long d stays correlated). The variance
of the whole log weight, sum c_b / n_b, is least for n_b in proportion to sqrt(c_b), and is then
(sum sqrt(c_b))^2 / T (thermodynamic length with the relaxation time in it; Sivak and Crooks 2012).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rdcurve.sampler.ais import Annealing, Chains, Groups, Tuning, advance, log_mean_exp, start_from_prior
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.legal import check_count, check_number
from rdcurve.sampler.metric import Metric, decompose, gauss_newton, identity
from rdcurve.sampler.modes import KEEP
from rdcurve.sampler.noise import seed_of
from rdcurve.sampler.schedule import geometric, respaced, retimed
from rdcurve.sampler.step_size import Adaptive, RunningMean, smooth
from rdcurve.sampler.target import Target
from rdcurve.state import Checkpoint

__all__ = ["Learned", "PrerunSettings", "Swept", "learn", "sweep", "tune"]

_CHOICES = {
    "schedule": ("learned", "sigmoid"),
    "metric": ("identity", "pooled", "image"),
    "step_size_rule": ("robbins_monro", "running_mean"),
    "keep": KEEP,
}

_LEAST = {
    "n_chains": 1,
    "n_rounds": 1,
    "round_temperatures": 3,
    "max_temperatures": 10,
    "smoothing": 1,
    "n_blocks": 1,
    "n_starts": 0,
    "most_starts": 0,
    "n_hops": 0,
    "n_modes": 1,
}

Progress = Callable[[int, int], None]  # (steps done, steps in all)


@dataclass(frozen=True)
class PrerunSettings:
    """How the tuning is learned."""

    n_chains: int = 8
    seed: int = 6
    schedule: str = "learned"  # or the paper's sigmoid
    sharpness: float = 10.0  # of the sigmoid
    n_rounds: int = 3  # of learning a schedule
    round_temperatures: int = 300  # schedule points of a round
    max_temperatures: int = 20_000  # budget where a gap is asked for
    step_size_rule: str = "robbins_monro"  # one step size per image, or the paper's running mean per chain
    target_acceptance: float = 0.8
    gain: float = 0.3  # of the step-size rule
    smoothing: int = 31  # schedule steps in the moving average of the learned step sizes
    metric: str = "image"  # none, one for all images, one per image
    n_blocks: int = 20  # of a sweep; metric and work variance are measured once in each
    n_starts: int = 12  # of each search for modes, where the second route starts; 0: no second route
    most_starts: int = 96  # where the best mode of some image is found seldom
    n_hops: int = 0  # of each start, from minimum to minimum, for decoders with many
    n_modes: int = 8  # that a search keeps, per image
    keep: str = "lowest"  # of the modes found; envelope: those that come near the most likely one at some beta

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        for name, least in _LEAST.items():
            check_count(f"{name} of the prerun", getattr(self, name), least)
        for name, most in {"sharpness": math.inf, "gain": math.inf, "target_acceptance": 1}.items():
            check_number(f"{name} of the prerun", getattr(self, name))
            if not 0 < getattr(self, name) < most:
                raise ValueError(f"{name} of the prerun must lie in 0 < {name} < {most}, not {getattr(self, name)}")


class Swept(NamedTuple):
    """What one adaptive run along a schedule has learned."""

    tuning: Tuning  # on the schedule of the sweep
    work: Tensor  # [B, N] V_b, variance over the chains of the work of each block, in nats^2
    ends: tuple[int, ...]  # [B] schedule index where each block ends
    log_z: Tensor  # [T + 1, N] as the adaptive run sees it: no bound, and good to know


class Learned(NamedTuple):
    """A schedule for any length, and the tuning along it."""

    swept: Swept
    cost: Tensor  # [T], sqrt(c_b) spread over the steps of the last sweep

    @property
    def length(self) -> float:
        """L = sum_b sqrt(c_b): with T steps at constant speed, Var log w = L^2 / T."""
        return float(self.cost.sum())

    def at_length(self, n_temperatures: int) -> Tuning:
        """The tuning for a schedule of that many points."""
        before = self.swept.tuning
        betas = respaced(before.betas, self.cost, n_temperatures)
        return Tuning(betas, retimed(before.step_sizes, before.betas, betas), before.metric)


def learn(
    target: Target,
    beta_max: float,
    kernel: Kernel,
    settings: PrerunSettings,
    groups: Groups,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress = lambda done, total: None,
) -> Learned:
    """Learn schedule, step sizes and metric, in rounds.

    Args:
        target: the annealed target of N images.
        beta_max: where the schedule ends.
        kernel: the moves of the formal run.
        settings: how to learn.
        groups: of the formal run; where it resamples, the chains of the prerun do.
        checkpoint: keeps the state.
        progress: called with (steps done, steps in all).
    """
    n_points, total = settings.round_temperatures, settings.n_rounds * (settings.round_temperatures - 1)
    betas = geometric(n_points, beta_max, _first_beta(target, beta_max, settings.seed))
    learned = None
    for number in range(settings.n_rounds):
        done = number * (n_points - 1)
        if learned is not None:
            betas = respaced(betas, learned.cost, n_points)
        swept = sweep(
            target,
            betas,
            kernel,
            settings,
            groups,
            seed=seed_of(settings.seed, "round", number),
            # measured in the first round, from where the chains then were, and in the last, from where they belong
            metric=None if learned is None or number == settings.n_rounds - 1 else learned.swept.tuning.metric,
            checkpoint=checkpoint,
            phase=f"round {number}",
            progress=lambda step, done=done: progress(done + step, total),  # type: ignore[misc]
        )
        learned = Learned(swept, _cost(swept, target))
    assert learned is not None
    return learned


def tune(
    target: Target,
    betas: Tensor,
    kernel: Kernel,
    settings: PrerunSettings,
    groups: Groups,
    *,
    checkpoint: Checkpoint | None = None,
    phase: str = "tune",
    progress: Progress = lambda done, total: None,
) -> Tuning:
    """Learn step sizes and metric along a given schedule, in one sweep of it or of a thinned copy."""
    thinned = betas
    if settings.step_size_rule == "robbins_monro" and len(betas) > settings.round_temperatures:
        thinned = respaced(betas, torch.ones(len(betas) - 1), settings.round_temperatures)
    tuning = sweep(
        target,
        thinned,
        kernel,
        settings,
        groups,
        seed=settings.seed,
        checkpoint=checkpoint,
        phase=phase,
        progress=lambda step: progress(step, len(thinned) - 1),
    ).tuning
    if thinned is betas:
        return tuning
    return Tuning(betas, retimed(tuning.step_sizes, thinned, betas), tuning.metric)


class _Sweep(NamedTuple):
    """Where a sweep stands."""

    chains: Chains
    table: Tensor  # of step sizes
    accepted: Tensor  # of the running-mean rule
    eigenvalues: Tensor  # [B, N or 1, latent] of the metric, filled as far as the sweep has come
    eigenvectors: Tensor  # [B, N or 1, latent, latent]
    work: Tensor  # [C, N] of the present block
    variances: Tensor  # [B, N]
    log_z: Tensor  # [T + 1, N]


def sweep(
    target: Target,
    betas: Tensor,
    kernel: Kernel,
    settings: PrerunSettings,
    groups: Groups,
    *,
    seed: int,
    metric: Metric | None = None,
    checkpoint: Checkpoint | None = None,
    phase: str = "sweep",
    progress: Callable[[int], None] = lambda step: None,
) -> Swept:
    """Anneal `n_chains` chains per image along a schedule and remember what suited them.

    The metric is measured on the way, unless one is given.
    """
    checkpoint = Checkpoint(None) if checkpoint is None else checkpoint
    n_steps, (n_images, device, z_type) = len(betas) - 1, (len(target.x), target.x.device, target.x.dtype)
    latent_dim, n_chains = target.prior.event_shape[0], settings.n_chains
    images = torch.arange(n_images, device=device)
    rule: Adaptive | RunningMean
    if settings.step_size_rule == "running_mean":
        rule = RunningMean(n_steps, n_chains, n_images, target_acceptance=settings.target_acceptance, device=device)
    else:
        rule = Adaptive(
            n_steps, n_images, target_acceptance=settings.target_acceptance, gain=settings.gain, device=device
        )
    n_blocks = min(settings.n_blocks, n_steps)
    ends = tuple(n_steps * (block + 1) // n_blocks for block in range(n_blocks))
    starts = [0, *ends[:-1]]
    chains = start_from_prior(target, seed, images, n_chains)
    n_metrics = n_images if settings.metric == "image" else 1
    state = checkpoint.resume(
        phase,
        _Sweep(
            chains,
            rule.table,
            getattr(rule, "accepted", torch.zeros(0)),
            torch.zeros(n_blocks, n_metrics, latent_dim, dtype=z_type, device=device),
            torch.zeros(n_blocks, n_metrics, latent_dim, latent_dim, dtype=z_type, device=device),
            torch.zeros_like(chains.log_weight),
            torch.zeros(n_blocks, n_images, dtype=torch.float64, device=device),
            torch.zeros(n_steps + 1, n_images, dtype=torch.float64, device=device),
        ),
    )
    chains, rule.table, accepted, eigenvalues, eigenvectors, work, variances, log_z = state
    if isinstance(rule, RunningMean):
        rule.accepted = accepted
    resampling = Groups(n_chains, groups.resample_below) if groups.size > 1 else Groups()
    ladder = betas.tolist()
    if metric is None and settings.metric == "identity":
        metric = identity(latent_dim, z_type, device)
    given = metric

    def now(chains: Chains) -> _Sweep:
        accepted = rule.accepted if isinstance(rule, RunningMean) else torch.zeros(0)
        return _Sweep(chains, rule.table, accepted, eigenvalues, eigenvectors, work, variances, log_z)

    def remember(after: Chains) -> None:
        nonlocal work
        log_z[after.step] = log_mean_exp(after.log_weight)
        if after.step < n_steps:
            work = work + (ladder[after.step + 1] - ladder[after.step]) * after.state.point.distortion
        progress(after.step)
        if after.step not in ends:  # the end of a block is offered below, when its variance has been noted
            checkpoint.offer(phase, now(after))

    annealing = Annealing(target, kernel, seed, images, resampling)
    for block, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if chains.step >= end:
            continue
        if given is None:
            if chains.step == start:
                z, pooled = chains.state.point.z, settings.metric == "pooled"
                curvature = gauss_newton(target, z, pooled=pooled, heed=checkpoint.heed)
                eigenvalues[block], eigenvectors[block] = decompose(curvature)
            known = slice(0, block + 1)
            metric = Metric(tuple(ladder[i] for i in starts[known]), eigenvalues[known], eigenvectors[known])
        chains = advance(annealing, betas, chains, rule, metric, until=end, after_step=remember)
        variances[block] = work.var(0) if n_chains > 1 else torch.nan
        work = torch.zeros_like(work)
        checkpoint.offer(phase, now(chains))
    if given is None:
        metric = Metric(tuple(ladder[i] for i in starts), eigenvalues, eigenvectors)
    table = rule.table if isinstance(rule, RunningMean) else smooth(rule.table, settings.smoothing)
    return Swept(Tuning(betas, table, metric), variances, ends, log_z)


def _first_beta(target: Target, beta_max: float, seed: int) -> float:
    """A beta at which the prior is hardly disturbed: beta sd(d) = 0.1 on prior draws."""
    images = torch.arange(len(target.x), device=target.x.device)
    distortion = start_from_prior(target, seed_of(seed, "first beta"), images, 8).state.point.distortion
    return min(0.1 / max(float(distortion.std(0).median()), 1e-300), 0.1 * beta_max)


def _cost(swept: Swept, target: Target) -> Tensor:
    """sqrt(c_b), spread evenly over the steps of each block, [T]."""
    betas = swept.tuning.betas
    counts = torch.tensor(swept.ends).diff(prepend=torch.zeros(1, dtype=torch.int64))
    starts = torch.tensor(swept.ends) - counts
    width = betas[list(swept.ends)] - betas[starts]
    # Chains that sit in different modes for good differ by much more than a target whose d they sample, and no
    # schedule helps them: sd(d) counts at most 3 times that of a Gaussian posterior, sqrt(latent / 2) / beta, and the
    # worst fifth of the images do not count.
    beta = betas[list(swept.ends)]
    cap = (width * 3 * math.sqrt(target.prior.event_shape[0] / 2) / beta).square()
    variance = torch.minimum(swept.work.cpu(), cap[:, None]).sort(1).values
    variance = variance[:, : math.ceil(0.8 * variance.shape[1])].mean(1)
    cost = (variance * counts).sqrt()
    neighbours = torch.cat([cost[:1], cost, cost[-1:]])
    cost = (neighbours[:-2] * neighbours[1:-1] * neighbours[2:]).pow(1 / 3)  # less noise, no block forgotten
    cost = cost.clamp(min=0.05 * float(cost.mean()))
    return (cost / counts).repeat_interleave(counts)
