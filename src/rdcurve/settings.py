"""params.yaml: read, checked against the schema, handed out section by section."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jsonschema
import yaml

__all__ = ["SettingsError", "check", "names_of_claims", "names_of_figure", "names_of_scorecard", "read", "section"]

SCHEMA = Path(__file__).with_name("params.schema.yaml")
# Of the workflow's rules and of dvc.yaml: a figure of such a name could not be asked for
RESERVED = frozenset(
    [
        *("all", "fetch", "train", "compose", "prerun", "ais", "repeat", "bdmc", "exact", "variational", "illustrate"),
        *("figure", "decide", "claims", "scorecard", "tabulate", "likelihood", "unknown"),
    ]
)
_SIMULATED = ("squared_error", "gaussian_nll")  # distortions under which data can be drawn
# To JSON 5000.0 is an integer, to whatever counts with it in Python it is none
_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # twenty times as fast, where PyYAML was built with it


class SettingsError(ValueError):
    """A setting that is missing, unknown or out of range; names it and the legal ones."""


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a file, checked.

    Raises:
        SettingsError: not readable, or not what the schema and the cross-references ask for.
    """
    try:
        text = Path(path).read_text()
        tree, params = yaml.compose(text, Loader=_LOADER), yaml.load(text, Loader=_LOADER)
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not a text in UTF-8: {error}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not YAML: {error}") from error
    try:
        _check_keys(tree)
        check(params)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    return params


def _check_keys(node: yaml.Node | None) -> None:
    """No mapping has a key twice: of two YAML takes the last, and one line contradicts the other unseen.

    What comes from an anchor by `<<` may be written anew.
    """
    seen, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))  # an alias is the node of its anchor
        lines: dict[str, int] = {}
        for child in node.value:
            key, value = child if isinstance(node, yaml.MappingNode) else (None, child)
            waiting.append(value)
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise SettingsError(
                        f"the key {key.value!r} stands twice in a mapping, in lines {lines[key.value]} and {line}"
                    )
                lines[key.value] = line


def check(params: Any) -> None:
    """Refuse unknown keys, wrong types and values, and names that point nowhere.

    Raises:
        SettingsError: the first thing that is wrong.
    """
    validator = _Validator(yaml.load(SCHEMA.read_text(), Loader=_LOADER))
    error = jsonschema.exceptions.best_match(validator.iter_errors(params))
    if error is not None:
        raise SettingsError(_explain(error))
    _check_finite(params)
    _known("datasets", params["models"], "dataset", params["datasets"])
    _known("datasets", params["curves"], "dataset", params["datasets"])
    classifiers = [name for name, entry in params["models"].items() if entry["trainer"] == "classifier"]
    decoders = [name for name in params["models"] if name not in classifiers]
    for name, entry in params["compositions"].items():
        where = f"compositions.{name}"
        if name in params["models"]:
            raise SettingsError(f"{where}: {name!r} is also the name of a model")
        for part, legal in (("decoder", decoders), ("classifier", classifiers)):
            _one_of(f"{where}.{part}: {entry[part]!r}", entry[part], legal, f"{part}s among the models")
    _known("decoders among models and compositions", params["curves"], "model", [*decoders, *params["compositions"]])
    for curve, entry in params["curves"].items():
        if "recipe" in entry and entry["recipe"] not in params["recipes"].values():
            raise SettingsError(f"curves.{curve}.recipe is none of the recipes: write it as a reference, *name")
        _check_curve(params, curve, entry)
    _check_closed_form(params)
    _check_repeats(params)
    measured = {**params["curves"], **params["repeats"]}
    _check_variational(params)
    _check_figures(params, measured)
    _check_claims(params, measured)
    _check_likelihood(params)


