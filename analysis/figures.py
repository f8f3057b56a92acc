"""The figures of effects, trade-offs and learning curves; the report's others have modules of their own."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from math import ceil
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis.drawing import (
    DASHES,
    INK,
    MARKERS,
    MOST_VECTORS,
    PALETTE,
    Drawing,
    bars,
    broken,
    hint,
    legend,
    level_axis,
    look_of,
    plot_estimates,
    save,
    scatter_trials,
    short_labels,
    what_bars_are,
)
from analysis.estimates import CONFIDENCE, Estimate
from analysis.findings import (
    COST,
    Column,
    ConfigFinding,
    FactorFinding,
    Findings,
    FrontPoint,
    column_of,
    front,
    setting_of,
)
from analysis.given import given_drawing
from analysis.importance import Importance
from analysis.parallel import parallel_drawing
from analysis.results import Config, Factor, level_label
from analysis.simplexes import draw_simplexes
from analysis.wording import config_hint, fixed, p_text, plus_minus, signed

_MOST_NUMBERS = 20
"""Configs that carry their number in the trade-off, as far as there is room."""

_NUMBER_PLACE, _NUMBER_SIZE = (16, 12), (15, 11)
"""Pixels from a mark to the middle of its number, and those that a number takes."""

_MOST_CURVES = 60
"""Configs whose learning curves are drawn, best first."""


def draw(findings: Findings, importances: Sequence[Importance]) -> list[Drawing]:
    """The figures of effects and trade-offs that the study has data for, the most telling first."""
    if not any(finding.objective for finding in findings.configs):
        drawn = [_learning_curves(findings)]
    else:
        effects, simplexes = _main_effects(findings), list(draw_simplexes(findings))
        drawn = [
            _interaction(findings),
            *([effects, *simplexes] if findings.effects else [*simplexes, effects]),
            _importance(findings, importances),
            parallel_drawing(findings),
            _trade_off(findings),
            *_further_trade_offs(findings),
            given_drawing(findings),
            _cost(findings),
            _learning_curves(findings),
        ]
    return [drawing for drawing in drawn if drawing]


def _interaction(findings: Findings) -> Drawing | None:
    crossing = findings.crossing
    if crossing is None:
        return None
    results = findings.results
    decimals = results.objective.decimals

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        lines, labels = crossing.lines.levels, short_labels(crossing.lines.levels)
        for index, line in enumerate(lines):
            pairs = [(position, (level, line)) for position, level in enumerate(crossing.along.levels)]
            pairs = [(position, pair) for position, pair in pairs if pair in crossing.means]
            step = 0.36 / len(lines)
            shift = step * (index + 0.5 - len(lines) / 2)
            colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
            for position, pair in pairs:
                trials = [
                    value
                    for config in crossing.configs[pair]
                    for value in _objective_values(findings, config)
                ]
                scatter_trials(axes, position + shift + step / 3, trials, colour, step / 8)
            estimates = [crossing.means[pair] for _, pair in pairs]
            name = f"{crossing.lines.name} = {level_label(line)}"
            label = f"{broken(crossing.lines.name)} = {labels[index]}"
            positions = [position + shift for position, _ in pairs]
            drawn = plot_estimates(axes, positions, estimates, colour, marker, "-", label)
            named = [
                f"{crossing.along.name} = {level_label(level)}, {name}: {plus_minus(estimate, decimals)}"
                for (_, (level, _)), estimate in zip(pairs, estimates, strict=True)
            ]
            hint(drawn, named)
        level_axis(axes, crossing.along)
        axes.set_ylabel(results.objective.axis_label)
        axes.legend(loc="best")

    over = (
        " (averaged over the settings of the others that all pairs have)" if len(results.factors) > 2 else ""
    )
    caption = (
        f"Test {results.objective.label} for every pair of levels{over}. {_bars(findings)} Small points "
        "beside them: single trials. Parallel lines mean that the factors act independently."
    )
    if findings.interaction:
        test = findings.interaction
        of = "their interaction" if len(results.factors) == 2 else "the interactions of all factors"
        caption += f" F test of {of}: F({test.dof[0]}, {test.dof[1]}) = {test.statistic:.1f}, "
        caption += f"{p_text(test.p_value)}."
    title = f"{crossing.along.name} and {crossing.lines.name} together"
    return save("interaction", title, caption, 4.1, paint)


def _main_effects(findings: Findings) -> Drawing | None:
    shown = [*findings.effects, *findings.correlations]
    if not shown:
        return None
    columns = 2 if len(shown) == 4 else min(len(shown), 3)
    rows = ceil(len(shown) / columns)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, finding in zip(grid.flat, shown, strict=False):
            if finding.effect:
                _level_panel(axes, findings, finding)
            else:
                _scatter_panel(axes, findings, finding)
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()
        figure.supylabel(findings.results.objective.axis_label, fontsize=9.5)

    caption = f"Test {findings.results.objective.label} against each factor."
    if findings.effects:
        caption += f" Small points: single trials, at most {MOST_VECTORS} a level; "
        caption += "large ones: means of a level over the other factors."
        if any(each.effect and each.effect.num_left_out for each in shown):
            caption += " Hollow: trials of settings that lack a level, which the means leave out."
    if findings.correlations:
        caption += " Circles: means of configs, with Spearman's ρ."
    height = 3.6 if len(shown) == 1 else 2.7 * rows
    if any(each.effect and each.effect.half_width is not None for each in shown):
        caption += " Bars: 95 % intervals."
    elif findings.correlations or any(each.effect and each.effect.matched for each in shown):
        caption += f" {_bars(findings)}"
    else:
        caption += " Intervals would need several configs a level."
    return save("main_effects", "Each factor for itself", caption, height, paint)


def _level_panel(axes: Any, findings: Findings, finding: FactorFinding) -> None:
    effect, factor = finding.effect, finding.factor
    assert effect is not None
    left_out = _left_out(findings, finding)
    for position, level in enumerate(factor.levels):
        configs = [each.config for each in findings.configs if factor.value(each.config) == level]
        filled, hollow = (
            [
                value
                for config in configs
                if (config.config_hash in left_out) == is_hollow
                for value in _objective_values(findings, config)
            ]
            for is_hollow in (False, True)
        )
        scatter_trials(axes, position, filled, PALETTE[0], 0.12, hollow)
    found = {mean.level: mean.estimate for mean in effect.levels}
    positions = [position for position, level in enumerate(factor.levels) if level in found]
    estimates = [found[level] for level in factor.levels if level in found]
    decimals = findings.results.objective.decimals
    drawn = plot_estimates(axes, positions, estimates, PALETTE[0], "o", ":", None)
    named = ((level, found[level]) for level in factor.levels if level in found)
    hint(
        drawn, [f"{factor.name} = {level_label(each)}: {plus_minus(mean, decimals)}" for each, mean in named]
    )
    level_axis(axes, factor)
    axes.set_title(f"effect {signed(effect.difference, decimals)}")


def _left_out(findings: Findings, finding: FactorFinding) -> set[str]:
    """Hashes of the configs whose settings of the other fields lack a level, so that no mean counts them."""
    effect, factor = finding.effect, finding.factor
    if effect is None or not effect.num_left_out:
        return set()
    measured = [
        (config, setting_of(config, factor))
        for config in (each.config for each in findings.configs if each.objective)
        if factor.value(config) is not None
    ]
    pairs = {(setting, factor.value(config)) for config, setting in measured}
    num_levels = Counter(setting for setting, _ in pairs)
    return {config.config_hash for config, setting in measured if num_levels[setting] < len(effect.levels)}


def _scatter_panel(axes: Any, findings: Findings, finding: FactorFinding) -> None:
    factor, found = finding.factor, finding.correlation
    assert found is not None
    points = [
        (each, x, each.objective)
        for each in findings.configs
        if (x := factor.value(each.config)) is not None and each.objective
    ]
    _scatter(axes, findings, points, {"color": PALETTE[0], "fmt": "o", "mfc": "none", "ms": 5})
    if factor.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(factor.name)
    axes.set_title(f"ρ = {signed(found.rho, 2)}, {p_text(found.p_value)}")


def _trade_off(findings: Findings) -> Drawing | None:
    keys = {column.key: column for column in findings.columns}
    further = findings.results.objectives[1:]
    if further and (column := keys.get(further[0].metric)):
        return _plane(findings, "trade_off", column, "the study's second objective on the test split")
    column = keys.get("reconstruction") or keys.get("loss")
    if column is None:
        return None
    what = (
        "the sum over modalities of the negative log-likelihood, in nats per sample, on the test split"
        if column.key == "reconstruction"
        else "the loss on the test split, in nats per sample"
    )
    return _plane(findings, "trade_off", column, what)


def _further_trade_offs(findings: Findings) -> Iterator[Drawing | None]:
    for name, metric, what in (
        ("likelihood", "log_likelihood", "the log-likelihood given all modalities, in nats per sample"),
        ("quality", "frechet_distance", "the Fréchet distance of images generated given nothing, summed up"),
    ):
        column = column_of(findings.results, metric)
        if column and not any(each.metric == metric for each in findings.results.objectives[:2]):
            yield _plane(findings, name, column, f"{what}, on the test split")


def _cost(findings: Findings) -> Drawing | None:
    what = "what a trial took, mean over the replicates"
    return _plane(findings, "cost", COST, what)


def _plane(findings: Findings, name: str, column: Column, what: str) -> Drawing | None:
    """The objective against another column, and the configs that no other beats."""
    objective = next(each for each in findings.columns if each.key == "objective")
    points = front(findings, column, objective)
    if len({point.x.value for point in points}) < 2:
        return None
    factors = _shown_by_look(findings)
    leading = sorted((point.x.value, point.y.value) for point in points if point.on_front)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(visible=True, axis="both")
        steps = "steps-post" if column.lower_is_better else "steps-pre"
        axes.plot(*zip(*leading, strict=True), color=INK, lw=0.8, ls=(0, (4, 3)), drawstyle=steps, zorder=1)
        looks: dict[tuple[str, int], list[FrontPoint]] = {}
        for point in points:
            looks.setdefault(look_of(point.finding.config, factors), []).append(point)
        for (colour, index), group in looks.items():
            marks = [(point.finding, point.x.value, point.y) for point in group]
            style = {"fmt": MARKERS[index], "color": colour, "ms": 6.5}
            _scatter(axes, findings, marks, style, [point.x for point in group])
        better = "lower" if column.lower_is_better else "higher"
        label = column.quantities[0].axis_label if column.quantities else column.title
        axes.set_xlabel(f"{label} ({better} is better)")
        axes.set_ylabel(findings.results.objective.axis_label)
        legend(axes, factors, lambda index: {"marker": MARKERS[index], "ls": ""})
        _number(axes, points)

    shares = [point for point in points if point.attainment is not None]
    sure = [each for each in shares if each.on_front and (each.attainment or 0) >= CONFIDENCE]
    caption = (
        "One point a config, numbered as in the table where there is room; ringed: the best. "
        f"Horizontal: {what}. {_bars(findings)} "
        "Dashed: the front of the configs that no other beats in both."
    )
    if shares:
        caption += (
            f" With other seeds the same configs need not lie there: {len(sure)} of {len(leading)} "
            "would in at least 95 % of resampled studies."
        )
    draws = " or ".join(map(str, findings.results.importance_samples))
    if draws and any("log_likelihood" in each.metric for each in (*column.quantities, *objective.quantities)):
        caption += f" The log-likelihood is estimated by importance sampling (K = {draws})."
    title = findings.results.objective.title.capitalize()
    return save(name, f"{title} against {column.title}", caption, 4.1, paint)


def _number(axes: Any, points: Sequence[FrontPoint]) -> None:
    """Ring the best, and write its number; others', those of the front first, where they cover nothing."""
    axes.figure.draw_without_rendering()  # lays it out
    taken = list(axes.transData.transform([(point.x.value, point.y.value) for point in points]))
    ordered = sorted(points, key=lambda each: (not each.finding.is_best, not each.on_front))
    for point in ordered[:_MOST_NUMBERS]:
        place = (point.x.value, point.y.value)
        middle = axes.transData.transform(place) + _NUMBER_PLACE
        if point.finding.is_best:
            axes.plot(*place, "o", mfc="none", mec=INK, ms=13, mew=1.2)
        elif not all((abs(middle - each) > _NUMBER_SIZE).any() for each in taken):
            continue
        taken.append(middle)
        number = str(point.finding.number)
        axes.annotate(number, place, xytext=(6, 5), textcoords="offset points", fontsize=8.5)


