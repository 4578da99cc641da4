"""What a user may get wrong in `rdcurve.measure`: an error that says what is legal, before any sampling."""

import logging

import numpy as np
import pytest
import torch

import rdcurve
import rdcurve.sampler.measure as measuring
from rdcurve.cli import main
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
    assert bool(caplog.records) == (scale == "collapsed")  # with a warning


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
