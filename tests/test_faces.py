"""Faces and the words of their attributes: drawn ones, and CelebA from an array file or its own files."""

import hashlib
import io
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from torchvision.datasets import CelebA

from mmjsd import faces
from mmjsd.data import DATASETS, SPLITS, Data, DataError, check, decode_text, load
from mmjsd.text import describe, join_names

NAMES = DATASETS["celeba"].attributes
LENGTH = 256
COUNT = 12
Arrays = dict[str, np.ndarray]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMJSD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def known_rows(text: str, names: tuple[str, ...] = NAMES) -> list[int]:
    """The attributes that a text names: the inverse of `describe`."""
    named = text.strip("*").split(", ")
    return [int(name in named) for name in names]


# Attributes as text ...


def test_come_back_from_it_where_they_fit():
    rng = np.random.default_rng(0)
    rows = (rng.random((2_000, len(NAMES))) < rng.uniform(0.05, 0.45, (2_000, 1))).astype(np.uint8)
    rows[0], rows[1] = 0, 1
    whole = [", ".join(name for name, here in zip(NAMES, row, strict=True) if here) for row in rows]
    fits = [len(text) <= LENGTH for text in whole]
    assert 1_500 < sum(fits) < 2_000
    texts = decode_text(describe(rows, NAMES, LENGTH, rng))
    for row, text, is_whole in zip(rows, texts, fits, strict=True):
        again = known_rows(text)
        if is_whole:
            assert again == row.tolist()
            continue
        # Cut from the end: what is named comes first among what is there, and no further name would fit.
        there = np.flatnonzero(row)
        named = np.flatnonzero(again)
        assert_array_equal(named, there[: len(named)])
        assert len(text.strip("*")) + 2 + len(NAMES[there[len(named)]]) > LENGTH


def test_are_written_as_the_papers_second_figure_shows():
    found = {"attractive", "male", "mouth slightly open", "no beard", "smiling", "wearing hat", "young"}
    row = [name in found for name in NAMES]
    assert join_names(row, NAMES, LENGTH) == (
        "attractive, male, mouth slightly open, no beard, smiling, wearing hat, young"
    )


def test_begin_anywhere_with_stars_around():
    rows = np.zeros((3_000, len(NAMES)), np.uint8)
    rows[:, NAMES.index("bald")] = 1
    texts = decode_text(describe(rows, NAMES, 8, np.random.default_rng(0)))
    starts = np.bincount([text.index("bald") for text in texts])
    assert {text.replace("bald", "") for text in texts} == {"****"}
    assert len(starts) == 5
    assert (abs(starts - 600) < 5 * 600**0.5).all()


# Drawn faces ...


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(faces.COUNTS, "validation", 600)
        return faces.draw("validation")


def test_have_at_least_fifteen_attributes_that_celeba_has():
    assert len(faces.ATTRIBUTES) >= 15
    assert [name for name in NAMES if name in faces.ATTRIBUTES] == list(faces.ATTRIBUTES)


def test_are_drawn_the_same_every_time(drawn, monkeypatch):
    monkeypatch.setitem(faces.COUNTS, "validation", 600)
    images, attributes = faces.draw("validation")
    assert images.shape == (600, 3, 64, 64)
    assert images.dtype == attributes.dtype == np.uint8
    assert_array_equal(images, drawn[0])
    assert_array_equal(attributes, drawn[1])
    assert not np.array_equal(faces.draw_attributes(600, np.random.default_rng(1))["male"], attributes[:, 11])


@pytest.mark.parametrize("name", faces.ATTRIBUTES)
def test_show_each_of_their_attributes(name):
    """A face drawn once with and once without it, all else equal, differs, unless another hides it."""
    rng = np.random.default_rng(3)
    flags = {key: value.copy() for key, value in faces.draw_attributes(40, rng).items()}
    for key in {"wearing hat", "bald"} - {name}:
        flags[key][:] = False
    if name in ("goatee", "mustache"):
        flags["no beard"][:] = False
    for colour in ("black hair", "brown hair", "blond hair", "gray hair"):
        flags[colour] &= not name.endswith("hair")
    differing = 0
    for index in range(40):
        pictures = []
        for value in (False, True):
            changed = {**flags, name: np.full(40, value)}
            person = faces._Face(changed, index, np.random.default_rng(index))
            pictures.append(faces._draw_face(person).astype(int))
        differing += int((abs(pictures[0] - pictures[1]).max(axis=2) > 12).sum() >= 3)
    assert differing >= 38


