import math
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from rdcurve import settings
from rdcurve.commands.inputs import DISTORTIONS
from rdcurve.sampler import prerun
from rdcurve.settings import SettingsError
from rdcurve.types import SamplableDistortion

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def published():
    return settings.read(ROOT / "params.yaml")


@pytest.fixture
def params(published):
    """To be spoilt by one test."""
    return deepcopy(published)


def put(params, dotted, value):
    *parents, last = dotted.split(".")
    for key in parents:
        params = params[key]
    params[last] = value


FIGURE = {"title": "a", "caption": "b", "curves": {"vae10": "c"}}
GAPS = {"id": "gaps", "statement": "small", "kind": "gap_at_most", "limit": 1.0, "gaps": ["vae10_ssim"]}


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("ais.n_chain", 3, "ais: unknown key 'n_chain'; legal keys: n_chains, most_chains, seed"),
        ("figurs", {}, "top level: unknown key 'figurs'; legal keys: datasets"),
        ("curves.linear_vae100.betamax", 3, "curves.linear_vae100: unknown key 'betamax'; legal keys: model"),
        ("curves.linear_vae100.beta_max", -1, "curves.linear_vae100.beta_max: -1 is less than"),
        ("curves.linear_vae100.ais", {"chains": 3}, "curves.linear_vae100.ais: unknown key 'chains'"),
        ("models.linear_vae100.dtype", "float16", "'float16' is not one of float32, float64"),
        ("models.linear_vae100.epoch", 3, "models.linear_vae100: unknown key 'epoch'; legal keys: dataset"),
        ("models.linear_vae100.trainer", "flow", "models.linear_vae100.trainer: 'flow' is not one of vae, gan"),
        ("models.linear_vae100.trainer", "gan", "unknown key 'variance'; legal keys"),
        ("models.linear_vae100.hidden", [8], "models.linear_vae100.hidden: not a setting of this kind of entry"),
        ("models.linear_vae100.architecture", "mlp", "'hidden' is a required property"),
        ("models.linear_vae100.dataset", "mnits", "dataset 'mnits' is not one of the datasets: mnist"),
        (
            "curves.linear_vae100.model",
            "vae11",
            "model 'vae11' is not one of the decoders among models and compositions: linear_vae100",
        ),
        ("curves.vae10.model", "cnn", "model 'cnn' is not one of the decoders among models and compositions: linear"),
        ("compositions.gan2_features.classifier", "vae2", "classifier: 'vae2' is not one of the classifiers among the"),
        ("compositions.gan2_features.decoder", "cnn", "decoder: 'cnn' is not one of the decoders among the models"),
        ("figures.figure11.curves", {"vae10_seed11": "x"}, "figure11.curves: 'vae10_seed11' is not one of the curves"),
        ("claims.figure5.windows.low", [3.0, 0.5], "windows.low: from 3.0 to 0.5 nats is no window"),
        ("likelihood.curves.gan10", "own", "likelihood.curves.gan10: only a VAE has noise of its own; give a variance"),
        ("figures.figure3.curves", {"vae11": "x"}, "figures.figure3.curves: 'vae11' is not one of the curves"),
        ("closed_form", {"vae11": {}}, "closed_form: 'vae11' is not one of the curves"),
        ("closed_form.linear_vae100", {"model": "other"}, "write it as a reference"),
        (
            "figures.likelihood",
            FIGURE,
            "figures.likelihood: the pipeline has another step of this name; call it otherwise",
        ),
        ("figures.claims_1", FIGURE, "figures.claims_1: the pipeline has another step of this name"),
        (
            "figures.figure5.curves",
            {"vae10": "a", "cifar_dcgan5": "b"},
            "figures.figure5: vae10 and cifar_dcgan5 cannot share axes, for their dataset is mnist and cifar10",
        ),
        (
            "figures.figure5.curves",
            {"vae10": "a", "vae10_seed11": "b", "vae10_ssim": "c"},
            "vae10 and vae10_ssim cannot share axes, for their distortion is {'name': 'squared_error'} and {'name': 's",
        ),
        ("claims.figure9.claims", [GAPS], "claims.figure9: vae10_ssim has no BDMC gap: nothing can be simulated for"),
        ("likelihood.curves", {"vae10_ssim": 0.1}, "vae10_ssim: log p(x) needs squared_error, not ssim"),
        (
            "likelihood.curves.vae100",
            1e-4,
            "vae100: a variance of 0.0001 is read at beta = 5000, and the curve ends at 3333",
        ),
        (
            "curves.linear_vae100.prior",
            {"name": "standard_normal", "low": 1},
            "curves.linear_vae100.prior.low: not a setting of this kind of entry",
        ),
        ("curves.linear_vae100.prior", {"name": "uniform", "weight": 0.5}, "prior.weight: not a setting of this kind"),
        (
            "curves.linear_vae100.distortion",
            {"name": "squared_error", "variance": 2.0},
            "curves.linear_vae100.distortion.variance: not a setting of this kind of entry",
        ),
        (
            "curves.vae10.prior",
            {"name": "uniform", "low": 2, "high": 1},
            "curves.vae10.prior: a uniform prior needs low < high, not 2 and 1",
        ),
        ("curves.vae10.prior", {"name": "uniform", "low": -2}, "'high' is a dependency of 'low'"),
        ("curves.vae10.distortion", {"name": "ssim"}, "a gap is measured on simulated data, and none can be simulated"),
        ("sampler.n_images", 20000, "sampler.n_images: 20000 is greater than the maximum of 10000"),
        ("prerun.metric", "best", "'best' is not one of identity, pooled, image"),
        ("ais.seed", 6, "prerun, ais and bdmc must have different seeds"),
        ("curves.linear_vae100.beta_max", float("inf"), "beta_max: inf is not a finite number"),
        ("models.gan5.adam_betas", [math.nan, 0.999], "models.gan5.adam_betas.0: nan is not a finite number"),
        ("models.gan5.epochs", 10.0, "models.gan5.epochs: 10.0 is not of type 'integer'"),
        ("models.gan5.epochs", True, "models.gan5.epochs: True is not of type 'integer'"),
        ("ais.seed", 2**63, "ais.seed: 9223372036854775808 is greater than the maximum of 9223372036854775807"),
        ("prerun.n_chains", 1, "prerun.n_chains is 1; it must be 2 or more, for a schedule is learned from the var"),
        ("training.n_validation", 999, "n_validation is 1000, of the 999 images of training.n_validation"),
        ("claims.scorecard", {"claims": [], "windows": {}}, "claims.scorecard: "),
        ("curves.linear_vae100.n_recorded", 3000, "at most half of the 5000 temperatures"),
        ("prerun.max_temperatures", 99, "n_recorded is 50; at most half of the 99 temperatures"),
        ("bdmc.n_betas", 90, "bdmc.n_betas is 90, of 50 recorded"),
        ("curves.linear_vae100.prior", {"name": "scale_mixture"}, "is a required property"),
        ("curves.linear_vae100.dataset", "cifar10", "dataset is cifar10, but its model is trained on mnist"),
        ("sampler.n_images", 1, "sampler.n_images: 1 is less than"),
        ("ais.n_chains", 1, "ais.n_chains: 1 is less than the minimum of 2"),
        ("ais.n_chains", "40", "ais.n_chains: '40' is not of type 'integer'"),
        ("variational.gan2_amortised.method", "flow", "'flow' is not one of amortised, per_image"),
        ("variational.gan2_amortised.n_codes", 8, "variational.gan2_amortised: unknown key 'n_codes'; legal"),
        ("variational.gan2_per_image.n_codes", 3, "variational.gan2_per_image.n_codes: 3 is not a multiple of 2"),
        ("variational.gan2_amortised.curve", "gan3", "gan2_amortised.curve: 'gan3' is not one of the curves: linear"),
        ("variational.gan2_amortised.model", "gan5", "gan2_amortised.model is gan5, but that of curves.gan2"),
        ("variational.gan2_amortised.beta_min", 40000, "beta_min is 40000, not below beta_max = 36000 of its curve"),
        ("variational.gan5", {}, "variational.gan5: 'method' is a required property"),
        ("figures.figure8a.variational", {"gan2": "x"}, "figure8a.variational: 'gan2' is not one of the variational"),
        ("claims.figure8.variational", [], "claims.figure8: 'gan2_amortised' is not one of the curves"),
        ("illustrations.plane.n_chains", 20, "illustrations.plane.n_chains: 20 is not a multiple of 8"),
        ("figures.figure1.illustration", "venn", "figure1.illustration: 'venn' is not one of the illustrations: geom"),
        ("figures.figure1.curves", {"gan2": "x"}, "figures.figure1: unknown key 'curves'; legal keys: kind, title"),
    ],
)
def test_wrong_settings_are_named(params, where, value, message):
    wrong = deepcopy(params)
    put(wrong, where, value)
    if where.startswith("curves.linear_vae100"):
        wrong["closed_form"]["linear_vae100"] = wrong["curves"]["linear_vae100"]
    with pytest.raises(SettingsError) as error:
        settings.check(wrong)
    assert message in str(error.value)


