"""Convolutional decoders under the sampler, and their training with each regulariser."""

import copy
import math
import random
import signal
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.image import imread
from steps import few_settings
from torch import nn
from torch.nn.functional import softplus

from rdcurve import settings as project_settings
from rdcurve.cli import main
from rdcurve.models import dcgan as networks
from rdcurve.models.checkpoint import load_decoder, save_decoder
from rdcurve.sampler.distortion import SquaredError
from rdcurve.sampler.metric import curvature
from rdcurve.sampler.prior import standard_normal
from rdcurve.sampler.target import Target
from rdcurve.settings import SettingsError
from rdcurve.state import Checkpoint, Interrupted
from rdcurve.training import dcgan

DTYPE = torch.float64
ROOT = Path(__file__).parents[1]
REGULARISERS = {
    "none": {"name": "none"},
    "gradient_penalty": {"name": "gradient_penalty", "weight": 0.5},
    "spectral_norm": {"name": "spectral_norm"},
    "bre": {"name": "bre", "weight": 0.5},
}
SETTINGS = dcgan.Settings(
    latent_dim=3,
    discriminator_width=2,
    epochs=2,
    batch_size=8,
    learning_rate=0.002,
    schedule="cosine",
    adam_betas=[0.5, 0.999],
    averaging=0.9,
    regulariser=REGULARISERS["none"],
    seed=1,
)


@pytest.fixture(autouse=True)
def few_codes(monkeypatch):
    monkeypatch.setattr(dcgan, "_N_SETTLING", 3)


def settled(latent_dim=3, width=2, dtype=torch.float32):
    """A decoder with weights and statistics of their own, in evaluation mode."""
    torch.manual_seed(0)
    decoder = networks.Decoder(latent_dim, width).to(dtype)
    for parameter in decoder.parameters():  # the published start is too small for anything to be seen
        nn.init.normal_(parameter, 0.5, 0.5)
    decoder.settle(torch.randn(64, latent_dim, dtype=dtype) for _ in range(2))
    return decoder.requires_grad_(False)


def pictures(n, dtype=torch.float32):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2 - 1


# The decoder


def test_decoder_has_the_shapes_and_the_range_of_the_paper():
    decoder = networks.Decoder(10, 128)
    assert decoder.project.weight.shape == (1024 * 2 * 2, 10)
    assert [tuple(layer.weight.shape[:2]) for layer in decoder.convolutions] == [
        (1024, 512), (512, 256), (256, 128), (128, 3),
    ]  # fmt: skip
    image = settled()(torch.randn(4, 5, 3))
    assert image.shape == (4, 5, 3, 32, 32)
    assert image.abs().max() <= 1
    assert image.std() > 0.1


def test_an_image_is_a_function_of_its_code_alone():
    """To the bit, wherever it stands among as many others: the sampler calls with tiles of one shape."""
    decoder = settled(10, 16)
    z = torch.randn(128, 10)
    order = torch.randperm(128)
    assert torch.equal(decoder(z[order]), decoder(z)[order])
    others = torch.cat([z[:1], torch.randn(127, 10)])
    assert torch.equal(decoder(others)[0], decoder(z)[0])
    decoder.train()
    assert not torch.allclose(decoder(others)[0], decoder(z)[0], atol=1e-3)


def test_settle_takes_the_means_over_its_batches():
    torch.manual_seed(0)
    decoder = networks.Decoder(3, 2).to(DTYPE)
    decoder(torch.randn(8, 3, dtype=DTYPE))  # what came before does not count
    batches = [torch.randn(8, 3, dtype=DTYPE) for _ in range(3)]
    weights = copy.deepcopy(dict(decoder.named_parameters()))
    decoder.settle(batches)
    values = [decoder.project(z).reshape(8, 16, 4).transpose(0, 1).flatten(1) for z in batches]  # [channels, 32]
    norm = decoder.norms[0]
    assert torch.allclose(norm.running_mean, torch.stack([v.mean(1) for v in values]).mean(0))
    assert torch.allclose(norm.running_var, torch.stack([v.var(1) for v in values]).mean(0))
    assert not decoder.training
    assert all(torch.equal(weights[name], value) for name, value in decoder.named_parameters())
    z = torch.randn(5, 3, dtype=DTYPE)
    first = torch.relu(
        (decoder.project(z).reshape(5, 16, 2, 2) - norm.running_mean[:, None, None])
        / (norm.running_var + norm.eps).sqrt()[:, None, None]
        * norm.weight[:, None, None]
        + norm.bias[:, None, None]
    )
    seen = []
    decoder.convolutions[0].register_forward_pre_hook(lambda part, given: seen.append(given[0]))
    decoder(z)
    assert torch.allclose(seen[0], first)


