"""Checkpoints: safetensors with architecture, settings and training facts inside; loaded without pickle.

An architecture is a module of this package: `linear` is `rdcurve.models.linear`, with classes `Decoder` and `Encoder`;
`cnn` has a `Classifier`.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

import rdcurve
import rdcurve.models
from rdcurve.files import FileError, load_arrays, save_arrays

__all__ = [
    "LoadedClassifier",
    "LoadedDecoder",
    "architecture_module",
    "build",
    "load_classifier",
    "load_decoder",
    "save_decoder",
]

_KIND = "rdcurve decoder"
_NO_ARCHITECTURE = ("blurred", "checkpoint")  # modules of this package


class LoadedDecoder(NamedTuple):
    """A decoder in evaluation mode, frozen, with what its checkpoint says of it."""

    decoder: nn.Module
    latent_dim: int
    dtype: torch.dtype
    facts: dict[str, Any]


class LoadedClassifier(NamedTuple):
    """A classifier in evaluation mode, frozen, with what its checkpoint says of it."""

    classifier: nn.Module
    dtype: torch.dtype
    facts: dict[str, Any]


def architecture_module(name: str) -> ModuleType:
    """The module that defines an architecture.

    Raises:
        ValueError: there is none of that name; lists those that there are.
    """
    modules = (module.name for module in pkgutil.iter_modules(rdcurve.models.__path__))
    known = [module for module in modules if module not in _NO_ARCHITECTURE]
    if name not in known:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(known)}")
    return importlib.import_module(f"rdcurve.models.{name}")


def build(network: str, architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A network of an architecture.

    Args:
        network: "Decoder" or "Classifier".
        architecture: its name.
        arguments: what its constructor takes.

    Raises:
        ValueError: an unknown architecture, or one of another kind of network.
        TypeError: arguments that it does not take.
    """
    module = architecture_module(architecture)
    if not hasattr(module, network):
        raise ValueError(f"{architecture!r} is not the architecture of a {network.lower()}")
    return getattr(module, network)(**arguments)


def save_decoder(
    path: str | os.PathLike[str],
    decoder: nn.Module,
    *,
    architecture: str,
    arguments: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> None:
    """Write a decoder so that `load_decoder` rebuilds it from the file alone; or a classifier, for `load_classifier`.

    Args:
        path: the file.
        decoder: `architecture_module(architecture).Decoder(**arguments)`, trained; or its `Classifier`.
        architecture: its name.
        arguments: what builds it; `latent_dim` of a decoder among them.
        facts: training settings, data set, losses: anything JSON.
    """
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in decoder.state_dict().items()}
    description = {
        "architecture": architecture,
        "arguments": dict(arguments),
        "version": rdcurve.__version__,
        # a change of the network's code is a change of the model, also where the weights stay the same
        "code_sha256": _source_sha256(architecture_module(architecture), decoder),
    }
    save_arrays(path, _KIND, arrays, {**facts, **description})


def load_decoder(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> LoadedDecoder:
    """Rebuild a decoder.

    Raises:
        FileError: missing, damaged or foreign file, a classifier, an unknown architecture, or weights that do not fit.
    """
    decoder, dtype, facts = _load(path, "Decoder", device)
    return LoadedDecoder(decoder, int(facts["arguments"]["latent_dim"]), dtype, facts)


def load_classifier(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> LoadedClassifier:
    """Rebuild a classifier.

    Raises:
        FileError: missing, damaged or foreign file, a decoder, an unknown architecture, or weights that do not fit.
    """
    return LoadedClassifier(*_load(path, "Classifier", device))


def _load(
    path: str | os.PathLike[str], network: str, device: torch.device | str
) -> tuple[nn.Module, torch.dtype, dict[str, Any]]:
    """A `Decoder` or `Classifier`, its type and facts."""
    arrays, facts = load_arrays(path, _KIND)
    try:
        built = build(network, facts["architecture"], facts["arguments"])
        weights = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        dtype = next(tensor.dtype for tensor in weights.values() if tensor.is_floating_point())
        built.to(dtype).load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError, StopIteration) as error:
        raise FileError(f"{path}: the {network.lower()} cannot be rebuilt: {error}") from error
    built.to(device).eval().requires_grad_(False)
    return built, dtype, facts


def _source_sha256(architecture: ModuleType, network: nn.Module) -> str:
    """Of the code of the architecture, and of whatever else in this package `network` is composed of."""
    parts = {type(part).__module__ for part in network.modules()}
    names = {name for name in parts if name.startswith(f"{rdcurve.models.__name__}.")} | {architecture.__name__}
    digest = hashlib.sha256()
    for name in sorted(names):
        source = sys.modules[name].__file__
        assert source is not None
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()
