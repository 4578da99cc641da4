"""rdcurve ais: the formal run with frozen step sizes -> the curve."""

from __future__ import annotations

import argparse
from typing import Any

from rdcurve.commands.inputs import build, tuned
from rdcurve.curve import RDCurve
from rdcurve.device import resolve
from rdcurve.diagnosis import verdict
from rdcurve.files import finite, write_json, writing
from rdcurve.progress import Progress
from rdcurve.sampler.growth import grown_run
from rdcurve.sampler.schedule import recorded_steps
from rdcurve.settings import section


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    anneal(args, params, args.name)


def anneal(args: argparse.Namespace, params: dict[str, Any], name: str, seed: int | None = None) -> None:
    """The formal run of curve `name`, with its own seed or another."""
    entry, sampler = params["curves"][name], section(params, "sampler", name)
    problem = build(args.decoder, args.data, entry, sampler, resolve(args.device))
    target, kernel, groups, _ = problem
    tuning, descent, learned = tuned(args.step_sizes, entry, problem)
    settings = section(params, "ais", name)

    def save(curve: RDCurve) -> None:
        args.guard.check()
        if args.summary:
            with writing(args.summary) as temporary:
                curve.summary().to_csv(temporary, index=False)
        if args.errors:
            write_json(args.errors, largest_errors(curve))
        curve.save(args.output)

    curve = grown_run(
        target,
        tuning,
        recorded_steps(len(tuning.betas), entry["n_recorded"]),
        kernel,
        n_chains=settings["n_chains"],
        most_chains=settings.get("most_chains"),
        seed=settings["seed"] if seed is None else seed,
        groups=groups,
        descent=descent,
        state_folder=args.state,
        save_every=args.save_every,
        time_limit=args.time_limit,
        facts={"curve": name, "settings": entry, "sampler": sampler, "prerun": learned},
        save=save,
        progress=Progress(f"ais {args.name}"),
    )
    print(curve)
    print(verdict(curve))


def largest_errors(curve: RDCurve) -> dict[str, float | None]:
    """The metrics of a curve: what to look at before believing it; None for what is no number."""
    found = {
        "rate_se_chains_max": curve.standard_error("rate", "chains").max(),
        "log_z_se_chains_max": curve.standard_error("log_z", "chains").max(),
        "rate_se_images_max": curve.standard_error("rate", "images").max(),
        "certified_beta_max": curve.beta[curve.certified].max(initial=0.0),
        "ess_min": curve.ess.min(),
        "acceptance_min": curve.acceptance.min(),
    }
    return {name: finite(value) for name, value in found.items()}
