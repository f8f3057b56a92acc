"""Metrics: models whose every answer is known give the numbers worked by hand."""

import dataclasses
from collections import Counter
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from mmjsd import metrics
from mmjsd.batches import Pairs
from mmjsd.classifiers import Classifier
from mmjsd.config import EvaluationConfig, ModelConfig, ObjectiveConfig, ObjectiveName
from mmjsd.data import DATASETS, Examples, Modality
from mmjsd.metrics import Extra, classifier_scores, evaluate, representations
from mmjsd.model import MultimodalVae
from mmjsd.networks import NETWORKS

CLASSES = 4
NAMES = ("left", "middle", "right")
ALL = get_args(Extra)


ARGMAX = nn.Sequential(nn.Flatten(), nn.Identity())
"""A classifier that is never wrong: the class is the brightest pixel."""


class _Bright(nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels > 0.9).float()


BRIGHT = nn.Sequential(nn.Flatten(), _Bright(), nn.Identity())
"""The same classifier with features that know of each pixel whether it is bright."""


@pytest.fixture
def vae(build):
    """Images of one bright pixel; content is ten times that pixel's indicator, almost surely."""
    return build()


@pytest.fixture
def build(monkeypatch):
    linear = dataclasses.replace(
        NETWORKS["mnist"],
        encoder=lambda width: nn.Flatten(),
        num_features=lambda width: CLASSES,
        decoder=lambda latent, width: nn.Sequential(
            nn.Linear(latent, CLASSES), nn.Unflatten(1, (1, CLASSES, 1))
        ),
    )
    for name in NAMES:
        monkeypatch.setitem(NETWORKS, name, linear)

    def build(names=NAMES, weights=(0.6, 0.3, 0.1, 0.0), style_dim=0):
        specs = [Modality(name=name, kind="image", shape=(1, CLASSES, 1)) for name in names]
        sizes = ModelConfig(content_dim=CLASSES, style_dim=style_dim)
        made = MultimodalVae(specs, sizes, ObjectiveConfig(weights=weights))
        for name in names:
            _answer(made, name)
        return made

    return build


def _answer(vae, name, says=None, draws=None, logvar=-8.0):
    """Let a modality's encoder report class `says[k]` for class k, its decoder draw `draws[k]`."""
    eye = torch.eye(CLASSES)
    with torch.no_grad():
        vae.heads[name].weight.zero_()
        vae.heads[name].weight[:CLASSES] = 10 * eye[list(says or range(CLASSES))].T
        vae.heads[name].bias[:CLASSES] = 0
        vae.heads[name].bias[CLASSES:] = logvar
        vae.decoders[name][0].weight.zero_()
        vae.decoders[name][0].weight[:, :CLASSES] = 0.05 * eye[list(draws or range(CLASSES))].T
        vae.decoders[name][0].bias.fill_(0.5)


def _splits(names):
    labels = np.repeat(np.arange(CLASSES), 150).astype(np.uint8)
    values = (255 * np.eye(CLASSES, dtype=np.uint8))[labels].reshape(-1, 1, CLASSES, 1)
    pairs = Pairs({name: Examples(values, labels) for name in names})
    return pairs, pairs


class Summed:
    """Takes the place of Inception: one feature, the sum of an image's pixels, and remembers the images."""

    def __init__(self):
        self.shapes = []

    def features(self, images):
        self.shapes.append(tuple(images.shape[1:]))
        return images.flatten(1).sum(1, keepdim=True).repeat(1, 2)


def _scores(vae, extras=(), network=ARGMAX, inception=None, **changes):
    classifiers = {name: Classifier(network, {"": (1.0, 0.0)}, 10) for name in vae.modalities}
    evaluation = EvaluationConfig(**{"num_samples": 600, "probe_samples": 200, **changes})
    rows = evaluate(vae, *_splits(vae.modalities), classifiers, evaluation, extras, inception)
    assert len({(row.metric, row.posterior, row.given, row.target) for row in rows}) == len(rows)
    return {(row.metric, row.posterior, row.given, row.target): row for row in rows}


