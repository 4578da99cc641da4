"""What a figure shows is what the curves say: artists against data, and the marks of what is not certain."""

import re
from argparse import Namespace
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from curves import bdmc_points, synthetic
from matplotlib.colors import to_rgb
from PIL import Image
from scipy.stats import chi2
from scipy.stats import t as student

from rdcurve.commands import plot as command
from rdcurve.curve import RDCurve
from rdcurve.files import FileError
from rdcurve.plot import FORMATS, NOT_CERTIFIED, Drawn, Panel, draw_curve, figure, save
from rdcurve.sampler.distortion import DISTORTIONS

LOOK = {"column_width": 3.3, "page_width": 6.8, "panel_height": 2.4, "dpi": 60, "font_size": 8}
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def draw(*curves, below=None, panels=None, width=3.3, **cut):
    panels = panels or [Panel(curves, "Distortion", **cut)]
    return figure(panels, title="Title", n_pixels=784, width=width, panel_height=2.4, font_size=8, below=below)


def lines(ax):
    """Name -> line of each curve."""
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def ticked(ax):
    return [line for line in ax.lines if line.get_gid() == NOT_CERTIFIED]


def nine(**gaps):
    floors = {"GAN": 19, "VAE": 7, "AAE": 11}
    return [
        Drawn(f"{family}{size}", curve, family=family, size=str(size), gaps=bdmc_points(curve, 0.1 * size + 0.11))
        for family, floor in floors.items()
        for size in (2, 5, 10)
        for curve in [synthetic(f"{family}{size}", size, floor)]
    ]


def test_line_band_and_axes_are_the_means_and_their_errors():
    curve = synthetic()
    ax = draw(Drawn("vae10", curve, label="VAE10")).axes[0]
    (line,) = lines(ax).values()
    assert np.array_equal(line.get_xydata(), np.stack([curve.mean("distortion"), curve.mean("rate")], 1))
    (band,) = ax.patches
    error = 2 * np.stack([curve.standard_error(q, "chains") for q in ("distortion", "rate")], 1)
    low, high = np.split(band.get_xy()[:-1], 2)
    assert np.allclose(high[::-1], line.get_xydata() + error)
    whole = line.get_ydata() > error[:, 1]
    assert np.allclose(low[whole], (line.get_xydata() - error)[whole])
    assert (low[:, 1] > 0).all()  # or a log axis would lose the band
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert ax.get_xlim()[0] < line.get_xdata().min()
    assert ax.get_ylim()[1] > line.get_ydata().max()


def test_right_axis_is_bits_per_pixel():
    drawing = draw(Drawn("vae10", synthetic(), label="VAE10"))
    left, right = drawing.axes
    assert right.get_ylabel() == "Rate (bits per pixel)"
    assert np.allclose(left.get_ylim(), np.array(right.get_ylim()) * np.log(2) * 784)
    assert right.get_yscale() == "log"


def test_points_without_a_positive_rate_are_left_out():
    curve = synthetic()
    curve.rate[:2] = -0.1
    ax = draw(Drawn("vae10", curve, label="VAE10")).axes[0]
    assert len(lines(ax)["vae10"].get_xdata()) == len(curve.beta) - 2


