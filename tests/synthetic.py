"""Curves that are known exactly, with noise of known size: linear decoders under the squared error."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np

from rdcurve.curve import RDCurve
from rdcurve.linear import exact_curve

BETAS = np.geomspace(0.02, 2e4, 24)
FACTS = {"n_searches": 2, "tolerance": 1.0, "settings": {"dataset": "mnist", "distortion": {"name": "squared_error"}}}


def rdcurve(beta, distortion, log_z, *, log_z_se=0.0, distortion_se=0.0, **facts) -> RDCurve:
    """A certified curve from beta [K], D and log Z [K, N]; every other array that a curve has is filled in."""
    rate = -log_z - beta[:, None] * distortion
    known = {"beta": beta, "rate": rate, "distortion": distortion, "log_z": log_z, "doubt": np.zeros_like(rate)}
    known |= {"rate_cv": rate, "distortion_cv": distortion, "code": np.zeros((*rate.shape, 0))}
    known |= {"log_z_se": log_z_se + 0 * rate, "distortion_se": distortion_se + 0 * rate}
    names = [field.name for field in fields(RDCurve) if field.name != "facts"]
    return RDCurve(**{name: known.get(name, np.full_like(rate, np.nan)) for name in names}, facts=FACTS | facts)


def decoder(seed: int, n_pixels: int = 12, latent_dim: int = 4) -> np.ndarray:
    """Weights [n, latent]; the same seed starts with the same columns whatever their number."""
    return np.random.default_rng(seed).normal(size=(latent_dim, n_pixels)).T


def images(seed: int, n_images: int = 50, n_pixels: int = 12) -> np.ndarray:
    """Normal with the same variance in every direction, so that a rotated decoder has the same mean curve."""
    return 1.5 * np.random.default_rng(seed).normal(size=(n_images, n_pixels))


def rotation(seed: int, n_pixels: int = 12) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n_pixels, n_pixels)))[0]


def exact(weight: np.ndarray, x: np.ndarray, beta: np.ndarray = BETAS) -> tuple[np.ndarray, np.ndarray]:
    """D and log Z, each [K, N], under d = |x - W z|^2: twice the variance of the closed form, without its constant."""
    constant = weight.shape[0] / 2 * np.log(np.pi)
    _, distortion, log_z = exact_curve(weight, np.zeros(len(weight)), x, beta, 0.5)
    return distortion - constant, log_z + beta[:, None] * constant


def linear_curve(
    weight: np.ndarray, x: np.ndarray, beta: np.ndarray = BETAS, *, noise: float = 0.0, seed: int = 0
) -> RDCurve:
    """The exact curve, or as measured by chains: log Z of every image off by a normal of sd `noise`, the same at all
    betas as it is along a chain; beta D off by twice that, at every beta anew."""
    distortion, log_z = exact(weight, x, beta)
    generator = np.random.default_rng(seed)
    log_z = log_z + noise * generator.normal(size=len(x))
    distortion = distortion + 2 * noise / beta[:, None] * generator.normal(size=log_z.shape)
    return rdcurve(beta, distortion, log_z, log_z_se=noise, distortion_se=2 * noise / beta[:, None])


def scaled(curve: RDCurve, factor: float) -> RDCurve:
    """Every distortion times `factor`, at the same rates: ln D differs by ln factor all along the curve."""
    return replace(
        curve,
        beta=curve.beta / factor,
        distortion=curve.distortion * factor,
        distortion_cv=curve.distortion_cv * factor,
        distortion_se=curve.distortion_se * factor,
    )


def raised(curve: RDCurve, nats: float) -> RDCurve:
    """Every rate higher by so many nats, at the same distortions."""
    return replace(curve, rate=curve.rate + nats, log_z=curve.log_z - nats)


def doubted(curve: RDCurve, rows) -> RDCurve:
    """Not certified at some of its betas."""
    doubt = curve.doubt.copy()
    doubt[rows] = 5.0
    return replace(curve, doubt=doubt)
