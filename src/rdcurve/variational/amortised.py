"""Channels from an encoder, trained at each beta with the decoder frozen: the paper's baseline (section 6.5, Fig. 8).

    min over the encoder  E_x [KL(q(z|x) | p(z)) + beta E_q d(x, f(z))],    q(z|x) = N(m(x), diag(s^2(x)))

with the closed-form KL and one reparametrised code a step, at ascending betas in one go: each starts from the encoder
of the beta before. What is measured is the running average of the weights (Polyak and Juditsky 1992), at whichever of a
few validations of its beta was best: a learning rate that never falls keeps the encoder able to follow beta, and the
average takes its noise out.

The loss is divided by 1 + beta, so that its gradient keeps one size all the way. Adam remembers squared gradients for
a thousand steps; where the gradient grows tenfold meanwhile, its steps are ten times too long and drive the tanh units
into saturation, from where they do not return.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rdcurve.sampler.noise import seed_of
from rdcurve.sampler.target import Target
from rdcurve.state import Checkpoint
from rdcurve.training.trained import update
from rdcurve.variational.channel import Channel, Fitted, Progress, check_prior, normal, shifted

__all__ = ["Settings", "fit"]

_N_VALIDATIONS = 4  # per beta, evenly spaced
_ROWS = 1000  # images validated at once
_COLUMNS = ("beta", "step", "training_loss", "validation_loss", "validation_rate", "validation_distortion")


@dataclass(frozen=True)
class Settings:
    """How the encoder is trained."""

    n_steps: int  # of Adam, per beta
    batch_size: int
    learning_rate: float
    averaging: float  # share of the old average of the weights that a step keeps
    seed: int

    def __post_init__(self) -> None:
        if self.n_steps < _N_VALIDATIONS:
            raise ValueError(f"n_steps must be {_N_VALIDATIONS} or more, not {self.n_steps}")


class _Networks(NamedTuple):
    """What a step of training changes."""

    encoder: nn.Module
    average: nn.Module  # of the encoder's weights
    optimiser: torch.optim.Optimizer


class _Trained(NamedTuple):
    """The same as tensors, in the order of the encoder's parameters."""

    weights: tuple[Tensor, ...]
    average: tuple[Tensor, ...]
    first: tuple[Tensor, ...]  # moments of Adam
    second: tuple[Tensor, ...]


class _State(NamedTuple):
    """Where the fit stands after a beta."""

    n_done: int  # betas
    trained: _Trained
    mean: Tensor  # [K, N, latent], channels of the betas that are done
    log_variance: Tensor  # [K, N, latent]
    history: Tensor  # [rows, columns] float64


def fit(
    encoder: nn.Module,
    target: Target,
    training: Tensor,
    validation: Tensor,
    betas: Tensor,
    settings: Settings,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress = lambda done, total: None,
) -> Fitted:
    """Train the encoder along the betas; the channels of the target's images.

    Args:
        encoder: [batch, n] -> [batch, 2 latent], means, and log variances but for log(1 + beta); trained in place.
        target: prior, decoder and distortion, and the images to measure, from which the encoder does not learn.
        training: [M, *data], on the device of the target.
        validation: [V, *data].
        betas: [K] float64, increasing.
        settings: how.
        checkpoint: of a run that may be killed: it goes on at the beta where it was.
        progress: called with (steps done, steps in all).

    Returns:
        Channels [K, N, latent]. History, a row a validation: beta; step; training_loss, mean over the steps since the
        row before; validation_loss = validation_rate + beta validation_distortion; in nats per image.

    Raises:
        FloatingPointError: the loss is not finite; names beta, step and loss.
        ValueError: a prior without closed-form KL; training images of another shape than those to measure.
        Interrupted: from the checkpoint.
    """
    check_prior(target)
    if training.shape[1:] != target.x.shape[1:]:
        raise ValueError(
            f"the encoder would learn from data of shape {tuple(training.shape[1:])}, and the curve is measured on "
            f"{tuple(target.x.shape[1:])}: no amortised curve under features"
        )
    checkpoint = Checkpoint(None) if checkpoint is None else checkpoint
    optimiser = torch.optim.Adam(encoder.parameters(), lr=settings.learning_rate, fused=True)
    networks = _Networks(encoder, copy.deepcopy(encoder).requires_grad_(False), optimiser)
    codes = target.x.new_zeros(len(betas), len(target.x), *target.prior.event_shape)
    history = torch.zeros(0, len(_COLUMNS), dtype=torch.float64)
    state = checkpoint.resume("betas", _State(0, _tensors(networks), codes, codes.clone(), history))
    _restore(networks, state.trained, state.n_done * settings.n_steps)
    for k in range(state.n_done, len(betas)):

        def after_step(step: int, before: int = k * settings.n_steps) -> None:
            progress(before + step, len(betas) * settings.n_steps)
            checkpoint.heed()

        beta = float(betas[k])
        best, rows = _train(networks, target, training, validation, beta, k, settings, after_step)
        with torch.no_grad():
            channel = _channel(best, target.x, beta)
        mean, log_variance = state.mean.clone(), state.log_variance.clone()
        mean[k], log_variance[k] = channel
        history = torch.cat([state.history, torch.tensor(rows, dtype=torch.float64)])
        state = _State(k + 1, _tensors(networks), mean, log_variance, history)
        checkpoint.offer("betas", state)
    rows = [dict(zip(_COLUMNS, row, strict=True)) for row in state.history.tolist()]
    return Fitted(state.mean, state.log_variance, rows)


