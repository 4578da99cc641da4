"""Fully connected networks of the paper's MNIST models: VAE and GAN with tanh, AAE with relu (appendix C.1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "Decoder", "Discriminator", "Encoder", "layers"]

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


class Decoder(nn.Module):
    """f(z) = sigmoid(W_n a(... a(W_1 z + b_1) ...) + b_n): [..., latent] -> [..., n_pixels], in (0, 1).

    Args:
        latent_dim: size of the code.
        n_pixels: size of the image.
        hidden: widths of the hidden layers, from code to image.
        activation: a, one of `ACTIVATIONS`.
    """

    def __init__(self, latent_dim: int, n_pixels: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        self.layers = layers([latent_dim, *hidden, n_pixels], activation)

    @torch.no_grad()
    def start_at(self, mean: Tensor) -> None:
        """Give the output the bias with which f = `mean` [n_pixels] where the weights add nothing (Burda et al. 2016).

        A tanh network is nearly odd in z at its start. Without that bias it learns to draw digits on one side of the
        prior and leaves their negatives, white paper and all, on the other.
        """
        self.layers[-1].bias.copy_(torch.logit(mean, eps=0.01))

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(z))


class Encoder(nn.Module):
    """[..., n_pixels] -> [..., 2 latent], means and log variances of q(z|x); the decoder's widths in reverse.

    One that is not `stochastic` returns codes [..., latent].
    """

    def __init__(
        self, latent_dim: int, n_pixels: int, hidden: Sequence[int], activation: str, stochastic: bool = True
    ) -> None:
        super().__init__()
        self.layers = layers([n_pixels, *reversed(hidden), (1 + stochastic) * latent_dim], activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Discriminator(nn.Module):
    """[..., n_inputs] -> [..., 1], in logits; leaky relu between layers."""

    def __init__(self, n_inputs: int, hidden: Sequence[int]) -> None:
        super().__init__()
        widths = [n_inputs, *hidden, 1]
        stack = [part for n_in, n_out in pairwise(widths) for part in (nn.Linear(n_in, n_out), nn.LeakyReLU(0.2))]
        self.layers = nn.Sequential(*stack[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def layers(widths: Sequence[int], activation: str) -> nn.Sequential:
    """Linear layers of these widths, input and output included, with an activation between any two.

    Weights start with variance 1 / n_in, so that a signal keeps its size through the layers. With torch's own start it
    shrinks by sqrt(3) in each, and a deep tanh VAE may never find its way out of q(z|x) = p(z).

    Raises:
        ValueError: an unknown activation; lists the known.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    stack: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        linear = nn.Linear(n_in, n_out)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="linear")
        stack += [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*stack[:-1])
