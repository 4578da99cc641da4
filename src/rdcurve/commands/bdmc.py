"""rdcurve bdmc: bounds on log Z from both sides, on data simulated from the model -> the BDMC gap."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rdcurve.commands.inputs import build, tuned
from rdcurve.device import resolve
from rdcurve.files import write_json, writing
from rdcurve.progress import Progress
from rdcurve.sampler.bdmc import BDMCGap, bdmc, simulate
from rdcurve.sampler.measure import run_key
from rdcurve.sampler.prerun import PrerunSettings, tune
from rdcurve.sampler.schedule import recorded_steps
from rdcurve.settings import section
from rdcurve.state import Checkpoint
from rdcurve.types import SamplableDistortion


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    entry, sampler = params["curves"][args.name], section(params, "sampler", args.name)
    problem = build(args.decoder, args.data, entry, sampler, resolve(args.device))
    target, kernel, groups, _ = problem
    settings, prerun = section(params, "bdmc", args.name), section(params, "prerun", args.name)
    betas = tuned(args.step_sizes, entry, problem).tuning.betas
    if not isinstance(target.distortion, SamplableDistortion):
        _save(args, None, None)
        return
    steps = spread(recorded_steps(len(betas), entry["n_recorded"]), betas, settings["n_betas"])
    simulated = simulate(target, betas, steps, settings["n_images"], settings["seed"])
    show = Progress(f"bdmc {args.name}")
    key = run_key(simulated.target, None, betas=betas, sampler=sampler, prerun=prerun, bdmc=settings, steps=steps)
    with Checkpoint(args.state, key, args.save_every, args.time_limit) as checkpoint:
        prerun_settings = PrerunSettings(**prerun)
        tuning = tune(simulated.target, betas, kernel, prerun_settings, groups, checkpoint=checkpoint, progress=show)
        result = bdmc(
            simulated,
            tuning,
            kernel,
            n_chains=settings["n_chains"],
            seed=settings["seed"],
            groups=groups,
            checkpoint=checkpoint,
            progress=show,
        )
        _save(args, result, entry.get("gap"))
        checkpoint.remove()


def _save(args: argparse.Namespace, result: BDMCGap | None, asked: float | None) -> None:
    """The table, and whether the gap that was asked for is kept; no rows where no data can be simulated."""
    names = ("beta", "lower", "upper", "gap", "gap_se", "acceptance", "n_images")
    columns: dict[str, list[float]] = {name: [] for name in names}
    if result is not None:
        means = (result.beta, result.lower.mean(1), result.upper.mean(1), result.gap, result.gap_se, result.acceptance)
        n_images = np.full(len(result.beta), result.lower.shape[1])
        columns = {name: values.tolist() for name, values in zip(names, (*means, n_images), strict=True)}
    points = pd.DataFrame(columns)
    args.guard.check()
    with writing(args.output) as temporary:
        points.to_csv(temporary, index=False)
    if result is None:
        write_json(args.gap, {})
        print(f"{args.name}: no data can be simulated under this distortion, so there is no BDMC gap")
        return
    worst = points.loc[points["gap"].idxmax()]
    write_json(args.gap, {f"gap_{key}": float(worst[name]) for key, name in
                          (("max", "gap"), ("max_se", "gap_se"), ("max_beta", "beta"))})  # fmt: skip
    print(f"{args.name}: bounds on log Z of simulated data, nats\n{points.to_string(index=False)}")
    if asked is not None:
        print(f"{args.name}: {kept(points, asked)}")


def kept(points: pd.DataFrame, asked: float) -> str:
    """Whether the gap that was asked for is kept at every beta, by two standard errors.

    Examples:
        >>> kept(pd.DataFrame({"beta": [1.0, 9.0], "gap": [0.2, 1.6], "gap_se": [0.1, 0.2]}), 1.0)
        'the gap of 1 nats that was asked for is MISSED: 1.60 ± 0.20 nats at beta = 9; ask for a smaller one'
    """
    what = f"the gap of {asked:g} nats that was asked for is"
    sure, possible = points["gap"] - 2 * points["gap_se"], points["gap"] + 2 * points["gap_se"]
    if possible.max() <= asked:
        return f"{what} kept at all {len(points)} betas"
    missed = sure.max() > asked
    worst = points.loc[(sure if missed else possible).idxmax()]
    seen = f"{worst['gap']:.2f} ± {worst['gap_se']:.2f} nats at beta = {worst['beta']:.3g}"
    if missed:
        return f"{what} MISSED: {seen}; ask for a smaller one"
    return f"{what} not contradicted ({seen}); more bdmc.n_images would tell"


def spread(recorded: list[int], betas: Tensor, n: int) -> list[int]:
    """`n` of the recorded steps, spread evenly over log beta and so over the rate axis, the last one included.

    Examples:
        >>> spread([1, 2, 3, 4, 5], torch.tensor([0, 1, 2, 4, 7, 8]), 3)
        [1, 3, 5]
    """
    if n > len(recorded):
        raise ValueError(f"bdmc.n_betas = {n}, but only {len(recorded)} betas are recorded")
    places = betas[recorded].double().log()
    chosen: list[int] = []
    for wanted in torch.linspace(float(places[-1]), float(places[0]), n).tolist():
        free = [k for k in range(len(recorded)) if k not in chosen]
        chosen.append(min(free, key=lambda k: abs(float(places[k]) - wanted)))
    return [recorded[k] for k in sorted(chosen)]
