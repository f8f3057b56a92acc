"""The Jensen-Shannon divergence around either dynamic prior ..."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from torch.testing import assert_close

from mmjsd.config import ModelConfig
from mmjsd.gaussian import Gaussian, kl, product
from mmjsd.model import Posterior
from mmjsd.networks import NETWORKS
from mmjsd.objective import (
    _jensen_shannon_mixture,
    draw,
    elbo,
    jensen_shannon,
    jensen_shannon_mixture,
)
from tests.conftest import double, seeded, some_data, weighted_experts

GRID = torch.linspace(-30, 30, 30_001, dtype=torch.float64)
GOLDEN = json.loads((Path(__file__).parent / "golden" / "divergences.json").read_text())["cases"]


def entropy(weights) -> torch.Tensor:
    return -torch.special.xlogy(weights, weights).sum()


# Both Jensen-Shannon divergences, the second with its noise held fixed, ...


def around_mixture(experts, weights, seed=0):
    """The divergence around the mixture; the noise of an expert depends on nothing but its position."""
    shape = (2, *experts.mu.shape[1:])
    noise = [torch.randn(shape, generator=seeded(seed + j), dtype=torch.float64) for j in range(len(weights))]
    return _jensen_shannon_mixture(experts, weights, torch.stack(noise, dim=1))


either = pytest.mark.parametrize("divergence", [jensen_shannon, around_mixture])


@either
@given(case=weighted_experts())
def test_is_zero_when_all_experts_agree(divergence, case):
    experts, weights = case
    same = Gaussian(experts.mu[:1].expand_as(experts.mu), experts.logvar[:1].expand_as(experts.mu))
    assert_close(divergence(same, weights), torch.zeros_like(experts.mu[0, :, 0]), rtol=0, atol=1e-10)


@given(weighted_experts())
def test_is_not_negative(case):
    assert (jensen_shannon(*case) >= -1e-9).all()


@given(weighted_experts(), st.randoms(use_true_random=False))
def test_ignores_the_order_of_experts(case, random):
    experts, weights = case
    order = random.sample(range(len(weights)), len(weights))
    moved = Gaussian(experts.mu[order], experts.logvar[order])
    assert_close(jensen_shannon(moved, weights[order]), jensen_shannon(experts, weights))
    noise = torch.randn(3, *experts.mu.shape, generator=seeded(), dtype=torch.float64)
    assert_close(
        _jensen_shannon_mixture(moved, weights[order], noise[:, order]),
        _jensen_shannon_mixture(experts, weights, noise),
    )


@either
@given(case=weighted_experts(), scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_ignores_affine_changes_of_latent_coordinates(divergence, case, scale, shift):
    experts, weights = case
    moved = Gaussian(scale * experts.mu + shift, experts.logvar + 2 * math.log(scale))
    assert_close(divergence(moved, weights), divergence(experts, weights))


@either
@given(case=weighted_experts())
def test_zero_weight_removes_an_expert_and_its_gradient(divergence, case):
    experts, weights = case
    ghost = torch.full_like(experts.mu[:1], 7.0).requires_grad_()
    extended = Gaussian(torch.cat([experts.mu, ghost]), torch.cat([experts.logvar, ghost]))
    with_ghost = divergence(extended, torch.cat([weights, weights.new_zeros(1)]))
    assert_close(with_ghost, divergence(experts, weights), rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.autograd.grad(with_ghost.sum(), ghost)[0], torch.zeros_like(ghost))


@either
@given(case=weighted_experts())
def test_takes_weights_of_each_sample(divergence, case):
    experts, weights = case
    batch = experts.mu.shape[1]
    assert_close(divergence(experts, weights[:, None].expand(-1, batch)), divergence(experts, weights))
    own = torch.rand(len(weights), batch, generator=seeded(), dtype=torch.float64) + 0.01
    own = own / own.sum(0)
    each = [divergence(experts, own[:, i])[i] for i in range(batch)]
    assert_close(divergence(experts, own), torch.stack(each))


@either
@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (1, 2, 3)])
def test_takes_any_number_of_batch_axes(divergence, shape):
    experts = Gaussian(*torch.randn(2, 4, *shape, 5, generator=seeded(), dtype=torch.float64))
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    flat = Gaussian(experts.mu.reshape(4, -1, 5), experts.logvar.reshape(4, -1, 5))
    found = divergence(experts, weights)
    assert found.shape == shape
    assert_close(found.flatten(), divergence(flat, weights))


@given(weighted_experts())
def test_adds_over_latent_dimensions(case):
    experts, weights = case
    latents = zip(experts.mu.split(1, dim=-1), experts.logvar.split(1, dim=-1), strict=True)
    each = [jensen_shannon(Gaussian(mu, logvar), weights) for mu, logvar in latents]
    assert_close(jensen_shannon(experts, weights), sum(each))


# The divergence around the geometric mean ...


def test_matches_numbers_worked_by_hand():
    # Latent 1: f = N(1, 1), both KLs 1/2. Latent 2: f = N(0, 1.6), KLs 0.0475018 and 0.2918547.
    mu = torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]]])
    var = torch.tensor([[[1.0, 1.0]], [[1.0, 4.0]]])
    divergence = jensen_shannon(Gaussian(mu, var.log()), torch.tensor([0.5, 0.5]))
    assert_close(divergence, torch.tensor([0.5 + 0.1696783]))


def three_experts(latent: int) -> tuple[Gaussian, torch.Tensor]:
    """Three unlike experts of one sample, the prior last, with unlike weights."""
    mu = double([[1.0, -0.6], [-1.5, 0.4], [0.0, 0.0]])[:, None, :latent]
    logvar = double([[-0.7, 0.5], [0.4, -1.2], [0.0, 0.0]])[:, None, :latent]
    return Gaussian(mu, logvar), double([0.5, 0.3, 0.2])


def test_matches_quadrature_over_each_latent():
    experts, weights = three_experts(latent=2)
    expected = 0.0
    for d in range(2):
        one = Gaussian(experts.mu[:, :, d : d + 1], experts.logvar[:, :, d : d + 1])
        log_q = one.log_prob(GRID[:, None, None, None])[..., 0]
        log_f = (weights * log_q).sum(-1, keepdim=True)
        log_f = log_f - math.log(trapezoid(log_f[:, 0].exp(), GRID))
        expected += trapezoid((weights * log_q.exp() * (log_q - log_f)).sum(-1), GRID)
    assert jensen_shannon(experts, weights).item() == pytest.approx(expected, abs=1e-9)


def golden_experts(case) -> tuple[Gaussian, torch.Tensor]:
    """The experts of a golden case in our order: the prior last."""
    shape = case["E"], case["B"], case["D"]
    i = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    mu, logvar = (1.3 * i + case["seed"]).sin(), 0.7 * (0.9 * i + 2 * case["seed"]).cos()
    prior_last = Gaussian(*(torch.cat([each[1:], torch.zeros_like(each[:1])]) for each in (mu, logvar)))
    return prior_last, double([*case["weights"][1:], case["weights"][0]])


@pytest.mark.parametrize("case", GOLDEN)
def test_reproduces_the_numbers_of_the_paper_authors(case):
    experts, weights = golden_experts(case)
    mean = product(experts, weights)
    assert mean.mu[0, 0].item() == pytest.approx(case["geometric_mu00"], rel=1e-6)
    assert mean.logvar[0, 0].item() == pytest.approx(case["geometric_logvar00"], rel=1e-6)
    terms = kl(experts, mean).mean(1).roll(1)
    assert terms.tolist() == pytest.approx(case["jsd_terms"], rel=1e-6)
    assert jensen_shannon(experts, weights).mean().item() == pytest.approx(case["jsd_product"], rel=1e-6)


@pytest.mark.parametrize("case", GOLDEN)
@pytest.mark.parametrize(
    ("name", "key"), [("mmjsd", "jsd_product"), ("mmvae", "kl_mixture"), ("mvae", "kl_product")]
)
def test_content_divergence_reproduces_the_numbers_of_the_paper_authors(monkeypatch, tiny, case, name, key):
    experts, weights = golden_experts(case)
    model = tiny(len(weights) - 1, style_dim=0, name=name, weights=tuple(weights.tolist()))
    model.config = ModelConfig(content_dim=case["D"], style_dim=0)
    none = Gaussian(*torch.zeros(2, case["B"], 0, dtype=torch.float64))
    golden = {
        modality: Posterior(Gaussian(experts.mu[j], experts.logvar[j]), none)
        for j, modality in enumerate(model.modalities)
    }
    monkeypatch.setattr(model, "posteriors", lambda x: golden)
    for spec in model.specs:
        model.decoders[spec.name] = NETWORKS[spec.name].decoder(case["D"], lambda units: units).double()
    terms = elbo(model, some_data(model, case["B"]), draw(model, case["B"], seeded()))
    assert terms.content_divergence.mean().item() == pytest.approx(case[key], rel=1e-6)


# The divergence around the arithmetic mean ...


def mixture_divergence_by_quadrature(experts, weights) -> float:
    """One sample, one or two latents, on a grid."""
    axis = torch.linspace(-12, 12, 801, dtype=torch.float64)
    axes = torch.meshgrid(*[axis] * experts.mu.shape[-1], indexing="ij")
    log_q = experts.log_prob(torch.stack(axes, dim=-1)[..., None, None, :])[..., 0]
    log_mixture = (weights * log_q.exp()).sum(-1, keepdim=True).log().clamp(min=-1e4)
    values = (weights * log_q.exp() * (log_q - log_mixture)).sum(-1)
    for _ in axes:
        values = trapezoid(values, axis, axis=0)
    return float(values)


def repeat(experts, batch) -> Gaussian:
    shape = (-1, batch, -1)
    return Gaussian(experts.mu.expand(shape), experts.logvar.expand(shape))


@pytest.mark.parametrize("latent", [1, 2])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_is_unbiased(latent, num_samples):
    experts, weights = three_experts(latent)
    estimates = jensen_shannon_mixture(repeat(experts, 60_000), weights, num_samples, seeded())
    standard_error = estimates.std() / len(estimates) ** 0.5
    expected = mixture_divergence_by_quadrature(experts, weights)
    assert abs(estimates.mean().item() - expected) < 3 * standard_error
    assert standard_error < 0.01 * expected


def test_is_estimated_better_by_more_samples():
    experts, weights = three_experts(latent=2)
    experts = repeat(experts, 2_000)
    few, many = (jensen_shannon_mixture(experts, weights, n, seeded()).var().item() for n in (1, 16))
    assert many == pytest.approx(few / 16, rel=0.15)


def test_has_an_unbiased_gradient():
    experts, weights = three_experts(latent=1)
    step = double([[[1e-4]], [[0.0]], [[0.0]]])
    many = repeat(experts, 60_000)
    mu, logvar = many.mu.clone().requires_grad_(), many.logvar.clone().requires_grad_()
    estimate = jensen_shannon_mixture(Gaussian(mu, logvar), weights, 1, seeded()).sum()
    gradients = dict(zip(("mu", "logvar"), torch.autograd.grad(estimate, [mu, logvar]), strict=True))
    for name, gradient in gradients.items():
        value = getattr(experts, name)
        up, down = (
            mixture_divergence_by_quadrature(dataclasses.replace(experts, **{name: moved}), weights)
            for moved in (value + step, value - step)
        )
        standard_error = gradient[0].std().item() / 60_000**0.5
        assert abs(gradient[0].mean().item() - (up - down) / 2e-4) < 3 * standard_error


@given(weighted_experts(), st.floats(0, 50), st.integers(0, 1000))
def test_never_exceeds_the_entropy_of_its_weights(case, spread, seed):
    experts, weights = case
    apart = torch.arange(len(weights), dtype=torch.float64)[:, None, None]
    separated = Gaussian(experts.mu + spread * apart, experts.logvar)
    for num_samples in (1, 3):
        estimate = jensen_shannon_mixture(separated, weights, num_samples, seeded(seed))
        assert (estimate <= entropy(weights) + 1e-9).all()


def test_is_the_entropy_of_its_weights_where_experts_are_far_apart():
    mu = double([[[0.0, 0.0]], [[300.0, 0.0]], [[0.0, -300.0]]])
    weights = double([0.5, 0.2, 0.3])
    divergence = jensen_shannon_mixture(Gaussian(mu, torch.zeros_like(mu)), weights, 1, seeded())
    assert_close(divergence, entropy(weights)[None])


def test_repeats_with_its_generator_and_leaves_the_global_one_alone():
    experts, weights = three_experts(latent=2)
    before = torch.get_rng_state()
    first, second, other = (jensen_shannon_mixture(experts, weights, 4, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
