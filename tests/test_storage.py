"""A study in a database: the same trials as with a journal, and credentials that are written nowhere."""

import dataclasses
import json
import os
import shutil
import subprocess
import tempfile
from itertools import takewhile
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from study import manifest
from study.config import Study
from study.search import Search
from study.storage import check_storage, without_credentials
from tests.command_line import refused, start
from tests.command_line import tuner as tuner  # a fixture
from tests.nodes import free_port
from tests.studies import LINE, optuna_trials, run, study

SECRET = "s3cr:t"


def in_database(out, url, **changes) -> Study:
    return dataclasses.replace(study(out, LINE, "tpe", trials=4), storage=url, **changes)


def serves_as_a_journal_does(folder: Path, url: str) -> None:
    whole = [trial.trial_id for trial in run(Search(study(folder / "journal", LINE, "tpe", trials=4)))]
    check_storage(in_database(folder / "database", url, is_new=True))
    before = run(Search(in_database(folder / "database", url)), limit=3)
    with pytest.raises(ValueError, match="already holds a study 'test'; the last part of --out"):
        check_storage(in_database(folder / "database", url, is_new=True))
    check_storage(in_database(folder / "database", url, is_new=False))
    after = run(Search(in_database(folder / "database", url)))
    assert [trial.trial_id for trial in (*before, *after)] == whole
    told = optuna.load_study(study_name="test", storage=url).get_trials()
    assert [trial.value for trial in told] == [each.value for each in optuna_trials(folder / "journal")]
    assert not (folder / "database" / "optuna.journal").exists()


def test_sqlite_serves_as_a_journal_does(tmp_path):
    serves_as_a_journal_does(tmp_path, f"sqlite:///{tmp_path}/study.db")


def test_a_name_that_another_study_took_since_it_was_checked_is_refused(tmp_path):
    first, second = (
        in_database(tmp_path / name, f"sqlite:///{tmp_path}/study.db", is_new=True) for name in ("a", "b")
    )
    for made in (first, second):
        check_storage(made)
    search = Search(first)
    with pytest.raises(ValueError, match="already holds a study 'test'; the last part of --out"):
        Search(second)
    run(search, limit=3)
    assert Search(dataclasses.replace(first, is_new=False)).num_missing == 5


def test_a_journal_whose_last_line_was_cut_off_goes_on_without_it(tmp_path):
    served = run(Search(study(tmp_path, LINE, "random")), limit=7)
    journal = tmp_path / "optuna.journal"
    journal.write_bytes(journal.read_bytes()[:-9])
    again = run(Search(study(tmp_path, LINE, "random")))
    assert len({trial.trial_id for trial in (*served, *again)}) == len(served) + len(again) == 12
    assert run(Search(study(tmp_path, LINE, "random"))) == []
    states = [trial.state.name for trial in optuna_trials(tmp_path)]
    assert states == ["COMPLETE"] * 3 + ["FAIL"] + ["COMPLETE"] * 3  # of one not even the params were noted


@pytest.mark.parametrize("place", [1, -1])
@pytest.mark.parametrize(
    "damage", [lambda line: line[:5] + b"\n", lambda line: b"junk\n", lambda line: b"null\n"]
)
def test_a_damaged_journal_is_named_with_the_way_out(tmp_path, place, damage):
    run(Search(study(tmp_path, LINE, "random")), limit=7)
    journal = tmp_path / "optuna.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[place] = damage(lines[place])
    journal.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=r"optuna.journal is damaged .*; delete it and start"):
        Search(study(tmp_path, LINE, "random"))