def test_sampler_finds_gradient_and_metric_and_leaves_the_statistics():
    """Against finite differences of the squared error, and J^T J of torch's Jacobian; relu kinks are rare."""
    decoder = settled(dtype=DTYPE)
    before = copy.deepcopy(decoder.state_dict())
    x = pictures(2, DTYPE)
    target = Target(standard_normal(3, dtype=DTYPE), decoder, SquaredError(), x)
    target.check(3)
    z = torch.randn(4, 2, 3, dtype=DTYPE)
    point = target.at(z)
    assert torch.allclose(point.distortion, (decoder(z) - x).square().sum((2, 3, 4)))
    step = 1e-6 * torch.eye(3, dtype=DTYPE)
    for k in range(3):
        slope = (target.at(z + step[k]).distortion - target.at(z - step[k]).distortion) / 2e-6
        assert torch.allclose(slope, point.grad_distortion[..., k], rtol=1e-4, atol=1e-4)
    metric = curvature(target, z)
    for c in range(4):
        jacobian = torch.autograd.functional.jacobian(lambda code: decoder(code[None]).flatten(), z[c, 0])
        assert torch.allclose(metric[c, 0], 2 * jacobian.T @ jacobian)
    after = decoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_checkpoint_rebuilds_itself(tmp_path):
    decoder, arguments = settled(), {"latent_dim": 3, "width": 2}
    save_decoder(tmp_path / "a", decoder, architecture="dcgan", arguments=arguments, facts={})
    z = torch.randn(6, 3)
    assert torch.equal(load_decoder(tmp_path / "a").decoder(z), decoder(z))


# The discriminator


def test_discriminator_shows_what_its_activations_are_given():
    torch.manual_seed(0)
    discriminator = networks.Discriminator(2, "batch")
    logits, hidden = discriminator.examine(pictures(5))
    assert logits.shape == (5, 1)
    assert [tuple(h.shape) for h in hidden] == [(5, 2, 16, 16), (5, 4, 8, 8), (5, 8, 4, 4), (5, 16, 2, 2)]
    assert torch.equal(discriminator(pictures(5)), logits)
    last = nn.functional.leaky_relu(hidden[-1], 0.2).flatten(1)
    assert torch.allclose(logits, last @ discriminator.output.weight.T + discriminator.output.bias)


def test_batch_norm_of_the_discriminator_is_of_the_batch_also_in_evaluation():
    discriminator = networks.Discriminator(2, "batch")
    assert not list(discriminator.buffers())
    for mode in (True, False):
        hidden = discriminator.train(mode).examine(pictures(5))[1]
        for h, norm in zip(hidden[1:], discriminator.norms[1:], strict=True):
            assert torch.allclose(h.mean((0, 2, 3)), norm.bias, atol=1e-5)
    assert networks.Discriminator(2, "none").examine(pictures(5))[1][2].mean((0, 2, 3)).abs().max() > 0


def test_spectral_norm_makes_the_largest_singular_value_one():
    torch.manual_seed(0)
    discriminator = networks.Discriminator(2, "spectral")
    with torch.no_grad():
        for layer in [*discriminator.convolutions, discriminator.output]:
            layer.parametrizations.weight.original.mul_(100)
        for _ in range(200):  # each call is one step of the power iteration
            discriminator(pictures(1))
        discriminator.eval()
        for layer in [*discriminator.convolutions, discriminator.output]:
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2) == pytest.approx(1, abs=1e-3)
    discriminator(pictures(2)).sum().backward()
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def test_unknown_normalisation_and_regulariser_are_named():
    with pytest.raises(ValueError, match="unknown normalisation 'layer'; known: none, batch, spectral"):
        networks.Discriminator(2, "layer")
    wrong = replace(SETTINGS, regulariser={"name": "dropout"})
    message = "unknown regulariser 'dropout'; known: none, gradient_penalty, spectral_norm, bre"
    with pytest.raises(ValueError, match=message):
        dcgan.networks(networks, {"latent_dim": 3, "width": 2}, wrong)


# The penalties


