"""
REQUIRED INPUTS: results/data/{dataset}/
                 results/decoders/{model}.safetensors
OUTPUTS: results/step_sizes/{curve}.safetensors, schedule, step sizes and metric, learned
         results/curves/{curve}.{safetensors,csv,json}, the curve per image, its means, its largest errors
         results/curves/{repeat}.{safetensors,csv,json}, the formal run again with other noise
         results/bdmc/{curve}.{csv,json}, bounds from both sides, the largest gap
         results/exact/{curve}.{safetensors,json}, closed form of a linear decoder, largest differences
         results/variational/{variational}.{safetensors,csv}, upper bound by Gaussian channels, losses
         results/illustrations/{illustration}.safetensors, all curves of a small problem
"""


localrules:
    exact,
    illustrate,


rule prerun:
    """Learning schedule, step sizes, metric and, for a gap that is asked for, the size of {wildcards.curve}"""
    input:
        data=dataset_of,
        decoder=model_of,
        key=fresh("prerun@{curve}"),
    output:
        "results/step_sizes/{curve}.safetensors",
    log:
        "results/logs/prerun/{curve}.log",
    benchmark:
        "results/benchmarks/prerun@{curve}.tsv"
    conda:
        "../envs/rdcurve.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=4000,
        runtime=360,
    shell:
        dvc("prerun@{wildcards.curve}")


rule ais:
    """Annealing {wildcards.curve} with the step sizes of its prerun"""
    input:
        data=dataset_of,
        decoder=model_of,
        step_sizes="results/step_sizes/{curve}.safetensors",
        key=fresh("ais@{curve}"),
    output:
        curve="results/curves/{curve}.safetensors",
        summary="results/curves/{curve}.csv",
        errors="results/curves/{curve}.json",
    log:
        "results/logs/ais/{curve}.log",
    benchmark:
        "results/benchmarks/ais@{curve}.tsv"
    conda:
        "../envs/rdcurve.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=4000,
        runtime=720,
    shell:
        dvc("ais@{wildcards.curve}")


rule repeat:
    """Annealing once more: {wildcards.repeat}"""
    input:
        data=repeated("data"),
        decoder=repeated("decoder"),
        step_sizes=repeated("step_sizes"),
        key=fresh("repeat@{repeat}"),
    output:
        curve="results/curves/{repeat}.safetensors",
        summary="results/curves/{repeat}.csv",
        errors="results/curves/{repeat}.json",
    log:
        "results/logs/repeat/{repeat}.log",
    benchmark:
        "results/benchmarks/repeat@{repeat}.tsv"
    conda:
        "../envs/rdcurve.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=4000,
        runtime=720,
    shell:
        dvc("repeat@{wildcards.repeat}")


rule bdmc:
    """Bounding log Z of {wildcards.curve} from both sides, on simulated data"""
    input:
        data=dataset_of,
        decoder=model_of,
        step_sizes="results/step_sizes/{curve}.safetensors",
        key=fresh("bdmc@{curve}"),
    output:
        points="results/bdmc/{curve}.csv",
        gap="results/bdmc/{curve}.json",
    log:
        "results/logs/bdmc/{curve}.log",
    benchmark:
        "results/benchmarks/bdmc@{curve}.tsv"
    conda:
        "../envs/rdcurve.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=4000,
        runtime=720,
    shell:
        dvc("bdmc@{wildcards.curve}")


rule exact:
    """Closed form of {wildcards.curve}"""
    input:
        data=dataset_of,
        decoder=model_of,
        curve="results/curves/{curve}.safetensors",
        key=fresh("exact@{curve}"),
    output:
        curve="results/exact/{curve}.safetensors",
        differences="results/exact/{curve}.json",
    log:
        "results/logs/exact/{curve}.log",
    benchmark:
        "results/benchmarks/exact@{curve}.tsv"
    conda:
        "../envs/rdcurve.yaml"
    resources:
        mem_mb=2000,
        runtime=10,
    shell:
        dvc("exact@{wildcards.curve}")


rule variational:
    """Bounding a curve by Gaussian channels: {wildcards.variational}"""
    input:
        data=dataset_of,
        decoder=model_of,
        key=fresh("variational@{variational}"),
    output:
        curve="results/variational/{variational}.safetensors",
        history="results/variational/{variational}.csv",
    log:
        "results/logs/variational/{variational}.log",
    benchmark:
        "results/benchmarks/variational@{variational}.tsv"
    conda:
        "../envs/rdcurve.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=4000,
        runtime=240,
    shell:
        dvc("variational@{wildcards.variational}")


rule illustrate:
    """Computing a small problem: {wildcards.illustration}"""
    input:
        key=fresh("illustrate@{illustration}"),
    output:
        "results/illustrations/{illustration}.safetensors",
    log:
        "results/logs/illustrate/{illustration}.log",
    benchmark:
        "results/benchmarks/illustrate@{illustration}.tsv"
    conda:
        "../envs/rdcurve.yaml"
    resources:
        mem_mb=2000,
        runtime=20,
    shell:
        dvc("illustrate@{wildcards.illustration}")
