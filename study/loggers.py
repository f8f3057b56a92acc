"""Shows a study in MLflow or Weights & Biases too: one run a trial, a config's replicates as a group."""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from mmjsd.config import require
from study import store
from study.config import Logger, Study, curve_name
from study.record import Trial, identity

_log = logging.getLogger(__name__)

Row = Mapping[str, Any]
"""Of the table `trials`, or as much of it as is known before the trial has ended."""

_TOTALS = ("wall_s", "device_s", "evaluation_s", "samples_per_s", "peak_memory_gib", "objective_value")
_ENDED_WELL = ("COMPLETE", "STOPPED")
_BATCH = 100
"""Parameters or metrics that MLflow takes at once; it writes all of them or none."""

_LONGEST_TAG = 5000
_LONGEST_PROJECT = 128


class Loggers:
    """Sends the study's loggers what the tables hold and they lack.

    The driver does it once the tables have it. So a trial that was killed and resumed shows no epoch twice,
    credentials stay in one process, and what a session could not send the next one does. A logger that
    fails is left alone for the rest of the session: the study goes on.
    """

    def __init__(self, study: Study, read: Callable[[str], Iterable[Row]]) -> None:
        """`read` gives what the trial of an id has measured, wherever it is trained."""
        self._out, self._read = study.out, read
        self._loggers: dict[Logger, _Logger] = {}
        self._runs: dict[tuple[Logger, str], _Run] = {}
        self._sent: dict[tuple[Logger, str], int] = {}
        """The last epoch that a run shows, of those that this session has opened."""

        for name in study.loggers:
            with self._guarded(name):
                self._loggers[name] = _LOGGERS[name](study)
        self._catch_up()

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave what was interrupted to another session."""
        for key in list(self._runs):
            if key in self._runs:
                with self._guarded(key[0]):
                    self._runs[key].leave()

    def progressed(self, trial: Trial) -> None:
        """A trial has ended an epoch, whose numbers are in the tables."""
        if self._loggers:
            self._send(identity(trial), self._read(trial.trial_id))

    def ended(self, trial: Trial) -> None:
        """A trial has ended; one without a row was interrupted."""
        row = store.read_trial(trial.out, trial.trial_id) if self._loggers else None
        if row is not None:
            self._send(row, self._read(trial.trial_id))

    def _catch_up(self) -> None:
        """Send what earlier sessions have not of trials that have ended."""
        if not self._loggers or not (self._out / "results").is_dir():
            return
        ended = store.ended_trials(self._out)
        waiting = [row for row in ended if not all(self._knows_end(name, row) for name in self._loggers)]
        measured: dict[str, list[Row]] = {row["trial_id"]: [] for row in waiting}
        for each in store.read(self._out).measurements.to_pylist() if waiting else ():
            measured.get(each["trial_id"], []).append(each)
        for row in waiting:
            self._send(row, measured[row["trial_id"]])

    def _send(self, row: Row, measurements: Iterable[Row]) -> None:
        curves = _curves(measurements)
        for name in list(self._loggers):
            if self._knows_end(name, row):
                continue
            with self._guarded(name):
                key = name, row["trial_id"]
                if key not in self._runs:
                    self._runs[key] = self._loggers[name].open(row, self._earlier(name, row))
                for epoch in sorted(curves):
                    if epoch > self._sent.get(key, 0):
                        self._runs[key].log(epoch, curves[epoch])
                        self._sent[key] = epoch
                if "state" in row:
                    self._runs[key].end(row)
                    self._note_end(name, row)
                    del self._runs[key]
                    self._sent.pop(key, None)

    @contextmanager
    def _guarded(self, name: Logger) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a service, or the way to it, may have
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            _log.warning("%s gets nothing more, for it fails: %s; --resume sends what it lacks", name, reason)
            self._loggers.pop(name, None)
            self._runs = {key: run for key, run in self._runs.items() if key[0] != name}

    def _knows_end(self, name: Logger, row: Row) -> bool:
        """Whether a logger was told how a trial ended: a note says of which end, since one may be retried."""
        note = self._note(name, row)
        return "state" in row and note.exists() and note.read_text() == row["finished_at"].isoformat()

    def _earlier(self, name: Logger, row: Row) -> str:
        """Names the try before, whose end the logger was told; empty for the first."""
        note = self._note(name, row)
        return hashlib.sha256(note.read_bytes()).hexdigest()[:8] if note.exists() else ""

    def _note_end(self, name: Logger, row: Row) -> None:
        note = self._note(name, row)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(row["finished_at"].isoformat())

    def _note(self, name: Logger, row: Row) -> Path:
        """Says which end of a trial a logger was told; it travels unless that stays on this machine."""
        folder = ".logged" if self._loggers[name].is_here else "logged"
        return self._out / folder / name / str(row["trial_id"])


def check_loggers(study: Study) -> None:
    """Raise ValueError unless the loggers' packages are there, and MLflow's server where one is named."""
    for name in study.loggers:
        require(
            find_spec(name) is not None,
            f"--loggers {name} needs the package {name}; pip install 'mmjsd-study[{name}]', or leave it out",
        )
    server = os.environ.get("MLFLOW_TRACKING_URI")
    if "mlflow" in study.loggers and server:
        from mlflow.exceptions import MlflowException
        from mlflow.store.db.db_types import DATABASE_ENGINES
        from sqlalchemy import create_engine
        from sqlalchemy.exc import SQLAlchemyError

        try:
            if re.split("[+:]", server)[0] in DATABASE_ENGINES:  # MLflow would go on trying for minutes
                create_engine(server).connect().close()
            _mlflow_client(study).search_experiments(max_results=1)
        except (ImportError, MlflowException, SQLAlchemyError) as error:
            reason = next(iter(str(error).splitlines()), "")
            raise ValueError(f"cannot use MLflow as MLFLOW_TRACKING_URI says: {reason}") from None


class _Run(Protocol):
    """A trial, as a logger shows it."""

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Show an epoch, unless an earlier session has."""

    def end(self, row: Row) -> None:
        """Show how the trial has ended."""

    def leave(self) -> None:
        """Show that the trial was interrupted."""


