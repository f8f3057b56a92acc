"""The multimodal bounds, as one family: a joint posterior, a content divergence, and what is added."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from mmjsd.gaussian import Gaussian, Mixture, kl, kl_to_standard, per_expert, product, stack, standard_like
from mmjsd.model import MultimodalVae, Posterior


def jensen_shannon(experts: Gaussian, weights: Float[Tensor, "expert *batch"]) -> Float[Tensor, "*samples"]:
    r"""Jensen-Shannon divergence of M + 1 experts around their geometric mean, in nats.

        JS_π(q_1, …, q_{M+1}) = Σ_j π_j KL(q_j ‖ f),    f(z) ∝ Π_j q_j(z)^{π_j}

    Sutter, Daunhawer & Vogt 2020 (https://arxiv.org/abs/2006.08242), Eq. 4 with the dynamic
    prior f of Definition 3. Unlike the arithmetic-mean divergence it has a closed form, and no
    upper bound: it grows without limit as the experts separate.

    Args:
        experts: the M content posteriors q(c | x_j), then the prior p(c), stacked on axis 0:
            `[expert, batch, latent]`.
        weights: π, one per expert (`[expert]`, or `[expert, batch]`), summing to one; the prior's
            comes last. A weight of zero removes its expert.

    Returns:
        One value per sample; zero exactly where all experts of positive weight agree.
    """
    divergences = kl(experts, product(experts, weights))
    return (per_expert(weights, divergences) * divergences).sum(0)


def jensen_shannon_mixture(
    experts: Gaussian,
    weights: Float[Tensor, "expert *batch"],
    num_samples: int,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*samples"]:
    r"""Jensen-Shannon divergence of M + 1 experts around their arithmetic mean, in nats.

        JS_π(q_1, …, q_{M+1}) = Σ_j π_j KL(q_j ‖ Σ_k π_k q_k)

    Paper Eq. 4 with the mixture prior of Lemma 1. The KL divergences to a mixture have no closed
    form: each is estimated from `num_samples` reparametrised draws of its expert, without bias.
    No draw exceeds −log π_j, so the estimate never exceeds the entropy of π.

    Args:
        experts: `[expert, batch, latent]`, the prior last.
        weights: π, `[expert]` or `[expert, batch]`, summing to one.
        num_samples: draws per expert and sample.
        generator: of the device of the experts; none: torch's own.

    Returns:
        One estimate per sample; zero, up to rounding, where all experts of positive weight agree.
    """
    shape = (num_samples, *experts.mu.shape)
    noise = torch.randn(shape, generator=generator, dtype=experts.mu.dtype, device=experts.mu.device)
    return _jensen_shannon_mixture(experts, weights, noise)


def _jensen_shannon_mixture(
    experts: Gaussian,
    weights: Float[Tensor, "expert *batch"],
    noise: Float[Tensor, "draw expert *samples latent"],
) -> Float[Tensor, "*samples"]:
    draws = experts.sample(noise)
    # log q_k(z_j) for each draw of each expert j under each expert k: [sample, j, k, batch].
    log_densities = experts.log_prob(draws[:, :, None])
    own = torch.diagonal(log_densities, dim1=1, dim2=2).movedim(-1, 1)
    of_own = per_expert(weights, own[0])
    log_ratio = (own - torch.logsumexp(of_own.log() + log_densities, dim=2)).mean(0)
    return (of_own * log_ratio).sum(0)


@dataclass(frozen=True)
class Draws:
    """All randomness of one evaluation of a bound, one row a sample, drawn before it is needed.

    Drawn for the whole batch and cut by rows, it gives W workers the numbers that one would see.
    """

    content: Float[Tensor, "batch *sample content"]
    choice: Float[Tensor, " batch"]
    style: Mapping[str, Float[Tensor, "batch *sample style"]]
    unimodal: Mapping[str, Float[Tensor, "batch content"]] = field(default_factory=dict)
    prior: Float[Tensor, "batch sample expert content"] | None = None

    def rows(self, rows: slice) -> "Draws":
        """The draws of some of the batch's samples."""
        return Draws(
            content=self.content[rows],
            choice=self.choice[rows],
            style={name: noise[rows] for name, noise in self.style.items()},
            unimodal={name: noise[rows] for name, noise in self.unimodal.items()},
            prior=None if self.prior is None else self.prior[rows],
        )

    @staticmethod
    def concatenate(parts: Sequence["Draws"]) -> "Draws":
        """The rows of several draws, one after the other; narrower styles are filled up with zeros."""
        first, *others = parts
        if not others:
            return first
        priors = [part.prior for part in parts if part.prior is not None]
        return Draws(
            content=torch.cat([part.content for part in parts]),
            choice=torch.cat([part.choice for part in parts]),
            style={name: _rows_of([part.style[name] for part in parts]) for name in first.style},
            unimodal={name: torch.cat([part.unimodal[name] for part in parts]) for name in first.unimodal},
            prior=torch.cat(priors) if priors else None,
        )


def draw_latents(
    model: MultimodalVae, batch: int, generator: torch.Generator, num_samples: int | None = None
) -> Draws:
    """Noise of content, choice of expert and styles of `batch` samples, on the generator's device.

    Args:
        num_samples: of content and styles, an axis of its own; none: one, without the axis.
    """
    shape = (batch,) if num_samples is None else (batch, num_samples)
    return Draws(
        content=_normal(generator, *shape, model.config.content_dim),
        choice=torch.rand(batch, generator=generator, device=generator.device),
        style={name: _normal(generator, *shape, size) for name, size in model.style_dims.items()},
    )


def draw(model: MultimodalVae, batch: int, generator: torch.Generator) -> Draws:
    """What one evaluation of the model's bound on `batch` samples needs, on the generator's device."""
    objective, content = model.objective, model.config.content_dim
    alone = model.modalities if objective.name == "mvae" else ()
    mixture_prior = objective.name == "mmjsd" and objective.dynamic_prior == "mixture"
    return replace(
        draw_latents(model, batch, generator, objective.importance_samples),
        unimodal={name: _normal(generator, batch, content) for name in alone},
        prior=_normal(generator, batch, objective.prior_samples, len(model.modalities) + 1, content)
        if mixture_prior
        else None,
    )


@dataclass(frozen=True)
class Terms:
    """The parts of a bound in nats, one value per sample; zero for a modality that a sample lacks."""

    loss: Float[Tensor, " batch"]
    """The negative bound that training minimises, with all weights applied."""

    reconstruction: Mapping[str, Float[Tensor, " batch"]]
    """-log p(x_j | c, s_j), c from the joint posterior, without its weight; the mean over several draws."""

    content_divergence: Float[Tensor, " batch"]
    """Divergence of the content's posteriors, without beta."""

    style_divergence: Mapping[str, Float[Tensor, " batch"]]
    """KL(q(s_j | x_j) || N(0, I)), without beta."""


def elbo(
    model: MultimodalVae,
    x: Mapping[str, Tensor],
    draws: Draws,
    present: Mapping[str, Bool[Tensor, " batch"]] | None = None,
) -> Terms:
    r"""The model's bound on one batch, each sample with the modalities that it has.

        loss = Σ_j (λ_j (−log p(x_j | c, s_j)) + β β_s β_j KL(q(s_j | x_j) ‖ p(s_j))) + β β_c D

    with c drawn from the joint posterior (`objective.fusion`) and s_j from q(s_j | x_j): paper
    Eq. 10, and Eq. 5 where no modality has a subspace. The content's divergence D is

        mmjsd   JS_π of the unimodal posteriors and the prior, around the dynamic prior (Eq. 4)
        mmvae   Σ_j π_j KL(q(c | x_j) ‖ p(c)), π renormalised without the prior (Eq. 6)
        mopoe   the mean of KL(q(c | X_K) ‖ p(c)) over all subsets K, q(c | X_K) the product of the
                subset's posteriors (Sutter et al. 2021, https://arxiv.org/abs/2105.02470)
        mvae    KL(q(c | X) ‖ p(c)); the same bound of each modality alone is added (Wu & Goodman
                2018, https://arxiv.org/abs/1802.05335, without their sampled subsets)
        mvtcae  (1 − α) KL(q(c | X) ‖ p(c)) + α Σ_j π_j KL(q(c | X) ‖ q(c | x_j)); λ_j is multiplied
                by 1 − α π_j (Hwang et al. 2021, Multi-View Representation Learning via Total
                Correlation Objective, NeurIPS, where π_j = 1/M; π is renormalised without the prior)

    With `objective.importance_samples` = K the loss of mmvae is instead (Shi et al. 2019,
    https://arxiv.org/abs/1911.03393, Eq. 3; all weights one make it a bound)

        loss = −log 1/K Σ_k exp(Σ_j (λ_j log p(x_j | c_k, s_jk) − β β_s β_j log q(s_jk | x_j)/p(s_jk))
                                − β β_c log q(c_k | X)/p(c_k))

    where all K draws of a sample come from one expert, drawn by π, and q(c | X) is the whole mixture.
    The divergences among its terms are means of these logarithms over the draws.

    Args:
        model: holds the resolved objective.
        x: the modalities of the batch; one that no sample has is left out.
        draws: from `draw`, one row a sample.
        present: which samples have a modality; one that is not named is there in all. π is
            renormalised over what a sample has and the prior. Every sample must have one.
    """
    objective = model.objective
    assert objective.fusion
    assert objective.reconstruction_weights
    assert objective.style_weights
    posteriors = model.posteriors(x)
    joint = model.joint(posteriors, objective.fusion, present)
    if objective.importance_samples is not None:
        return _importance_weighted(model, x, draws, posteriors, joint, present)
    content = joint.choose(draws.choice).sample(draws.content)
    shares = _reconstruction_shares(model, posteriors, present, content)
    divergence = _content_divergence(model, posteriors, joint, draws, present)
    content_weight = objective.beta * objective.beta_content
    style_weight = objective.beta * objective.beta_style

    loss, reconstruction, style_divergence = content_weight * divergence, {}, {}
    for name, own in posteriors.items():
        style = {name: own.style.sample(draws.style[name])}
        nll = -model.decode(content, style)[name].log_prob(x[name])
        style_kl = kl_to_standard(own.style)
        reconstruction_weight = objective.reconstruction_weights[name] * shares[name]
        own_style_weight = style_weight * objective.style_weights[name]
        own_loss = reconstruction_weight * nll + own_style_weight * style_kl
        if objective.name == "mvae":
            alone = model.fuse({name: own}, "product")
            nll_alone = -model.decode(alone.sample(draws.unimodal[name]), style)[name].log_prob(x[name])
            own_loss = own_loss + reconstruction_weight * nll_alone + own_style_weight * style_kl
            own_loss = own_loss + content_weight * kl_to_standard(alone)
        here = None if present is None else present.get(name)
        reconstruction[name] = _where(here, nll)
        style_divergence[name] = _where(here, style_kl)
        loss = loss + _where(here, own_loss)
    return Terms(loss, reconstruction, divergence, style_divergence)


def _importance_weighted(
    model: MultimodalVae,
    x: Mapping[str, Tensor],
    draws: Draws,
    posteriors: Mapping[str, Posterior],
    joint: Mixture,
    present: Mapping[str, Bool[Tensor, " batch"]] | None,
) -> Terms:
    objective = model.objective
    assert objective.reconstruction_weights
    assert objective.style_weights
    expert = joint.choose(draws.choice)
    content = expert.sample(draws.content.movedim(1, 0))
    samples, batch = content.shape[:2]
    divergence = joint.log_prob(content) - standard_like(expert).log_prob(content)
    log_weights = -objective.beta * objective.beta_content * divergence
    reconstruction, style_divergence = {}, {}
    for name, own in posteriors.items():
        style = own.style.sample(draws.style[name].movedim(1, 0))
        likelihood = model.decode(content.flatten(0, 1), {name: style.flatten(0, 1)})[name]
        repeated = x[name].expand(samples, *x[name].shape).flatten(0, 1)
        nll = -likelihood.log_prob(repeated).reshape(samples, batch)
        exact = style.double()  # a digit lost among thousands of nats is a part in a thousand of a weight
        log_ratio = own.style.log_prob(exact) - standard_like(own.style).log_prob(exact)
        style_weight = objective.beta * objective.beta_style * objective.style_weights[name]
        own_loss = objective.reconstruction_weights[name] * nll + style_weight * log_ratio
        here = None if present is None else present.get(name)
        log_weights = log_weights - _where(here, own_loss)
        reconstruction[name] = _where(here, nll).mean(0)
        style_divergence[name] = _where(here, log_ratio).mean(0).to(divergence.dtype)
    loss = (log(samples) - torch.logsumexp(log_weights, dim=0)).to(divergence.dtype)
    return Terms(loss, reconstruction, divergence.mean(0), style_divergence)


def _content_divergence(
    model: MultimodalVae,
    posteriors: Mapping[str, Posterior],
    joint: Mixture,
    draws: Draws,
    present: Mapping[str, Bool[Tensor, " batch"]] | None,
) -> Float[Tensor, " batch"]:
    objective = model.objective
    unimodal = [posterior.content for posterior in posteriors.values()]
    if objective.name != "mmjsd":
        to_prior = (joint.weights * kl_to_standard(joint.experts)).sum(0)
        if objective.name != "mvtcae":
            return to_prior
        weights = model.weights(posteriors, present, unimodal[0].mu)
        to_unimodal = (weights * kl(joint.experts, stack(unimodal))).sum(0)
        alpha = objective.total_correlation
        return (1 - alpha) * to_prior + alpha * to_unimodal
    prior = standard_like(unimodal[0])
    experts = stack([*unimodal, prior])
    weights = model.weights(posteriors, present, prior.mu, with_prior=True)
    if draws.prior is None:
        return jensen_shannon(experts, weights)
    rows = [*(model.modalities.index(name) for name in posteriors), len(model.modalities)]
    noise = torch.stack([draws.prior[:, :, row] for row in rows])  # a list as index would be copied to a GPU
    return _jensen_shannon_mixture(experts, weights, noise.permute(2, 0, 1, 3))


def _reconstruction_shares(
    model: MultimodalVae,
    posteriors: Mapping[str, Posterior],
    present: Mapping[str, Bool[Tensor, " batch"]] | None,
    like: Tensor,
) -> dict[str, Float[Tensor, " batch"] | float]:
    """What the objective keeps of each modality's log-likelihood: all, but in mvtcae 1 − α π_j."""
    if model.objective.name != "mvtcae":
        return dict.fromkeys(posteriors, 1.0)
    shares = 1 - model.objective.total_correlation * model.weights(posteriors, present, like)
    return dict(zip(posteriors, shares, strict=True))


def _rows_of(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all parts, as wide as the widest."""
    widest = max(part.shape[-1] for part in parts)
    return torch.cat([pad(part, (0, widest - part.shape[-1])) for part in parts])


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _where(
    here: Bool[Tensor, " batch"] | None, values: Float[Tensor, "*sample batch"]
) -> Float[Tensor, "*sample batch"]:
    return values if here is None else torch.where(here, values, torch.zeros_like(values))
