"""Pairs: what is drawn, by class or row by row, how it becomes tensors, and how workers share it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmjsd.batches import Pairs, Workers
from mmjsd.data import Examples

COUNTS = {"image": (3, 1, 7), "text": (2, 5, 1)}
"""Examples of each of three classes."""


def examples() -> dict[str, Examples]:
    """Values tell class and position: an image's pixels are 10 * class + number, a text's characters too."""
    made = {}
    for name, counts in COUNTS.items():
        shape = (1, 2, 2) if name == "image" else (4,)
        labels = np.repeat(np.arange(3), counts).astype(np.uint8)
        number = np.concatenate([np.arange(count) for count in counts])
        values = (10 * labels + number).astype(np.uint8).reshape(-1, *[1] * len(shape))
        made[name] = Examples(values * np.ones(shape, np.uint8), labels)
    return made


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_modality_of_a_sample_is_of_its_class():
    batch = Pairs(examples()).draw(500, generator()).batch(slice(None))
    image = (batch.x["image"][:, 0, 0, 0] * 255).round().long()
    assert torch.equal(image // 10, batch.labels)
    assert torch.equal(batch.x["text"][:, 0] // 10, batch.labels)


def test_every_pair_of_examples_of_a_class_occurs_equally_often():
    draws = 60_000
    samples = Pairs(examples()).draw(draws, generator())
    pairs = torch.stack([samples.indices["image"], samples.indices["text"]])
    found, counts = pairs.unique(dim=1, return_counts=True)
    assert found.shape[1] == sum(i * t for i, t in zip(*COUNTS.values(), strict=True))
    for label, (images, texts) in enumerate(zip(*COUNTS.values(), strict=True)):
        of_class = counts[samples.pairs.values["image"][found[0], 0, 0, 0] // 10 == label]
        expected = draws / 3 / (images * texts)
        assert torch.all((of_class - expected).abs() < 5 * expected**0.5)


def test_images_become_intensities_and_text_indices():
    batch = Pairs(examples()).draw(20, generator()).batch(slice(4, 9))
    assert batch.x["image"].shape == (5, 1, 2, 2)
    assert batch.x["image"].dtype == torch.float32
    assert float(batch.x["image"].max()) <= 26 / 255
    assert batch.x["text"].dtype == torch.int64
    assert batch.present is None


def test_hidden_modalities_are_zero_and_one_always_stays():
    samples = Pairs(examples(), missing=0.6).draw(20_000, generator())
    assert samples.present is not None
    present = torch.stack(list(samples.present.values()))
    assert bool(present.any(0).all())
    # Both are hidden with probability 0.36, and then one comes back.
    assert float(present.double().mean()) == pytest.approx(0.4 + 0.36 / 2, abs=0.01)
    batch = samples.batch(slice(None))
    assert batch.present is not None
    for name, values in batch.x.items():
        assert not values[~batch.present[name]].any()


def test_a_seed_repeats_the_draw():
    first, again, other = (Pairs(examples()).draw(50, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.indices["image"], again.indices["image"])
    assert not torch.equal(first.indices["image"], other.indices["image"])


@given(st.integers(1, 7), st.integers(1, 100))
def test_rows_of_all_workers_are_the_batch(size, count):
    rows = [Workers(rank, size).rows(count) for rank in range(size)]
    assert [row for each in rows for row in range(count)[each]] == list(range(count))


@given(st.integers(1, 4), st.integers(1, 12))
def test_chunks_of_all_workers_are_the_samples(size, chunk):
    samples = Pairs(examples()).draw(23, generator())
    rows = [each for rank in range(size) for each in samples.chunks(chunk, Workers(rank, size))]
    assert max(each.stop - each.start for each in rows) <= chunk
    assert torch.equal(torch.cat([samples.batch(each).labels for each in rows]), samples.labels)


def test_a_worker_without_samples_has_one_empty_chunk():
    samples = Pairs(examples()).draw(1, generator())
    assert [len(samples.batch(each).labels) for each in samples.chunks(5, Workers(0, 2))] == [0]


# Samples with attributes in place of classes ...


def described(count: int = 7) -> dict[str, Examples]:
    """Values and attributes both tell the row: attribute k is bit k of its number."""
    rows = np.arange(count, dtype=np.uint8)
    attributes = (rows[:, None] >> np.arange(3)) & 1
    return {
        "image": Examples(rows.reshape(-1, 1, 1, 1) * np.ones((1, 2, 2), np.uint8), attributes),
        "text": Examples(rows[:, None] * np.ones(4, np.uint8), attributes),
    }


@given(st.integers(1, 40))
def test_are_whole_rows_and_each_is_drawn_before_one_is_drawn_again(count):
    samples = Pairs(described()).draw(count, generator())
    batch = samples.batch(slice(None))
    rows = batch.x["text"][:, 0]
    assert torch.equal((batch.x["image"][:, 0, 0, 0] * 255).round().long(), rows)
    assert torch.equal(batch.labels, (rows[:, None] >> torch.arange(3)) & 1)
    assert len(samples) == count
    for start in range(0, count, 7):
        passed = rows[start : start + 7]
        assert len(passed.unique()) == len(passed)


def test_come_in_another_order_each_time():
    first, second = Pairs(described(50)).draw(100, generator()).indices["text"].split(50)
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(50))


def test_may_lack_modalities_too():
    samples = Pairs(described(), missing=0.6).draw(2_000, generator())
    assert samples.present is not None
    present = torch.stack(list(samples.present.values()))
    assert bool(present.any(0).all())
    assert float(present.double().mean()) == pytest.approx(0.4 + 0.36 / 2, abs=0.03)
