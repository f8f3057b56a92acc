import dataclasses
import math
import re
from typing import get_args

import pytest

from mmjsd.config import DataConfig, EvaluationConfig, ModelConfig, ObjectiveConfig, TrainingConfig, require
from mmjsd.data import DATASETS
from study.config import Objective, TrialConfig, is_measured

MODALITIES = DATASETS["digits"].modalities

REFUSED = [
    (DataConfig, {"samples_per_epoch": 0}, "samples_per_epoch must be >= 1, got 0"),
    (DataConfig, {"missing": 1.0}, "missing must lie in [0, 1), got 1.0"),
    (DataConfig, {"missing": -0.1}, "missing must lie in [0, 1), got -0.1"),
    (DataConfig, {"missing": math.nan}, "missing must lie in [0, 1), got nan"),
    (ModelConfig, {"content_dim": 0}, "content_dim must be >= 1, got 0"),
    (ModelConfig, {"style_dim": -1}, "style_dim must be >= 0, got -1"),
    (ModelConfig, {"style_dim": {"mnist": 2, "svhn": -2}}, "style_dim must be >= 0, got -2"),
    (ModelConfig, {"width": 0.0}, "width must lie in (0, 16], got 0.0"),
    (ModelConfig, {"width": 17}, "width must lie in (0, 16], got 17"),
    (ModelConfig, {"width": math.nan}, "width must lie in (0, 16], got nan"),
    (
        ObjectiveConfig,
        {"name": "mmjds"},
        "unknown objective 'mmjds'; choose one of mmjsd, mvae, mmvae, mopoe, mvtcae",
    ),
    (ObjectiveConfig, {"fusion": "poe"}, "unknown fusion 'poe'; choose one of mixture, product"),
    (
        ObjectiveConfig,
        {"dynamic_prior": "moe"},
        "unknown dynamic prior 'moe'; choose one of mixture, product",
    ),
    (
        ObjectiveConfig,
        {"name": "mvae", "fusion": "mixture"},
        "mvae is defined with the product posterior, got fusion 'mixture'; leave fusion out or choose "
        "objective mmjsd",
    ),
    (
        ObjectiveConfig,
        {"name": "mmvae", "fusion": "product"},
        "mmvae is defined with the mixture posterior, got fusion 'product'; leave fusion out or choose "
        "objective mmjsd",
    ),
    (
        ObjectiveConfig,
        {"name": "mopoe", "fusion": "product"},
        "mopoe is defined with the mixture posterior, got fusion 'product'; leave fusion out or choose "
        "objective mmjsd",
    ),
    (
        ObjectiveConfig,
        {"name": "mvtcae", "fusion": "mixture"},
        "mvtcae is defined with the product posterior, got fusion 'mixture'; leave fusion out or choose "
        "objective mmjsd",
    ),
    (
        ObjectiveConfig,
        {"importance_samples": 5},
        "importance_samples is mmvae's, got objective 'mmjsd'; leave it out or choose mmvae",
    ),
    (
        ObjectiveConfig,
        {"name": "mmvae", "importance_samples": 0},
        "importance_samples must be >= 1, got 0",
    ),
    (ObjectiveConfig, {"total_correlation": 1.1}, "total_correlation must lie in [0, 1], got 1.1"),
    (ObjectiveConfig, {"total_correlation": math.nan}, "total_correlation must lie in [0, 1], got nan"),
    (ObjectiveConfig, {"prior_samples": 0}, "prior_samples must be >= 1, got 0"),
    (ObjectiveConfig, {"beta": -0.5}, "beta must be finite and >= 0, got -0.5"),
    (ObjectiveConfig, {"beta": math.nan}, "beta must be finite and >= 0, got nan"),
    (ObjectiveConfig, {"beta_content": -1.0}, "beta_content must be finite and >= 0, got -1.0"),
    (ObjectiveConfig, {"beta_style": -2.0}, "beta_style must be finite and >= 0, got -2.0"),
    (ObjectiveConfig, {"weights": (0.6, 0.6, -0.2)}, "weights must be >= 0, got 0.6, 0.6, -0.2"),
    (ObjectiveConfig, {"weights": (0.5, math.nan)}, "weights must be >= 0, got 0.5, nan"),
    (ObjectiveConfig, {"weights": (0.5, 0.4)}, "weights must sum to one, got 0.5, 0.4 with sum 0.9"),
    (ObjectiveConfig, {"weights": ()}, "weights must sum to one, got  with sum 0"),
    (ObjectiveConfig, {"weights": (0.0, 1.0)}, "at least one modality's weight must be positive, got 0, 1"),
    (
        ObjectiveConfig,
        {"style_weights": {"svhn": -1.0}},
        "style_weights must be finite and >= 0, got -1.0 for 'svhn'",
    ),
    (
        ObjectiveConfig,
        {"reconstruction_weights": {"text": math.inf}},
        "reconstruction_weights must be finite and >= 0, got inf for 'text'",
    ),
    (TrainingConfig, {"epochs": 0}, "epochs must be >= 1, got 0"),
    (TrainingConfig, {"batch_size": 0}, "batch_size must be >= 1, got 0"),
    (TrainingConfig, {"learning_rate": 0.0}, "learning_rate must be finite and > 0, got 0.0"),
    (TrainingConfig, {"learning_rate": math.inf}, "learning_rate must be finite and > 0, got inf"),
    (TrainingConfig, {"precision": "half"}, "unknown precision 'half'; choose one of float32, bfloat16"),
    (EvaluationConfig, {"every": 0}, "every must be >= 1, got 0"),
    (EvaluationConfig, {"num_samples": 1}, "num_samples must be >= 2, got 1"),
    (EvaluationConfig, {"probe_samples": 9}, "probe_samples must be >= 10, got 9"),
    (EvaluationConfig, {"importance_samples": -1}, "importance_samples must be >= 0, got -1"),
    (EvaluationConfig, {"features": "vgg"}, "unknown features 'vgg'; choose one of classifier, inception"),
    (EvaluationConfig, {"subsets_per_size": 0}, "subsets_per_size must be >= 1, got 0"),
]


