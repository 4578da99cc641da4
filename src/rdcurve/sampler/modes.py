"""Modes of q_beta(z|x) found by optimisation, and the mixture of Gaussians around them.

On real images a decoder may fit in many ways, and chains that come from the prior settle in whichever mode they meet
first. A search does not: it starts anywhere and goes downhill. What it finds is a place to start chains from at
beta_max, with proper weights, because the density of the mixture is known (`rdcurve.sampler.descent`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rdcurve.sampler.lanes import full, products
from rdcurve.sampler.noise import seed_of
from rdcurve.sampler.prior import sample_prior
from rdcurve.sampler.target import Point, Target, one_thread_per_tile

__all__ = ["KEEP", "Minima", "Mixture", "Modes", "Searches", "find_modes", "hessian", "mixture_at"]

logger = logging.getLogger(__name__)
KEEP = ("lowest", "envelope")  # of the modes found
_ENOUGH_HITS = 10  # starts that end in the best mode of an image, for the search to be over
_LEAST_PRECISION = 0.5  # of a mixture component in any direction: not much wider than a standard normal prior
_ARRIVED = 0.01  # nats that a start may still be above its minimum
_STUCK = 1e7  # damping of a start that float32 lets come no nearer
_HOPS = (0.3, 3.0)  # shortest and longest hop, as a share of the way from the code to a draw of the prior
_VALUES = {"cpu": 1 << 22, "cuda": 1 << 25}  # data values in one batch of Hessians


class Modes(NamedTuple):
    """Local minima of U = beta d - log p, the best first."""

    z: Tensor  # [M, N, latent]
    found: Tensor  # [M, N] bool: images with fewer modes have the rest unused
    hits: Tensor  # [N] int64: how many starts ended in the best mode that any search has found


class Minima(NamedTuple):
    """What a search has found so far, the best first; where there is nothing yet, U is infinite."""

    z: Tensor  # [M, N, latent]
    potential: Tensor  # [M, N] float64, U
    hessian: Tensor  # [M, N, latent, latent] float64, its eigenvalues absolute
    hits: Tensor  # [M, N] int64, how many starts ended there; 0 where they went on, or hopped to and did not stay


class Searches(NamedTuple):
    """How far several independent searches are."""

    n_starts: int  # done by each, per image
    n_descents: int  # of the starts that are under way, one more than hops
    minima: tuple[Minima, ...]  # of each search
    ends: tuple[Minima, ...]  # where the starts under way have come to, [S, N]


def find_modes(
    target: Target,
    beta: float,
    images: Tensor,
    *,
    seeds: Sequence[int],
    n_starts: int,
    n_modes: int,
    keep: str = "lowest",
    most_starts: int = 0,
    n_hops: int = 0,
    n_iterations: int = 60,
    resume: Callable[[Searches], Searches] = lambda start: start,
    after_round: Callable[[Searches], None] = lambda searches: None,
    after_step: Callable[[], None] = lambda: None,
    heed: Callable[[], None] = lambda: None,
) -> tuple[Modes, ...]:
    """Minimise U from many starts, in one or more searches that share no start.

    A mode that is found seldom tells of others that are not found, in this image or another. So all images go on, in
    rounds of `n_starts`, until for every image all searches have found the best mode of any, and 10 of all their starts
    ended there: one that is found as often by others is then missed with a chance of exp(-10). Were each image to stop
    by itself, or all of them sooner, those whose best mode was missed would remain, and the witnesses against them go.

    Where minima are many, a start hops (Wales and Doye 1997, "Global optimization by basin-hopping"): from the minimum
    it has come to it jumps, near or far, goes downhill again, and stays there if that is lower. Only the last minimum
    of a start counts as found by it, so that starts are independent still.

    Args:
        target: of N images.
        beta: inverse temperature of the modes.
        images: [N] int64, keys the noise.
        seeds: one per search.
        n_starts: of each search, per image and round.
        n_modes: M, kept per image, the lowest one among them.
        keep: which: the `lowest` at beta, or the `envelope`: those that come nearest to the most likely one at some
            beta on the way there, by Laplace's approximation. A mode far from the prior may be the lowest at beta by
            ten thousand nats, and nothing to begin from lower down.
        most_starts: of each search, per image, at most, if that is more than `n_starts`; else there is one round.
        n_hops: of each start. Everything costs 1 + n_hops times as much, and a start finds the best mode more often.
        n_iterations: steps of each start.
        resume: given the beginning, says where the searches stood when they were interrupted.
        after_round: called with the searches after every round, and within it after every descent that a hop follows;
            may raise to stop them.
        after_step: called after every step of all starts; likewise.
        heed: called many times a step, within each Hessian; likewise.

    Returns:
        The modes that each search has found.
    """
    shape = (n_modes, len(images))
    latent_dim, device = target.prior.event_shape[0], target.x.device
    nothing = Minima(
        torch.zeros(*shape, latent_dim, dtype=target.x.dtype, device=device),
        torch.full(shape, torch.inf, dtype=torch.float64, device=device),
        torch.zeros(*shape, latent_dim, latent_dim, dtype=torch.float64, device=device),
        torch.zeros(shape, dtype=torch.int64, device=device),
    )
    if keep not in KEEP:
        raise ValueError(f"keep must be one of {', '.join(KEEP)}, not {keep!r}")
    rank = partial(_shortfall, target, beta) if keep == "envelope" else None
    nowhere = (Minima(*(value[:0] for value in nothing)),) * len(seeds)
    searches = resume(Searches(0, 0, (nothing,) * len(seeds), nowhere))
    most = max(n_starts, most_starts)
    while True:
        done, n_descents, before, under_way = searches
        n_more = min(n_starts, most - done)
        if n_descents == 0:
            if n_more == 0 or (sure := _confirmed(_hits(before))).all():
                break
            logger.info(
                "modes: %d images of %d are sure of their best one after %d starts; up to %d",
                int(sure.sum()), len(sure), done, most,
            )  # fmt: skip
        minima, ends = [], []
        for seed, known, end in zip(seeds, before, under_way, strict=True):
            key = seed_of(seed, "modes", *([done] if done else []))
            if n_descents:
                z = _hop(target, end.z, images, seed_of(key, "hop", n_descents))
                found = _minimise(target, z, beta, n_iterations, after_step, heed)
                end = _lower(end, found)
            else:
                z = _starts(target, images, key, n_more)
                end = found = _minimise(target, z, beta, n_iterations, after_step, heed)
            if n_hops:  # a place to begin from at some beta, also where no start ends
                known = _with(known, _passed(found), rank)
            minima.append(_with(known, end, rank) if n_descents == n_hops else known)
            ends.append(end)
        if n_descents < n_hops:
            searches = Searches(done, n_descents + 1, tuple(minima), tuple(ends))
        else:
            searches = Searches(done + n_more, 0, tuple(minima), nowhere)
        after_round(searches)
    every = zip(searches.minima, _hits(searches.minima), strict=True)
    return tuple(Modes(found.z, found.potential.isfinite(), hits) for found, hits in every)


def _hits(minima: tuple[Minima, ...]) -> Tensor:
    """How many starts of each search ended in the best mode that any of them has found, [S, N]."""
    best = torch.stack([each.potential[0] for each in minima]).argmin(0)
    of_image = torch.arange(len(best), device=best.device)
    z, precision = (
        torch.stack([getattr(each, name)[0] for each in minima])[best, of_image] for name in ("z", "hessian")
    )  # [N, latent], [N, latent, latent]
    return torch.stack([(each.hits * _same(each.z, z, precision)).sum(0) for each in minima])


def _confirmed(hits: Tensor) -> Tensor:
    """[N] whether all searches have found the best mode, and enough starts ended there, from hits [S, N]."""
    return (hits > 0).all(0) & (hits.sum(0) >= _ENOUGH_HITS)


def _same(z: Tensor, mode: Tensor, precision: Tensor) -> Tensor:
    """[M, N] whether z [M, N, latent] lies in the mode [N, latent], of this Hessian."""
    offset = (z - mode).double()
    distance = torch.einsum("mnd,nde,mne->mn", offset, precision, offset)
    return distance < 4 * z.shape[-1] + 40  # in squared standard deviations; other modes are at thousands


def _minimise(
    target: Target,
    z: Tensor,
    beta: float,
    n_iterations: int,
    after_step: Callable[[], None],
    heed: Callable[[], None],
) -> Minima:
    """Where damped Newton steps from z [S, N, latent] end, with the Hessian's eigenvalues taken absolute.

    So a step leaves a saddle downhill (Dauphin et al. 2014). The Gauss-Newton matrix will not do: where an image is not
    fitted well, it is far from the Hessian, and the search crawls.
    """
    shape = z.shape[:2]
    row = torch.arange(shape[1], device=z.device).repeat(shape[0])  # image of each start; starts are rows from here
    with one_thread_per_tile():
        rows = target.select(row)
        point = rows.at(z.flatten(0, 1)[None])
        damping = torch.ones(len(row), dtype=torch.float64, device=z.device)
        curvature = _absolute(hessian(rows, point.z, beta, heed))[0]
        active = torch.arange(len(row), device=z.device)
        for _ in range(n_iterations):
            here, part = _rows(point, active), target.select(row[active])
            force, precision = _force(here, beta)[0], curvature[active]
            damped = precision + torch.diag_embed(damping[active, None] * precision.diagonal(dim1=-2, dim2=-1))
            step = torch.linalg.solve(damped, force[..., None])[..., 0]
            trial = part.at(here.z - step.to(z.dtype))
            better = (_potential(trial, beta) < _potential(here, beta))[0]
            moved = active[better]
            for old, new in zip(point, trial, strict=True):
                old[:, moved] = new[:, better]
            damping[active] = torch.where(better, 0.3 * damping[active], 4 * damping[active]).clamp(min=1e-9)
            if len(moved):
                curvature[moved] = _absolute(hessian(part.select(better), _rows(trial, better).z, beta, heed))[0]
            decrement = (force * torch.linalg.solve(precision, force[..., None])[..., 0]).sum(-1)
            arrived = (0.5 * decrement < _ARRIVED) | (damping[active] > _STUCK)
            active = active[~arrived]
            after_step()
            if not len(active):
                break
    potential = _potential(point, beta)[0].view(shape)
    return Minima(
        point.z[0].unflatten(0, shape), potential, curvature.unflatten(0, shape), torch.ones_like(row).view(shape)
    )


class Mixture:
    """sum_m w_m N(z; z_m, H_m^-1) for each image, H_m the Hessian of U at mode m: Laplace's approximation.

    Equal weights: which mode matters at which beta is for the weights of the chains to say.

    Args:
        mean: [M, N, latent].
        precision: [M, N, latent, latent], positive definite.
        found: [M, N] bool, the components that count.
    """

    def __init__(self, mean: Tensor, precision: Tensor, found: Tensor) -> None:
        self.mean, self.precision = mean, precision.double()
        self.root = torch.linalg.cholesky(self.precision.cpu()).to(mean.device)  # on a GPU a batch rounds as its size
        share = -found.sum(0).double().log()
        self.log_share = torch.where(found, share, -torch.inf)  # [M, N]
        self.n_found = found.sum(0)

    @property
    def event_shape(self) -> torch.Size:
        """[latent], as a torch distribution has it."""
        return self.mean.shape[-1:]

    def log_prob(self, z: Tensor) -> Tensor:
        """z [C, N, latent] -> [C, N] float64."""
        return self.at(z)[0]

    def at(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log density [C, N] float64 at z [C, N, latent], and its gradient [C, N, latent] in the type of z.

        Written out, since autograd would sum over the components in an order that depends on the number of images.
        """
        offset = z.double()[None] - self.mean.double()[:, None]  # [M, C, N, latent]
        white = products(offset.movedim(1, 2), self.root)  # [M, N, C, latent]
        log_det = self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # [M, N]
        log_normal = log_det[..., None] - 0.5 * white.square().sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)
        joint = self.log_share[..., None] + log_normal  # [M, N, C]
        log_m = full(joint.flatten(1)).logsumexp(0)[: joint[0].numel()].view_as(joint[0])
        # share of a component times H_m (z - z_m)
        pull = (joint - log_m).exp()[..., None] * products(white, self.root.mT)
        grad = -pull.movedim(0, -1).contiguous().sum(-1)
        return log_m.T, grad.transpose(0, 1).to(z.dtype)

    def sample(self, seed: int, images: Tensor, n_chains: int) -> Tensor:
        """[C, N, latent]; chain c of an image comes from component c modulo their number: stratified, so that
        every mode has its share of chains."""
        draws = []
        for i, image in enumerate(images.tolist()):
            generator = torch.Generator().manual_seed(seed_of(seed, "mixture", image))
            noise = torch.randn(n_chains, self.mean.shape[-1], 1, generator=generator, dtype=torch.float64)
            first = int(torch.randint(int(self.n_found[i]), (), generator=generator))
            component = (torch.arange(n_chains) + first) % int(self.n_found[i])
            root = self.root[component, i]
            spread = torch.linalg.solve_triangular(root.mT, noise.to(root.device), upper=True)[..., 0]
            draws.append(self.mean[component, i] + spread.to(self.mean.dtype))
        return torch.stack(draws, 1)


