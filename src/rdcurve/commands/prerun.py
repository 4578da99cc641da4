"""rdcurve prerun: learn schedule, HMC step sizes and metric of a curve; choose its size where a gap is asked for."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from rdcurve.commands.bounding import Bounding
from rdcurve.commands.inputs import build
from rdcurve.device import resolve
from rdcurve.progress import Progress
from rdcurve.sampler.ais import Tuning
from rdcurve.sampler.bdmc import BDMCGap
from rdcurve.sampler.descent import has_descent, learn_descent
from rdcurve.sampler.formal import run_key
from rdcurve.sampler.prerun import PrerunSettings, learn, tune
from rdcurve.sampler.schedule import sigmoid
from rdcurve.sampler.sizing import certified_size, size_for_gap
from rdcurve.sampler.tuning_file import save_tuning
from rdcurve.settings import section
from rdcurve.state import Checkpoint


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    entry, sampler = params["curves"][args.name], section(params, "sampler", args.name)
    problem = build(args.decoder, args.data, entry, sampler, resolve(args.device))
    target, kernel, groups, _ = problem
    # a gap is asked for as BDMC measures it; a formal run of more chains only has a smaller one
    values, bounded = section(params, "prerun", args.name), section(params, "bdmc", args.name)
    settings, show = PrerunSettings(**values), Progress(f"prerun {args.name}")
    key = run_key(
        target, None, curve=entry, sampler=sampler, prerun=values, bdmc=bounded if "gap" in entry else None
    )  # fmt: skip
    smaller: list[Checkpoint] = []

    def bounds(tuning: Tuning, attempt: int) -> BDMCGap:
        phase, bounding = f"bounds {attempt}", Bounding(args, params, problem, tuning.betas)
        for state in smaller:
            state.remove()
        smaller[:] = [bounding.checkpoint()]
        if checkpoint.holds(phase):
            return BDMCGap(*checkpoint.resume(phase, (torch.zeros(0),) * 4))
        checkpoint.keep()  # a run within this one may be stopped
        with bounding.checkpoint(checkpoint.time_left) as state:
            found = bounding.bounds(state)
            state.keep()  # the step `bdmc` begins with the same work, and finds it done
        checkpoint.offer(phase, (found.beta, found.lower, found.upper, found.acceptance))
        checkpoint.keep()
        return found

    with Checkpoint(args.state, key, args.save_every, args.time_limit) as checkpoint:
        facts: dict[str, Any] = {"curve": args.name}
        descent = None
        if settings.schedule == "sigmoid":
            betas = sigmoid(entry["n_temperatures"], entry["beta_max"], settings.sharpness)
            tuning = tune(target, betas, kernel, settings, groups, checkpoint=checkpoint, progress=show)
        else:
            both_routes = has_descent(target, settings, groups)
            learned = learn(target, entry["beta_max"], kernel, settings, groups, checkpoint=checkpoint, progress=show)
            facts["length"] = learned.length
            n = entry.get("n_temperatures")
            if n is None:
                size = size_for_gap(
                    target,
                    learned,
                    kernel,
                    settings,
                    groups,
                    gap=entry["gap"],
                    n_chains=bounded["n_chains"],
                    n_recorded=entry["n_recorded"],
                    checkpoint=checkpoint,
                    progress=show,
                )
                size, _ = certified_size(size, learned, bounds, entry["gap"], settings.max_temperatures)
                n = size.n_temperatures
                facts |= size.facts(entry["gap"])
            tuning = learned.at_length(n)
            if both_routes:
                descent = learn_descent(target, tuning, learned, kernel, settings, checkpoint=checkpoint, progress=show)
        args.guard.check()
        save_tuning(args.output, tuning, facts, descent)
        checkpoint.remove()
    low, high = float(tuning.step_sizes.min()), float(tuning.step_sizes.max())
    print(f"{args.name}: {len(tuning.betas)} temperatures; step sizes {low:.3g} to {high:.3g}")
