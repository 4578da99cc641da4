"""Training loops find what is known to be there, twice the same, and say where they diverged."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.image import imread
from problems import DTYPE

from rdcurve.cli import main
from rdcurve.linear import exact_curve
from rdcurve.models import linear, mlp
from rdcurve.models.checkpoint import load_decoder
from rdcurve.training import gan, vae
from rdcurve.training.samples import sample_grid, save_sample_grid
from rdcurve.training.trained import learning_rate

VAE = vae.Settings(epochs=2, batch_size=16, learning_rate=0.01, variance=1.0, seed=1)
GAN = gan.Settings(
    latent_dim=2,
    discriminator=[64, 64],
    epochs=2,
    batch_size=64,
    learning_rate=0.002,
    adam_betas=[0.5, 0.999],
    gradient_penalty=0.1,
    averaging=0.99,
    seed=1,
)


def linear_data(n, variance):
    """n points of a 2-D model in 6 dimensions, with noise of a known variance; eigenvalues of their covariance."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(6, 2, generator=generator, dtype=DTYPE) * 1.5
    x = torch.randn(n, 2, generator=generator, dtype=DTYPE) @ truth.T
    x = x + variance**0.5 * torch.randn(n, 6, generator=generator, dtype=DTYPE)
    return x, *torch.linalg.eigh(torch.cov(x.T, correction=0))


def small_vae(x, settings, seed=3):
    torch.manual_seed(seed)
    return vae.train(linear.Decoder(2, 6).to(x), linear.Encoder(2, 6).to(x), x, x, settings)


def test_a_linear_vae_finds_the_principal_subspace():
    """At the optimum of a linear VAE, W W^T + v I is the covariance (Tipping and Bishop 1999): the ELBO is log p(x).

    The trained -ELBO comes within 0.1 nats of the best possible.
    """
    x, eigenvalues, vectors = linear_data(500, 1.0)
    root = (eigenvalues[-2:] - 1).clamp(min=0).sqrt()
    _, _, log_z = exact_curve((vectors[:, -2:] * root).numpy(), x.mean(0).numpy(), x.numpy(), np.ones(1), 1.0)
    result = small_vae(x, replace(VAE, epochs=150, batch_size=50), seed=0)
    weights = result.decoder.state_dict()
    _, _, reached = exact_curve(
        weights["output.weight"].numpy(), weights["output.bias"].numpy(), x.numpy(), np.ones(1), 1.0
    )
    assert -0.1 < reached.mean() - log_z.mean() <= 1e-9
    best = min(row["validation_loss"] for row in result.history)
    assert best > -log_z.mean() - 0.2  # minus the ELBO never beats minus log p(x), but for the noise of one sample
    assert best < -log_z.mean() + 0.2


def test_a_linear_vae_learns_the_variance():
    """Its maximum of likelihood is the mean of the eigenvalues outside the subspace (Tipping and Bishop 1999)."""
    x, eigenvalues, _ = linear_data(1000, 0.3)
    settings = replace(VAE, epochs=120, batch_size=50, schedule="cosine", variance_learning_rate=0.01)
    result = small_vae(x, settings)
    assert result.facts["variance"] == pytest.approx(float(eigenvalues[:-2].mean()), rel=0.03)
    assert result.facts["variance"] == result.history[int(result.facts["best"]["epoch"]) - 1]["variance"]


def test_history_of_a_vae_adds_up():
    x, *_ = linear_data(64, 1.0)
    for row in small_vae(x, replace(VAE, variance=0.5, variance_learning_rate=0.01)).history:
        nll = row["squared_error"] / (2 * row["variance"]) + 3 * np.log(2 * np.pi * row["variance"])
        assert row["validation_loss"] == pytest.approx(nll + row["kl"])


def test_the_published_linear_vae_stays_as_it_is():
    """Pinned before the variance could be learned: the figure 3 model must not move by a change of the trainer."""
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    result = small_vae(x, replace(VAE, epochs=3))
    losses = [(row["train_loss"], row["validation_loss"]) for row in result.history]
    expected = [
        (11.317287502884572, 10.941740104002111),
        (10.697868510733308, 10.605063865701151),
        (10.012927980209936, 10.125351730554662),
    ]
    assert np.allclose(losses, expected, rtol=1e-12, atol=0)
    assert float(result.decoder.output.weight.detach().sum()) == pytest.approx(-0.9839935798305421, rel=1e-12)
    best = {"epoch": 3, "train_loss": losses[-1][0], "validation_loss": losses[-1][1]}
    assert result.facts == {"best": best}  # as they stand in the published checkpoint


def test_vae_training_is_reproducible_and_says_where_it_diverged():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    first, second = small_vae(x, VAE), small_vae(x, VAE)
    assert first.history == second.history
    assert torch.equal(first.decoder.output.weight, second.decoder.output.weight)
    with pytest.raises(FloatingPointError, match=r"diverged: the loss is .* in epoch"):
        small_vae(x, replace(VAE, learning_rate=1e30))


