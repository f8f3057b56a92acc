"""Which config and replicate comes next: Optuna proposes, the tables remember. Knows no Ray."""

import hashlib
import json
import logging
import shutil
import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite, sqrt
from statistics import stdev
from typing import Any

import optuna
from optuna.trial import TrialState

from study import store
from study.config import (
    FIRST_FRESH,
    Phase,
    Study,
    TrialConfig,
    field_paths,
    field_value,
    objective_curve,
    trial_id,
)
from study.device_time import DeviceTime
from study.record import Trial, begun_try, num_threads
from study.storage import open_study
from study.tidy import Checkpoints, Values
from study.trial import can_pack

_log = logging.getLogger(__name__)

_AGAIN = "again"
"""User attribute of an Optuna trial that repeats one whose config was retried: the number of that one."""


@dataclass
class _Config:
    """One config of the study: the Optuna trials that proposed it, and how far its replicates are."""

    params: dict[str, Any]
    config: TrialConfig
    numbers: list[int] = field(default_factory=list)
    values: dict[int, Values | None] = field(default_factory=dict)
    """By replicate that has ended; none where it diverged, failed or was stopped."""

    curve: dict[int, dict[int, float]] = field(default_factory=dict)
    """By epoch, then replicate: the first objective on the way."""

    judged: set[int] = field(default_factory=set)
    """Epochs of which the scheduler knows the mean."""

    is_stopped: bool = False

    @property
    def means(self) -> Values | None:
        """Over replicates; none if one of them has no values."""
        return tuple(sum(each) / len(each) for each in self._replicates) or None

    @property
    def standard_errors(self) -> Values:
        """Of the means; none of a single replicate."""
        return tuple(stdev(each) / sqrt(len(each)) for each in self._replicates if len(each) > 1)

    @property
    def _replicates(self) -> list[Values]:
        """By objective, the values of all replicates; none if one of them has no values."""
        values = [each for each in self.values.values() if each is not None]
        return list(zip(*values, strict=True)) if len(values) == len(self.values) else []


