"""The figure of all swept fields at once: a line a config, its colour the objective."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from analysis.drawing import INK, MOST_VECTORS, Drawing, broken, hint, save, shades, short_labels
from analysis.findings import Findings
from analysis.results import Config, Factor
from analysis.wording import config_hint


def parallel_drawing(findings: Findings) -> Drawing | None:
    """A line a config through all fields; None unless three fields vary, one of them without levels."""
    shown = [(each, each.objective.value) for each in findings.configs if each.objective][:MOST_VECTORS]

    def is_varied(factor: Factor) -> bool:
        """Whether all that are shown have the field, and not all the same value of it."""
        values = {factor.value(each.config) for each, _ in shown}
        return len(values) > 1 and None not in values

    factors = list(filter(is_varied, findings.results.factors))
    if len(factors) < 3 or len(shown) < 3 or all(factor.levels for factor in factors):
        return None
    values = [value for _, value in shown]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        palette = shades(lower_is_better=findings.results.lower_is_better)
        colours = ScalarMappable(Normalize(min(values), max(values)), palette)
        lines = colours.to_rgba(np.array(values))
        scales = [
            _unit_axis(axes, position, factor, [each.config for each, _ in shown])
            for position, factor in enumerate(factors)
        ]
        for (each, _), colour in zip(reversed(shown), reversed(lines), strict=True):
            heights = [
                scale(factor.value(each.config)) for factor, scale in zip(factors, scales, strict=True)
            ]
            (line,) = axes.plot(
                range(len(factors)),
                heights,
                color=colour,
                lw=3 if each.is_best else 1.4,
                alpha=1 if each.is_best else 0.7,
            )
            hint(line, [config_hint(each, findings)])
        axes.set_xticks(range(len(factors)), [broken(factor.name, len(factors) + 1) for factor in factors])
        axes.tick_params(axis="x", length=0, pad=14)
        axes.set_yticks([])
        axes.set_xlim(-0.25, len(factors) - 0.75)
        axes.set_ylim(-0.08, 1.08)
        figure.colorbar(colours, ax=axes, label=findings.results.objective.axis_label, shrink=0.8, pad=0.01)

    most = f" The best {MOST_VECTORS}." if len(shown) == MOST_VECTORS else ""
    label = findings.results.objective.label
    caption = (
        f"One line a config, orange where test {label} is good, blue where it is not; thick: the best.{most}"
    )
    return save("parallel_coordinates", "All fields at once", caption, 3.9, paint)


def _unit_axis(axes: Any, position: int, factor: Factor, configs: Sequence[Config]) -> Callable[[Any], float]:
    """Draw the vertical axis of one factor from 0 to 1; where on it a value lies."""
    numbers = [factor.position(factor.value(config)) for config in configs]
    low, high = min(numbers), max(numbers)
    axes.plot([position, position], [0, 1], color=INK, lw=0.8, zorder=0)
    marked: Sequence[Any] = factor.levels
    if not factor.levels:
        marked = [choose(factor.value(config) for config in configs) for choose in (min, max)]
    labels = dict(zip(marked, short_labels(marked), strict=True))

    def height(value: Any) -> float:
        return (factor.position(value) - low) / (high - low)

    for value, label in labels.items():
        if low <= factor.position(value) <= high:
            place = {0.0: ((0, -4), "center", "top"), 1.0: ((0, 4), "center", "bottom")}
            shift, across, along = place.get(height(value), ((5, 0), "left", "center"))
            axes.annotate(
                label,
                (position, height(value)),
                xytext=shift,
                textcoords="offset points",
                ha=across,
                va=along,
                fontsize=8,
            )
    return height
