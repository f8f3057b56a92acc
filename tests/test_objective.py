"""The bounds, against slow references and laws ..."""

import dataclasses
from typing import get_args

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmjsd.config import ModelConfig, ObjectiveConfig, ObjectiveName
from mmjsd.data import DATASETS
from mmjsd.gaussian import Gaussian, stack, standard_like
from mmjsd.likelihood import log_importance_weights, log_likelihood
from mmjsd.model import MultimodalVae, Posterior
from mmjsd.objective import (
    Draws,
    Terms,
    draw,
    elbo,
    jensen_shannon_mixture,
)
from mmjsd.specs import JOINT
from tests.conftest import TINY, linear_log_likelihood, seeded, some_data
from tests.slow import slow_elbo

BOUNDS = {
    **{name: {"name": name} for name in get_args(ObjectiveName)},
    "mmjsd, mixture prior": {"name": "mmjsd", "dynamic_prior": "mixture", "prior_samples": 2},
    "mmjsd, product": {"name": "mmjsd", "fusion": "product"},
    "mmvae, importance-weighted": {"name": "mmvae", "importance_samples": 3},
    "mvtcae": {"name": "mvtcae", "total_correlation": 0.7},
}
every_bound = pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS.keys())


# The bound, sample by sample from the equations, ...


def some_missing(model, batch) -> dict[str, torch.Tensor]:
    """Each sample lacks other modalities and has at least one."""
    masks = torch.rand(len(model.modalities), batch, generator=seeded(3)) < 0.6
    masks[torch.arange(batch) % len(masks), torch.arange(batch)] = True
    return dict(zip(model.modalities, masks, strict=True))


def assert_same_terms(terms: Terms, model, x, draws, present=None) -> None:
    for i in range(len(draws.content)):
        expected = slow_elbo(model, x, draws, i, present)
        for part in ("loss", "content_divergence"):
            assert getattr(terms, part)[i].item() == pytest.approx(expected[part], rel=2e-5, abs=2e-5)
        for part in ("reconstruction", "style_divergence"):
            values = {name: value[i].item() for name, value in getattr(terms, part).items()}
            zero_if_lacking = {name: expected[part].get(name, 0.0) for name in x}
            assert values == pytest.approx(zero_if_lacking, rel=2e-5, abs=2e-5)


def unlike_weights(num_modalities: int, style_dim: object) -> dict[str, object]:
    """Weights of an objective of which no two are equal, and none is one."""
    names = [spec.name for spec in TINY[:num_modalities]]
    shares = [1.0 + j for j in range(num_modalities + 1)][::-1]
    return {
        "style_dim": style_dim,
        "weights": tuple(share / sum(shares) for share in shares),
        "beta": 1.7,
        "beta_content": 0.6,
        "beta_style": 2.3,
        "style_weights": {name: 0.5 + 0.3 * j for j, name in enumerate(names)},
        "reconstruction_weights": {name: 1.4 + 0.9 * j for j, name in enumerate(names)},
    }


@every_bound
@pytest.mark.parametrize("num_modalities", [1, 2, 3, 5])
@pytest.mark.parametrize("style_dim", [0, 2])
def test_matches_the_slow_reference(tiny, bound, num_modalities, style_dim):
    model = tiny(num_modalities, **unlike_weights(num_modalities, style_dim), **bound)
    x, draws = some_data(model, 4), draw(model, 4, seeded(1))
    with torch.no_grad():
        assert_same_terms(elbo(model, x, draws), model, x, draws)


@every_bound
@pytest.mark.parametrize("num_modalities", [2, 3, 5])
def test_matches_the_slow_reference_where_samples_lack_modalities(tiny, bound, num_modalities):
    sizes = {spec.name: j for j, spec in enumerate(TINY[:num_modalities])}
    model = tiny(num_modalities, **unlike_weights(num_modalities, sizes), **bound)
    x, draws, present = some_data(model, 8), draw(model, 8, seeded(1)), some_missing(model, 8)
    del present[model.modalities[0]]
    with torch.no_grad():
        assert_same_terms(elbo(model, x, draws, present), model, x, draws, present)


@every_bound
@pytest.mark.parametrize("given_names", [("red",), ("blue",), ("red", "blue"), ("green", "blue")])
def test_matches_the_slow_reference_where_a_modality_is_left_out(tiny, bound, given_names):
    model = tiny(3, **unlike_weights(3, 2), **bound)
    draws = draw(model, 3, seeded(1))
    x = {name: value for name, value in some_data(model, 3).items() if name in given_names}
    with torch.no_grad():
        assert_same_terms(elbo(model, x, draws), model, x, draws)


