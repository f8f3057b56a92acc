"""A run folder as the report sees it: configs, their replicates, and the numbers each trial ended with."""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd

from study.store import LOWER_IS_BETTER, UNITS, read

_MOST_LEVELS = 8
"""A number that takes more values than this is continuous, unless its domain is a Choice."""


class ReportError(ValueError):
    """A run folder that no report can be made of; the message says why."""


class Quantity(NamedTuple):
    """What a measurement measures; all but the split as the table `measurements` names it."""

    metric: str
    posterior: str = ""
    given: str = ""
    target: str = ""
    split: str = "test"

    @property
    def label(self) -> str:
        """In words: "mean coherence (product)"."""
        return self.metric.replace("_", " ") + (f" ({self.posterior})" if self.posterior else "")

    @property
    def decimals(self) -> int:
        """Digits to show: shares get three, nats one."""
        return 1 if self.metric in UNITS else 3


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
    objective_value: float | None

    @property
    def is_complete(self) -> bool:
        """Whether it trained to the end; only such trials are compared."""
        return self.state == "COMPLETE"


@dataclass(frozen=True)
class Config:
    """One point of the space and its ended trials."""

    config_hash: str
    params: Mapping[str, Hashable]
    trials: tuple[Trial, ...]

    @property
    def complete(self) -> tuple[Trial, ...]:
        """The trials that count."""
        return tuple(trial for trial in self.trials if trial.is_complete)

    @property
    def validation(self) -> float | None:
        """Mean over replicates of the study's objective, by which configs are ranked."""
        values = [trial.objective_value for trial in self.complete if trial.objective_value is not None]
        return fmean(values) if values else None


@dataclass(frozen=True)
class Running:
    """A trial that has measurements but has not ended."""

    trial_id: str
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

    log: bool = False

    def value(self, config: Config) -> Any:
        """This config's level or number; None where the field does not apply."""
        value = config.params.get(self.path)
        return value[self.index] if self.index is not None and isinstance(value, tuple) else value


@dataclass(frozen=True)
class Results:
    """Everything that a report is made of."""

    run: Path
    study: Mapping[str, Any]
    """study.json; empty if there is none."""

    manifest: Mapping[str, Any]
    """manifest.json; empty if there is none."""

    configs: tuple[Config, ...]
    """Best first, by the mean of the validation objective; configs without a complete trial come last."""

    factors: tuple[Factor, ...]
    running: tuple[Running, ...]
    modalities: tuple[str, ...]
    objective: Quantity
    """The study's objective on the test split."""

    last: Mapping[Quantity, Mapping[str, float]]
    """Value after the last epoch, by trial id; complete trials only."""

    curves: Mapping[str, Sequence[tuple[int, float]]]
    """The objective on the validation split against the epoch, by trial id; all trials."""

    @property
    def trials(self) -> list[Trial]:
        """All ended trials."""
        return [trial for config in self.configs for trial in config.trials]

    @property
    def lower_is_better(self) -> bool:
        """Whether the objective improves downwards."""
        return self.objective.metric in LOWER_IS_BETTER

    @property
    def swept(self) -> dict[str, str]:
        """Short names of the swept fields, by path."""
        return {factor.path: factor.name.split("[")[0] for factor in self.factors}

    @property
    def num_replicates(self) -> int:
        """As planned, or the most that a config has."""
        planned = self.study.get("replicates")
        return int(planned) if planned else max((len(config.trials) for config in self.configs), default=0)

    @property
    def num_missing(self) -> int:
        """Planned trials that have neither ended nor measured anything."""
        planned = int(self.study.get("trials") or 0) * int(self.study.get("replicates") or 0)
        return max(0, planned - len(self.trials) - len(self.running))

    def values(self, config: Config, quantity: Quantity) -> list[float]:
        """One value a complete replicate that has it."""
        by_trial = self.last.get(quantity, {})
        return [by_trial[trial.trial_id] for trial in config.complete if trial.trial_id in by_trial]

    def total(self, config: Config, quantities: Sequence[Quantity]) -> list[float]:
        """The sum of several quantities, one value a complete replicate that has them all."""
        rows = [self.last.get(quantity, {}) for quantity in quantities]
        ids = [trial.trial_id for trial in config.complete]
        return [sum(row[name] for row in rows) for name in ids if rows and all(name in row for row in rows)]

    def find(self, metric: str, given: str = "", split: str = "test") -> Quantity | None:
        """The quantity of this metric; where posteriors compete, the product's."""
        found = [
            quantity
            for quantity in self.last
            if (quantity.metric, quantity.given, quantity.split) == (metric, given, split)
            and quantity.target in ("", "joint")
        ]
        return min(found, key=lambda quantity: _preference(quantity.posterior), default=None)