# A config ...


@pytest.mark.parametrize(("config", "fields", "sentence"), REFUSED)
def test_refuses_what_cannot_be(config, fields, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        config(**fields)


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (DataConfig, {"samples_per_epoch": 1, "missing": 0.0}),
        (DataConfig, {"missing": 0.99}),
        (ModelConfig, {"content_dim": 1, "style_dim": 0, "width": 16}),
        (ModelConfig, {"style_dim": {"mnist": 0, "svhn": 8}}),
        (ObjectiveConfig, {"beta": 0.0, "beta_content": 0.0, "beta_style": 0.0}),
        (ObjectiveConfig, {"weights": (1.0, 0.0), "style_weights": {"svhn": 0.0}}),
        (ObjectiveConfig, {"weights": (1 / 3,) * 3}),
        (ObjectiveConfig, {"name": "mmjsd", "fusion": "product", "dynamic_prior": "mixture"}),
        (ObjectiveConfig, {"name": "mvae", "fusion": "product"}),
        (TrainingConfig, {"epochs": 1, "batch_size": 1, "precision": "bfloat16"}),
        (ObjectiveConfig, {"name": "mvtcae", "total_correlation": 0.0}),
        (ObjectiveConfig, {"name": "mvtcae", "total_correlation": 1.0}),
        (EvaluationConfig, {"every": 1, "num_samples": 2, "probe_samples": 10, "importance_samples": 0}),
        (EvaluationConfig, {"subsets_per_size": 1}),
    ],
)
def test_accepts_the_ends_of_its_ranges(config, fields):
    values = config(**fields)
    assert {name: getattr(values, name) for name in fields} == fields


@pytest.mark.parametrize(
    "config", [DataConfig, ModelConfig, ObjectiveConfig, TrainingConfig, EvaluationConfig]
)
def test_is_frozen(config):
    values = config()
    name = dataclasses.fields(values)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(values, name, None)


