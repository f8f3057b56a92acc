"""A run in object storage: each node works in a folder of its own, and the bucket keeps what matters.

What is in the bucket counts. A trial's process brings there, after each epoch, what that epoch has left, and
takes from there what an earlier process had brought; the study's process brings what it decides before it
acts upon it. So a node may vanish at any time, with its folder.
"""

import hashlib
import json
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from mmjsd.data import cache_dir
from study.config import ClusterError
from study.files import Bucket, Entry, is_url, whole_file

_RUN = ("manifest.json", "study.json", "optuna.journal", "earlier.json")
"""Files of the run itself; that which makes it a study comes after what it needs."""

_REPORTED = ("study.json", "manifest.json", "results/", "samples/")
"""What a report reads."""

UNSHARED = "does not see the study's folder"
"""In the sentence on a node that has no part in the folder of a study."""

_LAST = "epoch.json"
"""The file of a checkpoint that is brought last, and without which it is none."""

_ATTEMPTS = 5
"""So often a folder is listed of which others remove files before they are read."""


def local_folder(url: str) -> Path:
    """The folder on this machine in which a run in object storage is worked on."""
    bucket = Bucket(url)
    digest = hashlib.sha256(bucket.url.encode()).hexdigest()[:12]
    return cache_dir() / "runs" / digest / bucket.name


def local_run(run: str | Path, wanted: Iterable[str] = _REPORTED) -> Path:
    """The folder of a run that is to be read; of one in object storage a copy, in these parts up to date.

    Raises:
        FilesError: if the storage cannot be read.
    """
    if not is_url(run):
        return Path(run)
    url = str(run)
    folder = local_folder(url).parent / "report" / Bucket(url).name
    Mirror(folder, url).fetch(wanted)
    return folder


