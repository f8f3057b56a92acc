"""Data sets, prepared once into memory-mapped arrays. Imports no torch."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from mmjsd import digits, faces, sources, text
from mmjsd.sources import Parts, Sources
from mmjsd.specs import DATASETS, SPLITS, Bytes, DataError, DataSpec, Modality, Report
from mmjsd.text import ALPHABET, decode_text, encode_text

__all__ = [
    "ALPHABET",
    "DATASETS",
    "SPLITS",
    "Data",
    "DataError",
    "DataSpec",
    "Examples",
    "Modality",
    "cache_dir",
    "check",
    "decode_text",
    "encode_text",
    "load",
]


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


_TEXT_SEED = 20_200_616

_CONTENTS = "contents.json"
"""File of a prepared data set: the digest, and every other file's size."""

_PREPARATION = 1
"""Raised with every change of what is written into the cache."""


def cache_dir() -> Path:
    """Folder of downloads and prepared data sets: MMJSD_CACHE, or mmjsd in the user's cache folder.

    Raises:
        DataError: if MMJSD_CACHE is no absolute path, which each process would take for another folder, or
            the user has no home folder.
    """
    if own := os.environ.get("MMJSD_CACHE"):
        folder = Path(own)
        if not folder.is_absolute():
            raise DataError(f"MMJSD_CACHE must be an absolute path, got {own}; set it to {folder.absolute()}")
        return folder
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (shared if shared.is_absolute() else Path.home() / ".cache") / "mmjsd"
    except RuntimeError:
        raise DataError("this user has no home folder for a cache; set MMJSD_CACHE to a folder") from None


def check(name: str, folder: Path | None) -> None:
    """Raise DataError if the files in `folder` cannot make the data set: a quick look before a study starts.

    npz files are parsed once, and never again after `load` has prepared them. torchvision's own files only
    have to be there, as reading them takes torch. What is embedded or still to be downloaded passes.
    """
    spec = _spec(name)
    if folder is None or spec.embedded:
        return
    files = sources.find(spec, folder)
    if _read(spec, _prepared_folder(spec, files)) is None:
        sources.check(spec, files)


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
        files: Sources = {}
        if not spec.embedded:
            downloads = cache_dir() / "downloads"
            files = sources.find(spec, folder or sources.download(spec, downloads, report))
        prepared = _prepared_folder(spec, files)
        return _read(spec, prepared) or _prepare(spec, files, prepared, report)
    except OSError as error:
        raise DataError(
            f"cannot prepare {name} in {cache_dir()}: {error}; "
            "set MMJSD_CACHE to a folder that has room and can be written to"
        ) from error


def _spec(name: str) -> DataSpec:
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; choose one of {', '.join(DATASETS)}")
    return DATASETS[name]


def _prepared_folder(spec: DataSpec, files: Sources) -> Path:
    """Where the data set lies once prepared: a name that changes with its files or with how it is drawn."""
    fingerprint = hashlib.sha256(f"{_PREPARATION} {spec.version}".encode())
    for path in (path for each in files.values() for path in each):
        try:
            with path.open("rb") as file:
                fingerprint.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); copy it anew") from error
    return cache_dir() / f"{spec.name}-{fingerprint.hexdigest()[:16]}"


def _prepare(spec: DataSpec, files: Sources, prepared: Path, report: Report) -> Data:
    from filelock import FileLock

    prepared.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{prepared}.lock"):
        data = _read(spec, prepared)  # another process may have been faster
        if data is None:
            scratch = prepared.with_name(f"{prepared.name}.images")
            try:
                _write(prepared, _make(spec, files, scratch, report))
            finally:
                scratch.unlink(missing_ok=True)
                shutil.rmtree(_partial(prepared), ignore_errors=True)
            data = _read(spec, prepared)
    assert data is not None, f"{prepared} was written but cannot be read"
    return data


def _make(spec: DataSpec, files: Sources, scratch: Path, report: Report) -> dict[str, dict[str, Examples]]:
    """What is drawn or read of each modality; a text is the numeral, or names the attributes, of an image."""
    examples: dict[str, dict[str, Examples]] = {split: {} for split in SPLITS}
    for modality in spec.modalities:
        report(f"preparing {modality.name}")
        if modality.kind == "text" and spec.attributes:
            parts = _describe(spec, modality, examples)
        elif modality.kind == "text":
            parts = dict.fromkeys(SPLITS, text.place_numerals(modality.shape[0]))
        elif spec.embedded and spec.attributes:
            parts = {split: faces.draw(split) for split in SPLITS}
        elif spec.embedded:
            parts = {split: digits.draw(modality.name, split) for split in SPLITS}
        else:
            parts = sources.read(spec, files[modality.name], modality, scratch, report)
        for split, made in examples.items():
            made[modality.name] = _examples(spec, modality, split, *parts[split])
            first = next(iter(made))
            if spec.attributes and not np.array_equal(made[first].labels, made[modality.name].labels):
                whose = f"{modality.name} and {first} in the {split} split"
                raise DataError(
                    f"{spec.name}: attributes of {whose} differ; a row must be the same sample in all"
                )
    return examples


def _describe(spec: DataSpec, modality: Modality, examples: Mapping[str, Mapping[str, Examples]]) -> Parts:
    """Row by row the texts that name the attributes which the first modality has."""
    parts = {}
    for number, (split, made) in enumerate(examples.items()):
        attributes = next(iter(made.values())).labels
        rng = np.random.default_rng((_TEXT_SEED, number))
        parts[split] = text.describe(attributes, spec.attributes, modality.shape[0], rng), attributes
    return parts


def _examples(spec: DataSpec, modality: Modality, split: str, values: Bytes, labels: Bytes) -> Examples:
    """A modality's arrays of one split, sorted by class if they have classes.

    Raises:
        DataError: unless they are what Examples and the data set say.
    """
    where = f"{modality.name} of {spec.name}"
    of_label, top = ((len(spec.attributes),), 2) if spec.attributes else ((), spec.num_classes)
    limit = len(ALPHABET) if modality.kind == "text" else 256
    for what, array, axes, end in (
        ("values", values, modality.shape, limit),
        ("labels", labels, of_label, top),
    ):
        shape, found = (len(values), *axes), np.asarray(array)
        if found.dtype != np.uint8 or found.shape != shape:
            got = f"{found.dtype} {list(found.shape)} in the {split} split"
            raise DataError(f"{where}: {what} must be uint8 {list(shape)}, got {got}")
        if end < 256 and found.max(initial=0) >= end:
            raise DataError(
                f"{where}: {what} must lie in 0..{end - 1}, got {found.max()} in the {split} split"
            )
    sources.check_labels(where, split, labels, spec)
    if spec.attributes:
        return Examples(values, labels)
    order = np.argsort(labels, kind="stable")
    return Examples(np.ascontiguousarray(values[order]), labels[order])


def _array_path(folder: Path, split: str, modality: str, part: str) -> Path:
    return folder / f"{split}.{modality}.{part}.npy"


def _partial(folder: Path) -> Path:
    """Where what will lie in the folder is written."""
    return folder.with_name(f"{folder.name}.partial")


def _write(folder: Path, splits: Mapping[str, Mapping[str, Examples]]) -> None:
    """Write all arrays and their digest into a folder that appears only when it is complete."""
    partial = _partial(folder)
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
            num_outputs = labels.shape[1] if labels.ndim == 2 else int(labels[-1]) + 1
            if values.shape != (len(labels), *modality.shape) or num_outputs != spec.num_outputs:
                return None
            splits[split][modality.name] = Examples(values, labels)
        return Data(spec, splits, contents["digest"])
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return None
