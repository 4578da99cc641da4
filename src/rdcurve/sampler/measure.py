"""The formal run behind a curve, and `measure`: prerun and formal run in one call, for a decoder of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from rdcurve.curve import RDCurve
from rdcurve.sampler.ais import Chains, Estimate, advance, estimate, start_from_prior
from rdcurve.sampler.checkpoint import Checkpoint, code_digest, content_key
from rdcurve.sampler.distortion import SquaredError
from rdcurve.sampler.hmc import Kernel, State
from rdcurve.sampler.noise import seed_of
from rdcurve.sampler.prerun import PrerunSettings, Tuning, prerun
from rdcurve.sampler.prior import standard_normal
from rdcurve.sampler.schedule import check_schedule, recorded_steps, sigmoid
from rdcurve.sampler.step_size import Frozen
from rdcurve.sampler.target import Point, Target
from rdcurve.types import Decoder, Distortion

__all__ = ["formal_run", "measure"]

Progress = Callable[[int, int], None]  # (steps done, steps in all)
_STRIDE = 10  # annealing steps between two looks at the clock


def formal_run(
    target: Target,
    betas: Tensor,
    recorded: Sequence[int],
    tuning: Tuning,
    kernel: Kernel,
    *,
    n_chains: int,
    seed: int,
    state_folder: str | None = None,
    save_every: float = 30.0,
    facts: dict[str, Any] | None = None,
    save: Callable[[RDCurve], None] = lambda curve: None,
    progress: Progress = lambda done, total: None,
) -> RDCurve:
    """AIS with frozen step sizes and metric; the curve at the recorded schedule steps.

    Args:
        target: the annealed target of N images.
        betas: [T + 1] float64, from 0 to beta_max.
        recorded: schedule indices 1 .. T at which to estimate, increasing.
        tuning: step sizes [T + 1, N] and metric of a prerun.
        kernel: settings of the moves.
        n_chains: C, chains per image.
        seed: never that of the prerun.
        state_folder: where the state is kept, so that a killed run goes on where it was; None keeps none.
        save_every: seconds between two saves.
        facts: stored in the curve, and part of the identity of the run.
        save: called with the finished curve before the state is forgotten, so that no moment to kill it loses the run.
        progress: called with (steps done, steps in all).

    Raises:
        Interrupted: SIGTERM, SIGINT or SIGUSR1 came while a state folder was given; the state is saved.
    """
    betas = check_schedule(betas)
    if sorted(set(recorded)) != list(recorded) or not recorded or recorded[0] < 1 or recorded[-1] >= len(betas):
        raise ValueError(f"recorded must hold increasing schedule indices in 1 .. {len(betas) - 1}, not {recorded}")
    if n_chains < 2:
        raise ValueError(f"n_chains must be 2 or more for an error bar, not {n_chains}")
    if tuple(tuning.step_sizes.shape) != (len(betas), len(target.x)):
        raise ValueError(
            f"the step sizes have shape {tuple(tuning.step_sizes.shape)}; the schedule and the images need "
            f"{(len(betas), len(target.x))}"
        )
    n_steps, device = len(betas) - 1, target.x.device
    images = torch.arange(len(target.x), device=device)
    frozen = Frozen(tuning.step_sizes.to(device))
    facts = {"n_chains": n_chains, "seed": seed, "kernel": kernel._asdict(), **(facts or {})}
    # the first point stands for decoder, prior and distortion: any change of them changes its numbers
    chains = start_from_prior(target, seed, images, n_chains)
    start = chains.state.point
    bad = ~(start.distortion.isfinite() & start.log_prior.isfinite()).all(0)
    if bad.any():
        raise ValueError(
            f"the distortion is not finite at codes from the prior, for images {bad.nonzero()[:, 0].tolist()}"
        )
    key = content_key(
        code=code_digest(),
        torch=torch.__version__,
        device=device.type,
        facts=facts,
        betas=betas,
        recorded=list(recorded),
        step_sizes=tuning.step_sizes,
        metric=[
            list(tuning.metric.starts),
            content_key(values=tuning.metric.eigenvalues, vectors=tuning.metric.eigenvectors),
        ],
        x=target.x,
        **{f"start_{name}": value for name, value in start._asdict().items()},
    )
    with Checkpoint(state_folder, key, save_every) as checkpoint:
        rows: list[Estimate] = []
        saved = checkpoint.load()
        if saved is not None:
            chains, rows = _unpack({name: value.to(device) for name, value in saved.items()})
        marks = set(recorded)
        for until in _stops(n_steps, recorded):
            if until <= chains.step:
                continue
            chains = advance(
                target,
                betas,
                chains,
                frozen,
                tuning.metric,
                kernel,
                seed=seed,
                images=images,
                until=until,
            )
            if until in marks:
                rows.append(estimate(chains, float(betas[until])))
                chains = chains._replace(acceptance=torch.zeros_like(chains.acceptance), n_moves=0)
            checkpoint.offer(partial(_pack, chains, rows))
            progress(until, n_steps)
        arrays = {name: torch.stack(values).cpu().numpy() for name, values in _columns(rows).items()}
        curve = RDCurve(beta=betas[list(recorded)].numpy(), facts=facts, **arrays)
        save(curve)
        checkpoint.remove()
    return curve


def measure(
    decoder: Decoder,
    x: Tensor,
    *,
    latent_dim: int,
    beta_max: float,
    prior: Distribution | None = None,
    distortion: Distortion | None = None,
    betas: Tensor | None = None,
    n_temperatures: int = 1000,
    n_recorded: int = 50,
    n_chains: int = 16,
    kernel: Kernel = Kernel(),
    prerun_settings: PrerunSettings = PrerunSettings(),
    seed: int = 7,
    progress: Progress = lambda done, total: None,
) -> RDCurve:
    """The rate-distortion curve of a decoder on data x: prerun and formal run in one call.

    Args:
        decoder: any callable [..., latent] -> [..., *data], differentiable in its argument; float32 or float64 as x.
        x: [N, *data], on the device and in the type of the decoder.
        latent_dim: size of the code.
        beta_max: largest beta, the slope -dR/dD where the curve ends.
        prior: distribution of the code, default N(0, I).
        distortion: d(x, f(z)), default the squared error.
        betas: a schedule of one's own, [T + 1] increasing from 0 to beta_max; default `sigmoid`.
        n_temperatures: schedule points, beta = 0 included; more of them give a tighter bound.
        n_recorded: number of betas at which the curve is given, at most half of the temperatures.
        n_chains: chains per image.
        kernel: settings of the HMC moves.
        prerun_settings: how the step sizes are learned.
        seed: of the formal run.
        progress: called with (steps done, steps in all).

    Raises:
        ValueError: the decoder, prior, distortion or schedule cannot be used; says why before any long work.

    Examples:
        >>> x = torch.ones(3, 2)
        >>> curve = measure(lambda z: 2 * z, x, latent_dim=2, beta_max=4.0, n_temperatures=100)
        >>> curve.rate.shape
        (50, 3)
    """
    prior = standard_normal(latent_dim, x.dtype, x.device) if prior is None else prior
    distortion = SquaredError() if distortion is None else distortion
    target = Target(prior, decoder, distortion, x)
    target.check(latent_dim)
    betas = sigmoid(n_temperatures, beta_max) if betas is None else check_schedule(betas)
    if float(betas[-1]) != float(beta_max):
        raise ValueError(f"the schedule ends at {float(betas[-1])}, not at beta_max = {beta_max}")
    recorded = recorded_steps(len(betas), min(n_recorded, len(betas) // 2))
    n_steps = len(betas) - 1
    if prerun_settings.seed == seed:
        prerun_settings = replace(prerun_settings, seed=seed_of(seed, "prerun"))
    tuning = prerun(target, betas, kernel, prerun_settings, progress=lambda done, total: progress(done, 2 * n_steps))
    return formal_run(
        target,
        betas,
        recorded,
        tuning,
        kernel,
        n_chains=n_chains,
        seed=seed,
        progress=lambda done, total: progress(n_steps + done, 2 * n_steps),
    )


def _stops(n_steps: int, recorded: Sequence[int]) -> list[int]:
    return sorted({*range(_STRIDE, n_steps, _STRIDE), *recorded, n_steps})


def _columns(rows: list[Estimate]) -> dict[str, list[Tensor]]:
    return {name: [getattr(row, name) for row in rows] for name in Estimate._fields} if rows else {}


def _pack(chains: Chains, rows: list[Estimate]) -> dict[str, Tensor]:
    state = {f"point.{name}": value for name, value in chains.state.point._asdict().items()}
    state |= {f"rows.{name}": torch.stack(values) for name, values in _columns(rows).items()}
    counts = torch.tensor([chains.step, chains.n_moves])
    return state | {
        "momentum": chains.state.momentum,
        "log_weight": chains.log_weight,
        "acceptance": chains.acceptance,
        "counts": counts,
    }


def _unpack(state: dict[str, Tensor]) -> tuple[Chains, list[Estimate]]:
    point = Point(*(state[f"point.{name}"] for name in Point._fields))
    step, n_moves = state["counts"].tolist()
    chains = Chains(step, State(point, state["momentum"]), state["log_weight"], state["acceptance"], n_moves)
    if f"rows.{Estimate._fields[0]}" not in state:
        return chains, []
    columns = [state[f"rows.{name}"].unbind(0) for name in Estimate._fields]
    return chains, [Estimate(*row) for row in zip(*columns, strict=True)]
