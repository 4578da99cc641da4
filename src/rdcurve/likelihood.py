"""Log-likelihood of a model with Gaussian observation noise, read off its rate-distortion curve (paper, Prop. 2c).

exp(-beta |x - f|^2) is, up to its constant, N(x; f, v I) with beta = 1 / (2 v). So for n pixels

    log p(x) = log int p(z) N(x; f(z), v I) dz = log Z(beta) - n/2 log(2 pi v),

and one curve gives the likelihood under every variance. Between two recorded betas log Z is interpolated with its exact
slope, d log Z / d beta = -D: the straight line in beta, and for the rest of log Z a cubic Hermite polynomial in log
beta. Such a polynomial for the whole of log Z would be wrong by nats at a large beta, where -beta D is exponential in
log beta; the rest is then nearly -latent/2 log beta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rdcurve.curve import RDCurve

__all__ = ["LogLikelihood", "log_likelihood"]


@dataclass(frozen=True)
class LogLikelihood:
    """log p(x) of N images, nats.

    Attributes:
        beta: 1 / (2 variance).
        log_p: [N].
        log_p_se: [N], standard errors over the chains, those of the curve as if all had erred to the same side.
    """

    beta: float
    log_p: np.ndarray
    log_p_se: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over the images."""
        return float(self.log_p.mean())

    def standard_error(self, over: Literal["chains", "images"]) -> float:
        """Standard error of the mean: of the estimate for these very images, or of these as a sample of the data set.

        The latter includes the former. NaN for a single image.
        """
        n = len(self.log_p)
        if over == "chains":
            return float(np.sqrt(np.square(self.log_p_se).sum()) / n)
        if over == "images":
            return float(self.log_p.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
        raise ValueError(f"over must be 'chains' or 'images', not {over!r}")


def log_likelihood(curve: RDCurve, variance: float, n_pixels: int) -> LogLikelihood:
    """log p(x) of the images of a curve under N(x; f(z), variance I).

    At a recorded beta it is, as log Z there, in expectation a lower bound; between two it is an estimate.

    Args:
        curve: measured under the squared error, at two betas or more.
        variance: of the observation, with beta = 1 / (2 variance) in the range of the curve.
        n_pixels: n, the size of x.

    Raises:
        ValueError: a variance that the curve does not reach, or a curve of another distortion.
    """
    distortion = curve.facts.get("settings", {}).get("distortion", {}).get("name", "squared_error")
    if distortion != "squared_error":
        raise ValueError(f"a likelihood needs a curve under squared_error, not {distortion}")
    if len(curve.beta) < 2:
        raise ValueError(f"a likelihood needs a curve at two betas or more, not {len(curve.beta)}")
    least, most = 1 / (2 * curve.beta[-1]), 1 / (2 * curve.beta[0])
    if not least * (1 - 1e-9) <= variance <= most * (1 + 1e-9):  # the ends are legal, whichever way they are rounded
        raise ValueError(f"variance must lie in {least:.6g} .. {most:.6g}, the range of the curve, not {variance}")
    beta = 1 / (2 * variance)
    log_z, log_z_se = _interpolated(curve, beta)
    return LogLikelihood(beta, log_z - n_pixels / 2 * math.log(2 * math.pi * variance), log_z_se)


def _interpolated(curve: RDCurve, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """log Z and its standard error at beta, each [N]."""
    k = int(np.clip(np.searchsorted(curve.beta, beta), 1, len(curve.beta) - 1))
    ends = slice(k - 1, k + 1)
    left, right = curve.beta[ends]
    share = (beta - left) / (right - left)
    width = math.log(right / left)
    t = math.log(beta / left) / width
    # The rest vanishes at both ends, where its slopes in log beta are beta (D_line - D). The slope of the line,
    # D_line = (log Z_left - log Z_right) / (right - left), gives each log Z a part in the polynomial.
    by_d = width * np.array([-t * (1 - t) ** 2 * left, t**2 * (1 - t) * right])
    by_line = -by_d.sum() / (right - left)
    by_log_z = np.array([1 - share + by_line, share - by_line])
    log_z = by_log_z @ curve.log_z[ends] + by_d @ curve.distortion_cv[ends]
    # errors at two betas of one run go together, by how much nobody knows: they add up at worst
    return log_z, np.abs(by_log_z) @ curve.log_z_se[ends] + np.abs(by_d) @ curve.distortion_cv_se[ends]
