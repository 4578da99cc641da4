"""Draw rate-distortion curves: distortion across, rate in nats on a log axis, bits per pixel on the right.

Every curve is an upper bound, (D, R) in expectation on or above the true one. It is drawn with a band that sweeps the
boxes of +-2 standard errors over the chains in D and R, and with a tick on its lower side, where the truth may lie, at
each beta where the bound is not certified on these images (`RDCurve.certified`). Colour says the family of a model,
shade and marker the size of its code, a dashed line that the bound is variational.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator
from PIL import Image

from rdcurve.comparison import student_quantile
from rdcurve.curve import RDCurve
from rdcurve.files import FileError, writing

__all__ = ["FORMATS", "NOT_CERTIFIED", "Drawn", "Panel", "draw_curve", "figure", "new_axes", "save", "style"]

FORMATS = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {"Software": None}}  # without a date
NOT_CERTIFIED = "not certified"  # gid of the ticks of a curve
_BAND = 2  # standard errors on each side
_TICK = [(0, 0), (-1, -1)]  # to the lower left
_STANDS_OUT = 0.1  # of a rate: an error that a band has to show, also along a line that stands upright,
_SLIVER = 0.01  # where it is narrower than this share of the distortions of the curve
_FLOOR = 1e-12  # nats, below every axis: a band down to no rate at all leaves it
_TAIL = 0.025  # beyond each end of the bars of a gap
_MARKERS = "os^DvPX*<>"
# blue, orange, green, violet: at one size at least 24 apart in CIELAB, for protanopes and deuteranopes too
_FAMILIES = ("#0173b2", "#de8f05", "#029e73", "#6a00d4")
_DASHED = (0, (3, 1.5))
_MARGIN = 0.05  # inches, between drawing and legend
_BELOW = 0.45  # height of a lower panel, as a share of the upper one
_LARGE_GAP = 10  # nats: beyond, an axis of gaps is logarithmic outside [-1, 1]
_SYMLOG_TICKS = [sign * 10.0**power for sign in (-1, 1) for power in range(4)] + [0.0]
_BELOW_LABELS = {"gaps": "BDMC gap\n(nats)", "differences": "Difference\n(std. errors)"}

Below = Literal["gaps", "differences"]
Key = tuple[str, str]  # family and size, or nothing and a label


@dataclass(frozen=True)
class Drawn:
    """A curve of a figure.

    Attributes:
        name: in messages.
        curve: measured or variational.
        label: in the legend, where the curve has no family and size.
        family, size: give colour and shade, and the place in the legend.
        gaps: BDMC points (beta, gap, gap_se); without rows where its distortion cannot be simulated; None where nothing
            is to be said of BDMC.
        exact: its closed form, drawn as a line under the measured points.
        variational: drawn dashed; it has no certificate.
    """

    name: str
    curve: RDCurve
    label: str = ""
    family: str = ""
    size: str = ""
    gaps: pd.DataFrame | None = None
    exact: RDCurve | None = None
    variational: bool = False

    @property
    def key(self) -> Key:
        """Curves with one key look the same, and share an entry of the legend."""
        return (self.family, self.size) if self.family else ("", self.label)

    @property
    def uncertified(self) -> np.ndarray:
        """[K] bool, where to draw ticks."""
        if self.variational or self.exact is not None:
            return np.zeros(len(self.curve.beta), dtype=bool)
        return ~self.curve.certified

    def within(self, max_distortion: float, min_rate: float) -> np.ndarray:
        """[K] bool, which points are shown; none whose rate or distortion is no number.

        Raises:
            FileError: none of them.
        """
        distortion, rate = self.curve.mean("distortion"), self.curve.mean("rate")
        shown = (distortion <= max_distortion) & (rate >= min_rate) & (rate > 0)
        if not shown.any():
            raise FileError(
                f"curve {self.name}: no point has a distortion of at most "
                f"{max_distortion:g} and a rate of at least {min_rate:g} nats"
            )
        return shown


@dataclass(frozen=True)
class Panel:
    """Axes of a figure, with all that is drawn on them.

    Attributes:
        curves: on one distortion.
        distortion_label: below the axes.
        title: above, where there are several.
        max_distortion, min_rate: where the axes are cut, as in the paper.
    """

    curves: Sequence[Drawn]
    distortion_label: str
    title: str = ""
    max_distortion: float = math.inf
    min_rate: float = 0.0


def style(font_size: float) -> dict[str, Any]:
    """Settings of matplotlib that every figure shares; sizes in points."""
    return {
        **sns.axes_style("ticks"),
        "axes.prop_cycle": cycler(color=sns.color_palette("colorblind")),
        "font.size": font_size,
        "axes.labelsize": font_size,
        "axes.titlesize": font_size,
        "figure.titlesize": font_size + 1,
        "xtick.labelsize": font_size - 1,
        "ytick.labelsize": font_size - 1,
        "legend.fontsize": font_size - 1,
        "axes.linewidth": 0.6,
        **{f"{axis}tick.{kind}.width": 0.6 for axis in "xy" for kind in ("major", "minor")},
        **{f"{axis}tick.major.size": 3 for axis in "xy"},
        **{f"{axis}tick.minor.size": 1.5 for axis in "xy"},
        **{f"{axis}tick.major.pad": 2 for axis in "xy"},
        "axes.labelpad": 3,
    }


def new_axes() -> Axes:
    """Empty axes for a rate-distortion plot."""
    with plt.rc_context(style(9)):
        ax = plt.subplots(figsize=(4.5, 3.5), layout="constrained")[1]
        ax.set(xlabel="Distortion", ylabel="Rate, upper bound (nats)", yscale="log")
        sns.despine(ax=ax)
    return ax


def draw_curve(
    ax: Axes,
    curve: RDCurve,
    *,
    label: str | None = None,
    uncertified: np.ndarray | None = None,
    **line: Any,
) -> None:
    """The mean curve, with its band of two standard errors over the chains, and a tick where it is not certified.

    Points without a positive rate, which noise leaves at the smallest betas, have no place on a log axis. Line and band
    are broken at a point that is no number, the band where its error is none.

    Args:
        ax: rate up on a log axis.
        curve: with K betas.
        label: in the legend; default: a legend of its own, with the largest BDMC gap, where bounds came with the curve,
            and with what the ticks mean.
        uncertified: [K] bool, where to draw ticks; default: where `curve.certified` is False.
        line: properties of the line, for example color, marker, linestyle.
    """
    uncertified = ~curve.certified if uncertified is None else uncertified
    own_legend = label is None
    if own_legend and curve.gaps is not None and not curve.gaps.empty:
        label = f"largest BDMC gap: {_largest(curve.gaps)} nats"
    placed = ~(curve.mean("rate") <= 0)
    curve, uncertified = curve.at(placed), uncertified[placed]
    points = np.stack([curve.mean("distortion"), curve.mean("rate")])
    line = {"linewidth": 1.0, "marker": "o", "markersize": 2.5, **line}
    drawn = ax.plot(*points, label=label, **line)[0]
    _draw_band(ax, points, np.stack([curve.standard_error(q, "chains") for q in ("distortion", "rate")]), drawn)
    if uncertified.any():
        ax.plot(
            *points[:, uncertified],
            color=_shade(to_rgb(drawn.get_color()), -0.25),  # seen on a pale line
            linestyle="none",
            marker=_TICK,
            markersize=6,
            markeredgewidth=0.6,
            zorder=drawn.get_zorder() + 0.1,
            gid=NOT_CERTIFIED,
            label=NOT_CERTIFIED if own_legend else None,
        )
    if own_legend and ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False)


def _draw_band(ax: Axes, points: np.ndarray, standard_error: np.ndarray, line: Line2D) -> None:
    """The sweep of the boxes of two standard errors about points (D, R), each [2, K]; where it is a hairline, a stroke.

    An error of the rate lies along a line that stands upright, and would be hidden by it.
    """
    error = _BAND * standard_error
    low, high = points - error, points + error
    low[1] = np.maximum(low[1], _FLOOR)
    known = np.isfinite(low + high).all(0)
    ax.update_datalim(high[:, known].T)  # not by the lower ends
    width = np.ptp(points[0, known]) if known.any() else 0.0
    hidden = (error[1] > _STANDS_OUT * points[1]) & (error[0] < _SLIVER * width)
    for mask, stroke in ((known, 0.0), (known & hidden, 3.0)):
        for run in _runs(mask):
            outline = np.concatenate([low[:, run], high[:, run[::-1]]], 1).T
            ax.add_artist(Polygon(outline, color=line.get_color(), alpha=0.25, linewidth=stroke))


def figure(
    panels: Sequence[Panel],
    *,
    title: str,
    n_pixels: int,
    width: float,
    panel_height: float,
    font_size: float,
    below: Below | None = None,
) -> Figure:
    """A figure of the paper: panels side by side over one legend that says the largest BDMC gap of each curve.

    Args:
        panels: share the axis of rates.
        title: above all.
        n_pixels: of an image; channels of a colour image are not counted apart.
        width, panel_height: inches; legend and lower panels come on top of the latter.
        font_size: points; the least text is 1.5 smaller.
        below: a lower panel under each: "gaps" of BDMC against the rate, or "differences" in standard errors: rate and
            distortion from the closed form, or, where there is none, log Z of each curve from the mean of the others.

    Raises:
        ValueError: curves with and without a family; more families or sizes than can be told apart.
        FileError: a curve without a point on the axes; BDMC points at other betas than the curve's; differences of
            curves at different betas.
    """
    curves = [curve for panel in panels for curve in panel.curves]
    looks = _looks(curves)
    with plt.rc_context(style(font_size)):
        heights = [panel_height] if below is None else [panel_height, _BELOW * panel_height]
        drawing, axes = plt.subplots(
            len(heights),
            len(panels),
            figsize=(width, sum(heights)),
            height_ratios=heights,
            sharey="row",
            squeeze=False,
            layout="constrained",
        )
        for panel, column in zip(panels, axes.T, strict=True):
            _draw_panel(column[0], panel, looks, below)
            if below == "gaps":
                _draw_gaps(column[1], panel, looks)
            elif below == "differences":
                _draw_differences(column[1], panel, looks)
        if below == "gaps":
            _scale_gaps(axes[1])
        for row, label in zip(axes, ["Rate (nats)", _BELOW_LABELS.get(below or "", "")], strict=False):
            row[0].set_ylabel(label)
        _cut_axes(axes[0], panels)
        sns.despine(fig=drawing)
        _bits_per_pixel(axes[0, -1], n_pixels)
        if len(panels) > 1:
            for panel, ax in zip(panels, axes[0], strict=True):
                ax.set_title(panel.title)
        drawing.suptitle(title)
        _legend_below(drawing, curves, looks, _note(curves, below), sum(heights), font_size)
    return drawing


def save(drawing: Figure, paths: Sequence[Path], dpi: int) -> None:
    """Write the figure in the formats that the suffixes say, byte-equal for equal data.

    The layout is kept as it is at first, less its last digits: they may differ from run to run, as sums do by where in
    memory their terms lie, and the names of clip paths in an SVG are made from them.
    """
    with plt.rc_context({"svg.hashsalt": "rdcurve"}):
        drawing.draw_without_rendering()
        drawing.set_layout_engine("none")
        for ax in drawing.axes:
            ax.set_position(np.round(ax.get_position().bounds, 6))
        for path in paths:
            with writing(path) as temporary:
                drawing.savefig(temporary, dpi=dpi, metadata=FORMATS[path.suffix])
                if path.suffix == ".png":  # opaque, and smaller by a tenth without the channel that says so
                    with Image.open(temporary) as image:
                        image.convert("RGB").save(temporary, "png", optimize=True, dpi=(dpi, dpi))
    plt.close(drawing)


def _looks(curves: Sequence[Drawn]) -> dict[Key, dict[str, Any]]:
    """Colour and marker of each key: by family and size, or of its own."""
    if len({bool(curve.family) for curve in curves}) > 1:
        raise ValueError("all curves of a figure have a family, or none has")
    families, sizes = (list(dict.fromkeys(part)) for part in zip(*(curve.key for curve in curves), strict=True))
    if not curves[0].family:
        palette = sns.color_palette("colorblind")
        if len(sizes) > len(palette):
            raise ValueError(f"{len(sizes)} curves without a family; at most {len(palette)} can be told apart")
        return {("", size): {"color": palette[i], "marker": _MARKERS[i]} for i, size in enumerate(sizes)}
    if len(families) > len(_FAMILIES) or len(sizes) > len(_MARKERS):
        raise ValueError(
            f"{len(families)} families with {len(sizes)} sizes; at most {len(_FAMILIES)} with {len(_MARKERS)} can be "
            "told apart"
        )
    looks = {}
    for i, family in enumerate(families):
        if len(families) == 1:
            shades = sns.color_palette("viridis_r", len(sizes) + 1)[1:]  # its first yellow is too pale
        else:
            tones = np.linspace(0.5, -0.3, len(sizes)) if len(sizes) > 1 else [0.0]
            shades = [_shade(to_rgb(_FAMILIES[i]), tone) for tone in tones]
        for size, shade, marker in zip(sizes, shades, _MARKERS, strict=False):
            looks[family, size] = {"color": shade, "marker": marker}
    drawn = {curve.key for curve in curves}
    return {key: look for key, look in looks.items() if key in drawn}


def _shade(colour: tuple[float, float, float], tone: float) -> tuple[float, ...]:
    """Towards white with tone up to 1, towards black down to -1."""
    return tuple((1 - abs(tone)) * channel + max(tone, 0) for channel in colour)


def _runs(mask: np.ndarray) -> list[np.ndarray]:
    """Indices of the stretches in which a mask is True.

    Examples:
        >>> [run.tolist() for run in _runs(np.array([False, True, True, False, False, True]))]
        [[1, 2], [5]]
    """
    inside = np.flatnonzero(mask)
    return [run for run in np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1) if len(run)]


def _draw_panel(ax: Axes, panel: Panel, looks: dict[Key, dict[str, Any]], below: Below | None) -> None:
    for drawn in panel.curves:
        shown = drawn.within(panel.max_distortion, panel.min_rate)
        shown[:-1] |= shown[1:]  # and the next one, so that the line leaves the axes where they are cut
        shown &= ~(drawn.curve.mean("rate") <= 0)  # noise may say otherwise, where there is hardly any
        shown |= np.isnan(drawn.curve.mean("rate"))  # which breaks the line
        curve = drawn.curve.at(shown)
        line = dict(looks[drawn.key])
        if drawn.exact is not None:
            exact = drawn.exact.at(shown)
            ax.plot(exact.mean("distortion"), exact.mean("rate"), color="black", linewidth=0.9, label="closed form")
            line |= {"linestyle": "none"}
        else:
            line |= {"markevery": _marked(curve, drawn.gaps) if below == "gaps" else 0.15}
        if drawn.variational:
            line |= {"linestyle": _DASHED}
        draw_curve(ax, curve, label=drawn.name, uncertified=drawn.uncertified[shown], **line)
    ax.set(xlabel=panel.distortion_label, yscale="log")


def _marked(curve: RDCurve, gaps: pd.DataFrame | None) -> list[int]:
    """Points of the curve that BDMC has been run at."""
    betas = [] if gaps is None else gaps["beta"].to_numpy()
    return [k for k, beta in enumerate(curve.beta) if np.isclose(beta, betas, rtol=1e-9, atol=0).any()]


def _cut_axes(row: Sequence[Axes], panels: Sequence[Panel]) -> None:
    """Cut the axes as the panels say; elsewhere leave a margin around the points."""
    rates = []
    for ax, panel in zip(row, panels, strict=True):
        distortions = []
        for drawn in panel.curves:
            shown = drawn.within(panel.max_distortion, panel.min_rate)
            points = np.stack([drawn.curve.mean("distortion"), drawn.curve.mean("rate")])
            distortions.append(points[0, shown])
            rates.append(points[1, shown])
            distortion, rate = points[:, np.isfinite(points).all(0)]  # of a line that goes on to where the axes are cut
            if rate.min() < panel.min_rate:
                distortions.append([np.interp(panel.min_rate, np.maximum.accumulate(rate), distortion)])
            if distortion.max() > panel.max_distortion:
                falling = np.minimum.accumulate(distortion)[::-1]
                rates.append([max(np.interp(panel.max_distortion, falling, rate[::-1]), rate[rate > 0].min())])
        low, high = np.concatenate(distortions).min(), np.concatenate(distortions).max()
        high = panel.max_distortion if math.isfinite(panel.max_distortion) else high + 0.03 * (high - low)
        ax.set_xlim(low - 0.04 * (high - low), high)
    low, high = np.concatenate(rates).min(), np.concatenate(rates).max()
    least = min(panel.min_rate for panel in panels)
    row[0].set_ylim(least if least > 0 else low / 1.15, high * 1.15)
    _log_ticks(row[0].yaxis)


def _log_ticks(axis: Axis) -> None:
    """Plain numbers at the decades, and between them where there are few."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())


