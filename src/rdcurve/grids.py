"""Draw test images above their reconstructions f(z) by several models at one slope or rate (Figures 11 and 12).

The code z of each image is the one that the curve keeps: a draw from the weighted chains at that beta. What f(z) shows
is what a rate of R nats is enough to say about the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from rdcurve.curve import RDCurve
from rdcurve.files import FileError
from rdcurve.plot import style

__all__ = ["Row", "figure", "nearest", "pixels", "reconstruct"]

_GAP = 0.07  # between two images, as a share of one
_MEANS = "rate and distortion: means over all {} images of the curve"
_STAR = "* not certified: an upper bound on the rate, and perhaps not a close one"
_COLUMNS = (3.8, 10.0, 15.5)  # right ends of the columns of numbers, in font sizes from the images


class Row(NamedTuple):
    """The reconstructions of a model.

    Attributes:
        label: of the model.
        images: [n, *data].
        beta: slope of the curve where they are taken.
        rate, distortion: mean over all images of the curve at that beta, nats and units of d.
        certified: whether the curve is, at that beta.
        n_images: of the curve.
    """

    label: str
    images: np.ndarray
    beta: float
    rate: float
    distortion: float
    certified: bool
    n_images: int


def nearest(curve: RDCurve, *, beta: float | None = None, rate: float | None = None) -> int:
    """Index of the recorded beta nearest to a beta or to a mean rate, on a log scale.

    Args:
        curve: with K betas.
        beta: positive. Either this or
        rate: nats, positive.

    Raises:
        ValueError: both or none given.
    """
    if (beta is None) == (rate is None):
        raise ValueError(f"give beta or rate, one of them, not beta = {beta} and rate = {rate}")
    here, wanted = (curve.beta, beta) if rate is None else (curve.mean("rate"), rate)
    return int(np.nanargmin(np.abs(np.log(np.maximum(here, 1e-12) / wanted))))


@torch.no_grad()
def reconstruct(curve: RDCurve, decoder: nn.Module, k: int, n: int) -> np.ndarray:
    """f(z) of the codes of the first n images at the k-th beta, [n, *data].

    Args:
        curve: with codes [K, N, latent].
        decoder: [n, latent] -> [n, *data], the one that the curve was measured on.
        k: index of the beta.
        n: at most N.

    Raises:
        FileError: the curve keeps no codes, codes of another size than the decoder's, or too few images.
    """
    name = curve.facts.get("curve", "of this name")
    n_images, latent_dim = curve.code.shape[1:]
    if not latent_dim:
        raise FileError(f"curve {name}: keeps no codes; measure it again to draw reconstructions")
    if n > n_images:
        raise FileError(f"curve {name}: {n} images asked for, measured on {n_images}")
    code = torch.from_numpy(curve.code[k, :n]).to(next(decoder.parameters()))
    try:
        return decoder(code).cpu().numpy()
    except RuntimeError as error:
        raise FileError(f"curve {name}: its codes of {latent_dim} numbers do not fit the decoder ({error})") from None


def pixels(data: np.ndarray) -> np.ndarray:
    """What to show of data: grey [n, side, side] or colour [n, side, side, 3], clipped to [0, 1].

    Args:
        data: [n, side^2] in [0, 1] (MNIST), or [n, 3, side, side] in [-1, 1] (CIFAR-10).

    Raises:
        ValueError: other shapes.

    Examples:
        >>> pixels(np.zeros((5, 784))).shape, pixels(np.zeros((5, 3, 32, 32))).shape
        ((5, 28, 28), (5, 32, 32, 3))
    """
    if data.ndim == 2 and math.isqrt(data.shape[1]) ** 2 == data.shape[1]:
        side = math.isqrt(data.shape[1])
        return data.reshape(-1, side, side).clip(0, 1)
    if data.ndim == 4 and data.shape[1] == 3:
        return ((data.transpose(0, 2, 3, 1) + 1) / 2).clip(0, 1)
    raise ValueError(f"images must be [n, side^2] or [n, 3, side, side], not {list(data.shape)}")


def figure(originals: np.ndarray, rows: Sequence[Row], *, title: str, width: float, font_size: float) -> Figure:
    """Originals on top, then a row of reconstructions for each model, with its name, beta, rate and distortion.

    A star stands beside a rate that is not certified, and below what that and the numbers mean.

    Args:
        originals: [n, *data].
        rows: with as many images each.
        title: above.
        width: inches.
        font_size: points.
    """
    lines = [pixels(originals), *(pixels(row.images) for row in rows)]
    n, side = lines[0].shape[:2]
    gap = max(1, round(_GAP * side))
    pitch = side + gap
    sheet = np.ones((len(lines) * pitch - gap, n * pitch - gap, *lines[0].shape[3:]))
    for i, line in enumerate(lines):
        for j, image in enumerate(line):
            sheet[i * pitch : i * pitch + side, j * pitch : j * pitch + side] = image
    with plt.rc_context(style(font_size)):
        drawing, ax = plt.subplots(figsize=(width, width), layout="constrained")
        ax.imshow(sheet, cmap="gray", vmin=0, vmax=1)
        middles = [i * pitch + side / 2 for i in range(len(lines))]
        ax.set_yticks(middles, ["test images", *(row.label for row in rows)])
        ax.set_xticks([])
        ax.tick_params(length=0, labelsize=font_size)
        for spine in ax.spines.values():
            spine.set_visible(False)
        table = [("β", "rate (nats)", "distortion"), *((row.beta, row.rate, row.distortion) for row in rows)]
        for middle, line in zip(middles, table, strict=True):
            for place, entry in zip(_COLUMNS, line, strict=True):
                ax.annotate(
                    entry if isinstance(entry, str) else _number(entry),
                    (1, middle),
                    xycoords=ax.get_yaxis_transform(),
                    xytext=(place * font_size, 0),
                    textcoords="offset points",
                    ha="right",
                    va="center_baseline",
                )
        for middle, row in zip(middles[1:], rows, strict=True):
            if not row.certified:
                place = ((_COLUMNS[1] + 0.1) * font_size, 0)
                ax.annotate(
                    "*", (1, middle), xycoords=ax.get_yaxis_transform(), xytext=place, textcoords="offset points",
                    va="center_baseline",
                )  # fmt: skip
        notes = [_MEANS.format(" or ".join(map(str, sorted({row.n_images for row in rows}))))]
        if not all(row.certified for row in rows):
            notes.append(_STAR)
        ax.set_xlabel("\n".join(notes))
        drawing.suptitle(title)
        drawing.draw_without_rendering()  # lays out; how wide the sheet becomes says how high the figure must be
        high = ax.get_position().width * width * sheet.shape[0] / sheet.shape[1]
        drawing.set_figheight(high + (2.3 + 1.2 * len(notes)) * font_size / 72)
    return drawing


def _number(value: float) -> str:
    """Three digits.

    Examples:
        >>> _number(3512.3), _number(99.96), _number(41.26), _number(0.01234)
        ('3512', '100', '41.3', '0.0123')
    """
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"
