"""rdcurve bdmc: bounds on log Z from both sides, on data simulated from the model -> the BDMC gap."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rdcurve.commands.inputs import Problem, build, tuned
from rdcurve.device import resolve
from rdcurve.files import write_json, writing
from rdcurve.progress import Progress
from rdcurve.sampler.bdmc import BDMCGap, bdmc, simulate
from rdcurve.sampler.formal import run_key
from rdcurve.sampler.prerun import PrerunSettings, tune
from rdcurve.sampler.schedule import recorded_steps, spread
from rdcurve.sampler.sizing import compare
from rdcurve.settings import section
from rdcurve.state import Checkpoint
from rdcurve.types import SamplableDistortion


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    entry = params["curves"][args.name]
    problem = build(args.decoder, args.data, entry, section(params, "sampler", args.name), resolve(args.device))
    betas = tuned(args.step_sizes, entry, problem).tuning.betas
    if not isinstance(problem.target.distortion, SamplableDistortion):
        nothing = torch.empty(0, 1)
        _save(args, BDMCGap(nothing[:, 0], nothing, nothing, nothing[:, 0]), None)
        return
    with bounding(args, params, problem, betas, args.time_limit) as (checkpoint, found):
        _save(args, found, entry.get("gap"))
        checkpoint.remove()


@contextmanager
def bounding(
    args: argparse.Namespace, params: dict[str, Any], problem: Problem, betas: Tensor, time_limit: float | None
) -> Iterator[tuple[Checkpoint, BDMCGap]]:
    """The bounds of curve `args.name` on a schedule, and the run that has made them, with its state."""
    (target, kernel, groups, _), name = problem, args.name
    settings, prerun = section(params, "bdmc", name), section(params, "prerun", name)
    n_recorded = params["curves"][name]["n_recorded"]
    steps = spread(recorded_steps(len(betas), n_recorded), betas, settings["n_betas"])
    simulated = simulate(target, betas, steps, settings["n_images"], settings["seed"])
    show, sampler = Progress(f"bdmc {name}"), section(params, "sampler", name)
    key = run_key(simulated.target, None, betas=betas, sampler=sampler, prerun=prerun, bdmc=settings, steps=steps)
    with Checkpoint(args.state, key, args.save_every, time_limit) as checkpoint:
        prerun_settings = PrerunSettings(**prerun)
        tuning = tune(simulated.target, betas, kernel, prerun_settings, groups, checkpoint=checkpoint, progress=show)
        yield (
            checkpoint,
            bdmc(
                simulated,
                tuning,
                kernel,
                n_chains=settings["n_chains"],
                seed=settings["seed"],
                groups=groups,
                checkpoint=checkpoint,
                progress=show,
            ),
        )


def _save(args: argparse.Namespace, result: BDMCGap, asked: float | None) -> None:
    """The table, and whether the gap that was asked for is kept; no rows where no data can be simulated."""
    points = pd.DataFrame(result.table())
    args.guard.check()
    with writing(args.output) as temporary:
        points.to_csv(temporary, index=False)
    if not len(points):
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
    """Whether the gap that was asked for is kept, in words.

    Examples:
        >>> kept(pd.DataFrame({"beta": [1.0, 9.0], "gap": [0.2, 1.6], "gap_se": [0.1, 0.2]}), 1.0)
        'the gap of 1 nats that was asked for is MISSED: 1.60 ± 0.20 nats at beta = 9; raise prerun.max_temperatures'
    """
    found = compare(points, asked)
    words = {
        True: f"kept at all {len(points)} betas",
        False: f"MISSED: {found}; raise prerun.max_temperatures",
        None: f"not contradicted ({found}); more bdmc.n_images would tell",
    }
    return f"the gap of {asked:g} nats that was asked for is {words[found.kept]}"