def names_of_figure(entry: Mapping[str, Any], kind: Literal["curves", "variational"] = "curves") -> list[str]:
    """The curves that a figure draws, or the variational ones, on one panel or on several, in order.

    Examples:
        >>> names_of_figure({"panels": {"left": {"curves": {"a": "A"}}, "right": {"curves": {"b": "B", "a": "A"}}}})
        ['a', 'b']
    """
    parts = entry.get("panels", {"": entry}).values()
    return list(dict.fromkeys(name for part in parts for name in part.get(kind, {})))


def names_of_claims(entry: Mapping[str, Any]) -> dict[str, list[str]]:
    """What the claims of a figure are about, in order: names of curves, of variational curves, of BDMC tables.

    Examples:
        >>> names_of_claims({"claims": [{"pairs": [["a", "b"]]}, {"gaps": ["a"]}], "variational": ["b"]})
        {'curves': ['a'], 'variational': ['b'], 'bdmc': ['a']}
    """
    found: dict[str, list[str]] = {"curves": [], "variational": [], "bdmc": []}
    for claim in entry["claims"]:
        found["bdmc"] += claim.get("gaps", [])
        for name in _leaves([claim.get(key, []) for key in ("pairs", "groups", "margins", "excesses")]):
            found["variational" if name in entry.get("variational", []) else "curves"].append(name)
    return {kind: list(dict.fromkeys(listed)) for kind, listed in found.items()}


def names_of_scorecard(section: Mapping[str, Any]) -> list[str]:
    """Figures of `claims` whose verdicts the scorecard lists: all but those that are decided on request.

    Examples:
        >>> names_of_scorecard({"figure5": {"claims": []}, "recipes": {"claims": [], "on_request": True}})
        ['figure5']
    """
    return [figure for figure, entry in section.items() if not entry.get("on_request")]


def _check_curve(params: Mapping[str, Any], curve: str, entry: Mapping[str, Any]) -> None:
    network = params["compositions"].get(entry["model"], {}).get("decoder", entry["model"])
    trained_on = params["models"][network]["dataset"]
    if entry["dataset"] != trained_on:
        raise SettingsError(f"curves.{curve}: dataset is {entry['dataset']}, but its model is trained on {trained_on}")
    prior = entry["prior"]
    if "low" in prior and not prior["low"] < prior["high"]:
        raise SettingsError(
            f"curves.{curve}.prior: a uniform prior needs low < high, not {prior['low']} and {prior['high']}"
        )
    if "gap" in entry and entry["distortion"]["name"] not in _SIMULATED:
        raise SettingsError(
            f"curves.{curve}: a gap is measured on simulated data, and none can be simulated under "
            f"{entry['distortion']['name']}; give n_temperatures"
        )
    sampler = section(params, "sampler", curve)
    prerun = section(params, "prerun", curve)
    if prerun["schedule"] == "sigmoid" and "gap" in entry:
        raise SettingsError(
            f"curves.{curve}: gap needs prerun.schedule: learned; with a sigmoid schedule give n_temperatures"
        )
    if prerun["schedule"] == "learned" and prerun["n_chains"] < 2:
        raise SettingsError(
            f"curves.{curve}: prerun.n_chains is {prerun['n_chains']}; it must be 2 or more, for a schedule is learned "
            "from the variance over chains"
        )
    if prerun["step_size_rule"] == "running_mean" and sampler["group_size"] > 1:
        raise SettingsError(
            f"curves.{curve}: chains with step sizes of their own (prerun.step_size_rule: running_mean) cannot "
            f"resample among themselves; sampler.group_size must be 1, not {sampler['group_size']}"
        )
    for step, least in (("ais", 2), ("bdmc", 1)):
        n_chains = section(params, step, curve)["n_chains"]
        if n_chains % sampler["group_size"] or n_chains < least * sampler["group_size"]:
            raise SettingsError(
                f"curves.{curve}: {step}.n_chains is {n_chains}; it must be a multiple of sampler.group_size = "
                f"{sampler['group_size']}, at least {least} times"
            )
        if prerun["step_size_rule"] == "running_mean" and n_chains != prerun["n_chains"]:
            raise SettingsError(
                f"curves.{curve}: a step size per chain needs as many chains in prerun and {step}, "
                f"not {prerun['n_chains']} and {n_chains}"
            )
    formal = section(params, "ais", curve)
    if formal.get("most_chains", math.inf) < 2 * formal["n_chains"]:
        raise SettingsError(
            f"curves.{curve}: ais.most_chains is {formal['most_chains']}; chains are doubled, so that it must be at "
            f"least twice ais.n_chains = {formal['n_chains']}; leave it out to keep their number"
        )
    if "most_chains" in formal and prerun["step_size_rule"] == "running_mean":
        raise SettingsError(
            f"curves.{curve}: ais.most_chains needs a step size for all chains of an image, and prerun.step_size_rule: "
            "running_mean has one for each"
        )
    n_formal, n_trial = formal["n_chains"], section(params, "bdmc", curve)["n_chains"]
    if "gap" in entry and n_trial > n_formal:
        raise SettingsError(
            f"curves.{curve}: bdmc.n_chains is {n_trial}; where a gap is asked for it must be at most ais.n_chains "
            f"= {n_formal}, or the curve would have a larger gap than BDMC finds"
        )
    most = entry.get("n_temperatures", prerun["max_temperatures"])
    if 2 * entry["n_recorded"] > most:
        raise SettingsError(
            f"curves.{curve}: n_recorded is {entry['n_recorded']}; at most half of the {most} temperatures can be "
            "recorded"
        )
    n_betas = section(params, "bdmc", curve)["n_betas"]
    if n_betas > entry["n_recorded"]:
        raise SettingsError(f"curves.{curve}: bdmc.n_betas is {n_betas}, of {entry['n_recorded']} recorded betas")
    seeds = {step: section(params, step, curve)["seed"] for step in ("prerun", "ais", "bdmc")}
    if len(set(seeds.values())) < len(seeds):
        raise SettingsError(f"curves.{curve}: prerun, ais and bdmc must have different seeds, not {seeds}")


