"""The command line. Its verbs are the steps of the pipeline, and `measure` for a model of one's own."""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import rdcurve

__all__ = ["main", "sections"]

EXIT_REFUSED = 1  # bad input, or a step that failed
TIME_LIMIT = "RDCURVE_TIME_LIMIT"  # in the environment, since Snakemake and DVC hand on no options
EXIT_UNFINISHED = 75  # stopped by a signal with its state saved: run the same command again


def sections(verb: str, name: str, curve: str = "") -> list[str]:
    """Parts of params.yaml that a step reads: it is handed nothing else, and dvc.yaml lists the same.

    `curve` is what a repeat repeats, or a variational curve bounds.

    Examples:
        >>> sections("ais", "vae10")
        ['sampler', 'ais', 'curves.vae10']
    """
    return {
        "fetch": [],
        "train": ["training", f"models.{name}"],
        "compose": [f"compositions.{name}"],
        "prerun": ["sampler", "prerun", "bdmc", f"curves.{name}"],
        "ais": ["sampler", "ais", f"curves.{name}"],
        "repeat": ["sampler", "ais", f"curves.{curve}", f"repeats.{name}"],
        "bdmc": ["sampler", "prerun", "bdmc", f"curves.{name}"],
        "exact": [f"curves.{name}"],
        "variational": ["training", "sampler", f"curves.{curve}", f"variational.{name}"],
        "illustrate": [f"illustrations.{name}"],
        "plot": ["plot", "closed_form", f"figures.{name}"],
        "claims": [f"claims.{name}"],
        "scorecard": ["claims"],
        "likelihood": ["likelihood"],
        "measure": [],
    }[verb]


def main(argv: list[str] | None = None) -> None:
    """Run a command; errors that a user can mend are one line and a non-zero exit."""
    args = _parser().parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, datefmt="%H:%M:%S")
    from rdcurve.commands.guard import Changed, ForeignCode, Guard, check_code_is_tracked
    from rdcurve.commands.provenance import check as check_provenance
    from rdcurve.files import FileError
    from rdcurve.settings import SettingsError, read

    os.environ["MPLBACKEND"] = "Agg"  # a step draws into files, on machines without a screen, too
    try:
        if hasattr(args, "time_limit"):
            args.time_limit = _time_limit(args)
        if args.params is not None:
            check_code_is_tracked(args.params)
        args.guard = Guard(lambda: _settings(args))
        params = args.guard.settings
        if args.params is not None:
            check_provenance(args, read(args.params))
        command = importlib.import_module(f"rdcurve.commands.{args.verb}")
        command.run(args, params)
    except (Changed, FileError, ForeignCode, SettingsError, FloatingPointError, OSError) as error:
        _fail(args.verb, error, EXIT_REFUSED)
    except Exception as error:
        # named, not imported: these modules need torch, and only commands that use it load it
        if type(error).__name__ == "Interrupted":
            _fail(args.verb, error, EXIT_UNFINISHED)
        if type(error).__name__ == "DeviceError" or isinstance(error, (ValueError, TypeError)):
            if os.environ.get("RDCURVE_TRACEBACK"):
                raise
            _fail(args.verb, error, EXIT_REFUSED)
        raise


