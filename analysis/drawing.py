"""How every figure looks: palette, style, shared marks, and SVG for light and dark pages."""

import io
import re
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import takewhile
from math import ceil
from typing import Any

import matplotlib
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.estimates import Estimate
from analysis.results import Config, Factor, level_label

INK, GRID, _PAPER = "#24292f", "#c8ccd1", "#ffffff"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours, which colour-blind readers can tell apart; their yellow is too pale for lines."""

_SHADES = LinearSegmentedColormap.from_list("shades", (PALETTE[0], "#9aa0a6", PALETTE[4]))
"""From bad to good, in colours that show on light and on dark pages, and to the colour-blind."""

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.5)),
    (0, (6, 2, 1, 2)),
    (0, (9, 3)),
    (0, (3, 1, 1, 1, 1, 1)),
)
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mmjsd",
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "font.size": 9.5,
    "figure.facecolor": _PAPER,
    "axes.facecolor": "none",
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

MOST_VECTORS = 400
"""Marks of one kind that a figure draws as vectors; more become pixels, and carry no hints."""

_WIDTH = 8.2
"""Inches; 590 points, so that text keeps its size on a wide page."""

_LETTERS = 100
"""So many letters fit side by side into that width."""

_LONGEST = 26
"""Letters of a label, or of a line of it."""


@dataclass(frozen=True)
class Drawing:
    """One finished figure."""

    name: str
    title: str
    caption: str
    """Markdown."""

    svg: str = field(repr=False)
    png: bytes = field(repr=False)
    pdf: bytes = field(repr=False)
    hints: Mapping[str, Sequence[str]] = field(repr=False)
    """What the marks of a group show, by the group's id in the SVG."""

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        return self.png

    @property
    def inline(self) -> str:
        """The SVG as part of a page: the page's paper, font and colours, the figure's own ids, and hints."""
        body = self.svg[self.svg.index("<svg") :]
        for group, texts in self.hints.items():
            body = _hinted(body, group, texts)
        body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
        body = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", body)
        body = re.sub(r'(<svg) width="[^"]*" height="[^"]*"', r"\1", body, count=1)
        body = re.sub(r' id="', f' id="{self.name}-', body)
        body = re.sub(r'xlink:href="#', f'href="#{self.name}-', body)
        body = body.replace("url(#", f"url(#{self.name}-")
        body = re.sub(r"font-family: [^;\"]*", "font-family: inherit", body)
        for index, colour in enumerate(PALETTE):
            body = body.replace(colour, f"var(--series-{index + 1})")
        return body.replace(INK, "currentColor").replace(GRID, "var(--line)").replace(_PAPER, "none")


