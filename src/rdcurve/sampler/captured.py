"""A function of tensors as one CUDA graph: hundreds of small kernels launched at once.

At the sizes of a curve the GPU waits for the host to launch kernels, not the other way round. A graph records the
launches once and repeats them. It is used only where it gives the same bits as the function itself; a result therefore
does not depend on whether one was used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

__all__ = ["Number", "captured"]

_Result = TypeVar("_Result")
Number = float | Tensor  # or a tensor of one: a graph keeps a Python number as it was when recorded


def captured(function: Callable[..., _Result], *example: Any) -> Callable[..., _Result]:
    """`function`, replayed from a CUDA graph.

    Args:
        function: of (nested tuples of) CUDA tensors, to the same. It must not depend on the tensors' values in any
            other way than through them, nor bring a value to the host.
        example: arguments; later ones must have the same shapes and types.

    Returns:
        A function of such arguments, whose results are fresh tensors; `function` itself, with a warning, where it
        cannot be captured or the graph gives other bits on the example. It raises ValueError for other shapes, which
        a copy would broadcast.
    """
    inputs = [leaf.clone() for leaf in _leaves(example)]

    def call() -> _Result:
        return function(*_rebuild(example, iter(inputs)))

    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # libraries choose their algorithms and set up their workspaces here
                expected = call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = call()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        warnings.warn(f"no CUDA graph, each kernel is launched alone: {reason}", RuntimeWarning, stacklevel=2)
        return function

    def replay(*arguments: Any) -> _Result:
        for mine, given in zip(inputs, _leaves(arguments), strict=True):
            if mine.shape != given.shape:
                raise ValueError(f"a graph recorded with {tuple(mine.shape)} is given {tuple(given.shape)}")
            mine.copy_(given)
        graph.replay()
        return cast(_Result, _rebuild(output, (leaf.clone() for leaf in _leaves(output))))

    for got, wanted in zip(_leaves(replay(*example)), _leaves(expected), strict=True):
        if not torch.equal(got.nan_to_num(), wanted.nan_to_num()):
            warnings.warn("no CUDA graph, each kernel is launched alone: other bits", RuntimeWarning, stacklevel=2)
            return function
    return replay


def _leaves(value: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples."""
    if isinstance(value, Tensor):
        yield value
    else:
        for part in value:
            yield from _leaves(part)


def _rebuild(like: Any, leaves: Iterator[Tensor]) -> Any:
    """Nested tuples like those, of other tensors."""
    if isinstance(like, Tensor):
        return next(leaves)
    parts = [_rebuild(part, leaves) for part in like]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
