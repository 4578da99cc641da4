"""Draw rate-distortion curves: distortion across, rate in nats on a log axis, error bars on every curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rdcurve.curve import RDCurve
from rdcurve.files import writing

__all__ = ["FORMATS", "draw_curve", "figure", "new_axes", "save"]

FORMATS = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {"Software": None}}  # without a date
_BAND = 2  # standard errors on each side


def new_axes() -> Axes:
    """Empty axes for a rate-distortion plot."""
    ax = plt.subplots()[1]
    ax.set(xlabel="Distortion", ylabel="Rate (nats)", yscale="log")
    return ax


def draw_curve(ax: Axes, curve: RDCurve, *, label: str | None = None, **style: Any) -> None:
    """The mean curve as points joined by a line, with bars of two standard errors over the chains in R and D."""
    distortion, rate = curve.mean("distortion"), curve.mean("rate")
    rate_error = _BAND * curve.standard_error("rate", "chains")
    distortion_error = _BAND * curve.standard_error("distortion", "chains")
    line = ax.plot(distortion, rate, marker="o", markersize=3, linewidth=0.8, label=label, **style)[0]
    ax.errorbar(
        distortion, rate, xerr=distortion_error, yerr=rate_error, fmt="none", ecolor=line.get_color(), elinewidth=0.8
    )


def figure(
    curves: Mapping[str, tuple[str, RDCurve]],
    exact: Mapping[str, RDCurve],
    gaps: Mapping[str, pd.DataFrame],
    *,
    title: str,
    max_distortion: float,
    distortion_label: str,
    width: float,
    height: float,
    font_size: float,
) -> Figure:
    """A figure of the paper.

    Args:
        curves: name -> (label, measured curve).
        exact: name -> closed-form curve, for some of them; adds a panel with the difference in standard errors.
        gaps: name -> table of BDMC points (beta, lower, upper, gap, gap_se).
        title: above the axes.
        max_distortion: points to the right of it are cut, as in the paper.
        distortion_label: below the axes.
        width, height: inches.
        font_size: points.
    """
    sns.set_theme(context="paper", style="ticks", palette="colorblind", rc={"font.size": font_size})
    plt.rcParams["svg.hashsalt"] = "rdcurve"  # the same bytes from the same data
    colours = sns.color_palette("colorblind", len(curves))
    if exact:
        drawing, (ax, below) = plt.subplots(2, 1, figsize=(width, height), height_ratios=[3, 1], layout="constrained")
    else:
        drawing, ax = plt.subplots(figsize=(width, height), layout="constrained")
    open_points = False
    for colour, (name, (label, curve)) in zip(colours, curves.items(), strict=True):
        kept = _cut(curve, max_distortion)
        if name in exact:
            closed = _cut(exact[name], max_distortion)
            ax.plot(
                closed.mean("distortion"),
                closed.mean("rate"),
                color="black",
                linewidth=1.2,
                label="closed form",
                zorder=1,
            )
            _draw_difference(below, curve, exact[name], colour)
        worst = gaps[name].loc[gaps[name]["gap"].idxmax()]
        certified = kept.certified
        if curve.facts.get("n_searches") and not certified.all():  # open points: a bound, and not confirmed
            draw_curve(ax, kept.at(~certified), color=colour, linestyle=":", markerfacecolor="white", alpha=0.6)
            kept = kept.at(certified)
            open_points = True
        if not len(kept.beta):
            continue
        draw_curve(
            ax,
            kept,
            color=colour,
            linestyle="none" if name in exact else "-",
            label=f"{label}\nlargest BDMC gap {worst['gap']:.2f} ± {worst['gap_se']:.2f} nats",
        )
    ax.set(xlabel=distortion_label, ylabel="Rate (nats)", yscale="log", title=title)
    bits = ax.secondary_yaxis("right", functions=(lambda nats: nats / np.log(2), lambda bits: bits * np.log(2)))
    bits.set_ylabel("Rate (bits)")
    ax.legend(loc="upper right", frameon=False)
    ax.text(
        0.02, 0.02, "upper bounds; bars: ±2 standard errors over the chains"
        + ("\nopen points: not certified on these images" if open_points else ""),
        transform=ax.transAxes, fontsize="small", color="0.4",
    )  # fmt: skip
    sns.despine(fig=drawing, right=False)
    return drawing


def save(drawing: Figure, paths: Sequence[Path], dpi: int) -> None:
    """Write the figure in the formats that the suffixes say, byte-equal for equal data."""
    for path in paths:
        with writing(path) as temporary:
            drawing.savefig(temporary, dpi=dpi, metadata=FORMATS[path.suffix])
    plt.close(drawing)


def _draw_difference(ax: Axes, curve: RDCurve, exact: RDCurve, colour: Any) -> None:
    for quantity, marker in (("rate", "o"), ("distortion", "x")):
        error = curve.standard_error(quantity, "chains")
        difference = (curve.mean(quantity) - exact.mean(quantity)) / error
        ax.plot(curve.beta, difference, marker, markersize=3.5, color=colour, label=quantity)
    ax.axhspan(-3, 3, color="0.93", zorder=0)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set(xscale="log", xlabel=r"$\beta$", ylabel="AIS − exact\n(std. errors)")
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -4), max(high, 4))  # never cut off a point that is far out
    ax.legend(loc="upper left", ncols=2, frameon=False, borderpad=0)


def _cut(curve: RDCurve, max_distortion: float) -> RDCurve:
    keep = curve.mean("distortion") <= max_distortion
    if not keep.any():
        raise ValueError(f"no point of the curve has a distortion of at most {max_distortion}")
    return curve.at(keep)