def mixture_at(target: Target, modes: Modes, beta: float, heed: Callable[[], None] = lambda: None) -> Mixture:
    """Laplace's approximation at the modes, with the exact Hessian of U.

    Raises:
        ValueError: a Hessian is not finite.
    """
    one_image = (slice(i, i + 1) for i in range(modes.z.shape[1]))  # so that it rounds alike in any company
    with one_thread_per_tile():
        precision = torch.cat([hessian(target.select(i), modes.z[:, i].contiguous(), beta, heed) for i in one_image], 1)
        if not precision.isfinite().all():
            raise ValueError(
                "the second derivative of the decoder, the distortion or the prior is not finite at a mode; set "
                "n_starts to 0 to do without the search for modes"
            )
        return Mixture(modes.z, _absolute(precision.cpu()).to(precision.device), modes.found)


def _potential(point: Point, beta: float) -> Tensor:
    """U = beta d - log p, [C, N]; infinite where it is not a number."""
    return (beta * point.distortion - point.log_prior).nan_to_num(nan=torch.inf, posinf=torch.inf)


def _force(point: Point, beta: float) -> Tensor:
    return beta * point.grad_distortion.double() - point.grad_log_prior.double()


def _absolute(matrix: Tensor) -> Tensor:
    """The matrix with its eigenvalues absolute, and at least `_LEAST_PRECISION`."""
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    return (eigenvectors * eigenvalues.abs().clamp(min=_LEAST_PRECISION)[..., None, :]) @ eigenvectors.mT


