"""Log-likelihood of held-out data by importance sampling, the posterior of any subset as the proposal."""

from collections.abc import Collection, Mapping, Sequence
from math import log

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmjsd.config import Fusion
from mmjsd.gaussian import Gaussian, standard_like
from mmjsd.model import MultimodalVae, Posterior
from mmjsd.objective import Draws
from mmjsd.sharing import SharedDraws, draw_together
from mmjsd.specs import JOINT


def log_importance_weights(
    model: MultimodalVae,
    x: Mapping[str, Tensor],
    posteriors: Mapping[str, Posterior],
    proposals: Sequence[tuple[Collection[str], Fusion]],
    draws: Sequence[Draws],
) -> list[dict[str, Float[Tensor, "batch sample"]]]:
    r"""Logarithms in nats of importance weights whose expectation is p(x_A), for each target A.

        w = p(c) / q(c | x_K) · Π_{j∈A} p(x_j | c, s_j) p(s_j) / q(s_j | x_j)

    at draws of the content c from q(c | x_K) and of the style s_j from q(s_j | x_j) where j is in the
    given subset K, and from the prior where it is not. The density q(c | x_K) is that of the whole
    joint posterior, for a mixture Σ_k π_k q_k(c) whichever expert c came from.

    Nearly all of the cost is decoding, so all proposals use the same draws: where a mixture takes an expert
    that is another proposal itself, or another mixture's, what is decoded is the same, and is decoded once.

    Args:
        x: all modalities of the batch.
        posteriors: of all modalities, from `model.posteriors(x)`.
        proposals: given subsets K, and how several given modalities become one.
        draws: one for each importance sample; decoded one after the other, so that memory does not
            grow with their number.

    Returns:
        Of each proposal, by target: each modality alone, and `JOINT` for all. A row belongs to one sample of
        the batch.
    """
    joints = [
        model.joint({name: posteriors[name] for name in posteriors if name in given}, posterior)
        for given, posterior in proposals
    ]
    weights: dict[str, list[Tensor]] = {name: [] for name in (*posteriors, JOINT)}
    for each in draws:
        shared = draw_together(joints, each.content, each.choice)
        content = shared.content
        proposed = torch.stack([joint.log_prob(drawn) for joint, drawn in zip(joints, content, strict=True)])
        of_content = standard_like(Gaussian(content, content)).log_prob(content) - proposed
        own = []
        for name, one in posteriors.items():
            is_given = torch.tensor([name in given for given, _ in proposals], device=model.device)
            own.append(_own_weights(model, name, x[name], one.style, each.style[name], shared, is_given))
            weights[name].append(of_content + own[-1])
        weights[JOINT].append(of_content + torch.stack(own).sum(0))
    by_target = {target: torch.stack(each, dim=-1) for target, each in weights.items()}
    return [{target: each[index] for target, each in by_target.items()} for index in range(len(proposals))]


def _own_weights(
    model: MultimodalVae,
    name: str,
    x: Tensor,
    own_style: Gaussian,
    noise: Float[Tensor, "batch style"],
    shared: SharedDraws,
    is_given: Bool[Tensor, " proposal"],
) -> Float[Tensor, "proposal batch"]:
    """log p(x_j | c, s_j) p(s_j) / q(s_j | x_j) of one modality j, of which values, style and its noise come.

    Args:
        shared: the content c that each proposal draws.
        is_given: which proposals know the modality, and so draw its style from the posterior.
    """
    prior = standard_like(own_style)
    styles = torch.stack([prior.sample(noise), own_style.sample(noise)])
    of_style = prior.log_prob(styles)
    of_style = of_style - torch.stack([of_style[0], own_style.log_prob(styles[1])])

    def decoded(content: Tensor, sample: Tensor, source: Tensor) -> dict[str, Tensor]:
        likelihood = model.decode(content, {name: styles[source, sample]})[name]
        return {name: likelihood.log_prob(x[sample]) + of_style[source, sample]}

    has_style = noise.shape[-1] > 0  # of no style there is but one
    return shared.compute(decoded, (is_given & has_style).long())[name]


def log_likelihood(log_weights: Float[Tensor, "batch sample"]) -> Float[Tensor, " batch"]:
    """log (1/K) Σ_k w_k in nats: on average below log p(x), and rising to it with the number K of samples."""
    return torch.logsumexp(log_weights, dim=1) - log(log_weights.shape[1])


def log_likelihood_as_released(log_weights: Float[Tensor, "batch sample"]) -> Float[Tensor, " batch"]:
    """The estimate as the code of the paper's authors computes it: each row mixes K different samples.

    There the weights lie sample by sample, `[sample, batch]`, and are reshaped, not transposed, to
    `[batch, sample]`: the mean runs over weights of neighbours in the batch, of which the largest wins.
    """
    return log_likelihood(log_weights.T.reshape(log_weights.shape))