def test_a_point_that_is_no_number_breaks_line_and_band_and_an_unknown_error_the_band():
    curve = synthetic()
    curve.distortion[9, 2] = curve.rate[9, 2] = np.nan
    curve.rate_se[20] = np.nan
    ax = draw(Drawn("vae10", curve, label="VAE10"), max_distortion=50).axes[0]
    x, y = lines(ax)["vae10"].get_data()
    at = np.flatnonzero(np.isnan(y))
    assert len(at) == 1 and np.isnan(x[at]) and y[at[0] - 1] == curve.mean("rate")[8]
    n_hidden = 9 - (curve.mean("distortion") > 50).sum() + 1  # a point beyond the cut, to reach it
    assert [len(band.get_xy()) // 2 for band in ax.patches] == [n_hidden, 10, 9]
    draw_curve(ax, replace(curve, rate=np.full_like(curve.rate, np.nan)))  # nothing at all


def test_a_band_down_to_no_rate_leaves_the_axes():
    curve = synthetic()
    curve.rate_se[:3] = 100
    ax = draw(Drawn("vae10", curve, label="VAE10")).axes[0]
    assert ax.patches[0].get_xy()[:3, 1].max() < 1e-3 * ax.get_ylim()[0]
    free = curve.plot()
    assert free.get_ylim()[0] > 0.5 * curve.mean("rate").min()  # and is no reason to widen them


def test_an_error_along_an_upright_line_is_seen():
    """That of a rate, where the distortion is known: the band has the width of the line, and is stroked."""
    curve = synthetic()
    curve.distortion_se[20:] = 1e-4
    curve.rate_se[25:] = 400
    ax = draw(Drawn("vae10", curve, label="VAE10")).axes[0]
    band, upright = ax.patches
    assert (band.get_linewidth(), upright.get_linewidth()) == (0, 3)
    assert len(upright.get_xy()) // 2 == 5
    assert np.allclose(upright.get_xy()[5:10][::-1], band.get_xy()[30 + 0 : 35][::-1])
    assert len(draw(Drawn("vae10", synthetic(), label="VAE10")).axes[0].patches) == 1


@pytest.mark.parametrize("uncertified", [slice(0, 0), slice(20, 30), slice(0, 1), slice(8, 9), slice(29, 30)])
def test_a_tick_at_every_beta_where_the_bound_is_not_certified(uncertified):
    curve = synthetic(uncertified=uncertified)
    ax = draw(Drawn("vae10", curve, label="VAE10")).axes[0]
    expected = np.stack([curve.mean("distortion"), curve.mean("rate")], 1)[uncertified]
    found = ticked(ax)
    assert len(found) == bool(len(expected))
    for line in found:
        assert np.array_equal(line.get_xydata(), expected)
    assert ("not certified" in drawing_note(ax.figure)) == bool(len(expected))


@pytest.mark.parametrize("at", [0, 8, 20, 29])
def test_one_tick_alone_is_ink(at):
    """Of a curve on which beta after beta nearly coincides, in the colour of the line, above line and band."""
    ink = []
    for uncertified in (slice(0, 0), slice(at, at + 1)):
        ax = draw(Drawn("vae10", synthetic(uncertified=uncertified), label="VAE10")).axes[0]
        ax.figure.set_dpi(150)
        for text in ax.figure.texts:
            text.set_visible(False)  # they say that there are ticks
        position = [0.15, 0.3, 0.7, 0.6]
        ax.figure.set_layout_engine("none")
        for each in ax.figure.axes:
            each.set_position(position)
        ax.figure.set_figheight(3)
        ax.figure.canvas.draw()
        ink.append(np.asarray(ax.figure.canvas.buffer_rgba())[..., :3].astype(int))
    assert (np.abs(ink[0] - ink[1]).max(2) > 60).sum() > 5


def drawing_note(drawing):
    return " ".join(text.get_text() for text in drawing.texts).replace("\n", " ")


def test_ticks_are_drawn_on_the_lower_side():
    """Ink appears below and to the left of an uncertified curve, and none above and to the right."""
    images = []
    for uncertified in (slice(0, 0), slice(None)):
        ax = plt.subplots(figsize=(3, 3), dpi=100)[1]
        ax.set(yscale="log", xlim=(0, 60), ylim=(1, 100))
        ax.axis("off")
        curve = synthetic(uncertified=uncertified, noise=0)
        draw_curve(ax, curve, label="no legend of its own", color="black", marker="none")
        ax.figure.canvas.draw()
        images.append(np.asarray(ax.figure.canvas.buffer_rgba())[..., 0].astype(int))
    rows, columns = np.nonzero(images[0] - images[1] > 60)  # ink that certified curves do not have
    assert len(rows) > 50
    x, y = ax.transData.transform(np.stack([curve.mean("distortion"), curve.mean("rate")], 1)).T
    up = 300 - rows
    above = up > np.interp(columns, x[::-1], y[::-1]) + 2
    assert above.mean() < 0.02


def test_measured_by_one_route_is_not_certified_but_closed_form_and_variational_need_no_certificate():
    curve = synthetic(n_searches=0)
    assert len(ticked(draw(Drawn("a", curve, label="a")).axes[0])) == 1
    assert not ticked(draw(Drawn("a", curve, label="a", variational=True)).axes[0])
    assert not ticked(draw(Drawn("a", curve, label="a", exact=synthetic(noise=0))).axes[0])


def test_variational_curves_are_dashed():
    curve = synthetic()
    drawing = draw(
        Drawn("ais", curve, family="AIS", size="10", gaps=bdmc_points(curve, 0.3)),
        Drawn("amortised", curve, family="amortised", size="10", variational=True),
    )
    drawn = lines(drawing.axes[0])
    assert drawn["ais"].get_linestyle() == "-"
    assert drawn["amortised"].get_linestyle() == "--"
    assert "dashed: variational" in drawing_note(drawing)
    styles = {line.get_label(): line.get_linestyle() for line in drawing.legends[0].get_lines()}
    assert set(styles.values()) == {"-", "--"}


def test_cut_at_a_distortion():
    curve = synthetic()
    ax = draw(Drawn("vae10", curve, label="VAE10"), max_distortion=30).axes[0]
    distortion = lines(ax)["vae10"].get_xdata()
    assert ax.get_xlim()[1] == 30
    assert np.sort(distortion)[-2] <= 30 < distortion.max()  # one point beyond, so that the line leaves the frame
    there = np.interp(30, distortion[::-1], lines(ax)["vae10"].get_ydata()[::-1])
    assert ax.get_ylim()[0] == pytest.approx(there / 1.15)  # so that it leaves at the right, and not below


def test_cut_at_a_rate():
    curve = synthetic()
    ax = draw(Drawn("vae10", curve, label="VAE10"), min_rate=2).axes[0]
    distortion, rate = lines(ax)["vae10"].get_data()
    assert ax.get_ylim()[0] == 2
    assert np.sort(rate)[1] >= 2 > rate.min()
    assert ax.get_xlim()[1] > np.interp(2, rate, distortion) > distortion[rate >= 2].max()  # where it leaves the axes


def test_nothing_left_of_a_curve_is_an_error_that_names_it():
    with pytest.raises(FileError, match="curve vae10: no point has a distortion of at most 1 and a rate of at least 0"):
        draw(Drawn("vae10", synthetic(), label="VAE10"), max_distortion=1)


def test_families_share_a_colour_and_sizes_a_marker():
    curves = nine()
    drawn = lines(draw(*curves).axes[0])
    looks = {curve.key: drawn[curve.name] for curve in curves}
    for size in ("2", "5", "10"):
        assert len({looks[family, size].get_marker() for family in ("GAN", "VAE", "AAE")}) == 1
    assert len({line.get_marker() for line in looks.values()}) == 3
    colours = {key: np.array(to_rgb(line.get_color())) for key, line in looks.items()}
    assert len({tuple(colour) for colour in colours.values()}) == 9
    for family in ("GAN", "VAE", "AAE"):
        shades = [colours[family, size] for size in ("2", "5", "10")]
        assert shades[0].sum() > shades[1].sum() > shades[2].sum()  # larger is darker
        chroma = [np.argsort(shade) for shade in shades]
        assert all((order == chroma[0]).all() for order in chroma)  # of one hue


def cielab(colour, vision):
    """CIELAB of a colour (sRGB, D65) as the eye sees it."""
    colour = np.asarray(colour)
    linear = vision @ np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ linear.clip(0, 1) / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(
    "vision",
    [
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],  # protan
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],  # deutan
    ],
)
def test_four_families_can_be_told_apart_by_every_eye(vision):
    """Dichromats as simulated by Machado, Oliveira and Fernandes (2009); 10 in CIELAB is plainly visible."""
    curves = [Drawn(f"{f}{s}", synthetic(), family=f, size=s) for f in "abcd" for s in ("2", "10", "100")]
    drawn = lines(draw(*curves).axes[0])
    for size in ("2", "10", "100"):
        seen = [cielab(to_rgb(drawn[f"{family}{size}"].get_color()), np.array(vision)) for family in "abcd"]
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 20


