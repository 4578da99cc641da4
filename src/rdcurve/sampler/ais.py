"""Annealed importance sampling: one loop for the prerun, the formal run and both directions.

Along betas b_0, b_1, ..., b_T each chain repeats, for j = 1 .. T (Neal 2001; the paper's equations 1 to 4)

    log w <- log w - (b_j - b_{j-1}) d(x, f(z)),    then one HMC move of (z, u) at b_j.

Started at exact samples of q_{b_0}, E[w] = Z(b_j) / Z(b_0) at every j, for any frozen step sizes and metric. From the
prior b_0 = 0 and Z(0) = 1, so log-mean-exp of log w is a stochastic lower bound on log Z(b_j); walking the schedule
backwards from an exact sample of q_{beta_max} it is minus a stochastic upper bound.

Chains may form groups that resample (sequential Monte Carlo; Del Moral, Doucet, Jasra 2006): where the weights of a
group have become unequal, its chains copy one another by weight, and each gets the mean weight of the group. The mean
weight stays unbiased, at every beta. Groups never mix, so they are independent and give the error bars.

Chains may be annealed under another prior than that of the model (`Target.annealed`). Where they are looked at, their
weights are those of the model's (`under_prior`); all else here knows the other alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdcurve.sampler.captured import Number, captured
from rdcurve.sampler.hmc import Kernel, State, Transition, move
from rdcurve.sampler.lanes import full
from rdcurve.sampler.metric import Metric
from rdcurve.sampler.noise import step_noise
from rdcurve.sampler.prior import sample_prior, slope
from rdcurve.sampler.step_size import Frozen, StepSizes
from rdcurve.sampler.target import Point, Target, exact_products, one_thread_per_tile

__all__ = [
    "AT_ONCE",
    "Annealing",
    "Chains",
    "Groups",
    "Tuning",
    "advance",
    "group_log_mean_exp",
    "log_mean_exp",
    "pin",
    "resample",
    "start_at",
    "start_from_prior",
    "under_prior",
]


_WORTH_A_GRAPH = 16  # steps made before: to record one takes as long as a few of them
AT_ONCE = 4  # steps of one graph in a formal run, which notes a beta every dozen steps or more


class Groups(NamedTuple):
    """How the chains of an image are grouped. Size 1 is plain AIS."""

    size: int = 1  # chains per group; chains g size .. (g + 1) size - 1 are group g
    resample_below: float = 0.5  # a group resamples when its effective sample size falls below this share of its size


class Tuning(NamedTuple):
    """What a formal run replays, learned by a prerun and frozen."""

    betas: Tensor  # [T + 1] float64, from 0 to beta_max
    step_sizes: Tensor  # [T + 1, N] or [T + 1, C, N] float64, by schedule index
    metric: Metric

    def select(self, images: slice | Tensor) -> Tuning:
        """The tuning of some of the images."""
        return self._replace(step_sizes=self.step_sizes[..., images], metric=self.metric.select(images))


class Chains(NamedTuple):
    """Where a run stands: all that is needed to go on."""

    step: int  # annealing steps done
    state: State  # position and momentum of the chains [C, N]
    log_weight: Tensor  # [C, N] float64, nats
    lineage: Tensor  # [C, N] int64, which of the chains at step 0 each descends from
    acceptance: Tensor  # [N] float64, acceptance rate summed over the moves since the last reset
    n_moves: int  # moves in that sum

    def select(self, images: slice | Tensor) -> Chains:
        """The chains of some of the images."""
        return self._replace(
            state=self.state.map(lambda value: value[:, images]),
            log_weight=self.log_weight[:, images],
            lineage=self.lineage[:, images],
            acceptance=self.acceptance[images],
        )

    def recount(self) -> Chains:
        """The same, with the acceptance rate counted anew."""
        return self._replace(acceptance=torch.zeros_like(self.acceptance), n_moves=0)


def start_from_prior(target: Target, seed: int, images: Tensor, n_chains: int) -> Chains:
    """Chains at step 0, drawn from the prior that they are annealed under. `images` [N] int64 keys the noise."""
    return start_at(target, sample_prior(target.annealed, seed, images, n_chains), seed, images)


def under_prior(target: Target, chains: Chains) -> Chains:
    """The same chains as weighted samples of p(z) exp(-beta d), with the gradient of log p: to look at, not to move."""
    if target.annealed is target.prior:
        return chains
    point, ratio = chains.state.point, target.log_ratio(chains.state.point.z)
    point = point._replace(log_prior=point.log_prior + ratio, grad_log_prior=slope(target.prior, point.z))
    return chains._replace(state=chains.state._replace(point=point), log_weight=chains.log_weight + ratio)


def start_at(target: Target, z: Tensor, seed: int, images: Tensor, step: int = 0) -> Chains:
    """Chains at given codes z [C, N, latent], exact samples of the run's first target.

    Raises:
        ValueError: the distortion or the prior is not finite there; names the images.
    """
    exact_products()
    momentum = step_noise(seed, images, z.shape[0], step, z.shape[2], z.dtype).normal
    with one_thread_per_tile():
        point = target.at(z)
    bad = ~(point.distortion.isfinite() & point.log_prior.isfinite()).all(0)
    if bad.any():
        raise ValueError(f"the distortion is not finite at the first codes, for images {images[bad].tolist()}")
    itself = torch.arange(len(z), device=z.device)[:, None].expand(z.shape[:2])
    return Chains(
        step,
        State(point, momentum),
        torch.zeros_like(point.distortion),
        itself.contiguous(),
        torch.zeros_like(point.distortion[0]),
        0,
    )


class Annealing:
    """An annealing step, and all of it that stays the same in a run.

    On a GPU, a step that has been made some times is recorded as a CUDA graph, and replayed from then on; so is a
    number of steps in a row.

    Args:
        target: the annealed target of N images.
        kernel: settings of the moves.
        seed: of the noise, keyed by (seed, image, chain, step).
        images: [N] int64, the identity of each image.
        groups: chains that resample among themselves.
        pinned: conditional run: the first chain of every group follows a given path, (step) -> State [G, N].
    """

    def __init__(
        self,
        target: Target,
        kernel: Kernel,
        seed: int,
        images: Tensor,
        groups: Groups = Groups(),
        pinned: Callable[[int], State] | None = None,
    ) -> None:
        self.n_images, self.groups, self.pinned = len(images), groups, pinned
        self._step = _temper(target, kernel, groups, seed, images, pinned is not None)
        self._several = _temper_several(self._step)
        self._n_made, self._has_graph = 0, [False, False]

    def __call__(self, state: State, log_weight: Tensor, *arguments: Any) -> tuple[State, Tensor, Tensor, Transition]:
        """From beta `before` to `beta`; chains [C, N] of one number C in all calls. Arguments as of `_temper`."""
        if self.settled and not self._has_graph[0] and not _on_host(log_weight):
            self._step = captured(self._step, state, log_weight, *arguments)
            self._has_graph[0] = True
        self._n_made += 1
        return self._step(state, log_weight, *arguments)

    def several(self, state: State, log_weight: Tensor, *arguments: Any) -> tuple[State, Tensor, Tensor, Tensor]:
        """Steps in a row, of one number in all calls, as one graph. Arguments as of `_temper_several`."""
        if not self._has_graph[1]:
            self._several = captured(self._several, state, log_weight, *arguments)
            self._has_graph[1] = True
        return self._several(state, log_weight, *arguments)

    @property
    def settled(self) -> bool:
        """Whether enough steps were made for a graph to pay."""
        return self._n_made >= _WORTH_A_GRAPH


def advance(
    annealing: Annealing,
    betas: Tensor,
    chains: Chains,
    step_sizes: StepSizes,
    metric: Metric,
    *,
    until: int,
    reverse: bool = False,
    after_step: Callable[[Chains], None] = lambda chains: None,
    at_once: int = 1,
) -> Chains:
    """Carry the chains on to annealing step `until`.

    Args:
        annealing: the step, made once for all calls of a run.
        betas: [T + 1] float64, the whole schedule, increasing.
        chains: where the run stands, `chains.step <= until <= T`.
        step_sizes: by schedule index; of a wider table the first N columns are used.
        metric: by beta, likewise.
        until: the step to reach.
        reverse: walk the schedule from beta_T to beta_0; step j is then schedule index T - j.
        after_step: called with the chains after every step; may raise to stop the run.
        at_once: on a GPU, with frozen step sizes and nothing pinned, so many steps are one graph, and `after_step` is
            called after the last of them.

    Returns:
        The chains at `until`. The result does not depend on how a run is cut into calls, nor on `at_once`.
    """
    n_images, pinned, start = annealing.n_images, annealing.pinned, chains.step
    steps = range(start, until + 1)
    indices = [len(betas) - 1 - step for step in steps] if reverse else list(steps)
    ladder, numbers = betas[indices].tolist(), list(steps)
    arguments = _arguments(ladder, numbers, chains.log_weight)
    if _on_host(chains.log_weight) or pinned is not None or not isinstance(step_sizes, Frozen):
        at_once = 1  # each step waits for the host anyway
    with one_thread_per_tile():
        while (i := chains.step - start) < until - start:
            if at_once > 1 and annealing.settled and i + at_once <= until - start:
                end = i + at_once
                befores, afters, indexes = zip(*arguments[i:end], strict=True)
                sizes = torch.stack([step_sizes[index][..., :n_images] for index in indices[i + 1 : end + 1]])
                factors = torch.stack([metric.factor(beta, n_images) for beta in ladder[i + 1 : end + 1]])
                state, log_weight, lineage, acceptance = annealing.several(
                    chains.state, chains.log_weight, chains.lineage, chains.acceptance,
                    befores, afters, indexes, sizes, factors,
                )  # fmt: skip
                chains = Chains(start + end, state, log_weight, lineage, acceptance, chains.n_moves + at_once)
            else:
                step, index = steps[i + 1], indices[i + 1]
                sizes, factor = step_sizes[index][..., :n_images], metric.factor(ladder[i + 1], n_images)
                state, log_weight, lineage, transition = annealing(
                    chains.state, chains.log_weight, chains.lineage, *arguments[i], sizes, factor
                )
                if pinned is not None:
                    state = pin(state, pinned(step), annealing.groups.size)
                step_sizes.observe(index, transition)
                acceptance = chains.acceptance + _mean_over_chains(transition.acceptance_rate)
                chains = Chains(step, state, log_weight, lineage, acceptance, chains.n_moves + 1)
            after_step(chains)
    return chains


def _mean_over_chains(value: Tensor) -> Tensor:
    return full(value).mean(0)[: value.shape[1]]


def _temper(
    target: Target, kernel: Kernel, groups: Groups, seed: int, images: Tensor, keep_first: bool
) -> Callable[..., tuple[State, Tensor, Tensor, Transition]]:
    """One annealing step from beta `before` to `beta`, with no word to the host in between."""

    def temper(
        state: State,
        log_weight: Tensor,
        lineage: Tensor,
        before: Number,
        beta: Number,
        step: Number,
        sizes: Tensor,
        factor: Tensor,
    ) -> tuple[State, Tensor, Tensor, Transition]:
        n_chains, _, latent_dim = state.momentum.shape
        log_weight = log_weight - (beta - before) * state.point.distortion
        noise = step_noise(seed, images, n_chains, step, latent_dim, state.momentum.dtype)
        state, log_weight, lineage = resample(state, log_weight, lineage, noise.ancestor, groups, keep_first)
        state, transition = move(target, beta, state, noise, sizes, factor, kernel)
        return state, log_weight, lineage, transition

    return temper


def _temper_several(temper: Callable[..., tuple[State, Tensor, Tensor, Transition]]) -> Callable[..., Any]:
    """As many annealing steps as there are betas, each with its row of step sizes and factors."""

    def temper_several(
        state: State,
        log_weight: Tensor,
        lineage: Tensor,
        acceptance: Tensor,
        befores: tuple[Number, ...],
        betas: tuple[Number, ...],
        steps: tuple[Number, ...],
        sizes: Tensor,
        factors: Tensor,
    ) -> tuple[State, Tensor, Tensor, Tensor]:
        for i in range(len(betas)):
            state, log_weight, lineage, transition = temper(
                state, log_weight, lineage, befores[i], betas[i], steps[i], sizes[i], factors[i]
            )
            acceptance = acceptance + _mean_over_chains(transition.acceptance_rate)
        return state, log_weight, lineage, acceptance

    return temper_several


def _arguments(ladder: list[float], numbers: list[int], like: Tensor) -> list[tuple[Number, ...]]:
    """(beta before, beta, number) of every step; on a GPU as tensors there, so that none is fixed in a graph."""
    if _on_host(like):
        return list(zip(ladder[:-1], ladder[1:], numbers[1:], strict=True))
    betas = torch.tensor(ladder, dtype=torch.float64, device=like.device).unbind()
    return list(zip(betas[:-1], betas[1:], torch.tensor(numbers[1:], device=like.device).unbind(), strict=True))


def _on_host(value: Tensor) -> bool:
    """Whether Python may ask for a value and need not wait for it."""
    return value.device.type == "cpu"


def resample(
    state: State, log_weight: Tensor, lineage: Tensor, uniform: Tensor, groups: Groups, keep_first: bool = False
) -> tuple[State, Tensor, Tensor]:
    """Multinomial resampling of the groups whose effective sample size is low.

    Args:
        state: chains [C, N].
        log_weight: [C, N].
        lineage: [C, N].
        uniform: [C, N], one random number per chain.
        groups: sizes and threshold.
        keep_first: the first chain of a group is never replaced (conditional SMC; Andrieu, Doucet, Holenstein 2010).

    Returns:
        State, log weights and lineages [C, N] after; log-mean-exp of every group is unchanged.
    """
    if groups.size == 1:
        return state, log_weight, lineage
    n = log_weight.shape[1]
    share = full(log_weight).unflatten(0, (-1, groups.size)).softmax(1)  # [G, K, N]
    low = (share.square().sum(1, keepdim=True) * (groups.size * groups.resample_below) > 1)[..., :n]  # [G, 1, N]
    if _on_host(low) and not low.any():
        return state, log_weight, lineage
    drawn = uniform.unflatten(0, (-1, groups.size))
    ancestor = (drawn[:, :, None] > share.cumsum(1)[:, None, :, :n]).sum(2).clamp(max=groups.size - 1)  # [G, K, N]
    itself = torch.arange(groups.size, device=ancestor.device)[:, None]
    ancestor = torch.where(low, ancestor, itself)
    if keep_first:
        ancestor[:, 0] = 0
    first = torch.arange(0, len(log_weight), groups.size, device=ancestor.device)[:, None, None]
    ancestor = (ancestor + first).flatten(0, 1)  # [C, N]

    def copy(value: Tensor) -> Tensor:
        index = ancestor if value.ndim == 2 else ancestor[..., None].expand_as(value)
        return value.gather(0, index)

    mean = group_log_mean_exp(log_weight, groups.size)[:, None]
    log_weight = torch.where(low, mean, log_weight.unflatten(0, (-1, groups.size))).flatten(0, 1)
    return state.map(copy), log_weight, copy(lineage)


def pin(state: State, path: State, size: int) -> State:
    """`state` with the first chain of every group put where the path is."""

    def put(value: Tensor, pinned: Tensor) -> Tensor:
        value = value.clone()
        value[::size] = pinned
        return value

    point = Point(*(put(*pair) for pair in zip(state.point, path.point, strict=True)))
    return State(point, put(state.momentum, path.momentum))


def log_mean_exp(log_weight: Tensor, dim: int = 0) -> Tensor:
    """Log of the mean weight over the chains, [C, N] -> [N]."""
    return full(log_weight).logsumexp(dim)[..., : log_weight.shape[-1]] - math.log(log_weight.shape[dim])


def check_n_chains(n_chains: int, groups: Groups) -> None:
    """Raises: ValueError: the chains do not fill two groups or more."""
    if n_chains < 2 or n_chains % groups.size or n_chains == groups.size:
        raise ValueError(
            f"n_chains must be a multiple of the group size {groups.size}, at least {2 * groups.size} for an "
            f"error bar, not {n_chains}"
        )


def check_groups(tuning: Tuning, groups: Groups) -> None:
    """Chains that resample among themselves must move alike, or the mean weight is no longer unbiased.

    Raises:
        ValueError: every chain has step sizes of its own.
    """
    if tuning.step_sizes.ndim == 3 and groups.size > 1:
        raise ValueError(
            f"chains with step sizes of their own cannot resample in groups of {groups.size}: group size 1, or one "
            "step size for all chains of an image"
        )


def group_log_mean_exp(log_weight: Tensor, size: int) -> Tensor:
    """Log of the mean weight of every group, [C, N] -> [G, N]."""
    return log_mean_exp(log_weight.unflatten(0, (-1, size)), 1)
