"""How two curves measured on the same images differ, and how well that is known.

The mean curve of a model is held by F(beta) = R + beta D = -log Z(beta), a mean over the images: concave, with F' = D.
Rate and distortion are its Legendre transforms,

    R(D) = max_beta F(beta) - beta D,        D(R) = max_beta (F(beta) - R) / beta,

decreasing and convex whatever the noise. By the envelope theorem only the noise of F at the best beta reaches them;
that of D, which at a high rate is multiplied by beta, drops out. Between recorded betas F is a cubic Hermite spline in
log beta with the slopes beta D, once the line that it approaches at high rates is taken out.

Images are a sample. Every number is computed from all of them and again without each one, and curves are compared
replicate by replicate: the jackknife error of a difference is that of paired images (Efron and Tibshirani 1993,
chapter 11). It contains the Monte Carlo error over the chains, which is also given alone: the error for these very
images.

AIS bounds a curve from above, in expectation: an unbiased estimate of Z whose logarithm scatters by s has a logarithm
that is too low by s^2 / 2, to leading order. So F is believed to be too high by anything from nothing to the mean of
s^2 over the images, twice that; and where it is not certified, by anything at all. `Difference` says how far the truth
may lie to each side for that reason alone. What the certificate cannot see, a mode that no chain and no search has
found, is in no error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rdcurve.curve import RDCurve

__all__ = [
    "Difference",
    "MeanCurve",
    "Reading",
    "Uncovered",
    "contrast",
    "excess",
    "excess_nodes",
    "least_distortion",
    "mean_log_distortion",
    "spread",
    "student_quantile",
]

_BETWEEN = 32  # betas per recorded one: the maximum over them is then exact to 1e-3 nats for 100 dimensions
_RATES = 25  # at which a window is read, evenly in log rate


class Uncovered(ValueError):
    """Curves do not cover what they were to be compared on; says which, and what they cover."""


@dataclass(frozen=True)
class MeanCurve:
    """The mean curve of N images on a fine grid of G betas, K of them recorded.

    Replicates stand last, [1 + N]: the mean over all images, then without each of them.
    """

    name: str
    measured_on: Mapping[str, object]  # data set and distortion, where the curve says so
    beta: np.ndarray  # [G]
    potential: np.ndarray  # [G, 1 + N], F in nats
    potential_se: np.ndarray  # [G], of the mean over all images, over the chains
    slack: np.ndarray  # [G], by how much F may be too high, nats; infinite where it is not certified
    recorded: np.ndarray  # [K], places of the recorded betas in the grid
    distortion: np.ndarray  # [K, 1 + N]
    distortion_se: np.ndarray  # [K], over the chains

    @classmethod
    def measured(cls, name: str, curve: RDCurve) -> MeanCurve:
        """A curve of the optimal channels, where F' = D, such as AIS measures."""
        _check(name, curve)
        potential = curve.rate + curve.beta[:, None] * curve.distortion
        beta, fine = _hermite(curve.beta, potential, curve.distortion)
        place = np.arange(len(beta)) / _BETWEEN
        certified = curve.certified[np.floor(place).astype(int)] & curve.certified[np.ceil(place).astype(int)]
        nodes = np.arange(len(curve.beta))
        error = np.interp(place, nodes, curve.standard_error("log_z", "chains"))
        slack = np.where(certified, np.interp(place, nodes, np.square(curve.log_z_se).mean(1)), np.inf)
        return cls._of(name, curve, beta, _replicates(fine), error, slack)

    @classmethod
    def bound(cls, name: str, curve: RDCurve) -> MeanCurve:
        """A curve of whatever channels, one per point, such as a variational bound: nothing in it needs a certificate.

        Every channel serves every beta, so that F is the lowest of the lines R_k + beta D_k; its transform is the lower
        convex hull of the points.
        """
        _check(name, curve)
        beta = _refine(curve.beta)
        distortion, rate = _replicates(curve.distortion), _replicates(curve.rate)
        lines = rate[:, :1] + beta * distortion[:, :1]  # [K, G], of the mean over all images
        best = lines.argmin(0)
        potential = rate[best] + beta[:, None] * distortion[best]
        error = beta * curve.standard_error("distortion", "chains")[best]  # R_k is no estimate
        channels = curve.at(best[::_BETWEEN])  # at a recorded beta another channel than its own may be the best
        return cls._of(name, channels, beta, potential, error, np.zeros(len(beta)))

    @classmethod
    def _of(
        cls,
        name: str,
        curve: RDCurve,
        beta: np.ndarray,
        potential: np.ndarray,
        error: np.ndarray,
        slack: np.ndarray,
    ) -> MeanCurve:
        settings = curve.facts.get("settings", {})
        return cls(
            name=name,
            measured_on={key: settings[key] for key in ("dataset", "distortion") if key in settings},
            beta=beta,
            potential=potential,
            potential_se=error,
            slack=slack,
            recorded=np.arange(len(curve.beta)) * _BETWEEN,
            distortion=_replicates(curve.distortion),
            distortion_se=curve.standard_error("distortion", "chains"),
        )

    @property
    def certified(self) -> np.ndarray:
        """[G]."""
        return np.isfinite(self.slack)

    @property
    def n_images(self) -> int:
        return self.potential.shape[1] - 1

    @property
    def rate(self) -> np.ndarray:
        """[K, 1 + N], at the recorded betas."""
        return self.potential[self.recorded] - self.beta[self.recorded, None] * self.distortion


