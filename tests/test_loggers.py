"""Loggers show what the tables hold, each epoch once, however often a study is killed."""

import dataclasses
import json
import signal
import struct
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from study import loggers, store
from study.loggers import Loggers, check_loggers
from study.record import identity
from study.search import Search
from tests.nodes import ROOT
from tests.studies import study, trial

BEGUN = datetime(2026, 1, 1, tzinfo=UTC)
EPOCHS = 3


class Shown:
    """A logger that remembers what it was shown, and in which session; one session fails half way."""

    def __init__(self, patience=10**6):
        self.session, self.epochs, self.states, self.left, self.patience = 0, [], {}, [], patience
        self.tries = []

    def __call__(self, study):
        self.session += 1
        return SimpleNamespace(open=self.open, is_here=False)

    def open(self, row, earlier):
        self.tries.append(earlier)

        def log(epoch, values):
            if len(self.epochs) >= self.patience:
                raise ConnectionError("no route to host")
            self.epochs.append((self.session, row["trial_id"], epoch, values["train/loss"]))

        def end(ended):
            self.states[row["trial_id"]] = ended["state"]

        return SimpleNamespace(log=log, end=end, leave=lambda: self.left.append(row["trial_id"]))


def begin(out, *names):
    """A study of two trials in a folder, and these trials."""
    out.mkdir(exist_ok=True)
    (out / "study.json").write_text(json.dumps({"started_at": BEGUN.isoformat()}))
    made = study(out, trials=1, loggers=names)
    search = Search(made)
    return made, (search.next(), search.next())


def opened(made):
    """The loggers of a study whose trials run on this machine."""
    return Loggers(made, partial(store.read_measurements, made.out))


def measure(trial, epochs):
    """Write what a trial's process has written after so many epochs."""
    known = identity(trial)
    row = {name: known[name] for name in ("study", "trial_id", "config_hash", "replicate")}
    scores = (("train", "loss", "", ""), ("validation", "coherence", "mnist+svhn", "text"))
    rows = [
        {
            **row,
            "epoch": epoch,
            "split": split,
            "metric": metric,
            "posterior": "",
            "given": subset,
            "target": target,
            "value": trial.replicate + epoch / 8,
            "standard_error": None,
            "num_samples": 1,
        }
        for epoch in range(1, epochs + 1)
        for split, metric, subset, target in scores
    ]
    store.write_measurements(trial.out, trial.trial_id, rows)


def end(ended, state="COMPLETE", minutes=1):
    told = {} if state == "COMPLETE" else {"error": "loss is nan"}
    times = {"started_at": BEGUN, "finished_at": BEGUN + timedelta(minutes=minutes)}
    value = 0.5 if state == "COMPLETE" else None
    row = trial(**identity(ended), **told, **times, state=state, epochs=EPOCHS, objective_value=value)
    store.write_trial(ended.out, row, ended.params)


def curves(*trials):
    return {(each.trial_id, e, each.replicate + e / 8) for each in trials for e in range(1, EPOCHS + 1)}


@settings(max_examples=30)
@given(
    steps=st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["epoch", "crash", "kill"])), max_size=14),
    patience=st.integers(0, 7),
)
def test_whatever_is_killed_every_epoch_and_end_is_shown_and_in_one_session_once(
    tmp_path_factory, steps, patience
):
    shown, done = Shown(patience), [0, 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loggers._LOGGERS, "wandb", shown)
        made, trials = begin(tmp_path_factory.mktemp("study"), "wandb")
        session = opened(made)
        for which, step in steps:
            if step == "kill":
                session = opened(made)
            elif step == "crash":  # of the trial's process alone: it repeats its last epoch
                done[which] = max(0, done[which] - 1)
            elif done[which] < EPOCHS:
                done[which] += 1
                measure(trials[which], done[which])
                session.progressed(trials[which])
        for each in trials:
            measure(each, EPOCHS)
            end(each)
        session.ended(trials[0])
        shown.patience = 10**6
        opened(made)
        before = len(shown.epochs)
        opened(made)
    assert len(shown.epochs) == len(set(shown.epochs)) == before
    assert {each[1:] for each in shown.epochs} == curves(*trials)
    assert shown.states == {each.trial_id: "COMPLETE" for each in trials}