@pytest.fixture
def postgres(tmp_path_factory):
    """The URL of a PostgreSQL server of our own, on loopback, that asks for a password."""
    binaries = [*Path("/usr/lib/postgresql").glob("*/bin"), Path(shutil.which("initdb") or "/").parent]
    found = next((each for each in binaries if (each / "pg_ctl").exists()), None)
    if found is None:
        pytest.skip("no PostgreSQL server is installed")
    pytest.importorskip("psycopg")
    folder = tmp_path_factory.mktemp("postgres")
    owner = {}
    if os.geteuid() == 0:  # as which the server refuses to run
        owner = {"user": "postgres", "group": "postgres"}
        shutil.chown(folder, "postgres", "postgres")
        for parent in takewhile(lambda each: each != Path(tempfile.gettempdir()), folder.parents):
            parent.chmod(0o711)
    (folder / "password").write_text(SECRET)
    (folder / "password").chmod(0o644)

    def call(program, *arguments):
        command = [str(found / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, capture_output=True, timeout=120, cwd="/", **owner)

    port = free_port()
    call("initdb", "-U", "me", "-A", "scram-sha-256", "--pwfile", str(folder / "password"), "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    call("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    yield f"postgresql+psycopg://me:{SECRET.replace(':', '%3A')}@127.0.0.1:{port}/postgres"
    call("pg_ctl", "-m", "immediate", "stop")


def test_postgresql_serves_as_a_journal_does_and_a_wrong_password_is_told(postgres, tmp_path):
    serves_as_a_journal_does(tmp_path, postgres)
    wrong = postgres.replace("s3cr", "gu3ss")
    with pytest.raises(ValueError, match="cannot use --storage postgresql") as refusal:
        check_storage(in_database(tmp_path / "other", wrong, is_new=True))
    assert "gu3ss" not in str(refusal.value)
    assert "password authentication failed" in str(refusal.value)


def test_a_connection_that_was_ended_while_it_was_idle_is_replaced(postgres, tmp_path):
    """By a server that starts anew, or a router between."""
    search = Search(in_database(tmp_path / "idle", postgres))
    trial = search.next()
    engine = sqlalchemy.create_engine(postgres, isolation_level="AUTOCOMMIT")
    others = "pg_stat_activity where pid <> pg_backend_pid() and usename = 'me'"
    with engine.connect() as connection:
        assert connection.execute(
            sqlalchemy.text(f"select pg_terminate_backend(pid) from {others}")
        ).fetchall()
    engine.dispose()
    assert not search.reported(trial, 1, 0.5)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///a/b.db", "sqlite:///a/b.db"),
        ("postgresql+psycopg://me:pa%2Fs@host:5433/db?sslpassword=x", "postgresql+psycopg://host:5433/db"),
        ("mysql+pymysql://me:a/b?c@host/db?charset=utf8", "mysql+pymysql://host/db"),
    ],
)
def test_a_url_is_shown_without_credentials(url, shown):
    assert without_credentials(url) == shown


def test_credentials_are_written_nowhere(tuner, monkeypatch, tmp_path, capsys, caplog):
    monkeypatch.setattr(manifest, "commit", lambda: ("", False))  # else a diff of this file has the secret
    monkeypatch.setattr("study.storage.check_storage", lambda study: None)
    url = f"postgresql+psycopg://me:{SECRET}@host/db"
    with caplog.at_level("DEBUG"):
        assert start(f"--space smoke --out a --storage {url}") == 0
        assert start(f"--space smoke --out a --storage={url} --resume") == 0
    assert tuner.study.storage == url
    assert json.loads(Path("a/study.json").read_text())["storage"] == "postgresql+psycopg://host/db"
    said = "".join(capsys.readouterr()) + caplog.text + repr(tuner.study)
    files = "".join(path.read_text() for path in Path("a").iterdir())
    assert "s3cr" not in said + files
    assert "--storage postgresql+psycopg://host/db" in " ".join(
        json.loads(Path("a/study.json").read_text())["command"]
    )
    assert f"has storage 'postgresql+psycopg://host/db', not 'sqlite:///{tmp_path}/x.db'" in refused(
        capsys, "--space smoke --out a --resume --storage sqlite:///x.db"
    )


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("s3cret", "--storage must be the URL of a database, such as sqlite:///study.db"),
        ("sqlite:////nowhere/study.db", "cannot use --storage sqlite:////nowhere/study.db: unable to open"),
        ("nosql://me:s3cret@host/db", "cannot use --storage nosql://host/db: Can't load plugin"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused_before_anything_is_written(tuner, capsys, url, sentence):
    said = refused(capsys, f"--space smoke --out a --storage {url}")
    assert said.startswith(sentence)
    assert "s3cret" not in said
    assert not Path("a").exists()
