"""Refuse a checkpoint that is not of the model, or not trained with the settings, that params.yaml names.

The pipeline never mixes them up; a hand that copies files, or edits params.yaml and then runs a later step, may.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rdcurve.files import FileError, load_facts

__all__ = ["check"]


def check(args: argparse.Namespace, params: Mapping[str, Any]) -> None:
    """Compare what the checkpoints of a step say of themselves with their entries. What they do not say passes.

    Args:
        args: of the command line.
        params: all of params.yaml.

    Raises:
        FileError: names the checkpoint and both values.
    """
    for path, name in _checkpoints(args, params):
        try:
            facts = load_facts(path)
        except FileError:
            continue  # missing or damaged: the step says so, and what it wants there
        if facts.get("name", name) != name:
            raise FileError(f"{path}: is {facts['name']}, but {args.verb} {args.name} is of the model {name}")
        if name in params["compositions"]:
            where, expected, found = f"compositions.{name}", params["compositions"][name], facts.get("parts", {})
        else:
            where, expected, found = f"models.{name}", params["models"][name], facts.get("settings", {})
        if not found:
            continue
        for key in dict.fromkeys([*expected, *found]):
            ours, theirs = (part.get(key, "not given") for part in (expected, found))
            if ours != theirs:
                raise FileError(f"{path}: trained with {key} = {theirs}, but {where}.{key} is {ours} in params.yaml")


def _checkpoints(args: argparse.Namespace, params: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """(file, name of its model) of what a step reads."""
    if args.verb == "compose":
        entry = params["compositions"][args.name]
        yield args.decoder, entry["decoder"]
        yield args.features, entry["classifier"]
    elif getattr(args, "decoder", None) is not None:
        measured = {**params["curves"], **params["repeats"], **params["variational"]}
        yield args.decoder, measured[args.name]["model"]
