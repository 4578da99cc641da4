"""Should a curve be believed? Every diagnostic against its limit, in words that say what to change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rdcurve.curve import LEAST_IMAGES, MOST_BENT, RDCurve
from rdcurve.sampler.sizing import compare

__all__ = ["Verdict", "verdict"]

LEAST_ACCEPTANCE = 0.4
LEAST_ESS = 2.0  # chains, median over the images
MOST_K_HAT = 0.7  # median over the images
MOST_SE = 0.02  # of the mean rate over the chains, as a share of the rate
_SMALL_SHARE = 0.2  # of the images that may be bad before the mean curve is


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a curve; nothing, if `warnings` is empty. The notes say what could not be looked at."""

    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def reliable(self) -> bool:
        """No warning."""
        return not self.warnings

    def __str__(self) -> str:
        head = "look before you believe it" if self.warnings else "reliable"
        if self.reliable and self.notes:
            head += ", as far as can be told"
        return "\n".join([f"verdict: {head}", *(f"  - {line}" for line in (*self.warnings, *self.notes))])


def verdict(curve: RDCurve, gaps: pd.DataFrame | None = None, gap: float | None = None) -> Verdict:
    """Compare acceptance, effective sample size, k-hat, error, shape, certificate and BDMC gap with their limits.

    Args:
        curve: measured.
        gaps: BDMC points (beta, gap, gap_se); default: those that came with the curve, if any.
        gap: nats, largest gap allowed; default: what was asked for, else 0.5 or 1 % of the largest rate.
    """
    found: list[str] = []
    notes: list[str] = []
    arrays = [curve.rate, curve.distortion, curve.log_z]
    if not all(np.isfinite(array).all() for array in arrays):
        return Verdict(("rate, distortion or log Z is not finite: the weights overflowed or no chain moved",))
    low = (curve.acceptance < LEAST_ACCEPTANCE).mean(1)
    _at(found, curve, low > _SMALL_SHARE, "acceptance below {limit}: raise prerun.target_acceptance or n_rounds",
        limit=LEAST_ACCEPTANCE)  # fmt: skip
    few = np.median(curve.ess, 1)
    _at(found, curve, few < LEAST_ESS, "effective sample size below {limit} chains: more temperatures (a smaller gap)",
        limit=LEAST_ESS)  # fmt: skip
    if np.isnan(curve.k_hat).all():
        notes.append("k-hat of the weights was not looked at: it needs 25 chains or more")
    else:
        # of a few dozen weights k-hat itself is noisy: a median over the images, less twice its own error
        low, middle, high = np.nanpercentile(np.clip(curve.k_hat, -1, 3), [25, 50, 75], axis=1)
        heavy = middle - 2 * (high - low) / np.sqrt(curve.k_hat.shape[1]) > MOST_K_HAT
        # the tail of weights that are nearly equal is of no account
        heavy &= few < 0.5 * curve.facts["n_chains"]
        _at(found, curve, heavy, "k-hat above {limit}, weights with a heavy tail: more temperatures",
            limit=MOST_K_HAT)  # fmt: skip
    rate, error = curve.mean("rate"), curve.standard_error("rate", "chains")
    noisy = (error > MOST_SE * np.abs(rate)) & (error > 0.5)
    _at(found, curve, noisy, "rate known to no better than {limit:.0%}: more chains", limit=MOST_SE)
    _at(found, curve, rate < -MOST_BENT * error - 1e-9, "rate below 0 by more than {limit} standard errors: is the "
        "prior's log_prob that of its samples?", limit=MOST_BENT)  # fmt: skip
    _at(found, curve, curve.bent, "rate and distortion are not monotone and convex, with slope -beta, within {limit} "
        "standard errors: some images found new modes late", limit=MOST_BENT)  # fmt: skip
    if not curve.facts.get("n_searches"):
        halves = curve.doubt.mean(1)
        _at(found, curve, halves > 1.0, "the two halves of the chains disagree by more than {limit} nat: more "
            "temperatures or chains", limit=1)  # fmt: skip
        notes.append("not certified, which takes two routes: the second one needs chains in groups (32, say, go in "
                     "eights), a prior without walls, a learned schedule, and n_starts")  # fmt: skip
    elif (n_images := curve.rate.shape[1]) < LEAST_IMAGES:
        notes.append(f"not certified, which takes {LEAST_IMAGES} images or more, not {n_images}: on so few nothing "
                     "tells of a narrow mode that every start has missed")  # fmt: skip
    else:
        _at(found, curve, ~curve.certified & ~curve.bent, "not certified: independent determinations of log Z differ "
            "by more than {limit} nat (mean over the images) or 3 (on one in twenty), or agree on what was found less "
            "than three times; the curve is a bound there, no estimate; more chains may find it more often, "
            "and searches for modes that hop (n_hops, --hops)",
            limit=curve.facts["tolerance"])  # fmt: skip
        alone = (curve.doubt > 3 * curve.facts["tolerance"]) & curve.certified[:, None]
        if alone.any():
            images = ", ".join(map(str, np.flatnonzero(alone.any(0))))
            notes.append(f"certified as a mean over the images; alone, log Z of these is in doubt by more than "
                         f"{3 * curve.facts['tolerance']:g} nats at some beta: {images}")  # fmt: skip
    sizing = curve.facts.get("prerun", {})
    if not sizing.get("reached", True):
        found.append(
            f"the gap of {sizing['gap']:g} nats that was asked for is not reached: {sizing['trials'][-1]['gap']:.2f} ± "
            f"{sizing['trials'][-1]['gap_se']:.2f} nats in the last trial; raise max_temperatures"
        )
    gaps = curve.gaps if gaps is None else gaps
    if gaps is not None and len(gaps):  # under some distortions nothing can be simulated
        allowed = sizing.get("gap", max(0.5, 0.01 * float(rate.max()))) if gap is None else gap
        seen = compare(gaps, allowed)
        if seen.kept is False:
            found.append(f"BDMC gap of {seen}, above {allowed:.2f}: more temperatures (ask for a smaller gap)")
        elif seen.kept is None:
            notes.append(f"BDMC gap of {seen}: whether it keeps below {allowed:.2f} takes more simulated images")
        # on average over the images a gap is positive; the mean over the betas is known better than each
        mean, error = gaps["gap"].mean(), np.sqrt(np.square(gaps["gap_se"]).sum()) / len(gaps)
        if mean < -MOST_BENT * error:
            found.append(f"BDMC gaps are negative, {mean:.2f} ± {error:.2f} nats on average: does the distortion's "
                         "`sample` draw from exp(-beta d)?")  # fmt: skip
    return Verdict(tuple(found), tuple(notes))


def _at(found: list[str], curve: RDCurve, where: np.ndarray, text: str, **values: float) -> None:
    if where.any():
        betas = curve.beta[where]
        span = f"{betas[0]:.3g}" if len(betas) == 1 else f"{betas[0]:.3g} .. {betas[-1]:.3g} ({len(betas)} points)"
        found.append(f"beta = {span}: {text.format(**values)}")
