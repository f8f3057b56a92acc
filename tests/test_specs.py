"""A data set of one's own: what its description may say, what its arrays must be, when it is made anew."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from mmjsd import data, digits, faces, text
from mmjsd.data import DATASETS, SPLITS, Data, DataError, DataSpec, Modality, load

WAVE = Modality(name="wave", kind="image", shape=(1, 1, 6))
GLYPH = Modality(name="glyph", kind="image", shape=(3, 2, 2))
WORD = Modality(name="word", kind="text", shape=(8,))
SIGNS = ("high", "late")

Own = Callable[..., Data]


# A description is refused ...


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "sine-wave"}, r"^a modality's name must be an identifier .* 'joint', got 'sine-wave'$"),
        ({"name": "a+b"}, r"got 'a\+b'$"),
        ({"name": "class"}, r"got 'class'$"),
        ({"name": "joint"}, r"got 'joint'$"),
        ({"shape": (64,)}, r"^modality 'wave' must be an image of shape .*, got 'image' of \(64,\)$"),
        ({"shape": (2, 8, 8)}, r"got 'image' of \(2, 8, 8\)$"),
        ({"shape": (1, 0, 8)}, r"got 'image' of \(1, 0, 8\)$"),
        ({"kind": "text"}, r"got 'text' of \(1, 1, 6\)$"),
        ({"kind": "signal", "shape": (6,)}, r"got 'signal' of \(6,\)$"),
    ],
)
def test_of_a_modality_that_no_option_or_picture_could_take(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(WAVE, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"^data set 'own' must have modalities, and either two .*, got 2, 0 classes and 0 attributes$"),
        ({"num_classes": 4, "attributes": SIGNS}, r"got 2, 4 classes and 2 attributes$"),
        ({"num_classes": 1}, r"got 2, 1 classes and 0 attributes$"),
        ({"num_classes": 4, "modalities": ()}, r"got 0, 4 classes and 0 attributes$"),
        ({"num_classes": 4, "modalities": (WAVE, WAVE)}, r"^data set 'own' names the modality 'wave' twice"),
        (
            {"attributes": ("high", "high")},
            r"^data set 'own' names the attribute 'high' twice; leave one out",
        ),
    ],
)
def test_of_a_data_set_that_nothing_could_pair(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSpec(**{"name": "own", "modalities": (WAVE, GLYPH), **fields})


# What is drawn ...


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Own:
    """Make a data set of wave and glyph, or of other modalities, whose `draw` tells its arrays."""
    monkeypatch.setenv("MMJSD_CACHE", str(tmp_path))

    def make(draw: Callable[..., Any], **fields: Any) -> Data:
        described = {"modalities": (WAVE, GLYPH), "embedded": True, **fields}
        monkeypatch.setitem(DATASETS, "own", DataSpec(name="own", **described))
        monkeypatch.setattr(digits, "draw", draw)
        monkeypatch.setattr(faces, "draw", lambda split: draw("", split))
        return load("own")

    return make


def classes(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Twelve examples of the classes 0, 1, 2, 3, 0, ...; their values tell which of the twelve they are."""
    shape = {"wave": WAVE.shape, "glyph": GLYPH.shape}[name]
    rows = np.arange(12, dtype=np.uint8)
    return rows.reshape(-1, 1, 1, 1) * np.ones(shape, np.uint8), rows % 4


def test_is_sorted_by_class(own: Own) -> None:
    made = own(classes, num_classes=4)
    for examples in (each for split in SPLITS for each in made.splits[split].values()):
        assert_array_equal(examples.labels, np.repeat(np.arange(4), 3))
        assert_array_equal(examples.values[:, 0, 0, 0] % 4, examples.labels)


