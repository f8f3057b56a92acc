"""Where Optuna keeps what the sampler knows: a journal in the study's folder, or a database by its URL."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.pruners import BasePruner
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


def open_study(study: Study, pruner: BasePruner) -> optuna.Study:
    """Optuna's study, which is created where this session starts the study or none was kept of it.

    Raises:
        ValueError: with one sentence, if the storage cannot be used, or has another study of its name.
    """
    try:
        opened = optuna.create_study(
            storage=open_storage(study),
            study_name=study.name,
            directions=["maximize"] * len(study.objectives),
            pruner=pruner,
            load_if_exists=not study.is_new,
        )
    except DuplicatedStudyError:
        raise ValueError(_taken(study)) from None
    opened.set_metric_names(list(study.objectives))
    return opened


def _open_journal(path: Path) -> BaseStorage:
    """The journal, without an unfinished last line: Optuna would write on behind it and then read no more."""
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        os.truncate(path, len(whole))
    try:
        for last in whole.splitlines()[-1:]:  # of which Optuna says nothing before there is another
            json.loads(last)
        return JournalStorage(JournalFileBackend(str(path)))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete it and start the study again with --resume: "
            "no result is lost, and the sampler begins anew"
        ) from None


def check_storage(study: Study) -> None:
    """Raise ValueError unless a study's database answers and, where it starts, has none of its name."""
    if study.storage is None:
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(study)
    with _told(study.storage):
        names = optuna.get_all_study_names(storage)
    require(not (study.is_new and study.name in names), _taken(study))


def _taken(study: Study) -> str:
    where = without_credentials(study.storage) if study.storage else study.out
    return f"{where} already holds a study {study.name!r}; the last part of --out is the name, choose another"


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
