"""Ray Tune drives a study: gives each trial its resources, follows what happens."""

import errno
import os
import pickle
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ray
from optuna.exceptions import StorageInternalError
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from study import store
from study.config import ClusterError, Study
from study.display import Display
from study.files import FilesError
from study.interrupts import sigterm_as_interrupt
from study.joining import join_or_start
from study.loggers import Loggers
from study.manifest import write_ended
from study.mirror import Mirror
from study.record import Trial, is_disk_full, record_end
from study.search import Search
from study.worker import LOST, train_mirrored, train_on_workers

DRIVER_MEMORY = 400 * 2**20
"""Bytes that a trial's driver process is allowed when workers of its own do the training. It holds no
CPU: drivers that did would keep their workers from starting, for ever."""

MAX_CRASHES = 2
"""How often a trial whose process vanished is tried again, from its last checkpoint."""

_ROW_S = 60
"""So many seconds a network folder may take to show what another node has written."""

_SILENT = "the database of --storage does not answer, or refuses"

_DISK_IS_FULL = "disk_is_full"
_UNSHARED = "unshared"
"""What a trial reports instead of an epoch when the disk was full, or when its node does not see the study's
folder."""


@dataclass(frozen=True)
class Outcome:
    """How a study ended: trials by state, over all of the study's sessions."""

    complete: int
    stopped: int
    diverged: int
    failed: int
    missing: int
    """Trials that have yet to end, because the user interrupted the study or its budget is spent."""

    budget_is_spent: bool
    """Whether trials are missing because the budget is spent, and none that ran was interrupted."""


def run_study(study: Study) -> Outcome:
    """Train what is missing of a study, and return when all has ended or the user interrupts."""
    mirror = Mirror(study.out, study.bucket_url)
    mirror.know_run()
    for begun in (study.out / "checkpoints").glob("*"):
        mirror.fetch_notes(begun.name)  # which say what a trial has taken so far
    try:
        search = Search(study)
    except StorageInternalError as error:
        raise FilesError(_SILENT) from error
    for trial_id in search.charged:
        mirror.push_row(trial_id)
    searcher = _StudySearcher(search, mirror)
    display = Display(study.name, search.num_missing, study.base.training.epochs, study.objectives[0])
    started_here = join_or_start(study)
    try:
        with sigterm_as_interrupt(display):
            _tune(study, search, searcher, mirror, display)
    except Exception as error:
        searcher.broken = searcher.broken or error
    finally:
        if started_here:
            ray.shutdown()
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # which Ray has reset
    _raise_what_broke(searcher, study.out)
    if not search.num_missing:
        write_ended(study.out)
        mirror.push("manifest.json")
    # In a process of its own, with which the memory goes that reading so many files takes.
    context = get_context("spawn")
    with ProcessPoolExecutor(1, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as other:
        states = other.submit(mirror.finish).result()
    return Outcome(
        complete=states["COMPLETE"],
        stopped=states["STOPPED"],
        diverged=states["DIVERGED"],
        failed=states["FAILED"],
        missing=search.num_missing,
        budget_is_spent=searcher.budget_is_spent and not search.num_running,
    )


def _tune(study: Study, search: Search, searcher: "_StudySearcher", mirror: Mirror, display: Display) -> None:
    """Have Ray Tune train what the search serves, until there is no more or the user interrupts."""
    concurrent = searcher.slots = _concurrency(study)
    use_gpu = study.gpus_per_worker > 0
    in_process = study.workers == 1 and not use_gpu
    threads = max(1, min(_available("CPU") // concurrent, _cpus_of_a_node()))
    if in_process:
        trainable = tune.with_resources(_train_in_process(threads, mirror), {"CPU": threads})
    else:
        trainable = tune.with_resources(
            _train_by_workers(study.workers, study.gpus_per_worker, mirror),
            {"CPU": 0, "memory": DRIVER_MEMORY},
        )
    with display, Loggers(study, mirror.read_measurements) as loggers:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=_Scheduler(search, searcher, mirror),
                metric=study.objectives[0],
                mode="max",
                num_samples=-1,
                max_concurrent_trials=concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(study.out),
                verbose=0,
                callbacks=[_Follow(display, loggers, searcher, starts_at_once=in_process)],
                stop=_Stopper(searcher),
                failure_config=tune.FailureConfig(max_failures=MAX_CRASHES),
            ),
        )
        tuner.fit()
        display.expect(searcher.num_missing)


def _raise_what_broke(searcher: "_StudySearcher", out: Path) -> None:
    """End the study with what was no trial's fault, if there was something."""
    broken = searcher.broken
    if isinstance(broken, StorageInternalError):
        raise FilesError(_SILENT) from broken
    if broken is not None and not is_disk_full(broken):
        raise broken
    if searcher.unshared:
        raise ClusterError(searcher.unshared)
    if searcher.disk_is_full or broken is not None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))