def mixture(n):
    """Two round clouds in the unit square."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.tensor([[0.3, 0.3], [0.7, 0.7]])[torch.randint(2, (n,), generator=generator)]
    return centre + 0.05 * torch.randn(n, 2, generator=generator)


def small_gan(x, settings):
    torch.manual_seed(3)
    arguments = {"latent_dim": 2, "n_pixels": 2, "hidden": [32, 32], "activation": "tanh"}
    return gan.train(*gan.networks(mlp, arguments, settings), x, x[:100], settings)


def test_a_gan_learns_a_mixture():
    """Adversarial training amplifies the last bit of any rounding: another processor is as another seed.

    Over 12 seeds, and 4 times with x moved by 1e-7, covariances were off by at most 0.08 of 0.25, the means by 0.006 of
    0.03, `left` by 0.026 of 0.1, and at most 0.031 of 0.1 lay in between.
    """
    x = mixture(2000)
    steady = replace(GAN, gradient_penalty=3.0, adam_betas=[0.0, 0.99], learning_rate=0.005)
    decoder = small_gan(x, replace(steady, epochs=40, schedule="cosine")).decoder
    with torch.no_grad():
        y = decoder(torch.randn(2000, 2, generator=torch.Generator().manual_seed(5)))
    assert torch.allclose(y.mean(0), x.mean(0), atol=0.03)
    assert torch.allclose(torch.cov(y.T), torch.cov(x.T), rtol=0.25, atol=0)
    left = (y[:, 0] < 0.5).float().mean()
    assert 0.4 < left < 0.6  # both clouds, and little in between
    assert ((y[:, 0] > 0.45) & (y[:, 0] < 0.55)).float().mean() < 0.1


def test_gan_training_is_reproducible_and_says_where_it_diverged():
    x = mixture(256)
    first, second = small_gan(x, GAN), small_gan(x, GAN)
    assert first.history == second.history
    pairs = zip(first.decoder.parameters(), second.decoder.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(FloatingPointError, match=r"diverged: the losses are .* in epoch 1"):
        small_gan(x, replace(GAN, learning_rate=1e30))


def test_gan_keeps_the_running_average_of_its_decoder():
    """Without averaging it is the last step's decoder; an average of nearly everything stays near the start."""
    x = mixture(256)
    torch.manual_seed(3)
    start = mlp.Decoder(2, 2, [32, 32], "tanh").layers[0].weight
    moved = [
        float((small_gan(x, replace(GAN, averaging=share)).decoder.layers[0].weight - start).detach().norm())
        for share in (0.0, 0.9, 0.9999)
    ]
    assert moved[0] > moved[1] > 10 * moved[2] > 0


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", [2, 2, 2, 2, 2]), ("cosine", [2, 1.7071, 1, 0.2929, 0])]
)
def test_learning_rate(schedule, expected):
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2)
    scheduler = learning_rate(optimiser, schedule, 4)
    rates = []
    for _ in expected:
        rates.append(scheduler.get_last_lr()[0])
        optimiser.step()
        scheduler.step()
    assert rates == pytest.approx(expected, abs=1e-4)


def test_unknown_schedule_is_named():
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2)
    with pytest.raises(ValueError, match="unknown schedule 'step'; known: constant, cosine"):
        learning_rate(optimiser, "step", 4)


def test_sample_grid_shows_one_image_beside_the_other(tmp_path):
    def brightness(z):  # 2 x 2 pixels, the second twice as bright as the first
        return z[:, :1].abs() * torch.tensor([0.1, 0.2, 0.0, 2.0])

    decoder = linear.Decoder(3, 4)
    decoder.forward = brightness
    grid = sample_grid(decoder, 3, rows=2)
    assert grid.shape == (4, 4)
    images = grid.reshape(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)
    assert torch.allclose(images[:, 1], 2 * images[:, 0])
    assert len(images[:, 0].unique()) == 4
    assert grid.max() <= 1
    save_sample_grid(tmp_path / "a.png", decoder, 3)
    save_sample_grid(tmp_path / "b.png", decoder, 3)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert imread(tmp_path / "a.png").shape[:2] == (16, 16)


@pytest.mark.parametrize("trainer", ["vae", "gan"])
def test_command_writes_checkpoint_history_and_samples(tmp_path, capsys, trainer):
    settings = asdict(replace(VAE, variance_learning_rate=0.01) if trainer == "vae" else GAN)
    network = {"architecture": "mlp", "latent_dim": 2, "hidden": [8, 6], "activation": "tanh", "dtype": "float32"}
    params = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
    params["models"]["small"] = settings | network | {"dataset": "mnist", "trainer": trainer}
    params["training"]["n_validation"] = 20
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    pixels = np.random.default_rng(0).integers(0, 256, 100 * 784, dtype=np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes(16) + pixels.tobytes())
    command = f"train small --params {tmp_path}/params.yaml --data {tmp_path} --output {tmp_path}/a.safetensors"
    main([*command.split(), "--history", f"{tmp_path}/a.csv", "--samples", f"{tmp_path}/a.png"])
    loaded = load_decoder(tmp_path / "a.safetensors")
    assert loaded.latent_dim == 2
    assert loaded.facts["arguments"] == {"n_pixels": 784} | {
        key: network[key] for key in ("latent_dim", "hidden", "activation")
    }
    assert loaded.facts["settings"] == params["models"]["small"]
    assert imread(tmp_path / "a.png").shape[:2] == (224, 224)
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 1 + 2  # a row an epoch
    printed = json.loads(capsys.readouterr().out.removeprefix("small: "))
    assert printed.items() <= loaded.facts.items()
    assert (0.9 < printed["variance"] < 1.1) if trainer == "vae" else printed["last"]["epoch"] == 2
