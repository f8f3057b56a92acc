"""The study beside the paper as the report shows it: sentences, and tables in the paper's layout."""

from collections import Counter
from collections.abc import Iterator, Sequence

from analysis.claims import CLAIMS, Judgement
from analysis.estimates import Estimate
from analysis.paper import DEFINITIONS, Comparison, Sheet, Value, sheets
from analysis.published import DATASET
from analysis.results import Config, Quantity
from analysis.tables import Cell, Row, Table, in_brackets
from analysis.wording import code, fixed, plural, signed


def introduction(comparison: Comparison) -> list[str]:
    """What is compared with what, as Markdown."""
    models = [entry for entry in comparison.entries if entry.is_published]
    num_configs = sum(len(configs) for configs in comparison.configs.values())
    samples = sorted({number for entry in models if (number := _num_samples(entry.config))})
    trained = f", each trained on {_range(samples)} samples" if samples else ""
    sentence = (
        f"The study holds {len(models)} of the paper's 6 models on {code(comparison.dataset)}{trained}."
    )
    if num_configs > len(models):
        sentence += (
            f" Of {plural(num_configs, 'config')} of these models, the best of each on the validation split "
            "stands for it."
        )
    if comparison.is_same_data:
        caution = (
            "Networks of another width, fewer samples, other classifiers and another network's features for "
            "the quality of images move numbers too: what compares best is how the models differ."
        )
    else:
        caution = (
            f"**The data differ**: the paper's numbers are of {code(DATASET)}. The layout is the paper's, "
            "and how models differ may be compared, but not the numbers."
        )
    return [sentence, caution]


def verdicts(judgements: Sequence[Judgement]) -> list[str]:
    """Each claim that was judged, with how often it holds, as Markdown."""
    sentences = []
    for claim, statement in CLAIMS.items():
        counts = Counter(each.verdict for each in judgements if each.case.claim == claim)
        if counts:
            total = sum(counts.values())
            parts = [f"{verdict} in {count}" for verdict, count in sorted(counts.items(), key=_rank)]
            told = f"{next(iter(counts))} in {_every(total)}" if len(counts) == 1 else ", ".join(parts)
            told += f" of {total} cases" if len(counts) > 1 else ""
            sentences.append(f"{statement} **{told[0].upper()}{told[1:]}.**")
    return sentences


def claim_table(judgements: Sequence[Judgement]) -> Table | None:
    """One row a case of a claim."""
    rows, named = [], ""
    for each in judgements:
        claim = each.case.claim
        low, high = each.difference.low, each.difference.high
        interval = "n/a"
        if low is not None and high is not None:
            interval = f"{signed(low, each.decimals)} to {signed(high, each.decimals)}"
        cells = (
            Cell(claim if claim != named else ""),
            Cell(each.case.label),
            Cell(signed(each.difference.value, each.decimals), "number"),
            Cell(interval, "number"),
            Cell("–" if each.published is None else signed(each.published, each.decimals), "number"),
            Cell(each.verdict, bold=each.verdict == "holds"),
        )
        rows.append(Row(cells))
        named = claim
    titles = ("claim", "case", "difference", "95 % interval", "in the paper", "verdict")
    caption = f"The paper's claims, judged by {plural(len(rows), 'comparison')}"
    return Table("claims", caption, titles, tuple(rows)) if rows else None


def paper_tables(comparison: Comparison) -> Iterator[Table]:
    """The paper's tables with the study's numbers, and the same by the definitions."""
    for sheet in sheets():
        values = comparison.values(sheet.columns)
        if any(value.ours for row in values for value in row):
            yield _sheet_table(comparison, sheet, values)


def released_table(comparison: Comparison) -> Table | None:
    """By how much the formulas of the authors' code raise each model's numbers over the definitions."""
    found = {metric: comparison.worth(metric) for metric in DEFINITIONS}
    shown = [metric for metric in found if found[metric]]
    rows = []
    for entry in comparison.entries:
        if entry.is_published:
            cells = [_interval_cell(found[each].get(entry.model), Quantity(each)) for each in shown]
            rows.append(Row((Cell(entry.title), *cells)))
    titles = ("model", *(metric.removesuffix("_as_released").replace("_", " ") for metric in shown))
    caption = "What the formulas of the authors' code add to the definitions"
    return Table("as_released", caption, titles, tuple(rows)) if shown else None


def _sheet_table(comparison: Comparison, sheet: Sheet, values: Sequence[Sequence[Value]]) -> Table:
    rows = []
    for row in values:
        entry = row[0].entry
        cells = [_value_cell(comparison, value) for value in row]
        rows.append(Row((Cell(entry.title, "word"), Cell(str(entry.number), "number"), *cells)))
        if any(value.published for value in row):
            cells = [_published_cell(value) for value in row]
            rows.append(Row((Cell("paper", muted=True), Cell("", "number"), *cells)))
    names = ", ".join(f"{letter}: {name}" for letter, name in comparison.letters.items())
    number = f"Table {sheet.number}" if sheet.is_published else f"Layout of Table {sheet.number}"
    titles = ("model", "#", *(column.title for column in sheet.columns))
    groups = [("", 2)]
    for column in sheet.columns:
        if groups[-1][0] == column.group and column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    shown = tuple(groups) if any(title for title, _ in groups) else ()
    return Table(sheet.name, f"{number}. {sheet.caption} ({names})", titles, tuple(rows), shown)


def _value_cell(comparison: Comparison, value: Value) -> Cell:
    if value.ours is None:
        return Cell("", "number")
    decimals = comparison.quantity(value.column, "").decimals
    return Cell(in_brackets(value.ours, decimals), "number", bold=value.leads)


def _published_cell(value: Value) -> Cell:
    if value.published is None:
        return Cell("", "number", muted=True)
    text = value.published.replace("-", "−")
    if value.difference is not None:
        text += f" ({signed(value.difference, 1 if abs(value.difference) < 100 else 0)} SE)"
    return Cell(text, "number", muted=True)


def _interval_cell(estimate: Estimate | None, quantity: Quantity) -> Cell:
    if estimate is None:
        return Cell("–", "number")
    width = "n/a" if estimate.half_width is None else fixed(estimate.half_width, quantity.decimals)
    return Cell(f"{signed(estimate.value, quantity.decimals)} ± {width}", "number")


def _num_samples(config: Config) -> int:
    """Samples that a trial was trained on, zero if that is not told."""
    settings = config.settings
    return int(settings["data"].get("samples_per_epoch", 0) * settings.get("training", {}).get("epochs", 0))


def _range(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _every(total: int) -> str:
    return "the only case" if total == 1 else f"all {total} cases"


def _rank(item: tuple[str, int]) -> int:
    return ("holds", "undecided", "does not hold here").index(item[0])
