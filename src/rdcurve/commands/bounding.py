"""The BDMC bounds of a curve: made by the step `bdmc`, and before it by a prerun that has to keep a gap."""

from __future__ import annotations

import argparse
from typing import Any

from torch import Tensor

from rdcurve.commands.inputs import Problem
from rdcurve.progress import Progress
from rdcurve.sampler.bdmc import BDMCGap, bdmc, simulate
from rdcurve.sampler.formal import run_key
from rdcurve.sampler.prerun import PrerunSettings, tune
from rdcurve.sampler.schedule import recorded_steps, spread
from rdcurve.settings import section
from rdcurve.state import Checkpoint

__all__ = ["Bounding"]


class Bounding:
    """The run that bounds log Z of curve `args.name` from both sides, along a schedule.

    Args:
        args: of the command: name, state, save_every.
        params: the settings.
        problem: what `build` makes of them; x can be simulated under its distortion.
        betas: the schedule of the curve.
    """

    def __init__(self, args: argparse.Namespace, params: dict[str, Any], problem: Problem, betas: Tensor) -> None:
        self._problem, self._betas, name = problem, betas, args.name
        self._settings, prerun = section(params, "bdmc", name), section(params, "prerun", name)
        self._prerun, self._show = PrerunSettings(**prerun), Progress(f"bdmc {name}")
        steps = recorded_steps(len(betas), params["curves"][name]["n_recorded"])
        steps = spread(steps, betas, self._settings["n_betas"])
        self._simulated = simulate(problem.target, betas, steps, self._settings["n_images"], self._settings["seed"])
        sampler = section(params, "sampler", name)
        parts = {"sampler": sampler, "prerun": prerun, "bdmc": self._settings, "steps": steps}
        self._state = args.state, run_key(self._simulated.target, None, betas=betas, **parts), args.save_every

    def checkpoint(self, time_limit: float | None = None) -> Checkpoint:
        """Its state, whichever step it is that runs it."""
        return Checkpoint(*self._state, time_limit)

    def bounds(self, checkpoint: Checkpoint) -> BDMCGap:
        """The bounds, with step sizes and metric of the simulated images, learned before."""
        target, kernel, groups = self._simulated.target, self._problem.kernel, self._problem.groups
        tuning = tune(
            target, self._betas, kernel, self._prerun, groups, checkpoint=checkpoint, progress=self._show
        )  # fmt: skip
        return bdmc(
            self._simulated,
            tuning,
            kernel,
            n_chains=self._settings["n_chains"],
            seed=self._settings["seed"],
            groups=groups,
            checkpoint=checkpoint,
            progress=self._show,
        )