@dataclass(frozen=True)
class Reading:
    """A number read off a mean curve."""

    name: str
    values: np.ndarray  # [1 + N] replicates
    se_chains: float
    slack: float  # by how much it may be too high

    @property
    def certified(self) -> bool:
        return math.isfinite(self.slack)


@dataclass(frozen=True)
class Difference:
    """A combination of readings."""

    value: float
    se_images: float  # of these images as a sample; contains that over the chains. NaN where images cannot be paired
    se_chains: float  # for these very images
    n_images: int
    below: float = 0.0  # by how much the truth may lie below the value, beyond its error
    above: float = 0.0  # and above it
    root: tuple[float, float] | None = None  # of a mean square: its root, all noise in it, and the error over images

    def upper(self, standard_error: float, quantile: float) -> float:
        """Upper end of the interval, `above` left aside.

        A mean square near zero has no slope in what it is a square of: its error vanishes there, and it may be negative
        when noise is taken off. So its upper end is never below the square of that of its root.
        """
        end = self.value + quantile * standard_error
        return end if self.root is None else max(end, (self.root[0] + quantile * self.root[1]) ** 2)


def mean_log_distortion(
    curves: Sequence[MeanCurve], window: tuple[float, float], *, prolong: float, least_coverage: float
) -> tuple[list[Reading], tuple[float, float]]:
    """ln D(R), averaged evenly in log R over the same rates for every curve.

    Above its largest rate R_K a curve is vertical: D lies between D_K - (R - R_K) / beta_K and D_K, and D_K is taken
    where that is narrow enough. What is not certified does not enter, if enough of the window remains, and of what each
    curve has of it below its R_K; otherwise the whole window is read, and the readings that it spoils are marked as
    bounds.

    Args:
        curves: to be compared.
        window: rates from .. to, nats.
        prolong: how narrow, as a share of D_K.
        least_coverage: share of the window (in log rate) that all curves must cover; and of the part of it that lies
            below the largest rate of each.

    Returns:
        A reading per curve, and the rates from .. to that were read.

    Raises:
        Uncovered: less than that share is covered.
        ValueError: a distortion is not positive; curves on other data or distortions.
    """
    _comparable(curves)
    rates = np.geomspace(*window, _RATES)
    for certified_only in (True, False):
        read = [_distortion_at(curve, rates, prolong, certified_only) for curve in curves]
        use = np.logical_and.reduce([covered for _, _, covered in read])
        # where curves are vertical all betas say the same; that alone must not stand for what was measured before
        measured = [rates <= curve.rate[-1, 0] for curve in curves]
        if min(use[part].mean() for part in (slice(None), *measured) if use[part].size) >= least_coverage:
            break
    else:
        ends = ", ".join(f"{curve.name} {curve.rate[0, 0]:.3g} .. {curve.rate[-1, 0]:.3g}" for curve in curves)
        raise Uncovered(f"too little of {window[0]:g} .. {window[1]:g} nats is measured: {ends}")
    readings = []
    for curve, (distortion, best, _) in zip(curves, read, strict=True):
        distortion, best = distortion[use], best[use]
        _check_positive(curve, distortion)
        # errors at neighbouring rates come from the same chains: they add up
        per_nat = 1 / (curve.beta[best] * distortion[:, 0])
        vertical = distortion[:, 0] == curve.distortion[-1, 0]  # D itself, whose noise does not drop out
        error = np.where(vertical, curve.distortion_se[-1] / distortion[:, 0], curve.potential_se[best] * per_nat)
        slack = curve.slack[best] * per_nat
        readings.append(Reading(curve.name, np.log(distortion).mean(0), float(error.mean()), float(slack.mean())))
    return readings, (float(rates[use][0]), float(rates[use][-1]))


