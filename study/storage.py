"""Where Optuna keeps what the sampler knows: a journal in the study's folder, or a database by its URL."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from mmjsd.config import require
from study.config import Study


def without_credentials(url: str) -> str:
    """The URL of a database as it may be written down: without user, password and parameters.

    Raises:
        ValueError: if it is no URL of a database; the sentence does not repeat it.
    """
    try:
        parts = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(
            "--storage must be the URL of a database, such as sqlite:///study.db or "
            "postgresql+psycopg://user@host/database"
        ) from None
    bare = URL.create(parts.drivername, host=parts.host, port=parts.port, database=parts.database)
    return bare.render_as_string()


def open_storage(study: Study) -> BaseStorage:
    """The study's storage; a database gets Optuna's tables when it is first opened.

    Raises:
        ValueError: with one sentence, without credentials, if the storage cannot be used.
    """
    if study.storage is None:
        return _open_journal(study.out / "optuna.journal")
    with _told(study.storage):
        # A connection that was idle for an epoch may be gone.
        return RDBStorage(study.storage, engine_kwargs={"pool_pre_ping": True})


def _open_journal(path: Path) -> BaseStorage:
    """The journal, without an unfinished last line: Optuna would write on behind it and then read no more."""
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it and start the study again with --resume: "
            "no result is lost, and the sampler begins anew"
        ) from None


def check_storage(study: Study, *, is_new: bool) -> None:
    """Raise ValueError unless a study's database answers and, where it starts, has none of its name."""
    if study.storage is None:
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(study)
    with _told(study.storage):
        names = optuna.get_all_study_names(storage)
    where = without_credentials(study.storage)
    taken = is_new and study.name in names
    require(
        not taken,
        f"{where} already holds a study {study.name!r}; the last part of --out is the name, choose another",
    )


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turns what a database raises into one sentence, in which no password stands."""
    try:
        yield
    except (ImportError, SQLAlchemyError) as error:
        password = make_url(url).password
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        if password:
            reason = reason.replace(str(password), "***")
        raise ValueError(f"cannot use --storage {without_credentials(url)}: {reason}") from None
