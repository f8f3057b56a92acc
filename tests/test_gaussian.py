import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence
from torch.testing import assert_close

from mmjsd.gaussian import Gaussian, Mixture, kl, kl_to_standard, product, stack, standard_like
from tests.conftest import double, weighted_experts

BELOW_ONE = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0)).item()
GRID = torch.linspace(-40, 40, 40_001, dtype=torch.float64)


def as_normal(gaussian: Gaussian) -> Normal:
    return Normal(gaussian.mu, (0.5 * gaussian.logvar).exp())


def expert(experts: Gaussian, index) -> Gaussian:
    return Gaussian(experts.mu[index], experts.logvar[index])


# The Kullback-Leibler divergence ...


@given(weighted_experts(min_experts=2))
def test_kl_agrees_with_torch_distributions(case):
    experts, _ = case
    q, p = expert(experts, 0), expert(experts, 1)
    assert_close(kl(q, p), kl_divergence(as_normal(q), as_normal(p)).sum(-1))


@given(weighted_experts())
def test_kl_to_the_standard_normal_is_that_to_any_without_a_difference(case):
    experts, _ = case
    assert_close(kl_to_standard(experts), kl(experts, standard_like(experts)), rtol=0, atol=0)


def test_kl_matches_numbers_worked_by_hand():
    # Latent 1: N(1, 4) to N(0, 1), (4 + 1 - 1 - log 4) / 2.
    # Latent 2: N(0, 1) to N(0, 4), (1/4 - 1 + log 4) / 2.
    q = Gaussian(double([1.0, 0.0]), double([4.0, 1.0]).log())
    p = Gaussian(double([0.0, 0.0]), double([1.0, 4.0]).log())
    assert_close(kl(q, p), double(2 - 3 / 8))


def test_kl_matches_quadrature():
    q, p = Gaussian(double([0.7]), double([-0.4])), Gaussian(double([-0.5]), double([0.9]))
    log_q, log_p = q.log_prob(GRID[:, None]), p.log_prob(GRID[:, None])
    assert kl(q, p).item() == pytest.approx(trapezoid(log_q.exp() * (log_q - log_p), GRID), abs=1e-9)


def test_kl_broadcasts_one_gaussian_against_experts():
    experts = Gaussian(*torch.randn(2, 3, 4, 2))
    target = Gaussian(*torch.randn(2, 4, 2))
    each = torch.stack([kl(expert(experts, j), target) for j in range(3)])
    assert_close(kl(experts, target), each)


# A Gaussian's draws and densities ...


@given(weighted_experts(), st.integers(0, 100))
def test_log_prob_agrees_with_torch_distributions(case, seed):
    experts, _ = case
    rng = torch.Generator().manual_seed(seed)
    z = 5 * torch.randn(6, *experts.mu.shape, generator=rng, dtype=torch.float64)
    assert_close(experts.log_prob(z), as_normal(experts).log_prob(z).sum(-1))


def test_sample_moves_noise_to_mean_and_standard_deviation():
    gaussian = Gaussian(double([1.0, -2.0]), double([4.0, 9.0]).log())
    assert_close(gaussian.sample(double([0.5, -1.0])), double([2.0, -5.0]))


def test_sample_passes_gradients_to_mean_and_variance():
    mu, logvar = double([1.0]).requires_grad_(), double([math.log(4.0)]).requires_grad_()
    noise = double([[0.5], [3.0]])
    gradients = torch.autograd.grad(Gaussian(mu, logvar).sample(noise).sum(), [mu, logvar])
    assert_close(gradients[0], double([2.0]))
    assert_close(gradients[1], double([0.5 * 2 * 0.5 + 0.5 * 2 * 3]))


def test_standard_like_is_the_prior_of_the_same_shape_and_type():
    prior = standard_like(Gaussian(*torch.randn(2, 4, 2, dtype=torch.float64)))
    assert_close(prior.log_prob(double([[1.0, 2.0]])), double([-2.5 - math.log(2 * math.pi)] * 4))


def test_stack_puts_gaussians_on_the_expert_axis_in_order():
    first, second = (Gaussian(*torch.randn(2, 4, 2)) for _ in range(2))
    experts = stack([first, second])
    assert torch.equal(experts.mu, torch.stack([first.mu, second.mu]))
    assert torch.equal(experts.logvar, torch.stack([first.logvar, second.logvar]))