@every_bound
def test_matches_the_slow_reference_on_images_and_text(bound):
    modalities = DATASETS["digits"].modalities
    sizes = ModelConfig(content_dim=4, style_dim={"mnist": 2, "svhn": 0, "text": 1}, width=0.05)
    model = MultimodalVae(modalities, sizes, ObjectiveConfig(weights=(0.4, 0.3, 0.2, 0.1), **bound))
    x, draws, present = some_data(model, 4), draw(model, 4, seeded(1)), some_missing(model, 4)
    with torch.no_grad():
        assert_same_terms(elbo(model, x, draws, present), model, x, draws, present)


# The bound ...


def parameters_gradient(model, loss) -> torch.Tensor:
    gradients = torch.autograd.grad(loss.sum(), list(model.parameters()), allow_unused=True)
    return torch.cat([torch.zeros(1) if each is None else each.flatten() for each in gradients])


@every_bound
def test_does_not_depend_on_hidden_content(tiny, bound):
    model = tiny(3, **bound)
    x, draws, present = some_data(model, 12), draw(model, 12, seeded()), some_missing(model, 12)
    noise = some_data(model, 12, seed=9)
    shown = {name: mask[:, None, None, None] for name, mask in present.items()}
    replaced = {name: torch.where(shown[name], x[name], 9 * noise[name]) for name in x}
    losses = [elbo(model, each, draws, present).loss for each in (x, replaced)]
    assert torch.equal(losses[0], losses[1])
    assert_close(*(parameters_gradient(model, loss) for loss in losses), rtol=1e-6, atol=1e-6)


@every_bound
def test_passes_a_gradient_to_shown_content_alone(tiny, bound):
    model = tiny(3, **bound)
    x = {name: value.requires_grad_() for name, value in some_data(model, 12).items()}
    present = some_missing(model, 12)
    loss = elbo(model, x, draw(model, 12, seeded()), present).loss
    for name, gradient in zip(x, torch.autograd.grad(loss.sum(), list(x.values())), strict=True):
        assert torch.equal((gradient != 0).flatten(1).any(1), present[name])


@every_bound
def test_treats_a_modality_that_all_lack_like_one_left_out(tiny, bound):
    model = tiny(3, **bound)
    x, draws = some_data(model, 4), draw(model, 4, seeded())
    hidden = elbo(model, x, draws, {"green": torch.zeros(4, dtype=torch.bool)})
    left_out = elbo(model, {name: value for name, value in x.items() if name != "green"}, draws)
    assert_close(hidden.loss, left_out.loss)
    assert_close(hidden.content_divergence, left_out.content_divergence)
    assert set(left_out.reconstruction) == set(left_out.style_divergence) == {"red", "blue"}


@every_bound
def test_ignores_the_order_in_which_modalities_are_given(tiny, bound):
    model = tiny(3, **bound)
    x, draws = some_data(model, 4), draw(model, 4, seeded())
    assert torch.equal(elbo(model, dict(reversed(x.items())), draws).loss, elbo(model, x, draws).loss)


@every_bound
def test_of_all_rows_is_that_of_parts(tiny, bound):
    model = tiny(3, **bound)
    x, draws, present = some_data(model, 7), draw(model, 7, seeded()), some_missing(model, 7)
    whole = elbo(model, x, draws, present)
    for rows in (slice(0, 3), slice(3, 7)):
        part = elbo(
            model,
            {name: value[rows] for name, value in x.items()},
            draws.rows(rows),
            {name: mask[rows] for name, mask in present.items()},
        )
        assert_close(part.loss, whole.loss[rows])
        assert_close(part.content_divergence, whole.content_divergence[rows])


@pytest.mark.parametrize(
    "bound",
    [bound for bound in BOUNDS.values() if "importance_samples" not in bound],
    ids=lambda each: str(each),
)
@pytest.mark.parametrize(
    "field", ["beta", "beta_content", "beta_style", "style_weights", "reconstruction_weights"]
)
def test_is_linear_in_its_weights(tiny, bound, field):
    model = tiny(3, **bound)
    x, draws, present = some_data(model, 6), draw(model, 6, seeded()), some_missing(model, 6)
    resolved = model.objective

    def loss(value):
        values = {**getattr(resolved, field), "green": value} if field.endswith("weights") else value
        model.objective = dataclasses.replace(resolved, **{field: values})
        return elbo(model, x, draws, present).loss

    slope = loss(1.0) - loss(0.0)
    assert_close(loss(3.0), loss(0.0) + 3 * slope, rtol=1e-4, atol=1e-4)
    if bound["name"] in ("mvae", "mvtcae"):
        return
    terms = elbo(model, x, draws, present)
    style = sum(resolved.style_weights[name] * terms.style_divergence[name] for name in x)
    expected = {
        "beta": terms.content_divergence + style,
        "beta_content": resolved.beta * terms.content_divergence,
        "beta_style": resolved.beta * style,
        "style_weights": resolved.beta * terms.style_divergence["green"],
        "reconstruction_weights": terms.reconstruction["green"],
    }
    assert_close(slope, expected[field], rtol=1e-4, atol=1e-4)


