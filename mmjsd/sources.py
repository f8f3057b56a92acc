"""Files of the data sets that are not embedded: find, download, verify, read. Imports no torch at first."""

import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from mmjsd.specs import SPLITS, Bytes, DataError, DataSpec, Modality, Report

Sources = Mapping[str, tuple[Path, ...]]
"""Files of each image modality; none where the data set is embedded."""

Parts = dict[str, tuple[Bytes, Bytes]]
"""Images, channel-first, and labels, by split."""

_NPZ_FILES = {"face": "celeba64.npz"}
"""What may stand in for torchvision's files of a modality; of others its name and .npz, which is read alone
where torchvision has none."""

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

_ALIGNED, _CROP = (178, 218), (15, 35, 163, 183)
"""CelebA's pictures, width and height, and their middle 148 x 148 pixels: left, top, right, bottom."""

_AT_ONCE = 500
"""Pictures that are decoded as one task."""


def find(spec: DataSpec, folder: Path) -> Sources:
    """Each image modality's npz file in `folder`, or else the files that torchvision left there."""
    found = {}
    for modality in _images(spec):
        npz, raw = folder / _npz_file(modality.name), _raw_files(folder, modality.name)
        if not npz.exists() and not (raw and _all_exist(raw)):
            advice = "put it there (torchvision's own files will do), or leave --data-dir out to download"
            if not raw:
                advice = "put it into a folder and name that with --data-dir"
            raise DataError(f"{npz} does not exist: {_expectation(spec, modality)}; {advice}")
        found[modality.name] = (npz,) if npz.exists() else raw
    return found


def check(spec: DataSpec, files: Sources) -> None:
    """Raise DataError for npz files that cannot make the data set; of others `read` finds out."""
    for modality in _images(spec):
        path = files[modality.name][0]
        if path.suffix == ".npz":
            _check_npz(spec, modality, path)


def read(spec: DataSpec, files: Sequence[Path], modality: Modality, scratch: Path, report: Report) -> Parts:
    """Images and labels of each split, in the order of the files.

    Args:
        scratch: a file that may be used for images that do not fit into memory together.

    Raises:
        DataError: if the files are damaged or hold something else; the sentence names the file.
    """
    path = files[0]
    if path.suffix == ".npz":
        _check_npz(spec, modality, path)
        return _read_attributes_npz(path) if spec.attributes else _read_classes_npz(path, modality)
    if spec.attributes:
        return _read_celeba(spec, files, modality, scratch, report)
    parts = _by_split(*_read_raw(files, modality))
    for split, (_, labels) in parts.items():
        check_labels(path, split, labels, spec)
    return parts


def check_labels(where: object, split: str, labels: Bytes, spec: DataSpec) -> None:
    """Raise DataError unless a split has examples of every class, or such as differ in their attributes.

    Args:
        where: whose labels they are, for the message.
    """
    if spec.attributes:
        if not len(labels):
            raise DataError(f"{where} puts no image into the {split} split; it needs some in every split")
        if (labels == labels[0]).all():
            found = f"{len(labels)} with the same attributes"
            raise DataError(f"{where} puts {found} into the {split} split; it needs some that differ")
        return
    counts = np.bincount(labels, minlength=spec.num_classes)
    if len(counts) > spec.num_classes:
        raise DataError(f"{where}: labels must lie in 0..{spec.num_classes - 1}, got {labels.max()}")
    if not counts.all():
        lacking = f"no example of class {counts.argmin()}"
        raise DataError(f"{where}: the {split} split holds {lacking}; it needs every class")


