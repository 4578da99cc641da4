"""The formal run behind a curve: AIS with what the prerun has learned, frozen. It may be killed and loses nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rdcurve.curve import RDCurve
from rdcurve.sampler.ais import (
    AT_ONCE,
    Annealing,
    Chains,
    Groups,
    Tuning,
    advance,
    check_groups,
    check_n_chains,
    group_log_mean_exp,
    log_mean_exp,
    start_from_prior,
    under_prior,
)
from rdcurve.sampler.certify import TOLERANCE, doubt, lineages
from rdcurve.sampler.descent import Descent, descend
from rdcurve.sampler.estimate import Estimate, estimate, virial
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.lanes import full
from rdcurve.sampler.noise import seed_of, step_noise
from rdcurve.sampler.prior import covers_everything
from rdcurve.sampler.schedule import check_schedule
from rdcurve.sampler.step_size import Frozen
from rdcurve.sampler.target import Target, one_thread_per_tile
from rdcurve.state import Checkpoint, content_key

__all__ = ["code_digest", "formal_run", "run_key"]

Progress = Callable[[int, int], None]  # (steps done, steps in all)


class _Recorded(NamedTuple):
    """What is kept of the chains at the K recorded betas."""

    log_weight: Tensor  # [K, C, N]
    distortion: Tensor  # [K, C, N]
    virial: Tensor  # [K, C, N]
    lineages: Tensor  # [K, N], of the route up
    acceptance: Tensor  # [K, R, N], of each of R routes
    code: Tensor  # [K, R, N, latent], of each route one code, drawn by weight


class _Run(NamedTuple):
    """Where a formal run stands."""

    chains: Chains
    recorded: _Recorded  # filled as far as the run has come


def code_digest() -> str:
    """A hash of the sampler's source: a run that was started by other code does not go on."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def run_key(target: Target, tuning: Tuning | None, **parts: Any) -> str:
    """The identity of a run: a hash of the sampler's code, what is measured, and `parts`.

    Of a decoder, distortion or prior that is a torch module, all parameters and buffers count. Of any other callable,
    the values at ten prior draws of each image stand for it: a change that these do not meet is not seen.
    """
    images = torch.arange(len(target.x), device=target.x.device)
    probe = start_from_prior(target, 0, images, 10).state.point
    if tuning is not None:
        metric = content_key(values=tuning.metric.eigenvalues, vectors=tuning.metric.eigenvectors)
        parts |= {"betas": tuning.betas, "step_sizes": tuning.step_sizes, "metric": [tuning.metric.starts, metric]}
    for role in ("decoder", "distortion", "prior"):
        if isinstance(module := getattr(target, role), nn.Module):
            parts[role] = content_key(**module.state_dict())
    return content_key(
        code=code_digest(),
        torch=torch.__version__,
        device=target.x.device.type,
        x=target.x,
        tf32_gradients=target.tf32_gradients,
        **parts,
        **{f"probe_{name}": value for name, value in probe._asdict().items()},
    )


