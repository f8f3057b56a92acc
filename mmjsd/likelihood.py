"""Log-likelihood of held-out data by importance sampling, the posterior of any subset as the proposal."""

from collections.abc import Collection, Mapping, Sequence
from math import log

import torch
from jaxtyping import Float
from torch import Tensor

from mmjsd.config import Fusion
from mmjsd.gaussian import standard_like
from mmjsd.model import MultimodalVae, Posterior
from mmjsd.objective import Draws

JOINT = "joint"
"""The target of all modalities together."""


def log_importance_weights(
    model: MultimodalVae,
    x: Mapping[str, Tensor],
    posteriors: Mapping[str, Posterior],
    given: Collection[str],
    posterior: Fusion,
    draws: Sequence[Draws],
) -> dict[str, Float[Tensor, "batch sample"]]:
    r"""Logarithms in nats of importance weights whose expectation is p(x_A), for each target A.

        w = p(c) / q(c | x_K) · Π_{j∈A} p(x_j | c, s_j) p(s_j) / q(s_j | x_j)

    at draws of the content c from q(c | x_K) and of the style s_j from q(s_j | x_j) where j is in the
    given subset K, and from the prior where it is not. The density q(c | x_K) is that of the whole
    joint posterior, for a mixture Σ_k π_k q_k(c) whichever expert c came from.

    Args:
        x: all modalities of the batch.
        posteriors: of all modalities, from `model.posteriors(x)`.
        given: the subset K.
        posterior: how several given modalities become one.
        draws: one for each importance sample; decoded one after the other, so that memory does not
            grow with their number.

    Returns:
        By target: each modality alone, and `JOINT` for all. A row belongs to one sample of the batch.
    """
    proposal = model.joint({name: posteriors[name] for name in posteriors if name in given}, posterior)
    weights: dict[str, list[Tensor]] = {name: [] for name in (*posteriors, JOINT)}
    for each in draws:
        expert = proposal.choose(each.choice)
        content = expert.sample(each.content)
        of_content = standard_like(expert).log_prob(content) - proposal.log_prob(content)
        styles, own = {}, {}
        for name, one in posteriors.items():
            prior = standard_like(one.style)
            source = one.style if name in given else prior
            styles[name] = source.sample(each.style[name])
            own[name] = prior.log_prob(styles[name]) - source.log_prob(styles[name])
        for name, likelihood in model.decode(content, styles).items():
            own[name] = own[name] + likelihood.log_prob(x[name])
            weights[name].append(of_content + own[name])
        weights[JOINT].append(of_content + torch.stack(list(own.values())).sum(0))
    return {target: torch.stack(each, dim=1) for target, each in weights.items()}


def log_likelihood(log_weights: Float[Tensor, "batch sample"]) -> Float[Tensor, " batch"]:
    """log (1/K) Σ_k w_k in nats: on average below log p(x), and rising to it with the number K of samples."""
    return torch.logsumexp(log_weights, dim=1) - log(log_weights.shape[1])


def log_likelihood_as_released(log_weights: Float[Tensor, "batch sample"]) -> Float[Tensor, " batch"]:
    """The estimate as the code of the paper's authors computes it: each row mixes K different samples.

    There the weights lie sample by sample, `[sample, batch]`, and are reshaped, not transposed, to
    `[batch, sample]`: the mean runs over weights of neighbours in the batch, of which the largest wins.
    """
    return log_likelihood(log_weights.T.reshape(log_weights.shape))
