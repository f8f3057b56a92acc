"""What each further given modality brings: coherence, and what a probe reads, against how many are given."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from analysis.drawing import (
    MARKERS,
    PALETTE,
    Drawing,
    broken,
    draw_chance,
    hint,
    plot_estimates,
    save,
    short_labels,
    what_bars_are,
    what_dashes_are,
)
from analysis.estimates import Estimate, estimate_means
from analysis.findings import ConfigFinding, Findings, grouped
from analysis.results import Quantity, Results
from analysis.wording import plus_minus

_METRICS = ("coherence", "mean_average_precision", "probe_accuracy", "mean_probe_average_precision")


def given_drawing(findings: Findings) -> Drawing | None:
    """A panel a metric, in it a line a config; None unless more than two modalities tell numbers apart."""
    results = findings.results
    measured = {metric: _by_number(results, metric) for metric in _METRICS}
    panels = {Quantity(metric).title: found for metric, found in measured.items() if len(found) > 1}
    title, lines = _lines(findings)
    if len(results.modalities) < 3 or not (panels and lines):
        return None

    def paint(figure: Figure) -> None:
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (metric, found) in zip(grid, panels.items(), strict=True):
            for index, (label, each) in enumerate(lines.items()):
                _line(axes, found, label, each, index, 0.06 * (index - (len(lines) - 1) / 2))
            draw_chance(axes, results.chance)
            axes.set_xticks(sorted(found))
            axes.set(xlabel="number of given modalities", ylabel=metric)
        figure.legend(
            *grid[0].get_legend_handles_labels(), title=title, loc="outside right center", fontsize=8.5
        )

    of_each = " of each level of the factor with the largest effect" if title else ""
    caption = (
        "Test split, mean over all subsets of as many modalities, given as the product of their posteriors, "
        f"and over all missing modalities that are generated. A line for the best config{of_each}. "
        f"{what_bars_are(known=findings.noise.dof > 0)}{what_dashes_are(results.chance)}"
    )
    return save("given", "What each further given modality brings", caption, 3.3, paint)


def _lines(findings: Findings) -> tuple[str, dict[str, ConfigFinding]]:
    """The best config of each level of the factor with the largest effect, by name, or the best of all."""
    complete = [each for each in findings.configs if each.config.complete]
    for factor in (each.factor for each in findings.effects if len(each.factor.levels) <= len(PALETTE)):
        best: dict[Any, ConfigFinding] = {}
        for each in complete:
            best.setdefault(factor.value(each.config), each)
        named = zip(factor.levels, short_labels(factor.levels), strict=True)
        found = ((label, best[level]) for level, label in named if level in best)
        return broken(factor.name), {f"{label} (config {each.number})": each for label, each in found}
    return "", {f"config {each.number}": each for each in complete[:1]}


def _by_number(results: Results, metric: str) -> dict[int, dict[str, Estimate]]:
    """By the number of given modalities the mean of what is not about a given one, by config hash."""
    shown = [
        each
        for each in results.last
        if (each.metric, each.split, each.attribute) == (metric, "test", "")
        if each.given and not each.is_of_given and each.posterior != "mixture"
    ]
    columns = grouped(
        results, sorted(shown, key=lambda each: each.num_given), lambda each: str(each.num_given)
    )
    found = {int(column.key): estimate_means(column.by_config(results), column.bounds) for column in columns}
    return {number: known for number, known in found.items() if known}


def _line(
    axes: Any,
    found: Mapping[int, Mapping[str, Estimate]],
    label: str,
    finding: ConfigFinding,
    index: int,
    shift: float,
) -> None:
    name = finding.config.config_hash
    known = {number: by_config[name] for number, by_config in found.items() if name in by_config}
    if known:
        places = [number + shift for number in known]
        means, colour, marker = list(known.values()), PALETTE[index], MARKERS[index]
        drawn = plot_estimates(axes, places, means, colour, marker, "-", label)
        hint(drawn, [f"{label}, given {number}: {plus_minus(each, 3)}" for number, each in known.items()])