@pytest.mark.parametrize(
    "curves, message",
    [
        ([Drawn("a", synthetic(), label="a"), Drawn("b", synthetic(), family="f", size="2")], "or none has"),
        ([Drawn(f"{i}", synthetic(), label=f"{i}") for i in range(11)], "11 curves without a family; at most 10"),
        ([Drawn(f"{i}", synthetic(), family=f"{i}", size="2") for i in range(5)], "5 families with 1 sizes; at most 4"),
    ],
)
def test_more_than_can_be_told_apart_is_refused(curves, message):
    with pytest.raises(ValueError, match=message):
        draw(*curves)


def legend_texts(drawing):
    return [text.get_text() for text in drawing.legends[0].get_texts()]


def test_legend_is_a_table_of_largest_gaps():
    drawing = draw(*nine())
    # column by column
    assert legend_texts(drawing) == ["code", "2", "5", "10"] + [
        text for f in ("GAN", "VAE", "AAE") for text in (f, "0.31 ± 0.05", "0.61 ± 0.05", "1.11 ± 0.05")
    ]
    assert "largest BDMC gap" in drawing_note(drawing)


def test_legend_of_few_curves_is_a_list():
    a, b = synthetic("a"), synthetic("b", 5)
    drawing = draw(
        Drawn("a", a, label="VAE10", gaps=bdmc_points(a, 0.29)), Drawn("b", b, label="SSIM", gaps=bdmc_points(b, 0)[:0])
    )
    assert legend_texts(drawing) == ["VAE10: 0.29 ± 0.05", "SSIM: no BDMC"]
    assert "no data can be simulated" in drawing_note(drawing)


