"""rdcurve scorecard: the verdicts of all figures -> one table, as Markdown and CSV."""

from __future__ import annotations

import argparse
from typing import Any

from rdcurve.files import write_bytes, writing
from rdcurve.scorecard import markdown, scorecard


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    table = scorecard(params["claims"], args.verdicts)
    text = markdown(table)
    args.guard.check()
    write_bytes(args.output, text.encode())
    with writing(args.table) as temporary:
        table.to_csv(temporary, index=False)
    print(text)
