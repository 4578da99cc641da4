"""Products with the weights of a decoder, which never change.

MKL lays weights out in blocks before it multiplies, at each call anew. With the few hundred rows of a tile that is a
twentieth of the time or more, so here it is done once. Without MKL, and for all else than layers of float32, torch
multiplies as ever.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["PackedProducts"]

_LEAST = 1 << 16  # numbers of a weight; smaller ones are not worth the call
_AVAILABLE = torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


class _Packed(NamedTuple):
    """A weight [out, in] and its transpose as MKL wants them for products of some number of rows."""

    state: tuple[int, int, int]  # rows, and what changes when somebody changes the weight
    weight: Tensor
    forward: Tensor
    transposed: Tensor
    backward: Tensor


_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # by weight


class PackedProducts(TorchFunctionMode):
    """Inside, layers with large weights multiply by packed ones, forward and back to their input.

    Same values but for rounding, and each row rounded in the same way wherever it stands. No gradient reaches weights.

    Examples:
        >>> layer, x = nn.Linear(256, 256), torch.randn(8, 256)
        >>> with PackedProducts():
        ...     y = layer(x)
        >>> torch.allclose(y, layer(x), atol=1e-5)
        True
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and _AVAILABLE and len(args) == 3 and _fits(*args[:2]):
            return _Linear.apply(args[0], _pack(args[1], args[0].shape[:-1].numel()), args[2])
        return func(*args, **(kwargs or {}))


def _fits(x: Tensor, weight: Tensor) -> bool:
    return (
        isinstance(weight, nn.Parameter)  # no passing tensor, made anew for each call
        and weight.numel() >= _LEAST
        and weight.device.type == x.device.type == "cpu"
        and weight.dtype == x.dtype == torch.float32
        and x.shape[-1] == weight.shape[-1]  # else the error is torch's own
    )


def _pack(weight: Tensor, rows: int) -> _Packed:
    state = (rows, weight._version, weight.data_ptr())
    packed = _packed.get(weight)
    if packed is None or packed.state != state:
        plain = weight.detach().contiguous()
        transposed = plain.T.contiguous()
        packed = _Packed(state, plain, _reorder(plain, rows), transposed, _reorder(transposed, rows))
        _packed[weight] = packed
    return packed


def _reorder(weight: Tensor, rows: int) -> Tensor:
    return torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)


class _Linear(torch.autograd.Function):
    """x [..., in] -> x W^T + b [..., out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: _Packed, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return torch.ops.mkl._mkl_linear(x, packed.forward, packed.weight, bias, packed.state[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        packed = ctx.packed
        back = torch.ops.mkl._mkl_linear(gradient, packed.backward, packed.transposed, None, packed.state[0])
        return back, None, None