def test_a_perfect_model_scores_one(vae):
    scores = _scores(vae)
    for (metric, *_), row in scores.items():
        if metric in ("coherence", "mean_coherence", "probe_accuracy", "random_coherence"):
            assert row.value == 1
            assert row.standard_error == 0


def test_every_subset_and_target_is_measured_once(vae):
    scores = _scores(vae)
    coherences = [key for key in scores if key[0] == "coherence"]
    assert len(coherences) == (3 + 2 * 4) * 3
    assert ("coherence", "product", "left+middle+right", "middle") in scores
    assert ("coherence", "", "right", "left") in scores
    assert len([key for key in scores if key[0] == "probe_accuracy"]) == 3 + 2 * 4


def test_subsets_are_named_in_sorted_order():
    given = [each.given for each in representations(("svhn", "mnist"), 1)]
    assert given == ["svhn", "mnist", "mnist+svhn", "mnist+svhn"]


def test_some_subsets_of_each_size_are_measured_if_that_is_wanted(vae):
    scores = _scores(vae, extras=ALL, num_samples=50, subsets_per_size=1)
    (pair,) = {given for _, _, given, _ in scores if given.count("+") == 1}
    for metric, targets in {"coherence": 3, "probe_accuracy": 1, "log_likelihood": 4, "recall": 3}.items():
        given = Counter(key[2] for key in scores if key[0] == metric if key[2])
        several = {pair: 2 * targets, "left+middle+right": 2 * targets}
        assert given == {**dict.fromkeys(NAMES, targets), **several}


@pytest.mark.parametrize("subsets_per_size", [1, 2, 3])
def test_mean_coherence_is_over_the_conditional_generations_that_are_measured(vae, subsets_per_size):
    _answer(vae, "right", draws=(1, 2, 3, 0))
    _answer(vae, "middle", draws=(0, 1, 2, 2))
    scores = _scores(vae, subsets_per_size=subsets_per_size)
    for fused in ("product", "mixture"):
        values = [
            row.value
            for (metric, posterior, given, target), row in scores.items()
            if metric == "coherence" and posterior in ("", fused) and target not in given.split("+")
        ]
        assert len(values) == 6 + subsets_per_size
        assert scores["mean_coherence", fused, "", ""].value == pytest.approx(np.mean(values))


def test_a_limit_that_no_size_exceeds_changes_no_score(vae):
    assert _scores(vae, subsets_per_size=3) == _scores(vae, subsets_per_size=1000)


def test_a_decoder_that_draws_another_class_breaks_coherence_towards_it_alone(vae):
    _answer(vae, "right", draws=(1, 2, 3, 0))
    scores = _scores(vae)
    assert scores["coherence", "", "left", "right"].value == 0
    assert scores["coherence", "", "right", "left"].value == 1
    # Of the nine conditional coherences the three towards "right" are zero.
    assert scores["mean_coherence", "product", "", ""].value == pytest.approx(6 / 9, abs=1e-12)
    assert scores["mean_coherence", "mixture", "", ""].value == pytest.approx(6 / 9, abs=1e-12)
    assert scores["random_coherence", "", "", ""].value == 0


def test_random_coherence_wants_all_modalities_to_agree(vae):
    # "left" and "middle" agree always; "right" agrees with them on classes 2 and 3 alone.
    _answer(vae, "right", draws=(1, 0, 2, 3))
    agreement = _scores(vae)["random_coherence", "", "", ""]
    assert agreement.value == pytest.approx(0.5, abs=4 * agreement.standard_error)


