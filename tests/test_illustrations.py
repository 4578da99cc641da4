"""Figures 1 and 2: known curves of known sources, the order of the bounds, quadrature against AIS, pictures."""

from argparse import Namespace
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from problems import threshold

from rdcurve.commands import illustrate, plot
from rdcurve.files import FileError, load_arrays, save_arrays
from rdcurve.illustrations import geometry, plane
from rdcurve.illustrations.blahut_arimoto import best_marginal, point
from rdcurve.illustrations.draw import figure1, figure2

GEOMETRY = geometry.Settings(
    n_values=33,
    n_codes=401,
    n_betas=12,
    beta_max=5.0,
    tangent_beta=1.4,
    n_temperatures=8,
    n_long_temperatures=40,
    n_chains=2,
    n_repeats=100,
    seed=1,
)
PLANE = plane.Settings(
    n_codes=4001,
    n_betas=40,
    beta_max=1000.0,
    low_beta=0.1,
    high_beta=50.0,
    n_points=40,
    n_temperatures=100,
    n_chains=64,
    n_recorded=8,
    seed=1,
)
LOOK = {"column_width": 3.3, "page_width": 6.8, "panel_height": 2.2, "dpi": 60, "font_size": 8}


@pytest.fixture(scope="module")
def lines():
    return geometry.compute(GEOMETRY)


@pytest.fixture(scope="module")
def models():
    return plane.compute(PLANE)


def gaussian_source(n, reach=5.0):
    x = np.linspace(-reach, reach, n)
    p = np.exp(-0.5 * x**2)
    return x, p / p.sum()


@pytest.mark.parametrize("beta", [0.7, 2.0, 10.0])
def test_gaussian_source(beta):
    """R(D) = 1/2 ln(1 / D) of N(0, 1), at D = 1 / (2 beta): within 0.01 nats, of which 0.002 are the iteration's."""
    x, p = gaussian_source(201)
    d = np.square(x[:, None] - x)
    found = point(p, d, best_marginal(p, d, beta, tolerance=2e-3), beta)
    assert found.rate + beta * found.distortion == pytest.approx(0.5 * np.log(2 * beta) + 0.5, abs=0.01)
    assert found.distortion == pytest.approx(0.5 / beta, rel=0.05)
    assert found.rate == pytest.approx(0.5 * np.log(1 / found.distortion), abs=0.02)
    assert 0 <= found.excess <= 2e-3


def test_gaussian_source_below_its_slope():
    """Below beta = 1/2 nothing is sent: R = 0 at D = 1."""
    x, p = gaussian_source(101)
    d = np.square(x[:, None] - x)
    found = point(p, d, best_marginal(p, d, 0.3), 0.3)
    assert found.rate == pytest.approx(0, abs=0.01)
    assert found.distortion == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("share", [0.5, 0.3])
@pytest.mark.parametrize("beta", [2.0, 4.0])
def test_binary_source(share, beta):
    """Hamming distortion: R(D) = h(p) - h(D) at D = 1 / (1 + e^beta), for D below min(p, 1 - p)."""

    def h(q):
        return -q * np.log(q) - (1 - q) * np.log(1 - q)

    p, d = np.array([1 - share, share]), 1 - np.eye(2)
    found = point(p, d, best_marginal(p, d, beta, tolerance=1e-12), beta)
    assert found.distortion == pytest.approx(1 / (1 + np.exp(beta)), abs=1e-6)
    assert found.rate == pytest.approx(h(share) - h(found.distortion), abs=1e-6)


def test_a_given_marginal_has_the_curve_of_its_partition_function():
    """N(0, 1) codes of N(0, 1) values, f = z: log Z = log N(x; 0, 1 + v) + log(pi / beta) / 2, v = 1 / (2 beta)."""
    z = np.linspace(-9, 9, 2001)
    prior = np.exp(-0.5 * z**2)
    x = np.array([-1.0, 0.5, 2.0])
    beta, v = 3.0, 1 / 6
    found = point(np.ones(3) / 3, np.square(x[:, None] - z), prior / prior.sum(), beta)
    log_z = -0.5 * x**2 / (1 + v) - 0.5 * np.log(1 + v) + 0.5 * np.log(v)
    assert np.allclose(found.log_z, log_z, atol=1e-9)
    assert found.distortion == pytest.approx(np.mean((x * v / (1 + v)) ** 2 + v / (1 + v)), abs=1e-9)
    assert found.rate == pytest.approx(-log_z.mean() - beta * found.distortion)