def test_a_gap_at_a_rate_that_noise_makes_negative_is_no_mark_on_the_curve(tmp_path):
    curve = synthetic("a")
    curve.rate[0] = -0.01
    drawing = draw(Drawn("a", curve, label="a", gaps=bdmc_points(curve, 0.3)), below="gaps")
    save(drawing, [tmp_path / "f.png"], 80)
    assert (tmp_path / "f.png").stat().st_size > 1000


def test_what_a_gap_is_of_stands_in_the_note():
    a, b = synthetic("a"), synthetic("b", 5)
    few = bdmc_points(b, 0.2).assign(n_images=3)
    drawing = draw(Drawn("a", a, label="a", gaps=bdmc_points(a, 0.29)), Drawn("b", b, label="b", gaps=few),
                   Drawn("c", a, label="c"))  # fmt: skip
    note = drawing_note(drawing)
    assert "on 3 or 5 images simulated from the model, not on these" in note
    assert "without a number: BDMC was not run" in note
    assert "BDMC" not in drawing_note(draw(Drawn("c", a, label="c")))


def test_a_gap_that_is_no_number_may_be_the_largest():
    a = synthetic("a")
    gaps = bdmc_points(a, 0.29)
    gaps.loc[3, "gap"] = np.nan
    assert legend_texts(draw(Drawn("a", a, label="VAE10", gaps=gaps))) == ["VAE10: unknown"]
    gaps["gap"] = np.nan
    assert legend_texts(draw(Drawn("a", a, label="VAE10", gaps=gaps), below="gaps")) == ["VAE10: unknown"]


def test_one_family_heads_the_legend():
    curves = [Drawn(f"v{s}", synthetic(), family="blur", size=s) for s in ("0", "0.5", "1")]
    legend = draw(*curves).legends[0]
    assert legend.get_title().get_text() == "blur"
    assert [text.get_text() for text in legend.get_texts()] == ["0", "0.5", "1"]


def boxes(drawing):
    """Extents of everything with ink: panels with their labels, legend, notes, title; inches."""
    drawing.draw_without_rendering()
    artists = [*drawing.axes, *drawing.legends, *drawing.texts]
    return [artist.get_tightbbox().transformed(drawing.dpi_scale_trans.inverted()) for artist in artists]


@pytest.mark.parametrize("n_panels, below", [(1, None), (3, "gaps")])
@pytest.mark.parametrize("labels", ["few", "many"])
def test_legend_and_notes_hide_nothing_and_stay_in_the_figure(n_panels, below, labels):
    curves = nine() if labels == "few" else [
        Drawn(f"{f}{s}", c, family=f, size=s, gaps=bdmc_points(c, 1))
        for f in ("DCGAN", "GP", "BRE", "a long name")
        for s in ("5", "10", "100")
        for c in [synthetic(uncertified=slice(20, 30))]
    ]  # fmt: skip
    width = 3.3 if n_panels == 1 else 6.8
    panels = [Panel(curves, "Distortion (squared error)", f"{i}") for i in range(n_panels)]
    drawing = draw(panels=panels, below=below, width=width)
    assert drawing.get_figwidth() == width
    found = boxes(drawing)
    for box in found:
        assert box.x0 > -0.01 and box.y0 > -0.01
        assert box.x1 < width + 0.01 and box.y1 < drawing.get_figheight() + 0.01
    n_axes = len(drawing.axes)
    for i, j in combinations(range(len(found)), 2):
        if j < n_axes and {i, j} & {n_axes - 1}:
            continue  # the right axis lies on its panel
        overlap = found[i].intersection(found[i], found[j])
        assert overlap is None or overlap.width < 0.02 or overlap.height < 0.02, (i, j)


