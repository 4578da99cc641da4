"""rdcurve bdmc: bounds on log Z from both sides, on data simulated from the model -> the BDMC gap."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pandas as pd

from rdcurve.commands.inputs import build
from rdcurve.device import resolve
from rdcurve.files import write_json, writing
from rdcurve.progress import Progress
from rdcurve.sampler.bdmc import bdmc, simulate
from rdcurve.sampler.prerun import PrerunSettings, prerun
from rdcurve.settings import section


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    problem = build(
        args.decoder,
        args.data,
        params["curves"][args.name],
        section(params, "sampler", args.name),
        resolve(args.device),
    )
    settings = section(params, "bdmc", args.name)
    target, betas = problem.target, problem.betas
    steps = spread(problem.recorded, settings["n_betas"])
    simulated = simulate(
        target.prior, target.decoder, target.distortion, betas, steps, settings["n_images"], settings["seed"]
    )
    total, show = 3 * steps[-1], Progress(f"bdmc {args.name}")
    tuning = prerun(
        simulated.target,
        betas,
        problem.kernel,
        PrerunSettings(**section(params, "prerun", args.name)),
        progress=lambda done, _: show(done, total),
    )
    done = steps[-1]

    def progress(steps: int) -> None:
        nonlocal done
        done += steps
        show(done, total)

    result = bdmc(
        simulated,
        betas,
        tuning,
        problem.kernel,
        n_chains=settings["n_chains"],
        seed=settings["seed"],
        progress=progress,
    )
    points = pd.DataFrame(
        {
            "beta": result.beta.numpy(),
            "lower": result.lower.mean(1).numpy(),
            "upper": result.upper.mean(1).numpy(),
            "gap": result.gap.numpy(),
            "gap_se": result.gap_se.numpy(),
            "acceptance": result.acceptance.numpy(),
        }
    )
    args.guard.check()
    with writing(args.output) as temporary:
        points.to_csv(temporary, index=False)
    worst = points.loc[points["gap"].idxmax()]
    write_json(args.gap, {f"gap_{key}": float(worst[name]) for key, name in
                          (("max", "gap"), ("max_se", "gap_se"), ("max_beta", "beta"))})  # fmt: skip
    print(f"{args.name}: bounds on log Z of simulated data, nats\n{points.to_string(index=False)}")


def spread(recorded: list[int], n: int) -> list[int]:
    """`n` of the recorded steps, evenly spread, the last one included.

    Examples:
        >>> spread([100, 200, 300, 400], 2)
        [200, 400]
    """
    if n > len(recorded):
        raise ValueError(f"bdmc.n_betas = {n}, but only {len(recorded)} betas are recorded")
    return [recorded[i] for i in np.linspace(0, len(recorded), n + 1).astype(int)[1:] - 1]
