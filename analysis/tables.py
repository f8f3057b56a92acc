"""The report's tables, independent of how they are written: HTML and Markdown show the same cells."""

import csv
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from analysis.estimates import Estimate, estimate_mean, pool
from analysis.findings import ConfigFinding, FactorFinding, Findings
from analysis.results import Quantity, Results, level_label, weight_names
from analysis.wording import fixed, p_text, plural, signed


@dataclass(frozen=True)
class Cell:
    """One cell; `sort` is what its column is sorted by, `share` in [0, 1] tints it."""

    text: str
    kind: str = "text"
    sort: float | str | None = None
    share: float | None = None
    span: int = 1
    muted: bool = False


@dataclass(frozen=True)
class Row:
    """Cells, and whether the row stands out."""

    cells: tuple[Cell, ...]
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """Titles of the columns, optionally under groups of (title, number of columns), and rows."""

    titles: tuple[str, ...]
    rows: tuple[Row, ...]
    groups: tuple[tuple[str, int], ...] = ()
    sortable: bool = False

    @property
    def full_titles(self) -> list[str]:
        """The titles with their group's, for a table that has one line of titles."""
        groups = [title for title, span in self.groups for _ in range(span)] or [""] * len(self.titles)
        return [", ".join(filter(None, pair)) for pair in zip(groups, self.titles, strict=True)]


def setting_rows(results: Results) -> list[tuple[str, str]]:
    """What was asked and run, as pairs of label and text; only what is known."""
    study, manifest = results.study, results.manifest
    base, hardware = study.get("base") or {}, manifest.get("hardware") or {}
    data = manifest.get("data") or {}
    planned, replicates = study.get("trials"), study.get("replicates")
    budget = (
        f"{plural(planned, 'config')} × {plural(replicates, 'replicate')}" if planned and replicates else ""
    )
    epochs = (base.get("training") or {}).get("epochs")
    commit = str(manifest.get("commit") or "")
    direction = "lower" if results.lower_is_better else "higher"
    versions = (f"{name} {version}" for name, version in (manifest.get("versions") or {}).items())
    digest = f" · digest {data['digest']}" if data.get("digest") else ""
    started = str(study.get("started_at") or manifest.get("started_at") or "")
    pairs = [
        ("Space", study.get("space")),
        ("Budget", budget + (f", {plural(epochs, 'epoch')} each" if budget and epochs else "")),
        ("Sampler", study.get("sampler")),
        ("Preset", study.get("preset")),
        ("Seed", study.get("seed")),
        ("Data set", str(data.get("name") or (base.get("data") or {}).get("name") or "") + digest),
        ("Modalities", ", ".join(results.modalities)),
        ("Judged by", f"validation {results.objective.label} after the last epoch, {direction} is better"),
        ("Hardware", _hardware(hardware)),
        ("Versions", " · ".join(versions)),
        ("Commit", commit + (" with uncommitted changes" if commit and manifest.get("dirty") else "")),
        ("Started", re.sub(r"T(\d\d:\d\d).*(?:\+00:00|Z)$", r" \1 UTC", started)),
    ]
    return [(label, str(text)) for label, text in pairs if text not in (None, "")]


def domain_table(results: Results) -> Table | None:
    """The space: each swept field and its values."""
    domains = results.study.get("domains") or {}
    if not domains:
        return None
    rows = []
    for path, domain in domains.items():
        options = domain.get("options")
        rest = {
            key: value
            for key, value in domain.items()
            if key not in ("type", "options") and value is not False
        }
        values = ", ".join(
            level_label(tuple(each) if isinstance(each, list) else each) for each in options or ()
        )
        values = values or ", ".join(f"{key} {level_label(value)}" for key, value in rest.items())
        rows.append(Row((Cell(path, "code"), Cell(str(domain.get("type", ""))), Cell(values))))
    return Table(("swept field", "domain", "values"), tuple(rows))


