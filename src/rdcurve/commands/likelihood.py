"""rdcurve likelihood: curves -> log p(x) of models with Gaussian noise, in one table with published numbers."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pandas as pd
import torch

from rdcurve.commands.gaps import read_gaps
from rdcurve.curve import RDCurve
from rdcurve.files import FileError, write_bytes, writing
from rdcurve.likelihood import log_likelihood
from rdcurve.models.checkpoint import load_decoder

_FIRST = (
    "Log-likelihood of the first test images, nats, under Gaussian noise around the decoder's image: in expectation a\n"
    "lower bound. The BDMC gap, on simulated images, is that of the next β up at which it was measured."
)


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    entry = params["likelihood"]
    rows = [_row(args, name, variance) for name, variance in entry["curves"].items()]
    rows += [{"model": name, "source": "published", **values} for name, values in entry["published"].items()]
    table = pd.DataFrame(rows)
    args.guard.check()
    with writing(args.table) as temporary:
        table.to_csv(temporary, index=False)
    text = f"{_FIRST}\n\n{_markdown(table)}\n{entry['note']}\n"
    write_bytes(args.output, text.encode())
    print(text)


def _row(args: argparse.Namespace, name: str, variance: float | str) -> dict[str, Any]:
    """log p of a curve at the model's own variance, or at a given one."""
    source = args.curves / f"{name}.safetensors"
    curve = RDCurve.load(source)
    if "model" not in curve.facts.get("settings", {}):
        raise FileError(f"{source}: does not say its model; only `rdcurve ais` writes curves for this table")
    path = args.decoders / f"{curve.facts['settings']['model']}.safetensors"
    loaded = load_decoder(path)
    if variance == "own":
        if "variance" not in loaded.facts:
            raise FileError(f"{path}: this model has no noise of its own; give likelihood.curves.{name} a variance")
        variance = float(loaded.facts["variance"])
    with torch.no_grad():
        n_pixels = loaded.decoder(torch.zeros(1, loaded.latent_dim, dtype=loaded.dtype)).numel()
    found = log_likelihood(curve, float(variance), n_pixels)
    bounds = read_gaps(args.bdmc / f"{name}.csv")
    above = bounds[bounds["beta"] >= found.beta]
    upper = int(np.searchsorted(curve.beta, found.beta).clip(1, len(curve.beta) - 1))
    return {
        "model": name,
        "source": "this project",
        "variance": float(variance),
        "log_p": found.mean,
        "se_images": found.standard_error("images"),
        "se_chains": found.standard_error("chains"),
        "bdmc_gap": float(above["gap"].iloc[0]) if len(above) else np.nan,
        "bdmc_gap_se": float(above["gap_se"].iloc[0]) if len(above) else np.nan,
        "n_images": len(found.log_p),
        "certified": bool(curve.certified[upper - 1 : upper + 1].all()),  # both that it lies between
    }


def _markdown(table: pd.DataFrame) -> str:
    lines = [
        "| model | | variance | log p(x) ± images | ± chains | BDMC gap | images |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        chains = "" if pd.isna(row["se_chains"]) else f"{row['se_chains']:.2f}"
        doubtful = " (not certified)" if row["certified"] is False else ""
        gap = f"{row['bdmc_gap']:.2f}" + ("" if pd.isna(row["bdmc_gap_se"]) else f" ± {row['bdmc_gap_se']:.2f}")
        lines.append(
            f"| {row['model']} | {row['source']} | {row['variance']:.4g} | {row['log_p']:.1f} ± {row['se_images']:.1f}"
            f"{doubtful} | {chains} | {gap} | {row['n_images']:.0f} |"
        )
    return "\n".join(lines) + "\n"
