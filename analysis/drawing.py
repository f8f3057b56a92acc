"""How every figure looks: palette, style, shared marks, and SVG for light and dark pages."""

import io
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.estimates import Estimate
from analysis.results import Config, Factor, level_label

INK, GRID = "#24292f", "#c8ccd1"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours, which colour-blind readers can tell apart; their yellow is too pale for lines."""

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.5)),
    (0, (6, 2, 1, 2)),
    (0, (9, 3)),
    (0, (3, 1, 1, 1, 1, 1)),
)
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mmjsd",
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "errorbar.capsize": 3,
} | dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)

_WIDTH = 8.2
"""Inches; 590 points, so that text keeps its size on a wide page."""


@dataclass(frozen=True)
class Drawing:
    """One finished figure."""

    name: str
    title: str
    caption: str
    """Markdown."""

    svg: str

    @property
    def inline(self) -> str:
        """The SVG as part of a page: the page's font and colours, and ids that are the figure's own."""
        body = self.svg[self.svg.index("<svg") :]
        body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
        body = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", body)
        body = re.sub(r'(<svg) width="[^"]*" height="[^"]*"', r"\1", body, count=1)
        body = re.sub(r' id="', f' id="{self.name}-', body)
        body = re.sub(r'xlink:href="#', f'href="#{self.name}-', body)
        body = body.replace("url(#", f"url(#{self.name}-")
        body = re.sub(r"font-family: [^;\"]*", "font-family: inherit", body)
        for index, colour in enumerate(PALETTE):
            body = body.replace(colour, f"var(--series-{index + 1})")
        return body.replace(INK, "currentColor").replace(GRID, "var(--line)")


def save(name: str, title: str, caption: str, height: float, paint: Callable[[Figure], None]) -> Drawing:
    """What `paint` puts on a figure of this height in inches."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return Drawing(name, title, caption, buffer.getvalue())


def look_of(config: Config, factors: Sequence[Factor]) -> tuple[str, int]:
    """Colour by the first factor's level; the second's position decides on marker or dashes."""
    positions = [
        factor.levels.index(value) if (value := factor.value(config)) in factor.levels else 0
        for factor in factors
    ]
    colour, shape = [*positions, 0, 0][:2]
    return PALETTE[colour % len(PALETTE)], shape % len(MARKERS)


def legend(axes: Any, factors: Sequence[Factor], shape: Callable[[int], dict[str, Any]]) -> None:
    """Right of the axes: what the colours mean, below it what the shapes mean."""
    handles = []
    for position, factor in enumerate(factors):
        for index, level in enumerate(factor.levels):
            look: dict[str, Any] = {"color": PALETTE[index % len(PALETTE)], "marker": "o", "ls": ""}
            if position:
                look = {"color": INK} | shape(index % len(MARKERS))
            handles.append(Line2D([], [], label=f"{factor.name} = {_shortened(level)}", **look))
    if handles:
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8.5)


def scatter_trials(axes: Any, position: float, values: Sequence[float], colour: str, spread: float) -> None:
    """Single trials, moved sideways by the golden ratio so that they do not cover each other."""
    x = [position + spread * (2 * ((index + 1) * 0.618 % 1) - 1) for index in range(len(values))]
    axes.plot(x, values, "o", color=colour, ms=3.5, alpha=0.5, mew=0, zorder=1.5)


def plot_estimates(
    axes: Any,
    x: Sequence[float],
    estimates: Sequence[Estimate],
    colour: str,
    marker: str,
    line: str,
    label: str | None,
) -> None:
    """Means joined by a line, with their intervals where these can be known."""
    values = [estimate.value for estimate in estimates]
    bars = [estimate.half_width or 0.0 for estimate in estimates]
    known = any(estimate.half_width is not None for estimate in estimates)
    axes.errorbar(
        x,
        values,
        yerr=bars if known else None,
        color=colour,
        marker=marker,
        ms=6,
        ls=line,
        label=label,
        zorder=2,
    )


def level_axis(axes: Any, factor: Factor) -> None:
    """The levels evenly spaced along the x axis."""
    labels = [_shortened(level) for level in factor.levels]
    turned = {"rotation": 20, "ha": "right"} if max(map(len, labels)) * len(labels) > 40 else {}
    axes.set_xticks(range(len(labels)), labels, **turned)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_xlabel(factor.name)


def _shortened(level: Hashable) -> str:
    text = level_label(level)
    return text if len(text) <= 28 else f"{text[:27]}…"