def test_refusals_of_sources():
    d = np.ones((3, 2))
    with pytest.raises(ValueError, match="add up to 1, not 3"):
        best_marginal(np.ones(3), d, 1.0)
    with pytest.raises(ValueError, match=r"source of shape \(2,\) has no distortions of shape \(3, 2\)"):
        best_marginal(np.ones(2) / 2, d, 1.0)
    with pytest.raises(ValueError, match=r"shape \(3,\), and there are 2 codes"):
        point(np.ones(3) / 3, d, np.ones(3) / 3, 1.0)
    x, p = gaussian_source(51)
    with pytest.raises(ValueError, match=r"only known to .* nats after 2 iterations; 0.001 was asked for"):
        best_marginal(p, np.square(x[:, None] - x), 2.0, n_iterations=2)


def total(arrays, name):
    """R + beta D, which each bound can only raise."""
    return arrays[f"{name}_rate"] + arrays[f"{name}_beta"] * arrays[f"{name}_distortion"]


def interpolated(arrays, name, betas):
    """The same at other betas: concave in beta, and hardly bent between these."""
    return np.interp(betas, arrays[f"{name}_beta"], total(arrays, name))


def test_every_curve_is_above_the_one_that_it_bounds(lines):
    """R + beta D at equal beta, Shannon <= model <= Gaussian, and model <= AIS; false fail 1e-6 by their noise."""
    assert (total(lines, "shannon") - lines["shannon_excess"] <= total(lines, "model")).all()
    assert (lines["shannon_excess"] <= 1e-3).all()
    error = lines["gaussian_beta"] * lines["gaussian_distortion_se"]
    limit = threshold(len(error))
    assert (total(lines, "gaussian") > total(lines, "model") - limit * error).all()
    assert (total(lines, "gaussian") - total(lines, "model")).max() > 0.1
    for name in ("estimate", "long"):
        above = total(lines, name) - interpolated(lines, "model", lines[f"{name}_beta"])
        assert (above > -threshold(len(above)) * lines[f"{name}_rate_se"] - 0.01).all()
    short = total(lines, "estimate") - interpolated(lines, "model", lines["estimate_beta"])
    assert above[-1] < 0.5 * short[-1]  # more temperatures, a tighter bound
    above = total(lines, "ais") - interpolated(lines, "model", lines["ais_beta"])
    assert (above > -0.05).all()  # Prop. 3; the entropies are known to about that
    assert (above[:3] < 0.1).all()
    assert (lines["ais_rate"][3:] < lines["estimate_rate"][3:]).all()  # Prop. 4, where it is more than noise
    assert np.array_equal(lines["ais_distortion"], lines["estimate_distortion"])


def test_the_best_prior_touches_at_its_slope_only(lines):
    beta = float(lines["tangent_beta"][0])
    above = total(lines, "best") - total(lines, "shannon")
    at = np.abs(lines["best_beta"] - beta).argmin()
    assert (above > -1e-3).all()
    assert above[at] < 0.02
    assert above[0] > above[at]
    assert above[-1] > 0.1
    assert lines["best_prior"].sum() == pytest.approx(1)


def test_entropy_of_known_densities():
    """Kozachenko and Leonenko on 20,000 numbers, error about 0.01 nats: uniform, normal, and a mixture far apart."""
    generator = torch.Generator().manual_seed(0)
    uniform = 3 * torch.rand(20_000, generator=generator, dtype=torch.float64)
    normal = 0.2 * torch.randn(20_000, generator=generator, dtype=torch.float64)
    apart = normal + 50 * (uniform > 1.5)
    expected = [np.log(3), 0.5 * np.log(2 * np.pi * np.e * 0.04), 0.5 * np.log(2 * np.pi * np.e * 0.04) + np.log(2)]
    found = geometry._entropy(torch.stack([uniform, normal, apart]).numpy())
    assert np.allclose(found, expected, atol=0.05)


