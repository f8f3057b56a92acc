"""How well scores rank samples that have an attribute before those that lack it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def average_precision(
    scores: Float[Tensor, "sample attribute"], truth: Int[Tensor, "sample attribute"]
) -> Float[Tensor, "sample attribute"]:
    r"""Values of which the mean over samples is the average precision of each attribute.

        AP = 1/P Σ_{i: y_i = 1} T_i / N_i

    over the P samples that have the attribute (y = 1), where N_i samples are ranked as high as i or higher
    and T_i of them have it: the sum over thresholds of precision times the step in recall.

    A sample's value is AP + n ∂AP/∂w_k, w_k its weight among n samples of weight one, so that their standard
    error is that of AP by the infinitesimal jackknife (Efron & Stein 1981, https://doi.org/10.1214/aos/1176345462),
    and the values of several average precisions can be averaged sample by sample.

    Args:
        scores: higher where the attribute is likelier; samples of equal score share a rank.
        truth: 1 or 0; every attribute needs a sample that has it.
    """
    count = len(scores)
    ranked, order = scores.double().sort(dim=0, descending=True)
    has = truth.double().gather(0, order)
    place = torch.arange(count, device=scores.device)[:, None].expand_as(order)
    differs = ranked[1:] != ranked[:-1]
    edge = torch.ones_like(differs[:1]) if count > 1 else torch.ones_like(ranked, dtype=torch.bool)
    first = torch.where(torch.cat([edge, differs]), place, 0).cummax(0).values
    last = torch.where(torch.cat([differs, edge]), place, count).flip(0).cummin(0).values.flip(0)
    num_ranked = (last + 1).double()
    precision = has.cumsum(0).gather(0, last) / num_ranked
    positives = has.sum(0)
    value = (has * precision).sum(0) / positives

    def below(terms: Tensor) -> Tensor:
        """Sums over all samples that rank as low as each or lower."""
        return terms.flip(0).cumsum(0).flip(0).gather(0, first)

    gained = has * below(has / num_ranked) - below(has * precision / num_ranked)
    derivative = (has * (precision - value) + gained) / positives
    return (value + count * derivative).gather(0, order.argsort(0))
