"""rdcurve fetch: bring a data set, checked byte for byte."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from rdcurve.data.fetch import fetch


def run(args: argparse.Namespace, params: dict[str, Any]) -> None:
    mirror = args.mirror or os.environ.get("RDCURVE_MIRROR")
    print(fetch(args.name, args.output, Path(mirror) if mirror else None))