def lacks(number: int) -> Callable[..., Any]:
    def draw(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        values, labels = classes(name, split)
        kept = (labels != number) | (name != "glyph") | (split == "train")
        return values[kept], labels[kept]

    return draw


def changed(values: Callable[..., Any] = lambda x: x, labels: Callable[..., Any] = lambda x: x) -> Any:
    def draw(name: str, split: str) -> tuple[Any, Any]:
        made = classes(name, split)
        return values(made[0]), labels(made[1])

    return draw


@pytest.mark.parametrize(
    ("draw", "num_classes", "message"),
    [
        (lacks(2), 4, r"^glyph of own: the validation split holds no example of class 2; it needs every"),
        (lacks(3), 4, r"^glyph of own: the validation split holds no example of class 3; it needs every"),
        (classes, 6, r"^wave of own: the train split holds no example of class 4; it needs every class$"),
        (classes, 3, r"^wave of own: labels must lie in 0\.\.2, got 3 in the train split$"),
        (changed(labels=lambda y: y + 1), 4, r"labels must lie in 0\.\.3, got 4 in the train split$"),
        (
            changed(lambda x: x / 255),
            4,
            r"^wave of own: values must be uint8 \[12, 1, 1, 6\], got float64 \[12, 1, 1, 6\] in the train",
        ),
        (changed(lambda x: x[..., 1:]), 4, r"must be uint8 \[12, 1, 1, 6\], got uint8 \[12, 1, 1, 5\]"),
        (changed(labels=lambda y: y[1:]), 4, r"labels must be uint8 \[12\], got uint8 \[11\]"),
        (changed(labels=lambda y: None), 4, r"labels must be uint8 \[12\], got object \[\]"),
        (changed(labels=lambda y: y[:, None]), 4, r"labels must be uint8 \[12\], got uint8 \[12, 1\]"),
    ],
)
def test_is_refused_where_it_is_not_what_the_description_says(
    draw: Callable[..., Any], num_classes: int, message: str, own: Own, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as refusal:
        own(draw, num_classes=num_classes)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.rglob("contents.json"))


def test_has_the_ten_numerals_as_text_and_so_ten_classes(own: Own) -> None:
    with pytest.raises(
        DataError, match=r"^word of own: labels must lie in 0\.\.3, got 9 in the train split$"
    ):
        own(classes, modalities=(WAVE, WORD), num_classes=4)


def test_has_indices_of_characters_as_text(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    placed = np.full((10, 8), 71, np.uint8), np.arange(10, dtype=np.uint8)
    monkeypatch.setattr(text, "place_numerals", lambda _: placed)
    with pytest.raises(DataError, match=r"^word of own: values must lie in 0\.\.70, got 71"):
        own(classes, modalities=(WORD,), num_classes=10)


# With attributes it ...


def attributes(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    values, labels = classes(name, split)
    return values, (labels[:, None] >> np.arange(2, dtype=np.uint8)) & 1


@pytest.fixture
def described(own: Own) -> Own:
    """Make a data set whose images are drawn one after the other, with attributes."""

    def make(parts: Callable[..., Any], **fields: Any) -> Data:
        names = iter([name for name in ("wave", "glyph") for _ in SPLITS])
        return own(lambda _, split: parts(next(names), split), attributes=SIGNS, **fields)

    return make


def test_may_have_any_number_of_images_and_texts(described: Own) -> None:
    made = described(attributes, modalities=(WAVE, GLYPH, dataclasses.replace(WORD, shape=(12,))))
    for modalities in made.splits.values():
        assert list(modalities) == ["wave", "glyph", "word"]
        assert_array_equal(modalities["wave"].values[:, 0, 0, 0], range(12))
        assert_array_equal(modalities["glyph"].values[:, 0, 0, 0], range(12))
        texts = text.decode_text(modalities["word"].values)
        assert [each.strip("*") for each in texts[:4]] == ["", "high", "late", "high, late"]


def shuffled(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    values, known = attributes(name, split)
    return values, known[::-1].copy() if name == "glyph" else known


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (shuffled, r"^own: attributes of glyph and wave in the train split differ; a row must be the same"),
        (lambda *of: (attributes(*of)[0], attributes(*of)[1] * 2), r"labels must lie in 0\.\.1, got 2"),
        (
            lambda *of: (attributes(*of)[0], attributes(*of)[1] * 0),
            r"^wave of own puts 12 with the same attr",
        ),
        (
            lambda *of: (attributes(*of)[0], attributes(*of)[1][:, :1]),
            r"must be uint8 \[12, 2\], got .*12, 1",
        ),
    ],
)
def test_is_refused_where_its_rows_are_not_whole_samples(
    parts: Callable[..., Any], message: str, described: Own
) -> None:
    with pytest.raises(DataError, match=message):
        described(parts)


# Once prepared it ...


def test_is_made_anew_for_another_version_alone(own: Own, tmp_path: Path) -> None:
    drawn: list[str] = []

    def draw(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        drawn.append(name)
        return classes(name, split)

    for version, times in ((0, 6), (0, 6), (1, 12), (1, 12)):
        own(draw, num_classes=4, version=version)
        assert len(drawn) == times


def test_is_made_anew_where_it_has_not_as_many_classes_as_are_described(own: Own) -> None:
    own(classes, num_classes=4)
    with pytest.raises(DataError, match=r"^wave of own: the train split holds no example of class 4;"):
        own(classes, num_classes=5)


def test_is_looked_for_where_it_lay_before_there_were_versions() -> None:
    drawing = hashlib.sha256(f"{data._PREPARATION} {digits.VERSION}".encode()).hexdigest()
    assert data._prepared_folder(DATASETS["digits"], {}).name == f"digits-{drawing[:16]}"


# From files it ...


def save(folder: Path, name: str, shape: tuple[int, ...]) -> None:
    rng, labels = np.random.default_rng(0), np.arange(80, dtype=np.uint8) % 4
    images = rng.integers(0, 256, (80, *shape), np.uint8)
    np.savez(folder / f"{name}.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)


def test_is_read_from_npz_files_of_its_modalities_names(tmp_path: Path, own: Own) -> None:
    with pytest.raises(
        DataError, match=r"wave\.npz does not exist: .*; put it into a folder and name that with"
    ):
        own(classes, num_classes=4, embedded=False)
    save(tmp_path, "wave", (1, 6, 1))
    save(tmp_path, "glyph", (2, 2, 3))
    data.check("own", tmp_path)
    made = load("own", tmp_path).splits["test"]
    shapes = {name: each.values.shape for name, each in made.items()}
    assert shapes == {"wave": (80, 1, 1, 6), "glyph": (80, 3, 2, 2)}
