"""The curve of a decoder of one's own in one call: prerun, BDMC, formal run."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.distributions import Distribution

from rdcurve.curve import RDCurve
from rdcurve.own.validate import as_data, check_prior, check_sample, check_scale, check_settings
from rdcurve.sampler.ais import Groups, Tuning
from rdcurve.sampler.bdmc import BDMCGap, bdmc, simulate
from rdcurve.sampler.descent import has_descent, learn_descent
from rdcurve.sampler.distortion import SquaredError
from rdcurve.sampler.formal import run_key
from rdcurve.sampler.growth import grown_run
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.noise import seed_of
from rdcurve.sampler.prerun import PrerunSettings, learn, tune
from rdcurve.sampler.prior import standard_normal
from rdcurve.sampler.schedule import check_schedule, recorded_steps, sigmoid, spread
from rdcurve.sampler.sizing import certified_size, size_for_gap
from rdcurve.sampler.target import Target
from rdcurve.state import Checkpoint
from rdcurve.types import Decoder, Distortion, SamplableDistortion

__all__ = ["measure"]

logger = logging.getLogger(__name__)
_BDMC_BETAS = 10  # spread over the rate axis
Progress = Callable[[int, int], None]  # (steps done, steps in all)


def measure(
    decoder: Decoder,
    x: Tensor,
    *,
    latent_dim: int,
    beta_max: float,
    prior: Distribution | None = None,
    distortion: Distortion | None = None,
    gap: float | None = None,
    n_temperatures: int | None = None,
    betas: Tensor | None = None,
    n_recorded: int = 50,
    n_chains: int = 32,
    most_chains: int | None = None,
    n_simulated: int = 5,
    kernel: Kernel = Kernel(n_leapfrog=2, jitter=0.2, persistence=0.5),
    groups: Groups | None = None,
    prerun_settings: PrerunSettings = PrerunSettings(),
    tf32_gradients: bool = False,
    seed: int = 7,
    state_folder: Path | str | None = None,
    save_every: float = 30.0,
    time_limit: float | None = None,
    save: Callable[[RDCurve], None] = lambda curve: None,
    progress: Progress = lambda done, total: None,
) -> RDCurve:
    """The rate-distortion curve of a decoder on data x: prerun, BDMC and formal run in one call.

    Args:
        decoder: any callable [..., latent] -> [..., *data], differentiable in its argument; float32 or float64 as x.
        x: [N, *data], on the device and in the type of the decoder.
        latent_dim: size of the code.
        beta_max: largest beta, the slope -dR/dD where the curve ends.
        prior: distribution of the code, default N(0, I).
        distortion: d(x, f(z)), default the squared error.
        gap: nats; the number of temperatures is then chosen so that the BDMC gap stays below: by trials at three betas,
            and again by the bounds at ten, if these show (by two standard errors) that it is missed. At most
            `prerun_settings.max_temperatures` are taken; `verdict` says where these do not do. Needs a distortion
            that x can be simulated from, and a learned schedule.
        n_temperatures: schedule points, beta = 0 included; more of them give a tighter bound. Default 1000.
        betas: a schedule of one's own, [T + 1] increasing from 0 to beta_max; default: learned by the prerun.
        n_recorded: number of betas at which the curve is given; half of the temperatures, if that is less.
        n_chains: chains per image, a multiple of the group size.
        most_chains: while the curve is not certified at every beta, the formal run is repeated with twice as many
            chains, up to so many; default: none is repeated.
        n_simulated: images simulated at each of ten recorded betas for the BDMC bounds that come with the curve
            (`RDCurve.gaps`), two or more, or 0 for none. Under a distortion that x cannot be simulated from, there are
            none. Five take as long as the formal run on some forty images, and hold a path of theirs in memory and
            state: n_simulated x 10 x latent_dim x n_chains / 8 numbers twice for each temperature.
        kernel: settings of the HMC moves.
        groups: chains that resample among themselves; default: eight, where n_chains is a larger multiple of that and
            all chains of an image have the same step sizes.
        prerun_settings: how schedule, step sizes and metric are learned.
        tf32_gradients: let a GPU multiply in TF32 between the ends of a trajectory, and in the backward pass at them.
            Faster where the acceptance bears it; no energy of an accept test or a weight is ever computed so.
        seed: of the formal run.
        state_folder: where the state is kept, so that the same call goes on where a killed one was, to the same bits;
            None keeps none. Another decoder, data or setting is another run; a decoder that is no torch module is
            known by its images of ten codes for each x, drawn from the prior, alone.
        save_every: seconds between two saves.
        time_limit: seconds after which to stop with the state saved; needs a state folder.
        save: called with the finished curve before the state is forgotten, so that no moment to kill it loses the run.
        progress: called with (steps done, steps in all), of each phase anew.

    Raises:
        Interrupted: a signal or the time limit came while a state folder was given; the state is saved.
        TypeError: a gap is asked for, and x cannot be simulated under the distortion.
        ValueError: the decoder, prior, distortion or schedule cannot be used; says why before any long work.

    Examples:
        >>> x = torch.ones(3, 2)
        >>> curve = measure(lambda z: 2 * z, x, latent_dim=2, beta_max=4.0, n_temperatures=100)
        >>> curve.rate.shape
        (50, 3)
    """
    x = as_data(x)
    check_settings(
        kernel, groups, prerun_settings, n_chains=n_chains, most_chains=most_chains, latent_dim=latent_dim,
        beta_max=beta_max, gap=gap,
        n_temperatures=n_temperatures, betas=betas, n_recorded=n_recorded, n_simulated=n_simulated, seed=seed,
        save_every=save_every,
    )  # fmt: skip
    beta_max = float(beta_max)  # of whatever type: numpy's float32 would be no number to torch
    prior = standard_normal(latent_dim, x.dtype, x.device) if prior is None else prior
    distortion = SquaredError() if distortion is None else distortion
    check_prior(prior)
    target = Target(prior, decoder, distortion, x, tf32_gradients)
    target.check(latent_dim)
    check_scale(target)
    if sum(value is not None for value in (gap, n_temperatures, betas)) > 1:
        raise ValueError("give one of gap, n_temperatures and betas")
    if gap is not None and not 0 < gap < math.inf:
        raise ValueError(f"gap must be positive and finite, nats, not {gap}")
    alone = prerun_settings.step_size_rule == "running_mean"  # a step size for every chain
    if groups is None:
        groups = Groups(8 if n_chains % 8 == 0 and n_chains > 8 and not alone else 1)
    if alone and groups.size > 1:
        raise ValueError(f"step_size_rule running_mean needs groups of size 1, not {groups.size}")
    if alone and prerun_settings.n_chains != n_chains:
        raise ValueError(
            f"step_size_rule running_mean has a step size for every chain: n_chains of the prerun, "
            f"{prerun_settings.n_chains}, must be that of the formal run, {n_chains}"
        )
    if prerun_settings.seed == seed:
        prerun_settings = replace(prerun_settings, seed=seed_of(seed, "prerun"))
    if gap is not None and not isinstance(distortion, SamplableDistortion):
        raise TypeError(f"a gap is measured on simulated data, and {type(distortion).__name__} has no `sample` method")
    n = 1000 if n_temperatures is None else n_temperatures
    if betas is not None:
        betas = check_schedule(betas)
        if float(betas[-1]) != beta_max:
            raise ValueError(f"the schedule ends at {float(betas[-1])}, not at beta_max = {beta_max}")
    elif prerun_settings.schedule == "sigmoid":
        betas = sigmoid(n, beta_max, prerun_settings.sharpness)
    sample = None
    if isinstance(distortion, SamplableDistortion) and (n_simulated or gap is not None):
        sample = check_sample(target, beta_max)
    both_routes = betas is None and has_descent(target, prerun_settings, groups)
    length = n if betas is None else len(betas)
    if gap is None and n_recorded > length // 2:
        logger.warning("%d betas are asked for; a schedule of %d temperatures has %d", n_recorded, length, length // 2)
    if time_limit is not None and (state_folder is None or not time_limit > 0):
        raise ValueError(f"time_limit must be positive and needs a state_folder, not {time_limit}")
    key = ""
    if state_folder is not None:
        size = {"beta_max": beta_max, "gap": gap, "n": n, "betas": None if betas is None else betas.tolist()}
        how = {"kernel": kernel._asdict(), "groups": groups._asdict(), "prerun": asdict(prerun_settings)}
        how |= {
            "n_chains": n_chains,
            "most_chains": most_chains,
            "n_recorded": n_recorded,
            "n_simulated": n_simulated,
            "seed": seed,
        }
        how["sample"] = None if sample is None else sample.tolist()
        key = run_key(target, None, **size, **how, measure=hashlib.sha256(Path(__file__).read_bytes()).hexdigest())
    with Checkpoint(state_folder, key, save_every, time_limit) as checkpoint:
        descent, found, facts = None, None, {}
        bounds = partial(
            _bounds, target, kernel, prerun_settings, groups, n_recorded=n_recorded, n_simulated=n_simulated,
            n_chains=n_chains, seed=seed, checkpoint=checkpoint, progress=progress,
        )  # fmt: skip
        if betas is not None:
            tuning = tune(target, betas, kernel, prerun_settings, groups, checkpoint=checkpoint, progress=progress)
            found = bounds(tuning)
        else:
            learned = learn(
                target, beta_max, kernel, prerun_settings, groups, checkpoint=checkpoint, progress=progress
            )  # fmt: skip
            if gap is None:
                tuning = learned.at_length(n)
                found = bounds(tuning)
            else:
                chosen = size_for_gap(
                    target,
                    learned,
                    kernel,
                    prerun_settings,
                    groups,
                    gap=gap,
                    n_chains=n_chains,
                    n_recorded=n_recorded,
                    checkpoint=checkpoint,
                    progress=progress,
                )
                if n_simulated:
                    chosen, found = certified_size(chosen, learned, bounds, gap, prerun_settings.max_temperatures)
                tuning, facts["prerun"] = learned.at_length(chosen.n_temperatures), chosen.facts(gap)
            if both_routes:
                descent = learn_descent(
                    target, tuning, learned, kernel, prerun_settings, checkpoint=checkpoint, progress=progress
                )
        if found is not None:
            facts["bdmc"] = found.table()
        # the state of the prerun stays until the curve is there: its tuning is in no file, and is replayed from it
        curve = grown_run(
            target,
            tuning,
            _recorded(tuning, n_recorded),
            kernel,
            n_chains=n_chains,
            most_chains=most_chains,
            seed=seed,
            groups=groups,
            descent=descent,
            state_folder=state_folder,
            save_every=save_every,
            time_limit=checkpoint.time_left,
            facts=facts,
            save=save,
            progress=progress,
        )
        checkpoint.remove()
    return curve


def _bounds(
    target: Target,
    kernel: Kernel,
    prerun: PrerunSettings,
    groups: Groups,
    tuning: Tuning,
    attempt: int = 0,
    *,
    n_recorded: int,
    n_simulated: int,
    n_chains: int,
    seed: int,
    checkpoint: Checkpoint,
    progress: Progress,
) -> BDMCGap | None:
    """BDMC on the schedule of a tuning, at ten of the recorded betas or, where there are fewer, at all."""
    if not n_simulated or not isinstance(target.distortion, SamplableDistortion):
        return None
    recorded, seed, phase = _recorded(tuning, n_recorded), seed_of(seed, "bounds", attempt), f"bounds {attempt}"
    steps = spread(recorded, tuning.betas, min(_BDMC_BETAS, len(recorded)))
    simulated = simulate(target, tuning.betas, steps, n_simulated, seed)
    tuned = tune(
        simulated.target, tuning.betas, kernel, prerun, groups, checkpoint=checkpoint, phase=f"{phase} tune",
        progress=progress,
    )  # fmt: skip
    return bdmc(
        simulated, tuned, kernel, n_chains=n_chains, seed=seed_of(seed, "bdmc"), groups=groups, checkpoint=checkpoint,
        phase=f"{phase} ", progress=progress,
    )  # fmt: skip


def _recorded(tuning: Tuning, n_recorded: int) -> list[int]:
    """As many recorded steps as are asked for, and as a schedule that was chosen short can have."""
    return recorded_steps(len(tuning.betas), min(n_recorded, len(tuning.betas) // 2))
