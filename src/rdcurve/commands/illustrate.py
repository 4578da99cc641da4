"""rdcurve illustrate: the small problems of Figures 1 and 2 -> every curve and point that is drawn of them."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from rdcurve.files import save_arrays

ILLUSTRATIONS = ("geometry", "plane")


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    if args.name not in ILLUSTRATIONS:
        raise ValueError(f"unknown illustration {args.name!r}; known: {', '.join(ILLUSTRATIONS)}")
    settings = params["illustrations"][args.name]
    # loaded by name, so that a step depends on the code of its own illustration alone
    module = importlib.import_module(f"rdcurve.illustrations.{args.name}")
    arrays = module.compute(module.Settings(**settings))
    args.guard.check()
    save_arrays(args.output, "rdcurve illustration", arrays, {"illustration": args.name, "settings": settings})
    print(f"{args.name}: {len(arrays)} arrays in {args.output}")