def test_gradient_penalty_of_a_known_slope():
    """D(x) = a . x + |x|^2 / 2 has the slope a + x."""
    x, a = pictures(4, DTYPE), pictures(5, DTYPE)[4].requires_grad_()
    penalty = dcgan.gradient_penalty(
        lambda x: ((a * x).flatten(1).sum(1) + x.square().flatten(1).sum(1) / 2)[:, None], x
    )
    steepness = (a + x).detach().square().flatten(1).sum(1).sqrt()
    assert float(penalty.detach()) == pytest.approx(float((steepness - 1).square().mean()))
    (slope,) = torch.autograd.grad(penalty, a)
    share = ((steepness - 1) / steepness)[:, None, None, None]
    assert torch.allclose(slope, (2 * share * (a + x)).mean(0))


def test_bre_of_known_patterns():
    """16 units, whose soft sign of +-1 is +-1 / 1.001; correlations count above 3 / sqrt(16)."""
    sure = 1 / 1.001**2
    plus, half = torch.ones(16, dtype=DTYPE), torch.tensor([1.0, -1.0], dtype=DTYPE).repeat_interleave(8)

    def bre(*patterns):
        return float(dcgan.binarized_representation_entropy([torch.stack(patterns).reshape(-1, 4, 2, 2)]))

    assert bre(plus, plus) == pytest.approx(sure + sure - 0.75)  # no unit splits, one pattern
    assert bre(plus, -plus) == pytest.approx(0 + sure - 0.75)  # every unit splits; opposite is correlated as well
    assert bre(plus, half) == pytest.approx(sure / 2 + 0)  # half of the units split; no correlation
    assert bre(plus, plus, -plus, half) == pytest.approx(
        sure * (8 * (2 / 4) ** 2 + 8 * 0**2) / 16 + 6 * (sure - 0.75) / 12  # 3 of 6 pairs are alike
    )
    assert bre(plus) == pytest.approx(sure)  # one image has no pair
    two = dcgan.binarized_representation_entropy([torch.stack([plus, -plus]), torch.stack([plus, half])])
    assert float(two) == pytest.approx((bre(plus, -plus) + bre(plus, half)) / 2)


def test_bre_does_not_know_the_scale_and_teaches():
    """Down its gradient, units that all agree come to split the batch."""
    h = (torch.rand(16, 32, generator=torch.Generator().manual_seed(0), dtype=DTYPE) + 0.1).requires_grad_()
    first = dcgan.binarized_representation_entropy([h]).detach()
    assert dcgan.binarized_representation_entropy([1000 * h.detach()]) == pytest.approx(first.item())
    optimiser = torch.optim.Adam([h], lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        last = dcgan.binarized_representation_entropy([h])
        last.backward()
        optimiser.step()
    assert first > 1
    assert last < 0.1


# Training


def small(settings, n=36, **more):
    x = pictures(n)
    torch.manual_seed(3)
    players = dcgan.networks(networks, {"latent_dim": 3, "width": 2}, settings)
    return dcgan.train(*players, x, x[:7], settings, **more)


def leaves(result):
    """All of a result, bit by bit."""
    weights = {name: tensor.numpy().tobytes() for name, tensor in result.network.state_dict().items()}
    return weights, result.history, result.facts


def plain(settings, n=36):
    """The algorithm as one loop: nothing that stops or goes on."""
    x, name = pictures(n), settings.regulariser["name"]
    torch.manual_seed(3)
    decoder, discriminator = dcgan.networks(networks, {"latent_dim": 3, "width": 2}, settings)
    rate = {"lr": settings.learning_rate, "betas": tuple(settings.adam_betas), "fused": True}
    optimisers = [torch.optim.Adam(player.parameters(), **rate) for player in (discriminator, decoder)]
    n_steps = settings.epochs * math.ceil(n / settings.batch_size)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimiser, lambda t: (1 + math.cos(math.pi * t / n_steps)) / 2)
        for optimiser in optimisers
    ]
    generator, average, rows = torch.Generator().manual_seed(settings.seed), copy.deepcopy(decoder), []
    for _ in range(settings.epochs):
        totals = torch.zeros(3, dtype=DTYPE)
        for index in torch.randperm(n, generator=generator).split(settings.batch_size):
            fake = decoder(torch.randn(len(index), 3, generator=generator))
            logits = discriminator(x[index])
            drawn, hidden = discriminator.examine(fake.detach())
            loss = softplus(-logits).mean() + softplus(drawn).mean()
            penalty = torch.zeros(())
            if name == "gradient_penalty":
                share = torch.rand(len(index), 1, 1, 1, generator=generator)
                mixed = torch.lerp(fake.detach(), x[index], share).requires_grad_()
                (slope,) = torch.autograd.grad(discriminator(mixed).sum(), mixed, create_graph=True)
                penalty = (torch.linalg.vector_norm(slope.flatten(1), dim=1) - 1).square().mean()
                total = loss + 0.5 * penalty
            elif name == "bre":
                share = torch.rand(len(index), 1, 1, 1, generator=generator)
                mixed = discriminator.examine(torch.lerp(fake.detach(), x[index], share))[1]
                parts = [dcgan.binarized_representation_entropy(h[1:3]) for h in (hidden, mixed)]
                penalty = parts[0] + parts[1]
                total = loss + 0.5 * penalty
            else:
                total = loss
            optimisers[0].zero_grad()
            total.backward()
            optimisers[0].step()
            generator_loss = softplus(-discriminator(fake)).mean()
            optimisers[1].zero_grad()
            generator_loss.backward()
            optimisers[1].step()
            for scheduler in schedulers:
                scheduler.step()
            for kept, new in zip(average.parameters(), decoder.parameters(), strict=True):
                kept.data.lerp_(new.data, 1 - settings.averaging)
            totals += torch.stack([loss, generator_loss, penalty]).detach().double() * len(index)
        with torch.no_grad():
            average.settle(torch.randn(settings.batch_size, 3, generator=generator) for _ in range(3))
            fake = average(torch.randn(7, 3, generator=generator))
            discriminator.eval()
            measured = [float(discriminator(images).mean()) for images in (x[:7], x[:7], fake)]
            discriminator.train()
        n_losses = 3 if name in ("gradient_penalty", "bre") else 2
        rows.append([*(totals / n).tolist()[:n_losses], *measured])
    return rows, average