def formal_run(
    target: Target,
    tuning: Tuning,
    recorded: Sequence[int],
    kernel: Kernel,
    *,
    n_chains: int,
    seed: int,
    groups: Groups = Groups(),
    descent: Descent | None = None,
    images: Tensor | None = None,
    state_folder: Path | str | None = None,
    save_every: float = 30.0,
    time_limit: float | None = None,
    facts: dict[str, Any] | None = None,
    save: Callable[[RDCurve], None] = lambda curve: None,
    progress: Progress = lambda done, total: None,
) -> RDCurve:
    """AIS with frozen schedule, step sizes and metric; the curve at the recorded schedule steps.

    Args:
        target: the annealed target of N images.
        tuning: schedule, step sizes and metric of a prerun.
        recorded: schedule indices 1 .. T at which to estimate, increasing.
        kernel: settings of the moves.
        n_chains: C, chains per image.
        seed: never that of the prerun.
        groups: chains that resample among themselves; their size divides C.
        descent: of the second route, down from the modes, with one more group of chains for each of its searches; None
            for the route up alone.
        images: [N] int64, names of the images, which key the noise; default 0 .. N - 1. With their names and the same
            tuning, some of the images give the same bits as all of them together, but for the control variate, whose
            slope is a median over the images.
        state_folder: where the state is kept, so that a killed run goes on where it was; None keeps none.
        save_every: seconds between two saves.
        time_limit: seconds after which to stop with the state saved.
        facts: stored in the curve, and part of the identity of the run.
        save: called with the finished curve before the state is forgotten, so that no moment to kill it loses the run.
        progress: called with (steps done, steps in all).

    Raises:
        Interrupted: a signal or the time limit came while a state folder was given; the state is saved.
    """
    betas = check_schedule(tuning.betas)
    n_steps, n_images, device = len(betas) - 1, len(target.x), target.x.device
    if sorted(set(recorded)) != list(recorded) or not recorded or recorded[0] < 1 or recorded[-1] > n_steps:
        raise ValueError(f"recorded must hold increasing schedule indices in 1 .. {n_steps}, not {recorded}")
    check_n_chains(n_chains, groups)
    shape = tuple(tuning.step_sizes.shape)
    if shape not in ((n_steps + 1, n_images), (n_steps + 1, n_chains, n_images)):
        raise ValueError(
            f"the step sizes have shape {shape}; schedule, chains and images need {(n_steps + 1, n_images)} or "
            f"{(n_steps + 1, n_chains, n_images)}"
        )
    check_groups(tuning, groups)
    images = torch.arange(n_images, device=device) if images is None else images.to(device)
    frozen = Frozen(tuning.step_sizes.to(device))
    facts = {
        "n_chains": n_chains,
        "seed": seed,
        "kernel": kernel._asdict(),
        "groups": groups._asdict(),
        "n_temperatures": n_steps + 1,
        **({"tf32_gradients": True} if target.tf32_gradients else {}),
        **(facts or {}),
    }
    chains = start_from_prior(target, seed, images, n_chains)
    searches = () if descent is None else descent.searches
    facts |= {"n_searches": len(searches), "tolerance": TOLERANCE}
    key = ""
    if state_folder is not None:
        way_down = None if descent is None else _descent_key(descent)
        key = run_key(target, tuning, facts=facts, recorded=list(recorded), images=images, descent=way_down)
    n_down, n_groups = len(searches) * groups.size, n_chains // groups.size
    empty = torch.zeros(len(recorded), n_chains + n_down, n_images, dtype=torch.float64, device=device)
    n_routes = 1 if descent is None else 2
    codes = chains.state.momentum.new_zeros(len(recorded), n_routes, *chains.state.momentum.shape[1:])
    record = _Recorded(empty, empty.clone(), empty.clone(), empty[:, 0].clone(), empty[:, :n_routes].clone(), codes)

    with Checkpoint(state_folder, key, save_every, time_limit) as checkpoint, one_thread_per_tile():
        chains, record = checkpoint.resume("up", _Run(chains, record))
        n_total = n_steps * n_routes

        def after_step(now: Chains) -> None:
            progress(now.step, n_total)
            if now.step != until:  # there the estimate is noted first
                checkpoint.offer("up", _Run(now, record))

        annealing = Annealing(target, kernel, seed, images, groups)
        for k, until in enumerate(recorded):
            if chains.step >= until:
                continue
            chains = advance(
                annealing, betas, chains, frozen, tuning.metric, until=until, after_step=after_step, at_once=AT_ONCE
            )
            found = under_prior(target, chains)
            record.log_weight[k, :n_chains] = found.log_weight
            record.distortion[k, :n_chains] = found.state.point.distortion
            record.virial[k, :n_chains] = _virial(target, found, float(betas[until]), groups)
            record.lineages[k] = lineages(found.log_weight, found.lineage)
            record.acceptance[k, 0] = chains.acceptance / chains.n_moves
            record.code[k, 0] = _draw(found, seed, images)
            chains = chains.recount()
            checkpoint.offer("up", _Run(chains, record))
        if descent is not None:
            record = _descend(
                target, descent, recorded, kernel, groups, n_chains, seed, images, checkpoint, record, progress
            )
        arrays = _estimates(record, betas[list(recorded)], n_groups, groups, descent, recorded)
        arrays["code"] = _codes(record, n_chains, seed, images, descent, recorded)
        curve = RDCurve(beta=betas[list(recorded)].numpy(), facts=facts, **arrays)
        save(curve)
        checkpoint.remove()
    return curve


def _descend(
    target: Target,
    descent: Descent,
    recorded: Sequence[int],
    kernel: Kernel,
    groups: Groups,
    n_up: int,
    seed: int,
    images: Tensor,
    checkpoint: Checkpoint,
    record: _Recorded,
    progress: Progress,
) -> _Recorded:
    """The second route, noted beside the first."""
    here, n_steps = slice(n_up, None), len(descent.tuning.betas) - 1

    def resume() -> Chains | None:
        nonlocal record
        if not checkpoint.holds("down"):
            return None
        like = start_from_prior(target, seed, images, len(descent.searches) * groups.size)
        chains, record = checkpoint.resume("down", _Run(like, record))
        return chains

    def note(k: int, chains: Chains) -> None:
        beta, found = float(descent.tuning.betas[recorded[k]]), under_prior(target, chains)
        record.log_weight[k, here] = found.log_weight
        record.distortion[k, here] = found.state.point.distortion
        record.virial[k, here] = _virial(target, found, beta, groups)
        if chains.n_moves:  # none where a run goes on right after a note: then the rate is noted already
            record.acceptance[k, 1] = chains.acceptance / chains.n_moves
        record.code[k, 1] = _draw(found, seed_of(seed, "down"), images)
        checkpoint.offer("down", _Run(chains.recount(), record))

    def after_step(now: Chains, noted: bool) -> None:
        progress(n_steps + now.step, 2 * n_steps)
        if not noted:
            checkpoint.offer("down", _Run(now, record))

    descend(
        target,
        descent,
        recorded,
        kernel,
        n_chains=len(descent.searches) * groups.size,
        seed=seed_of(seed, "down"),
        images=images,
        note=note,
        resume=resume,
        after_step=after_step,
        heed=checkpoint.heed,
    )
    return record


