"""A study in Python, for notebooks: `load("runs/subspaces").effects("style_dim")`. Pandas frames come out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.attributes import attribute_drawing
from analysis.beside import claim_drawing
from analysis.claims import Judgement, judge
from analysis.confirmation import Confirmed
from analysis.drawing import Drawing
from analysis.estimates import Estimate
from analysis.figures import draw
from analysis.findings import (
    COST,
    Column,
    ConfigFinding,
    Findings,
    column_of,
    contrasts,
    estimates,
    find,
    front,
)
from analysis.importance import Importance, weigh
from analysis.leaks import Leak, find_leaks, leak_drawing
from analysis.paper import DEFINITIONS, Comparison, compare, sheets
from analysis.reading import load as read_runs
from analysis.results import Quantity, Results
from analysis.wording import answer

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Study:
    """What the report says, at full precision. Configs have the numbers that they have in the report.

    A frame has its columns also where it has no row.
    """

    results: Results

    @cached_property
    def findings(self) -> Findings:
        """What the report is made of."""
        return find(self.results)

    @property
    def trials(self) -> pd.DataFrame:
        """The table `trials` of all runs: one row an ended trial."""
        return self.results.trial_rows

    @property
    def measurements(self) -> pd.DataFrame:
        """The table `measurements` of all runs: one row a score."""
        return self.results.measurements

    @property
    def answer(self) -> str:
        """What the report says first, as Markdown."""
        return "\n\n".join(answer(self.findings))

    @cached_property
    def configs(self) -> pd.DataFrame:
        """One row a config, best first: its swept fields, what its test split says, and what it cost."""
        found = self.findings.configs
        configs = [each.config for each in found]
        columns = self._swept(found, hashed=True)
        columns["best"] = [each.is_best for each in found]
        columns["tied_with_best"] = [each.tied for each in found]
        columns["validation_objective"] = [config.validation for config in configs]
        for column in self.findings.columns:
            columns |= _numbers([each.estimates[column.key] for each in found], f"test_{column.key}")
        columns["complete_replicates"] = [len(config.complete) for config in configs]
        columns["ended_replicates"] = [len(config.trials) for config in configs]
        columns["device_s"] = [config.device_s for config in configs]
        return pd.DataFrame(columns)

    def scores(self, metric: str | None = None, split: str = "test") -> pd.DataFrame:
        """One row a config and quantity, after the last epoch: mean, standard error, interval."""
        rows = []
        for quantity in self.results.last:
            if quantity.split == split and metric in (None, quantity.metric):
                found = estimates(self.results, quantity)
                rows += [
                    (each, quantity, found[each.config.config_hash])
                    for each in self.findings.configs
                    if each.config.config_hash in found
                ]
        if metric is not None and not rows:
            known = sorted({quantity.metric for quantity in self.results.last if quantity.split == split})
            raise ValueError(
                f"no {split} scores of {metric!r}; there are {', '.join(known) or 'none of any metric'}"
            )
        swept = self._swept([each for each, _, _ in rows])
        measured = _quantities([quantity for _, quantity, _ in rows])
        return pd.DataFrame(swept | measured | _numbers([estimate for *_, estimate in rows]))

    def pivot(self, metric: str, split: str = "test") -> pd.DataFrame:
        """Means of a metric: configs down, what was given, target and posterior across."""
        scores = self.scores(metric, split)
        columns = ["given", "target", "posterior", *(["attribute"] if scores["attribute"].any() else [])]
        wide: pd.DataFrame = scores.pivot(index="config", columns=columns, values="mean")
        return wide

    def posteriors(self) -> pd.DataFrame:
        """One row a test score that the product and the mixture of posteriors both have: by how much the
        product's exceeds the mixture's, within trials and averaged over configs."""
        found = contrasts(self.results)
        return pd.DataFrame(
            _quantities([each.quantity for each in found])
            | _numbers([each.difference for each in found], "difference")
            | {"p_value": [each.p_value for each in found]}
        ).drop(columns=["posterior", "split"])

    def confirmation(self) -> pd.DataFrame:
        """One row a config that was confirmed, best first on fresh seeds: the objective on the test split,
        and by how much it exceeds the base config's."""
        found = self.findings.confirmed
        configs = [each.config for each in found]
        swept = self._swept(found, hashed=True)
        return pd.DataFrame(
            swept
            | {"base": [config.is_base for config in configs]}
            | {"validation_objective": [config.validation for config in configs]}
            | _numbers([each.searched for each in found], "searched")
            | _numbers([each.fresh for each in found], "fresh")
            | _numbers([each.advantage for each in found], "against_base")
            | {"p_value": [each.p_value for each in found]}
        )

    def effects(self, factor: str | None = None) -> pd.DataFrame:
        """One row a level of a factor, or of every factor: its mean, and the effect of the factor.

        The effect is the difference between the best and the worst level, `± half_width`; p-values are
        corrected as in the report.
        """
        known = {each.factor.name: each for each in self.findings.effects}
        names = {each.factor.path: each.factor.name for each in self.findings.effects}
        wanted = names.get(factor, factor) if factor else None
        if wanted is not None and wanted not in known:
            raise ValueError(f"no factor {factor!r} with levels; there are {', '.join(known) or 'none'}")
        rows = [
            (name, finding.effect, mean)
            for name, finding in known.items()
            if finding.effect and wanted in (None, name)
            for mean in finding.effect.levels
        ]
        return pd.DataFrame(
            {"factor": [name for name, _, _ in rows], "level": [mean.level for *_, mean in rows]}
            | _numbers([mean.estimate for *_, mean in rows])
            | {"configs": [mean.num_configs for *_, mean in rows]}
            | {"effect": [effect.difference for _, effect, _ in rows]}
            | {"half_width": [effect.half_width for _, effect, _ in rows]}
            | {"p_value": [effect.p_value for _, effect, _ in rows]}
        )

    def correlations(self) -> pd.DataFrame:
        """One row a continuous factor: its rank correlation with the objective."""
        rows = [
            (each.factor.name, each.correlation.rho, each.correlation.p_value, each.correlation.num_configs)
            for each in self.findings.correlations
            if each.correlation
        ]
        return pd.DataFrame(rows, columns=["factor", "rho", "p_value", "configs"])

    def pareto(self, x: str | None = None, y: str = "objective") -> pd.DataFrame:
        """One row a config that has both: where it is, and whether another one beats it in both.

        Args:
            x: a column of the report; "device_s", the cost; or a metric of the test split: given all
                modalities, or of what is generated of nothing, shares as the mean over modalities and other
                metrics as their sum. By default the second objective of a study that has several, else
                "reconstruction".
            y: another one.
        """
        further = self.results.objectives[1:]
        x = x or (further[0].metric if further else "reconstruction")
        points = front(self.findings, self._column(x), self._column(y))
        return pd.DataFrame(
            self._swept([point.finding for point in points])
            | _numbers([point.x for point in points], x)
            | _numbers([point.y for point in points], y)
            | {"on_front": [point.on_front for point in points]}
            | {"attainment": [point.attainment for point in points]}
        )

    def importance(self) -> pd.DataFrame:
        """One row a swept field, most important first: its share of variance, the ends of what other seeds
        make of it, and its total share, interactions included, by other trees (Sobol's total index)."""
        rows = [(each.name, each.share, each.low, each.high, each.total) for each in self.importances]
        return pd.DataFrame(rows, columns=["factor", "share", "low", "high", "total"])

    @cached_property
    def importances(self) -> list[Importance]:
        """The same, for the report."""
        return weigh(self.findings)

    def paper(self) -> pd.DataFrame:
        """One row a number in the layout of the paper's tables; none unless the study holds two models.

        `table` is its file's name in tables/, `difference` ours minus the published in standard errors.
        """
        rows = [
            (
                sheet.name,
                value.entry.title,
                value.entry.number,
                value.column.full_title,
                value.ours.value,
                value.ours.standard_error,
                value.published and float(value.published),
                value.difference,
            )
            for sheet in (sheets() if self.comparison else ())
            for row in (self.comparison.values(sheet.columns) if self.comparison else ())
            for value in row
            if value.ours
        ]
        names = ["table", "model", "config", "column", "ours", "standard_error", "published", "difference"]
        return pd.DataFrame(rows, columns=names)

    def claims(self) -> pd.DataFrame:
        """One row a case of the paper's claims: the difference with its interval, and the verdict."""
        found = self.judgements
        return pd.DataFrame(
            {"claim": [each.case.claim for each in found], "case": [each.case.label for each in found]}
            | _numbers([each.difference for each in found], "difference")
            | {"published": [each.published for each in found], "verdict": [each.verdict for each in found]}
        )

    def as_released(self) -> pd.DataFrame:
        """One row a model and metric: what the formula of the authors' code adds to the definition."""
        rows = [
            (metric, model.title, estimate)
            for metric in DEFINITIONS
            for model, estimate in (self.comparison.worth(metric) if self.comparison else {}).items()
        ]
        return pd.DataFrame(
            {"metric": [metric for metric, _, _ in rows], "model": [model for _, model, _ in rows]}
            | _numbers([estimate for *_, estimate in rows])
        )

    def leaks(self) -> pd.DataFrame:
        """One row a modality and size of its subspace: how well a linear probe reads class or attributes from
        it, and what a guess reaches."""
        rows = [
            (each.modality, size, estimate)
            for each in self.leakage
            for size, estimate in each.by_size.items()
        ]
        return pd.DataFrame(
            {"modality": [modality for modality, _, _ in rows], "size": [size for _, size, _ in rows]}
            | _numbers([estimate for *_, estimate in rows])
            | {"chance": [self.results.chance] * len(rows)}
        )

    @cached_property
    def comparison(self) -> Comparison | None:
        """The study beside the paper, for the report."""
        return compare(self.results)

    @cached_property
    def judgements(self) -> list[Judgement]:
        """The paper's claims, for the report."""
        return judge(self.comparison) if self.comparison else []

    @cached_property
    def leakage(self) -> list[Leak]:
        """The leaks, for the report."""
        return find_leaks(self.results)

    def figure(self, name: str) -> Drawing:
        """One of the report's figures, by the name of its file; a notebook draws what ends a cell.

        Raises:
            ValueError: if the study has no such figure; the message says which it has.
        """
        known = {each.name: each for each in self.all_drawings}
        if name not in known:
            raise ValueError(f"no figure {name!r}; there are {', '.join(known) or 'none'}")
        return known[name]

    @cached_property
    def drawings(self) -> list[Drawing]:
        """The figures of effects and trade-offs, for the report."""
        return draw(self.findings, self.importances)

    @property
    def all_drawings(self) -> list[Drawing]:
        """Every figure of the report."""
        further = (self.leak_drawing, self.claim_drawing, self.attribute_drawing)
        return [*self.drawings, *filter(None, further)]

    @cached_property
    def leak_drawing(self) -> Drawing | None:
        """The figure of the leaks, for the report."""
        return leak_drawing(self.results, self.leakage)

    @cached_property
    def claim_drawing(self) -> Drawing | None:
        """The figure of the paper's claims, for the report."""
        return claim_drawing(self.judgements)

    @cached_property
    def attribute_drawing(self) -> Drawing | None:
        """The figure of every attribute's average precision, for the report."""
        return attribute_drawing(self.findings)

    def _swept(self, found: Sequence[ConfigFinding | Confirmed], *, hashed: bool = False) -> Columns:
        """What names the configs, then their swept fields by path; None where one does not apply."""
        named: Columns = {"config": [each.number for each in found]}
        named |= {"config_hash": [each.config.config_hash for each in found]} if hashed else {}
        swept = {path: [each.config.params.get(path) for each in found] for path in self.results.swept}
        return named | swept | named  # a case may be called so, too

    def _column(self, key: str) -> Column:
        columns = {column.key: column for column in (*self.findings.columns, COST)}
        metrics = {quantity.metric for quantity in self.results.last if quantity.split == "test"}
        further = {metric: column_of(self.results, metric) for metric in sorted(metrics - columns.keys())}
        columns |= {metric: column for metric, column in further.items() if column}
        if key not in columns:
            raise ValueError(f"no column {key!r}; there are {', '.join(columns)}")
        return columns[key]


def load(*runs: Path | str | Sequence[Path | str]) -> Study:
    """Read one run, or several to compare: their folders, on this machine or in object storage by URL.

    Args:
        runs: one by one, or as a list.

    Raises:
        ReportError: if no run is given, a folder has nothing to read, or two do not compare.
        StoreError: if a results file is damaged.
        FilesError: if object storage cannot be read.
    """
    folders = [run for each in runs for run in ([each] if isinstance(each, (Path, str)) else each)]
    return Study(read_runs(*folders))


def _quantities(quantities: Sequence[Quantity]) -> Columns:
    return {name: [getattr(each, name) for each in quantities] for name in Quantity._fields}


def _numbers(estimates: Sequence[Estimate | None], name: str = "") -> Columns:
    """The estimates' means, standard errors and intervals, as columns that begin with `name`."""
    prefix = f"{name}_" if name else ""
    names = {name or "mean": "value"} | {f"{prefix}{end}": end for end in ("standard_error", "low", "high")}
    return {column: [getattr(each, number, None) for each in estimates] for column, number in names.items()}
