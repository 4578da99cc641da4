"""rdcurve plot: curves, gaps and closed forms -> a figure, as SVG, PDF and PNG."""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd

from rdcurve.curve import RDCurve
from rdcurve.files import FileError
from rdcurve.plot import FORMATS, figure, save

_LABELS = {
    "squared_error": "Distortion (squared error)",
    "gaussian_nll": "Distortion (negative log-likelihood, nats)",
}


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    entry, style = params["figures"][args.name], params["plot"]
    curves = {
        name: (label, RDCurve.load(args.curves / f"{name}.safetensors")) for name, label in entry["curves"].items()
    }
    exact = {name: RDCurve.load(args.exact / f"{name}.safetensors") for name in curves if name in params["closed_form"]}
    gaps = {}
    for name in curves:
        path = args.bdmc / f"{name}.csv"
        try:
            gaps[name] = pd.read_csv(path)
        except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            raise FileError(f"{path}: not a readable table of BDMC points ({error})") from error
    kinds = {curve.facts["settings"]["distortion"]["name"] for _, curve in curves.values()}
    if len(kinds) > 1:
        raise FileError(f"{args.name}: curves with different distortions cannot share axes: {', '.join(sorted(kinds))}")
    drawing = figure(
        curves,
        exact,
        gaps,
        title=entry["title"],
        max_distortion=entry["max_distortion"],
        distortion_label=_LABELS[kinds.pop()],
        width=style["width"],
        height=style["height"],
        font_size=style["font_size"],
    )
    args.guard.check()
    paths = [args.output.with_suffix(suffix) for suffix in FORMATS]
    save(drawing, paths, style["dpi"])
    print(f"{args.name}: {', '.join(map(str, paths))}")
