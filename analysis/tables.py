"""The report's tables, independent of how they are written: HTML, Markdown and LaTeX show the same cells."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from analysis.estimates import Estimate, estimate_means
from analysis.findings import Column, ConfigFinding, FactorFinding, Findings, contrasts, estimates, leaders
from analysis.importance import Importance
from analysis.leaks import leak_quantity, what_is_read
from analysis.results import Quantity, Results, level_label, weight_names
from analysis.wording import fixed, p_text, plural, plus_minus, signed

_MOST_COMPARED = 30
"""Configs that a table by subset shows, best first; tables/scores.csv has all."""

_MOST_APART = 3
"""Modalities of which tables show every subset; of more they show means, as each doubles the subsets."""


@dataclass(frozen=True)
class Cell:
    """One cell; `sort` is what its column is sorted by, `share` in [0, 1] tints it."""

    text: str
    kind: str = "text"
    sort: float | str | None = None
    share: float | None = None
    span: int = 1
    muted: bool = False
    bold: bool = False


@dataclass(frozen=True)
class Row:
    """Cells, and whether the row stands out."""

    cells: tuple[Cell, ...]
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """Titles of the columns, optionally under groups of (title, number of columns), and rows."""

    name: str
    """Of its files."""

    caption: str
    titles: tuple[str, ...]
    rows: tuple[Row, ...]
    groups: tuple[tuple[str, int], ...] = ()
    sortable: bool = False

    @property
    def full_titles(self) -> list[str]:
        """The titles with their group's, for a table that has one line of titles."""
        groups = [title for title, span in self.groups for _ in range(span)] or [""] * len(self.titles)
        return [", ".join(filter(None, pair)) for pair in zip(groups, self.titles, strict=True)]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First and last column, counted from one, of each group that has a title."""
        spans, first = [], 1
        for title, span in self.groups:
            if title:
                spans.append((first, first + span - 1))
            first += span
        return spans

    @property
    def alignment(self) -> str:
        """LaTeX's letter for each column: numbers to the right."""
        cells = self.rows[0].cells
        return "".join(("r" if cell.kind in ("number", "count") else "l") * cell.span for cell in cells)


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
            *config_cells(findings, each),
            Cell(mark, sort={"best": 0, "tied": 1}.get(mark, 2)),
            Cell(validated, "number", validation),
            *(_estimate_cell(each.estimates[column.key], column.decimals) for column in findings.columns),
            _replicates_cell(each, results.num_replicates(each.config)),
            Cell(fixed(each.config.device_s, 1), "number", each.config.device_s),
        ]
        rows.append(Row(tuple(cells), each.is_best))
    measured = [column.title + _arrow(column) for column in findings.columns]
    swept = config_titles(findings)
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
            _estimate_cell(each.searched, decimals),
            Cell("–" if validation is None else fixed(validation, decimals), "number", validation),
            _estimate_cell(each.fresh, decimals),
            Cell(against, "number", gain.value if gain else None),
            _p_cell(each.p_value),
            Cell(str(len(each.config.complete)), "number", len(each.config.complete)),
        ]
        rows.append(Row(tuple(cells), index == 0 and validation is not None))
    fields = config_titles(findings)
    titles = (*fields, "test", "validation", "test", "against the base, test", "p", "replicates")
    groups = (("", len(fields)), ("search", 1), ("fresh seeds", 5))
    caption = f"Confirmation with fresh seeds: {results.objective.label}"
    return Table("confirmation", caption, titles, tuple(rows), groups, sortable=True)


def effect_table(findings: Findings) -> Table | None:
    """One row a factor with levels: their means and the difference between the outermost."""
    decimals = findings.results.objective.decimals
    rows = [Row(tuple(_effect_cells(finding, decimals))) for finding in findings.effects]
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
                _p_cell(finding.correlation.p_value),
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
    modalities = findings.results.modalities
    generated = [
        Quantity("coherence", _posterior(subset), "+".join(sorted(subset)), target)
        for target in modalities
        for subset in _subsets(modalities)
        if target not in subset
    ]
    random = findings.results.find("random_coherence")
    groups = [("", [Column("random", "random", (random,))])] if random else []
    if has_many_modalities(findings.results):
        groups.append(("modalities given", _means(findings, generated, _num_given)))
        groups.append(("modality generated", _means(findings, generated, lambda each: each.target)))
    else:
        for target in modalities:
            own = [each for each in generated if each.target == target]
            groups.append((f"→ {target}", _means(findings, own, lambda each: each.given)))
    return _by_subset(findings, "coherence", "Coherence of what is generated", groups)


def probe_table(findings: Findings) -> Table | None:
    """One row a config: the accuracy of a linear probe on the content of every subset, or by its size."""
    probed = [
        Quantity("probe_accuracy", _posterior(subset), "+".join(sorted(subset)))
        for subset in _subsets(findings.results.modalities)
    ]
    if has_many_modalities(findings.results):
        group = "modalities probed", _means(findings, probed, _num_given)
    else:
        group = "probed", _means(findings, probed, lambda each: each.given)
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
            cells = [
                Cell("–", "number")
                if estimate is None
                else Cell(in_brackets(estimate, 3), "number", estimate.value, estimate.value)
                for estimate in known
            ]
            rows.append(Row((*config_cells(findings, each), *cells)))
    titles = config_titles(findings)
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
        is_small = contrast.quantity.given.count("+") + 2 < len(results.modalities)
        if contrast.quantity.given and is_small and has_many_modalities(results):
            continue
        quantity, difference = contrast.quantity, contrast.difference
        given = f" given {quantity.given}" if quantity.given else ""
        target = f" of {quantity.target}" if quantity.target else ""
        width = "" if difference.half_width is None else f" ± {fixed(difference.half_width, 3)}"
        cells = (
            Cell(quantity.title + target + given + _arrow(quantity)),
            Cell(f"{signed(difference.value, 3)}{width}", "number", difference.value),
            _p_cell(contrast.p_value),
        )
        rows.append(Row(cells))
    titles = ("score", "product − mixture", "p")
    caption = "Product against mixture of the posteriors"
    return Table("posteriors", caption, titles, tuple(rows), sortable=True) if rows else None


