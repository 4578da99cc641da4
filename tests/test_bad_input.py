"""What a user may get wrong in `rdcurve.measure`: an error that says what is legal, before any sampling."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Distribution, Exponential, Independent, Normal

import rdcurve
from rdcurve.cli import main
from rdcurve.own import measure as measuring
from rdcurve.sampler import prerun
from rdcurve.sampler.ais import Groups
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.prerun import PrerunSettings

QUICK = PrerunSettings(n_chains=2, n_rounds=1, round_temperatures=10, n_blocks=2, metric="identity", n_starts=0)
WEIGHT = torch.linspace(-1, 1, 8).view(2, 4)
X = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))


def decoder(z):
    """In 0 .. 1, as X is."""
    return (z @ WEIGHT.to(z)).sigmoid()


def measure(decoder=decoder, x=X, **changes):
    arguments = {"latent_dim": 2, "beta_max": 1.0, "n_temperatures": 10, "n_chains": 4, "prerun_settings": QUICK}
    return rdcurve.measure(decoder, x, **arguments | changes)


@pytest.fixture
def no_sampling(monkeypatch):
    """The test fails where it comes to the prerun."""
    for name in ("learn", "tune"):
        monkeypatch.setattr(measuring, name, lambda *a, **k: pytest.fail("the prerun has begun"))


@pytest.mark.parametrize(
    ("decoder", "x"),
    [
        (decoder, 255 * X),
        (decoder, -255 * X),
        (lambda z: 2 * decoder(z) - 1, 255 * X),
        (lambda z: decoder(z) / 255, X),
        (lambda z: decoder(z) / 255, -X),
    ],
)
def test_data_on_another_scale_is_refused(no_sampling, decoder, x):
    with pytest.raises(ValueError, match=r"x lies in .* \.\. .*, but the decoder returns .*: put both on one scale"):
        measure(decoder, x)


@pytest.mark.parametrize("scale", ["right", "right, seen less", "collapsed", "far wider"])
def test_a_bad_decoder_on_the_right_scale_is_measured(scale, caplog):
    bad = {
        "right": decoder,
        "right, seen less": lambda z: 0.7 * decoder(z),
        "collapsed": lambda z: 0.7 + 0.001 * decoder(z),
        "far wider": lambda z: 100 * (decoder(z) - 0.5),
    }[scale]
    assert np.isfinite(measure(bad).rate).all()
    assert ("put both on one scale" in caplog.text) == (scale in ("collapsed", "far wider"))  # with a warning


def test_data_in_doubt_are_measured_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        measure(x=2 * X - 1)
    assert "x lies in -0." in caplog.text
    assert "put both on one scale" in caplog.text


def test_the_command_refuses_data_on_another_scale(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("def decoder(z):\n    return z.sigmoid()\n")
    np.save("x.npy", np.float32([[0.0, 255.0]]))
    with pytest.raises(SystemExit):
        main(["measure", "own:decoder", "--data", "x.npy", "--latent-dim", "2", "--beta-max", "1", "--output", "c"])
    assert "x lies in 0 .. 255, but the decoder returns 0." in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_distortion_that_is_not_float64_is_refused(no_sampling, dtype):
    """A float32 sum of a few hundred pixels is off by 1e-7 of itself; beta turns that into nats."""
    with pytest.raises(ValueError, match=rf"the distortion returns {dtype}; sum in float64"):
        measure(distortion=lambda x, f: (x - f).square().sum(-1).to(dtype))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_chains": 1}, "group size 1, at least 2 for an error bar, not 1"),
        ({"n_chains": 8, "groups": Groups(8)}, "group size 8, at least 16 for an error bar, not 8"),
        ({"n_chains": 20, "groups": Groups(8)}, "multiple of the group size 8, .* not 20"),
        ({"n_chains": 0}, "n_chains must be 1 or more, not 0"),
    ],
)
@pytest.mark.parametrize("size", [{"n_temperatures": 10}, {"n_temperatures": None, "gap": 1.0}])
def test_too_few_chains_are_refused_before_the_prerun(no_sampling, changes, message, size):
    with pytest.raises(ValueError, match=message):
        measure(**changes, **size)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kernel": Kernel(n_leapfrog=0)}, ValueError, "n_leapfrog must be 1 or more, not 0"),
        ({"kernel": Kernel(n_leapfrog=1.5)}, TypeError, "n_leapfrog must be an integer, 1 or more, not 1.5"),
        ({"kernel": Kernel(persistence=1.0)}, ValueError, "persistence must lie in 0 <= persistence < 1, not 1.0"),
        ({"kernel": Kernel(persistence=-0.1)}, ValueError, "persistence must .* not -0.1"),
        ({"kernel": Kernel(persistence=np.nan)}, ValueError, "persistence must .* not nan"),
        ({"kernel": Kernel(jitter="a")}, TypeError, "jitter must be a number, not 'a'"),
        ({"kernel": Kernel(jitter=1.0)}, ValueError, "jitter must lie in 0 <= jitter < 1, not 1.0"),
        ({"kernel": {"n_leapfrog": 2}}, TypeError, r"kernel must be rdcurve.sampler.hmc.Kernel, not \{"),
        ({"groups": Groups(0)}, ValueError, "the group size must be 1 or more, not 0"),
        ({"groups": 8}, TypeError, "groups must be rdcurve.sampler.ais.Groups, not 8"),
        ({"latent_dim": 2.0}, TypeError, "latent_dim must be an integer, 1 or more, not 2.0"),
        (
            {"n_simulated": 1},
            ValueError,
            "n_simulated must be 2 or more for an error bar, or 0 for no BDMC bounds, not 1",
        ),
        ({"n_simulated": -1}, ValueError, "n_simulated must be 0 or more, not -1"),
        ({"n_chains": "4"}, TypeError, "n_chains must be an integer, 1 or more, not '4'"),
        ({"n_temperatures": 10.5}, TypeError, "n_temperatures must be an integer, 3 or more, not 10.5"),
        ({"n_temperatures": 0}, ValueError, "n_temperatures must be 3 or more, not 0"),
        ({"latent_dim": True}, TypeError, "latent_dim must be an integer, not True"),
        ({"seed": None}, TypeError, "seed must be an integer, 0 or more, not None"),
        ({"seed": 1.5}, TypeError, "seed must be an integer, 0 or more, not 1.5"),
        ({"seed": -1}, ValueError, "seed must be 0 or more, not -1"),
        ({"save_every": "a"}, TypeError, "save_every must be a number, not 'a'"),
        ({"n_temperatures": None, "gap": "small"}, TypeError, "gap must be a number, not 'small'"),
        ({"beta_max": "1"}, TypeError, "beta_max must be a number, not '1'"),
        ({"beta_max": None}, TypeError, "beta_max must be a number, not None"),
        ({"beta_max": np.nan}, ValueError, "beta_max must be positive and finite, not nan"),
        ({"betas": [0.0, -1.0, 1.0]}, ValueError, r"betas\[1\] = -1.0 after 0.0"),
        ({"betas": [-0.5, 0.0, 1.0]}, ValueError, "starts at 0, not at -0.5"),
        ({"betas": [0.0, np.nan, 1.0]}, ValueError, r"betas\[1\] = nan"),
        ({"betas": [0.0, 0.5, 0.2, 1.0]}, ValueError, r"betas\[2\] = 0.2 after 0.5"),
        ({"betas": ["0", "1"]}, TypeError, r"betas must be a vector .* not \['0', '1'\]"),
        ({"betas": "all"}, TypeError, "betas must be a vector .* not 'all'"),
        ({"betas": [[0.0, 1.0]]}, ValueError, r"betas must be a vector .* not of shape \(1, 2\)"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(monkeypatch, changes, error, message):
    for name in ("sweep", "advance"):
        monkeypatch.setattr(prerun, name, lambda *a, **k: pytest.fail("the prerun has begun"))
    with pytest.raises(error, match=message):
        measure(**({"n_temperatures": None} if "betas" in changes else {}) | changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"n_rounds": 0}, ValueError, "n_rounds of the prerun must be 1 or more, not 0"),
        ({"n_modes": 0}, ValueError, "n_modes of the prerun must be 1 or more, not 0"),
        ({"n_hops": -1}, ValueError, "n_hops of the prerun must be 0 or more, not -1"),
        ({"n_chains": 0}, ValueError, "n_chains of the prerun must be 1 or more, not 0"),
        ({"n_starts": -1}, ValueError, "n_starts of the prerun must be 0 or more, not -1"),
        ({"round_temperatures": 2}, ValueError, "round_temperatures of the prerun must be 3 or more, not 2"),
        ({"n_blocks": 2.5}, TypeError, "n_blocks of the prerun must be an integer, 1 or more, not 2.5"),
        ({"target_acceptance": 1.2}, ValueError, "target_acceptance .* must lie in 0 < target_acceptance < 1, not 1.2"),
        ({"gain": "high"}, TypeError, "gain of the prerun must be a number, not 'high'"),
    ],
)
def test_a_setting_of_the_prerun_that_cannot_be_used_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        PrerunSettings(**changes)


def test_one_chain_learns_no_schedule(no_sampling):
    """Nor has it a variance; along a given schedule one is enough."""
    with pytest.raises(ValueError, match="n_chains of the prerun must be 2 or more, not 1"):
        measure(prerun_settings=replace(QUICK, n_chains=1))


def test_a_step_size_for_every_chain_needs_as_many_chains(no_sampling):
    with pytest.raises(ValueError, match="n_chains of the prerun, 8, must be that of the formal run, 4"):
        measure(prerun_settings=replace(QUICK, step_size_rule="running_mean", n_chains=8))


def test_numbers_of_other_libraries_are_numbers():
    one = replace(QUICK, n_chains=1)
    changes = {"beta_max": np.float32(1.0), "n_temperatures": None, "betas": np.linspace(0, 1, 10)}
    assert np.isfinite(measure(**changes, n_chains=np.int64(4), prerun_settings=one).rate).all()
    assert np.isfinite(measure(beta_max=torch.tensor(1.0)).rate).all()


def broken(z):
    return {"image": decoder(z)}["images"]


def only_flat(z):
    assert z.ndim == 2, "give me [batch, latent]"
    return decoder(z)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"decoder": lambda z: (decoder(z), z)}, TypeError, "the decoder returns a tuple; a decoder maps codes"),
        ({"decoder": lambda z: None}, TypeError, r"returns a NoneType; .* \[..., 2\] to a tensor \[..., 4\]"),
        ({"decoder": lambda z: decoder(z).numpy()}, TypeError, "the decoder returns a ndarray"),
        ({"decoder": broken}, ValueError, "cannot map codes of shape .* KeyError: 'images'; a decoder maps codes"),
        (
            {"decoder": only_flat},
            ValueError,
            r"(?s)AssertionError: give me \[batch, latent\].* to a tensor .*z.flatten\(0, -2\)",
        ),
        (
            {"decoder": lambda z: decoder(z).view(-1, 4)},
            ValueError,
            r"must return \(3, 2, 4\); .*flatten\(0, -2\)",
        ),
        ({"decoder": "vae"}, TypeError, "the decoder is a str, which cannot be called; a decoder maps codes"),
        ({"distortion": lambda x, f: None}, TypeError, r"distortion returns a NoneType, not a tensor \[C, N\]"),
        ({"distortion": lambda x, f: 1 / 0}, ValueError, "the distortion cannot compare data .* ZeroDivisionError"),
    ],
)
def test_code_of_the_user_that_fails_is_named(no_sampling, changes, error, message):
    with pytest.raises(error, match=message) as caught:
        measure(**changes)
    if "cannot" in str(caught.value) and error is ValueError:
        assert caught.value.__cause__ is not None  # with the line of the user's own code


def test_the_advice_for_a_decoder_of_flat_batches_works():
    assert np.isfinite(measure(lambda z: only_flat(z.flatten(0, -2)).unflatten(0, z.shape[:-1])).rate).all()


class NoSample(Distribution):
    def __init__(self):
        super().__init__(event_shape=torch.Size([2]), validate_args=False)

    def log_prob(self, value):
        return -value.square().sum(-1)


class NoDensity(NoSample):
    log_prob = Distribution.log_prob

    def sample(self, shape):
        return torch.randn(*shape, 2)


class Sampled(rdcurve.SquaredError):
    """Data simulated by whatever `how` does."""

    def __init__(self, how):
        super().__init__()
        self.sample = how


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda f, beta: None, "returns a NoneType, not a tensor"),
        (lambda f, beta: f.numpy(), "returns a ndarray, not a tensor"),
        (lambda f, beta: f[..., :3], r"returns \(2, 3\) of torch.float32 .* not \(2, 4\) of torch.float32"),
        (lambda f, beta: f.double(), "returns .* of torch.float64 .* not .* of torch.float32"),
        (lambda f, beta: f / 0, "returns values that are not finite"),
        (lambda n: n, "fails: TypeError: .* positional argument"),
        (lambda f, beta: f + torch.from_numpy(np.random.rand(*f.shape)).to(f), "draws other data from the same seed"),
    ],
)
def test_data_that_cannot_be_simulated_are_refused_before_the_prerun(no_sampling, how, message):
    with pytest.raises(ValueError, match=rf"(?s)the `sample` of Sampled {message}.*give n_simulated=0 and no gap"):
        measure(distortion=Sampled(how))


def test_a_bad_sample_hurts_no_one_who_does_without(monkeypatch):
    assert measure(distortion=Sampled(lambda f, beta: None), n_simulated=0).gaps is None


@pytest.mark.parametrize("validate", [False, True])
def test_a_prior_that_lets_chains_out_is_refused(no_sampling, validate):
    """torch's own exponential density goes on below zero, where it grows."""
    prior = Independent(Exponential(torch.ones(2), validate_args=validate), 1, validate_args=validate)
    words = "refuses codes outside its support" if validate else r"has a finite log_prob at \[-.* outside its support"
    with pytest.raises(ValueError, match=f"the prior Independent {words}"):
        measure(prior=prior)