def test_text_is_legible():
    drawing = draw(*nine(), below="gaps")
    texts = [text for text in drawing.findobj(plt.Text) if text.get_text()]
    assert min(text.get_fontsize() for text in texts) >= 6


def test_tick_labels_are_plain_and_do_not_touch():
    for floor, size in ((7, 10), (2, 100)):
        drawing = draw(Drawn("a", synthetic("a", size, floor), label="a"))
        drawing.draw_without_rendering()
        for axis in (axis for ax in drawing.axes for axis in (ax.xaxis, ax.yaxis)):
            labels = [label for label in axis.get_ticklabels() if label.get_text() and label.get_visible()]
            low, high = sorted(axis.get_view_interval())
            shown = [label.get_window_extent() for label, place in zip(labels, axis.get_ticklocs(), strict=False)
                     if low <= place <= high]  # fmt: skip
            assert not any(a.overlaps(b) for a, b in combinations(shown, 2))
            assert not any("times" in label.get_text() for label in labels)
            assert len(shown) >= 2


def test_closed_form_and_its_differences():
    curve, exact = synthetic(), synthetic(noise=0)
    drawing = draw(Drawn("a", curve, label="AIS", exact=exact), below="differences")
    above, below, _ = drawing.axes
    drawn = lines(above)
    assert np.array_equal(drawn["closed form"].get_ydata(), exact.mean("rate"))
    assert drawn["a"].get_linestyle() == "None"
    for line, quantity in zip(below.lines, ("rate", "distortion"), strict=False):
        expected = (curve.mean(quantity) - exact.mean(quantity)) / curve.standard_error(quantity, "chains")
        assert np.allclose(line.get_ydata(), expected)
    assert legend_texts(drawing) == ["closed form", "AIS"]
    low, high = below.get_ylim()
    assert low <= -4 and high >= 4


def test_differences_of_curves_from_the_mean_of_the_others():
    """Independent curves at the same truth: variance 1. False-fail rate 1e-6; detects errors 1.5 times off."""
    curves = [Drawn(f"{i}", synthetic(), label=f"{i}") for i in range(7)]
    generator = np.random.default_rng(0)
    for drawn in curves:
        drawn.curve.log_z[:] = generator.standard_normal(drawn.curve.log_z.shape) * drawn.curve.log_z_se
    below = draw(*curves, below="differences").axes[1]
    values = np.concatenate([line.get_ydata() for line in below.lines if len(line.get_ydata()) == 30])
    assert len(values) == 210
    low, high = chi2.ppf([5e-7, 1 - 5e-7], 180) / 180  # the seven values at one beta sum to 0
    assert low < np.mean(values**2) < high
    silent = [replace(c.curve, log_z_se=c.curve.log_z_se * 0) for c in curves[:2]]
    with pytest.raises(FileError, match="curve a: no error over the chains to measure differences of log_z by"):
        draw(*(Drawn(n, c, label=n) for n, c in zip("ab", silent, strict=True)), below="differences")
    with pytest.raises(FileError, match="curve a: nothing to compare it with"):
        draw(Drawn("a", synthetic(), label="a"), Drawn("b", synthetic(n_betas=9), label="b"), below="differences")


def test_gaps_of_several_curves_with_one_entry_are_told_apart():
    a, b = synthetic(seed=1), synthetic(seed=2)
    panels = [
        Panel(
            [Drawn(name, curve, label="seed 7", gaps=bdmc_points(curve, gap)), Drawn("x", curve, label="seed 21")], "D"
        )
        for name, curve, gap in (("vae100", a, 0.29), ("gan100", b, 0.41))
    ]
    texts = [text.get_text() for text in draw(panels=panels, width=6.8).legends[0].get_texts()]
    assert texts == ["seed 7: vae100 0.29 ± 0.05, gan100 0.41 ± 0.05", "seed 21"]


