"""Decide a statement about curves: reproduced, not reproduced or undecided, each comparison with its error bar.

A claim is data: a kind, the names it is about, and where. Its kind turns it into comparisons, each of which says that a
difference x lies between two limits. With the quantile q of Student's t (degrees of freedom: images less one), and with
what AIS, which bounds a curve from above, may have left on either side (`rdcurve.comparison`),

    reproduced      the interval x - q se - below .. x + q se + above lies within the limits,
    not reproduced  it lies outside,
    undecided       it does not lie on one side; or curves are not certified, or not measured, where it matters.

All comparisons must be reproduced for the claim to be, so that each takes q at the one-sided level
`false_decision_rate` (intersection-union test, Berger 1982). One that is not refutes the claim, so that for this each
of m comparisons takes q at that level / m (Bonferroni). Either way a claim is decided wrongly with probability
`false_decision_rate` at most, as far as images and chains go: another training of the same model is not in the errors.
Errors are over images, or over chains where the curves are of given images; over runs where, moreover, one tuning was
run twice, so that the bias of AIS is common to both; over bounds, which are errors over the chains, where two
measurements of one model are compared as the bounds that they are, certified or not. Equality is decided by an
equivalence margin (both limits finite, two one-sided tests), never by a difference that is merely not significant.

Differences are in ln D, the relative difference of distortions at equal rate (or in its square), or in nats.

    kind            a comparison                                                                 limits
    below           mean of ln D over a window of rates, first less second                       .. 0
    no_worse        the same                                                                     .. margin
    same            the same                                                                     -margin .. margin
    reaches_lower   ln D at the largest beta, first less second; that of a curve that ends at a
                    smaller beta than the other is known from above alone                        .. 0
    alike_within    mean square difference of ln D within groups; its upper end that of the root
                    mean square, squared, where that is larger                                   .. margin^2
    less_within     the same, less that between groups                                           .. 0
    smaller_margin  two differences as in `below`, the former less the latter                    .. 0
    excess_at_most  -log Z at equal beta, or R at equal distortion, first less second, nats      .. limit + margin
    gap_at_most     the BDMC gap at a beta, nats                                                 .. limit
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from rdcurve.comparison import (
    Difference,
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

__all__ = ["KINDS", "VERDICTS", "Comparison", "Decision", "decide"]

Verdict = Literal["reproduced", "not reproduced", "undecided"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "not reproduced", "undecided")
_GRAVITY: dict[Verdict, int] = {"not reproduced": 0, "undecided": 1, "reproduced": 2}


@dataclass(frozen=True)
class Comparison:
    """One difference, what the claim allows it to be, and what became of it."""

    of: str
    to: str  # what it is compared with
    where: str  # window of rates, beta, or end of the curve
    unit: Literal["ln D", "(ln D)^2", "nats"]
    most: float
    least: float = -math.inf
    difference: Difference | None = None  # none: not measured
    over: Literal["images", "chains", "runs", "bounds"] = "images"  # what the error bar is over
    rates: tuple[float, float] = (math.nan, math.nan)  # nats, that were read
    reason: str = ""
    verdict: Verdict = "undecided"

    @property
    def title(self) -> str:
        """What is compared, and where: in a window, at the rates that could be read."""
        read = "" if math.isnan(self.rates[0]) else " ({:.3g} to {:.3g} nats)".format(*self.rates)
        return f"{self.of} − {self.to}, {self.where}{read}" if self.to else f"{self.of}, {self.where}{read}"

    @property
    def limits(self) -> str:
        """What the claim allows the difference to be."""
        return f"at most {self.most:.3g}" if self.least == -math.inf else f"{self.least:.3g} to {self.most:.3g}"

    @property
    def standard_error(self) -> float:
        """Of the difference; NaN where there is none."""
        if self.difference is None:
            return math.nan
        return self.difference.se_images if self.over == "images" else self.difference.se_chains

    @property
    def support(self) -> float:
        """Distance of the difference to the nearer limit, in standard errors; negative outside the limits."""
        if self.difference is None:
            return -math.inf
        distance = min(self.difference.value - self.least, self.most - self.difference.value)
        return distance / self.standard_error if self.standard_error > 0 else math.copysign(math.inf, distance)

    def decided(self, level: float, n: int) -> Comparison:
        """The same with a verdict, as one of the n comparisons of a claim that is decided at this level.

        Raises:
            ValueError: the difference has no error bar.
        """
        if self.difference is None:
            return self
        if not math.isfinite(self.standard_error):
            why = (
                "curves of unequal numbers of images cannot be paired: leave all_images out, or compare them over: "
                "chains where the kind of claim knows it"
            )
            raise ValueError(
                f"{self.of} and {self.to}: no error over the {self.over}" + f"; {why}" * (self.over == "images")
            )
        x, se = self.difference, self.standard_error
        one, any_of_all = (student_quantile(p, x.n_images - 1) for p in (level, level / n))

        def verdict(below: float, above: float) -> Verdict:
            if self.least <= x.value - one * se - below and x.upper(se, one) + above <= self.most:
                return "reproduced"
            low, high = x.value - any_of_all * se - below, x.value + any_of_all * se + above
            return "not reproduced" if high < self.least or low > self.most else "undecided"

        found = verdict(x.below, x.above)
        if found != "undecided":
            return replace(self, verdict=found, reason="")
        if verdict(0, 0) == "undecided":
            return replace(self, reason="the error bar reaches across a limit")
        certified = math.isfinite(x.below) and math.isfinite(x.above)
        loose = "a curve may be too high by as much" if certified else "a curve is not certified here"
        return replace(self, reason=self.reason or loose)

    def row(self) -> dict[str, Any]:
        """As a line of a table."""
        x = self.difference
        return {
            "first": self.of,
            "second": self.to,
            "where": self.where,
            "rate_from": self.rates[0],
            "rate_to": self.rates[1],
            "difference": math.nan if x is None else x.value,
            "standard_error": self.standard_error,
            "standard_error_images": math.nan if x is None else x.se_images,
            "standard_error_chains": math.nan if x is None else x.se_chains,
            "below": math.nan if x is None else x.below,
            "above": math.nan if x is None else x.above,
            "unit": self.unit,
            "least": self.least,
            "most": self.most,
            "verdict": self.verdict,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Decision:
    """A claim and what became of each of its comparisons."""

    id: str
    statement: str
    comparisons: tuple[Comparison, ...]

    @property
    def decisive(self) -> Comparison:
        """The comparison that settles the verdict: the gravest, and of those the one with the least support."""
        return min(self.comparisons, key=lambda comparison: (_GRAVITY[comparison.verdict], comparison.support))

    @property
    def verdict(self) -> Verdict:
        """Of the claim as a whole."""
        return self.decisive.verdict

    def counts(self) -> dict[str, int]:
        """How many of the comparisons got which verdict."""
        return {verdict: sum(c.verdict == verdict for c in self.comparisons) for verdict in VERDICTS}


def decide(
    entry: Mapping[str, Any], curves: Mapping[str, MeanCurve], gaps: Mapping[str, pd.DataFrame]
) -> list[Decision]:
    """Decide all claims of a figure.

    Args:
        entry: of the section `claims` of params.yaml: the rule (windows, margin, false_decision_rate, least_coverage,
            prolong, n_betas) and the claims.
        curves: name -> mean curve, of the names that `rdcurve.settings.names_of_claims` lists.
        gaps: name -> table of BDMC points (beta, gap, gap_se, n_images).

    Raises:
        ValueError: an unknown kind, curve or window; curves that cannot be compared. Names it and the legal ones.
    """
    decisions = []
    for claim in entry["claims"]:
        try:
            _one_of("kind", claim["kind"], KINDS)
            case = _Case(claim, entry, _Named("curve", curves), _Named("BDMC table", gaps))
            comparisons = list(KINDS[claim["kind"]](case))
            if not comparisons:
                raise ValueError("nothing to compare")
            level, n = entry["false_decision_rate"], len(comparisons)
            decided = tuple(comparison.decided(level, n) for comparison in comparisons)
        except ValueError as error:
            raise ValueError(f"claim {claim['id']}: {error}") from error
        decisions.append(Decision(claim["id"], claim["statement"], decided))
    return decisions


class _Case(NamedTuple):
    """A claim with what it is decided from."""

    claim: Mapping[str, Any]
    rule: Mapping[str, Any]
    curves: Mapping[str, MeanCurve]
    gaps: Mapping[str, pd.DataFrame]

    @property
    def margin(self) -> float:
        """Of ln D: the claim's own, or that of the figure."""
        return self.claim.get("margin", self.rule["margin"])

    def read(
        self, empty: Comparison, curves: Sequence[str], combine: Callable[[list[Reading]], Difference]
    ) -> Comparison:
        """The comparison with its difference over a window of rates, or with the reason why there is none."""
        _one_of("window", empty.where, self.rule["windows"])
        try:
            readings, rates = mean_log_distortion(
                [self.curves[name] for name in curves],
                self.rule["windows"][empty.where],
                prolong=self.rule["prolong"],
                least_coverage=self.rule["least_coverage"],
            )
        except Uncovered as error:
            return replace(empty, reason=str(error))
        return replace(empty, difference=combine(readings), rates=rates, reason=_uncertified(readings))