@pytest.mark.parametrize("change", [{"weight": 2.0}, {"weight": np.nan}, {"scale": -1.0}])
def test_a_prior_whose_numbers_are_none_is_refused(no_sampling, change):
    prior = rdcurve.scale_mixture(2, **{"weight": 0.5, "scale": 2.0} | change)
    with pytest.raises(ValueError, match="the prior MixtureSameFamily cannot be sampled: "):
        measure(prior=prior)


def test_sparse_data_are_refused(no_sampling):
    with pytest.raises(TypeError, match=r"stored in full, not as torch\.sparse_coo"):
        measure(x=X.to_sparse())


@pytest.mark.parametrize("every", [np.nan, -1.0])
def test_a_time_between_saves_that_never_comes_is_refused(tmp_path, every):
    with pytest.raises(ValueError, match=f"the seconds between two saves must be 0 or more, not {every}"):
        measure(state_folder=tmp_path, save_every=every)


def test_a_thread_may_measure_with_a_state(tmp_path):
    """Python lets only the main thread hear signals; a run in another keeps its state, and ends by its time limit."""
    with ThreadPoolExecutor(1) as pool:
        curve = pool.submit(measure, state_folder=tmp_path, n_simulated=0).result()
    assert np.array_equal(curve.rate, measure(n_simulated=0).rate)


