"""Convolutional digit classifier, whose features are compared in Figure 7 (paper, section 6.4).

    28 x 28 -> conv 5 x 5, 20 -> relu -> max-pool 2 -> conv 5 x 5, 50 -> relu -> max-pool 2 -> linear, n_classes

The features are what the second relu returns, 50 x 8 x 8 of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, pad, pixel_unshuffle

__all__ = ["Classifier"]


class Classifier(nn.Module):
    """[..., 784] -> logits [..., n_classes]."""

    n_features = 3200

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 20, 5)
        self.second = nn.Conv2d(20, 50, 5)
        self.output = nn.Linear(800, n_classes)

    def features(self, x: Tensor) -> Tensor:
        """[..., 784] -> [..., 3200]."""
        return self._features(x).reshape(*x.shape[:-1], self.n_features)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.output(max_pool2d(self._features(x), 2).flatten(1))
        return logits.reshape(*x.shape[:-1], self.output.out_features)

    def _features(self, x: Tensor) -> Tensor:
        """[..., 784] -> [rows, 50, 8, 8]."""
        image = x.reshape(-1, 1, 28, 28)
        return torch.relu(
            self.second(torch.relu(self._first_pooled(image)))
        )  # the relu after the pool: a quarter of it

    def _first_pooled(self, image: Tensor) -> Tensor:
        """max_pool2d(first(image), 2), [rows, 1, 28, 28] -> [rows, 20, 12, 12], in half of the time.

        The largest of four convolutions with stride 2, shifted by a pixel; blocks of 2 x 2 pixels become channels, for
        convolutions are slow with one.
        """
        shifted = [pad(self.first.weight, (j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1)]  # 6 x 6
        four = conv2d(pixel_unshuffle(image, 2), pixel_unshuffle(torch.cat(shifted), 2))
        return four.unflatten(1, (4, 20)).amax(1) + self.first.bias[:, None, None]
