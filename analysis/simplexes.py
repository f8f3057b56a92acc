"""Figures of weights that sum to one: a triangle for three of them, their pairs for more."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import ceil, sqrt
from typing import Any

from matplotlib.figure import Figure

from analysis.drawing import GRID, INK, Drawing, hint, save, shades
from analysis.findings import ConfigFinding, Findings
from analysis.results import weight_names
from analysis.wording import config_hint

Points = Sequence[tuple[tuple[float, ...], float, ConfigFinding]]
"""Configs of a simplex: weights, mean objective, and the config."""


def draw_simplexes(findings: Findings) -> Iterator[Drawing]:
    """One figure a swept simplex of three weights or more, for which the study has enough configs."""
    paths = dict.fromkeys(factor.path for factor in findings.results.factors if factor.index is not None)
    for number, path in enumerate(paths):
        points = [
            (weights, each.objective.value, each)
            for each in findings.configs
            if isinstance(weights := each.config.params.get(path), tuple) and each.objective
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
            axes.grid(visible=True, axis="both")
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
    """Points coloured by the objective, and one colour bar."""
    colours = shades(lower_is_better=findings.results.lower_is_better)
    values = [value for _, value, _ in points]
    drawn: Any = None
    for axes, place in zip(panels, places, strict=True):
        x, y = zip(*place, strict=True)
        drawn = axes.scatter(x, y, c=values, s=size, cmap=colours, edgecolors=INK, linewidths=0.6, zorder=2)
        hint(drawn, [config_hint(each, findings) for _, _, each in points])
        for (x_best, y_best), (_, _, each) in zip(place, points, strict=True):
            if each.is_best:
                axes.plot([x_best], [y_best], "o", mfc="none", mec=INK, ms=sqrt(size) * 1.7, mew=1.3)
    bar = figure.colorbar(drawn, ax=list(panels), shrink=0.8)
    bar.outline.set_visible(False)
    bar.set_label(findings.results.objective.axis_label)
