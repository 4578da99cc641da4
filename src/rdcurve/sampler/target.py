"""The annealed target q_beta(z|x) ∝ p(z) exp(-beta d(x, f(z))), and a point of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from rdcurve.types import Decoder, Distortion

__all__ = ["Point", "Target"]

_BLOCK_BYTES = 2 << 20  # reconstructions of one block stay in a CPU's cache: 5 times faster at 784 float64 pixels


class Point(NamedTuple):
    """z with all that the target says about it. Beta is kept apart, so that a new beta costs no decoder call."""

    z: Tensor  # [C, N, latent]
    log_prior: Tensor  # [C, N] float64
    distortion: Tensor  # [C, N] float64
    grad_log_prior: Tensor  # [C, N, latent]
    grad_distortion: Tensor  # [C, N, latent]


@dataclass(frozen=True)
class Target:
    """q_beta(z|x) ∝ p(z) exp(-beta d(x, f(z))) for N data points at once."""

    prior: Distribution
    decoder: Decoder
    distortion: Distortion
    x: Tensor  # [N, *data]

    def at(self, z: Tensor) -> Point:
        """Log prior, distortion and their gradients at z [C, N, latent]. The only place the decoder is called."""
        row_bytes = math.prod(self.x.shape[1:]) * self.x.element_size() * z.shape[0]
        block = max(1, _BLOCK_BYTES // row_bytes) if z.device.type == "cpu" else z.shape[1]
        parts = [self._at(z[:, i : i + block], self.x[i : i + block]) for i in range(0, z.shape[1], block)]
        distortion, grad_distortion = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_prior = self.prior.log_prob(z)
            (grad_log_prior,) = torch.autograd.grad(log_prior.sum(), z)
        return Point(z.detach(), log_prior.detach().double(), distortion, grad_log_prior, grad_distortion)

    def _at(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().contiguous().requires_grad_()
            distortion = self.distortion(x, self.decoder(z))
            (grad,) = torch.autograd.grad(distortion.sum(), z)
        return distortion.detach().double(), grad

    def select(self, images: slice | Tensor) -> Target:
        """The target of some of the images."""
        return replace(self, x=self.x[images])

    def check(self, latent_dim: int) -> None:
        """Try the decoder on a few codes and refuse what would spoil a long run.

        Raises:
            ValueError: the prior has another code size or cannot be sampled; reconstructions do not fit x, are
                not finite, differ between two calls, ignore z, or have no finite gradient; the distortion is not
                [C, N].
        """
        if tuple(self.prior.event_shape) != (latent_dim,):
            raise ValueError(f"the prior draws codes of shape {tuple(self.prior.event_shape)}, not ({latent_dim},)")
        if not self.x.isfinite().all():
            raise ValueError("x holds values that are not finite")
        x = self.x[:2]
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            torch.manual_seed(0)
            try:
                z = self.prior.sample((3, len(x)))
            except NotImplementedError:
                raise ValueError(f"the prior {type(self.prior).__name__} cannot be sampled") from None
            try:
                with torch.no_grad():
                    first, second = self.decoder(z), self.decoder(z)
            except (RuntimeError, TypeError, IndexError) as error:
                raise ValueError(
                    f"the decoder cannot map codes of shape {tuple(z.shape)} and type {z.dtype}: {error}"
                ) from error
            if first.dtype != self.x.dtype:
                raise ValueError(f"the decoder returns {first.dtype}, but x holds {self.x.dtype}")
        expected = (3, len(x), *x.shape[1:])
        if tuple(first.shape) != expected:
            raise ValueError(
                f"the decoder maps codes {tuple(z.shape)} to {tuple(first.shape)}; for data of shape "
                f"{tuple(x.shape[1:])} it must return {expected}"
            )
        if not first.isfinite().all():
            raise ValueError("the decoder returns values that are not finite on codes from the prior")
        if not torch.equal(first, second):
            raise ValueError("the decoder is random: two calls on the same codes differ (call .eval() on it?)")
        try:
            point = self.at(z) if len(x) == len(self.x) else self.select(slice(0, len(x))).at(z)
        except RuntimeError as error:
            raise ValueError(f"the decoder is not differentiable in z: {error}") from error
        if tuple(point.distortion.shape) != (3, len(x)):
            raise ValueError(f"the distortion has shape {tuple(point.distortion.shape)}, not {(3, len(x))}")
        if not (point.distortion.isfinite().all() and point.grad_distortion.isfinite().all()):
            raise ValueError("the distortion or its gradient is not finite on codes from the prior")
        if not point.grad_distortion.any():
            raise ValueError("the distortion does not depend on z: its gradient is zero on codes from the prior")
