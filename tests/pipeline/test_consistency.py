"""What stands in two files says the same in both: dvc.yaml, the rules, params.yaml and the code."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from project import BIN, ROOT

from rdcurve.cli import _parser, sections
from rdcurve.settings import RESERVED

# Modules that cannot change a result, or whose content is in the hash of a file (networks: in the checkpoint).
INFRASTRUCTURE = {
    "__init__.py", "__main__.py", "cli.py", "device.py", "diagnosis.py", "files.py", "progress.py", "settings.py",
    "state.py", "types.py", "vision.py", "commands/__init__.py", "commands/guard.py", "data/__init__.py",
    "illustrations/__init__.py", "models/__init__.py", "models/cnn.py", "models/linear.py", "models/mlp.py",
    "training/__init__.py",
}  # fmt: skip


@pytest.fixture(scope="module")
def stages():
    """Name -> stage, as DVC resolves dvc.yaml."""
    from dvc.repo import Repo

    return {stage.addressing: stage for stage in Repo(str(ROOT)).index.stages}


def arguments(stage):
    program, *rest = shlex.split(stage.cmd)
    assert program == "rdcurve"
    return _parser().parse_args(rest)


def test_stages_depend_on_the_settings_that_they_read(stages):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, stage in stages.items():
        args = arguments(stage)
        declared = {key for dep in stage.deps for key in getattr(dep, "params", None) or []}
        curve = {**params["repeats"], **params["variational"]}.get(args.name, {}).get("curve", "")
        assert declared == set(sections(args.verb, args.name, curve)), name


def test_commands_name_their_dependencies_and_outputs(stages):
    """Every file that a command line names is declared, and every declared output is named."""
    for name, stage in stages.items():
        args = arguments(stage)
        deps = {dep.def_path for dep in stage.deps}
        outs = {out.def_path for out in stage.outs}
        named = {str(value) for value in vars(args).values() if isinstance(value, Path)}
        named -= {"params.yaml"}
        named -= {"results/state"}
        if args.verb in (
            "plot",
            "claims",
            "scorecard",
            "likelihood",
        ):  # handed folders, and a figure one name for three formats
            folders = {path for path in named if path not in outs}
            named = outs | {dep for dep in deps if dep.startswith("results/")}
            assert {str(Path(path).parent) for path in named - outs} == folders, name
            assert {Path(out).stem for out in outs} == {args.name or args.verb}
        data = {dep for dep in deps if not dep.startswith("src/") and dep != "params.yaml"}
        assert named == data | outs, name


def test_code_that_a_step_loads_is_declared(stages):
    """Every module of the package that a command imports is a dependency, or cannot change a result."""
    models = yaml.safe_load((ROOT / "params.yaml").read_text())["models"]
    commands = {}
    for name, stage in stages.items():
        args = arguments(stage)
        module = ""  # that the command loads by its name
        if args.verb == "train":
            module = f"rdcurve.training.{models[args.name]['trainer']}"
        elif args.verb == "illustrate":
            module = f"rdcurve.illustrations.{args.name}"
        commands.setdefault((f"rdcurve.commands.{args.verb}", module), (name, stage))
    # what they all import is imported once, and each command in a fork of that process
    code = f"""
