"""What a decoder draws: a grid of samples from the prior, for the eye."""

from __future__ import annotations

import os

import torch
from matplotlib.image import imsave
from torch import Tensor, nn

from rdcurve.files import writing

__all__ = ["sample_grid", "save_sample_grid"]

_SEED = 0  # the same codes for every model of that size: grids can be compared


@torch.no_grad()
def sample_grid(decoder: nn.Module, latent_dim: int, rows: int = 8) -> Tensor:
    """f(z) for `rows`^2 codes z ~ N(0, I), side by side: [rows side, rows side], clipped to [0, 1].

    Args:
        decoder: [batch, latent] -> [batch, side^2], grey values in [0, 1].
        latent_dim: size of the code.
        rows: of images, and columns.
    """
    weights = next(decoder.parameters())
    z = torch.randn(rows**2, latent_dim, generator=torch.Generator().manual_seed(_SEED), dtype=torch.float64)
    pixels = decoder(z.to(weights)).clamp(0, 1).cpu()
    side = round(pixels.shape[-1] ** 0.5)
    return pixels.reshape(rows, rows, side, side).transpose(1, 2).reshape(rows * side, rows * side)


def save_sample_grid(path: str | os.PathLike[str], decoder: nn.Module, latent_dim: int) -> None:
    """Write `sample_grid` as PNG, the same bytes for the same weights."""
    with writing(path) as temporary:
        grid = sample_grid(decoder, latent_dim).numpy()
        imsave(temporary, grid, cmap="gray", vmin=0, vmax=1, metadata={"Software": None})
