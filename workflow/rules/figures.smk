"""
REQUIRED INPUTS: results/curves/{curve}.safetensors, results/bdmc/{curve}.csv of each curve of the figure
                 results/exact/{curve}.safetensors where the curve has a closed form
                 results/variational/{variational}.safetensors where it draws bounds by Gaussian channels
                 results/illustrations/{illustration}.safetensors for an illustration
                 for grids of reconstructions: results/decoders/{model}.safetensors, results/data/{dataset}
OUTPUTS: results/figures/{figure}.{svg,pdf,png}
         results/claims/{claimed}.{json,csv}, what the paper says of a figure, decided
         results/claims/scorecard.{md,csv}, all of it in one table
         results/likelihood/likelihood.{md,csv}, log p(x) from the curves
"""


localrules:
    figure,
    decide,
    scorecard,
    claims,
    tabulate,
    likelihood,


rule figure:
    """Drawing {wildcards.figure}"""
    input:
        files=drawn_from,
        key=fresh("{figure}"),
    output:
        report(
            "results/figures/{figure}.svg",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        "results/figures/{figure}.pdf",
        "results/figures/{figure}.png",
    log:
        "results/logs/figure/{figure}.log",
    benchmark:
        "results/benchmarks/{figure}.tsv"
    conda:
        "../envs/rdcurve.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    shell:
        dvc("{wildcards.figure}")


rule decide:
    """Deciding what the paper says of {wildcards.claimed}"""
    input:
        files=decided_from,
        key=fresh("claims_{claimed}"),
    output:
        verdicts="results/claims/{claimed}.json",
        table=report(
            "results/claims/{claimed}.csv",
            caption="../report/claims.rst",
            category="Claims",
            labels={"claims": "{claimed}"},
        ),
    log:
        "results/logs/claims/{claimed}.log",
    benchmark:
        "results/benchmarks/claims_{claimed}.tsv"
    conda:
        "../envs/rdcurve.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    shell:
        dvc("claims_{wildcards.claimed}")


rule scorecard:
    """Putting all verdicts into one table"""
    input:
        verdicts=needs.of_scorecard(config),
        key=fresh("scorecard"),
    output:
        text="results/claims/scorecard.md",
        table=report(
            "results/claims/scorecard.csv", category="Claims", labels={"claims": "all"}
        ),
    log:
        "results/logs/scorecard.log",
    benchmark:
        "results/benchmarks/scorecard.tsv"
    conda:
        "../envs/rdcurve.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    shell:
        dvc("scorecard")


rule tabulate:
    """Reading log-likelihoods off the curves"""
    input:
        files=tabulated_from,
        key=fresh("likelihood"),
    output:
        text="results/likelihood/likelihood.md",
        table=report(
            "results/likelihood/likelihood.csv",
            caption="../report/likelihood.rst",
            category="Likelihood",
        ),
    log:
        "results/logs/likelihood.log",
    benchmark:
        "results/benchmarks/likelihood.tsv"
    conda:
        "../envs/rdcurve.yaml"
    resources:
        mem_mb=1000,
        runtime=10,
    shell:
        dvc("likelihood")


rule claims:
    """Every claim of the paper"""
    input:
        "results/claims/scorecard.md",


rule likelihood:
    """log p(x) under Gaussian noise, beside published numbers"""
    input:
        "results/likelihood/likelihood.md",


for name in config["figures"]:

    rule:
        name:
            name
        input:
            f"results/figures/{name}.svg",


rule unknown:
    """A word that names no target: the legal ones"""
    input:
        no_such_target,
    output:
        "{unknown,[^/.]+}",
