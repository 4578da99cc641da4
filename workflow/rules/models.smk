"""
REQUIRED INPUTS: results/data/{dataset}/
OUTPUTS: results/decoders/{model}.safetensors, a checkpoint that describes itself
         results/training/{model}.csv, its losses
         results/samples/{model}.png, what it draws
         results/decoders/{composition}.safetensors, a decoder of the features of another's images
"""


localrules:
    compose,


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


rule compose:
    """Composing {wildcards.composition}"""
    input:
        parts=parts_of,
        key=fresh("compose@{composition}"),
    output:
        "results/decoders/{composition}.safetensors",
    log:
        "results/logs/compose/{composition}.log",
    benchmark:
        "results/benchmarks/compose@{composition}.tsv"
    conda:
        "../envs/rdcurve.yaml"
    resources:
        mem_mb=2000,
        runtime=10,
    shell:
        dvc("compose@{wildcards.composition}")