def _bits_per_pixel(ax: Axes, n_pixels: int) -> None:
    right = ax.twinx()
    right.set(yscale="log", ylabel="Rate (bits per pixel)", ylim=np.array(ax.get_ylim()) / (np.log(2) * n_pixels))
    _log_ticks(right.yaxis)
    sns.despine(ax=right, right=False)


def _draw_gaps(ax: Axes, panel: Panel, looks: dict[Key, dict[str, Any]]) -> None:
    """BDMC gaps at the rates of their betas, with bars of 95 %: of Student, for the simulated images are few."""
    for drawn in panel.curves:
        if drawn.gaps is None or drawn.gaps.empty:
            continue
        marked, gaps = _marked(drawn.curve, drawn.gaps), drawn.gaps.sort_values("beta")
        if len(marked) != len(gaps):
            raise FileError(f"curve {drawn.name}: of {len(gaps)} BDMC points, {len(marked)} are at betas of the curve")
        rate, look = drawn.curve.mean("rate")[marked], looks[drawn.key]
        ax.errorbar(
            rate,
            gaps["gap"],
            gaps["gap_se"] * [student_quantile(_TAIL, max(int(n) - 1, 1)) for n in gaps["n_images"]],
            color=look["color"],
            marker=look["marker"],
            markersize=2.5,
            linestyle="none",
            elinewidth=0.7,
        )
    ax.axhline(0, color="black", linewidth=0.5, zorder=0)
    ax.set(xscale="log", xlabel="Rate (nats)")
    _log_ticks(ax.xaxis)


