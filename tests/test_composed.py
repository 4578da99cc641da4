"""The feature network, and decoders seen through it: parts, files, and BDMC in feature space."""

import argparse
from math import log

import pytest
import torch
from problems import DTYPE, threshold
from torch.nn.functional import conv2d, max_pool2d

from rdcurve.commands import compose as command
from rdcurve.commands.compose import compose
from rdcurve.files import FileError
from rdcurve.models import checkpoint, cnn, featured, linear, mlp
from rdcurve.models.checkpoint import load_classifier, load_decoder, save_decoder
from rdcurve.sampler.ais import Groups
from rdcurve.sampler.bdmc import bdmc, simulate
from rdcurve.sampler.distortion import SquaredError
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.metric import curvature
from rdcurve.sampler.prerun import PrerunSettings, tune
from rdcurve.sampler.prior import standard_normal
from rdcurve.sampler.schedule import sigmoid
from rdcurve.sampler.target import Target

MLP = {"latent_dim": 3, "n_pixels": 784, "hidden": [16], "activation": "tanh"}
LINEAR = {"latent_dim": 2, "n_pixels": 784}


@pytest.fixture
def files(tmp_path):
    torch.manual_seed(0)
    decoder, classifier = mlp.Decoder(**MLP), cnn.Classifier()
    save_decoder(
        tmp_path / "decoder", decoder, architecture="mlp", arguments=MLP, facts={"dataset": "mnist", "name": "vae3"}
    )
    save(tmp_path / "classifier", classifier)
    return tmp_path, decoder, classifier


def save(path, classifier, dataset="mnist", n_classes=10):
    facts = {"dataset": dataset, "name": "digits"}
    save_decoder(path, classifier, architecture="cnn", arguments={"n_classes": n_classes}, facts=facts)


def test_classifier_is_its_description():
    torch.manual_seed(0)
    classifier = cnn.Classifier().double()
    assert sum(parameter.numel() for parameter in classifier.parameters()) == 520 + 25_050 + 8_010
    x = torch.rand(4, 784, dtype=DTYPE)
    weights = classifier.state_dict()
    first = max_pool2d(conv2d(x.view(4, 1, 28, 28), weights["first.weight"], weights["first.bias"]).relu(), 2)
    second = conv2d(first, weights["second.weight"], weights["second.bias"]).relu()
    assert second.shape == (4, 50, 8, 8)
    assert torch.allclose(classifier.features(x), second.flatten(1))
    logits = max_pool2d(second, 2).flatten(1) @ weights["output.weight"].T + weights["output.bias"]
    assert torch.allclose(classifier(x), logits)


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 1, 3)])
def test_any_leading_shape(lead):
    torch.manual_seed(0)
    classifier = cnn.Classifier(n_classes=7)
    x = torch.rand(*lead, 784)
    assert classifier.features(x).shape == (*lead, classifier.n_features)
    assert classifier(x).shape == (*lead, 7)
    decoder = featured.Decoder(3, **description(), classifier={"architecture": "cnn", "arguments": {}})
    assert decoder(torch.randn(*lead, 3)).shape == (*lead, 3200)
    if lead == (2, 3):
        assert torch.allclose(classifier(x)[1, 2], classifier(x[1, 2]), atol=1e-6)
        assert torch.allclose(classifier.features(x)[1, 2], classifier.features(x[1, 2]), atol=1e-6)


def description(architecture="mlp", arguments=MLP):
    return {"decoder": {"architecture": architecture, "arguments": arguments}}


def test_composed_checkpoint_is_its_parts(files):
    folder, decoder, classifier = files
    compose(folder / "decoder", folder / "classifier", folder / "composed")
    loaded = load_decoder(folder / "composed")
    z, x = torch.randn(2, 5, 3), torch.rand(4, 784)
    assert torch.equal(loaded.decoder(z), classifier.features(decoder(z)))
    assert torch.equal(loaded.decoder.observe(x), classifier.features(x))
    assert (loaded.latent_dim, loaded.dtype) == (3, torch.float32)
    assert loaded.facts["dataset"] == "mnist"
    assert loaded.facts["parts"] == {"decoder": "vae3", "classifier": "digits"}
    assert not any(parameter.requires_grad for parameter in loaded.decoder.parameters())