def _virial(target: Target, chains: Chains, beta: float, groups: Groups) -> Tensor:
    """The control variate, [C, N]; zeros where the prior ends at a wall: integration by parts leaves a term there."""
    if not covers_everything(target.prior):
        return torch.zeros_like(chains.log_weight)
    return virial(chains.state, chains.log_weight, beta, groups.size)


def _estimates(
    record: _Recorded,
    beta: Tensor,
    n_groups: int,
    groups: Groups,
    descent: Descent | None,
    recorded: Sequence[int],
) -> dict[str, Any]:
    """The arrays of a curve, by name."""
    rows, doubts = [], []
    for k in range(len(beta)):
        routes = None
        if descent is not None:
            share = descent.share[recorded[k]]
            routes = [(n_groups, share), (len(descent.searches), 1 - share)]
        rows.append(
            estimate(record.log_weight[k], record.distortion[k], record.virial[k], float(beta[k]), groups.size, routes)
        )
        log_z, given = group_log_mean_exp(record.log_weight[k], groups.size), rows[-1].log_z
        if descent is None:
            doubts.append(doubt(given, log_z, record.lineages[k]))
        else:
            up, down = log_z.split([n_groups, len(descent.searches)])
            doubts.append(doubt(given, up, record.lineages[k], down, sum(s.hits for s in descent.searches)))
    arrays = {name: torch.stack([getattr(row, name) for row in rows]) for name in Estimate._fields}
    acceptance = record.acceptance[:, 0]
    if descent is not None:
        counts = _counts_up(record, n_groups * groups.size, descent, recorded)
        acceptance = counts * acceptance + (1 - counts) * record.acceptance[:, 1]
    arrays |= {"acceptance": acceptance, "lineages": record.lineages, "doubt": torch.stack(doubts)}
    return {name: value.cpu().numpy() for name, value in arrays.items()}


def _draw(chains: Chains, seed: int, images: Tensor) -> Tensor:
    """One code per image, drawn among the chains by their weights, [N, latent]."""
    z, log_weight = chains.state.point.z, chains.log_weight
    uniform = step_noise(seed_of(seed, "code"), images, 1, chains.step, z.shape[2], z.dtype).accept
    chosen = (uniform > full(log_weight).softmax(0).cumsum(0)[:, : len(images)]).sum(0).clamp(max=len(log_weight) - 1)
    return z[chosen, torch.arange(len(images), device=z.device)]


def _codes(
    record: _Recorded, n_up: int, seed: int, images: Tensor, descent: Descent | None, recorded: Sequence[int]
) -> np.ndarray:
    """One code per beta and image, [K, N, latent]: that of either route, by what the route adds to Z."""
    code = record.code[:, 0]
    if descent is not None:
        below = _counts_up(record, n_up, descent, recorded)
        uniform = [step_noise(seed_of(seed, "route"), images, 1, step, 1, code.dtype).accept[0] for step in recorded]
        code = torch.where((torch.stack(uniform) < below)[..., None], code, record.code[:, 1])
    return code.cpu().numpy()


def _counts_up(record: _Recorded, n_up: int, descent: Descent, recorded: Sequence[int]) -> Tensor:
    """What the route up adds to Z, as a share of it, [K, N]."""
    share = descent.share[list(recorded)].to(record.log_weight.device)
    up, down = (log_mean_exp(part, 1) for part in record.log_weight.split([n_up, record.log_weight.shape[1] - n_up], 1))
    return (share.log() + up - (1 - share).log() - down).sigmoid()


def _descent_key(descent: Descent) -> str:
    """A hash of everything in it."""
    flat: dict[str, Any] = {
        "bridge": descent.bridge_sizes,
        "share": descent.share,
        "starts": descent.tuning.metric.starts,
    }
    flat |= {"betas": descent.tuning.betas, "sizes": descent.tuning.step_sizes}
    flat |= {"values": descent.tuning.metric.eigenvalues, "vectors": descent.tuning.metric.eigenvectors}
    flat |= {f"{name}{i}": v for i, s in enumerate(descent.searches) for name, v in s._asdict().items()}
    return content_key(**flat)
