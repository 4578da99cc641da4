"""Checkpoints rebuild themselves, and nothing in a bad one is executed."""

import io
import pickle

import numpy as np
import pytest
import torch
from problems import DTYPE
from safetensors.numpy import save_file

from rdcurve.files import FileError, save_arrays
from rdcurve.linear import exact_curve
from rdcurve.models.checkpoint import architecture_module, load_decoder, save_decoder
from rdcurve.models.linear import Decoder, Encoder
from rdcurve.training.vae import Settings, train


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    decoder = Decoder(3, 5).double()
    path = tmp_path / "decoder.safetensors"
    save_decoder(
        path, decoder, architecture="linear", arguments={"latent_dim": 3, "n_pixels": 5}, facts={"dataset": "x"}
    )
    return path, decoder


def test_round_trip(saved):
    path, decoder = saved
    loaded = load_decoder(path)
    z = torch.randn(2, 4, 3, dtype=DTYPE)
    assert torch.equal(loaded.decoder(z), decoder(z))
    assert (loaded.latent_dim, loaded.dtype, loaded.facts["dataset"]) == (3, DTYPE, "x")
    assert not loaded.decoder.training
    assert not any(parameter.requires_grad for parameter in loaded.decoder.parameters())


def test_same_weights_same_bytes(saved, tmp_path):
    path, decoder = saved
    arguments = {"n_pixels": 5, "latent_dim": 3}
    save_decoder(tmp_path / "again", decoder, architecture="linear", arguments=arguments, facts={"dataset": "x"})
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


class Evil:
    def __reduce__(self):
        return (open, ("/tmp/rdcurve-was-here", "w"))


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "cut", "header", "pickle", "torch", "foreign", "shape", "architecture", "kind"]
)
def test_bad_checkpoints_are_refused_by_name(saved, tmp_path, damage):
    path, _ = saved
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(data[:-8])
    elif damage == "header":
        path.write_bytes(b"\xff" * 8 + data[8:])
    elif damage == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif damage == "torch":
        buffer = io.BytesIO()
        torch.save({"a": torch.ones(1), "evil": Evil()}, buffer)
        path.write_bytes(buffer.getvalue())
    elif damage == "foreign":
        save_file({"weight": np.ones(3)}, path)
    else:
        arrays = {"output.weight": np.ones((5, 2 if damage == "shape" else 3)), "output.bias": np.ones(5)}
        facts = {
            "architecture": "transformer" if damage == "architecture" else "linear",
            "arguments": {"latent_dim": 3, "n_pixels": 5},
        }
        save_arrays(path, "rdcurve curve" if damage == "kind" else "rdcurve decoder", arrays, facts)
    with pytest.raises(FileError, match=r"decoder\.safetensors"):
        load_decoder(path)
    assert not (tmp_path.parent / "rdcurve-was-here").exists()


def test_unknown_architecture_names_the_known():
    with pytest.raises(ValueError, match="known: linear"):
        architecture_module("transformer")


def test_training_a_linear_vae_finds_the_principal_subspace():
    """At the optimum of a linear VAE, W W^T + v I is the covariance (Tipping and Bishop 1999): the ELBO is log p(x).

    500 images of a 2-D model in 6 dimensions; the trained -ELBO comes within 0.1 nats of the best possible.
    """
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(6, 2, generator=generator, dtype=DTYPE) * 1.5
    x = torch.randn(500, 2, generator=generator, dtype=DTYPE) @ truth.T
    x = x + torch.randn(500, 6, generator=generator, dtype=DTYPE)
    covariance = torch.cov(x.T, correction=0)
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    root = (eigenvalues[-2:] - 1).clamp(min=0).sqrt()
    _, _, log_z = exact_curve((vectors[:, -2:] * root).numpy(), x.mean(0).numpy(), x.numpy(), np.ones(1), 1.0)
    torch.manual_seed(0)
    decoder, encoder = Decoder(2, 6).double(), Encoder(2, 6).double()
    settings = Settings(epochs=150, batch_size=50, learning_rate=0.01, variance=1.0, seed=1)
    result = train(decoder, encoder, x, x, settings)
    weights = result.decoder.state_dict()
    _, _, reached = exact_curve(
        weights["output.weight"].numpy(), weights["output.bias"].numpy(), x.numpy(), np.ones(1), 1.0
    )
    assert -0.1 < reached.mean() - log_z.mean() <= 1e-9
    best = min(row["validation_loss"] for row in result.history)
    assert best > -log_z.mean() - 0.2  # minus the ELBO never beats minus log p(x), but for the noise of one sample
    assert best < -log_z.mean() + 0.2


def test_training_is_reproducible_and_says_where_it_diverged():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))

    def run(learning_rate):
        torch.manual_seed(3)
        settings = Settings(epochs=2, batch_size=16, learning_rate=learning_rate, variance=1.0, seed=1)
        return train(Decoder(2, 6), Encoder(2, 6), x, x, settings)

    first, second = run(0.01), run(0.01)
    assert first.history == second.history
    assert torch.equal(first.decoder.output.weight, second.decoder.output.weight)
    with pytest.raises(FloatingPointError, match=r"diverged: the loss is .* in epoch"):
        run(1e30)