def _scale_gaps(row: Sequence[Axes]) -> None:
    """One axis of gaps for all panels, such that one large gap leaves the others to be seen."""
    low, high = row[0].get_ylim()
    if max(-low, high) > _LARGE_GAP:
        row[0].set_yscale("symlog", linthresh=1)
        row[0].set_yticks([tick for tick in _SYMLOG_TICKS if low <= tick <= high])
        row[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "\N{MINUS SIGN}"))
        row[0].yaxis.set_minor_locator(NullLocator())


def _draw_differences(ax: Axes, panel: Panel, looks: dict[Key, dict[str, Any]]) -> None:
    """In standard errors: rate and distortion less the closed form, or log Z less the mean of the other curves."""
    for drawn in panel.curves:
        references = [c.curve for c in panel.curves if c is not drawn] if drawn.exact is None else [drawn.exact]
        if any(not np.array_equal(drawn.curve.beta, r.beta) for r in references) or not references:
            raise FileError(f"curve {drawn.name}: nothing to compare it with at the same betas")
        for quantity, mark in (("log_z", "-"),) if drawn.exact is None else (("rate", "o"), ("distortion", "x")):
            variance = [c.standard_error(quantity, "chains") ** 2 for c in (drawn.curve, *references)]
            error = np.sqrt(variance[0] + np.sum(variance[1:], 0) / len(references) ** 2)
            difference = drawn.curve.mean(quantity) - np.mean([c.mean(quantity) for c in references], 0)
            if not np.isfinite(difference / np.where(error > 0, error, np.nan)).any():
                raise FileError(f"curve {drawn.name}: no error over the chains to measure differences of {quantity} by")
            ax.plot(
                drawn.curve.beta,
                difference / error,
                mark,
                markersize=2.5,
                markeredgewidth=0.6,
                linewidth=0.7,
                color=looks[drawn.key]["color"],
            )
    ax.axhspan(-3, 3, color="0.93", zorder=0, linewidth=0)
    ax.axhline(0, color="black", linewidth=0.5, zorder=1)
    ax.set(xscale="log", xlabel=r"$\beta$")
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -4), max(high, 4))  # never cut off a point that is far out