def least_distortion(curve: MeanCurve, beta_max: float) -> Reading:
    """ln D at the largest beta, the left end of the curve; where that is below beta_max, it may come down further."""
    values = curve.distortion[-1]
    _check_positive(curve, values)
    slack = curve.slack[-1] / (curve.beta[-1] * values[0]) if curve.beta[-1] >= beta_max else math.inf
    return Reading(curve.name, np.log(values), float(curve.distortion_se[-1] / values[0]), float(slack))


def excess_nodes(a: MeanCurve, b: MeanCurve, n: int) -> list[int]:
    """`n` of the recorded betas of b, spread evenly, at which `excess` of a over b can be read.

    Raises:
        Uncovered: there are fewer.
        ValueError: curves on other data or distortions.
    """
    _comparable([a, b])
    common = []
    for node, place in enumerate(b.recorded):
        best = int((a.potential[:, 0] - a.beta * b.distortion[node, 0]).argmax())
        if a.beta[0] <= b.beta[place] <= a.beta[-1] and 0 < best < len(a.beta) - 1:
            common.append(node)
    inside = [node for node in common if b.certified[b.recorded[node]]]
    if len(inside) < n:
        raise Uncovered(
            f"{a.name} and {b.name} have {len(common)} betas of {b.name} in common, of which {len(inside)} are "
            f"certified, not {n}"
        )
    return [inside[k] for k in np.linspace(0, len(inside) - 1, n).round().astype(int)]


def excess(a: MeanCurve, b: MeanCurve, node: int, at: Literal["beta", "distortion"]) -> Difference:
    """What a costs more than b, in nats, at a recorded beta of b.

    At equal beta: the difference of -log Z. At equal distortion: R_a(D) - R_b(D) at the distortion of b, in every
    replicate its own, because near the end of a curve the rate at a fixed distortion is set by the images alone.
    """
    _comparable([a, b])
    place = b.recorded[node]
    if at == "beta":
        upper = int(np.clip(np.searchsorted(a.beta, b.beta[place]), 1, len(a.beta) - 1))
        share = (b.beta[place] - a.beta[upper - 1]) / (a.beta[upper] - a.beta[upper - 1])
        values = (1 - share) * a.potential[upper - 1] + share * a.potential[upper]
        first = Reading(a.name, values, float(a.potential_se[upper]), float(a.slack[upper - 1 : upper + 1].max()))
        second = Reading(b.name, b.potential[place], float(b.potential_se[place]), float(b.slack[place]))
    else:
        shared = b.distortion[node]
        height = a.potential - a.beta[:, None] * shared  # [G, 1 + N]
        best = int(height[:, 0].argmax())
        slope_error = abs(b.beta[place] - a.beta[best]) * b.distortion_se[node]
        error = math.hypot(a.potential_se[best], slope_error)
        first = Reading(a.name, height.max(0), error, float(a.slack[best]))
        second = Reading(b.name, b.rate[node], float(b.potential_se[place]), float(b.slack[place]))
    return contrast([first, second], [1, -1])


def contrast(readings: Sequence[Reading], coefficients: Sequence[float]) -> Difference:
    """The sum of coefficient times reading, image paired with image.

    A reading that may be too high widens the lower side of the sum where its coefficient is positive, the upper side
    where it is negative.
    """
    weights = np.asarray(coefficients, dtype=float)
    values, paired = _stack(readings)
    return Difference(
        value=float(weights @ values[:, 0]),
        se_images=_jackknife((weights @ values)[1:]) if paired else math.nan,
        se_chains=float(np.sqrt(sum((w * r.se_chains) ** 2 for w, r in zip(weights, readings, strict=True)))),
        n_images=_n_images(readings),
        below=sum(w * r.slack for w, r in zip(weights, readings, strict=True) if w > 0),
        above=sum(-w * r.slack for w, r in zip(weights, readings, strict=True) if w < 0),
    )


