"""The study beside the paper as the report shows it: sentences, tables in the paper's layout, a figure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from analysis.cells import Cell, Row, Table, in_brackets
from analysis.claims import CLAIMS, MARGIN, VERDICTS, Judgement
from analysis.drawing import INK, MARKERS, PALETTE, Drawing, bars, hint, save
from analysis.estimates import Estimate
from analysis.paper import DEFINITIONS, Comparison, Sheet, Value, sheets
from analysis.published import DATASET, MODELS
from analysis.results import Config, Quantity
from analysis.wording import code, fixed, plural, signed


def introduction(comparison: Comparison) -> list[str]:
    """What is compared with what, as Markdown."""
    models = [entry for entry in comparison.entries if entry.is_published]
    num_configs = sum(len(configs) for configs in comparison.configs.values())
    samples = sorted({number for entry in models if (number := _num_samples(entry.config))})
    trained = f", each trained on {_range(samples)} samples" if samples else ""
    count = "all" if len(models) == len(MODELS) else str(len(models))
    held = f"The study holds {count} of the paper's {len(MODELS)} models"
    sentence = f"{held} on {code(comparison.dataset)}{trained}."
    if num_configs > len(models):
        sentence += (
            f" Of {plural(num_configs, 'config')} of these models, the best of each on the validation split "
            "stands for it."
        )
    if comparison.is_same_data:
        caution = (
            "Numbers also move with the networks' width, the samples trained on, and the classifiers that "
            "judge coherence and quality: what compares best is how the models differ."
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
            told = f"{next(iter(counts))} in {_all(total)}" if len(counts) == 1 else ", ".join(parts)
            told += f" of {total} cases" if len(counts) > 1 else ""
            sentences.append(f"{statement} **{told[0].upper()}{told[1:]}.**")
    return sentences


def claim_table(judgements: Sequence[Judgement]) -> Table | None:
    """One row a case of a claim."""
    rows, named = [], ""
    for each in judgements:
        claim = each.case.claim
        cells = (
            Cell(claim if claim != named else ""),
            Cell(each.case.label),
            Cell(signed(each.difference.value, each.decimals), "number"),
            Cell(_interval(each), "number"),
            Cell("–" if each.published is None else signed(each.published, each.decimals), "number"),
            Cell(
                each.verdict,
                "fails" if each.verdict == "does not hold here" else "word",
                bold=each.verdict == "holds",
            ),
        )
        rows.append(Row(cells))
        named = claim
    titles = ("claim", "case", "difference", "95 % interval", "in the paper", "verdict")
    caption = f"The paper's claims, judged by {plural(len(rows), 'comparison')}"
    return Table("claims", caption, titles, tuple(rows)) if rows else None


def claim_drawing(judgements: Sequence[Judgement]) -> Drawing | None:
    """Every case that is about shares: its difference with its interval, and the paper's."""
    shown = [each for each in judgements if each.decimals == Quantity("probe_accuracy").decimals]
    claims = list(dict.fromkeys(each.case.claim for each in shown))
    marks = [(-index - 1.4 * claims.index(each.case.claim), each) for index, each in enumerate(shown)]
    if not marks:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.axvline(0, color=INK, lw=0.9)
        for verdict, colour, marker in zip(VERDICTS, (PALETTE[0], INK, PALETTE[1]), MARKERS, strict=False):
            group = [mark for mark in marks if mark[1].verdict == verdict]
            if group:
                _points(axes, group, {"fmt": marker, "color": colour, "label": verdict})
        known = [(each.published, place) for place, each in marks if each.published is not None]
        if known:
            x, y = zip(*known, strict=True)
            axes.plot(x, y, "D", mfc="none", mec=PALETTE[2], ms=6.5, label="in the paper", zorder=3)
        heads = {claim: 0.9 + max(y for y, each in marks if each.case.claim == claim) for claim in claims}
        places, labels = zip(*((y, each.case.label) for y, each in marks), strict=True)
        axes.set_yticks([*heads.values(), *places], [*heads, *labels], fontsize=8)
        for text in axes.get_yticklabels()[: len(heads)]:
            text.set_fontweight("bold")
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(min(places) - 0.8, 1.5)
        axes.set_xlabel("difference of shares (positive: as claimed)")
        figure.legend(loc="outside lower center", ncols=4, fontsize=8.5)

    caption = (
        "The cases of the table that are about shares. Bars: intervals that hold together with 95 % "
        f"confidence. Shares that are claimed to be the same have to be so within ± {MARGIN}."
    )
    height = 1.3 + 0.19 * (len(marks) + 1.4 * len(claims))
    return save("claims", "What the paper claims, and what this study finds", caption, height, paint)


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


