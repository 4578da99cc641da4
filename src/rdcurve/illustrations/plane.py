"""Figure 2: three models of points in a plane, with a code of one Gaussian number, and one test point.

    near  prior samples beside the test point, on a path that passes it by
    wide  the same path, with prior samples all along it
    far   a path that leads through the test point, with its prior samples elsewhere

At low rate a reconstruction is a prior sample: near is better than wide, wide than far. At high rate a prior counts by
its density at the best code alone, which near and wide have in common: their curves come together, and end at the same
distortion, that of far at none (paper, section 3). The curves are quadratures over the code; AIS measures them once
more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from rdcurve.illustrations.blahut_arimoto import point
from rdcurve.own.measure import measure
from rdcurve.sampler.prerun import PrerunSettings
from rdcurve.types import Decoder

__all__ = ["MODELS", "TEST_POINT", "Model", "Settings", "compute"]

TEST_POINT = (0.0, 0.0)
_Z_RANGE = 8.0  # of the grid of codes, on both sides
# a code of one number is soon learned
_PRERUN = PrerunSettings(round_temperatures=100, n_blocks=10, n_starts=4, most_starts=0, n_modes=2)
_LEAST = 3e-3  # prior density, as a share of the highest, where a path is still drawn


class Model(NamedTuple):
    """A decoder [..., 1] -> [..., 2], and the prior N(mean, width^2) of its code."""

    decoder: Decoder
    mean: float
    width: float

    @property
    def prior(self) -> Distribution:
        """Over codes [1], float64."""
        return Independent(Normal(torch.tensor([self.mean]).double(), torch.tensor([self.width]).double()), 1)


def _passing(z: Tensor) -> Tensor:
    return torch.cat([0.9 * z, 0.9 - 0.5 * torch.cos(1.1 * z)], -1)


def _through(z: Tensor) -> Tensor:
    return torch.cat([1.6 * torch.sin(0.6 * z), 1.6 * torch.cos(0.6 * z) - 1.6], -1)


_NARROW = 0.3
MODELS = {
    "near": Model(_passing, _NARROW * math.sqrt(2 * math.log(1 / _NARROW)), _NARROW),  # at 0 as dense as N(0, 1)
    "wide": Model(_passing, 0.0, 1.0),
    "far": Model(_through, 2.3, 0.7),
}


@dataclass(frozen=True)
class Settings:
    """How finely all is computed."""

    n_codes: int  # of the grid that stands for the line of codes
    n_betas: int  # of the curves
    beta_max: float
    low_beta: float  # of the reconstructions that are drawn
    high_beta: float
    n_points: int  # of them, per model
    n_temperatures: int  # of AIS
    n_chains: int
    n_recorded: int
    seed: int


def compute(settings: Settings) -> dict[str, np.ndarray]:
    """Curves, points and paths of the three models.

    Returns:
        test_point [2]; drawn_beta [2], low and high. Of each MODEL: MODEL_path [n, 2], where its decoder leads;
        MODEL_prior, MODEL_low and MODEL_high [n_points, 2], f of codes at the quantiles of the prior and of the best
        channels at the two betas; MODEL_beta, MODEL_rate and MODEL_distortion [n_betas], the curve, with its points
        MODEL_drawn_rate and MODEL_drawn_distortion [2] at the two; MODEL_ais_rate, MODEL_ais_distortion and their
        errors MODEL_ais_rate_se and MODEL_ais_distortion_se [n_recorded]. Nats.
    """
    z = torch.linspace(-_Z_RANGE, _Z_RANGE, settings.n_codes, dtype=torch.float64)[:, None]
    x = torch.tensor([TEST_POINT], dtype=torch.float64)
    betas = np.geomspace(1e-3, settings.beta_max, settings.n_betas)
    drawn = np.array([settings.low_beta, settings.high_beta])
    arrays = {"test_point": x[0].numpy(), "drawn_beta": drawn}
    for name, model in MODELS.items():
        path = model.decoder(z)
        prior = model.prior.log_prob(z).softmax(0).numpy()
        distortion = (path - x).square().sum(-1).numpy()
        arrays |= {f"{name}_path": path[prior > _LEAST * prior.max()].numpy(), f"{name}_beta": betas}
        for prefix, at in (("", betas), ("drawn_", drawn)):
            points = [point(np.ones(1), distortion[None], prior, beta) for beta in at]
            arrays[f"{name}_{prefix}rate"] = np.array([each.rate for each in points])
            arrays[f"{name}_{prefix}distortion"] = np.array([each.distortion for each in points])
        for what, beta in (("prior", 0.0), ("low", settings.low_beta), ("high", settings.high_beta)):
            share = prior * np.exp(-beta * (distortion - distortion.min()))
            arrays[f"{name}_{what}"] = path.numpy()[_spread(share, settings.n_points)]
        arrays |= {f"{name}_ais_{key}": value for key, value in _ais(model, x, settings).items()}
    return arrays


def _spread(share: np.ndarray, n: int) -> np.ndarray:
    """Indices of n codes at the quantiles (i + 1/2) / n of the distribution on the grid."""
    cumulative = np.cumsum(share / share.sum())
    return np.searchsorted(cumulative, (np.arange(n) + 0.5) / n)


def _ais(model: Model, x: Tensor, settings: Settings) -> dict[str, np.ndarray]:
    curve = measure(
        model.decoder,
        x,
        latent_dim=1,
        beta_max=settings.beta_max,
        prior=model.prior,
        n_temperatures=settings.n_temperatures,
        n_recorded=settings.n_recorded,
        n_chains=settings.n_chains,
        n_simulated=0,  # quadrature says more
        prerun_settings=_PRERUN,
        seed=settings.seed,
    )
    quantities = ("rate", "distortion")
    means = {quantity: curve.mean(quantity) for quantity in quantities}
    return means | {f"{q}_se": curve.standard_error(q, "chains") for q in quantities}