class Mirror:
    """A run's folder on this node, and the bucket that keeps it; without a URL the folder itself counts."""

    def __init__(self, folder: Path, url: str | None) -> None:
        self.folder = folder
        self._bucket = Bucket(url) if url else None
        self._brought: dict[str, tuple[int, int]] = {}
        """Size and time of what this process has brought, by name."""

        self._kept: set[str] = set()
        """Rows and folders of checkpoints that this process knows the bucket to have."""

        self._begun: str | None = None
        """When the study began whose folder counts, as its process knows."""

    # The study's process ...

    def open(self, *, is_new: bool) -> None:
        """Take over the run as the bucket has it; a new one starts from an empty folder.

        Raises:
            FilesError: if the storage cannot be read and written.
        """
        if self._bucket is None:
            return
        self._bucket.check()
        for path in self.folder.iterdir():
            if path.name == "checkpoints" or (is_new and path.is_dir()):
                shutil.rmtree(path)
            elif is_new and path.name != ".lock":
                path.unlink()
        self.fetch((*_RUN, "results/", "logged/"))

    def drop_run(self) -> None:
        """Leave no study where one was refused before anything was trained."""
        if any(path.name not in (*_RUN, ".lock") for path in self.folder.iterdir()):
            return
        for name in _RUN:
            (self.folder / name).unlink(missing_ok=True)
        if self._bucket is not None:
            self._bucket.remove(_RUN)

    def know_run(self) -> None:
        """Find out what the bucket has of each trial: which of it stays is decided in this folder."""
        if self._bucket is None:
            self._begun = self._read_begun()
            return
        self.push(*_RUN)
        self.fetch(("logged/",))  # which notes what need not be brought again
        self._kept |= {entry.name for entry in self._bucket.entries("results/trials")}
        for entry in self._bucket.entries("checkpoints"):
            self._know_checkpoint(entry.name)

    def push(self, *names: str) -> None:
        """Bring files of the run, as far as they exist and have changed."""
        if self._bucket is None:
            return
        for name in names:
            path = self.folder / name
            if path.is_file() and not self._is_brought(name):
                signature = _signature(path)
                self._bucket.write(name, path.read_bytes())
                self._brought[name] = signature

    def push_run(self) -> None:
        """Bring what the study's process writes."""
        if self._bucket is not None:
            self.push(*_RUN, *self._names("logged"))
            self._prune()

    def ended(self, trial_id: str) -> None:
        """Take the row of a trial that has ended elsewhere, if there is one."""
        if self._bucket is None:
            return
        row = _row(trial_id)
        if self._take(row):
            self._kept.add(row)
        self.fetch_notes(trial_id)

    def read_measurements(self, trial_id: str) -> list[dict[str, Any]]:
        """What a trial that is trained elsewhere has measured so far."""
        from study import store

        content = self._bucket.read(_measurements(trial_id)) if self._bucket else None
        if content is None:
            return store.read_measurements(self.folder, trial_id)
        seen = self.folder / ".seen"  # not in the file itself, which the trial's process may be writing here
        path = seen / _measurements(trial_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        try:
            return store.read_measurements(seen, trial_id)
        finally:
            path.unlink()

    def push_row(self, trial_id: str) -> None:
        """Bring the row of a trial that could not write one itself, or that counts an earlier try."""
        # In this order: the first tells an earlier try's time from what the row counts.
        self.push("earlier.json", _row(trial_id))
        self._kept.add(_row(trial_id))

    def compact(self) -> None:
        """Put the measurements of all trials together, as `store.compact` does."""
        from study import store  # here, so that a study is refused without pyarrow

        if self._bucket is None:
            store.compact(self.folder)
            return
        self.fetch(("results/",))
        before = set(self._names("results/measurements"))
        store.compact(self.folder)
        after = set(self._names("results/measurements"))
        self.push(*sorted(after))
        self._bucket.remove(sorted(before - after))

    def finish(self) -> Counter[str]:
        """Compact, and count all trials by state: the last that a study's process wants to know."""
        from study import store

        self.compact()
        self.push(*self._names("logged"))
        return Counter(row["state"] for row in store.ended_trials(self.folder))

    # A trial's process ...

    def fetch_trial(self, trial_id: str) -> None:
        """Make this node's files of a trial those that the bucket has: measurements, newest whole checkpoint.

        Several workers of one node may call this at once.

        Raises:
            ClusterError: if the study is in a folder that this node does not see.
        """
        if self._bucket is None:
            there = (self.folder / "study.json").exists()
            if not there or self._begun not in (None, self._read_begun()):
                raise ClusterError(
                    f"{socket.gethostname()} {UNSHARED} {self.folder}; start again with an --out that every "
                    "node reaches: a shared folder, or a bucket"
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / f".{trial_id}.lock"):
            self._take(_row(trial_id))
            self._take(_measurements(trial_id))
            self._fetch_checkpoint(trial_id)

    def push_trial(self, trial_id: str) -> None:
        """Bring what a trial has written; its row, if it has ended, last of all."""
        if self._bucket is None:
            return
        self.push(_measurements(trial_id))
        self._push_checkpoint(trial_id)
        for folder in (f"tensorboard/{trial_id}", f"samples/{trial_id}"):
            self.push(*self._names(folder))
        self.push(_row(trial_id))

    # What both need ...

    def fetch(self, wanted: Iterable[str]) -> None:
        """Make this node's files and folders (with a slash at their end) those that the bucket has."""
        for name in wanted if self._bucket is not None else ():
            for _ in range(_ATTEMPTS if name.endswith("/") else 1):
                if self._fetch(name):
                    break

    def _fetch(self, name: str) -> bool:
        """Make a file or folder what the bucket has; whether nothing of it went while it was read."""
        assert self._bucket is not None
        entries = self._bucket.entries(name) if name.endswith("/") else [Entry(name, -1, 0)]
        known = {entry.name: entry for entry in entries}
        for local in self._names(name) if name.endswith("/") else [name]:
            if local not in known:
                (self.folder / local).unlink(missing_ok=True)
        stale = []
        for entry in entries:
            if self._has(entry):
                self._brought[entry.name] = _signature(self.folder / entry.name)
            else:
                stale.append(entry.name)
        found = set()
        for each, content in self._bucket.read_all(stale):
            self._write(each, content, known[each].mtime_ns)
            found.add(each)
        for gone in set(stale) - found:
            (self.folder / gone).unlink(missing_ok=True)
        return found == set(stale)

    def _take(self, name: str) -> bool:
        """Make this node's file the one that the bucket has, now; whether it has one."""
        assert self._bucket is not None
        content = self._bucket.read(name)
        if content is None:
            (self.folder / name).unlink(missing_ok=True)
        else:
            self._write(name, content)
        return content is not None

    def _is_brought(self, name: str) -> bool:
        return self._brought.get(name) == _signature(self.folder / name)

    def _push_checkpoint(self, trial_id: str) -> None:
        """Bring the newest checkpoint, then remove the older ones: at any time the bucket has a whole one."""
        assert self._bucket is not None
        names = self._names(f"checkpoints/{trial_id}")
        if names and all(map(self._is_brought, names)):
            return
        self.push(*sorted(names, key=lambda name: name.endswith(_LAST)))
        older = {entry.name for entry in self._bucket.entries(f"checkpoints/{trial_id}")} - set(names)
        self._bucket.remove(sorted(older, key=lambda name: not name.endswith(_LAST)))

    def _fetch_checkpoint(self, trial_id: str) -> None:
        assert self._bucket is not None
        entries = self._bucket.entries(f"checkpoints/{trial_id}")
        whole = max((each.name for each in entries if each.name.endswith(f"/{_LAST}")), default="")
        kept = {each.name: each for each in entries if each.name.startswith(whole.removesuffix(_LAST) or "/")}
        local = self._names(f"checkpoints/{trial_id}")
        sizes = {name: (self.folder / name).stat().st_size for name in local}
        if sizes == {name: each.size for name, each in kept.items()}:
            return
        # Not the folder itself, which the study's process removes when it drops the checkpoint.
        for old in (self.folder / "checkpoints" / trial_id).glob("*"):
            shutil.rmtree(old)
        for name, content in self._bucket.read_all(sorted(kept, key=lambda name: name.endswith(_LAST))):
            self._write(name, content)

    def fetch_notes(self, trial_id: str) -> None:
        """Take of a trial's newest whole checkpoint what it says of the trial, and no more."""
        if self._bucket is None:
            return
        names = [each.name for each in self._bucket.entries(f"checkpoints/{trial_id}")]
        for name in names:
            self._know_checkpoint(name)
        for note in (self.folder / "checkpoints" / trial_id).glob(f"*/{_LAST}"):
            is_alone = len(list(note.parent.iterdir())) == 1  # else a trial of this machine has it
            if is_alone and note.relative_to(self.folder).as_posix() not in names:
                shutil.rmtree(note.parent)
        whole = max((name for name in names if name.endswith(f"/{_LAST}")), default=None)
        if whole is not None and not (self.folder / whole).exists():
            self.fetch((whole,))

    def _know_checkpoint(self, name: str) -> None:
        """Note that the bucket has a trial's checkpoint, by a folder of that name."""
        folder = "/".join(name.split("/")[:2])
        (self.folder / folder).mkdir(parents=True, exist_ok=True)
        self._kept.add(folder)

    def _prune(self) -> None:
        """Remove from the bucket those rows and checkpoints that the study's process has removed here."""
        assert self._bucket is not None
        for name in [each for each in self._kept if not (self.folder / each).exists()]:
            is_row = name.endswith(".parquet")
            self._bucket.remove([name] if is_row else [each.name for each in self._bucket.entries(name)])
            self._kept.discard(name)

    def _read_begun(self) -> str | None:
        """When the study of this folder began, which tells it from another node's at the same path."""
        with suppress(FileNotFoundError, ValueError):
            begun: str | None = json.loads((self.folder / "study.json").read_bytes()).get("started_at")
            return begun
        return None

    def _has(self, entry: Entry) -> bool:
        path = self.folder / entry.name
        return path.is_file() and _signature(path) == (entry.size, entry.mtime_ns)

    def _write(self, name: str, content: bytes, mtime_ns: int = 0) -> None:
        """Write a file, with the time that the bucket has for it."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
            if mtime_ns:
                os.utime(temporary, ns=(mtime_ns, mtime_ns))
        self._brought[name] = _signature(path)

    def _names(self, folder: str) -> list[str]:
        """Files below a folder of this node, by name; not those that are hidden, which are being written."""
        return sorted(self._found(self.folder / folder))

    def _found(self, folder: Path) -> Iterator[str]:
        for path in folder.rglob("*"):
            name = path.relative_to(self.folder)
            if path.is_file() and not any(part.startswith(".") for part in name.parts):
                yield name.as_posix()


def _signature(path: Path) -> tuple[int, int]:
    """Size and time: what changes when a file is written anew."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def _row(trial_id: str) -> str:
    return f"results/trials/{trial_id}.parquet"


def _measurements(trial_id: str) -> str:
    return f"results/measurements/{trial_id}.parquet"
