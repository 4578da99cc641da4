"""A blurred decoder against scipy's filters."""

import numpy as np
import pytest
import torch
from problems import DTYPE
from scipy.ndimage import convolve
from torch import nn

from rdcurve.models.blurred import Blurred


def kernel(sigma):
    offset = np.arange(-2, 3)
    weights = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * sigma**2))
    return weights / weights.sum()


@pytest.mark.parametrize("side", [28, 3])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0, 5.0])  # the paper's
def test_blur_is_a_reflected_convolution(sigma, side):
    """scipy's "mirror" and numpy's "reflect" are the same: d c b | a b c d | c b a. scipy's "reflect" is another."""
    images = torch.rand(3, side**2, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    blurred = Blurred(nn.Identity(), sigma)(images).view(3, side, side).numpy()
    for image, result in zip(images.view(3, side, side).numpy(), blurred, strict=True):
        assert np.allclose(result, convolve(image, kernel(sigma), mode="mirror"), rtol=0, atol=1e-14)
        padded = np.pad(image, 2, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
        assert np.allclose(result, (windows * kernel(sigma)).sum((-2, -1)), rtol=0, atol=1e-14)
        if sigma >= 0.5:
            assert not np.allclose(result, convolve(image, kernel(sigma), mode="reflect"), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_leading_shape_in_the_type_of_the_decoder(dtype):
    decoder = nn.Sequential(nn.Linear(2, 784), nn.Sigmoid()).to(dtype)
    blurred = Blurred(decoder, 1.0)
    z = torch.randn(3, 2, 4, 2, dtype=dtype)
    images = blurred(z)
    assert (images.shape, images.dtype) == ((3, 2, 4, 784), dtype)
    assert torch.allclose(images[1, 0, 2], blurred(z[1, 0, 2]), atol=1e-6)
    assert images.std() < decoder(z).std()


def test_a_narrow_kernel_changes_nothing_and_a_constant_stays():
    images = torch.rand(3, 784, dtype=DTYPE)
    assert torch.allclose(Blurred(nn.Identity(), 0.1)(images), images, rtol=0, atol=1e-15)
    for sigma in (0.1, 1.0, 50.0):
        assert torch.allclose(Blurred(nn.Identity(), sigma)(torch.ones(784, dtype=DTYPE)), torch.ones(784, dtype=DTYPE))


def test_derivatives_are_the_blurred_ones():
    """The blur is linear: the derivative along a direction is the blurred derivative of the decoder."""
    decoder = nn.Sequential(nn.Linear(2, 784), nn.Tanh()).double()
    z, direction = torch.randn(2, 5, 2, dtype=DTYPE)
    plain, blurred = (torch.func.jvp(f, (z,), (direction,))[1] for f in (decoder, Blurred(decoder, 2.0)))
    assert torch.allclose(blurred, Blurred(nn.Identity(), 2.0)(plain))
    leaf = z.clone().requires_grad_()
    probe = torch.randn(5, 784, dtype=DTYPE)
    (gradient,) = torch.autograd.grad((Blurred(decoder, 2.0)(leaf) * probe).sum(), leaf)
    assert torch.allclose((gradient * direction).sum(), (blurred * probe).sum())


def test_bad_input_is_refused():
    for sigma in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="sigma must be positive, not"):
            Blurred(nn.Identity(), sigma)
    for n in (4, 30):
        with pytest.raises(ValueError, match=f"{n} pixels are no square image of 3 x 3 or more"):
            Blurred(nn.Identity(), 1.0)(torch.zeros(2, n))
