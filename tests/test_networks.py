import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, Laplace
from torch.testing import assert_close

from mmjsd.classifiers import Classifier
from mmjsd.config import ModelConfig, ObjectiveConfig
from mmjsd.data import ALPHABET, DATASETS
from mmjsd.digits import PATTERNS
from mmjsd.model import MultimodalVae
from mmjsd.networks import (
    LAPLACE_SCALE,
    NETWORKS,
    OneHot,
    Width,
    _Doubling,
    _DoublingImage,
    _FirstPlaces,
    _FromOne,
    _Halving,
    _LastPlace,
    _Letterwise,
    _ToOne,
    _ToPixels,
)

SPECS = {spec.name: spec for dataset in DATASETS.values() for spec in dataset.modalities}
COUNTS = {
    "mnist": (330_040, 322_784),
    "svhn": (236_360, 233_763),
    "text": (145_704, 143_175),
    **dict.fromkeys(PATTERNS, (1_162_856, 136_131)),
}
"""Parameters of the authors' encoders, heads included, and decoders for 20 latent dimensions."""

every_modality = pytest.mark.parametrize("name", SPECS)


def count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def some_data(name, batch=3) -> torch.Tensor:
    shape = (batch, *SPECS[name].shape)
    return torch.randint(len(ALPHABET), shape) if SPECS[name].kind == "text" else torch.rand(shape)


# A modality's networks ...


@pytest.mark.parametrize("name", COUNTS)
def test_have_as_many_parameters_as_the_authors(name):
    networks, width = NETWORKS[name], Width(1.0)
    head = torch.nn.Linear(networks.num_features(width), 2 * 20)
    encoder, decoder = COUNTS[name]
    assert count(networks.encoder(width)) + count(head) == encoder
    assert count(networks.decoder(20, width)) == decoder


@pytest.mark.parametrize("name", PATTERNS)
def test_of_patterned_digits_have_as_many_parameters_as_the_authors_with_their_512_latent_dimensions(name):
    networks, width = NETWORKS[name], Width(1.0)
    head = torch.nn.Linear(networks.num_features(width), 2 * 512)
    assert count(networks.encoder(width)) + count(head) == 1_667_648
    assert count(networks.decoder(512, width)) == 1_143_747


def test_of_faces_and_words_have_as_many_parameters_as_the_authors_with_their_32_and_32_latent_dimensions():
    with torch.device("meta"):
        sizes = ModelConfig(content_dim=32, style_dim=32)
        model = MultimodalVae(DATASETS["celeba"].modalities, sizes, ObjectiveConfig())
    millions = {
        name: [count(model.encoders[name]) + count(model.heads[name]), count(model.decoders[name])]
        for name in model.modalities
    }
    rounded = {name: [round(number / 1e6, 2) for number in each] for name, each in millions.items()}
    assert rounded == {"face": [21.56, 21.91], "words": [13.25, 13.60]}
    assert round(count(model) / 1e6, 1) == 70.3


@every_modality
@pytest.mark.parametrize("factor", [0.01, 0.25, 1.0, 1.5])
def test_fit_their_modality_at_every_width(name, factor):
    networks, width, x = NETWORKS[name], Width(factor), some_data(name)
    assert networks.encoder(width)(x).shape == (3, networks.num_features(width))
    location = networks.decoder(5, width)(torch.randn(3, 5))
    likelihood = networks.likelihood(location)
    assert likelihood.batch_shape == (3,)
    assert likelihood.event_shape == x.shape[1:]
    assert likelihood.log_prob(x).shape == (3,)
    mean = networks.mean(location)
    assert mean.shape == x.shape
    assert mean.dtype == x.dtype


@every_modality
def test_grow_with_their_width(name):
    with torch.device("meta"):
        sizes = [
            count(NETWORKS[name].encoder(Width(factor))) + count(NETWORKS[name].decoder(20, Width(factor)))
            for factor in (0.25, 0.5, 1.0, 2.0)
        ]
    assert sizes == sorted(set(sizes))


@every_modality
def test_classify_any_number_of_classes(name):
    classifier = NETWORKS[name].classifier(7)
    assert classifier(some_data(name)).shape == (3, 7)


@every_modality
def test_classify_from_the_features_of_the_last_layer(name):
    network, x = NETWORKS[name].classifier(7).eval(), some_data(name)
    classifier = Classifier(network, {"": (1.0, 0.0)}, num_samples=1)
    features = classifier.features(x)
    assert features.shape == (3, network[-1].in_features)
    assert torch.equal(classifier.logits(features), network(x))