def test_a_curve_that_came_with_bounds_is_drawn_with_its_largest_gap():
    curve = synthetic(seed=1)
    points = bdmc_points(curve, 0.29)
    worst = points.loc[points["gap"].idxmax()]
    ax = replace(curve, facts=curve.facts | {"bdmc": points.to_dict("list")}).plot()
    (text,) = ax.get_legend().get_texts()
    assert text.get_text() == f"largest BDMC gap: {worst['gap']:.2f} ± {worst['gap_se']:.2f} nats"
    assert curve.plot().get_legend() is None
    (text,) = synthetic(uncertified=slice(3, 5)).plot().get_legend().get_texts()
    assert text.get_text() == NOT_CERTIFIED


def test_gaps_stand_at_the_rates_of_their_betas():
    curve = synthetic()
    points = bdmc_points(curve, 0.5, 12)
    drawing = draw(Drawn("a", curve, label="a", gaps=points.sample(frac=1, random_state=0)), below="gaps")
    above, below, _ = drawing.axes
    at = np.isin(curve.beta, points["beta"])
    data, _, (bars,) = below.containers[0]
    assert np.allclose(data.get_xydata(), np.stack([curve.mean("rate")[at], points["gap"]], 1))
    lengths = np.diff([s[:, 1] for s in bars.get_segments()], axis=1)[:, 0]
    assert np.allclose(lengths, 2 * student.ppf(0.975, 5 - 1) * points["gap_se"])  # of five images
    assert np.array_equal(lines(above)["a"].get_markevery(), np.flatnonzero(at))
    points["beta"] *= 1.01
    with pytest.raises(FileError, match="curve a: of 12 BDMC points, 0 are at betas of the curve"):
        draw(Drawn("a", curve, label="a", gaps=points), below="gaps")


@pytest.mark.parametrize(("largest", "scale"), [(2.0, "linear"), (40.0, "symlog")])
def test_one_large_gap_leaves_the_others_to_be_seen(largest, scale):
    curve = synthetic("a")
    points = bdmc_points(curve, 0.5)
    points.loc[3, "gap"] = largest
    drawing = draw(Drawn("a", curve, label="a", gaps=points), below="gaps")
    drawing.draw_without_rendering()
    _, below, _ = drawing.axes
    assert below.get_yscale() == scale
    heights = below.transAxes.inverted().transform(below.transData.transform([[1.0, 0.0], [1.0, 0.5]]))[:, 1]
    assert heights[1] - heights[0] > 0.05  # half a nat, of the height of the panel
    assert {label.get_text() for label in below.get_yticklabels()} > {"0"}


def test_panels_share_the_axis_of_gaps():
    curves = nine()
    curves[1].gaps.loc[4, "gap"] = 80.0
    drawing = draw(panels=[Panel(curves[i : i + 3], "D", str(i)) for i in (0, 3)], below="gaps", width=6.8)
    drawing.draw_without_rendering()
    left, right = drawing.axes[2:4]
    assert left.get_yscale() == right.get_yscale() == "symlog"
    assert left.get_ylim() == right.get_ylim() and left.get_ylim()[1] > 80
    assert any(label.get_visible() and label.get_text() for label in left.get_yticklabels())
    assert not any(label.get_visible() and label.get_text() for label in right.get_yticklabels())


def test_panels_share_rates_and_legend():
    curves = nine()
    panels = [Panel(curves[i : i + 3], "Distortion", title, max_distortion=40) for i, title in ((0, "GAN"), (3, "VAE"))]
    drawing = draw(panels=panels, width=6.8)
    first, second, right = drawing.axes
    assert first.get_ylim() == second.get_ylim()
    assert [first.get_title(), second.get_title()] == ["GAN", "VAE"]
    assert np.allclose(second.get_ylim(), np.array(right.get_ylim()) * np.log(2) * 784)
    assert len(drawing.legends) == 1


