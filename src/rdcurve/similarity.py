"""Structural similarity as a distortion (Wang, Bovik, Sheikh and Simoncelli 2004), at one scale and at several.

Under a Gaussian window of 11 x 11 pixels with standard deviation 1.5, wherever it fits into the image ("valid"), with
local means m, variances s^2 and covariance s_xf, and L the range of the intensities, which start at 0,

    l = (2 m_x m_f + c_1) / (m_x^2 + m_f^2 + c_1)        luminance,    c_1 = (0.01 L)^2
    c = (2 s_xf + c_2) / (s_x^2 + s_f^2 + c_2)           contrast and structure,    c_2 = (0.03 L)^2

    SSIM    = mean over windows of l c
    MS-SSIM = (mean of l c)^w_M prod_(j < M) (mean of c)^w_j,    scale j halved j - 1 times by 2 x 2 means

(the latter: Wang, Simoncelli and Bovik 2003). d = 1 - SSIM lies in [0, 2], d = 1 - MS-SSIM in [0, 1]; either is 0 only
for equal images. Computed from e = f - x, so that nothing cancels where the images nearly agree:

    1 - l = m_e^2 / (m_x^2 + m_f^2 + c_1),    1 - c = s_e^2 / (s_x^2 + s_f^2 + c_2).

No x can be simulated from exp(-beta d), so neither has a `sample` method and BDMC has nothing to say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

__all__ = ["MSSSIM", "SSIM"]

_SIGMA = 1.5  # of the window, pixels
_K1, _K2 = 0.01, 0.03
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, from fine to coarse
_LEAST = 0.01  # mean similarity of a scale below which its power is continued


@dataclass(frozen=True)
class SSIM:
    """d = 1 - SSIM(x, f(z)), window of 11 x 11 pixels, mean over windows and channels.

    Data are square images [N, n] or images [N, ..., height, width].

    Args:
        low, high: intensities of black and white. Luminance compares distances from black: for images in [-1, 1] give
            low = -1.

    Raises:
        ValueError: low is not below high; when called, images that are not square or smaller than the window.

    Examples:
        >>> x = torch.zeros(1, 784)
        >>> SSIM()(x, torch.stack([x, x + 1])).round(decimals=4)
        tensor([[0.0000],
                [0.9999]], dtype=torch.float64)
    """

    low: float = 0.0
    high: float = 1.0
    label = "Distortion (1 − SSIM)"

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)

    def __call__(self, x: Tensor, reconstruction: Tensor) -> Tensor:
        x, f = (_images(values, x.ndim - 1, self.low) for values in (x, reconstruction))
        luminance, contrast = _losses(x, f, 11, self.high - self.low)
        return (luminance + contrast - luminance * contrast).flatten(2).mean(-1)


@dataclass(frozen=True)
class MSSSIM:
    """d = 1 - MS-SSIM(x, f(z)), window of 7 x 7 pixels, mean over channels.

    The published five scales with a window of 11 need images of 176 pixels. MNIST has 28, CIFAR-10 has 32. With a
    window of 7 and the same standard deviation three scales fit, of 28, 14 and 7 pixels; one of 11 would leave two. The
    weights of the scales that fit are the published ones, divided by their sum.

    A mean t of c or l c can be negative, and t^w = exp(w log t) means nothing then. Below e = 0.01 the logarithm goes
    on as its reflection in the point (e, log e), that is 2 log e - log(2 e - t). So d has a continuous derivative,
    stays below 1 and never becomes flat: a chain at a wrong image still feels where the right ones are.

    Args:
        low, high: as of `SSIM`.

    Raises:
        ValueError: as `SSIM`.
    """

    low: float = 0.0
    high: float = 1.0
    label = "Distortion (1 − MS-SSIM)"

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)

    def __call__(self, x: Tensor, reconstruction: Tensor) -> Tensor:
        x, f = (_images(values, x.ndim - 1, self.low) for values in (x, reconstruction))
        n_scales = max(1, sum(min(x.shape[-2:]) >> j >= 7 for j in range(len(_WEIGHTS))))
        total = sum(_WEIGHTS[:n_scales])
        log_similarity = torch.zeros((), dtype=torch.float64, device=x.device)
        for j, weight in enumerate(_WEIGHTS[:n_scales]):
            if j > 0:
                x, f = (_both(values, *(_halving(n) for n in values.shape[-2:])) for values in (x, f))
            luminance, contrast = _losses(x, f, 7, self.high - self.low)
            loss = luminance + contrast - luminance * contrast if j == n_scales - 1 else contrast
            log_similarity = log_similarity + weight / total * _log_similarity(loss.mean((-2, -1)))
        return -torch.expm1(log_similarity).reshape(*log_similarity.shape[:2], -1).mean(-1)


def _check_range(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"low must be below high, not {low} and {high}")


def _images(values: Tensor, n_dims: int, low: float) -> Tensor:
    """Intensities from 0 in float64, [..., height, width], of data with `n_dims` dimensions.

    In float32 the variances under a window, as differences of moments, would be off by 1e-4 of c_2.
    """
    if n_dims == 1:
        side = math.isqrt(values.shape[-1])
        if side**2 != values.shape[-1]:
            raise ValueError(f"{values.shape[-1]} pixels are no square image")
        values = values.unflatten(-1, (side, side))
    return values.double() - low


def _losses(x: Tensor, f: Tensor, size: int, intensities: float) -> tuple[Tensor, Tensor]:
    """1 - l and 1 - c under every window of `size` pixels, [C, N, ..., height - size + 1, width - size + 1]."""
    if min(x.shape[-2:]) < size:
        raise ValueError(f"a window of {size} pixels does not fit images of {x.shape[-2]} x {x.shape[-1]}")
    windows = [_windows(n, size) for n in x.shape[-2:]]
    e = f - x
    mean_x, mean_f = _both(x, *windows), _both(f, *windows)
    squares = mean_x.square() + mean_f.square()
    luminance = (mean_f - mean_x).square() / (squares + (_K1 * intensities) ** 2)
    variance_of_e = _both(e * e, *windows) - (mean_f - mean_x).square()
    variances = _both(x * x + f * f, *windows) - squares
    return luminance, variance_of_e / (variances + (_K2 * intensities) ** 2)


def _log_similarity(loss: Tensor) -> Tensor:
    """log t of t = 1 - loss, and what `MSSSIM` takes in its place below `_LEAST`."""
    most = 1 - _LEAST
    return torch.log1p(-loss.clamp(max=most)) - torch.log1p((loss - most).clamp(min=0) / _LEAST)


def _both(images: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """rows X columns^T of every image X: a separable filter as two products with banded matrices."""
    left, right = (torch.as_tensor(matrix, device=images.device) for matrix in (rows, columns))
    return left @ (images @ right.mT)


# numpy and not torch: a tensor made inside a transform of torch.func belongs to it and must not outlive it
@cache
def _windows(n: int, size: int) -> np.ndarray:
    """The Gaussian window at every place where it fits into n pixels, [n - size + 1, n]."""
    window = np.exp(-0.5 * np.square((np.arange(size) - size // 2) / _SIGMA))
    matrix = np.zeros((n - size + 1, n))
    for i, row in enumerate(matrix):
        row[i : i + size] = window / window.sum()
    return matrix


@cache
def _halving(n: int) -> np.ndarray:
    """Means of neighbours, [n // 2, n]; of an odd number of pixels the last is left out."""
    return np.kron(np.eye(n // 2, n // 2 + n % 2), [[0.5, 0.5]])[:, :n]
