from collections import Counter
from itertools import chain, combinations
from math import comb
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from mmjsd.config import ModelConfig, ObjectiveConfig, ObjectiveName
from mmjsd.data import ALPHABET, DATASETS
from mmjsd.gaussian import Gaussian
from mmjsd.model import MultimodalVae, Posterior, subsets
from tests.conftest import seeded

MODALITIES = DATASETS["digits"].modalities
NAMES = tuple(spec.name for spec in MODALITIES)
SUBSETS = list(chain.from_iterable(combinations(NAMES, size) for size in (1, 2, 3)))
OBJECTIVES = get_args(ObjectiveName)
PRODUCTS = ("mvae", "mvtcae")

STANDARD = Gaussian(torch.zeros(1), torch.zeros(1))

every_subset = pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
every_objective = pytest.mark.parametrize("name", OBJECTIVES)
every_posterior = pytest.mark.parametrize("posterior", ["mixture", "product"])


def build(width=0.05, content_dim=4, style_dim=2, **objective) -> MultimodalVae:
    sizes = ModelConfig(content_dim=content_dim, style_dim=style_dim, width=width)
    model = MultimodalVae(MODALITIES, sizes, ObjectiveConfig(**objective))
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.mul_(3)
    return model


def some_data(batch=5, names=NAMES) -> dict[str, torch.Tensor]:
    x = {
        spec.name: torch.randint(len(ALPHABET), (batch, *spec.shape))
        if spec.kind == "text"
        else torch.rand(batch, *spec.shape)
        for spec in MODALITIES
    }
    return {name: x[name] for name in names}


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Subsets ...


def test_are_all_that_are_not_empty():
    assert subsets("abc") == [*map(tuple, ("a", "b", "c", "ab", "ac", "bc", "abc"))]
    assert len(set(subsets("abcdefgh"))) == 255


@pytest.mark.parametrize("per_size", [1, 3, 10, 70])
@pytest.mark.parametrize("count", range(1, 9))
def test_are_at_most_so_many_of_each_size_but_every_single_modality(count, per_size):
    found = subsets(range(count), per_size)
    assert found == [subset for subset in subsets(range(count)) if subset in set(found)]
    sizes = Counter(map(len, found))
    assert sizes == {1: count, **{size: min(per_size, comb(count, size)) for size in range(2, count + 1)}}


def test_are_all_of_five_modalities_where_ten_of_each_size_are_wanted():
    assert subsets("abcde", 10) == subsets("abcde")


@given(st.integers(1, 8), st.integers(1, 70), st.integers(0, 70))
def test_of_a_smaller_number_are_among_those_of_a_larger_one(count, fewer, more):
    assert set(subsets(range(count), fewer)) <= set(subsets(range(count), fewer + more))


def test_are_chosen_the_same_on_every_machine():
    chosen = [subset for subset in subsets("abcdef", 2) if 1 < len(subset) < 6]
    assert ["".join(subset) for subset in chosen] == [
        *("ad", "ae"),
        *("ace", "acf"),
        *("abce", "abdf"),
        *("abcde", "acdef"),
    ]


def test_leave_no_modality_out_of_any_size():
    for count in (6, 7, 8):
        for size in range(1, count + 1):
            chosen = [subset for subset in subsets(range(count), 10) if len(subset) == size]
            assert set().union(*chosen) == set(range(count))


# The model ...


@pytest.mark.parametrize(("content_dim", "style_dim"), [(20, 0), (16, 4)])
def test_has_as_many_parameters_as_the_authors(content_dim, style_dim):
    model = build(width=1.0, content_dim=content_dim, style_dim=style_dim)
    assert count(model) == 1_411_826


def test_resolves_its_objective():
    model = build(name="mvae")
    assert model.objective == ObjectiveConfig(name="mvae").resolved(MODALITIES)
    assert model.modalities == NAMES


# The posteriors ...


def test_have_the_sizes_of_content_and_each_subspace():
    model = build(content_dim=3, style_dim={"mnist": 0, "svhn": 5, "text": 1})
    posteriors = model.posteriors(some_data())
    for name, style_dim in {"mnist": 0, "svhn": 5, "text": 1}.items():
        assert posteriors[name].content.mu.shape == posteriors[name].content.logvar.shape == (5, 3)
        assert posteriors[name].style.mu.shape == posteriors[name].style.logvar.shape == (5, style_dim)


@every_subset
def test_do_not_depend_on_other_modalities(subset):
    model, x = build(), some_data()
    alone, all_given = model.posteriors({name: x[name] for name in subset}), model.posteriors(x)
    assert tuple(alone) == subset
    for name in subset:
        assert torch.equal(alone[name].content.mu, all_given[name].content.mu)
        assert torch.equal(alone[name].content.logvar, all_given[name].content.logvar)
        assert torch.equal(alone[name].style.mu, all_given[name].style.mu)