def test_a_logger_that_fails_is_told_once_and_stops_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(loggers._LOGGERS, "wandb", Shown(patience=1))
    other = Shown()
    monkeypatch.setitem(loggers._LOGGERS, "mlflow", other)
    made, (first, second) = begin(tmp_path, "wandb", "mlflow")
    with opened(made) as session:
        for epochs in (1, 2):
            measure(first, epochs)
            session.progressed(first)
        measure(second, 1)
        session.progressed(second)
    (told,) = [each.getMessage() for each in caplog.records]
    assert told == "wandb gets nothing more, for it fails: no route to host; --resume sends what it lacks"
    assert len(other.epochs) == 3
    assert other.left == [first.trial_id, second.trial_id]


def test_what_another_node_measured_is_shown(tmp_path, monkeypatch):
    shown = Shown()
    monkeypatch.setitem(loggers._LOGGERS, "wandb", shown)
    made, (first, second) = begin(tmp_path, "wandb")
    there = {first.trial_id: (first, 1), second.trial_id: (second, EPOCHS)}

    def read(trial_id):
        trial, epochs = there[trial_id]
        measure(trial, epochs)
        return store.read_measurements(tmp_path, trial_id)

    with Loggers(made, read) as session:
        session.progressed(first)
        end(second)
        session.ended(second)
    assert {each[1:] for each in shown.epochs} == {(first.trial_id, 1, first.replicate + 1 / 8)} | curves(
        second
    )


def test_a_retried_trial_is_shown_again_and_its_new_end(tmp_path, monkeypatch):
    shown = Shown()
    monkeypatch.setitem(loggers._LOGGERS, "mlflow", shown)
    made, (first, _) = begin(tmp_path, "mlflow")
    measure(first, 2)
    end(first, "FAILED")
    opened(made)
    assert shown.states == {first.trial_id: "FAILED"}
    end(first, "COMPLETE", minutes=2)
    opened(made).ended(first)
    assert shown.states == {first.trial_id: "COMPLETE"}
    (before, after) = shown.tries
    assert (before, bool(after)) == ("", True)
    assert [epoch[2] for epoch in shown.epochs] == [1, 2, 1, 2]  # of each try the whole curve


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_package_that_is_missing_is_refused_with_the_way_to_get_it(tmp_path, monkeypatch, name):
    made, _ = begin(tmp_path, name)
    monkeypatch.setattr(loggers, "find_spec", lambda _: None)
    sentence = rf"--loggers {name} needs the package {name}; pip install 'mmjsd-study\[{name}\]'"
    with pytest.raises(ValueError, match=sentence):
        check_loggers(made)


# With the packages themselves ...