def test_same_data_same_bytes(tmp_path):
    for folder in ("a", "b"):
        curves = [*nine(), *(Drawn("v", synthetic(uncertified=slice(9, 30)), family="x", size=s) for s in ("2", "5"))]
        save(draw(*curves, below="gaps"), [tmp_path / folder / f"f{suffix}" for suffix in FORMATS], 80)
    for suffix in FORMATS:
        first, second = ((tmp_path / folder / f"f{suffix}").read_bytes() for folder in "ab")
        assert first == second
        assert len(first) > 5000
    with Image.open(tmp_path / "a/f.png") as image:
        assert image.mode == "RGB"
        assert np.allclose(image.info["dpi"], 80, atol=0.1)
        assert np.allclose(image.size, 80 * draw(*curves, below="gaps").get_size_inches(), atol=1)


def test_the_last_digit_of_a_sum_changes_no_byte(tmp_path):
    """It may differ from run to run, and reaches the layout through the limits of the axes."""
    curve, found = synthetic(), set()
    for k in range(4):
        other = replace(curve, rate=curve.rate * (1 + 2e-15 * k), distortion=curve.distortion * (1 + 2e-15 * k))
        save(draw(Drawn("a", other, label="a")), [tmp_path / f"{k}.svg"], 80)
        found.add((tmp_path / f"{k}.svg").read_bytes())
    assert len(found) == 1


def test_curves_draw_themselves():
    curve = synthetic(uncertified=slice(20, 30))
    ax = curve.plot(label="mine", color="black")
    assert np.array_equal(lines(ax)["mine"].get_ydata(), curve.mean("rate"))
    assert len(ticked(ax)) == 1
    assert curve.plot(ax) is ax


def test_published_curve():
    try:
        curve = RDCurve.load(ROOT / "results/curves/vae10.safetensors")
    except (FileError, TypeError) as error:  # not pulled, or written before a curve had its present fields
        pytest.skip(str(error))
    ax = draw(Drawn("vae10", curve, label="VAE10"), max_distortion=40).axes[0]
    assert len(ticked(ax)) == int(not curve.certified.all())
    assert lines(ax)["vae10"].get_xdata().min() == curve.mean("distortion").min()


# the command


@pytest.fixture
def folder(tmp_path):
    """Files that a figure reads, and a way to draw it."""
    for name, latent_dim in (("vae2", 2), ("vae10", 10)):
        curve = synthetic(name, latent_dim)
        curve.save(tmp_path / f"curves/{name}.safetensors")
        (tmp_path / "bdmc").mkdir(exist_ok=True)
        bdmc_points(curve, 0.3).to_csv(tmp_path / f"bdmc/{name}.csv", index=False)
    synthetic("vae10_amortised").save(tmp_path / "variational/vae10_amortised.safetensors")
    return tmp_path


def run(folder, entry, closed_form=(), **options):
    class Guard:
        def check(self):
            pass

    folders = {name: folder / name for name in ("curves", "bdmc", "exact", "variational", "decoders", "data")}
    args = Namespace(name="f", output=folder / "out/f.svg", guard=Guard(), **folders | options)
    command.run(args, {"figures": {"f": {"title": "Title", **entry}}, "plot": LOOK, "closed_form": closed_form})
    return [folder / f"out/f{suffix}" for suffix in FORMATS]


def test_command_writes_three_formats(folder, capsys):
    paths = run(folder, {"curves": {"vae2": "VAE2", "vae10": "VAE10"}, "max_distortion": 50})
    assert all(path.stat().st_size > 5000 for path in paths)
    assert re.match(r"f: .*f\.svg, .*f\.pdf, .*f\.png\n", capsys.readouterr().out)


def test_command_gives_a_repeat_no_gaps(folder, monkeypatch):
    """BDMC has tried the curve that it repeats, not the repeat."""
    seen = {}
    monkeypatch.setattr(command, "figure", lambda panels, **more: seen.update(panels=panels) or plt.figure())
    synthetic("vae10").save(folder / "curves/vae10_seed11.safetensors")  # whose facts name vae10
    run(folder, {"curves": {"vae10": "a", "vae10_seed11": "b"}})
    assert [curve.gaps is None for curve in seen["panels"][0].curves] == [False, True]


