"""Products with packed weights: the values are torch's but for rounding, and a row is rounded alike in any company."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rdcurve.models.mlp import Decoder
from rdcurve.sampler import products
from rdcurve.sampler.distortion import SquaredError
from rdcurve.sampler.prior import standard_normal
from rdcurve.sampler.products import PackedProducts
from rdcurve.sampler.target import Target

needs_mkl = pytest.mark.skipif(not products._AVAILABLE, reason="this torch has no packed products of MKL")


@pytest.fixture
def packings(monkeypatch):
    """How often a weight was laid out."""
    made, reorder = [], products._reorder
    monkeypatch.setattr(products, "_reorder", lambda *arguments: made.append(1) or reorder(*arguments))
    return made


def wide(dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 300), nn.Tanh(), nn.Linear(300, 256, bias=bias), nn.Sigmoid()).to(dtype)


def value_and_slope(network, z):
    z = z.clone().requires_grad_()
    y = network(z)
    return y.detach(), torch.autograd.grad((y**2).sum(), z)[0]


@needs_mkl
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_slopes_are_those_of_torch_in_float64(bias, packings):
    """As near as torch's own float32, with and without a batch dimension more, and packed once for all calls."""
    network, exact, z = wide(bias=bias), wide(torch.float64, bias), torch.randn(1, 48, 5)
    for _ in range(3):
        with PackedProducts():
            packed = value_and_slope(network, z)
        assert len(packings) == 2  # forward and back, once
    for found, right in zip(packed, value_and_slope(exact, z.double()), strict=True):
        assert torch.allclose(found.double(), right, rtol=0, atol=2e-6 * float(right.abs().max()))


@needs_mkl
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.mul_(2),
        lambda layer: setattr(layer.weight, "data", 2 * layer.weight.data),
        lambda layer: layer.load_state_dict({"weight": 2 * layer.weight, "bias": layer.bias}),
        lambda layer: setattr(layer, "weight", nn.Parameter(2 * layer.weight)),
    ],
    ids=["in place", "another storage", "loaded", "another parameter"],
)
def test_a_changed_weight_is_packed_again(change):
    layer, x = nn.Linear(256, 256).requires_grad_(False), torch.randn(16, 256)
    with PackedProducts():
        before = layer(x)
        change(layer)
        after = layer(x)
    assert torch.allclose(after - layer.bias, 2 * (before - layer.bias), atol=1e-5)


@needs_mkl
def test_a_weight_changed_behind_its_back_counts_from_the_next_check_on():
    """`weight.data.copy_`, as in many an average of weights, leaves no trace. Each measurement begins with a check."""
    torch.manual_seed(0)
    decoder = Decoder(3, 784, [96], "tanh").eval().requires_grad_(False)
    target, z = Target(standard_normal(3), decoder, SquaredError(), torch.rand(4, 784)), torch.randn(7, 4, 3)
    target.at(z)
    for parameter in decoder.parameters():
        parameter.data.mul_(0.5)
    target.check(3)
    assert torch.allclose(target.at(z).distortion, target.distortions(z), rtol=1e-6)


@needs_mkl
def test_calls_of_other_shapes_are_right_too(packings):
    """And a layer that one call uses with several is packed once for each."""
    layer = nn.Linear(256, 300).requires_grad_(False)
    for rows in (16, 1, 48, 16, 1, 48):
        x = torch.randn(rows, 256)
        with PackedProducts():
            assert torch.allclose(layer(x), x @ layer.weight.T + layer.bias, atol=1e-5)
    assert len(packings) == 6


def test_what_is_not_worth_it_or_does_not_fit_is_left_to_torch(packings):
    """Small layers, float64, weights and biases that are made anew in each call; and torch's own errors."""
    x, layer = torch.randn(16, 256), nn.Linear(256, 256)
    with PackedProducts():
        nn.Linear(256, 255)(x)
        nn.Linear(256, 256).double()(x.double())
        F.linear(x, torch.randn(256, 256), None)
        F.linear(x, layer.weight, x)
        F.linear(x, layer.weight, x[0])
        F.linear(torch.randn(2, 1 << 16), nn.Parameter(torch.randn(1 << 16)), None)
        F.linear(x, weight=layer.weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            nn.Linear(300, 300)(x)
        with pytest.raises(RuntimeError, match="same dtype"):
            layer(x.double())
    assert not packings


class Conditional(nn.Module):
    """A bias that depends on z."""

    def __init__(self):
        super().__init__()
        self.hidden, self.shift, self.layer = nn.Linear(3, 300), nn.Linear(3, 300), nn.Linear(300, 300)

    def forward(self, z):
        return F.linear(self.hidden(z).tanh(), self.layer.weight, self.shift(z))


class Descending(nn.Module):
    """A gradient step inside."""

    def __init__(self):
        super().__init__()
        self.first, self.energy = nn.Linear(3, 300), nn.Sequential(nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 300))

    def forward(self, z):
        with torch.enable_grad():
            y = self.first(z) if z.requires_grad else self.first(z).requires_grad_()
            (step,) = torch.autograd.grad((self.energy(y) ** 2).sum(), y, create_graph=True)
        return y - step


