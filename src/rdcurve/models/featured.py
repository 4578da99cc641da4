"""A decoder seen through a feature network phi: z -> phi(f(z)) (paper, section 6.4, Figure 7).

The squared error of this decoder on data phi(x) is the distance of features |phi(x) - phi(f(z))|^2. Data simulated in
feature space, phi(f(z)) + N(0, I / (2 beta)), have the density that BDMC needs; simulated as images they would not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rdcurve.models.checkpoint import build

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """phi(f(z)): [..., latent] -> [..., n_features].

    Args:
        latent_dim: size of the code.
        decoder: of images: its "architecture" and "arguments", as in a checkpoint.
        classifier: the same of the network whose features are phi.

    Raises:
        ValueError: an unknown architecture, or not one of a decoder and one of a classifier; another size of the code.
    """

    def __init__(self, latent_dim: int, decoder: Mapping[str, Any], classifier: Mapping[str, Any]) -> None:
        super().__init__()
        inner = decoder["arguments"]["latent_dim"]
        if inner != latent_dim:
            raise ValueError(f"latent_dim is {latent_dim}, but that of the decoder of images is {inner}")
        self.decoder = build("Decoder", **decoder)
        self.classifier = build("Classifier", **classifier)

    def forward(self, z: Tensor) -> Tensor:
        return self.observe(self.decoder(z))

    def observe(self, x: Tensor) -> Tensor:
        """phi(x), what the data become: [..., n_pixels] -> [..., n_features]."""
        return self.classifier.features(x)