def test_come_in_the_order_of_the_model():
    assert tuple(build().posteriors(dict(reversed(some_data().items())))) == NAMES


def test_use_every_output_of_the_head_once():
    model, x = build(content_dim=3, style_dim=2), some_data(1)
    for name in NAMES:
        with torch.no_grad():
            model.heads[name].weight.zero_()
            model.heads[name].bias.copy_(torch.arange(10.0))
        own = model.posteriors(x)[name]
        parts = [own.content.mu, own.content.logvar, own.style.mu, own.style.logvar]
        assert sorted(torch.cat(parts, dim=1)[0].tolist()) == list(range(10))


# The weights ...


def weights_of(model, names, present=None, with_prior=False, batch=2):
    given = dict.fromkeys(names, Posterior(STANDARD, STANDARD))
    return model.weights(given, present, torch.zeros(batch, 4), with_prior)


def test_are_renormalised_over_what_is_given():
    model = build(weights=(0.4, 0.3, 0.2, 0.1))
    assert_close(weights_of(model, NAMES)[:, 0], torch.tensor([4 / 9, 3 / 9, 2 / 9]))
    assert_close(weights_of(model, NAMES, with_prior=True)[:, 0], torch.tensor([0.4, 0.3, 0.2, 0.1]))
    assert_close(weights_of(model, ["mnist", "text"])[:, 1], torch.tensor([4 / 6, 2 / 6]))
    assert_close(weights_of(model, ["svhn"], with_prior=True)[:, 1], torch.tensor([3 / 4, 1 / 4]))


def test_are_renormalised_over_what_each_sample_has():
    model = build(weights=(0.4, 0.3, 0.2, 0.1))
    present = {"mnist": torch.tensor([True, False, False]), "text": torch.tensor([False, True, False])}
    weights = weights_of(model, NAMES, present, batch=3)
    assert_close(weights, torch.tensor([[4 / 7, 0, 0], [3 / 7, 3 / 5, 1], [0, 2 / 5, 0]]))
    with_prior = weights_of(model, NAMES, present, with_prior=True, batch=3)
    expected = torch.tensor([[4 / 8, 0, 0], [3 / 8, 3 / 6, 3 / 4], [0, 2 / 6, 0], [1 / 8, 1 / 6, 1 / 4]])
    assert_close(with_prior, expected)


def test_are_equal_where_all_that_a_sample_has_is_of_weight_zero():
    model = build(weights=(0.5, 0.0, 0.0, 0.5))
    assert_close(weights_of(model, ["svhn", "text"])[:, 0], torch.tensor([0.5, 0.5]))
    assert_close(weights_of(model, ["svhn"])[:, 0], torch.tensor([1.0]))
    assert_close(weights_of(model, NAMES)[:, 0], torch.tensor([1.0, 0.0, 0.0]))
    present = {"mnist": torch.tensor([True, False])}
    assert_close(weights_of(model, ["mnist", "svhn"], present), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))


# The joint posterior ...


def precisions_add(gaussians) -> Gaussian:
    precision = sum(torch.exp(-each.logvar) for each in gaussians)
    mu = sum(each.mu * torch.exp(-each.logvar) for each in gaussians) / precision
    return Gaussian(mu, -precision.log())


def assert_same(q, p) -> None:
    assert_close(q.mu, p.mu)
    assert_close(q.logvar, p.logvar)


@every_subset
@every_objective
@torch.no_grad()
def test_as_a_product_adds_precisions(subset, name):
    model, x = build(name=name, weights=(0.4, 0.3, 0.2, 0.1)), some_data(names=subset)
    experts = [posterior.content for posterior in model.posteriors(x).values()]
    if name == "mvae":
        experts.append(STANDARD)
    assert_same(model.joint_posterior(x, "product"), precisions_add(experts))


@every_subset
@every_objective
@torch.no_grad()
def test_as_a_mixture_is_one_of_its_experts_for_each_sample(subset, name):
    model = build(name=name, weights=(0.4, 0.3, 0.2, 0.1))
    x = {each: value.expand(1_500, *value.shape[1:]) for each, value in some_data(1, names=subset).items()}
    experts = [posterior.content for posterior in model.posteriors({n: v[:1] for n, v in x.items()}).values()]
    weights = [{"mnist": 0.4, "svhn": 0.3, "text": 0.2}[each] for each in subset]
    if name == "mvae":
        experts = [precisions_add([expert, STANDARD]) for expert in experts]
    if name == "mopoe":
        groups = chain.from_iterable(combinations(experts, size) for size in (1, 2, 3))
        experts = [precisions_add(group) for group in groups]
        weights = [1] * (2 ** len(subset) - 1)
    joint = model.joint_posterior(x, "mixture", seeded())
    near = torch.stack([(joint.mu - expert.mu).abs().amax(1) < 1e-5 for expert in experts])
    near &= torch.stack([(joint.logvar - expert.logvar).abs().amax(1) < 1e-5 for expert in experts])
    assert (near.sum(0) == 1).all()
    shares = torch.tensor(weights) / sum(weights)
    assert_close(near.float().mean(1), shares, rtol=0, atol=0.04)


