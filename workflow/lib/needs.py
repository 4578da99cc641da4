"""What figures and claims are made from, as params.yaml says: asked by the rules, and by stages.py for dvc.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rdcurve.settings import names_of_claims, names_of_figure, names_of_scorecard

__all__ = ["of_claims", "of_figure", "of_likelihood", "of_scorecard"]


def of_figure(params: Mapping[str, Any], figure: str) -> list[str]:
    """Files that a figure is drawn from."""
    entry = params["figures"][figure]
    if entry.get("kind") == "illustration":
        return [f"results/illustrations/{entry['illustration']}.safetensors"]
    curves = names_of_figure(entry)
    measured = [f"results/curves/{name}.safetensors" for name in curves]
    if entry.get("kind") == "reconstructions":
        settings = [params["curves"][name] for name in curves]
        return [
            *measured,
            *dict.fromkeys(f"results/decoders/{curve['model']}.safetensors" for curve in settings),
            *dict.fromkeys(f"results/data/{curve['dataset']}" for curve in settings),
        ]
    return [
        *measured,
        *(f"results/bdmc/{name}.csv" for name in curves if name in params["curves"]),  # repeats have none of their own
        *(f"results/exact/{name}.safetensors" for name in curves if name in params["closed_form"]),
        *(f"results/variational/{name}.safetensors" for name in names_of_figure(entry, "variational")),
    ]


def of_claims(params: Mapping[str, Any], figure: str) -> list[str]:
    """Files that the claims about a figure are decided from."""
    names = names_of_claims(params["claims"][figure])
    return [
        *(f"results/curves/{name}.safetensors" for name in names["curves"]),
        *(f"results/variational/{name}.safetensors" for name in names["variational"]),
        *(f"results/bdmc/{name}.csv" for name in names["bdmc"]),
    ]


def of_scorecard(params: Mapping[str, Any]) -> list[str]:
    """Verdicts that the scorecard lists."""
    return [f"results/claims/{figure}.json" for figure in names_of_scorecard(params["claims"])]


def of_likelihood(params: Mapping[str, Any]) -> list[str]:
    """Files that the table of log-likelihoods is made from."""
    names = list(params["likelihood"]["curves"])
    models = dict.fromkeys(params["curves"][name]["model"] for name in names)
    return [
        *(f"results/curves/{name}.safetensors" for name in names),
        *(f"results/bdmc/{name}.csv" for name in names),
        *(f"results/decoders/{model}.safetensors" for model in models),
    ]
