"""SSIM and MS-SSIM against their definitions written out, and what the sampler asks of a distortion."""

from math import exp, log

import numpy as np
import pytest
import torch
from problems import DTYPE, threshold

import rdcurve
from rdcurve.sampler.metric import curvature
from rdcurve.sampler.prerun import PrerunSettings
from rdcurve.sampler.prior import standard_normal
from rdcurve.sampler.target import Target
from rdcurve.similarity import MSSSIM, SSIM

BOTH = pytest.mark.parametrize("distortion", [SSIM(), MSSSIM()], ids=["ssim", "ms_ssim"])
WEIGHTS = np.array([0.0448, 0.2856, 0.3001])  # Wang et al. 2003, the first three of five


def pictures(n, seed=0, shape=(784,)):
    """Smooth random images in (0, 1), float64."""
    generator = torch.Generator().manual_seed(seed)
    side = 28 if len(shape) == 1 else shape[-1]
    coarse = torch.randn(n, *shape[:-2], side // 4, side // 4, generator=generator, dtype=DTYPE)
    fine = torch.nn.functional.interpolate(coarse.reshape(-1, 1, side // 4, side // 4), side, mode="bicubic")
    return fine.reshape(n, *shape).sigmoid()


def noisy(x, scale, seed=1):
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)
    return (x + scale * noise).clamp(0, 1)


def by_definition(x, f, size, intensities):
    """Means of l c and of c over all windows, one after another: [height, width] numpy images."""
    offset = np.arange(size) - size // 2
    window = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * intensities) ** 2, (0.03 * intensities) ** 2
    both, contrast = [], []
    for i in range(x.shape[0] - size + 1):
        for j in range(x.shape[1] - size + 1):
            a, b = (image[i : i + size, j : j + size].astype(np.longdouble) for image in (x, f))
            m_a, m_b = (window * a).sum(), (window * b).sum()
            s_aa, s_bb = (window * (a - m_a) ** 2).sum(), (window * (b - m_b) ** 2).sum()
            s_ab = (window * (a - m_a) * (b - m_b)).sum()
            contrast.append((2 * s_ab + c2) / (s_aa + s_bb + c2))
            both.append((2 * m_a * m_b + c1) / (m_a**2 + m_b**2 + c1) * contrast[-1])
    return np.mean(both), np.mean(contrast)


def scales(x, f):
    """Mean of l c, and of c, at 28, 14 and 7 pixels."""
    x, f = x.reshape(28, 28), f.reshape(28, 28)
    for _ in range(3):
        yield by_definition(x, f, 7, 1.0)
        x, f = (image.reshape(len(image) // 2, 2, -1, 2).mean((1, 3)) if len(image) > 7 else image for image in (x, f))


@pytest.mark.parametrize(("shape", "low"), [((784,), 0.0), ((3, 32, 32), -1.0), ((12, 15), 0.0)])
def test_ssim_is_its_definition(shape, low):
    scale = 1 - low
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0), dtype=DTYPE)
    f = torch.stack([noisy(x, s) for s in (0.05, 1.0)])
    result = SSIM(low=low)(x * scale + low, f * scale + low)
    assert (result.shape, result.dtype) == ((2, 2), DTYPE)
    image = (28, 28) if len(shape) == 1 else shape[-2:]
    for c in range(2):
        for i in range(2):
            channels = zip(*(scale * v.reshape(-1, *image).numpy() for v in (x[i], f[c, i])), strict=True)
            expected = np.mean([1 - by_definition(a, b, 11, scale)[0] for a, b in channels])
            assert abs(float(result[c, i]) - float(expected)) < 1e-12


def test_ms_ssim_is_its_definition():
    x = pictures(2)
    f = torch.stack([noisy(x, s) for s in (0.02, 0.3)])
    result = MSSSIM()(x, f)
    assert (result.shape, result.dtype) == ((2, 2), DTYPE)
    for c in range(2):
        for i in range(2):
            values = list(scales(x[i].numpy(), f[c, i].numpy()))
            terms = np.array([values[0][1], values[1][1], values[2][0]])
            assert terms.min() > 0.01  # where the published formula holds
            expected = 1 - np.prod(terms ** (WEIGHTS / WEIGHTS.sum()))
            assert abs(float(result[c, i]) - float(expected)) < 1e-12


def test_ms_ssim_goes_on_below_zero():
    """A negative has negative contrast at every scale: log t is reflected in the point at 0.01 there."""
    x = pictures(1)
    values = list(scales(x[0].numpy(), 1 - x[0].numpy()))
    terms = [values[0][1], values[1][1], values[2][0]]
    assert max(terms) < 0
    reflected = sum(w * (2 * log(0.01) - log(0.02 - t)) for w, t in zip(WEIGHTS / WEIGHTS.sum(), terms, strict=True))
    assert abs(float(MSSSIM()(x, 1 - x[None])) - (1 - exp(reflected))) < 1e-12


def test_ms_ssim_is_smooth_where_contrast_turns_negative():
    """From a picture to its negative: d increases all the way, and its slope never jumps or ends."""
    x = pictures(1)
    t = torch.linspace(0, 1, 2001, dtype=DTYPE)[:, None, None].requires_grad_()
    d = MSSSIM()(x, (1 - t) * x + t * (1 - x))
    (slope,) = torch.autograd.grad(d.sum(), t)
    d, slope = d.detach().flatten(), slope.flatten()
    assert slope.isfinite().all()
    assert (d.diff() > 0).all()
    assert (d < 1).all()
    assert torch.allclose(d.diff(), (slope[1:] + slope[:-1]) / 2 / 2000, rtol=0.05, atol=1e-9)


@BOTH
def test_symmetric_zero_and_bounded(distortion):
    x = torch.cat([pictures(4), torch.rand(4, 784, dtype=DTYPE), torch.zeros(1, 784), torch.ones(1, 784)])
    assert not distortion(x, x[None]).any()
    f = torch.stack([x.roll(shift, 0) for shift in range(1, len(x))] + [1 - x])
    d = distortion(x, f)
    assert torch.allclose(d, torch.stack([distortion(each, x[None])[0] for each in f]), rtol=0, atol=1e-14)
    assert (d > 1e-3).all()
    assert (d <= (2 if isinstance(distortion, SSIM) else 1)).all()


@BOTH
def test_chains_and_images_do_not_mix(distortion):
    """To the bit, wherever an image stands among 208, the rows of a tile: the sampler's reproducibility rests on it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(208, 784, generator=generator)
    f = torch.rand(3, 208, 784, generator=generator)
    d = distortion(x, f)
    for c in range(3):
        assert torch.allclose(d[c], distortion(x, f[c : c + 1])[0], rtol=0, atol=1e-14)
    order = torch.randperm(208, generator=generator)
    tile, shuffled = distortion(x, f[:1]), distortion(x[order], f[:1, order])
    assert torch.equal(shuffled, tile[:, order])


@BOTH
def test_float32_reconstructions_lose_nothing(distortion):
    """beta d is right to 0.01 nats at 1e4 if d has six digits: it has ten, also where the images nearly agree."""
    x = pictures(1).float()
    for scale in (1e-4, 1e-2, 0.3):
        f = noisy(x.double(), scale).float()
        d = float(distortion(x, f[None]))
        values = list(scales(x[0].double().numpy(), f[0].double().numpy()))
        if isinstance(distortion, SSIM):
            images = (v[0].double().numpy().reshape(28, 28) for v in (x, f))
            expected = 1 - by_definition(*images, 11, 1.0)[0]
        else:
            terms = [values[0][1], values[1][1], values[2][0]]
            logs = [w * np.log(t) for w, t in zip(WEIGHTS / WEIGHTS.sum(), terms, strict=True)]
            expected = -np.expm1(sum(logs))
        assert abs(d / float(expected) - 1) < 1e-10


@BOTH
@pytest.mark.parametrize("negative", [False, True])
def test_derivatives(distortion, negative):
    """Reverse, forward, and forward over reverse, as the sampler and its metric take them, against differences."""
    x = pictures(2)
    f = (1 - x if negative else noisy(x, 0.1))[None]
    direction = torch.randn(f.shape, generator=torch.Generator().manual_seed(3), dtype=DTYPE)

    def slope(f):
        return torch.func.grad(lambda r: distortion(x, r).sum())(f)

    def difference(function, step=1e-5):
        return (function(f + step * direction) - function(f - step * direction)) / (2 * step)

    leaf = f.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distortion(x, leaf).sum(), leaf)
    assert torch.equal(gradient, slope(f))
    along = difference(lambda f: distortion(x, f))
    scale = float(along.abs().max())
    assert torch.allclose((gradient * direction).sum(-1), along, rtol=1e-5, atol=1e-7 * scale)
    forward = torch.func.jvp(lambda f: distortion(x, f), (f,), (direction,))[1]
    assert torch.allclose(forward, (gradient * direction).sum(-1), rtol=1e-10)
    second = torch.func.jvp(slope, (f,), (direction,))[1]
    expected = difference(slope)
    assert torch.allclose(second, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@BOTH
def test_no_nan_on_any_image(distortion):
    flat = torch.stack([torch.zeros(784), torch.ones(784), torch.full((784,), 0.5)])
    board = (torch.arange(28)[:, None] + torch.arange(28)).remainder(2).flatten().float()[None]
    x = torch.cat([flat, board, 1 - board, pictures(2).float(), 1 - pictures(2).float()])
    f = x[:, None].expand(-1, len(x), -1).clone().requires_grad_()
    d = distortion(x, f)
    (gradient,) = torch.autograd.grad(d.sum(), f)
    assert d.isfinite().all()
    assert gradient.isfinite().all()
    second = torch.func.jvp(torch.func.grad(lambda r: distortion(x, r).sum()), (f.detach(),), (f.detach() - 0.3,))[1]
    assert second.isfinite().all()


def decoder(z):
    """2-D codes to smooth pictures of 14 x 14 pixels."""
    grid = torch.linspace(-1, 1, 14, dtype=z.dtype)
    a, b = z[..., 0, None, None], z[..., 1, None, None]
    return torch.sigmoid(3 * torch.sin(2 * grid[:, None] + a) * torch.cos(3 * grid + 0.7 * b) - a * b * grid).flatten(
        -2
    )


@BOTH
def test_curvature_is_that_of_the_reconstruction(distortion):
    """J^T H J of the Gauss-Newton metric, J and H by differences. At x = f it is the whole Hessian in z."""
    z = torch.tensor([[[0.4, -0.7]], [[-0.3, 0.2]]], dtype=DTYPE)
    x = decoder(z[0])
    matrices = curvature(Target(standard_normal(2, DTYPE), decoder, distortion, x), z)
    step = 1e-4

    def hessian(of, at, directions):
        return torch.stack(
            [
                torch.stack(
                    [sum(s * t * of(at + step * (s * u + t * v)) for s in (-1, 1) for t in (-1, 1)) for v in directions]
                )
                for u in directions
            ]
        ) / (4 * step**2)

    axes = torch.eye(2, dtype=DTYPE)
    for c in range(2):
        at = z[c, 0]
        jacobian = [(decoder(at + step * u) - decoder(at - step * u)) / (2 * step) for u in axes]
        expected = hessian(lambda f: distortion(x, f[None, None])[0, 0], decoder(at), jacobian)
        assert torch.allclose(matrices[c, 0], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    whole = hessian(lambda z: distortion(x, decoder(z)[None, None])[0, 0], z[0, 0], axes)
    assert torch.allclose(matrices[0, 0], whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


@BOTH
def test_measured_curve_against_quadrature(distortion):
    """The public API, 10 betas x 3 quantities. False-fail rate 1e-6; detects 0.5 nats of rate, 0.25 of log Z."""
    x = torch.cat(
        [decoder(torch.tensor([[0.8, -0.5]], dtype=DTYPE)), decoder(torch.tensor([[-1.2, 1.0]], dtype=DTYPE))]
    )
    x = noisy(x, 0.1)
    curve = rdcurve.measure(
        decoder,
        x,
        latent_dim=2,
        beta_max=30.0,
        distortion=distortion,
        n_temperatures=100,
        n_recorded=10,
        n_chains=256,
        prerun_settings=PrerunSettings(n_rounds=1, round_temperatures=50, n_blocks=5, n_starts=0),
    )
    axis = torch.linspace(-7, 7, 281, dtype=DTYPE)
    z = torch.cartesian_prod(axis, axis)
    log_cell = standard_normal(2, DTYPE).log_prob(z) + 2 * log(float(axis[1] - axis[0]))
    d = torch.cat([distortion(x, decoder(part)[:, None].expand(-1, 2, -1)) for part in z.split(8192)])
    worst = 0.0
    for k, beta in enumerate(curve.beta):
        log_mass = log_cell[:, None] - beta * d
        log_z = log_mass.logsumexp(0)
        mean_d = ((log_mass - log_z).exp() * d).sum(0)
        for quantity, exact in (("log_z", log_z), ("distortion", mean_d), ("rate", -log_z - beta * mean_d)):
            error = curve.mean(quantity)[k] - float(exact.mean())
            worst = max(worst, abs(error) / curve.standard_error(quantity, "chains")[k])
    assert worst < 1.2 * threshold(30)  # 1.2: Student's t of a jackknife over 32 groups and two images
    assert curve.standard_error("rate", "chains").max() < 0.08
    assert curve.mean("rate")[-1] > 2  # the posterior is narrow by then


@BOTH
def test_nothing_can_be_simulated_from_it(distortion):
    assert not isinstance(distortion, rdcurve.SamplableDistortion)
    with pytest.raises(TypeError, match="has no `sample` method"):
        rdcurve.measure(decoder, decoder(torch.zeros(1, 2)), latent_dim=2, beta_max=1.0, distortion=distortion, gap=0.5)


@pytest.mark.parametrize("kind", [SSIM, MSSSIM])
def test_bad_input_is_refused(kind):
    with pytest.raises(ValueError, match=r"low must be below high, not 1\.0 and 1\.0"):
        kind(low=1.0)
    with pytest.raises(ValueError, match="30 pixels are no square image"):
        kind()(torch.zeros(2, 30), torch.zeros(1, 2, 30))
    with pytest.raises(ValueError, match="does not fit images of 5 x 6"):
        kind()(torch.zeros(2, 3, 5, 6), torch.zeros(1, 2, 3, 5, 6))