def _scatter(
    axes: Any,
    findings: Findings,
    points: Sequence[tuple[ConfigFinding, float, Estimate]],
    style: Mapping[str, Any],
    widths: Sequence[Estimate] = (),
) -> None:
    """Configs as points with their intervals, as long as they are few enough to be told apart."""
    x, y = [place for _, place, _ in points], [estimate for _, _, estimate in points]
    known = findings.noise.dof and len(findings.configs) <= MOST_VECTORS
    errors = {
        axis: bars(estimates) for axis, estimates in (("xerr", widths), ("yerr", y)) if known and estimates
    }
    many = len(findings.configs) > MOST_VECTORS
    values = [estimate.value for estimate in y]
    drawn, *_ = axes.errorbar(x, values, elinewidth=0.9, capsize=0, rasterized=many, **errors, **style)
    if not many:
        hint(drawn, [config_hint(finding, findings) for finding, _, _ in points])


def _importance(findings: Findings, importances: Sequence[Importance]) -> Drawing | None:
    if not importances:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        for position, each in enumerate(reversed(importances)):
            low, high = (each.share if end is None else end for end in (each.low, each.high))
            axes.barh(position, each.share, height=0.55, color=PALETTE[0], alpha=0.75)
            axes.plot([low, high], [position, position], color=INK, lw=1.4)
            (cross,) = axes.plot([each.total], [position], "D", mfc="none", mec=PALETTE[1], ms=6)
            hint(cross, [f"{each.name}: {fixed(each.total, 2)} with interactions"])
        axes.set_yticks(range(len(importances)), [broken(each.name) for each in reversed(importances)])
        axes.set_xlim(left=0)
        axes.set_xlabel(f"share of the variance of {findings.results.objective.label}")

    line = "" if importances[0].low is None else "; line: the middle 95 % of what resampled replicates give"
    caption = (
        f"Bar: the share of variance over the space that a field explains by itself (fANOVA){line}. "
        "Diamond: with all its interactions, as other trees have it (Sobol's total index)."
    )
    height = 1.1 + 0.42 * len(importances)
    return save("importance", "Which field matters how much", caption, height, paint)


