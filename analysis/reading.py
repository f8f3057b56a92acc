"""Reads run folders: one as it is, several as one study that varies also what the runs differ in."""

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.results import (
    Config,
    Factor,
    Quantity,
    Results,
    Run,
    Running,
    Trial,
    preference,
    weight_names,
)
from study.mirror import local_run
from study.store import LOWER_IS_BETTER, read

_MOST_LEVELS = 8
"""A number that takes more values than this is continuous, unless its domain is a Choice."""

_LEADING = ("objective.name", "data.name")
"""Of fields that differ between the runs alike, the one that gives its name to the difference."""

_NO_MATTER = ("seed", "data.dir")
"""Fields of a config that are no part of the question."""


_NONE = "none"
"""The level of a field whose options hold null, which elsewhere means that a field does not apply."""


class ReportError(ValueError):
    """Run folders that no report can be made of; the message says why."""


@dataclass(frozen=True)
class _Source:
    """One run as it was read; `prefix` leads its ids where several runs are compared."""

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


def load(*runs: Path | str) -> Results:
    """Read one run, or several to compare: their folders, on this machine or in object storage by URL.

    Raises:
        ReportError: if a folder has nothing that a report could be made of, or two do not compare.
        StoreError: if a results file is damaged.
        FilesError: if object storage cannot be read.
    """
    folders = [local_run(run) for run in runs]
    labels = _labels(folders)
    sources = _of_one_type(
        [
            _read_run(folder, str(run), label, f"{label}/" if len(folders) > 1 else "")
            for folder, run, label in zip(folders, runs, labels, strict=True)
        ]
    )
    metric = _common_metric(sources)
    differing = _differing(sources)
    domains = _domains(sources, differing)
    descending = metric not in LOWER_IS_BETTER
    configs = _configs(sources, differing, domains, descending=descending)
    objective = _objective(metric, sources)
    others = [_objective(each, sources) for each in sources[0].objectives[1:]] if len(sources) == 1 else []
    modalities = _modalities(sources)
    samplers = {source.run.study.get("sampler") for source in sources}
    return Results(
        runs=tuple(source.run for source in sources),
        trial_rows=_stacked([source.trials for source in sources], labels),
        measurements=_stacked([source.measurements for source in sources], labels),
        configs=configs,
        confirmed=_configs(sources, differing, domains, confirming=True, descending=descending),
        factors=tuple(_factors(configs, domains, modalities, is_grid=samplers == {"grid"})),
        aliases={fields[0]: tuple(fields[1:]) for fields in differing},
        domains=domains,
        running=tuple(each for source in sources for each in _running(source)),
        modalities=modalities,
        objective=objective,
        objectives=(objective, *others),
        last=_last(sources),
        curves={name: points for source in sources for name, points in _curves(source, objective).items()},
    )


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a nested mapping by its dotted path; lists as tuples."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", tuple(value) if isinstance(value, list) else value


def overlaps(path: str, others: Iterable[str]) -> bool:
    """Whether a field is one of these, a part of one, or the whole of which one is a part."""
    fields = [
        other for other in others if "." in other
    ]  # not a name of cases, which may be that of a section
    return any(f"{path}.".startswith(f"{other}.") or other.startswith(f"{path}.") for other in fields)