def _note(curves: Sequence[Drawn], below: Below | None) -> str:
    """What the marks mean."""
    images = " and ".join(dict.fromkeys(str(curve.curve.rate.shape[1]) for curve in curves))
    parts = [f"Upper bounds on {images} images, with bands of ±2 standard errors over the chains"]
    if any(curve.uncertified.any() for curve in curves):
        parts.append("ticks: not certified on these images")
    if any(curve.variational for curve in curves):
        parts.append("dashed: variational, errors over samples")
    tables = [curve.gaps for curve in curves if curve.gaps is not None]
    simulated = sorted({int(n) for table in tables for n in table["n_images"]})
    if simulated:
        several = " or ".join(map(str, simulated))
        parts.append(
            f"numbers: largest BDMC gap ±\N{NO-BREAK SPACE}its standard error, nats, on {several} images simulated "
            "from the model, not on these"
        )
    if any(table.empty for table in tables):
        parts.append("no BDMC: no data can be simulated from this distortion")
    if simulated and any(curve.gaps is None for curve in curves):
        parts.append("without a number: BDMC was not run")
    if below == "gaps":
        parts.append("below: BDMC gaps, 95\N{NO-BREAK SPACE}% intervals, at the marked betas and beyond the axes above")
    if below == "differences":
        closed = any(curve.exact is not None for curve in curves)
        parts.append(
            ("below: rate (o) and distortion (×) less the closed form" if closed
             else "below: log\N{NO-BREAK SPACE}Z less the mean of the others") + ", grey: within 3"
        )  # fmt: skip
    return "; ".join(parts) + "."


