"""Diagonal Gaussians: divergence, product and mixture of experts, all in log space."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, pi

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """N(mu, diag(exp(logvar))). The last axis is the latent one; the others batch."""

    mu: Float[Tensor, "*batch latent"]
    logvar: Float[Tensor, "*batch latent"]

    def sample(self, noise: Float[Tensor, "*more latent"]) -> Float[Tensor, "*all latent"]:
        """The draw mu + sigma * noise, with noise from N(0, I): differentiable in mu and sigma."""
        return self.mu + torch.exp(0.5 * self.logvar) * noise

    def log_prob(self, z: Float[Tensor, "*more latent"]) -> Float[Tensor, "*all"]:
        """log N(z; mu, sigma²) in nats, summed over the latent axis; z and the Gaussian broadcast."""
        squared_distance = (z - self.mu).square() * torch.exp(-self.logvar)
        return -0.5 * (squared_distance + self.logvar + log(2 * pi)).sum(-1)


def standard_like(gaussian: Gaussian) -> Gaussian:
    """N(0, I) of the same shape: the prior p(c) or p(s)."""
    return Gaussian(torch.zeros_like(gaussian.mu), torch.zeros_like(gaussian.logvar))


def stack(gaussians: Sequence[Gaussian]) -> Gaussian:
    """Gaussians of one shape as experts, on a new axis 0."""
    return Gaussian(torch.stack([g.mu for g in gaussians]), torch.stack([g.logvar for g in gaussians]))


def kl(q: Gaussian, p: Gaussian) -> Float[Tensor, "*batch"]:
    """KL(q || p) in nats, summed over the latent axis; q and p broadcast."""
    variance_ratio = torch.exp(q.logvar - p.logvar)
    squared_distance = (q.mu - p.mu).square() * torch.exp(-p.logvar)
    return 0.5 * (variance_ratio + squared_distance - 1 + p.logvar - q.logvar).sum(-1)


def kl_to_standard(q: Gaussian) -> Float[Tensor, "*batch"]:
    """KL(q || N(0, I)) in nats: `kl` to `standard_like`, without what is zero there."""
    return 0.5 * (q.logvar.exp() + q.mu.square() - 1 - q.logvar).sum(-1)


def product(experts: Gaussian, weights: Float[Tensor, "expert *batch"]) -> Gaussian:
    r"""Renormalised weighted product of experts, f(z) ∝ Π_j q_j(z)^{w_j}.

    Precisions add: 1/σ² = Σ_j w_j/σ_j², and μ is the precision-weighted mean of the μ_j.
    Unit weights give the product of experts (Hinton 2002); weights that sum to one give the
    geometric mean (Nielsen 2019, https://doi.org/10.3390/e21050485). We stay in log space, so
    no epsilon guards the variances and a zero weight drops its expert exactly.

    Args:
        experts: Gaussians stacked on axis 0, `[expert, batch, latent]`.
        weights: w, `[expert]` or one set per sample, `[expert, batch]`; non-negative, at least
            one of a sample's positive.
    """
    log_precision = per_expert(weights.log(), experts.logvar) - experts.logvar
    mu = (torch.softmax(log_precision, dim=0) * experts.mu).sum(0)
    return Gaussian(mu, logvar=-torch.logsumexp(log_precision, dim=0))


@dataclass(frozen=True)
class Mixture:
    """Σ_k w_k q_k: experts stacked on axis 0, and their weights, which sum to one for each sample."""

    experts: Gaussian
    weights: Float[Tensor, "expert batch"]
    groups: tuple[tuple[str, ...], ...] = ()
    """Of each expert the modalities of whose posteriors it is the product, where it is one."""

    def chosen(self, choice: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """The expert of each sample, drawn by weight; one of weight zero never is.

        Args:
            choice: uniform draws from [0, 1), which the cumulative weights' inverse maps to experts.
        """
        # In float64 no product of a float32 below 1 with the total rounds up to the total.
        cumulative = self.weights.double().cumsum(0)
        return (choice.double() * cumulative[-1] >= cumulative[:-1]).sum(0)

    def choose(self, choice: Float[Tensor, " batch"] | None) -> Gaussian:
        """One expert per sample, as `chosen` draws it; a single one needs no draw."""
        if len(self.weights) == 1:
            return Gaussian(self.experts.mu[0], self.experts.logvar[0])
        assert choice is not None
        index = self.chosen(choice)[None, :, None].expand(1, *self.experts.mu.shape[1:])
        return Gaussian(self.experts.mu.gather(0, index)[0], self.experts.logvar.gather(0, index)[0])

    def log_prob(self, z: Float[Tensor, "*sample batch latent"]) -> Float[Tensor, "*sample batch"]:
        """log Σ_k w_k q_k(z) in nats: the density of the whole mixture, whichever expert z was drawn from."""
        log_densities = self.experts.log_prob(z[..., None, :, :])
        return torch.logsumexp(self.weights.log() + log_densities, dim=-2)


def per_expert(
    weights: Float[Tensor, "expert *batch"], values: Float[Tensor, "expert ..."]
) -> Float[Tensor, "expert ..."]:
    """Weights with axes appended until they broadcast against the experts' values."""
    return weights.reshape(*weights.shape, *(1,) * (values.ndim - weights.ndim))
