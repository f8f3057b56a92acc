"""The report's figures: interaction, main effects, where in a simplex, trade-off, learning curves."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import ceil, sqrt
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from analysis.drawing import (
    DASHES,
    GRID,
    INK,
    MARKERS,
    PALETTE,
    Drawing,
    legend,
    level_axis,
    look_of,
    plot_estimates,
    save,
    scatter_trials,
)
from analysis.findings import ConfigFinding, FactorFinding, Findings
from analysis.results import Config, level_label, weight_names
from analysis.wording import p_text, signed

_MOST_NUMBERS = 20
"""Configs that carry their number in the trade-off; more would cover each other."""

Points = Sequence[tuple[tuple[float, ...], float, ConfigFinding]]
"""Configs of a simplex: weights, mean objective, and the config."""


def draw(findings: Findings) -> list[Drawing]:
    """All figures that the study has data for, the most telling first."""
    if not any(finding.estimates.get("objective") for finding in findings.configs):
        drawn = [_learning_curves(findings)]
    else:
        effects, simplexes = _main_effects(findings), list(_simplexes(findings))
        drawn = [
            _interaction(findings),
            *([effects, *simplexes] if findings.effects else [*simplexes, effects]),
            _trade_off(findings),
            _learning_curves(findings),
        ]
    return [drawing for drawing in drawn if drawing]


def _interaction(findings: Findings) -> Drawing | None:
    crossing = findings.crossing
    if crossing is None:
        return None
    results = findings.results

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        lines = crossing.lines.levels
        for index, line in enumerate(lines):
            pairs = [(position, (level, line)) for position, level in enumerate(crossing.along.levels)]
            pairs = [(position, pair) for position, pair in pairs if pair in crossing.means]
            shift = 0.28 * ((index + 0.5) / len(lines) - 0.5)
            colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
            for position, pair in pairs:
                trials = [
                    value
                    for config in crossing.configs[pair]
                    for value in _objective_values(findings, config)
                ]
                scatter_trials(axes, position + shift, trials, colour, 0.03)
            estimates = [crossing.means[pair] for _, pair in pairs]
            name = f"{crossing.lines.name} = {level_label(line)}"
            plot_estimates(
                axes, [position + shift for position, _ in pairs], estimates, colour, marker, "-", name
            )
        level_axis(axes, crossing.along)
        axes.set_ylabel(results.objective.label)
        axes.legend(loc="best")

    over = " (averaged over the other factors)" if len(results.factors) > 2 else ""
    caption = (
        f"Test {results.objective.label} for every pair of levels{over}. {_bars(findings)} Small points: "
        "single trials. Parallel lines mean that the factors act independently."
    )
    if findings.interaction:
        test = findings.interaction
        caption += f" F test of their interaction: F({test.dof[0]}, {test.dof[1]}) = {test.statistic:.1f}, "
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
        figure.supylabel(findings.results.objective.label, fontsize=9.5)

    caption = f"Test {findings.results.objective.label} against each factor, largest effect first."
    if findings.effects:
        caption += " Small points: single trials; large ones: means of a level over the other factors."
    if findings.correlations:
        caption += " Circles: means of configs, with Spearman's ρ."
    height = 3.6 if len(shown) == 1 else 2.7 * rows
    return save("main_effects", "Each factor for itself", f"{caption} {_bars(findings)}", height, paint)


def _level_panel(axes: Any, findings: Findings, finding: FactorFinding) -> None:
    effect, factor = finding.effect, finding.factor
    assert effect is not None
    for position, level in enumerate(factor.levels):
        configs = [each.config for each in findings.configs if factor.value(each.config) == level]
        values = [value for config in configs for value in _objective_values(findings, config)]
        scatter_trials(axes, position, values, PALETTE[0], 0.12)
    found = {mean.level: mean.estimate for mean in effect.levels}
    positions = [position for position, level in enumerate(factor.levels) if level in found]
    estimates = [found[level] for level in factor.levels if level in found]
    plot_estimates(axes, positions, estimates, PALETTE[0], "o", ":", None)
    level_axis(axes, factor)
    axes.set_title(f"effect {signed(effect.difference, findings.results.objective.decimals)}")


def _scatter_panel(axes: Any, findings: Findings, finding: FactorFinding) -> None:
    factor, found = finding.factor, finding.correlation
    assert found is not None
    for each in findings.configs:
        x, estimate = factor.value(each.config), each.estimates.get("objective")
        if x is not None and estimate:
            style: dict[str, Any] = {
                "ecolor": PALETTE[0],
                "mfc": "none",
                "mec": PALETTE[0],
                "elinewidth": 0.9,
                "capsize": 0,
            }
            axes.errorbar([x], [estimate.value], yerr=estimate.half_width, fmt="o", ms=5, **style)
    if factor.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(factor.name)
    axes.set_title(f"ρ = {signed(found.rho, 2)}, {p_text(found.p_value)}")


def _trade_off(findings: Findings) -> Drawing | None:
    keys = {column.key: column for column in findings.columns}
    column = keys.get("reconstruction") or keys.get("loss")
    found = [
        (each, x, y)
        for each in findings.configs
        if column and (x := each.estimates.get(column.key)) and (y := each.estimates.get("objective"))
    ]
    if column is None or len(found) < 2:
        return None
    factors = [finding.factor for finding in findings.effects[:2]]
    front = _front([(x.value, y.value) for _, x, y in found], upwards=not findings.results.lower_is_better)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(axis="both")
        axes.plot(*zip(*front, strict=True), color=INK, lw=0.8, ls=(0, (4, 3)), zorder=1)
        for each, x, y in found:
            colour, index = look_of(each.config, factors)
            style: dict[str, Any] = {
                "fmt": MARKERS[index],
                "color": colour,
                "ms": 6.5,
                "elinewidth": 0.9,
                "capsize": 0,
            }
            axes.errorbar([x.value], [y.value], xerr=x.half_width, yerr=y.half_width, **style)
            if each.is_best:
                axes.plot([x.value], [y.value], "o", mfc="none", mec=INK, ms=13, mew=1.2)
            if each.number > _MOST_NUMBERS:
                continue
            axes.annotate(
                str(each.number), (x.value, y.value), xytext=(6, 5), textcoords="offset points", fontsize=8.5
            )
        axes.set_xlabel(f"{column.title}, nats per sample (lower is better)")
        axes.set_ylabel(findings.results.objective.label)
        legend(axes, factors, lambda index: {"marker": MARKERS[index], "ls": ""})

    what = (
        "the sum over modalities of the negative log-likelihood"
        if column.key == "reconstruction"
        else "the loss"
    )
    caption = (
        f"One point a config, numbered as in the table; ringed: the best. Horizontal: {what} on the test "
        f"split. {_bars(findings)} Dashed: the configs that no other beats in both."
    )
    objective = findings.results.objective.metric.replace("_", " ").capitalize()
    return save("trade_off", f"{objective} against {column.title}", caption, 4.1, paint)


def _front(points: Sequence[tuple[float, float]], *, upwards: bool) -> list[tuple[float, float]]:
    """The points that no other beats in both: a smaller x, and a better y."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1] if upwards else point[1])):
        if not front or (y > front[-1][1] if upwards else y < front[-1][1]):
            front.append((x, y))
    return front


