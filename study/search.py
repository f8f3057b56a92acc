"""Which config and replicate comes next: Optuna proposes, the tables remember. Knows no Ray."""

import hashlib
import json
import logging
import shutil
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from study import store
from study.config import OBJECTIVE_METRIC, Study, TrialConfig, trial_id
from study.record import Trial

_log = logging.getLogger(__name__)

_AGAIN = "again"
"""User attribute of an Optuna trial that repeats one whose config was retried: the number of that one."""


@dataclass
class _Config:
    """One config of the study: the Optuna trials that proposed it, and how far its replicates are."""

    params: dict[str, Any]
    config: TrialConfig
    numbers: list[int] = field(default_factory=list)
    values: dict[int, float | None] = field(default_factory=dict)
    """By replicate that has ended; none where it diverged, failed or was stopped."""

    curve: dict[int, dict[int, float]] = field(default_factory=dict)
    """By epoch, then replicate: the objective on the way."""

    is_stopped: bool = False


class Search:
    """Serves the trials of a study one by one and tells the sampler what became of each config.

    An Optuna trial is a config; its value is the mean over the config's replicates. What the
    tables hold as ended is served again only if the study retries its state, so a study that was killed
    goes on, and one whose budget was raised is extended, in the same way: by serving what is missing.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = JournalStorage(JournalFileBackend(str(study.out / "optuna.journal")))
        self._optuna = optuna.create_study(
            storage=storage,
            study_name=study.name,
            direction="maximize",
            pruner=_pruner(study),
            load_if_exists=True,
        )
        self._grid = study.space.grid() if study.sampler == "grid" else []
        ended = store.ended_trials(study.out) if (study.out / "results").is_dir() else []
        self._ended = {row["trial_id"]: row for row in ended if row["state"].lower() not in study.retry}
        self._configs: dict[str, _Config] = {}
        self._running: dict[int, optuna.Trial] = {}
        """By number, those of which the sampler has yet to be told."""

        self._queue: deque[Trial] = deque()
        self._num_proposed = self._num_running = 0
        proposed = self._optuna.get_trials(deepcopy=False)
        self._told_again = {trial.user_attrs[_AGAIN] for trial in proposed if _AGAIN in trial.user_attrs}
        for trial in proposed:
            if _AGAIN in trial.user_attrs:
                continue
            if not trial.state.is_finished():
                self._running[trial.number] = optuna.Trial(self._optuna, trial._trial_id)
            self._adopt(trial.number, json.loads(trial.user_attrs["params"]) if trial.user_attrs else None)

    def next(self) -> Trial | None:
        """A trial that has yet to be trained; none when the study has all its trials."""
        while not self._queue:
            if self._num_proposed >= self.study.trials:
                return None
            self._propose()
        trial = self._queue.popleft()
        self._forget(trial)
        self._num_running += 1
        return trial

    @property
    def num_missing(self) -> int:
        """Trials that have yet to end, with those that the sampler has yet to propose."""
        unproposed = max(0, self.study.trials - self._num_proposed) * self.study.replicates
        return self._num_running + len(self._queue) + unproposed

    def reported(self, trial: Trial, epoch: int, value: float) -> bool:
        """Take note of a running trial's objective; whether its config is unpromising and should stop.

        A config is judged at an epoch when all its replicates have reached it, by their mean.
        """
        config = self._configs[trial.config_hash]
        values = config.curve.setdefault(epoch, {})
        is_news = trial.replicate not in values  # not so after a crash
        values[trial.replicate] = value
        is_last = epoch >= trial.config.training.epochs
        proposed = self._running.get(config.numbers[0])
        is_whole = len(values) == self.study.replicates and all(map(isfinite, values.values()))
        if proposed and is_news and is_whole:
            proposed.report(sum(values.values()) / len(values), epoch)
            config.is_stopped |= not is_last and proposed.should_prune()
        return config.is_stopped and not is_last

    def is_stopped(self, trial: Trial) -> bool:
        """Whether the trial's config was found unpromising."""
        return self._configs[trial.config_hash].is_stopped

    def ended(self, trial: Trial, value: float | None) -> None:
        """Take note of a trial's value: none if it diverged, failed or was stopped."""
        self._num_running -= 1
        config = self._configs[trial.config_hash]
        config.values[trial.replicate] = _finite(value)
        if len(config.values) == self.study.replicates:
            for number in config.numbers:
                self._tell(number, config)

    def _propose(self) -> None:
        """Ask for a new config; the sampler's randomness depends on study seed and position alone."""
        sampler = _sampler(self.study.sampler, self.study.seed, self._num_proposed)
        if self._grid:
            point = self.study.space.encode(self._grid[self._num_proposed])
            sampler = optuna.samplers.PartialFixedSampler(point, sampler)
        self._optuna.sampler = sampler
        trial = self._optuna.ask()
        params = self.study.space.suggest(trial)
        trial.set_user_attr("params", json.dumps(params))
        self._running[trial.number] = trial
        self._adopt(trial.number, params)

    def _adopt(self, number: int, params: Mapping[str, Any] | None) -> None:
        """Queue what is missing of a config that the sampler proposed, now or before a restart."""
        if params is None:  # killed between asking and noting the answer
            self._optuna.tell(number, state=TrialState.FAIL, skip_if_finished=True)
            return
        self._num_proposed += 1
        try:
            base = self.study.space.decode(params, self.study.base)
        except ValueError as refused:
            _log.warning("config %d of the sampler is refused: %s", number, refused)
            self._optuna.tell(number, state=TrialState.FAIL, skip_if_finished=True)
            return
        key = base.config_hash()
        known = key in self._configs
        config = self._configs.setdefault(key, _Config(dict(params), base))
        config.numbers.append(number)
        for replicate in range(self.study.replicates if not known else 0):
            row = self._ended.get(trial_id(key, replicate))
            if row is None:
                self._queue.append(self._trial(config, replicate))
            else:
                config.values[replicate] = _finite(row["objective_value"])
                config.is_stopped |= row["state"] == "STOPPED"
            for epoch, value in self._curve(trial_id(key, replicate)):
                config.curve.setdefault(epoch, {})[replicate] = value
        if len(config.values) == self.study.replicates:
            self._tell(number, config)

    def _forget(self, trial: Trial) -> None:
        """Remove what an earlier try has left; one that diverged would do so again from its checkpoint."""
        row = store.read_trial(trial.out, trial.trial_id)
        if row is not None:
            store.forget_trial(trial.out, trial.trial_id)
            if row["state"] == "DIVERGED":
                shutil.rmtree(trial.checkpoints, ignore_errors=True)

    def _tell(self, number: int, config: _Config) -> None:
        self._running.pop(number, None)
        values = [value for value in config.values.values() if value is not None]
        if len(values) == len(config.values):
            value = sum(values) / len(values)
            told = self._optuna.tell(number, value, skip_if_finished=True)
            if told.state == TrialState.FAIL and number not in self._told_again:
                self._tell_again(told, value)
        elif config.is_stopped:
            self._optuna.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
        else:
            self._optuna.tell(number, state=TrialState.FAIL, skip_if_finished=True)

    def _tell_again(self, told: optuna.trial.FrozenTrial, value: float) -> None:
        """Tell the sampler what a retried config is worth, by another trial: an ended one stays as it is."""
        self._told_again.add(told.number)
        attributes = {**told.user_attrs, _AGAIN: told.number}
        trial = optuna.trial.create_trial(
            params=told.params, distributions=told.distributions, user_attrs=attributes, value=value
        )
        self._optuna.add_trial(trial)

    def _curve(self, name: str) -> Iterator[tuple[int, float]]:
        """The objective of a trial on its way, as far as the tables hold it."""
        for row in store.read_measurements(self.study.out, name):
            if (row["split"], row["metric"], row["posterior"]) == ("validation", OBJECTIVE_METRIC, "product"):
                yield row["epoch"], row["value"]

    def _trial(self, config: _Config, replicate: int) -> Trial:
        study = self.study
        return Trial(
            study=study.name,
            space=study.space_name,
            out=study.out,
            config=config.config.for_replicate(study.seed, replicate),
            params=config.params,
            replicate=replicate,
            workers=study.workers,
            commit=study.commit,
            dirty=study.dirty,
            versions=study.versions,
        )


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def _sampler(name: str, study_seed: int, position: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler, seeded anew for each config, so that a resumed study proposes the same."""
    digest = hashlib.sha256(f"{study_seed}/{position}".encode()).digest()
    seed = int.from_bytes(digest[:4], "big")
    match name:
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
        case "gp":
            return optuna.samplers.GPSampler(seed=seed)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        case "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed)
        case "qmc":  # one sequence for the whole study; the storage knows how far it is
            return optuna.samplers.QMCSampler(seed=study_seed, scramble=True)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(study: Study) -> optuna.pruners.BasePruner:
    """Optuna's pruner, which keeps all that it knows in the storage, so that a resumed study stops alike."""
    match study.scheduler:
        case "asha":
            return optuna.pruners.SuccessiveHalvingPruner(
                min_resource=study.base.evaluation.every, reduction_factor=3
            )
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=4)
    return optuna.pruners.NopPruner()
