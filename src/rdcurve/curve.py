"""A measured rate-distortion curve: per image and beta, with its error bars; reads, writes, prints and plots itself."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from rdcurve.files import FileError, load_arrays, save_arrays

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LEAST_IMAGES", "MOST_BENT", "RDCurve", "same_images"]

LEAST_IMAGES = 4  # of a curve that is to be certified
MOST_BENT = 4.0  # standard errors by which a curve may fail to be decreasing or convex

Quantity = Literal["rate", "distortion", "log_z", "rate_cv", "distortion_cv"]


@dataclass(frozen=True)
class RDCurve:
    """R(D) of N images at K values of beta; all float64 but the codes. Rates and log Z are in nats, distortions in
    units of d, which those of beta undo.

    AIS makes it an upper bound: `log_z` is in expectation a lower bound on log Z(beta), and the curve
    (`distortion`, `rate`) lies in expectation on or above the true one (paper, Prop. 4).

    Attributes:
        beta: [K], increasing; -beta is the slope dR/dD of the curve.
        rate: [K, N], R = -log Z - beta D.
        distortion: [K, N], D = E d under the weighted chains.
        log_z: [K, N], log-mean-exp of the AIS weights; of two routes, log of the mean of both, with their shares.
        distortion_cv, rate_cv: [K, N], the same with the noise of beta D taken out by a control variate, for images
            where it takes out half of it or more, and on routes of three groups or more; the same numbers elsewhere. An
            estimate, not a bound.
        rate_se, distortion_se, log_z_se, distortion_cv_se, rate_cv_se: [K, N], jackknife standard errors over the
            (groups of) chains of each image.
        distortion_variance: [K, N], weighted variance of d; -dD/dbeta where the chains are in equilibrium.
        ess: [K, N], effective sample size of the chains.
        lineages: [K, N], effective number of the independent draws from the prior that the chains of the route up
            descend from: what `ess` would be if resampled chains were not counted again.
        k_hat: [K, N], Pareto shape of the largest weights; NaN with too few chains.
        spread: [K, N], standard deviation of log Z over the independent groups of chains, nats.
        acceptance: [K, N], HMC acceptance rate since the recorded beta before; of two routes, that of each by its share
            in Z.
        code: [K, N, latent], one code z of each image, drawn from the weighted chains: what f(z) looks like at that
            rate. latent is 0 where none was kept.
        doubt: [K, N], how far the highest of several independent determinations of log Z lies above the next, nats.
        facts: how it was measured: settings, versions, n_chains.
    """

    beta: np.ndarray
    rate: np.ndarray
    distortion: np.ndarray
    log_z: np.ndarray
    distortion_cv: np.ndarray
    rate_cv: np.ndarray
    log_z_se: np.ndarray
    distortion_se: np.ndarray
    rate_se: np.ndarray
    distortion_cv_se: np.ndarray
    rate_cv_se: np.ndarray
    distortion_variance: np.ndarray
    ess: np.ndarray
    lineages: np.ndarray
    k_hat: np.ndarray
    spread: np.ndarray
    acceptance: np.ndarray
    doubt: np.ndarray
    code: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.rate.shape
        for name in _ARRAYS:
            array = getattr(self, name)
            expected = {"beta": shape[:1], "code": (*shape, *array.shape[2:])}.get(name, shape)
            if array.shape != expected:
                raise ValueError(f"{name} has shape {array.shape}, not {expected}")

    def mean(self, quantity: Quantity) -> np.ndarray:
        """Mean over the images, [K], in the units of the quantity."""
        return getattr(self, quantity).mean(1)

    def standard_error(self, quantity: Quantity, over: Literal["chains", "images"]) -> np.ndarray:
        """Standard error of `mean(quantity)`, [K], in its units.

        Over "chains": of the Monte Carlo estimate for these very images. Over "images": of these images as a sample
        of the data set, which includes the former.
        """
        n = self.rate.shape[1]
        if over == "chains":
            return np.sqrt(np.square(getattr(self, f"{quantity}_se")).sum(1)) / n
        if over == "images":
            return getattr(self, quantity).std(1, ddof=1) / np.sqrt(n) if n > 1 else np.full(len(self.beta), np.nan)
        raise ValueError(f"over must be 'chains' or 'images', not {over!r}")

    @property
    def certified(self) -> np.ndarray:
        """[K] bool: where independent determinations of log Z on these very images confirm the highest of them.

        The mean doubt (`rdcurve.sampler.certify`) is at most a nat, and at most one image in twenty has more than
        three: where one determination alone finds the best mode of some images, all have missed that of others. And
        rate and distortion go on from the beta before as those of a curve do (`bent`). False throughout where the
        curve was measured by one route, or on fewer than four images: with so few, all starts were seen to miss a mode
        a hundredth of the prior wide, and nothing told.
        """
        if not self.facts.get("n_searches") or self.rate.shape[1] < LEAST_IMAGES:
            return np.zeros(len(self.beta), dtype=bool)
        tolerance = self.facts["tolerance"]
        agreed = (self.doubt.mean(1) <= tolerance) & ((self.doubt > 3 * tolerance).mean(1) <= 0.05)
        return agreed & ~self.bent

    @property
    def bent(self) -> np.ndarray:
        """[K] where the mean curve is not one, by more than four standard errors (over the chains) of both points.

        -log Z is concave in beta with slope D, so that between neighbouring betas a < b

            a (D_a - D_b)  <=  R_b - R_a  <=  b (D_a - D_b):

        the rate is what dR = -beta dD adds up to, and convex in the distortion; both are monotone.
        """
        rate, distortion = self.mean("rate"), self.mean("distortion")
        error_rate, error_distortion, error_z = (
            np.nan_to_num(self.standard_error(name, "chains")) for name in ("rate", "distortion", "log_z")
        )
        fall, rise, width = -np.diff(distortion), np.diff(rate), np.diff(self.beta)

        def both(error: np.ndarray) -> np.ndarray:
            return MOST_BENT * np.hypot(error[1:], error[:-1]) + 1e-9

        # R + b D = -log Z + (b - a) D at a, and likewise at b: of R and beta D each has the noise of the other
        bounds = np.hypot(error_z[1:], error_z[:-1])
        above = rise - self.beta[1:] * fall > MOST_BENT * np.hypot(bounds, width * error_distortion[:-1]) + 1e-9
        below = self.beta[:-1] * fall - rise > MOST_BENT * np.hypot(bounds, width * error_distortion[1:]) + 1e-9
        first = np.zeros(1, dtype=bool)
        return np.concatenate([first, above | below | (-fall > both(error_distortion)) | (-rise > both(error_rate))])

    @property
    def gaps(self) -> pd.DataFrame | None:
        """BDMC bounds on log Z of simulated data, one row per beta; None where none came with the curve.

        Columns beta, lower, upper, gap, gap_se (means over simulated images and the standard error, nats), acceptance,
        n_images. They bound the error of AIS on data that the model makes, and say nothing of a mode that was missed.
        """
        return pd.DataFrame(self.facts["bdmc"])[list(_GAP_COLUMNS)] if "bdmc" in self.facts else None

    def at(self, betas: np.ndarray | slice) -> RDCurve:
        """The curve at some of its betas."""
        arrays, facts = {name: getattr(self, name)[betas] for name in _ARRAYS}, dict(self.facts)
        if self.gaps is not None:
            facts["bdmc"] = self.gaps[self.gaps["beta"].isin(arrays["beta"])].to_dict("list")
        return RDCurve(**arrays, facts=facts)

    def first(self, n: int) -> RDCurve:
        """The curve of the first n images."""
        arrays = {name: getattr(self, name) if name == "beta" else getattr(self, name)[:, :n] for name in _ARRAYS}
        return RDCurve(**arrays, facts=self.facts)

    def bits(self) -> np.ndarray:
        """Mean rate in bits, [K]."""
        return self.mean("rate") / np.log(2)

    def summary(self) -> pd.DataFrame:
        """One row per beta: means, both standard errors, and the worst diagnostics over the images."""
        columns: dict[str, np.ndarray] = {"beta": self.beta}
        for quantity in ("distortion", "rate", "log_z"):
            columns[quantity] = self.mean(quantity)
            for over in ("chains", "images"):
                columns[f"{quantity}_se_{over}"] = self.standard_error(quantity, over)
        columns["doubt"] = self.doubt.mean(1)
        columns["certified"] = self.certified
        columns["ess_min"] = self.ess.min(1)
        columns["acceptance_min"] = self.acceptance.min(1)
        return pd.DataFrame(columns)

    def to_frame(self) -> pd.DataFrame:
        """One row per beta and image, every number a column."""
        k, n = self.rate.shape
        columns: dict[str, np.ndarray] = {"beta": np.repeat(self.beta, n), "image": np.tile(np.arange(n), k)}
        columns |= {name: getattr(self, name).ravel() for name in _ARRAYS if name not in ("beta", "code")}
        return pd.DataFrame(columns)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one safetensors file."""
        save_arrays(path, "rdcurve curve", {name: getattr(self, name) for name in _ARRAYS}, self.facts)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RDCurve:
        """Read what `save` wrote.

        Raises:
            FileError: missing, cut or foreign file, one of another version, or with arrays that do not go together.
        """
        arrays, facts = load_arrays(path, "rdcurve curve")
        facts.pop("kind")
        if set(arrays) != set(_ARRAYS):
            differing = ", ".join(sorted(set(arrays) ^ set(_ARRAYS)))
            raise FileError(f"{path}: a curve of another version; measure it again (differing: {differing})")
        try:
            return cls(**arrays, facts=facts)
        except ValueError as error:
            raise FileError(f"{path}: {error}") from error

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Draw the mean curve with a band of two standard errors over the chains; rate on a log axis."""
        from rdcurve.plot import draw_curve, new_axes

        ax = new_axes() if ax is None else ax
        draw_curve(ax, self, **style)
        return ax

    def __str__(self) -> str:
        k, n = self.rate.shape
        head = f"Rate-distortion curve (upper bound): {n} images, {k} beta in [{self.beta[0]:.3g}, {self.beta[-1]:.3g}]"
        rows = np.unique(np.linspace(0, k - 1, min(k, 10)).astype(int))
        table = pd.DataFrame(
            {
                "beta": self.beta,
                "distortion": self.mean("distortion"),
                "± chains": self.standard_error("distortion", "chains"),
                "rate (nats)": self.mean("rate"),
                "± chains ": self.standard_error("rate", "chains"),
                "± images": self.standard_error("rate", "images"),
                "by c.v.": self.mean("rate_cv"),
                "doubt": self.doubt.mean(1),
                "certified": np.where(self.certified, "yes", "no"),
                "least ESS": self.ess.min(1),
                "k-hat": np.median(self.k_hat, 1),
                "least accept": self.acceptance.min(1),
            }
        ).iloc[rows]
        lines = [head, table.to_string(index=False, float_format=lambda v: f"{v:.4g}")]
        if self.gaps is not None and len(self.gaps):
            worst = self.gaps.loc[self.gaps["gap"].idxmax()]
            lines.append(f"BDMC gap: {worst['gap']:.2f} ± {worst['gap_se']:.2f} nats at most, at beta = "
                         f"{worst['beta']:.3g} ({len(self.gaps)} betas)")  # fmt: skip
        return "\n".join(lines)


_GAP_COLUMNS = ("beta", "lower", "upper", "gap", "gap_se", "acceptance", "n_images")
_ARRAYS = tuple(f.name for f in fields(RDCurve) if f.name != "facts")


def same_images(curves: dict[str, RDCurve]) -> dict[str, RDCurve]:
    """The curves, of the images that all of them were measured on: the first of the test set, down to the fewest."""
    n = min((curve.rate.shape[1] for curve in curves.values()), default=0)
    return {name: curve.first(n) for name, curve in curves.items()}
