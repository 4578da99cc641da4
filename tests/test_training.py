"""Training loops find what is known to be there, twice the same, and say where they diverged."""

import copy
import json
import math
import random
import signal
import struct
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import yaml
from matplotlib.image import imread
from problems import DTYPE
from steps import few_settings
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence
from torch.nn.functional import cross_entropy, softplus

from rdcurve.cli import main
from rdcurve.linear import exact_curve
from rdcurve.models import cnn, linear, mlp
from rdcurve.models.checkpoint import load_classifier, load_decoder
from rdcurve.state import Checkpoint, Interrupted
from rdcurve.training import aae, classifier, gan, vae
from rdcurve.training.samples import filter_grid, sample_grid, save_grid
from rdcurve.training.trained import TrainingSettings, learning_rate_factor, train_epochs, update

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
AAE = aae.Settings(
    stochastic=False,
    discriminator=[32, 32],
    discriminator_learning_rate=0.01,
    epochs=2,
    batch_size=50,
    learning_rate=0.01,
    adam_betas=[0.5, 0.99],
    reconstruction_weight=0.1,
    adversarial_weight=1.0,
    gradient_penalty=0.1,
    seed=1,
)
CLASSIFIER = classifier.Settings(epochs=2, batch_size=16, learning_rate=0.01, seed=1)


def linear_data(n, variance):
    """n points of a 2-D model in 6 dimensions, with noise of a known variance; eigenvalues of their covariance."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(6, 2, generator=generator, dtype=DTYPE) * 1.5
    x = torch.randn(n, 2, generator=generator, dtype=DTYPE) @ truth.T
    x = x + variance**0.5 * torch.randn(n, 6, generator=generator, dtype=DTYPE)
    return x, *torch.linalg.eigh(torch.cov(x.T, correction=0))


def small_vae(x, settings, seed=3, **more):
    torch.manual_seed(seed)
    return vae.train(linear.Decoder(2, 6).to(x), linear.Encoder(2, 6).to(x), x, x, settings, **more)


def test_a_linear_vae_finds_the_principal_subspace():
    """At the optimum of a linear VAE, W W^T + v I is the covariance (Tipping and Bishop 1999): the ELBO is log p(x).

    The trained -ELBO comes within 0.1 nats of the best possible.
    """
    x, eigenvalues, vectors = linear_data(500, 1.0)
    root = (eigenvalues[-2:] - 1).clamp(min=0).sqrt()
    _, _, log_z = exact_curve((vectors[:, -2:] * root).numpy(), x.mean(0).numpy(), x.numpy(), np.ones(1), 1.0)
    result = small_vae(x, replace(VAE, epochs=150, batch_size=50), seed=0)
    weights = result.network.state_dict()
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
    assert float(result.network.output.weight.detach().sum()) == pytest.approx(-0.9839935798305421, rel=1e-12)
    best = {"epoch": 3, "train_loss": losses[-1][0], "validation_loss": losses[-1][1]}
    assert result.facts == {"best": best}  # as they stand in the published checkpoint


def mixture(n):
    """Two round clouds in the unit square."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.tensor([[0.3, 0.3], [0.7, 0.7]])[torch.randint(2, (n,), generator=generator)]
    return centre + 0.05 * torch.randn(n, 2, generator=generator)


def small_gan(x, settings, **more):
    torch.manual_seed(3)
    arguments = {"latent_dim": 2, "n_pixels": 2, "hidden": [32, 32], "activation": "tanh"}
    return gan.train(*gan.networks(mlp, arguments, settings), x, x[:100], settings, **more)


def test_a_gan_learns_a_mixture():
    """Adversarial training amplifies the last bit of any rounding: another processor is as another seed.

    Over 12 seeds, and 4 times with x moved by 1e-7, covariances were off by at most 0.08 of 0.25, the means by 0.006 of
    0.03, `left` by 0.026 of 0.1, and at most 0.031 of 0.1 lay in between.
    """
    x = mixture(2000)
    steady = replace(GAN, gradient_penalty=3.0, adam_betas=[0.0, 0.99], learning_rate=0.005)
    decoder = small_gan(x, replace(steady, epochs=40, schedule="cosine")).network
    with torch.no_grad():
        y = decoder(torch.randn(2000, 2, generator=torch.Generator().manual_seed(5)))
    assert torch.allclose(y.mean(0), x.mean(0), atol=0.03)
    assert torch.allclose(torch.cov(y.T), torch.cov(x.T), rtol=0.25, atol=0)
    left = (y[:, 0] < 0.5).float().mean()
    assert 0.4 < left < 0.6  # both clouds, and little in between
    assert ((y[:, 0] > 0.45) & (y[:, 0] < 0.55)).float().mean() < 0.1


