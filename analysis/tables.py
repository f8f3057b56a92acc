"""The report's tables of configs, effects and scores."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import fmean

from analysis.cells import Cell, Row, Table, bracket_cell, estimate_cell, in_brackets, p_cell
from analysis.confounding import rivals
from analysis.estimates import Estimate, estimate_means
from analysis.findings import (
    Column,
    ConfigFinding,
    FactorFinding,
    Findings,
    contrasts,
    estimates,
    grouped,
    leaders,
)
from analysis.importance import Importance
from analysis.leaks import leak_quantity, what_is_read
from analysis.results import Quantity, Results, level_label, weight_names
from analysis.wording import fixed, plural, plus_minus, signed

_MOST_COMPARED = 30
"""Configs that a table by subset shows, best first; tables/scores.csv has all."""

_MOST_APART = 3
"""Modalities of which tables show every subset; of more they show means, as each doubles the subsets."""


def config_table(findings: Findings) -> Table | None:
    """One row a config, best first."""
    if not findings.configs:
        return None
    results = findings.results
    rows = []
    for each in findings.configs:
        mark = "best" if each.is_best else "tied" if each.tied else ""
        validation = each.config.validation
        decimals = results.objective.decimals
        validated = "–" if validation is None else fixed(validation, decimals)
        cells = [
            *_config_cells(findings, each),
            Cell(mark, sort={"best": 0, "tied": 1}.get(mark, 2)),
            Cell(validated, "number", validation),
            *(estimate_cell(each.estimates[column.key], column.decimals) for column in findings.columns),
            _replicates_cell(each, results.num_replicates(each.config)),
            Cell(fixed(each.config.device_s, 1), "number", each.config.device_s),
        ]
        rows.append(Row(tuple(cells), each.is_best))
    measured = [column.title + _arrow(column) for column in findings.columns]
    swept = _config_titles(findings)
    titles = (
        *swept,
        "best",
        results.objective.label,
        *measured,
        "complete",
        "device\N{NO-BREAK SPACE}s",
    )
    groups = [
        ("", len(swept) + 1),
        ("validation", 1),
        ("test split", len(measured)),
        ("replicates", 2),
    ]
    shown = tuple(group for group in groups if group[1])
    return Table("configs", "All configs, best first", titles, tuple(rows), shown, sortable=True)


def confirmation_table(findings: Findings) -> Table | None:
    """One row a config that was confirmed, best first on fresh seeds."""
    if not findings.confirmed:
        return None
    results = findings.results
    decimals = results.objective.decimals
    rows = []
    for index, each in enumerate(findings.confirmed):
        validation, gain = each.config.validation, each.advantage
        against = "–" if gain is None else signed(gain.value, decimals)
        if gain is not None and gain.half_width is not None:
            against += f" ± {fixed(gain.half_width, decimals)}"
        names = [str(each.number)] * (each.number is not None) + ["base"] * each.config.is_base
        cells = [
            Cell(", ".join(names) or "–", "word", each.number or 0),
            *(_swept_cell(each.config.params.get(path)) for path in results.swept),
            estimate_cell(each.searched, decimals),
            Cell("–" if validation is None else fixed(validation, decimals), "number", validation),
            estimate_cell(each.fresh, decimals),
            Cell(against, "number", gain.value if gain else None),
            p_cell(each.p_value),
            Cell(str(len(each.config.complete)), "number", len(each.config.complete)),
        ]
        rows.append(Row(tuple(cells), index == 0 and validation is not None))
    fields = _config_titles(findings)
    titles = (*fields, "test", "validation", "test", "against the base, test", "p", "replicates")
    groups = (("", len(fields)), ("search", 1), ("fresh seeds", 5))
    caption = f"Confirmation with fresh seeds: {results.objective.label}"
    return Table("confirmation", caption, titles, tuple(rows), groups, sortable=True)


def effect_table(findings: Findings) -> Table | None:
    """One row a factor with levels: their means and the difference between the outermost."""
    rows = [Row(tuple(_effect_cells(finding, findings.results))) for finding in findings.effects]
    titles = ("factor", "mean of each level", "best level", "worst level", "effect", "p", "compared")
    caption = f"Effects on test {findings.results.objective.label}"
    return Table("effects", caption, titles, tuple(rows)) if rows else None


def correlation_table(findings: Findings) -> Table | None:
    """One row a continuous factor."""
    rows = [
        Row(
            (
                Cell(finding.factor.name, "code"),
                Cell(signed(finding.correlation.rho, 2), "number"),
                p_cell(finding.correlation.p_value),
                Cell(str(finding.correlation.num_configs), "number"),
            )
        )
        for finding in findings.correlations
        if finding.correlation
    ]
    caption = f"Rank correlations with test {findings.results.objective.label}"
    titles = ("factor", "Spearman's ρ", "p", "configs")
    return Table("correlations", caption, titles, tuple(rows)) if rows else None


def importance_table(findings: Findings, importances: Sequence[Importance]) -> Table | None:
    """One row a swept field, most important first."""
    rows = []
    for each in importances:
        interval = (
            "n/a"
            if each.low is None or each.high is None
            else f"{fixed(each.low, 2)} to {fixed(each.high, 2)}"
        )
        rows.append(
            Row(
                (
                    Cell(each.name, "code"),
                    Cell(fixed(each.share, 2), "number"),
                    Cell(interval, "number"),
                    Cell(fixed(each.total, 2), "number"),
                )
            )
        )
    caption = f"Importance for test {findings.results.objective.label}"
    titles = ("field", "share of variance", "with other seeds", "with interactions")
    return Table("importance", caption, titles, tuple(rows)) if rows else None


def has_many_modalities(results: Results) -> bool:
    """Whether there are too many for tables of every subset."""
    return len(results.modalities) > _MOST_APART


def coherence_table(findings: Findings) -> Table | None:
    """One row a config: random coherence, and of each target that of every subset that lacks it.

    Of many modalities the means by the size of the subset, and by the target.
    """
    results = findings.results
    modalities = results.modalities
    generated = [
        Quantity("coherence", _posterior(subset), "+".join(sorted(subset)), target)
        for target in modalities
        for subset in _subsets(modalities)
        if target not in subset
    ]
    random = results.find("random_coherence")
    groups = [("", [Column("random", "random", (random,))])] if random else []
    if has_many_modalities(results):
        groups.append(("modalities given", grouped(results, generated, lambda each: str(each.num_given))))
        groups.append(("modality generated", grouped(results, generated, lambda each: each.target)))
    else:
        for target in modalities:
            own = [each for each in generated if each.target == target]
            groups.append((f"→ {target}", grouped(results, own, lambda each: each.given)))
    return _by_subset(findings, "coherence", "Coherence of what is generated", groups)


def probe_table(findings: Findings) -> Table | None:
    """One row a config: the accuracy of a linear probe on the content of every subset, or by its size."""
    results = findings.results
    probed = [
        Quantity("probe_accuracy", _posterior(subset), "+".join(sorted(subset)))
        for subset in _subsets(results.modalities)
    ]
    if has_many_modalities(results):
        group = "modalities probed", grouped(results, probed, lambda each: str(each.num_given))
    else:
        group = "probed", grouped(results, probed, lambda each: each.given)
    return _by_subset(findings, "probe_accuracy", "Accuracy of a linear probe", [group])


def leak_table(findings: Findings) -> Table | None:
    """One row a config with subspaces: what a linear probe reads from each of them."""
    what, measure = what_is_read(findings.results)
    quantities = [
        quantity
        for name in findings.results.modalities
        if findings.results.last.get(quantity := leak_quantity(findings.results, name))
    ]
    found = [estimates(findings.results, quantity) for quantity in quantities]
    rows = []
    for each in findings.configs:
        known = [by_config.get(each.config.config_hash) for by_config in found]
        if any(known):
            cells = [bracket_cell(estimate, tinted=True) for estimate in known]
            rows.append(Row((*_config_cells(findings, each), *cells)))
    titles = _config_titles(findings)
    groups = (("", len(titles)), (f"{measure} of a linear probe on the subspace of", len(quantities)))
    names = tuple(quantity.target for quantity in quantities)
    caption = f"What the subspaces know of {what}"
    shown = tuple(rows[:_MOST_COMPARED])
    return Table("leak", caption, (*titles, *names), shown, groups, sortable=True) if rows else None


def posterior_table(findings: Findings) -> Table | None:
    """One row a score: the product of the posteriors against their mixture, paired by trial.

    Of many modalities given all of them, or all but one.
    """
    rows, results = [], findings.results
    for contrast in sorted(contrasts(results), key=lambda each: each.quantity.metric != "mean_coherence"):
        is_small = contrast.quantity.num_given + 1 < len(results.modalities)
        if contrast.quantity.given and is_small and has_many_modalities(results):
            continue
        quantity, difference = contrast.quantity, contrast.difference
        given = f" given {quantity.given}" if quantity.given else ""
        target = f" of {quantity.target}" if quantity.target else ""
        width = "" if difference.half_width is None else f" ± {fixed(difference.half_width, 3)}"
        cells = (
            Cell(quantity.title + target + given + _arrow(quantity)),
            Cell(f"{signed(difference.value, 3)}{width}", "number", difference.value),
            p_cell(contrast.p_value),
        )
        rows.append(Row(cells))
    titles = ("score", "product − mixture", "p")
    caption = "Product against mixture of the posteriors"
    return Table("posteriors", caption, titles, tuple(rows), sortable=True) if rows else None


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
    measured = {quantity.given for quantity in found}
    for subset in _subsets(results.modalities):
        given = "+".join(sorted(subset))
        if given not in measured:
            continue
        cells = [Cell(" + ".join(subset))]
        for metric, target in kinds:
            posteriors = ("product", "mixture") if len(subset) > 1 else ("",)
            for posterior in posteriors:
                estimate = _estimate_of(findings, best, Quantity(metric, posterior, given, target))
                span = 2 // len(posteriors)
                cells.append(bracket_cell(estimate, tinted=True, span=span, muted=target in subset))
        rows.append(Row(tuple(cells)))
    groups = [
        ("", 1),
        *((f"coherence → {target}", 2) for target in targets),
        *([("probe accuracy", 2)] * probed),
    ]
    titles = ("given", *("product", "mixture") * len(kinds))
    return Table("best_subsets", "The best config, given a subset", titles, tuple(rows), tuple(groups))


def summary_table(findings: Findings) -> Table | None:
    """The best config: everything that is not about one subset."""
    best, results = findings.best, findings.results
    if best is None:
        return None
    wanted = [
        quantity
        for quantity in results.last
        if not (quantity.given or quantity.attribute or "classifier" in quantity.metric)
        if quantity.split == "test"
    ]
    order = ("mean_coherence", "random_coherence", "loss", "reconstruction")

    def position(quantity: Quantity) -> tuple[int, str, bool, str]:
        first = order.index(quantity.metric) if quantity.metric in order else len(order)
        return first, quantity.metric, quantity.posterior != "product", quantity.target

    wanted.sort(key=position)
    rows = []
    for quantity in wanted:
        estimate = _estimate_of(findings, best, quantity)
        if estimate:
            name = quantity.label + (f" of {quantity.target}" if quantity.target else "")
            text = in_brackets(estimate, quantity.decimals)
            rows.append(Row((Cell(name), Cell(text, "number"))))
    titles = ("test split", "mean (standard error)")
    return Table("best_summary", "The best config, everything else", titles, tuple(rows)) if rows else None


def judge_accuracies(findings: Findings) -> list[tuple[str, str]]:
    """The accuracy of the classifiers that judge coherence, by modality."""
    best, results = findings.best, findings.results
    if best is None:
        return []
    quantities = [Quantity("classifier_accuracy", target=name) for name in results.modalities]
    values = [(quantity.target, results.values(best.config, quantity)) for quantity in quantities]
    return [(target, fixed(fmean(each), 3)) for target, each in values if each]


def _by_subset(
    findings: Findings, name: str, caption: str, groups: Sequence[tuple[str, Sequence[Column]]]
) -> Table | None:
    """One row a config under groups of shares; bold: what leads a column."""
    results = findings.results
    columns = [column for _, own in groups for column in own]
    if not any(quantity.metric == name for column in columns for quantity in column.quantities):
        return None
    found: list[tuple[dict[str, Estimate], set[str]]] = []
    for column in columns:
        values = column.by_config(results)
        leading = leaders(values, lower_is_better=column.lower_is_better)
        found.append((estimate_means(values, column.bounds), leading))
    rows = []
    for each in findings.configs[:_MOST_COMPARED]:
        config_hash = each.config.config_hash
        cells = [
            bracket_cell(means.get(config_hash), bold=config_hash in leading) for means, leading in found
        ]
        rows.append(Row((*_config_cells(findings, each), *cells)))
    swept = _config_titles(findings)
    titles = (*swept, *(column.title for column in columns))
    shown = [("", len(swept)), *((title, len(own)) for title, own in groups if own)]
    return Table(name, caption, titles, tuple(rows), tuple(shown), sortable=True)


def _posterior(subset: Sequence[str]) -> str:
    """Several modalities are taken as their product; one has but one posterior."""
    return "product" if len(subset) > 1 else ""


def _effect_cells(finding: FactorFinding, results: Results) -> Iterator[Cell]:
    effect, decimals = finding.effect, results.objective.decimals
    assert effect is not None
    means = (f"{level_label(mean.level)}: {plus_minus(mean.estimate, decimals)}" for mean in effect.levels)
    unbroken = (mean.replace(" ", "\N{NO-BREAK SPACE}") for mean in means)
    why = "one replicate" if effect.matched else "one config a level"
    width = f"n/a ({why})" if effect.half_width is None else f"± {fixed(effect.half_width, decimals)}"
    yield Cell(finding.factor.name, "code")
    yield Cell("\N{NO-BREAK SPACE}· ".join(unbroken))
    yield Cell(level_label(effect.best.level))
    yield Cell(level_label(effect.worst.level))
    yield Cell(f"{signed(effect.difference, decimals)} {width}", "number")
    yield p_cell(effect.p_value)
    if not effect.matched:
        others = ", ".join(results.swept[path] for path in rivals(results, finding) if path in results.swept)
        yield Cell("between configs" + (f" that differ in {others} as well" if others else ""))
    else:
        left_out = f", {effect.num_left_out} incomplete left out" if effect.num_left_out else ""
        yield Cell(f"within {plural(effect.best.num_configs, 'setting')}{left_out}")


def _arrow(measured: Column | Quantity) -> str:
    """What follows the name of something that improves downwards."""
    return "\N{NO-BREAK SPACE}↓" if measured.lower_is_better else ""


def _config_titles(findings: Findings) -> list[str]:
    """Titles of the columns that tell a config: its number and its swept fields."""
    return ["#", *(_swept_title(findings, path, name) for path, name in findings.results.swept.items())]


def _config_cells(findings: Findings, finding: ConfigFinding) -> list[Cell]:
    """A config's number and its swept fields."""
    params = (finding.config.params.get(path) for path in findings.results.swept)
    return [Cell(str(finding.number), "number", finding.number), *map(_swept_cell, params)]


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


def _replicates_cell(finding: ConfigFinding, planned: int) -> Cell:
    """How many completed, and what became of the others."""
    complete = len(finding.config.complete)
    others = Counter(trial.state for trial in finding.config.trials if not trial.is_complete)
    states = "".join(f", {count} {state}" for state, count in sorted(others.items()))
    return Cell(f"{complete} of {max(planned, len(finding.config.trials))}{states}", "count", complete)


def _subsets(modalities: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for size in range(1, len(modalities) + 1):
        yield from combinations(modalities, size)


def _estimate_of(findings: Findings, finding: ConfigFinding, quantity: Quantity) -> Estimate | None:
    """A config's mean, its standard error from the variance pooled over all configs."""
    return estimates(findings.results, quantity).get(finding.config.config_hash)
