"""rdcurve bdmc: bounds on log Z from both sides, on data simulated from the model -> the BDMC gap."""

from __future__ import annotations

import argparse
import math
from typing import Any

import pandas as pd
import torch

from rdcurve.commands.bounding import Bounding
from rdcurve.commands.inputs import build, tuned
from rdcurve.device import resolve
from rdcurve.files import finite, write_json, writing
from rdcurve.sampler.bdmc import BDMCGap
from rdcurve.sampler.sizing import compare
from rdcurve.settings import section
from rdcurve.types import SamplableDistortion


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    entry = params["curves"][args.name]
    problem = build(args.decoder, args.data, entry, section(params, "sampler", args.name), resolve(args.device))
    betas = tuned(args.step_sizes, entry, problem).tuning.betas
    if not isinstance(problem.target.distortion, SamplableDistortion):
        nothing = torch.empty(0, 1)
        _save(args, BDMCGap(nothing[:, 0], nothing, nothing, nothing[:, 0]), None)
        return
    bounding = Bounding(args, params, problem, betas)
    with bounding.checkpoint(args.time_limit) as checkpoint:
        _save(args, bounding.bounds(checkpoint), entry.get("gap"))
        checkpoint.remove()


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
    worst = points.loc[points["gap"].fillna(math.inf).idxmax()]
    write_json(args.gap, {f"gap_{key}": finite(worst[name]) for key, name in
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