def _available(resource: str) -> int:
    return int(ray.cluster_resources().get(resource, 0))


def _concurrency(study: Study) -> int:
    """Trials at a time: what was asked, and no more than the cluster holds or the study has."""
    if study.gpus_per_worker > 0:
        room = ray.cluster_resources().get("GPU", 0) / (study.gpus_per_worker * study.workers)
    else:
        room = _available("CPU") / study.workers
    if study.address and study.max_concurrent:  # the autoscaler starts what is missing
        room = max(room, study.max_concurrent)
    if room < 1:
        need = f"{study.gpus_per_worker:g} GPU" if study.gpus_per_worker > 0 else "1 CPU"
        raise ClusterError(
            f"the cluster has no room for a trial of {study.workers} workers with {need} each; "
            f"it has {_available('CPU')} CPUs and {_available('GPU')} GPUs; "
            "if nodes start when they are needed, give --max-concurrent, "
            "and to train on CPUs --gpus-per-worker 0"
        )
    packs = study.trials * -(-study.replicates // study.pack)
    return max(1, min(int(room), study.max_concurrent or int(room), packs))


def _cpus_of_a_node() -> int:
    """Of the largest; a trial in one process cannot have more, however many the cluster has."""
    return max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])


def _train_in_process(threads: int, mirror: Mirror) -> Any:
    def train(config: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(threads)
        with _halt_told():
            train_mirrored(config["trials"], "cpu", tune.report, mirror)

    return train


def _train_by_workers(workers: int, gpus_per_worker: float, mirror: Mirror) -> Any:
    def train(config: dict[str, Any]) -> None:
        with _halt_told():
            train_on_workers(config["trials"], workers, gpus_per_worker, mirror)

    return train


@contextmanager
def _halt_told() -> Iterator[None]:
    """Ends a trial that found no space, or no folder of the study, without a row; the driver learns why."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            tune.report({_DISK_IS_FULL: True})
        elif isinstance(error, ClusterError):
            tune.report({_UNSHARED: str(error)})
        else:
            raise


class _Unsaved:
    """Left out of Ray's snapshots: Optuna's journal and the tables hold all that a resumed study needs."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _StudySearcher(_Unsaved, Searcher):  # type: ignore[misc]
    """Ray Tune's view of the study's search."""

    def __init__(self, search: Search, mirror: Mirror) -> None:
        super().__init__(metric=search.study.objectives[0], mode="max")
        self._search, self._mirror = search, mirror
        self._running: dict[str, list[Trial]] = {}
        self._started_at: dict[str, float] = {}
        self._ends_at = time.monotonic() + search.study.budget_s
        self._is_spent = False
        self._heard_at: dict[str, float] = {}
        self._lost_s: dict[str, float] = {}
        self.slots = 1
        """Packs that are trained at a time."""

        self.broken: Exception | None = None
        """What this process met that is no trial's fault. Ray would hide it in an error of its own, or try a
        trial again; so it is kept, and the study ends."""

        self.raised: dict[str, str] = {}
        """What a trial's process raised last, by Ray's name of the trial; nothing of one that vanished."""

        self.unshared = ""
        """Which node does not see the study's folder, in a sentence; no further trial starts."""

        self.disk_is_full = False
        """Whether a trial could not write; no further one starts, and none of those that run has ended."""

    @property
    def budget_is_spent(self) -> bool:
        """Whether no further trial may start; once so, always so."""
        now, study = time.monotonic(), self._search.study
        running_s = sum(now - started for started in self._started_at.values()) * study.workers
        device_s = self._search.device_s + running_s
        self._is_spent |= now >= self._ends_at or device_s >= study.budget_device_s
        return self._is_spent

    @property
    def num_missing(self) -> int:
        """Trials that have yet to end."""
        return self._search.num_missing

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Whatever goes wrong within, goes no further."""
        try:
            yield
        except Exception as error:
            self.broken = self.broken or error

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        with self.keeping():
            return self._suggest(trial_id)
        return str(Searcher.FINISHED)

    def _suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        must_end = self.budget_is_spent or self.disk_is_full or bool(self.unshared or self.broken)
        # What is ready is shared among the slots that are free, so that none waits while a pack is full.
        share = -(-self._search.num_ready // max(1, self.slots - len(self._running)))
        limit = max(1, min(self._search.study.pack, share))
        trials = [] if must_end else self._search.next_pack(limit)
        if not trials:
            return None if self._search.is_waiting and not must_end else str(Searcher.FINISHED)
        self._mirror.push_run()  # what Optuna knows of a trial is safe before it starts
        self._running[trial_id] = trials
        return {"trials": trials}

    def started(self, trial_id: str) -> None:
        """Take note that a trial trains, and costs."""
        self._started_at.setdefault(trial_id, time.monotonic())
        self.heard(trial_id)

    def heard(self, trial_id: str) -> None:
        """Take note that all that a trial has trained until now is safe."""
        self._heard_at[trial_id] = time.monotonic()

    def vanished(self, trial_id: str) -> None:
        """Take note of what is lost with a trial's process, which is replaced by another."""
        now = time.monotonic()
        lost_s = now - self._heard_at.pop(trial_id, now)  # until it starts again, it only waits
        self._lost_s[trial_id] = self._lost_s.get(trial_id, 0.0) + lost_s * self._search.study.workers

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False, **_: Any
    ) -> None:
        """The tables say what became of a pack's trials, unless they were stopped or their process vanished.

        One of which they hold nothing otherwise was interrupted by the user, and goes on another time.
        """
        with self.keeping():
            if self.broken is None:  # else they are left to another time
                self._complete(trial_id, result, error)

    def _complete(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        if error and trial_id in self._heard_at:
            self.vanished(trial_id)
        self._started_at.pop(trial_id, None)
        self._heard_at.pop(trial_id, None)
        lost_s = self._lost_s.pop(trial_id, 0.0)
        lost_s += (result or {}).get(LOST, 0.0) * self._search.study.workers
        self.disk_is_full |= _DISK_IS_FULL in (result or {})
        self.unshared = (result or {}).get(_UNSHARED, self.unshared)
        reason = self.raised.pop(
            trial_id, f"its process vanished {MAX_CRASHES + 1} times; memory may be short"
        )
        trials = self._running.pop(trial_id)
        halts = self.disk_is_full or bool(self.unshared)
        for trial in trials:
            self._mirror.ended(trial.trial_id)
            is_early = (result or {}).get("epoch", 0) < trial.config.training.epochs
            is_stopped = is_early and self._search.is_stopped(trial)
            has_ended = bool((result or {}).get("done")) and not (halts or is_stopped)
            row = _find_row(trial, has_ended=has_ended)
            if row is None and has_ended:
                record_end(trial, "FAILED", f"it has ended, but its row has not come to {trial.out}")
            elif row is None and error:
                record_end(trial, "FAILED", reason)
            elif row is None and is_stopped:
                record_end(trial, "STOPPED")
            elif row is None:
                continue
            if lost_s:
                store.write_lost(trial.out, trial.trial_id, lost_s / len(trials))
            self._search.ended(trial)
            self._mirror.push_row(trial.trial_id)
        self._mirror.push_run()

    def save(self, checkpoint_path: str) -> None:
        """Write nothing."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Write nothing."""


def _find_row(trial: Trial, *, has_ended: bool) -> dict[str, Any] | None:
    """A trial's row; of one that has ended elsewhere it may take a network folder a while to show it."""
    folder, row = trial.out / "results" / "trials", None
    for _ in range(_ROW_S if has_ended else 1):
        with suppress(OSError):
            list(folder.iterdir())  # else a row that was once missing is not looked for
        row = store.read_trial(trial.out, trial.trial_id)
        if row is not None or not has_ended:
            break
        time.sleep(1)
    return row


class _Stopper(_Unsaved, tune.Stopper):  # type: ignore[misc]
    """Ends all trials once this process has met what is no trial's fault."""

    def __init__(self, searcher: _StudySearcher) -> None:
        self._searcher = searcher

    def __call__(self, *_: Any) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._searcher.broken is not None


class _Scheduler(_Unsaved, FIFOScheduler):  # type: ignore[misc]
    """Asks the study's search, after each evaluation, whether to stop the trial."""

    def __init__(self, search: Search, searcher: _StudySearcher, mirror: Mirror) -> None:
        super().__init__()
        self._search, self._searcher, self._mirror = search, searcher, mirror

    def on_trial_result(self, _: Any, trial: Any, result: dict[str, Any]) -> str:
        with self._searcher.keeping():
            stops = [
                self._search.reported(own, result["epoch"], value)
                for own, value in _shown(trial, result)
                if value is not None
            ]
            self._mirror.push_run()
            return str(self.STOP if any(stops) else self.CONTINUE)
        return str(self.CONTINUE)

    def on_trial_error(self, _: Any, trial: Any) -> None:
        """Keep what Ray will not tell the searcher: which error it was."""
        file = trial.pickled_error_file
        error = pickle.loads(Path(file).read_bytes()) if file else None
        if isinstance(error, RayTaskError):
            self._searcher.raised[trial.trial_id] = str(error)


class _Follow(_Unsaved, TrialProgressCallback):  # type: ignore[misc]
    """Passes what happens on to display, loggers and searcher, in the place of what Ray would print of it."""

    def __init__(
        self, display: Display, loggers: Loggers, searcher: _StudySearcher, *, starts_at_once: bool
    ) -> None:
        self._display, self._loggers, self._searcher = display, loggers, searcher
        self._starts_at_once = starts_at_once  # and not when its workers have what they need

    def on_step_end(self, **_: Any) -> None:
        self._display.expect(self._searcher.num_missing)

    def on_trial_start(self, *, trial: Any, **_: Any) -> None:
        if self._starts_at_once:
            self._searcher.started(trial.trial_id)
        for own in trial.config["trials"]:
            self._display.started(own)

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **_: Any) -> None:
        self._searcher.started(trial.trial_id)
        with self._searcher.keeping():
            for own, value in _shown(trial, result):
                self._display.progressed(own, result["epoch"], value)
                self._loggers.progressed(own)

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
        with self._searcher.keeping():
            for own in trial.config["trials"]:
                self._display.ended(own)
                self._loggers.ended(own)
        # Ray would keep statistics of every number of every trial until the study ends.
        trial.run_metadata.metric_analysis, trial.run_metadata.metric_n_steps = {}, {}

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        self.on_trial_complete(trial=trial)

    def on_trial_recover(self, *, trial: Any, **_: Any) -> None:
        self._searcher.vanished(trial.trial_id)


def _shown(trial: Any, result: dict[str, Any]) -> list[tuple[Trial, float | None]]:
    """Which of a pack's trials a report is about, with the first objective where it was evaluated."""
    keys = {f"shown/{own.trial_id}": own for own in trial.config["trials"]}
    return [(own, result[key]) for key, own in keys.items() if key in result]