@pytest.mark.parametrize("name", REGULARISERS)
def test_training_computes_what_a_plain_loop_does(name):
    """To the bit, the last batch of an epoch smaller than the others included."""
    settings = replace(SETTINGS, regulariser=REGULARISERS[name])
    result = small(settings)
    rows, network = plain(settings)
    assert [list(row.values()) for row in result.history] == [[i, *row] for i, row in enumerate(rows, 1)]
    assert ("penalty" in result.history[0]) == ("weight" in REGULARISERS[name])
    assert leaves(result)[0] == {key: tensor.numpy().tobytes() for key, tensor in network.state_dict().items()}
    assert not result.network.training


class Killed(BaseException):
    """The process ends here: nobody catches this."""


@pytest.mark.parametrize("name", REGULARISERS)
def test_training_cut_at_random_steps_gives_the_same_bytes(tmp_path, name):
    settings = replace(SETTINGS, regulariser=REGULARISERS[name])
    whole, rng, cuts, result = small(settings), random.Random(1), 0, None
    while result is None:
        left = rng.randint(1, 5)

        def progress(done, total):
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed

        try:
            with Checkpoint(tmp_path, "key", every=0) as checkpoint:
                result = small(settings, checkpoint=checkpoint, progress=progress)
        except Killed:
            cuts += 1
    assert leaves(result) == leaves(whole)
    assert cuts >= 2


def test_training_stopped_by_a_signal_goes_on(tmp_path):
    def progress(done, total):
        if done == total // 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="SIGTERM"), Checkpoint(tmp_path, "key") as checkpoint:
        small(SETTINGS, checkpoint=checkpoint, progress=progress)
    with Checkpoint(tmp_path, "key") as checkpoint:
        result = small(SETTINGS, checkpoint=checkpoint)
    assert leaves(result) == leaves(small(SETTINGS))


@pytest.mark.parametrize("name", REGULARISERS)
def test_divergence_names_step_and_loss(name):
    settings = replace(SETTINGS, regulariser=REGULARISERS[name], learning_rate=1e30)
    message = r"training diverged in step 1 of 5 of epoch 1: discriminator_loss is .* is (inf|nan)"
    with pytest.raises(FloatingPointError, match=message):
        small(settings)


def test_seed_decides():
    assert leaves(small(SETTINGS)) != leaves(small(replace(SETTINGS, seed=2)))