def _largest(gaps: pd.DataFrame) -> str:
    """The largest of BDMC points, with its standard error; or that one of them is no number, and may be any."""
    if gaps["gap"].isna().any():
        return "unknown"
    worst = gaps.loc[gaps["gap"].idxmax()]
    return f"{worst['gap']:.2f} ± {worst['gap_se']:.2f}"


def _gap_text(curves: Sequence[Drawn], key: Key) -> str:
    """Largest BDMC gaps of the curves with a key, one after another; with their names, where they differ."""
    texts = {}
    for curve in curves:
        if curve.key != key or curve.gaps is None:
            continue
        if curve.gaps.empty:
            texts[curve.name] = "no BDMC"
        else:
            texts[curve.name] = _largest(curve.gaps)
    if len(set(texts.values())) > 1:
        return ", ".join(f"{name} {text}" for name, text in texts.items())
    return next(iter(texts.values()), "")


def _legend_below(
    drawing: Figure,
    curves: Sequence[Drawn],
    looks: dict[Key, dict[str, Any]],
    note: str,
    height: float,
    font_size: float,
) -> None:
    """Legend and note under the panels, where they hide nothing; the figure grows by their height, inches."""
    width = drawing.get_figwidth()
    room = width - 2 * _MARGIN
    size = font_size - 1.5
    text = drawing.text(_MARGIN / width, 0, "", fontsize=size, color="0.35", va="bottom", linespacing=1.15)
    for n_letters in range(int(room * 72 / (0.35 * size)), 0, -1):  # no text has letters narrower than that
        text.set_text(textwrap.fill(note, n_letters))
        if _extent(text)[0] <= room:
            break
    note_height = _extent(text)[1] + 2 * _MARGIN
    for entries, n_columns, heading in _legends(curves, looks):
        legend = drawing.legend(
            handles=entries,
            ncols=n_columns,
            title=heading,
            title_fontsize=font_size - 1,
            loc="lower center",
            frameon=False,
            borderpad=0.2,
            borderaxespad=0,
            labelspacing=0.25,
            columnspacing=0.8,
            handlelength=1.6,
            handletextpad=0.4,
        )
        if n_columns == 1 or _extent(legend)[0] <= room:
            break
        legend.remove()
    bottom = note_height + _extent(legend)[1] + _MARGIN
    drawing.set_figheight(height + bottom)
    text.set_y(_MARGIN / (height + bottom))
    legend.set_bbox_to_anchor((0.5, note_height / (height + bottom)), transform=drawing.transFigure)
    drawing.get_layout_engine().set(rect=(0, bottom / (height + bottom), 1, height / (height + bottom)))


