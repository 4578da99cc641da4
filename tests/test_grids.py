"""Reconstruction grids: the right code through the right decoder at the right place on the sheet."""

import struct
from argparse import Namespace
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from curves import synthetic

from rdcurve.commands import plot as command
from rdcurve.files import FileError
from rdcurve.grids import Row, figure, nearest, pixels, reconstruct
from rdcurve.models.checkpoint import save_decoder
from rdcurve.models.linear import Decoder
from rdcurve.plot import FORMATS, save


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_nearest_is_nearest_on_a_log_scale():
    curve = synthetic(n_betas=30, noise=0)
    k = nearest(curve, beta=3500)
    assert curve.beta[k] == min(curve.beta, key=lambda beta: abs(np.log(beta / 3500)))
    assert nearest(curve, beta=1e9) == 29
    assert nearest(curve, rate=1e-9) == 0
    k = nearest(curve, rate=10)
    rate = curve.mean("rate")
    assert rate[k] == min(rate, key=lambda r: abs(np.log(r / 10)))
    curve.rate[0] = -0.5  # what noise makes of a small rate
    assert nearest(curve, rate=float(rate[1])) == 1
    curve.rate[k, 0] = np.nan
    assert nearest(curve, rate=float(rate[k])) in (k - 1, k + 1)
    for both in ({}, {"beta": 1.0, "rate": 1.0}):
        with pytest.raises(ValueError, match="give beta or rate, one of them"):
            nearest(curve, **both)


def test_reconstructions_are_f_of_the_codes_of_that_beta():
    torch.manual_seed(0)
    decoder, curve = Decoder(10, 16).double(), synthetic()
    expected = curve.code[7, :3].astype(np.float64) @ decoder.output.weight.detach().numpy().T
    assert np.allclose(reconstruct(curve, decoder, 7, 3), expected + decoder.output.bias.detach().numpy())


@pytest.mark.parametrize(
    "size, n, message",
    [
        (0, 3, "curve vae10: keeps no codes"),
        (10, 7, "curve vae10: 7 images asked for, measured on 6"),
        (4, 3, "curve vae10: its codes of 4 numbers do not fit the decoder"),
    ],
)
def test_codes_that_cannot_be_drawn(size, n, message):
    curve = synthetic()
    with pytest.raises(FileError, match=message) as error:
        reconstruct(replace(curve, code=curve.code[..., :size]), Decoder(10, 16), 0, n)
    assert "\n" not in str(error.value)


def test_pixels_of_grey_and_colour():
    grey = np.array([[0.0, 0.25, 1.0, 1.5]])
    assert np.array_equal(pixels(grey), [[[0, 0.25], [1, 1]]])
    colour = np.zeros((1, 3, 2, 2))
    colour[0, 0] = 1.0  # red on top of grey
    colour[0, :, 1, 1] = -1.0
    shown = pixels(colour)
    assert shown.shape == (1, 2, 2, 3)
    assert np.array_equal(shown[0, 0, 1], [1, 0.5, 0.5])
    assert np.array_equal(shown[0, 1, 1], [0, 0, 0])
    with pytest.raises(ValueError, match=r"not \[5, 7\]"):
        pixels(np.zeros((5, 7)))


def rows(shape, n=4):
    generator = np.random.default_rng(0)
    images = generator.random((3, n, *shape))
    return images[0], [Row(f"model {i}", images[i], 3512.0, 41.26, 0.01, certified=i == 1, n_images=20) for i in (1, 2)]