def _train(
    networks: _Networks,
    target: Target,
    training: Tensor,
    validation: Tensor,
    beta: float,
    k: int,
    settings: Settings,
    after_step: Callable[[int], None],
) -> tuple[nn.Module, list[list[float]]]:
    """The best average of the weights at one beta, and rows of the history. Noise is keyed by (seed, k, step)."""
    encoder, average, optimiser = networks
    validated = {settings.n_steps * part // _N_VALIDATIONS for part in range(1, _N_VALIDATIONS + 1)}
    best, best_loss, losses, rows = average, math.inf, [], []
    for step in range(1, settings.n_steps + 1):
        generator = _generator(training, settings.seed, "step", k, step)
        batch = torch.randint(len(training), (settings.batch_size,), generator=generator, device=training.device)
        rate, distortion = _rate_and_distortion(encoder, target, training[batch], beta, generator)
        loss = (rate + beta * distortion).mean()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(
                f"the encoder diverged at beta = {beta:.6g}, step {step}: the loss is {losses[-1]}"
            )
        update(optimiser, loss / (1 + beta))
        with torch.no_grad():
            weights = list(average.parameters()), list(encoder.parameters())
            torch._foreach_lerp_(*weights, 1 - settings.averaging)
        if step in validated:
            generator = _generator(training, settings.seed, "validation", k)  # the same noise: only the weights differ
            with torch.no_grad():
                parts = [_rate_and_distortion(average, target, x, beta, generator) for x in validation.split(_ROWS)]
            rate, distortion = (float(torch.cat(part).mean()) for part in zip(*parts, strict=True))
            loss = rate + beta * distortion
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the encoder diverged at beta = {beta:.6g}, step {step}: the validation loss is {loss}"
                )
            rows.append([beta, step, sum(losses) / len(losses), loss, rate, distortion])
            losses = []
            if loss < best_loss:
                best, best_loss = copy.deepcopy(average), loss
        after_step(step)
    return best, rows


def _channel(encoder: nn.Module, x: Tensor, beta: float) -> Channel:
    mean, raw = encoder(x.flatten(1)).chunk(2, dim=-1)
    return Channel(mean, shifted(raw, beta))


def _rate_and_distortion(
    encoder: nn.Module, target: Target, x: Tensor, beta: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """KL, and d of one code, of every image: each [B] float64."""
    channel = _channel(encoder, x, beta)
    z = channel.at(normal((1, *channel.mean.shape), channel.mean, generator))
    return channel.rate(target.prior), target.distortion(x, target.decoder(z))[0].double()


def _generator(like: Tensor, *key: object) -> torch.Generator:
    return torch.Generator(like.device).manual_seed(seed_of(*key))


def _tensors(networks: _Networks) -> _Trained:
    """Copies, since the next steps change what the networks hold."""
    encoder, average, optimiser = networks
    weights = list(encoder.parameters())

    def moments(name: str) -> tuple[Tensor, ...]:
        return tuple(optimiser.state[w].get(name, torch.zeros_like(w)).clone() for w in weights)

    return _Trained(
        tuple(w.detach().clone() for w in weights),
        tuple(w.clone() for w in average.parameters()),
        moments("exp_avg"),
        moments("exp_avg_sq"),
    )


def _restore(networks: _Networks, trained: _Trained, n_steps: int) -> None:
    """The inverse of `_tensors`, for networks that have taken `n_steps` steps."""
    encoder, average, optimiser = networks
    with torch.no_grad():
        for w, a, *values in zip(encoder.parameters(), average.parameters(), *trained, strict=True):
            w.copy_(values[0])
            a.copy_(values[1])
            step = torch.tensor(float(n_steps), device=w.device)
            optimiser.state[w] = {"step": step, "exp_avg": values[2].clone(), "exp_avg_sq": values[3].clone()}
