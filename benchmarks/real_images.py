"""Does the certificate tell where a curve on real images is right?

The first test images, the fast recipe with both routes: independent seeds of prerun and formal run, against one longer
run with a seed of its own. Per beta: how far R and log Z of each image are from the reference, beside what the run says
of itself (doubt, certified). The plain R has the noise of beta D in it, which log Z has not: doubt is about log Z.

Every finished run is saved; a rerun goes on from there.

    python benchmarks/real_images.py --decoders results/decoders --models vae10 --data results/data/mnist
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, Cells, parser, recipe, show, timed, trained_target, with_betas

from rdcurve.data.load import images as read_images
from rdcurve.progress import Progress
from rdcurve.sampler.certify import TOLERANCE
from rdcurve.sampler.descent import learn_descent
from rdcurve.sampler.formal import formal_run
from rdcurve.sampler.noise import seed_of
from rdcurve.sampler.prerun import learn

KEPT = ("rate", "rate_cv", "distortion", "log_z", "rate_se", "rate_cv_se", "log_z_se", "doubt", "acceptance", "ess")


def run(args: argparse.Namespace, model: str, seed: int, n_temperatures: int) -> dict[str, Any]:
    """Prerun and formal run: the curve at the wanted betas, [beta][image]."""
    x = read_images(args.data, "test", args.images)
    target, _ = trained_target(args.decoders / f"{model}.safetensors", x)
    chosen = recipe(ROOT / "params.yaml")
    prerun = replace(chosen.prerun, seed=seed_of(seed, "prerun"))
    what, top = f"{model} seed {seed}", max(args.betas)
    with timed() as clock:
        learned = learn(
            target, top, chosen.kernel, prerun, chosen.groups, progress=Progress(f"{what}: prerun")
        )  # fmt: skip
        tuning = learned.at_length(n_temperatures)
        betas, recorded = with_betas(tuning.betas, args.betas)
        tuning = tuning._replace(betas=betas)
        descent = learn_descent(target, tuning, learned, chosen.kernel, prerun, progress=Progress(f"{what}: descent"))
    with timed() as formal:
        curve = formal_run(
            target,
            tuning,
            recorded,
            chosen.kernel,
            n_chains=args.chains,
            seed=seed_of(seed, "formal"),
            groups=chosen.groups,
            descent=descent,
            progress=Progress(f"{what}: formal"),
        )
    arrays = {name: getattr(curve, name).tolist() for name in KEPT}
    return {
        "model": model,
        "seed": seed,
        "temperatures": n_temperatures,
        "length": learned.length,
        "beta": curve.beta.tolist(),
        "certified": curve.certified.tolist(),
        **arrays,
        "prerun_seconds": clock.wall,
        "seconds": formal.wall,
        "cpu_seconds": clock.cpu + formal.cpu,
    }


def rows_of(model: str, runs: list[dict[str, Any]], reference: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per beta; numbers over images and seeds."""
    array = {name: np.array([each[name] for each in runs], dtype=float) for name in KEPT}  # [S, K, N]
    true = {name: np.array(reference[name], dtype=float) for name in KEPT}  # [K, N]
    certified = np.array([each["certified"] for each in runs])  # [S, K]
    rows = []
    for k, beta in enumerate(reference["beta"]):
        error = {name: array[name][:, k] - true[name][k] for name in ("rate", "rate_cv", "log_z")}  # [S, N]
        expected = np.sqrt(np.square(array["rate_se"][:, k]) + np.square(true["rate_se"][k]))
        far = np.abs(error["log_z"]) > TOLERANCE
        doubtful = array["doubt"][:, k] > TOLERANCE
        rows.append(
            {
                "model": model,
                "beta": beta,
                "R_ref": true["rate"][k].mean(),
                "|dR|": np.abs(error["rate"]).mean(),
                "se of it": expected.mean(),
                "largest |dR|": np.abs(error["rate"]).max(),
                "|dR_cv|": np.abs(error["rate_cv"]).mean(),
                "d mean R": np.abs(error["rate"].mean(1)).max(),
                "|d log Z|": np.abs(error["log_z"]).mean(),
                "largest |d log Z|": np.abs(error["log_z"]).max(),
                "sd of R, seeds": array["rate"][:, k].std(0, ddof=1).mean() if len(runs) > 1 else np.nan,
                "mean doubt": array["doubt"][:, k].mean(),
                "certified": f"{certified[:, k].sum()} of {len(runs)}",
                "doubt of ref": true["doubt"][k].mean(),
                "log Z off > 1": far.mean(),
                "same, image's doubt <= 1": _share(far, ~doubtful),
                "same, doubt > 1": _share(far, doubtful),
                "images above ref": int((error["log_z"] > TOLERANCE).sum()),
            }
        )
    return rows