def _labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths where two have the same name."""
    names = [folder.resolve().name for folder in folders]
    paths = [str(folder.resolve()) for folder in folders]
    if len(set(paths)) < len(paths):
        raise ReportError("the same run is given twice; give each folder once")
    return names if len(set(names)) == len(names) else paths


def _read_run(folder: Path, where: str, label: str, prefix: str) -> _Source:
    try:
        if not folder.is_dir():
            raise ReportError(f"no folder {where!r}; give the --out folder of study/run.py")
        tables = read(folder)
        study, manifest = _read_json(folder / "study.json"), _read_json(folder / "manifest.json")
    except OSError as error:
        told = f"{error.filename or where} cannot be read ({error.strerror}); make it readable and try again"
        raise ReportError(told) from error
    if not (tables.trials.num_rows or tables.measurements.num_rows or study):
        raise ReportError(
            f"{where} holds no results and no study.json; give the --out folder of study/run.py"
        )
    rows = tables.trials.to_pylist()
    knows_base = bool(study)
    if rows and not study:
        study = {"study": rows[0]["study"], "space": rows[0]["space"], "base": json.loads(rows[0]["config"])}
    measurements = tables.measurements.to_pandas(strings_to_categorical=True)
    known = measurements["attribute"].astype(object)
    measurements["attribute"] = known.where(known.notna(), "").astype("category")
    counts = np.isfinite(measurements["value"]) & measurements["split"].isin(("validation", "test"))
    return _Source(
        run=Run(folder, label, study, manifest, where, knows_base),
        prefix=prefix,
        rows=rows,
        trials=tables.trials.to_pandas(),
        measurements=measurements,
        evaluated=measurements.loc[counts, [*Quantity._fields, "trial_id", "epoch", "value"]],
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ReportError(f"{path} is damaged ({error}); start the study again with --resume") from error
    if not isinstance(content, dict):
        raise ReportError(f"{path} is damaged (expected an object); start the study again with --resume")
    return content


def _common_metric(sources: Sequence[_Source]) -> str:
    """What all runs are judged by."""
    metrics = {source.metric: source.run.folder for source in sources if source.metric}
    if len(metrics) > 1:
        (first, one), (second, other), *_ = metrics.items()
        raise ReportError(
            f"{one} is judged by {first} and {other} by {second}, which do not compare; "
            "report them one by one"
        )
    return next(iter(metrics), "mean_coherence")


def _differing(sources: Sequence[_Source]) -> list[list[str]]:
    """Fields that the runs do not share, in groups that cannot be told apart.

    Those of a group differ alike, or as the objective's name or the data set's determines.
    Fields that a run sweeps, in whole or in part, are left out: each of its configs has its own value.
    """
    if len(sources) == 1:
        return []
    swept = {path for source in sources for path in (*_swept(source), *_set_by_cases(source))}
    fields = [_fields(source) for source in sources]
    paths = list(dict.fromkeys([*_LEADING, *(path for each in fields for path in each)]))
    groups: dict[tuple[int, ...], list[str]] = {}
    for path in paths:
        if overlaps(path, swept) or path in _NO_MATTER:
            continue
        values = [each.get(path) for each in fields]
        groups.setdefault(tuple(values.index(value) for value in values), []).append(path)
    groups.pop((0,) * len(sources), None)
    for lead in [which for which, group in groups.items() if group[0] in _LEADING]:
        for which in [each for each, group in groups.items() if group[0] not in _LEADING]:
            if len(set(zip(lead, which, strict=True))) == len(set(lead)):
                groups[lead] += groups.pop(which)
    everywhere = [set(_settings(source, swept)) for source in sources]
    told_apart = len(set(zip(*groups, strict=True))) == len(sources)
    if not told_apart and sum(map(len, everywhere)) > len(set().union(*everywhere)):
        groups.setdefault(tuple(range(len(sources))), []).append("run")
    return list(groups.values())


def _fields(source: _Source) -> dict[str, Hashable]:
    """What all configs of a run have in common, its commit included."""
    fields = dict(leaves(source.run.study.get("base") or {}))
    return fields | ({"commit": source.run.commit[:10]} if source.run.commit else {})


def _swept(source: _Source) -> list[str]:
    """Paths of the fields that the run sweeps."""
    columns = (name.removeprefix("param.") for name in source.trials.columns if name.startswith("param."))
    return list(dict.fromkeys([*(source.run.study.get("domains") or {}), *columns]))


def _set_by_cases(source: _Source) -> Iterator[str]:
    """Paths of the fields that named cases set: what the base says of them does not hold."""
    for domain in (source.run.study.get("domains") or {}).values():
        for fields in domain.get("cases", {}).values():
            yield from fields


def _settings(source: _Source, paths: Iterable[str]) -> list[tuple[Hashable, ...]]:
    """The values of the swept fields, once for each config."""
    by_config = {row["config_hash"]: row for row in source.rows}
    return [tuple(_value(row, path) for path in sorted(paths)) for row in by_config.values()]


def _of_one_type(sources: Sequence[_Source]) -> list[_Source]:
    """The sources with text, as study.store writes it, for a swept field whose values differ in type."""
    if len(sources) == 1:
        return list(sources)
    mixed = []
    for path in dict.fromkeys(path for source in sources for path in _swept(source)):
        values = [_value(row, path) for source in sources for row in source.rows]
        types = {float if type(value) is int else type(value) for value in values if value is not None}
        if len(types) > 1:
            mixed.append(path)

    def texts(row: Mapping[str, Any]) -> dict[str, str | None]:
        values = {path: _value(row, path) for path in mixed}
        return {f"param.{path}": None if value is None else _text(value) for path, value in values.items()}

    return [replace(source, rows=[{**row, **texts(row)} for row in source.rows]) for source in sources]


def _text(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)


def _value(row: Mapping[str, Any], path: str) -> Any:
    """A swept field of a trial; where its run does not sweep that field, the value that it has there."""
    if f"param.{path}" in row:
        value = row[f"param.{path}"]
    else:
        value = json.loads(row["config"])
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else value
        if isinstance(value, dict):  # as study.store writes it where it is swept
            value = json.dumps(value, sort_keys=True)
    return tuple(value) if isinstance(value, list) else value


def _configs(
    sources: Sequence[_Source],
    differing: Sequence[Sequence[str]],
    domains: Mapping[str, Mapping[str, Any]],
    *,
    confirming: bool = False,
    descending: bool,
) -> tuple[Config, ...]:
    """The configs of the searches, or of the confirmations, of all runs, best first."""
    paths = list(dict.fromkeys(path for source in sources for path in _swept(source)))
    configs = []
    for source in sources:
        fields = _fields(source) | {"run": source.run.label}
        shared = {group[0]: fields.get(group[0]) for group in differing}
        base = _question(source.run.study.get("base") or {})
        for config_hash, group in source.by_config(confirming=confirming).items():
            params = shared | {path: _value(group[0], path) for path in paths}
            offered = {**domains, **_drawn(domains, params)}
            params |= {
                path: _NONE
                for path, domain in offered.items()
                if params.get(path) is None and None in domain.get("options", ())
            }
            settings = json.loads(group[0]["config"])
            trials = [{**row, "trial_id": source.prefix + row["trial_id"]} for row in group]
            trials.sort(key=lambda row: row["replicate"])
            configs.append(
                Config(
                    source.prefix + config_hash,
                    source.run.label,
                    params,
                    settings,
                    tuple(Trial.of(row, source.run.folder) for row in trials),
                    is_base=source.run.knows_base and _question(settings) == base,
                )
            )

    return _ranked(configs, descending=descending)


def _drawn(
    domains: Mapping[str, Mapping[str, Any]], params: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """Domains by which the cases of a config have drawn fields, by path."""
    cases = (domain.get("cases", {}).get(params.get(name), {}) for name, domain in domains.items())
    return {
        path: each
        for case in cases
        for path, each in case.items()
        if isinstance(each, dict) and "type" in each
    }


def _question(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that are part of the question; subspaces of one size have that of all."""
    fields = {path: value for path, value in leaves(config) if path not in _NO_MATTER}
    sizes = {path: fields[path] for path in fields if overlaps(path, ["model.style_dim"])}
    if len(distinct := [*_distinct(sizes.values())]) != 1:
        return fields
    rest = {path: value for path, value in fields.items() if path not in sizes}
    return rest | {"model.style_dim": distinct[0]}


