"""Hamiltonian Monte Carlo on the annealed target. State in, (state, transition) out.

H(z, u) = -log p(z) + beta d(x, f(z)) + |u|^2 / 2, with z = A y moved in the coordinates y of a metric. One move:
partial momentum refreshment, `n_leapfrog` leapfrog steps of a jittered step size, accept or reject, momentum flipped
on rejection (Horowitz 1991; Neal, "MCMC using Hamiltonian dynamics", 2011, section 5.3). With `persistence` 0 this is
plain HMC. It leaves q_beta(z|x) N(u; 0, I) invariant.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rdcurve.sampler.captured import Number
from rdcurve.sampler.lanes import products
from rdcurve.sampler.noise import StepNoise
from rdcurve.sampler.target import Point, Target

__all__ = ["Kernel", "State", "Transition", "leapfrog", "move", "refresh", "trajectory"]


class Kernel(NamedTuple):
    """The settings of a move, fixed in a formal run."""

    n_leapfrog: int = 3
    jitter: float = 0.2  # the step size is multiplied by a uniform number in 1 +- jitter
    persistence: float = 0.0  # share of the momentum that survives: u <- a u + sqrt(1 - a^2) noise


class State(NamedTuple):
    """Position (with cached target values) and momentum of every chain."""

    point: Point
    momentum: Tensor  # [C, N, latent]

    def map(self, change: Callable[[Tensor], Tensor]) -> State:
        """The state with every tensor changed."""
        return State(Point(*map(change, self.point)), change(self.momentum))


class Transition(NamedTuple):
    """What happened in a move."""

    acceptance_rate: Tensor  # [C, N], min(1, exp(-energy_error)); 0 where the energy is not a number
    accepted: Tensor  # [C, N], bool
    energy_error: Tensor  # [C, N] nats, H(proposal) - H(start)


def refresh(momentum: Tensor, noise: StepNoise, kernel: Kernel) -> Tensor:
    """u <- a u + sqrt(1 - a^2) noise, a the persistence. Reversible with respect to N(0, I)."""
    kept = kernel.persistence
    return noise.normal if kept == 0 else kept * momentum + math.sqrt(1 - kept**2) * noise.normal


def move(
    target: Target,
    beta: Number,
    state: State,
    noise: StepNoise,
    step_size: Tensor,
    factor: Tensor,
    kernel: Kernel,
) -> tuple[State, Transition]:
    """Refreshment, then a trajectory: one move of every chain at inverse temperature `beta`.

    Args:
        target: the annealed target of N images.
        beta: inverse temperature, a number or a tensor of one.
        state: chains [C, N].
        noise: the random numbers of this move.
        step_size: [N] or [C, N], float64.
        factor: A of the metric, [N or 1, latent, latent].
        kernel: its settings.
    """
    state = state._replace(momentum=refresh(state.momentum, noise, kernel))
    return trajectory(target, beta, state, noise, step_size, factor, kernel)


def trajectory(
    target: Target,
    beta: Number,
    state: State,
    noise: StepNoise,
    step_size: Tensor,
    factor: Tensor,
    kernel: Kernel,
) -> tuple[State, Transition]:
    """Leapfrog, accept or reject, flip on rejection: `move` without its refreshment.

    M below satisfies detailed balance up to a flip F of the momentum, so F M F is its time reversal.
    """
    momentum = state.momentum
    step_size = step_size * (1 + kernel.jitter * (2 * noise.jitter - 1))  # [C, N]
    proposal, end_momentum = leapfrog(target, beta, state.point, momentum, step_size, factor, kernel.n_leapfrog)

    # differences of like terms, so that beta d with d = 20 and beta = 36,000 does not drown the kinetic energy
    energy_error = (
        state.point.log_prior
        - proposal.log_prior
        + beta * (proposal.distortion - state.point.distortion)
        + 0.5 * (end_momentum.double().square().sum(-1) - momentum.double().square().sum(-1))
    )
    acceptance_rate = (-energy_error).clamp(max=0).exp().nan_to_num(nan=0.0)
    accepted = noise.accept < acceptance_rate
    # `where` and not a product: a proposal that is not a number must not touch a chain that rejects it
    point = Point(*(_where(accepted, new, old) for new, old in zip(proposal, state.point, strict=True)))
    momentum = _where(accepted, end_momentum, -momentum)
    return State(point, momentum), Transition(acceptance_rate, accepted, energy_error)


def leapfrog(
    target: Target,
    beta: Number,
    point: Point,
    momentum: Tensor,
    step_size: Tensor,
    factor: Tensor,
    n_leapfrog: int,
) -> tuple[Point, Tensor]:
    """`n_leapfrog` steps of the leapfrog integrator: one decoder call each, the first half kick from the cache.

    Between the ends the force may be another function of z than at them (`Target.gradients`): a kick by any function of
    z keeps volume, and the steps read the same from either end, so the trajectory reverses.
    """
    step_size = step_size[..., None].to(momentum.dtype)

    def force(grad_log_prior: Tensor, grad_distortion: Tensor) -> Tensor:
        return _apply(factor.mT, grad_log_prior - beta * grad_distortion)

    z, momentum = point.z, momentum + 0.5 * step_size * force(point.grad_log_prior, point.grad_distortion)
    for _ in range(n_leapfrog - 1):
        z = z + _apply(factor, step_size * momentum)
        momentum = momentum + step_size * force(*target.gradients(z))
    point = target.at(z + _apply(factor, step_size * momentum))
    return point, momentum + 0.5 * step_size * force(point.grad_log_prior, point.grad_distortion)


def _apply(matrix: Tensor, vectors: Tensor) -> Tensor:
    """matrix [N or 1, d, d] times vectors [C, N, d]."""
    return products(vectors.transpose(0, 1), matrix.mT).transpose(0, 1)


def _where(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accepted if new.ndim == accepted.ndim else accepted[..., None], new, old)