def test_gan_keeps_the_running_average_of_its_decoder():
    """Without averaging it is the last step's decoder; an average of nearly everything stays near the start."""
    x = mixture(256)
    torch.manual_seed(3)
    start = mlp.Decoder(2, 2, [32, 32], "tanh").layers[0].weight
    moved = [
        float((small_gan(x, replace(GAN, averaging=share)).network.layers[0].weight - start).detach().norm())
        for share in (0.0, 0.9, 0.9999)
    ]
    assert moved[0] > moved[1] > 10 * moved[2] > 0


def small_aae(x, settings, **more):
    torch.manual_seed(settings.seed)
    encoder = nn.Linear(6, 4 if settings.stochastic else 2)
    return aae.train(linear.Decoder(2, 6), encoder, mlp.Discriminator(2, [32, 32]), x, x[:500], settings, **more)


def plane(n):
    """Points of a tilted plane in 6 dimensions, Gaussian in it."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(2, 6, generator=generator)
    return torch.randn(n, 2, generator=generator) @ basis + 1


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_linear_aae_codes_a_gaussian_as_the_prior(stochastic):
    """Codes N(0, I) and no error leave the decoder W W^T = covariance and the bias = mean.

    Over 10 seeds and 2 inputs moved by 1e-7, and 6 seeds of the stochastic encoder: W W^T was off by at most 0.052 of
    0.2, the bias by 0.11 of 0.3, the error was at most 0.0097 of 0.1, the mismatch 0.011 of 0.04.
    """
    x = plane(1000)
    result = small_aae(x, replace(AAE, epochs=60, schedule="cosine", stochastic=stochastic))
    output, covariance = result.network.output, torch.cov(x.T)
    assert (output.weight @ output.weight.T - covariance).norm() < 0.2 * covariance.norm()
    assert (output.bias - x.mean(0)).norm() < 0.3  # of 2.4, the norm of the mean
    last = result.history[-1]
    assert last["validation_error"] < 0.1  # of 13, the variance of x
    assert last["code_mismatch"] < 0.04
    assert last["discriminator_loss"] == pytest.approx(2 * math.log(2), abs=0.01)
    assert last["adversarial_loss"] == pytest.approx(math.log(2), abs=0.01)


def test_moment_mismatch_is_a_divergence():
    """Against torch's own KL divergence of Gaussians; zero for codes with mean 0 and covariance I."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 3, generator=generator, dtype=DTYPE) @ torch.randn(3, 3, generator=generator, dtype=DTYPE) + 1
    codes = MultivariateNormal(z.mean(0), torch.cov(z.T, correction=0))
    expected = kl_divergence(codes, MultivariateNormal(torch.zeros(3, dtype=DTYPE), torch.eye(3, dtype=DTYPE)))
    assert aae.moment_mismatch(z) == pytest.approx(float(expected))
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert aae.moment_mismatch(corners) == pytest.approx(0, abs=1e-12)


def clouds(n):
    """Points around three corners of a triangle, and which."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (n,), generator=generator)
    corners = 2 * torch.tensor([[0.0, 1.0], [0.866, -0.5], [-0.866, -0.5]])
    return corners[y] + torch.randn(n, 2, generator=generator), y


def small_classifier(x, settings, **more):
    torch.manual_seed(0)
    x, y = clouds(len(x))
    return classifier.train(nn.Linear(2, 3), x, x[-200:], settings, labels=(y, y[-200:]), **more)


def test_a_classifier_learns_what_can_be_told():
    """Logits that are linear in x are exact for clouds of one shape: accuracy and loss are Bayes's, but for noise."""
    x, y = clouds(2000)
    held_out, truth = x[1000:], y[1000:]
    torch.manual_seed(0)
    settings = replace(CLASSIFIER, epochs=20, schedule="cosine")
    result = classifier.train(nn.Linear(2, 3), x[:1000], held_out, settings, labels=(y[:1000], truth))
    corners = 2 * torch.tensor([[0.0, 1.0], [0.866, -0.5], [-0.866, -0.5]])
    best = held_out @ corners.T  # |corner| is the same for all
    best_loss, best_accuracy = float(cross_entropy(best, truth)), float((best.argmax(-1) == truth).double().mean())
    assert result.facts["best"]["validation_loss"] == pytest.approx(best_loss, abs=0.02)
    assert result.facts["best"]["validation_accuracy"] == pytest.approx(best_accuracy, abs=0.01)
    with torch.no_grad():
        assert float(cross_entropy(result.network(held_out), truth)) == result.facts["best"]["validation_loss"]
    assert result.facts["best"] == min(result.history, key=lambda row: row["validation_loss"])


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", [1, 1, 1, 1, 1]), ("cosine", [1, 0.85355, 0.5, 0.14645, 0])]
)
def test_learning_rate(schedule, expected):
    assert [learning_rate_factor(schedule, step, 4) for step in range(5)] == pytest.approx(expected, abs=1e-5)


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="unknown schedule 'step'; known: constant, cosine"):
        small_gan(mixture(100), replace(GAN, schedule="step"))


