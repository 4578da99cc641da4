"""What the rules share: settings are checked, DVC decides what is fresh, a job is one DVC stage.

Rules ask `fresh("STAGE")` for one more input, a key file whose time stamp carries DVC's verdict to Snakemake
(workflow/lib/freshness.py). Their commands run that stage alone, so that the job itself records its result in
dvc.lock and in the cache, on whatever node it runs and whatever becomes of the process that started it.
"""

import os
import sys

sys.path.insert(0, os.path.join(workflow.basedir, "src"))
sys.path.insert(0, os.path.join(workflow.basedir, "workflow", "lib"))

import freshness
import needs
import stages
from rdcurve import settings

try:
    params = settings.read("params.yaml")
except settings.SettingsError as error:
    raise WorkflowError(str(error))

if config != params:
    # else old results would pass for those of other settings: commands and DVC read the file
    raise WorkflowError(
        "settings are those of params.yaml alone: no --config, no --configfile"
    )

if workflow.is_main_process and not stages.up_to_date(workflow.basedir):
    # else a figure would be taken for fresh whose new curve DVC does not know of
    raise WorkflowError(
        "dvc.yaml does not have the figures and claims of params.yaml: make stages"
    )


wildcard_constraints:
    dataset="|".join(config["datasets"]),
    model="|".join(config["models"]),
    composition="|".join(config["compositions"]) or "-",
    curve="|".join(config["curves"]),
    repeat="|".join(config["repeats"]) or "-",
    variational="|".join(config["variational"]) or "-",
    illustration="|".join(config["illustrations"]) or "-",
    figure="|".join(config["figures"]),
    claimed="|".join(config["claims"]) or "-",


def fresh(stage):
    """The key file of a stage; on a compute node only its path."""
    if not workflow.is_main_process:
        return os.path.join(freshness.KEYS, stage)

    def key(wildcards):
        # known only once the Snakefile is read: dry runs and reports have no executor
        look_only = not workflow.executor_plugin or workflow.dryrun
        return freshness.key(stage.format(**wildcards), look_only=look_only)

    return key


def dvc(stage):
    """The command of every job."""
    return f"dvc --wait-for-lock repro --single-item {stage} > {{log:q}} 2>&1"


def entry_of(wildcards):
    """What params.yaml says of the model, variational curve or curve that a job is about."""
    sections = {"model": "models", "variational": "variational", "curve": "curves"}
    (name,) = sections.keys() & wildcards.keys()
    return config[sections[name]][wildcards[name]]


def model_of(wildcards):
    """Checkpoint that a curve is measured on."""
    return f"results/decoders/{entry_of(wildcards)['model']}.safetensors"


def dataset_of(wildcards):
    """Data that a model is trained on, or a curve is measured on."""
    return f"results/data/{entry_of(wildcards)['dataset']}"


def parts_of(wildcards):
    """The decoder and the classifier of a composition."""
    parts = config["compositions"][wildcards.composition]
    return [
        f"results/decoders/{parts[part]}.safetensors"
        for part in ("decoder", "classifier")
    ]


def repeated(kind):
    """A file of the curve, or of the model or data set, that a repeat names."""

    def path(wildcards):
        entry = config["repeats"][wildcards.repeat]
        return {
            "data": f"results/data/{entry['dataset']}",
            "decoder": f"results/decoders/{entry['model']}.safetensors",
            "step_sizes": f"results/step_sizes/{entry['curve']}.safetensors",
        }[kind]

    return path


def drawn_from(wildcards):
    """What a figure draws, as params.yaml says."""
    return needs.of_figure(config, wildcards.figure)


def decided_from(wildcards):
    """What the claims about a figure are decided from."""
    return needs.of_claims(config, wildcards.claimed)


def tabulated_from(wildcards):
    """What the table of log-likelihoods is made from."""
    return needs.of_likelihood(config)


def no_such_target(wildcards):
    """Refuses a target that is none, by naming those that are."""
    legal = ", ".join(["all", "claims", "likelihood", *sorted(config["figures"])])
    raise ValueError(f"unknown target {wildcards.unknown!r}; legal: {legal}")
