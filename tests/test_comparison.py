"""Differences of curves against closed forms, and their error bars against replicates."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t as student
from synthetic import BETAS, decoder, doubted, exact, images, linear_curve, raised, scaled

from rdcurve.comparison import (
    MeanCurve,
    Reading,
    Uncovered,
    contrast,
    excess,
    excess_nodes,
    least_distortion,
    mean_log_distortion,
    spread,
    student_quantile,
)

LOW, MID, HIGH = (0.5, 3.0), (3.0, 12.0), (12.0, 24.0)
WINDOWS = pytest.mark.parametrize("window", [LOW, MID, HIGH])


def mean_curve(curve, name="a"):
    return MeanCurve.measured(name, curve)


def read(curves, window, prolong=0.01, least_coverage=0.5):
    return mean_log_distortion(curves, window, prolong=prolong, least_coverage=least_coverage)


def difference(a, b, window):
    return contrast(read([mean_curve(a), mean_curve(b, "b")], window)[0], [1, -1])


def brute_force(weight, x, window):
    """Mean of ln D over a window, from the closed form at 20,000 betas: no transform, no spline."""
    beta = np.geomspace(BETAS[0], BETAS[-1], 20_000)
    distortion, log_z = exact(weight, x, beta)
    rate = (-log_z - beta[:, None] * distortion).mean(1)
    return np.interp(np.linspace(*np.log(window), 25), np.log(rate), np.log(distortion.mean(1))).mean()


@WINDOWS
@pytest.mark.parametrize("latent_dim", [2, 4, 8])
def test_distortion_at_a_rate_is_that_of_the_closed_form(latent_dim, window):
    """24 betas, each 1.8 times the one before; two parts in ten thousand."""
    weight, x = decoder(0, latent_dim=latent_dim), images(1)
    readings, rates = read([mean_curve(linear_curve(weight, x))], window)
    assert readings[0].values[0] == pytest.approx(brute_force(weight, x, window), abs=2e-4)
    assert rates == pytest.approx(window)
    for k in (0, 7):  # and of the images that are left where one is left out
        without = np.delete(x, k, axis=0)
        assert readings[0].values[1 + k] == pytest.approx(brute_force(weight, without, window), abs=2e-4)


@WINDOWS
def test_factor_of_all_distortions_is_found_in_every_replicate(window):
    curve = linear_curve(decoder(0), images(1), noise=0.3)
    found = difference(scaled(curve, 1.25), curve, window)
    assert found.value == pytest.approx(np.log(1.25), abs=1e-9)
    assert found.se_images < 1e-9  # though every image has its own curve
    ends = [least_distortion(mean_curve(c), 1e4) for c in (scaled(curve, 1.25), curve)]
    assert contrast(ends, [1, -1]).value == pytest.approx(np.log(1.25), abs=1e-12)


@pytest.mark.parametrize("at", ["beta", "distortion"])
def test_excess_is_the_nats_that_were_added(at):
    curve = linear_curve(decoder(0), images(1), noise=0.3)
    a, b = mean_curve(raised(curve, 0.7)), mean_curve(curve, "b")
    nodes = excess_nodes(a, b, 9)
    assert len(set(nodes)) == 9
    assert b.beta[b.recorded[nodes[-1]]] > 0.1 * BETAS[-1]  # far into the vertical part
    for node in nodes:
        found = excess(a, b, node, at)
        assert found.value == pytest.approx(0.7, abs=1e-6)
        assert found.se_images < 1e-6


def test_excess_of_another_decoder_is_that_of_the_closed_form():
    x = images(1)
    weights = [decoder(0), 0.8 * decoder(3)]
    other = np.geomspace(0.03, 1e4, 31)  # betas of its own
    a, b = mean_curve(linear_curve(weights[0], x, other)), mean_curve(linear_curve(weights[1], x), "b")
    fine = np.geomspace(0.02, 2e4, 100_000)
    distortion, log_z = (part.mean(1) for part in exact(weights[0], x, fine))
    for node in excess_nodes(a, b, 7):
        beta = b.beta[b.recorded[node]]
        d, z = (float(part.mean(1)[0]) for part in exact(weights[1], x, np.array([beta])))
        at_beta = np.interp(np.log(beta), np.log(fine), z - log_z - fine * d) + beta * d
        assert excess(a, b, node, "beta").value == pytest.approx(at_beta, abs=2e-3)
        rate = np.interp(-d, -distortion, -log_z - fine * distortion)
        assert excess(a, b, node, "distortion").value == pytest.approx(rate - (-z - beta * d), abs=2e-3)


@WINDOWS
def test_paired_error_is_right_and_smaller(window):
    """Against the scatter over 300 samples of 50 images, known to 4 %: a right error bar is 15 % off with probability
    2e-4 per window, and one that is 30 % off is found."""
    a, b = decoder(0), 0.9 * decoder(0) + 0.1 * decoder(5)
    found, paired, unpaired = [], [], []
    for seed in range(300):
        x = images(seed)
        curves = [linear_curve(w, x, BETAS[::2], noise=0.3, seed=2 * seed + k) for k, w in enumerate((a, b))]
        readings = read([mean_curve(curve) for curve in curves], window)[0]
        whole = contrast(readings, [1, -1])
        found.append(whole.value)
        paired.append(whole.se_images)
        unpaired.append(np.hypot(*(contrast([reading], [1]).se_images for reading in readings)))
    assert np.sqrt(np.mean(np.square(paired))) == pytest.approx(np.std(found), rel=0.15)
    assert np.mean(paired) < 0.6 * np.mean(unpaired)


@WINDOWS
def test_chain_error_is_right(window):
    """The same for the chains: 300 runs on the same images."""
    weights, x = (decoder(0), decoder(3)), images(1)
    found = []
    for seed in range(300):
        curves = [linear_curve(w, x, BETAS[::2], noise=0.5, seed=2 * seed + k) for k, w in enumerate(weights)]
        last = difference(*curves, window)
        found.append(last.value)
    assert last.se_chains == pytest.approx(np.std(found), rel=0.15)
    assert last.se_images > last.se_chains


def test_uncertified_betas_are_left_out():
    """They may say what they like, as long as enough of the window remains."""
    curve = linear_curve(decoder(0), images(1), noise=0.1)
    whole = mean_curve(curve)
    rows = np.flatnonzero((whole.rate[:, 0] > 8) & (whole.rate[:, 0] < 11))
    wrong = doubted(curve, rows)
    bad = mean_curve(replace(wrong, rate=wrong.rate + (wrong.doubt > 0)), "bad")
    (found, same), rates = read([bad, whole], (2.0, 24.0))
    assert found.certified
    assert rates[0] == pytest.approx(2.0)
    assert abs(found.values[0] - same.values[0]) < 1e-9
    (found, _), rates = read([bad, whole], (8.0, 11.0))  # nothing would remain
    assert not found.certified
    assert found.values[0] > read([whole], (8.0, 11.0))[0][0].values[0]


def test_a_lone_last_beta_says_nothing_of_lower_rates():
    """Were only the end certified, D there would be read at every rate, as if the curve were vertical all along."""
    curve = linear_curve(decoder(0, latent_dim=2), images(1), noise=0.1)
    end = float(curve.mean("rate")[-1])
    lone = mean_curve(doubted(curve, slice(3, -1)), "lone")
    window = (0.7 * end, end)
    (found, whole), _ = read([lone, mean_curve(curve)], window)
    assert not found.certified
    assert found.values[0] == pytest.approx(whole.values[0], abs=1e-9)
    (found,), rates = read([lone], (1.2 * end, 2 * end))  # above the end it does say what D is
    assert found.certified
    assert found.values[0] == pytest.approx(np.log(curve.mean("distortion")[-1]))
    assert rates == pytest.approx((1.2 * end, 2 * end))


def test_the_vertical_part_does_not_stand_for_what_was_measured():
    """Two thirds of the window lie above the end, where D is known; of the rest only the last bit is certified."""
    curve = linear_curve(decoder(0, latent_dim=2), images(1), noise=0.1)
    end = float(curve.mean("rate")[-1])
    rows = np.flatnonzero(curve.mean("rate") < 0.97 * end)
    window = (0.7 * end, 2 * end)
    (found,), rates = read([mean_curve(doubted(curve, rows))], window)
    assert not found.certified
    assert rates == pytest.approx(window)
    (found,), rates = read([mean_curve(doubted(curve, rows[:-5]))], window)
    assert found.certified
    assert window[0] < rates[0] < end


def test_a_curve_that_ends_early_may_come_down_further():
    curve = mean_curve(linear_curve(decoder(0), images(1), noise=0.1))
    assert least_distortion(curve, curve.beta[-1]).slack < 1e-3
    assert least_distortion(curve, 2 * curve.beta[-1]).slack == np.inf


def test_bounds_hold_on_one_side_only():
    sure, loose, anything = (Reading("a", np.arange(6.0), 0.1, slack) for slack in (0.0, 0.3, np.inf))
    for readings, coefficients, sides in [
        ([sure, loose], [1, -1], (0, 0.3)),
        ([sure, loose], [-1, 2], (0.6, 0)),
        ([loose, anything], [1, -1], (0.3, np.inf)),
        ([sure, sure], [1, -1], (0, 0)),
    ]:
        found = contrast(readings, coefficients)
        assert (found.below, found.above) == sides


@WINDOWS
def test_slack_is_the_variance_of_log_z(window):
    """Where log Z of every image scatters by s, F may be too high by s^2, and ln D by that over beta D."""
    curve = linear_curve(decoder(0), images(1), noise=0.1)
    (reading,), _ = read([mean_curve(curve)], window)
    (higher,), _ = read([mean_curve(raised(curve, 0.01))], window)
    assert reading.slack == pytest.approx(higher.values[0] - reading.values[0], rel=0.05)
    a, b = mean_curve(curve), mean_curve(linear_curve(decoder(0), images(1)), "b")
    for at in ("beta", "distortion"):
        found = excess(a, b, excess_nodes(a, b, 3)[1], at)
        assert (found.below, found.above) == (pytest.approx(0.01), 0)


def test_above_its_end_a_curve_is_vertical_within_what_was_allowed():
    short = linear_curve(decoder(0, latent_dim=2), images(1))
    end = float(short.mean("rate")[-1])
    curve = mean_curve(short, "short")
    (reading,), rates = read([curve], (end + 1, end + 20))
    assert rates == pytest.approx((end + 1, end + 20))
    assert reading.values[0] == pytest.approx(np.log(short.mean("distortion")[-1]))
    cut = mean_curve(short.at(slice(0, 12)), "cut")  # still falling
    with pytest.raises(Uncovered, match=r"too little of 15 .. 30 nats is measured: cut 0\.\d+ .. \d"):
        read([cut], (15, 30))
    with pytest.raises(Uncovered, match=r"too little of 0\.0001 \.\. 0\.001 nats"):
        read([curve], (1e-4, 1e-3))


def test_bound_is_the_convex_hull_of_its_points():
    """Points above a known curve: those that a line between two others passes below do not count."""
    weight, x = decoder(0), images(1)
    true = linear_curve(weight, x, np.geomspace(0.02, 2e4, 60))
    worse = raised(true, 0.5)
    rate = worse.rate.copy()
    rate[30] += 40.0
    spoilt = MeanCurve.bound("spoilt", replace(worse, rate=rate, log_z=-rate - worse.beta[:, None] * worse.distortion))
    whole = MeanCurve.bound("bound", worse)
    for window in (LOW, MID, HIGH):
        (a, b, c), _ = read([mean_curve(true), whole, spoilt], window)
        assert a.values[0] < b.values[0] <= c.values[0] + 1e-12 < b.values[0] + 0.02
        exact_bound = read([mean_curve(worse)], window)[0][0].values[0]
        assert exact_bound - 1e-3 < b.values[0] < exact_bound + 0.01  # chords lie above a convex curve


def test_the_error_of_a_bound_is_that_of_the_channel_which_serves():
    """F = R_k + beta D_k: of R_k nothing is estimated, and D_k counts beta times, whatever beta it was made for."""
    curve = linear_curve(decoder(0), images(1))
    k = 10
    rate = curve.rate + 50.0
    rate[k] -= 50.0  # one channel is better than all others, at most betas
    curve = replace(curve, rate=rate, log_z=-rate - curve.beta[:, None] * curve.distortion)
    curve = replace(curve, distortion_se=np.full_like(rate, 0.3), log_z_se=0.3 * curve.beta[:, None] + 0 * rate)
    bound = MeanCurve.bound("bound", curve)
    serves = bound.distortion[:, 0] == curve.distortion[k].mean()
    assert serves.sum() > 10
    error = bound.potential_se[bound.recorded][serves]
    np.testing.assert_allclose(error, 0.3 / np.sqrt(curve.rate.shape[1]) * curve.beta[serves], rtol=1e-12)


def test_beyond_its_end_a_curve_has_the_error_of_its_last_distortion():
    curve = linear_curve(decoder(0), images(1)).at(slice(0, 20))
    last = 0.02 * curve.distortion[-1].mean()
    curve = replace(curve, distortion_se=curve.distortion_se * 0 + last, log_z_se=curve.log_z_se + 1e-6)
    end = curve.rate[-1].mean()
    (reading,), _ = read([mean_curve(curve)], (1.01 * end, 1.02 * end), prolong=1.0)
    assert reading.se_chains == pytest.approx(0.02 / np.sqrt(curve.rate.shape[1]), rel=1e-6)


def test_a_bound_that_ends_in_bad_channels_ends_in_its_best():
    """An encoder that gets worse at the largest betas: those channels are dropped, and all rates are still covered."""
    worse = raised(linear_curve(decoder(0), images(1), np.geomspace(0.02, 2e4, 60)), 0.5)
    distortion = worse.distortion.copy()
    distortion[-3:] += 1.0
    spoilt = replace(worse, distortion=distortion, log_z=-worse.rate - worse.beta[:, None] * distortion)
    cut = MeanCurve.bound("cut", worse.at(slice(0, -3)))
    bound = MeanCurve.bound("spoilt", spoilt)
    assert np.allclose(bound.rate[-4:], cut.rate[-1])
    assert np.allclose(bound.distortion[-4:], cut.distortion[-1])
    assert least_distortion(bound, 2e4).values[0] == pytest.approx(least_distortion(cut, 2e4).values[0])
    for window in (LOW, MID, HIGH):
        assert read([bound], window)[0][0].values[0] == pytest.approx(read([cut], window)[0][0].values[0], abs=1e-3)


def test_spread_of_known_numbers():
    rng = np.random.default_rng(0)
    base = rng.normal(size=51)  # common to all: no difference
    levels = {"small": [0.0, 0.1], "large": [1.0, 1.2]}
    readings = [Reading("x", base + v, 0.01, 0.001) for group in levels.values() for v in group]
    within, against = spread(readings, np.array([0, 0, 1, 1]))
    expected = (0.1**2 + 0.2**2) / 2
    between = np.mean(np.square([1.0, 1.2, 0.9, 1.1]))
    assert within.value == pytest.approx(expected)
    assert against.value == pytest.approx(expected - between)
    assert within.se_images < 1e-12
    # gradient of the mean square, each reading off by 0.01
    gradient = np.array([-0.1, 0.1, -0.2, 0.2])
    assert within.se_chains == pytest.approx(0.01 * np.linalg.norm(gradient), rel=1e-2)
    # either of a pair may be too high by 0.001
    assert within.above == pytest.approx((0.101**2 + 0.201**2) / 2 - expected)
    assert within.below == pytest.approx(expected - (0.099**2 + 0.199**2) / 2)
    with pytest.raises(ValueError, match="two groups, and two members"):
        spread(readings[:2], np.array([0, 1]))
    loose = [*readings[:3], replace(readings[3], slack=np.inf)]
    within, against = spread(loose, np.array([0, 0, 1, 1]))
    assert within.above == against.above == against.below == np.inf
    assert within.below == pytest.approx(expected - 0.099**2 / 2)  # at worst the other two are equal


@pytest.mark.parametrize("apart", [0.0, 0.02, 0.5])
def test_spread_holds_what_readings_that_are_too_high_may_hide(apart):
    """Readings lowered by up to their slack, also where they coincide: both mean squares stay within reach, and some
    come near its ends."""
    rng = np.random.default_rng(3)
    label, slack = np.array([0, 0, 1, 1]), np.array([0.1, 0.02, 0.0, 0.2])
    readings = [Reading("x", np.full(6, v), 0.0, s) for v, s in zip(apart * np.arange(4), slack, strict=True)]
    found = spread(readings, label)
    lowered = [
        spread(
            [replace(r, values=r.values - s * share) for r, s, share in zip(readings, slack, shares, strict=True)],
            label,
        )
        for shares in [*np.ndindex(2, 2, 2, 2), *rng.uniform(size=(200, 4))]
    ]
    for k in (0, 1):
        truths = np.array([either[k].value for either in lowered])
        assert found[k].value - found[k].below - 1e-12 <= truths.min()
        assert truths.max() <= found[k].value + found[k].above + 1e-12
    assert max(either[0].value for either in lowered) == pytest.approx(found[0].value + found[0].above)


def test_spread_has_the_error_of_the_jackknife():
    """Noise of its own in every reading: the jackknife sees what 2,000 draws scatter by; 15 % is six of its errors."""
    rng = np.random.default_rng(1)
    levels, label = np.array([0.0, 0.3, 1.0, 1.4]), np.array([0, 0, 1, 1])

    def draw():
        scores = levels[:, None] + 0.5 * rng.normal(size=(4, 50))
        without = (scores.sum(1, keepdims=True) - scores) / 49
        values = np.concatenate([scores.mean(1, keepdims=True), without], 1)
        return spread([Reading("x", row, 0.5 / np.sqrt(50), 0.0) for row in values], label)

    draws = [draw() for _ in range(2000)]
    squares = np.square(levels[:, None] - levels)
    within = (squares[0, 1] + squares[2, 3]) / 2
    truth = within, within - squares[:2, 2:].mean()
    for k in (0, 1):
        found = np.array([draw[k].value for draw in draws])
        scatter = found.std()
        assert abs(found.mean() - truth[k]) < 5 * scatter / np.sqrt(2000)  # noise does not make groups look apart
        assert np.mean([draw[k].se_images for draw in draws]) == pytest.approx(scatter, rel=0.15)
        assert np.mean([draw[k].se_chains for draw in draws]) == pytest.approx(scatter, rel=0.15)


def test_unequal_numbers_of_images_have_no_paired_error():
    curves = [linear_curve(decoder(0), images(1, n), noise=0.1) for n in (50, 40)]
    found = difference(*curves, MID)
    assert np.isnan(found.se_images)
    assert found.se_chains > 0
    assert found.n_images == 40


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 49, 50, 499])
def test_student_quantile(degrees):
    for tail in (0.3, 0.05, 0.005, 1e-4, 1e-6):
        assert student_quantile(tail, degrees) == pytest.approx(student.isf(tail, degrees), rel=1e-6)


def test_what_cannot_be_compared_is_named():
    curve = linear_curve(decoder(0), images(1))
    settings = {"dataset": "mnist", "distortion": {"name": "features"}}
    other = replace(curve, facts=curve.facts | {"settings": settings})
    with pytest.raises(ValueError, match=r"a and b cannot be compared: their distortion is .*squared_error.*features"):
        difference(curve, other, MID)
    with pytest.raises(ValueError, match="a: its distortion is not positive"):
        difference(replace(curve, distortion=curve.distortion - 30), curve, MID)
    broken = replace(curve, rate=curve.rate * np.nan)
    with pytest.raises(ValueError, match="b: rate or distortion is not finite"):
        difference(curve, broken, MID)
    with pytest.raises(ValueError, match="a: a curve to compare needs two images and two betas"):
        difference(curve.at(slice(0, 1)), curve, MID)
    with pytest.raises(Uncovered, match="a and b have 2 betas of b in common, of which 2 are certified, not 9"):
        excess_nodes(mean_curve(curve), mean_curve(curve.at(slice(0, 3)), "b"), 9)
    with pytest.raises(Uncovered, match=r"a and b have \d\d betas of b in common, of which 0 are certified, not 9"):
        excess_nodes(mean_curve(curve), mean_curve(doubted(curve, slice(None)), "b"), 9)
