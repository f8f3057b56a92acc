"""Where data come from: a server on this machine stands for the real ones that torchvision knows."""

import gzip
import hashlib
import io
import struct
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from torchvision.datasets import MNIST, SVHN

from mmjsd.data import DataError, check, load
from tests.test_data import FILES, Arrays, assert_well_formed, made_up, relabel, truncate
from tests.test_data import cache as cache  # a fixture
from tests.test_data import folder as folder  # a fixture


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST's files."""
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def mat(arrays: Arrays, split: str) -> bytes:
    """The format of SVHN's files, in which the digit 0 has label 10."""
    file = io.BytesIO()
    images, labels = arrays[f"x_{split}"].transpose(1, 2, 3, 0), relabel(arrays[f"y_{split}"], 0, 10)
    savemat(file, {"X": images, "y": labels[:, None]})
    return file.getvalue()


@pytest.fixture
def served(tmp_path: Path) -> dict[str, bytes]:
    """What the servers of MNIST and SVHN hold, by file name."""
    mnist, svhn = made_up(FILES["mnist"]), made_up(FILES["svhn"])
    files = {f"{split}_32x32.mat": mat(svhn, split) for split in ("train", "test")}
    for part, split in (("train", "train"), ("t10k", "test")):
        files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(idx(mnist[f"x_{split}"][..., 0]))
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(idx(mnist[f"y_{split}"]))
    return files


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, served: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a server on this machine shows; torchvision takes it for the real one."""
    folder = tmp_path / "served"
    folder.mkdir()
    for name, content in served.items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/"
        md5 = {name: hashlib.md5(content).hexdigest() for name, content in served.items()}
        monkeypatch.setattr(MNIST, "mirrors", [url])
        monkeypatch.setattr(MNIST, "resources", [(name, md5[name]) for name, _ in MNIST.resources])
        for split in ("train", "test"):
            name = f"{split}_32x32.mat"
            monkeypatch.setitem(SVHN.split_list, split, [url + name, name, md5[name]])
        yield folder
        running.shutdown()


def test_download_gives_what_npz_files_give(cache: Path, folder: Path, server: Path) -> None:
    messages: list[str] = []
    downloaded = load("mnist-svhn-text", progress=messages.append)
    assert_well_formed(downloaded)
    assert downloaded.digest == load("mnist-svhn-text", folder).digest
    assert [message.split(" from ")[0] for message in messages[:2]] == [
        "downloading mnist",
        "downloading svhn",
    ]
    for path in server.iterdir():
        path.unlink()
    assert load("mnist-svhn-text").digest == downloaded.digest


def test_downloaded_files_may_lie_in_the_folder(
    cache: Path, tmp_path: Path, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloaded = load("mnist-svhn-text")
    own = tmp_path / "own"
    (cache / "downloads").rename(own)
    check("mnist-svhn-text", own)
    monkeypatch.setenv("MMJSD_CACHE", str(tmp_path / "other"))
    assert load("mnist-svhn-text", own).digest == downloaded.digest
    truncate(own / "MNIST/raw/t10k-images-idx3-ubyte")
    with pytest.raises(
        DataError, match=r"/MNIST/raw: .*t10k-images-idx3-ubyte.* are damaged \(.*\); remove them"
    ):
        load("mnist-svhn-text", own)


@pytest.mark.parametrize("name", ["t10k-labels-idx1-ubyte.gz", "test_32x32.mat"])
@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_failing_download_says_what_was_tried_and_what_to_do(
    name: str, damage: Callable[[Path], None], cache: Path, server: Path
) -> None:
    whole = (server / name).read_bytes()
    damage(server / name)
    modality = "svhn" if name.endswith(".mat") else "mnist"
    message = rf"cannot download {modality} from http://127\.0\.0\.1.*\(.*\); put mnist\.npz and svhn\.npz"
    with pytest.raises(DataError, match=message) as refusal:
        load("mnist-svhn-text")
    assert "\n" not in str(refusal.value)
    (server / name).write_bytes(whole)
    assert_well_formed(load("mnist-svhn-text"))