@every_modality
def test_encode_and_decode_each_sample_on_its_own(name):
    networks, width, x, latent = NETWORKS[name], Width(0.1), some_data(name), torch.randn(3, 5)
    encoder, decoder = networks.encoder(width), networks.decoder(5, width)
    assert_close(encoder(x)[1:2], encoder(x[1:2]))
    assert_close(decoder(latent)[1:2], decoder(latent[1:2]))


def test_leave_no_layer_below_four_units():
    assert [Width(0.5)(128), Width(2.0)(32), Width(0.01)(128), Width(1 / 3)(400)] == [64, 64, 4, 133]


# The likelihood of images ...


@pytest.mark.parametrize("name", ["mnist", "svhn", "face", *PATTERNS])
def test_is_laplace_with_the_authors_scale(name):
    x = some_data(name)
    location = torch.rand_like(x)
    assert LAPLACE_SCALE == 0.75
    expected = Laplace(location, 0.75).log_prob(x).flatten(1).sum(1)
    assert_close(NETWORKS[name].likelihood(location).log_prob(x), expected)


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.kind == "image"])
def test_has_means_between_black_and_white(name):
    location = torch.tensor([-2.0, 0.0, 0.3, 1.0, 7.0])
    assert NETWORKS[name].mean(location).tolist() == pytest.approx([0.0, 0.0, 0.3, 1.0, 1.0])


# The likelihood of text ...


def test_is_the_softmax_of_the_logits():
    logits, x = 3 * torch.randn(4, 8, len(ALPHABET)), some_data("text", 4)
    likelihood = NETWORKS["text"].likelihood(logits)
    expected = torch.log_softmax(logits, dim=-1).gather(-1, x[..., None])[..., 0].sum(-1)
    assert_close(likelihood.log_prob(x), expected)


def test_is_largest_for_the_characters_of_highest_logit():
    logits = 3 * torch.randn(4, 8, len(ALPHABET))
    likelihood, likeliest = NETWORKS["text"].likelihood(logits), NETWORKS["text"].mean(logits)
    assert torch.equal(likeliest, logits.argmax(-1))
    assert isinstance(likelihood.base_dist, Categorical)
    assert torch.equal(likelihood.base_dist.probs.argmax(-1), likeliest)
    others = [some_data("text", 4) for _ in range(20)]
    assert all((likelihood.log_prob(likeliest) > likelihood.log_prob(other)).all() for other in others)


def test_is_one_over_all_characters():
    likelihood = NETWORKS["text"].likelihood(torch.randn(1, 1, len(ALPHABET)))
    probabilities = [likelihood.log_prob(torch.tensor([[i]])).exp() for i in range(len(ALPHABET))]
    assert_close(sum(probabilities), torch.ones(1))


def test_encodes_characters_as_indicators():
    indices = torch.tensor([[0, 70, 3]])
    encoded = OneHot()(indices)
    assert encoded.shape == (1, 71, 3)
    assert encoded.sum().item() == 3
    assert encoded[0, 0, 0] == encoded[0, 70, 1] == encoded[0, 3, 2] == 1


def is_what_torch_computes(layer, x, rng):
    """A layer that computes its convolution in another way gives its values and its gradients."""
    leaves = (x.requires_grad_(), layer.weight, layer.bias)
    found, expected = layer(x), super(type(layer), layer).forward(x)
    assert_close(found, expected)
    weights = torch.randn(expected.shape, generator=rng, dtype=torch.float64)
    assert_close(*[torch.autograd.grad((each * weights).sum(), leaves) for each in (found, expected)])


@pytest.mark.parametrize("kind", [_DoublingImage, _ToPixels])
@given(st.tuples(*[st.integers(1, 4)] * 5), st.integers(0, 2**32 - 1))
def test_an_image_is_doubled_as_by_the_transposed_convolution_with_its_gradients(kind, shape, seed):
    batch, inputs, outputs, height, width = shape
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, inputs, height, width, generator=rng, dtype=torch.float64)
    is_what_torch_computes(kind(inputs, outputs).double(), x, rng)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("kind", "size"),
    [
        *((_ToOne, (4, 4)), (_FromOne, (1, 1)), (_LastPlace, (4,)), (_FirstPlaces, (1,))),
        *((_Letterwise, (8,)), (_Halving, (8,)), (_Doubling, (4,)), (_Doubling, (1,))),
    ],
)
def test_a_matrix_product_is_the_convolution_with_its_gradients(kind, size, layout):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, *size, generator=rng, dtype=torch.float64)
    is_what_torch_computes(kind(5, 2).double().to(memory_format=layout), x, rng)
