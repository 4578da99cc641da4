"""Wall time and peak memory of a certified curve: the real commands rdcurve prerun, ais and bdmc, one after the other.

A curve of params.yaml from a trained decoder, with the gap and on the images that stand there unless told otherwise:
the files in the work folder are then those that the pipeline makes. Every finished command is saved; a rerun, also with
more repeats, goes on from there, within a command from its state.

    python benchmarks/certified_curve.py --decoders results/decoders --data results/data/mnist --work /tmp/certified
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from common import ROOT, Cells, parser, show, spread

STEPS = ("prerun", "ais", "bdmc")


def prepare(args: argparse.Namespace) -> Path:
    """A params.yaml beside the results, with one curve."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    curve = params["curves"][args.curve]
    if args.gap is not None:
        curve["gap"] = args.gap
        curve.pop("n_temperatures", None)
    if args.beta_max is not None:
        curve["beta_max"] = args.beta_max
    for section, key in (("sampler", "n_images"), ("prerun", "max_temperatures")):
        value = getattr(args, key)
        if value is not None:
            curve[section] = {**curve.get(section, {}), key: value}
    params["curves"] = {args.curve: curve}
    for section in ("repeats", "closed_form", "figures", "claims", "variational"):
        params[section] = {}
    params["likelihood"]["curves"] = {}
    path = args.work / "params.yaml"
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    return path


def command(step: str, args: argparse.Namespace, params: Path, folder: Path) -> list[str]:
    model = yaml.safe_load(params.read_text())["curves"][args.curve]["model"]
    decoder = args.decoders / f"{model}.safetensors"
    common = f"--params {params} --decoder {decoder} --data {args.data} --state {folder / 'state'}".split()
    tuning, curve = folder / "step_sizes.safetensors", folder / "curve.safetensors"
    own = {
        "prerun": ["--output", tuning],
        "ais": ["--step-sizes", tuning, "--output", curve, "--summary", folder / "curve.csv",
                "--errors", folder / "curve.json"],
        "bdmc": ["--step-sizes", tuning, "--output", folder / "bdmc.csv", "--gap", folder / "bdmc.json"],
    }[step]  # fmt: skip
    return [sys.executable, "-m", "rdcurve", step, args.curve, *common, *map(str, own)]


def measured(words: list[str], log: Path) -> dict[str, float]:
    """Run a command; its wall and CPU seconds and peak memory, from the kernel's own account of that process."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    start = time.monotonic()
    with log.open("w") as file:
        actions = [(os.POSIX_SPAWN_DUP2, file.fileno(), 1), (os.POSIX_SPAWN_DUP2, file.fileno(), 2)]
        child = os.posix_spawn(words[0], words, env, file_actions=actions)
        _, status, usage = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(words)}\nfailed:\n{log.read_text()[-2000:]}")
    return {
        "seconds": time.monotonic() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / 1024,  # Linux counts in KiB
    }


def found(folder: Path) -> dict[str, Any]:
    """What came out of a repeat."""
    with (folder / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    log = (folder / "ais.log").read_text()
    last = next(line for line in (folder / "prerun.log").read_text().splitlines() if " temperatures; step" in line)
    return {
        **json.loads((folder / "curve.json").read_text()),
        **json.loads((folder / "bdmc.json").read_text()),
        "certified": sum(row["certified"] == "True" for row in rows),
        "recorded": len(rows),
        "largest_doubt": max(float(row["doubt"]) for row in rows),
        "temperatures": int(last.split(": ")[1].split()[0]),
        "verdict": log[log.index("verdict:") :].strip(),
    }


def main() -> None:
    options = parser(__file__, __doc__, repeats=1)
    options.add_argument("--decoders", type=Path, required=True, help="folder of checkpoints")
    options.add_argument("--data", type=Path, required=True, help="folder of the fetched data set")
    options.add_argument("--work", type=Path, required=True, help="folder for settings, results, states and logs")
    options.add_argument("--curve", default="vae10", help="entry of params.yaml")
    options.add_argument("--n-images", type=int, help="default: that of params.yaml")
    options.add_argument("--gap", type=float, help="nats; default: that of the curve")
    options.add_argument("--beta-max", type=float, help="default: that of the curve")
    options.add_argument("--max-temperatures", type=int, help="default: that of params.yaml")
    args = options.parse_args()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    params = prepare(args)
    same = {name: getattr(args, name) for name in ("curve", "n_images", "gap", "beta_max", "max_temperatures")}
    cells = Cells(args, same)
    for repeat in range(args.repeats):
        folder = args.work / str(repeat)
        folder.mkdir(exist_ok=True)
        for step in STEPS:
            name = f"{step} {repeat}"
            if name not in cells.values:
                print(name, flush=True)
                cells.put(name, measured(command(step, args, params, folder), folder / f"{step}.log"))
        if f"result {repeat}" not in cells.values:
            cells.put(f"result {repeat}", found(folder))

    rows, table = [], {}
    for step in STEPS:
        runs = [cells.values[f"{step} {repeat}"] for repeat in range(args.repeats)]
        table[step] = {key: spread([run[key] for run in runs]) for key in ("seconds", "cpu_seconds", "peak_mib")}
        rows.append({"command": step, **{key: value["median"] for key, value in table[step].items()}})
    for key in ("seconds", "cpu_seconds"):
        sums = [sum(cells.values[f"{s} {r}"][key] for s in STEPS) for r in range(args.repeats)]
        table.setdefault("all", {})[key] = spread(sums)
    most = {"peak_mib": max(row["peak_mib"] for row in rows)}
    rows.append({"command": "all", **{key: value["median"] for key, value in table["all"].items()}, **most})
    show(rows)
    result = cells.values["result 0"]
    print(
        f"{result['temperatures']} temperatures; {result['certified']} of {result['recorded']} betas certified; "
        f"BDMC gap {result['gap_max']:.2f} +- {result['gap_max_se']:.2f} nats at beta = {result['gap_max_beta']:.3g}"
    )
    print(result["verdict"])
    cells.write(summary=table)


if __name__ == "__main__":
    main()