def test_a_trainer_is_told_the_architectures_that_it_can_train(params):
    """A GAN needs a discriminator, which a linear decoder has none of."""
    gan = params["models"]["gan10"] | {"architecture": "linear"}
    params["models"]["gan10"] = {key: value for key, value in gan.items() if key not in ("hidden", "activation")}
    with pytest.raises(SettingsError, match=r"models\.gan10\.architecture: 'linear' is not one of mlp"):
        settings.check(params)


def test_claims_have_ids_of_their_own(params):
    first, second, *_ = params["claims"]["figure5"]["claims"]
    second["id"] = first["id"]
    with pytest.raises(SettingsError, match=r"claims\.figure5\.fig5_vae_below_gan: 2 claims have this id"):
        settings.check(params)


def test_runs_are_of_one_curve(params):
    """The bias that `over: runs` lets drop out is common to runs of one tuning alone."""
    (claim,) = params["claims"]["figure10"]["claims"]
    assert claim["over"] == "runs"
    claim["pairs"][0] = ["vae10_seed11", "vae2"]
    with pytest.raises(SettingsError, match="vae10_seed11 and vae2 are no runs of one curve, as over: runs asks"):
        settings.check(params)


def test_bounds_that_are_compared_are_of_one_model(params):
    (claim,) = params["claims"]["recipes"]["claims"]
    assert claim["over"] == "bounds"
    claim["pairs"][0] = ["vae10_as_published", "gan10"]
    with pytest.raises(SettingsError, match="vae10_as_published and gan10 are not of one model, as over: bounds asks"):
        settings.check(params)


