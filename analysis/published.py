"""The numbers that the paper published, Tables 1 to 5 of https://arxiv.org/abs/2006.08242, as plain data.

Modalities go by the letters that the paper gives them. Values are kept as they are printed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

DATASET = "mnist-svhn-text"
"""The data set of these tables."""

SAME_MODALITIES = (DATASET, "digits")
"""Data sets whose modalities are the paper's; only those of the first are its data."""

MODALITIES = ("M", "S", "T")
_IMAGES = ("M", "S")
_SUBSETS = tuple(",".join(each) for size in (1, 2, 3) for each in combinations(MODALITIES, size))
_ALL = _SUBSETS[-1]


class Model(NamedTuple):
    """A row of the tables: an objective, with modality-specific subspaces or without."""

    objective: str
    has_subspaces: bool

    @property
    def title(self) -> str:
        """As the paper writes it: "mmJSD (MS)"."""
        return TITLES[self.objective] + " (MS)" * self.has_subspaces


class Column(NamedTuple):
    """A column of a table: what is measured of a target given a subset, and where it stands."""

    metric: str
    """By the formula of the authors' code where that differs from the definition."""

    given: str
    """Letters joined by commas; empty for random generation."""

    target: str
    """A letter, "joint" or empty."""

    group: str
    title: str

    @property
    def full_title(self) -> str:
        """The title with its group's."""
        return f"{self.title} {self.group}".rstrip()


@dataclass(frozen=True)
class PublishedTable:
    """One table: its columns, and the printed values of each model in their order."""

    number: int
    caption: str
    columns: tuple[Column, ...]
    values: Mapping[Model, tuple[str, ...]]


TITLES = {"mvae": "MVAE", "mmvae": "MMVAE", "mmjsd": "mmJSD"}

MODELS = tuple(Model(objective, subspaces) for subspaces in (False, True) for objective in TITLES)
"""In the order of the tables' rows."""


def _values(rows: str) -> Mapping[Model, tuple[str, ...]]:
    """The rows of a table, a line each, by model."""
    return dict(zip(MODELS, (tuple(line.split()) for line in rows.strip().splitlines()), strict=True))


def _others(target: str) -> list[str]:
    """The subsets that lack the target, as the tables order them."""
    return [subset for subset in _SUBSETS if target not in subset]


TABLES = (
    PublishedTable(
        1,
        "Accuracy of a linear classifier on the content",
        tuple(
            Column("probe_accuracy", subset, "", "", "Joint" if subset == _ALL else subset)
            for subset in _SUBSETS
        ),
        _values(
            """
            0.85 0.20 0.58 0.80 0.92 0.46 0.90
            0.96 0.81 0.99 0.89 0.97 0.90 0.93
            0.97 0.82 0.99 0.93 0.99 0.92 0.98
            0.86 0.28 0.78 0.82 0.94 0.64 0.92
            0.96 0.81 0.99 0.89 0.98 0.91 0.92
            0.98 0.85 0.99 0.94 0.98 0.94 0.99
            """
        ),
    ),
    PublishedTable(
        2,
        "Coherence of what is generated",
        (
            Column("random_coherence_as_released", "", "", "", "Random"),
            *(
                Column("coherence", subset, target, f"→ {target}", subset)
                for target in MODALITIES
                for subset in _others(target)
            ),
        ),
        _values(
            """
            0.72 0.17 0.14 0.22 0.37 0.30 0.86 0.20 0.12 0.22
            0.54 0.82 0.99 0.91 0.32 0.30 0.31 0.96 0.83 0.90
            0.60 0.82 0.99 0.95 0.37 0.36 0.48 0.97 0.83 0.92
            0.74 0.16 0.17 0.25 0.35 0.37 0.85 0.24 0.14 0.26
            0.67 0.77 0.97 0.86 0.88 0.93 0.90 0.82 0.70 0.76
            0.66 0.80 0.97 0.93 0.89 0.93 0.92 0.92 0.79 0.86
            """
        ),
    ),
    PublishedTable(
        3,
        "Quality of generated images: what the authors' code calls average precision",
        tuple(
            Column("precision_as_released", subset, target, f"→ {target}", subset or "R")
            for target in _IMAGES
            for subset in (*_others(target), "")
        ),
        _values(
            """
            0.62 0.62 0.58 0.62 0.33 0.34 0.22 0.33
            0.22 0.09 0.18 0.35 0.005 0.006 0.006 0.27
            0.19 0.09 0.16 0.15 0.05 0.01 0.06 0.09
            0.60 0.59 0.50 0.60 0.30 0.33 0.17 0.29
            0.62 0.63 0.63 0.52 0.21 0.20 0.20 0.19
            0.62 0.64 0.64 0.30 0.21 0.22 0.22 0.17
            """
        ),
    ),
    PublishedTable(
        4,
        "Log-likelihood of all modalities, given a subset",
        tuple(
            Column(
                "log_likelihood_as_released",
                subset,
                "joint",
                "",
                "X" if subset == _ALL else f"X | {subset}",
            )
            for subset in (_ALL, *_SUBSETS[:-1])
        ),
        _values(
            """
            -1864 -2002 -1936 -2040 -1881 -1970 -1908
            -1916 -2213 -1911 -2250 -2062 -2231 -2080
            -1961 -2175 -1955 -2249 -2000 -2121 -2004
            -1870 -1999 -1937 -2033 -1886 -1971 -1909
            -1893 -1982 -1934 -1995 -1905 -1958 -1915
            -1900 -1994 -1944 -2006 -1907 -1968 -1918
            """
        ),
    ),
)
"""Captions are ours."""

ATTRIBUTE_DATASET = "celeba"
"""The data set of Table 5."""

ATTRIBUTE_PRECISION: Mapping[Model, tuple[str, ...]] = {
    Model("mvae", True): ("0.42", "0.45", "0.44", "0.32", "0.30"),
    Model("mmvae", True): ("0.43", "0.45", "0.42", "0.30", "0.36"),
    Model("mmjsd", True): ("0.48", "0.59", "0.57", "0.32", "0.42"),
}
"""Table 5: mean average precision of probes of image, text and both, then of text and of image generated."""

HARDER_IMAGE = "S"
"""The modality that the paper calls difficult."""


def printed(model: Model, column: Column) -> str | None:
    """The value of a model in a column of any table, as it is printed."""
    for table in TABLES:
        if column in table.columns:
            return table.values[model][table.columns.index(column)]
    return None
