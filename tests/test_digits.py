"""The embedded data sets: what is drawn, that it can be read, and that it is always the same."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from mmjsd import digits
from mmjsd.data import DATASETS, SPLITS, Data, load
from tests.test_data import assert_well_formed


def test_embedded_set_is_well_formed(embedded: Data) -> None:
    assert_well_formed(embedded)
    sizes = {split: len(modalities["mnist"].labels) for split, modalities in embedded.splits.items()}
    assert sizes == {"train": 12_970, "validation": 1_000, "test": 1_500}
    for split, modalities in embedded.splits.items():
        counts = np.bincount(modalities["svhn"].labels)
        assert set(counts) == {digits.HOUSE_NUMBERS[split] // 10}


def test_embedded_set_uses_each_handwritten_original_in_one_split() -> None:
    originals = [original for split in SPLITS for original in digits.ORIGINALS[split]]
    assert sorted(originals) == list(range(1_797))


@pytest.mark.parametrize("modality", ["mnist", "svhn"])
def test_embedded_set_is_drawn_the_same_every_time(embedded: Data, modality: str) -> None:
    images, labels = digits.draw(modality, "validation")
    order = np.argsort(labels, kind="stable")
    assert_array_equal(embedded.splits["validation"][modality].values, images[order])


def test_embedded_set_differs_between_splits() -> None:
    labels = np.arange(10, dtype=np.uint8)
    one, same, other = (digits.draw_house_numbers(labels, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert_array_equal(one, same)
    assert (one != other).mean() > 0.9


def test_embedded_handwriting_looks_like_mnist(embedded: Data) -> None:
    images = embedded.splits["train"]["mnist"].values / 255
    border = np.concatenate([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], -1)
    assert border.mean() < 0.01
    assert 0.08 < images.mean() < 0.2
    assert images.max((1, 2, 3)).min() > 0.5


def test_embedded_house_numbers_are_colourful_and_stand_out(embedded: Data) -> None:
    images = embedded.splits["train"]["svhn"].values
    grey = images.mean(1)
    assert np.ptp(grey[:, 6:26, 8:24], axis=(1, 2)).min() > 35
    assert (grey[:, 8:24, 12:20].mean((1, 2)) > grey[:, [0, -1]].mean((1, 2))).mean() > 0.99  # light on dark
    assert (np.ptp(images.mean((2, 3)), axis=1) > 20).mean() > 0.3


def test_embedded_handwriting_can_be_read(embedded: Data) -> None:
    from sklearn.svm import SVC

    train, validation = (embedded.splits[split]["mnist"] for split in ("train", "validation"))
    x, x_unseen = (part.values[::5].reshape(-1, 784) / 255 for part in (train, validation))
    assert SVC(C=10).fit(x, train.labels[::5]).score(x_unseen, validation.labels[::5]) > 0.9


# The embedded sets of many modalities


@pytest.fixture(scope="module")
def patterned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Data]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMJSD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield load("polydigits-2")


@pytest.fixture(scope="module")
def drawn() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The validation split of every pattern: images and labels, in the order of the originals."""
    return {name: digits.draw(name, "validation") for name in digits.PATTERNS}


def test_sets_of_many_modalities_have_the_first_so_many_patterns(patterned: Data) -> None:
    for count in range(2, 9):
        spec = DATASETS[f"polydigits-{count}"]
        assert spec.embedded
        assert [modality.name for modality in spec.modalities] == list(digits.PATTERNS)[:count]
    assert_well_formed(patterned)
    for modalities in patterned.splits.values():
        assert [len(each.labels) for each in modalities.values()] == [len(modalities["poly0"].labels)] * 2
    assert len(patterned.splits["train"]["poly0"].labels) == 6 * 1_297


def test_patterned_digits_are_drawn_the_same_every_time(patterned: Data, drawn: Any) -> None:
    for name, examples in patterned.splits["validation"].items():
        images, labels = drawn[name]
        assert_array_equal(examples.values, images[np.argsort(labels, kind="stable")])


def test_patterned_digits_are_those_of_their_version(drawn: Any) -> None:
    """Other bytes are another data set: raise VERSION with them."""
    digest = hashlib.sha256()
    for images, labels in drawn.values():
        digest.update(images.tobytes() + labels.tobytes())
    assert (digits.VERSION, digest.hexdigest()[:16]) == (2, "ffdd6cf6ec515fae")


def test_patterned_digits_come_from_the_originals_of_their_split(patterned: Data, drawn: Any) -> None:
    from sklearn.datasets import load_digits

    _, truth = load_digits(return_X_y=True)
    for _, labels in drawn.values():
        assert_array_equal(labels, np.repeat(truth[list(digits.ORIGINALS["validation"])], 5))
    for split, copies in (("train", 6), ("test", 5)):
        expected = np.repeat(truth[list(digits.ORIGINALS[split])], copies)
        for examples in patterned.splits[split].values():
            assert_array_equal(examples.labels, np.sort(expected))


def test_patterns_are_told_apart_by_their_colours(drawn: Any) -> None:
    colours = np.stack([images.mean((2, 3)) for images, _ in drawn.values()])
    distances = np.linalg.norm(colours[:, :, None] - colours.mean(1), axis=-1)
    assert (distances.argmin(2) == np.arange(8)[:, None]).mean() > 0.95


def test_patterns_differ_from_example_to_example(drawn: Any) -> None:
    for images, _ in drawn.values():
        assert images[:, :, :4, :4].std(0).min() > 5
        assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_patterned_digits_stand_out_as_much_as_those_on_paper(drawn: Any) -> None:
    for name, (images, _) in drawn.items():
        pattern = digits.PATTERNS[name]
        ground = (np.array(pattern.dark) + np.array(pattern.light)) / 2
        contrast = np.array(pattern.ink) - ground
        ink = (images.transpose(0, 2, 3, 1) - ground) @ contrast / (contrast @ contrast)
        assert np.quantile(ink, 0.97, axis=(1, 2)).min() > 0.8
        assert np.median(ink, axis=(1, 2)).max() < 0.3
        assert 0.1 < (ink > 0.5).mean() < 0.25


def test_patterned_digits_can_be_read(patterned: Data) -> None:
    from sklearn.svm import SVC

    train, validation = (patterned.splits[split]["poly0"] for split in ("train", "validation"))
    x, x_unseen = (part.values[::7].reshape(-1, 2352) / 255 for part in (train, validation))
    assert SVC(C=10).fit(x, train.labels[::7]).score(x_unseen, validation.labels[::7]) > 0.8