def test_a_gan_learns_a_colour():
    """Images of one colour and noise: the mean colour of its samples, grey at the start.

    With a gradient penalty: batch normalisation hides from a discriminator what all images of a batch share. Over 9
    seeds, and 3 more with x moved by 1e-6, a colour was off by at most 0.10 of 0.3.
    """
    generator = torch.Generator().manual_seed(0)
    colour = torch.tensor([0.6, -0.6, 0.0])
    x = colour[:, None, None] + 0.2 * torch.randn(256, 3, 32, 32, generator=generator)
    settings = replace(
        SETTINGS, regulariser=REGULARISERS["gradient_penalty"], epochs=5, batch_size=16, learning_rate=0.004
    )
    torch.manual_seed(3)
    players = dcgan.networks(networks, {"latent_dim": 3, "width": 2}, settings)
    result = dcgan.train(*players, x, x[:64], settings)
    with torch.no_grad():
        drawn = result.network(torch.randn(200, 3, generator=generator)).mean((0, 2, 3))
    assert (drawn - colour).abs().max() < 0.3


# Settings and the command


@pytest.fixture(scope="module")
def params():
    return project_settings.read(ROOT / "params.yaml")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("regulariser", {"name": "dropout"}, "'dropout' is not one of none, gradient_penalty, spectral_norm, bre"),
        ("regulariser", {"name": "bre"}, "regulariser: 'weight' is a required property"),
        ("regulariser", {"name": "none", "weight": 1.0}, "regulariser.weight: not a setting of this kind of entry"),
        ("regulariser", {"name": "bre", "weight": -1.0}, "regulariser.weight: -1.0 is less than or equal to"),
        ("regulariser", "bre", "regulariser: 'bre' is not of type 'object'"),
        ("width", 0, "width: 0 is less than the minimum of 1"),
        ("width", None, "'width' is a required property"),
        ("hidden", [8], "unknown key 'hidden'; legal keys: dataset, architecture, latent_dim, width"),
        ("dataset", "mnist", "dataset: 'mnist' is not one of cifar10"),
        ("batch_size", 1, "batch_size: 1 is less than the minimum of 2"),
    ],
)
def test_wrong_settings_are_named(params, key, value, message):
    entry = params["models"]["cifar_dcgan10"] | {key: value}
    if value is None:
        del entry[key]
    params = params | {"models": {"m": entry}, "compositions": {}, "curves": {}, "repeats": {}, "closed_form": {}}
    params |= {"figures": {}, "claims": {}}
    with pytest.raises(SettingsError, match=message):
        project_settings.check(params)


def test_command_writes_checkpoint_history_and_picture(tmp_path):
    """At once, and cut after every step: the bytes are the same."""
    model = asdict(replace(SETTINGS, regulariser=REGULARISERS["gradient_penalty"], batch_size=20))
    model |= {"dataset": "cifar10", "architecture": "dcgan", "width": 2, "trainer": "dcgan", "dtype": "float32"}
    params = few_settings() | {"training": {"n_validation": 10, "split_seed": 6}}
    params["models"]["small"] = model
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    pixels = np.random.default_rng(0)
    for i in range(1, 6):
        (tmp_path / f"data_batch_{i}.bin").write_bytes(pixels.integers(0, 256, 10 * 3073, dtype=np.uint8).tobytes())
    outputs = [tmp_path / name for name in ("a.safetensors", "a.csv", "a.png")]
    command = ["train", "small", "--params", f"{tmp_path}/params.yaml", "--data", f"{tmp_path}"]
    command += [f"--{key}={path}" for key, path in zip(("output", "history", "samples"), outputs, strict=True)]
    main(command)
    loaded = load_decoder(outputs[0])
    assert loaded.facts["arguments"] == {"latent_dim": 3, "width": 2}
    assert loaded.facts["settings"] == model
    assert imread(outputs[2]).shape[:2] == (8 * 32, 8 * 32)
    header, *rows = outputs[1].read_text().splitlines()
    assert header == "epoch,discriminator_loss,generator_loss,penalty,training_logit,validation_logit,sample_logit"
    assert len(rows) == 2
    whole, code, n_cuts = [path.read_bytes() for path in outputs], 75, 0
    for path in outputs:
        path.unlink()
    while code == 75:
        try:
            main([*command, "--state", f"{tmp_path}/state", "--time-limit", "1e-6"])
            code = 0
        except SystemExit as stopped:
            code, n_cuts = stopped.code, n_cuts + 1
    assert code == 0
    assert n_cuts >= 4
    assert [path.read_bytes() for path in outputs] == whole