def _check_closed_form(params: Mapping[str, Any]) -> None:
    for name, entry in params["closed_form"].items():
        _one_of(f"closed_form: {name!r}", name, params["curves"], "curves")
        if entry != params["curves"][name]:
            raise SettingsError(f"closed_form.{name} differs from curves.{name}: write it as a reference, *{name}")
        found = {key: entry[key]["name"] for key in ("distortion", "prior")}
        found["decoder"] = params["models"].get(entry["model"], {}).get("architecture", "of features")
        for key, legal in (("decoder", "linear"), ("distortion", "gaussian_nll"), ("prior", "standard_normal")):
            if found[key] != legal:
                raise SettingsError(f"closed_form.{name}: there is one where the {key} is {legal}, not {found[key]}")


def _check_likelihood(params: Mapping[str, Any]) -> None:
    for name, variance in params["likelihood"]["curves"].items():
        where = f"likelihood.curves.{name}"
        _one_of(f"likelihood.curves: {name!r}", name, params["curves"], "curves")
        curve = params["curves"][name]
        if curve["distortion"]["name"] != "squared_error":
            raise SettingsError(f"{where}: log p(x) needs squared_error, not {curve['distortion']['name']}")
        if variance == "own":
            if params["models"].get(curve["model"], {}).get("trainer") != "vae":
                raise SettingsError(f"{where}: only a VAE has noise of its own; give a variance")
        elif 1 / (2 * variance) > curve["beta_max"]:
            raise SettingsError(
                f"{where}: a variance of {variance} is read at beta = {1 / (2 * variance):g}, and the curve ends at "
                f"{curve['beta_max']}"
            )


