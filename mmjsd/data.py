"""Data sets: download, verify, prepare once into memory-mapped arrays. Imports no torch."""

import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mmjsd import digits, faces

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/\\|_@#$%^&*~`+-=<>()[]{} \n"
"""The 71 characters of the reference; "-" stands twice in it, and is encoded as the first."""

SPLITS = ("train", "validation", "test")

Bytes = npt.NDArray[np.uint8]
Report = Callable[[str], None]
Sources = Mapping[str, tuple[Path, ...]]
"""Files of each image modality; none where the data set is embedded."""


class DataError(ValueError):
    """Data that cannot be used; the message names the file, what was expected and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Modality:
    """What one modality's examples look like."""

    name: str
    kind: Literal["image", "text"]
    shape: tuple[int, ...]
    """[channel, height, width] of an image, [length] of a text."""

    style_weight: float = 1.0
    """Default weight of the subspace's divergence (the reference settings')."""

    @property
    def size(self) -> int:
        """Number of pixels and channels, or of characters: the terms that a log-likelihood sums."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSpec:
    """What a data set holds, before any of it is read."""

    name: str
    modalities: tuple[Modality, ...]
    num_classes: int = 0
    """Of whose one each example is; modalities are paired by class."""

    attributes: tuple[str, ...] = ()
    """Names of what each example has or has not, in place of classes; a row of one modality belongs to the
    same row of the others."""

    embedded: bool = False
    """Drawn by the program itself, without files or downloads."""

    @property
    def num_outputs(self) -> int:
        """Of a classifier: one for each class or attribute."""
        return self.num_classes or len(self.attributes)


_DIGIT_MODALITIES = (
    Modality(name="mnist", kind="image", shape=(1, 28, 28)),
    Modality(name="svhn", kind="image", shape=(3, 32, 32)),
    Modality(name="text", kind="text", shape=(8,), style_weight=5.0),
)
_PATTERNED_MODALITIES = tuple(
    Modality(name=name, kind="image", shape=(3, 28, 28)) for name in digits.PATTERNS
)
_FACE_MODALITIES = (
    Modality(name="face", kind="image", shape=(3, 64, 64)),
    Modality(name="words", kind="text", shape=(256,), style_weight=5.0),
)

_CELEBA_ATTRIBUTES = (
    "5 o clock shadow", "arched eyebrows", "attractive", "bags under eyes", "bald", "bangs", "big lips",
    "big nose", "black hair", "blond hair", "blurry", "brown hair", "bushy eyebrows", "chubby", "double chin",
    "eyeglasses", "goatee", "gray hair", "heavy makeup", "high cheekbones", "male", "mouth slightly open",
    "mustache", "narrow eyes", "no beard", "oval face", "pale skin", "pointy nose", "receding hairline",
    "rosy cheeks", "sideburns", "smiling", "straight hair", "wavy hair", "wearing earrings", "wearing hat",
    "wearing lipstick", "wearing necklace", "wearing necktie", "young",
)  # fmt: skip

DATASETS: Mapping[str, DataSpec] = {
    spec.name: spec
    for spec in (
        DataSpec(name="digits", modalities=_DIGIT_MODALITIES, num_classes=10, embedded=True),
        DataSpec(name="mnist-svhn-text", modalities=_DIGIT_MODALITIES, num_classes=10),
        DataSpec(name="faces", modalities=_FACE_MODALITIES, attributes=faces.ATTRIBUTES, embedded=True),
        DataSpec(name="celeba", modalities=_FACE_MODALITIES, attributes=_CELEBA_ATTRIBUTES),
        *(
            DataSpec(
                name=f"polydigits-{count}",
                modalities=_PATTERNED_MODALITIES[:count],
                num_classes=10,
                embedded=True,
            )
            for count in range(2, len(_PATTERNED_MODALITIES) + 1)
        ),
    )
}


@dataclass(frozen=True)
class Examples:
    """One modality of one split; if it has classes, sorted by them, so that each class is one block."""

    values: Bytes
    """`[example, channel, height, width]` in 0..255, or `[example, length]` indices into ALPHABET."""

    labels: Bytes
    """Classes `[example]`, ascending from 0, or attributes `[example, attribute]`, 1 where there is one."""


@dataclass(frozen=True)
class Data:
    """A prepared data set. Where it has classes, modalities are not paired: whoever trains pairs by class."""

    spec: DataSpec
    splits: Mapping[str, Mapping[str, Examples]]
    """Split, then modality in the spec's order."""

    digest: str
    """SHA-256 of all arrays, hexadecimal: equal digests, equal data."""