def fixed_settings(results: Results) -> Table | None:
    """Every field that all trials share."""
    swept = {factor.path for factor in results.factors}
    rows = [
        Row(
            (
                Cell(path, "code"),
                Cell(json.dumps(value) if isinstance(value, (list, dict)) else level_label(value)),
            )
        )
        for path, value in _leaves(results.study.get("base") or {})
        if path != "seed" and not any(path == other or path.startswith(f"{other}.") for other in swept)
    ]
    return Table(("field", "value"), tuple(rows)) if rows else None


def config_table(findings: Findings) -> Table | None:
    """One row a config, best first."""
    if not findings.configs:
        return None
    results = findings.results
    rows = []
    for each in findings.configs:
        mark = "best" if each.is_best else "tied" if each.tied else ""
        params = [each.config.params.get(path) for path in results.swept]
        validation = each.config.validation
        decimals = results.objective.decimals
        validated = "–" if validation is None else fixed(validation, decimals)
        cells = [
            Cell(str(each.number), "number", each.number),
            *(_swept_cell(value) for value in params),
            Cell(mark, sort={"best": 0, "tied": 1}.get(mark, 2)),
            Cell(validated, "number", validation),
            *(_estimate_cell(each.estimates[column.key], column.decimals) for column in findings.columns),
            _replicates_cell(each, results.num_replicates),
            _seconds_cell(each),
        ]
        rows.append(Row(tuple(cells), each.is_best))
    swept = [_swept_title(findings, path, name) for path, name in results.swept.items()]
    measured = [
        column.title + ("\N{NO-BREAK SPACE}↓" if column.lower_is_better else "")
        for column in findings.columns
    ]
    titles = (
        "#",
        *swept,
        "best",
        results.objective.label,
        *measured,
        "complete",
        "device\N{NO-BREAK SPACE}s",
    )
    groups = [("", len(swept) + 2), ("validation", 1), ("test split", len(measured)), ("replicates", 2)]
    return Table(titles, tuple(rows), tuple(group for group in groups if group[1]), sortable=True)


