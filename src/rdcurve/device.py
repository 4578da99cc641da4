"""Choose the device that a step computes on."""

from __future__ import annotations

import os
import re

import torch

__all__ = ["DeviceError", "resolve"]


class DeviceError(RuntimeError):
    """The device that was asked for is not there."""


def resolve(asked: str | None = None) -> torch.device:
    """`asked`, or $RDCURVE_DEVICE, or "auto": CUDA where there is a GPU, else the CPU.

    "cuda" never falls back to the CPU: a job on a GPU queue that computes on the CPU only wastes the queue. From here
    on CUDA convolves in the same way each time, so that a training is repeated, and resumed, to the bit.

    Raises:
        DeviceError: CUDA was asked for and there is none, or the name is unknown.
    """
    name = asked or os.environ.get("RDCURVE_DEVICE") or "auto"
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise DeviceError(f"unknown device {name!r}; legal: auto, cpu, cuda, cuda:N")
    torch.backends.cudnn.deterministic = True
    kind, _, index = name.partition(":")
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= int(index or 0):
            raise DeviceError(
                f"device {name!r} was asked for, and torch {torch.__version__} sees {count} CUDA devices here"
            )
    return torch.device(name)