def _time_limit(args: argparse.Namespace) -> float | None:
    """Seconds after which to stop: those of the option, else of the environment where the step keeps a state."""
    keeps_state, given = args.state is not None or args.verb == "measure", args.time_limit
    if given is not None and not keeps_state:
        raise ValueError("--time-limit needs --state, to go on from")
    where, given = ("--time-limit", given) if given is not None else (TIME_LIMIT, os.environ.get(TIME_LIMIT))
    if not keeps_state or given in (None, ""):
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise ValueError(f"{where} must be a positive number of seconds, not {given!r}")
    return seconds


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The sections that the step reads, and nothing else."""
    if args.params is None:
        return {}
    from rdcurve.settings import SettingsError, read

    everything = read(args.params)
    chosen: dict[str, Any] = {}
    curve = {**everything["repeats"], **everything["variational"]}.get(args.name, {}).get("curve", "")
    for key in sections(args.verb, args.name, curve):
        top, _, entry = key.partition(".")
        if not entry:
            chosen[top] = everything[top]
        elif entry in everything[top]:
            chosen[top] = {entry: everything[top][entry]}
        else:
            raise SettingsError(f"{args.params}: {top} has no {entry!r}; it has {', '.join(everything[top])}")
    return chosen


def _fail(verb: str, error: Exception, code: int) -> NoReturn:
    print(f"rdcurve {verb}: error: {error}", file=sys.stderr)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rdcurve", description=rdcurve.__doc__)
    parser.add_argument("--version", action="version", version=f"rdcurve {rdcurve.__version__}")
    parser.set_defaults(params=None, device=None)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, summary: str, what: str | None = None) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=summary, description=summary)
        if what is not None:
            sub.add_argument("name", metavar=what.upper(), help=f"{what} in params.yaml")
            sub.add_argument("--params", type=Path, required=True, help="settings file")
        return sub

    def device(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: $RDCURVE_DEVICE, else auto)")

    def path(sub: argparse.ArgumentParser, option: str, summary: str, required: bool = True) -> None:
        sub.add_argument(option, type=Path, required=required, help=summary)

    def resumable(sub: argparse.ArgumentParser, where: str = "folder for the state of unfinished runs") -> None:
        path(sub, "--state", where, required=False)
        sub.add_argument("--save-every", type=float, default=30.0, help="seconds between two saves (default: 30)")
        sub.add_argument(
            "--time-limit",
            metavar="SECONDS",
            help=f"then save the state and exit with {EXIT_UNFINISHED} (default: ${TIME_LIMIT}, else none)",
        )

    def decoder_and_data(sub: argparse.ArgumentParser) -> None:
        path(sub, "--decoder", "checkpoint to measure")
        path(sub, "--data", "folder of the fetched data set")

    sub = verb("fetch", "bring a data set, checked byte for byte")
    sub.add_argument("name", metavar="DATASET", help="mnist or cifar10")
    path(sub, "--output", "folder for its files")
    path(sub, "--mirror", "folder to look in first (default: $RDCURVE_MIRROR)", required=False)

    sub = verb("train", "train a model; keep its decoder", "model")
    path(sub, "--data", "folder of the fetched data set")
    path(sub, "--output", "checkpoint to write")
    path(sub, "--history", "losses per epoch, CSV to write")
    path(sub, "--samples", "grid of samples from the prior, PNG to write")
    resumable(sub)
    device(sub)

    sub = verb("compose", "a decoder of the features that a classifier finds in another's images", "composition")
    path(sub, "--decoder", "checkpoint of the decoder")
    path(sub, "--features", "checkpoint of the classifier")
    path(sub, "--output", "checkpoint to write")

    sub = verb("prerun", "learn schedule, HMC step sizes and metric of a curve", "curve")
    decoder_and_data(sub)
    path(sub, "--output", "tuning to write")
    resumable(sub)
    device(sub)

    def formal(sub: argparse.ArgumentParser) -> None:
        decoder_and_data(sub)
        path(sub, "--step-sizes", "tuning that `rdcurve prerun` wrote")
        path(sub, "--output", "curve to write, per image")
        path(sub, "--summary", "means and standard errors, CSV to write", required=False)
        path(sub, "--errors", "largest errors, JSON to write", required=False)
        resumable(sub)
        device(sub)

    formal(verb("ais", "the formal run with frozen step sizes: the curve", "curve"))
    formal(verb("repeat", "the formal run of a curve again, with other noise", "repeat"))

    sub = verb("bdmc", "bounds from both sides on simulated data: the BDMC gap", "curve")
    decoder_and_data(sub)
    path(sub, "--step-sizes", "tuning that `rdcurve prerun` wrote, for its schedule")
    path(sub, "--output", "points, CSV to write")
    path(sub, "--gap", "largest gap, JSON to write")
    resumable(sub)
    device(sub)

    sub = verb("exact", "closed-form curve of a linear decoder, beside a measured one", "curve")
    decoder_and_data(sub)
    path(sub, "--curve", "measured curve")
    path(sub, "--output", "closed-form curve to write")
    path(sub, "--differences", "measured minus exact, JSON to write")

    sub = verb("variational", "an upper bound on a curve, by Gaussian channels", "variational curve")
    decoder_and_data(sub)
    path(sub, "--output", "curve to write, per image")
    path(sub, "--history", "losses, CSV to write")
    resumable(sub)
    device(sub)

    sub = verb("illustrate", "a small problem where everything can be computed", "illustration")
    path(sub, "--output", "arrays to write")

    sub = verb("plot", "draw a figure as SVG, PDF and PNG", "figure")
    path(sub, "--curves", "folder of measured curves", required=False)
    path(sub, "--exact", "folder of closed-form curves", required=False)
    path(sub, "--bdmc", "folder of BDMC points", required=False)
    path(sub, "--variational", "folder of variational curves", required=False)
    path(sub, "--illustrations", "folder of what `rdcurve illustrate` wrote", required=False)
    path(sub, "--decoders", "folder of checkpoints, for reconstructions", required=False)
    path(sub, "--data", "folder of fetched data sets, for reconstructions", required=False)
    path(sub, "--output", "SVG to write; PDF and PNG go beside it")

    sub = verb("claims", "decide what the paper says of a figure", "figure")
    path(sub, "--curves", "folder of measured curves", required=False)
    path(sub, "--variational", "folder of variational curves", required=False)
    path(sub, "--bdmc", "folder of BDMC points", required=False)
    path(sub, "--output", "verdicts, JSON to write")
    path(sub, "--table", "every comparison, CSV to write")

    sub = verb("scorecard", "the verdicts of all figures in one table")
    sub.set_defaults(name="")
    path(sub, "--params", "settings file")
    path(sub, "--verdicts", "folder of what `rdcurve claims` wrote")
    path(sub, "--output", "table to write, Markdown")
    path(sub, "--table", "the same, CSV to write")

    sub = verb("likelihood", "log p(x) of models with Gaussian noise, from their curves")
    sub.set_defaults(name="")
    path(sub, "--params", "settings file")
    path(sub, "--curves", "folder of measured curves")
    path(sub, "--decoders", "folder of checkpoints")
    path(sub, "--bdmc", "folder of BDMC points")
    path(sub, "--output", "table to write, Markdown")
    path(sub, "--table", "the same, CSV to write")

    sub = verb("measure", "the curve of a decoder of one's own")
    sub.add_argument("name", metavar="MODULE:NAME", help="a callable [..., latent] -> [..., *data], torch in and out")
    path(sub, "--data", "images, .npy [N, *data]")
    path(sub, "--output", "curve to write")
    sub.add_argument("--latent-dim", type=int, required=True, help="size of the code")
    sub.add_argument("--beta-max", type=float, required=True, help="largest beta")
    sub.add_argument("--prior", default="standard_normal", help="standard_normal (default)")
    sub.add_argument("--distortion", default="squared_error", help="squared_error (default) or gaussian_nll")
    size = sub.add_mutually_exclusive_group()
    size.add_argument("--gap", type=float, help="nats: as many temperatures as keep the BDMC gap below")
    size.add_argument("--temperatures", type=int, help="schedule points (default: 1000)")
    sub.add_argument(
        "--chains",
        type=int,
        default=32,
        help="chains per image, resampled in groups of 8 if it is a multiple of that (default: 32)",
    )
    sub.add_argument(
        "--most-chains", type=int, help="repeat the formal run with twice as many until certified, up to so many"
    )
    sub.add_argument(
        "--hops",
        type=int,
        default=0,
        help="of each start of the searches for modes, 12 say, to lower ones (default: 0)",
    )
    sub.add_argument("--recorded", type=int, default=50, help="betas in the curve (default: 50)")
    sub.add_argument(
        "--simulated",
        type=int,
        default=5,
        help="images simulated at each of ten betas for the BDMC bounds; 0: none (default: 5)",
    )
    sub.add_argument("--seed", type=int, default=7)
    resumable(sub, "folder for the state of an unfinished run (default: OUTPUT.state)")
    path(sub, "--figure", "picture to write (.svg, .pdf or .png)", required=False)
    device(sub)
    return parser
