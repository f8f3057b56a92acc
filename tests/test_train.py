"""Training: goes on with the same numbers wherever it was stopped, and however many workers share it."""

import os
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing
from torch.testing import assert_close

from mmjsd.batches import Pairs, Workers
from mmjsd.config import ModelConfig, ObjectiveConfig, ObjectiveName, TrainingConfig
from mmjsd.data import ALPHABET, DATASETS, Examples
from mmjsd.model import MultimodalVae
from mmjsd.train import (
    DivergedError,
    Member,
    fit,
    fit_pack,
    latest_checkpoint,
    load_checkpoint,
    read_notes,
    save_checkpoint,
)

TRAINING = TrainingConfig(epochs=4, batch_size=32, learning_rate=1e-3)


def pairs(missing: float = 0.0, name: str = "digits", device: str = "cpu") -> Pairs:
    """Ten classes of noisy but distinct examples of a data set's modalities."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 8).astype(np.uint8)
    made = {}
    for spec in DATASETS[name].modalities:
        top = len(ALPHABET) if spec.kind == "text" else 256
        prototypes = rng.integers(0, top, (10, *spec.shape))
        made[spec.name] = Examples(prototypes[labels].astype(np.uint8), labels)
    return Pairs(made, device, missing)


def model(objective: ObjectiveConfig | None = None, name: str = "digits") -> MultimodalVae:
    torch.manual_seed(0)
    config = ModelConfig(content_dim=4, style_dim=2, width=0.05)
    return MultimodalVae(DATASETS[name].modalities, config, objective or ObjectiveConfig())


def train(vae, data, training=TRAINING, resume=None, samples=200):
    return list(fit(vae, data, samples_per_epoch=samples, training=training, seed=5, resume=resume))


@pytest.mark.parametrize("name", ["digits", "polydigits-2", "polydigits-5"])
def test_the_loss_falls(name):
    epochs = train(model(name=name), pairs(name=name))
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4]
    assert epochs[-1].loss < epochs[0].loss - 100
    assert epochs[0].num_samples == 224  # 200 samples, rounded up to whole batches of 32
    assert len(epochs[0].losses) == 7


@pytest.mark.parametrize("name", ["digits", "polydigits-2", "polydigits-5"])
@pytest.mark.parametrize(
    "objective",
    [
        *(ObjectiveConfig(name=name) for name in get_args(ObjectiveName)),
        ObjectiveConfig(dynamic_prior="mixture", prior_samples=2),
        ObjectiveConfig(name="mmvae", importance_samples=2),
    ],
    ids=lambda objective: f"{objective.name}-{objective.dynamic_prior}-{objective.importance_samples}",
)
def test_resumed_training_gives_the_numbers_of_undisturbed_training(objective, name, tmp_path):
    undisturbed = model(objective, name)
    expected = train(undisturbed, pairs(missing=0.3, name=name), samples=64)

    interrupted = fit(model(objective, name), pairs(missing=0.3, name=name), 64, TRAINING, seed=5)
    epoch = next(epoch for epoch in interrupted if epoch.number == 2)
    # The generator holds the model at epoch 2; what follows sees the files alone.
    vae = interrupted.gi_frame.f_locals["model"]
    path = save_checkpoint(vae, epoch.state, tmp_path, {"wall_s": 3.5})
    resumed, state = load_checkpoint(path)
    torch.manual_seed(99)
    rest = train(resumed, pairs(missing=0.3, name=name), resume=state, samples=64)

    assert [each.number for each in rest] == [3, 4]
    for got, wanted in zip(rest, expected[2:], strict=True):
        assert torch.equal(got.losses, wanted.losses)
    for got, wanted in zip(resumed.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(got, wanted)
    assert read_notes(path) == {"wall_s": 3.5}
    assert (
        undisturbed.modalities == resumed.modalities == tuple(each.name for each in DATASETS[name].modalities)
    )


def test_a_new_checkpoint_replaces_the_old_one_and_leftovers(tmp_path):
    vae = model()
    (tmp_path / ".epoch-000007.4711").mkdir()  # what a killed process leaves
    for epoch in fit(vae, pairs(), 200, TRAINING, seed=5):
        save_checkpoint(vae, epoch.state, tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-000004"]
    assert latest_checkpoint(tmp_path) == tmp_path / "epoch-000004"
    assert latest_checkpoint(tmp_path / "nothing") is None


def test_a_state_can_be_resumed_from_more_than_once():
    vae = model()
    epochs = fit(vae, pairs(), 200, TRAINING, seed=5)
    next(epochs)
    state = next(epochs).state
    parameters = {name: value.clone() for name, value in vae.state_dict().items()}
    found = []
    for _ in range(2):
        again = model()
        again.load_state_dict(parameters)
        found.append(train(again, pairs(), resume=state))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.losses, other.losses)


def test_what_was_resumed_from_is_not_held_and_foreign_files_are_left_alone(tmp_path):
    vae = model()
    path = save_checkpoint(vae, next(fit(vae, pairs(), 200, TRAINING, seed=5)).state, tmp_path, {})
    (tmp_path / ".DS_Store").write_bytes(b"a file manager's")
    resumed, state = load_checkpoint(path)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(path) not in maps.read_text()
    epoch = next(fit(resumed, pairs(), 200, TRAINING, seed=5, resume=state))
    save_checkpoint(resumed, epoch.state, tmp_path, {})
    assert sorted(each.name for each in tmp_path.iterdir()) == [".DS_Store", "epoch-000002"]


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "epoch.json"])
def test_a_damaged_checkpoint_is_named(tmp_path, name):
    vae = model()
    epoch = next(fit(vae, pairs(), 200, TRAINING, seed=5))
    path = save_checkpoint(vae, epoch.state, tmp_path, {})
    (path / name).write_bytes((path / name).read_bytes()[:20])
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path)


def test_divergence_is_told_with_epoch_and_step():
    training = TrainingConfig(epochs=20, batch_size=32, learning_rate=1e6)
    with pytest.raises(DivergedError, match=r"loss is (nan|inf|-inf) at epoch \d+, step \d+ of 7"):
        train(model(), pairs(), training)


def test_seeds_differ_and_repeat():
    first, again = (train(model(), pairs())[-1].losses for _ in range(2))
    other = list(fit(model(), pairs(), 200, TRAINING, seed=6))[-1].losses
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    losses = torch.cat([epoch.losses for epoch in train(model(), pairs(missing=0.3))])
    gathered = Workers.current().gather(torch.arange(3 + rank))
    vae = model()
    told = iter([False] * 8 + [True])  # six times an epoch
    run = fit_pack([Member(vae, TRAINING, 5)], pairs(missing=0.3), 200, told.__next__)
    next(run)
    (place,) = next(run)
    if rank == 0:
        save_checkpoint(vae, place.state, Path(folder) / "checkpoints", {})
    dist.barrier()
    resumed, state = load_checkpoint(Path(folder) / "checkpoints" / "epoch-000001_000003")
    rest = torch.cat([epoch.losses for epoch in train(resumed, pairs(missing=0.3), resume=state)])
    if rank == 0:
        torch.save({"losses": losses, "gathered": gathered, "rest": rest}, Path(folder) / "out.pt")
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive their group, and would abort an orderly exit


def test_two_workers_give_the_loss_curve_of_one(tmp_path):
    alone = torch.cat([epoch.losses for epoch in train(model(), pairs(missing=0.3))])
    multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    shared = torch.load(tmp_path / "out.pt", weights_only=True)
    assert len(alone) >= 20
    assert_close(shared["losses"], alone, rtol=1e-4, atol=0)
    assert shared["gathered"].tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert_close(shared["rest"], shared["losses"][7:], rtol=1e-6, atol=0)  # warned within the second epoch
