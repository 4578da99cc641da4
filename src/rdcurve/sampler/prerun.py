"""The prerun: learn step sizes and metric on the way from the prior to beta_max; frozen, they are the tuning.

Its own weights are thrown away, because its moves depend on their past. The formal run uses other noise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdcurve.files import load_arrays, save_arrays
from rdcurve.sampler.ais import advance, start_from_prior
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.metric import Metric, gauss_newton, identity, metric_from
from rdcurve.sampler.step_size import Adaptive, smooth
from rdcurve.sampler.target import Target

__all__ = ["METRICS", "PrerunSettings", "Tuning", "load_tuning", "prerun", "save_tuning"]

METRICS = ("identity", "pooled", "image")
_KIND = "rdcurve tuning"


class Tuning(NamedTuple):
    """What a formal run replays."""

    step_sizes: Tensor  # [T + 1, N] float64, by schedule index
    metric: Metric


@dataclass(frozen=True)
class PrerunSettings:
    """How the tuning is learned."""

    n_chains: int = 8
    seed: int = 6
    target_acceptance: float = 0.8
    gain: float = 0.3  # of the step-size rule
    smoothing: int = 51  # schedule steps in the moving average of the learned step sizes
    metric: str = "image"  # one of METRICS: none, one for all images, one per image
    metric_updates: int = 20  # times that the metric is measured along the schedule

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, not {self.metric!r}")


def prerun(
    target: Target,
    betas: Tensor,
    kernel: Kernel,
    settings: PrerunSettings,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tuning:
    """Anneal `n_chains` chains per image from the prior to beta_max and remember what suited them.

    Args:
        target: the annealed target of N images.
        betas: [T + 1], the schedule of the formal run.
        kernel: the moves of the formal run.
        settings: how to learn.
        progress: called with (steps done, steps in all).
    """
    n_steps, z_type, device = len(betas) - 1, target.x.dtype, target.x.device
    images = torch.arange(len(target.x), device=device)
    adaptive = Adaptive(
        n_steps,
        len(images),
        target_acceptance=settings.target_acceptance,
        gain=settings.gain,
        device=device,
    )
    chains = start_from_prior(target, settings.seed, images, settings.n_chains)
    n_blocks = 1 if settings.metric == "identity" else min(settings.metric_updates, n_steps)
    starts = [n_steps * block // n_blocks for block in range(n_blocks)]
    matrices: list[Tensor] = []
    metric = identity(target.prior.event_shape[0], z_type, device)
    for start, end in zip(starts, [*starts[1:], n_steps], strict=True):
        if settings.metric != "identity":
            matrices.append(gauss_newton(target, chains.state.point.z, pooled=settings.metric == "pooled"))
            metric = metric_from(starts[: len(matrices)], matrices)
        for until in [*range(start + 10, end, 10), end]:
            chains = advance(
                target,
                betas,
                chains,
                adaptive,
                metric,
                kernel,
                seed=settings.seed,
                images=images,
                until=until,
            )
            progress(until, n_steps)
    return Tuning(smooth(adaptive.table, settings.smoothing), metric)


def save_tuning(path: str | os.PathLike[str], tuning: Tuning, facts: dict[str, Any]) -> None:
    """Write a tuning. Step sizes and eigenvalues need few digits, only to be the same in every run: float32."""
    arrays = {
        "step_sizes": tuning.step_sizes.float(),
        "metric_starts": torch.tensor(tuning.metric.starts),
        "metric_eigenvalues": tuning.metric.eigenvalues.float(),
        "metric_eigenvectors": tuning.metric.eigenvectors.float(),
    }
    save_arrays(path, _KIND, {name: value.cpu().numpy() for name, value in arrays.items()}, facts)


def load_tuning(path: str | os.PathLike[str], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tuning:
    """Read a tuning for chains of a type.

    Raises:
        FileError: missing, cut or foreign file.
    """
    arrays, _ = load_arrays(path, _KIND)
    tensors = {name: torch.from_numpy(value.copy()).to(device) for name, value in arrays.items()}
    metric = Metric(
        tuple(tensors["metric_starts"].tolist()),
        tensors["metric_eigenvalues"].to(dtype),
        tensors["metric_eigenvectors"].to(dtype),
    )
    return Tuning(tensors["step_sizes"].double(), metric)