def _ranked(configs: Iterable[Config], *, descending: bool) -> tuple[Config, ...]:
    def rank(config: Config) -> tuple[bool, float, str]:
        value = config.validation
        return (
            value is None,
            (-value if descending else value) if value is not None else 0.0,
            config.config_hash,
        )

    return tuple(sorted(configs, key=rank))


def _domains(sources: Sequence[_Source], differing: Sequence[Sequence[str]]) -> dict[str, Mapping[str, Any]]:
    """Of each swept field, and of what the runs differ in; fields whose domains disagree have none."""
    domains: dict[str, Mapping[str, Any]] = {}
    for path, *_ in differing:
        values = [(_fields(source) | {"run": source.run.label}).get(path) for source in sources]
        domains[path] = {"type": "Choice", "options": list(_distinct(values))}
    for source in sources:
        for path, domain in (source.run.study.get("domains") or {}).items():
            known = domains.setdefault(path, domain)
            if known.get("type") == domain.get("type") == "Choice":
                options = [*known["options"], *domain["options"]]
                domains[path] = {**known, "options": [*_distinct(options)]}
            elif known != domain:
                domains[path] = {}
    return domains


def _distinct(options: Iterable[Any]) -> Iterator[Any]:
    """Each once, in order; options may be lists, which are not hashable."""
    seen: list[Any] = []
    for option in options:
        if option not in seen:
            seen.append(option)
            yield option


