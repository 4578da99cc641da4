"""rdcurve plot: curves, gaps and closed forms -> a figure, as SVG, PDF and PNG.

An entry of `figures` in params.yaml says what is drawn; its `kind` says how, and is a key of `KINDS`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rdcurve.commands.gaps import read_gaps
from rdcurve.curve import RDCurve, same_images
from rdcurve.files import FileError, load_arrays
from rdcurve.plot import FORMATS, Drawn, Panel, figure, save
from rdcurve.settings import names_of_figure

__all__ = ["DISTORTION_LABELS", "KINDS", "N_PIXELS", "run"]

DISTORTION_LABELS = {
    "squared_error": "Distortion (squared error)",
    "gaussian_nll": "Distortion (negative log-likelihood, nats)",
    "ssim": "Distortion (1 − SSIM)",
    "ms_ssim": "Distortion (1 − MS-SSIM)",
}
N_PIXELS = {"mnist": 28 * 28, "cifar10": 32 * 32}  # of an image; the three channels of a colour image are one pixel

Entry = Mapping[str, Any]


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    entry, look = params["figures"][args.name], params["plot"]
    drawing = KINDS[entry.get("kind", "curves")](args, entry, params)
    args.guard.check()
    paths = [args.output.with_suffix(suffix) for suffix in FORMATS]
    save(drawing, paths, look["dpi"])
    print(f"{args.name}: {', '.join(map(str, paths))}")


def curves(args: argparse.Namespace, entry: Entry, params: Entry) -> Figure:
    """Rate-distortion curves, on one panel or on several."""
    look = params["plot"]
    parts = {title: {**entry, **part} for title, part in entry.get("panels", {"": entry}).items()}
    measured = {name: _load(args, name) for name in names_of_figure(entry)}
    if not entry.get("all_images", False):
        measured = same_images(measured)
    panels = [_panel(args, title, part, params["closed_form"], measured) for title, part in parts.items()]
    drawn = {item.name: item.curve for panel in panels for item in panel.curves}
    return figure(
        panels,
        title=entry["title"],
        n_pixels=N_PIXELS[_common(args.name, drawn, "dataset")],
        width=look["column_width" if len(panels) == 1 else "page_width"],
        panel_height=look["panel_height"],
        font_size=look["font_size"],
        below=entry.get("below"),
    )


def reconstructions(args: argparse.Namespace, entry: Entry, params: Entry) -> Figure:
    """Test images, and what the models of some curves make of them at one beta or rate."""
    from rdcurve import grids
    from rdcurve.data.load import images
    from rdcurve.models.checkpoint import load_decoder

    look, n = params["plot"], entry["n_images"]
    measured = same_images({name: _load(args, name) for name in entry["curves"]})
    dataset = _common(args.name, measured, "dataset")
    rows = []
    for name, curve in measured.items():
        model = _common(args.name, {name: curve}, "model")
        if "blur" in curve.facts["settings"]:
            raise FileError(f"{args.name}: {name} is the curve of a blurred decoder, and {model} draws without blur")
        loaded = load_decoder(_folder(args, "decoders") / f"{model}.safetensors")
        k = grids.nearest(curve, beta=entry.get("beta"), rate=entry.get("rate"))
        shown = grids.reconstruct(curve, loaded.decoder, k, n)
        numbers = (float(values[k]) for values in (curve.beta, curve.mean("rate"), curve.mean("distortion")))
        rows.append(grids.Row(entry["curves"][name], shown, *numbers, bool(curve.certified[k]), curve.rate.shape[1]))
    originals = images(_folder(args, "data") / dataset, "test", n).numpy()
    return grids.figure(originals, rows, title=entry["title"], width=look["page_width"], font_size=look["font_size"])


def illustration(args: argparse.Namespace, entry: Entry, params: Entry) -> Figure:
    """A small problem where everything has been computed."""
    from rdcurve.illustrations.draw import DRAWINGS

    look, name = params["plot"], entry["illustration"]
    arrays, _ = load_arrays(_folder(args, "illustrations") / f"{name}.safetensors", "rdcurve illustration")
    return DRAWINGS[name](arrays, entry["title"], look)


KINDS: dict[str, Callable[[argparse.Namespace, Entry, Entry], Figure]] = {
    "curves": curves,
    "reconstructions": reconstructions,
    "illustration": illustration,
}


def _load(args: argparse.Namespace, name: str) -> RDCurve:
    return RDCurve.load(_folder(args, "curves") / f"{name}.safetensors")


def _panel(
    args: argparse.Namespace, title: str, entry: Entry, closed_form: Iterable[str], measured: Mapping[str, RDCurve]
) -> Panel:
    """All curves of a figure are drawn for the images that each of them was measured on."""
    drawn = []
    n_images = next(iter(measured.values())).rate.shape[1]
    for name, look in entry.get("curves", {}).items():
        file = f"{name}.safetensors"
        curve = measured[name]
        exact = RDCurve.load(_folder(args, "exact") / file).first(n_images) if name in closed_form else None
        repeat = curve.facts.get("curve", name) != name  # BDMC has tried the curve itself
        gaps = None if repeat else read_gaps(_folder(args, "bdmc") / f"{name}.csv")
        drawn.append(Drawn(name, curve, **_look(look), gaps=gaps, exact=exact))
    for name, look in entry.get("variational", {}).items():
        curve = RDCurve.load(_folder(args, "variational") / f"{name}.safetensors").first(n_images)
        drawn.append(Drawn(name, curve, **_look(look), variational=True))
    distortion = _common(args.name, {item.name: item.curve for item in drawn}, "distortion")["name"]
    cut = {key: entry[key] for key in ("max_distortion", "min_rate") if key in entry}
    return Panel(drawn, entry.get("distortion_label", DISTORTION_LABELS[distortion]), title, **cut)


def _look(entry: str | Entry) -> dict[str, str]:
    """How params.yaml names a curve: with a label, or with family and size."""
    return {"label": entry} if isinstance(entry, str) else {key: str(value) for key, value in entry.items()}


def _folder(args: argparse.Namespace, option: str) -> Path:
    folder = getattr(args, option)
    if folder is None:
        raise FileError(f"{args.name} cannot be drawn without --{option}")
    return folder


def _common(figure: str, measured: Mapping[str, RDCurve], key: str) -> Any:
    """The setting that all curves have in common."""
    found = {}
    for name, curve in measured.items():
        settings = curve.facts.get("settings", {})
        if key not in settings:
            raise FileError(f"{figure}: the file of curve {name} does not say its {key}")
        found[name] = settings[key]
    first, *others = found
    for other in others:
        if found[other] != found[first]:
            raise FileError(
                f"{figure}: {first} and {other} cannot share axes, for their {key} is {found[first]} and {found[other]}"
            )
    return found[first]
