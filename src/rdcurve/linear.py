"""The linear decoder f(z) = W z + b, whose whole rate-distortion curve is known in closed form (paper, appendix B.1).

For d = |x - W z - b|^2 / (2 v) + n/2 log(2 pi v) and p(z) = N(0, I), q_beta(z|x) is Gaussian. With the thin singular
value decomposition W = U diag(s) V^T and t = v / beta:

    mean       mu = V diag(s / (t + s^2)) U^T (x - b)
    covariance S  = I - V diag(s^2 / (t + s^2)) V^T
    R = KL(N(mu, S) | N(0, I)),    D = E d,    log Z = -R - beta D.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["exact_curve"]


def exact_curve(
    weight: np.ndarray, bias: np.ndarray, x: np.ndarray, beta: np.ndarray, variance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rate, distortion and log Z of a linear decoder under the Gaussian negative log-likelihood.

    Args:
        weight: W, [n, latent].
        bias: b, [n].
        x: [N, n].
        beta: [K], positive.
        variance: v of the distortion.

    Returns:
        rate, distortion, log_z, each [K, N] in nats.

    Examples:
        >>> one = np.ones((1, 1))
        >>> rate, distortion, log_z = exact_curve(one, np.zeros(1), one, np.ones(1), variance=1.0)
        >>> bool(np.isclose(log_z, -0.5 * math.log(2 * math.pi * 2) - 1 / 4))  # x ~ N(0, 2)
        True
    """
    n = weight.shape[0]
    u, s, _ = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    residual = x.astype(np.float64) - bias.astype(np.float64)  # [N, n]
    along = residual @ u  # [N, k], coordinates of the residual in the range of W
    across = np.square(residual).sum(1) - np.square(along).sum(1)  # [N]
    t = (variance / beta.astype(np.float64))[:, None, None]  # [K, 1, 1]
    mean = s * along / (t + s**2)  # [K, N, k], posterior mean in the basis of V
    covariance = t / (t + s**2)  # [K, 1, k], posterior variances
    rate = 0.5 * (covariance + np.square(mean) - 1 - np.log(covariance)).sum(-1)
    squared = across + (np.square(along - s * mean) + s**2 * covariance).sum(-1)  # [K, N], E |x - f|^2
    distortion = squared / (2 * variance) + n / 2 * math.log(2 * math.pi * variance)
    return rate, distortion, -rate - beta[:, None] * distortion
