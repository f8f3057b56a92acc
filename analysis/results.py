"""What a study left behind, as the report sees it: runs, configs, replicates, and how they ended."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite, log
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd

from study.store import LOWER_IS_BETTER, UNITS

_ROUNDING = 1e-9
"""Shares that differ by less are equal."""


class Quantity(NamedTuple):
    """What a measurement measures; all but the split as the table `measurements` names it."""

    metric: str
    posterior: str = ""
    given: str = ""
    target: str = ""
    split: str = "test"
    attribute: str = ""

    @property
    def title(self) -> str:
        """The metric in words: "mean coherence"."""
        return self.metric.replace("_", " ").replace("frechet", "Fréchet")

    @property
    def label(self) -> str:
        """In words, with the posterior: "mean coherence (product)"."""
        return self.title + (f" ({self.posterior})" if self.posterior else "")

    @property
    def axis_label(self) -> str:
        """The same with its unit, if it has one: "loss in nats per sample"."""
        return self.label + (f" in {UNITS[self.metric]}" if self.metric in UNITS else "")

    @property
    def num_given(self) -> int:
        """Modalities that are given."""
        return len(self.given.split("+")) if self.given else 0

    @property
    def is_of_given(self) -> bool:
        """Whether its target was itself given."""
        return self.target in self.given.split("+") if self.target else False

    @property
    def decimals(self) -> int:
        """Digits to show: shares get three, nats one."""
        return 1 if self.metric in UNITS else 3

    @property
    def bounds(self) -> tuple[float, float]:
        """The values that it can take: shares lie in [0, 1]."""
        return (-inf, inf) if self.metric in UNITS else (0.0, 1.0)

    @property
    def lower_is_better(self) -> bool:
        """Whether it improves downwards."""
        return self.metric in LOWER_IS_BETTER


@dataclass(frozen=True)
class Run:
    """One run folder: what was asked and where it ran."""

    folder: Path
    label: str
    """Tells the run from the others of a report."""

    study: Mapping[str, Any]
    """study.json, or what the trials tell of it; empty if there is neither."""

    manifest: Mapping[str, Any]
    """manifest.json; empty if there is none."""

    where: str
    """The folder as it was given: a path, or a URL of which `folder` is a copy."""

    knows_base: bool
    """Whether study.json tells the base config; else the first trial's config stands for what all share."""

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.study.get("study") or self.folder.resolve().name)

    @property
    def commit(self) -> str:
        """The code's, empty if unknown."""
        return str(self.manifest.get("commit") or "")

    @property
    def num_classes(self) -> int | None:
        """Of its data set; manifests of the first studies, all of ten classes, do not tell."""
        data = self.manifest.get("data")
        return int(data.get("num_classes", 10)) if data else None

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to train; fewer trials than planned if its sampler repeated configs."""
        return bool(self.manifest.get("ended_at"))

    @property
    def num_planned(self) -> int:
        """Trials that were asked for; zero if unknown."""
        trials, confirm = (int(self.study.get(name) or 0) for name in ("trials", "confirm"))
        confirming = (confirm + 1) * int(self.study.get("confirm_replicates") or 0)
        return trials * int(self.study.get("replicates") or 0) + confirming


@dataclass(frozen=True)
class Source:
    """One run and its rows; `prefix` leads its ids where several runs are compared."""

    run: Run
    prefix: str
    rows: Sequence[Mapping[str, Any]]
    trials: pd.DataFrame
    measurements: pd.DataFrame
    evaluated: pd.DataFrame

    @property
    def metric(self) -> str | None:
        """What the study is judged by, if it says so."""
        first = self.rows[0]["objective_metric"] if self.rows else None
        return self.run.study.get("objective_metric") or first

    @property
    def objectives(self) -> list[str]:
        """All that the study maximises, the metric by which it is judged first."""
        return self.run.study.get("objectives") or [self.metric or ""]

    def by_config(self, *, confirming: bool) -> dict[str, list[Mapping[str, Any]]]:
        """The rows of the confirmation, or of the search, by the hash of their config: kept apart, since the
        former exist only of configs that were good, perhaps by chance."""
        found: dict[str, list[Mapping[str, Any]]] = {}
        for row in self.rows:
            if (row["phase"] == "confirm") == confirming:
                found.setdefault(row["config_hash"], []).append(row)
        return found


@dataclass(frozen=True)
class Trial:
    """One ended trial."""

    trial_id: str
    replicate: int
    state: str
    error: str
    epochs: int
    device: str
    device_s: float
    lost_s: float
    """Device-seconds that vanished with its processes, beyond `device_s`."""

    evaluation_share: float | None
    """Of its device time; None if it was not taken."""

    objective_value: float | None
    samples: Path
    """Where the pictures of its generated samples lie, if they were drawn."""

    @property
    def overview(self) -> Path:
        """The picture that sums up the others."""
        return self.samples / "overview.png"

    @property
    def is_complete(self) -> bool:
        """Whether it trained to the end; only such trials are compared."""
        return self.state == "COMPLETE"

    @classmethod
    def of(cls, row: Mapping[str, Any], folder: Path) -> "Trial":
        """The trial of a row of the table `trials` of the run in `folder`."""
        objective, evaluation_s, device_s = row["objective_value"], row["evaluation_s"], row["device_s"]
        is_timed = evaluation_s is not None and device_s  # in a pack the device's time is shared
        return cls(
            trial_id=row["trial_id"],
            replicate=row["replicate"],
            state=row["state"],
            error=row["error"],
            epochs=row["epochs"],
            device=row["device"],
            device_s=device_s,
            lost_s=row["lost_s"] or 0.0,
            evaluation_share=evaluation_s * row["workers"] / device_s if is_timed else None,
            objective_value=objective if objective is not None and isfinite(objective) else None,
            samples=folder / "samples" / row["trial_id"].rpartition("/")[2],
        )


@dataclass(frozen=True)
class Config:
    """One point of the space and its ended trials."""

    config_hash: str
    run: str
    """Label of the run that trained it."""

    params: Mapping[str, Hashable]
    """The swept fields' values, by dotted path."""

    settings: Mapping[str, Any]
    """Every field, nested as the trials' configs are."""

    trials: tuple[Trial, ...]
    is_base: bool
    """Whether no swept field differs from its run's base, as far as that is known."""

    @property
    def complete(self) -> tuple[Trial, ...]:
        """The trials that count."""
        return tuple(trial for trial in self.trials if trial.is_complete)

    @property
    def validation(self) -> float | None:
        """Mean over replicates of the study's objective, by which configs are ranked."""
        values = [trial.objective_value for trial in self.complete if trial.objective_value is not None]
        return fmean(values) if values else None

    @property
    def style_dims(self) -> Mapping[str, int]:
        """The size of each modality's subspace; where one size is for all, under the empty name."""
        size = self.settings.get("model", {}).get("style_dim", 0)
        return size if isinstance(size, dict) else {"": size}

    @property
    def device_s(self) -> float:
        """Device-seconds of a trial, mean over all that ended."""
        return fmean(trial.device_s for trial in self.trials)


