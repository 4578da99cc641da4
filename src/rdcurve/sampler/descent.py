"""The second route to the curve: from the modes at beta_max down to the prior.

A run from the prior meets modes by chance and stays in them; a run from the modes starts where they are, and heating
opens the way out. Both give unbiased weights, hence stochastic lower bounds on log Z, at every beta, and they fail in
different ways: where they agree on real images, that is evidence, and where they do not, the higher one is closer.

From a mixture m(z) of Gaussians around the modes (`rdcurve.sampler.modes`), whose density is known, chains cross

    m(z)^(1 - t) [p(z) exp(-beta_max d)]^t,    t = 0 .. 1,

and then walk the schedule backwards. E[w] = Z(beta) at every beta on the way. Chains never resample here: a mode that
weighs nothing at beta_max may be what matters lower down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rdcurve.sampler.ais import AT_ONCE, Annealing, Chains, Groups, Tuning, advance, log_mean_exp, start_at
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.metric import Metric, decompose, gauss_newton
from rdcurve.sampler.modes import Mixture, Modes, find_modes, hessian, mixture_at
from rdcurve.sampler.noise import seed_of
from rdcurve.sampler.prerun import Learned, PrerunSettings
from rdcurve.sampler.prior import covers_everything, sample_prior
from rdcurve.sampler.schedule import interpolated, respaced, retimed
from rdcurve.sampler.step_size import Adaptive, Frozen, StepSizes, smooth
from rdcurve.sampler.target import Point, Target
from rdcurve.state import Checkpoint

__all__ = ["Descent", "descend", "has_descent", "learn_descent"]

_BRIDGE = torch.linspace(0, 1, 21, dtype=torch.float64)  # t; the mixture is close already


class Descent(NamedTuple):
    """What the route down replays: independent searches, each the start of a group of chains, and a tuning."""

    searches: tuple[Modes, ...]
    bridge_sizes: Tensor  # [B + 1, N] float64
    tuning: Tuning  # by schedule index, as for the route up
    share: Tensor  # [T + 1, N] weight of the route up in the mean of both, between 0.05 and 0.95

    def select(self, images: slice | Tensor) -> Descent:
        """The descent of some of the images."""
        searches = tuple(Modes(s.z[:, images], s.found[:, images], s.hits[images]) for s in self.searches)
        return Descent(searches, self.bridge_sizes[:, images], self.tuning.select(images), self.share[:, images])


class _Bridge:
    """The target of t between mixture and q_beta, in the form that the annealing loop asks for."""

    def __init__(self, target: Target, mixtures: Sequence[Mixture], beta: float) -> None:
        self.target, self.mixtures, self.beta = target, mixtures, beta
        self.x = target.x

    def at(self, z: Tensor) -> Point:
        point, (log_m, grad_log_m) = self.target.at(z), self._mixture(z)
        return Point(
            z.detach(),
            log_m,
            log_m + self.beta * point.distortion - point.log_prior,
            grad_log_m,
            grad_log_m + self.beta * point.grad_distortion - point.grad_log_prior,
        )

    def gradients(self, z: Tensor) -> tuple[Tensor, Tensor]:
        grad_log_prior, grad_distortion = self.target.gradients(z)
        grad_log_m = self._mixture(z)[1]
        return grad_log_m, grad_log_m + self.beta * grad_distortion - grad_log_prior

    def _mixture(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log density and gradient; each search has its own mixture, and its own group of chains."""
        parts = z.detach().chunk(len(self.mixtures))
        pairs = [mixture.at(part) for mixture, part in zip(self.mixtures, parts, strict=True)]
        log_m, grad_log_m = (torch.cat(values) for values in zip(*pairs, strict=True))
        return log_m, grad_log_m


class _WayDown(NamedTuple):
    """What the way down has taught, but for the betas: kept, so that a run that goes on need not walk it again."""

    bridge_sizes: Tensor  # as in `Descent`
    step_sizes: Tensor  # [T + 1, N]
    eigenvalues: Tensor  # [B, N or 1, latent] of the metric, by increasing beta
    eigenvectors: Tensor  # [B, N or 1, latent, latent]
    share: Tensor  # as in `Descent`


class _Constant:
    """One factor of the metric at every t."""

    def __init__(self, factor: Tensor) -> None:
        self._factor = factor

    def factor(self, beta: float, n_images: int) -> Tensor:
        return self._factor[:n_images]


