"""The metric of HMC: directions in which the target is narrow get short steps.

Near its modes q_beta(z|x) has the precision I + beta G with the Gauss-Newton matrix of the distortion

    G(z) = J(z)^T H(z) J(z),    J = df/dz,  H = d^2 d / df^2    (2 J^T J for the squared error).

HMC runs in coordinates y with z = A y, A A^T = (I + beta G)^-1, G averaged over chains of a prerun and then frozen. Any
frozen A leaves the target invariant; a good one makes it look like N(0, I) at every beta.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rdcurve.sampler.target import Target

__all__ = ["Metric", "curvature", "decompose", "gauss_newton", "identity"]

_VALUES = 1 << 25  # of the Jacobians held at once


@dataclass(frozen=True)
class Metric:
    """Eigen-decompositions of the mean G, one per block of beta and per image (or one for all images)."""

    starts: tuple[float, ...]  # [B] beta where each block begins, increasing from 0
    eigenvalues: Tensor  # [B, N or 1, latent], not negative
    eigenvectors: Tensor  # [B, N or 1, latent, latent], columns

    def factor(self, beta: float, n_images: int) -> Tensor:
        """A at beta, [n_images, latent, latent], for the first `n_images` images."""
        block = max(bisect.bisect_right(self.starts, beta) - 1, 0)
        eigenvalues, eigenvectors = self.eigenvalues[block, :n_images], self.eigenvectors[block, :n_images]
        return (eigenvectors * (1 + beta * eigenvalues).rsqrt()[:, None, :]).expand(n_images, -1, -1)

    def select(self, images: slice | Tensor) -> Metric:
        """The metric of some of the images."""
        if self.eigenvalues.shape[1] == 1:
            return self
        return Metric(self.starts, self.eigenvalues[:, images], self.eigenvectors[:, images])


def identity(latent_dim: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Metric:
    """A = I at every beta."""
    return Metric(
        (0.0,),
        torch.zeros(1, 1, latent_dim, dtype=dtype, device=device),
        torch.eye(latent_dim, dtype=dtype, device=device)[None, None],
    )


def decompose(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (not negative) and eigenvectors of mean G, [N or 1, latent, latent]."""
    eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
    # a distortion that is not convex in f may give negative ones; there the prior alone sets the scale
    return eigenvalues.clamp(min=0), eigenvectors


def gauss_newton(target: Target, z: Tensor, *, pooled: bool, heed: Callable[[], None] = lambda: None) -> Tensor:
    """G(z) averaged over the chains, and over the images if `pooled`.

    Args:
        target: of N images.
        z: [C, N, latent].
        pooled: one matrix for all images.
        heed: as of `curvature`.

    Returns:
        [N, latent, latent], or [1, latent, latent].

    Raises:
        ValueError: torch has no forward-mode derivative of the decoder; the prerun meets it at its first step.
    """
    matrices = curvature(target, z, heed).mean(0)
    return matrices.mean(0, keepdim=True) if pooled else matrices


def curvature(target: Target, z: Tensor, heed: Callable[[], None] = lambda: None) -> Tensor:
    """G at every code, z [C, N, latent] -> [C, N, latent, latent].

    Works for any decoder and distortion that torch can differentiate in forward mode. A hundred columns take long:
    `heed` is called after every one, and may raise to stop.

    Raises:
        ValueError: torch cannot.
    """
    block = max(1, _VALUES // (z.shape[0] * z.shape[2] * math.prod(target.x.shape[1:])))
    try:
        parts = [
            _curvature(target.select(slice(i, i + block)), z[:, i : i + block], heed)
            for i in range(0, z.shape[1], block)
        ]
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"the decoder or the distortion has no forward-mode derivative ({error}), "
            "which the Gauss-Newton metric needs; choose the metric 'identity'"
        ) from error
    return torch.cat(parts, 1)


def _curvature(target: Target, z: Tensor, heed: Callable[[], None]) -> Tensor:
    def slope(reconstruction: Tensor) -> Tensor:
        return torch.func.grad(lambda r: target.distortion(target.x, r).sum())(reconstruction)

    jacobian, along_slope = [], []
    for direction in torch.eye(z.shape[-1], dtype=z.dtype, device=z.device):
        reconstruction, along = torch.func.jvp(target.decoder, (z,), (direction.expand_as(z),))
        jacobian.append(along.flatten(2))
        along_slope.append(torch.func.jvp(slope, (reconstruction,), (along,))[1].flatten(2))
        heed()
    matrix = torch.stack(jacobian, 2) @ torch.stack(along_slope, 2).mT
    return (0.5 * (matrix + matrix.mT)).detach()
