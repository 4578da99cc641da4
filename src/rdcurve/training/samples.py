"""What a network is like, for the eye: a grid of a decoder's samples from the prior, or of a classifier's filters."""

from __future__ import annotations

import math
import os

import torch
from matplotlib.image import imsave
from torch import Tensor, nn
from torch.nn.functional import pad

from rdcurve.files import writing

__all__ = ["filter_grid", "sample_grid", "save_grid"]

_SEED = 0  # the same codes for every model of that size: grids can be compared
_MAGNIFICATION = 16  # of filters, which are small


@torch.no_grad()
def sample_grid(decoder: nn.Module, latent_dim: int, rows: int = 8) -> Tensor:
    """f(z) for `rows`^2 codes z ~ N(0, I), side by side: [rows side, rows side, channels], clipped to [0, 1].

    Args:
        decoder: [batch, latent] -> [batch, side^2], grey values in [0, 1], or [batch, channels, side, side] in [-1, 1].
        latent_dim: size of the code.
        rows: of images, and columns.
    """
    weights = next(decoder.parameters())
    z = torch.randn(rows**2, latent_dim, generator=torch.Generator().manual_seed(_SEED), dtype=torch.float64)
    images = decoder(z.to(weights)).cpu()
    if images.dim() == 2:
        side = math.isqrt(images.shape[1])
        return _side_by_side(images.reshape(-1, 1, side, side).clamp(0, 1))
    return _side_by_side((images.clamp(-1, 1) + 1) / 2)


def filter_grid(network: nn.Module) -> Tensor:
    """The weights of the first layer, a convolution, side by side: [H, W, channels]; 0 is grey."""
    filters = next(network.parameters()).detach().cpu()
    filters = 0.5 + filters / (2 * filters.abs().max())
    enlarged = filters.repeat_interleave(_MAGNIFICATION, -1).repeat_interleave(_MAGNIFICATION, -2)
    return _side_by_side(enlarged)


def save_grid(path: str | os.PathLike[str], grid: Tensor) -> None:
    """Write a grid [H, W, 1 or 3] as PNG, the same bytes for the same numbers."""
    with writing(path) as temporary:
        imsave(temporary, grid.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, metadata={"Software": None})


def _side_by_side(images: Tensor) -> Tensor:
    """[n, channels, H, W] -> [rows H, columns W, channels], as square as can be; places left over are black."""
    n, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    grid = pad(images, (0, 0, 0, 0, 0, 0, 0, rows * columns - n)).reshape(rows, columns, channels, height, width)
    return grid.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