def _learning_curves(findings: Findings) -> Drawing | None:
    results = findings.results
    curves = list(_curves(findings))
    if not any(len(points) > 1 for _, points in curves):
        return None
    factors = [finding.factor for finding in findings.effects[:2]]
    few = len(curves) <= len(PALETTE) or not factors

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for index, (each, points) in enumerate(curves):
            colour, shape = (PALETTE[index % len(PALETTE)], 0) if few else look_of(each.config, factors)
            label = f"config {each.number}" if few and index < 2 * len(PALETTE) else None
            epochs = [epoch for epoch, _ in points]
            means = [fmean(values) for _, values in points]
            width = 2.6 if each.is_best else 1.2
            axes.plot(epochs, means, color=colour, lw=width, ls=DASHES[shape], marker="o", ms=3, label=label)
            low, high = [min(values) for _, values in points], [max(values) for _, values in points]
            axes.fill_between(epochs, low, high, color=colour, alpha=0.15, lw=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"validation {results.objective.label}")
        if few:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8.5)
        else:
            legend(axes, factors, lambda index: {"ls": DASHES[index]})

    bands = "; bands span the replicates" if results.num_replicates > 1 else ""
    thick = " Thick: the best config." if findings.best else ""
    caption = f"Validation {results.objective.label}, mean over replicates{bands}.{thick}"
    return save("learning_curves", "Learning curves", caption, 3.6, paint)


def _curves(findings: Findings) -> Iterator[tuple[ConfigFinding, list[tuple[int, list[float]]]]]:
    """For each config the values of all its replicates, by epoch."""
    for each in findings.configs:
        by_epoch: dict[int, list[float]] = {}
        for trial in each.config.trials:
            for epoch, value in findings.results.curves.get(trial.trial_id, ()):
                by_epoch.setdefault(epoch, []).append(value)
        if by_epoch:
            yield each, sorted(by_epoch.items())


