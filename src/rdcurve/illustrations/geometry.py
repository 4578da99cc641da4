"""Figure 1: the order of all the curves that the paper speaks of, computed for a source on a line.

    R(D)  <=  R_p(D)  <=  R_AIS(D)  <=  estimated R_AIS(D)

Shannon's curve R(D) of the source; the curve R_p of a model with prior p, which touches R(D) at a slope for which p is
the best marginal; the curve of the distribution that AIS samples from; and what AIS says of itself (paper, Props. 1, 3
and 4). Beside them the curve of a Gaussian channel. The source is a mixture of three Gaussians, cut to a grid. The
decoder f folds the line, so that several codes stand for one value and no channel can be Gaussian. One AIS is kept
short, so that it can be seen to be a bound; a longer one comes nearer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rdcurve.illustrations.blahut_arimoto import best_marginal, point
from rdcurve.sampler.ais import Groups
from rdcurve.sampler.distortion import SquaredError
from rdcurve.sampler.formal import formal_run
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.noise import seed_of
from rdcurve.sampler.prerun import PrerunSettings, tune
from rdcurve.sampler.prior import standard_normal
from rdcurve.sampler.schedule import geometric
from rdcurve.sampler.target import Target
from rdcurve.variational import per_image
from rdcurve.variational.channel import channel_curve

__all__ = ["Settings", "compute", "decode", "source"]

_WEIGHTS, _MEANS, _WIDTHS = (0.5, 0.2, 0.3), (-1.5, 0.0, 1.3), (0.4, 0.3, 0.5)
_X_RANGE, _Z_RANGE = 3.2, 5.0  # grids of values and codes reach so far on both sides
_BETA_MIN = 0.02
_NEIGHBOURS = 8  # of the entropy estimate


@dataclass(frozen=True)
class Settings:
    """How finely all is computed."""

    n_values: int  # of the source
    n_codes: int  # of the grid that stands for the line of codes
    n_betas: int
    beta_max: float
    tangent_beta: float  # where the tangents are drawn
    n_temperatures: int  # of the short AIS
    n_long_temperatures: int  # of the long one
    n_chains: int
    n_repeats: int  # of AIS on each value of the source
    seed: int


def source(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Values x [n] and their probabilities [n]."""
    x = np.linspace(-_X_RANGE, _X_RANGE, n)
    p = sum(
        weight / width * np.exp(-0.5 * ((x - mean) / width) ** 2)
        for weight, mean, width in zip(_WEIGHTS, _MEANS, _WIDTHS, strict=True)
    )
    return x, p / p.sum()


def decode(z: Tensor) -> Tensor:
    """f(z) = 1 + 1.1 z + 1.2 sin(2.4 z), [..., 1] -> [..., 1]: it turns back twice on either side of 0."""
    return 1 + 1.1 * z + 1.2 * torch.sin(2.4 * z)


def compute(settings: Settings) -> dict[str, np.ndarray]:
    """All curves.

    Returns:
        value, source: [n_values]; code, prior, best_prior, reconstruction: [n_codes], the best prior for the slope of
        the tangent, and f; tangent_beta: [1]; n_temperatures: [2], short and long. NAME_beta, NAME_rate,
        NAME_distortion of the curves shannon, model, best (the model with the best prior), ais (the distribution that
        short AIS samples from), estimate and long (what short and long AIS say of themselves), gaussian. Nats.
        shannon_excess bounds by how much R + beta D may be too high there; estimate_rate_se, long_rate_se and
        gaussian_distortion_se are standard errors.
    """
    x, p = source(settings.n_values)
    z = np.linspace(-_Z_RANGE, _Z_RANGE, settings.n_codes)
    prior = np.exp(-0.5 * z**2)
    prior /= prior.sum()
    reconstruction = decode(torch.from_numpy(z)).numpy()
    distortion = np.square(x[:, None] - reconstruction)
    betas = np.geomspace(_BETA_MIN, settings.beta_max, settings.n_betas)
    best = best_marginal(p, distortion, settings.tangent_beta)
    marginals = {
        "shannon": [best_marginal(p, distortion, beta) for beta in betas],
        "model": [prior] * len(betas),
        "best": [best] * len(betas),
    }
    arrays: dict[str, np.ndarray] = {}
    for name, chosen in marginals.items():
        points = [point(p, distortion, marginal, beta) for marginal, beta in zip(chosen, betas, strict=True)]
        arrays |= {
            f"{name}_beta": betas,
            f"{name}_rate": np.array([each.rate for each in points]),
            f"{name}_distortion": np.array([each.distortion for each in points]),
        }
        if name == "shannon":
            arrays["shannon_excess"] = np.array([each.excess for each in points])
    target = Target(standard_normal(1, torch.float64), decode, SquaredError(), torch.from_numpy(x)[:, None])
    return {
        **arrays,
        **_short(target, p, settings),
        **_long(target, p, settings),
        **_gaussian(target, p, settings),
        "value": x,
        "source": p,
        "code": z,
        "prior": prior,
        "best_prior": best,
        "reconstruction": reconstruction,
        "tangent_beta": np.array([settings.tangent_beta]),
        "n_temperatures": np.array([settings.n_temperatures, settings.n_long_temperatures]),
    }


