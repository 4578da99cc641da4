"""rdcurve repeat: the formal run of a curve again, with the same step sizes and other noise."""

from __future__ import annotations

import argparse
from typing import Any

from rdcurve.commands.ais import anneal


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    entry = params["repeats"][args.name]
    anneal(args, params, entry["curve"], entry["seed"])