def expected_bound(model, x) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard error of the bound, each sample with many draws."""
    repeated = {name: value.repeat_interleave(10_000, 0) for name, value in x.items()}
    batch = len(next(iter(repeated.values())))
    bounds = -elbo(model, repeated, draw(model, batch, seeded())).loss.reshape(-1, 10_000)
    return bounds.mean(1), bounds.std(1) / 10_000**0.5


@pytest.mark.parametrize("name", ["mmvae", "mopoe", "mvae"])
@pytest.mark.parametrize("style_dim", [0, 1])
@torch.no_grad()
def test_lies_below_the_log_likelihood(linear, name, style_dim):
    model = linear(2, style_dim, name=name)
    x = some_data(model, 3)
    log_likelihood = linear_log_likelihood(model, x)
    if name == "mvae":  # its loss holds the bound of each modality alone too
        log_likelihood += sum(linear_log_likelihood(model, {each: value}) for each, value in x.items())
    mean, standard_error = expected_bound(model, x)
    assert (mean < log_likelihood + 3 * standard_error).all()


@pytest.mark.parametrize("num_modalities", [1, 2])
@torch.no_grad()
def test_rises_towards_the_log_likelihood_with_importance_samples(linear, num_modalities):
    model = linear(num_modalities, 1, name="mmvae")
    x = some_data(model, 3)
    exact, bounds = linear_log_likelihood(model, x), []
    for num_samples in (1, 4, 32):
        model.objective = dataclasses.replace(model.objective, importance_samples=num_samples)
        mean, standard_error = expected_bound(model, x)
        assert (mean < exact + 3 * standard_error).all()
        bounds.append(mean)
    assert (bounds[0] < bounds[1]).all()
    assert (bounds[1] < bounds[2]).all()
    if (
        num_modalities == 1
    ):  # of several experts one makes all draws of a sample, which misses what others know
        assert ((exact - bounds[2]) < 0.35 * (exact - bounds[0])).all()


@torch.no_grad()
def test_of_importance_samples_is_what_the_likelihood_of_held_out_data_is_made_of(linear):
    model = linear(3, 1, name="mmvae", importance_samples=5)
    x = some_data(model, 4)
    draws = draw(model, 4, seeded())
    one_by_one = [
        Draws(draws.content[:, k], draws.choice, {name: each[:, k] for name, each in draws.style.items()})
        for k in range(5)
    ]
    posteriors = model.posteriors(x)
    (weights,) = log_importance_weights(model, x, posteriors, [(model.modalities, "mixture")], one_by_one)
    assert_close(elbo(model, x, draws).loss, -log_likelihood(weights[JOINT]))


@pytest.mark.parametrize("name", ["mmvae", "mopoe", "mvae"])
@torch.no_grad()
def test_is_the_log_likelihood_where_the_posterior_is_the_true_one(linear, name):
    # W has orthogonal columns of squared lengths 4 and 1: c given x has precisions 1 + 4 and 1 + 1.
    model = linear(1, 0, name=name)
    decoder, head = model.decoders["red"][0], model.heads["red"]
    weight, squared_lengths = torch.zeros(6, 2), torch.tensor([4.0, 1.0])
    weight[0, 0], weight[3, 1] = 2.0, 1.0
    decoder.weight.copy_(weight)
    # mvae multiplies the expert by the prior, whose precision 1 it brings along.
    precision = squared_lengths + (0.0 if name == "mvae" else 1.0)
    head.weight.copy_(torch.cat([weight.T / precision[:, None], torch.zeros(2, 6)]))
    head.bias.copy_(torch.cat([-(weight.T @ decoder.bias) / precision, -precision.log()]))
    x = some_data(model, 3)
    num_bounds = 2 if name == "mvae" else 1
    mean, standard_error = expected_bound(model, x)
    assert ((mean - num_bounds * linear_log_likelihood(model, x)).abs() < 3 * standard_error).all()


def answers(monkeypatch, model, **content) -> dict[str, torch.Tensor]:
    """Let the encoders answer these means and variances, whatever the sample is; some sample."""
    none = Gaussian(*torch.zeros(2, 1, 0))
    posteriors = {
        name: Posterior(Gaussian(torch.tensor([mu]), torch.tensor([variance]).log()), none)
        for name, (mu, variance) in content.items()
    }
    model.config = ModelConfig(content_dim=2, style_dim=0)
    monkeypatch.setattr(model, "posteriors", lambda x: posteriors)
    for spec in model.specs:
        model.decoders[spec.name] = nn.Sequential(nn.Linear(2, spec.size), nn.Unflatten(1, (1, 1, spec.size)))
    return some_data(model, 1)


# First latent: q_1 = N(2, 1) and q_2 = N(0, 1/3), whose product is N(1/2, 1/4). KLs to the prior 2,
# 0.2159728 and 0.4431472; of the product to q_1 1.4431472, to q_2 0.3938410.
# Second latent: q_1 = N(0, 1) and q_2 = N(0, 1/2), whose product is N(0, 1/3). KLs to the prior 0,
# 0.0965736 and 0.2159728; of the product to q_1 0.2159728, to q_2 0.0360659.
UNLIKE_PAIR = {"red": ([2.0, 0.0], [1.0, 1.0]), "green": ([0.0, 0.0], [1 / 3, 1 / 2])}


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        ({"name": "mopoe"}, (2 + 0.2159728 + 0.4431472 + 0.0965736 + 0.2159728) / 3),
        ({"name": "mvtcae", "total_correlation": 0.0}, 0.4431472 + 0.2159728),
        (
            {"name": "mvtcae", "total_correlation": 1.0},
            (1.4431472 + 0.2159728) * 0.6 + (0.3938410 + 0.0360659) * 0.4,
        ),
        (
            {"name": "mvtcae"},
            0.1 * 0.65912 + 0.9 * ((1.4431472 + 0.2159728) * 0.6 + (0.3938410 + 0.0360659) * 0.4),
        ),
    ],
)
def test_content_divergence_matches_numbers_worked_by_hand(monkeypatch, tiny, bound, expected):
    model = tiny(2, style_dim=0, weights=(0.3, 0.2, 0.5), **bound)
    x = answers(monkeypatch, model, **UNLIKE_PAIR)
    divergence = elbo(model, x, draw(model, 1, seeded())).content_divergence
    assert divergence.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("num_modalities", [1, 2, 3])
@torch.no_grad()
def test_of_mvtcae_keeps_as_much_of_the_log_likelihood_as_published(tiny, num_modalities):
    model = tiny(num_modalities, style_dim=0, name="mvtcae", total_correlation=0.9, beta=0)
    x, draws = some_data(model, 4), draw(model, 4, seeded())
    terms = elbo(model, x, draws)
    weighted = sum(
        model.objective.reconstruction_weights[name] * each for name, each in terms.reconstruction.items()
    )
    assert_close(terms.loss, (num_modalities - 0.9) / num_modalities * weighted)


def test_with_a_mixture_prior_is_unbiased(tiny):
    model = tiny(2, **BOUNDS["mmjsd, mixture prior"])
    x = {name: value.expand(20_000, -1, -1, -1) for name, value in some_data(model, 1).items()}
    with torch.no_grad():
        estimates = elbo(model, x, draw(model, 20_000, seeded())).content_divergence
        one = model.posteriors({name: value[:1] for name, value in x.items()})
        experts = [posterior.content for posterior in one.values()]
        experts = stack([*experts, standard_like(experts[0])])
        reference = jensen_shannon_mixture(experts, torch.ones(3) / 3, 20_000, seeded(5))
    assert abs(estimates.mean() - reference) < 3 * (2**0.5) * estimates.std() / 20_000**0.5


# The draws of a bound ...


@every_bound
def test_draws_have_one_row_a_sample_and_repeat_with_their_generator(tiny, bound):
    model = tiny(2, style_dim={"red": 2, "green": 0}, **bound)
    first, second = (draw(model, 5, seeded(4)) for _ in range(2))
    rows = (5, 3) if "importance_samples" in bound else (5,)
    assert first.content.shape == (*rows, 3)
    assert first.choice.shape == (5,)
    assert first.style["red"].shape == (*rows, 2)
    assert first.style["green"].shape == (*rows, 0)
    assert {name: noise.shape for name, noise in first.unimodal.items()} == (
        {"red": (5, 3), "green": (5, 3)} if bound["name"] == "mvae" else {}
    )
    mixture_prior = "dynamic_prior" in bound
    assert (None if first.prior is None else first.prior.shape) == ((5, 2, 3, 3) if mixture_prior else None)
    assert torch.equal(first.content, second.content)
    assert torch.equal(first.choice, second.choice)
    assert all(torch.equal(first.style[name], second.style[name]) for name in first.style)


def test_draws_are_normal_and_choices_uniform(tiny):
    draws = draw(tiny(2, **BOUNDS["mmjsd, mixture prior"]), 20_000, seeded())
    for noise in (draws.content, draws.style["red"], draws.style["green"], draws.prior):
        assert abs(noise.mean()) < 0.02
        assert abs(noise.std() - 1) < 0.02
    assert 0 <= draws.choice.min() < 1e-3
    assert 1 - 1e-3 < draws.choice.max() < 1
    assert abs(draws.choice.mean() - 0.5) < 0.01
    assert abs((draws.style["red"] * draws.style["green"]).mean()) < 0.03
