"""Files that appear whole, and folders in object storage by their URLs, s3:// and gs://bucket/folder.

An object appears whole or not at all, under its last name: there is nothing to rename. Credentials come from
where the provider's own tools look for them, the environment, files of the user's or the role of the machine,
and never from a URL.
"""

import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from pyarrow import NativeFile, fs

_SCHEMES = ("s3", "gs")

_SETTINGS = ("endpoint_override", "region", "scheme")
"""What may follow the folder, as in s3://bucket/folder?endpoint_override=127.0.0.1:9000&scheme=http."""

ATTEMPTS = 8
"""So often a request is tried that a server has not answered, or has answered with a fault of its own; the
pauses between them double, so that some 40 s of silence are bridged."""

SILENCE_S = 40.0
"""The same for Google's storage, which knows a time in place of a number."""

CONNECT_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 60.0

_GONE = "RESOURCE_NOT_FOUND|NO_SUCH_KEY"
"""What stands in a message on an object that is not there."""

_THREADS = 16
"""Small objects are fetched side by side: each takes a round trip, whatever its size."""


class FilesError(ValueError):
    """Object storage that cannot be read or written; the message has the URL, the reason and the way out."""


@dataclass(frozen=True)
class Entry:
    """An object of a folder."""

    name: str
    """From the folder on, with slashes."""

    size: int
    mtime_ns: int


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write a file that appears whole or not at all, over one of its name if there is one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # what fills a disk is not left on it
        raise


def is_url(out: object) -> bool:
    """Whether this names a folder in object storage, well or badly, and not a path."""
    return re.match(r"[a-z][a-z0-9+]+:/", str(out), re.IGNORECASE) is not None