def _objective(metric: str, sources: Sequence[_Source]) -> Quantity:
    """A study's objective: given all modalities if it is given any, these as their product."""
    found: set[tuple[str, str, str]] = set()
    for source in sources:
        rows = source.evaluated
        rows = rows.loc[rows["metric"] == metric, ["given", "posterior", "target"]]
        found |= set(rows.drop_duplicates().itertuples(index=False, name=None))
    whole = [names for names in found if names[2] in ("", "joint")] or sorted(found)
    is_given = any(not given for given, _, _ in whole)  # nothing: the metric averages over what was given

    def choice(names: tuple[str, str, str]) -> tuple[bool, int, int, tuple[str, str, str]]:
        given, posterior, _ = names
        return is_given and bool(given), -given.count("+"), preference(posterior), names

    given, posterior, target = min(whole, key=choice, default=("", "", ""))
    return Quantity(metric, posterior, given, target)


def _last(sources: Sequence[_Source]) -> dict[Quantity, dict[str, float]]:
    values: dict[Quantity, dict[str, float]] = {}
    for source in sources:
        complete = [row["trial_id"] for row in source.rows if row["state"] == "COMPLETE"]
        rows = source.evaluated[source.evaluated["trial_id"].isin(complete)]
        last_epoch = rows.groupby(["trial_id", "split"], observed=True)["epoch"].transform("max")
        rows = rows[rows["epoch"] == last_epoch]
        for names, group in rows.groupby(list(Quantity._fields), observed=True):
            by_trial = values.setdefault(Quantity(*map(str, names)), {})
            ids = (source.prefix + name for name in group["trial_id"].tolist())
            by_trial.update(zip(ids, group["value"].tolist(), strict=True))
    return values


def _curves(source: _Source, objective: Quantity) -> dict[str, list[tuple[int, float]]]:
    wanted = objective._replace(split="validation")
    rows = source.evaluated
    for name in Quantity._fields:
        rows = rows[rows[name] == getattr(wanted, name)]
    points: dict[str, list[tuple[int, float]]] = {}
    columns = (rows.sort_values("epoch")[name].tolist() for name in ("trial_id", "epoch", "value"))
    for trial_id, epoch, value in zip(*columns, strict=True):
        points.setdefault(source.prefix + trial_id, []).append((epoch, value))
    return points


def _running(source: _Source) -> list[Running]:
    ended = {row["trial_id"] for row in source.rows}
    epochs = source.measurements.groupby("trial_id", observed=True)["epoch"].max()
    pairs = zip(epochs.index.tolist(), epochs.tolist(), strict=True)
    return [
        Running(source.prefix + name, source.run.label, int(epoch))
        for name, epoch in pairs
        if name not in ended
    ]