def _learning_curves(findings: Findings) -> Drawing | None:
    results = findings.results
    curves = list(islice(_curves(findings), _MOST_CURVES))
    if not any(len(points) > 1 for _, points in curves):
        return None
    factors = _shown_by_look(findings)
    few = len(curves) <= len(PALETTE)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for index, (each, points) in enumerate(curves):
            colour, shape = (PALETTE[index], 0) if few else look_of(each.config, factors)
            label = f"config {each.number}" if few else None
            epochs = [epoch for epoch, _ in points]
            means = [fmean(values) for _, values in points]
            width = 2.6 if each.is_best else 1.2
            (line,) = axes.plot(
                epochs, means, color=colour, lw=width, ls=DASHES[shape], marker="o", ms=3, label=label
            )
            hint(line, [config_hint(each, findings)])
            low, high = [min(values) for _, values in points], [max(values) for _, values in points]
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, lw=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"validation {results.objective.axis_label}")
        if few:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8.5)
        else:
            legend(axes, factors, lambda index: {"ls": DASHES[index]})

    bands = "; bands span the replicates" if any(len(config.trials) > 1 for config in results.configs) else ""
    thick = " Thick: the best config." if findings.best else ""
    most = f" The best {_MOST_CURVES} configs." if len(curves) == _MOST_CURVES else ""
    caption = f"Validation {results.objective.label}, mean over replicates{bands}.{thick}{most}"
    return save("learning_curves", "Learning curves", caption, 3.6, paint)


def _shown_by_look(findings: Findings) -> list[Factor]:
    """The two factors of the largest effects, of those that all configs have and for whose levels there are
    colours and markers.
    """
    configs = [each.config for each in findings.configs]
    factors = [finding.factor for finding in findings.effects]
    return [
        factor
        for factor in factors
        if len(factor.levels) <= len(PALETTE) and all(factor.value(each) is not None for each in configs)
    ][:2]


def _curves(findings: Findings) -> Iterator[tuple[ConfigFinding, list[tuple[int, list[float]]]]]:
    """For each config the values of all its replicates, by epoch."""
    for each in findings.configs:
        by_epoch: dict[int, list[float]] = {}
        for trial in each.config.trials:
            for epoch, value in findings.results.curves.get(trial.trial_id, ()):
                by_epoch.setdefault(epoch, []).append(value)
        if by_epoch:
            yield each, sorted(by_epoch.items())


def _bars(findings: Findings) -> str:
    return what_bars_are(known=findings.noise.dof > 0)


def _objective_values(findings: Findings, config: Config) -> list[float]:
    return findings.results.values(config, findings.results.objective)