def test_a_mixture_follows_its_weights_and_a_product_the_surest_expert(vae):
    _answer(vae, "middle", says=(1, 2, 3, 0), logvar=-4.0)
    scores = _scores(vae)
    mixture = scores["coherence", "mixture", "left+middle", "right"]
    assert mixture.value == pytest.approx(0.6 / (0.6 + 0.3), abs=4 * mixture.standard_error)
    assert mixture.standard_error == pytest.approx(
        (mixture.value * (1 - mixture.value) / 600) ** 0.5, rel=0.01
    )
    assert scores["coherence", "product", "left+middle", "right"].value == 1
    assert scores["coherence", "", "middle", "right"].value == 0
    # A probe learns the permutation that generation cannot undo.
    assert scores["probe_accuracy", "", "middle", ""].value == 1


def test_random_coherence_as_released_counts_samples_on_which_none_agree(vae):
    _answer(vae, "middle", draws=(1, 2, 3, 0))
    _answer(vae, "right", draws=(2, 3, 0, 1))
    scores = _scores(vae)
    assert scores["random_coherence", "", "", ""].value == 0
    assert scores["random_coherence_as_released", "", "", ""].value == 1


def test_a_style_probe_finds_what_a_subspace_knows_of_the_class(build):
    vae = build(style_dim={"left": 2, "middle": 0, "right": 1})
    with torch.no_grad():
        vae.heads["left"].weight[2 * CLASSES] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    scores = _scores(vae)
    assert ("style_probe_accuracy", "", "", "middle") not in scores
    assert scores["style_probe_accuracy", "", "", "left"].value > 0.9
    knows_nothing = scores["style_probe_accuracy", "", "", "right"]
    assert knows_nothing.value == pytest.approx(0.25, abs=0.08)
    assert knows_nothing.num_samples == 600


def test_style_means_that_are_not_finite_are_told(build):
    vae = build(style_dim=1)
    with torch.no_grad():
        vae.heads["right"].bias[2 * CLASSES] = float("inf")
    with pytest.raises(FloatingPointError, match="style means of right are not finite"):
        _scores(vae)


@pytest.mark.parametrize("dataset", ["polydigits-2", "polydigits-5"])
@pytest.mark.parametrize("name", get_args(ObjectiveName))
def test_every_objective_is_measured_with_any_number_of_modalities(name, dataset):
    specs = DATASETS[dataset].modalities
    count = len(specs)
    made = MultimodalVae(
        specs, ModelConfig(content_dim=2, style_dim=1, width=0.05), ObjectiveConfig(name=name)
    )
    labels = np.arange(10, dtype=np.uint8)
    rng = np.random.default_rng(0)
    pairs = Pairs({s.name: Examples(rng.integers(0, 256, (10, *s.shape), np.uint8), labels) for s in specs})
    classifiers = {
        s.name: Classifier(NETWORKS[s.name].classifier(10).eval(), {"": (1.0, 0.0)}, 10) for s in specs
    }
    evaluation = EvaluationConfig(num_samples=10, probe_samples=20, importance_samples=1)
    scores = evaluate(made, pairs, pairs, classifiers, evaluation, extras=ALL if count == 2 else ())
    assert all(np.isfinite(score.value) for score in scores)
    found = Counter(score.metric for score in scores)
    representations = count + 2 * (2**count - 1 - count)
    assert found["probe_accuracy"] == representations
    assert found["coherence"] == count * representations
    assert found["log_likelihood"] == (count + 1) * representations * (count == 2)


# An evaluation with its extras ...


EXTRAS = {
    "likelihood": {"log_likelihood", "log_likelihood_as_released"},
    "quality": {"precision", "precision_as_released", "recall", "frechet_distance"},
}


@pytest.mark.parametrize("extras", [("likelihood",), ("quality",), ALL])
def test_adds_the_metrics_that_were_asked_for_and_changes_none(vae, extras):
    cheap, whole, all_extras = (_scores(vae, each, num_samples=50) for each in ((), extras, ALL))
    assert whole == {key: all_extras[key] for key in whole}
    assert {key: whole[key] for key in cheap} == cheap
    added = {metric for metric, *_ in whole.keys() - cheap.keys()}
    assert added == set.union(*(EXTRAS[each] for each in extras))