def plain_vae(x, settings):
    """The algorithm as one loop, with torch's own scheduler: nothing that stops or goes on."""
    torch.manual_seed(3)
    decoder, encoder, log_variance = linear.Decoder(2, 6).to(x), linear.Encoder(2, 6).to(x), torch.tensor(0.0).to(x)
    optimiser = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], lr=settings.learning_rate)
    group = {"params": [log_variance.requires_grad_()], "lr": settings.variance_learning_rate}
    optimiser.add_param_group(group)
    scheduler = cosine(optimiser, settings, len(x))
    generator, best, rows = torch.Generator().manual_seed(settings.seed), (math.inf, None), []
    for _ in range(settings.epochs):
        total = torch.zeros((), dtype=DTYPE)
        for index in torch.randperm(len(x), generator=generator).split(settings.batch_size):
            loss, _, _ = vae._losses(decoder, encoder, x[index], log_variance, generator)
            update(optimiser, loss)
            scheduler.step()
            total += loss.detach().double() * len(index)
        with torch.no_grad():
            loss, squared_error, kl = map(float, vae._losses(decoder, encoder, x, log_variance, generator))
        rows.append([float(total) / len(x), loss, squared_error, kl, math.exp(log_variance.detach())])
        best = min(best, (loss, copy.deepcopy(decoder)), key=lambda one: one[0])
    return rows, best[1]


def plain_gan(x, settings):
    torch.manual_seed(3)
    arguments = {"latent_dim": 2, "n_pixels": 2, "hidden": [32, 32], "activation": "tanh"}
    decoder, discriminator = gan.networks(mlp, arguments, settings)
    rate = {"lr": settings.learning_rate, "betas": tuple(settings.adam_betas), "fused": True}
    optimisers = [torch.optim.Adam(player.parameters(), **rate) for player in (discriminator, decoder)]
    schedulers = [cosine(optimiser, settings, len(x)) for optimiser in optimisers]
    generator, average, rows = torch.Generator().manual_seed(settings.seed), copy.deepcopy(decoder), []
    for _ in range(settings.epochs):
        totals = torch.zeros(3, dtype=DTYPE)
        for index in torch.randperm(len(x), generator=generator).split(settings.batch_size):
            fake = decoder(torch.randn(len(index), 2, generator=generator))
            real = x[index].requires_grad_()
            logits = discriminator(real)
            penalty = torch.autograd.grad(logits.sum(), real, create_graph=True)[0].square().sum(-1).mean()
            loss = softplus(-logits).mean() + softplus(discriminator(fake.detach())).mean()
            update(optimisers[0], loss + settings.gradient_penalty / 2 * penalty)
            generator_loss = softplus(-discriminator(fake)).mean()
            update(optimisers[1], generator_loss)
            for scheduler in schedulers:
                scheduler.step()
            for kept, new in zip(average.parameters(), decoder.parameters(), strict=True):
                kept.data.lerp_(new.data, 1 - settings.averaging)
            totals += torch.stack([loss, generator_loss, penalty]).detach().double() * len(index)
        with torch.no_grad():
            fake = average(torch.randn(100, 2, generator=generator))
            logits = [float(discriminator(images).mean()) for images in (x[:100], x[:100], fake)]
        rows.append([*(totals / len(x)).tolist(), *logits])
    return rows, average


def cosine(optimiser, settings, n):
    n_steps = settings.epochs * math.ceil(n / settings.batch_size)
    return torch.optim.lr_scheduler.LambdaLR(optimiser, lambda t: (1 + math.cos(math.pi * t / n_steps)) / 2)


def points(n):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(0))