def test_have_attributes_that_go_together_as_in_celeba():
    flags = faces.draw_attributes(20_000, np.random.default_rng(0))
    male, young = flags["male"], flags["young"]
    assert not (flags["mustache"] & flags["no beard"]).any()
    assert not (flags["goatee"] & ~male).any()
    assert not (flags["bald"] & (flags["bangs"] | flags["black hair"])).any()
    colours = sum(flags[f"{colour} hair"].astype(int) for colour in ("black", "blond", "brown", "gray"))
    assert colours.max() == 1
    assert flags["wearing lipstick"][~male].mean() > 0.6 > 0.1 > flags["wearing lipstick"][male].mean()
    assert flags["gray hair"][~young].mean() > 0.2 > flags["gray hair"][young].mean()
    assert flags["mouth slightly open"][flags["smiling"]].mean() > 0.6
    rates = {name: each.mean() for name, each in flags.items()}
    assert min(rates.values()) > 0.02
    assert rates["no beard"] > 0.75


# CelebA ...


def made_up(count: int = COUNT) -> Arrays:
    """Pictures of one colour each, the splits in order."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 1, 1, 3), np.uint8) * np.ones((1, 64, 64, 1), np.uint8)
    return {
        "images": images,
        "attributes": rng.integers(0, 2, (count, len(NAMES)), np.uint8),
        "attribute_names": np.array([name.title().replace(" ", "_") for name in NAMES]),
        "split": np.repeat(np.arange(3, dtype=np.uint8), count // 3),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez_compressed(tmp_path / "celeba64.npz", **made_up())
    return tmp_path


def assert_holds(data: Data, arrays: Arrays) -> None:
    for number, split in enumerate(SPLITS):
        chosen = arrays["split"] == number
        face, words = data.splits[split].values()
        assert_array_equal(face.values.transpose(0, 2, 3, 1), arrays["images"][chosen])
        assert_array_equal(face.labels, arrays["attributes"][chosen])
        assert_array_equal(words.labels, face.labels)
        for row, text in zip(face.labels, decode_text(words.values), strict=True):
            assert text.strip("*") == join_names(row, NAMES, LENGTH)


def test_is_read_from_arrays_by_its_own_splits(cache, folder):
    check("celeba", folder)
    assert_holds(load("celeba", folder), made_up())


REFUSED: dict[str, tuple[Callable[[Arrays], Any], str]] = {
    "image size": (
        lambda each: each.update(images=each["images"][:, :32]),
        r"images is uint8 \[12, 32, 64, 3\]; expected uint8 arrays images \[n, 64, 64, 3\], attributes",
    ),
    "fewer attributes": (
        lambda each: each.update(attributes=each["attributes"][:, 1:]),
        r"attributes is uint8 \[12, 39\]; expected",
    ),
    "rows": (
        lambda each: each.update(attributes=each["attributes"][1:]),
        r"has 12 rows of images, 11 rows of attributes, 12 rows of split; expected as many of each",
    ),
    "another name": (
        lambda each: each["attribute_names"].put(3, "Tall"),
        r"expected the 40 attributes of celeba, found no 'bags under eyes'",
    ),
    "order": (
        lambda each: each.update(attribute_names=each["attribute_names"][::-1]),
        r"expected the 40 attributes of celeba, found them in another order",
    ),
    "names as objects": (
        lambda each: each.update(attribute_names=each["attribute_names"].astype(object)),
        r"attribute_names is object; expected text; save it as numpy\.array\(names, dtype=str\)",
    ),
    "names as bytes": (
        lambda each: each.update(attribute_names=each["attribute_names"].astype("S")),
        r"attribute_names is \|S\d+; expected text; save it as",
    ),
    "no names": (lambda each: each.pop("attribute_names"), r"lacks the array 'attribute_names': expected"),
    "attribute 2": (lambda each: each["attributes"].put(5, 2), r"attributes must lie in 0\.\.1, got 2"),
    "split 3": (lambda each: each["split"].put(5, 3), r"split must lie in 0\.\.2, got 3"),
    "a test split of equal images": (
        lambda each: each["attributes"].__setitem__(each["split"] == 2, 1),
        r"puts \d with the same attributes into the test split; it needs some that differ",
    ),
    "no test": (
        lambda each: each.update(split=each["split"].clip(0, 1)),
        r"puts no image into the test split; it needs some in every split",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_with_one_sentence(case, cache, folder):
    spoil, message = REFUSED[case]
    arrays = made_up()
    spoil(arrays)
    np.savez_compressed(folder / "celeba64.npz", **arrays)
    for use in (check, load):
        with pytest.raises(DataError, match=rf"celeba64\.npz:? {message}") as refusal:
            use("celeba", folder)
        assert "\n" not in str(refusal.value)
    assert not list(cache.glob("*/contents.json"))


def test_that_is_missing_is_named(cache, tmp_path):
    with pytest.raises(DataError, match=r"celeba64\.npz does not exist: expected .* attribute_names; put it"):
        check("celeba", tmp_path)


def celeba_files(arrays: Arrays) -> dict[str, bytes]:
    """CelebA's own files of such pictures, whose frame around the middle is black."""
    names = [f"{number + 1:06d}.jpg" for number in range(len(arrays["images"]))]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        for name, image in zip(names, arrays["images"], strict=True):
            picture = Image.new("RGB", (178, 218))
            picture.paste(tuple(image[0, 0].tolist()), (15, 35, 163, 183))
            file = io.BytesIO()
            picture.save(file, format="PNG")
            opened.writestr(f"img_align_celeba/{name}", file.getvalue())
    signs = np.where(arrays["attributes"], 1, -1)
    table = [str(len(names)), " ".join(arrays["attribute_names"])]
    table += [f"{name}  {' '.join(map(str, row))}" for name, row in zip(names, signs, strict=True)]
    splits = [f"{name} {number}" for name, number in zip(names, arrays["split"], strict=True)]
    return {
        "img_align_celeba.zip": archive.getvalue(),
        "list_attr_celeba.txt": "\n".join(table).encode(),
        "list_eval_partition.txt": "\n".join(splits).encode(),
    }


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder with CelebA's own files."""
    inner = tmp_path / "raw" / "celeba"
    inner.mkdir(parents=True)
    for name, content in celeba_files(made_up()).items():
        (inner / name).write_bytes(content)
    return inner.parent