def test_missing_settings_are_named(params):
    del params["ais"]["seed"]
    with pytest.raises(SettingsError, match="'seed' is a required property"):
        settings.check(params)


def test_a_variational_curve_has_a_name_of_its_own(params):
    params["variational"]["gan5"] = params["variational"]["gan2_amortised"]
    with pytest.raises(SettingsError, match=r"variational\.gan5: 'gan5' is also the name of a curve or repeat"):
        settings.check(params)


def test_a_curve_overrides_the_shared_section(params):
    assert settings.section(params, "prerun", "linear_vae100")["metric"] == "pooled"
    assert params["prerun"]["metric"] == "image"
    assert settings.section(params, "ais", "vae10") == params["ais"]


def test_a_recipe_lies_between_the_shared_section_and_the_curves_own(params):
    entry = params["curves"]["vae10"]
    entry |= {"recipe": params["recipes"]["paper"], "n_temperatures": 60000, "ais": {"n_chains": 40, "seed": 9}}
    del entry["gap"]
    settings.check(params)
    assert settings.section(params, "sampler", "vae10")["n_leapfrog"] == 20
    assert settings.section(params, "prerun", "vae10")["schedule"] == "sigmoid"
    assert settings.section(params, "ais", "vae10") == {"n_chains": 40, "seed": 9}
    entry["recipe"] = {"ais": {"n_chains": 7}}
    with pytest.raises(SettingsError, match="recipe is none of the recipes"):
        settings.check(params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_temperatures": 100}, "curves.vae10: give one of n_temperatures, gap, not n_temperatures and gap"),
        ({"gap": math.inf}, "curves.vae10.gap: inf is not a finite number"),
        ({"gap": -1}, "less than or equal to the minimum"),
        ({"prerun": {"schedule": "sigmoid"}}, "gap needs prerun.schedule: learned"),
        ({"ais": {"n_chains": 20}}, "ais.n_chains is 20; it must be a multiple of sampler.group_size = 8"),
        ({"ais": {"n_chains": 8}}, "at least 2 times"),
        ({"ais": {"most_chains": 63}}, "ais.most_chains is 63; chains are doubled, so that it must be at least twice"),
        (
            {
                "prerun": {"step_size_rule": "running_mean", "n_chains": 32},
                "sampler": {"group_size": 1},
                "bdmc": {"n_chains": 32},
                "ais": {"most_chains": 64},
            },
            "ais.most_chains needs a step size for all chains of an image",
        ),
        ({"bdmc": {"n_chains": 4}}, "bdmc.n_chains is 4; it must be a multiple"),
        (
            {"bdmc": {"n_chains": 40}},
            "bdmc.n_chains is 40; where a gap is asked for it must be at most ais.n_chains = 32",
        ),
        ({"prerun": {"step_size_rule": "running_mean"}}, "sampler.group_size must be 1, not 8"),
        (
            {"prerun": {"step_size_rule": "running_mean"}, "sampler": {"group_size": 1}},
            "as many chains in prerun and ais, not 8 and 32",
        ),
        ({"sampler": {"resample_below": 2}}, "2 is greater than the maximum"),
    ],
)
def test_wrong_sizes_are_named(params, changes, message):
    params["curves"]["vae10"] |= changes
    with pytest.raises(SettingsError, match=message):
        settings.check(params)