@torch.no_grad()
def test_repeats_with_its_generator():
    model, x = build(), some_data(50)
    before = torch.get_rng_state()
    first, second, other = (model.joint_posterior(x, "mixture", seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.mu, second.mu)
    assert not torch.equal(first.mu, other.mu)
    assert torch.equal(torch.get_rng_state(), before)


@every_objective
@torch.no_grad()
def test_is_made_of_what_each_sample_has(name):
    model, x = build(name=name), some_data(4)
    present = {
        "mnist": torch.tensor([True, True, False, False]),
        "text": torch.tensor([True, False, True, False]),
    }
    posteriors, choice = model.posteriors(x), torch.tensor([0.1, 0.4, 0.7, 0.9])
    for posterior in ("mixture", "product"):
        joint = model.fuse(posteriors, posterior, choice, present)
        content = torch.randn(4, 4)
        densities = model.joint(posteriors, posterior, present).log_prob(content)
        for i in range(4):
            names = [each for each in NAMES if each == "svhn" or present[each][i]]
            alone = model.posteriors({each: x[each][i : i + 1] for each in names})
            expected = model.fuse(alone, posterior, choice[i : i + 1])
            assert_same(Gaussian(joint.mu[i : i + 1], joint.logvar[i : i + 1]), expected)
            assert_close(model.joint(alone, posterior).log_prob(content[i : i + 1]), densities[i : i + 1])


@pytest.mark.parametrize("call", [MultimodalVae.joint_posterior, MultimodalVae.generate])
def test_refuses_modalities_that_the_model_does_not_have(call):
    with pytest.raises(ValueError, match=r"^unknown modality 'sound'; the model has mnist, svhn, text$"):
        call(build(), {"sound": torch.zeros(2, 3)})


def test_refuses_to_be_made_of_nothing():
    with pytest.raises(ValueError, match=r"^no modality is given; give at least one of mnist, svhn, text$"):
        build().joint_posterior({})


MNIST = torch.zeros(2, 1, 28, 28)


@pytest.mark.parametrize(
    ("given_values", "got"),
    [
        (MNIST.numpy(), "ndarray"),
        (MNIST.byte(), r"\[2, 1, 28, 28\] of torch\.uint8"),
        (MNIST.double(), r"\[2, 1, 28, 28\] of torch\.float64"),
        (MNIST[0], r"\[1, 28, 28\] of torch\.float32"),
        (MNIST + 255, r"values such as \[255.0\]"),
        (MNIST / 0, r"values such as \[nan\]"),
    ],
)
def test_refuses_values_that_no_batch_holds(given_values, got):
    expected = r"^mnist must be a tensor \[batch, 1, 28, 28\] of torch\.float32 in 0\.\.1, got"
    with pytest.raises(ValueError, match=f"{expected} {got}$"):
        build().generate({"mnist": given_values})


def test_refuses_text_that_is_no_indices_of_characters():
    expected = r"^text must be a tensor \[batch, 8\] of torch\.int64 in 0\.\.70, got"
    for values, got in (
        (torch.zeros(2, 8), r"\[2, 8\] of torch\.float32"),
        (torch.full((2, 8), 71), "values"),
    ):
        with pytest.raises(ValueError, match=f"{expected} {got}"):
            build().joint_posterior({"text": values})


def test_refuses_modalities_of_unlike_batches():
    with pytest.raises(
        ValueError, match=r"^modalities must have equally many .*, got 2 of mnist, 3 of text$"
    ):
        build().generate({"mnist": MNIST, "text": torch.zeros(3, 8, dtype=torch.int64)})


def test_takes_an_empty_batch():
    assert {len(each) for each in build().generate({"mnist": MNIST[:0]}).values()} == {0}


def test_an_unknown_posterior_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^unknown posterior 'poe'; expected mixture or product$"):
        build().joint_posterior(some_data(2), "poe")


# The decoders ...


@torch.no_grad()
def test_decode_the_modalities_whose_style_is_given():
    model, x = build(), some_data()
    content, style = torch.randn(5, 4), {name: torch.randn(5, 2) for name in ("text", "mnist")}
    decoded = model.decode(content, style)
    assert set(decoded) == {"text", "mnist"}
    for name, distribution in decoded.items():
        assert distribution.log_prob(x[name]).shape == (5,)


@torch.no_grad()
def test_decode_both_content_and_style():
    model, content = build(), torch.randn(5, 4)
    style = {name: torch.randn(5, 2) for name in NAMES}
    other_style = {name: each + 1 for name, each in style.items()}
    x = some_data()
    for name, decoded in model.decode(content, style).items():
        for moved in (model.decode(content + 1, style), model.decode(content, other_style)):
            assert (moved[name].log_prob(x[name]) != decoded.log_prob(x[name])).all()


@torch.no_grad()
def test_give_text_the_likelihood_of_a_softmax():
    model, x = build(), some_data()
    content, style = torch.randn(5, 4), {"text": torch.randn(5, 2)}
    logits = model.decoders["text"](torch.cat([content, style["text"]], dim=1))
    expected = torch.log_softmax(logits, -1).gather(-1, x["text"][..., None])[..., 0].sum(-1)
    assert_close(model.decode(content, style)["text"].log_prob(x["text"]), expected)
    assert torch.equal(model.means(content, style)["text"], logits.argmax(-1))


# Generation ...


def assert_valid(generated, batch) -> None:
    assert tuple(generated) == NAMES
    for spec in MODALITIES:
        value = generated[spec.name]
        assert value.shape == (batch, *spec.shape)
        assert not value.requires_grad
        if spec.kind == "text":
            assert value.dtype == torch.int64
            assert 0 <= value.min() <= value.max() < len(ALPHABET)
        else:
            assert value.dtype == torch.float32
            assert 0 <= value.min() <= value.max() <= 1


@pytest.mark.parametrize("style_dim", [0, 2])
def test_without_given_modalities_samples_the_prior(style_dim):
    assert_valid(build(style_dim=style_dim).generate(num_samples=7), 7)


@every_subset
@every_posterior
def test_from_any_subset_gives_every_modality(subset, posterior):
    assert_valid(build().generate(some_data(names=subset), posterior=posterior), 5)


@every_objective
def test_repeats_the_images_and_texts_of_its_generator(name):
    model, x = build(name=name), some_data(names=("mnist", "text"))
    before = torch.get_rng_state()
    first, second, other = (model.generate(x, generator=seeded(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[each], second[each]) for each in NAMES)
    assert not torch.equal(first["mnist"], other["mnist"])
    assert torch.equal(torch.get_rng_state(), before)


@every_objective
def test_fuses_as_the_objective_unless_told(name):
    model, x = build(name=name), some_data()
    own, other = ("product", "mixture") if name in PRODUCTS else ("mixture", "product")
    default, named, unlike = (
        model.generate(x, posterior=posterior, generator=seeded())["svhn"] for posterior in (None, own, other)
    )
    assert torch.equal(default, named)
    assert not torch.equal(default, unlike)


@pytest.fixture
def decoded(monkeypatch):
    """What the model is made to decode: content and style of every call of `means`."""
    calls = []

    def means(self, content, style):
        calls.append((content, style))
        return {}

    monkeypatch.setattr(MultimodalVae, "means", means)
    return calls


def assert_distributed(samples, mu, logvar) -> None:
    """Each column's mean and variance are within four standard errors."""
    variance = logvar.exp()
    assert ((samples.mean(0) - mu).abs() < 4 * (variance / len(samples)) ** 0.5).all()
    assert ((samples.var(0) / variance - 1).abs() < 4 * (2 / len(samples)) ** 0.5).all()


def test_samples_content_from_the_posterior_and_style_from_the_prior(decoded):
    model, x = build(content_dim=3), some_data(1, names=("mnist", "svhn"))
    joint = model.joint_posterior(x, "product")
    many = {name: value.expand(20_000, *value.shape[1:]) for name, value in x.items()}
    model.generate(many, posterior="product", generator=seeded())
    content, style = decoded[0]
    assert_distributed(content, joint.mu[0].detach(), joint.logvar[0].detach())
    assert set(style) == set(NAMES)
    for name in NAMES:
        assert_distributed(style[name], torch.zeros(2), torch.zeros(2))
    assert abs((style["mnist"] * style["svhn"]).mean()) < 0.03


def test_samples_everything_from_the_prior_where_nothing_is_given(decoded):
    build(content_dim=3).generate(num_samples=20_000, generator=seeded())
    content, style = decoded[0]
    for each in (content, *style.values()):
        assert_distributed(each, torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize("given_nothing", [None, {}])
def test_needs_to_know_how_many_samples(given_nothing):
    with pytest.raises(ValueError, match=r"^num_samples is needed where no modality is given$"):
        build().generate(given_nothing)
