"""What `measure` is given, checked before any long work. `Target.check` tries decoder, prior and distortion."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdcurve.sampler.ais import Groups, check_n_chains
from rdcurve.sampler.hmc import Kernel
from rdcurve.sampler.legal import check_count, check_number
from rdcurve.sampler.prerun import PrerunSettings
from rdcurve.sampler.target import Target

__all__ = ["as_data", "check_prior", "check_sample", "check_scale", "check_settings"]

logger = logging.getLogger(__name__)
_DRAWS = 64  # from the prior, whose reconstructions give the decoder's range
_WIDTHS_SUSPECT, _WIDTHS_REFUSED = 0.5, 10  # that x may reach beyond the decoder's range; it may be narrower by 10


def as_data(x: Any) -> Tensor:
    """x as a tensor; an array is copied.

    Raises:
        TypeError: neither tensor nor array, neither float32 nor float64, or a sparse tensor.
        ValueError: a single number.
    """
    legal = "x must be a tensor or a numpy array [N, *data] of float32 or float64, on the scale of the decoder's output"
    if isinstance(x, np.ndarray) and x.dtype.name in ("float32", "float64"):
        x = torch.from_numpy(x.astype(x.dtype.name, order="C"))  # in the byte order of the machine
    if isinstance(x, np.ndarray):
        raise TypeError(f"{legal}, not an array of {x.dtype}")
    if not isinstance(x, Tensor):
        raise TypeError(f"{legal}, not a {type(x).__name__}")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{legal}, not {x.dtype}")
    if x.layout != torch.strided:
        raise TypeError(f"{legal}, stored in full, not as {x.layout}; x.to_dense() is")
    if not x.ndim:
        raise ValueError(f"{legal}, not one number")
    return x


def check_prior(prior: Any) -> None:
    """Refuse a prior whose own parameters spoil its sampler; what is no prior at all, `Target.check` refuses.

    Raises:
        ValueError: with what the sampler says.
    """
    if hasattr(prior, "sample"):
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices):
            try:
                prior.sample((1,))
            except NotImplementedError:
                pass
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"the prior {type(prior).__name__} cannot be sampled: {error}") from error


def check_scale(target: Target) -> None:
    """Refuse data on another scale than the decoder's output, as 0 .. 255 for 0 .. 1.

    A decoder may be bad, or have collapsed to one grey: its range is counted from zero, so that this can be measured.
    What may be a bad decoder or another scale is measured with a warning.

    Raises:
        ValueError: x reaches beyond the decoder's range by more than 10 of its widths.
    """
    x = target.x
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(0)
        outputs = [target.decoder(z) for z in target.prior.sample((_DRAWS, 1)).split(8)]
    low, high = min(float(part.min()) for part in outputs), max(float(part.max()) for part in outputs)
    least, most = float(x.min()), float(x.max())
    beyond, width = max(low - least, most - high), max(high, 0.0) - min(low, 0.0)
    said = (
        f"x lies in {least:.4g} .. {most:.4g}, but the decoder returns {low:.4g} .. {high:.4g} on {_DRAWS} codes from "
        "the prior: put both on one scale"
    )
    if beyond > _WIDTHS_REFUSED * width:
        raise ValueError(said)
    if beyond > _WIDTHS_SUSPECT * width or width > _WIDTHS_REFUSED * (max(most, 0.0) - min(least, 0.0)):
        logger.warning("%s, unless the decoder is that bad", said)


def check_sample(target: Target, beta: float) -> Tensor:
    """Data simulated once under a distortion with a `sample` method, which stand for that method in a run's identity.

    Raises:
        ValueError: it fails, draws no data like x, or draws others from the same seed.
    """
    x, distortion, drawn = target.x[:2], target.distortion, []
    name, instead = f"the `sample` of {type(distortion).__name__}", "give n_simulated=0 and no gap to do without BDMC"
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(0)
        decoded = target.decoder(target.prior.sample((1, len(x))))[0]
        for _ in range(2):
            torch.manual_seed(1)
            try:
                drawn.append(distortion.sample(decoded, beta))  # type: ignore[attr-defined]
            except Exception as error:  # whatever a user's code may raise
                raise ValueError(f"{name} fails: {type(error).__name__}: {error}; {instead}") from error
    for each in drawn:
        if not isinstance(each, Tensor):
            raise ValueError(f"{name} returns a {type(each).__name__}, not a tensor; {instead}")
        if (each.shape, each.dtype, each.device) != (x.shape, x.dtype, x.device):
            raise ValueError(
                f"{name} returns {tuple(each.shape)} of {each.dtype} on {each.device}, not {tuple(x.shape)} of "
                f"{x.dtype} on {x.device}; {instead}"
            )
        if not each.isfinite().all():
            raise ValueError(f"{name} returns values that are not finite; {instead}")
    if not torch.equal(*drawn):
        raise ValueError(f"{name} draws other data from the same seed: use torch's default generator; {instead}")
    return drawn[0]


def check_settings(
    kernel: Kernel,
    groups: Groups | None,
    prerun: PrerunSettings,
    *,
    n_chains: int,
    most_chains: int | None,
    latent_dim: int,
    beta_max: float,
    gap: float | None,
    n_temperatures: int | None,
    betas: Any,
    n_recorded: int,
    n_simulated: int,
    seed: int,
    save_every: float,
) -> None:
    """Refuse settings of `measure` that the sampler cannot work with; the prerun's own are checked where it is built.

    Raises:
        TypeError: a setting of the wrong type.
        ValueError: one out of its range.
    """
    groups = Groups() if groups is None else groups  # `measure` then chooses a size that divides n_chains
    kinds = {"kernel": (kernel, Kernel), "groups": (groups, Groups), "prerun_settings": (prerun, PrerunSettings)}
    for name, (value, kind) in kinds.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be {kind.__module__}.{kind.__name__}, not {value!r}")
    counts = {"n_chains": n_chains, "latent_dim": latent_dim, "n_recorded": n_recorded}
    counts |= {"n_leapfrog": kernel.n_leapfrog, "the group size": groups.size}
    for name, count in {
        **counts,
        "most_chains": most_chains,
        "n_temperatures": n_temperatures,
        "n_simulated": n_simulated,
        "seed": seed,
    }.items():
        if isinstance(count, bool):
            raise TypeError(f"{name} must be an integer, not {count}")
    for name, count in counts.items():
        check_count(name, count)
    if most_chains is not None:
        check_count("most_chains", most_chains)
    if n_temperatures is not None:
        check_count("n_temperatures", n_temperatures, 2 if prerun.schedule == "sigmoid" else 3)
    for name, count in {"n_simulated": n_simulated, "seed": seed}.items():
        check_count(name, count, 0)
    if n_simulated == 1:
        raise ValueError("n_simulated must be 2 or more for an error bar, or 0 for no BDMC bounds, not 1")
    numbers = {"beta_max": beta_max, "resample_below": groups.resample_below, "gap": 1.0 if gap is None else gap}
    numbers["save_every"] = save_every
    for name, number in numbers.items():
        check_number(name, number)
    if not 0 < beta_max < math.inf:
        raise ValueError(f"beta_max must be positive and finite, not {beta_max}")
    for name, share in {"jitter": kernel.jitter, "persistence": kernel.persistence}.items():
        check_number(name, share)
        if not 0 <= share < 1:
            raise ValueError(f"{name} must lie in 0 <= {name} < 1, not {share}")
    if gap is not None and prerun.schedule == "sigmoid":
        raise ValueError("a gap chooses the length of a learned schedule; with schedule sigmoid give n_temperatures")
    if prerun.n_chains < 2 and betas is None and (gap is not None or prerun.schedule == "learned"):
        raise ValueError(
            "n_chains of the prerun must be 2 or more, not 1: a schedule is learned from the variance over chains"
        )
    check_n_chains(n_chains, groups)  # the formal run would, after the prerun
    if most_chains is not None and most_chains < 2 * n_chains:
        raise ValueError(
            f"most_chains must be at least twice n_chains = {n_chains}, for chains are doubled, not {most_chains}"
        )
    if most_chains is not None and prerun.step_size_rule == "running_mean":
        raise ValueError(
            "most_chains needs a step size for all chains of an image; step_size_rule running_mean has none"
        )