def _short(target: Target, p: np.ndarray, settings: Settings) -> dict[str, np.ndarray]:
    """Short AIS at each of its betas: what it says, and the rate of the distribution that it samples from."""
    estimated, code = _ais(target, p, settings.n_temperatures, settings.n_temperatures - 1, settings)
    log_p = target.prior.log_prob(torch.from_numpy(code)[..., None]).numpy()
    curve = {
        "ais_beta": estimated["beta"],
        "ais_rate": (-_entropy(code) - log_p.mean(-1)) @ p,  # KL(q | p) of one drawn code a run
        "ais_distortion": estimated["distortion"],  # weighted as the code is drawn: the same mean
    }
    return curve | {f"estimate_{name}": value for name, value in estimated.items()}


def _long(target: Target, p: np.ndarray, settings: Settings) -> dict[str, np.ndarray]:
    """What long AIS says, at as many betas as the short one."""
    n = settings.n_long_temperatures
    estimated, _ = _ais(target, p, n, settings.n_temperatures - 1, settings)
    return {f"long_{name}": value for name, value in estimated.items()}


def _ais(
    target: Target, p: np.ndarray, n_temperatures: int, n_recorded: int, settings: Settings
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Means over the source and many runs; codes [n_recorded, X, n_repeats], one a run, drawn by weight."""
    betas = geometric(n_temperatures, settings.beta_max, _BETA_MIN)
    kernel = Kernel(n_leapfrog=3, jitter=0.2, persistence=0.0)
    prerun = PrerunSettings(seed=seed_of(settings.seed, "prerun"), metric="identity", n_blocks=1, n_starts=0)
    tuning = tune(target, betas, kernel, prerun, Groups(1))
    value = torch.arange(len(p)).repeat_interleave(settings.n_repeats)
    recorded = np.linspace(1, n_temperatures - 1, n_recorded).round().astype(int).tolist()
    curve = formal_run(
        target.select(value),
        tuning.select(value),
        recorded,
        kernel,
        n_chains=settings.n_chains,
        seed=settings.seed,
        groups=Groups(1),
    )
    shape = (n_recorded, len(p), settings.n_repeats)
    rate, distortion, code = (np.reshape(array, shape) for array in (curve.rate, curve.distortion, curve.code))
    estimated = {
        "beta": curve.beta,
        "rate": rate.mean(-1) @ p,
        "distortion": distortion.mean(-1) @ p,
        "rate_se": np.sqrt(rate.var(-1, ddof=1) / settings.n_repeats @ np.square(p)),
    }
    return estimated, code.astype(np.float64)


def _entropy(samples: np.ndarray) -> np.ndarray:
    """Differential entropy of the density that [..., n] numbers were drawn from, nats: Kozachenko and Leonenko (1987).

    psi(n) - psi(k) + log 2 + mean log r, with r the distance of each number to its k-th neighbour.
    """
    k, n = _NEIGHBOURS, samples.shape[-1]
    ordered = np.sort(samples, -1)
    outside = np.full((*ordered.shape[:-1], k), np.inf)
    padded = np.concatenate([-outside, ordered, outside], -1)
    # the k nearest lie in a window of k + 1 that holds the number itself, as its i-th
    windows = [
        np.maximum(ordered - padded[..., i : i + n], padded[..., i + k : i + k + n] - ordered) for i in range(k + 1)
    ]
    nearest = np.minimum.reduce(windows)
    psi = torch.digamma(torch.tensor([n, k], dtype=torch.float64))
    return float(psi[0] - psi[1]) + math.log(2) + np.log(nearest).mean(-1)


def _gaussian(target: Target, p: np.ndarray, settings: Settings) -> dict[str, np.ndarray]:
    """A Gaussian channel for every value of the source."""
    betas = torch.from_numpy(np.geomspace(_BETA_MIN, settings.beta_max, settings.n_betas))
    fitting = per_image.Settings(n_steps=60, n_codes=8, learning_rate=0.2, n_starts=8, seed=settings.seed)
    fitted = per_image.fit(target, betas, fitting)
    curve = channel_curve(target, fitted, betas, n_samples=2000, seed=settings.seed, facts={})
    return {
        "gaussian_beta": curve.beta,
        "gaussian_rate": curve.rate @ p,
        "gaussian_distortion": curve.distortion @ p,
        "gaussian_distortion_se": np.sqrt(np.square(curve.distortion_se) @ np.square(p)),
    }