_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_NPZ_FILES = {"mnist": "mnist.npz", "svhn": "svhn.npz", "face": "celeba64.npz"}
"""What stands in for torchvision's files of each modality."""

_RAW_FILES = {
    "mnist": tuple(
        f"MNIST/raw/{half}-{part}-ubyte"
        for half in ("train", "t10k")
        for part in ("images-idx3", "labels-idx1")
    ),
    "svhn": ("train_32x32.mat", "test_32x32.mat"),
    "face": ("celeba/img_align_celeba.zip", "celeba/list_attr_celeba.txt", "celeba/list_eval_partition.txt"),
}
"""The files that torchvision makes of each modality, below the folder that it is given."""

_TEXT_SEED = 20_200_616

_CONTENTS = "contents.json"
"""File of a prepared data set: the digest, and every other file's size."""

_PREPARATION = 1
"""Raised with every change of what is written into the cache."""


def cache_dir() -> Path:
    """Folder of downloads and prepared data sets: MMJSD_CACHE, or mmjsd in the user's cache folder."""
    if own := os.environ.get("MMJSD_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmjsd"


def check(name: str, folder: Path | None) -> None:
    """Raise DataError if the files in `folder` cannot make the data set: a quick look before a study starts.

    npz files are read once, and never again after `load` has prepared them. torchvision's own files only have
    to be there, as reading them takes torch. What is embedded or still to be downloaded passes.
    """
    spec = _spec(name)
    if folder is None or spec.embedded:
        return
    sources = _find_sources(spec, folder)
    if _read(spec, _prepared_folder(spec, sources)) is None:
        for modality in _images(spec):
            path = sources[modality.name][0]
            if path.suffix == ".npz" and spec.attributes:
                _check_described_npz(path, modality, spec.attributes)
            elif path.suffix == ".npz":
                _check_npz(path, modality, spec.num_classes)


def load(name: str, folder: Path | None = None, progress: Report | None = None) -> Data:
    """A data set as memory-mapped arrays, prepared in the cache folder on first use.

    Several processes may call this at once: one prepares, the others wait.

    Args:
        name: a key of DATASETS.
        folder: holds the data set's files; none: they are downloaded into the cache folder.
        progress: told, in a few words each, what takes long.
    """
    spec, report = _spec(name), progress or (lambda _: None)
    try:
        sources = {} if spec.embedded else _find_sources(spec, folder or _download(spec, report))
        prepared = _prepared_folder(spec, sources)
        return _read(spec, prepared) or _prepare(spec, sources, prepared, report)
    except OSError as error:
        raise DataError(
            f"cannot prepare {name} in {cache_dir()}: {error}; "
            "set MMJSD_CACHE to a folder that has room and can be written to"
        ) from error


def encode_text(text: str) -> Bytes:
    """Indices into ALPHABET, `[length]`."""
    for character in text:
        if character not in ALPHABET:
            raise DataError(f"text {text!r} holds {character!r}, which is not in ALPHABET")
    return np.array([ALPHABET.index(character) for character in text], np.uint8)


def decode_text(indices: npt.ArrayLike) -> list[str]:
    """The strings of indices `[batch, length]`: nested lists, an array, or a tensor on any device."""
    rows = np.asarray(indices.tolist() if hasattr(indices, "tolist") else indices, np.intp)
    if not rows.size:
        return []
    if rows.ndim != 2:
        raise DataError(f"text to decode must have axes [batch, length], got shape {list(rows.shape)}")
    if ((rows < 0) | (rows >= len(ALPHABET))).any():
        raise DataError(f"indices of text lie in 0..{len(ALPHABET) - 1}, got {rows.min()}..{rows.max()}")
    return ["".join(ALPHABET[index] for index in row) for row in rows]


def split_examples(train: Bytes, test: Bytes) -> dict[str, Bytes]:
    """Cut the validation split from the end of a training array: one example in ten, at most 5,000.

    It is one contiguous block, as neighbouring house numbers come from the same photograph.
    """
    end = len(train) - min(len(train) // 10, 5_000)
    return {"train": train[:end], "validation": train[end:], "test": test}


def _spec(name: str) -> DataSpec:
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; choose one of {', '.join(DATASETS)}")
    return DATASETS[name]


def _images(spec: DataSpec) -> list[Modality]:
    return [modality for modality in spec.modalities if modality.kind == "image"]


def _find_sources(spec: DataSpec, folder: Path) -> Sources:
    """Each image modality's npz file in `folder`, or else the files that torchvision left there."""
    sources = {}
    for modality in _images(spec):
        npz, raw = folder / _NPZ_FILES[modality.name], _raw_files(folder, modality.name)
        if not npz.exists() and not _all_exist(raw):
            expectation = (
                _described_expectation(modality, spec.attributes)
                if spec.attributes
                else _expectation(modality)
            )
            raise DataError(
                f"{npz} does not exist: {expectation}; "
                "put it there (torchvision's own files will do), or leave --data-dir out to download"
            )
        sources[modality.name] = (npz,) if npz.exists() else raw
    return sources


def _raw_files(folder: Path, modality: str) -> tuple[Path, ...]:
    return tuple(folder / name for name in _RAW_FILES[modality])


def _all_exist(paths: Sequence[Path]) -> bool:
    return all(path.exists() for path in paths)


def _download(spec: DataSpec, report: Report) -> Path:
    """The folder of torchvision's own files, which are downloaded and verified where they are missing.

    They arrive in a folder beside and are moved when complete, so that what is there is whole.
    """
    folder = cache_dir() / "downloads"
    missing = [each.name for each in _images(spec) if not _all_exist(_raw_files(folder, each.name))]
    if missing:
        from filelock import FileLock

        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            for modality in missing:
                if not _all_exist(_raw_files(folder, modality)):  # another process may have been faster
                    _download_modality(modality, folder, report)
    return folder


def _download_modality(modality: str, folder: Path, report: Report) -> None:
    from http.client import HTTPException

    from torchvision.datasets import MNIST, SVHN

    arriving = folder.with_name("downloads.partial")
    shutil.rmtree(arriving / "MNIST", ignore_errors=True)  # torchvision trusts what it extracted only half
    halves = ("train", "test")
    tried = MNIST.mirrors if modality == "mnist" else [SVHN.split_list[half][0] for half in halves]
    report(f"downloading {modality} from {tried[0]}")
    try:
        if modality == "mnist":
            MNIST(arriving, download=True)
        else:
            for half in halves:
                SVHN(arriving, split=half, download=True)
    except (HTTPException, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"cannot download {modality} from {', '.join(tried)} ({reason}); "
            "put mnist.npz and svhn.npz into a folder and name it with --data-dir"
        ) from error
    for source, target in zip(_raw_files(arriving, modality), _raw_files(folder, modality), strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)


def _layout(modality: Modality) -> dict[str, tuple[int, ...]]:
    """Arrays of the modality's npz file, with the axes that follow the example axis; images channel-last."""
    channel, height, width = modality.shape
    image = (height, width, channel)
    return {"x_train": image, "y_train": (), "x_test": image, "y_test": ()}


def _expectation(modality: Modality) -> str:
    arrays = (f"{key} [{', '.join(['n', *map(str, axes)])}]" for key, axes in _layout(modality).items())
    return f"expected uint8 arrays {', '.join(arrays)}"


def _check_npz(path: Path, modality: Modality, num_classes: int) -> None:
    """Raise DataError unless the file is whole and holds what `_layout` says, every class in every split.

    An image of one channel may lack its channel axis, as in Keras's mnist.npz.
    """
    headers = _read_headers(path)
    for key, axes in _layout(modality).items():
        if key not in headers:
            raise DataError(f"{path} lacks the array {key!r}: {_expectation(modality)}")
        shape, dtype = headers[key]
        accepted = {axes, axes[:2]} if axes[2:] == (1,) else {axes}
        if dtype != np.uint8 or not shape or shape[1:] not in accepted:
            raise DataError(f"{path}: {key} is {dtype} {list(shape)}; {_expectation(modality)}")
    for split in ("train", "test"):
        (num_images, *_), (num_labels, *_) = headers[f"x_{split}"][0], headers[f"y_{split}"][0]
        if num_images != num_labels:
            counts = f"{num_images} images in x_{split} but {num_labels} labels in y_{split}"
            raise DataError(f"{path} has {counts}; expected one label for each image")
    with np.load(path) as arrays:
        _check_labels(path, split_examples(arrays["y_train"], arrays["y_test"]), num_classes)


def _read_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of each array of an npz file, all of whose bytes agree with their checksums."""
    headers = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    np.lib.format.read_magic(member)
                    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
                headers[name.removesuffix(".npy")] = (shape, dtype)
            damaged = archive.testzip()
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an npz file ({error}); copy it anew") from error
    if damaged is not None:
        raise DataError(f"{path} is damaged: {damaged} fails its checksum; copy it anew")
    return headers


def _check_labels(path: Path, labels: Mapping[str, Bytes], num_classes: int) -> None:
    for split, part in labels.items():
        counts = np.bincount(part, minlength=num_classes)
        if len(counts) > num_classes:
            raise DataError(f"{path}: labels must lie in 0..{num_classes - 1}, got {part.max()}")
        if not counts.all():
            raise DataError(
                f"{path}: the {split} split holds no example of class {counts.argmin()}; it needs every class"
            )


def _prepared_folder(spec: DataSpec, sources: Sources) -> Path:
    """Where the data set lies once prepared: a name that changes with its files or with how it is drawn."""
    drawing = (faces.VERSION if spec.attributes else digits.VERSION) if spec.embedded else 0
    fingerprint = hashlib.sha256(f"{_PREPARATION} {drawing}".encode())
    for path in (path for files in sources.values() for path in files):
        try:
            with path.open("rb") as file:
                fingerprint.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); copy it anew") from error
    return cache_dir() / f"{spec.name}-{fingerprint.hexdigest()[:16]}"


def _prepare(spec: DataSpec, sources: Sources, prepared: Path, report: Report) -> Data:
    from filelock import FileLock

    prepared.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{prepared}.lock"):
        data = _read(spec, prepared)  # another process may have been faster
        if data is None:
            _write(prepared, _make(spec, sources, report))
            data = _read(spec, prepared)
    assert data is not None, f"{prepared} was written but cannot be read"
    return data


def _make(spec: DataSpec, sources: Sources, report: Report) -> dict[str, dict[str, Examples]]:
    if spec.attributes:
        return _make_described(spec, sources, report)
    examples: dict[str, dict[str, Examples]] = {split: {} for split in SPLITS}
    for modality in spec.modalities:
        report(f"preparing {modality.name}")
        if modality.kind == "text":
            parts = dict.fromkeys(SPLITS, _place_words(modality.shape[0]))
        elif spec.embedded:
            parts = {split: digits.draw(modality.name, split) for split in SPLITS}
        else:
            parts = _read_files(sources[modality.name], modality, spec.num_classes)
        for split, (values, labels) in parts.items():
            order = np.argsort(labels, kind="stable")
            examples[split][modality.name] = Examples(np.ascontiguousarray(values[order]), labels[order])
    return examples


def _make_described(spec: DataSpec, sources: Sources, report: Report) -> dict[str, dict[str, Examples]]:
    """Images with attributes, and the texts that name these, row by row."""
    (image,) = _images(spec)
    (text,) = [modality for modality in spec.modalities if modality.kind == "text"]
    report(f"preparing {image.name}")
    if spec.embedded:
        parts = {split: faces.draw(split) for split in SPLITS}
    else:
        parts = _read_described_npz(sources[image.name][0], image, spec.attributes)
    examples: dict[str, dict[str, Examples]] = {}
    for number, (split, (images, attributes)) in enumerate(parts.items()):
        rng = np.random.default_rng((_TEXT_SEED, number))
        texts = [describe(row, spec.attributes, text.shape[0]) for row in attributes]
        placed = _place_texts(texts, text.shape[0], rng)
        examples[split] = {image.name: Examples(images, attributes), text.name: Examples(placed, attributes)}
    return examples


def describe(attributes: npt.ArrayLike, names: Sequence[str], length: int) -> str:
    """The names of what is not 0 in `attributes`, in order, joined by ", ", without the last if too long."""
    found = [name for name, here in zip(names, np.asarray(attributes), strict=True) if here]
    while len(", ".join(found)) > length:
        found.pop()
    return ", ".join(found)


def _place_texts(texts: Sequence[str], length: int, rng: np.random.Generator) -> Bytes:
    """Each text somewhere among `length` characters, stars before and behind it: `[text, length]`."""
    sizes = np.array([len(text) for text in texts])
    starts = rng.integers(length - sizes + 1)
    padded = "".join(
        ("*" * start + text).ljust(length, "*") for start, text in zip(starts, texts, strict=True)
    )
    codes = np.full(128, len(ALPHABET), np.uint8)
    for index, character in reversed([*enumerate(ALPHABET)]):
        codes[ord(character)] = index
    return codes[np.frombuffer(padded.encode("ascii"), np.uint8)].reshape(-1, length)


def _described_layout(modality: Modality, attributes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    channel, height, width = modality.shape
    return {"images": (height, width, channel), "attributes": (len(attributes),), "split": ()}


def _described_expectation(modality: Modality, attributes: Sequence[str]) -> str:
    layout = _described_layout(modality, attributes).items()
    arrays = (f"{key} [{', '.join(['n', *map(str, axes)])}]" for key, axes in layout)
    return f"expected uint8 arrays {', '.join(arrays)} and the names of attributes, attribute_names"


def _check_described_npz(path: Path, modality: Modality, attributes: Sequence[str]) -> None:
    """Raise DataError unless the file is whole and holds what `_described_layout` says, with every split."""
    headers, expectation = _read_headers(path), _described_expectation(modality, attributes)
    layout = _described_layout(modality, attributes)
    for key in (*layout, "attribute_names"):
        if key not in headers:
            raise DataError(f"{path} lacks the array {key!r}: {expectation}")
    for key, axes in layout.items():
        shape, dtype = headers[key]
        if dtype != np.uint8 or not shape or shape[1:] != axes:
            raise DataError(f"{path}: {key} is {dtype} {list(shape)}; {expectation}")
    counts = {key: headers[key][0][0] for key in layout}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} rows of {key}" for key, count in counts.items())
        raise DataError(f"{path} has {found}; expected one row of each for each image")
    with np.load(path) as arrays:
        names = [str(name).lower().replace("_", " ") for name in arrays["attribute_names"]]
        if names != list(attributes):
            wrong = next((a for a in names if a not in attributes), "another order")
            raise DataError(f"{path}: attribute_names has {wrong!r}; expected {', '.join(attributes)}")
        for key, largest in (("split", len(SPLITS) - 1), ("attributes", 1)):
            if arrays[key].max(initial=0) > largest:
                raise DataError(f"{path}: {key} must lie in 0..{largest}, got {arrays[key].max()}")
        missing = [name for number, name in enumerate(SPLITS) if not (arrays["split"] == number).any()]
    if missing:
        raise DataError(f"{path} holds no image of the {missing[0]} split; it needs some of every split")


def _read_described_npz(
    path: Path, modality: Modality, attributes: Sequence[str]
) -> dict[str, tuple[Bytes, Bytes]]:
    """Images, channel-first, and attributes of each split."""
    _check_described_npz(path, modality, attributes)
    with np.load(path) as arrays:
        images, known, split = (arrays[key] for key in ("images", "attributes", "split"))
    chosen = {name: split == number for number, name in enumerate(SPLITS)}
    return {
        name: (np.ascontiguousarray(images[rows].transpose(0, 3, 1, 2)), known[rows])
        for name, rows in chosen.items()
    }


def _place_words(length: int) -> tuple[Bytes, Bytes]:
    """Every placement of every class's word among `length` characters, and its class."""
    placed = [
        (encode_text((" " * start + word).ljust(length)), label)
        for label, word in enumerate(_WORDS)
        for start in range(length - len(word) + 1)
    ]
    return np.stack([text for text, _ in placed]), np.array([label for _, label in placed], np.uint8)


def _read_files(
    files: Sequence[Path], modality: Modality, num_classes: int
) -> dict[str, tuple[Bytes, Bytes]]:
    """Images, channel-first, and labels of each split, in the order of the files."""
    path = files[0]
    if path.suffix == ".npz":
        _check_npz(path, modality, num_classes)
        train, test = _read_npz(path, modality)
    else:
        train, test = _read_raw(files, modality)
    images, labels = (split_examples(*parts) for parts in zip(train, test, strict=True))
    _check_labels(path, labels, num_classes)
    return {split: (images[split], labels[split]) for split in SPLITS}


def _read_npz(path: Path, modality: Modality) -> list[tuple[Bytes, Bytes]]:
    channel, height, width = modality.shape
    with np.load(path) as arrays:
        return [
            (arrays[x].reshape(-1, height, width, channel).transpose(0, 3, 1, 2), arrays[y])
            for x, y in (("x_train", "y_train"), ("x_test", "y_test"))
        ]


def _read_raw(files: Sequence[Path], modality: Modality) -> list[tuple[Bytes, Bytes]]:
    """Training and test images and labels by torchvision, which verifies SVHN and turns label 10 into 0."""
    from torchvision.datasets import MNIST, SVHN

    names = f"{files[0].parent}: {', '.join(path.name for path in files)}"
    try:
        if modality.name == "mnist":
            sets = [MNIST(files[0].parents[2], train=train) for train in (True, False)]
            parts = [(part.data[:, None].numpy(), part.targets.numpy().astype(np.uint8)) for part in sets]
        else:
            sets = [SVHN(files[0].parent, split=half) for half in ("train", "test")]
            parts = [(part.data, part.labels.astype(np.uint8)) for part in sets]
    except (AssertionError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"{names} are damaged ({error}); remove them or copy them anew") from error
    for images, labels in parts:
        if images.shape != (len(labels), *modality.shape):
            found = f"images {list(images.shape)} and {len(labels)} labels"
            raise DataError(f"{names} hold {found}; expected one label for each image {list(modality.shape)}")
    return parts


def _array_path(folder: Path, split: str, modality: str, part: str) -> Path:
    return folder / f"{split}.{modality}.{part}.npy"


def _write(folder: Path, splits: Mapping[str, Mapping[str, Examples]]) -> None:
    """Write all arrays and their digest into a folder that appears only when it is complete."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    digest, num_bytes = hashlib.sha256(), {}
    for split, modalities in splits.items():
        for modality, examples in modalities.items():
            for part, array in (("values", examples.values), ("labels", examples.labels)):
                path = _array_path(partial, split, modality, part)
                np.save(path, array)
                num_bytes[path.name] = path.stat().st_size
                digest.update(f"{path.name} {array.shape}".encode())
                digest.update(array.data)
    contents = {"digest": digest.hexdigest(), "num_bytes": num_bytes}
    (partial / _CONTENTS).write_text(json.dumps(contents, indent=2))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _read(spec: DataSpec, folder: Path) -> Data | None:
    """What `_write` left in the folder; none if it is not there or was damaged since."""
    try:
        contents = json.loads((folder / _CONTENTS).read_text())
        if any((folder / name).stat().st_size != size for name, size in contents["num_bytes"].items()):
            return None
        splits: dict[str, dict[str, Examples]] = {split: {} for split in SPLITS}
        for split, modality in product(SPLITS, spec.modalities):
            paths = [_array_path(folder, split, modality.name, part) for part in ("values", "labels")]
            values, labels = (np.load(path, mmap_mode="c") for path in paths)
            if values.shape != (len(labels), *modality.shape):
                return None
            splits[split][modality.name] = Examples(values, labels)
        return Data(spec, splits, contents["digest"])
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return None
