"""Figures 1 and 2 from the arrays that `geometry` and `plane` compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rdcurve.plot import plt, style

__all__ = ["DRAWINGS", "figure1", "figure2"]

Arrays = Mapping[str, np.ndarray]
Look = Mapping[str, Any]
BLUE, ORANGE, GREEN, RED, VIOLET, BROWN = sns.color_palette("colorblind")[:6]
GREY = "0.45"
_BAND = 2  # standard errors on each side
_MODELS = ("near", "wide", "far")
_TITLE = 0.2  # inches

_DASHED, _DOTTED = (0, (4, 1.2)), (0, (1, 1))
_CURVES = {
    "shannon": ("$R(D)$ of the source", {"color": "black", "linewidth": 1.6}),
    "best": (r"$R_{p^*}(D)$, prior best at slope $-\beta$", {"color": ORANGE, "linestyle": _DASHED}),
    "model": ("$R_p(D)$, prior of the model", {"color": BLUE}),
    "ais": ("rate of the distribution it samples", {"color": GREEN, "linestyle": _DASHED}),
    "estimate": ("AIS, {short} temperatures", {"color": GREEN, "marker": "o"}),
    "long": (
        "AIS, {long} temperatures",
        {"color": BLUE, "marker": "o", "markerfacecolor": "white", "linestyle": "none", "zorder": 3},
    ),
    "gaussian": ("Gaussian channel", {"color": RED, "linestyle": _DOTTED}),
}


def figure1(arrays: Arrays, title: str, look: Look) -> Figure:
    """Above, the geometry of Prop. 1; below, the bounds on the model's curve.

    Args:
        arrays: of `geometry.compute`.
        title: above all.
        look: section `plot` of params.yaml; as wide as a column.
    """
    with plt.rc_context(style(look["font_size"])):
        size = look["column_width"], 2 * look["panel_height"]
        drawing, (above, below) = plt.subplots(2, 1, figsize=size, layout="constrained", sharex=True)
        for name in ("model", "best", "shannon"):
            _curve(above, arrays, name)
        _tangents(above, arrays)
        for name in ("gaussian", "estimate", "ais", "long", "model", "shannon"):
            _curve(below, arrays, name)
        headings = ("(a) Geometry of Prop. 1", "(b) Upper bounds on $R_p(D)$")
        for ax, heading in zip((above, below), headings, strict=True):
            ax.set(xlim=(0, 2.4), ylim=(0, 2.8), ylabel="Rate (nats)")
            ax.set_title(heading, loc="left")
            ax.legend(frameon=False, loc="upper right", borderaxespad=0, labelspacing=0.3)
        below.set_xlabel("Distortion (squared error)")
        drawing.suptitle(title)
        sns.despine(fig=drawing)
    return drawing


def _curve(ax: Axes, arrays: Arrays, name: str) -> None:
    label, look = _CURVES[name]
    look = {"linewidth": 1.1, "markersize": 2.6, "markeredgewidth": 0.7, **look}
    short, long = arrays["n_temperatures"]
    label = label.format(short=short, long=long) if "temperatures" in label else label
    ax.plot(arrays[f"{name}_distortion"], arrays[f"{name}_rate"], label=label, **look)


def _tangents(ax: Axes, arrays: Arrays) -> None:
    """Of slope -beta, to Shannon's curve and to the model's: they meet the axis at R + beta D."""
    beta = float(arrays["tangent_beta"][0])
    label: str | None = r"slope $-\beta$, from $-\mathrm{E}\,\log Z_\beta$"
    for name in ("model", "shannon"):
        at = [np.interp(beta, arrays[f"{name}_beta"], arrays[f"{name}_{q}"]) for q in ("distortion", "rate")]
        intercept, colour = at[1] + beta * at[0], _CURVES[name][1]["color"]
        ax.plot([0, intercept / beta], [intercept, 0], color=GREY, linewidth=0.7, zorder=0, label=label)
        ax.plot(*at, "o", color=colour, markersize=3.5)
        ax.plot(0, intercept, "D", color=colour, markersize=3.5, clip_on=False, zorder=5)
        label = None


def figure2(arrays: Arrays, title: str, look: Look) -> Figure:
    """Three models of a plane: their prior samples, reconstructions of a test point at two rates, and their curves.

    Args:
        arrays: of `plane.compute`.
        title: above all.
        look: section `plot` of params.yaml; as wide as a page.
    """
    looks = {name: {"color": c, "marker": m} for name, c, m in zip(_MODELS, (BLUE, ORANGE, GREEN), "os^", strict=True)}
    low, high = arrays["drawn_beta"]
    with plt.rc_context(style(look["font_size"])):
        size = look["page_width"], look["panel_height"] + _TITLE
        drawing, axes = plt.subplots(1, 3, figsize=size, layout="constrained", width_ratios=[1, 1, 1.15])
        _plane(axes[0], arrays, looks, "low", f"(a) Low rate, $\\beta = {low:g}$")
        said = "open: prior samples\nfilled: reconstructions of the cross"
        for ax in axes[:2]:
            ax.set_xlabel(said, color=GREY)
        _plane(axes[1], arrays, looks, "high", f"(b) High rate, $\\beta = {high:g}$")
        _curves(axes[2], arrays, looks)
        drawing.suptitle(title)
        sns.despine(fig=drawing)
    return drawing


def _plane(ax: Axes, arrays: Arrays, looks: Mapping[str, dict[str, Any]], what: str, title: str) -> None:
    ax.plot(*arrays["test_point"], "+", color="black", markersize=9, markeredgewidth=1.2, zorder=1)
    for name, look in reversed(looks.items()):  # the first model on top: its points lie closest
        ax.plot(*arrays[f"{name}_path"].T, color="0.8", linewidth=0.9, zorder=0)
        points = {"linestyle": "none", "markersize": 3.2, "markeredgewidth": 0.5, **look}
        ax.plot(*arrays[f"{name}_prior"].T, markerfacecolor="white", alpha=0.5, zorder=1, **points)
        ax.plot(*arrays[f"{name}_{what}"].T, zorder=2, label=name, **points)
    ax.set_title(title, loc="left")
    ax.set_aspect("equal")


def _curves(ax: Axes, arrays: Arrays, looks: Mapping[str, dict[str, Any]]) -> None:
    for name, look in looks.items():
        ax.plot(arrays[f"{name}_distortion"], arrays[f"{name}_rate"], color=look["color"], linewidth=1.1)
        distortion, rate = (arrays[f"{name}_ais_{quantity}"] for quantity in ("distortion", "rate"))
        errors = [_BAND * arrays[f"{name}_ais_{quantity}_se"] for quantity in ("distortion", "rate")]
        ax.errorbar(distortion, rate, errors[1], errors[0], fmt="none", ecolor=look["color"], elinewidth=0.7)
        ax.plot(distortion, rate, linestyle="none", markersize=2.6, **look)
        ax.plot([], [], linewidth=1.1, markersize=3.2, label=name, **look)
    ax.set(xscale="log", ylim=(0, None), xlabel="Distortion (squared error)", ylabel="Rate (nats)")
    ax.set_title("(c) Curves", loc="left")
    ax.legend(frameon=False)
    ax.text(0.03, 0.03, "lines: quadrature\npoints: AIS ± 2 s.e.", transform=ax.transAxes, color=GREY, fontsize="small")


DRAWINGS: dict[str, Callable[[Arrays, str, Look], Figure]] = {"geometry": figure1, "plane": figure2}
