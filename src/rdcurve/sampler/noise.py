"""Counter-based noise, keyed by (seed, image, chain, step).

Every random number of a run is a pure function of its key. A resumed run, a run whose images are split into
batches, and a rerun therefore draw the same numbers, and no generator state has to be saved.

The generator is Philox4x32-10 of Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011),
written in torch integer operations so that it runs on any device.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

from rdcurve.sampler.captured import Number

__all__ = ["StepNoise", "philox", "seed_of", "step_noise"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


class StepNoise(NamedTuple):
    """What one HMC move of every chain consumes."""

    normal: Tensor  # [C, N, latent], standard normal: the fresh momentum
    accept: Tensor  # [C, N], uniform on (0, 1), float64: the accept test
    jitter: Tensor  # [C, N], uniform on (0, 1), float64: the step size
    ancestor: Tensor  # [C, N], uniform on (0, 1), float64: whom a resampled chain copies


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four 32-bit words out of a 128-bit counter and a 64-bit key.

    Args:
        counter: four int64 tensors that broadcast together, values in [0, 2^32).
        key: two integers in [0, 2^32).

    Returns:
        Four int64 tensors of the broadcast shape, values in [0, 2^32).

    Examples:
        >>> zero = torch.zeros(1, dtype=torch.int64)
        >>> [f"{int(word):08x}" for word in philox((zero, zero, zero, zero), (0, 0))]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # a signed 64-bit product wraps modulo 2^64, so its halves are those of the unsigned product
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, high1 = (p0 >> 32) & _WORD, (p1 >> 32) & _WORD
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & _WORD, high0 ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def seed_of(*key: object) -> int:
    """A 63-bit seed out of any printable key, for the few draws that go through a torch generator.

    Examples:
        >>> seed_of(6, "prior", 0) == seed_of(6, "prior", 0) != seed_of(6, "prior", 1)
        True
    """
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def _uniform(words: Tensor) -> Tensor:
    return (words.double() + 0.5) * 2.0**-32  # in (0, 1), both ends excluded


def _normal(words: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """Box-Muller: words [2h, ..., C, N] -> n standard normals [C, N, n] (n <= 2h)."""
    half = words.shape[0] // 2
    radius = (-2.0 * _uniform(words[:half]).log()).sqrt()
    angle = (2.0 * math.pi) * _uniform(words[half:])
    normal = torch.cat([radius * angle.cos(), radius * angle.sin()])
    return normal[:n].permute(1, 2, 0).to(dtype).contiguous()


def step_noise(
    seed: int, images: Tensor, n_chains: int, step: Number, latent_dim: int, dtype: torch.dtype
) -> StepNoise:
    """The noise of annealing step `step`.

    Args:
        seed: any non-negative integer.
        images: [N] int64, the identity of each image (its index in the run), not its place in the batch.
        n_chains: C; chain c of image i sees the same numbers whatever C and the batch are.
        step: index of the annealing step, or a tensor that holds it.
        latent_dim: size of z.
        dtype: of the normals; they are computed in float64.
    """
    device = images.device
    slot = torch.arange(1 + -(-latent_dim // 4), dtype=torch.int64, device=device)[:, None, None]
    chain = torch.arange(n_chains, dtype=torch.int64, device=device)[:, None]
    counter = (torch.as_tensor(step, dtype=torch.int64, device=device).reshape(1, 1, 1), images, chain, slot)
    words = torch.stack(torch.broadcast_tensors(*philox(counter, (seed & _WORD, (seed >> 32) & _WORD))))
    # words: [4, slots, C, N]; the first slot holds the uniforms, the others the normals
    normal = _normal(words[:, 1:].flatten(0, 1), latent_dim, dtype)
    return StepNoise(normal, *(_uniform(words[i, 0]) for i in range(3)))