def _starts(target: Target, images: Tensor, seed: int, n_starts: int) -> Tensor:
    """[S, N, latent]: half are the best of 32 times as many draws from the prior, half are the first of them."""
    draws = sample_prior(target.annealed, seed, images, 32 * n_starts)
    order = target.distortions(draws).argsort(0)  # [32 S, N]
    best = order[: n_starts // 2]
    first = torch.arange(n_starts - len(best), device=order.device)[:, None].expand(-1, order.shape[1])
    chosen = torch.cat([best, first])
    return draws.gather(0, chosen[..., None].expand(-1, -1, draws.shape[-1])).contiguous()


def _hop(target: Target, z: Tensor, images: Tensor, seed: int) -> Tensor:
    """Jumps from z [S, N, latent], each of a length of its own.

    Modes may lie a hundred times as far out as the prior draws codes, and as far from each other, so a jump is 0.3 to 3
    times as long as the way from z to a draw of the prior, evenly in logarithm, and in any direction.
    """
    away = (z - sample_prior(target.annealed, seed, images, len(z))).norm(dim=-1, keepdim=True) / z.shape[-1] ** 0.5
    jumps = []
    for image in images.tolist():
        generator = torch.Generator().manual_seed(seed_of(seed, image))
        share = torch.rand(len(z), 1, generator=generator, dtype=torch.float64)
        length = math.log(_HOPS[0]) + share * math.log(_HOPS[1] / _HOPS[0])
        jumps.append(length.exp() * torch.randn(z.shape[0], z.shape[-1], generator=generator, dtype=torch.float64))
    return z + away * torch.stack(jumps, 1).to(z)


def _lower(one: Minima, other: Minima) -> Minima:
    """The lower of two ends of every start; the first where they are equal, or the other's Hessian is no number."""
    better = _passed(other).potential < one.potential
    return Minima(
        *(
            torch.where(better.view(better.shape + (1,) * (new.ndim - 2)), new, old)
            for old, new in zip(one, other, strict=True)
        )
    )


def _passed(minima: Minima) -> Minima:
    """The same without hits; none where the Hessian is no number, which a hop far out may meet."""
    whole = minima.hessian.isfinite().all(-1).all(-1)
    return minima._replace(
        potential=torch.where(whole, minima.potential, torch.inf), hits=torch.zeros_like(minima.hits)
    )


def _shortfall(target: Target, beta: float, minima: Minima) -> Tensor:
    """How far modes [M] of one image stay behind the most likely of them where they come nearest to it, [M] nats.

    At beta' below beta, by Laplace's approximation: log Z = -beta' d + log p - 1/2 log det(1 + beta' / beta H), with d,
    p and H of the minimum at beta.
    """
    log_prior = target.annealed.log_prob(minima.z).double().detach()
    distortion = (minima.potential + log_prior) / beta
    eigenvalues = torch.linalg.eigvalsh(minima.hessian.cpu()).to(distortion.device)
    share = torch.logspace(-5, 0, 21, dtype=torch.float64, device=distortion.device)[:, None]  # beta' / beta
    log_z = log_prior - share * beta * distortion - 0.5 * torch.log1p(share[..., None] * eigenvalues).sum(-1)
    return (log_z.max(1, keepdim=True).values - log_z).min(0).values


def _with(before: Minima, ends: Minima, rank: Callable[[Minima], Tensor] | None = None) -> Minima:
    """The best of what was found before and of the ends [S, N] of more starts, no place twice, the lowest first.

    The best are the lowest; where `rank` is given, the lowest one and those that it gives the least numbers [M].
    """
    after = Minima(
        before.z.clone(), torch.full_like(before.potential, torch.inf), before.hessian.clone(), before.hits * 0
    )
    n_modes, n_images = before.hits.shape
    for i in range(n_images):
        both = Minima(*(torch.cat([old[:, i], new[:, i]]) for old, new in zip(before, ends, strict=True)))
        z, potential, curvature, hits = both
        left = potential.argsort()
        left = left[potential[left].isfinite()]
        places, found = [], []
        while len(left) and (rank is not None or len(places) < n_modes):
            best = left[0]
            same = _same(z[left, None], z[best, None], curvature[best, None])[:, 0]
            same[0] = True  # also where its Hessian is no number
            places.append(best)
            found.append(hits[left[same]].sum())
            left = left[~same]
        chosen = list(range(len(places)))
        if rank is not None and len(places) > n_modes:
            behind = rank(Minima(*(value[torch.stack(places)] for value in both)))
            chosen = sorted([0, *(behind[1:].argsort(stable=True)[: n_modes - 1] + 1).tolist()])
        for m, place in enumerate(chosen):
            best = places[place]
            after.z[m, i], after.potential[m, i], after.hessian[m, i] = z[best], potential[best], curvature[best]
            after.hits[m, i] = found[place]
        unused = ~after.potential[:, i].isfinite()
        after.z[unused, i] = after.z[0, i].clone()
    return after


def hessian(target: Target, z: Tensor, beta: float, heed: Callable[[], None] = lambda: None) -> Tensor:
    """Of U at every code, [C, N, latent, latent] float64, column by column in forward over reverse mode.

    A hundred columns of a hundred codes take long: `heed` is called after every one, and may raise to stop. A GPU, for
    which one is no work, gets all columns at once.

    Raises:
        ValueError: torch has no forward-mode derivative of the decoder, the distortion or the prior.
    """
    at_once = 1 if z.device.type == "cpu" else z.shape[-1]
    most = _VALUES.get(z.device.type, _VALUES["cuda"])
    block = max(1, most // (at_once * z.shape[0] * math.prod(target.x.shape[1:])))
    try:
        parts = [
            _hessian(target.select(slice(i, i + block)), z[:, i : i + block], beta, heed, at_once)
            for i in range(0, z.shape[1], block)
        ]
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"the decoder, the distortion or the prior has no second derivative ({error}), which the search for modes "
            "needs; set n_starts to 0 to do without"
        ) from error
    return torch.cat(parts, 1)


def _hessian(target: Target, z: Tensor, beta: float, heed: Callable[[], None], at_once: int) -> Tensor:
    prior = target.annealed  # not first made in there, or it would hold tensors of the transform

    def potential(z: Tensor) -> Tensor:
        distortion = target.distortion(target.x, target.decoder(z)).double()
        return (beta * distortion - prior.log_prob(z).double()).sum()

    columns: list[Tensor] = []
    for directions in torch.eye(z.shape[-1], dtype=z.dtype, device=z.device).split(at_once):
        here = z.repeat(len(directions), 1, 1)  # [columns C, N, latent]
        along = directions.repeat_interleave(len(z), 0)[:, None].expand_as(here)
        change = torch.func.jvp(torch.func.grad(potential), (here,), (along,))[1]
        columns += change.unflatten(0, (len(directions), len(z))).unbind()
        heed()
    matrix = torch.stack(columns, -1).double().detach()
    return 0.5 * (matrix + matrix.mT)


def _rows(point: Point, index: Tensor) -> Point:
    return Point(*(value[:, index] for value in point))
