"""Does the curve hold on these very images? Independent determinations of log Z must confirm the highest of them.

Every determination is a stochastic lower bound: what can go wrong is that it is too low, since modes were missed or
chains were stuck. So per image and beta, the doubt is how far the highest lies above the next one that is independent
of it, in nats. There are four: two halves of the groups that came up from the prior, and two groups that came down,
each from its own search for modes. Two that came down confirm each other only if the best mode was the end of three
starts or more: a mode that was found once is a sign of others that were not.

The curve itself must come up to the highest as well: its mean over both routes has weights that were fixed beforehand,
and may count the better route for little.

BDMC cannot say this, because its images are simulated: they start from a mode that exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rdcurve.sampler.ais import log_mean_exp

__all__ = ["LEAST_HITS", "TOLERANCE", "doubt"]

TOLERANCE = 1.0  # nats of doubt, mean over the images
LEAST_HITS = 3


def doubt(given: Tensor, up: Tensor, down: Tensor | None = None, hits: Tensor | None = None) -> Tensor:
    """Highest determination of log Z minus the next independent one, or minus what the curve says: the more, [N] nats.

    Args:
        given: [N] log Z of the curve.
        up: [G, N] log Z of the groups from the prior, G at least 2.
        down: [2, N] log Z of the groups from the modes.
        hits: [N] how many starts of both searches ended in the best mode.
    """
    half = len(up) // 2
    halves = torch.stack([log_mean_exp(up[:half]), log_mean_exp(up[half:])])  # [2, N]
    if down is None or hits is None:
        first, second = halves.max(0).values, halves.min(0).values
        return first - torch.minimum(second, given)
    everything = torch.cat([halves, down])  # [4, N]
    order = everything.argsort(0, descending=True)
    first, second = (everything.gather(0, order[i : i + 1])[0] for i in (0, 1))
    both_down = (order[:2] >= 2).all(0) & (hits < LEAST_HITS)
    second = torch.where(both_down, halves.max(0).values, second)
    return first - torch.minimum(second, given)