def test_command_writes_the_same_under_its_name(files, capsys):
    folder, _, _ = files
    compose(folder / "decoder", folder / "classifier", folder / "composed")
    checked = []
    paths = {"decoder": folder / "decoder", "features": folder / "classifier", "output": folder / "named"}

    class Guard:
        def check(self):
            checked.append((folder / "named").exists())

    command.run(argparse.Namespace(name="vae3_features", guard=Guard(), **paths), {})
    assert checked == [False]  # before anything is written
    loaded, plain = load_decoder(folder / "named"), load_decoder(folder / "composed")
    assert loaded.facts == {"name": "vae3_features", **plain.facts}
    assert capsys.readouterr().out == "vae3_features: images of vae3, seen by digits\n"
    z = torch.randn(4, 3)
    assert torch.equal(loaded.decoder(z), plain.decoder(z))
    command.run(argparse.Namespace(name="vae3_features", guard=Guard(), **paths | {"output": folder / "again"}), {})
    assert (folder / "again").read_bytes() == (folder / "named").read_bytes()


def test_the_decoder_says_in_which_type_both_are_kept(files):
    folder, _, classifier = files
    decoder = linear.Decoder(**LINEAR).double()
    save_decoder(folder / "linear", decoder, architecture="linear", arguments=LINEAR, facts={"dataset": "mnist"})
    compose(folder / "linear", folder / "classifier", folder / "composed")
    loaded = load_decoder(folder / "composed")
    z = torch.randn(4, 2, dtype=DTYPE)
    assert loaded.dtype == DTYPE
    assert torch.allclose(loaded.decoder(z), classifier.double().features(decoder(z)))


def test_a_classifier_of_other_classes_goes_round(files):
    folder, decoder, _ = files
    classifier = cnn.Classifier(n_classes=4)
    save(folder / "classifier", classifier, n_classes=4)
    loaded = load_classifier(folder / "classifier")
    x = torch.rand(5, 784)
    assert torch.equal(loaded.classifier(x), classifier(x))
    assert (loaded.dtype, loaded.facts["name"], loaded.classifier.training) == (torch.float32, "digits", False)
    compose(folder / "decoder", folder / "classifier", folder / "composed")
    z = torch.randn(5, 3)
    assert torch.equal(load_decoder(folder / "composed").decoder(z), classifier.features(decoder(z)))


def test_code_of_every_part_is_in_the_hash(files, monkeypatch):
    """A change of the inner decoder's or the classifier's code is a change of the model; of other code it is not."""
    folder, _, _ = files
    digest = checkpoint._source_sha256

    def of(name):
        return load_decoder(folder / name).facts["code_sha256"]

    compose(folder / "decoder", folder / "classifier", folder / "composed")
    before, alone = of("composed"), of("decoder")
    network = load_decoder(folder / "composed").decoder
    for module, part in ((mlp, True), (cnn, True), (featured, True), (linear, False)):
        changed = folder / "changed.py"
        changed.write_text(f"# {module.__name__}")
        with monkeypatch.context() as patch:
            patch.setattr(module, "__file__", str(changed))
            assert (digest(featured, network) != before) == part
            assert (digest(mlp, network.decoder) != alone) == (module is mlp)


def test_files_that_do_not_go_together_are_refused(files):
    folder, _, _ = files

    def refused(decoder, classifier, message):
        with pytest.raises(FileError, match=message):
            compose(folder / decoder, folder / classifier, folder / "composed")
        assert not (folder / "composed").exists()

    refused("classifier", "classifier", "classifier: the decoder cannot be rebuilt: 'cnn' is not the architecture of a")
    refused("decoder", "decoder", "decoder: the classifier cannot be rebuilt: 'mlp' is not the architecture of a class")
    refused("decoder", "nowhere", "nowhere: no such file")
    save(folder / "other", cnn.Classifier(), dataset="cifar10")
    refused("decoder", "other", "other: trained on cifar10, but .*decoder on mnist")
    small = {"latent_dim": 2, "n_pixels": 100}
    save_decoder(
        folder / "small", linear.Decoder(**small), architecture="linear", arguments=small, facts={"dataset": "mnist"}
    )
    refused("small", "classifier", "small: its images do not fit .*classifier")