# The product of experts ...


@given(weighted_experts())
def test_product_adds_weighted_precisions(case):
    experts, weights = case
    precision = weights[:, None, None] / experts.logvar.exp()
    fused = product(experts, weights)
    assert_close(fused.logvar.exp(), 1 / precision.sum(0))
    assert_close(fused.mu, (precision * experts.mu).sum(0) / precision.sum(0))


def test_product_matches_densities_multiplied_on_a_grid():
    experts = Gaussian(double([[[-1.0]], [[2.0]], [[0.5]]]), double([[[0.3]], [[-0.8]], [[1.1]]]))
    weights = double([0.2, 1.0, 0.7])
    log_density = (weights * experts.log_prob(GRID[:, None, None, None])[..., 0]).sum(-1)
    density = log_density.exp() / trapezoid(log_density.exp(), GRID)
    mean = trapezoid(density * GRID, GRID)
    variance = trapezoid(density * (GRID - mean) ** 2, GRID)
    fused = product(experts, weights)
    assert fused.mu.item() == pytest.approx(mean, abs=1e-9)
    assert fused.logvar.exp().item() == pytest.approx(variance, abs=1e-9)


def test_product_with_unit_weights_matches_numbers_worked_by_hand():
    # Precisions 1 + 1/4 = 5/4 and 1/2 + 2 = 5/2; means (0 + 4/4) / (5/4) and (2/2 - 2) / (5/2).
    experts = Gaussian(double([[[0.0, 2.0]], [[4.0, -1.0]]]), double([[[1.0, 2.0]], [[4.0, 0.5]]]).log())
    fused = product(experts, torch.ones(2, dtype=torch.float64))
    assert_close(fused.mu, double([[0.8, -0.4]]))
    assert_close(fused.logvar.exp(), double([[0.8, 0.4]]))


@given(weighted_experts())
def test_geometric_mean_of_equal_experts_is_the_expert(case):
    experts, weights = case
    first = expert(experts, 0)
    mean = product(stack([first] * len(weights)), weights)
    assert_close(mean.mu, first.mu)
    assert_close(mean.logvar, first.logvar)


@given(weighted_experts(), st.integers(0, 100))
def test_product_takes_weights_of_each_sample(case, seed):
    experts, weights = case
    batch = experts.mu.shape[1]
    rng = torch.Generator().manual_seed(seed)
    own = torch.rand(len(weights), batch, generator=rng, dtype=torch.float64) + 0.01
    fused = product(experts, own)
    for i in range(batch):
        alone = product(expert(experts, (slice(None), slice(i, i + 1))), own[:, i])
        assert_close(fused.mu[i : i + 1], alone.mu)
        assert_close(fused.logvar[i : i + 1], alone.logvar)
    everywhere = product(experts, weights[:, None].expand(-1, batch))
    assert_close(everywhere.mu, product(experts, weights).mu)


@given(weighted_experts())
def test_zero_weight_drops_an_expert_and_its_gradient(case):
    experts, weights = case
    ghost = torch.full_like(experts.mu[:1], 7.0).requires_grad_()
    extended = Gaussian(torch.cat([ghost, experts.mu]), torch.cat([ghost, experts.logvar]))
    fused, expected = product(extended, torch.cat([weights.new_zeros(1), weights])), product(experts, weights)
    assert_close(fused.mu, expected.mu, rtol=1e-12, atol=1e-12)
    assert_close(fused.logvar, expected.logvar, rtol=1e-12, atol=1e-12)
    gradient = torch.autograd.grad(fused.mu.sum() + fused.logvar.sum(), ghost)[0]
    assert torch.equal(gradient, torch.zeros_like(ghost))


def test_product_keeps_tiny_and_huge_variances():
    experts = Gaussian(double([[[1.0, 1.0]], [[3.0, 3.0]]]), double([[[-300.0, 300.0]], [[-300.0, 300.0]]]))
    fused = product(experts, double([0.5, 0.5]))
    assert_close(fused.mu, double([[2.0, 2.0]]))
    assert_close(fused.logvar, double([[-300.0, 300.0]]))