def spread(readings: Sequence[Reading], label: np.ndarray) -> tuple[Difference, Difference]:
    """Mean square difference of readings with the same label; the same, less that with different labels.

    The square of a noisy difference is too large by the variance of the noise, which is taken off, as the jackknife
    over images knows it, or the chains where images cannot be paired. A mean square may thus be negative; its root,
    with the noise, is kept for `Difference.upper`.

    Raises:
        ValueError: no two readings with the same label, or one label only.
    """
    i, j = np.triu_indices(len(readings), 1)  # pairs
    alike = label[i] == label[j]
    if alike.all() or not alike.any():
        raise ValueError("spread needs two groups, and two members in one of them")
    values, paired = _stack(readings)

    def mean_squares(values: np.ndarray) -> np.ndarray:
        squares = np.square(values[i] - values[j])
        within, between = (squares[kind].mean(0) for kind in (alike, ~alike))
        return np.stack([within, within - between])

    chains = np.array([reading.se_chains for reading in readings])
    if paired:
        noise = np.array([_jackknife(row) ** 2 for row in (values[i] - values[j])[:, 1:]])
    else:
        noise = np.square(chains[i]) + np.square(chains[j])
    within, between = noise[alike].mean(), noise[~alike].mean()
    both = mean_squares(values) - np.array([[within], [within - between]])  # [2, 1 + N]

    def effect(k: int, size: float) -> np.ndarray:
        """[2], of a reading that is off by so much: central differences."""
        shifted = values[:, :1] + np.outer(np.arange(len(readings)) == k, [size, -size])
        up, down = mean_squares(shifted).T
        return (up - down) / 2

    variance = sum(np.square(effect(k, reading.se_chains)) for k, reading in enumerate(readings))
    # where the true difference of a pair may lie: either reading may be too high by its slack
    slack = np.array([reading.slack for reading in readings])
    difference = values[i, 0] - values[j, 0]
    low, high = difference - slack[i], difference + slack[j]
    more = np.square(np.maximum(-low, high)) - np.square(difference)
    less = np.square(difference) - np.square(np.maximum(0.0, np.maximum(low, -high)))
    reach = [(less[alike].mean(), more[alike].mean())]
    reach.append((reach[0][0] + more[~alike].mean(), reach[0][1] + less[~alike].mean()))
    within, against = (
        Difference(
            value=float(both[k, 0]),
            se_images=_jackknife(both[k, 1:]) if paired else math.nan,
            se_chains=float(np.sqrt(variance[k])),
            n_images=_n_images(readings),
            below=float(reach[k][0]),
            above=float(reach[k][1]),
        )
        for k in (0, 1)
    )
    root = np.sqrt(mean_squares(values)[0])
    return replace(within, root=(float(root[0]), _jackknife(root[1:]))) if paired else within, against