class Bare:
    """A prior with what is asked of one, and nothing else."""

    event_shape = torch.Size([2])

    def sample(self, shape):
        return torch.randn(*shape, 2)

    def log_prob(self, z):
        return -0.5 * z.square().sum(-1)


def test_a_prior_of_three_names_will_do():
    assert np.isfinite(measure(prior=Bare(), n_chains=16, prerun_settings=replace(QUICK, n_starts=2)).rate).all()


class Slope(torch.autograd.Function):
    """grad y (1 - y), which nothing can be said of beyond its value."""

    @staticmethod
    def forward(grad, y):
        return grad * y * (1 - y)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass


class Once(torch.autograd.Function):
    """A sigmoid with derivatives in both modes, and no second one."""

    @staticmethod
    def forward(z):
        return z.sigmoid()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx, grad):
        return Slope.apply(grad, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx, tangent):
        (y,) = ctx.saved_tensors
        return tangent * y * (1 - y)


def test_a_decoder_that_modes_cannot_be_searched_with_is_refused_at_once(no_sampling):
    with pytest.raises(ValueError, match=r"no second derivative .* set n_starts to 0 to do without"):
        measure(lambda z: Once.apply(z @ WEIGHT), n_chains=16, prerun_settings=replace(QUICK, n_starts=2))


