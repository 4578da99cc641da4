"""Rate-distortion curves of a source with finitely many values, and finitely many codes.

With the marginal q(z) of the codes given, the best channel and its point of the curve at slope -beta are

    q(z|x) = q(z) exp(-beta d(x, z)) / Z(x),    Z(x) = sum_z q(z) exp(-beta d(x, z)),
    R = sum_x p(x) KL(q(z|x) | q(z)) = -E log Z - beta D,    D = E d:

the variational curve R_q (paper, Prop. 1). The best marginal is a fixed point of

    q(z) <- q(z) c(z),    c(z) = sum_x p(x) exp(-beta d(x, z)) / Z(x)

(Blahut 1972; Arimoto 1972), and its curve is Shannon's R(D). At any q,

    -E log Z - max log c  <=  min (R + beta D)  <=  -E log Z.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Point", "best_marginal", "point"]


class Point(NamedTuple):
    """Of a curve, at one beta; in nats."""

    rate: float  # R
    distortion: float  # D
    log_z: np.ndarray  # [X], log Z(x)
    excess: float  # log max c: R + beta D is at most so much above the least of all marginals


def point(source: np.ndarray, distortion: np.ndarray, marginal: np.ndarray, beta: float) -> Point:
    """The best channel for a given marginal.

    Args:
        source: p(x), [X].
        distortion: d(x, z), [X, Z].
        marginal: q(z), [Z].
        beta: minus the slope.
    """
    _check(source, distortion)
    if marginal.shape != distortion.shape[1:]:
        raise ValueError(f"the marginal has shape {marginal.shape}, and there are {distortion.shape[1]} codes")
    least, kernel = _kernel(distortion, beta)
    z = kernel @ marginal
    d = (kernel * distortion) @ marginal / z
    log_z = np.log(z) - beta * least
    mean_d = float(source @ d)
    return Point(float(-source @ log_z) - beta * mean_d, mean_d, log_z, float(np.log((source / z @ kernel).max())))


def best_marginal(
    source: np.ndarray, distortion: np.ndarray, beta: float, *, tolerance: float = 1e-3, n_iterations: int = 20_000
) -> np.ndarray:
    """The marginal q(z) of Shannon's curve at slope -beta, [Z].

    Args:
        source: p(x), [X].
        distortion: d(x, z), [X, Z].
        beta: minus the slope.
        tolerance: nats by which R + beta D may exceed its minimum.
        n_iterations: at most.

    Raises:
        ValueError: not so near after that many iterations.

    Examples:
        >>> best_marginal(np.ones(2) / 2, 1 - np.eye(2), beta=1.0)  # a fair coin, with errors counted
        array([0.5, 0.5])
    """
    _check(source, distortion)
    _, kernel = _kernel(distortion, beta)
    marginal = np.full(distortion.shape[1], 1 / distortion.shape[1])
    for _ in range(n_iterations):
        c = (source / (kernel @ marginal)) @ kernel
        if np.log(c.max()) <= tolerance:
            return marginal
        marginal = marginal * c
    raise ValueError(
        f"R + beta D at beta = {beta:g} is only known to {np.log(c.max()):.2g} nats after {n_iterations} iterations; "
        f"{tolerance:g} was asked for"
    )


def _kernel(distortion: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """min_z d [X], and exp(-beta (d - min d)) [X, Z], which does not underflow."""
    least = distortion.min(1)
    return least, np.exp(-beta * (distortion - least[:, None]))


def _check(source: np.ndarray, distortion: np.ndarray) -> None:
    if distortion.ndim != 2 or source.shape != distortion.shape[:1]:
        raise ValueError(f"a source of shape {source.shape} has no distortions of shape {distortion.shape}")
    if (source < 0).any() or not np.isclose(source.sum(), 1):
        raise ValueError(f"the probabilities of the source must be at least 0 and add up to 1, not {source.sum():g}")
