"""A Gaussian channel of its own for every image and beta, so that no encoder's error is in the bound.

    min over m, s of each image  KL(N(m, diag(s^2)) | p) + beta E d(x, f(m + s eps))

by Adam with the closed-form KL and several reparametrised codes a step, in pairs +eps and -eps: in the gradient of m
the noise of the curvature then cancels. m moves in units of the s that it starts with, which suits every beta alike.

Two passes along the betas: up from the prior, each beta from the channel below it; then down from beta_max, each from
the better of the channels above it. On top the way down may also begin at the best mode that a search finds
(`rdcurve.sampler.modes`), with the variances of Laplace's approximation: where q_beta has many modes, what is followed
up from the prior may end in a poor one. For each image and beta the better channel is kept, as judged by other noise
than that of the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rdcurve.sampler.modes import find_modes, hessian
from rdcurve.sampler.noise import seed_of
from rdcurve.sampler.target import Target
from rdcurve.state import Checkpoint
from rdcurve.training.trained import learning_rate_factor, update
from rdcurve.variational.channel import Channel, Fitted, Progress, check_prior, normal, shifted

__all__ = ["Settings", "fit"]

_N_JUDGED = 64  # codes by which channels of an image are compared


@dataclass(frozen=True)
class Settings:
    """How the channels are optimised."""

    n_steps: int  # of Adam, per beta and pass
    n_codes: int  # per image and step, an even number
    learning_rate: (
        float  # at the first step of a beta, in standard deviations of the channel; it falls to 0 as a cosine
    )
    n_starts: int  # of the search for modes, per image; 0: none
    seed: int

    def __post_init__(self) -> None:
        if self.n_codes < 2 or self.n_codes % 2:
            raise ValueError(f"n_codes must be even, for the codes come in pairs, not {self.n_codes}")


class _State(NamedTuple):
    """Where the fit stands."""

    n_done: int  # betas, of both passes
    mean: Tensor  # [K, N, latent], the best channels so far
    raw: Tensor  # [K, N, latent], their log variances but for log(1 + beta)
    loss: Tensor  # [K, N] float64, R + beta D as judged; infinite where there is none
    history: Tensor  # [rows, 3] float64


def fit(
    target: Target,
    betas: Tensor,
    settings: Settings,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress = lambda done, total: None,
) -> Fitted:
    """The best Gaussian channel of every image at every beta.

    Args:
        target: of N images.
        betas: [K] float64, increasing.
        settings: how.
        checkpoint: of a run that may be killed: it goes on at the beta and pass where it was.
        progress: called with (steps done, steps in all).

    Returns:
        Channels [K, N, latent]. History, a row a beta and pass: pass (up, down), beta, loss (R + beta D of that pass)
        and best_loss (of the passes so far); in nats, means over the images.

    Raises:
        FloatingPointError: the loss is not finite; names beta, step and loss.
        ValueError: a prior without closed-form KL.
        Interrupted: from the checkpoint.
    """
    check_prior(target)
    checkpoint = Checkpoint(None) if checkpoint is None else checkpoint
    n_betas, n_total = len(betas), 2 * len(betas) * settings.n_steps
    codes = target.x.new_zeros(n_betas, len(target.x), *target.prior.event_shape)
    loss = torch.full(codes.shape[:2], torch.inf, dtype=torch.float64, device=codes.device)
    history = torch.zeros(0, 3, dtype=torch.float64)
    state = checkpoint.resume("passes", _State(0, codes, codes.clone(), loss, history))
    for done in range(state.n_done, 2 * n_betas):

        def after_step(step: int, before: int = done * settings.n_steps) -> None:
            progress(before + step, n_total)
            checkpoint.heed()

        up = done < n_betas
        k = done if up else 2 * n_betas - 1 - done
        beta, judge = float(betas[k]), seed_of(settings.seed, "judge", k)
        if done == n_betas and settings.n_starts:
            state, _ = _keep(state, k, _search(target, beta, settings, checkpoint.heed), target, beta, judge)
        before = max(k - 1, 0) if up else min(k + 1, n_betas - 1)  # at first the prior: zeros
        start = state.mean[before], state.raw[before]
        found = _optimise(target, *start, beta, settings, seed_of(settings.seed, done), after_step)
        state, here = _keep(state, k, found, target, beta, judge)
        row = torch.tensor([[beta, float(here.mean()), float(state.loss[k].mean())]], dtype=torch.float64)
        state = state._replace(n_done=done + 1, history=torch.cat([state.history, row]))
        checkpoint.offer("passes", state)
    passes = ["up"] * n_betas + ["down"] * n_betas
    columns = ("pass", "beta", "loss", "best_loss")
    rows = [dict(zip(columns, (p, *row), strict=True)) for p, row in zip(passes, state.history.tolist(), strict=True)]
    log_variance = torch.stack([shifted(raw, float(beta)) for raw, beta in zip(state.raw, betas, strict=True)])
    return Fitted(state.mean, log_variance, rows)


def _optimise(
    target: Target,
    mean: Tensor,
    raw: Tensor,
    beta: float,
    settings: Settings,
    seed: int,
    after_step: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """Mean and raw log variance [N, latent] after `n_steps` steps from the given ones."""
    width = (0.5 * shifted(raw, beta)).exp()
    move, raw = torch.zeros_like(mean).requires_grad_(), raw.clone().requires_grad_()
    # a memory as long as the run would still be full of the first, large gradients at its end
    optimiser = torch.optim.Adam([move, raw], lr=settings.learning_rate, betas=(0.9, 0.99))
    generator = torch.Generator(mean.device).manual_seed(seed)
    for step in range(1, settings.n_steps + 1):
        noise = normal((settings.n_codes // 2, *mean.shape), mean, generator)
        channel = Channel(mean + width * move, shifted(raw, beta))
        loss = _loss(target, channel, beta, torch.cat([noise, -noise])).mean()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the channels diverged at beta = {beta:.6g}, step {step}: the loss is {value}")
        factor = learning_rate_factor("cosine", step - 1, settings.n_steps)
        optimiser.param_groups[0]["lr"] = settings.learning_rate * factor
        update(optimiser, loss / (1 + beta))
        after_step(step)
    return (mean + width * move).detach(), raw.detach()


def _loss(target: Target, channel: Channel, beta: float, noise: Tensor) -> Tensor:
    """R + beta D over the codes of the noise [S, N, latent], [N] float64 nats."""
    distortion = target.distortion(target.x, target.decoder(channel.at(noise))).double()
    return channel.rate(target.prior) + beta * distortion.mean(0)


def _keep(
    state: _State, k: int, found: tuple[Tensor, Tensor], target: Target, beta: float, seed: int
) -> tuple[_State, Tensor]:
    """The state with the channels found [N, latent] at beta k where they are better; the loss of those, [N] float64."""
    generator = torch.Generator(state.mean.device).manual_seed(seed)  # the same noise for all that are compared
    with torch.no_grad():
        noise = normal((_N_JUDGED, *state.mean[k].shape), state.mean, generator)
        found_loss = _loss(target, Channel(found[0], shifted(found[1], beta)), beta, noise)
    better = found_loss < state.loss[k]
    mean, raw, loss = state.mean.clone(), state.raw.clone(), state.loss.clone()
    mean[k, better], raw[k, better], loss[k, better] = found[0][better], found[1][better], found_loss[better]
    return state._replace(mean=mean, raw=raw, loss=loss), found_loss


def _search(target: Target, beta: float, settings: Settings, after_step: Callable[[], None]) -> tuple[Tensor, Tensor]:
    """Mean and raw log variance [N, latent] of Laplace's approximation, with its diagonal, at the best mode."""
    images = torch.arange(len(target.x), device=target.x.device)
    (modes,) = find_modes(
        target,
        beta,
        images,
        seeds=[seed_of(settings.seed, "search")],
        n_starts=settings.n_starts,
        n_modes=1,
        after_step=after_step,
    )
    precision = hessian(target, modes.z, beta)[0].diagonal(dim1=-2, dim2=-1)
    raw = math.log1p(beta) - precision.clamp(min=1).log()
    return modes.z[0], raw.to(modes.z.dtype)