def test_measures_the_likelihood_of_every_target_given_every_subset(vae):
    scores = _scores(vae, extras=ALL, num_samples=50)
    found = [key for key in scores if key[0] == "log_likelihood"]
    assert len(found) == (3 + 2 * 4) * (3 + 1)
    assert ("log_likelihood", "mixture", "left+right", "joint") in found
    assert ("log_likelihood", "", "right", "middle") in found
    for key in found:
        assert scores["log_likelihood_as_released", *key[1:]].value != pytest.approx(scores[key].value)


def test_leaves_the_likelihood_out_where_no_samples_are_wanted(vae):
    with_samples, without = (_scores(vae, extras=ALL, num_samples=50, importance_samples=n) for n in (2, 0))
    assert {key: with_samples[key] for key in without} == without
    assert not any(metric.startswith("log_likelihood") for metric, *_ in without)


@torch.no_grad()
def test_log_likelihood_is_exact_where_the_posterior_is_the_prior_and_decoders_ignore_it(vae):
    for name in NAMES:
        vae.heads[name].weight.zero_()
        vae.heads[name].bias.zero_()
        vae.decoders[name][0].weight.zero_()
    scores = _scores(vae, extras=ALL, num_samples=50, importance_samples=1)
    # Each of the four pixels is located at 0.5, and is 0 or 1: 0.5 away. Scale 0.75.
    alone = -CLASSES * (np.log(1.5) + 0.5 / 0.75)
    assert scores["log_likelihood", "", "left", "right"].value == pytest.approx(alone, rel=1e-5)
    assert scores["log_likelihood", "mixture", "left+right", "joint"].value == pytest.approx(
        3 * alone, rel=1e-5
    )


def test_quality_is_perfect_where_generated_and_real_images_have_the_same_features(vae):
    scores = _scores(vae, extras=ALL, network=BRIGHT)
    for metric, expected in {"precision": 1, "recall": 1, "frechet_distance": 0}.items():
        found = scores[metric, "product", "left+right", "middle"]
        assert found.value == pytest.approx(expected, abs=1e-3)
        assert (found.standard_error, found.num_samples) == (None, 600)


def test_a_decoder_that_draws_half_of_the_classes_loses_recall_of_its_modality_alone(vae):
    _answer(vae, "right", draws=(0, 1, 1, 0))
    scores = _scores(vae, extras=ALL, network=BRIGHT)
    assert scores["recall", "", "left", "right"].value == pytest.approx(0.5, abs=0.06)
    assert scores["precision", "", "left", "right"].value > 0.95
    assert scores["frechet_distance", "", "left", "right"].value > 0.1
    assert scores["recall", "", "left", "middle"].value == pytest.approx(1, abs=1e-3)


def test_quality_can_be_judged_by_inceptions_features_and_coherence_is_not(vae):
    # Pixels sum to 1 in real images, to 1 + 3 / 2 in conditional samples, to 4 / 2 in unconditional ones.
    inception = Summed()
    ours, theirs = (
        _scores(vae, extras=ALL, num_samples=50, importance_samples=0, inception=each)
        for each in (None, inception)
    )
    assert theirs["frechet_distance", "", "left", "right"].value == pytest.approx(2 * 1.5**2, abs=0.1)
    assert theirs["frechet_distance", "", "", "left"].value == pytest.approx(2 * 1**2, abs=0.1)
    quality = {"precision", "recall", "precision_as_released", "frechet_distance"}
    for key in ours:
        assert key[0] in quality or ours[key] == theirs[key]
    assert len(inception.shapes) == 3 * (1 + 11 + 1)


def test_inception_is_asked_for_quality_alone(vae):
    inception = Summed()
    _scores(vae, extras=("likelihood",), num_samples=50, inception=inception)
    assert not inception.shapes


