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

__all__ = ["PackedProducts", "forget"]

_LEAST = 1 << 16  # numbers of a weight; smaller ones are not worth the call
_AVAILABLE = torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


class _Packed(NamedTuple):
    """A weight [out, in] and its transpose as MKL wants them for products of some number of rows."""

    rows: int
    weight: Tensor
    forward: Tensor
    transposed: Tensor
    backward: Tensor


# of each weight, what changes when somebody changes it in the usual ways, and how it is packed, by number of rows
_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class PackedProducts(TorchFunctionMode):
    """Inside, layers with large weights multiply by packed ones, forward and back to their input.

    Same values but for rounding, and each row rounded in the same way wherever it stands. For gradients by z alone:
    none reaches the weights and biases of such a layer.

    Examples:
        >>> layer, x = nn.Linear(256, 256), torch.randn(8, 256)
        >>> with PackedProducts():
        ...     y = layer(x)
        >>> torch.allclose(y, layer(x), atol=1e-5)
        True
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # a compiler traces what it is shown, and better torch's own
        if not torch.compiler.is_compiling() and func is F.linear and len(args) == 3 and _fits(*args):
            x, weight, bias = args
            return _Linear.apply(x, _pack(weight, x.shape[:-1].numel()), bias)
        return func(*args, **(kwargs or {}))


def forget() -> None:
    """Let go of all packed weights: changes through `weight.data` leave no trace by which they could be noticed."""
    _packed.clear()


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """A layer's own weight and bias, nothing that was computed from z, large enough, and no other rules at work."""
    return (
        _AVAILABLE
        and isinstance(weight, nn.Parameter)
        and (bias is None or isinstance(bias, nn.Parameter))
        and all(
            each.device.type == "cpu" and each.dtype == torch.float32 for each in (x, weight, bias) if each is not None
        )
        and weight.numel() >= _LEAST
        and x.shape[-1:] == weight.shape[1:]  # else the error is torch's own
        and (bias is None or bias.shape == weight.shape[:1])
        and not torch.is_autocast_enabled("cpu")
        and torch._C._functorch.peek_interpreter_stack() is None  # vmap, jvp
    )


def _pack(weight: Tensor, rows: int) -> _Packed:
    state = (weight._version, weight.data_ptr())
    before, by_rows = _packed.get(weight) or (None, {})
    if before != state:
        by_rows = {}
        _packed[weight] = state, by_rows
    if rows not in by_rows:
        plain = weight.detach().contiguous()
        transposed = plain.T.contiguous()
        by_rows[rows] = _Packed(rows, plain, _reorder(plain, rows), transposed, _reorder(transposed, rows))
    return by_rows[rows]


def _reorder(weight: Tensor, rows: int) -> Tensor:
    return torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)


class _Linear(torch.autograd.Function):
    """x [..., in] -> x W^T + b [..., out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: _Packed, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return torch.ops.mkl._mkl_linear(x, packed.forward, packed.weight, bias, packed.rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        packed = ctx.packed
        if torch.is_grad_enabled():  # of a decoder that takes a gradient itself, which is to be differentiated
            return gradient @ packed.weight, None, None
        return torch.ops.mkl._mkl_linear(gradient, packed.backward, packed.transposed, None, packed.rows), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return tangent @ ctx.packed.transposed
