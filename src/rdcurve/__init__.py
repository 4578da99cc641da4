"""rdcurve: the whole rate-distortion curve of a decoder-based generative model, by annealed importance sampling."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Loaded on first use: a command that only draws a figure then does not wait for torch.
_PUBLIC = {
    "Decoder": "rdcurve.types",
    "Distortion": "rdcurve.types",
    "SamplableDistortion": "rdcurve.types",
    "RDCurve": "rdcurve.curve",
    "SquaredError": "rdcurve.sampler.distortion",
    "GaussianNLL": "rdcurve.sampler.distortion",
    "standard_normal": "rdcurve.sampler.prior",
    "scale_mixture": "rdcurve.sampler.prior",
    "uniform": "rdcurve.sampler.prior",
    "sigmoid": "rdcurve.sampler.schedule",
    "PrerunSettings": "rdcurve.sampler.prerun",
    "Kernel": "rdcurve.sampler.hmc",
    "Groups": "rdcurve.sampler.ais",
    "measure": "rdcurve.own.measure",
    "verdict": "rdcurve.diagnosis",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'rdcurve' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
