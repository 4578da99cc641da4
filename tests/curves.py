"""Curves with realistic numbers, made without a sampler: the closed form of a linear decoder, plus noise."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pandas as pd

from rdcurve.curve import RDCurve
from rdcurve.linear import exact_curve

__all__ = ["bdmc_points", "synthetic"]


def synthetic(
    name: str = "vae10",
    latent_dim: int = 10,
    floor: float = 7.0,
    *,
    seed: int = 0,
    n_images: int = 6,
    n_betas: int = 30,
    uncertified: slice = slice(0, 0),
    dataset: str = "mnist",
    distortion: dict | None = None,
    n_searches: int = 2,
    noise: float = 1.0,
) -> RDCurve:
    """Squared error from `floor` to about 60, rate to 70 nats for 10 dimensions; doubtful at `uncertified` betas."""
    generator = np.random.default_rng(seed)
    n = latent_dim + 40
    basis = np.linalg.qr(generator.standard_normal((n, latent_dim)))[0]
    scale = 4.0 * np.arange(1, latent_dim + 1.0) ** -0.35
    x = generator.standard_normal((n_images, latent_dim)) * scale @ basis.T
    x += generator.standard_normal((n_images, n)) * math.sqrt(floor / n)
    beta = np.geomspace(0.05, 36000, n_betas)
    rate, nll, log_z = exact_curve(basis * scale, np.zeros(n), x, beta, 0.5)
    rate_se = np.full_like(rate, 0.4 * noise)
    distortion_se = np.minimum(rate_se / beta[:, None], 2.0)
    error = generator.standard_normal(rate.shape)
    doubt = np.full_like(rate, 0.3)
    doubt[uncertified] = 4.0
    known = {
        "beta": beta,
        "rate": rate + rate_se * error,
        "distortion": nll - n / 2 * math.log(math.pi) - distortion_se * error,
        "log_z": log_z + 0.1 * noise * generator.standard_normal(rate.shape),
        "rate_se": rate_se,
        "distortion_se": distortion_se,
        "log_z_se": np.full_like(rate, 0.1 * noise),
        "doubt": doubt,
        "code": generator.standard_normal((*rate.shape, latent_dim)).astype(np.float32),
    }
    names = [field.name for field in fields(RDCurve) if field.name != "facts"]
    settings = {"model": name, "dataset": dataset, "distortion": distortion or {"name": "squared_error"}}
    return RDCurve(
        **{field: known.get(field, np.full_like(rate, 0.5)) for field in names},
        facts={"curve": name, "n_chains": 32, "n_searches": n_searches, "tolerance": 1.0, "settings": settings},
    )


def bdmc_points(curve: RDCurve, largest: float, n: int = 10) -> pd.DataFrame:
    """A table as `rdcurve bdmc` writes it, at n betas of the curve, with the largest gap in the middle."""
    at = np.linspace(0, len(curve.beta) - 1, n).round().astype(int)
    gap = largest * np.sin(np.linspace(0.1, np.pi - 0.1, n)) ** 2
    gap[n // 2] = largest
    columns = {"beta": curve.beta[at], "lower": -400.0, "upper": -400 + gap, "gap": gap, "gap_se": 0.05}
    return pd.DataFrame({**columns, "acceptance": 0.85, "n_images": 5})