def has_descent(target: Target, settings: PrerunSettings, groups: Groups) -> bool:
    """Whether a curve has the second route: asked for, chains in groups, and a prior that is finite everywhere.

    Raises:
        ValueError: it has, but torch has no second derivative to search modes with. It is tried on one code, so that
            this is known before the long work.
    """
    if not (settings.n_starts and groups.size > 1 and covers_everything(target.prior)):
        return False
    one = target.select(slice(0, 1))
    hessian(one, sample_prior(target.prior, 0, torch.zeros(1, dtype=torch.int64, device=target.x.device), 1), 1.0)
    return True


def learn_descent(
    target: Target,
    tuning: Tuning,
    learned: Learned,
    kernel: Kernel,
    settings: PrerunSettings,
    *,
    n_searches: int = 2,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Descent:
    """Search the modes, and learn step sizes and metric on the way down from them.

    Args:
        target: of N images.
        tuning: of the route up; lends the schedule.
        learned: what the route up has learned, among it its log Z.
        kernel: the moves of the formal run.
        settings: how to learn, among it `n_starts`, `most_starts`, `n_hops`, `n_modes` and `keep` of each search.
        n_searches: independent of each other.
        checkpoint: keeps the state.
        progress: called with (steps done, steps in all).
    """
    checkpoint = Checkpoint(None) if checkpoint is None else checkpoint
    betas, device = tuning.betas, target.x.device
    images = torch.arange(len(target.x), device=device)
    searches = find_modes(
        target,
        float(betas[-1]),
        images,
        seeds=[seed_of(settings.seed, "search", number) for number in range(n_searches)],
        n_starts=settings.n_starts,
        most_starts=settings.most_starts,
        n_hops=settings.n_hops,
        n_modes=settings.n_modes,
        keep=settings.keep,
        resume=lambda start: checkpoint.resume("searches", start),
        after_round=lambda searches: checkpoint.offer("searches", searches),
        after_step=checkpoint.heed,
        heed=checkpoint.heed,
    )
    thinned = betas
    if len(betas) > settings.round_temperatures:
        thinned = respaced(betas, torch.ones(len(betas) - 1), settings.round_temperatures)
    n_steps, n_bridge = len(thinned) - 1, len(_BRIDGE) - 1
    n_blocks = min(settings.n_blocks, n_steps)
    starts = [n_steps * block // n_blocks for block in range(n_blocks, 0, -1)]  # schedule indices, decreasing
    ends = [*starts[1:], 0]
    from_below = tuple(float(thinned[end]) for end in reversed(ends))  # beta where each block begins

    def descent(found: _WayDown) -> Descent:
        metric = Metric(from_below, found.eigenvalues, found.eigenvectors)
        return Descent(searches, found.bridge_sizes, Tuning(betas, found.step_sizes, metric), found.share)

    if checkpoint.holds("way down"):
        return descent(checkpoint.resume("way down", _WayDown(*[torch.zeros(0, device=device)] * 5)))

    def rule(n: int, reverse: bool) -> Adaptive:
        return Adaptive(
            n,
            len(images),
            target_acceptance=settings.target_acceptance,
            gain=settings.gain,
            reverse=reverse,
            device=device,
        )

    across, down = rule(n_bridge, False), rule(n_steps, True)
    seed = seed_of(settings.seed, "descent")
    chains = _cross(target, searches, thinned, across, kernel, settings.n_chains, seed, images, checkpoint.heed)
    eigenvalues, eigenvectors = [], []
    log_z = torch.zeros(n_steps + 1, len(images), dtype=torch.float64, device=device)
    log_z[n_steps] = log_mean_exp(chains.log_weight)

    def remember(now: Chains) -> None:
        log_z[n_steps - now.step] = log_mean_exp(now.log_weight)
        progress(now.step, n_steps)
        checkpoint.heed()

    annealing = Annealing(target, kernel, seed, images)
    for end in ends:
        z, pooled = chains.state.point.z, settings.metric == "pooled"
        matrix = decompose(gauss_newton(target, z, pooled=pooled, heed=checkpoint.heed))
        eigenvalues.append(matrix[0])
        eigenvectors.append(matrix[1])
        metric = Metric((0.0,), matrix[0][None], matrix[1][None])
        chains = advance(
            annealing, thinned, chains, down, metric, until=n_steps - end, reverse=True, after_step=remember
        )
    table = retimed(smooth(down.table, settings.smoothing), thinned, betas)
    # Any fixed weights keep the mean of both unbiased. Equal ones would cost log 2 wherever a route is of no use, and
    # near the prior lend the noise of chains that have come all the way down to those that have just left: the variance
    # of log w grows as the length walked.
    measured_on = learned.swept.tuning.betas
    walked = torch.cat([learned.cost.new_zeros(1), learned.cost.cumsum(0)])[:, None]
    up_length = interpolated(walked, measured_on, betas).to(device)
    to_go = ((learned.length - up_length) / up_length).clamp(min=1)
    difference = interpolated(learned.swept.log_z, measured_on, betas) - interpolated(log_z, thinned, betas)
    share = (difference + to_go.log()).sigmoid().clamp(0.05, 0.95)
    matrices = torch.stack(eigenvalues[::-1]), torch.stack(eigenvectors[::-1])
    found = _WayDown(smooth(across.table, 5), table, *matrices, share)
    checkpoint.offer("way down", found)
    return descent(found)


def _cross(
    target: Target,
    searches: Sequence[Modes],
    betas: Tensor,
    step_sizes: StepSizes,
    kernel: Kernel,
    n_chains: int,
    seed: int,
    images: Tensor,
    heed: Callable[[], None],
) -> Chains:
    """Chains from the mixtures to q_beta_max, weighted; step 0 of the way down. A group of chains per search."""
    beta = float(betas[-1])
    mixtures = [mixture_at(target, modes, beta, heed) for modes in searches]
    share = n_chains // len(mixtures)
    z = torch.cat([m.sample(seed_of(seed, i), images, share) for i, m in enumerate(mixtures)])
    bridge = _Bridge(target, mixtures, beta)
    # the metric of the best mode that any search has found; of two that are one, rounding decides: `at` rounds alike
    potentials = torch.stack([beta * target.at(modes.z[:1]).distortion[0] for modes in searches])
    best = potentials.argmin(0)
    precision = torch.stack([m.precision[0] for m in mixtures])[best, torch.arange(len(images), device=best.device)]
    eigenvalues, eigenvectors = torch.linalg.eigh(precision.cpu())  # as in `Mixture`
    factor = (eigenvectors * eigenvalues.rsqrt()[:, None, :]).to(z)
    chains = start_at(bridge, z, seed_of(seed, "bridge"), images)  # type: ignore[arg-type]
    chains = advance(
        Annealing(bridge, kernel, seed_of(seed, "bridge"), images),  # type: ignore[arg-type]
        _BRIDGE,
        chains,
        step_sizes,
        _Constant(factor),  # type: ignore[arg-type]
        until=len(_BRIDGE) - 1,
        after_step=lambda now: heed(),
    )
    state = chains.state._replace(point=target.at(chains.state.point.z))
    return chains._replace(step=0, state=state)  # its moves count for beta_max


def descend(
    target: Target,
    descent: Descent,
    recorded: Sequence[int],
    kernel: Kernel,
    *,
    n_chains: int,
    seed: int,
    images: Tensor,
    note: Callable[[int, Chains], None],
    resume: Callable[[], Chains | None],
    after_step: Callable[[Chains, bool], None],
    heed: Callable[[], None] = lambda: None,
) -> None:
    """The formal run down, frozen.

    Args:
        target: of N images.
        descent: what `learn_descent` has learned.
        recorded: schedule indices, increasing.
        kernel: settings of the moves.
        n_chains: C, shared among the searches.
        seed: of this run.
        images: [N] int64, names of the images.
        note: called with (place in `recorded`, chains) at every recorded index, from the last.
        resume: gives the state of a run before this one, if there was one.
        after_step: called with (chains, whether `note` will be called with them) after every step.
        heed: called often on the way from the modes to beta_max, which has no state of its own; may raise to stop.
    """
    betas = descent.tuning.betas
    last, device = len(betas) - 1, target.x.device
    bridge = Frozen(descent.bridge_sizes.to(device))
    chains = resume()
    if chains is None:
        chains = _cross(target, descent.searches, betas, bridge, kernel, n_chains, seed, images, heed)
    annealing, frozen = Annealing(target, kernel, seed, images), Frozen(descent.tuning.step_sizes.to(device))
    for k in range(len(recorded) - 1, -1, -1):
        until = last - recorded[k]
        if chains.step > until or (chains.step == until and until > 0):
            continue
        chains = advance(
            annealing,
            betas,
            chains,
            frozen,
            descent.tuning.metric,
            until=until,
            reverse=True,
            after_step=lambda now, until=until: after_step(now, now.step == until),  # type: ignore[misc]
            at_once=AT_ONCE,
        )
        note(k, chains)
        chains = chains.recount()