def test_refuses_with_the_message_given():
    require(True, "never seen")
    with pytest.raises(ValueError, match=r"^seen$"):
        require(False, "seen")


# A model's sizes ...


def test_style_dims_are_one_for_all_or_one_each():
    names = ("mnist", "svhn", "text")
    assert ModelConfig(style_dim=3).style_dims(names) == {"mnist": 3, "svhn": 3, "text": 3}
    assert ModelConfig(style_dim={"text": 1, "svhn": 8, "mnist": 2}).style_dims(names) == {
        "mnist": 2,
        "svhn": 8,
        "text": 1,
    }


def test_one_size_for_all_and_equal_sizes_for_each_are_one_config():
    names = ("mnist", "svhn", "text")
    sizes = (4, dict.fromkeys(names, 4), {**dict.fromkeys(names, 4), "text": 2}, 2)
    one, each, uneven, smaller = (TrialConfig(model=ModelConfig(style_dim=size)) for size in sizes)
    assert one.config_hash() == each.config_hash()
    assert one.for_replicate(3, 1).seed == each.for_replicate(3, 1).seed
    assert len({config.config_hash() for config in (one, uneven, smaller)}) == 3


# A resolved objective ...


def test_weighs_as_the_reference_settings_where_nothing_is_given():
    resolved = ObjectiveConfig().resolved(MODALITIES)
    assert resolved.reconstruction_weights == {"mnist": 3072 / 784, "svhn": 1.0, "text": 384.0}
    assert resolved.style_weights == {"mnist": 1.0, "svhn": 1.0, "text": 5.0}
    assert resolved.weights == (0.25, 0.25, 0.25, 0.25)
    assert resolved.beta == 2.5


@pytest.mark.parametrize(
    ("name", "fusion"),
    [
        ("mmjsd", "mixture"),
        ("mmvae", "mixture"),
        ("mopoe", "mixture"),
        ("mvae", "product"),
        ("mvtcae", "product"),
    ],
)
def test_has_the_fusion_of_its_objective(name, fusion):
    assert ObjectiveConfig(name=name).resolved(MODALITIES).fusion == fusion


def test_keeps_what_is_given():
    given = ObjectiveConfig(
        fusion="product",
        weights=(0.1, 0.2, 0.3, 0.4),
        style_weights=dict.fromkeys(("mnist", "svhn", "text"), 0.5),
        reconstruction_weights=dict.fromkeys(("mnist", "svhn", "text"), 1.0),
    )
    assert given.resolved(MODALITIES) == given


def test_is_resolved_already():
    resolved = ObjectiveConfig(name="mvae", beta=0.7).resolved(MODALITIES)
    assert resolved.resolved(MODALITIES) == resolved
    assert resolved.beta == 0.7


def test_shares_equally_between_any_number_of_modalities_and_the_prior():
    assert ObjectiveConfig().resolved(MODALITIES[:1]).weights == (0.5, 0.5)
    assert ObjectiveConfig().resolved(MODALITIES[:2]).weights == (1 / 3,) * 3
    assert ObjectiveConfig().resolved(MODALITIES[:1]).reconstruction_weights == {"mnist": 1.0}


# An objective ...


@pytest.mark.parametrize(
    ("name", "several", "single"),
    [
        ("digits", {"mean_coherence", "random_coherence", "probe_accuracy"}, "mean_coherence"),
        ("faces", {"mean_average_precision", "mean_probe_average_precision"}, "mean_average_precision"),
    ],
)
def test_is_measured_where_there_are_classes_attributes_and_other_modalities(
    monkeypatch, name, several, single
):
    def measured():
        return {each for each in get_args(Objective) if is_measured(each, config)}

    config = TrialConfig(data=DataConfig(name=name))
    assert measured() == several | {"log_likelihood"}
    spec = DATASETS[name]
    monkeypatch.setitem(DATASETS, name, dataclasses.replace(spec, modalities=spec.modalities[:1]))
    assert measured() == several - {single} | {"log_likelihood"}
