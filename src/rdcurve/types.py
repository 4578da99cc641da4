"""What a user brings: the contracts of a decoder and of a distortion. Any callable that fits will do."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Decoder", "Distortion", "SamplableDistortion"]


class Decoder(Protocol):
    """f(z): codes [..., latent] -> reconstructions [..., *data], differentiable in z and deterministic."""

    def __call__(self, z: Tensor) -> Tensor: ...


class Distortion(Protocol):
    """d(x, f(z)): data [N, *data] and reconstructions [C, N, *data] -> [C, N] in float64.

    It must be bounded below; every `beta * d` is in nats.
    """

    def __call__(self, x: Tensor, reconstruction: Tensor) -> Tensor: ...


@runtime_checkable
class SamplableDistortion(Distortion, Protocol):
    """A distortion for which exp(-beta d(x, f)) is, up to a constant free of f, a density of x that can be sampled.

    Only these can be validated by BDMC, which needs data simulated from the model.
    """

    def sample(self, reconstruction: Tensor, beta: float) -> Tensor:
        """x ~ exp(-beta d(x, f)) / constant, of the shape of `reconstruction`, drawn from torch's default generator."""
        ...
