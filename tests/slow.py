"""The bounds once more, slowly: sample by sample, by loops over torch.distributions, from the equations."""

from itertools import combinations

import torch
from torch.distributions import Laplace, Normal, kl_divergence

from mmjsd.model import MultimodalVae
from mmjsd.objective import Draws
from tests.conftest import TINY, TINY_SCALE, double


def normal(gaussian) -> Normal:
    return Normal(gaussian.mu[0].double(), (0.5 * gaussian.logvar[0].double()).exp())


def power(experts, exponents) -> Normal:
    """The normal density proportional to the product of the experts' powers."""
    precision = sum(w / q.variance for q, w in zip(experts, exponents, strict=True))
    mean = sum(w * q.mean / q.variance for q, w in zip(experts, exponents, strict=True)) / precision
    return Normal(mean, precision**-0.5)


def kl_to(q, p) -> float:
    return kl_divergence(q, p).sum().item()


def slow_elbo(model: MultimodalVae, x, draws: Draws, i: int, present=None) -> dict[str, object]:
    """One sample's terms of the bound, by loops over torch.distributions, from the equations alone."""
    objective = model.objective
    names = [name for name in x if present is None or name not in present or present[name][i]]
    posteriors = {name: model.posteriors({name: x[name][i : i + 1]})[name] for name in names}
    content = {name: normal(posteriors[name].content) for name in names}
    prior = Normal(torch.zeros(model.config.content_dim).double(), 1.0)
    pi = dict(zip([*model.modalities, "prior"], objective.weights, strict=True))

    def nll(name, c, s):
        # Decoders are float32; what they return is the location of the likelihood.
        location = model.decoders[name](torch.cat([c, s])[None].float())[0].double()
        if name == "text":
            return -torch.log_softmax(location, -1).gather(-1, x[name][i][:, None]).sum().item()
        image = x[name][i].double()
        tiny = name in {spec.name for spec in TINY}
        likelihood = Normal(location, TINY_SCALE) if tiny else Laplace(location, 0.75)
        return -likelihood.log_prob(image).sum().item()

    def renormalised():
        return {name: pi[name] / sum(pi[each] for each in names) for name in names}

    def subset_products():
        sizes = range(1, len(names) + 1)
        groups = [group for size in sizes for group in combinations(content.values(), size)]
        return [power(group, [1] * len(group)) for group in groups]

    def joint():
        if objective.name == "mopoe":
            products = subset_products()
            return products[int(draws.choice[i].double() * len(products))]
        if objective.fusion == "product":
            experts = [*content.values(), *([prior] if objective.name == "mvae" else [])]
            return power(experts, [1] * len(experts))
        reached, total = 0.0, sum(pi[name] for name in names)
        for name in names:
            reached += pi[name] / total
            if draws.choice[i] < reached:
                return content[name]
        raise AssertionError

    def divergence():
        if objective.name == "mvae":
            return kl_to(joint(), prior)
        if objective.name == "mmvae":
            return sum(share * kl_to(content[name], prior) for name, share in renormalised().items())
        if objective.name == "mopoe":
            divergences = [kl_to(q, prior) for q in subset_products()]
            return sum(divergences) / len(divergences)
        if objective.name == "mvtcae":
            alpha, q = objective.total_correlation, joint()
            of_unimodal = sum(share * kl_to(q, content[name]) for name, share in renormalised().items())
            return (1 - alpha) * kl_to(q, prior) + alpha * of_unimodal
        assert objective.name == "mmjsd", f"the divergence of {objective.name} has no reference yet"
        experts = {**content, "prior": prior}
        total = sum(pi[name] for name in experts)
        weights = [pi[name] / total for name in experts]
        if objective.dynamic_prior == "product":
            mean = power(experts.values(), weights)
            return sum(w * kl_to(q, mean) for w, q in zip(weights, experts.values(), strict=True))
        result = 0.0
        for weight, (name, q) in zip(weights, experts.items(), strict=True):
            row = [*model.modalities, "prior"].index(name)
            for noise in draws.prior[i, :, row].double():
                z = q.mean + q.stddev * noise
                densities = torch.stack([p.log_prob(z).sum() for p in experts.values()])
                mixture = torch.logsumexp(double(weights).log() + densities, 0)
                result += weight * (q.log_prob(z).sum() - mixture).item() / draws.prior.shape[1]
        return result

    def slow_importance_weighted():
        rows, log_weights = [], []
        for k in range(objective.importance_samples):
            c = q.mean + q.stddev * draws.content[i, k].double()
            densities = [
                share * content[name].log_prob(c).sum().exp() for name, share in renormalised().items()
            ]
            of_content = (sum(densities).log() - prior.log_prob(c).sum()).item()
            log_weight, nlls, of_style = -beta_content * of_content, {}, {}
            for name in names:
                own = normal(posteriors[name].style)
                s = own.mean + own.stddev * draws.style[name][i, k].double()
                standard = Normal(torch.zeros_like(own.mean), 1.0)
                of_style[name] = (own.log_prob(s) - standard.log_prob(s)).sum().item()
                nlls[name] = nll(name, c, s)
                log_weight -= objective.reconstruction_weights[name] * nlls[name]
                log_weight -= beta_style * objective.style_weights[name] * of_style[name]
            rows.append((of_content, nlls, of_style))
            log_weights.append(log_weight)

        def mean(values):
            return sum(values) / len(rows)

        return {
            "loss": -(torch.logsumexp(double(log_weights), 0) - double(len(rows)).log()).item(),
            "content_divergence": mean(of_content for of_content, _, _ in rows),
            "reconstruction": {name: mean(nlls[name] for _, nlls, _ in rows) for name in names},
            "style_divergence": {name: mean(of_style[name] for _, _, of_style in rows) for name in names},
        }

    beta_content, beta_style = objective.beta * objective.beta_content, objective.beta * objective.beta_style
    q = joint()
    if objective.importance_samples:
        return slow_importance_weighted()
    c = q.mean + q.stddev * draws.content[i].double()
    result = {"content_divergence": divergence(), "reconstruction": {}, "style_divergence": {}}
    loss = beta_content * result["content_divergence"]
    for name in names:
        own = normal(posteriors[name].style)
        s = own.mean + own.stddev * draws.style[name][i].double()
        style_kl = kl_to(own, Normal(torch.zeros_like(own.mean), 1.0))
        result["reconstruction"][name], result["style_divergence"][name] = nll(name, c, s), style_kl
        weight, style_weight = objective.reconstruction_weights[name], objective.style_weights[name]
        if objective.name == "mvtcae":
            weight *= 1 - objective.total_correlation * renormalised()[name]
        loss += weight * nll(name, c, s) + beta_style * style_weight * style_kl
        if objective.name == "mvae":
            alone = power([content[name], prior], [1, 1])
            c_alone = alone.mean + alone.stddev * draws.unimodal[name][i].double()
            loss += weight * nll(name, c_alone, s) + beta_style * style_weight * style_kl
            loss += beta_content * kl_to(alone, prior)
    return {**result, "loss": loss}