def load(run: Path) -> Results:
    """Read a run folder.

    Raises:
        ReportError: if there is no such folder, or nothing in it that a report could be made of.
        StoreError: if a results file is damaged.
    """
    if not run.is_dir():
        raise ReportError(f"no folder {str(run)!r}; give the --out folder of study/run.py")
    tables = read(run)
    study, manifest = _read_json(run / "study.json"), _read_json(run / "manifest.json")
    if not (tables.trials.num_rows or tables.measurements.num_rows or study):
        raise ReportError(f"{run} holds no results and no study.json; give the --out folder of study/run.py")
    rows = tables.trials.to_pylist()
    if rows and not study:
        study = {"study": rows[0]["study"], "space": rows[0]["space"], "base": json.loads(rows[0]["config"])}
    metric = study.get("objective_metric") or (rows[0]["objective_metric"] if rows else "mean_coherence")
    evaluated = _evaluated(tables.measurements.to_pandas())
    configs = _configs(rows, descending=metric not in LOWER_IS_BETTER)
    complete = {trial.trial_id for config in configs for trial in config.complete}
    objective = _objective(metric, evaluated)
    modalities = _modalities(study, evaluated)
    return Results(
        run=run,
        study=study,
        manifest=manifest,
        configs=configs,
        factors=tuple(_factors(configs, study, modalities)),
        running=_running(tables.measurements.to_pandas(), {row["trial_id"] for row in rows}),
        modalities=modalities,
        objective=objective,
        last=_last(evaluated, complete),
        curves=_curves(evaluated, objective),
    )


def level_label(value: object) -> str:
    """A level or a swept value as figures and tables write it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    if isinstance(value, tuple):
        return " / ".join(f"{part:.2f}" for part in value)
    return str(value)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path} is damaged ({error}); start the study again with --resume") from error
    if not isinstance(content, dict):
        raise ReportError(f"{path} is damaged (expected an object); start the study again with --resume")
    return content


def _preference(posterior: str) -> int:
    return ("product", "", "mixture").index(posterior) if posterior in ("product", "", "mixture") else 3


def _evaluated(measurements: pd.DataFrame) -> pd.DataFrame:
    """The finite measurements of validation and test."""
    finite = measurements["value"].map(isfinite).astype(bool)
    return measurements[finite & measurements["split"].isin(("validation", "test"))]


def _objective(metric: str, evaluated: pd.DataFrame) -> Quantity:
    found = evaluated.loc[
        (evaluated["metric"] == metric) & (evaluated["given"] == ""), ["posterior", "target"]
    ]
    pairs = sorted(set(found.itertuples(index=False, name=None)), key=lambda pair: _preference(pair[0]))
    posterior, target = pairs[0] if pairs else ("", "")
    return Quantity(metric, posterior, "", target)


def _last(evaluated: pd.DataFrame, complete: set[str]) -> dict[Quantity, dict[str, float]]:
    last_epoch = evaluated.groupby(["trial_id", "split"])["epoch"].transform("max")
    rows = evaluated[(evaluated["epoch"] == last_epoch) & evaluated["trial_id"].isin(list(complete))]
    columns = [rows[name].tolist() for name in (*Quantity._fields, "trial_id", "value")]
    values: dict[Quantity, dict[str, float]] = {}
    for *quantity, trial_id, value in zip(*columns, strict=True):
        values.setdefault(Quantity(*quantity), {})[trial_id] = value
    return values


def _curves(evaluated: pd.DataFrame, objective: Quantity) -> dict[str, list[tuple[int, float]]]:
    wanted = objective._replace(split="validation")
    rows = evaluated
    for name in Quantity._fields:
        rows = rows[rows[name] == getattr(wanted, name)]
    return {
        str(trial_id): list(zip(group["epoch"].tolist(), group["value"].tolist(), strict=True))
        for trial_id, group in rows.sort_values("epoch").groupby("trial_id")
    }


def _running(measurements: pd.DataFrame, ended: set[str]) -> tuple[Running, ...]:
    epochs = measurements.groupby("trial_id")["epoch"].max()
    pairs = zip(epochs.index.tolist(), epochs.tolist(), strict=True)
    return tuple(Running(name, int(epoch)) for name, epoch in pairs if name not in ended)


def _configs(rows: Iterable[Mapping[str, Any]], *, descending: bool) -> tuple[Config, ...]:
    by_hash: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_hash.setdefault(row["config_hash"], []).append(row)
    configs = [
        Config(
            config_hash,
            {
                name.removeprefix("param."): tuple(value) if isinstance(value, list) else value
                for name, value in group[0].items()
                if name.startswith("param.")
            },
            tuple(_trial(row) for row in sorted(group, key=lambda row: row["replicate"])),
        )
        for config_hash, group in by_hash.items()
    ]

    def rank(config: Config) -> tuple[bool, float, str]:
        value = config.validation
        return (
            value is None,
            (-value if descending else value) if value is not None else 0.0,
            config.config_hash,
        )

    return tuple(sorted(configs, key=rank))


def _trial(row: Mapping[str, Any]) -> Trial:
    objective = row["objective_value"]
    return Trial(
        trial_id=row["trial_id"],
        replicate=row["replicate"],
        state=row["state"],
        error=row["error"],
        epochs=row["epochs"],
        device=row["device"],
        device_s=row["device_s"],
        objective_value=objective if objective is not None and isfinite(objective) else None,
    )


def _modalities(study: Mapping[str, Any], evaluated: pd.DataFrame) -> tuple[str, ...]:
    """In the model's order if the study tells it, else sorted."""
    seen = {name for given in evaluated["given"].unique().tolist() for name in given.split("+") if name}
    seen |= set(evaluated["target"].unique().tolist()) - {"", "joint"}
    weights = (study.get("base") or {}).get("objective", {}).get("reconstruction_weights") or {}
    return tuple(weights) if seen <= set(weights) and weights else tuple(sorted(seen))


