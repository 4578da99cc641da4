"""All claims of params.yaml in one table: the verdicts of every figure, and what is not measured yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rdcurve.claims import VERDICTS
from rdcurve.files import FileError
from rdcurve.settings import names_of_scorecard

__all__ = ["MISSING", "counts", "markdown", "scorecard"]

MISSING = "not measured yet"
_COLUMNS = ("verdict", "decisive", "difference", "standard_error", "unit", "limits", "reason", "comparisons", *VERDICTS)


def scorecard(section: Mapping[str, Any], folder: Path) -> pd.DataFrame:
    """One row per claim, in the order of the settings, but for those on request.

    Args:
        section: `claims` of params.yaml.
        folder: holds FIGURE.json as `rdcurve claims` wrote it, for the figures that are measured.

    Raises:
        FileError: no such folder; a file that is not readable, or that holds other claims than the settings; names it.
    """
    if not folder.is_dir():
        raise FileError(f"{folder}: no such folder; `rdcurve claims` writes verdicts into one")
    rows = []
    for figure in names_of_scorecard(section):
        entry = section[figure]
        path = folder / f"{figure}.json"
        decided = _read(path) if path.is_file() else None
        for claim in entry["claims"]:
            row = {"figure": figure, "claim": claim["id"], "statement": claim["statement"]}
            if decided is None:
                rows.append(row | {"verdict": MISSING})
                continue
            found = decided.get(claim["id"], {})
            if found.get("statement") != claim["statement"]:
                raise FileError(f"{path}: decides {', '.join(decided)}, not {claim['id']} as the settings state it")
            if missing := [name for name in _COLUMNS if name not in found]:
                raise FileError(f"{path}: {claim['id']} is without {', '.join(missing)}; decide it again")
            rows.append(row | {name: found[name] for name in _COLUMNS})
    return pd.DataFrame(rows, columns=["figure", "claim", "statement", *_COLUMNS])


def counts(table: pd.DataFrame) -> dict[str, int]:
    """How many claims got which verdict.

    Examples:
        >>> counts(pd.DataFrame({"verdict": ["reproduced", "undecided", "reproduced"]}))
        {'reproduced': 2, 'not reproduced': 0, 'undecided': 1, 'not measured yet': 0}
    """
    return {verdict: int((table["verdict"] == verdict).sum()) for verdict in (*VERDICTS, MISSING)}


def markdown(table: pd.DataFrame) -> str:
    """The counts in a sentence, and a table for a README or a report."""
    total = ", ".join(f"{n} {verdict}" for verdict, n in counts(table).items() if n)
    lines = [
        f"{len(table)} claims: {total}.",
        "",
        "| figure | statement | verdict | of its comparisons | the one that decides | difference ± error | limits |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        measured = row["verdict"] != MISSING
        cells = [
            row["figure"],
            row["statement"],
            f"**{row['verdict']}**" if measured else MISSING,
            f"{row['reproduced']:.0f} of {row['comparisons']:.0f}" if measured else "",
            row["decisive"] if measured else "",
            "" if not measured else row["reason"] if pd.isna(row["difference"])
            else f"{row['difference']:.3g} ± {row['standard_error']:.2g} {row['unit']}",
            row["limits"] if measured else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: not a readable file of verdicts ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
        raise FileError(f"{path}: holds no verdicts")
    return found
