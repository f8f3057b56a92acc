"""Reads run folders: one as it is, several as one study that varies also what the runs differ in."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.fields import (
    all_domains,
    factors,
    groups_that_differ,
    in_common,
    of_one_type,
    params_of,
    question,
    swept_by_any,
)
from analysis.results import Config, Quantity, Results, Run, Running, Source, Trial, preference
from study.mirror import local_run
from study.store import LOWER_IS_BETTER, read

_DAMAGED = (
    "put back a copy, or move it out of the folder for a report of the tables alone; "
    "without it the study itself cannot go on"
)


class ReportError(ValueError):
    """Run folders that no report can be made of; the message says why."""


def load(*runs: Path | str) -> Results:
    """Read one run, or several to compare: their folders, on this machine or in object storage by URL.

    Raises:
        ReportError: if no run is given, a folder has nothing that a report could be made of, or two do not
            compare.
        StoreError: if a results file is damaged.
        FilesError: if object storage cannot be read.
    """
    if not runs:
        raise ReportError("no run is given; give the --out folder of study/run.py")
    folders = [local_run(run) for run in runs]
    labels = _labels(folders)
    sources = of_one_type(
        [
            _read_run(folder, str(run), label, f"{label}/" if len(folders) > 1 else "")
            for folder, run, label in zip(folders, runs, labels, strict=True)
        ]
    )
    metric = _common_metric(sources)
    further = [
        each for each in sources[0].objectives[1:] if all(each in source.objectives for source in sources)
    ]
    for each in (metric, *further):
        sources = _given_all(each, sources)
    differing = groups_that_differ(sources)
    domains = all_domains(sources, differing)
    descending = metric not in LOWER_IS_BETTER
    configs = _configs(sources, differing, domains, descending=descending)
    objective = _objective(metric, sources)
    modalities = _modalities(sources)
    samplers = {source.run.study.get("sampler") for source in sources}
    return Results(
        runs=tuple(source.run for source in sources),
        trial_rows=_stacked([source.trials for source in sources], labels),
        measurements=_stacked([source.measurements for source in sources], labels),
        configs=configs,
        confirmed=_configs(sources, differing, domains, confirming=True, descending=descending),
        factors=tuple(factors(configs, domains, modalities, is_grid=samplers == {"grid"})),
        aliases={fields[0]: tuple(fields[1:]) for fields in differing},
        domains=domains,
        running=tuple(each for source in sources for each in _running(source)),
        modalities=modalities,
        objective=objective,
        objectives=(objective, *(_objective(each, sources) for each in further)),
        last=_last(sources),
        curves={name: points for source in sources for name, points in _curves(source, objective).items()},
    )


def _labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths where two have the same name."""
    names = [folder.resolve().name for folder in folders]
    paths = [str(folder.resolve()) for folder in folders]
    if len(set(paths)) < len(paths):
        raise ReportError("the same run is given twice; give each folder once")
    return names if len(set(names)) == len(names) else paths


def _read_run(folder: Path, where: str, label: str, prefix: str) -> Source:
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
    return Source(
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
        raise ReportError(f"{path} is damaged ({error}); {_DAMAGED}") from error
    if not isinstance(content, dict):
        raise ReportError(f"{path} is damaged (expected an object); {_DAMAGED}")
    return content


def _common_metric(sources: Sequence[Source]) -> str:
    """What all runs are judged by."""
    metrics = {source.metric: source.run.folder for source in sources if source.metric}
    if len(metrics) > 1:
        (first, one), (second, other), *_ = metrics.items()
        raise ReportError(
            f"{one} is judged by {first} and {other} by {second}, which do not compare; "
            "report them one by one"
        )
    return next(iter(metrics), "mean_coherence")


def _configs(
    sources: Sequence[Source],
    differing: Sequence[Sequence[str]],
    domains: Mapping[str, Mapping[str, Any]],
    *,
    confirming: bool = False,
    descending: bool,
) -> tuple[Config, ...]:
    """The configs of the searches, or of the confirmations, of all runs, best first.

    In a search those come last of which a replicate was stopped, diverged or failed, as for its sampler.
    """
    paths = swept_by_any(sources)
    configs = []
    for source in sources:
        fields = in_common(source) | {"run": source.run.label}
        shared = {group[0]: fields.get(group[0]) for group in differing}
        base = question(source.run.study.get("base") or {})
        for config_hash, group in source.by_config(confirming=confirming).items():
            params = params_of(group[0], paths, shared, domains)
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
                    is_base=source.run.knows_base and question(settings) == base,
                )
            )

    def rank(config: Config) -> tuple[bool, bool, float, bool, str]:
        value = config.validation
        return (
            value is None,
            not confirming and len(config.complete) < len(config.trials),
            (-value if descending else value) if value is not None else 0.0,
            not config.is_base,  # which nothing that is no better has beaten
            config.config_hash,
        )

    return tuple(sorted(configs, key=rank))


def _objective(metric: str, sources: Sequence[Source]) -> Quantity:
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


def _given_all(metric: str, sources: Sequence[Source]) -> list[Source]:
    """The sources with a metric given all modalities of its run under one name, as given nothing.

    They are left as they are where all runs have the same modalities.
    """
    own = [_objective(metric, [source]) for source in sources]
    if len({each.given for each in own if each.given}) < 2:
        return list(sources)
    posterior = min((each.posterior for each in own), key=preference)
    found = []
    for source, each in zip(sources, own, strict=True):
        rows = _rows(source, each).assign(given="", posterior=posterior)
        found.append(replace(source, evaluated=pd.concat([source.evaluated, rows], ignore_index=True)))
    return found


def _rows(source: Source, quantity: Quantity) -> pd.DataFrame:
    """What was measured of a quantity on both splits."""
    rows = source.evaluated
    for name in Quantity._fields:
        rows = rows[rows[name] == getattr(quantity, name)] if name != "split" else rows
    return rows


def _last(sources: Sequence[Source]) -> dict[Quantity, dict[str, float]]:
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


def _curves(source: Source, objective: Quantity) -> dict[str, list[tuple[int, float]]]:
    rows = _rows(source, objective)
    rows = rows[rows["split"] == "validation"]
    points: dict[str, list[tuple[int, float]]] = {}
    columns = (rows.sort_values("epoch")[name].tolist() for name in ("trial_id", "epoch", "value"))
    for trial_id, epoch, value in zip(*columns, strict=True):
        points.setdefault(source.prefix + trial_id, []).append((epoch, value))
    return points


def _running(source: Source) -> list[Running]:
    ended = {row["trial_id"] for row in source.rows}
    epochs = source.measurements.groupby("trial_id", observed=True)["epoch"].max()
    pairs = zip(epochs.index.tolist(), epochs.tolist(), strict=True)
    return [
        Running(source.prefix + name, source.run.label, int(epoch))
        for name, epoch in pairs
        if name not in ended
    ]


def _modalities(sources: Sequence[Source]) -> tuple[str, ...]:
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
