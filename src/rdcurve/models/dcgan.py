"""Convolutional networks of the paper's CIFAR-10 models (Radford et al. 2015; paper, appendix C.1).

decoder          linear to 2 x 2 pixels, 4 times [batch norm, relu, transposed convolution 4 x 4 of stride 2], tanh;
                 8w, 4w, 2w, w and 3 channels, published with w = 128
discriminator    4 times [convolution 4 x 4 of stride 2, normalisation, leaky relu], linear;
                 3, w, 2w, 4w and 8w channels
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["NORMALISATIONS", "Decoder", "Discriminator"]

NORMALISATIONS = ("none", "batch", "spectral")
_SIDE = 2  # of the smallest layer, in pixels
_START = 0.02  # standard deviation of the weights at the start (Radford et al. 2015)


class Decoder(nn.Module):
    """[..., latent] -> [..., 3, 32, 32], in (-1, 1).

    In training an image depends on the batch that it is drawn with, by batch normalisation. In evaluation the
    statistics are those of `settle`, and an image is a function of its code alone.

    Args:
        latent_dim: size of the code.
        width: channels of the last layer of features; each layer before has twice as many.
    """

    def __init__(self, latent_dim: int, width: int) -> None:
        super().__init__()
        channels = [8 * width, 4 * width, 2 * width, width, 3]
        self.project = nn.Linear(latent_dim, channels[0] * _SIDE**2, bias=False)
        # momentum None: statistics are plain means over all batches since they were reset
        self.norms = nn.ModuleList(nn.BatchNorm2d(n, momentum=None) for n in channels[:-1])
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(n_in, n_out, 4, stride=2, padding=1, bias=False) for n_in, n_out in pairwise(channels)
        )
        _start(self)

    def forward(self, z: Tensor) -> Tensor:
        x = self.project(z.reshape(-1, z.shape[-1])).unflatten(1, (-1, _SIDE, _SIDE))
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            x = convolution(torch.relu(norm(x)))
        return torch.tanh(x).reshape(*z.shape[:-1], *x.shape[1:])

    @torch.no_grad()
    def settle(self, batches: Iterable[Tensor]) -> None:
        """Take the statistics of these codes, z [B, latent] each, into evaluation, which starts here."""
        for norm in self.norms:
            norm.reset_running_stats()
        self.train()
        for z in batches:
            self(z)
        self.eval()


class Discriminator(nn.Module):
    """[batch, 3, 32, 32] -> [batch, 1], in logits.

    Args:
        width: channels of the first layer.
        normalisation: of the convolutions: `none`; `batch`, but for the first (Radford et al. 2015); `spectral`, of
            all weights, each divided by its largest singular value (Miyato et al. 2018).

    Raises:
        ValueError: an unknown normalisation; lists the known.
    """

    def __init__(self, width: int, normalisation: str) -> None:
        super().__init__()
        if normalisation not in NORMALISATIONS:
            raise ValueError(f"unknown normalisation {normalisation!r}; known: {', '.join(NORMALISATIONS)}")
        channels = [3, width, 2 * width, 4 * width, 8 * width]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(n_in, n_out, 4, stride=2, padding=1) for n_in, n_out in pairwise(channels)
        )
        # always by the statistics of the batch: real and generated images come in batches of their own
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(n, track_running_stats=False) if normalisation == "batch" and i > 0 else nn.Identity()
            for i, n in enumerate(channels[1:])
        )
        self.output = nn.Linear(channels[-1] * _SIDE**2, 1)
        _start(self)
        if normalisation == "spectral":
            for layer in [*self.convolutions, self.output]:
                spectral_norm(layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.examine(x)[0]

    def examine(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits [batch, 1], and what each of the four leaky relus is given, [batch, channels, side, side]."""
        hidden = []
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            hidden.append(norm(convolution(x)))
            x = leaky_relu(hidden[-1], 0.2)
        return self.output(x.flatten(1)), hidden


def _start(network: nn.Module) -> None:
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, _START)
        elif isinstance(part, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(part.weight, 0.0, _START)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