@pytest.mark.parametrize("shape", [(784,), (3, 32, 32)])
def test_every_image_stands_in_its_row_and_column(shape):
    originals, models = rows(shape)
    drawing = figure(originals, models, title="Title", width=6.8, font_size=8)
    (ax,) = drawing.axes
    sheet = ax.images[0].get_array()
    lines = [originals, *(model.images for model in models)]
    side = pixels(originals).shape[1]
    pitch = (sheet.shape[0] + 2) // 3
    for i, line in enumerate(lines):
        for j, image in enumerate(pixels(line)):
            found = sheet[i * pitch : i * pitch + side, j * pitch : j * pitch + side]
            assert np.array_equal(found, image)
    assert (sheet[side] == 1).all()  # white between two images
    assert [label.get_text() for label in ax.get_yticklabels()] == ["test images", "model 1", "model 2"]
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["β", "rate (nats)", "distortion", *2 * ["3512", "41.3", "0.0100"], "*"]
    means = "rate and distortion: means over all 20 images of the curve"
    assert ax.get_xlabel().startswith(f"{means}\n* not certified")
    assert ax.texts[-1].xy[1] == ax.get_yticks()[2]  # beside the second model, the one that is not
    all_certified = [model._replace(certified=True) for model in models]
    (ax,) = figure(originals, all_certified, title="Title", width=6.8, font_size=8).axes
    assert ax.get_xlabel() == means
    assert "*" not in [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("n_rows, n", [(2, 4), (9, 10)])
def test_labels_stay_in_the_figure_and_off_the_images(n_rows, n):
    originals, models = rows((784,), n)
    models = [model._replace(label="shallow GAN 100") for model in (models * n_rows)[:n_rows]]
    drawing = figure(originals, models, title="Title", width=6.8, font_size=8)
    drawing.draw_without_rendering()
    (ax,) = drawing.axes
    inches = drawing.dpi_scale_trans.inverted()
    sheet = ax.images[0].get_window_extent().transformed(inches)
    assert sheet.height / drawing.get_figheight() > 0.6  # no empty paper
    for text in [*ax.texts, *ax.get_yticklabels(), *drawing.texts]:
        box = text.get_window_extent().transformed(inches)
        assert box.x0 > 0 and box.x1 < 6.8 and box.y0 > 0 and box.y1 < drawing.get_figheight()
        assert box.x1 <= sheet.x0 or box.x0 >= sheet.x1 or box.y0 >= sheet.y1
        assert text.get_fontsize() >= 6
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_same_data_same_bytes(tmp_path):
    for folder in "ab":
        drawing = figure(*rows((784,)), title="Title", width=6.8, font_size=8)
        save(drawing, [tmp_path / folder / f"f{suffix}" for suffix in FORMATS], 80)
    for suffix in FORMATS:
        first, second = ((tmp_path / folder / f"f{suffix}").read_bytes() for folder in "ab")
        assert first == second
        assert len(first) > 5000


def test_command_draws_what_the_entry_says(tmp_path, monkeypatch):
    torch.manual_seed(0)
    arguments = {"latent_dim": 10, "n_pixels": 784}
    decoder = Decoder(**arguments)
    save_decoder(tmp_path / "decoders/vae10.safetensors", decoder, architecture="linear", arguments=arguments, facts={})
    curve = synthetic()
    curve.save(tmp_path / "curves/vae10.safetensors")
    (tmp_path / "data/mnist").mkdir(parents=True)
    test_images = np.random.default_rng(0).integers(0, 255, (6, 784), dtype=np.uint8)
    header = struct.pack(">4i", 0x803, 6, 28, 28)
    (tmp_path / "data/mnist/t10k-images-idx3-ubyte").write_bytes(header + test_images.tobytes())

    class Guard:
        def check(self):
            pass

    seen = {}

    def spy(originals, shown, **more):
        seen.update(originals=originals, rows=shown, **more)
        return figure(originals, shown, **more)

    monkeypatch.setattr("rdcurve.grids.figure", spy)
    folders = {name: tmp_path / name for name in ("curves", "decoders", "data")}
    args = Namespace(name="f", output=tmp_path / "out/f.svg", guard=Guard(), **folders)
    entry = {"kind": "reconstructions", "title": "T", "rate": 10, "n_images": 5, "curves": {"vae10": "VAE 10"}}
    look = {"column_width": 3.3, "page_width": 6.8, "panel_height": 2.4, "dpi": 60, "font_size": 8}
    command.run(args, {"figures": {"f": entry}, "plot": look})
    k = nearest(curve, rate=10)
    (row,) = seen["rows"]
    assert (row.label, row.beta, row.rate, row.distortion) == (
        "VAE 10", curve.beta[k], curve.mean("rate")[k], curve.mean("distortion")[k],
    )  # fmt: skip
    assert np.array_equal(row.images, decoder(torch.from_numpy(curve.code[k, :5])).detach().numpy())
    assert np.allclose(seen["originals"], test_images[:5] / 255)
    assert all((tmp_path / f"out/f{suffix}").stat().st_size > 5000 for suffix in FORMATS)
    args.decoders = None
    with pytest.raises(FileError, match="f cannot be drawn without --decoders"):
        command.run(args, {"figures": {"f": entry}, "plot": look})
