"""From weighted chains at one beta to log Z, distortion and rate, with error bars and diagnostics.

Groups of chains are independent, so the jackknife leaves out one group at a time and recomputes everything together:
the noise of R is mostly that of beta D, and correlated with that of log Z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rdcurve.sampler.hmc import State
from rdcurve.sampler.lanes import full

__all__ = ["Estimate", "estimate", "pareto_k", "virial"]

_LEAST_WEIGHTS = 25  # a tail of five
_LEAST_GROUPS = 3  # of a route, for the error of the control variate
_MOST_LEFT = 0.5  # of the variance of d, for the control variate to be used


class Estimate(NamedTuple):
    """What the weighted chains of N images say at one beta, each [N] float64; `_se` are standard errors over chains."""

    log_z: Tensor  # log-mean-exp of the weights, a stochastic lower bound on log Z(beta)
    distortion: Tensor  # D, weighted mean of d
    rate: Tensor  # R = -log Z - beta D, in nats
    distortion_cv: Tensor  # D with its noise taken out by the virial, where that helps: an estimate, not a bound
    rate_cv: Tensor  # R with that D
    log_z_se: Tensor
    distortion_se: Tensor
    rate_se: Tensor
    distortion_cv_se: Tensor
    rate_cv_se: Tensor
    distortion_variance: Tensor  # weighted variance of d: -dD/dbeta, if the chains are in equilibrium
    ess: Tensor  # effective sample size of the chains, 1 / sum W^2, between 1 and C
    k_hat: Tensor  # Pareto shape of the largest weights; above 0.7 the mean weight cannot be trusted
    spread: Tensor  # standard deviation of log Z over the groups of all routes, in nats


def virial(state: State, log_weight: Tensor, beta: float, size: int) -> Tensor:
    """h = ((z - c) . grad U - latent) / 2 with U = beta d - log p(z): E h = 0 under q_beta, for any constant c.

    Integration by parts (the virial theorem; Stein's identity). Near a mode beta (d - D) and h agree, so that
    D - h / beta has little noise left. c is the weighted mean code of the other groups, independent of h's own.

    Args:
        state: chains [C, N].
        log_weight: [C, N].
        beta: inverse temperature.
        size: chains per group.

    Returns:
        [C, N] float64.
    """
    z = state.point.z.double()
    force = beta * state.point.grad_distortion.double() - state.point.grad_log_prior.double()
    n = log_weight.shape[1]
    grouped = full(log_weight).unflatten(0, (-1, size))  # [G, K, N]
    mean = _sum(grouped.softmax(1)[..., :n, None] * z.unflatten(0, (-1, size)), 1)  # [G, N, latent]
    if len(grouped) > 1:
        other = grouped.logsumexp(1)[None].expand(len(grouped), -1, -1)  # [left out, G, N]
        left_out = torch.eye(len(grouped), dtype=torch.bool, device=z.device)[:, :, None]
        share = other.masked_fill(left_out, -torch.inf).softmax(1)[..., :n]
        centre = _sum(share[..., None] * mean[None], 1)
    else:
        centre = torch.zeros_like(mean)
    offset = z - centre.repeat_interleave(size, 0)
    return 0.5 * ((offset * force).sum(-1) - z.shape[-1])


def _sum(value: Tensor, dim: int) -> Tensor:
    """Sum over `dim`, along memory, so that it rounds alike whatever the other sizes are."""
    return value.movedim(dim, -1).contiguous().sum(-1)


def estimate(
    log_weight: Tensor,
    distortion: Tensor,
    virial: Tensor,
    beta: float,
    size: int = 1,
    routes: Sequence[tuple[int, Tensor]] | None = None,
) -> Estimate:
    """Log Z, distortion and rate of each image at `beta`.

    With several routes to beta, Z is the mean of what they say with fixed weights, unbiased as each of them is.

    Args:
        log_weight: [C, N] float64, nats.
        distortion: [C, N] float64.
        virial: [C, N] float64, what `virial` gives; zeros give no reduction of noise.
        beta: inverse temperature.
        size: chains per group, a divisor of C.
        routes: (number of groups, weight [N]) of each route, in the order of the chains; default: one.
    """
    n, n_images = len(log_weight) // size, log_weight.shape[1]
    routes = [(n, log_weight.new_ones(n_images))] if routes is None else routes
    virial = torch.cat([
        part if m >= _LEAST_GROUPS else torch.zeros_like(part)
        for part, (m, _) in zip(virial.split([m * size for m, _ in routes]), routes, strict=True)
    ])  # fmt: skip
    spread = full(log_weight).unflatten(0, (-1, size)).logsumexp(1)
    # weights of all chains such that their plain mean is the weighted mean over the routes
    per_group = torch.cat([(weight * n / m).log().expand(m, -1) for m, weight in routes])  # [G, N]
    log_weight = full(log_weight + per_group.repeat_interleave(size, 0))
    distortion, virial = full(distortion), full(virial)
    grouped = log_weight.unflatten(0, (-1, size))
    share = grouped.softmax(1)
    mean_d, mean_h, mean_square = (
        (share * value.unflatten(0, (-1, size))).sum(1) for value in (distortion, virial, distortion.square())
    )  # each [G, N]
    group_log_z = grouped.logsumexp(1) - math.log(size)
    slope = _slope(log_weight, distortion, virial, n_images)

    def summarise(log_z: Tensor) -> Tensor:
        """log Z, D, R, and D and R with the virial, from the groups' log Z [G, N] or [left out, G, N]."""
        weight = log_z.softmax(-2)
        total = log_z.logsumexp(-2) - math.log(n)
        d = (weight * mean_d).sum(-2)
        d_cv = d - slope * (weight * mean_h).sum(-2)
        return torch.stack([total, d, -total - beta * d, d_cv, -total - beta * d_cv])

    values = summarise(group_log_z)
    errors = torch.zeros_like(values)
    control = torch.tensor([False, False, False, True, True])[:, None].to(values.device)
    first = 0
    for m, _ in routes:  # leave out one group of a route, whose others then count for it
        others = math.log(m / (m - 1)) if m > 1 else math.nan
        without = group_log_z[None].repeat(m, 1, 1)
        without[:, first : first + m] += others
        without[torch.arange(m), first + torch.arange(m)] = -torch.inf
        changed = summarise(without)  # [5, left out, N]
        seen = (m - 1) * (changed - changed.mean(1, keepdim=True)).square().mean(1)
        # Of the noise that the virial leaves, most is the product of one group's force with the centre that the others
        # lend it: a sum over pairs of groups, of whose variance the jackknife sees (m - 2) / (2 (m - 1)).
        unseen = 2 * (m - 1) / (m - 2) if m >= _LEAST_GROUPS else 1.0
        errors += torch.where(control & (slope > 0), unseen * seen, seen)
        first += m
    errors = errors.sqrt()
    # where the groups sit in different modes, the centre of one is far from the other, and the virial is all noise
    helps = _left(log_weight, distortion, virial, slope) < _MOST_LEFT
    for row, plain in ((3, 1), (4, 2)):
        values[row] = torch.where(helps, values[row], values[plain])
        errors[row] = torch.where(helps, errors[row], errors[plain])
    weight = group_log_z.softmax(0)
    variance = (weight * mean_square).sum(0) - values[1].square()
    found = (
        *values,
        *errors,
        variance.clamp(min=0),
        1 / log_weight.softmax(0).square().sum(0),
        pareto_k(log_weight),
        spread.std(0) if n > 1 else torch.full_like(values[0], torch.nan),
    )
    return Estimate(*(value[:n_images] for value in found))


def _left(log_weight: Tensor, distortion: Tensor, virial: Tensor, slope: Tensor) -> Tensor:
    """Share of the variance of d among the chains of an image that d - slope h keeps, [N]."""
    weight = log_weight.softmax(0)

    def variance(value: Tensor) -> Tensor:
        return (weight * (value - (weight * value).sum(0)).square()).sum(0)

    return variance(distortion - slope * virial) / variance(distortion)


def _slope(log_weight: Tensor, distortion: Tensor, virial: Tensor, n_images: int) -> Tensor:
    """Regression of d on h, one number for all images (their median), so that it fits no image's own noise."""
    weight = log_weight.softmax(0)
    d = distortion - (weight * distortion).sum(0)
    h = virial - (weight * virial).sum(0)
    slopes = ((weight * d * h).sum(0) / (weight * h * h).sum(0))[:n_images]
    slopes = slopes[slopes.isfinite()]
    return slopes.median().clamp(min=0) if len(slopes) else log_weight.new_zeros(())


def pareto_k(log_weight: Tensor) -> Tensor:
    """Shape k of a generalised Pareto distribution fitted to the largest weights of each image, [C, N] -> [N].

    The estimator of Zhang and Stephens (2009) with the weak prior of Vehtari et al. (2024, "Pareto smoothed importance
    sampling"). With k < 0.5 the weights have a variance, above 0.7 their mean needs more chains than anybody has.
    NaN with fewer than 25 chains, whose tail says nothing.
    """
    n_chains = len(log_weight)
    if n_chains < _LEAST_WEIGHTS:
        return torch.full_like(log_weight[0], torch.nan)
    tail = math.ceil(min(0.2 * n_chains, 3 * math.sqrt(n_chains)))
    ordered = (log_weight - log_weight.max(0).values).sort(0).values.exp()
    x = ordered[-tail:] - ordered[-tail - 1]  # [M, N] increasing, from 0
    quarter = x[int(tail / 4 + 0.5) - 1].clamp(min=1e-300)
    n_grid = 30 + int(math.sqrt(tail))
    grid = torch.arange(1, n_grid + 1, dtype=x.dtype, device=x.device)[:, None]
    theta = 1 / x[-1] + (1 - (n_grid / (grid - 0.5)).sqrt()) / (3 * quarter)  # [grid, N]
    k = torch.log1p(-theta[:, None] * x).mean(1)
    likelihood = tail * ((-theta / k).log() - k - 1)
    weight = likelihood.nan_to_num(nan=-torch.inf).softmax(0)
    theta = (weight * theta).sum(0)
    k = torch.log1p(-theta * x).mean(0)
    shape = (tail * k + 5) / (tail + 10)
    # equal weights have no tail at all; weights that differ by many orders of magnitude have nothing but one
    return torch.where(x[-1] <= 1e-12, -torch.inf, shape.nan_to_num(nan=torch.inf))