def _arrow(measured: Column | Quantity) -> str:
    """What follows the name of something that improves downwards."""
    return "\N{NO-BREAK SPACE}↓" if measured.lower_is_better else ""


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
                span, muted = 2 // len(posteriors), target in subset
                if estimate is None:
                    cells.append(Cell("–", "number", span=span))
                else:
                    text = in_brackets(estimate, 3)
                    share = min(1.0, max(0.0, estimate.value))
                    cells.append(Cell(text, "number", estimate.value, share, span, muted))
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


def _means(
    findings: Findings, quantities: Sequence[Quantity], title: Callable[[Quantity], str]
) -> list[Column]:
    """Columns of what was measured: of quantities that have the same title the mean."""
    found: dict[str, list[Quantity]] = {}
    for quantity in quantities:
        if findings.results.last.get(quantity):
            found.setdefault(title(quantity), []).append(quantity)
    return [Column(name, name, tuple(own)) for name, own in found.items()]


def _num_given(quantity: Quantity) -> str:
    return str(quantity.given.count("+") + 1)


def _by_subset(
    findings: Findings, name: str, caption: str, groups: Sequence[tuple[str, Sequence[Column]]]
) -> Table | None:
    """One row a config under groups of shares; bold: the best of a column, and what is tied with it.

    Where all are tied, none is bold.
    """
    results = findings.results
    columns = [column for _, own in groups for column in own]
    if not any(quantity.metric == name for column in columns for quantity in column.quantities):
        return None
    found: list[tuple[dict[str, Estimate], set[str]]] = []
    for column in columns:
        values = {each.config_hash: [*column.values(each, results).values()] for each in results.configs}
        leading = leaders(values, lower_is_better=column.lower_is_better)
        is_led = any(values[each] for each in values.keys() - leading)
        found.append((estimate_means(values, column.bounds), leading if is_led else set()))
    rows = []
    for each in findings.configs[:_MOST_COMPARED]:
        config_hash = each.config.config_hash
        cells = [
            _bracket_cell(means.get(config_hash), bold=config_hash in leading) for means, leading in found
        ]
        rows.append(Row((*config_cells(findings, each), *cells)))
    swept = config_titles(findings)
    titles = (*swept, *(column.title for column in columns))
    shown = [("", len(swept)), *((title, len(own)) for title, own in groups if own)]
    return Table(name, caption, titles, tuple(rows), tuple(shown), sortable=True)


def _posterior(subset: Sequence[str]) -> str:
    """Several modalities are taken as their product; one has but one posterior."""
    return "product" if len(subset) > 1 else ""


def _effect_cells(finding: FactorFinding, decimals: int) -> Iterator[Cell]:
    effect = finding.effect
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
    yield _p_cell(effect.p_value)
    if not effect.matched:
        yield Cell("between configs")
    else:
        left_out = f", {effect.num_left_out} incomplete left out" if effect.num_left_out else ""
        yield Cell(f"within {plural(effect.best.num_configs, 'setting')}{left_out}")


def config_titles(findings: Findings) -> list[str]:
    """Titles of the columns that tell a config: its number and its swept fields."""
    return ["#", *(_swept_title(findings, path, name) for path, name in findings.results.swept.items())]


def config_cells(findings: Findings, finding: ConfigFinding) -> list[Cell]:
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


def _estimate_cell(estimate: Estimate | None, decimals: int) -> Cell:
    if estimate is None:
        return Cell("–", "number")
    text = plus_minus(estimate, decimals) + (" ± n/a" if estimate.half_width is None else "")
    return Cell(text, "number", estimate.value)


def _bracket_cell(estimate: Estimate | None, *, bold: bool) -> Cell:
    if estimate is None:
        return Cell("–", "number")
    return Cell(in_brackets(estimate, 3), "number", estimate.value, bold=bold)


def _p_cell(p_value: float | None) -> Cell:
    """A p-value under a title that says so."""
    text = "–" if p_value is None else p_text(p_value).removeprefix("p ").removeprefix("= ")
    return Cell(text, "number", p_value)


def _subsets(modalities: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for size in range(1, len(modalities) + 1):
        yield from combinations(modalities, size)


def _estimate_of(findings: Findings, finding: ConfigFinding, quantity: Quantity) -> Estimate | None:
    """A config's mean, its standard error from the variance pooled over all configs."""
    return estimates(findings.results, quantity).get(finding.config.config_hash)


def in_brackets(estimate: Estimate, decimals: int) -> str:
    """A mean and its standard error: 0.774 (0.012)."""
    error = "n/a" if estimate.standard_error is None else fixed(estimate.standard_error, decimals)
    return f"{fixed(estimate.value, decimals)} ({error})"
