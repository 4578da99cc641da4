"""Sums and products that round alike wherever an image stands and whatever images stand beside it.

torch adds up the columns of a matrix 4 vectors at a time, what is left one vector at a time, the rest one by one, each
in another order. With a number of columns that fills whole blocks every column is added up in the same way.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["full", "products"]

_LANES = 32  # four vectors of eight float64


def full(value: Tensor) -> Tensor:
    """`value` [..., N] with copies of its first column appended, until whole blocks are filled; cut the result to N.

    Examples:
        >>> full(torch.zeros(3, 50)).shape
        torch.Size([3, 64])
    """
    missing = -value.shape[-1] % _LANES
    return torch.cat([value, value[..., :1].expand(*value.shape[:-1], missing)], -1) if missing else value


def products(vectors: Tensor, matrix: Tensor) -> Tensor:
    """vectors [..., C, d] @ matrix [..., d, e], one product per image.

    On a GPU a batched product is computed by another kernel when the batch is of another size, and a sum along the
    innermost of few columns is not. So there it is written out.

    Examples:
        >>> products(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        tensor([[3., 2.]])
    """
    if not vectors.is_cuda:
        return vectors @ matrix
    return (vectors[..., None, :] * matrix.mT[..., None, :, :]).contiguous().sum(-1)