def split_examples(train: Bytes, test: Bytes) -> dict[str, Bytes]:
    """Cut the validation split from the end of a training array: one example in ten, at most 5,000.

    It is one contiguous block, as neighbouring house numbers come from the same photograph.
    """
    end = len(train) - min(len(train) // 10, 5_000)
    return {"train": train[:end], "validation": train[end:], "test": test}


def download(spec: DataSpec, folder: Path, report: Report) -> Path:
    """The folder, in which torchvision's own files are, downloaded and verified where they were missing.

    They arrive in a folder beside and are moved when complete, so that what is there is whole.
    """
    missing = [each.name for each in _images(spec) if not _all_exist(_raw_files(folder, each.name))]
    if missing:
        from filelock import FileLock

        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            for modality in missing:
                if not _all_exist(_raw_files(folder, modality)):  # another process may have been faster
                    _download_modality(spec, modality, folder, report)
    return folder


def _images(spec: DataSpec) -> list[Modality]:
    return [modality for modality in spec.modalities if modality.kind == "image"]


def _npz_file(modality: str) -> str:
    return _NPZ_FILES.get(modality, f"{modality}.npz")


def _raw_files(folder: Path, modality: str) -> tuple[Path, ...]:
    return tuple(folder / name for name in _RAW_FILES.get(modality, ()))


def _all_exist(paths: Sequence[Path]) -> bool:
    return all(path.exists() for path in paths)


def _download_modality(spec: DataSpec, modality: str, folder: Path, report: Report) -> None:
    from http.client import HTTPException

    arriving = folder.with_name("downloads.partial")
    shutil.rmtree(arriving / "MNIST", ignore_errors=True)  # torchvision trusts what it extracted only half
    tried, fetch = _fetchers()[modality]
    report(f"downloading {modality} from {tried[0]}")
    try:
        fetch(arriving)
    except (HTTPException, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        npz = " and ".join(_npz_file(each.name) for each in _images(spec))
        raise DataError(
            f"cannot download {modality} from {', '.join(tried)} ({reason}); "
            f"put {npz} into a folder and name it with --data-dir"
        ) from error
    for source, target in zip(_raw_files(arriving, modality), _raw_files(folder, modality), strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)


def _fetchers() -> dict[str, tuple[Sequence[str], Callable[[Path], None]]]:
    """Of each image modality where its files are, and what downloads them into a folder."""
    from torchvision.datasets import MNIST, SVHN, CelebA
    from torchvision.datasets.utils import download_file_from_google_drive

    def fetch_svhn(folder: Path) -> None:
        for half in ("train", "test"):
            SVHN(folder, split=half, download=True)

    def fetch_celeba(folder: Path) -> None:
        wanted = {PurePosixPath(name).name for name in _RAW_FILES["face"]}
        for file_id, md5, name in CelebA.file_list:
            if name in wanted:
                try:
                    download_file_from_google_drive(file_id, folder / CelebA.base_folder, name, md5)
                except Exception as error:  # gdown's own are no kind of OSError
                    raise RuntimeError(str(error)) from error

    return {
        "mnist": (MNIST.mirrors, lambda folder: MNIST(folder, download=True)),
        "svhn": ([SVHN.split_list[half][0] for half in ("train", "test")], fetch_svhn),
        "face": (["Google Drive"], fetch_celeba),
    }


def _layout(spec: DataSpec, modality: Modality) -> dict[str, tuple[int, ...]]:
    """uint8 arrays of the modality's npz file, with the axes that follow the first; images channel-last."""
    channel, height, width = modality.shape
    image = (height, width, channel)
    if spec.attributes:
        return {"images": image, "attributes": (len(spec.attributes),), "split": ()}
    return {"x_train": image, "y_train": (), "x_test": image, "y_test": ()}


def _expectation(spec: DataSpec, modality: Modality) -> str:
    layout = _layout(spec, modality).items()
    arrays = ", ".join(f"{key} [{', '.join(['n', *map(str, axes)])}]" for key, axes in layout)
    return f"expected uint8 arrays {arrays}" + (" and attribute_names" if spec.attributes else "")


def _check_npz(spec: DataSpec, modality: Modality, path: Path) -> None:
    """Raise DataError unless the file is whole and holds what `_layout` says, and labels that can be.

    An image of one channel may lack its channel axis, as in Keras's mnist.npz.
    """
    headers, layout, expectation = _read_headers(path), _layout(spec, modality), _expectation(spec, modality)
    for key in (*layout, *(["attribute_names"] if spec.attributes else [])):
        if key not in headers:
            raise DataError(f"{path} lacks the array {key!r}: {expectation}")
    if spec.attributes and headers["attribute_names"][1].kind != "U":
        kind = headers["attribute_names"][1]
        advice = "expected text; save it as numpy.array(names, dtype=str)"
        raise DataError(f"{path}: attribute_names is {kind}; {advice}")
    for key, axes in layout.items():
        shape, dtype = headers[key]
        accepted = {axes, axes[:2]} if axes[2:] == (1,) else {axes}
        if dtype != np.uint8 or not shape or shape[1:] not in accepted:
            raise DataError(f"{path}: {key} is {dtype} {list(shape)}; {expectation}")
    counts = {key: headers[key][0][0] for key in layout}
    if spec.attributes:
        _check_attributes(path, spec, counts)
        return
    for split in ("train", "test"):
        num_images, num_labels = counts[f"x_{split}"], counts[f"y_{split}"]
        if num_images != num_labels:
            found = f"{num_images} images in x_{split} but {num_labels} labels in y_{split}"
            raise DataError(f"{path} has {found}; expected one label for each image")
    with np.load(path) as arrays:
        parts = split_examples(arrays["y_train"], arrays["y_test"])
    for split, labels in parts.items():
        check_labels(path, split, labels, spec)


def _check_attributes(path: Path, spec: DataSpec, counts: Mapping[str, int]) -> None:
    """Raise DataError unless an npz file has the data set's attributes, one row of each array an image."""
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} rows of {key}" for key, count in counts.items())
        raise DataError(f"{path} has {found}; expected as many of each")
    with np.load(path) as arrays:
        _check_names(path, spec, [str(name) for name in arrays["attribute_names"]])
        for key, largest in (("split", len(SPLITS) - 1), ("attributes", 1)):
            if arrays[key].max(initial=0) > largest:
                raise DataError(f"{path}: {key} must lie in 0..{largest}, got {arrays[key].max()}")
        _check_splits(path, arrays["split"], arrays["attributes"], spec)


def _check_names(path: Path, spec: DataSpec, names: Sequence[str]) -> None:
    found = [name.lower().replace("_", " ") for name in names]
    if found != list(spec.attributes):
        strange = [name for name in found if name not in spec.attributes]
        missing = [name for name in spec.attributes if name not in found]
        what = "them in another order"
        if strange or missing:
            what = f"no {missing[0]!r}" if missing else f"{strange[0]!r}"
        count = len(spec.attributes)
        raise DataError(f"{path}: expected the {count} attributes of {spec.name}, found {what}")


def _check_splits(path: Path, split: npt.NDArray[Any], known: Bytes, spec: DataSpec) -> None:
    for number, name in enumerate(SPLITS):
        check_labels(path, name, known[split == number], spec)


def _read_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of each array of an npz file, all of whose bytes agree with their checksums."""
    headers = {}
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            file.seek(0)
            if file.read(4) != b"PK\x03\x04":  # NumPy would take it for a pickle
                raise ValueError("it does not begin with an array")
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


def _by_split(train: tuple[Bytes, Bytes], test: tuple[Bytes, Bytes]) -> Parts:
    images, labels = (split_examples(*halves) for halves in zip(train, test, strict=True))
    return {split: (images[split], labels[split]) for split in SPLITS}


def _read_classes_npz(path: Path, modality: Modality) -> Parts:
    channel, height, width = modality.shape
    with np.load(path) as arrays:
        train, test = (
            (arrays[x].reshape(-1, height, width, channel).transpose(0, 3, 1, 2), arrays[y])
            for x, y in (("x_train", "y_train"), ("x_test", "y_test"))
        )
    return _by_split(train, test)


def _read_attributes_npz(path: Path) -> Parts:
    with np.load(path) as arrays:
        images, known, split = (arrays[key] for key in ("images", "attributes", "split"))
    return {
        name: (np.ascontiguousarray(images[split == number].transpose(0, 3, 1, 2)), known[split == number])
        for number, name in enumerate(SPLITS)
    }


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


def _read_celeba(
    spec: DataSpec, files: Sequence[Path], modality: Modality, scratch: Path, report: Report
) -> Parts:
    """CelebA's own files; images are decoded once, by all cores, into a memory-mapped file."""
    archive, table, partition = files
    names, known = _read_attribute_table(table, spec)
    rows = _read_table(partition, 1)
    if [name for name, _ in rows] != names:
        raise DataError(f"{partition} and {table} list other images; copy both anew")
    split = np.array([numbers[0] for _, numbers in rows])
    _check_splits(partition, split, known, spec)
    images = np.lib.format.open_memmap(
        scratch, mode="w+", dtype=np.uint8, shape=(len(names), *modality.shape)
    )
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with scratch.open("r+b") as file:  # now, as the process would die where a mapped page finds no space
            os.posix_fallocate(file.fileno(), 0, scratch.stat().st_size)
    _decode(archive, names, images, report)
    return {name: _part(images, known, split == number) for number, name in enumerate(SPLITS)}


def _part(images: Bytes, known: Bytes, chosen: npt.NDArray[np.bool_]) -> tuple[Bytes, Bytes]:
    """Chosen rows; where they are one block, as CelebA's splits are, nothing is copied."""
    places = np.flatnonzero(chosen)
    block = slice(places[0], places[-1] + 1)
    if len(places) == block.stop - block.start:
        return images[block], known[block]
    return images[places], known[places]


def _read_attribute_table(path: Path, spec: DataSpec) -> tuple[list[str], Bytes]:
    """Names of the images, and their attributes, of which a file has -1 for those that are not there."""
    rows = _read_table(path, len(spec.attributes), header=spec)
    known = np.array([numbers for _, numbers in rows])
    if not np.isin(known, (-1, 1)).all():
        raise DataError(f"{path}: attributes must be -1 or 1, got {known[~np.isin(known, (-1, 1))][0]}")
    return [name for name, _ in rows], (known > 0).astype(np.uint8)


def _read_table(path: Path, columns: int, header: DataSpec | None = None) -> list[tuple[str, list[int]]]:
    """Each line's name and integers; of a header, the first line counts rows, the second names columns."""
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line.strip()]
        if header:
            (count,), names, *lines = lines
            _check_names(path, header, names)
            if int(count) != len(lines):
                raise DataError(f"{path} has {len(lines)} rows but says {count}; copy it anew")
        for number, line in enumerate(lines):
            if len(line) != columns + 1:
                raise DataError(
                    f"{path}: row {number + 1} has {len(line) - 1} values, expected {columns}; copy it anew"
                )
        return [(line[0], [int(value) for value in line[1:]]) for line in lines]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as a table of CelebA ({error}); copy it anew") from error