def test_a_contradictory_description_is_refused():
    good = {"architecture": "cnn", "arguments": {}}
    with pytest.raises(ValueError, match="latent_dim is 4, but that of the decoder of images is 3"):
        featured.Decoder(4, **description(), classifier=good)
    with pytest.raises(ValueError, match="'cnn' is not the architecture of a decoder"):
        featured.Decoder(3, **description("cnn", {"latent_dim": 3}), classifier=good)
    with pytest.raises(ValueError, match="unknown architecture 'blurred'; known: cnn, dcgan, featured, linear, mlp"):
        featured.Decoder(3, **description(), classifier={"architecture": "blurred", "arguments": {}})


def toy(n_images=3):
    """Two-dimensional codes, features of faint pictures, so that a beta of 1 is already informative."""
    torch.manual_seed(1)
    decoder = featured.Decoder(
        2, **description("linear", LINEAR), classifier={"architecture": "cnn", "arguments": {}}
    ).double()
    with torch.no_grad():
        decoder.decoder.output.weight *= 0.3
    decoder.requires_grad_(False)
    x = decoder.observe(torch.rand(n_images, 784, dtype=DTYPE))
    return Target(standard_normal(2, DTYPE), decoder, SquaredError(), x)


def test_gradient_and_curvature_through_the_features():
    """Against differences of f64 evaluations; the features are piecewise linear, their kinks rare."""
    target = toy()
    target.check(2)
    z = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(2), dtype=DTYPE)
    step = 1e-6
    shifts = [torch.tensor(axis, dtype=DTYPE) * step for axis in ([1, 0], [0, 1])]
    gradient = torch.stack([(target.distortions(z + s) - target.distortions(z - s)) / (2 * step) for s in shifts], -1)
    assert torch.allclose(target.at(z).grad_distortion, gradient, rtol=1e-4, atol=1e-5)
    jacobian = torch.stack([(target.decoder(z + s) - target.decoder(z - s)) / (2 * step) for s in shifts], -1)
    assert torch.allclose(curvature(target, z), 2 * jacobian.mT @ jacobian, rtol=1e-4, atol=1e-4)


def test_an_image_gives_the_same_features_in_any_company():
    """To the bit, wherever it stands among 208, the rows of a tile: the sampler's reproducibility rests on it."""
    torch.manual_seed(0)
    classifier = cnn.Classifier()
    x = torch.rand(208, 784)
    order = torch.randperm(208)
    assert torch.equal(classifier.features(x)[order], classifier.features(x[order]))
    assert torch.equal(classifier.features(x[:1].expand(208, -1))[17], classifier.features(x)[0])


@pytest.mark.slow
def test_bdmc_in_feature_space_encloses():
    """x simulated as phi(f(z)) + noise: lower <= log Z by quadrature <= upper, means over 25 x.

    False-fail rate 1e-6 over 2 comparisons; detects 0.5 nats on the wrong side.
    """
    target, kernel, betas = toy(), Kernel(2, 0.2, 0.3), sigmoid(30, 0.5, 3.0)
    simulated = simulate(target, betas, [29], 25, seed=3)
    x = simulated.target.x
    assert x.shape == (25, 3200)
    tuning = tune(simulated.target, betas, kernel, PrerunSettings(n_chains=2, n_blocks=2), Groups())
    result = bdmc(simulated, tuning, kernel, n_chains=5, seed=21)
    axis = torch.linspace(-6, 6, 61, dtype=DTYPE)
    z = torch.cartesian_prod(axis, axis)
    log_cell = target.prior.log_prob(z) + 2 * log(float(axis[1] - axis[0]))
    with torch.no_grad():
        features = target.decoder(z)
    log_z = log_cell[:, None] - 0.5 * torch.cdist(features, x, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    log_z = log_z.logsumexp(0)
    for slack in (log_z - result.lower[0], result.upper[0] - log_z):
        error = float(slack.std()) / 5
        assert float(slack.mean()) > -1.5 * threshold(2) * error  # 1.5: Student's t with 24 degrees of freedom
        assert error < 0.06