def test_quality_is_measured_given_every_subset_and_none(vae):
    scores = _scores(vae, extras=ALL, num_samples=50)
    for metric in ("precision", "recall", "precision_as_released", "frechet_distance"):
        assert len([key for key in scores if key[0] == metric]) == (3 + 2 * 4 + 1) * 3
        assert (metric, "", "", "left") in scores


def test_quality_is_measured_of_images_alone(vae):
    vae.specs = tuple(
        dataclasses.replace(spec, kind="text", shape=(4,)) if spec.name == "right" else spec
        for spec in vae.specs
    )
    scores = _scores(vae, extras=ALL, num_samples=50, importance_samples=0)
    assert {key[3] for key in scores if key[0] == "recall"} == {"left", "middle"}


def test_has_formulas_as_released_for_three_modalities_alone(build):
    vae = build(NAMES[:2], weights=(0.6, 0.4, 0.0))
    scores = _scores(vae, extras=ALL, num_samples=50, importance_samples=2)
    assert ("log_likelihood", "product", "left+middle", "joint") in scores
    assert ("recall", "", "middle", "left") in scores
    assert not any(metric.endswith("as_released") for metric, *_ in scores)


# Of every evaluation ...


def test_terms_of_the_bound_are_means_over_samples(vae):
    scores = _scores(vae)
    # The bright pixel is located at 1, where it is; the three dark ones, 0, at 0.5. Scale 0.75.
    nll = scores["reconstruction", "", "", "left"]
    assert nll.value == pytest.approx(CLASSES * np.log(1.5) + 3 * 0.5 / 0.75, abs=0.02)
    assert scores["style_divergence", "", "", "left"].value == 0
    assert scores["loss", "", "", ""].num_samples == 600


def test_the_same_call_gives_the_same_scores_and_leaves_torchs_randomness_alone(vae):
    before = torch.get_rng_state()
    assert _scores(vae) == _scores(vae)
    assert torch.equal(before, torch.get_rng_state())


def test_content_that_is_not_finite_is_told(vae):
    with torch.no_grad():
        vae.heads["left"].bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match="content means given left are not finite"):
        _scores(vae)


def test_generated_images_that_are_not_finite_are_told(vae):
    with torch.no_grad():
        vae.decoders["right"][0].bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match="features of generated right are not finite"):
        _scores(vae, extras=ALL)


def test_classifiers_report_their_own_accuracy():
    (score,) = classifier_scores({"left": Classifier(ARGMAX, {"": (0.9, 0.03)}, 100)})
    assert (score.metric, score.target, score.value) == ("classifier_accuracy", "left", 0.9)
    assert score.standard_error == pytest.approx(0.03)


# Attributes ...


ATTRIBUTES = ("first", "second", "third", "fourth", "none")
"""Which pixel is bright, and one that no sample has."""


def _attribute_scores(vae, extras=(), **changes):
    labels = np.repeat(np.arange(CLASSES), 150).astype(np.uint8)
    values = (255 * np.eye(CLASSES, dtype=np.uint8))[labels].reshape(-1, 1, CLASSES, 1)
    known = np.eye(CLASSES + 1, dtype=np.uint8)[labels]
    pairs = Pairs({name: Examples(values, known) for name in vae.modalities})
    padded = nn.Sequential(nn.Flatten(), nn.ConstantPad1d((0, 1), 0.0))
    classifiers = {name: Classifier(padded, {"": (1.0, 0.0)}, 10) for name in vae.modalities}
    evaluation = EvaluationConfig(**{"num_samples": 600, "probe_samples": 200, **changes})
    rows = evaluate(vae, pairs, pairs, classifiers, evaluation, extras, None, ATTRIBUTES)
    keyed = {(row.metric, row.posterior, row.given, row.target, row.attribute): row for row in rows}
    assert len(keyed) == len(rows)
    return keyed


