"""Does the curve hold on these very images? Independent determinations of log Z must confirm the highest of them.

Every determination is a stochastic lower bound: what can go wrong is that it is too low, since modes were missed or
chains were stuck. So per image and beta, the doubt is how far the highest lies above the next one that is independent
of it, in nats. There are four: two halves of the groups that came up from the prior, and two groups that came down,
each from its own search for modes. What was found once or twice is a sign of better that was not (Good 1953, "The
population frequencies of species"), so two by one method confirm each other only if it was found three times or more:
two that came down, if the best mode was the end of three starts; two that came up, if the weights are spread over the
descendants of three draws from the prior (their "Eve" indices; Lee and Whiteley 2018, "Variance estimation in the
particle filter"). Where chains mix, all draws have descendants of weight; where they freeze, each in a mode of its own,
the best chain of a group replaces the others, and two groups that agree have seen two modes of a crowd.

The curve itself must come up to the highest as well: its mean over both routes has weights that were fixed beforehand,
and may count the better route for little.

The starts of a search are counted in the best mode at beta_max, for every beta: how often a mode was found that matters
lower down, and only there, is not looked at. Starts that hop end in the best mode more often, and leave that as it is.

BDMC cannot say this, because its images are simulated: they start from a mode that exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rdcurve.sampler.ais import log_mean_exp
from rdcurve.sampler.lanes import full

__all__ = ["LEAST_HITS", "TOLERANCE", "doubt", "lineages"]

TOLERANCE = 1.0  # nats of doubt, mean over the images
LEAST_HITS = 3


def doubt(
    given: Tensor, up: Tensor, lineages: Tensor, down: Tensor | None = None, hits: Tensor | None = None
) -> Tensor:
    """Highest determination of log Z minus the next independent one, or minus what the curve says: the more, [N] nats.

    One route alone certifies nothing; its doubt is how far the two halves of its groups lie apart.

    Args:
        given: [N] log Z of the curve.
        up: [G, N] log Z of the groups from the prior, G at least 2.
        lineages: [N] what `lineages` says of their chains.
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
    both_up = (order[:2] < 2).all(0) & (lineages < LEAST_HITS)
    second = torch.where(both_down, halves.max(0).values, second)
    second = torch.where(both_up, down.max(0).values, second)
    return first - torch.minimum(second, given)


def lineages(log_weight: Tensor, lineage: Tensor) -> Tensor:
    """Effective number of draws from the prior behind the weights, 1 / sum_a W_a^2, [N]: between 1 and C.

    W_a is the share in the weight of all chains that descend from draw a. Without resampling it is the effective
    sample size.

    Args:
        log_weight: [C, N].
        lineage: [C, N], the draw that each chain descends from.
    """
    n_images = log_weight.shape[1]
    share = full(log_weight).softmax(0)[:, :n_images].cpu()  # a GPU would add up in an order of chance
    drawn = torch.zeros_like(share).scatter_add_(0, lineage.cpu(), share)  # [C, N], W
    return (1 / full(drawn).square().sum(0)[:n_images]).to(log_weight.device)
