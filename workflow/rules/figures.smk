"""
REQUIRED INPUTS: results/curves/{curve}.safetensors, results/bdmc/{curve}.csv of each curve of the figure
                 results/exact/{curve}.safetensors where the curve has a closed form
OUTPUTS: results/figures/{figure}.{svg,pdf,png}
"""


localrules:
    figure,


rule figure:
    """Drawing {wildcards.figure}"""
    input:
        curves=curves_of,
        key=fresh("{figure}"),
    output:
        report(
            "results/figures/{figure}.svg",
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


for name in config["figures"]:

    rule:
        name:
            name
        input:
            f"results/figures/{name}.svg",
