"""Refuse files that are not of the model, the curve or the settings that params.yaml names.

The pipeline never mixes them up; a hand that copies files, or edits params.yaml and then runs a later step, may.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rdcurve.files import FileError, load_facts
from rdcurve.settings import names_of_claims, names_of_figure, section

__all__ = ["check"]

Params = Mapping[str, Any]


def check(args: argparse.Namespace, params: Params) -> None:
    """Compare what the files of a step say of themselves with their entries. What they do not say passes.

    Args:
        args: of the command line.
        params: all of params.yaml.

    Raises:
        FileError: names the file and both values.
    """
    step = f"{args.verb} {args.name}".strip()
    for path, name in _checkpoints(args, params):
        facts = _facts(path)
        _same(path, facts, {"name": name}, "is {theirs}, but " + step + " is of the model {ours}")
        if name in params["compositions"]:
            where, expected, found = f"compositions.{name}", params["compositions"][name], facts.get("parts", {})
        else:
            where, expected, found = f"models.{name}", params["models"][name], facts.get("settings", {})
        _same_settings(path, found, expected, where)
    for path, expected in _curves(args, params):
        _same(path, _facts(path), expected, "is of {key} {theirs}, but " + step + " asks there for {key} {ours}")
    for path, name in _channels(args, params):
        _same_settings(path, _facts(path).get("variational", {}), params["variational"][name], f"variational.{name}")


def _same(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any], message: str) -> None:
    for key, ours in expected.items():
        theirs = found.get(key, ours)
        if theirs != ours:
            raise FileError(f"{path}: {message.format(key=key, ours=ours, theirs=theirs)}")


def _same_settings(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Every setting, also one that only one of the two has; a file may say nothing of its settings at all."""
    if found:
        keys = dict.fromkeys((*expected, *found), "not given")
        message = "trained with {key} = {theirs}, but " + where + ".{key} is {ours} in params.yaml"
        _same(path, {**keys, **found}, {**keys, **expected}, message)


def _facts(path: Path) -> dict[str, Any]:
    """What a file says of itself: nothing if it is missing or damaged. The step says so, and what it wants there."""
    try:
        return load_facts(path)
    except FileError:
        return {}


def _checkpoints(args: argparse.Namespace, params: Params) -> Iterator[tuple[Path, str]]:
    """(file, name of its model) of what a step reads."""
    measured = {**params["curves"], **params["repeats"], **params["variational"]}
    if args.verb == "compose":
        entry = params["compositions"][args.name]
        yield args.decoder, entry["decoder"]
        yield args.features, entry["classifier"]
    elif getattr(args, "decoder", None) is not None:
        yield args.decoder, measured[args.name]["model"]
    elif getattr(args, "decoders", None) is not None:
        for model in dict.fromkeys(measured[name]["model"] for name in _names(args, params, "curves")):
            yield args.decoders / f"{model}.safetensors", model


def _curves(args: argparse.Namespace, params: Params) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(file, what it must say) of the tunings and curves that a step reads."""
    if getattr(args, "step_sizes", None) is not None:
        yield args.step_sizes, {"curve": _parent(args.name, params)}
    if getattr(args, "curve", None) is not None:
        yield args.curve, _run(args.name, params)
    if getattr(args, "curves", None) is not None:
        for name in _names(args, params, "curves"):
            yield args.curves / f"{name}.safetensors", _run(name, params)
    if getattr(args, "exact", None) is not None:
        for name in params["closed_form"]:
            yield args.exact / f"{name}.safetensors", {"curve": name}


def _channels(args: argparse.Namespace, params: Params) -> Iterator[tuple[Path, str]]:
    """(file, name) of the variational curves that a step reads."""
    if getattr(args, "variational", None) is not None:
        for name in _names(args, params, "variational"):
            yield args.variational / f"{name}.safetensors", name


def _names(args: argparse.Namespace, params: Params, kind: str) -> Iterable[str]:
    """Curves, or variational ones, of what a step is about: a figure, its claims, or the table of likelihoods."""
    if args.verb == "likelihood":
        return params["likelihood"]["curves"] if kind == "curves" else []
    if args.verb == "claims":
        return names_of_claims(params["claims"][args.name])[kind]
    return names_of_figure(params["figures"][args.name], kind)  # type: ignore[arg-type]


def _parent(name: str, params: Params) -> str:
    return params["repeats"].get(name, {"curve": name})["curve"]


def _run(name: str, params: Params) -> dict[str, Any]:
    """What the formal run of a curve, or its repeat, says of itself."""
    parent = _parent(name, params)
    return {"curve": parent, "seed": params["repeats"].get(name, section(params, "ais", parent))["seed"]}
