"""rdcurve exact: the closed-form curve of a linear decoder, at the betas and for the images of a measured one."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

import numpy as np

from rdcurve.curve import RDCurve
from rdcurve.data.load import images
from rdcurve.files import FileError, write_json
from rdcurve.linear import exact_curve
from rdcurve.models.checkpoint import load_decoder


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    entry = params["curves"][args.name]
    loaded = load_decoder(args.decoder)
    if loaded.facts["architecture"] != "linear":
        raise FileError(f"{args.decoder}: only a linear decoder has a closed form, not {loaded.facts['architecture']}")
    if (entry["distortion"]["name"], entry["prior"]["name"]) != ("gaussian_nll", "standard_normal"):
        raise FileError(f"{args.name}: the closed form is that of gaussian_nll and standard_normal")
    measured = RDCurve.load(args.curve)
    x = images(args.data, "test", measured.rate.shape[1], loaded.dtype).numpy()
    weights = {name: tensor.numpy() for name, tensor in loaded.decoder.state_dict().items()}
    rate, distortion, log_z = exact_curve(
        weights["output.weight"], weights["output.bias"], x, measured.beta, entry["distortion"].get("variance", 1.0)
    )
    known = {"beta": measured.beta, "log_z": log_z}
    known["code"] = np.zeros((*rate.shape, 0))
    known |= {"rate": rate, "rate_cv": rate, "distortion": distortion, "distortion_cv": distortion}
    zero, nan = np.zeros_like(rate), np.full_like(rate, np.nan)
    names = [field.name for field in fields(RDCurve) if field.name != "facts"]
    arrays = {name: known.get(name, zero if name.endswith("_se") else nan) for name in names}
    exact = RDCurve(**arrays, facts={"curve": args.name, "exact": True})
    differences: dict[str, float] = {}
    for quantity in ("rate", "distortion", "log_z"):
        difference = measured.mean(quantity) - exact.mean(quantity)
        errors = np.abs(difference) / measured.standard_error(quantity, "chains")
        differences[f"{quantity}_difference_max"] = float(np.abs(difference).max())
        differences[f"{quantity}_difference_max_in_standard_errors"] = float(errors.max())
    args.guard.check()
    exact.save(args.output)
    write_json(args.differences, differences)
    for name, value in differences.items():
        print(f"{name}: {value:.4f}")
