"""Checkpoints rebuild themselves, and nothing in a bad one is executed."""

import io
import pickle

import numpy as np
import pytest
import torch
from problems import DTYPE
from safetensors.numpy import save_file

from rdcurve.files import FileError, save_arrays
from rdcurve.models import mlp
from rdcurve.models.checkpoint import architecture_module, load_decoder, save_decoder
from rdcurve.models.linear import Decoder


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
    with pytest.raises(ValueError, match="known: cnn, dcgan, featured, linear, mlp"):
        architecture_module("transformer")


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_mlp_has_the_shapes_and_the_range_of_the_paper(activation):
    torch.manual_seed(0)
    arguments = {"latent_dim": 10, "n_pixels": 784, "hidden": [1024, 512, 256], "activation": activation}
    decoder, encoder = mlp.Decoder(**arguments), mlp.Encoder(**arguments)
    image = decoder(torch.randn(3, 2, 10))
    assert image.shape == (3, 2, 784)
    assert ((image > 0) & (image < 1)).all()
    assert encoder(image).shape == (3, 2, 20)
    widths = [
        [layer.out_features for layer in net.layers if hasattr(layer, "out_features")] for net in (decoder, encoder)
    ]
    assert widths == [[1024, 512, 256, 784], [256, 512, 1024, 20]]


def test_mlp_is_its_formula():
    torch.manual_seed(0)
    decoder = mlp.Decoder(2, 5, [4], "tanh").double()
    z = torch.randn(6, 2, dtype=DTYPE)
    first, _, last = decoder.layers
    expected = (last.weight @ (first.weight @ z.T + first.bias[:, None]).tanh() + last.bias[:, None]).T.sigmoid()
    assert torch.allclose(decoder(z), expected)


def test_mlp_starts_at_the_mean_image():
    decoder = mlp.Decoder(2, 5, [4, 3], "tanh").double()
    mean = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=DTYPE)
    decoder.start_at(mean)
    torch.nn.init.zeros_(decoder.layers[-1].weight)
    assert torch.allclose(decoder(torch.randn(6, 2, dtype=DTYPE)), mean.clamp(0.01, 0.99))


def test_mlp_signals_keep_their_size():
    torch.manual_seed(0)
    decoder = mlp.Decoder(400, 300, [400] * 3, "relu")
    for layer in decoder.layers[::2]:
        assert float(layer.weight.detach().var()) * layer.in_features == pytest.approx(1, rel=0.05)


def test_mlp_checkpoint_rebuilds_itself(tmp_path):
    arguments = {"latent_dim": 2, "n_pixels": 5, "hidden": [4, 3], "activation": "relu"}
    decoder = mlp.Decoder(**arguments)
    save_decoder(tmp_path / "mlp", decoder, architecture="mlp", arguments=arguments, facts={})
    z = torch.randn(6, 2)
    assert torch.equal(load_decoder(tmp_path / "mlp").decoder(z), decoder(z))


def test_unknown_activation_names_the_known():
    with pytest.raises(ValueError, match="unknown activation 'sine'; known: tanh, relu"):
        mlp.Decoder(2, 5, [4], "sine")
