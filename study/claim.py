"""One process at a time works on a study: a lock on its folder, and a claim in object storage."""

import json
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from study.config import Study
from study.files import Bucket, FilesError

BEAT_S = 15.0
"""Seconds between two signs of life of a process that works on a study in object storage."""

SETTLED_S = 2.0
"""After so many seconds it is clear whose claim counts, of two that were made at once."""

CLAIM = "claim.json"
"""Its name in the study's folder of object storage."""

_log = logging.getLogger(__name__)


@contextmanager
def claimed(study: Study) -> Iterator[None]:
    """Keep the study to this process: two that resume it would train everything twice.

    Object storage has no locks: there a process writes a claim anew every 15 s, and takes over one that has
    not changed for twice that time. One that loses its claim all the same, since its machine slept, is
    interrupted as by Ctrl-C.

    Raises:
        ValueError: if another process is at work on it, or it cannot be written.
    """
    taken = f"another process is at work on the study in {study.where}"
    was_there = study.out.exists()
    try:
        study.out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(study.out / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise ValueError(f"{taken}; wait until it ends, or choose another --out") from None
    except OSError as error:
        raise ValueError(f"cannot write to {study.out}: {error.strerror}") from None
    try:
        if study.bucket_url is None:
            yield
            return
        claim = _Claim(Bucket(study.bucket_url))
        if not claim.take():
            raise ValueError(f"{taken}, as {claim.owner} says; wait until it ends, or choose another --out")
        with claim.kept():
            yield
    finally:
        if not was_there:
            _remove_empty(study.out)
        lock.release()


def _remove_empty(out: Path) -> None:
    """Remove a folder that holds this process's lock alone."""
    if [path.name for path in out.glob("*")] == [".lock"]:
        with suppress(OSError):  # another process is faster
            (out / ".lock").unlink()
            out.rmdir()


class _Claim:
    """A claim on a run in object storage."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._own = f"process {os.getpid()} on {socket.gethostname()} ({secrets.token_hex(4)})"
        self._beats = 0

    @property
    def owner(self) -> str:
        """Whose claim counts; nobody's is an empty name."""
        found = self._bucket.read(CLAIM)
        with suppress(ValueError, KeyError, TypeError):
            return str(json.loads(found)["owner"]) if found else ""
        return "a damaged claim.json"

    def take(self) -> bool:
        """Make the claim this process's, unless another shows signs of life."""
        before = self._bucket.read(CLAIM)
        if before is not None:
            _log.info("%s was at work on this study; waiting for a sign of life", self.owner)
            time.sleep(2 * BEAT_S)
            after = self._bucket.read(CLAIM)
            if after is not None and after != before:
                return False
        self._beat()
        time.sleep(SETTLED_S)
        return self.owner == self._own

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Show signs of life until the end."""
        ended = threading.Event()
        beating = threading.Thread(target=self._keep, args=(ended,), daemon=True)
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()
            with suppress(FilesError):
                if self.owner == self._own:
                    self._bucket.remove([CLAIM])

    def _keep(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT_S):
            with suppress(FilesError):  # what is to be stored meets the same trouble, and tells it
                owner = self.owner
                if owner not in ("", self._own):
                    _log.error("%s has taken over this study", owner)
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                self._beat()

    def _beat(self) -> None:
        self._beats += 1
        self._bucket.write(CLAIM, json.dumps({"owner": self._own, "beats": self._beats}).encode())
