"""A pack: several models trained as one give the numbers of separate trainings."""

import pytest
import torch
from torch.testing import assert_close

from mmjsd.config import ModelConfig, ObjectiveConfig, TrainingConfig
from mmjsd.data import DATASETS
from mmjsd.model import MultimodalVae
from mmjsd.train import Epoch, Member, fit, fit_pack
from tests.test_train import pairs

STEPS = 50
BATCH = 8

OBJECTIVES = {
    "mmjsd": {},
    "mmjsd-product": {"fusion": "product"},
    "mmjsd-mixture-prior": {"dynamic_prior": "mixture", "prior_samples": 2},
    "mvae": {"name": "mvae"},
    "mmvae": {"name": "mmvae"},
    "mmvae-importance-weighted": {"name": "mmvae", "importance_samples": 3},
    "mopoe": {"name": "mopoe"},
    "mvtcae": {"name": "mvtcae"},
}

WEIGHTS = [(0.25, 0.25, 0.25, 0.25), (0.1, 0.2, 0.3, 0.4), (0.0, 0.5, 0.3, 0.2)]


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def members(objective: dict, training: TrainingConfig, name: str = "digits") -> list[Member]:
    """Three trainings that differ in all that a pack allows: seed, step size, and every weight."""
    made = []
    for seed in range(3):
        torch.manual_seed(seed)
        weights = {
            "weights": WEIGHTS[seed],
            "reconstruction_weights": {"mnist": 4 - seed, "svhn": 1, "text": 9},
        }
        own = ObjectiveConfig(beta=1 + seed, beta_style=2.5 - seed, **weights, **objective)
        config = ModelConfig(content_dim=4, style_dim=2, width=0.05)
        model = MultimodalVae(DATASETS[name].modalities, config, own)
        rate = TrainingConfig(
            epochs=training.epochs, batch_size=training.batch_size, learning_rate=1e-3 * (1 + seed)
        )
        made.append(Member(model, rate, seed))
    return made


def alone(each: list[Member], data) -> list[list[Epoch]]:
    return [list(fit(m.model, data, STEPS * BATCH, m.training, m.seed, m.resume)) for m in each]


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_a_pack_gives_the_numbers_of_separate_trainings(objective, missing, dtype, tolerance):
    torch.set_default_dtype(dtype)
    try:
        training = TrainingConfig(epochs=1, batch_size=BATCH)
        separate, packed = members(objective, training), members(objective, training)
        expected = alone(separate, pairs(missing))
        (shown,) = fit_pack(packed, pairs(missing), STEPS * BATCH)
        for own, wanted in zip(shown, expected, strict=True):
            assert_close(own.losses, wanted[0].losses, rtol=tolerance, atol=0)
        for one, other in zip(separate, packed, strict=True):
            for got, want in zip(other.model.parameters(), one.model.parameters(), strict=True):
                assert_close(got, want, rtol=tolerance, atol=tolerance)
    finally:
        torch.set_default_dtype(torch.float32)