def student_quantile(tail: float, degrees: int) -> float:
    """t with P(T > t) = tail for Student's T; `tail` below one half.

    Bisection on the finite series of the distribution (Abramowitz and Stegun 1972, 26.7.3 and 26.7.4).

    Examples:
        >>> round(student_quantile(0.005, 49), 4)
        2.68
    """

    def upper_tail(t: float) -> float:
        angle = math.atan(t / math.sqrt(degrees))
        odd = degrees % 2
        term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
        for k in range(degrees // 2):
            total += term
            term *= (2 * k + 2) / (2 * k + 3) * math.cos(angle) ** 2 if odd else (
                (2 * k + 1) / (2 * k + 2) * math.cos(angle) ** 2
            )  # fmt: skip
        within = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
        return (1 - within) / 2

    low, high = 0.0, 1.0
    while upper_tail(high) > tail:
        high *= 2
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if upper_tail(middle) > tail else (low, middle)
    return (low + high) / 2


def _distortion_at(
    curve: MeanCurve, rates: np.ndarray, prolong: float, certified_only: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """D(R) [P, 1 + N]; the place [P] of the best beta for all images; where the rate is covered, [P].

    Where F is not certified it may be far too high, and then wins the maximum for rates that lie elsewhere.
    """
    allowed = curve.certified if certified_only else np.ones(len(curve.beta), dtype=bool)
    if not allowed.any():
        return np.empty((len(rates), curve.n_images + 1)), np.zeros(len(rates), int), np.zeros(len(rates), bool)
    place = np.flatnonzero(allowed)
    potential, beta = curve.potential[place], curve.beta[place, None]
    best = np.empty(len(rates), dtype=int)
    distortion = np.empty((len(rates), potential.shape[1]))
    for p, rate in enumerate(rates):
        height = (potential - rate) / beta
        distortion[p], best[p] = height.max(0), place[height[:, 0].argmax()]
    last = len(curve.beta) - 1
    inside = (best > 0) & (best < last) & allowed[best - 1] & allowed[np.minimum(best + 1, last)]
    if allowed[last]:
        distortion = np.maximum(distortion, curve.distortion[-1])
        beyond = (rates - curve.rate[-1, 0]) / curve.beta[-1]
        # below the curve's end the last beta is best only where it is the only one that may be: nothing is known there
        at_end = (best == last) & (allowed[last - 1] | (beyond >= 0))
        inside |= at_end & (beyond <= prolong * abs(curve.distortion[-1, 0]))
    return distortion, best, inside


def _hermite(beta: np.ndarray, potential: np.ndarray, distortion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F of every image on the fine grid: beta [G] and F [G, N], from F and F' = D at the recorded betas."""
    fine = _refine(beta)
    left, right = beta[:-1, None, None], beta[1:, None, None]
    inner = fine[:-1].reshape(-1, _BETWEEN)[:, :, None]  # [K - 1, between, 1]
    line = distortion[1:, None]  # of slope D at the right end: what is left hardly bends in log beta
    start = potential[:-1, None] - left * line
    end = potential[1:, None] - right * line
    slope = left * (distortion[:-1, None] - line)  # in log beta; zero at the right end
    width = np.log(right / left)
    t = np.log(inner / left) / width
    rest = start + (end - start) * t**2 * (3 - 2 * t) + width * slope * t * (1 - t) ** 2
    inside = (rest + inner * line).reshape(len(fine) - 1, -1)
    return fine, np.concatenate([inside, potential[-1:]])


def _refine(beta: np.ndarray) -> np.ndarray:
    """`_BETWEEN` steps from each beta to the next, even in log beta; the recorded ones to the bit."""
    places = np.arange((len(beta) - 1) * _BETWEEN + 1) / _BETWEEN
    fine = np.exp(np.interp(places, np.arange(len(beta)), np.log(beta)))
    fine[::_BETWEEN] = beta
    return fine


def _replicates(values: np.ndarray) -> np.ndarray:
    """Mean over the images [., N], and without each of them: [., 1 + N]."""
    n, total = values.shape[1], values.sum(1, keepdims=True)
    return np.concatenate([total / n, (total - values) / (n - 1)], 1)


def _jackknife(without: np.ndarray) -> float:
    n = len(without)
    return float(np.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))


def _stack(readings: Sequence[Reading]) -> tuple[np.ndarray, bool]:
    """Replicates [n, 1 + N] and whether images pair up; without the replicates where they do not."""
    if len({len(reading.values) for reading in readings}) == 1:
        return np.stack([reading.values for reading in readings]), True
    return np.stack([reading.values[:1] for reading in readings]), False


def _n_images(readings: Sequence[Reading]) -> int:
    return min(len(reading.values) for reading in readings) - 1


def _check(name: str, curve: RDCurve) -> None:
    if len(curve.beta) < 2 or curve.rate.shape[1] < 2 or not (np.diff(curve.beta) > 0).all() or curve.beta[0] <= 0:
        raise ValueError(f"{name}: a curve to compare needs two images and two betas, positive and increasing")
    if not (np.isfinite(curve.rate).all() and np.isfinite(curve.distortion).all()):
        raise ValueError(f"{name}: rate or distortion is not finite")


def _check_positive(curve: MeanCurve, distortion: np.ndarray) -> None:
    if (distortion <= 0).any():
        raise ValueError(f"{curve.name}: its distortion is not positive; ratios would say nothing")


def _comparable(curves: Sequence[MeanCurve]) -> None:
    """Two curves of other data or another distortion have nothing in common."""
    for one in curves:
        for other in curves:
            for key in one.measured_on.keys() & other.measured_on.keys():
                if one.measured_on[key] != other.measured_on[key]:
                    raise ValueError(
                        f"{one.name} and {other.name} cannot be compared: their {key} is {one.measured_on[key]} and "
                        f"{other.measured_on[key]}"
                    )
