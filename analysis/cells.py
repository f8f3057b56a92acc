"""What a table is made of, however it is written: HTML, Markdown and LaTeX show the same cells."""

from dataclasses import dataclass

from analysis.estimates import Estimate
from analysis.wording import fixed, p_text, plus_minus


@dataclass(frozen=True)
class Cell:
    """One cell."""

    text: str
    kind: str = "text"
    """Its class on the page."""

    sort: float | str | None = None
    """What its column is sorted by."""

    share: float | None = None
    """In [0, 1]; tints it."""

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


def estimate_cell(estimate: Estimate | None, decimals: int) -> Cell:
    """A mean and its interval: 0.774 ± 0.118."""
    if estimate is None:
        return Cell("–", "number")
    text = plus_minus(estimate, decimals) + (" ± n/a" if estimate.half_width is None else "")
    return Cell(text, "number", estimate.value)


def bracket_cell(
    estimate: Estimate | None,
    decimals: int = 3,
    *,
    bold: bool = False,
    tinted: bool = False,
    span: int = 1,
    muted: bool = False,
) -> Cell:
    """A mean and its standard error: 0.774 (0.012); a share may tint it."""
    if estimate is None:
        return Cell("–", "number", span=span)
    share = estimate.value if tinted else None
    return Cell(in_brackets(estimate, decimals), "number", estimate.value, share, span, muted, bold)


def p_cell(p_value: float | None) -> Cell:
    """A p-value under a title that says so."""
    text = "–" if p_value is None else p_text(p_value).removeprefix("p ").removeprefix("= ")
    return Cell(text, "number", p_value)


def in_brackets(estimate: Estimate, decimals: int) -> str:
    """A mean and its standard error: 0.774 (0.012)."""
    error = "n/a" if estimate.standard_error is None else fixed(estimate.standard_error, decimals)
    return f"{fixed(estimate.value, decimals)} ({error})"
