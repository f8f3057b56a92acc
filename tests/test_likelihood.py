"""Importance sampling: against closed forms of linear-Gaussian models, and draw by draw against loops."""

import math
from itertools import combinations, pairwise

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.testing import assert_close

from mmjsd.likelihood import log_importance_weights, log_likelihood, log_likelihood_as_released
from mmjsd.model import subsets
from mmjsd.objective import draw_latents
from mmjsd.specs import JOINT
from tests.conftest import TINY, TINY_SCALE, linear_log_likelihood, seeded

NAMES = tuple(spec.name for spec in TINY[:3])
LENGTHS = {"red": (1.0, 0.6, 1.5), "green": (0.7, 1.2, 0.5), "blue": (0.5, 0.8, 2.0)}
"""Squared lengths of the decoders' orthogonal columns: two for content, one for style."""

FUSIONS = {
    "product": ({"name": "mmjsd"}, "product"),
    "mixture": ({"name": "mmjsd"}, "mixture"),
    "mixture of products": ({"name": "mopoe"}, "mixture"),
    "product with the prior": ({"name": "mvae"}, "product"),
    "mixture of products with the prior": ({"name": "mvae"}, "mixture"),
}
every_fusion = pytest.mark.parametrize(("objective", "fusion"), FUSIONS.values(), ids=FUSIONS.keys())
every_subset = pytest.mark.parametrize("given", subsets(NAMES), ids="+".join)


def some_data(model, batch) -> dict[str, torch.Tensor]:
    return {spec.name: 0.5 * torch.randn(batch, *spec.shape, generator=seeded()) for spec in model.specs}


def targets(x) -> dict[str, dict[str, torch.Tensor]]:
    return {JOINT: x, **{name: {name: value} for name, value in x.items()}}


@torch.no_grad()
def encode_exactly(model, prior_share, width=1.0) -> None:
    """Let q(s_j | x_j) be the true posterior, and q(c | x_j) the likelihood times that power of the prior.

    W_j has orthogonal columns of squared lengths l, so that the latents given x_j are independent, of
    precision l + 1 and mean W_j^T (x_j - b_j) / (l + 1). All variances are then `width` times as large.
    """
    for name in model.modalities:
        decoder, head = model.decoders[name][0], model.heads[name]
        lengths = torch.tensor(LENGTHS[name])
        columns = torch.linalg.qr(torch.randn(len(decoder.bias), 3, generator=seeded()))[0]
        decoder.weight.copy_(columns * lengths.sqrt())
        precision = lengths + torch.tensor([prior_share, prior_share, 1.0])
        weight = decoder.weight.T / precision[:, None]
        bias, logvar = -weight @ decoder.bias, (width / precision).log()
        order = [0, 1, 3, 4, 2, 5]  # content's means and variances, then the style's
        head.weight.copy_(torch.cat([weight, torch.zeros_like(weight)])[order])
        head.bias.copy_(torch.cat([bias, logvar])[order])


@torch.no_grad()
def weights_of(model, x, given, fusion, num_samples=1, seed=0) -> dict[str, torch.Tensor]:
    batch = len(next(iter(x.values())))
    rng = seeded(seed)
    draws = [draw_latents(model, batch, rng) for _ in range(num_samples)]
    return log_importance_weights(model, x, model.posteriors(x), [(given, fusion)], draws)[0]


@torch.no_grad()
def many_weights(model, x, given, fusion, num_samples) -> dict[str, torch.Tensor]:
    """The weights of many draws, each as one sample of a large batch."""
    repeated = {name: value.repeat_interleave(num_samples, 0) for name, value in x.items()}
    weights = weights_of(model, repeated, given, fusion)
    return {target: each.reshape(-1, num_samples).double() for target, each in weights.items()}


# The estimate ...


@every_fusion
@every_subset
def test_is_unbiased_before_the_logarithm(linear, objective, fusion, given):
    model = linear(3, 1, weights=(0.5, 0.2, 0.1, 0.2), **objective)
    encode_exactly(model, prior_share=0.5, width=2.0)
    x = some_data(model, 2)
    weights = many_weights(model, x, given, fusion, 40_000)
    for target, of_target in targets(x).items():
        exact = linear_log_likelihood(model, of_target).double()
        ratio = (weights[target] - exact[:, None]).exp()
        standard_error = ratio.std(1) / 40_000**0.5
        assert (standard_error < 0.04).all()
        assert ((ratio.mean(1) - 1).abs() < 4 * standard_error).all()
        assert_close(log_likelihood(weights[target]), exact, rtol=0, atol=0.05)