def write_config_csv(findings: Findings, path: Path) -> None:
    """The table of configs with full precision, one row a config."""
    paths = list(findings.results.swept)
    measured = [(column.key, end) for column in findings.columns for end in ("", "_low", "_high")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = ["number", "config_hash", *paths, "best", "tied_with_best", "validation_objective"]
        names += [f"test_{key}{end}" for key, end in measured]
        writer.writerow([*names, "complete_replicates", "states", "device_s"])
        for each in findings.configs:
            ends = {"": "value", "_low": "low", "_high": "high"}
            numbers = [getattr(each.estimates[key], ends[end], None) for key, end in measured]
            values = [each.config.params.get(path) for path in paths]
            writer.writerow(
                [
                    each.number,
                    each.config.config_hash,
                    *(json.dumps(value) if isinstance(value, tuple) else value for value in values),
                    each.is_best,
                    each.tied,
                    each.config.validation,
                    *numbers,
                    len(each.config.complete),
                    _states(each),
                    sum(trial.device_s for trial in each.config.trials),
                ]
            )


def effect_table(findings: Findings) -> Table | None:
    """One row a factor with levels: their means and the difference between the outermost."""
    decimals = findings.results.objective.decimals
    rows = [Row(tuple(_effect_cells(finding, decimals))) for finding in findings.effects]
    titles = ("factor", "mean of each level", "best level", "worst level", "effect", "p", "compared")
    return Table(titles, tuple(rows)) if rows else None


def correlation_table(findings: Findings) -> Table | None:
    """One row a continuous factor."""
    rows = [
        Row(
            (
                Cell(finding.factor.name, "code"),
                Cell(signed(finding.correlation.rho, 2), "number"),
                Cell(p_text(finding.correlation.p_value), "number"),
                Cell(str(finding.correlation.num_configs), "number"),
            )
        )
        for finding in findings.correlations
        if finding.correlation
    ]
    return Table(("factor", "Spearman's ρ", "p", "configs"), tuple(rows)) if rows else None


def subset_table(findings: Findings) -> Table | None:
    """The best config: coherence of every given subset with every target, and its probe accuracy."""
    best, results = findings.best, findings.results
    if best is None:
        return None
    found = {quantity for quantity in results.last if results.values(best.config, quantity)}
    probed = any(quantity.metric == "probe_accuracy" for quantity in found)
    targets = [
        name
        for name in results.modalities
        if any(q.metric == "coherence" and q.target == name for q in found)
    ]
    if not (targets or probed):
        return None
    kinds = [("coherence", target) for target in targets] + ([("probe_accuracy", "")] if probed else [])
    rows = []
    for subset in _subsets(results.modalities):
        given = "+".join(sorted(subset))
        cells = [Cell(" + ".join(subset))]
        for metric, target in kinds:
            posteriors = ("product", "mixture") if len(subset) > 1 else ("",)
            for posterior in posteriors:
                quantity = Quantity(metric, posterior, given, target)
                cells.append(
                    _share_cell(findings, best, quantity, 2 // len(posteriors), muted=target in subset)
                )
        rows.append(Row(tuple(cells)))
    groups = [
        ("", 1),
        *((f"coherence → {target}", 2) for target in targets),
        *([("probe accuracy", 2)] * probed),
    ]
    return Table(("given", *("product", "mixture") * len(kinds)), tuple(rows), tuple(groups))


def summary_table(findings: Findings) -> Table | None:
    """The best config: everything that is not about one subset."""
    best, results = findings.best, findings.results
    if best is None:
        return None
    wanted = [
        quantity
        for quantity in results.last
        if not quantity.given and quantity.split == "test" and quantity.metric != "classifier_accuracy"
    ]
    order = ("mean_coherence", "random_coherence", "loss", "reconstruction")

    def position(quantity: Quantity) -> tuple[int, str, bool, str]:
        first = order.index(quantity.metric) if quantity.metric in order else len(order)
        return first, quantity.metric, quantity.posterior != "product", quantity.target

    wanted.sort(key=position)
    rows = []
    for quantity in wanted:
        estimate = _pooled(findings, best, quantity)
        if estimate:
            name = quantity.label + (f" of {quantity.target}" if quantity.target else "")
            text = _in_brackets(estimate, quantity.decimals)
            rows.append(Row((Cell(name), Cell(text, "number"))))
    return Table(("test split", "mean (standard error)"), tuple(rows)) if rows else None


def judge_accuracies(findings: Findings) -> list[tuple[str, str]]:
    """The accuracy of the classifiers that judge coherence, by modality."""
    best, results = findings.best, findings.results
    if best is None:
        return []
    quantities = [Quantity("classifier_accuracy", target=name) for name in results.modalities]
    values = [(quantity.target, results.values(best.config, quantity)) for quantity in quantities]
    return [(target, fixed(fmean(each), 3)) for target, each in values if each]


def command(results: Results) -> str:
    """The command line that started the study, if it is known."""
    argv = results.study.get("command") or results.manifest.get("command") or ""
    words = shlex.split(argv) if isinstance(argv, str) else [str(word) for word in argv]
    if words and words[0].endswith(".py"):
        words.insert(0, "python")
    return shlex.join(words)


def _effect_cells(finding: FactorFinding, decimals: int) -> Iterator[Cell]:
    effect = finding.effect
    assert effect is not None
    means = (f"{level_label(mean.level)}: {_plus_minus(mean.estimate, decimals)}" for mean in effect.levels)
    unbroken = (mean.replace(" ", "\N{NO-BREAK SPACE}") for mean in means)
    width = "n/a (one replicate)" if effect.half_width is None else f"± {fixed(effect.half_width, decimals)}"
    yield Cell(finding.factor.name, "code")
    yield Cell(" · ".join(unbroken))
    yield Cell(level_label(effect.best.level))
    yield Cell(level_label(effect.worst.level))
    yield Cell(f"{signed(effect.difference, decimals)} {width}", "number")
    yield Cell("–" if effect.p_value is None else p_text(effect.p_value), "number")
    if not effect.matched:
        yield Cell("between configs")
    else:
        left_out = f", {effect.num_left_out} incomplete left out" if effect.num_left_out else ""
        yield Cell(f"within {plural(effect.best.num_configs, 'setting')}{left_out}")


def _hardware(hardware: Mapping[str, Any]) -> str:
    gpus = [
        each if isinstance(each, str) else str(each.get("name", each)) for each in hardware.get("gpus") or []
    ]
    parts = [
        hardware.get("cpu"),
        f"{hardware['cores']} cores" if hardware.get("cores") else None,
        f"{hardware['memory_gib']:.0f} GiB memory" if hardware.get("memory_gib") else None,
        (", ".join(gpus) or "no GPU") if "gpus" in hardware else None,
    ]
    return " · ".join(str(part) for part in parts if part)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", tuple(value) if isinstance(value, list) else value


def _swept_title(findings: Findings, path: str, name: str) -> str:
    """The short name; of a simplex with the names of its weights."""
    values = [each.config.params.get(path) for each in findings.configs]
    sizes = {len(value) for value in values if isinstance(value, tuple)}
    if len(sizes) != 1:
        return name
    return f"{name}: {' / '.join(weight_names(sizes.pop(), findings.results.modalities))}"


def _swept_cell(value: object) -> Cell:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Cell(level_label(value), "number", float(value))
    return Cell(level_label(value), "word", None if value is None else level_label(value))


def _states(finding: ConfigFinding) -> str:
    states = Counter(trial.state for trial in finding.config.trials)
    return ", ".join(
        name if len(states) == 1 else f"{count} {name}" for name, count in sorted(states.items())
    )


def _replicates_cell(finding: ConfigFinding, planned: int) -> Cell:
    """How many completed, and what became of the others."""
    complete = len(finding.config.complete)
    others = Counter(trial.state for trial in finding.config.trials if not trial.is_complete)
    states = "".join(f", {count} {state}" for state, count in sorted(others.items()))
    return Cell(f"{complete} of {max(planned, len(finding.config.trials))}{states}", "count", complete)


def _seconds_cell(finding: ConfigFinding) -> Cell:
    seconds = fmean(trial.device_s for trial in finding.config.trials)
    return Cell(fixed(seconds, 1), "number", seconds)


def _plus_minus(estimate: Estimate, decimals: int) -> str:
    width = "" if estimate.half_width is None else f" ± {fixed(estimate.half_width, decimals)}"
    return fixed(estimate.value, decimals) + width


def _estimate_cell(estimate: Estimate | None, decimals: int) -> Cell:
    if estimate is None:
        return Cell("–", "number")
    text = _plus_minus(estimate, decimals) + (" ± n/a" if estimate.half_width is None else "")
    return Cell(text, "number", estimate.value)


def _subsets(modalities: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for size in range(1, len(modalities) + 1):
        yield from combinations(modalities, size)


def _pooled(findings: Findings, finding: ConfigFinding, quantity: Quantity) -> Estimate | None:
    """A config's mean, its standard error from the variance pooled over all configs."""
    results = findings.results
    noise = pool(results.values(config, quantity) for config in results.configs)
    return estimate_mean(results.values(finding.config, quantity), noise)


def _in_brackets(estimate: Estimate, decimals: int) -> str:
    error = "n/a" if estimate.standard_error is None else fixed(estimate.standard_error, decimals)
    return f"{fixed(estimate.value, decimals)} ({error})"


def _share_cell(
    findings: Findings, finding: ConfigFinding, quantity: Quantity, span: int, *, muted: bool
) -> Cell:
    estimate = _pooled(findings, finding, quantity)
    if estimate is None:
        return Cell("–", "number", span=span)
    share = min(1.0, max(0.0, estimate.value))
    return Cell(_in_brackets(estimate, 3), "number", estimate.value, share, span, muted)


def queries(results: Results) -> str:
    """Lines of Python that read the two Parquet tables."""
    folder = f"{results.run.as_posix()}/results"
    trials, parts = json.dumps(f"{folder}/trials"), json.dumps(f"{folder}/trials/*.parquet")
    sql = f"SELECT * FROM '{folder}/measurements/*.parquet' WHERE metric = '{results.objective.metric}'"
    return "\n".join(
        (
            f"import pandas; pandas.read_parquet({trials})",
            f"import polars; polars.read_parquet({parts})",
            f"import duckdb; duckdb.sql({json.dumps(sql)})",
        )
    )
