"""rdcurve variational: an upper bound on a curve by Gaussian channels, amortised or per image, to compare AIS with."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rdcurve.commands.inputs import build
from rdcurve.data.load import images, training_split
from rdcurve.device import resolve
from rdcurve.files import writing
from rdcurve.models.mlp import Encoder
from rdcurve.progress import Progress
from rdcurve.sampler.target import Target
from rdcurve.settings import section
from rdcurve.state import Checkpoint
from rdcurve.variational import amortised, per_image
from rdcurve.variational.channel import channel_curve, channel_key, spaced_betas

METHODS = {"amortised": amortised, "per_image": per_image}


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    entry = params["variational"][args.name]
    if entry["method"] not in METHODS:
        raise ValueError(f"variational.{args.name}: method {entry['method']!r} is none of {', '.join(METHODS)}")
    method = METHODS[entry["method"]]
    curve, sampler = params["curves"][entry["curve"]], section(params, "sampler", entry["curve"])
    target = build(args.decoder, args.data, curve, sampler, resolve(args.device)).target
    betas = spaced_betas(entry["n_betas"], entry["beta_min"], curve["beta_max"])
    settings = method.Settings(**{field.name: entry[field.name] for field in fields(method.Settings)})
    learned_from: dict[str, Any] = {}
    if method is amortised:
        learned_from = _learned_from(args.data, target, params["training"], entry)
    key = channel_key(target, entry=entry, betas=betas, **learned_from)
    with Checkpoint(args.state, key, args.save_every, args.time_limit) as checkpoint:
        how = {"checkpoint": checkpoint, "progress": Progress(f"variational {args.name}")}
        if method is amortised:
            fitted = amortised.fit(_encoder(target, entry), target, *learned_from.values(), betas, settings, **how)
        else:
            fitted = per_image.fit(target, betas, settings, **how)
        measured = channel_curve(
            target,
            fitted,
            betas,
            n_samples=entry["n_samples"],
            seed=entry["seed"],
            facts={"curve": entry["curve"], "settings": curve, "sampler": sampler, "variational": entry},
        )
        args.guard.check()
        with writing(args.history) as temporary:
            pd.DataFrame(fitted.history).to_csv(temporary, index=False)
        measured.save(args.output)
        checkpoint.remove()
    print(measured)


def _learned_from(folder: Path, target: Target, split: dict[str, Any], entry: dict[str, Any]) -> dict[str, Tensor]:
    """The images that the encoder learns from, and those that choose among its weights."""
    everything = images(folder, "train", dtype=target.x.dtype)
    training, validation = training_split(everything, split["n_validation"], split["split_seed"])
    device = target.x.device
    return {"training": training.to(device), "validation": validation[: entry["n_validation"]].to(device)}


def _encoder(target: Target, entry: dict[str, Any]) -> Encoder:
    """The paper's encoder, with the widths of the settings."""
    torch.manual_seed(entry["seed"])
    encoder = Encoder(target.prior.event_shape[0], target.x[0].numel(), entry["hidden"], "tanh")
    return encoder.to(target.x.device, target.x.dtype)
