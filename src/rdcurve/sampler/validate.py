"""What `measure` is given, checked before any long work. `Target.check` tries decoder, prior and distortion."""

from __future__ import annotations

import logging

import torch

from rdcurve.sampler.target import Target

__all__ = ["check_scale"]

logger = logging.getLogger(__name__)
_DRAWS = 64  # from the prior, whose reconstructions give the decoder's range
_WIDTHS_SUSPECT, _WIDTHS_REFUSED = 0.5, 10  # that x may reach beyond the decoder's range


def check_scale(target: Target) -> None:
    """Refuse data on another scale than the decoder's output, as 0 .. 255 for 0 .. 1.

    A decoder may be bad, or have collapsed to one grey: its range is counted from zero, so that this can be measured.

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
    if beyond > _WIDTHS_SUSPECT * width:
        logger.warning("%s, unless the decoder is that bad", said)
