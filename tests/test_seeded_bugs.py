"""Deliberate bugs, one at a time, in a copy of the source: each must turn the named tests red."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.pipeline

ROOT = Path(__file__).parents[1]
AIS, HMC, MEASURE = "tests/sampler/test_ais.py", "tests/sampler/test_hmc.py", "tests/sampler/test_measure.py"
INVARIANT = f"{HMC}::test_moves_leave_the_target_invariant"
UNBIASED = f"{AIS}::test_weights_are_unbiased_however_bad_the_schedule"
BUGS = {
    "wrong sign of the weight": ("ais", "log_weight - (beta - before)", "log_weight + (beta - before)", UNBIASED),
    "weight at the new position": ("ais", "        step_sizes.observe(index, transition)\n", "        step_sizes.observe(index, transition)\n        log_weight = log_weight + (beta - before) * (0 if step == 1 else 1) * (previous - state.point.distortion) if step > 1 else log_weight\n        previous = state.point.distortion\n", UNBIASED),
    "off-by-one schedule": ("ais", "zip(steps[1:], indices[1:], ladder[:-1], ladder[1:], strict=True)", "zip(steps[1:], indices[1:], ladder[:-1], ladder[2:] + ladder[-1:], strict=True)", UNBIASED),
    "moves at the wrong beta": ("ais", "target, beta, state, noise", "target, 3 * beta + 1, state, noise", UNBIASED),
    "float32 weights": (
        "ais",
        "(beta - before) * state.point.distortion",
        "((beta - before) * state.point.distortion).float()\n        log_weight = log_weight.float()",
        f"{AIS}::test_log_weights_are_accumulated_in_float64",
    ),
    "wrong chain count": (
        "ais",
        "torch.tensor(float(n), dtype=torch.float64).log()",
        "torch.tensor(float(n - 1), dtype=torch.float64).log()",
        f"{AIS}::test_estimate_on_two_chains_by_hand",
    ),
    "sum instead of mean of the weights": (
        "ais",
        "    return log_weight.logsumexp(0) - torch.tensor(float(len(log_weight)), dtype=torch.float64).log()",
        "    return log_weight.logsumexp(0)",
        f"{AIS}::test_bdmc_encloses_exact_log_z",
    ),
    "missing half kick at the start": (
        "hmc",
        "momentum = momentum + 0.5 * step_size * force(point)",
        "momentum = momentum + 0.0 * step_size * force(point)",
        f"{HMC}::test_energy_error_is_second_order",
    ),
    "missing half kick at the end": (
        "hmc",
        "else 0.5 * step_size",
        "else 0.0 * step_size",
        f"{HMC}::test_energy_error_is_second_order",
    ),
    "prior omitted from the force": ("hmc", "point.grad_log_prior - beta", "-beta", f"{HMC}::test_energy_error_is_second_order"),
    "prior omitted from the accept test": (
        "hmc",
        "        state.point.log_prior\n        - proposal.log_prior\n        + beta",
        "        beta",
        INVARIANT,
    ),
    "accept test skipped": ("hmc", "accepted = noise.accept < acceptance_rate", "accepted = noise.accept < 2", INVARIANT),
    "momentum not flipped on rejection": ("hmc", "end_momentum, -momentum)", "end_momentum, momentum)", INVARIANT),
    "not-a-number accepted": (
        "hmc",
        "nan_to_num(nan=0.0)",
        "nan_to_num(nan=1.0)",
        f"{HMC}::test_a_proposal_that_is_not_a_number_is_rejected_and_counted",
    ),
    "same noise in every step": ("noise", "torch.full((1, 1, 1), step,", "torch.full((1, 1, 1), 0,", "tests/sampler/test_noise.py"),
    "metric without its transpose": ("hmc", "_apply(factor.mT,", "_apply(factor,", f"{HMC}::test_energy_error_is_second_order"),
    "reverse run starts from the prior": (
        "bdmc",
        "start_at(simulated.target.select(entering), z,",
        "start_at(simulated.target.select(entering), torch.randn_like(z),",
        f"{AIS}::test_bdmc_encloses_exact_log_z",
    ),
    "float32 energies": ("hmc", "+ beta * (proposal.distortion - state.point.distortion)", "+ (beta * proposal.distortion).float() - (beta * state.point.distortion).float()", f"{HMC}::test_energies_of_a_float32_decoder_are_right_at_the_highest_beta"),
    "float32 sum of the distortion": ("distortion", "(values * values).sum(-1, dtype=torch.float64)", "(values * values).cumsum(-1)[..., -1].double()", f"{HMC}::test_energies_of_a_float32_decoder_are_right_at_the_highest_beta"),
    "twice the noise in simulated data": ("distortion", "1 / (2 * beta)", "1 / beta", f"{HMC}::test_distortions_are_sampled_from_their_own_density"),
    "half the energy of the distortion": ("distortion", "/ (2 * self.variance) +", "/ self.variance +", f"{AIS}::test_closed_form"),
    "resumed by other settings": ("measure", "        facts=facts,\n        betas=betas,", "        betas=betas,", MEASURE),
}  # fmt: skip


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.mark.parametrize("bug", BUGS)
def test_bug_is_caught(healthy, tmp_path, bug):
    module, old, new, tests = BUGS[bug]
    shutil.copytree(healthy, tmp_path / "copy")
    path = tmp_path / f"copy/src/rdcurve/sampler/{module}.py"
    text = path.read_text()
    assert text.count(old) == 1, f"{bug}: the text to patch is found {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", tests]
    env = os.environ | {"PYTHONPATH": str(tmp_path / "copy/src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path / "copy", env=env, capture_output=True, text=True)
    assert done.returncode == 1, f"{bug} was not caught\n{done.stdout[-2000:]}"  # 1: tests ran, and some failed