@every_fusion
def test_rises_to_the_log_likelihood_with_the_number_of_samples(linear, objective, fusion):
    model = linear(3, 1, **objective)
    encode_exactly(model, prior_share=0.5, width=2.0)
    x = some_data(model, 2)
    weights = many_weights(model, x, ("red", "blue"), fusion, 2**15)
    for target, of_target in targets(x).items():
        exact = linear_log_likelihood(model, of_target).double()
        means = [
            log_likelihood(weights[target].reshape(-1, number)).reshape(2, -1).mean(1)
            for number in (1, 2, 8, 64, 2**15)
        ]
        for fewer, more in pairwise(means):
            assert (fewer < more).all() or (exact - fewer).abs().max() < 0.01
        assert ((exact - means[0]) > 5 * (exact - means[3])).all()


@pytest.mark.parametrize("objective", ["mmjsd", "mvae"])
@pytest.mark.parametrize("num_modalities", [1, 2, 3])
def test_is_exact_where_the_proposal_is_the_true_posterior(linear, objective, num_modalities):
    model = linear(num_modalities, 1, name=objective)
    # mvae's product brings the prior along; that of mmjsd needs a share of it from each expert.
    encode_exactly(model, prior_share=0.0 if objective == "mvae" else 1 / num_modalities)
    x = some_data(model, 5)
    weights = weights_of(model, x, model.modalities, "product", num_samples=3)[JOINT]
    exact = linear_log_likelihood(model, x)[:, None].expand(-1, 3)
    assert_close(weights, exact, rtol=0, atol=1e-4)
    encode_exactly(model, prior_share=0.0 if objective == "mvae" else 1.0)
    for name, value in x.items():
        alone = weights_of(model, x, [name], "product", num_samples=3)[name]
        exact = linear_log_likelihood(model, {name: value})[:, None].expand(-1, 3)
        assert_close(alone, exact, rtol=0, atol=1e-4)


def test_of_equal_weights_is_their_logarithm():
    weights = torch.tensor([[-1000.0, -1000.0, -1000.0], [2.0, 2.0, 2.0]])
    assert_close(log_likelihood(weights), torch.tensor([-1000.0, 2.0]))


def test_matches_numbers_worked_by_hand():
    weights = torch.tensor([[1.0, 3.0, 4.0, 8.0]]).log()
    assert_close(log_likelihood(weights), torch.tensor([math.log(4)]))


# The weights, draw by draw from the equations, ...


def normal(mu, logvar) -> Normal:
    return Normal(mu.double(), (0.5 * logvar.double()).exp())


def multiplied(experts) -> Normal:
    precision = sum(1 / q.variance for q in experts)
    return Normal(sum(q.mean / q.variance for q in experts) / precision, precision**-0.5)


def slow_weight(model, x, given, fusion, draws, i, target) -> float:
    """One sample's weight at one draw, by loops over torch.distributions."""
    posteriors = model.posteriors({name: value[i : i + 1] for name, value in x.items()})
    content = {name: normal(p.content.mu[0], p.content.logvar[0]) for name, p in posteriors.items()}
    prior = Normal(torch.zeros(3).double(), 1.0)
    pi = dict(zip([*model.modalities, "prior"], model.objective.weights, strict=True))
    if fusion == "product":
        groups = {tuple(given): 1.0}
    elif model.objective.name == "mopoe":
        sizes = range(1, len(given) + 1)
        groups = {group: 1.0 for size in sizes for group in combinations(given, size)}
    else:
        groups = {(name,): pi[name] for name in given}
    extra = [prior] if model.objective.name == "mvae" else []
    components = [multiplied([*(content[name] for name in group), *extra]) for group in groups]
    shares = torch.tensor(list(groups.values())).double()
    chosen = components[int((draws.choice[i].double() * shares.sum() >= shares.cumsum(0)).sum())]
    c = chosen.mean + chosen.stddev * draws.content[i].double()
    means, scales = (torch.stack([getattr(q, key) for q in components]) for key in ("mean", "stddev"))
    proposal = MixtureSameFamily(Categorical(shares), Independent(Normal(means, scales), 1))
    weight = prior.log_prob(c).sum() - proposal.log_prob(c)
    for name in model.modalities if target == JOINT else [target]:
        own = posteriors[name].style
        standard = Normal(torch.zeros_like(own.mu[0]).double(), 1.0)
        q = normal(own.mu[0], own.logvar[0]) if name in given else standard
        s = q.mean + q.stddev * draws.style[name][i].double()
        location = model.decoders[name](torch.cat([c, s])[None].float())[0].double()
        weight += Normal(location, TINY_SCALE).log_prob(x[name][i].double()).sum()
        weight += (standard.log_prob(s) - q.log_prob(s)).sum()
    return weight.item()