import importlib, os, pandas, seaborn, sys, torch
for modules in {list(commands)}:
    if not os.fork():
        for module in filter(None, modules):
            importlib.import_module(module)
        print(*(module for module in sys.modules if module.partition(".")[0] == "rdcurve"), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, modules
"""
    text = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    for (name, stage), line in zip(commands.values(), text.splitlines(), strict=True):
        modules = {module.replace(".", "/") for module in line.split()}
        package = ROOT / "src"
        files = {p for m in modules for p in (f"{m}.py", f"{m}/__init__.py") if (package / p).exists()}
        declared = [dep.def_path.removeprefix("src/") for dep in stage.deps if dep.def_path.startswith("src/")]
        missing = {
            file
            for file in files
            if file.removeprefix("rdcurve/") not in INFRASTRUCTURE
            and not any(file == dep or file.startswith(f"{dep}/") for dep in declared)
        }
        assert not missing, (name, missing)


@pytest.mark.pipeline  # the real snakemake plans all of its jobs
def test_rules_and_stages_are_one_graph(stages):
    """Each Snakemake job has the inputs and outputs of its DVC stage, code and settings aside."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    on_request = [name for name, entry in params["figures"].items() if entry.get("on_request")]
    on_request += [f"results/claims/{name}.json" for name, entry in params["claims"].items() if entry.get("on_request")]
    text = subprocess.run(
        [BIN / "snakemake", "--cores", "1", "--dry-run", "--forceall", "--nocolor", "all", *on_request],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    jobs = {}
    for block in re.split(r"\n(?=\[)", text.stdout + text.stderr):
        rule = re.search(r"rule (\w+):", block)
        output = re.search(r"^    output: (.*)$", block, re.M)
        if not rule or not output:
            continue
        inputs = re.search(r"^    input: (.*)$", block, re.M)
        files = set(inputs[1].split(", ")) if inputs else set()
        (key,) = (path for path in files if path.startswith(".snakemake/dvc/"))
        jobs[Path(key).name] = (files - {key}, set(output[1].split(", ")))
    assert set(jobs) == set(stages)
    for name, stage in stages.items():
        deps = {dep.def_path for dep in stage.deps if dep.def_path.startswith("results/")}
        outs = {out.def_path for out in stage.outs}
        assert jobs[name] == (deps, outs), name


def test_figure_stages_are_those_that_would_be_written():
    path = os.pathsep.join(str(ROOT / folder) for folder in ("src", "workflow/lib"))
    code = f"import stages, pathlib; print(stages.rewritten(pathlib.Path({str(ROOT)!r})), end='')"
    env = os.environ | {"PYTHONPATH": path}
    text = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
    assert text == (ROOT / "dvc.yaml").read_text(), "run `make stages`"


def test_every_rule_has_log_benchmark_and_resources():
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        for block in re.split(r"\nrule ", path.read_text())[1:]:
            name = block.partition(":")[0]
            for part in (
                ("input:",)
                if name in ("claims", "likelihood", "unknown")
                else (
                    "input:",
                    "output:",
                    "log:",
                    "benchmark:",
                    "resources:",
                    "mem_mb=",
                    "runtime=",
                    "shell:",
                    '"""',
                )
            ):
                assert part in block, (path.name, name, part)


def test_lint():
    done = subprocess.run([BIN / "snakemake", "--lint"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_says_how_trainings_differ_from_the_published():
    """Whose numbers are those of params.yaml."""
    models = yaml.safe_load((ROOT / "params.yaml").read_text())["models"]
    readme = " ".join((ROOT / "README.md").read_text().split())
    vaes, aaes = ([models[f"{kind}{size}"] for size in (2, 10, 100)] for kind in ("vae", "aae"))
    said = {f"{vae['epochs']} epochs at a learning rate of {vae['learning_rate']:g} with a {vae['schedule']} schedule"
            for vae in vaes}  # fmt: skip
    assert len(said) == 1
    assert f"VAEs had {said.pop()} (paper" in readme
    (epochs,) = {aae["epochs"] for aae in aaes}
    assert f"AAEs {epochs} (5,000" in readme
    published = [(0.01, 1.0), (0.1, 1.0), (0.1, 0.1)]  # for codes of 2, 10, 100
    ours = [(aae["reconstruction_weight"], aae["adversarial_weight"]) for aae in aaes]
    assert ours[1:] == published[1:]
    (less, more) = (adversarial / reconstruction for reconstruction, adversarial in (ours[0], published[0]))
    assert round(more / less, 6) == 10
    assert "the loss weights that those names give, but for the code of 2, where they weigh the adversarial loss ten " \
        "times as much" in readme  # fmt: skip


def test_readme_names_every_figure():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    readme = (ROOT / "README.md").read_text()
    for figure in params["figures"]:
        assert figure in readme


def test_the_core_knows_nothing_of_the_rest():
    code = "import sys, rdcurve.own.measure; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    outer = {"models", "training", "data", "plot", "cli", "commands", "settings", "vision"}
    assert not {m for m in loaded if m.startswith("rdcurve.") and m.split(".")[1] in outer}
    assert "torchvision" not in loaded


def test_no_figure_takes_the_name_of_a_step():
    """Names that settings.py refuses are those of the rules and of the stages that stand in dvc.yaml by hand."""
    rules = {
        name
        for path in (ROOT / "Snakefile", *(ROOT / "workflow/rules").glob("*.smk"))
        for name in re.findall(r"^rule (\w+):", path.read_text(), flags=re.MULTILINE)
    }
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    written = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    stages = {name for name in written if name not in params["figures"] and not name.startswith("claims_")}
    assert rules | stages == RESERVED
