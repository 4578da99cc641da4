"""Annealed importance sampling: one loop for the prerun, the formal run and the reverse chain.

Along betas b_0, b_1, ..., b_T each chain repeats, for j = 1 .. T (Neal 2001; the paper's equations 1 to 4)

    log w <- log w - (b_j - b_{j-1}) d(x, f(z)),    then one HMC move of (z, u) at b_j.

Started at exact samples of q_{b_0}, E[w] = Z(b_j) / Z(b_0) at every j, for any frozen step sizes and metric. From the
prior b_0 = 0 and Z(0) = 1, so log-mean-exp of log w is a stochastic lower bound on log Z(b_j); walking the schedule
backwards from an exact sample of q_{beta_max} it is minus a stochastic upper bound.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rdcurve.sampler.hmc import Kernel, State, move
from rdcurve.sampler.metric import Metric
from rdcurve.sampler.noise import step_noise
from rdcurve.sampler.prior import sample_prior
from rdcurve.sampler.step_size import StepSizes
from rdcurve.sampler.target import Point, Target

__all__ = ["Chains", "Estimate", "advance", "estimate", "log_mean_exp", "start_at", "start_from_prior"]


class Chains(NamedTuple):
    """Where a run stands: all that is needed to go on."""

    step: int  # annealing steps done
    state: State  # position and momentum of the chains [C, N]
    log_weight: Tensor  # [C, N] float64, nats
    acceptance: Tensor  # [N] float64, acceptance rate summed over the moves since the last reset
    n_moves: int  # moves in that sum

    def select(self, images: slice | Tensor) -> Chains:
        """The chains of some of the images."""
        point = Point(*(value[:, images] for value in self.state.point))
        state = State(point, self.state.momentum[:, images])
        return self._replace(state=state, log_weight=self.log_weight[:, images], acceptance=self.acceptance[images])

    def join(self, other: Chains) -> Chains:
        """These chains and those of other images, at the same step."""
        if (self.step, self.n_moves) != (other.step, other.n_moves):
            raise ValueError(f"chains at step {self.step} cannot be joined to chains at step {other.step}")
        point = Point(*(torch.cat(pair, 1) for pair in zip(self.state.point, other.state.point, strict=True)))
        state = State(point, torch.cat([self.state.momentum, other.state.momentum], 1))
        log_weight = torch.cat([self.log_weight, other.log_weight], 1)
        return self._replace(
            state=state, log_weight=log_weight, acceptance=torch.cat([self.acceptance, other.acceptance])
        )


def start_from_prior(target: Target, seed: int, images: Tensor, n_chains: int) -> Chains:
    """Chains at step 0, drawn from the prior: exact samples of q_0. `images` [N] int64 keys the noise."""
    return start_at(target, sample_prior(target.prior, seed, images, n_chains), seed, images)


def start_at(target: Target, z: Tensor, seed: int, images: Tensor, step: int = 0) -> Chains:
    """Chains at given codes z [C, N, latent], exact samples of the run's first target."""
    # an energy in TF32 is wrong by 10 nats at beta = 36,000, and convolutions use it unless told not to
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    momentum = step_noise(seed, images, z.shape[0], step, z.shape[2], z.dtype).normal
    point = target.at(z)
    return Chains(
        step,
        State(point, momentum),
        torch.zeros_like(point.distortion),
        torch.zeros_like(point.distortion[0]),
        0,
    )


def advance(
    target: Target,
    betas: Tensor,
    chains: Chains,
    step_sizes: StepSizes,
    metric: Metric,
    kernel: Kernel,
    *,
    seed: int,
    images: Tensor,
    until: int,
    reverse: bool = False,
) -> Chains:
    """Carry the chains on to annealing step `until`.

    Args:
        target: the annealed target of N images.
        betas: [T + 1] float64, the whole schedule, increasing.
        chains: where the run stands, `chains.step <= until <= T`.
        step_sizes: by schedule index; of a wider table the first N columns are used.
        metric: by schedule index, likewise.
        kernel: settings of the moves.
        seed: of the noise, keyed by (seed, image, chain, step).
        images: [N] int64, the identity of each image.
        until: the step to reach.
        reverse: walk the schedule from beta_T to beta_0; step j is then schedule index T - j.

    Returns:
        The chains at `until`. The result does not depend on how a run is cut into calls.
    """
    n_chains, n_images, latent_dim = chains.state.momentum.shape
    _, state, log_weight, acceptance, n_moves = chains
    steps = range(chains.step, until + 1)
    indices = [len(betas) - 1 - step for step in steps] if reverse else list(steps)
    ladder = betas[indices].tolist()
    for step, index, before, beta in zip(steps[1:], indices[1:], ladder[:-1], ladder[1:], strict=True):
        log_weight = log_weight - (beta - before) * state.point.distortion
        noise = step_noise(seed, images, n_chains, step, latent_dim, state.momentum.dtype)
        factor = metric.factor(index, beta, n_images)
        state, transition = move(target, beta, state, noise, step_sizes[index][:n_images], factor, kernel)
        step_sizes.observe(index, transition)
        acceptance = acceptance + transition.acceptance_rate.mean(0)
        n_moves += 1
    return Chains(until, state, log_weight, acceptance, n_moves)


def log_mean_exp(log_weight: Tensor) -> Tensor:
    """Log of the mean weight over the chains, [C, N] -> [N]."""
    return log_weight.logsumexp(0) - torch.tensor(float(len(log_weight)), dtype=torch.float64).log()


class Estimate(NamedTuple):
    """What the weighted chains say at one beta, each [N] float64; `_se` are standard errors over the chains."""

    log_z: Tensor  # log-mean-exp of the weights, a stochastic lower bound on log Z(beta)
    distortion: Tensor  # D, weighted mean of d
    rate: Tensor  # R = -log Z - beta D, in nats
    log_z_se: Tensor
    distortion_se: Tensor
    rate_se: Tensor
    ess: Tensor  # effective sample size, 1 / sum W^2, between 1 and C
    acceptance: Tensor  # mean acceptance rate of the moves since the last estimate


def estimate(chains: Chains, beta: float) -> Estimate:
    """Log Z, distortion and rate of each image at `beta`, with jackknife standard errors over the C chains.

    The jackknife leaves out one chain at a time and recomputes all three together, because the noise of R is mostly
    that of beta D and is correlated with that of log Z.
    """
    log_weight, distortion = chains.log_weight, chains.state.point.distortion

    def summarise(log_weight: Tensor, distortion: Tensor, n: int) -> Tensor:
        log_z = log_weight.logsumexp(0) - torch.tensor(float(n), dtype=torch.float64).log()
        d = (log_weight.softmax(0) * distortion).sum(0)
        return torch.stack([log_z, d, -log_z - beta * d])

    n_chains = len(log_weight)
    log_z, d, rate = summarise(log_weight, distortion, n_chains)
    if n_chains > 1:
        left_out = torch.eye(n_chains, dtype=torch.bool, device=log_weight.device)[:, :, None]
        leave_one_out = summarise(
            log_weight[:, None].masked_fill(left_out, -torch.inf), distortion[:, None], n_chains - 1
        )  # [3, C, N]
        spread = leave_one_out - leave_one_out.mean(1, keepdim=True)
        errors = ((n_chains - 1) / n_chains * spread.square().sum(1)).sqrt()
    else:
        errors = torch.full_like(torch.stack([log_z, d, rate]), torch.nan)
    ess = 1 / log_weight.softmax(0).square().sum(0)
    acceptance = chains.acceptance / max(chains.n_moves, 1)
    return Estimate(log_z, d, rate, *errors, ess, acceptance)
