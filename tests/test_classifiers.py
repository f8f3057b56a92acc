"""Classifiers: what they learn of classes and of attributes, how good they say they are, and their cache."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from mmjsd import classifiers
from mmjsd.classifiers import _loss, load_classifiers
from mmjsd.data import Data, DataSpec, Examples, Modality
from mmjsd.networks import NETWORKS

PIXELS = Modality(name="pixels", kind="image", shape=(1, 1, 4))


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    """Two layers that see four pixels, and a cache of their own."""
    monkeypatch.setenv("MMJSD_CACHE", str(tmp_path))
    small = dataclasses.replace(
        NETWORKS["mnist"],
        classifier=lambda outputs: nn.Sequential(
            nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, outputs)
        ),
    )
    monkeypatch.setitem(NETWORKS, "pixels", small)


def made_up(seed: int, **labels) -> Data:
    """Pixels of which the first two, when bright, are the first and the second attribute."""
    rng = np.random.default_rng(seed)
    splits = {}
    for split, count in (("train", 300), ("test", 200)):
        values = rng.integers(0, 256, (count, 1, 1, 4), np.uint8)
        bright = (values[:, 0, 0, :2] > 127).astype(np.uint8)
        known = np.concatenate([bright, np.zeros((count, 1), np.uint8)], axis=1)
        if "num_classes" in labels:
            order = np.argsort(bright[:, 0], kind="stable")
            values, known = values[order], bright[order, 0]
        splits[split] = {"pixels": Examples(values, known)}
    spec = DataSpec(name="made-up", modalities=(PIXELS,), **labels)
    return Data(spec, splits, f"{seed:064d}")


def test_tell_every_attribute():
    classifier = load_classifiers(made_up(0, attributes=("first", "second", "never")))["pixels"]
    assert set(classifier.quality) == {"", "first", "second"}  # the third cannot be judged
    for value, error in classifier.quality.values():
        assert 0.97 < value <= 1
        assert 0 <= error < 0.02
    features = classifier.features(torch.tensor([[[[0.9, 0.1, 0.5, 0.5]]], [[[0.1, 0.9, 0.5, 0.5]]]]))
    assert (classifier.logits(features)[:, :2] > 0).tolist() == [[True, False], [False, True]]


def test_tell_the_class():
    classifier = load_classifiers(made_up(1, num_classes=2))["pixels"]
    ((value, error),) = classifier.quality.values()
    assert value > 0.93
    assert error == pytest.approx((value * (1 - value) / 200) ** 0.5)


def test_are_trained_by_one_thread_on_every_machine(monkeypatch):
    seen = set()

    def loss(*both):
        seen.add(torch.get_num_threads())
        return _loss(*both)

    monkeypatch.setattr(classifiers, "_loss", loss)
    torch.set_num_threads(2)
    try:
        load_classifiers(made_up(2, num_classes=2))
        assert (seen, torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(1)


def test_of_a_modality_without_networks_are_refused(monkeypatch):
    monkeypatch.delitem(NETWORKS, "pixels")
    with pytest.raises(
        ValueError, match=r"^modality 'pixels' has no entry in NETWORKS of mmjsd/networks\.py"
    ):
        load_classifiers(made_up(0, num_classes=2))


def test_are_trained_once():
    data, messages = made_up(2, attributes=("first", "second", "never")), []
    first = load_classifiers(data, progress=messages.append)["pixels"]
    again = load_classifiers(data, progress=messages.append)["pixels"]
    assert messages == ["training the classifier that judges generated pixels (once per data set)"]
    assert again.quality == first.quality
    assert torch.equal(again.network[-1].weight, first.network[-1].weight)


def test_others_may_read_what_is_kept_and_where_all_is_kept_nothing_is_written(tmp_path, monkeypatch):
    data = made_up(3, num_classes=2)
    load_classifiers(data)
    (file,) = tmp_path.rglob("*.safetensors")
    other = file.with_name("other")
    other.touch()
    assert file.stat().st_mode == other.stat().st_mode

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(classifiers, "FileLock", refuse)
    assert load_classifiers(data)["pixels"].quality