def _check_figures(params: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    for figure, entry in params["figures"].items():
        if figure in RESERVED or figure.startswith("claims_"):
            raise SettingsError(f"figures.{figure}: the pipeline has another step of this name; call it otherwise")
        legal, kind = measured, "curves and repeats"
        if entry.get("kind") == "reconstructions":
            legal, kind = params["curves"], "curves"
        for name in names_of_figure(entry):
            _one_of(f"figures.{figure}.curves: {name!r}", name, legal, kind)
        for name in names_of_figure(entry, "variational"):
            _one_of(f"figures.{figure}.variational: {name!r}", name, params["variational"], "variational curves")
        if "illustration" in entry:
            name = entry["illustration"]
            _one_of(f"figures.{figure}.illustration: {name!r}", name, params["illustrations"], "illustrations")
        for panel in entry.get("panels", {"": entry}).values():
            drawn = [*panel.get("curves", {}), *panel.get("variational", {})]
            _check_axes(params, figure, drawn, "distortion")
        _check_axes(params, figure, [*names_of_figure(entry), *names_of_figure(entry, "variational")], "dataset")


def _check_axes(params: Mapping[str, Any], figure: str, names: Sequence[str], key: str) -> None:
    """Curves share axes that are of one data set and distortion."""
    derived = {**params["repeats"], **params["variational"]}
    found = {name: params["curves"][derived.get(name, {"curve": name})["curve"]][key] for name in names}
    for name in names[1:]:
        if found[name] != found[names[0]]:
            raise SettingsError(
                f"figures.{figure}: {names[0]} and {name} cannot share axes, for their {key} is {found[names[0]]} and "
                f"{found[name]}"
            )


def _check_claims(params: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    for figure, entry in params["claims"].items():
        if figure == "scorecard":  # results/claims/scorecard.csv is the table of all
            raise SettingsError(f"claims.{figure}: the pipeline has another table of this name; call it otherwise")
        for kind, legal in (("curves", measured), ("variational", params["variational"]), ("bdmc", params["curves"])):
            for name in names_of_claims(entry)[kind]:
                _one_of(f"claims.{figure}: {name!r}", name, legal, "curves")
                if kind == "bdmc" and legal[name]["distortion"]["name"] not in _SIMULATED:
                    raise SettingsError(f"claims.{figure}: {name} has no BDMC gap: nothing can be simulated for it")
        for window, (low, high) in entry["windows"].items():
            if not low < high:
                raise SettingsError(f"claims.{figure}.windows.{window}: from {low} to {high} nats is no window")
        ids = [claim["id"] for claim in entry["claims"]]
        for claim in entry["claims"]:
            where = f"claims.{figure}.{claim['id']}"
            if ids.count(claim["id"]) > 1:
                raise SettingsError(f"{where}: {ids.count(claim['id'])} claims have this id")
            for window in claim.get("windows", []):
                _one_of(f"{where}: window {window!r}", window, entry["windows"], "windows")
            for pair in claim["pairs"] if claim.get("over") == "runs" else []:
                tunings = [params["repeats"].get(name, {"curve": name})["curve"] for name in pair]
                if len(set(tunings)) > 1:
                    raise SettingsError(f"{where}: {' and '.join(pair)} are no runs of one curve, as over: runs asks")
            for pair in claim["pairs"] if claim.get("over") == "bounds" else []:
                curves = [params["repeats"].get(name, {"curve": name})["curve"] for name in pair]
                if len({params["curves"][name]["model"] for name in curves}) > 1:
                    raise SettingsError(f"{where}: {' and '.join(pair)} are not of one model, as over: bounds asks")


def _check_repeats(params: Mapping[str, Any]) -> None:
    used: dict[tuple[str, int], str] = {}  # (curve, seed) -> whose
    for name, entry in params["repeats"].items():
        where = f"repeats.{name}"
        _one_of(f"{where}.curve: {entry['curve']!r}", entry["curve"], params["curves"], "curves")
        if name in params["curves"]:
            raise SettingsError(f"{where}: {name!r} is also the name of a curve")
        curve = params["curves"][entry["curve"]]
        for key in ("model", "dataset"):
            if entry[key] != curve[key]:
                raise SettingsError(f"{where}.{key} is {entry[key]}, but that of curves.{entry['curve']} {curve[key]}")
        if entry["seed"] == section(params, "prerun", entry["curve"])["seed"]:
            raise SettingsError(f"{where}.seed is {entry['seed']}, the seed of the prerun; the noise must be new")
        used.setdefault((entry["curve"], section(params, "ais", entry["curve"])["seed"]), "ais")
        other = used.setdefault((entry["curve"], entry["seed"]), where)
        if other != where:
            raise SettingsError(f"{where}.seed is {entry['seed']}, as that of {other}: it would be the same run again")


def _check_variational(params: Mapping[str, Any]) -> None:
    for name, entry in params["variational"].items():
        where = f"variational.{name}"
        _one_of(f"{where}.curve: {entry['curve']!r}", entry["curve"], params["curves"], "curves")
        if name in params["curves"] or name in params["repeats"]:
            raise SettingsError(f"{where}: {name!r} is also the name of a curve or repeat")
        curve = params["curves"][entry["curve"]]
        for key in ("model", "dataset"):
            if entry[key] != curve[key]:
                raise SettingsError(f"{where}.{key} is {entry[key]}, but that of curves.{entry['curve']} {curve[key]}")
        if entry.get("n_validation", 0) > params["training"]["n_validation"]:
            raise SettingsError(
                f"{where}.n_validation is {entry['n_validation']}, of the "
                f"{params['training']['n_validation']} images of training.n_validation"
            )
        if not entry["beta_min"] < curve["beta_max"]:
            raise SettingsError(
                f"{where}.beta_min is {entry['beta_min']}, not below beta_max = {curve['beta_max']} of its curve"
            )


def section(params: Mapping[str, Any], step: str, curve: str) -> dict[str, Any]:
    """Settings of a step for one curve: the shared section, overridden by the curve's recipe, then by its own."""
    entry = params["curves"][curve]
    return {**params[step], **entry.get("recipe", {}).get(step, {}), **entry.get(step, {})}


def _known(kind: str, entries: Mapping[str, Any], key: str, legal: Any) -> None:
    for name, entry in entries.items():
        _one_of(f"{name}: {key} {entry[key]!r}", entry[key], legal, kind)


def _one_of(where: str, value: str, legal: Any, kind: str) -> None:
    if value not in legal:
        raise SettingsError(f"{where} is not one of the {kind}: {', '.join(legal)}")


def _explain(error: jsonschema.ValidationError) -> str:
    where = ".".join(str(part) for part in error.absolute_path) or "top level"
    if error.validator == "additionalProperties":
        legal = error.schema.get("properties", {})
        unknown = [key for key in error.instance if key not in legal]
        return f"{where}: unknown key {', '.join(map(repr, unknown))}; legal keys: {', '.join(legal)}"
    if error.validator == "oneOf" and all("required" in part for part in error.validator_value):
        legal = [key for part in error.validator_value for key in part["required"]]
        given = [key for key in legal if key in error.instance]
        return f"{where}: give one of {', '.join(legal)}, not {' and '.join(given) or 'none'}"
    if error.validator == "not":
        return f"{where}: not a setting of this kind of entry"
    if error.validator == "enum":
        return f"{where}: {error.instance!r} is not one of {', '.join(map(str, error.validator_value))}"
    return f"{where}: {error.message}"


def _check_finite(value: Any, where: str = "") -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _check_finite(part, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for i, part in enumerate(value):
            _check_finite(part, f"{where}.{i}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{where}: {value} is not a finite number")


def _leaves(value: Any) -> Iterator[str]:
    """All strings in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _leaves(part)
    elif isinstance(value, Sequence):
        for part in value:
            yield from _leaves(part)
