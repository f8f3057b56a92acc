"""What configs differ in, within a run and between runs: fields by path, their domains, factors."""

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from analysis.results import Config, Factor, Source, weight_names

_MOST_LEVELS = 8
"""A number that takes more values than this is continuous, unless its domain is a Choice."""

_LEADING = ("objective.name", "data.name")
"""Of fields that differ between the runs alike, the one that gives its name to the difference."""

_NO_MATTER = ("seed", "data.dir")
"""Fields of a config that are no part of the question."""

_NONE = "none"
"""The level of a field whose options hold null, which elsewhere means that a field does not apply."""


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


def groups_that_differ(sources: Sequence[Source]) -> list[list[str]]:
    """Fields that the runs do not share, in groups that cannot be told apart.

    Those of a group differ alike, or as the objective's name or the data set's determines.
    Fields that a run sweeps, in whole or in part, are left out, and so are those that follow from them: each
    of its configs has its own value.
    """
    if len(sources) == 1:
        return []
    varied = {*swept_by_any(sources), *(path for source in sources for path in _set_by_cases(source))}
    follows = {path for source in sources for path in _departures(source)}
    fields = [in_common(source) for source in sources]
    paths = list(dict.fromkeys([*_LEADING, *(path for each in fields for path in each)]))
    groups: dict[tuple[int, ...], list[str]] = {}
    for path in paths:
        if overlaps(path, varied) or path in follows or path in _NO_MATTER:
            continue
        values = [each.get(path) for each in fields]
        groups.setdefault(tuple(values.index(value) for value in values), []).append(path)
    groups.pop((0,) * len(sources), None)
    for lead in [which for which, group in groups.items() if group[0] in _LEADING]:
        for which in [each for each, group in groups.items() if group[0] not in _LEADING]:
            if len(set(zip(lead, which, strict=True))) == len(set(lead)):
                groups[lead] += groups.pop(which)
    everywhere = [set(_settings(source, varied)) for source in sources]
    told_apart = len(set(zip(*groups, strict=True))) == len(sources)
    if not told_apart and sum(map(len, everywhere)) > len(set().union(*everywhere)):
        groups.setdefault(tuple(range(len(sources))), []).append("run")
    return list(groups.values())


def in_common(source: Source) -> dict[str, Hashable]:
    """What all configs of a run have in common, its commit included."""
    departures = _departures(source)
    base = leaves(source.run.study.get("base") or {})
    fields = {path: value for path, value in base if path not in departures}
    return fields | ({"commit": source.run.commit[:10]} if source.run.commit else {})


def _departures(source: Source) -> set[str]:
    """Paths of the base's fields that some config has otherwise: swept ones, and what follows from these."""
    base = dict(leaves(source.run.study.get("base") or {})).items()
    return {path for config in _configs(source) for path, _ in base - config.items()}


def _configs(source: Source) -> Iterator[dict[str, Any]]:
    """The fields of each config of a run, by path."""
    texts = {row["config_hash"]: row["config"] for row in source.rows}.values()
    return (dict(leaves(json.loads(text))) for text in texts)


def swept(source: Source) -> list[str]:
    """Paths of the fields that the run sweeps."""
    columns = (name.removeprefix("param.") for name in source.trials.columns if name.startswith("param."))
    return list(dict.fromkeys([*(source.run.study.get("domains") or {}), *columns]))


def swept_by_any(sources: Sequence[Source]) -> list[str]:
    """Paths of the fields that some run sweeps, and of those that follow from them, but not alike in all."""
    paths = list(dict.fromkeys(path for source in sources for path in swept(source)))
    known = {*paths, *(path for source in sources for path in _set_by_cases(source)), *_NO_MATTER}
    follow = dict.fromkeys(path for source in sources for path in sorted(_departures(source)))
    configs = [config for source in sources for config in _configs(source)]
    for path in follow:
        pairs = {(config.get(_LEADING[0]), config.get(path)) for config in configs}
        if not overlaps(path, known) and path not in known and len(pairs) > len({name for name, _ in pairs}):
            paths.append(path)
    return paths


def _set_by_cases(source: Source) -> Iterator[str]:
    """Paths of the fields that named cases set: what the base says of them does not hold."""
    for domain in (source.run.study.get("domains") or {}).values():
        for fields in domain.get("cases", {}).values():
            yield from fields