def _decode(archive: Path, names: Sequence[str], images: Bytes, report: Report) -> None:
    """The middle of each picture in the archive, made smaller, into its row of `images`."""
    from PIL import Image

    size = images.shape[:1:-1]
    try:
        with zipfile.ZipFile(archive) as opened:
            members = {PurePosixPath(member).name: member for member in opened.namelist()}
            lacking = next((name for name in names if name not in members), None)
            if lacking is not None:
                raise DataError(f"{archive} lacks the image {lacking}; copy it anew")

            def decode(start: int) -> None:
                for row in range(start, min(start + _AT_ONCE, len(names))):
                    with opened.open(members[names[row]]) as file, Image.open(file) as picture:
                        if picture.size != _ALIGNED:
                            raise DataError(
                                f"{archive}: {names[row]} has {picture.width} x {picture.height} pixels; "
                                f"expected {_ALIGNED[0]} x {_ALIGNED[1]}, aligned and cropped"
                            )
                        middle = picture.convert("RGB").crop(_CROP).resize(size, Image.Resampling.BICUBIC)
                    images[row] = np.asarray(middle).transpose(2, 0, 1)

            tenth = -1
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                starts = range(0, len(names), _AT_ONCE)
                for done, _ in enumerate(pool.map(decode, starts), 1):
                    if 10 * done // len(starts) > tenth:
                        tenth = 10 * done // len(starts)
                        report(f"decoding images: {10 * tenth} %")
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{archive} is damaged ({error}); copy it anew") from error
