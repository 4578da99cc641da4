"""rdcurve measure: the curve of a decoder of one's own, given as module:name."""

from __future__ import annotations

import argparse
import importlib
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rdcurve.device import resolve
from rdcurve.diagnosis import verdict
from rdcurve.files import FileError, check_writable
from rdcurve.own.measure import measure
from rdcurve.progress import Progress
from rdcurve.sampler.distortion import DISTORTIONS
from rdcurve.sampler.prerun import PrerunSettings
from rdcurve.sampler.prior import standard_normal


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    device = resolve(args.device)
    if args.figure:
        from rdcurve.plot import FORMATS, save  # seconds of matplotlib, that a curve without a picture need not wait

        if args.figure.suffix not in FORMATS:
            raise ValueError(f"--figure must end in {', '.join(FORMATS)}, not {args.figure.suffix!r}")
    decoder = _import(args.name)
    if isinstance(decoder, nn.Module):
        decoder.to(device).eval().requires_grad_(False)
    try:
        data = np.load(args.data, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise FileError(f"{args.data}: not a readable .npy array ({error})") from error
    if not isinstance(data, np.ndarray):
        raise FileError(f"{args.data}: an archive of arrays; give one array, .npy")
    if data.dtype not in (np.float32, np.float64):
        raise FileError(
            f"{args.data}: holds {data.dtype}; give float32 or float64 on the scale of the decoder's output"
        )
    if args.prior != "standard_normal":
        raise ValueError(f"--prior must be standard_normal, not {args.prior!r}; others through rdcurve.measure")
    if args.distortion not in DISTORTIONS:
        raise ValueError(f"--distortion must be one of {', '.join(DISTORTIONS)}, not {args.distortion!r}")
    x = torch.from_numpy(data).to(device)
    if isinstance(decoder, nn.Module):
        x = x.to(next((p.dtype for p in decoder.parameters()), x.dtype))
    named = {"--data": args.data, "--output": args.output, "--figure": args.figure}
    places: dict[Path, str] = {}
    for option, path in named.items():  # before the work, not after it
        if path is None:
            continue
        other = places.setdefault(path.resolve(), option)
        if other != option:
            raise ValueError(f"{other} and {option} are one file, {path}: one would be written over the other")
        if option != "--data":
            check_writable(path)
    # beside the output, so that nothing is lost by a kill even where nobody thought of it
    state = args.state or args.output.with_name(f"{args.output.name}.state")
    curve = measure(
        decoder,
        x,
        latent_dim=args.latent_dim,
        beta_max=args.beta_max,
        prior=standard_normal(args.latent_dim, x.dtype, device),
        distortion=DISTORTIONS[args.distortion](),
        gap=args.gap,
        n_temperatures=args.temperatures,
        n_recorded=args.recorded,
        n_chains=args.chains,
        most_chains=args.most_chains,
        n_simulated=args.simulated,
        seed=args.seed,
        prerun_settings=PrerunSettings(n_hops=args.hops),
        state_folder=state,
        save_every=args.save_every,
        time_limit=args.time_limit,
        save=lambda curve: curve.save(args.output),
        progress=Progress(f"measure {args.name}"),
    )
    with suppress(OSError):  # states of other runs stay
        state.rmdir()
    if args.figure:
        save(curve.plot().figure, [args.figure], dpi=200)
    print(curve)
    print(verdict(curve))


def _import(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"{name!r} is not of the form module:name")
    sys.path.insert(0, "")  # a module in the working directory, as with python -m
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{name}: {error}") from error
    try:
        decoder = getattr(found, attribute)
    except AttributeError:
        raise ValueError(f"{name}: {module} has no {attribute!r}") from None
    if not callable(decoder):
        raise ValueError(f"{name}: a {type(decoder).__name__} is not callable")
    return decoder