def test_one_of_size_and_gap_is_needed(params):
    del params["curves"]["vae10"]["gap"]
    with pytest.raises(SettingsError, match=r"curves\.vae10: give one of n_temperatures, gap, not none"):
        settings.check(params)


@pytest.mark.parametrize(("seed", "other"), [(7, "ais"), (12, r"repeats\.vae10_seed11|repeats\.vae10_seed12")])
def test_a_repeat_is_another_run(params, seed, other):
    params["repeats"]["vae10_seed11"]["seed"] = seed
    with pytest.raises(SettingsError, match=f"seed is {seed}, as that of ({other}): it would be the same run again"):
        settings.check(params)


def test_an_unknown_architecture_is_told_the_legal_ones(params):
    params["models"]["vae10"]["architecture"] = "mlpp"
    with pytest.raises(SettingsError, match="'mlpp' is not one of linear, mlp, cnn, dcgan"):
        settings.check(params)


def test_unreadable_file(tmp_path):
    with pytest.raises(SettingsError, match="no such file"):
        settings.read(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(SettingsError, match="not YAML"):
        settings.read(tmp_path / "params.yaml")


def test_every_model_and_curve_serves_a_figure(params):
    """Else a bare `dvc repro` would compute what nobody sees."""
    named = {name for figure in params["figures"].values() for name in settings.names_of_figure(figure)}
    drawn = {params["repeats"].get(name, {"curve": name})["curve"] for name in named}
    assert drawn == set(params["curves"])
    assert set(params["repeats"]) <= named
    bounds = {name for entry in params["figures"].values() for name in settings.names_of_figure(entry, "variational")}
    assert bounds == set(params["variational"])
    assert {entry.get("illustration") for entry in params["figures"].values()} - {None} == set(params["illustrations"])
    used = {params["curves"][curve]["model"] for curve in drawn}
    composed = set(params["compositions"])
    assert composed <= used
    used |= {name for entry in params["compositions"].values() for name in entry.values()}
    assert used - composed == set(params["models"])
    assert {model["dataset"] for model in params["models"].values()} == set(params["datasets"])


def test_params_survive_a_rewrite():
    """`dvc exp run --set-param` rewrites the file in block style."""
    text = (ROOT / "params.yaml").read_text()
    assert "{" not in "".join(line.split("#")[0] for line in text.splitlines())
    settings.check(yaml.safe_load(yaml.safe_dump(yaml.safe_load(text))))


def test_the_prerun_takes_what_the_settings_file_may_hold():
    """The least values stand in both: a stranger's call reads no schema."""
    schema = yaml.safe_load((ROOT / "src/rdcurve/params.schema.yaml").read_text())["$defs"]
    for name, least in prerun._LEAST.items():
        rule = schema["prerun"]["properties"][name]
        rule = schema[rule["$ref"].rpartition("/")[2]] if "$ref" in rule else rule
        assert rule["minimum"] >= least, name


@pytest.mark.parametrize("name", ["vae10_as_published", "gan10_as_published"])
def test_the_published_recipe_is_the_published_one(params, name):
    """Huang et al. 2020, appendix C, and their code: 60,000 temperatures, 20 leapfrog steps, 40 chains, 50 images."""
    entry = params["curves"][name]
    assert (entry["n_temperatures"], entry["beta_max"], entry["distortion"]) == (
        60_000,
        36_000,
        {"name": "squared_error"},
    )
    published = {
        "sampler": {"n_images": 50, "n_leapfrog": 20, "jitter": 0, "persistence": 0, "group_size": 1},
        "prerun": {
            "n_chains": 40, "seed": 6, "schedule": "sigmoid", "sharpness": 10, "step_size_rule": "running_mean",
            "target_acceptance": 0.65, "metric": "identity", "n_starts": 0,
        },
        "ais": {"n_chains": 40, "seed": 7},
        "bdmc": {"n_chains": 40},
    }  # fmt: skip
    for step, settings_of_step in published.items():
        found = settings.section(params, step, name)
        assert {key: found[key] for key in settings_of_step} == settings_of_step


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a:\n  b: 1\n  c: 2\n  b: 1\n", "2 and 4"),
        ("-\n  - b: 1\n    b: 3\n", "2 and 3"),
        ("a: {b: 1, b: 1}", "1 and 1"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, text, lines):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(SettingsError, match=f"the key 'b' stands twice in a mapping, in lines {lines}"):
        settings.read(tmp_path / "params.yaml")


def test_what_comes_from_an_anchor_may_be_written_anew(tmp_path):
    (tmp_path / "params.yaml").write_text("a: &a {b: 1}\nc: &c {d: 1}\ne:\n  <<: *a\n  <<: *c\n  b: 2\n")
    with pytest.raises(SettingsError, match="top level: unknown key 'a', 'c', 'e'"):
        settings.read(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "vae10"}, "there is one where the decoder is linear, not mlp"),
        ({"distortion": {"name": "squared_error"}}, "there is one where the distortion is gaussian_nll, not squared_"),
        ({"prior": {"name": "uniform"}}, "there is one where the prior is standard_normal, not uniform"),
    ],
)
def test_only_a_linear_decoder_with_gaussian_noise_has_a_closed_form(params, change, message):
    params["curves"]["linear_vae100"] |= change
    params["closed_form"]["linear_vae100"] = params["curves"]["linear_vae100"]
    with pytest.raises(SettingsError, match=rf"closed_form\.linear_vae100: {message}"):
        settings.check(params)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"params\.yaml: not a text in UTF-8"):
        settings.read(tmp_path / "params.yaml")


def test_settings_know_which_distortions_can_be_simulated():
    """They are read without torch, so the names stand there; the type is what decides."""
    known = {name for name, kind in DISTORTIONS.items() if isinstance(kind(), SamplableDistortion)}
    assert known == set(settings._SIMULATED)