# how a trainer is run on little data, and the same algorithm as a plain loop
TRAININGS = {
    "vae": (small_vae, plain_vae, points(70), replace(VAE, schedule="cosine", variance_learning_rate=0.01, epochs=4)),
    "gan": (small_gan, plain_gan, mixture(300), replace(GAN, schedule="cosine", epochs=3)),
    "aae": (small_aae, None, points(230), replace(AAE, schedule="cosine", epochs=3, stochastic=True)),
    "classifier": (small_classifier, None, points(90), replace(CLASSIFIER, schedule="cosine", epochs=3)),
}


def leaves(result):
    """All of a result, bit by bit."""
    weights = {name: tensor.numpy().tobytes() for name, tensor in result.network.state_dict().items()}
    return weights, result.history, result.facts


@pytest.mark.parametrize("trainer", ["vae", "gan"])
def test_training_computes_what_a_plain_loop_does(trainer):
    """To the bit, the last batch of an epoch smaller than the others included."""
    train, plain, x, settings = TRAININGS[trainer]
    result = train(x, settings)
    rows, network = plain(x, settings)
    assert [list(row.values()) for row in result.history] == [[i, *row] for i, row in enumerate(rows, 1)]
    assert leaves(result)[0] == {name: tensor.numpy().tobytes() for name, tensor in network.state_dict().items()}


class Killed(BaseException):
    """The process ends here: nobody catches this."""


@pytest.mark.parametrize("trainer", TRAININGS)
def test_training_cut_at_random_steps(tmp_path, trainer):
    train, _, x, settings = TRAININGS[trainer]
    whole, rng, cuts, seen = train(x, settings), random.Random(1), 0, []
    result = None
    while result is None:
        left = rng.randint(1, 6)

        def progress(done, total):
            nonlocal left
            seen.append(done)
            left -= 1
            if left == 0:
                raise Killed

        try:
            with Checkpoint(tmp_path, "key", every=0) as checkpoint:
                result = train(x, settings, checkpoint=checkpoint, progress=progress)
        except Killed:
            cuts += 1
    assert leaves(result) == leaves(whole)
    n_steps = settings.epochs * math.ceil(len(x) / settings.batch_size)
    assert seen == list(range(1, n_steps + 1))  # no step twice
    assert cuts >= 3


@pytest.mark.parametrize("trainer", TRAININGS)
def test_training_stopped_by_a_signal_goes_on(tmp_path, trainer):
    train, _, x, settings = TRAININGS[trainer]

    def progress(done, total):
        if done == total // 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="SIGTERM"), Checkpoint(tmp_path, "key") as checkpoint:
        train(x, settings, checkpoint=checkpoint, progress=progress)
    with Checkpoint(tmp_path, "key") as checkpoint:
        result = train(x, settings, checkpoint=checkpoint)
    assert leaves(result) == leaves(train(x, settings))


@pytest.mark.parametrize("trainer", TRAININGS)
def test_training_is_reproducible_and_says_where_it_diverged(trainer):
    train, _, x, settings = TRAININGS[trainer]
    assert leaves(train(x, settings)) == leaves(train(x, settings))
    with pytest.raises(
        FloatingPointError, match=r"training diverged in step 1 of \d of epoch 1: \w+ is .* is (inf|nan)"
    ):
        train(x, replace(settings, learning_rate=1e30))


def test_diverged_training_leaves_its_last_good_state(tmp_path):
    """A weight counts the steps; the loss of the sixth is infinite. Asked again, it goes on from the fifth."""
    n_calls = []
    for _ in range(2):
        weight, calls = torch.zeros(1, requires_grad=True), []

        def step(index, weight=weight, calls=calls):
            calls.append(index)
            weight.data += 1
            return [weight.sum() / (6 - weight.sum())]

        diverged = pytest.raises(FloatingPointError, match="step 3 of 3 of epoch 2: loss is inf")
        with diverged, Checkpoint(tmp_path, "key", every=0) as checkpoint:
            train_epochs(
                step,
                lambda: [],
                TrainingSettings(epochs=3, batch_size=30, learning_rate=1.0, seed=0),
                losses=["loss"],
                measures=[],
                parts=[weight],
                optimisers=[torch.optim.Adam([weight])],
                generator=torch.Generator(),
                n_images=70,
                checkpoint=checkpoint,
            )
        n_calls.append(len(calls))
    assert n_calls == [6, 1]