def test_it_will_do_without_the_search_for_modes():
    assert np.isfinite(measure(lambda z: Once.apply(z @ WEIGHT), n_chains=16).rate).all()


def test_a_decoder_with_gradients_that_are_not_finite_is_refused(no_sampling):
    """The values are finite, and so is the distortion: sqrt(0) has no slope."""
    with pytest.raises(ValueError, match="the distortion or its gradient is not finite on codes from the prior"):
        measure(lambda z: decoder(z) + (0 * z[..., :1]).abs().sqrt())


def test_no_product_is_in_tf32_or_in_an_order_of_chance_from_the_first_call_on(no_sampling, monkeypatch):
    """What is simulated, and what features data have, must be what the energy says."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)

    def asked(z):
        assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.deterministic
        return decoder(z)

    with pytest.raises(pytest.fail.Exception, match="the prerun has begun"):
        measure(asked, n_simulated=0)


def test_a_gap_needs_a_learned_schedule(no_sampling):
    with pytest.raises(ValueError, match="a gap chooses the length of a learned schedule"):
        measure(prerun_settings=replace(QUICK, schedule="sigmoid"), n_temperatures=None, gap=1.0)


def test_fewer_betas_than_asked_for_are_said(caplog):
    assert len(measure(n_recorded=8).beta) == 5
    assert "8 betas are asked for; a schedule of 10 temperatures has 5" in caplog.text


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": (255 * X).byte()}, TypeError, "x must be .* of float32 or float64, on the scale .* not torch.uint8"),
        ({"x": X.half()}, TypeError, "not torch.float16"),
        ({"x": (255 * X).byte().numpy()}, TypeError, "not an array of uint8"),
        ({"x": X.tolist()}, TypeError, "x must be a tensor or a numpy array .* not a list"),
        ({"x": X[0, 0]}, ValueError, "x must be .* not one number"),
        (
            {"prior": "standard_normal"},
            TypeError,
            "the prior is a str without `event_shape`; .* rdcurve.uniform",
        ),
        ({"prior": rdcurve.standard_normal}, TypeError, "the prior is a function without .* rdcurve.standard_normal"),
        ({"prior": NoSample()}, ValueError, "the prior NoSample cannot be sampled; .* rdcurve.standard_normal"),
        ({"prior": NoDensity()}, ValueError, "the prior NoDensity has no density; .* rdcurve.standard_normal"),
        ({"prior": Normal(0.0, 1.0)}, ValueError, r"the prior draws codes of shape \(\), not \(2,\)"),
        (
            {"prior": rdcurve.standard_normal(2, torch.float64)},
            ValueError,
            "the prior draws torch.float64 on cpu, but x holds torch.float32 on cpu; build the prior with that dtype",
        ),
    ],
)
def test_data_and_priors_of_another_kind_are_refused(no_sampling, changes, error, message):
    with pytest.raises(error, match=message):
        measure(**changes)


def test_arrays_are_data():
    expected = measure().rate
    for x in (X.numpy(), X.numpy().astype(">f4"), X.numpy()[::-1][::-1]):
        assert np.array_equal(measure(x=x).rate, expected)


class Network(nn.Module):
    """A decoder with a layer of one's choice inside."""

    def __init__(self, layer):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(2, 5), layer, nn.Linear(5, 4), nn.Sigmoid())

    def forward(self, z):
        return self.layers(z.reshape(-1, 2)).reshape(*z.shape[:-1], 4)