def test_mlflow_shows_a_study_that_was_killed(tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made, (first, second) = begin(tmp_path, "mlflow")
    killed = opened(made)
    measure(first, 2)
    killed.progressed(first)
    with opened(made) as session:
        measure(second, EPOCHS)
        session.progressed(second)
    with opened(made) as session:
        for each, state in ((first, "COMPLETE"), (second, "DIVERGED")):
            measure(each, EPOCHS)
            session.progressed(each)
            end(each, state)
            session.ended(each)
    client = tracking.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("test").experiment_id
    runs = {run.data.tags["trial_id"]: run for run in client.search_runs([experiment])}
    assert set(runs) == {first.trial_id, second.trial_id}
    assert {run.data.tags["config_hash"] for run in runs.values()} == {first.config_hash}
    assert {name: run.info.status for name, run in runs.items()} == {
        first.trial_id: "FINISHED",
        second.trial_id: "FAILED",
    }
    assert [runs[each.trial_id].data.tags["state"] for each in (first, second)] == ["COMPLETE", "DIVERGED"]
    assert runs[second.trial_id].data.tags["error"] == "loss is nan"
    assert runs[first.trial_id].data.metrics["objective_value"] == 0.5
    assert float(runs[first.trial_id].data.params["objective.beta"]) == first.config.objective.beta
    for each in (first, second):
        for name in ("train/loss", "validation/coherence/mnist-svhn/text", "wall_s"):
            history = client.get_metric_history(runs[each.trial_id].info.run_id, name)
            steps = [EPOCHS] if name == "wall_s" else list(range(1, EPOCHS + 1))
            assert [metric.step for metric in history] == steps, name
            if name == "train/loss":
                assert [metric.value for metric in history] == [each.replicate + e / 8 for e in steps]
    end(second, minutes=2)  # it is tried again
    opened(made).ended(second)
    tried = [run for run in client.search_runs([experiment]) if run.data.tags["trial_id"] == second.trial_id]
    assert [run.data.tags["state"] for run in tried] == ["COMPLETE", "DIVERGED"]
    assert len(client.get_metric_history(tried[0].info.run_id, "train/loss")) == EPOCHS


def test_mlflows_file_that_stayed_on_another_machine_is_made_anew(tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made, (first, _) = begin(tmp_path, "mlflow")
    measure(first, EPOCHS)
    end(first)
    row = store.read_trial(tmp_path, first.trial_id)
    note = tmp_path / "logged" / "mlflow" / first.trial_id  # on a server, which came with the study
    note.parent.mkdir(parents=True)
    note.write_text(row["finished_at"].isoformat())
    opened(made)
    assert (tmp_path / ".logged" / "mlflow" / first.trial_id).read_text() == note.read_text()
    client = tracking.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("test").experiment_id])
    assert run.data.tags["state"] == "COMPLETE"


@pytest.mark.parametrize("name", ["10:00", "50% of? #1", "a%3Fb [c]"])
def test_mlflows_file_lies_in_the_study_whatever_its_name(tmp_path, monkeypatch, name):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made, _ = begin(tmp_path / name, "mlflow")
    opened(made)
    assert (tmp_path / name / "mlflow.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "postgresql+psycopg://127.0.0.1:9/mlflow"])
def test_mlflows_server_that_does_not_answer_is_refused(tmp_path, monkeypatch, uri):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    made, _ = begin(tmp_path, "mlflow")
    started = time.monotonic()
    with pytest.raises(ValueError, match="cannot use MLflow as MLFLOW_TRACKING_URI says: "):
        check_loggers(made)
    assert time.monotonic() - started < 60  # MLflow itself tries a database for minutes


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.test_loggers import begin, measure, opened

made, (first, _) = begin(Path(sys.argv[1]), "wandb")
measure(first, 2)
opened(made).progressed(first)
os.kill(os.getpid(), signal.SIGKILL)
"""


def written(file):
    """The records of an offline run: chunks of a log in LevelDB's format, blocks of 32 KiB."""
    internal = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, position, record = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield internal.Record.FromString(record)
            record = b""


def test_wandb_shows_a_study_that_was_killed_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    made, (first, second) = begin(tmp_path, "wandb")
    made = dataclasses.replace(made, name=r"2026-01-01T10:00 50%?#\1" + 200 * "x")
    assert list(tmp_path.glob(f"wandb/offline-run-*-{first.trial_id}-*"))
    with opened(made) as session:
        for each, state in ((first, "COMPLETE"), (second, "DIVERGED")):
            measure(each, EPOCHS)
            session.progressed(each)
            end(each, state)
            session.ended(each)
    for each, code in ((first, 0), (second, 1)):
        (file,) = tmp_path.glob(f"wandb/offline-run-*/run-{each.trial_id}-*.wandb")
        records = list(written(file))
        (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"][:1]
        assert (run.run_group, run.display_name) == (each.config_hash, each.trial_id)
        assert run.project == "2026-01-01T10-00 50----1" + 104 * "x"
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["objective"]["beta"] == each.config.objective.beta
        history = [
            {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for record in records
            if record.WhichOneof("record_type") == "history"
        ]
        expected = [(epoch, each.replicate + epoch / 8) for epoch in range(1, EPOCHS + 1)]
        assert [(row["_step"], row["train/loss"]) for row in history] == expected
        (ended,) = [record.exit for record in records if record.WhichOneof("record_type") == "exit"]
        assert ended.exit_code == code