def mapped(network):
    return lambda z: torch.vmap(network)(z.flatten(0, -2)).unflatten(0, z.shape[:-1])


def plain(width):
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 300))


def tangents(network):
    """Of f along (1, 1, 1), by forward mode: what some decoders compute inside."""
    return lambda z: torch.func.jvp(network, (z,), (torch.ones_like(z),))[1]


@pytest.mark.parametrize(
    "made",
    [
        Conditional,
        Descending,
        lambda: mapped(plain(300)),
        lambda: tangents(plain(300)),
        lambda: torch.compile(plain(300), backend="eager", fullgraph=True),
        lambda: nn.utils.parametrizations.weight_norm(plain(300)[2], dim=0),
        lambda: nn.DataParallel(plain(300)),
    ],
    ids=["conditional bias", "gradient inside", "vmap", "jvp", "compiled", "weight norm", "data parallel"],
)
def test_any_decoder_keeps_its_values_and_slopes(made):
    torch.manual_seed(0)
    decoder = made()
    n_codes = 300 if getattr(decoder, "in_features", 3) == 300 else 3
    prior, x = standard_normal(n_codes), torch.rand(4, 300)
    target, z = Target(prior, decoder, SquaredError(), x), torch.randn(5, 4, n_codes)
    target.check(n_codes)
    point = target.at(z)
    z = z.requires_grad_()
    distortion = SquaredError()(x, decoder(z))
    (slope,) = torch.autograd.grad(distortion.sum(), z)
    assert torch.allclose(point.distortion, distortion, rtol=1e-5)
    assert torch.allclose(point.grad_distortion, slope, rtol=0, atol=1e-5 * float(slope.abs().max()))


def test_without_mkl_torch_multiplies(monkeypatch, packings):
    monkeypatch.setattr(products, "_AVAILABLE", False)
    network, z = wide(), torch.randn(16, 5)
    with PackedProducts():
        found = value_and_slope(network, z)
    assert not packings
    assert all(torch.equal(a, b) for a, b in zip(found, value_and_slope(network, z), strict=True))


def test_a_weight_that_is_gone_leaves_no_copy():
    layer = nn.Linear(256, 256)
    with PackedProducts():
        layer(torch.randn(16, 256))
    assert layer.weight in products._packed or not products._AVAILABLE
    before = len(products._packed)
    del layer
    assert len(products._packed) < before or not products._AVAILABLE


def rounded_alike():
    """Rows of a tile of the paper's decoder, shuffled, and all the same: how many differ from what they are alone."""
    torch.manual_seed(0)
    decoder = Decoder(10, 784, [1024, 1024, 1024], "tanh").eval().requires_grad_(False)
    target = Target(standard_normal(10), decoder, SquaredError(), torch.rand(3, 784))
    n, image = target.tile, torch.arange(target.tile) % 3
    z, order = torch.randn(n, 10), torch.randperm(n)
    distortion, slope = target._of_tile(z, image, True)
    shuffled = target._of_tile(z[order], image[order], True)
    alike = target._of_tile(z[:1].expand(n, -1), image[:1].expand(n), True)
    differ = (shuffled[0] != distortion[order]) | (shuffled[1] != slope[order]).any(-1)
    return int((differ | (alike[0] != distortion[0]) | (alike[1] != slope[0]).any(-1)).sum())


@pytest.mark.parametrize("instructions", ["SSE4_2", "AVX2", "AVX512"])
def test_a_row_is_rounded_alike_wherever_it_stands(instructions):
    """Reproducibility rests on it. MKL computes what its blocks leave over in another way: with AVX2 8 of 200 rows.

    MKL and torch are told to use no more of the processor than other machines have.
    """
    torch_too = {"SSE4_2": "default", "AVX2": "avx2", "AVX512": "avx512"}[instructions]
    env = os.environ | {"MKL_ENABLE_INSTRUCTIONS": instructions, "ATEN_CPU_CAPABILITY": torch_too}
    code = "import test_products; print('differ:', test_products.rounded_alike())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=os.path.dirname(__file__), capture_output=True, text=True
    )
    assert done.stdout == "differ: 0\n", done.stdout + done.stderr


@needs_mkl
def test_a_decoder_is_called_with_packed_weights_when_the_sampler_moves_chains(packings):
    """And its slope is that of autograd in float64."""
    torch.manual_seed(0)
    decoder = Decoder(3, 784, [96], "tanh").eval().requires_grad_(False)
    target = Target(standard_normal(3), decoder, SquaredError(), torch.rand(4, 784))
    point = target.at(torch.randn(7, 4, 3))
    assert len(packings) == 2
    z = point.z.double().requires_grad_()
    decoder.double()
    distortion = SquaredError()(target.x.double(), decoder(z))
    (slope,) = torch.autograd.grad(distortion.sum(), z)
    assert torch.allclose(point.distortion, distortion, rtol=1e-6)
    assert torch.allclose(point.grad_distortion.double(), slope, rtol=0, atol=3e-6 * float(slope.abs().max()))