@pytest.mark.parametrize("n_images", [1, 3])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("layer", "mode", "message"),
    [
        (nn.BatchNorm1d(5), "train", r"depends on the other codes of the batch; call .eval\(\)"),
        (nn.BatchNorm1d(5, track_running_stats=False), "eval", "every batch norm have running statistics"),
        (nn.Softmax(dim=0), "eval", "depends on the other codes"),
        (nn.Dropout(), "train", r"the decoder is random: .*call .eval\(\)"),
    ],
)
def test_a_decoder_that_mixes_its_batch_is_refused(no_sampling, layer, mode, message, wrapped, n_images):
    """Images and chains share a batch: what an image gets must not depend on who else is measured."""
    network = Network(layer).train(mode == "train")
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        measure((lambda z: network(z)) if wrapped else network, X[:n_images])
    assert wrapped or all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(5), nn.Dropout(), nn.LayerNorm(5)])
def test_a_decoder_in_eval_mode_is_measured(layer):
    assert np.isfinite(measure(Network(layer).eval()).rate).all()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """`rdcurve measure` of a decoder in a module of its own, and the line that a user sees."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("import torch\ndef decoder(z):\n    return z.sigmoid()\n")
    np.save("x.npy", np.float32([[0.0, 1.0]]))

    def run(capsys, *more, name="own:decoder"):
        with pytest.raises(SystemExit) as error:
            main(["measure", name, "--data", "x.npy", "--latent-dim", "2", "--beta-max", "1", *more])
        assert error.value.code == 1
        return capsys.readouterr().err.strip().splitlines()[-1]

    return run


def test_the_command_hands_its_hops_to_the_prerun(own, capsys):
    assert "n_hops of the prerun must be 0 or more, not -1" in own(capsys, "--output", "c.st", "--hops", "-1")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "c.svg", "--figure", "./c.svg"], "--output and --figure are one file, c.svg"),
        (["--output", "x.npy"], "--data and --output are one file, x.npy"),
        (["--output", "."], "is a folder; name a file to write"),
    ],
)
def test_the_command_writes_over_nothing_of_its_own(own, capsys, more, message):
    assert message in own(capsys, *more)
    assert np.array_equal(np.load("x.npy"), [[0.0, 1.0]])


def test_an_error_inside_the_users_module_is_its_own(own, monkeypatch, capsys):
    Path("faulty.py").write_text("import torch\ndecoder = torch.nn.Foo(2, 3)\n")
    with pytest.raises(AttributeError, match="has no attribute 'Foo'"):
        main(["measure", "faulty:decoder", "--data", "x.npy", "--latent-dim", "2", "--beta-max", "1", "--output", "c"])
    assert "own:nothing: own has no 'nothing'" in own(capsys, "--output", "c", name="own:nothing")


def test_all_public_names_are_there():
    """They are loaded on first use, so that a wrong one would be seen only then."""
    for name in rdcurve.__all__:
        assert getattr(rdcurve, name) is not None


def test_no_gradients_to_be_had():
    with torch.inference_mode(), pytest.raises(ValueError, match="nothing is differentiable"):
        rdcurve.measure(torch.nn.Linear(2, 3), torch.rand(4, 3), latent_dim=2, beta_max=1.0, n_temperatures=10)