class _Logger(Protocol):
    """Where a study is shown."""

    is_here: bool
    """Whether that is in the study's folder on this machine."""

    def __init__(self, study: Study) -> None: ...

    def open(self, row: Row, earlier: str) -> _Run:
        """A run for this try of a trial: that of an earlier session, if there is one.

        Args:
            row: of the trial.
            earlier: the try before it; empty if there was none.
        """


class _Mlflow:
    """An experiment with the study's name, in a file in its folder or where MLFLOW_TRACKING_URI says."""

    def __init__(self, study: Study) -> None:
        self.is_here = "MLFLOW_TRACKING_URI" not in os.environ
        self._client = _mlflow_client(study)
        self._study_id = _study_id(study)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", study.name)
        known = self._client.get_experiment_by_name(name)
        self._experiment = known.experiment_id if known else self._client.create_experiment(name)

    def open(self, row: Row, earlier: str) -> "_MlflowRun":
        wanted = f"tags.trial_id = '{row['trial_id']}' and tags.study_id = '{self._study_id}'"
        for found in self._client.search_runs([self._experiment], wanted):
            if found.data.tags.get("earlier_try", "") == earlier:
                self._client.update_run(found.info.run_id, status="RUNNING")
                return _MlflowRun(self._client, found.info.run_id, is_new=False)
        tags = {**_labels(row), "study_id": self._study_id, **({"earlier_try": earlier} if earlier else {})}
        made = self._client.create_run(self._experiment, tags=tags, run_name=row["trial_id"])
        run = _MlflowRun(self._client, made.info.run_id, is_new=True)
        run.describe(_flat(json.loads(row["config"])))
        return run