def _points(axes: Any, marks: Sequence[tuple[float, Judgement]], style: Mapping[str, Any]) -> None:
    """Differences with their intervals, each at its place along the y axis."""
    differences = [each.difference for _, each in marks]
    drawn, *_ = axes.errorbar(
        [difference.value for difference in differences],
        [place for place, _ in marks],
        xerr=bars(differences),
        ms=5,
        elinewidth=1.3,
        capsize=2,
        **style,
    )
    values = (signed(difference.value, 3) for difference in differences)
    hint(
        drawn,
        [
            f"{each.case.label}: {value} ({_interval(each)}), {each.verdict}"
            for (_, each), value in zip(marks, values, strict=True)
        ],
    )


def _sheet_table(comparison: Comparison, sheet: Sheet, values: Sequence[Sequence[Value]]) -> Table:
    rows = []
    label = "paper (SE off)" if comparison.is_same_data else "paper"
    for row in values:
        entry = row[0].entry
        cells = [_value_cell(comparison, value) for value in row]
        title = entry.title if entry.is_published else f"… {entry.posterior}"
        rows.append(Row((Cell(title, "word"), Cell(str(entry.number), "number"), *cells)))
        if any(value.published for value in row):
            cells = [_published_cell(value) for value in row]
            rows.append(Row((Cell(label, "word", muted=True), Cell("", "number"), *cells)))
    names = ", ".join(f"{letter}: {name}" for letter, name in comparison.letters.items())
    layout = "As" if sheet.is_published else "In the layout of"
    titles = ("model", "#", *(column.title for column in sheet.columns))
    groups = [("", 2)]
    for column in sheet.columns:
        if groups[-1][0] == column.group and column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    shown = tuple(groups) if any(title for title, _ in groups) else ()
    caption = f"{layout} the paper's Table {sheet.number}: {sheet.caption} ({names})"
    return Table(sheet.name, caption, titles, tuple(rows), shown)


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
        text += f" ({signed(value.difference, 1 if abs(value.difference) < 100 else 0)})"
    return Cell(text, "number", muted=True)


def _interval_cell(estimate: Estimate | None, quantity: Quantity) -> Cell:
    if estimate is None:
        return Cell("–", "number")
    width = "n/a" if estimate.half_width is None else fixed(estimate.half_width, quantity.decimals)
    return Cell(f"{signed(estimate.value, quantity.decimals)} ± {width}", "number")


def _interval(judgement: Judgement) -> str:
    low, high = judgement.difference.low, judgement.difference.high
    if low is None or high is None:
        return "n/a"
    return f"{signed(low, judgement.decimals)} to {signed(high, judgement.decimals)}"


def _num_samples(config: Config) -> int:
    """Samples that a trial was trained on, zero if that is not told."""
    settings = config.settings
    return int(settings["data"].get("samples_per_epoch", 0) * settings.get("training", {}).get("epochs", 0))


def _range(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def _all(total: int) -> str:
    return {1: "the only case", 2: "both cases"}.get(total, f"all {total} cases")


def _rank(item: tuple[str, int]) -> int:
    return VERDICTS.index(item[0])