def test_are_all_told_and_generated_by_a_perfect_model(build):
    scores = _attribute_scores(build(NAMES[:2], weights=(0.6, 0.4, 0.0)))
    for (metric, *_), row in scores.items():
        if metric.endswith("average_precision"):
            assert row.value == pytest.approx(1)
            assert row.standard_error == pytest.approx(0)
    assert ("average_precision", "product", "left+middle", "left", "second") in scores
    assert ("probe_average_precision", "", "middle", "", "fourth") in scores
    assert scores["mean_average_precision", "product", "", "", ""].value == pytest.approx(1)
    assert not {key[0] for key in scores} & {"coherence", "mean_coherence", "probe_accuracy"}


def test_that_no_sample_has_are_left_out(build):
    scores = _attribute_scores(build(NAMES[:2], weights=(0.6, 0.4, 0.0)))
    assert {key[4] for key in scores} == {"", *ATTRIBUTES[:-1]}


def test_are_guessed_as_often_as_they_occur_by_a_decoder_that_knows_nothing(build):
    vae = build(NAMES[:2], weights=(0.6, 0.4, 0.0))
    with torch.no_grad():
        vae.decoders["middle"][0].weight.zero_()
    scores = _attribute_scores(vae)
    rates = {name: scores["base_rate", "", "", "", name].value for name in ATTRIBUTES[:-1]}
    assert rates == pytest.approx(dict.fromkeys(ATTRIBUTES[:-1], 0.25))
    for name, rate in rates.items():
        assert scores["average_precision", "", "left", "middle", name].value == pytest.approx(rate)
        assert scores["average_precision", "", "middle", "left", name].value == pytest.approx(1)
    assert scores["mean_average_precision", "", "left", "middle", ""].value == pytest.approx(0.25)
    # Over the two generations of what is not given, one perfect and one blind.
    assert scores["mean_average_precision", "product", "", "", ""].value == pytest.approx((1 + 0.25) / 2)


def test_are_means_over_their_own_values(build):
    vae = build(NAMES[:2], weights=(0.6, 0.4, 0.0))
    _answer(vae, "middle", says=(1, 0, 2, 2), draws=(0, 1, 3, 2))
    scores = _attribute_scores(vae, ("likelihood", "quality"), importance_samples=1)
    groups: dict[tuple[str, ...], list[float]] = {}
    for (metric, *names, attribute), row in scores.items():
        if attribute:
            groups.setdefault((metric, *names), []).append(row.value)
    assert {key[0] for key in groups} >= {"average_precision", "probe_average_precision", "base_rate"}
    for (metric, *names), values in groups.items():
        assert scores[f"mean_{metric}", *names, ""].value == pytest.approx(np.mean(values))
    assert {"log_likelihood", "precision", "recall", "frechet_distance"} <= {key[0] for key in scores}


def test_of_classifiers_have_one_score_each_and_a_mean():
    quality = {"": (0.8, 0.01), "first": (0.7, 0.02), "second": (0.9, 0.03)}
    scores = classifier_scores({"left": Classifier(ARGMAX, quality, 100)})
    assert [(each.metric, each.target, each.attribute, each.value) for each in scores] == [
        ("mean_classifier_average_precision", "left", "", 0.8),
        ("classifier_average_precision", "left", "first", 0.7),
        ("classifier_average_precision", "left", "second", 0.9),
    ]


def test_probes_are_fitted_by_one_thread_of_the_library_below(monkeypatch):
    """Several wait for each other at every short step, and on a busy machine ten times as long."""
    seen = []

    class Watched(LogisticRegression):
        def fit(self, x, y):
            seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
            return super().fit(x, y)

    monkeypatch.setattr(metrics, "LogisticRegression", Watched)
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    with threadpool_limits(2):
        metrics._linear_guesses(x, y, x, "x", {})
    assert set(seen) == {1}