def test_command_draws_what_the_entry_says(folder, monkeypatch):
    seen = {}
    monkeypatch.setattr(command, "figure", lambda panels, **more: seen.update(more, panels=panels) or plt.figure())
    synthetic("vae10", noise=0).save(folder / "exact/vae10.safetensors")
    entry = {
        "panels": {
            "left": {"curves": {"vae2": {"family": "VAE", "size": 2}, "vae10": {"family": "VAE", "size": 10}}},
            "right": {"variational": {"vae10_amortised": {"family": "amortised", "size": 10}}, "min_rate": 1},
        },
        "max_distortion": 40,
        "below": "gaps",
    }
    run(folder, entry, closed_form={"vae10": {}})
    left, right = seen["panels"]
    assert [(c.name, c.key, c.variational) for panel in (left, right) for c in panel.curves] == [
        ("vae2", ("VAE", "2"), False),
        ("vae10", ("VAE", "10"), False),
        ("vae10_amortised", ("amortised", "10"), True),
    ]
    assert [c.exact is None for c in left.curves] == [True, False]
    assert [len(c.gaps) for c in left.curves] == [10, 10] and right.curves[0].gaps is None
    assert (left.title, left.max_distortion, left.min_rate) == ("left", 40, 0)
    assert (right.title, right.max_distortion, right.min_rate) == ("right", 40, 1)
    assert left.distortion_label == "Distortion (squared error)"
    assert (seen["n_pixels"], seen["width"], seen["below"]) == (784, 6.8, "gaps")


def test_cifar_has_1024_pixels_of_three_channels(folder, monkeypatch):
    seen = {}
    monkeypatch.setattr(command, "figure", lambda panels, **more: seen.update(more) or plt.figure())
    synthetic("vae10", dataset="cifar10").save(folder / "curves/vae10.safetensors")
    run(folder, {"curves": {"vae10": "DCGAN"}})
    assert (seen["n_pixels"], seen["width"]) == (1024, 3.3)


def test_every_distortion_has_the_label_that_it_gives_itself():
    for name, distortion in DISTORTIONS.items():
        assert command.DISTORTION_LABELS[name] == distortion.label


TABLES = {
    "empty": b"",
    "other columns": b"a,b\n1,2\n",
    "words": b"beta,gap,gap_se,n_images\n1,small,0.1,5\n",
    "binary": b"\xff\xfe\x00\x01",
}


@pytest.mark.parametrize(
    "damage, message",
    [
        ("curve", r"curves/vae2\.safetensors: no such file"),
        ("gaps", r"bdmc/vae2\.csv: not a readable table of BDMC points"),
        ("empty", r"bdmc/vae2\.csv: not a readable table of BDMC points"),
        ("other columns", r"bdmc/vae2\.csv: not a readable table of BDMC points"),
        ("words", r"bdmc/vae2\.csv: not a readable table of BDMC points"),
        ("binary", r"bdmc/vae2\.csv: not a readable table of BDMC points"),
        ("variational", r"variational/vae2\.safetensors: no such file"),
        ("exact", r"exact/vae2\.safetensors: no such file"),
        ("folder", "f cannot be drawn without --bdmc"),
        ("distortion", "f: vae2 and vae10 cannot share axes, for their distortion is .*ssim.* and .*squared_error"),
        ("dataset", "f: vae2 and vae10 cannot share axes, for their dataset is cifar10 and mnist"),
        ("own", "f: the file of curve vae2 does not say its distortion"),
    ],
)
def test_what_cannot_be_drawn_is_one_clear_line(folder, damage, message):
    entry, options, closed_form = {"curves": {"vae2": "a", "vae10": "b"}}, {}, []
    path = folder / "curves/vae2.safetensors"
    if damage == "curve":
        path.unlink()
    elif damage == "gaps":
        (folder / "bdmc/vae2.csv").unlink()
    elif damage in TABLES:
        (folder / "bdmc/vae2.csv").write_bytes(TABLES[damage])
    elif damage == "variational":
        entry["variational"] = {"vae2": "c"}
    elif damage == "exact":
        closed_form = ["vae2"]
    elif damage == "folder":
        options = {"bdmc": None}
    elif damage == "distortion":
        synthetic("vae2", distortion={"name": "ssim"}).save(path)
    elif damage == "dataset":
        synthetic("vae2", dataset="cifar10").save(path)
    else:
        curve = synthetic("vae2")
        curve.facts.pop("settings")
        curve.save(path)
    with pytest.raises(FileError, match=message) as error:
        run(folder, entry, closed_form, **options)
    assert "\n" not in str(error.value)
    assert not (folder / "out").exists()
