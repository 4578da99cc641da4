"""Files of tunings and curves, and what `measure` takes; bad input is refused before any long work."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from problems import DTYPE, linear_problem, threshold
from safetensors.numpy import save_file

import rdcurve
from rdcurve.curve import RDCurve
from rdcurve.diagnosis import verdict
from rdcurve.files import FileError, load_arrays, save_arrays
from rdcurve.own import measure as measuring
from rdcurve.sampler.ais import Groups, Tuning
from rdcurve.sampler.bdmc import BDMCGap, bdmc, simulate
from rdcurve.sampler.distortion import SquaredError
from rdcurve.sampler.formal import formal_run, run_key
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.metric import identity
from rdcurve.sampler.prerun import PrerunSettings, tune
from rdcurve.sampler.prior import scale_mixture
from rdcurve.sampler.schedule import recorded_steps, sigmoid
from rdcurve.sampler.sizing import Size, Trial, certified_size, compare
from rdcurve.sampler.target import _tf32
from rdcurve.sampler.tuning_file import load_tuning, save_tuning
from rdcurve.state import Interrupted, content_key

BETAS = sigmoid(60, 5.0)
KERNEL = Kernel(2, 0.2, 0.5)
QUICK = PrerunSettings(n_chains=4, n_rounds=1, round_temperatures=20, n_blocks=2, n_starts=2, most_starts=0)
RECORDED = recorded_steps(60, 10)


@pytest.fixture(scope="module")
def problem():
    return linear_problem(1)


@pytest.fixture(scope="module")
def tuning(problem):
    return tune(problem.target, BETAS, Kernel(), PrerunSettings(n_chains=2), Groups())


def run(problem, tuning, **changes):
    arguments = {"n_chains": 5, "seed": 3, "facts": {"curve": "test"}} | changes
    return formal_run(problem.target, tuning, RECORDED, Kernel(), **arguments)


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("rate", "log_z", "ess", "acceptance"))


def test_tuning_file_round_trip(problem, tuning, tmp_path):
    save_tuning(tmp_path / "t", tuning, {"curve": "test"})
    loaded, _, facts = load_tuning(tmp_path / "t", DTYPE)
    assert facts["curve"] == "test"
    assert torch.equal(loaded.betas, tuning.betas)
    assert torch.allclose(loaded.step_sizes.double(), tuning.step_sizes, rtol=1e-6)
    assert loaded.metric.starts == tuning.metric.starts
    save_tuning(tmp_path / "again", loaded, {"curve": "test"})
    assert (tmp_path / "again").read_bytes() == (tmp_path / "t").read_bytes()


def test_content_key_sees_values_types_and_shapes():
    x = torch.arange(4.0)
    keys = {
        content_key(x=x),
        content_key(x=x.double()),
        content_key(x=x.view(2, 2)),
        content_key(x=x + 1),
        content_key(y=x),
    }
    assert len(keys) == 5


def test_content_key_takes_nothing_whose_text_is_short_for_it():
    """Of two long tensors in a list, or two arrays, the text is the same where they differ in the middle."""
    for part in ([torch.zeros(2000)], np.zeros(2000)):
        with pytest.raises(TypeError, match="not JSON serializable"):
            content_key(x=part)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool], ids=str)
def test_content_key_of_any_type_and_layout(dtype):
    values = torch.tensor([[1, 0], [0, 0]]).to(dtype)
    assert content_key(x=values) == content_key(x=values.T.contiguous().T)
    assert content_key(x=values) != content_key(x=values.flip(0))
    assert content_key(x=values[0, 0]) != content_key(x=values[1, 1])


def test_curve_file_round_trip_and_print(problem, tuning, tmp_path):
    curve = run(problem, tuning)
    curve.save(tmp_path / "curve.safetensors")
    loaded = RDCurve.load(tmp_path / "curve.safetensors")
    assert same(curve, loaded)
    assert loaded.facts == curve.facts
    assert "4 images" in str(loaded)
    assert len(loaded.to_frame()) == 10 * 4
    assert list(loaded.summary()["beta"]) == list(curve.beta)
    assert loaded.plot().get_yscale() == "log"


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign", "text", "older", "uneven", "odd facts"])
def test_unreadable_curve_is_named(problem, tuning, tmp_path, damage):
    path = tmp_path / "curve.safetensors"
    run(problem, tuning).save(path)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "foreign":
        save_tuning(path, tuning, {})
    elif damage == "older":
        arrays, facts = load_arrays(path, "rdcurve curve")
        del arrays["code"]
        save_arrays(path, "rdcurve curve", arrays, facts)
    elif damage == "uneven":
        arrays, facts = load_arrays(path, "rdcurve curve")
        arrays["beta"] = arrays["beta"][:-1]
        save_arrays(path, "rdcurve curve", arrays, facts)
    elif damage == "odd facts":
        save_file({}, path, {"rdcurve": "[1, 2]"})
    else:
        path.write_text("rate,distortion")
    with pytest.raises(FileError, match=r"curve\.safetensors"):
        RDCurve.load(path)


X = torch.zeros(3, 4, dtype=DTYPE)


def good(z):
    return z @ torch.ones(2, 4, dtype=z.dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": lambda z: z}, r"it must return \(3, 2, 4\)"),
        ({"decoder": torch.nn.Linear(2, 4)}, "float64: RuntimeError: mat1 and mat2 must have the same dtype"),
        ({"decoder": torch.nn.Linear(3, 4, dtype=DTYPE)}, "cannot map codes of shape"),
        ({"decoder": lambda z: good(z).float()}, "returns torch.float32, but x holds torch.float64"),
        (
            {"decoder": lambda z: torch.where(z.sum(-1, keepdim=True) > 3, torch.nan, good(z)), "n_chains": 500},
            "not finite",
        ),
        ({"decoder": lambda z: good(z) + torch.rand(4)}, "random"),
        ({"decoder": lambda z: good(z) * torch.nan}, "not finite"),
        ({"decoder": lambda z: torch.zeros(*z.shape[:-1], 4, dtype=z.dtype)}, "not differentiable|does not depend"),
        ({"decoder": lambda z: good(z).detach()}, "not differentiable"),
        ({"decoder": lambda z: good(z) * 0}, "does not depend"),
        ({"x": X * torch.nan}, "x holds"),
        ({"latent_dim": 3, "prior": rdcurve.standard_normal(2, DTYPE)}, r"shape \(2,\)"),
        ({"beta_max": -1.0}, "beta_max"),
        ({"beta_max": float("inf")}, "beta_max"),
        ({"n_temperatures": 1}, "n_temperatures"),
        ({"betas": torch.tensor([0.0, 2.0, 1.0])}, r"betas\[2\] = 1\.0 after 2\.0"),
        ({"betas": torch.tensor([0.0, -1.0, 1.0])}, r"betas\[1\]"),
        ({"betas": torch.tensor([0.1, 1.0])}, "starts at 0"),
        ({"n_chains": 1}, "n_chains"),
        *(({"gap": gap}, "gap must be positive and finite, nats, not") for gap in (-1.0, 0.0, np.nan, np.inf)),
        ({"n_recorded": 0}, "n_recorded must be 1 or more, not 0"),
        ({"x": X[:0]}, r"x holds no images"),
        ({"prerun_settings": {"step_size_rule": "running_mean"}, "groups": Groups(8)}, "groups of size 1, not 8"),
        ({"distortion": lambda x, f: (x - f).square()}, "distortion has shape"),
        ({"prerun_settings": {"metric": "best"}}, "identity, pooled, image"),
    ],
)
def test_bad_input_is_refused_with_the_reason(changes, message):
    arguments = {"decoder": good, "x": X, "latent_dim": 2, "beta_max": 1.0, "prerun_settings": QUICK} | changes
    with pytest.raises(ValueError, match=message):
        if isinstance(arguments.get("prerun_settings"), dict):
            arguments["prerun_settings"] = PrerunSettings(**arguments["prerun_settings"])
        rdcurve.measure(arguments.pop("decoder"), arguments.pop("x"), **arguments)


def test_chains_that_move_differently_do_not_resample():
    """The mean weight would be biased, and the upper bound none."""
    target = linear_problem(0, latent_dim=2).target
    tuning = Tuning(sigmoid(20, 3.0), torch.full((20, 16, len(target.x)), 0.1, dtype=DTYPE), identity(2, DTYPE))
    simulated = simulate(target, tuning.betas, [19], 2, 0)
    tuned = tuning._replace(step_sizes=tuning.step_sizes[..., :2])
    for run in (
        lambda: formal_run(target, tuning, [19], KERNEL, n_chains=16, seed=1, groups=Groups(8)),
        lambda: bdmc(simulated, tuned, KERNEL, n_chains=16, seed=1, groups=Groups(8)),
    ):
        with pytest.raises(ValueError, match="step sizes of their own cannot resample in groups of 8"):
            run()
    own = replace(QUICK, step_size_rule="running_mean", n_chains=16, metric="identity", n_starts=0)
    curve = rdcurve.measure(
        target.decoder, target.x, latent_dim=2, beta_max=3.0, n_temperatures=20, n_chains=16, prerun_settings=own
    )  # fmt: skip
    assert curve.facts["groups"]["size"] == 1


def test_a_gap_that_is_not_reached_is_said():
    problem = linear_problem(0, latent_dim=3, n_images=2)
    options = {"latent_dim": 3, "beta_max": 50.0, "n_recorded": 5, "n_chains": 16}
    for gap, most, reached in ((0.001, 20, False), (2.0, 2000, True)):
        settings = replace(QUICK, n_starts=0, max_temperatures=most)
        curve = rdcurve.measure(problem.decoder, problem.x, gap=gap, prerun_settings=settings, **options)
        assert curve.facts["prerun"]["reached"] == reached
        assert ("the gap of 0.001 nats that was asked for is not reached" in str(verdict(curve))) == (not reached)


def test_bounds_come_with_the_curve(monkeypatch):
    """Ten betas of the curve's own; log Z of the very images that were simulated, in closed form, lies between them.

    In the mean over betas, by four standard errors of the gap there: false-fail rate 1e-4; detects bounds that are off
    by 0.3 nats on either side, together or apart.
    """
    seen = []

    def simulate_and_tell(*arguments):
        seen.append(simulate(*arguments))
        return seen[-1]

    monkeypatch.setattr(measuring, "simulate", simulate_and_tell)
    options = {"latent_dim": 3, "beta_max": 8.0, "n_temperatures": 100, "n_recorded": 12, "n_chains": 16}
    problem = linear_problem(3, latent_dim=3, n_images=4)
    curve = rdcurve.measure(
        problem.decoder, problem.x, distortion=problem.distortion, n_simulated=20, prerun_settings=QUICK, **options
    )
    gaps = curve.gaps
    assert list(gaps) == ["beta", "lower", "upper", "gap", "gap_se", "acceptance", "n_images"]
    assert len(gaps) == 10
    assert set(gaps["beta"]) <= set(curve.beta)
    assert gaps["beta"].iloc[-1] == curve.beta[-1]
    assert (gaps["n_images"] == 20).all()
    images = seen[0].target.x.flip(0)  # they come by decreasing beta, 20 of each
    exact = [problem.exact([beta], images[20 * k : 20 * (k + 1)])[2].mean() for k, beta in enumerate(gaps["beta"])]
    slack = 4 * np.linalg.norm(gaps["gap_se"]) / len(gaps)
    assert slack < 0.15
    assert -0.3 < (gaps["lower"] - exact).mean() < slack
    assert -slack < (gaps["upper"] - exact).mean() < 0.3
    assert np.abs(gaps[["lower", "upper"]].sub(exact, axis=0)).to_numpy().max() < 0.5
    without = rdcurve.measure(
        problem.decoder, problem.x, distortion=problem.distortion, n_simulated=0, prerun_settings=QUICK, **options
    )
    assert without.gaps is None
    assert same(without, curve)  # its noise is its own


def test_bounds_that_show_a_missed_gap_make_the_run_larger(monkeypatch):
    """The trials at three betas are told that all is well; the bounds at ten see that it is not."""
    problem = linear_problem(0, latent_dim=3, n_images=2)
    options = {"latent_dim": 3, "beta_max": 5000.0, "n_recorded": 5, "n_chains": 16, "gap": 0.2}
    monkeypatch.setattr(measuring, "size_for_gap", lambda *a, **k: Size(12, True, (Trial(12, 0.1, 0.0, 0.1, 0.0),)))
    settings = replace(QUICK, n_starts=0, max_temperatures=2000)
    curve = rdcurve.measure(problem.decoder, problem.x, prerun_settings=settings, **options)
    found = curve.facts["prerun"]
    sizes = [trial["n_temperatures"] for trial in found["trials"]]
    assert sizes[:2] == [12, 12]  # the trial, and the bounds that missed the gap
    assert sizes[1:] == sorted(set(sizes[1:]))
    assert sizes[-1] < curve.facts["n_temperatures"] <= 2000
    assert found["reached"]
    assert compare(curve.gaps, 0.2).kept is not False
    assert "that was asked for is not reached" not in str(verdict(curve))
    few = replace(settings, max_temperatures=20)
    curve = rdcurve.measure(problem.decoder, problem.x, prerun_settings=few, **options)
    assert curve.facts["n_temperatures"] == 20
    assert "the gap of 0.2 nats that was asked for is not reached" in str(verdict(curve))


@pytest.mark.parametrize(
    ("gaps", "said", "reached"), [(0.1, False, True), (0.1, True, True), (0.9, True, False), (None, False, False)]
)
def test_bounds_have_the_last_word_where_they_are_sure(gaps, said, reached):
    """At the largest size: of trials that missed the gap, or kept it; None stands for bounds that leave it open."""
    learned = SimpleNamespace(at_length=lambda n: n)
    values = torch.tensor([[gaps, gaps]]).double() if gaps else torch.tensor([[0.0, 1.5]]).double()
    found = BDMCGap(torch.ones(1), torch.zeros(1, 2), values, torch.ones(1))
    size = Size(200, said, (Trial(200, 0.6, 0.1, 0.6, 0.1),))
    size, _ = certified_size(size, learned, lambda tuning, attempt: found, 0.5, 200)
    assert size.reached is reached
    assert len(size.trials) == 1 + (not reached)


def test_bounds_that_leave_it_open_at_a_larger_size_are_read_as_trials():
    """First a miss by far, or by no finite number; then 0.4 and 0.9 nats, each with an error of as much."""
    learned = SimpleNamespace(at_length=lambda n: n)
    for first in (5.0, np.inf):
        answers = [[first, first], [0.0, 1.8], [0.0, 0.8], [0.0, 0.0]]
        tried = []

        def bounds(n, attempt, answers=answers, tried=tried):
            tried.append(n)
            upper = torch.tensor([answers[attempt]]).double()
            return BDMCGap(torch.ones(1), torch.zeros(1, 2), upper, torch.ones(1))

        size = Size(100, True, (Trial(100, 0.6, 0.1, 0.6, 0.1),))
        size, _ = certified_size(size, learned, bounds, 1.0, 10_000)
        assert size.reached
        assert [trial.n_temperatures for trial in size.trials] == [100, 100, 400]
        assert tried == [100, 400, 800]
        assert size.n_temperatures == 800


def test_another_way_to_simulate_is_another_run(tmp_path):
    class Noisy(SquaredError):
        noise = 1.0

        def sample(self, reconstruction, beta):
            return reconstruction + self.noise * (super().sample(reconstruction, beta) - reconstruction)

    same = {"latent_dim": 2, "beta_max": 1.0, "n_temperatures": 20, "n_chains": 4, "prerun_settings": QUICK}
    for noise, options in ((1.0, {}), (3.0, {}), (3.0, {"n_simulated": 0})):
        distortion = Noisy()
        distortion.noise = noise
        with pytest.raises(Interrupted):
            rdcurve.measure(good, X, distortion=distortion, state_folder=tmp_path, time_limit=1e-9, **same, **options)
    assert len(list(tmp_path.iterdir())) == 3


def test_without_data_to_simulate_there_are_no_bounds():
    curve = rdcurve.measure(
        good, X, latent_dim=2, beta_max=1.0, n_temperatures=20, prerun_settings=QUICK,
        distortion=lambda x, f: (x - f).square().sum(-1, dtype=torch.float64),
    )  # fmt: skip
    assert curve.gaps is None


def test_a_decoder_without_forward_derivative_can_do_without_the_metric():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return 2 * z

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient

    arguments = {"latent_dim": 4, "beta_max": 1.0, "n_temperatures": 20}
    with pytest.raises(ValueError, match="set n_starts to 0 to do without"):
        rdcurve.measure(Double.apply, X, **arguments)
    with pytest.raises(ValueError, match="choose the metric 'identity'"):
        rdcurve.measure(Double.apply, X, prerun_settings=replace(QUICK, n_starts=0), **arguments)
    settings = replace(QUICK, metric="identity", n_starts=0)
    assert np.isfinite(rdcurve.measure(Double.apply, X, prerun_settings=settings, **arguments).rate).all()


def test_a_distortion_summed_in_float64_gives_float64_weights():
    x = torch.zeros(3, 4)
    curve = rdcurve.measure(
        good,
        x,
        latent_dim=2,
        beta_max=1.0,
        n_temperatures=20,
        prerun_settings=QUICK,
        distortion=lambda x, f: (x - f).square().sum(-1, dtype=torch.float64),
    )
    assert curve.log_z.dtype == np.float64
    assert curve.rate.shape == (10, 3)  # 50 betas were asked for; half of 20 temperatures can be had


def test_a_formal_run_changes_nothing_of_its_tuning(problem, tuning):
    before = tuning.step_sizes.clone()
    few, many = run(problem, tuning, n_chains=3), run(problem, tuning, n_chains=5)
    assert torch.equal(tuning.step_sizes, before)
    assert not same(few, many)


def test_without_resampling_every_chain_is_a_draw_of_its_own(problem, tuning):
    """Then lineages are the effective sample size; with it, no more than that and no less than one for each group."""
    alone = run(problem, tuning)
    assert np.allclose(alone.lineages, alone.ess, rtol=1e-9)
    grouped = run(problem, tuning, n_chains=12, groups=Groups(4, 1.01))  # at every step
    assert (grouped.lineages <= grouped.ess + 1e-9).all()
    assert (grouped.lineages[-1] < 0.6 * grouped.ess[-1]).all()
    assert (grouped.lineages > 1).all()


def test_recorded_steps_are_distinct_and_end_at_the_end():
    for n_temperatures in range(2, 80):
        for n_recorded in range(1, n_temperatures // 2 + 1):
            steps = recorded_steps(n_temperatures, n_recorded)
            assert len(set(steps)) == n_recorded
            assert steps == sorted(steps)
            assert steps[0] >= 1
            assert steps[-1] == n_temperatures - 1
    with pytest.raises(ValueError, match="half of the 60 temperatures"):
        recorded_steps(60, 40)


def test_scale_mixture_is_the_mixture_of_whole_vectors():
    """log p >= log(1 - w) + log N(z; 0, I): the paper's bound, which its per-dimension density breaks."""
    prior = scale_mixture(10, weight=0.99, scale=10.0, dtype=DTYPE)
    z = torch.randn(200, 10, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    penalty = rdcurve.standard_normal(10, DTYPE).log_prob(z) - prior.log_prob(z)
    assert (penalty <= -np.log(0.01) + 1e-9).all()
    assert penalty.mean() > 4
    norms = prior.sample((4000,)).norm(dim=1)
    assert abs(float((norms > 10).double().mean()) - 0.99) < 0.015  # one coin per vector


def test_measure_needs_no_particular_data_shape():
    decoder = torch.nn.Sequential(torch.nn.Linear(2, 12), torch.nn.Tanh(), torch.nn.Unflatten(-1, (3, 2, 2)))
    curve = rdcurve.measure(
        decoder,
        torch.rand(2, 3, 2, 2),
        latent_dim=2,
        beta_max=3.0,
        n_temperatures=30,
        n_recorded=3,
        n_chains=4,
        prerun_settings=QUICK,
    )
    assert curve.rate.shape == (3, 2)
    assert (np.diff(curve.mean("distortion")) < 0.5).all()
    assert isinstance(SquaredError(), rdcurve.SamplableDistortion)


class _Coarse(torch.autograd.Function):
    """z W^T, whose gradient is taken through W rounded to quarters: a force that is not that of the energy."""

    @staticmethod
    def forward(ctx, z, weight):
        ctx.save_for_backward(weight)
        return z @ weight.T

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        return grad @ (4 * weight).round() / 4, None


def test_a_coarse_gradient_costs_acceptance_and_nothing_else():
    """What TF32 gradients rest on, with a force that is off by a tenth where TF32 is by a thousandth.

    False-fail rate 1e-6 over 30 comparisons; detects 0.6 nats of rate or log Z.
    """
    problem = linear_problem(3, n_images=8)
    off = ((4 * problem.weight).round() / 4 - problem.weight).norm() / problem.weight.norm()
    assert off > 0.05
    curve = rdcurve.measure(
        lambda z: _Coarse.apply(z, problem.weight) + problem.bias, problem.x, latent_dim=3, beta_max=8.0,
        distortion=problem.distortion, n_temperatures=300, n_recorded=10, n_chains=64, n_simulated=0,
        prerun_settings=PrerunSettings(metric="identity", n_starts=0),
    )  # fmt: skip
    for quantity, truth in zip(("rate", "distortion", "log_z"), problem.exact(curve.beta), strict=True):
        error = curve.standard_error(quantity, "chains")
        assert quantity == "distortion" or error.max() < 0.6 / (1.3 * threshold(30))
        assert (np.abs(curve.mean(quantity) - truth.mean(1)) < 1.3 * threshold(30) * error).all()


def test_tf32_is_allowed_inside_and_never_stays():
    precision = torch.backends.cuda.matmul, torch.backends.cudnn
    for where in precision:
        where.allow_tf32 = False
    with pytest.raises(ZeroDivisionError), _tf32(True):
        assert all(where.allow_tf32 for where in precision)
        raise ZeroDivisionError
    assert not any(where.allow_tf32 for where in precision)
    with _tf32(False):
        assert not any(where.allow_tf32 for where in precision)


def test_tf32_gradients_are_another_run_and_the_same_numbers_without_a_gpu():
    target = linear_problem(3).target
    coarse = replace(target, tf32_gradients=True)
    assert run_key(target, None) != run_key(coarse, None)
    assert simulate(coarse, torch.tensor([0.0, 1.0]), [1], 2, 0).target.tf32_gradients
    z = torch.randn(4, 3, target.prior.event_shape[0], dtype=DTYPE)
    for one, other in zip(target.at(z), coarse.at(z), strict=True):
        assert torch.equal(one, other)
