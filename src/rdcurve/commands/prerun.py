"""rdcurve prerun: learn the HMC step sizes and the metric of a curve."""

from __future__ import annotations

import argparse
from typing import Any

from rdcurve.commands.inputs import build
from rdcurve.device import resolve
from rdcurve.progress import Progress
from rdcurve.sampler.prerun import PrerunSettings, prerun, save_tuning
from rdcurve.settings import section


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    problem = build(
        args.decoder,
        args.data,
        params["curves"][args.name],
        section(params, "sampler", args.name),
        resolve(args.device),
    )
    settings = PrerunSettings(**section(params, "prerun", args.name))
    tuning = prerun(problem.target, problem.betas, problem.kernel, settings, progress=Progress(f"prerun {args.name}"))
    args.guard.check()
    save_tuning(args.output, tuning, {"curve": args.name})
    table = tuning.step_sizes
    print(
        f"{args.name}: step sizes for {table.shape[0] - 1} steps and {table.shape[1]} images, "
        f"{float(table.min()):.3g} to {float(table.max()):.3g}"
    )