def _at_equal_rate(case: _Case, least: float, most: float) -> Iterator[Comparison]:
    """Limits in margins."""
    over = case.claim.get("over", "images")
    for first, second in case.claim["pairs"]:
        for window in case.claim["windows"]:
            empty = Comparison(first, second, window, "ln D", most * case.margin, least * case.margin, over=over)
            difference = {"runs": _of_runs, "bounds": _as_drawn}.get(over, partial(contrast, coefficients=[1, -1]))
            found = case.read(empty, [first, second], difference)
            yield replace(found, reason="") if over == "bounds" and found.difference is not None else found


def _of_runs(readings: list[Reading]) -> Difference:
    """First less second, of one tuning: what they are too high by on average is the same, and drops out."""
    found = contrast(readings, [1, -1])
    certified = all(reading.certified for reading in readings)
    return replace(found, below=0.0, above=0.0) if certified else found


def _as_drawn(readings: list[Reading]) -> Difference:
    """First less second, whatever either may lie above the truth."""
    return replace(contrast(readings, [1, -1]), below=0.0, above=0.0)


def _reaches_lower(case: _Case) -> Iterator[Comparison]:
    for first, second in case.claim["pairs"]:
        curves = [case.curves[name] for name in (first, second)]
        beta_max = max(curve.beta[-1] for curve in curves)
        readings = [least_distortion(curve, beta_max) for curve in curves]
        short = [f"{curve.name} at beta = {curve.beta[-1]:.4g}" for curve in curves if curve.beta[-1] < beta_max]
        reason = f"ends before the other: {', '.join(short)}" if short else _uncertified(readings)
        empty = Comparison(first, second, "end", "ln D", 0.0, reason=reason)
        yield replace(empty, difference=contrast(readings, [1, -1]))