def _share(what: np.ndarray, where: np.ndarray) -> float:
    return float(what[where].mean()) if where.any() else float("nan")


def totals(model: str, runs: list[dict[str, Any]], reference: dict[str, Any]) -> list[dict[str, Any]]:
    """Certified and uncertified betas: shares of images off by more than the tolerance."""
    rows = []
    for verdict in (True, False):
        errors = {
            name: np.concatenate(
                [
                    np.abs(np.array(each[name])[k] - np.array(reference[name])[k])
                    for each in runs
                    for k, certified in enumerate(each["certified"])
                    if certified == verdict
                ]
                or [np.zeros(0)]
            )
            for name in ("rate", "rate_cv", "log_z")
        }
        n = len(errors["rate"])
        row = {"model": model, "betas": "certified" if verdict else "not certified", "images x betas x seeds": n}
        row |= {f"{name} off > 1 nat": float((e > 1).mean()) if n else np.nan for name, e in errors.items()}
        for what, e in (("log Z", errors["log_z"]), ("R", errors["rate"])):
            row |= {f"mean |d {what}|": e.mean() if n else np.nan, f"largest |d {what}|": e.max() if n else np.nan}
        rows.append(row)
    return rows


def main() -> None:
    options = parser(__file__, __doc__)
    options.add_argument("--decoders", type=Path, required=True, help="folder of checkpoints")
    options.add_argument("--models", nargs="+", default=["vae10"])
    options.add_argument("--data", type=Path, required=True, help="folder of the fetched data set")
    options.add_argument("--images", type=int, default=16)
    options.add_argument("--chains", type=int, default=32)
    options.add_argument("--betas", type=float, nargs="+", default=[0.4, 1.0, 10.0, 100.0, 1000.0, 36000.0])
    options.add_argument("--temperatures", type=int, default=400)
    options.add_argument("--factor", type=int, default=4, help="the reference run has that many times the temperatures")
    options.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options.add_argument("--reference-seed", type=int, default=100)
    options.add_argument("--reproduced", action="store_true", help="go on with results of other code, too")
    args = options.parse_args()
    same = {name: getattr(args, name) for name in ("images", "chains", "betas", "temperatures", "factor")}
    cells = Cells(args, same, any_code=args.reproduced)
    rows, sums = [], []
    for model in args.models:
        digest = hashlib.sha256((args.decoders / f"{model}.safetensors").read_bytes()).hexdigest()[:8]
        names = {seed: f"{model} {digest} seed {seed}" for seed in (*args.seeds, args.reference_seed)}
        for seed, name in names.items():
            if name not in cells.values:
                longer = args.factor if seed == args.reference_seed else 1
                cells.put(name, run(args, model, seed, longer * args.temperatures))
        reference = cells.values[names[args.reference_seed]]
        runs = [cells.values[names[seed]] for seed in args.seeds]
        rows += rows_of(model, runs, reference)
        sums += totals(model, runs, reference)
    show(rows)
    print()
    show(sums)
    cells.write(by_beta=rows, by_verdict=sums)


if __name__ == "__main__":
    main()