def _factors(
    configs: Sequence[Config], study: Mapping[str, Any], modalities: Sequence[str]
) -> Iterable[Factor]:
    domains = study.get("domains") or {}
    paths = list(dict.fromkeys([*domains, *(path for config in configs for path in config.params)]))
    names = _short_names(paths)
    for path in paths:
        domain = domains.get(path) or {}
        values = [config.params[path] for config in configs if config.params.get(path) is not None]
        levels = _levels(values, domain, study.get("sampler"))
        if levels or not values:
            yield Factor(path, names[path], levels)
        elif isinstance(values[0], tuple):
            for index, weight in enumerate(weight_names(len(values[0]), modalities)):
                yield Factor(path, f"{names[path]}[{weight}]", (), index)
        else:
            log = domain.get("type") == "LogUniform" or bool(domain.get("log"))
            yield Factor(path, names[path], (), log=log)


def weight_names(size: int, modalities: Sequence[str]) -> list[str]:
    """Names of a simplex' weights: the modalities in order, the prior last."""
    return (
        [*modalities, "prior"] if size == len(modalities) + 1 else [str(index + 1) for index in range(size)]
    )


def _levels(values: Sequence[Any], domain: Mapping[str, Any], sampler: str | None) -> tuple[Hashable, ...]:
    """The distinct values, in order, if the field is a factor with levels; else nothing."""
    distinct = list(dict.fromkeys(values))
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in distinct)
    if domain.get("type") == "Simplex" or (
        not domain and any(isinstance(value, tuple) for value in distinct)
    ):
        return ()
    repeats = sampler == "grid" or len(values) >= 2 * len(distinct)
    if numeric and domain.get("type") != "Choice" and not (len(distinct) <= _MOST_LEVELS and repeats):
        return ()
    if numeric:
        return tuple(sorted(distinct))
    options = [tuple(each) if isinstance(each, list) else each for each in domain.get("options", [])]
    return tuple(
        sorted(distinct, key=lambda value: options.index(value) if value in options else len(options))
    )


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """Paths without their section, where that stays unambiguous; objective.name is just the objective."""
    short = {path: path.removesuffix(".name").split(".", 1)[-1] for path in paths}
    names = list(short.values())
    return {path: name if names.count(name) == 1 else path for path, name in short.items()}
