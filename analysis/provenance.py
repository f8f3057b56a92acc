"""What was asked and run: settings, space, commands and queries, for one run or for several side by side."""

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from glob import escape
from typing import Any

from analysis.cells import Cell, Row, Table
from analysis.fields import leaves, overlaps
from analysis.results import Results, Run, level_label
from analysis.wording import plural
from study.files import Bucket, is_url


def setting_rows(results: Results) -> list[tuple[str, str]]:
    """What was asked and run, as pairs of label and text; only what is known, and once if all runs agree."""
    asked = [dict(_settings(run, _commit_text(results, run))) for run in results.runs]
    labels = dict.fromkeys(label for each in asked for label in each)
    rows = []
    for label in labels:
        texts = [each.get(label) or "unknown" for each in asked]
        if len(set(texts)) == 1:
            rows.append((label, texts[0]))
        else:
            pairs = zip(results.runs, texts, strict=True)
            rows.append((label, "; ".join(f"{run.label}: {text}" for run, text in pairs)))
    direction = "lower" if results.lower_is_better else "higher"
    judged = f"validation {results.objective.label} after the last epoch, {direction} is better"
    return [*rows, ("Modalities", ", ".join(results.modalities)), ("Judged by", judged)]


def domain_table(results: Results) -> Table | None:
    """The space: each swept field and its values."""
    rows = []
    for path, domain in results.domains.items():
        options = domain.get("options")
        rest = {
            key: value
            for key, value in domain.items()
            if key not in ("type", "options", "cases") and value is not False
        }
        values = ", ".join(
            "none" if each is None else level_label(tuple(each) if isinstance(each, list) else each)
            for each in options or ()
        )
        if "cases" in domain:
            values = "; ".join(map(_case_text, domain["cases"].items()))
        values = values or ", ".join(f"{key} {level_label(value)}" for key, value in rest.items())
        alike = "".join(f", {other}" for other in results.aliases.get(path, ()))
        kind = "between runs" if path in results.aliases else str(domain.get("type", "differs by run"))
        rows.append(Row((Cell(path + alike, "code"), Cell(kind), Cell(values))))
    return Table("space", "The space", ("swept field", "domain", "values"), tuple(rows)) if rows else None


def _case_text(case: tuple[str, Mapping[str, Any]]) -> str:
    """What one case sets, or draws, in words."""
    name, fields = case
    parts = []
    for path, value in fields.items():
        if isinstance(value, dict) and "type" in value:
            ends = [level_label(value[end]) for end in ("low", "high") if end in value]
            parts.append(f"{path} {' to '.join(ends) or value['type']}")
        else:
            parts.append(f"{path} {level_label(tuple(value) if isinstance(value, list) else value)}")
    return f"{name} ({', '.join(parts)})" if parts else name


def fixed_settings(results: Results) -> Table | None:
    """Every field that all trials share."""
    swept = {factor.path for factor in results.factors}
    for domain in results.domains.values():
        swept |= {path for fields in domain.get("cases", {}).values() for path in fields}
    asked = [run.study.get("base") or {} for run in results.runs]
    trained = [config.settings for config in (*results.configs, *results.confirmed)]
    first, *others = (dict(leaves(each)) for each in (*asked, *trained))
    rows = [
        Row((Cell(path, "code"), Cell(level_label(value))))
        for path, value in first.items()
        if path != "seed"
        and all(path in fields and fields[path] == value for fields in others)
        and not overlaps(path, swept)
    ]
    return Table("fields", "Fields that all trials share", ("field", "value"), tuple(rows)) if rows else None


def commits(results: Results, run: Run) -> dict[tuple[str, bool], int]:
    """How many of a run's ended trials have which commit and whether its files had been changed, the first
    commit first; the run's own, of no trial, where none has ended."""
    rows = results.trial_rows[results.trial_rows["run"] == run.label].sort_values("started_at")
    found = Counter(zip(rows["commit"].tolist(), rows["dirty"].tolist(), strict=True))
    return found or {(run.commit, bool(run.manifest.get("dirty"))): 0}