class _MlflowRun:
    def __init__(self, client: Any, run_id: str, *, is_new: bool) -> None:
        self._client, self._run_id, self._is_new = client, run_id, is_new
        self._shown: dict[str, set[int]] = {}
        """The epochs that a metric has, of a run that another session began."""

    def describe(self, fields: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(path, str(value)) for path, value in fields.items()]
        for start in range(0, len(params), _BATCH):
            self._client.log_batch(self._run_id, params=params[start : start + _BATCH])

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 10**6
        metrics = [Metric(name.replace("+", "-"), value, now, epoch) for name, value in values.items()]
        for start in range(0, len(metrics), _BATCH):
            batch = metrics[start : start + _BATCH]
            if not self._has(batch[-1].key, epoch):
                self._client.log_batch(self._run_id, metrics=batch)

    def end(self, row: Row) -> None:
        self.log(row["epochs"], _totals(row))
        for name in ("state", "error"):
            self._client.set_tag(self._run_id, name, row[name][-_LONGEST_TAG:])
        self._client.set_terminated(self._run_id, "FINISHED" if row["state"] in _ENDED_WELL else "FAILED")

    def leave(self) -> None:
        self._client.set_terminated(self._run_id, "KILLED")

    def _has(self, metric: str, epoch: int) -> bool:
        if self._is_new:
            return False
        if metric not in self._shown:
            history = self._client.get_metric_history(self._run_id, metric)
            self._shown[metric] = {each.step for each in history}
        return epoch in self._shown[metric]


def _mlflow_client(study: Study) -> Any:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a server that is away is not awaited
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow.tracking import MlflowClient
    from sqlalchemy.engine import URL

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # With its driver: MLflow would make the folder of a bare sqlite URL, and by its quoted name.
    file = URL.create("sqlite+pysqlite", database=str(study.out / "mlflow.db"))
    return MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", file.render_as_string()))


class _Wandb:
    """A project with the study's name; in the study's folder alone where nobody is logged in."""

    def __init__(self, study: Study) -> None:
        import wandb

        self._wandb, self._out, self._study_id = wandb, study.out, _study_id(study)
        accepted = re.sub(r"[/\\#?%:]", "-", study.name)[:_LONGEST_PROJECT]
        self._project = os.environ.get("WANDB_PROJECT", accepted)
        self._mode: Any = os.environ.get("WANDB_MODE")
        if self._mode is None:
            self._mode = "online" if wandb.login(prompt=False) else "offline"
        self.is_here = self._mode == "offline"

    def open(self, row: Row, earlier: str) -> "_WandbRun":
        name = "-".join(filter(None, (row["trial_id"], self._study_id, earlier)))
        for older in self._out.glob(f"wandb/offline-run-*-{name}"):  # cannot be continued: all is sent again
            shutil.rmtree(older)
        run = self._wandb.init(
            project=self._project,
            id=name,
            name=row["trial_id"],
            group=row["config_hash"],
            job_type=row["phase"],
            config={**_labels(row), **json.loads(row["config"])},
            dir=self._out,
            mode=self._mode,
            resume="allow",
            reinit="create_new",
            settings=self._wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                x_disable_meta=True,  # a command line may hold a database's password
                x_disable_stats=True,
            ),
        )
        return _WandbRun(run)


class _WandbRun:
    def __init__(self, run: Any) -> None:
        self._run, self._first = run, run.starting_step

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        if epoch >= self._first:
            self._run.log(dict(values), step=epoch)

    def end(self, row: Row) -> None:
        self._run.summary.update({**_totals(row), "state": row["state"], "error": row["error"]})
        self._run.finish(exit_code=0 if row["state"] in _ENDED_WELL else 1)

    def leave(self) -> None:
        self._run.finish(exit_code=255)


_LOGGERS: Mapping[Logger, type[_Logger]] = {"mlflow": _Mlflow, "wandb": _Wandb}


def _study_id(study: Study) -> str:
    """Tells a study from one of the same name that was begun at another time."""
    begun = json.loads((study.out / "study.json").read_text(encoding="utf-8"))["started_at"]
    return hashlib.sha256(f"{study.where}/{begun}".encode()).hexdigest()[:8]


def _labels(row: Row) -> dict[str, str]:
    names = ("study", "space", "trial_id", "config_hash", "replicate", "phase", "commit")
    return {name: str(row[name]) for name in names}


def _totals(row: Row) -> dict[str, float]:
    return {name: row[name] for name in _TOTALS if row[name] is not None}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Plain values by dotted path; weights and sizes by their position or modality."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list):
            value = {str(index): each for index, each in enumerate(value)}
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _curves(measurements: Iterable[Row]) -> dict[int, dict[str, float]]:
    """By epoch: each measured value by its name, but for those of single attributes, which are very many."""
    curves: dict[int, dict[str, float]] = {}
    for row in (each for each in measurements if not each.get("attribute")):
        curves.setdefault(row["epoch"], {})[curve_name(row)] = row["value"]
    return curves