def test_is_read_from_its_own_files(cache, raw):
    messages: list[str] = []
    check("celeba", raw)
    assert_holds(load("celeba", raw, messages.append), made_up())
    assert messages == ["preparing face", "decoding images: 100 %", "preparing words"]
    assert not [path for path in cache.iterdir() if path.name.endswith(".images")]


def test_space_for_the_images_is_found_before_they_are_decoded(cache, raw, monkeypatch):
    """A process dies where a page of a mapped file finds none."""

    def full(descriptor: int, offset: int, size: int) -> None:
        assert (offset, size) == (0, os.fstat(descriptor).st_size)
        assert size > COUNT * 64 * 64 * 3
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        DataError, match=r"No space left on device; set MMJSD_CACHE to a folder that has room"
    ):
        load("celeba", raw)
    assert not list(cache.glob("*.images"))


def test_of_mixed_splits_is_read_as_well(cache, raw):
    arrays = made_up()
    arrays["split"] = arrays["split"][np.random.default_rng(1).permutation(COUNT)]
    for name, content in celeba_files(arrays).items():
        (raw / "celeba" / name).write_bytes(content)
    assert_holds(load("celeba", raw), arrays)


def rewritten(name: str, old: str, new: str) -> Callable[[Path], Any]:
    return lambda inner: (inner / name).write_text((inner / name).read_text().replace(old, new))