def _commit_text(results: Results, run: Run) -> str:
    found = commits(results, run)
    return ", ".join(
        commit
        + " with uncommitted changes" * is_dirty
        + (f" ({plural(count, 'trial')})" if len(found) > 1 else "")
        for (commit, is_dirty), count in found.items()
        if commit
    )


def commands(results: Results) -> str:
    """The command lines that started the runs and made them grow, as far as they are known."""
    lines = []
    for run in results.runs:
        resumed = run.manifest.get("resumed") or ()
        grown = [session.get("command") for session in resumed if session.get("grown")]
        for argv in (run.study.get("command") or run.manifest.get("command"), *grown):
            parts = shlex.split(argv) if isinstance(argv, str) else [str(word) for word in argv or ()]
            if parts and parts[0].endswith(".py"):
                parts.insert(0, "python")
            lines.append(shlex.join(parts))
    return "\n".join(filter(None, lines))


def queries(results: Results) -> str:
    """Lines of Python that read a run: as frames, and the two Parquet tables as they are."""
    quoted = partial(json.dumps, ensure_ascii=False)
    run, metric = results.runs[0].where, results.objective.metric
    runs = ", ".join(quoted(each.where) for each in results.runs)
    folder, mark, settings = Bucket(run).url.partition("?") if is_url(run) else (run, "", "")
    lines = [
        f"from analysis.api import load; load({runs}).pivot({quoted(metric)})",
        f"import pandas; pandas.read_parquet({quoted(f'{folder}/results/trials{mark}{settings}')})",
    ]
    if not settings:  # which pandas alone takes from a URL
        pattern = escape(folder)  # of a folder whose name has brackets, say
        measurements = f"{pattern}/results/measurements/*.parquet".replace("'", "''")
        sql = f"SELECT * FROM '{measurements}' WHERE metric = '{metric}'"
        lines += [
            f"import polars; polars.read_parquet({quoted(f'{pattern}/results/trials/*.parquet')})",
            f"import duckdb; duckdb.sql({quoted(sql)})",
        ]
    return "\n".join(lines)


def _settings(run: Run, commit: str) -> Iterator[tuple[str, str]]:
    study, manifest = run.study, run.manifest
    base, data = study.get("base") or {}, manifest.get("data") or {}
    planned, replicates = study.get("trials"), study.get("replicates")
    budget = (
        f"{plural(planned, 'config')} × {plural(replicates, 'replicate')}" if planned and replicates else ""
    )
    epochs = (base.get("training") or {}).get("epochs")
    versions = (f"{name} {version}" for name, version in (manifest.get("versions") or {}).items())
    digest = f" · digest {data['digest']}" if data.get("digest") else ""
    started = str(study.get("started_at") or manifest.get("started_at") or "")
    pairs = [
        ("Space", study.get("space")),
        ("Budget", budget + (f", {plural(epochs, 'epoch')} each" if budget and epochs else "")),
        ("Confirmation", _confirmation(study)),
        ("Objectives", ", ".join(study["objectives"]) if len(study.get("objectives") or ()) > 1 else None),
        ("Sampler", study.get("sampler")),
        ("Scheduler", study.get("scheduler")),
        ("Preset", study.get("preset")),
        ("Seed", study.get("seed")),
        ("Data set", str(data.get("name") or (base.get("data") or {}).get("name") or "") + digest),
        ("Quality by features of", (base.get("evaluation") or {}).get("features")),
        ("Hardware", _hardware(manifest.get("hardware") or {})),
        ("Versions", " · ".join(versions)),
        ("Commit", commit),
        ("Started", re.sub(r"T(\d\d:\d\d).*(?:\+00:00|Z)$", r" \1 UTC", started)),
    ]
    return ((label, str(text)) for label, text in pairs if text not in (None, ""))


def _confirmation(study: Mapping[str, Any]) -> str | None:
    if not study.get("confirm"):
        return None
    seeds = plural(study["confirm_replicates"], "fresh seed")
    return f"the best {plural(study['confirm'], 'config')} and the base config, {seeds} each"


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