def _simplexes(findings: Findings) -> Iterator[Drawing | None]:
    paths = dict.fromkeys(factor.path for factor in findings.results.factors if factor.index is not None)
    for number, path in enumerate(paths):
        points = [
            (weights, estimate.value, each)
            for each in findings.configs
            if isinstance(weights := each.config.params.get(path), tuple)
            and (estimate := each.estimates.get("objective"))
        ]
        sizes = {len(weights) for weights, _, _ in points}
        if len(points) < 3 or len(sizes) != 1:
            continue
        names = weight_names(sizes.pop(), findings.results.modalities)
        if len(names) == 2:
            continue
        draw_points = _ternary if len(names) == 3 else _pairs
        yield draw_points(findings, f"weights_{number + 1}", path.split(".", 1)[-1], names, points)


def _ternary(findings: Findings, name: str, path: str, names: Sequence[str], points: Points) -> Drawing:
    corners = ((0.0, 0.0), (1.0, 0.0), (0.5, sqrt(3) / 2))

    def place(weights: Sequence[float]) -> tuple[float, float]:
        total = sum(weights)
        return (
            sum(weight * x for weight, (x, _) in zip(weights, corners, strict=True)) / total,
            sum(weight * y for weight, (_, y) in zip(weights, corners, strict=True)) / total,
        )

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_axis_off()
        axes.set_aspect("equal")
        axes.set_xlim(-0.35, 1.35)
        for step in (0.2, 0.4, 0.6, 0.8):
            left, right = [step, 1 - step, 0.0], [step, 0.0, 1 - step]
            for turn in range(3):
                ends = [place(end[turn:] + end[:turn]) for end in (left, right)]
                axes.plot(*zip(*ends, strict=True), color=GRID, lw=0.6, zorder=0)
            style: dict[str, Any] = {
                "xytext": (0, -11),
                "textcoords": "offset points",
                "ha": "center",
                "fontsize": 8,
            }
            axes.annotate(f"{step:.1f}", place((1 - step, step, 0)), **style)
        axes.plot(*zip(*corners, corners[0], strict=True), color=INK, lw=1)
        for corner, label, (align, shift) in zip(
            corners, names, (("right", (-6, -4)), ("left", (6, -4)), ("center", (0, 6))), strict=True
        ):
            axes.annotate(f"all {label}", corner, xytext=shift, textcoords="offset points", ha=align)
        _coloured(figure, [axes], [[place(weights) for weights, _, _ in points]], findings, points, size=70)

    caption = (
        "The weights of each config as a point of the simplex: near a corner, that weight is near one; the "
        f"numbers below the base count {names[1]}. Colour: test {findings.results.objective.label}; "
        "ringed: the best."
    )
    return save(name, f"Where in the simplex of {path}", caption, 4.2, paint)


def _pairs(findings: Findings, name: str, path: str, names: Sequence[str], points: Points) -> Drawing:
    pairs = list(combinations(range(len(names)), 2))
    columns = 3
    rows = ceil(len(pairs) / columns)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False)
        places = [[(weights[first], weights[second]) for weights, _, _ in points] for first, second in pairs]
        panels = list(grid.flat[: len(pairs)])
        for axes, (first, second) in zip(panels, pairs, strict=True):
            axes.grid(axis="both")
            axes.plot([0, 1], [1, 0], color=GRID, lw=1, zorder=0)
            axes.set_aspect("equal")
            axes.set(xlabel=names[first], ylabel=names[second], xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
            axes.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
        for axes in grid.flat[len(pairs) :]:
            axes.set_axis_off()
        _coloured(figure, panels, places, findings, points, size=42)

    caption = (
        "The weights of each config, two at a time; all sum to one, so points lie below the line. "
        f"Colour: test {findings.results.objective.label}; ringed: the best."
    )
    return save(name, f"Where in the simplex of {path}", caption, 2.3 * rows, paint)


def _coloured(
    figure: Figure,
    panels: Sequence[Any],
    places: Sequence[Sequence[tuple[float, float]]],
    findings: Findings,
    points: Points,
    size: float,
) -> None:
    """Points coloured by the objective, dark to bright as it improves, and one colour bar."""
    colours = "cividis_r" if findings.results.lower_is_better else "cividis"
    values = [value for _, value, _ in points]
    drawn: Any = None
    for axes, place in zip(panels, places, strict=True):
        x, y = zip(*place, strict=True)
        drawn = axes.scatter(x, y, c=values, s=size, cmap=colours, edgecolors=INK, linewidths=0.6, zorder=2)
        for (x_best, y_best), (_, _, each) in zip(place, points, strict=True):
            if each.is_best:
                axes.plot([x_best], [y_best], "o", mfc="none", mec=INK, ms=sqrt(size) * 1.7, mew=1.3)
    bar = figure.colorbar(drawn, ax=list(panels), shrink=0.8)
    bar.outline.set_visible(False)
    bar.set_label(findings.results.objective.label)


def _bars(findings: Findings) -> str:
    return "Bars: 95 % intervals." if findings.noise.dof else "Intervals would need replicates."


def _objective_values(findings: Findings, config: Config) -> list[float]:
    return findings.results.values(config, findings.results.objective)
