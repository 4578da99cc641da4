"""
REQUIRED INPUTS: results/data/{dataset}/
OUTPUTS: results/decoders/{model}.safetensors, a checkpoint that describes itself
         results/training/{model}.csv, its losses
         results/samples/{model}.png, what it draws
"""


rule train:
    """Training {wildcards.model}"""
    input:
        data=dataset_of,
        key=fresh("train@{model}"),
    output:
        decoder="results/decoders/{model}.safetensors",
        history="results/training/{model}.csv",
        samples="results/samples/{model}.png",
    log:
        "results/logs/train/{model}.log",
    benchmark:
        "results/benchmarks/train@{model}.tsv"
    conda:
        "../envs/rdcurve.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=4000,
        runtime=240,
    shell:
        dvc("train@{wildcards.model}")
