"""A decoder damaged by blur: its images convolved with a small Gaussian kernel (paper, section 6.3, Figure 6b)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Blurred"]

_RADIUS = 2  # pixels


class Blurred(nn.Module):
    """f(z) of a decoder, blurred: [..., latent] -> [..., n], square images.

    The kernel has 5 x 5 pixels, is proportional to exp(-(dx^2 + dy^2) / (2 sigma^2)) and sums to 1. Images go on by
    reflection in their outermost pixels. The kernel is the product of one along either axis, so the blurred image is
    K F K^T with one matrix K of kernel and reflection.

    Args:
        decoder: [..., latent] -> [..., n], in evaluation mode.
        sigma: standard deviation of the kernel, pixels. The paper's "radius": 0.1 (which changes nothing) to 5.

    Raises:
        ValueError: sigma is not positive; when called, images that are not square or smaller than 3 x 3.

    Examples:
        >>> decoder = Blurred(nn.Linear(2, 784), sigma=1.0)
        >>> decoder(torch.zeros(4, 3, 2)).shape
        torch.Size([4, 3, 784])
    """

    def __init__(self, decoder: nn.Module, sigma: float) -> None:
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"sigma must be positive, not {sigma}")
        self.decoder = decoder
        self.sigma = sigma

    def forward(self, z: Tensor) -> Tensor:
        image = self.decoder(z)
        side = math.isqrt(image.shape[-1])
        if side**2 != image.shape[-1] or side <= _RADIUS:
            raise ValueError(f"{image.shape[-1]} pixels are no square image of 3 x 3 or more")
        matrix = self._matrix(side).to(image)
        return (matrix @ (image.unflatten(-1, (side, side)) @ matrix.mT)).flatten(-2)

    def _matrix(self, side: int) -> Tensor:
        """K, [side, side] float64."""
        offset = torch.arange(-_RADIUS, _RADIUS + 1)
        kernel = torch.softmax(-0.5 * (offset.double() / self.sigma).square(), 0)
        pixel = torch.arange(side)[:, None]
        source = (pixel + offset).abs()  # reflected at the first pixel
        source = side - 1 - (side - 1 - source).abs()  # and at the last
        return torch.zeros(side, side, dtype=torch.float64).scatter_add(1, source, kernel.expand(side, -1))