def test_sample_grid_shows_one_image_beside_the_other(tmp_path):
    def brightness(z):  # 2 x 2 pixels, the second twice as bright as the first
        return z[:, :1].abs() * torch.tensor([0.1, 0.2, 0.0, 2.0])

    decoder = linear.Decoder(3, 4)
    decoder.forward = brightness
    grid = sample_grid(decoder, 3, rows=2)
    assert grid.shape == (4, 4, 1)
    images = grid.reshape(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)
    assert torch.allclose(images[:, 1], 2 * images[:, 0])
    assert len(images[:, 0].unique()) == 4
    assert grid.max() <= 1
    for name in ("a.png", "b.png"):
        save_grid(tmp_path / name, sample_grid(decoder, 3))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert imread(tmp_path / "a.png").shape[:2] == (16, 16)


def test_sample_grid_in_colour(tmp_path):
    """Red, green and blue planes in [-1, 1] become the colours of a PNG, each image in its place."""
    colours = torch.tensor([[-1.0, -1, -1], [1, -1, -1], [0, 0, 0], [-2, 1, 3]])
    decoder = linear.Decoder(3, 4)
    decoder.forward = lambda z: colours[:, :, None, None].expand(4, 3, 2, 2)
    save_grid(tmp_path / "a.png", sample_grid(decoder, 3, rows=2))
    pixels = imread(tmp_path / "a.png")[..., :3]
    assert pixels.shape == (4, 4, 3)
    expected = np.array([[[0, 0, 0], [1, 0, 0]], [[0.5, 0.5, 0.5], [0, 1, 1]]]).repeat(2, 0).repeat(2, 1)
    assert np.allclose(pixels, expected, atol=1 / 255)


def test_filter_grid_shows_the_first_layer():
    network = cnn.Classifier()
    grid = filter_grid(network)
    assert grid.shape == (4 * 80, 5 * 80, 1)  # 20 filters of 5 x 5 weights, 16 pixels each
    weights = network.first.weight.detach()
    assert float(grid[80, 80, 0]) == pytest.approx(float(0.5 + weights[6, 0, 0, 0] / weights.abs().max() / 2))


MLP = {"architecture": "mlp", "latent_dim": 2, "hidden": [8, 6], "activation": "tanh"}
MODELS = {
    "vae": MLP | asdict(replace(VAE, variance_learning_rate=0.01)),
    "gan": MLP | asdict(GAN),
    "aae": MLP | asdict(AAE),
    "classifier": {"architecture": "cnn"} | asdict(CLASSIFIER),
}


@pytest.mark.parametrize("trainer", MODELS)
def test_command_writes_checkpoint_history_and_picture(tmp_path, capsys, trainer):
    """At once, and cut after every step: the bytes are the same."""
    model = MODELS[trainer] | {"dataset": "mnist", "trainer": trainer, "dtype": "float32"}
    params = few_settings()
    params["models"]["small"] = model
    params["training"]["n_validation"] = 20
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    random = np.random.default_rng(0)
    pixels, digits = random.integers(0, 256, 100 * 784, dtype=np.uint8), random.integers(0, 10, 100, dtype=np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, 100, 28, 28) + pixels.tobytes())
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 100) + digits.tobytes())
    command = f"train small --params {tmp_path}/params.yaml --data {tmp_path} --output {tmp_path}/a.safetensors"
    command = [*command.split(), "--history", f"{tmp_path}/a.csv", "--samples", f"{tmp_path}/a.png"]
    main(command)
    loaded = (load_classifier if trainer == "classifier" else load_decoder)(tmp_path / "a.safetensors")
    shape = {key: value for key, value in MLP.items() if key != "architecture"} | {"n_pixels": 784}
    assert loaded.facts["arguments"] == ({} if trainer == "classifier" else shape)
    assert loaded.facts["settings"] == model
    assert imread(tmp_path / "a.png").shape[:2] == ((320, 400) if trainer == "classifier" else (224, 224))
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 1 + 2  # a row an epoch
    printed = json.loads(capsys.readouterr().out.removeprefix("small: "))
    assert printed.items() <= loaded.facts.items()
    if trainer == "vae":
        assert 0.9 < printed["variance"] < 1.1
    outputs = [tmp_path / name for name in ("a.safetensors", "a.csv", "a.png")]
    whole, code, n_cuts = [path.read_bytes() for path in outputs], 75, 0
    for path in outputs:
        path.unlink()
    while code == 75:
        try:
            main([*command, "--state", f"{tmp_path}/state", "--time-limit", "1e-6"])
            code = 0
        except SystemExit as stopped:
            code, n_cuts = stopped.code, n_cuts + 1
            assert not any(path.exists() for path in outputs)
    assert code == 0
    assert n_cuts >= 4
    assert [path.read_bytes() for path in outputs] == whole
    assert not list((tmp_path / "state").iterdir())
