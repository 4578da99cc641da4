"""The stages of dvc.yaml that are made from a varying number of curves, which DVC has no template for.

`python workflow/lib/stages.py` (or `make stages`) writes them, from params.yaml, to the end of dvc.yaml: one for each
figure, one for the claims about each, the scorecard and the table of log-likelihoods. A test fails where they are not
what this would write.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import needs
import yaml

from rdcurve import settings

MARK = "  # From here on written by `make stages`, out of params.yaml.\n"
_FOLDERS = ("curves", "exact", "bdmc", "variational", "illustrations", "decoders", "data")
_DRAWING = ("commands/gaps.py", "commands/plot.py", "comparison.py", "curve.py", "plot.py")
_ILLUSTRATION = (*_DRAWING, "illustrations/draw.py")
_GRIDS = (*_DRAWING, "data/load.py", "grids.py", "models/checkpoint.py")
_CLAIMS = ("claims.py", "commands/claims.py", "commands/gaps.py", "comparison.py", "curve.py")


def stages(params: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> stage, as DVC reads it."""
    made = {name: _figure(params, name) for name in params["figures"]}
    made |= {f"claims_{name}": _claims(params, name) for name in params["claims"]}
    return made | {"scorecard": _scorecard(params), "likelihood": _likelihood(params)}


def _figure(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    files = needs.of_figure(params, name)
    code = {"reconstructions": _GRIDS, "illustration": _ILLUSTRATION}.get(params["figures"][name].get("kind"), _DRAWING)
    return {
        "cmd": _command("plot", name, files, f"--output results/figures/{name}.svg"),
        "deps": [*files, *_code(code)],
        "params": ["plot", "closed_form", f"figures.{name}"],
        "outs": [f"results/figures/{name}.{suffix}" for suffix in ("svg", "pdf", "png")],
    }


def _claims(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    files, results = needs.of_claims(params, name), f"results/claims/{name}"
    return {
        "cmd": _command("claims", name, files, f"--output {results}.json --table {results}.csv"),
        "deps": [*files, *_code(_CLAIMS)],
        "params": [f"claims.{name}"],
        "outs": [f"{results}.csv"],
        "metrics": [f"{results}.json"],
    }


def _scorecard(params: Mapping[str, Any]) -> dict[str, Any]:
    folder = "results/claims"
    card = f"{folder}/scorecard"
    return {
        "cmd": f"rdcurve scorecard --params params.yaml --verdicts {folder} --output {card}.md --table {card}.csv",
        "deps": [
            *needs.of_scorecard(params),
            *_code(("claims.py", "commands/scorecard.py", "comparison.py", "curve.py", "scorecard.py")),
        ],
        "params": ["claims"],
        "outs": [f"{card}.md", f"{card}.csv"],
    }


def _likelihood(params: Mapping[str, Any]) -> dict[str, Any]:
    files, table = needs.of_likelihood(params), "results/likelihood/likelihood"
    folders = "--curves results/curves --decoders results/decoders --bdmc results/bdmc"
    return {
        "cmd": f"rdcurve likelihood --params params.yaml {folders} --output {table}.md --table {table}.csv",
        "deps": [
            *files,
            *_code(("commands/gaps.py", "commands/likelihood.py", "curve.py", "likelihood.py", "models/checkpoint.py")),
        ],
        "params": ["likelihood"],
        "outs": [f"{table}.md", f"{table}.csv"],
    }


def _command(verb: str, name: str, files: list[str], outputs: str) -> str:
    folders = [folder for folder in _FOLDERS if any(file.startswith(f"results/{folder}/") for file in files)]
    options = " ".join(f"--{folder} results/{folder}" for folder in folders)
    return f"rdcurve {verb} {name} --params params.yaml {options} {outputs}"


def _code(modules: tuple[str, ...]) -> list[str]:
    return [f"src/rdcurve/{module}" for module in modules]


def rewritten(root: Path) -> str:
    """What dvc.yaml should hold."""
    text = (root / "dvc.yaml").read_text()
    before, mark, after = text.partition(MARK)
    plots = after[after.index("\nplots:") :] if mark else ""
    made = yaml.safe_dump(stages(yaml.safe_load((root / "params.yaml").read_text())), sort_keys=False, width=1000)
    return before + MARK + "".join(f"  {line}\n" for line in made.splitlines()) + plots


def up_to_date(root: str | Path) -> bool:
    """Whether dvc.yaml holds that."""
    return rewritten(Path(root)) == (Path(root) / "dvc.yaml").read_text()


if __name__ == "__main__":
    root = Path(__file__).parents[2]
    try:
        settings.read(root / "params.yaml")
    except settings.SettingsError as error:
        sys.exit(f"error: {error}")
    (root / "dvc.yaml").write_text(rewritten(root))