def save(name: str, title: str, caption: str, height: float, paint: Callable[[Figure], None]) -> Drawing:
    """What `paint` puts on a figure of this height in inches."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # whoever shows the SVG may have it
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        paint(figure)
        hints = {}
        hinted: list[Any] = figure.findobj(lambda each: hasattr(each, "hints"))
        for index, artist in enumerate(hinted):
            artist.set_gid(f"hints-{index}")
            hints[f"hints-{index}"] = artist.hints
        svg, png, pdf = io.StringIO(), io.BytesIO(), io.BytesIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(svg, format="svg", metadata=metadata, dpi=150)
        figure.set_layout_engine("none")  # keeps the layout that was found
        figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
        metadata = dict.fromkeys(("CreationDate", "Creator", "Producer"))
        figure.savefig(pdf, format="pdf", dpi=150, metadata=metadata)
    return Drawing(name, title, caption, svg.getvalue(), png.getvalue(), pdf.getvalue(), hints)


def hint(artist: Any, texts: Sequence[str]) -> None:
    """Say what an artist shows, or each of its marks in their order; the page shows it at the pointer."""
    artist.hints = texts


def _hinted(body: str, group: str, texts: Sequence[str]) -> str:
    """The SVG with the texts on the marks of a group; a single text is that of the whole group."""
    start = body.index(f'<g id="{group}">')
    before, after = body[:start], body[start:]
    opening = "<g " if len(texts) == 1 else "<use "
    for text in texts:
        head, _, after = after.partition(opening)
        before += f'{head}{opening}data-hint="{escape(text)}" '
    return before + after


def shades(*, lower_is_better: bool) -> Colormap:
    """The colours of a quantity: blue where it is bad, orange where it is good."""
    return _SHADES.reversed() if lower_is_better else _SHADES


def look_of(config: Config, factors: Sequence[Factor]) -> tuple[str, int]:
    """Colour by the first factor's level; the second's position decides on marker or dashes."""
    positions = [factor.levels.index(factor.value(config)) for factor in factors]
    colour, shape = [*positions, 0, 0][:2]
    return PALETTE[colour % len(PALETTE)], shape % len(MARKERS)


def legend(axes: Any, factors: Sequence[Factor], shape: Callable[[int], dict[str, Any]]) -> None:
    """Right of the axes: what the colours mean, below it what the shapes mean."""
    handles = []
    for position, factor in enumerate(factors):
        for index, level in enumerate(short_labels(factor.levels)):
            look: dict[str, Any] = {"color": PALETTE[index % len(PALETTE)], "marker": "o", "ls": ""}
            if position:
                look = {"color": INK} | shape(index % len(MARKERS))
            handles.append(Line2D([], [], label=f"{broken(factor.name)} = {level}", **look))
    if handles:
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8.5)


def scatter_trials(
    axes: Any,
    position: float,
    values: Sequence[float],
    colour: str,
    spread: float,
    left_out: Sequence[float] = (),
) -> None:
    """Single trials, moved sideways by the golden ratio so that they do not cover each other.

    Of too many, every second, third, ... one. Hollow: those that a mean beside them leaves out.
    """
    step = 1 + (len(values) + len(left_out)) // MOST_VECTORS
    y = [*values, *left_out][::step]
    x = [position + spread * (2 * ((index + 1) * 0.618 % 1) - 1) for index in range(len(y))]
    filled, hollow = slice(ceil(len(values) / step)), slice(ceil(len(values) / step), None)
    axes.plot(x[filled], y[filled], "o", color=colour, ms=3.5, alpha=0.7, mew=0, zorder=1.5)
    if left_out:
        axes.plot(x[hollow], y[hollow], "o", color=colour, mfc="none", ms=3.5, mew=0.7, zorder=1.5)


def plot_estimates(
    axes: Any,
    x: Sequence[float],
    estimates: Sequence[Estimate],
    colour: str,
    marker: str,
    line: str,
    label: str | None,
) -> Any:
    """Means joined by a line, with their intervals where these can be known; the line."""
    values = [estimate.value for estimate in estimates]
    known = any(estimate.half_width is not None for estimate in estimates)
    return axes.errorbar(
        x,
        values,
        yerr=bars(estimates) if known else None,
        color=colour,
        marker=marker,
        ms=6,
        ls=line,
        label=label,
        zorder=2,
    )[0]


def bars(estimates: Iterable[Estimate]) -> list[tuple[float, ...]]:
    """The error bars of Matplotlib: how far the intervals reach below the means, and above them."""
    return [*zip(*(estimate.bars for estimate in estimates), strict=True)]


def what_bars_are(*, known: bool) -> str:
    """The sentence of a caption on the bars of `plot_estimates`."""
    return "Bars: 95 % intervals." if known else "Intervals would need replicates."


def draw_chance(axes: Any, chance: float | None) -> None:
    """A dashed line at what a guess reaches, if that is known."""
    if chance is not None:
        axes.axhline(chance, color=INK, lw=0.9, ls=(0, (4, 3)), zorder=1)


def what_dashes_are(chance: float | None) -> str:
    """What a caption ends with on the line of `draw_chance`."""
    return "" if chance is None else " Dashed: a guess."


def level_axis(axes: Any, factor: Factor) -> None:
    """The levels evenly spaced along the x axis; labels are turned, or some left out, where room is short."""
    labels = short_labels(factor.levels)
    count, longest = len(labels), max(map(len, labels))
    num_columns = axes.get_subplotspec().get_gridspec().ncols
    room = _LETTERS // num_columns
    look: dict[str, Any] = {}
    if count * (longest + 2) > room:
        look = {"rotation": 20, "ha": "right"} if 6 * count <= room else {"rotation": 90, "fontsize": 8}
    step = ceil(2 * count / room)
    axes.set_xticks(range(0, count, step), labels[::step], **look)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_xlabel(broken(factor.name, num_columns))


def short_labels(levels: Sequence[Hashable]) -> list[str]:
    """What figures call these levels: where one is too long, what all begin and end with is left out."""
    texts = [level_label(level) for level in levels]
    if max(map(len, texts)) <= _LONGEST:
        return texts
    start, end = (_num_shared([text[::step] for text in texts]) for step in (1, -1))
    kept = [
        ("…" if start else "") + text[start : max(start, len(text) - end)] + ("…" if end else "")
        for text in texts
    ]
    return [text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…" for text in kept]


def _num_shared(texts: Sequence[str]) -> int:
    """With how many letters all of several texts begin."""
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return len(list(alike)) if len(texts) > 1 else 0


def broken(name: str, num_columns: int = 1) -> str:
    """A name in lines, broken after underscores and dots and before brackets where it is long for columns."""
    longest, lines = min(_LONGEST, _LETTERS // num_columns), [""]
    for part in re.findall(r"\[?[^_.\[]*[_.]?", name):
        if lines[-1] and len(lines[-1]) + len(part) > longest:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