def with_picture(content: bytes | None, name: str = "000003.jpg") -> Callable[[Path], Any]:
    """Put something else into the archive in place of one picture, or nothing."""

    def change(inner: Path) -> None:
        path = inner / "img_align_celeba.zip"
        with zipfile.ZipFile(path) as opened:
            members = {member: opened.read(member) for member in opened.namelist()}
        members = {member: each for member, each in members.items() if not member.endswith(name)}
        if content is not None:
            members[f"img_align_celeba/{name}"] = content
        with zipfile.ZipFile(path, "w") as opened:
            for member, each in members.items():
                opened.writestr(member, each)

    return change


def png(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, format="PNG")
    return file.getvalue()


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "lacks an image": (with_picture(None), r"celeba\.zip lacks the image 000003\.jpg; copy it anew"),
    "holds no image": (with_picture(b"no picture"), r"celeba\.zip is damaged \(.*\); copy it anew"),
    "holds large images": (
        with_picture(png((200, 218))),
        r"celeba\.zip: 000003\.jpg has 200 x 218 pixels; expected 178 x 218",
    ),
    "is no archive": (
        lambda inner: (inner / "img_align_celeba.zip").write_bytes(b"nothing"),
        r"celeba\.zip is damaged \(.*\); copy it anew",
    ),
    "has a short table": (
        lambda inner: (inner / "list_attr_celeba.txt").write_text(
            "\n".join((inner / "list_attr_celeba.txt").read_text().splitlines()[:-1])
        ),
        r"list_attr_celeba\.txt has 11 rows but says 12; copy it anew",
    ),
    "has a short row": (
        rewritten("list_eval_partition.txt", "000002.jpg 0", "000002.jpg"),
        r"list_eval_partition\.txt: row 2 has 0 values, expected 1; copy it anew",
    ),
    "has other images": (
        rewritten("list_eval_partition.txt", "000002.jpg", "999999.jpg"),
        r"list_eval_partition\.txt and .*list_attr_celeba\.txt list other images; copy both anew",
    ),
    "has other attributes": (
        rewritten("list_attr_celeba.txt", "Bald", "Tall"),
        r"list_attr_celeba\.txt: expected the 40 attributes of celeba, found no 'bald'",
    ),
    "has words for numbers": (
        rewritten("list_eval_partition.txt", "000002.jpg 0", "000002.jpg train"),
        r"list_eval_partition\.txt cannot be read as a table of CelebA \(.*\); copy it anew",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_is_refused_with_one_sentence(case, cache, raw):
    damage, message = DAMAGED[case]
    damage(raw / "celeba")
    with pytest.raises(DataError, match=message) as refusal:
        load("celeba", raw)
    assert "\n" not in str(refusal.value)
    assert not list(cache.glob("*/contents.json"))
    assert not list(cache.glob("*.images"))


class RefusedError(Exception):
    """As gdown's own, which are no kind of OSError."""


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What Google Drive holds, by file id, as long as torchvision takes this for it."""
    held = {f"id of {name}": content for name, content in celeba_files(made_up()).items()}

    def fetch(id: str, output: str, **_: Any) -> None:  # noqa: A002
        if id not in held:
            raise RefusedError("too many users have viewed or downloaded this file recently")
        Path(output).write_bytes(held[id])

    listed = [(key, hashlib.md5(content).hexdigest(), key[6:]) for key, content in held.items()]
    monkeypatch.setattr(CelebA, "file_list", [*listed, ("id of boxes", "0", "list_bbox_celeba.txt")])
    monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=fetch))
    return held


def test_is_downloaded(cache, drive):
    messages: list[str] = []
    assert_holds(load("celeba", progress=messages.append), made_up())
    assert messages[0] == "downloading face from Google Drive"
    drive.clear()
    assert_holds(load("celeba"), made_up())


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_that_cannot_be_downloaded_says_what_to_do(damage, cache, drive):
    key = "id of list_attr_celeba.txt"
    content = drive.pop(key)
    if damage == "damaged":
        drive[key] = content[:-5]
    message = r"cannot download face from Google Drive \(.*\); put celeba64\.npz into"
    with pytest.raises(DataError, match=message):
        load("celeba")
    drive[key] = content
    assert_holds(load("celeba"), made_up())
