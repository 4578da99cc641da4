"""What a prerun leaves to the formal run, in one file."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdcurve.files import load_arrays, save_arrays
from rdcurve.sampler.ais import Tuning
from rdcurve.sampler.descent import Descent
from rdcurve.sampler.metric import Metric
from rdcurve.sampler.modes import Modes

__all__ = ["Loaded", "load_tuning", "save_tuning"]

_KIND = "rdcurve tuning"


class Loaded(NamedTuple):
    """A tuning, that of the second route if there is one, and what was noted with them."""

    tuning: Tuning
    descent: Descent | None
    facts: dict[str, Any]


def save_tuning(
    path: str | os.PathLike[str], tuning: Tuning, facts: dict[str, Any], descent: Descent | None = None
) -> None:
    """Write a tuning. Its numbers need few digits, only to be the same in every run: float32."""
    arrays = {"betas": tuning.betas, **_tuning_arrays("", tuning)}
    if descent is not None:
        arrays |= _tuning_arrays("down_", descent.tuning)
        arrays |= {"bridge_sizes": descent.bridge_sizes.float(), "share": descent.share.float()}
        for name in Modes._fields:
            arrays[f"modes_{name}"] = torch.stack([getattr(modes, name) for modes in descent.searches])
    save_arrays(path, _KIND, {name: value.cpu().numpy() for name, value in arrays.items()}, facts)


def load_tuning(path: str | os.PathLike[str], dtype: torch.dtype, device: torch.device | str = "cpu") -> Loaded:
    """Read a tuning for chains of a type.

    Raises:
        FileError: missing, cut or foreign file.
    """
    arrays, facts = load_arrays(path, _KIND)
    tensors = {name: torch.from_numpy(value.copy()).to(device) for name, value in arrays.items()}
    betas, descent = tensors["betas"].cpu(), None
    if "share" in tensors:
        modes = zip(*(tensors[f"modes_{name}"].unbind(0) for name in Modes._fields), strict=True)
        descent = Descent(
            tuple(Modes(z.to(dtype), found, hits) for z, found, hits in modes),
            tensors["bridge_sizes"].double(),
            _tuning(tensors, "down_", betas, dtype),
            tensors["share"].double(),
        )
    return Loaded(_tuning(tensors, "", betas, dtype), descent, facts)


def _tuning_arrays(prefix: str, tuning: Tuning) -> dict[str, Tensor]:
    return {
        f"{prefix}step_sizes": tuning.step_sizes.float(),
        f"{prefix}metric_starts": torch.tensor(tuning.metric.starts, dtype=torch.float64),
        f"{prefix}metric_eigenvalues": tuning.metric.eigenvalues.float(),
        f"{prefix}metric_eigenvectors": tuning.metric.eigenvectors.float(),
    }


def _tuning(tensors: dict[str, Tensor], prefix: str, betas: Tensor, dtype: torch.dtype) -> Tuning:
    metric = Metric(
        tuple(tensors[f"{prefix}metric_starts"].tolist()),
        tensors[f"{prefix}metric_eigenvalues"].to(dtype),
        tensors[f"{prefix}metric_eigenvectors"].to(dtype),
    )
    return Tuning(betas, tensors[f"{prefix}step_sizes"], metric)
