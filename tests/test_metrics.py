"""Metrics: models whose every answer is known give the numbers worked by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from mmjsd.batches import Pairs
from mmjsd.classifiers import Classifier
from mmjsd.config import EvaluationConfig, ModelConfig, ObjectiveConfig
from mmjsd.data import Examples, Modality
from mmjsd.metrics import classifier_scores, evaluate, representations
from mmjsd.model import MultimodalVae
from mmjsd.networks import NETWORKS

CLASSES = 4
NAMES = ("left", "middle", "right")


class _Argmax(nn.Module):
    """A classifier that is never wrong: the class is the brightest pixel."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.flatten(1)


@pytest.fixture
def vae(monkeypatch):
    """Images of one bright pixel; content is ten times that pixel's indicator, almost surely."""
    linear = dataclasses.replace(
        NETWORKS["mnist"],
        encoder=lambda width: nn.Flatten(),
        num_features=lambda width: CLASSES,
        decoder=lambda latent, width: nn.Sequential(
            nn.Linear(latent, CLASSES), nn.Unflatten(1, (CLASSES, 1, 1))
        ),
    )
    for name in NAMES:
        monkeypatch.setitem(NETWORKS, name, linear)
    specs = [Modality(name=name, kind="image", shape=(CLASSES, 1, 1)) for name in NAMES]
    objective = ObjectiveConfig(weights=(0.6, 0.3, 0.1, 0.0))
    made = MultimodalVae(specs, ModelConfig(content_dim=CLASSES, style_dim=0), objective)
    for name in NAMES:
        _answer(made, name)
    return made


def _answer(vae, name, says=None, draws=None, logvar=-8.0):
    """Let a modality's encoder report class `says[k]` for class k, its decoder draw `draws[k]`."""
    eye = torch.eye(CLASSES)
    with torch.no_grad():
        vae.heads[name].weight.zero_()
        vae.heads[name].weight[:CLASSES] = 10 * eye[list(says or range(CLASSES))].T
        vae.heads[name].bias[:CLASSES] = 0
        vae.heads[name].bias[CLASSES:] = logvar
        vae.decoders[name][0].weight.copy_(0.05 * eye[list(draws or range(CLASSES))].T)
        vae.decoders[name][0].bias.fill_(0.5)


def _splits():
    labels = np.repeat(np.arange(CLASSES), 150).astype(np.uint8)
    values = (255 * np.eye(CLASSES, dtype=np.uint8))[labels].reshape(-1, CLASSES, 1, 1)
    pairs = Pairs({name: Examples(values, labels) for name in NAMES})
    return pairs, pairs


def _scores(vae, **changes):
    classifiers = {name: Classifier(_Argmax(), 1.0, 10) for name in NAMES}
    evaluation = EvaluationConfig(num_samples=600, probe_samples=200, **changes)
    rows = evaluate(vae, *_splits(), classifiers, evaluation)
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
    assert len(coherences) == len(set(coherences)) == (3 + 2 * 4) * 3
    assert ("coherence", "product", "left+middle+right", "middle") in scores
    assert ("coherence", "", "right", "left") in scores
    assert len([key for key in scores if key[0] == "probe_accuracy"]) == 3 + 2 * 4


def test_subsets_are_named_in_sorted_order():
    given = [each.given for each in representations(("svhn", "mnist"))]
    assert given == ["svhn", "mnist", "mnist+svhn", "mnist+svhn"]


def test_a_decoder_that_draws_another_class_breaks_coherence_towards_it_alone(vae):
    _answer(vae, "right", draws=(1, 2, 3, 0))
    scores = _scores(vae)
    assert scores["coherence", "", "left", "right"].value == 0
    assert scores["coherence", "", "right", "left"].value == 1
    # Of the nine conditional coherences the three towards "right" are zero.
    assert scores["mean_coherence", "product", "", ""].value == pytest.approx(6 / 9)
    assert scores["mean_coherence", "mixture", "", ""].value == pytest.approx(6 / 9)
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


def test_classifiers_report_their_own_accuracy():
    (score,) = classifier_scores({"left": Classifier(_Argmax(), 0.9, 100)})
    assert (score.metric, score.target, score.value) == ("classifier_accuracy", "left", 0.9)
    assert score.standard_error == pytest.approx(0.03)