@dataclass(frozen=True)
class Running:
    """A trial that has measurements but has not ended."""

    trial_id: str
    run: str
    """Label of its run."""

    epoch: int


@dataclass(frozen=True)
class Factor:
    """A swept field, or one weight of a swept simplex, as something that may have an effect."""

    path: str
    name: str
    levels: tuple[Hashable, ...]
    """In order; empty for a continuous factor."""

    index: int | None = None
    """Position of the weight within a simplex."""

    size: int = 0
    """Of the simplex; runs of other modalities have another one."""

    log: bool = False

    def value(self, config: Config) -> Any:
        """This config's level or number; None where the field does not apply."""
        value = config.params.get(self.path)
        if self.index is None or not isinstance(value, tuple):
            return value
        return value[self.index] if len(value) == self.size else None

    def position(self, value: Any) -> float:
        """Where a value lies on an axis: a level's place, or the number, its logarithm on a log scale."""
        if self.levels:
            return float(self.levels.index(value))
        return log(value) if self.log else float(value)


@dataclass(frozen=True)
class Results:
    """Everything that a report is made of: one run, or several that it compares."""

    runs: tuple[Run, ...]
    trial_rows: pd.DataFrame
    """The table `trials` of all runs, with the label of the run in front."""

    measurements: pd.DataFrame
    """The table `measurements` of all runs, with the label of the run in front."""

    configs: tuple[Config, ...]
    """Best first, by the mean of the validation objective; configs without a complete trial come last.
    Where several runs are compared, their labels lead the ids of configs and trials."""

    confirmed: tuple[Config, ...]
    """Those that were trained with fresh seeds after a search, with these trials alone, best first."""

    factors: tuple[Factor, ...]
    aliases: Mapping[str, tuple[str, ...]]
    """Fields that differ between the runs as this factor's field does, or as it determines, by its path."""

    domains: Mapping[str, Mapping[str, Any]]
    """What each swept field may be, by path."""

    running: tuple[Running, ...]
    modalities: tuple[str, ...]
    objective: Quantity
    """The study's objective on the test split; the first, where it has several."""

    objectives: tuple[Quantity, ...]
    """All of the study's objectives on the test split."""

    last: Mapping[Quantity, Mapping[str, float]]
    """Value after the last epoch, by trial id; complete trials only."""

    curves: Mapping[str, Sequence[tuple[int, float]]]
    """The objective on the validation split against the epoch, by trial id; all trials."""

    @property
    def trials(self) -> list[Trial]:
        """All ended trials."""
        return [trial for config in (*self.configs, *self.confirmed) for trial in config.trials]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The rank of each config of the search, by its hash: the number by which a report calls it."""
        return {config.config_hash: number for number, config in enumerate(self.configs, 1)}

    @property
    def chance(self) -> float | None:
        """What a guess reaches, at class or attributes; None if it is unknown or the runs differ."""
        base_rate = self.find("mean_base_rate")
        if base_rate:
            rates = self.last[base_rate].values()
            return fmean(rates) if max(rates) - min(rates) < _ROUNDING else None
        numbers = {run.num_classes for run in self.runs}
        found = numbers.pop()
        return 1 / found if found and not numbers else None

    @property
    def lower_is_better(self) -> bool:
        """Whether the objective improves downwards."""
        return self.objective.lower_is_better

    @property
    def swept(self) -> dict[str, str]:
        """Short names of the swept fields, by path."""
        return {
            factor.path: factor.name if factor.index is None else factor.name.split("[")[0]
            for factor in self.factors
        }

    @property
    def num_configs(self) -> int:
        """As planned, or as many as were tried."""
        tried = Counter(config.run for config in self.configs)
        planned = {run.label: int(run.study.get("trials") or 0) for run in self.runs if not run.has_ended}
        return sum(max(tried[run.label], planned.get(run.label, 0)) for run in self.runs)

    def num_replicates(self, config: Config) -> int:
        """As planned in its run, or the most that a config has there."""
        (run,) = (run for run in self.runs if run.label == config.run)
        most = max((len(each.trials) for each in self.configs if each.run == run.label), default=0)
        return int(run.study.get("replicates") or most)

    @property
    def num_missing(self) -> int:
        """Planned trials that have neither ended nor measured anything."""
        begun = Counter([*self.trial_rows["run"], *(each.run for each in self.running)])
        return sum(max(0, run.num_planned - begun[run.label]) for run in self.runs if not run.has_ended)

    @cached_property
    def num_unmeasured(self) -> int:
        """Trials that were trained to the end, or stopped, whose measurements are gone."""
        ended = self.trial_rows[self.trial_rows["state"].isin(("COMPLETE", "STOPPED"))]
        measured = self.measurements[["run", "trial_id"]].drop_duplicates()
        names, known = (set(zip(each["run"], each["trial_id"], strict=True)) for each in (ended, measured))
        return len(names - known)

    @property
    def importance_samples(self) -> list[int]:
        """By how many draws the configs' log-likelihoods are estimated, as far as configs tell."""
        draws = (each.settings.get("evaluation", {}).get("importance_samples") for each in self.configs)
        return sorted({number for number in draws if number})

    def values(self, config: Config, quantity: Quantity) -> list[float]:
        """One value a complete replicate that has it."""
        by_trial = self.last.get(quantity, {})
        return [by_trial[trial.trial_id] for trial in config.complete if trial.trial_id in by_trial]

    def by_config(self, quantity: Quantity) -> dict[str, list[float]]:
        """The same for each config, by its hash."""
        return {config.config_hash: self.values(config, quantity) for config in self.configs}

    def total(self, config: Config, quantities: Sequence[Quantity]) -> dict[str, float]:
        """The sum of several quantities, by the id of each complete replicate that has them all."""
        rows = [self.last.get(quantity, {}) for quantity in quantities]
        ids = [trial.trial_id for trial in config.complete]
        return {name: sum(row[name] for row in rows) for name in ids if all(name in row for row in rows)}

    def find(self, metric: str, given: str = "", split: str = "test") -> Quantity | None:
        """The quantity of this metric; where posteriors compete, the product's."""
        found = [
            quantity
            for quantity in self.last
            if (quantity.metric, quantity.given, quantity.split) == (metric, given, split)
            and quantity.target in ("", "joint")
            and not quantity.attribute
        ]
        return min(found, key=lambda quantity: preference(quantity.posterior), default=None)


def preference(posterior: str) -> int:
    """Which posterior stands for a quantity where several compete: the smallest."""
    return ("product", "", "mixture").index(posterior) if posterior in ("product", "", "mixture") else 3


def level_label(value: object) -> str:
    """A level or a swept value as figures and tables write it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    if isinstance(value, tuple):
        return " / ".join(weight_labels(value))
    return str(value)


def weight_labels(weights: Sequence[object]) -> list[str]:
    """The weights of a simplex with two decimals, or three where two do not hold them."""
    numbers = [weight for weight in weights if isinstance(weight, float)]
    decimals = 2 if all(abs(round(number, 2) - number) < _ROUNDING for number in numbers) else 3
    return [f"{each:.{decimals}f}" if isinstance(each, float) else str(each) for each in weights]


def weight_names(size: int, modalities: Sequence[str]) -> list[str]:
    """Names of a simplex' weights: the modalities in order, the prior last."""
    return (
        [*modalities, "prior"] if size == len(modalities) + 1 else [str(index + 1) for index in range(size)]
    )