def test_quadrature_agrees_with_ais(models):
    """-log Z = R + beta D along the curve, three models: AIS between -z and 0.6 nats + z errors above; false fail 1e-6.

    The points are compared off the curve, not along it: at the beta whose quadrature has the distortion of AIS.
    """
    limit = threshold(3 * PLANE.n_recorded)
    for name in plane.MODELS:
        curve = [models[f"{name}_{quantity}"] for quantity in ("distortion", "rate")]
        distortion, rate = (models[f"{name}_ais_{quantity}"] for quantity in ("distortion", "rate"))
        error = np.hypot(models[f"{name}_ais_rate_se"], 0.02)
        exact = np.interp(np.log(distortion), np.log(curve[0][::-1]), curve[1][::-1])
        assert (rate - exact > -limit * error).all()
        assert (rate - exact < 0.6 + limit * error).all()


def test_models_do_what_the_paper_says_of_them(models):
    low = {name: models[f"{name}_drawn_distortion"][0] for name in plane.MODELS}
    high = {name: models[f"{name}_drawn_distortion"][1] for name in plane.MODELS}
    assert low["near"] < low["wide"] < low["far"]
    assert high["far"] < high["near"]
    assert high["near"] == pytest.approx(high["wide"], rel=0.01)
    # at high rate a prior is worth its density at the code that fits best, here z = 0
    density = [plane.MODELS[name].prior.log_prob(torch.zeros(1).double()).item() for name in ("near", "wide")]
    assert density[0] == pytest.approx(density[1])
    assert models["wide_rate"][-1] == pytest.approx(models["near_rate"][-1], abs=0.02)
    for name, model in plane.MODELS.items():
        distance = np.square(models[f"{name}_high"] - models["test_point"]).sum(-1).mean()
        assert distance == pytest.approx(high[name], rel=0.1)
        middle = model.decoder(torch.tensor([[model.mean]], dtype=torch.float64))[0].numpy()
        assert np.abs(models[f"{name}_prior"] - middle).min() < 0.1


def test_pictures_can_be_drawn(lines, models):
    first = figure1(lines, "Lines", LOOK)
    assert [len(ax.get_legend().get_texts()) for ax in first.axes] == [4, 6]
    assert "AIS, 8 temperatures" in [text.get_text() for text in first.axes[1].get_legend().get_texts()]
    second = figure2(dict(sorted(models.items())), "Planes", LOOK)  # as they are read from a file
    assert [text.get_text() for text in second.axes[2].get_legend().get_texts()] == list(plane.MODELS)
    assert np.allclose(first.get_size_inches(), (3.3, 4.4))
    assert [drawing.get_suptitle() for drawing in (first, second)] == ["Lines", "Planes"]


def test_plot_draws_what_illustrate_wrote(lines, tmp_path):
    class Guard:
        def check(self):
            pass

    save_arrays(tmp_path / "geometry.safetensors", "rdcurve illustration", lines, {})
    args = Namespace(name="figure1", illustrations=tmp_path, output=tmp_path / "figure1.svg", guard=Guard())
    entry = {"kind": "illustration", "title": "Lines", "illustration": "geometry"}
    plot.run(args, {"figures": {"figure1": entry}, "plot": LOOK})
    assert all((tmp_path / f"figure1.{suffix}").stat().st_size > 5000 for suffix in ("svg", "pdf", "png"))
    args.illustrations = None
    with pytest.raises(FileError, match="figure1 cannot be drawn without --illustrations"):
        plot.run(args, {"figures": {"figure1": entry}, "plot": LOOK})


def test_command_writes_the_arrays(tmp_path, capsys):
    class Guard:
        def check(self):
            self.checked = True

    small = replace(GEOMETRY, n_values=9, n_repeats=10, n_betas=4)
    guard = Guard()
    args = Namespace(name="geometry", output=tmp_path / "geometry", guard=guard)
    params = {"illustrations": {"geometry": asdict(small)}}
    illustrate.run(args, params)
    arrays, facts = load_arrays(args.output, "rdcurve illustration")
    assert guard.checked
    assert facts["settings"] == asdict(small)
    assert facts["illustration"] == "geometry"
    assert arrays["estimate_rate"].shape == (7,)
    first = args.output.read_bytes()
    illustrate.run(args, params)
    assert args.output.read_bytes() == first
    assert "geometry: " in capsys.readouterr().out
    with pytest.raises(ValueError, match="unknown illustration 'venn'; known: geometry, plane"):
        illustrate.run(Namespace(name="venn", output=tmp_path / "venn", guard=guard), params)