def _spread(case: _Case, of: int, to: str, most: float) -> Iterator[Comparison]:
    groups = case.claim["groups"]
    label = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    members = [name for group in groups for name in group]
    for window in case.claim["windows"]:
        empty = Comparison("within groups", to, window, "(ln D)^2", most * case.margin**2)
        yield case.read(empty, members, lambda readings: spread(readings, label)[of])


def _smaller_margin(case: _Case) -> Iterator[Comparison]:
    for pair in case.claim["margins"]:
        smaller, larger = pair["smaller"], pair["larger"]
        for window in case.claim["windows"]:
            empty = Comparison(f"({' − '.join(smaller)})", f"({' − '.join(larger)})", window, "ln D", 0.0)
            yield case.read(empty, [*smaller, *larger], lambda readings: contrast(readings, [1, -1, -1, 1]))


def _excess_at_most(case: _Case) -> Iterator[Comparison]:
    for item in case.claim["excesses"]:
        (first, second), most = item["pair"], item["limit"] + case.claim["margin"]
        a, b = case.curves[first], case.curves[second]
        try:
            nodes = excess_nodes(a, b, case.rule["n_betas"])
        except Uncovered as error:
            yield Comparison(first, second, "all betas", "nats", most, reason=str(error))
            continue
        for node in nodes:
            where = f"beta = {b.beta[b.recorded[node]]:.4g}"
            yield Comparison(first, second, where, "nats", most, difference=excess(a, b, node, case.claim["at"]))


def _gap_at_most(case: _Case) -> Iterator[Comparison]:
    for name in case.claim["gaps"]:
        if case.gaps[name].empty:
            yield Comparison(name, "", "all betas", "nats", case.claim["limit"], reason="BDMC measured nothing")
        for point in case.gaps[name].itertuples():
            empty = Comparison(name, "", f"beta = {point.beta:.4g}", "nats", case.claim["limit"])
            gap = Difference(point.gap, point.gap_se, math.nan, int(point.n_images))
            if math.isfinite(point.gap) and math.isfinite(point.gap_se):
                yield replace(empty, difference=gap)
            else:
                yield replace(empty, reason=f"BDMC found a gap of {point.gap:g} ± {point.gap_se:g} nats")


KINDS: dict[str, Callable[[_Case], Iterator[Comparison]]] = {
    "below": partial(_at_equal_rate, least=-math.inf, most=0),
    "no_worse": partial(_at_equal_rate, least=-math.inf, most=1),
    "same": partial(_at_equal_rate, least=-1, most=1),
    "reaches_lower": _reaches_lower,
    "alike_within": partial(_spread, of=0, to="", most=1),
    "less_within": partial(_spread, of=1, to="between groups", most=0),
    "smaller_margin": _smaller_margin,
    "excess_at_most": _excess_at_most,
    "gap_at_most": _gap_at_most,
}


def _uncertified(readings: Sequence[Reading]) -> str:
    bounds = [reading.name for reading in readings if not reading.certified]
    return f"not certified here: {', '.join(bounds)}" if bounds else ""


def _one_of(what: str, name: str, legal: Mapping[str, Any]) -> None:
    if name not in legal:
        raise ValueError(f"{what} {name!r} is not one of {', '.join(legal)}")


class _Named(dict[str, Any]):
    """A mapping whose missing keys are named, with the legal ones."""

    def __init__(self, what: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._what = what

    def __missing__(self, name: str) -> Any:
        _one_of(self._what, name, self)
