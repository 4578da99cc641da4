"""The annealed target q_beta(z|x) ∝ p(z) exp(-beta d(x, f(z))), and a point of it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.modules.batchnorm import _BatchNorm

from rdcurve.sampler.prior import balanced, log_density, slope
from rdcurve.sampler.products import PackedProducts, forget
from rdcurve.types import Decoder, Distortion

__all__ = ["Point", "Target", "exact_products", "one_thread_per_tile"]

# Rows of one decoder call. The decoder only ever sees calls of one shape, the last one padded: a matrix product
# rounds a row in the same way wherever it stands, but not in a product of another shape. So the result for an image is
# the same, to the bit, whatever other images are measured beside it and on however many cores. On a GPU it takes 2048
# rows of MNIST to fill a matrix product, and as many data values of any other set; on a CPU 208, which 400 chains fill
# twice and 2000 ten times. A multiple of 16, since a product computes what is left over in another way.
_TILE = {"cpu": (208 * 784, 128, 1024), "cuda": (2048 * 784, 128, 8192)}  # data values; rows at least, at most
_PRIORS = (
    "give a torch distribution of codes with `sample` and `log_prob`, as rdcurve.standard_normal(latent_dim), "
    "rdcurve.scale_mixture or rdcurve.uniform"
)
_MIXES = (
    "returns for a code what depends on the other codes of the batch; call .eval() on it, and let every batch norm "
    "have running statistics"
)
_FLAT = "one that takes [batch, code] only: lambda z: f(z.flatten(0, -2)).unflatten(0, z.shape[:-1])"


class Point(NamedTuple):
    """z with all that the target says about it. Beta is kept apart, so that a new beta costs no decoder call."""

    z: Tensor  # [C, N, latent]
    log_prior: Tensor  # [C, N] float64, of the prior that chains are annealed under
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
    tf32_gradients: bool = False  # on a GPU, `gradients` and the backward pass of `at` multiply in TF32; energies never

    @cached_property
    def annealed(self) -> Distribution:
        """q(z), under which chains begin and move: the prior p(z) itself, but for mixtures (`balanced`).

        Their weights are those of q(z) exp(-beta d). Times p(z) / q(z), they are those of p(z) exp(-beta d).
        """
        return balanced(self.prior)

    @property
    def tile(self) -> int:
        """The number of rows, codes, of each decoder call with a gradient."""
        values, least, most = _TILE.get(self.x.device.type, _TILE["cuda"])
        rows = min(max(values // math.prod(self.x.shape[1:]), least), most)
        return rows - rows % 16

    def log_ratio(self, z: Tensor) -> Tensor:
        """log p(z) - log q(z), what a chain at z [C, N, latent] adds to its log weight to count for the prior, [C, N].

        Zeros where chains are annealed under the prior itself.
        """
        if self.annealed is self.prior:
            return torch.zeros(z.shape[:2], dtype=torch.float64, device=z.device)
        with torch.no_grad():  # a learned prior has parameters
            return self.prior.log_prob(z).double() - self.annealed.log_prob(z).double()

    def at(self, z: Tensor) -> Point:
        """Log prior, distortion and their gradients at z [C, N, latent]."""
        distortion, grad_distortion = self._distortion(z)
        log_prior, grad_log_prior = log_density(self.annealed, z)
        return Point(z.detach(), log_prior.double(), distortion, grad_log_prior, grad_distortion)

    def gradients(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients alone, of log prior and distortion at z [C, N, latent], each [C, N, latent].

        For the points between the ends of a trajectory, whose energies nobody asks for. So with `tf32_gradients` the
        forward pass may multiply in TF32, too.
        """
        return slope(self.annealed, z), self._distortion(z, energy=False)[1]

    def distortions(self, z: Tensor) -> Tensor:
        """d alone, [C, N, latent] -> [C, N] float64, without the gradient."""
        rows = max(1, (1 << 22) // (z.shape[1] * math.prod(self.x.shape[1:])))
        with torch.no_grad():
            return torch.cat([self.distortion(self.x, self.decoder(part)).double() for part in z.split(rows)])

    def _distortion(self, z: Tensor, energy: bool = True) -> tuple[Tensor, Tensor]:
        """d and its gradient, computed in tiles of a fixed number of rows; d is exact if it is an `energy`.

        The only place the decoder is called with a gradient.
        """
        n_chains, n_images, latent_dim = z.shape
        rows = z.detach().transpose(0, 1).reshape(-1, latent_dim)  # chains of one image side by side
        tile = self.tile
        image = torch.arange(n_images, device=z.device)[:, None].expand(-1, n_chains).reshape(-1)
        padding = -len(rows) % tile
        rows = torch.cat([rows, rows[:1].expand(padding, -1)])
        image = torch.cat([image, image[:1].expand(padding)])
        tiles = list(zip(rows.split(tile), image.split(tile), strict=True))
        n_workers = _n_workers or torch.get_num_threads()
        if z.device.type == "cpu" and len(tiles) > 1 and n_workers > 1:
            parts = list(_workers(n_workers).map(lambda each: self._of_tile(*each, energy), tiles))
        else:
            with one_thread_per_tile():
                parts = [self._of_tile(*each, energy) for each in tiles]
        distortion, grad = (
            (torch.cat(part) if len(part) > 1 else part[0])[: n_images * n_chains] for part in zip(*parts, strict=True)
        )
        return (
            distortion.view(n_images, n_chains).T.contiguous(),
            grad.view(n_images, n_chains, latent_dim).transpose(0, 1).contiguous(),
        )

    def _of_tile(self, rows: Tensor, image: Tensor, energy: bool) -> tuple[Tensor, Tensor]:
        coarse = self.tf32_gradients and rows.is_cuda
        with torch.enable_grad(), nullcontext() if rows.is_cuda else PackedProducts():
            z = rows[None].contiguous().requires_grad_()
            with _tf32(coarse and not energy):
                distortion = self.distortion(self.x[image], self.decoder(z))
            if tuple(distortion.shape) != (1, len(image)):
                raise ValueError(
                    f"for data [N, ...] and reconstructions [C, N, ...] the distortion must be [C, N]; with C = 1 and "
                    f"N = {len(image)} the distortion has shape {tuple(distortion.shape)}"
                )
            with _tf32(coarse):
                (grad,) = torch.autograd.grad(distortion, z, torch.ones_like(distortion))
        return distortion.detach().double()[0], grad[0]

    def select(self, images: slice | Tensor) -> Target:
        """The target of some of the images."""
        some = replace(self, x=self.x[images])
        some.__dict__["annealed"] = self.annealed  # made once
        return some

    def check(self, latent_dim: int) -> None:
        """Try the decoder on a few codes and refuse what would spoil a long run.

        Raises:
            TypeError: the prior is no distribution; the decoder or the distortion returns no tensor.
            ValueError: the prior has another code size, type or device, or no sampler or density; reconstructions do
                not fit x, are not finite, differ between two calls, depend on the rest of the batch, ignore z, or have
                no finite gradient; the distortion is not [C, N] in float64.
        """
        exact_products()
        forget()
        if torch.is_inference_mode_enabled():
            raise ValueError("within torch.inference_mode nothing is differentiable; torch.no_grad will do")
        for name in ("event_shape", "sample", "log_prob"):
            if not hasattr(self.prior, name):
                raise TypeError(f"the prior is a {type(self.prior).__name__} without `{name}`; {_PRIORS}")
        if tuple(self.prior.event_shape) != (latent_dim,):
            raise ValueError(f"the prior draws codes of shape {tuple(self.prior.event_shape)}, not ({latent_dim},)")
        if not len(self.x):
            raise ValueError("x holds no images")
        if not self.x.isfinite().all():
            raise ValueError("x holds values that are not finite")
        x = self.x[:2]
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            torch.manual_seed(0)
            try:
                z = self.prior.sample((3, len(x)))
            except NotImplementedError:
                raise ValueError(f"the prior {type(self.prior).__name__} cannot be sampled; {_PRIORS}") from None
            if (z.dtype, z.device) != (x.dtype, x.device):
                raise ValueError(
                    f"the prior draws {z.dtype} on {z.device}, but x holds {x.dtype} on {x.device}; build the prior "
                    "with that dtype and device"
                )
            self._check_density(z)
            if _learns_statistics(self.decoder):  # before a call changes them
                raise ValueError(f"the decoder {_MIXES}")
            first, second = self._decoded(z), self._decoded(z)
            others = self.prior.sample((3, len(x)))
            others[0, 0] = z[0, 0]
            among_others = self._decoded(others)
            if first.dtype != self.x.dtype:
                raise ValueError(f"the decoder returns {first.dtype}, but x holds {self.x.dtype}")
        expected = (3, len(x), *x.shape[1:])
        if tuple(first.shape) != expected:
            raise ValueError(
                f"the decoder maps codes {tuple(z.shape)} to {tuple(first.shape)}; for data of shape "
                f"{tuple(x.shape[1:])} it must return {expected}; {_FLAT}"
            )
        if not first.isfinite().all():
            raise ValueError("the decoder returns values that are not finite on codes from the prior")
        if not torch.equal(first, second):
            raise ValueError("the decoder is random: two calls on the same codes differ (call .eval() on it?)")
        if not torch.allclose(first[0, 0], among_others[0, 0], rtol=1e-4, atol=1e-4 * float(first.abs().max())):
            raise ValueError(f"the decoder {_MIXES}")
        try:
            distortion = self.distortion(x, first)
        except Exception as error:  # whatever a user's code may raise
            raise ValueError(
                f"the distortion cannot compare data {tuple(x.shape)} with reconstructions {tuple(first.shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(distortion, Tensor):
            raise TypeError(f"the distortion returns a {type(distortion).__name__}, not a tensor [C, N] in float64")
        if distortion.dtype != torch.float64:
            raise ValueError(
                f"the distortion returns {distortion.dtype}; sum in float64, as in .sum(-1, dtype=torch.float64): the "
                "rounding of a float32 sum is 0.1 nats where beta d is near 8e5"
            )
        try:
            point = self.at(z) if len(x) == len(self.x) else self.select(slice(0, len(x))).at(z)
        except RuntimeError as error:
            raise ValueError(f"the decoder is not differentiable in z: {error}") from error
        if not (point.distortion.isfinite().all() and point.grad_distortion.isfinite().all()):
            raise ValueError("the distortion or its gradient is not finite on codes from the prior")
        if not point.grad_distortion.any():
            raise ValueError("the distortion does not depend on z: its gradient is zero on codes from the prior")

    def _check_density(self, z: Tensor) -> None:
        """Outside its support, where chains will come, a prior must have no density."""
        name = type(self.prior).__name__
        for codes in (100 + 100 * z, -100 - 100 * z):
            try:
                log_prior = self.prior.log_prob(codes)
            except NotImplementedError:
                raise ValueError(f"the prior {name} has no density; {_PRIORS}") from None
            except ValueError:
                raise ValueError(
                    f"the prior {name} refuses codes outside its support; build it with validate_args=False, so that "
                    "log_prob is -inf or nan there"
                ) from None
            try:
                outside = ~self.prior.support.check(codes)
            except (AttributeError, NotImplementedError):  # a distribution of one's own need not name it
                continue
            if (log_prior.isfinite() & outside).any():
                raise ValueError(
                    f"the prior {name} has a finite log_prob at {codes[outside][0].tolist()}, outside its support, and "
                    "chains would leave it; let log_prob be -inf there"
                )

    def _decoded(self, z: Tensor) -> Tensor:
        """f(z) without its gradient, or an error that says what a decoder is."""
        shape = ", ".join(map(str, self.x.shape[1:]))
        expected = f"a decoder maps codes [..., {z.shape[-1]}] to a tensor [..., {shape}]; {_FLAT}"
        if not callable(self.decoder):
            raise TypeError(f"the decoder is a {type(self.decoder).__name__}, which cannot be called; {expected}")
        try:
            with torch.no_grad():
                decoded = self.decoder(z)
        except Exception as error:  # whatever a user's code may raise
            raise ValueError(
                f"the decoder cannot map codes of shape {tuple(z.shape)} and type {z.dtype}: "
                f"{type(error).__name__}: {error}; {expected}"
            ) from error
        if not isinstance(decoded, Tensor):
            raise TypeError(f"the decoder returns a {type(decoded).__name__}; {expected}")
        return decoded


def _learns_statistics(decoder: Decoder) -> bool:
    """Whether a batch norm is in train mode: each call would then change its running statistics."""
    modules = decoder.modules() if isinstance(decoder, nn.Module) else ()
    return any(isinstance(each, _BatchNorm) and each.training and each.track_running_stats for each in modules)


def exact_products() -> None:
    """From here on CUDA multiplies and convolves in float32, and convolves in the same way each time.

    An energy in TF32 is wrong by 10 nats at beta = 36,000, and convolutions use it unless told not to. Transposed ones
    add up in an order of chance: two calls of a generator on the same codes differed.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Inside, if allowed, CUDA multiplies matrices and convolves in TF32, with 10 bits of fraction.

    A force that is rounded so is still a function of z alone: leapfrog keeps volume and reverses, and the accept test
    sees exact energies. Only the acceptance may fall.
    """
    if not allowed:
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


_n_workers = 0  # 0: as many as torch has threads


@contextmanager
def one_thread_per_tile() -> Iterator[None]:
    """Inside, the cores work on different tiles, not together on each operation.

    Faster, since idle threads of an operation spin on the cores that others need, and the same bits on any number of
    cores.
    """
    global _n_workers
    before, threads = _n_workers, torch.get_num_threads()
    _n_workers = before or threads
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _n_workers = before
        torch.set_num_threads(threads)


@cache
def _workers(n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n, "tile", initializer=torch.set_num_threads, initargs=(1,))


# a forked child has none of the threads
os.register_at_fork(after_in_child=_workers.cache_clear)
