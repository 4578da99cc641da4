"""A gap in nats instead of a number of temperatures."""

import numpy as np
import pytest
from problems import linear_problem, threshold

import rdcurve
from rdcurve.sampler.prerun import PrerunSettings

QUICK = PrerunSettings(n_rounds=2, round_temperatures=60, n_blocks=6, n_starts=4, most_starts=0)


def test_a_curve_by_its_gap_is_right():
    """Closed form at 20 betas, false-fail rate 1e-6 over 60 comparisons; certified, and no warning."""
    problem = linear_problem(5, latent_dim=4, n_images=8)
    curve = rdcurve.measure(
        problem.decoder, problem.x, latent_dim=4, beta_max=100.0, distortion=problem.distortion, gap=0.5,
        n_recorded=20, prerun_settings=QUICK,
    )  # fmt: skip
    for quantity, truth in zip(("rate", "distortion", "log_z"), problem.exact(curve.beta), strict=True):
        error = np.abs(curve.mean(quantity) - truth.mean(1)) / curve.standard_error(quantity, "chains")
        assert error.max() < 1.5 * threshold(60), quantity
    assert curve.certified.all()
    assert curve.facts["n_temperatures"] >= 40
    assert rdcurve.verdict(curve).reliable


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"gap": 0.5, "n_temperatures": 100}, ValueError, "one of gap, n_temperatures and betas"),
        ({"gap": 0.5, "distortion": lambda x, f: (x - f).abs().sum(-1).double()}, TypeError, "has no `sample` method"),
    ],
)
def test_a_gap_that_cannot_be_had_is_refused(changes, error, message):
    problem = linear_problem(5, latent_dim=4)
    with pytest.raises(error, match=message):
        rdcurve.measure(problem.decoder, problem.x, latent_dim=4, beta_max=100.0, **changes)