def _legends(
    curves: Sequence[Drawn], looks: dict[Key, dict[str, Any]]
) -> Iterator[tuple[list[Line2D], int, str | None]]:
    """Entries column by column, number of columns and heading of the legends to try, from wide to narrow.

    Families by sizes make a table of BDMC gaps, anything else a list of names with their gaps.
    """
    families, sizes = (list(dict.fromkeys(part)) for part in zip(*looks, strict=True))
    exact = any(curve.exact is not None for curve in curves)
    if len(families) > 1 and len(sizes) > 1 and not exact:
        table = [_entry("code"), *(_entry(size) for size in sizes)]
        for family in families:
            table.append(_entry(family))
            for key in ((family, size) for size in sizes):
                table.append(_entry(_gap_text(curves, key) or "–", _line(curves, key), **looks[key])
                             if key in looks else _entry(""))  # fmt: skip
        yield table, len(families) + 1, None
    entries = [_entry("closed form", "-", color="black")] if exact else []
    for key, look in looks.items():
        name = key[1] if len(families) == 1 else " ".join(key)
        gap = _gap_text(curves, key)
        entries.append(_entry(f"{name}: {gap}" if gap else name, _line(curves, key), **look))
    for n_columns in range(min(len(entries), 4), 0, -1):
        yield entries, n_columns, families[0] if len(families) == 1 and families[0] else None


def _entry(label: str, linestyle: Any = "none", **look: Any) -> Line2D:
    return Line2D([], [], linewidth=1.0, markersize=2.5, linestyle=linestyle, label=label, **look)


def _line(curves: Sequence[Drawn], key: Key) -> Any:
    """Line style of a key."""
    ours = [curve for curve in curves if curve.key == key]
    return "none" if ours[0].exact is not None else _DASHED if ours[0].variational else "-"


def _extent(artist: Artist) -> tuple[float, float]:
    """Width and height, inches."""
    box = artist.get_window_extent()
    return box.width / artist.figure.dpi, box.height / artist.figure.dpi