def _settings(source: Source, paths: Iterable[str]) -> list[tuple[Hashable, ...]]:
    """The values of the swept fields, once for each config."""
    by_config = {row["config_hash"]: row for row in source.rows}
    return [tuple(_value(row, path) for path in sorted(paths)) for row in by_config.values()]


def of_one_type(sources: Sequence[Source]) -> list[Source]:
    """The sources with text, as study.store writes it, for a swept field whose values differ in type."""
    if len(sources) == 1:
        return list(sources)
    mixed = []
    for path in dict.fromkeys(path for source in sources for path in swept(source)):
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
    else:  # that of a field, not of cases, which may have the name of a section
        value = json.loads(row["config"]) if "." in path else None
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else value
        if isinstance(value, dict):  # as study.store writes it where it is swept
            value = json.dumps(value, sort_keys=True)
    return tuple(value) if isinstance(value, list) else value


def params_of(
    row: Mapping[str, Any],
    paths: Iterable[str],
    shared: Mapping[str, Hashable],
    domains: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The fields by which a trial's config is told from others: those that are swept, and its run's own."""
    params = {**shared, **{path: _value(row, path) for path in paths}}
    offered = {**domains, **_drawn(domains, params)}
    empty = [path for path, domain in offered.items() if None in domain.get("options", ())]
    return params | {path: _NONE for path in empty if params.get(path) is None}


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


def question(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that are part of the question; subspaces of one size have that of all."""
    fields = {path: value for path, value in leaves(config) if path not in _NO_MATTER}
    sizes = {path: fields[path] for path in fields if overlaps(path, ["model.style_dim"])}
    if len(distinct := [*_distinct(sizes.values())]) != 1:
        return fields
    rest = {path: value for path, value in fields.items() if path not in sizes}
    return rest | {"model.style_dim": distinct[0]}


def all_domains(
    sources: Sequence[Source], differing: Sequence[Sequence[str]]
) -> dict[str, Mapping[str, Any]]:
    """Of each swept field, and of what the runs differ in; fields whose domains disagree have none."""
    domains: dict[str, Mapping[str, Any]] = {}
    fields = [in_common(source) | {"run": source.run.label} for source in sources]
    for path, *_ in differing:
        values = [each.get(path) for each in fields]
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


def factors(
    configs: Sequence[Config],
    domains: Mapping[str, Mapping[str, Any]],
    modalities: Sequence[str],
    *,
    is_grid: bool,
) -> Iterator[Factor]:
    """The fields in which configs differ, as the report compares them.

    One of few values, or of a Choice, has levels; of weights, which go together, each is a factor.
    """
    paths = list(dict.fromkeys([*domains, *(path for config in configs for path in config.params)]))
    names = _short_names(paths, {section for config in configs for section in config.settings})
    drawn: dict[str, list[Any]] = {}
    for config in configs:
        for path, domain in _drawn(domains, config.params).items():
            drawn.setdefault(path, []).extend(domain.get("options", ()))
    within = {path: {"type": "Choice", "options": options} for path, options in drawn.items() if options}
    for path in paths:
        domain = domains.get(path) or within.get(path) or {}
        values: list[Any] = [config.params[path] for config in configs if config.params.get(path) is not None]
        levels = _levels(values, domain, is_grid=is_grid)
        if levels or not values:
            yield Factor(path, names[path], levels)
        elif isinstance(values[0], tuple):
            for size in sorted({len(value) for value in values if isinstance(value, tuple)}, reverse=True):
                for index, weight in enumerate(weight_names(size, modalities)):
                    yield Factor(path, f"{names[path]}[{weight}]", (), index, size)
        else:
            log = domain.get("type") == "LogUniform" or bool(domain.get("log"))
            log = log and all(value > 0 for value in values)  # a run that does not sweep it may have zero
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


def _short_names(paths: Sequence[str], sections: set[str]) -> dict[str, str]:
    """Paths without their section, where that stays unambiguous; objective.name is just the objective.

    Names of cases, which are in no section, stay as they are.
    """
    short = {
        path: path.removesuffix(".name").split(".", 1)[-1] if path.split(".")[0] in sections else path
        for path in paths
    }
    names = list(short.values())
    return {path: name if names.count(name) == 1 else path for path, name in short.items()}
