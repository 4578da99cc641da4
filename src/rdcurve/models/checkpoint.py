"""Decoder checkpoints: safetensors with architecture, settings and training facts inside; loaded without pickle.

An architecture is a module of this package: `linear` is `rdcurve.models.linear`, with classes `Decoder` and `Encoder`.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

import rdcurve
import rdcurve.models
from rdcurve.files import FileError, load_arrays, save_arrays

__all__ = ["LoadedDecoder", "architecture_module", "load_decoder", "save_decoder"]

_KIND = "rdcurve decoder"


class LoadedDecoder(NamedTuple):
    """A decoder in evaluation mode, frozen, with what its checkpoint says of it."""

    decoder: nn.Module
    latent_dim: int
    dtype: torch.dtype
    facts: dict[str, Any]


def architecture_module(name: str) -> ModuleType:
    """The module that defines an architecture.

    Raises:
        ValueError: there is none of that name; lists those that there are.
    """
    known = [module.name for module in pkgutil.iter_modules(rdcurve.models.__path__) if module.name != "checkpoint"]
    if name not in known:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(known)}")
    return importlib.import_module(f"rdcurve.models.{name}")


def save_decoder(
    path: str | os.PathLike[str],
    decoder: nn.Module,
    *,
    architecture: str,
    arguments: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> None:
    """Write a decoder so that `load_decoder` rebuilds it from the file alone.

    Args:
        path: the file.
        decoder: `architecture_module(architecture).Decoder(**arguments)`, trained.
        architecture: its name.
        arguments: what builds it; `latent_dim` among them.
        facts: training settings, data set, losses: anything JSON.
    """
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in decoder.state_dict().items()}
    description = {
        "architecture": architecture,
        "arguments": dict(arguments),
        "version": rdcurve.__version__,
        # a change of the network's code is a change of the model, also where the weights stay the same
        "code_sha256": _source_sha256(architecture_module(architecture)),
    }
    save_arrays(path, _KIND, arrays, {**facts, **description})


def load_decoder(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> LoadedDecoder:
    """Rebuild a decoder.

    Raises:
        FileError: missing, damaged or foreign file, an unknown architecture, or weights that do not fit it.
    """
    arrays, facts = load_arrays(path, _KIND)
    try:
        decoder = architecture_module(facts["architecture"]).Decoder(**facts["arguments"])
        weights = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        dtype = next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point())
        decoder.to(dtype).load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError, StopIteration) as error:
        raise FileError(f"{path}: the decoder cannot be rebuilt: {error}") from error
    decoder.to(device).eval().requires_grad_(False)
    return LoadedDecoder(decoder, int(facts["arguments"]["latent_dim"]), dtype, facts)


def _source_sha256(module: ModuleType) -> str:
    assert module.__file__ is not None
    return hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()