class Bucket:
    """A folder in object storage."""

    def __init__(self, url: str) -> None:
        """Refuse a URL that cannot be; no request is made yet.

        Raises:
            FilesError: with one sentence, in which no credentials stand.
        """
        parts = urlsplit(url)
        bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
        known = " or ".join(f"{scheme}://bucket/folder" for scheme in _SCHEMES)
        if parts.scheme not in _SCHEMES:
            raise FilesError(f"{bare} is in no storage that is known; expected {known}, or a path")
        if "@" in parts.netloc:
            raise FilesError(
                f"{bare} must come without credentials; put them into the environment, as AWS_ACCESS_KEY_ID"
            )
        if not parts.netloc or not parts.path.strip("/") or ".." in parts.path.split("/"):
            raise FilesError(f"{bare} names no folder in a bucket; expected {known}")
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        for name in query:
            if name not in _SETTINGS:
                raise FilesError(
                    f"{bare} cannot have {name!r} after the folder; known are {', '.join(_SETTINGS)}"
                )
        self.url = f"{bare}?{parts.query}" if parts.query else bare
        self._bare, self._query = bare, query
        self._scheme, self._bucket = parts.scheme, parts.netloc
        self._root = f"{parts.netloc}{parts.path}".rstrip("/")

    @property
    def name(self) -> str:
        """The folder's own, the last part of its URL."""
        return self._root.rpartition("/")[2]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_system"}

    def write(self, name: str, content: bytes) -> None:
        """Write an object, over one of that name if there is one."""
        with self._told("write", name):
            stream = self._system.open_output_stream(f"{self._root}/{name}")
            stream.write(content)  # not in a with: what fails must not be closed, and so completed
            stream.close()

    def read(self, name: str) -> bytes | None:
        """An object's content; none if there is none."""
        with self._told("read", name):
            try:
                with self._open_to_read(f"{self._root}/{name}") as stream:
                    content: bytes = stream.read()
            except OSError as error:  # what goes between the two requests of a read raises another
                if isinstance(error, FileNotFoundError) or re.search(_GONE, str(error)):
                    return None
                raise
        return content

    def entries(self, folder: str = "") -> list[Entry]:
        """All objects below a folder, at any depth; none if there is no such folder."""
        from pyarrow import fs  # here and below, so that refusing a URL takes no time

        where = f"{self._root}/{folder}".rstrip("/")
        with self._told("read", folder):
            selector = fs.FileSelector(where, recursive=True, allow_not_found=True)
            found = [info for info in self._system.get_file_info(selector) if info.type == fs.FileType.File]
        entries = [Entry(info.path[len(self._root) + 1 :], info.size, info.mtime_ns or 0) for info in found]
        for entry in entries:
            if not {"", ".", ".."}.isdisjoint(entry.name.split("/")):  # objects may be a stranger's
                raise FilesError(f"{self._bare} holds {entry.name!r}, which is no file of a run; remove it")
        return entries

    def read_all(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Objects' contents, side by side; those that have gone in the meantime are left out."""
        with ThreadPoolExecutor(_THREADS) as threads:
            for name, content in threads.map(lambda name: (name, self.read(name)), names):
                if content is not None:
                    yield name, content

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects, side by side; those that are not there are left alone."""

        def remove(name: str) -> None:
            with self._told("write", name):
                try:
                    self._system.delete_file(f"{self._root}/{name}")
                except FileNotFoundError:
                    return

        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(remove, names))

    def check(self) -> None:
        """Write, read and remove a small object.

        Raises:
            FilesError: if one of these cannot be done.
        """
        name, content = f".check-{os.getpid()}", os.urandom(16).hex().encode()
        self.write(name, content)
        found = self.read(name)
        self.remove([name])
        if found != content:
            raise FilesError(f"{self._bare} does not give back what was written; choose another --out")

    @cached_property
    def _system(self) -> "fs.FileSystem":
        with self._told("open", ""):
            return self._open()

    def _open(self) -> "fs.FileSystem":
        from pyarrow import fs

        endpoint, region = self._query.get("endpoint_override"), self._query.get("region")
        scheme = self._query.get("scheme", "https")
        if self._scheme == "gs":
            own = {"endpoint_override": endpoint, "scheme": scheme, "anonymous": True} if endpoint else {}
            return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=SILENCE_S), **own)
        address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint is None and address:
            scheme, _, endpoint = address.rpartition("://")
        region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if region is None and endpoint is None:
            region = fs.resolve_s3_region(self._bucket)
        return fs.S3FileSystem(
            endpoint_override=endpoint,
            scheme=scheme or "https",
            region=region,
            connect_timeout=CONNECT_TIMEOUT_S,
            request_timeout=REQUEST_TIMEOUT_S,
            allow_delayed_open=True,  # small objects take one request
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        )

    def _open_to_read(self, path: str) -> "NativeFile":
        if self._scheme == "gs":  # its files ask twice, and whatever fails the second time is a "closed file"
            return self._system.open_input_stream(path, compression=None)
        return self._system.open_input_file(path)

    @contextmanager
    def _told(self, what: str, name: str) -> Iterator[None]:
        """Turns what storage raises into one sentence."""
        import pyarrow as pa

        try:
            yield
        except (OSError, pa.ArrowException) as error:
            reason, advice = _reason(" ".join(str(error).split()))
            where = f"{self._bare}/{name}".rstrip("/")
            raise FilesError(f"cannot {what} {where}: {reason}; {advice}") from error


_REASONS = (
    (
        r"NO_SUCH_BUCKET|Bucket '.*' not found|bucket does not exist|HTTP status code: 404",
        "the bucket does not exist",
        "make it, or correct --out",
    ),
    (
        r"INVALID_ACCESS_KEY|InvalidAccessKeyId|SIGNATURE|TOKEN|InvalidClientTokenId|ExpiredToken",
        "the credentials are not accepted",
        "check those of the environment, or of the role of this machine",
    ),
    (
        r"ACCESS_DENIED|HTTP status 403|Forbidden|PERMISSION",
        "access is denied",
        "give these credentials the right to list, read, write and delete below --out",
    ),
    (
        r"No credentials|NO_AWS_CREDENTIALS|could not load credentials",
        "there are no credentials",
        "put them into the environment, or give this machine a role",
    ),
)
"""What stands in a message, the reason in words, and the way out."""


def _reason(message: str) -> tuple[str, str]:
    for pattern, reason, advice in _REASONS:
        if re.search(pattern, message):
            return reason, advice
    cause = message.partition("AWS Error ")[2] or message
    cause = re.sub(r"\s*\(Request ID:.*?\)", "", cause)
    return (
        f"storage does not answer as it should ({cause[:160]})",
        "check the network and --out, then try again",
    )
