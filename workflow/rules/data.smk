"""
REQUIRED INPUTS: none
OUTPUTS: results/data/{dataset}/, the published files, checked byte for byte
"""


localrules:
    fetch,


rule fetch:
    """Fetching {wildcards.dataset}"""
    input:
        key=fresh("fetch@{dataset}"),
    output:
        directory("results/data/{dataset}"),
    log:
        "results/logs/fetch/{dataset}.log",
    benchmark:
        "results/benchmarks/fetch@{dataset}.tsv"
    conda:
        "../envs/rdcurve.yaml"
    resources:
        mem_mb=4000,
        runtime=30,
    shell:
        dvc("fetch@{wildcards.dataset}")
