"""rdcurve claims: curves, variational curves and BDMC tables -> what a figure of the paper says, decided."""

from __future__ import annotations

import argparse
import math
from typing import Any

import pandas as pd

from rdcurve.claims import Decision, decide
from rdcurve.commands.gaps import read_gaps
from rdcurve.comparison import MeanCurve
from rdcurve.curve import RDCurve, same_images
from rdcurve.files import FileError, finite, write_json, writing
from rdcurve.settings import names_of_claims


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    entry = params["claims"][args.name]
    needed = names_of_claims(entry)
    for folder, wanted in needed.items():
        if wanted and getattr(args, folder) is None:
            raise FileError(f"the claims about {args.name} cannot be decided without --{folder}")
    loaded = {name: RDCurve.load(args.curves / f"{name}.safetensors") for name in needed["curves"]}
    loaded |= {name: RDCurve.load(args.variational / f"{name}.safetensors") for name in needed["variational"]}
    if not entry.get("all_images", False):
        loaded = same_images(loaded)
    curves = {
        name: MeanCurve.bound(name, curve) if name in needed["variational"] else MeanCurve.measured(name, curve)
        for name, curve in loaded.items()
    }
    gaps = {name: read_gaps(args.bdmc / f"{name}.csv") for name in needed["bdmc"]}
    decisions = decide(entry, curves, gaps)
    args.guard.check()
    write_json(args.output, {decision.id: _summary(decision) for decision in decisions})
    table = pd.DataFrame(
        [{"claim": decision.id, **comparison.row()} for decision in decisions for comparison in decision.comparisons]
    )
    with writing(args.table) as temporary:
        table.to_csv(temporary, index=False)
    for decision in decisions:
        print(_text(decision))


def _summary(decision: Decision) -> dict[str, Any]:
    """What DVC shows of a claim: its verdict, and the comparison that settles it."""
    decisive = decision.decisive
    value = math.nan if decisive.difference is None else decisive.difference.value
    return {
        "verdict": decision.verdict,
        "difference": finite(value),
        "standard_error": finite(decisive.standard_error),
        "unit": decisive.unit,
        "limits": decisive.limits,
        "decisive": decisive.title,
        "reason": decisive.reason,
        "comparisons": len(decision.comparisons),
        **decision.counts(),
        "statement": decision.statement,
    }


def _text(decision: Decision) -> str:
    counts = ", ".join(f"{n} {verdict}" for verdict, n in decision.counts().items() if n)
    lines = [f"{decision.verdict.upper()}  {decision.id}: {decision.statement}", f"  comparisons: {counts}"]
    for comparison in decision.comparisons:
        x = comparison.difference
        value = "-" if x is None else f"{x.value:+.4f} ± {comparison.standard_error:.4f} {comparison.unit}"
        reason = f"  ({comparison.reason})" if comparison.reason else ""
        lines.append(f"  {comparison.verdict:<15}{comparison.title:<70} {value}{reason}")
    return "\n".join(lines)