class Search:
    """Serves the trials of a study one by one and tells the sampler what became of each config.

    An Optuna trial is a config; its value is the mean over the config's replicates. What the
    tables hold as ended is served again only if the study retries its state, so a study that was killed
    goes on, and one whose budget was raised is extended, in the same way: by serving what is missing.

    When all has ended, the confirmation trains the best configs and the base config with fresh seeds, of
    which the sampler hears nothing.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self._optuna = open_study(study, _pruner(study))
        self._grid = study.space.grid() if study.sampler == "grid" else []
        known = field_paths(study.base)  # the name of a case is none of them
        self._swept = {
            path: [*values, *([field_value(study.base, path)] if path in known else [])]
            for path, values in study.space.examples().items()
        }
        ended = store.ended_trials(study.out) if (study.out / "results").is_dir() else []
        self._time = DeviceTime(study.out)
        self.charged = [row["trial_id"] for row in ended if self._time.ended(row)]
        """Trials whose rows were told only now what earlier tries had taken."""

        self._checkpoints = Checkpoints(study.out / "checkpoints", study.keep_checkpoints)
        for row in ended:
            self._checkpoints.ended(row, self._values(row))
        self._ended = {row["trial_id"]: row for row in ended if row["state"].lower() not in study.retry}
        measured = store.measured_trials(study.out)
        self._begun = measured | {row["trial_id"] for row in ended}  # whether or not they have ended
        for name in self._ended.keys() - measured:
            if self._ended[name]["state"] in ("COMPLETE", "STOPPED"):  # a user deleted what was damaged
                del self._ended[name]
        self._configs: dict[str, _Config] = {}
        self._running: dict[int, optuna.Trial] = {}
        """By number, those of which the sampler has yet to be told."""

        self._queue: deque[Trial] = deque()
        self._num_proposed = 0
        self.num_running = 0
        """Trials that were served and have not ended."""

        proposed = self._optuna.get_trials(deepcopy=False)
        self._told_again = {trial.user_attrs[_AGAIN] for trial in proposed if _AGAIN in trial.user_attrs}
        for trial in proposed:
            if _AGAIN in trial.user_attrs:
                continue
            if not trial.state.is_finished():
                self._running[trial.number] = optuna.Trial(self._optuna, trial._trial_id)
            params = json.loads(trial.user_attrs["params"]) if trial.user_attrs else None
            self._adopt(trial.number, params, trial.intermediate_values)
        self._has_told_versions = False
        self._is_confirming = False
        if study.confirm and self._search_has_ended:
            self._confirm()

    def next(self) -> Trial | None:
        """A trial that has yet to be trained; none when there is none, or none yet: see `is_waiting`."""
        while not self._queue and self._num_proposed < self.study.trials:
            self._propose()
        if self.study.confirm and self._search_has_ended:
            self._confirm()
        if not self._queue:
            return None
        trial = self._queue.popleft()
        self._forget(trial)
        self.num_running += 1
        return trial

    def next_pack(self, limit: int) -> list[Trial]:
        """The next trial and those after it that can be trained with it as one; none as in `next`.

        Under a scheduler, which stops configs one by one, these are replicates of its config alone.

        Args:
            limit: how many trials at most.
        """
        trials: list[Trial] = []
        while len(trials) < limit:
            if trials and not self._goes_with(trials[0]):
                break
            trial = self.next()
            if trial is None:
                break
            trials.append(trial)
        return trials

    def _goes_with(self, first: Trial) -> bool:
        """Whether the next trial can be in a pack with this one."""
        stops_configs = self.study.scheduler != "none"
        while not self._queue and not stops_configs and self._num_proposed < self.study.trials:
            self._propose()
        if not self._queue:
            return False
        other = self._queue[0]
        if stops_configs:
            return other.config_hash == first.config_hash
        return can_pack(first.config, other.config)

    @property
    def device_s(self) -> float:
        """Device-seconds that trials have taken, over all sessions, with those that were lost."""
        return self._time.total_s

    @property
    def is_waiting(self) -> bool:
        """Whether there may be further trials once those that are running have ended."""
        return self.study.confirm > 0 and not self._is_confirming

    @property
    def num_missing(self) -> int:
        """Trials that have yet to end, with those that the sampler has yet to propose."""
        unconfirmed = (self.study.confirm + 1) * self.study.confirm_replicates if self.is_waiting else 0
        return self.num_running + self.num_ready + unconfirmed

    @property
    def num_ready(self) -> int:
        """Trials that could start now."""
        unproposed = max(0, self.study.trials - self._num_proposed) * self.study.replicates
        return len(self._queue) + unproposed

    @property
    def _search_has_ended(self) -> bool:
        is_proposed = self._num_proposed >= self.study.trials
        return is_proposed and not self._queue and not self.num_running and not self._is_confirming

    def reported(self, trial: Trial, epoch: int, value: float) -> bool:
        """Take note of a running trial's first objective; whether its config is unpromising and should stop.

        A config is judged at an epoch when all its replicates have reached it, by their mean. Nothing is
        judged while configs are confirmed, nor by several objectives: Optuna cannot.
        """
        if trial.phase == "confirm":
            return False
        config = self._configs[trial.config_hash]
        config.curve.setdefault(epoch, {})[trial.replicate] = value
        self._judge(config, epoch)
        return config.is_stopped and epoch < config.config.training.epochs

    def _judge(self, config: _Config, epoch: int) -> None:
        """Have the scheduler judge a config, once, at an epoch that all its replicates have reached."""
        values = config.curve[epoch].values()
        proposed = self._running.get(config.numbers[0])
        is_whole = len(values) == self.study.replicates and all(map(isfinite, values))
        if proposed and is_whole and len(self.study.objectives) == 1 and epoch not in config.judged:
            config.judged.add(epoch)
            proposed.report(sum(values) / len(values), epoch)
            config.is_stopped |= epoch < config.config.training.epochs and proposed.should_prune()

    def is_stopped(self, trial: Trial) -> bool:
        """Whether the trial's config was found unpromising."""
        return trial.phase == "search" and self._configs[trial.config_hash].is_stopped

    def ended(self, trial: Trial) -> None:
        """Take note of a trial that has ended: its row is in the table."""
        self.num_running -= 1
        row = store.read_trial(trial.out, trial.trial_id)
        assert row is not None, trial.trial_id
        values = self._values(row)
        self._compare_versions(row)
        self._time.ended(row)
        self._checkpoints.ended(row, values)
        if trial.phase == "confirm":
            return
        config = self._configs[trial.config_hash]
        config.values[trial.replicate] = values
        if len(config.values) == self.study.replicates:
            for number in config.numbers:
                self._tell(number, config)

    def _compare_versions(self, row: Mapping[str, Any]) -> None:
        """Tell, once, of a trial whose process had other packages than the study's, on another node."""
        own, others = json.loads(self.study.versions), json.loads(row["versions"])
        found = [
            f"{name} {others.get(name)}, not {own[name]}" for name in own if others.get(name) != own[name]
        ]
        if found and not self._has_told_versions:
            self._has_told_versions = True
            told = "trial %s was trained on %s with %s; give all nodes the same packages"
            _log.warning(told, row["trial_id"], row["host"], ", ".join(found))

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
        for name, weight in self._weights(params).items():
            trial.set_user_attr(name, weight)
        self._running[trial.number] = trial
        self._adopt(trial.number, params)

    def _weights(self, params: Mapping[str, Any]) -> dict[str, float]:
        """The weights of simplexes by their names: what optuna-dashboard can plot instead of their draws."""
        modalities = self.study.base.modalities
        weights: dict[str, float] = {}
        for path, value in params.items():
            if isinstance(value, tuple):
                whole = len(value) == len(modalities) + 1
                names = [*modalities, "prior"] if whole else range(len(value))
                weights |= {f"{path}.{name}": each for name, each in zip(names, value, strict=True)}
        return weights

    def _adopt(self, number: int, params: Mapping[str, Any] | None, judged: Iterable[int] = ()) -> None:
        """Queue what is missing of a config that the sampler proposed, now or before a restart.

        What all its replicates had measured by then is judged now, but for the epochs that were.
        """
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
        config = self._configs.setdefault(key, _Config(dict(params), base, judged=set(judged)))
        config.numbers.append(number)
        for replicate in range(self.study.replicates if not known else 0):
            row = self._ended.get(trial_id(key, replicate))
            if row is None:
                self._enqueue(self._trial(config, replicate, "search"))
            else:
                config.values[replicate] = self._values(row)
                config.is_stopped |= row["state"] == "STOPPED"
            if number in self._running:
                rows = store.read_measurements(self.study.out, trial_id(key, replicate))
                for epoch, value in objective_curve(rows, self.study.objectives[0]).items():
                    config.curve.setdefault(epoch, {})[replicate] = value
        for epoch in sorted(config.curve):
            self._judge(config, epoch)
        if len(config.values) == self.study.replicates:
            self._tell(number, config)

    def _enqueue(self, trial: Trial) -> None:
        """Queue a trial; what an interrupted session has trained of it counts as taken."""
        self._queue.append(trial)
        begun = begun_try(trial) if store.read_trial(trial.out, trial.trial_id) is None else None
        if begun is None:
            return
        device = begun.pop("device")
        if device is not None and (num_threads(device) is None) != (self.study.gpus_per_worker > 0):
            told = "trial %s starts anew, as its checkpoint is of another kind of device (%s)"
            _log.warning(told, trial.trial_id, device)
        self._time.begun(trial.trial_id, **begun)

    def _forget(self, trial: Trial) -> None:
        """Remove what an earlier try has left; one that diverged would do so again from its checkpoint."""
        row = store.read_trial(trial.out, trial.trial_id)
        if row is not None:
            begun = begun_try(trial)
            self._time.retried(row, begun["device_s"] if begun else 0.0)
            store.forget_trial(trial.out, trial.trial_id)
            if row["state"] == "DIVERGED":
                shutil.rmtree(trial.checkpoints, ignore_errors=True)

    def _tell(self, number: int, config: _Config) -> None:
        trial = self._running.pop(number, None)
        means = config.means
        if means is not None:
            errors = self._standard_errors(config)
            for name, error in errors.items():
                if trial is not None:
                    trial.set_user_attr(name, error)
            told = self._optuna.tell(number, list(means), skip_if_finished=True)
            if told.state == TrialState.FAIL and number not in self._told_again:
                self._tell_again(told, means, errors)
        elif config.is_stopped:
            self._optuna.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
        else:
            self._optuna.tell(number, state=TrialState.FAIL, skip_if_finished=True)

    def _standard_errors(self, config: _Config) -> dict[str, float]:
        """Of a config's means, by their names in Optuna, where there are several replicates."""
        errors = zip(self.study.objectives, config.standard_errors, strict=False)
        return {f"standard_error.{name}": error for name, error in errors}

    def _tell_again(self, told: optuna.trial.FrozenTrial, means: Values, errors: Mapping[str, float]) -> None:
        """Tell the sampler what a retried config is worth, by another trial: an ended one stays as it is."""
        self._told_again.add(told.number)
        attributes = {**told.user_attrs, **errors, _AGAIN: told.number}
        trial = optuna.trial.create_trial(
            params=told.params, distributions=told.distributions, user_attrs=attributes, values=list(means)
        )
        self._optuna.add_trial(trial)

    def _confirm(self) -> None:
        """Queue what is missing of the confirmation: of the best configs by their means, and of the base.

        Of others, which were the best before the study was extended, only what has begun.
        """
        self._is_confirming = True
        study = self.study
        base_hash = study.base.config_hash()
        ranked = sorted(
            (-means[0], key)
            for key, config in self._configs.items()
            if (means := config.means) is not None and key != base_hash
        )
        if len(ranked) < study.confirm:
            told = "--confirm %d is cut to %d: no further config has all its replicates complete"
            _log.warning(told, study.confirm, len(ranked))
        if not ranked:
            return
        chosen = [base_hash, *(key for _, key in ranked[: study.confirm])]
        known = field_paths(study.base)
        paths = dict.fromkeys(path for config in self._configs.values() for path in config.params)
        base = _Config({path: field_value(study.base, path) for path in paths if path in known}, study.base)
        configs = {**self._configs, base_hash: base}
        for key in dict.fromkeys((*chosen, *configs)):
            for replicate in range(FIRST_FRESH, FIRST_FRESH + study.confirm_replicates):
                name = trial_id(key, replicate)
                if name not in self._ended and (key in chosen or name in self._begun):
                    self._enqueue(self._trial(configs[key], replicate, "confirm"))

    def _values(self, row: Mapping[str, Any]) -> Values | None:
        """The objectives in a trial's row, if it has them all."""
        names = self.study.objectives
        columns = [f"objective.{name}" for name in names] if len(names) > 1 else ["objective_value"]
        values = tuple(row[column] for column in columns)
        return values if all(value is not None and isfinite(value) for value in values) else None

    def _trial(self, config: _Config, replicate: int, phase: Phase) -> Trial:
        study = self.study
        return Trial(
            study=study.name,
            space=study.space_name,
            out=study.out,
            config=config.config.for_replicate(study.seed, replicate),
            params=config.params,
            replicate=replicate,
            phase=phase,
            objectives=study.objectives,
            workers=study.workers,
            commit=study.commit,
            dirty=study.dirty,
            versions=study.versions,
            swept=self._swept,
        )


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
            return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        case "qmc":  # one sequence for the whole study; the storage knows how far it is
            return optuna.samplers.QMCSampler(
                seed=study_seed,
                scramble=True,
                independent_sampler=optuna.samplers.RandomSampler(seed=seed),  # of what not every config has
                warn_independent_sampling=False,
            )
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
