"""Linear decoder f(z) = W z + b, whose rate-distortion curve is known in closed form (paper, section 6.1)."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Decoder", "Encoder"]


class Decoder(nn.Module):
    """[..., latent] -> [..., n_pixels]."""

    def __init__(self, latent_dim: int, n_pixels: int) -> None:
        super().__init__()
        self.output = nn.Linear(latent_dim, n_pixels)

    def forward(self, z: Tensor) -> Tensor:
        return self.output(z)


class Encoder(nn.Module):
    """[..., n_pixels] -> [..., 2 latent], means and log variances of q(z|x)."""

    def __init__(self, latent_dim: int, n_pixels: int) -> None:
        super().__init__()
        self.output = nn.Linear(n_pixels, 2 * latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(x)
