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
SMC, DESCENT, ESTIMATE = "tests/sampler/test_smc.py", "tests/sampler/test_descent.py", "tests/sampler/test_estimate.py"
SCHEDULE, QUADRATURE = "tests/sampler/test_schedule.py", "tests/sampler/test_quadrature.py"
RESUME, BALANCED = "tests/sampler/test_resume.py", "tests/sampler/test_balanced.py"
PRODUCTS, GROWTH = "tests/sampler/test_products.py", "tests/sampler/test_growth.py"
INVARIANT = f"{HMC}::test_moves_leave_the_target_invariant"
UNBIASED = f"{AIS}::test_weights_are_unbiased_however_bad_the_schedule"
GROUPS = f"{SMC}::test_group_means_are_unbiased_in_both_directions"
COPIES = f"{SMC}::test_resampling_keeps_the_mean_weight_of_every_group_and_copies_by_weight"
DOWN = f"{DESCENT}::test_weights_on_the_way_down_are_unbiased"
ORDER = f"{HMC}::test_energy_error_is_second_order"
PRECISE = f"{HMC}::test_energies_of_a_float32_decoder_are_right_at_the_highest_beta"
BUGS = {
    "wrong sign of the weight": ("ais", "log_weight - (beta - before)", "log_weight + (beta - before)", UNBIASED),
    "weight at the new position": ("ais", "                if pinned is not None:\n                    state = pin", "                log_weight = log_weight + (ladder[i + 1] - ladder[i]) * (chains.state.point.distortion - state.point.distortion)\n                if pinned is not None:\n                    state = pin", UNBIASED),
    "off-by-one schedule": ("ais", "zip(ladder[:-1], ladder[1:], numbers", "zip(ladder[:-1], ladder[2:] + ladder[-1:], numbers", UNBIASED),
    "moves at the wrong beta": ("ais", "move(target, beta, state, noise", "move(target, 3 * beta + 1, state, noise", UNBIASED),
    "float32 weights": ("ais", "(beta - before) * state.point.distortion", "((beta - before) * state.point.distortion).float()\n        log_weight = log_weight.float()", f"{AIS}::test_log_weights_are_accumulated_in_float64"),
    "wrong chain count": ("estimate", "group_log_z = grouped.logsumexp(1) - math.log(size)", "group_log_z = grouped.logsumexp(1) - math.log(size + 1)", f"{AIS}::test_estimate_on_three_chains_by_hand"),
    "sum instead of mean of the weights": ("ais", "[..., : log_weight.shape[-1]] - math.log(log_weight.shape[dim])", "[..., : log_weight.shape[-1]]", f"{AIS}::test_bdmc_encloses_exact_log_z"),
    "missing half kick at the start": ("hmc", "z, momentum = point.z, momentum + 0.5 *", "z, momentum = point.z, momentum + 0.0 *", ORDER),
    "missing half kick at the end": ("hmc", "return point, momentum + 0.5 *", "return point, momentum + 0.0 *", ORDER),
    "prior omitted from the force": ("hmc", "grad_log_prior - beta * grad_distortion", "-beta * grad_distortion", ORDER),
    "prior omitted from the accept test": ("hmc", "        state.point.log_prior\n        - proposal.log_prior\n        + beta", "        beta", INVARIANT),
    "accept test skipped": ("hmc", "accepted = noise.accept < acceptance_rate", "accepted = noise.accept < 2", INVARIANT),
    "momentum not flipped on rejection": ("hmc", "end_momentum, -momentum)", "end_momentum, momentum)", INVARIANT),
    "not-a-number accepted": ("hmc", "nan_to_num(nan=0.0)", "nan_to_num(nan=1.0)", f"{HMC}::test_a_proposal_that_is_not_a_number_is_rejected_and_counted"),
    "same noise in every step": ("noise", "torch.as_tensor(step,", "torch.as_tensor(0,", "tests/sampler/test_noise.py"),
    "metric without its transpose": ("hmc", "_apply(factor.mT,", "_apply(factor,", ORDER),
    "reverse run starts from the prior": ("bdmc", "start_at(target, simulated.z.expand(n_groups, -1, -1).contiguous(),", "start_at(target, torch.randn(n_groups, *simulated.z.shape, dtype=simulated.z.dtype),", f"{AIS}::test_bdmc_encloses_exact_log_z"),
    "float32 energies": ("hmc", "+ beta * (proposal.distortion - state.point.distortion)", "+ (beta * proposal.distortion).float() - (beta * state.point.distortion).float()", PRECISE),
    "float32 sum of the distortion": ("distortion", "(values * values).sum(-1, dtype=torch.float64)", "(values * values).cumsum(-1)[..., -1].double()", PRECISE),
    "twice the noise in simulated data": ("distortion", "1 / (2 * beta)", "1 / beta", f"{HMC}::test_distortions_are_sampled_from_their_own_density"),
    "half the energy of the distortion": ("distortion", "/ (2 * self.variance) +", "/ self.variance +", f"{AIS}::test_closed_form"),
    "resumed by other settings": ("formal", "run_key(target, tuning, facts=facts, recorded", "run_key(target, tuning, recorded", "tests/sampler/test_resume.py::test_every_change_is_another_run"),
    "weights kept after resampling": ("ais", "log_weight = torch.where(low, mean, log_weight.unflatten(0, (-1, groups.size))).flatten(0, 1)\n", "pass\n", COPIES),
    "descent that is not passed on": ("ais", "log_weight, copy(lineage)", "log_weight, lineage", COPIES),
    "ancestors drawn evenly": ("ais", "share.cumsum(1)[:, None, :, :n]", "torch.full_like(share, 1 / groups.size).cumsum(1)[:, None, :, :n]", COPIES),
    "the retained path is resampled away": ("ais", "        ancestor[:, 0] = 0\n", "        pass\n", COPIES),
    "momentum of the path not flipped back": ("bdmc", "-state.momentum[:, here]", "state.momentum[:, here]", f"{SMC}::test_forward_moves_retrace_the_reverse_path"),
    "refreshment before the trajectory in the reversal": ("bdmc", "part = part._replace(momentum=refresh(part.momentum, noise, kernel))", "part = part._replace(momentum=part.momentum)", f"{SMC} {GROUPS}"),
    "path shifted by one step": ("bdmc", "note(index - 1, here)", "note(index, here)", GROUPS),
    "mixture density of one component": ("modes", "return log_m.T, grad", "return joint[0].T, grad", f"{DESCENT}::test_mixture_is_a_density_and_its_samples_are_its_own"),
    "second route forgets the density it came from": ("descent", "log_m + self.beta * point.distortion - point.log_prior,", "self.beta * point.distortion - point.log_prior,", DOWN),
    "adaptation left on in the formal run": ("formal", "frozen = Frozen(tuning.step_sizes.to(device))", "from rdcurve.sampler.step_size import Adaptive\n    frozen = Adaptive(n_steps, n_images)\n    frozen.table = tuning.step_sizes", f"{MEASURE}::test_a_formal_run_changes_nothing_of_its_tuning"),
    "virial with the wrong dimension": ("estimate", "- z.shape[-1])", "- 1)", f"{ESTIMATE}::test_virial_has_mean_zero_and_takes_out_the_noise"),
    "routes without their weights": ("estimate", "(weight * n / m).log()", "(weight * 0 + n / m).log()", f"{ESTIMATE}::test_routes_are_averaged_with_their_weights"),
    "a mode found once confirms itself": ("certify", "hits < LEAST_HITS", "hits < 0", f"{DESCENT}::test_not_certified_when_the_best_mode_was_missed_by_all_but_one"),
    "halves confirm each other whatever they descend from": ("certify", "lineages < LEAST_HITS", "lineages < 0", f"{DESCENT}::test_not_certified_when_the_best_mode_was_missed_by_all_but_one"),
    "chains counted where draws are meant": ("certify", "scatter_add_(0, lineage.cpu(), share)", "add_(share)", f"{DESCENT}::test_lineages_are_the_draws_behind_the_weights"),
    "a certificate that is deaf to the curve": ("certify", "down.max(0).values, second)\n    return first - torch.minimum(second, given)", "down.max(0).values, second)\n    return first - second", f"{DESCENT}::test_a_curve_that_hardly_counts_its_best_route_is_not_certified"),
    "steps of one graph with one step size": ("ais", "sizes[i], factors[i]", "sizes[0], factors[i]", "tests/sampler/test_captured.py::test_several_steps_as_one_graph_give_the_same_bits"),
    "a coarse force at one end of a trajectory": ("hmc", "    point = target.at(z + _apply(factor, step_size * momentum))\n", "    point = target.at(z + _apply(factor, step_size * momentum))\n    point = Point(*point[:3], *target.gradients(point.z))\n", f"{HMC}::test_leapfrog_with_another_force_between_its_ends_is_reversible"),
    "columns of a Hessian mixed up": ("modes", "directions.repeat_interleave(len(z), 0)", "directions.repeat(len(z), 1)", f"{DESCENT}::test_columns_of_a_hessian_at_once_are_those_one_by_one"),
    "chains of a graph overwritten by the next step": ("captured", "(leaf.clone() for leaf in _leaves(output))", "_leaves(output)", "tests/sampler/test_captured.py"),
    "a graph that is believed": ("captured", "if not torch.equal(", "if False and not torch.equal(", "tests/sampler/test_captured.py"),
    "searches that stop as soon as they agree": ("modes", "_ENOUGH_HITS = 10", "_ENOUGH_HITS = 3", f"{DESCENT}::test_searches_that_stop_by_themselves_do_not_stop_at_the_wrong_mode"),
    "hits in whatever mode a search likes best": ("modes", "(each.hits * _same(each.z, z, precision)).sum(0)", "each.hits[0]", f"{DESCENT}::test_all_images_go_on_until_the_searches_agree_on_a_mode_found_often_enough"),
    "a graph for every two recorded betas": ("formal", "annealing, betas, chains, frozen,", "Annealing(target, kernel, seed, images, groups), betas, chains, frozen,", "tests/sampler/test_captured.py::test_a_formal_run_records_two_graphs"),
    "a curve that is none, certified": ("../curve", "return agreed & ~self.bent", "return agreed", "tests/test_diagnosis.py::test_what_no_curve_does_is_not_certified"),
    "certified on one image": ("../curve", "or self.rate.shape[1] < LEAST_IMAGES", "or False", f"{DESCENT}::test_a_mode_that_every_start_misses_is_not_certified_on_few_images"),
    "deaf within a metric": ("metric", "        heed()\n", "        pass\n", f"{RESUME}::test_a_signal_is_heeded_within_a_metric"),
    "a module known by its values alone": ("formal", "parts[role] = content_key(**module.state_dict())", "pass", f"{RESUME}::test_all_that_a_module_holds_is_part_of_the_run"),
    "two modes that are one": ("modes", "before.hits * 0", "before.hits.clone()", f"{DESCENT}::test_modes_that_turn_out_to_be_one_are_one"),
    "error of the control variate as of many groups": ("estimate", "2 * (m - 1) / (m - 2)", "2.0", f"{ESTIMATE}::test_error_of_the_control_variate_is_right_for_any_number_of_groups"),
    "a control variate between modes": ("estimate", "_MOST_LEFT = 0.5", "_MOST_LEFT = 1e12", f"{ESTIMATE}::test_no_control_variate_for_an_image_whose_groups_sit_in_different_modes"),
    "chains that move differently resample": ("ais", "tuning.step_sizes.ndim == 3 and", "False and", f"{MEASURE}::test_chains_that_move_differently_do_not_resample"),
    "acceptance of the route up alone": ("formal", "acceptance = counts * acceptance + (1 - counts)", "acceptance = acceptance + 0 * (1 - counts)", f"{DESCENT}::test_acceptance_is_that_of_both_routes"),
    "a control variate at a wall": ("formal", "if not covers_everything(target.prior):", "if False:", f"{QUADRATURE}::test_control_variate_under_a_prior"),
    "a size found by luck": ("sizing", "return max(self.mean + self.mean_se, self.gap - self.gap_se)", "return self.mean", f"{SCHEDULE}::test_luck_does_not_end_the_search_for_a_size"),
    "codes drawn without regard to the weights": ("formal", "full(log_weight).softmax(0).cumsum(0)", "full(0 * log_weight).softmax(0).cumsum(0)", "tests/sampler/test_code.py"),
    "codes of the wrong image": ("formal", "return z[chosen, torch.arange(len(images), device=z.device)]", "return z[chosen, torch.arange(len(images), device=z.device).roll(1)]", "tests/sampler/test_code.py"),
    "deaf within a Hessian": ("modes", "        heed()\n", "        pass\n", f"{RESUME}::test_a_signal_is_heeded_within_a_hessian"),
    "a way down walked twice": ("descent", 'if checkpoint.holds("way down"):', "if False:", f"{RESUME}::test_the_way_down_of_a_prerun_is_not_walked_twice"),
    "measure that forgets its formal run": ("../own/measure", "            state_folder=state_folder,\n            save_every=save_every,\n            time_limit=checkpoint", "            time_limit=checkpoint", "tests/test_cli.py::test_own_decoder_may_be_stopped_and_goes_on"),
    "data on any scale": ("../own/validate", "if beyond > _WIDTHS_REFUSED * width:", "if False:", "tests/test_bad_input.py"),
    "a missed gap that is let pass": ("sizing", "if reached or n >= most:\n            break", "if True:\n            break", f"{MEASURE}::test_bounds_that_show_a_missed_gap_make_the_run_larger"),
    "bounds of another schedule": ("../own/measure", "steps = spread(recorded, tuning.betas,", "steps = spread([1 + i for i in range(len(recorded))], tuning.betas,", f"{MEASURE}::test_bounds_come_with_the_curve"),
    "a missed gap that no one is told of": ("sizing", "missed = sure.max() > gap", "missed = False", "tests/test_diagnosis.py::test_gap_is_compared_with_what_was_asked"),
    "cost spread over steps as if blocks were equal": ("schedule", "wanted = torch.linspace(0, float(spent[-1]), n_temperatures", "wanted = float(spent[-1]) * torch.linspace(0, 1, n_temperatures, dtype=torch.float64) ** 2 + 0 * torch.linspace(0, 1, n_temperatures", f"{SCHEDULE}::test_respaced_shares_the_cost_equally"),
    "chains that weigh as they are annealed": ("formal", "            found = under_prior(target, chains)\n", "            found = chains\n", f"{BALANCED}::test_every_bound_is_one_under_the_prior"),
    "a way down that weighs as it is annealed": ("formal", "recorded[k]]), under_prior(target, chains)", "recorded[k]]), chains", f"{BALANCED}::test_every_bound_is_one_under_the_prior"),
    "bounds that weigh as they are annealed": ("bdmc", "under_prior(target, chains).log_weight[:, n_left:]", "chains.log_weight[:, n_left:]", f"{BALANCED}::test_every_bound_is_one_under_the_prior"),
    "a reversed path that begins under another prior": ("bdmc", "-target.log_ratio(chains.state.point.z), z,", "torch.zeros_like(chains.log_weight), z,", f"{BALANCED}::test_every_bound_is_one_under_the_prior"),
    "modes kept without regard to the way there": ("modes", "_with(known, end, rank)", "_with(known, end)", f"{DESCENT}::test_the_modes_that_are_kept"),
    "every minimum on the way is a hit": ("modes", "hits=torch.zeros_like(minima.hits)", "hits=minima.hits", f"{DESCENT}::test_only_the_last_minimum_of_a_start_is_a_hit"),
    "hops that are not asked for": ("descent", "        n_hops=settings.n_hops,\n", "", f"{DESCENT}::test_a_prerun_hops_as_often_as_its_settings_say"),
    "one jump for all": ("modes", 'seed_of(key, "hop", n_descents)', "0", f"{DESCENT}::test_every_hop_has_noise_of_its_own"),
    "hops to where the curvature is no number": ("modes", "torch.where(whole, minima.potential, torch.inf)", "minima.potential", f"{DESCENT}::test_hops_to_where_a_decoder_is_no_number_leave_no_mode"),
    "hops that go uphill": ("modes", "better = _passed(other).potential < one.potential", "better = _passed(other).potential > one.potential", f"{DESCENT}::test_hops_find_a_mode_where_no_start_begins"),
    "the same hop of every image": ("modes", "manual_seed(seed_of(seed, image))\n        share", "manual_seed(seed)\n        share", f"{DESCENT}::test_a_hop_depends_on_its_image_alone_and_is_as_long_as_the_code_is_far"),
    "weights packed for ever": ("products", "if before != state:", "if before is None:", PRODUCTS),
    "a bias forgotten": ("products", "packed.weight, bias, packed.rows", "packed.weight, None, packed.rows", PRODUCTS),
    "a slope through the weight as it is": ("products", "packed.backward, packed.transposed", "packed.forward, packed.weight", PRODUCTS),
    "a bias that is one for all": ("products", "isinstance(bias, nn.Parameter)", "bias.dtype", PRODUCTS),
    "a slope that has none": ("products", "if torch.is_grad_enabled():", "if False:", PRODUCTS),
    "weights of the last measurement": ("target", "        forget()\n", "", PRODUCTS),
    "tiles that blocks do not fill": ("target", "return rows - rows % 16", "return 200", f"{PRODUCTS}::test_a_row_is_rounded_alike_wherever_it_stands"),
    "a larger run that is not made": ("growth", "            attempt(2 * n)\n", "            save(curve)\n            last.append(curve)\n", f"{GROWTH}::test_it_is_the_first_certified_run_or_the_largest_of_the_budget"),
    "a larger run for nothing": ("growth", "if n_certified == len(curve.beta) or hopeless", "if hopeless", f"{GROWTH}::test_it_is_the_first_certified_run_or_the_largest_of_the_budget"),
    "bounds computed twice": ("../commands/prerun", "            state.keep()  #", "            state.remove()  #", "tests/test_interrupted_steps.py::test_the_bounds_that_a_prerun_has_found_are_not_computed_again"),
}  # fmt: skip


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "params.yaml"):
        shutil.copy(ROOT / name, folder)
    return folder


def run_tests(folder, tests):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests]
    env = os.environ | {"PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def test_without_a_bug_the_same_tests_pass(healthy, tmp_path):
    """Else they would fail with any bug, for a reason of their own."""
    shutil.copytree(healthy, tmp_path / "copy")
    done = run_tests(tmp_path / "copy", sorted({test for *_, tests in BUGS.values() for test in tests.split()}))
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("bug", BUGS)
def test_bug_is_caught(healthy, tmp_path, bug):
    module, old, new, tests = BUGS[bug]
    shutil.copytree(healthy, tmp_path / "copy")
    path = tmp_path / f"copy/src/rdcurve/sampler/{module}.py"
    text = path.read_text()
    assert text.count(old) == 1, f"{bug}: the text to patch is found {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new))
    done = run_tests(tmp_path / "copy", tests.split())
    assert done.returncode == 1, f"{bug} was not caught\n{done.stdout[-2000:]}"  # 1: tests ran, and some failed