# A mixture's choice ...


def ladder(num_experts: int, batch: int) -> Gaussian:
    """Experts that tell their index: mu = 0, 1, 2, ...; logvar = 0, -1, -2, ..."""
    mu = torch.arange(float(num_experts))[:, None, None].expand(num_experts, batch, 2)
    return Gaussian(mu, -mu)


@st.composite
def weights_with_zeros(draw):
    """Float32 weights of one to five experts; some are zero, not all."""
    weights = draw(st.lists(st.sampled_from([0.0, 0.0, 0.1, 0.25, 1 / 3, 0.7, 3.0]), min_size=1, max_size=5))
    if not any(weights):
        weights[draw(st.integers(0, len(weights) - 1))] = 0.1
    return torch.tensor(weights)


def choose(experts, weights, choice):
    batch = experts.mu.shape[1]
    return Mixture(experts, weights.reshape(len(weights), -1).expand(-1, batch)).choose(choice)


@given(weights_with_zeros(), st.lists(st.floats(0, BELOW_ONE, width=32), max_size=5))
def test_choose_never_takes_an_expert_of_weight_zero(weights, choices):
    choice = torch.tensor([0.0, BELOW_ONE, *choices])
    chosen = choose(ladder(len(weights), len(choice)), weights, choice)
    assert (weights[chosen.mu[:, 0].long()] > 0).all()
    positive = weights.nonzero()[:, 0]
    assert chosen.mu[0, 0] == positive[0]
    assert chosen.mu[1, 0] == positive[-1]


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_choose_takes_experts_as_often_as_their_weights_say(scale):
    choice = (torch.arange(1000) + 0.5) / 1000
    chosen = choose(ladder(4, 1000), scale * torch.tensor([0.2, 0.47, 0.0, 0.33]), choice).mu[:, 0]
    assert chosen.long().bincount(minlength=4).tolist() == [200, 470, 0, 330]


def test_choose_takes_weights_of_each_sample():
    weights = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])
    chosen = choose(ladder(2, 3), weights, torch.tensor([0.9, 0.1, 0.6]))
    assert_close(chosen.mu, torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]))
    assert_close(chosen.logvar, -chosen.mu)


def test_choose_passes_gradients_to_the_chosen_expert_alone():
    mu, logvar = (torch.randn(2, 3, 2, requires_grad=True) for _ in range(2))
    chosen = choose(Gaussian(mu, logvar), torch.tensor([0.5, 0.5]), torch.tensor([0.1, 0.6, 0.2]))
    expected = torch.zeros(2, 3, 2)
    expected[0, [0, 2]] = expected[1, 1] = 1
    assert torch.equal(torch.autograd.grad(chosen.mu.sum(), mu)[0], expected)
    assert torch.equal(torch.autograd.grad(chosen.logvar.sum(), logvar)[0], expected)


def test_choose_of_one_expert_is_the_expert():
    experts = Gaussian(*torch.randn(2, 1, 3, 2))
    chosen = choose(experts, torch.tensor([0.4]), torch.tensor([0.0, 0.5, BELOW_ONE]))
    assert torch.equal(chosen.mu, experts.mu[0])


# A mixture ...


@given(weighted_experts(), st.integers(0, 1000))
def test_mixture_has_the_density_of_torch_distributions(case, seed):
    experts, weights = case
    batch, latent = experts.mu.shape[1:]
    z = torch.randn(batch, latent, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    components = Independent(Normal(experts.mu.movedim(0, 1), (0.5 * experts.logvar.movedim(0, 1)).exp()), 1)
    expected = MixtureSameFamily(Categorical(weights.expand(batch, -1)), components).log_prob(z)
    mixture = Mixture(experts, weights[:, None].expand(-1, batch))
    assert_close(mixture.log_prob(z), expected)


def test_mixture_of_one_expert_needs_no_choice():
    experts = Gaussian(*torch.randn(2, 1, 3, 2))
    chosen = Mixture(experts, torch.ones(1, 3)).choose(None)
    assert torch.equal(chosen.mu, experts.mu[0])
    assert torch.equal(chosen.logvar, experts.logvar[0])
