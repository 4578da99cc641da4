"""The published recipe at full length against the fast one: do they give the same curve?

Reads two curves of one decoder on the same images, compares log Z at equal beta, and decides the claim `recipes_agree`
of params.yaml for them. Nothing is measured here, since the former takes 2.4e9 gradients for its prerun and as many for
its formal run. First, by the rules of Snakemake or by hand,

    rdcurve prerun vae10_as_published ..., rdcurve ais vae10_as_published ..., and both of vae10; then

    python benchmarks/recipes.py --published CURVE --fast CURVE --device NAME --seconds PRERUN AIS
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import ROOT, parser, save, show

from rdcurve.claims import decide
from rdcurve.comparison import MeanCurve, excess
from rdcurve.curve import RDCurve
from rdcurve.settings import read


def main() -> None:
    options = parser(__file__, __doc__)
    options.add_argument("--published", type=Path, required=True, help="curve measured by the published recipe")
    options.add_argument("--fast", type=Path, required=True, help="curve of the same decoder by the fast one")
    options.add_argument("--device", required=True, help="that made the published curve")
    options.add_argument("--seconds", type=float, nargs=2, required=True, metavar=("PRERUN", "AIS"), help="it took")
    args = options.parse_args()
    curves = {path.stem: RDCurve.load(path) for path in (args.published, args.fast)}
    published, fast = curves.values()
    means = {name: MeanCurve.measured(name, curve) for name, curve in curves.items()}
    a, b = means.values()
    rows, by_image = [], []
    for node in np.linspace(0, len(fast.beta) - 1, 12).round().astype(int):
        beta = float(fast.beta[node])
        k = int(np.abs(np.log(published.beta / beta)).argmin())
        log_z = published.log_z[k] - (beta - published.beta[k]) * published.distortion[k]  # d log Z = -D d beta
        difference = log_z - fast.log_z[node]
        by_image.append(log_z.tolist())
        rows.append(
            {
                "beta": beta,
                "rate": float(fast.mean("rate")[node]),
                "log Z, published less fast": float(difference.mean()),
                "se": excess(a, b, int(node), "beta").se_chains,
                "largest of an image": float(np.abs(difference).max()),
                "least acceptance": float(published.acceptance[k].min()),
            }
        )
    show(rows)
    rule = read(ROOT / "params.yaml")["claims"]["recipes"]
    (claim,) = rule["claims"]
    (decision,) = decide(rule | {"claims": [claim | {"pairs": [list(curves)]}]}, means, {})
    windows = [comparison.row() for comparison in decision.comparisons]
    show([{key: row[key] for key in ("where", "difference", "standard_error", "verdict")} for row in windows])
    save(
        args.output, args, device=args.device,
        gradients_per_chain={
            name: (curve.facts["n_temperatures"] - 1) * curve.facts["kernel"]["n_leapfrog"]
            for name, curve in curves.items()
        },
        results=rows, log_z_published=by_image, windows=windows, verdict=decision.verdict,
    )  # fmt: skip


if __name__ == "__main__":
    main()
