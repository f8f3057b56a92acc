"""Data sets: what is drawn, what is read, what is refused, and what a crash or a second process leaves."""

import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from mmjsd.data import (
    ALPHABET,
    DATASETS,
    SPLITS,
    Data,
    DataError,
    cache_dir,
    check,
    decode_text,
    encode_text,
    load,
)
from mmjsd.sources import split_examples

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUM_TRAIN, NUM_TEST = 120, 20
FILES = {"mnist": (28, 28, 1), "svhn": (32, 32, 3)}

Arrays = dict[str, np.ndarray]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMJSD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def made_up(shape: tuple[int, ...], seed: int = 0) -> Arrays:
    """Noise whose first pixel tells the example's position in its file, with labels 0, 1, ..., 9, 0, ..."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        images = rng.integers(0, 256, (count, *shape), np.uint8)
        images[:, 0, 0, 0] = np.arange(count)
        arrays |= {f"x_{split}": images, f"y_{split}": (np.arange(count) % 10).astype(np.uint8)}
    return arrays


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, shape in FILES.items():
        np.savez_compressed(tmp_path / f"{name}.npz", **made_up(shape))
    return tmp_path


def rewrite(path: Path, change: Callable[[Arrays], Any]) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez_compressed(path, **arrays)


def assert_well_formed(data: Data) -> None:
    assert list(data.splits) == list(SPLITS)
    for modalities in data.splits.values():
        assert list(modalities) == [modality.name for modality in data.spec.modalities]
        for modality in data.spec.modalities:
            examples = modalities[modality.name]
            assert examples.values.dtype == examples.labels.dtype == np.uint8
            assert examples.values.shape == (len(examples.labels), *modality.shape)
            assert (np.diff(examples.labels.astype(int)) >= 0).all()
            assert_array_equal(np.unique(examples.labels), range(data.spec.num_classes))


def test_importing_loads_nothing_heavy() -> None:
    heavy = {"torch", "torchvision", "sklearn", "scipy", "PIL", "matplotlib", "filelock"}
    code = f"import sys, mmjsd.data; sys.exit(', '.join({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""


def test_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMJSD_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/own")
    monkeypatch.delenv("MMJSD_CACHE")
    assert cache_dir() == Path("/xdg/mmjsd")
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_dir() == Path.home() / ".cache" / "mmjsd"


def test_a_cache_that_each_process_would_look_for_elsewhere_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MMJSD_CACHE", "own")
    with pytest.raises(DataError, match=f"must be an absolute path, got own; set it to {Path.cwd()}/own$"):
        cache_dir()


# Text


def test_text_decodes_to_what_was_encoded() -> None:
    for text in (*WORDS, "  a-1 *\n", ALPHABET):
        assert decode_text(encode_text(text)[None]) == [text]
        assert decode_text(torch.from_numpy(encode_text(text)).long()[None]) == [text]
        assert decode_text([encode_text(text).tolist()]) == [text]
    assert decode_text(torch.zeros(0, 8)) == []


def test_text_is_encoded_by_the_first_of_two_equal_characters() -> None:
    assert encode_text("-").tolist() == [ALPHABET.index("-")]
    assert len(ALPHABET) == 71


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([[0, 71]], r"indices of text lie in 0\.\.70, got 0\.\.71"),
        ([[-1, 3]], r"got -1\.\.3"),
        ([0, 1], r"must have axes \[batch, length\], got shape \[2\]"),
    ],
)
def test_text_refuses_indices_that_are_none(indices: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_text(indices)


def test_text_refuses_unknown_characters() -> None:
    with pytest.raises(DataError, match=r"text 'Zero' holds 'Z', which is not in ALPHABET"):
        encode_text("Zero")


def test_text_holds_each_word_once_at_each_start(embedded: Data) -> None:
    for split in SPLITS:
        text = embedded.splits[split]["text"]
        for label, word in enumerate(WORDS):
            placed = decode_text(text.values[text.labels == label])
            assert sorted(row.index(word) for row in placed) == list(range(8 - len(word) + 1))
            assert {row.strip() for row in placed} == {word}


def test_embedded_set_needs_no_check(cache: Path, tmp_path: Path) -> None:
    check("digits", None)
    check("digits", tmp_path / "missing")


# Files of a user


def test_files_become_sorted_examples(cache: Path, folder: Path) -> None:
    check("mnist-svhn-text", folder)
    messages: list[str] = []
    data = load("mnist-svhn-text", folder, messages.append)
    assert messages == ["preparing mnist", "preparing svhn", "preparing text"]
    assert_well_formed(data)
    for name, shape in FILES.items():
        arrays = made_up(shape)
        test = data.splits["test"][name]
        order = np.argsort(arrays["y_test"], kind="stable")
        assert_array_equal(test.values.transpose(0, 2, 3, 1), arrays["x_test"][order])
        assert_array_equal(test.labels, arrays["y_test"][order])


def test_files_validate_on_the_last_tenth(cache: Path, folder: Path) -> None:
    data = load("mnist-svhn-text", folder)
    for name in FILES:
        positions = {split: np.sort(data.splits[split][name].values[:, 0, 0, 0]) for split in SPLITS}
        assert_array_equal(positions["train"], range(NUM_TRAIN * 9 // 10))
        assert_array_equal(positions["validation"], range(NUM_TRAIN * 9 // 10, NUM_TRAIN))


def test_files_validate_on_5000_at_most() -> None:
    parts = split_examples(np.zeros(60_000, np.uint8), np.zeros(10_000, np.uint8))
    assert [len(parts[split]) for split in SPLITS] == [55_000, 5_000, 10_000]


def test_files_may_lack_the_channel_axis_of_grey_images(cache: Path, folder: Path) -> None:
    with_axis = load("mnist-svhn-text", folder)
    rewrite(folder / "mnist.npz", lambda each: each.update(x_train=each["x_train"][..., 0]))
    check("mnist-svhn-text", folder)
    assert load("mnist-svhn-text", folder).digest == with_axis.digest


def test_files_that_change_are_prepared_anew(cache: Path, folder: Path) -> None:
    before = load("mnist-svhn-text", folder)
    assert load("mnist-svhn-text", folder).digest == before.digest
    np.savez_compressed(folder / "svhn.npz", **made_up(FILES["svhn"], seed=1))
    after = load("mnist-svhn-text", folder)
    assert after.digest != before.digest
    assert_array_equal(after.splits["test"]["mnist"].values, before.splits["test"]["mnist"].values)


def test_arrays_serve_torch_without_warning_or_writing(cache: Path, folder: Path) -> None:
    values = load("mnist-svhn-text", folder).splits["train"]["mnist"].values
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.from_numpy(values).zero_()
    assert load("mnist-svhn-text", folder).splits["train"]["mnist"].values.any()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5_000])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def relabel(labels: np.ndarray, old: int, new: int) -> np.ndarray:
    return np.where(labels == old, new, labels).astype(np.uint8)


def changed(**new: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda path: rewrite(path, lambda each: each.update({key: f(each[key]) for key, f in new.items()}))


def drop_labels(path: Path) -> None:
    rewrite(path, lambda each: each.pop("y_test"))


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (
        Path.unlink,
        r"/svhn\.npz does not exist: expected uint8 arrays x_train \[n, 32, 32, 3\], .*leave --data-dir out",
    ),
    "folder": (become_a_folder, r"svhn\.npz cannot be read \(Is a directory\); copy it anew"),
    "truncated": (truncate, r"svhn\.npz cannot be read as an npz file \(.*\); copy it anew"),
    "empty": (lambda path: path.write_bytes(b""), r"svhn\.npz cannot be read as an npz file"),
    "a picture": (
        lambda path: path.write_bytes(b"\x89PNG" * 500),
        r"svhn\.npz cannot be read as an npz file",
    ),
    "something before the archive": (
        lambda path: path.write_bytes(b"\0" + path.read_bytes()),
        r"svhn\.npz cannot be read as an npz file \(it does not begin with an array\); copy it anew",
    ),
    "flipped bit": (flip_a_bit, r"svhn\.npz (is damaged: x_train\.npy fails|cannot be read).*; copy it anew"),
    "missing key": (drop_labels, r"svhn\.npz lacks the array 'y_test': expected uint8 arrays x_train"),
    "dtype": (
        changed(x_train=lambda x: x.astype(np.float32)),
        r"svhn\.npz: x_train is float32 \[120, 32, 32, 3\]; expected uint8 arrays",
    ),
    "channel-first": (
        changed(x_test=lambda x: x.transpose(0, 3, 1, 2)),
        r"svhn\.npz: x_test is uint8 \[20, 3, 32, 32\]; expected .*x_test \[n, 32, 32, 3\]",
    ),
    "grey": (changed(x_test=lambda x: x[..., 0]), r"svhn\.npz: x_test is uint8 \[20, 32, 32\]; expected"),
    "label axes": (
        changed(y_train=lambda y: y[:, None]),
        r"svhn\.npz: y_train is uint8 \[120, 1\]; expected",
    ),
    "counts": (
        changed(y_test=lambda y: y[1:]),
        r"svhn\.npz has 20 images in x_test but 19 labels in y_test; expected one label for each image",
    ),
    "label 10": (
        changed(y_train=lambda y: relabel(y, 0, 10)),
        r"svhn\.npz: labels must lie in 0\.\.9, got 10",
    ),
    "class": (
        changed(y_test=lambda y: relabel(y, 7, 1)),
        r"svhn\.npz: the test split holds no example of class 7; it needs every class",
    ),
    "validation": (
        changed(y_train=np.sort),
        r"svhn\.npz: the train split holds no example of class 9; it needs every class",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_are_refused_with_one_sentence(case: str, cache: Path, folder: Path) -> None:
    spoil, message = REFUSED[case]
    spoil(folder / "svhn.npz")
    for use in (check, load):
        with pytest.raises(DataError, match=message) as refusal:
            use("mnist-svhn-text", folder)
        assert "\n" not in str(refusal.value)
        assert not str(refusal.value).endswith(".")
    assert not list(cache.glob("*/contents.json"))


def test_files_of_pickled_objects_are_refused(cache: Path, folder: Path) -> None:
    rewrite(folder / "mnist.npz", lambda each: each.update(x_train=np.array([None] * NUM_TRAIN)))
    with pytest.raises(DataError, match=r"mnist\.npz: x_train is object \[120\]"):
        check("mnist-svhn-text", folder)


def test_unknown_data_sets_are_refused(cache: Path) -> None:
    for use in (check, load):
        with pytest.raises(
            DataError, match="unknown data set 'mnist'; choose one of digits, mnist-svhn-text"
        ):
            use("mnist", None)
    embedded = {"digits", "faces", *(f"polydigits-{count}" for count in range(2, 9))}
    assert {spec.name for spec in DATASETS.values() if spec.embedded} == embedded
    assert set(DATASETS) - embedded == {"mnist-svhn-text", "celeba"}


# The cache


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def spoil_header(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("train.mnist.values.npy", truncate),
        ("train.mnist.values.npy", spoil_header),
        ("test.svhn.labels.npy", Path.unlink),
        ("test.text.values.npy", empty_file),
        ("contents.json", Path.unlink),
        ("contents.json", empty_file),
        ("contents.json", lambda path: path.write_text("[]")),
        ("contents.json", lambda path: path.write_text(json.dumps({"digest": "0", "num_bytes": []}))),
    ],
)
def test_damaged_cache_is_rebuilt(
    pattern: str, damage: Callable[[Path], Any], cache: Path, folder: Path
) -> None:
    digest = load("mnist-svhn-text", folder).digest
    (path,) = cache.glob(f"*/{pattern}")
    damage(path)
    rebuilt = load("mnist-svhn-text", folder)
    assert rebuilt.digest == digest
    assert_well_formed(rebuilt)


def test_crash_while_preparing_leaves_nothing_half_done(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, array: np.ndarray) -> None:
        path.write_bytes(b"half an array")
        if "svhn" in path.name:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(DataError, match=r"cannot prepare .*No space left on device; set MMJSD_CACHE to"):
            load("mnist-svhn-text", folder)
    assert not [path for path in cache.iterdir() if path.is_dir()]
    assert_well_formed(load("mnist-svhn-text", folder))
    assert not list(cache.glob("*.partial"))


def test_a_user_without_a_home_folder_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("MMJSD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", classmethod(nobody))
    with pytest.raises(DataError, match=r"this user has no home folder for a cache; set MMJSD_CACHE"):
        load("mnist-svhn-text", folder)


def test_cache_that_cannot_be_written_is_named(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MMJSD_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot prepare mnist-svhn-text in .*/file: .*; set MMJSD_CACHE"):
        load("mnist-svhn-text", folder)


PREPARE = """
import sys
from pathlib import Path
from mmjsd.data import load

print("ready", flush=True)
sys.stdin.readline()
messages = []
print(load("mnist-svhn-text", Path(sys.argv[1]), messages.append).digest, len(messages))
"""


def test_processes_that_prepare_at_once_share_one_result(cache: Path, folder: Path) -> None:
    command = [sys.executable, "-c", PREPARE, str(folder)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = sorted(process.communicate(timeout=60)[0].split() for process in processes)
    digest = load("mnist-svhn-text", folder).digest
    assert results == [[digest, "0"], [digest, "0"], [digest, "3"]]
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def test_zip_without_arrays_is_refused(cache: Path, folder: Path) -> None:
    with zipfile.ZipFile(folder / "mnist.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    with pytest.raises(DataError, match=r"mnist\.npz cannot be read as an npz file"):
        check("mnist-svhn-text", folder)
