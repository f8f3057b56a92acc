"""A trial as a generator, with training and evaluation played: which epoch measures what."""

import math
from types import SimpleNamespace

import pytest
import torch

from mmjsd.metrics import Score
from mmjsd.train import DivergedError, Epoch, TrainingState
from study import trial
from study.config import TrialConfig

CONFIG = TrialConfig().with_fields(
    {"data.name": "digits", "model.width": 0.1, "training.epochs": 4, "evaluation.every": 2}
)


@pytest.fixture
def evaluated(monkeypatch):
    """The extras of each evaluation, by epoch and split; four epochs of no training."""
    found, number = {}, 0

    def fit_pack(*_):
        nonlocal number
        for number in range(1, 5):
            yield [Epoch(number, torch.ones(1), 0.0, 1, TrainingState(number, {}))]

    def evaluate(model, split, train, classifiers, evaluation, extras, *_):
        found[number, split] = set(extras)
        return []

    splits = {name: name for name in ("train", "validation", "test")}
    data = SimpleNamespace(splits=splits, spec=SimpleNamespace(attributes=()))
    material = SimpleNamespace(data=data, splits=splits, classifiers={})
    monkeypatch.setattr(trial, "_material", lambda *_: material)
    monkeypatch.setattr(trial, "Pairs", lambda *_: None)
    monkeypatch.setattr(trial, "fit_pack", fit_pack)
    monkeypatch.setattr(trial, "evaluate", evaluate)
    return found


@pytest.mark.parametrize(
    ("objectives", "last"),
    [((), set()), (("mean_coherence",), set()), (("mean_coherence", "log_likelihood"), {"likelihood"})],
)
def test_the_last_validation_has_what_is_maximised_and_nothing_else_that_costs_much(
    evaluated, objectives, last
):
    epochs = list(trial.run_trial(CONFIG, objectives=objectives))
    assert [sorted(epoch.scores) for epoch in epochs] == [
        ["train"],
        ["train", "validation"],
        ["train"],
        ["test", "train", "validation"],
    ]
    assert evaluated == {
        (2, "validation"): set(),
        (4, "validation"): last,
        (4, "test"): {"likelihood", "quality"},
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_divergence(evaluated, monkeypatch, value):
    monkeypatch.setattr(trial, "evaluate", lambda *_: [Score("recall", value, None, 1)])
    with pytest.raises(DivergedError, match=rf"^recall is {value} on the validation split$"):
        list(trial.run_trial(CONFIG))


def test_latents_that_are_not_finite_are_divergence(evaluated, monkeypatch):
    def evaluate(*_):
        raise FloatingPointError("style means of text are not finite")

    monkeypatch.setattr(trial, "evaluate", evaluate)
    with pytest.raises(DivergedError, match="style means of text are not finite"):
        list(trial.run_trial(CONFIG))
