"""Build what prerun, ais and bdmc share from settings and files: target, kernel, groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from rdcurve.data.load import images
from rdcurve.files import FileError
from rdcurve.models.blurred import Blurred
from rdcurve.models.checkpoint import LoadedDecoder, load_decoder
from rdcurve.sampler import distortion as pixelwise
from rdcurve.sampler.ais import Groups
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.prior import PRIORS
from rdcurve.sampler.target import Target, exact_products
from rdcurve.sampler.tuning_file import Loaded, load_tuning
from rdcurve.similarity import MSSSIM, SSIM

__all__ = ["DISTORTIONS", "Problem", "build", "tuned"]

DISTORTIONS = {**pixelwise.DISTORTIONS, "ssim": SSIM, "ms_ssim": MSSSIM}
_IMAGES = 100  # whose features are computed at once


class Problem(NamedTuple):
    """A curve to measure."""

    target: Target
    kernel: Kernel
    groups: Groups
    loaded: LoadedDecoder


def build(decoder: Path, data: Path, curve: dict[str, Any], sampler: dict[str, Any], device: torch.device) -> Problem:
    """The problem that a `curves` entry of params.yaml describes.

    Raises:
        FileError: decoder and data do not go together; the decoder cannot be used.
    """
    loaded = load_decoder(decoder, device)
    trained_on = loaded.facts.get("dataset")
    if trained_on != curve["dataset"]:
        raise FileError(f"{decoder}: trained on {trained_on}, but the curve is to be measured on {curve['dataset']}")
    exact_products()  # features of data are data
    x = images(data, "test", sampler["n_images"], loaded.dtype).to(device)
    network = loaded.decoder
    if hasattr(network, "observe"):  # a decoder of features: the data are the features of the images
        with torch.no_grad():
            x = torch.cat([network.observe(part) for part in x.split(_IMAGES)])
    if "blur" in curve:
        network = Blurred(network, curve["blur"])
    prior = dict(curve["prior"])
    distortion = dict(curve["distortion"])
    try:
        target = Target(
            PRIORS[prior.pop("name")](loaded.latent_dim, dtype=loaded.dtype, device=device, **prior),
            network,
            DISTORTIONS[distortion.pop("name")](**distortion),
            x,
            sampler.get("tf32_gradients", False),
        )
        target.check(loaded.latent_dim)
    except (TypeError, ValueError) as error:
        raise FileError(f"{decoder}: cannot be measured: {error}") from error
    kernel = Kernel(sampler["n_leapfrog"], sampler["jitter"], sampler["persistence"])
    return Problem(target, kernel, Groups(sampler["group_size"], sampler["resample_below"]), loaded)


def tuned(path: Path, curve: dict[str, Any], problem: Problem) -> Loaded:
    """The tuning of a prerun.

    Raises:
        FileError: missing or foreign, or learned for another size or range of beta than the settings ask for.
    """
    loaded = load_tuning(path, problem.loaded.dtype, problem.target.x.device)
    betas, asked = loaded.tuning.betas, curve.get("n_temperatures")
    if asked not in (None, len(betas)):
        raise FileError(f"{path}: a schedule of {len(betas)} temperatures, where params.yaml asks for {asked}")
    if float(betas[-1]) != float(curve["beta_max"]):
        raise FileError(
            f"{path}: a schedule to beta = {float(betas[-1])}, where params.yaml asks for {curve['beta_max']}"
        )
    return loaded