@every_fusion
@every_subset
@torch.no_grad()
def test_match_the_slow_reference(tiny, objective, fusion, given):
    sizes = {"red": 2, "green": 0, "blue": 1}
    model = tiny(3, style_dim=sizes, weights=(0.5, 0.2, 0.1, 0.2), **objective)
    x, rng = some_data(model, 4), seeded(1)
    draws = [draw_latents(model, 4, rng) for _ in range(3)]
    (weights,) = log_importance_weights(model, x, model.posteriors(x), [(given, fusion)], draws)
    assert set(weights) == {JOINT, *NAMES}
    for target, values in weights.items():
        expected = [
            [slow_weight(model, x, given, fusion, each, i, target) for each in draws] for i in range(4)
        ]
        assert_close(values.double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-3)


def test_of_a_row_belong_to_one_sample(tiny):
    model = tiny(3)
    x, rng = some_data(model, 5), seeded()
    draws = [draw_latents(model, 5, rng) for _ in range(4)]
    (all_weights,) = log_importance_weights(model, x, model.posteriors(x), [(NAMES, "mixture")], draws)
    together = all_weights[JOINT]
    for i in range(5):
        rows = slice(i, i + 1)
        alone = {name: value[rows] for name, value in x.items()}
        own = [each.rows(rows) for each in draws]
        (weights,) = log_importance_weights(model, alone, model.posteriors(alone), [(NAMES, "mixture")], own)
        assert_close(weights[JOINT], together[rows])


@pytest.mark.parametrize("objective", ["mmjsd", "mopoe", "mvae"])
@pytest.mark.parametrize("style_dim", [0, {"red": 2, "green": 0, "blue": 1}])
@torch.no_grad()
def test_of_several_proposals_are_those_of_each_and_cost_less_decoding(
    tiny, monkeypatch, objective, style_dim
):
    model = tiny(3, style_dim=style_dim, name=objective)
    x, rng = some_data(model, 50), seeded(1)
    draws = [draw_latents(model, 50, rng) for _ in range(2)]
    proposals = [(given, fusion) for given in subsets(NAMES) for fusion in ("product", "mixture")]
    decode, decoded = model.decode, []

    def counted(content, style):
        decoded.append(len(content) * len(style))
        return decode(content, style)

    monkeypatch.setattr(model, "decode", counted)
    found, cost = [], []
    for some in ([each] for each in proposals):
        found += log_importance_weights(model, x, model.posteriors(x), some, draws)
    cost.append(sum(decoded))
    decoded.clear()
    together = log_importance_weights(model, x, model.posteriors(x), proposals, draws)
    cost.append(sum(decoded))
    for one, each in zip(found, together, strict=True):
        for target in (JOINT, *NAMES):
            assert_close(each[target], one[target])
    # Without styles each subset is decoded once: mixtures take nothing that no other proposal has.
    assert cost[1] < cost[0] * 0.65 if style_dim else cost[1] == cost[0] * 7 / 14


# The estimate as released ...


def test_as_released_mixes_the_samples_of_a_batch():
    batch, number = 6, 4
    weights = torch.randn(batch, number, generator=seeded())
    estimates = log_likelihood_as_released(weights)
    for row in range(batch):
        flat = range(row * number, (row + 1) * number)
        mixed = torch.stack([weights[index % batch, index // batch] for index in flat])
        assert_close(estimates[row], mixed.logsumexp(0) - math.log(number))


def test_as_released_is_far_too_high_where_samples_differ():
    # Weights of a sample agree, so that the estimate should be their mean; mixed rows are led by their best.
    weights = (50 * torch.randn(2400, 1, generator=seeded())).expand(-1, 12)
    assert log_likelihood(weights).mean().item() == pytest.approx(weights.mean().item(), abs=1e-3)
    excess = log_likelihood_as_released(weights).mean() - weights.mean()
    assert excess.item() == pytest.approx(79, abs=5)