def _modalities(sources: Sequence[_Source]) -> tuple[str, ...]:
    """In the model's order if the studies tell it, else sorted."""
    seen: set[str] = set()
    told: dict[str, None] = {}
    for source in sources:
        seen |= {
            name for given in source.evaluated["given"].unique() for name in given.split("+") if name
        } | (set(source.evaluated["target"].unique()) - {"", "joint"})
        base = source.run.study.get("base") or {}
        told |= dict.fromkeys(base.get("objective", {}).get("reconstruction_weights") or {})
    return tuple(told) if told and seen <= set(told) else tuple(sorted(seen))


def _stacked(frames: Sequence[pd.DataFrame], labels: Sequence[str]) -> pd.DataFrame:
    """The frames one below the other, with the label of the run in front."""
    for frame, label in zip(frames, labels, strict=True):
        codes = np.zeros(len(frame), np.int8)
        runs = pd.Categorical.from_codes(codes, categories=pd.Index([label]))
        frame.insert(0, "run", pd.Series(runs, frame.index))
    return frames[0] if len(frames) == 1 else pd.concat(_same_categories(frames), ignore_index=True)


def _same_categories(frames: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The frames with one set of categories a column, without which stacking would make text of them."""
    names = [str(name) for name in frames[0] if isinstance(frames[0][name].dtype, pd.CategoricalDtype)]
    united = {
        name: list(dict.fromkeys(value for frame in frames for value in frame[name].cat.categories))
        for name in names
    }
    return [
        frame.assign(**{name: frame[name].cat.set_categories(united[name]) for name in names})
        for frame in frames
    ]


def _factors(
    configs: Sequence[Config],
    domains: Mapping[str, Mapping[str, Any]],
    modalities: Sequence[str],
    *,
    is_grid: bool,
) -> Iterable[Factor]:
    paths = list(dict.fromkeys([*domains, *(path for config in configs for path in config.params)]))
    names = _short_names(paths)
    drawn: dict[str, list[Any]] = {}
    for config in configs:
        for path, domain in _drawn(domains, config.params).items():
            drawn.setdefault(path, []).extend(domain.get("options", ()))
    within = {path: {"type": "Choice", "options": options} for path, options in drawn.items() if options}
    for path in paths:
        domain = domains.get(path) or within.get(path) or {}
        values = [config.params[path] for config in configs if config.params.get(path) is not None]
        levels = _levels(values, domain, is_grid=is_grid)
        if levels or not values:
            yield Factor(path, names[path], levels)
        elif isinstance(values[0], tuple):
            for size in sorted({len(value) for value in values if isinstance(value, tuple)}, reverse=True):
                for index, weight in enumerate(weight_names(size, modalities)):
                    yield Factor(path, f"{names[path]}[{weight}]", (), index, size)
        else:
            log = domain.get("type") == "LogUniform" or bool(domain.get("log"))
            yield Factor(path, names[path], (), log=log)


def _levels(values: Sequence[Any], domain: Mapping[str, Any], *, is_grid: bool) -> tuple[Hashable, ...]:
    """The distinct values, in order, if the field is a factor with levels; else nothing."""
    distinct = list(dict.fromkeys(values))
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in distinct)
    if domain.get("type") == "Simplex" or (
        not domain and any(isinstance(value, tuple) for value in distinct)
    ):
        return ()
    repeats = is_grid or len(values) >= 2 * len(distinct)
    if numeric and domain.get("type") != "Choice" and not (len(distinct) <= _MOST_LEVELS and repeats):
        return ()
    if numeric:
        return tuple(sorted(distinct))
    places: dict[Hashable, int] = {}
    for place, option in enumerate(domain.get("options", [])):
        stored = _NONE if option is None else tuple(option) if isinstance(option, list) else option
        text = json.dumps(option, sort_keys=True) if isinstance(option, dict) else str(option)
        for form in (text,) if isinstance(option, dict) else (text, stored):  # text where types are mixed
            places.setdefault(form, place)
    return tuple(sorted(distinct, key=lambda value: places.get(value, len(places))))


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """Paths without their section, where that stays unambiguous; objective.name is just the objective."""
    short = {path: path.removesuffix(".name").split(".", 1)[-1] for path in paths}
    names = list(short.values())
    return {path: name if names.count(name) == 1 else path for path, name in short.items()}
