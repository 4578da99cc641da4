"""Table of contents: every figure of params.yaml is a target, `snakemake figure3`."""

from snakemake.utils import min_version

min_version("9.0")


configfile: "params.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/curves.smk"
include: "workflow/rules/figures.smk"


localrules:
    all,


rule all:
    """Every figure but those on request, every claim about them, and the log-likelihoods."""
    default_target: True
    input:
        [
            f"results/figures/{name}.svg"
            for name, entry in config["figures"].items()
            if not entry.get("on_request")
        ],
        "results/claims/scorecard.md",
        "results/likelihood/likelihood.md",
